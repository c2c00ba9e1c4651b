// SPDX-License-Identifier: Apache-2.0
// The fast path's view of torch's tensors, through the C exchange API of DLPack 1.3 (dmlc.github.io/dlpack), whose few
// structs are declared here. Descriptors of torch's class give the rest. All uses of torch's and DLPack's internals are
// in this file, tested with torch 2.13 and DLPack 1.3. If a torch lacks any of them, as older ones do, it takes the
// checked path.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "../run/memory.h"
#include "arrays.h"

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

struct ManagedTensor {
    uint32_t major, minor;
    void* context;
    void (*deleter)(ManagedTensor* self);
    uint64_t flags;
    DLTensor tensor;
};

struct ExchangeApi {
    uint32_t major, minor;
    void* previous;
    void *allocate, *from_object;
    int (*to_object)(ManagedTensor* tensor, void** object);
    int (*borrow)(void* object, DLTensor* out);  // dltensor_from_py_object_no_sync; may be null
    void* current_stream;
};

constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4, kBool = 6;

inline Kind kind_of(const DLTensor& t) {
    const auto is = [&](uint8_t code, uint8_t bits) { return t.code == code && t.bits == bits && t.lanes == 1; };
    return is(kFloat, 32)    ? Kind::f32
           : is(kFloat, 64)  ? Kind::f64
           : is(kFloat, 16)  ? Kind::f16
           : is(kBfloat, 16) ? Kind::bf16
           : is(kUint, 8)    ? Kind::u8
           : is(kUint, 16)   ? Kind::u16
           : is(kInt, 64)    ? Kind::i64
           : is(kInt, 32)    ? Kind::i32
           : is(kBool, 8)    ? Kind::b1
                             : Kind::other;
}

inline uint8_t code_of(Kind kind) {
    return kind == Kind::bf16 ? kBfloat
           : is_float(kind)   ? kFloat
           : is_level(kind)   ? kUint
           : kind == Kind::b1 ? kBool
                              : kInt;
}

inline bool view_tensor(PyObject* o, const DLTensor& t, View& v) {
    v.object = o;
    v.data = static_cast<char*>(t.data) + t.byte_offset;
    v.kind = kind_of(t);
    v.ndim = t.ndim;
    v.shape = t.shape;
    v.count = 1;
    for (int i = t.ndim - 1; i >= 0; --i) {
        if (t.shape[i] != 1 && t.strides[i] != v.count) return false;
        v.count *= t.shape[i];
    }
    const int64_t bytes = t.bits / 8;
    v.bytes = v.count * bytes;
    v.writable = v.is_tensor = true;
    return t.device_type == kCpu && bytes > 0 && reinterpret_cast<uintptr_t>(v.data) % static_cast<size_t>(bytes) == 0;
}

// ------------------------------------------------------------------------------------------------ torch

// It is looked up at the first tensor; `tensor` stays null if this torch lacks the exchange API.
class Torch {
  public:
    bool is_tensor(PyObject* o) {
        PyTypeObject* type = Py_TYPE(o);
        if (!sought_ && std::strcmp(type->tp_name, "Tensor") == 0) seek(reinterpret_cast<PyObject*>(type));
        if (!sought_ && std::strcmp(type->tp_name, "Parameter") == 0) seek(nullptr);
        return type == tensor_ || type == parameter_;
    }

    // Whether tensors can be made.
    bool is_known() {
        if (!sought_) seek(nullptr);
        return tensor_;
    }

    // False, perhaps with a Python error, for tensors without memory of their own, or not on the CPU.
    bool view(PyObject* o, View& v) const {
        DLTensor t;
        return api_->borrow(o, &t) == 0 && view_tensor(o, t, v) && holds(o, t);
    }

    // Whether this is the memory that the exchange API shows, and autograd does not watch it, unless it is `watched`.
    // The API does not tell.
    bool can_see(PyObject* o, PyObject* watched) const { return !is_negated(o) && (o == watched || !is_watched(o)); }

    // Whether autograd watches it.
    bool is_watched(PyObject* o) const {
        const Reference grad(requires_grad_->get(o, requires_grad_->closure));
        if (grad.object == Py_False) return false;
        const Reference enabled(grad.object ? PyObject_CallNoArgs(is_grad_enabled_) : nullptr);
        PyErr_Clear();
        return enabled.object != Py_False;
    }

