# SPDX-License-Identifier: Apache-2.0
"""A checked call without its numbers, which JAX compares, and the roles of its operands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from ...backends import current
from ...call.description import Step
from ...call.packed import CALL, DTYPES, FIELD, NO_LOSS, pack, pack_fields
from ...language.rows import Z

native: Any
try:
    from ... import _native as native
except ImportError:  # installed without the extension
    native = None

# Roles of operands beyond the inputs' slots, and kinds of calls, with the numbers of csrc/xla/xla.cpp.
ROWS, FIELDS, INDEX, STEP, IDS, START, WEIGHTS, SHARD, LAW = range(Z + 1, Z + 10)
STEP_CALLS, WALKS, LOSSES, RACES = range(4)
# Those of a race, in place of the slots that follow the logits: a number for each sample, and for each row.
TEMPERATURE, TOP_K, TOP_P, WHERE, POSITIONS = range(1, 6)

# Handlers of other versions have other names: a stored program finds its own handler or none.
TARGET = f"noisefuse_{crc32(repr((CALL.dtype.descr, FIELD.dtype.descr, LAW, RACES)).encode()):08x}"
NAMES = {code: name for name, code in DTYPES.items()}


@dataclass(frozen=True)
class Described:
    """A call without its numbers and its memory."""

    call: bytes  # a CALL whose addresses are 0
    kind: int
    roles: tuple[int, ...]  # the operands' roles
    outputs: tuple[tuple[tuple[int, ...], str], ...]  # their shapes and dtypes
    way: str  # the way of execution, see `way`
    sample: tuple[int, ...] = ()  # one sample's shape
    window: tuple[int, ...] = ()  # a full sample's shape, if there is a window
    keep: tuple[int, ...] = ()  # for a walk: the output row of each time, or -1; for a race: the info's numbers
    alpha: tuple[float, ...] = ()  # for a walk: the factor of x0 at each kept time
    factors: tuple[float, ...] = ()  # for a density: each row's factor of the sum of squares
    repeat: int = 0  # the number of vmap's elements: operands that are `several`, and all outputs, have one more axis
    several: tuple[bool, ...] = ()
    whole: bool = False  # it must not be split into parts of a batch
    in_place: bool = False  # whether the first output may take the memory of x

    @property
    def record(self) -> Any:
        return np.frombuffer(self.call, CALL.dtype)[0]

    @property
    def floats(self) -> str:
        """Returns the dtype of the arithmetic."""
        return "float64" if self.record["type"] == DTYPES["float64"] else "float32"

    def output_shapes(self) -> list[tuple[tuple[int, ...], str]]:
        lead = (self.repeat,) if self.repeat else ()
        return [((*lead, *shape), dtype) for shape, dtype in self.outputs]

    def attributes(self) -> dict[str, Any]:
        """Returns the attributes as the handler takes them: arrays of 64-bit integers."""
        numbers = {
            "call": np.frombuffer(self.call, np.int64),
            "roles": self.roles,
            "several": self.several or (False,) * len(self.roles),
            "repeat": (self.repeat or 1, self.kind),
            "window": self.window,
            "keep": self.keep,
        }
        return {name: np.array(values, np.int64) for name, values in numbers.items()}


WAYS = ("ffi", "callback")
_wanted = os.environ.get("NOISEFUSE_JAX")
if _wanted and _wanted not in WAYS:
    raise ValueError(f"NOISEFUSE_JAX={_wanted!r}: expected one of {', '.join(WAYS)}")


def way() -> str:
    """Returns how later calls run: by the platform's kernels, on CPUs by XLA's FFI; or by Python, if a backend was
    chosen. NOISEFUSE_JAX or the backend decides."""
    if _wanted:
        return _wanted
    return "ffi" if native is None or current().__name__.endswith(".native") else "callback"


def described(call: Step, kind: int, roles: Sequence[int], outputs: Any, **rest: Any) -> Described:
    """Describes a checked call on arrays that stand for JAX's."""
    numbers = pack(call, lambda _: 0, 0, 0, 0, rest.pop("kept", None), rest.pop("loss", NO_LOSS))
    return Described(numbers, kind, tuple(roles), tuple(outputs), way(), **rest)


def field_bytes(call: Step) -> Any:
    return pack_fields(call.noise, call.sample_shape, lambda _: 0)
