// SPDX-License-Identifier: Apache-2.0
// Measures the noise contract's error bounds over all 2^32 words, or a part of them, through the lane type NF_LANE,
// against the C library in double (float32) and long double (float64). Prints "name value where" lines, which
// test_exhaustive.py judges.
//
// Radius and angle are seen apart through the public formula alone: word 0 has cos = 1 to the last bit, so
// normal_pair(w, 0) is the radius of w; and there is a word whose radius is 1 to the last bit, which shows cos and sin.
// The check `product` says that the pair of any two words is the product of what was measured apart, so the extremes of
// the factors, whose product is rounded monotonically, bound all 2^64 pairs.
#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <thread>
#include <vector>

#include "core/race.h"
#include "cpu/lane_scalar.h"
#include "cpu/tile_rows.h"

using namespace nf;

namespace {

constexpr int W = Lane::width;
constexpr uint64_t kWords = uint64_t{1} << 32;
constexpr long double kPi = 3.14159265358979323846264338327950288L;

// ------------------------------------------------------------------------------------------------ bookkeeping

// The largest value seen (the smallest: of its negative), and the word or words where it was.
struct Most {
    double value = -std::numeric_limits<double>::infinity();
    uint64_t at = 0, at_low = 0;

    void see(double v, uint64_t where, uint64_t where_low = 0) {
        if (!(v <= value) && value == value) value = v, at = where, at_low = where_low;  // a NaN too, and it stays
    }
    void see(const Most& other) { see(other.value, other.at, other.at_low); }
};

struct Count {
    uint64_t n = 0, at = 0;

    void see(bool wrong, uint64_t where) {
        if (wrong && n++ == 0) at = where;
    }
    void see(const Count& other) {
        if (n == 0) at = other.at;
        n += other.n;
    }
};

void print(const char* name, const Most& m, double factor = 1) {
    std::printf("%-26s %.17g 0x%08" PRIX64 ":%08" PRIX64 "\n", name, m.value * factor, m.at, m.at_low);
}

void print(const char* name, const Count& c) { std::printf("%-26s %" PRIu64 " 0x%08" PRIX64 "\n", name, c.n, c.at); }

// Of each range one block in `every` is tried, and its last.
uint64_t every = 1;

// body(result, first, last) over the blocks of [0, total) on all threads; the results seen together.
template <class Result, class Body>
Result over(int threads, uint64_t total, Body body) {
    constexpr uint64_t kBlock = uint64_t{1} << 20;
    std::vector<Result> results(static_cast<size_t>(threads));
    std::vector<std::thread> pool;
    for (int i = 0; i < threads; ++i)
        pool.emplace_back([&, i] {
            Result mine;  // neighbours in `results` would share a cache line
            for (uint64_t block = i * every; block * kBlock < total; block += threads * every)
                body(mine, block * kBlock, std::min(total, (block + 1) * kBlock));
            if (i == 0 && every > 1 && total > kBlock) body(mine, total - kBlock, total);
            results[i] = mine;
        });
    for (auto& thread : pool) thread.join();
    for (int i = 1; i < threads; ++i) results[0].see(results[i]);
    return results[0];
}

double ulp(float x) { return bits_to_float(float_to_bits(x) & 0x7F800000u) * 0x1p-23; }
double ulp(double x) { return Scalar::as_double(Scalar::as_bits(x) & 0x7FF0000000000000u) * 0x1p-52; }

Lane::u32 from(uint32_t first) {
    uint32_t words[W];
    for (int i = 0; i < W; ++i) words[i] = first + static_cast<uint32_t>(i);
    return Lane::load(words);
}

template <class Real>
struct Values {
    Real z0[W], z1[W];
};

Values<float> normals(Lane::u32 w0, Lane::u32 w1) {
    Values<float> v;
    const auto pair = normal_pair<Lane>(w0, w1);
    Lane::store(v.z0, pair.z0);
    Lane::store(v.z1, pair.z1);
    return v;
}

Values<double> normals(Lane::u32 w0, Lane::u32 v0, Lane::u32 w1, Lane::u32 v1) {
    Values<double> v;
    const auto first = normal_pair<Lane, 0>(w0, v0, w1, v1);
    Lane::store(v.z0, first.z0);
    Lane::store(v.z1, first.z1);
    if constexpr (Lane::halves == 2) {
        const auto second = normal_pair<Lane, 1>(w0, v0, w1, v1);
        Lane::store(v.z0 + W / 2, second.z0);
        Lane::store(v.z1 + W / 2, second.z1);
    }
    return v;
}

// ------------------------------------------------------------------------------------------------ float32

// A word whose radius is 1 to the last bit: U is e^(-1/2).
uint32_t unit_word() {
    const auto middle = static_cast<uint32_t>(std::exp(-0.5) * 0x1p32);
    for (uint32_t w = middle - 4096; w < middle + 4096; ++w)
        if (normals(Lane::splat(w), Lane::splat(0u)).z0[0] == 1) return w;
    std::puts("no word has the radius 1");
    std::exit(1);
}

struct Angles {
    Most cos_error, sin_error, cos_most, cos_least, sin_most, sin_least;

