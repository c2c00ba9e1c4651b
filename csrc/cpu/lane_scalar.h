// SPDX-License-Identifier: Apache-2.0
// One lane in plain C++: the lane interface in its shortest form, and the fallback of every processor.
#pragma once
#include <cmath>
#include <cstring>

#include "../core/narrow.h"

namespace nf {
namespace {

struct Scalar {
    static constexpr int width = 1;       // lanes of u32 and f32
    static constexpr bool twice = false;  // whether registers hold two vectors of philox at once
    static constexpr int halves = 1;      // registers of f64 that hold as many lanes
    // Says which block each lane takes, by the type of the elements; in_order relies on it.
    static constexpr int block_of_lane(int lane, float) { return lane; }
    static constexpr int block_of_lane(int lane, double) { return lane; }

    using u16 = uint16_t;  // as many lanes as u32 has
    struct u16x2 {         // twice as many
        u16 x[2];
    };
    struct u8x4 {  // four times as many
        uint8_t x[4];
    };
    using u32 = uint32_t;
    using u64 = uint64_t;
    using f32 = float;
    using f64 = double;
    using word = uint32_t;  // a word of philox, in the form that multiplies fastest

    static word word_splat(uint32_t x) { return x; }
    static word word_from(u32 x) { return x; }
    static u32 word_lanes(word x) { return x; }
    static uint64_t product(word x, uint32_t m) { return uint64_t{x} * m; }
    static uint64_t product_plus(uint64_t p, uint64_t x) { return p + x; }
    static word low(uint64_t p) { return static_cast<uint32_t>(p); }
    static word high(uint64_t p) { return static_cast<uint32_t>(p >> 32); }
    static u32 high_lanes(uint64_t p) { return high(p); }
    static word word_xor(word a, word b) { return a ^ b; }
    static word word_xor(word a, word b, word c) { return a ^ b ^ c; }

    static u32 load(const uint32_t* p) { return *p; }
    static void store(uint32_t* p, u32 x) { *p = x; }
    static u32 splat(uint32_t x) { return x; }
    static u32 add(u32 a, u32 b) { return a + b; }
    static u32 sub(u32 a, u32 b) { return a - b; }
    static u32 bit_and(u32 a, u32 b) { return a & b; }
    static u32 bit_or(u32 a, u32 b) { return a | b; }
    static u32 bit_xor(u32 a, u32 b) { return a ^ b; }
    static u32 bit_xor(u32 a, u32 b, uint32_t c) { return a ^ b ^ c; }
    static u32 and_or(u32 a, uint32_t mask, uint32_t bits) { return (a & mask) | bits; }
    // x in the lanes where `at` is `first` or more.
    static u32 from(u32 at, uint32_t first, u32 x, u32 otherwise) { return at >= first ? x : otherwise; }
    template <int N>
    static u32 shift_right(u32 a) {
        return a >> N;
    }
    template <int N>
    static u32 shift_left(u32 a) {
        return a << N;
    }
    static u32 max(u32 a, u32 b) { return a > b ? a : b; }
    static bool any_from(u32 a, uint32_t first) { return a >= first; }   // whether any lane is `first` or more
    static uint32_t lanes_from(u32 a, u32 first) { return a >= first; }  // a bit for each lane

    static u64 sub(u64 a, u64 b) { return a - b; }
    static u64 bit_and(u64 a, u64 b) { return a & b; }
    static u64 bit_or(u64 a, u64 b) { return a | b; }
    template <int N>
    static u64 shift_right64(u64 a) {
        return a >> N;
    }
    template <int Half>
    static u64 sign_bits(u32 a) {
        return u64{a} << 32;
    }  // the top bit of each 32-bit lane as that of a 64-bit lane

    static f32 to_float(u32 a) { return static_cast<float>(static_cast<int32_t>(a)); }
    static f32 as_float(u32 a) { return bits_to_float(a); }
    static u32 as_bits(f32 a) { return float_to_bits(a); }
    template <int Half>
    static f64 unsigned_to_double(u32 a) {
        return a;
    }
    template <int Half>
    static f64 signed_to_double(u32 a) {
        return static_cast<int32_t>(a);
    }
    static f64 as_double(u64 a) {
        double x;
        std::memcpy(&x, &a, 8);
        return x;
    }
    static u64 as_bits(f64 a) {
        uint64_t x;
        std::memcpy(&x, &a, 8);
        return x;
    }

