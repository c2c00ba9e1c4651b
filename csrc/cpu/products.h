// SPDX-License-Identifier: Apache-2.0
// Images times uniform numbers (MultiplicativeNoise), in one pass.
#pragma once
#include "drawing.h"

namespace nf {
namespace {

// Multiplies n elements; `by` has whole groups.
template <DType Type>
void multiply(const Products& m, int64_t at, int n, const float* by) {
    const auto group = [](const void* x, void* out, int64_t at, const float* by) {
        Lane::f32 products[kVectors];
        for (int v = 0; v < kVectors; ++v) {
            const int first = v * Lane::width;
            products[v] = Lane::mul(load_lanes<Type>(x, at + first), Lane::load(by + first));
            if (Type == DType::f32) products[v] = Lane::clamp(products[v], Lane::splat(0.0f), Lane::splat(1.0f));
        }
        store_lanes<Type>(out, at, products, false);
    };
    int i = 0;
    for (; i + kGroup <= n; i += kGroup) group(m.x, m.out, at + i, by + i);
    if (i == n) return;
    constexpr int64_t bytes = bytes_of(Type);
    const auto left = static_cast<size_t>((n - i) * bytes);
    alignas(64) char rest[kGroup * bytes] = {};
    std::memcpy(rest, static_cast<const char*>(m.x) + (at + i) * bytes, left);
    group(rest, rest, 0, by + i);
    std::memcpy(static_cast<char*>(m.out) + (at + i) * bytes, rest, left);
}

[[gnu::noinline]] void multiply(const Products& m, int64_t at, int64_t n, const float* by) {
    const auto size = static_cast<int>(n);
    if (m.type == DType::f32)
        multiply<DType::f32>(m, at, size, by);
    else if (m.type == DType::u8)
        multiply<DType::u8>(m, at, size, by);
    else
        multiply<DType::u16>(m, at, size, by);
}

// Gives each place's channels its number.
template <int64_t Channels>
void spread(float* to, const float* numbers, int64_t channels, int64_t n) {
    if (Channels) channels = Channels;
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < channels; ++c) to[i * channels + c] = numbers[i];
}

void product_range(const Call& s, const Products& m, int64_t begin, int64_t end) {
    alignas(64) float by[kTile] = {}, numbers[kTile] = {};
    const int64_t channels = m.channels, some = kTile / channels;
    const int64_t most = some < kGroup ? some : some - some % kGroup;  // places at a time
    const auto draw = [&](int64_t first, Counters& counters, Noise<float>& noise, const RoundKeys& keys) {
        const float* const drawn = noise.fill_alone(counters, keys, Draw::uniform);
        for (int i = 0; i < counters.size; ++i) numbers[first + i] = drawn[i] * m.range + m.low;
    };
    if (m.places) {
        for_each_tile_of_words(s, 0, channels, draw);
        const FloatMode mode;
        for (int64_t i = 0; i < most * channels; ++i) by[i] = numbers[i % channels];
        for (int64_t at = begin, n; at < end; at += n) {
            n = least(most, end - at);
            multiply(m, at * channels, n * channels, by);
        }
        return;
    }
    const auto tile = [&](int64_t at, Counters& counters, Noise<float>& noise, const RoundKeys& keys) {
        draw(0, counters, noise, keys);
        if (channels == 1) return multiply(m, at, int64_t{counters.size}, numbers);
        for (int64_t i = 0, n; i < counters.size; i += n) {
            n = least(most, counters.size - i);
            channels == 3 ? spread<3>(by, numbers + i, 3, n) : spread<0>(by, numbers + i, channels, n);
            multiply(m, (at + i) * channels, n * channels, by);
        }
    };
    for_each_tile_of_words(s, begin, end, tile);
}

}  // namespace
}  // namespace nf
