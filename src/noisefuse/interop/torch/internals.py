# SPDX-License-Identifier: Apache-2.0
"""The uses of torch's internals, and of interfaces that it may still change, by the modules beside this one. No other
Python module uses any. (The fast path's uses are in csrc/python/torch.h.) Tested with torch 2.5 and 2.8 (no graphs),
2.10 to 2.13 and 2.15.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from operator import attrgetter
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

from ...ground.constants import Constant

# Whether a compiler or exporter traces. Fast paths ask the second function: it is quicker, and enough, because they
# decline fake tensors of other tracers than Dynamo.
is_compiling: Callable[[], bool] = torch.compiler.is_compiling
is_traced: Callable[[], bool] = torch.compiler.is_dynamo_compiling


def _generated() -> Iterator[FunctionType]:
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] == "noisefuse":
            classes = [kind for kind in vars(module).values() if isinstance(kind, type)]
            for function in (value for kind in classes for value in vars(kind).values()):
                if isinstance(function, FunctionType) and function.__code__.co_filename == "<string>":
                    yield function


# An older Dynamo cannot trace the library, and raises (2.8 in SourcelessBuilder.create, at the types.UnionType of
# isinstance(x, list | tuple)). Here it learns to skip the whole library: graphs break there (fullgraph=True refuses
# them, and names the library's files), and the code between is compiled.
# Those versions will not change any more, so these uses of their internals stay right.
FOLLOWED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
if not FOLLOWED:
    import torch._dynamo.decorators
    import torch._dynamo.trace_rules

    torch._dynamo.trace_rules.add("noisefuse")
    for _function in _generated():  # made by dataclass, without a file
        torch._dynamo.decorators.skip(_function)

_REASON = {
    "reason": "no graph can have this call of noisefuse: one whose noise has several names, ids or a window, or "
    "another of those that docs/torch.md lists"
}

untraced: Callable[..., Any]
constant: Callable[..., Any]


def _untraced(function: Any, *arguments: Any, **options: Any) -> Any:
    """Calls a function that torch.compile cannot trace: the graph breaks, or fullgraph=True refuses it."""
    return function(*arguments, **options)


def _constant(function: Any, table: Constant, *arguments: Any) -> Any:
    """Calls a function while Dynamo traces. The result is a constant of the graph."""
    return table._given_to(function, *arguments)


def __getattr__(name: str) -> Any:
    """Tells Dynamo of these two when it traces the first: to tell it imports it, and 900 modules with sympy's."""
    if name == "untraced":
        value: Any = torch.compiler.disable(_untraced, **(_REASON if FOLLOWED else {}))
    elif name == "constant":
        torch.compiler.assume_constant_result(Constant._given_to)
        value = _constant
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def operator(schema: str) -> Any:
    """Makes a function an operator of graphs. The schema is torch's: SymInt, which Python's types cannot express, lets
    a row or a seed change without compiling anew."""
    name, _, arguments = schema.partition("(")
    return torch.library.custom_op(f"noisefuse::{name}", mutates_args=(), schema=f"({arguments}")


def is_dual(tensor: Tensor) -> bool:
    """Tells whether the tensor has a tangent of forward-mode differentiation."""
    return unpack_dual(tensor).tangent is not None


def written(tensor: Tensor) -> None:
    """Tells autograd that the tensor was written to."""
    torch.autograd.graph.increment_version(tensor)


writes: Callable[[Tensor], int] = attrgetter("_version")  # the number of writes to it


def version(*tensors: Tensor) -> int | None:
    """A number that changes when one tensor is written to; None for tensors of torch.inference_mode, which keep no
    count."""
    return None if any(map(torch.is_inference, tensors)) else sum(map(writes, tensors))
