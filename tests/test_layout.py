# SPDX-License-Identifier: Apache-2.0
"""Arrows point down only (docs/design.md), in Python and in C++; functions fit a screen; files state their contents."""

import ast
import itertools
import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "noisefuse"
CSRC = ROOT / "csrc"

# The floors of the package, from the ground up: a module imports from its own floor and from those below, inside of
# functions too. "" is the package itself, with its public names.
# The pages only show public names whose code has a room.
PAGES = "discrete_sampler loss_parts noise sampler schedule tableau token_table"
FLOORS = (
    "ground* _native",  # nothing else of noisefuse
    "views",
    "language*",
    "paths weights",
    "call*",
    "backends*",
    "arguments*",
    "operations*",
    "augment* density fields legacy numba triton",
    "sampling*",
    "tokens*",
    f"discrete samplers* {PAGES}",
    "",
    "interop*",
    "commands* __main__",
)
# Imports for type checkers alone may point up here.
TYPES_ALONE = {"": {"interop", "interop.audits"}}
# These may import less than the floors below them.
LESS = {
    "samplers.shared": "ground* language.schedule language.tableau sampler samplers.plan samplers.spacing",
    "samplers.spacing": "arguments.calls ground.checks ground.libraries language.axis language.schedule",
    "samplers.interpolants": "ground.checks language.tableau paths sampler",
    "samplers": "discrete_sampler ground.lazy samplers* tokens.samplers",
    "samplers*": "ground.checks language.axis language.schedule language.tableau samplers* views",  # rules
    "interop.audits": "backends call.description language.noise interop.torch.internals",
    "interop.jax*": "*",  # while JAX traces, the code for NumPy builds and checks the call
    "interop.torch.arrays": "@ ground* language.levels interop.torch.internals backends.triton.arrays",
    "interop*": "@ ground* language.axis language.levels language.noise language.schedule language.tableau interop* "
    "augment views",
    "commands*": "@ ground* language.levels language.noise language.rows language.tableau commands* interop.dask "
    "arguments* sampling.sampler views _native",
}
# Only these may import them: two independent statements of one thing stay two.
BY_THOSE_ALONE = {
    "_native": "ground.layouts backends* interop.jax* commands.selftest",
    "backends.spec": "backends.reference backends.numba.* backends.triton.* interop.jax*",
    "backends.reference": "legacy interop.jax*",
    "backends.numba.*": "backends.numba.* numba",
    "backends.triton.*": "backends backends.triton.* triton interop.torch.arrays interop.jax.devices",
}
# Libraries that are imported only on use. Modules of `interop` and `commands` need the extras' libraries.
OPTIONAL = {
    "language.named": {"matplotlib"},
    "sampling.sampler": {"matplotlib", "torch"},
    "ground.drawing": {"matplotlib"},
    "arguments.arrays": {"ml_dtypes"},
    "arguments.types": {"torch"},
    "operations.draw": {"torch"},
}
STANDS_ON = {
    "numba": {"numba", "llvmlite"},
    "backends.numba.*": {"numba", "llvmlite"},
    "triton": {"triton"},
    "backends.triton.*": {"triton", "torch"},
    "interop*": {"*"},
    "commands*": {"*"},
}


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(tree, module, package):
    """Returns (module, whether the statement is at the top) for all imports in the text."""
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
    return any(fnmatch(name, "" if pattern == "@" else pattern) for pattern in patterns.split() or [""])


def of(module, table, default):
    """Returns the entry of the first pattern that fits the module."""
    return next((entry for patterns, entry in table.items() if fits(module, patterns)), default)


def floor(module):
    return next(k for k, patterns in enumerate(FLOORS) if fits(module, patterns))


def may_import(module, name):
    return (
        floor(name) <= floor(module)
        and fits(name, of(module, LESS, "* @"))
        and fits(module, of(name, BY_THOSE_ALONE, "* @"))
    )


