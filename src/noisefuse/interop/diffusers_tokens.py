# SPDX-License-Identifier: Apache-2.0
"""Schedulers of tokens of diffusers whose ``step`` takes a Noise, or a list of one for each sample, as its generator.

    from noisefuse.interop.diffusers_tokens import EntropyBoundScheduler     # a subclass of diffusers' class

With a torch.Generator, or none, they are diffusers' own steps. With a Noise, step i draws at the noise's step plus i:
one read of the logits, no draw that depends on the batch. docs/discrete.md has their streams.
"""

from __future__ import annotations

import sys
from typing import Any

import noisefuse as nf

from ..ground.needs import needs
from ..language.noise import are_names, each

with needs(__name__, "diffusers", "torch"):
    import diffusers
    import torch
    from torch import Tensor

__all__ = [
    "AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler",
    "VQDiffusionScheduler",
]  # fmt: skip

ORDER = 16  # the stream of an order of positions


def _base(of: Any) -> Any:
    """Returns what type checkers do not know: diffusers' classes are loaded when they are asked for."""
    return of


def _is_noise(generator: Any) -> bool:
    return generator is not None and are_names(generator)


def _at(noise: Any, i: int) -> Any:
    """Returns the noise of step i."""
    return each(noise, lambda name: name.at(step=name.step + i))


def _gumbel(shape: tuple[int, ...], noise: Any) -> Tensor:
    """Returns standard Gumbel variables of stream 16, for an order of positions."""
    u = nf.uniform(shape, each(noise, lambda name: name.at(stream=ORDER)), dtype=torch.float64)
    return -torch.log(-torch.log(u))


def _result(return_dict: bool, name: str, **values: Any) -> Any:
    if not return_dict:
        return tuple(values.values())
    module = sys.modules[getattr(diffusers, name).__module__]
    return getattr(module, f"{name}Output")(**values)


def _scheduler(name: str) -> Any:
    """Returns diffusers' class. Where its version has none: one that says so when it is made."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise ImportError(f"{name}: diffusers {diffusers.__version__} does not have it, 0.42 does: upgrade diffusers")

    made = classmethod(refuse)
    absent = {"__init__": refuse, "from_config": made, "from_pretrained": made}
    return getattr(diffusers, name, None) or type(name, (), absent)


class DiscreteDDIMScheduler(_scheduler("DiscreteDDIMScheduler")):  # type: ignore[misc]
    """diffusers' DiscreteDDIMScheduler: `samplers.d3pm` of uniform tokens. `step_correct` takes torch's generators."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *, temperature: float = 0.0, generator: Any = None,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        if not _is_noise(generator):
            options: dict[str, Any] = {"temperature": temperature, "generator": generator, "return_dict": return_dict}
            return _base(super()).step(model_output, timestep, sample, **options)
        v = model_output.shape[-1]
        steps = _base(self).num_inference_steps
        sampler = nf.samplers.d3pm(steps, vocabulary=v, network="denoiser", temperature=temperature)
        state = sampler.state("log_prob_raw")
        made = sampler.step(int(timestep), sample, model_output, generator, state)
        return _result(
            return_dict, "DiscreteDDIMScheduler", prev_sample=made,
            sampled_tokens=torch.from_numpy(state.drawn),
            sampled_probs=torch.from_numpy(state.info.log_prob_raw).exp(), pred_logits=model_output,
        )  # fmt: skip


