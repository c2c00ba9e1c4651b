# SPDX-License-Identifier: Apache-2.0
"""The versions in README and guides are those of pyproject.toml, and tools/test_bounds.sh gets them from there.

Seen to fail: another number in a page, an extra that begins elsewhere, a page that names no version.
"""

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cuda_kernels import stand_in

ROOT = Path(__file__).parents[1]
BOUNDS = runpy.run_path(str(ROOT / "tools" / "bounds.py"))
DECLARED = BOUNDS["declared"]()
PAGES = {
    "README.md": ("numpy", "torch", "diffusers", "numba"),
    "docs/torch.md": ("torch",),
    "docs/diffusers.md": ("diffusers",),
    "docs/numba.md": ("numba",),
}


def named(text, library):
    """Returns the bound of "torch from 2.5" or "Numba from 0.62 and below 0.69" in a page, in pyproject.toml's form."""
    number = r"\d+(?:\.\d+)*"
    found = re.findall(rf"\b{library}\s+from\s+({number})(?:\s+and\s+below\s+({number}))?", text, re.IGNORECASE)
    return {f">={low}" + (f",<{high}" if high else "") for low, high in found}


@pytest.mark.parametrize(("page", "library"), [(page, library) for page in PAGES for library in PAGES[page]])
def test_pages_name_the_declared_versions(page, library):
    text = (ROOT / page).read_text()
    # "From torch 2.10 on" is about one feature; "torch from 2.5" is the bound, each time.
    assert named(text, library) == {DECLARED[library]}


def test_every_extra_begins_where_the_users_do():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, lines in project["optional-dependencies"].items():
        for line in lines:
            name, bound = re.match(r"([\w-]+)(?:\[\w+\])?(.*)", line).groups()
            if name in DECLARED:
                assert BOUNDS["lower"](bound) == BOUNDS["lower"](DECLARED[name]), extra


def test_a_failed_compilation_names_the_numba_that_works():
    """Seen to fail: a plain `pip install numba`."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    below = DECLARED["numba"].partition(",")[2]
    assert f"pip install 'numba{below}'" in build["messages"]["after-failure"]


def test_a_numba_without_a_warning_is_a_declared_one():
    text = (ROOT / "src" / "noisefuse" / "backends" / "numba" / "internals.py").read_text()
    tested = re.search(r"^TESTED = \((\d+), (\d+)\), \((\d+), (\d+)\)", text, re.MULTILINE).groups()
    assert DECLARED["numba"] == ">={}.{},<{}.{}".format(*tested)


def test_constraints_are_what_pip_reads():
    assert f"numpy=={BOUNDS['lower'](DECLARED['numpy'])}" in BOUNDS["constraints"]("lowest", "torch")
    assert f"numba{DECLARED['numba']}" in BOUNDS["constraints"]("highest", "torch")
    assert f"jax=={BOUNDS['lower'](DECLARED['jax'])}" in BOUNDS["constraints"]("lowest", "jax")


def test_both_ends_of_every_extra_are_tried():
    """Seen to fail: the libraries of transforms, which no set had."""
    text = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = text["project"]["optional-dependencies"]
    # Not tried: libraries that only draw, GPUs' libraries, which need one, and developers' tools.
    left_out = {"demo", "cuda12", "cuda13", "bench", "test", "test-core"}
    lines = [line for extra, found in extras.items() if extra not in left_out for line in found]
    named = {re.match(r"[\w-]+", line)[0] for line in [*lines, *text["dependency-groups"]["build"]]}
    assert named - {"noisefuse"} <= {name for group in BOUNDS["GROUPS"].values() for name in group}
    script = (ROOT / "tools" / "test_bounds.sh").read_text()
    assert all(re.search(rf"\b{group}\b", script) for group in BOUNDS["GROUPS"])


def test_an_end_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(BOUNDS["check"].__globals__, "version", lambda name: "0.61.0")
    with pytest.raises(SystemExit, match=r"expected [\d.]+, got 0\.61\.0"):
        BOUNDS["check"]("lowest", "torch")


def test_python_is_the_declared_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = project["requires-python"].removeprefix(">=")
    assert re.search(rf"Python {re.escape(lowest)} or newer", (ROOT / "README.md").read_text())
    assert sys.version_info >= tuple(map(int, lowest.split(".")))


def lowest_compilers():
    """Returns {compiler: version}, below which CMakeLists.txt stops."""
    return dict(re.findall(r"set\(lowest_(\w+) (\d+)\)(?!  # clang-cl)", (ROOT / "CMakeLists.txt").read_text()))


@pytest.mark.parametrize("page", ["README.md", "docs/start.md", "pyproject.toml"])
def test_pages_name_the_compilers_that_are_not_stopped(page):
    """Seen to fail: `GCC 12 or newer, or clang`, of which 14 to 17 did not compile."""
    lowest = lowest_compilers()
    text = " ".join((ROOT / page).read_text().split())
    assert f"(GCC {lowest['GNU']} or clang {lowest['Clang']}, or newer" in text


@pytest.mark.slow  # pip fetches the requirements of a build
@pytest.mark.parametrize(
    ("name", "macros"),
    [
        ("GNU 11.", "-U__GNUC__ -D__GNUC__=11"),
        ("Clang 13.", "-D__clang__ -D__clang_major__=13 -D__clang_minor__=0 -D__clang_patchlevel__=1"),
    ],
    ids=["GNU", "Clang"],
)
def test_an_older_compiler_is_stopped_in_one_line(name, macros, tmp_path):
    """CMake takes a compiler's version from its macros. Seen to fail: it was tried, and errors of C++ came late."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec {stand_in.compiler()} {macros} "$@"\n')
    compiler.chmod(0o755)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-C", f"build-dir={tmp_path / 'build'}", "-w", tmp_path]
    done = subprocess.run([*build, ROOT], env=os.environ | {"CXX": str(compiler)}, capture_output=True, text=True)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "is too old" in line]
    assert len(said) == 1, done.stderr
    assert re.search(rf"{name}\S* is too old: expected \d+ or newer", said[0])
