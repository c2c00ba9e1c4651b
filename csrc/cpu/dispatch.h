// SPDX-License-Identifier: Apache-2.0
// Which instruction sets this build has, which this processor has, and which one is in use.
#pragma once
#include <vector>

#include "kernels.h"

namespace nf {

struct Isa {
    const Kernels* kernels;
    bool supported;  // by this processor
};

// Fastest first; "portable" comes last and runs everywhere.
const std::vector<Isa>& isas();

// The instruction set in use: at first the fastest supported one.
const Kernels& kernels();
void use_kernels(const Kernels& k);

}  // namespace nf
