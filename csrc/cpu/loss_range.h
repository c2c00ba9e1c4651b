// SPDX-License-Identifier: Apache-2.0
// The loss: residuals tile by tile, as a step's row gives them, but added up instead of stored (or also stored, times a
// factor: that is the gradient). The noise that they are compared with lives as long as its tile.
#pragma once
#include "../core/loss.h"
#include "drawing.h"
#include "tile_registers.h"

namespace nf {
namespace {

// Takes the residuals of one element after another.
template <class Real>
class Residuals {
  public:
    Residuals(const Call& call, const Arrays<Real>& arrays, int64_t chunk)
        : s(call), arrays_(arrays), chunk_(chunk), in_piece_(chunk % chunks_of(s.piece) * kLossChunk) {
        begin_chunk();
    }

    void take(const Real* r, int64_t at, int n) {
        if (s.out[0]) store_gradient(r, at, n);
        for (int done = 0; s.chunk_sums && done < n;) {
            const int size = static_cast<int>(least(n - done, left_));
            add(r + done, size);
            done += size;
        }
    }

    int64_t left() const { return left_; }  // of the chunk

    // Of a chunk's whole groups of 64, without a gradient: vector_at(i) has those from element i on.
    template <class VectorAt>
    void take_groups(const VectorAt& vector_at, int n) {
        squares_.add_groups(vector_at, n);
        if (left_ -= n; left_ == 0) end_chunk(squares_.finish());
    }

  private:
    const Call& s;
    const Arrays<Real>& arrays_;
    int64_t chunk_, in_piece_;  // the chunk and its first element
    int64_t length_, left_;     // of the chunk
    SquareSum<Lane, kWidth<Real>, Real> squares_;
    alignas(64) Real staged_[kTile];

    void begin_chunk() { length_ = left_ = least(kLossChunk, s.piece - in_piece_); }

    // Samples of a few elements come by the million: those that lie whole in the tile take a shorter way.
    void add(const Real* r, int n) {
        const bool few = n == length_ && n <= kAccumulators;
        if (!few) squares_.add(r, n);
        if (left_ -= n; left_ == 0) end_chunk(few ? sum_of_few(r, n) : squares_.finish());
    }

    void end_chunk(Real sum) {
        s.chunk_sums[chunk_++] = static_cast<double>(sum);
        in_piece_ += length_;
        if (in_piece_ == s.piece) in_piece_ = 0;
        begin_chunk();
    }

    void store_gradient(const Real* r, int64_t at, int n) {
        const bool direct = arrays_.direct[0], nontemporal = arrays_.nontemporal(0, at);
        Real* gradient = direct ? static_cast<Real*>(s.out[0]) + at : staged_;
        int64_t piece = at / s.piece, left = s.piece - at % s.piece;
        for (int done = 0; done < n; ++piece, left = s.piece) {
            const int size = static_cast<int>(least(n - done, left));
            multiply(gradient + done, r + done, size, static_cast<Real>(factor_of(piece)),
                     direct && nontemporal && done == 0);
            done += size;
        }
        if (!direct) store_as(s.out[0], s.type, at, gradient, n, nontemporal);
    }

    double factor_of(int64_t piece) const {
        const double g = s.upstream ? s.upstream[piece * s.piece / s.size * s.upstream_step] : s.g;
        return gradient_factor(weight_of(s, piece), g, s.n);
    }

