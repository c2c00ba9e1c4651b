// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (SC11, section 3.3): ten rounds of  (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0
// c0)).
#pragma once
#include <cstdint>

namespace nf {
// Everything in core/ has internal linkage: each instruction set compiles its own copy, and the linker must not merge
// them.
namespace {

constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;

// The ten pairs of round keys of one 64-bit seed: key word i of round r is k_i + r W_i (mod 2^32).
struct RoundKeys {
    uint32_t k0[10], k1[10];

    constexpr explicit RoundKeys(uint64_t seed) : k0{}, k1{} {
        for (uint32_t r = 0; r < 10; ++r) {
            k0[r] = static_cast<uint32_t>(seed) + r * kWeyl0;
            k1[r] = static_cast<uint32_t>(seed >> 32) + r * kWeyl1;
        }
    }

    // Both of round r, as words for all lanes.
    template <class Lane>
    constexpr typename Lane::word first(int r) const {
        return Lane::word_splat(k0[r]);
    }
    template <class Lane>
    constexpr typename Lane::word second(int r) const {
        return Lane::word_splat(k1[r]);
    }
    // a ^ b ^ one of the last round.
    template <class Lane, class Lanes>
    constexpr Lanes with_first(Lanes a, Lanes b) const {
        return Lane::bit_xor(a, b, k0[9]);
    }
    template <class Lane, class Lanes>
    constexpr Lanes with_second(Lanes a, Lanes b) const {
        return Lane::bit_xor(a, b, k1[9]);
    }
};

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;

// A counter or an output: four words, each a lane vector.
template <class Word>
struct Words {
    Word w[4];
};

// Rounds first..9 on lane words. The keys are RoundKeys, or what has its functions. Lane::product multiplies;
// Lane::high and Lane::low take the halves of a product as words for the next one, Lane::high_lanes and
// Lane::word_lanes as plain lanes for the output.
template <class Lane, class Keys>
constexpr Words<typename Lane::u32> philox_rounds(Words<typename Lane::word> c, const Keys& keys, int first) {
    for (int r = first; r < 9; ++r) {
        const auto p0 = Lane::product(c.w[0], kPhiloxM0);
        const auto p1 = Lane::product(c.w[2], kPhiloxM1);
        c.w[0] = Lane::word_xor(Lane::high(p1), c.w[1], keys.template first<Lane>(r));
        c.w[2] = Lane::word_xor(Lane::high(p0), c.w[3], keys.template second<Lane>(r));
        c.w[1] = Lane::low(p1);
        c.w[3] = Lane::low(p0);
    }
    const auto p0 = Lane::product(c.w[0], kPhiloxM0);
    const auto p1 = Lane::product(c.w[2], kPhiloxM1);
    return {{
        keys.template with_first<Lane>(Lane::high_lanes(p1), Lane::word_lanes(c.w[1])),
        Lane::word_lanes(Lane::low(p1)),
        keys.template with_second<Lane>(Lane::high_lanes(p0), Lane::word_lanes(c.w[3])),
        Lane::word_lanes(Lane::low(p0)),
    }};
}

// The part that counters (block, step, sample, tag) with one step, sample and tag share after two rounds. Only word 0
// differs between the lanes, so half of round one and a quarter of round two are the same for all of them.
struct Common {
    uint32_t a, b, c, d;

    constexpr Common(const RoundKeys& keys, uint32_t step, uint32_t sample, uint32_t tag) {
        const uint64_t p1 = uint64_t{kPhiloxM1} * sample;
        const uint64_t p0 = uint64_t{kPhiloxM0} * (static_cast<uint32_t>(p1 >> 32) ^ step ^ keys.k0[0]);
        a = tag ^ keys.k1[0];
        b = static_cast<uint32_t>(p1) ^ keys.k0[1];
        c = static_cast<uint32_t>(p0 >> 32) ^ keys.k1[1];
        d = static_cast<uint32_t>(p0);
    }
};

// Philox of the counters (block, step, sample, tag) for a lane vector of blocks, given as their products with M0. A sum
// gives the next vector's products.
template <class Lane, class Product>
constexpr Words<typename Lane::u32> philox_blocks(Product p0, const Common& common, const RoundKeys& keys) {
    const auto p1 = Lane::product(Lane::word_xor(Lane::high(p0), Lane::word_splat(common.a)), kPhiloxM1);
    return philox_rounds<Lane>({{
                                   Lane::word_xor(Lane::high(p1), Lane::word_splat(common.b)),
                                   Lane::low(p1),
                                   Lane::word_xor(Lane::low(p0), Lane::word_splat(common.c)),
                                   Lane::word_splat(common.d),
                               }},
                               keys, 2);
}

}  // namespace
}  // namespace nf
