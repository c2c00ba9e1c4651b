// SPDX-License-Identifier: Apache-2.0
// Rows of the usual shapes, added up in registers: noise and D take no way through memory. All other rows go through
// tile_rows.h, form by form.
#pragma once
#include "tile_noise.h"
#include "tile_rows.h"

namespace nf {
namespace {

// What a form begins with; the number of its terms is added.
enum Begin { kOnClean = 0, kOnNoise = 10, kOnBoth = 20, kOnArrays = 30 };  // both: the noise, then D
constexpr int terms_of(int form) { return form % 10; }
constexpr int begin_of(int form) { return form - form % 10; }

// Begin + terms, or -1: D comes later.
inline int form_of(const Affine& form) {
    const bool noise = form.n > 0 && form.slot[0] == kZ;
    int clean = 0;  // which term it is
    while (clean < form.n && form.slot[clean] != kD) ++clean;
    if (clean == form.n) return form.n + (noise ? kOnNoise : kOnArrays);
    return clean > noise ? -1 : form.n + (noise ? kOnBoth : kOnClean);
}

// The shape of a row: the number of D's terms, and the forms of the outputs. Its code has two digits for each.
constexpr int64_t with_form(int64_t code, int form) { return 100 * code + form; }
template <int Clean, int... Forms>
struct Shape {
    static constexpr int64_t code() {
        int64_t code = Clean;
        ((code = with_form(code, Forms)), ...);
        return code;
    }
};
template <class... Each>
struct Shapes {};

// Of a call, its code, or -1: not one of these. Only a form that begins with the noise may have a constant.
template <class Real>
int64_t shape_of(const Rows<Real>& rows, const Arrays<Real>& arrays) {
    const Step& s = rows.s;
    if (s.masked || !arrays.apart || (rows.wants_clean && rows.clean.constant >= 0)) return -1;
    int64_t code = rows.wants_clean ? rows.clean.n : 0;
    for (int o = 0; o < 3; ++o) {
        if (!s.out[o]) continue;
        const int form = form_of(rows.out[o]);
        const bool constant = rows.out[o].constant >= 0 && begin_of(form) != kOnNoise;
        if (form < 0 || terms_of(form) == 0 || constant || (o && !s.out[o - 1])) return -1;
        code = with_form(code, form);
    }
    return code;
}

// What `of` makes of the shape with this code, or null.
template <class Function, class Of, class... Each>
Function for_shape(int64_t code, Shapes<Each...>, Of of) {
    Function found = nullptr;
    ((code == Each::code() ? void(found = of(Each{})) : void()), ...);
    return found;
}

// A row of this shape in registers, and where its terms are: arrays of type In, and of the noise one vector.
template <class Real, DType In, int Clean, int... Forms>
struct RegisterRow {
    static constexpr int kOutputs = sizeof...(Forms), kForms[] = {Forms...}, kMost = 5;
    Vector<Real> clean_c[Clean + 1], c[kOutputs][kMost], k[kOutputs], low, high;
    const void *clean_v[Clean + 1], *v[kOutputs][kMost];
    bool clamps;

    template <class Values>
    RegisterRow(const Rows<Real>& rows, const Values& value) : clamps(rows.clamps()) {
        const auto splat = [&](int column) { return Lane::splat(*rows.coefficient(column)); };
        low = splat(kLow), high = splat(kHigh);
        for (int t = 0; t < Clean; ++t)
            clean_c[t] = splat(rows.clean.column[t]), clean_v[t] = value[rows.clean.slot[t]];
        for (int o = 0; o < kOutputs; ++o) {
            const Affine& form = rows.out[o];
            k[o] = form.constant < 0 ? Lane::splat(Real{-0.0}) : splat(form.constant);  // -0 changes no product
            for (int t = 0; t < terms_of(kForms[o]); ++t)
                c[o][t] = splat(form.column[t]), v[o][t] = value[form.slot[t]];
        }
    }

