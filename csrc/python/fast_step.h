// SPDX-License-Identifier: Apache-2.0
// The fast path of a step of a sampler of tokens: tokens/steps.py says the same in NumPy.
#pragma once
#include <numeric>

#include "fast_categories.h"

namespace nf {
namespace {

// A row of a TokenTable, and what the table adds.
struct FastTokenRow {
    enum Told { kWords, kLogProb, kLogProbRaw, kEntropy, kMargin };

    int has_mask, hides, touches;
    int told;                               // what the order of positions by rank is by
    long long mask, vocabulary, end, left;  // vocabulary, left: or 0
    PyObject *temperature, *top_k, *top_p;  // borrowed
    double reveal, change, differ, same, remask;
    double surprise;      // of the threshold, -ln p; or -1
    float share;          // or -1
    PyObject* surprises;  // borrowed: the greatest ones by a factor, bytes of float32; or none

    bool by_rank() const { return left || surprise >= 0 || share >= 0 || most_masks(); }
    // How many masks of a sample a factor's surprises are known for; or 0.
    int64_t most_masks() const { return PyBytes_GET_SIZE(surprises) / 4; }

    // False: a Python error is set.
    bool parse(PyObject* row) {
        return PyArg_ParseTuple(row, "pppiLLLLOOOddddddfS", &has_mask, &hides, &touches, &told, &mask, &vocabulary,
                                &end, &left, &temperature, &top_k, &top_p, &reveal, &change, &differ, &same, &remask,
                                &surprise, &share, &surprises);
    }

    // The greatest surprise with which a sample's mask takes its token after k others.
    double greatest(int64_t k) const {
        float by_factor;
        if (!most_masks()) return surprise;
        std::memcpy(&by_factor, PyBytes_AS_STRING(surprises) + 4 * k, 4);
        return by_factor;
    }

    // How many of a sample's masks take their token, of those with these keys, which rise.
    int64_t count(const std::vector<std::pair<double, size_t>>& order) const {
        const auto masks = static_cast<int64_t>(order.size());
        if (left) return (masks + left - 1) / left;
        if (share >= 0) return static_cast<int64_t>(std::floor(static_cast<float>(masks) * share));
        int64_t certain = masks ? 1 : 0;  // one always does
        while (certain < masks && order[static_cast<size_t>(certain)].first <= greatest(certain)) ++certain;
        return most_masks() && certain == masks - 1 ? masks : certain;  // a factor leaves no last one alone
    }
};

// One step: its arrays are int64 or bytes, one for each position.
class FastTokenStep {
  public:
    // Takes the tokens x. False: declined.
    bool read(const FastTokenRow& row, PyObject* tokens) {
        const View& ids = x.v;
        if (!x.read(tokens) || !is_token(ids.kind) || ids.ndim < 2 ||
            (row.has_mask ? !is_of(ids, row.mask)
                          : row.vocabulary && !all_below(ids, static_cast<uint64_t>(row.vocabulary))))
            return false;
        const auto n = static_cast<size_t>(ids.count);
        batch = ids.shape[0], length = ids.count / batch;
        old.resize(n), drawn.resize(n), may.resize(n), taken.resize(n);
        of_tokens(ids, [&](auto* first) { std::copy_n(first, n, old.begin()); });
        return true;
    }

    // Takes the names of what step i draws. False: declined.
    bool name(PyObject* noise, int64_t i) {
        words_.batch = batch, words_.size = length, words_.n_rows = i + 1;
        if (!names_.parse(noise, kMasks, words_, 1, &length) || names_.whole > kPositions || names_.whole < 0)
            return false;
        names_.later(words_, static_cast<uint32_t>(i));
        words_.step_by_index = 0, words_.n_rows = 1, words_.index = &first_row_, words_.segment = batch * length;
        words_.type = words_.out_type = DType::f32, words_.draw = Draw::words;
        return true;
    }

