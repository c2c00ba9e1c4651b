# SPDX-License-Identifier: Apache-2.0
"""mse_loss for torch tensors: autograd without noise that is kept, and torch.compile.

A graph keeps the prediction, x0 and t for the backward pass, and perhaps the gradient; no noise and no target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import noisefuse as nf

from .torch import _array, _back, _copied, _index, _input, _noise, _on, _output, _place, _tensor, _words, is_compiling


class Options(NamedTuple):
    """What a loss is called with, but for tensors, times, noise and weights."""

    schedule: nf.Schedule
    target: str
    reduction: str
    scale: float | None
    offset: float | None
    batched: bool


class Given(NamedTuple):
    """The tensors of a call, times and noise. z is the noise as a tensor; then `noise` is None."""

    pred: Any
    x0: Any
    t: Any
    noise: Any
    z: Any
    weight: Any

    def place(self) -> torch.device:
        return _place("pred", _tensor("pred", self.pred))

    def arrays(self, place: torch.device) -> dict[str, Any]:
        """The arguments, as the library takes them there."""
        noise = self.noise if self.z is None else _input("noise", self.z, place)
        if self.z is None and isinstance(noise, np.ndarray):
            raise TypeError(
                "noise: expected a Noise, a list of them or a torch.Tensor, as pred is one, got a NumPy array"
            )
        return {
            "pred": _input("pred", self.pred, place),
            "x0": None if self.x0 is None else _input("x0", self.x0, place),
            "t": _index("t", self.t, place),
            "noise": noise,
            "weight": _numbers("weight", self.weight, place),
        }

    def value(self, options: Options, grad_out: Any = None) -> tuple[Tensor, Any]:
        """The loss; and its gradient, where it is wanted (True: as a new tensor)."""
        place = self.place()
        if grad_out is True and place.type == "cuda":
            grad_out = self._like_pred()
        made = grad_out is True
        with _on(place):
            given, out = self.arrays(place), made or _output("grad_out", grad_out, place)
            found = nf.mse_loss(**given, **options._asdict(), grad_out=out)
            loss, gradient = (found, None) if grad_out is None else found
            loss = self._loss(loss, place)
        gradient = None if grad_out is None else _back(gradient, None if made else grad_out)
        return loss if self.pred.dtype == torch.float64 else loss.float(), gradient

    def _like_pred(self) -> Tensor:
        return torch.empty_like(self.pred, memory_format=torch.contiguous_format)

    def _loss(self, loss: Any, place: torch.device) -> Tensor:
        """As a tensor, in float64; an array of a device is copied there into memory of torch's."""
        if place.type == "cpu":
            return torch.as_tensor(loss, dtype=torch.float64)
        result = torch.empty(loss.shape, dtype=torch.float64, device=self.pred.device)
        _array("loss", result, place)[...] = loss
        return result

    def gradient(self, options: Options, upstream: Any, out: Any = None) -> Tensor:
        place = self.place()
        if out is None and place.type == "cuda":
            out = self._like_pred()
        with _on(place):
            given, g = self.arrays(place), _numbers("upstream", upstream, place)
            found = nf.mse_loss_grad(**given, **options._asdict(), upstream=g, out=_output("out", out, place))
        return _back(found, out)  # type: ignore[no-any-return]


def mse_loss(
    pred: Any, x0: Any, t: Any, schedule: Any, noise: Any, *,
    target: Any, weight: Any, reduction: Any, scale: Any, offset: Any, batched: bool, grad_out: Any,
) -> Any:  # fmt: skip
    options = Options(schedule, target, reduction, scale, offset, batched)
    given = _given(pred, x0, t, noise, weight)
    watched = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in given)
    if watched:
        for name in ("x0", "t", "z", "weight"):
            x = getattr(given, name)
            if isinstance(x, Tensor) and x.requires_grad:
                name = "noise" if name == "z" else name
                raise NotImplementedError(f"{name}: the gradient is that of pred alone; pass {name}.detach()")
    if grad_out is not None and (watched or is_compiling()):
        raise ValueError("grad_out: autograd makes the gradient itself: call backward(), or use torch.no_grad()")
    if is_compiling():
        return _compiled(options, given)
    if not watched:
        loss, gradient = given.value(options, grad_out)
        return loss if grad_out is None else (loss, gradient)
    # The backward pass takes the values of now, whatever the caller writes there meanwhile.
    if not isinstance(t, int | Tensor):
        given = given._replace(t=torch.tensor(np.array(t)))
    if not isinstance(weight, Tensor | None):
        given = given._replace(weight=np.array(weight))
    if isinstance(noise, list):
        given = given._replace(noise=tuple(noise))
    at_once = _alone and reduction == "mean" and pred.requires_grad and given.place().type == "cpu"
    early: list[Tensor] | None = [] if at_once else None
    return _Loss.apply(options, early, *given)  # type: ignore[no-untyped-call]


def mse_loss_grad(
    pred: Any, x0: Any, t: Any, schedule: Any, noise: Any, *,
    target: Any, weight: Any, reduction: Any, scale: Any, offset: Any, batched: bool, upstream: Any, out: Any,
) -> Any:  # fmt: skip
    options = Options(schedule, target, reduction, scale, offset, batched)
    given = _given(pred, x0, t, noise, weight)
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (*given, upstream)):
        raise NotImplementedError("mse_loss_grad is not differentiable: detach its arguments, or use torch.no_grad()")
    if is_compiling():
        return _copied(_compiled_gradient(options, given, upstream), out)
    return given.gradient(options, upstream, out)


