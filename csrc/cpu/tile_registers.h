// SPDX-License-Identifier: Apache-2.0
// Rows of the usual shapes are added up in registers, so noise and D never go through memory. tile_rows.h has all other
// rows, combination by combination.
#pragma once
#include <array>
#include <initializer_list>
#include <iterator>
#include <utility>

#include "tile_noise.h"
#include "tile_rows.h"

namespace nf {
namespace {

// The shape of a row: the columns that are not zero, those of D (if an output or the noise has it) and of the outputs,
// and the factor of the noise.
constexpr uint64_t columns(int first, std::initializer_list<Slot> slots) {
    uint64_t set = 0;
    for (const Slot slot : slots) set |= uint64_t{1} << (first + 1 + slot);
    return set;
}
using Slots = std::initializer_list<Slot>;
constexpr uint64_t shape(Slots clean, Slots out, Slots aux1 = {}, Slots aux2 = {}) {
    return columns(kClean, clean) | columns(kAffine[0], out) | columns(kAffine[1], aux1) | columns(kAffine[2], aux2);
}
// The constant of a combination, and a coefficient for each slot.
constexpr uint64_t combination_of(uint64_t active, int first) {
    return active & ((uint64_t{1} << (1 + kSlots)) - 1) << first;
}

// Returns the shape of a call, or 0 if it is none of these. Only a combination that begins with the noise may have a
// constant, which is no part of the shape.
template <class Real>
uint64_t shape_of(const Rows<Real>& rows) {
    const Call& s = rows.s;
    if (s.masked) return 0;
    uint64_t found = s.active & (kTimesClean | kTimesRoot);
    found |= rows.wants_clean ? s.active & (columns(kClean, {kX, kM1, kM2}) | uint64_t{1} << kClean) : 0;
    for (int o = 0; o < 3; ++o) {
        if (!s.out[o]) continue;
        const Affine& combination = rows.out[o];
        if (combination.n == 0 || (o && !s.out[o - 1])) return 0;
        found |= combination_of(s.active, kAffine[o]);
        if (combination.slot[0] == kZ) found &= ~(uint64_t{1} << kAffine[o]);
    }
    return found;
}

// Returns of.operator()<shape>() for a call's shape, or null if it is none of these.
template <const auto& shapes, class Function, class Of>
Function for_shape(uint64_t shape, Of of) {
    Function found = nullptr;
    if constexpr (kInRegisters)
        [&]<size_t... I>(std::index_sequence<I...>) {
            ((shape == shapes[I] ? void(found = of.template operator()<shapes[I]>()) : void()), ...);
        }(std::make_index_sequence<std::size(shapes)>{});
    return found;
}

// A constant that changes no product, for each element of a tile.
template <class Real>
constexpr auto kNothingOf = [] {
    std::array<Real, kTile + kOverhang> zeros{};
    zeros.fill(Real{-0.0});
    return zeros;
}();

// A row of this shape in registers, and its arrays of type In. It takes the noise one vector at a time. `Each` says
// where the rows of a tile's elements are. It is read once, as to the compiler any store might change it. `Blocks`: the
// vectors are those of `load_of_block`.
template <class Real, DType In, uint64_t shape, bool Each = false, bool Blocks = false>
struct RegisterRow {
    static constexpr Affine kCleanCombination{shape, kClean, 3};
    static constexpr Affine kCombinations[3] = {
        {shape, kAffine[0], kSlots}, {shape, kAffine[1], kSlots}, {shape, kAffine[2], kSlots}};
    static constexpr int kOutputs = kCombinations[2].n ? 3 : kCombinations[1].n ? 2 : 1;
    static constexpr bool reads(int slot) {
        bool found = slot < 3 && counts(shape, kClean + 1 + slot);
        for (int o = 0; o < 3; ++o) found |= counts(shape, kAffine[o] + 1 + slot);
        return found;
    }

    using Coefficient = std::conditional_t<Each, const Real*, Vector<Real>>;
    Coefficient clean_c[3], clean_k, c[kOutputs][kSlots], k[kOutputs], low, high;
    const void* array[kSlots];
    bool clamps;

    static Coefficient coefficient_at(const Real* of) {
        if constexpr (Each)
            return of;
        else
            return Lane::splat(*of);
    }

