// SPDX-License-Identifier: Apache-2.0
// The fast path. Calls of a few microseconds are mostly Python. So plain calls, with arrays of one float dtype (x may
// be integer levels), row numbers or times and Noises, are checked here, from the original arguments. Small arrays that
// are not C-contiguous, aligned and in native byte order are copied first; tensors have to be plain. All other calls,
// those with wrong arguments included, are declined (NotImplemented): operations then check them, and raise the errors.
#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <numeric>
#include <span>
#include <vector>

#include "core/loss.h"
#include "core/narrow.h"
#include "cpu/dispatch.h"
#include "cpu/float_mode.h"
#include "interrupts.h"
#include "run.h"
#include "torch.h"

namespace nf {
namespace {

PyArray_Descr *float32, *float64;
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

// Whether a linear combination of the row reads this value.
bool reads(uint64_t active, int slot) {
    bool any = slot < kD && counts(active, kClean + 1 + slot);
    for (int first : kAffine) any |= counts(active, first + 1 + slot);
    return any;
}

// Whether each array that a row reads is there.
bool has_inputs(const Call& call) {
    for (int slot = kX; slot < kZ; ++slot)
        if (slot != kD && reads(call.active, slot) && !call.in[slot]) return false;
    return true;
}

// ------------------------------------------------------------------------------------------------ noise

// Exact type only: a subclass may hold unchecked numbers.
bool is_noise(PyObject* o) { return reinterpret_cast<PyObject*>(Py_TYPE(o)) == noise_type; }

// A Noise for the samples of a call, or a list or tuple with one for each.
class PlainNoise {
  public:
    PlainNoise() = default;
    PlainNoise(const PlainNoise&) = delete;
    ~PlainNoise() { Py_XDECREF(names_); }

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
        if (call.size > int64_t{1} << 34) return false;
        if (is_noise(noise)) return plain(take(one_, noise, call.batch));
        if (!(names_ = as_tuple(noise)) || PyTuple_GET_SIZE(names_) != call.batch) return false;
        several_.reset(new (std::nothrow) Field[static_cast<size_t>(call.batch)]());
        if (!several_) return false;
        for (int64_t b = 0; b < call.batch; ++b)
            if (!plain(take(several_[b], PyTuple_GET_ITEM(names_, b), 1))) return false;
        call.fields = several_.get();
        call.field_per_sample = call.batch > 1;
        return true;
    }

    // Draws uniform numbers: from their own stream if the noise has stream 0.
    void use_uniform(Call& call) {
        call.draw = Draw::uniform;
        Field* const fields = several_ ? several_.get() : &one_;
        for (int64_t n = call.field_per_sample ? call.batch : 1, i = 0; i < n; ++i)
            if (fields[i].stream == 0) fields[i].stream = kUniformStream;
    }

