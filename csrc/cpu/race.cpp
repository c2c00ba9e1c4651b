// SPDX-License-Identifier: Apache-2.0
// The race of categories in one row, compiled once for each lane type. The row is read once, in chunks that stay in the
// first-level cache: for the largest logits of its blocks, for the race, and for the sums of exponentials.
//
// Few words need a logarithm. As -ln U >= 1 - U, a token of a block whose largest score without noise is h can beat the
// best score so far only if 2 (1 - U) <= e^(h - best); so one comparison of the upper word answers for most of them.
// Groups with a word that passes are kept until there are some: their scores are bounded, then computed in floats, and
// exactly only where those leave a doubt about the winner.
#include "../core/race.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cut.h"
#include "row_sums.h"
#include "tile_noise.h"
#include "tile_rows.h"

namespace nf {
namespace {

constexpr double kLn2 = 0.69314718;  // and not more
constexpr int kBlocksOfChunk = kLossChunk / kTokenBlock;
constexpr int kW = Lane::width;
using F32 = Lane::f32;
using U32 = Lane::u32;

// A chunk of logits as floats, in blocks. The last one, which may lie elsewhere, is filled up with -inf.
struct Chunk {
    const float *x, *last;
    const char* next;  // the memory of the next one
    int64_t width;     // bytes of a logit there
    int blocks;
    float largest;
    alignas(64) float of_block[kBlocksOfChunk];

    const float* block(int b) const { return b < blocks - 1 ? x + kTokenBlock * b : last; }
};

template <DType type>
[[gnu::flatten]] void convert(const void* from, int64_t at, int n, float* to) {
    int i = 0;
    for (; i + kW <= n; i += kW) Lane::store(to + i, load_lanes<type>(from, at + i));
    const int left = n - i;
    if (left <= 0) return;
    uint16_t last[kW] = {};
    std::memcpy(last, static_cast<const uint16_t*>(from) + at + i, size_t(left) * 2);
    alignas(64) float numbers[kW];
    Lane::store(numbers, load_lanes<type>(last, 0));
    std::memcpy(to + i, numbers, size_t(left) * 4);
}

// Asks for the memory of a group of the next chunk, one for each group of this one: between its passes nothing else
// reads.
inline void ask_for(const char* group, int64_t width) {
#pragma GCC unroll 4
    for (int i = 0; i < kGroup; i += 16) __builtin_prefetch(group + i * width, 0, 2);
}

// False: there is a NaN.
[[gnu::noinline, gnu::flatten]] bool largest_of_blocks(Chunk& chunk) {
    F32 all = Lane::splat(-INFINITY);
    bool bad = false;
    for (int b = 0; b < chunk.blocks; ++b) {
        const float* x = chunk.block(b);
        F32 most[2] = {Lane::load(x), Lane::load(x + kW)};
        bad |= Lane::any_nan(most[0], most[1]);
        for (int i = 2 * kW; i < kTokenBlock; i += 2 * kW) {
            const F32 a = Lane::load(x + i), c = Lane::load(x + i + kW);
            bad |= Lane::any_nan(a, c);
            most[0] = Lane::max(most[0], a);
            most[1] = Lane::max(most[1], c);
        }
        most[0] = Lane::max(most[0], most[1]);
        all = Lane::max(all, most[0]);
        chunk.of_block[b] = Lane::largest(most[0]);
    }
    chunk.largest = Lane::largest(all);
    return !bad;
}

// The largest of whole blocks of a row, straight from memory. False: there is a NaN.
template <DType type>
[[gnu::flatten]] bool largest_of(const void* x, int64_t at, int n, float& largest) {
    F32 most[4];
    for (F32& m : most) m = Lane::splat(-INFINITY);
    bool bad = false;
    for (int i = 0; i < n; i += 4 * kW) {
        F32 v[4];
        for (int k = 0; k < 4; ++k) v[k] = load_lanes<type>(x, at + i + kW * k);
        bad |= Lane::any_nan(v[0], v[1]);
        bad |= Lane::any_nan(v[2], v[3]);
        for (int k = 0; k < 4; ++k) most[k] = Lane::max(most[k], v[k]);
    }
    largest = Lane::largest(Lane::max(Lane::max(most[0], most[1]), Lane::max(most[2], most[3])));
    return !bad;
}

class Runner {
  public:
    // Groups that may have the winner, not yet tried: their words, and upper bounds of their scores.
    static constexpr int kOpening = std::min(512 / kGroup, 64);
    struct Opening {
        int groups;
        const float* x[kOpening];
        int64_t token[kOpening];
        alignas(64) uint32_t words[kGroup * kOpening];
        alignas(64) float promises[kGroup * kOpening], most[kW * kOpening];  // of a group the largest in each lane
    };

