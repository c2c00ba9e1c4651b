# SPDX-License-Identifier: Apache-2.0
"""Calls as the bytes that compiled kernels take (csrc/core/call.h)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from ctypes import addressof, c_char
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..language.levels import FLOATS, LEVELS
from ..language.noise import Noise
from ..language.rows import Z
from .description import AXES, FLOAT64, CrossEntropy, Draw, Loss, Masks, Pyramid, Race, Step, window_runs

# The enums of csrc/core/call.h, in its order.
DTYPES = {name: code for code, name in enumerate((*FLOATS, *LEVELS))}
DRAWS: dict[Draw, int] = {"none": 0, "normal": 1, "uniform": 2, "words": 3}


# This mirrors csrc/core/call.h, which has the comments. A test compares the two.
FIELD = np.dtype(
    [
        *((name, "u8") for name in ("seed", "sample", "samples", "counter")),
        *((name, "u4") for name in ("step", "stream")),
        *((name, "i8") for name in ("start", "run", "axes")),
        *((name, "i8", AXES) for name in ("shape", "stride")),
    ]
)
CALL = np.dtype(
    [
        *((name, "i8") for name in ("batch", "size")),
        *(("rows", "u8"), ("n_rows", "i8"), ("active", "u8"), ("index", "u8"), ("segment", "i8"), ("period", "i8")),
        *(("in", "u8", Z + 1), ("out", "u8", 3), ("in_type", "i4", Z + 1)),
        *((name, "i4") for name in ("type", "out_type", "draw", "step_by_index")),
        *((name, "i4") for name in ("masked", "field_per_sample", "by_level")),
        *(("fields", "u8"), ("transitions", "u8"), ("keep", "u8"), ("times", "i8")),
        *(("piece", "i8"), ("weights", "u8"), ("upstream", "u8"), ("upstream_step", "i8"), ("g", "f8"), ("n", "f8")),
        *(("losses", "u8"), ("n_losses", "i8"), ("chunk_sums", "u8")),
    ],
    align=True,
)

MASKS = np.dtype(
    [
        *((name, "u8") for name in ("tokens", "out", "masked", "where", "p")),
        *(("segment", "i8"), ("mask", "u8"), ("vocabulary", "u8"), ("bytes", "i4"), ("complement", "i4")),
    ],
    align=True,
)
RACE = np.dtype(
    [
        *((name, "i8") for name in ("rows", "of_sample", "n", "first")),
        *((name, "u8") for name in ("x", "position", "where", "temperature", "top_p", "top_k", "fields", "token")),
        *((name, "u8") for name in ("log_prob", "log_prob_raw", "entropy", "margin", "rank")),
        *((name, "u8") for name in ("score", "winner", "chunk_largest", "plain", "tempered", "bad")),
        *(("chunks", "i8"), ("type", "i4"), ("each", "i4"), ("field_per_sample", "i4"), ("token_is_32", "i4")),
    ],
    align=True,
)

CROSS_ENTROPY = np.dtype(
    [
        *((name, "i8") for name in ("rows", "n")),
        *((name, "u8") for name in ("x", "id", "masked", "weight", "upstream")),
        *((name, "i8") for name in ("weight_step", "upstream_step")),
        *(("loss", "u8"), ("gradient", "u8"), ("mean_of", "f8"), ("type", "i4"), ("padding", "i4")),
    ]
)


LEVEL = np.dtype(
    [
        *((name, "u8") for name in ("planes", "above", "left", "down", "right")),
        *(("height", "i8"), ("width", "i8"), ("weight", "f8")),
    ]
)
PYRAMID = np.dtype(
    [
        *((name, "u8") for name in ("out", "scale", "levels")),
        *((name, "i8") for name in ("n_levels", "planes", "height", "width")),
        *(("type", "i4"), ("padding", "i4")),
    ]
)


def packer(dtype: np.dtype[Any]) -> struct.Struct:
    """Returns a packer of records of this dtype, from their numbers in order (nested records: from their bytes). It is
    ten times as fast as NumPy."""
    letters = {"u8": "Q", "i8": "q", "u4": "I", "i4": "i", "f8": "d"}
    parts, end = "<", 0
    for field, offset, *_ in (dtype.fields or {}).values():
        kind = f"{field.itemsize}s" if field.names else f"{math.prod(field.shape)}{letters[field.base.str[1:]]}"
        parts, end = f"{parts}{offset - end}x{kind}", offset + field.itemsize
    made = struct.Struct(f"{parts}{dtype.itemsize - end}x")
    assert made.size == dtype.itemsize
    return made


_CALL, _MASKS, _RACE, _CROSS_ENTROPY = packer(CALL), packer(MASKS), packer(RACE), packer(CROSS_ENTROPY)
_LEVEL, _PYRAMID = packer(LEVEL), packer(PYRAMID)
_FIELD, _AXES = packer(np.dtype(FIELD.descr[:-2])), packer(np.dtype(FIELD.descr[-2:]))
_NO_AXES = bytes(_AXES.size)
Place: TypeAlias = Callable[[Any], int]  # returns an array's address for kernels; a copy that it makes, it keeps alive


def pack_field(noise: Noise, shape: tuple[int, ...], place: Place) -> bytes:
    """Returns the field of a Noise for samples of this shape."""
    ids, step = noise.sample, noise.step
    sample, samples = (ids, 0) if isinstance(ids, int) else (0, place(ids))
    step, counter = (step, 0) if isinstance(step, int) else (0, place(step))
    start, run, lengths, strides = window_runs(noise, shape)
    rest = (0,) * (AXES - len(lengths))
    axes = _AXES.pack(*lengths, *rest, *strides, *rest) if lengths else _NO_AXES
    return _FIELD.pack(noise.seed, sample, samples, counter, step, noise.stream, start, run, len(lengths)) + axes


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
    return _CALL.pack(
        *(call.batch, call.size, rows, len(call.rows.table), call.rows.active, index, call.segment, call.period),
        *[0 if a is None else place(a) for a in (*call.inputs, *call.outputs)],
        *codes,
        *(dtype_code(dtype), dtype_code(dtype if out is None else out.dtype), DRAWS[call.draw]),
        *(call.step_by_index, call.masked, len(call.noise) > 1, call.by_level),
        *(fields, 0 if call.transitions is None else place(call.transitions)),
        *(0 if keep is None else place(keep), 0 if keep is None else len(keep)),
        *loss,
    )


def pack_on_host(
    call: Step, keep: NDArray[np.int64] | None = None, loss: Sequence[Any] = NO_LOSS
) -> tuple[bytes, NDArray[np.uint8]]:
    """Returns the bytes of a CALL on host memory, and the fields that it points to, which must live as long."""
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


def pack_masks(call: Masks, place: Place) -> bytes:
    """Returns the bytes of MASKS, which go with those of its step."""
    masked = call.step.outputs[0]
    assert masked is not None
    where = 0 if call.where is None else place(call.where)
    return _MASKS.pack(
        *(place(call.tokens), place(call.out), place(masked), where, place(call.p)),
        *(call.segment, call.mask % (1 << 64), call.vocabulary, call.tokens.itemsize, call.complement),
    )


def pack_race(call: Race) -> tuple[bytes, NDArray[np.uint8]]:
    """Returns the bytes of a RACE, and the fields that it points to, which must live as long."""
    fields = pack_fields(call.noise, (call.of_sample, call.n), address)
    parts, token = call.parts, call.token
    of_parts = (None,) * 5 if parts is None else (parts.score, parts.winner, parts.largest, parts.plain, parts.tempered)
    outputs = [call.info.get(name) for name in ("log_prob", "log_prob_raw", "entropy", "margin", "rank")]
    inputs = (call.logits, call.positions, call.where, call.temperature, call.top_p, call.top_k, fields, token)
    numbers = _RACE.pack(
        *(call.rows, call.of_sample, call.n, call.first),
        *[0 if a is None else address(a) for a in (*inputs, *outputs, *of_parts, call.bad)],
        *(call.chunks, 0 if call.logits is None else dtype_code(call.logits.dtype)),
        *(len(call.temperature) > 1, len(call.noise) > 1, token is not None and token.itemsize == 4),
    )
    return numbers, fields


def pack_cross_entropy(call: CrossEntropy) -> bytes:
    arrays = call.logits, call.ids, call.masked, call.weight, call.upstream
    return _CROSS_ENTROPY.pack(
        *(*call.logits.shape, *map(address, arrays), len(call.weight) > 1, len(call.upstream) > 1),
        *(address(call.losses), 0 if call.gradient is None else address(call.gradient), call.mean_of),
        *(dtype_code(call.logits.dtype), 0),
    )


def pack_pyramid(call: Pyramid) -> tuple[bytes, object]:
    """Returns a Pyramid, and what has to stay in memory while it runs."""
    levels = np.array(
        [
            _LEVEL.pack(*map(address, (x.planes, x.above, x.left, x.down, x.right)), *x.planes.shape[1:], x.weight)
            for x in call.levels
        ]
    )
    places = map(address, (call.planes, call.scale, levels))
    return _PYRAMID.pack(*places, len(levels), *call.planes.shape, dtype_code(call.planes.dtype), 0), levels
