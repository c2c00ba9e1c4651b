# SPDX-License-Identifier: Apache-2.0
"""Albumentations with keyed noise: `GaussNoise`, `ISONoise`, `MultiplicativeNoise`, `SaltAndPepper` and `ShotNoise` in
place of the classes of the same names.

    from noisefuse.interop.albumentations import GaussNoise

    augment = A.Compose([A.HorizontalFlip(), GaussNoise(std_range=(0.1, 0.2))], seed=137)

Arguments, defaults, targets, serialisation and replay are those of albumentations' classes (2.0). The noise's key is 64
bits of the transform's own generator or, with ``key``, the image's. docs/transforms.md says what differs.
"""

from __future__ import annotations

import random
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

import noisefuse as nf

from ..augment import named
from ..ground.needs import needs
from ..language.levels import LEVELS
from ..language.noise import word
from .transforms.keyed import FromItem, OfUnitRange, applies, given_by, noise_by, strength

with needs(__name__, "albumentations"):
    import albumentations
    from albumentations.augmentations.utils import non_rgb_error

__all__ = ["GaussNoise", "ISONoise", "MultiplicativeNoise", "SaltAndPepper", "ShotNoise"]

Array = NDArray[Any]
Name = tuple[int, int, int]  # seed, sample, step: plain numbers, so that a replay can keep them


class _Keyed(FromItem, OfUnitRange):
    """The part that the transforms share. Frames and volumes are one array, and each of its elements has its own
    noise."""

    random_generator: np.random.Generator
    py_random: random.Random
    apply: Any
    apply_with_params: Any
    get_params_dependent_on_data: Any
    should_apply: Any
    update_transform_params: Any
    deterministic: bool
    p: float
    params: dict[str, Any]
    processors: dict[str, Any]
    replay_mode: bool
    _stage = 0  # the number of such transforms before it in its pipeline, which seeds all of them alike

    def set_processors(self, processors: dict[str, Any]) -> None:
        """Takes the processors of bounding boxes and key points, one dict for all transforms of a pipeline."""
        if self.processors is not processors:
            self._stage = sum(other.processors is processors for other in _transforms)
            _transforms.add(self)
        super().set_processors(processors)  # type: ignore[misc]

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> Any:
        """Calls the transform as Albumentations does. The key of an image, not a worker's generator, decides whether it
        is augmented."""
        if self.key is not None and not (self.replay_mode or args):
            given_by(self.key, data, type(self).__name__)
            if not (force_apply := force_apply or self.p >= 1 or applies(named(*self._drawn(data)[0]), self.p)):
                self.params = {}
                return data
        if args or self.replay_mode or self.deterministic:
            return super().__call__(*args, force_apply=force_apply, **data)  # type: ignore[misc]
        if self.p < 1 and not self.should_apply(force_apply):
            self.params = {}
            return data
        # What follows is theirs, without its questions about arguments that these transforms do not have.
        image = data.get("image")
        if type(image) is np.ndarray and len(data) == (1 if self.key is None else 2):  # alone, or with its key
            self.params = params = self.get_params_dependent_on_data({}, data)
            params["shape"] = image.shape
            data["image"] = self.apply(image, **params)
            return data
        params = self.update_transform_params({}, data)
        params.update(self.get_params_dependent_on_data(params, data))
        self.params = params
        return self.apply_with_params(params, **data)

    @property
    def available_keys(self) -> set[str]:
        """Returns the keys that a strict pipeline takes. (``targets_as_params`` would add ours too, but it would warn
        about replays.)"""
        keys: set[str] = super().available_keys  # type: ignore[misc]
        return keys if self.key is None else keys | {self.key}

    def _drawn(self, data: dict[str, Any], *limits: tuple[float, float]) -> list[Any]:
        """Returns the noise's name, and a number in each of these limits: of the image's key, or from the transform's
        own generator."""
        if self.key is None:
            draw = self.py_random.random
            drawn: list[Any] = [((word(self.random_generator) + self._stage) % (1 << 64), 0, 0)]
            for low, high in limits:
                drawn.append(low + (high - low) * draw())  # `uniform`, with fewer calls
            return drawn
        noise = noise_by(self.key, data, self.noise_seed, type(self).__name__)
        name = noise.seed, int(noise.sample), noise.step
        return [name, *(strength(named(*name).at(stream=64 * n), low, high) for n, (low, high) in enumerate(limits))]

    def _top(self, image: Array) -> float:
        """Returns the value of white."""
        top = _TOPS.get(image.dtype)
        if top is None:
            self._warn_of_levels(image)
            return 1.0
        return top

    def apply_to_images(self, images: Array, *args: Any, **params: Any) -> Array:
        result: Array = self.apply(images, *args, **params)
        return result

    apply_to_volume = apply_to_images
    apply_to_volumes = apply_to_images


