# SPDX-License-Identifier: Apache-2.0
"""MONAI with keyed noise: `RandGaussianNoise`, `RandRicianNoise` and those of dictionaries, `RandGaussianNoised` and
`RandRicianNoised`, in place of the classes of the same names.

    from noisefuse.interop.monai import RandGaussianNoised

    augment = Compose([LoadImaged("image"), RandGaussianNoised("image", prob=0.5, key="index")])

Arguments, defaults, types, metadata and `set_random_state` are those of MONAI's classes (1.6). The noise's key is 64
bits of the transform's own generator, or the image's (``at``, ``key``). docs/transforms.md says what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import noisefuse as nf

from ..ground.checks import check_number
from ..ground.needs import needs
from ..language.levels import FLOATS, LEVELS
from .transforms.keyed import FromItem, Named, applies, noise_by, strength

with needs(__name__, "monai", "torch"):
    import torch
    from monai import transforms
    from monai.data.meta_obj import get_track_meta
    from monai.transforms.transform import RandomizableTransform
    from monai.utils.misc import ensure_tuple_rep
    from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor, get_equivalent_dtype

from .transforms.torch_keyed import add, rician, rounded

__all__ = ["RandGaussianNoise", "RandGaussianNoised", "RandRicianNoise", "RandRicianNoised"]


class _Keyed(Named):
    """The part that transforms of one image share."""

    R: Any
    prob: float
    _do_transform: bool

    def _decide(self) -> bool:
        """Draws whether an image has noise."""
        if self._noise is None:
            RandomizableTransform.randomize(self, None)
        else:
            self._do_transform = applies(self._noise, self.prob)
        return self._do_transform

    def _drawn(self) -> nf.Noise:
        return nf.Noise(int(self.R.randint(0, 1 << 64, dtype=np.uint64))) if self._noise is None else self._noise


class RandGaussianNoise(_Keyed, transforms.RandGaussianNoise):
    """Gaussian noise for images and volumes, arrays or tensors of any shape; floats are not clipped.

    Args:
        prob: the probability of applying the transform.
        mean, std: numbers in the units of the image.
        dtype: the result's dtype: float32, float64, float16, bfloat16, or an integer of at most 32 bits, rounded and
            clipped. None: the image's.
        sample_std: whether the standard deviation is drawn, between 0 and std.

    Raises:
        ValueError: std is negative.
        TypeError: dtype is none of these or, with None, the image's dtype is none.
    """

    _strength: tuple[float, float, nf.Noise] | None = None  # std, mean and noise, as they were drawn

    def __init__(
        self, prob: float = 0.1, mean: float = 0.0, std: float = 0.1, dtype: Any = np.float32, sample_std: bool = True
    ) -> None:
        check_number("std", std, 0, finite=False)
        super().__init__(prob, mean, std, dtype, sample_std)

    def randomize(self, img: Any, mean: float | None = None) -> None:
        if not self._decide():
            return
        std, named = self.std, self._noise
        if self.sample_std:
            std = self.R.uniform(0, self.std) if named is None else strength(named, 0.0, self.std)
        self._strength = float(std), float(self.mean if mean is None else mean), self._drawn()

    def __call__(self, img: Any, mean: float | None = None, randomize: bool = True) -> Any:
        """Returns the image as a tensor, with its metadata. ``randomize=False`` adds the same noise again."""
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize(img, self.mean if mean is None else mean)
        if not self._do_transform:
            return img
        if self._strength is None:
            raise RuntimeError("please call the `randomize()` function first.")
        std, mean, noise = self._strength
        plain = img.as_subclass(torch.Tensor)
        wanted = get_equivalent_dtype(img.dtype if self.dtype is None else self.dtype, torch.Tensor)
        if wanted not in _DTYPES:
            expected = "a float, or an integer of at most 32 bits"
            raise TypeError(f"dtype = {self.dtype}: expected {expected}, got an image of {img.dtype}")
        if wanted.is_floating_point or (wanted == torch.uint8 and (plain.is_floating_point() or plain.dtype == wanted)):
            if torch.uint8 not in (wanted, plain.dtype):
                plain = plain.to(wanted)
            noisy = add(plain, std, noise, mean=mean, dtype=wanted, batched=False)
        else:
            noisy = rounded(add(_floats(plain), std, noise, mean=mean, batched=False), wanted)
        return convert_to_dst_type(noisy, img, dtype=wanted)[0]


_DTYPES = tuple(getattr(torch, name) for name in (*FLOATS, *LEVELS, "int8", "int16", "int32"))


def _floats(image: Any) -> Any:
    """Returns the image as floats that hold its values."""
    return image if image.is_floating_point() else image.to(torch.float64 if image.itemsize > 2 else torch.float32)


class RandRicianNoise(_Keyed, transforms.RandRicianNoise):
    """Rician noise for images and volumes (C, ..), arrays or tensors; floats are not clipped.

    Args:
        prob: the probability of applying the transform.
        mean, std: of the noise in the real and in the imaginary part: numbers in the units of the image or, with
            channel_wise, also one for each channel.
        channel_wise: whether each channel has a standard deviation of its own.
        relative: whether std is a fraction of the standard deviation of the image, or of the channel.
        sample_std: whether the standard deviation is drawn, between 0 and std.
        dtype: as in `RandGaussianNoise`.

    Raises:
        ValueError: a std is negative.
        TypeError: dtype is none of these or, with None, the image's dtype is none.
        RuntimeError: without channel_wise there are several numbers.
    """

    _strength: tuple[Any, nf.Noise] | None = None  # std as fractions of those given, and noise, as they were drawn

    def __init__(
        self, prob: float = 0.1, mean: Sequence[float] | float = 0.0, std: Sequence[float] | float = 1.0,
        channel_wise: bool = False, relative: bool = False, sample_std: bool = True, dtype: Any = np.float32,
    ) -> None:  # fmt: skip
        for one in np.ravel(std).tolist():
            check_number("std", one, 0, finite=False)
        super().__init__(prob, mean, std, channel_wise, relative, sample_std, dtype)

    def randomize(self, data: Any) -> None:
        if not self._decide():
            return
        count = len(data) if self.channel_wise else 1
        parts: Any = np.ones(count)
        if self.sample_std and self._noise is None:
            parts = self.R.uniform(size=count)
        elif self.sample_std and self.channel_wise:
            words = self._drawn().at(stream=127)  # no noise of this class is there
            parts = nf.uniform((count,), words, dtype="float64", batched=False)
        elif self.sample_std:
            parts[0] = strength(self._drawn(), 0.0, 1.0)
        self._strength = parts, self._drawn()

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        """Returns the image as a tensor, with its metadata. ``randomize=False`` adds the same noise again."""
        img = convert_to_tensor(img, dtype=self.dtype, track_meta=get_track_meta())
        if randomize:
            self.randomize(img)
        if not self._do_transform:
            return img
        if self._strength is None:
            raise RuntimeError("please call the `randomize()` function first.")
        if img.dtype not in _DTYPES:
            raise TypeError(f"expected an image of floats, or of integers of at most 32 bits, got {img.dtype}")
        (parts, noise), signal = self._strength, _floats(img.as_subclass(torch.Tensor))
        if not self.channel_wise and np.ndim(self.mean) + np.ndim(self.std):
            raise RuntimeError(f"mean = {self.mean}, std = {self.std}: expected numbers if channel_wise is False")
        if self.channel_wise:
            each = len(signal), *[1] * (signal.ndim - 1)
            mean, std = (
                signal.new_tensor(numbers).reshape(each)
                for numbers in (
                    ensure_tuple_rep(self.mean, len(signal)),
                    ensure_tuple_rep(self.std, len(signal)) * parts,
                )
            )
            if self.relative:
                std = std * signal.flatten(1).std(1).reshape(each)
        else:
            mean, std = self.mean, float(self.std * parts[0])
            if self.relative:
                std = std * signal.std().item()
        noisy = rician(signal, std, noise, mean)
        if not img.is_floating_point():
            noisy = rounded(noisy, img.dtype)
        return convert_to_dst_type(noisy, img, dtype=img.dtype)[0]


class _Dictionary(FromItem):
    """The part that transforms of dictionaries share."""

    prob: float
    _do_transform: bool

    def _transform(self) -> _Keyed:
        raise NotImplementedError

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        if self.key is not None:
            self._transform()._noise = noise_by(self.key, data, self.noise_seed, type(self).__name__)
        result: dict[Any, Any] = super().__call__(data)  # type: ignore[misc]
        return result

    def randomize(self, data: Any) -> None:
        if (named := self._transform()._noise) is None:
            super().randomize(data)  # type: ignore[misc]
        else:
            self._do_transform = applies(named, self.prob)


class RandGaussianNoised(_Dictionary, transforms.RandGaussianNoised):
    """`RandGaussianNoise` for the images of a dictionary, with the same noise for all of them.

    Args:
        keys: the images' keys. allow_missing_keys: whether one may be missing.
        prob, mean, std, dtype, sample_std: as in `RandGaussianNoise`.
        key: the dictionary's entry with the noise's key: an int in [0, 2^56), a str (`augment.sample_id`), or a pair of
            that and the epoch. The same item then has the same noise in every process, order and run.
        noise_seed: the seed beside `key`.

    Raises:
        KeyError: a dictionary lacks the entry `key`. ValueError, TypeError: as in RandGaussianNoise.
    """

    def __init__(
        self, keys: Any, prob: float = 0.1, mean: float = 0.0, std: float = 0.1, dtype: Any = np.float32,
        allow_missing_keys: bool = False, sample_std: bool = True, key: str | None = None, noise_seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(keys, prob, mean, std, dtype, allow_missing_keys, sample_std)
        self.rand_gaussian_noise: RandGaussianNoise = RandGaussianNoise(1.0, mean, std, dtype, sample_std)
        self._set_key(key, noise_seed)

    def _transform(self) -> _Keyed:
        return self.rand_gaussian_noise


class RandRicianNoised(_Dictionary, transforms.RandRicianNoised):
    """`RandRicianNoise` for the images of a dictionary. With a key they have the same noise, otherwise each its own.

    Args:
        keys: the images' keys. allow_missing_keys: whether one may be missing.
        prob, mean, std, channel_wise, relative, sample_std, dtype: as in `RandRicianNoise`.
        key, noise_seed: as in `RandGaussianNoised`.

    Raises:
        KeyError: a dictionary lacks the entry `key`. ValueError, TypeError, RuntimeError: as in RandRicianNoise.
    """

    def __init__(
        self, keys: Any, prob: float = 0.1, mean: Sequence[float] | float = 0.0, std: Sequence[float] | float = 1.0,
        channel_wise: bool = False, relative: bool = False, sample_std: bool = True, dtype: Any = np.float32,
        allow_missing_keys: bool = False, key: str | None = None, noise_seed: int = 0,
    ) -> None:  # fmt: skip
        numbers = mean, std, channel_wise, relative, sample_std, dtype
        super().__init__(keys, prob, *numbers, allow_missing_keys)
        self.rand_rician_noise: RandRicianNoise = RandRicianNoise(1.0, *numbers)
        self._set_key(key, noise_seed)

    def _transform(self) -> _Keyed:
        return self.rand_rician_noise
