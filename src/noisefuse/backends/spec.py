# SPDX-License-Identifier: Apache-2.0
"""The noise contract in Python: Philox, words to normals and uniform numbers, linear combinations.

The same code runs on NumPy arrays (reference.py) and, compiled by Numba, on scalars of a CPU or GPU: `bind` gives it
the operations that differ. csrc/core repeats the same mathematics in C++ on purpose: the tests compare all bits.

Only IEEE-754's correctly rounded + - * fma sqrt, conversions and bit operations are used. Every inexact product that
meets a sum is an fma. A product by a power of two is exact here, so a plain sum has the same bits. `mul` is a product
that no compiler may fuse with a sum, not even with one in the caller's own code.

Numba needs one habit: its sums of uint32 are uint64, so uint32(...) says "mod 2^32" (NumPy wraps anyway).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType, SimpleNamespace
from typing import Any, TypeAlias

from numpy import float32, float64, int32, int64, sqrt, uint32, uint64

Words: TypeAlias = Any  # uint32, an array or a scalar
Integers: TypeAlias = Any
Reals: TypeAlias = Any  # float32 or float64, the same in a whole call
Bools: TypeAlias = Any


def fma(a: Reals, b: Reals, c: Reals) -> Reals:
    """Returns a b + c, rounded once. A primitive: `bind` replaces it."""
    raise NotImplementedError


def select(condition: Bools, a: Reals, b: Reals) -> Reals:
    """Returns a if the condition holds, else b. A primitive: `bind` replaces it."""
    raise NotImplementedError


def mul(a: Reals, b: Reals) -> Reals:
    """Returns a b, rounded. A primitive: compilers that fuse products and sums need another one."""
    return a * b


def view(x: Any, kind: Any) -> Any:
    """Returns the same bits as another type of the same size. A primitive."""
    return x.view(kind)


def some(conditions: Bools) -> bool:
    """Tells whether any condition holds. A primitive."""
    raise NotImplementedError


# ---- philox ------------------------------------------------------------------------------------------------

M0, M1 = uint64(0xD2511F53), uint64(0xCD9E8D57)
W0, W1 = uint64(0x9E3779B9), uint64(0xBB67AE85)
MASK, HALF = uint64(0xFFFFFFFF), uint64(32)


def philox4x32(c0: Words, c1: Words, c2: Words, c3: Words, k0: Words, k1: Words) -> tuple[Words, Words, Words, Words]:
    """Returns Philox4x32-10 of a counter (c0, c1, c2, c3) and a key (k0, k1): Salmon et al. (SC11), section 3.3.

    The words are kept in 64 bits whose upper halves do not count. So compilers see 32 x 32 -> 64 products, without
    packing and unpacking between the rounds.
    """
    c0, c1, c2, c3, k0, k1 = uint64(c0), uint64(c1), uint64(c2), uint64(c3), uint64(k0), uint64(k1)
    for _ in range(10):
        p0, p1 = (c0 & MASK) * M0, (c2 & MASK) * M1
        c0, c1, c2, c3 = p1 >> HALF ^ c1 ^ k0, p1, p0 >> HALF ^ c3 ^ k1, p0
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return uint32(c0 & MASK), uint32(c1 & MASK), uint32(c2 & MASK), uint32(c3 & MASK)


def counter(
    element: Integers, step: Integers, sample: Integers, stream: Integers, low: Integers
) -> tuple[Words, Words, Words, Words]:
    """Returns the counter of the element's block in the sample; low = 1: the further digits for float64."""
    tag = uint64(low) << uint64(31) | uint64(stream) << uint64(24) | uint64(sample) >> uint64(32)
    return uint32(uint64(element) >> uint64(2)), uint32(step), uint32(uint64(sample)), uint32(tag)


def race_element(position: Integers, token: Integers) -> Integers:
    """Returns a token's element in the race of a position."""
    return (uint64(position) & uint64(0x3FFF)) << uint64(20) | uint64(token)


