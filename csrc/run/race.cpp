// SPDX-License-Identifier: Apache-2.0
#include "race.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
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
    static constexpr int kLane = 16;
    int64_t blocks = 0;
    std::unique_ptr<float[]> row, some, of_block;
    std::unique_ptr<double[]> terms;
    std::atomic<bool> taken{false};

    void make(int64_t n) {
        blocks = (n + kTokenBlock - 1) / kTokenBlock;
        const auto whole = static_cast<size_t>(blocks * kTokenBlock);
        if (!row) {  // nothing is written to what no row needs
            row.reset(new float[whole]), some.reset(new float[whole]);
            terms.reset(new double[whole]), of_block.reset(new float[static_cast<size_t>(blocks) + kLane]);
        }
        std::fill(row.get() + n, row.get() + whole, -INFINITY);
        std::fill_n(of_block.get() + blocks, kLane, -INFINITY);
    }
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
        float largest[kMostChunks];
        double sums[3][kMostChunks];
        r.chunk_largest = largest, r.plain = sums[0], r.tempered = sums[1], r.spread = sums[2];
        r.n = c.n, r.first = c.first, r.hidden = c.hidden;
        Asked asked{};
        for (int64_t row = begin; row < end;) {
            const int64_t sample = row / c.of_sample, next = std::min(end, (sample + 1) * c.of_sample);
            if (c.each || row == begin) asked = ask(c.each ? sample : 0, r.scale);
            const Field& field = describe(r, sample);
            for (; row < next; ++row)
                if (!c.where || c.where[row]) one(row, r, field, asked, spaces_.empty() ? nullptr : &spaces_[place]);
        }
        if (!spaces_.empty()) spaces_[place].taken = false;
    }

  private:
    // What to find out about the rows of a setting: in the last pass, and whether it is more than their tokens.
    struct Asked {
        int64_t setting;
        uint32_t wanted;
        bool draws, filters, plain, tempered, once, more;
    };

    const Race& c;
    RaceKernel* const kernel_;
    std::vector<Workspace> spaces_;

    bool filtered(int64_t setting) const {
        return c.temperature[setting] > 0 && (c.top_k[setting] > 0 || c.top_p[setting] < 1);
    }

    Asked ask(int64_t setting, Scale& scale) const {
        const double temperature = c.temperature[setting];
        const bool draws = temperature > 0, plain = c.log_prob_raw || c.plain;
        const bool tempered = c.tempered || c.entropy || c.margin || (c.log_prob && draws);
        const bool once = plain && tempered && (temperature == 1 || !draws);
        const uint32_t wanted = (draws ? kDraw : 0u) | (c.score ? kScore : 0u) | (plain && !once ? kPlain : 0u) |
                                (tempered ? kTempered : 0u) | (c.entropy ? kSpread : 0u) | (c.margin ? kSecond : 0u);
        scale = scale_of(draws ? temperature : 1.0);
        const bool more = plain || tempered || c.log_prob || c.score || c.rank;
        return {setting, wanted, draws, filtered(setting), plain, tempered, once, more};
    }

    void one(int64_t row, RaceRow& r, const Field& field, const Asked& asked, Workspace* space) {
        if (c.chunk_largest) r.chunk_largest = c.chunk_largest + row * c.chunks;
        if (c.plain) r.plain = c.plain + row * c.chunks;
        if (c.tempered) r.tempered = c.tempered + row * c.chunks;
        if (!c.x) return of_chunks(row, r);
        r.type = c.type, r.x = logits_of(row);
        r.seed = race_seed<Scalar>(field.seed, c.position[row]);
        r.block = race_block(c.position[row]);
        std::optional<RowSums> raw;
        if (asked.filters) {
            const int64_t k = c.top_k[asked.setting];
            space->make(c.n);
            r.copy = space->row.get(), r.of_block = space->of_block.get();
            r.wanted = (asked.plain ? kPlain : 0u) | (k == 0 ? kTempered : 0u);
            kernel_(r);
            r.copy = nullptr;
            if (refused(row, r)) return;
            if (r.largest < INFINITY) {
                if (asked.plain) raw = fast_sums(r);
                leave(r, k, c.top_p[asked.setting], *space);
            }
        }
        r.wanted = raw ? asked.wanted & ~kPlain : asked.wanted;
        kernel_(r);
        if (refused(row, r)) return;
        if (c.token)
            c.token_is_32 ? void(static_cast<int32_t*>(c.token)[row] = static_cast<int32_t>(r.token))
                          : void(static_cast<int64_t*>(c.token)[row] = r.token);
        if (!asked.more) return;
        const bool plain = asked.plain && !raw;
        if (plain && asked.once) std::copy_n(r.tempered, c.chunks, r.plain);
        if (plain && r.token >= 0 && r.largest < INFINITY) raw = fast_sums(r);
        if (c.score) c.score[row] = r.score, c.winner[row] = r.winner;
        if (r.token < 0) return;
        if (c.log_prob_raw) c.log_prob_raw[row] = raw ? raw->log_prob(r.winner) : 0.0f;
        if (c.log_prob || c.entropy || c.margin) of_softmax(row, r, asked.draws, asked.tempered);
        if (c.rank) c.rank[row] = rank(row, r);
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

    const void* logits_of(int64_t row) const { return static_cast<const char*>(c.x) + row * c.n * bytes_of(c.type); }

    // Writes down the noise of a sample, but for what depends on a position. Returns its field.
    const Field& describe(RaceRow& r, int64_t sample) const {
        const Field& f = c.fields[c.field_per_sample ? sample : 0];
        const int64_t entry = c.field_per_sample ? 0 : sample;
        const uint64_t id = f.samples ? f.samples[entry] : f.sample + static_cast<uint64_t>(entry);
        r.step = f.step;
        r.sample = static_cast<uint32_t>(id);
        r.tag = f.stream << 24 | static_cast<uint32_t>(id >> 32);
        return f;
    }

    // Only a part of a vocabulary may have no token that can win. (Another thread may take all of them away.)
    bool refused(int64_t row, const RaceRow& r) const {
        c.bad[row] = r.bad ? 1 : r.token < 0 && !c.score ? 2 : 0;
        return c.bad[row];
    }

    // Leaves of a row the k largest (0: all), then of these the fewest that have p of the probability.
    void leave(RaceRow& r, int64_t k, double p, Workspace& space) const {
        r.x = space.row.get(), r.type = DType::f32;
        if (k > 0) cut(r, k, 0, space);
        if (!(p < 1)) return;
        if (k > 0) {
            r.wanted = kTempered;
            kernel_(r);
        }
        cut(r, 0, p * RowSums(c.chunks, r.chunk_largest, r.largest, r.scale.beta, r.tempered).total, space);
    }

    void cut(RaceRow& r, int64_t k, double wanted, Workspace& space) const {
        Cut cut{};
        cut.x = space.row.get(), cut.of_block = space.of_block.get();
        cut.n = (c.n + Workspace::kLane - 1) / Workspace::kLane * Workspace::kLane;
        cut.largest = r.largest, cut.beta = r.scale.beta;
        cut.k = k, cut.wanted = wanted;
        cut.some = space.some.get(), cut.terms = space.terms.get();
        r.cut = &cut, r.wanted = kBound;
        kernel_(r);
        if (cut.doubtful) add_in_order(cut);
        float least = cut.least;
        for (int64_t b = 0; b < space.blocks && least > -INFINITY; ++b) {
            float* const x = space.row.get() + kTokenBlock * b;
            if (space.of_block[b] < least) {
                std::fill_n(x, kTokenBlock, -INFINITY);
                continue;
            }
            int64_t ties = cut.ties > 0 ? count_of(least, x, kTokenBlock) : 0;
            for (float* last = x + kTokenBlock; ties > cut.ties;)
                if (*--last == least) *last = -INFINITY, --ties;
            std::transform(x, x + kTokenBlock, x, [least](float one) { return one >= least ? one : -INFINITY; });
            if (ties > 0 && (cut.ties -= ties) == 0) least = std::nextafter(least, INFINITY);
        }
    }

    // Not inlined, the loop takes vectors.
    [[gnu::noinline]] static int32_t count_of(float one, const float* x, int64_t n) {
        int32_t count = 0;
        for (int64_t i = 0; i < n; ++i) count += x[i] == one;
        return count;
    }

    // Finds the cut of a sum in the order of the contract.
    static void add_in_order(Cut& cut) {
        float* const end = std::copy_if(cut.x, cut.x + cut.n, cut.some, [](float x) { return x > -INFINITY; });
        std::sort(cut.some, end, std::greater<>());
        double reached = 0;
        cut.least = -INFINITY;
        for (const float* x = cut.some; x < end && reached < cut.wanted; ++x) {
            const double behind = static_cast<double>(cut.largest) - static_cast<double>(*x);
            reached += exp_of(-(behind * cut.beta));
            cut.ties = *x == cut.least ? cut.ties + 1 : 1;
            cut.least = *x;
        }
    }

    int32_t rank(int64_t row, const RaceRow& r) const {
        RaceRow all = r;
        all.type = c.type, all.x = logits_of(row);
        int32_t before = 0;
        const auto place = static_cast<int64_t>(r.token - all.first);
        for (int64_t i = 0; i < all.n; ++i) {
            const float x = i == all.hidden ? -INFINITY : logit(all, i);
            before += (x > r.winner) | ((x == r.winner) & (i < place));
        }
        return before;
    }
};

