// SPDX-License-Identifier: Apache-2.0
// The loops, compiled once for each lane type (NF_LANE, NF_LANE_HEADER, NF_KERNELS name it on the command line).
//
// An array is taken in tiles that stay in the L1 cache: fill a tile with noise, then add up the row's terms over it.
// The noise itself has two passes, words and normals: each is short enough for the processor to overlap its iterations,
// which is worth 10 to 15 % over one long loop body (docs/design.md has the measurements).
#include "kernels.h"

#include NF_LANE_HEADER

#include "../core/half.h"
#include "../core/normal.h"
#include "float_mode.h"

namespace nf {
namespace {

using Lane = NF_LANE;

constexpr int kTile = 256;               // elements
constexpr int kBlocks = kTile / 4;       // blocks of philox in a tile
constexpr int kGroup = 4 * Lane::width;  // elements of one lane vector of blocks
constexpr int kOverhang = 4;             // short runs are copied by fours
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
    int64_t at, sample, in_sample;  // element, its sample, its place in the sample
    int64_t segment, segment_left;  // its segment, elements left there
    int64_t element = 0, run_left;  // its place in the field, elements left of the contiguous run

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
        const Field& f = field();
        if (f.ndim == 0) {  // no division: samples may be tiny and many
            element = f.start + in_sample;
            run_left = f.run - in_sample;
            return;
        }
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
    uint32_t step() const { return field().step + (s.step_by_index ? static_cast<uint32_t>(s.index[segment]) : 0u); }
    uint64_t sample_id() const {
        const Field& f = field();
        return s.field_per_sample ? f.sample : f.samples ? f.samples[sample] : f.sample + static_cast<uint64_t>(sample);
    }
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline uint32_t tag(uint64_t sample, uint32_t stream) { return stream << 24 | static_cast<uint32_t>(sample >> 32); }

// ---------------------------------------------------------------------------------------------------- noise

// A stretch of the tile: `size` elements whose noise starts at `from` among the tile's whole blocks.
struct Piece {
    int from, size;
};

// The counters of one tile: of one run of a field, or of whatever short runs follow one another.
struct Plan {
    int size, groups;  // elements; lane vectors of blocks
    bool one_run;
    // one run: the first block, and how many of its elements come before the tile
    uint32_t block, step, sample, tag_word;
    int skip;
    // short runs: their counters in the order of the lanes, to whose samples `shift` is added, and where their elements
    // are
    bool repeats = false;
    uint32_t shift;
    alignas(64) uint32_t blocks[kBlocks], steps[kBlocks], samples[kBlocks], tags[kBlocks];
    Piece pieces[kBlocks];
    int n_pieces;

    // The tile that begins at this element of the run, of at most `left` elements.
    void take(int64_t element, int64_t left) {
        skip = static_cast<int>(element & 3);
        block = static_cast<uint32_t>(element >> 2);
        size = static_cast<int>(left < kTile - skip ? left : kTile - skip);
        groups = (skip + size + kGroup - 1) / kGroup;
    }

    // Block number `used` of the short runs.
    template <class Real>
    void put(int used, uint32_t block_number, uint32_t step_word, uint64_t id, uint32_t stream) {
        const uint32_t at = (used & ~(Lane::width - 1)) + kOrder<Real>.lane[used & (Lane::width - 1)];
        blocks[at] = block_number;
        steps[at] = step_word;
        samples[at] = static_cast<uint32_t>(id);
        tags[at] = tag(id, stream);
    }

