// SPDX-License-Identifier: Apache-2.0
// Tokens that become the mask at random (q_mask), in one pass over them.
#pragma once
#include "float_mode.h"
#include "tile_noise.h"

namespace nf {
namespace {

// rint(2^32 p): from 2^52 on, numbers have a last place of 1.
inline double count_of(double p) { return (p * 0x1p32 + 0x1p52) - 0x1p52; }

// Whether each token of a tile is masked, as bytes of 0 and 1.
void choose(const Masks& m, int64_t at, int n, const uint32_t* words, uint8_t* masked) {
    if (m.segment == 1) {
        for (int i = 0; i < n; ++i) masked[i] = words[i] < count_of(m.p[at + i]);
    } else {
        for (int i = 0; i < n;) {
            const int64_t segment = (at + i) / m.segment, left = (segment + 1) * m.segment - at;
            const auto end = static_cast<int>(least(left, n));
            const auto count = static_cast<uint64_t>(count_of(m.p[segment]));
            const auto last = static_cast<uint32_t>(count - 1);  // no word lies below a count of 0
            const uint8_t some = count != 0;
            for (; i < end; ++i) masked[i] = static_cast<uint8_t>(words[i] <= last) & some;
        }
    }
    for (int i = 0; i < n && m.complement; ++i) masked[i] ^= 1;
    for (int i = 0; i < n && m.where; ++i) masked[i] &= m.where[at + i];
}

template <class Token>
void put_masks(const Masks& m, int64_t at, int n, const uint8_t* masked) {
    const auto* const tokens = static_cast<const Token*>(m.tokens) + at;
    auto* const out = static_cast<Token*>(m.out) + at;
    const auto mask = static_cast<Token>(m.mask);
    for (int i = 0; i < n; ++i) out[i] = masked[i] ? mask : tokens[i];
    std::memcpy(m.masked + at, masked, static_cast<size_t>(n));
}

[[gnu::noinline]] void put_masks(const Masks& m, int64_t at, int n, const uint8_t* masked) {
    switch (m.bytes) {
        case 1:
            return put_masks<uint8_t>(m, at, n, masked);
        case 2:
            return put_masks<uint16_t>(m, at, n, masked);
        case 4:
            return put_masks<uint32_t>(m, at, n, masked);
        case 8:
            return put_masks<uint64_t>(m, at, n, masked);
    }
}

void mask_range(const Call& s, const Masks& m, int64_t begin, int64_t end) {
    const FloatMode mode;
    Cursor cursor(s, begin);
    Noise<float> noise;
    Counters counters;
    alignas(64) uint32_t words[kTile];
    alignas(64) uint8_t masked[kTile];
    while (cursor.at < end) {
        const int64_t at = cursor.at, left = least(cursor.uniform_left(), end - at);
        const RoundKeys keys(cursor.field().seed);
        if (is_short(cursor, left, end, false)) {
            take_short_runs<float>(counters, cursor, end, kTile);
        } else {
            take_run(counters, cursor);
            counters.take(cursor.element, left);
            cursor.advance(counters.size);
        }
        const float* const drawn = noise.fill(counters, keys, Draw::words, 0, Nothing{});
        std::memcpy(words, drawn, sizeof(float) * static_cast<size_t>(counters.size));
        choose(m, at, counters.size, words, masked);
        put_masks(m, at, counters.size, masked);
    }
}

}  // namespace
}  // namespace nf