// The sum of ln(1 + odds) of a chunk's tokens, and that of their shares, odds / (1 + odds); odds are a rate times the
// terms, whole blocks of 64. Products take the place of sums of logarithms: the exponents of 16 factors are set apart.
struct Odds {
    double logs = 0, shares = 0;

    [[gnu::hot, gnu::noinline]] void add(const float* terms, int64_t n, double rate) {
        double product[kAccumulators], sum[kAccumulators] = {};
        std::fill_n(product, kAccumulators, 1.0);
        int64_t exponent = 0;
        for (int64_t i = 0; i < n; i += kAccumulators) {
            for (int j = 0; j < kAccumulators; ++j) {
                product[j] = product[j] * (1.0 + rate * static_cast<double>(terms[i + j]));
                sum[j] = sum[j] + static_cast<double>(share(terms[i + j], static_cast<float>(rate)));
            }
            if (i / kAccumulators % 16 != 15 && i + kAccumulators < n) continue;
            for (double& one : product) {
                const auto bits = std::bit_cast<int64_t>(one);
                exponent += (bits >> 52) - 1023;
                one = std::bit_cast<double>((bits & ((int64_t{1} << 52) - 1)) | int64_t{1023} << 52);
            }
        }
#pragma GCC unroll 1
        for (int half = kAccumulators / 2; half > 0; half /= 2)
#pragma GCC unroll 1
            for (int j = 0; j < half; ++j) {
                product[j] = product[j] * product[j + half];
                sum[j] = sum[j] + sum[j + half];
            }
        logs = logs + (ln(product[0]) + static_cast<double>(exponent) * 0x1.62e42fefa39efp-1);
        shares = shares + sum[0];
    }

