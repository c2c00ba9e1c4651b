// SPDX-License-Identifier: Apache-2.0
// Places of an image that become salt, pepper or random values (augment.impulse), in one pass over them.
#pragma once
#include <bit>

#include "../core/narrow.h"
#include "drawing.h"
#include "lane_scalar.h"

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

// A value as an image of this type stores it.
inline uint64_t stored(DType type, double value) {
    switch (type) {
        case DType::f32:
            return float_to_bits(static_cast<float>(value));
        case DType::f64:
            return __builtin_bit_cast(uint64_t, value);
        case DType::f16:
            return float_to_half(static_cast<float>(value));
        case DType::bf16:
            return round_to_bfloat16<Scalar>(static_cast<float>(value)) >> 16;
        case DType::u8:
        case DType::u16:
            break;
    }
    return static_cast<uint64_t>(value);
}

// Calls put(i) for each of n places that changes.
template <class Put>
void for_each_hit(int n, const uint8_t* kind, const Put& put) {
    constexpr uint64_t kEach = 0x0101010101010101u;
    for (int i = 0; i < n; i += 8) {
        uint64_t kinds = 0;
        std::memcpy(&kinds, kind + i, n - i < 8 ? static_cast<size_t>(n - i) : sizeof kinds);
        for (kinds = (kinds | kinds >> 1) & kEach; kinds; kinds &= kinds - 1) put(i + (std::countr_zero(kinds) >> 3));
    }
}

[[gnu::noinline]] void put_values(const Call& s, const Impulses& m, int64_t at, int n, const Hits& hits) {
    const int64_t size = bytes_of(m.type), each = m.planes ? 1 : m.channels;  // the channels of a place, or planes
    const int64_t runs = m.channels / each;
    const auto value_of = [&](int i) {
        if (!m.random) return stored(m.type, hits.kind[i] == 2 ? m.high : m.low);
        const double range = m.high - m.low, place = hits.place[i];
        const double beyond =
            is_level(m.type) ? static_cast<double>(static_cast<int32_t>((range + 1) * place)) : range * place;
        return stored(m.type, m.low + beyond);
    };
    const auto put = [&](char* to, uint64_t value) {
        switch (size) {
            case 1:
                return void(std::memcpy(to, &value, 1));
            case 2:
                return void(std::memcpy(to, &value, 2));
            case 4:
                return void(std::memcpy(to, &value, 4));
            default:
                return void(std::memcpy(to, &value, 8));
        }
    };
    for (int i = 0; i < n;) {  // the places of one sample
        const int64_t sample = (at + i) / s.size, in_sample = (at + i) % s.size;
        const auto count = static_cast<int>(least(s.size - in_sample, n - i));
        const uint8_t* const kind = hits.kind + i;
        for (int64_t run = 0; run < runs; ++run) {
            const int64_t first = ((sample * runs + run) * s.size + in_sample) * each * size;
            const char* const from = static_cast<const char*>(m.x) + first;
            char* const to = static_cast<char*>(m.out) + first;
            if (each * size == 1 && !m.random) {  // most images, however many places change
                const auto low = static_cast<char>(stored(m.type, m.low)),
                           high = static_cast<char>(stored(m.type, m.high));
                for (int k = 0; k < count; ++k) to[k] = kind[k] == 0 ? from[k] : kind[k] == 2 ? high : low;
                continue;
            }
            if (from != to) std::memcpy(to, from, static_cast<size_t>(count * each * size));
            for_each_hit(count, kind, [&](int k) {
                const uint64_t value = value_of(i + k);
                for (int64_t c = 0; c < each; ++c) put(to + (k * each + c) * size, value);
            });
        }
        i += count;
    }
}

void impulse_range(const Call& s, const Impulses& m, int64_t begin, int64_t end) {
    alignas(64) uint32_t words[kTile];
    Hits hits;
    const auto tile = [&](int64_t at, Counters& counters, Noise<float>& noise, const RoundKeys& keys) {
        const int n = counters.size;
        copy_words(words, noise.fill_alone(counters, keys, Draw::words), n);
        find_hits(m, at, n, words, hits);
        put_values(s, m, at, n, hits);
    };
    for_each_tile_of_words(s, begin, end, tile);
}

}  // namespace
}  // namespace nf