_transforms: weakref.WeakSet[_Keyed] = weakref.WeakSet()  # those in pipelines


_PIXELS = 0, 0, 0  # the shape of an image with channels
_TOPS = {d: float(top) for name, top in LEVELS.items() for d in (np.dtype(name), np.dtype(name).newbyteorder())}


class GaussNoise(_Keyed, albumentations.GaussNoise):
    """Gaussian noise of uint8, uint16 or float32 images, frames and volumes.

    Args:
        std_range, mean_range: fractions of 255, or of 1 for floats. A number in the range is drawn for each call.
        per_channel: False gives all channels of a pixel the same noise.
        noise_scale_factor: 1; coarser noise is not supported.
        p: the probability of applying the transform. Albumentations draws it or, with ``key``, the image's key decides.
        key: the name of a further argument, which gives the key of the image's noise, standard deviation and mean, and
            decides whether it has noise at all: with ``key="index"``, ``augment(image=image, index=17)``. It is an int
            in [0, 2^56), a str (`augment.sample_id`), or a pair of that and the epoch. The same image then has the same
            noise in every process, order and run.
        noise_seed: the seed beside `key`. Transforms that follow one another each need a seed: with the same one they
            draw the same noise, and act on the same images.

    Raises:
        ValueError: noise_scale_factor is not 1.
        KeyError: a call lacks the argument that `key` names.
    """

    class InitSchema(albumentations.GaussNoise.InitSchema):
        key: str | None
        noise_seed: int

    def __init__(
        self, std_range: tuple[float, float] = (0.2, 0.44), mean_range: tuple[float, float] = (0.0, 0.0),
        per_channel: bool = True, noise_scale_factor: float = 1, p: float = 0.5, key: str | None = None,
        noise_seed: int = 0,
    ) -> None:  # fmt: skip
        if noise_scale_factor != 1:
            raise ValueError(f"noise_scale_factor = {noise_scale_factor}: expected 1, as each pixel has its own noise")
        super().__init__(std_range, mean_range, per_channel, noise_scale_factor, p)
        self._set_key(key, noise_seed)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        name, std, mean = self._drawn(data, self.std_range, self.mean_range)
        return {"std": std, "mean": mean, "noise": name}

    def apply(
        self, img: Array, std: float, mean: float, noise: Name, shape: tuple[int, ...] = _PIXELS, **params: Any
    ) -> Array:
        """Adds noise to the whole array as one sample, so that frames and slices have different noise."""
        unit = self._top(img)
        result: Array = nf.augment.gaussian(
            img,
            std * unit,
            named(*noise),
            mean=mean * unit,
            layout="HWC",
            shared=not self.per_channel and len(shape) == 3,
            clip=(0.0, 1.0) if unit == 1 else None,
            batched=False,
        )
        return result


