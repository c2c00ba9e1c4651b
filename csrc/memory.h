// SPDX-License-Identifier: Apache-2.0
// The memory of large NumPy outputs.
#pragma once
#include <Python.h>

namespace nf {

// What new arrays shall use (NumPy's PyDataMem_SetHandler), or null where this system offers no better than NumPy's
// own.
//
// The first touch of a page costs about as much as the noise that is written there. So the memory that an array gives
// back waits for the next one, as MADV_FREE: the system may take it at any time, and until then it needs no first
// touch. Its pages are large ones (2 MiB), and arrays begin with a line of the caches.
PyObject* memory_handler();

inline constexpr Py_ssize_t kLargeArray = Py_ssize_t{1} << 22;  // bytes, from which on it pays

}  // namespace nf
