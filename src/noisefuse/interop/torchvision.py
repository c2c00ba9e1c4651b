# SPDX-License-Identifier: Apache-2.0
"""torchvision's transforms (v2) with named noise: `GaussianNoise` in the place of theirs.

    from noisefuse.interop.torchvision import GaussianNoise

Arguments, defaults and the types that are transformed or passed through are those of
`torchvision.transforms.v2.GaussianNoise`. The noise is named by 64 bits of torch's generator, so ``torch.manual_seed``
repeats it, or by the image (``at``). docs/transforms.md says what differs.
"""

from __future__ import annotations

from typing import Any

import PIL.Image
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

import noisefuse as nf

from .named import Named, OfUnitRange
from .torch_named import word

__all__ = ["GaussianNoise"]


class GaussianNoise(Named, OfUnitRange, v2.GaussianNoise):
    """Gaussian noise of images and videos, (.., H, W): uint8, or floats in [0, 1]. Each frame has its own.

    Args:
        mean, sigma: fractions of 255, or of 1 for floats.
        clip: to [0, 1] for floats; bytes are clipped in any case, where torchvision's overflow.

    Raises:
        ValueError: a negative sigma; an image of PIL (use ToImage), or of another dtype.
    """

    def __init__(self, mean: float = 0.0, sigma: float = 0.1, clip: bool = True) -> None:
        if not sigma >= 0:
            raise ValueError(f"sigma = {sigma}: expected a number of at least 0")
        super().__init__(mean, sigma, clip)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, PIL.Image.Image):
            raise ValueError("expected a tensor, got an image of PIL: put v2.ToImage() before GaussianNoise")
        if isinstance(inpt, tv_tensors.TVTensor) and not isinstance(inpt, tv_tensors.Image | tv_tensors.Video):
            return inpt  # boxes, masks
        image = inpt.as_subclass(torch.Tensor)
        is_bytes = image.dtype == torch.uint8
        if not (is_bytes or image.is_floating_point()):
            raise ValueError(f"expected a tensor of uint8 or floats, got {image.dtype}")
        if not is_bytes:
            self._warn_of_levels(image)
        noise = nf.Noise(int(word()) % (1 << 64)) if self._noise is None else self._noise
        unit = 255.0 if is_bytes else 1.0
        clip = (0.0, 1.0) if self.clip and not is_bytes else None
        noisy = nf.augment.gaussian(
            image, float(self.sigma) * unit, noise, mean=float(self.mean) * unit, clip=clip, batched=False
        )
        return tv_tensors.wrap(noisy, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else noisy
