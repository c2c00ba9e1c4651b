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

// A function for METH_FASTCALL.
inline PyCFunction fast_call(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// Adds the functions of the fast path, after their one-time look-ups. False: a Python error is set.
bool init_fast_path(PyObject* module);

}  // namespace nf
