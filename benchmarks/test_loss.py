# SPDX-License-Identifier: Apache-2.0
"""The targets of a training step, each a ratio within one run.

    pytest benchmarks/test_loss.py      every figure; writes results/<processor>-loss.json and .md

A step is x_t, the loss of a prediction and its gradient, without the network: the prediction is another array. The
usual way keeps the noise, as all training scripts do; ours draws it again. Both make new arrays where users do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import figures
import noisefuse as nf
from figures import ACTION, IMAGES, NOISE, SCHEDULE, Figure, Pair, memory, microseconds
from noisefuse.commands.bench.contenders import Call

LATENTS = (64, 4, 64, 64)


# ---- a step ------------------------------------------------------------------------------------------------


def against_numpy(shape: tuple[int, ...], target: Any = "epsilon") -> Pair:
    rng = np.random.default_rng(0)
    x0, pred = rng.random(shape, dtype=np.float32), rng.random(shape, dtype=np.float32)
    t = rng.integers(0, len(SCHEDULE), shape[0])
    alpha, sigma = (
        c[t].astype(np.float32).reshape(-1, *[1] * (len(shape) - 1)) for c in (SCHEDULE.alpha, SCHEDULE.sigma)
    )
    gradient = np.zeros(shape, np.float32)

    def usual() -> Any:
        z = rng.standard_normal(shape, dtype=np.float32)
        x_t = alpha * x0 + sigma * z
        r = pred - (z if target == "epsilon" else alpha * z - sigma * x0)
        return x_t, np.mean(r * r), r * np.float32(2 / r.size)

    def ours() -> Any:
        x_t = nf.q_sample(x0, t, SCHEDULE, NOISE)
        return x_t, nf.mse_loss_and_grad(pred, x0, t, SCHEDULE, NOISE, target=target, out=gradient)

    return Pair(ours, usual)


def against_torch(shape: tuple[int, ...], target: Any = "epsilon") -> Pair:
    """Gives torch as many threads as ours."""
    import torch

    torch.set_num_threads(nf.info()["threads"])
    x0, theirs = torch.rand(shape), torch.rand(shape, requires_grad=True)
    pred = theirs.detach().clone().requires_grad_()  # a new leaf, so that each step frees its gradients
    t = torch.randint(len(SCHEDULE), shape[:1])
    columns = [torch.tensor(c.copy(), dtype=torch.float32) for c in (SCHEDULE.alpha, SCHEDULE.sigma)]

    def usual() -> Any:
        theirs.grad = None
        alpha, sigma = (c[t].view(-1, *[1] * (len(shape) - 1)) for c in columns)
        z = torch.randn_like(x0)
        x_t = alpha * x0 + sigma * z
        loss = torch.nn.functional.mse_loss(theirs, z if target == "epsilon" else alpha * z - sigma * x0)
        loss.backward()
        return x_t

    def ours() -> Any:
        pred.grad = None
        x_t = nf.q_sample(x0, t, SCHEDULE, NOISE)
        nf.mse_loss(pred, x0, t, SCHEDULE, NOISE, target=target).backward()
        return x_t

    return Pair(ours, usual)


def loss_microseconds() -> float:
    x = np.ones(ACTION, np.float32)
    call: Call = partial(nf.mse_loss, x, x, 5, SCHEDULE, NOISE, target="v")
    return microseconds(call)


# ---- memory ------------------------------------------------------------------------------------------------

STEP = """
{imports}
schedule, noise = nf.Schedule.linear(), nf.Noise(0)

def step(n):
    {data}
    t = np.arange(n)
    before = peak()
    {step}
    return peak() - before, x0.nbytes

step(2)  # what is loaded and built once
growth, size = step(512)
print(growth / size)
"""

NUMPY = "x0 = np.ones((n, 1 << 16), np.float32)"
TORCH = "x0 = torch.ones((n, 1 << 16))"
USUAL_NUMPY = """
    alpha, sigma = (c[t, None].astype(np.float32) for c in (schedule.alpha, schedule.sigma))
    z = rng.standard_normal(x0.shape, dtype=np.float32)
    x_t = alpha * x0 + sigma * z
    pred = x_t * np.float32(0.5)
    r = pred - z
    loss, gradient = np.mean(r * r), r * np.float32(2 / r.size)
