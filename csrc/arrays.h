// SPDX-License-Identifier: Apache-2.0
// What the short cut sees of an array, without a copy: NumPy's through its C API, torch's through the C exchange API of
// DLPack 1.3 (dmlc.github.io/dlpack), whose few structs stand here. Older torch has none, and takes the long way.
#pragma once
#include <Python.h>
#include <numpy/arrayobject.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>

namespace nf {
namespace {

// ------------------------------------------------------------------------------------------------ DLPack

struct DLTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;  // in elements
    uint64_t byte_offset;
};

struct ExchangeApi {
    uint32_t major, minor;
    void* previous;
    void *allocate, *from_object, *to_object;
    int (*borrow)(void* object, DLTensor* out);  // dltensor_from_py_object_no_sync; may be null
    void* current_stream;
};

constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4;

// ------------------------------------------------------------------------------------------------ torch

struct Reference {
    PyObject* object;
    explicit Reference(PyObject* o) : object(o) {}
    Reference(const Reference&) = delete;
    ~Reference() { Py_XDECREF(object); }
};

// Looked up when the first tensor comes; `tensor` stays null where this torch lacks the exchange API.
struct Torch {
    bool sought = false;
    PyTypeObject* tensor = nullptr;
    const ExchangeApi* api;
    PyObject *empty_like, *is_grad_enabled, *increment_version, *forward_ad;
    PyObject *requires_grad, *is_neg, *current_level;  // names

    bool is_tensor(PyObject* o) {
        PyTypeObject* type = Py_TYPE(o);
        if (!sought && std::strcmp(type->tp_name, "Tensor") == 0) seek(reinterpret_cast<PyObject*>(type));
        return type == tensor && tensor;
    }

    // Whether it is the memory that the exchange API shows, and no autograd watches; the API does not tell.
    bool is_plain(PyObject* o) {
        const Reference grad(PyObject_GetAttr(o, requires_grad)), negated(PyObject_CallMethodNoArgs(o, is_neg));
        if (negated.object != Py_False) return false;
        return grad.object == Py_False || (grad.object == Py_True && is(is_grad_enabled, Py_False));
    }

    bool written(PyObject* const* tensors, Py_ssize_t n) {
        const Reference all(n == 1 ? Py_NewRef(tensors[0]) : PyTuple_New(n));
        for (Py_ssize_t i = 0; n > 1 && all.object && i < n; ++i)
            PyTuple_SET_ITEM(all.object, i, Py_NewRef(tensors[i]));
        const Reference none(all.object ? PyObject_CallOneArg(increment_version, all.object) : nullptr);
        return none.object;
    }

    // Whether there are tangents about, of forward-mode differentiation.
    bool dual() {
        const Reference level(PyObject_GetAttr(forward_ad, current_level));
        const long depth = level.object ? PyLong_AsLong(level.object) : 0;
        PyErr_Clear();
        return depth >= 0;
    }

  private:
    static bool is(PyObject* function, PyObject* expected) {
        const Reference answer(PyObject_CallNoArgs(function));
        return answer.object == expected;
    }

    static PyObject* get(const char* module, const char* name) {
        const Reference m(PyImport_ImportModule(module));
        return m.object ? PyObject_GetAttrString(m.object, name) : nullptr;
    }

    bool find(PyObject* type) {
        const Reference capsule(PyObject_GetAttrString(type, "__dlpack_c_exchange_api__"));
        if (!capsule.object) return false;
        api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.object, "dlpack_exchange_api"));
        return api && api->major == 1 && api->borrow && (empty_like = get("torch", "empty_like")) &&
               (is_grad_enabled = get("torch", "is_grad_enabled")) &&
               (increment_version = get("torch.autograd.graph", "increment_version")) &&
               (forward_ad = PyImport_ImportModule("torch.autograd.forward_ad")) &&
               (requires_grad = PyUnicode_InternFromString("requires_grad")) &&
               (is_neg = PyUnicode_InternFromString("is_neg")) &&
               (current_level = PyUnicode_InternFromString("_current_level"));
    }

    void seek(PyObject* type) {
        const Reference name(PyUnicode_FromString("torch")),
            module(name.object ? PyImport_GetModule(name.object) : nullptr);
        const Reference found(module.object ? PyObject_GetAttrString(module.object, "Tensor") : nullptr);
        if (found.object == type) {
            sought = true;
            if (find(type)) tensor = reinterpret_cast<PyTypeObject*>(Py_NewRef(type));
        }
        PyErr_Clear();
    }
};

inline Torch torch;

// ------------------------------------------------------------------------------------------------ views

