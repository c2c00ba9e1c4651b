// SPDX-License-Identifier: Apache-2.0
// A tile of noise: its blocks of philox, their words, and the normals or uniforms made of them.
#pragma once
#include <cstring>
#include <numeric>
#include <type_traits>

#include "../core/normal.h"
#include "cursor.h"

namespace nf {
namespace {

// Returns the block of a group that each lane takes.
template <class Real>
struct BlockOrder {
    uint32_t block[Lane::width];
    constexpr BlockOrder() : block{} {
        for (int i = 0; i < Lane::width; ++i) block[i] = static_cast<uint32_t>(Lane::block_of_lane(i, Real{}));
    }
};
template <class Real>
constexpr BlockOrder<Real> kOrder{};
struct LaneNumbers {
    uint32_t lane[Lane::width];
    constexpr LaneNumbers() : lane{} { std::iota(lane, lane + Lane::width, 0u); }
};
constexpr LaneNumbers kLanes{};
inline uint32_t tag(uint64_t sample, uint32_t stream) { return stream << 24 | static_cast<uint32_t>(sample >> 32); }

// The part of the counters that all blocks of a run share.
struct RunName {
    uint32_t step, sample, tag_word;
    uint64_t seed;

    explicit RunName(const Cursor& cursor) {
        const Field& f = cursor.field();
        const uint64_t id = cursor.sample_id();
        step = cursor.step();
        sample = static_cast<uint32_t>(id);
        tag_word = tag(id, f.stream);
        seed = f.seed;
    }
};

// A part of a run in the tile: `size` elements whose noise starts at `from` among the tile's whole blocks.
struct RunPart {
    int from, size;
};

// The counters of one tile: of one run of a field, or of whatever short runs follow one another.
struct Counters {
    int size, groups;  // elements; lane vectors of blocks
    bool one_run;
    bool in_order;  // the elements are those of the blocks, without a gap, from `skip` on
    bool apart;     // the elements of short runs stay where their blocks are
    bool singles;   // samples of one element each, from `sample` on: a group is two vectors of their only blocks
    int skip;
    // one run, or singles: the first block
    uint32_t block, step, sample, tag_word;
    // short runs: the words of their blocks' counters in the order of the lanes, to whose samples `shift` is added, and
    // where their elements are; with `own_seeds` not all have the same seed
    bool repeats = false, shared = false, own_seeds;
    uint32_t shift;
    alignas(64) uint32_t blocks[kBlocks], steps[kBlocks], samples[kBlocks], tags[kBlocks], seeds[2][kBlocks];
    RunPart parts[kBlocks];
    int n_parts;

    // Begins a tile at this element of the run, of at most `left` elements.
    void take(int64_t element, int64_t left) {
        skip = static_cast<int>(element & 3);
        block = static_cast<uint32_t>(element >> 2);
        size = static_cast<int>(left < kTile - skip ? left : kTile - skip);
        groups = (skip + size + kGroup - 1) / kGroup;
    }

    // Goes to the stream whose number differs in these bits, and back.
    void switch_stream(uint32_t bits) {
        tag_word ^= bits << 24;
        if (!one_run)
            for (uint32_t& one : tags) one ^= bits << 24;
    }

    // The elements lie as their groups do, of which the last may be cut.
    bool in_groups() const { return in_order && !apart && !singles && skip == 0; }
    bool whole_groups() const { return in_groups() && size % kGroup == 0; }

    // Begins a tile of short runs, with none yet.
    void clear() {
        one_run = repeats = own_seeds = singles = apart = false;
        in_order = true;
        size = n_parts = 0;
        shift = 0;
    }

    // All runs of the tile will have this step and tag.
    void share_name(const RunName& name) {
        if (shared && steps[0] == name.step && tags[0] == name.tag_word) return;
        shared = true;
        for (int at = 0; at < kBlocks; at += Lane::width) {
            Lane::store(steps + at, Lane::splat(name.step));
            Lane::store(tags + at, Lane::splat(name.tag_word));
        }
    }

