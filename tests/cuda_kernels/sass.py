# SPDX-License-Identifier: Apache-2.0
"""An interpreter of machine code for sm_80 to sm_120, as nvdisasm prints it: it runs what ptxas made on NumPy.

All threads of a launch step together; if they diverge, those furthest behind go first. A warp has its uniform
registers, and its threads wait for each other where BSYNC, WARPSYNC and BAR say so. Registers begin with arbitrary
bits. Every access has to lie within one array and to be aligned to its size. No two threads may touch the same byte of
an array if one stores there; for shared memory a barrier has to lie between. Results of MUFU move by ULPS, this way and
that, from one argument to the next.

The vendor documents the names of instructions alone. What they do is known from PTX, whose instructions they implement,
and from the idioms of its compiler; OPCODES is all that is taken for true here. Whatever stands not there, an opcode, a
modifier, or a form of an operand, stops with its text when a kernel is read, executed or not. This tells nothing about
the control bits (which say how long to wait for a result), the memory model, and the tables of MUFU.
"""

import itertools
import re
import struct
from collections import Counter
from fractions import Fraction
from functools import cache
from math import inf, isfinite, nextafter

import ml_dtypes
import numpy as np

from noisefuse.backends.reference import fma

from .ptx import Memory, Sharing

U32, S32, U64, S64, F32, F64 = np.uint32, np.int32, np.uint64, np.int64, np.float32, np.float64
LOW, WORD = U64(2**32 - 1), U64(32)
NAN = U32(0x7FFFFFFF).view(F32)  # that of float32 arithmetic

# Units in the last place by which results move. The vendor (CUDA C++ programming guide, and PTX's rcp and rsqrt) grants
# 1 to MUFU.RCP, and 2 to MUFU.RSQ. For the upper halves of float64 it says "gross approximation": 1 unit of those.
ULPS = {"RCP": 1, "RSQ": 2, "RCP64H": 1, "RSQ64H": 1}

# Where constant bank 0 has what the driver puts there: the threads in a block, blocks in the grid, the stack pointer,
# the window of global memory, the generic address of the bank (sm_80) or of the parameters, which are its end. From
# `reserved` on lies a kernel's shared memory.
DRIVER = {
    80: {"threads": 0x0, "grid": 0xC, "stack": 0x28, "window": 0x118, "bank": 0x40, "reserved": 0},
    90: {"threads": 0x0, "grid": 0xC, "stack": 0x28, "window": 0x208, "parameters": 0x198, "reserved": 1024},
    120: {"threads": 0x360, "grid": 0x370, "stack": 0x37C, "window": 0x358, "parameters": 0x348, "reserved": 1024},
}


class Unknown(Exception):
    """An instruction that is not in the table, by its text."""


# ---- arithmetic ----------------------------------------------------------------------------------------------


def wide(a, upper=0):
    """64 bits of two words."""
    return np.asarray(a, U64) | np.asarray(upper, U64) << WORD


def low(v):
    return (v & LOW).astype(U32)


def high(v):
    return (v >> WORD).astype(U32)


def signed(a):
    return np.asarray(a).view(S32)


def extended(a):
    """A signed word as 64 bits."""
    return signed(a).astype(S64).view(U64)


def canonical(x):
    """Float32 arithmetic makes one NaN."""
    x = np.asarray(x, F32)
    return np.where(np.isnan(x), NAN, x) if np.isnan(x).any() else x


def flushed(x):
    """With .FTZ subnormal numbers are 0, of their sign."""
    return np.where(abs(x) < np.finfo(F32).smallest_normal, x * 0, x)


def one_carry(total):
    """The low word and the carry of a sum, which is a single bit."""
    assert (total >> WORD <= 1).all(), "a sum of three words with a carry of 2"
    return low(total), total >> WORD != 0


def two_carries(total):
    return low(total), total >> WORD >= 1, total >> WORD >= 2


def product_carry(a, b, c):
    """a b + c in 64 bits, and whether that was too little room."""
    total = wide(a) * wide(b) + c
    return total, total < c


