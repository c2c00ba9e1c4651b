# SPDX-License-Identifier: Apache-2.0
"""A run of CI does not pass by skipping: allowed skips are listed, and `--allowed-skips` compares.

Seen to fail: a file that was skipped as a whole, in one process and in xdist's two; an entry of another system.
"""

import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import unexpected_skips

TESTS = Path(__file__).parent
ALLOWED = tomllib.loads((TESTS / "allowed_skips.toml").read_text())["skip"]
FILES = {
    "test_device.py": 'import pytest\n\ndef test_a():\n    pytest.skip("no device")\n\ndef test_b():\n    pass\n',
    "test_library.py": 'import pytest\n\npytest.importorskip("no_such_library")\n',
}
REASONS = {
    "test_device.py": "no device",
    "test_library.py": "could not import 'no_such_library': No module named 'no_such_library'",
}


@pytest.mark.parametrize(
    ("listed", "workers"),
    [(["test_device.py"], []), (["test_library.py"], ["-n", "1"]), ([*FILES], [])],
    ids=["file", "test", "all listed"],
)
def test_a_skip_that_is_not_listed_fails_the_run(listed, workers, tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    file = tmp_path / "listed.toml"
    file.write_text("\n".join(f'[[skip]]\nfile = "{name}"\nreason = "{REASONS[name]}"' for name in listed))
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-c", os.devnull]
    command += [f"--rootdir={tmp_path}", f"--allowed-skips={file}", *workers, tmp_path]
    path = os.pathsep.join([str(TESTS), str(TESTS / "campaign"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    said = [line.partition("does not allow: ")[2] for line in done.stdout.splitlines() if "does not allow" in line]
    assert said == [f"{name}: {REASONS[name]}" for name in FILES if name not in listed], done.stdout
    assert done.returncode == (1 if said else 0)


def test_calls_that_broke_are_named(tmp_path):
    """Seen to fail: only the test was named."""
    package, test = tmp_path / "noisefuse" / "a.py", tmp_path / "test_a.py"
    package.parent.mkdir()
    package.write_text("import json\n\ndef f():\n    json.dumps({}, no_such_option=1)\n")
    test.write_text(f"import sys\nsys.path.insert(0, {str(package.parent)!r})\nimport a\n\ndef test_f():\n    a.f()\n")
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-c", os.devnull]
    path = os.pathsep.join([str(TESTS), str(TESTS / "campaign"), os.environ.get("PYTHONPATH", "")])
    command += [f"--rootdir={tmp_path}", "--broken-calls", test]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("broke: ")]
    assert len(said) == 1, done.stdout
    assert re.search(r"noisefuse/a\.py:4: TypeError: .*no_such_option", said[0])


def test_an_entry_may_be_for_one_system():
    entry = {"file": "tests/*.py", "reason": "needs fork"}
    skip = ("tests/test_a.py", "needs fork and more")
    assert unexpected_skips([skip], [entry]) == []
    assert unexpected_skips([skip], [entry | {"on": ["no system"]}]) == [skip]
    assert unexpected_skips([skip], [entry | {"on": [platform.machine()]}]) == []
    assert unexpected_skips([skip], [entry | {"reason": "fork"}]) == [skip]


def test_an_entry_of_the_list_is_of_a_file_that_is_there_and_says_why():
    for entry in ALLOWED:
        assert list(TESTS.parent.glob(entry["file"])), entry
        assert entry["reason"]
        assert entry["why"]
        assert {*entry.get("on", [])} <= {"linux", "darwin", "win32", "aarch64"}
