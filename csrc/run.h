// SPDX-License-Identifier: Apache-2.0
// Checked calls, run by the instruction set in use on all threads.
#pragma once
#include <string_view>

#include "core/call.h"
#include "cpu/pool.h"

namespace nf {

// False: go_on has ended it, and what it wrote is unspecified.
bool run_step(const Call& call, const GoOn& go_on);
// The same, and its first result is clipped to [low, high], numbers of the result's dtype, while it lies in the caches.
bool run_clipped_step(const Call& call, double low, double high, const GoOn& go_on);
bool run_walk(const Call& call, const GoOn& go_on);

// The chunks on all threads; then, in the order of the elements, the sums of samples, and the losses. std::bad_alloc:
// nothing was written.
bool run_loss(const Call& loss, const GoOn& go_on);

// A step, and the sums of a loss that reads what it writes: chunk by chunk, while that lies in the caches.
bool run_step_and_loss(const Call& step, const Call& loss, const GoOn& go_on);

// An operation by its name, for backends/native.py.
struct Operation {
    std::string_view name;
    int calls;  // that it takes
    bool (*run)(const Call* calls, const GoOn& go_on);
};

inline constexpr int kMostCalls = 2;

// Null: there is none of this name.
const Operation* find_operation(std::string_view name);

}  // namespace nf
