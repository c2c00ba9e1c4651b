# SPDX-License-Identifier: Apache-2.0
"""A Noise as a pytree of JAX: its seed, sample and step are leaves, its stream and window belong to the program.

JAX's numbers have 32 bits by default, so a seed and an id are pairs of words, the low one first. This module is small,
because it is loaded as soon as a Noise is made where JAX is loaded.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..ground.checks import Unknown, is_tracer
from ..language.noise import SAMPLES, Noise, made_of

_NAMES = "seed", "sample", "step"


class Wide(Unknown):
    """A seed, an id or an array of ids in a program: uint64, of which JAX holds `words`, uint32 (.., 2).

    Integers, traced ones too, may be added to it, modulo 2^64. In a Noise that JAX made of other leaves than numbers
    `words` is such a leaf."""

    __slots__ = ("words",)
    __array_ufunc__ = None  # NumPy's integers leave the sum to it
    words: Any
    dtype: np.dtype[np.uint64] = np.dtype(np.uint64)

    def __init__(self, words: Any) -> None:
        self.words = words

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(getattr(self.words, "shape", ())[:-1])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __add__(self, other: Any) -> Wide:
        if not isinstance(other, int) and getattr(other, "dtype", np.dtype(float)).kind not in "iu":
            return NotImplemented
        more = words(other)
        low = self.words[..., 0] + more[..., 0]
        high = self.words[..., 1] + more[..., 1] + (low < more[..., 0]).astype(np.uint32)
        return Wide(jnp.stack([low, high], -1))

    __radd__ = __add__

    def __getitem__(self, rows: Any) -> Wide:
        return Wide(self.words[rows])

    def __repr__(self) -> str:
        return str(self.words)


def words(number: Any) -> Any:
    """Returns a number, or an array of them, as pairs of words: NumPy's if its value is known."""
    if isinstance(number, Wide):
        return number.words
    if isinstance(number, int):
        return np.array([number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF], np.uint32)
    if not is_tracer(number):
        return np.asarray(number).astype(np.uint64)[..., None].view(np.uint32)
    if number.dtype.itemsize < 4:
        number = number.astype(jnp.int32)
    return jnp.stack([number.astype(jnp.uint32), (number >> 31 >> 1).astype(jnp.uint32)], -1)


def _parts(noise: Noise) -> tuple[tuple[Any, ...], Any]:
    if any(map(is_tracer, noise.window_start)):
        raise TypeError("noise: a window whose start JAX traces is no argument or result: call window(..) inside")
    step = noise.step
    if isinstance(step, int):
        step = np.array(step, np.uint32)
    elif isinstance(step, Wide):
        step = step.words
    elif is_tracer(step):
        step = step.astype(jnp.uint32)  # so that the carry of a scan keeps its dtype
    return (words(noise.seed), words(noise.sample), step), (noise.stream, noise.window_shape, noise.window_start)


def _named_parts(noise: Noise) -> tuple[Any, Any]:
    leaves, rest = _parts(noise)
    return tuple((jax.tree_util.GetAttrKey(name), leaf) for name, leaf in zip(_NAMES, leaves, strict=True)), rest


def _noise(rest: Any, leaves: Any) -> Noise:
    """Makes a Noise of leaves. JAX also gives others than numbers, such as axes or shardings: they are kept."""
    seed, sample, step = leaves
    if not is_tracer(step):
        step = int(step) if _is_of_words(step) and step.ndim == 0 else Wide(step)
    return made_of(_number(seed, 1), _number(sample, 2), step, *rest)


def _number(leaf: Any, most: int) -> Any:
    """Returns the number, or the ids, of words that are known, and else what holds the leaf."""
    if not _is_of_words(leaf) or not 1 <= leaf.ndim <= most or leaf.shape[-1] != 2:
        return Wide(leaf)
    found = np.ascontiguousarray(leaf).view(np.uint64)[..., 0]
    if most > 1:  # ids
        found = found % np.uint64(SAMPLES)
    if not found.ndim:
        return int(found)
    found.flags.writeable = False
    return found


def _is_of_words(leaf: Any) -> bool:
    """Tells whether these are words whose values can be read now."""
    if is_tracer(leaf) or not isinstance(leaf, np.ndarray | np.generic | jax.Array) or leaf.dtype != np.uint32:
        return False
    here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
    return here and not getattr(leaf, "is_deleted", bool)()


jax.tree_util.register_pytree_with_keys(Noise, _named_parts, _noise, _parts)
