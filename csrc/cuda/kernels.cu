// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels: shells around core/. "Vector" kernels take spans (launch.h) in aligned accesses of up to 16 bytes.
// If the arrays do not allow that, "any" kernels take them block by block of the generator.
#include "../core/loss.h"
#include "../core/normal.h"
#include "storage.h"

namespace nf {
namespace {

constexpr uint64_t column_bit(int output, int slot) { return uint64_t{1} << (affine_column(output) + 1 + slot); }

// ---- noise ---------------------------------------------------------------------------------------------------

__device__ inline uint64_t sample_id(const Field& field, int64_t row) {
    return field.samples ? field.samples[row] : field.sample + static_cast<uint64_t>(row);
}

// The blocks of one sample at one step. float64 takes twice as many words (docs/noise.md).
template <class Real>
struct Source {
    const RoundKeys& keys;
    Common common, lower;

    __device__ Source(const RoundKeys& round_keys, const Field& field, uint64_t id, uint32_t later)
        : keys(round_keys),
          common(keys, step(field) + later, static_cast<uint32_t>(id), tag(field, id)),
          lower(keys, step(field) + later, static_cast<uint32_t>(id), tag(field, id) | 1u << 31) {}

    static __device__ uint32_t step(const Field& field) { return field.step + (field.counter ? *field.counter : 0u); }
    static __device__ uint32_t tag(const Field& field, uint64_t id) {
        return field.stream << 24 | static_cast<uint32_t>(id >> 32);
    }

    __device__ void fill(Real* z, uint32_t block, Draw draw) const {
        const uint64_t product = Cuda::product(block, kPhiloxM0);
        const auto [w] = philox_blocks<Cuda>(product, common, keys);
        if constexpr (sizeof(Real) == 8) {
            const auto [v] = philox_blocks<Cuda>(product, lower, keys);
            if (draw == Draw::uniform)
                for (int i = 0; i < 4; ++i) z[i] = uniform<Cuda, 0>(w[i], v[i]);
            else
                put(z, normal_pair<Cuda, 0>(w[0], v[0], w[1], v[1]), normal_pair<Cuda, 0>(w[2], v[2], w[3], v[3]));
        } else if (draw == Draw::uniform) {
            for (int i = 0; i < 4; ++i) z[i] = uniform<Cuda>(w[i]);
        } else if (draw == Draw::words) {
            for (int i = 0; i < 4; ++i) z[i] = bits_to_float(w[i]);
        } else {
            put(z, normal_pair<Cuda>(w[0], w[1]), normal_pair<Cuda>(w[2], w[3]));
        }
    }

    static __device__ void put(Real* z, Pair<Real> p, Pair<Real> q) {
        z[0] = p.z0, z[1] = p.z1, z[2] = q.z0, z[3] = q.z1;
    }
};

// ---- rows ----------------------------------------------------------------------------------------------------

// The row of a span, or of a loss's piece, by number and length: each has one row, or all have the same.
__device__ inline int64_t row_of(const Launch& launch, uint32_t number, int64_t length) {
    const Call& call = launch.call;
    return call.index ? call.index[call.segment == length ? number : 0] : launch.row;
}

// The row of an element, if each has its own.
__device__ inline int64_t row_of_element(const Call& call, int64_t at) {
    if (call.by_level) return static_cast<const uint8_t*>(call.in[kX])[at];
    return call.index[at / call.size * call.period + at % call.size % call.period];
}

// A row beyond the table makes NaN: only the device knows the index.
__device__ inline bool has_row(const Call& call, int64_t index) {
    return static_cast<uint64_t>(index) < static_cast<uint64_t>(call.n_rows);
}

// One row. `Known` is the set of active columns if it is known in advance, else 0.
template <uint64_t Known, class Real>
struct Row {
    static constexpr int kept = Known ? kColumns : 1;
    uint64_t active;
    const Real* table;
    bool exists;
    Real numbers[kept];

    __device__ Row(const Call& call, int64_t index)
        : active(Known ? Known : call.active), exists(has_row(call, index)) {
        table = static_cast<const Real*>(call.rows) + kColumns * uint64_t{exists ? static_cast<uint32_t>(index) : 0u};
#pragma unroll
        for (int column = 0; column < kept; ++column)
            if (counts(Known, column)) numbers[column] = table[column];
    }

    __device__ Real operator[](int column) const {
        if constexpr (Known != 0) return numbers[column];
        return table[column];
    }

