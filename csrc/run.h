// SPDX-License-Identifier: Apache-2.0
// Checked calls, run by the instruction set in use on all threads.
#pragma once
#include "core/call.h"

namespace nf {

void run_step(const Call& call);
void run_walk(const Call& call);

// The chunks on all threads; then, in the order of the elements, the sums of samples, and the losses. std::bad_alloc:
// nothing was written.
void run_loss(Call call);

}  // namespace nf
