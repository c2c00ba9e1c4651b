# SPDX-License-Identifier: Apache-2.0
"""torch tensors in, torch tensors out, without a copy: `operations` passes calls with tensors on to this module.

Gradients go through an `autograd.Function`; under `torch.compile` a call becomes one operator of the graph. Each module
imports only those below it:

    torch       the operations, and the library that `interop` registers
    loss        mse_loss
    tokens      operations on tokens
    categories  categorical, masked_cross_entropy, rate_loss
    density     log-densities of steps
    graph       autograd and torch.compile, of any operation
    arrays      tensors as arrays, devices and streams
    internals   the uses of torch's internals
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

import noisefuse as nf

from ...ground.libraries import Library
from ...ground.needs import needs
from ...language.levels import LEVELS

with needs(__name__, "torch"):
    import torch
    from torch import Tensor

from . import arrays, graph, internals
from .categories import (
    categorical,
    masked_cross_entropy,
    masked_cross_entropy_and_grad,
    rate_loss,
    rate_loss_and_grad,
)
from .density import as_given, inputs_of, kl, kl_grad, log_prob, log_prob_grad, update_with_log_prob
from .internals import is_compiling, is_traced
from .loss import interpolate_loss, interpolate_loss_and_grad, mse_loss, mse_loss_and_grad, mse_loss_grad
from .tokens import from_numpy, on_device, token_log_prob, view, written

# ---- operations --------------------------------------------------------------------------------------------
# Their arguments are those of the functions of the same names; `operations` calls them if x, `out` or dtype is torch's.


def randn(shape: Any, noise: Any, **options: Any) -> Any:
    return _random("randn", shape, noise, **options)


def empty(shape: Any, dtype: Any, device: Any) -> Any:
    """Returns an empty tensor of torch's or NumPy's dtype. None is float32."""
    return torch.empty(shape, dtype=_float("float32" if dtype is None else dtype), device=device)


def randn_like(x: Any, noise: Any, *, dtype: Any, batched: bool) -> Any:
    if dtype is None:
        dtype = x.dtype if x.dtype.is_floating_point or x.dtype.is_complex else torch.float32
    kind = _float(dtype)
    # On a CPU `randn` allocates: within torch.func a new tensor has no memory.
    out = None if x.is_cpu and not is_traced() else torch.empty(x.shape, dtype=kind, device=x.device)
    return arrays.in_format(nf.randn(tuple(x.shape), noise, dtype=kind, batched=batched, out=out), x)


def _float(dtype: Any) -> torch.dtype:
    kind = arrays.NAMED.get(name) if (name := arrays.dtype_name(dtype)) not in LEVELS else None
    if kind is None:
        raise TypeError(f"dtype {dtype!r}: expected one of {arrays.EXPECTED}")
    return kind


def moved(x: Any, to: Any) -> Any:
    """Returns NumPy's x as a tensor, on the device of another one."""
    return torch.from_numpy(x).to(to.device)


def following(result: Any, *products: tuple[Any, Any, int]) -> Any:
    """Adds products of 0, whose gradients are those of the numbers: result itself where none requires grad."""
    for number, derivative, sign in products:
        if graph.is_watched((number,)):
            zero = (number - number.detach()).reshape(number.shape + (1,) * (derivative.ndim - number.ndim))
            result = result + (sign * zero.to(derivative.dtype) * derivative).to(result.dtype)
    return result


def zeros_like(x: Any) -> Any:
    return x.new_zeros(x.shape)


def of_arrays(model: Any, answer: Any) -> tuple[Any, Any]:
    """Returns a model that takes tensors, for one that answered NumPy's arrays with this answer, and the answer. The
    model is still given NumPy's arrays, which carry no gradient, so answers have none."""

    def detached(answer: Any) -> Any:
        if isinstance(answer, list | tuple):
            return (*map(detached, answer),)
        return answer.detach() if isinstance(answer, Tensor) else answer

    def asked(*given: Any) -> Any:
        return detached(model(*(one.cpu().numpy() if isinstance(one, Tensor) else one for one in given)))

    return asked, detached(answer)


def times(x: Any, t: Any, kind: str) -> Any:
    """Returns t for each sample of x."""
    return torch.full(x.shape[:1], t.item(), dtype=getattr(torch, kind), device=x.device)


def uniform(shape: Any, noise: Any, **options: Any) -> Any:
    return _random("uniform", shape, noise, **options)


