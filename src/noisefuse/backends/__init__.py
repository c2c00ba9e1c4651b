# SPDX-License-Identifier: Apache-2.0
"""Backends run checked calls: `native` (C++ with SIMD), `reference` (NumPy). All give the same bits."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..noise import Noise
from .call import AFFINE, COLUMNS, Loss, Rows, Step, Walk, Z


class Backend(Protocol):
    """What a backend module offers; its arguments were checked in ops.py."""

    def step(self, call: Step) -> None: ...
    def walk(self, call: Walk) -> None: ...
    def loss(self, call: Loss) -> None: ...
    def philox(self, counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]: ...


# In the order of preference.
NAMES = ("native", "reference")

_current: tuple[str, Any] | None = None


def _first_row(*arguments: Any) -> Any:
    """The short cut of a process that has not chosen its backend yet."""
    _first()
    return NotImplemented if short_cut is None else short_cut(*arguments)


# The backend's `row` and `mse` for plain arguments, if it has them: they check them themselves, or decline with
# NotImplemented.
short_cut: Callable[..., Any] | None = _first_row
mse_short_cut: Callable[..., Any] | None = None


class Setting:
    """A process-wide setting that is already made; as a context manager it goes back at the end of the block."""

    def __init__(self, restore: Callable[[], object]) -> None:
        self._restore = restore

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()


def current() -> Any:
    """The backend module in use: NOISEFUSE_BACKEND, or the first that loads."""
    return (_current or _first())[1]


def _first() -> tuple[str, Any]:
    wanted = os.environ.get("NOISEFUSE_BACKEND")
    if wanted and wanted not in NAMES:
        raise ValueError(f"NOISEFUSE_BACKEND={wanted!r}: expected one of {', '.join(NAMES)}")
    names = (wanted,) if wanted else NAMES
    for name in names[:-1]:
        try:
            return _select(name)
        except ImportError:
            continue
    return _select(names[-1])


def _select(name: str) -> tuple[str, Any]:
    global _current, short_cut, mse_short_cut
    module = _load(name)
    _current = name, module
    short_cut, mse_short_cut = getattr(module, "row", None), getattr(module, "mse", None)
    return _current


def _load(name: str) -> Any:
    module = importlib.import_module(f".{name}", __name__)
    _self_test(name, module)
    return module


# The first block of Noise(0), of float32 and float64: from Random123's answer 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
_FIRST_BLOCK = {
    "float32": [0.9911375641822815, -0.9246625304222107, -0.6176089644432068, -0.48206856846809387],
    "float64": [0.9911376798332383, -0.9246625875387023, -0.617608959576803, -0.48206858720475165],
}


def _self_test(name: str, module: Any) -> None:
    """Refuses a wrongly built kernel before it has spoilt anything: takes some twenty microseconds."""
    rows = np.zeros((1, COLUMNS))
    rows[0, column := AFFINE[0] + 1 + Z] = 1
    for dtype, expected in _FIRST_BLOCK.items():
        out = np.empty(4, dtype)
        zero = np.zeros(1, np.int64)
        nothing, outputs = (None,) * (Z + 1), (out, None, None)
        module.step(Step(1, 4, (4,), Rows(rows, 1 << column), zero, 4, nothing, outputs, "normal", False, (Noise(0),)))
        if out.tolist() != expected:
            raise ImportError(f"the {name} backend is built wrongly: Noise(0) begins {out.tolist()}, not {expected}")


def use_backend(name: str) -> Setting:
    """Chooses the backend of the whole process: "native" or "reference". Also a context manager.

    Raises:
        ValueError: no backend of that name. ImportError: it is not available here; the message says why.
    """
    if name not in NAMES:
        raise ValueError(f"backend {name!r}: expected one of {', '.join(NAMES)}")
    before, _ = _current or _first()
    _select(name)
    return Setting(lambda: _select(before))


def set_num_threads(n: int) -> Setting:
    """How many threads the native kernels use, n >= 1; results never depend on it. Also a context manager.

    The default is NOISEFUSE_NUM_THREADS, else the processors this process may run on; a forked child starts with one.
    """
    from .. import _native

    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= 1024:
        raise ValueError(f"num_threads = {n!r}: expected an integer from 1 to 1024")
    before = _native.num_threads()
    _native.set_num_threads(int(n))
    return Setting(lambda: _native.set_num_threads(before))


def info() -> dict[str, Any]:
    """What runs here: version, processor, instruction sets, threads and backends, each available or why it is not."""
    from .. import NOISE_VERSION, __version__

    backends: dict[str, str] = {}
    for name in NAMES:
        try:
            _load(name)
            backends[name] = "available"
        except ImportError as error:
            backends[name] = str(error)
    isas: dict[str, str] = {}
    native: dict[str, Any] = {"isa": None, "threads": 1}
    if backends["native"] == "available":
        from .. import _native

        isas = {n: "available" if ok else "not on this processor" for n, ok in _native.isas().items()}
        native = {"isa": _native.isa(), "threads": _native.num_threads()}
    return {
        "version": __version__,
        "noise_version": NOISE_VERSION,
        "cpu": _cpu_name(),
        **native,
        "isas": isas,
        "backend": (_current or _first())[0],
        "backends": backends,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
