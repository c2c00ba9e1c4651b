// SPDX-License-Identifier: Apache-2.0
// A call: the argument of every kernel, on CPUs and devices alike, already checked. call/packed.py packs the same
// bytes, and a test compares the two field by field.
#pragma once
#include "row.h"
#include "transition.h"

namespace nf {

// call/packed.py names them in this order.
enum class DType : int32_t { f32, f64, f16, bf16, u8, u16 };
enum class Draw : int32_t { none, normal, uniform, words };

// The bytes of an element.
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
constexpr bool is_level(DType type) { return type == DType::u8 || type == DType::u16; }  // whole numbers

constexpr int kAxes = 21;  // of a window, after contiguous axes are merged: see window_runs of call/description.py

// The Gaussian field of one Noise's key, and the arrays' window of it.
struct Field {
    uint64_t seed, sample;
    const uint64_t* samples;  // ids of the entries of axis 0; null: sample, sample + 1, ...
    const uint32_t* counter;  // on a device: added to the step when the kernel runs; or null
    uint32_t step, stream;
    int64_t start;  // the window's first element in the field
    int64_t run;    // elements that are contiguous in the field; without a window the whole sample
    int64_t axes;   // that count runs, with the window's lengths and the field's strides
    int64_t shape[kAxes], stride[kAxes];
};

// One pass over `batch` samples of `size` elements: a row of numbers for each element, and its noise. The fields of
// walks and losses follow.
struct Call {
    int64_t batch, size;
    const void* rows;  // (n_rows, 36) float or double
    int64_t n_rows;
    uint64_t active;       // bit c: column c is multiplied; kTimesClean, kTimesRoot
    const int64_t* index;  // the row of each segment of `segment` elements
    int64_t segment;
    int64_t period;     // or, beyond 0: the elements of a sample take the next `period` rows of index in turn
    int64_t by_column;  // whether the rows lie column by column, (36, n_rows): on CPUs alone
    const void* in[kSlots];
    void* out[3];
    DType in_type[kSlots];
    DType type;      // the outputs' (a loss: pred's); f64 means double arithmetic, others float
    DType out_type;  // the first output's: the same, or integer levels
    Draw draw;
    int32_t step_by_index;     // whether the step word is field.step + index
    int32_t masked;            // the one output is out + (aux1 if lo <= D <= hi else 0), D without its clamp
    int32_t field_per_sample;  // whether each sample has a field, or all share one
    int32_t by_level;          // or the row of an element is its x, a byte; only k and z of `out` count then
    const Field* fields;
    const Transition* transitions;  // words turn x, a byte, into another one; (n_rows, 256), one table for each row

    // The random walk x_t = a_t x_(t-1) + s_t z_t, t = 0 .. times - 1, with x0 in in[kX], and a_t and s_t in the
    // columns x and z of row t. x_t goes to row keep[t] of out[0], or nowhere if that is -1.
    const int64_t* keep;
    int64_t times;

    // The loss (docs/loss.md): the linear combination `out` is the residual pred - target, pred is m1; out[0] is the
    // gradient with respect to pred, or null.
    int64_t piece;           // elements of a sample that share a row: pieces divide the sample evenly
    const double* weights;   // one for each row; null: all are 1
    const double* upstream;  // loss gradients, with the stride `upstream_step`; null means the number g
    int64_t upstream_step;
    double g, n;     // n: the number of elements in a loss's mean
    double* losses;  // `n_losses` of them, one for each sample or their sum; null: not wanted
    int64_t n_losses;
    double* chunk_sums;  // one for each chunk, or null

