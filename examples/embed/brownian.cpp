// SPDX-License-Identifier: Apache-2.0
// A random walk in C++, whose numbers Python draws again by nf.randn((1, n), nf.Noise(seed, sample=sample)).
#include <noisefuse.h>

#include <cstdio>
#include <cstdlib>

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: brownian SEED SAMPLE STEPS\n"), 2;
    const auto seed = std::strtoull(arguments[1], nullptr, 10), sample = std::strtoull(arguments[2], nullptr, 10);
    float x = 0;
    for (uint32_t element = 0; element < std::strtoul(arguments[3], nullptr, 10); ++element) {
        x += noisefuse::normal(seed, sample, 0, element);
        std::printf("%a\n", static_cast<double>(x));
    }
}
