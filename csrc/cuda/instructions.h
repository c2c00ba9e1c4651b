// SPDX-License-Identifier: Apache-2.0
// Device instructions that C++ has no name for. The tests replace this file when they build the kernels for a CPU.
#pragma once
#include <cstdint>

#include "../core/narrow.h"

namespace nf {
namespace {

// About 1 / sqrt(a): the one approximate instruction. Its error does not reach any result (lane_cuda.h).
__device__ inline float rsqrt_seed(float a) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(a));
    return y;
}

// 128 + (b + 1/2) / 256 for the lowest byte b of w. The selector comes from threadIdx.y, which is 0: of a constant,
// compilers make a copy for each use.
__device__ inline float byte_and_half(uint32_t w) {
    uint32_t bits;
    asm("prmt.b32 %0, %1, 0x43000080, %2;" : "=r"(bits) : "r"(w), "r"(0x7504 + threadIdx.y));
    return bits_to_float(bits);
}

// 2 w + 1 in one instruction; compilers would compute 2 w, for its sign, and then add.
__device__ inline uint32_t twice_and_one(uint32_t w) {
    uint32_t v;
    asm("mad.lo.u32 %0, %1, 2, 1;" : "=r"(v) : "r"(w));
    return v;
}

// `bits` bits of w from bit `begin` on, in a form that conversions take as an operand.
__device__ inline uint32_t bits_of(uint32_t w, int begin, int bits) {
    uint32_t part;
    asm("bfe.u32 %0, %1, %2, %3;" : "=r"(part) : "r"(w), "r"(begin), "r"(bits));
    return part;
}

__device__ inline float from_float16(uint16_t h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

// Two values rounded to nearest even, the first in the lower half.
__device__ inline uint32_t to_float16_pair(float low, float high) {
    uint16_t a, b;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(a) : "f"(low));
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(b) : "f"(high));
    return a | uint32_t{b} << 16;
}

// Runs a part of a block's work: all threads finish it before any goes on.
template <class Part>
__device__ inline void together(Part part) {
    part();
    __syncthreads();
}

#if __CUDA_ARCH__ >= 800
constexpr bool kRoundsToBfloat16 = true;
#else
constexpr bool kRoundsToBfloat16 = false;
#endif

__device__ inline uint32_t to_bfloat16_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

}  // namespace
}  // namespace nf