    Runner(RaceRow& row, Opening& opening)
        : r(row), opening_(opening), beta_(row.scale.beta), unit_(scale_of(1.0), 0.0f) {
        opening_.groups = 0;
    }

    // The words below which no token of a block can win, for the blocks from `from` on.
    [[gnu::noinline, gnu::flatten]] void bound(const Chunk& chunk, int from) {
        if (at_least_ == -INFINITY) {
            for (int b = 0; b < chunk.blocks; b += kW) Lane::store(bound_ + b, Lane::splat(0u));
            return;
        }
        const Lead lead(at_least_);
        for (int b = from & -kW; b < chunk.blocks; b += kW)
            Lane::store(bound_ + b, least_word(chance(Lane::load(chunk.of_block + b), lead)));
    }

    [[gnu::flatten]] void race(const Chunk& chunk, int64_t token) {
        bound(chunk, 0);
        constexpr int kGroupsOfBlock = kTokenBlock / kGroup;
        constexpr uint64_t next = uint64_t{kPhiloxM0} * kW;
        const RoundKeys keys(r.seed);
        const Common common(keys, r.step, r.sample, r.tag);
        const auto block = r.block + static_cast<uint32_t>(token >> 2);
        const U32 blocks = Lane::add(Lane::load(kOrder<float>.block), Lane::splat(block));
        auto product = Lane::product(Lane::word_from(blocks), kPhiloxM0);
        const char* const ahead = chunk.next;
        const int64_t width = chunk.width;
        const auto look = [&](int g, const Words<U32>& words) {
            ask_for(ahead + kGroup * width * g, width);
            const U32 most = Lane::max(Lane::max(words.w[0], words.w[1]), Lane::max(words.w[2], words.w[3]));
            const int b = g / kGroupsOfBlock, at = kGroup * g;
            if (Lane::any_from(most, bound_[b])) [[unlikely]]
                if (keep(words, chunk.block(b) + kGroup * (g % kGroupsOfBlock), token + at) && open()) bound(chunk, b);
        };
        const auto empty = [&](int g) { return chunk.of_block[g / kGroupsOfBlock] == -INFINITY; };
        const int groups = kGroupsOfBlock * chunk.blocks;
        int g = 0;
        if constexpr (Lane::twice)
            for (; g + 2 <= groups; g += 2) {
                if (empty(g) && empty(g + 1)) {
                    product = Lane::product_plus(product, 2 * next);
                    continue;
                }
                const typename Twice<Lane>::products both{product, Lane::product_plus(product, next)};
                const auto words = philox_blocks<Twice<Lane>>(both, common, keys);
                Words<U32> first, second;
                for (int i = 0; i < 4; ++i) first.w[i] = words.w[i].a, second.w[i] = words.w[i].b;
                look(g, first);
                look(g + 1, second);
                product = Lane::product_plus(product, 2 * next);
            }
        for (; g < groups; ++g, product = Lane::product_plus(product, next))
            if (!empty(g)) look(g, philox_blocks<Lane>(product, common, keys));
        if (opening_.groups) open();
    }

    // Finds out the exact score of the winner.
    void settle() {
        if (!exact_) r.score = exact_score(r.winner, r.token, word_);
        exact_ = true;
    }