def race_key(position: Integers, k0: Words, k1: Words) -> tuple[Words, Words]:
    """Returns the key of a position's race: that of the noise, or from position 2^14 on one that stream 18 draws."""
    h = uint32(uint64(position) >> uint64(14))
    if not some(h > uint32(0)):
        return k0, k1
    w0, w1, _, _ = philox4x32(h, uint32(0), uint32(0), uint32(18 << 24), k0, k1)
    return w0, w1


# ---- words to normals --------------------------------------------------------------------------------------
# z = sqrt(-2 ln U) (cos 2 pi V, sin 2 pi V); U and V are words + 1/2, over 2^32 (float32) or 2^64 (float64).


def _reals(kind: Callable[[float], Any], *hexadecimal: str) -> tuple[Any, ...]:
    return tuple(kind(float.fromhex(text)) for text in hexadecimal)


# fmt: off
# Minimax polynomials (Remez), lowest power first:
# -2 ln(1 + r) / r on [-1/3, 1/3]; sin(pi t) / t and cos(pi t) in t^2 on [0, 1/4].
LOG1P32 = _reals(
    float32,
    "-0x1.000000p+1", "0x1.ffffe2p-1", "-0x1.555394p-1", "0x1.001378p-1", "-0x1.9a3d70p-2",
    "0x1.50374cp-2", "-0x1.197af0p-2", "0x1.3b65aap-2", "-0x1.34202ep-2",
)
SIN32 = _reals(
    float32, "0x1.921fb4p+1", "-0x1.4abbb6p+2", "0x1.46676ep+1", "-0x1.3232fap-1", "0x1.3c4b2cp-4"
)
COS32 = _reals(float32, "1.0", "-0x1.3bd3b0p+2", "0x1.03bdaap+2", "-0x1.55041ap+0", "0x1.c2b9a6p-3")
LOG1P64 = _reals(
    float64,
    "-0x1.0000000000000p+1", "0x1.fffffffffffd9p-1", "-0x1.55555555558d8p-1", "0x1.0000000005b40p-1",
    "-0x1.99999998f499dp-2", "0x1.5555554e12461p-2", "-0x1.2492497760ab7p-2", "0x1.00000215d343dp-2",
    "-0x1.c71c49fbf6f7cp-3", "0x1.9998f0a5b5b24p-3", "-0x1.746269fb6db00p-3", "0x1.55658345a68eep-3",
    "-0x1.3aa6f2b345154p-3", "0x1.23985be71b82cp-3", "-0x1.16578ec8d1323p-3", "0x1.0985ec04a1accp-3",
    "-0x1.94955e7c87504p-4", "0x1.568d75a7b6089p-4", "-0x1.6c732ec81bf98p-3", "0x1.7e57f202609edp-3",
)
SIN64 = _reals(
    float64,
    "0x1.921fb54442d18p+1", "-0x1.4abbce625be51p+2", "0x1.466bc6775a9f7p+1", "-0x1.32d2cce624835p-1",
    "0x1.50783483f4d0ap-4", "-0x1.e3074d5626aedp-8", "0x1.e8f33b006024ep-12", "-0x1.6f74773eaf29ep-16",
    "0x1.9c87434ee754ep-21",
)
COS64 = _reals(
    float64,
    "1.0", "-0x1.3bd3cc9be45dcp+2", "0x1.03c1f081b59c8p+2", "-0x1.55d3c7e3c115fp+0", "0x1.e1f50681cae93p-3",
    "-0x1.a6d1efeb4e518p-6", "0x1.f9d25db6ace19p-10", "-0x1.b696d3fd75367p-14", "0x1.168d57ef8540ap-18",
)
# fmt: on
# ln 4. For float32, e counts 2^23 times, as it stands in the bits of a number.
LN4_32, LN4_64 = _reals(float32, "0x1.62e430p-23")[0], _reals(float64, "0x1.62e42fefa39efp+0")[0]
# The bits of 2/3 2^24 and 2/3 2^64: in U = 2^e (1 + r) with 2/3 <= 1 + r < 4/3, e counts from there.
TWO_THIRDS32, TWO_THIRDS64 = float32(2 / 3 * 2.0**24).view(int32), float64(2 / 3 * 2.0**64).view(int64)
EXPONENT, SCALE32 = int32(-1 << 23), float32(2.0**-24).view(int32)
# A number whose last eight bits count in 2^-8, and the number whose subtraction leaves those bits and a half.
TAIL, ALL_BUT_TAIL = float32(2.0**15).view(uint32), float32(2.0**15 - 2.0**-9)
QUARTER, THREE_QUARTERS = uint32(1 << 30), uint32(3 << 30)


