// SPDX-License-Identifier: Apache-2.0
// One CUDA thread as a lane, with the operations of cpu/lane_scalar.h that core/ needs. Every rounding is named (_rn),
// so no compiler flag can fuse or flush. Instructions that C++ has no name for are in instructions.h.
#pragma once
#include "../core/narrow.h"
#include "../core/normal.h"
#include "instructions.h"

namespace nf {
namespace {

struct Cuda {
    using u32 = uint32_t;
    using u64 = uint64_t;
    using f32 = float;
    using f64 = double;
    using word = uint32_t;

    static __device__ word word_splat(uint32_t x) { return x; }
    static __device__ u32 word_lanes(word x) { return x; }
    static __device__ uint64_t product(word x, uint32_t m) { return uint64_t{x} * m; }
    static __device__ word low(uint64_t p) { return static_cast<uint32_t>(p); }
    static __device__ word high(uint64_t p) { return static_cast<uint32_t>(p >> 32); }
    static __device__ u32 high_lanes(uint64_t p) { return high(p); }
    static __device__ word word_xor(word a, word b) { return a ^ b; }
    static __device__ word word_xor(word a, word b, word c) { return a ^ b ^ c; }

    static __device__ u32 add(u32 a, u32 b) { return a + b; }
    static __device__ u32 sub(u32 a, u32 b) { return a - b; }
    static __device__ u32 bit_and(u32 a, u32 b) { return a & b; }
    static __device__ u32 bit_or(u32 a, u32 b) { return a | b; }
    static __device__ u32 bit_xor(u32 a, u32 b) { return a ^ b; }
    static __device__ u32 bit_xor(u32 a, u32 b, uint32_t c) { return a ^ b ^ c; }
    template <int N>
    static __device__ u32 shift_right(u32 a) {
        return a >> N;
    }

    static __device__ u64 sub(u64 a, u64 b) { return a - b; }
    static __device__ u64 bit_and(u64 a, u64 b) { return a & b; }
    static __device__ u64 bit_or(u64 a, u64 b) { return a | b; }
    template <int N>
    static __device__ u64 shift_right64(u64 a) {
        return a >> N;
    }
    template <int Half>
    static __device__ u64 sign_bits(u32 a) {
        return u64{a} << 32;
    }

    static __device__ f32 to_float(u32 a) { return __int2float_rn(static_cast<int>(a)); }
    // 128 moves from the upper part to the other, whose mantissa is then the lowest byte and a half.
    static __device__ Pair<f32> parts(u32 w) { return {to_float((w >> 8) - 128u), byte_and_half(w)}; }
    static __device__ u32 twice_and_one(u32 w) { return nf::twice_and_one(w); }
    static __device__ f32 as_float(u32 a) { return bits_to_float(a); }
    static __device__ u32 as_bits(f32 a) { return float_to_bits(a); }
    template <int Half>
    static __device__ f64 unsigned_to_double(u32 a) {
        return __uint2double_rn(a);
    }
    template <int Half>
    static __device__ f64 signed_to_double(u32 a) {
        return __int2double_rn(static_cast<int>(a));
    }
    static __device__ f64 as_double(u64 a) { return __builtin_bit_cast(double, a); }
    static __device__ u64 as_bits(f64 a) { return __builtin_bit_cast(uint64_t, a); }

    static __device__ u32 splat(uint32_t x) { return x; }
    static __device__ u32 add_bit16(u32 a, u32 b) { return a + (b >> 16 & 1u); }
    static __device__ f32 splat(float x) { return x; }
    static __device__ u32 where_nan(f32 x, uint32_t nan, u32 otherwise) { return x != x ? nan : otherwise; }
    static __device__ f32 add(f32 a, f32 b) { return __fadd_rn(a, b); }
    static __device__ f32 sub(f32 a, f32 b) { return __fsub_rn(a, b); }
    static __device__ f32 mul(f32 a, f32 b) { return __fmul_rn(a, b); }
    static __device__ f32 fma(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
    static __device__ f32 flip_sign(f32 a, u32 flip) { return as_float(as_bits(a) ^ (flip & 0x80000000u)); }
    static __device__ f32 clamp(f32 v, f32 lo, f32 hi) { return v < lo ? lo : v > hi ? hi : v; }
    static __device__ f32 within(f32 v, f32 lo, f32 hi) { return v > lo ? v < hi ? v : hi : lo; }

    // Correctly rounded, without the branch of __fsqrt_rn, for normal a far from the ends of the range (here 2^-32 to
    // 46): one step of Newton's method from a seed within a few units, then a correction with an exact residue
    // (Markstein, IBM J. Res. Dev. 34, 1990). tests/cuda/test_cuda.py runs all mantissas, with seeds up to 8 units off.
    static __device__ f32 sqrt(f32 a) {
        const f32 y = rsqrt_seed(a), s = mul(a, y), h = mul(y, 0.5f), e = fma(-s, h, 0.5f);
        const f32 root = fma(s, e, s), half_reciprocal = fma(h, e, h);
        return fma(fma(-root, root, a), half_reciprocal, root);
    }

    static __device__ f64 splat(double x) { return x; }
    static __device__ f64 add(f64 a, f64 b) { return __dadd_rn(a, b); }
    static __device__ f64 sub(f64 a, f64 b) { return __dsub_rn(a, b); }
    static __device__ f64 mul(f64 a, f64 b) { return __dmul_rn(a, b); }
    static __device__ f64 fma(f64 a, f64 b, f64 c) { return __fma_rn(a, b, c); }
    static __device__ f64 sqrt(f64 a) { return __dsqrt_rn(a); }
    static __device__ f64 flip_sign(f64 a, u64 flip) { return as_double(as_bits(a) ^ (flip & 0x8000000000000000u)); }
    static __device__ f64 clamp(f64 v, f64 lo, f64 hi) { return v < lo ? lo : v > hi ? hi : v; }
};

}  // namespace
}  // namespace nf
