# SPDX-License-Identifier: Apache-2.0
"""A release changes every text about the future, and no tag of another version is uploaded.

Seen to fail: a page that says "once it is released" and that the script does not know, another date in CITATION.cff.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import tomllib
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "tools" / "release.py"))
CHANGED = ["CHANGELOG.md", "CITATION.cff", "README.md", "pyproject.toml", "recipe/recipe.yaml"]
CHANGED += ["src/noisefuse/ground/version.py", "tests/known/README.md"]
CHANGED += [f"integrations/comfyui/{name}" for name in ("README.md", "pyproject.toml", "requirements.txt")]
VERSION = SCRIPT["version_of"](ROOT)  # not of what is installed: this may be a copy that was released
RELEASED = ".dev" not in VERSION
FIRST = tomllib.loads(SCRIPT["FIRST"].read_text())["text"] if SCRIPT["FIRST"].exists() else []
NOTES = "build/release_notes.md"


@pytest.fixture
def copy(tmp_path):
    for name in [*CHANGED, *(page.relative_to(ROOT) for page in (ROOT / "docs").rglob("*.md"))]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.skipif(RELEASED, reason="this version is released")
def test_a_release_changes_every_text(copy):
    SCRIPT["release"](copy, "99.0.0", "2030-12-31")
    assert SCRIPT["wrong"](copy, "v99.0.0") == []
    project = tomllib.loads((copy / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]
    links = [each["replacement"] for each in project["fancy-pypi-readme"]["substitutions"]]
    assert all("/noisefuse/noisefuse/" in link for link in links)
    assert all(link.endswith("/v99.0.0/") for link in links)
    assert "\n  version: 99.0.0\n" in (copy / "recipe" / "recipe.yaml").read_text()
    assert (copy / "integrations/comfyui/requirements.txt").read_text() == "noisefuse>=99.0.0.dev0,<99.1\n"
    commands = "    pip install 'noisefuse[demo]' && noisefuse demo\n    pip install '.[test-core]' && pytest -n auto\n"
    assert commands in (copy / "README.md").read_text()


@pytest.mark.skipif(RELEASED, reason="this version is released")
def test_the_next_version_is_begun_after_it(copy):
    before = {name: (copy / name).read_text() for name in ("pyproject.toml", "CITATION.cff")}
    SCRIPT["release"](copy, "99.0.0", "2030-12-31")
    SCRIPT["begin_next"](copy, "99.0.1.dev0")
    assert "## [Unreleased]\n\n## [99.0.0] - 2030-12-31\n" in (copy / "CHANGELOG.md").read_text()
    assert (copy / "pyproject.toml").read_text() == before["pyproject.toml"]
    assert (copy / "CITATION.cff").read_text() == before["CITATION.cff"].replace(VERSION, "99.0.1.dev0")
    assert SCRIPT["unreleased"](copy) == []


@pytest.mark.skipif(RELEASED, reason="this version is released")
def test_notes_are_what_the_changelog_has_of_the_version(copy):
    """The first release, which changes nothing, has a text of its own. Seen to fail: 41 KB of "Added"."""
    SCRIPT["release"](copy, "99.0.0", "2030-12-31")
    assert (copy / NOTES).read_text().startswith("The first release: ")
    SCRIPT["begin_next"](copy, "99.1.0.dev0")
    changelog = copy / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("## [Unreleased]\n", "## [Unreleased]\n\n### Fixed\n\n- a\n"))
    SCRIPT["release"](copy, "99.1.0", "2031-12-31")
    assert (copy / NOTES).read_text() == "### Fixed\n\n- a\n"


@pytest.mark.skipif(RELEASED, reason="this version is released")
def test_a_rehearsal_has_a_version_of_its_own(copy):
    """Seen to fail: one version for all rehearsals, whose files the index has already."""
    SCRIPT["rehearse"](copy, 17)
    version = SCRIPT["version_of"](copy)
    assert version == VERSION.replace(".dev0", ".dev17")
    assert f"\nversion: {version}\n" in (copy / "CITATION.cff").read_text()


@pytest.mark.skipif(RELEASED, reason="this version is released")
def test_a_version_before_the_release_may_be_uploaded(copy):
    """It reserves the name on the index, so its pages may speak of a release to come. Seen to fail: it was refused."""
    assert SCRIPT["wrong"](copy, f"v{VERSION}") == []
    assert SCRIPT["wrong"](copy, "v0.0.9") == [f"expected the tag v{VERSION}, got v0.0.9"]


@pytest.mark.parametrize("change", FIRST, ids=lambda change: change["file"])
def test_what_the_first_release_changes_is_there_once(change):
    """The pages may be gone, too: then the first release is over."""
    counts = {(ROOT / each["file"]).read_text().count(each["before"]) for each in FIRST}
    assert counts == {0} or (ROOT / change["file"]).read_text().count(change["before"]) == 1


def test_a_released_version_speaks_of_no_release_to_come():
    assert not RELEASED or SCRIPT["unreleased"](ROOT) == []


@pytest.mark.parametrize(
    ("file", "pattern", "planted", "expected"),
    [
        ("src/noisefuse/ground/version.py", r"99\.0\.0", "99.0.1", "expected the tag v99.0.1, got v99.0.0"),
        ("CHANGELOG.md", r"\[99\.0\.0\]", "[Unreleased]", "expected a heading ## [99.0.0] - DATE"),
        ("CITATION.cff", "2030-12-31", "2030-12-30", "CITATION.cff: expected this version, and the changelog's date"),
        ("docs/loss.md", r"\Z", "Once it is released, look.\n", "docs/loss.md: Once it is released, look."),
        ("docs/loss.md", r"\Z", "    pip install '.[torch]'\n", "docs/loss.md:     pip install '.[torch]'"),
    ],
)
@pytest.mark.skipif(RELEASED, reason="this version is released")
def test_a_tag_of_something_else_is_refused(copy, file, pattern, planted, expected):
    SCRIPT["release"](copy, "99.0.0", "2030-12-31")
    text = (copy / file).read_text()
    (copy / file).write_text(re.sub(pattern, planted, text, count=1))
    assert any(expected in line for line in SCRIPT["wrong"](copy, "v99.0.0"))


def test_citation_has_this_version_and_the_day_of_its_heading():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == VERSION
    days = re.findall(rf"^## \[{re.escape(VERSION)}\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.findall(r"^date-released: (.*)$", text, re.MULTILINE) == days
    assert bool(days) == RELEASED


@pytest.mark.parametrize("placeholder", ["The noisefuse developers", "noisefuse@users.noreply.github.com"])
def test_one_page_lists_where_placeholders_stand(placeholder):
    """Seen to fail: one more author in a file."""
    page = (ROOT / "docs" / "releasing.md").read_text()
    assert f"`{placeholder}`" in page
    listed = {*re.findall(r"\]\(\.\./([\w.]+)\)", page.split("**Placeholders.**")[1].split("\n* ")[0]), "README.md"}
    kinds = {".cff", ".md", ".py", ".toml", ".yaml", ".yml", ""}
    texts = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in kinds]
    texts += [path for folder in ("src", "docs", "recipe", "examples") for path in (ROOT / folder).rglob("*.*")]
    found = {path.name for path in texts if path.suffix in kinds and placeholder in path.read_text()}
    assert found - {"LICENSE", "releasing.md"} <= listed


def workflow(name):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())


def test_the_workflow_asks_before_it_uploads():
    jobs = workflow("wheels.yml")["jobs"]
    assert "tools/release.py --check" in jobs["tag"]["steps"][-1]["run"]
    assert "tag" in jobs["upload"]["needs"]


WORKFLOWS = sorted(path.name for path in (ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_runs_of_pull_requests_alone_are_cancelled(name):
    """Seen to fail: a push to main ended the run of the commit before it, and a publication half-way."""
    found = workflow(name)
    groups = [where["concurrency"] for where in (found, *found["jobs"].values()) if "concurrency" in where]
    for group in groups:
        alone = group["group"].endswith("-${{ github.event_name == 'pull_request' && github.ref || github.run_id }}")
        assert alone or group["cancel-in-progress"] is False


def test_one_job_stands_for_all_of_them():
    """Seen to fail: without one job's name."""
    jobs = workflow("tests.yml")["jobs"]
    assert {*jobs["all"]["needs"]} == {*jobs} - {"all"}
    assert jobs["all"]["if"] == "always()"