  private:
    static constexpr uint32_t kUniformStream = 7;  // as in noise.py
    Field one_{};
    std::unique_ptr<Field[]> several_;
    PyObject* names_ = nullptr;  // a tuple

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
    // call/description.py. Noise has checked that 0 <= start <= full, and that the full sample has at most 2^34
    // elements.
    static bool window(Field& field, PyObject* noise, int ndim, const int64_t* shape) {
        PyObject *const full = part(noise, at_window_shape), *const start = part(noise, at_window_start);
        if (full == Py_None) return true;
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

// ------------------------------------------------------------------------------------------------ outputs

// Makes one output; `data` is its first element. Null: a Python error is set.
PyObject* new_one(const Made& made, char*& data) {
    if (made.is_tensor) return torch.make(made, data);
    Py_INCREF(made.descriptor);
    PyObject* const one = new_array(made.ndim, reinterpret_cast<const npy_intp*>(made.shape), made.descriptor);
    if (one) data = PyArray_BYTES(array(one));
    return one;
}

// The caller's outputs, and new ones.
class PlainOutputs {
  public:
    int wanted = 1;    // their number
    bool all = false;  // whether all of them are returned

    Made first{}, others{};  // out, and auxiliary outputs

    PlainOutputs() = default;
    PlainOutputs(const PlainOutputs&) = delete;
    ~PlainOutputs() {
        Py_XDECREF(tuple_);
        for (PyObject* o : owned_) Py_XDECREF(o);
    }

    // None: it is made when everything else is checked.
    bool take(int o, PyObject* out, Call& call) {
        if (out == Py_None) return o == 0;
        View& v = views_[o];
        if (!view(out, v) || !made(o).fits(v)) return false;
        for (int other = 0; other < o; ++other)
            if (views_[other].data && v.overlaps(views_[other])) return false;
        given_[o] = out;
        call.out[o] = v.data;
        return true;
    }

    // Takes None, a list or tuple of arrays, or the number of new ones.
    bool take_auxiliary(PyObject* arrays, Call& call) {
        if (arrays == Py_None) return true;
        if (PyLong_CheckExact(arrays)) {
            int overflow;
            const long number = PyLong_AsLongAndOverflow(arrays, &overflow);
            wanted += static_cast<int>(number);
            all = true;
            return number >= 0 && number <= 2;
        }
        if (!(tuple_ = as_tuple(arrays))) return false;
        const Py_ssize_t n = PyTuple_GET_SIZE(tuple_);
        for (; wanted <= n; ++wanted)
            if (wanted > 2 || !take(wanted, PyTuple_GET_ITEM(tuple_, wanted - 1), call)) return false;
        return true;
    }

    // Whether the caller gave any.
    bool given() const { return given_[0] || tuple_; }

    // Whether an output overlaps this array in part or, unless the array is an input, at all.
    bool spoil(const View& v, bool input) const {
        for (const View& out : views_)
            if (out.data && v.data && out.overlaps(v) && !(input && out.data == v.data && out.bytes == v.bytes))
                return true;
        return false;
    }

    // Makes the missing ones. False: a Python error is set.
    bool make(Call& call) {
        for (int o = 0; o < wanted; ++o) {
            if (given_[o]) continue;
            char* data;
            if (!(owned_[o] = new_one(made(o), data))) return false;
            call.out[o] = data;
        }
        return true;
    }

    // Returns the first of them, or all. Autograd is told of writes to the caller's tensors.
    PyObject* give() {
        PyObject* written[3];
        Py_ssize_t n = 0;
        for (int o = 0; o < wanted; ++o) {
            if (owned_[o]) continue;
            written[n++] = given_[o];
            owned_[o] = Py_NewRef(given_[o]);
        }
        if (n > 0 && first.is_tensor && !torch.written(written, n)) return nullptr;
        if (!all) return Py_NewRef(owned_[0]);
        PyObject* tuple = PyTuple_New(wanted);
        for (int o = 0; tuple && o < wanted; ++o) PyTuple_SET_ITEM(tuple, o, Py_NewRef(owned_[o]));
        return tuple;
    }

  private:
    PyObject *given_[3] = {}, *owned_[3] = {}, *tuple_ = nullptr;  // given: borrowed
    View views_[3] = {};

    const Made& made(int o) const { return o == 0 ? first : others; }
};

// ------------------------------------------------------------------------------------------------ a row

// The arguments of `row`.
struct RowArguments {
    PyObject *table, *index, *x, *model_output, *past, *noise;
    int stream;
    PyObject *out, *auxiliary;
    PyObject* dtype = Py_None;    // the result's, if it is not x's: see take_dtype
    PyObject* batched = Py_True;  // or False; None if it was not given
};

// Whether this may be one image and no batch, its channels last or first. (`calls.py` repeats the rule.)
bool may_be_image(const View& x) {
    if (!is_level(x.kind) || x.ndim != 3) return false;
    const auto are_colours = [](int64_t n) { return n == 3 || n == 4; };
    const auto are_sides = [](int64_t n, int64_t m) { return n >= 16 && m >= 16; };
    const int64_t* n = x.shape;
    return ((n[2] == 1 || are_colours(n[2])) && are_sides(n[0], n[1])) || (are_colours(n[0]) && are_sides(n[1], n[2]));
}

// Takes (code, numpy.dtype) with a DType's code; or (), for one that is not plain.
bool take_dtype(PyObject* dtype, Made& made) {
    if (PyTuple_GET_SIZE(dtype) != 2) return false;
    made.kind = static_cast<Kind>(PyLong_AsLong(PyTuple_GET_ITEM(dtype, 0)));
    made.descriptor = reinterpret_cast<PyArray_Descr*>(PyTuple_GET_ITEM(dtype, 1));
    return true;
}

// Whether kernels read this kind for such results: the checked path converts other kinds first.
bool is_readable(Kind x, Kind result) {
    return is_level(x) || (result == Kind::f64 ? x == Kind::f64 || x == Kind::f32 : is_float(x) && x != Kind::f64);
}

// Takes the rows of this type from a table (float rows, double rows, active coefficients, ..).
void take_rows(PyObject* table, DType type, Call& call) {
    PyArrayObject* const rows = array(PyTuple_GET_ITEM(table, type == DType::f64));
    call.rows = PyArray_DATA(rows);
    call.n_rows = PyArray_DIM(rows, 0);
    call.active = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(table, 2));
}

class PlainCall {
  public:
    Call call{};
    View x;
    PlainOutputs outputs;
    int64_t indices = 1;  // the number of row numbers

    PlainCall() = default;
    PlainCall(const PlainCall&) = delete;
    ~PlainCall() {
        Py_XDECREF(past_);
        for (PyObject* o : copies_) Py_XDECREF(o);
    }

    // False: something is not plain; no Python error is set then.
    bool parse(const RowArguments& a) {
        if (!read(a.x, x, kX) || x.ndim == 0 || (x.is_tensor && torch.dual()) || !result(a) || !rows(a.table))
            return false;
        if (a.batched == Py_None ? may_be_image(x) : !PyBool_Check(a.batched)) return false;
        batched_ = a.batched != Py_False;
        call.batch = batched_ ? x.shape[0] : 1;
        call.size = x.count / call.batch;
        input(kX, x);
        return index(a.index) && (!times_ || timed()) && model_output(a.model_output) && past(a.past) &&
               noise(a.noise, a.stream) && outputs.take(0, a.out, call) && outputs.take_auxiliary(a.auxiliary, call) &&
               apart() && complete();
    }

