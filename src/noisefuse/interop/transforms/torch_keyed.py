# SPDX-License-Identifier: Apache-2.0
"""The parts that transforms of torch's tensors share: seeds from torch's generator, and noise that passes gradients
on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import noisefuse as nf


def word() -> Tensor:
    """Returns 64 bits of torch's default generator, (1,) int64: a tensor, so that a compiler can trace it."""
    return torch.empty(1, dtype=torch.int64).random_(-(1 << 63), None)


def add(x: Tensor, std: float, noise: Any, **options: Any) -> Tensor:
    """Runs `augment.gaussian`. If autograd watches, the gradient is that of the result."""
    apply: Any = _Added.apply if torch.is_grad_enabled() and x.requires_grad else _added
    result: Tensor = apply(x, std, noise, options)
    return result


def _added(x: Tensor, std: float, noise: Any, options: dict[str, Any]) -> Tensor:
    result: Tensor = nf.augment.gaussian(x.detach(), std, noise, **options)
    return result


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        return _added(*given)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return *gradients, None, None, None