    // The start of a linear combination: k or, without a constant, -0, to which adding c v changes nothing; 0 without
    // terms.
    __device__ Real start(int first, int slots) const {
        if (!exists) return static_cast<Real>(bits_to_float(0x7FFFFFFFu));  // NaN
        if (counts(active, first)) return (*this)[first];
        return static_cast<Real>(active >> (first + 1) & ((1u << slots) - 1) ? -0.0f : 0.0f);
    }
};

// Applies a row to the elements of a thread. Array has load(slot, values) and store(output, values); a term's values
// are loaded when it is their turn.
template <uint64_t Known, bool Drawn, class Array, class Real, int n>
struct Combinations {
    const Row<Known, Real>& row;
    const Array& array;
    const Real (&z)[n];  // if Drawn; else z is an array like the others
    Real clean[n];

    __device__ void sum(Real (&to)[n], int first, int slots) const {
        const Real from = row.start(first, slots);
        for (int i = 0; i < n; ++i) to[i] = from;
        for_each_term(row.active, first, slots, [&](int column, int slot) {
            const Real c = row[column];
            const bool drawn = Drawn && slot == kZ;
            Real loaded[n];
            if (!drawn && slot != kD) array.load(slot, loaded);
            for (int i = 0; i < n; ++i) to[i] = Cuda::fma(c, drawn ? z[i] : slot == kD ? clean[i] : loaded[i], to[i]);
        });
    }

    // The same without D: after the noise, a loop that is not unrolled, so that there is one copy of all conversions.
    // It goes from the last slot to the first, in the order of for_each_term without D.
    __device__ void sum_in_turn(Real (&to)[n], int first) const {
        const Real from = row.start(first, kSlots);
        for (int i = 0; i < n; ++i) to[i] = from;
        if (counts(row.active, first + 1 + kZ)) {
            const Real c = row[first + 1 + kZ];
            for (int i = 0; i < n; ++i) to[i] = Cuda::fma(c, z[i], to[i]);
        }
#pragma unroll 1
        for (int slot = kZ - 1; slot >= 0; --slot) {
            if (!counts(row.active, first + 1 + slot)) continue;
            const Real c = row[first + 1 + slot];
            Real loaded[n];
            array.load(slot, loaded);
            for (int i = 0; i < n; ++i) to[i] = Cuda::fma(c, loaded[i], to[i]);
        }
    }

    __device__ void make_clean() {
        sum(clean, kClean, 3);
        if (!clamps(row.active)) return;
        const Real low = row[kLow], high = row[kHigh];
        for (int i = 0; i < n; ++i) clean[i] = Cuda::clamp(clean[i], low, high);
    }

    // Computes all outputs before the first store: an output may be an input. Known rows have one output.
    __device__ void outputs(void* const (&wanted)[3]) {
        constexpr int most = Known ? 1 : 3;
        Real out[most][n];
        if (Known ? counts(Known, affine_column(0) + 1 + kD) : wants_clean(row.active, wanted)) make_clean();
#pragma unroll
        for (int o = 0; o < most; ++o)
            if (o == 0 || wanted[o]) sum(out[o], affine_column(o), kSlots);
#pragma unroll
        for (int o = 0; o < most; ++o)
            if (o == 0 || wanted[o]) array.store(o, out[o]);
    }

