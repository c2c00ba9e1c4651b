// SPDX-License-Identifier: Apache-2.0
// Checked calls, run by the instruction set in use on all threads.
#pragma once
#include "core/call.h"
#include "cpu/pool.h"

namespace nf {

// False: go_on has ended it, and what it wrote is unspecified.
bool run_step(const Call& call, const GoOn& go_on);
bool run_walk(const Call& call, const GoOn& go_on);

// The chunks on all threads; then, in the order of the elements, the sums of samples, and the losses. std::bad_alloc:
// nothing was written.
bool run_loss(Call call, const GoOn& go_on);

}  // namespace nf
