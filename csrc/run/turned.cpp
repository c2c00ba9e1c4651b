// SPDX-License-Identifier: Apache-2.0
#include "turned.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <new>

#include "../core/loss.h"
#include "../cpu/dispatch.h"
#include "layouts.h"
#include "memory.h"

namespace nf {
namespace {

constexpr int64_t kBlock = 1 << 15;  // elements of a block; more if its rows are many, or long
constexpr int64_t kRun = 512;        // kernels take fewer elements at once more slowly
constexpr int64_t kFewRows = 8;      // of them turning reads half lines at least
constexpr int64_t kSlice = 1024;     // elements that kernels take between two prefetches
constexpr int64_t kLine = 64;        // bytes of a line of the caches
constexpr int64_t kGap = 16;         // elements after each row, so that rows are no power of two apart
constexpr int64_t kConflict = 2048;  // bytes: rows so far apart take each other's place in the nearest cache

bool is_small(const Turned& t) { return t.rows * t.columns <= (1 << 13); }  // its planes

// Whether the call draws noise that is turned to the order of its arrays.
bool turns_noise(const Call& call, const Turned& t) { return t.inputs >> kZ & 1 && call.draw != Draw::none; }

// How a call is cut into blocks. A block has `height` rows of one plane, and `width` columns of each. Or it has whole
// rows, of any planes, whose elements follow one another in C's order: those of `chunks` chunks of a loss.
struct Blocks {
    int64_t height, width, chunks = 0;
    int64_t down, across, count;  // the blocks of a plane, and of all
    bool whole_rows;

    Blocks(const Call& call, const Turned& t, int64_t piece) {
        const int64_t total = call.batch * call.size, unit = piece ? kLossChunk : kRun;
        const bool draws = turns_noise(call, t);
        whole_rows = draws || t.orders || (piece ? t.columns % unit || piece % t.columns : t.columns < unit);
        if (!whole_rows) {
            const bool few_arrays = std::popcount(t.inputs) + std::popcount(t.outputs) < 3;
            height = std::min(t.rows, std::max(few_arrays ? 2 * kFewRows : kFewRows, kBlock / unit));
            width = std::min(t.columns, std::max(unit, kBlock / height / unit * unit));
        } else {
            width = t.columns;
            // Noise of a part of a plane is drawn in runs of that height.
            height = std::max(draws && !is_small(t) ? kRun : kFewRows, kBlock / width);
            // A run of arrays in their own order is read where it lies.
            for (int s = 0; s < kSlots && t.orders; ++s)
                if (t.inputs >> s & 1 && t.orders[s].item)
                    height = std::clamp<int64_t>(run_in_order(t.orders[s]) / width, 1, height);
        }
        down = (t.rows + height - 1) / height, across = (t.columns + width - 1) / width;
        count = down * across * (total / (t.rows * t.columns));
        if (!whole_rows) return;
        const int64_t rows = total / width;
        count = (rows + height - 1) / height;
        if (piece) {
            const int64_t all = total / piece * chunks_of(piece);
            chunks = std::max<int64_t>(1, all / count);
            count = (all + chunks - 1) / chunks;
        }
    }
};

// A row that is the array in this slot itself.
template <class Real, int slot>
constexpr auto kOnes = [] {
    std::array<Real, kColumns> row{};
    row[kAffine[0] + 1 + slot] = 1;
    return row;
}();

// Makes the call's result this array, or this noise.
template <int slot>
void take_itself(Call& call) {
    call.active = uint64_t{1} << (kAffine[0] + 1 + slot);
    call.rows =
        call.type == DType::f64 ? static_cast<const void*>(kOnes<double, slot>.data()) : kOnes<float, slot>.data();
    call.n_rows = 1, call.by_column = 0;
    for (const void*& in : call.in) in = nullptr;
}

DType arithmetic_of(const Call& call) { return call.type == DType::f64 ? DType::f64 : DType::f32; }

// A block's own memory has a row for each of its rows.
class Block {
  public:
    // Rows are counted in the call's order.
    struct Place {
        int64_t row, column, rows, columns;
    };