    // Whether numbers (n_rows,) are one for each row: those of float times have the shape of the times.
    bool takes_weights() const { return !times_ || index_.ndim == 1; }

    // Of the row numbers, or the times.
    int index_axes() const { return index_.ndim; }

    // Whether something that is computed lies where an input does.
    bool in_place() const {
        bool any = false;
        for (const View& in : inputs_)
            for (const void* out : call.out) any |= in.data && in.data == out;
        return any;
    }

  private:
    bool batched_ = true;
    int64_t scalar_, listed_;
    std::unique_ptr<int64_t[]> copied_;
    PyObject* own_time_;                            // see `timed`; borrowed
    std::unique_ptr<double[]> times_, timed_rows_;  // null: row numbers
    std::unique_ptr<float[]> rounded_;              // rows; null: those of the table
    bool own_rows_ = false;                         // whether the table is of this call alone
    PyObject* past_ = nullptr;                      // a tuple
    PyObject* copies_[kSlots] = {};  // of arrays that kernels cannot read; the copy of row numbers is in D's place
    View index_{}, inputs_[kSlots] = {};
    PlainNoise noise_;

    // Finds the outputs' dtype: x's, or the given one; for integer levels x, the model output's or float32. A given
    // integer dtype is only the first output's.
    bool result(const RowArguments& a) {
        Made made{};
        View like = x;
        if (is_level(x.kind) && a.model_output != Py_None && !read(a.model_output, like, kM1)) return false;
        made = {like.kind, x.is_tensor, x.ndim, x.shape, x.count, nullptr};
        if (!x.is_tensor) made.descriptor = like.is_tensor ? nullptr : PyArray_DESCR(array(like.object));
        Made asked = made;
        if (a.dtype != Py_None && !take_dtype(a.dtype, asked)) return false;
        if (is_float(asked.kind)) made = asked;
        if (is_level(made.kind)) made.kind = Kind::f32, made.descriptor = float32;
        outputs.first = a.dtype == Py_None ? made : asked;
        outputs.others = made;
        call.type = dtype(made.kind);
        call.out_type = dtype(outputs.first.kind);
        return is_float(made.kind) && is_readable(x.kind, made.kind);
    }

    // (float rows, double rows, active coefficients, the same for x of uint8, and of uint16, or None, what `timed`
    // takes, or an array of transitions, or None). Where there are no float rows, those of the call alone are rounded
    // here.
    bool rows(PyObject* table) {
        if (is_level(x.kind)) table = PyTuple_GET_ITEM(table, x.kind == Kind::u8 ? 3 : 4);
        if (table == Py_None) return false;
        own_time_ = PyTuple_GET_ITEM(table, 5);
        if (PyArray_Check(own_time_)) {  // bytes become others, by a table of 256 for each row
            if (x.kind != Kind::u8) return false;
            call.transitions = static_cast<const Transition*>(PyArray_DATA(array(own_time_)));
            own_time_ = Py_None;
        }
        own_rows_ = PyTuple_GET_ITEM(table, 0) == Py_None;
        const bool rounds = own_rows_ && call.type != DType::f64;
        take_rows(table, rounds ? DType::f64 : call.type, call);
        return !rounds || round_rows();
    }

    // Rounds double rows to float rows.
    bool round_rows() {
        const int64_t n = kColumns * call.n_rows;
        rounded_.reset(new (std::nothrow) float[static_cast<size_t>(n)]);
        if (!rounded_) return false;
        const auto* const rows = static_cast<const double*>(call.rows);
        const FloatMode mode;
        std::transform(rows, rows + n, rounded_.get(), [](double number) { return static_cast<float>(number); });
        call.rows = rounded_.get();
        return true;
    }

    // Views the array, or a copy that is kept for this slot.
    bool read(PyObject* o, View& v, int slot) {
        if (view(o, v)) return true;
        if (!PyArray_CheckExact(o) || PyArray_ISCARRAY_RO(array(o))) return false;
        if (!copies_[slot]) copies_[slot] = plain_copy(array(o));
        return copies_[slot] && view(copies_[slot], v);
    }

    bool input(int slot, const View& v) {
        inputs_[slot] = v;
        call.in_type[slot] = dtype(v.kind);
        if (reads(call.active, slot)) call.in[slot] = v.data;
        return true;
    }

    // Takes an input of x's shape and the result's dtype; an array of noise may also be float32.
    bool input(int slot, PyObject* a) {
        View v;
        return read(a, v, slot) && v.same_shape(x) && v.is_tensor == x.is_tensor &&
               (v.kind == outputs.others.kind || (slot == kZ && v.kind == Kind::f32)) && input(slot, v);
    }

    // Takes a row for all elements, or one for each segment: an array, or a list, whose shape begins x's shape. If the
    // schedule has its own time, they may be floats.
    bool index(PyObject* i) {
        call.segment = x.count;
        if (PyFloat_Check(i) || PyArray_IsScalar(i, Floating)) return hold_times(1) && take_time(i, times_[0]);
        if (take_integer(i, scalar_)) {
            call.index = &scalar_;
            return scalar_ >= 0 && scalar_ < call.n_rows;
        }
        if (!(PyList_CheckExact(i) || PyTuple_CheckExact(i) ? listed(i) : indexed(i))) return false;
        if (own_rows_ && by_channel()) return in_table();
        if (indices > 1) {
            for (int axis = 0; axis < index_.ndim; ++axis)
                if (axis >= x.ndim || index_.shape[axis] != x.shape[axis]) return false;
            call.segment = x.count / indices;
        }
        return in_table();
    }

