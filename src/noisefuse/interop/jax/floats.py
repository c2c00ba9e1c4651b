# SPDX-License-Identifier: Apache-2.0
"""IEEE-754's arithmetic in integers, for XLA's programs, and with it the noise contract (spec.py) on JAX's arrays.

XLA fuses products and sums where it likes, flushes subnormal numbers and has no fma. A library can set no flag against
that. So numbers are kept as their bits, and + - * fma sqrt are built from shifts and sums of integers: exact, then
rounded once, to nearest even. On a processor without 64-bit integers, such as a TPU, XLA uses pairs of words.

All this has to be traced with 64 bits enabled: `jax.enable_x64(True)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ...backends import spec

Words: TypeAlias = Any  # arrays of integers
Bools: TypeAlias = Any


@jax.tree_util.register_dataclass
@dataclass
class Wide:
    """Integers of 128 bits, as two words of 64, with the operations that are needed here.

    Shifts are by uint64 below 128.
    """

    high: Words
    low: Words

    def __lshift__(self, n: Words) -> Any:
        within = n & 63
        low, carried = self.low << within, self.low >> 1 >> (63 - within)
        return _where(n < 64, Wide(self.high << within | carried, low), Wide(low, jnp.zeros_like(low)))

    def __rshift__(self, n: Words) -> Any:
        within = n & 63
        high, carried = self.high >> within, self.high << 1 << (63 - within)
        return _where(n < 64, Wide(high, self.low >> within | carried), Wide(jnp.zeros_like(high), high))

    def __add__(self, other: Wide) -> Wide:
        low = self.low + other.low
        return Wide(self.high + other.high + (low < self.low), low)

    def __sub__(self, other: Wide) -> Wide:
        return Wide(self.high - other.high - (self.low < other.low), self.low - other.low)

    def __gt__(self, other: Wide) -> Bools:
        return (self.high > other.high) | ((self.high == other.high) & (self.low > other.low))

    def __or__(self, bit: Bools) -> Wide:
        return Wide(self.high, self.low | bit)


def _where(condition: Bools, a: Any, b: Any) -> Any:
    """Chooses between words, or between Wides."""
    return jax.tree.map(partial(jnp.where, condition), a, b)


def _low(s: Any) -> Words:
    """Returns the last 64 bits."""
    return s.low if isinstance(s, Wide) else s


def _is_zero(s: Any) -> Bools:
    return (s.high | s.low if isinstance(s, Wide) else s) == 0


def _leading_zeros(s: Any) -> Words:
    if not isinstance(s, Wide):
        return jax.lax.clz(s).astype(jnp.int32)
    high, low = jax.lax.clz(s.high), jax.lax.clz(s.low)
    return jnp.where(s.high != 0, high, low + 64).astype(jnp.int32)


def _words(n: Words) -> Words:
    return n.astype(jnp.uint64)


@dataclass(frozen=True)
class Format:
    """float32 or float64. A call makes its numbers, as NumPy's types do, from a Float, integers or a number.

    A number is m 2^(e - bias - fraction): e is its exponent's bits, m has its leading one. Sums use integers of twice
    its bits. Their uppermost bit stays free, and the next one, `top`, takes the carry.
    """

    bits: int
    fraction: int

    @property
    def word(self) -> Any:
        return jnp.uint32 if self.bits == 32 else jnp.uint64

    @property
    def top(self) -> int:
        return 2 * self.bits - 2

    @property
    def sign(self) -> int:
        return 1 << self.bits - 1

    @property
    def bias(self) -> int:
        return (1 << self.bits - self.fraction - 2) - 1

    @property
    def infinity(self) -> int:
        return self.sign - (1 << self.fraction)

    @property
    def nan(self) -> int:
        return self.infinity | 1 << self.fraction - 1

    def __call__(self, x: Any) -> Float:
        if isinstance(x, Float):
            return x if x.format == self else x.to(self)
        if isinstance(x, float | int | np.number):
            number = np.asarray(x, f"f{self.bits // 8}")
            return Float(jnp.asarray(number.view(f"u{self.bits // 8}")), self)
        negative, word = x < 0, x.astype(jnp.uint64)
        return _rounded(self, negative, self.wide(jnp.where(negative, 0 - word, word)), self.bias + self.fraction)

    def wide(self, s: Words) -> Any:
        s = s.astype(jnp.uint64)
        return s if self.bits == 32 else Wide(jnp.zeros_like(s), s)


FLOAT32: Format = Format(32, 23)
FLOAT64: Format = Format(64, 52)


@dataclass(eq=False)
class Float:
    """An array of numbers as their bits. Operators also take numbers of NumPy and Python."""

    bits: Words
    format: Format

    __array_ufunc__: ClassVar[None] = None  # so NumPy's scalars leave operators to this class

    def to(self, format: Format) -> Float:
        """Converts to another format, rounded once if needed."""
        own, size, (negative, e, m) = self.format, _size(self), _parts(self)
        moved = format.bias + format.fraction - own.bias - own.fraction
        rounded = _rounded(format, negative, format.wide(_low(m)), e + moved)
        beyond = jnp.where(
            size > own.infinity, format.word(format.nan), _signed(format, negative, format.word(format.infinity))
        )
        return Float(jnp.where(size < own.infinity, rounded.bits, beyond), format)

    def __neg__(self) -> Float:
        return Float(self.bits ^ self.format.word(self.format.sign), self.format)

    def __add__(self, other: Any) -> Float:
        return _sum(self, self.format(other))

    def __sub__(self, other: Any) -> Float:
        return _sum(self, -self.format(other))

    def __mul__(self, other: Any) -> Float:
        return mul(self, self.format(other))

    __radd__ = __add__
    __rmul__ = __mul__

    def __lt__(self, other: Any) -> Bools:
        a, b = _place(self), _place(self.format(other))
        return self._known(other) & (a < b)

    def __le__(self, other: Any) -> Bools:
        return self._known(other) & (_place(self) <= _place(self.format(other)))

    def __gt__(self, other: Any) -> Bools:
        return self._known(other) & (_place(self) > _place(self.format(other)))

    def __ge__(self, other: Any) -> Bools:
        return self._known(other) & (_place(self) >= _place(self.format(other)))

    def __eq__(self, other: object) -> Bools:
        return self._known(other) & (_place(self) == _place(self.format(other)))

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def _known(self, other: Any) -> Bools:
        return ~(_is_nan(self) | _is_nan(self.format(other)))


def _size(x: Float) -> Words:
    """Returns the bits of |x|."""
    return x.bits & x.format.word(x.format.sign - 1)


def _is_negative(x: Float) -> Bools:
    return x.bits >> x.format.bits - 1 != 0


def _is_nan(x: Float) -> Bools:
    return _size(x) > x.format.infinity


def _place(x: Float) -> Words:
    """Returns x's place in the order of numbers; both zeros are at 0."""
    size = _size(x).astype(jnp.int32 if x.format.bits == 32 else jnp.int64)
    return jnp.where(_is_negative(x), -size, size)


