// SPDX-License-Identifier: Apache-2.0
// A tile of data: its inputs in the arithmetic's type, the affine forms of its rows, and its outputs.
#pragma once
#include <cstring>

#include "../core/half.h"
#include "tile.h"

namespace nf {
namespace {

inline void load_as(float* to, const void* from, DType type, int64_t at, int n) {
    if (type == DType::f32) std::memcpy(to, static_cast<const float*>(from) + at, sizeof(float) * size_t(n));
    if (type == DType::u8)
        for (int i = 0; i < n; ++i) to[i] = static_cast<const uint8_t*>(from)[at + i];
    if (type == DType::bf16)
        for (int i = 0; i < n; ++i) to[i] = bfloat16_to_float(static_cast<const uint16_t*>(from)[at + i]);
    if (type == DType::f16) {
        const uint16_t* h = static_cast<const uint16_t*>(from) + at;
        int i = 0;
        for (; i + Lane::width <= n; i += Lane::width) Lane::store(to + i, Lane::load_half(h + i));
        for (; i < n; ++i) to[i] = half_to_float(h[i]);
    }
}

inline void load_as(double* to, const void* from, DType type, int64_t at, int n) {
    if (type == DType::f64) std::memcpy(to, static_cast<const double*>(from) + at, sizeof(double) * size_t(n));
    if (type == DType::u8)
        for (int i = 0; i < n; ++i) to[i] = static_cast<const uint8_t*>(from)[at + i];
    if (type == DType::f32)
        for (int i = 0; i < n; ++i) to[i] = static_cast<const float*>(from)[at + i];
}

inline void store_as(void* to, DType type, int64_t at, const float* from, int n) {
    if (type == DType::f32) std::memcpy(static_cast<float*>(to) + at, from, sizeof(float) * size_t(n));
    if (type == DType::bf16)
        for (int i = 0; i < n; ++i) static_cast<uint16_t*>(to)[at + i] = float_to_bfloat16(from[i]);
    if (type == DType::f16) {
        uint16_t* h = static_cast<uint16_t*>(to) + at;
        int i = 0;
        for (; i + Lane::width <= n; i += Lane::width) Lane::store_half(h + i, Lane::load(from + i));
        for (; i < n; ++i) h[i] = float_to_half(from[i]);
    }
}

inline void store_as(void* to, DType, int64_t at, const double* from, int n) {
    std::memcpy(static_cast<double*>(to) + at, from, sizeof(double) * size_t(n));
}

constexpr int kBytes[] = {4, 8, 2, 2, 1};  // of an element, by DType

template <class Real>
constexpr DType kOwn = sizeof(Real) == 8 ? DType::f64 : DType::f32;

// One affine form over a tile: the terms that are present, in the contract's order z, D, past4 .. past1, m2, m1, x.
struct Affine {
    int n = 0, column[kSlots], slot[kSlots];
    int constant = -1;  // column of k, or -1