enum class Kind { f32, f64, f16, bf16, u8, i64, other };  // the first five are those of DType

// A C-contiguous, aligned array of the CPU, native byte order, not empty; borrowed.
struct View {
    PyObject* object;
    char* data;
    Kind kind;
    int ndim;
    const int64_t* shape;
    int64_t count, bytes;
    bool writable, is_tensor;

    bool same_shape(const View& other) const {
        return ndim == other.ndim && std::memcmp(shape, other.shape, sizeof(int64_t) * static_cast<size_t>(ndim)) == 0;
    }
    bool overlaps(const View& other) const { return data < other.data + other.bytes && other.data < data + bytes; }
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
        case NPY_INT64:
            return Kind::i64;
        default:  // NumPy has no bfloat16: that of ml_dtypes is given a number at run time
            return std::strcmp(PyArray_DESCR(a)->typeobj->tp_name, "ml_dtypes.bfloat16") == 0 ? Kind::bf16
                                                                                              : Kind::other;
    }
}

inline Kind kind_of(const DLTensor& t) {
    const auto is = [&](uint8_t code, uint8_t bits) { return t.code == code && t.bits == bits && t.lanes == 1; };
    return is(kFloat, 32)    ? Kind::f32
           : is(kFloat, 64)  ? Kind::f64
           : is(kFloat, 16)  ? Kind::f16
           : is(kBfloat, 16) ? Kind::bf16
           : is(kUint, 8)    ? Kind::u8
           : is(kInt, 64)    ? Kind::i64
                             : Kind::other;
}

inline bool view_array(PyArrayObject* a, View& v) {
    if (!PyArray_ISCARRAY_RO(a)) return false;
    v.data = PyArray_BYTES(a);
    v.kind = kind_of(a);
    v.ndim = PyArray_NDIM(a);
    v.shape = reinterpret_cast<const int64_t*>(PyArray_DIMS(a));
    v.count = PyArray_SIZE(a);
    v.bytes = PyArray_NBYTES(a);
    v.writable = PyArray_ISWRITEABLE(a);
    v.is_tensor = false;
    return true;
}

inline bool view_tensor(PyObject* o, View& v) {
    DLTensor t;
    if (torch.api->borrow(o, &t) != 0 || t.device_type != kCpu) return false;  // an error: no memory of its own, say
    v.data = static_cast<char*>(t.data) + t.byte_offset;
    v.kind = kind_of(t);
    v.ndim = t.ndim;
    v.shape = t.shape;
    v.count = 1;
    for (int i = t.ndim - 1; i >= 0; --i) {
        if (t.shape[i] != 1 && t.strides[i] != v.count) return false;
        v.count *= t.shape[i];
    }
    v.bytes = v.count * (t.bits / 8);
    v.writable = v.is_tensor = true;
    return reinterpret_cast<uintptr_t>(v.data) % (t.bits / 8) == 0;
}

// False, and no Python error, for whatever is not plain.
inline bool view(PyObject* o, View& v) {
    v.object = o;
    const bool seen = PyArray_CheckExact(o) ? view_array(reinterpret_cast<PyArrayObject*>(o), v)
                      : torch.is_tensor(o)  ? view_tensor(o, v) && torch.is_plain(o)
                                            : false;
    if (!seen) PyErr_Clear();
    return seen && v.count > 0 && v.data;
}

// A new array like x; the reference is the caller's. Null: a Python error is set.
inline PyObject* new_like(const View& x, View& v) {
    if (!x.is_tensor) {
        PyObject* made = PyArray_NewLikeArray(reinterpret_cast<PyArrayObject*>(x.object), NPY_CORDER, nullptr, 0);
        if (made) view_array(reinterpret_cast<PyArrayObject*>(made), v);
        return made;
    }
    PyObject* made = PyObject_CallOneArg(torch.empty_like, x.object);
    if (made && !(torch.is_tensor(made) && view_tensor(made, v))) {
        Py_CLEAR(made);
        PyErr_SetString(PyExc_RuntimeError, "torch.empty_like made no plain tensor of the CPU");
    }
#ifdef MADV_HUGEPAGE
    // The first touch of 4 KiB pages costs more than the noise; NumPy asks for larger ones as well.
    if (made && v.bytes >= 1 << 22) {
        const uintptr_t page = 4096, begin = (reinterpret_cast<uintptr_t>(v.data) + page - 1) & ~(page - 1);
        madvise(reinterpret_cast<void*>(begin), static_cast<size_t>(v.bytes) - page, MADV_HUGEPAGE);
    }
#endif
    return made;
}

}  // namespace
}  // namespace nf
