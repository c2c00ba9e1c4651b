# SPDX-License-Identifier: Apache-2.0
"""Reads the extension's C++ with each of the named compilers, by CMakeLists.txt's own commands, and makes nothing of
it. Any warning is an error. The group "build" and NumPy have to be installed:

python tools/syntax.py g++-12 clang++-14
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commands(compiler: str, folder: str) -> list[list[str]]:
    configure = ["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    subprocess.run([*configure, f"-DPython_EXECUTABLE={sys.executable}"], env=os.environ | {"CXX": compiler},
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    found = json.loads((Path(folder) / "compile_commands.json").read_text())
    lines = [re.sub(r" -o \S+ -c ", " -Werror -fsyntax-only ", each["command"]) for each in found]
    assert all("-fsyntax-only" in line for line in lines), lines
    return [shlex.split(line) for line in lines]


def main() -> None:
    failed = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for compiler in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                lines = commands(compiler, folder)
                done = [*pool.map(lambda line: subprocess.run(line, capture_output=True, text=True), lines)]
            wrong = [each.stderr for each in done if each.returncode]
            print(f"{compiler}: {len(done)} files, {len(wrong)} refused", *wrong, sep="\n", flush=True)
            failed += wrong
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
