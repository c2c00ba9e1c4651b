// SPDX-License-Identifier: Apache-2.0
// The Python boundary. run takes the bytes of a Call (core/call.h), which call/packed.py packs after the checks. row,
// random, mse, density and its gradient are the fast path (fast_path.cpp). The rest are settings.
#define NF_MODULE
#include <cmath>
#include <cstddef>
#include <cstring>
#include <mutex>

#include "../core/philox.h"
#include "../cpu/dispatch.h"
#include "../cpu/lane_scalar.h"
#include "../cpu/pool.h"
#include "../run/memory.h"
#include "../run/race.h"
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

// False: a Python error is set.
template <class T>
bool unpack(PyObject* bytes, T& call, const char* name = "Call") {
    if (!PyBytes_Check(bytes) || PyBytes_GET_SIZE(bytes) != Py_ssize_t{sizeof call}) {
        PyErr_Format(PyExc_TypeError, "expected the %zu bytes of a %s", sizeof call, name);
        return false;
    }
    std::memcpy(&call, PyBytes_AS_STRING(bytes), sizeof call);
    return true;
}

// run(operation, call, ..), without the GIL.
PyObject* py_run(PyObject*, PyObject* const* arguments, Py_ssize_t n) {
    const char* name = n ? PyUnicode_AsUTF8(arguments[0]) : "";
    if (!name) return nullptr;
    const Operation* operation = find_operation(name);
    if (!operation || operation->calls != n - 1)
        return PyErr_Format(PyExc_TypeError, "no operation \"%s\" of %zd calls", name, n - 1);
    Call calls[kMostCalls];
    for (int i = 0; i < operation->calls; ++i)
        if (!unpack(arguments[1 + i], calls[i])) return nullptr;
    return run_call(true, [&](const GoOn& go_on) { return operation->run(calls, go_on); }) ? Py_NewRef(Py_None)
                                                                                           : nullptr;
}

// mask(call, masks), without the GIL.
PyObject* py_mask(PyObject*, PyObject* const* arguments, Py_ssize_t n) {
    Call call;
    Masks masks;
    if (n != 2) return PyErr_Format(PyExc_TypeError, "mask: expected 2 arguments, got %zd", n);
    if (!unpack(arguments[0], call) || !unpack(arguments[1], masks, "Masks")) return nullptr;
    const auto run = [&](const GoOn& go_on) { return run_masks(call, masks, go_on); };
    return run_call(true, run) ? Py_NewRef(Py_None) : nullptr;
}

// Runs the call that the bytes describe, without the GIL.
template <class Described, bool (*run)(const Described&, const GoOn&)>
PyObject* py_described(PyObject*, PyObject* bytes) {
    Described call;
    if (!PyBytes_Check(bytes) || PyBytes_GET_SIZE(bytes) != Py_ssize_t{sizeof call})
        return PyErr_Format(PyExc_TypeError, "expected %zu bytes", sizeof call);
    std::memcpy(&call, PyBytes_AS_STRING(bytes), sizeof call);
    return run_call(true, [&](const GoOn& go_on) { return run(call, go_on); }) ? Py_NewRef(Py_None) : nullptr;
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

constexpr int64_t kPhiloxChunk = 1 << 12;  // blocks: about 20 microseconds

PyObject* py_philox(PyObject*, PyObject* args) {
    PyArrayObject *counter, *key, *out;
    if (!PyArg_ParseTuple(args, "O!O!O!", &PyArray_Type, &counter, &PyArray_Type, &key, &PyArray_Type, &out))
        return nullptr;
    const auto *counters = static_cast<uint32_t*>(PyArray_DATA(counter)),
               *seeds = static_cast<uint32_t*>(PyArray_DATA(key));
    auto* const to = static_cast<uint32_t*>(PyArray_DATA(out));
    const auto blocks = [=](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const uint32_t *const c = counters + 4 * block, *const k = seeds + 2 * block;
            const RoundKeys keys(uint64_t{k[1]} << 32 | k[0]);
            const auto words = philox_rounds<Scalar>({{c[0], c[1], c[2], c[3]}}, keys, 0);
            std::memcpy(to + 4 * block, words.w, sizeof words);
        }
    };
    const int64_t n = PyArray_SIZE(counter) / 4;
    const auto run = [&](const GoOn& go_on) { return parallel_for(n, kPhiloxChunk, blocks, go_on); };
    return run_call(n > kPhiloxChunk, run) ? Py_NewRef(Py_None) : nullptr;
}

