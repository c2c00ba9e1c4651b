// SPDX-License-Identifier: Apache-2.0
// The loss. A step's row gives residuals, tile by tile; they are added up, not stored. The gradient is the residuals
// times a factor, and is stored. The noise to compare with lives as long as its tile.
#pragma once
#include "../core/loss.h"
#include "drawing.h"
#include "tile_registers.h"

namespace nf {
namespace {

// Returns the factor that turns the residuals of a piece into the gradient.
double factor_of(const Call& s, int64_t piece) {
    const double g = s.upstream ? s.upstream[piece * s.piece / s.size * s.upstream_step] : s.g;
    return gradient_factor(weight_of(s, piece), g, s.n);
}

bool has_one_factor(const Call& s) { return !s.weights && !s.upstream; }
bool has_one_row(const Call& s) { return s.segment >= s.size * s.batch && !s.period; }

// Tells of the numbers of a chunk's last group from `first` on whether they exist: all bits, or none.
template <int size, class Real>
struct Existing {
    using Bits = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
    Bits bits[size];
    explicit Existing(int first, int n) {
        for (int i = 0; i < size; ++i) bits[i] = first + i < n ? -1 : 0;
    }
    // The number, or 0. (Without a branch, so that loops of it are done in vectors.)
    Real operator()(int i, Real number) const { return std::bit_cast<Real>(std::bit_cast<Bits>(number) & bits[i]); }
};

// The sums of the squares of chunks of n <= 64 elements each, one after another: like SquareSum, without the zeros.
// half: the largest power of two below n, or 1. 63 numbers after the last chunk may be read. It is written in vectors
// of four floats or two doubles, because compilers take such sums apart into single numbers.
template <int half = kAccumulators / 2, class Real>
inline void sums_of_few(const Real* r, int n, int count, double* sums) {
    if constexpr (half > 1)
        if (n <= half) return sums_of_few<half / 2>(r, n, count, sums);
    constexpr int most = 16 / sizeof(Real), lanes = half < most ? half : most, vectors = half / lanes;
    using Some [[gnu::vector_size(lanes * sizeof(Real))]] = Real;
    const Existing<half, Real> existing(half, n);
    using Mask [[gnu::vector_size(lanes * sizeof(Real))]] = typename Existing<half, Real>::Bits;
    Mask exist[vectors];
    std::memcpy(exist, existing.bits, sizeof exist);
    const auto square = [](const Real* at) {
        Some x;
        std::memcpy(&x, at, sizeof x);
        return x * x;
    };
    for (int i = 0; i < count; ++i, r += n) {
        Some sum[vectors];
        for (int v = 0; v < vectors; ++v) {
            const Real* const at = r + v * lanes;
            sum[v] = square(at) + std::bit_cast<Some>(std::bit_cast<Mask>(square(at + half)) & exist[v]);
        }
        for (int left = vectors / 2; left > 0; left /= 2)
            for (int v = 0; v < left; ++v) sum[v] += sum[v + left];
        Real last[lanes];
        std::memcpy(last, sum, sizeof last);
        sums[i] = static_cast<double>(halve<lanes>(last));
    }
}

// Takes the residuals of one element after another.
template <class Real>
class Residuals {
  public:
    // arrays are those of the call, and are needed for a gradient.
    Residuals(const Call& call, int64_t chunk, const Arrays<Real>* arrays = nullptr)
        : s(call), arrays_(arrays), chunk_(chunk), in_piece_(chunk % chunks_of(s.piece) * kLossChunk) {
        begin_chunk();
    }

    // It runs once a tile. It and `end_squares` stand outside, so that the functions with residuals hold no copies. 63
    // numbers after the last one may be read.
    [[gnu::noinline]] void take(const Real* r, int64_t at, int n) {
        if (s.out[0]) store_gradient(r, at, n);
        if (!s.chunk_sums) return;
        if (s.piece <= kMostCarried) return take_short(r, n);
        for (int done = 0, size; done < n; done += size) {
            size = static_cast<int>(least(n - done, left_));
            squares_.add(r + done, size);
            if (left_ -= size; left_ == 0) end_squares();
        }
    }

    static constexpr int kMostCarried = 2 * kTile;  // elements of a piece that is added up when all of it is known

