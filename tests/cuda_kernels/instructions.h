// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/instructions.h for a CPU.
#pragma once
#include <cmath>

#include "../core/narrow.h"

namespace nf {
namespace {

// How many units in the last place the seed is off; 99: -4 .. 3, another from one value to the next. A device's is off
// by at most 2.
inline thread_local int seed_error = 99;

inline float rsqrt_seed(float a) {
    const int error = seed_error == 99 ? static_cast<int>(float_to_bits(a) * 2654435761u >> 29) - 4 : seed_error;
    return bits_to_float(float_to_bits(1.0f / std::sqrt(a)) + static_cast<uint32_t>(error));
}

inline float byte_and_half(uint32_t w) { return 128 + ((w & 0xFF) + 0.5f) / 256; }
inline uint32_t twice_and_one(uint32_t w) { return 2 * w + 1; }
inline uint32_t bits_of(uint32_t w, int begin, int bits) { return w >> begin & ((1u << bits) - 1); }

inline float from_float16(uint16_t h) { return half_to_float(h); }
inline uint32_t to_float16_pair(float low, float high) {
    return float_to_half(low) | uint32_t{float_to_half(high)} << 16;
}
// Threads run one after another: the last of them does the part of all. So whatever they keep from one part to the next
// has to be the same for all of them, or in shared memory.
template <class Part>
inline void together(Part part) {
    if (threadIdx.x + 1 < blockDim.x) return;
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) part();
    --threadIdx.x;
}

constexpr bool kRoundsToBfloat16 = false;
inline uint32_t to_bfloat16_pair(float, float) { return 0; }

}  // namespace
}  // namespace nf