    template <class Source, class Values>
    RegisterRow(const Source& rows, const Values& value) : clamps(rows.clamps()) {
        const auto coefficient = [&](int column) { return coefficient_at(rows.coefficient(column)); };
        low = coefficient(kLow), high = coefficient(kHigh), clean_k = coefficient(kClean);
        for (int slot = 0; slot < kSlots; ++slot)  // each pointer by itself, as it was stored just now
            if (reads(slot)) array[slot] = value[slot];
        for (int t = 0; t < kCleanCombination.n; ++t) clean_c[t] = coefficient(kCleanCombination.column[t]);
        for (int o = 0; o < kOutputs; ++o) {
            const int constant = rows.constant(o);
            k[o] = constant < 0 ? coefficient_at(kNothingOf<Real>.data()) : coefficient(constant);
            for (int t = 0; t < kCombinations[o].n; ++t) c[o][t] = coefficient(kCombinations[o].column[t]);
        }
    }

    // Does what `Arrays::prefetch_read` does, for a known number of lines.
    void prefetch(int64_t at) const {
        for (int slot = 0; slot < kSlots; ++slot)
            for (int line = 0; slot != kZ && slot != kD && reads(slot) && line < kGroup * bytes_of(In); line += kLine)
                __builtin_prefetch(static_cast<const char*>(array[slot]) + (at + 2 * kTile) * bytes_of(In) + line);
    }