class ISONoise(_Keyed, albumentations.ISONoise):
    """The noise of a sensitive sensor, in hue and lightness, for RGB images, frames and volumes in uint8, uint16 or
    float32.

    Args:
        color_shift: the hue of a pixel moves by a normal number of this range times the intensity, in OpenCV's degrees
            for floats.
        intensity: the range of the strength, which is drawn for each call. The lightness l becomes l + N intensity (1 -
            l), N Poisson with mean intensity times the standard deviation of lightness in the image.
        p, key, noise_seed: as in `GaussNoise`.

    Raises:
        ValueError: an image does not have three channels.
        KeyError: a call lacks the argument that `key` names.
    """

    class InitSchema(albumentations.ISONoise.InitSchema):
        key: str | None
        noise_seed: int

    def __init__(
        self, color_shift: tuple[float, float] = (0.01, 0.05), intensity: tuple[float, float] = (0.1, 0.5),
        p: float = 0.5, key: str | None = None, noise_seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(color_shift, intensity, p)
        self._set_key(key, noise_seed)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        name, shift, intensity = self._drawn(data, self.color_shift, self.intensity)
        return {"color_shift": shift, "intensity": intensity, "noise": name}

    def apply(self, img: Array, color_shift: float, intensity: float, noise: Name, **params: Any) -> Array:
        """Adds noise to the whole array as one sample. Each frame has its own deviation of lightness."""
        non_rgb_error(img[(0,) * (img.ndim - 3)])
        self._top(img)
        return nf.augment.iso_noise(img, color_shift * intensity / 60, intensity, named(*noise))


class MultiplicativeNoise(_Keyed, albumentations.MultiplicativeNoise):
    """Multiplies uint8, uint16 or float32 images, frames and volumes by random numbers, uniform in a range.

    (Speckle, whose factors are normal, is `augment.multiplicative`.)

    Args:
        multiplier: the range.
        per_channel: False gives all channels the same numbers.
        elementwise: whether each pixel has a number of its own. False: the whole image, its frames and slices share
            one.
        p, key, noise_seed: as in `GaussNoise`.

    Raises:
        KeyError: a call lacks the argument that `key` names.
    """

    class InitSchema(albumentations.MultiplicativeNoise.InitSchema):
        key: str | None
        noise_seed: int

    def __init__(
        self, multiplier: tuple[float, float] | float = (0.9, 1.1), per_channel: bool = False,
        elementwise: bool = False, p: float = 0.5, key: str | None = None, noise_seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(multiplier, per_channel, elementwise, p)
        self._set_key(key, noise_seed)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        return {"noise": self._drawn(data)[0]}

    def apply(self, img: Array, noise: Name, shape: tuple[int, ...] = _PIXELS, **params: Any) -> Array:
        self._top(img)
        last = self.per_channel != self.elementwise and len(shape) == 3
        low, high = self.multiplier
        return nf.augment.times(img, low, high, named(*noise), self.elementwise, last)


class SaltAndPepper(_Keyed, albumentations.SaltAndPepper):
    """Salt and pepper in all channels of random pixels, for uint8, uint16 or float32 images, frames and volumes.

    Args:
        amount: the range of the probability that a pixel changes; drawn for each call.
        salt_vs_pepper: the range of the fraction of salt among them.
        p, key, noise_seed: as in `GaussNoise`.

    Raises:
        KeyError: a call lacks the argument that `key` names.
    """

    class InitSchema(albumentations.SaltAndPepper.InitSchema):
        key: str | None
        noise_seed: int

    def __init__(
        self, amount: tuple[float, float] = (0.01, 0.06), salt_vs_pepper: tuple[float, float] = (0.4, 0.6),
        p: float = 0.5, key: str | None = None, noise_seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(amount, salt_vs_pepper, p)
        self._set_key(key, noise_seed)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        name, amount, salt = self._drawn(data, self.amount, self.salt_vs_pepper)
        return {"amount": amount, "salt": salt, "noise": name}

    def apply(
        self, img: Array, amount: float, salt: float, noise: Name, shape: tuple[int, ...] = _PIXELS, **params: Any
    ) -> Array:
        self._top(img)
        result: Array = nf.augment.impulse(
            img, amount, named(*noise), salt=salt, layout="HWC", shared=len(shape) == 3, batched=False
        )
        return result


class ShotNoise(_Keyed, albumentations.ShotNoise):
    """The noise of counted photons, in uint8, uint16 or float32 images, frames and volumes. Light is the grey level to
    the power of 2.2.

    Args:
        scale_range: the inverse of the number of photons for white; drawn for each call.
        p, key, noise_seed: as in `GaussNoise`.

    Raises:
        ValueError: a scale is below 1e-6.
        KeyError: a call lacks the argument that `key` names.
    """

    class InitSchema(albumentations.ShotNoise.InitSchema):
        key: str | None
        noise_seed: int

    def __init__(
        self, scale_range: tuple[float, float] = (0.1, 0.3), p: float = 0.5, key: str | None = None, noise_seed: int = 0
    ) -> None:
        if scale_range[0] < 1e-6:
            raise ValueError(f"scale_range = {scale_range}: expected at least 1e-6")
        super().__init__(scale_range, p)
        self._set_key(key, noise_seed)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        name, scale = self._drawn(data, self.scale_range)
        return {"scale": scale, "noise": name}

    def get_params(self) -> dict[str, Any]:
        return {}

    def apply(self, img: Array, scale: float, noise: Name, **params: Any) -> Array:
        result: Array = nf.augment.poisson(img, 1 / scale, named(*noise), gamma=2.2, batched=False)
        if self._top(img) == 1:
            np.clip(result, 0.0, 1.0, out=result)
        return result
