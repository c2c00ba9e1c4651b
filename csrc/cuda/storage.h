// SPDX-License-Identifier: Apache-2.0
// How elements lie in memory: several of them in accesses of up to 16 bytes, or one of whatever type.
#pragma once
#include "call.h"
#include "lane_cuda.h"

namespace nf {
namespace {

// Storage types: the arithmetic of an output so stored, bytes of an element, and elements of a unit, which is what a
// thread loads and stores at a time.
struct F32 {
    using Real = float;
    static constexpr int bytes = 4, unit = 4;
    static __device__ float get(const uint32_t* w, int i) { return bits_to_float(w[i]); }
    static __device__ void put(uint32_t* w, int i, float low, float high) {
        w[i] = float_to_bits(low), w[i + 1] = float_to_bits(high);
    }
};
struct F64 {
    using Real = double;
    static constexpr int bytes = 8, unit = 4;
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
    static constexpr int bytes = 2, unit = 8;
    static __device__ float get(const uint32_t* w, int i) {
        return from_float16(static_cast<uint16_t>(w[i / 2] >> 16 * (i % 2)));
    }
    static __device__ void put(uint32_t* w, int i, float low, float high) { w[i / 2] = to_float16_pair(low, high); }
};
struct BF16 {
    using Real = float;
    static constexpr int bytes = 2, unit = 8;
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
struct U8 {
    static constexpr int bytes = 1;
    static __device__ float get(const uint32_t* w, int i) {
        return static_cast<float>(static_cast<uint8_t>(w[i / 4] >> 8 * (i % 4)));
    }
};

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

// One element of a type that is known when the kernel runs.
template <class Real>
__device__ inline Real load_one(int32_t type, const void* array, int64_t at) {
    switch (type) {
        case kF32:
            return static_cast<const float*>(array)[at];
        case kU8:
            return static_cast<const uint8_t*>(array)[at];
        case kF16:
            return from_float16(static_cast<const uint16_t*>(array)[at]);
        case kBF16:
            return bfloat16_to_float(static_cast<const uint16_t*>(array)[at]);
        default:
            return static_cast<Real>(static_cast<const double*>(array)[at]);  // of float64 arithmetic only
    }
}

__device__ inline void store_one(int32_t, void* array, int64_t at, double x) { static_cast<double*>(array)[at] = x; }

__device__ inline void store_one(int32_t type, void* array, int64_t at, float x) {
    if (type == kF32) static_cast<float*>(array)[at] = x;
    uint32_t pair[1] = {};
    if (type == kF16) F16::put(pair, 0, x, x);
    if (type == kBF16) BF16::put(pair, 0, x, x);
    if (type != kF32) static_cast<uint16_t*>(array)[at] = static_cast<uint16_t>(pair[0]);
}

// Whether four elements lie so that they are loaded and stored at once.
template <class Type>
__device__ inline bool at_once(const char* four) {
    constexpr uint64_t access = 4 * Type::bytes < 16 ? 4 * Type::bytes : 16;
    return reinterpret_cast<uint64_t>(four) % access == 0;
}

// Four elements of a type that is known when the kernel runs; or the first n of them, and zeros.
template <class Type, DType type, class Real>
__device__ inline void load_four_as(Real (&values)[4], const void* array, int64_t at, int n) {
    const char* from = static_cast<const char*>(array) + at * Type::bytes;
    if (n == 4 && at_once<Type>(from))
        load<Type, 4>(values, from);
    else
        for (int i = 0; i < 4; ++i) values[i] = i < n ? load_one<Real>(type, array, at + i) : Real{0};
}

template <class Real>
__device__ inline void load_four(Real (&values)[4], int32_t type, const void* array, int64_t at, int n) {
    switch (type) {
        case kF32:
            return load_four_as<F32, kF32>(values, array, at, n);
        case kU8:
            return load_four_as<U8, kU8>(values, array, at, n);
        case kF16:
            return load_four_as<F16, kF16>(values, array, at, n);
        case kBF16:
            return load_four_as<BF16, kBF16>(values, array, at, n);
        default:
            if constexpr (sizeof(Real) == 8) load_four_as<F64, kF64>(values, array, at, n);
    }
}

template <class Type, class Real>
__device__ inline void store_four_as(int32_t type, void* array, int64_t at, const Real (&values)[4], int n) {
    char* to = static_cast<char*>(array) + at * Type::bytes;
    if (n == 4 && at_once<Type>(to))
        store<Type, 4>(to, values);
    else
        for (int i = 0; i < n; ++i) store_one(type, array, at + i, values[i]);
}

__device__ inline void store_four(int32_t type, void* array, int64_t at, const double (&values)[4], int n) {
    store_four_as<F64>(type, array, at, values, n);
}

__device__ inline void store_four(int32_t type, void* array, int64_t at, const float (&values)[4], int n) {
    if (type == kF32) store_four_as<F32>(type, array, at, values, n);
    if (type == kF16) store_four_as<F16>(type, array, at, values, n);
    if (type == kBF16) store_four_as<BF16>(type, array, at, values, n);
}

}  // namespace
}  // namespace nf
