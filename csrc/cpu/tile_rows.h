// SPDX-License-Identifier: Apache-2.0
// A tile of data: its inputs in the arithmetic's type, the linear combinations of its rows, its outputs.
#pragma once
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "../core/narrow.h"
#include "tile.h"

namespace nf {
namespace {

template <class Real>
constexpr DType kOwn = sizeof(Real) == 8 ? DType::f64 : DType::f32;

template <class Real>
using Vector = decltype(Lane::load(static_cast<const Real*>(nullptr)));

// Converts a vector of any type to the arithmetic's type.
template <DType Type>
inline auto load_lanes(const void* from, int64_t at) {
    const auto* const halves = static_cast<const uint16_t*>(from) + at;
    static_assert(Type == DType::f32 || Type == DType::f64 || is_level(Type) || is_half(Type));
    if constexpr (Type == DType::f32)
        return Lane::load(static_cast<const float*>(from) + at);
    else if constexpr (Type == DType::f64)
        return Lane::load(static_cast<const double*>(from) + at);
    else if constexpr (Type == DType::u8)
        return Lane::load(static_cast<const uint8_t*>(from) + at);
    else if constexpr (Type == DType::u16)
        return Lane::to_float(Lane::load(halves));
    else if constexpr (Type == DType::f16)
        return Lane::from_half(Lane::load(halves));
    else
        return Lane::as_float(Lane::as_upper_halves(Lane::load(halves)));
}

// Stores vectors at `to`. If `nontemporal`, they go past the caches, and `to` is aligned to a vector.
template <class Element, class Lanes, size_t n>
inline void store_all(Element* to, const Lanes (&x)[n], bool nontemporal) {
    constexpr size_t width = sizeof(Lanes) / sizeof(Element);
    if (nontemporal)
        for (size_t i = 0; i < n; ++i) Lane::store_nontemporal(to + i * width, x[i]);
    else
        for (size_t i = 0; i < n; ++i) Lane::store(to + i * width, x[i]);
}

// Four vectors, a block.
constexpr int kVectors = 4;
template <class Real>
constexpr int kBlock = kVectors * kWidth<Real>;

// Whether one of them may be NaN, of float32: sums of infinities may look like it. NaN is rare, so that one check
// covers a block.
inline bool may_have_nan(const Lane::f32 (&x)[kVectors]) {
    return Lane::any_nan(Lane::add(x[0], x[1]), Lane::add(x[2], x[3]));
}

// Stores a block at `at`, rounded to the type.
template <DType Type, class Lanes>
inline void store_lanes(void* to, int64_t at, const Lanes (&x)[kVectors], bool nontemporal) {
    auto* const halves = static_cast<uint16_t*>(to) + at;
    if constexpr (Type == DType::f32) {
        store_all(static_cast<float*>(to) + at, x, nontemporal);
    } else if constexpr (Type == DType::f64) {
        store_all(static_cast<double*>(to) + at, x, nontemporal);
    } else if constexpr (Type == DType::u8) {
        Lane::u32 byte[4];
        for (int i = 0; i < 4; ++i) byte[i] = round_to_level<uint8_t, Lane>(x[i]);
        const Lane::u8x4 bytes[] = {Lane::low_bytes(byte[0], byte[1], byte[2], byte[3])};
        store_all(static_cast<uint8_t*>(to) + at, bytes, nontemporal);
    } else if constexpr (Type == DType::u16) {
        Lane::u32 level[4];
        for (int i = 0; i < 4; ++i) level[i] = round_to_level<uint16_t, Lane>(x[i]);
        const Lane::u16x2 levels[] = {Lane::low_halves(level[0], level[1]), Lane::low_halves(level[2], level[3])};
        store_all(halves, levels, nontemporal);
    } else if constexpr (Type == DType::f16) {
        const Lane::u16 rounded[] = {Lane::to_half(x[0]), Lane::to_half(x[1]), Lane::to_half(x[2]),
                                     Lane::to_half(x[3])};
        store_all(halves, rounded, nontemporal);
    } else {
        static_assert(Type == DType::bf16);
        Lane::u32 rounded[4];
        for (int i = 0; i < 4; ++i) rounded[i] = round_number_to_bfloat16<Lane>(x[i]);
        if (may_have_nan(x)) [[unlikely]]
            for (int i = 0; i < 4; ++i) rounded[i] = round_to_bfloat16<Lane>(x[i]);
        const Lane::u16x2 upper[] = {Lane::upper_halves(rounded[0], rounded[1]),
                                     Lane::upper_halves(rounded[2], rounded[3])};
        store_all(halves, upper, nontemporal);
    }
}

// The same where the order of elements does not count. Of two vectors of bfloat16 the first has the elements of even
// places, the other those of odd places: a word of memory holds one of each, the second one as the float that it is.
template <DType Type>
inline auto load_of_block(const void* from, int64_t at, bool odd) {
    if constexpr (Type == DType::bf16) {
        const auto* const pair = static_cast<const uint16_t*>(from) + at - (odd ? Lane::width : 0);
        const Lane::u32 words = Lane::load(reinterpret_cast<const uint32_t*>(pair));
        return Lane::as_float(odd ? Lane::bit_and(words, 0xFFFF0000u) : Lane::shift_left<16>(words));
    } else {
        return load_lanes<Type>(from, at);
    }
}

template <class Round>
inline void store_pairs(void* to, const Lane::f32 (&x)[kVectors], bool nontemporal, const Round& round) {
    Lane::f32 pairs[kVectors / 2];
    for (int v = 0; v < kVectors; v += 2)
        pairs[v / 2] = Lane::as_float(
            Lane::bit_or(Lane::shift_right<16>(round(x[v])), Lane::bit_and(round(x[v + 1]), 0xFFFF0000u)));
    store_all(static_cast<float*>(to), pairs, nontemporal);
}

template <DType Type, class Lanes>
inline void store_block(void* to, int64_t at, const Lanes (&x)[kVectors], bool nontemporal) {
    if constexpr (Type == DType::bf16) {
        uint16_t* const here = static_cast<uint16_t*>(to) + at;
        if (may_have_nan(x)) [[unlikely]]
            store_pairs(here, x, false, [](Lane::f32 lanes) { return round_to_bfloat16<Lane>(lanes); });
        else
            store_pairs(here, x, nontemporal, [](Lane::f32 lanes) { return round_number_to_bfloat16<Lane>(lanes); });
    } else {
        store_lanes<Type>(to, at, x, nontemporal);
    }
}

template <DType Type>
inline void load_halves(float* to, const uint16_t* from, int n) {
    int i = 0;
    for (; i + kBlock<float> <= n; i += kBlock<float>)
        for (int v = 0; v < kVectors; ++v)
            Lane::store(to + i + v * Lane::width, load_lanes<Type>(from, i + v * Lane::width));
    for (; i + Lane::width <= n; i += Lane::width) Lane::store(to + i, load_lanes<Type>(from, i));
    const size_t left = static_cast<size_t>(n) % Lane::width;
    if (left == 0) return;
    uint16_t rest[Lane::width] = {};
    float floats[Lane::width];
    std::memcpy(rest, from + i, sizeof(uint16_t) * left);
    Lane::store(floats, load_lanes<Type>(rest, 0));
    std::memcpy(to + i, floats, sizeof(float) * left);
}

template <DType Type, class Narrow>
inline void store_group(Narrow* to, const float* from, bool nontemporal) {
    constexpr int W = Lane::width;
    store_lanes<Type>(to, 0,
                      {Lane::load(from), Lane::load(from + W), Lane::load(from + 2 * W), Lane::load(from + 3 * W)},
                      nontemporal);
}

template <DType Type, class Narrow>
inline void store_narrow(Narrow* to, const float* from, int n, bool nontemporal) {
    int i = 0;
    for (; i + kGroup <= n; i += kGroup) store_group<Type>(to + i, from + i, nontemporal);
    const size_t left = static_cast<size_t>(n) % kGroup;
    if (left == 0) return;
    float rest[kGroup] = {};
    Narrow narrow[kGroup];
    std::memcpy(rest, from + i, sizeof(float) * left);
    store_group<Type>(narrow, rest, false);
    std::memcpy(to + i, narrow, sizeof(Narrow) * left);
}

template <DType Type, class Level, class Real>
inline void store_levels(Level* to, const Real* from, int n, bool nontemporal) {
    if constexpr (sizeof(Real) == 4)
        store_narrow<Type>(to, from, n, nontemporal);
    else
        for (int i = 0; i < n; ++i) to[i] = round_to_level<Level>(from[i]);
}

// Returns the n elements from `at` on in the arithmetic's type. (Half types reach float64 arithmetic as float32, and
// float64 reaches no other arithmetic.)
template <class Real, class Element>
inline void convert(Real* to, const void* from, int64_t at, int n) {
    const Element* const first = static_cast<const Element*>(from) + at;
    if constexpr (std::is_same_v<Real, Element>)
        std::memcpy(to, first, sizeof(Real) * static_cast<size_t>(n));
    else
        for (int i = 0; i < n; ++i) to[i] = static_cast<Real>(first[i]);
}

template <class Real>
inline void load_as(Real* to, const void* from, DType type, int64_t at, int n) {
    const auto* const halves = static_cast<const uint16_t*>(from) + at;
    switch (type) {
        case DType::f32:
            return convert<Real, float>(to, from, at, n);
        case DType::f64:
            return convert<Real, double>(to, from, at, n);
        case DType::u8:
            return convert<Real, uint8_t>(to, from, at, n);
        case DType::u16:
            return convert<Real, uint16_t>(to, from, at, n);
        case DType::f16:
            if constexpr (sizeof(Real) == 4) load_halves<DType::f16>(to, halves, n);
            return;
        case DType::bf16:
            if constexpr (sizeof(Real) == 4) load_halves<DType::bf16>(to, halves, n);
            return;
    }
}

// If `nontemporal`, the place is aligned to a vector and is written past the caches.
template <class Real>
inline void store_as(void* to, DType type, int64_t at, const Real* from, int n, bool nontemporal) {
    auto* const halves = static_cast<uint16_t*>(to) + at;
    auto* const bytes = static_cast<uint8_t*>(to) + at;
    switch (type) {
        case kOwn<float>:
        case kOwn<double>:
            std::memcpy(static_cast<Real*>(to) + at, from, sizeof(Real) * static_cast<size_t>(n));
            return;
        case DType::f16:
            if constexpr (sizeof(Real) == 4) store_narrow<DType::f16>(halves, from, n, nontemporal);
            return;
        case DType::bf16:
            if constexpr (sizeof(Real) == 4) store_narrow<DType::bf16>(halves, from, n, nontemporal);
            return;
        case DType::u8:
            return store_levels<DType::u8>(bytes, from, n, nontemporal);
        case DType::u16:
            return store_levels<DType::u16>(halves, from, n, nontemporal);
    }
}

// A linear combination over a tile: its active terms, in the contract's order z, D, past4 .. past1, m2, m1, x.
struct Affine {
    int n = 0, column[kSlots] = {}, slot[kSlots] = {};
    int constant = -1;  // column of k, or -1