    // Finds the positions that may take a drawn token. False: declined.
    bool allow(const FastTokenRow& row, PyObject* where) {
        FastArray allowed;
        if (!take_bools(where, x.v, allowed)) return false;
        const int64_t end = (names_.whole ? names_.whole : length) - row.end;
        for (size_t i = 0; i < may.size(); ++i) {
            const auto sample = static_cast<int64_t>(i) / length, place = static_cast<int64_t>(i) % length;
            const bool masked = row.has_mask && old[i] == row.mask;
            may[i] = (row.touches || !row.has_mask || masked) && field_of(words_, sample).start + place < end &&
                     (!allowed.v.data || allowed.v.data[i]);
        }
        for (auto first = may.begin(); row.most_masks() && first < may.end(); first += length)
            if (std::count(first, first + length, 1) > row.most_masks()) return false;
        return true;
    }

    // Draws a token at each position that may take one. 1; 0: declined; -1: a Python error is set.
    int draw(const FastTokenRow& row, const FastLogits& logits, const FastSettings& settings) {
        names_.use(words_, kRace);
        FastRace fast(logits, settings, words_);
        fast.race.where = may.data(), fast.race.token = drawn.data();
        if (row.hides && row.mask < logits.n) fast.race.hidden = row.mask;
        if (row.by_rank() && row.told != row.kWords) {
            told.resize(old.size());
            float** const to[] = {&fast.race.log_prob, &fast.race.log_prob_raw, &fast.race.entropy, &fast.race.margin};
            *to[row.told - 1] = told.data();
        }
        const auto run = [&](const GoOn& go_on) { return run_race(fast.race, go_on); };
        if (!run_call(logits.array.v.count > kAtOnce, run)) return -1;
        if (!fast.is_good()) return 0;
        const int64_t most = of_tokens(x.v, [](auto* first) {
            return static_cast<int64_t>(std::numeric_limits<std::remove_cvref_t<decltype(*first)>>::max());
        });
        for (size_t i = 0; i < old.size(); ++i) {
            if (!may[i]) drawn[i] = 0;
            if (drawn[i] > most || (!row.has_mask && row.vocabulary && drawn[i] >= row.vocabulary)) return 0;
        }
        return 1;
    }

    // Finds the next tokens. False: a Python error is set.
    bool change(const FastTokenRow& row) {
        made = old;
        if (row.by_rank()) return by_rank(row);
        std::vector<float> words(old.size());
        std::vector<int64_t> other;
        if (!draw_words(words, kMasks) || ((row.differ != 0 || row.same != 0) && !draw_tokens(row, other)))
            return false;
        const double reached = row.change + row.differ;
        const double events[3][2] = {
            {row.change, 0}, {reached, row.same}, {reached + row.remask, row.same + row.remask}};
        for (size_t i = 0; i < old.size(); ++i) {
            if (!may[i]) continue;
            const uint32_t word = __builtin_bit_cast(uint32_t, words[i]);
            const auto below = [&](double p) { return static_cast<double>(word) < std::rint(p * 0x1p32); };
            if (row.has_mask && old[i] == row.mask) {
                taken[i] = below(std::min(row.reveal, 1.0));
                if (taken[i]) made[i] = drawn[i];
            } else if (row.touches) {
                const bool is_same = drawn[i] == old[i];
                if (below(events[0][is_same]))
                    taken[i] = 1, made[i] = drawn[i];
                else if (below(events[1][is_same]))
                    made[i] = other.empty() ? old[i] : other[i];
                else if (below(events[2][is_same]))
                    made[i] = row.has_mask ? row.mask : old[i];
            }
        }
        return true;
    }

    FastArray x;
    int64_t batch, length;
    std::vector<int64_t> old, drawn, made;
    std::vector<uint8_t> may, taken;
    std::vector<float> told;

  private:
    FastNoise names_;
    Call words_{};
    const int64_t first_row_ = 0;

    bool draw_words(std::vector<float>& words, int stream) {
        float row[kColumns]{};
        constexpr int kColumn = kAffine[0] + 1 + kZ;
        row[kColumn] = 1;
        names_.use(words_, static_cast<uint32_t>(stream));
        words_.rows = row, words_.active = uint64_t{1} << kColumn, words_.out[0] = words.data();
        return run_plain(words_, [](const Call& call, const GoOn& go_on) { return run_step(call, go_on); });
    }