def wrong_imports(module, text, package=False):
    optional, stands_on = OPTIONAL.get(module, set()), of(module, STANDS_ON, set())
    for name, top in imports(ast.parse(text), module, package):
        root, _, inside = name.partition(".")
        if root == "noisefuse":
            if not may_import(module, inside) and inside not in TYPES_ALONE.get(module, ()):
                yield name
        elif root in {*sys.stdlib_module_names, "numpy", *stands_on} or "*" in stands_on:
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
        ("ground.libraries", "from ..language import noise", False),
        ("views", "import noisefuse.schedule", False),
        ("views", "import scipy", False),
        ("views", "from .language.noise import Noise", False),
        ("language.noise", "def f():\n    from ..operations import draw", False),
        ("language.noise", "def f():\n    from ..interop import jax", False),
        ("language.tableau", "import noisefuse", False),
        ("schedule", "import matplotlib", False),
        ("language.schedule", "from ..noise import Noise", False),
        ("call.description", "from ..backends import current", False),
        ("backends.native", "from .spec import fma", False),
        ("backends.native", "from . import reference", False),
        ("backends.native", "from ..operations.draw import randn", False),
        ("backends.native", "import numba", False),
        ("backends.threads", "from .numba import jit", False),
        ("arguments.calls", "def f():\n    from ..operations import update", False),
        ("operations.draw", "from ..sampling.sampler import Sampler", False),
        ("operations.draw", "from ..tokens.table import TokenTable", False),
        ("operations.draw", "from ..commands import cli", False),
        ("operations.draw", "from ..backends import spec", False),
        ("samplers.one_step", "from ..operations.update import update", False),
        ("samplers.one_step", "from ..language.noise import Noise", False),
        ("samplers", "from ..operations.update import update", True),
        ("commands.cli", "from ..operations.draw import randn", False),
        ("interop.torch", "from ...arguments.arrays import Array", True),
        ("interop.torch.loss", "from ...backends import native", False),
        ("interop.k_diffusion", "from ...sampling.sampler import Sampler", True),
        ("", "from .interop import torch", True),
    ],
)
def test_an_import_that_points_up_is_seen(module, text, package):
    assert list(wrong_imports(module, text, package))


def test_what_is_asked_of_torchs_internals_stands_in_one_file():
    """Seen to fail: a private name of torch in another file."""
    internals = r"\btorch\._\w|\w\._version\b|forward_ad|is_dynamo_compiling|custom_op\b|assume_constant_result"
    found = {name for name, path in MODULES.items() if re.search(internals, path.read_text())}
    assert found == {"interop.torch.internals"}


def test_tests_take_private_names_of_libraries_by_one_way():
    """`private` says which version lacks one. Seen to fail: a test with an error of torch's compiler."""
    names = re.compile(r"^(?!.*\bprivate\().*\b(?:torch|jax)(?:\.\w+)*\._[a-z].*$", re.MULTILINE)
    others = {"private_names.py", "test_layout.py", "test_types.py"}
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name not in others]
    found = {path.name: len(names.findall(path.read_text())) for path in files}
    assert {name: n for name, n in found.items() if n} == {"test_torch.py": 1}  # for older versions of torch alone


def test_no_lock_of_python_is_on_the_way_of_a_call():
    """A child that is forked while another thread holds one waits for ever. Seen to fail: functools.cached_property,
    which holds a lock on Python 3.11, in seven modules; a lock in `schedule`."""
    locks = r"\bcached_property\b|\bthreading\b|\b_thread\b|\bR?Lock\b|\bconcurrent\b"
    found = {name for name, path in MODULES.items() if re.search(locks, path.read_text())}
    # kept.py goes without that lock; a child has new queues in threads.py
    assert {name for name in found if not name.startswith("commands")} == {"ground.kept", "backends.threads"}


