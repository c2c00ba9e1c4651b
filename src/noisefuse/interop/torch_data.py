# SPDX-License-Identifier: Apache-2.0
"""Noise for the batches of a `torch.utils.data.DataLoader`: a whole batch at once, the same one whoever draws it.

What is drawn depends on the seed, the item's id and the epoch alone: not on the number of workers, the batch size or
the order. So a run resumes at any epoch and batch with the noise that it would have had. Ids are ints in [0, 2^56), or
strs, as WebDataset's ``__key__``: `augment.sample_id`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import noisefuse as nf

from ..ground.needs import needs
from ..views import Target
from .columns import drawn_times, need_function, need_noise, need_training, of_rows, told

with needs(__name__, "torch"):
    import torch
    from torch import Tensor
    from torch.utils.data import default_collate


class _NamedBatch:
    """Called with the ids and the images of a batch."""

    def __init__(self, noise: nf.Noise) -> None:
        need_noise(noise)
        self.noise: nf.Noise = noise
        # In memory that workers share: those that live longer than an epoch would keep a number as it was.
        self._epoch = torch.tensor(self.noise.step, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """To be called before each epoch, in the process that has the loader, as a DistributedSampler's."""
        self._epoch.fill_(self.noise.at(step=epoch).step)

    def _named(self, ids: Any) -> nf.Noise:
        return of_rows(self.noise.at(step=self.epoch), ids)

    def collate(self, items: list[Any]) -> tuple[Any, ...]:
        """For workers, ``collate_fn=batch.collate``: items (id, image, ...) become what a call makes of them, and the
        rest as torch stacks it. TypeError: other items."""
        first = items[0]
        if not isinstance(first, tuple | list) or len(first) < 2:
            found = f"{type(first).__name__}{f' of {len(first)}' if isinstance(first, tuple | list) else ''}"
            raise TypeError(f"expected a data set of items (id, image, ...), got an item that is a {found}")
        ids, images, *more = default_collate(items)
        made = self(ids, images)  # type: ignore[operator]
        return *(made if isinstance(made, tuple) else (made,)), *more


class NoisyBatch(_NamedBatch):
    """Noises a batch whose items have ids: ``x_t, t, target = noisy(ids, images)``, or ``collate_fn=noisy.collate``.

    Args:
        schedule: Schedule; t is uniform over its steps.
        noise: Noise; its step is the first epoch, and the ids take the place of its samples.
        target: as in `q_sample`.
    """

    def __init__(self, schedule: nf.Schedule, noise: nf.Noise, *, target: Target = "epsilon") -> None:
        super().__init__(noise)
        need_training(schedule, target)
        self.schedule: nf.Schedule = schedule
        self.target: Target = target

    def __repr__(self) -> str:
        return f"NoisyBatch({told(self.schedule)}, {self.noise!r}, target={self.target!r}, epoch={self.epoch})"

    def __call__(self, ids: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids: integers (B,), on the CPU, or a list of ints or strs. images: (B, ...) on any device, uint8 (0 .. 255
        become -1 .. 1) or float.

        Returns:
            x_t and target, of the images' shape, and t (B,) int64; all on their device.
        """
        noise = self._named(ids)
        t = torch.from_numpy(drawn_times(self.schedule, noise, len(images)))
        x_t, target = nf.q_sample(images, t, self.schedule, noise, target=self.target, batched=True)
        return x_t, t.to(images.device), target


class AugmentedBatch(_NamedBatch):
    """Augments a batch whose items have ids: ``images = augmented(ids, images)``, or ``collate_fn=augmented.collate``.

    Args:
        augment: function(images, noise) -> images, of `noisefuse.augment`, say; a stage takes a stream of the noise:
            ``lambda x, noise: nf.augment.sensor(x, 0.5, 2.0, noise.at(stream=64))``. Workers that are spawned need one
            that can be pickled.
        noise: Noise; its step is the first epoch, and the ids take the place of its samples.
    """

    def __init__(self, augment: Callable[[Tensor, nf.Noise], Any], noise: nf.Noise) -> None:
        super().__init__(noise)
        need_function(augment)
        self.augment: Callable[[Tensor, nf.Noise], Any] = augment

    def __repr__(self) -> str:
        return f"AugmentedBatch({told(self.augment)}, {self.noise!r}, epoch={self.epoch})"

    def __call__(self, ids: Any, images: Tensor) -> Any:
        """ids: integers (B,), on the CPU, or a list of ints or strs. images: (B, ...), as `augment` takes them."""
        return self.augment(images, self._named(ids))