    // Computes the outputs' vectors from element `at` on, which is `in_tile` in its tile. Each array is read once.
    template <class Clamps>
    void add_up(int64_t at, Vector<Real> z, Vector<Real> (&result)[kOutputs], Clamps clamps, int in_tile = 0,
                bool odd = false) const {
        const auto of = [&](Coefficient coefficient) {
            if constexpr (Each)
                return Lane::load(coefficient + in_tile);
            else
                return coefficient;
        };
        Vector<Real> v[kSlots];
        v[kZ] = z;
        for (int slot = 0; slot < kSlots; ++slot)
            if (slot != kZ && slot != kD && reads(slot))
                v[slot] = Blocks ? load_of_block<In>(array[slot], at, odd) : load_lanes<In>(array[slot], at);
        if constexpr (kCleanCombination.n) {
            const Vector<Real> first = v[kCleanCombination.slot[0]];
            v[kD] = kCleanCombination.constant < 0 ? Lane::mul(of(clean_c[0]), first)
                                                   : Lane::fma(of(clean_c[0]), first, of(clean_k));
            for (int t = 1; t < kCleanCombination.n; ++t)
                v[kD] = Lane::fma(of(clean_c[t]), v[kCleanCombination.slot[t]], v[kD]);
            if (clamps) v[kD] = Lane::clamp(v[kD], of(low), of(high));
            if constexpr (scales_noise(shape)) v[kZ] = Lane::mul(z, shape & kTimesRoot ? Lane::sqrt(v[kD]) : v[kD]);
        }
        for (int o = 0; o < kOutputs; ++o) {
            const Affine& combination = kCombinations[o];
            result[o] = combination.slot[0] == kZ ? Lane::fma(of(c[o][0]), v[kZ], of(k[o]))
                                                  : Lane::mul(of(c[o][0]), v[combination.slot[0]]);
            for (int t = 1; t < combination.n; ++t)
                result[o] = Lane::fma(of(c[o][t]), v[combination.slot[t]], result[o]);
        }
    }
};

// ---- with the noise of whole groups, as it is made ---------------------------------------------------------

// Only the first output can be of levels (an integer dtype). The others are then float.
template <DType Out>
inline void store_output(int output, void* to, int64_t at, const Lane::f32 (&x)[4], bool nontemporal) {
    output == 0 ? store_lanes<Out>(to, at, x, nontemporal)
                : store_lanes<is_level(Out) ? DType::f32 : Out>(to, at, x, nontemporal);
}

// Tells whether the row is added up while its normals are in registers. With conversions, or coefficients from memory,
// that loop is too long for a processor to overlap its groups, and the normals are made first.
template <DType Out, bool Each>
constexpr bool kOnePass = Out == DType::f32 && !Each;

template <DType In, DType Out, uint64_t shape, bool Each>
[[gnu::flatten]] void tile_on_noise(Noise<float>& noise, const Counters& counters, const Rows<float>& rows,
                                    const Arrays<float>& arrays, int64_t at) {
    using Row = RegisterRow<float, In, shape, Each>;
    const Row row(rows, arrays.s.in);
    constexpr int kOutputs = Row::kOutputs;
    bool nontemporal[kOutputs];
    for (int o = 0; o < kOutputs; ++o) nontemporal[o] = arrays.nontemporal(o, at);
    const auto take = [&](int g, const Lane::f32(&z)[4]) {
        const int64_t here = at + g * kGroup;
        row.prefetch(here);
        Lane::f32 result[4][kOutputs];
        for (int i = 0; i < 4; ++i) {
            const int in_tile = g * kGroup + i * Lane::width;
            row.add_up(at + in_tile, z[i], result[i], row.clamps, in_tile);
        }
        for (int o = 0; o < kOutputs; ++o)
            store_output<Out>(o, arrays.s.out[o], here, {result[0][o], result[1][o], result[2][o], result[3][o]},
                              nontemporal[o]);
    };
    if constexpr (kOnePass<Out, Each>) return words_to_floats<Draw::normal>(counters.groups, noise.words, take);
    words_to_values<Draw::normal>(noise.values, counters.groups, noise.words, noise.low_words);
    for (int g = 0; g < counters.groups; ++g) {
        const float* const z = noise.values + g * kGroup;
        take(g, {Lane::load(z), Lane::load(z + Lane::width), Lane::load(z + 2 * Lane::width),
                 Lane::load(z + 3 * Lane::width)});
    }
}

// Noise that depends on x: multiplied by it, or of a variance that is linear in it.
constexpr uint64_t kTimesX = shape({kX}, {kZ, kX}) | kTimesClean,
                   kTimesRootX = shape({kX}, {kZ, kX}) | uint64_t{1} << kClean | kTimesRoot;
constexpr uint64_t kForwardShapes[] = {
    shape({}, {kZ, kX}),            // q_sample, q_step; and their targets:
    shape({}, {kZ, kX}, {kZ}),      // epsilon
    shape({}, {kZ, kX}, {kX}),      // sample
    shape({}, {kZ, kX}, {kZ, kX}),  // v, flow
    kTimesX,
    kTimesRootX,
};
constexpr uint64_t kDrawnShapes[] = {
    shape({}, {kZ}),                 // randn
    shape({kM1, kX}, {kZ, kD, kX}),  // ddpm, euler_ancestral, lcm
    shape({kM1, kX}, {kZ, kD, kM1}),
    shape({kM1, kX}, {kZ, kD, kM1, kX}),
    shape({kM1}, {kZ, kD, kX}),
    shape({kM2, kM1, kX}, {kZ, kD, kX}),   // guided
    shape({kM1, kX}, {kZ, kD, kX}, {kD}),  // that return D too
    shape({}, {kZ, kM1, kX}, {kM1, kX}),
    shape({}, {kZ, kM1, kX}),
    shape({kM1, kX}, {kZ, kD, kPast1, kX}, {kD}),  // dpmpp_2m_sde, seeds_2, res_multistep
    shape({kM1, kX}, {kZ, kD, kPast1, kX}),
    shape({kM1, kX}, {kZ, kD, kPast2, kPast1, kX}, {kD}),  // dpmpp_3m_sde, er_sde, seeds_3
    shape({kM1, kX}, {kZ, kD, kPast2, kPast1, kX}),
    shape({kM1, kX}, {kZ, kD, kPast2, kPast1, kX}, {kD}, {kZ, kD, kPast2, kX}),  // sa_solver
    shape({kM1, kX}, {kZ, kD, kPast1, kM1, kX}),                                 // dpm_2_ancestral, dpmpp_2s_ancestral
    shape({kM1, kX}, {kZ, kD, kPast1, kM1}, {kZ, kD, kX}),                       // dpmpp_sde
    shape({kM1, kX}, {kZ, kD, kPast1, kM1}),
};

// The shapes that are done so if each element has a row of its own.
constexpr uint64_t kEachShapes[] = {shape({}, {kZ}), shape({}, {kZ, kX}), kTimesX, kTimesRootX};

using OnNoise = decltype(&tile_on_noise<DType::f32, DType::f32, shape({}, {kZ}), false>);

template <DType In, DType Out>
OnNoise on_noise(uint64_t shape_of_call, bool each) {
    const auto of_each = []<uint64_t shape>() -> OnNoise { return tile_on_noise<In, Out, shape, true>; };
    if (each) return for_shape<kEachShapes, OnNoise>(shape_of_call, of_each);
    const auto of = []<uint64_t shape>() -> OnNoise { return tile_on_noise<In, Out, shape, false>; };
    if (const auto found = for_shape<kForwardShapes, OnNoise>(shape_of_call, of)) return found;
    if constexpr (In == Out && !is_level(Out)) return for_shape<kDrawnShapes, OnNoise>(shape_of_call, of);
    return nullptr;
}

template <DType Out>
OnNoise on_noise(DType in, uint64_t shape, bool each) {
    return in == Out          ? on_noise<Out, Out>(shape, each)
           : in == DType::u8  ? on_noise<DType::u8, Out>(shape, each)
           : in == DType::u16 ? on_noise<DType::u16, Out>(shape, each)
                              : nullptr;
}

template <DType Out>
OnNoise to_levels_on_noise(DType in, uint64_t shape, bool each) {
    return in == DType::f32 ? on_noise<DType::f32, Out>(shape, each) : on_noise<Out>(in, shape, each);
}

// Returns the one of these that does a call, or null. They have float32 arithmetic. All inputs have the outputs' type,
// or all are levels, or all are float and the output is levels. (Each pair of types is a hundredth of the wheel.)
template <class Real>
OnNoise on_noise(const Arrays<Real>& arrays, uint64_t shape, bool each) {
    const Call& s = arrays.s;
    if (s.draw != Draw::normal) return nullptr;
    const DType in = arrays.n_in ? s.in_type[arrays.slots[0]] : s.type;
    for (int i = 0; i < arrays.n_in; ++i)
        if (s.in_type[arrays.slots[i]] != in) return nullptr;
    switch (s.out_type) {
        case DType::f32:
            return on_noise<DType::f32>(in, shape, each);
        case DType::f16:
            return on_noise<DType::f16>(in, shape, each);
        case DType::bf16:
            return on_noise<DType::bf16>(in, shape, each);
        case DType::u8:
            return s.type == DType::f32 ? to_levels_on_noise<DType::u8>(in, shape, each) : nullptr;
        case DType::u16:
            return s.type == DType::f32 ? to_levels_on_noise<DType::u16>(in, shape, each) : nullptr;
        case DType::f64:
            return nullptr;
    }
    return nullptr;
}

// ---- with all in arrays, block by block --------------------------------------------------------------------

// Computes whole blocks, from arrays of one type to arrays of that type.
template <class Real, DType Type, uint64_t shape>
[[gnu::flatten]] void tile_on_arrays(const Rows<Real>& rows, const void* const (&in)[kSlots], void* const (&out)[3],
                                     const bool (&nontemporal)[3], int size) {
    using Row = RegisterRow<Real, Type, shape, false, true>;
    const Row row(rows, in);
    constexpr int W = kWidth<Real>, kOutputs = Row::kOutputs;
    void* to[kOutputs];
    bool past_caches[kOutputs];
    for (int o = 0; o < kOutputs; ++o) to[o] = out[o], past_caches[o] = nontemporal[o];
    const Real* const noise = static_cast<const Real*>(in[kZ]);
    const auto all = [&](auto clamps) {
        for (int i = 0; i < size; i += kBlock<Real>) {
            Vector<Real> result[kVectors][kOutputs];
            for (int v = 0; v < kVectors; ++v) {
                const Vector<Real> z = Row::reads(kZ) ? Lane::load(noise + i + v * W) : Vector<Real>{};
                row.add_up(i + v * W, z, result[v], clamps, 0, v % 2);
            }
            for (int o = 0; o < kOutputs; ++o)
                store_block<Type>(to[o], i, {result[0][o], result[1][o], result[2][o], result[3][o]}, past_caches[o]);
        }
    };
    if constexpr (!is_half(Type)) return all(row.clamps);  // in halves a branch for each block counts
    row.clamps ? all(std::true_type()) : all(std::false_type());
}

// The shapes that are done in halves, too. (A half's others go through float32: each shape is 3 KB of the library.)
constexpr uint64_t kCommonShapes[] = {
    shape({kM1, kX}, {kD, kM1}),  // ddim, euler
    shape({kM1, kX}, {kD, kX}),
    shape({kM1, kX}, {kD, kM1, kX}),
    shape({}, {kM1, kX}),
    shape({kM1, kX}, {kD, kPast1, kX}, {kD}),  // dpmpp_2m
    shape({}, {kPast1, kM1, kX}, {kM1, kX}),
};
constexpr uint64_t kSamplerShapes[] = {
    shape({}, {kZ}),      // randn
    shape({}, {kZ, kX}),  // q_sample, q_step
    shape({kM1}, {kD, kX}),
    shape({kM1}, {kD, kPast1, kX}, {kD}),
    shape({kM2, kM1, kX}, {kD, kX}),  // guided
    shape({kM2, kM1, kX}, {kD, kM2, kM1}),
    shape({kM2, kM1, kX}, {kD, kM2, kM1, kX}),
    shape({kM1, kX}, {kD, kM1}, {kD}),  // that return D too
    shape({kM1, kX}, {kD, kX}, {kD}),
    shape({kM1, kX}, {kD, kM1, kX}, {kD}),
    shape({}, {kM1, kX}, {kM1, kX}),
    shape({kM1, kX}, {kD, kPast2, kPast1, kX}, {kD}, {kD, kPast2, kPast1, kX}),  // unipc
    shape({}, {kPast3, kPast2, kPast1, kM1, kX}, {kM1, kX}, {kPast3, kPast2, kPast1, kM1, kX}),
    shape({kM1, kX}, {kD, kPast1, kX}, {kD, kX}),  // heun, flow_heun, edm, dpm_2
    shape({kM1, kX}, {kD, kPast1, kM1, kX}, {kD, kX}),
    shape({kM1, kX}, {kD, kPast1, kM1, kX}, {kD, kM1, kX}),
    shape({}, {kPast2, kPast1, kM1, kX}, {kM1, kX}, {kM1}),
    shape({kM1, kX}, {kPast3, kPast2, kPast1, kM1, kX}, {kD, kM1}),  // pndm
    shape({kM1, kX}, {kPast3, kPast2, kPast1, kM1, kX}, {kD, kM1, kX}),
    shape({}, {kPast3, kPast2, kPast1, kM1, kX}, {kPast1, kM1}),
    shape({kM1, kX}, {kZ, kD, kX}),  // ddpm, euler_ancestral, lcm
    shape({kM1, kX}, {kZ, kD, kM1, kX}),
    shape({kM2, kM1, kX}, {kZ, kD, kX}),   // guided
    shape({kM1, kX}, {kZ, kD, kX}, {kD}),  // that return D too
    shape({}, {kZ, kM1, kX}, {kM1, kX}),
    shape({kM1, kX}, {kZ, kD, kPast1, kX}, {kD}),  // dpmpp_2m_sde
};

template <class Real>
using TileOnArrays = decltype(&tile_on_arrays<Real, kOwn<Real>, kSamplerShapes[0]>);

// The one of these that does a call, or null, and the type of the arrays that it takes: others are converted.
template <class Real>
struct OnArrays {
    DType type = kOwn<Real>;
    TileOnArrays<Real> tile;
    int64_t most = 64 * kTile;  // elements at once
    bool copies;                // of arrays that have another type

