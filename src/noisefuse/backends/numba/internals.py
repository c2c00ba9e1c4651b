# SPDX-License-Identifier: Apache-2.0
"""What Numba and llvmlite do not promise to keep: tested with Numba 0.62.0 and 0.68.1 (llvmlite 0.45.1 and 0.50.0).

Loops that say to LLVM what Numba's own cannot: that their iterations are independent, and how many to interleave.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from llvmlite.ir.values import MDValue
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Vectors in flight at a time. A normal is one chain of some hundred cycles, longer than a processor looks ahead.
INTERLEAVED = 4


def has_fma(context: Any) -> bool:
    """Whether code for this target has the instruction; without it an fma is a call of C's library."""
    triple, _, features = context.codegen().magic_tuple()
    return not triple.startswith("x86_64") or "+fma" in features.split(",")


def _use_whole_vectors(builder: Any) -> None:
    """The function uses vectors as wide as the processor's: for some of Intel's LLVM takes half of them, as their clock
    gets slower where all are in use. So it does, but not by half."""
    # past llvmlite's own `add`, which knows no attributes with values
    set.add(builder.function.attributes, '"prefer-vector-width"="512"')


@intrinsic
def whole_vectors(_: Any) -> Any:
    """Said by a function that has none of the loops below, but calls those that have: their code becomes its own."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _use_whole_vectors(builder)
        return context.get_dummy_value()

    return types.void(), codegen


class _Distinct(MDValue):  # type: ignore[misc]
    """A node of metadata that is equal to no other one."""

    def __init__(self, module: Any, *operands: Any) -> None:
        super().__init__(module, operands, name=str(len(module.metadata)))

    def descr(self, buf: Any) -> None:
        buf += ("distinct ",)
        super().descr(buf)


def _hints(module: Any, group: _Distinct) -> _Distinct:
    """What LLVM calls a loop's ID; its first operand is itself."""

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
    """function(i, *arguments) for i in range(n), which may run side by side.

    An array that is written may be one that is read, element for element: where LLVM has to see that for itself it
    compiles a second loop, of scalars, which also runs where the two are one.
    """
    body = function.get_call_type(context, (types.int64, *arguments.types), {})

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _use_whole_vectors(builder)
        group = _Distinct(builder.module)
        operands = cgutils.unpack_tuple(builder, values[2])
        with cgutils.for_range(builder, values[0]) as loop:
            block = builder.block
            context.get_function(function, body)(builder, (loop.index, *operands))
            for instruction in block.instructions:  # what is inlined from a call takes its group along
                if instruction.opname == "call":
                    instruction.set_metadata("llvm.access.group", group)
        _, last = loop.index.incomings[-1]
        last.terminator.set_metadata("llvm.loop", _hints(builder.module, group))
        return context.get_dummy_value()

    return types.void(types.int64, function, arguments), codegen
