// SPDX-License-Identifier: Apache-2.0
// A row of numbers, and its meaning: D = clamp(k + x x + m1 m1 + m2 m2, lo, hi), then out, aux1 and aux2, each k + x x
// + m1 m1 + m2 m2 + d D + past1 past1 + ... + past4 past4 + z z. (tableau.py names the columns.)
#pragma once
#include <cstdint>

namespace nf {

// The values that a linear combination can hold, in the order of its columns after the constant k.
enum Slot : int { kX, kM1, kM2, kD, kPast1, kPast2, kPast3, kPast4, kZ, kSlots };
inline constexpr int kClean = 0, kLow = kClean + 1 + kD, kHigh = kLow + 1;
constexpr int affine_column(int output) { return kHigh + 1 + (1 + kSlots) * output; }
inline constexpr int kAffine[3] = {affine_column(0), affine_column(1), affine_column(2)};
inline constexpr int kColumns = affine_column(3);

namespace {  // see philox.h

constexpr bool counts(uint64_t active, int column) { return active >> column & 1; }

// Visits the active terms of the linear combination whose constant is in column `first`, in the contract's order:
// visit(column, slot). The first term is a rounded product (or, with a constant, fma(c, v, k)), each later one fma(c,
// v, sum).
template <class Visit>
constexpr void for_each_term(uint64_t active, int first, int slots, Visit visit) {
    if (slots > kZ && counts(active, first + 1 + kZ)) visit(first + 1 + kZ, kZ);
    if (slots > kD && counts(active, first + 1 + kD)) visit(first + 1 + kD, kD);
    if (slots > kPast4 && counts(active, first + 1 + kPast4)) visit(first + 1 + kPast4, kPast4);
    if (slots > kPast3 && counts(active, first + 1 + kPast3)) visit(first + 1 + kPast3, kPast3);
    if (slots > kPast2 && counts(active, first + 1 + kPast2)) visit(first + 1 + kPast2, kPast2);
    if (slots > kPast1 && counts(active, first + 1 + kPast1)) visit(first + 1 + kPast1, kPast1);
    if (slots > kM2 && counts(active, first + 1 + kM2)) visit(first + 1 + kM2, kM2);
    if (slots > kM1 && counts(active, first + 1 + kM1)) visit(first + 1 + kM1, kM1);
    if (slots > kX && counts(active, first + 1 + kX)) visit(first + 1 + kX, kX);
}

// A clamp is active if one of its bounds is.
constexpr bool clamps(uint64_t active) { return counts(active, kLow) || counts(active, kHigh); }

// Flags beyond the columns: the noise is multiplied by D, or by its square root, before the row takes it.
constexpr uint64_t kTimesClean = uint64_t{1} << 40, kTimesRoot = uint64_t{1} << 41;
static_assert(uint64_t{1} << kColumns <= kTimesClean && kTimesClean < kTimesRoot, "columns and flags share a bit");
// Model outputs of another type are rounded to the results' type first, as arrays of NumPy would be (on CPUs alone).
constexpr uint64_t kRoundsModel = uint64_t{1} << 42;
constexpr bool scales_noise(uint64_t active) { return active & (kTimesClean | kTimesRoot); }

// Whether one of the wanted outputs, or the noise, needs D.
constexpr bool wants_clean(uint64_t active, void* const (&out)[3]) {
    if (scales_noise(active)) return true;
    for (int o = 0; o < 3; ++o)
        if (out[o] && counts(active, affine_column(o) + 1 + kD)) return true;
    return false;
}

}  // namespace
}  // namespace nf
