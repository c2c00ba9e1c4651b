# SPDX-License-Identifier: Apache-2.0
"""Train a diffusion model on handwritten digits with several processes, and with one: the same bits.

    python examples/ddp_digits.py
    torchrun --nproc-per-node 4 examples/ddp_digits.py --checkpoint run.pt

An image's noise and time are functions of its index and the epoch, and the order of an epoch is a function of the
epoch. So no process broadcasts noise, draws for others, or keeps the state of a generator. A stopped run goes on from
its checkpoint, even with another number of processes. The loss of a step, and of the validation set (the same images,
times and noise each time), is that of one process: its parts are added in the order of the contract.

So that the weights are the same, too, a batch is learned in pieces of 16 images, whose gradients are gathered and added
in order. DistributedDataParallel would send less, but adds in an order of its own: then the noise is the same, but the
last bits of the weights are not.

Needs matplotlib, scikit-learn and torch: pip install '.[demo,torch]'.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn  # imported after a group is made, it keeps the group, and gloo's threads may crash at exit
from torch import Tensor

import noisefuse as nf
from noisefuse.interop.columns import drawn_times
from train_digits import SCHEDULE, Denoiser, load

BATCH, PIECE = 64, 16  # images
VALIDATION = 320  # images at the end of the set, which are not trained on
ORDER = 64  # the stream for the order of an epoch
FIXED = 2**32 - 1  # the epoch of the validation set's noise, which training does not reach


def ranks() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(mine: Any) -> list[Any]:
    """Returns the values of all processes, in their order."""
    everyone = [mine] * ranks()[1]
    if dist.is_initialized():
        dist.all_gather_object(everyone, mine)
    return everyone


class Trainer:
    """Everything but the weights is a function of the step number."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.noise, self.step = nf.Noise(seed), 0
        self.images, self.labels = load()
        self.network = Denoiser(width=64, blocks=2)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=2e-3)

    def batch(self, step: int) -> tuple[int, Any]:
        """Returns the epoch, and the indices of the images."""
        n = len(self.images) - VALIDATION
        epoch, place = divmod(step, n // BATCH)
        order = np.argsort(nf.uniform(n, self.noise.at(step=epoch, stream=ORDER), batched=False), kind="stable")
        return epoch, order[place * BATCH : (place + 1) * BATCH]

    def part(self, ids: Any, epoch: int, *, learn: bool) -> nf.loss.LossPart:
        """Returns the losses of these images; `learn` adds the gradient of their mean loss to the weights'."""
        noise = self.noise.at(sample=ids, step=epoch)
        t = torch.from_numpy(drawn_times(SCHEDULE, noise, len(ids)))
        x0, labels = self.images[ids], self.labels[ids]
        with torch.set_grad_enabled(learn):
            pred = self.network(nf.q_sample(x0, t, SCHEDULE, noise), t, labels)
        if learn:
            nf.mse_loss(pred, x0, t, SCHEDULE, noise, target="v").backward()
        return nf.mse_loss(pred.detach(), x0, t, SCHEDULE, noise, target="v", partial=True)

    def learn(self) -> float:
        """Takes a step, and returns the loss of the whole batch."""
        rank, world = ranks()
        epoch, ids = self.batch(self.step)
        parts, gradients = [], []
        for piece in np.split(ids, BATCH // PIECE)[
            rank * BATCH // PIECE // world : (rank + 1) * BATCH // PIECE // world
        ]:
            self.optimizer.zero_grad(set_to_none=False)
            parts.append(self.part(piece, epoch, learn=True))
            gradients.append(torch.cat([p.grad.flatten() for p in self.network.parameters() if p.grad is not None]))
        everyones = gathered((parts, gradients))
        total: Tensor = sum(g for _, theirs in everyones for g in theirs) * (PIECE / BATCH)
        sizes = [p.numel() for p in self.network.parameters()]
        for p, g in zip(self.network.parameters(), total.split(sizes), strict=True):
            p.grad = g.view_as(p)
        self.optimizer.step()
        self.step += 1
        return float(nf.density.combine([part for theirs, _ in everyones for part in theirs]))

    def validate(self) -> float:
        rank, world = ranks()
        ids = np.arange(len(self.images) - VALIDATION, len(self.images))
        mine = [self.part(piece, FIXED, learn=False) for piece in np.split(ids, VALIDATION // PIECE)[rank::world]]
        everyones = gathered(mine)
        pieces = [everyones[piece % world][piece // world] for piece in range(VALIDATION // PIECE)]
        return float(nf.density.combine(pieces))

    def save(self, path: Path) -> None:
        """Saves the weights and the number of steps: a generator's state is not needed."""
        if ranks()[0] == 0:
            kept = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
            torch.save(kept, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        kept = torch.load(path)
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.step = kept["step"]

    def digest(self) -> str:
        weights = b"".join(p.detach().numpy().tobytes() for p in self.network.parameters())
        return hashlib.sha256(weights).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="from which it goes on, and where it is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the same number in all processes: a sum on two threads may have another last bit
    if "RANK" in os.environ:  # torchrun sets it
        dist.init_process_group("gloo")
    if BATCH // PIECE % ranks()[1]:
        parser.error(f"{BATCH // PIECE} pieces of a batch cannot be shared by {ranks()[1]} processes")
    trainer = Trainer(arguments.seed)
    if arguments.checkpoint and arguments.checkpoint.exists():
        trainer.load(arguments.checkpoint)
    while trainer.step < arguments.steps:
        loss = trainer.learn()
        if trainer.step % 50 == 0 or trainer.step == arguments.steps:
            validated = trainer.validate()
            if arguments.checkpoint:
                trainer.save(arguments.checkpoint)
            if ranks()[0] == 0:
                print(f"step {trainer.step}: loss {loss!r}, validation {validated!r}", flush=True)
    if ranks()[0] == 0:
        print(f"weights {trainer.digest()}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
