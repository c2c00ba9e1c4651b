// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <numpy/ndarraytypes.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

#if defined(__linux__) && defined(MADV_FREE) && defined(MADV_HUGEPAGE)
#define NF_BLOCKS 1
#else
#define NF_BLOCKS 0
#endif

namespace nf {
namespace {

constexpr size_t kLine = 64;

#if NF_BLOCKS

constexpr size_t kPage = size_t{2} << 20, kHeader = kLine;
constexpr size_t kLargePages = size_t{4} << 20;  // bytes of arrays that have large pages
constexpr size_t kUnit = size_t{1} << 16;        // the lengths of others are multiples of it
constexpr size_t kKept = size_t{8} << 20;        // longer ones wait as MADV_FREE

// A mapping, with its length in its first bytes: data begins kHeader bytes on.
struct Block {
    char* begin;
    size_t length;
};

size_t length_for(size_t size, size_t unit) { return (size + kHeader + unit - 1) / unit * unit; }
bool has_large_pages(size_t length) { return length % kPage == 0; }

Block map(size_t length) {
    if (!has_large_pages(length)) {
        void* const place = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return place == MAP_FAILED ? Block{} : Block{static_cast<char*>(place), length};
    }
    void* const place = mmap(nullptr, length + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED) return {};
    char* const first = static_cast<char*>(place);
    const size_t before = -reinterpret_cast<uintptr_t>(first) % kPage;
    if (before) munmap(first, before);
    munmap(first + before + length, kPage - before);
    madvise(first + before, length, MADV_HUGEPAGE);
    return {first + before, length};
}

void unmap(Block block) { munmap(block.begin, block.length); }

// The waiting blocks, the latest last: at most so many, of so many bytes. The system may take large pages meanwhile.
class Waiting {
  public:
    Waiting(size_t most_blocks, size_t most_bytes) : most_blocks_(most_blocks), most_bytes_(most_bytes) {}

    Block take(size_t length) {
        const std::lock_guard lock(mutex);
        for (size_t i = count_; i-- > 0;)
            if (blocks_[i].length == length) return remove(i);
        return {};
    }

    void put(Block block) {
        if (block.length > most_bytes_ || (block.length > kKept && madvise(block.begin, block.length, MADV_FREE) != 0))
            return unmap(block);
        const std::lock_guard lock(mutex);
        while (count_ == most_blocks_ || (count_ && bytes_ + block.length > most_bytes_)) unmap(remove(0));
        blocks_[count_++] = block;
        bytes_ += block.length;
    }

    void unmap_all() {
        const std::lock_guard lock(mutex);
        while (count_) unmap(remove(0));
    }

    std::mutex mutex;

  private:
    Block remove(size_t i) {
        const Block block = blocks_[i];
        bytes_ -= block.length;
        std::copy(blocks_ + i + 1, blocks_ + count_--, blocks_ + i);
        return block;
    }

    static constexpr size_t kMost = 8;
    const size_t most_blocks_, most_bytes_;
    Block blocks_[kMost];
    size_t count_ = 0, bytes_ = 0;
};
// Those without large pages, and those with them. An index finds the list: of `? :`, clang loads from both lists and
// drops one, which ThreadSanitizer takes for a race.
Waiting blocks[] = {{8, size_t{16} << 20}, {4, size_t{1} << 30}};

Waiting& waiting_of(size_t length) { return blocks[has_large_pages(length)]; }

void* allocate_block(size_t length) {
    Block block = waiting_of(length).take(length);
    if (!block.begin) block = map(length);
    if (!block.begin) {  // the waiting blocks may be the missing memory
        for (Waiting& waiting : blocks) waiting.unmap_all();
        block = map(length);
    }
    if (!block.begin) return nullptr;
    std::memcpy(block.begin, &block.length, sizeof block.length);
    return block.begin + kHeader;
}

void* allocate(void*, size_t size) { return allocate_block(length_for(size, size < kLargePages ? kUnit : kPage)); }

void* allocate_zeros(void*, size_t count, size_t size) {
    void* const data = allocate(nullptr, count * size);
    return data ? std::memset(data, 0, count * size) : nullptr;
}

void release(void*, void* data, size_t) {
    if (!data) return;
    Block block{static_cast<char*>(data) - kHeader, 0};
    std::memcpy(&block.length, block.begin, sizeof block.length);
    waiting_of(block.length).put(block);
}

void* resize(void*, void* data, size_t size) {
    void* const larger = allocate(nullptr, size);
    if (!larger || !data) return larger;
    size_t length;
    std::memcpy(&length, static_cast<char*>(data) - kHeader, sizeof length);
    std::memcpy(larger, data, std::min(size, length - kHeader));
    release(nullptr, data, 0);
    return larger;
}

PyDataMem_Handler handler{"noisefuse", 1, {nullptr, allocate, allocate_zeros, resize, release}};

// Reads the documented off switch. Memory goes back where it came from, so the switch cannot change later.
bool is_large(size_t size, size_t large = kLargeArray) {
    static const bool on = [] {
        const char* const wanted = std::getenv("NOISEFUSE_HUGE_PAGES");
        return !wanted || std::strcmp(wanted, "0") != 0;
    }();
    return on && size >= large;
}

#endif

}  // namespace

PyObject* memory_handler([[maybe_unused]] size_t size) {
#if NF_BLOCKS
    static PyObject* const capsule = PyCapsule_New(&handler, "mem_handler", nullptr);
    if (is_large(size)) return capsule;
#endif
    return nullptr;
}

void init_memory() {
#if NF_BLOCKS
    // Tensors are freed without the GIL: a child must not be born while another thread is at the list.
    const auto unlock = [] {
        for (Waiting& waiting : blocks) waiting.mutex.unlock();
    };
    const auto lock = [] {
        for (Waiting& waiting : blocks) waiting.mutex.lock();
    };
    pthread_atfork(lock, unlock, unlock);
#endif
}

void* take_memory(size_t size, [[maybe_unused]] size_t large) {
#if NF_BLOCKS
    if (is_large(size, large))
        return large == kLargeArray ? allocate(nullptr, size) : allocate_block(length_for(size, kPage));
#endif
    // malloc keeps small blocks at hand, aligned_alloc cuts each one anew. The distance to the line lies before it.
    char* const begin = static_cast<char*>(std::malloc(size + kLine));
    if (!begin) return nullptr;
    const size_t distance = kLine - reinterpret_cast<uintptr_t>(begin) % kLine;
    begin[distance - 1] = static_cast<char>(distance);
    return begin + distance;
}

void give_memory_back(void* memory, [[maybe_unused]] size_t size, [[maybe_unused]] size_t large) {
#if NF_BLOCKS
    if (is_large(size, large)) return release(nullptr, memory, size);
#endif
    char* const line = static_cast<char*>(memory);
    std::free(line - line[-1]);
}

}  // namespace nf