    bool in_table() const {
        for (int64_t b = 0; b < indices && !times_; ++b)
            if (call.index[b] < 0 || call.index[b] >= call.n_rows) return false;
        return true;
    }

    // Whether each channel, in the last axis, of each sample has a row: (B, 1, .., C). Kept rows have no such index.
    bool by_channel() {
        if (index_.ndim < 3 || index_.ndim != x.ndim || index_.shape[0] != call.batch) return false;
        const int64_t channels = x.shape[x.ndim - 1];
        if (index_.shape[x.ndim - 1] != channels || indices != call.batch * channels) return false;
        call.period = channels;
        return true;
    }

    bool indexed(PyObject* i) {
        if (!read(i, index_, kD)) return false;
        indices = index_.count;
        if (is_float(index_.kind)) {
            if (indices > x.count || !hold_times(indices)) return false;
            for (int64_t b = 0; b < indices; ++b) times_[static_cast<size_t>(b)] = time_at(index_, b);
            return true;
        }
        if (index_.kind != Kind::i64 && index_.kind != Kind::i32) return false;
        call.index = reinterpret_cast<const int64_t*>(index_.data);
        if (index_.kind == Kind::i64) return true;
        if (indices > x.count || !copy(indices)) return false;
        std::copy_n(reinterpret_cast<const int32_t*>(index_.data), indices, copied_.get());
        return true;
    }

    // Takes one number for each sample, or a single one.
    bool listed(PyObject* i) {
        const Reference rows(as_tuple(i));
        if (!rows.object) return false;
        indices = listed_ = PyTuple_GET_SIZE(rows.object);
        index_.ndim = 1, index_.shape = &listed_;
        if (indices != 1 && indices != x.shape[0]) return false;
        const bool floats = PyFloat_Check(PyTuple_GET_ITEM(rows.object, 0));
        bool good = floats ? hold_times(indices) : copy(indices);
        for (int64_t b = 0; b < indices && good; ++b) {
            PyObject* const one = PyTuple_GET_ITEM(rows.object, b);
            const auto at = static_cast<size_t>(b);
            good = floats ? PyFloat_Check(one) && take_time(one, times_[at]) : take_integer(one, copied_[at]);
        }
        return good;
    }

    bool hold_times(int64_t n) {
        if (own_time_ != Py_None) times_.reset(new (std::nothrow) double[static_cast<size_t>(n)]);
        return times_ != nullptr;
    }

    static bool take_time(PyObject* o, double& time) {
        time = PyFloat_AsDouble(o);
        const bool failed = PyErr_Occurred();
        PyErr_Clear();
        return !failed;
    }

    static double time_at(const View& times, int64_t at) {
        const auto is = [&](auto zero) { return reinterpret_cast<const decltype(zero)*>(times.data)[at]; };
        switch (times.kind) {
            case Kind::f64:
                return is(0.0);
            case Kind::f32:
                return static_cast<double>(is(0.0f));
            case Kind::f16:
                return static_cast<double>(half_to_float(is(uint16_t{0})));
            default:
                return static_cast<double>(bfloat16_to_float(is(uint16_t{0})));
        }
    }

    // Makes the rows of float times, if the table has (a function from a float, or from float64 (n,), to alpha and
    // sigma at these times; the last time; the rows at (alpha, sigma) = (0, 0), (1, 0) and (0, 1); the scale and the
    // offset of integer results, or None). A number of such a row is a constant, or a multiple of alpha or of sigma.
    // False: declined, or the function raised, and its Python error is set.
    bool timed() {
        const double last = PyFloat_AsDouble(PyTuple_GET_ITEM(own_time_, 1));
        int64_t zeros = 0, ones = 0;
        for (const double t : std::span(times_.get(), static_cast<size_t>(indices))) {
            if (!(t >= 0 && t <= last) || std::isinf(t)) return false;
            zeros += t == 0, ones += t == 1;
        }
        if (zeros && ones && zeros + ones == indices) return false;  // they look like steps, which gives a warning
        const Reference times(given_times());
        PyObject* const at = PyTuple_GET_ITEM(own_time_, 0);
        const Reference levels(times.object ? PyObject_CallOneArg(at, times.object) : nullptr);
        if (!levels.object) return false;
        double alpha[1], sigma[1];
        const double *alphas = numbers(PyTuple_GET_ITEM(levels.object, 0), alpha),
                     *sigmas = numbers(PyTuple_GET_ITEM(levels.object, 1), sigma);
        const auto n = static_cast<size_t>(kColumns * indices);
        timed_rows_.reset(new (std::nothrow) double[n]);
        if (!timed_rows_ || !copy(indices)) return false;
        for (int64_t b = 0; b < indices; ++b) timed_row(alphas[b], sigmas[b], &timed_rows_[kColumns * b]);
        std::iota(copied_.get(), copied_.get() + indices, 0);
        call.n_rows = indices;
        call.rows = timed_rows_.get();
        return call.type == DType::f64 || round_rows();
    }

