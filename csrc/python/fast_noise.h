// SPDX-License-Identifier: Apache-2.0
// Plain Noises of the fast path: one, or a list with one for each sample. And what its files share.
#pragma once
#include <bit>
#include <memory>

#include "../cpu/dispatch.h"
#include "../run/run.h"
#include "interrupts.h"
#include "torch.h"

namespace nf {
namespace {

PyArray_Descr *float32, *float64, *int64, *boolean;
PyObject *noise_type, *name_reduction, *name_sum, *name_mean, *name_density, *name_full, *name_no_constants,
    *name_squared, *name_partial;
// The offsets of a Noise's numbers.
Py_ssize_t at_seed, at_sample, at_step, at_stream, at_window_shape, at_window_start;

PyArrayObject* array(PyObject* o) { return reinterpret_cast<PyArrayObject*>(o); }

constexpr int64_t kAtOnce = 4096;  // elements that take less time than giving the interpreter away

// False: a Python error is set.
template <class Run>
bool run_plain(const Call& call, Run run) {
    return run_call(call.batch * call.size > kAtOnce, [&](const GoOn& go_on) { return run(call, go_on); });
}

// A new reference, or null for all but lists and tuples. (Other threads may change lists while kernels run.)
PyObject* as_tuple(PyObject* arrays) {
    if (PyTuple_CheckExact(arrays)) return Py_NewRef(arrays);
    PyObject* const made = PyList_CheckExact(arrays) ? PyList_AsTuple(arrays) : nullptr;
    PyErr_Clear();
    return made;
}

// Whether it is an int, or a NumPy integer, of 64 bits.
bool take_integer(PyObject* o, int64_t& value) {
    int overflow = 0;
    if (PyLong_CheckExact(o)) {
        value = PyLong_AsLongLongAndOverflow(o, &overflow);
        return !overflow;
    }
    if (!PyArray_IsScalar(o, Integer)) return false;
    const Reference exact(PyNumber_Index(o));
    if (exact.object) value = PyLong_AsLongLongAndOverflow(exact.object, &overflow);
    PyErr_Clear();  // a timedelta, which is a NumPy integer too, raises
    return exact.object && !overflow;
}

// The values that linear combinations of the row read, a bit for each slot.
unsigned slots_read(uint64_t active) {
    constexpr unsigned kOfClean = (1u << kD) - 1, kAll = (1u << kSlots) - 1;
    unsigned slots = static_cast<unsigned>(active >> (kClean + 1)) & kOfClean;
    for (int first : kAffine) slots |= static_cast<unsigned>(active >> (first + 1)) & kAll;
    return slots;
}

// Whether a linear combination of the row reads this value.
bool reads(uint64_t active, int slot) { return slots_read(active) >> slot & 1; }

// Whether each array that a row reads is there.
bool has_inputs(const Call& call) {
    for (unsigned left = slots_read(call.active) & ~(1u << kD | 1u << kZ); left; left &= left - 1)
        if (!call.in[std::countr_zero(left)]) return false;
    return true;
}

// Exact type only: a subclass may hold unchecked numbers.
bool is_noise(PyObject* o) { return reinterpret_cast<PyObject*>(Py_TYPE(o)) == noise_type; }

const Field& field_of(const Call& call, int64_t sample) { return call.fields[call.field_per_sample ? sample : 0]; }

// A Noise for the samples of a call, or a list or tuple with one for each.
class FastNoise {
  public:
    FastNoise() = default;
    FastNoise(const FastNoise&) = delete;
    ~FastNoise() { Py_XDECREF(names_); }

    // Parses it for samples of this shape. Stream -1: the noise's own, at its own step. Otherwise that stream, at the
    // steps noise.step + row. False: declined; no Python error is set.
    bool parse(PyObject* noise, int stream, Call& call, int ndim, const int64_t* shape) {
        call.draw = Draw::normal;
        call.step_by_index = stream >= 0;
        call.fields = &one_;
        const auto take = [&](Field& field, PyObject* name, int64_t rows) {
            field.run = call.size;
            return named(field, name, rows, stream, call.n_rows) && window(field, name, ndim, shape);
        };
        if (call.size > kElements) return false;
        if (is_noise(noise)) return one_ = {}, plain(take(one_, noise, call.batch));
        if (!(names_ = as_tuple(noise)) || PyTuple_GET_SIZE(names_) != call.batch) return false;
        several_.reset(new (std::nothrow) Field[static_cast<size_t>(call.batch)]());
        if (!several_) return false;
        for (int64_t b = 0; b < call.batch; ++b)
            if (!plain(take(several_[b], PyTuple_GET_ITEM(names_, b), 1))) return false;
        call.fields = several_.get();
        call.field_per_sample = call.batch > 1;
        return true;
    }

    // The elements of the windows' full samples: 0, there is no window; -1, they differ.
    int64_t whole = kUnseen;

