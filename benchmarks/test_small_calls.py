# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of small calls. The unit is a call of np.add(a, b, out=c) on arrays of the same shape.

    pytest benchmarks/test_small_calls.py      every figure; writes results/<processor>-small-calls.json and .md

A target is 1.2 times the measurement on Zen 4 with Python 3.11 and NumPy 2.4, so a call that takes a fifth longer is
noticed. With another Python or NumPy, compare the reports of two commits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

import figures
import noisefuse as nf
from figures import ACTION, NOISE, SCHEDULE, Figure, thread_seconds
from noisefuse.commands.bench.contenders import Call
from noisefuse.commands.bench.timing import interleaved

DDIM, DDPM = (getattr(nf.samplers, name)(SCHEDULE, 50) for name in ("ddim", "ddpm"))
FLOW, COSINE, KARRAS = nf.Schedule.flow(1000), nf.Schedule.cosine(), nf.Schedule.karras(50)
X, M, OUT, SUM = (np.ones(ACTION, np.float32) for _ in range(4))
STD, STD_OF_CHANNELS = np.array([0.1]), np.full((1, 16), 0.1)
ROWS = np.array([20])
U = np.array([0.3], np.float32)
EVERY_OTHER, SWAPPED = np.ones((1, 16, 14), np.float32)[..., ::2], X.astype(X.dtype.newbyteorder())
BYTES = np.zeros(ACTION, np.uint8)
FOUR, PEAKS, PEPPER = np.zeros((4, 4, 7), np.uint8), np.full(4, 255.0), 0.9 * np.eye(256) + 0.1 / 256
IDS = np.arange(8)
TOKENS, MASKS, LOGITS = np.full((2, 16), 3), np.full((2, 16), 50), np.zeros((2, 16, 50), np.float32)
MDLM, PATH, LINEAR = nf.samplers.mdlm(steps=4, mask_id=50), nf.paths.linear(), nf.Schedule.linear(5)
PAIR, U2 = np.ones((2, 16, 7), np.float32), np.array([0.3, 0.4])