    // Returns a single time as a number: Python takes a tenth of NumPy's time for it.
    PyObject* given_times() const {
        if (indices == 1) return PyFloat_FromDouble(times_[0]);
        Py_INCREF(float64);
        const npy_intp n = indices;
        PyObject* const made = new_array(1, &n, float64);
        if (made) std::copy_n(times_.get(), indices, static_cast<double*>(PyArray_DATA(array(made))));
        return made;
    }

    // Returns one number, or the elements of float64 (n,).
    const double* numbers(PyObject* o, double* one) const {
        if (indices > 1) return static_cast<const double*>(PyArray_DATA(array(o)));
        *one = PyFloat_AsDouble(o);
        return one;
    }

    void timed_row(double alpha, double sigma, double* row) const {
        const auto* const ends = static_cast<const double*>(PyArray_DATA(array(PyTuple_GET_ITEM(own_time_, 2))));
        for (int c = 0; c < kColumns; ++c) {
            const double of_alpha = ends[kColumns + c], of_sigma = ends[2 * kColumns + c];
            row[c] = ends[c] != 0 ? ends[c] : of_alpha != 0 ? alpha * of_alpha : sigma * of_sigma;
        }
        PyObject* const range = PyTuple_GET_ITEM(own_time_, 3);
        if (range == Py_None) return;
        double* const out = row + kAffine[0];
        for (int c = 0; c <= kZ + 1; ++c) out[c] *= PyFloat_AsDouble(PyTuple_GET_ITEM(range, 0));
        out[0] += PyFloat_AsDouble(PyTuple_GET_ITEM(range, 1));
    }

    bool copy(int64_t n) {
        copied_.reset(new (std::nothrow) int64_t[static_cast<size_t>(n)]);
        call.index = copied_.get();
        return copied_ != nullptr;
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
            if (k >= kZ - kPast1 || !input(kPast1 + static_cast<int>(k), PyTuple_GET_ITEM(past_, k))) return false;
        return true;
    }

    bool noise(PyObject* noise, int stream) {
        if (call.transitions) {
            if (!noise_.parse(noise, stream, call, x.ndim - batched_, x.shape + batched_)) return false;
            call.draw = Draw::words;
            return true;
        }
        const bool drawn = reads(call.active, kZ);
        if (noise == Py_None) return !drawn || draws_nothing();
        if (!drawn && is_noise(noise)) return true;  // what it names plays no part
        if (View z; PyArray_CheckExact(noise) || view(noise, z)) return input(kZ, noise);
        if (!noise_.parse(noise, stream, call, x.ndim - batched_, x.shape + batched_)) return false;
        if (!drawn) call.draw = Draw::none;
        return true;
    }

    // Without noise, the chosen rows must have none.
    bool draws_nothing() {
        for (int first : kAffine) {
            const int column = first + 1 + kZ;
            for (int64_t b = 0; b < indices; ++b) {
                const int64_t at = kColumns * row_of(call, b) + column;
                if (call.type == DType::f64 ? static_cast<const double*>(call.rows)[at] != 0
                                            : static_cast<const float*>(call.rows)[at] != 0)
                    return false;
            }
            call.active &= ~(uint64_t{1} << column);
        }
        return true;
    }

    // Each output may be exactly one of the inputs.
    bool apart() const {
        if (!outputs.given()) return true;
        for (const View& in : inputs_)
            if (outputs.spoil(in, true)) return false;
        return !outputs.spoil(index_, false);
    }

    bool complete() const { return has_inputs(call); }
};

// ------------------------------------------------------------------------------------------------ a loss

// Takes None, or float64, one for each row, finite at the call's rows.
bool plain_weights(PyObject* weights, PlainCall& plain) {
    if (weights == Py_None) return true;
    View w;
    if (!view(weights, w) || w.is_tensor || w.kind != Kind::f64 || w.ndim != 1 || w.count != plain.call.n_rows ||
        !plain.takes_weights())
        return false;
    plain.call.weights = reinterpret_cast<const double*>(w.data);
    for (int64_t i = 0; i < plain.indices; ++i)
        if (!std::isfinite(plain.call.weights[row_of(plain.call, i)])) return false;
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

}  // namespace

// Declines a call that is not plain: NotImplemented; or null, if the function that `timed` called set a Python error.
PyObject* declined() {
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NOTIMPLEMENTED;
}

// row(table, i, x, model_output, past, noise, stream, out, aux, dtype, batched, clip), or NotImplemented. Returns out,
// or the tuple (out, aux1, ..) if aux is a number of new arrays. clip may be left out. It is a table of one row, for
// any dtype of x, which clips the result.
PyObject* fast_row(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n != 11 && n != 12) return PyErr_Format(PyExc_TypeError, "row: expected 11 or 12 arguments, got %zd", n);
    PlainCall plain;
    const Call& call = plain.call;
    const int stream = static_cast<int>(PyLong_AsLong(args[6]));
    if (!plain.parse(
            {args[0], args[1], args[2], args[3], args[4], args[5], stream, args[7], args[8], args[9], args[10]}))
        return declined();
    if (!plain.outputs.make(plain.call)) return nullptr;
    if (n == 11 || args[11] == Py_None) return run_plain(call, run_step) ? plain.outputs.give() : nullptr;
    const double low = PyFloat_AsDouble(PyTuple_GET_ITEM(args[11], 0)),
                 high = PyFloat_AsDouble(PyTuple_GET_ITEM(args[11], 1));
    const auto run = [&](const Call& step, const GoOn& go_on) { return run_clipped_step(step, low, high, go_on); };
    return run_plain(call, run) ? plain.outputs.give() : nullptr;
}

// random(table, shape, noise, uniform, dtype, batched, tensor, out), or NotImplemented: noise of this shape.
PyObject* fast_random(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n != 8) return PyErr_Format(PyExc_TypeError, "random: expected 8 arguments, got %zd", n);
    Call call{};
    PlainNoise noise;
    PlainOutputs outputs;
    int64_t shape[NPY_MAXDIMS];
    const int64_t row = 0;
    const bool batched = args[5] == Py_True;
    Made& made = outputs.first;
    made.is_tensor = args[6] == Py_True, made.shape = shape;
    if (!PyBool_Check(args[5]) || !take_dtype(args[4], made) || !lengths(args[1], shape, made) ||
        (made.is_tensor && !torch.is_known()))
        Py_RETURN_NOTIMPLEMENTED;
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
    return run_plain(call, run_step) ? outputs.give() : nullptr;
}

