# SPDX-License-Identifier: Apache-2.0
"""kornia with keyed noise: `RandomGaussianNoise` and `RandomSaltAndPepperNoise` in place of the classes of the same
names.

    from noisefuse.interop.kornia import RandomGaussianNoise

    augment = AugmentationSequential(RandomHorizontalFlip(), RandomGaussianNoise(std=0.1, p=0.5), data_keys=["input"])

Arguments, defaults, shapes, containers and replay by ``params`` are those of kornia's classes (0.9). The noise's key is
64 bits of torch's generator, or the images' (``at``). docs/transforms.md says what differs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import noisefuse as nf

from ..ground.checks import check_number
from ..ground.needs import needs
from .transforms.keyed import FromItem, Key, given_by

with needs(__name__, "kornia", "torch"):
    import torch
    from kornia import augmentation
    from torch import Tensor

from .transforms.torch_keyed import add, salt_and_pepper, word

__all__ = ["RandomGaussianNoise", "RandomSaltAndPepperNoise"]


class _Keyed(FromItem):
    """The part that the transforms share: the keys of images, and the rows of numbers that stand for them."""

    _noise: nf.Noise | None = None
    device: torch.device
    dtype: torch.dtype
    same_on_batch: bool
    _params: dict[str, Tensor]

    def forward(self, input: Any, params: Any = None, **options: Any) -> Any:
        """Adds noise to images. A dict, with `key` a batch's, keeps its entries but "image" or "input"."""
        if not isinstance(input, Mapping):
            if self.key is not None and self._noise is None and params is None:
                given_by(self.key, {}, type(self).__name__)  # this raises the error of a missing key
            return super().forward(input, params, **options)  # type: ignore[misc]
        named: Any = self
        if self.key is not None:
            keys = given_by(self.key, input, type(self).__name__)
            named = self.at(*(keys if isinstance(keys, tuple) else (keys,)), seed=self.noise_seed)
        images = {name: x for name, x in input.items() if name in ("image", "input")}
        result = {**input, **{name: named(x, params, **options) for name, x in images.items()}}
        self._params = named._params
        return result

    def at(self, keys: Key | Sequence[Key] | Tensor, epoch: int = 0, *, seed: int = 0) -> Any:
        """Returns the transform for a batch with a key for each image. The key gives the noise and, with p, decides
        whether it is applied, in any process, order, batch and run. Transforms that follow one another each need a
        seed.

        keys: one for each image (with same_on_batch one for all): ints in [0, 2^56), or strs (`augment.sample_id`).
        """
        listed = keys.tolist() if isinstance(keys, Tensor) else keys
        ids = [listed] if isinstance(listed, int | str) else listed
        named = copy.copy(self)
        named._noise = nf.Noise(seed, sample=[nf.augment.sample_id(key) for key in ids], step=epoch)
        return named

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        count = 1 if self.same_on_batch else batch_shape[0]
        if self._noise is None:
            samples = torch.arange(count)
            rows = torch.stack([word().expand(count), samples, torch.zeros_like(samples)], 1)
        else:
            noise = self._named(count)
            seed = noise.seed - (noise.seed >> 63 << 64)  # the bits of an int64
            listed = [[seed, int(sample), noise.step] for sample in noise.sample]
            rows = torch.tensor(listed, dtype=torch.int64).reshape(-1, 3)
        return {"noise": rows.expand(batch_shape[0], 3).contiguous()}

    def __batch_prob_generator__(
        self, batch_shape: tuple[int, ...], p: float, p_batch: float, same_on_batch: bool
    ) -> Tensor:
        if self._noise is None:
            theirs: Tensor = super().__batch_prob_generator__(  # type: ignore[misc]
                batch_shape, p, p_batch, same_on_batch
            )
            return theirs
        count = 1 if same_on_batch else batch_shape[0]
        applied = nf.augment.strengths(count, 1.0, 1.0, self._named(count), p=p)
        return torch.from_numpy(applied).to(self.device, self.dtype).expand(batch_shape[0])

    def _named(self, count: int) -> Any:
        """Returns the noise of the keys given to `at`."""
        noise: Any = self._noise
        if len(noise.sample) != count:
            raise ValueError(f"keys: expected {count} for the images of this batch, got {len(noise.sample)}")
        return noise


