# SPDX-License-Identifier: Apache-2.0
"""Calls as the bytes that compiled kernels take (csrc/core/call.h)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ctypes import addressof, c_char
from functools import cache
from struct import Struct
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..ground.kept import kept_property
from ..language.levels import FLOATS, LEVELS
from ..language.noise import Noise
from ..language.rows import Z
from .description import AXES, FLOAT64, Draw, Loss, Step, Walk, window_runs

# The enums of csrc/core/call.h, in its order.
DTYPES = {name: code for code, name in enumerate((*FLOATS, *LEVELS))}
DRAWS: dict[Draw, int] = {"none": 0, "normal": 1, "uniform": 2, "words": 3}


class Layout:
    """The fields of a record and their places, which are those of the struct in C. A test compares the two.

    Attributes:
        pack: makes the bytes from the numbers in order (of nested records: from their bytes), in a tenth of NumPy's
            time.
        size: the number of bytes.
    """

    def __init__(self, kinds: Mapping[str, str | Layout]) -> None:
        """Takes the kind of one or more names: letters of Python's module `struct`, or a nested record."""
        self.kinds: dict[str, str | Layout] = {name: kind for names, kind in kinds.items() for name in names.split()}
        letters = [kind if isinstance(kind, str) else f"{kind.size}s" for kind in self.kinds.values()]
        whole = Struct("".join(letters) + "0q")
        self.pack: Callable[..., bytes] = whole.pack
        self.size: int = whole.size

    @kept_property
    def dtype(self) -> np.dtype[Any]:
        """The record as NumPy and its compilers read it."""
        fields: list[Any] = []
        for name, kind in self.kinds.items():
            if isinstance(kind, Layout):
                fields.append((name, kind.dtype))
            else:
                code = {"Q": "u8", "q": "i8", "I": "u4", "i": "i4", "d": "f8"}[kind[-1]]
                fields.append((name, code, int(kind[:-1])) if kind[:-1] else (name, code))
        return np.dtype(fields, align=True)


# csrc/core/call.h has the comments.
_HEAD = {"seed sample samples counter": "Q", "step stream": "I", "start run axes": "q"}
FIELD = Layout(_HEAD | {"shape stride": f"{AXES}q"})
CALL = Layout(
    {
        "batch size": "q", "rows": "Q", "n_rows": "q", "active index": "Q", "segment period by_column": "q",
        "in": f"{Z + 1}Q", "out": "3Q", "in_type": f"{Z + 1}i",
        "type out_type draw step_by_index masked field_per_sample by_level": "i",
        "fields transitions keep": "Q", "times piece": "q", "weights upstream": "Q", "upstream_step": "q", "g n": "d",
        "losses": "Q", "n_losses": "q", "chunk_sums": "Q",
    }
)  # fmt: skip
_pack_head, _pack_axes = Layout(_HEAD).pack, Struct(f"{2 * AXES}q").pack
_NO_AXES = bytes(2 * AXES * 8)
_KINDS = {"int": "q", "float": "d", "bool": "i", "np.dtype[Any]": "i", "Int32": "i", "UInt64": "Q"}


@cache
def layout_of(record: type[object]) -> Layout:
    """Returns the layout of a record of call/description.py, by its annotations. Calls in it have records of their
    own."""
    kinds = {name: str(getattr(kind, "__forward_arg__", kind)) for name, kind in record.__annotations__.items()}
    return Layout({name: _KINDS.get(kind, "Q") for name, kind in kinds.items() if kind not in ("Step", "Loss")})


Place: TypeAlias = Callable[[Any], int]  # returns an array's address for kernels; a copy that it makes, it keeps alive


def pack_field(noise: Noise, shape: tuple[int, ...], place: Place) -> bytes:
    """Returns the field of a Noise for samples of this shape."""
    ids, step = noise.sample, noise.step
    sample, samples = (ids, 0) if isinstance(ids, int) else (0, place(ids))
    step, counter = (step, 0) if isinstance(step, int) else (0, place(step))
    start, run, lengths, strides = window_runs(noise, shape)
    unused = (0,) * (AXES - len(lengths))
    axes = _pack_axes(*lengths, *unused, *strides, *unused) if lengths else _NO_AXES
    return _pack_head(noise.seed, sample, samples, counter, step, noise.stream, start, run, len(lengths)) + axes


