// SPDX-License-Identifier: Apache-2.0
// An image times random factors, uniform in a range (augment/factors.py), in one pass.
#pragma once
#if defined(__AVX512BW__)
#include <cpuid.h>
#endif

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

// Whole vectors, and whole pixels of three bytes.
constexpr int64_t kLookedUp = 192, kNear = 64 * kLookedUp;  // kNear: with the result, in the first cache

#if defined(__AVX512BW__)
constexpr bool kLooksUp = true;
inline bool looks_up() {
    static const bool vbmi = [] {
        unsigned a, b, c, d;
        return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 1 & 1);
    }();
    return vbmi;
}

[[gnu::target("avx512vbmi"), gnu::always_inline]] inline __m512i of_table(const __m512i* part, __m512i x) {
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), _mm512_permutex2var_epi8(part[0], x, part[1]),
                                  _mm512_permutex2var_epi8(part[2], x, part[3]));
}

// Sets n bytes from three tables in turn, which lie in memory with the first two once more: half of the operations of
// products. Each third of the vectors has an order of the tables, which stay in registers. differ: whether they do.
[[gnu::target("avx512vbmi")]] void look_up(const uint8_t* tables, const uint8_t* x, uint8_t* out, int64_t n,
                                           bool differ) {
    constexpr uint64_t kThird = 0x9249249249249249u;
    for (int64_t third = 0; third < 3; ++third) {
        __m512i part[12];
        for (int k = 0; k < 12; ++k) part[k] = _mm512_loadu_si512(tables + kLevels * third + 64 * k);
        for (int64_t i = 64 * third; i < n; i += kLookedUp) {
            const __m512i byte = _mm512_loadu_si512(x + i);
            __m512i y = of_table(part, byte);
            if (differ) y = _mm512_mask_blend_epi8(kThird << 1, y, of_table(part + 4, byte));
            if (differ) y = _mm512_mask_blend_epi8(kThird << 2, y, of_table(part + 8, byte));
            _mm512_storeu_si512(out + i, y);
        }
    }
}
#else
constexpr bool kLooksUp = false;
inline bool looks_up() { return false; }
inline void look_up(const uint8_t*, const uint8_t*, uint8_t*, int64_t, bool) {}
#endif

void factor_range(const Call& s, const Factors& m, int64_t begin, int64_t end) {
    using Few = float __attribute__((vector_size(16)));
    constexpr int kFew = sizeof(Few) / sizeof(float);
    alignas(64) float factor[kTile + kFew], value[kTile];
    const auto each = static_cast<int>(m.channels);
    int most = kTile / each;                           // places
    if (most > kTile / 4) most -= most % (kTile / 4);  // whole groups
    const auto multiply = [&](const Factors& m, int64_t at, int n) {
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
            if (kLooksUp && m.type == DType::u8 && (each == 1 || each == 3) && end - begin > 8 * kLookedUp &&
                looks_up()) {
                alignas(64) uint8_t level[kLevels], tables[5 * kLevels];
                for (int i = 0; i < kLevels; ++i) level[i] = static_cast<uint8_t>(i);
                Factors one = m;
                one.x = level, one.out = tables;
                for (int c = 0; c < 5; ++c) {
                    std::fill_n(factor, kLevels, u[c % each] * m.range + m.low);
                    multiply(one, 0, kLevels);
                    one.out = tables + kLevels * (c + 1);
                }
                const int64_t n = (end - begin) * each / kLookedUp * kLookedUp;
                const auto* const from = static_cast<const uint8_t*>(m.x) + begin * each;
                auto* const to = static_cast<uint8_t*>(m.out) + begin * each;
                for (int64_t i = 0; i < n; i += kNear) look_up(tables, from + i, to + i, least(n - i, kNear), each > 1);
                begin += n / each;
            }
            for (int i = 0; i < each; ++i) factor[i] = u[i] * m.range + m.low;
            const auto all = static_cast<int>(least(most, end - begin)) * each;
            for (int i = each, n; i < all; i += n) {
                n = static_cast<int>(least(i, all - i));
                std::memcpy(factor + i, factor, sizeof(float) * static_cast<size_t>(n));
            }
            for (int64_t done = begin; done < end; done += most)
                multiply(m, done * each, static_cast<int>(least(most, end - done)) * each);
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
            multiply(m, (at + i) * each, n * each);
        }
    };
    for_each_tile_of_words(s, m.repeat ? 0 : begin, m.repeat ? s.size : end, tile);
}

}  // namespace
}  // namespace nf
