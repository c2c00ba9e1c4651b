# SPDX-License-Identifier: Apache-2.0
"""The Numba backend: it hands the bytes of checked calls to the compiled loops of kernels.py."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

if find_spec("numba") is None:
    raise ImportError("Numba is not installed: pip install 'noisefuse[numba]'")
from ...call.description import LOSS_CHUNK, Array, CrossEntropy, Loss, Philox, Race, Step, Walk
from ...call.packed import address, pack_on_host
from ...ground.float_mode import float_mode
from .. import runner, threads
from ..categorical_rows import Arithmetic, Scale, cross_entropy_in_row, race_in_row
from ..selftest import self_test
from . import kernels
from .program import CALL_OUT, NEXT, TILE, WORKSPACE

CHUNK = 1 << 15  # elements that a thread takes at a time; a further thread needs as many
SLAB = 1 << 20  # elements with residuals in memory at a time: whole chunks
AT_ONCE = 1 << 21  # elements times steps between two checks for signals: 2 ms

# Compiling takes seconds the first time, so no more is compiled than is needed, each kind of arithmetic on first use.
tests_itself = True
fast_row = fast_random = fast_mse = fast_density = fast_density_gradient = fast_divergence = fast_tokens = None
fast_categorical = fast_cross_entropy = fast_token_step = fast_walk = fast_impulse = fast_rician = fast_factors = None
fast_iso = fast_photons = None
empty: Callable[..., NDArray[Any]] = np.empty
_tested: set[np.dtype[Any]] = set()


def step(call: Step) -> None:
    _run(kernels.step, call, *pack_on_host(call), _chunk(call), 0, call.batch * call.size)


def _chunk(call: Step) -> int:
    return CHUNK if call.draw != "none" else 8 * CHUNK  # noise is most of the work


def walk(call: Walk) -> None:
    first, times = call.first, len(call.keep)
    chunk = TILE * max(1, CHUNK // TILE // times)
    _run(kernels.walk, first, *pack_on_host(call), chunk, 0, first.batch * first.size, times)


@float_mode()
def loss(call: Loss) -> None:
    """Computes the residuals of a slab in memory of their own; then their squares, and their gradient."""
    together, part = max(1, SLAB // call.piece), min(SLAB, call.piece)
    held = np.empty(min(together, call.pieces) * part, call.residual.arithmetic)
    residual, gradient = call.residual._replace(outputs=(held, None, None)), call.residual.outputs[0]
    chunk_sums, weight = np.empty((call.pieces, call.chunks)), call.weight()
    factor = call.factor(weight)
    numbers, memory = pack_on_host(residual)
    for p in range(0, call.pieces, together):  # whole pieces, or one piece in parts
        n = min(together, call.pieces - p)
        for begin in range(0, call.piece, part):
            end = min(begin + part, call.piece)
            first, size = p * call.piece + begin, n * (end - begin)
            _run(kernels.step, residual, numbers, memory, _chunk(residual), first, first + size)
            r = held[:size].reshape(n, -1)
            if call.losses is not None:
                kernels.squares(r, chunk_sums[p : p + n, begin // LOSS_CHUNK : -(-end // LOSS_CHUNK)].reshape(-1))
            if factor is not None and gradient is not None:
                of_slab = gradient.reshape(-1)[first : first + size].reshape(n, -1)
                with np.errstate(all="ignore"):
                    of_slab[:] = np.multiply(factor[p : p + n, None].astype(r.dtype), r)
    if call.losses is not None:
        sums = np.empty(call.residual.batch)
        kernels.pieces(chunk_sums, np.ones(call.pieces) if weight is None else weight, sums)
        call.losses[...] = (sums if call.losses.ndim else np.cumsum(sums)[-1]) / call.n  # cumsum adds in order


def philox(call: Philox) -> None:
    kernels.philox(call.blocks, address(call.counter), address(call.key), address(call.out))


def race(call: Race) -> None:
    _in_rows(race_in_row, call, call.rows)


def cross_entropy(call: CrossEntropy) -> None:
    _in_rows(cross_entropy_in_row, call, call.rows)


@float_mode()
def _in_rows(one: Callable[[Any, int, Arithmetic], None], call: Any, n: int) -> None:
    """Runs a function of rows on threads, which take rows in turn."""
    rows = iter(range(n))

    def work() -> None:
        with np.errstate(all="ignore"), float_mode():
            for row in rows:
                one(call, row, _CATEGORIES)

    def stop() -> None:
        for _ in rows:
            pass

    threads.together(work, stop, min(threads.count(), n))


def _scores(
    x: Array, token: NDArray[np.int64], position: int, beta: float, counter: tuple[int, int, int], seed: int
) -> Array:
    step, sample, stream = counter
    out = np.empty(len(x))
    kernels.scores(x, token, position, beta, step, sample, stream, np.uint64(seed), out)
    return out


def _chunk_sums(chunk: Array, scale: Scale, largest: Array) -> tuple[Array, Array]:
    sums, spreads = np.empty((2, len(chunk)))
    kernels.term_sums(chunk, largest, scale.high, scale.low, scale.rate, scale.reach, sums, spreads)
    return sums, spreads


def _terms(x: Array, scale: Scale, largest: Any) -> tuple[Array, Any]:
    out = np.empty(len(x), np.float32)
    return out, kernels.terms(x, largest, scale.high, scale.low, scale.rate, scale.reach, out)


def _functions(x: Array) -> Array:
    both = np.empty((2, len(x)))
    kernels.functions(x, *both)
    return both


def _fma(a: Any, b: Any, c: Any) -> Array:
    a, b, c = (np.array(v, np.float64) for v in np.broadcast_arrays(a, b, c))
    out = np.empty(a.shape)
    kernels.fmas(a, b, c, out)
    return out


_CATEGORIES = Arithmetic(_scores, _chunk_sums, _terms, lambda x: _functions(x)[0], lambda x: _functions(x)[1], _fma)


def _run(
    kernel: Any, call: Step, numbers: bytes, memory: Any, chunk: int, begin: int, end: int, times: int = 1
) -> None:
    """Computes the elements begin .. end - 1 of a call on several threads. Its outputs begin with the first of
    these."""
    real, turns = call.arithmetic, max(1, AT_ONCE // (chunk * times))
    if real not in _tested:
        _test(real)
    # This belongs to this call alone, as does `memory`, to which it points: a thread may still look for a next chunk
    # when the call has ended.
    shared = np.frombuffer(bytearray(numbers + begin.to_bytes(8, "little")), np.int64)
    if begin:
        shared[CALL_OUT] -= begin * real.itemsize
    others = 1 if {a.dtype for a in call.inputs + call.outputs if a is not None} != {real} else None

    def work(_memory: Any = (call, memory)) -> None:
        workspace = np.empty(WORKSPACE, real)
        while shared[NEXT] < end:
            kernel(workspace, others, shared, end, chunk, turns)

    def stop() -> None:
        shared[NEXT] = end

    if end - begin <= chunk:
        work()
    else:
        threads.together(work, stop, min(threads.count(), -(-(end - begin) // chunk)))


def _test(real: np.dtype[Any]) -> None:
    _tested.add(real)  # set first, because the test makes calls itself
    try:
        self_test("numba", run, real.name)
    except BaseException:
        _tested.discard(real)
        raise


run: Callable[[Any], Any] = runner(
    {Step: step, Walk: walk, Loss: loss, Race: race, CrossEntropy: cross_entropy, Philox: philox}
)
