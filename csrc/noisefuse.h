// SPDX-License-Identifier: Apache-2.0
// The noise of noisefuse for programs of your own, header only: an element of the field of a key, with the bits of
// nf.randn and nf.uniform (docs/embed.md). Compile it with -std=c++20 -ffp-contract=off, and on x86-64 with -mfma for
// speed; without -ffast-math.
#pragma once
#include <array>
#include <cstdint>

#include "core/normal.h"
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

}  // namespace noisefuse
