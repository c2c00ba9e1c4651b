// SPDX-License-Identifier: Apache-2.0
// The loss: residuals tile by tile, as a step's row gives them, but added up instead of stored (or also stored, times a
// factor: that is the gradient). The noise that they are compared with lives as long as its tile.
#pragma once
#include "../core/loss.h"
#include "tile_noise.h"
#include "tile_rows.h"

namespace nf {
namespace {

// Takes the residuals of one element after another.
template <class Real>
class Residuals {
  public:
    Residuals(const Loss& loss, int64_t chunk)
        : loss_(loss),
          chunk_(chunk),
          piece_(chunk / loss.chunks),
          in_piece_(chunk % loss.chunks * kLossChunk),
          pieces_(loss.residual.batch * loss.residual.size / loss.piece),
          direct_(loss.residual.type == kOwn<Real>) {
        begin_chunk();
    }

    void take(const Real* r, int64_t at, int n) {
        const Step& s = loss_.residual;
        Real* gradient = direct_ ? static_cast<Real*>(s.out[0]) + at : staged_;
        for (int done = 0; done < n;) {
            const int size = static_cast<int>(least(n - done, left_));
            if (s.out[0]) multiply(gradient + done, r + done, size);
            if (loss_.sums) add(r + done, size);
            done += size;
            left_ -= size;
            if (left_ == 0) end_chunk();
        }
        if (s.out[0] && !direct_) store_as(s.out[0], s.type, at, gradient, n);
    }

  private:
    const Loss& loss_;
    int64_t chunk_, piece_, in_piece_, pieces_;  // in_piece: the chunk's first element
    int64_t length_, left_;                      // of the chunk
    bool direct_;
    Real factor_{};
    SquareSum<Lane, kWidth<Real>, Real> squares_;
    alignas(64) Real staged_[kTile];

    void begin_chunk() {
        length_ = left_ = least(kLossChunk, loss_.piece - in_piece_);
        if (loss_.residual.out[0] && piece_ < pieces_) factor_ = static_cast<Real>(loss_.factor[piece_]);
    }

    // Samples of a few elements come by the million: those that lie whole in the tile take a shorter way.
    void add(const Real* r, int n) {
        if (n == length_ && n <= kAccumulators) {
            loss_.sums[chunk_] = static_cast<double>(sum_of_few(r, n));
            return;
        }
        squares_.add(r, n);
        if (n == left_) loss_.sums[chunk_] = static_cast<double>(squares_.finish());
    }

    void end_chunk() {
        ++chunk_;
        in_piece_ += length_;
        if (in_piece_ == loss_.piece) ++piece_, in_piece_ = 0;
        begin_chunk();
    }

    void multiply(Real* to, const Real* r, int n) const {
        constexpr int W = kWidth<Real>;
        const auto factor = Lane::splat(factor_);
        int i = 0;
        for (; i + W <= n; i += W) Lane::store(to + i, Lane::mul(factor, Lane::load(r + i)));
        for (; i < n; ++i) to[i] = factor_ * r[i];
    }
};

// The chunks begin .. end - 1.
template <class Real>
void loss_range(const Loss& loss, int64_t begin_chunk, int64_t end_chunk) {
    const Step& s = loss.residual;
    const auto first_element = [&](int64_t chunk) {
        return chunk / loss.chunks * loss.piece + chunk % loss.chunks * kLossChunk;
    };
    const int64_t begin = first_element(begin_chunk), end = first_element(end_chunk);
    Rows<Real> rows(s);
    Arrays<Real> arrays(s);
    Residuals<Real> residuals(loss, begin_chunk);
    alignas(64) Real r[kTile];
    const auto tile = [&](int64_t at, int size) {
        arrays.load(at, size);
        rows.apply(r, size, rows.out[0], arrays.value);
        residuals.take(r, at, size);
    };
    if (s.draw == Draw::none) {
        for (int64_t at = begin; at < end;) {
            const int size = static_cast<int>(least(kTile, end - at));
            rows.select(at / s.segment, s.segment - at % s.segment, size);
            tile(at, size);
            at += size;
        }
        return;
    }
    Cursor cursor(s, begin);
    Noise<Real> noise;
    Plan plan;
    uint64_t seed = cursor.field().seed;
    RoundKeys keys(seed);
    const auto noisy_tile = [&](int64_t at) {
        arrays.value[kZ] = noise.fill(plan, keys, s.draw, 0, [&](int group) { arrays.prefetch(at, group); });
        tile(at, plan.size);
    };
    while (cursor.at < end) {
        if (cursor.field().seed != seed) keys = RoundKeys(seed = cursor.field().seed);
        const int64_t at = cursor.at, segment = cursor.segment, segment_left = cursor.segment_left;
        const int64_t stretch = least(least(cursor.uniform_left(), segment_left), end - at);
        if (stretch < kTile / 2) {
            plan_short_runs<Real>(plan, cursor, end);
            rows.select(segment, segment_left, plan.size);
            noisy_tile(at);
            continue;
        }
        plan_run(plan, cursor);
        rows.select(segment, segment_left, 1);
        for (int64_t done = 0; done < stretch; done += plan.size) {
            plan.take(cursor.element + done, stretch - done);
            noisy_tile(at + done);
        }
        cursor.advance(stretch);
    }
}

}  // namespace
}  // namespace nf
