# SPDX-License-Identifier: Apache-2.0
"""What commands share: a line of progress, a look at the load, and a look at where the results go."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from ..ground.processors import processors

WIDTH = 80  # characters in a line of a table, as a terminal has at least
APART = 10.0  # seconds between lines of progress that no terminal shows


def wrapped(lines: Iterable[str], mark: str = "") -> list[str]:
    """Breaks lines to the width of a terminal; the mark begins each part."""
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, initial_indent=mark, subsequent_indent=mark)]


class Progress:
    """Progress on stderr: one line that is rewritten on a terminal, and elsewhere a line now and then, for a log."""

    def __init__(self, on_terminal: float = 0.0, elsewhere: float = APART) -> None:
        self.terminal: bool = sys.stderr.isatty()
        self.apart: float = on_terminal if self.terminal else elsewhere
        self.shown: float = time.monotonic()

    def __call__(self, line: str) -> None:
        if (now := time.monotonic()) - self.shown >= self.apart:
            self.shown = now
            before, end = ("\r\033[K", "") if self.terminal else ("", "\n")
            print(f"{before}{line}", end=end, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def load() -> float | None:
    """Returns the mean number of processes that ran in the last minute, or None where the system does not say."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def busy(load: float | None) -> str:
    """Says that times of this machine mean little, or nothing: others use more than half of its processors."""
    n = processors()
    return f"load {load:.3g} on {n} processors: figures are unreliable" if load is not None and load > n / 2 else ""


def check_writable(*paths: Path | None) -> None:
    """Raises OSError if a file cannot be written, before the work that it is for."""
    for path in filter(None, paths):
        if not path.parent.is_dir():
            raise OSError(f"cannot write {path}: no such directory")
        if path.is_dir():
            raise OSError(f"cannot write {path}: it is a directory")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise OSError(f"cannot write {path}: permission denied")


def check_picture(path: Path) -> None:
    """Raises OSError, as `check_writable`, also if the name is that of no picture."""
    from matplotlib.figure import Figure

    check_writable(path)
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise OSError(f"cannot write {path}: expected a name that ends in one of {', '.join(sorted(known))}")


def arrays_of_triton() -> Any:
    """Returns the module of the arrays that tensors of a device become where CuPy is not installed. Also where it is
    they choose Triton's kernels."""
    return import_module("noisefuse.backends.triton.arrays")
