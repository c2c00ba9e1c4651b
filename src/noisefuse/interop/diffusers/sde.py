# SPDX-License-Identifier: Apache-2.0
"""Steps that draw noise, for flow matching in diffusers: rows of the samplers, with their log-densities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

import noisefuse as nf

SDES: dict[str, Callable[..., Any]] = {
    "sde": nf.samplers.flow_sde,
    "cps": nf.samplers.flow_cps,
    "dance_sde": nf.samplers.dance_sde,
}
LEVEL = {"sde": "noise_level", "cps": "noise_level", "dance_sde": "eta"}


@dataclass
class FlowMatchSDEDiscreteSchedulerOutput(BaseOutput):
    """The result of a step of `FlowMatchSDEDiscreteScheduler`, with return_dict=False a tuple in this order.

    Attributes:
        prev_sample: x', in the model output's dtype.
        log_prob: float32 (B,), the mean over a sample's elements; None if it is not wanted.
        prev_sample_mean: the Gaussian's mean, float32 (float64 if the sample is).
        std_dev_t: the Gaussian's standard deviation, for "sde" divided by sqrt(sigma - sigma'): a number, or (B, 1, ..)
            if each sample has its own time.
    """

    prev_sample: Tensor
    log_prob: Tensor | None
    prev_sample_mean: Tensor
    std_dev_t: Tensor


@dataclass(frozen=True)
class Transitions:
    """The rows of a run, of one kind and noise level."""

    kind: str
    table: nf.Tableau
    mean: nf.Tableau
    std_dev: Any  # each row's, by verl-omni's definition
    sqrt_dt: Any  # each row's

    def take(
        self, i: Any, x: Tensor, m: Tensor, draw: Callable[[], Any], x_next: Tensor | None, dtype: torch.dtype,
        log_prob: bool, constants: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
        """Returns x' of this dtype, its log-density (of the rounded x'), the mean, and std_dev.

        i: a row, or (B,) of them. draw: returns the noise of a step whose x' is not given. constants: whether the
        log-density has the Gaussian's constants; that of "cps" never has them.
        """
        kind = torch.promote_types(x.dtype, m.dtype)
        x, m, log_density = x.to(kind), m.to(kind), None
        density = "squared" if self.kind == "cps" else "full" if constants else "no_constants"
        law: Any = {"reduction": "mean", "density": density}
        if x_next is None:
            z = draw()
            z = z.to(kind) if isinstance(z, Tensor) and kind is torch.float64 else z
            if log_prob and dtype is kind and isinstance(i, int):
                x_next, log_density = nf.density.update_with_log_prob(self.table, i, x, m, z, **law)
            else:
                x_next = nf.update(self.table, i, x.detach(), m.detach(), noise=z).to(dtype)
        if log_prob and log_density is None:
            wide = torch.promote_types(kind, x_next.dtype)
            then = x_next.detach().to(wide)
            log_density = nf.density.log_prob(self.table, i, x.to(wide), m.to(wide), then, **law)
        wide = torch.promote_types(kind, torch.float32)
        mean: Tensor = nf.update(self.mean, i, x.to(wide), m.to(wide))
        std = _of_rows(self.std_dev, i, (), x.device)
        std = std if isinstance(i, int) else std.reshape(-1, *[1] * (x.dim() - 1))
        return x_next.to(dtype), None if log_density is None else log_density.float(), mean, std

    def roots(self, i: Any, x: Tensor) -> Tensor:
        """Returns sqrt(sigma - sigma') for each sample, (B,)."""
        return _of_rows(self.sqrt_dt, i, x.shape[:1], x.device)


def _of_rows(numbers: Any, i: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns the numbers of rows (B,), or one row's number in this shape. The latter needs no copy to the device."""
    if isinstance(i, int):
        return torch.full(shape, numbers[i], dtype=torch.float32, device=device)
    return torch.as_tensor(numbers[i], dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def transitions(kind: str, sigmas: Sequence[float], level: float) -> Transitions:
    """Returns the transitions of these sigmas, the last of them 0. ValueError: the kind or the sigmas are wrong."""
    if kind not in SDES:
        raise ValueError(f"sde_type = {kind!r}: expected one of {', '.join(map(repr, SDES))}")
    if len(sigmas) < 2 or sigmas[-1] != 0:
        raise ValueError("sigmas: expected a run down to 0, as set_timesteps makes it")
    table = SDES[kind](nf.Schedule.flow(1000), levels=list(sigmas[:-1]), **{LEVEL[kind]: level}).tableau
    rows = table.rows.copy()
    rows["out"]["z"] = 0
    std, sqrt_dt = table.rows["out"]["z"], np.sqrt(-np.diff(sigmas))
    return Transitions(
        kind, table, nf.Tableau(rows, name=f"{table.name}: mean"), std / sqrt_dt if kind == "sde" else std, sqrt_dt
    )
