// SPDX-License-Identifier: Apache-2.0
// The magnitude of a signal with noise in each of its parts (augment.rician), in one pass.
#pragma once
#include <cmath>

#include "float_mode.h"
#include "tile_rows.h"

namespace nf {
namespace {

template <class Real>
void rician_range(const Call& s, const Rician& m, int64_t begin, int64_t end) {
    const FloatMode mode;
    Cursor cursor(s, begin);
    Noise<Real> noise;
    Counters counters;
    alignas(64) Real sum[kTile], each[kTile];
    while (cursor.at < end) {
        const int64_t at = cursor.at, left = least(cursor.uniform_left(), end - at);
        const bool begin_with_blocks = ((cursor.element | m.apart) & 3) == 0;
        const auto n = static_cast<int>(least(left, begin_with_blocks ? kTile : kTile - 4));
        const RoundKeys keys(cursor.field().seed);
        take_run(counters, cursor);
        load_as(sum, m.x, m.type, at, n);
        for (int i = 0; i < n;) {
            const int64_t segment = (at + i) / m.segment;
            const auto std = static_cast<Real>(m.std[segment]);
            for (const auto stop = static_cast<int>(least((segment + 1) * m.segment - at, n)); i < stop; ++i)
                each[i] = std;
        }
        for (int64_t d = 0; d < m.draws; ++d) {
            counters.take(cursor.element + d * m.apart, n);
            const Real* const z = noise.fill_alone(counters, keys, Draw::normal);
            for (int i = 0; i < n; ++i) {
                const Real part = each[i] * z[i], value = d ? part : sum[i] + part, square = value * value;
                sum[i] = d ? sum[i] + square : square;
            }
        }
        for (int i = 0; i < n; ++i) sum[i] = std::sqrt(sum[i]);
        store_as(m.out, m.type, at, sum, n, false);
        cursor.advance(n);
    }
}

void rician_range(const Call& s, const Rician& m, int64_t begin, int64_t end) {
    if (m.type == DType::f64)
        rician_range<double>(s, m, begin, end);
    else
        rician_range<float>(s, m, begin, end);
}

}  // namespace
}  // namespace nf
