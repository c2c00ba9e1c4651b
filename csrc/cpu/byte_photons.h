// SPDX-License-Identifier: Apache-2.0
// Counted photons of bytes (augment.poisson) where white has few of them: then the words that give 0, 1, .. photons at
// a level fit in a vector or two. docs/noise.md has the formulas.
#pragma once
#include <bit>

#include "photons.h"

namespace nf {
namespace {

class BytePhotons {
  public:
    // Changes n bytes of a segment from `at` on.
    [[gnu::noinline]] void change(const Poisson& m, int64_t segment, int64_t at, const uint32_t* words, int n) {
        if (m.peak[segment] != peak_) count(peak_ = m.peak[segment], m.light);
        const uint8_t* const x = static_cast<const uint8_t*>(m.x) + at;
        uint8_t* const out = static_cast<uint8_t*>(m.out) + at;
        for (int i = 0; i < n; ++i) out[i] = byte_[photons_at(last_[x[i]], words[i])];
    }

  private:
    double peak_ = 0;
    alignas(64) uint32_t last_[kLevels][kPhotons];  // the last word that gives so many photons or fewer
    uint8_t byte_[kPhotons + 1];                    // of so many photons; all beyond are 255

    static int photons_at(const uint32_t* last, uint32_t word) {
        int n = 0;
        if constexpr (Lane::width == 1) {
            while (n < kPhotons && word > last[n]) ++n;
        } else {
            for (int k = 0; k < kPhotons; k += Lane::width)
                n += Lane::width - std::popcount(Lane::lanes_from(Lane::load(last + k), Lane::splat(word)));
        }
        return n;
    }

    // light: see Poisson.
    void count(double peak, const double* light) {
        double mean[kLevels], most = -1;  // most: the photons that give this byte or a smaller one
        int known = 0;
        const auto light_of = [&](int n) { return light ? peak * light[n] : peak * n / 510; };
        for (int byte = 0; byte < kLevels; ++byte) {
            mean[byte] = light_of(2 * byte);
            const double half = light_of(2 * byte + 1), whole = std::floor(half);
            if (byte < kLevels - 1) most = std::max(most, byte % 2 && half == whole ? half - 1 : whole);
            while (known <= most) byte_[known++] = static_cast<uint8_t>(byte);
        }
        byte_[known] = kLevels - 1;
        std::memset(last_, 0xFF, sizeof last_);
        for (int level = 0; level < kLevels; level += kSome) count_levels(mean + level, known, last_ + level);
    }

    static void count_levels(const double* of, int known, uint32_t (*last)[kPhotons]) {
        double sums[kPhotons][kSome], all[kSome];
        Some mean, weight, sum;
        for (int v = 0; v < kChains; ++v) {
            take(mean[v], of + v * kDoubles);
            weight[v] = sum[v] = Doubles{} + 1;
            put(sums[0] + v * kDoubles, sum[v]);
        }
        Truths more = Truths{} - 1;
        for (int k = 1; k < known || how_many(more); ++k) {
            more = Truths{};
            for (int v = 0; v < kChains; ++v) {
                weight[v] = weight[v] * (mean[v] / k);
                sum[v] = sum[v] + weight[v];
                // Beyond the mean weights shrink, so a sum no longer grows after one below half of its last place.
                more |= (weight[v] >= sum[v] * 0x1p-54) | (mean[v] > k);
                put((k < known ? sums[k] : all) + v * kDoubles, sum[v]);
            }
        }
        for (int v = 0; v < kChains; ++v) put(all + v * kDoubles, sum[v]);
        for (int k = 0; k < known; ++k)
            for (int i = 0; i < kSome; ++i)
                last[i][k] = static_cast<uint32_t>(static_cast<int64_t>(count_of(sums[k][i] / all[i])) - 1);
    }
};

}  // namespace
}  // namespace nf
