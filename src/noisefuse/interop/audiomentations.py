# SPDX-License-Identifier: Apache-2.0
"""audiomentations with keyed noise: `AddGaussianNoise`, `AddGaussianSNR` and `AddColorNoise` in place of the classes of
the same names.

    from noisefuse.interop.audiomentations import AddGaussianSNR

    augment = Compose([AddGaussianSNR(min_snr_db=10.0, p=0.5), PitchShift()])

Arguments, defaults, frozen parameters and their serialisation are those of audiomentations' classes (0.43). The noise's
key is 64 bits of Python's `random`, which draws audiomentations' parameters, or the clip's (``at``). docs/transforms.md
says what differs.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

import noisefuse as nf

from ..ground.needs import needs
from .transforms.keyed import Key, Named, applies, strength

with needs(__name__, "audiomentations"):
    import audiomentations
    from audiomentations.core.utils import a_weighting_frequency_envelope

__all__ = ["AddColorNoise", "AddGaussianNoise", "AddGaussianSNR"]

Samples = NDArray[np.float32]


class _Noise(Named):
    """The part that they share. Everything random is a parameter, the noise as its seed, sample and step: frozen
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

    def _strength(self, samples: Samples) -> dict[str, Any]:
        raise NotImplementedError

    def _uniform(self, low: float, high: float, stage: int = 0) -> float:
        """Draws one of the parameters; each stage has another number."""
        return random.uniform(low, high) if self._noise is None else strength(self._noise.at(stream=stage), low, high)

    def _std(self, samples: Samples, decibels: float) -> float:
        rms = nf.augment.rms(samples, batched=samples.ndim > 1) if samples.size else np.zeros(1)
        std = float(rms.mean() if len(rms) > 1 else rms.item()) * 10 ** (-decibels / 20)
        if not math.isfinite(std):
            raise ValueError("samples: has values that are not finite, so there is no signal-to-noise ratio")
        return std

    def _add(self, samples: Samples, std: float, add: Any = nf.augment.gaussian, *more: Any) -> Samples:
        seed, sample, step = self.parameters["noise"]
        noisy: Samples = add(samples, std, nf.Noise(seed, sample=sample, step=step), *more, batched=False)
        return noisy


class AddGaussianNoise(_Noise, audiomentations.AddGaussianNoise):
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


class AddGaussianSNR(_Noise, audiomentations.AddGaussianSNR):
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
        return {"noise_std": self._std(samples, self._uniform(self.min_snr_db, self.max_snr_db))}

    def apply(self, samples: Samples, sample_rate: int) -> Samples:
        return self._add(samples, self.parameters["noise_std"])


class AddColorNoise(_Noise, audiomentations.AddColorNoise):
    """Coloured noise at a random signal-to-noise ratio and of a random slope (`augment.coloured`), in clips (samples,)
    or (channels, samples) of float32.

    Args:
        min_snr_db, max_snr_db: the range of the ratio in decibels, as in `AddGaussianSNR`.
        min_f_decay, max_f_decay: the range of the slope in decibels an octave, from -12 to 12.
        p_apply_a_weighting: the probability of audiomentations' A-weighting.
        p: the probability of applying the transform.
        n_fft: the noise is flat below sample_rate / n_fft.

    Raises:
        ValueError: a range is wrong, or samples are not finite.
        TypeError: the samples are not float32 (or float64, which audiomentations converts).
    """

    def __init__(
        self, min_snr_db: float = 5.0, max_snr_db: float = 40.0, min_f_decay: float = -6.0, max_f_decay: float = 6.0,
        p_apply_a_weighting: float = 0.0, p: float = 0.5, n_fft: int = 128,
    ) -> None:  # fmt: skip
        if not (min_snr_db <= max_snr_db and -12 <= min_f_decay <= max_f_decay <= 12 and n_fft >= 2):
            given = f"snr_db {min_snr_db} to {max_snr_db}, f_decay {min_f_decay} to {max_f_decay}, n_fft = {n_fft}"
            raise ValueError(f"{given}: expected ranges from low to high, f_decay within -12 .. 12, n_fft from 2")
        if not (0 <= p_apply_a_weighting <= 1 and 0 <= p <= 1):
            raise ValueError(f"p_apply_a_weighting = {p_apply_a_weighting}, p = {p}: expected from 0 to 1")
        super().__init__(min_snr_db, max_snr_db, min_f_decay, max_f_decay, p_apply_a_weighting, p, n_fft)

    def _strength(self, samples: Samples) -> dict[str, Any]:
        decibels = self._uniform(self.min_snr_db, self.max_snr_db)
        slope = self._uniform(self.min_f_decay, self.max_f_decay, 1)
        weighted = self._uniform(0.0, 1.0, 2) < self.p_apply_a_weighting
        std = self._std(samples, decibels)
        return {"desired_noise_rms": std, "f_decay": slope, "apply_a_weighting": weighted}

    def apply(self, samples: Samples, sample_rate: int) -> Samples:
        n, weighted = self.n_fft, self.parameters["apply_a_weighting"]
        even = nf.augment.slope_gains(self.parameters["f_decay"], 1 / n)
        weights = a_weighting_frequency_envelope(n, sample_rate) if weighted else None
        gains = even if weights is None else lambda f: np.interp(f, np.fft.rfftfreq(n), weights) * even(f)
        return self._add(samples, self.parameters["desired_noise_rms"], nf.augment.add_spectrum, gains)