    // Makes of terms the sums of_share share + of_term term.
    [[gnu::hot, gnu::noinline]] static void mix(float* terms, int64_t n, float rate, float of_share, float of_term) {
        for (int64_t i = 0; i < n; ++i) terms[i] = share(terms[i], rate) * of_share + terms[i] * of_term;
    }
    static float share(float term, float rate) { return term * rate / (1.0f + term * rate); }
    [[gnu::noinline]] static double ln(double x) { return -0.5 * minus_two_ln<Scalar>(x); }
};

// The divergence of rates in a row, and its derivatives by the logits: of_share share + of_term p of a token with the
// probability p; of the tokens x_t and id, in this order, so much more.
struct Divergence {
    double loss, of_term, of_share, share[2], more[2];

    // p(y) are the rates of a flow. surprise: -ln p of the clean token; p: that of both.
    Divergence(double surprise, const double (&p)[2], bool same)
        : loss((same ? 1.0 : surprise) - p[0]), of_term(p[0] + (same ? 0.0 : 1.0)), of_share(0), share{0, 0} {
        more[0] = -p[0], more[1] = same ? 0.0 : -1.0;
    }

    // (1 + rate p(y)) / (1 + rate p(x_t)) / n are the rates of uniform tokens, of which b are drawn anew.
    Divergence(double n, double b, const double (&p)[2], bool same, const Odds& odds) {
        const double rate = n * (1 - b) / b, whole = 1 + rate, past = n / b, ln_whole = Odds::ln(whole);
        const double grown[] = {1 + rate * p[0], 1 + rate * p[1]}, ln_other = Odds::ln(grown[0]);
        const double part = same ? 1 / whole : 1.0, rest = same ? 0.0 : rate;
        double found = past * (part - 1 / grown[0]) + part * (odds.logs - n * ln_other);
        found = found + (same ? (n - 1) * part * ln_whole : rate * (Odds::ln(grown[1]) - ln_other) - whole * ln_whole);
        const double by[] = {rate * ((past / grown[0] - part * n - rest) / grown[0]) * p[0],
                             rest * rate * p[1] / grown[1]};
        loss = -found / n;
        of_term = (part * odds.shares + (by[0] + by[1])) / n;
        of_share = -part / n;
        for (int i = 0; i < 2; ++i) {
            share[i] = rate * p[i] / grown[i];
            more[i] = -by[i] / n;
        }
    }
};

