// SPDX-License-Identifier: Apache-2.0
#include "race.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/float_mode.h"
#include "../cpu/row_sums.h"

namespace nf {
namespace {

constexpr int64_t kTokensAtOnce = 1 << 15;  // for one thread: some 20 microseconds
int64_t rows_at_once(int64_t n) { return std::max<int64_t>(1, kTokensAtOnce / std::max<int64_t>(n, 1)); }

// Memory for one thread at a time: the logits of a row as floats, filled up with -inf, and room to cut them.
struct Workspace {
    std::vector<float> row, some;
    std::vector<double> terms;
    std::atomic<bool> taken{false};

    void resize(int64_t n) {
        const auto whole = static_cast<size_t>((n + kLane - 1) / kLane * kLane);
        row.resize(whole), some.resize(whole), terms.resize(whole);
        std::fill(row.begin() + n, row.end(), -INFINITY);
    }

  private:
    static constexpr int64_t kLane = 16;
};

class Rows {
  public:
    explicit Rows(const Race& call) : c(call), kernel_(kernels().race) {
        const int64_t settings = c.each ? c.rows / c.of_sample : 1;
        bool filters = false;
        for (int64_t s = 0; s < settings; ++s) filters |= filtered(s);
        if (filters && c.x) spaces_ = std::vector<Workspace>(static_cast<size_t>(num_threads()));
    }

    void range(int64_t begin, int64_t end) {
        const FloatMode mode;
        size_t place = 0;
        if (!spaces_.empty())  // no more threads than these work at once
            while (spaces_[place].taken.exchange(true)) place = (place + 1) % spaces_.size();
        RaceRow r{};
        if (!c.each) r.scale = scale_at(c.temperature[0]);
        for (int64_t row = begin; row < end; ++row)
            if (!c.where || c.where[row]) one(row, r, spaces_.empty() ? nullptr : &spaces_[place]);
        if (!spaces_.empty()) spaces_[place].taken = false;
    }

  private:
    const Race& c;
    RaceKernel* const kernel_;
    std::vector<Workspace> spaces_;

    bool filtered(int64_t setting) const {
        return c.temperature[setting] > 0 && (c.top_k[setting] > 0 || c.top_p[setting] < 1);
    }

    static Scale scale_at(double temperature) { return scale_of(temperature > 0 ? temperature : 1.0); }

    void one(int64_t row, RaceRow& r, Workspace* space) {
        const int64_t sample = row / c.of_sample, setting = c.each ? sample : 0;
        const double temperature = c.temperature[setting];
        const bool draws = temperature > 0, unit = temperature == 1 || !draws;
        float largest[kMostChunks];
        double sums[3][kMostChunks];
        r.chunk_largest = c.chunk_largest ? c.chunk_largest + row * c.chunks : largest;
        r.plain = c.plain ? c.plain + row * c.chunks : sums[0];
        r.tempered = c.tempered ? c.tempered + row * c.chunks : sums[1];
        r.spread = sums[2];
        if (c.each) r.scale = scale_at(temperature);
        if (!c.x) return of_chunks(row, r);
        describe(r, row, sample);
        const RaceRow all = r;
        bool plain = c.log_prob_raw || c.plain;
        const bool tempered = c.tempered || c.entropy || c.margin || (c.log_prob && draws);
        std::optional<RowSums> raw;
        if (filtered(setting)) {
            const int64_t k = c.top_k[setting];
            const double p = c.top_p[setting];
            space->resize(c.n);
            r.copy = space->row.data();
            r.wanted = (plain ? kPlain : 0u) | (k == 0 ? kTempered : 0u);
            kernel_(r);
            r.copy = nullptr;
            if (refused(row, r)) return;
            if (r.largest < INFINITY) {
                if (plain) raw = fast_sums(r);
                leave(r, k, p, *space);
            }
            plain = plain && !raw;
        }
        const bool once = plain && tempered && unit;
        r.wanted = (draws ? kDraw : 0u) | (c.score ? kScore : 0u) | (plain && !once ? kPlain : 0u) |
                   (tempered ? kTempered : 0u) | (c.entropy ? kSpread : 0u) | (c.margin ? kSecond : 0u);
        kernel_(r);
        if (refused(row, r)) return;
        if (once) std::copy_n(r.tempered, c.chunks, r.plain);
        if (plain && r.token >= 0 && r.largest < INFINITY) raw = fast_sums(r);
        if (c.score) c.score[row] = r.score, c.winner[row] = r.winner;
        if (c.token)
            c.token_is_32 ? void(static_cast<int32_t*>(c.token)[row] = static_cast<int32_t>(r.token))
                          : void(static_cast<int64_t*>(c.token)[row] = r.token);
        if (r.token < 0) return;
        if (c.log_prob_raw) c.log_prob_raw[row] = raw ? raw->log_prob(r.winner) : 0.0f;
        if (c.log_prob || c.entropy || c.margin) of_softmax(row, r, draws, tempered);
        if (c.rank) c.rank[row] = rank(all, r);
    }

