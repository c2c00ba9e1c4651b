# SPDX-License-Identifier: Apache-2.0
"""mse_loss for torch tensors: autograd without stored noise, and torch.compile.

A graph keeps the prediction, x0, t and weights for the backward pass, and perhaps the gradient, but no noise or target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import noisefuse as nf

from . import arrays, graph, internals
from .internals import is_compiling


def mse_loss(
    pred: Any, x0: Any, t: Any, schedule: Any, noise: Any, *, weight: Any, partial: bool = False, **options: Any
) -> Any:
    if graph.is_watched((pred,)) and not partial and not is_compiling():
        if weight is not None and not isinstance(weight, Tensor):
            weight = torch.from_numpy(np.array(weight))  # the caller may overwrite it before the backward pass
        arrays.check_memory("pred", pred)
        t, noise = graph.frozen(t, noise)
        given = {"pred": pred, "x0": x0, "t": t, "noise": noise, "weight": weight}
        return graph.differentiable_once("mse_loss", given, {"schedule": schedule, **options})
    graph.check_no_gradient(x0=x0, t=t, noise=noise, weight=weight)
    if partial:
        graph.check_no_gradient(pred=pred)
        fields, tensors, noise = _parts(pred, x0, schedule, noise, weight, options)
        return Loss(*fields).part(t, tensors, noise)
    fields, tensors, noise = _parts(pred, x0, schedule, noise, weight, options)
    if not is_compiling():
        return Loss(*fields).value(t, tensors, noise)[0]
    if not graph.carries(noise):
        return internals.untraced(mse_loss, pred, x0, t, schedule, noise, weight=weight, **options)
    return graph.compiled(Loss, fields, t, tensors, noise)[0]


def mse_loss_and_grad(
    pred: Any, x0: Any, t: Any, schedule: Any, noise: Any, *, weight: Any, out: Any, **options: Any
) -> Any:
    if is_compiling():
        return internals.untraced(mse_loss_and_grad, pred, x0, t, schedule, noise, weight=weight, out=out, **options)
    graph.check_no_gradient(x0=x0, t=t, noise=noise, weight=weight)
    graph.check_unwatched("pred", pred)
    fields, tensors, noise = _parts(pred, x0, schedule, noise, weight, options)
    value, gradient = Loss(*fields).value(t, tensors, noise, True if out is None else out)
    return value, arrays.in_format(gradient, pred) if out is None else gradient


def mse_loss_grad(
    pred: Any, x0: Any, t: Any, schedule: Any, noise: Any, *, weight: Any, upstream: Any, out: Any, **options: Any
) -> Any:
    graph.check_no_gradient(pred=pred, x0=x0, t=t, noise=noise, weight=weight, upstream=upstream)
    fields, tensors, noise = _parts(pred, x0, schedule, noise, weight, options)
    if not is_compiling():
        return Loss(*fields).gradient("pred", t, tensors, noise, (upstream,), out)
    if not graph.carries(noise):
        more = {"weight": weight, "upstream": upstream, "out": out, **options}
        return internals.untraced(mse_loss_grad, pred, x0, t, schedule, noise, **more)
    number, row, times = graph.carried(Loss, fields, t)
    rest = row, times, tensors, graph.words_of(noise), [torch.as_tensor(upstream, dtype=torch.float64)]
    gradient = torch.ops.noisefuse.gradient(number, "pred", pred.shape, pred.dtype, *rest)
    return graph.copied(arrays.in_format(gradient, pred), out)


def interpolate_loss(pred: Any, x0: Any, x1: Any, t: Any, path: Any, noise: Any, *, weight: Any, **options: Any) -> Any:
    graph.check_no_gradient(x0=x0, x1=x1, t=t, noise=noise, weight=weight)
    if is_compiling():
        return internals.untraced(interpolate_loss, pred, x0, x1, t, path, noise, weight=weight, **options)
    if not graph.is_watched((pred,)):
        return _of_path(pred, x0, x1, t, path, noise, weight, None, options)[0]
    arrays.check_memory("pred", pred)
    with torch.no_grad():
        loss, gradient = nf.interpolate_loss_and_grad(pred, x0, x1, t, path, noise, weight=weight, **options)
    made = loss, gradient if options["reduction"] == "mean" and arrays.place_of("pred", pred).type == "cpu" else None
    return graph.with_gradient("interpolate_loss", made, pred, ("gradient",), (gradient,))


def interpolate_loss_and_grad(
    pred: Any, x0: Any, x1: Any, t: Any, path: Any, noise: Any, *, weight: Any, out: Any, **options: Any
) -> Any:
    if is_compiling():
        return internals.untraced(
            interpolate_loss_and_grad, pred, x0, x1, t, path, noise, weight=weight, out=out, **options
        )
    graph.check_no_gradient(x0=x0, x1=x1, t=t, noise=noise, weight=weight)
    graph.check_unwatched("pred", pred)
    value, gradient = _of_path(pred, x0, x1, t, path, noise, weight, True if out is None else out, options)
    return value, arrays.in_format(gradient, pred) if out is None else gradient


def _of_path(
    pred: Any, x0: Any, x1: Any, t: Any, path: Any, noise: Any, weight: Any, grad: Any, options: dict[str, Any]
) -> tuple[Tensor, Any]:
    """Returns the loss, and its gradient if it is wanted, as `_value` does."""

    def arguments_on(place: torch.device) -> dict[str, Any]:
        named = ("pred", pred), ("x0", x0), ("x1", x1)
        arguments: dict[str, Any] = {name: arrays.read(name, x, place) for name, x in named}
        drawn = arrays.read("noise", noise, place) if isinstance(noise, Tensor) else arrays.read_noise(noise, "pred")
        numbers = None if weight is None else arrays.read_numbers("weight", weight, place)
        return arguments | {"t": t, "path": path, "noise": drawn, "weight": numbers, **options}

    return _value("interpolate_loss", pred, arguments_on, grad)


def _value(name: str, pred: Any, arguments_on: Callable[..., dict[str, Any]], grad: Any) -> tuple[Tensor, Any]:
    """Returns the loss of this name, and its gradient if it is wanted: grad is its tensor, or True for a new one.
    `arguments_on(place)` returns the arguments on a device."""
    place = arrays.place_of("pred", arrays.checked("pred", pred))
    if grad is True and place.type == "cuda":
        grad = arrays.empty_like(pred)
    anew = grad is True
    with arrays.on(place):
        arguments = arguments_on(place)
        if grad is None:
            return _as_loss(getattr(nf, name)(**arguments), pred, place), None
        out = None if anew else arrays.write("out", grad, place, pred.dtype)
        loss, gradient = getattr(nf, f"{name}_and_grad")(**arguments, out=out)
        result = _as_loss(loss, pred, place)
    return result, arrays.as_tensor(gradient, None if anew else grad, pred.dtype)


def _as_loss(loss: Any, pred: Tensor, place: torch.device) -> Tensor:
    """Returns a loss as a tensor beside pred."""
    if place.type == "cpu":
        return torch.as_tensor(loss, dtype=_dtype(pred))
    return arrays.of_numbers(loss, pred).to(_dtype(pred))


def _parts(pred: Any, x0: Any, schedule: Any, noise: Any, weight: Any, options: dict[str, Any]) -> Any:
    """Returns the fields of a Loss, its tensors, and a noise that is no tensor."""
    if weight is not None and is_compiling():
        weight = torch.as_tensor(weight, dtype=torch.float64)
    tensors = {"pred": pred}
    if x0 is not None:
        tensors["x0"] = x0
    if isinstance(noise, Tensor):
        tensors["noise"], noise = noise, None
    if weight is not None:
        tensors["weight"] = weight
    fields = schedule, "mse_loss", tuple(options.items()), tuple(tensors), 1
    return fields, tuple(tensors.values()), noise


class Loss(graph.Operation):
    """mse_loss, with mse_loss_grad as its gradient. Slots are pred, x0, noise and weight, if they are present."""

    def results(self, tensors: Sequence[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
        pred, options = tensors[0], dict(self.options)
        batch = pred.shape[0] if options["batched"] and pred.ndim else 1
        return [((batch,) if options["reduction"] == "none" else (), _dtype(pred))]

    def run(self, index: Any, tensors: Sequence[Any], noise: Any, outs: Sequence[Any]) -> tuple[Tensor, ...]:
        loss: Tensor = nf.mse_loss(**self._given(index, tensors, noise))
        return (loss,)

    def _given(self, index: Any, tensors: Sequence[Any], noise: Any) -> dict[str, Any]:
        arguments = {"x0": None, "noise": noise, **dict(zip(self.slots, tensors, strict=True))}
        return arguments | {"t": index, "schedule": self.table, **dict(self.options)}

    def value(self, index: Any, tensors: Sequence[Any], noise: Any, grad: Any = None) -> tuple[Tensor, Any]:
        """Returns the loss, and its gradient if it is wanted: grad is its tensor, or True for a new one."""
        return _value("mse_loss", tensors[0], partial(self._arrays, index, tensors, noise), grad)

    def part(self, index: Any, tensors: Sequence[Any], noise: Any) -> Any:
        place = self.place(tensors)
        with arrays.on(place):
            return nf.mse_loss(**self._arrays(index, tensors, noise, place), partial=True)

    def gradient(
        self, slot: str, index: Any, kept: Sequence[Any], noise: Any, grads: Sequence[Any], out: Any = None
    ) -> Tensor:
        pred, given_out = kept[0], out
        place = self.place(kept)
        if out is None and place.type == "cuda":
            out = arrays.empty_like(pred)
        with arrays.on(place):
            arguments, g = self._arrays(index, kept, noise, place), arrays.read_numbers("upstream", grads[0], place)
            gradient = nf.mse_loss_grad(**arguments, upstream=g, out=arrays.write("out", out, place, pred.dtype))
        result: Tensor = arrays.as_tensor(gradient, out, pred.dtype)
        return arrays.in_format(result, pred) if given_out is None else result

    def place(self, tensors: Sequence[Any]) -> torch.device:
        return arrays.place_of("pred", arrays.checked("pred", tensors[0]))

    def _arrays(self, index: Any, tensors: Sequence[Any], noise: Any, place: torch.device) -> dict[str, Any]:
        """Returns the arguments, as the library takes them on this device."""
        arguments: dict[str, Any] = {"x0": None, "noise": arrays.read_noise(noise, "pred")}
        for name, x in zip(self.slots, tensors, strict=True):
            arguments[name] = (arrays.read_numbers if name == "weight" else arrays.read)(name, x, place)
        return arguments | {"t": arrays.read_index("t", index, place), "schedule": self.table, **dict(self.options)}


def _dtype(pred: Tensor) -> torch.dtype:
    return torch.float64 if pred.dtype == torch.float64 else torch.float32
