# SPDX-License-Identifier: Apache-2.0
"""Decoded images as a network's input."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arguments.arrays import host_view, is_lazy
from ..arguments.calls import warn_once
from ..arguments.options import at_times
from ..arguments.types import Array, ArrayT, DType, Like, NoiseLike
from ..ground.libraries import check_plain, library_for
from ..language.levels import LEVELS, levels_of
from ..language.noise import Noise
from ..language.schedule import Schedule
from .numbers import as_numbers
from .rows import Model, _apply


class PrepareOptions(TypedDict, total=False):
    """The options of `prepare` that its result's type does not depend on."""

    scale_mean: ArrayLike
    scale_std: ArrayLike
    scale: float | None
    noise_std: ArrayLike
    dtype: DType | None
    batched: bool
    out: Array | None


@overload
def prepare(
    images: Like[ArrayT], *, noise: NoiseLike | None = None, t: None = None, schedule: None = None,
    **options: Unpack[PrepareOptions],
) -> ArrayT: ...  # fmt: skip
@overload
def prepare(
    images: Like[ArrayT], *, noise: NoiseLike, t: ArrayLike, schedule: Schedule, **options: Unpack[PrepareOptions]
) -> tuple[ArrayT, NDArray[Any]]: ...
def prepare(
    images: Array, *, noise: NoiseLike | None = None, scale_mean: ArrayLike = 0.0, scale_std: ArrayLike = 1.0,
    scale: float | None = None, noise_std: ArrayLike = 0.0, t: ArrayLike | None = None,
    schedule: Schedule | None = None, dtype: DType | None = None, batched: bool = True, out: Array | None = None,
) -> Any:  # fmt: skip
    """Turns decoded images into a network's input: normalised, noised, channels first.

        x = (scale * image - scale_mean) / scale_std,    result = x + noise_std z,    or alpha_t x + sigma_t z

    torchvision's ToDtype, Normalize and GaussianNoise do the first form one after the other. The second form is the
    noise conditioning augmentation of cascades and video models (Ho et al. 2022, "Cascaded diffusion models").

    Args:
        images: (B, H, W, C), or (H, W, C) if not batched: channels last, as decoders give them. uint8, uint16 or float.
        noise: as in `gaussian`; its elements are counted in the result. None is enough if noise_std is 0 and there is
            no t.
        scale_mean, scale_std: Normalize's mean and std, which apply after ``scale``: a number, or (C,), one for each
            channel.
        scale: a number. None: 1/255, for uint16 1/65535.
        noise_std: the noise's standard deviation in units of the result: a number, or (B,).
        t, schedule: given in place of noise_std; times for ``schedule(t)``, a number or (B,).
        dtype: the result's dtype: float32 by default, float64, float16 or bfloat16.
        batched: False for a single image.
        out: an array to write to; C-contiguous, of the result's shape and dtype.

    Returns:
        (B, C, H, W), of the images' kind; with t, the pair of the result and the times (B,).

    Raises:
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    >>> images = np.full((2, 8, 8, 3), 255, np.uint8)
    >>> x = nf.augment.prepare(images, scale_mean=[0.5, 0.5, 0.5], scale_std=[0.25, 0.5, 1])
    >>> x.shape, x[0, :, 0, 0].round(3).tolist()
    ((2, 3, 8, 8), [2.0, 1.0, 0.5])
    """
    first, images = 1 if batched else 0, host_view("images", images)
    shape: tuple[int, ...] = getattr(images, "shape", ())
    if len(shape) < first + 3:
        wanted, hint = ("(B, H, W, C)", "; batched=False takes (H, W, C)") if batched else ("(H, W, C)", "")
        raise ValueError(f"images: expected shape {wanted}, got {tuple(shape)}{hint}")
    if scale is None:
        scale = 1 / LEVELS.get(levels_of(getattr(images, "dtype", None)) or "uint8", 255)
    if noise is None:
        if t is not None or is_lazy(noise_std) or as_numbers("noise_std", noise_std).any():
            why = "noise_std is not 0" if t is None else "t is given"
            raise TypeError(f"noise: expected a Noise, as {why}, got None")
        noise = Noise(0)  # nothing is drawn from it
    if (prepare := library_for(images).prepare) is not None:
        given: Any = {"scale_mean": scale_mean, "scale_std": scale_std, "scale": scale, "batched": batched}
        given |= {"noise_std": noise_std, "t": t, "schedule": schedule, "dtype": dtype, "out": out}
        return prepare(images, noise=noise, **given)
    batch, channels = shape[0] if batched else 1, shape[-1]
    if shape[-3] in (1, 3, 4) and min(shape[-2:]) >= 16:
        what = f"images: shape {tuple(shape)} is taken for images of {channels} channels, which are last"
        warn_once("channels", f"{what}; move yours there, such as images.movedim(-3, -1)")
    gain, shift = _normalisation(scale, scale_mean, scale_std, channels)
    strength, alpha, times = as_numbers("noise_std", noise_std), np.ones(1), None
    if (t is None) != (schedule is None) or (t is not None and strength.any()):
        raise ValueError("t, schedule: expected both of them, without noise_std, or neither")
    if t is not None and schedule is not None:
        check_plain("t", t)
        if np.shape(t) not in ((), (batch,)):
            raise ValueError(f"t: expected a number or shape ({batch},), got shape {np.shape(t)}")
        times = np.broadcast_to(np.asarray(t), (batch,))
        alpha, strength = at_times(schedule, times)
    if dtype is None:
        dtype = getattr(out, "dtype", "float32")
    if levels_of(dtype):
        raise TypeError(f"dtype {levels_of(dtype)}: expected a float dtype, as normalised values are floats")
    numbers: dict[str, ArrayLike] = {
        name: np.broadcast_to(alpha[:, None] * values, (batch, channels)).squeeze(() if batched else 0)
        for name, values in (("gain", gain), ("shift", shift))
    }
    numbers["noise_std"] = strength if batched or strength.ndim == 0 else strength[0]
    of_torch = hasattr(images, "movedim")
    moved = images.movedim(-1, first).contiguous() if of_torch else np.moveaxis(images, -1, first)
    result = _apply(moved, noise, _PREPARED, numbers, layout="CHW", dtype=dtype, batched=batched, out=out)
    return result if times is None else (result, times)


def _normalisation(scale: float, mean: ArrayLike, std: ArrayLike, channels: int) -> tuple[Any, Any]:
    """Returns the factor of an image, and the term that is added to it, for each channel."""
    given = {"scale": scale, "scale_mean": mean, "scale_std": std}
    columns = {name: as_numbers(name, numbers) for name, numbers in given.items()}
    for name, values in columns.items():
        if values.shape not in ((), (channels,)):
            wanted = f"a number or one for each of {channels} channels, which are last"
            raise ValueError(f"{name}: expected {wanted}, got {values.shape}")
    if not columns["scale_std"].all():
        raise ValueError(f"scale_std = {std!r}: expected numbers other than 0")
    return columns["scale"] / columns["scale_std"], -columns["scale_mean"] / columns["scale_std"]


_PREPARED = Model((("out.x", "gain"), ("out.z", "noise_std"), ("out.k", "shift")))