    void of_softmax(int64_t row, const RaceRow& r, bool draws, bool tempered) const {
        if (r.largest == INFINITY || !tempered) {
            if (c.log_prob) c.log_prob[row] = 0;
            if (c.entropy) c.entropy[row] = 0;
            if (c.margin) c.margin[row] = 1;
            return;
        }
        const double beta = r.scale.beta;
        const RowSums sums(c.chunks, r.chunk_largest, r.largest, beta, r.tempered, c.entropy ? r.spread : nullptr);
        if (c.log_prob) c.log_prob[row] = draws ? sums.log_prob(r.winner) : 0.0f;
        if (c.entropy) c.entropy[row] = static_cast<float>(std::fma(beta, sums.spread / sums.total, sums.ln));
        if (!c.margin) return;
        const double behind = static_cast<double>(r.largest) - static_cast<double>(r.second);
        c.margin[row] = static_cast<float>((1 - exp_of(-(behind * beta))) / sums.total);
    }

    // Of a whole vocabulary whose parts were read before.
    void of_chunks(int64_t row, RaceRow& r) const {
        r.largest = *std::max_element(r.chunk_largest, r.chunk_largest + c.chunks);
        r.winner = c.winner[row];
        const bool draws = c.temperature[c.each ? row / c.of_sample : 0] > 0;
        of_softmax(row, r, draws, c.log_prob && draws);
        if (c.log_prob_raw) c.log_prob_raw[row] = r.largest < INFINITY ? fast_sums(r).log_prob(r.winner) : 0.0f;
    }

    RowSums fast_sums(const RaceRow& r) const { return {c.chunks, r.chunk_largest, r.largest, 1.0, r.plain}; }

    void describe(RaceRow& r, int64_t row, int64_t sample) const {
        r.type = c.type;
        r.x = static_cast<const char*>(c.x) + row * c.n * bytes_of(c.type);
        r.n = c.n;
        r.first = c.first, r.hidden = c.hidden;
        const Field& f = c.fields[c.field_per_sample ? sample : 0];
        const int64_t entry = c.field_per_sample ? 0 : sample;
        const uint64_t id = f.samples ? f.samples[entry] : f.sample + static_cast<uint64_t>(entry);
        r.seed = race_seed<Scalar>(f.seed, c.position[row]);
        r.step = f.step;
        r.sample = static_cast<uint32_t>(id);
        r.tag = f.stream << 24 | static_cast<uint32_t>(id >> 32);
        r.block = race_block(c.position[row]);
    }

    // Only a part of a vocabulary may have no token that can win. (Another thread may take all of them away.)
    bool refused(int64_t row, const RaceRow& r) const {
        c.bad[row] = r.bad ? 1 : r.token < 0 && !c.score ? 2 : 0;
        return c.bad[row];
    }