    void see(const Angles& o) {
        cos_error.see(o.cos_error), sin_error.see(o.sin_error);
        cos_most.see(o.cos_most), cos_least.see(o.cos_least);
        sin_most.see(o.sin_most), sin_least.see(o.sin_least);
    }
};

Angles measure_angles(int threads) {
    const Lane::u32 unit = Lane::splat(unit_word());
    return over<Angles>(threads, kWords, [&](Angles& a, uint64_t first, uint64_t last) {
        for (uint64_t w = first; w < last; w += W) {
            const auto v = normals(unit, from(static_cast<uint32_t>(w)));
            for (int i = 0; i < W; ++i) {
                const double turn = (double(w + i) + 0.5) * 0x1p-32, angle = double(2 * kPi) * turn;
                const double c = v.z0[i], s = v.z1[i];
                a.cos_error.see(std::fabs(c - std::cos(angle)), w + i);
                a.sin_error.see(std::fabs(s - std::sin(angle)), w + i);
                a.cos_most.see(std::fabs(c), w + i), a.cos_least.see(-std::fabs(c), w + i);
                a.sin_most.see(std::fabs(s), w + i), a.sin_least.see(-std::fabs(s), w + i);
            }
        }
    });
}

struct Radii {
    Most ulps, most, least, rise, float64, float64_last;
    Count rises;

    void see(const Radii& o) {
        ulps.see(o.ulps), most.see(o.most), least.see(o.least);
        rise.see(o.rise), rises.see(o.rises);
        float64.see(o.float64), float64_last.see(o.float64_last);
    }
};

// The float64 field has U and V anywhere in the cells [w, w + 1] / 2^32. So |r64 - r32| is greatest at an end of the
// cell of U, |c64 - c32| <= cell, and z32 is rounded by half an ulp: `float64` bounds |z64 - z32| over all words and
// lower words. In the last cell, apart from the others, r64 goes down to 2^-32 while r32 is 2^-16.
Radii measure_radii(int threads, double cell) {
    const auto exact = [](double u) { return std::sqrt(-2 * std::log(u)); };
    return over<Radii>(threads, kWords, [&](Radii& r, uint64_t first, uint64_t last) {
        float before = first ? normals(Lane::splat(static_cast<uint32_t>(first - 1)), Lane::splat(0u)).z0[0]
                             : std::numeric_limits<float>::infinity();
        double edge = exact(double(first) * 0x1p-32);
        for (uint64_t w = first; w < last; w += W) {
            const auto v = normals(from(static_cast<uint32_t>(w)), Lane::splat(0u));
            for (int i = 0; i < W; ++i) {
                const float x = v.z0[i];
                r.ulps.see(std::fabs(x - exact((double(w + i) + 0.5) * 0x1p-32)) / ulp(x), w + i);
                r.most.see(x, w + i), r.least.see(-x, w + i);
                r.rises.see(x > before, w + i), r.rise.see((double(x) - before) / ulp(x), w + i);
                before = x;
                const double next = exact(double(w + i + 1) * 0x1p-32);
                const double apart = std::fmax(std::fabs(x - edge), std::fabs(x - next));
                const double bound = apart + x * cell + ulp(x) / 2;
                if (x < 5) (w + i + 1 < kWords ? r.float64 : r.float64_last).see(bound, w + i);
                edge = next;
            }
        }
    });
}

// Philox as the source of random words: block after block, words 0 to 3.
struct Random {
    const RoundKeys keys{2026};
    const Common common{keys, 0, 0, 0};
    Lane::u32 w[4];

