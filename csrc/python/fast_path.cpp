// SPDX-License-Identifier: Apache-2.0
// The fast path. Calls of a few microseconds are mostly Python. So plain calls, with arrays of one float dtype (x may
// be integer levels), row numbers or times and Noises, are checked here, from the original arguments. Arrays that are
// not C-contiguous, aligned and in native byte order are copied first, or turned on the way (run/turned.h).
// Tensors have to be plain. All other calls, those with wrong arguments included, are declined (NotImplemented):
// operations then check them, and raise the errors.
#include <vector>

#include "fast_call.h"
#include "fast_categories.h"
#include "fast_density.h"
#include "fast_images.h"
#include "fast_results.h"
#include "fast_step.h"

namespace nf {
namespace {

// Takes None, or float64, one for each row, finite at the call's rows. It may be a tensor beside tensors.
bool fast_weights(PyObject* weights, FastCall& fast) {
    if (weights == Py_None) return true;
    View w;
    if (!view(weights, w) || w.is_tensor > fast.x.is_tensor || w.kind != Kind::f64 || w.ndim != 1 ||
        w.count != fast.call.n_rows || !fast.takes_weights())
        return false;
    fast.call.weights = reinterpret_cast<const double*>(w.data);
    for (int64_t i = 0; i < fast.indices; ++i)
        if (!std::isfinite(fast.call.weights[row_of(fast.call, i)])) return false;
    return true;
}

// Takes an integer, or a list or tuple of integers: lengths of at least 1.
bool lengths(PyObject* given, int64_t* shape, Made& made) {
    const bool one = PyLong_CheckExact(given);
    const Reference several(one ? PyTuple_Pack(1, given) : as_tuple(given));
    const Py_ssize_t n = several.object ? PyTuple_GET_SIZE(several.object) : 0;
    if (n == 0 || n > NPY_MAXDIMS) return false;
    made.ndim = static_cast<int>(n), made.count = 1;
    for (Py_ssize_t i = 0; i < n; ++i) {
        if (!take_integer(PyTuple_GET_ITEM(several.object, i), shape[i]) || shape[i] <= 0 ||
            __builtin_mul_overflow(made.count, shape[i], &made.count))
            return false;
    }
    return made.count <= int64_t{1} << 56;  // so that the bytes do not overflow
}

// The times of a walk that are kept: None, all of them; or integers that rise, in a list, a tuple, a range or an array.
// slots: of each time up to the last, its place in the result, or -1.
bool kept_times(PyObject* keep, int64_t steps, std::vector<int64_t>& slots, int64_t& count) {
    View v{};
    const bool listed = PyList_CheckExact(keep) || PyTuple_CheckExact(keep) || PyRange_Check(keep);
    if (listed && !(PyObject_Length(keep) <= steps)) return PyErr_Clear(), false;
    const Reference times(listed ? PySequence_Tuple(keep) : nullptr);
    if (keep != Py_None && !times.object && (!view(keep, v) || v.kind != Kind::i64 || v.ndim != 1)) return false;
    count = times.object ? PyTuple_GET_SIZE(times.object) : v.data ? v.count : steps;
    for (int64_t k = 0, t; k < count; ++k) {
        if (times.object && !take_integer(PyTuple_GET_ITEM(times.object, k), t)) return false;
        if (!times.object) t = v.data ? reinterpret_cast<const int64_t*>(v.data)[k] : k;
        if (t < static_cast<int64_t>(slots.size()) || t >= steps) return false;
        slots.resize(static_cast<size_t>(t) + 1, -1);
        slots.back() = k;
    }
    return count > 0;
}

// row(table, i, x, model_output, past, noise, stream, out, aux, dtype, batched, clip), or NotImplemented. Returns out,
// or the tuple (out, aux1, ..) if aux is a number of new arrays. clip may be left out. It is a table of one row, for
// any dtype of x, which clips the result.
PyObject* fast_row(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n != 11 && n != 12) return PyErr_Format(PyExc_TypeError, "row: expected 11 or 12 arguments, got %zd", n);
    FastCall fast;
    constexpr int kSampler = 3;  // a stream, as in noise.py
    const Call& call = fast.call;
    const int stream = static_cast<int>(PyLong_AsLong(args[6]));
    fast.mixes = stream == kSampler;
    if (!fast.parse(
            {args[0], args[1], args[2], args[3], args[4], args[5], stream, args[7], args[8], args[9], args[10]}))
        return declined();
    if (!fast.outputs.make(fast.call)) return nullptr;
    const auto give = [&](const auto& run) { return run_plain(call, run) ? fast.outputs.give() : nullptr; };
    if (n == 11 || args[11] == Py_None)
        return give([&](const Call& step, const GoOn& go_on) { return run_step(step, go_on, fast.turned); });
    const double low = PyFloat_AsDouble(PyTuple_GET_ITEM(args[11], 0)),
                 high = PyFloat_AsDouble(PyTuple_GET_ITEM(args[11], 1));
    return give(
        [&](const Call& step, const GoOn& go_on) { return run_clipped_step(step, low, high, go_on, fast.turned); });
}

// random(table, shape, noise, uniform, dtype, batched, tensor, out), or NotImplemented: noise of this shape, or like a
// tensor in its place: with its order in memory and, if dtype is None, its dtype.
PyObject* fast_random(PyObject* const* args) {
    Call call{};
    FastNoise noise;
    FastOutputs outputs;
    int64_t shape[NPY_MAXDIMS];
    const int64_t row = 0;
    const bool batched = args[5] == Py_True;
    Turned turned;
    Made& made = outputs.first;
    made.is_tensor = args[6] == Py_True, made.shape = shape;
    if (!PyBool_Check(args[5]) || (made.is_tensor && !torch.is_known()) ||
        !(torch.is_tensor(args[1]) ? torch.like(args[1], made, shape, turned) : lengths(args[1], shape, made)) ||
        (args[4] == Py_None ? !is_float(made.kind) : !take_dtype(args[4], made)))
        Py_RETURN_NOTIMPLEMENTED;
    outputs.channels_last = made.channels_last;
    outputs.written_last = made.channels_last && made.count > kFewTurned;
    if (outputs.written_last) turned.outputs = 1;
    call.type = call.out_type = dtype(made.kind);
    call.batch = batched ? shape[0] : 1;
    call.size = made.count / call.batch;
    call.segment = made.count;
    call.index = &row;
    take_rows(args[0], call.type, call);
    if (!noise.parse(args[2], -1, call, made.ndim - batched, shape + batched) || !outputs.take(0, args[7], call))
        Py_RETURN_NOTIMPLEMENTED;
    if (args[3] == Py_True) noise.use_uniform(call);
    if (!outputs.make(call)) return nullptr;
    const auto run = [&](const Call& step, const GoOn& go_on) {
        return run_step(step, go_on, turned.outputs ? turned : Turned{});
    };
    return run_plain(call, run) ? outputs.give() : nullptr;
}

// mse(table, t, x0, pred, noise, weights or None, upstream, wants loss, out, batched, each), or NotImplemented; of the
// mean over all elements, or over those of each sample. pred: an array, or a pair, the prediction and another array
// that the rows read as m2. weights: one for each row. out: None, where the gradient is to be written, or True: make
// it. Returns the loss, float64 (B,) or a float (of tensors a tensor, of float32 unless pred is of float64), the
// gradient, or (loss, gradient): this too where autograd watches pred, and the loss of all elements is wanted alone.
PyObject* fast_mse(PyObject* const* args) {
    PyObject *weights = args[5], *out = args[8] == Py_True ? Py_None : args[8];
    PyObject* const pred = PyTuple_CheckExact(args[3]) ? PyTuple_GET_ITEM(args[3], 0) : args[3];
    const bool wants_loss = args[7] == Py_True, each = args[10] == Py_True;
    const bool watched = torch.is_tensor(pred) && torch.is_watched(pred);
    if (watched && (!wants_loss || each || args[8] != Py_None)) return declined();
    FastCall fast;
    Call& call = fast.call;
    if (watched) fast.watched = pred;
    fast.adds_up = wants_loss, fast.leads = kM1;  // the gradient is of the prediction
    if (!fast.parse({args[0], args[1], args[2], args[3], Py_None, args[4], -1, out, Py_None, Py_None, args[9]}) ||
        !PyFloat_CheckExact(args[6]) || !fast_weights(weights, fast))
        return declined();
    if (args[8] == Py_None && !watched) fast.outputs.wanted = 0;
    if (!fast.outputs.make(call)) return nullptr;
    call.piece = call.segment < call.size ? call.segment : call.size;
    fast.join_rows();
    call.g = PyFloat_AS_DOUBLE(args[6]);
    call.n = static_cast<double>(each ? call.size : fast.x.count);
    FastNumbers losses(each ? call.batch : 1, !each);
    if (wants_loss) call.losses = losses.values.data(), call.n_losses = each ? call.batch : 1;
    if (!fast.run_loss()) return nullptr;
    if (!wants_loss) return fast.outputs.give();
    const bool is_tensor = fast.x.is_tensor;
    const Reference loss(losses.give(is_tensor, !is_tensor || call.type == DType::f64));
    if (!loss.object || !fast.outputs.wanted) return Py_XNewRef(loss.object);
    const Reference gradient(fast.outputs.give());
    return gradient.object ? PyTuple_Pack(2, loss.object, gradient.object) : nullptr;
}

// walk(table, x0, noise, keep, out, batched), or NotImplemented: q_walk of floats.
PyObject* fast_walk(PyObject* const* args) {
    constexpr int kWalk = 1;  // a stream, as in noise.py
    Call call{};
    FastArray given;
    FastNoise noise;
    FastOutputs outputs;
    std::vector<int64_t> slots;
    int64_t shape[NPY_MAXDIMS];
    const int64_t first_row = 0;
    const bool batched = args[5] != Py_False;
    const View& x = given.v;
    if (!(torch.is_tensor(args[1]) ? given.see(args[1]) : given.read(args[1])) || !is_float(x.kind) || x.ndim == 0 ||
        x.ndim >= NPY_MAXDIMS || (x.is_tensor && torch.dual()) || (args[5] != Py_None && !PyBool_Check(args[5])))
        Py_RETURN_NOTIMPLEMENTED;
    call.type = call.out_type = call.in_type[kX] = dtype(x.kind);
    take_rows(args[0], call.type, call);
    call.batch = batched ? x.shape[0] : 1;
    call.size = x.count / call.batch;
    call.segment = x.count, call.index = &first_row, call.in[kX] = x.data;
    Made& made = outputs.first;
    made = {x.kind, x.is_tensor, x.ndim + 1, shape, 0, x.is_tensor ? nullptr : PyArray_DESCR(array(x.object))};
    if (!kept_times(args[3], call.n_rows, slots, shape[0]) || __builtin_mul_overflow(shape[0], x.count, &made.count) ||
        made.count > int64_t{1} << 56)
        return declined();
    std::copy_n(x.shape, x.ndim, shape + 1);
    if (!noise.parse(args[2], kWalk, call, x.ndim - batched, x.shape + batched) || !outputs.take(0, args[4], call) ||
        outputs.spoil(x, false))
        Py_RETURN_NOTIMPLEMENTED;
    call.step_by_index = 0;
    call.keep = slots.data(), call.times = static_cast<int64_t>(slots.size());
    if (!outputs.make(call)) return nullptr;
    const auto run = [&](const GoOn& go_on) { return run_walk(call, go_on); };
    return run_call(x.count > kAtOnce / call.times, run) ? outputs.give() : nullptr;
}

// Where instances of a class keep this slot; -1: a Python error is set.
Py_ssize_t slot(PyObject* type, const char* name) {
    const Reference descriptor(PyObject_GetAttrString(type, name));
    if (!descriptor.object) return -1;
    if (Py_IS_TYPE(descriptor.object, &PyMemberDescr_Type))
        return reinterpret_cast<PyMemberDescrObject*>(descriptor.object)->d_member->offset;
    PyErr_Format(PyExc_TypeError, "Noise.%s: expected a slot", name);
    return -1;
}

// named(seed, sample, step): a Noise of numbers that are checked.
PyObject* named(PyObject* const* args) {
    PyObject* const noise = PyType_GenericAlloc(reinterpret_cast<PyTypeObject*>(noise_type), 0);
    if (!noise) return nullptr;
    const auto put = [&](Py_ssize_t at, PyObject* value) {
        *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(noise) + at) = value;
    };
    put(at_seed, Py_NewRef(args[0]));
    put(at_sample, Py_NewRef(args[1]));
    put(at_step, Py_NewRef(args[2]));
    put(at_stream, PyLong_FromLong(0));
    put(at_window_shape, Py_NewRef(Py_None));
    put(at_window_start, PyTuple_New(0));
    return noise;
}