def q_sample(x0: Any, t: Any, schedule: Any, noise: Any, *, out: Any, target_out: Any, **options: Any) -> Any:
    options["dtype"] = arrays.dtype_name(options["dtype"], or_levels=True)
    if options["dtype"] in LEVELS:  # rounded to integer levels
        graph.check_no_gradient(x0=x0)
    if options["target"] is None and target_out is None:
        return _call("q_sample", schedule, options, t, {"x": x0}, noise, (out,))[0]
    return _call("q_sample", schedule, options, t, {"x": x0}, noise, (out, target_out))


def q_step(x: Any, t: Any, schedule: Any, noise: Any, *, out: Any, **options: Any) -> Any:
    if "dtype" in options:  # rounded to integer levels
        graph.check_no_gradient(x=x)
    return _call("q_step", schedule, options, t, {"x": x}, noise, (out,))[0]


def q_walk(x0: Any, schedule: Any, noise: Any, *, keep: Any, out: Any, **options: Any) -> Any:
    options["keep"] = tuple(keep) if isinstance(keep, Sequence | np.ndarray) else keep
    return _call("q_walk", schedule, options, 0, {"x": x0}, noise, (out,))[0]


def update(
    table: Any, i: Any, x: Any, model_output: Any, *, past: Any, noise: Any, out: Any, aux_out: Any, **options: Any
) -> Any:  # fmt: skip
    tensors = inputs_of(x, model_output, past)
    if options:  # rounded to integer levels
        graph.check_no_gradient(**{nf.tableau.ARGUMENTS[slot]: tensor for slot, tensor in tensors.items()})
    anew = isinstance(aux_out, int)
    results = _call("update", table, options, i, tensors, noise, (out, *((None,) * aux_out if anew else aux_out)))
    return results if anew else results[0]


def augmented(function: Any, x: Any, noise: Any, *, dtype: Any = None, out: Any = None, **options: Any) -> Any:
    """Runs a function of `augment` or `fields` on the memory of tensors. A compiler's graph breaks there."""
    if is_compiling():
        return internals.untraced(augmented, function, x, noise, dtype=dtype, out=out, **options)
    graph.check_no_gradient(x=x, noise=noise)
    place, name, into = arrays.place_of("x", arrays.checked("x", x)), arrays.dtype_name(dtype, or_levels=True), out
    kind = arrays.NAMED.get(name, x.dtype)
    if out is None and place.type != "cpu":  # torch allocates all results on a device
        into = torch.empty(x.shape, dtype=kind, device=x.device)
    with arrays.on(place):
        noise = arrays.read("noise", noise, place) if isinstance(noise, Tensor) else arrays.read_noise(noise, "x")
        written = arrays.write("out", into, place, kind)
        result = function(arrays.read("x", x, place), noise, dtype=arrays.array_dtype(name), out=written, **options)
        result = arrays.as_tensor(result, into, kind)
    return arrays.in_format(result, x) if out is None else result