// Numbers that are returned, float64 (n,); of tensors a tensor, which may be of float32. Or one of them, a float, or a
// tensor without axes.
class PlainNumbers {
  public:
    std::vector<double> values;

    PlainNumbers(int64_t n, bool one) : values(static_cast<size_t>(n)), n_(n), one_(one) {}

    // A new reference; null: a Python error is set.
    PyObject* give(bool is_tensor, bool wide) const {
        if (one_ && !is_tensor) return PyFloat_FromDouble(values[0]);
        char* data;
        PyObject* const made = new_one({wide ? Kind::f64 : Kind::f32, is_tensor, one_ ? 0 : 1, &n_, n_, float64}, data);
        if (made && wide) std::copy(values.begin(), values.end(), reinterpret_cast<double*>(data));
        if (made && !wide)
            std::transform(values.begin(), values.end(), reinterpret_cast<float*>(data),
                           [](double value) { return static_cast<float>(value); });
        return made;
    }

  private:
    int64_t n_;
    bool one_;
};

// mse(table, t, x0, pred, noise, weights or None, upstream, wants loss, out, batched, each), or NotImplemented; of the
// mean over all elements, or over those of each sample. weights: one for each row. out: None, where the gradient is to
// be written, or True: make it. Returns the loss, float64 (B,) or a float (of tensors a tensor, of float32 unless pred
// is of float64), the gradient, or (loss, gradient).
PyObject* fast_mse(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n != 11) return PyErr_Format(PyExc_TypeError, "mse: expected 11 arguments, got %zd", n);
    PyObject *weights = args[5], *out = args[8] == Py_True ? Py_None : args[8];
    PlainCall plain;
    Call& call = plain.call;
    if (!plain.parse({args[0], args[1], args[2], args[3], Py_None, args[4], -1, out, Py_None, Py_None, args[9]}) ||
        !PyFloat_CheckExact(args[6]) || !plain_weights(weights, plain))
        return declined();
    const bool wants_loss = args[7] == Py_True, each = args[10] == Py_True;
    if (args[8] == Py_None) plain.outputs.wanted = 0;
    if (!plain.outputs.make(call)) return nullptr;
    call.piece = call.segment < call.size ? call.segment : call.size;
    call.g = PyFloat_AS_DOUBLE(args[6]);
    call.n = static_cast<double>(each ? call.size : plain.x.count);
    try {
        PlainNumbers losses(each ? call.batch : 1, !each);
        if (wants_loss) call.losses = losses.values.data(), call.n_losses = each ? call.batch : 1;
        if (!run_plain(call, run_loss)) return nullptr;
        if (!wants_loss) return plain.outputs.give();
        const bool is_tensor = plain.x.is_tensor;
        const Reference loss(losses.give(is_tensor, !is_tensor || call.type == DType::f64));
        if (!loss.object || !plain.outputs.wanted) return Py_XNewRef(loss.object);
        const Reference gradient(plain.outputs.give());
        return gradient.object ? PyTuple_Pack(2, loss.object, gradient.object) : nullptr;
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

// Whether it is this name, a string that is interned.
bool is_named(PyObject* o, PyObject* name) {
    return o == name || (PyUnicode_CheckExact(o) && PyUnicode_Compare(o, name) == 0);
}

// What makes log-densities of sums of squares, factor S + constant: density.Law.
class PlainLaw {
  public:
    struct Numbers {
        double factor, constant;
    };

    // numbers: of each row the factor and the constant of one element, (n, 2). given: `reduction`, `density` and
    // `partial`, by name. False: declined, as where a row of the call draws nothing.
    bool parse(PyObject* numbers, PyObject* given, const PlainCall& plain) {
        of_rows_ = static_cast<const double*>(PyArray_DATA(array(numbers)));
        elements_ = static_cast<double>(plain.call.size);
        PyObject *name, *value;
        for (Py_ssize_t at = 0; PyDict_Next(given, &at, &name, &value);) {
            if (is_named(name, name_reduction)) {
                mean_ = is_named(value, name_mean);
                if (!mean_ && !is_named(value, name_sum)) return false;
            } else if (is_named(name, name_density)) {
                full_ = is_named(value, name_full), squared_ = is_named(value, name_squared);
                if (!full_ && !squared_ && !is_named(value, name_no_constants)) return false;
            } else if (!is_named(name, name_partial) || value != Py_False) {
                return false;
            }
        }
        if (plain.index_axes() > 1) return false;
        several_ = plain.indices > 1;
        for (int64_t b = 0; b < plain.indices; ++b)
            if (of_rows_[2 * row_of(plain.call, b)] == 0) return false;
        return true;
    }

    Numbers of_sample(const Call& call, int64_t b) const {
        const double* const row = of_rows_ + 2 * row_of(call, several_ ? b : 0);
        const double factor = squared_ ? -1 : row[0], constant = full_ ? row[1] : 0;
        return mean_ ? Numbers{factor / elements_, constant} : Numbers{factor, elements_ * constant};
    }

  private:
    const double* of_rows_;
    double elements_;
    bool mean_ = false, full_ = true, squared_ = false, several_ = false;
};

// density(table, stored, i, x, model_output, past, noise, stream, out, aux, law), or NotImplemented: a step, and of
// each sample its log-density, for which the step's result stands in the place of the noise. table: None, or (rows, the
// deviation's rows, the numbers of PlainLaw); law: a dict, of PlainLaw's names. Returns (out, float64 (B,)); of what is
// stored, which is given as the noise, that alone.
PyObject* fast_density(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n != 11) return PyErr_Format(PyExc_TypeError, "density: expected 11 arguments, got %zd", n);
    PyObject* const table = args[0];
    if (table == Py_None) Py_RETURN_NOTIMPLEMENTED;
    const bool stored = args[1] == Py_True;
    PlainCall plain;
    PlainLaw law;
    Call& step = plain.call;
    const int stream = static_cast<int>(PyLong_AsLong(args[7]));
    if (!plain.parse(
            {PyTuple_GET_ITEM(table, stored), args[2], args[3], args[4], args[5], args[6], stream, args[8], args[9]}) ||
        step.out_type != step.type || plain.in_place() || (stored && (!step.in[kZ] || step.in_type[kZ] != step.type)) ||
        !law.parse(PyTuple_GET_ITEM(table, 2), args[10], plain))
        Py_RETURN_NOTIMPLEMENTED;
    Call loss = step;
    take_rows(PyTuple_GET_ITEM(table, 1), loss.type, loss);
    if (!has_inputs(loss)) Py_RETURN_NOTIMPLEMENTED;
    if (stored) plain.outputs.wanted = 0;
    if (!plain.outputs.make(step)) return nullptr;
    if (!stored) loss.in[kZ] = step.out[0], loss.in_type[kZ] = step.out_type;
    for (void*& out : loss.out) out = nullptr;
    loss.draw = Draw::none, loss.piece = loss.size, loss.n = 1;
    loss.n_losses = loss.batch;
    char* sums;
    const Reference made(new_one({Kind::f64, plain.x.is_tensor, 1, &loss.batch, loss.batch, float64}, sums));
    if (!made.object) return nullptr;
    loss.losses = reinterpret_cast<double*>(sums);
    const auto run = [&](const Call& of_loss, const GoOn& go_on) {
        return stored ? run_loss(of_loss, go_on) : run_step_and_loss(step, of_loss, go_on);
    };
    if (!run_plain(loss, run)) return nullptr;
    for (int64_t b = 0; b < loss.batch; ++b) {
        const PlainLaw::Numbers numbers = law.of_sample(loss, b);
        loss.losses[b] = loss.losses[b] * numbers.factor + numbers.constant;
    }
    if (stored) return Py_NewRef(made.object);
    const Reference out(plain.outputs.give());
    return out.object ? PyTuple_Pack(2, out.object, made.object) : nullptr;
}

