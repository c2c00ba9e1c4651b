// SPDX-License-Identifier: Apache-2.0
// Places of an image that become salt, pepper or random values (augment.impulse), in one pass over them.
#pragma once
#include <bit>

#include "../core/narrow.h"
#include "lane_scalar.h"
#include "masks.h"

namespace nf {
namespace {

// The places of a tile that change: 1 or 2 for the low or the high value; and how far each lies from low to high.
struct Hits {
    alignas(64) uint8_t kind[kTile];
    alignas(64) double place[kTile];
};

void find_hits(const Impulses& m, int64_t at, int n, const uint32_t* words, Hits& hits) {
    for (int i = 0; i < n;) {
        const int64_t segment = (at + i) / m.segment, left = (segment + 1) * m.segment - at;
        const auto end = static_cast<int>(least(left, n));
        const double amount = m.amount[segment], count = count_of(amount), each = count > 0 ? 1 / count : 0;
        const auto some = static_cast<uint64_t>(count), high = static_cast<uint64_t>(count_of(amount * m.salt));
        const auto last = static_cast<uint32_t>(some - 1), last_high = static_cast<uint32_t>(high - 1);
        const uint8_t any = some != 0, any_high = high != 0;
        for (int k = i; k < end && m.random; ++k) hits.place[k] = (words[k] + 0.5) * each;
        for (; i < end; ++i) {
            const uint8_t hit = static_cast<uint8_t>(words[i] <= last) & any;
            hits.kind[i] = static_cast<uint8_t>(hit + (static_cast<uint8_t>(words[i] <= last_high) & any_high));
        }
    }
}

template <DType type, class Stored>
Stored stored(double value) {
    if constexpr (type == DType::f16) return float_to_half(static_cast<float>(value));
    if constexpr (type == DType::bf16)
        return static_cast<Stored>(round_to_bfloat16<Scalar>(static_cast<float>(value)) >> 16);
    return static_cast<Stored>(value);
}

// The values of a tile's places, of those that change.
template <DType type, class Stored>
void find_values(const Impulses& m, int n, const Hits& hits, Stored* values) {
    const Stored low = stored<type, Stored>(m.low), high = stored<type, Stored>(m.high);
    const double range = m.high - m.low;
    for (int i = 0; i < n && !m.random; ++i) values[i] = hits.kind[i] == 2 ? high : low;
    for (int i = 0; i < n && m.random; ++i) {
        const double place = hits.kind[i] ? hits.place[i] : 0;
        const double beyond =
            is_level(type) ? static_cast<double>(static_cast<int32_t>((range + 1) * place)) : range * place;
        values[i] = stored<type, Stored>(m.low + beyond);
    }
}

// Calls put(i) for each place of a tile that changes.
template <class Put>
void for_each_hit(int n, const Hits& hits, const Put& put) {
    constexpr uint64_t kEach = 0x0101010101010101u;
    for (int i = 0; i < n; i += 8) {
        uint64_t kinds;
        std::memcpy(&kinds, hits.kind + i, sizeof kinds);
        if (n - i < 8) kinds &= (uint64_t{1} << 8 * (n - i)) - 1;
        for (kinds = (kinds | kinds >> 1) & kEach; kinds; kinds &= kinds - 1) put(i + (std::countr_zero(kinds) >> 3));
    }
}

template <DType type, class Stored>
void put_values(const Call& s, const Impulses& m, int64_t at, int n, const Hits& hits) {
    const auto* const x = static_cast<const Stored*>(m.x);
    auto* const out = static_cast<Stored*>(m.out);
    Stored values[kTile];
    find_values<type>(m, n, hits, values);
    if (!m.planes && m.channels > 1) {
        const int64_t first = at * m.channels;
        if (x != out) std::memcpy(out + first, x + first, sizeof(Stored) * static_cast<size_t>(n * m.channels));
        for_each_hit(n, hits, [&](int i) {
            for (int64_t c = 0; c < m.channels; ++c) out[first + i * m.channels + c] = values[i];
        });
        return;
    }
    for (int i = 0; i < n;) {  // the places of one sample
        const int64_t sample = (at + i) / s.size, in_sample = (at + i) % s.size;
        const auto end = static_cast<int>(least(i + s.size - in_sample, n));
        for (int64_t c = 0; c < m.channels; ++c) {
            const int64_t first = (sample * m.channels + c) * s.size + in_sample - i;
            for (int k = i; k < end; ++k) out[first + k] = hits.kind[k] ? values[k] : x[first + k];
        }
        i = end;
    }
}

[[gnu::noinline]] void put_values(const Call& s, const Impulses& m, int64_t at, int n, const Hits& hits) {
    switch (m.type) {
        case DType::f32:
            return put_values<DType::f32, float>(s, m, at, n, hits);
        case DType::f64:
            return put_values<DType::f64, double>(s, m, at, n, hits);
        case DType::f16:
            return put_values<DType::f16, uint16_t>(s, m, at, n, hits);
        case DType::bf16:
            return put_values<DType::bf16, uint16_t>(s, m, at, n, hits);
        case DType::u8:
            return put_values<DType::u8, uint8_t>(s, m, at, n, hits);
        case DType::u16:
            return put_values<DType::u16, uint16_t>(s, m, at, n, hits);
    }
}

void impulse_range(const Call& s, const Impulses& m, int64_t begin, int64_t end) {
    alignas(64) uint32_t words[kTile];
    Hits hits;
    for_each_tile_of_words(s, begin, end,
                           [&](int64_t at, Counters& counters, Noise<float>& noise, const RoundKeys& keys) {
                               const int n = counters.size;
                               copy_words(words, noise.fill(counters, keys, Draw::words, 0, Nothing{}), n);
                               find_hits(m, at, n, words, hits);
                               put_values(s, m, at, n, hits);
                           });
}

}  // namespace
}  // namespace nf
