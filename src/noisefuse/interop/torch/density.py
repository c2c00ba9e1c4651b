# SPDX-License-Identifier: Apache-2.0
"""Log-densities of steps for torch tensors, with gradients: `noisefuse.density` on their memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import noisefuse as nf

from . import arrays
from .graph import Operation, check_no_gradient, compiled, differentiable, is_watched
from .internals import is_compiling


def log_prob(
    table: Any, i: Any, x: Any, model_output: Any, x_next: Any, *, past: Any, partial: bool = False, **options: Any
) -> Any:
    check_no_gradient(x_next=x_next, **_remembered(past))
    tensors = inputs_of(x, model_output, past) | {"x_next": x_next}
    if not partial:
        return _call("log_prob", table, options, i, tensors)
    check_no_gradient(**tensors)
    place = arrays.place_of("x", arrays.checked("x", x))
    with arrays.on(place):
        part = nf.density.log_prob(**_arguments(table, i, tensors, place), **options, partial=True)
        return replace(part, sums=arrays.of_numbers(part.sums, x))


def log_prob_grad(
    table: Any, i: Any, x: Any, model_output: Any, x_next: Any, *, past: Any, upstream: Any, out: Any, **options: Any
) -> Any:
    tensors = inputs_of(x, model_output, past) | {"x_next": x_next}
    check_no_gradient(**tensors, upstream=upstream)
    return _gradient(nf.density.log_prob_grad, table, i, tensors, upstream, out, options)


def kl(table: Any, i: Any, model_output: Any, reference: Any, **options: Any) -> Any:
    check_no_gradient(reference=reference)
    return _call("kl", table, options, i, {"m1": model_output, "reference": reference})


def kl_grad(table: Any, i: Any, model_output: Any, reference: Any, *, upstream: Any, out: Any, **options: Any) -> Any:
    tensors = {"m1": model_output, "reference": reference}
    check_no_gradient(**tensors, upstream=upstream)
    return _gradient(nf.density.kl_grad, table, i, tensors, upstream, out, options)


def update_with_log_prob(
    table: Any, i: Any, x: Any, model_output: Any, noise: Any, *, past: Any, out: Any, aux_out: Any, partial: bool,
    **options: Any,
) -> Any:  # fmt: skip
    """Returns a sample x', which has no gradient, and its log-density, which has one."""
    check_no_gradient(noise=noise)
    tensors = inputs_of(x, model_output, past)
    watched = is_watched(tensors.values())
    if watched or is_compiling() or arrays.is_copied(x):
        models = {name: a.detach() for name, a in tensors.items()}
        step = functools.partial(nf.update, table, i, models["x"], as_given(models)[0], past=past, noise=noise)
        x_next = step()
        log_density = log_prob(table, i, x, model_output, x_next, past=past, partial=partial, **options)
        # The caller's arrays come last: the density is checked by then, and they may replace the inputs that it reads.
        return (step(out=out, aux_out=aux_out) if out is not None or len(aux_out) else x_next), log_density
    place = arrays.place_of("x", arrays.checked("x", x))
    into = out
    if out is None and place.type != "cpu":
        into = arrays.empty_like(x)
    with arrays.on(place):
        noise = arrays.read("noise", noise, place) if isinstance(noise, Tensor) else arrays.read_noise(noise, "x")
        aux = [arrays.write(f"aux_out[{n}]", a, place, x.dtype) for n, a in enumerate(aux_out)]
        arguments = _arguments(table, i, tensors, place) | {
            "noise": noise,
            "out": arrays.write("out", into, place, x.dtype),
        }
        x_next, log_density = nf.density.update_with_log_prob(**arguments, aux_out=aux, partial=partial, **options)
        log_density = (
            replace(log_density, sums=arrays.of_numbers(log_density.sums, x))
            if partial
            else arrays.of_numbers(log_density, x)
        )
    for tensor in aux_out:
        arrays.as_tensor(None, tensor, x.dtype)
    x_next = arrays.as_tensor(x_next, into, x.dtype)
    return arrays.in_format(x_next, x) if out is None else x_next, log_density