def polynomial(x: Reals, c: tuple[Any, ...]) -> Reals:
    """Returns c[0] + x (c[1] + x (c[2] + ...)), with one fma for each term (Horner)."""
    total = c[-1]
    for coefficient in c[-2::-1]:
        total = fma(total, x, coefficient)
    return total


def continued(total: Reals, x: Reals, c: tuple[Any, ...]) -> Reals:
    """Continues a polynomial from its upper part `total`. LLVM unrolls only short loops, and vectorises no outer
    ones."""
    for coefficient in c[::-1]:
        total = fma(total, x, coefficient)
    return total


def power_of_two(n: Integers) -> Reals:
    """Returns 2^n in float64, for -1022 <= n <= 1023: n is written as the exponent."""
    return view(int64(n + 1023) << int64(52), float64)


def radius32(w: Words) -> Reals:
    """Returns sqrt(-2 ln U), U = (w + 1/2) / 2^32 = 2^e (1 + r), within 2.5 ulp.

    -2 ln U = -e ln 4 - 2 ln(1 + r). r is rounded once, also near U = 1, where the logarithm vanishes, so 2^24 U comes
    in two exact parts. (U itself is exact in float64, but normals by way of float64 take a third longer.)
    """
    high = float32(view(uint32(w >> uint32(8)), int32))
    low = view(uint32(w & uint32(0xFF) | TAIL), float32) - ALL_BUT_TAIL
    e23 = int32(view(high + low, int32) - TWO_THIRDS32 & EXPONENT)  # 2^23 e
    scale = view(int32(SCALE32 - e23), float32)  # 2^-(24 + e)
    r = (mul(high, scale) - float32(1.0)) + mul(low, scale)
    return sqrt(fma(float32(e23), -LN4_32, r * polynomial(r, LOG1P32)))


def radius64(w: Words, v: Words) -> Reals:
    """Returns sqrt(-2 ln U), U = (2^32 w + v + 1/2) / 2^64, within 2.5 ulp."""
    return sqrt(exponential64(w, v))


def exponential64(w: Words, v: Words) -> Reals:
    """Returns -2 ln U, U = (2^32 w + v + 1/2) / 2^64. U is kept in two exact parts."""
    high, low = float64(w), float64(v) + 0.5
    u = mul(high, 2.0**32) + low
    e = (view(u, int64) - TWO_THIRDS64) >> int64(52)
    r = (mul(high, power_of_two(-32 - e)) - 1.0) + mul(low, power_of_two(-64 - e))
    log = r * continued(polynomial(r, LOG1P64[10:]), r, LOG1P64[:10])
    return fma(float64(e), -LN4_64, log)


def circle(t: Reals, half_turn: Bools, cos: tuple[Any, ...], sin: tuple[Any, ...]) -> tuple[Reals, Reals]:
    """Returns cos and sin of pi t, |t| <= 1/2, or of half a turn more, which negates both."""
    y = t * t
    c, s = polynomial(y, cos), t * polynomial(y, sin)
    return select(half_turn, -c, c), select(half_turn, -s, s)


def circle32(w: Words) -> tuple[Reals, Reals]:
    """Returns cos and sin of 2 pi V, V = (w + 1/2) / 2^32, within 2^-22: t is 2 V less the nearest integer."""
    t = float32(view(uint32(w * uint32(2) + uint32(1)), int32)) * float32(2.0**-32)
    return circle(t, (w >= QUARTER) & (w < THREE_QUARTERS), COS32, SIN32)


