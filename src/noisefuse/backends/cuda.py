# SPDX-License-Identifier: Apache-2.0
"""The CUDA backend: hands checked calls on CuPy arrays to the kernels of csrc/cuda.

Nothing here loads CuPy: whoever has such arrays has loaded it. Kernels run on the device of the arrays and on its
current stream; nothing is read back.
"""

from __future__ import annotations

import importlib
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ..noise import Noise
from . import cubin
from .call import AFFINE, CLEAN, HIGH, M1, D, Rows, Step, Walk, X, Z, window_runs

# As in csrc/cuda/call.h.
THREADS, AXES = 256, 8
FIELD = struct.Struct(f"<4Q2I3q{2 * AXES}q")
CALL = struct.Struct(f"<4q2QQqQ9Q3Q10i4i2IQ{FIELD.size}s20IQ2q")
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3, "uint8": 4}
SHORT = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}
DRAWS = {"none": 0, "normal": 1, "uniform": 2}


def _columns(first: int, *slots: int) -> int:
    return sum(1 << (first + 1 + slot) for slot in slots)


# Kernels for known columns (csrc/cuda/kernels.cu): by what is drawn, the columns, and whether x is uint8.
_FORWARD = _columns(AFFINE[0], X, Z)
KNOWN = {
    ("normal", _FORWARD, False): "forward_",
    ("normal", _FORWARD | 1 << AFFINE[0], True): "forward_u8_",
    ("normal", _columns(AFFINE[0], Z), False): "normal_",
    ("uniform", _columns(AFFINE[0], Z), False): "uniform_",
    ("none", _columns(CLEAN, X, M1) | _columns(AFFINE[0], M1, D), False): "two_",
}
# Elements of a unit, by bytes of an element; units that one thread takes.
UNIT = {4: 4, 8: 4, 2: 8}
UNITS = {
    "forward_": {4: 8, 8: 2, 2: 4},
    "forward_u8_": {4: 8, 8: 2, 2: 4},
    "normal_": {4: 8, 8: 2, 2: 4},
    "uniform_": {4: 8, 8: 2},
    "two_": {4: 4, 8: 2, 2: 2},
    "step_": {4: 2, 8: 1, 2: 1},
    "drawing_": {4: 2, 8: 1, 2: 1},
    "walk_": {4: 1, 8: 1, 2: 1},
}
GRID = 65535  # blocks of threads along y and z


def state() -> str:
    """For `noisefuse.info`: available, or why not."""
    try:
        cupy: Any = importlib.import_module("cupy")
        return "available" if cupy.cuda.runtime.getDeviceCount() else "no CUDA device"
    except ImportError:
        return "needs CuPy: pip install 'noisefuse[cuda13]' or 'noisefuse[cuda12]'"
    except Exception as error:  # whatever CuPy raises where there is no driver
        return f"CuPy finds no CUDA device: {error}"


def step(call: Step) -> None:
    """Computes the outputs of one pass."""
    one = call.outputs[1] is None and call.outputs[2] is None and not call.masked
    kind = KNOWN.get((call.draw, _columns_that_count(call.rows), _is_uint8(call.inputs[X]))) if one else None
    _run(call, kind or ("step_" if call.draw == "none" else "drawing_"), None)


def walk(call: Walk) -> None:
    """Computes the kept times of a random walk."""
    _run(call.first, "walk_", call.keep)


def _first_output(call: Step) -> Any:
    return next(out for out in call.outputs if out is not None)


def _columns_that_count(rows: Rows) -> int:
    """For the first output alone."""
    columns = rows.present & ((1 << AFFINE[1]) - (1 << AFFINE[0]))
    return columns | (rows.present & ((2 << HIGH) - 1) if columns & _columns(AFFINE[0], D) else 0)


def _is_uint8(x: Any) -> bool:
    return x is not None and x.dtype == np.uint8


# ---- how a call is cut up -----------------------------------------------------------------------------------


