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

from ..call.description import CrossEntropy, Loss, Masks, Pyramid, Race, Step, Walk
from ..call.packed import (
    address,
    pack_cross_entropy,
    pack_loss,
    pack_masks,
    pack_on_host,
    pack_pyramid,
    pack_race,
)
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
torch_normals: Callable[[NDArray[np.uint64], NDArray[Any]], None] = _native.torch_normals
# Large ones in memory that earlier outputs gave back.
empty: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]] = _native.empty
tests_itself = False


def step(call: Step) -> None:
    numbers, _memory = pack_on_host(call)
    _native.run("step", numbers)


def walk(call: Walk) -> None:
    numbers, _memory = pack_on_host(call.first, call.keep)
    _native.run("walk", numbers)


def loss(call: Loss) -> None:
    numbers, _memory = pack_on_host(call.residual, loss=pack_loss(call, address))
    _native.run("loss", numbers)


def repeated_loss(call: Loss) -> None:
    """Does the loss at each of the next steps of its noises: its losses are (steps, batch)."""
    numbers, _memory = pack_on_host(call.residual, loss=pack_loss(call, address))
    _native.run("repeated_loss", numbers)


def step_and_loss(before: Step, call: Loss) -> None:
    step, _memory = pack_on_host(before)
    loss, _others = pack_on_host(call.residual, loss=pack_loss(call, address))
    _native.run("step_and_loss", step, loss)


def mask(call: Masks) -> None:
    numbers, _memory = pack_on_host(call.step)
    _native.mask(numbers, pack_masks(call, address))


def pyramid(call: Pyramid) -> None:
    numbers, _memory = pack_pyramid(call)
    _native.pyramid(numbers)


def race(call: Race) -> None:
    numbers, _memory = pack_race(call)
    _native.race(numbers)


def cross_entropy(call: CrossEntropy) -> None:
    _native.cross_entropy(pack_cross_entropy(call))


def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    out = np.empty_like(counter)
    _native.philox(counter, key, out)
    return out