// The gradients with respect to sums of samples: those with respect to what is returned, times factor(b).
struct PlainUpstream {
    std::vector<double> each;

    // given: a number, or one for each sample. False: declined.
    template <class Factor>
    bool parse(PyObject* given, bool several, const Factor& factor, Call& call) {
        call.n = 1;
        const double number = PyFloat_CheckExact(given) ? PyFloat_AS_DOUBLE(given) : 0;
        if (PyFloat_CheckExact(given) && !several) {
            call.g = factor(0) * number;
            return true;
        }
        View v;
        const bool one = PyFloat_CheckExact(given);
        if (!one && (!view(given, v) || v.kind != Kind::f64 || v.ndim != 1 || v.count != call.batch)) return false;
        each.resize(static_cast<size_t>(call.batch));
        for (int64_t b = 0; b < call.batch; ++b)
            each[static_cast<size_t>(b)] = factor(b) * (one ? number : reinterpret_cast<const double*>(v.data)[b]);
        call.upstream = each.data(), call.upstream_step = 1;
        return true;
    }
};

// A coefficient in the row of each sample.
double coefficient(PyObject* table, PyObject* column, const PlainCall& plain, int64_t b) {
    const auto* const rows = static_cast<const double*>(PyArray_DATA(array(PyTuple_GET_ITEM(table, 1))));
    return rows[kColumns * row_of(plain.call, plain.indices > 1 ? b : 0) + PyLong_AsLong(column)];
}