  private:
    static constexpr float kUnknown = 0x1p100f, kFar = std::numeric_limits<float>::max(), kLn2f = 0x1.62e43p-1f;
    // Of an upper bound and the score, where 1 - U < 1/16: 0.0597 of the logarithm, 0.0322 of 1 - U for -ln U.
    static constexpr float kGap = 0.1f;
    RaceRow& r;
    Opening& opening_;
    float at_least_ = -INFINITY, at_most_ = -INFINITY;  // the score of the best so far
    uint32_t word_ = 0;                                 // its word
    bool exact_ = true;                                 // whether r.score is that
    bool bounded_ = false;                              // whether no score of it was computed yet
    const double beta_;
    const Terms unit_;
    alignas(64) uint32_t bound_[kBlocksOfChunk];

    // A score to beat, without the 2 in its -ln(-2 ln U), and what may be wrong about it below.
    struct Lead {
        float score, doubt;
        explicit Lead(double best)
            : score(static_cast<float>(best + kLn2)), doubt((score < 0 ? -score : score) * 0x1p-21f + 0x1p-20f) {}
    };

    // At least e^(x / temperature - score), if that is below 1 - 2^-10.
    F32 chance(F32 x, const Lead& lead) const {
        const F32 gap = Lane::fma(x, Lane::splat(r.scale.high), Lane::splat(-lead.score));
        const F32 behind = Lane::within(Lane::fma(gap, Lane::splat(0x1p-21f - 1.0f), Lane::splat(-lead.doubt)),
                                        Lane::splat(0.0f), Lane::splat(104.0f));
        return unit_.term<Lane, true>(Lane::sub(Lane::splat(0.0f), behind));
    }
    // The least word w with 1 - U <= chance.
    static U32 least_word(F32 chance) {
        const F32 unit = Lane::splat(0x1p23f);
        const U32 count = Lane::sub(Lane::as_bits(Lane::fma(chance, unit, unit)), 0x4AFFFFFFu);  // 2^-23, rounded up
        const U32 below = Lane::bit_xor(Lane::template shift_left<9>(count), Lane::splat(~uint32_t{0}));
        return Lane::from(Lane::as_bits(chance), 0x3F7FC000u, Lane::splat(0u), below);
    }

    // Keeps a group that may have the winner. True: there is no room for another.
    bool keep(const Words<U32>& words, const float* x, int64_t token) {
        const int g = opening_.groups;
        for (int i = 0; i < 4; ++i) Lane::store(opening_.words + kGroup * g + kW * i, words.w[i]);
        opening_.x[g] = x, opening_.token[g] = token;
        return (opening_.groups = g + 1) == kOpening;
    }

    // Tries the tokens of the groups that were kept: of the first ones the most promising, and then those that may
    // still win. True: there is a new best.
    [[gnu::noinline, gnu::flatten]] bool open() {
        Opening& o = opening_;
        F32 most = Lane::splat(-kFar);
        for (int g = 0; g < o.groups; ++g) {
            const F32 largest = promise(o.x[g], o.words + kGroup * g, o.promises + kGroup * g);
            Lane::store(o.most + kW * g, largest);
            most = Lane::max(most, largest);
        }
        int leader = -1;
        bool better = false;
        if (at_least_ == -INFINITY) {
            const float top = Lane::largest(most);
            leader = kGroup * std::countr_zero(groups_from(top));
            leader += std::countr_zero(from<kGroup>(o.promises + leader, top));
            better = lead(leader) || try_at(leader);
        }
        for (uint64_t groups = groups_from(enough()); groups; groups &= groups - 1) {
            const int g = std::countr_zero(groups);
            for (uint64_t may = from<kGroup>(o.promises + kGroup * g, enough()); may; may &= may - 1) {
                const int i = kGroup * g + std::countr_zero(may);
                if (i != leader && o.promises[i] >= enough()) better |= try_at(i);
            }
        }
        o.groups = 0;
        return better;
    }

    // Makes a token the best by its upper bound alone, if the lower one is close. True: it is.
    bool lead(int i) {
        const uint32_t rest = ~opening_.words[i];
        const float most = opening_.promises[i], error = doubt(most);
        if (!(rest >= 1u << 14 && rest < 1u << 28 && most < kUnknown && most > -kUnknown)) return false;
        r.token = opening_.token[i / kGroup] + i % kGroup, r.winner = opening_.x[i / kGroup][i % kGroup];
        word_ = opening_.words[i];
        at_least_ = most - kGap - error, at_most_ = most + error;
        exact_ = false, bounded_ = true;
        return true;
    }