    constexpr DType type_of(int output) const { return output == 0 ? out_type : type; }
    constexpr bool row_for_each() const { return period || by_level; }
    // The place of a number in `rows`.
    constexpr int64_t place_of(int64_t row, int column) const {
        return by_column ? column * n_rows + row : kColumns * row + column;
    }
};

// rint(2^32 p): from 2^52 on, numbers have a last place of 1.
constexpr double count_of(double p) { return (p * 0x1p32 + 0x1p52) - 0x1p52; }

// What q_mask adds to a call, which says where the words lie in the field: a token becomes the mask where its word lies
// below rint(2^32 p).
struct Masks {
    const void* tokens;
    void* out;
    uint8_t* masked;       // whether each token became the mask
    const uint8_t* where;  // tokens that may become it; null: all
    const double* p;       // from 0 to 1, one for each segment of `segment` tokens
    int64_t segment;
    uint64_t mask;
    uint64_t vocabulary;  // beyond 0: a token drawn from so many, floor(u vocabulary / 2^64) of stream 15, in its place
    int32_t bytes;        // of a token
    int32_t complement;   // whether the others become it
};

// What augment.impulse adds to a call, which says where the words lie in the field: with its word w a place becomes
// `high` where w < rint(2^32 amount salt), else `low` where w < rint(2^32 amount).
struct Impulses {
    const void* x;
    void* out;
    const double* amount;  // one for each segment of `segment` places
    int64_t segment;
    int64_t channels;  // of a place, which share its word
    double salt, low, high;
    DType type;
    int32_t random;  // whether all such places become values from `low` to `high`, by their words
    int32_t planes;  // whether the places of a channel follow one another, not the channels of a place
    int32_t padding;
};

// What augment.rician adds to a call, which says where the normals lie in the field: out = sqrt((x + std z_0)^2 +
// (std z_1)^2 + ..). Normal d of an element lies `apart` elements after normal d - 1.
struct Rician {
    const void* x;
    void* out;
    const double* std;  // one for each segment of `segment` elements
    int64_t segment;
    int64_t draws, apart;
    DType type;
    int32_t padding;
};

// What augment.poisson adds to a call, which says where the words lie in the field: out = top (N / peak)^(1 / gamma), N
// the Poisson number of peak (x / top)^gamma at the word. Bytes have a peak of at most kPhotons.
struct Poisson {
    const void* x;
    void* out;
    const double* peak;  // one for each segment of `segment` elements
    int64_t segment;
    double gamma, top;
    const double* light;  // of bytes: (n / 510)^gamma, n = 0 .. 511; null: gamma is 1
    DType type;
    int32_t padding;
};

constexpr int kPhotons = 16;  // fewer of one level of bytes are more likely than 2^-33, so that each number has a word

// The tables of augment.poisson of bytes, one for each level (docs/noise.md).
struct PoissonTables {
    const double *mean, *greatest;  // of a level; the greatest count that gives this byte or a smaller one, in order
    Transition* tables;
};

// What MultiplicativeNoise adds to a call, which says where the uniform numbers lie in the field: out = x (low + range
// u), of floats clipped to [0, 1].
struct Factors {
    const void* x;
    void* out;
    int64_t places, channels;  // channels: the elements of a place, at most 256
    float low, range;
    DType type;
    int32_t repeat;  // whether the channels have a factor each, the same in all places; else each place has one
};

constexpr int64_t kCounts = 256;  // of a Poisson distribution whose mean is at most 100

// What ISONoise adds to a call, which says where the noise of RGB pixels lies in the field.
struct Iso {
    const void* x;
    void* out;
    uint64_t* sums;         // of twice the lightness of each frame, and of its square, in units of 2^-16
    const uint32_t* last;   // kCounts of each frame: its Poisson number is how many lie below a word of stream 7
    int64_t counts, frame;  // so many can lie below one; the pixels of a frame
    double turn, intensity, top;
    DType type;
};

// The generator's raw words: of each block four words of a counter, and two of a key.
struct Philox {
    const uint32_t *counter, *key;
    uint32_t* out;
    int64_t blocks;
};

// Normals of legacy.TorchCPU, a multiple of 16: float from as many words, or double from twice as many.
struct TorchNormals {
    const uint64_t* words;
    void* out;
    int64_t n;
    DType type;
    int32_t padding;
};

}  // namespace nf