    void draw(uint64_t block) {
        const auto product = Lane::product(Lane::word_from(from(static_cast<uint32_t>(block))), kPhiloxM0);
        const auto c = philox_blocks<Lane>(product, common, keys);
        for (int i = 0; i < 4; ++i) w[i] = c.w[i];
    }
};

Count check_products(int threads, uint64_t pairs) {
    const Lane::u32 unit = Lane::splat(unit_word()), zero = Lane::splat(0u);
    return over<Count>(threads, pairs, [&](Count& wrong, uint64_t first, uint64_t last) {
        Random random;
        for (uint64_t at = first; at < last; at += W) {
            random.draw(at);
            const auto z = normals(random.w[0], random.w[1]);
            const auto radius = normals(random.w[0], zero), angle = normals(unit, random.w[1]);
            for (int i = 0; i < W; ++i)
                wrong.see(z.z0[i] != radius.z0[i] * angle.z0[i] || z.z1[i] != radius.z0[i] * angle.z1[i], at + i);
        }
    });
}

// ------------------------------------------------------------------------------------------------ float64

struct Doubles {
    Most ulps, cos_error, sin_error, most, least, apart, apart_last;
    Count uniforms;

    void see(const Doubles& o) {
        ulps.see(o.ulps), cos_error.see(o.cos_error), sin_error.see(o.sin_error);
        most.see(o.most), least.see(o.least), uniforms.see(o.uniforms);
        apart.see(o.apart), apart_last.see(o.apart_last);
    }
};

// n + 1/2 has 65 bits, one more than long double: near U = 1, where it counts, the complement is exact.
long double exact_radius(uint64_t n) {
    const long double minus_log = n >> 63 ? -std::log1p(-(~n + 0.5L) * 0x1p-64L) : -std::log((n + 0.5L) * 0x1p-64L);
    return std::sqrt(2 * minus_log);
}

// cos and sin of the angle words n. Long double is slow: it has the word only where double, which is off by less than
// an ulp, and half an ulp of the angle, does not rule out that an error is larger than all before it.
struct ExactAngle {
    unsigned quarters;    // quarter turns
    long double further;  // and the angle after them, in [-pi/4, pi/4]
    double c, s;

    explicit ExactAngle(uint64_t n) {
        quarters = static_cast<unsigned>((n + (uint64_t{1} << 61)) >> 62);
        const auto rest = static_cast<int64_t>(n - (uint64_t{quarters} << 62));
        further = 2 * kPi * ((rest + 0.5L) * 0x1p-64L);
        c = std::cos(double(further)), s = std::sin(double(further));
    }

    void see_cos(Most& error, double x, uint64_t where, uint64_t where_low, unsigned turns = 0) const {
        turns = (quarters + turns) % 4;  // cos, -sin, -cos, sin
        if (turns == 1 || turns == 2) x = -x;
        if (std::fabs(x - (turns % 2 ? s : c)) + 1.5 * 0x1p-53 <= error.value) return;
        error.see(double(std::fabs(x - (turns % 2 ? std::sin(further) : std::cos(further)))), where, where_low);
    }

