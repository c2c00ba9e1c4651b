// SPDX-License-Identifier: Apache-2.0
#include "dispatch.h"

#include <atomic>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace nf {

#if defined(__x86_64__)
extern const Kernels kernels_avx512, kernels_avx2;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#endif
extern const Kernels kernels_portable;

#if defined(__x86_64__)
namespace {

// What "avx2" and "avx512" need of the processor, and of the system, which has to save the registers.
struct Features {
    bool avx2, avx512;
};

// Asks the processor itself. clang before 18 refuses __builtin_cpu_supports("f16c"), and clang-cl links no library that
// has it.
Features features() {
    unsigned a, b, c, d, states = 0, unused;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return {};
    if (c >> 27 & 1) asm volatile("xgetbv" : "=a"(states), "=d"(unused) : "c"(0));
    const bool fma = c >> 12 & 1, f16c = c >> 29 & 1;
    if (!fma || !f16c || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {};
#if defined(__APPLE__)  // macOS admits that it saves the registers of AVX-512 only once a thread has used them
    constexpr unsigned kYmm = 0x6, kZmm = kYmm, kAvx2 = 1u << 5;
#else
    constexpr unsigned kYmm = 0x6, kZmm = 0xE6, kAvx2 = 1u << 5;
#endif
    constexpr unsigned kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
    const bool avx2 = (states & kYmm) == kYmm && (b & kAvx2) != 0;
    return {avx2, avx2 && (states & kZmm) == kZmm && (b & kAvx512) == kAvx512};
}

}  // namespace
#endif

const std::vector<Isa>& isas() {
    static const std::vector<Isa> all = [] {
        std::vector<Isa> found;
#if defined(__x86_64__)
        const auto [avx2, avx512] = features();
        found.push_back({&kernels_avx512, avx512});
        found.push_back({&kernels_avx2, avx2});
#elif defined(__aarch64__)
        found.push_back({&kernels_neon, true});
#endif
        found.push_back({&kernels_portable, true});
        return found;
    }();
    return all;
}

namespace {
std::atomic<const Kernels*> chosen{nullptr};
}

const Kernels& kernels() {
    if (const Kernels* k = chosen.load(std::memory_order_relaxed)) return *k;
    for (const Isa& isa : isas())
        if (isa.supported) {
            use_kernels(*isa.kernels);
            break;
        }
    return *chosen;
}

void use_kernels(const Kernels& k) { chosen = &k; }

}  // namespace nf
