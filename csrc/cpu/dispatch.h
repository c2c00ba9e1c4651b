// SPDX-License-Identifier: Apache-2.0
// The instruction sets of this build, those that this processor supports, and the one in use.
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

// The instruction set in use. At first it is the fastest supported one.
const Kernels& kernels();
void use_kernels(const Kernels& k);

}  // namespace nf
