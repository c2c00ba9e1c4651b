// SPDX-License-Identifier: Apache-2.0
// The loops, compiled once for each lane type (NF_LANE, NF_LANE_HEADER, NF_KERNELS name it on the command line).
//
// An array is taken in tiles that stay in the L1 cache: fill a tile with noise, then add up the row's terms over it. The
// noise itself has two passes, words and normals: each is short enough for the processor to overlap its iterations, which
// is worth 10 to 15 % over one long loop body (docs/design.md has the measurements).
#include "kernels.h"

#include NF_LANE_HEADER

#include "../core/half.h"
#include "../core/normal.h"
#include "float_mode.h"

namespace nf {
namespace {

using Lane = NF_LANE;

constexpr int kTile = 256;                        // elements
constexpr int kBlocks = kTile / 4;                // blocks of philox in a tile
constexpr int kGroup = 4 * Lane::width;           // elements of one lane vector of blocks
constexpr int kOverhang = 4;                      // short runs are copied by fours
static_assert(kTile % kGroup == 0);

template <class Real>
constexpr int kWidth = Lane::width / (sizeof(Real) / 4 == 2 ? Lane::halves : 1);

// Where each block of a group goes among the lanes, and which block each lane takes.
template <class Real>
struct BlockOrder {
    uint32_t block[Lane::width], lane[Lane::width];
    constexpr BlockOrder() : block{}, lane{} {
        for (int i = 0; i < Lane::width; ++i) {
            block[i] = static_cast<uint32_t>(Lane::block_of_lane(i, Real{}));
            lane[block[i]] = static_cast<uint32_t>(i);
        }
    }
};
template <class Real>
constexpr BlockOrder<Real> kOrder{};

// ---------------------------------------------------------------------------------------------------- position

// A position in the batch: its sample, its place in the field and in the segments that have one row each.
struct Cursor {
    const Step& s;
    int64_t at, sample, in_sample;    // element, its sample, its place in the sample
    int64_t segment, segment_left;    // its segment, elements left there
    int64_t element = 0, run_left;    // its place in the field, elements left of the contiguous run

    Cursor(const Step& step, int64_t begin) : s(step) { move_to(begin); }

    void move_to(int64_t place) {
        at = place;
        sample = at / s.size;
        in_sample = at % s.size;
        segment = at / s.segment;
        segment_left = s.segment - at % s.segment;
        locate();
    }

    const Field& field() const { return s.fields[s.field_per_sample ? sample : 0]; }

    void locate() {
        if (s.draw == Draw::none) {
            run_left = s.size - in_sample;
            return;
        }
        const Field& f = field();
        element = f.start + in_sample % f.run;
        run_left = f.run - in_sample % f.run;
        int64_t rest = in_sample / f.run;
        for (int axis = f.ndim - 1; axis >= 0; --axis) {
            element += rest % f.shape[axis] * f.stride[axis];
            rest /= f.shape[axis];
        }
    }

    // On by at most uniform_left() elements.
    void advance(int64_t n) {
        at += n;
        in_sample += n;
        element += n;
        run_left -= n;
        segment_left -= n;
        while (segment_left <= 0) {
            ++segment;
            segment_left += s.segment;
        }
        if (in_sample == s.size) {
            ++sample;
            in_sample = 0;
            if (sample < s.batch) locate();
        } else if (run_left == 0) {
            locate();
        }
    }

