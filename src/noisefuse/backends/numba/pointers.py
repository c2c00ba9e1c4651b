# SPDX-License-Identifier: Apache-2.0
"""Pointers for kernels that Numba compiles, and a few instructions that it does not offer."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .device import call_named

INT32: ir.IntType = ir.IntType(32)
INT64: ir.IntType = ir.IntType(64)


@intrinsic
def pointer(_: Any, where: Any, kind: Any) -> Any:
    """Returns a pointer to a type, or to another pointer's type, at an address or at another pointer's place."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        convert = builder.bitcast if isinstance(where, types.CPointer) else builder.inttoptr
        return convert(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(where, kind), codegen


@intrinsic
def address(_: Any, array: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], INT64)

    return types.int64(array), codegen


@intrinsic
def part(_: Any, array: Any, n: Any) -> Any:
    """Returns the array from its element n on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return array(array, types.int64), codegen


@intrinsic
def take(_: Any, counter: Any, n: Any) -> Any:
    """Adds n to this int64 in one atomic step, and returns its previous value."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", *arguments, "monotonic")

    return types.int64(types.CPointer(types.int64), types.int64), codegen


@intrinsic
def prefetch(_: Any, address: Any) -> Any:
    """Prefetches the cache line at this address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        call_named(builder, "llvm.prefetch.p0", ir.VoidType(), where, INT32(0), INT32(3), INT32(1))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def least(_: Any, a: Any, b: Any) -> Any:
    """Returns the smaller number."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.icmp_signed("<", *arguments), *arguments)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def float_mode(_: Any, wanted: Any) -> Any:
    """Sets the floating-point mode of this thread, and returns the previous one."""

    def x86(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        slot = builder.alloca(INT32)
        address = builder.bitcast(slot, ir.IntType(8).as_pointer())
        call_named(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), address)
        before = builder.zext(builder.load(slot), INT64)
        builder.store(builder.trunc(arguments[0], INT32), slot)
        call_named(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), address)
        return before

    def arm(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        before = call_named(builder, "llvm.aarch64.get.fpcr", INT64)
        call_named(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), arguments[0])
        return before

    def none(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0]

    return types.int64(types.int64), x86 if X86 else arm if ARM else none


X86, ARM = platform.machine() in ("x86_64", "AMD64"), platform.machine() in ("aarch64", "arm64")
NEAREST = 0x1F80 if X86 else 0  # it keeps subnormal numbers and raises no exception