OUTSIDE = [path for folder in ("benchmarks", "examples") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_programs_import_of_the_package_is_there(path):
    """Nothing else imports the benchmarks. Seen to fail: `processors` of a module that no longer had it."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "noisefuse":
            module = node.module.removeprefix("noisefuse").removeprefix(".")
            names = {alias.name for alias in node.names if f"{module}.{alias.name}".strip(".") not in MODULES}
            assert not [name for name in names if not re.search(rf"\b{name}\b", MODULES[module].read_text())]


# ---- circles -----------------------------------------------------------------------------------------------


def graph_of(sources):
    """Returns {module: the modules that it imports, at any place} for {module: (text, whether a package)}.

    What type checkers alone read counts, too; TYPES_ALONE is left out.
    """
    graph = {module: set() for module in sources}
    for module, (text, package) in sources.items():
        for name, _ in imports(ast.parse(text), module, package):
            root, _, inside = name.partition(".")
            if root != "noisefuse" or inside in TYPES_ALONE.get(module, ()):
                continue
            graph[module].add(inside)
            # The packages around a module run before it, and are loaded already if they are the importer's too.
            while (inside := inside.rpartition(".")[0]) and not f"{module}.".startswith(f"{inside}."):
                graph[module].add(inside)
    return graph


def hidden(package, text):
    """Returns the modules of a package whose names its `__init__` gives to something else."""
    own = {module.rpartition(".")[2] for module in MODULES if module.rpartition(".")[0] == package} - {""}
    bound = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            inside = isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is None
            bound |= {alias.asname or alias.name: inside for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound[node.name] = False
    return {name for name in own if bound.get(name) is False}


PACKAGES = [module for module, path in MODULES.items() if path.name == "__init__.py"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda module: module or "noisefuse")
def test_a_package_hides_none_of_its_modules(package):
    """Python binds a module to its name in the package, over or under the package's own name. Seen to fail: arguments'
    `calls` in a package with a `calls` of its own, where one became the other."""
    assert hidden(package, MODULES[package].read_text()) == set()


@pytest.mark.parametrize(
    "text", ["from ...arguments import calls", "from ..call.packed import devices", "def levels():\n    pass"]
)
def test_a_hidden_module_is_seen(text):
    assert hidden("interop.jax", text)
    assert not hidden("interop.jax", "from . import calls\nfrom .devices import outputs")


def circle(graph):
    """Returns the modules of one circle, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


GRAPH = graph_of({module: (path.read_text(), path.name == "__init__.py") for module, path in MODULES.items()})


def test_no_modules_import_each_other():
    """Seen to fail: a step's checks that named the class of steps, which called them, for type checkers alone."""
    assert circle(GRAPH) == []


@pytest.mark.parametrize(
    "texts",
    [
        {"noise": "from .views import View", "views": "def f():\n    from . import noise"},
        {
            "noise": "import noisefuse.weights",
            "weights": "if f():\n    from . import views",
            "views": "from . import noise",
        },
        {"sampler": "from .samplers.plan import plan", "samplers": "from ..sampler import Sampler"},
        {"": "from .noise import Noise", "noise": "from . import __version__"},
        {"noise": "from .views import View", "views": "if TYPE_CHECKING:\n    from .noise import Noise"},
    ],
)
def test_a_circle_is_seen(texts):
    sources = {module: (text, module in {"", "samplers"}) for module, text in texts.items()}
    assert {*circle(graph_of(sources))} == {*texts}


def test_the_rooms_are_few():
    """A room is a folder, or a module beside the folders. Pages of public names and the entry point are none: their
    code has a room."""
    rooms = {path.name for top in (PACKAGE, CSRC) for path in top.iterdir() if path.is_dir() and path.name[0] != "_"}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", *PAGES.split()}
    assert len(rooms) + len(modules) <= 27


@pytest.mark.parametrize("page", PAGES.split())
def test_a_page_only_shows_names(page):
    text = MODULES[page].read_text()
    assert len(text.splitlines()) <= 12
    assert {type(node).__name__ for node in ast.parse(text).body} == {"Expr", "ImportFrom", "Assign"}


# ---- functions ---------------------------------------------------------------------------------------------

LONGEST = 50  # lines of a body


def lengths(tree, name):
    """Yields (name, lines of the body without its docstring) for all functions, nested ones too."""
    for node in ast.iter_child_nodes(tree):
        inner = name
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{name}.{node.name}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for first in node.body[ast.get_docstring(node) is not None :][:1]:
                starts = [part.lineno for part in (first, *getattr(first, "decorator_list", []))]
                yield inner, node.end_lineno - min(starts) + 1
        yield from lengths(node, inner)


def test_functions_fit_a_screen():
    found = [item for module, path in MODULES.items() for item in lengths(ast.parse(path.read_text()), module)]
    assert {name: lines for name, lines in found if lines > LONGEST} == {}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("def f(\n    x,\n):\n    '''Text.\n\n    More.'''\n    a = 1\n\n    # why\n    return a", 4),
        ("class C:\n    @staticmethod\n    def f(): return 1", 1),
        ("def f():\n    @cache\n    def g():\n        'Text.'\n    return g", 4),
    ],
)
def test_lines_of_a_body(text, lines):
    assert [found for name, found in lengths(ast.parse(text), "m") if name.endswith(".f")] == [lines]


