// SPDX-License-Identifier: Apache-2.0
// A plain call of the fast path: its rows or times, its arrays, its noise and its outputs.
#pragma once
#include <algorithm>
#include <bit>
#include <memory>
#include <new>
#include <numeric>

#include "../cpu/float_mode.h"
#include "fast_outputs.h"
#include "fast_rows.h"

namespace nf {
namespace {

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

// Numbers of the length of a call, without an allocation for few of them.
template <class Number, size_t kFew>
class Numbers {
  public:
    // False: there is no memory.
    bool take(size_t n) {
        if (n > kFew) many_.reset(new (std::nothrow) Number[n]);
        data = n > kFew ? many_.get() : few_;
        return data;
    }

    Number* data = nullptr;

  private:
    Number few_[kFew];
    std::unique_ptr<Number[]> many_;
};

class FastCall {
  public:
    Call call{};
    View x;
    FastOutputs outputs;
    int64_t indices = 1;          // the number of row numbers
    bool adds_up = false;         // whether elements are added up, which is done in C's order
    int leads = kX;               // the slot of the input whose order in memory new tensors have
    bool mixes = false;           // whether model outputs may have another dtype than x
    PyObject* watched = nullptr;  // the input that autograd may watch
    Turned turned;

    FastCall() = default;
    FastCall(const FastCall&) = delete;
    ~FastCall() { Py_XDECREF(past_); }

    // False: something is not plain; no Python error is set then.
    bool parse(const RowArguments& a) {
        if (!read(a.x, x, kX) || x.ndim == 0 || (x.is_tensor && torch.dual()) || !result(a) || !rows(a.table))
            return false;
        if (a.batched == Py_None ? may_be_image(x) : !PyBool_Check(a.batched)) return false;
        batched_ = a.batched != Py_False;
        call.batch = batched_ ? x.shape[0] : 1;
        call.size = x.count / call.batch;
        input(kX, x);
        return index(a.index) && (!times_.data || timed()) && model_output(a.model_output) && past(a.past) &&
               noise(a.noise, a.stream) && outputs.take(0, a.out, call) && outputs.take_auxiliary(a.auxiliary, call) &&
               apart() && complete() && !(watched && reads_watched()) && follow(a) && settle();
    }

    // Whether numbers (n_rows,) are one for each row: those of float times have the shape of the times.
    bool takes_weights() const { return !times_.data || index_.ndim == 1; }

    // Takes one row for all elements if those of all times are the same: segments cost time. `piece` is known by now.
    void join_rows() {
        if (rows_alike_ && !call.weights && !call.period && !turned.any()) call.segment = x.count;
    }

    // Of the row numbers, or the times.
    int index_axes() const { return index_.ndim; }

    // Runs it as a loss. False: a Python error is set.
    bool run_loss() const {
        return run_plain(call, [&](const Call& loss, const GoOn& go_on) { return nf::run_loss(loss, go_on, turned); });
    }

    // Whether something that is computed lies where an input does.
    bool in_place() const {
        bool any = false;
        for (const View& in : inputs_)
            for (const void* out : call.out) any |= in.data && in.data == out;
        return any;
    }

  private:
    bool batched_ = true;
    int64_t scalar_, listed_, lengths_[kMostAxes];  // x's shape
    Numbers<int64_t, 1> copied_;
    PyObject* own_time_;                // see `timed`; borrowed
    Numbers<double, 1> times_;          // no data: row numbers
    Numbers<double, kColumns> wide_;    // rows of times
    Numbers<float, kColumns> rounded_;  // the same, or a table's rows
    bool own_rows_ = false;             // whether the table is of this call alone
    bool rows_alike_ = false;           // whether the rows of all times are the same
    PyObject* past_ = nullptr;          // a tuple
    // Copies of arrays that kernels cannot read; those of row numbers are in D's place.
    struct Copies {
        Scratch strided[kSlots];
        PyObject* native[kSlots] = {};  // of swapped bytes
        Copy orders[kSlots];            // of arrays that are read block by block
        ~Copies() {
            for (PyObject* o : native) Py_XDECREF(o);
        }
    };
    std::unique_ptr<Copies> copies_;  // few calls have any
    unsigned lie_turned_ = 0;         // bit s: the array of slot s is not copied, but turned
    View index_{}, inputs_[kSlots] = {};
    FastNoise noise_;

