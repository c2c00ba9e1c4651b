# SPDX-License-Identifier: Apache-2.0
"""Prints the oldest and newest versions that pyproject.toml declares, as constraints for pip:

python tools/bounds.py lowest|highest|next SET            lines for `pip install -c`
python tools/bounds.py lowest|highest|next SET --check    whether that is what is installed here

Each set has its own environment. torch: torch, diffusers, Numba and NumPy. jax: JAX, dask, zarr and Pillow, which need
a newer NumPy. transforms: the libraries whose classes ours derive from, and Triton, which need a newer torch. build:
the build tools.

highest is the newest version published below the declared bound, so its lines give a range, and so do those of next,
which takes what is published before a release, too (`pip install --pre`).
"""

import argparse
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
GROUPS = {
    "torch": ("numpy", "torch", "numba", "diffusers", "ml_dtypes"),
    "jax": ("jax", "dask", "distributed", "zarr", "pillow"),
    "transforms": (
        "albumentations",
        "audiomentations",
        "grain",
        "kornia",
        "monai",
        "scikit-image",
        "torchvision",
        "triton",
    ),
    "build": ("cmake", "hatch-fancy-pypi-readme", "ninja", "scikit-build-core"),
}


def declared() -> dict[str, str]:
    """Returns the range of each library for users, such as ">=0.62,<0.69". The developers' extras may allow more, as
    long as they begin at the users' lower bounds (tests/test_versions.py)."""
    text = tomllib.loads(PYPROJECT.read_text())
    project, build = text["project"], text["dependency-groups"]["build"]
    extras = project["optional-dependencies"]
    names = ("torch", "numba", "diffusers", "jax", "dask", "noise", "skimage", *GROUPS["transforms"])
    lines = [*build, *project["dependencies"], *(line for name in names for line in extras.get(name, ()))]
    found = dict(re.findall(r"^([\w-]+)(?:\[[\w,]+\])?([<>=].*)$", "\n".join(lines), re.MULTILINE))
    found["distributed"] = found["dask"]  # released together
    return {name: found[name] for group in GROUPS.values() for name in group}


def lower(bound: str) -> str:
    return re.search(r">=([\d.]+)", bound)[1]


def constraints(end: str, group: str) -> list[str]:
    bounds = declared()
    return [f"{name}=={lower(bounds[name])}" if end == "lowest" else name + bounds[name] for name in GROUPS[group]]


def check(end: str, group: str) -> None:
    """Raises SystemExit if a library's version is not at the end that is to be tested."""
    bounds = declared()
    for name in GROUPS[group]:
        bound = bounds[name]
        found, wanted = version(name), lower(bound)
        print(f"{name} {found} ({bound})")
        if end == "lowest" and not f"{found}.".startswith(f"{wanted}."):
            raise SystemExit(f"{name}: expected {wanted}, got {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("end", choices=["lowest", "highest", "next"])
    parser.add_argument("group", choices=list(GROUPS))
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.end, arguments.group)
    else:
        print("\n".join(constraints(arguments.end, arguments.group)))


if __name__ == "__main__":
    main()
