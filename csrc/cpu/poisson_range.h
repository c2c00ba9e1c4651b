// SPDX-License-Identifier: Apache-2.0
// The noise of counted photons (augment.poisson), in one pass.
#pragma once
#include "byte_photons.h"
#include "drawing.h"

namespace nf {
namespace {

void poisson_range(const Call& s, const Poisson& m, int64_t begin, int64_t end) {
    alignas(64) double value[kTile], u[kTile], peak[kTile];
    alignas(64) float single[kTile];
    alignas(64) uint32_t words[kTile];
    BytePhotons photons;
    const double unit = 1 / m.top;
    const auto tile = [&](int64_t at, Counters& counters, Noise<float>& noise, const RoundKeys& keys) {
        const int n = counters.size;
        copy_words(words, noise.fill_alone(counters, keys, Draw::words), n);
        for (int i = 0; i < n;) {
            const int64_t segment = (at + i) / m.segment;
            const auto stop = static_cast<int>(least((segment + 1) * m.segment - at, n));
            if (m.type == DType::u8) photons.change(m, segment, at + i, words + i, stop - i), i = stop;
            for (const double of_all = m.peak[segment]; i < stop; ++i) peak[i] = of_all;
        }
        if (m.type == DType::u8) return;
        if (m.type == DType::f64) {
            load_as(value, m.x, m.type, at, n);
        } else {
            load_as(single, m.x, m.type, at, n);
            for (int i = 0; i < n; ++i) value[i] = single[i] * unit;
        }
        for (int i = 0; i < n; ++i) u[i] = (words[i] + 0.5) * 0x1p-32;
        for (int i = n; i % kSome; ++i) value[i] = u[i] = 0, peak[i] = 1;
        count_photons(value, u, peak, n, m.gamma);
        if (m.type == DType::f64) return store_as(m.out, m.type, at, value, n, false);
        for (int i = 0; i < n; ++i) single[i] = static_cast<float>(value[i] * m.top);
        store_as(m.out, m.type, at, single, n, false);
    };
    for_each_tile_of_words(s, begin, end, tile);
}

}  // namespace
}  // namespace nf