class RowCall(graph.Operation):
    """q_sample, q_step, q_walk or update: rows. Slots are x, m1, m2, past1 .. past4, z."""

    def label(self, slot: str) -> str:
        """Returns the argument's name."""
        return "x0" if slot == "x" and self.name in ("q_sample", "q_walk") else nf.tableau.ARGUMENTS[slot]

    def out_labels(self) -> tuple[str, ...]:
        if self.name == "q_sample":
            return ("out", "target_out")[: self.outputs]
        return "out", *(f"aux_out[{n}]" for n in range(self.outputs - 1))

    def results(self, tensors: Sequence[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
        x, options = tensors[0], dict(self.options)
        if self.name == "q_walk":
            kept = options["keep"]
            return [((len(self.table) if kept is None else np.size(kept), *x.shape), x.dtype)]
        like_x = torch.float32 if arrays.DTYPES.get(x.dtype) in LEVELS else x.dtype  # and that beside integer levels
        first = arrays.NAMED.get(options.get("dtype") or "", like_x)
        others = like_x if arrays.DTYPES[first] in LEVELS else first
        return [(tuple(x.shape), others if n else first) for n in range(self.outputs)]

    def run(self, index: Any, tensors: Sequence[Any], noise: Any, outs: Sequence[Any]) -> tuple[Any, ...]:
        """Returns the outputs, for tensors and arrays alike."""
        if self.name == "update":
            return self._update(index, tensors, noise, outs)
        times = () if self.name == "q_walk" else (index,)
        noise = tensors[1] if len(tensors) > 1 else noise
        named = dict(zip(("out", "target_out"), outs, strict=False))
        results = getattr(nf, self.name)(tensors[0], *times, self.table, noise, **self._named(), **named)
        return results if isinstance(results, tuple) else (results,)

    def _update(self, index: Any, tensors: Sequence[Any], noise: Any, outs: Sequence[Any]) -> tuple[Any, ...]:
        inputs = dict(zip(self.slots, tensors, strict=True))
        models, past = as_given(inputs)
        out, *aux = outs
        aux_out = aux if any(a is not None for a in aux) else len(aux)
        named = {"past": past, "noise": inputs.get("z", noise), "out": out, "aux_out": aux_out, **self._named()}
        results = nf.update(self.table, index, inputs["x"], models, **named)
        return (results, *aux) if aux_out is aux else results

    def _named(self) -> dict[str, Any]:
        """Returns the options. A dtype in them is that of arrays."""
        options = dict(self.options)
        if options.get("dtype") is not None:
            options["dtype"] = arrays.array_dtype(options["dtype"])
        return options

    def kept(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns x, m1 and m2, if a clamp decides whether the gradient passes."""
        if self.name != "update" or not self.table.clamps:
            return []
        return [x for slot, x in zip(self.slots, tensors, strict=True) if slot in ("x", "m1", "m2")]

    def gradient(self, slot: str, index: Any, kept: Sequence[Tensor], noise: Any, grads: Sequence[Tensor]) -> Tensor:
        """Runs the same kernel with the transposed row, which draws nothing."""
        if self.name == "q_walk":  # x_t is alpha_t x0 and noise
            alpha = self.table.alpha[slice(None) if (keep := dict(self.options)["keep"]) is None else list(keep)]
            weights = torch.tensor(alpha).to(grads[0], non_blocking=True)
            summed: Tensor = torch.tensordot(weights, grads[0], dims=1)
            return summed
        if isinstance(index, float) or (isinstance(index, Tensor) and index.is_floating_point()):
            times = np.array(index) if isinstance(index, float) else index.double().cpu().numpy()
            table, index = self.transposed(times).get(slot), np.arange(times.size).reshape(times.shape)
        else:
            table = _transposed(self).get(slot)
        if table is None:  # no output depends on it
            return torch.zeros_like(grads[0])
        x, *models = kept or (grads[0],)
        outputs: Any = tuple(models) or None  # one, a pair or none
        moved: Tensor = nf.update(table, index, x, outputs, past=grads)
        return moved

    def transposed(self, times: Any = None) -> dict[str, nf.Tableau]:
        """Returns backward rows by slot: one for each row of the table, or for each of these times."""
        if self.name == "update":
            table = self.table
        elif self.name == "q_step":
            table = self.table.markov()
        else:
            options = dict(self.options)
            scale = 1.0 if options.get("scale") is None else options["scale"]
            table = self.table.forward(options.get("target"), scale=scale, t=times)
        return table.transpose(self.outputs)


@lru_cache(maxsize=64)
def _transposed(call: RowCall) -> dict[str, nf.Tableau]:
    return call.transposed()


def _call(
    name: str, table: Any, options: dict[str, Any], index: Any, tensors: dict[str, Any], noise: Any, outs: Sequence[Any]
) -> tuple[Any, ...]:
    """Returns the outputs: the caller's, or new ones."""
    time = "i" if name == "update" else "t"
    graph.check_no_gradient(**{"noise": noise, time: index})
    if isinstance(noise, Tensor):
        tensors, noise = {**tensors, "z": noise}, None
    fields, values = (table, name, tuple(options.items()), tuple(tensors), len(outs)), tuple(tensors.values())
    if is_compiling():
        if not graph.carries(noise):
            return internals.untraced(_call, name, table, options, index, tensors, noise, outs)
        outputs = graph.compiled(RowCall, fields, index, values, noise)
        return tuple(graph.copied(result, out) for result, out in zip(outputs, outs, strict=True))
    call = RowCall(*fields)
    # Remembered tensors are overwritten, as by an in-place operation that autograd knows.
    remembered = tuple(out for out in outs[1:] if out is not None) if name == "update" else ()
    if graph.is_watched((*values, *remembered)):
        for slot, x in zip(call.slots, values, strict=True):
            arrays.check_memory(call.label(slot), x)
        for label, out in zip(call.out_labels(), outs[: len(outs) - len(remembered)], strict=False):
            if out is not None:
                raise ValueError(f"{label}: expected None, as an input requires grad and autograd needs a new tensor")
        for label, out in zip(call.out_labels()[1:], remembered, strict=False):
            if graph.is_watched((out,)) and out.is_leaf:
                raise ValueError(f"{label}: is a leaf that requires grad, which autograd does not let others write to")
        return graph.differentiable(call, index, noise, values, remembered)
    labels, out_labels = [call.label(slot) for slot in call.slots], call.out_labels()
    noise, place = arrays.read_noise(noise, "x"), arrays.place_of(labels[0], arrays.checked(labels[0], values[0]))
    kinds = call.results(values)
    if place.type != "cpu":  # torch allocates all results on a device
        memory = [
            torch.empty(shape, dtype=dtype, device=values[0].device) if out is None else out
            for (shape, dtype), out in zip(kinds, outs, strict=True)
        ]
    else:
        memory = [*outs]
    with arrays.on(place):
        inputs = [arrays.read(label, x, place) for label, x in zip(labels, values, strict=True)]
        written = [
            arrays.write(label, out, place, kind)
            for label, out, (_, kind) in zip(out_labels, memory, kinds, strict=True)
        ]
        results = call.run(arrays.read_index(time, index, place), inputs, noise, written)
    outputs = [
        arrays.as_tensor(result, out, kind) for result, out, (_, kind) in zip(results, memory, kinds, strict=True)
    ]
    return tuple(arrays.in_format(x, values[0]) if out is None else x for x, out in zip(outputs, outs, strict=True))


_SEVERAL = tuple, list


def in_graph(row: Any, arguments: tuple[Any, ...], name: str, table: Any, options: Any) -> Any:
    """Does `_call` on the fast path, for tensors that require grad, in 0.6 of its time. It declines outputs."""
    _, index, x, models, past, noise, _, out, aux, *_ = arguments
    is_number, is_none = type(aux) is int, aux is None or (type(aux) in _SEVERAL and not aux)
    if out is not None or not (is_number or is_none) or isinstance(noise, Tensor):
        return NotImplemented
    if past is not None and type(past) not in _SEVERAL:
        return NotImplemented
    tensors = {"x": x} if models is None and not past else inputs_of(x, models, past or ())
    values = tuple(tensors.values())
    if not graph.is_watched(values) or graph.is_watched((index,)):
        return NotImplemented
    try:
        for one in values:
            one.data_ptr()
    except (AttributeError, RuntimeError):  # no tensor, or one of torch.func: see `check_memory`
        return NotImplemented
    outputs = 1 + aux if is_number else 1
    return graph.fast_call(RowCall(table, name, options, tuple(tensors), outputs), row, arguments, values)


def _random(name: str, shape: Any, noise: Any, *, dtype: Any, batched: bool, out: Any) -> Any:
    dtype = "float32" if dtype is None else arrays.dtype_name(dtype)
    if is_compiling():
        lengths = [shape] if isinstance(shape, int) else list(shape)
        if not graph.carries(noise):
            return internals.untraced(_random, name, lengths, noise, dtype=dtype, batched=batched, out=out)
        words = graph.words_of(noise)
        device = arrays.CPU if out is None else out.device
        return graph.copied(torch.ops.noisefuse.random(name, lengths, dtype, words, batched, device), out)
    place = arrays.CPU if out is None else arrays.place_of("out", arrays.checked("out", out))
    kind = arrays.NAMED.get(dtype, torch.float32)
    with arrays.on(place):
        array, given = arrays.write("out", out, place, kind), arrays.array_dtype(dtype) if name == "randn" else dtype
        drawn = getattr(nf, name)(shape, noise, dtype=given, batched=batched, out=array)
    return arrays.as_tensor(drawn, out, kind)


def untraced(function: Any, *arguments: Any) -> Any:
    return internals.untraced(function, *arguments) if is_traced() else function(*arguments)


library: Library = Library(
    "torch", time="batch", floating=frozenset(kind for kind in arrays.DTYPES if kind.is_floating_point),
    is_traced=is_traced, can_warn=lambda: not is_traced(), untraced=untraced,
    check_plain=arrays.check_plain, to_numpy=arrays.to_numpy, moved=moved, following=following, of_arrays=of_arrays,
    zeros_like=zeros_like, in_memory=lambda x: arrays.place_of("x", x).type == "cpu", where=torch.where, times=times,
    empty=empty, randn=randn, randn_like=randn_like,
    uniform=uniform, q_sample=q_sample, q_step=q_step, q_walk=q_walk, update=update,
    mse_loss=mse_loss, mse_loss_and_grad=mse_loss_and_grad, mse_loss_grad=mse_loss_grad,
    interpolate_loss=interpolate_loss, interpolate_loss_and_grad=interpolate_loss_and_grad,
    log_prob=log_prob, log_prob_grad=log_prob_grad, kl=kl, kl_grad=kl_grad,
    augmented=augmented, update_with_log_prob=update_with_log_prob, with_gradient=graph.with_gradient,
    in_graph=in_graph, categorical=categorical, masked_cross_entropy=masked_cross_entropy,
    masked_cross_entropy_and_grad=masked_cross_entropy_and_grad, rate_loss=rate_loss,
    rate_loss_and_grad=rate_loss_and_grad, view=view, from_numpy=from_numpy, written=written,
    token_log_prob=token_log_prob, on_device=on_device,
)  # fmt: skip
