# SPDX-License-Identifier: Apache-2.0
"""scikit-image with keyed noise: `random_noise` in place of `skimage.util.random_noise`.

Arguments, defaults, ranges and clipping are those of scikit-image's function (0.26). docs/transforms.md says what
differs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

import noisefuse as nf

from ..ground.checks import check_choice, lie_within
from ..ground.needs import needs

with needs(__name__, "skimage"):
    from skimage import util

__all__ = ["random_noise"]

_as_float: Any = util.img_as_float
_theirs: Any = util.random_noise
_MOST = 1e6  # photons of `augment.poisson`
_DEFAULTS: dict[str, dict[str, float]] = {  # of each mode
    "gaussian": {"mean": 0.0, "var": 0.01},
    "localvar": {"local_vars": 0.01},
    "poisson": {},
    "salt": {"amount": 0.05},
    "pepper": {"amount": 0.05},
    "s&p": {"amount": 0.05, "salt_vs_pepper": 0.5},
    "speckle": {"mean": 0.0, "var": 0.01},
}


def random_noise(
    image: Any, mode: str = "gaussian", rng: nf.Noise | np.random.Generator | int | None = None, clip: bool = True,
    **numbers: Any,
) -> NDArray[Any]:  # fmt: skip
    """Adds noise to an image, as floats from 0 to 1, or from -1 if it has negative values.

    Args:
        image: an array of any shape, one sample. Integers become float64, floats keep their dtype.
        mode: "gaussian", "localvar", "poisson", "salt", "pepper", "s&p" or "speckle".
        rng: the image's Noise, a seed or a generator, whose next 64 bits are the seed.
        clip: whether the result is clipped to that range.
        **numbers: mean and var of "gaussian" and "speckle"; local_vars; amount and salt_vs_pepper.

    Raises:
        ValueError: a mode or a number is wrong, or not one of the mode.

    >>> noisy = random_noise(np.full((64, 64), 0.5), var=0.0025, rng=nf.Noise(7, sample=3))
    >>> round(float(noisy.std()), 2)
    0.05
    """
    mode = mode.lower()
    check_choice("mode", mode, tuple(_DEFAULTS))
    if unknown := numbers.keys() - _DEFAULTS[mode].keys():
        raise ValueError(f"{min(unknown)}: expected numbers of {mode!r}, {', '.join(_DEFAULTS[mode]) or 'none'}")
    given: dict[str, Any] = _DEFAULTS[mode] | numbers
    noise = nf.Noise(rng) if isinstance(rng, int) else rng
    if not isinstance(noise, nf.Noise):
        noise = nf.Noise.from_rng(np.random.default_rng(noise))
    low = -1.0 if np.min(image) < 0 else 0.0
    x, bounds = _as_float(image), (low, 1.0)
    if mode == "poisson":
        peak = 2.0 ** np.ceil(np.log2(len(np.unique(x))))
        if peak > _MOST:  # the noise's words seed theirs
            seeds = noise.seed, int(noise.sample), noise.step, noise.stream
            result: NDArray[Any] = _theirs(x, mode, np.random.default_rng(seeds), clip)
            return result
        scale = np.max(x) - low if low else 1.0  # a signed image is moved to [0, 1] and back
        noisy = nf.augment.poisson((x - low) / scale, peak, noise, batched=False)
        noisy = noisy * scale + low
        return np.clip(noisy, *bounds, out=noisy) if clip else noisy
    if "amount" in given:
        salt = given["salt_vs_pepper"] if mode == "s&p" else float(mode == "salt")
        noisy = nf.augment.impulse(x, given["amount"], noise, salt=salt, values=bounds, batched=False)
        return np.clip(noisy, *bounds, out=noisy) if clip else noisy
    name, least = ("local_vars", math.nextafter(0, 1)) if mode == "localvar" else ("var", 0.0)
    if not lie_within(variance := np.asarray(given[name], np.float64), least, math.inf):
        raise ValueError(f"{name}: expected numbers {'above' if least else 'of at least'} 0")
    std = np.sqrt(variance)
    if mode == "gaussian":
        return nf.augment.gaussian(x, std, noise, mean=given["mean"], clip=bounds if clip else None, batched=False)
    z = nf.randn(x.shape, noise, dtype=np.promote_types(x.dtype, np.float32), batched=False)
    z *= std.astype(z.dtype)
    noisy = x + (x * (z + given["mean"]) if mode == "speckle" else z)
    return np.clip(noisy, *bounds, out=noisy) if clip else noisy
