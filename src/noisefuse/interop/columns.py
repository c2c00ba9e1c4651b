# SPDX-License-Identifier: Apache-2.0
"""Noise for batches of columns. A batch is a dict of NumPy arrays, one of which holds the rows' ids.

Ray Data's ``map_batches(.., batch_format="numpy")`` and Hugging Face's ``map(.., batched=True)`` pass such batches. The
noise depends on the seed, the row's id and the noise's step alone: not on the batches, their order, or the workers. Ids
are ints in [0, 2^56), or strs: `augment.sample_id`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

import noisefuse as nf

from ..ground.checks import check_integer, got
from ..language.axis import ModelTime
from ..language.schedule import check_schedule
from ..views import Target, check_target

Columns: TypeAlias = Mapping[str, Any]

Times: TypeAlias = Literal["index", "float", "logit_normal"] | Callable[[NDArray[np.float64]], Any]
"""Training times: uniform indices; the schedule's own times, uniform or as 1 / (1 + e^-z), z ~ N(0, 1) (Esser et al.
2024), from its first to its last; or a function from uniform numbers (B,) to own times."""


class Training(NamedTuple):
    """Makes x_t, t, the target and, if it is asked for, the network's time, from a loader's images."""

    schedule: nf.Schedule
    target: Target
    times: Times
    model_time: ModelTime | None

    def checked(self) -> Training:
        """Returns itself. TypeError, ValueError: no x_t, time and target can be made of these."""
        schedule, target, times, model_time = self
        check_schedule(schedule)
        check_target(target)
        schedule.forward(target)  # its errors: the velocity needs derivatives
        if times not in ("index", "float", "logit_normal") and not callable(times):
            raise ValueError(f'times = {times!r}: expected "index", "float", "logit_normal" or a function')
        if times != "index" and not schedule.continuous:
            raise TypeError(f"times: a {schedule.name} schedule has no float times")
        if times in ("float", "logit_normal"):
            _ends(schedule, times)
        if times != "index" and model_time == "index":  # the least times have none
            raise ValueError('model_time = "index": expected another one with float times, or times="index"')
        if model_time is not None:
            schedule.model_time(len(schedule) - 1, model_time)
        return self

    def told(self) -> str:
        """Returns the text for a repr, without what is so by default."""
        more = {"times": (self.times, "index"), "model_time": (self.model_time, None)}
        return f"target={self.target!r}" + "".join(
            f", {name}={getattr(given, '__qualname__', repr(given))}"
            for name, (given, default) in more.items()
            if given != default
        )

    def drawn(self, noise: nf.Noise, n: int) -> NDArray[Any]:
        return drawn_times(self.schedule, noise, n, self.times)

    def made(self, images: Any, t: Any, noise: nf.Noise, *, batched: bool) -> dict[str, Any]:
        """Returns x_t, t, target and the network's time, for times t like the images."""
        x_t, target = nf.q_sample(images, t, self.schedule, noise, target=self.target, batched=batched)
        made = {"x_t": x_t, "t": t, "target": target}
        return made if self.model_time is None else made | {"model_time": self.schedule.model_time(t, self.model_time)}


class Masking(NamedTuple):
    """Makes x_t, t, masked and the weight of tokens, as `Training` does of images."""

    schedule: nf.discrete.MaskSchedule
    mask_id: Any

    def checked(self) -> Masking:
        check_integer("mask_id", self.mask_id)
        return self

    def told(self) -> str:
        return f"mask_id={self.mask_id}"

    def drawn(self, noise: nf.Noise, n: int) -> NDArray[Any]:
        return np.asarray(nf.discrete.times(n, noise, kind="independent"), np.float32)

    def made(self, ids: Any, t: Any, noise: nf.Noise, *, batched: bool) -> dict[str, Any]:
        x_t, masked = nf.q_mask(ids, self.schedule(t), noise, self.mask_id, batched=batched)
        return {"x_t": x_t, "t": t, "masked": masked, "weight": self.schedule.weight(t).astype(np.float32)}


def drawn_times(schedule: nf.Schedule, noise: nf.Noise, n: int, times: Times = "index") -> NDArray[Any]:
    """Returns a time for each of n rows, int64 or float32. It is always drawn from stream 7, and so independent of the
    noise."""
    if times == "logit_normal":
        along = 1 / (1 + np.exp(-nf.randn((n, 1), noise.at(stream=7), dtype="float64")[:, 0]))
    else:
        along = nf.uniform((n, 1), noise.at(stream=0), dtype="float32" if times == "index" else "float64")[:, 0]
    if times == "index":
        return np.asarray(along * len(schedule), np.int64)
    if callable(times):
        return np.asarray(times(along), np.float32)
    first, last = _ends(schedule, times)
    return np.asarray(first + along * (last - first), np.float32)  # what networks and losses take


