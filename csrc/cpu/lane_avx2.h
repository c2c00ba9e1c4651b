// SPDX-License-Identifier: Apache-2.0
// Eight lanes of AVX2 with FMA and F16C (Haswell, Zen and later). The interface is explained in lane_scalar.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace nf {
namespace {

struct Avx2 {
    static constexpr int width = 8, halves = 2;
    static constexpr bool twice = false;
    static constexpr int block_of_lane(int lane, float) { return lane % 4 * 2 + lane / 4; }
    static constexpr int block_of_lane(int lane, double) { return lane; }

    using u16 = __m128i;
    using u16x2 = __m256i;
    using u8x4 = __m256i;
    using u32 = __m256i;
    using u64 = __m256i;
    using f32 = __m256;
    using f64 = __m256d;
    struct word {  // 64-bit lanes; their upper halves do not matter: see lane_avx512.h
        __m256i even, odd;
    };

    static word word_splat(uint32_t x) { return {splat(x), splat(x)}; }
    static word word_from(u32 x) { return {x, _mm256_srli_epi64(x, 32)}; }
    static u32 word_lanes(word x) { return _mm256_blend_epi32(x.even, _mm256_slli_epi64(x.odd, 32), 0xAA); }
    static word product(word x, uint32_t m) {
        return {_mm256_mul_epu32(x.even, splat(m)), _mm256_mul_epu32(x.odd, splat(m))};
    }
    static word product_plus(word p, uint64_t x) {
        return {_mm256_add_epi64(p.even, splat(x)), _mm256_add_epi64(p.odd, splat(x))};
    }
    static word low(word p) { return p; }
    static word high(word p) { return {_mm256_srli_epi64(p.even, 32), _mm256_srli_epi64(p.odd, 32)}; }
    static u32 high_lanes(word p) { return _mm256_blend_epi32(_mm256_srli_epi64(p.even, 32), p.odd, 0xAA); }
    static word word_xor(word a, word b) { return {bit_xor(a.even, b.even), bit_xor(a.odd, b.odd)}; }
    static word word_xor(word a, word b, word c) { return word_xor(a, word_xor(b, c)); }

