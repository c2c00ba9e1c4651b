# SPDX-License-Identifier: Apache-2.0
"""torchvision's transforms (v2) with keyed noise: `GaussianNoise` in place of torchvision's class, and `Prepare`.

    from noisefuse.interop.torchvision import GaussianNoise

Arguments, defaults and the types that are transformed or passed through are those of
`torchvision.transforms.v2.GaussianNoise`. The noise's key is 64 bits of torch's generator, so ``torch.manual_seed``
repeats it, or the image's (``at``). docs/transforms.md says what differs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import noisefuse as nf

from ..ground.checks import check_number
from ..ground.needs import needs
from .transforms.keyed import FromItem, Named, OfUnitRange, noise_by

with needs(__name__, "torchvision", "torch", "PIL"):
    import PIL.Image
    import torch
    from torchvision import tv_tensors
    from torchvision.transforms import v2

from .transforms.torch_keyed import add, is_plain, row_of, word

__all__ = ["GaussianNoise", "Prepare"]


_WHITE = {torch.uint8: 255, torch.uint16: 65535}


class _Noisy(FromItem, Named, OfUnitRange):
    """The part that both share."""

    def forward(self, *inputs: Any) -> Any:
        if self.key is None:
            return super().forward(*inputs)  # type: ignore[misc]
        item = next((one for one in inputs if isinstance(one, Mapping)), {})
        named = copy.copy(self)
        named.key, named._noise = None, noise_by(self.key, item, self.noise_seed, type(self).__name__)
        result = named.forward(*inputs)
        self._looked = named._looked
        return result

    def _drawn(self) -> nf.Noise:
        return nf.Noise(int(word()) % (1 << 64)) if self._noise is None else self._noise

    def _pixels(self, inpt: Any) -> torch.Tensor:
        image: torch.Tensor = inpt if type(inpt) is torch.Tensor else inpt.as_subclass(torch.Tensor)
        if image.is_floating_point():
            if is_plain(image):
                self._warn_of_levels(image)
        elif image.dtype not in _WHITE:
            raise ValueError(f"expected a tensor of uint8, uint16 or floats, got {image.dtype}")
        return image


def _passes(inpt: Any) -> bool:
    """Tells whether this passes through, such as boxes and masks."""
    return isinstance(inpt, tv_tensors.TVTensor) and not isinstance(inpt, tv_tensors.Image | tv_tensors.Video)


class GaussianNoise(_Noisy, v2.GaussianNoise):
    """Gaussian noise for images and videos, (.., H, W): uint8, uint16, or floats in [0, 1]. Each frame has its own.

    Args:
        mean, sigma: fractions of 255, of 65535 for uint16, or of 1 for floats.
        clip: clip floats to [0, 1]. Integers are clipped in any case, while torchvision's bytes overflow.
        key: the entry of the sample's dict with the key of its noise: an int in [0, 2^56), a str (`augment.sample_id`),
            or a pair of that and the epoch. All images of the sample have the same noise.
        noise_seed: the seed beside `key`.

    Raises:
        KeyError: a sample lacks the entry `key`.
        ValueError: sigma is negative, or an image is PIL's (use ToImage) or of another dtype.
    """

    def __init__(
        self, mean: float = 0.0, sigma: float = 0.1, clip: bool = True, key: str | None = None, noise_seed: int = 0
    ) -> None:
        check_number("sigma", sigma, 0, finite=False)
        super().__init__(mean, sigma, clip)
        self._set_key(key, noise_seed)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, PIL.Image.Image):
            raise ValueError("expected a tensor, got an image of PIL: put v2.ToImage() before GaussianNoise")
        if _passes(inpt):
            return inpt
        image = self._pixels(inpt)
        unit = _WHITE.get(image.dtype, 1)
        clip = (0.0, 1.0) if self.clip and unit == 1 else None
        noise = self._drawn() if is_plain(image) else row_of(self._noise)
        noisy = add(image, float(self.sigma) * unit, noise, mean=float(self.mean) * unit, clip=clip, batched=False)
        return tv_tensors.wrap(noisy, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else noisy


class Prepare(_Noisy, v2.Transform):
    """Turns images into a network's input, in one pass: ToImage, ToDtype(scale=True), Normalize and then Gaussian
    noise.

    Images are PIL's, or tensors (.., C, H, W): uint8, uint16, or floats in [0, 1]. One channel is repeated for several
    means. Boxes, masks and labels pass through.

    Args:
        scale_mean, scale_std: one for each channel: mean and std of `torchvision.transforms.v2.Normalize`.
        sigma: the noise's standard deviation, in units of the result.
        dtype: the result's dtype: torch.float32, float64, float16 or bfloat16.
        key, noise_seed: as in `GaussianNoise`.

    Raises:
        KeyError: a sample lacks the entry `key`.
        ValueError: sigma is negative, the number of means is not that of channels, or a tensor has another dtype.

    >>> prepare = Prepare([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], sigma=0.1)
    >>> prepare(torch.zeros((3, 8, 8), dtype=torch.uint8)).dtype
    torch.float32
    """

    def __init__(
        self, scale_mean: Sequence[float], scale_std: Sequence[float], sigma: float = 0.0,
        dtype: torch.dtype = torch.float32, key: str | None = None, noise_seed: int = 0,
    ) -> None:  # fmt: skip
        check_number("sigma", sigma, 0, finite=False)
        if not dtype.is_floating_point:
            raise TypeError(f"dtype = {dtype}: expected a float dtype, as normalised values are floats")
        super().__init__()
        self.scale_mean: list[float] = list(scale_mean)
        self.scale_std: list[float] = list(scale_std)
        self.sigma: float = sigma
        self.dtype: torch.dtype = dtype
        self._set_key(key, noise_seed)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if _passes(inpt):
            return inpt
        if isinstance(inpt, PIL.Image.Image):
            inpt = v2.functional.to_image(inpt)
        image = self._pixels(inpt)
        if image.ndim < 3:
            raise ValueError(f"expected a tensor (.., C, H, W), got shape {tuple(image.shape)}")
        if image.shape[-3] == 1:  # as Normalize does
            image = image.expand(*image.shape[:-3], len(self.scale_mean), *image.shape[-2:])
        noise: Any = self._drawn()
        if image.ndim > 3 and self.sigma:  # all frames are one sample, and each has its own noise
            real: Any = torch.float64 if self.dtype == torch.float64 else torch.float32
            z = nf.randn(image.shape, noise, dtype=real, batched=False, device=image.device)
            noise = z.reshape(-1, *image.shape[-3:])
        result: Any = nf.augment.prepare(
            image.reshape(-1, *image.shape[-3:]).movedim(1, -1) if image.ndim > 3 else image.movedim(0, -1),
            noise=noise,
            scale_mean=self.scale_mean,
            scale_std=self.scale_std,
            scale=1 / _WHITE.get(image.dtype, 1),
            noise_std=float(self.sigma),
            dtype=self.dtype,
            batched=image.ndim > 3,
        ).reshape(image.shape)
        return tv_tensors.wrap(result, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else result
