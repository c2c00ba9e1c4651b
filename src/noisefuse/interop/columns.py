# SPDX-License-Identifier: Apache-2.0
"""Noise for batches of columns. A batch is a dict of NumPy arrays, one of which holds the rows' ids.

Ray Data's ``map_batches(.., batch_format="numpy")`` and Hugging Face's ``map(.., batched=True)`` pass such batches. The
noise depends on the seed, the row's id and the noise's step alone: not on the batches, their order, or the workers. Ids
are ints in [0, 2^56), or strs: `augment.sample_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import noisefuse as nf

from ..noise import got
from ..schedule import need_schedule
from ..views import Target, need_target

Columns: TypeAlias = Mapping[str, Any]


def need_noise(noise: object) -> None:
    """Raises TypeError unless this is a Noise, whose key gives all but the samples."""
    if not isinstance(noise, nf.Noise):
        raise TypeError(f"noise: expected a Noise, got {got(noise)}")


def need_training(schedule: object, target: object) -> None:
    """Raises TypeError or ValueError if no pair of x_t and a target can be made of these."""
    need_schedule(schedule)
    need_target(target)


def need_function(augment: object) -> None:
    if not callable(augment):
        raise TypeError(f"augment: expected a function(images, noise) -> images, got {type(augment).__name__}")


def told(made_of: Any) -> str:
    """Returns the text for a schedule, or a function, in a repr."""
    if isinstance(made_of, nf.Schedule):
        return f"{made_of.name}, {len(made_of)} steps"
    return getattr(made_of, "__qualname__", repr(made_of))


def of_rows(noise: nf.Noise, ids: Any) -> nf.Noise:
    """Returns the noise of rows with these ids: integers (B,), or ints and strs."""
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "OUT":
        ids = ids.tolist()
    if isinstance(ids, list | tuple) and any(isinstance(key, str) for key in ids):
        ids = [nf.augment.sample_id(key) for key in ids]
    return noise.at(sample=ids)


def drawn_times(schedule: nf.Schedule, noise: nf.Noise, n: int) -> NDArray[np.int64]:
    """Returns a uniform time for each of n rows. It is always drawn from stream 7, and so independent of the noise."""
    u = nf.uniform((n, 1), noise.at(stream=0))[:, 0]
    times: NDArray[np.int64] = (u * len(schedule)).astype(np.int64)
    return times


class _NamedColumns:
    def __init__(self, noise: nf.Noise, id: str, image: str) -> None:
        need_noise(noise)
        self.noise: nf.Noise = noise
        self.id: str = id
        self.image: str = image

    def _told(self) -> str:
        return f"{self.noise!r}, id={self.id!r}, image={self.image!r}"

    def _read(self, batch: Columns) -> tuple[nf.Noise, Any]:
        for name in (self.id, self.image):
            if name not in batch:
                raise KeyError(f"no column {name!r} in the batch, which has {', '.join(map(repr, batch))}")
        return of_rows(self.noise, batch[self.id]), np.asarray(batch[self.image])


class NoisyColumns(_NamedColumns):
    """Adds noise to the images of a batch; docs/dask.md has the lines for Ray Data, Hugging Face and Spark.

    Args:
        schedule: a Schedule; t is uniform over its steps.
        noise: a Noise; its step is the epoch, and the ids replace its samples.
        id, image: the names of two columns: the ids, and the images (B, ...), uint8 (0 .. 255 become -1 .. 1) or float.
        target: as in `q_sample`.

    >>> noisy = nf.interop.columns.NoisyColumns(nf.Schedule.cosine(1000), nf.Noise(7, step=3))
    >>> batch = noisy({"id": np.array([17, 4]), "image": np.zeros((2, 8, 8, 3), np.uint8)})
    >>> {name: column.shape for name, column in batch.items()}
    {'id': (2,), 'x_t': (2, 8, 8, 3), 't': (2,), 'target': (2, 8, 8, 3)}
    """

    def __init__(
        self,
        schedule: nf.Schedule,
        noise: nf.Noise,
        *,
        id: str = "id",
        image: str = "image",
        target: Target = "epsilon",
    ) -> None:
        super().__init__(noise, id, image)
        need_training(schedule, target)
        self.schedule: nf.Schedule = schedule
        self.target: Target = target

    def __repr__(self) -> str:
        return f"NoisyColumns({told(self.schedule)}, {self._told()}, target={self.target!r})"

    def __call__(self, batch: Columns) -> dict[str, Any]:
        """Returns the batch's columns, with x_t, t (int64) and target in place of the images.

        Raises:
            KeyError: a column is missing. Other errors are those of `q_sample`.
        """
        noise, images = self._read(batch)
        t = drawn_times(self.schedule, noise, len(images))
        x_t, target = nf.q_sample(images, t, self.schedule, noise, target=self.target, batched=True)
        rest = {name: column for name, column in batch.items() if name != self.image}
        return {**rest, "x_t": x_t, "t": t, "target": target}


class AugmentedColumns(_NamedColumns):
    """Augments the images of a batch, for instance by `noisefuse.augment`.

    Args:
        augment: function(images, noise) -> images; each stage takes one stream of the noise. Workers in other processes
            need a function that can be pickled.
        noise, id, image: as in `NoisyColumns`.

    >>> def speckled(images, noise):
    ...     return nf.augment.multiplicative(images, 0.1, noise)
    >>> augmented = nf.interop.columns.AugmentedColumns(speckled, nf.Noise(7), id="key")
    >>> batch = augmented({"key": ["a/1.png", "a/2.png"], "image": np.full((2, 8, 8, 3), 90, np.uint8)})
    >>> batch["image"].shape, batch["key"]
    ((2, 8, 8, 3), ['a/1.png', 'a/2.png'])
    """

    def __init__(
        self, augment: Callable[[Any, nf.Noise], Any], noise: nf.Noise, *, id: str = "id", image: str = "image"
    ) -> None:
        super().__init__(noise, id, image)
        need_function(augment)
        self.augment: Callable[[Any, nf.Noise], Any] = augment

    def __repr__(self) -> str:
        return f"AugmentedColumns({told(self.augment)}, {self._told()})"

    def __call__(self, batch: Columns) -> dict[str, Any]:
        """Returns the batch with augmented images. KeyError: a column is missing."""
        noise, images = self._read(batch)
        return {**batch, self.image: self.augment(images, noise)}
