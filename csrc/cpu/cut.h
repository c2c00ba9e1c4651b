// SPDX-License-Identifier: Apache-2.0
// Where top_k and top_p cut a row of logits. The least logit that stays is found by halving the floats between the
// largest and the smallest: as integers they are 2^32, so 32 halvings do for any values. A halving that parts no logits
// is followed by one that does. Once few of the row are left between the bounds, those alone are looked at; and a
// handful is sorted.
//
// Sums of terms depend on their order, and the contract's is that of the sorted row. Here another order takes its
// place, and where its rounding could matter to the cut, `doubtful` says so.
#pragma once
#include <bit>
#include <cmath>

#include "../core/narrow.h"
#include "../core/race.h"
#include "tile.h"

namespace nf {
namespace {

// Floats in their order, as integers.
inline uint32_t place_of(float x) {
    const uint32_t bits = float_to_bits(x);
    return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 1u << 31);
}
inline float at_place(uint32_t place) { return bits_to_float(place >> 31 ? place ^ 1u << 31 : ~place); }

class CutFinder {
  public:
    explicit CutFinder(Cut& cut) : c(cut), high_(place_of(cut.largest + 0.0f) + 1), x_(cut.x), n_(cut.n) {}

    void find() {
        c.least = -INFINITY, c.ties = 0, c.doubtful = false;
        const bool narrowed = narrow_by_blocks();
        if (c.ties > 0) return;
        if (!narrowed) {
            found_.number = count_from(at_place(low_));
            if (c.k > 0 && found_.number <= c.k) return;
            narrow(0);
        }
        if (c.k == 0) {
            write_terms(x_, n_, c.largest, c.beta, c.terms);
            found_.weight = weight_from(at_place(low_));
            if (found_.weight < c.wanted - doubt()) return;  // all stay
        }
        try_at(high_ - 1);  // alone the largest often suffice
        while (high_ - low_ > 1 && found_.number - above_.number > kFew) try_at(low_ + (high_ - low_) / 2);
        walk();
    }

  private:
    static constexpr int kFew = 32, kLanes = 16;
    struct Sum {
        int64_t number;
        double weight;
    };
    Cut& c;
    // The cut lies at a logit between the places `low` and `high`, that one left out. The logits from `low` on, and
    // those from `high` on, which do not suffice; `beyond`: of them those that x leaves out.
    uint32_t low_ = place_of(-0x1.fffffep127f), high_;
    Sum found_{}, above_{}, beyond_{};
    const float* x_;
    int64_t n_;

    static double term(float x, float largest, double beta) {
        return exp_of(-((static_cast<double>(largest) - static_cast<double>(x)) * beta));
    }
    // Loops of arguments, not members, without branches, take vectors; GCC loses them where they are inlined.
    [[gnu::noinline]] static void write_terms(const float* x, int64_t n, float largest, double beta, double* to) {
        for (int64_t i = 0; i < n; ++i) to[i] = term(x[i], largest, beta);
    }
    [[gnu::noinline]] static double sum_from(float least, const float* x, const double* terms, int64_t n) {
        double sums[kLanes] = {};
        for (int64_t i = 0; i < n; i += kLanes)
            for (int j = 0; j < kLanes; ++j) {
                const double one = terms[i + j];
                sums[j] += x[i + j] >= least ? one : 0.0;
            }
        return halve<kLanes>(sums);
    }
    // The terms' sums have a relative error of 2^-53 for each of them, in either order.
    double doubt() const { return c.wanted * static_cast<double>(found_.number) * 0x1p-50; }

    int64_t count_from(float least) const {
        int32_t count = 0;
        for (int64_t i = 0; i < n_; ++i) count += x_[i] >= least;
        return beyond_.number + count;
    }
    double weight_from(float least) const { return beyond_.weight + sum_from(least, x_, c.terms, n_); }

    void try_at(uint32_t middle) {
        const float least = at_place(middle);
        const int64_t before = found_.number - above_.number;
        const Sum sum{count_from(least), c.k > 0 ? 0 : weight_from(least)};
        if (c.k > 0 ? sum.number >= c.k : sum.weight >= c.wanted)
            low_ = middle, found_ = sum;
        else
            high_ = middle, above_ = sum;
        if (found_.number - above_.number == before) tighten(x_, n_, low_, high_);
        narrow(kFew);
    }