# The name of a call, the call, and its time in calls of np.add.
CALLS: list[tuple[str, Call, float]] = [
    ("q_sample", lambda: nf.q_sample(X, 300, SCHEDULE, NOISE), 3.1),
    ("q_sample, out=", lambda: nf.q_sample(X, 300, SCHEDULE, NOISE, out=OUT), 2.9),
    ("q_sample, every other element", lambda: nf.q_sample(EVERY_OTHER, 300, SCHEDULE, NOISE), 4.1),
    ("q_sample, swapped bytes", lambda: nf.q_sample(SWAPPED, 300, SCHEDULE, NOISE), 4.2),
    ("q_sample, target=", lambda: nf.q_sample(X, 300, SCHEDULE, NOISE, target="epsilon"), 3.4),
    ("q_sample, out= of bytes", lambda: nf.q_sample(X, 300, SCHEDULE, NOISE, out=BYTES), 3.8),
    ("q_sample, float t of a flow", lambda: nf.q_sample(X, 0.3, FLOW, NOISE), 4.5),
    ("q_sample, float t of cosine", lambda: nf.q_sample(X, U, COSINE, NOISE), 6.9),
    ("q_sample, sigma of karras", lambda: nf.q_sample(X, 3.5, KARRAS, NOISE), 8.1),
    ("q_step", lambda: nf.q_step(X, 300, SCHEDULE, NOISE), 2.6),
    ("q_step, out=", lambda: nf.q_step(X, 300, SCHEDULE, NOISE, out=OUT), 2.5),
    ("update", lambda: nf.update(DDIM.tableau, 20, X, M), 2.1),
    ("update, out=", lambda: nf.update(DDIM.tableau, 20, X, M, out=OUT), 1.9),
    ("update, in place", lambda: nf.update(DDIM.tableau, 20, OUT, M, out=OUT), 1.7),
    ("a step of ddim", lambda: DDIM.step(20, X, M), 2.0),
    ("a step of ddim, out=", lambda: DDIM.step(20, X, M, out=OUT), 1.6),
    ("a step of ddpm, out=", lambda: DDPM.step(20, X, M, NOISE, out=OUT), 2.6),
    ("log_prob", lambda: DDPM.log_prob(20, X, M, OUT), 4.3),
    ("randn", lambda: nf.randn(ACTION, NOISE), 2.9),
    ("randn, out=", lambda: nf.randn(ACTION, NOISE, out=OUT), 2.6),
    ("randn, dtype=", lambda: nf.randn(ACTION, NOISE, dtype="float64"), 3.3),
    ("randn_like", lambda: nf.randn_like(X, NOISE), 3.8),
    ("uniform", lambda: nf.uniform(8, NOISE), 2.8),
    ("mse_loss", lambda: nf.mse_loss(M, X, 300, SCHEDULE, NOISE, target="epsilon"), 3.0),
    ("mse_loss, float t", lambda: nf.mse_loss(M, X, U, FLOW, NOISE, target="flow"), 4.5),
    ("mse_loss, for each sample", lambda: nf.mse_loss(M, X, 300, SCHEDULE, NOISE, target="v", reduction="none"), 3.4),
    ("mse_loss_and_grad", lambda: nf.mse_loss_and_grad(M, X, 300, SCHEDULE, NOISE, target="v"), 3.7),
    ("log_prob, a row for each sample", lambda: DDPM.log_prob(ROWS, X, M, OUT), 4.4),
    ("kl", lambda: DDPM.kl(20, X, M), 3.2),
    ("kl_grad", lambda: nf.density.kl_grad(DDPM.tableau, 20, X, M), 2.6),
    ("augment.at_snr", lambda: nf.augment.at_snr(X, 20.0, NOISE), 37.0),
    ("augment.gaussian", lambda: nf.augment.gaussian(X, 0.1, NOISE), 6.2),
    ("augment.gaussian, out=", lambda: nf.augment.gaussian(X, 0.1, NOISE, out=OUT), 5.9),
    ("augment.transition", lambda: nf.augment.transition(BYTES, PEPPER, NOISE), 170),
    ("augment.poisson, peaks (B,)", lambda: nf.augment.poisson(FOUR, PEAKS, NOISE), 112),
    ("augment.poisson", lambda: nf.augment.poisson(BYTES, 30.0, NOISE), 18.0),
    ("augment.gaussian, an integer", lambda: nf.augment.gaussian(X, 10, NOISE), 7.6),
    ("augment.gaussian, for each sample", lambda: nf.augment.gaussian(X, STD, NOISE), 20.5),
    ("augment.gaussian, for each channel", lambda: nf.augment.gaussian(X, STD_OF_CHANNELS, NOISE), 27.5),
    ("augment.gaussian, shared", lambda: nf.augment.gaussian(X, 0.1, NOISE, layout="CHW", shared=True), 27.5),
    ("augment.gaussian, clip=", lambda: nf.augment.gaussian(X, 0.1, NOISE, clip=(0, 1)), 12.6),
    ("fields.nearest_of, of 64", lambda: nf.fields.nearest_of(64, X, NOISE), 175.0),
    ("q_mask", lambda: nf.q_mask(TOKENS, 0.5, NOISE, 9), 2.2),
    ("q_uniform", lambda: nf.q_uniform(TOKENS, 0.5, NOISE, 50), 2.4),
    ("categorical", lambda: nf.categorical(LOGITS[:, :1], NOISE), 6.0),
    ("masked_cross_entropy", lambda: nf.masked_cross_entropy(LOGITS, TOKENS), 18.0),
    ("a step of mdlm", lambda: MDLM.step(0, MASKS, LOGITS, NOISE, MDLM.state()), 42.0),
    ("interpolate, t (B,)", lambda: nf.interpolate(PAIR, PAIR, U2, PATH, target="velocity"), 3.5),
    ("noised, (B,)", lambda: nf.noised(PAIR, U2, U2, NOISE), 4.0),
    ("q_walk of 5 steps", lambda: nf.q_walk(X, LINEAR, NOISE, keep=[4]), 3.4),
    ("Noise.at", lambda: NOISE.at(sample=3), 2.1),
    ("Noise.at, ids", lambda: NOISE.at(sample=IDS), 5.7),
    ("a schedule at an int", lambda: SCHEDULE(300), 4.3),
    ("a schedule at a float", lambda: FLOW(0.3), 5.9),
    ("a schedule at ints (B,)", lambda: SCHEDULE(IDS), 3.3),
    ("alphas_cumprod", lambda: SCHEDULE.alphas_cumprod, 0.12),
    ("weights.min_snr", lambda: nf.weights.min_snr(SCHEDULE, "epsilon"), 3.7),
    ("weights.mode", lambda: nf.weights.mode(FLOW, "flow"), 3.9),
    ("weights.mode, ints (B,)", lambda: nf.weights.mode(FLOW, "flow", t=IDS), 7.1),
    ("model_input, a batch", lambda: DDIM.model_input(20, X, time="batch"), 4.8),
]


