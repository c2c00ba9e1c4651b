# SPDX-License-Identifier: Apache-2.0
"""Noise for the batches of a `torch.utils.data.DataLoader`: a whole batch at once, the same one whoever draws it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

import noisefuse as nf


class NoisyBatch:
    """Noises a batch whose items have ids: ``x_t, t, target = noisy(ids, images)``, or ``collate_fn=noisy.collate``.

    What is drawn depends on the seed, the item's id and the epoch alone: not on the number of workers, the batch size
    or the order. So a run resumes at any epoch and batch with the noise that it would have had.

    Args:
        schedule: Schedule; t is uniform over its steps.
        noise: Noise or int seed; its step is the first epoch, and the ids take the place of its samples.
        target: as in `q_sample`.
    """

    def __init__(self, schedule: nf.Schedule, noise: nf.Noise | int, *, target: Any = "epsilon") -> None:
        self.schedule, self.target = schedule, target
        self.noise = nf.Noise(noise) if isinstance(noise, int) else noise
        # In memory that workers share: those that live longer than an epoch would keep a number as it was.
        self._epoch = torch.tensor(self.noise.step, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """To be called before each epoch, in the process that has the loader, as a DistributedSampler's."""
        self._epoch.fill_(self.noise.at(step=epoch).step)

    def __call__(self, ids: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids: integers (B,), on the CPU. images: (B, ...) on any device, uint8 (0 .. 255 become -1 .. 1) or float.

        Returns:
            x_t and target, of the images' shape, and t (B,) int64; all on their device.
        """
        noise = self.noise.at(sample=ids, step=self.epoch)
        u = nf.uniform((len(images), 1), noise)[:, 0]  # of a stream of its own, so independent of x_t's noise
        t = torch.from_numpy((u * len(self.schedule)).astype("int64"))
        x_t, target = nf.q_sample(images, t, self.schedule, noise, target=self.target)
        return x_t, t.to(images.device), target

    def collate(self, items: list[Any]) -> tuple[Any, ...]:
        """For workers: items (id, image, ...) become (x_t, t, target, ...), the rest as torch stacks it."""
        ids, images, *more = default_collate(items)
        return *self(ids, images), *more
