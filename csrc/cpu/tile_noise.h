// SPDX-License-Identifier: Apache-2.0
// A tile of noise: which blocks of philox it takes, their words, and the normals or uniforms of those.
#pragma once
#include <cstring>

#include "../core/normal.h"
#include "cursor.h"

namespace nf {
namespace {

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
inline uint32_t tag(uint64_t sample, uint32_t stream) { return stream << 24 | static_cast<uint32_t>(sample >> 32); }

// A part of a run in the tile: `size` elements whose noise starts at `from` among the tile's whole blocks.
struct RunPart {
    int from, size;
};

// The counters of one tile: of one run of a field, or of whatever short runs follow one another.
struct Counters {
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
    RunPart parts[kBlocks];
    int n_parts;

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
// differ in their first sample only, so they are made once and then shifted. False: not such a tile.
template <class Real>
inline bool take_samples(Counters& counters, Cursor& cursor, int64_t end, int most) {
    const Call& s = cursor.s;
    const Field& f = cursor.field();
    if (cursor.in_sample || s.size > most / 4 || s.field_per_sample || s.step_by_index || f.start || f.axes ||
        f.samples)
        return false;
    const int size = static_cast<int>(s.size), blocks = (size + 3) / 4, count = most / 4 / blocks;
    const uint64_t id = f.sample + static_cast<uint64_t>(cursor.sample);
    if (size * count > end - cursor.at || (id + count) >> 32 != id >> 32) return false;
    if (!counters.repeats || counters.tags[0] != tag(id, f.stream)) {
        int used = 0;
        for (int i = 0; i < count; ++i) {
            counters.parts[i] = {4 * used, size};
            for (int block = 0; block < blocks; ++block)
                counters.put<Real>(used++, static_cast<uint32_t>(block), f.step,
                                   static_cast<uint64_t>(i) | id >> 32 << 32, f.stream);
        }
        counters.n_parts = count;
        counters.size = count * size;
        counters.finish<Real>(used);
        counters.repeats = true;
    }
    counters.shift = static_cast<uint32_t>(id);
    cursor.move_to(cursor.at + counters.size);
    return true;
}

// Fills the counters with the runs at the cursor, which are short, up to `most` elements, and moves the cursor past
// them.
template <class Real>
inline void take_short_runs(Counters& counters, Cursor& cursor, int64_t end, int most) {
    if (take_samples<Real>(counters, cursor, end, most)) return;
    const int blocks = most / 4;
    const uint64_t seed = cursor.field().seed;
    int used = 0;
    counters.size = counters.n_parts = 0;
    while (used < blocks && cursor.at < end && cursor.field().seed == seed) {
        const int skip = static_cast<int>(cursor.element & 3);
        const int64_t room = 4 * (blocks - used) - skip;
        const int size = static_cast<int>(least(least(cursor.uniform_left(), end - cursor.at), room));
        const uint64_t id = cursor.sample_id();
        const uint32_t step = cursor.step(), stream = cursor.field().stream;
        counters.parts[counters.n_parts++] = {4 * used + skip, size};
        const int last = used + (skip + size + 3) / 4;
        for (auto block = static_cast<uint32_t>(cursor.element >> 2); used < last; ++block)
            counters.put<Real>(used++, block, step, id, stream);
        counters.size += size;
        cursor.advance(size);
    }
    counters.finish<Real>(used);
    counters.repeats = false;
    counters.shift = 0;
}

// The run at the cursor. Tiles of it are then taken one by one.
inline void take_run(Counters& counters, const Cursor& cursor) {
    counters.one_run = true;
    counters.repeats = false;
    counters.step = cursor.step();
    counters.sample = static_cast<uint32_t>(cursor.sample_id());
    counters.tag_word = tag(cursor.sample_id(), cursor.field().stream);
}

// Words of one tile: [group][word of the block][lane].
using TileWords = uint32_t[kTile / kGroup][4][Lane::width];

// Two vectors as one, for philox: where registers allow it, two chains of rounds keep the multipliers busier than one.
template <class L>
struct Twice {
    struct word {
        typename L::word a, b;
    };
    struct u32 {
        typename L::u32 a, b;
    };
    struct products {
        decltype(L::product(typename L::word{}, 0)) a, b;
    };
    static word word_splat(uint32_t x) { return {L::word_splat(x), L::word_splat(x)}; }
    static u32 word_lanes(word x) { return {L::word_lanes(x.a), L::word_lanes(x.b)}; }
    static products product(word x, uint32_t m) { return {L::product(x.a, m), L::product(x.b, m)}; }
    static word low(products p) { return {L::low(p.a), L::low(p.b)}; }
    static word high(products p) { return {L::high(p.a), L::high(p.b)}; }
    static u32 high_lanes(products p) { return {L::high_lanes(p.a), L::high_lanes(p.b)}; }
    static word word_xor(word x, word y) { return {L::word_xor(x.a, y.a), L::word_xor(x.b, y.b)}; }
    static word word_xor(word x, word y, word z) { return {L::word_xor(x.a, y.a, z.a), L::word_xor(x.b, y.b, z.b)}; }
    static u32 bit_xor(u32 x, u32 y, uint32_t z) { return {L::bit_xor(x.a, y.a, z), L::bit_xor(x.b, y.b, z)}; }
};

// Word w of group g, or of two groups.
inline void store_word(TileWords& to, int g, int w, Lane::u32 x) { Lane::store(to[g][w], x); }
inline void store_word(TileWords& to, int g, int w, Twice<Lane>::u32 x) {
    store_word(to, g, w, x.a);
    store_word(to, g + 1, w, x.b);
}
template <class Lanes>
inline void store_words(TileWords& to, int g, const Words<Lanes>& c) {
    for (int w = 0; w < 4; ++w) store_word(to, g, w, c.w[w]);
}

// What is called between groups where there is nothing to do. (A lambda has a type, and so code, of its own.)
struct Nothing {
    void operator()(int) const {}
};

// The passes over a tile are flattened: all that they call is inlined. GCC stops short of that in a file of this size,
// and then the constants of a pass are loaded again for each group of lanes, at the cost of a quarter of the time.

// The words of the counters' blocks, `later` steps after its own. `low_bit` is the counter's top bit: 1 for the lower
// halves of the 64-bit words that float64 takes.
template <class Real, class Between>
[[gnu::flatten]] inline void fill_words(TileWords& words, const Counters& counters, const RoundKeys& keys,
                                        uint32_t later, uint32_t low_bit, Between between) {
    const int groups = counters.groups;
    int g = 0;
    if (counters.one_run) {
        constexpr uint64_t next = uint64_t{kPhiloxM0} * Lane::width;
        const Common common(keys, counters.step + later, counters.sample, counters.tag_word | low_bit << 31);
        const Lane::u32 block = Lane::add(Lane::load(kOrder<Real>.block), Lane::splat(counters.block));
        auto product = Lane::product(Lane::word_from(block), kPhiloxM0);
        if constexpr (Lane::twice)
            for (; g + 2 <= groups; g += 2) {
                between(g), between(g + 1);
                const Twice<Lane>::products both{product, Lane::product_plus(product, next)};
                store_words(words, g, philox_blocks<Twice<Lane>>(both, common, keys));
                product = Lane::product_plus(product, 2 * next);
            }
        for (; g < groups; ++g) {
            between(g);
            store_words(words, g, philox_blocks<Lane>(product, common, keys));
            product = Lane::product_plus(product, next);
        }
        return;
    }
    const auto word = [&](int w, int group) {  // of the counters
        const int at = group * Lane::width;
        return Lane::word_from(w == 0   ? Lane::load(counters.blocks + at)
                               : w == 1 ? Lane::add(Lane::load(counters.steps + at), Lane::splat(later))
                               : w == 2 ? Lane::add(Lane::load(counters.samples + at), Lane::splat(counters.shift))
                                        : Lane::bit_or(Lane::load(counters.tags + at), low_bit << 31));
    };
    if constexpr (Lane::twice)
        for (; g + 2 <= groups; g += 2) {
            between(g), between(g + 1);
            Words<Twice<Lane>::word> c;
            for (int w = 0; w < 4; ++w) c.w[w] = {word(w, g), word(w, g + 1)};
            store_words(words, g, philox_rounds<Twice<Lane>>(c, keys, 0));
        }
    for (; g < groups; ++g) {
        between(g);
        store_words(words, g, philox_rounds<Lane>({{word(0, g), word(1, g), word(2, g), word(3, g)}}, keys, 0));
    }
}

// The radii of the pairs of a tile take the place of their first words. A normal's chain of operations is as long as a
// processor looks ahead; cut in two, the halves of several groups overlap. (Lanes of one element only lose by it.)
constexpr bool kCut = Lane::width > 1;
inline void words_to_radii(int groups, TileWords& words) {
    for (int g = 0; g < groups; ++g)
        for (int w = 0; w < 4; w += 2) {
            const auto radius = normal_radius<Lane>(Lane::load(words[g][w]), Lane::load(words[g][w + 1]));
            Lane::store(words[g][w], Lane::as_bits(radius));
        }
}

// The normals or uniforms of a tile, or its words as they are: take(g, z) gets those of group g, four vectors in the
// order of the elements. The words are used up.
template <Draw draw, class Take>
inline void words_to_floats(int groups, TileWords& words, Take take) {
    if constexpr (draw == Draw::normal && kCut) words_to_radii(groups, words);
    const auto pair = [](Lane::u32 first, Lane::u32 second) {
        return kCut ? normals_at<Lane>(Lane::as_float(first), second) : normal_pair<Lane>(first, second);
    };
    for (int g = 0; g < groups; ++g) {
        const Lane::u32 w[4] = {Lane::load(words[g][0]), Lane::load(words[g][1]), Lane::load(words[g][2]),
                                Lane::load(words[g][3])};
        Lane::f32 z[4];
        if constexpr (draw == Draw::normal) {
            const auto p = pair(w[0], w[1]), q = pair(w[2], w[3]);
            z[0] = p.z0, z[1] = p.z1, z[2] = q.z0, z[3] = q.z1;
        } else {
            for (int i = 0; i < 4; ++i) z[i] = draw == Draw::uniform ? uniform<Lane>(w[i]) : Lane::as_float(w[i]);
        }
        Lane::in_order(z);
        take(g, z);
    }
}

// Half of a group. The radii of its pairs lie in `to` already, where kCut.
template <Draw draw, int Half>
inline void words_to_doubles(double* to, const Lane::u32 (&w)[4], const Lane::u32 (&v)[4]) {
    Lane::f64 z[4];
    for (int i = 0; i < 4; i += 2)
        if constexpr (draw == Draw::normal) {
            const Lane::f64 radius =
                kCut ? Lane::load(to + i * kWidth<double>) : normal_radius<Lane, Half>(w[i], v[i], w[i + 1]);
            const auto p = normals_at<Lane, Half>(radius, w[i + 1], v[i + 1]);
            z[i] = p.z0, z[i + 1] = p.z1;
        } else {
            z[i] = uniform<Lane, Half>(w[i], v[i]), z[i + 1] = uniform<Lane, Half>(w[i + 1], v[i + 1]);
        }
    Lane::in_order(z);
    for (int i = 0; i < 4; ++i) Lane::store(to + i * kWidth<double>, z[i]);
}

template <int Half>
inline void words_to_radii(double* to, const Lane::u32 (&w)[4], const Lane::u32 (&v)[4]) {
    for (int i = 0; i < 4; i += 2)
        Lane::store(to + i * kWidth<double>, normal_radius<Lane, Half>(w[i], v[i], w[i + 1]));
}

template <Draw draw>
[[gnu::noinline, gnu::flatten]] void words_to_values(float* to, int groups, TileWords& words, const TileWords&) {
    words_to_floats<draw>(groups, words, [=](int g, const Lane::f32(&z)[4]) {
        for (int i = 0; i < 4; ++i) Lane::store(to + g * kGroup + i * Lane::width, z[i]);
    });
}

template <Draw draw>
[[gnu::noinline, gnu::flatten]] void words_to_values(double* z, int groups, const TileWords& words,
                                                     const TileWords& low_words) {
    const auto each = [&](auto make) {
        for (int g = 0; g < groups; ++g) {
            Lane::u32 w[4], v[4];
            for (int i = 0; i < 4; ++i) w[i] = Lane::load(words[g][i]), v[i] = Lane::load(low_words[g][i]);
            make(z + g * kGroup, w, v);
        }
    };
    if constexpr (draw == Draw::normal && kCut)
        each([](double* to, const auto& w, const auto& v) {
            words_to_radii<0>(to, w, v);
            if constexpr (Lane::halves == 2) words_to_radii<1>(to + kGroup / 2, w, v);
        });
    each([](double* to, const auto& w, const auto& v) {
        words_to_doubles<draw, 0>(to, w, v);
        if constexpr (Lane::halves == 2) words_to_doubles<draw, 1>(to + kGroup / 2, w, v);
    });
}

// The noise of a tile: `values` holds whole blocks, `packed` the elements of short runs one after another.
template <class Real>
struct Noise {
    alignas(64) Real values[kTile + kOverhang];
    alignas(64) Real packed[kTile + kOverhang];
    alignas(64) TileWords words, low_words;

    // The noise of the tile, `later` steps after its own; between(g) is called as group g is made.
    template <class Between>
    const Real* fill(const Counters& counters, const RoundKeys& keys, Draw draw, uint32_t later, Between between) {
        fill_words<Real>(words, counters, keys, later, 0, between);
        if constexpr (sizeof(Real) == 8) fill_words<Real>(low_words, counters, keys, later, 1, Nothing{});
        if (draw == Draw::normal)
            words_to_values<Draw::normal>(values, counters.groups, words, low_words);
        else if (draw == Draw::uniform)
            words_to_values<Draw::uniform>(values, counters.groups, words, low_words);
        else if constexpr (sizeof(Real) == 4)
            words_to_values<Draw::words>(values, counters.groups, words, low_words);
        if (counters.one_run) return values + counters.skip;
        Real* to = packed;
        for (int p = 0; p < counters.n_parts; ++p) {
            const Real* from = values + counters.parts[p].from;
            for (int i = 0; i < counters.parts[p].size; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(Real));
            to += counters.parts[p].size;
        }
        return packed;
    }
};

}  // namespace
}  // namespace nf