    // Elements from here on that share a sample, a run and, where it matters, a step.
    int64_t uniform_left() const { return s.step_by_index && segment_left < run_left ? segment_left : run_left; }
    uint32_t step() const {
        return field().step + (s.step_by_index ? static_cast<uint32_t>(s.index[segment]) : 0u);
    }
    uint64_t sample_id() const {
        const Field& f = field();
        return s.field_per_sample ? f.sample : f.samples ? f.samples[sample] : f.sample + static_cast<uint64_t>(sample);
    }
};

inline uint32_t tag(uint64_t sample, uint32_t stream) { return stream << 24 | static_cast<uint32_t>(sample >> 32); }

// ---------------------------------------------------------------------------------------------------- noise

// A stretch of the tile: `size` elements whose noise starts at `from` among the tile's whole blocks.
struct Piece {
    int from, size;
};

// The counters of one tile. Either one run of a field, or whatever short runs follow one another.
struct Plan {
    bool one_run;
    uint64_t seed;
    int size;    // elements
    int groups;  // lane vectors of blocks
    int skip;    // elements of the first block that come before the tile
    // one run
    uint32_t step, sample, tag_word, block;
    // short runs: their counters, in the order of the lanes
    alignas(64) uint32_t blocks[kBlocks], steps[kBlocks], samples[kBlocks], tags[kBlocks];
    Piece pieces[kTile];
    int n_pieces;
};

template <class Real>
inline void plan_short_runs(Plan& plan, Cursor& cursor, int64_t end) {
    int used = 0;
    plan.size = plan.n_pieces = 0;
    while (used < kBlocks && cursor.at < end) {
        if (cursor.field().seed != plan.seed) break;
        const int skip = static_cast<int>(cursor.element & 3);
        int64_t size = cursor.uniform_left();
        if (size > end - cursor.at) size = end - cursor.at;
        if (size > 4 * (kBlocks - used) - skip) size = 4 * (kBlocks - used) - skip;
        const uint64_t id = cursor.sample_id();
        const uint32_t step = cursor.step(), tag_word = tag(id, cursor.field().stream);
        plan.pieces[plan.n_pieces++] = {4 * used + skip, static_cast<int>(size)};
        const int last = used + static_cast<int>((skip + size + 3) / 4);
        for (uint32_t block = static_cast<uint32_t>(cursor.element >> 2); used < last; ++used, ++block) {
            const uint32_t lane = (used & ~(Lane::width - 1)) + kOrder<Real>.lane[used & (Lane::width - 1)];
            plan.blocks[lane] = block;
            plan.steps[lane] = step;
            plan.samples[lane] = static_cast<uint32_t>(id);
            plan.tags[lane] = tag_word;
        }
        plan.size += static_cast<int>(size);
        cursor.advance(size);
    }
    plan.groups = (used + Lane::width - 1) / Lane::width;
    for (; used % Lane::width; ++used) {  // idle lanes of the last group
        const uint32_t lane = (used & ~(Lane::width - 1)) + kOrder<Real>.lane[used & (Lane::width - 1)];
        plan.blocks[lane] = plan.steps[lane] = plan.samples[lane] = plan.tags[lane] = 0;
    }
}

// Decides what the next tile holds, and moves the cursor past it.
template <class Real>
inline void make_plan(Plan& plan, Cursor& cursor, int64_t end) {
    int64_t size = cursor.uniform_left();
    if (size > end - cursor.at) size = end - cursor.at;
    plan.seed = cursor.field().seed;
    plan.one_run = size >= kTile / 2;
    if (!plan.one_run) return plan_short_runs<Real>(plan, cursor, end);
    plan.skip = static_cast<int>(cursor.element & 3);
    plan.size = static_cast<int>(size < kTile - plan.skip ? size : kTile - plan.skip);
    plan.groups = (plan.skip + plan.size + kGroup - 1) / kGroup;
    plan.block = static_cast<uint32_t>(cursor.element >> 2);
    plan.step = cursor.step();
    plan.sample = static_cast<uint32_t>(cursor.sample_id());
    plan.tag_word = tag(cursor.sample_id(), cursor.field().stream);
    cursor.advance(plan.size);
}

using LaneWords = Words<Lane::word>;
// Words of one tile: [group][word of the block][lane].
using TileWords = uint32_t[kTile / kGroup][4][Lane::width];

// `low_bit` is the counter's top bit: 1 for the lower halves of the 64-bit words that float64 takes.
template <class Real>
inline void fill_words(TileWords& words, const Plan& plan, const RoundKeys& keys, uint32_t later, uint32_t low_bit) {
    const Common common(keys, plan.step + later, plan.sample, plan.tag_word | low_bit << 31);
    for (int g = 0; g < plan.groups; ++g) {
        LaneWords c;
        if (plan.one_run) {
            const auto first = Lane::splat(plan.block + static_cast<uint32_t>(g * Lane::width));
            c = philox_blocks<Lane>(Lane::word_from(Lane::add(Lane::load(kOrder<Real>.block), first)), common, keys);
        } else {
            const int at = g * Lane::width;
            c = {{Lane::word_from(Lane::load(plan.blocks + at)),
                  Lane::word_from(Lane::add(Lane::load(plan.steps + at), Lane::splat(later))),
                  Lane::word_from(Lane::load(plan.samples + at)),
                  Lane::word_from(Lane::bit_or(Lane::load(plan.tags + at), low_bit << 31))}};
            philox_rounds<Lane>(c, keys, 0);
        }
        for (int w = 0; w < 4; ++w) Lane::store(words[g][w], Lane::word_lanes(c.w[w]));
    }
}

inline void words_to_values(float* z, Draw draw, int groups, const TileWords& words) {
    for (int g = 0; g < groups; ++g) {
        const Lane::u32 w[4] = {Lane::load(words[g][0]), Lane::load(words[g][1]), Lane::load(words[g][2]),
                                Lane::load(words[g][3])};
        if (draw == Draw::normal) {
            const auto p = normal_pair<Lane>(w[0], w[1]), q = normal_pair<Lane>(w[2], w[3]);
            Lane::store_blocks(z + g * kGroup, {p.z0, p.z1, q.z0, q.z1});
        } else {
            Lane::store_blocks(z + g * kGroup, {uniform<Lane>(w[0]), uniform<Lane>(w[1]), uniform<Lane>(w[2]), uniform<Lane>(w[3])});
        }
    }
}

template <int Half>
inline void words_to_doubles(double* z, Draw draw, const Lane::u32 (&w)[4], const Lane::u32 (&v)[4]) {
    if (draw == Draw::normal) {
        const auto p = normal_pair<Lane, Half>(w[0], v[0], w[1], v[1]), q = normal_pair<Lane, Half>(w[2], v[2], w[3], v[3]);
        Lane::store_blocks(z, {p.z0, p.z1, q.z0, q.z1});
    } else {
        Lane::store_blocks(z, {uniform<Lane, Half>(w[0], v[0]), uniform<Lane, Half>(w[1], v[1]),
                               uniform<Lane, Half>(w[2], v[2]), uniform<Lane, Half>(w[3], v[3])});
    }
}

inline void words_to_values(double* z, Draw draw, int groups, const TileWords& words, const TileWords& low_words) {
    for (int g = 0; g < groups; ++g, z += kGroup) {
        Lane::u32 w[4], v[4];
        for (int i = 0; i < 4; ++i) w[i] = Lane::load(words[g][i]), v[i] = Lane::load(low_words[g][i]);
        words_to_doubles<0>(z, draw, w, v);
        if constexpr (Lane::halves == 2) words_to_doubles<1>(z + kGroup / 2, draw, w, v);
    }
}

// The noise of a tile: `values` holds whole blocks, `packed` the elements of short runs one after another.
template <class Real>
struct Noise {
    alignas(64) Real values[kTile + kOverhang];
    alignas(64) Real packed[kTile + kOverhang];
    alignas(64) TileWords words, low_words;

