// SPDX-License-Identifier: Apache-2.0
// The noise of noisefuse for programs of your own, header only: an element of the field of a key, with the bits of
// nf.randn and nf.uniform, and the draws of nf.q_mask and nf.categorical (docs/embed.md). Compile it with -std=c++20
// -ffp-contract=off, and on x86-64 with -mfma for speed; without -ffast-math.
#pragma once
#include <array>
#include <cstdint>

// The version of the noise contract (docs/noise.md): of normals and uniforms, and, provisional, of masks and
// categories.
#define NOISEFUSE_NOISE_VERSION 1
#define NOISEFUSE_PROVISIONAL_VERSION 1

#include "core/normal.h"
#include "core/race.h"
#include "cpu/lane_scalar.h"

namespace noisefuse {

using Lane = nf::Scalar;
using Words = nf::Words<uint32_t>;

// The words of the element's block. `low` has the further digits for float64.
inline Words words(uint64_t seed, uint64_t sample, uint32_t step, uint64_t element, uint32_t stream, uint32_t low = 0) {
    const auto tag = low << 31 | stream << 24 | static_cast<uint32_t>(sample >> 32);
    const Words counter{{static_cast<uint32_t>(element >> 2), step, static_cast<uint32_t>(sample), tag}};
    return nf::philox_rounds<Lane>(counter, nf::RoundKeys(seed), 0);
}

// N(0, 1) of elements 4 block .. 4 block + 3, at the cost of one.
inline std::array<float, 4> normal4(uint64_t seed, uint64_t sample, uint32_t step, uint32_t block,
                                    uint32_t stream = 0) {
    const auto [w] = words(seed, sample, step, uint64_t{block} << 2, stream);
    const auto first = nf::normal_pair<Lane>(w[0], w[1]), second = nf::normal_pair<Lane>(w[2], w[3]);
    return {first.z0, first.z1, second.z0, second.z1};
}

// N(0, 1) of one element of the sample.
inline float normal(uint64_t seed, uint64_t sample, uint32_t step, uint64_t element, uint32_t stream = 0) {
    return normal4(seed, sample, step, static_cast<uint32_t>(element >> 2), stream)[element & 3];
}

// The same field with more digits.
inline double normal64(uint64_t seed, uint64_t sample, uint32_t step, uint64_t element, uint32_t stream = 0) {
    const auto [w] = words(seed, sample, step, element, stream);
    const auto [v] = words(seed, sample, step, element, stream, 1);
    const auto k = element & 2;
    const auto pair = nf::normal_pair<Lane, 0>(w[k], v[k], w[k + 1], v[k + 1]);
    return element & 1 ? pair.z1 : pair.z0;
}

// Uniform numbers in (0, 1), never 0 or 1.
inline float uniform(uint64_t seed, uint64_t sample, uint32_t step, uint64_t element, uint32_t stream = 7) {
    const auto [w] = words(seed, sample, step, element, stream);
    return nf::uniform<Lane>(w[element & 3]);
}
inline double uniform64(uint64_t seed, uint64_t sample, uint32_t step, uint64_t element, uint32_t stream = 7) {
    const auto [w] = words(seed, sample, step, element, stream);
    const auto [v] = words(seed, sample, step, element, stream, 1);
    return nf::uniform<Lane, 0>(w[element & 3], v[element & 3]);
}

// Whether nf.q_mask masks the token at this position, with probability p.
inline bool masked(uint64_t seed, uint64_t sample, uint32_t step, uint64_t position, double p) {
    const auto [w] = words(seed, sample, step, position, 14);
    return w[position & 3] < nf::count_of(p);
}

// The score of a token in the race of nf.categorical: of a position the token of the greatest score is drawn, of equals
// the lowest. With temperature 0 it is the logit.
inline double category_score(uint64_t seed, uint64_t sample, uint32_t step, uint32_t position, uint32_t token,
                             float logit, double temperature = 1) {
    if (temperature == 0) return logit;
    const auto own = nf::race_seed<Lane>(seed, position);
    const auto element = uint64_t{nf::race_block(position)} << 2 | token;
    const auto [w] = words(own, sample, step, element, 13);
    const auto [v] = words(own, sample, step, element, 13, 1);
    return nf::score_of<Lane>(logit, 1 / temperature, w[token & 3], v[token & 3]);
}

// The token that nf.categorical draws from a row of n logits; -1 if all are -inf.
inline int64_t categorical(uint64_t seed, uint64_t sample, uint32_t step, uint32_t position, const float* logits,
                           uint32_t n, double temperature = 1) {
    const auto own = nf::race_seed<Lane>(seed, position);
    const auto place = position % (uint32_t{1} << nf::kPlaceBits);
    int64_t winner = -1;
    double best = -INFINITY;
    for (uint32_t token = 0; token < n; ++token) {
        const auto score = category_score(own, sample, step, place, token, logits[token], temperature);
        if (score > best) winner = token, best = score;
    }
    return winner;
}

}  // namespace noisefuse
