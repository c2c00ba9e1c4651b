# SPDX-License-Identifier: Apache-2.0
"""The mutation campaign: plants the small errors of mutations.toml, one at a time, and asks whether tests see them.

    python tests/campaign/mutation.py [--only PATTERN] [--json FILE]

It works in a copy of the checkout. The extension comes from the installed noisefuse, and cmake and ninja are needed.
Each error runs the smallest tests that should see it. "hashes" is no Python test but tests/known/hashes.cpp, compiled
with the kernels of one instruction set ("hashes avx2") and compared with tests/known/hashes.txt: a few seconds. For
Python tests an error in csrc/ needs the extension: the objects that include the file are compiled again, and one of the
instruction sets. First of all, the same tests have to pass without any error.

It exits with 1 if fewer than 95 % are caught.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENOUGH = 0.95
LIMIT = 180  # seconds for the tests of one error: some errors only hang
HASH_LANE = "portable"  # for "hashes"; in the extension it is the installed noisefuse's choice
WITHOUT_CHECKOUT = """\
import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
"""
LEFT_OUT = ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build"


@dataclass(frozen=True)
class Mutation:
    """`old` occurs exactly once in the file; with `new` in its place the tests should fail."""

    path: str
    old: str
    new: str
    tests: str

    def __str__(self) -> str:
        return f"{self.path}: {self.old.strip()} -> {self.new.strip()}"


def read_mutations() -> list[Mutation]:
    listed = tomllib.loads(Path(__file__).with_name("mutations.toml").read_text())
    selections = listed["selections"]
    return [
        Mutation(file["path"], old, new, selections.get(name, name).replace("\n", " "))
        for file in listed["file"]
        for old, new, name in ((*error, file["tests"])[:3] for error in file["errors"])
    ]


class DoesNotCompileError(Exception):
    pass


def run(command: list[str] | str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command in its own group of processes, which ends with it. TimeoutExpired: it hung."""
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=folder, shell=isinstance(command, str), **options) as process:
        try:
            output, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output)


def need(command: list[str] | str, folder: Path) -> str:
    done = run(command, folder)
    if done.returncode:
        raise DoesNotCompileError(done.stdout)
    return done.stdout


class Build:
    """The extension of a copy. CMake gives the command of each object; pristine objects are kept."""

    def __init__(self, copy: Path, lane: str) -> None:
        self.copy, self.folder, self.lane = copy, copy / "build", lane
        flags = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", f"-DPython_EXECUTABLE={sys.executable}"]
        need(["cmake", "-S", str(copy), "-B", str(self.folder), "-G", "Ninja", *flags], copy)
        *compile_commands, self.link = need(["ninja", "-t", "commands", "_native"], self.folder).splitlines()
        self.commands = {re.search(r" -o (\S+\.o) ", c)[1]: c for c in compile_commands}
        self.known = [line for line in (copy / "tests/known/hashes.txt").read_text().splitlines() if line[0] != "#"]

    @cached_property
    def includes(self) -> dict[str, str]:
        """Returns the files that each object depends on. The pristine extension is built for that."""
        subprocess.run(["ninja"], cwd=self.folder, check=True, stdout=subprocess.DEVNULL)
        return {name: need(["ninja", "-t", "deps", name], self.folder) for name in self.commands}

    def extension(self, path: str) -> Path:
        """Builds with the file's present text; all instruction sets but one stay as they were."""
        link, commands = self.link, []
        for name, command in self.commands.items():
            if path in self.includes[name] and ("kernels_" not in name or f"kernels_{self.lane}." in name):
                mutant = name.replace(".o", ".mutant.o")
                commands.append(command.replace(name, mutant))
                link = link.replace(name, mutant)
        self.compile(commands)
        need(link, self.folder)
        return next(self.folder.glob("_native*.so"))

    def same_hashes(self, lane: str) -> bool:
        """Returns whether the program of the hashes prints the known ones. It stops at the first difference."""
        name = next(name for name in self.commands if f"kernels_{lane}." in name and "kernels.cpp" in name)
        command = self.commands[name].replace("-O1", f"-O0 -I{self.copy}/csrc -I{self.copy}/csrc/cpu")
        sources = ("csrc/cpu/kernels.cpp", "csrc/cpu/race.cpp", "csrc/run/race.cpp", "tests/known/hashes.cpp")
        objects = [f"hashes-{n}.o" for n in range(len(sources))]
        self.compile(
            [command.replace(name, o).replace(sources[0], source) for o, source in zip(objects, sources, strict=True)]
        )
        need(f"c++ {' '.join(objects)} -o hashes", self.folder)
        run_by_lines = ["stdbuf", "-oL", "timeout", str(LIMIT), "./hashes"]
        with subprocess.Popen(run_by_lines, cwd=self.folder, text=True, stdout=subprocess.PIPE) as program:
            same = all(program.stdout.readline().strip() == line for line in self.known)
            program.kill()
        return same

    def compile(self, commands: list[str]) -> None:
        """Runs all tests at once."""
        started = [subprocess.Popen(c, cwd=self.folder, shell=True, stderr=subprocess.DEVNULL) for c in commands]
        codes = [process.wait() for process in started]
        if any(codes):
            raise DoesNotCompileError


