// SPDX-License-Identifier: Apache-2.0
// The race of categories in one row, compiled once for each lane type. The row is read once, in chunks that stay in the
// first-level cache: for the largest logits of its blocks, for the race, and for the sums of exponentials.
//
// Few words need a logarithm. As -ln U >= 1 - U, a token of a block whose largest score without noise is h can beat the
// best score so far only if 1 - U <= e^(h - best); so one comparison of the upper word answers for most of them.
#include "../core/race.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "float_mode.h"
#include "lane_scalar.h"
#include "tile.h"

namespace nf {
namespace {

constexpr int kBlock = 64;  // tokens that share a bound
constexpr int kBlocksOfChunk = kLossChunk / kBlock;
constexpr int kW = Lane::width;
using F32 = Lane::f32;
using U32 = Lane::u32;

// A chunk of logits as floats, whole blocks; what is missing at the end is -inf.
struct Chunk {
    const float* x;
    int blocks;
    float largest;
    alignas(64) float of_block[kBlocksOfChunk];
};

template <DType type>
[[gnu::flatten]] void convert(const void* from, int64_t at, int n, float* to) {
    const auto* p = static_cast<const uint16_t*>(from) + at;
    const auto number = [](const uint16_t* half) {
        if constexpr (type == DType::f16)
            return Lane::from_half(Lane::load(half));
        else
            return Lane::as_float(Lane::as_upper_halves(Lane::load(half)));
    };
    int i = 0;
    for (; i + kW <= n; i += kW) Lane::store(to + i, number(p + i));
    if (i == n) return;
    uint16_t last[kW] = {};
    std::memcpy(last, p + i, size_t(n - i) * 2);
    alignas(64) float numbers[kW];
    Lane::store(numbers, number(last));
    std::memcpy(to + i, numbers, size_t(n - i) * 4);
}

// False: there is a NaN.
[[gnu::flatten]] bool largest_of_blocks(Chunk& chunk) {
    F32 all = Lane::splat(-INFINITY);
    bool bad = false;
    for (int b = 0; b < chunk.blocks; ++b) {
        const float* x = chunk.x + kBlock * b;
        F32 most[2] = {Lane::load(x), Lane::load(x + kW)};
        bad |= Lane::any_nan(most[0], most[1]);
        for (int i = 2 * kW; i < kBlock; i += 2 * kW) {
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

class Runner {
  public:
    explicit Runner(RaceRow& row)
        : r(row),
          keys_(row.seed),
          common_(keys_, row.step, row.sample, row.tag),
          beta_(row.scale.beta),
          unit_(scale_of(1.0), 0.0f) {}

    // The words below which no token of a block can win, for the blocks from `from` on.
    [[gnu::flatten]] void bound(const Chunk& chunk, int from) {
        const auto best = static_cast<float>(r.score), size = best < 0 ? -best : best;
        const float doubt = size * 0x1p-21f + 0x1p-20f;  // of what is rounded below
        for (int b = from & -kW; b < chunk.blocks; b += kW) {
            const F32 gap = Lane::fma(Lane::load(chunk.of_block + b), Lane::splat(r.scale.high), Lane::splat(-best));
            // how far the block is behind, at least: 0 .. 104
            const F32 behind = Lane::within(Lane::fma(gap, Lane::splat(0x1p-21f - 1.0f), Lane::splat(-doubt)),
                                            Lane::splat(0.0f), Lane::splat(104.0f));
            const F32 chance = unit_.term<Lane>(Lane::sub(Lane::splat(0.0f), behind));
            const U32 count = Lane::sub(Lane::as_bits(Lane::fma(chance, Lane::splat(0x1p23f), Lane::splat(0x1p23f))),
                                        0x4AFFFFFFu);  // of 2^-23, rounded up
            const U32 last = Lane::from(Lane::as_bits(behind), 0x3A800000u, Lane::template shift_left<9>(count),
                                        Lane::splat(~uint32_t{0}));  // within 2^-10: all of them
            Lane::store(bound_ + b, Lane::bit_xor(last, Lane::splat(~uint32_t{0})));
        }
    }

    [[gnu::flatten]] void race(const Chunk& chunk, int64_t token, int64_t n) {
        bound(chunk, 0);
        constexpr int kGroupsOfBlock = kBlock / kGroup;
        alignas(64) uint32_t order[kW];
        for (int i = 0; i < kW; ++i) order[i] = static_cast<uint32_t>(i);
        const auto block = r.block + static_cast<uint32_t>(token >> 2);
        auto product = Lane::product(Lane::word_from(Lane::add(Lane::load(order), Lane::splat(block))), kPhiloxM0);
        uint32_t at = block;
        for (int b = 0; b < chunk.blocks; ++b) {
            for (int g = 0; g < kGroupsOfBlock; ++g) {
                const auto words = philox_blocks<Lane>(product, common_, keys_);
                const U32 most = Lane::max(Lane::max(words.w[0], words.w[1]), Lane::max(words.w[2], words.w[3]));
                if (Lane::any_from(most, bound_[b])) [[unlikely]] {
                    const int in_chunk = kBlock * b + kGroup * g;
                    if (take(words, chunk.x + in_chunk, token + in_chunk, at, bound_[b], n - in_chunk)) bound(chunk, b);
                }
                product = Lane::product_plus(product, uint64_t{kPhiloxM0} * kW);
                at += kW;
            }
        }
    }

  private:
    RaceRow& r;
    const RoundKeys keys_;
    const Common common_;
    const double beta_;
    const Terms unit_;
    alignas(64) uint32_t bound_[kBlocksOfChunk];

    // Tries the words that may win. True: there is a new best.
    [[gnu::noinline]] bool take(const Words<U32>& words, const float* x, int64_t token, uint32_t block, uint32_t bound,
                                int64_t n) {
        alignas(64) uint32_t w[4][kW];
        for (int i = 0; i < 4; ++i) Lane::store(w[i], words.w[i]);
        const double before = r.score;
        for (int i = 0; i < kGroup && i < n; ++i) {
            const uint32_t word = w[i & 3][i >> 2];
            if (word < bound || x[i] == -INFINITY || hopeless(x[i], word)) continue;
            const auto further = philox_rounds<Scalar>(
                {{block + static_cast<uint32_t>(i >> 2), r.step, r.sample, r.tag | uint32_t{1} << 31}}, keys_, 0);
            const double score = score_of<Scalar>(x[i], beta_, word, further.w[i & 3]);
            if (score > r.score) r.score = score, r.token = token + i, r.winner = x[i];
        }
        return r.score > before;
    }

    // Whether 1 - U > e^-behind, by the first terms of e^behind.
    bool hopeless(float x, uint32_t word) const {
        const double behind = r.score - static_cast<double>(x) * beta_;
        if (!(behind > 0x1p-20)) return false;
        const double b = behind * (1 - 0x1p-40) - 0x1p-40 * (r.score < 0 ? -r.score : r.score);
        const double power = 1 + b * (1 + b / 2 * (1 + b / 3 * (1 + b / 4 * (1 + b / 5))));
        return b > 0 && static_cast<double>(~word) * power > 0x1p32 * (1 + 0x1p-30);
    }
};

// Adds the terms of a chunk, in the order of a loss's chunk.
template <bool spread>
[[gnu::flatten]] void add_terms(const Chunk& chunk, const Scale& scale, double* sum, double* spread_sum) {
    constexpr int kHalf = kW / Lane::halves, kSums = kAccumulators / kHalf;
    const Terms terms(scale, chunk.largest);
    const double top = static_cast<double>(chunk.largest - terms.shift);
    const auto zero = Lane::splat(0.0);
    Lane::f64 sums[kSums], spreads[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = spreads[i] = zero;
    for (int b = 0; b < chunk.blocks; ++b) {
        const float* x = chunk.x + kBlock * b;
        for (int v = 0; v < kBlock / kW; ++v) {
            const F32 z = terms.shifted<Lane>(Lane::load(x + kW * v)), t = terms.term<Lane>(z);
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
    const auto unit = static_cast<double>(terms.term<Scalar>(chunk.largest - terms.shift));
    const auto halved = [&](const Lane::f64(&from)[kSums]) {
        alignas(64) double all[kAccumulators];
        for (int i = 0; i < kSums; ++i) Lane::store(all + kHalf * i, from[i]);
        return halve(all, kAccumulators) / unit;
    };
    *sum = halved(sums);
    if constexpr (spread) *spread_sum = halved(spreads);
}

[[gnu::flatten]] void two_largest(const Chunk& chunk, F32& first, F32& second) {
    for (int i = 0; i < kBlock * chunk.blocks; i += kW) {
        const F32 x = Lane::load(chunk.x + i);
        second = Lane::max(second, Lane::min(first, x));
        first = Lane::max(first, x);
    }
}

}  // namespace

extern RaceKernel NF_RACE;
void NF_RACE(RaceRow& r) {
    const FloatMode mode;
    alignas(64) float values[kLossChunk];
    Chunk chunk;
    Runner runner(r);
    F32 first = Lane::splat(-INFINITY), second = first;
    r.bad = false;
    r.score = -INFINITY;
    r.token = -1;
    r.winner = r.largest = -INFINITY;
    for (int64_t at = 0, c = 0; at < r.n; at += kLossChunk, ++c) {
        const int64_t n = least(kLossChunk, r.n - at);
        chunk.blocks = static_cast<int>((n + kBlock - 1) / kBlock);
        chunk.x = values;
        if (r.type == DType::f16)
            convert<DType::f16>(r.x, at, static_cast<int>(n), values);
        else if (r.type == DType::bf16)
            convert<DType::bf16>(r.x, at, static_cast<int>(n), values);
        else if (n % kBlock == 0)
            chunk.x = static_cast<const float*>(r.x) + at;
        else
            std::memcpy(values, static_cast<const float*>(r.x) + at, size_t(n) * 4);
        for (int64_t i = n; i < kBlock * chunk.blocks; ++i) values[i] = -INFINITY;
        if (!largest_of_blocks(chunk)) {
            r.bad = true;
            return;
        }
        if (chunk.largest > r.largest) {
            r.largest = chunk.largest;
            if (!(r.wanted & kDraw) || r.largest == INFINITY) {
                int64_t i = 0;
                while (chunk.x[i] != r.largest) ++i;
                r.token = r.first + at + i;
                r.winner = r.largest;
                r.score = static_cast<double>(r.largest);
            }
        }
        if (r.chunk_largest) r.chunk_largest[c] = chunk.largest;
        const bool none = chunk.largest == -INFINITY || chunk.largest == INFINITY;
        if ((r.wanted & kDraw) && !none && r.largest < INFINITY) runner.race(chunk, r.first + at, n);
        if (r.wanted & kSecond) two_largest(chunk, first, second);
        if (r.wanted & kPlain) {
            r.plain[c] = 0;
            if (!none) add_terms<false>(chunk, scale_of(1.0), r.plain + c, nullptr);
        }
        if (r.wanted & kTempered) {
            r.tempered[c] = 0;
            if (r.wanted & kSpread) r.spread[c] = 0;
            if (!none && r.wanted & kSpread)
                add_terms<true>(chunk, r.scale, r.tempered + c, r.spread + c);
            else if (!none)
                add_terms<false>(chunk, r.scale, r.tempered + c, nullptr);
        }
    }
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