// Takes the terms of a chunk, whole blocks.
[[gnu::noinline]] void take_terms(RaceRow& r, float* terms) {
    r.known = nullptr, r.factor = 1, r.out = terms, r.out_type = DType::f32;
    kernels().race(r);
    std::fill(terms + r.n, terms + (r.n + kAccumulators - 1) / kAccumulators * kAccumulators, 0.0f);
}

// The loss of a row of rates, and its gradient. Compiled to be small: the work is in what it calls.
[[gnu::cold]] void rate_row(RaceRow& r, const CrossEntropy& c, int64_t row) {
    const int64_t width = bytes_of(c.type), chunks = chunks_of(c.n);
    const auto n = static_cast<double>(c.n);
    const char* const x = static_cast<const char*>(c.x) + row * c.n * width;
    float largest[kMostChunks];
    double sums[kMostChunks];
    r.wanted = kPlain, r.x = x, r.n = c.n, r.type = c.type, r.chunk_largest = largest, r.plain = sums;
    kernels().race(r);
    const bool finite = !r.bad && std::isfinite(r.largest);
    const int64_t ids[] = {c.other[row], c.id[row]};
    const bool same = ids[0] == ids[1];
    double surprise[2], p[2], total = NAN, scale = NAN, rate = NAN;
    alignas(64) float terms[kLossChunk];
    const auto chunk = [&](int64_t at) {
        r.wanted = kWrite, r.x = x + at * width, r.n = std::min(kLossChunk, c.n - at);
        return r.n;
    };
    Odds odds;
    if (finite) {
        const RowSums softmax(chunks, largest, r.largest, 1.0, sums);
        const Terms of_row(r.scale, r.largest);
        total = static_cast<double>(of_row.term<Scalar>(r.largest - of_row.shift)) * softmax.total;
        r.x = x;
#pragma GCC unroll 1
        for (int i = 0; i < 2; ++i) {
            surprise[i] = softmax.ln - (static_cast<double>(logit(r, ids[i])) - static_cast<double>(r.largest));
            p[i] = exp_of(-surprise[i]);
        }
        if (c.p) {
            const double b = c.p[row * c.p_step];
            rate = n * (1 - b) / b / total;
            for (int64_t at = 0; at < c.n; at += kLossChunk) {
                const int64_t taken = chunk(at);
                take_terms(r, terms);
                odds.add(terms, taken, rate);
            }
        }
        scale = c.weight[row * c.weight_step] * c.upstream[row * c.upstream_step] / c.mean_of;
    } else {
        r.largest = 0, surprise[1] = p[0] = p[1] = NAN;
    }
    const Divergence found =
        c.p && finite ? Divergence(n, c.p[row * c.p_step], p, same, odds) : Divergence(surprise[1], p, same);
    c.loss[row] = finite ? found.loss : NAN;
    if (!c.gradient) return;
    char* const gradient = static_cast<char*>(c.gradient) + row * c.n * width;
    const auto of_term = static_cast<float>(scale * found.of_term / total);
    const auto of_share = static_cast<float>(scale * found.of_share), single = static_cast<float>(rate);
    for (int64_t at = 0; at < c.n; at += kLossChunk) {
        const int64_t taken = chunk(at);
        const bool jumps = c.p && finite;
        if (jumps) {
            take_terms(r, terms);
            Odds::mix(terms, taken, single, of_share, of_term);
        }
        r.known = jumps ? terms : nullptr, r.factor = jumps ? 1.0f : of_term;
        r.out = gradient + at * width, r.out_type = c.type;
        kernels().race(r);
    }
#pragma GCC unroll 1
    for (int i = 0; i < 2; ++i) {
        const double more = same ? found.more[0] + found.more[1] : found.more[i];
        const auto value = static_cast<float>(scale * (found.of_share * found.share[i] + found.of_term * p[i] + more));
        char* const to = gradient + ids[i] * width;
        if (c.type == DType::f32)
            *reinterpret_cast<float*>(to) = value;
        else
            *reinterpret_cast<uint16_t*>(to) = c.type == DType::f16 ? float_to_half(value) : float_to_bfloat16(value);
    }
}

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
            if (call.masked[r.first] && call.other) {
                rate_row(r, call, r.first);
            } else if (call.masked[r.first]) {
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
