// SPDX-License-Identifier: Apache-2.0
#include "dispatch.h"

#include <atomic>

namespace nf {

#if defined(__x86_64__)
extern const Kernels kernels_avx512, kernels_avx2, kernels_scalar;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#endif
extern const Kernels kernels_portable;

const std::vector<Isa>& isas() {
    static const std::vector<Isa> all = [] {
        std::vector<Isa> found;
#if defined(__x86_64__)
        __builtin_cpu_init();
        const bool fma =
            __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
        const bool avx512 = fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
        found.push_back({&kernels_avx512, avx512});
        found.push_back({&kernels_avx2, fma});
        found.push_back({&kernels_scalar, fma});
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
