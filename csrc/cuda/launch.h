// SPDX-License-Identifier: Apache-2.0
// What a kernel is handed, by value: a call, and what the launch of a kernel adds to it. backends/cuda/launches.py
// packs the same bytes (LAUNCH there), and a test compares the two field by field.
#pragma once
#include "../core/call.h"
#include "../core/philox.h"

namespace nf {
namespace {  // see philox.h

constexpr int kThreads = 256;  // of a block

// Arrays are taken in spans: stretches that have one row, one sample and one step, and lie together in the field.
struct Launch {
    Call call;                // without an index all have the same `row`
    int64_t spans, span;      // how many, and elements of each
    int64_t row;              // see call.index
    int64_t total;            // elements of all samples
    uint32_t first;           // sample where this launch begins
    uint32_t blocks;          // of the generator, that one span takes at most
    uint32_t pieces, chunks;  // of a loss: pieces of a sample, and chunks of a piece (core/loss.h)
    Field field;              // of all samples; where each has its own, a loss is launched for one sample at a time
    RoundKeys keys;           // of its seed
};
static_assert(sizeof(Launch) <= 4096, "more than devices take as parameters");

}  // namespace
}  // namespace nf
