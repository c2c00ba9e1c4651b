// SPDX-License-Identifier: Apache-2.0
// Sums of squares in one fixed order, so that a loss has the same bits for every number of threads and width of vectors
// (docs/loss.md). Element i of a chunk goes to accumulator i mod 64. The 64 are then halved: 32 sums j, j + 32; 16 sums
// j, j + 16; and so on. Missing elements of the last 64 count as zeros: squares are never -0, so zeros change no sum.
#pragma once
#include <cstdint>

namespace nf {
namespace {  // see philox.h

constexpr int kAccumulators = 64;
constexpr int64_t kLossChunk = 4096;  // elements
// The chunks of a piece; the last one may be short.
constexpr int64_t chunks_of(int64_t piece) { return (piece + kLossChunk - 1) / kLossChunk; }
// The chunk's first element in the batch.
constexpr int64_t first_of_chunk(int64_t piece, int64_t chunk) {
    return chunk / chunks_of(piece) * piece + chunk % chunks_of(piece) * kLossChunk;
}
// The chunk that begins at an element.
constexpr int64_t chunk_at(int64_t piece, int64_t element) {
    return element / piece * chunks_of(piece) + element % piece / kLossChunk;
}

// One halving: sum[j] + sum[j + half] for all j < half, or for each `step`-th of them from `first` on.
template <class Real>
constexpr void add_half(Real* sum, int half, int first = 0, int step = 1) {
    for (int j = first; j < half; j += step) sum[j] = sum[j] + sum[j + half];
}

// Halves until one is left; n is a power of two. (In a loop over all halves the sums would leave their registers.)
template <int n, class Real>
constexpr Real halve(Real* sum) {
    if constexpr (n > 1) {
        add_half(sum, n / 2);
        return halve<n / 2>(sum);
    }
    return sum[0];
}

// W: how many Reals a vector of this lane type holds.
template <class Lane, int W, class Real>
class SquareSum {
  public:
    // Returns the sum of a chunk of n elements, a multiple of 64, and of 64 more: the rest of the chunk, and zeros.
    static Real of_chunk(const Real* r, int n, const Real* rest) {
        constexpr int vectors = kAccumulators / W;
        decltype(Lane::load(r)) sum[vectors];
        const auto add = [&](const Real* from) {
            for (int v = 0; v < vectors; ++v)
                sum[v] = Lane::fma(Lane::load(from + v * W), Lane::load(from + v * W), sum[v]);
        };
        for (int v = 0; v < vectors; ++v) sum[v] = Lane::splat(Real{0});
        for (int i = 0; i + kAccumulators <= n; i += kAccumulators) add(r + i);
        add(rest);
        for (int half = vectors / 2; half > 0; half /= 2)
            for (int v = 0; v < half; ++v) sum[v] = Lane::add(sum[v], sum[v + half]);
        alignas(64) Real lanes[W];
        Lane::store(lanes, sum[0]);
        return halve<W>(lanes);
    }

    // Adds the squares of the next n elements of the chunk.
    void add(const Real* r, int n) {
        while (n > 0) {
            int taken = n / kAccumulators * kAccumulators;
            if (n_held_ == 0 && taken > 0) {
                add_groups([r](int i) { return Lane::load(r + i); }, taken);
            } else {
                taken = n < kAccumulators - n_held_ ? n : kAccumulators - n_held_;
                __builtin_memcpy(held_ + n_held_, r, sizeof(Real) * static_cast<uint64_t>(taken));
                n_held_ += taken;
                if (n_held_ == kAccumulators) add_held();
            }
            r += taken;
            n -= taken;
        }
    }

    // The same for whole groups of 64 after whole groups. vector_at(i) has the elements from i on.
    template <class VectorAt>
    void add_groups(const VectorAt& vector_at, int n) {
        // Uses eight vectors of accumulators at a time: no instruction set has fewer registers.
        constexpr int vectors = kAccumulators / W < 8 ? kAccumulators / W : 8;
        for (int first = 0; first < kAccumulators; first += vectors * W) {
            decltype(Lane::load(sum_)) sum[vectors];
            for (int v = 0; v < vectors; ++v) sum[v] = Lane::load(sum_ + first + v * W);
            for (int i = first; i < n; i += kAccumulators)
                for (int v = 0; v < vectors; ++v) {
                    const auto x = vector_at(i + v * W);
                    sum[v] = Lane::fma(x, x, sum[v]);
                }
            for (int v = 0; v < vectors; ++v) Lane::store(sum_ + first + v * W, sum[v]);
        }
    }

    // Returns the sum of the chunk, and resets it to 0 for the next one.
    Real finish() {
        if (n_held_ > 0) {
            for (int i = n_held_; i < kAccumulators; ++i) held_[i] = 0;
            add_held();
        }
        for (int half = kAccumulators / 2; half >= W; half /= 2)
            for (int j = 0; j < half; j += W)
                Lane::store(sum_ + j, Lane::add(Lane::load(sum_ + j), Lane::load(sum_ + j + half)));
        const Real total = halve<W>(sum_);
        for (Real& sum : sum_) sum = 0;
        return total;
    }

  private:
    alignas(64) Real sum_[kAccumulators] = {}, held_[kAccumulators];  // held: a part of the next 64 elements
    int n_held_ = 0;

    void add_held() {
        add_groups([this](int i) { return Lane::load(held_ + i); }, kAccumulators);
        n_held_ = 0;
    }
};

// The sum of one sample: the sum of its pieces (the elements that share one t) in order. A piece is the sum of its
// chunks in order, times its weight. It begins as zeros, and takes the chunks in any number of parts.
template <class Lane>
struct SampleSum {
    double total, piece;     // of the whole pieces, and of the chunks of the unfinished one
    int64_t pieces, chunks;  // their numbers

    // Adds the next n chunks; `of_piece`: the number of chunks in a piece; weight(p): the weight of the sample's piece
    // p.
    template <class Weight>
    constexpr void add(const double* chunk_sums, int64_t n, int64_t of_piece, Weight weight) {
        while (n > 0) {
            const int64_t taken = n < of_piece - chunks ? n : of_piece - chunks;
            for (int64_t c = 0; c < taken; ++c) piece = piece + chunk_sums[c];
            chunk_sums += taken;
            n -= taken;
            if ((chunks += taken) < of_piece) return;
            total = Lane::fma(weight(pieces++), piece, total);
            piece = 0;
            chunks = 0;
        }
    }
};

// The factor of a residual in the gradient, before it is rounded to the arithmetic. g is the gradient with respect to
// the loss, n the number of elements in its mean.
constexpr double gradient_factor(double weight, double g, double n) { return 2.0 * weight * g / n; }

}  // namespace
}  // namespace nf
