# SPDX-License-Identifier: Apache-2.0
"""Types: a user's type checker accepts a user's script, and every public name has a type."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import noisefuse as nf

SCRIPT = Path(__file__).with_name("typed_script.py")
WRONG = {n for n, line in enumerate(SCRIPT.read_text().splitlines(), 1) if line.endswith("# error")}
# It has only the script's part of torch and JAX: reading them all takes half a minute.
SETTINGS = """
[mypy]
[mypy-torch.*,numba.*,matplotlib.*,jax.*,jaxlib.*]
follow_imports = skip
[mypy-torch,jax,jax.numpy]
follow_imports = normal
[mypy-torch._C.*,torch._tensor.*,torch.types.*]
follow_imports = normal
[mypy-torch.nn,torch.nn.modules,torch.nn.modules.linear,torch.nn.modules.module]
follow_imports = normal
[mypy-jax._src.basearray,jax._src.typing]
follow_imports = normal
"""


def tool(name):
    if not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed")
    return [sys.executable, "-m", name]


def pyright(*arguments):
    """Returns the checker's report."""
    # With --verifytypes it looks for libraries in the first Python of the path, whatever --pythonpath is.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    here = os.environ | {"PATH": path, "PYTHONPATH": str(Path(nf.__file__).parents[1])}
    command = [*tool("pyright"), "--outputjson", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=here)
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not run: {done.stderr[-200:]}")
    return json.loads(done.stdout)


def check_libraries():
    for name in ("torch", "jax"):
        if not importlib.util.find_spec(name):
            pytest.skip(f"{name} is not installed")


@pytest.mark.slow
def test_mypy_on_a_users_script(tmp_path):
    """assert_type states the inferred types; lines that end with `# error` are wrong, and must be reported."""
    check_libraries()
    settings = tmp_path / "mypy.ini"
    settings.write_text(SETTINGS)
    options = ["--strict", "--config-file", str(settings), "--cache-dir", str(tmp_path)]
    command = [*tool("mypy"), *options, str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    found = {int(line) for line in re.findall(r"typed_script\.py:(\d+): error", done.stdout)}
    assert found == WRONG, done.stdout
    assert WRONG


@pytest.mark.slow
def test_pyright_on_a_users_script():
    check_libraries()
    found = {mark["range"]["start"]["line"] + 1 for mark in pyright(str(SCRIPT))["generalDiagnostics"]}
    assert found == WRONG


# Libraries with types, without which names that need them have none; and modules with classes derived from those of a
# library without types, or from classes that some versions of a library lack: pyright knows none of them.
TYPED = ("dask", "diffusers", "jax", "kornia", "monai", "numba", "torch")
UNTYPED = tuple(
    f"noisefuse.interop.{name}."
    for name in ("albumentations", "audiomentations", "diffusers_tokens", "grain", "torchvision")
)


def has_unknown_base(symbol):
    """Whether the missing types are all that is wrong with it."""
    errors = [found["message"] for found in symbol["diagnostics"] if found["severity"] == "error"]
    of_base = ("Type of base class", "Type of metaclass unknown")
    return symbol["name"].startswith(UNTYPED) and all(message.startswith(of_base) for message in errors)


@pytest.mark.slow
def test_every_public_name_has_a_type():
    """The whole package is typed: no type is left to be inferred, and none is unknown except classes whose base has no
    types."""
    for library in TYPED:
        if not importlib.util.find_spec(library):
            pytest.skip(f"{library} is not installed")
    found = pyright("--verifytypes", "noisefuse", "--ignoreexternal")["typeCompleteness"]
    public = [symbol for symbol in found["symbols"] if symbol["isExported"]]
    assert len(public) > 2000
    assert not [each["name"] for each in public if not each["isTypeKnown"] and not has_unknown_base(each)]
    assert found["completenessScore"] >= 0.99


@pytest.mark.slow
def test_what_stands_on_other_libraries_is_loaded_when_it_is_asked_for():
    """Seen to fail: a function that Dynamo is told of, which loads it and sympy: 900 modules, a second."""
    code = """
import sys, noisefuse as nf
assert {"numba", "interop"} <= {*dir(nf)}
assert not {"numba", "torch", "noisefuse.numba"} & {*sys.modules}
print(nf.interop.torch.__name__, "torch" in sys.modules)
import torch
pred, x0 = torch.ones(2, 3).requires_grad_(), torch.ones(2, 3)
nf.mse_loss(pred, x0, 1, nf.Schedule.linear(9), nf.Noise(1), target="v").backward()
nf.samplers.mdlm(3, mask_id=9).step(0, torch.full((1, 2), 9), torch.ones(1, 2, 10), nf.Noise(1))
print({"sympy", "torch._dynamo"} & {*sys.modules})
try:
    nf.nothing
except AttributeError as error:
    print(error)
"""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "noisefuse.interop.torch True",
        "set()",
        "module 'noisefuse' has no attribute 'nothing'",
    ]
