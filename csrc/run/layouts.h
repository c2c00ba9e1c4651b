// SPDX-License-Identifier: Apache-2.0
// Copies between layouts: from an array of any strides to another one.
#pragma once
#include "../cpu/pool.h"

namespace nf {

inline constexpr int kMostAxes = 64;  // NumPy's

// Two arrays of one shape, in bytes. They share no memory.
struct Copy {
    int item = 0;  // bytes of an element: 1, 2, 4 or 8
    int axes;
    int64_t shape[kMostAxes];
    const char* from;
    int64_t from_strides[kMostAxes];
    char* to;
    int64_t to_strides[kMostAxes];
};

// Copies all elements, on all threads. False: go_on ended it, and `to` is unspecified.
bool run_copy(const Copy& copy, const GoOn& go_on);
// The same, on this thread alone. `near`: to memory that lies in the caches, where lines that are written one after
// another are no large power of two apart, so that they do not take each other's place. `from_near`: from such memory.
void copy_here(const Copy& copy, bool near, bool from_near);
// Returns elements begin .. end - 1, in C's order: where they lie, if they follow one another there, or copied to `to`,
// in the caches, on this thread alone. The strides are those of all elements; those of C's order lead to `to`.
const char* part_of(const Copy& whole, int64_t begin, int64_t end, char* to);
// How many elements follow one another in memory as in C's order.
int64_t run_in_order(const Copy& copy);

}  // namespace nf
