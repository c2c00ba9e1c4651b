# SPDX-License-Identifier: Apache-2.0
"""Tokens: operations that run on the memory of CPU tensors, and log-probabilities with their gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import CPU, as_tensor, memory, need_plain
from .graph import need_once
from .internals import is_compiling, untraced


def through(function: Any, *arguments: Any, **options: Any) -> Any:
    """Runs a function of tokens on the memory of tensors, which is the host's. A compiler's graph breaks there."""
    if is_compiling():
        return untraced(through, function, *arguments, **options)
    given: list[tuple[Any, Tensor]] = []

    def inward(x: Any) -> Any:
        if type(x) is tuple:  # a pair of logits for guidance
            return tuple(map(inward, x))
        if not isinstance(x, Tensor):
            return x
        need_plain(function.__name__, x)
        if not x.is_cpu:
            message = f"{function.__name__}: expected tensors on the CPU, got one on {x.device}; copy it there first"
            raise NotImplementedError(message)
        given.append((memory(function.__name__, x.detach().resolve_neg(), CPU), x))
        return given[-1][0]

    def outward(result: Any) -> Any:
        if type(result) is tuple:
            return tuple(map(outward, result))
        if type(result) is dict:
            return {name: outward(one) for name, one in result.items()}
        if not isinstance(result, np.ndarray):
            return result
        own = next((x for array, x in given if array is result), None)
        return as_tensor(result, own, torch.int64 if own is None else own.dtype)  # it was written to, or it is new

    out = options.get("out")
    if out is not None and not isinstance(out, Tensor):
        raise TypeError(f"out: expected a torch.Tensor, as the other arguments are, got {type(out).__name__}")
    arguments = tuple(map(inward, arguments))
    return outward(function(*arguments, **{name: inward(value) for name, value in options.items()}))


def on_device(x: Any, device: Any) -> Tensor:
    return torch.from_numpy(x).to(device)


class _LogProb(torch.autograd.Function):
    """The sum of a step's log-probabilities of each sample."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, sampler: Any, i: int, x: Tensor, x_next: Tensor, where: Any) -> Tensor:
        found, *ctx.weights = through(sampler.log_prob_parts, i, x, logits, x_next, where)
        ctx.call = sampler, i
        ctx.save_for_backward(logits, x, x_next)
        return found.sum(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        need_once("log_prob")
        logits, x, x_next = ctx.saved_tensors
        sampler, i = ctx.call
        made = through(sampler.pulled, i, x, logits, x_next, upstream, *ctx.weights)
        return made.to(logits.dtype), None, None, None, None, None


def token_log_prob(sampler: Any, i: int, x: Tensor, logits: Any, x_next: Any, where: Any) -> Tensor:
    if isinstance(logits, tuple):
        u, c = (one.float() for one in logits)
        logits = sampler.guided(u, c, torch.where)
        sampler = type(sampler)(replace(sampler.table, guidance=0.0))
    apply: Any = _LogProb.apply
    found: Tensor = apply(logits, sampler, i, x, x_next, where)
    return found
