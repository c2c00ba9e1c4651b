// SPDX-License-Identifier: Apache-2.0
// The noise of a sensitive sensor, in the hue and the lightness of RGB pixels (interop/albumentations.py), in two
// passes.
//
// Nothing is fused here, so that NumPy's arithmetic gives the same bits.
#pragma once
#include <atomic>

#include "drawing.h"

namespace nf {
namespace {

constexpr int kPixels = Lane::width < 4 ? 4 : Lane::width;
using Floats = float __attribute__((vector_size(kPixels * sizeof(float))));

constexpr uint32_t kUniforms = 7;  // their stream

// Red, green and blue of a tile of pixels.
struct Pixels {
    alignas(64) float channel[3][kTile];

    template <class Record>
    void load(const Record& m, int64_t at, int n) {
        alignas(64) float all[3 * kTile];
        load_as(all, m.x, m.type, 3 * at, 3 * n);
        const auto unit = static_cast<float>(1 / m.top);
        for (int c = 0; c < 3; ++c)
            for (int i = 0; i < n; ++i) channel[c][i] = all[3 * i + c] * unit;
    }
    void store(const Iso& m, int64_t at, int n) const {
        alignas(64) float all[3 * kTile];
        const auto top = static_cast<float>(m.top);
        for (int c = 0; c < 3; ++c)
            for (int i = 0; i < n; ++i) all[3 * i + c] = channel[c][i] * top;
        store_as(m.out, m.type, 3 * at, all, 3 * n, false);
    }
};

// Adds up twice the lightness of each frame, and its square, in units of 2^-16.
void lightness_range(const Lightness& m, int64_t begin, int64_t end) {
    const FloatMode mode;
    Pixels pixels;
    for (int64_t at = begin, n; at < end; at += n) {
        const int64_t frame = at / m.frame;
        n = least(least(end, (frame + 1) * m.frame) - at, kTile);
        pixels.load(m, at, static_cast<int>(n));
        uint64_t sum = 0, squares = 0;
        for (int i = 0; i < n; ++i) {
            const float r = pixels.channel[0][i], g = pixels.channel[1][i], b = pixels.channel[2][i];
            const float high = r > g ? r : g, low = r < g ? r : g, most = b > high ? b : high, few = b < low ? b : low;
            const float both = (most + few) * 0x1p16f;
            const auto light =
                static_cast<uint64_t>(static_cast<int32_t>(both > 0 ? both < 0x1p17f ? both : 0x1p17f : 0));
            sum += light, squares += light * light;
        }
        std::atomic_ref(m.sums[2 * frame]) += sum;
        std::atomic_ref(m.sums[2 * frame + 1]) += squares;
    }
}

// Changes pixels by numbers for their lightness and hue, the latter in sixths of a turn.
void change(Pixels& pixels, const float* count, const float* turn, int n, float intensity) {
    for (int i = 0; i < n; i += kPixels) {
        Floats r, g, b, counted, turned;
        std::memcpy(&r, pixels.channel[0] + i, sizeof r);
        std::memcpy(&g, pixels.channel[1] + i, sizeof g);
        std::memcpy(&b, pixels.channel[2] + i, sizeof b);
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
            std::memcpy(pixels.channel[c] + i, &value, sizeof value);
        }
    }
}

void iso_range(const Call& s, const Iso& m, int64_t begin, int64_t end) {
    Pixels pixels;
    alignas(64) float count[kTile], turn[kTile];
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
            const uint32_t* const last = m.last + frame * m.counts;
            for (int j = i; j < stop; ++j) count[j] = 0;
            for (int64_t k = 0; k < m.counts; ++k)
                for (int j = i; j < stop; ++j) count[j] += words[j] > last[k] ? 1.0f : 0.0f;
            i = stop;
        }
        pixels.load(m, at, n);
        change(pixels, count, turn, n, static_cast<float>(m.intensity));
        pixels.store(m, at, n);
    };
    for_each_tile_of_words(s, begin, end, tile);
}

}  // namespace
}  // namespace nf