    Block(const Call& call, const Turned& turned, const Blocks& blocks, int64_t piece)
        : whole_(call),
          call_(call),
          turned_(turned),
          blocks_(blocks),
          piece_(piece),
          row_(blocks.whole_rows ? blocks.width : blocks.width + kGap),
          first_(call),
          noise_(call) {
        const bool weighted = call.weights && call.out[0];  // a gradient's weights are those of the call's rows
        computes_ = piece && call.losses && turned.alike && is_small(turned) && !weighted;
        draws_ = turns_noise(call, turned) || (computes_ && call.draw != Draw::none);
        noise_.type = noise_.out_type = arithmetic_of(call);
        noise_.out[1] = noise_.out[2] = nullptr;
        take_itself<kZ>(noise_);
        if (draws_) first_.draw = call_.draw = Draw::none, first_.in_type[kZ] = call_.in_type[kZ] = noise_.type;
        if (!computes_) return;
        first_.type = first_.out_type = call_.in_type[kM1] = noise_.type;
        take_itself<kM1>(call_);  // the loss is of the residuals
    }

    // False: there is no memory.
    bool take_memory() {
        // Chunks may begin and end within a row, and short pieces' chunks differ in length.
        const int64_t rows = blocks_.chunks ? most_rows() : blocks_.height;
        int64_t bytes = 0;
        const auto room = [&](int64_t size) {
            const int64_t at = bytes;
            bytes += (size + kLine - 1) / kLine * kLine;
            return at;
        };
        const auto place = [&](Array& a, int bit, unsigned bits, DType type, const void* whole) {
            if (!(bits >> bit & 1)) return;
            const int64_t size = bytes_of(type);
            a = {size, const_cast<char*>(static_cast<const char*>(whole)), room(size * row_ * rows)};
        };
        const unsigned inputs = computes_ ? 1u << kM1 : turned_.inputs;
        const int64_t own = bytes_of(noise_.type), height = std::min(turned_.rows, blocks_.height);
        if (computes_) residuals_ = room(own * (rows / turned_.rows + 2) * turned_.rows * turned_.columns);
        if (draws_) drawn_ = room(own * turned_.columns * ((computes_ ? turned_.rows : height) + kGap));
        for (int s = 0; s < kSlots; ++s) {
            place(in_[s], s, inputs, call_.in_type[s], call_.in[s]);
            if (in_[s].size && turned_.orders && turned_.orders[s].item) in_[s].order = turned_.orders + s;
        }
        for (int o = 0; o < 3; ++o)
            if (call_.out[o]) place(out_[o], o, turned_.outputs, call_.type_of(o), call_.out[o]);
        // Kernels of steps may write to what they read.
        if (!piece_ && in_[kX].size == out_[0].size) out_[0].at = in_[kX].at;
        return scratch_.take(static_cast<size_t>(std::max(bytes, kLine)));
    }

    // Runs these whole rows.
    void run_rows(const Place& place, const Range& range) {
        const int64_t columns = turned_.columns;
        take(place);
        point(-place.row * columns);
        range(call_, place.row * columns, (place.row + place.rows) * columns);
        give(place);
    }

