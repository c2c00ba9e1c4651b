// SPDX-License-Identifier: Apache-2.0
// Rows of times and levels of the fast path, float64 (n, kColumns), from what a table says of its own time (`timed` of
// fast_call.h).
#pragma once
#include <cmath>
#include <limits>
#include <span>

#include "fast_numbers.h"

namespace nf {
namespace {

// Returns a single time as a number: Python takes a tenth of NumPy's time for it.
PyObject* given_times(std::span<const double> times) {
    if (times.size() == 1) return PyFloat_FromDouble(times[0]);
    Py_INCREF(float64);
    const auto n = static_cast<npy_intp>(times.size());
    PyObject* const made = new_array(1, &n, float64);
    if (made) std::copy(times.begin(), times.end(), static_cast<double*>(PyArray_DATA(array(made))));
    return made;
}

// Calls the table's function of times. A new reference; null: a Python error is set.
PyObject* called_at(PyObject* own_time, std::span<const double> times) {
    const Reference given(given_times(times));
    return given.object ? PyObject_CallOneArg(PyTuple_GET_ITEM(own_time, 0), given.object) : nullptr;
}

void level_row(PyObject* own_time, std::span<const double> levels, double* row) {
    const auto* const ends = static_cast<const double*>(PyArray_DATA(array(PyTuple_GET_ITEM(own_time, 2))));
    for (int c = 0; c < kColumns; ++c) {
        row[c] = ends[c];
        for (size_t k = 0; k < levels.size() && row[c] == 0; ++k) {
            const double factor = ends[(k + 1) * kColumns + static_cast<size_t>(c)];
            if (factor != 0) row[c] = levels[k] * factor;
        }
    }
    PyObject* const range = PyTuple_GET_ITEM(own_time, 3);
    if (range == Py_None) return;
    double* const out = row + kAffine[0];
    for (int c = 0; c <= kZ + 1; ++c) out[c] *= PyFloat_AsDouble(PyTuple_GET_ITEM(range, 0));
    out[0] += PyFloat_AsDouble(PyTuple_GET_ITEM(range, 1));
}

// Makes rows of the levels that the function gives. False: it raised, and its Python error is set.
bool rows_of_levels(PyObject* own_time, std::span<const double> times, double* rows) {
    constexpr Py_ssize_t kMostLevels = 4;
    const Reference levels(called_at(own_time, times));
    if (!levels.object) return false;
    const Py_ssize_t n = std::min(PyTuple_GET_SIZE(levels.object), kMostLevels);
    double one[kMostLevels];
    for (size_t b = 0; b < times.size(); ++b) {
        for (Py_ssize_t k = 0; k < n; ++k) {
            PyObject* const level = PyTuple_GET_ITEM(levels.object, k);
            one[k] =
                times.size() > 1 ? static_cast<const double*>(PyArray_DATA(array(level)))[b] : PyFloat_AsDouble(level);
        }
        level_row(own_time, std::span(one, static_cast<size_t>(n)), rows + kColumns * b);
    }
    return true;
}

bool is_single(double number) { return std::fabs(number) <= std::numeric_limits<float>::max(); }

// Makes rows of columns: each is constant + slope t, or one of float64 (n,) that the function gives, in their order.
// Those after the active ones are only looked at. All are numbers that a float holds; else false, or with a Python
// error, that of the function.
bool rows_of_columns(PyObject* own_time, std::span<const double> times, uint64_t active, double* rows) {
    PyObject* const columns = PyTuple_GET_ITEM(own_time, 3);
    Reference given(nullptr);
    Py_ssize_t next = 0;
    int c = -1;
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(columns); ++k) {
        PyObject* const affine = PyTuple_GET_ITEM(columns, k);
        for (++c; c < kColumns && !counts(active, c);) ++c;
        View v{};
        if (affine == Py_None) {
            if (!given.object) given.object = called_at(own_time, times);
            if (!given.object || !view(PyTuple_GET_ITEM(given.object, next++), v) || v.is_tensor ||
                v.kind != Kind::f64 || v.ndim != 1 || v.count != static_cast<int64_t>(times.size()))
                return false;
        }
        for (size_t b = 0; b < times.size(); ++b) {
            const double number = v.data ? reinterpret_cast<const double*>(v.data)[b]
                                         : PyFloat_AS_DOUBLE(PyTuple_GET_ITEM(affine, 0)) +
                                               PyFloat_AS_DOUBLE(PyTuple_GET_ITEM(affine, 1)) * times[b];
            if (!is_single(number)) return false;
            if (c < kColumns) rows[kColumns * b + static_cast<size_t>(c)] = number;
        }
    }
    return true;
}

}  // namespace
}  // namespace nf
