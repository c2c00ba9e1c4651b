// SPDX-License-Identifier: Apache-2.0
// The normals of legacy.TorchCPU from MT19937's words. src/noisefuse/legacy.py states the same in NumPy, and names the
// sources. The loops are plain, so that compilers vectorise them.
#pragma once
#include <cmath>
#include <cstdint>

#include "../core/narrow.h"
#include "float_mode.h"

namespace nf {
namespace {

// A polynomial's terms, highest power first.
template <class... Terms>
float cephes_polynomial(float x, float first, Terms... others) {
    float total = first;
    ((total = std::fma(total, x, others)), ...);
    return total;
}

// u: normal numbers up to 1.
inline float cephes_log(float u) {
    const uint32_t bits = float_to_bits(u);
    const float fraction = bits_to_float((bits & 0x7FFFFF) | 0x3F000000);  // from 1/2 to 1
    const bool small = fraction < 0.70710678118654752f;
    const auto e = static_cast<float>(static_cast<int32_t>(bits >> 23) - 126 - small);
    const float r = (fraction - 1.0f) + (small ? fraction : 0.0f), z = r * r;
    const float p =
        cephes_polynomial(r, 7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                          -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f);
    return (r + (std::fma(p * r, z, e * -2.12194440e-4f) - z * 0.5f)) + e * 0.693359375f;
}

// Multiplies the radius by the cosine and the sine of theta, from 0 to 2 pi.
inline void cephes_turn(float radius, float theta, float& cos_part, float& sin_part) {
    const int32_t octant = (static_cast<int32_t>(theta * 1.2732395447351628f) + 1) & ~1;
    const auto j = static_cast<float>(octant);
    float r = std::fma(j, -0.78515625f, theta);
    r = std::fma(j, -3.77489497744594108e-8f, std::fma(j, -2.4187564849853515625e-4f, r));
    const float z = r * r;
    const float p = cephes_polynomial(z, 2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f);
    const float q = cephes_polynomial(z, -1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f);
    const float c = std::fma(p * z, z, -(z * 0.5f)) + 1.0f, s = std::fma(q * z, r, r);
    const bool swapped = octant & 2;
    const float cos = swapped ? s : c, sin = swapped ? c : s;
    cos_part = radius * ((octant + 2) & 4 ? -cos : cos);
    sin_part = radius * (octant & 4 ? -sin : sin);
}

// Box and Muller's normals on sixteens: eight radii, and eight angles.
void torch_normals(const uint64_t* words, float* out, int64_t n) {
    const FloatMode mode;
    const auto uniform = [](uint64_t word) {
        return static_cast<float>(static_cast<int32_t>(word & 0xFFFFFF)) * 0x1p-24f;
    };
    for (; n > 0; n -= 16, words += 16, out += 16)
        for (int i = 0; i < 8; ++i) {
            const float radius = std::sqrt(-2.0f * cephes_log(1.0f - uniform(words[i])));
            cephes_turn(radius, 6.2831853071795865f * uniform(words[i + 8]), out[i], out[i + 8]);
        }
}

}  // namespace
}  // namespace nf