    // The gradient of a clamp: it passes if D lay within the bounds. NaN lies within none.
    __device__ void masked_output() {
        Real out[n], inner[n];
        sum(clean, kClean, 3);
        sum(out, affine_column(0), kSlots);
        sum(inner, affine_column(1), kSlots);
        const Real low = row[kLow], high = row[kHigh];
        for (int i = 0; i < n; ++i)
            out[i] = Cuda::add(out[i], low <= clean[i] && clean[i] <= high ? inner[i] : Real{0});
        array.store(0, out);
    }
};

constexpr uint64_t kNoise = column_bit(0, kZ), kForward = kNoise | column_bit(0, kX);
constexpr uint64_t kForwardLevels = kForward | uint64_t{1} << affine_column(0);
// x' = b m + d D with D = p x + q m: DDIM, Euler, flow matching.
constexpr uint64_t kTwoInputs =
    uint64_t{1} << (kClean + 1 + kX) | uint64_t{1} << (kClean + 1 + kM1) | column_bit(0, kM1) | column_bit(0, kD);

// The random walk x_t = a_t x_(t-1) + s_t z_t, all times for one load of x0.
template <class Real, int n, class Array, class Fill>
__device__ inline void walk(const Launch& launch, const Array& array, Fill draw) {
    const Call& call = launch.call;
    struct State {
        Real x[n];
        __device__ void load(int, Real (&values)[n]) const {
            for (int i = 0; i < n; ++i) values[i] = x[i];
        }
    } state;
    array.load(kX, state.x);
    for (int64_t t = 0; t < call.times; ++t) {
        Real z[n];
        draw(z, static_cast<uint32_t>(t));
        const Row<kForward, Real> row(call, t);
        Real next[n];
        Combinations<kForward, true, State, Real, n>{row, state, z, {}}.sum(next, affine_column(0), kSlots);
        for (int i = 0; i < n; ++i) state.x[i] = next[i];
        if (const int64_t kept = call.keep[t]; kept >= 0) array.store(0, state.x, kept * launch.total);
    }
}

// ---- vector --------------------------------------------------------------------------------------------------

// Units of a span. They lie one block of threads apart, so that neighbours access neighbours.
template <class Type, class Input, int units>
struct Vectors {
    using Real = typename Type::Real;
    static constexpr int n = units * Type::unit, stride = kThreads * Type::unit;
    const Call& call;
    int64_t at;  // the first element
    int left;    // elements of the span from there on

    __device__ void load(int slot, Real (&values)[n]) const {
        slot == kX ? load_as<Input>(slot, values) : load_as<Type>(slot, values);
    }
    template <class Stored>
    __device__ void load_as(int slot, Real (&values)[n]) const {
        const char* from = static_cast<const char*>(call.in[slot]) + at * Stored::bytes;
        for (int u = 0; u < units; ++u)
            if (u * stride < left)
                nf::load<Stored, Type::unit>(values + u * Type::unit, from + u * stride * Stored::bytes);
    }
    __device__ void store(int output, const Real (&values)[n], int64_t further = 0) const {
        char* to = static_cast<char*>(call.out[output]) + (at + further) * Type::bytes;
        for (int u = 0; u < units; ++u)
            if (u * stride < left) nf::store<Type, Type::unit>(to + u * stride * Type::bytes, values + u * Type::unit);
    }
};

// The place of a block of threads: x counts stretches of a span, y samples, z the spans of a sample.
struct Place {
    int offset, left;  // the thread's first element in its span, and the elements from there on
    uint32_t sample, span, block;
    int64_t at;

    __device__ Place(const Launch& launch, int per_thread, int unit) {
        offset = static_cast<int>((blockIdx.x * kThreads * per_thread / unit + threadIdx.x) * unit);
        left = static_cast<int>(launch.span) - offset;
        sample = launch.first + blockIdx.y;
        span = sample * gridDim.z + blockIdx.z;
        block = static_cast<uint32_t>(launch.field.start >> 2) + blockIdx.z * launch.blocks + offset / 4;
        at = span * static_cast<uint64_t>(launch.span) + offset;
    }
};

// Each thread takes `rounds` times `units` units.
template <class Type, class Input, int units, int rounds, Draw draw, uint64_t Known>
__device__ inline void vector_step(const Launch& launch) {
    using Real = typename Type::Real;
    using Array = Vectors<Type, Input, units>;
    constexpr int n = Array::n, stride = Array::stride;
    const Call& call = launch.call;
    const Place place(launch, n * rounds, Type::unit);
    const int64_t index = row_of(launch, place.span, launch.span);
    const Row<Known, Real> row(call, index);
    const uint32_t later = call.step_by_index ? static_cast<uint32_t>(index) : 0u;
    const Source<Real> source(launch.keys, launch.field, sample_id(launch.field, place.sample), later);
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
        const int done = round * units * stride;
        if (done >= place.left) return;
        const Array array{call, place.at + done, place.left - done};
        Real z[n];
        for (int i = 0; i < n && draw != Draw::none; i += 4)
            source.fill(z + i, place.block + (done + i / Type::unit * stride + i % Type::unit) / 4, draw);
        Combinations<Known, draw != Draw::none, Array, Real, n> combinations{row, array, z, {}};
        if (draw == Draw::none && Known == 0 && call.masked)
            combinations.masked_output();
        else
            combinations.outputs(call.out);
    }
}

template <class Type>
__device__ inline void vector_walk(const Launch& launch) {
    using Real = typename Type::Real;
    const Place place(launch, Type::unit, Type::unit);
    if (place.left <= 0) return;
    const Vectors<Type, Type, 1> array{launch.call, place.at, place.left};
    walk<Real, Type::unit>(launch, array, [&](Real* z, uint32_t t) {
        const Source<Real> source(launch.keys, launch.field, sample_id(launch.field, place.sample), t);
        for (int i = 0; i < Type::unit; i += 4) source.fill(z + i, place.block + i / 4, Draw::normal);
    });
}

// ---- any -----------------------------------------------------------------------------------------------------

// a / b for a >= 0, b > 0: 64-bit division costs several times as much, and few calls need it.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
    return (a | b) >> 32 ? a / b : static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
}