// The float64 normals of legacy.TorchCPU, n of them, a multiple of 16, from twice as many words. The C library computes
// them, as torch's do.
void torch_normals64(const uint64_t* words, double* out, int64_t n) {
    const auto uniform = [words](int64_t i) {
        return static_cast<double>((words[2 * i] << 32 | words[2 * i + 1]) & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
    };
    for (int64_t i = 0; i < n; i += i % 16 == 7 ? 9 : 1) {
        const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform(i))), theta = 6.283185307179586 * uniform(i + 8);
        out[i] = radius * std::cos(theta);
        out[i + 8] = radius * std::sin(theta);
    }
}

// torch_normals(words, out): arrays of uint64, and of float32 or float64.
PyObject* py_torch_normals(PyObject*, PyObject* args) {
    PyArrayObject *words, *out;
    if (!PyArg_ParseTuple(args, "O!O!", &PyArray_Type, &words, &PyArray_Type, &out)) return nullptr;
    const auto* const from = static_cast<uint64_t*>(PyArray_DATA(words));
    if (PyArray_TYPE(out) == NPY_DOUBLE)
        torch_normals64(from, static_cast<double*>(PyArray_DATA(out)), PyArray_SIZE(out));
    else
        kernels().torch_normals(from, static_cast<float*>(PyArray_DATA(out)), PyArray_SIZE(out));
    Py_RETURN_NONE;
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

PyCFunction fast_call(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {{"run", fast_call(py_run), METH_FASTCALL, nullptr},
                         {"mask", fast_call(py_mask), METH_FASTCALL, nullptr},
                         {"race", py_described<Race, run_race>, METH_O, nullptr},
                         {"cross_entropy", py_described<CrossEntropy, run_cross_entropy>, METH_O, nullptr},
                         {"pyramid", py_described<Pyramid, run_pyramid>, METH_O, nullptr},
                         {"empty", py_empty, METH_VARARGS, nullptr},
                         {"philox", py_philox, METH_VARARGS, nullptr},
                         {"torch_normals", py_torch_normals, METH_VARARGS, nullptr},
                         {"copy", fast_call(py_copy), METH_FASTCALL, nullptr},
                         {"row", fast_call(fast_row), METH_FASTCALL, nullptr},
                         {"random", fast_call(fast_random), METH_FASTCALL, nullptr},
                         {"mse", fast_call(fast_mse), METH_FASTCALL, nullptr},
                         {"density", fast_call(fast_density), METH_FASTCALL, nullptr},
                         {"density_gradient", fast_call(fast_density_gradient), METH_FASTCALL, nullptr},
                         {"divergence", fast_call(fast_divergence), METH_FASTCALL, nullptr},
                         {"tokens", fast_call(fast_tokens), METH_FASTCALL, nullptr},
                         {"categorical", fast_call(fast_categorical), METH_FASTCALL, nullptr},
                         {"masked_cross_entropy", fast_call(fast_cross_entropy), METH_FASTCALL, nullptr},
                         {"token_step", fast_call(fast_token_step), METH_FASTCALL, nullptr},
                         {"walk", fast_call(fast_walk), METH_FASTCALL, nullptr},
                         {"xla_handler", py_xla_handler, METH_NOARGS, nullptr},
                         {"isas", py_isas, METH_NOARGS, nullptr},
                         {"isa", py_isa, METH_NOARGS, nullptr},
                         {"use_isa", py_use_isa, METH_O, nullptr},
                         {"num_threads", py_num_threads, METH_NOARGS, nullptr},
                         {"set_num_threads", py_set_num_threads, METH_O, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

// -1: a Python error is set.
int execute(PyObject*) {
    import_array1(-1);
    static std::once_flag once;  // the module may be loaded again
    std::call_once(once, [] {
        init_pool();
        init_memory();
    });
    return init_fast_path() ? 0 : -1;
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
