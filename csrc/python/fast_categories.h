// SPDX-License-Identifier: Apache-2.0
// The fast path of draws of categories, and of their cross entropies.
#pragma once
#include <vector>

#include "../cpu/float_mode.h"
#include "../run/race.h"
#include "fast_tokens.h"

namespace nf {
namespace {

// The rows of logits (B, .., V), which their last axis is.
struct FastLogits {
    FastArray array;
    int64_t rows, n, batch, of_sample;
    View shape{};  // that of the rows, beside nothing else

    // False: declined.
    bool read(PyObject* o, PyObject* watched = nullptr) {
        const View& x = array.v;
        if (!array.read(o, watched) || (x.kind != Kind::f32 && x.kind != Kind::f16 && x.kind != Kind::bf16) ||
            x.ndim < 1 || (x.is_tensor && torch.dual()))
            return false;
        n = x.shape[x.ndim - 1], rows = x.count / n;
        batch = x.ndim > 1 ? x.shape[0] : 1, of_sample = rows / batch;
        shape = x, shape.ndim = x.ndim - 1, shape.count = rows;
        return n <= kTokens;
    }

    Made of_rows(Kind kind, PyArray_Descr* descriptor) const {
        return {kind, shape.is_tensor, shape.ndim, shape.shape, rows, descriptor};
    }
};

// The settings of a draw: one for all samples, or one for each.
struct FastSettings {
    FastReals temperature, top_p;
    std::vector<int64_t> top_k;
    bool each;

    bool parse(PyObject* heat, PyObject* k, PyObject* p, const FastLogits& logits) {
        int64_t most;
        const auto fits = [&](const FastReals& given) {
            return given.is_tensor <= logits.shape.is_tensor &&
                   (given.ndim == 0 || (given.ndim == 1 && given.count == logits.batch));
        };
        if (!temperature.parse(heat) || !top_p.parse(p) || !take_integer(k, most) || most < 0 || !fits(temperature) ||
            !fits(top_p) || !top_p.within(std::numeric_limits<double>::denorm_min(), 1))
            return false;
        for (int64_t s = 0; s < temperature.count; ++s)
            if (!is_temperature(temperature.values[static_cast<size_t>(s)])) return false;
        const int64_t settings = std::max(temperature.count, top_p.count);
        each = settings > 1;
        top_k.assign(static_cast<size_t>(settings), most);
        return temperature.spread(settings) && top_p.spread(settings);
    }
};

constexpr int kRace = 13;  // a stream, as in noise.py

// Draws: false, declined; or a Python error is set.
bool take_names(PyObject* noise, const FastLogits& logits, FastNoise& names, Call& keys) {
    const View& x = logits.array.v;
    const bool batched = x.ndim > 1;
    keys.batch = logits.batch, keys.size = logits.of_sample * logits.n;
    if (!names.parse(noise, kRace, keys, x.ndim - batched, x.shape + batched)) return false;
    bool whole = true;
    for (int64_t s = 0; s < (keys.field_per_sample ? keys.batch : 1); ++s)
        whole &= keys.fields[s].start == 0 && keys.fields[s].run == keys.size;
    return whole;
}

// A draw of a token for each row, but for where to write it.
class FastRace {
  public:
    Race race{};

    FastRace(const FastLogits& logits, const FastSettings& settings, const Call& keys)
        : positions_(static_cast<size_t>(logits.rows)), bad_(positions_.size()) {
        for (int64_t row = 0; row < logits.rows; ++row)
            positions_[static_cast<size_t>(row)] =
                row % logits.of_sample + field_of(keys, row / logits.of_sample).start;
        race.rows = logits.rows, race.of_sample = logits.of_sample, race.n = logits.n;
        race.x = logits.array.v.data, race.type = dtype(logits.array.v.kind);
        race.position = positions_.data(), race.bad = bad_.data();
        race.temperature = settings.temperature.values.get(), race.top_p = settings.top_p.values.get();
        race.top_k = settings.top_k.data(), race.each = settings.each;
        race.fields = keys.fields, race.field_per_sample = keys.field_per_sample;
        race.chunks = chunks_of(logits.n);
    }
    FastRace(const FastRace&) = delete;

