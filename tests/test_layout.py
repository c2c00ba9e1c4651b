# SPDX-License-Identifier: Apache-2.0
"""Arrows point down only (docs/design.md): who may import whom, in Python and in C++."""

import ast
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "noisefuse"
CSRC = ROOT / "csrc"

# Modules by pattern, and the modules of the package that they may import, also inside of functions. The first pattern
# that fits counts. "" is the package itself, with its public names.
ALLOWED = {
    "noise": "",
    "rows": "",
    "views": "",
    "tableau": "rows",
    "forward": "rows views",
    "schedule": "rows views tableau forward",
    "weights": "schedule views",
    "naive": "",
    "numba": "arrays backends.device ops rows tableau",
    "backends.spec": "",
    "backends.call": "noise rows",
    "backends.reference": "noise rows backends.call backends.spec",
    "backends.inlining": "",
    "backends.loops": "",
    "backends.device": "backends.inlining backends.spec",
    "backends.kernels": "rows backends.call backends.device backends.inlining backends.loops backends.spec",
    "backends.jit": "noise rows backends.call backends.kernels backends.selftest backends.threads",
    "backends.cuda": "noise rows backends.call backends.cubin",
    "backends.threads": "",
    "backends.*": "noise rows backends.call backends.threads _native",
    "backends": "noise backends.call backends.selftest backends.threads _native",
    "arrays": "backends interop.*",
    "calls": "noise rows tableau arrays backends backends.call",
    "ops": "schedule rows tableau forward noise views arrays calls backends backends.call",
    "loss": "schedule rows forward noise views arrays calls ops backends backends.call",
    "samplers.*": "schedule tableau views samplers.*",  # rules, and what they share
    "sampler": "ops rows backends arrays noise tableau views samplers",
    "samplers": "sampler tableau samplers.*",
    "": "[!_]*",
    "interop": "",
    "interop.torch_internals": "@",
    "interop.torch_arrays": "@ interop.torch_internals",
    "interop.torch_graph": "@ interop.torch_arrays interop.torch_internals",
    "interop.torch_loss": "@ interop.torch_graph interop.torch_arrays interop.torch_internals",
    "interop.torch": "@ interop.torch_*",
    "interop.diffusers_rows": "@",
    "interop.diffusers": "@ interop.diffusers_rows interop.torch_internals",
    "cli": "@ _*",
    "_*": "@ _* naive sampler views",
}
# The version stands in the package, and info() tells it.
EXCEPTIONS = {("backends", "")}
# What is imported only where it is needed. Commands need what the extras install.
OPTIONAL = {"schedule": {"matplotlib"}, "arrays": {"ml_dtypes"}}
# Modules that are loaded by those alone who have what they stand on.
NUMBA = {"numba", "llvmlite"}
STANDS_ON = dict.fromkeys(
    ("numba", *(f"backends.{name}" for name in ["device", "inlining", "kernels", "loops"])), NUMBA
)


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(tree, module, package):
    """(module, whether the statement is at the top) for all that the text imports."""
    here = f"noisefuse.{module}".rstrip(".").split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) + package - node.level] if node.level else []
            names = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            while name.startswith("noisefuse.") and name.removeprefix("noisefuse.") not in {*MODULES, "_native"}:
                name = name.rpartition(".")[0]
            yield name, node in tree.body


def fits(name, patterns):
    return any(fnmatch(name, "" if pattern == "@" else pattern) for pattern in patterns.split())


def wrong_imports(module, text, package=False):
    allowed = next(allowed for pattern, allowed in ALLOWED.items() if fnmatch(module, pattern))
    command, optional = "@" in allowed, OPTIONAL.get(module, ())
    for name, top in imports(ast.parse(text), module, package):
        root, _, inside = name.partition(".")
        if root == "noisefuse":
            if not fits(inside, allowed) and (module, inside) not in EXCEPTIONS:
                yield name
        elif root in {*sys.stdlib_module_names, "numpy", *STANDS_ON.get(module, ())} or command:
            continue
        elif top or root not in optional:
            yield name


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "noisefuse")
def test_imports_point_down(module):
    path = MODULES[module]
    assert list(wrong_imports(module, path.read_text(), path.name == "__init__.py")) == []