    constexpr Affine(uint64_t active, int first_column, int slots) {
        if (!(active >> first_column & ((uint64_t{1} << (1 + slots)) - 1))) return;  // as most calls' three others are
        if (active >> first_column & 1) constant = first_column;
        for_each_term(active, first_column, slots, [this](int term_column, int term_slot) {
            column[n] = term_column;
            slot[n++] = term_slot;
        });
    }
};

// out = k + sum c_i v_i. The first term is a product or, with k, an fma; each further term is one fma. If Count is 0,
// `n` decides.
// If `nontemporal`, out is aligned to a vector and is written past the caches.
template <bool PerElement, int Count, class Real>
inline void sum_terms(Real* out, int size, int n, const Real* k, const Real* const* c, const Real* const* v,
                      bool nontemporal) {
    constexpr int W = kWidth<Real>;
    const int terms = Count ? Count : n;
    auto coefficient = [](const Real* p, int i) { return PerElement ? Lane::load(p + i) : Lane::splat(*p); };
    int i = 0;
    for (; i + W <= size; i += W) {
        auto sum = k ? Lane::fma(coefficient(c[0], i), Lane::load(v[0] + i), coefficient(k, i))
                     : Lane::mul(coefficient(c[0], i), Lane::load(v[0] + i));
        for (int t = 1; t < terms; ++t) sum = Lane::fma(coefficient(c[t], i), Lane::load(v[t] + i), sum);
        nontemporal ? Lane::store_nontemporal(out + i, sum) : Lane::store(out + i, sum);
    }
    if (W == 1 || i >= size) return;
    // The arrays end here, so the last few elements are computed in a padded copy.
    const size_t bytes = sizeof(Real) * size_t(size - i);
    Real value[W] = {}, factor[W] = {};
    auto padded = [&](Real* to, const Real* from) {
        std::memcpy(to, from + i, bytes);
        return Lane::load(to);
    };
    auto padded_c = [&](const Real* p) { return PerElement ? padded(factor, p) : Lane::splat(*p); };
    auto sum = Lane::mul(padded_c(c[0]), padded(value, v[0]));
    if (k) sum = Lane::fma(padded_c(c[0]), padded(value, v[0]), padded_c(k));
    for (int t = 1; t < terms; ++t) sum = Lane::fma(padded_c(c[t]), padded(value, v[t]), sum);
    Lane::store(value, sum);
    std::memcpy(out + i, value, bytes);
}

// The columns that a table of rows by grey level has.
constexpr int kByLevel[2] = {kAffine[0], kAffine[0] + 1 + kZ};

// Returns the row of a segment. One whose numbers lie apart is written to `gathered`.
template <class Real>
[[gnu::noinline]] const Real* row_at(const Call& s, int64_t segment, Real (&gathered)[kColumns]) {
    const auto* const from = static_cast<const Real*>(s.rows) + s.place_of(row_of(s, segment), 0);
    if (!s.by_column) return from;
    for (uint64_t left = s.active & ((uint64_t{1} << kColumns) - 1); left; left &= left - 1)
        gathered[std::countr_zero(left)] = from[std::countr_zero(left) * s.n_rows];
    return gathered;
}

template <class Real>
struct Rows {
    const Call& s;
    Affine clean, out[3];
    bool wants_clean, per_element = false;
    int used_columns[kColumns], n_used = 0;
    const Real* row = nullptr;  // the tile's one row, if it has one
    Real gathered[kColumns];    // the same, of rows that lie column by column
    // The coefficients of a tile's elements, one used column after another. Threads have small stacks. So there is room
    // for all columns of half a tile, or for half of the columns of a whole one, which is more than samplers use.
    static constexpr int kHalf = kTile / 2 + kOverhang;
    alignas(64) Real expanded[kColumns * kHalf];
    int place[kColumns] = {};          // of a column in `expanded`; an unused column has the first place
    int most;                          // elements of a tile whose rows differ
    int64_t phase = 0, repeated = -1;  // where a tile begins in the period; the sample whose period it is
    // k and z of `out` by grey level, if they are looked up in registers.
    static constexpr int kLookedUp = sizeof(Real) == 4 ? kLevels : 1;
    alignas(64) float level[2][kLookedUp];