class EntropyBoundScheduler(_scheduler("EntropyBoundScheduler")):  # type: ignore[misc]
    """diffusers' EntropyBoundScheduler: `samplers.entropy_bound` of uniform tokens."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *, entropy_bound: float | None = None,
        generator: Any = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        if not _is_noise(generator):
            options: dict[str, Any] = {"generator": generator, "return_dict": return_dict}
            return _base(super()).step(model_output, timestep, sample, entropy_bound=entropy_bound, **options)
        own = _base(self)
        sampler = nf.samplers.entropy_bound(
            _base(self).num_inference_steps, bound=own.config.entropy_bound if entropy_bound is None else entropy_bound,
            vocabulary=model_output.shape[-1], t_max=own.config.t_max, t_min=own.config.t_min,
        )  # fmt: skip
        state, i = sampler.state("log_prob"), int(timestep)
        made = sampler.step(i, sample, model_output, generator, state)
        return _result(
            return_dict, "EntropyBoundScheduler", prev_sample=made,
            accepted_index=torch.from_numpy(state.taken), sampled_tokens=torch.from_numpy(state.drawn),
            sampled_probs=torch.from_numpy(state.info.log_prob).exp(),
            pred_logits=model_output / sampler.table.rows[i].temperature,
        )  # fmt: skip


class BlockRefinementScheduler(_scheduler("BlockRefinementScheduler")):  # type: ignore[misc]
    """diffusers' BlockRefinementScheduler: tokens by `categorical`, and tokens that are drawn anew by `q_uniform`.

    Its greedy choice, and its choice of positions, are diffusers' own code.
    """

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *, generator: Any = None, **options: Any
    ) -> Any:
        if not _is_noise(generator):
            return _base(super()).step(model_output, timestep, sample, generator=generator, **options)
        noise, v = _at(generator, int(timestep)), model_output.shape[-1]
        drawn = _drawn_tokens(model_output, noise, options)
        self._sample_from_logits = lambda logits, **options: drawn
        asked = options.pop("return_dict", True)
        try:
            made = _base(super()).step(model_output, timestep, sample, generator=None, return_dict=True, **options)
        finally:
            del self._sample_from_logits
        if options.get("mask_token_id") is None:
            new, _ = nf.q_uniform(sample, 1.0, noise, v)
            made.prev_sample = torch.where(_base(self)._committed, made.prev_sample, new)
        return made if asked else made.to_tuple()


def _drawn_tokens(logits: Tensor, noise: Any, options: dict[str, Any]) -> Any:
    """Returns a token of each row, and its probability in the distribution it was drawn from, as BlockRefinement has
    them."""
    temperature, method = options.get("temperature", 0.0), options.get("sampling_method", "auto")
    if temperature == 0 or not (method == "multinomial" or method == "auto"):
        token, info = nf.categorical(logits, noise, temperature=0.0, info="log_prob_raw")
        return token, info.log_prob_raw.exp()
    top: dict[str, Any] = {"top_k": options.get("top_k") or 0, "top_p": options.get("top_p") or 1.0}
    token, info = nf.categorical(logits, noise, temperature=temperature, info="log_prob", **top)
    return token, info.log_prob.exp()


class AmusedScheduler(diffusers.AmusedScheduler):
    """diffusers' AmusedScheduler: tokens by `categorical`, and the order of positions from stream 16."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, starting_mask_ratio: float = 1.0,
        generator: Any = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        if not _is_noise(generator):
            return _base(super()).step(model_output, timestep, sample, starting_mask_ratio, generator, return_dict)
        own = _base(self)
        steps = len(own.timesteps)
        i = steps - 1 - int(timestep)
        noise, shape = _at(generator, i), sample.shape
        logits = model_output
        if sample.ndim == 3:
            logits = model_output.reshape(*model_output.shape[:2], -1).permute(0, 2, 1).contiguous()
        flat = sample.reshape(len(sample), -1)
        unknown = flat == own.config.mask_token_id
        token, info = nf.categorical(logits, noise, info="log_prob_raw")
        clean = torch.where(unknown, token.to(flat.dtype), flat)
        made = clean
        if int(timestep):
            ratio = (i + 1) / steps
            share = (
                float(torch.cos(torch.tensor(ratio * torch.pi / 2)))
                if own.config.masking_schedule == "cosine"
                else 1 - ratio
            )
            wanted = int(flat.shape[1] * starting_mask_ratio * share)
            hidden = torch.clamp(torch.clamp(unknown.sum(1, keepdim=True) - 1, max=wanted), min=1)
            keys = info.log_prob_raw.double() + float(own.temperatures[i]) * _gumbel(flat.shape, noise)
            keys = torch.where(unknown, keys, torch.inf)
            ranks = keys.argsort(dim=1, stable=True).argsort(dim=1)
            made = torch.where(ranks < hidden, own.config.mask_token_id, clean)
        values = {"prev_sample": made.reshape(shape), "pred_original_sample": clean.reshape(shape)}
        return _result(return_dict, "AmusedScheduler", **values)


class VQDiffusionScheduler(diffusers.VQDiffusionScheduler):
    """diffusers' VQDiffusionScheduler: its posterior, from which `categorical` draws."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True
    ) -> Any:
        if not _is_noise(generator):
            return _base(super()).step(model_output, timestep, sample, generator, return_dict)
        log_p = model_output if int(timestep) == 0 else _base(self).q_posterior(model_output, sample, timestep)
        i = len(_base(self).timesteps) - 1 - int(timestep)
        token = nf.categorical(log_p.transpose(1, 2).contiguous().float(), _at(generator, i))
        return _result(return_dict, "VQDiffusionScheduler", prev_sample=token)
