# SPDX-License-Identifier: Apache-2.0
"""Parts of Numba and llvmlite that may change: tested with Numba 0.62.0 and 0.68.1 (llvmlite 0.45.1 and 0.50.0).

They make loops with two hints for LLVM that Numba does not offer: iterations are independent, and how many interleave.
"""

from __future__ import annotations

import warnings
from typing import Any

from llvmlite import ir
from llvmlite.ir.values import MDValue
from numba import __version__, types, version_info
from numba.core import cgutils
from numba.extending import intrinsic

TESTED = (0, 62), (0, 69)  # from this version and below that one, as pyproject.toml declares it
if not TESTED[0] <= version_info.short < TESTED[1]:
    warnings.warn(
        "Numba {} is not tested with noisefuse: expected {}.{} or newer, and below {}.{}".format(
            __version__, *TESTED[0], *TESTED[1]
        ),
        RuntimeWarning,
        stacklevel=2,
    )

# vectors in flight at a time. A normal is a chain of some hundred cycles, longer than a processor looks ahead.
INTERLEAVED = 4


def has_fma(context: Any) -> bool:
    """Tells whether code for this target has the fma instruction; without it an fma calls the C library."""
    triple, _, features = context.codegen().magic_tuple()
    return not triple.startswith("x86_64") or "+fma" in features.split(",")


def _use_whole_vectors(builder: Any) -> None:
    """Makes the function use vectors as wide as the processor's. For some Intel processors LLVM uses half of them,
    because full vectors lower the clock; but they do not halve it."""
    # this bypasses llvmlite's own `add`, which knows no attributes with values
    set.add(builder.function.attributes, '"prefer-vector-width"="512"')


@intrinsic
def whole_vectors(_: Any) -> Any:
    """Marks a function that has none of the loops below but calls functions with them: their code becomes part of
    it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _use_whole_vectors(builder)
        return context.get_dummy_value()

    return types.void(), codegen


class _Distinct(MDValue):  # type: ignore[misc]
    """A metadata node that is equal to no other."""

    def __init__(self, module: Any, *operands: Any) -> None:
        super().__init__(module, operands, name=str(len(module.metadata)))

    def descr(self, buf: Any) -> None:
        buf += ("distinct ",)
        super().descr(buf)


def _hints(module: Any, group: _Distinct) -> _Distinct:
    """Returns LLVM's ID of a loop; its first operand is itself."""

    def hint(name: str, *values: Any) -> Any:
        return module.add_metadata([ir.MetaDataString(module, f"llvm.loop.{name}"), *values])

    hints = _Distinct(module)
    hints.operands = (
        hints,
        hint("interleave.count", ir.IntType(32)(INTERLEAVED)),
        hint("unroll.disable"),
        _Distinct(module, ir.MetaDataString(module, "llvm.loop.parallel_accesses"), group),
    )
    return hints


@intrinsic
def each(context: Any, n: Any, function: Any, arguments: Any) -> Any:
    """Calls function(i, *arguments) for i in range(n); the iterations may run side by side.

    A written array may be a read one, element for element. If LLVM has to prove that itself, it compiles a second,
    scalar loop, which also runs if the two are one.
    """
    body = function.get_call_type(context, (types.int64, *arguments.types), {})

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _use_whole_vectors(builder)
        group = _Distinct(builder.module)
        operands = cgutils.unpack_tuple(builder, values[2])
        with cgutils.for_range(builder, values[0]) as loop:
            block = builder.block
            context.get_function(function, body)(builder, (loop.index, *operands))
            for instruction in block.instructions:  # inlined instructions of a call carry its group
                if instruction.opname == "call":
                    instruction.set_metadata("llvm.access.group", group)
        _, last = loop.index.incomings[-1]
        last.terminator.set_metadata("llvm.loop", _hints(builder.module, group))
        return context.get_dummy_value()

    return types.void(types.int64, function, arguments), codegen
