// SPDX-License-Identifier: Apache-2.0
// The loop over elements that draw noise. It goes by spans of one row, one sample and one step, cut into tiles.
#pragma once
#include "tile_noise.h"
#include "tile_rows.h"

namespace nf {
namespace {

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
        if (is_short(cursor, span, end, arrays.in_registers)) {
            take_short_runs<Real>(counters, cursor, end, rows.most);
            rows.select(at, segment, segment_left, counters.size);
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

}  // namespace
}  // namespace nf
