// SPDX-License-Identifier: Apache-2.0
#include "channels_last.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "layouts.h"
#include "memory.h"

namespace nf {
namespace {

constexpr int64_t kBlock = 1 << 15;  // elements of a block; more if there are more than 64 channels
constexpr int64_t kRun = 512;        // a block has a multiple of so many pixels: kernels take fewer more slowly
constexpr int64_t kSlice = 1024;     // pixels that kernels take between two prefetches
constexpr int64_t kLine = 64;        // bytes of a line of the caches
constexpr int64_t kGap = 64;  // elements after each row: rows a power of two apart would share a place in the caches

// A block is some pixels of one sample, in all channels. Its own memory has a row for each channel.
class Block {
  public:
    Block(const Call& call, const Turned& turned, int64_t pixels)
        : whole_(call), call_(call), turned_(turned), row_(pixels + kGap) {}

    // False: there is no memory.
    bool take_memory() {
        int64_t bytes = 0;
        const auto place = [&](Array& a, int bit, unsigned bits, DType type, const void* whole) {
            if (!(bits >> bit & 1)) return;
            a = {bytes_of(type), const_cast<char*>(static_cast<const char*>(whole)), bytes};
            bytes += (a.size * row_ * turned_.channels + kLine - 1) / kLine * kLine;
        };
        for (int s = 0; s < kSlots; ++s) place(in_[s], s, turned_.inputs, call_.in_type[s], call_.in[s]);
        for (int o = 0; o < 3; ++o) place(out_[o], o, turned_.outputs, call_.type_of(o), call_.out[o]);
        if (in_[kX].size == out_[0].size) out_[0].at = in_[kX].at;  // kernels may write to what they read
        return scratch_.take(static_cast<size_t>(bytes));
    }

    void run(int64_t sample, int64_t pixel, int64_t pixels, const Range& range) {
        const int64_t channels = turned_.channels, first = sample * channels * turned_.pixels;
        const int64_t origin = first + pixel * channels;  // the block's first element in channels_last arrays
        for (const Array& a : in_)
            if (a.size) turn(a, a.whole + a.size * origin, channels, 1, scratch_.data + a.at, 1, row_, pixels);
        int64_t to_fetch = origin;
        for (int64_t c = 0; c < channels; ++c) {
            // Kernels count elements in C's order of the whole call, in which a row's elements follow one another, too.
            const int64_t begin = first + c * turned_.pixels + pixel, shift = c * row_ - begin;
            for (int s = 0; s < kSlots; ++s)
                if (in_[s].size) call_.in[s] = scratch_.data + in_[s].at + in_[s].size * shift;
            for (int o = 0; o < 3; ++o)
                if (out_[o].size) call_.out[o] = scratch_.data + out_[o].at + out_[o].size * shift;
            for (int64_t at = 0; at < pixels; at += kSlice) {
                const int64_t n = std::min(kSlice, pixels - at);
                prefetch(to_fetch, n, channels * pixels);
                to_fetch += n;
                range(call_, begin + at, begin + at + n);
            }
        }
        for (const Array& a : out_)
            if (a.size) turn(a, scratch_.data + a.at, 1, row_, a.whole + a.size * origin, channels, 1, pixels);
    }

  private:
    // An array that is turned; size 0: there is none.
    struct Array {
        int64_t size = 0;  // bytes of an element
        char* whole;
        int64_t at;  // its first byte in the block's memory
    };

    // Prefetches n elements of the outputs, and the inputs' elements that lie `ahead` further, in the next block. They
    // come from memory while kernels compute.
    void prefetch(int64_t first, int64_t n, int64_t ahead) const {
        for (const Array& a : out_)
            for (int64_t byte = 0; byte < n * a.size; byte += kLine)
                __builtin_prefetch(a.whole + a.size * first + byte, 1, 2);
        const int64_t next = first + ahead, most = std::min(n, whole_.batch * whole_.size - next);
        for (const Array& a : in_)
            for (int64_t byte = 0; byte < most * a.size; byte += kLine)
                __builtin_prefetch(a.whole + a.size * next + byte, 0, 2);
    }

    // Copies `pixels` pixels of all channels. Steps from a pixel, or a channel, to the next one are in elements.
    void turn(const Array& a, const char* from, int64_t from_pixel, int64_t from_channel, char* to, int64_t to_pixel,
              int64_t to_channel, int64_t pixels) const {
        Copy copy;
        copy.item = static_cast<int>(a.size), copy.axes = 2;
        copy.from = from, copy.to = to;
        copy.shape[0] = pixels, copy.shape[1] = turned_.channels;
        copy.from_strides[0] = a.size * from_pixel, copy.from_strides[1] = a.size * from_channel;
        copy.to_strides[0] = a.size * to_pixel, copy.to_strides[1] = a.size * to_channel;
        copy_here(copy);
    }

    const Call& whole_;
    Call call_;
    const Turned& turned_;
    int64_t row_;  // elements from a channel to the next one
    Array in_[kSlots], out_[3];
    Scratch scratch_;
};

}  // namespace

bool run_turned(const Call& call, const Turned& turned, const Range& range, const GoOn& go_on) {
    const int64_t pixels = std::min(turned.pixels, std::max(kRun, kBlock / turned.channels / kRun * kRun));
    const int64_t blocks = (turned.pixels + pixels - 1) / pixels;  // of a sample
    const int64_t samples = call.batch * call.size / (turned.channels * turned.pixels);
    std::atomic<bool> failed{false};
    const auto body = [&](int64_t begin, int64_t end) {
        Block block(call, turned, pixels);
        if (!block.take_memory()) failed = true;
        for (int64_t b = begin; b < end && !failed; ++b) {
            const int64_t pixel = b % blocks * pixels;
            block.run(b / blocks, pixel, std::min(pixels, turned.pixels - pixel), range);
        }
    };
    const int64_t at_once = std::clamp<int64_t>(samples * blocks / (4 * num_threads()), 1, 8);
    const bool finished = parallel_for(samples * blocks, at_once, body, go_on);
    if (failed) throw std::bad_alloc();
    return finished;
}

}  // namespace nf
