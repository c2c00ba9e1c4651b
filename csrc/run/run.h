// SPDX-License-Identifier: Apache-2.0
// Checked calls, run by the instruction set in use on all threads.
#pragma once
#include <array>
#include <string_view>

#include "../core/call.h"
#include "../core/pyramid.h"
#include "../cpu/pool.h"
#include "turned.h"

namespace nf {

// False: go_on ended the run, and the outputs are unspecified.
bool run_step(const Call& call, const GoOn& go_on, const Turned& turned = {});
// The same; the first result is also clipped to [low, high], in its dtype, while it lies in the caches.
bool run_clipped_step(const Call& call, double low, double high, const GoOn& go_on, const Turned& turned);
// Tokens that become the mask. Those that lie turned are in[kX], too.
bool run_masks(const Call& call, const Masks& masks, const GoOn& go_on, const Turned& turned = {});
bool run_impulses(const Call& call, const Impulses& impulses, const GoOn& go_on);
bool run_rician(const Call& call, const Rician& rician, const GoOn& go_on);
bool run_poisson(const Call& call, const Poisson& poisson, const GoOn& go_on);
bool run_factors(const Call& call, const Factors& factors, const GoOn& go_on);
bool run_iso(const Call& call, const Iso& iso, const GoOn& go_on);
bool run_lightness(const Call& call, const Iso& iso, const GoOn& go_on);
bool run_pyramid(const Pyramid& call, const GoOn& go_on);
bool run_walk(const Call& call, const GoOn& go_on);

// Runs the chunks on all threads; then adds, in the order of the elements, the sums of samples, and the losses.
// std::bad_alloc: nothing was written.
bool run_loss(const Call& loss, const GoOn& go_on, const Turned& turned = {});

// Runs a loss without weights and gradient at each of the next steps of its noises: the losses are (steps, batch).
bool run_repeated_loss(Call loss, const GoOn& go_on);

// Runs a step, and a loss that reads its result: chunk by chunk, while the chunk lies in the caches. Inputs that are
// turned are those of both.
bool run_step_and_loss(const Call& step, const Call& loss, const GoOn& go_on, const Turned& turned = {});

bool run_philox(const Philox& call, const GoOn& go_on);
bool run_torch_normals(const TorchNormals& call, const GoOn& go_on);

inline constexpr int kMostRecords = 2;
inline constexpr size_t kMostBytes = sizeof(Call);  // of a record

// An operation by its name, for backends/native.py. It takes the bytes of records of these sizes (0: none).
struct Operation {
    std::string_view name;
    std::array<size_t, kMostRecords> sizes;
    bool (*run)(const void* const* records, const GoOn& go_on);
};

// Null: there is no such name.
const Operation* find_operation(std::string_view name);

}  // namespace nf
