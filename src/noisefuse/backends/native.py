# SPDX-License-Identifier: Apache-2.0
"""The native backend: hands checked calls to the C++ extension."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

if find_spec("noisefuse._native") is None:
    raise ImportError("its C++ extension was not built: there was no C++20 compiler when noisefuse was installed")
from .. import _native
from ..noise import Noise
from . import threads
from .call import Loss, Step, Walk, window_runs

if isa := os.environ.get("NOISEFUSE_ISA"):
    usable = [name for name, supported in _native.isas().items() if supported]
    if isa not in usable:
        raise ValueError(f"NOISEFUSE_ISA={isa!r}: expected one of {', '.join(usable)}, which this processor has")
    _native.use_isa(isa)

threads.from_environment()  # the extension reads it too, and says nothing where it is wrong

row = _native.row
mse = _native.mse

DRAWS = {"none": 0, "normal": 1, "uniform": 2}


def step(call: Step) -> None:
    _native.step(*_arguments(call, _double(call)))


def walk(call: Walk) -> None:
    _native.walk(*_arguments(call.first, _double(call.first)), call.keep)


def loss(call: Loss) -> None:
    weight = call.weight()
    more = call.piece, weight, call.factor(weight), call.losses
    _native.loss(*_arguments(call.residual, call.double), more)
    if call.losses is not None:
        call.losses[...] /= call.n


def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    out = np.empty_like(counter)
    _native.philox(counter, key, out)
    return out


def _double(call: Step) -> bool:
    return next(out for out in call.outputs if out is not None).dtype == np.float64


def _arguments(call: Step, double: bool) -> tuple[Any, ...]:
    return (
        call.batch,
        call.size,
        call.rows.table if double else call.rows.single,
        call.rows.present,
        call.index,
        call.segment,
        call.inputs,
        call.outputs,
        DRAWS[call.draw],
        call.step_by_index,
        tuple(_field(noise, call.sample_shape) for noise in call.noise),
        call.masked,
    )


def _field(noise: Noise, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """(seed, first sample, ids, step, stream, and the window: first element, run, lengths and strides over runs)."""
    ids = noise.sample
    name = (noise.seed, 0, ids) if isinstance(ids, np.ndarray) else (noise.seed, ids, None)
    return *name, noise.step, noise.stream, *window_runs(noise, shape)
