# SPDX-License-Identifier: Apache-2.0
"""Copies of diffusers' schedulers for experiments, and of its classes in float64.

A class is rebuilt from diffusers' own functions, with globals in which torch's and NumPy's float32 is float64. So
"exact" coefficients come from diffusers' formulas. Tested with diffusers 0.35, 0.38 and 0.42.
"""

from __future__ import annotations

import copy
import inspect
import sys
from functools import lru_cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Wide:
    """torch or numpy with float64 in place of float32, by name and by default, and with other functions."""

    module: Any
    float32: Any

    def __init__(self, module: Any, **functions: Any) -> None:
        self.module, self.float32 = module, module.float64
        vars(self).update(functions)

    def linspace(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.linspace(*args, **{"dtype": self.float32, **kwargs})

    def tensor(self, data: Any, **kwargs: Any) -> Any:
        tensor = self.module.tensor(data, **kwargs)
        return self.module.tensor(data, dtype=self.float32) if tensor.dtype is torch.float32 and not kwargs else tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def rebound(function: Any, space: dict[str, Any]) -> Any:
    """Returns the same function with other globals."""
    new = FunctionType(function.__code__, space, function.__name__, function.__defaults__, function.__closure__)
    new.__kwdefaults__ = function.__kwdefaults__
    return new


@lru_cache
def _widened(base: type) -> tuple[type, dict[str, Any]]:
    """Returns diffusers' class, and its module's globals, with float64 for every float32."""
    module = vars(sys.modules[base.__module__])
    space = {**module, "torch": Wide(torch), "np": Wide(np)}
    for name, value in module.items():
        if isinstance(value, FunctionType) and value.__module__ == base.__module__:
            space[name] = rebound(value, space)
    body = {name: value for name, value in vars(base).items() if name not in ("__dict__", "__weakref__")}
    for name, value in body.items():
        if isinstance(value, FunctionType):
            body[name] = rebound(inspect.unwrap(value), space)
    return type(base)(base.__name__, base.__bases__, body), space


def shadow_of(scheduler: Any, base: type, exact: bool) -> tuple[Any, dict[str, Any]]:
    """Returns a copy of the scheduler, of diffusers' class, on the CPU. An exact one is computed anew, in float64."""
    if exact:
        kind, space = _widened(base)
        shadow = _exact(scheduler, base, kind)
    else:
        kind, space = base, vars(sys.modules[base.__module__])
        shadow = copy.copy(scheduler)
        shadow.__class__ = kind
    for name, value in vars(shadow).items():
        if isinstance(value, Tensor | list):
            setattr(shadow, name, value.cpu() if isinstance(value, Tensor) else [*value])
    return shadow, space


def _exact(scheduler: Any, base: type, kind: type) -> Any:
    """Computes the scheduler anew in float64. Values that differ from diffusers' were set by the user, and stay."""
    shadow, usual = (_anew(scheduler, each) for each in (kind, base))
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor | np.ndarray) and getattr(shadow, name, None) is not None:
            value = torch.as_tensor(value).cpu()
            if np.array_equal(value, torch.as_tensor(getattr(usual, name)).cpu(), equal_nan=True):  # level 0 has NaN
                continue
            value = value.double() if value.is_floating_point() else value
        setattr(shadow, name, value)
    shadow.timesteps = scheduler.timesteps
    return shadow


def _anew(scheduler: Any, kind: Any) -> Any:
    """Makes a scheduler of this class with this one's arguments."""
    new = object.__new__(kind)
    new._internal_dict = scheduler.config
    parameters = [*inspect.signature(kind.__init__).parameters.values()][1:]
    names = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    inspect.unwrap(kind.__init__)(new, **{name: scheduler.config[name] for name in names})
    args, kwargs = scheduler._replay
    if args or kwargs:
        arguments = inspect.signature(kind.set_timesteps).bind(new, *args, **kwargs).arguments
        kind.set_timesteps(**{name: value for name, value in arguments.items() if name != "device"})
    elif scheduler.coefficients == "exact" and getattr(scheduler, "num_inference_steps", None) is not None:
        raise RuntimeError("exact coefficients need to see how the timesteps were made: call set_timesteps again")
    return new