def _parts(x: Float) -> tuple[Bools, Words, Any]:
    """Returns sign, e and m. A subnormal x has no leading one."""
    size = _size(x)
    field = size >> x.format.fraction
    m = size - (jnp.maximum(field, 1) - 1 << x.format.fraction)
    return _is_negative(x), jnp.maximum(field, 1).astype(jnp.int32), x.format.wide(m)


# ---- sums and products -------------------------------------------------------------------------------------


def _rounded(kind: Format, negative: Bools, s: Any, e: Words) -> Float:
    """Returns s 2^(e - bias - fraction), rounded to nearest even; s is below 2^(top + 1)."""
    word, top, most = kind.word, kind.top, 2 * kind.bits - 1
    left = _leading_zeros(s) - 1
    zero, field = _is_zero(s), jnp.minimum(e - left + (top - kind.fraction), kind.infinity >> kind.fraction)
    right = top - kind.fraction + jnp.maximum(1 - field, 0)
    one = kind.wide(jnp.ones_like(_low(s)))
    s = _where(right > most, one, s << _words(left))  # beyond, only the fact that it is not 0 is left
    right = _words(jnp.minimum(right, most))
    odd = _low(s >> right) & 1
    half = (one << (right - 1)) - one
    magnitude = _low(s + half + kind.wide(odd) >> right).astype(word)  # a carry turns it into the next power of two
    magnitude = magnitude + ((jnp.maximum(field, 1) - 1).astype(word) << kind.fraction)
    magnitude = jnp.where(zero, word(0), jnp.minimum(magnitude, word(kind.infinity)))
    return Float(_signed(kind, negative, magnitude), kind)


