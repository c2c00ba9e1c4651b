// SPDX-License-Identifier: Apache-2.0
// An image times random factors, uniform in a range (augment/factors.py), in one pass.
#pragma once
#include "drawing.h"
#include "pixels.h"

namespace nf {
namespace {

// Multiplies whole groups. Returns how many elements it did. NaN stays NaN; no product of a byte is one, so that
// packing clips what adding 2^23 has rounded.
template <DType Type>
int multiply_groups(const Factors& m, int64_t at, const float* factor, int n) {
    constexpr int W = Lane::width;
    int i = 0;
    for (; i + kGroup <= n; i += kGroup) {
        Lane::f32 product[kVectors];
        for (int v = 0; v < kVectors; ++v) {
            product[v] = Lane::mul(load_lanes<Type>(m.x, at + i + v * W), Lane::load(factor + i + v * W));
            if (Type == DType::f32) product[v] = Lane::clamp(product[v], Lane::splat(0.0f), Lane::splat(1.0f));
        }
        if constexpr (Type == DType::u8) {
            const auto level = [&](int v) {
                return Lane::sub(Lane::as_bits(Lane::add(product[v], Lane::splat(0x1p23f))), 0x4B000000u);
            };
            Lane::store(static_cast<uint8_t*>(m.out) + at + i, Lane::low_bytes(level(0), level(1), level(2), level(3)));
        } else {
            store_lanes<Type>(m.out, at + i, product, false);
        }
    }
    return i;
}

void factor_range(const Call& s, const Factors& m, int64_t begin, int64_t end) {
    using Few = float __attribute__((vector_size(16)));
    constexpr int kFew = sizeof(Few) / sizeof(float);
    alignas(64) float factor[kTile + kFew], value[kTile];
    const auto each = static_cast<int>(m.channels);
    int most = kTile / each;                           // places
    if (most > kTile / 4) most -= most % (kTile / 4);  // whole groups
    const auto multiply = [&](int64_t place, int places) {
        int64_t at = place * each;
        int n = places * each;
        const int done = m.type == DType::u8    ? multiply_groups<DType::u8>(m, at, factor, n)
                         : m.type == DType::f32 ? multiply_groups<DType::f32>(m, at, factor, n)
                                                : 0;
        if ((n -= done) == 0) return;
        load_as(value, m.x, m.type, at += done, n);
        for (int i = 0; i < n; ++i) value[i] *= factor[done + i];
        if (m.type == DType::f32)
            for (int i = 0; i < n; ++i) value[i] = value[i] < 0 ? 0 : value[i] > 1 ? 1 : value[i];
        store_as(m.out, m.type, at, value, n, false);
    };
    const auto tile = [&](int64_t at, Counters& counters, Noise<float>& noise, const RoundKeys& keys) {
        const float* const u = noise.fill_alone(counters, keys, Draw::uniform);
        if (m.repeat) {
            for (int i = 0; i < each; ++i) factor[i] = u[i] * m.range + m.low;
            const auto all = static_cast<int>(least(most, end - begin)) * each;
            for (int i = each, n; i < all; i += n) {
                n = static_cast<int>(least(i, all - i));
                std::memcpy(factor + i, factor, sizeof(float) * static_cast<size_t>(n));
            }
            for (int64_t done = begin; done < end; done += most)
                multiply(done, static_cast<int>(least(most, end - done)));
            return;
        }
        for (int i = 0, n; i < counters.size; i += n) {
            n = static_cast<int>(least(most, counters.size - i));
            for (int k = 0; k < n && each == 3; k += kPixels) {
                Floats x;
                std::memcpy(&x, u + i + k, sizeof x);
                write_thrice(x * m.range + m.low, factor + 3 * k, AllPixels());
            }
            for (int k = 0; k < n && each > 1 && each != 3; ++k) {  // what is too much is overwritten
                const Few of_place = Few{} + (u[i + k] * m.range + m.low);
                std::memcpy(factor + k * each, &of_place, sizeof of_place);
                for (int c = kFew; c < each; c += kFew) std::memcpy(factor + k * each + c, &of_place, sizeof of_place);
            }
            for (int k = 0; k < n && each == 1; ++k) factor[k] = u[i + k] * m.range + m.low;
            multiply(at + i, n);
        }
    };
    for_each_tile_of_words(s, m.repeat ? 0 : begin, m.repeat ? s.size : end, tile);
}

}  // namespace
}  // namespace nf
