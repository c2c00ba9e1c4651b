// SPDX-License-Identifier: Apache-2.0
// The fast path of log-densities and divergences: sums of squares, and what a law makes of them.
#pragma once
#include <vector>

#include "../core/loss.h"
#include "fast_call.h"
#include "fast_results.h"

namespace nf {
namespace {

// Whether it is this name, a string that is interned.
bool is_named(PyObject* o, PyObject* name) {
    return o == name || (PyUnicode_CheckExact(o) && PyUnicode_Compare(o, name) == 0);
}

// What makes log-densities of sums of squares, factor S + constant: density.Law.
class FastLaw {
  public:
    struct Numbers {
        double factor, constant;
    };

    // numbers: of each row the factor and the constant of one element, (n, 2). given: `reduction`, `density` and
    // `partial`, by name. False: declined, as where a row of the call draws nothing.
    bool parse(PyObject* numbers, PyObject* given, const FastCall& fast) {
        of_rows_ = static_cast<const double*>(PyArray_DATA(array(numbers)));
        elements_ = static_cast<double>(fast.call.size);
        PyObject *name, *value;
        for (Py_ssize_t at = 0; PyDict_Next(given, &at, &name, &value);) {
            if (is_named(name, name_reduction)) {
                mean_ = is_named(value, name_mean);
                if (!mean_ && !is_named(value, name_sum)) return false;
            } else if (is_named(name, name_density)) {
                full_ = is_named(value, name_full), squared_ = is_named(value, name_squared);
                if (!full_ && !squared_ && !is_named(value, name_no_constants)) return false;
            } else if (!is_named(name, name_partial) || value != Py_False) {
                return false;
            }
        }
        if (fast.index_axes() > 1) return false;
        several_ = fast.indices > 1;
        for (int64_t b = 0; b < fast.indices; ++b)
            if (of_rows_[2 * row_of(fast.call, b)] == 0) return false;
        return true;
    }

    Numbers of_sample(const Call& call, int64_t b) const {
        const double* const row = of_rows_ + 2 * row_of(call, several_ ? b : 0);
        const double factor = squared_ ? -1 : row[0], constant = full_ ? row[1] : 0;
        return mean_ ? Numbers{factor / elements_, constant} : Numbers{factor, elements_ * constant};
    }

  private:
    const double* of_rows_;
    double elements_;
    bool mean_ = false, full_ = true, squared_ = false, several_ = false;
};

// density(table, stored, i, x, model_output, past, noise, stream, out, aux, law), or NotImplemented: a step, and of
// each sample its log-density, for which the step's result stands in the place of the noise. table: None, or (rows, the
// deviation's rows, the numbers of FastLaw); law: a dict, of FastLaw's names. Returns (out, float64 (B,)); of what is
// stored, which is given as the noise, that alone.
PyObject* fast_density(PyObject* const* args) {
    PyObject* const table = args[0];
    if (table == Py_None) Py_RETURN_NOTIMPLEMENTED;
    const bool stored = args[1] == Py_True;
    FastCall fast;
    FastLaw law;
    Call& step = fast.call;
    fast.adds_up = true;
    const int stream = static_cast<int>(PyLong_AsLong(args[7]));
    if (!fast.parse(
            {PyTuple_GET_ITEM(table, stored), args[2], args[3], args[4], args[5], args[6], stream, args[8], args[9]}) ||
        step.out_type != step.type || fast.in_place() || (stored && (!step.in[kZ] || step.in_type[kZ] != step.type)) ||
        !law.parse(PyTuple_GET_ITEM(table, 2), args[10], fast))
        Py_RETURN_NOTIMPLEMENTED;
    Call loss = step;
    take_rows(PyTuple_GET_ITEM(table, 1), loss.type, loss);
    if (!has_inputs(loss)) Py_RETURN_NOTIMPLEMENTED;
    if (stored) fast.outputs.wanted = 0;
    if (!fast.outputs.make(step)) return nullptr;
    if (!stored) loss.in[kZ] = step.out[0], loss.in_type[kZ] = step.out_type;
    for (void*& out : loss.out) out = nullptr;
    loss.draw = Draw::none, loss.piece = loss.size, loss.n = 1;
    loss.n_losses = loss.batch;
    char* sums;
    const Reference made(new_one({Kind::f64, fast.x.is_tensor, 1, &loss.batch, loss.batch, float64}, sums));
    if (!made.object) return nullptr;
    loss.losses = reinterpret_cast<double*>(sums);
    const auto run = [&](const Call& of_loss, const GoOn& go_on) {
        return stored ? run_loss(of_loss, go_on, fast.turned) : run_step_and_loss(step, of_loss, go_on, fast.turned);
    };
    if (!run_plain(loss, run)) return nullptr;
    for (int64_t b = 0; b < loss.batch; ++b) {
        const FastLaw::Numbers numbers = law.of_sample(loss, b);
        loss.losses[b] = loss.losses[b] * numbers.factor + numbers.constant;
    }
    if (stored) return Py_NewRef(made.object);
    const Reference out(fast.outputs.give());
    return out.object ? PyTuple_Pack(2, out.object, made.object) : nullptr;
}

// The gradients with respect to sums of samples: those with respect to what is returned, times factor(b).
struct FastUpstream {
    std::vector<double> each;

