// SPDX-License-Identifier: Apache-2.0
// The loops, compiled once for each lane type (NF_LANE, NF_LANE_HEADER, NF_KERNELS name it on the command line).
//
// A loop takes an array in tiles that stay in the L1 cache: it fills a tile with noise, then adds up the row's terms.
// The noise is made in two passes, words and normals. Each is short enough for the processor to overlap its iterations,
// which gains 10 to 15 % over one long loop body (docs/kernels.md has the measurements).
#include "kernels.h"

#include "drawing.h"
#include "factors.h"
#include "float_mode.h"
#include "impulses.h"
#include "iso.h"
#include "loss_range.h"
#include "magnitude.h"
#include "masks.h"
#include "mersenne_normals.h"
#include "poisson_range.h"
#include "pyramid_levels.h"
#include "tile_registers.h"
#include "turn.h"

namespace nf {
namespace {

// From this many elements on, a segment is a tile of its own: it reads its one row at half the cost of writing and
// reading its coefficients for each element.
constexpr int64_t kLongSegment = 64;

template <class Real>
void step_drawing_nothing(const Call& s, int64_t begin, int64_t end, bool stay) {
    Rows<Real> rows(s);
    Arrays<Real> arrays(s, stay);
    const OnArrays<Real> on_arrays(arrays, shape_of(rows));
    const bool far = s.size * s.batch > kFar && asks_early();
    const bool asks = far || (arrays.n_written > 1 && s.size * s.batch >= kSeveral);
    const int64_t most = s.row_for_each() ? rows.most : asks ? kTile : on_arrays.most;
    const bool cuts = s.segment >= kLongSegment && !s.row_for_each();
    // The first tile of a long array is short, so that the others begin with a line.
    int64_t size = end - begin >= 64 * kTile ? arrays.to_line(begin) : 0;
    for (int64_t at = begin; at < end; at += size, size = 0) {
        const int64_t left = s.segment - at % s.segment;
        size = least(size ? size : left < rows.most && !cuts ? rows.most : least(left, most), end - at);
        for (int g = 0; g * kGroup < size && asks; ++g) {
            if (far) arrays.prefetch_read(at, g);
            arrays.prefetch_written(at, g);
        }
        rows.select(at, at / s.segment, left, static_cast<int>(size));
        apply(on_arrays, rows, arrays, at, static_cast<int>(size), end);
    }
}

// Calls after(end) as soon as the elements before `end` are done.
template <class Real, class After>
void step_drawing(const Call& s, int64_t begin, int64_t end, bool stay, const After& after) {
    Rows<Real> rows(s);
    Arrays<Real> arrays(s, stay);
    Noise<Real> noise;
    const uint64_t shape = shape_of(rows);
    const OnNoise tile_on_noise[] = {on_noise(arrays, shape, false), on_noise(arrays, shape, true)};  // per_element
    const OnArrays<Real> on_arrays(arrays, shape);
    arrays.in_registers = tile_on_noise[0] || tile_on_noise[1];
    for_each_drawn_tile(s, begin, end, rows, arrays, [&](int64_t at, const Counters& counters, const RoundKeys& keys) {
        if constexpr (sizeof(Real) == 4)
            if (const OnNoise on_groups = tile_on_noise[rows.per_element];
                on_groups && counters.in_groups() &&
                (counters.whole_groups() || arrays.may_write_to(at + counters.groups * kGroup, end))) {
                fill_words<float>(noise.words, counters, keys, 0, 0, Prefetch<float, false>{arrays, at});
                on_groups(noise, counters, rows, arrays, at);
                return after(at + counters.size);
            }
        const Real* const of_tile = noise.fill(counters, keys, s.draw, 0, Prefetch<Real, true>{arrays, at});
        for_each_span(counters, of_tile, rows, at, [&](int64_t here, const Real* z, int n) {
            arrays.value[kZ] = z;
            apply(on_arrays, rows, arrays, here, n, end);
        });
        after(at + counters.size);
    });
}

// Not inlined: its caller uses all registers.
[[gnu::noinline]] void become(const Transition* levels, const uint8_t* x, const float* words, uint8_t* out, int n) {
    for (int i = 0; i < n; ++i) out[i] = transition(levels[x[i]], float_to_bits(words[i]));
}

// Turns bytes into other bytes by a table, without rows. Without a table the words themselves are the result.
void step_transitions(const Call& s, int64_t begin, int64_t end) {
    Rows<float> rows(s);
    Arrays<float> arrays(s);
    Noise<float> noise;
    const auto* const x = static_cast<const uint8_t*>(s.in[kX]);
    auto* const out = static_cast<uint8_t*>(s.out[0]);
    for_each_drawn_tile(s, begin, end, rows, arrays, [&](int64_t at, const Counters& counters, const RoundKeys& keys) {
        const float* const words = noise.fill_alone(counters, keys, Draw::words);
        if (!s.transitions) {
            std::memcpy(static_cast<float*>(s.out[0]) + at, words, sizeof(float) * static_cast<size_t>(counters.size));
            return;
        }
        for (int i = 0; i < counters.size;) {
            const int64_t segment = (at + i) / s.segment, left = (segment + 1) * s.segment - at - i;
            const auto n = static_cast<int>(least(left, counters.size - i));
            become(s.transitions + kLevels * row_of(s, segment), x + at + i, words + i, out + at + i, n);
            i += n;
        }
    });
}

// The random walk x_t = a_t x_(t-1) + s_t z_t: a tile of x0 goes through all times before the next one is read.
template <class Real>
void walk_range(const Call& s, int64_t begin, int64_t end) {
    Cursor cursor(s, begin);
    Noise<Real> noise;
    Counters counters;
    alignas(64) Real x[kTile];
    const Real* table = static_cast<const Real*>(s.rows) + kAffine[0] + 1;
    while (cursor.at < end) {
        const int64_t at = cursor.at, left = least(cursor.uniform_left(), end - at);
        const RoundKeys keys(cursor.field().seed);
        if (is_short(cursor, left, end, true)) {
            take_short_runs<Real>(counters, cursor, end, kTile);
        } else {
            take_run(counters, cursor);
            counters.take(cursor.element, left);
            cursor.advance(counters.size);
        }
        load_as(x, s.in[kX], s.in_type[kX], at, counters.size);
        for (int64_t t = 0; t < s.times; ++t) {
            const Real* z = noise.fill_alone(counters, keys, Draw::normal, static_cast<uint32_t>(t));
            const Real *c[2] = {table + kColumns * t + kZ, table + kColumns * t + kX}, *v[2] = {z, x},
                       *no_constant = nullptr;
            sum_terms<false, 2>(x, counters.size, 2, no_constant, c, v, false);
            if (s.keep[t] >= 0) store_as(s.out[0], s.type, s.keep[t] * s.size * s.batch + at, x, counters.size, false);
        }
    }
}

template <class Real>
void step_range(const Call& s, int64_t begin, int64_t end, bool stay) {
    const FloatMode mode;
    if (s.draw == Draw::words) return step_transitions(s, begin, end);
    if (s.draw == Draw::none)
        step_drawing_nothing<Real>(s, begin, end, stay);
    else
        step_drawing<Real>(s, begin, end, stay, [](int64_t) {});
    if (!stay && s.size * s.batch * int64_t{sizeof(Real)} >= kPastCaches) Lane::fence_nontemporal();
}

void step(const Call& s, int64_t begin, int64_t end, bool stay) {
    s.type == DType::f64 ? step_range<double>(s, begin, end, stay) : step_range<float>(s, begin, end, stay);
}

void walk(const Call& s, int64_t begin, int64_t end) {
    const FloatMode mode;
    s.type == DType::f64 ? walk_range<double>(s, begin, end) : walk_range<float>(s, begin, end);
}

// Does a step, and the loss of its result tile by tile. False: nothing was done, as the loss does not allow it.
template <class Real>
[[gnu::noinline]] bool step_with_loss(const Call& s, const Call& of_loss, int64_t begin, int64_t end, int64_t chunk) {
    Residuals<Real> residuals(of_loss, chunk);
    RegisterResiduals<Real> in_registers(residuals, of_loss, begin, 0);
    if (!in_registers || s.draw == Draw::none) return false;
    step_drawing<Real>(s, begin, end, true, [&](int64_t known) { in_registers.take_to(known); });
    return true;
}

// Does a step, and the chunks of a loss that reads its result: at once, or soon after the step.
template <class Real>
void step_and_loss_range(const Call& s, const Call& of_loss, int64_t begin_chunk, int64_t end_chunk) {
    const FloatMode mode;
    const int64_t begin = first_of_chunk(of_loss.piece, begin_chunk), end = first_of_chunk(of_loss.piece, end_chunk);
    if (step_with_loss<Real>(s, of_loss, begin, end, begin_chunk)) return;
    step_range<Real>(s, begin, end, true);
    loss_range<Real>(of_loss, begin_chunk, end_chunk, false);
}

// How much stack a loop may use. With musl threads get 128 KiB, and their callers need the rest.
static_assert(sizeof(Rows<double>) + sizeof(Arrays<double>) + sizeof(Noise<double>) + sizeof(Residuals<double>) <=
              84 << 10);

void step_and_loss(const Call& s, const Call& of_loss, int64_t begin_chunk, int64_t end_chunk) {
    s.type == DType::f64 ? step_and_loss_range<double>(s, of_loss, begin_chunk, end_chunk)
                         : step_and_loss_range<float>(s, of_loss, begin_chunk, end_chunk);
}

void loss(const Call& s, int64_t begin_chunk, int64_t end_chunk, bool stay) {
    const FloatMode mode;
    s.type == DType::f64 ? loss_range<double>(s, begin_chunk, end_chunk, stay)
                         : loss_range<float>(s, begin_chunk, end_chunk, stay);
    Lane::fence_nontemporal();
}

void turned_loss(const Call& s, int64_t rows, int64_t columns, int64_t begin, int64_t end, void* sums) {
    const FloatMode mode;
    s.type == DType::f64 ? turned_loss_range(s, rows, columns, begin, end, static_cast<double*>(sums))
                         : turned_loss_range(s, rows, columns, begin, end, static_cast<float*>(sums));
}

// NaN stays NaN, and a zero has its sign.
template <class T>
void clip(T* x, T* end, T low, T high) {
    for (; x < end; ++x) {
        const T above = low > *x ? low : *x;
        *x = high < above ? high : above;
    }
}

// The bits of a half, read as a signed integer, rise with its number once those of negative ones are reversed.
void clip_halves(uint16_t* x, uint16_t* end, uint16_t low, uint16_t high, int16_t infinity) {
    const auto place = [](uint16_t bits) {
        const auto number = static_cast<int16_t>(bits);
        return static_cast<int16_t>(number ^ ((number >> 15) & 0x7FFF));
    };
    const auto is_zero = [](uint16_t bits) { return (bits & 0x7FFF) == 0; };
    const int16_t from = is_zero(low) ? int16_t{-1} : place(low), to = is_zero(high) ? int16_t{0} : place(high);
    const auto least = static_cast<int16_t>(~infinity);
    for (; x < end; ++x) {
        const int16_t at = place(*x);
        const bool below = (at < from) & (at >= least), above = (at > to) & (at <= infinity);
        *x = below ? low : above ? high : *x;
    }
}

void clip(const Call& call, int64_t begin, int64_t end, double low, double high) {
    const FloatMode mode;
    const auto all = [&](auto zero) {
        using T = decltype(zero);
        T* const x = static_cast<T*>(call.out[0]);
        clip(x + begin, x + end, static_cast<T>(low), static_cast<T>(high));
    };
    auto* const halves = static_cast<uint16_t*>(call.out[0]);
    const auto lowest = static_cast<float>(low), highest = static_cast<float>(high);
    switch (call.out_type) {
        case DType::f32:
            return all(0.0f);
        case DType::f64:
            return all(0.0);
        case DType::u8:
            return all(uint8_t{0});
        case DType::u16:
            return all(uint16_t{0});
        case DType::f16:
            return clip_halves(halves + begin, halves + end, float_to_half(lowest), float_to_half(highest), 0x7C00);
        case DType::bf16:
            return clip_halves(halves + begin, halves + end, static_cast<uint16_t>(float_to_bits(lowest) >> 16),
                               static_cast<uint16_t>(float_to_bits(highest) >> 16), 0x7F80);
    }
}

}  // namespace

extern RaceKernel NF_RACE;  // race.cpp
extern const Kernels NF_KERNELS;
const Kernels NF_KERNELS{
    NF_NAME,    step,          walk,         loss,          turned_loss,  step_and_loss, clip,
    mask_range, impulse_range, rician_range, poisson_range, factor_range, iso_range,     lightness_range,
    enlarged,   torch_normals, kTurn,        NF_RACE};

}  // namespace nf
