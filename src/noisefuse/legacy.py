# SPDX-License-Identifier: Apache-2.0
"""Old seeds, same pictures: arrays from other libraries' generators, for users who migrate and keep their seeds.

A source has a state, like the generator that it replaces: each call of `randn` gives the numbers of that generator's
next call. So noise from here depends on the order of the calls, unlike a `Noise`, and MT19937 cannot skip ahead
cheaply.

    source = nf.legacy.TorchCPU(7)  # torch.Generator().manual_seed(7)
    x = sampler.tableau.start * source.randn(shape)
    x = sampler.sample(model, x, [source.randn(shape) for _ in range(len(sampler))])
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import backends
from .arguments.arrays import copy, float_dtype
from .arguments.options import lengths
from .backends.reference import fma32
from .call.description import TorchNormals
from .ground.lazy import show_public
from .language.levels import FLOATS
from .language.noise import SEEDS
from .operations.draw import philox4x32

__all__ = ["DEVICES", "NumPy", "TorchCPU", "TorchCUDA", "WebUI"]

show_public(__name__)

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = int | Sequence[int]

DEVICES = {
    "P100": (56, 2048), "V100": (80, 2048), "T4": (40, 1024), "RTX 2080 Ti": (68, 1024),
    "A100": (108, 2048), "A10": (72, 1536), "RTX 3060": (28, 1536), "RTX 3080": (68, 1536), "RTX 3090": (82, 1536),
    "L4": (58, 1536), "L40S": (142, 1536), "RTX 4080": (76, 1536), "RTX 4090": (128, 1536),
    "H100": (132, 2048), "H200": (132, 2048),
}  # fmt: skip
"""A GPU's multiprocessors, and the most threads of each. The order of `TorchCUDA`'s numbers depends on them. (H100 is
the SXM card; for other cards give the pair.)"""


class NumPy:
    """``numpy.random.RandomState(seed).randn``, as in StyleGAN, with a seed for each sample: float64, NumPy's own code.

    >>> bool((nf.legacy.NumPy(7).randn((2, 3)) == np.random.RandomState(7).randn(2, 3)).all())
    True
    """

    def __init__(self, seed: SupportsIndex) -> None:
        self._state = np.random.RandomState(_seed(seed, 1 << 32))

    def randn(self, shape: Shape, *, dtype: DTypeLike | None = "float64") -> Array:
        """Returns the next normals, rounded to the dtype (float32: as ``.astype``)."""
        full, kind = lengths(shape), float_dtype("float64" if dtype is None else dtype)
        drawn = np.empty(math.prod(full), kind)
        for part in _parts(len(drawn)):
            drawn[part] = self._state.standard_normal(len(drawn[part]))
        return drawn.reshape(full)


class TorchCPU:
    """``torch.randn(shape, generator=torch.Generator().manual_seed(seed))`` on the CPU: MT19937.

    For 16 elements or more in float32 it is torch's kernel for AVX2 (which torch also takes with AVX-512), bit for bit:
    the polynomials of Cephes, compiled with fused products. In float64, and for fewer elements, it uses the C library's
    functions: bit for bit if Python and torch have the same C library. float16 and bfloat16 are float32's numbers,
    rounded, as in torch 2.13 (earlier versions drew halves in another way). The numbers depend on the sizes of the
    draws, so these have to be the same, too. On processors without AVX2, or with ATEN_CPU_CAPABILITY=default, torch's
    float32 differs in the last bits (by up to 2e-6); those numbers are not offered.

    >>> source = nf.legacy.TorchCPU(0)
    >>> source.randn(3).round(4).tolist() == np.float32([1.541, -0.2934, -2.1788]).tolist()  # as torch prints them
    True
    """

    def __init__(self, seed: SupportsIndex) -> None:
        # both seed the state by the same rule, from the lower 32 bits
        self._words = np.random.RandomState(_seed(seed, SEEDS) % (1 << 32))._bit_generator
        self._kept: float | None = None

    def randn(self, shape: Shape, *, dtype: DTypeLike | None = "float32") -> Array:
        """Returns the next normals.

        Args:
            shape: an int or a tuple.
            dtype: float32, float64, float16 or bfloat16.

        Returns:
            An array of that shape and dtype.

        Raises:
            TypeError: the dtype is another one.
        """
        full, kind = lengths(shape), float_dtype(dtype)
        n = math.prod(full)
        wide = np.dtype(np.float64 if kind == np.float64 else np.float32)
        if n < 16:
            drawn = np.array([self._one() for _ in range(n)], wide).astype(kind, copy=False)
        else:
            whole, drawn = n - n % 16, backends.empty((n,), kind)
            for part in _parts(whole):
                self._fill(drawn[part], wide)
            if n % 16:  # the last 16 are drawn again
                self._raw((n - whole) * wide.itemsize // 4 if kind == wide else 0)
                self._fill(drawn[-16:], wide)
        return drawn.reshape(full)

    def _fill(self, out: Array, wide: np.dtype[Any]) -> None:
        """Fills it with normals, on sixteens, from this dtype."""
        drawn = out if out.dtype == wide else np.empty(len(out), wide)
        words = self._raw(drawn.nbytes // 4)
        if backends.current().run(TorchNormals(words, drawn, len(drawn), wide)) is NotImplemented:
            drawn[:] = _sixteens(_uniforms(words, wide))
        if drawn is not out:
            out[:] = drawn

    def _raw(self, n: int) -> NDArray[np.uint64]:
        return self._words.random_raw(n)

    def _one(self) -> float:
        """Returns Box and Muller's first normal of a pair, and the second in the next call."""
        if self._kept is not None:
            found, self._kept = self._kept, None
            return found
        high1, low1, high2, low2 = self._raw(4).tolist()
        u1, u2 = ((high << 32 | low) % (1 << 53) * 2.0**-53 for high, low in ((high1, low1), (high2, low2)))
        radius, theta = math.sqrt(-2.0 * math.log1p(-u2)), 2.0 * math.pi * u1
        self._kept = radius * math.sin(theta)
        return radius * math.cos(theta)