    // Whether each row had a token.
    bool is_good() const {
        return std::all_of(bad_.begin(), bad_.end(), [](uint8_t one) { return one == 0; });
    }

  private:
    std::vector<int64_t> positions_;
    std::vector<uint8_t> bad_;
};

// categorical(logits, noise, temperature, top_k, top_p, where, info, dtype, out), or NotImplemented: a token for each
// row. A row of which no token can be drawn declines the call after all.
PyObject* fast_categorical(PyObject* const* args) {
    FastLogits logits;
    FastSettings settings;
    FastArray where;
    FastNoise names;
    FastOutputs outputs;
    Call keys{};
    View given{};
    const View& x = logits.array.v;
    if (!PyTuple_CheckExact(args[6]) || PyTuple_GET_SIZE(args[6]) || args[7] != Py_None || !logits.read(args[0]) ||
        logits.of_sample > kPositions || !settings.parse(args[2], args[3], args[4], logits) ||
        !take_bools(args[5], logits.shape, where) || !take_names(args[1], logits, names, keys))
        return declined();
    if (args[8] != Py_None && !view(args[8], given)) Py_RETURN_NOTIMPLEMENTED;
    const bool is_32 = given.data && given.kind == Kind::i32;
    outputs.first = logits.of_rows(is_32 ? Kind::i32 : Kind::i64, int64);
    if (!outputs.take(0, args[8], keys) || outputs.spoil(x, false) || outputs.spoil(where.v, false))
        Py_RETURN_NOTIMPLEMENTED;
    if (!outputs.make(keys)) return nullptr;
    if (where.v.data && !given.data) std::memset(keys.out[0], -1, static_cast<size_t>(8 * logits.rows));
    FastRace fast(logits, settings, keys);
    fast.race.where = reinterpret_cast<const uint8_t*>(where.v.data);
    fast.race.token = keys.out[0], fast.race.token_is_32 = is_32;
    if (!run_call(x.count > kAtOnce, [&](const GoOn& go_on) { return run_race(fast.race, go_on); })) return nullptr;
    return fast.is_good() ? outputs.give() : Py_NewRef(Py_NotImplemented);
}

// The rows that count, and their tokens, and those of x_t: copies, as the gradient may be written where they lie.
struct FastLabels {
    std::vector<uint8_t> counts;
    std::vector<int64_t> ids, others;

    bool parse(PyObject* tokens, PyObject* masked, PyObject* x_t, const FastLogits& logits) {
        FastArray bools;
        if (!take_bools(masked, logits.shape, bools)) return false;
        counts.assign(static_cast<size_t>(logits.rows), 1);
        if (bools.v.data)
            std::transform(bools.v.data, bools.v.data + logits.rows, counts.begin(), [](char c) { return c != 0; });
        return take(tokens, logits, ids) && (x_t == Py_None || take(x_t, logits, others));
    }