    // The plan's elements at `later` steps after the plan's own.
    const Real* fill(const Plan& plan, const RoundKeys& keys, Draw draw, uint32_t later) {
        fill_words<Real>(words, plan, keys, later, 0);
        if constexpr (sizeof(Real) == 8) {
            fill_words<Real>(low_words, plan, keys, later, 1);
            words_to_values(values, draw, plan.groups, words, low_words);
        } else {
            words_to_values(values, draw, plan.groups, words);
        }
        if (plan.one_run) return values + plan.skip;
        Real* to = packed;
        for (int p = 0; p < plan.n_pieces; ++p) {
            const Real* from = values + plan.pieces[p].from;
            for (int i = 0; i < plan.pieces[p].size; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(Real));
            to += plan.pieces[p].size;
        }
        return packed;
    }
};

// ---------------------------------------------------------------------------------------------------- dtypes

inline void load_as(float* to, const void* from, DType type, int64_t at, int n) {
    if (type == DType::f32) std::memcpy(to, static_cast<const float*>(from) + at, sizeof(float) * size_t(n));
    if (type == DType::u8)
        for (int i = 0; i < n; ++i) to[i] = static_cast<const uint8_t*>(from)[at + i];
    if (type == DType::bf16)
        for (int i = 0; i < n; ++i) to[i] = bfloat16_to_float(static_cast<const uint16_t*>(from)[at + i]);
    if (type == DType::f16) {
        const uint16_t* h = static_cast<const uint16_t*>(from) + at;
        int i = 0;
        for (; i + Lane::width <= n; i += Lane::width) Lane::store(to + i, Lane::load_half(h + i));
        for (; i < n; ++i) to[i] = half_to_float(h[i]);
    }
}

inline void load_as(double* to, const void* from, DType type, int64_t at, int n) {
    if (type == DType::f64) std::memcpy(to, static_cast<const double*>(from) + at, sizeof(double) * size_t(n));
    if (type == DType::u8)
        for (int i = 0; i < n; ++i) to[i] = static_cast<const uint8_t*>(from)[at + i];
    if (type == DType::f32)
        for (int i = 0; i < n; ++i) to[i] = static_cast<const float*>(from)[at + i];
}

inline void store_as(void* to, DType type, int64_t at, const float* from, int n) {
    if (type == DType::f32) std::memcpy(static_cast<float*>(to) + at, from, sizeof(float) * size_t(n));
    if (type == DType::bf16)
        for (int i = 0; i < n; ++i) static_cast<uint16_t*>(to)[at + i] = float_to_bfloat16(from[i]);
    if (type == DType::f16) {
        uint16_t* h = static_cast<uint16_t*>(to) + at;
        int i = 0;
        for (; i + Lane::width <= n; i += Lane::width) Lane::store_half(h + i, Lane::load(from + i));
        for (; i < n; ++i) h[i] = float_to_half(from[i]);
    }
}

inline void store_as(void* to, DType, int64_t at, const double* from, int n) {
    std::memcpy(static_cast<double*>(to) + at, from, sizeof(double) * size_t(n));
}

template <class Real>
constexpr DType kOwn = sizeof(Real) == 8 ? DType::f64 : DType::f32;

// ---------------------------------------------------------------------------------------------------- rows

// One affine form over a tile: the terms that are present, in the contract's order z, D, past4 .. past1, m2, m1, x.
struct Affine {
    int n = 0, column[kSlots], slot[kSlots];
    int constant = -1;  // column of k, or -1

