// SPDX-License-Identifier: Apache-2.0
// Four lanes of NEON (AArch64). The interface is explained in lane_scalar.h.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace nf {
namespace {

struct Neon {
    static constexpr int width = 4, halves = 2;
    static constexpr bool twice = true;
    static constexpr int block_of_lane(int lane, float) { return lane; }
    static constexpr int block_of_lane(int lane, double) { return lane; }

    using u16 = uint16x4_t;
    using u16x2 = uint16x8_t;
    using u8x4 = uint8x16_t;
    using u32 = uint32x4_t;
    using u64 = uint64x2_t;
    using f32 = float32x4_t;
    using f64 = float64x2_t;
    using word = uint32x4_t;
    struct product_t {
        uint64x2_t first, second;
    };

    static word word_splat(uint32_t x) { return vdupq_n_u32(x); }
    static word word_from(u32 x) { return x; }
    static u32 word_lanes(word x) { return x; }
    static product_t product(word x, uint32_t m) {
        return {vmull_u32(vget_low_u32(x), vdup_n_u32(m)), vmull_high_u32(x, vdupq_n_u32(m))};
    }
    static product_t product_plus(product_t p, uint64_t x) {
        return {vaddq_u64(p.first, splat(x)), vaddq_u64(p.second, splat(x))};
    }
    static word low(product_t p) { return vuzp1q_u32(vreinterpretq_u32_u64(p.first), vreinterpretq_u32_u64(p.second)); }
    static word high(product_t p) {
        return vuzp2q_u32(vreinterpretq_u32_u64(p.first), vreinterpretq_u32_u64(p.second));
    }
    static u32 high_lanes(product_t p) { return high(p); }
    static word word_xor(word a, word b) { return veorq_u32(a, b); }
    static word word_xor(word a, word b, word c) { return veorq_u32(a, veorq_u32(b, c)); }

    static u32 load(const uint32_t* p) { return vld1q_u32(p); }
    static void store(uint32_t* p, u32 x) { vst1q_u32(p, x); }
    static u32 splat(uint32_t x) { return vdupq_n_u32(x); }
    static u32 add(u32 a, u32 b) { return vaddq_u32(a, b); }
    static u32 sub(u32 a, uint32_t b) { return vsubq_u32(a, splat(b)); }
    static u32 sub(uint32_t a, u32 b) { return vsubq_u32(splat(a), b); }
    static u32 bit_and(u32 a, uint32_t b) { return vandq_u32(a, splat(b)); }
    static u32 bit_or(u32 a, uint32_t b) { return vorrq_u32(a, splat(b)); }
    static u32 bit_or(u32 a, u32 b) { return vorrq_u32(a, b); }
    static u32 bit_xor(u32 a, u32 b) { return veorq_u32(a, b); }
    static u32 bit_xor(u32 a, u32 b, uint32_t c) { return veorq_u32(veorq_u32(a, b), splat(c)); }
    static u32 and_or(u32 a, uint32_t mask, uint32_t bits) { return bit_or(bit_and(a, mask), bits); }
    static u32 from(u32 at, uint32_t first, u32 x, u32 otherwise) {
        return vbslq_u32(vcgeq_u32(at, splat(first)), x, otherwise);
    }
    template <int N>
    static u32 shift_right(u32 a) {
        return vshrq_n_u32(a, N);
    }
    template <int N>
    static u32 shift_left(u32 a) {
        return vshlq_n_u32(a, N);
    }
    static u32 max(u32 a, u32 b) { return vmaxq_u32(a, b); }
    static bool any_from(u32 a, uint32_t first) { return vmaxvq_u32(a) >= first; }
    static uint32_t lanes_from(u32 a, u32 first) {
        constexpr uint32_t bits[4] = {1, 2, 4, 8};
        return vaddvq_u32(vandq_u32(vcgeq_u32(a, first), vld1q_u32(bits)));
    }

