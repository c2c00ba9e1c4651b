# SPDX-License-Identifier: Apache-2.0
"""Draws of categories from tensors of logits, whose memory is read as it is, and cross entropies with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import noisefuse as nf

from ...language.levels import INFO
from . import graph, internals
from .arrays import CPU, as_tensor, check_memory, check_plain, checked, memory, place_of, read, to_numpy, write
from .internals import is_compiling, operator, written

TOKENS: dict[torch.dtype, type[np.signedinteger[Any]]] = {torch.int64: np.int64, torch.int32: np.int32}
NAMED: dict[Any, torch.dtype] = {key: dtype for dtype, kind in TOKENS.items() for key in (kind, kind.__name__)}


def categorical(logits: Any, noise: Any, *, info: Any, dtype: Any, out: Any, partial: bool, **options: Any) -> Any:
    if info:
        graph.check_no_gradient(logits=logits)
    if is_compiling():
        plain = all(isinstance(options[name], int | float) for name in ("temperature", "top_k", "top_p"))
        if (
            partial
            or not plain
            or not graph.carries(noise)
            or options["where"] is not None
            or options["positions"] is not None
        ):
            options |= {"info": info, "dtype": dtype, "out": out, "partial": partial}
            return internals.untraced(categorical, logits, noise, **options)
        settings = float(options["temperature"]), options["top_k"], float(options["top_p"])
        kind = _kind(dtype if out is None else out.dtype)
        token, *known = torch.ops.noisefuse.categorical(logits, graph.words_of(noise), *settings, ",".join(info), kind)
        token = graph.copied(token, out)
        return (token, nf.discrete.TokenInfo(**dict(zip(info, known, strict=True)))) if info else token
    place = _place(logits, "categorical")
    arrays = {name: _read(name, value) for name, value in options.items()}
    dtype = TOKENS[_kind(dtype)] if isinstance(dtype, torch.dtype) else dtype
    given = None if out is None else _written(out)
    arrays |= {"info": info, "dtype": dtype, "partial": partial, "out": given}
    found: Any = nf.categorical(read("logits", logits, place), noise, **arrays)
    if partial:
        return found
    token, known = found if info else (found, ())
    if out is not None:
        written(out)
    result = torch.from_numpy(token) if out is None else out
    tensors = (None if a is None else torch.from_numpy(a) for a in known)
    return (result, nf.discrete.TokenInfo(*tensors)) if info else result


def _place(logits: Any, operation: str) -> torch.device:
    place = place_of("logits", checked("logits", logits))
    if place != CPU:
        raise NotImplementedError(f"logits: {operation} has no kernel for {place} yet; pass logits.cpu()")
    return place


def _kind(dtype: Any) -> torch.dtype:
    kind = torch.int64 if dtype is None else NAMED.get(dtype, dtype)
    if kind not in TOKENS:
        raise TypeError(f"dtype {dtype}: expected torch.int64 or torch.int32")
    return kind


def _read(name: str, value: Any) -> Any:
    """Returns a setting, which may be a tensor, as NumPy takes it."""
    if not isinstance(value, Tensor):
        return value
    check_plain(name, value)
    graph.check_no_gradient(**{name: value})
    place_of(name, value)
    return to_numpy(value)


def _written(out: Any) -> Any:
    if not isinstance(out, Tensor):
        raise TypeError(f"out: expected a torch.Tensor, as logits is one, got {type(out).__name__}")
    if out.dtype not in TOKENS:
        raise TypeError(f"out: dtype {out.dtype}: expected torch.int64 or torch.int32")
    return memory("out", out.detach(), CPU)


@operator(
    "categorical(Tensor logits, SymInt[] words, float temperature, int top_k, float top_p, str info, ScalarType dtype)"
    " -> Tensor[]"
)
def _categorical(
    logits: Tensor, words: Sequence[int], temperature: float, top_k: int, top_p: float, info: str, dtype: torch.dtype
) -> list[Tensor]:
    names: Any = tuple(filter(None, info.split(",")))
    noise: Any = graph.noise_of(words)
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "dtype": dtype}
    found: Any = nf.categorical(logits.detach(), noise, info=names, **options)
    token, known = found if names else (found, None)
    return [token, *(getattr(known, name) for name in names)]


@_categorical.register_fake
def _(
    logits: Tensor, words: Any, temperature: Any, top_k: Any, top_p: Any, info: str, dtype: torch.dtype
) -> list[Tensor]:
    kinds = [dtype, *(getattr(torch, INFO[name]) for name in info.split(",") if name)]
    return [torch.empty(logits.shape[:-1], dtype=kind, device=logits.device) for kind in kinds]


# ---- cross entropies ---------------------------------------------------------------------------------------


def masked_cross_entropy(logits: Any, ids: Any, masked: Any, weight: Any, *, reduction: Any) -> Any:
    watched = graph.is_watched((logits,)) and not is_compiling()
    make = torch.tensor if watched else torch.as_tensor  # the caller may overwrite an array before the backward pass
    given = _given(logits, ids, masked, weight, make)
    if watched:
        check_memory("logits", logits)
        return graph.differentiable_once("masked_cross_entropy", given, {"reduction": reduction})
    fields, tensors = _cross_entropy(given, reduction)
    return (
        graph.compiled(CrossEntropy, fields, 0, tensors, None)[0]
        if is_compiling()
        else CrossEntropy(*fields).value(tensors)[0]
    )


def masked_cross_entropy_and_grad(
    logits: Any, ids: Any, masked: Any, weight: Any, *, reduction: Any, upstream: Any, out: Any
) -> Any:
    if is_compiling():
        options = {"reduction": reduction, "upstream": upstream, "out": out}
        return internals.untraced(masked_cross_entropy_and_grad, logits, ids, masked, weight, **options)
    graph.check_no_gradient(upstream=upstream)
    graph.check_unwatched("logits", logits)
    fields, tensors = _cross_entropy(_given(logits, ids, masked, weight), reduction)
    return CrossEntropy(*fields).value(tensors, upstream, True if out is None else out)


def _given(logits: Any, ids: Any, masked: Any, weight: Any, make: Any = torch.as_tensor) -> dict[str, Tensor]:
    """Returns the arguments that are given, as tensors."""
    graph.check_no_gradient(weight=weight)
    given = {"logits": logits}
    for name, x in (("ids", ids), ("masked", masked), ("weight", weight)):
        if isinstance(x, Tensor):
            given[name] = x
        elif x is not None:  # torch would round Python's floats to float32
            given[name] = make(
                x, dtype=torch.float64 if name == "weight" and isinstance(x, float | list | tuple) else None
            )
    return given


def _cross_entropy(given: dict[str, Tensor], reduction: Any) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    """Returns the fields of a CrossEntropy, and its tensors."""
    return (None, "masked_cross_entropy", (("reduction", reduction),), tuple(given), 1), tuple(given.values())


class CrossEntropy(graph.Operation):
    """masked_cross_entropy. Slots are logits, ids, and masked and weight, if they are present."""

    def results(self, tensors: Sequence[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
        none = dict(self.options)["reduction"] == "none"
        return [(tuple(tensors[0].shape[:-1]) if none else (), torch.float32)]

    def run(self, index: Any, tensors: Sequence[Any], noise: Any, outs: Sequence[Any]) -> tuple[Tensor, ...]:
        return self.value(tensors)[:1]

    def value(self, tensors: Sequence[Any], upstream: Any = 1.0, grad: Any = None) -> tuple[Tensor, Any]:
        """Returns the loss, and its gradient if it is wanted: grad is its tensor, or True for a new one."""
        logits, place = tensors[0], _place(tensors[0], self.name)
        values = read("logits", logits, place)
        given = {name: _read(name, x) for name, x in zip(self.slots, tensors, strict=True) if name != "logits"}
        given |= dict(self.options)
        if grad is None:
            return torch.as_tensor(nf.masked_cross_entropy(values, **given), dtype=torch.float32), None
        out = None if grad is True else grad
        options = {"upstream": _read("upstream", upstream), "out": write("out", out, place, logits.dtype)}
        loss, gradient = nf.masked_cross_entropy_and_grad(values, **given, **options)
        return torch.as_tensor(loss, dtype=torch.float32), as_tensor(gradient, out, logits.dtype)

    def gradient(
        self, slot: str, index: Any, kept: Sequence[Tensor], noise: Any, grads: Sequence[Tensor], out: Any = None
    ) -> Tensor:
        found: Tensor = self.value(kept, grads[0], True if out is None else out)[1]
        return found