    template <class Real>
    void finish(int used) {
        one_run = false;
        groups = (used + Lane::width - 1) / Lane::width;
        while (used % Lane::width) put<Real>(used++, 0, 0, 0, 0);  // idle lanes of the last group
    }
};

// As many whole samples as fit, where they are tiny and numbered on: points and actions come by the million. Such tiles
// differ in their first sample only, so the plan is made once and then shifted. False: not such a tile.
template <class Real>
inline bool plan_samples(Plan& plan, Cursor& cursor, int64_t end) {
    const Step& s = cursor.s;
    const Field& f = cursor.field();
    if (cursor.in_sample || s.size > kTile / 4 || s.field_per_sample || s.step_by_index || f.ndim || f.samples)
        return false;
    const int size = static_cast<int>(s.size), blocks = (size + 3) / 4, count = kBlocks / blocks;
    const uint64_t id = f.sample + static_cast<uint64_t>(cursor.sample);
    if (size * count > end - cursor.at || (id + count) >> 32 != id >> 32) return false;
    if (!plan.repeats || plan.tags[0] != tag(id, f.stream)) {
        int used = 0;
        for (int i = 0; i < count; ++i) {
            plan.pieces[i] = {4 * used, size};
            for (int block = 0; block < blocks; ++block)
                plan.put<Real>(used++, static_cast<uint32_t>(block), f.step, static_cast<uint64_t>(i) | id >> 32 << 32,
                               f.stream);
        }
        plan.n_pieces = count;
        plan.size = count * size;
        plan.finish<Real>(used);
        plan.repeats = true;
    }
    plan.shift = static_cast<uint32_t>(id);
    cursor.move_to(cursor.at + plan.size);
    return true;
}

// Fills the plan with the runs at the cursor, which are short, and moves the cursor past them.
template <class Real>
inline void plan_short_runs(Plan& plan, Cursor& cursor, int64_t end) {
    if (plan_samples<Real>(plan, cursor, end)) return;
    const uint64_t seed = cursor.field().seed;
    int used = 0;
    plan.size = plan.n_pieces = 0;
    while (used < kBlocks && cursor.at < end && cursor.field().seed == seed) {
        const int skip = static_cast<int>(cursor.element & 3);
        const int64_t room = 4 * (kBlocks - used) - skip;
        const int size = static_cast<int>(least(least(cursor.uniform_left(), end - cursor.at), room));
        const uint64_t id = cursor.sample_id();
        const uint32_t step = cursor.step(), stream = cursor.field().stream;
        plan.pieces[plan.n_pieces++] = {4 * used + skip, size};
        const int last = used + (skip + size + 3) / 4;
        for (auto block = static_cast<uint32_t>(cursor.element >> 2); used < last; ++block)
            plan.put<Real>(used++, block, step, id, stream);
        plan.size += size;
        cursor.advance(size);
    }
    plan.finish<Real>(used);
    plan.repeats = false;
    plan.shift = 0;
}

// The run at the cursor. Tiles of it are then taken one by one.
inline void plan_run(Plan& plan, const Cursor& cursor) {
    plan.one_run = true;
    plan.repeats = false;
    plan.step = cursor.step();
    plan.sample = static_cast<uint32_t>(cursor.sample_id());
    plan.tag_word = tag(cursor.sample_id(), cursor.field().stream);
}

// Words of one tile: [group][word of the block][lane].
using TileWords = uint32_t[kTile / kGroup][4][Lane::width];

inline void store_words(uint32_t (&to)[4][Lane::width], const Words<Lane::word>& c) {
    for (int w = 0; w < 4; ++w) Lane::store(to[w], Lane::word_lanes(c.w[w]));
}

// The words of the plan's blocks, `later` steps after its own. `low_bit` is the counter's top bit: 1 for the lower
// halves of the 64-bit words that float64 takes.
template <class Real, class Between>
inline void fill_words(TileWords& words, const Plan& plan, const RoundKeys& keys, uint32_t later, uint32_t low_bit,
                       Between between) {
    const int groups = plan.groups;
    if (plan.one_run) {
        const Common common(keys, plan.step + later, plan.sample, plan.tag_word | low_bit << 31);
        Lane::u32 block = Lane::add(Lane::load(kOrder<Real>.block), Lane::splat(plan.block));
        for (int g = 0; g < groups; ++g) {
            between(g);
            store_words(words[g], philox_blocks<Lane>(Lane::word_from(block), common, keys));
            block = Lane::add(block, Lane::splat(static_cast<uint32_t>(Lane::width)));
        }
        return;
    }
    for (int g = 0; g < groups; ++g) {
        const int at = g * Lane::width;
        Words<Lane::word> c{{Lane::word_from(Lane::load(plan.blocks + at)),
                             Lane::word_from(Lane::add(Lane::load(plan.steps + at), Lane::splat(later))),
                             Lane::word_from(Lane::add(Lane::load(plan.samples + at), Lane::splat(plan.shift))),
                             Lane::word_from(Lane::bit_or(Lane::load(plan.tags + at), low_bit << 31))}};
        between(g);
        philox_rounds<Lane>(c, keys, 0);
        store_words(words[g], c);
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
            Lane::store_blocks(z + g * kGroup,
                               {uniform<Lane>(w[0]), uniform<Lane>(w[1]), uniform<Lane>(w[2]), uniform<Lane>(w[3])});
        }
    }
}

template <int Half>
inline void words_to_doubles(double* z, Draw draw, const Lane::u32 (&w)[4], const Lane::u32 (&v)[4]) {
    if (draw == Draw::normal) {
        const auto p = normal_pair<Lane, Half>(w[0], v[0], w[1], v[1]),
                   q = normal_pair<Lane, Half>(w[2], v[2], w[3], v[3]);
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

    // The plan's elements at `later` steps after the plan's own; between(g) is called as group g is made.
    template <class Between>
    const Real* fill(const Plan& plan, const RoundKeys& keys, Draw draw, uint32_t later, Between between) {
        fill_words<Real>(words, plan, keys, later, 0, between);
        if constexpr (sizeof(Real) == 8) {
            fill_words<Real>(low_words, plan, keys, later, 1, [](int) {});
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

constexpr int kBytes[] = {4, 8, 2, 2, 1};  // of an element, by DType

template <class Real>
constexpr DType kOwn = sizeof(Real) == 8 ? DType::f64 : DType::f32;

// ---------------------------------------------------------------------------------------------------- rows

// One affine form over a tile: the terms that are present, in the contract's order z, D, past4 .. past1, m2, m1, x.
struct Affine {
    int n = 0, column[kSlots], slot[kSlots];
    int constant = -1;  // column of k, or -1

    Affine(uint64_t present, int first_column, int slots) {
        if (present >> first_column & 1) constant = first_column;
        constexpr int order[] = {kZ, kD, kPast4, kPast3, kPast2, kPast1, kM2, kM1, kX};
        for (int s : order) {
            if (s >= slots || !(present >> (first_column + 1 + s) & 1)) continue;
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
    auto padded = [&](Real* to, const Real* from) {
        std::memcpy(to, from + i, bytes);
        return Lane::load(to);
    };
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
          out{{step.present, kAffine[0], kSlots},
              {step.present, kAffine[1], kSlots},
              {step.present, kAffine[2], kSlots}} {
        wants_clean = false;
        for (int o = 0; o < 3; ++o) wants_clean |= s.out[o] && (s.present >> (kAffine[o] + 1 + kD) & 1);
        for (int c = 0; c < kColumns; ++c)
            if (s.present >> c & 1) used_columns[n_used++] = c;
    }

    const Real* table_row(int64_t segment) const {
        return static_cast<const Real*>(s.rows) + kColumns * s.index[segment];
    }

    // Looks up the rows of the next n elements: one row, or the coefficients of each element.
    void select(int64_t segment, int64_t left, int n) {
        row = table_row(segment);
        per_element = left < n;
        for (int u = 0; u < n_used && per_element; ++u)
            expand(expanded[used_columns[u]], used_columns[u], segment, left, n);
    }

    void expand(Real* to, int column, int64_t segment, int64_t left, int n) const {
        for (int at = 0; at < n; ++segment, left = s.segment) {
            const int size = static_cast<int>(least(left, n - at));
            const Real c = table_row(segment)[column], four[4] = {c, c, c, c};
            for (int i = 0; i < size; i += 4) std::memcpy(to + at + i, four, sizeof four);
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

// ---------------------------------------------------------------------------------------------------- passes

// The arrays of a call, and one tile of each that is not in the arithmetic's own type.
template <class Real>
struct Arrays {
    struct Stream {
        const char* array;
        int width;  // bytes of an element
        bool written;
    };
    const Step& s;
    int n_in = 0, slots[kSlots];
    int n_streams = 0;
    Stream streams[kSlots + 3];
    bool direct;  // the one output can be written as it is computed
    const Real* value[kSlots] = {};
    alignas(64) Real staged[kSlots][kTile], clean[kTile], result[3][kTile];

    explicit Arrays(const Step& step) : s(step) {
        for (int slot = 0; slot < kSlots; ++slot)
            if (s.in[slot]) {
                slots[n_in++] = slot;
                streams[n_streams++] = {static_cast<const char*>(s.in[slot]), kBytes[int(s.in_type[slot])], false};
            }
        for (int o = 0; o < 3; ++o)
            if (s.out[o]) streams[n_streams++] = {static_cast<const char*>(s.out[o]), kBytes[int(s.type)], true};
        direct = !s.out[1] && !s.out[2] && s.type == kOwn<Real>;
    }

    // Asks for the lines of group g of the tile after this one: a few at a time between the rounds of philox, since all
    // at once would block the line-fill buffers.
    void prefetch(int64_t at, int g) const {
        const int64_t ahead = at + kTile + g * kGroup;
        for (int i = 0; i < n_streams; ++i) {
            const char* p = streams[i].array + ahead * streams[i].width;
            const int bytes = kGroup * streams[i].width;
            if (streams[i].written)
                for (int line = 0; line < bytes; line += 64) __builtin_prefetch(p + line, 1);
            else
                for (int line = 0; line < bytes; line += 64) __builtin_prefetch(p + line, 0);
        }
    }

    void load(int64_t at, int size) {
        for (int i = 0; i < n_in; ++i) {
            const int slot = slots[i];
            value[slot] = static_cast<const Real*>(s.in[slot]) + at;
            if (s.in_type[slot] == kOwn<Real>) continue;
            load_as(staged[slot], s.in[slot], s.in_type[slot], at, size);
            value[slot] = staged[slot];
        }
    }

    // Gradients of a clamp: they pass where D lay within its bounds (NaN lies nowhere).
    void apply_masked(const Rows<Real>& rows, int64_t at, int size) {
        rows.apply(clean, size, rows.clean, value);
        rows.apply(result[0], size, rows.out[0], value);
        rows.apply(result[1], size, rows.out[1], value);
        const Real *lo = rows.coefficient(kLow), *hi = rows.coefficient(kHigh);
        for (int i = 0; i < size; ++i) {
            const int j = rows.per_element ? i : 0;
            result[0][i] += lo[j] <= clean[i] && clean[i] <= hi[j] ? result[1][i] : Real{0};
        }
        store_as(s.out[0], s.type, at, result[0], size);
    }

    // An output may be an input: with several outputs none is stored before all are computed.
    void apply(const Rows<Real>& rows, int64_t at, int size) {
        if (s.masked) return apply_masked(rows, at, size);
        if (rows.wants_clean) {
            rows.apply(clean, size, rows.clean, value);
            rows.clamp(clean, size);
            value[kD] = clean;
        }
        if (direct) return rows.apply(static_cast<Real*>(s.out[0]) + at, size, rows.out[0], value);
        for (int o = 0; o < 3; ++o)
            if (s.out[o]) rows.apply(result[o], size, rows.out[o], value);
        for (int o = 0; o < 3; ++o)
            if (s.out[o]) store_as(s.out[o], s.type, at, result[o], size);
    }
};

template <class Real>
void step_drawing_nothing(const Step& s, int64_t begin, int64_t end) {
    Rows<Real> rows(s);
    Arrays<Real> arrays(s);
    for (int64_t at = begin; at < end; at += kTile) {
        const int size = static_cast<int>(least(kTile, end - at));
        arrays.load(at, size);
        rows.select(at / s.segment, s.segment - at % s.segment, size);
        arrays.apply(rows, at, size);
    }
}

template <class Real>
void step_drawing(const Step& s, int64_t begin, int64_t end) {
    Cursor cursor(s, begin);
    Rows<Real> rows(s);
    Arrays<Real> arrays(s);
    Noise<Real> noise;
    Plan plan;
    uint64_t seed = cursor.field().seed;
    RoundKeys keys(seed);

    auto tile = [&](int64_t at) {
        arrays.value[kZ] = noise.fill(plan, keys, s.draw, 0, [&](int group) { arrays.prefetch(at, group); });
        arrays.load(at, plan.size);
        arrays.apply(rows, at, plan.size);
    };
    while (cursor.at < end) {
        if (cursor.field().seed != seed) keys = RoundKeys(seed = cursor.field().seed);
        const int64_t at = cursor.at, segment = cursor.segment, segment_left = cursor.segment_left;
        const int64_t stretch = least(least(cursor.uniform_left(), segment_left), end - at);
        if (stretch < kTile / 2) {
            plan_short_runs<Real>(plan, cursor, end);
            rows.select(segment, segment_left, plan.size);
            tile(at);
            continue;
        }
        plan_run(plan, cursor);
        rows.select(segment, segment_left, 1);
        for (int64_t done = 0; done < stretch; done += plan.size) {
            plan.take(cursor.element + done, stretch - done);
            tile(at + done);
        }
        cursor.advance(stretch);
    }
}

// The random walk x_t = a_t x_(t-1) + s_t z_t: a tile of x0 goes through all times before the next one is read.
template <class Real>
void walk_range(const Walk& walk, int64_t begin, int64_t end) {
    const Step& s = walk.first;
    Cursor cursor(s, begin);
    Noise<Real> noise;
    Plan plan;
    alignas(64) Real x[kTile];
    const Real* table = static_cast<const Real*>(s.rows) + kAffine[0] + 1;
    while (cursor.at < end) {
        const int64_t at = cursor.at, left = least(cursor.uniform_left(), end - at);
        const RoundKeys keys(cursor.field().seed);
        if (left < kTile / 2) {
            plan_short_runs<Real>(plan, cursor, end);
        } else {
            plan_run(plan, cursor);
            plan.take(cursor.element, left);
            cursor.advance(plan.size);
        }
        load_as(x, s.in[kX], s.in_type[kX], at, plan.size);
        for (int64_t t = 0; t < walk.times; ++t) {
            const Real* z = noise.fill(plan, keys, Draw::normal, static_cast<uint32_t>(t), [](int) {});
            const Real *c[2] = {table + kColumns * t + kZ, table + kColumns * t + kX}, *v[2] = {z, x},
                       *no_constant = nullptr;
            sum_terms<false, 2>(x, plan.size, 2, no_constant, c, v);
            if (walk.keep[t] >= 0) store_as(s.out[0], s.type, walk.keep[t] * s.size * s.batch + at, x, plan.size);
        }
    }
}

template <class Real>
void step_range(const Step& s, int64_t begin, int64_t end) {
    const FloatMode mode;
    s.draw == Draw::none ? step_drawing_nothing<Real>(s, begin, end) : step_drawing<Real>(s, begin, end);
}

void step(const Step& s, int64_t begin, int64_t end) {
    s.type == DType::f64 ? step_range<double>(s, begin, end) : step_range<float>(s, begin, end);
}

void walk(const Walk& w, int64_t begin, int64_t end) {
    const FloatMode mode;
    w.first.type == DType::f64 ? walk_range<double>(w, begin, end) : walk_range<float>(w, begin, end);
}

}  // namespace

extern const Kernels NF_KERNELS;
const Kernels NF_KERNELS{NF_NAME, Lane::width, step, walk};

}  // namespace nf