def _uniforms(words: NDArray[np.uint64], kind: np.dtype[Any]) -> Array:
    """Returns uniform numbers in [0, 1): float32 from as many words, float64 from twice as many."""
    if kind == np.float64:
        high, low = words.reshape(-1, 2).T
        return ((high << np.uint64(32) | low) & np.uint64((1 << 53) - 1)) * 2.0**-53
    u: Array = ((words & np.uint64((1 << 24) - 1)) * 2.0**-24).astype(np.float32)
    return u


def _sixteens(u: Array) -> Array:
    """Computes Box and Muller's normals on sixteens: eight radii, and eight angles."""
    first, second = u.reshape(-1, 2, 8).transpose(1, 0, 2)
    one, two_pi = u.dtype.type(1), u.dtype.type(2 * math.pi)
    if u.dtype == np.float32:
        radius = np.sqrt(np.float32(-2) * _log(one - first))
        sin, cos = _sincos(two_pi * second)
    else:
        radius, theta = np.sqrt(-2.0 * _of_libm(math.log, one - first)), two_pi * second
        sin, cos = _of_libm(math.sin, theta), _of_libm(math.cos, theta)
    return np.stack([radius * cos, radius * sin], axis=1).ravel()


def _of_libm(function: Any, x: Array) -> Array:
    """Calls the C library's function, number by number: NumPy's own functions differ in the last bits."""
    return np.array([*map(function, x.ravel().tolist())]).reshape(x.shape)


# These are Cephes' logf, sinf and cosf (Moshier 1992), in the order of operations of avx_mathfun. Products that meet a
# sum are fused.
_LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
        2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_QUARTER_PI = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)  # in three parts, negated
_LN_2 = (-2.12194440e-4, 0.693359375)

_PART = 1 << 14  # elements at once: they fit the second-level cache, and Ctrl-C waits for no more


def _parts(n: int) -> Iterator[slice]:
    return (slice(begin, min(begin + _PART, n)) for begin in range(0, n, _PART))


def _fma(a: Array, b: Any, c: Any) -> Array:
    """Does `fma32`, at once unless float64's own rounding of the sum made a tie."""
    total: Array = np.multiply(a, b, dtype=np.float64) + c
    if ((total.view(np.int64) & 0x1FFFFFFF) == 0x10000000).any():
        total = fma32(a, b, c)
    return total.astype(np.float32, copy=False)


def _horner(x: Array, coefficients: Sequence[float]) -> Array:
    found = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        found = _fma(found, x, np.float32(c))
    return found


def _log(u: Array) -> Array:
    """Returns the logarithm of float32 in (0, 1]."""
    fraction, e = np.frexp(u)
    small = fraction < np.float32(math.sqrt(0.5))
    e = (e - small).astype(np.float32)
    r = np.where(small, fraction - np.float32(1) + fraction, fraction - np.float32(1))
    z = r * r
    y = _fma(_horner(r, _LOG) * r, z, e * np.float32(_LN_2[0])) - z * np.float32(0.5)
    return (r + y) + e * np.float32(_LN_2[1])


def _sincos(theta: Array) -> tuple[Array, Array]:
    """Returns the sine and cosine of float32 in [0, 2 pi)."""
    octant = (theta * np.float32(4 / math.pi)).astype(np.int32) + 1 & ~1
    r, j = theta, octant.astype(np.float32)
    for part in _QUARTER_PI:
        r = _fma(j, np.float32(part), r)
    z = r * r
    cos = _fma(_horner(z, _COS) * z, z, -(z * np.float32(0.5))) + np.float32(1)
    sin = _fma(_horner(z, _SIN) * z, r, r)
    swapped, quadrant = (octant & 2) != 0, octant >> 1 & 3
    s, c = np.where(swapped, cos, sin), np.where(swapped, sin, cos)
    return np.where(quadrant >= 2, -s, s), np.where((quadrant == 1) | (quadrant == 2), -c, c)


