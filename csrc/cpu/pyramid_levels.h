// SPDX-License-Identifier: Apache-2.0
// Rows of pyramid noise. A tile of a row takes each level's two rows, between which it lies, to one; and that one to
// its own columns.
#pragma once
#include "../core/pyramid.h"
#include "float_mode.h"
#include "tile.h"

namespace nf {
namespace {

constexpr int kEnlarged = 512;  // elements of a tile
constexpr int kTogether = 8;    // levels that are added in one pass over it

// The columns that a tile lies among, of one level. What lies behind them is any numbers: loaded, then not used, or
// multiplied by 0, beside an only column.
template <class Real>
struct Columns {
    Real coarse[kEnlarged + 32];
    const int32_t* left;
    const Real* right;
    Real weight;
};

// What lies between two rows. They share no memory with `to`.
template <class Real>
void between(Real* to, const Real* low, const Real* high, Real part, int n) {
    for (int i = 0; i < n; ++i) to[i] = (high[i] - low[i]) * part + low[i];
}

void between(float* to, const float* low, const float* high, float part, int n) {
    constexpr int w = Lane::width;
    const auto take = [&](int i) {
        const Lane::f32 from = Lane::load(low + i), way = Lane::sub(Lane::load(high + i), from);
        Lane::store(to + i, Lane::add(Lane::mul(way, Lane::splat(part)), from));
    };
    if (n < w) return between<float>(to, low, high, part, n);
    for (int i = 0; i + w <= n; i += w) take(i);
    take(n - w);
}

// out = (out + weight * enlarged + ..) * scale, from element `i` of the tile.
template <class Real>
void add_enlarged(Real* out, const Columns<Real>* levels, int n_levels, const Real* scale, int n, int i = 0) {
    for (; i < n; ++i) {
        Real sum = out[i];
        for (const Columns<Real>* level = levels; level < levels + n_levels; ++level) {
            const Real* const at = level->coarse + (level->left[i] - *level->left);
            sum = sum + ((at[1] - at[0]) * level->right[i] + at[0]) * level->weight;
        }
        out[i] = scale ? sum * scale[i] : sum;
    }
}

void add_enlarged(float* out, const Columns<float>* levels, int n_levels, const float* scale, int n) {
    int i = 0;
    for (; i + Lane::width <= n; i += Lane::width) {
        Lane::f32 sum = Lane::load(out + i);
        for (const Columns<float>* level = levels; level < levels + n_levels; ++level) {
            const float* const first = level->coarse + (level->left[i] - *level->left);
            const auto* const columns = reinterpret_cast<const uint32_t*>(level->left + i);
            Lane::f32 low, high;
            Lane::pick(low, high, first, columns);
            const Lane::f32 wide = Lane::add(Lane::mul(Lane::sub(high, low), Lane::load(level->right + i)), low);
            sum = Lane::add(sum, Lane::mul(wide, Lane::splat(level->weight)));
        }
        Lane::store(out + i, scale ? Lane::mul(sum, Lane::load(scale + i)) : sum);
    }
    add_enlarged<float>(out, levels, n_levels, scale, n, i);
}

template <class Real>
void enlarged_rows(const Pyramid& p, int64_t begin, int64_t end) {
    const FloatMode mode;
    Columns<Real> columns[kTogether];
    std::memset(columns, 0, sizeof columns);
    for (int64_t row = begin; row < end; ++row) {
        const int64_t plane = row / p.height, y = row % p.height;
        for (int64_t x = 0; x < p.width; x += kEnlarged) {
            const auto n = static_cast<int>(least(kEnlarged, p.width - x));
            for (int64_t done = 0; done == 0 || done < p.n_levels; done += kTogether) {
                const auto some = static_cast<int>(least(kTogether, p.n_levels - done));
                for (int i = 0; i < some; ++i) {
                    const Level& level = p.levels[done + i];
                    Columns<Real>& among = columns[i];
                    among.left = level.left + x;
                    among.right = static_cast<const Real*>(level.right) + x;
                    among.weight = static_cast<Real>(level.weight);
                    const int32_t last = among.left[n - 1] + (level.width > 1);
                    const Real* const low = static_cast<const Real*>(level.planes) + *among.left +
                                            (plane * level.height + level.above[y]) * level.width;
                    const Real* const high = low + (level.height > 1 ? level.width : 0);
                    const Real part = static_cast<const Real*>(level.down)[y];
                    between(among.coarse, low, high, part, last - *among.left + 1);
                }
                const bool is_last = done + kTogether >= p.n_levels;
                const Real* const scale = is_last ? static_cast<const Real*>(p.scale) + y * p.width + x : nullptr;
                add_enlarged(static_cast<Real*>(p.out) + row * p.width + x, columns, some, scale, n);
            }
        }
    }
}

void enlarged(const Pyramid& p, int64_t begin, int64_t end) {
    p.type == DType::f64 ? enlarged_rows<double>(p, begin, end) : enlarged_rows<float>(p, begin, end);
}

}  // namespace
}  // namespace nf
