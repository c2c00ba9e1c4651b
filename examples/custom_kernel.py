# SPDX-License-Identifier: Apache-2.0
"""The library's noise inside your own kernels, which do everything in one pass.

    python examples/custom_kernel.py                    measures and compares
    python examples/custom_kernel.py --out box.png      and draws the particles (needs matplotlib)

* A point cloud is noised (the forward process of a diffusion model) and rotated at random, as augmentation does, while
  each point is in registers: one read and one write instead of six passes and four arrays.
* Particles walk at random between two walls that reflect them. Their only state is their positions: step t of particle
  p is drawn from (seed, p, t) alone, so each of them can repeat its walk alone.

Both need `pip install '.[numba]'`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, prange

import noisefuse as nf
import noisefuse.numba as nfn

ROTATION = 64  # our own stream, for draws other than the points' noise


@njit
def rotation(seed: Any, sample: Any, step: Any) -> Any:
    """Returns a uniformly random rotation: the quaternion of four normals (Muller 1959), as the rows of its matrix."""
    w, x, y, z = nfn.normal4(seed, sample, step, 0, ROTATION)
    s = np.float32(2) / (w * w + x * x + y * y + z * z)
    one = np.float32(1)
    return (
        (one - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y)),
        (s * (x * y + w * z), one - s * (x * x + z * z), s * (y * z - w * x)),
        (s * (x * z - w * y), s * (y * z + w * x), one - s * (x * x + y * y)),
    )


@njit(parallel=True)
def noise_and_rotate(out: Any, points: Any, alpha: Any, sigma: Any, seed: Any, step: Any) -> None:
    """Computes out[b, i] = R_b (alpha_b points[b, i] + sigma_b z), z the field of (seed, sample b, step). Shapes (B, N,
    3)."""
    for b in prange(points.shape[0]):
        r = rotation(seed, b, step)
        for i in range(points.shape[1]):
            # fma and the order of its arguments are nf.q_sample's, so the bits before the rotation are, too.
            x = nfn.fma(alpha[b], points[b, i, 0], nfn.mul(sigma[b], nfn.normal(seed, b, step, 3 * i)))
            y = nfn.fma(alpha[b], points[b, i, 1], nfn.mul(sigma[b], nfn.normal(seed, b, step, 3 * i + 1)))
            z = nfn.fma(alpha[b], points[b, i, 2], nfn.mul(sigma[b], nfn.normal(seed, b, step, 3 * i + 2)))
            for k in range(3):
                out[b, i, k] = r[k][0] * x + r[k][1] * y + r[k][2] * z


@njit(parallel=True)
def walk(position: Any, first: Any, steps: Any, sigma: Any, seed: Any) -> None:
    """Moves particle p by sigma z for each of `steps` times from `first` on, and reflects it at -1 and 1. (P, D)."""
    for p in prange(position.shape[0]):
        for t in range(first, first + steps):
            for d in range(position.shape[1]):
                x = position[p, d] + sigma * nfn.normal(seed, p, t, d)
                while abs(x) > 1:
                    x = np.float32(2) - x if x > 1 else np.float32(-2) - x
                position[p, d] = x


def cloud() -> None:
    shape, schedule, noise = (32, 4096, 3), nf.Schedule.cosine(1000), nf.Noise(7, step=3)
    points = nf.randn(shape, nf.Noise(0))
    t = (1000 * nf.uniform(shape[0], noise)).astype(int)
    alpha, sigma = schedule.alpha[t].astype(np.float32), schedule.sigma[t].astype(np.float32)

    out = np.empty_like(points)
    noise_and_rotate(out, points, alpha, sigma, noise.seed, noise.step)  # the first call compiles
    begin = time.perf_counter()
    noise_and_rotate(out, points, alpha, sigma, noise.seed, noise.step)
    taken = time.perf_counter() - begin

    noised = nf.q_sample(points, t, schedule, noise)  # the same points, noised by the library
    turned = np.stack([x @ np.array(rotation(noise.seed, b, noise.step)).T for b, x in enumerate(noised)])
    error = abs(out - turned).max()
    print(f"{shape[0]} clouds of {shape[1]} points noised and rotated in {1e3 * taken:.1f} ms")
    print(f"against q_sample and a matrix product: {error:.1e} apart")
    assert error < 1e-5


def box() -> None:
    particles, steps, sigma = 10_000, 200, np.float32(0.1)
    position = np.zeros((particles, 2), np.float32)
    walk(position, 0, steps, sigma, 11)
    uniform = position.std()  # the value of a uniform distribution on [-1, 1]: 1 / sqrt(3)
    print(f"{particles} particles after {steps} steps between walls: spread {uniform:.3f}, 0.577 where they mix")
    assert abs(position).max() <= 1
    assert abs(uniform - 3**-0.5) < 0.01

    halfway = np.zeros((particles, 2), np.float32)  # walked in two parts, with other threads: the same bits
    walk(halfway, 0, 70, sigma, 11)
    walk(halfway, 70, steps - 70, sigma, 11)
    assert np.array_equal(halfway, position)


def picture(file: Path) -> None:
    """Returns the particles' positions after so many steps."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from noisefuse.ground.drawing import BLUE, STYLE

    position, done = np.zeros((4000, 2), np.float32), 0
    with rc_context(STYLE | {"axes.titlesize": 10}):
        figure = Figure(figsize=(10, 3), layout="constrained")
        for ax, steps in zip(figure.subplots(1, 4), (1, 10, 40, 200), strict=True):
            walk(position, done, steps - done, np.float32(0.1), 11)
            done = steps
            ax.scatter(*position.T, s=2, linewidths=0, color=BLUE)
            ax.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[], aspect="equal", title=f"step {steps}")
            ax.spines[:].set_visible(True)
        figure.savefig(file, dpi=100)
    print(f"wrote {file}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Noise inside of kernels of your own.")
    parser.add_argument("--out", type=Path, help="draw the particles, too")
    arguments = parser.parse_args(argv)
    cloud()
    box()
    if arguments.out:
        picture(arguments.out)


if __name__ == "__main__":
    main()