    // `nontemporal`: `to` is aligned to a vector and written past the caches.
    static void multiply(Real* to, const Real* r, int n, Real factor, bool nontemporal) {
        constexpr int W = kWidth<Real>;
        int i = 0;
        for (; i + W <= n; i += W) {
            const auto product = Lane::mul(Lane::splat(factor), Lane::load(r + i));
            nontemporal ? Lane::store_nontemporal(to + i, product) : Lane::store(to + i, product);
        }
        for (; i < n; ++i) to[i] = factor * r[i];
    }
};

// The residuals of whole groups, which are arrays of one type in a row of one of these shapes, in registers.
constexpr uint64_t kResidualShapes[] = {
    shape({}, {kZ, kM1, kX}),                             // of a step's result from its mean
    shape({}, {kZ, kM2, kM1, kX}), shape({}, {kM1, kX}),  // of two model outputs
};

template <class Real, DType In, uint64_t shape>
[[gnu::flatten]] void groups_on_arrays(Residuals<Real>& residuals, const Rows<Real>& rows, int64_t at, int n) {
    const RegisterRow<Real, In, shape> row(rows, rows.s.in);
    residuals.take_groups(
        [&](int i) {
            Vector<Real> r[1], z{};
            if constexpr (row.reads(kZ)) z = load_lanes<In>(row.array[kZ], at + i);
            row.add_up(at + i, z, r);
            return r[0];
        },
        n);
}

template <class Real>
using OnGroups = decltype(&groups_on_arrays<Real, kOwn<Real>, kResidualShapes[0]>);

template <class Real, DType In>
OnGroups<Real> on_groups(uint64_t shape_of_call) {
    return for_shape<kResidualShapes, OnGroups<Real>>(
        shape_of_call, []<uint64_t shape>() -> OnGroups<Real> { return groups_on_arrays<Real, In, shape>; });
}

// Which of these does a call, or null.
template <class Real>
OnGroups<Real> on_groups(const Rows<Real>& rows, const Arrays<Real>& arrays) {
    const Call& s = rows.s;
    if (s.draw != Draw::none || s.out[0] || !s.chunk_sums || arrays.n_in == 0) return nullptr;
    const uint64_t shape = combination_of(s.active, kAffine[0]);
    const DType in = s.in_type[arrays.slots[0]];
    for (int i = 0; i < arrays.n_in; ++i)
        if (s.in_type[arrays.slots[i]] != in) return nullptr;
    if (in == kOwn<Real>) return on_groups<Real, kOwn<Real>>(shape);
    if constexpr (sizeof(Real) == 4) {
        if (in == DType::f16) return on_groups<Real, DType::f16>(shape);
        if (in == DType::bf16) return on_groups<Real, DType::bf16>(shape);
    }
    return nullptr;
}

// The chunks begin .. end - 1.
template <class Real>
void loss_range(const Call& s, int64_t begin_chunk, int64_t end_chunk) {
    const int64_t begin = first_of_chunk(s.piece, begin_chunk), end = first_of_chunk(s.piece, end_chunk);
    Rows<Real> rows(s);
    Arrays<Real> arrays(s);
    Residuals<Real> residuals(s, arrays, begin_chunk);
    alignas(64) Real r[kTile];
    const auto tile = [&](int64_t at, int size) {
        arrays.load(at, size);
        rows.apply(r, size, rows.out[0], arrays.value, false);
        residuals.take(r, at, size);
    };
    if (s.draw == Draw::none) {
        const OnGroups<Real> on = on_groups(rows, arrays);
        for (int64_t at = begin; at < end;) {
            const int64_t segment = at / s.segment, left = s.segment - at % s.segment;
            // Groups begin with a chunk, so that what is left of one is taken by itself.
            const int64_t whole = on ? residuals.left() / kAccumulators * kAccumulators : 0;
            const int size = static_cast<int>(whole ? whole : least(on ? residuals.left() : kTile, end - at));
            rows.select(at, segment, left, size);
            whole ? on(residuals, rows, at, size) : tile(at, size);
            at += size;
        }
        return;
    }
    Noise<Real> noise;
    for_each_drawn_tile(s, begin, end, rows, arrays, [&](int64_t at, const Counters& counters, const RoundKeys& keys) {
        arrays.value[kZ] = noise.fill(counters, keys, s.draw, 0, [&](int group) {
            arrays.prefetch_read(at, group);
            arrays.prefetch_written(at, group);
        });
        tile(at, counters.size);
    });
}

}  // namespace
}  // namespace nf
