// SPDX-License-Identifier: Apache-2.0
// Arrays of any layout, and real numbers, of the fast path.
#pragma once
#include <memory>
#include <new>

#include "../core/narrow.h"
#include "fast_noise.h"

namespace nf {
namespace {

// Copies what `view_any` described to new memory. False: there is none, or a Python error is set.
bool copy_to(Scratch& scratch, Copy& copy, View& v) {
    if (!scratch.take(static_cast<size_t>(v.bytes))) return false;
    copy.to = v.data = scratch.data;
    strides_of(copy.shape, copy.axes, copy.item, false, copy.to_strides);
    return run_copy(copy, v.count);
}

// A new reference to a C-contiguous, aligned copy of an array with swapped bytes. Null, without a Python error: there
// is none, or the array is large. NumPy swaps bytes, and does not listen to Ctrl-C meanwhile.
PyObject* native_copy(PyArrayObject* a) {
    constexpr npy_intp kMost = 1 << 16;
    if (kind_of(a) == Kind::other || PyArray_SIZE(a) > kMost) return nullptr;
    PyArray_Descr* const native = PyArray_DescrFromType(PyArray_TYPE(a));
    PyObject* const made = native ? PyArray_FromArray(a, native, NPY_ARRAY_CARRAY_RO) : nullptr;
    if (!made) PyErr_Clear();
    return made;
}

constexpr int64_t kFewTurned = 1 << 15;  // elements, whose copies lie in the caches

// An array as kernels read it: its own memory, or a copy in C's order.
class FastArray {
  public:
    View v{};

    FastArray() = default;
    FastArray(const FastArray&) = delete;
    ~FastArray() { Py_XDECREF(native_); }

    // False, perhaps with a Python error: it is not plain, but `watched` may be watched by autograd. turned: where
    // given, many elements whose planes are turned stay as they lie, as x.
    [[gnu::noinline]] bool read(PyObject* o, PyObject* watched = nullptr, Turned* turned = nullptr) {
        constexpr int64_t kMost = int64_t{1} << 34;  // elements: beyond are errors, which should not wait for a copy
        if (see(o, watched)) return true;
        if (PyArray_CheckExact(o) && PyArray_ISBYTESWAPPED(array(o)))
            return (native_ = native_copy(array(o))) && see(native_);
        Copy copy;
        if (!view_any(o, v, copy, watched) || v.count > kMost || !v.keep_shape(lengths_)) return false;
        if (turned && v.count > kFewTurned && is_turned(v, copy, *turned)) return turned->inputs = 1u << kX, true;
        return copy_to(scratch_, copy, v);
    }

    // The same without a copy.
    [[gnu::noinline]] bool see(PyObject* o, PyObject* watched = nullptr) {
        return view(o, v, watched) && v.keep_shape(lengths_);
    }

  private:
    Scratch scratch_;
    PyObject* native_ = nullptr;
    int64_t lengths_[kMostAxes];
};

bool is_real(PyObject* o) { return PyFloat_Check(o) || PyArray_IsScalar(o, Floating); }

// Whether it is an integer of 64 bits: NumPy makes objects of longer ones, which are refused.
bool is_integer(PyObject* o) {
    int overflow = 0;
    if (PyLong_CheckExact(o)) PyLong_AsLongLongAndOverflow(o, &overflow);
    return PyLong_CheckExact(o) && overflow == 0;
}

// False, without a Python error: it is no number of a double.
bool take_real(PyObject* o, double& number) {
    number = PyFloat_AsDouble(o);
    const bool failed = PyErr_Occurred();
    PyErr_Clear();
    return !failed;
}

// Copies an array of floats.
void copy_reals(const View& reals, double* to) {
    const auto each = [&](auto zero, const auto& number) {
        const auto* const from = reinterpret_cast<const decltype(zero)*>(reals.data);
        for (int64_t i = 0; i < reals.count; ++i) to[i] = static_cast<double>(number(from[i]));
    };
    const auto itself = [](auto number) { return number; };
    switch (reals.kind) {
        case Kind::f64:
            return each(0.0, itself);
        case Kind::f32:
            return each(0.0f, itself);
        case Kind::f16:
            return each(uint16_t{0}, half_to_float);
        default:
            return each(uint16_t{0}, bfloat16_to_float);
    }
}

// Real numbers: one, or those of an array or a list. They are copied: kernels read the numbers that were checked.
class FastReals {
  public:
    std::unique_ptr<double[]> values;
    int64_t count = 0;
    int ndim = 0;
    bool is_tensor = false;

    // False, without a Python error: they are not plain.
    bool parse(PyObject* o) {
        if (is_real(o) || is_integer(o)) return hold(1) && take_real(o, values[0]);
        if (PyList_CheckExact(o) || PyTuple_CheckExact(o)) return listed(o);
        View v;
        if (!view(o, v) || !is_float(v.kind) || !hold(v.count)) return false;
        copy_reals(v, values.get());
        ndim = v.ndim, shape_ = v.shape, is_tensor = v.is_tensor;
        return true;
    }

    // Whether all lie between these; NaN does not.
    bool within(double least, double most) const {
        bool good = true;
        for (int64_t i = 0; i < count; ++i) {
            const double number = values[static_cast<size_t>(i)];
            good &= number >= least && number <= most;
        }
        return good;
    }

    // How many of an array's elements each number covers: their shape begins the array's, but for axes of 1 at the end.
    // 0: it does not.
    int64_t covers(int of_ndim, const int64_t* of_shape, int64_t elements) const {
        int axes = ndim;
        while (axes && shape_[axes - 1] == 1) --axes;
        const bool good = axes <= of_ndim && std::equal(shape_, shape_ + axes, of_shape) && elements % count == 0;
        return good ? elements / count : 0;
    }

    // Makes n of them: each covers as many of n. False: there is no memory.
    bool spread(int64_t n) {
        const int64_t each = n / count;
        const std::unique_ptr<double[]> few = std::move(values);
        if (!hold(n)) return false;
        for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i)] = few[static_cast<size_t>(i / each)];
        return true;
    }

    // Whether it is one number, or their shape begins this one.
    bool begins(int of_ndim, const int64_t* of_shape) const {
        return count == 1 || (ndim <= of_ndim && std::equal(shape_, shape_ + ndim, of_shape));
    }

    double of(int64_t i) const { return values[static_cast<size_t>(count == 1 ? 0 : i)]; }

  private:
    int64_t length_;
    const int64_t* shape_ = nullptr;

    bool hold(int64_t n) {
        constexpr int64_t kMost = 1 << 20;  // more are checked in pieces, between which Ctrl-C is heard
        count = n;
        if (n <= kMost) values.reset(new (std::nothrow) double[static_cast<size_t>(n)]);
        return values != nullptr;
    }

    bool listed(PyObject* o) {
        const Reference numbers(as_tuple(o));
        length_ = numbers.object ? PyTuple_GET_SIZE(numbers.object) : 0;
        ndim = 1, shape_ = &length_;
        bool good = length_ > 0 && hold(length_);
        for (int64_t i = 0; i < length_ && good; ++i) {
            PyObject* const one = PyTuple_GET_ITEM(numbers.object, i);
            good = is_real(one) && take_real(one, values[static_cast<size_t>(i)]);
        }
        return good;
    }
};

}  // namespace
}  // namespace nf