    static f32 splat(float x) { return x; }
    static f32 load(const float* p) { return *p; }
    static void store(float* p, f32 x) { *p = x; }
    static void store_nontemporal(float* p, f32 x) {
        *p = x;
    }  // past the caches, where there is such a store; p is aligned
    static f32 add(f32 a, f32 b) { return a + b; }
    static f32 sub(f32 a, f32 b) { return a - b; }
    static f32 mul(f32 a, f32 b) { return a * b; }
    static f32 fma(f32 a, f32 b, f32 c) { return std::fma(a, b, c); }
    static f32 sqrt(f32 a) { return std::sqrt(a); }
    static f32 flip_sign(f32 a, u32 flip) { return as_float(as_bits(a) ^ (flip & 0x80000000u)); }
    static f32 clamp(f32 v, f32 lo, f32 hi) { return v < lo ? lo : v > hi ? hi : v; }
    static f32 within(f32 v, f32 lo, f32 hi) { return v > lo ? v < hi ? v : hi : lo; }  // the same, but lo for NaN
    static f32 max(f32 a, f32 b) { return a > b ? a : b; }                              // of numbers
    static f32 min(f32 a, f32 b) { return a < b ? a : b; }
    static float largest(f32 a) { return a; }  // of the lanes
    template <int Half>
    static f64 widened(f32 a) {
        return a;
    }
    // Each lane holds the four words of one block. They become four vectors of elements in their natural order.
    static void in_order(f32 (&)[4]) {}

    static f64 splat(double x) { return x; }
    static f64 load(const double* p) { return *p; }
    static void store(double* p, f64 x) { *p = x; }
    static void store_nontemporal(double* p, f64 x) { *p = x; }
    static void fence_nontemporal() {}  // after a thread's last one: orders them before its later stores
    static f64 add(f64 a, f64 b) { return a + b; }
    static f64 sub(f64 a, f64 b) { return a - b; }
    static f64 mul(f64 a, f64 b) { return a * b; }
    static f64 fma(f64 a, f64 b, f64 c) { return std::fma(a, b, c); }
    static f64 sqrt(f64 a) { return std::sqrt(a); }
    static f64 flip_sign(f64 a, u64 flip) { return as_double(as_bits(a) ^ (flip & 0x8000000000000000u)); }
    static f64 clamp(f64 v, f64 lo, f64 hi) { return v < lo ? lo : v > hi ? hi : v; }
    static void in_order(f64 (&)[4]) {}

    static bool any_nan(f32 a, f32 b) { return a != a || b != b; }
    static u32 where_nan(f32 x, uint32_t nan, u32 otherwise) { return x != x ? nan : otherwise; }
    static u32 add_bit16(u32 a, u32 b) { return a + (b >> 16 & 1u); }

    static f32 load(const uint8_t* p) { return *p; }
    static f32 to_float(u16 a) { return a; }
    static f32 lookup(const float* table, const uint8_t* p) { return table[*p]; }  // of 256 numbers
    // For each lane i p[at[i] - at[0]], and the number after it. With more than one lane neither is beyond the lanes.
    static void pick(f32& here, f32& next, const float* p, const uint32_t*) { here = p[0], next = p[1]; }
    static u16 load(const uint16_t* p) { return *p; }
    static void store(uint16_t* p, u16 x) { *p = x; }
    static void store(uint16_t* p, u16x2 x) { p[0] = x.x[0], p[1] = x.x[1]; }
    static void store_nontemporal(uint16_t* p, u16x2 x) { store(p, x); }
    static void store_nontemporal(uint16_t* p, u16 x) { *p = x; }
    static u16x2 upper_halves(u32 a, u32 b) { return {static_cast<uint16_t>(a >> 16), static_cast<uint16_t>(b >> 16)}; }
    static u16x2 low_halves(u32 a, u32 b) {  // of words below 2^16
        return {static_cast<uint16_t>(a), static_cast<uint16_t>(b)};
    }
    static u8x4 low_bytes(u32 a, u32 b, u32 c, u32 d) {  // of signed words, which are clipped
        const auto byte = [](u32 x) {
            return static_cast<uint8_t>(static_cast<int32_t>(x) < 0 ? 0 : x < 255 ? x : 255);
        };
        return {{byte(a), byte(b), byte(c), byte(d)}};
    }
    static void store(uint8_t* p, u8x4 x) { std::memcpy(p, x.x, sizeof x.x); }
    static void store_nontemporal(uint8_t* p, u8x4 x) { store(p, x); }
    static u32 as_upper_halves(u16 a) { return uint32_t{a} << 16; }
    static u16 to_half(f32 a) { return float_to_half(a); }
    static f32 from_half(u16 a) { return half_to_float(a); }
};

inline uint16_t float_to_bfloat16(float x) { return static_cast<uint16_t>(round_to_bfloat16<Scalar>(x) >> 16); }

}  // namespace
}  // namespace nf
