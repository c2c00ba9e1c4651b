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


def impulse(image: Tensor, amount: float, noise: Any, salt: float) -> Tensor:
    """Runs `augment.impulse` on the pixels of one image (C, H, W). Gradients pass where nothing changes."""
    options: dict[str, Any] = {"layout": "CHW", "shared": True, "batched": False}
    noisy: Tensor = nf.augment.impulse(image.detach(), amount, noise, salt=salt, **options)
    if not (torch.is_grad_enabled() and image.requires_grad):
        return noisy
    changed = nf.augment.impulse(torch.zeros_like(image), amount, noise, salt=salt, values=(1.0, 1.0), **options)
    return torch.where(changed > 0, noisy, image)


def rician(x: Tensor, std: Any, noise: Any, mean: Any) -> Tensor:
    """Runs `augment.rician` on one image. Torch's arithmetic, which rounds more often, does so with a mean of the
    noise, tensors of numbers, gradients and on devices."""
    numbers = isinstance(std, float) and mean == 0
    if numbers and x.is_cpu and not (torch.is_grad_enabled() and x.requires_grad):
        result: Tensor = nf.augment.rician(x.detach(), std, noise, batched=False)
        return result
    real: Any = torch.promote_types(x.dtype, torch.float32)
    z = nf.randn((2, *x.shape), noise, dtype=real, batched=False, device=x.device)
    parts: Any = mean + std * z
    return torch.hypot(x + parts[0], parts[1]).to(x.dtype)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns floats as integers, to nearest even and clipped."""
    return x.round().clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max).to(dtype)


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        return _added(*given)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return *gradients, None, None, None
