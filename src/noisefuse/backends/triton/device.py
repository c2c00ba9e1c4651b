# SPDX-License-Identifier: Apache-2.0
"""The noise contract in Triton: what spec.py states, for blocks and scalars of a kernel.

Triton compiles the text of functions, so they stand here once more. The coefficients are spec.py's, and tests compare
all bits. Functions call each other by plain names, and constants are tuples and numbers, because torch.compile copies
both into the programs that it writes.

A compiler that fuses products and sums must not reach the last product of a normal: its sign is set afterwards, by an
exclusive or of its bits, and no product is fused with a sum across that. All other inexact products that meet a sum are
`tl.fma`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .. import spec


def _constants(*values: Any) -> Any:
    """Returns Triton's constant of numbers of spec.py, as Python's."""
    return tl.constexpr(tuple(value.item() for value in values))


LOG1P32, COS32, SIN32 = _constants(*spec.LOG1P32), _constants(*spec.COS32), _constants(*spec.SIN32)
LOG1P64, COS64, SIN64 = _constants(*spec.LOG1P64), _constants(*spec.COS64), _constants(*spec.SIN64)
ROUNDS = _constants(spec.M0, spec.M1, spec.W0, spec.W1)
OF32 = _constants(spec.LN4_32, spec.TWO_THIRDS32, spec.SCALE32, spec.TAIL, spec.ALL_BUT_TAIL)
OF64 = _constants(spec.LN4_64, spec.TWO_THIRDS64)
EXP32, EXP64 = _constants(*spec.TWICE_EXP32), _constants(*spec.EXP64)
LN2 = _constants(
    spec.LN2_HIGH32, spec.LN2_LOW32, spec.ROUND32, spec.LN2_HIGH64, spec.LN2_LOW64, spec.ROUND64, spec.LOG2_E,
    spec.TWO_THIRDS_OF_ONE,
)  # fmt: skip


@triton.jit
def like(x, c):
    """Returns a constant of the shape and the type of x."""
    return tl.full(x.shape, c, x.dtype)


@triton.jit
def u64(x):
    """Returns an integer as uint64: a constant, a scalar or a block of any type."""
    wide = tl.full((), 0, tl.uint64) + x
    tl.static_assert(wide.dtype == tl.uint64, "seed, sample, step and stream: expected integers")
    return wide


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Returns Philox4x32-10 of a counter and a key, all uint32: Salmon et al. (SC11), section 3.3."""
    for _ in tl.static_range(10):
        m0, m1 = like(c0, ROUNDS.value[0]), like(c2, ROUNDS.value[1])
        h0, h1 = tl.umulhi(c0, m0), tl.umulhi(c2, m1)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, c2 * m1, h0 ^ c3 ^ k1, c0 * m0
        k0, k1 = k0 + like(k0, ROUNDS.value[2]), k1 + like(k1, ROUNDS.value[3])
    return c0, c1, c2, c3


@triton.jit
def block_words(seed, sample, step, block, stream, low: tl.constexpr):
    """Returns the four words of a block of the generator; low = 1: the further digits for float64."""
    key, number = u64(seed), u64(sample)
    tag = (number >> 32 | u64(stream) << 24 | low << 31).to(tl.uint32)
    c0, k0, k1 = u64(block).to(tl.uint32), key.to(tl.uint32), (key >> 32).to(tl.uint32)
    return philox4x32(c0, u64(step).to(tl.uint32), number.to(tl.uint32), tag, k0, k1)


@triton.jit
def place(element):
    """Returns the element's block, and whether its word is one of the upper two, and an odd one. 32 bits are read as
    unsigned, so that counts in int32 reach 2^32."""
    unsigned = tl.full((), 0, tl.uint32) + element
    tl.static_assert(unsigned.dtype.is_int(), "element: expected an integer")
    return (unsigned >> 2).to(tl.uint32), unsigned & 2 != 0, unsigned & 1 != 0


@triton.jit
def polynomial(x, c: tl.constexpr):
    """Returns c[0] + x (c[1] + x (c[2] + ...)), with one fma for each term (Horner)."""
    total = like(x, c.value[-1])
    for i in tl.static_range(1, len(c.value)):
        total = tl.fma(total, x, like(x, c.value[-1 - i]))
    return total


