# SPDX-License-Identifier: Apache-2.0
"""A Noise in the place of a pipeline's generator: each draw of a call is a field of its own."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils import torch_utils

import noisefuse as nf

from ...language.noise import each, listed


class KeyedGenerator(torch.Generator):
    """A Noise where pipelines expect a torch.Generator, for one call of a pipeline.

    Draw k of `randn_tensor` is stream 2 of the Noise at step `noise.step + k`, and a scheduler's steps draw stream 3.
    What draws from the generator itself gets torch's numbers, from a seed that follows from the key.
    """

    noise: nf.Noise
    draws: int

    def next(self) -> nf.Noise:
        self.draws += 1
        return self.noise.at(step=self.noise.step + self.draws - 1, stream=2)


def _are(kind: type, generator: Any) -> bool:
    """Tells whether this is one of a kind of generators, or a list of them."""
    generators = listed(generator)
    return bool(generators) and all(isinstance(one, kind) for one in generators)


def of_call(generator: Any) -> Any:
    """Returns a pipeline's generator, with a KeyedGenerator in place of each Noise."""
    return each(generator, _keyed) if _are(nf.Noise, generator) else generator


def _keyed(noise: nf.Noise) -> KeyedGenerator:
    if noise.stream:
        raise ValueError(f"generator: expected a Noise of stream 0, got {noise.stream}")
    generator = KeyedGenerator()
    generator.noise, generator.draws = noise, 0
    generator.manual_seed(nf.augment.sample_id(repr(noise)))
    return generator


def of_step(generator: Any) -> Any:
    """Returns a step's generator, with the Noise in place of each KeyedGenerator."""
    return each(generator, lambda one: one.noise) if _are(KeyedGenerator, generator) else generator


_theirs: Any = torch_utils.randn_tensor


@functools.wraps(_theirs)
def randn_tensor(
    shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
) -> torch.Tensor:
    if not _are(KeyedGenerator, generator):
        return _theirs(shape, generator, device, dtype, layout)
    fields = [key.next() for key in listed(generator)]
    kind = dtype or torch.get_default_dtype()
    return nf.randn(tuple(shape), fields if len(fields) > 1 else fields[0], dtype=kind, device=device or "cpu")  # type: ignore[no-any-return,call-overload]


@contextmanager
def drawing(pipeline: Any, generator: Any) -> Iterator[None]:
    """Lets the scheduler draw from these keys, too: some pipelines do not hand their generator on to its steps."""
    scheduler = vars(pipeline).get("scheduler")
    if not _are(nf.Noise, generator) or getattr(scheduler, "noise", generator) is not None:
        yield
        return
    scheduler.noise = generator
    try:
        yield
    finally:
        scheduler.noise = None


def take_keys(pipeline: Any) -> None:
    """Makes a pipeline's calls take Noises. Its class becomes a subclass of the same name. diffusers' modules get the
    `randn_tensor` above, which leaves other generators to theirs."""
    kind = type(pipeline)
    if not getattr(kind, "takes_keys", False):

        @functools.wraps(kind.__call__)
        def call(self: Any, *args: Any, generator: Any = None, **kwargs: Any) -> Any:
            if generator is not None:
                kwargs["generator"] = of_call(generator)
            with drawing(self, generator):
                return kind.__call__(self, *args, **kwargs)

        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        pipeline.__class__ = type(kind.__name__, (kind,), {**names, "__call__": call, "takes_keys": True})
    for name, module in [*sys.modules.items()]:
        if name.startswith("diffusers.") and vars(module).get("randn_tensor") is _theirs:
            module.randn_tensor = randn_tensor  # type: ignore[attr-defined]