    void run(int64_t b, const Range& range) {
        const int64_t columns = turned_.columns;
        if (blocks_.whole_rows) {
            const int64_t begin = first_of(b), end = first_of(b + 1);
            take({begin / columns, 0, (end + columns - 1) / columns - begin / columns, columns});
            point(-place_.row * columns);
            // Whole planes follow one another in memory. The kernel of one output without noise is too quick to wait
            // for.
            const int64_t plane = turned_.rows * columns;
            const bool takes_long = call_.draw != Draw::none || std::popcount(turned_.outputs) > 1;
            const bool prefetches = !piece_ && takes_long && begin % plane == 0 && end % plane == 0;
            run_slices(begin, end, prefetches, begin, end - begin, range);
            give(begin, end);
        } else {
            const int64_t plane = b / (blocks_.down * blocks_.across), of_plane = b % (blocks_.down * blocks_.across);
            const int64_t r = of_plane / blocks_.across * blocks_.height, c = of_plane % blocks_.across * blocks_.width;
            take({plane * turned_.rows + r, c, std::min(blocks_.height, turned_.rows - r),
                  std::min(blocks_.width, columns - c)});
            // The rows follow one another in memory.
            const bool prefetches = place_.rows == turned_.rows && !piece_;
            int64_t to_fetch = (plane * columns + c) * turned_.rows;
            for (int64_t row = 0; row < place_.rows; ++row) {
                const int64_t begin = (place_.row + row) * columns + c, end = begin + place_.columns;
                point(row * row_ - begin);
                run_slices(begin, end, prefetches, to_fetch, place_.rows * place_.columns, range);
                to_fetch += place_.columns;
            }
            give(place_);
        }
    }

  private:
    // An array that is turned; size 0: there is none.
    struct Array {
        int64_t size = 0;  // bytes of an element
        char* whole;
        int64_t at;                   // its first byte in the block's memory
        const Copy* order = nullptr;  // or it lies in this order,
        const char* here = nullptr;   // and this block of it here
    };

    // The first element of a block of whole rows.
    int64_t first_of(int64_t b) const {
        const int64_t total = whole_.batch * whole_.size;
        if (b == blocks_.count) return total;
        return piece_ ? first_of_chunk(piece_, b * blocks_.chunks) : b * blocks_.height * turned_.columns;
    }

    int64_t most_rows() const {
        const int64_t in_chunk = std::min(piece_, kLossChunk);
        return blocks_.chunks * in_chunk / turned_.columns + 2;
    }

    void take(const Place& place) {
        place_ = place;
        to_fetch_ = place.row * turned_.columns;
        if (computes_) {
            const int64_t rows = turned_.rows, plane = rows * turned_.columns, begin = place.row / rows * plane,
                          end = (place.row + place.rows + rows - 1) / rows * plane;
            char* const made = scratch_.data + residuals_;
            for (int64_t at = begin; at < end && draws_; at += plane)
                draw({at, rows, turned_.columns, turned_.columns}, made + in_[kM1].size * (at - begin));
            in_[kM1].whole = made - in_[kM1].size * begin;
            first_.out[0] = in_[kM1].whole;
            if (draws_) first_.in[kZ] = in_[kM1].whole;
            kernels().step(first_, begin, end, true);
        } else if (draws_) {
            const int64_t rows = turned_.rows, columns = turned_.columns, end = place.row + place.rows;
            for (int64_t row = place.row, n; row < end; row += n) {
                n = std::min(rows - row % rows, end - row);
                draw({row / rows * rows * columns + row % rows, columns, rows, n},
                     scratch_.data + in_[kZ].at + in_[kZ].size * columns * (row - place.row));
            }
        }
        for (int s = 0; s < kSlots; ++s)
            if (Array& a = in_[s]; a.order)
                a.here = part_of(*a.order, place.row * row_, (place.row + place.rows) * row_, scratch_.data + a.at);
            else if (a.size && !(draws_ && s == kZ))
                turn(a, place_, true);
    }

    // Runs of noise: so many, `apart` elements apart, of `length` elements.
    struct Runs {
        int64_t first, count, apart, length;
    };

    // Prefetches as many elements of the arrays as noise is drawn: of the inputs as they lie, of the outputs in C's
    // order.
    void fetch(int64_t begin, int64_t n) {
        const auto lines = [n](const void* array, int64_t size, int64_t first, auto write) {
            for (int64_t byte = 0; byte < n * size; byte += kLine)
                __builtin_prefetch(static_cast<const char*>(array) + size * first + byte, write.value, 2);
        };
        for (int s = 0; s < kSlots; ++s)
            if (whole_.in[s]) lines(whole_.in[s], bytes_of(whole_.in_type[s]), to_fetch_, std::false_type());
        for (const Array& a : out_)
            if (a.size) lines(a.whole, a.size, begin, std::true_type());
        to_fetch_ += n;
    }