def lookup(table, a, b, c):
    """The function of three bits whose values are the bits of `table`, on all bits of the arguments."""
    result = a & ~a
    for case in range(8):
        if table >> case & 1:
            result = result | (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
    return result


def permuted(a, selector, b):
    """Each of four bytes by a digit of the selector: a byte of b:a, or with 8 its sign."""
    both, result = wide(a, b), U64(0)
    for byte in range(4):
        digit = np.asarray(selector, U64) >> U64(4 * byte)
        chosen = both >> ((digit & U64(7)) * U64(8)) & U64(255)
        chosen = np.where(digit & U64(8), np.where(chosen & U64(128), U64(255), U64(0)), chosen)
        result = result | chosen << U64(8 * byte)
    return low(result)


def shifted_left(v, by):
    assert (np.asarray(by) < 64).all(), "a shift by 64 or more"
    return v << np.asarray(by, U64)


def shifted_right(v, by):
    assert (np.asarray(by) < 64).all(), "a shift by 64 or more"
    return v >> np.asarray(by, U64)


def narrowed(x, dtype):
    """Bits of a 16-bit float, rounded to nearest even; there is one NaN."""
    bits = np.asarray(x, F32).astype(dtype).view(np.uint16).astype(U32)
    return np.where(np.isnan(x), U32(0x7FFF), bits)


def rounded_up(v):
    """Float32 of unsigned integers, rounded towards infinity."""
    x = np.asarray(v).astype(F32)
    less = (x < F32(2.0**64)) & (np.where(x < F32(2.0**64), x, F32(0)).astype(U64) < v)
    return np.where(less, np.nextafter(x, F32(inf)), x)


def positive(a):
    """The words, as signed ones, none of which is negative."""
    assert (signed(a) >= 0).all(), "a negative number rounded towards infinity"
    return signed(a)


def truncated(x, bits, nan):
    x = np.asarray(x, F64)
    inside = np.where((x > 0) & (x < 2.0**bits), x, 0).astype(U64)
    return np.where(np.isnan(x), nan, np.where(x >= 2.0**bits, U64(2**bits - 1), inside)).astype(U64)


def directed(upwards):
    """Returns a b + c with float64's rounding up or down, one by one: only rare branches of roots and quotients ask."""

    def rounded(a, b, c):
        if not (isfinite(a) and isfinite(b) and isfinite(c)):
            return a * b + c
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        nearest = exact.numerator / exact.denominator
        wrong = nearest < exact if upwards else nearest > exact
        return nextafter(nearest, inf if upwards else -inf) if wrong else nearest

    return lambda a, b, c: np.frompyfunc(rounded, 3, 1)(a, b, c).astype(F64)


def approximate(name, function):
    """One result of MUFU. It takes subnormal numbers for 0, and moves by its ULPS."""

    def run(x):
        ulps, x = ULPS[name], np.atleast_1d(x)
        tiny = np.finfo(x.dtype).smallest_normal
        exact = np.asarray(function(np.where(abs(x) < tiny, x * 0, x).astype(F64)))
        if name.endswith("64H"):
            found, infinity = high(exact.view(U64)), U32(0x7FF00000)
        else:
            found, infinity = exact.astype(F32).view(U32), U32(0x7F800000)
        ordinary = (found & infinity != 0) & (found & infinity != infinity)
        hashed = x.astype(F64).view(U64) * U64(0x9E3779B97F4A7C15) >> U64(40)  # equal numbers have equal results
        step = ((hashed % U64(2 * ulps + 1)).astype(S32) - ulps).view(U32)
        return np.where(ordinary, found + step, found)

    return run


def reciprocal(x):
    return 1 / x


def reciprocal_root(x):
    return 1 / np.sqrt(x)


def upper_half(a):
    return wide(0, a).view(F64)


def smaller(a, b, which):
    """The smaller one where `which`, else the larger one; of floats, not NaN."""
    return np.where(which, np.fmin(a, b), np.fmax(a, b))


def and_whether(v, p):
    """Returns whether any bit is set, or p; and v."""
    return (v != 0) | p, v


def minimum_in_two(a, b, also):
    """Two predicates: the minimum is a, else b; and it is the NaN b, which no code here has."""
    assert not (np.isnan(b) | (b == 0)).any()
    return (a < b) & also, np.zeros(np.shape(a), bool)


# ---- the table -----------------------------------------------------------------------------------------------
# Opcodes with all their modifiers: forms of operands, results before the sign of equality, and the function. A uniform
# instruction (U before the name) is the same one for a warp. Kinds of operands:
#   i  a word: register, constant, or immediate      w  a word as a summand: the carry of -x and ~x counts
#   l  64 bits: two registers, or one constant       f, d  float32 and float64, with - and | |
#   p  a predicate, with !                           T, N  PT, which takes no result; !PT
#   #  an immediate                                  Z  a register that is 0
#   h  a half of a register: H0_H0, H1_H1            b, s  its bytes B0 to B3, its halves H0, H1
# Before i and l stand the signs that an operand may have.

OPCODES = {}


def opcodes(names, *forms):
    for name in names.split():
        assert name not in OPCODES
        OPCODES[name] = [(*form.split("="), function) for form, function in forms]


opcodes("IMAD IMAD.U32 IMAD.SHL.U32 IMAD.IADD IMAD.MOV IMAD.MOV.U32", ("i = i i -i", lambda a, b, c: a * b + c))
opcodes("IMAD.X", ("i = i i ~i p", lambda a, b, c, p: a * b + c + p))
opcodes(
    "IMAD.WIDE.U32",
    ("l = i i l", lambda a, b, c: wide(a) * wide(b) + c),
    ("l p = i i l", product_carry),
)
opcodes("IMAD.WIDE", ("l = i i l", lambda a, b, c: extended(a) * extended(b) + c))
opcodes(
    "IMAD.HI.U32",
    ("i = i i l", lambda a, b, c: high(wide(a) * wide(b) + c)),
    ("i p = i i l", lambda a, b, c: (high(product_carry(a, b, c)[0]), product_carry(a, b, c)[1])),
)
opcodes("IMAD.HI", ("i = i i l", lambda a, b, c: high(extended(a) * extended(b) + c)))
opcodes("IADD VIADD", ("i = -i -i", lambda a, b: a + b), ("i p = w w", lambda a, b: one_carry(a + b)))
opcodes("IADD.X", ("i = w w p", lambda a, b, p: low(a + b + p)))
opcodes("IADD.64", ("l = -l -l", lambda a, b: a + b))
opcodes(
    "IADD3",
    ("i = -i -i -i", lambda a, b, c: a + b + c),
    ("i p = w w w", lambda a, b, c: one_carry(a + b + c)),
    ("i T T = w w w", lambda a, b, c: low(a + b + c)),
    ("i p T = w w w", lambda a, b, c: one_carry(a + b + c)),
    ("i p p = w w w", lambda a, b, c: two_carries(a + b + c)),
)
carried = lambda a, b, c, p, q: low(a + b + c + p + q)  # noqa: E731
opcodes("IADD3.X", ("i = w w w p p", carried), ("i T T = w w w p p", carried))
opcodes("IADD3.64", ("l T T = -l -l -l", lambda a, b, c: a + b + c))

opcodes(
    "LEA",
    ("i = i -i #", lambda a, b, by: (a << U32(by)) + b),
    ("i p = i w #", lambda a, b, by: one_carry(wide(a << U32(by)) + b)),
)
opcodes(
    "LEA.HI",
    ("i = i i i #", lambda a, b, c, by: high(wide(a, c) << U64(by)) + b),
    ("i p = i w i #", lambda a, b, c, by: one_carry((wide(a, c) << U64(by) >> WORD) + b)),
)
opcodes("LEA.HI.X", ("i = i w i # p", lambda a, b, c, by, p: low((wide(a, c) << U64(by) >> WORD) + b + p)))
opcodes("LEA.HI.SX32", ("i = i i #", lambda a, b, by: high(extended(a) << U64(by)) + b))
opcodes("LEA.HI.X.SX32", ("i = i w # p", lambda a, b, by, p: low((extended(a) << U64(by) >> WORD) + b + p)))

opcodes("SHF.L.U32", ("i = i i Z", lambda a, by, _: low(np.where(by < 32, wide(a) << wide(by & U32(31)), U64(0)))))
opcodes("SHF.L.U64.HI", ("i = i i i", lambda a, by, c: high(shifted_left(wide(a, c), by))))
opcodes("SHF.L.U32.HI SHF.L.W.U32.HI", ("i = i # i", lambda a, by, c: high(shifted_left(wide(a, c), by % 32))))
opcodes("SHF.R.U64", ("i = i i i", lambda a, by, c: low(shifted_right(wide(a, c), by))))
opcodes("SHF.R.S64", ("i = i i i", lambda a, by, c: low((wide(a, c).view(S64) >> np.asarray(by, S64)).view(U64))))
opcodes("SHF.R.U32.HI", ("i = i # i", lambda a, by, c: c >> U32(by)))
opcodes("SHF.R.S32.HI", ("i = i # i", lambda a, by, c: (signed(c) >> S32(by)).view(U32)))

opcodes(
    "LOP3.LUT",
    ("i = i i i # p", lambda a, b, c, table, p: lookup(table, a, b, c)),
    ("p i = i i i # p", lambda a, b, c, table, p: and_whether(lookup(table, a, b, c), p)),
)
opcodes(
    "PLOP3.LUT",
    ("p p = p p p # #", lambda a, b, c, table, other: (lookup(table, a, b, c), lookup(other, a, b, c))),
)
opcodes("PRMT", ("i = i i i", permuted))
opcodes("IABS", ("i = i", lambda a: abs(signed(a)).view(U32)))
opcodes("SGXT", ("i = i #", lambda a, bits: (signed(a << U32(32 - bits)) >> S32(32 - bits)).view(U32)))
opcodes("MOV", ("i = i", lambda a: a))
opcodes("MOV.64", ("l = l", lambda a: a))
opcodes("SEL", ("i = i i p", lambda a, b, p: np.where(p, a, b)))
opcodes("SEL.64", ("l = l l p", lambda a, b, p: np.where(p, a, b)))
opcodes(
    "IMNMX VIMNMX VIMNMX.S32",
    ("i = i i p", lambda a, b, p: smaller(signed(a), signed(b), p).view(U32)),
)
opcodes("IMNMX.U32 VIMNMX.U32", ("i = i i p", lambda a, b, p: smaller(a, b, p)))
opcodes(
    "IMNMX.S64",
    ("T T l = l l p N", lambda a, b, p, _: smaller(a.view(S64), b.view(S64), p).view(U64)),
)
opcodes("VIADDMNMX", ("i = i -i i p", lambda a, b, c, p: smaller(signed(a + b), signed(c), p).view(U32)))
opcodes("VIADDMNMX.U32", ("i = i -i i p", lambda a, b, c, p: smaller(a + b, c, p)))

opcodes("FADD", ("f = f f", lambda a, b: canonical(a + b)))
opcodes("FMUL", ("f = f f", lambda a, b: canonical(a * b)))
opcodes("FADD.FTZ", ("f = f f", lambda a, b: flushed(canonical(flushed(a) + flushed(b)))))
opcodes("FMUL.FTZ", ("f = f f", lambda a, b: flushed(canonical(flushed(a) * flushed(b)))))
opcodes("FFMA", ("f = f f f", lambda a, b, c: canonical(fma(a, b, c))))
opcodes("FSEL", ("f = f f p", lambda a, b, p: np.where(p, a, b)))
opcodes("FMNMX", ("f = f f p", lambda a, b, p: canonical(smaller(a, b, p))))
opcodes("HADD2.F32", ("f = Z h", lambda _, a: canonical(a)))  # -0 + a
opcodes("HFMA2 HFMA2.MMA", ("i = Z Z e e", lambda a, b, upper, lower: upper << U32(16) | lower))  # -0 0 + constants
opcodes("DADD", ("d = d d", lambda a, b: a + b))
opcodes("DMUL", ("d = d d", lambda a, b: a * b))
opcodes("DFMA", ("d = d d d", fma))
opcodes("DMUL.RP", ("d = d d", lambda a, b: directed(True)(a, b, F64(-0.0))))
opcodes("DFMA.RP", ("d = d d d", directed(True)))
opcodes("DFMA.RM", ("d = d d d", directed(False)))
opcodes("DSETP.MIN.AND", ("p p = d d p", minimum_in_two))

opcodes("MUFU.RCP", ("i = f", approximate("RCP", reciprocal)))
opcodes("MUFU.RSQ", ("i = f", approximate("RSQ", reciprocal_root)))
opcodes("MUFU.RCP64H", ("i = i", lambda a: approximate("RCP64H", reciprocal)(upper_half(a))))
opcodes("MUFU.RSQ64H", ("i = i", lambda a: approximate("RSQ64H", reciprocal_root)(upper_half(a))))

opcodes("I2F I2FP.F32.S32", ("f = i", lambda a: signed(a).astype(F32)))
opcodes("I2FP.F32.U32 I2F.U32", ("f = i", lambda a: a.astype(F32)))
opcodes("I2F.U8", ("f = b", lambda a: a.astype(F32)))
opcodes("I2F.U16", ("f = s", lambda a: a.astype(F32)))
opcodes("I2F.U32.RP", ("f = i", rounded_up))
opcodes("I2F.U64.RP", ("f = l", rounded_up))
opcodes("I2F.RP", ("f = i", lambda a: rounded_up(positive(a))))
opcodes("I2F.F64.S64", ("d = l", lambda a: a.view(S64).astype(F64)))
opcodes("I2F.F64", ("d = i", lambda a: signed(a).astype(F64)))
opcodes("I2F.F64.U32", ("d = i", lambda a: a.astype(F64)))
opcodes("I2F.F64.U8", ("d = b", lambda a: a.astype(F64)))
opcodes("I2F.F64.U16", ("d = s", lambda a: a.astype(F64)))
opcodes("F2I.FTZ.U32.TRUNC.NTZ", ("i = f", lambda x: low(truncated(x, 32, nan=U64(0)))))
opcodes("F2I.U64.TRUNC", ("l = f", lambda x: truncated(x, 64, nan=U64(1 << 63))))
opcodes("F2F.F32.F64", ("f = d", lambda x: canonical(x.astype(F32))))
opcodes("F2F.F64.F32", ("d = f", lambda x: x.astype(F64)))
opcodes("F2F.F16.F32", ("i = f", lambda x: narrowed(x, np.float16)))
opcodes(
    "F2FP.PACK_AB F2FP.F16.F32.PACK_AB",
    ("i = f f", lambda a, b: narrowed(a, np.float16) << U32(16) | narrowed(b, np.float16)),
)
opcodes(
    "F2FP.BF16.PACK_AB F2FP.BF16.F32.PACK_AB",
    ("i = f f", lambda a, b: narrowed(a, ml_dtypes.bfloat16) << U32(16) | narrowed(b, ml_dtypes.bfloat16)),
)

COMPARE = {
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal,
}  # fmt: skip
LOGIC = {"AND": np.logical_and, "OR": np.logical_or}


def of_integers(compare, logic, as_type):
    return lambda a, b, p: logic(compare(as_type(a), as_type(b)), p)


def of_upper_words(compare, logic, as_type):
    """With .EX the last predicate is the comparison of the lower words."""
    ties = compare in (np.equal, np.not_equal)

    def run(a, b, p, below):
        a, b = as_type(a), as_type(b)
        if ties:
            return logic(compare(a, b) | below if compare is np.not_equal else compare(a, b) & below, p)
        return logic(np.where(a == b, below, compare(a, b)), p)

    return run


def of_floats(compare, logic, unordered):
    """A comparison with NaN gives `unordered`."""
    return lambda a, b, p: logic(np.where(np.isnan(a) | np.isnan(b), unordered, compare(a, b)), p)


for (name, compare), (also, logic) in itertools.product(COMPARE.items(), LOGIC.items()):
    for kind, as_type, form in (
        ("", signed, "i"),
        (".U32", np.asarray, "i"),
        (".U64", np.asarray, "l"),
        (".S64", lambda a: a.view(S64), "l"),
    ):
        opcodes(f"ISETP.{name}{kind}.{also}", (f"p T = {form} {form} p", of_integers(compare, logic, as_type)))
        if form == "i":
            opcodes(f"ISETP.{name}{kind}.{also}.EX", ("p T = i i p p", of_upper_words(compare, logic, as_type)))
    for precision, form in (("F", "f"), ("D", "d")):
        for suffix, unordered in (("", False), ("U", True)):
            function = of_floats(compare, logic, unordered)
            opcodes(f"{precision}SETP.{name}{suffix}.{also}", (f"p T = {form} {form} p", function))
            if form == "f":
                ftz = lambda a, b, p, function=function: function(flushed(a), flushed(b), p)  # noqa: E731
                opcodes(f"FSETP.{name}{suffix}.FTZ.{also}", ("p T = f f p", ftz))
opcodes("DSETP.NAN.AND", ("p T = d d p", lambda a, b, p: (np.isnan(a) | np.isnan(b)) & p))


# ---- operands ------------------------------------------------------------------------------------------------


class Operand:
    """One operand of an instruction as text, taken apart: its sign, and what remains."""

    def __init__(self, text, signs):
        self.sign = text[0] if text[0] in "-~!" and not re.match(r"-[\d.QI]", text) else ""
        self.text = text[len(self.sign) :]
        if self.sign and self.sign not in signs:
            raise Unknown


@cache
def word(text, uniform, further=0):
    """Returns a function of (run, lanes) for the word at an operand, or `further` words behind it."""
    if text in ("RZ", "URZ"):
        return lambda run, lanes: U32(0)
    if register := re.fullmatch(r"(U?)R(\d+)", text):
        number = int(register[2]) + further
        if uniform and not register[1]:
            raise Unknown
        if register[1] and not uniform:
            return lambda run, lanes: run.uniform[number][run.warp[lanes]]
        return lambda run, lanes: run.file(uniform)[number][lanes]
    if constant := re.fullmatch(r"c\[0x([02])\]\[0x([0-9a-f]+)\]", text):
        bank, offset = int(constant[1]), int(constant[2], 16) + 4 * further
        return lambda run, lanes: run.constant(bank, offset, 4).view(U32)[0]
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        value = int(text, 16)
        if not further and not -(2**31) <= value < 2**32:
            raise Unknown
        return lambda run, lanes: U32(value >> 32 * further & 0xFFFFFFFF)
    raise Unknown


@cache
def pair(text, uniform):
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        value = int(text, 16)
        if 2**31 <= value < 2**32:  # its sign would be a guess
            raise Unknown
        return lambda run, lanes: U64(value % 2**64)
    if (register := re.fullmatch(r"U?R(\d+)", text)) and int(register[1]) % 2:
        raise Unknown
    lower, upper = word(text, uniform), word(text, uniform, 1)
    return lambda run, lanes: wide(lower(run, lanes), upper(run, lanes))


def number(text):
    """A decimal number or an infinity; None: it is something else."""
    return float(text.replace("INF", "inf")) if re.fullmatch(r"[+-]?(INF|[\d.]+(e[+-]?\d+)?)", text) else None


def float_source(text, uniform, kind):
    dtype, read, bits = {"f": (F32, word, U32), "d": (F64, pair, U64)}[kind]
    if (text, kind) == ("+QNAN", "f"):
        return lambda run, lanes: NAN
    if (value := number(text)) is not None:
        return lambda run, lanes: dtype(value)
    operand = Operand(text, "-")
    inner = operand.text.strip("|")
    absolute = operand.text == f"|{inner}|"
    if not absolute and inner != operand.text:
        raise Unknown
    get, top = read(inner, uniform), bits(1) << bits(8 * dtype(0).itemsize - 1)

    def value_of(run, lanes):
        raw = get(run, lanes)
        raw = raw & ~top if absolute else raw
        return (raw ^ top if operand.sign else raw).view(dtype)

    return value_of


@cache
def source(kind, text, uniform):
    """Returns a function of (run, lanes) for the values of an operand. Raises Unknown if it is not of this kind."""
    signs, kind = kind[:-1], kind[-1]
    if kind in "fd":
        return float_source(text, uniform, kind)
    if kind == "p":
        operand = Operand(text, "!")
        if operand.text in ("PT", "UPT"):
            return lambda run, lanes: np.bool_(not operand.sign)
        if not (found := re.fullmatch(r"(U?)P([0-6])", operand.text)) or (uniform and not found[1]):
            raise Unknown
        index, of_warp = int(found[2]), found[1] and not uniform

        def predicate(run, lanes):
            value = run.predicates(uniform or found[1])[index][run.warp[lanes] if of_warp else lanes]
            return ~value if operand.sign else value

        return predicate
    if kind == "N":
        if text not in ("!PT", "!UPT"):
            raise Unknown
        return lambda run, lanes: np.bool_(False)
    if kind == "#":
        if not re.fullmatch(r"0x[0-9a-f]+", text):
            raise Unknown
        return lambda run, lanes: int(text, 16)
    if kind == "Z":
        if text not in ("RZ", "-RZ", "URZ"):
            raise Unknown
        return lambda run, lanes: U32(0)
    if kind == "e":
        if (value := number(text)) is None:
            raise Unknown
        return lambda run, lanes: U32(np.float16(value).view(np.uint16))
    if kind in "hbs":
        operand = Operand(text, "-" if kind == "h" else "")
        suffix = {"h": r"\.H([01])_H\2", "b": r"(?:\.B([0-3]))?", "s": r"(?:\.H([01]))?"}[kind]
        if not (found := re.fullmatch(r"(R\d+)" + suffix, operand.text)):
            raise Unknown
        get, width = word(found[1], uniform), 8 if kind == "b" else 16
        by, mask = U32(width * int(found[2] or 0)), U32((1 << width) - 1)
        part = lambda run, lanes: get(run, lanes) >> by & mask  # noqa: E731
        if kind == "h":
            sign = U32(0x8000 if operand.sign else 0)
            return lambda run, lanes: (part(run, lanes) ^ sign).astype(np.uint16).view(np.float16).astype(F32)
        return part
    operand = Operand(text, "-~" if kind == "w" else signs)
    get = (pair if kind == "l" else word)(operand.text, uniform)
    if kind == "w":
        if operand.sign == "-":
            return lambda run, lanes: U64(2**32) - wide(get(run, lanes))
        if operand.sign == "~":
            return lambda run, lanes: wide(get(run, lanes)) ^ LOW
        return lambda run, lanes: wide(get(run, lanes))
    if operand.sign == "-":
        return lambda run, lanes: np.negative(get(run, lanes))
    return (lambda run, lanes: ~get(run, lanes)) if operand.sign else get


@cache
def target(kind, text, uniform):
    """Returns a function of (run, lanes, values) that stores a result."""
    if kind in "Tp":
        if text in ("PT", "UPT"):
            return lambda run, lanes, values: None
        if kind == "T" or not (found := re.fullmatch("UP([0-6])" if uniform else "P([0-6])", text)):
            raise Unknown
        index = int(found[1])

        def set_predicate(run, lanes, values):
            run.predicates(uniform)[index][lanes] = values

        return set_predicate
    if text in ("RZ", "URZ"):
        return lambda run, lanes, values: None
    if not (found := re.fullmatch(r"UR(\d+)" if uniform else r"R(\d+)", text)):
        raise Unknown
    register = int(found[1])
    if kind in "ld" and register % 2:
        raise Unknown

    def set_register(run, lanes, values):
        file = run.file(uniform)
        if kind in "ld":
            raw = np.asarray(values).view(U64)
            file[register][lanes], file[register + 1][lanes] = low(raw), high(raw)
        else:
            file[register][lanes] = np.asarray(values).view(U32)

    return set_register


def compiled(name, operands, uniform):
    """Returns a function of (run, lanes) for an instruction of OPCODES."""
    for results, sources, function in OPCODES[name]:
        results, sources = results.split(), sources.split()
        if len(results) + len(sources) != len(operands):
            continue
        try:
            to = [target(k, text, uniform) for k, text in zip(results, operands, strict=False)]
            of = [source(k, text, uniform) for k, text in zip(sources, operands[len(results) :], strict=True)]
        except Unknown:
            continue

        def run_it(run, lanes, to=to, of=of, function=function):
            values = function(*[get(run, lanes) for get in of])
            if len(to) == 1:
                to[0](run, lanes, values)
            else:
                for put, value in zip(
                    to, values if isinstance(values, tuple) else itertools.repeat(values, len(to)), strict=True
                ):
                    put(run, lanes, value)

        return run_it
    raise Unknown


# ---- memory: (run, lanes) of accesses -------------------------------------------------------------------------

WIDTHS = {"": 4, ".64": 8, ".128": 16, ".U8": 1, ".U16": 2}
GLOBAL = {f"{name}.E{width}": size for name in ("LDG", "LD", "STG") for width, size in WIDTHS.items()}
SHARED = {f"{name}{width}": size for name in ("LDS", "STS") for width, size in WIDTHS.items()}
CONSTANT = {f"{name}{width}": size for name in ("LDC", "LDCU", "ULDC") for width, size in WIDTHS.items()}
SPECIAL = {
    "SR_TID.X": "thread",
    "SR_TID.Y": "zero",
    "SR_CTAID.X": "x",
    "SR_CTAID.Y": "y",
    "SR_CTAID.Z": "z",
    "SR_CgaCtaId": "zero",
}


def address(text, uniform=False):
    """Returns a function of (run, lanes) for a sum within brackets: R, R.64, R.X8, UR, and an offset."""
    if not (found := re.fullmatch(r"(?:desc\[UR\d+\])?\[(.*)\]", text)):
        raise Unknown
    terms = []
    for term in found[1].split("+"):
        if re.fullmatch(r"-?0x[0-9a-f]+", term):
            terms.append(lambda run, lanes, value=int(term, 16) % 2**64: U64(value))
        elif register := re.fullmatch(r"(R\d+)\.64", term):
            terms.append(pair(register[1], uniform))
        elif register := re.fullmatch(r"(U?R(?:\d+|Z))(?:\.X(4|8|16))?", term):
            terms.append(scaled(word(register[1], uniform), U64(register[2] or 1)))
        else:
            raise Unknown
    return lambda run, lanes: np.broadcast_to(sum((t(run, lanes) for t in terms), U64(0)), run.shape(lanes, uniform))


def scaled(get, factor):
    return lambda run, lanes: wide(get(run, lanes)) * factor


def words_of(text, uniform, size):
    """Returns the functions that store the words of a loaded value."""
    registers = [text] if text in ("RZ", "URZ") else []
    if not registers:
        prefix, first = re.fullmatch(r"(U?R)(\d+)", text).groups()
        if int(first) % max(size // 4, 1):
            raise Unknown
        registers = [f"{prefix}{int(first) + k}" for k in range(max(size // 4, 1))]
    return [target("i", register, uniform) for register in registers]


def loading(size, to, read):
    """read: gives the bytes, (lanes, size), for an instruction's lanes."""
    puts = words_of(to, False, size) if isinstance(to, str) else to

    def run_it(run, lanes):
        raw = read(run, lanes)
        if size < 4:
            raw = np.concatenate([raw, np.zeros((len(raw), 4 - size), np.uint8)], axis=1)
        words = np.ascontiguousarray(raw).view(U32)
        for put, column in zip(puts, words.T, strict=True):
            put(run, lanes, column)

    return run_it


def storing(size, text, write):
    count = max(size // 4, 1)
    gets = [word(text, False, k) for k in range(count)]

    def run_it(run, lanes):
        shape = run.shape(lanes, False)
        words = np.stack([np.broadcast_to(get(run, lanes), shape) for get in gets], axis=1)
        write(run, lanes, np.ascontiguousarray(words).view(np.uint8)[:, :size])

    return run_it


def memory_access(name, operands):
    if name in CONSTANT:
        uniform, size = "U" in name.split(".")[0], CONSTANT[name]
        bank, inside = re.fullmatch(r"c\[0x([02])\](\[.*\])", operands[1]).groups()
        at = address(inside, uniform)
        read = lambda run, lanes: run.constant(int(bank), at(run, lanes).astype(S64), size)  # noqa: E731
        return loading(size, words_of(operands[0], uniform, size), read)
    stores = name.startswith("ST")
    place, register = operands if stores else operands[::-1]
    at, size = address(place), (GLOBAL | SHARED)[name]
    space = "shared" if name in SHARED else "arrays"
    if stores:
        return storing(
            size, register, lambda run, lanes, raw: getattr(run, f"store_{space}")(lanes, at(run, lanes), raw)
        )
    return loading(size, register, lambda run, lanes: getattr(run, f"load_{space}")(lanes, at(run, lanes), size))


MATRICES = {f"{name}.16.M88{count}": int(count[1:] or 1) for name in ("LDSM", "STSM") for count in ("", ".2", ".4")}


def access_of_matrices(name, operands):
    """PTX's ldmatrix and stmatrix: matrices of 8 rows of 16 bytes of shared memory, whose places the lanes of a warp
    have, eight for each matrix. Lane l has, of each, the word l % 4 of row l // 4."""
    stores = name.startswith("ST")
    place, register = operands if stores else operands[::-1]
    at, count, own = address(place), MATRICES[name], np.arange(32)
    puts, gets = words_of(register, False, 4 * count), [word(register, False, k) for k in range(count)]

    def run_it(run, lanes):
        rows = at(run, lanes).reshape(-1, 32)
        assert (np.arange(run.n)[lanes].reshape(-1, 32) % 32 == own).all(), "a matrix without all lanes of a warp"
        assert not (rows[:, : 8 * count] % U64(16)).any(), "a row of a matrix misaligned"
        for k in range(count):
            words = (rows[:, 8 * k + own // 4] + (4 * (own % 4)).astype(U64)).reshape(-1)
            if stores:
                held = np.broadcast_to(gets[k](run, lanes), words.shape)
                run.store_shared(lanes, words, np.ascontiguousarray(held).view(np.uint8).reshape(-1, 4))
            else:
                puts[k](run, lanes, np.ascontiguousarray(run.load_shared(lanes, words, 4)).view(U32)[:, 0])

    return run_it


def moves_of_predicates(name, operands):
    """P2R, UP2UR and R2P: predicates as bits of a word or of one of its bytes."""
    uniform, mask = name == "UP2UR", operands[-1]
    mask = U32(int(mask, 16))
    if name == "R2P":
        get = source("b", operands[1], False) if "." in operands[1] else word(operands[1], False)

        def to_predicates(run, lanes):
            bits = get(run, lanes)
            for k in range(7):
                if mask >> k & 1:
                    run.predicates(False)[k][lanes] = bits >> U32(k) & U32(1)

        return to_predicates
    get, put = word(operands[2], uniform), target("i", operands[0], uniform)

    def from_predicates(run, lanes):
        bits = sum((run.predicates(uniform)[k][lanes].astype(U32) << U32(k) for k in range(7)), U32(0))
        put(run, lanes, get(run, lanes) & ~mask | bits & mask)

    return from_predicates


def moves(name, operands):
    """Registers that come from elsewhere."""
    if name == "R2UR":  # lanes of a warp agree, or the code is wrong
        get, index = word(operands[1], False), int(re.fullmatch(r"UR(\d+)", operands[0])[1])

        def to_warp(run, lanes):
            values, warps = np.broadcast_to(get(run, lanes), run.shape(lanes, False)), run.warp[lanes]
            run.uniform[index][warps] = values
            assert (run.uniform[index][warps] == values).all(), "R2UR of a register that differs within a warp"

        return to_warp
    if name == "S2UR":
        index, key = int(re.fullmatch(r"UR(\d+)", operands[0])[1]), SPECIAL[operands[1]]
        assert key != "thread"

        def special_of_warp(run, lanes):
            run.uniform[index][run.warp[lanes]] = run.special[key][lanes]

        return special_of_warp
    if name == "S2R":
        put, key = target("i", operands[0], False), SPECIAL[operands[1]]
        return lambda run, lanes: put(run, lanes, run.special[key][lanes])
    put = target("l", operands[0], False)  # CS2R, of the register that is 0
    if operands[1] != "SRZ":
        raise Unknown
    return lambda run, lanes: put(run, lanes, U64(0))


# ---- kernels -------------------------------------------------------------------------------------------------

WAITS = {"BSYNC", "BSYNC.RECONVERGENT", "BSYNC.RELIABLE", "WARPSYNC", "WARPSYNC.ALL", "BAR.SYNC.DEFER_BLOCKING"}
BARRIERS = {"BSSY", "BSSY.RECONVERGENT", "BSSY.RELIABLE", "BREAK", "BREAK.RELIABLE"}
JUMPS = {"BRA", "BRA.U", "BRX", "BRXU", "CALL.REL.NOINC", "RET.REL.NODEC", "EXIT"}
STEP = 16  # bytes of an instruction


class Instruction:
    def __init__(self, pc, guard, name, operands, text):
        self.pc, self.name, self.operands, self.text, self.branches = pc, name, operands, text, None
        try:
            self.uniform = name.startswith("U") and (name[1:] in OPCODES or name in ("UP2UR", *CONSTANT))
            self.uniform |= name.startswith("LDCU")
            self.guard = source("p", guard, self.uniform) if guard else None
            self.effect = self._effect(name)
        except (Unknown, AttributeError, KeyError, ValueError) as error:
            raise Unknown(f"no instruction of the table: {text}") from error

    def _effect(self, name):
        if name in OPCODES or (name[1:] in OPCODES and self.uniform):
            return compiled(name[self.uniform :], self.operands, self.uniform)
        if name in CONSTANT or name in GLOBAL or name in SHARED:
            return memory_access(name, self.operands)
        if name in MATRICES:
            return access_of_matrices(name, self.operands)
        if name in ("P2R", "R2P", "UP2UR"):
            return moves_of_predicates(name, self.operands)
        if name in ("R2UR", "S2R", "S2UR", "CS2R"):
            return moves(name, self.operands)
        if name in WAITS | BARRIERS | JUMPS | {"NOP"}:
            return None
        raise Unknown


class Program:
    """The kernels of a cubin, by the sections of its file and nvdisasm's text of it. (Some versions do not write for
    which architecture.) shared: bytes of shared memory that a launch adds."""

    def __init__(self, sections, text, architecture=None, shared=0):
        self.sections, self.shared = sections, shared
        self.architecture = architecture or int(re.search(r"\.target\s+sm_(\d+)", text)[1])
        parts = re.split(r"^//-+ \.text\.(\w+)\s+-+$", text, flags=re.MULTILINE)
        self.texts = dict(zip(parts[1::2], parts[2::2], strict=True))
        self.kernel = cache(lambda name: Kernel(self, name))

    def execute(self, arrays):
        """Returns a function that runs one launch on the arrays that `arrays()` gives."""

        def execute(name, grid, threads, argument, begin=0):
            allowed = Memory(a for a in arrays() if a.size)
            return self.kernel(name).run(grid, threads, argument.copy(), allowed, begin)

        return execute


class Kernel:
    """The machine code of one kernel."""

    def __init__(self, program, name):
        self.name, self.code, self.labels, body = name, {}, {}, program.texts[name]
        self.driver, sections = DRIVER[program.architecture], program.sections
        self.constants = sections.get(f".nv.constant2.{name}", (b"", 0))[0]
        self.bank = sections[f".nv.constant0.{name}"][1]  # bytes of bank 0, whose end are the parameters
        self.shared = sections.get(f".nv.shared.{name}", (b"", self.driver["reserved"]))[1] + program.shared
        waiting = []
        for line in body.splitlines():
            if label := re.fullmatch(r"(\S+):", line.strip()):
                waiting.append(label[1])
            elif found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z0-9_.]+)\s*(.*?)\s*;", line):
                pc, guard, opcode, operands = int(found[1], 16), *found.groups()[1:]
                self.labels |= dict.fromkeys(waiting, pc)
                waiting = []
                operands, _, targets = operands.partition("(*")
                parts = [part.strip().removesuffix(".reuse") for part in operands.split(",")] if operands else []
                parts = [re.sub(r"\.reuse\b", "", part) for part in parts]
                self.code[pc] = Instruction(pc, guard, opcode, parts, found[0].split("*/")[1].strip())
                self.code[pc].branches = re.findall(r"\.L_x_\d+", targets)
        self.executed = set()  # addresses of the instructions that some warp has come to
        self.registers = 2 + max(map(int, re.findall(r"\bR(\d+)", body)))

    def run(self, grid, threads, argument, memory, begin=0):
        """Runs all blocks of a grid, or those that follow block `begin`. Returns what has been run."""
        run = Run(self, grid, threads, argument, memory, begin).run()
        self.executed.update(run.issued)
        return run

    def unexecuted(self):
        """Returns the instructions that no run has come to, but for padding and branches to themselves."""
        counts = [i for i in self.code.values() if i.name != "NOP" and not self._rests(i)]
        return [i for i in counts if i.pc not in self.executed], len(counts)

    def _rests(self, instruction):
        label = re.fullmatch(r"`\((.*)\)", instruction.operands[-1]) if instruction.name == "BRA" else None
        return bool(label) and self.labels[label[1]] == instruction.pc


def elf_sections(image):
    """Returns {name: (bytes, size)} of a 64-bit ELF file."""
    (start,), (size, count, names) = struct.unpack_from("<Q", image, 0x28), struct.unpack_from("<3H", image, 0x3A)
    headers = [struct.unpack_from("<2I4Q", image, start + size * k) for k in range(count)]
    table = headers[names][4]

    def name(at):
        return image[table + at : image.index(b"\0", table + at)].decode()

    nowhere = 8  # the type of sections that the file does not store
    return {name(h[0]): (b"" if h[1] == nowhere else image[h[4] : h[4] + h[5]], h[5]) for h in headers}


class Run:
    """One launch."""

    def __init__(self, kernel, grid, threads, argument, memory, begin=0):
        assert threads % 32 == 0
        blocks = grid[0] * grid[1] * grid[2]
        self.kernel, self.memory, self.n, self.threads = kernel, memory, blocks * threads, threads
        self.block, thread = np.divmod(np.arange(self.n), threads)
        self.warp = np.arange(self.n) // 32
        self.special = {
            "thread": thread.astype(U32),
            "x": (begin + self.block % grid[0]).astype(U32),
            "y": (self.block // grid[0] % grid[1]).astype(U32),
            "z": (self.block // grid[0] // grid[1]).astype(U32),
            "zero": np.zeros(self.n, U32),
        }
        arbitrary = np.random.default_rng(1)
        self.registers = arbitrary.integers(0, 2**32, (kernel.registers, self.n), U32)
        self.uniform = arbitrary.integers(0, 2**32, (128, self.n // 32), U32)
        self.flags = [arbitrary.integers(0, 2, (7, count)).astype(bool) for count in (self.n, self.n // 32)]
        self._fill_bank(argument, (begin + grid[0], *grid[1:]), threads)
        self.shared = arbitrary.integers(0, 256, (blocks, kernel.shared), np.uint8)
        self.sharing, self.passed = Sharing(self.shared.size), np.zeros(self.n, np.int64)  # barriers
        self.met = np.zeros(self.n, np.int64)  # those of warps
        self.touched = {"load": [], "store": []}
        self.pc = np.zeros(self.n, np.int64)
        self.waits = np.full(self.n, "", dtype=object)  # for what a thread waits
        self.groups = {}  # by register of a barrier, each thread's group there: its first thread, or -1
        self.issued = Counter()  # by address, the warps that came there

    def _fill_bank(self, argument, grid, threads):
        raw, place = np.frombuffer(argument, np.uint8), self.memory.place(argument)
        begin = self.kernel.bank - len(raw)
        self.bank, self.known = np.zeros(self.kernel.bank, np.uint8), np.zeros(self.kernel.bank, bool)
        entries = {
            "threads": np.array([threads, 1, 1], U32),
            "grid": np.array(grid, U32),
            "stack": np.zeros(1, U32),
            "window": np.zeros(2, U32),
            "bank": np.array([place - begin], U64),
            "parameters": np.array([place], U64),
        }
        known = [(self.kernel.driver[key], value) for key, value in entries.items() if key in self.kernel.driver]
        for at, value in [*known, (begin, raw)]:
            value = value.view(np.uint8)
            self.bank[at : at + value.size], self.known[at : at + value.size] = value, True

    # ---- what instructions ask for

    def file(self, uniform):
        return self.uniform if uniform else self.registers

    def predicates(self, uniform):
        return self.flags[bool(uniform)]

    def shape(self, lanes, uniform):
        return (self.n // 32 if uniform else self.n,) if isinstance(lanes, slice) else lanes.shape

    def constant(self, bank, offset, size):
        """Bytes of a constant bank, at one offset or at one for each lane."""
        data = np.frombuffer(self.kernel.constants, np.uint8) if bank == 2 else self.bank
        index = np.asarray(offset)[..., None] + np.arange(size)
        assert ((index >= 0) & (index < data.size)).all(), "a constant outside its bank"
        assert not (np.asarray(offset) % size).any(), "a misaligned constant"
        assert bank == 2 or self.known[index].all(), f"a constant that the driver is not known to set: {offset}"
        return data[index]

    def load_arrays(self, lanes, at, size):
        self.touched["load"].append((self._threads(lanes), at, size))
        words = self.memory.load(at, min(size, 4), max(size // 4, 1))
        return np.ascontiguousarray(words.T).view(np.uint8)

    def store_arrays(self, lanes, at, raw):
        size = raw.shape[1]
        self.touched["store"].append((self._threads(lanes), at, size))
        words = np.ascontiguousarray(raw).view({1: np.uint8, 2: np.uint16}.get(size, U32))
        self.memory.store(at, min(size, 4), list(words.T))

    def load_shared(self, lanes, at, size):
        index = self._within_shared(lanes, at, size, self.sharing.load)
        return self.shared.reshape(-1)[index]

    def store_shared(self, lanes, at, raw):
        index = self._within_shared(lanes, at, raw.shape[1], self.sharing.store)
        self.shared.reshape(-1)[index] = raw

    def _within_shared(self, lanes, at, size, access):
        at = low(at).astype(S64)
        inside = (at >= self.kernel.driver["reserved"]) & (at + size <= self.kernel.shared)
        if not inside.all():
            raise IndexError(f"access of {size} bytes outside of shared memory, at {at[~inside][0]:#x}")
        if (at % size).any():
            raise ValueError(f"access of {size} bytes of shared memory misaligned, at {at[at % size != 0][0]:#x}")
        index = (self.block[lanes] * self.kernel.shared + at)[:, None] + np.arange(size)
        access(index, self._threads(lanes), self.passed[lanes], self.met[lanes])
        return index

    def _threads(self, lanes):
        return np.arange(self.n)[lanes]

    # ---- execution

    def run(self):
        with np.errstate(all="ignore"):
            while self._advance():
                pass
        self._check_races()
        return self

    @property
    def instructions(self):
        """Returns how many instructions warps have issued."""
        return sum(self.issued.values())

    def bytes(self):
        """Returns how many bytes of arrays were loaded, and how many stored, however often."""
        return tuple(len(np.unique(self._accesses(kind)[0])) for kind in ("load", "store"))

    def _advance(self):
        """Runs the threads that are furthest behind up to where they part or wait or meet others. False: all ended."""
        ready = (self.pc >= 0) & (self.waits == "")
        if not ready.any():
            if (self.pc < 0).all():
                return False
            assert self._release(), f"threads wait for each other, at {self.pc[self.pc >= 0].min():#x}"
            return True
        here = int(self.pc[ready].min())
        later = self.pc[ready & (self.pc > here)]
        stop = int(later.min()) if later.size else -1
        at = np.flatnonzero(ready & (self.pc == here))
        warps = np.unique(self.warp[at])
        lanes = slice(None) if len(at) == self.n else at
        of_warps = slice(None) if len(at) == self.n else warps
        while here != stop:
            instruction = self.kernel.code[here]
            self.issued[here] += len(warps)
            if instruction.name == "NOP":  # ptxas leaves it in place of a barrier of a warp that is whole
                whole = np.bincount(self.warp[at], minlength=self.n // 32) == 32
                self.met[at[whole[self.warp[at]]]] += 1
            if instruction.effect is None and instruction.name != "NOP":
                self._control(instruction, at)
                return True
            if instruction.effect:
                chosen = of_warps if instruction.uniform else lanes
                if instruction.guard:
                    holds = np.broadcast_to(instruction.guard(self, chosen), self.shape(chosen, instruction.uniform))
                    if not holds.all():
                        chosen = (np.arange(len(holds)) if isinstance(chosen, slice) else chosen)[holds]
                if isinstance(chosen, slice) or chosen.size:
                    instruction.effect(self, chosen)
            here += STEP
        self.pc[at] = here
        return True

    def _control(self, instruction, at):
        name, operands = instruction.name, instruction.operands
        self.pc[at] = instruction.pc + STEP
        if instruction.guard:
            at = at[np.broadcast_to(instruction.guard(self, at), at.shape)]
        if name in ("BRA", "BRA.U"):
            for operand in operands[:-1]:
                at = at[np.broadcast_to(source("p", operand, False)(self, at), at.shape)]
            self.pc[at] = self._label(operands[-1])
        elif name == "CALL.REL.NOINC":
            self.pc[at] = self._label(operands[0])
        elif name in ("BRX", "BRXU", "RET.REL.NODEC"):
            register, offset = operands[0].split()
            to = pair(register, False)(self, at).view(S64)
            if name.startswith("BRX"):
                to = to + instruction.pc + STEP + int(offset, 16)
                assert {*np.unique(to).tolist()} <= {self.kernel.labels[label] for label in instruction.branches}
            else:
                to = to + self._label(offset)
            self.pc[at] = to
        elif name == "EXIT":
            self.pc[at] = -1
            for group in self.groups.values():
                group[at] = -1
        elif name.startswith("BSSY"):
            _, first, inverse = np.unique(self.warp[at], return_index=True, return_inverse=True)
            self.groups.setdefault(operands[0], np.full(self.n, -1))[at] = at[first][inverse]
        elif name.startswith("BREAK"):
            self.groups[operands[0]][at] = -1
        else:
            assert len(at) or instruction.guard
            self.pc[at] = instruction.pc
            self.waits[at] = operands[0] if name.startswith("BSYNC") else name.split(".")[0]
            self._release()

    def _label(self, operand):
        return self.kernel.labels[re.fullmatch(r"`\((.*)\)", operand)[1]]

    def _release(self):
        """Lets threads go on whose group has come together. Returns whether there are any."""
        released = False
        alive = self.pc >= 0
        for what in {*self.waits[alive]} - {""}:
            group = {"WARPSYNC": self.warp, "BAR": self.block}.get(what)
            group = self.groups[what] if group is None else group
            here = alive & (self.waits == what)
            present = np.bincount(group[here & (group >= 0)], minlength=self.n)
            members = np.bincount(group[alive & (group >= 0)], minlength=self.n)
            free = np.flatnonzero(here & ((group < 0) | (present[group] == members[group])))
            if not free.size:
                continue
            released = True
            self.pc[free] += STEP
            self.waits[free] = ""
            if what == "BAR":
                self.passed[free] += 1
            elif what == "WARPSYNC":
                self.met[free] += 1
            else:
                self.groups[what][free] = -1
        return released

    def _check_races(self):
        """No byte of an array is stored by one thread and touched by another one: nothing orders them."""
        if not self.touched["store"]:
            return
        stored, writers = self._accesses("store")
        places, first, inverse = np.unique(stored, return_index=True, return_inverse=True)
        assert (writers[first][inverse] == writers).all(), "a race: two threads store to one byte of an array"
        loaded, readers = self._accesses("load")
        index = np.searchsorted(places, loaded).clip(max=len(places) - 1)
        race = (places[index] == loaded) & (writers[first][index] != readers)
        assert not race.any(), "a race: a thread loads what another one stores to an array"

    def _accesses(self, kind):
        """Returns addresses of bytes, and the threads that touched them."""
        found = [(np.zeros(0, S64), np.zeros(0, S64))]
        for threads, at, size in self.touched[kind]:
            found.append(((at.astype(S64)[:, None] + np.arange(size)).reshape(-1), np.repeat(threads, size)))
        return tuple(map(np.concatenate, zip(*found, strict=True)))
