// SPDX-License-Identifier: Apache-2.0
// The Python boundary. `step` and `walk` take what backends/native.py passes on from ops.py, checked there; `row` is a
// short cut for plain arguments, which it checks itself and declines (NotImplemented) when they are anything else.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <numpy/arrayobject.h>

#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "arrays.h"
#include "core/loss.h"
#include "core/philox.h"
#include "cpu/dispatch.h"
#include "cpu/float_mode.h"
#include "cpu/lane_scalar.h"
#include "cpu/pool.h"
#include "memory.h"

using namespace nf;

namespace {

// Elements for one thread: about 20 microseconds of noise, as long as two of these where none is drawn. Walks multiply
// them by their times.
constexpr int64_t kChunk = 1 << 15;

PyObject *noise_type, *name_seed, *name_sample, *name_step, *name_stream, *name_window_shape;

PyArrayObject* array(PyObject* o) { return reinterpret_cast<PyArrayObject*>(o); }
void* data(PyObject* o) { return o == Py_None ? nullptr : PyArray_DATA(array(o)); }

DType dtype_of(PyObject* o) {
    switch (PyArray_TYPE(array(o))) {
        case NPY_FLOAT:
            return DType::f32;
        case NPY_DOUBLE:
            return DType::f64;
        case NPY_HALF:
            return DType::f16;
        case NPY_UBYTE:
            return DType::u8;
        default:
            return DType::bf16;  // a type number given at run time; ops.py lets no other dtype through
    }
}

// (seed, sample, ids or None, step, stream, start, run, shape, stride)
bool parse_field(PyObject* tuple, Field& f) {
    PyObject *ids, *shape, *stride;
    unsigned long long seed, sample;
    long long start, run;
    unsigned step, stream;
    if (!PyArg_ParseTuple(tuple, "KKOIILLOO", &seed, &sample, &ids, &step, &stream, &start, &run, &shape, &stride))
        return false;
    f = {seed,  sample, static_cast<const uint64_t*>(data(ids)),   step, stream,
         start, run,    static_cast<int>(PyTuple_GET_SIZE(shape)), {},   {}};
    for (int i = 0; i < f.ndim; ++i) {
        f.shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
        f.stride[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(stride, i));
    }
    return !PyErr_Occurred();
}

// The arguments that step, walk and loss share, in the order of backends/call.py; `more` is what walk and loss add.
bool parse_step(PyObject* args, Step& s, std::vector<Field>& fields, PyObject*& more) {
    PyObject *rows, *index, *inputs, *outputs, *noise;
    long long batch, size, segment;
    unsigned long long present;
    int draw, step_by_index, masked;
    if (!PyArg_ParseTuple(args, "LLOKOLO!O!ipO!p|O", &batch, &size, &rows, &present, &index, &segment, &PyTuple_Type,
                          &inputs, &PyTuple_Type, &outputs, &draw, &step_by_index, &PyTuple_Type, &noise, &masked,
                          &more))
        return false;
    s = Step{};
    s.batch = batch, s.size = size, s.segment = segment, s.present = present;
    s.rows = data(rows), s.n_rows = PyArray_DIM(array(rows), 0), s.index = static_cast<const int64_t*>(data(index));
    s.draw = static_cast<Draw>(draw), s.step_by_index = step_by_index, s.masked = masked;
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
    try {
        fields.resize(static_cast<size_t>(PyTuple_GET_SIZE(noise)));
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory(), false;
    }
    for (size_t i = 0; i < fields.size(); ++i)
        if (!parse_field(PyTuple_GET_ITEM(noise, static_cast<Py_ssize_t>(i)), fields[i])) return false;
    s.fields = fields.data();
    s.field_per_sample = fields.size() > 1;
    return true;
}

void run(const Step& s) {
    const Kernels& k = kernels();
    // Without noise there is less to do for an element, and waking a thread costs the same.
    const int64_t chunk = s.draw == Draw::none ? 2 * kChunk : kChunk;
    parallel_for(s.batch * s.size, chunk, [&](int64_t begin, int64_t end) { k.step(s, begin, end); });
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
    parallel_for(w.first.batch * w.first.size, 256 * (tiles ? tiles : 1),
                 [&](int64_t begin, int64_t end) { k.walk(w, begin, end); });
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

// The chunks on all threads; then, in the order of the elements, the samples' sums: one for each, or the sum of them.
class LossRun {
  public:
    Loss loss{};
    const double* weight = nullptr;  // for each piece, or null
    double* sums = nullptr;          // null: only the gradient is wanted
    int64_t n_sums = 1;

    // Elements of a piece: the part of a sample that one t covers, or all of the sample.
    void set_piece(int64_t size) {
        loss.piece = size;
        loss.chunks = (size + kLossChunk - 1) / kLossChunk;
        chunks_ = loss.residual.batch * loss.residual.size / size * loss.chunks;
    }

    // std::bad_alloc where there is no memory.
    void reserve() {
        if (!sums) return;
        chunk_sums_.resize(static_cast<size_t>(chunks_));
        loss.sums = chunk_sums_.data();
    }

    void run() const {
        const Kernels& k = kernels();
        const int64_t in_chunk = loss.piece < kLossChunk ? loss.piece : kLossChunk;
        parallel_for(chunks_, (kChunk + in_chunk - 1) / in_chunk,
                     [&](int64_t begin, int64_t end) { k.loss(loss, begin, end); });
        if (!sums) return;
        const FloatMode mode;
        const int64_t batch = loss.residual.batch, pieces = loss.residual.size / loss.piece;
        const double* chunk = chunk_sums_.data();
        if (n_sums == 1) *sums = 0;
        for (int64_t b = 0; b < batch; ++b, chunk += pieces * loss.chunks) {
            SampleSum<Scalar> sample{};
            sample.add(chunk, pieces * loss.chunks, loss.chunks,
                       [&](int64_t p) { return weight ? weight[b * pieces + p] : 1.0; });
            if (n_sums == 1)
                *sums = *sums + sample.total;
            else
                sums[b] = sample.total;
        }
    }

  private:
    std::vector<double> chunk_sums_;
    int64_t chunks_ = 0;
};

// Beside what step takes: (piece, weight or None, factor or None, sums or None).
PyObject* py_loss(PyObject*, PyObject* args) {
    LossRun call;
    Loss& loss = call.loss;
    std::vector<Field> fields;
    PyObject *more = nullptr, *weight, *factor, *sums;
    long long piece;
    if (!parse_step(args, loss.residual, fields, more) ||
        !PyArg_ParseTuple(more, "LOOO", &piece, &weight, &factor, &sums))
        return nullptr;
    loss.residual.type = loss.residual.in_type[kM1];
    loss.factor = static_cast<const double*>(data(factor));
    call.weight = static_cast<const double*>(data(weight));
    call.sums = static_cast<double*>(data(sums));
    if (sums != Py_None) call.n_sums = PyArray_SIZE(array(sums));
    call.set_piece(piece);
    try {
        call.reserve();
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS;
    call.run();
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

// A new C-contiguous array.
PyObject* new_array(int ndim, const npy_intp* shape, PyArray_Descr* dtype) {  // steals dtype
    npy_intp bytes = PyDataType_ELSIZE(dtype);
    for (int axis = 0; axis < ndim; ++axis)
        if (__builtin_mul_overflow(bytes, shape[axis], &bytes)) bytes = 0;  // NumPy refuses it
    PyObject* const handler = bytes >= npy_intp{kLargeArray} ? memory_handler() : nullptr;
    PyObject* const before = handler ? PyDataMem_SetHandler(handler) : nullptr;
    PyObject* made = PyArray_NewFromDescr(&PyArray_Type, dtype, ndim, shape, nullptr, nullptr, 0, nullptr);
    if (before) {
        Py_XDECREF(PyDataMem_SetHandler(before));
        Py_DECREF(before);
    }
    return made;
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

PyObject* py_philox(PyObject*, PyObject* args) {
    PyObject *counter, *key, *out;
    if (!PyArg_ParseTuple(args, "OOO", &counter, &key, &out)) return nullptr;
    const uint32_t *c = static_cast<uint32_t*>(data(counter)), *k = static_cast<uint32_t*>(data(key));
    uint32_t* to = static_cast<uint32_t*>(data(out));
    for (int64_t n = PyArray_SIZE(array(counter)) / 4; n > 0; --n, c += 4, k += 2, to += 4) {
        const RoundKeys keys(uint64_t{k[1]} << 32 | k[0]);
        const auto words = philox_rounds<Scalar>({{c[0], c[1], c[2], c[3]}}, keys, 0);
        std::memcpy(to, words.w, sizeof words);
    }
    Py_RETURN_NONE;
}

// ------------------------------------------------------------------------------------------------ the short cut

// Calls of a few microseconds are mostly Python. So plain calls, with C-contiguous arrays of one float dtype, int or
// int64 rows and a Noise without a window, are checked here. Whatever is not plain, wrong arguments included, is
// declined: ops.py then checks it again, and says what is wrong.

bool unsigned_attribute(PyObject* o, PyObject* name, uint64_t& value) {
    PyObject* x = PyObject_GetAttr(o, name);
    if (!x) return false;
    const bool exact = PyLong_CheckExact(x);
    if (exact) value = PyLong_AsUnsignedLongLong(x);
    Py_DECREF(x);
    return exact && !PyErr_Occurred();
}

// The arguments of `row`, and the call that they make. Holds the arrays of lists, which other threads may change while
// the kernels run without the GIL.
class PlainCall {
  public:
    PlainCall() = default;
    PlainCall(const PlainCall&) = delete;
    ~PlainCall() {
        Py_XDECREF(past_);
        Py_XDECREF(auxiliary_);
    }

    Step s{};
    View x;
    PyObject* outputs[3] = {};  // borrowed; null where one is to be made
    int wanted = 1;             // how many outputs
    bool all = false;           // whether all of them are returned
    int64_t indices = 1;        // how many row numbers the call takes

    // False where anything is not plain; no Python error is set then.
    bool parse(PyObject* const* args) {
        if (!view(args[2], x) || x.kind > Kind::bf16 || x.ndim == 0 || (x.is_tensor && torch.dual())) return false;
        s.type = static_cast<DType>(x.kind);
        s.batch = x.shape[0];
        s.size = x.count / s.batch;
        PyObject* table = PyTuple_GET_ITEM(args[0], s.type == DType::f64);  // float, double, present
        s.rows = data(table);
        s.n_rows = PyArray_DIM(array(table), 0);
        s.present = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(args[0], 2));
        return input(kX, x) && index(args[1]) && model_output(args[3]) && past(args[4]) && noise(args[5], args[6]) &&
               output(0, args[7]) && auxiliary(args[8]) && complete();
    }

  private:
    int64_t scalar_;
    PyObject *past_ = nullptr, *auxiliary_ = nullptr;  // tuples
    View index_{}, inputs_[kSlots] = {}, outs_[3] = {};
    Field field_{};

    bool present(int slot) const {
        bool any = slot < 3 && (s.present >> (kClean + 1 + slot) & 1);
        for (int first : kAffine) any |= s.present >> (first + 1 + slot) & 1;
        return any;
    }

    bool input(int slot, const View& v) {
        inputs_[slot] = v;
        s.in_type[slot] = static_cast<DType>(v.kind);
        if (present(slot)) s.in[slot] = v.data;
        return true;
    }

    // Of x's shape and dtype; an array of noise may also be float32.
    bool input(int slot, PyObject* a) {
        View v;
        return view(a, v) && v.same_shape(x) && v.is_tensor == x.is_tensor &&
               (v.kind == x.kind || (slot == kZ && v.kind == Kind::f32)) && input(slot, v);
    }

    // A row for all elements, or one for each segment: an array whose shape begins that of x.
    bool index(PyObject* i) {
        s.segment = x.count;
        if (PyLong_CheckExact(i)) {
            int overflow;
            scalar_ = PyLong_AsLongLongAndOverflow(i, &overflow);
            s.index = &scalar_;
            return !overflow && scalar_ >= 0 && scalar_ < s.n_rows;
        }
        if (!view(i, index_) || index_.kind != Kind::i64) return false;
        s.index = reinterpret_cast<const int64_t*>(index_.data);
        indices = index_.count;
        if (indices > 1) {
            for (int axis = 0; axis < index_.ndim; ++axis)
                if (axis >= x.ndim || index_.shape[axis] != x.shape[axis]) return false;
            s.segment = x.count / indices;
        }
        for (int64_t b = 0; b < indices; ++b)
            if (s.index[b] < 0 || s.index[b] >= s.n_rows) return false;
        return true;
    }

    bool model_output(PyObject* m) {
        if (m == Py_None) return true;
        if (!PyTuple_CheckExact(m)) return input(kM1, m);
        return PyTuple_GET_SIZE(m) == 2 && input(kM1, PyTuple_GET_ITEM(m, 0)) && input(kM2, PyTuple_GET_ITEM(m, 1));
    }

    bool past(PyObject* arrays) {
        if (arrays == Py_None) return true;
        if (!(past_ = as_tuple(arrays))) return false;
        const Py_ssize_t n = PyTuple_GET_SIZE(past_);
        for (Py_ssize_t k = 0; k < n; ++k)
            if (k >= 4 || !input(kPast1 + static_cast<int>(k), PyTuple_GET_ITEM(past_, k))) return false;
        return true;
    }

    // Stream -1: the noise's own, at its own step. Otherwise that stream, at the steps noise.step + row.
    bool noise(PyObject* noise, PyObject* stream_of_rows) {
        if (!present(kZ)) return true;
        if (noise == Py_None) return draws_nothing();
        if (View z; view(noise, z)) return input(kZ, noise);
        if (reinterpret_cast<PyObject*>(Py_TYPE(noise)) != noise_type) return false;  // its numbers are not checked
        uint64_t step, stream;
        const Reference window(PyObject_GetAttr(noise, name_window_shape));
        if (window.object != Py_None || !unsigned_attribute(noise, name_seed, field_.seed) || !samples(noise) ||
            !unsigned_attribute(noise, name_step, step) || !unsigned_attribute(noise, name_stream, stream)) {
            PyErr_Clear();
            return false;
        }
        const long wanted = PyLong_AsLong(stream_of_rows);
        s.step_by_index = wanted >= 0;
        if (s.step_by_index && (stream != 0 || step + static_cast<uint64_t>(s.n_rows) > uint64_t{1} << 32))
            return false;
        field_.step = static_cast<uint32_t>(step);
        field_.stream = s.step_by_index ? static_cast<uint32_t>(wanted) : static_cast<uint32_t>(stream);
        field_.run = s.size;
        s.draw = Draw::normal;
        s.fields = &field_;
        return field_.sample + static_cast<uint64_t>(s.batch) <= uint64_t{1} << 56 && s.size <= int64_t{1} << 34;
    }

    // The first id, or an array of ids, one for each sample, which Noise has checked and keeps.
    bool samples(PyObject* noise) {
        const Reference ids(PyObject_GetAttr(noise, name_sample));
        if (!ids.object || !PyArray_CheckExact(ids.object))
            return unsigned_attribute(noise, name_sample, field_.sample);
        if (PyArray_TYPE(array(ids.object)) != NPY_UINT64 || PyArray_SIZE(array(ids.object)) != s.batch) return false;
        field_.samples = static_cast<const uint64_t*>(data(ids.object));
        return true;
    }

    // Without noise the rows that are taken must have none.
    bool draws_nothing() {
        for (int first : kAffine) {
            const int column = first + 1 + kZ;
            for (int64_t b = 0; b < indices; ++b) {
                const int64_t at = kColumns * s.index[b] + column;
                if (s.type == DType::f64 ? static_cast<const double*>(s.rows)[at] != 0
                                         : static_cast<const float*>(s.rows)[at] != 0)
                    return false;
            }
            s.present &= ~(uint64_t{1} << column);
        }
        return true;
    }

    bool output(int o, PyObject* out) {
        if (out == Py_None) return o == 0;  // made when all else is well
        View& v = outs_[o];
        if (!view(out, v) || v.kind != x.kind || v.is_tensor != x.is_tensor || !v.writable || !v.same_shape(x))
            return false;
        for (const View& in : inputs_)
            if (in.data && (in.data != v.data || in.bytes != v.bytes) && v.overlaps(in)) return false;
        for (int other = 0; other < o; ++other)
            if (outs_[other].data && v.overlaps(outs_[other])) return false;
        if (index_.data && v.overlaps(index_)) return false;
        outputs[o] = out;
        s.out[o] = v.data;
        return true;
    }

    bool auxiliary(PyObject* arrays) {
        if (arrays == Py_None) return true;
        if (PyLong_CheckExact(arrays)) {
            int overflow;
            const long made = PyLong_AsLongAndOverflow(arrays, &overflow);
            wanted += static_cast<int>(made);
            all = true;
            return made >= 0 && made <= 2;
        }
        if (!(auxiliary_ = as_tuple(arrays))) return false;
        const Py_ssize_t n = PyTuple_GET_SIZE(auxiliary_);
        for (; wanted <= n; ++wanted)
            if (wanted > 2 || !output(wanted, PyTuple_GET_ITEM(auxiliary_, wanted - 1))) return false;
        return true;
    }

    // A new reference, or null for what is neither list nor tuple.
    static PyObject* as_tuple(PyObject* arrays) {
        if (PyTuple_CheckExact(arrays)) return Py_NewRef(arrays);
        PyObject* const made = PyList_CheckExact(arrays) ? PyList_AsTuple(arrays) : nullptr;
        PyErr_Clear();
        return made;
    }

    bool complete() const {
        for (int slot : {kX, kM1, kM2, kPast1, kPast2, kPast3, kPast4})
            if (present(slot) && !s.in[slot]) return false;
        return true;
    }
};

// A new array like x; `data` is where its elements begin. Null: a Python error is set.
PyObject* new_like(const View& x, char*& data) {
    if (x.is_tensor) return torch.new_like(x, data);
    auto* const dtype = reinterpret_cast<PyArray_Descr*>(Py_NewRef(PyArray_DESCR(array(x.object))));
    PyObject* const made = new_array(x.ndim, reinterpret_cast<const npy_intp*>(x.shape), dtype);
    if (made) data = PyArray_BYTES(array(made));
    return made;
}

// The outputs of a plain call: the caller's, and new ones.
class Results {
  public:
    explicit Results(PlainCall& call) : call_(call) {}
    Results(const Results&) = delete;
    ~Results() {
        for (PyObject* o : owned_) Py_XDECREF(o);
    }

    // False: a Python error is set.
    bool made() {
        for (int o = 0; o < call_.wanted; ++o) {
            if (call_.outputs[o]) continue;
            char* data;
            if (!(owned_[o] = new_like(call_.x, data))) return false;
            call_.s.out[o] = data;
        }
        return true;
    }

    // Autograd learns of what was written to the caller's tensors.
    PyObject* give() {
        PyObject* given[3];
        Py_ssize_t n = 0;
        for (int o = 0; o < call_.wanted; ++o) {
            if (owned_[o]) continue;
            given[n++] = call_.outputs[o];
            owned_[o] = Py_NewRef(call_.outputs[o]);
        }
        if (n > 0 && call_.x.is_tensor && !torch.written(given, n)) return nullptr;
        if (!call_.all) return Py_NewRef(owned_[0]);
        PyObject* all = PyTuple_New(call_.wanted);
        for (int o = 0; all && o < call_.wanted; ++o) PyTuple_SET_ITEM(all, o, Py_NewRef(owned_[o]));
        return all;
    }

  private:
    PlainCall& call_;
    PyObject* owned_[3] = {};
};

// row((rows32, rows64, present), i, x, model_output, past, noise, stream, out, aux), or NotImplemented: see PlainCall.
// Returns out; or, where aux is not arrays but how many of them are to be made, the tuple (out, aux1, ..).
PyObject* py_row(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n != 9) return PyErr_Format(PyExc_TypeError, "row: expected 9 arguments, got %zd", n);
    PlainCall call;
    if (!call.parse(args)) Py_RETURN_NOTIMPLEMENTED;
    Results results(call);
    if (!results.made()) return nullptr;
    if (call.x.count <= 4096) {  // quicker than handing over the interpreter
        kernels().step(call.s, 0, call.x.count);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        run(call.s);
        Py_END_ALLOW_THREADS;
    }
    return results.give();
}

// None, or float64, one for each row, finite where the call takes them.
bool plain_weights(PyObject* weights, const PlainCall& call) {
    if (weights == Py_None) return true;
    View w;
    if (!view(weights, w) || w.is_tensor || w.kind != Kind::f64 || w.ndim != 1 || w.count != call.s.n_rows)
        return false;
    for (int64_t i = 0; i < call.indices; ++i)
        if (!std::isfinite(reinterpret_cast<const double*>(w.data)[call.s.index[i]])) return false;
    return true;
}

// The mean over all elements, and the gradient where it has a place. False: no memory.
bool run_mse(const PlainCall& call, PyObject* weights, double upstream, double* loss) {
    const Step& s = call.s;
    const auto n = static_cast<double>(call.x.count);
    try {
        LossRun run;
        run.loss.residual = s;
        run.set_piece(s.segment < s.size ? s.segment : s.size);
        run.sums = loss;
        run.reserve();
        const auto pieces = static_cast<size_t>(call.x.count / run.loss.piece);
        std::vector<double> weight(weights == Py_None ? 0 : pieces), factor;
        for (size_t p = 0; p < weight.size(); ++p)
            weight[p] = static_cast<double*>(data(weights))[s.index[call.indices == 1 ? 0 : p]];
        if (s.out[0]) factor.assign(pieces, gradient_factor(1.0, upstream, n));
        for (size_t p = 0; s.out[0] && p < weight.size(); ++p) factor[p] = gradient_factor(weight[p], upstream, n);
        run.weight = weight.empty() ? nullptr : weight.data();
        run.loss.factor = factor.data();
        if (call.x.count <= 4096) {  // quicker than handing over the interpreter
            run.run();
        } else {
            Py_BEGIN_ALLOW_THREADS;
            run.run();
            Py_END_ALLOW_THREADS;
        }
    } catch (const std::bad_alloc&) {
        return false;
    }
    if (loss) *loss /= n;
    return true;
}

// mse((rows32, rows64, present), t, x0, pred, noise, weights or None, upstream, wants loss, out), or NotImplemented; of
// the mean over all elements. weights: one for each row. out: None, where the gradient is to be written, or True: make
// it. Returns the loss, the gradient, or (loss, gradient).
PyObject* py_mse(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n != 9) return PyErr_Format(PyExc_TypeError, "mse: expected 9 arguments, got %zd", n);
    const Reference stream(PyLong_FromLong(-1));
    PyObject *weights = args[5], *out = args[8] == Py_True ? Py_None : args[8];
    PyObject* const row[] = {args[0], args[1], args[2], args[3], Py_None, args[4], stream.object, out, Py_None};
    PlainCall call;
    if (!call.parse(row) || !PyFloat_CheckExact(args[6]) || !plain_weights(weights, call)) Py_RETURN_NOTIMPLEMENTED;
    const bool wants_loss = args[7] == Py_True;
    if (args[8] == Py_None) call.wanted = 0;
    Results results(call);
    if (!results.made()) return nullptr;
    double loss;
    if (!run_mse(call, weights, PyFloat_AS_DOUBLE(args[6]), wants_loss ? &loss : nullptr)) return PyErr_NoMemory();
    if (!call.wanted) return PyFloat_FromDouble(loss);
    PyObject* gradient = results.give();
    return wants_loss && gradient ? Py_BuildValue("(dN)", loss, gradient) : gradient;
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

PyMethodDef methods[] = {
    {"step", py_step, METH_VARARGS, nullptr},
    {"walk", py_walk, METH_VARARGS, nullptr},
    {"loss", py_loss, METH_VARARGS, nullptr},
    {"empty", py_empty, METH_VARARGS, nullptr},
    {"philox", py_philox, METH_VARARGS, nullptr},
    {"row", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(py_row)), METH_FASTCALL, nullptr},
    {"mse", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(py_mse)), METH_FASTCALL, nullptr},
    {"isas", py_isas, METH_NOARGS, nullptr},
    {"isa", py_isa, METH_NOARGS, nullptr},
    {"use_isa", py_use_isa, METH_O, nullptr},
    {"num_threads", py_num_threads, METH_NOARGS, nullptr},
    {"set_num_threads", py_set_num_threads, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "noisefuse._native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
    import_array();
    init_pool();
    init_memory();
    const Reference noise(PyImport_ImportModule("noisefuse.noise"));
    if (!noise.object || !(noise_type = PyObject_GetAttrString(noise.object, "Noise"))) return nullptr;
    name_seed = PyUnicode_InternFromString("seed");
    name_sample = PyUnicode_InternFromString("sample");
    name_step = PyUnicode_InternFromString("step");
    name_stream = PyUnicode_InternFromString("stream");
    name_window_shape = PyUnicode_InternFromString("window_shape");
    return PyModule_Create(&definition);
}
