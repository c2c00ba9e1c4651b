# SPDX-License-Identifier: Apache-2.0
"""The CUDA backend: it hands checked calls on CuPy arrays to the kernels of csrc/cuda.

Nothing here loads CuPy, because such arrays exist only once it is loaded. Kernels run on the arrays' device and on its
current stream; nothing is read back.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...call.description import LOSS_CHUNK, Draw, Loss, Step, Walk, window_runs
from ...call.packed import CALL, FIELD, NO_LOSS, Layout, pack, pack_field, pack_fields, pack_loss
from ...language.levels import FLOATS, LEVELS, levels_of
from ...language.rows import AFFINE, CLEAN, HIGH, M1, TIMES_CLEAN, TIMES_ROOT, D, Rows, X, Z
from .. import runner
from . import cubin

THREADS = 256  # threads in a block
# This mirrors csrc/cuda/launch.h, which has the comments. A test compares the two.
KEYS = Layout({"k0 k1": "10I"})
LAUNCH = Layout(
    {"call": CALL, "spans span row total": "q", "first blocks pieces chunks": "I", "field": FIELD, "keys": KEYS}
)
_NO_FIELD, _NO_KEYS = bytes(FIELD.size), bytes(KEYS.size)
# CuPy passes arrays of one element by value. It asks for their description, which takes long if fields have names.
_BY_VALUE = np.dtype(f"V{LAUNCH.size}")
SHORT = {name: name.replace("float", "f") for name in FLOATS}


def _columns(first: int, *slots: int) -> int:
    return sum(1 << (first + 1 + slot) for slot in slots)


# Kernels for known columns (csrc/cuda/kernels.cu): by draw, the columns, and x's integer levels.
_FORWARD = _columns(AFFINE[0], X, Z)
FORWARD_OF = {levels: f"forward_{levels.replace('uint', 'u')}_" for levels in LEVELS}
KNOWN: dict[tuple[str, int, str | None], str] = {
    ("normal", _FORWARD, None): "forward_",
    **{("normal", _FORWARD | 1 << AFFINE[0], levels): kernel for levels, kernel in FORWARD_OF.items()},
    ("normal", _columns(AFFINE[0], Z), None): "normal_",
    ("uniform", _columns(AFFINE[0], Z), None): "uniform_",
    ("none", _columns(CLEAN, X, M1) | _columns(AFFINE[0], M1, D), None): "two_",
}
# Elements in a unit, by bytes of an element; a thread takes units.
UNIT = {4: 4, 8: 4, 2: 8}
UNITS = {kernel: {4: 8, 8: 2, 2: 4} for kernel in ("forward_", *FORWARD_OF.values(), "normal_")} | {
    "uniform_": {4: 8, 8: 2},
    "two_": {4: 4, 8: 2, 2: 2},
    "step_": {4: 2, 8: 1, 2: 1},
    "drawing_": {4: 2, 8: 1, 2: 1},
    "walk_": {4: 1, 8: 1, 2: 1},
}
GRID = 65535  # the most blocks of threads along y and z


def state() -> str:
    """Returns "available" for `noisefuse.info`, or why it is not."""
    try:
        cupy: Any = importlib.import_module("cupy")
        return "available" if cupy.cuda.runtime.getDeviceCount() else "no CUDA device"
    except ImportError:
        return "needs CuPy: pip install 'noisefuse[cuda13]' or 'noisefuse[cuda12]'"
    except Exception as error:  # CuPy raises various errors without a driver
        return f"CuPy finds no CUDA device: {error}"


def step(call: Step) -> None:
    """Computes the outputs of one pass."""
    x, (_, *aux) = call.inputs[X], call.outputs
    alone, levels = aux == [None, None] and not call.masked, None if x is None else levels_of(x.dtype)
    _run(call, _kind(call.draw, call.rows.active, alone, levels), 1 if call.row_for_each else call.segment)


def walk(call: Walk) -> None:
    """Computes the kept times of a random walk."""
    _run(call.first, "walk_", call.first.batch * call.first.size, call.keep)  # the last argument keeps all rows


def _run(call: Step, kind: str, segment: int, keep: NDArray[np.int64] | None = None) -> None:
    out = _first_output(call)
    windows = tuple([window_runs(noise, call.sample_shape) for noise in call.noise])
    cut = _cut(kind, call.dtype, call.batch, call.size, segment, windows, _aligned(call, kind))
    cupy: Any = sys.modules["cupy"]
    with _on(cupy, out.data.device_id):
        launch = _Launch(cupy, call, _Uploads(cupy), cut.spans, keep=keep)
        for n, grid in enumerate(cut.grids):
            if n:
                launch.numbers["first"] = n * GRID
            launch(cut.kernel, grid, cut.block)


def loss(call: Loss) -> None:
    """Computes losses and their gradient, chunk by chunk; then adds the sums of chunks, and those of samples."""
    cupy: Any = sys.modules["cupy"]
    residual, pred = call.residual, _first_output(call.residual)
    name = "nf_loss_f64" if pred.dtype == np.float64 else "nf_loss_f32"
    pieces, block = call.pieces // residual.batch, _threads(-(-min(call.piece, LOSS_CHUNK) // 4))
    with _on(cupy, pred.data.device_id):
        sums, place = None if call.losses is None else _scratch(cupy, call.pieces * call.chunks), _Uploads(cupy)
        numbers = pack_loss(call, place, 0 if sums is None else sums.data.ptr)
        one_field = residual._replace(noise=residual.noise[:1])  # keys are parameters of a launch
        launch = _Launch(cupy, one_field, place, of_loss=(pieces, call.chunks), loss=numbers)
        if len(residual.noise) > 1:
            fields = pack_fields(residual.noise, residual.sample_shape, place).view(FIELD.dtype)
            for n, noise in enumerate(residual.noise):
                launch.numbers["first"], launch.numbers["field"] = n, fields[n]
                launch.numbers["keys"] = np.frombuffer(_round_keys(noise.seed), KEYS.dtype)
                launch(name, (pieces * call.chunks,), block)
        else:
            launch(name, (call.pieces * call.chunks,), block)
        if call.losses is not None:
            _add_up(cupy, call, launch)


# A step and a loss that reads its results are two launches: it finds them in the second-level cache.
run: Callable[[Any], Any] = runner({Step: step, Walk: walk, Loss: loss})


def _add_up(cupy: Any, call: Loss, launch: _Launch) -> None:
    """Adds the sums of chunks to those of samples and, for one loss of all samples, adds these."""
    losses: Any = call.losses
    batch, chunks = call.residual.batch, call.pieces // call.residual.batch * call.chunks
    if losses.ndim or batch == 1:
        launch("nf_losses_f64", (batch,), _threads(chunks))
        return
    of_samples, in_call = _scratch(cupy, batch), launch.numbers["call"]
    in_call["losses"], in_call["n"] = of_samples.data.ptr, 1
    launch("nf_losses_f64", (batch,), _threads(chunks))
    in_call["losses"], in_call["n"], in_call["weights"] = losses.data.ptr, call.n, 0
    in_call["chunk_sums"], launch.numbers["pieces"], launch.numbers["chunks"] = of_samples.data.ptr, 1, batch
    launch("nf_losses_f64", (1,), _threads(batch))


# Buffers for losses in CUDA graphs, which write to them at every replay, so nothing else may use them. Nothing tells
# when a graph is gone, so they stay: 8 bytes for each sample and each chunk of a captured call, none for replays. Their
# size is bounded by the number of captures in a process.
_captured: list[Any] = []


def _scratch(cupy: Any, n: int) -> Any:
    """Returns memory for n sums."""
    memory = cupy.empty(n)
    if cupy.cuda.get_current_stream().is_capturing():
        _captured.append(memory)
    return memory


def _threads(work: int) -> tuple[int]:
    return (min(THREADS, -(-work // 32) * 32),)


def _first_output(call: Step) -> Any:
    """Returns the first output or, for a loss without its gradient, pred, which has the gradient's dtype and shape."""
    out = call.outputs[0]
    return call.inputs[M1] if out is None else out