    explicit Rows(const Call& call)
        : s(call),
          clean(call.active, kClean, 3),
          out{{call.active, kAffine[0], kSlots}, {call.active, kAffine[1], kSlots}, {call.active, kAffine[2], kSlots}} {
        wants_clean = nf::wants_clean(s.active, s.out);
        uint64_t used = s.active & ((uint64_t{1} << kColumns) - 1);
        if (clamps() || s.masked) used |= uint64_t{1} << kLow | uint64_t{1} << kHigh;
        if (s.by_level) used |= uint64_t{1} << kByLevel[0] | uint64_t{1} << kByLevel[1];
        most = std::popcount(used) * (kTile + kOverhang) <= kColumns * kHalf ? kTile : kTile / 2;
        for (; used; used &= used - 1) {
            const int column = used_columns[n_used] = std::countr_zero(used);
            place[column] = n_used++ * (most + kOverhang);
        }
        for (int i = 0; i < kLookedUp && s.by_level; ++i)
            for (int c = 0; c < 2; ++c) level[c][i] = static_cast<float>(table()[s.place_of(i, kByLevel[c])]);
        per_element = s.row_for_each();
    }

    // A clamp takes both bounds from the row, even if only one of them matters.
    bool clamps() const { return nf::clamps(s.active); }

