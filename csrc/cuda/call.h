// SPDX-License-Identifier: Apache-2.0
// What a kernel is handed: one plain struct by value, already checked. backends/cuda.py packs the same bytes.
#pragma once
#include "../core/philox.h"
#include "../core/row.h"

namespace nf {
namespace {  // see philox.h

enum DType : int32_t { kF32, kF64, kF16, kBF16, kU8 };
enum Draw : int32_t { kNone, kNormal, kUniform };

constexpr int kThreads = 256;  // of a block
constexpr int kAxes = 8;       // of a window, after merging those that lie together

// The field that one Noise names, and the window of it that the arrays show.
struct Field {
    uint64_t seed, sample;
    const uint64_t* samples;  // ids of the entries of axis 0; null: sample, sample + 1, ...
    const uint32_t* counter;  // added to the step when the kernel runs; null: nothing is
    uint32_t step, stream;
    int64_t start;  // element of the field at the window's first element
    int64_t run;    // elements that are contiguous in the field
    int64_t axes;   // over which runs are counted
    int64_t shape[kAxes], stride[kAxes];
};

// Arrays are taken in pieces: stretches that have one row, one sample, one step, and lie together in the field.
struct Call {
    int64_t pieces, piece;  // how many, and elements of each
    int64_t size;           // elements of a sample
    int64_t segment;        // elements that share a row
    const void* rows;       // (n_rows, 36) float or double
    uint64_t n_rows;
    const int64_t* index;  // row of each segment; null: `row` for all
    int64_t row;
    uint64_t present;  // bit c: column c counts
    const void* in[kSlots];
    void* out[3];
    int32_t in_type[kSlots], out_type;
    int32_t draw, step_by_index, masked, per_sample;
    uint32_t first;       // sample where this launch begins
    uint32_t blocks;      // of the generator, that one piece takes
    const Field* fields;  // on the device, one for each sample, if per_sample; else `field` and the keys of its seed
    Field field;
    RoundKeys keys;
    // The walk: x_t goes to row keep[t] of `out` unless that is -1, t = 0 .. times - 1.
    const int64_t* keep;
    int64_t times, total;  // total: elements of one x_t
    // The loss. Its pieces are the elements of a sample that share one row, wherever they lie in the field; core/loss.h
    // says what chunks are.
    uint32_t pieces_of_sample, chunks;  // chunks of a piece
    double* chunk_sums;                 // null: not wanted
    double* losses;
    const double* weights;   // of the rows; null: all are 1
    const double* upstream;  // the gradient with respect to the losses, each `upstream_step` further; null: g
    int64_t upstream_step;
    double g, n;  // n: elements that a loss is the mean over
};

}  // namespace
}  // namespace nf
