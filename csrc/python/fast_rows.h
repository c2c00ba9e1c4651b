// SPDX-License-Identifier: Apache-2.0
// Rows of times and levels of the fast path, column by column, from what a table says of its own time (`timed` of
// fast_call.h).
#pragma once
#include <cmath>
#include <limits>
#include <span>

#include "../cpu/float_mode.h"
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

// Rows of the call's arithmetic, of which only the active columns are written.
struct OwnRows {
    double* wide;    // (kColumns, count); or null:
    float* rounded;  // these ones are
    int64_t count;
    bool alike;  // whether all rows are the same

    // number(b) is that of row b.
    template <class Number>
    void write(int column, const Number& number) const {
        const FloatMode mode;
        wide ? put(wide + column * count, count, number) : put(rounded + column * count, count, number);
    }

  private:
    template <class Real, class Number>
    static void put(Real* to, int64_t n, const Number& number) {
        for (int64_t b = 0; b < n; ++b) to[b] = static_cast<Real>(number(b));
    }
};

// The numbers of one level, `step` apart: one for each row, or one for all.
struct Level {
    const double* each;
    int64_t step;
};

// Makes rows of levels. A column is constant, or a multiple of one level.
void rows_of_levels(PyObject* own_time, std::span<const Level> levels, uint64_t active, const OwnRows& rows) {
    const auto* const ends = static_cast<const double*>(PyArray_DATA(array(PyTuple_GET_ITEM(own_time, 2))));
    PyObject* const range = PyTuple_GET_ITEM(own_time, 3);
    const bool scales = range != Py_None;
    const double scale = scales ? PyFloat_AsDouble(PyTuple_GET_ITEM(range, 0)) : 1,
                 offset = scales ? PyFloat_AsDouble(PyTuple_GET_ITEM(range, 1)) : 0;
    for (int c = 0; c < kColumns; ++c) {
        if (!counts(active, c)) continue;
        const bool is_scaled = scales && c >= kAffine[0] && c <= kAffine[0] + 1 + kZ;
        rows.write(c, [&](int64_t b) {
            double number = ends[c];
            for (size_t k = 0; k < levels.size() && number == 0; ++k) {
                const double factor = ends[static_cast<int>(k + 1) * kColumns + c];
                if (factor != 0) number = levels[k].each[b * levels[k].step] * factor;
            }
            if (is_scaled) number *= scale;
            return is_scaled && c == kAffine[0] ? number + offset : number;
        });
    }
}

// The same of the levels that the function gives. False: it raised, and its Python error is set.
bool rows_of_levels(PyObject* own_time, std::span<const double> times, uint64_t active, const OwnRows& rows) {
    constexpr Py_ssize_t kMostLevels = 4;
    const Reference levels(called_at(own_time, times));
    if (!levels.object) return false;
    const Py_ssize_t n = std::min(PyTuple_GET_SIZE(levels.object), kMostLevels);
    double one[kMostLevels];
    Level each[kMostLevels];
    for (Py_ssize_t k = 0; k < n; ++k) {
        PyObject* const level = PyTuple_GET_ITEM(levels.object, k);
        if (times.size() == 1) one[k] = PyFloat_AsDouble(level);
        each[k] = {times.size() == 1 ? one + k : static_cast<const double*>(PyArray_DATA(array(level))), 1};
    }
    rows_of_levels(own_time, std::span(each, static_cast<size_t>(n)), active, rows);
    return true;
}

bool is_single(double number) { return std::fabs(number) <= std::numeric_limits<float>::max(); }

// Makes rows of columns: each is constant + slope t, or one of float64 (n,) that the function gives, in their order.
// Those after the active ones are only looked at. All are numbers that a float holds; else false, or with a Python
// error, that of the function. first, last: of the times.
bool rows_of_columns(PyObject* own_time, std::span<const double> times, double first, double last, uint64_t active,
                     OwnRows& rows) {
    PyObject* const columns = PyTuple_GET_ITEM(own_time, 3);
    Reference given(nullptr);
    Py_ssize_t next = 0;
    int c = -1;
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(columns); ++k) {
        PyObject* const affine = PyTuple_GET_ITEM(columns, k);
        for (++c; c < kColumns && !counts(active, c);) ++c;
        if (affine != Py_None) {
            const double constant = PyFloat_AS_DOUBLE(PyTuple_GET_ITEM(affine, 0)),
                         slope = PyFloat_AS_DOUBLE(PyTuple_GET_ITEM(affine, 1));
            if (!is_single(constant + slope * first) || !is_single(constant + slope * last)) return false;
            if (c >= kColumns) continue;
            rows.alike &= slope == 0;
            rows.write(c, [=, t = times.data()](int64_t b) { return constant + slope * t[b]; });
            continue;
        }
        View v;
        if (!given.object) given.object = called_at(own_time, times);
        if (!given.object || !view(PyTuple_GET_ITEM(given.object, next++), v) || v.is_tensor || v.kind != Kind::f64 ||
            v.ndim != 1 || v.count != static_cast<int64_t>(times.size()))
            return false;
        const std::span<const double> each(reinterpret_cast<const double*>(v.data), times.size());
        bool good = true;
        for (const double number : each) good &= is_single(number);
        if (!good) return false;
        if (c >= kColumns) continue;
        rows.alike = false;
        rows.write(c, [&](int64_t b) { return each[static_cast<size_t>(b)]; });
    }
    return true;
}

}  // namespace
}  // namespace nf