    bool try_at(int i) {
        const int g = i / kGroup, at = i % kGroup;
        return try_one(opening_.x[g][at], opening_.token[g] + at, opening_.words[i]);
    }

    // Below this no upper bound is that of a winner.
    float enough() const { return at_least_ - doubt(at_least_); }

    // The groups with such a token: without branches, as any of them may have it.
    uint64_t groups_from(float limit) const {
        uint64_t found = 0;
        for (int g = 0; g < opening_.groups; ++g) found |= uint64_t{from<kW>(opening_.most + kW * g, limit) != 0} << g;
        return found;
    }
    // Which of n upper bounds are at least this.
    template <int n>
    static uint64_t from(const float* promises, float limit) {
        uint64_t below = ~uint64_t{0} << (n - 1) << 1;
        for (int i = 0; i < n; i += kW) {
            const U32 sign = Lane::as_bits(Lane::sub(Lane::load(promises + i), Lane::splat(limit)));
            below |= uint64_t{Lane::lanes_from(sign, Lane::splat(1u << 31))} << i;
        }
        return ~below;
    }

    // Puts the words of a group into the order of its tokens, and writes upper bounds of their scores, but for a doubt:
    // the bits of a float grow at most like its logarithm. Returns the largest in each lane.
    F32 promise(const float* x, uint32_t* words, float* promises) const {
        const F32 high = Lane::splat(r.scale.high);
        F32 ordered[4], largest = Lane::splat(-kFar);
        for (int i = 0; i < 4; ++i) ordered[i] = Lane::as_float(Lane::load(words + kW * i));
        Lane::in_order(ordered);
        for (int i = 0; i < 4; ++i) {
            const U32 word = Lane::as_bits(ordered[i]), rest = Lane::bit_xor(word, Lane::splat(~uint32_t{0}));
            const F32 bits = Lane::to_float(Lane::as_bits(Lane::to_float(Lane::template shift_right<1>(rest))));
            const F32 tilted = Lane::fma(Lane::load(x + kW * i), high, Lane::splat(157 * kLn2f));
            Lane::store(words + kW * i, word);
            const F32 most = Lane::fma(bits, Lane::splat(-kLn2f * 0x1p-23f), tilted);
            const F32 bounded = Lane::within(most, Lane::splat(-kFar), Lane::splat(kFar));
            Lane::store(promises + kW * i, bounded);
            largest = Lane::max(largest, bounded);
        }
        return largest;
    }

    [[gnu::noinline, gnu::flatten]] bool try_one(float x, int64_t token, uint32_t word) {
        if (bounded_) {  // another token comes near
            const float score = rough_score(r.winner, word_), error = doubt(score);
            at_least_ = score - error, at_most_ = score + error;
            bounded_ = false;
        }
        const float score = rough_score(x, word), error = doubt(score);
        // Of words near 0 and 2^32 the further words count.
        const bool known = word + (1u << 14) >= 1u << 15 && score < kUnknown && score > -kUnknown;
        if (!known) return try_exactly(x, token, word);
        if (score + error < at_least_) return false;
        if (!(score - error > at_most_)) return try_exactly(x, token, word);
        r.token = token, r.winner = x, word_ = word;
        at_least_ = score - error, at_most_ = score + error;
        exact_ = false;
        return true;
    }

    // A score within its doubt.
    float rough_score(float x, uint32_t word) const {
        const float y = minus_two_ln_of<Scalar>(word);
        const uint32_t k = (float_to_bits(y) - 0x3F2AAAABu) & 0xFF800000u;  // 2^23 e; y >= 2/3: e = 0
        const float remainder = Scalar::fma(y, bits_to_float(0x3F800000u - k), -1.0f);
        const float log = minus_two_ln<Scalar>(Scalar::to_float(k), kMinusLn4OfBits, remainder);
        return Scalar::fma(x, r.scale.high, 0.5f * log);
    }
    // Of a score x / temperature - ln(-2 ln U): |ln(-2 ln U)| < 24 there.
    static float doubt(float score) { return (score < 0 ? -score : score) * 0x1p-20f + 0x1p-12f; }