// An element of the field, and how many of the sample's elements are contiguous from it on.
struct Spot {
    int64_t element, left;
};

// The spot at place `in_sample` of a sample.
__device__ inline Spot spot_of(const Field& field, int64_t in_sample) {
    if (field.axes == 0) return {field.start + in_sample, field.run - in_sample};
    int64_t rest = quotient(in_sample, field.run);
    const int64_t in_run = in_sample - rest * field.run;
    Spot spot{field.start + in_run, field.run - in_run};
#pragma unroll 1
    for (int64_t axis = field.axes - 1; axis >= 0; --axis) {
        const int64_t above = quotient(rest, field.shape[axis]);
        spot.element += (rest - above * field.shape[axis]) * field.stride[axis];
        rest = above;
    }
    return spot;
}

// The elements of a span from one block of the generator, of any types. The loop over inputs is not unrolled, so that
// there is one copy of all conversions. Loaded values wait in shared memory, which can be indexed.
template <class Real>
struct Elements {
    static constexpr int threads = 1024 / sizeof(Real);
    const Call& call;
    int64_t at;       // the block's first element, which may lie before the span
    int first, last;  // the block's elements in the span
    Real (*staged)[4][threads];
    static constexpr int kStaged = kSlots - 1;  // all but D, which is no input

    static __device__ int place(int slot) { return slot - (slot > kD); }
    __device__ bool ours(int i) const { return first <= i && i < last; }
    __device__ void stage() const {
#pragma unroll 1
        for (int slot = 0; slot < kSlots; ++slot)
            for (int i = 0; i < 4 && call.in[slot]; ++i)
                if (ours(i))
                    staged[place(slot)][i][threadIdx.x] = load_one<Real>(call.in_type[slot], call.in[slot], at + i);
    }
    __device__ void load(int slot, Real (&values)[4]) const {
        for (int i = 0; i < 4; ++i) values[i] = ours(i) ? staged[place(slot)][i][threadIdx.x] : Real{0};
    }
    __device__ void store(int output, const Real (&values)[4], int64_t further = 0) const {
        for (int i = 0; i < 4; ++i)
            if (ours(i)) store_one(call.type_of(output), call.out[output], at + further + i, values[i]);
    }
    // Uses the words unchanged.
    __device__ void become(const Real (&words)[4], int64_t row) const {
        for (int i = 0; i < 4; ++i)
            if (ours(i)) {
                const uint8_t x = static_cast<const uint8_t*>(call.in[kX])[at + i];
                static_cast<uint8_t*>(call.out[0])[at + i] =
                    transition(call.transitions[kLevels * row + x], float_to_bits(words[i]));
            }
    }
};

