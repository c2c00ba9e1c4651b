// SPDX-License-Identifier: Apache-2.0
// Words to normals: the transform of Box & Muller (Ann. Math. Stat. 29, 1958),
//     z0 = sqrt(-2 ln U) cos(2 pi V),  z1 = sqrt(-2 ln U) sin(2 pi V),  U = (w0 + 1/2) / 2^32,  V = (w1 + 1/2) / 2^32,
// with only + - * fma sqrt, integer -> float conversions and bit operations, so every machine gets the same bits. Over
// all 2^32 words (tests/noise/exhaustive.cpp): radius within 2.5 ulp, cos and sin within 2^-22, never 0, |z| <= 6.77.
#pragma once
#include "philox.h"

namespace nf {
namespace {  // see philox.h

// Minimax polynomials (Remez): log1p relative to the whole -2 ln U, sin and cos in absolute error.
template <class Real>
struct NormalCoefficients;

template <>
struct NormalCoefficients<float> {
    static constexpr float log1p[] = {// -2 log1p(r) / r on [-1/3, 1/3], error 2^-25.6
                                      -0x1.000000p+1f, 0x1.ffffe2p-1f,  -0x1.555394p-1f,
                                      0x1.001378p-1f,  -0x1.9a3d70p-2f, 0x1.50374cp-2f,
                                      -0x1.197af0p-2f, 0x1.3b65aap-2f,  -0x1.34202ep-2f};
    static constexpr float sin[] = {// sin(pi t) / t in t^2 on [0, 1/4], error of sin 2^-28
                                    0x1.921fb4p+1f, -0x1.4abbb6p+2f, 0x1.46676ep+1f, -0x1.3232fap-1f, 0x1.3c4b2cp-4f};
    static constexpr float cos[] = {// cos(pi t) in t^2, error 2^-24.2
                                    1.0f, -0x1.3bd3b0p+2f, 0x1.03bdaap+2f, -0x1.55041ap+0f, 0x1.c2b9a6p-3f};
};

template <>
struct NormalCoefficients<double> {
    static constexpr double log1p[] = {
        // error 2^-54.7
        -0x1.0000000000000p+1, 0x1.fffffffffffd9p-1, -0x1.55555555558d8p-1, 0x1.0000000005b40p-1,
        -0x1.99999998f499dp-2, 0x1.5555554e12461p-2, -0x1.2492497760ab7p-2, 0x1.00000215d343dp-2,
        -0x1.c71c49fbf6f7cp-3, 0x1.9998f0a5b5b24p-3, -0x1.746269fb6db00p-3, 0x1.55658345a68eep-3,
        -0x1.3aa6f2b345154p-3, 0x1.23985be71b82cp-3, -0x1.16578ec8d1323p-3, 0x1.0985ec04a1accp-3,
        -0x1.94955e7c87504p-4, 0x1.568d75a7b6089p-4, -0x1.6c732ec81bf98p-3, 0x1.7e57f202609edp-3};
    static constexpr double sin[] = {// error 2^-62
                                     0x1.921fb54442d18p+1,  -0x1.4abbce625be51p+2,  0x1.466bc6775a9f7p+1,
                                     -0x1.32d2cce624835p-1, 0x1.50783483f4d0ap-4,   -0x1.e3074d5626aedp-8,
                                     0x1.e8f33b006024ep-12, -0x1.6f74773eaf29ep-16, 0x1.9c87434ee754ep-21};
    static constexpr double cos[] = {// error 2^-57.7
                                     1.0,
                                     -0x1.3bd3cc9be45dcp+2,
                                     0x1.03c1f081b59c8p+2,
                                     -0x1.55d3c7e3c115fp+0,
                                     0x1.e1f50681cae93p-3,
                                     -0x1.a6d1efeb4e518p-6,
                                     0x1.f9d25db6ace19p-10,
                                     -0x1.b696d3fd75367p-14,
                                     0x1.168d57ef8540ap-18};
};

// c[0] + x (c[1] + x (c[2] + ...)), with one fma for each term (Horner). c is a template parameter because a device has
// no such array: there each coefficient is an instruction's constant.
template <class Lane, const auto& c, int i = 0, class Vector>
constexpr Vector polynomial(Vector x) {
    constexpr auto coefficient = c[i];
    if constexpr (i + 1 == sizeof c / sizeof coefficient)
        return Lane::splat(coefficient);
    else
        return Lane::fma(polynomial<Lane, c, i + 1>(x), x, Lane::splat(coefficient));
}

template <class Vector>
struct Pair {
    Vector z0, z1;
};

// -2 ln U = ln4_e e - 2 ln(1 + r), |r| <= 1/3.
template <class Lane, class Real, class Vector>
constexpr Vector minus_two_ln(Vector e, Real ln4_e, Vector r) {
    const Vector log_1r = Lane::mul(r, polynomial<Lane, NormalCoefficients<Real>::log1p>(r));
    return Lane::fma(e, Lane::splat(ln4_e), log_1r);
}
// sqrt(-2 ln U) from that; negated if the sign bit of `flip` is set.
template <class Lane, class Vector, class Bits>
constexpr Vector radius_of(Vector minus_two_ln_u, Bits flip) {
    return Lane::flip_sign(Lane::sqrt(minus_two_ln_u), flip);
}

// The pair from the radius and from t in [-1/2, 1/2]: cos and sin of 2 pi V are those of pi t, up to a sign that both
// share. The radius carries that sign.
template <class Lane, class Real, class Vector>
constexpr Pair<Vector> on_circle(Vector radius, Vector t) {
    using C = NormalCoefficients<Real>;
    const Vector y = Lane::mul(t, t);
    return {Lane::mul(radius, polynomial<Lane, C::cos>(y)),
            Lane::mul(radius, Lane::mul(t, polynomial<Lane, C::sin>(y)))};
}

constexpr float kMinusLn4OfBits = -0x1.62e430p-23f;  // times 2^23 e

// 2^24 U as an exact sum: the upper 24 bits, and the rest. A lane may part it elsewhere, as long as no bit is lost
// below.
template <class Lane>
constexpr Pair<typename Lane::f32> parts_of(typename Lane::u32 w0) {
    if constexpr (requires { Lane::parts(w0); })
        return Lane::parts(w0);
    else
        return {Lane::to_float(Lane::template shift_right<8>(w0)),
                Lane::sub(Lane::as_float(Lane::and_or(w0, 0xFFu, 0x47000000u)), Lane::splat(0x1p15f - 0x1p-9f))};
}

// float32. U comes in two exact parts, its upper 24 bits and the rest, so that r is rounded once also near U = 1, where
// ln U vanishes. The angle pi (2 w1 + 1) / 2^32 is wrapped into (-pi/2, pi/2): an odd number of half turns negates both
// cos and sin. The number is odd if the two top bits of w1 differ. The radius carries that sign.
template <class Lane>
constexpr typename Lane::f32 minus_two_ln_of(typename Lane::u32 w0) {
    const auto [high, low] = parts_of<Lane>(w0);
    const auto u = Lane::add(high, low);                                                  // 2^24 U
    const auto k = Lane::bit_and(Lane::sub(Lane::as_bits(u), 0x4B2AAAABu), 0xFF800000u);  // 2^23 e; U >= 2/3: e = 0
    const auto scale = Lane::as_float(Lane::sub(0x33800000u, k));                         // 2^-(24 + e)
    const auto r = Lane::fma(low, scale, Lane::fma(high, scale, Lane::splat(-1.0f)));
    return minus_two_ln<Lane>(Lane::to_float(k), kMinusLn4OfBits, r);
}
// The integer 2^32 t of a word w1: its upper bit is the next one of w1, its sign in a radius is that of w1 ^ this.
template <class Lane>
constexpr typename Lane::u32 twice_and_one(typename Lane::u32 w1) {
    if constexpr (requires { Lane::twice_and_one(w1); })
        return Lane::twice_and_one(w1);
    else
        return Lane::bit_or(Lane::add(w1, w1), 1u);
}
template <class Lane>
constexpr typename Lane::f32 normal_radius(typename Lane::u32 w0, typename Lane::u32 w1) {
    return radius_of<Lane>(minus_two_ln_of<Lane>(w0), Lane::bit_xor(w1, twice_and_one<Lane>(w1)));
}
template <class Lane>
constexpr Pair<typename Lane::f32> normals_at(typename Lane::f32 radius, typename Lane::u32 w1) {
    const auto t = Lane::mul(Lane::to_float(twice_and_one<Lane>(w1)), Lane::splat(0x1p-32f));
    return on_circle<Lane, float>(radius, t);
}
template <class Lane>
constexpr Pair<typename Lane::f32> normal_pair(typename Lane::u32 w0, typename Lane::u32 w1) {
    return normals_at<Lane>(normal_radius<Lane>(w0, w1), w1);
}

// float64: the same, from 64-bit words (w0, v0) and (w1, v1), w the upper halves; one half of the lanes at a time.
template <class Lane, int Half>
constexpr typename Lane::f64 normal_radius(typename Lane::u32 w0, typename Lane::u32 v0, typename Lane::u32 w1) {
    const auto high = Lane::template unsigned_to_double<Half>(w0);
    const auto low = Lane::add(Lane::template unsigned_to_double<Half>(v0), Lane::splat(0.5));
    const auto u = Lane::fma(high, Lane::splat(0x1p32), low);
    // 2^52 (e + 65), counted from 1/3 so that it is positive
    const auto k =
        Lane::bit_and(Lane::sub(Lane::as_bits(u), uint64_t{0x3FD5555555555555}), uint64_t{0xFFF0000000000000});
    const auto e =
        Lane::sub(Lane::as_double(Lane::bit_or(Lane::template shift_right64<52>(k), uint64_t{0x4330000000000000})),
                  Lane::splat(0x1p52 + 65));
    const auto scale = Lane::as_double(Lane::sub(uint64_t{0x4000000000000000}, k));       // 2^-(64 + e)
    const auto scale_high = Lane::as_double(Lane::sub(uint64_t{0x4200000000000000}, k));  // 2^-(32 + e)
    const auto r = Lane::fma(low, scale, Lane::fma(high, scale_high, Lane::splat(-1.0)));
    const auto flip = Lane::template sign_bits<Half>(Lane::bit_xor(w1, Lane::add(w1, w1)));
    return radius_of<Lane>(minus_two_ln<Lane>(e, -0x1.62e42fefa39efp+0, r), flip);
}
template <class Lane, int Half>
constexpr Pair<typename Lane::f64> normals_at(typename Lane::f64 radius, typename Lane::u32 w1, typename Lane::u32 v1) {
    const auto t_high =
        Lane::template signed_to_double<Half>(Lane::bit_or(Lane::add(w1, w1), Lane::template shift_right<31>(v1)));
    const auto t_low = Lane::template unsigned_to_double<Half>(Lane::bit_or(Lane::add(v1, v1), 1u));
    const auto t = Lane::fma(t_high, Lane::splat(0x1p-32), Lane::mul(t_low, Lane::splat(0x1p-64)));
    return on_circle<Lane, double>(radius, t);
}
template <class Lane, int Half>
constexpr Pair<typename Lane::f64> normal_pair(typename Lane::u32 w0, typename Lane::u32 v0, typename Lane::u32 w1,
                                               typename Lane::u32 v1) {
    return normals_at<Lane, Half>(normal_radius<Lane, Half>(w0, v0, w1), w1, v1);
}

// Uniform numbers in (0, 1), centred in cells of 2^-23 (float32) and 2^-52 (float64): all exact, none is 0 or 1.
template <class Lane>
constexpr typename Lane::f32 uniform(typename Lane::u32 w) {
    return Lane::fma(Lane::to_float(Lane::template shift_right<9>(w)), Lane::splat(0x1p-23f), Lane::splat(0x1p-24f));
}

template <class Lane, int Half>
constexpr typename Lane::f64 uniform(typename Lane::u32 w, typename Lane::u32 v) {
    const auto high = Lane::template unsigned_to_double<Half>(w);
    const auto low = Lane::template unsigned_to_double<Half>(Lane::template shift_right<12>(v));
    return Lane::fma(high, Lane::splat(0x1p-32), Lane::fma(low, Lane::splat(0x1p-52), Lane::splat(0x1p-53)));
}

}  // namespace
}  // namespace nf
