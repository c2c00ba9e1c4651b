# SPDX-License-Identifier: Apache-2.0
"""Trains a small masked diffusion model on the characters of pages of this repository, and writes text with it.

    python examples/text_diffusion.py           about two minutes on two idle cores; draws text_diffusion.png

The network learns the characters behind masks (`nf.q_mask`), at times that cover [0, 1] evenly in each batch
(`nf.discrete.times`), by LLaDA's loss (`nf.masked_cross_entropy`). Four samplers then write from masks alone. A run
that stops half-way and goes on, and a batch that two processes share, give the same characters to the bit: no draw
depends on what was drawn before.

Needs matplotlib and torch: pip install '.[demo,torch]'.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import noisefuse as nf
from noisefuse.ground.drawing import INK, STYLE

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*sampler*.md"))
LENGTH = 96  # characters of a sample
SHOWN = 44  # of them in the picture
SCHEDULE = nf.discrete.llada()  # p = (1 - eps) t + eps


class Text(NamedTuple):
    """A text as numbers of its characters; the mask is the number after the last one."""

    ids: np.ndarray
    characters: str

    @property
    def mask_id(self) -> int:
        return len(self.characters)

    def show(self, ids: np.ndarray | Tensor) -> str:
        return "".join((self.characters + "_")[i] for i in ids)


def load() -> Text:
    lines = [line for page in PAGES for line in page.read_text().splitlines() if not line.startswith("|")]  # no tables
    text = " ".join(" ".join(lines).split())
    characters = "".join(sorted(set(text)))
    return Text(np.array([characters.index(c) for c in text]), characters)


# ---- the network -------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block over neighbours of a width that grows from block to block."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.near = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)
        self.mix = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        near = self.near(self.norm(h).transpose(1, 2)).transpose(1, 2)
        return h + self.mix(nn.functional.gelu(near))


class Network(nn.Module):
    """Returns logits (B, L, V) from characters and masks (B, L). It needs no time: the masks tell it."""

    def __init__(self, characters: int, width: int = 128, blocks: int = 5) -> None:
        super().__init__()
        self.token = nn.Embedding(characters + 1, width)
        self.blocks = nn.Sequential(*(Block(width, 2 ** (i % 4)) for i in range(blocks)))
        self.leave = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.leave(self.blocks(self.token(x)))
        return out


# ---- training ----------------------------------------------------------------------------------------------


def train(
    text: Text, steps: int, *, seed: int = 0, batch: int = 32, tell: Callable[[Sequence[float]], None] | None = None
) -> tuple[Network, list[float]]:
    torch.manual_seed(seed)
    network = Network(len(text.characters))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    starts, losses = len(text.ids) - LENGTH, []
    for step in range(steps):
        noise = nf.Noise(seed, step=step)
        begin = (starts * nf.uniform(batch, noise)).astype(int)
        ids = torch.from_numpy(text.ids[begin[:, None] + np.arange(LENGTH)])
        p = SCHEDULE(nf.discrete.times(batch, noise))
        x_t, masked = nf.q_mask(ids, p, noise, text.mask_id)
        losses.append(learn(network, optimizer, x_t, ids, masked, torch.from_numpy(1 / p)))
        rate.step()
        if tell is not None:
            tell(losses)
    return network.eval(), losses


def learn(
    network: Network, optimizer: torch.optim.Optimizer, x_t: Tensor, ids: Tensor, masked: Tensor, weight: Tensor
) -> float:
    """Makes one step down the mean of masked (1 / p) (-ln p_theta) over all characters, LLaDA's equation 3."""
    loss = nf.masked_cross_entropy(network(x_t), ids, masked, weight)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def progress(steps: int, every: float = 3.0) -> Callable[[Sequence[float]], None]:
    """Prints a line every few seconds, and at the last step."""
    began = shown = time.perf_counter()

    def tell(losses: Sequence[float]) -> None:
        nonlocal began, shown
        now, done = time.perf_counter(), len(losses)
        if done == 1:
            began = shown = now  # torch prepares itself in the first step
        if done == steps or now - shown >= every:
            shown = now
            left = (now - began) / max(done - 1, 1) * (steps - done)
            print(f"step {done} of {steps}, loss {np.mean(losses[-100:]):.3f}, {left:.0f} s left", flush=True)

    return tell


# ---- sampling ----------------------------------------------------------------------------------------------