    const Real* table() const { return static_cast<const Real*>(s.rows); }

    void take_row(int64_t segment) { row = row_at(s, segment, gathered); }

    // Looks up the rows of the next n elements, `left` of which are in this segment: one row, or the coefficients of
    // each element.
    [[gnu::noinline]] void select(int64_t at, int64_t segment, int64_t left, int n) {
        if (s.row_for_each()) return select_for_each(at, n);
        per_element = left < n;
        per_element ? expand(segment, left, n) : take_row(segment);
    }

    void select_for_each(int64_t at, int n) { s.by_level ? select_levels(at, n) : select_period(at, n); }

    void select_levels(int64_t at, int n) {
        const uint8_t* const x = static_cast<const uint8_t*>(s.in[kX]) + at;
        int i = 0;
        if constexpr (sizeof(Real) == 4)
            for (; i + Lane::width <= n; i += Lane::width)
                for (int c = 0; c < 2; ++c) Lane::store(of_column(kByLevel[c]) + i, Lane::lookup(level[c], x + i));
        for (; i < n; ++i)
            for (const int column : kByLevel) of_column(column)[i] = table()[s.place_of(x[i], column)];
    }

    // A short period is written once a sample. A tile reads it from the place where the tile begins.
    [[gnu::noinline]] void select_period(int64_t at, int n) {  // its rows are on no other stack
        int64_t sample = at / s.size, in_sample = at % s.size, in_turn = in_sample % s.period;
        const bool repeats = in_sample + n <= s.size && s.period <= kOverhang;
        phase = repeats ? in_turn : 0;
        if (repeats && sample == repeated) return;
        repeated = repeats ? sample : -1;
        if (repeats) in_sample = in_turn = 0;  // of the sample's first period
        const int own = repeats ? static_cast<int>(s.period) : n;
        int64_t rows_of[kTile];
        for (int i = 0; i < own; ++i) {
            rows_of[i] = s.place_of(row_of(s, sample * s.period + in_turn), 0);
            if (++in_turn == s.period) in_turn = 0;
            if (++in_sample == s.size) ++sample, in_sample = 0;
        }
        for (int u = 0; u < n_used; ++u) {
            Real* const to = of_column(used_columns[u]);
            const Real* const from = table() + s.place_of(0, used_columns[u]);
            for (int i = 0; i < own; ++i) to[i] = from[rows_of[i]];
            for (int i = own; i < most + own && repeats; ++i) to[i] = to[i - own];
        }
    }

