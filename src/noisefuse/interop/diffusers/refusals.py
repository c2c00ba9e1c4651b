# SPDX-License-Identifier: Apache-2.0
"""Why diffusers' own methods do a call, and the line in the log that says so."""

from __future__ import annotations

import functools
import logging
import sys
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ...language.levels import FLOATS

logger: logging.Logger = logging.getLogger(__package__)
said: set[str] = set()
_unpatched: dict[Any, dict[str, Any]] = {}  # diffusers' classes, as they were when nothing was replaced
SCHEDULERS: dict[type, Any] = {}  # our classes by diffusers' classes
_REPLACEABLE = {"step", "add_noise", "scale_noise", "set_timesteps", "scale_model_input"}  # rows do not use them
_FLOATS = {getattr(torch, name) for name in FLOATS}
GRAD = "for tensors that require grad"


def tell(scheduler: Any, method: str, reason: str | None) -> None:
    """Logs once why diffusers' own method is used."""
    if reason and (line := f"{type(scheduler).__name__}: diffusers' own {method} is used {reason}") not in said:
        said.add(line)
        logger.warning(line)


def is_replaced(base: Any, method: Any) -> bool:
    """Tells whether a method of diffusers' class is another program's."""
    return getattr(method, "__globals__", None) is not vars(sys.modules[base.__module__])


def patched(scheduler: Any, *unused: str) -> str | None:
    """Returns the reason if another program has replaced a method of diffusers' class, but for unused ones: it
    reads names that a trace does not have, and expects to be called at each step."""
    base = scheduler._base
    key = base, scheduler.coefficients, unused
    if _unpatched.get(key) == vars(base):  # a tenth of the time of a first step
        return None
    methods = dict(vars(base))
    if scheduler.coefficients != "exact":  # these are called as they are
        unused = *unused, "set_timesteps", "scale_model_input"
    for name, method in methods.items():
        is_method = isinstance(method, FunctionType) and not name.startswith("__")
        if (is_method or name == "step") and name not in unused and is_replaced(base, method):
            return f"because another program has replaced its {name}"
    _unpatched[key] = methods
    return None


@functools.cache
def replaced(kind: Any) -> str | None:
    """Returns the name of a diffusers method that a class derived from ours replaces: rows would not know of it."""
    before_ours = kind.__mro__[: kind.__mro__.index(SCHEDULERS[kind._base])]
    names = {name for base in before_ours for name in vars(base) if not name.startswith("__")} - _REPLACEABLE
    return min((name for name in names if callable(getattr(kind._base, name, None))), default=None)


def without_kernel(x: Tensor) -> str | None:
    """Returns why no kernel can run on x, or None."""
    if x.dtype not in _FLOATS or not (x.is_cpu or x.is_cuda):
        return f"for tensors of {x.dtype} on {x.device.type}"
    try:
        x.data_ptr()
    except RuntimeError:  # for instance in torch.func.vmap
        return "for tensors without memory of their own"
    return None


def one_at_many_times(x0: Tensor, t: Any) -> str | None:
    """Returns the reason to let diffusers expand a batch of one, or None."""
    expanded = isinstance(t, Tensor) and t.dim() == 1 and len(t) > 1 and x0.dim() > 0 and len(x0) == 1
    return "for one sample at many times" if expanded else None


def unlike(x0: Tensor, noise: Tensor) -> str | None:
    """Returns why diffusers adds this noise, or None."""
    if (x0.requires_grad or noise.requires_grad) and torch.is_grad_enabled():
        return GRAD
    if noise.dtype is not x0.dtype:
        return f"for {x0.dtype} samples and {noise.dtype} noise"
    return "for noise of another shape than the samples'" if noise.shape != x0.shape else None