    OnArrays(const Arrays<Real>& arrays, uint64_t shape) {
        const Call& s = arrays.s;
        tile = of_type<kOwn<Real>>(shape);
        if constexpr (sizeof(Real) == 4)
            if (is_half(s.out_type) && arrays.become(s.out_type)) {
                const auto of_halves =
                    s.out_type == DType::f16 ? of_type<DType::f16>(shape) : of_type<DType::bf16>(shape);
                if (of_halves) tile = of_halves, type = s.out_type;
            }
        int converted = 0;
        for (int i = 0; i < arrays.n_in; ++i) converted += s.in_type[arrays.slots[i]] != type;
        if (converted) most = kSlots / converted * kTile;
        for (int o = 0; o < 3 && s.out[o]; ++o)
            if (s.type_of(o) != type) most = kTile;
        if (!tile) most = kTile;
        copies = most < 64 * kTile;
        for (int i = 0; i < arrays.n_in; ++i) copies |= arrays.rounds(arrays.slots[i]);
    }

  private:
    template <DType Type>
    static TileOnArrays<Real> of_type(uint64_t shape_of_call) {
        using Tile = TileOnArrays<Real>;
        const auto of = []<uint64_t shape>() -> Tile { return tile_on_arrays<Real, Type, shape>; };
        const Tile found = for_shape<kCommonShapes, Tile>(shape_of_call, of);
        if constexpr (is_half(Type))
            return found;
        else
            return found ? found : for_shape<kSamplerShapes, Tile>(shape_of_call, of);
    }
};

// The arrays of some elements, and which results go past the caches.
struct Places {
    const void* in[kSlots];
    void* out[3];
    bool nontemporal[3];
};

// Computes a block or more, of which the last may be cut. A block that ends where they end and overlaps the one before
// it is then computed first, while no input has been overwritten.
template <class Real>
[[gnu::noinline]] void run_cut(const OnArrays<Real>& on_arrays, const Rows<Real>& rows, const Arrays<Real>& arrays,
                               const Places& all, int size) {
    constexpr int kSize = kBlock<Real>;
    const int whole = size / kSize * kSize, from = size - kSize, width = bytes_of(on_arrays.type);
    alignas(64) char last[3][kSize * sizeof(Real)];
    if (whole < size) {
        const void* in[kSlots];
        in[kZ] = all.in[kZ] ? static_cast<const Real*>(all.in[kZ]) + from : nullptr;
        for (int i = 0; i < arrays.n_in; ++i) {
            const int slot = arrays.slots[i];
            in[slot] = static_cast<const char*>(all.in[slot]) + from * width;
        }
        on_arrays.tile(rows, in, {last[0], last[1], last[2]}, {}, kSize);
    }
    on_arrays.tile(rows, all.in, all.out, all.nontemporal, whole);
    for (int o = 0; o < 3 && arrays.s.out[o] && whole < size; ++o) {
        char* const to = static_cast<char*>(all.out[o]) + from * width;
        width == sizeof(Real) ? std::memcpy(to, last[o], kSize * sizeof(Real))
                              : std::memcpy(to, last[o], kSize * sizeof(uint16_t));
    }
}

// Does what `apply` does, for arrays of other types and for less than a block.
template <class Real>
[[gnu::noinline]] void apply_copied(const OnArrays<Real>& on_arrays, const Rows<Real>& rows, Arrays<Real>& arrays,
                                    int64_t at, int size) {
    if (!on_arrays.tile || rows.per_element || size < kBlock<Real>) {
        arrays.load(at, size);
        return arrays.apply(rows, at, size);
    }
    const Call& s = arrays.s;
    const DType type = on_arrays.type;
    Places places{};
    places.in[kZ] = arrays.value[kZ];
    Real* converted = arrays.staged[0];
    for (int i = 0; i < arrays.n_in; ++i) {
        const int slot = arrays.slots[i];
        places.in[slot] = arrays.elements(slot, type, at, size, converted);
        if (places.in[slot] == converted) converted += (size + kTile - 1) / kTile * kTile;
    }
    for (int o = 0; o < 3 && s.out[o]; ++o) {
        const bool as_is = s.type_of(o) == type;
        places.out[o] = arrays.result[o];
        if (as_is) places.out[o] = static_cast<char*>(s.out[o]) + at * bytes_of(type);
        places.nontemporal[o] = as_is && arrays.nontemporal(o, at);
    }
    run_cut(on_arrays, rows, arrays, places, size);
    for (int o = 0; o < 3 && s.out[o]; ++o)
        if (s.type_of(o) != type) arrays.store(o, at, size);
}

// Computes the elements of a tile, of the range that goes to `end`.
template <class Real>
void apply(const OnArrays<Real>& on_arrays, const Rows<Real>& rows, Arrays<Real>& arrays, int64_t at, int size,
           int64_t end) {
    constexpr int kMask = kBlock<Real> - 1;
    if (const int rounded = (size + kMask) & ~kMask;
        on_arrays.tile && !rows.per_element && arrays.may_write_to(at + rounded, end))
        size = rounded;
    if (!on_arrays.tile || rows.per_element || on_arrays.copies || size <= kMask)
        return apply_copied(on_arrays, rows, arrays, at, size);
    const Call& s = arrays.s;
    const int64_t offset = at * bytes_of(on_arrays.type);
    Places places;
    places.in[kZ] = arrays.value[kZ];
    for (int i = 0; i < arrays.n_in; ++i) places.in[arrays.slots[i]] = arrays.read[i].array + offset;
    for (int o = 0; o < 3 && s.out[o]; ++o) {
        places.out[o] = static_cast<char*>(s.out[o]) + offset;
        places.nontemporal[o] = arrays.nontemporal(o, at);
    }
    if (size & kMask) return run_cut(on_arrays, rows, arrays, places, size);
    on_arrays.tile(rows, places.in, places.out, places.nontemporal, size);
}

}  // namespace
}  // namespace nf