    // Whole vectors are written: those that reach into the next segment before its own.
    void expand(int64_t segment, int64_t left, int n) {
        const int first = static_cast<int>(left), each = static_cast<int>(least(s.segment, n)),
                  whole = (n - 1 - first) / each, last = n - first - whole * each;
        const int64_t down = s.place_of(1, 0);
        int64_t rows[kTile + 1];
        for (int k = 0; k < whole + 2; ++k) rows[k] = down * row_of(s, segment + k);
        for (int u = 0; u < n_used; ++u) {
            const int column = used_columns[u];
            const auto fill = [from = table() + s.place_of(0, column)](Real* to, int size, int64_t row) {
                const auto c = Lane::splat(from[row]);
                int i = 0;
                do Lane::store(to + i, c);
                while ((i += kWidth<Real>) < size);
                return to + size;
            };
            Real* to = fill(of_column(column), first, rows[0]);
            for (int k = 1; k <= whole; ++k) to = fill(to, each, rows[k]);
            fill(to, last, rows[whole + 1]);
        }
    }

    int constant(int output) const { return out[output].constant; }  // column of k, or -1
    Real* of_column(int column) { return expanded + place[column]; }
    const Real* coefficient(int column) const { return per_element ? expanded + place[column] + phase : row + column; }

    [[gnu::flatten]] void apply(Real* to, int size, const Affine& combination, const Real* const (&value)[kSlots],
                                bool nontemporal) const {
        const Real *c[kSlots], *v[kSlots];
        for (int t = 0; t < combination.n; ++t)
            c[t] = coefficient(combination.column[t]), v[t] = value[combination.slot[t]];
        const Real* k = combination.constant < 0 ? nullptr : coefficient(combination.constant);
        if (combination.n == 0) {
            for (int i = 0; i < size; ++i) to[i] = k ? k[per_element ? i : 0] : Real{0};
        } else if (per_element) {
            combination.n == 2 ? sum_terms<true, 2>(to, size, 2, k, c, v, nontemporal)
                               : sum_terms<true, 0>(to, size, combination.n, k, c, v, nontemporal);
        } else {
            combination.n == 1   ? sum_terms<false, 1>(to, size, 1, k, c, v, nontemporal)
            : combination.n == 2 ? sum_terms<false, 2>(to, size, 2, k, c, v, nontemporal)
            : combination.n == 3 ? sum_terms<false, 3>(to, size, 3, k, c, v, nontemporal)
                                 : sum_terms<false, 0>(to, size, combination.n, k, c, v, nontemporal);
        }
    }