// density_gradient(table, column, i, x, model_output, past, x_next, upstream, out, law), or NotImplemented: of the
// log-density of what is stored, with respect to the input whose coefficient in the deviation's rows has this column.
PyObject* fast_density_gradient(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n != 10) return PyErr_Format(PyExc_TypeError, "density_gradient: expected 10 arguments, got %zd", n);
    PyObject* const table = args[0];
    if (table == Py_None || args[1] == Py_None) Py_RETURN_NOTIMPLEMENTED;
    PyObject* const deviation = PyTuple_GET_ITEM(table, 1);
    PlainCall plain;
    PlainLaw law;
    Call& call = plain.call;
    if (!plain.parse({deviation, args[2], args[3], args[4], args[5], args[6], 0, args[8], Py_None}) ||
        call.out_type != call.type || !call.in[kZ] || call.in_type[kZ] != call.type ||
        !law.parse(PyTuple_GET_ITEM(table, 2), args[9], plain))
        Py_RETURN_NOTIMPLEMENTED;
    const auto factor = [&](int64_t b) {
        return law.of_sample(call, b).factor * coefficient(deviation, args[1], plain, b);
    };
    PlainUpstream upstream;
    try {
        if (!upstream.parse(args[7], plain.indices > 1, factor, call)) Py_RETURN_NOTIMPLEMENTED;
        if (!plain.outputs.make(call)) return nullptr;
        call.draw = Draw::none, call.piece = call.size;
        return run_plain(call, run_loss) ? plain.outputs.give() : nullptr;
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

// divergence(table, differences, column, i, model_output, reference, upstream, out, law), or NotImplemented: float64
// (B,), of two model outputs, whose coefficient in the deviation's rows has this column; or, where `upstream` is not
// None, its gradient. differences: the rows of the first less the second.
PyObject* fast_divergence(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n != 9) return PyErr_Format(PyExc_TypeError, "divergence: expected 9 arguments, got %zd", n);
    PyObject* const table = args[0];
    if (table == Py_None) Py_RETURN_NOTIMPLEMENTED;
    const bool is_gradient = args[6] != Py_None;
    PlainCall plain;
    PlainLaw law;
    Call& call = plain.call;
    if (!plain.parse({args[1], args[3], args[5], args[4], Py_None, Py_None, 0, args[7], Py_None}) ||
        call.out_type != call.type || call.in_type[kX] != call.type ||
        !law.parse(PyTuple_GET_ITEM(table, 2), args[8], plain))
        Py_RETURN_NOTIMPLEMENTED;
    const auto factor = [&](int64_t b) {
        const double slope = coefficient(PyTuple_GET_ITEM(table, 1), args[2], plain, b);
        return -law.of_sample(call, b).factor * slope * slope;
    };
    PlainUpstream upstream;
    try {
        if (is_gradient && !upstream.parse(args[6], plain.indices > 1, factor, call)) Py_RETURN_NOTIMPLEMENTED;
        plain.outputs.wanted = is_gradient;
        if (!plain.outputs.make(call)) return nullptr;
        call.draw = Draw::none, call.piece = call.size, call.n = 1;
        PlainNumbers sums(is_gradient ? 0 : call.batch, false);
        if (!is_gradient) call.losses = sums.values.data(), call.n_losses = call.batch;
        if (!run_plain(call, run_loss)) return nullptr;
        if (is_gradient) return plain.outputs.give();
        for (int64_t b = 0; b < call.batch; ++b) {
            double& sum = sums.values[static_cast<size_t>(b)];
            sum = sum * factor(b) + 0.0;
        }
        return sums.give(plain.x.is_tensor, true);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
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

bool init_fast_path() {
    const Reference noise(PyImport_ImportModule("noisefuse.noise"));
    if (!noise.object || !(noise_type = PyObject_GetAttrString(noise.object, "Noise"))) return false;
    float32 = PyArray_DescrFromType(NPY_FLOAT), float64 = PyArray_DescrFromType(NPY_DOUBLE);
    name_reduction = PyUnicode_InternFromString("reduction");
    name_sum = PyUnicode_InternFromString("sum");
    name_mean = PyUnicode_InternFromString("mean");
    name_density = PyUnicode_InternFromString("density");
    name_full = PyUnicode_InternFromString("full");
    name_no_constants = PyUnicode_InternFromString("no_constants");
    name_squared = PyUnicode_InternFromString("squared");
    name_partial = PyUnicode_InternFromString("partial");
    return (at_seed = slot(noise_type, "seed")) > 0 && (at_sample = slot(noise_type, "sample")) > 0 &&
           (at_step = slot(noise_type, "step")) > 0 && (at_stream = slot(noise_type, "stream")) > 0 &&
           (at_window_shape = slot(noise_type, "window_shape")) > 0 &&
           (at_window_start = slot(noise_type, "window_start")) > 0;
}

}  // namespace nf