class Campaign:
    """A copy of the checkout, and the tests that passed in it."""

    def __init__(self, copy: Path) -> None:
        from noisefuse import _native

        self.copy, self.passed = copy, set[str]()
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        self.native, self.lane = Path(_native.__file__), _native.isa()
        self.place = copy / "src/noisefuse" / self.native.name
        shutil.copy(self.native, self.place)
        # An editable installation leads all imports to the checkout.
        (copy / "site").mkdir()
        (copy / "site/sitecustomize.py").write_text(WITHOUT_CHECKOUT)
        self.environment = os.environ | {"PYTHONPATH": f"{copy / 'site'}:{copy / 'src'}"}
        where = run([sys.executable, "-c", "import noisefuse; print(noisefuse.__file__)"], copy, env=self.environment)
        assert str(copy) in where.stdout, where.stdout

    @cached_property
    def build(self) -> Build:
        return Build(self.copy, self.lane)

    def passes(self, tests: str, changed: str | None) -> bool:
        """Runs with this file of the copy changed."""
        kind, _, lane = tests.partition(" ")
        if kind == "hashes":
            return self.build.same_hashes(lane or HASH_LANE)
        if changed and changed.startswith("csrc/") and not changed.startswith("csrc/cuda/"):
            shutil.copy(self.build.extension(changed), self.place)
        options = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        try:
            done = run([sys.executable, "-m", "pytest", *options, *shlex.split(tests)], self.copy, env=self.environment)
        finally:
            shutil.copy(self.native, self.place)
        if done.returncode > 2 or (changed is None and done.returncode):  # the status tells nothing about the error
            raise SystemExit(f"pytest {tests}: ended with {done.returncode}\n{done.stdout[-3000:]}")
        return done.returncode == 0

    def verdict(self, mutation: Mutation) -> str:
        """Returns whether the error was caught: the text begins with "caught"."""
        if mutation.tests not in self.passed:
            if not self.passes(mutation.tests, None):
                raise SystemExit(f"{mutation.tests}: fails without any error")
            self.passed.add(mutation.tests)
        file = self.copy / mutation.path
        text = file.read_text()
        assert text.count(mutation.old) == 1, mutation
        file.write_text(text.replace(mutation.old, mutation.new))
        try:
            return "NOT caught" if self.passes(mutation.tests, mutation.path) else "caught"
        except subprocess.TimeoutExpired:
            return "caught (it hangs)"
        except DoesNotCompileError:
            return "NOT an error: it does not compile"
        finally:
            file.write_text(text)


def mutation_of(result: dict[str, Any]) -> Mutation:
    return Mutation(result["path"], result["old"], result["new"], result["tests"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression, sought in file, error and tests")
    parser.add_argument("--json", type=Path, help="where the results go, too; those that it has are kept")
    options = parser.parse_args()
    listed = read_mutations()
    chosen = [m for m in listed if re.search(options.only, f"{m} {m.tests}")]
    before = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    results = [result for result in before if mutation_of(result) in listed]
    done = [mutation_of(result) for result in results]
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder) / "copy")
        for mutation in chosen:
            if mutation in done:
                continue
            begin = time.monotonic()
            verdict = campaign.verdict(mutation)
            seconds = round(time.monotonic() - begin, 1)
            results.append(asdict(mutation) | {"verdict": verdict, "seconds": seconds})
            print(f"{seconds:6.1f} s  {verdict:12}  {mutation}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    missed = [result for result in results if not result["verdict"].startswith("caught")]
    caught = len(results) - len(missed)
    print(f"\n{caught} of {len(results)} caught, in {sum(result['seconds'] for result in results):.0f} s")
    for result in missed:
        print(f"  {result['verdict']}: {result['path']}: {result['old']} -> {result['new']}  ({result['tests']})")
    return 0 if caught >= ENOUGH * len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
