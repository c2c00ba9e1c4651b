// SPDX-License-Identifier: Apache-2.0
// The fast path's view of an array, without a copy. This file reads NumPy's arrays through NumPy's C API.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../core/call.h"
#include "../run/layouts.h"
#include "../run/turned.h"
#include "interrupts.h"
#include "python.h"

namespace nf {
namespace {

// A dtype of calls, one of row numbers or tokens, bool, or another one.
enum class Kind : int32_t {
    f32 = static_cast<int32_t>(DType::f32),
    f64 = static_cast<int32_t>(DType::f64),
    f16 = static_cast<int32_t>(DType::f16),
    bf16 = static_cast<int32_t>(DType::bf16),
    u8 = static_cast<int32_t>(DType::u8),
    u16 = static_cast<int32_t>(DType::u16),
    i64,
    i32,
    b1,
    other
};

// The dtype of a kind, which is one of calls.
constexpr DType dtype(Kind kind) { return static_cast<DType>(kind); }
constexpr bool is_float(Kind kind) {
    return kind == Kind::f32 || kind == Kind::f64 || kind == Kind::f16 || kind == Kind::bf16;
}
constexpr bool is_level(Kind kind) { return kind == Kind::u8 || kind == Kind::u16; }
constexpr bool is_token(Kind kind) { return is_level(kind) || kind == Kind::i64 || kind == Kind::i32; }
constexpr int bytes_of(Kind kind) {
    return kind == Kind::i64 ? 8 : kind == Kind::i32 ? 4 : kind == Kind::b1 ? 1 : bytes_of(dtype(kind));
}

// A C-contiguous, aligned array of the CPU in native byte order; borrowed.
struct View {
    PyObject* object;
    char* data;
    Kind kind;
    int ndim;
    const int64_t* shape;
    int64_t count, bytes;
    bool writable, is_tensor;

    bool same_shape(const View& other) const {
        return ndim == other.ndim && count == other.count && std::equal(shape, shape + ndim, other.shape);
    }
    // Moves the shape here: a thread or a signal handler may change the array's own while kernels run. False: it has
    // more axes than NumPy's arrays have.
    [[gnu::noinline]] bool keep_shape(int64_t* lengths) {
        if (ndim > kMostAxes) return false;
        std::copy_n(shape, ndim, lengths);
        shape = lengths;
        return true;
    }
    bool overlaps(const View& other) const { return data < other.data + other.bytes && other.data < data + bytes; }
};

// The properties of a new array or tensor.
struct Made {
    Kind kind;
    bool is_tensor;
    int ndim;
    const int64_t* shape;
    int64_t count;
    PyArray_Descr* descriptor;   // the array's; borrowed
    bool channels_last = false;  // whether a tensor's axis 1 is the fastest in memory

