// SPDX-License-Identifier: Apache-2.0
// The race of categories (docs/noise.md): token v of a row scores  x_v / temperature - ln(-2 ln U_v),  and the greatest
// score wins, the lowest token among equals. Gumbel (1954) and Yellott (J. Math. Psychol. 15, 1977) show that v wins
// with probability softmax(x / temperature)_v.
#pragma once
#include "call.h"
#include "exponential.h"
#include "loss.h"
#include "philox.h"

namespace nf {
namespace {  // see philox.h

constexpr int kTokenBits = 20, kPlaceBits = 14;        // element = (position mod 2^14) 2^20 + token
constexpr int64_t kTokens = int64_t{1} << kTokenBits;  // of a vocabulary, at most
constexpr int64_t kPositions = int64_t{1} << 31;       // of a sample, as in call/description.py
constexpr int64_t kMostChunks = kTokens / kLossChunk;
constexpr int kTokenBlock = 64;  // tokens that share a bound

// The block of token 0 of a position; from 2^14 on the upper bits fall off.
constexpr uint32_t race_block(int64_t position) { return static_cast<uint32_t>(position) << (kTokenBits - 2); }
// The seed of a position's race: the noise's, or from position 2^14 on one that its stream 18 draws.
template <class Lane>
uint64_t race_seed(uint64_t seed, int64_t position) {
    const auto h = static_cast<uint32_t>(position >> kPlaceBits);
    if (h == 0) return seed;
    const auto [w] = philox_rounds<Lane>({{h, 0, 0, uint32_t{18} << 24}}, RoundKeys(seed), 0);
    return uint64_t{w[1]} << 32 | w[0];
}

// Of one lane. -2 ln x = -e ln 4 - 2 ln(1 + r), x = 2^e (1 + r), 2/3 <= 1 + r < 4/3.
template <class Lane>
double minus_two_ln(int64_t e, double r) {
    const double log = r * polynomial<Lane, NormalCoefficients<double>::log1p>(r);
    return Lane::fma(static_cast<double>(e), -0x1.62e42fefa39efp+0, log);
}
inline double power_of_two(int64_t n) { return __builtin_bit_cast(double, static_cast<uint64_t>(n + 1023) << 52); }
inline int64_t exponent_from(double x, uint64_t two_thirds) {
    return static_cast<int64_t>(__builtin_bit_cast(uint64_t, x) - two_thirds) >> 52;
}
// x > 0, normal.
template <class Lane>
double minus_two_ln(double x) {
    const int64_t e = exponent_from(x, 0x3FE5555555555555u);
    return minus_two_ln<Lane>(e, Lane::fma(x, power_of_two(-e), -1.0));
}
// -2 ln U, U = (2^32 w + v + 1/2) / 2^64: the square of a normal's radius.
template <class Lane>
double exponential_of(uint32_t w, uint32_t v) {
    const double high = w, low = v + 0.5;
    const int64_t e = exponent_from(Lane::fma(high, 0x1p32, low), 0x43E5555555555555u);
    return minus_two_ln<Lane>(e, Lane::fma(low, power_of_two(-64 - e), Lane::fma(high, power_of_two(-32 - e), -1.0)));
}
template <class Lane>
double score_of(float x, double beta, uint32_t w, uint32_t v) {
    return Lane::fma(static_cast<double>(x), beta, 0.5 * minus_two_ln<Lane>(exponential_of<Lane>(w, v)));
}

// Of temperatures other than 0, whose reciprocals are normal in float. tokens/categorical.py says it in words.
constexpr bool is_temperature(double t) { return t == 0 || (t >= 0x1p-64 && t <= 0x1p64); }

// What to find out about a row.
enum Wanted : uint32_t {
    kDraw = 1,      // the winner of the race; without it the first of the largest
    kPlain = 2,     // the sums of e^x
    kTempered = 4,  // the sums of e^(x / temperature)
    kSpread = 8,    // with kTempered: of their products with largest - x
    kSecond = 16,   // the second largest
    kScore = 32,    // with kDraw: the winner's score
    kBound = 64,    // this alone: where top_k or top_p cuts
    kLoss = 128,    // this alone: the loss of row `first` of a CrossEntropy, and its gradient
    kWrite = 256,   // this alone: writes the terms of a chunk times a factor
};

}  // namespace

// Where to cut a row: what stays are the logits above `least`, and the first `ties` of those equal to it.
struct Cut {
    const float* x;  // which no other thread changes; n is a multiple of 16, and -inf fills it up
    int64_t n;
    const float* of_block;  // null, or of each 64 the largest, or more; -inf fills it up, too
    float largest;
    double beta;
    int64_t k;      // the k largest stay; 0: the fewest, from the largest on, whose terms have the sum `wanted`
    double wanted;  // of e^(-((largest - x) beta))
    float* some;    // memory for n
    double* terms;

