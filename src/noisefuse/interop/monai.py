# SPDX-License-Identifier: Apache-2.0
"""MONAI with keyed noise: `RandGaussianNoise` and `RandGaussianNoised` in place of the classes of the same names.

    from noisefuse.interop.monai import RandGaussianNoised

    augment = Compose([LoadImaged("image"), RandGaussianNoised("image", prob=0.5, key="index")])

Arguments, defaults, types, metadata and `set_random_state` are those of MONAI's classes (1.6). The noise's key is 64
bits of the transform's own generator, or the image's (``at``, ``key``). docs/transforms.md says what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import noisefuse as nf

from ..ground.checks import check_number
from ..ground.needs import needs
from ..language.levels import FLOATS
from .transforms.keyed import Named, applies, noise_by, strength

with needs(__name__, "monai", "torch"):
    import torch
    from monai import transforms
    from monai.data.meta_obj import get_track_meta
    from monai.transforms.transform import RandomizableTransform
    from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor, get_equivalent_dtype

from .transforms.torch_keyed import add

__all__ = ["RandGaussianNoise", "RandGaussianNoised"]


class RandGaussianNoise(Named, transforms.RandGaussianNoise):
    """Gaussian noise for images and volumes, arrays or tensors of any shape; only bytes are clipped.

    Args:
        prob: the probability of applying the transform.
        mean, std: numbers in the units of the image.
        dtype: the result's dtype: float32, float64, float16, bfloat16, or uint8. None: the image's.
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
        named = self._noise
        if named is None:
            RandomizableTransform.randomize(self, None)
        else:
            self._do_transform = applies(named, self.prob)
        if not self._do_transform:
            return
        std = self.std
        if self.sample_std:
            std = self.R.uniform(0, self.std) if named is None else strength(named, 0.0, self.std)
        noise = nf.Noise(int(self.R.randint(0, 1 << 64, dtype=np.uint64))) if named is None else named
        self._strength = float(std), float(self.mean if mean is None else mean), noise

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
        if wanted not in _DTYPES or (wanted == torch.uint8 and plain.dtype not in _DTYPES):
            expected = "a float, or uint8 for an image of floats or uint8"
            raise TypeError(f"dtype = {self.dtype}: expected {expected}, got an image of {img.dtype}")
        if torch.uint8 not in (wanted, plain.dtype):
            plain = plain.to(wanted)
        return convert_to_dst_type(add(plain, std, noise, mean=mean, dtype=wanted, batched=False), img, dtype=wanted)[0]


_DTYPES = tuple(getattr(torch, name) for name in (*FLOATS, "uint8"))


class RandGaussianNoised(transforms.RandGaussianNoised):
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
        self.key: str | None = key
        self.noise_seed: int = noise_seed
        nf.Noise(noise_seed)  # this raises the error of a wrong seed

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        if self.key is not None:
            self.rand_gaussian_noise._noise = noise_by(self.key, data, self.noise_seed, type(self).__name__)
        result: dict[Any, Any] = super().__call__(data)
        return result

    def randomize(self, data: Any) -> None:
        if (named := self.rand_gaussian_noise._noise) is None:
            super().randomize(data)
        else:
            self._do_transform = applies(named, self.prob)
