#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests the oldest and the newest versions of NumPy, torch, Numba and diffusers that pyproject.toml declares:
#     tools/test_bounds.sh [lowest|highest]...    both, if none is named
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

# Where the library meets the four: dtypes and errors of NumPy's, Numba's compiler, torch's operators, all schedulers.
tests=(
    tests/test_known.py tests/noise/test_noise.py
    tests/forward tests/losses
    tests/backends/test_numba.py tests/backends/test_update.py
    tests/interop/test_torch.py tests/interop/test_torch_data.py tests/interop/test_torch_loss.py
    tests/interop/test_interop_diffusers.py tests/interop/test_k_diffusion.py
)

rm -rf "$work/wheels" # one build for both ends, as users have it
"$python" -m pip wheel -q --no-deps -C build-dir="$work/build" -w "$work/wheels" .
wheel=$(echo "$work"/wheels/noisefuse-*.whl)

status=0
for end in "$@"; do
    printf '\n=== %s\n' "$end"
    "$python" -m venv "$work/$end"
    "$python" tools/bounds.py "$end" >"$work/$end.txt"
    "$work/$end/bin/pip" install -q --upgrade -c "$work/$end.txt" "$wheel[torch,numba,diffusers]" hypothesis pytest scipy
    "$work/$end/bin/pip" install -q --force-reinstall --no-deps "$wheel" # of the same version as the last time
    "$work/$end/bin/python" tools/bounds.py "$end" --check
    # Other versions have warnings of their own, which say what is to come, and not that something is wrong.
    "$work/$end/bin/python" -m pytest -q -p no:cacheprovider -W default "${tests[@]}" || status=$?
done
exit $status