    bool fits(const View& v) const {
        return v.kind == kind && v.is_tensor == is_tensor && v.writable && v.ndim == ndim &&
               std::memcmp(v.shape, shape, sizeof(int64_t) * static_cast<size_t>(ndim)) == 0;
    }
};

static_assert(sizeof(npy_intp) == sizeof(int64_t));

inline Kind kind_of(PyArrayObject* a) {
    switch (PyArray_TYPE(a)) {
        case NPY_FLOAT:
            return Kind::f32;
        case NPY_DOUBLE:
            return Kind::f64;
        case NPY_HALF:
            return Kind::f16;
        case NPY_UBYTE:
            return Kind::u8;
        case NPY_USHORT:
            return Kind::u16;
        case NPY_INT64:
            return Kind::i64;
        case NPY_INT32:
            return Kind::i32;
        case NPY_BOOL:
            return Kind::b1;
        default:  // NumPy has no bfloat16: ml_dtypes gets a number for it at run time
            return std::strcmp(PyArray_DESCR(a)->typeobj->tp_name, "ml_dtypes.bfloat16") == 0 ? Kind::bf16
                                                                                              : Kind::other;
    }
}

inline bool view_array(PyObject* o, View& v) {
    PyArrayObject* a = reinterpret_cast<PyArrayObject*>(o);
    v.object = o;
    v.data = PyArray_BYTES(a);
    v.kind = kind_of(a);
    v.ndim = PyArray_NDIM(a);
    v.shape = reinterpret_cast<const int64_t*>(PyArray_DIMS(a));
    v.count = PyArray_SIZE(a);
    v.bytes = v.count * PyArray_ITEMSIZE(a);
    v.writable = PyArray_ISWRITEABLE(a);
    v.is_tensor = false;
    return PyArray_ISCARRAY_RO(a);
}

// False: a Python error is set.
inline bool run_copy(const Copy& copy, int64_t count) {
    constexpr int64_t kLong = 1 << 16;  // elements; fewer take less time than to give the interpreter away
    return run_call(count > kLong, [&](const GoOn& go_on) { return run_copy(copy, go_on); });
}

// Describes an array of a dtype of calls, in native byte order and with any strides, but for where its copy goes.
inline bool view_strided(PyObject* o, View& v, Copy& copy) {
    view_array(o, v);
    PyArrayObject* const a = reinterpret_cast<PyArrayObject*>(o);
    copy.item = static_cast<int>(PyArray_ITEMSIZE(a));
    copy.axes = v.ndim;
    copy.from = v.data;
    std::copy_n(v.shape, v.ndim, copy.shape);
    std::copy_n(PyArray_STRIDES(a), v.ndim, copy.from_strides);
    return v.kind != Kind::other && PyArray_ISNOTSWAPPED(a);
}

// Strides of a C-contiguous array of this shape, or of a channels_last one, in bytes or elements.
inline void strides_of(const int64_t* shape, int ndim, int64_t item, bool channels_last, int64_t* strides) {
    int64_t stride = item;
    const auto next = [&](int axis) { strides[axis] = stride, stride *= shape[axis]; };
    if (channels_last) next(1);
    for (int axis = ndim - 1; axis >= 0; --axis)
        if (!channels_last || axis != 1) next(axis);
}

// Whether results for such an array are channels_last, as those of torch's pointwise operations are.
inline bool is_channels_last(const int64_t* shape, int ndim, int64_t item, const int64_t* of_array) {
    if (ndim != 4 && ndim != 5) return false;
    bool follows[2] = {true, true};  // C's order, channels_last
    for (const bool last : {false, true}) {
        int64_t strides[5];
        strides_of(shape, ndim, item, last, strides);
        for (int axis = 0; axis < ndim; ++axis) follows[last] &= shape[axis] == 1 || of_array[axis] == strides[axis];
    }
    return follows[1] && !follows[0];
}

// Finds how the planes of an array are turned: it has no gaps, and its last axes lie before some of the others in
// memory. False: it is no such array.
inline bool is_turned(const int64_t* shape, int ndim, int64_t item, const int64_t* strides, Turned& turned) {
    int axes[kMostAxes], n = 0, first = -1;
    for (int axis = 0; axis < ndim; ++axis) {
        if (shape[axis] == 1) continue;
        if (strides[axis] == item) first = n;
        axes[n++] = axis;
    }
    // The axes from `begin` to `end` must be the next ones in memory.
    int64_t stride = item;
    const auto follow = [&](int begin, int end) {
        for (; end > begin && strides[axes[end - 1]] == stride; --end) stride *= shape[axes[end - 1]];
        return end;
    };
    if (first < 0 || first == n - 1) return false;
    const int before = follow(0, first + 1);
    turned.rows = stride / item;
    if (follow(first + 1, n) != first + 1) return false;
    turned.columns = stride / item / turned.rows;
    return follow(0, before) == 0;
}

// The same of what `view_any` described, whose elements are aligned.
inline bool is_turned(const View& v, const Copy& copy, Turned& turned) {
    const bool is_aligned = reinterpret_cast<uintptr_t>(v.data) % static_cast<size_t>(copy.item) == 0;
    return is_aligned && is_turned(copy.shape, copy.axes, copy.item, copy.from_strides, turned);
}

}  // namespace
}  // namespace nf
