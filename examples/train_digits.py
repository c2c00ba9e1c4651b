# SPDX-License-Identifier: Apache-2.0
"""Trains a small diffusion model on scikit-learn's handwritten digits, and draws digits with it.

    python examples/train_digits.py           about a minute on two idle cores; draws train_digits.png

torch uses as many threads as this process has cores. Beside other work they wait for each other, and `--threads 1` is
faster.

The network learns v from x_t, t and the digit's label. No step stores its noise: `nf.q_sample` draws it for x_t, and
`nf.mse_loss` draws it again, forward and backward. An image's noise and times depend only on the image and the epoch,
not on the batch.

Needs matplotlib, scikit-learn and torch: pip install '.[demo,torch]'.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

import noisefuse as nf

SIDE, DIGITS = 8, 10
NOBODY = DIGITS  # the label of "some digit", for classifier-free guidance
SCHEDULE = nf.Schedule.cosine(1000)


def load() -> tuple[Tensor, Tensor]:
    """Returns 1797 images (N, 64), background -1 and ink 1, and their labels."""
    data = load_digits()
    return torch.tensor(data.data / 8 - 1, dtype=torch.float32), torch.tensor(data.target)


# ---- the network -------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block whose hidden layer gets time and label."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.told = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        out: Tensor = h + self.down(nn.functional.silu(self.up(self.norm(h)) + self.told(condition)))
        return out


class Denoiser(nn.Module):
    """Returns v from x_t (B, 64), t (B,) and labels (B,)."""

    def __init__(self, width: int = 192, blocks: int = 3) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, -np.log(10_000), width // 2)))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(DIGITS + 1, width)
        self.enter, self.leave = nn.Linear(SIDE**2, width), nn.Linear(width, SIDE**2)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        angle = t[:, None] * self.frequencies
        condition = nn.functional.silu(self.time(torch.cat([angle.sin(), angle.cos()], 1)) + self.label(label))
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, condition)
        out: Tensor = self.leave(h)
        return out


# ---- training ----------------------------------------------------------------------------------------------


class Trained(NamedTuple):
    network: Denoiser  # its weights averaged over the steps
    losses: list[float]


def batches(n: int, size: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yields (epoch, indices of images) for ever. Every epoch has another order."""
    epoch = 0
    while True:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))
        yield from ((epoch, ids) for ids in order.split(size) if len(ids) == size)
        epoch += 1


def progress(steps: int, every: float = 3.0) -> Callable[[Sequence[float]], None]:
    """Prints a line every few seconds, even if the output goes to a file, and at the last step."""
    began = shown = time.perf_counter()

    def tell(losses: Sequence[float]) -> None:
        nonlocal began, shown
        now, done = time.perf_counter(), len(losses)
        if done == 1:
            began = shown = now  # torch prepares itself in the first step
        if done == steps or now - shown >= every:
            shown = now
            left = (now - began) / max(done - 1, 1) * (steps - done)
            print(f"step {done} of {steps}, loss {np.mean(losses[-100:]):.4f}, {left:.0f} s left", flush=True)

    return tell


def train(
    steps: int, *, seed: int = 0, batch: int = 128, tell: Callable[[Sequence[float]], None] = lambda losses: None
) -> Trained:
    torch.manual_seed(seed)
    images, labels = load()
    network = Denoiser()
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    weight = nf.weights.min_snr(SCHEDULE, "v")
    kept, learned = list(average.parameters()), list(network.parameters())
    losses: list[float] = []

    for step, (epoch, ids) in zip(range(steps), batches(len(images), batch, seed), strict=False):
        noise = nf.Noise(seed, sample=ids.numpy(), step=epoch)
        t = torch.from_numpy((len(SCHEDULE) * nf.uniform(batch, noise)).astype(np.int64))
        label = torch.where(torch.rand(batch) < 0.1, NOBODY, labels[ids])
        x0 = images[ids]
        x_t = nf.q_sample(x0, t, SCHEDULE, noise)
        loss = nf.mse_loss(network(x_t, t, label), x0, t, SCHEDULE, noise, target="v", weight=weight)

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        losses.append(loss.item())
        with torch.no_grad():
            torch._foreach_lerp_(kept, learned, max(0.005, 1 / (step + 1)))
        tell(losses)
    return Trained(average.eval(), losses)


# ---- sampling ----------------------------------------------------------------------------------------------


@torch.no_grad()
def draw(network: Denoiser, labels: Tensor, noise: nf.Noise, *, steps: int = 40, guidance_scale: float = 2.0) -> Tensor:
    """Draws digits with these labels, (B, 64): DPM-Solver++ 2M with classifier-free guidance."""
    sampler = nf.samplers.dpmpp_2m(SCHEDULE, steps, prediction="v")
    nobody = torch.full_like(labels, NOBODY)

    def model(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return network(x, t, nobody), network(x, t, labels)

    shape = len(labels), SIDE**2
    return sampler.sample(model, shape, noise, guidance_scale=guidance_scale, dtype=torch.float32)


# ---- the picture and the program ---------------------------------------------------------------------------


def picture(losses: Sequence[float], samples: Tensor, columns: int) -> Figure:
    """Draws the loss over the steps, and a row of samples for each digit."""
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    width = max(1, len(losses) // 100)
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    left.plot(losses, color="#c9d2e0", linewidth=0.6)
    left.plot(np.arange(len(smooth)) + width // 2, smooth, color="#1f2430")
    left.set(xlabel="step", ylabel="loss (min-SNR weights)", yscale="log")
    left.spines[["top", "right"]].set_visible(False)
    canvas = np.full((DIGITS, SIDE + 1, columns, SIDE + 1), -1.0)
    canvas[:, :SIDE, :, :SIDE] = samples.reshape(DIGITS, columns, SIDE, SIDE).numpy().transpose(0, 2, 1, 3)
    right.imshow(canvas.reshape(DIGITS * (SIDE + 1), -1), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    right.set_axis_off()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a diffusion model on handwritten digits, without stored noise.")
    parser.add_argument("--out", type=Path, default=Path("train_digits.png"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=3000, help="training steps (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=16, help="samples of each digit (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--threads",
        type=int,
        default=nf.info()["threads"],
        help="default: as many as cores, %(default)s",
    )
    arguments = parser.parse_args(argv)

    torch.set_num_threads(arguments.threads)
    print(f"torch and noisefuse on {arguments.threads} thread{'s' * (arguments.threads > 1)}", flush=True)
    began = time.perf_counter()
    with nf.set_num_threads(arguments.threads):
        trained = train(arguments.steps, seed=arguments.seed, tell=progress(arguments.steps))
    minutes = (time.perf_counter() - began) / 60
    labels = torch.arange(DIGITS).repeat_interleave(arguments.columns)
    samples = draw(trained.network, labels, nf.Noise(arguments.seed))
    picture(trained.losses, samples, arguments.columns).savefig(arguments.out, dpi=120)
    print(f"{arguments.steps} steps in {minutes:.1f} minutes, the last losses {np.mean(trained.losses[-100:]):.4f}")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
