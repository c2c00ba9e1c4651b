# SPDX-License-Identifier: Apache-2.0
"""Albumentations with named noise: `GaussNoise` in the place of theirs.

    from noisefuse.interop.albumentations import GaussNoise

    augment = A.Compose([A.HorizontalFlip(), GaussNoise(std_range=(0.1, 0.2))], seed=137)

Arguments, defaults, targets, serialisation and replay are those of `albumentations.GaussNoise` (2.0). The noise is
named by 64 bits of the transform's own generator or, with ``key``, by the image. docs/transforms.md says what differs.
"""

from __future__ import annotations

from typing import Any

import albumentations
import numpy as np
from numpy.typing import NDArray

import noisefuse as nf

from .named import noise_by, strength

__all__ = ["GaussNoise"]

Array = NDArray[Any]


class GaussNoise(albumentations.GaussNoise):
    """Gaussian noise of uint8 or float32 images, frames and volumes.

    Args:
        std_range, mean_range: fractions of 255, or of 1 for floats; drawn for each call.
        per_channel: False gives all channels of a pixel the same noise.
        noise_scale_factor: 1; coarser noise is not made here.
        p: probability of applying the transform, which Albumentations draws.
        key: the name of what the caller passes beside the image to name its noise, standard deviation and mean: with
            ``key="index"``, ``augment(image=image, index=17)``. An int in [0, 2^56), a str (`augment.sample_id`), or a
            pair of that and the epoch. The same image then has the same noise in every process, order and run.
        noise_seed: the seed of noise that `key` names.

    Raises:
        ValueError: noise_scale_factor is not 1.
        KeyError: a call without what `key` names.
    """

    class InitSchema(albumentations.GaussNoise.InitSchema):
        key: str | None
        noise_seed: int

    def __init__(
        self,
        std_range: tuple[float, float] = (0.2, 0.44),
        mean_range: tuple[float, float] = (0.0, 0.0),
        per_channel: bool = True,
        noise_scale_factor: float = 1,
        p: float = 0.5,
        key: str | None = None,
        noise_seed: int = 0,
    ) -> None:
        if noise_scale_factor != 1:
            raise ValueError(f"noise_scale_factor = {noise_scale_factor}: expected 1, noise of each pixel")
        super().__init__(std_range, mean_range, per_channel, noise_scale_factor, p)
        self.key, self.noise_seed = key, noise_seed
        nf.Noise(noise_seed)  # a wrong one is said here

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Plain numbers, so that a replay can keep them: of the noise its seed, sample and step."""
        if self.key is None:
            std, mean = self.py_random.uniform(*self.std_range), self.py_random.uniform(*self.mean_range)
            noise = nf.Noise(int(self.random_generator.integers(1 << 64, dtype=np.uint64)))
        else:
            noise = noise_by(self.key, data, self.noise_seed, "GaussNoise")
            std, mean = (
                strength(named, low, high)
                for (low, high), named in ((self.std_range, noise), (self.mean_range, noise.at(stream=64)))
            )
        return {"std": std, "mean": mean, "noise": (noise.seed, noise.sample, noise.step)}

    def apply(self, img: Array, std: float, mean: float, noise: tuple[int, int, int], **params: Any) -> Array:
        """The whole array is one sample: so frames and slices have noise of their own."""
        is_bytes, has_channels = img.dtype == np.uint8, "shape" not in params or len(params["shape"]) == 3
        unit = 255.0 if is_bytes else 1.0
        seed, sample, step = noise
        result: Array = nf.augment.gaussian(
            img,
            std * unit,
            nf.Noise(seed, sample=sample, step=step),
            mean=mean * unit,
            layout="HWC",
            shared=not self.per_channel and has_channels,
            clip=None if is_bytes else (0.0, 1.0),
            batched=False,
        )
        return result

    def apply_to_images(self, images: Array, *args: Any, **params: Any) -> Array:
        return self.apply(images, *args, **params)

    def apply_to_volumes(self, volumes: Array, *args: Any, **params: Any) -> Array:
        return self.apply(volumes, *args, **params)