    // Draws a token of the whole vocabulary for each position.
    bool draw_tokens(const FastTokenRow& row, std::vector<int64_t>& tokens) {
        std::vector<uint8_t> all(old.size());
        tokens.resize(old.size());
        const double always = 1;
        Masks masks{};
        masks.tokens = old.data(), masks.out = tokens.data(), masks.masked = all.data(), masks.p = &always;
        masks.segment = batch * length, masks.bytes = 8, masks.vocabulary = static_cast<uint64_t>(row.vocabulary);
        names_.use(words_, kMasks);
        return run_plain(words_, [&](const Call& call, const GoOn& go_on) { return run_masks(call, masks, go_on); });
    }

    // The first of a sample's positions take their token.
    bool by_rank(const FastTokenRow& row) {
        constexpr int kPlaces = 16;  // a stream, as in noise.py
        const bool by_words = row.told == row.kWords;
        std::vector<float> words(by_words ? old.size() : 0);
        if (by_words && !draw_words(words, kPlaces)) return false;
        const double sign = row.told == row.kEntropy ? 1 : -1;
        std::vector<std::pair<double, size_t>> order;
        order.reserve(static_cast<size_t>(length));
        for (size_t first = 0; first < old.size(); first += static_cast<size_t>(length)) {
            order.clear();
            for (size_t i = first; i < first + static_cast<size_t>(length); ++i)
                if (may[i])
                    order.emplace_back(by_words ? static_cast<double>(__builtin_bit_cast(uint32_t, words[i]))
                                                : sign * static_cast<double>(told[i]),
                                       i);
            std::sort(order.begin(), order.end());
            const int64_t count = row.count(order);
            for (int64_t k = 0; k < count; ++k) {
                const size_t i = order[static_cast<size_t>(k)].second;
                taken[i] = 1, made[i] = drawn[i];
            }
        }
        return true;
    }
};

// A new array of NumPy, of x's shape.
template <class Number>
PyObject* of_positions(const std::vector<Number>& numbers, Kind kind, PyArray_Descr* descriptor, const View& x) {
    char* data;
    PyObject* const made = new_one({kind, false, x.ndim, x.shape, x.count, descriptor}, data);
    if (made) std::copy(numbers.begin(), numbers.end(), reinterpret_cast<Number*>(data));
    return made;
}

// token_step(row, i, x, logits, noise, where, out), or NotImplemented: (the next x, the drawn tokens, which positions
// took them), the last two as arrays of NumPy.
PyObject* fast_token_step(PyObject* const* args) {
    FastTokenRow row;
    FastTokenStep step;
    FastLogits logits;
    FastSettings settings;
    FastOutputs outputs;
    Call written{};
    int64_t i;
    if (!row.parse(args[0])) return nullptr;
    const View &x = step.x.v, &given = logits.array.v;
    if (!take_integer(args[1], i) || !step.read(row, args[2]) || !logits.read(args[3]) || !logits.shape.same_shape(x) ||
        given.is_tensor != x.is_tensor || logits.of_sample > kPositions || logits.n < row.vocabulary ||
        !settings.parse(row.temperature, row.top_k, row.top_p, logits) || !step.name(args[4], i) ||
        !step.allow(row, args[5]))
        return declined();
    outputs.first = {x.kind, x.is_tensor, x.ndim, x.shape, x.count, nullptr};
    if (!x.is_tensor) outputs.first.descriptor = PyArray_DESCR(array(x.object));
    if (!outputs.take(0, args[6], written) || outputs.spoil(x, true)) Py_RETURN_NOTIMPLEMENTED;
    const int good = step.draw(row, logits, settings);
    if (good <= 0) return good ? nullptr : Py_NewRef(Py_NotImplemented);
    if (!step.change(row) || !outputs.make(written)) return nullptr;
    View out = x;
    out.data = static_cast<char*>(written.out[0]);
    of_tokens(out, [&](auto* first) {
        using Token = std::remove_cvref_t<decltype(*first)>;
        std::transform(step.made.begin(), step.made.end(), const_cast<Token*>(first),
                       [](int64_t token) { return static_cast<Token>(token); });
    });
    for (size_t k = 0; k < step.drawn.size(); ++k)
        if (!step.may[k]) step.drawn[k] = step.old[k];
    const Reference next(outputs.give()), drawn(of_positions(step.drawn, Kind::i64, int64, x)),
        taken(of_positions(step.taken, Kind::b1, boolean, x));
    return next.object && drawn.object && taken.object ? PyTuple_Pack(3, next.object, drawn.object, taken.object)
                                                       : nullptr;
}

}  // namespace
}  // namespace nf
