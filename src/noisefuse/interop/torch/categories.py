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
from .arrays import (
    CPU,
    as_tensor,
    check_memory,
    check_plain,
    check_triton,
    checked,
    memory,
    of_triton,
    place_of,
    read,
    to_numpy,
    write,
)
from .internals import is_compiling, operator, written

OF_ROWS = "where", "ids", "masked", "weight", "upstream"
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
    place = place_of("logits", checked("logits", logits))
    arrays = {name: _read(name, value, place) for name, value in options.items()}
    dtype = TOKENS[_kind(dtype)] if isinstance(dtype, torch.dtype) else dtype
    given = None if out is None else _written(out)
    arrays |= {"info": info, "dtype": dtype, "partial": partial, "out": given}
    found: Any = nf.categorical(_memory("logits", logits, place), noise, **arrays)
    if partial:
        return found
    token, known = found if info else (found, ())
    if out is not None:
        written(out)
    result = as_tensor(token, None, token.dtype) if out is None else out
    tensors = (None if a is None else as_tensor(a, None, a.dtype) for a in known)
    return (result, nf.discrete.TokenInfo(*tensors)) if info else result


def _memory(name: str, x: Any, place: torch.device) -> Any:
    """Returns the memory of a tensor to read; on a device for Triton's kernels, also where CuPy is installed."""
    found = read(name, x, place)
    return found if place == CPU else of_triton(x.detach().contiguous(), place.index)


def _kind(dtype: Any) -> torch.dtype:
    kind = torch.int64 if dtype is None else NAMED.get(dtype, dtype)
    if kind not in TOKENS:
        raise TypeError(f"dtype {dtype}: expected torch.int64 or torch.int32")
    return kind


def _read(name: str, value: Any, place: torch.device = CPU) -> Any:
    """Returns a setting, which may be a tensor, as NumPy takes it. What is of rows stays where the logits lie."""
    if not isinstance(value, Tensor):
        return value
    check_plain(name, value)
    graph.check_no_gradient(**{name: value})
    if name in OF_ROWS and place != CPU and place_of(name, value) == place:
        return of_triton(value.detach(), place.index)
    place_of(name, value)
    return to_numpy(value)


def _written(out: Any) -> Any:
    if not isinstance(out, Tensor):
        raise TypeError(f"out: expected a torch.Tensor, as logits is one, got {type(out).__name__}")
    if out.dtype not in TOKENS:
        raise TypeError(f"out: dtype {out.dtype}: expected torch.int64 or torch.int32")
    check_plain("out", out)
    place = place_of("out", out)
    return memory("out", out.detach(), CPU) if place == CPU else of_triton(out.detach(), place.index)


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
    named = {"logits": logits, "ids": ids, "masked": masked, "weight": weight}
    return _loss("masked_cross_entropy", named, {"reduction": reduction})


def rate_loss(logits: Any, ids: Any, x_t: Any, p: Any, weight: Any, *, where: Any, reduction: Any) -> Any:
    named = {"logits": logits, "ids": ids, "x_t": x_t, "p": p, "weight": weight, "where": where}
    return _loss("rate_loss", named, {"reduction": reduction} | ({"p": None} if p is None else {}))


def masked_cross_entropy_and_grad(logits: Any, ids: Any, masked: Any, weight: Any, **options: Any) -> Any:
    named = {"logits": logits, "ids": ids, "masked": masked, "weight": weight}
    return _loss_and_grad("masked_cross_entropy", named, **options)


def rate_loss_and_grad(logits: Any, ids: Any, x_t: Any, p: Any, weight: Any, *, where: Any, **options: Any) -> Any:
    named = {"logits": logits, "ids": ids, "x_t": x_t, "p": p, "weight": weight, "where": where}
    return _loss_and_grad("rate_loss", named, **options | ({"p": None} if p is None else {}))


