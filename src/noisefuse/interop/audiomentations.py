# SPDX-License-Identifier: Apache-2.0
"""audiomentations with keyed noise: `AddGaussianNoise` and `AddGaussianSNR` in place of the classes of the same names.

    from noisefuse.interop.audiomentations import AddGaussianSNR

    augment = Compose([AddGaussianSNR(min_snr_db=10.0, p=0.5), PitchShift()])

Arguments, defaults, frozen parameters and their serialisation are those of audiomentations' classes (0.43). The noise's
key is 64 bits of Python's `random`, which draws audiomentations' parameters, or the clip's (``at``). docs/transforms.md
says what differs.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

import noisefuse as nf

from ..ground.needs import needs
from .transforms.keyed import Key, Named, applies, strength

with needs(__name__, "audiomentations"):
    import audiomentations

__all__ = ["AddGaussianNoise", "AddGaussianSNR"]

Samples = NDArray[np.float32]


class _Gaussian(Named):
    """The part that both share. Everything random is a parameter, the noise as its seed, sample and step: frozen
    parameters repeat the noise."""

    parameters: dict[str, Any]
    p: float

    def at(self, key: Key, epoch: int = 0, *, seed: int = 0) -> Any:
        named: Any = super().at(key, epoch, seed=seed)
        named.parameters = {"should_apply": None}  # its own parameter, drawn even if this one's are frozen
        return named

    at.__doc__ = Named.at.__doc__

    def randomize_parameters(self, samples: Samples, sample_rate: int) -> None:
        if samples.dtype != np.float32:
            raise TypeError(f"samples: expected float32, a signal of about -1 to 1, got {samples.dtype}")
        named = self._noise
        self.parameters["should_apply"] = random.random() < self.p if named is None else applies(named, self.p)
        if self.parameters["should_apply"]:
            self.parameters |= self._strength(samples)
            noise = nf.Noise(random.getrandbits(64)) if named is None else named
            self.parameters["noise"] = [noise.seed, noise.sample, noise.step]

    def _strength(self, samples: Samples) -> dict[str, float]:
        raise NotImplementedError

    def _uniform(self, low: float, high: float) -> float:
        return random.uniform(low, high) if self._noise is None else strength(self._noise, low, high)

    def _add(self, samples: Samples, std: float) -> Samples:
        seed, sample, step = self.parameters["noise"]
        noisy: Samples = nf.augment.gaussian(samples, std, nf.Noise(seed, sample=sample, step=step), batched=False)
        return noisy


class AddGaussianNoise(_Gaussian, audiomentations.AddGaussianNoise):
    """Gaussian noise of a random standard deviation, in clips (samples,) or (channels, samples) of float32.

    Args:
        min_amplitude, max_amplitude: the range of the standard deviation, in units of the samples.
        p: the probability of applying the transform.

    Raises:
        ValueError: a range is wrong.
        TypeError: the samples are not float32 (or float64, which audiomentations converts).
    """

    def __init__(self, min_amplitude: float = 0.001, max_amplitude: float = 0.015, p: float = 0.5) -> None:
        if not (0 < min_amplitude <= max_amplitude and 0 <= p <= 1):
            given = f"min_amplitude = {min_amplitude}, max_amplitude = {max_amplitude}, p = {p}"
            raise ValueError(f"{given}: expected 0 < min_amplitude <= max_amplitude and 0 <= p <= 1")
        super().__init__(min_amplitude, max_amplitude, p)

    def _strength(self, samples: Samples) -> dict[str, float]:
        return {"amplitude": self._uniform(self.min_amplitude, self.max_amplitude)}

    def apply(self, samples: Samples, sample_rate: int) -> Samples:
        return self._add(samples, self.parameters["amplitude"])


class AddGaussianSNR(_Gaussian, audiomentations.AddGaussianSNR):
    """Gaussian noise at a random signal-to-noise ratio, in clips (samples,) or (channels, samples) of float32.

    Args:
        min_snr_db, max_snr_db: the range of the ratio in decibels. The signal's level is the mean of its channels' RMS.
        p: the probability of applying the transform.

    Raises:
        ValueError: a range is wrong, or samples are not finite.
        TypeError: the samples are not float32 (or float64, which audiomentations converts).
    """

    def __init__(self, min_snr_db: float = 5.0, max_snr_db: float = 40.0, p: float = 0.5) -> None:
        if not (min_snr_db <= max_snr_db and 0 <= p <= 1):
            given = f"min_snr_db = {min_snr_db}, max_snr_db = {max_snr_db}, p = {p}"
            raise ValueError(f"{given}: expected min_snr_db <= max_snr_db and 0 <= p <= 1")
        super().__init__(min_snr_db, max_snr_db, p)

    def _strength(self, samples: Samples) -> dict[str, float]:
        decibels = self._uniform(self.min_snr_db, self.max_snr_db)
        rms = nf.augment.rms(samples, batched=samples.ndim > 1).mean() if samples.size else 0.0
        std = float(rms * 10 ** (-decibels / 20))
        if not np.isfinite(std):
            raise ValueError("samples: has values that are not finite, so there is no signal-to-noise ratio")
        return {"noise_std": std}

    def apply(self, samples: Samples, sample_rate: int) -> Samples:
        return self._add(samples, self.parameters["noise_std"])
