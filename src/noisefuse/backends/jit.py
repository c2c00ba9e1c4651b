# SPDX-License-Identifier: Apache-2.0
"""The Numba backend: hands checked calls to the compiled loops of kernels.py, as numbers and addresses."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..noise import Noise
from . import kernels, threads
from .call import AFFINE, CLEAN, HIGH, LOW, ORDER, D, Rows, Step, Walk, Z
from .kernels import RESULT, VALUES, WIDTH, ZERO
from .selftest import self_test

CHUNK = 1 << 15  # elements that a thread takes at a time, and least for which another is asked

KINDS = {np.dtype(kind): i for i, kind in enumerate((np.float32, np.float64, np.float16))}
KINDS[np.dtype(np.uint8)] = kernels.U8  # and any other is bfloat16, which NumPy alone does not know
DRAWS = {"none": kernels.NONE, "normal": kernels.NORMAL, "uniform": kernels.UNIFORM}

# Compiling takes seconds, the first time: no more than is needed, and each kind of arithmetic when it is.
tests_itself = True
_tested: set[str] = set()


def step(call: Step) -> None:
    _run(kernels.step, call, CHUNK if call.draw != "none" else 8 * CHUNK)  # without noise there is less to do


def walk(call: Walk) -> None:
    times = len(call.keep)
    chunk = kernels.TILE * max(1, CHUNK // kernels.TILE // times)
    _run(kernels.walk, call.first, chunk, call.keep.ctypes.data, times)


def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    out = np.empty_like(counter)
    kernels.philox(len(counter), counter.ctypes.data, key.ctypes.data, out.ctypes.data)
    return out


def _run(kernel: Any, call: Step, chunk: int, *first: int) -> None:
    """All parts of a call, shared out among threads."""
    total, outputs = call.batch * call.size, [out for out in call.outputs if out is not None]
    real = np.float64 if outputs[0].dtype == np.float64 else np.float32
    if real.__name__ not in _tested:
        _tested.add(real.__name__)
        self_test("numba", step, real.__name__)
    taken, streams, fields, program = np.zeros(1, np.int64), _streams(call), _fields(call), _program_of(call)
    rows = call.rows.table if real is np.float64 else call.rows.single
    numbers = (
        *(call.size, rows.ctypes.data, _columns(call.rows), call.index.ctypes.data, call.segment),
        *(len(program), program.ctypes.data, len(streams) - len(outputs), len(outputs), streams.ctypes.data),
        *(DRAWS[call.draw], int(call.step_by_index), int(call.masked)),
        *(fields.ctypes.data, fields.shape[1], int(len(fields) > 1)),
    )

    def work() -> None:
        reals = np.empty(kernels.REALS, real)
        words = np.empty(kernels.WORDS, np.uint32)
        kernel(*first, reals, words.ctypes.data, taken.ctypes.data, total, chunk, *numbers)

    def stop() -> None:
        taken[0] = total

    threads.together(work, stop, min(threads.count(), -(-total // chunk)))


def _columns(rows: Rows) -> int:
    """Bits of those that are read: a clamp takes both bounds, also where only one of them counts."""
    return rows.present | (1 << LOW | 1 << HIGH if rows.present & (1 << LOW | 1 << HIGH) else 0)


def _program_of(call: Step) -> NDArray[np.int64]:
    return program(call.rows.present, tuple(out is not None for out in call.outputs), call.masked, call.draw != "none")


@lru_cache(1024)
def program(present: int, wanted: tuple[bool, ...], masked: bool, draws: bool) -> NDArray[np.int64]:
    """The affine forms of these columns that such a call needs (kernels.FORM_TOTAL, ..)."""
    outputs = [AFFINE[o] for o in range(3) if wanted[o] or (masked and o == 1)]
    clean = masked or any(present >> (first + 1 + D) & 1 for first in outputs)
    clamped = not masked and present & (1 << LOW | 1 << HIGH) != 0
    forms = []
    for first in ([CLEAN] if clean else []) + outputs:
        slots = 3 if first == CLEAN else Z + 1
        terms = [slot for slot in ORDER if slot < slots and present >> (first + 1 + slot) & 1]
        total = VALUES + WIDTH * D if first == CLEAN else RESULT + WIDTH * AFFINE.index(first)
        constant = WIDTH * first if present >> first & 1 else -1 if terms else ZERO
        form = [total, constant, int(first == CLEAN and clamped), len(terms)]
        for slot in terms:
            form += [WIDTH * (first + 1 + slot), -1 if slot == Z and draws else VALUES + WIDTH * slot]
        forms.append(form)
    table = np.zeros((len(forms), kernels.FORM_NUMBERS), np.int64)
    for row, form in zip(table, forms, strict=True):
        row[: len(form)] = form
    return table


def _streams(call: Step) -> NDArray[np.int64]:
    """Of each array that is read, then of each that is written: kernels.STREAM_ARRAY, .."""
    arrays = [(VALUES + WIDTH * slot, a) for slot, a in enumerate(call.inputs) if a is not None]
    arrays += [(RESULT + WIDTH * o, a) for o, a in enumerate(call.outputs) if a is not None]
    rows = [(a.ctypes.data, KINDS.get(a.dtype, kernels.BF16), a.itemsize, row) for row, a in arrays]
    return np.array(rows, np.int64)


def _fields(call: Step) -> NDArray[np.int64]:
    rows = [_field(noise, call.sample_shape) for noise in call.noise] or [(0,)]
    longest = max(map(len, rows))
    return np.array([row + (0,) * (longest - len(row)) for row in rows], np.int64)


def _field(noise: Noise, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Its numbers: kernels.FIELD_KEY0, .."""
    ids = noise.sample
    sample = (0, ids.ctypes.data) if isinstance(ids, np.ndarray) else (ids, 0)
    name = (noise.seed & 0xFFFFFFFF, noise.seed >> 32, *sample, noise.step, noise.stream)
    full = noise.window_shape
    if full is None:
        return *name, 0, math.prod(shape), 0
    strides = [math.prod(full[axis + 1 :]) for axis in range(len(full))]
    start = sum(s * stride for s, stride in zip(noise.window_start, strides, strict=True))
    # A run takes in the trailing axes that the slice covers whole, and one axis more.
    outer = len(full)
    while outer > 0 and (outer == len(full) or shape[outer] == full[outer]):
        outer -= 1
    return *name, start, math.prod(shape[outer:]), outer, *shape[:outer], *strides[:outer]
