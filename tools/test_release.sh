#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Releases a copy of the last commit, today, and runs there the tests that read files, or those that are named, with the
# noisefuse that is installed:
#     tools/test_release.sh [PYTEST-ARGUMENT]...
set -euo pipefail
cd "$(dirname "$0")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
git clone -q . "$tmp/copy"
cd "$tmp/copy"
version=$(sed -n 's/^__version__ = "\(.*\)\.dev0"$/\1/p' src/noisefuse/ground/version.py)
python tools/release.py "$version" "$(date +%F)"
git diff --stat
python tools/release.py --check "v$version"
[ $# -gt 0 ] || set -- tests/test_{docs,names,recipe,release,repository,site,versions}.py
python -m pytest -p no:cacheprovider -n auto "$@"
