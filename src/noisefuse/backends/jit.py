# SPDX-License-Identifier: Apache-2.0
"""The Numba backend: hands checked calls to the compiled loops of kernels.py, as numbers and addresses."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if find_spec("numba") is None:
    raise ImportError("Numba is not installed: pip install 'noisefuse[numba]'")
from ..noise import ELEMENTS, SAMPLES, STEPS, Noise
from ..rows import AFFINE, BOUNDS, CLEAN, ORDER, Z_BITS, Z_COLUMNS, D, Z
from . import kernels, threads
from .call import Array, Loss, Step, Walk, window_runs
from .kernels import BF16, F16, F32, IN_PLACE, MINUS_ZERO, RESULT, SAME, U8, VALUES, ZERO
from .selftest import self_test

CHUNK = 1 << 15  # elements that a thread takes at a time, and least for which another is asked
SLAB = 1 << 20  # elements whose residuals are held at a time, or one sample

# And any other is bfloat16, which NumPy alone does not know.
KINDS = {np.dtype(np.float32): F32, np.dtype(np.float16): F16, np.dtype(np.uint8): U8}
FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)
DRAWS = {"none": kernels.NONE, "normal": kernels.NORMAL, "uniform": kernels.UNIFORM}

# Compiling takes seconds, the first time: no more than is needed, and each kind of arithmetic when it is.
tests_itself = True
fast_row = fast_mse = None
empty = np.empty
_tested: set[str] = set()


def step(call: Step) -> None:
    _run(kernels.step, call, CHUNK if call.draw != "none" else 8 * CHUNK)  # without noise there is less to do


def walk(call: Walk) -> None:
    times = len(call.keep)
    chunk = kernels.TILE * max(1, CHUNK // kernels.TILE // times)
    _run(kernels.walk, call.first, chunk, call.keep.ctypes.data, times)


def loss(call: Loss) -> None:
    """Residuals of some samples at a time, in memory of their own; then their squares, and their gradient."""
    residual, real = call.residual, np.float64 if (call.residual.dtype == np.float64) else np.float32
    batch, size = residual.batch, residual.size
    pieces = size // call.piece
    together = max(1, min(batch, SLAB // size))
    held = np.empty(together * size, real)
    chunk_sums, sums = np.empty((batch, pieces, call.chunks)), np.empty(batch)
    weight = call.weight()
    all_factors = call.factor(weight)
    for begin in range(0, batch, together):
        end = min(begin + together, batch)
        r = held[: (end - begin) * size]
        step(_residuals(residual, begin, end, r))
        kernels.squares(r, call.piece, chunk_sums[begin:end].reshape(-1))
        if all_factors is not None and (gradient := residual.outputs[0]) is not None:
            factor = all_factors[begin * pieces : end * pieces].astype(real)
            of_slab = gradient.reshape(-1)[begin * size : end * size].reshape(-1, call.piece)
            with np.errstate(all="ignore"):
                of_slab[:] = np.multiply(factor[:, None], r.reshape(-1, call.piece))
    if call.losses is not None:
        of_pieces = np.ones(batch * pieces) if weight is None else weight
        kernels.add_up(chunk_sums, of_pieces.reshape(batch, pieces), sums)
        call.losses[...] = (sums if call.losses.ndim else np.cumsum(sums)[-1]) / call.n  # cumsum adds in order


def _residuals(call: Step, begin: int, end: int, out: Array) -> Step:
    """The call for the samples begin .. end - 1 alone."""
    first, last = begin * call.size, end * call.size
    one_row = len(call.index) == 1
    return replace(
        call,
        batch=end - begin,
        index=call.index if one_row else call.index[first // call.segment : last // call.segment],
        segment=last - first if one_row else call.segment,
        inputs=tuple(None if a is None else a.reshape(-1)[first:last] for a in call.inputs),
        outputs=(out, None, None),
        noise=call.noise[begin:end] if len(call.noise) > 1 else tuple(_from(n, begin, end) for n in call.noise),
    )


def _from(noise: Noise, begin: int, end: int) -> Noise:
    """Of the samples begin .. end - 1 of a batch."""
    ids = noise.sample
    return noise.at(sample=ids[begin:end] if isinstance(ids, np.ndarray) else ids + begin)


def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    out = np.empty_like(counter)
    kernels.philox(len(counter), counter.ctypes.data, key.ctypes.data, out.ctypes.data)
    return out


@contextmanager
def _compiling() -> Iterator[None]:
    """Numba makes a million objects that live on: looking for garbage among them took a tenth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _run(kernel: Any, call: Step, chunk: int, *first: int) -> None:
    """All parts of a call, shared out among threads."""
    total, outputs = call.batch * call.size, [out for out in call.outputs if out is not None]
    real = np.float64 if outputs[0].dtype == np.float64 else np.float32
    if real.__name__ not in _tested:
        _tested.add(real.__name__)  # which makes calls itself
        try:
            with _compiling():
                self_test("numba", step, real.__name__)
        except BaseException:
            _tested.discard(real.__name__)
            raise
    taken, streams, fields, program = np.zeros(1, np.int64), _streams(call, real), _fields(call), _program_of(call)
    rows = call.rows.table if real is np.float64 else call.rows.single
    numbers = np.array(
        [
            *(call.size, rows.ctypes.data, _columns(call.rows.active), call.index.ctypes.data, call.segment),
            *(len(program), program.ctypes.data, len(streams) - len(outputs), len(outputs), streams.ctypes.data),
            *(DRAWS[call.draw], int(call.step_by_index), int(call.masked)),
            *(fields.ctypes.data, fields.shape[1], int(len(fields) > 1)),
        ]
    )

    others = 1 if (streams[:, kernels.STREAM_KIND] > SAME).any() else None

    def work(_memory: Any = (call, rows, streams, fields, program)) -> None:  # whose addresses are among the numbers
        reals = np.empty(kernels.REALS, real)
        words = np.empty(kernels.WORDS, np.uint32)
        kernel(*first, reals, others, words.ctypes.data, taken.ctypes.data, total, chunk, numbers.ctypes.data)

    def stop() -> None:
        taken[0] = total

    threads.together(work, stop, min(threads.count(), -(-total // chunk)))


# ---- the short cut -----------------------------------------------------------------------------------------
# Calls of a few microseconds are mostly Python. So plain ones are checked here at once: float32, C-contiguous, one row
# for all elements. Whatever else comes is declined: ops.py then checks it, and says what is wrong.


class Desk:
    """Memory that small calls take in turn, and the arguments of a kernel that say where it is."""

    def __init__(self) -> None:
        self.numbers = np.empty(kernels.DESK, np.int64)
        self.words = np.empty(kernels.WORDS, np.uint32)
        self.address = self.numbers.ctypes.data
        self.scratch = np.empty(kernels.REALS, np.float32), None, self.words.ctypes.data
        self.taken, self.call = self.address + 8 * kernels.DESK_TAKEN, self.address + 8 * kernels.DESK_CALL


_desks: list[Desk] = []
ndarray = np.ndarray  # looking it up in NumPy takes as long as asking for a type


class Form(NamedTuple):
    """What a kernel needs to know of a row, whatever its numbers are."""

    address: int  # of the call's numbers, in which some are still to be filled in, and of the rows of the streams
    slots: tuple[int, ...]  # that are read
    tables: tuple[NDArray[np.int64], ...]  # keeps the memory


@lru_cache(1024)
def _form(present: int, outputs: int, draws: bool) -> Form:
    table = program(present, (True, outputs > 1, outputs > 2), False)
    read = {slot for slot in range(3) if present >> (CLEAN + 1 + slot) & 1}
    read |= {slot for slot in range(Z + 1) for first in AFFINE if present >> (first + 1 + slot) & 1}
    slots = tuple(sorted(read - {D} - ({Z} if draws else set())))
    streams = (*(VALUES + slot for slot in slots), *(RESULT + o for o in range(outputs)))
    numbers = np.zeros(kernels.CALL_NUMBERS + len(streams), np.int64)
    numbers[kernels.CALL_COLUMNS] = _columns(present)
    numbers[kernels.CALL_FORMS], numbers[kernels.CALL_PROGRAM] = len(table), table.ctypes.data
    numbers[kernels.CALL_INPUTS], numbers[kernels.CALL_OUTPUTS] = len(slots), outputs
    numbers[kernels.CALL_DRAW] = kernels.NORMAL if draws else kernels.NONE
    numbers[kernels.CALL_NUMBERS :] = streams
    return Form(numbers.ctypes.data, slots, (numbers, table))


def row(
    plain: tuple[NDArray[np.float32], NDArray[np.float64], int],
    i: Any,
    x: Any,
    model_output: Any,
    past: Any,
    noise: Any,
    stream: int,
    out: Any,
    aux_out: Any,
) -> Any:
    """One row over all of x, as `_native.row`; NotImplemented for whatever is not plain."""
    rows, _, present = plain
    if type(i) is ndarray and i.dtype is INT64 and i.shape == (1,):
        i = int(i[0])
    if type(i) is not int or not 0 <= i < len(rows) or type(x) is not ndarray or not 0 < x.size <= ELEMENTS:
        return NotImplemented
    if x.ndim == 0 or "float32" not in _tested or type(past) not in _SEQUENCES or type(aux_out) not in _SEQUENCES:
        return NotImplemented
    name, z = _NO_NAME, None
    if present & Z_BITS:
        if type(noise) is Noise:
            if (name := _plain_name(noise, stream, i, len(rows), len(x))) is None:
                return NotImplemented
        elif type(noise) is ndarray:
            z = noise
        elif noise is None and not rows[i, Z_COLUMNS].any():
            present &= ~Z_BITS
        else:
            return NotImplemented
    if model_output is None and not past:
        values: Any = (x, None, None, None, None, None, None, None, z)
    elif (values := _values(x, model_output, past, z)) is None:
        return NotImplemented
    result = np.empty_like(x) if out is None else out
    outputs = [result, *aux_out] if aux_out else [result]
    form = _form(present, len(outputs), name is not _NO_NAME)
    arrays = [values[slot] for slot in form.slots] + outputs
    if len(outputs) > 3 or not _plain(arrays, x.shape) or not _compute(form, rows, i, x, arrays, name):
        return NotImplemented
    return result


_NO_NAME = (0, 0, 0, 0, 0)
_SEQUENCES = (tuple, list, type(None))


def _plain_name(noise: Noise, stream: int, i: int, rows: int, batch: int) -> Any:
    """(key words, sample, step, stream) of a Noise without ids and window, or None."""
    sample, step = noise.sample, noise.step
    if type(sample) is not int or noise.window_shape is not None or sample + batch > SAMPLES:
        return None
    if stream < 0:
        stream = noise.stream
    elif noise.stream or step + rows > STEPS:
        return None
    else:
        step += i
    return noise.seed & 0xFFFFFFFF, noise.seed >> 32, sample, step, stream


def _values(x: Any, model_output: Any, past: Any, z: Any) -> Any:
    """The inputs by slot, or None where there are too many."""
    models = model_output if type(model_output) is tuple else (model_output,)
    past = tuple(past or ())
    if len(models) > 2 or len(past) > 4:
        return None
    return x, *models, *(None,) * (3 - len(models)), *past, *(None,) * (4 - len(past)), z


def _plain(arrays: list[Any], shape: tuple[int, ...]) -> bool:
    """Whether all are float32 arrays of this shape."""
    for a in arrays:
        if type(a) is not ndarray or a.dtype is not FLOAT32 or a.shape != shape or not a.flags.carray:
            return False
    return True


def _compute(form: Form, rows: Any, i: int, x: Any, arrays: list[Any], name: tuple[int, ...]) -> bool:
    """False, and nothing is computed: an output overlaps another array."""
    total, flat = x.size, tuple([a.ravel() for a in arrays])
    try:
        # A thread that comes late still looks at the desk of its call: that of a shared one serves no other.
        desk = _desks.pop() if total <= CHUNK else Desk()
    except IndexError:
        desk = Desk()
    apart: bool = kernels.note(desk.address, form.address, rows, flat, i, *name, total // len(x), total)
    if total <= CHUNK:
        if apart:
            kernels.step(*desk.scratch, desk.taken, total, total, desk.call)
        _desks.append(desk)
    elif apart:
        _share(desk, total, (form, rows, flat))
    return apart


def _share(desk: Desk, total: int, memory: Any) -> None:
    """The call that is noted on this desk, among threads."""

    def work(_memory: Any = memory) -> None:
        own = Desk()
        kernels.step(*own.scratch, desk.taken, total, CHUNK, desk.call)

    def stop() -> None:
        desk.numbers[kernels.DESK_TAKEN] = total

    threads.together(work, stop, min(threads.count(), -(-total // CHUNK)))


# ---- calls as numbers --------------------------------------------------------------------------------------


def _columns(present: int) -> int:
    """Bits of those that are read: a clamp takes both bounds, also where only one of them counts."""
    return present | (BOUNDS if present & BOUNDS else 0)


def _program_of(call: Step) -> NDArray[np.int64]:
    return program(call.rows.active, tuple(out is not None for out in call.outputs), call.masked)


@lru_cache(1024)
def program(present: int, wanted: tuple[bool, ...], masked: bool) -> NDArray[np.int64]:
    """The affine forms of these columns that such a call needs (kernels.FORM_TOTAL, ..)."""
    outputs = [AFFINE[o] for o in range(3) if wanted[o] or (masked and o == 1)]
    clean = masked or any(present >> (first + 1 + D) & 1 for first in outputs)
    clamped = not masked and present & BOUNDS != 0
    forms = []
    for first in ([CLEAN] if clean else []) + outputs:
        slots = 3 if first == CLEAN else Z + 1
        terms = [slot for slot in ORDER if slot < slots and present >> (first + 1 + slot) & 1]
        total = VALUES + D if first == CLEAN else RESULT + AFFINE.index(first)
        constant = first if present >> first & 1 else MINUS_ZERO if terms else ZERO
        rows = [(first + 1 + slot, VALUES + slot) for slot in terms] or [(ZERO, MINUS_ZERO)]  # x - 0 is x, -0 too
        forms.append([total, constant, int(first == CLEAN and clamped), len(rows), *chain(*rows)])
    table = np.zeros((len(forms), kernels.FORM_NUMBERS), np.int64)
    for row, form in zip(table, forms, strict=True):
        row[: len(form)] = form
    return table


def _streams(call: Step, real: Any) -> NDArray[np.int64]:
    """Of each array that is read, then of each that is written: kernels.STREAM_ARRAY, .."""
    arrays = [(VALUES + slot, a) for slot, a in enumerate(call.inputs) if a is not None]
    arrays += [(RESULT + o, a) for o, a in enumerate(call.outputs) if a is not None]
    # One of several outputs, or one to which a mask adds, may lie on an input that is still read after it is computed.
    copied = RESULT if call.masked or sum(out is not None for out in call.outputs) > 1 else ZERO
    rows = [(a.ctypes.data, _kind(a.dtype, real, row >= copied), a.itemsize, row) for row, a in arrays]
    return np.array(rows, np.int64)


def _kind(dtype: np.dtype[Any], real: Any, copied: bool) -> int:
    if dtype == real:
        return SAME if copied else IN_PLACE
    return KINDS.get(dtype, BF16)


def _fields(call: Step) -> NDArray[np.int64]:
    rows = [_field(noise, call.sample_shape) for noise in call.noise] or [(0,)]
    longest = max(map(len, rows))
    return np.array([row + (0,) * (longest - len(row)) for row in rows], np.int64)


def _field(noise: Noise, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Its numbers: kernels.FIELD_KEY0, .."""
    ids = noise.sample
    sample = (0, ids.ctypes.data) if isinstance(ids, np.ndarray) else (ids, 0)
    name = (noise.seed & 0xFFFFFFFF, noise.seed >> 32, *sample, noise.step, noise.stream)
    start, run, lengths, strides = window_runs(noise, shape)
    return *name, start, run, len(lengths), *lengths, *strides