class Field(NamedTuple):
    """A Noise for samples of some shape, and its window: as native.py's, with axes merged that lie together."""

    noise: Noise
    start: int
    run: int
    lengths: tuple[int, ...]
    strides: tuple[int, ...]


class Pieces(NamedTuple):
    """Stretches that have one row, one sample and one step, and lie together in the field."""

    size: int  # elements of each
    blocks: int  # of the generator, that one takes at most
    aligned: bool  # all begin and end where blocks do


def _field(noise: Noise, shape: tuple[int, ...]) -> Field:
    start, run, lengths, strides = window_runs(noise, shape)
    merged: list[tuple[int, int]] = []
    for length, stride in zip(lengths, strides, strict=True):
        if merged and merged[-1][1] == length * stride:
            merged[-1] = merged[-1][0] * length, stride
        elif length != 1:
            merged.append((length, stride))
    if len(merged) > AXES:
        raise ValueError(f"noise window: more than {AXES} axes are cut, which CUDA kernels do not support")
    return Field(noise, start, run, tuple(n for n, _ in merged), tuple(s for _, s in merged))


def _pieces(call: Step, fields: list[Field], walks: bool) -> Pieces:
    total = call.batch * call.size
    size = total if walks else call.segment  # a walk has all rows
    if not fields:
        if size == total and total >= 1 << 31:  # vector kernels count within a piece in 32 bits
            size = call.size
        return Pieces(size, -(-size // 4), size % 4 == 0)
    size = min(size, *(field.run for field in fields))
    starts = [field.start for field in fields]
    if size < call.size:  # several in a sample
        starts += [size, *(stride for field in fields for stride in field.strides)]
    whole = all(start % 4 == 0 for start in starts)
    return Pieces(size, -(-size // 4) if whole else (size + 6) // 4, whole and size % 4 == 0)


def _vector(call: Step, kind: str, pieces: Pieces, fields: list[Field]) -> bool:
    """Whether arrays and pieces are such as vector kernels take, and long enough for a block of threads."""
    out = _first_output(call)
    unit, samples = UNIT[out.itemsize], call.batch if fields else call.batch * call.size // pieces.size
    given: list[Any] = [a for a in (*call.inputs, *call.outputs) if a is not None]
    alike = all(a.dtype == out.dtype or (kind == "forward_u8_" and a is call.inputs[X]) for a in given)
    return (
        alike
        and len(fields) <= 1
        and not (fields and (fields[0].lengths or not pieces.aligned or call.size // pieces.size > GRID))
        and out.itemsize in UNITS[kind]
        and pieces.size % unit == 0
        and THREADS * unit <= 2 * pieces.size < 1 << 32
        and samples < 1 << 32
        and all(a.data.ptr % min(16, unit * a.itemsize) == 0 for a in given)
    )


# ---- launches -----------------------------------------------------------------------------------------------


def _run(call: Step, kind: str, keep: np.ndarray[Any, Any] | None) -> None:
    cupy = sys.modules["cupy"]
    out = _first_output(call)
    fields = [_field(noise, call.sample_shape) for noise in call.noise]
    pieces = _pieces(call, fields, keep is not None)
    with _on(cupy, out.device.id) as device:
        alive = _Arguments(cupy, call, fields, pieces, keep, device)
        if _vector(call, kind, pieces, fields):
            unit = UNIT[out.itemsize] * UNITS[kind][out.itemsize]
            parts = call.size // pieces.size if fields else 1
            samples = call.batch if fields else call.batch * call.size // pieces.size
            kernel = cubin.function(cupy, device, f"nf_{kind}{SHORT[out.dtype.name]}")
            tiles = -(-pieces.size // (THREADS * unit))
            for first in range(0, samples, GRID):
                grid = tiles, min(GRID, samples - first), parts
                kernel(grid, (THREADS,), (alive.packed(first),))
        else:
            double = out.dtype == np.float64
            name = ("nf_any_walk_" if keep is not None else "nf_any_") + ("f64" if double else "f32")
            threads = THREADS // 2 if double else THREADS
            number = call.batch * call.size // pieces.size * pieces.blocks
            cubin.function(cupy, device, name)((-(-number // threads),), (threads,), (alive.packed(0),))


@contextmanager
def _on(cupy: Any, device: int) -> Iterator[int]:
    """With this device current."""
    if cupy.cuda.runtime.getDevice() == device:
        yield device
        return
    with cupy.cuda.Device(device):
        yield device


class _Arguments:
    """What a kernel is handed, and what has to live until it has been launched: CuPy's pool frees in stream order."""

    def __init__(self, cupy: Any, call: Step, fields: list[Field], pieces: Pieces, keep: Any, device: int) -> None:
        out = _first_output(call)
        inputs: tuple[Any, ...] = call.inputs
        outputs: tuple[Any, ...] = call.outputs
        self._alive: list[Any] = []
        rows = _on_device(cupy, call.rows, out.dtype == np.float64, device)
        index, row = 0, 0
        if keep is None and isinstance(call.index, np.ndarray) and call.index.size == 1:
            row = int(call.index[0])
        elif keep is None:
            index = self._upload(cupy, call.index)
        several = len(fields) > 1
        packed = [self._field(cupy, field) for field in fields]
        total = call.batch * call.size
        self._before = (
            total // pieces.size,
            pieces.size,
            call.size,
            call.segment,
            rows.data.ptr,
            len(call.rows.table),
            index,
            row,
            call.rows.present,
            *(0 if a is None else a.data.ptr for a in (*inputs, *outputs)),
            *(0 if a is None else TYPES[a.dtype.name] for a in inputs),
            TYPES[out.dtype.name],
            DRAWS[call.draw],
            call.step_by_index,
            call.masked,
            several,
        )
        self._after = (
            pieces.blocks,
            self._upload(cupy, np.frombuffer(b"".join(packed), np.uint8)) if several else 0,
            packed[0] if packed else bytes(FIELD.size),
            *(_round_keys(fields[0].noise.seed) if fields else (0,) * 20),
            0 if keep is None else self._upload(cupy, keep),
            0 if keep is None else len(keep),
            total,
        )

    def packed(self, first: int) -> np.ndarray[Any, Any]:
        """The bytes of a Call, from this sample on: CuPy passes arrays of one element by value."""
        return np.frombuffer(CALL.pack(*self._before, first, *self._after), f"V{CALL.size}")

    def _upload(self, cupy: Any, array: Any) -> int:
        self._alive.append(cupy.asarray(array))
        return int(self._alive[-1].data.ptr)

    def _field(self, cupy: Any, field: Field) -> bytes:
        ids, number = field.noise.sample, field.noise.step
        counter = 0
        if not isinstance(number, int):  # a device array, which noise.py has checked
            self._alive.append(number)
            counter, number = number.data.ptr, 0
        pad = (0,) * (AXES - len(field.lengths))
        return FIELD.pack(
            field.noise.seed,
            ids if isinstance(ids, int) else 0,
            0 if isinstance(ids, int) else self._upload(cupy, ids),
            counter,
            number,
            field.noise.stream,
            field.start,
            field.run,
            len(field.lengths),
            *(*field.lengths, *pad),
            *(*field.strides, *pad),
        )


def _on_device(cupy: Any, rows: Rows, double: bool, device: int) -> Any:
    """The table, uploaded once and kept with the rows; on whatever stream it is read later, it is there."""
    kept = vars(rows).setdefault("_on_devices", {})
    if (device, double) not in kept:
        kept[device, double] = cupy.asarray(rows.table if double else rows.single)
        cupy.cuda.get_current_stream().synchronize()
    return kept[device, double]


def _round_keys(seed: int) -> tuple[int, ...]:
    """Those of csrc/core/philox.h: ten of the lower half, ten of the upper."""
    return (
        *((seed + r * 0x9E3779B9) & 0xFFFFFFFF for r in range(10)),
        *(((seed >> 32) + r * 0xBB67AE85) & 0xFFFFFFFF for r in range(10)),
    )