    // `to` is a tile of our own, so whole vectors may be read and written.
    void clamp(Real* to, int size) const {
        if (!clamps()) return;
        const Real *lo = coefficient(kLow), *hi = coefficient(kHigh);
        for (int i = 0; i < size; i += kWidth<Real>) {
            const auto low = per_element ? Lane::load(lo + i) : Lane::splat(*lo);
            const auto high = per_element ? Lane::load(hi + i) : Lane::splat(*hi);
            Lane::store(to + i, Lane::clamp(Lane::load(to + i), low, high));
        }
    }
};

// Beyond this many elements, arrays come from memory. If nothing is drawn, prefetching their lines then gains 15 % on
// Intel's processors; below, it costs up to 10 %. AMD's need no prefetching: with it, Zen 4 takes up to twice as long.
constexpr int64_t kFar = int64_t{1} << 22;
inline bool asks_early() {
#if defined(__x86_64__)
    static const bool amd = [] {
        unsigned a, b = 0, c, d;
        return __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx;
    }();
    return !amd;
#else
    return true;
#endif
}
// An output of this many bytes goes past the caches, which could not hold it beside its inputs. That saves a quarter to
// a half of the time.
constexpr int64_t kPastCaches = int64_t{1} << 24;
// From this many elements on, stores to several outputs hold each other up, unless the outputs have the same place
// within their lines (which then gains 10 %). Prefetching their lines gains up to two fifths.
constexpr int64_t kSeveral = int64_t{1} << 16;
constexpr int kLine = 64;  // bytes

// The arrays of a call, and one tile of each array that is not of the arithmetic's own type.
template <class Real>
struct Arrays {
    struct Lines {
        const char* array;
        int width;  // bytes of an element
    };
    const Call& s;
    int n_in = 0, slots[kSlots];
    int n_written = 0;
    Lines read[kSlots], written[3];
    bool in_place = false;      // an output is an input
    bool in_registers = false;  // whole groups are added up in registers, as their noise is made
    bool direct[3];             // written at once: not an output that is also an input which others still read
    bool past_caches[3];        // written past the caches, if it is aligned
    const Real* value[kSlots] = {};
    alignas(64) Real staged[kSlots][kTile], clean[kTile], result[3][kTile];
    alignas(64) uint16_t rounded[kTile];