    // Whether tangents of forward-mode differentiation exist.
    bool dual() const {
        PyObject* level = PyDict_GetItemWithError(forward_ad_, current_level_);
        const long depth = level ? PyLong_AsLong(level) : 0;
        PyErr_Clear();
        return depth >= 0;
    }

    // Tells autograd that these were written to. False: a Python error is set.
    bool written(PyObject* const* tensors, Py_ssize_t n) const {
        const Reference all(PyTuple_New(n));
        if (!all.object) return false;
        for (Py_ssize_t i = 0; i < n; ++i) PyTuple_SET_ITEM(all.object, i, Py_NewRef(tensors[i]));
        const Reference none(PyObject_CallOneArg(increment_version_, all.object));
        return none.object;
    }

    // A new tensor, with memory that it gives back to us (torch.empty_like takes twice as long). `data` is the memory's
    // beginning. Null: a Python error is set.
    PyObject* make(const Made& x, char*& data) const {
        const int bytes = bytes_of(x.kind);
        const size_t n = static_cast<size_t>(x.ndim), head = (sizeof(OwnTensor) + 16 * n + 63) / 64 * 64;
        const size_t size = head + static_cast<size_t>(x.count * bytes);
        void* const memory = take_memory(size);
        if (!memory) return PyErr_NoMemory();
        auto* const own = new (memory) OwnTensor{};
        own->size = size;
        ManagedTensor& m = own->managed;
        m.major = m.minor = 1;
        m.deleter = [](ManagedTensor* self) { give_memory_back(self, reinterpret_cast<OwnTensor*>(self)->size); };
        data = static_cast<char*>(memory) + head;
        int64_t *const shape = reinterpret_cast<int64_t*>(own + 1), *const strides = shape + n;
        std::copy_n(x.shape, n, shape);
        strides_of(shape, x.ndim, 1, x.channels_last, strides);
        m.tensor = {data, kCpu, 0, x.ndim, code_of(x.kind), static_cast<uint8_t>(8 * bytes), 1, shape, strides, 0};
        void* made;
        return api_->to_object(&m, &made) == 0 ? static_cast<PyObject*>(made) : nullptr;
    }

    // Describes a tensor like this one, and how it lies, if that is not in C's order. Its elements play no part.
    bool like(PyObject* o, Made& made, int64_t* shape, Turned& turned) const {
        DLTensor t;
        if (api_->borrow(o, &t) != 0) return PyErr_Clear(), false;
        made.kind = kind_of(t), made.ndim = t.ndim, made.count = 1;
        for (int axis = 0; axis < t.ndim && t.ndim <= kMostAxes; ++axis) made.count *= shape[axis] = t.shape[axis];
        made.channels_last = nf::is_channels_last(shape, t.ndim, 1, t.strides);
        if (made.channels_last) is_turned(shape, t.ndim, 1, t.strides, turned);
        return t.device_type == kCpu && t.ndim > 0 && t.ndim <= kMostAxes && made.count > 0 && t.data;
    }

    // Describes a tensor of the CPU, of a dtype of calls and with any strides, but for where its copy goes.
    bool view_strided(PyObject* o, View& v, Copy& copy) const {
        DLTensor t;
        if (api_->borrow(o, &t) != 0) return PyErr_Clear(), false;
        view_tensor(o, t, v);
        copy.item = t.bits / 8;
        copy.axes = t.ndim;
        copy.from = v.data;
        if (t.device_type != kCpu || v.kind == Kind::other || t.ndim > kMostAxes || !holds(o, t)) return false;
        v.count = 1;
        for (int axis = 0; axis < t.ndim; ++axis) {
            v.count *= copy.shape[axis] = t.shape[axis];
            copy.from_strides[axis] = t.strides[axis] * copy.item;
        }
        v.bytes = v.count * copy.item;
        v.writable = v.is_tensor = true;
        return true;
    }

    // A new tensor, channels_last, with the elements of this one, which `make` made. Null: a Python error is set.
    PyObject* channels_last(PyObject* o, Made made) const {
        View v;
        Copy copy;
        made.channels_last = true;
        PyObject* const last = view_strided(o, v, copy) ? make(made, copy.to) : nullptr;
        if (!last) return nullptr;
        strides_of(copy.shape, copy.axes, copy.item, true, copy.to_strides);
        if (run_copy(copy, v.count)) return last;
        Py_DECREF(last);
        return nullptr;
    }

