// SPDX-License-Identifier: Apache-2.0
// The library's own threads. They share out ranges, never results: no output depends on how many there are.
#pragma once
#include <cstdint>
#include <exception>
#include <functional>

namespace nf {

using Body = std::function<void(int64_t begin, int64_t end)>;
// A long job calls this on its caller's thread, between chunks. False ends the job: chunks that were begun are
// finished, and no others begin.
using GoOn = std::function<bool()>;

// Thrown in a child that was forked inside go_on and returns into the job. Its other threads, and their chunks, are
// lost.
struct Forked : std::exception {};

// Calls body(begin, end) over [0, total) in chunks, on all threads; on the caller's alone when there is one chunk or
// the pool is busy with another job. Chunks begin at multiples of `chunk`. Returns false if the job was ended early.
bool parallel_for(int64_t total, int64_t chunk, const Body& body, const GoOn& go_on);

int num_threads();
void set_num_threads(int n);  // n >= 1

// Makes a pool of one thread. It is called once, before the first use. A forked child has such a pool, too, as only the
// forking thread lives on in it.
void init_pool();

}  // namespace nf