    // Draws runs, and turns them: the first element of each one comes first.
    void draw(const Runs& runs, char* to) {
        const bool whole = runs.length == runs.apart;
        const int64_t size = bytes_of(noise_.type), apart = whole ? runs.length : runs.length + kGap;
        char* const drawn = scratch_.data + drawn_;
        const auto step = [&](int64_t from, int64_t begin, int64_t n) {
            if (!whole) fetch(begin, n);
            noise_.out[0] = drawn + size * (from - begin);
            kernels().step(noise_, begin, begin + n, true);
        };
        for (int64_t i = 0; i < runs.count && !whole; ++i) step(i * apart, runs.first + i * runs.apart, runs.length);
        if (whole) step(0, runs.first, runs.count * runs.length);
        Copy copy;
        copy.item = static_cast<int>(size), copy.axes = 2;
        copy.shape[0] = runs.length, copy.shape[1] = runs.count;
        copy.from = drawn, copy.to = to;
        copy.from_strides[0] = size, copy.from_strides[1] = size * apart;
        copy.to_strides[0] = size * runs.count, copy.to_strides[1] = size;
        copy_here(copy, copy.to_strides[0] % kConflict != 0, true);
    }

    void give(const Place& place) const {
        for (const Array& a : out_)
            if (a.size) turn(a, place, false);
    }

    // Other blocks write the rest of the first row, and of the last one.
    void give(int64_t begin, int64_t end) const {
        const int64_t columns = turned_.columns;
        for (int64_t at = begin, n; at < end; at += n) {
            const int64_t column = at % columns, left = end - at, rows = column ? 0 : left / columns;
            n = rows ? rows * columns : std::min(columns - column, left);
            give({at / columns, column, rows ? rows : 1, rows ? columns : n});
        }
    }

    // Makes the call's arrays those of this block, whose elements lie so many elements after their number in the call.
    void point(int64_t shift) {
        for (int s = 0; s < kSlots; ++s)
            if (const Array& a = in_[s]; a.size)
                call_.in[s] = (a.order ? a.here : scratch_.data + a.at) + a.size * shift;
        for (int o = 0; o < 3; ++o)
            if (out_[o].size) call_.out[o] = scratch_.data + out_[o].at + out_[o].size * shift;
    }

    // Runs elements of the block in slices, and prefetches as many, from this one on.
    void run_slices(int64_t begin, int64_t end, bool prefetches, int64_t to_fetch, int64_t ahead, const Range& range) {
        for (int64_t at = begin, n; at < end; at += n, to_fetch += n) {
            n = prefetches ? std::min(kSlice, end - at) : end - at;
            if (prefetches) prefetch(to_fetch, n, ahead);
            range(call_, at, at + n);
        }
    }

    // Prefetches n elements of the outputs, and the inputs' elements that lie `ahead` further, in the next block. They
    // come from memory while kernels compute.
    void prefetch(int64_t first, int64_t n, int64_t ahead) const {
        for (const Array& a : out_)
            for (int64_t byte = 0; byte < n * a.size; byte += kLine)
                __builtin_prefetch(a.whole + a.size * first + byte, 1, 2);
        const int64_t next = first + ahead, most = std::min(n, whole_.batch * whole_.size - next);
        for (const Array& a : in_)
            for (int64_t byte = 0; byte < most * a.size && !a.order; byte += kLine)
                __builtin_prefetch(a.whole + a.size * next + byte, 0, 2);
    }

