// SPDX-License-Identifier: Apache-2.0
// The contract's floating-point mode: round to nearest, subnormals kept. A caller may have set another one (torch can
// flush subnormals to zero); it is restored at the end of the scope.
#pragma once
#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace nf {
namespace {

class FloatMode {
  public:
#if defined(__x86_64__)
    FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }  // all exceptions masked
    ~FloatMode() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#elif defined(__aarch64__)
    FloatMode() {
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" ::"r"(uint64_t{0}));
    }
    ~FloatMode() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

  private:
    uint64_t saved_;
#endif
};

}  // namespace
}  // namespace nf
