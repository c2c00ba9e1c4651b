// SPDX-License-Identifier: Apache-2.0
// Checked races of categories and cross entropies, run by the instruction set in use on all threads.
#pragma once
#include "../core/race.h"
#include "../cpu/pool.h"

namespace nf {

// False: go_on ended the run, and the outputs are unspecified. std::bad_alloc: nothing was written.
bool run_race(const Race& race, const GoOn& go_on);
bool run_cross_entropy(const CrossEntropy& call, const GoOn& go_on);

}  // namespace nf
