# SPDX-License-Identifier: Apache-2.0
"""Tools' reports on the whole repository: licences, metadata, and the usual parts of Python packages.

Seen to fail: a file without a licence, an unknown key of pyproject.toml, a declined check that passes.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# sp-repo-review's checks that are not followed, and why.
HOOKS = "pre-commit's hooks are local: they run what the group dev installs, and nothing is fetched from elsewhere"
NO_SERVICE = "pre-commit.ci, which these are settings of, cannot run local hooks"
DECLINED = {
    "PY007": "one script, .ci/run, does all that must hold; CONTRIBUTING.md has a table of the other commands",
    "MY105": "arguments are checked as they come, also those that types rule out",
    **dict.fromkeys(["PC100", "PC110", "PC140", "PC160", "PC170", "PC180", "PC190"], HOOKS),
    **dict.fromkeys(["PC901", "PC902", "PC903"], NO_SERVICE),
    "SEC001": "zizmor runs in tools/lint.sh, offline",
}


def tool(module):
    if not importlib.util.find_spec(module):
        pytest.skip("needs the group dev")
    return [sys.executable, "-m", module]


def test_every_file_has_a_licence():
    done = subprocess.run([*tool("reuse"), "--root", ROOT, "lint"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_pyproject_is_valid():
    done = subprocess.run([*tool("validate_pyproject"), ROOT / "pyproject.toml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_repositories_of_scientific_python_have():
    tool("sp_repo_review")
    from repo_review.processor import process

    failed = {result.name: result.err_msg for result in process(ROOT).results if result.result is False}
    assert {name: failed[name] for name in failed.keys() - DECLINED.keys()} == {}
    assert sorted(DECLINED.keys() - failed.keys()) == []


@pytest.mark.parametrize("patch", sorted((ROOT / "integrations").glob("*.patch")), ids=lambda path: path.stem)
def test_a_host_changes_thirty_lines_at_most(patch):
    """integrations/README.md says how many. Seen to fail: a patch that removed the host's other files."""
    lines = [line for line in patch.read_text().splitlines() if line[:3] not in ("+++", "---")]
    added, removed = (sum(line[:1] == sign for line in lines) for sign in "+-")
    assert 0 < added + removed <= 30
    row = next(row for row in patch.with_name("README.md").read_text().splitlines() if f"]({patch.name})" in row)
    assert row.endswith(f" {added}, {removed} |")


def test_notice_names_files_that_are_there():
    named = re.findall(r"(?:docs|tests|LICENSES)/[\w./-]+\w", (ROOT / "NOTICE").read_text())
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