template <class Real, bool Walks>
__device__ inline void any(const Launch& launch) {
    __shared__ Real staged[Elements<Real>::kStaged][4][Elements<Real>::threads];
    const Call& call = launch.call;
    const int64_t number = int64_t{blockIdx.x} * Elements<Real>::threads + threadIdx.x,
                  span = quotient(number, launch.blocks);
    if (span >= launch.spans) return;
    const int64_t at = span * launch.span, sample = quotient(at, call.size);
    const Field& field = call.field_per_sample ? call.fields[sample] : launch.field;
    const int64_t element = call.draw == Draw::none ? 0 : spot_of(field, at - sample * call.size).element;
    const int64_t before = element % 4, place = 4 * (number - span * launch.blocks) - before,
                  left = launch.span - place;
    if (left <= 0) return;
    const Elements<Real> array{call, at + place, place < 0 ? static_cast<int>(before) : 0,
                               left < 4 ? static_cast<int>(left) : 4, staged};
    array.stage();
    auto draw = [&](Real* z, uint32_t later) {
        const RoundKeys keys(field.seed);
        const Source<Real> source(keys, field, sample_id(field, call.field_per_sample ? 0 : sample), later);
        source.fill(z, static_cast<uint32_t>((element + place) / 4), call.draw);
    };
    if constexpr (Walks) {
        walk<Real, 4>(launch, array, draw);
    } else {
        const int64_t index = call.row_for_each() ? row_of_element(call, at)
                              : call.index        ? call.index[quotient(at, call.segment)]
                                                  : launch.row;
        const Row<0, Real> row(call, index);
        Real z[4];
        if (call.draw != Draw::none)
            draw(z, call.step_by_index ? static_cast<uint32_t>(index) : 0u);
        else
            array.load(kZ, z);
        if constexpr (sizeof(Real) == 4)
            if (call.draw == Draw::words) return array.become(z, has_row(call, index) ? index : 0);
        Combinations<0, true, Elements<Real>, Real, 4> combinations{row, array, z, {}};
        if (scales_noise(call.active)) {
            combinations.make_clean();
            for (int i = 0; i < 4; ++i) {
                const Real clean = combinations.clean[i];
                z[i] = Cuda::mul(z[i], call.active & kTimesRoot ? Cuda::sqrt(clean) : clean);
            }
        }
        call.masked ? combinations.masked_output() : combinations.outputs(call.out);
    }
}

// ---- the loss ------------------------------------------------------------------------------------------------
// A block of threads takes one chunk: four elements per thread at a time. Their residuals then wait in shared memory
// for their accumulators. The block's joint work is done in parts (instructions.h).

// The weight of a row. A row beyond the table gets any weight: its residuals are NaN.
__device__ inline double weight_of(const Call& call, int64_t index) {
    return call.weights ? call.weights[has_row(call, index) ? index : 0] : 1.0;
}

// A chunk, by number.
struct Chunk {
    uint32_t piece, sample;
    int64_t at, in_sample;  // its first element in the batch, and in its sample
    int length;

    __device__ Chunk(const Launch& launch, uint32_t number)
        : piece(number / launch.chunks), sample(piece / launch.pieces) {
        const Call& call = launch.call;
        const int64_t in_piece = (number - piece * launch.chunks) * kLossChunk, left = call.piece - in_piece;
        at = piece * call.piece + in_piece;
        in_sample = at - sample * call.size;
        length = static_cast<int>(left < kLossChunk ? left : kLossChunk);
    }
};

template <class Real>
struct Tile {
    alignas(16) Real r[4 * kThreads];
    Real sum[kAccumulators];
    Real factor;
};

template <class Real>
struct Residuals {
    const Launch& launch;
    const Chunk& chunk;
    Tile<Real>& tile;
    int64_t index;

    struct Inputs {
        const Call& call;
        int64_t at;
        int n;
        __device__ void load(int slot, Real (&values)[4]) const {
            load_four(values, call.in_type[slot], call.in[slot], at, n);
        }
    };

    // Takes this thread's four elements of the tile that begins at `begin`.
    __device__ void take(int begin) const {
        const int place = 4 * static_cast<int>(threadIdx.x), left = chunk.length - begin - place;
        if (left <= 0) return;
        const int n = left < 4 ? left : 4;
        const int64_t at = chunk.at + begin + place;
        const Call& call = launch.call;
        const Inputs inputs{call, at, n};
        Real z[4] = {}, r[4];
        if (call.draw != Draw::none) {
            draw(tile.r + place, chunk.in_sample + begin + place, n);
            for (int i = 0; i < 4; ++i) z[i] = tile.r[place + i];
        } else if (call.in[kZ]) {
            inputs.load(kZ, z);
        }
        // There is no D: a loss's residual combines noise, m1 and x; a log-density's every input of the mean.
        const Row<0, Real> row(call, index);
        Combinations<0, true, Inputs, Real, 4>{row, inputs, z, {}}.sum_in_turn(r, affine_column(0));
        for (int i = 0; i < 4; ++i) tile.r[place + i] = r[i];
        if (!call.out[0]) return;
        for (int i = 0; i < 4; ++i) r[i] = Cuda::mul(tile.factor, r[i]);
        store_four(call.type, call.out[0], at, r, n);
    }

