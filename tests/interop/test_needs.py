# SPDX-License-Identifier: Apache-2.0
"""The errors of modules whose library is missing.

Seen to fail: bare imports, without `needs`.
"""

import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import noisefuse as nf
from noisefuse.ground.needs import needs

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
NEEDED = {  # the first one's extra installs all of them
    "albumentations": ["albumentations"],
    "audiomentations": ["audiomentations"],
    "dask": ["dask"],
    "diffusers": ["diffusers", "torch"],
    "diffusers_tokens": ["diffusers", "torch"],
    "grain": ["grain"],
    "jax": ["jax"],
    "k_diffusion": ["torch"],
    "kornia": ["kornia", "torch"],
    "monai": ["monai", "torch"],
    "skimage": ["skimage"],
    "torch": ["torch"],
    "torch_data": ["torch"],
    "torchvision": ["torchvision", "torch", "PIL"],
}

BROUGHT = {"PIL": "torchvision", "skimage": "scikit-image"}  # what installs it


class Lacking:
    """A finder of modules, the first one in turn."""

    def __init__(self, library):
        self.library = library

    def find_spec(self, name, *_):
        if name == self.library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def without(monkeypatch):
    """Forgets a module of `interop`, and that a library is installed."""

    def forget(module, library):
        monkeypatch.delitem(sys.modules, f"noisefuse.interop.{module}", raising=False)
        monkeypatch.delitem(vars(nf.interop), module, raising=False)
        monkeypatch.delitem(sys.modules, library, raising=False)
        monkeypatch.setattr(sys, "meta_path", [Lacking(library), *sys.meta_path])

    return forget


@pytest.mark.parametrize(
    ("module", "library"), [(module, library) for module, found in NEEDED.items() for library in found]
)
def test_a_missing_library_is_named_with_its_extra(without, module, library):
    for other in {*NEEDED[module]} - {library}:  # else that one is named
        pytest.importorskip(other)
    without(module, library)
    extra = NEEDED[module][0]
    message = f"noisefuse.interop.{module} needs {library}: pip install 'noisefuse[{extra}]'"
    with pytest.raises(ModuleNotFoundError, match=f"^{re.escape(message)}$") as raised:
        import_module(f"noisefuse.interop.{module}")
    assert raised.value.name == library
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)
    installed = [*EXTRAS[extra], *(EXTRAS["torch"] if "noisefuse[torch]" in EXTRAS[extra] else [])]
    assert any(re.match(rf"{BROUGHT.get(library, library)}\b", line) for line in installed)


def test_every_module_of_the_reference_is_held_to_it():
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("interop*.md"))
    described = {*re.findall(r"noisefuse\.interop\.([a-z]\w+)\.", pages)}
    by_others = {"columns", "llada"}  # they take NumPy's arrays
    assert described - by_others <= {*NEEDED}
    assert len(described) > len(by_others)
    assert described | {"torch"} == {*nf.interop._MODULES} <= {*dir(nf.interop)}


@pytest.mark.parametrize("module", nf.interop._MODULES)
def test_a_module_loads_when_it_is_asked_for(module, monkeypatch):
    loaded = pytest.importorskip(f"noisefuse.interop.{module}", exc_type=ImportError)
    monkeypatch.delitem(vars(nf.interop), module)
    assert getattr(nf.interop, module) is loaded


def test_chunks_without_dask(without):
    without("dask", "dask")
    with pytest.raises(ModuleNotFoundError, match=r"needs dask: pip install 'noisefuse\[dask\]'"):
        nf.randn((4,), nf.Noise(1), chunks=2)


def test_what_a_library_itself_lacks_is_raised_as_it_is():
    missing = ModuleNotFoundError("No module named 'cv2'", name="cv2")
    with pytest.raises(ModuleNotFoundError) as raised, needs("noisefuse.interop.albumentations", "albumentations"):
        raise missing
    assert raised.value is missing
