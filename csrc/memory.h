// SPDX-License-Identifier: Apache-2.0
// The memory of outputs.
#pragma once
#include <Python.h>

#include <cstddef>

namespace nf {

// Returns the handler for new arrays of so many bytes (NumPy's PyDataMem_SetHandler), or null for NumPy's own. It is
// null for small arrays, if the system has no such memory, and with NOISEFUSE_HUGE_PAGES=0 in the environment.
//
// The first touch of a page costs about as much as the noise that is written there. So the memory of a freed array
// waits for the next one, as MADV_FREE: the system may take it at any time, and until then it needs no first touch. Its
// pages are large (2 MiB), and arrays begin on a cache line.
PyObject* memory_handler(size_t size);

// Called once, before the first use.
void init_memory();

inline constexpr size_t kLargeArray = size_t{1} << 22;  // bytes; smaller arrays do not gain

// The same for memory outside NumPy's arrays, and ordinary memory below that size. Null if there is none.
void* take_memory(size_t size);
void give_memory_back(void* memory, size_t size);

}  // namespace nf