    // n elements of a run, from this one on, as the tile's blocks from number `used` on; returns the number that
    // follows. What is left of the last group's lanes continues the run, until the next part takes it.
    template <class Real>
    int put(int used, int64_t element, int n, const RunName& name, bool named, bool with_seed) {
        constexpr int W = Lane::width;
        const int before = static_cast<int>(element & 3), end = used + (before + n + 3) / 4;
        const Lane::u32 order = Lane::load(kOrder<Real>.block);
        for (int at = used & -W; at < end; at += W) {
            const auto first = static_cast<uint32_t>(used > at ? used - at : 0);
            const auto fill = [&](uint32_t* to, Lane::u32 x) {
                Lane::store(to + at, Lane::from(order, first, x, Lane::load(to + at)));
            };
            fill(blocks, Lane::add(order, Lane::splat(static_cast<uint32_t>((element >> 2) + at - used))));
            fill(samples, Lane::splat(name.sample));
            if (named) continue;
            shared = false;
            fill(steps, Lane::splat(name.step));
            fill(tags, Lane::splat(name.tag_word));
            if (!with_seed) continue;
            fill(seeds[0], Lane::splat(static_cast<uint32_t>(name.seed)));
            fill(seeds[1], Lane::splat(static_cast<uint32_t>(name.seed >> 32)));
        }
        if (n_parts == 0) skip = before;
        in_order &= 4 * used + before == skip + size;
        parts[n_parts++] = {4 * used + before, n};
        size += n;
        groups = (end + W - 1) / W;
        return end;
    }
};

// Takes samples of one element: their elements are the first ones of blocks whose counters differ in the sample alone.
// Returns false if they are few, or their ids differ in other words, too.
inline bool take_singles(Counters& counters, Cursor& cursor, int64_t end, int most) {
    const int count = static_cast<int>(least(least(most, kTile / 2), end - cursor.at));
    const RunName name(cursor);
    if (count < Lane::width || name.sample + static_cast<uint32_t>(count) < name.sample) return false;
    counters.clear();
    counters.singles = true;
    counters.skip = 0, counters.size = count, counters.groups = (count + 2 * Lane::width - 1) / (2 * Lane::width);
    counters.step = name.step, counters.sample = name.sample, counters.tag_word = name.tag_word;
    cursor.move_to(cursor.at + count);
    return true;
}

// Takes as many whole samples as fit, if their ids are consecutive and few lanes stay idle: points and actions come by
// the million. Such tiles differ in their first sample only, so they are made once and then shifted. Returns false if
// this is no such tile.
template <class Real>
inline bool take_samples(Counters& counters, Cursor& cursor, int64_t end, int most) {
    const Call& s = cursor.s;
    const Field& f = cursor.field();
    if (cursor.in_sample || s.size > most || s.field_per_sample || !cursor.one_step() || f.start || f.axes || f.samples)
        return false;
    if (s.size == 1) return take_singles(counters, cursor, end, most);
    const int size = static_cast<int>(s.size), blocks = (size + 3) / 4;
    const int most_samples = most / 4 / blocks, of_groups = Lane::width / std::gcd(blocks, Lane::width);
    const bool whole = size % 4 == 0 && most_samples >= of_groups;  // groups, which need no packing
    const int count = whole ? most_samples / of_groups * of_groups : most_samples;
    const int used = count * blocks, idle = -used & (Lane::width - 1);
    RunName name(cursor);
    const uint32_t first = name.sample, last = first + static_cast<uint32_t>(count);
    // New counters cost a sample as much as four idle blocks. Without packing, whole groups win most of that back.
    const int worth = size % 4 ? 4 : 1;
    if (idle > worth * count || size * count > end - cursor.at || last < first) return false;
    if (!counters.repeats || counters.tags[0] != name.tag_word) {
        counters.clear();
        counters.share_name(name);
        for (int i = 0; i < count; ++i) {
            name.sample = static_cast<uint32_t>(i);
            counters.put<Real>(i * blocks, 0, size, name, true, false);
        }
        counters.repeats = true;
    }
    counters.shift = first;
    cursor.move_to(cursor.at + counters.size);
    return true;
}

// Takes consecutive samples, of which the first and the last may be cut, if their counters differ in the sample and the
// block alone. Returns false if they differ in others, too.
template <class Real>
inline bool take_consecutive(Counters& counters, Cursor& cursor, int64_t end, int most) {
    const Call& s = cursor.s;
    const Field& f = cursor.field();
    RunName name(cursor);
    if (s.field_per_sample || !cursor.one_step() || f.axes || f.samples || name.sample + kBlocks < name.sample)
        return false;
    counters.clear();
    counters.share_name(name);
    int64_t at = cursor.at, element = cursor.element, left = cursor.run_left;
    for (int used = 0; used < most / 4 && at < end;) {
        const int size = static_cast<int>(least(least(left, end - at), most - 4 * used - (element & 3)));
        used = counters.put<Real>(used, element, size, name, true, false);
        at += size, element += size, left -= size;
        if (left == 0) ++name.sample, element = f.start, left = f.run;
    }
    cursor.move_to(at);
    return true;
}

// Fills the counters with the runs at the cursor, which are short, up to `most` elements, and moves the cursor past
// them.
template <class Real>
inline void take_short_runs(Counters& counters, Cursor& cursor, int64_t end, int most) {
    if (take_samples<Real>(counters, cursor, end, most) || take_consecutive<Real>(counters, cursor, end, most)) return;
    const bool with_seed = cursor.s.field_per_sample;
    const uint64_t seed = cursor.field().seed;
    counters.clear();
    for (int used = 0; used < most / 4 && cursor.at < end;) {
        const RunName name(cursor);
        const int64_t room = most - 4 * used - (cursor.element & 3);
        const int size = static_cast<int>(least(least(cursor.uniform_left(), end - cursor.at), room));
        used = counters.put<Real>(used, cursor.element, size, name, false, with_seed);
        counters.own_seeds |= name.seed != seed;
        cursor.advance(size);
    }
}

// Takes the run at the cursor. Its tiles are then made one by one.
inline void take_run(Counters& counters, const Cursor& cursor) {
    const RunName name(cursor);
    counters.one_run = counters.in_order = true;
    counters.repeats = counters.singles = counters.apart = false;
    counters.step = name.step;
    counters.sample = name.sample;
    counters.tag_word = name.tag_word;
}

// Tells whether the span at the cursor shares tiles with those that follow. A span of half a tile or more does so only
// if normals are made, and if alone it would leave idle more than a sixth of its length.
inline bool is_short(const Cursor& cursor, int64_t span, int64_t end, bool normals) {
    const bool wasteful = normals && span < 2 * kTile && 6 * (-span & (kGroup - 1)) > span;
    return cursor.at + span < end && (span < kTile / 2 || wasteful);
}

// The round keys where each lane has a seed of its own.
struct LaneKeys {
    Lane::u32 k0, k1;
    static Lane::u32 plus(Lane::u32 k, int r, uint32_t weyl) {
        return Lane::add(k, Lane::splat(static_cast<uint32_t>(r) * weyl));
    }
    template <class>
    Lane::word first(int r) const {
        return Lane::word_from(plus(k0, r, kWeyl0));
    }
    template <class>
    Lane::word second(int r) const {
        return Lane::word_from(plus(k1, r, kWeyl1));
    }
    template <class>
    Lane::u32 with_first(Lane::u32 a, Lane::u32 b) const {
        return Lane::bit_xor(Lane::bit_xor(a, b), plus(k0, 9, kWeyl0));
    }
    template <class>
    Lane::u32 with_second(Lane::u32 a, Lane::u32 b) const {
        return Lane::bit_xor(Lane::bit_xor(a, b), plus(k1, 9, kWeyl1));
    }
};

// Words of one tile: [group][word of the block][lane].
using TileWords = uint32_t[kTile / kGroup][4][Lane::width];

// Two vectors of philox as one. If registers allow it, two chains of rounds keep the multipliers busier than one.
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

// The words of the counters of a group of short runs, `later` steps after their own.
inline Words<Lane::word> counters_of(const Counters& counters, int group, uint32_t later, uint32_t low_bit) {
    const int at = group * Lane::width;
    return {{Lane::word_from(Lane::load(counters.blocks + at)),
             Lane::word_from(Lane::add(Lane::load(counters.steps + at), Lane::splat(later))),
             Lane::word_from(Lane::add(Lane::load(counters.samples + at), Lane::splat(counters.shift))),
             Lane::word_from(Lane::bit_or(Lane::load(counters.tags + at), low_bit << 31))}};
}

// What `fill_words` does where short runs have seeds of their own. (race.cpp has no such runs.)
[[maybe_unused, gnu::noinline, gnu::flatten]] void fill_own_words(TileWords& words, const Counters& counters,
                                                                  uint32_t later, uint32_t low_bit) {
    for (int g = 0; g < counters.groups; ++g) {
        const LaneKeys keys{Lane::load(counters.seeds[0] + g * Lane::width),
                            Lane::load(counters.seeds[1] + g * Lane::width)};
        store_words(words, g, philox_rounds<Lane>(counters_of(counters, g, later, low_bit), keys, 0));
    }
}

// What `fill_words` does for samples of one element. Of their blocks the first two words are kept.
template <class Between>
inline void fill_singles(TileWords& words, const Counters& counters, const RoundKeys& keys, uint32_t later,
                         uint32_t low_bit, const Between& between) {
    using Word = Lane::word;
    const Word block = Lane::word_splat(0), step = Lane::word_splat(counters.step + later),
               tags = Lane::word_splat(counters.tag_word | low_bit << 31);
    const auto samples = [&](int vector) {
        const uint32_t first = counters.sample + static_cast<uint32_t>(vector * Lane::width);
        return Lane::word_from(Lane::add(Lane::load(kLanes.lane), Lane::splat(first)));
    };
    for (int g = 0; g < counters.groups; ++g) {
        if (g * kGroup < counters.size) between(g);
        if constexpr (Lane::twice) {
            const auto both = philox_rounds<Twice<Lane>>(
                {{{block, block}, {step, step}, {samples(2 * g), samples(2 * g + 1)}, {tags, tags}}}, keys, 0);
            for (int w = 0; w < 2; ++w) {
                Lane::store(words[g][w], both.w[w].a);
                Lane::store(words[g][w + 2], both.w[w].b);
            }
        } else {
            for (int half = 0; half < 2; ++half) {
                const auto made = philox_rounds<Lane>({{block, step, samples(2 * g + half), tags}}, keys, 0);
                for (int w = 0; w < 2; ++w) Lane::store(words[g][2 * half + w], made.w[w]);
            }
        }
    }
}

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
    if (counters.singles) return fill_singles(words, counters, keys, later, low_bit, between);
    if (counters.own_seeds) return fill_own_words(words, counters, later, low_bit);
    if constexpr (Lane::twice)
        for (; g + 2 <= groups; g += 2) {
            between(g), between(g + 1);
            const Words<Lane::word> a = counters_of(counters, g, later, low_bit),
                                    b = counters_of(counters, g + 1, later, low_bit);
            Words<Twice<Lane>::word> both;
            for (int w = 0; w < 4; ++w) both.w[w] = {a.w[w], b.w[w]};
            store_words(words, g, philox_rounds<Twice<Lane>>(both, keys, 0));
        }
    for (; g < groups; ++g) {
        between(g);
        store_words(words, g, philox_rounds<Lane>(counters_of(counters, g, later, low_bit), keys, 0));
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

inline Pair<Lane::f32> pair_of(Lane::u32 first, Lane::u32 second) {
    return kCut ? normals_at<Lane>(Lane::as_float(first), second) : normal_pair<Lane>(first, second);
}

// Makes the normals or uniforms of a tile, or leaves its words as they are. take(g, z) receives those of group g, four
// vectors in the order of the elements. The words are used up.
template <Draw draw, class Take>
inline void words_to_floats(int groups, TileWords& words, Take take) {
    if constexpr (draw == Draw::normal && kCut) words_to_radii(groups, words);
    for (int g = 0; g < groups; ++g) {
        const Lane::u32 w[4] = {Lane::load(words[g][0]), Lane::load(words[g][1]), Lane::load(words[g][2]),
                                Lane::load(words[g][3])};
        Lane::f32 z[4];
        if constexpr (draw == Draw::normal) {
            const auto p = pair_of(w[0], w[1]), q = pair_of(w[2], w[3]);
            z[0] = p.z0, z[1] = p.z1, z[2] = q.z0, z[3] = q.z1;
        } else {
            for (int i = 0; i < 4; ++i) z[i] = draw == Draw::uniform ? uniform<Lane>(w[i]) : Lane::as_float(w[i]);
        }
        Lane::in_order(z);
        take(g, z);
    }
}

// Makes half of a group. If kCut, the radii of its pairs lie in `to` already.
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

// Makes the first element of each pair of words, as singles need it.
template <Draw draw>
[[gnu::noinline, gnu::flatten]] void singles_to_values(float* to, int groups, TileWords& words, const TileWords&) {
    if constexpr (draw == Draw::normal && kCut) words_to_radii(groups, words);
    for (int g = 0; g < groups; ++g)
        for (int w = 0; w < 4; w += 2, to += Lane::width) {
            const Lane::u32 first = Lane::load(words[g][w]);
            if constexpr (draw == Draw::normal)
                Lane::store(to, pair_of(first, Lane::load(words[g][w + 1])).z0);
            else
                Lane::store(to, draw == Draw::uniform ? uniform<Lane>(first) : Lane::as_float(first));
        }
}

template <Draw draw>
[[gnu::noinline, gnu::flatten]] void singles_to_values(double* to, int groups, const TileWords& words,
                                                       const TileWords& low_words) {
    for (int g = 0; g < groups; ++g)
        for (int w = 0; w < 4; w += 2) {
            const Lane::u32 w0 = Lane::load(words[g][w]), v0 = Lane::load(low_words[g][w]),
                            w1 = Lane::load(words[g][w + 1]), v1 = Lane::load(low_words[g][w + 1]);
            const auto put = [&]<int half>(std::integral_constant<int, half>) {
                if constexpr (draw == Draw::normal)
                    Lane::store(to, normal_pair<Lane, half>(w0, v0, w1, v1).z0);
                else
                    Lane::store(to, uniform<Lane, half>(w0, v0));
                to += kWidth<double>;
            };
            put(std::integral_constant<int, 0>());
            if constexpr (Lane::halves == 2) put(std::integral_constant<int, 1>());
        }
}

template <Draw draw, class Real>
void make_values(Real* to, const Counters& counters, TileWords& words, const TileWords& low_words) {
    if (counters.singles) return singles_to_values<draw>(to, counters.groups, words, low_words);
    words_to_values<draw>(to, counters.groups, words, low_words);
}

// The noise of a tile: `values` holds whole blocks, `packed` the elements of short runs one after another.
template <class Real>
struct Noise {
    alignas(64) Real values[kTile + kGroup];
    alignas(64) Real packed[kTile + kOverhang];
    alignas(64) TileWords words, low_words;

    // Makes the noise of the tile in loops that do nothing meanwhile: their code is the same.
    [[gnu::noinline]] const Real* fill_alone(const Counters& counters, const RoundKeys& keys, Draw draw,
                                             uint32_t later = 0, uint32_t low_bit = 0) {
        return fill(counters, keys, draw, later, Nothing{}, low_bit);
    }

    // Makes the noise of the tile, `later` steps after its own. between(g) is called while group g is made. `low_bit`
    // 1: the further words of float32's.
    template <class Between>
    const Real* fill(const Counters& counters, const RoundKeys& keys, Draw draw, uint32_t later, Between between,
                     uint32_t low_bit = 0) {
        fill_words<Real>(words, counters, keys, later, low_bit, between);
        if constexpr (sizeof(Real) == 8) fill_words<Real>(low_words, counters, keys, later, 1, Nothing{});
        if (draw == Draw::normal)
            make_values<Draw::normal>(values, counters, words, low_words);
        else if (draw == Draw::uniform)
            make_values<Draw::uniform>(values, counters, words, low_words);
        else if constexpr (sizeof(Real) == 4)
            make_values<Draw::words>(values, counters, words, low_words);
        if (counters.apart) return values;
        if (counters.in_order) return values + counters.skip;
        Real* to = packed;
        for (int p = 0; p < counters.n_parts; ++p) {
            const Real* from = values + counters.parts[p].from;
            constexpr int few = 32 / sizeof(Real);  // the surplus is overwritten
            for (int i = 0; i < counters.parts[p].size; i += few) std::memcpy(to + i, from + i, few * sizeof(Real));
            to += counters.parts[p].size;
        }
        return packed;
    }
};

}  // namespace
}  // namespace nf
