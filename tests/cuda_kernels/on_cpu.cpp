// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/kernels.cu compiled for a CPU: the stand-in for a device. Threads run one after another, so it shows what
// each of them computes and where it reads and writes; it shows nothing of timing, of the real rsqrt, or of what ptxas
// made. Compiled with this folder's instructions.h in place of the device's, and without strict aliasing (the kernels
// read 16 bytes as words).
#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
struct Index {
    unsigned x, y, z;
};
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __int2double_rn(int a) { return a; }
inline double __uint2double_rn(unsigned a) { return a; }

#include "kernels.cu"

namespace {

struct Kernel {
    const char* name;
    void (*run)(nf::Launch);
};
#define NF_ENTRY(name, bounds, ...) {"nf_" #name, nf_##name},
const Kernel kernels[] = {NF_KERNELS(NF_ENTRY)};

}  // namespace

// 0, or -1 where there is no such kernel. `launch` holds sizeof(Launch) bytes.
extern "C" int run(const char* name, const unsigned* grid, unsigned threads, const void* launch) {
    for (const Kernel& kernel : kernels) {
        if (std::strcmp(kernel.name, name) != 0) continue;
        gridDim = {grid[0], grid[1], grid[2]};
        blockDim = {threads, 1, 1};
        for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
            for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
                for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
                    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
                        kernel.run(*static_cast<const nf::Launch*>(launch));
        return 0;
    }
    return -1;
}

// How many of all floats from 1 to 4 (other normal numbers are these, scaled by powers of 4) have a square root that is
// not rounded correctly, with a seed that is so far off.
extern "C" int wrong_roots(int error) {
    nf::seed_error = error;
    int wrong = 0;
    for (uint32_t bits = 0x3F800000u; bits < 0x40800000u; ++bits) {
        const float a = nf::bits_to_float(bits);
        wrong += nf::Cuda::sqrt(a) != std::sqrt(a);
    }
    nf::seed_error = 99;
    return wrong;
}