  private:
    [[gnu::noinline]] bool take(PyObject* tokens, const FastLogits& logits, std::vector<int64_t>& found) const {
        FastArray given;
        if (!given.read(tokens) || !is_token(given.v.kind) || !given.v.same_shape(logits.shape) ||
            given.v.is_tensor > logits.shape.is_tensor)
            return false;
        found.resize(counts.size());
        of_tokens(given.v, [&](auto* first) { std::copy_n(first, found.size(), found.begin()); });
        bool good = true;
        for (size_t row = 0; row < found.size(); ++row)
            good &= !counts[row] || (found[row] >= 0 && found[row] < logits.n);
        return good;
    }
};

// Takes a number, or numbers that cover the rows, and makes them one for all rows, or one for each.
bool take_of_rows(PyObject* o, const FastLogits& logits, FastReals& numbers) {
    const View& rows = logits.shape;
    return numbers.parse(o) && numbers.is_tensor <= rows.is_tensor && numbers.ndim <= rows.ndim &&
           numbers.covers(rows.ndim, rows.shape, rows.count) && (numbers.count == 1 || numbers.spread(rows.count));
}

// Weighs the losses of rows; of a mean, adds them in their order.
void weigh(const CrossEntropy& call, bool each, std::vector<double>& found) {
    const FloatMode mode;
    double total = 0;
    for (int64_t row = 0; row < call.rows; ++row) {
        const double loss = call.masked[row] ? call.weight[row * call.weight_step] * call.loss[row] : 0.0;
        if (each) found[static_cast<size_t>(row)] = loss;
        total = row ? total + loss : loss;
    }
    if (!each) found[0] = total / static_cast<double>(call.rows);
}

// masked_cross_entropy(logits, ids, masked, weight, each, upstream, grad, x_t, p), or NotImplemented: the loss, or
// (loss, gradient), where grad is None, an array, or True: make it. As in `mse`, the gradient is made where autograd
// needs it. With x_t, not None, a rate_loss.
PyObject* fast_cross_entropy(PyObject* const* args) {
    FastLogits logits;
    FastLabels labels;
    FastReals weight, upstream, p;
    FastOutputs outputs;
    Call written{};
    const View& x = logits.array.v;
    const bool each = args[4] == Py_True;
    const bool watched = torch.is_tensor(args[0]) && torch.is_watched(args[0]), has_p = args[8] != Py_None;
    if (watched && (each || args[6] != Py_None || args[7] != Py_None)) return declined();
    if (!logits.read(args[0], watched ? args[0] : nullptr) || !labels.parse(args[1], args[2], args[7], logits) ||
        (has_p && (!take_of_rows(args[8], logits, p) || !p.within(0x1p-32, 1))) ||
        !take_of_rows(args[3], logits, weight) || !weight.within(0, INFINITY) ||
        !take_of_rows(args[5], logits, upstream) || (!each && upstream.ndim))
        return declined();
    outputs.first = {x.kind, x.is_tensor, x.ndim, x.shape, x.count, nullptr};
    if (!x.is_tensor) outputs.first.descriptor = PyArray_DESCR(array(x.object));
    outputs.wanted = watched || args[6] != Py_None;
    if (!outputs.take(0, args[6] == Py_True ? Py_None : args[6], written) || outputs.spoil(x, true))
        Py_RETURN_NOTIMPLEMENTED;
    if (!outputs.make(written)) return nullptr;
    std::vector<double> losses(labels.ids.size());
    CrossEntropy call{};
    call.rows = logits.rows, call.n = logits.n;
    call.x = x.data, call.type = dtype(x.kind);
    call.id = labels.ids.data(), call.masked = labels.counts.data();
    if (args[7] != Py_None) call.other = labels.others.data();
    if (has_p) call.p = p.values.get(), call.p_step = p.count > 1;
    call.weight = weight.values.get(), call.weight_step = weight.count > 1;
    call.upstream = upstream.values.get(), call.upstream_step = upstream.count > 1;
    call.mean_of = each ? 1 : static_cast<double>(logits.rows);
    call.loss = losses.data(), call.gradient = written.out[0];
    const auto run = [&](const GoOn& go_on) { return run_cross_entropy(call, go_on); };
    if (!run_call(x.count > kAtOnce, run)) return nullptr;
    FastNumbers sums(each ? logits.rows : 1, !each);
    sums.reshape(logits.shape.ndim, logits.shape.shape);
    weigh(call, each, sums.values);
    const Reference loss(sums.give(x.is_tensor, !x.is_tensor));
    if (!loss.object || !outputs.wanted) return Py_XNewRef(loss.object);
    const Reference gradient(outputs.give());
    return gradient.object ? PyTuple_Pack(2, loss.object, gradient.object) : nullptr;
}

}  // namespace
}  // namespace nf
