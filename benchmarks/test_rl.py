# SPDX-License-Identifier: Apache-2.0
"""The targets of steps of reinforcement learning, each a ratio within one run.

    pytest benchmarks/test_rl.py      every figure; writes results/<processor>-rl.json and .md

The naive step is that of Flow-GRPO, line by line, as in the frameworks.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

import figures
import noisefuse as nf
from figures import ACTION, NOISE, Figure, Pair, microseconds
from noisefuse.commands.bench.contenders import Call

LATENTS, LEVEL, ROW = (16, 4, 64, 64), 0.7, 4
SAMPLER = nf.samplers.flow_sde(nf.Schedule.flow(1000), 10, noise_level=LEVEL)
SIGMAS = torch.tensor([*SAMPLER.tableau.sigma, 0.0], dtype=torch.float32)


def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> list[Any]:
    """Returns x, the model's output, and another x."""
    return [nf.randn(shape, nf.Noise(k), dtype=torch.float64).to(dtype) for k in range(3)]


def naive(x: Any, m: Any, x_next: Any = None) -> Any:
    """Returns (x', log-density); the log-density is the mean over elements."""
    torch.set_num_threads(1)
    dtype, x, m = x.dtype, x.float(), m.float()
    sigma, dt = SIGMAS[ROW], SIGMAS[ROW + 1] - SIGMAS[ROW]
    rate = torch.sqrt(sigma / (1 - torch.where(sigma == 1, SIGMAS[1], sigma))) * LEVEL
    mean = x * (1 + rate**2 / (2 * sigma) * dt) + m * (1 + rate**2 * (1 - sigma) / (2 * sigma)) * dt
    std = rate * torch.sqrt(-1 * dt)
    if x_next is None:
        x_next = mean + std * torch.randn(m.shape)
    log = -((x_next.detach().float() - mean) ** 2) / (2 * std**2) - torch.log(std) - math.log(math.sqrt(2 * math.pi))
    return x_next.to(dtype), log.mean(dim=tuple(range(1, log.ndim)))


def of_a_step(dtype: torch.dtype) -> Pair:
    x, m, out = tensors(LATENTS, dtype)
    step = partial(SAMPLER.step, ROW, x, m, NOISE, out=out)
    return Pair(partial(step, log_prob=True), step)


def over_naive(dtype: torch.dtype) -> Pair:
    x, m, _ = tensors(LATENTS, dtype)
    return Pair(partial(SAMPLER.step, ROW, x, m, NOISE, log_prob=True, reduction="mean"), partial(naive, x, m))


def with_gradient(other: str) -> Pair:
    """Compares the log-density and its gradient: from arrays, of a step; and through autograd, over the naive
    formula's."""
    x, m, x_next = tensors(LATENTS, torch.float32)
    if other == "step":
        arrays = [a.numpy() for a in (x, m, x_next)]

        def both() -> Any:
            return [f(SAMPLER.tableau, ROW, *arrays) for f in (nf.density.log_prob, nf.density.log_prob_grad)]

        return Pair(both, lambda: SAMPLER.step(ROW, *arrays[:2], NOISE))
    m.requires_grad_()

    def backward(log_prob: Call) -> Any:
        return lambda: torch.autograd.grad(log_prob().sum(), m)

    ours = partial(SAMPLER.log_prob, ROW, x, m, x_next, reduction="mean")
    return Pair(backward(ours), backward(lambda: naive(x, m, x_next)[1]))


def small(kind: str) -> float:
    x, m, out = tensors(ACTION, torch.float32)
    if kind == "NumPy":
        x, m, out = (a.numpy() for a in (x, m, out))
    return microseconds(lambda: SAMPLER.step(ROW, x, m, NOISE, out=out, log_prob=True))


TITLE, SUFFIX = "Reinforcement learning", "-rl"
ABOUT = """\
Written by `pytest benchmarks/test_rl.py`, in one run. Steps of `flow_sde` on 16x4x64x64, one thread on both sides; the
naive step is Flow-GRPO's in torch."""
FIGURES = [
    *(
        Figure(f"step with its log-density, of a step, {name}", "<=", 1.15, partial(of_a_step, dtype))
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    ),
    Figure("step with its log-density, over naive, float32", ">=", 22, partial(over_naive, torch.float32)),
    Figure("step with its log-density, over naive, bfloat16", ">=", 25, partial(over_naive, torch.bfloat16)),
    Figure("log-density and its gradient, of a step", "<=", 1.6, partial(with_gradient, "step")),
    Figure("log-density and its gradient by autograd, over naive", ">=", 9, partial(with_gradient, "naive")),
    Figure("step of 1x16x7 with its log-density, NumPy", "<=", 4, partial(small, "NumPy"), unit="us"),
    Figure("step of 1x16x7 with its log-density, torch", "<=", 6, partial(small, "torch"), unit="us"),
]
test_figure = figures.test_figure
