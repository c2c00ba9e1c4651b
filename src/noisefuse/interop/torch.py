# SPDX-License-Identifier: Apache-2.0
"""torch tensors in, torch tensors out, without a copy: what `ops` does not do at once with tensors comes here.

Tensors of the CPU are shown to the library as NumPy arrays of the same memory, tensors of a CUDA device as CuPy arrays,
whose kernels run on torch's current stream. Gradients go through an `autograd.Function`; under `torch.compile` a call
becomes one operator of the graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

import noisefuse as nf

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.uint8: "uint8",
}
NAMED = {name: dtype for dtype, name in DTYPES.items()}

is_compiling = torch.compiler.is_compiling
# What short cuts ask: quicker, and enough, as they decline the fake tensors of other compilers.
is_traced = torch.compiler.is_dynamo_compiling


@torch.compiler.disable  # type: ignore[untyped-decorator]
def untraced(function: Any, *arguments: Any) -> Any:
    """What torch.compile cannot follow: there the graph breaks, or, with fullgraph=True, is refused."""
    return function(*arguments)


# ---- operations --------------------------------------------------------------------------------------------
# Their arguments are those of the functions of the same names; `ops` comes here where x, `out` or dtype is torch's.


def randn(shape: Any, noise: Any, *, dtype: Any, batched: bool, out: Any) -> Any:
    return _random("randn", shape, noise, dtype, batched, out)


def uniform(shape: Any, noise: Any, *, dtype: Any, batched: bool, out: Any) -> Any:
    return _random("uniform", shape, noise, dtype, batched, out)


def q_sample(
    x0: Any, t: Any, schedule: Any, noise: Any, *,
    target: Any, scale: Any, offset: Any, dtype: Any, batched: bool, out: Any, target_out: Any,
) -> Any:  # fmt: skip
    options = (("target", target), ("scale", scale), ("offset", offset), ("dtype", _name(dtype)), ("batched", batched))
    if target is None and target_out is None:
        return _call("q_sample", schedule, options, t, {"x": x0}, noise, (out,))[0]
    return _call("q_sample", schedule, options, t, {"x": x0}, noise, (out, target_out))


def q_step(x: Any, t: Any, schedule: Any, noise: Any, *, batched: bool, out: Any) -> Any:
    return _call("q_step", schedule, (("batched", batched),), t, {"x": x}, noise, (out,))[0]


def q_walk(x0: Any, schedule: Any, noise: Any, *, keep: Any, batched: bool, out: Any) -> Any:
    options = (("keep", tuple(keep) if isinstance(keep, Sequence | np.ndarray) else keep), ("batched", batched))
    return _call("q_walk", schedule, options, 0, {"x": x0}, noise, (out,))[0]


def update(
    table: Any, i: Any, x: Any, model_output: Any, *, past: Any, noise: Any, out: Any, aux_out: Any
) -> Any:  # fmt: skip
    models = model_output if isinstance(model_output, tuple) else (model_output,)
    tensors = {"x": x} | {f"m{n + 1}": m for n, m in enumerate(models) if m is not None}
    tensors |= {f"past{n + 1}": p for n, p in enumerate(past)}
    made = isinstance(aux_out, int)
    results = _call("update", table, (), i, tensors, noise, (out, *((None,) * aux_out if made else aux_out)))
    return results if made else results[0]


class Operation(NamedTuple):
    """A function of the library and what it is called with, but for tensors, row numbers and noise."""

    name: str
    table: Any  # Schedule or Tableau
    options: tuple[tuple[str, Any], ...]
    slots: tuple[str, ...]  # what the tensors are: x, m1, m2, past1 .. past4, z
    outputs: int

    def run(self, index: Any, tensors: Sequence[Any], noise: Any, outs: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs. Tensors and arrays alike; nothing is differentiated."""
        given = dict(zip(self.slots, tensors, strict=True))
        x, noise, options = given.pop("x"), given.pop("z", noise), dict(self.options)
        if self.name == "q_step":
            return (nf.q_step(x, index, self.table, noise, out=outs[0], **options),)
        if self.name == "q_walk":
            return (nf.q_walk(x, self.table, noise, out=outs[0], **options),)
        if self.name == "q_sample":
            target_out = outs[1] if len(outs) > 1 else None
            result = nf.q_sample(x, index, self.table, noise, out=outs[0], target_out=target_out, **options)
            return result if isinstance(result, tuple) else (result,)
        past = [given.pop(f"past{n}") for n in range(1, 5) if f"past{n}" in given]
        models = (given.get("m1"), given.get("m2")) if "m2" in given else given.get("m1")
        out, *aux = outs
        aux_out = aux if any(a is not None for a in aux) else len(aux)
        found = nf.update(self.table, index, x, models, past=past, noise=noise, out=out, aux_out=aux_out)
        return (found, *aux) if aux_out is aux else found

    def result(self, x: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of the outputs."""
        options = dict(self.options)
        if self.name == "q_walk":
            kept = options["keep"]
            return (len(self.table) if kept is None else np.size(kept), *x.shape), x.dtype
        dtype = NAMED.get(options.get("dtype") or "", x.dtype)
        return tuple(x.shape), torch.float32 if dtype == torch.uint8 else dtype

    def kept(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Those that the gradient depends on: x, m1 and m2, where a clamp passes it or does not."""
        if self.name != "update" or not self.table.clamps:
            return []
        return [x for slot, x in zip(self.slots, tensors, strict=False) if slot in ("x", "m1", "m2")]

    def gradient(self, slot: str, index: Any, kept: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
        """Of the tensor in this slot, from the gradients of the outputs: the same kernel with the transposed row."""
        if self.name == "q_walk":  # x_t is alpha_t x0 and noise
            alpha = self.table.alpha[slice(None) if (keep := dict(self.options)["keep"]) is None else list(keep)]
            weights = torch.tensor(alpha).to(grads[0], non_blocking=True)
            summed: Tensor = torch.tensordot(weights, grads[0], dims=1)
            return summed
        x, *models = kept or (grads[0],)
        if self.name == "update":
            table = _transposed(self.table, len(grads)).get(slot)
        else:
            table, index = self.slopes(index)
        if table is None:  # no output depends on it
            return torch.zeros_like(grads[0])
        return nf.update(table, index, x, tuple(models) or None, past=grads)  # type: ignore[no-any-return]

    def slopes(self, index: Any) -> tuple[nf.Tableau, Any]:
        """Backward rows of the forward process at the times of `index`, and which of them each takes."""
        if not isinstance(index, Tensor) or not index.is_floating_point():
            return _slopes_of_rows(self), index
        times = index.double().cpu().numpy()
        return _slopes(self, times.reshape(-1)), np.arange(times.size).reshape(times.shape)


def _slopes(operation: Operation, times: Any) -> nf.Tableau:
    """The outputs are affine in x: their slopes are what 1 becomes where noise and offset are 0."""
    options = dict(operation.options) | ({"offset": 0.0, "dtype": None} if operation.name == "q_sample" else {})
    ones, zeros = np.ones(len(times)), np.zeros(len(times))
    found = getattr(nf, operation.name)(ones, times, operation.table, zeros, **options)
    rows = np.zeros(len(times), nf.tableau.ROW)
    rows["clean"]["lo"], rows["clean"]["hi"] = -np.inf, np.inf
    for slot, slope in zip(("past1", "past2"), found if isinstance(found, tuple) else (found,), strict=False):
        rows["out"][slot] = slope
    return nf.Tableau(rows)


@lru_cache(maxsize=64)
def _slopes_of_rows(operation: Operation) -> nf.Tableau:
    return _slopes(operation, np.arange(len(operation.table)))


@lru_cache(maxsize=64)
def _transposed(table: nf.Tableau, outputs: int) -> dict[str, nf.Tableau]:
    return table.transpose(outputs)


def _call(
    name: str, table: Any, options: Any, index: Any, tensors: dict[str, Any], noise: Any, outs: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The outputs: the caller's, or new ones."""
    given = {"noise": noise, "i" if name == "update" else "t": index}
    for label, x in given.items():
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(f"{label}: gradients with respect to it are not computed: pass {label}.detach()")
    if isinstance(noise, Tensor):
        tensors, noise = {**tensors, "z": noise}, None
    slots, values = tuple(tensors), tuple(tensors.values())
    if is_compiling():
        return _compiled(name, table, options, slots, index, values, noise, outs)
    operation = Operation(name, table, options, slots, len(outs))
    arguments = nf.tableau.ARGUMENTS | ({"x": "x0"} if name in ("q_sample", "q_walk") else {})
    labels = [arguments[slot] for slot in slots]
    # What samplers remember is written over, as by an in-place operation that autograd knows.
    remembered = tuple(out for out in outs[1:] if out is not None) if name == "update" else ()
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (*values, *remembered)):
        for label, x in zip(labels, values, strict=True):
            _need_memory(label, x)
        return _differentiable(operation, index, values, noise, outs[: len(outs) - len(remembered)], remembered)
    if isinstance(noise, np.ndarray):
        raise TypeError("noise: expected a Noise, a list of them or a torch.Tensor, as x is one, got a NumPy array")
    place = _place(labels[0], _tensor(labels[0], values[0]))
    outs = outs if place.type == "cpu" else _made(operation, values[0], outs)
    with _on(place):
        arrays = [_input(label, x, place) for label, x in zip(labels, values, strict=True)]
        written = [_output(label, out, place) for label, out in zip(_labels(name, len(outs)), outs, strict=True)]
        results = operation.run(_index("i" if name == "update" else "t", index, place), arrays, noise, written)
    return tuple(_back(result, out) for result, out in zip(results, outs, strict=True))


def _made(operation: Operation, x: Tensor, outs: Sequence[Any]) -> tuple[Any, ...]:
    """`outs`, and new tensors for those that are missing: all memory of results on a device is torch's."""
    shape, dtype = operation.result(x)
    return tuple(torch.empty(shape, dtype=dtype, device=x.device) if out is None else out for out in outs)


def _labels(name: str, outputs: int) -> tuple[str, ...]:
    if name == "q_sample":
        return ("out", "target_out")[:outputs]
    return "out", *(f"aux_out[{n}]" for n in range(outputs - 1))


def _random(name: str, shape: Any, noise: Any, dtype: Any, batched: bool, out: Any) -> Any:
    if is_compiling():
        lengths = [shape] if isinstance(shape, int) else list(shape)
        words = _words(nf.Noise(noise) if isinstance(noise, int) else noise)
        device = _CPU if out is None else out.device
        result = torch.ops.noisefuse.random(name, lengths, _name(dtype), words, batched, device)
        return _copied(result, out)
    place = _CPU if out is None else _place("out", _tensor("out", out))
    with _on(place):
        drawn = getattr(nf, name)(shape, noise, dtype=_name(dtype), batched=batched, out=_output("out", out, place))
    return _back(drawn, out)


# ---- tensors as arrays -------------------------------------------------------------------------------------

_CPU = torch.device("cpu")
_HERE = nullcontext()


def _input(name: str, x: object, place: torch.device) -> Any:
    """The memory of a tensor that is read; a lazily negated one is copied."""
    tensor = _tensor(name, x)
    if _is_dual(tensor):
        raise NotImplementedError(f"{name}: forward-mode differentiation is not supported")
    tensor = tensor.detach().resolve_neg()
    # Where a device has to copy, torch does: in its own memory, and with a kernel that is there already.
    return _array(name, tensor if place.type == "cpu" else tensor.contiguous(), place)


def _output(name: str, out: object, place: torch.device) -> Any:
    """The memory of a tensor that is written."""
    if out is None:
        return None
    tensor = _tensor(name, out)
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: requires grad, and autograd would not see what is written: use torch.no_grad()")
    if tensor.is_neg() or _is_dual(tensor):
        raise ValueError(f"{name}: expected a plain tensor, got a negated view or a dual one")
    return _array(name, tensor.detach(), place)


def _index(name: str, t: Any, place: torch.device) -> Any:
    """Row numbers or times; those in host memory do for tensors of a device, too."""
    if not isinstance(t, Tensor):
        return t
    own = _place(name, t)
    return _array(name, (t.float() if t.dtype == torch.bfloat16 else t).detach(), own if own.type == "cpu" else place)


def _is_dual(tensor: Tensor) -> bool:
    return unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _tensor(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, as the other arguments are, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_quantized:
        raise TypeError(f"{name}: expected a dense tensor, got {'a quantised' if x.is_quantized else x.layout} one")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: dtype {x.dtype} is not supported, expected one of {', '.join(DTYPES.values())}")
    return x


def _place(name: str, x: Tensor) -> torch.device:
    """Where it lies; refused where no kernel reaches it."""
    if not (x.is_cpu or x.is_cuda):
        raise NotImplementedError(f"{name}: expected a tensor on the CPU or a CUDA device, got one on {x.device}")
    return x.device


def _array(name: str, tensor: Tensor, place: torch.device) -> Any:
    """The memory of a tensor, without a copy: NumPy's view of a CPU tensor, CuPy's of a CUDA tensor."""
    if (own := _place(name, tensor)) != place:
        raise ValueError(f"{name} lies on {own}, the other tensors on {place}: expected all on one device")
    try:
        if own.type == "cuda":
            return _cupy_array(tensor, own.index)
        if tensor.dtype != torch.bfloat16:
            return tensor.numpy()
        return tensor.view(torch.int16).numpy().view(_numpy_dtype(tensor))
    except RuntimeError as error:  # of vmap, say, or a FakeTensor
        raise _no_memory(name) from error


def _need_memory(name: str, x: object) -> None:
    """Raises for tensors of torch.func, which unwraps them where a result is made, but not in the backward pass."""
    try:
        _tensor(name, x).data_ptr()
    except RuntimeError as error:
        raise _no_memory(name) from error


def _no_memory(name: str) -> TypeError:
    return TypeError(f"{name}: expected a tensor with memory of its own, not one of torch.func or a fake one")


def _numpy_dtype(tensor: Tensor) -> np.dtype[Any]:
    if tensor.dtype != torch.bfloat16:
        return np.dtype(str(tensor.dtype).removeprefix("torch."))
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError("bfloat16 needs ml_dtypes here: pip install 'noisefuse[torch]'") from None
    half: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return half


# ---- CUDA --------------------------------------------------------------------------------------------------


class _Stream(NamedTuple):
    """A stream of torch's, as CuPy takes it. (Streams of older torch do not tell their handles by themselves.)"""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError:
        raise ImportError(
            "tensors on a CUDA device need CuPy: pip install 'noisefuse[cuda13]' or 'noisefuse[cuda12]'"
        ) from None


def _on(place: torch.device) -> AbstractContextManager[None]:
    """Kernels run there, and in the order of torch's own."""
    return _HERE if place.type == "cpu" else _on_stream(place)


@contextmanager
def _on_stream(device: torch.device) -> Iterator[None]:
    cupy, stream = _cupy(), _Stream(torch.cuda.current_stream(device).cuda_stream)
    with cupy.cuda.Device(device.index), cupy.cuda.Stream.from_external(stream):
        yield


def _cupy_array(tensor: Tensor, device: int) -> Any:
    """CuPy's array of this memory, which it keeps alive. (Not through DLPack, where streams wait for each other though
    there is one, nor through the CUDA array interface, which has no bfloat16.)"""
    cupy, storage, size = _cupy(), tensor.untyped_storage(), tensor.itemsize
    if tensor.numel() and not storage.data_ptr():
        raise RuntimeError("no memory")
    memory = cupy.cuda.UnownedMemory(storage.data_ptr(), storage.nbytes(), tensor, device)
    start = cupy.cuda.MemoryPointer(memory, tensor.storage_offset() * size)
    strides = tuple(size * stride for stride in tensor.stride())
    return cupy.ndarray(tuple(tensor.shape), _numpy_dtype(tensor), start, strides)


# ---- results -----------------------------------------------------------------------------------------------


def _back(result: Any, out: Any) -> Any:
    """The result as a tensor: the caller's `out`, of which autograd is told, or a new one of the result's memory."""
    if out is not None:
        torch.autograd.graph.increment_version(out)
        return out
    if result.dtype.name == "bfloat16":
        return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(result)


def _name(dtype: Any) -> Any:
    if not isinstance(dtype, torch.dtype):
        return np.dtype(dtype).name if isinstance(dtype, type | np.dtype) else dtype
    if dtype not in DTYPES or not dtype.is_floating_point:  # bytes are no result
        expected = ", ".join(str(known) for known in DTYPES if known.is_floating_point)
        raise TypeError(f"dtype {dtype}: expected one of {expected}")
    return DTYPES[dtype]


# ---- autograd ----------------------------------------------------------------------------------------------


def _differentiable(
    operation: Operation, index: Any, tensors: Sequence[Any], noise: Any, outs: Sequence[Any], remembered: Sequence[Any]
) -> tuple[Any, ...]:
    for label, out in zip(_labels(operation.name, len(outs)), outs, strict=True):
        if out is not None:
            raise ValueError(f"{label}: an input requires grad, and results of which autograd knows are new tensors")
    if not isinstance(index, int | Tensor):
        index = torch.tensor(np.array(index))
    return _Differentiable.apply(operation, index, noise, *tensors, *remembered)  # type: ignore[no-any-return,no-untyped-call]


class _Differentiable(torch.autograd.Function):
    """Operation.run, with Operation.gradient as its backward pass. Backward passes are differentiable themselves."""

    @staticmethod
    def forward(operation: Operation, index: Any, noise: Any, *tensors: Any) -> tuple[Tensor, ...]:
        n = len(operation.slots)
        made = (None,) * (operation.outputs - len(tensors) + n)
        return operation.run(index, tensors[:n], noise, (*made, *tensors[n:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        operation, index, _, *tensors = inputs
        n = len(operation.slots)
        ctx.operation, ctx.dtypes, ctx.others = operation, [x.dtype for x in tensors[:n]], len(tensors) - n
        ctx.mark_dirty(*tensors[n:])
        ctx.index = None if isinstance(index, Tensor) else index
        ctx.save_for_backward(*operation.kept(tensors), *([index] if ctx.index is None else []))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        kept, index = list(ctx.saved_tensors), ctx.index
        if index is None:
            index = kept.pop()
        made = [
            ctx.operation.gradient(slot, index, kept, grads).to(dtype) if needed else None
            for slot, dtype, needed in zip(ctx.operation.slots, ctx.dtypes, ctx.needs_input_grad[3:], strict=False)
        ]
        return None, None, None, *made, *(None,) * ctx.others


# ---- torch.compile -----------------------------------------------------------------------------------------
# The compiler sees one operator. What it cannot carry, tables and options, are kept here, under the number that the
# graph carries; a noise is five numbers. So a step that changes compiles nothing anew.

_KEPT: dict[int, Operation] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _keep(*fields: Any) -> int:
    """The number of the operation; it stays, as the graph does."""
    operation = Operation(*fields)
    for number, known in _KEPT.items():
        if known == operation:
            return number
    number = len(_KEPT)
    _KEPT[number] = operation
    return number


def _compiled(
    name: str, table: Any, options: Any, slots: Any, index: Any, tensors: Any, noise: Any, outs: Any
) -> tuple[Any, ...]:
    id(table)  # a guard, where the compiler takes the number of the operation for a constant without one of its own
    number = _keep(name, table, options, slots, len(outs))
    row = index if isinstance(index, int) else None
    times = None if row is not None else torch.as_tensor(index)
    results = torch.ops.noisefuse.apply(number, row, times, tensors, _words(noise))
    return tuple(_copied(result, out) for result, out in zip(results, outs, strict=True))


@torch.library.custom_op(
    "noisefuse::apply",
    mutates_args=(),
    schema="(int number, SymInt? row, Tensor? times, Tensor[] tensors, SymInt[] words) -> Tensor[]",
)
def _apply(
    number: int, row: int | None, times: Tensor | None, tensors: Sequence[Tensor], words: Sequence[int]
) -> list[Tensor]:
    operation = _KEPT[number]
    return [*operation.run(times if row is None else row, tensors, _noise(words), [None] * operation.outputs)]


@_apply.register_fake
def _(number: int, row: Any, times: Any, tensors: Sequence[Tensor], words: Any) -> list[Tensor]:
    operation, x = _KEPT[number], tensors[0]
    shape, dtype = operation.result(x)
    return [torch.empty(shape, dtype=dtype, device=x.device) for _ in range(operation.outputs)]


@torch.library.custom_op(
    "noisefuse::random",
    mutates_args=(),
    schema="(str name, SymInt[] shape, str dtype, SymInt[] words, bool batched, Device device) -> Tensor",
)
def _draw(
    name: str, shape: Sequence[int], dtype: str, words: Sequence[int], batched: bool, device: torch.device
) -> Tensor:
    out = torch.empty(list(shape), dtype=NAMED[dtype], device=device)
    getattr(nf, name)(shape, _noise(words), dtype=dtype, batched=batched, out=out)
    return out


@_draw.register_fake
def _(name: str, shape: Sequence[int], dtype: str, words: Any, batched: bool, device: torch.device) -> Tensor:
    return torch.empty(list(shape), dtype=NAMED[dtype], device=device)


@torch.library.custom_op(
    "noisefuse::gradient",
    mutates_args=(),
    schema="(int number, str slot, SymInt? row, Tensor? times, Tensor[] kept, Tensor[] grads) -> Tensor",
)
def _gradient(
    number: int, slot: str, row: int | None, times: Tensor | None, kept: Sequence[Tensor], grads: Sequence[Tensor]
) -> Tensor:
    return _KEPT[number].gradient(slot, times if row is None else row, kept, grads)


@_gradient.register_fake
def _(number: int, slot: str, row: Any, times: Any, kept: Any, grads: Sequence[Tensor]) -> Tensor:
    shape = grads[0].shape[1:] if _KEPT[number].name == "q_walk" else grads[0].shape
    return torch.empty(shape, dtype=grads[0].dtype, device=grads[0].device)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.number, ctx.row, times, tensors, words = inputs
    ctx.of_words = None if words else []  # torch takes an empty list for one of tensors
    operation = _KEPT[ctx.number]
    ctx.wanted = [(slot, x.dtype, x.requires_grad) for slot, x in zip(operation.slots, tensors, strict=True)]
    ctx.save_for_backward(*([] if times is None else [times]), *operation.kept(tensors))


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    times, kept = (None, ctx.saved_tensors) if ctx.row is not None else (ctx.saved_tensors[0], ctx.saved_tensors[1:])
    made = [
        torch.ops.noisefuse.gradient(ctx.number, slot, ctx.row, times, kept, grads).to(dtype) if needed else None
        for slot, dtype, needed in ctx.wanted
    ]
    return None, None, None, made, ctx.of_words


_apply.register_autograd(_backward, setup_context=_keep_for_backward)


def _words(noise: Any) -> list[int]:
    if noise is None:
        return []
    if not isinstance(noise, nf.Noise) or not isinstance(noise.sample, int) or noise.window_shape is not None:
        raise TypeError("noise: torch.compile takes a Noise with one sample number and no window, or a tensor")
    return [noise.seed >> 32, noise.seed & 0xFFFFFFFF, noise.sample, noise.step, noise.stream]


def _noise(words: Sequence[int]) -> nf.Noise | None:
    if not words:
        return None
    high, low, sample, step, stream = words
    return nf.Noise(high << 32 | low, sample=sample, step=step, stream=stream)


def _copied(result: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return result
    if out.shape != result.shape or out.dtype != result.dtype:
        raise ValueError(f"out: expected {result.dtype} of shape {tuple(result.shape)}, got {out.dtype} {out.shape}")
    out.copy_(result)
    return out


# ---- losses ------------------------------------------------------------------------------------------------

from .torch_loss import mse_loss, mse_loss_grad  # noqa: E402, F401  (it needs what stands above)