    // Leaves of a row the k largest (0: all), then of these the fewest that have p of the probability.
    void leave(RaceRow& r, int64_t k, double p, Workspace& space) const {
        r.x = space.row.data(), r.type = DType::f32;
        if (k > 0) cut(r, k, 0, space);
        if (!(p < 1)) return;
        if (k > 0) {
            r.wanted = kTempered;
            kernel_(r);
        }
        cut(r, 0, p * RowSums(c.chunks, r.chunk_largest, r.largest, r.scale.beta, r.tempered).total, space);
    }

    void cut(RaceRow& r, int64_t k, double wanted, Workspace& space) const {
        std::vector<float>& row = space.row;
        Cut cut{};
        cut.x = row.data(), cut.n = static_cast<int64_t>(row.size());
        cut.largest = r.largest, cut.beta = r.scale.beta;
        cut.k = k, cut.wanted = wanted;
        cut.some = space.some.data(), cut.terms = space.terms.data();
        r.cut = &cut, r.wanted = kBound;
        kernel_(r);
        if (cut.doubtful) add_in_order(cut, space.some);
        auto after = row.begin();  // the last of the ties that stay
        for (; cut.ties > 0 && after < row.end(); ++after) cut.ties -= *after == cut.least;
        const auto keep = [](auto from, auto to, const auto& stays) {
            std::transform(from, to, from, [&](float x) { return stays(x) ? x : -INFINITY; });
        };
        keep(row.begin(), after, [least = cut.least](float x) { return x >= least; });
        keep(after, row.end(), [least = cut.least](float x) { return x > least; });
    }

    // Finds the cut of a sum in the order of the contract.
    static void add_in_order(Cut& cut, std::vector<float>& sorted) {
        const auto end = std::copy_if(cut.x, cut.x + cut.n, sorted.begin(), [](float x) { return x > -INFINITY; });
        std::sort(sorted.begin(), end, std::greater<>());
        double reached = 0;
        cut.least = -INFINITY;
        for (auto x = sorted.begin(); x < end && reached < cut.wanted; ++x) {
            const double behind = static_cast<double>(cut.largest) - static_cast<double>(*x);
            reached += exp_of(-(behind * cut.beta));
            cut.ties = *x == cut.least ? cut.ties + 1 : 1;
            cut.least = *x;
        }
    }

    static int32_t rank(const RaceRow& all, const RaceRow& r) {
        int32_t before = 0;
        const auto place = static_cast<int64_t>(r.token - all.first);
        for (int64_t i = 0; i < all.n; ++i) {
            const float x = i == all.hidden ? -INFINITY : logit(all, i);
            before += (x > r.winner) | ((x == r.winner) & (i < place));
        }
        return before;
    }
};

}  // namespace

bool run_race(const Race& race, const GoOn& go_on) {
    Rows rows(race);
    return parallel_for(
        race.rows, rows_at_once(race.x ? race.n : race.chunks),
        [&](int64_t begin, int64_t end) { rows.range(begin, end); }, go_on);
}

bool run_cross_entropy(const CrossEntropy& call, const GoOn& go_on) {
    const int64_t bytes = call.n * bytes_of(call.type);
    const auto range = [&](int64_t begin, int64_t end) {
        const FloatMode mode;
        RaceRow r{};
        r.wanted = kLoss, r.loss = &call;
        r.type = call.type, r.n = call.n, r.scale = scale_of(1.0);
        for (r.first = begin; r.first < end; ++r.first)
            if (call.masked[r.first]) {
                r.x = static_cast<const char*>(call.x) + r.first * bytes;
                kernels().race(r);
            } else {
                call.loss[r.first] = 0;
                if (call.gradient)
                    std::memset(static_cast<char*>(call.gradient) + r.first * bytes, 0, static_cast<size_t>(bytes));
            }
    };
    return parallel_for(call.rows, rows_at_once(call.n), range, go_on);
}

}  // namespace nf