def pack_fields(noises: Sequence[Noise], shape: tuple[int, ...], place: Place) -> NDArray[np.uint8]:
    fields = [pack_field(noise, shape, place) for noise in noises]
    return np.frombuffer(bytearray().join(fields), np.uint8)


@cache
def dtype_code(dtype: np.dtype[Any]) -> int:
    """Returns a dtype's code. KeyError: kernels do not know the dtype."""
    return DTYPES[dtype.name]


def address(a: NDArray[Any]) -> int:
    """Returns an array's address in host memory."""
    try:
        return addressof(c_char.from_buffer(a))  # type: ignore[arg-type]  # a quarter of the time of a.ctypes
    except (TypeError, ValueError):  # it is read-only, empty, or of a dtype that buffers do not know
        place: int = a.ctypes.data
        return place


NO_LOSS = 0, 0, 0, 0, 0.0, 0.0, 0, 0, 0


def pack(
    call: Step, place: Place, rows: int, fields: int, index: int,
    keep: NDArray[np.int64] | None = None, loss: Sequence[Any] = NO_LOSS,
) -> bytes:  # fmt: skip
    """Returns the bytes of a CALL. rows, fields and index are addresses."""
    codes = [0 if a is None else dtype_code(a.dtype) for a in call.inputs]
    dtype, out = call.dtype, call.outputs[0]
    return CALL.pack(
        *(call.batch, call.size, rows, len(call.rows.table), call.rows.active, index, call.segment, call.period, 0),
        *[0 if a is None else place(a) for a in (*call.inputs, *call.outputs)],
        *codes,
        *(dtype_code(dtype), dtype_code(dtype if out is None else out.dtype), DRAWS[call.draw]),
        *(call.step_by_index, call.masked, len(call.noise) > 1, call.by_level),
        *(fields, 0 if call.transitions is None else place(call.transitions)),
        *(0 if keep is None else place(keep), 0 if keep is None else len(keep)),
        *loss,
    )


def pack_on_host(call: Step | Walk | Loss) -> tuple[bytes, NDArray[np.uint8]]:
    """Returns the bytes of a CALL on host memory, and the fields that it points to, which must live as long."""
    keep, loss = None, NO_LOSS
    if isinstance(call, Walk):
        call, keep = call
    elif isinstance(call, Loss):
        loss, call = pack_loss(call, address), call.residual
    fields = pack_fields(call.noise, call.sample_shape, address)
    rows = call.rows.table if call.arithmetic == FLOAT64 else call.rows.single
    return pack(call, address, address(rows), address(fields), address(call.index), keep, loss), fields


def pack_loss(call: Loss, place: Place, chunk_sums: int = 0) -> tuple[Any, ...]:
    """Returns the numbers that a loss adds to those of its residual."""
    g, losses = call.upstream, call.losses
    by_value = isinstance(g, np.ndarray) and g.ndim == 0
    return (
        *(call.piece, 0 if call.weights is None else place(call.weights)),
        *((0, 0, float(g)) if by_value else (place(g), g.ndim, 0.0)),
        *(float(call.n), *((0, 0) if losses is None else (place(losses), losses.size)), chunk_sums),
    )


def records(call: Any, kept: list[object]) -> list[bytes]:
    """Returns the bytes of a call's records on host memory, those of calls in it first. A tuple is an array of records.
    `kept` gets what they point to, which must live as long."""
    if isinstance(call, _CALLS):
        numbers, fields = pack_on_host(call)
        kept.append(fields)
        return [numbers]
    packed: list[bytes] = []
    own: list[Any] = []
    for value in call:
        kind = type(value)
        if kind is np.ndarray:
            own.append(address(value))
        elif kind in _NUMBERS:
            own.append(value)
        elif value is None:
            own.append(0)
        elif kind is tuple:
            parts = [pack_field(x, (), address) if type(x) is Noise else records(x, kept)[0] for x in value]
            kept.append(array := np.frombuffer(bytearray().join(parts), np.uint8))
            own.append(address(array))
        elif kind in _CALLS:
            packed += records(value, kept)
        else:
            own.append(dtype_code(value) if isinstance(value, np.dtype) else address(value))
    record: Any = type(call)
    return [*packed, layout_of(record).pack(*own)] if own else packed


_CALLS, _NUMBERS = (Step, Walk, Loss), (int, float, bool)