UNIT = 450  # lines of a class
FILE = 700
# A file of many small classes.
LONG_FILES = "interop.diffusers"


def sizes(text):
    """Yields (name, lines) for the classes of a text, nested ones too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            yield node.name, node.end_lineno - node.lineno + 1


def exploded(text):
    """Returns the functions of a text whose parameters stand on more lines than they need."""
    lines, names = text.splitlines(), []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef) or not lines[node.lineno - 1].endswith("("):
            continue
        end = next(n for n in range(node.lineno, len(lines)) if re.match(rf" {{{node.col_offset}}}\)", lines[n]))
        inner = lines[node.lineno : end]
        if not any("#" in line for line in inner):  # a comment belongs to its parameter
            pairs = itertools.pairwise(inner)
            names += [node.name] * any(len(one) + 1 + len(other.strip()) <= 120 for one, other in pairs)
    return names


def test_signatures_have_one_style():
    """Parameters are folded at the length of a line, and so are those of public functions. Seen to fail: a parameter a
    line in `augment.gaussian`."""
    assert {name: found for name, path in MODULES.items() if (found := exploded(path.read_text()))} == {}
    assert exploded("def f(\n    a: int,\n    b: int,\n) -> None: ...") == ["f"]


def test_classes_and_files_can_be_read_at_once():
    """Seen to fail: a sampler of 857 lines, a schedule of 945, and a file of 987."""
    texts = {module: path.read_text() for module, path in MODULES.items()}
    classes = [(f"{module}.{name}", lines) for module, text in texts.items() for name, lines in sizes(text)]
    assert {name: lines for name, lines in classes if lines > UNIT} == {}
    files = {module: text.count("\n") for module, text in texts.items()}
    assert {module for module, lines in files.items() if lines > FILE} == {*LONG_FILES.split()}


def test_lines_of_a_class():
    assert [*sizes("class A:\n    'Text.'\n\n    class B:\n        x = 1\n")] == [("A", 5), ("B", 2)]


def test_the_package_imports_numpy_and_the_standard_library_alone():
    """Slow modules stay out, and what not every program needs is loaded when it is asked for: the import takes half the
    time. Seen to fail: hashlib for `augment.sample_id`; pathlib for a container's quota; samplers loaded at once."""
    code = """
import json, sys, numpy
before = set(sys.modules)
import noisefuse
noisefuse.randn((2, 2), noisefuse.Noise(1))
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout)
    ours = [name.split(".")[1] for name in modules if name.startswith("noisefuse.")]
    assert not {*ours} & {"augment", "density", "discrete", "fields", "samplers", "sampling", "tokens", "weights"}
    assert len(ours) < 60
    imported = {name.partition(".")[0] for name in modules}
    assert imported - {*sys.stdlib_module_names} <= {"noisefuse", "numpy"}
    assert not imported & {"decimal", "fractions", "hashlib", "ipaddress", "pathlib"}


def test_the_package_works_without_its_docstrings():
    """Seen to fail: Python makes a docstring for a dataclass without one, and shows the values of its defaults."""
    code = "import noisefuse; print(noisefuse.samplers.ddim(noisefuse.Schedule.linear(), 2))"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("Sampler(ddim, 2 rows)"), done.stderr


# ---- C++ ---------------------------------------------------------------------------------------------------

# CMakeLists.txt, #include lines and std:: names are read as text here, because a compiler no longer shows the text that
# it has taken in.
SOURCES = [path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]


def includes(path):
    return re.findall(r'^\s*#\s*include\s+(<.*?>|".*?")', path.read_text(), re.MULTILINE)


LAYERS = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "run": {"core", "cpu", "run"},
    "xla": {"core", "cpu", "run", "xla"},
    "python": {"core", "cpu", "run", "xla", "python"},
    "csrc": {"core", "cpu"},
}


def wrong_includes(path, names):
    folder = path.parent
    for name in names:
        if name.startswith('"'):
            target = (folder / name.strip('"')).resolve()
            wrong = not target.exists() or target.parent.name not in LAYERS[folder.name]
        elif folder.name in {"core", "cuda"}:
            wrong = name != "<cstdint>"
        else:
            at_boundary = folder.name == "python" or (folder.name, path.stem) == ("run", "memory")
            wrong = name.startswith(("<Python.h>", "<numpy/")) and not at_boundary
        if wrong:
            yield name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_includes_point_down(path):
    """core includes itself; cpu and cuda include core; run includes core and cpu, and xla run; python, the boundary,
    all but cuda. It alone includes Python, and in run the memory of outputs, which NumPy is handed. csrc itself has the
    header for programs of users' own, which includes core and cpu.

    NVRTC has no standard header: <cstdint> in csrc/cuda/rtc is all that core and cuda get.
    """
    assert list(wrong_includes(path, includes(path))) == []


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("core", '"../cpu/tile.h"'),
        ("core", '"call.hpp"'),
        ("core", "<cstring>"),
        ("cpu", '"../run/run.h"'),
        ("cpu", '"../cuda/storage.h"'),
        ("cpu", "<Python.h>"),
        ("cuda", '"../cpu/tile.h"'),
        ("cuda", "<cmath>"),
        ("run", '"../python/python.h"'),
        ("run", '"../xla/xla.h"'),
        ("run", "<Python.h>"),
        ("xla", '"../python/python.h"'),
        ("xla", "<Python.h>"),
        ("python", '"../cuda/storage.h"'),
        (".", '"run/run.h"'),
        (".", "<Python.h>"),
    ],
)
def test_an_include_that_points_up_is_seen(folder, name):
    assert list(wrong_includes(CSRC / folder / "new.h", [name])) == [name]


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent.name == "core"], ids=lambda path: path.name)
def test_the_mathematics_is_plain(path):
    """There is no library function, and every compiler and processor gets the same text."""
    text = re.sub(r"//.*", "", path.read_text())
    assert "std::" not in text
    assert not re.findall(r"^\s*#\s*if", text, re.MULTILINE)


def test_no_compiler_may_fuse_or_reorder():
    text = (ROOT / "CMakeLists.txt").read_text()
    assert re.search(r"add_compile_options\([^)]*-ffp-contract=off", text)
    for flag in ("-ffast-math", "-Ofast", "-funsafe-math", "-fassociative-math", "-ffp-contract=fast", "-fmad=true"):
        assert flag not in text


# REUSE-IgnoreStart: the searched text is not a statement about this file
def test_every_file_names_its_licence():
    files = [path for where in ("src", "csrc", "tests", "benchmarks") for path in (ROOT / where).rglob("*")]
    first_lines = {
        f: f.read_text().partition("\n")[0] for f in files if f.suffix in {".py", ".pyi", ".h", ".cpp", ".cu"}
    }
    assert len(first_lines) > 40
    assert [f.name for f, line in first_lines.items() if "SPDX-License-Identifier: Apache-2.0" not in line] == []


# REUSE-IgnoreEnd


def test_no_file_is_a_link():
    """Windows writes a link's target in its place, and some tools refuse links in an archive. Seen to fail: a link from
    src to examples."""
    folders = ("src", "csrc", "tests", "docs", "examples", "benchmarks", "integrations", "tools")
    assert [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_symlink()] == []


def test_pictures_in_the_source_distribution_are_small():
    """Seen to fail: lines in 16 million colours, with which the archive passed its limit (tools/test_built.sh)."""
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]["sdist"]["include"]
    assert sum((ROOT / path).stat().st_size for path in included) < 200_000


TESTS = [path for path in (ROOT / "tests").rglob("*.py") if path.name.startswith(("test_", "conftest"))]


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them by name. Seen to fail: two test_torch.py, the first of which was taken for both."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_tests_need_the_lean_extra_alone():
    """A file skips itself before it imports a library that `test` has and `test-core` has not.

    Seen to fail: three files that imported torch, and could not be collected without it.
    """
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    libraries = {re.match(r"\w+", line)[0] for line in {*extras["test"]} - {*extras["test-core"]}} - {"noisefuse"}
    assert {"torch", "jax", "numba", "diffusers"} < libraries
    bare = []
    for path in TESTS:
        text = path.read_text()
        if re.search(r"^(\w+ = )?pytest\.importorskip\(", text, re.MULTILINE):
            continue
        for node in ast.parse(text).body:
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module] if isinstance(node, ast.ImportFrom) else []
            bare += [(path.name, name) for name in named if name.partition(".")[0] in libraries]
    assert bare == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_the_first_line_of_a_test_file_says_what_it_holds(path):
    first, _, rest = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")
    assert first.endswith((".", ".)"))
    assert not rest or rest.startswith("\n")