def _loss(name: str, named: dict[str, Any], options: dict[str, Any]) -> Any:
    logits = named["logits"]
    watched = graph.is_watched((logits,)) and not is_compiling()
    make = torch.tensor if watched else torch.as_tensor  # the caller may overwrite an array before the backward pass
    given = _given(named, make)
    if watched:
        check_memory("logits", logits)
        return graph.differentiable_once(name, given, options)
    fields, tensors = _cross_entropy(name, given, options)
    return (
        graph.compiled(CrossEntropy, fields, 0, tensors, None)[0]
        if is_compiling()
        else CrossEntropy(*fields).value(tensors)[0]
    )


def _loss_and_grad(name: str, named: dict[str, Any], *, upstream: Any, out: Any, **options: Any) -> Any:
    if is_compiling():
        return internals.untraced(_loss_and_grad, name, named, upstream=upstream, out=out, **options)
    graph.check_no_gradient(upstream=upstream)
    graph.check_unwatched("logits", named["logits"])
    fields, tensors = _cross_entropy(name, _given(named), options)
    return CrossEntropy(*fields).value(tensors, upstream, True if out is None else out)


def _given(named: dict[str, Any], make: Any = torch.as_tensor) -> dict[str, Tensor]:
    """Returns the arguments that are given, as tensors."""
    numbers = {name: named[name] for name in ("weight", "p") if name in named}
    graph.check_no_gradient(**numbers)
    given = {}
    for name, x in named.items():
        if isinstance(x, Tensor):
            given[name] = x
        elif x is not None:  # torch would round Python's floats to float32
            given[name] = make(
                x, dtype=torch.float64 if name in numbers and isinstance(x, float | list | tuple) else None
            )
    return given


def _cross_entropy(
    name: str, given: dict[str, Tensor], options: dict[str, Any]
) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    """Returns the fields of a CrossEntropy, and its tensors."""
    return (graph.NO_TABLE, name, tuple(options.items()), tuple(given), 1), tuple(given.values())


def _loss_of(loss: Any) -> Tensor:
    return torch.as_tensor(getattr(loss, "tensor", loss), dtype=torch.float32)


class CrossEntropy(graph.Operation):
    """masked_cross_entropy or rate_loss. Slots are the logits, and what else is given."""

    def results(self, tensors: Sequence[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
        none = dict(self.options)["reduction"] == "none"
        return [(tuple(tensors[0].shape[:-1]) if none else (), torch.float32)]

    def run(self, index: Any, tensors: Sequence[Any], noise: Any, outs: Sequence[Any]) -> tuple[Tensor, ...]:
        return self.value(tensors)[:1]

    def value(self, tensors: Sequence[Any], upstream: Any = 1.0, grad: Any = None) -> tuple[Tensor, Any]:
        """Returns the loss, and its gradient if it is wanted: grad is its tensor, or True for a new one."""
        logits, place = tensors[0], place_of("logits", checked("logits", tensors[0]))
        if self.name == "rate_loss" and place != CPU:
            raise NotImplementedError(
                f"logits: rate_loss has no kernel for {place}; pass them in host memory, logits.cpu()"
            )
        values = _memory("logits", logits, place)
        if place != CPU:
            check_triton((3, 4))
        given = {name: _read(name, x, place) for name, x in zip(self.slots, tensors, strict=True) if name != "logits"}
        given |= dict(self.options)
        if grad is None:
            return _loss_of(getattr(nf, self.name)(values, **given)), None
        out = None if grad is True else grad
        made = write("out", out, place, logits.dtype)
        made = made if out is None or place == CPU else of_triton(out.detach(), place_of("out", out).index)
        options = {"upstream": _read("upstream", upstream, place), "out": made}
        loss, gradient = getattr(nf, f"{self.name}_and_grad")(values, **given, **options)
        return _loss_of(loss), as_tensor(gradient, out, logits.dtype)

    def gradient(
        self, slot: str, index: Any, kept: Sequence[Tensor], noise: Any, grads: Sequence[Tensor], out: Any = None
    ) -> Tensor:
        found: Tensor = self.value(kept, grads[0], True if out is None else out)[1]
        return found
