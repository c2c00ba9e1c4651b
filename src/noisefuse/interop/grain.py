# SPDX-License-Identifier: Apache-2.0
"""Noise for the elements of Grain's pipelines, with keys from the index or from the generator that Grain gives them.

    source = grain.MapDataset.source(rows).map_with_index(noisy.map_with_index)  # by index: `noisy` has a noise
    loader = grain.DataLoader(.., operations=[noisy])                            # by Grain's generator: it has none

An element is a dict, and one of its entries is an image. The noise depends neither on workers, nor on threads that read
ahead, nor on where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import noisefuse as nf

from ..ground.checks import check_integer
from ..ground.needs import needs
from ..language.axis import ModelTime
from ..views import Target
from .columns import Augments, Keyed, Times, Training, Trains

with needs(__name__, "grain"):
    import grain

__all__ = ["Augmented", "Noisy"]

Element = Mapping[str, Any]


class _Named(Keyed, grain.transforms.RandomMap):  # type: ignore[misc]  # a package without types
    def __init__(self, noise: nf.Noise | None, length: int | None, image: str) -> None:
        if noise is not None:
            super().__init__(noise)
            if not (isinstance(noise.sample, int) and isinstance(noise.step, int)):
                raise TypeError(f"noise: expected one with a sample and a step that are ints, got {noise!r}")
        self.noise = noise
        self.length: int | None = None if length is None else check_integer("length", length, 1)
        self.image: str = image

    def random_map(self, element: Element, rng: np.random.Generator) -> dict[str, Any]:
        """Uses 64 bits of the generator as the noise's seed. Grain seeds it by its own seed and the element's place."""
        if self.noise is not None:
            raise TypeError("noise: expected None for keys by generator; for keys by index use map_with_index")
        return self._made(element, nf.Noise.from_rng(rng))

    def map_with_index(self, index: int, element: Element) -> dict[str, Any]:
        """Adds the index to the noise's sample, for Grain's ``map_with_index``. With a length, the index is that of the
        source, and the epoch, which ``repeat`` counts, is added to the step."""
        if self.noise is None:
            raise TypeError("noise: expected a Noise for keys by index, got None")
        epoch, place = divmod(int(index), self.length) if self.length else (0, int(index))
        return self._made(element, self.noise.at(sample=self.noise.sample + place, step=self.noise.step + epoch))

    def _told(self) -> str:
        return f"{self.noise!r}, length={self.length}, image={self.image!r}"

    def _read(self, element: Element) -> Any:
        if self.image not in element:
            raise KeyError(f"no {self.image!r} in the element, which has {', '.join(map(repr, element))}")
        return np.asarray(element[self.image])

    def _made(self, element: Element, noise: nf.Noise) -> dict[str, Any]:
        raise NotImplementedError


class Noisy(Trains, _Named):
    """Adds noise to the image of an element: x_t, t and target replace it.

    Args:
        schedule: a Schedule.
        noise: a Noise, if the index gives the key; None if Grain's generator does.
        length: the number of elements in the source. It is needed if ``repeat`` comes after this, since the index then
            goes on counting.
        image: the name of the image, which is uint8 (0 .. 255 become -1 .. 1) or float, of any shape.
        target: as in `q_sample`.
        times, model_time: as in `interop.columns.NoisyColumns`; with a model_time there is an entry of this name.

    >>> noisy = nf.interop.grain.Noisy(nf.Schedule.cosine(1000), nf.Noise(7))
    >>> element = noisy.map_with_index(17, {"image": np.zeros((8, 8, 3), np.uint8), "label": 3})
    >>> {name: np.shape(value) for name, value in element.items()}
    {'label': (), 'x_t': (8, 8, 3), 't': (), 'target': (8, 8, 3)}
    """

    def __init__(
        self, schedule: nf.Schedule, noise: nf.Noise | None = None, *, length: int | None = None, image: str = "image",
        target: Target = "epsilon", times: Times = "index", model_time: ModelTime | None = None,
    ) -> None:  # fmt: skip
        super().__init__(Training(schedule, target, times, model_time), noise, length, image)

    def _made(self, element: Element, noise: nf.Noise) -> dict[str, Any]:
        image, rest = self._read(element), {name: one for name, one in element.items() if name != self.image}
        t = self.training.drawn(noise, 1)[0].item()
        return {**rest, **self.training.made(image, t, noise, batched=False)}


class Augmented(Augments, _Named):
    """Augments the image of an element, for instance by `noisefuse.augment`.

    Args:
        augment: function(image, noise) -> image, for one image: ``batched=False``.
        noise, length, image: as in `Noisy`.

    >>> def speckled(image, noise):
    ...     return nf.augment.multiplicative(image, 0.1, noise, batched=False)
    >>> augmented = nf.interop.grain.Augmented(speckled)
    >>> element = augmented.random_map({"image": np.full((8, 8, 3), 90, np.uint8)}, np.random.default_rng(7))
    """

    def __init__(
        self, augment: Callable[[Any, nf.Noise], Any], noise: nf.Noise | None = None, *, length: int | None = None,
        image: str = "image",
    ) -> None:  # fmt: skip
        super().__init__(augment, noise, length, image)

    def _made(self, element: Element, noise: nf.Noise) -> dict[str, Any]:
        return {**element, self.image: self.augment(self._read(element), noise)}