def _ends(schedule: nf.Schedule, times: Times) -> tuple[float, float]:
    """Returns the cleanest and the noisiest time."""
    first, last = schedule.times or (0.0, math.inf)
    if last == math.inf:
        raise ValueError(f'times = "{times}": expected a schedule with a last time, got {schedule.name}')
    return first, last


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


def alone(made: Callable[[nf.Noise, Any], dict[str, Any]], noise: nf.Noise, images: Any) -> dict[str, list[Any]]:
    """Returns columns of what a function makes of images of several shapes, each of which is a batch of one."""
    ids = np.asarray(noise.sample)
    rows = [made(noise.at(sample=ids[b : b + 1]), image[None]) for b, image in enumerate(images)]
    return {name: [row[name][0] for row in rows] for name in rows[0]}


class Keyed:
    """The classes for loaders have it as their base: a noise, which names all but the samples, and a text for repr."""

    def __init__(self, noise: nf.Noise | None) -> None:
        if not isinstance(noise, nf.Noise):
            raise TypeError(f"noise: expected a Noise, got {got(noise)}")
        self.noise: nf.Noise | None = noise

    def _told(self) -> str:
        return repr(self.noise)


class Trains(Keyed):
    """The first base of a class that makes training data; the next one takes the noise and where its images are."""

    def __init__(self, training: Training | Masking, *place: Any) -> None:
        super().__init__(*place)
        self.training: Training | Masking = training.checked()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({told(self.training.schedule)}, {self._told()}, {self.training.told()})"


class Augments(Keyed):
    """Like `Trains`, for a class that augments images by a function."""

    def __init__(self, augment: Callable[[Any, nf.Noise], Any], *place: Any) -> None:
        super().__init__(*place)
        if not callable(augment):
            raise TypeError(f"augment: expected a function(images, noise) -> images, got {type(augment).__name__}")
        self.augment: Callable[[Any, nf.Noise], Any] = augment

    def __repr__(self) -> str:
        return f"{type(self).__name__}({told(self.augment)}, {self._told()})"


class _NamedColumns(Keyed):
    noise: nf.Noise

    def __init__(self, noise: nf.Noise, id: str, image: str, image_dtype: DTypeLike | None) -> None:
        super().__init__(noise)
        self.id: str = id
        self.image: str = image
        self.image_dtype: np.dtype[Any] | None = None if image_dtype is None else np.dtype(image_dtype)

    def _told(self) -> str:
        dtype = "" if self.image_dtype is None else f", image_dtype={self.image_dtype.name!r}"
        return f"{self.noise!r}, id={self.id!r}, image={self.image!r}{dtype}"

    def _made(self, noise: nf.Noise, images: Any) -> dict[str, Any]:
        """Returns the columns that take the images' place."""
        raise NotImplementedError

    def _of_shapes(self, noise: nf.Noise, images: list[NDArray[Any]]) -> dict[str, Any]:
        """Returns the columns for images of several shapes."""
        return alone(self._made, noise, images)

    def __call__(self, batch: Columns) -> dict[str, Any]:
        """Returns the batch with new columns in place of its images. Images of several shapes become lists of arrays.

        Raises:
            KeyError: a column is missing.
            ValueError: an image's number is none of image_dtype. Other errors are those of the operation.
        """
        for name in (self.id, self.image):
            if name not in batch:
                raise KeyError(f"no column {name!r} in the batch, which has {', '.join(map(repr, batch))}")
        noise, images = of_rows(self.noise, batch[self.id]), batch[self.image]
        if not isinstance(images, np.ndarray) or images.dtype == object:
            images = [self._typed(np.asarray(row)) for row in images]
        if isinstance(images, list) and len({row.shape for row in images}) > 1:
            made = self._of_shapes(noise, images)
        else:
            made = self._made(noise, self._typed(np.asarray(images)))
        return {name: column for name, column in batch.items() if name != self.image} | made

    def _typed(self, images: NDArray[Any]) -> NDArray[Any]:
        """Returns the images in their own dtype: libraries that keep lists make bytes int64."""
        dtype = self.image_dtype
        if dtype is None or images.dtype == dtype:
            return images
        typed = images.astype(dtype)
        if dtype.kind in "iu" and not np.array_equal(typed, images):
            found = f"{images.dtype} from {images.min()} to {images.max()}"
            raise ValueError(f"column {self.image!r}: expected numbers of {dtype}, got {found}")
        return typed


