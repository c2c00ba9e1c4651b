// SPDX-License-Identifier: Apache-2.0
// Calls with arrays whose planes are turned: channels_last arrays, transposed ones. Kernels read and write C's order,
// and sums are added up in that order. So the elements are turned on the way: a block is turned to C's order, computed
// and turned back, while it lies in the second-level cache. python/fast_call.h decides which arrays are turned.
#pragma once
#include <functional>

#include "../core/call.h"
#include "../cpu/pool.h"

namespace nf {

struct Copy;

// The arrays of a call that are turned: their planes (rows, columns) lie as (columns, rows) in memory. The rows of
// channels_last arrays are channels, and their columns pixels. All other arrays lie in C's order.
struct Turned {
    int64_t rows = 0, columns = 0;     // of a plane
    unsigned inputs = 0, outputs = 0;  // bit s: in[s], bit o: out[o]
    bool alike = false;  // all inputs are turned, and each plane has one row: sums may be taken as the arrays lie
    const Copy* orders = nullptr;  // or null; in[s] is no plane but lies in orders[s], where that has an `item`

    bool any() const { return inputs || outputs; }
};

using Range = std::function<void(const Call& call, int64_t begin, int64_t end)>;

// Runs range over all elements, on all threads. A range of a loss has whole chunks of pieces of `piece` elements; 0: it
// is no loss. If the inputs have z and the call draws it, the call is in the order of its arrays, and the noise is
// drawn in C's order and turned. std::bad_alloc: the outputs are unspecified.
bool run_turned(const Call& call, const Turned& turned, int64_t piece, const Range& range, const GoOn& go_on);

using Band = std::function<void(const Call& call, int64_t begin, int64_t end, void* sums)>;

// The same for sums that are taken as the arrays lie, alike: of columns of a chunk's length, `count` of them. A band
// has some columns of a plane, and elements in the order of the arrays. sums: room for the accumulators of a plane's
// rows.
bool run_bands(const Call& call, const Turned& turned, int64_t count, const Band& band, const GoOn& go_on);

}  // namespace nf
