// SPDX-License-Identifier: Apache-2.0
// The loops over elements that draw noise. They go by spans of one row, one sample and one step, cut into tiles.
#pragma once
#include "float_mode.h"
#include "tile_noise.h"
#include "tile_rows.h"

namespace nf {
namespace {

// Tells whether the spans of a tile of short runs are taken one by one, each with its row, where their blocks lie.
// Packing takes as long if they are short, and coefficients for each element do if they are very short.
inline bool comes_apart(const Counters& counters, const Call& s, int64_t segment_left, bool in_registers) {
    constexpr int kLong = 48;
    if (counters.singles || s.draw == Draw::words || s.row_for_each() || s.segment < kLong ||
        (in_registers && counters.whole_groups()))
        return false;
    if (segment_left >= counters.size) return !counters.in_order && counters.size >= 2 * kLong * counters.n_parts;
    return counters.size >= kLong * counters.n_parts;
}

// Calls span(at, z, n) for the elements of a tile from `at` on, whose noise is at z: once, or for its spans one by one,
// whose rows it selects.
template <class Real, class Span>
void for_each_span(const Counters& counters, const Real* z, Rows<Real>& rows, int64_t at, const Span& span) {
    const Call& s = rows.s;
    const bool apart = counters.apart;
    int64_t segment = 0, left = kTile;
    if (apart) segment = at / s.segment, left = s.segment - at % s.segment, rows.per_element = false;
    for (int p = 0, n; p < (apart ? counters.n_parts : 1); ++p) {
        const RunPart part = apart ? counters.parts[p] : RunPart{0, counters.size};
        for (int done = 0; done < part.size; at += n, done += n) {
            n = static_cast<int>(least(left, part.size - done));
            if (apart) rows.take_row(segment);
            span(at, z + part.from + done, n);
            if ((left -= n) == 0) ++segment, left = s.segment;
        }
    }
}

// Calls tile(at, counters, keys) from `begin` to `end`. The counters hold the tile's size and the place of its noise in
// the field; `rows` holds the tile's row.
template <class Real, class Tile>
void for_each_drawn_tile(const Call& s, int64_t begin, int64_t end, Rows<Real>& rows, const Arrays<Real>& arrays,
                         const Tile& tile) {
    Cursor cursor(s, begin);
    Counters counters;
    uint64_t seed = cursor.field().seed;
    RoundKeys keys(seed);
    const int most_of_run = s.row_for_each() ? rows.most : kTile;  // a span has one row, or one for each element
    while (cursor.at < end) {
        if (cursor.field().seed != seed) keys = RoundKeys(seed = cursor.field().seed);
        const int64_t at = cursor.at, segment = cursor.segment, segment_left = cursor.segment_left;
        const int64_t span = least(least(cursor.uniform_left(), segment_left), end - at);
        if (is_short(cursor, span, end, s.draw == Draw::normal)) {
            take_short_runs<Real>(counters, cursor, end, rows.most);
            counters.apart = comes_apart(counters, s, segment_left, arrays.in_registers);
            if (!counters.apart) rows.select(at, segment, segment_left, counters.size);
            tile(at, counters, keys);
            continue;
        }
        take_run(counters, cursor);
        // A long run's first tile is short where the others then begin with a block and with a line of the output.
        int64_t head = s.out[0] && span >= 8 * kTile ? arrays.to_line(at) : 0;
        if ((cursor.element + head) & 3) head = 0;
        for (int64_t done = 0; done < span; done += counters.size, head = 0) {
            counters.take(cursor.element + done, head ? head : least(span - done, most_of_run));
            rows.select(at + done, segment, segment_left - done, counters.size);
            tile(at + done, counters, keys);
        }
        cursor.advance(span);
    }
}

// The words of a tile of noise, to `to`.
void copy_words(uint32_t* to, const float* words, int n) {
    std::memcpy(to, words, sizeof(float) * static_cast<size_t>(n));
}

// Takes the next tile of words, before `end`.
[[gnu::noinline]] void take_tile(Counters& counters, Cursor& cursor, int64_t end) {
    const int64_t left = least(cursor.uniform_left(), end - cursor.at);
    if (is_short(cursor, left, end, false)) return take_short_runs<float>(counters, cursor, end, kTile);
    take_run(counters, cursor);
    counters.take(cursor.element, left);
    cursor.advance(counters.size);
}

// Calls tile(at, counters, noise, keys) from `begin` to `end`, where words alone are drawn and rows play no part.
template <class Tile>
void for_each_tile_of_words(const Call& s, int64_t begin, int64_t end, const Tile& tile) {
    const FloatMode mode;
    Cursor cursor(s, begin);
    Noise<float> noise;
    Counters counters;
    while (cursor.at < end) {
        const int64_t at = cursor.at;
        const RoundKeys keys(cursor.field().seed);
        take_tile(counters, cursor, end);
        tile(at, counters, noise, keys);
    }
}

}  // namespace
}  // namespace nf
