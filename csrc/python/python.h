// SPDX-License-Identifier: Apache-2.0
// CPython's and NumPy's C API, and the boundary's shared declarations. module.cpp imports NumPy and defines NF_MODULE.
#pragma once
#include <Python.h>
#if PY_VERSION_HEX < 0x030C0000
#include <structmember.h>  // class members
#endif
#define PY_ARRAY_UNIQUE_SYMBOL nf_numpy
#ifndef NF_MODULE
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

namespace nf {

// A reference that is owned, or null.
struct Reference {
    PyObject* object;
    explicit Reference(PyObject* o) : object(o) {}
    Reference(const Reference&) = delete;
    ~Reference() { Py_XDECREF(object); }
};

// A new C-contiguous array; steals dtype. Null: a Python error is set.
PyObject* new_array(int ndim, const npy_intp* shape, PyArray_Descr* dtype);

// fast_path.cpp: the module's functions, and their one-time look-ups. False: a Python error is set.
PyObject* fast_row(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_random(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_mse(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_density(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_density_gradient(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_divergence(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_tokens(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_categorical(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_cross_entropy(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_token_step(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_impulse(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_factors(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_rician(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* fast_walk(PyObject*, PyObject* const* args, Py_ssize_t n);
bool init_fast_path();

}  // namespace nf
