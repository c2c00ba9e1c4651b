# SPDX-License-Identifier: Apache-2.0
"""What the modules beside this one ask of torch's internals, or of interfaces that it may still change: nothing of the
kind stands elsewhere in Python. (What the fast path asks for is in csrc/arrays.h.) Tested with torch 2.5 and 2.11 (no
graphs), 2.12, 2.13 and 2.15.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

# Whether a compiler or exporter traces. What fast paths ask is the second: quicker, and enough, as they decline the
# fake tensors of others than Dynamo.
is_compiling: Callable[[], bool] = torch.compiler.is_compiling
is_traced: Callable[[], bool] = torch.compiler.is_dynamo_compiling


def _generated() -> Iterator[FunctionType]:
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] == "noisefuse":
            classes = [kind for kind in vars(module).values() if isinstance(kind, type)]
            for function in (value for kind in classes for value in vars(kind).values()):
                if isinstance(function, FunctionType) and function.__code__.co_filename == "<string>":
                    yield function


# An older Dynamo takes no Schedule for a constant of a graph, and raises. It learns to leave all of the library alone:
# there graphs break (with fullgraph=True they are refused, and the library's files named), and what is between them is
# compiled. Those versions will not change any more, so what is asked of their internals stays right.
FOLLOWED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)
if not FOLLOWED:
    import torch._dynamo.decorators
    import torch._dynamo.trace_rules

    torch._dynamo.trace_rules.add("noisefuse")
    for _function in _generated():  # by dataclass: code of no file
        torch._dynamo.decorators.skip(_function)

# A function that Dynamo calls while it traces. The result is a constant of the graph.
constant_of_graph: Any = torch.compiler.assume_constant_result


_REASON = {
    "reason": "no graph can have this call of noisefuse: one whose noise has several names, ids or a window, or "
    "another of those that docs/torch.md lists"
}


@torch.compiler.disable(**(_REASON if FOLLOWED else {}))  # type: ignore[untyped-decorator, no-untyped-call]
def untraced(function: Any, *arguments: Any, **options: Any) -> Any:
    """What torch.compile cannot follow: there the graph breaks, or, with fullgraph=True, is refused."""
    return function(*arguments, **options)


def operator(schema: str) -> Any:
    """Makes a function an operator of graphs. The schema is torch's: with what Python's types cannot say, SymInt, a row
    or a seed that changes compiles nothing anew."""
    name, _, arguments = schema.partition("(")
    return torch.library.custom_op(f"noisefuse::{name}", mutates_args=(), schema=f"({arguments}")


class _AsGiven(inspect.Signature):
    """A signature that binds all arguments by their places, without a look at its parameters."""

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        return _Bound(args)


class _Bound:
    kwargs: Mapping[str, Any] = {}

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args

    def apply_defaults(self) -> None:
        """There are none."""


def forward(function: Any) -> Any:
    """Of an autograd.Function, which is called without names. torch looks for its signature and binds the arguments at
    every call, which takes 10 us where it is not kept, and a third of the time of a small call where it looks."""
    function.__signature__ = _AsGiven([*inspect.signature(function).parameters.values()])
    return function


def is_dual(tensor: Tensor) -> bool:
    """Whether it has a tangent of forward-mode differentiation."""
    return unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def written(tensor: Tensor) -> None:
    """Autograd learns that it was written to."""
    torch.autograd.graph.increment_version(tensor)


writes: Callable[[Tensor], int] = attrgetter("_version")  # how often it was written to


def version(*tensors: Tensor) -> int | None:
    """A number that changes when one is written to; None for those of torch.inference_mode, which keep no count."""
    return None if any(map(torch.is_inference, tensors)) else sum(map(writes, tensors))