    // Copies these rows to the block's own memory, or back: whole planes, and parts of others.
    void turn(const Array& a, const Place& place, bool in) const {
        const int64_t rows = turned_.rows, end = place.row + place.rows;
        for (int64_t row = place.row, n; row < end; row += n) {
            const int64_t r = row % rows, planes = r ? 0 : (end - row) / rows, height = std::min(rows - r, end - row);
            n = planes ? planes * rows : height;
            char* const there = a.whole + a.size * ((row / rows * turned_.columns + place.column) * rows + r);
            char* const here =
                scratch_.data + a.at + a.size * (row_ * (row - place_.row) + place.column - place_.column);
            const int64_t of_there[] = {a.size * rows * turned_.columns, a.size * rows, a.size};
            const int64_t of_here[] = {a.size * rows * row_, a.size, a.size * row_};
            Copy copy;
            copy.item = static_cast<int>(a.size), copy.axes = 3;
            copy.shape[0] = planes ? planes : 1, copy.shape[1] = place.columns, copy.shape[2] = height;
            copy.from = in ? there : here, copy.to = in ? here : there;
            std::copy_n(in ? of_there : of_here, 3, copy.from_strides);
            std::copy_n(in ? of_here : of_there, 3, copy.to_strides);
            copy_here(copy, a.size * (in ? row_ : rows) % kConflict != 0, !in);
        }
    }

    const Call& whole_;
    Call call_;
    const Turned& turned_;
    const Blocks& blocks_;
    const int64_t piece_;
    const int64_t row_;  // elements from a row to the next one
    Call first_;         // the residuals of this call are computed before they are turned
    bool computes_ = false;
    Call noise_;  // draws noise in C's order, which is then turned
    bool draws_ = false;
    int64_t residuals_, drawn_;  // their first bytes in the block's memory
    Place place_;
    int64_t to_fetch_;  // the next element to prefetch while noise is drawn
    Array in_[kSlots], out_[3];
    Scratch scratch_;
};

}  // namespace

bool run_turned(const Call& call, const Turned& turned, int64_t piece, const Range& range, const GoOn& go_on) {
    const Blocks blocks(call, turned, piece);
    std::atomic<bool> failed{false};
    const auto body = [&](int64_t begin, int64_t end) {
        Block block(call, turned, blocks, piece);
        if (!block.take_memory()) failed = true;
        for (int64_t b = begin; b < end && !failed; ++b) block.run(b, range);
    };
    const int64_t at_once = std::clamp<int64_t>(blocks.count / (4 * num_threads()), 1, 8);
    const bool finished = parallel_for(blocks.count, at_once, body, go_on);
    if (failed) throw std::bad_alloc();
    return finished;
}

bool run_bands(const Call& call, const Turned& turned, int64_t count, const Band& band, const GoOn& go_on) {
    unsigned outputs = 0;
    for (int o = 0; o < 3; ++o) outputs |= call.out[o] && !(turned.outputs >> o & 1) ? 1u << o : 0;
    const Turned t{turned.columns, turned.rows, call.draw == Draw::none ? 0 : 1u << kZ, outputs};
    Blocks blocks(call, t, 0);
    blocks.whole_rows = true, blocks.width = t.columns;
    const int64_t least = turns_noise(call, t) ? kRun : kAccumulators;
    blocks.height = t.any() ? std::max(least, kBlock / t.columns / kAccumulators * kAccumulators) : kLossChunk;
    const int64_t across = chunks_of(t.rows);
    std::atomic<bool> failed{false};
    const auto body = [&](int64_t begin, int64_t end) {
        Scratch sums;
        Block block(call, t, blocks, 0);
        if (!sums.take(kAccumulators * sizeof(double) * static_cast<size_t>(t.columns)) || !block.take_memory())
            failed = true;
        const auto of_sums = [&](const Call& part, int64_t first, int64_t stop) { band(part, first, stop, sums.data); };
        for (int64_t b = begin; b < end && !failed; ++b) {
            const int64_t row = b / across * t.rows, first = b % across * kLossChunk,
                          stop = std::min(first + kLossChunk, t.rows);
            for (int64_t r = first; r < stop; r += blocks.height)
                block.run_rows({row + r, 0, std::min(blocks.height, stop - r), t.columns}, of_sums);
        }
    };
    const bool finished = parallel_for(count, 1, body, go_on);
    if (failed) throw std::bad_alloc();
    return finished;
}

}  // namespace nf
