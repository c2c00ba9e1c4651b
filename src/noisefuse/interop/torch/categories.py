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
from .arrays import CPU, as_tensor, checked, memory, need_memory, need_plain, place_of, read, to_numpy, write
from .graph import (
    OnceDifferentiable,
    carries,
    compiled,
    copied,
    differentiable_once,
    is_watched,
    need_no_grad_out,
    need_no_gradient,
    noise_of,
    words_of,
)
from .internals import is_compiling, operator, untraced, written

TOKENS: dict[torch.dtype, type[np.signedinteger[Any]]] = {torch.int64: np.int64, torch.int32: np.int32}
NAMED: dict[Any, torch.dtype] = {
    "int64": torch.int64,
    "int32": torch.int32,
    np.int64: torch.int64,
    np.int32: torch.int32,
}


def categorical(logits: Any, noise: Any, *, info: Any, dtype: Any, out: Any, partial: bool, **options: Any) -> Any:
    if info:
        need_no_gradient(logits=logits)
    if is_compiling():
        plain = all(isinstance(options[name], int | float) for name in ("temperature", "top_k", "top_p"))
        if (
            partial
            or not plain
            or not carries(noise)
            or options["where"] is not None
            or options["positions"] is not None
        ):
            options |= {"info": info, "dtype": dtype, "out": out, "partial": partial}
            return untraced(categorical, logits, noise, **options)
        settings = float(options["temperature"]), options["top_k"], float(options["top_p"])
        kind = _kind(dtype if out is None else out.dtype)
        token, *known = torch.ops.noisefuse.categorical(logits, words_of(noise), *settings, ",".join(info), kind)
        token = copied(token, out)
        return (token, dict(zip(info, known, strict=True))) if info else token
    place = _place(logits, "categorical")
    arrays = {name: _read(name, value) for name, value in options.items()}
    dtype = TOKENS[_kind(dtype)] if isinstance(dtype, torch.dtype) else dtype
    given = None if out is None else _written(out)
    found = nf.categorical(
        read("logits", logits, place), noise, info=info, dtype=dtype, partial=partial, out=given, **arrays
    )
    if partial:
        return found
    token, known = found if info else (found, {})
    if out is not None:
        written(out)
    result = torch.from_numpy(token) if out is None else out
    return (result, {name: torch.from_numpy(a) for name, a in known.items()}) if info else result


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
    need_plain(name, value)
    need_no_gradient(**{name: value})
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
    noise: Any = noise_of(words)
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "dtype": dtype}
    found: Any = nf.categorical(logits.detach(), noise, info=names, **options)
    token, known = found if names else (found, {})
    return [token, *known.values()]


@_categorical.register_fake
def _(
    logits: Tensor, words: Any, temperature: Any, top_k: Any, top_p: Any, info: str, dtype: torch.dtype
) -> list[Tensor]:
    kinds = [dtype, *(getattr(torch, INFO[name]) for name in info.split(",") if name)]
    return [torch.empty(logits.shape[:-1], dtype=kind, device=logits.device) for kind in kinds]


# ---- cross entropies ---------------------------------------------------------------------------------------


def masked_cross_entropy(
    logits: Any, ids: Any, masked: Any, weight: Any, *, reduction: Any, upstream: Any, grad_out: Any
) -> Any:
    need_no_gradient(weight=weight, upstream=upstream)
    watched = is_watched((logits,))
    need_no_grad_out(grad_out, watched or is_compiling())
    given = {"logits": logits, "ids": ids, "masked": masked, "weight": weight}
    # The caller may overwrite an array before the backward pass. torch would round Python's floats to float32.
    make = torch.tensor if watched and not is_compiling() else torch.as_tensor
    dtypes = {"weight": torch.float64} if isinstance(weight, float | list | tuple) else {}
    given = {
        name: x if isinstance(x, Tensor) else make(x, dtype=dtypes.get(name))
        for name, x in given.items()
        if x is not None
    }
    fields = None, "masked_cross_entropy", (("reduction", reduction),), tuple(given), 1
    if is_compiling():
        return compiled(CrossEntropy, fields, 0, tuple(given.values()), None)[0]
    operation = CrossEntropy(*fields)
    if watched:
        need_memory("logits", logits)
        return differentiable_once(operation, 0, None, tuple(given.values()))
    loss, gradient = operation.value(tuple(given.values()), upstream, grad_out)
    return loss if grad_out is None else (loss, gradient)


class CrossEntropy(OnceDifferentiable):
    """masked_cross_entropy. Slots are logits, ids, and masked and weight, if they are present."""

    def results(self, tensors: Sequence[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
        none = dict(self.options)["reduction"] == "none"
        return [(tuple(tensors[0].shape[:-1]) if none else (), torch.float32)]

    def run(self, index: Any, tensors: Sequence[Any], noise: Any, outs: Sequence[Any]) -> tuple[Tensor, ...]:
        return self.value(tensors)[:1]

    def with_gradient(self, index: Any, tensors: Sequence[Any], noise: Any) -> tuple[Tensor, Tensor | None]:
        options, given = dict(self.options), dict(zip(self.slots, tensors, strict=True))
        if options["reduction"] != "mean":
            return nf.masked_cross_entropy(**given, **options), None  # type: ignore[return-value]
        return nf.masked_cross_entropy(**given, **options, grad_out=True)  # autograd watches nothing here

    def value(self, tensors: Sequence[Any], upstream: Any = 1.0, grad_out: Any = None) -> tuple[Tensor, Any]:
        """Returns the loss, and its gradient if it is wanted (True: as a new tensor)."""
        logits, place = tensors[0], _place(tensors[0], self.name)
        values = read("logits", logits, place)
        given = {name: _read(name, x) for name, x in zip(self.slots, tensors, strict=True) if name != "logits"}
        written_to = (
            grad_out if grad_out is None or grad_out is True else write("grad_out", grad_out, place, logits.dtype)
        )
        found = nf.masked_cross_entropy(
            values, **given, **dict(self.options), upstream=_read("upstream", upstream), grad_out=written_to
        )
        loss, gradient = (found, None) if grad_out is None else found
        if gradient is not None:
            gradient = as_tensor(gradient, None if grad_out is True else grad_out, logits.dtype)
        return torch.as_tensor(loss, dtype=torch.float32), gradient

    def gradient(
        self, slot: str, index: Any, kept: Sequence[Tensor], noise: Any, grads: Sequence[Tensor], out: Any = None
    ) -> Tensor:
        found: Tensor = self.value(kept, grads[0], True if out is None else out)[1]
        return found
