// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/instructions.h for a CPU.
#pragma once
#include <cmath>

#include "../core/half.h"

namespace nf {
namespace {

// As far off as a device's may be, and further: up to 4 units in the last place, from one value to the next another
// way.
inline float rsqrt_seed(float a) {
    const uint32_t bits = float_to_bits(1.0f / std::sqrt(a));
    return bits_to_float(bits + (float_to_bits(a) * 2654435761u >> 29) - 4u);
}

inline float from_float16(uint16_t h) { return half_to_float(h); }
inline uint32_t to_float16_pair(float low, float high) {
    return float_to_half(low) | uint32_t{float_to_half(high)} << 16;
}
constexpr bool kRoundsToBfloat16 = false;
inline uint32_t to_bfloat16_pair(float, float) { return 0; }

}  // namespace
}  // namespace nf
