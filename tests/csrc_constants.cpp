// SPDX-License-Identifier: Apache-2.0
// Prints what tests hold against the headers of csrc, a line for each constant: its name, then its numbers. conftest.py
// compiles it, and reads them.
//     log1p32 -0x1p+1 0x1.ffffe2p-1 ..    the coefficients of normal.h, exactly
//     normal64 40..2a bf..01              the bits of z0 and z1 of the words that a line of the input begins with
//     shape 0x8486                        a shape of tile_registers.h: bit c says whether column c is active
#include <cinttypes>
#include <cstdio>
#include <iterator>

#define NF_LANE Scalar
#define NF_LANE_HEADER "cpu/lane_scalar.h"
#include "core/normal.h"
#include "cpu/tile_registers.h"

using namespace nf;

namespace {

template <class Real>
void print(const char* name, const Real* first, const Real* last) {
    std::printf("%s%zu", name, 8 * sizeof(Real));
    for (; first != last; ++first) std::printf(" %a", static_cast<double>(*first));
    std::printf("\n");
}

template <class Real>
void print_coefficients() {
    using C = NormalCoefficients<Real>;
    print("log1p", std::begin(C::log1p), std::end(C::log1p));
    print("sin", std::begin(C::sin), std::end(C::sin));
    print("cos", std::begin(C::cos), std::end(C::cos));
}

void print_normals() {
    for (uint64_t u, v; std::scanf("%" SCNx64 " %" SCNx64 "%*[^\n]", &u, &v) == 2;) {
        const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
        const auto pair = normal_pair<Scalar, 0>(low(u >> 32), low(u), low(v >> 32), low(v));
        std::printf("normal64 %016" PRIx64 " %016" PRIx64 "\n", Scalar::as_bits(pair.z0), Scalar::as_bits(pair.z1));
    }
}

}  // namespace

int main() {
    print_coefficients<float>();
    print_coefficients<double>();
    print_normals();
    for (const uint64_t shape : kForwardShapes) std::printf("shape 0x%" PRIx64 "\n", shape);
    for (const uint64_t shape : kDrawnShapes) std::printf("shape 0x%" PRIx64 "\n", shape);
    for (const uint64_t shape : kCommonShapes) std::printf("shape 0x%" PRIx64 "\n", shape);
    for (const uint64_t shape : kSamplerShapes) std::printf("shape 0x%" PRIx64 "\n", shape);
}
