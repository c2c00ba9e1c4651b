// SPDX-License-Identifier: Apache-2.0
// Bytes that become others at random: a word picks the result from the distribution of the level, by inversion.
#pragma once
#include <cstdint>

namespace nf {

inline constexpr int kLevels = 256;

// Of one level: the last word that gives each byte or one before it, and where the search begins, by a word's top byte.
// The last word of all gives the last byte at the latest.
struct Transition {
    uint32_t last[kLevels];
    uint8_t first[kLevels];
};

namespace {  // see philox.h

// Most words are found after one comparison, which costs no branch.
constexpr uint8_t transition(const Transition& level, uint32_t word) {
    uint32_t byte = level.first[word >> 24];
    byte += word > level.last[byte];
    while (word > level.last[byte]) ++byte;
    return static_cast<uint8_t>(byte);
}

}  // namespace
}  // namespace nf