@pytest.mark.parametrize(
    ("module", "text", "package"),
    [
        ("schedule", "from .noise import Noise", False),
        ("noise", "def f():\n    from . import ops", False),
        ("tableau", "import noisefuse", False),
        ("views", "import noisefuse.schedule", False),
        ("views", "import scipy", False),
        ("schedule", "import matplotlib", False),
        ("backends.native", "from .spec import fma", False),
        ("backends.native", "from . import reference", False),
        ("backends.native", "from ..ops import randn", False),
        ("backends.native", "import numba", False),
        ("backends.device", "from . import jit", False),
        ("samplers.one_step", "from ..ops import update", False),
        ("samplers.one_step", "from ..noise import Noise", False),
        ("samplers", "from ..ops import update", True),
        ("ops", "from .sampler import Sampler", False),
        ("ops", "from . import cli", False),
        ("ops", "from .backends import spec", False),
        ("cli", "from .ops import randn", False),
        ("interop.torch", "from ..arrays import Array", False),
        ("interop.torch_loss", "from .torch import RowCall", False),
        ("interop.torch", "from ..backends import native", False),
    ],
)
def test_an_import_that_points_up_is_seen(module, text, package):
    assert list(wrong_imports(module, text, package))


def test_what_is_asked_of_torchs_internals_stands_in_one_file():
    """Seen to fail: a private name of torch's elsewhere."""
    internals = r"\btorch\._\w|\._version\b|forward_ad|is_dynamo_compiling|custom_op\b|__dlpack|assume_constant_result"
    found = {name for name, path in MODULES.items() if re.search(internals, path.read_text())}
    assert found == {"interop.torch_internals"}


def test_the_package_imports_numpy_and_the_standard_library_alone():
    code = """
import json, sys, numpy
before = set(sys.modules)
import noisefuse
noisefuse.randn((2, 2), noisefuse.Noise(1))
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {*json.loads(done.stdout)} - {*sys.stdlib_module_names} <= {"noisefuse", "numpy"}


def test_the_package_works_without_its_docstrings():
    """Seen to fail: of a dataclass that has none Python makes one, which shows the values of its defaults."""
    code = "import noisefuse; print(noisefuse.samplers.ddim(noisefuse.Schedule.linear(), 2))"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("Sampler(ddim, 2 rows)"), done.stderr


# ---- C++ ---------------------------------------------------------------------------------------------------

SOURCES = [path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]


def includes(path):
    return re.findall(r'^\s*#\s*include\s+(<.*?>|".*?")', path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_includes_point_down(path):
    """core includes itself and <cstdint>, <cstring>; cpu and cuda include core; module.cpp includes cpu."""
    layers = {"core": {"core"}, "cpu": {"core", "cpu"}, "cuda": {"core", "cuda"}, "csrc": {"core", "cpu", "csrc"}}
    here = path.parent.name
    for name in includes(path):
        if name.startswith("<"):
            assert here != "core" or name in {"<cstdint>", "<cstring>"}
        else:
            target = (path.parent / name.strip('"')).resolve()
            assert target.exists()
            assert target.parent.name in layers[here]


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent.name == "core"], ids=lambda path: path.name)
def test_the_mathematics_is_plain(path):
    """No library function but memcpy, and the same text for every compiler and processor."""
    text = re.sub(r"//.*", "", path.read_text())
    assert {*re.findall(r"std::(\w+)", text)} <= {"memcpy"}
    assert not re.findall(r"^\s*#\s*if", text, re.MULTILINE)


def test_no_compiler_may_fuse_or_reorder():
    text = (ROOT / "CMakeLists.txt").read_text()
    assert re.search(r"add_compile_options\([^)]*-ffp-contract=off", text)
    for flag in ("-ffast-math", "-Ofast", "-funsafe-math", "-fassociative-math", "-ffp-contract=fast", "-fmad=true"):
        assert flag not in text


def test_every_file_names_its_licence():
    files = [path for where in ("src", "csrc", "tests", "benchmarks") for path in (ROOT / where).rglob("*")]
    first_lines = {
        f: f.read_text().partition("\n")[0] for f in files if f.suffix in {".py", ".pyi", ".h", ".cpp", ".cu"}
    }
    assert len(first_lines) > 40
    assert [f.name for f, line in first_lines.items() if "SPDX-License-Identifier: Apache-2.0" not in line] == []
