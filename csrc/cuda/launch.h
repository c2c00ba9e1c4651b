// SPDX-License-Identifier: Apache-2.0
// What a kernel is handed, by value: a call, and what the launch of a kernel adds to it. backends/cuda/launches.py
// packs the same bytes (LAUNCH there), and a test compares the two field by field.
#pragma once
#include "../core/call.h"
#include "../core/philox.h"

namespace nf {
namespace {  // see philox.h

constexpr int kThreads = 256;  // in a block

// Arrays are taken in spans: stretches with one row, one sample and one step that are contiguous in the field.
struct Launch {
    Call call;                // without an index all elements have the same `row`
    int64_t spans, span;      // their number, and the elements of each
    int64_t row;              // see call.index
    int64_t total;            // elements of all samples
    uint32_t first;           // the first sample of this launch
    uint32_t blocks;          // the most blocks of the generator in one span
    uint32_t pieces, chunks;  // for a loss: pieces in a sample, and chunks in a piece (core/loss.h)
    Field field;              // for all samples; if each has its own, a loss is launched for one sample at a time
    RoundKeys keys;           // the round keys of the field's seed
};
static_assert(sizeof(Launch) <= 4096, "more than devices take as parameters");

}  // namespace
}  // namespace nf
