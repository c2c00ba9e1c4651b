// SPDX-License-Identifier: Apache-2.0
// The softmax of a row, from what its chunks were found to be.
#pragma once
#include "../core/race.h"
#include "lane_scalar.h"

namespace nf {
namespace {

// What the chunks of a row say of its softmax, in units of the largest term.
struct RowSums {
    float most;
    double beta, total = 0, spread = 0, ln = 0;

    RowSums(int64_t chunks, const float* largest, float most, double beta, const double* sums,
            const double* spreads = nullptr)
        : most(most), beta(beta) {
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            if (largest[chunk] == -INFINITY) continue;
            const double behind = static_cast<double>(most) - static_cast<double>(largest[chunk]);
            const double weight = behind == 0 ? 1 : exp_of(-(behind * beta));
            total = __builtin_fma(weight, sums[chunk], total);
            if (spreads) spread = __builtin_fma(weight, __builtin_fma(behind, sums[chunk], spreads[chunk]), spread);
        }
        ln = -0.5 * minus_two_ln<Scalar>(total);
    }
    float log_prob(float x) const {
        return static_cast<float>(__builtin_fma(static_cast<double>(x) - static_cast<double>(most), beta, -ln));
    }
};

inline float logit(const RaceRow& r, int64_t i) {
    if (r.type == DType::f32) return static_cast<const float*>(r.x)[i];
    const uint16_t half = static_cast<const uint16_t*>(r.x)[i];
    return r.type == DType::f16 ? half_to_float(half) : bfloat16_to_float(half);
}

}  // namespace
}  // namespace nf
