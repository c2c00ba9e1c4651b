// SPDX-License-Identifier: Apache-2.0
// A call: what every kernel is handed, on CPUs and devices alike, already checked. call/packed.py packs the same
// bytes (CALL and FIELD there), and a test compares the two field by field.
#pragma once
#include "row.h"
#include "transition.h"

namespace nf {

// call/packed.py names them in this order.
enum class DType : int32_t { f32, f64, f16, bf16, u8, u16 };
enum class Draw : int32_t { none, normal, uniform, words };

// Of an element.
constexpr int bytes_of(DType type) {
    switch (type) {
        case DType::f64:
            return 8;
        case DType::f32:
            return 4;
        case DType::f16:
        case DType::bf16:
        case DType::u16:
            return 2;
        case DType::u8:
            return 1;
    }
    return 0;
}
constexpr bool is_half(DType type) { return type == DType::f16 || type == DType::bf16; }
constexpr bool is_level(DType type) { return type == DType::u8 || type == DType::u16; }  // a whole number

constexpr int kAxes = 21;  // of a window, after merging those that lie together: see window_runs of call/description.py

// The Gaussian field that one Noise names, and the window of it that the arrays show.
struct Field {
    uint64_t seed, sample;
    const uint64_t* samples;  // ids of the entries of axis 0; null: sample, sample + 1, ...
    const uint32_t* counter;  // on a device: added to the step when the kernel runs; null: nothing is
    uint32_t step, stream;
    int64_t start;  // element of the field at the window's first element
    int64_t run;    // elements that are contiguous in the field; the whole sample where there is no window
    int64_t axes;   // over which runs are counted, with the window's lengths and the field's strides
    int64_t shape[kAxes], stride[kAxes];
};

// One pass over `batch` samples of `size` elements: a row of numbers for each element, and its noise. Then what walks
// and losses add.
struct Call {
    int64_t batch, size;
    const void* rows;  // (n_rows, 36) float or double
    int64_t n_rows;
    uint64_t active;       // bit c: column c is multiplied; kTimesClean, kTimesRoot
    const int64_t* index;  // row of each segment of `segment` elements
    int64_t segment;
    int64_t period;  // or, beyond 0: the elements of a sample take the next `period` rows of index in turn
    const void* in[kSlots];
    void* out[3];
    DType in_type[kSlots];
    DType type;      // of the outputs (of a loss: of pred); double arithmetic for f64, float otherwise
    DType out_type;  // of the first of them: the same, or levels
    Draw draw;
    int32_t step_by_index;     // whether the step word is field.step + index
    int32_t masked;            // the one output is out + (aux1 if lo <= D <= hi else 0), D without its clamp
    int32_t field_per_sample;  // whether there is a field for each sample, or one for all
    int32_t by_level;          // or the row of an element is its x, a byte; only k and z of `out` count then
    const Field* fields;
    const Transition* transitions;  // of words: x, a byte, becomes another; (n_rows, 256), one table for each row

    // The random walk x_t = a_t x_(t-1) + s_t z_t, t = 0 .. times - 1, with x0 in in[kX], a_t and s_t the columns x and
    // z of row t: x_t goes to row keep[t] of out[0], or nowhere where that is -1.
    const int64_t* keep;
    int64_t times;

    // The loss (docs/loss.md): the linear combination `out` is the residual pred - target, pred is m1; out[0] is the
    // gradient with respect to pred, or null.
    int64_t piece;           // elements of a sample that share one row: they divide the sample evenly
    const double* weights;   // one for each row; null: all are 1
    const double* upstream;  // the gradient with respect to the losses, each `upstream_step` further; null: g
    int64_t upstream_step;
    double g, n;     // n: elements that a loss is the mean over
    double* losses;  // `n_losses` of them, one for each sample or their sum; null: not wanted
    int64_t n_losses;
    double* chunk_sums;  // one for each chunk, or null

    constexpr DType type_of(int output) const { return output == 0 ? out_type : type; }
    constexpr bool row_for_each() const { return period || by_level; }
};

}  // namespace nf