using FastFunction = PyObject*(PyObject* const* args);

// Calls it with so many arguments; where there is no memory, with Python's error.
[[gnu::noinline]] PyObject* guarded(FastFunction* function, Py_ssize_t count, PyObject* const* args, Py_ssize_t n) {
    if (n != count) return PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", count, n);
    try {
        return function(args);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

template <FastFunction* function, Py_ssize_t count>
PyObject* entry(PyObject*, PyObject* const* args, Py_ssize_t n) {
    return guarded(function, count, args, n);
}

PyMethodDef methods[] = {{"row", fast_call(fast_row), METH_FASTCALL, nullptr},
                         {"random", fast_call(entry<fast_random, 8>), METH_FASTCALL, nullptr},
                         {"mse", fast_call(entry<fast_mse, 11>), METH_FASTCALL, nullptr},
                         {"density", fast_call(entry<fast_density, 11>), METH_FASTCALL, nullptr},
                         {"density_gradient", fast_call(entry<fast_density_gradient, 10>), METH_FASTCALL, nullptr},
                         {"divergence", fast_call(entry<fast_divergence, 9>), METH_FASTCALL, nullptr},
                         {"tokens", fast_call(entry<fast_tokens, 9>), METH_FASTCALL, nullptr},
                         {"categorical", fast_call(entry<fast_categorical, 9>), METH_FASTCALL, nullptr},
                         {"masked_cross_entropy", fast_call(entry<fast_cross_entropy, 9>), METH_FASTCALL, nullptr},
                         {"token_step", fast_call(entry<fast_token_step, 7>), METH_FASTCALL, nullptr},
                         {"impulse", fast_call(entry<fast_impulse, 8>), METH_FASTCALL, nullptr},
                         {"factors", fast_call(entry<fast_factors, 6>), METH_FASTCALL, nullptr},
                         {"rician", fast_call(entry<fast_rician, 6>), METH_FASTCALL, nullptr},
                         {"photons", fast_call(entry<fast_photons, 7>), METH_FASTCALL, nullptr},
                         {"iso", fast_call(entry<fast_iso, 5>), METH_FASTCALL, nullptr},
                         {"named", fast_call(entry<named, 3>), METH_FASTCALL, nullptr},
                         {"walk", fast_call(entry<fast_walk, 6>), METH_FASTCALL, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool init_fast_path(PyObject* module) {
    const Reference noise(PyImport_ImportModule("noisefuse.noise"));
    if (!noise.object || !(noise_type = PyObject_GetAttrString(noise.object, "Noise"))) return false;
    float32 = PyArray_DescrFromType(NPY_FLOAT), float64 = PyArray_DescrFromType(NPY_DOUBLE),
    int64 = PyArray_DescrFromType(NPY_INT64), boolean = PyArray_DescrFromType(NPY_BOOL);
    name_reduction = PyUnicode_InternFromString("reduction");
    name_sum = PyUnicode_InternFromString("sum");
    name_mean = PyUnicode_InternFromString("mean");
    name_density = PyUnicode_InternFromString("density");
    name_full = PyUnicode_InternFromString("full");
    name_no_constants = PyUnicode_InternFromString("no_constants");
    name_squared = PyUnicode_InternFromString("squared");
    name_partial = PyUnicode_InternFromString("partial");
    return PyModule_AddFunctions(module, methods) == 0 && (at_seed = slot(noise_type, "seed")) > 0 &&
           (at_sample = slot(noise_type, "sample")) > 0 && (at_step = slot(noise_type, "step")) > 0 &&
           (at_stream = slot(noise_type, "stream")) > 0 && (at_window_shape = slot(noise_type, "window_shape")) > 0 &&
           (at_window_start = slot(noise_type, "window_start")) > 0;
}

}  // namespace nf
