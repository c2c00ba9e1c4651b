// SPDX-License-Identifier: Apache-2.0
// The yardstick of a sampler's step: what a compiler makes of one line that reads two arrays and writes one.
//     cc -O3 -march=native -fopenmp -shared -fPIC triad.c -o triad.so
#include <stddef.h>

void triad(float* restrict out, const float* restrict x, const float* restrict m, float a, float b, ptrdiff_t n,
           int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (ptrdiff_t i = 0; i < n; ++i) out[i] = a * x[i] + b * m[i];
}