    // Finds the outputs' dtype: x's, or the given one; for integer levels x, the model output's or float32. A given
    // integer dtype is only the first output's.
    bool result(const RowArguments& a) {
        View like = x;
        if (is_level(x.kind) && a.model_output != Py_None && !read(a.model_output, like, kM1)) return false;
        Made &made = outputs.others, &first = outputs.first;
        made = {like.kind, x.is_tensor, x.ndim, x.shape, x.count, nullptr};
        if (!x.is_tensor) made.descriptor = like.is_tensor ? nullptr : PyArray_DESCR(array(like.object));
        if (a.dtype != Py_None) {
            first = made;
            if (!take_dtype(a.dtype, first)) return false;
            if (is_float(first.kind)) made = first;
        }
        if (is_level(made.kind)) made.kind = Kind::f32, made.descriptor = float32;
        if (a.dtype == Py_None) first = made;
        call.type = dtype(made.kind);
        call.out_type = dtype(first.kind);
        return is_float(made.kind) && is_readable(x.kind, made.kind);
    }

    // (float rows, double rows, active coefficients, the same for x of uint8, and of uint16, or None, what `timed`
    // takes, or an array of transitions, or True for 256 rows by the levels of x, or None). Where there are no float
    // rows, those of the call alone are rounded here.
    bool rows(PyObject* table) {
        if (is_level(x.kind)) table = PyTuple_GET_ITEM(table, x.kind == Kind::u8 ? 3 : 4);
        if (table == Py_None) return false;
        own_time_ = PyTuple_GET_ITEM(table, 5);
        call.by_level = own_time_ == Py_True;
        if (call.by_level || PyArray_Check(own_time_)) {  // bytes become others, by a table of 256 for each row
            if (x.kind != Kind::u8) return false;
            if (!call.by_level) call.transitions = static_cast<const Transition*>(PyArray_DATA(array(own_time_)));
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
        if (!rounded_.take(static_cast<size_t>(n))) return false;
        const auto* const rows = static_cast<const double*>(call.rows);
        const FloatMode mode;
        std::transform(rows, rows + n, rounded_.data, [](double number) { return static_cast<float>(number); });
        call.rows = rounded_.data;
        return true;
    }

    // Views the array, or a copy that is kept for this slot. False, perhaps with a Python error: it is not plain.
    bool read(PyObject* o, View& v, int slot) {
        if (view(o, v, watched)) return slot != kX || v.keep_shape(lengths_);
        if (PyArray_CheckExact(o) && PyArray_ISBYTESWAPPED(array(o))) {
            if (!can_copy()) return false;
            PyObject*& native = copies_->native[slot];
            if (!native) native = native_copy(array(o));
            return native && view(native, v);
        }
        Copy copy;
        constexpr int64_t kMost = int64_t{1} << 34;  // elements: beyond are errors, which should not wait for a copy
        if (!view_any(o, v, copy, watched) || v.count > kMost || (slot == kX && !v.keep_shape(lengths_))) return false;
        Turned found;
        if (slot != kD && is_turned(v, copy, found) &&
            (!turned.rows || (found.rows == turned.rows && found.columns == turned.columns))) {
            lie_turned_ |= 1u << slot;
            turned.rows = found.rows, turned.columns = found.columns;
            return true;
        }
        return keep_order(copy, v, slot) || copied(copy, v, slot);
    }

    // Keeps the order of an array whose elements follow one another in long runs. It then has no memory that outputs
    // could overlap: `settle` looks at that.
    bool keep_order(Copy& copy, View& v, int slot) {
        constexpr int64_t kLongRun = 512;
        strides_of(copy.shape, copy.axes, copy.item, false, copy.to_strides);
        if (slot == kD || v.count <= kFewTurned || run_in_order(copy) < kLongRun || !can_copy()) return false;
        turned.orders = copies_->orders;
        copies_->orders[slot] = copy;
        v.data = reinterpret_cast<char*>(&copies_->orders[slot]), v.bytes = 0;
        lie_turned_ |= 1u << slot;
        return true;
    }

    bool has_order(int slot) const { return turned.orders && turned.orders[slot].item; }

    bool can_copy() { return copies_ || (copies_.reset(new (std::nothrow) Copies), copies_); }

    // New tensors have this input's order in memory, if it was copied for its own or is turned.
    bool follow(const RowArguments& a) {
        PyObject* const m = PyTuple_CheckExact(a.model_output) ? PyTuple_GET_ITEM(a.model_output, 0) : a.model_output;
        const bool copied = (copies_ && copies_->strided[leads].data) || lies_turned(leads);
        outputs.channels_last = copied && x.is_tensor && torch.is_channels_last(leads == kM1 ? m : a.x);
        outputs.written_last = outputs.channels_last && lies_turned(leads) && !has_order(leads);
        return true;
    }

    // Whether others than the prediction are the input that autograd watches.
    bool reads_watched() const {
        bool any = index_.object == watched;
        for (int slot = 0; slot < kSlots; ++slot)
            any |= slot != kM1 && call.in[slot] && inputs_[slot].object == watched;
        return any;
    }

    // Copies an array for this slot, if it was not copied yet. False, perhaps with a Python error: there is no memory.
    bool copied(Copy& copy, View& v, int slot) {
        if (!can_copy()) return false;
        Scratch& scratch = copies_->strided[slot];
        if (!scratch.data) return copy_to(scratch, copy, v);
        v.data = scratch.data;
        return true;
    }

    // Decides how arrays that lie turned are read. If all arrays do, and no element asks for its place, their order is
    // as good as C's, and only outputs are turned, and noise. Otherwise many elements are turned on the way. Few are
    // copied before, and so are arrays whose memory is written to.
    bool settle() {
        if (!lie_turned_) return true;
        if (!turned.rows) turned.rows = turned.columns = 1;
        unsigned read = 0;
        bool written = false;
        for (int slot = 0; slot < kSlots; ++slot) {
            read |= call.in[slot] ? 1u << slot : 0;
            written |= lies_turned(slot) && (has_order(slot) ? outputs.given() : outputs.spoil(inputs_[slot], false));
        }
        const unsigned all = (1u << outputs.wanted) - 1, last = outputs.written_last ? outputs.new_ones() : 0;
        const int64_t plane = turned.rows * turned.columns;
        const bool draws = call.draw != Draw::none;
        turned.alike = !turned.orders && read == turned.inputs && call.segment % plane == 0 && call.size % plane == 0 &&
                       !call.period && (!draws || turns_noise(all, last));
        const bool anywhere = turned.alike && !adds_up;
        if (anywhere && !draws && last == all) {
            turned = {};
            return true;
        }
        if (x.count > kFewTurned && !written) {
            turned.outputs = last;
            if (anywhere) turned = {turned.columns, turned.rows, draws ? 1u << kZ : 0, all & ~last};
            return true;
        }
        for (int slot = 0; slot < kSlots; ++slot)
            if (turned.inputs >> slot & 1 && !copy_turned(slot)) return false;
        turned = {}, outputs.written_last = false;
        return true;
    }

    // Whether to turn the noise, and outputs in C's order, costs less than to turn the inputs, and outputs in theirs. A
    // loss takes long parts of rows, which turn slowly.
    bool turns_noise(unsigned outputs, unsigned in_theirs) const {
        constexpr int64_t kMostRows = 1 << 7;  // so many runs of noise lie in the second-level cache
        const bool is_loss = adds_up || leads == kM1;
        const int saved = std::popcount(turned.inputs) + std::popcount(in_theirs) - std::popcount(outputs & ~in_theirs);
        return call.draw == Draw::normal && !call.by_level && turned.rows <= kMostRows && saved > (is_loss ? 0 : 1);
    }

    bool copy_turned(int slot) {
        View& v = inputs_[slot];
        Copy copy;
        if (!view_any(v.object, v, copy, watched) || v.count != x.count || !copied(copy, v, slot)) return false;
        call.in[slot] = v.data;
        return true;
    }

    bool input(int slot, const View& v) {
        inputs_[slot] = v;
        call.in_type[slot] = dtype(v.kind);
        if (!reads(call.active, slot) && !(slot == kX && call.by_level)) return true;
        call.in[slot] = v.data;
        turned.inputs |= lie_turned_ & 1u << slot;
        return true;
    }

    bool lies_turned(int slot) const { return lie_turned_ >> slot & 1; }

    // Takes an input of x's shape and the result's dtype; an array of noise may also be float32, and a model output,
    // where they mix, another float that kernels read.
    bool input(int slot, PyObject* a) {
        View v;
        if (!read(a, v, slot) || !v.same_shape(x) || v.is_tensor != x.is_tensor) return false;
        const Kind own = outputs.others.kind;
        if (v.kind != own && !(slot == kZ && v.kind == Kind::f32)) {
            if (!mixes || (slot != kM1 && slot != kM2) || !is_float(v.kind) || !is_readable(v.kind, own)) return false;
            if (is_half(dtype(own))) call.active |= kRoundsModel;
        }
        return input(slot, v);
    }

    // Takes a row for all elements, or one for each segment: an array, or a list, whose shape begins x's shape. If the
    // schedule has its own time, they may be floats.
    bool index(PyObject* i) {
        call.segment = x.count;
        if (own_time_ != Py_None && PyTuple_GET_ITEM(own_time_, 0) == Py_None) return levels(i);
        if (is_real(i)) return hold_times(1) && take_real(i, times_.data[0]);
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
        for (int64_t b = 0; b < indices && !times_.data; ++b)
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
            copy_reals(index_, times_.data);
            return true;
        }
        if (index_.kind != Kind::i64 && index_.kind != Kind::i32) return false;
        call.index = reinterpret_cast<const int64_t*>(index_.data);
        if (index_.kind == Kind::i64) return true;
        if (indices > x.count || !copy(indices)) return false;
        std::copy_n(reinterpret_cast<const int32_t*>(index_.data), indices, copied_.data);
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
            good = floats ? PyFloat_Check(one) && take_real(one, times_.data[b]) : take_integer(one, copied_.data[b]);
        }
        return good;
    }

