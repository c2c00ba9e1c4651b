// SPDX-License-Identifier: Apache-2.0
// Rows of the usual shapes, added up in registers: what lies between the noise or the arrays and the outputs takes no
// way through memory. All other rows go through tile_rows.h, form by form.
#pragma once
#include <initializer_list>

#include "tile_noise.h"
#include "tile_rows.h"

namespace nf {
namespace {

// A tile of a row that begins with the noise and goes on with arrays of one type: added up while its noise is in
// registers.
template <int Terms, DType In, DType Out>
[[gnu::flatten]] void tile_on_noise(const TileWords& words, const Plan& plan, const Rows<float>& rows,
                                    const Arrays<float>& arrays, int64_t at) {
    const Affine& form = rows.out[0];
    const auto k = Lane::splat(form.constant < 0 ? -0.0f : *rows.coefficient(form.constant));  // -0 changes nothing
    Lane::f32 c[Terms];
    const void* v[Terms];
    for (int t = 0; t < Terms; ++t) {
        c[t] = Lane::splat(*rows.coefficient(form.column[t]));
        v[t] = arrays.s.in[form.slot[t]];
    }
    void* const out = arrays.s.out[0];
    const bool stream = arrays.streams(0, at);
    words_to_floats(arrays.s.draw, plan.groups, words, [&](int g, const Lane::f32(&z)[4]) {
        arrays.prefetch_read(at, g);
        Lane::f32 sum[4];
        for (int i = 0; i < 4; ++i) {
            sum[i] = Lane::fma(c[0], z[i], k);
            for (int t = 1; t < Terms; ++t)
                sum[i] = Lane::fma(c[t], load_lanes<In>(v[t], at + g * kGroup + i * Lane::width), sum[i]);
        }
        store_lanes<Out>(out, at + g * kGroup, sum, stream);
    });
}

using OnNoise = decltype(&tile_on_noise<1, DType::f32, DType::f32>);

template <DType In, DType Out>
OnNoise on_noise(int terms) {
    return terms == 1 ? tile_on_noise<1, In, Out> : terms == 2 ? tile_on_noise<2, In, Out> : tile_on_noise<3, In, Out>;
}

template <DType Out>
OnNoise on_noise(DType in, int terms) {
    return in == Out ? on_noise<Out, Out>(terms) : in == DType::u8 ? on_noise<DType::u8, Out>(terms) : nullptr;
}

// Which of these does a call, or null: one output in float32 arithmetic, no clamp, one to three terms, inputs of the
// output's type or bytes. q_sample and q_step are so, and many samplers' steps.
template <class Real>
OnNoise on_noise(const Step& s, const Rows<Real>& rows) {
    const Affine& form = rows.out[0];
    const bool plain = !s.out[1] && !s.out[2] && !s.masked && !rows.wants_clean;
    if (!plain || form.n == 0 || form.n > 3 || form.slot[0] != kZ || s.type == DType::f64) return nullptr;
    const DType in = form.n == 1 ? s.type : s.in_type[form.slot[1]];
    for (int t = 1; t < form.n; ++t)
        if (s.in_type[form.slot[t]] != in) return nullptr;
    return s.type == DType::f32   ? on_noise<DType::f32>(in, form.n)
           : s.type == DType::f16 ? on_noise<DType::f16>(in, form.n)
                                  : on_noise<DType::bf16>(in, form.n);
}

// What an output adds up: so many terms, the first of which is D; or the noise and then D; or neither.
enum Begin { kOnClean = 0, kOnNoise = 10, kOnArrays = 20 };
constexpr int terms_of(int form) { return form % 10; }
constexpr int begin_of(int form) { return form - form % 10; }

// A tile of at least a vector, with D, of `Clean` terms, in registers, and with outputs of these forms (Begin + terms).
template <class Real, int Clean, int... Forms>
[[gnu::flatten]] void tile_on_clean(const Rows<Real>& rows, const Arrays<Real>& arrays, int64_t at, int size) {
    using Vector = decltype(Lane::splat(Real{}));
    constexpr int W = kWidth<Real>, kOutputs = sizeof...(Forms), kForms[] = {Forms...}, kMost = 5;
    Vector clean_c[Clean], c[kOutputs][kMost], result[kOutputs];
    const Real *clean_v[Clean], *v[kOutputs][kMost];
    Real* to[kOutputs];
    bool stream[kOutputs];
    for (int t = 0; t < Clean; ++t) {
        clean_c[t] = Lane::splat(*rows.coefficient(rows.clean.column[t]));
        clean_v[t] = arrays.value[rows.clean.slot[t]];
    }
    for (int o = 0; o < kOutputs; ++o) {
        for (int t = 0; t < terms_of(kForms[o]); ++t) {
            c[o][t] = Lane::splat(*rows.coefficient(rows.out[o].column[t]));
            v[o][t] = arrays.value[rows.out[o].slot[t]];
        }
        to[o] = static_cast<Real*>(arrays.s.out[o]) + at;
        stream[o] = arrays.streams(o, at);
    }
    const bool clamps = rows.clamps();
    const Vector low = Lane::splat(*rows.coefficient(kLow)), high = Lane::splat(*rows.coefficient(kHigh));
    const auto compute = [&](int i) {
        Vector d = Lane::mul(clean_c[0], Lane::load(clean_v[0] + i));
        for (int t = 1; t < Clean; ++t) d = Lane::fma(clean_c[t], Lane::load(clean_v[t] + i), d);
        if (clamps) d = Lane::clamp(d, low, high);
        for (int o = 0; o < kOutputs; ++o) {
            const int begin = begin_of(kForms[o]);
            Vector sum = Lane::mul(c[o][0], begin == kOnClean ? d : Lane::load(v[o][0] + i));
            if (begin == kOnNoise) sum = Lane::fma(c[o][1], d, sum);
            for (int t = begin == kOnNoise ? 2 : 1; t < terms_of(kForms[o]); ++t)
                sum = Lane::fma(c[o][t], Lane::load(v[o][t] + i), sum);
            result[o] = sum;
        }
    };
    // The last vector overlaps the one before it: it is computed first, while no input has been overwritten.
    Vector last[kOutputs];
    compute(size - W);
    for (int o = 0; o < kOutputs; ++o) last[o] = result[o];
    for (int i = 0; i + W <= size; i += W) {
        compute(i);
        for (int o = 0; o < kOutputs; ++o) store_one(to[o] + i, result[o], stream[o]);
    }
    for (int o = 0; o < kOutputs; ++o) Lane::store(to[o] + size - W, last[o]);
}

template <class Real>
using OnClean = decltype(&tile_on_clean<Real, 2, 2>);

constexpr int64_t shape(std::initializer_list<int> forms) {
    int64_t digits = 0;
    for (int form : forms) digits = 100 * digits + form;
    return digits;
}

// Begin + terms, or -1: D comes later than that.
inline int form_of(const Affine& form) {
    int clean = 0;  // which term it is
    while (clean < form.n && form.slot[clean] != kD) ++clean;
    if (clean == form.n) return kOnArrays + form.n;
    return clean == 0 ? kOnClean + form.n : clean == 1 && form.slot[0] == kZ ? kOnNoise + form.n : -1;
}

// Which of these does a call, or null. The samplers have few shapes.
template <class Real>
OnClean<Real> on_clean(const Rows<Real>& rows, const Arrays<Real>& arrays) {
    const Step& s = rows.s;
    if (!rows.wants_clean || s.masked || rows.clean.constant >= 0) return nullptr;
    int64_t found = shape({rows.clean.n});
    for (int o = 0; o < 3; ++o) {
        if (!s.out[o]) continue;
        const int form = form_of(rows.out[o]);
        if (form < 0 || !arrays.direct[o] || rows.out[o].constant >= 0 || (o && !s.out[o - 1])) return nullptr;
        found = 100 * found + form;
    }
    switch (found) {
        case shape({2, 2}):
            return tile_on_clean<Real, 2, 2>;  // ddim, euler
        case shape({3, 2}):
            return tile_on_clean<Real, 3, 2>;  // guided
        case shape({2, 3}):
            return tile_on_clean<Real, 2, 3>;  // flow_euler
        case shape({2, 3, 1}):
            return tile_on_clean<Real, 2, 3, 1>;  // dpmpp_2m
        case shape({2, 4, 1, 4}):
            return tile_on_clean<Real, 2, 4, 1, 4>;  // unipc
        case shape({2, 4, 2}):
            return tile_on_clean<Real, 2, 4, 2>;  // dpm_2
        case shape({2, 4, 3}):
            return tile_on_clean<Real, 2, 4, 3>;  // heun, flow_heun, edm
        case shape({2, kOnArrays + 5, 2}):
            return tile_on_clean<Real, 2, kOnArrays + 5, 2>;  // pndm
        case shape({2, kOnNoise + 3}):
            return tile_on_clean<Real, 2, kOnNoise + 3>;  // ddpm, euler_ancestral, lcm
        case shape({3, kOnNoise + 3}):
            return tile_on_clean<Real, 3, kOnNoise + 3>;
        case shape({2, kOnNoise + 4, 1}):
            return tile_on_clean<Real, 2, kOnNoise + 4, 1>;  // dpmpp_2m_sde
        default:
            return nullptr;
    }
}

template <class Real>
void apply(OnClean<Real> tile_on_clean, const Rows<Real>& rows, Arrays<Real>& arrays, int64_t at, int size) {
    arrays.load(at, size);
    if (tile_on_clean && !rows.per_element && size >= kWidth<Real>)
        tile_on_clean(rows, arrays, at, size);
    else
        arrays.apply(rows, at, size);
}

}  // namespace
}  // namespace nf
