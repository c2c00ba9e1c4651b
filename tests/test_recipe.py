# SPDX-License-Identifier: Apache-2.0
"""The recipe, ComfyUI's folder and the bill of materials agree with pyproject.toml.

Seen to fail: another bound in the recipe or in the group of a build, one run dependency more, a misspelt key, a package
in the environment that nothing needs.
"""

import copy
import re
import runpy
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
FILE = ROOT / "recipe" / "recipe.yaml"
RECIPE = yaml.safe_load(FILE.read_text())
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = TOML["project"]
RELEASE = runpy.run_path(str(ROOT / "tools" / "release.py"))
OURS = {"pytorch": "torch"}  # packages with another name at conda-forge


def bounds(lines):
    """Returns {name: bound} from lines in pip's or conda's form."""
    plain = (line.replace(" ", "") for line in lines if isinstance(line, str))
    found = (re.match(r"([\w-]+)(?:\[[\w,]+\])?([^;]*)", line).groups() for line in plain if "${{" not in line)
    return {OURS.get(name, name): bound for name, bound in found}


def test_what_it_needs_is_what_pyproject_declares():
    needs = {kind: bounds(lines) for kind, lines in RECIPE["requirements"].items()}
    fetched = {name: TOML["tool"]["scikit-build"][name]["version"] for name in ("cmake", "ninja")}
    build = bounds(TOML["build-system"]["requires"]) | fetched
    assert needs["host"] | needs["build"] == build | {"python": "", "pip": ""}
    assert bounds(TOML["dependency-groups"]["build"]) == build
    assert needs["run"] == {"python": ""} | bounds(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    declared = bounds(line for name in ("bfloat16", "numba", "torch", "diffusers", "jax") for line in extras[name])
    assert needs["run_constraints"] == {name: bound for name, bound in declared.items() if name != "noisefuse"}


def test_what_it_says_is_what_pyproject_says():
    about, urls = RECIPE["about"], PROJECT["urls"]
    assert (about["summary"], about["license"]) == (PROJECT["description"], PROJECT["license"])
    assert about["license_file"] == PROJECT["license-files"]
    assert (about["repository"], about["documentation"]) == (urls["Repository"], urls["Documentation"])
    assert RECIPE["context"]["version"] == RELEASE["version_of"](ROOT).partition(".dev")[0]
    assert f'match(python, "<{PROJECT["requires-python"].removeprefix(">=")}")' in RECIPE["build"]["skip"]


@pytest.mark.parametrize("platform", ["linux-64", "linux-aarch64", "osx-64", "osx-arm64"])
def test_it_renders(platform):
    rattler = pytest.importorskip("rattler_build")
    variants = {"python": ["3.11.* *_cpython", "3.14.* *_cp314"], "cxx_compiler": ["gxx"], "c_stdlib": ["sysroot"]}
    there = rattler.PlatformConfig(target_platform=platform, build_platform="linux-64", host_platform=platform)
    found = rattler.Stage0Recipe.from_file(FILE).render(
        rattler.VariantConfig(variants), rattler.RenderConfig(platform=there)
    )
    assert len(found) == 2
    for variant in found:
        needs = variant.recipe.to_dict()["requirements"]
        assert f"gxx_{platform}" in needs["build"]
        assert (f"cross-python_{platform}" in needs["build"]) == (platform != "linux-64")


def test_a_key_that_is_misspelt_is_seen():
    rattler = pytest.importorskip("rattler_build")
    planted = copy.deepcopy(RECIPE)
    planted["requirements"]["runs"] = planted["requirements"].pop("run")
    with pytest.raises(rattler.RattlerBuildError, match="runs"):
        rattler.Stage0Recipe.from_dict(planted)


COMFYUI = ROOT / "integrations" / "comfyui"


def test_the_folder_for_comfyui_has_what_its_registry_asks_for():
    """Seen to fail: no pyproject.toml, a requirement without bounds, links that end outside of the folder."""
    found = tomllib.loads((COMFYUI / "pyproject.toml").read_text())
    project = found["project"]
    number = RELEASE["version_of"](ROOT).partition(".dev")[0]
    assert project["version"] == number
    assert project["license"] == {"text": PROJECT["license"]}
    assert project["requires-python"] == PROJECT["requires-python"]
    assert project["urls"]["Repository"] == PROJECT["urls"]["Repository"]
    assert {"PublisherId", "DisplayName"} <= found["tool"]["comfy"].keys()
    (asked,) = project["dependencies"]
    assert (COMFYUI / "requirements.txt").read_text() == f"{asked}\n"
    low, high = re.fullmatch(r"noisefuse>=([\d.]+)\.dev0,<([\d.]+)", asked).groups()
    numbers = [tuple(map(int, version.split("."))) for version in (low, number, high)]
    assert numbers == sorted(numbers)
    links = re.findall(r"\]\(([^)]+)\)", (COMFYUI / "README.md").read_text())
    assert len(links) > 3
    assert all(link.startswith("https://") for link in links)


SBOM = runpy.run_path(str(ROOT / "tools" / "sbom.py"))


def bill(*parts):
    root = {"name": "noisefuse", "type": "library"}
    return {"metadata": {"component": root}, "components": [{"name": name} for name in parts]}


def test_the_bill_of_materials_has_a_version():
    found = SBOM["with_version"](bill("numpy"), "1.2.3")["metadata"]["component"]
    assert (found["version"], found["purl"]) == ("1.2.3", "pkg:pypi/noisefuse@1.2.3")


@pytest.mark.parametrize("parts", [(), ("numpy", "torch")])
def test_a_part_that_is_not_declared_is_told(parts):
    with pytest.raises(SystemExit, match="expected the parts"):
        SBOM["with_version"](bill(*parts), "1.2.3")
