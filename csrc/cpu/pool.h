// SPDX-License-Identifier: Apache-2.0
// The library's own threads. They share out ranges, never results: no output depends on how many there are.
#pragma once
#include <cstdint>
#include <exception>
#include <functional>

namespace nf {

using Body = std::function<void(int64_t begin, int64_t end)>;
// What a long job asks on its caller's thread, between chunks, or nothing. False ends it: what was begun is finished,
// and no more.
using GoOn = std::function<bool()>;

// Thrown in a forked child that comes back into a job, from go_on: its other threads, and what they had in hand, are
// not there.
struct Forked : std::exception {};

// Calls body(begin, end) over [0, total) in chunks, on all threads; on the caller's alone when there is one chunk or
// the pool is busy with another job. Chunks begin at multiples of `chunk`. False: it was ended before its time.
bool parallel_for(int64_t total, int64_t chunk, const Body& body, const GoOn& go_on);

int num_threads();
void set_num_threads(int n);  // n >= 1

// Once, before the first use: a pool of one thread. So has a forked child, where only the forking thread lives on.
void init_pool();

}  // namespace nf