def of_tensors() -> dict[str, Call]:
    import torch

    x, m, out = (torch.ones(ACTION) for _ in range(3))
    u = torch.tensor([0.3])
    parameter, watched = torch.nn.Parameter(x, requires_grad=False), torch.ones(ACTION, requires_grad=True)
    return {
        "q_sample": lambda: nf.q_sample(x, 300, SCHEDULE, NOISE),
        "q_sample, out=": lambda: nf.q_sample(x, 300, SCHEDULE, NOISE, out=out),
        "q_sample, a parameter": lambda: nf.q_sample(parameter, 300, SCHEDULE, NOISE),
        "q_sample, requires grad": lambda: nf.q_sample(watched, 300, SCHEDULE, NOISE),
        "q_sample, float t": lambda: nf.q_sample(x, u, FLOW, NOISE),
        "mse_loss": lambda: nf.mse_loss(m, x, 300, SCHEDULE, NOISE, target="epsilon"),
        "mse_loss, for each sample": lambda: nf.mse_loss(
            m, x, 300, SCHEDULE, NOISE, target="epsilon", reduction="none"
        ),
        "mse_loss_and_grad": lambda: nf.mse_loss_and_grad(m, x, 300, SCHEDULE, NOISE, target="epsilon"),
        "mse_loss, float t": lambda: nf.mse_loss(m, x, u, FLOW, NOISE, target="flow"),
        "update, out=": lambda: nf.update(DDIM.tableau, 20, x, m, out=out),
        "randn": lambda: nf.randn(ACTION, NOISE, dtype=torch.float32),
        "randn, out=": lambda: nf.randn(ACTION, NOISE, dtype=torch.float32, out=out),
    }


OF_TENSORS = {
    "q_sample": 5.1,
    "q_sample, out=": 5.9,
    "q_sample, a parameter": 5.1,
    "q_sample, requires grad": 50.0,
    "q_sample, float t": 7.2,
    "mse_loss": 5.5,
    "mse_loss, for each sample": 5.5,
    "mse_loss_and_grad": 6.5,
    "mse_loss, float t": 7.2,
    "update, out=": 4.9,
    "randn": 4.2,
    "randn, out=": 4.6,
}


def in_sums(make: Callable[[], Call]) -> float:
    """Returns the time of the quickest of many turns, over that of np.add. Other work on the machine only adds to a
    time."""
    calls = {"ours": make(), "add": partial(np.add, X, M, out=SUM)}
    timings = interleaved(calls, seconds=3, clock=thread_seconds)
    return timings["ours"].least / timings["add"].least


def figure(name: str, found: float, make: Callable[[], Call]) -> Figure:
    return Figure(name, "<=", round(1.2 * found, 2), partial(in_sums, make))


TITLE, SUFFIX = "Small calls", "-small-calls"
ABOUT = """\
Written by `pytest benchmarks/test_small_calls.py`, in one run, on one thread. Times of calls on (1, 16, 7) elements of
float32, in those of `np.add(a, b, out=c)` on as many. Targets are 1.2 times what was measured when they were set."""
FIGURES = [
    *(figure(name, found, lambda call=call: call) for name, call, found in CALLS),
    *(figure(f"{name} of tensors", found, lambda name=name: of_tensors()[name]) for name, found in OF_TENSORS.items()),
]
test_figure = figures.test_figure