    Affine(uint64_t present, int first_column, int slots) {
        if (present >> first_column & 1) constant = first_column;
        for (int s = slots - 1; s >= 0; --s) {
            if (!(present >> (first_column + 1 + s) & 1)) continue;
            column[n] = first_column + 1 + s;
            slot[n++] = s;
        }
    }
};

// out = k + sum c_i v_i: the first term is a product or, with k, an fma; then one fma a term. Count 0: `n` decides.
template <bool PerElement, int Count, class Real>
inline void sum_terms(Real* out, int size, int n, const Real* k, const Real* const* c, const Real* const* v) {
    constexpr int W = kWidth<Real>;
    const int terms = Count ? Count : n;
    auto coefficient = [](const Real* p, int i) { return PerElement ? Lane::load(p + i) : Lane::splat(*p); };
    int i = 0;
    for (; i + W <= size; i += W) {
        auto sum = k ? Lane::fma(coefficient(c[0], i), Lane::load(v[0] + i), coefficient(k, i))
                     : Lane::mul(coefficient(c[0], i), Lane::load(v[0] + i));
        for (int t = 1; t < terms; ++t) sum = Lane::fma(coefficient(c[t], i), Lane::load(v[t] + i), sum);
        Lane::store(out + i, sum);
    }
    if (W == 1 || i >= size) return;
    // The last few elements in a padded copy: the arrays end here.
    const size_t bytes = sizeof(Real) * size_t(size - i);
    Real value[W] = {}, factor[W] = {};
    auto padded = [&](Real* to, const Real* from) { std::memcpy(to, from + i, bytes); return Lane::load(to); };
    auto padded_c = [&](const Real* p) { return PerElement ? padded(factor, p) : Lane::splat(*p); };
    auto sum = Lane::mul(padded_c(c[0]), padded(value, v[0]));
    if (k) sum = Lane::fma(padded_c(c[0]), padded(value, v[0]), padded_c(k));
    for (int t = 1; t < terms; ++t) sum = Lane::fma(padded_c(c[t]), padded(value, v[t]), sum);
    Lane::store(value, sum);
    std::memcpy(out + i, value, bytes);
}

template <class Real>
struct Rows {
    const Step& s;
    Affine clean, out[3];
    bool wants_clean, per_element = false;
    int used_columns[kColumns], n_used = 0;
    const Real* row = nullptr;  // the tile's one row, if it has one
    alignas(64) Real expanded[kColumns][kTile + kOverhang];