def samplers(mask_id: int, steps: int = 48) -> dict[str, nf.DiscreteSampler]:
    return {
        "mdlm": nf.samplers.mdlm(steps, mask_id=mask_id),
        "remdm": nf.samplers.remdm(steps, mask_id=mask_id, eta=0.05),
        "llada": nf.samplers.llada(steps, mask_id=mask_id, temperature=0.7),
        "discrete_flow": nf.samplers.discrete_flow(steps, mask_id=mask_id),
    }


@torch.no_grad()
def write(
    network: Network, sampler: nf.DiscreteSampler, n: int, noise: nf.Noise, *, x: Tensor | None = None, start: int = 0
) -> list[Tensor]:
    """Returns x (n, LENGTH) after each step from ``start`` on."""
    seen: list[Tensor] = []
    first = torch.from_numpy(sampler.start((n, LENGTH))) if x is None else x
    options = {"start": start, "callback": lambda i, x, drawn: seen.append(x.clone())}
    sampler.sample(lambda x, t: network(x), first, noise, **options)
    return seen


def check(network: Network, sampler: nf.DiscreteSampler, noise: nf.Noise) -> None:
    """Runs four samples whole, in two halves one after the other, and on two ranks: the same characters."""
    half, seen = len(sampler) // 2, write(network, sampler, 4, noise)
    assert torch.equal(write(network, sampler, 4, noise, x=seen[half - 1], start=half)[-1], seen[-1])
    # A network's logits may differ in the last place with the batch around a row, so both see the same ones here.
    x, logits = seen[half - 1], network(seen[half - 1]).detach()
    whole = sampler.step(half, x, logits, noise)
    for rank in range(2):
        part = slice(2 * rank, 2 * rank + 2)
        own = noise.at(sample=noise.sample + 2 * rank)
        assert torch.equal(sampler.step(half, x[part], logits[part], own), whole[part])


# ---- the picture and the program ---------------------------------------------------------------------------


def picture(text: Text, runs: dict[str, list[Tensor]], losses: Sequence[float]) -> Figure:
    """Draws the loss, and for each sampler the first characters of a sample as they appear over the steps."""
    style = {"font.size": 12, "axes.titlesize": 12, "axes.titlepad": 4}  # 9 pixels or more on a phone
    with matplotlib.rc_context(STYLE | style):
        figure = Figure(figsize=(6.5, 1.6 + 1.7 * len(runs)), layout="constrained")
        top, *axes = figure.subplots(1 + len(runs), 1, height_ratios=[0.8, *(1.0 for _ in runs)])
        top.plot(losses, color="#c9d2e0", linewidth=0.5)
        width = max(1, len(losses) // 50)
        top.plot(np.convolve(losses, np.ones(width) / width, "valid"), color=INK)
        top.set(xlabel="step of training", ylabel="loss")
        for ax, (name, seen) in zip(axes, runs.items(), strict=True):
            frames = np.stack([x[0, :SHOWN].numpy() for x in seen])
            shown = frames != text.mask_id
            age = np.where(shown, np.arange(len(frames))[:, None] - np.argmax(shown, axis=0), -1)
            ax.imshow(np.where(shown, 0.2 + 0.8 * np.exp(-age / 3), 0.0), cmap="Blues", aspect="auto", vmin=0, vmax=1.4)
            ax.set(title=name, ylabel="step", yticks=[0, len(frames) - 1])
            ax.set_xticks(range(frames.shape[1]), list(text.show(frames[-1])), family="monospace")
            ax.tick_params(length=0)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a masked diffusion model on characters, and write with it.")
    parser.add_argument("--out", type=Path, default=Path("text_diffusion.png"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=48, help="model calls of a sampler (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=nf.info()["threads"], help="default: as many as cores")
    arguments = parser.parse_args(argv)

    torch.set_num_threads(arguments.threads)
    with nf.set_num_threads(arguments.threads):
        text = load()
        network, losses = train(text, arguments.steps, seed=arguments.seed, tell=progress(arguments.steps))
        noise, runs = nf.Noise(arguments.seed + 1), {}
        for name, sampler in samplers(text.mask_id, arguments.calls).items():
            runs[name] = write(network, sampler, 2, noise)
            for x in runs[name][-1]:
                print(f"{name:>14}: {text.show(x)}", flush=True)
            check(network, sampler, noise)
        print("each run was the same in two halves and on two ranks", flush=True)
    picture(text, runs, losses).savefig(arguments.out, dpi=150)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
