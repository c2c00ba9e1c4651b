// SPDX-License-Identifier: Apache-2.0
// Places of an image that become salt, pepper or random values (augment.impulse), in one pass over them.
#pragma once
#include <algorithm>
#include <bit>

#include "../core/narrow.h"
#include "drawing.h"
#include "lane_scalar.h"

namespace nf {
namespace {

// A value as an image of this type stores it.
[[gnu::noinline]] uint64_t stored(DType type, double value) {
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

// The value that lies so far from low to high, from 0 to 1, as the image stores it.
[[gnu::noinline]] uint64_t random_value(const Impulses& m, double place) {
    const double range = m.high - m.low;
    const double beyond =
        is_level(m.type) ? static_cast<double>(static_cast<int32_t>((range + 1) * place)) : range * place;
    return stored(m.type, m.low + beyond);
}

// Tells whether a word lies below rint(2^32 p), from 0 to 2^32.
struct Below {
    uint32_t last;
    bool any;

    explicit Below(double p)
        : last(static_cast<uint32_t>(static_cast<int64_t>(count_of(p)) - 1)), any(count_of(p) > 0) {}
    bool operator()(uint32_t word) const { return (word <= last) & any; }
};

constexpr int kAtOnce = 4;

// The places, of n, that change, to `hits`. Returns their number. 64 words are read at a time.
int find_hits(const Below& changes, const uint32_t* words, int n, uint8_t* hits) {
    int found = 0;
    for (int from = 0; from < n && changes.any; from += 64) {
        uint64_t at = 0;
        for (int i = 0; i < 64; i += Lane::width)
            at |= uint64_t{Lane::lanes_from(Lane::splat(changes.last), Lane::load(words + from + i))} << i;
        if (n - from < 64) at &= (uint64_t{1} << (n - from)) - 1;
        const int all = std::popcount(at);
        int k = 0;
        do {  // few branches, since their number is random
            for (int j = 0; j < kAtOnce; ++j, at &= at - 1)
                hits[found + k++] = static_cast<uint8_t>(from + std::countr_zero(at));
        } while (k < all);
        found += all;
    }
    return found;
}

// n places of sample b, from `at` on, their words, and what pepper and salt are stored as.
struct Piece {
    int64_t b, at;
    int n;
    const uint32_t* words;
    uint64_t low, high;
};

// Gives the places of a piece their values, which are stored as T.
template <class T>
[[gnu::noinline]] void put_values(const Call& s, const Impulses& m, const Piece& piece) {
    const int n = piece.n;
    const uint32_t* const words = piece.words;
    const double amount = m.amount[(piece.b * s.size + piece.at) / m.segment], unit = 1 / count_of(amount);
    const Below changes(amount), is_high(amount * m.salt);
    const T ends[] = {static_cast<T>(piece.low), static_cast<T>(piece.high)};
    const auto value_of = [&](uint32_t word) {
        return m.random ? static_cast<T>(random_value(m, (word + 0.5) * unit)) : ends[is_high(word)];
    };
    const int64_t each = m.planes ? 1 : m.channels;                // the channels of a place, or planes
    const bool blends = sizeof(T) == 1 && each == 1 && !m.random;  // as fast however many places change
    uint8_t hits[kTile + kAtOnce];
    const int found = blends ? 0 : find_hits(changes, words, n, hits);
    for (int64_t run = 0; run < m.channels / each; ++run) {
        const int64_t first = (piece.b * (m.channels / each) + run) * s.size + piece.at;
        const T* const from = static_cast<const T*>(m.x) + first * each;
        T* const to = static_cast<T*>(m.out) + first * each;
        for (int i = 0; i < n && blends; ++i)
            to[i] = changes(words[i]) ? is_high(words[i]) ? ends[1] : ends[0] : from[i];
        if (from != to && !blends) std::memcpy(to, from, sizeof(T) * static_cast<size_t>(n * each));
        for (int h = 0; h < found; ++h) {
            const T value = value_of(words[hits[h]]);
            T* const of = to + hits[h] * each;
            if (each == 3)  // most are; no loop, whose end costs
                of[0] = of[1] = of[2] = value;
            else
                for (int64_t c = 0; c < each; ++c) of[c] = value;
        }
    }
}

void impulse_range(const Call& s, const Impulses& m, int64_t begin, int64_t end) {
    alignas(64) uint32_t words[kTile + 64] = {};  // 64 are read at a time
    Piece piece{0, 0, 0, words, stored(m.type, m.low), stored(m.type, m.high)};
    const auto tile = [&](int64_t at, Counters& counters, Noise<float>& noise, const RoundKeys& keys) {
        copy_words(words, noise.fill_alone(counters, keys, Draw::words), counters.size);
        for (int i = 0; i < counters.size; i += piece.n) {  // the places of one sample
            piece.words = words + i, piece.b = (at + i) / s.size, piece.at = at + i - piece.b * s.size;
            piece.n = static_cast<int>(least(s.size - piece.at, counters.size - i));
            switch (bytes_of(m.type)) {
                case 1:
                    put_values<uint8_t>(s, m, piece);
                    break;
                case 2:
                    put_values<uint16_t>(s, m, piece);
                    break;
                case 4:
                    put_values<uint32_t>(s, m, piece);
                    break;
                default:
                    put_values<uint64_t>(s, m, piece);
            }
        }
    };
    for_each_tile_of_words(s, begin, end, tile);
}

}  // namespace
}  // namespace nf
