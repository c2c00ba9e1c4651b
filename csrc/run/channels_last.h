// SPDX-License-Identifier: Apache-2.0
// Calls with channels_last arrays. Kernels read and write C's order. So the elements are turned on the way: a block is
// turned to C's order, computed and turned back, while it lies in the second-level cache. At 2^20 elements this takes a
// half to two thirds of the time of copies of the whole arrays. python/plain_call.h decides which arrays are turned.
#pragma once
#include <functional>

#include "../core/call.h"
#include "../cpu/pool.h"

namespace nf {

// The arrays of a call that are turned: (batch, pixels, channels) in memory. All others lie in C's order.
struct Turned {
    int64_t channels = 0, pixels = 0;  // of a sample
    unsigned inputs = 0, outputs = 0;  // bit s: in[s], bit o: out[o]

    bool any() const { return inputs || outputs; }
};

using Range = std::function<void(const Call& call, int64_t begin, int64_t end)>;

// Runs range over all elements, on all threads. std::bad_alloc: the outputs are unspecified.
bool run_turned(const Call& call, const Turned& turned, const Range& range, const GoOn& go_on);

}  // namespace nf