class Density(Operation):
    """log_prob, with the slots x, m1, m2, past1 .. past4, x_next, or kl, with m1 and reference; their gradients."""

    def results(self, tensors: Sequence[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [(tuple(tensors[0].shape[:1]), torch.float64)]

    def run(self, index: Any, tensors: Sequence[Any], noise: Any, outs: Sequence[Any]) -> tuple[Tensor, ...]:
        if self.name == "log_prob":
            inputs, law = dict(zip(self.slots, tensors, strict=True)), dict(self.options)
            models, past = as_given(inputs)
            done = nf.density.fast(self.table, True, index, inputs["x"], models, past, inputs["x_next"], None, (), law)
            if done is not NotImplemented:
                return (done,)
        place = arrays.place_of(self.slots[0], arrays.checked(self.slots[0], tensors[0]))
        with arrays.on(place):
            arguments = _arguments(self.table, index, dict(zip(self.slots, tensors, strict=True)), place)
            numbers = getattr(nf.density, self.name)(**arguments, **dict(self.options))
            return (arrays.of_numbers(numbers, tensors[0]),)

    def gradient(self, slot: str, index: Any, kept: Sequence[Any], noise: Any, grads: Sequence[Any]) -> Tensor:
        if self.name == "log_prob":
            inputs = dict(zip(self.slots, kept, strict=True))
            (models, past), x, x_next = as_given(inputs), inputs["x"], inputs["x_next"]
            g, law = grads[0].contiguous(), dict(self.options)
            gradient = nf.density.fast_gradient(self.table, slot, index, x, models, past, x_next, g, None, law)
            if gradient is not NotImplemented:
                return gradient
        options = dict(self.options) | ({"wrt": slot} if self.name == "log_prob" else {})
        function = getattr(nf.density, f"{self.name}_grad")
        gradient = _gradient(
            function, self.table, index, dict(zip(self.slots, kept, strict=True)), grads[0], None, options
        )
        return arrays.in_format(gradient, kept[0])


def _call(name: str, table: Any, options: dict[str, Any], i: Any, tensors: dict[str, Any]) -> Tensor:
    fields, values = (table, name, tuple(options.items()), tuple(tensors), 1), tuple(tensors.values())
    if is_compiling():
        return compiled(Density, fields, i, values, None)[0]
    if is_watched(values):
        for label, a in tensors.items():
            arrays.check_memory(label, a)
        return differentiable(Density(*fields), i, None, values)[0]
    return Density(*fields).run(i, values, None, ())[0]


def _gradient(
    function: Any, table: Any, i: Any, tensors: dict[str, Any], upstream: Any, out: Any, options: dict[str, Any]
) -> Tensor:
    x = next(iter(tensors.values()))
    place, into = arrays.place_of("x", arrays.checked("x", x)), out
    if out is None and place.type != "cpu":  # torch allocates all results on a device
        into = arrays.empty_like(x)
    with arrays.on(place):
        arguments = _arguments(table, i, tensors, place) | {
            "upstream": arrays.read_numbers("upstream", upstream, place)
        }
        gradient = function(**arguments, out=arrays.write("out", into, place, x.dtype), **options)
    return arrays.as_tensor(gradient, into, x.dtype)


def inputs_of(x: Any, model_output: Any, past: Sequence[Any]) -> dict[str, Any]:
    models = model_output if isinstance(model_output, tuple) else (model_output,)
    return arrays.like_x({"x": x} | {f"m{n + 1}": m for n, m in enumerate(models) if m is not None} | _remembered(past))


def as_given(tensors: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Returns the model output or the pair, and past."""
    models = (tensors["m1"], tensors["m2"]) if "m2" in tensors else tensors.get("m1")
    return models, [a for name, a in tensors.items() if name.startswith("past")]


def _remembered(past: Sequence[Any]) -> dict[str, Any]:
    return {f"past{n + 1}": p for n, p in enumerate(past)}


def _arguments(table: Any, i: Any, tensors: dict[str, Any], place: torch.device) -> dict[str, Any]:
    """Returns the arguments of the functions of `density`, read on this device."""
    inputs = {name: arrays.read(nf.tableau.ARGUMENTS.get(name, name), a, place) for name, a in tensors.items()}
    models, past = as_given(inputs)
    arguments = {"table": table, "i": arrays.to_numpy(i) if isinstance(i, Tensor) else i, "model_output": models}
    arguments |= {name: inputs[name] for name in ("x", "x_next", "reference") if name in inputs}
    return arguments | ({"past": past} if past else {})
