#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests the oldest and the newest versions that pyproject.toml declares of NumPy, torch, Numba and diffusers; of JAX, dask,
# zarr and Pillow; and of Triton and the libraries whose transforms ours derive from. The wheel is built with the oldest or newest
# CMake, Ninja and scikit-build-core:
#     tools/test_bounds.sh [lowest|highest|next]...    the first two, if none is named
# next are the newest, those before a release included. At the end stands which calls of noisefuse's broke.
# SETS names some of the sets torch, jax and transforms, where not all are wanted.
# PYTHON names the interpreter. BOUNDS_DIR names a folder in which the environments stay for another time: the oldest
# torch alone is gigabytes.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if [ -n "${BOUNDS_DIR:-}" ]; then
    work=$(mkdir -p "$BOUNDS_DIR" && cd "$BOUNDS_DIR" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
[ $# -gt 0 ] || set -- lowest highest

# Where the library meets them: dtypes and errors of NumPy's, Numba's compiler, torch's operators, all schedulers; XLA,
# graphs of dask's, stores.
declare -A tests=(
    [torch]="tests/test_known.py tests/noise/test_noise.py tests/forward tests/losses
        tests/backends/test_numba.py tests/backends/test_update.py
        tests/interop/test_torch.py tests/interop/test_torch_data.py tests/interop/test_torch_loss.py
        tests/interop/test_diffusers_loops.py tests/interop/test_diffusers_dtypes.py tests/interop/test_diffusers_noise.py
        tests/interop/test_diffusers_runs.py tests/interop/test_diffusers_forward.py tests/interop/test_diffusers_exact.py
        tests/interop/test_diffusers_fallbacks.py tests/interop/test_diffusers_pipelines.py
        tests/interop/test_diffusers_device.py tests/interop/test_k_diffusion.py"
    [jax]="tests/interop/test_jax.py tests/interop/test_dask.py
        tests/interop/test_dask_cluster.py tests/cli/test_noise_command.py"
    [transforms]="tests/interop/test_albumentations.py tests/interop/test_audiomentations.py tests/interop/test_grain.py
        tests/interop/test_kornia.py tests/interop/test_monai.py tests/interop/test_skimage.py
        tests/interop/test_torchvision.py
        tests/backends/test_triton.py"
)
declare -A extras=(
    [torch]=torch,numba,diffusers
    [jax]=jax,dask,noise
    [transforms]=albumentations,audiomentations,grain,kornia,monai,skimage,torchvision,triton
)

status=0
for end in "$@"; do
    at=$work/$end-build
    rm -rf "$at" "$work/wheels"
    "$python" -m venv "$at"
    "$python" tools/bounds.py "$end" build >"$at.txt"
    "$at/bin/pip" install -q -U 'pip>=25.1' # which knows groups
    "$at/bin/pip" install -q -c "$at.txt" --group build
    "$at/bin/python" tools/bounds.py "$end" build --check
    PATH=$at/bin:$PATH "$at/bin/pip" wheel -q --no-deps --no-build-isolation -C build-dir="$work/build-$end" -w "$work/wheels" .
    wheel=$(echo "$work"/wheels/noisefuse-*.whl)
    for group in ${SETS:-torch jax transforms}; do
        printf '\n=== %s %s\n' "$end" "$group"
        at=$work/$end-$group
        "$python" -m venv "$at"
        "$python" tools/bounds.py "$end" "$group" >"$at.txt"
        pre=()
        [ "$end" != next ] || pre=(--pre)
        "$at/bin/pip" install -q --upgrade "${pre[@]}" -c "$at.txt" "${wheel}[${extras[$group]}]" flatbuffers hypothesis ml_dtypes pytest scipy
        "$at/bin/pip" install -q --force-reinstall --no-deps "$wheel" # of the same version as the last time
        "$at/bin/python" tools/bounds.py "$end" "$group" --check
        # Other versions have warnings of their own, which say what is to come, and not that something is wrong.
        # shellcheck disable=SC2086
        "$at/bin/python" -m pytest -q -p no:cacheprovider -W default --broken-calls ${tests[$group]} || status=$?
    done
done
exit $status