@lru_cache
def _kind(draw: Draw, active: int, alone: bool, levels: str | None) -> str:
    """Returns the name of vector kernels for these columns. alone: there is one output."""
    columns = active & ((1 << AFFINE[1]) - (1 << AFFINE[0]))
    if columns & _columns(AFFINE[0], D):
        columns |= active & ((2 << HIGH) - 1)
    known = KNOWN.get((draw, columns, levels)) if alone else None
    return known or ("step_" if draw == "none" else "drawing_")


# ---- the cutting of a call ----------------------------------------------------------------------------------


class Cut(NamedTuple):
    """The spans of a call (csrc/cuda/launch.h), and its launches: grids that begin GRID samples apart."""

    spans: tuple[int, int, int]  # their number, elements of each, and the most blocks of the generator in one
    kernel: str
    block: tuple[int]
    grids: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=1024)
def _cut(
    kind: str, dtype: np.dtype[Any], batch: int, size: int, segment: int, windows: tuple[Any, ...], aligned: bool
) -> Cut:
    """Cuts a call. dtype: the outputs'. windows: the Noises', from window_runs."""
    span, blocks, whole = _span(batch, size, segment, windows)
    number, unit, units = batch * size // span, UNIT[dtype.itemsize], UNITS[kind].get(dtype.itemsize)
    # Vector kernels have samples along y and a sample's spans along z. Without a field, each span is a sample.
    samples, parts = (batch, size // span) if windows else (number, 1)
    if (
        aligned
        and units
        and (not windows or (len(windows) == 1 and not windows[0][2] and whole and parts <= GRID))
        and span % unit == 0
        and THREADS * unit <= 2 * span < 1 << 32
        and samples < 1 << 32
    ):
        tiles = -(-span // (THREADS * unit * units))
        grids = tuple((tiles, min(GRID, samples - first), parts) for first in range(0, samples, GRID))
        return Cut((number, span, blocks), f"nf_{kind}{SHORT[dtype.name]}", (THREADS,), grids)
    name, threads = ("f64", THREADS // 2) if dtype == np.float64 else ("f32", THREADS)
    name = ("nf_any_walk_" if kind == "walk_" else "nf_any_") + name
    return Cut((number, span, blocks), name, (threads,), ((-(-number * blocks // threads),),))


def _span(batch: int, size: int, segment: int, windows: tuple[Any, ...]) -> tuple[int, int, bool]:
    """Returns elements in a span, the most blocks of the generator in one, and whether all are whole blocks."""
    if not windows:
        if segment == batch * size and segment >= 1 << 31:  # vector kernels count within a span in 32 bits
            segment = size
        return segment, -(-segment // 4), segment % 4 == 0
    span = min(segment, *(run for _, run, *_ in windows))
    starts = [start for start, *_ in windows]
    if span < size:  # several spans in a sample
        starts += [span, *(stride for *_, strides in windows for stride in strides)]
    whole = all(start % 4 == 0 for start in starts)
    return span, -(-span // 4) if whole else (span + 6) // 4, whole and span % 4 == 0


def _aligned(call: Step, kind: str) -> bool:
    """Tells whether all arrays have the call's dtype (except integer levels that become floats), and are aligned to the
    accesses of vector kernels."""
    out = call.outputs[0]
    if call.rows.active & (TIMES_CLEAN | TIMES_ROOT) or (out is not None and levels_of(out.dtype)):
        return False  # vector kernels know neither
    dtype, of_levels = call.dtype, call.inputs[X] if kind in FORWARD_OF.values() else None
    for a in (*call.inputs, *call.outputs):
        if a is None:
            continue
        access = a.itemsize * UNIT[dtype.itemsize] if a is of_levels else 16
        if a.data.ptr % access or (a is not of_levels and a.dtype != dtype):  # type: ignore[attr-defined]
            return False
    return True


# ---- launches -----------------------------------------------------------------------------------------------


class _Uploads:
    """Returns an array's address on the device. Copies live as long as this object: CuPy's pool frees in stream
    order."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._copies: list[Any] = []

    def __call__(self, a: Any) -> int:
        if isinstance(a, np.ndarray):
            a = self._cupy.asarray(a)
            self._copies.append(a)
        place: int = a.data.ptr
        return place


class _Launch:
    """The bytes of a LAUNCH, on the current device. It is called with a kernel's name, its grid and its block."""

    def __init__(
        self, cupy: Any, call: Step, place: _Uploads, spans: tuple[int, int, int] = (0, 0, 0), *,
        of_loss: tuple[int, int] = (0, 0), keep: NDArray[np.int64] | None = None, loss: Sequence[Any] = NO_LOSS,
    ) -> None:  # fmt: skip
        """Packs the launch. of_loss: pieces in a sample, and chunks in a piece."""
        out = _first_output(call)
        self._cupy, self._device, self._place = cupy, out.data.device_id, place
        index, row, fields, field, keys = 0, 0, 0, _NO_FIELD, _NO_KEYS
        if isinstance(call.index, np.ndarray) and call.index.size == 1 and not call.period:
            row = int(call.index[0])
        else:
            index = place(call.index)
        if call.noise:
            field, keys = pack_field(call.noise[0], call.sample_shape, place), _round_keys(call.noise[0].seed)
        if len(call.noise) > 1:
            fields = place(pack_fields(call.noise, call.sample_shape, place))
        rows = _on_device(cupy, call.rows, call.arithmetic == np.float64, self._device).data.ptr
        packed = pack(call, place, rows, fields, index, keep, loss)
        numbers = *spans[:2], row, call.batch * call.size, 0, spans[2], *of_loss
        self._packed = bytearray(LAUNCH.pack(packed, *numbers, field, keys))

    @property
    def numbers(self) -> NDArray[np.void]:
        """Returns the launch's numbers by name, for changes between launches."""
        return np.frombuffer(self._packed, LAUNCH.dtype)

    def __call__(self, name: str, grid: tuple[int, ...], block: tuple[int]) -> None:
        kernel = cubin.function(self._cupy, self._device, name)
        kernel(grid, block, (np.frombuffer(self._packed, _BY_VALUE),))


def _on(cupy: Any, device: int) -> AbstractContextManager[Any]:
    """Returns a context with this device as the current one."""
    current: bool = cupy.cuda.runtime.getDevice() == device
    return nullcontext() if current else cupy.cuda.Device(device)


def _on_device(cupy: Any, rows: Rows, double: bool, device: int) -> Any:
    """Returns the table, uploaded once and kept with the rows. Streams that read it later find it there."""
    kept = rows.on_devices
    if (device, double) not in kept:
        table = cupy.asarray(rows.table if double else rows.single)
        cupy.cuda.get_current_stream().synchronize()
        kept[device, double] = table  # last: other threads take it as soon as it is stored
    return kept[device, double]


@lru_cache(maxsize=256)
def _round_keys(seed: int) -> bytes:
    """Returns the round keys of csrc/core/philox.h: ten of the lower half, ten of the upper."""
    lower, upper = (
        [(half + r * weyl) & 0xFFFFFFFF for r in range(10)]
        for half, weyl in ((seed, 0x9E3779B9), (seed >> 32, 0xBB67AE85))
    )
    return KEYS.pack(*lower, *upper)
