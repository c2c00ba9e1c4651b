#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the source distribution, and the wheel from it, into a folder (dist, if none is named), checks both files, writes
# what they are made of beside them (noisefuse.cdx.json), and installs them as users do, each into an environment of its
# own, where the known bits (tests/known) and the noise are tested:
#     tools/test_built.sh [FOLDER]
# PYTHON names the interpreter, which has to be one without noisefuse; CLANG the oldest clang, if it is not clang++-14.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
clang=${CLANG:-clang++-14}
command -v "$clang" >/dev/null || { echo "$clang is missing: expected clang 14, the oldest that is tried" >&2 && exit 1; }
dist=$(mkdir -p "${1:-dist}" && cd "${1:-dist}" && pwd)
# The time of every file in them: that of the commit, so that anybody can build the same bytes.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
rm -f "$dist"/noisefuse-*.tar.gz "$dist"/noisefuse-*.whl

printf '=== built files\n'
"$python" -m venv "$tmp/tools"
"$tmp/tools/bin/pip" install -q build check-wheel-contents cyclonedx-bom pyroma twine
"$tmp/tools/bin/python" -m build --outdir "$dist" . >"$tmp/build.log" 2>&1 || { cat "$tmp/build.log" && exit 1; }
source=$(echo "$dist"/noisefuse-*.tar.gz)
wheel=$(echo "$dist"/noisefuse-*.whl)
"$tmp/tools/bin/twine" check --strict "$source" "$wheel"
"$tmp/tools/bin/check-wheel-contents" "$wheel"
"$tmp/tools/bin/pyroma" --min 10 "$source"
sizes=0
"$tmp/tools/bin/python" tools/sizes.py "$wheel" "$source" || sizes=1 # at the end, so that a large file is tried all the same

printf '\n=== a bill of materials\n'
"$python" -m venv --without-pip "$tmp/alone"
"$tmp/tools/bin/pip" --python "$tmp/alone/bin/python" install -q "$wheel"
"$tmp/tools/bin/python" tools/sbom.py "$tmp/alone/bin/python" "$dist/noisefuse.cdx.json"

# Of the tests a copy beside nothing that could be imported in the place of what is installed.
mkdir "$tmp/copy"
cp -r pyproject.toml tests "$tmp/copy"

# installed NAME BACKEND PIP-ARGUMENTS: a clean environment, from which the checkout cannot be seen.
installed() {
    local name=$1 backend=$2
    shift 2
    printf '\n=== %s\n' "$name"
    "$python" -m venv "$tmp/$name"
    "$tmp/$name/bin/pip" install -q "$@"
    (
        cd "$tmp"
        "$tmp/$name/bin/noisefuse" info
        "$tmp/$name/bin/python" -c "import noisefuse; got = noisefuse.info()['backend']; assert got == '$backend', got"
        "$tmp/$name/bin/noisefuse" selftest
        if [ "$backend" = native ]; then
            headers=$("$tmp/$name/bin/python" -c 'import noisefuse; print(noisefuse.get_include())')
            ls "$headers"/noisefuse.h "$headers"/noisefuse-config.cmake "$headers"/core/normal.h "$headers"/cpu/lane_scalar.h
        fi
    )
    "$tmp/$name/bin/pip" install -q ml_dtypes pytest
    (
        cd "$tmp/copy"
        "$tmp/$name/bin/python" -c "import noisefuse, sys; file = noisefuse.__file__; assert file.startswith(sys.prefix), file"
        NOISEFUSE_BACKEND=$backend "$tmp/$name/bin/python" -m pytest -q -p no:cacheprovider tests/test_known.py -k hashes_compiled
        "$tmp/$name/bin/python" tests/campaign/random_calls.py --cases 2000 --no-numba
    )
}

printf '\n=== the same bytes again, built later and elsewhere\n'
"$tmp/tools/bin/pip" wheel -q --no-deps --no-cache-dir -w "$tmp/again" "$source"
cmp "$wheel" "$tmp"/again/*.whl

installed wheel native "$wheel"
installed source native "$source"
NOISEFUSE_PURE=1 installed pure numba "$source" numba
"$tmp/pure/bin/python" -W error -c 'import noisefuse as nf; nf.randn((2, 2), nf.Noise(1))' # it was chosen: no warning
CXX=$clang "$tmp/tools/bin/pip" wheel -q --no-deps --no-cache-dir -w "$tmp/by_clang" "$source"
installed clang native "$tmp"/by_clang/*.whl

printf '\n=== what the source has to have for its tests\n'
tar -xzf "$source" -C "$tmp"
(cd "$tmp/$(basename "$source" .tar.gz)" && "$tmp/wheel/bin/python" -m pytest -q -p no:cacheprovider tests/test_docs.py -k 'links or drawings or contract')
echo "both files work"
exit "$sizes"
