# SPDX-License-Identifier: Apache-2.0
"""spec.py compiled by Numba: functions of scalars for kernels on a CPU and, from the same code, in numba.cuda."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from .. import spec
from .internals import has_fma

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from numba.core.dispatcher import Dispatcher

    F = TypeVar("F", bound=Callable[..., object])


def call_named(builder: Any, name: str, returned: Any, *arguments: Any) -> Any:
    """Calls the LLVM function `name`."""
    kind, known = ir.FunctionType(returned, [a.type for a in arguments]), builder.module.globals
    return builder.call(known.get(name) or ir.Function(builder.module, kind, name), arguments)


def _on_gpu(builder: Any) -> bool:
    return str(builder.module.triple).startswith("nvptx")


def _real(name: str, *arguments: Any) -> Any:
    """Returns the common type, float32 or float64. TypingError: there is none."""
    kinds = [types.unliteral(a) for a in arguments]
    if kinds[0] not in (types.float32, types.float64) or len({*kinds}) > 1:
        given = ", ".join(map(str, kinds))
        raise TypingError(f"{name}: expected arguments of one type, float32 or float64, got {given}")
    return kinds[0]


@intrinsic
def fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """Returns a b + c, rounded once.

    Args:
        a, b, c: all float32, or all float64.

    Returns:
        A number of that type.

    Raises:
        numba.core.errors.TypingError: other types, while a kernel is compiled.

    >>> import numba, noisefuse.numba as nfn
    >>> numba.njit(lambda a, b, c: nfn.fma(a, b, c))(0.1, 10.0, -1.0)
    5.551115123125783e-17
    """
    real = _real("fma", a, b, c)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not _on_gpu(builder) and not has_fma(context):  # LLVM vectorises the call all the same
            return call_named(builder, "fmaf" if real == types.float32 else "fma", arguments[0].type, *arguments)
        return builder.fma(*arguments)

    return real(a, b, c), codegen


@intrinsic
def mul(_: Any, a: Any, b: Any) -> Any:
    """Returns a b, rounded. CPU compilers fuse only on request; GPU compilers fuse other products, but not this one.

    Args:
        a, b: both float32, or both float64.

    Returns:
        A number of that type.

    Raises:
        numba.core.errors.TypingError: other types, while a kernel is compiled.

    >>> import numba, noisefuse.numba as nfn
    >>> numba.njit(lambda a, b: nfn.mul(a, b))(0.1, 3.0)
    0.30000000000000004
    """
    real = _real("mul", a, b)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not _on_gpu(builder):
            return builder.fmul(*arguments)
        suffix = "f" if real == types.float32 else "d"
        return call_named(builder, f"llvm.nvvm.mul.rn.{suffix}", arguments[0].type, *arguments)

    return real(a, b), codegen


@intrinsic
def sqrt(_: Any, a: Any) -> Any:
    """Returns the correctly rounded root, even if the GPU's own instruction does not."""
    real = _real("sqrt", a)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        suffix = "f" if real == types.float32 else "d"
        width = "f32" if real == types.float32 else "f64"
        name = f"llvm.nvvm.sqrt.rn.{suffix}" if _on_gpu(builder) else f"llvm.sqrt.{width}"
        return call_named(builder, name, arguments[0].type, *arguments)

    return real(a), codegen


@intrinsic
def select(_: Any, condition: Any, a: Any, b: Any) -> Any:
    """Returns a if the condition holds, else b, without a branch."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return types.unliteral(a)(types.boolean, types.unliteral(a), types.unliteral(a)), codegen


@intrinsic
def view(_: Any, x: Any, kind: Any) -> Any:
    """Returns the same bits as another type."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return kind.dtype(x, kind), codegen


OPTIONS: dict[str, Any] = {
    "forceinline": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True
}  # fmt: skip


def inlined(function: F) -> Dispatcher[F]:
    """Compiles a function for kernels: LLVM inlines it, and no entry points for Python or C are compiled."""
    made: Dispatcher[F] = njit(**OPTIONS)(function)
    return made


def pasted(function: F) -> Dispatcher[F]:
    """Compiles a function whose IR Numba itself inlines. Users' functions need it, because it works for any target, and
    numba.cuda compiles it without a GPU. In large kernels inlining takes long, so there it is for functions with one
    caller: LLVM then compiles them once."""
    made: Dispatcher[F] = njit(inline="always", error_model="numpy")(function)
    return made


SPEC = spec.bind(fma, select, inlined, mul=mul, sqrt=sqrt, view=view, some=bool)
USER = spec.bind(fma, select, pasted, mul=mul, sqrt=sqrt, view=view, some=bool)