    // If results `stay`, they are read soon, so the caches keep them.
    explicit Arrays(const Call& call, bool stay = false) : s(call) {
        for (int slot = 0; slot < kSlots; ++slot)
            if (s.in[slot]) {
                read[n_in] = {static_cast<const char*>(s.in[slot]), bytes_of(s.in_type[slot])};
                slots[n_in++] = slot;
            }
        const bool alone = !s.out[1] && !s.out[2];
        for (int o = 0; o < 3; ++o) {
            if (!s.out[o]) continue;
            bool is_input = false;
            for (int i = 0; i < n_in; ++i) is_input |= s.in[slots[i]] == s.out[o];
            in_place |= is_input;
            direct[o] = s.type_of(o) == kOwn<Real> && (alone || !is_input);
            past_caches[o] = !stay && !is_input && s.size * s.batch * bytes_of(s.type_of(o)) >= kPastCaches;
            if (!past_caches[o]) written[n_written++] = {static_cast<const char*>(s.out[o]), bytes_of(s.type_of(o))};
        }
    }

    // Prefetches the lines of group g two tiles on. A few at a time come between the groups of this tile, since all at
    // once would block the line-fill buffers.
    void prefetch_read(int64_t at, int g) const {
        for (int i = 0; i < n_in; ++i) prefetch<0>(read[i], at + 2 * kTile + g * kGroup);
    }
    void prefetch_written(int64_t at, int g) const {
        for (int i = 0; i < n_written; ++i) prefetch<1>(written[i], at + 2 * kTile + g * kGroup);
    }
    template <int Write>
    static void prefetch(const Lines& lines, int64_t at) {
        const char* p = lines.array + at * lines.width;
        for (int line = 0; line < kGroup * lines.width; line += kLine) __builtin_prefetch(p + line, Write);
    }

    // Returns how many elements lie between `at` and the first output's next line.
    int64_t to_line(int64_t at) const { return static_cast<int64_t>(-place(0, at) % kLine) / bytes_of(s.out_type); }
    bool nontemporal(int o, int64_t at) const { return past_caches[o] && place(o, at) % kLine == 0; }
    uintptr_t place(int o, int64_t at) const {
        return reinterpret_cast<uintptr_t>(s.out[o]) + static_cast<uintptr_t>(at * bytes_of(s.type_of(o)));
    }

    // Tells whether elements of this range may be written before their turn: they are written again, as all come in
    // order.
    bool may_write_to(int64_t place, int64_t end) const { return !in_place && place <= end; }

    // Whether the inputs have this type, or are rounded to it.
    bool become(DType type) const {
        for (int i = 0; i < n_in; ++i)
            if (s.in_type[slots[i]] != type && !rounds(slots[i])) return false;
        return true;
    }

    bool rounds(int slot) const {
        return s.active & kRoundsModel && (slot == kM1 || slot == kM2) && s.in_type[slot] != s.type;
    }