    explicit Rows(const Step& step)
        : s(step),
          clean(step.present, kClean, 3),
          out{{step.present, kAffine[0], kSlots}, {step.present, kAffine[1], kSlots}, {step.present, kAffine[2], kSlots}} {
        wants_clean = false;
        for (int o = 0; o < 3; ++o) wants_clean |= s.out[o] && (s.present >> (kAffine[o] + 1 + kD) & 1);
        for (int c = 0; c < kColumns; ++c)
            if (s.present >> c & 1) used_columns[n_used++] = c;
    }

    const Real* table_row(int64_t segment) const { return static_cast<const Real*>(s.rows) + kColumns * s.index[segment]; }

    // Looks up the rows of the next n elements: one row, or the coefficients of each element.
    void select(int64_t segment, int64_t left, int n) {
        row = table_row(segment);
        per_element = left < n;
        if (!per_element) return;
        for (int at = 0; at < n; ++segment, left = s.segment) {
            const int size = static_cast<int>(left < n - at ? left : n - at);
            const Real* r = table_row(segment);
            for (int u = 0; u < n_used; ++u) {
                const Real c = r[used_columns[u]], four[4] = {c, c, c, c};
                Real* to = expanded[used_columns[u]] + at;
                for (int i = 0; i < size; i += 4) std::memcpy(to + i, four, sizeof four);
            }
            at += size;
        }
    }

    const Real* coefficient(int column) const { return per_element ? expanded[column] : row + column; }

    void apply(Real* to, int size, const Affine& form, const Real* const (&value)[kSlots]) const {
        const Real *c[kSlots], *v[kSlots];
        for (int t = 0; t < form.n; ++t) c[t] = coefficient(form.column[t]), v[t] = value[form.slot[t]];
        const Real* k = form.constant < 0 ? nullptr : coefficient(form.constant);
        if (form.n == 0) {
            for (int i = 0; i < size; ++i) to[i] = k ? k[per_element ? i : 0] : Real{0};
        } else if (per_element) {
            form.n == 2 ? sum_terms<true, 2>(to, size, 2, k, c, v) : sum_terms<true, 0>(to, size, form.n, k, c, v);
        } else {
            form.n == 1   ? sum_terms<false, 1>(to, size, 1, k, c, v)
            : form.n == 2 ? sum_terms<false, 2>(to, size, 2, k, c, v)
            : form.n == 3 ? sum_terms<false, 3>(to, size, 3, k, c, v)
                          : sum_terms<false, 0>(to, size, form.n, k, c, v);
        }
    }