    // Whether results for this tensor are channels_last.
    bool is_channels_last(PyObject* o) const {
        DLTensor t;
        if (api_->borrow(o, &t) == 0) return nf::is_channels_last(t.shape, t.ndim, 1, t.strides);
        PyErr_Clear();
        return false;
    }

  private:
    std::atomic<bool> sought_{false};
    std::atomic<PyTypeObject*> tensor_{nullptr};  // set last: a thread that sees it sees all others
    PyTypeObject* parameter_ = nullptr;           // the class of a module's parameters, treated as tensors
    const ExchangeApi* api_;
    PyObject *is_grad_enabled_, *increment_version_;
    const PyGetSetDef* requires_grad_;  // looking up a name costs as much as calling it, and so does
    const PyMethodDef* is_neg_;         // calling it through the interpreter
    // Functions of torch's libraries. They take the place in a tensor where its C++ tensor lies.
    using Ask = int32_t (*)(const void* place, int64_t* answer);
    Ask storage_size_, storage_offset_;   // of the stable C interface
    bool (*negated_)(const void* place);  // of C++, in a sixth of the method's instructions; null in another ABI
    Py_ssize_t place_;                    // the offset of that place
    PyObject* forward_ad_;                // a module's dictionary
    PyObject* current_level_;             // a name

    const void* place(PyObject* o) const { return reinterpret_cast<const char*>(o) + place_; }

    bool is_negated(PyObject* o) const {
        if (negated_) return negated_(place(o));
        const Reference negated(is_neg_->ml_meth(o, nullptr));
        return negated.object != Py_False;
    }

    // Whether the storage holds all elements: it may have been resized, as FSDP does with parameters, or begin nowhere,
    // as that of torch.func.functionalize. (Three methods of Python say the same in ten times as many instructions.)
    bool holds(PyObject* o, const DLTensor& t) const {
        int64_t bytes, last;
        if (storage_size_(place(o), &bytes) != 0 || storage_offset_(place(o), &last) != 0 ||
            reinterpret_cast<intptr_t>(t.data) == last * (t.bits / 8))
            return false;
        for (int axis = 0; axis < t.ndim; ++axis) last += (t.shape[axis] - 1) * t.strides[axis];
        return (last + 1) * (t.bits / 8) <= bytes;
    }

    // The header before the elements of a tensor from `make`; its lengths and strides follow.
    struct OwnTensor {
        ManagedTensor managed;
        size_t size;
    };

    static PyObject* get(const char* module, const char* name) {
        const Reference m(PyImport_ImportModule(module));
        return m.object ? PyObject_GetAttrString(m.object, name) : nullptr;
    }

    // What torch's public function calls, in two fifths of its time, if it takes a tuple here; else that function.
    static PyObject* increment_version() {
        PyObject* const own = get("torch._C", "_increment_version");
        const Reference none(PyTuple_New(0)),
            done(own && none.object ? PyObject_CallOneArg(own, none.object) : nullptr);
        if (done.object) return own;
        PyErr_Clear();
        return get("torch.autograd.graph", "increment_version");
    }

