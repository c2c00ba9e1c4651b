// SPDX-License-Identifier: Apache-2.0
// The Python boundary. run takes the bytes of records (core/), which call/packed.py packs after the checks. The
// fast path (fast_path.cpp) adds its functions. The rest are settings.
#define NF_MODULE
#include <cstddef>
#include <cstring>
#include <mutex>

#include "../cpu/dispatch.h"
#include "../cpu/pool.h"
#include "../run/memory.h"
#include "../run/run.h"
#include "../xla/xla.h"
#include "arrays.h"
#include "interrupts.h"
#include "python.h"

namespace nf {

PyObject* new_array(int ndim, const npy_intp* shape, PyArray_Descr* dtype) {
    npy_intp bytes = PyDataType_ELSIZE(dtype);
    for (int axis = 0; axis < ndim; ++axis)
        if (__builtin_mul_overflow(bytes, shape[axis], &bytes)) bytes = 0;  // NumPy refuses it
    PyObject* const handler = memory_handler(static_cast<size_t>(bytes));
    PyObject* const before = handler ? PyDataMem_SetHandler(handler) : nullptr;
    PyObject* made = PyArray_NewFromDescr(&PyArray_Type, dtype, ndim, shape, nullptr, nullptr, 0, nullptr);
    if (before) {
        Py_XDECREF(PyDataMem_SetHandler(before));
        Py_DECREF(before);
    }
    return made;
}

namespace {

// run(operation, record, ..), without the GIL.
PyObject* py_run(PyObject*, PyObject* const* arguments, Py_ssize_t n) {
    const char* name = n ? PyUnicode_AsUTF8(arguments[0]) : "";
    if (!name) return nullptr;
    const Operation* operation = find_operation(name);
    if (!operation) return PyErr_Format(PyExc_TypeError, "no operation \"%s\"", name);
    alignas(Call) char bytes[kMostRecords][kMostBytes];
    const void* records[kMostRecords];
    for (Py_ssize_t i = 0; i < kMostRecords; ++i) {
        const size_t size = operation->sizes[static_cast<size_t>(i)];
        PyObject* const given = i + 1 < n ? arguments[1 + i] : nullptr;
        if (given ? !PyBytes_Check(given) || PyBytes_GET_SIZE(given) != static_cast<Py_ssize_t>(size) : size != 0)
            return PyErr_Format(PyExc_TypeError, "%s: expected %zu bytes as record %zd", name, size, i + 1);
        if (given) std::memcpy(bytes[i], PyBytes_AS_STRING(given), size);
        records[i] = bytes[i];
    }
    return run_call(true, [&](const GoOn& go_on) { return operation->run(records, go_on); }) ? Py_NewRef(Py_None)
                                                                                             : nullptr;
}

PyObject* py_empty(PyObject*, PyObject* args) {
    PyArray_Dims shape{};
    PyArray_Descr* dtype;
    if (!PyArg_ParseTuple(args, "O&O&", PyArray_IntpConverter, &shape, PyArray_DescrConverter, &dtype)) {
        PyDimMem_FREE(shape.ptr);
        return nullptr;
    }
    PyObject* made = new_array(shape.len, shape.ptr, dtype);
    PyDimMem_FREE(shape.ptr);
    return made;
}

// copy(from, to): between two layouts, which share no memory. Returns False if they are not of one shape and dtype of
// calls.
PyObject* py_copy(PyObject*, PyObject* const* arguments, Py_ssize_t n) {
    if (n != 2 || !PyArray_Check(arguments[0]) || !PyArray_Check(arguments[1])) Py_RETURN_FALSE;
    View from, to;
    Copy copy;
    auto* const target = reinterpret_cast<PyArrayObject*>(arguments[1]);
    view_array(arguments[1], to);
    if (!view_strided(arguments[0], from, copy) || from.kind != to.kind || from.ndim != to.ndim ||
        !from.same_shape(to) || !PyArray_ISNOTSWAPPED(target) || !to.writable)
        Py_RETURN_FALSE;
    copy.to = to.data;
    std::copy_n(PyArray_STRIDES(target), to.ndim, copy.to_strides);
    return run_copy(copy, from.count) ? Py_NewRef(Py_True) : nullptr;
}

PyObject* py_xla_handler(PyObject*, PyObject*) {
    return PyCapsule_New(reinterpret_cast<void*>(xla::run), "xla._CUSTOM_CALL_TARGET", nullptr);
}

// ------------------------------------------------------------------------------------------------ settings

PyObject* py_isas(PyObject*, PyObject*) {
    PyObject* dict = PyDict_New();
    for (const Isa& isa : isas())
        if (dict && PyDict_SetItemString(dict, isa.kernels->name, isa.supported ? Py_True : Py_False)) Py_CLEAR(dict);
    return dict;
}

PyObject* py_isa(PyObject*, PyObject*) { return PyUnicode_FromString(kernels().name); }

PyObject* py_use_isa(PyObject*, PyObject* name) {
    const char* wanted = PyUnicode_AsUTF8(name);
    if (!wanted) return nullptr;
    for (const Isa& isa : isas()) {
        if (!isa.supported || std::strcmp(isa.kernels->name, wanted) != 0) continue;
        use_kernels(*isa.kernels);
        Py_RETURN_NONE;
    }
    PyObject* known = py_isas(nullptr, nullptr);
    PyErr_Format(PyExc_ValueError, "no instruction set %R here: built, and supported by this processor: %R", name,
                 known);
    Py_XDECREF(known);
    return nullptr;
}

PyObject* py_num_threads(PyObject*, PyObject*) { return PyLong_FromLong(num_threads()); }

PyObject* py_set_num_threads(PyObject*, PyObject* n) {
    const long value = PyLong_AsLong(n);
    if (value == -1 && PyErr_Occurred()) return nullptr;
    set_num_threads(static_cast<int>(value));
    Py_RETURN_NONE;
}

PyMethodDef methods[] = {{"run", fast_call(py_run), METH_FASTCALL, nullptr},
                         {"empty", py_empty, METH_VARARGS, nullptr},
                         {"copy", fast_call(py_copy), METH_FASTCALL, nullptr},
                         {"xla_handler", py_xla_handler, METH_NOARGS, nullptr},
                         {"isas", py_isas, METH_NOARGS, nullptr},
                         {"isa", py_isa, METH_NOARGS, nullptr},
                         {"use_isa", py_use_isa, METH_O, nullptr},
                         {"num_threads", py_num_threads, METH_NOARGS, nullptr},
                         {"set_num_threads", py_set_num_threads, METH_O, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

// -1: a Python error is set.
int execute(PyObject* module) {
    import_array1(-1);
    static std::once_flag once;  // the module may be loaded again
    std::call_once(once, [] {
        init_pool();
        init_memory();
    });
    return init_fast_path(module) ? 0 : -1;
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(execute)},
#ifdef Py_mod_multiple_interpreters
                            {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
                            {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
                            {0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "noisefuse._native", nullptr, 0, methods, slots, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace nf

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&nf::definition); }