@triton.jit
def on_circle(radius, t, negative):
    """Returns radius cos pi t and radius sin pi t; negative: the bits to flip, its sign or none."""
    y = t * t
    if radius.dtype == tl.float64:
        z0, z1 = radius * polynomial(y, COS64), radius * (t * polynomial(y, SIN64))
    else:
        z0, z1 = radius * polynomial(y, COS32), radius * (t * polynomial(y, SIN32))
    z0, z1 = z0.to(negative.dtype, bitcast=True) ^ negative, z1.to(negative.dtype, bitcast=True) ^ negative
    return z0.to(radius.dtype, bitcast=True), z1.to(radius.dtype, bitcast=True)


@triton.jit
def normal_pair32(w0, w1):
    """Returns two standard normals from two words, after Box and Muller (1958)."""
    high = (w0 >> 8).to(tl.float32)
    low = (w0 & 0xFF | OF32.value[3]).to(tl.float32, bitcast=True) - OF32.value[4]
    e23 = ((high + low).to(tl.int32, bitcast=True) - OF32.value[1]) & -8388608  # 2^23 e
    scale = (OF32.value[2] - e23).to(tl.float32, bitcast=True)  # 2^-(24 + e)
    r = tl.fma(low, scale, tl.fma(high, scale, like(high, -1.0)))
    radius = tl.sqrt_rn(tl.fma(e23.to(tl.float32), like(r, -OF32.value[0]), r * polynomial(r, LOG1P32)))
    t = (w1 + w1 | 1).to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-32
    return on_circle(radius, t, (w1 ^ w1 + w1) & like(w1, 1 << 31))


@triton.jit
def minus_two_ln_of(e, r):
    """Returns -2 ln(2^e (1 + r))."""
    return tl.fma(e.to(tl.float64), like(r, -OF64.value[0]), r * polynomial(r, LOG1P64))


@triton.jit
def exponential64(w, v):
    """Returns -2 ln U, U = (2^32 w + v + 1/2) / 2^64."""
    high, low = w.to(tl.float64), v.to(tl.float64) + 0.5
    u = tl.fma(high, like(high, 2.0**32), low)
    e = (u.to(tl.int64, bitcast=True) - OF64.value[1]) >> 52
    scale_high = ((991 - e) << 52).to(tl.float64, bitcast=True)  # 2^-(32 + e)
    scale = ((959 - e) << 52).to(tl.float64, bitcast=True)  # 2^-(64 + e)
    return minus_two_ln_of(e, tl.fma(low, scale, tl.fma(high, scale_high, like(high, -1.0))))


@triton.jit
def normal_pair64(w0, v0, w1, v1):
    """Returns the same pair with more digits: v0 and v1 are the lower halves of 64-bit words."""
    radius = tl.sqrt(exponential64(w0, v0))
    v = w1.to(tl.uint64) << 32 | v1
    t = (v + v | 1).to(tl.int64, bitcast=True).to(tl.float64) * 2.0**-64
    return on_circle(radius, t, (v ^ v + v) >> 63 << 63)


@triton.jit
def middle(w, v, DOUBLE: tl.constexpr):
    """Returns the middle of one of 2^23 cells of (0, 1), or of 2^52; exact, so no compiler changes it."""
    if DOUBLE:
        return ((w.to(tl.uint64) << 20 | v >> 12).to(tl.float64) + 0.5) * 2.0**-52
    return ((w >> 9).to(tl.float32) + 0.5) * 2.0**-23


@triton.jit
def pair(w0, w1, v0, v1, DRAW: tl.constexpr, DOUBLE: tl.constexpr):
    """Returns the numbers of two elements from their words and, for float64, their further digits; of "words" these
    themselves."""
    if DRAW == "normal":
        z0, z1 = normal_pair64(w0, v0, w1, v1) if DOUBLE else normal_pair32(w0, w1)
    elif DRAW == "uniform":
        z0, z1 = middle(w0, v0, DOUBLE), middle(w1, v1, DOUBLE)
    else:
        z0, z1 = (v0, v1) if DOUBLE else (w0, w1)
    return z0, z1


