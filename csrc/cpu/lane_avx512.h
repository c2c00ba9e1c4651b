// SPDX-License-Identifier: Apache-2.0
// Sixteen lanes of AVX-512 (F and DQ). The interface is explained in lane_scalar.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace nf {
namespace {

struct Avx512 {
    static constexpr int width = 16, halves = 2;
    static constexpr bool twice = true;
    // Four unpacks transpose inside 128-bit parts (float); two of them and two permutes across (double).
    static constexpr int block_of_lane(int lane, float) { return lane % 4 * 4 + lane / 4; }
    static constexpr int block_of_lane(int lane, double) { return lane / 8 * 8 + lane % 2 * 4 + lane % 8 / 2; }

    using u16 = __m256i;
    using u16x2 = __m512i;
    using u8x4 = __m512i;
    using u32 = __m512i;
    using u64 = __m512i;
    using f32 = __m512;
    using f64 = __m512d;
    // vpmuludq multiplies the even 32-bit lanes to 64 bits and ignores the odd ones. So a word keeps its lanes in two
    // registers of 64-bit lanes, whose upper halves do not matter, and they are merged once, after ten rounds.
    struct word {
        __m512i even, odd;
    };

    static word word_splat(uint32_t x) { return {splat(x), splat(x)}; }
    static word word_from(u32 x) { return {x, _mm512_srli_epi64(x, 32)}; }
    static u32 word_lanes(word x) { return _mm512_mask_shuffle_epi32(x.even, 0xAAAA, x.odd, _MM_PERM_CCAA); }
    static word product(word x, uint32_t m) {
        return {_mm512_mul_epu32(x.even, splat(m)), _mm512_mul_epu32(x.odd, splat(m))};
    }
    static word product_plus(word p, uint64_t x) {
        return {_mm512_add_epi64(p.even, splat(x)), _mm512_add_epi64(p.odd, splat(x))};
    }
    static word low(word p) { return p; }
    static word high(word p) { return {_mm512_srli_epi64(p.even, 32), _mm512_srli_epi64(p.odd, 32)}; }
    static u32 high_lanes(word p) { return _mm512_mask_shuffle_epi32(p.odd, 0x5555, p.even, _MM_PERM_DDBB); }
    static word word_xor(word a, word b) { return {bit_xor(a.even, b.even), bit_xor(a.odd, b.odd)}; }
    static word word_xor(word a, word b, word c) {
        return {_mm512_ternarylogic_epi32(a.even, b.even, c.even, 0x96),
                _mm512_ternarylogic_epi32(a.odd, b.odd, c.odd, 0x96)};
    }

