# SPDX-License-Identifier: Apache-2.0
"""The noise of elements in Triton: what `noisefuse.triton` shows."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import triton
import triton.language as tl  # noqa: F401 - the interpreter looks for it beside functions

from ...ground.docstrings import ARGS_OF_ELEMENT, Shared, completed
from .device import block_words, fours, ones, place

if not isinstance(place, triton.JITFunction) and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
    raise ImportError(
        f"Triton {triton.__version__} interprets tl.fma with two roundings, which gives other bits: compile, or "
        "interpret with Triton 3.9"
    )

_SHARED = Shared(args=ARGS_OF_ELEMENT)
_EXAMPLE = """\
>>> @triton.jit
... def draw(out, seed, BLOCK: tl.constexpr):
...     i = tl.arange(0, BLOCK)
...     tl.store(out + i, {name}(seed, 0, 0, i))
>>> out = torch.empty(1, 32, dtype=torch.{dtype})
>>> draw[(1,)](out, 7, BLOCK=32)
>>> torch.equal(out, nf.{like}((1, 32), nf.Noise(7), dtype=out.dtype))
True"""


def _public(function: Callable[..., Any]) -> Any:
    """Returns the function for kernels, with a whole docstring."""
    made: Any = triton.jit(function)
    if function.__doc__ is not None:  # python -OO
        name = function.__name__
        dtype, like = "float64" if "64" in name else "float32", "randn" if "normal" in name else "uniform"
        example = _EXAMPLE.format(name=name, dtype=dtype, like=like)
        made.__doc__ = completed(function.__doc__, signature(function).parameters, _SHARED, example)
    return made


@_public
def words(seed, sample, step, element, stream=0):
    """The four words of the generator's block that has this element, for draws of your own.

    Returns:
        Four uint32, those of `noisefuse.philox4x32`. The element's own word is the one of number element & 3.

    >>> @triton.jit
    ... def coin(out, seed, BLOCK: tl.constexpr):
    ...     i = tl.arange(0, BLOCK)
    ...     first, _, _, _ = words(seed, 0, 0, 4 * i)
    ...     tl.store(out + i, first >> 31)
    >>> out = torch.empty(8, dtype=torch.int32)
    >>> coin[(1,)](out, 7, BLOCK=8)
    >>> out.tolist()
    [1, 0, 0, 0, 0, 0, 1, 0]
    """
    block, _, _ = place(element)
    return block_words(seed, sample, step, block, stream, 0)


@_public
def normal4(seed, sample, step, block, stream=0):
    """The standard normals of elements 4 block .. 4 block + 3, from one call of the generator.

    Box & Muller (1958); radius within 2.5 ulp, cos and sin within 2^-22, never 0, |z| <= 6.77.

    Args:
        block: element // 4, in [0, 2^32).

    Returns:
        Four float32.

    >>> @triton.jit
    ... def draw(out, seed, BLOCK: tl.constexpr):
    ...     z0, z1, z2, z3 = normal4(seed, 0, 0, tl.arange(0, BLOCK))
    ...     z = tl.join(tl.join(z0, z2), tl.join(z1, z3)).reshape(4 * BLOCK)
    ...     tl.store(out + tl.arange(0, 4 * BLOCK), z)
    >>> out = torch.empty(1, 32)
    >>> draw[(1,)](out, 7, BLOCK=8)
    >>> torch.equal(out, nf.randn((1, 32), nf.Noise(7), dtype=torch.float32))
    True
    """
    return fours(seed, sample, step, block, stream, "normal", False)


@_public
def normal(seed, sample, step, element, stream=0):
    """The standard normal of each element. (`normal4` says how exact they are. It computes four at the same cost; so
    does this where a thread's elements are the four of a block, as those of `tl.arange` are.)

    Returns:
        float32, those of `noisefuse.randn`. In float16 and bfloat16 noisefuse rounds them once, as `.to` does.
    """
    return ones(seed, sample, step, element, stream, "normal", False)


@_public
def normal64(seed, sample, step, element, stream=0):
    """The field of `normal` with more digits; |z| <= 9.5.

    Returns:
        float64, those of `noisefuse.randn` with dtype="float64".
    """
    return ones(seed, sample, step, element, stream, "normal", True)


@_public
def uniform(seed, sample, step, element, stream=7):
    """Uniform numbers in (0, 1), never 0 or 1.

    Returns:
        float32, those of `noisefuse.uniform`, whose stream is 7.
    """
    return ones(seed, sample, step, element, stream, "uniform", False)


@_public
def uniform64(seed, sample, step, element, stream=7):
    """The field of `uniform` with 52 bits.

    Returns:
        float64, those of `noisefuse.uniform` with dtype="float64".
    """
    return ones(seed, sample, step, element, stream, "uniform", True)