class RandomGaussianNoise(_Keyed, augmentation.RandomGaussianNoise):
    """Gaussian noise for images (B, C, H, W), (C, H, W) or (H, W), of any floating dtype; nothing is clipped.

    ``_params["noise"]`` has the seed, sample and step of each image's noise, (B, 3) int64. With ``params=`` they repeat
    the noise, for other images too, on any device.

    Args:
        mean, std: numbers in the units of the images. Or tensors whose shapes broadcast to (B, C, H, W), such as (B, 1,
            1, 1) for each image. Gradients reach tensors, so they may be parameters. They use torch's arithmetic, which
            rounds more often.
        same_on_batch: gives all images the same noise.
        p: the probability of applying the transform, for each image.
        keepdim: whether the result has the shape of the input, or is a batch.
        key: the entry of a batch's dict with the images' keys, as `at` takes them, or with a tuple of them and the
            epoch: ``augment({"image": images, "index": ids})``. kornia's containers pass images alone: use `at` there.
        noise_seed: the seed beside `key`.

    Raises:
        KeyError: a batch lacks the entry `key`.
        ValueError: std is negative, or p lies outside [0, 1].
    """

    def __init__(
        self, mean: float | Tensor = 0.0, std: float | Tensor = 1.0, same_on_batch: bool = False, p: float = 0.5,
        keepdim: bool = False, key: str | None = None, noise_seed: int = 0,
    ) -> None:  # fmt: skip
        if not (bool(torch.as_tensor(std >= 0).all()) and 0 <= p <= 1):
            raise ValueError(f"std = {std}, p = {p}: expected std of at least 0 and 0 <= p <= 1")
        super().__init__(mean, std, same_on_batch, p, keepdim)
        self._set_key(key, noise_seed)

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        rows = params["noise"].expand(len(input), 3)
        mean, std = self._param_generator.mean, self._param_generator.std
        if not isinstance(mean, Tensor) and not isinstance(std, Tensor):
            return add(input, float(std), rows, mean=float(mean))
        real = torch.promote_types(input.dtype, torch.float32)
        z = add(torch.zeros_like(input, dtype=real), 1.0, rows)
        mean, std = (torch.as_tensor(number).to(z) for number in (mean, std))
        noisy: Tensor = input + (mean + std * z)
        return noisy.to(input.dtype)


class RandomSaltAndPepperNoise(_Keyed, augmentation.RandomSaltAndPepperNoise):
    """Salt (1) and pepper (0) in all channels of random pixels, for images (B, C, H, W), (C, H, W) or (H, W) of any
    floating dtype.

    ``_params["noise"]`` is as in `RandomGaussianNoise`, and stands for the masks of kornia's class.

    Args:
        amount: the probability that a pixel changes: a number, or a range from which each image's is drawn.
        salt_vs_pepper: the fraction of salt among them: a number, or a range from which each image's is drawn.
        p, same_on_batch, keepdim, key, noise_seed: as in `RandomGaussianNoise`.

    Raises:
        ValueError: p lies outside [0, 1]. Exception: a range is wrong; kornia names it.
    """

    def __init__(
        self, amount: float | tuple[float, float] = (0.01, 0.06),
        salt_vs_pepper: float | tuple[float, float] = (0.4, 0.6), p: float = 0.5, same_on_batch: bool = False,
        keepdim: bool = False, key: str | None = None, noise_seed: int = 0,
    ) -> None:  # fmt: skip
        check_number("p", p, 0, 1)
        super().__init__(amount, salt_vs_pepper, p, same_on_batch, keepdim)
        self._set_key(key, noise_seed)

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        params, samplers = super().generate_parameters(batch_shape), self._param_generator
        count = 1 if self.same_on_batch else batch_shape[0]
        for n, name in enumerate(("amount", "salt_and_pepper")):
            if self._noise is None:
                drawn = getattr(samplers, f"{name}_sampler").rsample((count,))
            else:
                low, high = getattr(samplers, name)
                noise = self._named(count).at(stream=64 * n)
                drawn = torch.from_numpy(nf.augment.strengths(count, low, high, noise))
            params[f"{name}_factor"] = drawn.to(self.device, self.dtype).expand(batch_shape[0])
        return params

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        columns = (params[name] for name in ("amount_factor", "noise", "salt_and_pepper_factor"))
        return salt_and_pepper(input, *(column.expand(len(input), *column.shape[1:]) for column in columns))
