// SPDX-License-Identifier: Apache-2.0
// Device instructions that C++ has no name for. The tests replace this file when they build the kernels for a CPU.
#pragma once
#include <cstdint>

namespace nf {
namespace {

// About 1 / sqrt(a): the one approximate instruction. Its error does not reach any result (lane_cuda.h).
__device__ inline float rsqrt_seed(float a) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(a));
    return y;
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