@pytest.mark.parametrize(
    ("results", "status"), [("success success", 0), ("success failure", 1), ("skipped success", 1)]
)
def test_it_passes_if_all_of_them_pass(results, status):
    if shutil.which("jq") is None:
        pytest.skip("needs jq")
    needs = json.dumps({f"job{k}": {"result": result} for k, result in enumerate(results.split())})
    command = workflow("tests.yml")["jobs"]["all"]["steps"][0]["run"]
    done = subprocess.run(["bash", "-ec", command], env=os.environ | {"NEEDS": needs}, capture_output=True)
    assert done.returncode == status


ADVISORIES = runpy.run_path(str(ROOT / "tools" / "audit.py"))
ENTRY = '[[advisory]]\nid = "A-1"\nreason = "not called"\nuntil = 2030-01-31\n'


def test_accepted_advisories_have_a_reason_and_a_day():
    ADVISORIES["accepted"](ADVISORIES["FILE"].read_text(), date(2000, 1, 1))
    assert ADVISORIES["accepted"](ENTRY, date(2030, 1, 30)) == ["A-1"]
    with pytest.raises(SystemExit, match="A-1: accepted until 2030-01-31"):
        ADVISORIES["accepted"](ENTRY, date(2030, 1, 31))
    with pytest.raises(SystemExit, match="expected an id, a reason and a day"):
        ADVISORIES["accepted"](ENTRY.replace("reason", "why"), date(2030, 1, 1))
