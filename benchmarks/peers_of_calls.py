# SPDX-License-Identifier: Apache-2.0
"""Each public function has torch's shortest eager code beside it here, with torch's own generator.

A peer takes the arguments of the plain call (cliffs.py), tensors for arrays. Its noise is another, its work the same.
Functions without a peer are compared with a plain `q_sample`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import cliffs
from noisefuse.commands.bench.contenders import Call


def arguments(name: str, shape: tuple[int, ...], of: Callable[[Any], Any], **options: Any) -> dict[str, Any]:
    """Returns those of the plain call of a function, its arrays made by `of`. Options are of functions of a shape."""
    given = cliffs.arguments(name, cliffs.functions()[name], shape)
    arrays = {key: of(x) for key, x in given.items() if isinstance(x, np.ndarray)}
    return given | arrays | (options if "shape" in given else {})


def peer(name: str, shape: tuple[int, ...]) -> Call | None:
    """Returns torch's call, on one thread, or None if it has none. ImportError: torch is not installed."""
    import torch

    torch.set_num_threads(1)
    make = peers(torch).get(name)
    return make and partial(make, **arguments(name, shape, torch.from_numpy))


def peers(torch: Any, **there: Any) -> dict[str, Callable[..., Any]]:
    """Returns torch's functions by name. `there`: a device, in host memory nothing."""
    functional, normal, upsample = torch.nn.functional, torch.randn_like, torch.nn.functional.interpolate
    alpha, sigma = (
        torch.tensor(column, dtype=torch.float32, **there) for column in (cliffs.FLOW.alpha, cliffs.FLOW.sigma)
    )
    a, b, s = 0.9, 0.1, 0.3  # a step's coefficients
    ones = cliffs.WALK.betas
    walk = torch.tensor(np.sqrt([1 - ones, ones]), dtype=torch.float32, **there)
    changes = torch.tensor(cliffs.CHANGES, dtype=torch.float32, **there)
    levels = torch.arange(256.0, **there), torch.full((256,), 10.0, **there)

    def noised(x0: Any, a: Any, s: Any) -> Any:
        return a * x0 + s * normal(x0)

    def walked(x0: Any, **_: Any) -> Any:
        for t in range(len(ones)):
            x0 = walk[0, t] * x0 + walk[1, t] * normal(x0)
        return x0

    def v(x0: Any, t: int) -> Any:
        return alpha[t] * normal(x0) - sigma[t] * x0

    def squares(pred: Any, target: Any) -> Any:
        error = pred - target
        return error.square().mean(), error * (2 / error.numel())

    def log_prob(x: Any, model_output: Any, x_next: Any) -> Any:
        return ((x_next - a * x - b * model_output) / s).square().flatten(1).sum(1) * -0.5

    def update_with_log_prob(x: Any, model_output: Any, **_: Any) -> Any:
        z = normal(x)
        return a * x + b * model_output + s * z, z.square().flatten(1).sum(1) * -0.5

    def cross_entropy_and_grad(logits: Any, ids: Any) -> Any:
        logits = logits.detach().requires_grad_()
        loss = functional.cross_entropy(logits, ids)
        return loss, torch.autograd.grad(loss, logits)

    def rates(logits: Any, ids: Any, x_t: Any, p: float) -> Any:
        """The terms of Duo's loss."""
        v, same = logits.shape[-1], (ids == x_t).float()
        bar = v * (1 - p) * logits.softmax(-1) + p
        at, of_clean = (bar.gather(-1, one[:, None])[:, 0] for one in (x_t, ids))
        share = p / (v * (1 - p) + p)
        first = v * (1 / (p + v * (1 - p) * same) - 1 / at)
        second = (same * share + 1 - same) * (bar.log().sum(-1) - v * at.log())
        third = v * (1 - p) / p * (of_clean.log() - at.log()) * (1 - same)
        offset = ((v - 1) * share * same - (1 - same) / share) * math.log(share)
        return -(first + second + third - offset).mean() / v

    def rates_and_grad(logits: Any, ids: Any, x_t: Any, p: float) -> Any:
        logits = logits.detach().requires_grad_()
        loss = rates(logits, ids, x_t, p)
        return loss, torch.autograd.grad(loss, logits)

    def with_noise_of(x: Any, sizes: tuple[int, ...]) -> Any:
        return normal(x) + 0.1 * torch.randn(sizes, **there)

    def pyramid(x: Any, discount: float, **_: Any) -> Any:
        size = x.shape[-2:]
        z = normal(x).view(1, -1, *size)
        for level in range(1, 6):
            small = [max(1, n >> level) for n in size]
            z = z + discount**level * upsample(torch.randn(*z.shape[:2], *small, **there), size, mode="bilinear")
        return (z / z.std()).view(x.shape)

    def nearest(k: int, x0: Any, **_: Any) -> Any:
        return (torch.randn(k, *x0.shape, **there) - x0).flatten(2).square().sum(2).argmin(0)

    def changed(ids: Any, p: float, to: Any) -> Any:
        chosen = torch.rand(ids.shape, **there) < p
        return torch.where(chosen, to, ids), chosen

    def q_uniform(ids: Any, p: float, vocabulary: int, **_: Any) -> Any:
        return changed(ids, p, torch.randint_like(ids, vocabulary))

    def top_k(logits: Any, top_k: int, temperature: float = 1.0, **_: Any) -> Any:
        values, ids = logits.topk(top_k)
        return ids.gather(-1, torch.multinomial((values / temperature).softmax(-1), 1))

    def top_p(logits: Any, top_p: float, temperature: float = 1.0, **_: Any) -> Any:
        p, ids = (logits / temperature).softmax(-1).sort(descending=True)
        return ids.gather(-1, torch.multinomial(p.masked_fill(p.cumsum(-1) - p > top_p, 0), 1))

    def draw(logits: Any, **_: Any) -> Any:
        return torch.multinomial(logits.softmax(-1), 1)

    def at_snr(x: Any, snr: float, **_: Any) -> Any:
        power = x.square().flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
        return x + (power / 10 ** (snr / 10)).sqrt() * normal(x)

    def coloured(x: Any, snr: float, slope: float, **_: Any) -> Any:
        bins = torch.fft.rfft(normal(x))
        frequency = torch.arange(bins.shape[-1], **there).clamp(min=1)
        z = torch.fft.irfft(bins * frequency ** (slope / 6.02), x.shape[-1])
        return x + 10 ** (-snr / 20) * (x.square().mean() / z.square().mean()).sqrt() * z

    def transition(x: Any, **_: Any) -> Any:
        return torch.multinomial(changes[x.flatten().long()], 1).to(torch.uint8).view(x.shape)

    def salt_and_pepper(x: Any, amount: float, **_: Any) -> Any:
        u = torch.rand(x.shape, **there)
        return torch.where(u < amount / 2, 1.0, torch.where(u < amount, 0.0, x))

    def as_bytes(x: Any) -> Any:
        return x.round().clamp(0, 255).to(torch.uint8)

    return {
        "randn": lambda shape, **_: torch.randn(shape, **there),
        "uniform": lambda shape, **_: torch.rand(shape, **there),
        "randn_like": lambda x, **_: normal(x),
        "q_sample": lambda x0, t, **_: noised(x0, alpha[t], sigma[t]),
        "q_step": lambda x, t, **_: noised(x, alpha[t], sigma[t]),
        "noised": lambda x0, alpha, sigma, **_: noised(x0, alpha, sigma),
        "q_walk": walked,
        "mse_loss": lambda pred, x0, t, **_: functional.mse_loss(pred, v(x0, t)),
        "mse_loss_and_grad": lambda pred, x0, t, **_: squares(pred, v(x0, t)),
        "mse_loss_grad": lambda pred, x0, t, **_: squares(pred, v(x0, t))[1],
        "interpolate": lambda x0, x1, t, **_: torch.lerp(x0, x1, t),
        "interpolate, velocity": lambda x0, x1, t, **_: (torch.lerp(x0, x1, t), x1 - x0),
        "interpolate, variance preserving": lambda x0, x1, **_: a * x0 + b * x1,
        **{
            f"interpolate, {path}": lambda x0, x1, **_: a * x0 + b * x1 + s * normal(x0)
            for path in ("a bridge", "a conditional flow", "encoder and decoder", "I2SB", "stochastic")
        },
        "interpolate_loss": lambda pred, x0, x1, **_: functional.mse_loss(pred, x1 - x0),
        "interpolate_loss_and_grad": lambda pred, x0, x1, **_: squares(pred, x1 - x0),
        "update": lambda x, model_output, **_: a * x + b * model_output,
        "update, noise": lambda x, model_output, **_: a * x + b * model_output + s * normal(x),
        "q_mask": lambda ids, p, mask_id, **_: changed(ids, p, mask_id),
        "q_uniform": q_uniform,
        "q_transition": lambda ids, **_: q_uniform(ids, 0.5, 50),
        "categorical": draw,
        "categorical, confident": draw,
        "categorical, flat": draw,
        "categorical, temperature 0": lambda logits, **_: logits.argmax(-1),
        **dict.fromkeys(("categorical, top_k", "categorical, top_k, confident", "categorical, top_k, flat"), top_k),
        **dict.fromkeys(("categorical, top_p", "categorical, top_p, confident", "categorical, top_p, flat"), top_p),
        "masked_cross_entropy": lambda logits, ids: functional.cross_entropy(logits, ids),
        "masked_cross_entropy_and_grad": cross_entropy_and_grad,
        "rate_loss": rates,
        "rate_loss_and_grad": rates_and_grad,
        "density.log_prob": lambda x, model_output, x_next, **_: log_prob(x, model_output, x_next),
        "density.log_prob_grad": lambda x, model_output, x_next, **_: (x_next - a * x - b * model_output) * (b / s / s),
        "density.update_with_log_prob": update_with_log_prob,
        "density.kl": lambda model_output, reference, **_: (model_output - reference).square().flatten(1).sum(1) * s,
        "density.kl_grad": lambda model_output, reference, **_: (model_output - reference) * s,
        "augment.gaussian": lambda x, std, **_: x + std * normal(x),
        "augment.multiplicative": lambda x, std, **_: x * (1 + std * normal(x)),
        "augment.sensor": lambda x, a, b, **_: x + (a * x + b).sqrt() * normal(x),
        "augment.at_snr": at_snr,
        "augment.coloured": coloured,
        "augment.rms": lambda x, **_: x.square().flatten(1).mean(1).sqrt(),
        "augment.poisson": lambda x, peak, **_: as_bytes(torch.poisson(x * (peak / 255)) * (255 / peak)),
        "augment.transition": transition,
        "augment.rician": lambda x, std, **_: torch.hypot(x + std * normal(x), std * normal(x)),
        "augment.corrupt": lambda images, **_: as_bytes(images + 0.08 * 255 * torch.randn(images.shape, **there)),
        "augment.impulse": salt_and_pepper,
        "augment.by_level": lambda x, **_: as_bytes(
            levels[0][x.long()] + levels[1][x.long()] * torch.randn(x.shape, **there)
        ),
        "augment.prepare": lambda images, **_: images.permute(0, 3, 1, 2).float().div(255).contiguous(),
        "augment.strengths": lambda n, low, high, **_: torch.empty(n, dtype=torch.float64, **there).uniform_(low, high),
        "fields.offset_like": lambda x, **_: with_noise_of(x, (*x.shape[:2], *[1] * (x.ndim - 2))),
        "fields.mixed_like": lambda x, **_: with_noise_of(x, (x.shape[0], 1, *x.shape[2:])),
        "fields.perturbed": lambda x_t, t, gamma, **_: x_t + gamma * sigma[t] * normal(x_t),
        "fields.pyramid_like": pyramid,
        "fields.nearest_of": nearest,
        "weights.draw": lambda row, u: torch.searchsorted(row.cumsum(0), u * row.sum(), right=True),
    }
