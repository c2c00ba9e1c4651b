// SPDX-License-Identifier: Apache-2.0
// The library's own threads. They share out ranges, never results: no output depends on how many there are.
#pragma once
#include <cstdint>
#include <functional>

namespace nf {

// Calls body(begin, end) over [0, total) in chunks, on all threads; on the caller's alone when there is one chunk or
// the pool is busy with another caller. Chunks begin at multiples of `chunk`.
void parallel_for(int64_t total, int64_t chunk, const std::function<void(int64_t, int64_t)>& body);

int num_threads();
void set_num_threads(int n);  // n >= 1

// Once, before the first use. A forked child, where only the forking thread lives on, gets a new pool: of one thread,
// unless NOISEFUSE_NUM_THREADS says otherwise.
void init_pool();

}  // namespace nf
