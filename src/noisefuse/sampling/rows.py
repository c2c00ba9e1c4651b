# SPDX-License-Identifier: Apache-2.0
"""Rows that depend on the call: guidance, thresholds, noise levels, and what rows remember."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments.arrays import host_floats, is_lazy
from ..arguments.types import Array
from ..ground.checks import is_tracer
from ..ground.libraries import library_for
from ..language.rows import PAST1, read
from ..language.tableau import Tableau, noising
from ..operations.update import update
from ..views import guidance


def oldest_past(tableau: Tableau) -> list[int]:
    """Returns the oldest past that each row reads: 0 for none, else 1 .."""
    oldest = np.zeros(len(tableau), np.int64)
    for slot in range(tableau.slots):
        oldest[read(tableau.numbers, 1 + PAST1 + slot)] = slot + 1
    found: list[int] = oldest.tolist()
    return found


def first_without_past(push: list[int], reads: list[int], slots: int, start: int) -> int | None:
    """Returns the first row that reads more than the rows from ``start`` on have kept."""
    kept = 0
    for i in range(start, len(push)):
        if kept >= slots:
            break
        if reads[i] > kept:
            return i
        kept += push[i]
    return None


def guided(
    table: Tableau, mixed: Callable[[float], Tableau], i: int, x: Array, model_output: Any,
    scale: float | npt.ArrayLike | None,
) -> tuple[Tableau, Any]:  # fmt: skip
    """Returns the table with guidance folded in, and its row or, for a scale per sample, its rows (B,)."""
    if scale is None or not isinstance(model_output, tuple) or len(model_output) != 2:
        output = f"a tuple of {len(model_output)}" if isinstance(model_output, tuple) else type(model_output).__name__
        raise TypeError(
            f"guidance needs both: model_output=(uncond, cond) and guidance_scale, got {output} and "
            f"{'no' if scale is None else 'a'} guidance_scale; without guidance the model returns one array"
        )
    if is_tracer(scale):
        raise TypeError(
            "guidance_scale: JAX traces it; expected a number that is known, as it is a part of the program"
        )
    weights = host_floats("guidance_scale", scale)
    if not np.all(np.isfinite(weights)):
        raise ValueError(f"guidance_scale must be finite, got {scale!r}")
    if weights.shape not in ((), x.shape[:1]):
        raise ValueError(f"guidance_scale must be a number or of shape {tuple(x.shape[:1])}, got {weights.shape}")
    if weights.ndim == 0:
        return mixed(float(weights)), i
    for_each = _mixed_for_each if type(i) is int else _mixed_for_each.__wrapped__
    return for_each(table, i, tuple(weights.tolist())), np.arange(len(weights))


def mixed(table: Tableau, weight: float) -> Tableau:
    return table.mixed([guidance(weight)])


@lru_cache(maxsize=256)
def _mixed_for_each(table: Tableau, i: int, weights: tuple[float, ...]) -> Tableau:
    """Returns row i for a scale per sample. It takes half a millisecond to make."""
    row = Tableau(table.rows[[i]], name=table.name, threshold=table.threshold)
    return row.mixed([guidance(w) for w in weights])


def thresholded(table: Tableau, rows: Any, x: Array, model_output: Any) -> tuple[Tableau, Any]:
    """Returns a row for each sample, with 1 / s written into D's coefficients; see ``samplers.Threshold``."""
    assert table.threshold is not None
    if is_lazy(x):
        raise NotImplementedError("Threshold: dynamic thresholding does not take dask arrays")
    ratio, maximum = table.threshold
    clean = update(_clean(table), rows, x, model_output)
    if is_tracer(clean):
        raise NotImplementedError("Threshold: its rows depend on the data, which is not known while JAX traces")
    if getattr(clean, "requires_grad", False):
        raise NotImplementedError(
            "Threshold: dynamic thresholding has no gradient: detach x and model_output, or use torch.no_grad()"
        )
    clean = np.atleast_1d(library_for(clean).to_numpy(clean))
    if clean.size == 0:
        return table, rows
    q = _quantiles(np.abs(clean.reshape(len(clean), -1)), ratio)
    s = np.clip(np.nan_to_num(q, nan=1.0), 1, maximum)  # NaN in data must not become a coefficient
    picked = table.rows[np.broadcast_to(rows, s.shape)]
    for symbol in ("k", "x", "m1", "m2"):
        picked["clean"][symbol] /= s
    picked["clean"]["lo"], picked["clean"]["hi"] = -1, 1
    return Tableau(picked, name=table.name), np.arange(len(s))


def _quantiles(values: npt.NDArray[Any], ratio: float) -> npt.NDArray[np.float64]:
    """Returns np.quantile of each row, to the bit, in a fifth of its time. The quantile of a row with NaN is NaN."""
    if values.dtype.itemsize < 4:
        values = values.astype(np.float32)
    place = (values.shape[1] - 1) * ratio
    share = place - int(place)
    found = np.empty(len(values))
    for n, row in enumerate(values):
        low, high = map(float, _neighbours(row, int(place)))
        found[n] = high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share
    return found


def _neighbours(row: npt.NDArray[Any], k: int) -> tuple[Any, Any]:
    """Returns numbers k and k + 1 of a row in ascending order, where NaN comes last; the last one twice."""
    few = np.sort(row[::_SAMPLED])
    i = k // _SAMPLED
    bound = few[max(0, i - 8 - 8 * math.isqrt(i * (len(few) - i) // len(few)))]  # 8 deviations of a random sample
    top = row[~(row < bound)]
    if (below := len(row) - len(top)) > k:
        top, below = row, 0
    parted = np.partition(top, k - below)
    after = parted[k - below + 1 :]
    return parted[k - below], after.min() if len(after) else parted[-1]


_SAMPLED = 64  # one of so many numbers makes the guess


@lru_cache(maxsize=64)
def _clean(table: Tableau) -> Tableau:
    """Returns a table whose output is D."""
    rows = np.zeros(len(table), table.rows.dtype)
    rows["clean"] = table.rows["clean"]
    rows["out"]["d"] = 1
    return Tableau(rows, name=f"{table.name}: D")


SAME = noising(np.ones(1), np.zeros(1))


def times_of(table: Tableau, clock: Callable[[Any, Any], Any] | None) -> list[float]:
    """Returns the time at which each row begins, on the clock of ``Sampler.path``."""
    alpha, sigma = table.alpha, table.sigma
    own = table.scale * alpha, table.scale * sigma  # the schedule's, of rows for x / alpha
    if clock is not None:
        times = np.asarray(clock(alpha, sigma), np.float64)
    elif np.allclose(sum(own), 1, rtol=0, atol=1e-12):
        times = own[1]
    else:
        with np.errstate(divide="ignore"):
            times = sigma / alpha
    if times.shape != sigma.shape or not np.all(np.isfinite(times)):
        raise ValueError(f"path: expected a finite time for each of {len(sigma)} rows, got {times!r}; give a clock")
    found: list[float] = times.tolist()
    return found