    void see_sin(Most& error, double x, uint64_t where, uint64_t where_low) const {
        see_cos(error, x, where, where_low, 3);  // three quarter turns on
    }
};

uint64_t unit_words() {
    const auto middle = static_cast<uint64_t>(std::exp(-0.5L) * 0x1p64L);
    const Lane::u32 zero = Lane::splat(0u);
    for (uint64_t n = middle - (1 << 16); n < middle + (1 << 16); ++n)
        if (normals(Lane::splat(uint32_t(n >> 32)), Lane::splat(uint32_t(n)), zero, zero).z0[0] == 1) return n;
    std::puts("no words have the radius 1");
    std::exit(1);
}

// One lane vector of radius words (w0, v0) and one of angle words (w1, v1).
void see_doubles(Doubles& d, uint64_t unit, Lane::u32 w0, Lane::u32 v0, Lane::u32 w1, Lane::u32 v1) {
    const Lane::u32 zero = Lane::splat(0u);
    const auto radius = normals(w0, v0, zero, zero);
    const auto angle = normals(Lane::splat(uint32_t(unit >> 32)), Lane::splat(uint32_t(unit)), w1, v1);
    const auto z = normals(w0, v0, w1, v1);
    const auto z32 = normals(w0, w1), radius32 = normals(w0, zero);
    uint32_t w[4][W];
    Lane::store(w[0], w0), Lane::store(w[1], v0), Lane::store(w[2], w1), Lane::store(w[3], v1);
    double u[W];
    Lane::store(u, uniform<Lane, 0>(w0, v0));
    if constexpr (Lane::halves == 2) Lane::store(u + W / 2, uniform<Lane, 1>(w0, v0));
    for (int i = 0; i < W; ++i) {
        const uint64_t a = uint64_t{w[0][i]} << 32 | w[1][i], b = uint64_t{w[2][i]} << 32 | w[3][i];
        d.ulps.see(double(std::fabs(radius.z0[i] - exact_radius(a))) / ulp(radius.z0[i]), w[0][i], w[1][i]);
        const ExactAngle exact(b);
        exact.see_cos(d.cos_error, angle.z0[i], w[2][i], w[3][i]);
        exact.see_sin(d.sin_error, angle.z1[i], w[2][i], w[3][i]);
        for (const double x : {std::fabs(z.z0[i]), std::fabs(z.z1[i])})
            d.most.see(x, w[0][i], w[2][i]), d.least.see(-x, w[0][i], w[2][i]);
        const double apart = std::fmax(std::fabs(z.z0[i] - z32.z0[i]), std::fabs(z.z1[i] - z32.z1[i]));
        if (radius32.z0[i] < 5) (w[0][i] != 0xFFFFFFFFu ? d.apart : d.apart_last).see(apart, w[0][i], w[2][i]);
        d.uniforms.see(u[i] != (double(a >> 12) + 0.5) * 0x1p-52 || !(u[i] > 0 && u[i] < 1), a);
    }
}

Doubles measure_random_doubles(int threads, uint64_t pairs) {
    const uint64_t unit = unit_words();
    return over<Doubles>(threads, pairs, [&](Doubles& d, uint64_t first, uint64_t last) {
        Random random;
        for (uint64_t at = first; at < last; at += W) {
            random.draw(at);
            see_doubles(d, unit, random.w[0], random.w[1], random.w[2], random.w[3]);
        }
    });
}

// Where the formula has its seams: words around 0, around the quarter turns, around U = 1/3 and 2/3 times powers of
// two, and all patterns of one, two or all but so many bits.
std::vector<uint64_t> edge_words() {
    std::vector<uint64_t> seams, all;
    for (uint64_t eighth = 0; eighth < 8; ++eighth) seams.push_back(eighth << 61);
    for (int e = 0; e < 64; ++e) seams.push_back(0x5555555555555555u >> e), seams.push_back(0xAAAAAAAAAAAAAAAAu >> e);
    for (int i = 0; i < 64; ++i)
        for (int j = 0; j <= i; ++j) seams.push_back(uint64_t{1} << i | uint64_t{1} << j);
    for (const uint64_t seam : seams)
        for (int shift : {0, 10, 11, 12, 31, 32, 33})
            for (int64_t d = -64; d < 64; ++d) all.push_back(seam + (uint64_t(d) << shift)), all.push_back(~all.back());
    while (all.size() % W) all.push_back(0);
    return all;
}

Doubles measure_edge_doubles(int threads) {
    const uint64_t unit = unit_words();
    const auto words = edge_words();
    // Each edge is the radius of one pair and the angle of another one far from it, which a large stride finds.
    return over<Doubles>(threads, words.size() / W, [&](Doubles& d, uint64_t first, uint64_t last) {
        for (uint64_t at = first * W; at < last * W; at += W) {
            uint32_t w[4][W];
            for (int i = 0; i < W; ++i) {
                const uint64_t a = words[at + i], b = words[(at + i) * 7919 % words.size()];
                w[0][i] = uint32_t(a >> 32), w[1][i] = uint32_t(a), w[2][i] = uint32_t(b >> 32), w[3][i] = uint32_t(b);
            }
            see_doubles(d, unit, Lane::load(w[0]), Lane::load(w[1]), Lane::load(w[2]), Lane::load(w[3]));
        }
    });
}

// ------------------------------------------------------------------------------------------------ uniforms, halves

Count check_uniforms(int threads) {
    return over<Count>(threads, kWords, [](Count& wrong, uint64_t first, uint64_t last) {
        float u[W];
        for (uint64_t w = first; w < last; w += W) {
            Lane::store(u, uniform<Lane>(from(static_cast<uint32_t>(w))));
            for (int i = 0; i < W; ++i)
                wrong.see(u[i] != (double((w + i) >> 9) + 0.5) * 0x1p-23 || !(u[i] > 0 && u[i] < 1), w + i);
        }
    });
}

// bfloat16 by its definition: the nearer neighbour, or the even one half-way; 2^128 counts as infinity's place.
uint16_t nearest_bfloat16(float x) {
    const auto low = static_cast<uint16_t>(float_to_bits(x) >> 16), high = static_cast<uint16_t>(low + 1);
    const auto place = [](uint16_t h) {
        const bool overflow = (h & 0x7FFF) == 0x7F80;
        return overflow ? 0x1p128 : std::fabs(double(bits_to_float(uint32_t{h} << 16)));
    };
    if (std::isinf(x)) return low;
    const double below = std::fabs(double(x)) - place(low), above = place(high) - std::fabs(double(x));
    return below < above || (below == above && low % 2 == 0) ? low : high;
}

struct Halves {
    Count from_half, to_half, from_bfloat16, to_bfloat16;

