# SPDX-License-Identifier: Apache-2.0
"""The types of a run's arguments, for type checkers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypedDict

import numpy.typing as npt

from .. import density
from ..arguments.types import Array

Time: TypeAlias = Literal["scalar", "batch"]
Model: TypeAlias = Callable[[Any, Any], Any]
Models: TypeAlias = Array | tuple[Array, Array]


class StepOptions(TypedDict, total=False):
    """The options of `Sampler.step` that its results' type does not depend on."""

    guidance_scale: float | npt.ArrayLike | None
    out: Array | None
    denoised_out: Array | list[Array] | None


class LikelyStepOptions(StepOptions, density.LawOptions, total=False):
    """The options of `Sampler.step`, and those of log-densities."""


class RunOptions(TypedDict, total=False):
    """The options of `Sampler.sample` that its results' type does not depend on."""

    start: int
    time: Time | None
    guidance_scale: float | npt.ArrayLike | None
    progress: bool
    callback: Callable[[int, Array, Array], object] | None
    out: Array | None
    mask: Array | None
    known: Array | None


class LikelyRunOptions(RunOptions, density.LawOptions, total=False):
    """The options of `Sampler.sample`, and those of log-densities."""
