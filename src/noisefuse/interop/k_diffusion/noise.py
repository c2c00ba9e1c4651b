# SPDX-License-Identifier: Apache-2.0
"""Samplers draw their noise from a Noise for each call, from one Brownian motion, or from torch's generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

import noisefuse as nf

from ...language.noise import SAMPLER, Noises, at_row, each, names_of

NoiseSampler: TypeAlias = Callable[[Any, Any], torch.Tensor]
ExtraArgs: TypeAlias = "dict[str, Any] | None"


def noise_sampler(x: torch.Tensor, noise: Noises) -> NoiseSampler:
    """Returns a noise sampler f(sigma, sigma_next) -> z like x, for k-diffusion's functions and others with their
    interface.

    Call k draws ``randn_like(x, noise.at(step=noise.step + k, stream=3))``. The functions here draw the same in row k,
    so both ways give one picture if each step is one call of the model. It does not read the noise levels: functions
    that need increments of one Brownian motion (their `sample_dpmpp_sde`) take `brownian_noise_sampler`.

    Args:
        x: a tensor with the shape, dtype and device of z; axis 0 is the batch.
        noise: a Noise, or a list with one for each sample.

    Returns:
        f(sigma, sigma_next) -> z, a new tensor.

    Raises:
        TypeError: noise is no noise. The first call raises it.

    >>> import torch
    >>> from noisefuse.interop import k_diffusion
    >>> draw = k_diffusion.noise_sampler(torch.zeros(2, 3), [nf.Noise(11), nf.Noise(12)])
    >>> draw(14.6, 9.7).shape
    torch.Size([2, 3])
    """
    calls = iter(range(1 << 32))

    def draw(sigma: Any, sigma_next: Any) -> torch.Tensor:
        return nf.randn_like(x, at_row(noise, next(calls), SAMPLER))

    return draw


def brownian_noise_sampler(
    x: torch.Tensor, sigma_min: float, sigma_max: float, noise: Noises, *, transform: Callable[[float], float] = float
) -> NoiseSampler:
    """Returns f(sigma, sigma_next) -> z like x, of one Brownian motion, in place of k-diffusion's
    BrownianTreeNoiseSampler.

    z is its increment from one noise level to the other, over the root of the time between them (`Noise.interval`).
    Runs of more or fewer steps see the same path, and nothing is stored. Calls may come in any order.

    Args:
        x: a tensor with the shape, dtype and device of z; axis 0 is the batch.
        sigma_min, sigma_max: the range of all noise levels.
        noise: a Noise, or a list with one for each sample, of a step below 128.
        transform: sigma -> time, monotonic. By default time is sigma itself, as in k-diffusion.

    Returns:
        f(sigma, sigma_next) -> z, a new tensor.

    Raises:
        ValueError: noise levels lie outside the span (rounding to float32 may do that), or within 2^-24 of it.
        TypeError: noise is no noise. Other errors are those of `Noise.interval`.

    >>> import torch
    >>> from noisefuse.interop import k_diffusion
    >>> draw = k_diffusion.brownian_noise_sampler(torch.zeros(2, 3), 0.03, 14.6, nf.Noise(11))
    >>> first, second, whole = draw(14.6, 9.0), draw(9.0, 5.0), draw(14.6, 5.0)
    >>> torch.allclose(5.6**0.5 * first + 4.0**0.5 * second, 9.6**0.5 * whole, atol=1e-4)
    True
    """
    least, most = sorted((float(sigma_min), float(sigma_max)))
    low, high = sorted((transform(least), transform(most)))

    def time(sigma: Any) -> float:
        level = float(sigma)
        within = min(max(level, least), most)
        # a float32 noise level may lie beyond an end by its rounding
        return transform(within if math.isclose(level, within, rel_tol=2**-23) else level)

    def draw(sigma: Any, sigma_next: Any) -> torch.Tensor:
        t0, t1 = time(sigma), time(sigma_next)
        names_of(noise)  # it raises the error
        return nf.randn_like(x, each(noise, lambda name: name.interval(t0, t1, span=(low, high))))

    return draw


def of_seed(extra_args: ExtraArgs) -> nf.Noise:
    """Returns noise for samplers with a Brownian tree: from the seed in extra_args, else from a word of torch's
    generator."""
    seed = seed_in(extra_args)
    return nf.Noise(int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed)


def seed_in(extra_args: ExtraArgs) -> int | None:
    """Returns the seed in extra_args, as ComfyUI passes it. For k-diffusion's own functions it is only the model's
    option."""
    seed = (extra_args or {}).get("seed")
    return None if seed is None else int(seed)


def by_torch(x: torch.Tensor, seed: int | None) -> NoiseSampler:
    """Draws from torch's generator; with a seed from a new one, like ComfyUI's default_noise_sampler: seed + 1 on
    CPUs."""
    if seed is None:
        return lambda sigma, sigma_next: torch.randn_like(x)
    generator = torch.Generator(x.device).manual_seed(seed + (x.device.type == "cpu"))
    like: dict[str, Any] = {"dtype": x.dtype, "device": x.device, "generator": generator}
    return lambda sigma, sigma_next: torch.randn(x.shape, **like)


def clipped(draw: NoiseSampler, deviations: float) -> NoiseSampler:
    """Bounds what is drawn, in its standard deviations over the batch."""

    def draw_within(sigma: Any, sigma_next: Any) -> torch.Tensor:
        z = draw(sigma, sigma_next)
        most = deviations * z.std()
        return z.clamp(-most, most)

    return draw_within