    void store_gradient(const Real* r, int64_t at, int n) {
        const bool direct = arrays_->direct[0], nontemporal = arrays_->nontemporal(0, at);
        Real* gradient = direct ? static_cast<Real*>(s.out[0]) + at : staged_;
        int64_t piece = at / s.piece, left = s.piece - at % s.piece;
        for (int done = 0; done < n; ++piece, left = s.piece) {
            const int size = has_one_factor(s) ? n : static_cast<int>(least(n - done, left));
            multiply(gradient + done, r + done, size, static_cast<Real>(factor_of(s, piece)),
                     direct && nontemporal && done == 0);
            done += size;
        }
        if (!direct) store_as(s.out[0], s.type, at, gradient, n, nontemporal);
    }

    int64_t left() const { return left_; }  // of the chunk

    // Takes the residuals of a chunk's whole groups of 64, without a gradient. vector_at(i) returns those from element
    // i on.
    template <class VectorAt>
    void take_groups(const VectorAt& vector_at, int n) {
        squares_.add_groups(vector_at, n);
        if (left_ -= n; left_ == 0) end_squares();
    }

    // Takes the last n < 64 residuals of the chunk, in a group of 64, likewise.
    [[gnu::noinline]] void take_last(Real (&r)[kAccumulators], int n) {
        const Existing<kAccumulators, Real> existing(0, n);
        for (int i = 0; i < kAccumulators; ++i) r[i] = existing(i, r[i]);
        squares_.add_groups([&](int i) { return Lane::load(r + i); }, kAccumulators);
        left_ -= n;
        end_squares();
    }

  private:
    const Call& s;
    const Arrays<Real>* const arrays_;
    int64_t chunk_, in_piece_;  // the chunk and its first element
    int64_t length_, left_;     // of the chunk
    SquareSum<Lane, kWidth<Real>, Real> squares_;
    alignas(64) Real staged_[kTile], carried_[kMostCarried + kAccumulators];
    int n_carried_ = 0;

    void begin_chunk() { length_ = left_ = least(kLossChunk, s.piece - in_piece_); }

    // Takes short pieces. The elements of one that goes on in the next tile are kept until then.
    void take_short(const Real* r, int n) {
        const int piece = static_cast<int>(s.piece);
        int done = 0;
        const auto carry = [&](int size) {
            std::memcpy(carried_ + n_carried_, r + done, sizeof(Real) * static_cast<size_t>(size));
            n_carried_ += size, done += size;
        };
        const auto whole = [&](const Real* from, int size) {
            return piece < kAccumulators ? add_few(from, size) : add_whole(from, size);
        };
        if (n_carried_) {
            carry(static_cast<int>(least(n, piece - n_carried_)));
            if (n_carried_ < piece) return;
            n_carried_ = 0;
            whole(carried_, piece);
        }
        done += whole(r + done, n - done);
        if (done < n) carry(n - done);
    }

    // Samples of a few elements come by the million. Those that lie whole in the tile take a shorter path. Returns how
    // many elements they have. 63 elements after the last one may be read.
    int add_few(const Real* r, int n) {
        const int piece = static_cast<int>(s.piece), count = n / piece;
        sums_of_few(r, piece, count, s.chunk_sums + chunk_);
        chunk_ += count;
        return count * piece;
    }

    // Longer samples that lie whole in the tile. 63 elements after the last one may be read.
    int add_whole(const Real* r, int n) {
        const int piece = static_cast<int>(s.piece), whole = piece / kAccumulators * kAccumulators;
        const Existing<kAccumulators, Real> existing(whole, piece);
        alignas(64) Real rest[kAccumulators];
        int done = 0;
        for (; done + piece <= n; done += piece) {
            for (int i = 0; i < kAccumulators; ++i) rest[i] = existing(i, r[done + whole + i]);
            s.chunk_sums[chunk_++] =
                static_cast<double>(SquareSum<Lane, kWidth<Real>, Real>::of_chunk(r + done, whole, rest));
        }
        return done;
    }

    [[gnu::noinline]] void end_squares() { end_chunk(squares_.finish()); }