    bool hold_times(int64_t n) { return own_time_ != Py_None && times_.take(static_cast<size_t>(n)); }

    // Makes the rows of float times, if the table has (a function from a float, or from float64 (n,), to alpha, sigma
    // and perhaps more numbers at these times; the last time; the rows where all of these numbers are 0, and where one
    // of them is 1; the scale and the offset of integer results, or None). A number of such a row is a constant, or a
    // multiple of one of these. Or, with None for the rows, it has columns: see `rows_of_columns`. False: declined, or
    // the function raised, and its Python error is set.
    bool timed() {
        const double last =
            std::min(PyFloat_AsDouble(PyTuple_GET_ITEM(own_time_, 1)), std::numeric_limits<double>::max());
        const bool by_column = PyTuple_GET_ITEM(own_time_, 2) == Py_None;
        const std::span<const double> times(times_.data, static_cast<size_t>(indices));
        int64_t least = std::bit_cast<int64_t>(last), greatest = 0;  // the bits of positive numbers rise with them
        for (const double t : times) {
            least = std::min(least, std::bit_cast<int64_t>(t));
            greatest = std::max(greatest, std::bit_cast<int64_t>(t));
        }
        if (least < 0 || greatest > std::bit_cast<int64_t>(last)) return false;
        const auto is = [&](double number) { return std::count(times.begin(), times.end(), number); };
        if (!by_column && is(1) && is(0) + is(1) == indices) return false;  // which may give a warning
        OwnRows own;
        if (!hold_rows(own)) return false;
        if (!by_column) return rows_of_levels(own_time_, times, call.active, own);
        const double first = std::bit_cast<double>(least), latest = std::bit_cast<double>(greatest);
        const bool good = rows_of_columns(own_time_, times, first, latest, call.active, own);
        rows_alike_ = own.alike;
        return good;
    }