    bool find(PyObject* type) {
        const Reference capsule(PyObject_GetAttrString(type, "__dlpack_c_exchange_api__"));
        if (!capsule.object) return false;
        api_ = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.object, "dlpack_exchange_api"));
        return api_ && api_->major == 1 && api_->borrow && (is_grad_enabled_ = get("torch", "is_grad_enabled")) &&
               (increment_version_ = increment_version()) &&
               (parameter_ = reinterpret_cast<PyTypeObject*>(get("torch.nn", "Parameter"))) &&
               (forward_ad_ = get("torch.autograd.forward_ad", "__dict__")) &&
               (requires_grad_ = property(type, "requires_grad")) && (is_neg_ = method(type, "is_neg")) &&
               (place_ = place_of_tensor(type)) > 0 && find_functions() &&
               (current_level_ = PyUnicode_InternFromString("_current_level"));
    }

    bool find_functions() {
#if defined(_WIN32)
        const Reference path(PyUnicode_FromString("torch_cpu.dll"));
#else
        const Reference path(get("torch._C", "__file__"));  // whose libraries are searched, too
#endif
        const Reference ctypes(PyImport_ImportModule("ctypes"));
        if (!path.object || !ctypes.object) return false;
        const Reference library(PyObject_CallMethod(ctypes.object, "CDLL", "O", path.object));
        if (!library.object) return false;
        const auto find = [&](const char* name, auto& function) {
            const Reference found(PyObject_GetAttrString(library.object, name)),
                address(found.object ? PyObject_CallMethod(ctypes.object, "addressof", "O", found.object) : nullptr);
            if (address.object) std::memcpy(&function, PyLong_AsVoidPtr(address.object), sizeof function);
            return address.object != nullptr;
        };
        negated_ = nullptr;
        if (!find("_ZN2at6native6is_negERKNS_6TensorE", negated_)) PyErr_Clear();
        return find("aoti_torch_get_storage_size", storage_size_) &&
               find("aoti_torch_get_storage_offset", storage_offset_);
    }

    // Where a tensor keeps the address that its `_cdata` is; 0: nowhere.
    static Py_ssize_t place_of_tensor(PyObject* type) {
        const Reference tensor(PyObject_CallNoArgs(type));
        const Reference number(tensor.object ? PyObject_GetAttrString(tensor.object, "_cdata") : nullptr);
        const void* const wanted = number.object ? PyLong_AsVoidPtr(number.object) : nullptr;
        constexpr Py_ssize_t kWord = sizeof wanted;
        const Py_ssize_t size = reinterpret_cast<PyTypeObject*>(type)->tp_basicsize;
        for (Py_ssize_t at = sizeof(PyObject); wanted && at + kWord <= size; at += kWord)
            if (std::memcmp(reinterpret_cast<const char*>(tensor.object) + at, &wanted, kWord) == 0) return at;
        return 0;
    }

    // Null if there is no such property. The descriptor stays alive, as what `find` keeps does.
    static const PyGetSetDef* property(PyObject* type, const char* name) {
        PyObject* const found = PyObject_GetAttrString(type, name);
        const bool is_one = found && Py_IS_TYPE(found, &PyGetSetDescr_Type);
        return is_one ? reinterpret_cast<PyGetSetDescrObject*>(found)->d_getset : nullptr;
    }

    // Null if there is no method of this name without arguments.
    static const PyMethodDef* method(PyObject* type, const char* name) {
        PyObject* const found = type ? PyObject_GetAttrString(type, name) : nullptr;
        if (!found || !Py_IS_TYPE(found, &PyMethodDescr_Type)) return nullptr;
        const PyMethodDef* const made = reinterpret_cast<PyMethodDescrObject*>(found)->d_method;
        return made->ml_flags == METH_NOARGS ? made : nullptr;
    }

    void seek(PyObject* type) {
        const Reference name(PyUnicode_FromString("torch"));
        const Reference module(name.object ? PyImport_GetModule(name.object) : nullptr);
        const Reference found(module.object ? PyObject_GetAttrString(module.object, "Tensor") : nullptr);
        if (found.object && (!type || found.object == type) && !sought_.exchange(true) && find(found.object))
            tensor_ = reinterpret_cast<PyTypeObject*>(Py_NewRef(found.object));
        PyErr_Clear();
    }
};

inline Torch torch;

// Describes what `view` does not take for its strides alone. False, without a Python error, for everything else.
inline bool view_any(PyObject* o, View& v, Copy& copy, PyObject* watched = nullptr) {
    const bool seen = PyArray_CheckExact(o) ? view_strided(o, v, copy)
                      : torch.is_tensor(o)  ? torch.can_see(o, watched) && torch.view_strided(o, v, copy)
                                            : false;
    return seen && v.count > 0 && v.data;
}

// Not inlined: arrays of NumPy need none of its registers. The shape is read last: earlier queries of a tensor may run
// a torch mode of the user's.
[[gnu::noinline]] inline bool view_of_torch(PyObject* o, View& v, PyObject* watched) {
    const bool seen = torch.is_tensor(o) && torch.can_see(o, watched) && torch.view(o, v);
    if (!seen) PyErr_Clear();
    return seen;
}

// False, without a Python error, for null and everything that is not plain, but `watched` may be watched by autograd.
inline bool view(PyObject* o, View& v, PyObject* watched = nullptr) {
    const bool seen = PyArray_CheckExact(o) ? view_array(o, v) : view_of_torch(o, v, watched);
    return seen && v.count > 0 && v.data;
}

}  // namespace
}  // namespace nf