def circle64(w: Words, v: Words) -> tuple[Reals, Reals]:
    """Returns cos and sin of 2 pi V, V = (2^32 w + v + 1/2) / 2^64, within 2^-51."""
    t = float64(view(join(w, v) * uint64(2) + uint64(1), int64)) * 2.0**-64
    return circle(t, (w >= QUARTER) & (w < THREE_QUARTERS), COS64, SIN64)


def join(w: Words, v: Words) -> Integers:
    """Returns 2^32 w + v."""
    return uint64(w) << uint64(32) | uint64(v)


def normal_pair32(w0: Words, w1: Words) -> tuple[Reals, Reals]:
    """Returns two standard normals from two words, after Box and Muller (1958); never 0, |z| <= 6.77."""
    radius = radius32(w0)
    cos, sin = circle32(w1)
    return mul(radius, cos), mul(radius, sin)


def normal_pair64(w0: Words, v0: Words, w1: Words, v1: Words) -> tuple[Reals, Reals]:
    """Returns the same pair with more digits: v0 and v1 are the lower halves of 64-bit words. |z| <= 9.5."""
    radius = radius64(w0, v0)
    cos, sin = circle64(w1, v1)
    return mul(radius, cos), mul(radius, sin)


def uniform32(w: Words) -> Reals:
    """Returns the middle of one of 2^23 cells of (0, 1); exact."""
    return mul(float32(w >> uint32(9)) + float32(0.5), float32(2.0**-23))


def uniform64(w: Words, v: Words) -> Reals:
    """Returns the middle of one of 2^52 cells of (0, 1); exact."""
    return mul(float64(join(w, v) >> uint64(12)) + 0.5, 2.0**-52)


# ---- rows --------------------------------------------------------------------------------------------------


def affine(constant: bool, k: Reals, n: int, c: Sequence[Reals], v: Sequence[Reals]) -> Reals:
    """Returns k + c[0] v[0] + ... + c[n - 1] v[n - 1]; the contract's order is z, D, past4 .. past1, m2, m1, x.

    Without a constant the first term is a product, so that no zero is added to it (-0 + 0 is +0). Without terms it is
    k.
    """
    if n == 0:
        return k
    total = fma(c[0], v[0], k) if constant else mul(c[0], v[0])
    for i in range(1, n):
        total = fma(c[i], v[i], total)
    return total


def times(z: Reals, clean: Reals) -> Reals:
    """Returns z D: noise that is proportional to D."""
    return mul(z, clean)


def times_root(z: Reals, clean: Reals) -> Reals:
    """Returns z sqrt(D): noise whose variance is D."""
    return mul(z, sqrt(clean))


def clamp(v: Reals, low: Reals, high: Reals) -> Reals:
    """Returns v < low ? low : v > high ? high : v; so NaN passes."""
    return select(v < low, low, select(v > high, high, v))


def within(v: Reals, low: Reals, high: Reals, a: Reals, zero: Reals) -> Reals:
    """Returns a if a clamp passes v unchanged, else 0: NaN lies within no bounds."""
    return select((low <= v) & (v <= high), a, zero)


# ---- categories --------------------------------------------------------------------------------------------
# The race of categories, and the sums of e^(x / temperature) by which log-probabilities are known.

