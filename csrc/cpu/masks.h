// SPDX-License-Identifier: Apache-2.0
// Tokens that become the mask (q_mask), or tokens of the whole vocabulary (q_uniform), in one pass over them.
#pragma once
#include "drawing.h"

namespace nf {
namespace {

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

// The tokens that take the place of those that change.
struct New {
    uint64_t mask;
    const uint32_t* drawn;  // or one for each of the tile, if it is not null
};

template <class Token>
void put_tokens(const Masks& m, int64_t at, int n, const uint8_t* changed, const New& other) {
    const auto* const tokens = static_cast<const Token*>(m.tokens) + at;
    auto* const out = static_cast<Token*>(m.out) + at;
    const auto mask = static_cast<Token>(other.mask);
    if (other.drawn)
        for (int i = 0; i < n; ++i) out[i] = changed[i] ? static_cast<Token>(other.drawn[i]) : tokens[i];
    else
        for (int i = 0; i < n; ++i) out[i] = changed[i] ? mask : tokens[i];
    std::memcpy(m.masked + at, changed, static_cast<size_t>(n));
}

[[gnu::noinline]] void put_tokens(const Masks& m, int64_t at, int n, const uint8_t* changed, const New& other) {
    switch (m.bytes) {
        case 1:
            return put_tokens<uint8_t>(m, at, n, changed, other);
        case 2:
            return put_tokens<uint16_t>(m, at, n, changed, other);
        case 4:
            return put_tokens<uint32_t>(m, at, n, changed, other);
        case 8:
            return put_tokens<uint64_t>(m, at, n, changed, other);
    }
}

// floor(u V / 2^64) for u = 2^32 high + low, to `high`.
void scale_words(uint32_t* high, const uint32_t* low, int n, uint64_t vocabulary) {
    for (int i = 0; i < n; ++i)
        high[i] = static_cast<uint32_t>((high[i] * vocabulary + (low[i] * vocabulary >> 32)) >> 32);
}

void mask_range(const Call& s, const Masks& m, int64_t begin, int64_t end) {
    alignas(64) uint32_t words[kTile], drawn[kTile];
    alignas(64) uint8_t changed[kTile];
    const auto tile = [&](int64_t at, Counters& counters, Noise<float>& noise, const RoundKeys& keys) {
        const int n = counters.size;
        copy_words(words, noise.fill_alone(counters, keys, Draw::words), n);
        choose(m, at, n, words, changed);
        if (m.vocabulary) {
            counters.switch_stream(1);  // from 14 to 15
            copy_words(drawn, noise.fill_alone(counters, keys, Draw::words), n);
            copy_words(words, noise.fill_alone(counters, keys, Draw::words, 0, 1), n);
            counters.switch_stream(1);
            scale_words(drawn, words, n, m.vocabulary);
        }
        put_tokens(m, at, n, changed, {m.mask, m.vocabulary ? drawn : nullptr});
    };
    for_each_tile_of_words(s, begin, end, tile);
}

}  // namespace
}  // namespace nf