    float least;
    int64_t ties;
    bool doubtful;  // rounding may have another cut
};

// One row of a shard of the vocabulary, and what a kernel finds there.
struct RaceRow {
    const void* x;
    DType type;
    uint32_t wanted;
    int64_t n, first;     // tokens, from this one of the vocabulary on, a multiple of 4,096
    int64_t hidden = -1;  // the place of a token whose logit is -inf, whatever x holds
    uint64_t seed;
    uint32_t step, sample, tag, block;  // the counter's words; the block of token 0
    Scale scale;

    bool bad;                       // a NaN
    double score;                   // with kScore of the winner; without a race, and with +inf in the row, its logit
    int64_t token;                  // -1: there is none, all are -inf
    float winner, largest, second;  // logits
    float* copy;                    // of the whole row, or null
    float* of_block;                // with it: of each 64 tokens the largest
    // For each chunk of 4,096: the largest, and sums over e^largest.
    float* chunk_largest;
    double *plain, *tempered, *spread;

    Cut* cut;
    const struct CrossEntropy* loss;
    // With kWrite.
    const float* known;  // the terms, whole blocks, or null: of x, in units that `largest` gives
    float factor;
    void* out;
    DType out_type;
};

using RaceKernel = void(RaceRow&);

// One call: `rows` rows of n tokens; those of a sample follow one another.
struct Race {
    int64_t rows, of_sample, n, first;
    const void* x;                      // null: the chunks are given, and only their sums are added up
    const int64_t* position;            // of each row
    const uint8_t* where;               // whether to take each row; null: all
    const double *temperature, *top_p;  // one for each sample, or `each` = 0: one for all
    const int64_t* top_k;
    const Field* fields;
    void* token;                                        // int64, or int32
    float *log_prob, *log_prob_raw, *entropy, *margin;  // (rows), or null
    int32_t* rank;
    // Of a part of the vocabulary, or null: (rows) and (rows, chunks). Without x they are read.
    double* score;
    float *winner, *chunk_largest;
    double *plain, *tempered;
    uint8_t* bad;  // of each row: 1 with a NaN, 2 without a logit above -inf
    int64_t chunks;
    DType type;
    int32_t each, field_per_sample, token_is_32;
    int64_t hidden = -1;  // a token whose logit is -inf, whatever x holds
};

// Cross entropies of rows, and their gradient with respect to x: of row i, c (softmax - (1 at the token id)), with
// c = weight upstream / n. With the tokens `other` of x_t, divergences of rates in their place (docs/loss.md).
struct CrossEntropy {
    int64_t rows, n;
    const void* x;
    const int64_t* id;
    const int64_t* other;             // null: cross entropies
    const double* p;                  // of uniform tokens; null: of a flow
    const uint8_t* masked;            // which rows count; the others have the loss 0
    const double *weight, *upstream;  // one for each row, or one for all where the step is 0
    int64_t p_step, weight_step, upstream_step;
    double* loss;    // (rows), without weights
    void* gradient;  // of x's type, or null
    double mean_of;
    DType type;
    int32_t padding;
};

}  // namespace nf