    // Returns the elements of an input from `at` on, as numbers of this type, the arithmetic's or the results': those
    // of the array itself, or converted ones, in `to`.
    const void* elements(int slot, DType type, int64_t at, int size, Real* to) {
        if (s.in_type[slot] == type && !rounds(slot)) return static_cast<const char*>(s.in[slot]) + at * bytes_of(type);
        return converted(slot, type, at, size, to);
    }

    [[gnu::noinline]] const void* converted(int slot, DType type, int64_t at, int size, Real* to) {
        const DType own = s.in_type[slot];
        const Real* numbers = to;
        if (own == kOwn<Real>)
            numbers = static_cast<const Real*>(s.in[slot]) + at;
        else
            load_as(to, s.in[slot], own, at, size);
        for (int done = 0, n; done < size && rounds(slot); done += n) {
            n = static_cast<int>(least(size - done, kTile));
            store_as(rounded, s.type, 0, numbers + done, n, false);
            if (type == s.type)
                std::memcpy(reinterpret_cast<uint16_t*>(to) + done, rounded, sizeof(uint16_t) * static_cast<size_t>(n));
            else
                load_as(to + done, rounded, s.type, 0, n);
        }
        return to;
    }

    [[gnu::noinline]] void load(int64_t at, int size) {
        for (int i = 0; i < n_in; ++i) {
            const int slot = slots[i];
            value[slot] = static_cast<const Real*>(elements(slot, kOwn<Real>, at, size, staged[slot]));
        }
    }

    // Writes an output's tile as numbers of its type. (Not inlined, nor are `load` and `apply`: they are large.)
    [[gnu::noinline]] void store(int o, int64_t at, int size) const {
        store_as(s.out[o], s.type_of(o), at, result[o], size, nontemporal(o, at));
    }

    // Gradients pass a clamp where D was within its bounds. NaN never is.
    void apply_masked(const Rows<Real>& rows, int64_t at, int size) {
        rows.apply(clean, size, rows.clean, value, false);
        rows.apply(result[0], size, rows.out[0], value, false);
        rows.apply(result[1], size, rows.out[1], value, false);
        const Real *lo = rows.coefficient(kLow), *hi = rows.coefficient(kHigh);
        for (int i = 0; i < size; ++i) {
            const int j = rows.per_element ? i : 0;
            result[0][i] += lo[j] <= clean[i] && clean[i] <= hi[j] ? result[1][i] : Real{0};
        }
        store(0, at, size);
    }

    void scale_noise(int size) {
        const bool root = s.active & kTimesRoot;
        for (int i = 0; i < size; ++i) staged[kZ][i] = value[kZ][i] * (root ? std::sqrt(clean[i]) : clean[i]);
        value[kZ] = staged[kZ];
    }

    [[gnu::noinline]] void apply(const Rows<Real>& rows, int64_t at, int size) {
        if (s.masked) return apply_masked(rows, at, size);
        if (rows.wants_clean) {
            rows.apply(clean, size, rows.clean, value, false);
            rows.clamp(clean, size);
            value[kD] = clean;
            if (scales_noise(s.active)) scale_noise(size);
        }
        // (A tile of our own is read at once: past the caches it would come back from memory.)
        for (int o = 0; o < 3; ++o)
            if (s.out[o])
                rows.apply(direct[o] ? static_cast<Real*>(s.out[o]) + at : result[o], size, rows.out[o], value,
                           direct[o] && nontemporal(o, at));
        for (int o = 0; o < 3; ++o)
            if (s.out[o] && !direct[o]) store(o, at, size);
    }
};

// Called between the groups of the tile at `at`. It prefetches the lines of two tiles on, of inputs only if `read`.
template <class Real, bool read>
struct Prefetch {
    const Arrays<Real>& arrays;
    int64_t at;
    void operator()(int group) const {
        if constexpr (read) arrays.prefetch_read(at, group);
        arrays.prefetch_written(at, group);
    }
};

}  // namespace
}  // namespace nf