"""
OURS_NUMPY = """
    x_t = nf.q_sample(x0, t, schedule, noise)
    pred = x_t * np.float32(0.5)
    loss, gradient = nf.mse_loss_and_grad(pred, x0, t, schedule, noise, target="epsilon", out=pred)
"""
USUAL_TORCH = """
    alpha, sigma = (torch.tensor(c[t, None], dtype=torch.float32) for c in (schedule.alpha, schedule.sigma))
    z = torch.randn_like(x0)
    x_t = alpha * x0 + sigma * z
    pred = (x_t * 0.5).requires_grad_()
    torch.nn.functional.mse_loss(pred, z).backward()
"""
OURS_TORCH = """
    x_t = nf.q_sample(x0, t, schedule, noise)
    pred = (x_t * 0.5).requires_grad_()
    nf.mse_loss(pred, x0, t, schedule, noise, target="epsilon").backward()
"""
# The batch was made for this step, so x_t takes its memory, which epsilon's loss no longer needs; and the gradient
# takes the prediction's. Autograd notices if the network's last operation still needs either.
IN_PLACE_TORCH = """
    x_t = nf.q_sample(x0, t, schedule, noise, out=x0)
    pred = x_t * 0.5
    loss, gradient = nf.mse_loss_and_grad(pred, None, t, schedule, noise, target="epsilon", out=pred)
"""


def growth(imports: str, data: str, step: str) -> float:
    """Returns the peak's growth in one step beyond its data x0, in arrays of x0's size."""
    return memory(STEP.format(imports=imports, data=data, step=step.strip()))


def numpy_memory() -> float:
    imports = "rng = np.random.default_rng(0)"
    return growth(imports, NUMPY, OURS_NUMPY) / growth(imports, NUMPY, USUAL_NUMPY)


def torch_memory(ours: str) -> float:
    import torch  # noqa: F401

    return growth("import torch", TORCH, ours) / growth("import torch", TORCH, USUAL_TORCH)


# ---- the figures -------------------------------------------------------------------------------------------

TITLE, SUFFIX = "Training steps", "-loss"
ABOUT = """\
Written by `pytest benchmarks/test_loss.py`, in one run. float32, one thread and the target epsilon where
nothing else is said; `images` is 256x3x128x128, `latents` 64x4x64x64. A step is x_t, the loss and its
gradient with respect to a prediction that is another array. Memory: what the peak grows by beyond x0."""
FIGURES = [
    Figure("images, over torch", ">=", 3.5, partial(against_torch, IMAGES)),
    Figure("images, over torch, 2 threads", ">=", 6, partial(against_torch, IMAGES), threads=2),
    Figure("images, v, over torch", ">=", 3.5, partial(against_torch, IMAGES, "v")),
    Figure("images, v, over torch, 2 threads", ">=", 6, partial(against_torch, IMAGES, "v"), threads=2),
    Figure("latents, over torch", ">=", 3.5, partial(against_torch, LATENTS)),
    Figure("latents, over torch, 2 threads", ">=", 6, partial(against_torch, LATENTS), threads=2),
    Figure("images, over NumPy", ">=", 3.5, partial(against_numpy, IMAGES)),
    Figure("images, over NumPy, 2 threads", ">=", 6, partial(against_numpy, IMAGES), threads=2),
    Figure("latents, over NumPy", ">=", 3.5, partial(against_numpy, LATENTS)),
    Figure("latents, over NumPy, 2 threads", ">=", 6, partial(against_numpy, LATENTS), threads=2),
    Figure("peak memory, gradient over pred, of NumPy's", "<=", 0.5, numpy_memory),
    Figure("peak memory, autograd as usual, of torch's", "<=", 0.8, partial(torch_memory, OURS_TORCH)),
    Figure("peak memory, all in place, of torch's", "<=", 0.5, partial(torch_memory, IN_PLACE_TORCH)),
    Figure("(1, 16, 7), the loss alone", "<=", 3, loss_microseconds, unit="us"),
]
test_figure = figures.test_figure