# 2 e^r and e^r for |r| <= ln 2 / 2, lowest power first.
TWICE_EXP32 = _reals(
    float32, "2.0", "2.0", "0x1.fffffcp-1", "0x1.55548cp-2", "0x1.555858p-4", "0x1.123de0p-6", "0x1.6ac74ep-9"
)
# fmt: off
EXP64 = _reals(
    float64,
    "1.0", "1.0", "0x1.000000000000bp-1", "0x1.555555555550fp-3", "0x1.55555555502a5p-5", "0x1.1111111122b48p-7",
    "0x1.6c16c1852a413p-10", "0x1.a01a014497aa9p-13", "0x1.a01997cc5a612p-16", "0x1.71deec6c1241dp-19",
    "0x1.28af3c30572acp-22", "0x1.add757660e28dp-26",
)
# fmt: on
# Adding it rounds a smaller number to an integer, which the last bits then hold.
ROUND32, ROUND64 = float32(1.5 * 2.0**23), float64(1.5 * 2.0**52)
LN2_HIGH32, LN2_LOW32 = _reals(float32, "0x1.62ep-1", "0x1.0bfbe8p-15")
LN2_HIGH64, LN2_LOW64, LOG2_E = _reals(float64, "0x1.62e42fefa3800p-1", "0x1.ef35793c76730p-45", "0x1.71547652b82fep+0")
TWO_THIRDS_OF_ONE = float64(2 / 3).view(int64)


def minus_two_ln64(x: Reals) -> Reals:
    """Returns -2 ln x, as exponential64 does of U, for a normal x > 0."""
    e = (view(x, int64) - TWO_THIRDS_OF_ONE) >> int64(52)
    r = mul(x, power_of_two(-e)) - 1.0
    log = r * continued(polynomial(r, LOG1P64[10:]), r, LOG1P64[:10])
    return fma(float64(e), -LN4_64, log)


def race_score(x: Reals, beta: Reals, w: Words, v: Words) -> Reals:
    """Returns beta x - ln(-2 ln U): of a row the greatest score wins, the lowest token among equals."""
    return fma(float64(x), beta, mul(minus_two_ln64(exponential64(w, v)), 0.5))


def chunk_term32(z: Reals, high: Reals, low: Reals, rate: Reals, floor: Reals) -> Reals:
    """Returns e^((high + low) z) in units of a power of two that `floor` says, or 0 where it is below 2^-125 of them.

    rate: (high + low) / ln 2. floor: `ROUND32` and the exponent of the units, less 126.
    """
    rounded = fma(z, rate, ROUND32)
    n = rounded - ROUND32
    r = fma(n, -LN2_LOW32, fma(z, low, fma(z, high, mul(n, -LN2_HIGH32))))
    exponent = uint32(view(select(rounded > floor, rounded, floor), uint32) - view(floor, uint32))
    return mul(polynomial(r, TWICE_EXP32), view(uint32(exponent << uint32(23)), float32))


def exp64(x: Reals) -> Reals:
    """Returns e^x for x <= 0, or 0 below -708."""
    rounded = fma(x, LOG2_E, ROUND64)
    n = rounded - ROUND64
    r = fma(n, -LN2_LOW64, fma(n, -LN2_HIGH64, x))
    p = continued(polynomial(r, EXP64[6:]), r, EXP64[:6])
    return select(x > -708.0, view(int64(view(p, int64) + (view(rounded, int64) << int64(52))), float64), 0.0)


# ---- losses ------------------------------------------------------------------------------------------------


def add_square(total: Reals, r: Reals) -> Reals:
    """Returns total + r^2: element i of a chunk of 4,096 goes to accumulator i mod 64 of its chunk."""
    return fma(r, r, total)


def sum_accumulators(sums: Any) -> Reals:
    """Returns the sum of a chunk from its 64 accumulators (the first axis; they are overwritten), halved pairwise."""
    half = 32
    while half > 0:
        for j in range(half):
            sums[j] = sums[j] + sums[j + half]
        half //= 2
    return sums[0]


def add_piece(total: Reals, weight: Reals, piece: Reals) -> Reals:
    """Returns total + weight piece in float64; a piece is the plain sum of its chunks, in order."""
    return fma(weight, piece, total)


# ---- 16-bit floats -----------------------------------------------------------------------------------------
# This is for compilers that do not know IEEE binary16 and bfloat16: it treats them as bits. NumPy knows them.