    void see(const Halves& o) {
        from_half.see(o.from_half), to_half.see(o.to_half);
        from_bfloat16.see(o.from_bfloat16), to_bfloat16.see(o.to_bfloat16);
    }
};

// binary16 against the compiler's own _Float16: the processor's instruction where it has one.
Halves check_halves(int threads) {
    const auto same = [](float a, float b) {
        return float_to_bits(a) == float_to_bits(b) || (std::isnan(a) && std::isnan(b));
    };
    const auto to_bits = [](_Float16 h) {
        uint16_t bits;
        std::memcpy(&bits, &h, 2);
        return bits;
    };
    const auto is_nan = [](uint16_t bits, uint16_t infinity) { return (bits & 0x7FFF) > infinity; };
    auto result = over<Halves>(threads, kWords, [&](Halves& h, uint64_t first, uint64_t last) {
        float x[kGroup];
        uint16_t f16[kGroup], bf16[kGroup];
        for (uint64_t bits = first; bits < last; bits += kGroup) {
            for (int v = 0; v < 4; ++v)
                Lane::store(x + v * W,
                            Lane::as_float(from(static_cast<uint32_t>(bits) + static_cast<uint32_t>(v * W))));
            store_narrow<DType::f16>(f16, x, kGroup, false);
            store_narrow<DType::bf16>(bf16, x, kGroup, false);
            for (int i = 0; i < kGroup; ++i) {
                const bool nan = std::isnan(x[i]);
                h.to_half.see(nan ? !is_nan(f16[i], 0x7C00) : f16[i] != to_bits(static_cast<_Float16>(x[i])), bits + i);
                h.to_bfloat16.see(nan ? !is_nan(bf16[i], 0x7F80) : bf16[i] != nearest_bfloat16(x[i]), bits + i);
            }
        }
    });
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto h = static_cast<uint16_t>(bits);
        _Float16 native;
        std::memcpy(&native, &h, 2);
        result.from_half.see(!same(half_to_float(h), static_cast<float>(native)), bits);
        result.from_bfloat16.see(!same(bfloat16_to_float(h), bits_to_float(bits << 16)), bits);
    }
    return result;
}

// ------------------------------------------------------------------------------------------------ categories

constexpr long double kLn2 = 0.693147180559945309417232121458176568L;

struct Exponentials {
    Most ulps;    // of e^x, |x| < 512, from its term in a chunk where x is the largest
    Count wrong;  // the term where the largest is 0: not that of e^x to 1 ulp, nor 0 below 2^-125; or other bits for T
                  // = 1

    void see(const Exponentials& o) { ulps.see(o.ulps), wrong.see(o.wrong); }
};

Exponentials measure_exponentials(int threads) {
    const Scale one = scale_of(1.0);
    return over<Exponentials>(threads, kWords, [&](Exponentials& e, uint64_t first, uint64_t last) {
        const Terms below(one, 0.0f);
        for (uint64_t bits = first; bits < last; bits += W) {
            float x[W], own[W], general[W], behind[W];
            Lane::store(x, Lane::as_float(from(static_cast<uint32_t>(bits))));
            for (int i = 0; i < W; ++i) {
                if (!(std::fabs(x[i]) < 512)) x[i] = 0;
                own[i] = Terms(one, x[i]).term<Scalar, true>(x[i]);
            }
            const auto z = below.shifted<Lane>(Lane::load(x));
            Lane::store(general, below.term<Lane>(z));
            Lane::store(behind, below.term<Lane, true>(z));
            for (int i = 0; i < W; ++i) {
                const long double n = std::nearbyint(Scalar::fma(x[i], one.rate, kRound) - kRound);
                const double exact = std::exp(static_cast<double>(x[i] - n * kLn2));
                e.ulps.see(std::fabs(own[i] - exact) / ulp(static_cast<float>(exact)), bits + i);
                if (x[i] > 0) continue;
                const double whole = std::exp(static_cast<double>(x[i]));
                const bool near = std::fabs(behind[i] - whole) <= ulp(static_cast<float>(whole));
                e.wrong.see(general[i] != behind[i] || !(near || (behind[i] == 0 && whole < 0x1.8p-125)), bits + i);
            }
        }
    });
}