    // Draws noise for n elements from this place of the sample on, which may lie in several blocks of the generator.
    __device__ void draw(Real* z, int64_t in_sample, int n) const {
        const Source<Real> source(launch.keys, launch.field, sample_id(launch.field, chunk.sample - launch.first), 0);
#pragma unroll 1
        for (int i = 0; i < n;) {
            const Spot spot = spot_of(launch.field, in_sample + i);
            const int word = static_cast<int>(spot.element) & 3;
            int end = spot.left < n - i ? word + static_cast<int>(spot.left) : word + n - i;
            if (end > 4) end = 4;
            Real drawn[4];
            source.fill(drawn, static_cast<uint32_t>(spot.element >> 2), Draw::normal);
            if (end - word == 4) {
                for (int k = 0; k < 4; ++k) z[k] = drawn[k];
                return;
            }
            for (int k = 0; k < 4; ++k)
                if (word <= k && k < end) z[i + k - word] = drawn[k];
            i += end - word;
        }
    }
};

template <class Real>
__device__ inline void loss(const Launch& launch) {
    __shared__ Tile<Real> tile;
    const Call& call = launch.call;
    const uint32_t number = launch.first * launch.pieces * launch.chunks + blockIdx.x;
    const Chunk chunk(launch, number);
    const int64_t index = row_of(launch, chunk.piece, call.piece);
    const int threads = static_cast<int>(blockDim.x);
    const Residuals<Real> residuals{launch, chunk, tile, index};
    together([&] {
        for (int j = threadIdx.x; j < kAccumulators; j += threads) tile.sum[j] = 0;
        if (!call.out[0] || threadIdx.x != 0) return;
        const double g = call.upstream ? call.upstream[chunk.sample * call.upstream_step] : call.g;
        tile.factor = static_cast<Real>(gradient_factor(weight_of(call, index), g, call.n));
    });
#pragma unroll 1
    for (int begin = 0; begin < chunk.length; begin += 4 * threads) {
        together([&] { residuals.take(begin); });
        if (!call.chunk_sums) continue;
        const int left = chunk.length - begin, end = left < 4 * threads ? left : 4 * threads;
        together([&] {
            for (int j = threadIdx.x; j < kAccumulators; j += threads) {
                Real sum = tile.sum[j];
                for (int i = j; i < end; i += kAccumulators) sum = Cuda::fma(tile.r[i], tile.r[i], sum);
                tile.sum[j] = sum;
            }
        });
    }
    if (!call.chunk_sums) return;
    for (int half = kAccumulators / 2; half > 0; half /= 2)
        together([&] { add_half(tile.sum, half, threadIdx.x, threads); });
    together([&] {
        if (threadIdx.x == 0) call.chunk_sums[number] = static_cast<double>(tile.sum[0]);
    });
}

// Adds the loss of one sample in a block of threads: the first thread adds the others' sums.
__device__ inline void add_up(const Launch& launch) {
    constexpr int most = 1024;
    __shared__ double sums[most];
    const Call& call = launch.call;
    const int64_t count = int64_t{launch.pieces} * launch.chunks;
    SampleSum<Cuda> sample{};
    for (int64_t begin = 0; begin < count; begin += most) {
        const int n = static_cast<int>(count - begin < most ? count - begin : most);
        together([&] {
            for (int i = threadIdx.x; i < n; i += blockDim.x) sums[i] = call.chunk_sums[blockIdx.x * count + begin + i];
        });
        together([&] {
            if (threadIdx.x == 0)
                sample.add(sums, n, launch.chunks, [&](int64_t p) {
                    return weight_of(call,
                                     row_of(launch, blockIdx.x * launch.pieces + static_cast<uint32_t>(p), call.piece));
                });
        });
    }
    together([&] {
        if (threadIdx.x == 0) call.losses[blockIdx.x] = sample.total / call.n;
    });
}

}  // namespace
}  // namespace nf

// ---- the kernels ---------------------------------------------------------------------------------------------
// The name gives the operation, x's type if it differs, and the outputs' type. The number of threads in a block follows
// (and the number of blocks that must fit, if the compiler spills to fit more).