    bool try_exactly(float x, int64_t token, uint32_t word) {
        if (x == -INFINITY) return false;
        settle();
        const double found = exact_score(x, token, word), before = r.score;
        if (!(found > before || (found == before && token < r.token))) return false;
        r.score = found, r.token = token, r.winner = x;
        if (found == before) return false;
        const auto score = static_cast<float>(std::clamp<double>(found, -kFar, kFar));
        at_least_ = score - doubt(score), at_most_ = score + doubt(score);
        return true;
    }
    [[gnu::noinline, gnu::flatten]] double exact_score(float x, int64_t token, uint32_t word) const {
        const uint32_t block = r.block + static_cast<uint32_t>(token >> 2);
        const auto further =
            philox_rounds<Scalar>({{block, r.step, r.sample, r.tag | uint32_t{1} << 31}}, RoundKeys(r.seed), 0)
                .w[token & 3];
        return score_of<Scalar>(x, beta_, word, further);
    }
};

constexpr int kHalf = kW / Lane::halves, kSums = kAccumulators / kHalf;

[[gnu::noinline]] double halved(Lane::f64 (&sums)[kSums]) {
    for (int half = kSums / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] = Lane::add(sums[i], sums[i + half]);
    alignas(64) double last[kHalf];
    Lane::store(last, sums[0]);
    return halve<kHalf>(last);
}

// Adds the terms of a chunk, in the order of a loss's chunk. `kept`: null, or where to write them, whole blocks.
template <bool spread, bool unit>
[[gnu::flatten]] void add_terms(const Chunk& chunk, const Scale& scale, double* sum, double* spread_sum, float* kept) {
    const Terms terms(scale, chunk.largest);
    const double top = static_cast<double>(chunk.largest - terms.shift);
    const auto zero = Lane::splat(0.0);
    Lane::f64 sums[kSums], spreads[spread ? kSums : 1];
    for (auto& one : sums) one = zero;
    for (auto& one : spreads) one = zero;
    for (int b = 0; b < chunk.blocks; ++b) {
        const float* x = chunk.block(b);
        if (chunk.of_block[b] == -INFINITY) {  // zeros
            if (unit && !spread && kept) std::fill_n(kept + kTokenBlock * b, kTokenBlock, 0.0f);
            continue;
        }
        for (int v = 0; v < kTokenBlock / kW; ++v) {
            const F32 z = terms.shifted<Lane>(Lane::load(x + kW * v)), t = terms.term<Lane, unit>(z);
            if (unit && !spread && kept) Lane::store(kept + kTokenBlock * b + kW * v, t);
            const auto add = [&]<int half>() {
                const int i = Lane::halves * v + half;
                const auto term = Lane::template widened<half>(t);
                sums[i] = Lane::add(sums[i], term);
                if constexpr (spread) {
                    const auto behind = Lane::sub(Lane::splat(top), Lane::template widened<half>(z));
                    spreads[i] = Lane::fma(term, behind, spreads[i]);
                }
            };
            add.template operator()<0>();
            if constexpr (Lane::halves == 2) add.template operator()<1>();
        }
    }
    const auto largest = static_cast<double>(terms.term<Scalar>(chunk.largest - terms.shift));
    *sum = halved(sums) / largest;
    if constexpr (spread) *spread_sum = halved(spreads) / largest;
}

[[gnu::flatten]] void two_largest(const Chunk& chunk, F32& first, F32& second) {
    for (int b = 0; b < chunk.blocks; ++b)
        for (int i = 0; i < kTokenBlock; i += kW) {
            const F32 x = Lane::load(chunk.block(b) + i);
            second = Lane::max(second, Lane::min(first, x));
            first = Lane::max(first, x);
        }
}

constexpr bool is_below(int64_t i, int64_t n) { return i >= 0 && i < n; }

// Reads the chunks of a row.
class Reader {
  public:
    Chunk chunk;