    static u64 splat(uint64_t x) { return vdupq_n_u64(x); }
    static u64 sub(u64 a, uint64_t b) { return vsubq_u64(a, splat(b)); }
    static u64 sub(uint64_t a, u64 b) { return vsubq_u64(splat(a), b); }
    static u64 bit_and(u64 a, uint64_t b) { return vandq_u64(a, splat(b)); }
    static u64 bit_or(u64 a, uint64_t b) { return vorrq_u64(a, splat(b)); }
    template <int N>
    static u64 shift_right64(u64 a) {
        return vshrq_n_u64(a, N);
    }
    template <int Half>
    static uint32x2_t half(u32 a) {
        return Half ? vget_high_u32(a) : vget_low_u32(a);
    }
    template <int Half>
    static u64 sign_bits(u32 a) {
        return vshlq_n_u64(vmovl_u32(half<Half>(a)), 32);
    }

    static f32 to_float(u32 a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
    static f32 as_float(u32 a) { return vreinterpretq_f32_u32(a); }
    static u32 as_bits(f32 a) { return vreinterpretq_u32_f32(a); }
    template <int Half>
    static f64 unsigned_to_double(u32 a) {
        return vcvtq_f64_u64(vmovl_u32(half<Half>(a)));
    }
    template <int Half>
    static f64 signed_to_double(u32 a) {
        return vcvtq_f64_s64(vmovl_s32(vreinterpret_s32_u32(half<Half>(a))));
    }
    static f64 as_double(u64 a) { return vreinterpretq_f64_u64(a); }
    static u64 as_bits(f64 a) { return vreinterpretq_u64_f64(a); }

    static f32 splat(float x) { return vdupq_n_f32(x); }
    static f32 load(const float* p) { return vld1q_f32(p); }
    static void store(float* p, f32 x) { vst1q_f32(p, x); }
    static void store_nontemporal(float* p, f32 x) { store(p, x); }
    static f32 add(f32 a, f32 b) { return vaddq_f32(a, b); }
    static f32 sub(f32 a, f32 b) { return vsubq_f32(a, b); }
    static f32 mul(f32 a, f32 b) { return vmulq_f32(a, b); }
    static f32 fma(f32 a, f32 b, f32 c) { return vfmaq_f32(c, a, b); }
    static f32 sqrt(f32 a) { return vsqrtq_f32(a); }
    static f32 flip_sign(f32 a, u32 flip) { return as_float(veorq_u32(as_bits(a), bit_and(flip, 0x80000000u))); }
    static f32 clamp(f32 v, f32 lo, f32 hi) {  // comparisons with NaN are false
        v = vbslq_f32(vcltq_f32(v, lo), lo, v);
        return vbslq_f32(vcgtq_f32(v, hi), hi, v);
    }
    static f32 within(f32 v, f32 lo, f32 hi) { return vminq_f32(vmaxnmq_f32(v, lo), hi); }
    static f32 max(f32 a, f32 b) { return vmaxq_f32(a, b); }
    static f32 min(f32 a, f32 b) { return vminq_f32(a, b); }
    static float largest(f32 a) { return vmaxvq_f32(a); }
    template <int Half>
    static f64 widened(f32 a) {
        return Half ? vcvt_high_f64_f32(a) : vcvt_f64_f32(vget_low_f32(a));
    }
    static void in_order(f32 (&z)[4]) {
        const f32 a = vzip1q_f32(z[0], z[2]), b = vzip2q_f32(z[0], z[2]);
        const f32 c = vzip1q_f32(z[1], z[3]), d = vzip2q_f32(z[1], z[3]);
        z[0] = vzip1q_f32(a, c);
        z[1] = vzip2q_f32(a, c);
        z[2] = vzip1q_f32(b, d);
        z[3] = vzip2q_f32(b, d);
    }

    static f64 splat(double x) { return vdupq_n_f64(x); }
    static f64 load(const double* p) { return vld1q_f64(p); }
    static void store(double* p, f64 x) { vst1q_f64(p, x); }
    static void store_nontemporal(double* p, f64 x) { store(p, x); }
    static void fence_nontemporal() {}
    static f64 add(f64 a, f64 b) { return vaddq_f64(a, b); }
    static f64 sub(f64 a, f64 b) { return vsubq_f64(a, b); }
    static f64 mul(f64 a, f64 b) { return vmulq_f64(a, b); }
    static f64 fma(f64 a, f64 b, f64 c) { return vfmaq_f64(c, a, b); }
    static f64 sqrt(f64 a) { return vsqrtq_f64(a); }
    static f64 flip_sign(f64 a, u64 flip) { return as_double(veorq_u64(as_bits(a), bit_and(flip, uint64_t{1} << 63))); }
    static f64 clamp(f64 v, f64 lo, f64 hi) {
        v = vbslq_f64(vcltq_f64(v, lo), lo, v);
        return vbslq_f64(vcgtq_f64(v, hi), hi, v);
    }
    static void in_order(f64 (&z)[4]) {
        const f64 a = vzip1q_f64(z[0], z[1]), b = vzip1q_f64(z[2], z[3]);
        const f64 c = vzip2q_f64(z[0], z[1]), d = vzip2q_f64(z[2], z[3]);
        z[0] = a, z[1] = b, z[2] = c, z[3] = d;
    }

    static bool any_nan(f32 a, f32 b) { return vminvq_u32(vandq_u32(vceqq_f32(a, a), vceqq_f32(b, b))) == 0; }
    static u32 where_nan(f32 x, uint32_t nan, u32 otherwise) {
        return vbslq_u32(vceqq_f32(x, x), otherwise, splat(nan));
    }
    static u32 add_bit16(u32 a, u32 b) { return add(a, bit_and(shift_right<16>(b), 1u)); }

    static f32 load(const uint8_t* p) {
        uint32_t four;
        std::memcpy(&four, p, sizeof four);
        return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
    }
    static f32 lookup(const float* table, const uint8_t* p) {
        const float found[4] = {table[p[0]], table[p[1]], table[p[2]], table[p[3]]};
        return vld1q_f32(found);
    }
    static void pick(f32& here, f32& next, const float* p, const uint32_t* at) {
        const float *const b = p + (at[1] - *at), *const c = p + (at[2] - *at), *const d = p + (at[3] - *at);
        const float found[4] = {p[0], b[0], c[0], d[0]}, after[4] = {p[1], b[1], c[1], d[1]};
        here = vld1q_f32(found), next = vld1q_f32(after);
    }
    static u16 load(const uint16_t* p) { return vld1_u16(p); }
    static void store(uint16_t* p, u16 x) { vst1_u16(p, x); }
    static void store(uint16_t* p, u16x2 x) { vst1q_u16(p, x); }
    static void store_nontemporal(uint16_t* p, u16x2 x) { store(p, x); }
    static void store_nontemporal(uint16_t* p, u16 x) { store(p, x); }
    static u16x2 upper_halves(u32 a, u32 b) { return vuzp2q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b)); }
    static u16x2 low_halves(u32 a, u32 b) { return vcombine_u16(vmovn_u32(a), vmovn_u32(b)); }  // of words below 2^16
    static u8x4 low_bytes(u32 a, u32 b, u32 c, u32 d) {
        const auto half = [](u32 x) { return vqmovun_s32(vreinterpretq_s32_u32(x)); };
        return vcombine_u8(vqmovn_u16(vcombine_u16(half(a), half(b))), vqmovn_u16(vcombine_u16(half(c), half(d))));
    }
    static void store(uint8_t* p, u8x4 x) { vst1q_u8(p, x); }
    static void store_nontemporal(uint8_t* p, u8x4 x) { store(p, x); }
    static f32 to_float(u16 a) { return vcvtq_f32_u32(vmovl_u16(a)); }
    static u32 as_upper_halves(u16 a) { return vshll_n_u16(a, 16); }
    static u16 to_half(f32 a) { return vreinterpret_u16_f16(vcvt_f16_f32(a)); }
    static f32 from_half(u16 a) { return vcvt_f32_f16(vreinterpret_f16_u16(a)); }
};

}  // namespace
}  // namespace nf
