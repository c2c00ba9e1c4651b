// SPDX-License-Identifier: Apache-2.0
// The narrow types: the 16-bit floats, IEEE binary16 and bfloat16, to float and back, and floats to integer levels, all
// to nearest even. Lanes with instructions for binary16 use those.
#pragma once
#include <cstdint>

namespace nf {
namespace {

constexpr float bits_to_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
constexpr uint32_t float_to_bits(float x) { return __builtin_bit_cast(uint32_t, x); }

constexpr float bfloat16_to_float(uint16_t h) { return bits_to_float(uint32_t{h} << 16); }

// The bfloat16 is the upper half of each lane; the lower half does not count. Wrong for NaN.
template <class Lane>
constexpr typename Lane::u32 round_number_to_bfloat16(typename Lane::f32 x) {
    const auto bits = Lane::as_bits(x);
    return Lane::add_bit16(Lane::add(bits, Lane::splat(0x7FFFu)), bits);
}

template <class Lane>
constexpr typename Lane::u32 round_to_bfloat16(typename Lane::f32 x) {
    return Lane::where_nan(x, 0x7FC00000u, round_number_to_bfloat16<Lane>(x));
}

constexpr float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t{h & 0x8000u} << 16, magnitude = h & 0x7FFFu;
    if (magnitude >= 0x7C00u) return bits_to_float(sign | 0x7F800000u | (magnitude << 13));
    // 2^112 moves the exponent's bias from 15 to 127; the product is exact, subnormals included.
    return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}

constexpr uint16_t float_to_half(float x) {
    const uint32_t b = float_to_bits(x), sign = (b >> 16) & 0x8000u, magnitude = b & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
    if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // from 65520 up: infinity
    if (magnitude < 0x38800000u) {                                               // below 2^-14: a multiple of 2^-24
        const uint32_t m = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3F000000u;  // 0.5 has that unit
        return static_cast<uint16_t>(sign | m);
    }
    const uint32_t m = magnitude - 0x38000000u;
    return static_cast<uint16_t>(sign | ((m + 0xFFFu + ((m >> 13) & 1u)) >> 13));
}

// An integer level, a byte or a uint16: the integer next to x, from 0 to the greatest; NaN gives 0. From 2^23 on
// (double: 2^52), numbers have a last place of 1. So adding that power rounds to an integer, which the last bits hold.
template <class Level>
constexpr uint32_t kTopLevel = static_cast<Level>(~uint32_t{0});
template <class Level, class Lane>
constexpr typename Lane::u32 round_to_level(typename Lane::f32 x) {
    constexpr uint32_t top = kTopLevel<Level>;
    const auto within = Lane::within(x, Lane::splat(0.0f), Lane::splat(static_cast<float>(top)));
    return Lane::bit_and(Lane::as_bits(Lane::add(within, Lane::splat(0x1p23f))), top);
}
template <class Level>
constexpr Level round_to_level(double x) {
    constexpr double top = kTopLevel<Level>;
    const double within = x > 0 ? x < top ? x : top : 0;
    return static_cast<Level>(__builtin_bit_cast(uint64_t, within + 0x1p52));
}

}  // namespace
}  // namespace nf