@triton.jit
def fours(seed, sample, step, block, stream, DRAW: tl.constexpr, DOUBLE: tl.constexpr):
    """Returns the four numbers of each block of the generator."""
    w0, w1, w2, w3 = block_words(seed, sample, step, block, stream, 0)
    v0, v1, v2, v3 = block_words(seed, sample, step, block, stream, 1) if DOUBLE else (w0, w1, w2, w3)
    z0, z1 = pair(w0, w1, v0, v1, DRAW, DOUBLE)
    z2, z3 = pair(w2, w3, v2, v3, DRAW, DOUBLE)
    return z0, z1, z2, z3


@triton.jit
def ones(seed, sample, step, element, stream, DRAW: tl.constexpr, DOUBLE: tl.constexpr):
    """Returns the number of each element."""
    block, upper, odd = place(element)
    w0, w1, w2, w3 = block_words(seed, sample, step, block, stream, 0)
    v0, v1, v2, v3 = block_words(seed, sample, step, block, stream, 1) if DOUBLE else (w0, w1, w2, w3)
    w0, w1, v0, v1 = tl.where(upper, w2, w0), tl.where(upper, w3, w1), tl.where(upper, v2, v0), tl.where(upper, v3, v1)
    if DRAW == "normal":
        z0, z1 = pair(w0, w1, v0, v1, DRAW, DOUBLE)
        z0 = tl.where(odd, z1, z0)
    else:
        w, v = tl.where(odd, w1, w0), tl.where(odd, v1, v0)
        z0, _ = pair(w, w, v, v, DRAW, DOUBLE)
    return z0


# ---- races and sums of exponentials ------------------------------------------------------------------------


@triton.jit
def minus_two_ln64(x):
    """Returns -2 ln x of a normal x > 0."""
    e = (x.to(tl.int64, bitcast=True) - LN2.value[7]) >> 52
    scale = ((1023 - e) << 52).to(tl.float64, bitcast=True)
    return minus_two_ln_of(e, tl.fma(x, scale, like(x, -1.0)))


@triton.jit
def exp64(x):
    """Returns e^x for x <= 0, or 0 below -708."""
    y = tl.where(x > -708.0, x, -708.0)
    rounded = tl.fma(y, like(y, LN2.value[6]), like(y, LN2.value[5]))
    n = rounded - LN2.value[5]
    p = polynomial(tl.fma(n, like(y, -LN2.value[4]), tl.fma(n, like(y, -LN2.value[3]), y)), EXP64)
    e = p.to(tl.int64, bitcast=True) + (rounded.to(tl.int64, bitcast=True) << 52)
    return tl.where(x > -708.0, e.to(tl.float64, bitcast=True), 0.0)


@triton.jit
def race_key(seed, position):
    """Returns the seed of a position's race: the noise's, or from position 2^14 on one that stream 18 draws."""
    own = u64(seed)
    w0, w1, _, _ = block_words(own, 0, 0, position >> 14, 18, 0)
    return tl.where(position >> 14 == 0, own, w1.to(tl.uint64) << 32 | w0)


@triton.jit
def race_score(x, beta, w, v):
    """Returns beta x - ln(-2 ln U); x is float32."""
    wide = x.to(tl.float64)
    return tl.fma(wide, tl.broadcast_to(beta, wide.shape), 0.5 * minus_two_ln64(exponential64(w, v)))


@triton.jit
def terms_of(largest, high, rate, reach):
    """Returns what terms of a chunk with this largest logit need: the shift, the least z, and the floor."""
    scaled = largest * high
    shift = tl.where((scaled < 512.0) & (scaled > -512.0), 0.0, largest)
    top = largest - shift
    return shift, top - reach, tl.fma(top, tl.broadcast_to(rate, top.shape), like(top, LN2.value[2])) - 126.0


@triton.jit
def term32(z, high, low, rate, floor):
    """Returns e^((high + low) z) in units that the floor says, as spec.py's chunk_term32 does."""
    rounded = tl.fma(z, tl.broadcast_to(rate, z.shape), like(z, LN2.value[2]))
    n = rounded - LN2.value[2]
    main = tl.fma(z, tl.broadcast_to(high, z.shape), n * -LN2.value[0])
    main = tl.fma(z, tl.broadcast_to(low, z.shape), main)
    p = polynomial(tl.fma(n, like(z, -LN2.value[1]), main), EXP32)
    above = tl.where(rounded > floor, rounded, floor).to(tl.int32, bitcast=True)
    unit = (above - tl.broadcast_to(floor, z.shape).to(tl.int32, bitcast=True)) << 23
    return p * unit.to(tl.float32, bitcast=True)