    static u32 load(const uint32_t* p) { return _mm512_loadu_si512(p); }
    static void store(uint32_t* p, u32 x) { _mm512_storeu_si512(p, x); }
    static u32 splat(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static u32 add(u32 a, u32 b) { return _mm512_add_epi32(a, b); }
    static u32 sub(u32 a, uint32_t b) { return _mm512_sub_epi32(a, splat(b)); }
    static u32 sub(uint32_t a, u32 b) { return _mm512_sub_epi32(splat(a), b); }
    static u32 bit_and(u32 a, uint32_t b) { return _mm512_and_si512(a, splat(b)); }
    static u32 bit_or(u32 a, uint32_t b) { return _mm512_or_si512(a, splat(b)); }
    static u32 bit_or(u32 a, u32 b) { return _mm512_or_si512(a, b); }
    static u32 bit_xor(u32 a, u32 b) { return _mm512_xor_si512(a, b); }
    static u32 bit_xor(u32 a, u32 b, uint32_t c) { return _mm512_ternarylogic_epi32(a, b, splat(c), 0x96); }
    static u32 and_or(u32 a, uint32_t mask, uint32_t bits) {
        return _mm512_ternarylogic_epi32(a, splat(mask), splat(bits), 0xEA);
    }
    static u32 from(u32 at, uint32_t first, u32 x, u32 otherwise) {
        return _mm512_mask_mov_epi32(otherwise, _mm512_cmpge_epu32_mask(at, splat(first)), x);
    }
    template <int N>
    static u32 shift_right(u32 a) {
        return _mm512_srli_epi32(a, N);
    }
    template <int N>
    static u32 shift_left(u32 a) {
        return _mm512_slli_epi32(a, N);
    }
    static u32 max(u32 a, u32 b) { return _mm512_max_epu32(a, b); }
    static bool any_from(u32 a, uint32_t first) { return _mm512_cmpge_epu32_mask(a, splat(first)) != 0; }
    static uint32_t lanes_from(u32 a, u32 first) { return _mm512_cmpge_epu32_mask(a, first); }

    static u64 splat(uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
    static u64 sub(u64 a, uint64_t b) { return _mm512_sub_epi64(a, splat(b)); }
    static u64 sub(uint64_t a, u64 b) { return _mm512_sub_epi64(splat(a), b); }
    static u64 bit_and(u64 a, uint64_t b) { return _mm512_and_si512(a, splat(b)); }
    static u64 bit_or(u64 a, uint64_t b) { return _mm512_or_si512(a, splat(b)); }
    template <int N>
    static u64 shift_right64(u64 a) {
        return _mm512_srli_epi64(a, N);
    }
    template <int Half>
    static __m256i half(u32 a) {
        return Half ? _mm512_extracti64x4_epi64(a, 1) : _mm512_castsi512_si256(a);
    }
    template <int Half>
    static u64 sign_bits(u32 a) {
        return _mm512_slli_epi64(_mm512_cvtepu32_epi64(half<Half>(a)), 32);
    }

    static f32 to_float(u32 a) { return _mm512_cvtepi32_ps(a); }
    static f32 as_float(u32 a) { return _mm512_castsi512_ps(a); }
    static u32 as_bits(f32 a) { return _mm512_castps_si512(a); }
    template <int Half>
    static f64 unsigned_to_double(u32 a) {
        return _mm512_cvtepu32_pd(half<Half>(a));
    }
    template <int Half>
    static f64 signed_to_double(u32 a) {
        return _mm512_cvtepi32_pd(half<Half>(a));
    }
    static f64 as_double(u64 a) { return _mm512_castsi512_pd(a); }
    static u64 as_bits(f64 a) { return _mm512_castpd_si512(a); }

    static f32 splat(float x) { return _mm512_set1_ps(x); }
    static f32 load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, f32 x) { _mm512_storeu_ps(p, x); }
    static void store_nontemporal(float* p, f32 x) { _mm512_stream_ps(p, x); }
    static f32 add(f32 a, f32 b) { return _mm512_add_ps(a, b); }
    static f32 sub(f32 a, f32 b) { return _mm512_sub_ps(a, b); }
    static f32 mul(f32 a, f32 b) { return _mm512_mul_ps(a, b); }
    static f32 fma(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }
    static f32 sqrt(f32 a) { return _mm512_sqrt_ps(a); }
    static f32 flip_sign(f32 a, u32 flip) {  // a ^ (flip & sign)
        return as_float(_mm512_ternarylogic_epi32(as_bits(a), flip, splat(0x80000000u), 0x78));
    }
    // Both return the second operand when one is NaN.
    static f32 clamp(f32 v, f32 lo, f32 hi) { return _mm512_min_ps(hi, _mm512_max_ps(lo, v)); }
    static f32 within(f32 v, f32 lo, f32 hi) { return _mm512_min_ps(hi, _mm512_max_ps(v, lo)); }
    static f32 max(f32 a, f32 b) { return _mm512_max_ps(a, b); }
    static f32 min(f32 a, f32 b) { return _mm512_min_ps(a, b); }
    static float largest(f32 a) { return _mm512_reduce_max_ps(a); }
    template <int Half>
    static f64 widened(f32 a) {
        return _mm512_cvtps_pd(Half ? _mm512_extractf32x8_ps(a, 1) : _mm512_castps512_ps256(a));
    }
    static void in_order(f32 (&z)[4]) {
        const f64 a = _mm512_castps_pd(_mm512_unpacklo_ps(z[0], z[1])),
                  b = _mm512_castps_pd(_mm512_unpackhi_ps(z[0], z[1]));
        const f64 c = _mm512_castps_pd(_mm512_unpacklo_ps(z[2], z[3])),
                  d = _mm512_castps_pd(_mm512_unpackhi_ps(z[2], z[3]));
        z[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        z[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        z[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        z[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }

    static f64 splat(double x) { return _mm512_set1_pd(x); }
    static f64 load(const double* p) { return _mm512_loadu_pd(p); }
    static void store(double* p, f64 x) { _mm512_storeu_pd(p, x); }
    static void store_nontemporal(double* p, f64 x) { _mm512_stream_pd(p, x); }
    static void fence_nontemporal() { _mm_sfence(); }
    static f64 add(f64 a, f64 b) { return _mm512_add_pd(a, b); }
    static f64 sub(f64 a, f64 b) { return _mm512_sub_pd(a, b); }
    static f64 mul(f64 a, f64 b) { return _mm512_mul_pd(a, b); }
    static f64 fma(f64 a, f64 b, f64 c) { return _mm512_fmadd_pd(a, b, c); }
    static f64 sqrt(f64 a) { return _mm512_sqrt_pd(a); }
    static f64 flip_sign(f64 a, u64 flip) {
        return as_double(_mm512_ternarylogic_epi64(as_bits(a), flip, splat(uint64_t{1} << 63), 0x78));
    }
    static f64 clamp(f64 v, f64 lo, f64 hi) { return _mm512_min_pd(hi, _mm512_max_pd(lo, v)); }
    static void in_order(f64 (&z)[4]) {
        const f64 a = _mm512_unpacklo_pd(z[0], z[1]), b = _mm512_unpacklo_pd(z[2], z[3]);
        const f64 c = _mm512_unpackhi_pd(z[0], z[1]), d = _mm512_unpackhi_pd(z[2], z[3]);
        const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                      second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        z[0] = _mm512_permutex2var_pd(a, first, b);
        z[1] = _mm512_permutex2var_pd(a, second, b);
        z[2] = _mm512_permutex2var_pd(c, first, d);
        z[3] = _mm512_permutex2var_pd(c, second, d);
    }

    static bool any_nan(f32 a, f32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) != 0; }
    static u32 where_nan(f32 x, uint32_t nan, u32 otherwise) {
        return _mm512_mask_mov_epi32(otherwise, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), splat(nan));
    }
    static u32 add_bit16(u32 a, u32 b) {
        return _mm512_mask_add_epi32(a, _mm512_test_epi32_mask(b, splat(0x10000u)), a, splat(1u));
    }

    static f32 load(const uint8_t* p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    // Looks up 16 bytes in a table of 256 numbers. The low five bits select one number from each 32, the other three
    // bits one of those eight. (Gathers take three times as long. No other instruction set does better than
    // loads.)
    static f32 lookup(const float* table, const uint8_t* p) {
        const u32 at = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        f32 found[8];
        for (int i = 0; i < 8; ++i)
            found[i] = _mm512_permutex2var_ps(load(table + 32 * i), at, load(table + 32 * i + 16));
        for (int bit = 32, n = 4; n > 0; bit *= 2, n /= 2) {
            const __mmask16 odd = _mm512_test_epi32_mask(at, splat(static_cast<uint32_t>(bit)));
            for (int i = 0; i < n; ++i) found[i] = _mm512_mask_mov_ps(found[2 * i], odd, found[2 * i + 1]);
        }
        return found[0];
    }
    static void pick(f32& here, f32& next, const float* p, const uint32_t* at) {
        const f32 some = load(p);
        const u32 index = _mm512_sub_epi32(load(at), splat(*at));
        here = _mm512_permutexvar_ps(index, some);
        next = _mm512_permutexvar_ps(add(index, splat(1u)), some);
    }
    static u16 load(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static void store(uint16_t* p, u16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
    static void store(uint16_t* p, u16x2 x) { _mm512_storeu_si512(p, x); }
    static void store_nontemporal(uint16_t* p, u16x2 x) { _mm512_stream_si512(reinterpret_cast<__m512i*>(p), x); }
    static void store_nontemporal(uint16_t* p, u16 x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), x); }
    static u16x2 upper_halves(u32 a, u32 b) {
        // words 1, 3, 5, ... of both
        const __m512i upper =
            _mm512_setr_epi32(0x30001, 0x70005, 0xB0009, 0xF000D, 0x130011, 0x170015, 0x1B0019, 0x1F001D, 0x230021,
                              0x270025, 0x2B0029, 0x2F002D, 0x330031, 0x370035, 0x3B0039, 0x3F003D);
        return _mm512_permutex2var_epi16(a, upper, b);
    }
    static u16x2 low_halves(u32 a, u32 b) {              // of words below 2^16
        const u32 quarters = _mm512_packus_epi32(a, b);  // of a, b, a, b, ..
        return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), quarters);
    }
    static u8x4 low_bytes(u32 a, u32 b, u32 c, u32 d) {
        const u32 quarters = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                        quarters);
    }
    static void store(uint8_t* p, u8x4 x) { _mm512_storeu_si512(p, x); }
    static void store_nontemporal(uint8_t* p, u8x4 x) { _mm512_stream_si512(reinterpret_cast<__m512i*>(p), x); }
    static f32 to_float(u16 a) { return _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(a)); }
    static u32 as_upper_halves(u16 a) { return _mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16); }
    static u16 to_half(f32 a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
    static f32 from_half(u16 a) { return _mm512_cvtph_ps(a); }
};

}  // namespace
}  // namespace nf