    explicit Reader(const RaceRow& row) : r(row) { chunk.width = bytes_of(r.type); }
    [[gnu::noinline]] void read(int64_t at, int64_t n) {
        chunk.x = values_;
        chunk.blocks = static_cast<int>((n + kTokenBlock - 1) / kTokenBlock);
        chunk.next = static_cast<const char*>(r.x) + (at + kLossChunk) * chunk.width;
        if (r.type == DType::f16)
            convert<DType::f16>(r.x, at, static_cast<int>(n), values_);
        else if (r.type == DType::bf16)
            convert<DType::bf16>(r.x, at, static_cast<int>(n), values_);
        else
            chunk.x = static_cast<const float*>(r.x) + at;
        const int64_t hidden = r.hidden - at;
        const bool hides = is_below(hidden, n);
        float* const own = r.copy ? r.copy + at : values_;
        if (r.copy || (hides && chunk.x != own)) {
            std::memcpy(own, chunk.x, size_t(n) * 4);
            chunk.x = own;  // which no other thread changes: all that is found out is of the copy
        }
        if (hides) own[hidden] = -INFINITY;
        chunk.last = chunk.x + kTokenBlock * (chunk.blocks - 1);
        const int64_t left = n % kTokenBlock;
        if (left == 0) return;
        std::fill_n(last_, kTokenBlock, -INFINITY);
        std::memcpy(last_, chunk.last, size_t(left) * 4);
        chunk.last = last_;
    }

