// SPDX-License-Identifier: Apache-2.0
// The noise of a sensitive sensor, in the hue and the lightness of RGB pixels (interop/albumentations.py), in two
// passes.
//
// Nothing is fused here, so that NumPy's arithmetic gives the same bits.
#pragma once
#include <atomic>

#include "drawing.h"
#include "pixels.h"

namespace nf {
namespace {

using Whole = int32_t __attribute__((vector_size(kPixels * sizeof(int32_t))));
using Reals = double __attribute__((vector_size(kPixels * sizeof(double))));

constexpr uint32_t kUniforms = 7;  // their stream

// Red, green and blue of pixels, whose greatest is 1.
void load_pixels(Floats (&x)[3], const float* from, float unit) {
    std::memcpy(x, from, sizeof x);
    move<true>(x);
    for (Floats& channel : x) channel = channel * unit;
}

// Adds up twice the lightness of each frame, and of its square, in units of 2^-16. The sums of a tile are below 2^43.
void lightness_range(const Iso& m, int64_t begin, int64_t end) {
    const FloatMode mode;
    alignas(64) float pixels[3 * kTile];
    for (int64_t at = begin, n; at < end; at += n) {
        const int64_t frame = at / m.frame;
        n = least(least(end, (frame + 1) * m.frame) - at, kTile);
        load_as(pixels, m.x, m.type, 3 * at, static_cast<int>(3 * n));
        for (int64_t i = 3 * n; i % (3 * kPixels); ++i) pixels[i] = 0;
        Reals sum{}, squares{};
        for (int64_t i = 0; i < n; i += kPixels) {
            Floats x[3];
            load_pixels(x, pixels + 3 * i, static_cast<float>(1 / m.top));
            const Floats high = x[0] > x[1] ? x[0] : x[1], low = x[0] < x[1] ? x[0] : x[1];
            const Floats most = x[2] > high ? x[2] : high, few = x[2] < low ? x[2] : low;
            Floats both = (most + few) * 0x1p16f;
            both = both > 0 ? both < 0x1p17f ? both : Floats{} + 0x1p17f : Floats{};
            const Reals light = __builtin_convertvector(__builtin_convertvector(both, Whole), Reals);
            sum = sum + light, squares = squares + light * light;
        }
        for (int i = 1; i < kPixels; ++i) sum[0] += sum[i], squares[0] += squares[i];
        std::atomic_ref(m.sums[2 * frame]) += static_cast<uint64_t>(sum[0]);
        std::atomic_ref(m.sums[2 * frame + 1]) += static_cast<uint64_t>(squares[0]);
    }
}

// Changes pixels by numbers for their lightness and hue, the latter in sixths of a turn.
void change(float* pixels, const float* count, const float* turn, int n, const Iso& m) {
    const auto unit = static_cast<float>(1 / m.top), intensity = static_cast<float>(m.intensity);
    const auto top = static_cast<float>(m.top);
    for (int i = 0; i < n; i += kPixels) {
        Floats x[3], counted, turned;
        load_pixels(x, pixels + 3 * i, unit);
        const Floats r = x[0], g = x[1], b = x[2];
        std::memcpy(&counted, count + i, sizeof counted);
        std::memcpy(&turned, turn + i, sizeof turned);
        const Floats above = r > g ? r : g, below = r < g ? r : g, most = b > above ? b : above,
                     few = b < below ? b : below;
        const Floats range = most - few, both = most + few, light = both * 0.5f;
        const Floats saturation = range > 0 ? range / (both <= 1 ? both : 2 - both) : Floats{};
        const Floats ahead = most == r ? g - b : most == g ? b - r : r - g;
        const Floats sector = range > 0 ? ahead / range : Floats{};
        const Floats hue = (sector + (most == r ? Floats{} : most == g ? Floats{} + 2 : Floats{} + 4)) + turned;
        Floats lit = light + (counted * intensity) * (1 - light);
        lit = lit > 0 ? lit < 1 ? lit : Floats{} + 1 : Floats{};
        const Floats amplitude = saturation * (lit < 1 - lit ? lit : 1 - lit);
        for (int c = 0; c < 3; ++c) {
            Floats place = hue * 2 + (c == 0 ? 0.0f : c == 1 ? 8.0f : 4.0f);
            place = place < 0 ? place + 12 : place >= 12 ? place - 12 : place;
            Floats down = place - 3 < 9 - place ? place - 3 : 9 - place;
            down = down < 1 ? down > -1 ? down : Floats{} - 1 : Floats{} + 1;
            Floats value = lit - amplitude * down;
            value = value > 0 ? value < 1 ? value : Floats{} + 1 : Floats{};
            x[c] = value * top;
        }
        move<false>(x);
        std::memcpy(pixels + 3 * i, x, sizeof x);
    }
}

void iso_range(const Call& s, const Iso& m, int64_t begin, int64_t end) {
    alignas(64) float pixels[3 * kTile], count[kTile], turn[kTile];
    alignas(64) uint32_t words[kTile];
    const auto tile = [&](int64_t at, Counters& counters, Noise<float>& noise, const RoundKeys& keys) {
        const int n = counters.size;
        const float* const z = noise.fill_alone(counters, keys, Draw::normal);
        const auto hue = static_cast<float>(m.turn);
        for (int i = 0; i < n; ++i) turn[i] = z[i] * hue;
        counters.switch_stream(kUniforms);
        copy_words(words, noise.fill_alone(counters, keys, Draw::words), n);
        counters.switch_stream(kUniforms);
        for (int i = 0; i < n;) {
            const int64_t frame = (at + i) / m.frame;
            const auto stop = static_cast<int>(least((frame + 1) * m.frame - at, n));
            const uint32_t* const last = m.last + frame * kCounts;
            for (int j = i; j < stop; ++j) count[j] = 0;
            for (int64_t k = 0; k < m.counts; ++k)
                for (int j = i; j < stop; ++j) count[j] += words[j] > last[k] ? 1.0f : 0.0f;
            i = stop;
        }
        load_as(pixels, m.x, m.type, 3 * at, 3 * n);
        change(pixels, count, turn, n, m);
        store_as(m.out, m.type, 3 * at, pixels, 3 * n, false);
    };
    for_each_tile_of_words(s, begin, end, tile);
}

}  // namespace
}  // namespace nf
