# SPDX-License-Identifier: Apache-2.0
"""Trains a small flow policy with JAX, whole inside jit, and lets it act.

    python examples/jax_policy.py           half a minute on a core; draws jax_policy.png

A robot's hand goes around an obstacle to a goal, on the left or on the right. An action is a chunk of 16 points, and
the observation is the goal's place. The policy learns the velocity of a flow from noise to actions. Training is one
`lax.scan` over steps, and acting is one over rows of a sampler. The key of a step's noise has the traced step number,
so nothing is stored and any step can be repeated, in NumPy too.

Needs jax and matplotlib: pip install '.[demo,jax]'.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import noisefuse as nf

POINTS, WIDTH, BATCH = 16, 128, 256
SCHEDULE = nf.Schedule.flow(100)
SAMPLER = nf.samplers.ddim(SCHEDULE, steps=20, prediction="flow", spacing="trailing")  # Euler's method for a flow
NOISE = nf.Noise(2026)
Parameters = dict[str, Any]


def demonstrations(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns observations (n, 1), the goal's height in [-1, 1], and actions (n, POINTS, 2)."""
    rng = np.random.default_rng(seed)
    goal, side = rng.uniform(-1, 1, (n, 1)), rng.choice([-1.0, 1.0], (n, 1))
    s = np.linspace(0, 1, POINTS)
    around = side * np.sin(np.pi * s) * (0.6 + 0.05 * rng.standard_normal((n, 1)))
    actions = np.stack([np.broadcast_to(2 * s - 1, around.shape), goal * s**3 + around], -1)
    return goal.astype(np.float32), actions.astype(np.float32)


# ---- the network -------------------------------------------------------------------------------------------


def first_parameters(seed: int = 0) -> Parameters:
    rng = np.random.default_rng(seed)
    sizes = [2 * POINTS + 1 + 16, WIDTH, WIDTH, WIDTH, 2 * POINTS]
    layers = [rng.standard_normal((a, b)).astype(np.float32) / np.sqrt(a) for a, b in pairwise(sizes)]
    return {"w": layers, "b": [np.zeros(b, np.float32) for b in sizes[1:]]}


def velocity(parameters: Parameters, goal: Any, x: Any, t: Any) -> Any:
    """Returns the velocity for actions x (B, POINTS, 2) at times t from 0 to 1, () or (B,)."""
    phase = jnp.broadcast_to(t, x.shape[:1])[:, None] * jnp.pi * 2.0 ** jnp.arange(8)
    h = jnp.concatenate([x.reshape(len(x), -1), goal, jnp.sin(phase), jnp.cos(phase)], 1)
    for w, b in zip(parameters["w"][:-1], parameters["b"][:-1], strict=True):
        h = jax.nn.silu(h @ w + b)
    return (h @ parameters["w"][-1] + parameters["b"][-1]).reshape(x.shape)


# ---- training ----------------------------------------------------------------------------------------------


def batch_of(step: Any) -> tuple[Any, Any]:
    """Returns a step's demonstrations, as fractions of all, and their t: uniform numbers of the noise's stream 7."""
    drawn = nf.uniform((BATCH, 2), NOISE.at(step=step), dtype=jnp.float32)
    return drawn[:, 0], (drawn[:, 1] * len(SCHEDULE)).astype(jnp.int32)


def loss(parameters: Parameters, goal: Any, actions: Any, step: Any) -> Any:
    which, t = batch_of(step)
    chosen = (which * len(actions)).astype(jnp.int32)
    goal, actions, noise = goal[chosen], actions[chosen], NOISE.at(step=step)
    x_t = nf.q_sample(actions, t, SCHEDULE, noise)
    predicted = velocity(parameters, goal, x_t, (t + 1) / len(SCHEDULE))
    return nf.mse_loss(predicted, actions, t, SCHEDULE, noise, target="flow")


@partial(jax.jit, static_argnames="steps")
def train(parameters: Parameters, goal: Any, actions: Any, steps: int) -> tuple[Parameters, Any]:
    """Runs Adam; returns parameters and the losses of all steps."""

    def one(carried: Any, step: Any) -> Any:
        parameters, first, second = carried
        value, gradient = jax.value_and_grad(loss)(parameters, goal, actions, step)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        rate = 2e-3 * (1 - step / steps) / (1 - 0.9 ** (step + 1.0))
        scale = jnp.sqrt(1 - 0.999 ** (step + 1.0))
        parameters = jax.tree.map(
            lambda p, m, v: p - rate * scale * m / (jnp.sqrt(v) + 1e-8), parameters, first, second
        )
        return (parameters, first, second), value

    zeros = jax.tree.map(jnp.zeros_like, parameters)
    (parameters, *_), losses = jax.lax.scan(one, (parameters, zeros, zeros), jnp.arange(steps))
    return parameters, losses


# ---- acting ------------------------------------------------------------------------------------------------


@jax.jit
def act(parameters: Parameters, goal: Any, step: Any) -> Any:
    """Returns action chunks for observations (B, 1); `step` counts the robot's decisions."""
    noise = nf.Noise(7, step=step)
    return SAMPLER.sample(partial(velocity, parameters, goal), (len(goal), POINTS, 2), noise, dtype=jnp.float32)


def draw(losses: Any, goal: Any, actions: Any, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(np.convolve(losses, np.ones(20) / 20, "valid"))
    left.set(xlabel="step", ylabel="loss, mean of 20", title="training")
    for height, chunk in zip(goal[:, 0], actions, strict=True):
        right.plot(*chunk.T, color=f"C{round((height + 1) * 4)}", alpha=0.5)
    right.plot(0, 0, "ks", markersize=18)
    right.set(title="actions, by the goal's height", aspect="equal")
    figure.savefig(path, dpi=100)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("jax_policy.png"))
    options = parser.parse_args(arguments)
    goal, actions = demonstrations(4096)
    begin = time.perf_counter()
    parameters, losses = train(first_parameters(), goal, actions, options.steps)
    losses = np.asarray(losses)
    print(f"{options.steps} steps in {time.perf_counter() - begin:.0f} s: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    seen = np.linspace(-1, 1, 48, dtype=np.float32)[:, None]
    made = np.asarray(act(parameters, seen, 0))
    missed = np.abs(made[:, -1, 1] - seen[:, 0]).mean()
    print(f"goals are missed by {missed:.3f}; {np.mean(made[:, POINTS // 2, 1] > 0):.0%} go left")
    draw(losses, seen, made, options.out)


if __name__ == "__main__":
    main()
