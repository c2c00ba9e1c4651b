// SPDX-License-Identifier: Apache-2.0
// Vectors of the numbers of RGB pixels.
#pragma once
#include <cstring>
#include <utility>

#include "tile.h"

namespace nf {
namespace {

constexpr int kPixels = Lane::width < 4 ? 4 : Lane::width;
using Floats = float __attribute__((vector_size(kPixels * sizeof(float))));
using AllPixels = std::make_integer_sequence<int, kPixels>;

// Where number i of vector v comes from among three vectors, one after another, as pixels become channels (Apart) or
// channels pixels.
template <bool Apart>
constexpr int source(int v, int i) {
    return Apart ? 3 * i + v : (v * kPixels + i) % 3 * kPixels + (v * kPixels + i) / 3;
}
template <bool Apart, int V, int... I>
Floats moved(const Floats (&x)[3], std::integer_sequence<int, I...>) {
    constexpr int n = kPixels;
    const Floats two = __builtin_shufflevector(x[0], x[1], (source<Apart>(V, I) % (2 * n))...);
    return __builtin_shufflevector(two, x[2], (source<Apart>(V, I) < 2 * n ? I : source<Apart>(V, I) - n)...);
}
template <bool Apart>
void move(Floats (&x)[3]) {
    const Floats first = moved<Apart, 0>(x, AllPixels()), second = moved<Apart, 1>(x, AllPixels());
    x[2] = moved<Apart, 2>(x, AllPixels()), x[0] = first, x[1] = second;
}

// Writes the number of each pixel for its three channels.
template <int... I>
void write_thrice(const Floats& x, float* to, std::integer_sequence<int, I...>) {
    const Floats all[] = {__builtin_shufflevector(x, x, (I / 3)...),
                          __builtin_shufflevector(x, x, ((kPixels + I) / 3)...),
                          __builtin_shufflevector(x, x, ((2 * kPixels + I) / 3)...)};
    std::memcpy(to, all, sizeof all);
}

}  // namespace
}  // namespace nf