    // The outputs' vectors of the elements from `at` on.
    void add_up(int64_t at, Vector<Real> z, Vector<Real> (&result)[kOutputs]) const {
        Vector<Real> d = z;
        for (int t = 0; t < Clean; ++t) {
            const auto x = load_lanes<In>(clean_v[t], at);
            d = t == 0 ? Lane::mul(clean_c[t], x) : Lane::fma(clean_c[t], x, d);
        }
        if (Clean && clamps) d = Lane::clamp(d, low, high);
        for (int o = 0; o < kOutputs; ++o) {
            const int begin = begin_of(kForms[o]);
            Vector<Real> sum;
            if (begin == kOnClean) sum = Lane::mul(c[o][0], d);
            if (begin == kOnArrays) sum = Lane::mul(c[o][0], load_lanes<In>(v[o][0], at));
            if (begin == kOnNoise || begin == kOnBoth) sum = Lane::fma(c[o][0], z, k[o]);
            if (begin == kOnBoth) sum = Lane::fma(c[o][1], d, sum);
            for (int t = begin == kOnBoth ? 2 : 1; t < terms_of(kForms[o]); ++t)
                sum = Lane::fma(c[o][t], load_lanes<In>(v[o][t], at), sum);
            result[o] = sum;
        }
    }
};

// ---- with the noise of whole groups, as it is made ---------------------------------------------------------

template <DType In, DType Out, int Clean, int... Forms>
[[gnu::flatten]] void tile_on_noise(const TileWords& words, const Plan& plan, const Rows<float>& rows,
                                    const Arrays<float>& arrays, int64_t at) {
    constexpr int kOutputs = sizeof...(Forms);
    const RegisterRow<float, In, Clean, Forms...> row(rows, arrays.s.in);
    bool stream[kOutputs];
    for (int o = 0; o < kOutputs; ++o) stream[o] = arrays.streams(o, at);
    words_to_floats<Draw::normal>(plan.groups, words, [&](int g, const Lane::f32(&z)[4]) {
        arrays.prefetch_read(at, g);
        const int64_t here = at + g * kGroup;
        Lane::f32 result[4][kOutputs];
        for (int i = 0; i < 4; ++i) row.add_up(here + i * Lane::width, z[i], result[i]);
        for (int o = 0; o < kOutputs; ++o)
            store_lanes<Out>(arrays.s.out[o], here, {result[0][o], result[1][o], result[2][o], result[3][o]},
                             stream[o]);
    });
}

using ForwardShapes = Shapes<Shape<0, kOnNoise + 2>,  // q_sample, q_step; and their targets
                             Shape<0, kOnNoise + 2, kOnNoise + 1>, Shape<0, kOnNoise + 2, kOnNoise + 2>,
                             Shape<0, kOnNoise + 2, kOnArrays + 1>>;
using DrawnShapes = Shapes<Shape<0, kOnNoise + 1>,                         // randn
                           Shape<0, kOnNoise + 3>, Shape<2, kOnBoth + 3>,  // ddpm, euler_ancestral, lcm
                           Shape<3, kOnBoth + 3>,                          // guided
                           Shape<2, kOnBoth + 4, kOnClean + 1>>;           // dpmpp_2m_sde

using OnNoise = decltype(&tile_on_noise<DType::f32, DType::f32, 0, kOnNoise + 1>);

template <DType In, DType Out>
OnNoise on_noise(int64_t code) {
    const auto of = []<int Clean, int... Forms>(Shape<Clean, Forms...>) {
        return tile_on_noise<In, Out, Clean, Forms...>;
    };
    if (const OnNoise found = for_shape<OnNoise>(code, ForwardShapes{}, of)) return found;
    if constexpr (In == Out) return for_shape<OnNoise>(code, DrawnShapes{}, of);
    return nullptr;
}

template <DType Out>
OnNoise on_noise(DType in, int64_t code) {
    return in == Out ? on_noise<Out, Out>(code) : in == DType::u8 ? on_noise<DType::u8, Out>(code) : nullptr;
}

// Which of these does a call, or null: float32 arithmetic, all inputs of the outputs' type or all bytes.
template <class Real>
OnNoise on_noise(const Arrays<Real>& arrays, int64_t code) {
    const Step& s = arrays.s;
    if (s.type == DType::f64 || s.draw != Draw::normal) return nullptr;
    const DType in = arrays.n_in ? s.in_type[arrays.slots[0]] : s.type;
    for (int i = 0; i < arrays.n_in; ++i)
        if (s.in_type[arrays.slots[i]] != in) return nullptr;
    return s.type == DType::f32   ? on_noise<DType::f32>(in, code)
           : s.type == DType::f16 ? on_noise<DType::f16>(in, code)
                                  : on_noise<DType::bf16>(in, code);
}

// ---- with all in arrays, vector by vector ------------------------------------------------------------------

// A tile of at least a vector.
template <class Real, int Clean, int... Forms>
[[gnu::flatten]] void tile_on_arrays(const Rows<Real>& rows, const Arrays<Real>& arrays, int64_t at, int size) {
    constexpr int W = kWidth<Real>, kOutputs = sizeof...(Forms);
    const RegisterRow<Real, kOwn<Real>, Clean, Forms...> row(rows, arrays.value);
    Real* to[kOutputs];
    bool stream[kOutputs];
    for (int o = 0; o < kOutputs; ++o)
        to[o] = static_cast<Real*>(arrays.s.out[o]) + at, stream[o] = arrays.streams(o, at);
    const Real* const noise = arrays.value[kZ];
    const auto add_up = [&](int i, Vector<Real>(&result)[kOutputs]) {
        row.add_up(i, ((begin_of(Forms) == kOnBoth) || ...) ? Lane::load(noise + i) : Vector<Real>{}, result);
    };
    // A last vector that overlaps the one before it is computed first, while no input has been overwritten.
    const bool overlaps = size % W != 0;
    Vector<Real> result[kOutputs], last[kOutputs] = {};
    if (overlaps) add_up(size - W, last);
    for (int i = 0; i + W <= size; i += W) {
        add_up(i, result);
        for (int o = 0; o < kOutputs; ++o) store_one(to[o] + i, result[o], stream[o]);
    }
    for (int o = 0; o < kOutputs && overlaps; ++o) Lane::store(to[o] + size - W, last[o]);
}

using SamplerShapes = Shapes<Shape<2, kOnClean + 2>,                              // ddim, euler
                             Shape<3, kOnClean + 2>,                              // guided
                             Shape<2, kOnClean + 3>,                              // flow_euler
                             Shape<2, kOnClean + 3, kOnClean + 1>,                // dpmpp_2m
                             Shape<2, kOnClean + 4, kOnClean + 1, kOnClean + 4>,  // unipc
                             Shape<2, kOnClean + 4, kOnClean + 2>,                // dpm_2
                             Shape<2, kOnClean + 4, kOnClean + 3>,                // heun, flow_heun, edm
                             Shape<2, kOnArrays + 5, kOnClean + 2>,               // pndm
                             Shape<2, kOnBoth + 3>,                               // ddpm, euler_ancestral, lcm
                             Shape<3, kOnBoth + 3>,                               // guided
                             Shape<2, kOnBoth + 4, kOnClean + 1>>;                // dpmpp_2m_sde

template <class Real>
using OnArrays = decltype(&tile_on_arrays<Real, 2, kOnClean + 2>);

// Which of these does a call whose outputs are in the arithmetic's own type, or null.
template <class Real>
OnArrays<Real> on_arrays(const Arrays<Real>& arrays, int64_t code) {
    if (arrays.s.type != kOwn<Real>) return nullptr;
    return for_shape<OnArrays<Real>>(code, SamplerShapes{}, []<int Clean, int... Forms>(Shape<Clean, Forms...>) {
        return tile_on_arrays<Real, Clean, Forms...>;
    });
}

template <class Real>
void apply(OnArrays<Real> tile_on_arrays, const Rows<Real>& rows, Arrays<Real>& arrays, int64_t at, int size) {
    arrays.load(at, size);
    if (tile_on_arrays && !rows.per_element && size >= kWidth<Real>)
        tile_on_arrays(rows, arrays, at, size);
    else
        arrays.apply(rows, at, size);
}

}  // namespace
}  // namespace nf
