# SPDX-License-Identifier: Apache-2.0
"""Tokens: operations that run on the memory of CPU tensors, and log-probabilities with their gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...ground.libraries import library_of
from .arrays import CPU, as_tensor, check_plain, memory, of_triton, place_of
from .graph import check_once

ON_DEVICE = "q_mask", "q_uniform"  # Triton's kernels serve them, also where CuPy is installed


def view(name: str, x: Any) -> Any:
    """Returns the memory of a tensor, which is the host's, or that of a device."""
    check_plain(name, x)
    place = place_of(name, x)
    if place == CPU:
        return memory(name, x.detach().resolve_neg(), CPU)
    if name in ON_DEVICE:
        return of_triton(x.detach(), place.index)
    raise NotImplementedError(f"{name}: expected tensors on the CPU, got one on {place}; copy it there first")


def from_numpy(array: Any, like: Any) -> Any:
    return as_tensor(array, None, torch.int64)


def written(x: Tensor, array: Any) -> Any:
    return as_tensor(array, x, x.dtype)


def on_device(x: Any, device: Any) -> Tensor:
    return torch.from_numpy(x).to(device)


class _LogProb(torch.autograd.Function):
    """The sum of a step's log-probabilities of each sample."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, sampler: Any, i: int, x: Tensor, x_next: Tensor, where: Any) -> Tensor:
        found, *ctx.weights = library_of(logits).through(sampler.log_prob_parts, i, x, logits, x_next, where)
        ctx.call = sampler, i
        ctx.save_for_backward(logits, x, x_next)
        return torch.from_numpy(found.numpy().sum(axis=1))  # torch adds in another order

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        check_once("log_prob")
        logits, x, x_next = ctx.saved_tensors
        sampler, i = ctx.call
        made = library_of(logits).through(sampler.pulled, i, x, logits, x_next, upstream, *ctx.weights)
        return made.to(logits.dtype), None, None, None, None, None


def token_log_prob(sampler: Any, i: int, x: Tensor, logits: Any, x_next: Any, where: Any) -> Tensor:
    if isinstance(logits, tuple):
        u, c = (one.float() for one in logits)
        logits = sampler.guided(u, c, torch.where)
        sampler = type(sampler)(replace(sampler.table, guidance=0.0))
    apply: Any = _LogProb.apply
    found: Tensor = apply(logits, sampler, i, x, x_next, where)
    return found
