// SPDX-License-Identifier: Apache-2.0
// The way through elements that draw noise: stretches of one row, one sample and one step, cut into tiles.
#pragma once
#include "tile_noise.h"
#include "tile_rows.h"

namespace nf {
namespace {

// Calls tile(at, plan, keys) from `begin` to `end`: the plan has the tile's size and where in the field its noise lies.
// `rows` has the tile's row then.
template <class Real, class Tile>
void for_each_drawn_tile(const Call& s, int64_t begin, int64_t end, Rows<Real>& rows, const Arrays<Real>& arrays,
                         const Tile& tile) {
    Cursor cursor(s, begin);
    Plan plan;
    uint64_t seed = cursor.field().seed;
    RoundKeys keys(seed);
    while (cursor.at < end) {
        if (cursor.field().seed != seed) keys = RoundKeys(seed = cursor.field().seed);
        const int64_t at = cursor.at, segment = cursor.segment, segment_left = cursor.segment_left;
        const int64_t stretch = least(least(cursor.uniform_left(), segment_left), end - at);
        if (stretch < kTile / 2) {
            plan_short_runs<Real>(plan, cursor, end);
            rows.select(segment, segment_left, plan.size);
            tile(at, plan, keys);
            continue;
        }
        plan_run(plan, cursor);
        rows.select(segment, segment_left, 1);
        // A long run's first tile is short where the others then begin with a block and with a line of the output.
        int64_t head = s.out[0] && stretch >= 8 * kTile ? arrays.to_line(at) : 0;
        if ((cursor.element + head) & 3) head = 0;
        for (int64_t done = 0; done < stretch; done += plan.size, head = 0) {
            plan.take(cursor.element + done, head ? head : stretch - done);
            tile(at + done, plan, keys);
        }
        cursor.advance(stretch);
    }
}

}  // namespace
}  // namespace nf