class WebUI:
    """The numbers of AUTOMATIC1111's web UI with "Random number generator source: NV": float32.

    It is Philox4x32-10, whose counter is the number of the call and the number of the element. The web UI imitates
    `TorchCUDA` for tensors with fewer elements than the GPU has threads.

    >>> np.allclose(nf.legacy.WebUI(0).randn(4), [-0.924662, -0.425344, -2.643846, 0.145184], atol=1e-6)
    True
    """

    def __init__(self, seed: SupportsIndex) -> None:
        self._seed, self._calls = _seed(seed, SEEDS), 0

    def randn(self, shape: Shape) -> Array:
        """Returns the next normals.

        Args:
            shape: an int or a tuple.

        Returns:
            An array of that shape, in float32.

        Raises:
            OverflowError: there are more than 2^32 of them.
        """
        full = lengths(shape)
        drawn = np.empty(math.prod(full), np.float32)
        cell, angle = np.float64(np.float32(2.3283064e-10)), np.float64(np.float32(2.3283064e-10 * 6.2831855))
        for part in _parts(len(drawn)):
            words = _philox(self._seed, self._calls, part)
            u, v = words[:, 0] * cell + cell / 2, words[:, 1] * angle + angle / 2
            drawn[part] = np.sqrt(-2.0 * np.log(u)) * np.sin(v)
        self._calls += 1
        return drawn.reshape(full)


class TorchCUDA:
    """``torch.randn(shape, device="cuda", generator=..manual_seed(seed))``: Philox4x32-10, in the order of torch's
    launch, which depends on the GPU for tensors with more elements than it has threads.

    No CPU repeats the GPU's own logarithms, sines and cosines: the numbers here are float64's, rounded, and agree to
    about 1e-6, not to the last bit.

    Args:
        device: a name of `DEVICES`, or (multiprocessors, threads of each), torch.cuda.get_device_properties's
            multi_processor_count and max_threads_per_multi_processor.

    >>> np.allclose(nf.legacy.TorchCUDA(0, "A100").randn(4), [-0.924663, -0.425344, -2.643846, 0.145184], atol=1e-6)
    True
    """

    def __init__(self, seed: SupportsIndex, device: str | tuple[int, int]) -> None:
        if isinstance(device, str):
            if device not in DEVICES:
                raise ValueError(f"device = {device!r}: expected (multiprocessors, threads) or {', '.join(DEVICES)}")
            device = DEVICES[device]
        try:
            processors, threads = map(operator.index, device)
        except (TypeError, ValueError):
            raise TypeError(f"device = {device!r}: expected a name, or (multiprocessors, threads)") from None
        if processors < 1 or threads < _BLOCK:
            raise ValueError(f"device = {device!r}: expected at least 1 multiprocessor and {_BLOCK} threads")
        self._blocks = processors * (threads // _BLOCK)
        self._seed, self._offset = _seed(seed, SEEDS), 0

    def randn(self, shape: Shape, *, dtype: DTypeLike | None = "float32") -> Array:
        """Returns the next normals.

        Args:
            shape: an int or a tuple.
            dtype: float32, float16 or bfloat16.

        Returns:
            An array of that shape and dtype.

        Raises:
            TypeError: the dtype is another one; torch draws float64 in another way.
        """
        full, kind = lengths(shape), float_dtype(dtype, tuple(name for name in FLOATS if name != "float64"))
        n = math.prod(full)
        if n == 0:
            return np.empty(full, kind)
        threads = min(self._blocks, -(-n // _BLOCK)) * _BLOCK
        rounds = -(-n // (4 * threads))  # in each round, a thread draws four numbers, which lie `threads` apart
        drawn = np.empty((rounds, 4, threads), np.float32)
        for number in range(rounds):
            for part in _parts(threads):
                words = _philox(self._seed, self._offset + number, part)
                radius = np.sqrt(-2.0 * np.log((words[:, 0::2] + 0.5) * 2.0**-32))
                angle = (words[:, 1::2] + 0.5) * (2.0**-32 * 2 * math.pi)
                drawn[number, 0::2, part] = (radius * np.sin(angle)).T
                drawn[number, 1::2, part] = (radius * np.cos(angle)).T
        self._offset += rounds
        return copy(drawn.reshape(-1)[:n], kind).reshape(full)


_BLOCK = 256  # threads in a block of torch's kernel


def _philox(seed: int, number: int, part: slice) -> NDArray[np.float64]:
    """Returns the four words of a part's elements or threads, in call or round `number`."""
    counter = np.zeros((part.stop - part.start, 4), np.uint32)
    counter[:, 0], counter[:, 2] = number, np.arange(part.start, part.stop)
    return philox4x32(counter, [seed % (1 << 32), seed >> 32]).astype(np.float64)


def _seed(seed: SupportsIndex, end: int) -> int:
    number = operator.index(seed)
    if not 0 <= number < end:
        raise OverflowError(f"seed = {number} is out of range: expected 0 <= seed < 2^{end.bit_length() - 1}")
    return number
