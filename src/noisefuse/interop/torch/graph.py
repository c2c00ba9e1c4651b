# SPDX-License-Identifier: Apache-2.0
"""Operations in torch's graphs: those of autograd in eager code, and those of torch.compile.

An operation is a value that can run and that knows its gradients. Autograd holds it. A compiled graph sees an operator
with the operation's number, and a noise as five more numbers, so a step that changes compiles nothing anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, is_grad_enabled

import noisefuse as nf

from ...ground.constants import Constant
from . import internals
from .arrays import NAMED, in_format, place_of
from .internals import operator

INDEX = (int, float, Tensor)


class Operation(NamedTuple):
    """A function of the library and its arguments, without tensors, row numbers and noise."""

    table: Any  # Schedule, Tableau or NO_TABLE
    name: str
    options: tuple[tuple[str, Any], ...]
    slots: tuple[str, ...]  # the tensors' slots
    outputs: int

    def results(self, tensors: Sequence[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Returns shape and dtype of each output."""
        raise NotImplementedError

    def run(self, index: Any, tensors: Sequence[Any], noise: Any, outs: Sequence[Any]) -> Sequence[Any]:
        """Returns the outputs. Nothing is differentiated."""
        raise NotImplementedError

    def kept(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the tensors that the gradient depends on."""
        return tensors

    def gradient(self, slot: str, index: Any, kept: Sequence[Tensor], noise: Any, grads: Sequence[Tensor]) -> Tensor:
        """Returns the gradient of the tensor in this slot, from the gradients of the outputs."""
        raise NotImplementedError


def is_watched(tensors: Iterable[Any]) -> bool:
    """Tells whether autograd watches one of these, among which others than tensors may be."""
    for x in tensors:  # noqa: SIM110 (`any` of a generator takes three times as long)
        if isinstance(x, Tensor) and x.requires_grad and is_grad_enabled():
            return True
    return False


def check_no_gradient(**given: Any) -> None:
    """Raises NotImplementedError if autograd watches an argument that has no gradient."""
    for name, x in given.items():
        if isinstance(x, Tensor) and x.requires_grad and is_grad_enabled():
            raise NotImplementedError(f"{name}: gradients with respect to it are not computed: pass {name}.detach()")


def check_unwatched(name: str, x: Any) -> None:
    """Raises ValueError if autograd watches what a function returns the gradient of."""
    if is_watched((x,)):
        raise ValueError(f"{name} requires grad, so autograd makes its gradient: call the loss and backward()")


def check_once(name: str) -> None:
    """Raises NotImplementedError if autograd watches the backward pass of this function."""
    if is_grad_enabled():
        raise NotImplementedError(f"{name} is differentiable once: create_graph=True is not supported")


# ---- autograd ----------------------------------------------------------------------------------------------


def differentiable(
    operation: Operation, index: Any, noise: Any, tensors: Sequence[Any], remembered: Sequence[Tensor] = ()
) -> tuple[Any, ...]:
    """Returns the outputs, the last of which overwrite `remembered`. Backward uses the values of this call, even if the
    caller overwrites them later."""
    return _Differentiable.apply(operation, *frozen(index, noise), None, *tensors, *remembered)


def fast_call(operation: Operation, row: Any, arguments: tuple[Any, ...], tensors: Sequence[Any]) -> Any:
    """Returns the outputs of row(*arguments), which is the operation's pass, or NotImplemented."""
    index, noise = arguments[1], arguments[5]
    try:
        return _Differentiable.apply(operation, *frozen(index, noise), lambda: row(*arguments), *tensors)
    except _Declined:
        return NotImplemented


class _Declined(Exception):
    """The fast path does not take the call."""


def frozen(index: Any, noise: Any) -> tuple[Any, Any]:
    """Returns row numbers and a noise that the caller cannot change, except for tensors, whose writes autograd sees."""
    if not isinstance(index, INDEX):
        index = torch.tensor(np.array(index))
    return index, tuple(noise) if isinstance(noise, list) else noise


class _Differentiable(torch.autograd.Function):
    """Runs `run`, or `fast` in its place, with `gradient` as its backward pass, which may be differentiable itself.

    A forward pass with a setup_context, which torch.func would need, takes four times torch's part of the time, and the
    backward pass twice.
    """

    @staticmethod
    def forward(ctx: Any, operation: Operation, index: Any, noise: Any, fast: Any, *tensors: Any) -> Any:
        remembered, tensors = tensors[len(operation.slots) :], tensors[: len(operation.slots)]
        if fast is not None:
            outputs = fast()
            if outputs is NotImplemented:
                raise _Declined
        else:
            if remembered:
                ctx.mark_dirty(*remembered)
            outs = (None,) * (operation.outputs - len(remembered)) + remembered
            outputs = tuple(operation.run(index, tensors, noise, outs))
        kept = operation.kept(tensors)
        if isinstance(index, Tensor):
            kept, index = (*kept, index), None
        if kept:
            ctx.save_for_backward(*kept)
        ctx.made = operation, index, noise, [x.dtype for x in tensors], len(remembered)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        operation, index, noise, dtypes, remembered = ctx.made
        kept = ctx.saved_tensors
        if index is None:
            *kept, index = kept
        gradients = [
            operation.gradient(slot, index, kept, noise, grads).to(dtype) if needed else None
            for slot, dtype, needed in zip(operation.slots, dtypes, ctx.needs_input_grad[4:], strict=False)
        ]
        return None, None, None, None, *gradients, *(None,) * remembered


def differentiable_once(name: str, given: dict[str, Any], rest: dict[str, Any]) -> Any:
    """Returns the loss of this name and these arguments, which is differentiable once through the first one."""
    (label, first), *others = given.items()
    check_no_gradient(**dict(others))
    with torch.no_grad():
        if rest["reduction"] == "mean" and place_of(label, first).type == "cpu":
            made = getattr(nf, f"{name}_and_grad")(**given, **rest)
        else:
            made = getattr(nf, name)(**given, **rest), None
    return with_gradient(name, made, first, (*given, *rest), (first,), (*(x for _, x in others), *rest.values()))


_FIXED = {int, float, bool, str, type(None), nf.Noise, nf.Schedule}  # `isinstance` takes three times as long


def with_gradient(
    name: str, made: tuple[Tensor, Tensor | None], first: Tensor, names: tuple[str, ...], tensors: tuple[Any, ...],
    rest: tuple[Any, ...] = (), constant: tuple[Any, ...] = (),
) -> Any:  # fmt: skip
    """Returns the loss in `made`, which is differentiable once through the first tensor. A mean brings its gradient,
    which is that of backward() of the loss itself. Otherwise backward makes it, in the same memory if it can be, from
    the arguments of these names: tensors (or None), the rest, and what nobody can change. The caller may overwrite the
    rest before: autograd sees writes to tensors, other values are copied."""
    at, where, kept = -1, [], [*rest]
    for x in rest:
        at += 1  # `enumerate` takes three times as long
        if type(x) in _FIXED:
            continue
        if isinstance(x, Tensor):
            tensors, kept[at] = (*tensors, x), None
            where.append(at)
        elif isinstance(x, list | np.ndarray):
            kept[at] = copy(x)
    loss, early = made  # each argument of `apply` takes 0.1 microseconds
    return _differentiable_once(first, (loss, tensors, [name, names, where, kept, constant, early]))


class _DifferentiableOnce(torch.autograd.Function):
    """See `with_gradient`."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, made: tuple[Any, ...]) -> Tensor:
        loss: Tensor
        loss, tensors, ctx.made = made
        ctx.save_for_backward(*tensors)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> tuple[Any, ...]:
        made = ctx.made
        name, names, where, rest, constant, early = made
        check_once(name)
        made[-1] = None  # autograd need not copy a tensor that has no other owner
        if early is not None:
            upstream = upstream.item()
            if upstream == 1.0:
                return early, None
        n, rest = len(names) - len(rest) - len(constant), [*rest]
        tensors = ctx.saved_tensors
        for at, x in zip(where, tensors[n:], strict=True):
            rest[at] = x
        given = dict(zip(names, (*tensors[:n], *rest, *constant), strict=True))
        out = early if early is not None and early.is_contiguous() else None
        return _AGAIN[name](**given, upstream=upstream, out=out), None


_differentiable_once = _DifferentiableOnce.apply  # to look it up takes 0.1 microseconds, too


def _scaled(gradient: Tensor, upstream: Any, out: Any) -> Tensor:
    """Returns a gradient that was kept, times the upstream one: a number, or one for each sample."""
    if isinstance(upstream, Tensor):
        upstream = upstream.reshape(upstream.shape + (1,) * (gradient.ndim - upstream.ndim))
    return gradient * upstream


_AGAIN: dict[str, Callable[..., Any]] = {
    "interpolate_loss": _scaled,
    "masked_cross_entropy": lambda **given: nf.masked_cross_entropy_and_grad(**given)[1],
    "rate_loss": lambda **given: nf.rate_loss_and_grad(**given)[1],
    "mse_loss": lambda **given: nf.mse_loss_grad(**given),
}


# ---- torch.compile -----------------------------------------------------------------------------------------
# A graph carries numbers and tensors, but no objects. So the operations that it calls are kept here by number, for
# good: graphs outlive their tables (a model is exported, then deleted), and torch does not tell when they end. There
# are few: one for each function, schedule (by its value) and set of options that was ever compiled, whatever the number
# of calls; and torch compiles a function anew only a few times. An operation with a schedule of 1000 steps holds 0.5
# MiB, with its rows.

NO_TABLE = Constant()
_operations: list[Operation] = []
_numbers: dict[Operation, int] = {}


def number_of(table: Any, kind: Any, *options: Any) -> int:
    """Returns the number of an operation."""
    operation = kind(table, *options)
    number = _numbers.setdefault(operation, len(_operations))
    if number == len(_operations):
        _operations.append(operation)
    return number


def compiled(kind: Any, fields: tuple[Any, ...], index: Any, tensors: Sequence[Any], noise: Any) -> list[Tensor]:
    """Returns the outputs of kind(*fields), which the compiler cannot trace. The first field is a schedule or a
    table."""
    results: list[Tensor] = torch.ops.noisefuse.apply(*carried(kind, fields, index), tensors, words_of(noise))
    return results


def carried(kind: Any, fields: tuple[Any, ...], index: Any) -> tuple[int, int | None, Tensor | None]:
    """Returns number, row and times. Row or times is None."""
    table, *options = fields
    id(table)  # a guard, because the compiler takes the operation's number for a constant without one
    number = internals.constant(number_of, table, kind, *options)
    if isinstance(index, int):
        return number, index, None
    times = torch.as_tensor(index)
    if times.dtype == torch.float32 and not isinstance(index, Tensor | np.ndarray):
        times = torch.as_tensor(index, dtype=torch.float64)  # Python's numbers
    return number, None, times


@operator("apply(int number, SymInt? row, Tensor? times, Tensor[] tensors, SymInt[] words) -> Tensor[]")
def _apply(number: int, row: Any, times: Any, tensors: Sequence[Tensor], words: Sequence[int]) -> list[Tensor]:
    operation = _operations[number]
    return [*operation.run(times if row is None else row, tensors, noise_of(words), [None] * operation.outputs)]


@_apply.register_fake
def _(number: int, row: Any, times: Any, tensors: Sequence[Tensor], words: Any) -> list[Tensor]:
    operation = _operations[number]
    device = tensors[0].device
    outputs = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in operation.results(tensors)]
    return [in_format(out, tensors[0]) for out in outputs]


@operator(
    "gradient(int number, str slot, SymInt[] shape, ScalarType dtype, SymInt? row, Tensor? times, Tensor[] kept, "
    "SymInt[] words, Tensor[] grads) -> Tensor"
)
def _gradient(
    number: int, slot: str, shape: Any, dtype: torch.dtype, row: Any, times: Any, kept: Any, words: Any, grads: Any
) -> Tensor:
    index = times if row is None else row
    gradient = _operations[number].gradient(slot, index, kept, noise_of(words), grads)
    return gradient.to(dtype).contiguous()  # see below


@_gradient.register_fake
def _(number: int, slot: str, shape: Any, dtype: torch.dtype, *others: Any) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=others[-1][0].device)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.number, ctx.row, times, tensors, ctx.words = inputs
    operation = _operations[ctx.number]
    ctx.slots = [(slot, x.shape, x.dtype) for slot, x in zip(operation.slots, tensors, strict=True)]
    ctx.wanted = [x.requires_grad for x in tensors]
    ctx.save_for_backward(*([] if times is None else [times]), *operation.kept(tensors))


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    times, kept = (None, ctx.saved_tensors) if ctx.row is not None else (ctx.saved_tensors[0], ctx.saved_tensors[1:])
    rest = ctx.row, times, kept, ctx.words, grads
    gradients = [
        torch.ops.noisefuse.gradient(ctx.number, *slot, *rest) if needed else None
        for slot, needed in zip(ctx.slots, ctx.wanted, strict=True)
    ]
    return None, None, None, gradients, None if ctx.words else []  # torch takes an empty list for a list of tensors


_apply.register_autograd(_backward, setup_context=_keep_for_backward)


@operator("random(str name, SymInt[] shape, str dtype, SymInt[] words, bool batched, Device device) -> Tensor")
def _draw(name: str, shape: Any, dtype: str, words: Any, batched: bool, device: torch.device) -> Tensor:
    out = torch.empty(list(shape), dtype=NAMED[dtype], device=device)
    getattr(nf, name)(shape, noise_of(words), dtype=dtype, batched=batched, out=out)
    return out


@_draw.register_fake
def _(name: str, shape: Any, dtype: str, words: Any, batched: bool, device: torch.device) -> Tensor:
    return torch.empty(list(shape), dtype=NAMED[dtype], device=device)


def carries(noise: Any) -> bool:
    """Tells whether a graph can carry the noise: a key with one sample number and no window, a tensor or none. Else it
    breaks."""
    if isinstance(noise, nf.Noise):
        return isinstance(noise.sample, int) and noise.window_shape is None
    return noise is None or isinstance(noise, Tensor)


def words_of(noise: nf.Noise | None) -> list[int]:
    if noise is None:
        return []
    assert isinstance(noise.sample, int)
    return [noise.seed >> 32, noise.seed & 0xFFFFFFFF, noise.sample, noise.step, noise.stream]


def noise_of(words: Sequence[int]) -> nf.Noise | None:
    if not words:
        return None
    high, low, sample, step, stream = words
    return nf.Noise(high << 32 | low, sample=sample, step=step, stream=stream)


def copied(result: Tensor, out: Tensor | None) -> Tensor:
    """Returns the result in `out`, if there is one: operators of graphs make new tensors."""
    if out is None:
        return result
    if out.shape != result.shape or out.dtype != result.dtype:
        raise ValueError(f"out: expected {result.dtype} of shape {tuple(result.shape)}, got {out.dtype} {out.shape}")
    out.copy_(result)
    return out