  private:
    const RaceRow& r;
    alignas(64) float values_[kLossChunk], last_[kTokenBlock];
};

// Which numbers of a block equal this one, of a finite one.
[[gnu::flatten]] uint64_t places_of(const float* x, float wanted) {
    uint64_t found = 0;
    for (int i = 0; i < kTokenBlock; i += kW) {
        const U32 twice =
            Lane::template shift_left<1>(Lane::as_bits(Lane::sub(Lane::load(x + i), Lane::splat(wanted))));
        const U32 none = Lane::splat(~uint32_t{0});
        found |= uint64_t{Lane::lanes_from(Lane::bit_xor(twice, none), none)} << i;
    }
    return found;
}

// Makes the first of the row's largest, which is among the n tokens of this chunk, the winner. If another thread has
// written over it since, the winner is any of them.
void take_largest(RaceRow& r, const Chunk& chunk, int64_t at, int64_t n) {
    int64_t b = 0;
    while (b < chunk.blocks - 1 && chunk.of_block[b] != r.largest) ++b;
    const float* const x = chunk.block(static_cast<int>(b));
    const uint64_t equal = places_of(x, r.largest);
    int64_t i = equal ? std::countr_zero(equal) : 0;
    const int64_t last = least(kTokenBlock, n - kTokenBlock * b) - 1;
    while (i < last && x[i] != r.largest) ++i;
    r.token = r.first + at + kTokenBlock * b + i;
    r.score = static_cast<double>(r.winner = r.largest);
}

// Finds the first of the largest, and does nothing else.
void find_largest(RaceRow& r, Reader& reader) {
    int64_t best = 0;
    for (int64_t at = 0; at < r.n; at += kLossChunk) {
        const auto n = static_cast<int>(least(kLossChunk, r.n - at));
        const auto of = r.type == DType::f32   ? largest_of<DType::f32>
                        : r.type == DType::f16 ? largest_of<DType::f16>
                                               : largest_of<DType::bf16>;
        float largest, of_last;
        const int left = n % kTokenBlock;
        bool good;
        if (is_below(r.hidden - at, n - left)) {
            reader.read(at, n - left);
            good = largest_of<DType::f32>(reader.chunk.x, 0, n - left, largest);
        } else {
            good = of(r.x, at, n - left, largest);
        }
        if (left) {
            reader.read(at + n - left, left);
            good &= largest_of<DType::f32>(reader.chunk.last, 0, kTokenBlock, of_last);
            largest = largest > of_last ? largest : of_last;
        }
        if (!good) {
            r.bad = true;
            return;
        }
        if (largest > r.largest) r.largest = largest, best = at;
        if (r.chunk_largest) r.chunk_largest[at / kLossChunk] = largest;
    }
    if (r.largest == -INFINITY) return;
    const int64_t n = least(kLossChunk, r.n - best);
    reader.read(best, n);
    largest_of_blocks(reader.chunk);
    take_largest(r, reader.chunk, best, n);
}

// Writes the terms of a chunk times a factor. `known`: null, or its terms, whole blocks.
template <DType type>
[[gnu::flatten]] void write_terms(const Chunk& chunk, const Terms& of_row, const float* known, float factor, int64_t n,
                                  void* gradient) {
    using Stored = std::conditional_t<type == DType::f32, float, uint16_t>;
    const auto product = [&](const float* x) {
        F32 t = Lane::load(x);
        if (!known) t = of_row.term<Lane, true>(of_row.shifted<Lane>(t));
        return Lane::mul(t, Lane::splat(factor));
    };
    auto* out = static_cast<Stored*>(gradient);
    for (int b = 0; b < chunk.blocks; ++b, n -= kTokenBlock, out += kTokenBlock) {
        alignas(64) Stored last[kTokenBlock];
        Stored* const to = n < kTokenBlock ? last : out;
        const float* const from = known ? known + kTokenBlock * b : chunk.block(b);
        for (int i = 0; i < kTokenBlock; i += 2 * kW) {
            const F32 x = product(from + i), y = product(from + i + kW);
            if constexpr (type == DType::f32) {
                Lane::store(to + i, x);
                Lane::store(to + i + kW, y);
            } else if constexpr (type == DType::f16) {
                Lane::store(to + i, Lane::to_half(x));
                Lane::store(to + i + kW, Lane::to_half(y));
            } else {
                Lane::store(to + i, Lane::upper_halves(round_to_bfloat16<Lane>(x), round_to_bfloat16<Lane>(y)));
            }
        }
        if (n < kTokenBlock) std::memcpy(out, last, size_t(n) * sizeof(Stored));
    }
}

using WriteTerms = decltype(write_terms<DType::f32>);
WriteTerms* writer(DType type) {
    return type == DType::f32   ? write_terms<DType::f32>
           : type == DType::f16 ? write_terms<DType::f16>
                                : write_terms<DType::bf16>;
}

// The loss of a row of a CrossEntropy, and its gradient while the row lies in the caches.
void cross_entropy(RaceRow& r) {
    const CrossEntropy& c = *r.loss;
    const int64_t row = r.first, chunks = chunks_of(r.n);
    Reader reader(r);
    const Chunk& chunk = reader.chunk;
    alignas(64) float terms[kLossChunk];
    float largest[kMostChunks];
    double sums[kMostChunks];
    bool finite = true;
    const bool known = c.gradient && chunks == 1;  // the terms of the only chunk are those of the row
    r.largest = -INFINITY;
    for (int64_t i = 0; i < chunks && finite; ++i) {
        reader.read(kLossChunk * i, least(kLossChunk, r.n - kLossChunk * i));
        finite = largest_of_blocks(reader.chunk) && chunk.largest < INFINITY;
        largest[i] = chunk.largest;
        r.largest = chunk.largest > r.largest ? chunk.largest : r.largest;
        sums[i] = 0;
        const bool any = finite && chunk.largest > -INFINITY;
        if (any) add_terms<false, true>(chunk, r.scale, sums + i, nullptr, known ? terms : nullptr);
    }
    finite &= r.largest > -INFINITY;
    double factor = NAN, at_id = NAN;
    c.loss[row] = NAN;
    if (finite) {
        const RowSums softmax(chunks, largest, r.largest, 1.0, sums);
        const double behind = static_cast<double>(logit(r, c.id[row])) - static_cast<double>(r.largest);
        c.loss[row] = softmax.ln - behind;
        if (!c.gradient) return;
        const double scale = c.weight[row * c.weight_step] * c.upstream[row * c.upstream_step] / c.mean_of;
        const Terms of_row(r.scale, r.largest);
        factor = scale / (static_cast<double>(of_row.term<Scalar>(r.largest - of_row.shift)) * softmax.total);
        at_id = scale * (exp_of(-c.loss[row]) - 1);
    }
    if (!c.gradient) return;
    char* const gradient = static_cast<char*>(c.gradient) + row * r.n * bytes_of(r.type);
    WriteTerms* const write = writer(r.type);
    const Terms of_row(r.scale, finite ? r.largest : 0.0f);
    for (int64_t at = 0; at < r.n; at += kLossChunk) {
        const int64_t n = least(kLossChunk, r.n - at);
        const bool read = known && finite;
        if (!read) reader.read(at, n);
        write(chunk, of_row, read ? terms : nullptr, static_cast<float>(factor), n, gradient + at * bytes_of(r.type));
    }
    const auto value = static_cast<float>(at_id);
    if (r.type == DType::f32)
        reinterpret_cast<float*>(gradient)[c.id[row]] = value;
    else
        reinterpret_cast<uint16_t*>(gradient)[c.id[row]] =
            r.type == DType::f16 ? float_to_half(value) : float_to_bfloat16(value);
}

}  // namespace

extern RaceKernel NF_RACE;
void NF_RACE(RaceRow& r) {
    if (r.wanted == kBound) return CutFinder(*r.cut).find();
    if (r.wanted == kLoss) return cross_entropy(r);
    Reader reader(r);
    const Chunk& chunk = reader.chunk;
    if (r.wanted == kWrite) {
        reader.read(0, r.n);
        return writer(r.out_type)(chunk, Terms(r.scale, r.largest), r.known, r.factor, r.n, r.out);
    }
    r.bad = false;
    r.token = -1;
    r.score = r.winner = r.largest = -INFINITY;
    if (r.wanted == 0 && !r.copy) return find_largest(r, reader);
    Runner::Opening opening;
    Runner runner(r, opening);
    const bool draws = r.wanted & kDraw;
    F32 first = Lane::splat(-INFINITY), second = first;
    for (int64_t at = 0, c = 0; at < r.n; at += kLossChunk, ++c) {
        const int64_t n = least(kLossChunk, r.n - at);
        reader.read(at, n);
        if (!largest_of_blocks(reader.chunk)) {
            r.bad = true;
            return;
        }
        if (r.copy) std::copy_n(chunk.of_block, chunk.blocks, r.of_block + kBlocksOfChunk * c);
        if (chunk.largest > r.largest) {
            r.largest = chunk.largest;
            if (!draws || r.largest == INFINITY) take_largest(r, chunk, at, n);
        }
        if (r.chunk_largest) r.chunk_largest[c] = chunk.largest;
        const bool none = chunk.largest == -INFINITY || chunk.largest == INFINITY;
        if (draws && !none && r.largest < INFINITY) runner.race(chunk, r.first + at);
        if (r.wanted & kSecond) two_largest(chunk, first, second);
        if (r.wanted & kPlain) {
            r.plain[c] = 0;
            if (!none) add_terms<false, true>(chunk, scale_of(1.0), r.plain + c, nullptr, nullptr);
        }
        if (r.wanted & kTempered) {
            r.tempered[c] = r.spread[c] = 0;
            const auto add = r.wanted & kSpread  ? add_terms<true, false>
                             : r.scale.beta == 1 ? add_terms<false, true>
                                                 : add_terms<false, false>;
            if (!none) add(chunk, r.scale, r.tempered + c, r.spread + c, nullptr);
        }
    }
    if (draws && (r.wanted & kScore) && r.largest < INFINITY) runner.settle();
    if (r.wanted & kSecond) {
        alignas(64) float firsts[kW], seconds[kW];
        Lane::store(firsts, first);
        Lane::store(seconds, second);
        float largest = -INFINITY;
        r.second = -INFINITY;
        const auto add = [&](float x) {
            r.second = x > largest ? largest : x > r.second ? x : r.second;
            largest = x > largest ? x : largest;
        };
        for (int i = 0; i < kW; ++i) add(firsts[i]), add(seconds[i]);
    }
}

}  // namespace nf