    Affine(uint64_t present, int first_column, int slots) {
        if (present >> first_column & 1) constant = first_column;
        for_each_term(present, first_column, slots, [this](int term_column, int term_slot) {
            column[n] = term_column;
            slot[n++] = term_slot;
        });
    }
};

// out = k + sum c_i v_i: the first term is a product or, with k, an fma; then one fma a term. Count 0: `n` decides.
template <bool PerElement, int Count, class Real>
inline void sum_terms(Real* out, int size, int n, const Real* k, const Real* const* c, const Real* const* v) {
    constexpr int W = kWidth<Real>;
    const int terms = Count ? Count : n;
    auto coefficient = [](const Real* p, int i) { return PerElement ? Lane::load(p + i) : Lane::splat(*p); };
    int i = 0;
    for (; i + W <= size; i += W) {
        auto sum = k ? Lane::fma(coefficient(c[0], i), Lane::load(v[0] + i), coefficient(k, i))
                     : Lane::mul(coefficient(c[0], i), Lane::load(v[0] + i));
        for (int t = 1; t < terms; ++t) sum = Lane::fma(coefficient(c[t], i), Lane::load(v[t] + i), sum);
        Lane::store(out + i, sum);
    }
    if (W == 1 || i >= size) return;
    // The last few elements in a padded copy: the arrays end here.
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

template <class Real>
struct Rows {
    const Step& s;
    Affine clean, out[3];
    bool wants_clean, per_element = false;
    int used_columns[kColumns], n_used = 0;
    const Real* row = nullptr;  // the tile's one row, if it has one
    alignas(64) Real expanded[kColumns][kTile + kOverhang];

    explicit Rows(const Step& step)
        : s(step),
          clean(step.present, kClean, 3),
          out{{step.present, kAffine[0], kSlots},
              {step.present, kAffine[1], kSlots},
              {step.present, kAffine[2], kSlots}} {
        wants_clean = false;
        for (int o = 0; o < 3; ++o) wants_clean |= s.out[o] && (s.present >> (kAffine[o] + 1 + kD) & 1);
        for (int c = 0; c < kColumns; ++c)
            if (s.present >> c & 1 || (clamps() && (c == kLow || c == kHigh))) used_columns[n_used++] = c;
    }

    // A clamp takes both its bounds from the row, also where only one of them counts.
    bool clamps() const { return (s.present >> kLow | s.present >> kHigh) & 1; }

    const Real* table_row(int64_t segment) const {
        return static_cast<const Real*>(s.rows) + kColumns * s.index[segment];
    }

    // Looks up the rows of the next n elements: one row, or the coefficients of each element.
    void select(int64_t segment, int64_t left, int n) {
        row = table_row(segment);
        per_element = left < n;
        for (int u = 0; u < n_used && per_element; ++u)
            expand(expanded[used_columns[u]], used_columns[u], segment, left, n);
    }

    void expand(Real* to, int column, int64_t segment, int64_t left, int n) const {
        if (s.segment <= 4) {  // points: one store each, the next one overwrites what is too much
            for (int64_t at = 0; at < n; ++segment, at += left, left = s.segment) {
                const Real c = table_row(segment)[column], four[4] = {c, c, c, c};
                std::memcpy(to + at, four, sizeof four);
            }
            return;
        }
        for (int at = 0; at < n; ++segment, left = s.segment) {
            const int size = static_cast<int>(least(left, n - at));
            const Real c = table_row(segment)[column], four[4] = {c, c, c, c};
            for (int i = 0; i < size; i += 4) std::memcpy(to + at + i, four, sizeof four);
            at += size;
        }
    }

    const Real* coefficient(int column) const { return per_element ? expanded[column] : row + column; }

    void apply(Real* to, int size, const Affine& form, const Real* const (&value)[kSlots]) const {
        const Real *c[kSlots], *v[kSlots];
        for (int t = 0; t < form.n; ++t) c[t] = coefficient(form.column[t]), v[t] = value[form.slot[t]];
        const Real* k = form.constant < 0 ? nullptr : coefficient(form.constant);
        if (form.n == 0) {
            for (int i = 0; i < size; ++i) to[i] = k ? k[per_element ? i : 0] : Real{0};
        } else if (per_element) {
            form.n == 2 ? sum_terms<true, 2>(to, size, 2, k, c, v) : sum_terms<true, 0>(to, size, form.n, k, c, v);
        } else {
            form.n == 1   ? sum_terms<false, 1>(to, size, 1, k, c, v)
            : form.n == 2 ? sum_terms<false, 2>(to, size, 2, k, c, v)
            : form.n == 3 ? sum_terms<false, 3>(to, size, 3, k, c, v)
                          : sum_terms<false, 0>(to, size, form.n, k, c, v);
        }
    }

    // to is a tile of our own: whole vectors may be read and written.
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

// The arrays of a call, and one tile of each that is not in the arithmetic's own type.
template <class Real>
struct Arrays {
    struct Stream {
        const char* array;
        int width;  // bytes of an element
        bool written;
    };
    const Step& s;
    int n_in = 0, slots[kSlots];
    int n_streams = 0;
    Stream streams[kSlots + 3];
    bool direct[3];  // written as it is computed: not so an output that is an input which others still read
    const Real* value[kSlots] = {};
    alignas(64) Real staged[kSlots][kTile], clean[kTile], result[3][kTile];

    explicit Arrays(const Step& step) : s(step) {
        for (int slot = 0; slot < kSlots; ++slot)
            if (s.in[slot]) {
                slots[n_in++] = slot;
                streams[n_streams++] = {static_cast<const char*>(s.in[slot]), kBytes[int(s.in_type[slot])], false};
            }
        for (int o = 0; o < 3; ++o)
            if (s.out[o]) streams[n_streams++] = {static_cast<const char*>(s.out[o]), kBytes[int(s.type)], true};
        const bool alone = !s.out[1] && !s.out[2];
        for (int o = 0; o < 3; ++o) {
            direct[o] = s.type == kOwn<Real>;
            for (int i = 0; i < n_in && !alone; ++i) direct[o] &= s.in[slots[i]] != s.out[o];
        }
    }

    // Asks for the lines of group g of the tile after this one: a few at a time between the rounds of philox, since all
    // at once would block the line-fill buffers.
    void prefetch(int64_t at, int g) const {
        const int64_t ahead = at + kTile + g * kGroup;
        for (int i = 0; i < n_streams; ++i) {
            const char* p = streams[i].array + ahead * streams[i].width;
            const int bytes = kGroup * streams[i].width;
            if (streams[i].written)
                for (int line = 0; line < bytes; line += 64) __builtin_prefetch(p + line, 1);
            else
                for (int line = 0; line < bytes; line += 64) __builtin_prefetch(p + line, 0);
        }
    }

    void load(int64_t at, int size) {
        for (int i = 0; i < n_in; ++i) {
            const int slot = slots[i];
            value[slot] = static_cast<const Real*>(s.in[slot]) + at;
            if (s.in_type[slot] == kOwn<Real>) continue;
            load_as(staged[slot], s.in[slot], s.in_type[slot], at, size);
            value[slot] = staged[slot];
        }
    }

    // Gradients of a clamp: they pass where D lay within its bounds (NaN lies nowhere).
    void apply_masked(const Rows<Real>& rows, int64_t at, int size) {
        rows.apply(clean, size, rows.clean, value);
        rows.apply(result[0], size, rows.out[0], value);
        rows.apply(result[1], size, rows.out[1], value);
        const Real *lo = rows.coefficient(kLow), *hi = rows.coefficient(kHigh);
        for (int i = 0; i < size; ++i) {
            const int j = rows.per_element ? i : 0;
            result[0][i] += lo[j] <= clean[i] && clean[i] <= hi[j] ? result[1][i] : Real{0};
        }
        store_as(s.out[0], s.type, at, result[0], size);
    }

    void apply(const Rows<Real>& rows, int64_t at, int size) {
        if (s.masked) return apply_masked(rows, at, size);
        if (rows.wants_clean) {
            rows.apply(clean, size, rows.clean, value);
            rows.clamp(clean, size);
            value[kD] = clean;
        }
        for (int o = 0; o < 3; ++o)
            if (s.out[o])
                rows.apply(direct[o] ? static_cast<Real*>(s.out[o]) + at : result[o], size, rows.out[o], value);
        for (int o = 0; o < 3; ++o)
            if (s.out[o] && !direct[o]) store_as(s.out[o], s.type, at, result[o], size);
    }
};

}  // namespace
}  // namespace nf