def _given(pred: Any, x0: Any, t: Any, noise: Any, weight: Any) -> Given:
    noise, z = (None, noise) if isinstance(noise, Tensor) else (noise, None)
    return Given(pred, x0, t, noise, z, weight)


def _numbers(name: str, x: Any, place: torch.device) -> Any:
    """Weights and upstream gradients, a float or float64. Those of a device stay there: nobody waits for them."""
    if not isinstance(x, Tensor):
        return x
    if _place(name, x).type == "cuda":
        return _array(name, x.detach().double(), place)
    return x.item() if x.ndim == 0 else x.detach().double().numpy()


# Whether the last backward pass wanted the gradient times 1, as where backward() is called on the loss itself: then the
# next loss makes it in its own pass. Where losses are scaled before (accumulated or mixed-precision training), the next
# one will be, too. What stays on a device is not looked at: there a second pass makes it always.
_alone = True


class _Loss(torch.autograd.Function):
    """Given.value, with Given.gradient as its backward pass: so it is differentiable once. `early`, if there is one,
    gets the gradient for an upstream gradient of 1 in the pass of the loss, with the same noise."""

    @staticmethod
    def forward(options: Options, early: list[Tensor] | None, *given: Any) -> Tensor:
        if early is None:
            return Given(*given).value(options)[0]
        loss, gradient = Given(*given).value(options, grad_out=True)
        early.append(gradient)
        return loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options, ctx.early, *given = inputs
        # what is no tensor stays as it is: a number, a Noise
        ctx.others = Given(*(None if isinstance(x, Tensor) else x for x in given))
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in given))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "mse_loss is differentiable once: create_graph=True and torch.func.grad are not supported"
            )
        given = Given(*(o if x is None else x for x, o in zip(ctx.saved_tensors, ctx.others, strict=True)))
        gradient = ctx.early.pop() if ctx.early else None  # handed on, so that autograd need not copy it
        alone = upstream.is_cpu and upstream.ndim == 0 and upstream.item() == 1
        if ctx.options.reduction == "mean":
            global _alone
            _alone = alone
        if gradient is None or not alone:
            gradient = given.gradient(ctx.options, upstream, gradient)
        return None, None, gradient, *(None,) * (len(given) - 1)


# ---- torch.compile: one operator for each of the two passes --------------------------------------------------

_KEPT: list[Options] = []


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _keep(*fields: Any) -> int:
    """The number of the options, which the graph carries."""
    options = Options(*fields)
    if options not in _KEPT:
        _KEPT.append(options)
    return _KEPT.index(options)


def _arguments(options: Options, given: Given) -> tuple[Any, ...]:
    id(options.schedule)  # a guard, where the compiler has none of its own: see torch.py
    row = given.t if isinstance(given.t, int) else None
    times = None if row is not None else given.t if isinstance(given.t, Tensor) else torch.tensor(given.t)
    weight = None if given.weight is None else torch.as_tensor(given.weight, dtype=torch.float64)
    words = [] if given.z is not None else _words(given.noise)
    return _keep(*options), row, times, given.pred, given.x0, given.z, weight, words


def _compiled(options: Options, given: Given) -> Any:
    return torch.ops.noisefuse.mse_loss(*_arguments(options, given))


def _compiled_gradient(options: Options, given: Given, upstream: Any) -> Any:
    g = torch.as_tensor(upstream, dtype=torch.float64)
    return torch.ops.noisefuse.mse_loss_grad(*_arguments(options, given), g)


@torch.library.custom_op("noisefuse::mse_loss", mutates_args=())
def _mse_loss(
    number: int, row: int | None, times: Tensor | None, pred: Tensor, x0: Tensor | None, z: Tensor | None,
    weight: Tensor | None, words: Sequence[int],
) -> Tensor:  # fmt: skip
    t = times if row is None else row
    return Given(pred, x0, t, _noise(words), z, weight).value(_KEPT[number])[0]


@_mse_loss.register_fake
def _(
    number: int, row: Any, times: Any, pred: Tensor, x0: Any, z: Any, weight: Any, words: Any
) -> Tensor:  # fmt: skip
    options = _KEPT[number]
    batch = pred.shape[0] if options.batched and pred.ndim else 1
    dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
    return torch.empty((batch,) if options.reduction == "none" else (), dtype=dtype, device=pred.device)


@torch.library.custom_op("noisefuse::mse_loss_grad", mutates_args=())
def _mse_loss_grad(
    number: int, row: int | None, times: Tensor | None, pred: Tensor, x0: Tensor | None, z: Tensor | None,
    weight: Tensor | None, words: Sequence[int], upstream: Tensor,
) -> Tensor:  # fmt: skip
    t = times if row is None else row
    return Given(pred, x0, t, _noise(words), z, weight).gradient(_KEPT[number], upstream)


@_mse_loss_grad.register_fake
def _(
    number: int, row: Any, times: Any, pred: Tensor, x0: Any, z: Any, weight: Any, words: Any, upstream: Any
) -> Tensor:  # fmt: skip
    return torch.empty(pred.shape, dtype=pred.dtype, device=pred.device)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    number, row, *tensors, words = inputs
    ctx.number, ctx.row, ctx.words = number, row, words
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    gradient = torch.ops.noisefuse.mse_loss_grad(ctx.number, ctx.row, *ctx.saved_tensors, ctx.words, upstream)
    return None, None, None, gradient, None, None, None, None


_mse_loss.register_autograd(_backward, setup_context=_keep_for_backward)