    static u32 load(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static void store(uint32_t* p, u32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
    static u32 splat(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
    static u32 add(u32 a, u32 b) { return _mm256_add_epi32(a, b); }
    static u32 sub(u32 a, uint32_t b) { return _mm256_sub_epi32(a, splat(b)); }
    static u32 sub(uint32_t a, u32 b) { return _mm256_sub_epi32(splat(a), b); }
    static u32 bit_and(u32 a, uint32_t b) { return _mm256_and_si256(a, splat(b)); }
    static u32 bit_or(u32 a, uint32_t b) { return _mm256_or_si256(a, splat(b)); }
    static u32 bit_or(u32 a, u32 b) { return _mm256_or_si256(a, b); }
    static u32 bit_xor(u32 a, u32 b) { return _mm256_xor_si256(a, b); }
    static u32 bit_xor(u32 a, u32 b, uint32_t c) { return bit_xor(bit_xor(a, b), splat(c)); }
    static u32 and_or(u32 a, uint32_t mask, uint32_t bits) { return bit_or(bit_and(a, mask), bits); }
    static u32 from(u32 at, uint32_t first, u32 x, u32 otherwise) {  // numbers below 2^31
        return _mm256_blendv_epi8(x, otherwise, _mm256_cmpgt_epi32(splat(first), at));
    }
    template <int N>
    static u32 shift_right(u32 a) {
        return _mm256_srli_epi32(a, N);
    }
    template <int N>
    static u32 shift_left(u32 a) {
        return _mm256_slli_epi32(a, N);
    }
    static u32 max(u32 a, u32 b) { return _mm256_max_epu32(a, b); }
    static bool any_from(u32 a, uint32_t first) {
        return _mm256_movemask_epi8(_mm256_cmpeq_epi32(_mm256_max_epu32(a, splat(first)), a)) != 0;
    }
    static uint32_t lanes_from(u32 a, u32 first) {
        const u32 found = _mm256_cmpeq_epi32(_mm256_max_epu32(a, first), a);
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(found)));
    }

    static u64 splat(uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
    static u64 sub(u64 a, uint64_t b) { return _mm256_sub_epi64(a, splat(b)); }
    static u64 sub(uint64_t a, u64 b) { return _mm256_sub_epi64(splat(a), b); }
    static u64 bit_and(u64 a, uint64_t b) { return _mm256_and_si256(a, splat(b)); }
    static u64 bit_or(u64 a, uint64_t b) { return _mm256_or_si256(a, splat(b)); }
    template <int N>
    static u64 shift_right64(u64 a) {
        return _mm256_srli_epi64(a, N);
    }
    template <int Half>
    static __m128i half(u32 a) {
        return Half ? _mm256_extracti128_si256(a, 1) : _mm256_castsi256_si128(a);
    }
    template <int Half>
    static u64 sign_bits(u32 a) {
        return _mm256_slli_epi64(_mm256_cvtepu32_epi64(half<Half>(a)), 32);
    }

    static f32 to_float(u32 a) { return _mm256_cvtepi32_ps(a); }
    static f32 as_float(u32 a) { return _mm256_castsi256_ps(a); }
    static u32 as_bits(f32 a) { return _mm256_castps_si256(a); }
    template <int Half>
    static f64 unsigned_to_double(u32 a) {  // 2^52 + a, less 2^52
        return sub(as_double(bit_or(_mm256_cvtepu32_epi64(half<Half>(a)), uint64_t{0x4330000000000000u})),
                   splat(0x1p52));
    }
    template <int Half>
    static f64 signed_to_double(u32 a) {
        return _mm256_cvtepi32_pd(half<Half>(a));
    }
    static f64 as_double(u64 a) { return _mm256_castsi256_pd(a); }
    static u64 as_bits(f64 a) { return _mm256_castpd_si256(a); }

    static f32 splat(float x) { return _mm256_set1_ps(x); }
    static f32 load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, f32 x) { _mm256_storeu_ps(p, x); }
    static void store_nontemporal(float* p, f32 x) { _mm256_stream_ps(p, x); }
    static f32 add(f32 a, f32 b) { return _mm256_add_ps(a, b); }
    static f32 sub(f32 a, f32 b) { return _mm256_sub_ps(a, b); }
    static f32 mul(f32 a, f32 b) { return _mm256_mul_ps(a, b); }
    static f32 fma(f32 a, f32 b, f32 c) { return _mm256_fmadd_ps(a, b, c); }
    static f32 sqrt(f32 a) { return _mm256_sqrt_ps(a); }
    static f32 flip_sign(f32 a, u32 flip) { return _mm256_xor_ps(a, as_float(bit_and(flip, uint32_t{0x80000000u}))); }
    // Both return the second operand when one is NaN.
    static f32 clamp(f32 v, f32 lo, f32 hi) { return _mm256_min_ps(hi, _mm256_max_ps(lo, v)); }
    static f32 within(f32 v, f32 lo, f32 hi) { return _mm256_min_ps(hi, _mm256_max_ps(v, lo)); }
    static f32 max(f32 a, f32 b) { return _mm256_max_ps(a, b); }
    static f32 min(f32 a, f32 b) { return _mm256_min_ps(a, b); }
    static float largest(f32 a) {
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
    }
    template <int Half>
    static f64 widened(f32 a) {
        return _mm256_cvtps_pd(Half ? _mm256_extractf128_ps(a, 1) : _mm256_castps256_ps128(a));
    }
    static void in_order(f32 (&z)[4]) {
        const f64 a = _mm256_castps_pd(_mm256_unpacklo_ps(z[0], z[1])),
                  b = _mm256_castps_pd(_mm256_unpackhi_ps(z[0], z[1]));
        const f64 c = _mm256_castps_pd(_mm256_unpacklo_ps(z[2], z[3])),
                  d = _mm256_castps_pd(_mm256_unpackhi_ps(z[2], z[3]));
        z[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
        z[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
        z[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
        z[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
    }

    static f64 splat(double x) { return _mm256_set1_pd(x); }
    static f64 load(const double* p) { return _mm256_loadu_pd(p); }
    static void store(double* p, f64 x) { _mm256_storeu_pd(p, x); }
    static void store_nontemporal(double* p, f64 x) { _mm256_stream_pd(p, x); }
    static void fence_nontemporal() { _mm_sfence(); }
    static f64 add(f64 a, f64 b) { return _mm256_add_pd(a, b); }
    static f64 sub(f64 a, f64 b) { return _mm256_sub_pd(a, b); }
    static f64 mul(f64 a, f64 b) { return _mm256_mul_pd(a, b); }
    static f64 fma(f64 a, f64 b, f64 c) { return _mm256_fmadd_pd(a, b, c); }
    static f64 sqrt(f64 a) { return _mm256_sqrt_pd(a); }
    static f64 flip_sign(f64 a, u64 flip) { return _mm256_xor_pd(a, as_double(bit_and(flip, uint64_t{1} << 63))); }
    static f64 clamp(f64 v, f64 lo, f64 hi) { return _mm256_min_pd(hi, _mm256_max_pd(lo, v)); }
    static void in_order(f64 (&z)[4]) {
        const f64 a = _mm256_unpacklo_pd(z[0], z[1]), b = _mm256_unpacklo_pd(z[2], z[3]);
        const f64 c = _mm256_unpackhi_pd(z[0], z[1]), d = _mm256_unpackhi_pd(z[2], z[3]);
        z[0] = _mm256_permute2f128_pd(a, b, 0x20);
        z[1] = _mm256_permute2f128_pd(c, d, 0x20);
        z[2] = _mm256_permute2f128_pd(a, b, 0x31);
        z[3] = _mm256_permute2f128_pd(c, d, 0x31);
    }

    static bool any_nan(f32 a, f32 b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q)) != 0; }
    static u32 where_nan(f32 x, uint32_t nan, u32 otherwise) {
        return _mm256_blendv_epi8(otherwise, splat(nan), as_bits(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    }
    static u32 add_bit16(u32 a, u32 b) { return add(a, bit_and(shift_right<16>(b), 1u)); }

    static f32 load(const uint8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static f32 lookup(const float* table, const uint8_t* p) {  // gathers take twice as long
        return _mm256_setr_ps(table[p[0]], table[p[1]], table[p[2]], table[p[3]], table[p[4]], table[p[5]], table[p[6]],
                              table[p[7]]);
    }
    static void pick(f32& here, f32& next, const float* p, const uint32_t* at) {
        const f32 some = load(p);
        const u32 index = _mm256_sub_epi32(load(at), splat(*at));
        here = _mm256_permutevar8x32_ps(some, index);
        next = _mm256_permutevar8x32_ps(some, add(index, splat(1u)));
    }
    static u16 load(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
    static void store(uint16_t* p, u16 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x); }
    static void store(uint16_t* p, u16x2 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
    static void store_nontemporal(uint16_t* p, u16x2 x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), x); }
    static void store_nontemporal(uint16_t* p, u16 x) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), x); }
    static u16x2 low_halves(u32 a, u32 b) {                                // of words below 2^16
        return _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xD8);  // packed are quarters of a, b, a, b
    }
    static u16x2 upper_halves(u32 a, u32 b) { return low_halves(shift_right<16>(a), shift_right<16>(b)); }
    static u8x4 low_bytes(u32 a, u32 b, u32 c, u32 d) {
        const u32 quarters = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        return _mm256_permutevar8x32_epi32(quarters, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }
    static void store(uint8_t* p, u8x4 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
    static void store_nontemporal(uint8_t* p, u8x4 x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), x); }
    static f32 to_float(u16 a) { return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(a)); }
    static u32 as_upper_halves(u16 a) { return _mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16); }
    static u16 to_half(f32 a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
    static f32 from_half(u16 a) { return _mm256_cvtph_ps(a); }
};

}  // namespace
}  // namespace nf