def half_to_float(h: Words) -> Reals:
    """Converts exactly. 2^112 moves the exponent's bias from 15 to 127, for subnormal numbers too."""
    size = uint32(uint32(h) & uint32(0x7FFF)) << uint32(13)
    number = view(uint32(size), float32) * float32(2.0**112)
    bits = select(size >= uint32(31 << 23), uint32(size | uint32(0x7F800000)), view(number, uint32))
    return view(uint32(bits | (uint32(h) & uint32(0x8000)) << uint32(16)), float32)


def float_to_half(x: Reals) -> Words:
    """Rounds to nearest even. Adding the power of two whose last place is the half's makes |x| count such places."""
    bits = view(x, uint32)
    size = uint32(bits & uint32(0x7FFFFFFF))
    exponent = select(size < uint32(113 << 23), uint32(113), uint32(size >> uint32(23)))  # that of 2^-14 at least
    unit = uint32((exponent + uint32(13)) << uint32(23))
    total = view(size, float32) + view(unit, float32)
    count = view(total, uint32) - unit + ((exponent - uint32(113)) << uint32(10))
    special = select(size > uint32(255 << 23), uint32(0x7E00), uint32(0x7C00))  # NaN, infinite
    return uint32(bits >> uint32(16) & uint32(0x8000) | select(size < uint32(143 << 23), uint32(count), special))


def bfloat16_to_float(h: Words) -> Reals:
    """Converts exactly: a bfloat16 is the upper half of a float32."""
    return view(uint32(uint32(h) << uint32(16)), float32)


def float_to_bfloat16(x: Reals) -> Words:
    """Rounds to nearest even: a carry out of the lower half raises the upper one."""
    bits = view(x, uint32)
    rounded = uint32(bits + uint32(0x7FFF) + (bits >> uint32(16) & uint32(1))) >> uint32(16)
    nan = uint32(bits & uint32(0x7FFFFFFF)) > uint32(255 << 23)
    return select(nan, uint32(0x7FC0), uint32(rounded))


# ---- integer levels ----------------------------------------------------------------------------------------


def to_level(x: Reals, top: float) -> Words:
    """Returns the integer next to x, from 0 to top, at most 65535, ties to even; NaN gives 0.

    From 2^52 on, numbers have a last place of 1. So adding 2^52 rounds to an integer, which the last bits hold.
    """
    wide = float64(x)
    bits = view(clamp(wide, 0.0, top) + 2.0**52, uint64)
    return select(wide == wide, uint32(bits & uint64(0xFFFF)), uint32(0))


def transition(word: Words, byte: Integers, last: Any, level: Integers) -> Integers:
    """Returns the byte that replaces a level: the first one whose last word is not below the word.

    byte: the start of the search, by the word's upper eight bits. last: from place `level` on, it has the last word for
    each byte or a smaller one; byte 255 has 2^32 - 1.
    """
    later = word > last[level + byte]
    while some(later):
        byte = byte + later
        later = word > last[level + byte]
    return byte


# ---- binding -----------------------------------------------------------------------------------------------

# Each function follows those that it calls.
_FUNCTIONS: tuple[Any, ...] = (
    *(philox4x32, counter, race_element, race_key, join, polynomial, continued, power_of_two),
    *(radius32, exponential64, radius64, circle, circle32, circle64),
    *(normal_pair32, normal_pair64, uniform32, uniform64, affine, times, times_root, clamp, within),
    *(minus_two_ln64, race_score, chunk_term32, exp64),
    *(add_square, sum_accumulators, add_piece),
    *(half_to_float, float_to_half, bfloat16_to_float, float_to_bfloat16, to_level, transition),
)


def bind(
    fma: Any, select: Any, compiled: Callable[[Any], Any] = lambda function: function, **others: Any
) -> SimpleNamespace:
    """Binds the functions above to these primitives (others: mul, sqrt, view, some). Each passes through `compiled`."""
    scope = {**globals(), "fma": fma, "select": select, **others}
    for function in _FUNCTIONS:
        scope[function.__name__] = compiled(FunctionType(function.__code__, scope))
    return SimpleNamespace(**{function.__name__: scope[function.__name__] for function in _FUNCTIONS})
