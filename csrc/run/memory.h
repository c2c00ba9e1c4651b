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
// waits for the next one. From 4 MiB on its pages are large (2 MiB). Beyond 8 MiB it waits as MADV_FREE: the system may
// take it at any time, and until then it needs no first touch. Arrays begin on a cache line.
PyObject* memory_handler(size_t size);

// Called once, before the first use.
void init_memory();

inline constexpr size_t kLargeArray = size_t{1} << 18;  // bytes; malloc seldom gives smaller ones to the system

// The same for memory outside NumPy's arrays, and ordinary memory below the size `large`. Null if there is none.
void* take_memory(size_t size, size_t large = kLargeArray);
void give_memory_back(void* memory, size_t size, size_t large = kLargeArray);

// Memory for the length of a call. It may be a large page for few bytes: malloc gives some arrays back to the system
// each time, and their first touch takes ten times the copy.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() {
        if (data) give_memory_back(data, size_, kLarge);
    }

    bool take(size_t size) {
        size_ = size;
        return (data = static_cast<char*>(take_memory(size, kLarge)));
    }

    char* data = nullptr;

  private:
    static constexpr size_t kLarge = size_t{1} << 17;
    size_t size_ = 0;
};

}  // namespace nf
