# SPDX-License-Identifier: Apache-2.0
"""The parts that transforms of torch's tensors share: seeds from torch's generator, and noise that passes gradients
on, within torch.compile and torch.vmap too.

There a noise is a row of three numbers, seed, sample and step, int64, as tensors can hold it: (1, 3) for all images, or
(B, 3) for each of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import noisefuse as nf

from ..torch.internals import is_compiling, operator

SIGN = -(1 << 63)


def word() -> Tensor:
    """Returns 64 bits of torch's default generator, (1,) int64: a tensor, so that a compiler can trace it. (The range
    lacks one number, so that `randint` takes it.)"""
    return torch.randint(SIGN, (1 << 63) - 1, (1,)) ^ SIGN


def row_of(noise: nf.Noise | None) -> Tensor:
    """Returns the row of a noise of one sample. None: of 64 bits of torch's generator."""
    if noise is None:
        return torch.nn.functional.pad(word(), (0, 2))[None]
    return torch.tensor([[noise.seed - (noise.seed >> 63 << 64), int(noise.sample), noise.step]])


def noise_of(rows: Any, one: bool) -> Any:
    """Returns the noise of rows: one Noise, if they are of one image or share seed and step, as those drawn together
    do, or a list. A Noise stays."""
    if isinstance(rows, nf.Noise):
        return rows
    listed = [(seed % (1 << 64), sample, step) for seed, sample, step in rows.tolist()]
    named = [nf.Noise(seed, sample=sample, step=step) for seed, sample, step in listed]
    if one:
        return named[0]
    if len({(seed, step) for seed, _, step in listed}) == 1:
        return named[0].at(sample=[sample for _, sample, _ in listed])
    return named


def is_plain(x: Tensor) -> bool:
    """Tells whether x has memory that can be read, and nothing watches it."""
    if is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return False
    try:
        x.data_ptr()
    except RuntimeError:  # a tensor of torch.func
        return False
    return True


def add(
    x: Tensor, std: float, noise: nf.Noise | Tensor, mean: float = 0.0, clip: tuple[float, float] | None = None,
    dtype: torch.dtype | None = None, batched: bool = True,
) -> Tensor:  # fmt: skip
    """Runs `augment.gaussian`. Gradients are those of the result."""
    if is_plain(x):
        named = noise_of(noise, not batched)
        plain: Tensor = nf.augment.gaussian(x, std, named, mean=mean, clip=clip, dtype=dtype, batched=batched)
        return plain
    rows = row_of(noise) if isinstance(noise, nf.Noise) else noise
    still = x.detach()
    noisy: Tensor = torch.ops.noisefuse.add_noise(still, rows, std, mean, dtype, batched)
    noisy = noisy + (x - still).to(noisy.dtype)  # 0, whose gradient is that of x
    return noisy if clip is None else noisy.clamp(*clip)


@operator("add_noise(Tensor x, Tensor rows, float std, float mean, ScalarType? dtype, bool batched) -> Tensor")
def _add(x: Tensor, rows: Tensor, std: float, mean: float, dtype: torch.dtype | None, batched: bool) -> Tensor:
    noise = noise_of(rows, not batched)
    noisy: Tensor = nf.augment.gaussian(x.detach(), std, noise, mean=mean, dtype=dtype, batched=batched)
    return noisy


@_add.register_fake
def _(x: Tensor, rows: Tensor, std: float, mean: float, dtype: torch.dtype | None, batched: bool) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


@_add.register_vmap
def _(
    info: Any, dims: Any, x: Tensor, rows: Tensor, std: float, mean: float, dtype: torch.dtype | None, batched: bool
) -> tuple[Tensor, int]:
    x, rows = _in_front(info, dims, x, rows)
    noisy = torch.ops.noisefuse.add_noise(x.flatten(0, int(batched)), rows.flatten(0, 1), std, mean, dtype, True)
    return noisy.reshape(x.shape), 0


def _in_front(info: Any, dims: Sequence[int | None], *tensors: Tensor) -> list[Tensor]:
    """Returns tensors of vmap with its axis as the first one."""
    return [
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, dims, strict=False)
    ]


def salt_and_pepper(images: Tensor, amounts: Tensor, rows: Tensor, ratios: Tensor) -> Tensor:
    """Runs `augment.impulse` on the pixels of each image of (B, C, H, W), with its numbers (B,). Gradients pass where
    nothing changes."""
    if is_plain(images):
        noises = map(noise_of, rows[:, None], [True] * len(rows))
        result = torch.empty_like(images, memory_format=torch.contiguous_format)
        for x, out, amount, noise, salt in zip(images, result, amounts.tolist(), noises, ratios.tolist(), strict=True):
            nf.augment.impulse(x, amount, noise, salt=salt, layout="CHW", shared=True, batched=False, out=out)
        return result
    places = torch.ops.noisefuse.impulses(rows, amounts, ratios, [images.shape[0], 1, *images.shape[2:]])
    return torch.where(places == 1, images, (places == 2).to(images))


@operator("impulses(Tensor rows, Tensor amounts, Tensor ratios, SymInt[] shape) -> Tensor")
def _impulses(rows: Tensor, amounts: Tensor, ratios: Tensor, shape: Any) -> Tensor:
    """Returns the places: 0 pepper, 1 nothing, 2 salt."""
    places = torch.ones(list(shape), dtype=torch.uint8)
    noises = map(noise_of, rows[:, None], [True] * len(rows))
    for x, amount, noise, salt in zip(places, amounts.tolist(), noises, ratios.tolist(), strict=True):
        nf.augment.impulse(x, amount, noise, salt=salt, values=(0, 2), batched=False, out=x)
    return places.to(amounts.device)


@_impulses.register_fake
def _(rows: Tensor, amounts: Tensor, ratios: Tensor, shape: Any) -> Tensor:
    return torch.empty(list(shape), dtype=torch.uint8, device=amounts.device)


@_impulses.register_vmap
def _(info: Any, dims: Any, rows: Tensor, amounts: Tensor, ratios: Tensor, shape: Any) -> tuple[Tensor, int]:
    tensors = (x.flatten(0, 1) for x in _in_front(info, dims, rows, amounts, ratios))
    places = torch.ops.noisefuse.impulses(*tensors, [info.batch_size * shape[0], *shape[1:]])
    return places.unflatten(0, (info.batch_size, shape[0])), 0


def rician(x: Tensor, std: Any, noise: Any, mean: Any) -> Tensor:
    """Runs `augment.rician` on one image. Torch's arithmetic, which rounds more often, does so with a mean of the
    noise, tensors of numbers, gradients and on devices."""
    numbers = isinstance(std, float) and mean == 0
    if numbers and x.is_cpu and is_plain(x):
        result: Tensor = nf.augment.rician(x, std, noise, batched=False)
        return result
    real: Any = torch.promote_types(x.dtype, torch.float32)
    z = nf.randn((2, *x.shape), noise, dtype=real, batched=False, device=x.device)
    parts: Any = mean + std * z
    return torch.hypot(x + parts[0], parts[1]).to(x.dtype)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns floats as integers, to nearest even and clipped."""
    return x.round().clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max).to(dtype)
