# SPDX-License-Identifier: Apache-2.0
"""Noise for the batches of a `torch.utils.data.DataLoader`: a whole batch at once, the same in any process.

The noise depends on the seed, the item's id and the epoch alone: not on the number of workers, the batch size or the
order. So a run resumes at any epoch and batch with the same noise. Ids are ints in [0, 2^56), or strs, such as
WebDataset's ``__key__``: `augment.sample_id`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import noisefuse as nf

from ..ground.needs import needs
from ..language.axis import ModelTime
from ..views import Target
from .columns import Augments, Keyed, Times, Training, Trains, alone, of_rows

with needs(__name__, "torch"):
    import torch
    from torch import Tensor
    from torch.utils.data import default_collate, default_convert


class _NamedBatch(Keyed):
    """A callable that takes the ids and the images of a batch."""

    noise: nf.Noise

    def __init__(self, noise: nf.Noise) -> None:
        super().__init__(noise)
        # Workers share this memory: workers that outlive an epoch would keep an old number.
        self._epoch = torch.tensor(self.noise.step, dtype=torch.int64)
        self._epoch.share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch. Call it before each epoch, in the process of the loader, like a DistributedSampler's."""
        self._epoch.fill_(self.noise.at(step=epoch).step)

    def _told(self) -> str:
        return f"{self.noise!r}, epoch={self.epoch}"

    def _named(self, ids: Any) -> nf.Noise:
        return of_rows(self.noise.at(step=self.epoch), ids)

    def collate(self, items: list[Any]) -> tuple[Any, ...]:
        """Collates items (id, image, ...) in workers, ``collate_fn=batch.collate``: a call's results, and the rest as
        torch stacks it. Images of several shapes are a list. TypeError: the items have another form."""
        first = items[0]
        if not isinstance(first, tuple | list) or len(first) < 2:
            found = f"{type(first).__name__}{f' of {len(first)}' if isinstance(first, tuple | list) else ''}"
            raise TypeError(f"expected a data set of items (id, image, ...), got an item that is a {found}")
        if len({np.shape(item[1]) for item in items}) > 1:
            ids, *more = default_collate([(key, *rest) for key, _, *rest in items])
            images = default_convert([item[1] for item in items])
        else:
            ids, images, *more = default_collate(items)
        made = self(ids, images)  # type: ignore[operator]
        return *(made if isinstance(made, tuple) else (made,)), *more


class NoisyBatch(Trains, _NamedBatch):
    """Adds noise to a batch whose items have ids: ``x_t, t, target = noisy(ids, images)``, or
    ``collate_fn=noisy.collate``.

    Args:
        schedule: a Schedule.
        noise: a Noise; its step is the first epoch, and the ids replace its samples.
        target: as in `q_sample`.
        times, model_time: as in `interop.columns.NoisyColumns`; with a model_time there is a fourth tensor.
    """

    def __init__(
        self, schedule: nf.Schedule, noise: nf.Noise, *, target: Target = "epsilon", times: Times = "index",
        model_time: ModelTime | None = None,
    ) -> None:  # fmt: skip
        super().__init__(Training(schedule, target, times, model_time), noise)

    def __call__(self, ids: Any, images: Tensor | list[Tensor]) -> tuple[Any, ...]:
        """ids: integers (B,), on the CPU, or a list of ints or strs. images: (B, ...) on any device, uint8 (0 .. 255
        become -1 .. 1) or float; or a list of images of several shapes.

        Returns:
            x_t, t and target, and the network's time if ``model_time`` is given. x_t and target have the images' shape,
            or are lists, t is int64 or float32 (B,), which losses and weights take; all are on their device.
        """
        noise = self._named(ids)
        if isinstance(images, list):
            columns = alone(self._made, noise, images).values()
            return (*(each if each[0].ndim else torch.stack(each) for each in columns),)
        return (*self._made(noise, images).values(),)

    def _made(self, noise: nf.Noise, images: Tensor) -> dict[str, Tensor]:
        t = torch.from_numpy(self.training.drawn(noise, len(images)))
        made = self.training.made(images, t, noise, batched=True)
        return {name: each.to(images.device) for name, each in made.items()}


class AugmentedBatch(Augments, _NamedBatch):
    """Augments a batch whose items have ids: ``images = augmented(ids, images)``, or ``collate_fn=augmented.collate``.

    Args:
        augment: function(images, noise) -> images, for instance of `noisefuse.augment`. Each stage takes one stream of
            the noise: ``lambda x, noise: nf.augment.sensor(x, 0.5, 2.0, noise.at(stream=64))``. Spawned workers need a
            function that can be pickled.
        noise: a Noise; its step is the first epoch, and the ids replace its samples.
    """

    def __init__(self, augment: Callable[[Tensor, nf.Noise], Any], noise: nf.Noise) -> None:
        super().__init__(augment, noise)

    def __call__(self, ids: Any, images: Tensor | list[Tensor]) -> Any:
        """ids: integers (B,), on the CPU, or a list of ints or strs. images: (B, ...), as `augment` takes them, or a
        list of images of several shapes, as functions of `noisefuse.augment` take it."""
        return self.augment(images, self._named(ids))