    void end_chunk(Real sum) {
        s.chunk_sums[chunk_++] = static_cast<double>(sum);
        in_piece_ += length_;
        if (in_piece_ == s.piece) in_piece_ = 0;
        begin_chunk();
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

constexpr uint64_t kResidualShapes[] = {
    // log-density: the residual of a step's result, of guided means, too
    shape({}, {kZ, kM1, kX}),
    shape({}, {kZ, kM2, kM1, kX}),
    // of two model outputs
    shape({}, {kM1, kX}),
};

// One row of a call that has no D.
template <class Real>
struct OneRow {
    const Call& s;
    Real gathered[kColumns];
    const Real* row;
    OneRow(const Call& call, int64_t segment) : s(call), row(row_at(s, segment, gathered)) {}
    bool clamps() const { return false; }
    int constant(int output) const { return counts(s.active, kAffine[output]) ? kAffine[output] : -1; }
    const Real* coefficient(int column) const { return row + column; }
};

// Computes residuals in registers, for arrays of one type and a row of this shape.
template <class Real, DType In, uint64_t shape>
struct ResidualRow : RegisterRow<Real, In, shape> {
    using RegisterRow<Real, In, shape>::RegisterRow;

    Vector<Real> residual(int64_t at) const {
        Vector<Real> r[1], z{};
        if constexpr (ResidualRow::reads(kZ)) z = load_lanes<In>(this->array[kZ], at);
        this->add_up(at, z, r, std::false_type());
        return r[0];
    }
};

// Copies bytes, and zeros after them.
[[gnu::noinline]] inline const void* padded(void* to, const void* from, int bytes, size_t all) {
    std::memset(to, 0, all);
    return std::memcpy(to, from, static_cast<size_t>(bytes));
}

// The last elements of each array that a row reads: those from `at` on, fewer than 64. They are copied and padded to
// 64 if so many may not be read, up to `end`.
template <class Row, DType In>
struct Last {
    alignas(64) char copies[kSlots][kAccumulators * bytes_of(In)];
    const void* array[kSlots] = {};
    Last(const Call& s, int64_t at, int n, int64_t end = 0) {
        for (int slot = 0; slot < kSlots; ++slot)
            if (Row::reads(slot)) {
                array[slot] = static_cast<const char*>(s.in[slot]) + at * bytes_of(In);
                if (at + kAccumulators > end)
                    array[slot] = padded(copies[slot], array[slot], n * bytes_of(In), sizeof copies[slot]);
            }
    }
};

// Adds n residuals of a chunk from element `at` on: whole groups of 64, and the last ones. `end`: of the elements that
// may be read.
template <class Real, DType In, uint64_t shape>
[[gnu::flatten]] void take_in_registers(Residuals<Real>& residuals, const Call& s, int64_t at, int n, int64_t end) {
    using Row = ResidualRow<Real, In, shape>;
    const OneRow<Real> one(s, at / s.segment);
    const int whole = n / kAccumulators * kAccumulators;
    const Row row(one, s.in);
    if (whole) residuals.take_groups([&](int i) { return row.residual(at + i); }, whole);
    if (whole == n) return;
    at += whole, n -= whole;
    alignas(64) Real r[kAccumulators];
    const Last<Row, In> last(s, at, n, end);
    const Row of_last(one, last.array);
    for (int i = 0; i < kAccumulators; i += kWidth<Real>) Lane::store(r + i, of_last.residual(i));
    residuals.take_last(r, n);
}

// Writes the gradient of n elements of a piece from element `at` on: their residuals times this factor.
template <class Real, DType In, uint64_t shape>
[[gnu::flatten]] void gradient_in_registers(const Call& s, int64_t at, int n, Real factor, bool nontemporal) {
    using Row = ResidualRow<Real, In, shape>;
    const OneRow<Real> one(s, at / s.segment);
    const auto write = [&](const Row& row, int64_t from, int length, void* out, int64_t to, bool past_caches) {
        constexpr int W = kWidth<Real>;
        for (int i = 0; i < length; i += 4 * W) {
            Vector<Real> g[4];
            for (int v = 0; v < 4; ++v) g[v] = Lane::mul(Lane::splat(factor), row.residual(from + i + v * W));
            store_lanes<In>(out, to + i, g, past_caches);
        }
    };
    const int whole = n / kAccumulators * kAccumulators, left = n - whole;
    write(Row(one, s.in), at, whole, s.out[0], at, nontemporal);
    if (left == 0) return;
    constexpr int width = bytes_of(In);
    const Last<Row, In> last(s, at + whole, left);
    alignas(64) char made[kAccumulators * width];
    write(Row(one, last.array), 0, kAccumulators, made, 0, false);
    std::memcpy(static_cast<char*>(s.out[0]) + (at + whole) * width, made, size_t(left) * width);
}

// Returns of.operator()<In, shape>() for a loss whose arrays are all of one type, or null if its residuals cannot be
// computed in registers.
template <class Real, class Function, class Of>
Function for_residuals(const Call& call, Of of) {
    if (call.draw != Draw::none) return nullptr;
    const DType in = call.in_type[kM1];
    for (int slot = 0; slot < kSlots; ++slot)
        if (call.in[slot] && call.in_type[slot] != in) return nullptr;
    const uint64_t own = combination_of(call.active, kAffine[0]), constant = uint64_t{1} << kAffine[0];
    const auto of_shape = [&]<DType In>() {
        return for_shape<kResidualShapes, Function>(
            counts(own, affine_column(0) + 1 + kZ) ? own & ~constant : own,
            [&]<uint64_t shape>() -> Function { return of.template operator()<In, shape>(); });
    };
    if (in == kOwn<Real>) return of_shape.template operator()<kOwn<Real>>();
    if constexpr (sizeof(Real) == 4) {
        if (in == DType::f16) return of_shape.template operator()<DType::f16>();
        if (in == DType::bf16) return of_shape.template operator()<DType::bf16>();
    }
    return nullptr;
}

// Takes all residuals from `begin` on while elements become known, chunk by chunk.
template <class Real>
class RegisterResiduals {
  public:
    // Tells whether it can take this call. readable: the end of the elements that may be read beyond those known.
    RegisterResiduals(Residuals<Real>& residuals, const Call& call, int64_t begin, int64_t readable)
        : residuals_(residuals), s(call), at_(begin), readable_(readable), take_(of(call)) {}
    explicit operator bool() const { return take_; }

    void take_to(int64_t end) {
        while (at_ < end) {
            const int64_t left = residuals_.left(), here = least(left, end - at_);
            const int64_t n = here == left ? here : here / kAccumulators * kAccumulators;
            if (here < least(kAtOnce, left)) return;
            take_(residuals_, s, at_, static_cast<int>(n), readable_);
            at_ += n;
        }
    }

  private:
    // Elements for each call of take_: enough that the call costs little, and few enough for the first-level cache.
    static constexpr int64_t kAtOnce = 4 * kTile;
    using Take = decltype(&take_in_registers<Real, kOwn<Real>, kResidualShapes[0]>);
    Residuals<Real>& residuals_;
    const Call& s;
    int64_t at_;
    const int64_t readable_;
    Take take_;

    static Take of(const Call& call) {
        const bool short_pieces =
            call.piece < kAccumulators || (call.piece <= Residuals<Real>::kMostCarried && has_one_row(call));
        if (call.out[0] || !call.chunk_sums || short_pieces) return nullptr;
        return for_residuals<Real, Take>(
            call, []<DType In, uint64_t shape>() -> Take { return take_in_registers<Real, In, shape>; });
    }
};

// Writes the gradient of the elements begin .. end - 1 if no sum is wanted. Returns false if a row does not fit in
// registers.
template <class Real>
bool write_gradient(const Call& s, const Arrays<Real>& arrays, int64_t begin, int64_t end) {
    using Write = decltype(&gradient_in_registers<Real, kOwn<Real>, kResidualShapes[0]>);
    const bool pieces_follow = has_one_factor(s) && has_one_row(s);
    if (!s.out[0] || s.chunk_sums || s.type != s.in_type[kM1] || (s.piece < kAccumulators && !pieces_follow))
        return false;
    const auto write = for_residuals<Real, Write>(
        s, []<DType In, uint64_t shape>() -> Write { return gradient_in_registers<Real, In, shape>; });
    for (int64_t at = begin; write && at < end;) {
        const int64_t left = pieces_follow ? end - at : least(s.piece - at % s.piece, end - at);
        const int64_t to_line = left > kLossChunk ? arrays.to_line(at) : 0;  // stores across two lines are slow
        const int64_t n = to_line ? to_line : least(left, kLossChunk);
        write(s, at, static_cast<int>(n), static_cast<Real>(factor_of(s, at / s.piece)), arrays.nontemporal(0, at));
        at += n;
    }
    return write;
}

// Returns the residuals, if they are pred itself, or null.
template <class Real>
const Real* are_known(const Call& s) {
    constexpr int column = kAffine[0] + 1 + kM1;
    const bool known = s.active == uint64_t{1} << column && s.n_rows == 1 && s.in_type[kM1] == kOwn<Real> &&
                       s.draw == Draw::none && static_cast<const Real*>(s.rows)[column] == 1;
    return known ? static_cast<const Real*>(s.in[kM1]) : nullptr;
}

// Computes the chunks begin .. end - 1.
template <class Real>
void loss_range(const Call& s, int64_t begin_chunk, int64_t end_chunk, bool stay) {
    const int64_t begin = first_of_chunk(s.piece, begin_chunk), end = first_of_chunk(s.piece, end_chunk);
    Arrays<Real> arrays(s, stay);
    if (write_gradient(s, arrays, begin, end)) return;
    Residuals<Real> residuals(s, begin_chunk, &arrays);
    alignas(64) Real r[kTile + kAccumulators];
    if (const Real* const itself = are_known<Real>(s)) {
        for (int64_t at = begin; at < end; at += kTile) {
            const auto size = static_cast<int>(least(kTile, end - at));
            const bool whole = end - at >= kTile + kAccumulators;  // may be read beyond the tile
            if (!whole) std::memcpy(r, itself + at, sizeof(Real) * static_cast<size_t>(size));
            residuals.take(whole ? itself + at : r, at, size);
        }
        return;
    }
    Rows<Real> rows(s);
    const auto tile = [&](int64_t at, int size) {
        arrays.load(at, size);
        rows.apply(r, size, rows.out[0], arrays.value, false);
        residuals.take(r, at, size);
    };
    if (s.draw == Draw::none) {
        if (RegisterResiduals<Real> in_registers(residuals, s, begin, end); in_registers)
            return in_registers.take_to(end);
        for (int64_t at = begin; at < end;) {
            const int size = static_cast<int>(least(rows.most, end - at));
            rows.select(at, at / s.segment, s.segment - at % s.segment, size);
            tile(at, size);
            at += size;
        }
        return;
    }
    Noise<Real> noise;
    for_each_drawn_tile(s, begin, end, rows, arrays, [&](int64_t at, const Counters& counters, const RoundKeys& keys) {
        const Real* const of_tile = noise.fill(counters, keys, s.draw, 0, Prefetch<Real, true>{arrays, at});
        for_each_span(counters, of_tile, rows, at, [&](int64_t here, const Real* z, int n) {
            const int rounded = (n + kWidth<Real> - 1) / kWidth<Real> * kWidth<Real>;
            if (!rows.per_element && here + rounded <= end) n = rounded;
            arrays.value[kZ] = z;
            arrays.load(here, n);
            rows.apply(r + (here - at), n, rows.out[0], arrays.value, false);
        });
        residuals.take(r, at, counters.size);
    });
}

// Computes elements of arrays that lie turned, where no chunk has elements of two rows. Element m of a plane, as it
// lies in memory, is added to accumulator m mod (64 rows): to the one that C's order gives it, of its row's chunk, and
// after the same elements. So nothing is turned.
template <class Real>
void turned_loss_range(const Call& s, int64_t rows, int64_t columns, int64_t begin, int64_t end, Real* sums) {
    constexpr int W = kWidth<Real>;
    Rows<Real> table(s);
    Arrays<Real> arrays(s, true);
    Residuals<Real> residuals(s, 0, &arrays);
    alignas(64) Real r[kTile];
    const int64_t n_sums = kAccumulators * rows, plane = begin / (rows * columns), first = begin / rows % columns,
                  stop = first + (end - begin) / rows;
    for (int64_t i = 0; i < n_sums && first % kLossChunk == 0; i += W) Lane::store(sums + i, Lane::splat(Real{0}));
    for (int64_t at = begin, to = 0, n; at < end; at += n, to += n) {
        if (to == n_sums) to = 0;
        n = least(least(kTile, n_sums - to), end - at);
        table.select(at, at / s.segment, s.segment - at % s.segment, static_cast<int>(n));
        arrays.load(at, static_cast<int>(n));
        table.apply(r, static_cast<int>(n), table.out[0], arrays.value, false);
        if (s.out[0]) residuals.store_gradient(r, at, static_cast<int>(n));
        for (int64_t i = n; i % W; ++i) r[i] = 0;
        for (int64_t i = 0; i < n; i += W) {
            const auto x = Lane::load(r + i);
            Lane::store(sums + to + i, Lane::fma(x, x, Lane::load(sums + to + i)));
        }
    }
    if (stop % kLossChunk && stop < columns) return;
    for (int64_t half = n_sums / 2; half >= rows; half /= 2)
        for (int64_t i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
    for (int64_t i = 0; i < rows; ++i)
        s.chunk_sums[chunk_at(s.piece, (plane * rows + i) * columns + stop - 1)] = static_cast<double>(sums[i]);
}

}  // namespace
}  // namespace nf
