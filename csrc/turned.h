// SPDX-License-Identifier: Apache-2.0
// Calls whose arrays are channels_last. Kernels read and write C's order, so elements are turned on the way: block by
// block, while they lie in the second-level cache. At 2^20 elements this takes a half to two thirds of the time of
// copies of the whole arrays.
#pragma once
#include <functional>

#include "core/call.h"
#include "cpu/pool.h"

namespace nf {

inline constexpr int64_t kFewestPixels = 512;  // that kernels take at once: fewer cost more an element

// The arrays that are channels_last: (batch, pixels, channels) in memory. All others lie in C's order.
struct Turned {
    int64_t channels = 0, pixels = 0;  // of a sample
    unsigned inputs = 0, outputs = 0;  // bit s: in[s], bit o: out[o]

    bool any() const { return inputs || outputs; }
    // Whether kernels may take the elements in the order of memory instead, which is that of all arrays: an element's
    // place plays no part.
    bool all(const Call& call) const;
};

using Range = std::function<void(const Call& call, int64_t begin, int64_t end)>;

// Runs range over all elements, on all threads. std::bad_alloc: the outputs are unspecified.
bool run_turned(const Call& call, const Turned& turned, const Range& range, const GoOn& go_on);

}  // namespace nf