struct Functions {
    Most exp, ln;  // ulps of e^x, -708 < x <= 0, and of -2 ln x, 2^-66 < x < 2^22, all double

    void see(const Functions& o) { exp.see(o.exp), ln.see(o.ln); }
};

Functions measure_functions(int threads, uint64_t n) {
    return over<Functions>(threads, n, [&](Functions& f, uint64_t first, uint64_t last) {
        for (uint64_t i = first; i < last; ++i) {
            const auto words = philox_rounds<Scalar>({{static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), 1, 0}},
                                                     RoundKeys(7), 0);
            const uint32_t* const w = words.w;
            const double u = w[0] * 0x1p-32 + w[1] * 0x1p-64;
            const double x = -708 * u * (w[2] & 1 ? 1 : 0x1p-9);
            const auto exact = static_cast<double>(std::exp(static_cast<long double>(x)));
            f.exp.see(std::fabs(exp_of(x) - exact) / ulp(exact), i);
            const double y = std::ldexp(1 + (w[2] & 2 ? u : u * 0x1p-30), static_cast<int>(w[3] % 88) - 66);
            const long double ln = -2 * std::log(static_cast<long double>(y));
            if (ln != 0) f.ln.see(std::fabs(minus_two_ln<Scalar>(y) - ln) / ulp(static_cast<double>(ln)), i);
        }
    });
}

}  // namespace

// exhaustive THREADS LOG2_PAIRS EVERY: so many random pairs where all of them cannot be tried; all words, or one block
// in EVERY of them.
int main(int, char** argv) {
    const int threads = std::atoi(argv[1]);
    const uint64_t pairs = uint64_t{1} << std::atoi(argv[2]);
    every = std::strtoull(argv[3], nullptr, 10);

    const Angles a = measure_angles(threads);
    print("cos_error", a.cos_error);
    print("sin_error", a.sin_error);
    print("cos_most", a.cos_most);
    print("cos_least", a.cos_least, -1);
    print("sin_most", a.sin_most);
    print("sin_least", a.sin_least, -1);
    std::fflush(stdout);

    const double cell = std::fmax(a.cos_error.value, a.sin_error.value) + double(2 * kPi) * 0x1p-33;
    const Radii r = measure_radii(threads, cell);
    print("radius_ulps", r.ulps);
    print("radius_most", r.most);
    print("radius_least", r.least, -1);
    print("radius_rises", r.rises);
    print("radius_rise_ulps", r.rise);
    print("z64_minus_z32_bound", r.float64);
    print("z64_minus_z32_last", r.float64_last);
    print("product_wrong", check_products(threads, pairs));
    std::fflush(stdout);

    print("uniform_wrong", check_uniforms(threads));
    const Halves h = check_halves(threads);
    print("half_to_float_wrong", h.from_half);
    print("float_to_half_wrong", h.to_half);
    print("bfloat16_to_float_wrong", h.from_bfloat16);
    print("float_to_bfloat16_wrong", h.to_bfloat16);
    std::fflush(stdout);

    const Exponentials e = measure_exponentials(threads);
    print("exp_ulps", e.ulps);
    print("exp_wrong", e.wrong);
    const Functions f = measure_functions(threads, pairs >> 6);
    print("exp64_ulps", f.exp);
    print("ln64_ulps", f.ln);
    std::fflush(stdout);

    Doubles d = measure_edge_doubles(threads);
    d.see(measure_random_doubles(threads, pairs));
    print("radius64_ulps", d.ulps);
    print("cos64_error", d.cos_error);
    print("sin64_error", d.sin_error);
    print("z64_most", d.most);
    print("z64_least", d.least, -1);
    print("z64_minus_z32_seen", d.apart);
    print("z64_minus_z32_seen_last", d.apart_last);
    print("uniform64_wrong", d.uniforms);
}
