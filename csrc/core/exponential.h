// SPDX-License-Identifier: Apache-2.0
// e^x and ln x from + - * fma, integer operations and bits alone, so that every machine gets the same bits
// (docs/noise.md, "Categories"). tests/noise/exhaustive.cpp measures the float over all its arguments.
#pragma once
#include "normal.h"

namespace nf {

// A temperature: its reciprocal in two parts, the same times 1 / ln 2, and 104 temperatures, beyond which e^-x counts
// as 0.
struct Scale {
    double beta;
    float high, low, rate, reach;
};

namespace {  // see philox.h

template <class Real>
struct ExponentialCoefficients;

template <>
struct ExponentialCoefficients<float> {
    // 2 e^r on [-ln 2 / 2, ln 2 / 2], error 2^-28.2
    static constexpr float twice_exp[] = {2.0f,           2.0f,           0x1.fffffcp-1f, 0x1.55548cp-2f,
                                          0x1.555858p-4f, 0x1.123de0p-6f, 0x1.6ac74ep-9f};
};

template <>
struct ExponentialCoefficients<double> {
    // e^r, error 2^-57.7
    static constexpr double exp[] = {1.0,
                                     1.0,
                                     0x1.000000000000bp-1,
                                     0x1.555555555550fp-3,
                                     0x1.55555555502a5p-5,
                                     0x1.1111111122b48p-7,
                                     0x1.6c16c1852a413p-10,
                                     0x1.a01a014497aa9p-13,
                                     0x1.a01997cc5a612p-16,
                                     0x1.71deec6c1241dp-19,
                                     0x1.28af3c30572acp-22,
                                     0x1.add757660e28dp-26};
};

constexpr float kRound = 0x1.8p23f;  // adding it rounds |x| < 2^22 to an integer, which the last bits then hold
constexpr float kLn2High = 0x1.62ep-1f, kLn2Low = 0x1.0bfbe8p-15f;  // times n up to 2^11, the first one is exact

constexpr Scale scale_of(double temperature) {
    const double beta = 1 / temperature;
    const auto high = static_cast<float>(beta);
    return {beta, high, static_cast<float>(beta - static_cast<double>(high)),
            static_cast<float>(beta * 0x1.71547652b82fep+0), 104.0f * static_cast<float>(temperature)};
}

// The terms of a chunk: e^(x / temperature) in units in which that of the largest x is within [0.7, 1.42].
struct Terms {
    float shift, least, high, low, rate, floor;

    Terms(const Scale& s, float largest) : high(s.high), low(s.low), rate(s.rate) {
        const float scaled = largest * high;
        shift = scaled < 512.0f && scaled > -512.0f ? 0.0f : largest;
        least = (largest - shift) - s.reach;
        floor = __builtin_fmaf(largest - shift, rate, kRound) - 126.0f;
    }

    // x less the shift; what is 104 temperatures or more below the largest becomes the least.
    template <class Lane>
    typename Lane::f32 shifted(typename Lane::f32 x) const {
        return Lane::max(Lane::sub(x, Lane::splat(shift)), Lane::splat(least));
    }
    // e^(z / temperature), or 0 where that is less than 2^-125. `unit`: the temperature is 1.
    template <class Lane, bool unit = false>
    typename Lane::f32 term(typename Lane::f32 z) const {
        const auto rounded = Lane::fma(z, Lane::splat(rate), Lane::splat(kRound));
        const auto n = Lane::sub(rounded, Lane::splat(kRound));
        const auto main = unit ? Lane::fma(n, Lane::splat(-kLn2High), z)
                               : Lane::fma(z, Lane::splat(low),
                                           Lane::fma(z, Lane::splat(high), Lane::mul(n, Lane::splat(-kLn2High))));
        const auto r = Lane::fma(n, Lane::splat(-kLn2Low), main);
        const auto p = polynomial<Lane, ExponentialCoefficients<float>::twice_exp>(r);
        const auto exponent =
            Lane::sub(Lane::as_bits(Lane::max(rounded, Lane::splat(floor))), __builtin_bit_cast(uint32_t, floor));
        return Lane::mul(p, Lane::as_float(Lane::template shift_left<23>(exponent)));
    }
};

// e^x for x <= 0, within an ulp; 0 below -708.
inline double exp_of(double x) {
    constexpr double round = 0x1.8p52;
    const double y = x > -708.0 ? x : -708.0;  // without branches, loops take vectors
    const double rounded = __builtin_fma(y, 0x1.71547652b82fep+0, round), n = rounded - round;
    const double r = __builtin_fma(n, -0x1.ef35793c76730p-45, __builtin_fma(n, -0x1.62e42fefa3800p-1, y));
    double p = 0;
#pragma GCC unroll 12
    for (int i = 11; i >= 0; --i) p = __builtin_fma(p, r, ExponentialCoefficients<double>::exp[i]);
    const double e =
        __builtin_bit_cast(double, __builtin_bit_cast(uint64_t, p) + (__builtin_bit_cast(uint64_t, rounded) << 52));
    return x > -708.0 ? e : 0.0;
}

}  // namespace
}  // namespace nf