class NoisyColumns(Trains, _NamedColumns):
    """Adds noise to the images of a batch, or masks its tokens; docs/dask.md has the lines for Ray Data, Hugging Face
    and Spark.

    Args:
        schedule: a Schedule; or a `discrete.MaskSchedule` for tokens, which `q_mask` masks at a time for each row,
            uniform in [0, 1).
        noise: a Noise; its step is the epoch, and the ids replace its samples.
        id, image: the names of two columns: the ids, and the images (B, ...), uint8 (0 .. 255 become -1 .. 1) or float;
            or a list of them, of one shape or of several.
        image_dtype: the images' own dtype, if the library hands them over as another one: Hugging Face's lists and
            Array3D make bytes int64.
        target: as in `q_sample`.
        times: how t is drawn: "index", uniform over the schedule's steps; "float", uniform in its own time;
            "logit_normal", 1 / (1 + e^-z) with z ~ N(0, 1) (Esser et al. 2024), from its first time to its last; or a
            function from uniform float64 numbers (B,) to own times.
        model_time: what the network is given as its time, as in `Schedule.model_time`: the batch then has a column of
            this name.
        mask_id: the token that stands for the mask. Tokens stay in the batch, and get the columns x_t, t, masked and
            weight, 1 / p(t); target, times and model_time are not for them. Pad them afterwards: rows may have
            several lengths.

    Raises:
        TypeError, ValueError: the message says what was given and what was expected.

    >>> noisy = nf.interop.columns.NoisyColumns(nf.Schedule.cosine(1000), nf.Noise(7, step=3))
    >>> batch = noisy({"id": np.array([17, 4]), "image": np.zeros((2, 8, 8, 3), np.uint8)})
    >>> {name: column.shape for name, column in batch.items()}
    {'id': (2,), 'x_t': (2, 8, 8, 3), 't': (2,), 'target': (2, 8, 8, 3)}
    >>> noisy = nf.interop.columns.NoisyColumns(nf.discrete.linear(), nf.Noise(7), image="input_ids", mask_id=99)
    >>> batch = noisy({"id": [17, 4], "input_ids": [[1, 2, 3], [4, 5, 6, 7, 8]]})
    >>> [row.tolist() for row in batch["x_t"]]
    [[99, 99, 3], [99, 5, 99, 99, 99]]
    """

    def __init__(
        self, schedule: nf.Schedule | nf.discrete.MaskSchedule, noise: nf.Noise, *, id: str = "id",
        image: str = "image", target: Target = "epsilon", times: Times = "index", model_time: ModelTime | None = None,
        image_dtype: DTypeLike | None = None, mask_id: int | None = None,
    ) -> None:  # fmt: skip
        training: Training | Masking
        if isinstance(schedule, nf.discrete.MaskSchedule):
            if (target, times, model_time) != ("epsilon", "index", None):
                raise TypeError("target, times, model_time: expected none of them for tokens")
            training = Masking(schedule, mask_id)
        else:
            training = Training(schedule, target, times, model_time)
            if mask_id is not None:
                raise TypeError(f"mask_id = {mask_id!r}: expected None, or a MaskSchedule of noisefuse.discrete")
        super().__init__(training, noise, id, image, image_dtype)

    def _made(self, noise: nf.Noise, images: Any) -> dict[str, Any]:
        """Returns x_t, t (int64, or float32), target and perhaps the network's time; or the tokens and what is made of
        them."""
        kept = {self.image: images} if isinstance(self.training, Masking) else {}
        return kept | self.training.made(images, self.training.drawn(noise, len(images)), noise, batched=True)


class AugmentedColumns(Augments, _NamedColumns):
    """Augments the images of a batch, for instance by `noisefuse.augment`.

    Args:
        augment: function(images, noise) -> images; each stage takes one stream of the noise. Images of several shapes
            are a list, which functions of `noisefuse.augment` take. Workers in other processes need a function that can
            be pickled.
        noise, id, image, image_dtype: as in `NoisyColumns`.

    >>> def speckled(images, noise):
    ...     return nf.augment.multiplicative(images, 0.1, noise)
    >>> augmented = nf.interop.columns.AugmentedColumns(speckled, nf.Noise(7), id="key")
    >>> batch = augmented({"key": ["a/1.png", "a/2.png"], "image": np.full((2, 8, 8, 3), 90, np.uint8)})
    >>> batch["image"].shape, batch["key"]
    ((2, 8, 8, 3), ['a/1.png', 'a/2.png'])
    """

    def __init__(
        self, augment: Callable[[Any, nf.Noise], Any], noise: nf.Noise, *, id: str = "id", image: str = "image",
        image_dtype: DTypeLike | None = None,
    ) -> None:  # fmt: skip
        super().__init__(augment, noise, id, image, image_dtype)

    def _made(self, noise: nf.Noise, images: Any) -> dict[str, Any]:
        return {self.image: self.augment(images, noise)}

    _of_shapes = _made
