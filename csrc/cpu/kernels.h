// SPDX-License-Identifier: Apache-2.0
// What the Python boundary hands to the kernels: plain structs, already checked. Each instruction set offers one
// Kernels.
#pragma once
#include "../core/row.h"

namespace nf {

enum class DType : int { f32, f64, f16, bf16, u8 };
enum class Draw : int { none, normal, uniform };

// The Gaussian field that one Noise names, and the window of it that the arrays show.
struct Field {
    uint64_t seed, sample;
    const uint64_t* samples;  // ids of the entries of axis 0; null: sample, sample + 1, ...
    uint32_t step, stream;
    int64_t start;  // element of the field at the window's first element
    int64_t run;    // elements that are contiguous in the field; the whole sample where there is no window
    int ndim;       // axes over which runs are counted, with the window's lengths and the field's strides
    int64_t shape[32], stride[32];  // at most 21: see window_runs of backends/call.py
};

struct Step {
    int64_t size, batch;   // elements of a sample; samples
    const int64_t* index;  // row of each segment of `segment` elements
    int64_t segment;
    const void* rows;  // (n_rows, 36) float or double
    int64_t n_rows;
    uint64_t present;  // bit c: column c counts
    DType type;        // of the outputs; double arithmetic for f64, float otherwise
    const void* in[kSlots];
    DType in_type[kSlots];
    void* out[3];
    Draw draw;
    bool step_by_index;   // the step word is field.step + index
    const Field* fields;  // one, or one for each sample
    bool field_per_sample;
    bool masked;  // the one output is out + (aux1 if lo <= D <= hi else 0), D without its clamp
};

struct Walk {
    Step first;           // the step 0: x0, its type, the rows (columns x and z of out) and the field
    int64_t times;        // T
    const int64_t* keep;  // (T): where x_t goes, as a row of `out`, or -1
};

// The squares of the residuals of each chunk, added up, and the residuals times a factor (docs/loss.md).
struct Loss {
    Step residual;         // its form `out` is pred - target, pred is m1; out[0]: the gradient, of type pred's, or null
    int64_t piece;         // elements of a sample that share one row: they divide the sample evenly
    int64_t chunks;        // of a piece; the last one may be short
    const double* factor;  // of the gradient, for each piece
    double* sums;          // one for each chunk, or null
};

struct Kernels {
    const char* name;
    void (*step)(const Step&, int64_t begin, int64_t end);
    void (*walk)(const Walk&, int64_t begin, int64_t end);
    void (*loss)(const Loss&, int64_t begin_chunk, int64_t end_chunk);
};

}  // namespace nf