def _signed(kind: Format, negative: Bools, size: Words) -> Words:
    return size | negative.astype(kind.word) << kind.bits - 1


def _moved(s: Any, n: Words) -> Any:
    """Returns s >> n, with a last bit of 1 if a 1 was lost: a later rounding then never sees a false tie."""
    n = _words(jnp.minimum(n, 127 if isinstance(s, Wide) else 63))
    moved = s >> n
    return moved | ~_is_zero((moved << n) - s)


_LEAST = -(1 << 20)  # the exponent of a product that is 0


def fma(a: Any, b: Any, c: Any) -> Float:
    """Returns a b + c, rounded once; one of them is a Float."""
    kind = _format(a, b, c)
    product, special = _times(kind(a), kind(b))
    return _special(_added(kind, product, _parts(kind(c))), special, kind(c))


def mul(a: Any, b: Any) -> Float:
    """Returns a b, which meets no sum; one of them is a Float."""
    kind = _format(a, b)
    (negative, e, s), (_, infinite, nan) = _times(kind(a), kind(b))
    bits = jnp.where(infinite, _signed(kind, negative, kind.word(kind.infinity)), _rounded(kind, negative, s, e).bits)
    return Float(jnp.where(nan, kind.word(kind.nan), bits), kind)


def _sum(a: Float, b: Float) -> Float:
    """Returns a + b."""
    kind = a.format
    negative, e, m = _parts(a)
    up = kind.top - 1 - kind.fraction
    finite = _added(kind, (negative, e - up, m << jnp.uint64(up)), _parts(b))
    return _special(finite, (negative, _size(a) >= kind.infinity, _is_nan(a)), b)


def _format(*numbers: Any) -> Format:
    kind: Format = next(x.format for x in numbers if isinstance(x, Float))
    return kind


def _times(a: Float, b: Float) -> Any:
    """Returns a b exactly, as (sign, e, s), and as (sign, whether it is infinite, or NaN)."""
    kind, (negative_a, ea, ma), (negative_b, eb, mb) = a.format, _parts(a), _parts(b)
    p, lower = _product(ma, mb), kind.top - 2 * kind.fraction - 2
    e = jnp.where(_is_zero(p), _LEAST, ea + eb - (kind.bias + kind.fraction + lower))
    negative = negative_a ^ negative_b
    infinite = (_size(a) >= kind.infinity) | (_size(b) >= kind.infinity)
    nan = _is_nan(a) | _is_nan(b) | infinite & (_is_zero(ma) | _is_zero(mb))
    return (negative, e, p << jnp.uint64(lower)), (negative, infinite, nan)


def _product(a: Any, b: Any) -> Any:
    if not isinstance(a, Wide):
        return a * b
    half = (1 << 32) - 1
    (a1, a0), (b1, b0) = ((x.low >> 32, x.low & half) for x in (a, b))
    lowest, middle = a0 * b0, a1 * b0
    crossed = a0 * b1 + (middle & half) + (lowest >> 32)  # below 2^64
    return Wide(a1 * b1 + (middle >> 32) + (crossed >> 32), crossed << 32 | lowest & half)


def _added(kind: Format, a: Any, b: Any) -> Float:
    """Adds (sign, e, s) and the parts of b: s is in place already, below 2^top, and b is shifted to it."""
    (negative_a, ea, sa), (negative_b, eb, sb) = a, b
    up = kind.top - 1 - kind.fraction
    sb, eb = sb << jnp.uint64(up), eb - up
    e = jnp.maximum(ea, eb)
    sa, sb = _moved(sa, e - ea), _moved(sb, e - eb)
    alike, less = negative_a == negative_b, sb > sa
    s = _where(alike, sa + sb, _where(less, sb - sa, sa - sb))
    negative = jnp.where(alike, negative_a, jnp.where(less, negative_b, negative_a & ~_is_zero(s)))
    return _rounded(kind, negative, s, e)