    // Moves the places to the logits between them, so that the next try parts these.
    [[gnu::noinline]] static void tighten(const float* x, int64_t n, uint32_t& low, uint32_t& high) {
        const float from = at_place(low), to = at_place(high);
        uint32_t least = ~0u, most = 0;
        for (int64_t i = 0; i < n; ++i) {
            const uint32_t between = 0u - static_cast<uint32_t>((x[i] >= from) & (x[i] < to));
            const uint32_t place = place_of(x[i] + 0.0f);  // 0 for -0, which equals it
            const uint32_t low_one = place | ~between, high_one = place & between;
            least = low_one < least ? low_one : least;
            most = high_one > most ? high_one : most;
        }
        low = least, high = most + 1;
    }

    // Which of kLanes logits have one of `count` places from the first on. -0 counts as 0, which it equals.
    [[gnu::flatten]] static uint32_t between(const float* x, uint32_t first, uint32_t count) {
        uint32_t beyond = 0;
        for (int v = 0; v < kLanes; v += Lane::width) {
            const auto bits = Lane::as_bits(Lane::add(Lane::load(x + v), Lane::splat(0.0f)));
            const auto negative = Lane::sub(0u, Lane::template shift_right<31>(bits));
            const auto place = Lane::bit_xor(bits, Lane::bit_or(negative, 1u << 31));
            beyond |= Lane::lanes_from(Lane::sub(place, first), Lane::splat(count)) << v;
        }
        return ~beyond & ((1u << kLanes) - 1);
    }

    // Leaves out of x what lies below the k-th largest of the blocks' largest, as k logits are at least that; or finds
    // that this is the largest of all. False: it leaves nothing out.
    bool narrow_by_blocks() {
        if (!c.of_block || c.k < 1) return false;
        Cut largest = c;
        largest.x = c.of_block, largest.of_block = nullptr;
        const int64_t blocks = (c.n + kTokenBlock - 1) / kTokenBlock;
        largest.n = (blocks + kLanes - 1) / kLanes * kLanes;
        CutFinder(largest).find();
        if (largest.least == c.largest) c.least = c.largest, c.ties = c.k;
        if (largest.least == -INFINITY || c.ties) return false;
        low_ = place_of(largest.least);
        found_.number = gather(false);
        return true;
    }

    // Leaves out of x what does not lie between the places, if that is most of it.
    void narrow(int64_t most) {
        if (n_ < 4 * (found_.number - above_.number + most)) return;
        gather(c.k == 0 && most);
    }
    int64_t gather(bool terms) {
        const float least = at_place(low_);
        const uint32_t first = place_of(least + 0.0f), count = place_of(at_place(high_) + 0.0f) - first;
        const float* const of_block = x_ == c.x ? c.of_block : nullptr;
        int64_t n = 0;
        for (int64_t i = 0; i < n_; i += kLanes) {
            if (of_block && of_block[i / kTokenBlock] < least) {
                i += kTokenBlock - kLanes;
                continue;
            }
            for (uint32_t left = between(x_ + i, first, count); left; left &= left - 1, ++n) {
                const int64_t at = i + std::countr_zero(left);
                c.some[n] = x_[at];
                if (terms) c.terms[n] = c.terms[at];
            }
        }
        x_ = c.some, beyond_ = above_;
        for (n_ = n; n_ % kLanes; ++n_) c.some[n_] = -INFINITY, c.terms[n_] = 0;
        return n;
    }

    // Goes on from `above` to the cut, one logit at a time: through a handful of them, or equal ones.
    void walk() {
        const float low = at_place(low_), high = at_place(high_);
        const bool equal = high_ - low_ == 1;
        float few[kFew];
        int n = 0;
        for (int64_t i = 0; i < n_ && !equal && n < kFew; ++i) {
            const float x = x_[i];
            if (!(x >= low && x < high)) continue;
            int at = n++;
            for (; at > 0 && few[at - 1] < x; --at) few[at] = few[at - 1];
            few[at] = x;
        }
        const int64_t left = equal ? found_.number - above_.number : n;
        double weight = above_.weight, before = weight, one = 0;
        for (int64_t i = 0; i < left; ++i) {
            const float x = equal ? low : few[i];
            if (i == 0 || x != c.least) c.least = x, c.ties = 0, one = c.k > 0 ? 0 : term(x, c.largest, c.beta);
            ++c.ties, before = weight, weight += one;
            if (c.k > 0 ? above_.number + i + 1 == c.k : weight >= c.wanted) break;
        }
        // Sums of ones are exact.
        c.doubtful = c.k == 0 && one != 1 && !(weight - c.wanted > doubt() && c.wanted - before > doubt());
    }
};

}  // namespace
}  // namespace nf