// clang-format off
#define NF_KERNELS(X) \
    X(forward_f32, (256), vector_step<F32, F32, 1, 8, Draw::normal, kForward>)             \
    X(forward_f64, (256), vector_step<F64, F64, 1, 2, Draw::normal, kForward>)             \
    X(forward_f16, (256), vector_step<F16, F16, 1, 4, Draw::normal, kForward>)             \
    X(forward_bf16, (256), vector_step<BF16, BF16, 1, 4, Draw::normal, kForward>)          \
    X(forward_u8_f32, (256), vector_step<F32, U8, 1, 8, Draw::normal, kForwardLevels>)     \
    X(forward_u8_f64, (256), vector_step<F64, U8, 1, 2, Draw::normal, kForwardLevels>)     \
    X(forward_u8_f16, (256), vector_step<F16, U8, 1, 4, Draw::normal, kForwardLevels>)     \
    X(forward_u8_bf16, (256), vector_step<BF16, U8, 1, 4, Draw::normal, kForwardLevels>)   \
    X(forward_u16_f32, (256), vector_step<F32, U16, 1, 8, Draw::normal, kForwardLevels>)   \
    X(forward_u16_f64, (256), vector_step<F64, U16, 1, 2, Draw::normal, kForwardLevels>)   \
    X(forward_u16_f16, (256), vector_step<F16, U16, 1, 4, Draw::normal, kForwardLevels>)   \
    X(forward_u16_bf16, (256), vector_step<BF16, U16, 1, 4, Draw::normal, kForwardLevels>) \
    X(normal_f32, (256), vector_step<F32, F32, 1, 8, Draw::normal, kNoise>)                \
    X(normal_f64, (256), vector_step<F64, F64, 1, 2, Draw::normal, kNoise>)                \
    X(normal_f16, (256), vector_step<F16, F16, 1, 4, Draw::normal, kNoise>)                \
    X(normal_bf16, (256), vector_step<BF16, BF16, 1, 4, Draw::normal, kNoise>)             \
    X(uniform_f32, (256), vector_step<F32, F32, 1, 8, Draw::uniform, kNoise>)              \
    X(uniform_f64, (256), vector_step<F64, F64, 1, 2, Draw::uniform, kNoise>)              \
    X(two_f32, (256), vector_step<F32, F32, 2, 2, Draw::none, kTwoInputs>)                 \
    X(two_f64, (256), vector_step<F64, F64, 2, 1, Draw::none, kTwoInputs>)                 \
    X(two_f16, (256), vector_step<F16, F16, 1, 2, Draw::none, kTwoInputs>)                 \
    X(two_bf16, (256), vector_step<BF16, BF16, 1, 2, Draw::none, kTwoInputs>)              \
    X(step_f32, (256), vector_step<F32, F32, 2, 1, Draw::none, 0>)                         \
    X(step_f64, (256), vector_step<F64, F64, 1, 1, Draw::none, 0>)                         \
    X(step_f16, (256), vector_step<F16, F16, 1, 1, Draw::none, 0>)                         \
    X(step_bf16, (256), vector_step<BF16, BF16, 1, 1, Draw::none, 0>)                      \
    X(drawing_f32, (256), vector_step<F32, F32, 2, 1, Draw::normal, 0>)                    \
    X(drawing_f64, (256), vector_step<F64, F64, 1, 1, Draw::normal, 0>)                    \
    X(drawing_f16, (256), vector_step<F16, F16, 1, 1, Draw::normal, 0>)                    \
    X(drawing_bf16, (256), vector_step<BF16, BF16, 1, 1, Draw::normal, 0>)                 \
    X(walk_f32, (256), vector_walk<F32>)                                              \
    X(walk_f64, (256), vector_walk<F64>)                                              \
    X(walk_f16, (256), vector_walk<F16>)                                              \
    X(walk_bf16, (256), vector_walk<BF16>)                                            \
    X(any_f32, (256, 3), any<float, false>)                                           \
    X(any_f64, (128), any<double, false>)                                             \
    X(any_walk_f32, (256, 3), any<float, true>)                                       \
    X(any_walk_f64, (128), any<double, true>)                                         \
    X(loss_f32, (256, 3), loss<float>)                                                   \
    X(loss_f64, (256, 3), loss<double>)                                                  \
    X(losses_f64, (256), add_up)
// clang-format on

#define NF_KERNEL(name, bounds, ...)                                                                           \
    extern "C" __global__ void __launch_bounds__ bounds nf_##name(const __grid_constant__ nf::Launch launch) { \
        using namespace nf;                                                                                    \
        __VA_ARGS__(launch);                                                                                   \
    }

NF_KERNELS(NF_KERNEL)
