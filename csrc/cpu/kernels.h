// SPDX-License-Identifier: Apache-2.0
// Each instruction set offers one Kernels to the Python boundary. A range counts elements of the flat arrays, or chunks
// of the loss.
#pragma once
#include "../core/pyramid.h"
#include "../core/race.h"

namespace nf {

namespace {  // see philox.h

// Returns the row of a segment. Row numbers were checked, but other threads may have written there since, so a number
// beyond the table is cut to it. It is read once: a compiler that reads it again after the comparison may get another.
inline int64_t row_of(const Call& s, int64_t segment) {
    const auto i = static_cast<uint64_t>(__atomic_load_n(s.index + segment, __ATOMIC_RELAXED)),
               last = static_cast<uint64_t>(s.n_rows - 1);
    return static_cast<int64_t>(i < last ? i : last);
}

inline double weight_of(const Call& s, int64_t piece) {
    return s.weights ? s.weights[row_of(s, piece * s.piece / s.segment)] : 1.0;
}

}  // namespace

struct Kernels {
    const char* name;
    // If results `stay`, they are read soon, so the caches keep them.
    void (*step)(const Call&, int64_t begin, int64_t end, bool stay);
    void (*walk)(const Call&, int64_t begin, int64_t end);
    // The sums of chunks, and the gradient.
    void (*loss)(const Call&, int64_t begin_chunk, int64_t end_chunk, bool stay);
    // The sums of chunks of arrays that all lie turned, in planes of rows (core/loss.h), and the gradient: elements as
    // they lie, of columns of one chunk's length, which may come in parts of whole groups of 64 columns. sums: the
    // accumulators of the rows.
    void (*turned_loss)(const Call&, int64_t rows, int64_t columns, int64_t begin, int64_t end, void* sums);
    // Does the step first, then the same for what it wrote.
    void (*step_and_loss)(const Call& step, const Call& loss, int64_t begin_chunk, int64_t end_chunk);
    // Clips the first result in place to [low, high]. Its dtype holds both bounds.
    void (*clip)(const Call&, int64_t begin, int64_t end, double low, double high);
    void (*mask)(const Call&, const Masks&, int64_t begin, int64_t end);
    void (*impulse)(const Call&, const Impulses&, int64_t begin, int64_t end);
    void (*rician)(const Call&, const Rician&, int64_t begin, int64_t end);
    void (*poisson)(const Call&, const Poisson&, int64_t begin, int64_t end);
    void (*factors)(const Call&, const Factors&, int64_t begin, int64_t end);  // counts places
    void (*iso)(const Call&, const Iso&, int64_t begin, int64_t end);          // counts pixels, as the next one
    void (*lightness)(const Iso&, int64_t begin, int64_t end);
    void (*enlarged)(const Pyramid&, int64_t begin, int64_t end);  // counts rows
    // The float32 normals of legacy.TorchCPU, n of them, a multiple of 16, from as many words.
    void (*torch_normals)(const uint64_t* words, float* out, int64_t n);
    // Reads `columns` runs of `rows` elements, `step` elements apart, and writes their transpose: rows `to_step` apart.
    // Multiples of 8 columns and 4 rows. Null: this instruction set gains nothing by it.
    void (*turn)(const float* from, int64_t step, float* to, int64_t to_step, int64_t rows, int64_t columns);
    RaceKernel* race;  // of one row of categories
};

}  // namespace nf
