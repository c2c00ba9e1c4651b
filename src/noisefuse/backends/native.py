# SPDX-License-Identifier: Apache-2.0
"""The native backend: it hands checked calls to the C++ extension."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

if find_spec("noisefuse._native") is None:
    raise ImportError(
        "its C++ extension was not built, as NOISEFUSE_PURE was set when noisefuse was installed; "
        "with a C++20 compiler, unset it and install noisefuse again"
    )
import noisefuse._native as _native

from ..call.packed import records
from ..language.noise import Noise
from . import threads

isa: str | None = os.environ.get("NOISEFUSE_ISA")
if isa:
    usable: list[str] = [name for name, supported in _native.isas().items() if supported]
    if isa not in usable:
        raise ValueError(f"NOISEFUSE_ISA={isa!r}: expected one of {', '.join(usable)}, which this processor has")
    _native.use_isa(isa)


def _share_threads() -> None:
    _native.set_num_threads(threads.count())


_share_threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_share_threads)

fast_row: Callable[..., Any] = _native.row
fast_random: Callable[..., Any] = _native.random
fast_mse: Callable[..., Any] = _native.mse
fast_density: Callable[..., Any] = _native.density
fast_density_gradient: Callable[..., Any] = _native.density_gradient
fast_divergence: Callable[..., Any] = _native.divergence
fast_tokens: Callable[..., Any] = _native.tokens
fast_categorical: Callable[..., Any] = _native.categorical
fast_cross_entropy: Callable[..., Any] = _native.masked_cross_entropy
fast_token_step: Callable[..., Any] = _native.token_step
fast_walk: Callable[..., Any] = _native.walk
fast_impulse: Callable[..., Any] = _native.impulse
fast_rician: Callable[..., Any] = _native.rician
fast_factors: Callable[..., Any] = _native.factors
fast_iso: Callable[..., Any] = _native.iso
fast_photons: Callable[..., Any] = _native.photons
named: Callable[[int, int, int], Noise] = _native.named
# Large ones in memory that earlier outputs gave back.
empty: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]] = _native.empty
tests_itself = False


def run(call: Any) -> None:
    """Runs a call of call/description.py: csrc/run/run.cpp has the operations, by the names of the classes."""
    memory: list[object] = []
    _native.run(type(call).__name__, *records(call, memory))
