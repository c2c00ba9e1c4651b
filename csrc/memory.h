// SPDX-License-Identifier: Apache-2.0
// The memory of outputs.
#pragma once
#include <Python.h>

#include <cstddef>

namespace nf {

// What new arrays of so many bytes shall use (NumPy's PyDataMem_SetHandler), or null: NumPy's own does. That is so for
// small ones, where the system has no such memory, and where NOISEFUSE_HUGE_PAGES=0 is in the environment.
//
// The first touch of a page costs about as much as the noise that is written there. So the memory that an array gives
// back waits for the next one, as MADV_FREE: the system may take it at any time, and until then it needs no first
// touch. Its pages are large ones (2 MiB), and arrays begin with a line of the caches.
PyObject* memory_handler(size_t size);

// Once, before the first use.
void init_memory();

inline constexpr size_t kLargeArray = size_t{1} << 22;  // bytes, from which on it pays

// The same for what is no NumPy array, and memory of the usual kind below that size. Null where there is none.
void* take_memory(size_t size);
void give_memory_back(void* memory, size_t size);

}  // namespace nf
