// SPDX-License-Identifier: Apache-2.0
// How elements lie in memory: several of them in accesses of up to 16 bytes, or one of whatever type.
#pragma once
#include "lane_cuda.h"
#include "launch.h"

namespace nf {
namespace {

// Storage types: the arithmetic of an output so stored, how one element lies in memory, elements of a unit, which is
// what a thread loads and stores at a time, and elements as parts of 32-bit words.
struct F32 {
    using Real = float;
    using Raw = float;
    static constexpr int bytes = 4, unit = 4;
    static __device__ float value(Raw x) { return x; }
    static __device__ Raw raw(float x) { return x; }
    static __device__ float get(const uint32_t* w, int i) { return bits_to_float(w[i]); }
    static __device__ void put(uint32_t* w, int i, float low, float high) {
        w[i] = float_to_bits(low), w[i + 1] = float_to_bits(high);
    }
};
struct F64 {
    using Real = double;
    using Raw = double;
    static constexpr int bytes = 8, unit = 4;
    static __device__ double value(Raw x) { return x; }
    static __device__ Raw raw(double x) { return x; }
    static __device__ double get(const uint32_t* w, int i) {
        return Cuda::as_double(uint64_t{w[2 * i + 1]} << 32 | w[2 * i]);
    }
    static __device__ void put(uint32_t* w, int i, double low, double high) {
        const uint64_t a = Cuda::as_bits(low), b = Cuda::as_bits(high);
        w[2 * i] = static_cast<uint32_t>(a), w[2 * i + 1] = static_cast<uint32_t>(a >> 32);
        w[2 * i + 2] = static_cast<uint32_t>(b), w[2 * i + 3] = static_cast<uint32_t>(b >> 32);
    }
};
struct F16 {
    using Real = float;
    using Raw = uint16_t;
    static constexpr int bytes = 2, unit = 8;
    static __device__ float value(Raw x) { return from_float16(x); }
    static __device__ Raw raw(float x) { return static_cast<Raw>(to_float16_pair(x, x)); }
    static __device__ float get(const uint32_t* w, int i) { return value(static_cast<Raw>(w[i / 2] >> 16 * (i % 2))); }
    static __device__ void put(uint32_t* w, int i, float low, float high) { w[i / 2] = to_float16_pair(low, high); }
};
struct BF16 {
    using Real = float;
    using Raw = uint16_t;
    static constexpr int bytes = 2, unit = 8;
    static __device__ float value(Raw x) { return bfloat16_to_float(x); }
    static __device__ Raw raw(float x) {
        uint32_t pair[1];
        put(pair, 0, x, x);
        return static_cast<Raw>(pair[0]);
    }
    static __device__ float get(const uint32_t* w, int i) {
        return bits_to_float(i % 2 ? w[i / 2] & 0xFFFF0000u : w[i / 2] << 16);
    }
    static __device__ void put(uint32_t* w, int i, float low, float high) {
        if constexpr (kRoundsToBfloat16)
            w[i / 2] = to_bfloat16_pair(low, high);
        else
            w[i / 2] = round_to_bfloat16<Cuda>(low) >> 16 | (round_to_bfloat16<Cuda>(high) & 0xFFFF0000u);
    }
};
template <class Whole>
struct Level {
    using Raw = Whole;
    static constexpr int bytes = sizeof(Raw), in_word = 4 / bytes;
    static __device__ float value(Raw x) { return static_cast<float>(x); }
    static __device__ Raw raw(float x) { return static_cast<Raw>(round_to_level<Raw, Cuda>(x)); }
    static __device__ Raw raw(double x) { return round_to_level<Raw>(x); }
    static __device__ float get(const uint32_t* w, int i) {
        return static_cast<float>(bits_of(w[i / in_word], 8 * bytes * (i % in_word), 8 * bytes));
    }
};
using U8 = Level<uint8_t>;
using U16 = Level<uint16_t>;

// n elements that lie together, aligned to the access.
template <class Type, int n, class Real>
__device__ inline void load(Real* values, const char* from) {
    constexpr int words = n * Type::bytes / 4;
    uint32_t w[words];
    if constexpr (words == 1) {
        w[0] = *reinterpret_cast<const uint32_t*>(from);
    } else if constexpr (words == 2) {
        const uint2 pair = *reinterpret_cast<const uint2*>(from);
        w[0] = pair.x, w[1] = pair.y;
    } else {
        for (int i = 0; i < words; i += 4) {
            const uint4 four = *reinterpret_cast<const uint4*>(from + 4 * i);
            w[i] = four.x, w[i + 1] = four.y, w[i + 2] = four.z, w[i + 3] = four.w;
        }
    }
    for (int i = 0; i < n; ++i) values[i] = Type::get(w, i);
}

template <class Type, int n, class Real>
__device__ inline void store(char* to, const Real* values) {
    constexpr int words = n * Type::bytes / 4;
    uint32_t w[words];
    for (int i = 0; i < n; i += 2) Type::put(w, i, values[i], values[i + 1]);
    if constexpr (words == 2)
        *reinterpret_cast<uint2*>(to) = make_uint2(w[0], w[1]);
    else
        for (int i = 0; i < words; i += 4)
            *reinterpret_cast<uint4*>(to + 4 * i) = make_uint4(w[i], w[i + 1], w[i + 2], w[i + 3]);
}

// float32 arithmetic reads no float64: calls.readable converts it.
template <class Stored, class Real>
constexpr bool kReads = Stored::bytes <= sizeof(Real);

// visit(F32{}), or whichever storage type this is, of a type that is known when the kernel runs.
template <class Visit>
__device__ inline void with_storage(DType type, Visit visit) {
    switch (type) {
        case DType::f32:
            return visit(F32{});
        case DType::f64:
            return visit(F64{});
        case DType::f16:
            return visit(F16{});
        case DType::bf16:
            return visit(BF16{});
        case DType::u8:
            return visit(U8{});
        case DType::u16:
            return visit(U16{});
    }
    __builtin_unreachable();  // call.dtype_code knows no others
}

// The same for an output of such arithmetic that is no level.
template <class Real, class Visit>
__device__ inline void with_output(DType type, Visit visit) {
    if constexpr (sizeof(Real) == 8)
        visit(F64{});
    else
        with_storage(type, [&](auto stored) {
            if constexpr (requires { typename decltype(stored)::Real; } && decltype(stored)::bytes <= 4) visit(stored);
        });
}

template <class Stored>
__device__ inline auto element(const void* array, int64_t at) {
    return Stored::value(static_cast<const typename Stored::Raw*>(array)[at]);
}

template <class Real>
__device__ inline Real load_one(DType type, const void* array, int64_t at) {
    Real x{};
    with_storage(type, [&](auto stored) {
        if constexpr (kReads<decltype(stored), Real>) x = element<decltype(stored)>(array, at);
    });
    return x;
}

template <class Real>
__device__ inline void store_one(DType type, void* array, int64_t at, Real x) {
    if (type == DType::u8) return void(static_cast<uint8_t*>(array)[at] = U8::raw(x));
    if (type == DType::u16) return void(static_cast<uint16_t*>(array)[at] = U16::raw(x));
    with_output<Real>(type, [&](auto stored) {
        using Stored = decltype(stored);
        static_cast<typename Stored::Raw*>(array)[at] = Stored::raw(x);
    });
}

// Whether four elements lie so that they are loaded and stored at once.
template <class Type>
__device__ inline bool at_once(const char* four) {
    constexpr uint64_t access = 4 * Type::bytes < 16 ? 4 * Type::bytes : 16;
    return reinterpret_cast<uint64_t>(four) % access == 0;
}

// Four elements; or the first n of them, and zeros.
template <class Real>
__device__ inline void load_four(Real (&values)[4], DType type, const void* array, int64_t at, int n) {
    with_storage(type, [&](auto stored) {
        using Stored = decltype(stored);
        if constexpr (kReads<Stored, Real>) {
            const char* from = static_cast<const char*>(array) + at * Stored::bytes;
            if (n == 4 && at_once<Stored>(from))
                load<Stored, 4>(values, from);
            else
                for (int i = 0; i < 4; ++i) values[i] = i < n ? element<Stored>(array, at + i) : Real{0};
        }
    });
}

template <class Real>
__device__ inline void store_four(DType type, void* array, int64_t at, const Real (&values)[4], int n) {
    with_output<Real>(type, [&](auto stored) {
        using Stored = decltype(stored);
        char* to = static_cast<char*>(array) + at * Stored::bytes;
        if (n == 4 && at_once<Stored>(to))
            store<Stored, 4>(to, values);
        else
            for (int i = 0; i < n; ++i) static_cast<typename Stored::Raw*>(array)[at + i] = Stored::raw(values[i]);
    });
}

}  // namespace
}  // namespace nf
