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
import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

import noisefuse as nf
from noisefuse.ground.drawing import BLUE, GREY, INK, ORANGE, STYLE

POINTS, WIDTH, BATCH = 16, 128, 256
SCHEDULE = nf.Schedule.flow(100)
SAMPLER = nf.samplers.ddim(SCHEDULE, steps=20, prediction="flow", spacing="trailing")  # Euler's method for a flow
NOISE = nf.Noise(2026)
Parameters = dict[str, Any]
COLOURS = LinearSegmentedColormap.from_list("goals", [BLUE, GREY, ORANGE])


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
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.semilogy(np.convolve(losses, np.ones(20) / 20, "valid"), color=BLUE)
        left.set(xlabel="step", ylabel="loss, mean of 20", title="Training")
        lines = LineCollection(list(actions), array=goal[:, 0], cmap=COLOURS, linewidths=1)
        right.add_collection(lines)
        right.plot(0, 0, "s", color=INK, markersize=18)
        right.set(title="Actions around an obstacle", aspect="equal")
        right.autoscale()
        figure.colorbar(lines, ax=right, label="height of the goal").outline.set_visible(False)
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
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
