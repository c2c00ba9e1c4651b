// SPDX-License-Identifier: Apache-2.0
// Pyramid noise: planes to which coarser ones are added, enlarged bilinearly. call/packed.py packs both structs.
#pragma once
#include <cstdint>

#include "call.h"

namespace nf {

// A level: its planes, and for each row and column of the whole the level's row and column before it, and the fraction
// of the way to the next. Numbers have the planes' type.
struct Level {
    const void* planes;
    const int32_t *above, *left;
    const void *down, *right;
    int64_t height, width;
    double weight;
};

// out = (out + weight * enlarged + ..) * scale, with one scale for each place.
struct Pyramid {
    void* out;
    const void* scale;
    const Level* levels;
    int64_t n_levels, planes, height, width;
    DType type;  // f32 or f64
    int32_t padding;
};

}  // namespace nf
