# SPDX-License-Identifier: Apache-2.0
"""A checked call without its numbers: what JAX compares, and what each of its operands is."""

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
except ImportError:  # installed without its extension
    native = None

# Roles of operands beyond slots of inputs, and kinds of calls, as csrc/xla.cpp numbers them.
ROWS, FIELDS, INDEX, STEP, IDS, START, WEIGHTS, SHARD, LAW = range(Z + 1, Z + 10)
STEP_CALLS, WALKS, LOSSES = range(3)

# Handlers of other versions have other names: a program that was stored finds its own or none.
TARGET = f"noisefuse_{crc32(repr((CALL.descr, FIELD.descr, LAW)).encode()):08x}"
NAMES = {code: name for name, code in DTYPES.items()}


@dataclass(frozen=True)
class Described:
    """A call without its numbers and its memory."""

    call: bytes  # of a CALL whose addresses are 0
    kind: int
    roles: tuple[int, ...]  # of the operands
    outputs: tuple[tuple[tuple[int, ...], str], ...]  # shapes and dtypes
    way: str  # how it is run, see `way`
    sample: tuple[int, ...] = ()  # the shape of one
    window: tuple[int, ...] = ()  # of a full one, where there is a window
    keep: tuple[int, ...] = ()  # of a walk: the row of each time in the output, or -1
    alpha: tuple[float, ...] = ()  # of a walk: what x0 is multiplied with, at each time that is kept
    factors: tuple[float, ...] = ()  # of a density: of each row what the sum of squares is multiplied with
    repeat: int = 0  # how many elements vmap has: operands that are `several`, and all outputs, have one axis more
    several: tuple[bool, ...] = ()
    whole: bool = False  # not to be cut into parts of a batch
    in_place: bool = False  # whether the first output may take the memory of x

    @property
    def record(self) -> Any:
        return np.frombuffer(self.call, CALL)[0]

    @property
    def floats(self) -> str:
        """The dtype of the arithmetic."""
        return "float64" if self.record["type"] == DTYPES["float64"] else "float32"

    def output_shapes(self) -> list[tuple[tuple[int, ...], str]]:
        lead = (self.repeat,) if self.repeat else ()
        return [((*lead, *shape), dtype) for shape, dtype in self.outputs]

    def attributes(self) -> dict[str, Any]:
        """As the handler takes them: arrays of 64-bit integers."""
        numbers = {
            "call": np.frombuffer(self.call, np.int64),
            "roles": self.roles,
            "several": self.several or (False,) * len(self.roles),
            "repeat": (self.repeat or 1, self.kind),
            "window": self.window,
            "keep": self.keep,
        }
        return {name: np.array(values, np.int64) for name, values in numbers.items()}


WAYS = ("ffi", "callback", "jnp")
_wanted = os.environ.get("NOISEFUSE_JAX")
if _wanted and _wanted not in WAYS:
    raise ValueError(f"NOISEFUSE_JAX={_wanted!r}: expected one of {', '.join(WAYS)}")


def way() -> str:
    """How calls are run from now on: by XLA's FFI where the platform has a handler and in jax.numpy where it has none;
    by Python, for a backend that somebody chose; or always in jax.numpy. NOISEFUSE_JAX says it, or the backend."""
    if _wanted:
        return _wanted
    backend = current().__name__.rpartition(".")[2]
    if native is None:
        return "jnp" if backend == "reference" else "callback"
    return "ffi" if backend == "native" else "callback"


def described(call: Step, kind: int, roles: Sequence[int], outputs: Any, **rest: Any) -> Described:
    """Of a checked call on arrays that stand for JAX's."""
    numbers = pack(call, lambda _: 0, 0, 0, 0, rest.pop("kept", None), rest.pop("loss", NO_LOSS))
    return Described(numbers, kind, tuple(roles), tuple(outputs), way(), **rest)


def field_bytes(call: Step) -> Any:
    return pack_fields(call.noise, call.sample_shape, lambda _: 0)