    // Draws from another stream, or from a later step.
    void use(Call& call, uint32_t stream) {
        for_each(call, [=](Field& field) { field.stream = stream; });
    }
    void later(Call& call, uint32_t steps) {
        for_each(call, [=](Field& field) { field.step += steps; });
    }

    // Draws uniform numbers: from their own stream if the noise has stream 0.
    void use_uniform(Call& call) {
        call.draw = Draw::uniform;
        for_each(call, [](Field& field) { field.stream = field.stream == 0 ? kUniformStream : field.stream; });
    }

  private:
    static constexpr uint32_t kUniformStream = 7;           // as in noise.py
    static constexpr int64_t kElements = int64_t{1} << 34;  // of a sample
    static constexpr int64_t kUnseen = -2;
    Field one_;  // written only where it is read: it is large
    std::unique_ptr<Field[]> several_;
    PyObject* names_ = nullptr;  // a tuple

    template <class Change>
    void for_each(const Call& call, const Change& change) {
        Field* const fields = several_ ? several_.get() : &one_;
        for (int64_t n = call.field_per_sample ? call.batch : 1, i = 0; i < n; ++i) change(fields[i]);
    }

    static bool plain(bool found) {
        if (!found) PyErr_Clear();
        return found;
    }

    static PyObject* part(PyObject* noise, Py_ssize_t at) {
        return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(noise) + at);
    }

    static bool named(Field& field, PyObject* noise, int64_t rows, int stream, int64_t n_rows) {
        uint64_t step, own_stream;
        if (!is_noise(noise) || !number(part(noise, at_seed), field.seed) ||
            !samples(field, part(noise, at_sample), rows) || !number(part(noise, at_step), step) ||
            !number(part(noise, at_stream), own_stream))
            return false;
        if (stream >= 0 && (own_stream != 0 || step + static_cast<uint64_t>(n_rows) > uint64_t{1} << 32)) return false;
        field.step = static_cast<uint32_t>(step);
        field.stream = stream >= 0 ? static_cast<uint32_t>(stream) : static_cast<uint32_t>(own_stream);
        return field.sample + static_cast<uint64_t>(rows) <= uint64_t{1} << 56;
    }

    // Finds the sample's place in the window's full one, if there is a window: see `window_runs` of
    // call/description.py. Noise has checked that 0 <= start <= full, and that the full sample has at most 2^51
    // elements.
    bool window(Field& field, PyObject* noise, int ndim, const int64_t* shape) {
        PyObject *const full = part(noise, at_window_shape), *const start = part(noise, at_window_start);
        if (full == Py_None) return note(0);
        for (PyObject* given : {full, start})
            if (!given || !PyTuple_CheckExact(given) || PyTuple_GET_SIZE(given) != ndim) return false;
        int64_t stride = 1;
        bool whole = true;  // the axes after this one
        field.run = 1;
        for (int axis = ndim - 1; axis >= 0; --axis) {
            int64_t n, first;
            if (!item(full, axis, n) || !item(start, axis, first) || first + shape[axis] > n) return false;
            field.start += first * stride;
            if (whole) {
                field.run *= shape[axis];
                whole = shape[axis] == n;
            } else if (shape[axis] != 1 && !outer(field, shape[axis], stride)) {
                return false;
            }
            stride *= n;
        }
        std::reverse(field.shape, field.shape + field.axes);
        std::reverse(field.stride, field.stride + field.axes);
        return note(stride) && stride <= kElements;
    }

    bool note(int64_t of) {
        whole = whole == kUnseen || whole == of ? of : -1;
        return true;
    }

    // Adds an axis over runs, from the last to the first; contiguous axes are merged.
    static bool outer(Field& field, int64_t length, int64_t stride) {
        const int64_t last = field.axes - 1;
        if (last >= 0 && field.shape[last] * field.stride[last] == stride) {
            field.shape[last] *= length;
            return true;
        }
        if (field.axes == kAxes) return false;
        field.shape[field.axes] = length, field.stride[field.axes++] = stride;
        return true;
    }

    static bool item(PyObject* tuple, int axis, int64_t& value) {
        return take_integer(PyTuple_GET_ITEM(tuple, axis), value) && value >= 0;
    }

    // Takes the first id, or an array of ids, one for each sample, which Noise has checked and keeps.
    static bool samples(Field& field, PyObject* ids, int64_t rows) {
        if (!ids || !PyArray_CheckExact(ids)) return number(ids, field.sample);
        if (PyArray_TYPE(array(ids)) != NPY_UINT64 || PyArray_SIZE(array(ids)) != rows) return false;
        field.samples = static_cast<const uint64_t*>(PyArray_DATA(array(ids)));
        return true;
    }

    // False: the Noise was not made by its constructor.
    static bool number(PyObject* o, uint64_t& value) {
        if (!o || !PyLong_CheckExact(o)) return false;
        value = PyLong_AsUnsignedLongLong(o);
        return !PyErr_Occurred();
    }
};

}  // namespace
}  // namespace nf
