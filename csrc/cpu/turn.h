// SPDX-License-Identifier: Apache-2.0
// The transpose of a plane of four-byte elements, four rows and eight columns at a time: run/layouts.cpp has all other
// copies.
#pragma once
#include "tile.h"

namespace nf {
namespace {

#if defined(__AVX2__)
// Half of each of two runs, four runs apart: the loads put them side by side, which saves a third of the shuffles.
inline __m256 halves_of(const float* from, int64_t step) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(from + 4 * step), 1);
}

void turn(const float* from, int64_t step, float* to, int64_t to_step, int64_t rows, int64_t columns) {
    for (int64_t c = 0; c < columns; c += 8)
        for (int64_t r = 0; r < rows; r += 4) {
            const float* const f = from + c * step + r;
            const __m256 a = halves_of(f, step), b = halves_of(f + step, step), x = halves_of(f + 2 * step, step),
                         y = halves_of(f + 3 * step, step);
            const __m256 low_ab = _mm256_unpacklo_ps(a, b), high_ab = _mm256_unpackhi_ps(a, b),
                         low_xy = _mm256_unpacklo_ps(x, y), high_xy = _mm256_unpackhi_ps(x, y);
            float* const t = to + r * to_step + c;
            _mm256_storeu_ps(t, _mm256_shuffle_ps(low_ab, low_xy, 0x44));
            _mm256_storeu_ps(t + to_step, _mm256_shuffle_ps(low_ab, low_xy, 0xEE));
            _mm256_storeu_ps(t + 2 * to_step, _mm256_shuffle_ps(high_ab, high_xy, 0x44));
            _mm256_storeu_ps(t + 3 * to_step, _mm256_shuffle_ps(high_ab, high_xy, 0xEE));
        }
}
constexpr auto kTurn = turn;
#else
constexpr void (*kTurn)(const float*, int64_t, float*, int64_t, int64_t, int64_t) = nullptr;
#endif

}  // namespace
}  // namespace nf
