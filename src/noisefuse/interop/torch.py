# SPDX-License-Identifier: Apache-2.0
"""torch tensors in, torch tensors out, without a copy: what `ops` does not do at once with tensors comes here.

Tensors of the CPU are shown to the library as NumPy arrays of the same memory, and its results as tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import noisefuse as nf

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.uint8: "uint8",
}


# ---- operations --------------------------------------------------------------------------------------------
# Their arguments are those of the functions of the same names; `ops` comes here where x, `out` or dtype is torch's.


def randn(shape: Any, noise: Any, *, dtype: Any, batched: bool, out: Any) -> Any:
    return _back(nf.randn(shape, noise, dtype=_dtype(dtype), batched=batched, out=_output("out", out)), out)


def uniform(shape: Any, noise: Any, *, dtype: Any, batched: bool, out: Any) -> Any:
    return _back(nf.uniform(shape, noise, dtype=_dtype(dtype), batched=batched, out=_output("out", out)), out)


def q_sample(
    x0: Any, t: Any, schedule: Any, noise: Any, *,
    target: Any, scale: Any, offset: Any, dtype: Any, batched: bool, out: Any, target_out: Any,
) -> Any:  # fmt: skip
    result: Any = nf.q_sample(
        _input("x0", x0),
        _index("t", t),
        schedule,
        _noise(noise),
        target=target,
        scale=scale,
        offset=offset,
        dtype=None if dtype is None else _dtype(dtype),
        batched=batched,
        out=_output("out", out),
        target_out=_output("target_out", target_out),
    )
    if target is None:
        return _back(result, out)
    return _back(result[0], out), _back(result[1], target_out)


def q_step(x: Any, t: Any, schedule: Any, noise: Any, *, batched: bool, out: Any) -> Any:
    given = _input("x", x), _index("t", t), schedule, _noise(noise)
    return _back(nf.q_step(*given, batched=batched, out=_output("out", out)), out)


def q_walk(x0: Any, schedule: Any, noise: Any, *, keep: Any, batched: bool, out: Any) -> Any:
    given = _input("x0", x0), schedule, _noise(noise)
    return _back(nf.q_walk(*given, keep=keep, batched=batched, out=_output("out", out)), out)


def update(
    table: Any, i: Any, x: Any, model_output: Any, *, past: Any, noise: Any, out: Any, aux_out: Any
) -> Any:  # fmt: skip
    models = model_output if isinstance(model_output, tuple) else (model_output,)
    shown = tuple(None if m is None else _input(f"m{n + 1}", m) for n, m in enumerate(models))
    result = nf.update(
        table,
        _index("i", i),
        _input("x", x),
        shown,
        past=[_input(f"past{n + 1}", p) for n, p in enumerate(past)],
        noise=_noise(noise),
        out=_output("out", out),
        aux_out=[_output(f"aux_out[{n}]", a) for n, a in enumerate(aux_out)],
    )
    return _back(result, out)


# ---- tensors as arrays -------------------------------------------------------------------------------------


def _input(name: str, x: object) -> Any:
    """The memory of a tensor that is read; lazily negated ones are copied."""
    tensor = _tensor(name, x)
    if tensor.requires_grad and torch.is_grad_enabled():
        raise TypeError(f"{name}: requires grad, which is not supported yet; pass {name}.detach()")
    return _view(name, tensor.detach().resolve_conj().resolve_neg())


def _output(name: str, out: object) -> Any:
    """The memory of a tensor that is written; autograd is told."""
    if out is None:
        return None
    tensor = _tensor(name, out)
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: requires grad, and autograd would not see what is written: use torch.no_grad()")
    if tensor.is_neg() or tensor.is_conj():
        raise ValueError(f"{name}: expected a tensor that is its memory, got a negated or conjugate view")
    array = _view(name, tensor.detach())
    torch.autograd.graph.increment_version(tensor)
    return array


def _tensor(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, as the other arguments are, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_quantized:
        raise TypeError(f"{name}: expected a dense tensor, got {'a quantised' if x.is_quantized else x.layout} one")
    if x.device.type != "cpu":
        raise NotImplementedError(f"{name}: expected a tensor on the CPU, got one on {x.device}")
    return x


def _view(name: str, tensor: Tensor) -> Any:
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name}: dtype {tensor.dtype} is not supported, expected one of {', '.join(DTYPES.values())}")
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    return tensor.view(torch.int16).numpy().view(_bfloat16())


def _back(result: Any, out: Any) -> Any:
    """The result as a tensor: the caller's `out`, or a new one of the result's memory."""
    if out is not None:
        return out
    if result.dtype.name == "bfloat16":
        return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(result)


def _bfloat16() -> Any:
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError("bfloat16 needs ml_dtypes here: pip install 'noisefuse[torch]'") from None
    return ml_dtypes.bfloat16


# ---- other arguments ---------------------------------------------------------------------------------------


def _dtype(dtype: Any) -> Any:
    return DTYPES.get(dtype, dtype) if isinstance(dtype, torch.dtype) else dtype


def _index(name: str, t: Any) -> Any:
    if not isinstance(t, Tensor):
        return t
    if t.device.type != "cpu":
        raise NotImplementedError(f"{name}: expected a tensor on the CPU, got one on {t.device}")
    return t.detach().numpy()


def _noise(noise: Any) -> Any:
    return _input("noise", noise) if isinstance(noise, Tensor) else noise


__all__: Sequence[str] = ["q_sample", "q_step", "q_walk", "randn", "uniform", "update"]