    // to is a tile of our own: whole vectors may be read and written.
    void clamp(Real* to, int size) const {
        if (!(s.present >> kLow & 1) && !(s.present >> kHigh & 1)) return;
        const Real *lo = coefficient(kLow), *hi = coefficient(kHigh);
        for (int i = 0; i < size; i += kWidth<Real>) {
            const auto low = per_element ? Lane::load(lo + i) : Lane::splat(*lo);
            const auto high = per_element ? Lane::load(hi + i) : Lane::splat(*hi);
            Lane::store(to + i, Lane::clamp(Lane::load(to + i), low, high));
        }
    }
};

// Asks for the cache lines of the tile's inputs, which arrive while the noise is made.
inline void prefetch(const Step& s, int64_t at, int size) {
    constexpr int bytes[] = {4, 8, 2, 2, 1};
    for (int slot = 0; slot < kSlots; ++slot) {
        if (!s.in[slot]) continue;
        const int width = bytes[int(s.in_type[slot])];
        const char* p = static_cast<const char*>(s.in[slot]) + at * width;
        for (int line = 0; line < size * width; line += 64) __builtin_prefetch(p + line);
    }
}

template <class Real>
void step_range(const Step& s, int64_t begin, int64_t end) {
    const FloatMode mode;
    Cursor cursor(s, begin);
    Rows<Real> rows(s);
    Noise<Real> noise;
    Plan plan;
    alignas(64) Real staged[kSlots][kTile], clean[kTile], result[3][kTile];
    uint64_t seed = s.draw == Draw::none ? 0 : s.fields->seed;
    RoundKeys keys(seed);
    const int outputs = (s.out[0] != nullptr) + (s.out[1] != nullptr) + (s.out[2] != nullptr);

    while (cursor.at < end) {
        const int64_t at = cursor.at, segment = cursor.segment, segment_left = cursor.segment_left;
        const Real* value[kSlots] = {};
        int size = static_cast<int>(end - at < kTile ? end - at : kTile);
        if (s.draw == Draw::none) {
            cursor.move_to(at + size);
        } else {
            make_plan<Real>(plan, cursor, end);
            size = plan.size;
            prefetch(s, at, size);
            if (plan.seed != seed) keys = RoundKeys(seed = plan.seed);
            value[kZ] = noise.fill(plan, keys, s.draw, 0);
        }
        for (int slot = 0; slot < kSlots; ++slot) {
            if (!s.in[slot]) continue;
            value[slot] = static_cast<const Real*>(s.in[slot]) + at;
            if (s.in_type[slot] == kOwn<Real>) continue;
            load_as(staged[slot], s.in[slot], s.in_type[slot], at, size);
            value[slot] = staged[slot];
        }
        rows.select(segment, segment_left, size);
        if (rows.wants_clean) {
            rows.apply(clean, size, rows.clean, value);
            rows.clamp(clean, size);
            value[kD] = clean;
        }
        // An output may be an input: with several outputs none is stored before all are computed.
        const bool direct = outputs == 1 && s.type == kOwn<Real>;
        for (int o = 0; o < 3; ++o)
            if (s.out[o]) rows.apply(direct ? static_cast<Real*>(s.out[o]) + at : result[o], size, rows.out[o], value);
        for (int o = 0; o < 3 && !direct; ++o)
            if (s.out[o]) store_as(s.out[o], s.type, at, result[o], size);
    }
}

// The random walk x_t = a_t x_(t-1) + s_t z_t: a tile of x0 goes through all times before the next one is read.
template <class Real>
void walk_range(const Walk& walk, int64_t begin, int64_t end) {
    const FloatMode mode;
    const Step& s = walk.first;
    Cursor cursor(s, begin);
    Noise<Real> noise;
    Plan plan;
    alignas(64) Real x[kTile];
    const Real* table = static_cast<const Real*>(s.rows) + kAffine[0] + 1;
    while (cursor.at < end) {
        const int64_t at = cursor.at;
        make_plan<Real>(plan, cursor, end);
        const RoundKeys keys(plan.seed);
        load_as(x, s.in[kX], s.in_type[kX], at, plan.size);
        for (int64_t t = 0; t < walk.times; ++t) {
            const Real* z = noise.fill(plan, keys, Draw::normal, static_cast<uint32_t>(t));
            const Real *c[2] = {table + kColumns * t + kZ, table + kColumns * t + kX}, *v[2] = {z, x};
            sum_terms<false, 2>(x, plan.size, 2, static_cast<const Real*>(nullptr), c, v);
            if (walk.keep[t] >= 0)
                store_as(s.out[0], s.type, walk.keep[t] * s.size * s.batch + at, x, plan.size);
        }
    }
}

void step(const Step& s, int64_t begin, int64_t end) {
    s.type == DType::f64 ? step_range<double>(s, begin, end) : step_range<float>(s, begin, end);
}

void walk(const Walk& w, int64_t begin, int64_t end) {
    w.first.type == DType::f64 ? walk_range<double>(w, begin, end) : walk_range<float>(w, begin, end);
}

}  // namespace

extern const Kernels NF_KERNELS;
const Kernels NF_KERNELS{NF_NAME, Lane::width, step, walk};

}  // namespace nf