    // given: a number, or one for each sample. False: declined.
    template <class Factor>
    bool parse(PyObject* given, bool several, const Factor& factor, Call& call) {
        call.n = 1;
        const double number = PyFloat_CheckExact(given) ? PyFloat_AS_DOUBLE(given) : 0;
        if (PyFloat_CheckExact(given) && !several) {
            call.g = factor(0) * number;
            return true;
        }
        View v;
        const bool one = PyFloat_CheckExact(given);
        if (!one && (!view(given, v) || v.kind != Kind::f64 || v.ndim != 1 || v.count != call.batch)) return false;
        each.resize(static_cast<size_t>(call.batch));
        for (int64_t b = 0; b < call.batch; ++b)
            each[static_cast<size_t>(b)] = factor(b) * (one ? number : reinterpret_cast<const double*>(v.data)[b]);
        call.upstream = each.data(), call.upstream_step = 1;
        return true;
    }
};

// A coefficient in the row of each sample.
double coefficient(PyObject* table, PyObject* column, const FastCall& fast, int64_t b) {
    const auto* const rows = static_cast<const double*>(PyArray_DATA(array(PyTuple_GET_ITEM(table, 1))));
    return rows[kColumns * row_of(fast.call, fast.indices > 1 ? b : 0) + PyLong_AsLong(column)];
}

// density_gradient(table, column, i, x, model_output, past, x_next, upstream, out, law), or NotImplemented: of the
// log-density of what is stored, with respect to the input whose coefficient in the deviation's rows has this column.
PyObject* fast_density_gradient(PyObject* const* args) {
    PyObject* const table = args[0];
    if (table == Py_None || args[1] == Py_None) Py_RETURN_NOTIMPLEMENTED;
    PyObject* const deviation = PyTuple_GET_ITEM(table, 1);
    FastCall fast;
    FastLaw law;
    Call& call = fast.call;
    if (!fast.parse({deviation, args[2], args[3], args[4], args[5], args[6], 0, args[8], Py_None}) ||
        call.out_type != call.type || !call.in[kZ] || call.in_type[kZ] != call.type ||
        !law.parse(PyTuple_GET_ITEM(table, 2), args[9], fast))
        Py_RETURN_NOTIMPLEMENTED;
    const auto factor = [&](int64_t b) {
        return law.of_sample(call, b).factor * coefficient(deviation, args[1], fast, b);
    };
    FastUpstream upstream;
    if (!upstream.parse(args[7], fast.indices > 1, factor, call)) Py_RETURN_NOTIMPLEMENTED;
    if (!fast.outputs.make(call)) return nullptr;
    call.draw = Draw::none, call.piece = call.size;
    return fast.run_loss() ? fast.outputs.give() : nullptr;
}

// divergence(table, differences, column, i, model_output, reference, upstream, out, law), or NotImplemented: float64
// (B,), of two model outputs, whose coefficient in the deviation's rows has this column; or, where `upstream` is not
// None, its gradient. differences: the rows of the first less the second.
PyObject* fast_divergence(PyObject* const* args) {
    PyObject* const table = args[0];
    if (table == Py_None) Py_RETURN_NOTIMPLEMENTED;
    const bool is_gradient = args[6] != Py_None;
    FastCall fast;
    FastLaw law;
    Call& call = fast.call;
    fast.adds_up = !is_gradient;
    if (!fast.parse({args[1], args[3], args[5], args[4], Py_None, Py_None, 0, args[7], Py_None}) ||
        call.out_type != call.type || call.in_type[kX] != call.type ||
        !law.parse(PyTuple_GET_ITEM(table, 2), args[8], fast))
        Py_RETURN_NOTIMPLEMENTED;
    const auto factor = [&](int64_t b) {
        const double slope = coefficient(PyTuple_GET_ITEM(table, 1), args[2], fast, b);
        return -law.of_sample(call, b).factor * slope * slope;
    };
    FastUpstream upstream;
    if (is_gradient && !upstream.parse(args[6], fast.indices > 1, factor, call)) Py_RETURN_NOTIMPLEMENTED;
    fast.outputs.wanted = is_gradient;
    if (!fast.outputs.make(call)) return nullptr;
    call.draw = Draw::none, call.piece = call.size, call.n = 1;
    FastNumbers sums(is_gradient ? 0 : call.batch, false);
    if (!is_gradient) call.losses = sums.values.data(), call.n_losses = call.batch;
    if (!fast.run_loss()) return nullptr;
    if (is_gradient) return fast.outputs.give();
    for (int64_t b = 0; b < call.batch; ++b) {
        double& sum = sums.values[static_cast<size_t>(b)];
        sum = sum * factor(b) + 0.0;
    }
    return sums.give(fast.x.is_tensor, true);
}

}  // namespace
}  // namespace nf
