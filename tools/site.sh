#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The documentation site of a commit, with the library of that commit in an environment of its own:
#     tools/site.sh COMMIT FOLDER
# PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mkdir -p "$2" && cd "$2" && pwd)
tmp=$(mktemp -d)
trap 'git worktree remove --force "$tmp/source"; rm -rf "$tmp"' EXIT
git worktree add -q --detach "$tmp/source" "$1"
"${PYTHON:-python3}" -m venv "$tmp/venv"
. "$tmp/venv/bin/activate"
cd "$tmp/source"
pip install -q 'pip>=25.1' # which knows groups
# The reference imports what it describes; two schedulers of diffusers need torchsde.
pip install -q '.[albumentations,audiomentations,dask,demo,diffusers,grain,jax,kornia,monai,numba,torchvision]' torchsde --group docs
python examples/gallery.py --folder docs/pictures/gallery # as the library draws them now
sphinx-build -q -W --keep-going -n docs "$folder"