    // Takes memory for one row for each index, and makes them the call's rows.
    bool hold_rows(OwnRows& own) {
        const auto n = static_cast<size_t>(kColumns * indices);
        const bool is_wide = call.type == DType::f64;
        if (!copy(indices) || !(is_wide ? wide_.take(n) : rounded_.take(n))) return false;
        std::iota(copied_.data, copied_.data + indices, 0);
        own = {is_wide ? wide_.data : nullptr, rounded_.data, indices, true};
        call.n_rows = indices, call.by_column = 1;
        call.rows = is_wide ? static_cast<const void*>(wide_.data) : rounded_.data;
        return true;
    }

    // Makes rows of a pair (alpha, sigma), each of them a number, or numbers in a shape that begins x's.
    bool levels(PyObject* pair) {
        FastReals alpha, sigma;
        for (FastReals* const one : {&alpha, &sigma})
            if (!one->parse(PyTuple_GET_ITEM(pair, one == &sigma)) || !one->begins(x.ndim, x.shape)) return false;
        indices = std::max(alpha.count, sigma.count);
        if (std::min(alpha.count, sigma.count) != 1 && alpha.count != sigma.count) return false;
        call.segment = x.count / indices;
        for (int64_t b = 0; b < indices; ++b)
            if (!is_single(alpha.of(b)) || !is_single(sigma.of(b))) return false;
        OwnRows own;
        if (!hold_rows(own)) return false;
        const Level both[] = {{alpha.values.get(), alpha.count != 1}, {sigma.values.get(), sigma.count != 1}};
        rows_of_levels(own_time_, both, call.active, own);
        return true;
    }

    bool copy(int64_t n) {
        const bool taken = copied_.take(static_cast<size_t>(n));
        call.index = copied_.data;
        return taken;
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
        if (noise == Py_None) return !drawn || (stream >= 0 && draws_nothing());  // samplers may leave it out
        if (!drawn && is_noise(noise)) return true;                               // what it names plays no part
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
                if (!counts(call.active, column)) break;
                const int64_t at = call.place_of(row_of(call, b), column);
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

}  // namespace
}  // namespace nf
