// SPDX-License-Identifier: Apache-2.0
// Results of the fast path: a call that is declined, and numbers.
#pragma once
#include <algorithm>
#include <vector>

#include "fast_outputs.h"

namespace nf {
namespace {

// Declines a call that is not plain: NotImplemented; or null, if the function that `timed` called set a Python error.
PyObject* declined() {
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NOTIMPLEMENTED;
}

// Numbers that are returned, float64 (n,); of tensors a tensor, which may be of float32. Or one of them, a float, or a
// tensor without axes.
class FastNumbers {
  public:
    std::vector<double> values;

    FastNumbers(int64_t n, bool one) : values(static_cast<size_t>(n)), n_(n), one_(one) {}
    FastNumbers(const FastNumbers&) = delete;

    // Gives them another shape, which has as many.
    void reshape(int ndim, const int64_t* shape) { ndim_ = ndim, shape_ = shape; }

    // A new reference; null: a Python error is set.
    PyObject* give(bool is_tensor, bool wide) const {
        if (one_ && !is_tensor) return PyFloat_FromDouble(values[0]);
        char* data;
        const int ndim = one_ ? 0 : ndim_;
        PyObject* const made = new_one({wide ? Kind::f64 : Kind::f32, is_tensor, ndim, shape_, n_, float64}, data);
        if (made && wide) std::copy(values.begin(), values.end(), reinterpret_cast<double*>(data));
        if (made && !wide)
            std::transform(values.begin(), values.end(), reinterpret_cast<float*>(data),
                           [](double value) { return static_cast<float>(value); });
        return made;
    }

  private:
    int64_t n_;
    bool one_;
    int ndim_ = 1;
    const int64_t* shape_ = &n_;
};

}  // namespace
}  // namespace nf
