# SPDX-License-Identifier: Apache-2.0
"""Backends run checked calls: `native` (C++ with SIMD), `numba`, `reference` (NumPy); `cuda` for CuPy's arrays, and
`triton` for torch's tensors on a device where CuPy is not installed.

All give the same bits.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..call.description import Loss, RepeatedLoss
from ..ground.checks import check_integer
from ..ground.version import __version__
from ..language.noise import NOISE_VERSION, PROVISIONAL_VERSION, Noise, plain
from . import threads
from .selftest import self_test


class Backend(Protocol):
    """The interface of a backend module. Its arguments were checked in `arguments`.

    Attributes:
        fast_row .. fast_photons: its fast path, or None.
        empty: allocates outputs in host memory, like `numpy.empty`.
        tests_itself: whether it is tested on first use, and not when it is loaded.
    """

    fast_row: Callable[..., Any] | None
    fast_random: Callable[..., Any] | None
    fast_mse: Callable[..., Any] | None
    fast_density: Callable[..., Any] | None
    fast_density_gradient: Callable[..., Any] | None
    fast_divergence: Callable[..., Any] | None
    fast_tokens: Callable[..., Any] | None
    fast_categorical: Callable[..., Any] | None
    fast_cross_entropy: Callable[..., Any] | None
    fast_token_step: Callable[..., Any] | None
    fast_walk: Callable[..., Any] | None
    fast_impulse: Callable[..., Any] | None
    fast_rician: Callable[..., Any] | None
    fast_factors: Callable[..., Any] | None
    fast_iso: Callable[..., Any] | None
    fast_photons: Callable[..., Any] | None
    empty: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]
    tests_itself: bool

    def run(self, call: Any) -> Any:
        """Runs a call of `call.description`. Every backend has Step, Walk, Loss, Race, CrossEntropy and Philox. It
        returns NotImplemented for a class that it does not know: the operation then does without."""


_OFFERED = (*Backend.__annotations__, "run")


def runner(operations: dict[Any, Callable[[Any], None]]) -> Callable[[Any], Any]:
    """Returns the `run` of a backend with these operations, by the classes of their calls."""

    def run(call: Any) -> Any:
        operation = operations.get(type(call))
        return NotImplemented if operation is None else operation(call)

    return run


# The names in the order of preference, and the modules with other names.
NAMES = ("native", "numba", "reference")
_MODULES = {"numba": "numba.jit"}

# The Triton backend has rows and tokens alone.
NEEDS_CUPY = "this needs CuPy on a CUDA device: pip install 'noisefuse[cuda13]' or 'noisefuse[cuda12]'"

_current: tuple[str, Any] | None = None
_cuda: Any = None
_tested_devices: set[Any] = set()  # CuPy's by their numbers, and Triton's by ("triton", number)


def declined(*arguments: Any) -> Any:
    """Stands for the fast path of a backend that has none."""
    return NotImplemented


def _at_first(name: str) -> Callable[..., Any]:
    """Returns a stand-in for this function until the process has chosen its backend."""

    def call(*arguments: Any) -> Any:
        _first()
        return globals()[name](*arguments)

    return call


# The fast path of the backend in use, csrc/python/fast_path.cpp. It takes arguments as they came, checks them itself,
# and declines all that are not plain with NotImplemented.
fast_row: Callable[..., Any] = _at_first("fast_row")
fast_random: Callable[..., Any] = _at_first("fast_random")
fast_mse: Callable[..., Any] = _at_first("fast_mse")
fast_density: Callable[..., Any] = _at_first("fast_density")
fast_density_gradient: Callable[..., Any] = _at_first("fast_density_gradient")
fast_divergence: Callable[..., Any] = _at_first("fast_divergence")
fast_tokens: Callable[..., Any] = _at_first("fast_tokens")
fast_categorical: Callable[..., Any] = _at_first("fast_categorical")
fast_cross_entropy: Callable[..., Any] = _at_first("fast_cross_entropy")
fast_token_step: Callable[..., Any] = _at_first("fast_token_step")
fast_walk: Callable[..., Any] = _at_first("fast_walk")
fast_impulse: Callable[..., Any] = _at_first("fast_impulse")
fast_rician: Callable[..., Any] = _at_first("fast_rician")
fast_factors: Callable[..., Any] = _at_first("fast_factors")
fast_iso: Callable[..., Any] = _at_first("fast_iso")
fast_photons: Callable[..., Any] = _at_first("fast_photons")
FAST_PATH = tuple(name for name in Backend.__annotations__ if name.startswith("fast_"))
empty: Callable[..., Any] = _at_first("empty")
named: Callable[..., Noise] = _at_first("named")  # `plain`, in a tenth of its instructions if the backend has it


class Setting:
    """A process-wide setting that is already in effect. As a context manager it is undone at the end of the block."""

    def __init__(self, restore: Callable[[], object]) -> None:
        self._restore = restore

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()


def current() -> Any:
    """Returns the backend module in use: NOISEFUSE_BACKEND, or the first that loads."""
    return (_current or _first())[1]


def repeated_loss(array: Any, call: Loss) -> None:
    """Does a loss on this array at each of the next steps of its noises: its losses are (steps, batch)."""
    backend: Backend = of(array)
    if backend.run(RepeatedLoss(call)) is not NotImplemented:
        return
    residual, losses = call.residual, call.losses
    assert losses is not None
    for i, of_step in enumerate(losses):
        noise = tuple(name.at(step=name.step + i) for name in residual.noise)
        backend.run(call._replace(residual=residual._replace(noise=noise), losses=of_step))


def of(array: Any) -> Any:
    """Returns the backend module for arrays on this array's device: on a GPU `cuda` for CuPy's, and `triton`."""
    if isinstance(array, np.ndarray):
        return current()
    if type(array).__module__.startswith(__name__):
        triton: Any = importlib.import_module(".triton.launches", __name__)
        if ("triton", array.device.id) not in _tested_devices:
            for dtype in ("float32", "float64"):
                self_test("triton", triton.run, dtype, partial(triton.empty, array.device.id), type(array).get)
            _tested_devices.add(("triton", array.device.id))
        return triton
    global _cuda
    if _cuda is None:
        _cuda = importlib.import_module(".cuda.launches", __name__)
    device = int(array.data.device_id)
    if device not in _tested_devices:
        cupy: Any = sys.modules["cupy"]
        with cupy.cuda.Device(device):
            for dtype in ("float32", "float64"):
                self_test("cuda", _cuda.run, dtype, cupy.empty, cupy.asnumpy)
        _tested_devices.add(device)
    return _cuda


def _first() -> tuple[str, Any]:
    wanted = os.environ.get("NOISEFUSE_BACKEND")
    if wanted and wanted not in NAMES:
        raise ValueError(f"NOISEFUSE_BACKEND={wanted!r}: expected one of {', '.join(NAMES)}")
    if wanted:
        try:
            return _select(wanted)
        except ImportError as error:
            raise ImportError(f"NOISEFUSE_BACKEND={wanted!r}: {error}") from error
    missing: dict[str, ImportError] = {}
    for name in NAMES[:-1]:
        try:
            return _fallen_back(_select(name), missing)
        except ImportError as error:
            missing[name] = error
    return _fallen_back(_select(NAMES[-1]), missing)


def _fallen_back(chosen: tuple[str, Any], missing: dict[str, ImportError]) -> tuple[str, Any]:
    """Warns once about missing backends, unless they were left out on purpose."""
    if missing and not (chosen[0] == "numba" and _built_without_native()):
        slow = "some 10 times slower than NumPy" if chosen[0] == "reference" else "more slowly"
        causes = ". ".join(f"{name}: {error}" for name, error in missing.items())
        message = f"noisefuse runs on its backend {chosen[0]!r}: the same results, {slow}. {causes}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return chosen


def _built_without_native() -> bool:
    """Tells whether noisefuse was installed with NOISEFUSE_PURE. A wheel for every platform has no C++ extension."""
    from importlib import metadata  # this takes milliseconds, which processes with the extension save

    try:
        return "Root-Is-Purelib: true" in (metadata.distribution("noisefuse").read_text("WHEEL") or "")
    except metadata.PackageNotFoundError:
        return False


def _select(name: str) -> tuple[str, Any]:
    return _use(name, _load(name))


def _use(name: str, backend: Any) -> tuple[str, Any]:
    global _current, empty, named
    _current, empty, named = (name, backend), backend.empty, getattr(backend, "named", plain)
    globals().update({name: getattr(backend, name) or declined for name in FAST_PATH})
    return _current


@cache
def _load(name: str) -> Any:
    module = importlib.import_module(f".{_MODULES.get(name, name)}", __name__)
    if not module.tests_itself:
        for dtype in ("float32", "float64"):
            self_test(name, module.run, dtype)
    return module


def _native() -> Any:
    """Returns the C++ extension, or None if it was not built."""
    try:
        import noisefuse._native as _native
    except ImportError:
        return None
    return _native


def use_backend(backend: str | Backend) -> Setting:
    """Chooses the backend of the whole process. It is also a context manager.

    Args:
        backend: "native", "numba" or "reference", or one of your own, an object with the attributes of
            `noisefuse.backends.Backend`.

    Returns:
        A context manager that restores the previous backend at its end; outside of ``with`` the choice stays.

    Raises:
        ValueError: there is no backend of that name.
        TypeError: backend is neither a name nor such an object.
        ImportError: the backend is not available here; the message says why.

    >>> with nf.use_backend("reference"):
    ...     slow = nf.randn((2, 3), nf.Noise(7))
    >>> np.array_equal(slow, nf.randn((2, 3), nf.Noise(7)))
    True
    """
    if isinstance(backend, str) and backend not in NAMES:
        hint = "; cuda is chosen by where the arrays lie" if backend == "cuda" else ""
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(NAMES)}{hint}")
    if not isinstance(backend, str) and not all(hasattr(backend, name) for name in _OFFERED):
        own = "or an object with the attributes of noisefuse.backends.Backend"
        raise TypeError(f"backend {backend!r}: expected one of {', '.join(NAMES)}, {own}")
    before = _current or _first()
    if isinstance(backend, str):
        _select(backend)
    else:
        _use(type(backend).__name__, backend)
    return Setting(lambda: _use(*before))


def set_num_threads(n: int) -> Setting:
    """Sets the number of threads for kernels, n >= 1; results never depend on it. It is also a context manager.

    The default is NOISEFUSE_NUM_THREADS, else the number of processors that this process may run on, or the container's
    limit of processor time, if that is less. A forked child starts with one thread.

    Args:
        n: from 1 to 1024.

    Returns:
        A context manager that restores the previous number at its end; outside of ``with`` the new one stays.

    Raises:
        TypeError, ValueError: n is no integer from 1 to 1024.

    >>> with nf.set_num_threads(1):
    ...     nf.info()["threads"]
    1
    """
    number, before = check_integer("num_threads", n, 1, 1024), threads.count()
    _set_threads(number)
    return Setting(lambda: _set_threads(before))


def _set_threads(n: int) -> None:
    threads.set_count(n)
    if native := _native():  # it has its own pool
        native.set_num_threads(n)


def info() -> dict[str, Any]:
    """Describes this installation.

    Returns:
        A dict with the versions, the processor, its instruction sets, the threads and the backends, each "available" or
        the reason why not. The backend in use is None if NOISEFUSE_BACKEND asks for one that is not available.

    >>> nf.info()["noise_version"]
    1
    """
    backends: dict[str, str] = {}
    for name in NAMES:
        try:
            _load(name)
            backends[name] = "available"
        except ImportError as error:
            backends[name] = str(error)
    backends["cuda"] = importlib.import_module(".cuda.launches", __name__).state()
    backends["triton"] = importlib.import_module(".triton", __name__).state()
    isas: dict[str, str] = {}
    isa = None
    if backends["native"] == "available" and (native := _native()):
        isas = {n: "available" if ok else "not on this processor" for n, ok in native.isas().items()}
        isa = native.isa()
    return {
        "version": __version__,
        "noise_version": NOISE_VERSION,
        "provisional_version": PROVISIONAL_VERSION,
        "cpu": _cpu_name(),
        "isa": isa,
        "threads": threads.count(),
        "isas": isas,
        "backend": _in_use(),
        "backends": backends,
    }


def _in_use() -> str | None:
    try:
        return (_current or _first())[0]
    except ImportError:  # the reason stands beside it
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
