// SPDX-License-Identifier: Apache-2.0
// The Python boundary. `step` and `walk` take what backends/native.py passes on from ops.py, checked there; `q_sample` is
// a short cut for plain arguments, which it checks itself and declines (NotImplemented) when they are anything else.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <numpy/arrayobject.h>

#include <cstring>
#include <new>
#include <vector>

#include "core/philox.h"
#include "cpu/dispatch.h"
#include "cpu/lane_scalar.h"
#include "cpu/pool.h"

using namespace nf;

namespace {

// Elements for one thread: about 20 microseconds of noise. Walks multiply them by their times.
constexpr int64_t kChunk = 1 << 15;

PyObject *name_seed, *name_sample, *name_step, *name_stream, *name_window_shape;

PyArrayObject* array(PyObject* o) { return reinterpret_cast<PyArrayObject*>(o); }
void* data(PyObject* o) { return o == Py_None ? nullptr : PyArray_DATA(array(o)); }

DType dtype_of(PyObject* o) {
    switch (PyArray_TYPE(array(o))) {
        case NPY_FLOAT: return DType::f32;
        case NPY_DOUBLE: return DType::f64;
        case NPY_HALF: return DType::f16;
        case NPY_UBYTE: return DType::u8;
        default: return DType::bf16;  // a type number given at run time; ops.py lets no other dtype through
    }
}

// (seed, sample, ids or None, step, stream, start, run, shape, stride)
bool parse_field(PyObject* tuple, Field& f) {
    PyObject *ids, *shape, *stride;
    unsigned long long seed, sample;
    long long start, run;
    unsigned step, stream;
    if (!PyArg_ParseTuple(tuple, "KKOIILLOO", &seed, &sample, &ids, &step, &stream, &start, &run, &shape, &stride)) return false;
    f = {seed, sample, static_cast<const uint64_t*>(data(ids)), step, stream, start, run, static_cast<int>(PyTuple_GET_SIZE(shape)), {}, {}};
    for (int i = 0; i < f.ndim; ++i) {
        f.shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
        f.stride[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(stride, i));
    }
    return !PyErr_Occurred();
}

// The arguments that step and walk share, in the order of backends/call.py.
bool parse_step(PyObject* args, Step& s, std::vector<Field>& fields, PyObject*& keep) {
    PyObject *rows, *index, *inputs, *outputs, *noise;
    long long batch, size, segment;
    unsigned long long present;
    int draw, step_by_index;
    if (!PyArg_ParseTuple(args, "LLOKOLO!O!ipO!|O", &batch, &size, &rows, &present, &index, &segment, &PyTuple_Type, &inputs,
                          &PyTuple_Type, &outputs, &draw, &step_by_index, &PyTuple_Type, &noise, &keep))
        return false;
    s = Step{};
    s.batch = batch, s.size = size, s.segment = segment, s.present = present;
    s.rows = data(rows), s.index = static_cast<const int64_t*>(data(index));
    s.draw = static_cast<Draw>(draw), s.step_by_index = step_by_index;
    for (int i = 0; i < kSlots; ++i) {
        PyObject* x = PyTuple_GET_ITEM(inputs, i);
        s.in[i] = data(x);
        if (x != Py_None) s.in_type[i] = dtype_of(x);
    }
    for (int i = 0; i < 3; ++i) {
        PyObject* out = PyTuple_GET_ITEM(outputs, i);
        s.out[i] = data(out);
        if (out != Py_None) s.type = dtype_of(out);
    }
    fields.resize(static_cast<size_t>(PyTuple_GET_SIZE(noise)));
    for (size_t i = 0; i < fields.size(); ++i)
        if (!parse_field(PyTuple_GET_ITEM(noise, static_cast<Py_ssize_t>(i)), fields[i])) return false;
    s.fields = fields.data();
    s.field_per_sample = fields.size() > 1;
    return true;
}

void run(const Step& s) {
    const Kernels& k = kernels();
    parallel_for(s.batch * s.size, kChunk, [&](int64_t begin, int64_t end) { k.step(s, begin, end); });
}

PyObject* py_step(PyObject*, PyObject* args) {
    Step s;
    std::vector<Field> fields;
    PyObject* none = nullptr;
    if (!parse_step(args, s, fields, none)) return nullptr;
    Py_BEGIN_ALLOW_THREADS;
    run(s);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject* py_walk(PyObject*, PyObject* args) {
    Walk w;
    std::vector<Field> fields;
    PyObject* keep = nullptr;
    if (!parse_step(args, w.first, fields, keep)) return nullptr;
    w.keep = static_cast<const int64_t*>(data(keep));
    w.times = PyArray_SIZE(array(keep));
    const Kernels& k = kernels();
    const int64_t tiles = kChunk / 256 / w.times;
    Py_BEGIN_ALLOW_THREADS;
    parallel_for(w.first.batch * w.first.size, 256 * (tiles ? tiles : 1), [&](int64_t begin, int64_t end) { k.walk(w, begin, end); });
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject* py_philox(PyObject*, PyObject* args) {
    PyObject *counter, *key, *out;
    if (!PyArg_ParseTuple(args, "OOO", &counter, &key, &out)) return nullptr;
    const uint32_t *c = static_cast<uint32_t*>(data(counter)), *k = static_cast<uint32_t*>(data(key));
    uint32_t* to = static_cast<uint32_t*>(data(out));
    for (int64_t n = PyArray_SIZE(array(counter)) / 4; n > 0; --n, c += 4, k += 2, to += 4) {
        Words<uint32_t> words{{c[0], c[1], c[2], c[3]}};
        philox_rounds<Scalar>(words, RoundKeys(uint64_t{k[1]} << 32 | k[0]), 0);
        std::memcpy(to, words.w, sizeof words);
    }
    Py_RETURN_NONE;
}

// ------------------------------------------------------------------------------------------------ the short cut

bool plain(PyObject* o) {
    return PyArray_CheckExact(o) && PyArray_ISCARRAY_RO(array(o)) && PyArray_NDIM(array(o)) > 0;
}

bool overlap(PyObject* a, PyObject* b) {
    const char *pa = PyArray_BYTES(array(a)), *pb = PyArray_BYTES(array(b));
    return pa < pb + PyArray_NBYTES(array(b)) && pb < pa + PyArray_NBYTES(array(a));
}

bool unsigned_attribute(PyObject* o, PyObject* name, uint64_t& value) {
    PyObject* x = PyObject_GetAttr(o, name);
    if (!x) return false;
    value = PyLong_CheckExact(x) ? PyLong_AsUnsignedLongLong(x) : (PyErr_SetNone(PyExc_TypeError), 0);
    Py_DECREF(x);
    return !PyErr_Occurred();
}

// A Noise without a window whose samples are numbered on from one id.
bool plain_noise(PyObject* noise, Field& f) {
    uint64_t step, stream;
    PyObject* window = PyObject_GetAttr(noise, name_window_shape);
    Py_XDECREF(window);
    if (window != Py_None || !unsigned_attribute(noise, name_seed, f.seed) || !unsigned_attribute(noise, name_sample, f.sample) ||
        !unsigned_attribute(noise, name_step, step) || !unsigned_attribute(noise, name_stream, stream)) {
        PyErr_Clear();
        return false;
    }
    f.step = static_cast<uint32_t>(step), f.stream = static_cast<uint32_t>(stream);
    return true;
}

// Rows of t: an int for all elements, or an int64 array with one for each sample.
bool plain_times(PyObject* t, PyObject* x, int64_t rows, int64_t& scalar, Step& s) {
    if (PyLong_CheckExact(t)) {
        int overflow;
        scalar = PyLong_AsLongLongAndOverflow(t, &overflow);
        s.index = &scalar;
        s.segment = s.batch * s.size;
        return !overflow && scalar >= 0 && scalar < rows;
    }
    if (!plain(t) || PyArray_TYPE(array(t)) != NPY_INT64 || PyArray_NDIM(array(t)) != 1) return false;
    if (PyArray_DIM(array(t), 0) != PyArray_DIM(array(x), 0)) return false;
    s.index = static_cast<const int64_t*>(data(t));
    s.segment = s.size;
    for (int64_t b = 0; b < s.batch; ++b)
        if (s.index[b] < 0 || s.index[b] >= rows) return false;
    return true;
}

// q_sample(x0, t, rows32, present, noise, out or None) -> x_t or NotImplemented: float32, one segment a sample.
PyObject* py_q_sample(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n != 6) return PyErr_Format(PyExc_TypeError, "q_sample: expected 6 arguments, got %zd", n);
    PyObject *x = args[0], *t = args[1], *rows = args[2], *noise = args[4], *out = args[5];
    if (!plain(x) || PyArray_TYPE(array(x)) != NPY_FLOAT || PyArray_SIZE(array(x)) == 0) Py_RETURN_NOTIMPLEMENTED;
    Field f{};
    Step s{};
    s.batch = PyArray_DIM(array(x), 0);
    s.size = PyArray_SIZE(array(x)) / s.batch;
    int64_t scalar;
    if (!plain_times(t, x, PyArray_DIM(array(rows), 0), scalar, s) || !plain_noise(noise, f)) Py_RETURN_NOTIMPLEMENTED;
    if (f.sample + static_cast<uint64_t>(s.batch) > uint64_t{1} << 56 || s.size > int64_t{1} << 34) Py_RETURN_NOTIMPLEMENTED;
    if (out == Py_None) {
        out = PyArray_NewLikeArray(array(x), NPY_CORDER, nullptr, 0);
        if (!out) return nullptr;
    } else {
        if (!plain(out) || PyArray_TYPE(array(out)) != NPY_FLOAT || !PyArray_ISWRITEABLE(array(out)) ||
            !PyArray_SAMESHAPE(array(out), array(x)) || (data(out) != data(x) && overlap(out, x)) ||
            (t != Py_None && PyArray_Check(t) && overlap(out, t)))
            Py_RETURN_NOTIMPLEMENTED;
        Py_INCREF(out);
    }
    f.run = s.size;
    s.rows = data(rows);
    s.present = PyLong_AsUnsignedLongLong(args[3]);
    s.type = s.in_type[kX] = DType::f32;
    s.in[kX] = data(x), s.out[0] = data(out);
    s.draw = Draw::normal;
    s.fields = &f;
    if (s.batch * s.size <= 4096) {  // quicker than handing over the interpreter
        kernels().step(s, 0, s.batch * s.size);
        return out;
    }
    Py_BEGIN_ALLOW_THREADS;
    run(s);
    Py_END_ALLOW_THREADS;
    return out;
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
    PyErr_Format(PyExc_ValueError, "no instruction set %R here: built, and supported by this processor: %R", name, known);
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

PyMethodDef methods[] = {
    {"step", py_step, METH_VARARGS, nullptr},
    {"walk", py_walk, METH_VARARGS, nullptr},
    {"philox", py_philox, METH_VARARGS, nullptr},
    {"q_sample", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(py_q_sample)), METH_FASTCALL, nullptr},
    {"isas", py_isas, METH_NOARGS, nullptr},
    {"isa", py_isa, METH_NOARGS, nullptr},
    {"use_isa", py_use_isa, METH_O, nullptr},
    {"num_threads", py_num_threads, METH_NOARGS, nullptr},
    {"set_num_threads", py_set_num_threads, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "noisefuse._native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
    import_array();
    init_pool();
    name_seed = PyUnicode_InternFromString("seed");
    name_sample = PyUnicode_InternFromString("sample");
    name_step = PyUnicode_InternFromString("step");
    name_stream = PyUnicode_InternFromString("stream");
    name_window_shape = PyUnicode_InternFromString("window_shape");
    return PyModule_Create(&definition);
}