def _special(finite: Float, product: Any, c: Float) -> Float:
    """Returns the sum of a product, (sign, whether it is infinite, or NaN), and c; `finite` if both are finite."""
    kind, word = c.format, c.format.word
    negative, infinite, nan = product
    of_c = _size(c) >= kind.infinity
    nan = nan | _is_nan(c) | infinite & of_c & (negative != _is_negative(c))
    bits = jnp.where(of_c, c.bits, finite.bits)
    bits = jnp.where(infinite, _signed(kind, negative, word(kind.infinity)), bits)
    return Float(jnp.where(nan, word(kind.nan), bits), kind)


def sqrt(x: Float) -> Float:
    """Takes the root digit by digit: m is scaled by an even power of two, and the root has one digit more than x."""
    kind, (negative, e, m) = x.format, _parts(x)
    left = _leading_zeros(m) - (2 * kind.bits - 1 - kind.fraction)
    e = e - left - kind.bias
    odd = e & 1
    m = m << _words(left + odd + (kind.fraction + 2))
    root, remainder = kind.wide(jnp.zeros_like(x.bits)), m
    for place in range(2 * kind.fraction + 2, -1, -2):
        bit = kind.wide(kind.word(1)) << jnp.uint64(place)
        trial = root + bit
        less, root = trial > remainder, root >> _ONE
        root, remainder = _where(less, root, root + bit), _where(less, remainder, remainder - trial)
    e = (e - odd >> 1) + (kind.bias - 2)
    rounded = _rounded(kind, negative, (root << _ONE) | ~_is_zero(remainder), e)
    bits = jnp.where(negative | _is_nan(x), kind.word(kind.nan), jnp.where(x == math.inf, x.bits, rounded.bits))
    return Float(jnp.where(_size(x) == 0, x.bits, bits), kind)


_ONE = np.uint64(1)


def divide(x: Float, n: float) -> Float:
    """Returns x / n for a finite n of at least 1: digit by digit of their m, to one digit more than x has."""
    kind, (negative, e, m), (_, e_n, m_n) = x.format, _parts(x), _parts(x.format(n))
    digits = kind.fraction + 4
    remainder, by = _low(m), _low(m_n)

    def digit(_: Any, carried: Any) -> Any:
        quotient, remainder = carried
        fits = remainder >= by
        return quotient << _ONE | fits, (remainder - jnp.where(fits, by, 0)) << _ONE

    quotient, remainder = jax.lax.fori_loop(0, digits, digit, (remainder ^ remainder, remainder))
    quotient = _rounded(kind, negative, kind.wide(quotient) << _ONE | (remainder != 0), e - e_n + (kind.bias - 4))
    return Float(jnp.where(_size(x) >= kind.infinity, x.bits, quotient.bits), kind)


def select(condition: Bools, a: Any, b: Any) -> Any:
    if isinstance(a, Float):
        return Float(jnp.where(condition, a.bits, a.format(b).bits), a.format)
    if isinstance(b, Float):
        return Float(jnp.where(condition, b.format(a).bits, b.bits), b.format)
    return jnp.where(condition, a, b)


def view(x: Any, kind: Any) -> Any:
    """Returns the same bits as another type: as numbers of a Format, or as words."""
    bits = x.bits if isinstance(x, Float) else x
    if isinstance(kind, Format):
        return Float(jax.lax.bitcast_convert_type(bits, kind.word), kind)
    return jax.lax.bitcast_convert_type(bits, kind)


SPEC = spec.bind(
    fma, select, mul=mul, sqrt=sqrt, view=view, float32=FLOAT32, float64=FLOAT64, int32=jnp.int32, int64=jnp.int64,
    uint32=jnp.uint32, uint64=jnp.uint64,
)  # fmt: skip
