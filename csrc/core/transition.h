// SPDX-License-Identifier: Apache-2.0
// Bytes that change to others at random: a word picks the result from the level's distribution, by inversion.
#pragma once
#include <cstdint>

namespace nf {

inline constexpr int kLevels = 256;

// For one level: the last word for each byte or a smaller one, and the start of the search, by a word's top byte. The
// very last word gives the last byte at the latest.
struct Transition {
    uint32_t last[kLevels];
    uint8_t first[kLevels];
};

namespace {  // see philox.h

// Most words need one comparison, which costs no branch.
constexpr uint8_t transition(const Transition& level, uint32_t word) {
    uint32_t byte = level.first[word >> 24];
    byte += word > level.last[byte];
    while (word > level.last[byte]) ++byte;
    return static_cast<uint8_t>(byte);
}

}  // namespace
}  // namespace nf
