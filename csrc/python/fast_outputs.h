// SPDX-License-Identifier: Apache-2.0
// Outputs of the fast path: the caller's, and new ones.
#pragma once
#include "fast_noise.h"

namespace nf {
namespace {

// Makes one output; `data` is its first element. Null: a Python error is set.
PyObject* new_one(const Made& made, char*& data) {
    if (made.is_tensor) return torch.make(made, data);
    Py_INCREF(made.descriptor);
    PyObject* const one = new_array(made.ndim, reinterpret_cast<const npy_intp*>(made.shape), made.descriptor);
    if (one) data = PyArray_BYTES(array(one));
    return one;
}

// The caller's outputs, and new ones.
class FastOutputs {
  public:
    int wanted = 1;    // their number
    bool all = false;  // whether all of them are returned

    Made first{}, others{};      // out, and auxiliary outputs
    bool channels_last = false;  // whether new tensors are: kernels write in C's order, and a copy follows
    bool written_last = false;   // or they are written as they lie, and no copy follows

    FastOutputs() = default;
    FastOutputs(const FastOutputs&) = delete;
    ~FastOutputs() {
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
    bool given() const { return new_ones() != (1u << wanted) - 1; }

    // A bit for each one that is made here.
    unsigned new_ones() const {
        unsigned bits = 0;
        for (int o = 0; o < wanted; ++o) bits |= given_[o] ? 0 : 1u << o;
        return bits;
    }

    // Whether an output overlaps this array in part or, unless the array is an input, at all.
    bool spoil(const View& v, bool input) const {
        if (!v.data) return false;
        for (const View& out : views_)
            if (out.data && out.overlaps(v) && !(input && out.data == v.data && out.bytes == v.bytes)) return true;
        return false;
    }

    // Makes the missing ones. False: a Python error is set.
    bool make(Call& call) {
        for (int o = 0; o < wanted; ++o) {
            if (given_[o]) continue;
            char* data;
            Made one = made(o);
            one.channels_last = written_last;
            if (!(owned_[o] = new_one(one, data))) return false;
            call.out[o] = data;
        }
        return true;
    }

    // Returns the first of them, or all. Autograd is told of writes to the caller's tensors.
    PyObject* give() {
        PyObject* written[3];
        Py_ssize_t n = 0;
        for (int o = 0; o < wanted; ++o) {
            if (owned_[o] && channels_last && !written_last) {
                PyObject* const last = torch.channels_last(owned_[o], made(o));
                if (!last) return nullptr;
                Py_SETREF(owned_[o], last);
            }
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

}  // namespace
}  // namespace nf
