// SPDX-License-Identifier: Apache-2.0
// The passes over a tile share its size and the lanes of this instruction set (NF_LANE, NF_LANE_HEADER).
#pragma once
#include "kernels.h"

#include NF_LANE_HEADER

namespace nf {
namespace {

using Lane = NF_LANE;

constexpr int kTile = 256;               // elements
constexpr int kBlocks = kTile / 4;       // blocks of philox in a tile
constexpr int kGroup = 4 * Lane::width;  // elements of one lane vector of blocks
constexpr int kOverhang = 16;            // how far past a tile of coefficients may be written or read
static_assert(kTile % kGroup == 0);
// Whether rows of the usual shapes have code of their own, which is two thirds of all code. Lanes of one element gain
// nothing by it, as the compiler vectorises their loops.
constexpr bool kInRegisters = Lane::width > 1;

template <class Real>
constexpr int kWidth = Lane::width / (sizeof(Real) / 4 == 2 ? Lane::halves : 1);

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
}  // namespace nf
