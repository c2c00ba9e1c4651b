# SPDX-License-Identifier: Apache-2.0
"""The Numba backend: hands the bytes of checked calls to the compiled loops of kernels.py."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

if find_spec("numba") is None:
    raise ImportError("Numba is not installed: pip install 'noisefuse[numba]'")
from . import kernels, threads
from .call import Loss, Step, Walk, address, pack_on_host
from .selftest import self_test

CHUNK = 1 << 15  # elements that a thread takes at a time, and least for which another is asked
SLAB = 1 << 20  # elements whose residuals are held at a time, or one sample

# Compiling takes seconds, the first time: no more than is needed, and each kind of arithmetic when it is.
tests_itself = True
fast_row = fast_random = fast_mse = None
empty = np.empty
_tested: set[np.dtype[Any]] = set()


def step(call: Step) -> None:
    _run(kernels.step, call, *pack_on_host(call), _chunk(call), 0, call.batch * call.size)


def _chunk(call: Step) -> int:
    return CHUNK if call.draw != "none" else 8 * CHUNK  # without noise there is less to do


def walk(call: Walk) -> None:
    first, chunk = call.first, kernels.TILE * max(1, CHUNK // kernels.TILE // len(call.keep))
    _run(kernels.walk, first, *pack_on_host(first, call.keep), chunk, 0, first.batch * first.size)


def loss(call: Loss) -> None:
    """Residuals of some samples at a time, in memory of their own; then their squares, and their gradient."""
    batch, size, gradient = call.residual.batch, call.residual.size, call.residual.outputs[0]
    together = max(1, min(batch, SLAB // size))
    held = np.empty(together * size, call.residual.arithmetic)
    residual = replace(call.residual, outputs=(held, None, None))
    weight, sums = call.weight(), np.empty(batch)
    weights = (np.ones(call.pieces) if weight is None else weight).reshape(batch, -1)
    factors = call.factor(weight)
    numbers, memory = pack_on_host(residual)
    for begin in range(0, batch, together):
        end = min(begin + together, batch)
        first, last = begin * size, end * size
        _run(kernels.step, residual, numbers, memory, _chunk(residual), first, last)
        r = held[: last - first]
        if call.losses is not None:
            kernels.squares(r, call.piece, weights[begin:end], sums[begin:end])
        if factors is not None and gradient is not None:
            factor = factors.reshape(batch, -1)[begin:end].astype(r.dtype).reshape(-1, 1)
            of_slab = gradient.reshape(-1)[first:last].reshape(-1, call.piece)
            with np.errstate(all="ignore"):
                of_slab[:] = np.multiply(factor, r.reshape(-1, call.piece))
    if call.losses is not None:
        call.losses[...] = (sums if call.losses.ndim else np.cumsum(sums)[-1]) / call.n  # cumsum adds in order


def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    out = np.empty_like(counter)
    kernels.philox(len(counter), address(counter), address(key), address(out))
    return out


def _run(kernel: Any, call: Step, numbers: bytes, memory: Any, chunk: int, begin: int, end: int) -> None:
    """The elements begin .. end - 1 of a call, shared out among threads. Its outputs begin with the first of these."""
    real = call.arithmetic
    if real not in _tested:
        _test(real)
    # Of this call alone, as is `memory`, to which it points: a thread may still look whether there is a next chunk when
    # the call has ended.
    shared = np.frombuffer(bytearray(numbers + begin.to_bytes(8, "little")), np.int64)
    if begin:
        shared[kernels.CALL_OUT] -= begin * real.itemsize
    others = 1 if {a.dtype for a in call.inputs + call.outputs if a is not None} != {real} else None

    def work(_memory: Any = (call, memory)) -> None:
        kernel(np.empty(kernels.WORKSPACE, real), others, shared, end, chunk)

    def stop() -> None:
        shared[kernels.NEXT] = end

    if end - begin <= chunk:
        work()
    else:
        threads.together(work, stop, min(threads.count(), -(-(end - begin) // chunk)))


def _test(real: np.dtype[Any]) -> None:
    _tested.add(real)  # the test makes calls itself
    try:
        self_test("numba", step, real.name)
    except BaseException:
        _tested.discard(real)
        raise
