// SPDX-License-Identifier: Apache-2.0
// Counted photons of floats and uint16 (augment.poisson): docs/noise.md has the formulas.
//
// Nothing is fused here, so that NumPy's arithmetic gives the same bits.
#pragma once
#include <cmath>
#include <initializer_list>

#include "drawing.h"

namespace nf {
namespace {

// Numbers that compilers keep in a register. Functions write to their first argument.
constexpr int kDoubles = Lane::width < 4 ? 2 : Lane::width / 2;
using Doubles = double __attribute__((vector_size(kDoubles * sizeof(double))));
using Truths = decltype(Doubles{} < Doubles{});  // of each 0 or -1
using Bits = uint64_t __attribute__((vector_size(kDoubles * sizeof(double))));

// A function is one long chain of operations. So many chains side by side take little longer.
constexpr int kChains = Lane::width > 1 ? 4 : 1, kSome = kChains * kDoubles;
using Some = Doubles[kChains];

void take(Doubles& x, const double* from) { std::memcpy(&x, from, sizeof x); }
void put(double* to, const Doubles& x) { std::memcpy(to, &x, sizeof x); }

int64_t how_many(const Truths& those) {
    int64_t sum = 0;
    for (int i = 0; i < kDoubles; ++i) sum -= those[i];
    return sum;
}

void take_root(Doubles& x) {
    double each[kDoubles];
    put(each, x);
    for (double& one : each) one = std::sqrt(one);
    take(x, each);
}

// ln x of positive numbers, by ln (1 + s) / (1 - s) = 2 s + 2 s^3 / 3 + .., to 2e-11.
void take_logarithm(Doubles& x) {
    constexpr uint64_t root = 0x3FE6A09E667F3BCD, middle = uint64_t{1024} << 52;  // sqrt(1 / 2)
    const Bits bits = __builtin_bit_cast(Bits, x), e = (bits - root + middle) >> 52;
    const Doubles f = __builtin_bit_cast(Doubles, bits + middle - (e << 52)), s = (f - 1) / (f + 1), q = s * s;
    Doubles sum = q * (1.0 / 11) + 1.0 / 9;
    sum = sum * q + 1.0 / 7;
    sum = sum * q + 1.0 / 5;
    sum = sum * q + 1.0 / 3;
    sum = sum * q + 1;
    x = (__builtin_bit_cast(Doubles, e | 0x4330000000000000) - (0x1p52 + 1024)) * 0x1.62e42fefa39efp-1 + 2 * s * sum;
}

// e^x, where x is from -700 to 700, to 1e-11 of it.
void take_exponential(Doubles& x) {
    const Doubles shifted = x * 0x1.71547652b82fep+0 + 0x1.8p52, n = shifted - 0x1.8p52;
    const Doubles r = (x - n * 0x1.62e42fefa3800p-1) - n * 0x1.ef35793c76730p-45;
    Doubles sum = r * (1.0 / 362880) + 1.0 / 40320;
    for (const double factorial : {5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0}) sum = sum * r + 1 / factorial;
    x = __builtin_bit_cast(Doubles, __builtin_bit_cast(Bits, sum) + (__builtin_bit_cast(Bits, shifted) << 52));
}

// n numbers to a power; 0, infinities and NaN stay.
[[gnu::noinline]] void raise(double* numbers, int n, double exponent) {
    for (int i = 0; i < n; i += kSome) {
        Some x, y;
        for (int v = 0; v < kChains; ++v) {
            take(x[v], numbers + i + v * kDoubles);
            take_logarithm(y[v] = x[v]);
            y[v] = y[v] * exponent;
            y[v] = y[v] < -700 ? Doubles{} - 700 : y[v];
            y[v] = y[v] > 700 ? Doubles{} + 700 : y[v];
            take_exponential(y[v]);
            put(numbers + i + v * kDoubles, ((x[v] > 0) & (x[v] - x[v] == 0)) ? y[v] : x[v]);
        }
    }
}

// Poisson numbers of small means: of each the first whose probability to be reached is beyond u.
constexpr double kSmall = 32;  // from there on, counting takes longer than a normal number
[[gnu::noinline]] void count(Some& number, const Some& mean, const Some& u) {
    Some m, target, weight, sum;
    for (int v = 0; v < kChains; ++v) {
        target[v] = m[v] = mean[v] < kSmall ? mean[v] : Doubles{};
        take_exponential(target[v]);
        target[v] = target[v] * u[v];
        sum[v] = weight[v] = Doubles{} + 1, number[v] = Doubles{};
    }
    for (int k = 1; k < 256; k += 2) {
        for (int j = k; j < k + 2; ++j) {
            const double each = 1.0 / j;
            for (int v = 0; v < kChains; ++v) {
                number[v] = sum[v] <= target[v] ? number[v] + 1 : number[v];
                weight[v] = weight[v] * (m[v] * each);
                sum[v] = sum[v] + weight[v];
            }
        }
        Truths more{};
        for (int v = 0; v < kChains; ++v) more |= sum[v] <= target[v];
        if (!how_many(more)) break;
    }
}

// The normal numbers of which a fraction u lies below (Wichura 1988, algorithm AS 241, PPND7).
void take_normal(Doubles& x, const Doubles& u) {
    const Doubles q = u - 0.5, near = 0.180625 - q * q;
    Doubles tail = q < 0 ? u : 1 - u;
    take_logarithm(tail);
    tail = -tail;
    take_root(tail);
    tail = tail - 1.6;
    Doubles over = ((59.109374720 * near + 159.29113202) * near + 50.434271938) * near + 3.3871327179;
    Doubles under = ((67.187563600 * near + 78.757757664) * near + 17.895169469) * near + 1;
    const auto middle = near >= 0;
    over = middle ? over * q : ((0.17023821103 * tail + 1.3067284816) * tail + 2.7568153900) * tail + 1.4234372777;
    under = middle ? under : (0.12021132975 * tail + 0.73700164250) * tail + 1;
    x = over / under;
    x = (middle | (q > 0)) ? x : -x;
}

// The same of large means, by the expansion in 1 / sqrt(m) (Giles 2016, algorithm 955). From 2^40 on it is the mean.
[[gnu::noinline]] void expand(Doubles& number, const Doubles& m, const Doubles& u) {
    if (how_many(m < kSmall) == kDoubles) return;
    Doubles z, root = m;
    take_normal(z, u);
    take_root(root);
    const Doubles square = z * z, each = 1 / root;
    const Doubles x = ((m + root * z) + (square + 2) * (1.0 / 6)) - (z * (square + 2)) * (each * (1.0 / 72)) +
                      ((3 * square + 7) * square - 16) * ((each * each) * (1.0 / 810));
    const Doubles near = (x + 0x1p52) - 0x1p52, whole = near > x ? near - 1 : near;
    number = m < kSmall ? number : m < 0x1p40 ? whole : m;
}

// Makes photons of n numbers, light whose greatest is 1, and light of their counts.
void count_photons(double* light, const double* u, const double* peaks, int n, double gamma) {
    if (gamma != 1) raise(light, n, gamma);
    for (int i = 0; i < n; i += kSome) {
        Some number, mean, of, peak;
        Truths small{};
        for (int v = 0; v < kChains; ++v) {
            const int at = i + v * kDoubles;
            take(mean[v], light + at), take(of[v], u + at), take(peak[v], peaks + at);
            number[v] = mean[v] = (mean[v] < 0 ? Doubles{} : mean[v]) * peak[v];
            small += mean[v] < kSmall;
        }
        const int64_t all = how_many(small);
        if (all) count(number, mean, of);
        for (int v = 0; v < kChains; ++v) {
            if (all < kSome) expand(number[v], mean[v], of[v]);
            put(light + i + v * kDoubles, (mean[v] == mean[v] ? number[v] : mean[v]) / peak[v]);  // NaN stays
        }
    }
    if (gamma != 1) raise(light, n, 1 / gamma);
}

}  // namespace
}  // namespace nf
