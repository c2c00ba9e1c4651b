# SPDX-License-Identifier: Apache-2.0
"""docs/noise.md alone defines all bits: this implements that page, in exact rational arithmetic.

Its constants are read from the page. Seen to fail: a digit of any of them changed in the page, >> made logical, r
rounded twice, a negation where one top bit is set.
"""

import bisect
import itertools
import math
import random
import re
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import noisefuse as nf
from conftest import read_known
from noisefuse.backends import spec
from noisefuse.backends.reference import SPEC
from test_noise import noises_of

PAGE = (Path(__file__).parents[2] / "docs" / "noise.md").read_text()


def constants_of(page):
    """Returns {type: {name: numbers, as text}} from the page's block."""
    (block,) = re.findall(r"^```text\n(float32\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found = {}
    for part in block.split("\n\n"):
        title, *lines = re.sub(r"\n +", " ", part).splitlines()  # a line that begins with blanks is a continuation
        found[title] = {name: rest.split() for name, _, rest in (line.partition("  ") for line in lines)}
    return found


CONSTANTS = constants_of(PAGE)
M0, M1, W0, W1 = (
    int(re.search(rf"{text} (0x[0-9A-F]{{8}})", PAGE)[1], 16) for text in ("M0 =", "M1 =", "k0 grows by", "k1 by")
)

# ---- philox ------------------------------------------------------------------------------------------------


def philox(counter, key):
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 % 2**32, p0 >> 32 ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + W0) % 2**32, (k1 + W1) % 2**32
    return c0, c1, c2, c3


@cache
def block_of(seed, sample, step, stream, block, low):
    counter = block, step, sample % 2**32, low << 31 | stream << 24 | sample >> 32
    return philox(counter, (seed % 2**32, seed >> 32))


# ---- arithmetic --------------------------------------------------------------------------------------------


def exponent(x):
    """Returns the largest k with 2^k <= |x|, for a fraction of a power of two."""
    return abs(x.numerator).bit_length() - x.denominator.bit_length()


def two_to(k):
    return Fraction(1 << max(k, 0), 1 << max(-k, 0))


@dataclass
class Real:
    """Numbers of N bits, M of them a fraction. Rounded numbers are never subnormal, nor too large here."""

    N: int
    M: int
    numbers: dict

    def __post_init__(self):
        exact = {name: [Fraction(float.fromhex(n)) for n in self.numbers[name]] for name in ("P", "C", "S", "ln 4")}
        self.P, self.C, self.S, (self.ln4,) = exact.values()
        self.two_thirds = int(*self.numbers["bits(real(2/3 * 2^N))"], 16)

    def near(self, x):
        """Returns x rounded to nearest even."""
        if x == 0:
            return x
        place = exponent(x) - self.M  # the place of the last digit
        up, down = max(place, 0), max(-place, 0)
        unit = x.denominator << up
        whole, rest = divmod(x.numerator << down, unit)
        whole += 2 * rest > unit or (2 * rest == unit and whole % 2 == 1)
        return Fraction(whole << up, 1 << down)

    def root(self, x):
        """Returns sqrt(x), rounded once: 128 digits behind the point and one more, which says that others follow."""
        square = x * two_to(256)
        whole = math.isqrt(math.floor(square))
        return self.near(Fraction(2 * whole + (whole * whole != square), 1 << 129))

    def bits(self, x):
        """Returns the logarithm of a positive number of this type."""
        k = exponent(x)
        return (k + 2 ** (self.N - self.M - 2) - 1 << self.M) + int((x * two_to(-k) - 1) * 2**self.M)

    def horner(self, c, x):
        total = c[-1]
        for coefficient in reversed(c[:-1]):
            total = self.near(total * x + coefficient)
        return total

    def normal(self, u, v, second):
        """Returns z0 of a pair; z1 if `second`."""
        e = (self.bits(self.near(Fraction(2 * u + 1, 2))) - self.two_thirds) >> self.M
        r = self.near((2 * u + 1) * two_to(-e - self.N - 1) - 1)
        radius = self.root(self.near(e * -self.ln4 + self.near(r * self.horner(self.P, r))))
        n = (2 * v + 1) % 2**self.N
        n -= 2**self.N if n >= 2 ** (self.N - 1) else 0
        t = self.near(Fraction(n)) * two_to(-self.N)
        y = self.near(t * t)
        factor = self.near(t * self.horner(self.S, y)) if second else self.horner(self.C, y)
        return self.near(radius * (-factor if v >> self.N - 2 in (1, 2) else factor))


REALS = {name: Real(*size, CONSTANTS[name]) for name, size in {"float32": (32, 23), "float64": (64, 52)}.items()}


def words(real, seed, sample, step, stream, element):
    """Returns the four values of an element's block, with float64's further digits."""
    found = block_of(seed, sample, step, stream, element >> 2, 0)
    if real.N == 32:
        return found
    further = block_of(seed, sample, step, stream, element >> 2, 1)
    return [2**32 * w + low for w, low in zip(found, further, strict=True)]


def normal(real, *name):
    """Returns the number of (seed, sample, step, stream, element)."""
    w, i = words(real, *name), name[-1] & 3
    return real.normal(w[i & 2], w[i | 1], i & 1)


def uniform(real, seed, sample, step, stream, element):
    word = words(real, seed, sample, step, stream or 7, element)[element & 3]
    return (2 * (word >> real.N - real.M) + 1) * two_to(-real.M - 1)


# ---- the library -------------------------------------------------------------------------------------------


def edges(size):
    """Words next to changes of e, to U = 0 and 1 and those that round to it; and next to the quarters of the circle."""
    u = [*range(4), *(2**size - d for d in (1, 2, 2**7, 2**8, 2**9, 2**10, 2**11 + 1)), 2**24 - 1, 2**31]
    u += [2 ** (size + 1) // 3 // 2**k + d for k in (0, 1, 2, 9, size // 2, size - 2) for d in (-1, 0, 1)]
    v = [(quarter * 2 ** (size - 2) + d) % 2**size for quarter in range(4) for d in (-1, 0, 2 ** (size - 3))]
    return list(itertools.product(u, v))


def edge_names():
    """Returns elements whose words are edges."""
    pairs = np.array(edges(32), np.uint32)
    for noise in noises_of(np.concatenate([pairs, pairs], 1)):
        for i in range(2):
            yield noise.seed, noise.sample, noise.step, noise.stream, noise.window_start[0] + i


def random_names(n):
    """Draws (seed, sample, step, stream, element), of all sizes."""
    rng = random.Random(754)
    for _ in range(n):
        yield tuple(rng.getrandbits(rng.randint(1, bits)) for bits in (64, 56, 32, 7, 34))


@pytest.fixture(scope="module")
def names():
    return [*edge_names(), *random_names(10_000)]


def drawn(draw, names, dtype):
    noises = [nf.Noise(a, sample=b, step=c, stream=d).window((2**34,), (element,)) for a, b, c, d, element in names]
    return draw((len(names), 1), noises, dtype=dtype)[:, 0].tolist()


@pytest.mark.parametrize("dtype", REALS)
def test_normals(names, dtype):
    assert drawn(nf.randn, names, dtype) == [float(normal(REALS[dtype], *name)) for name in names]


@pytest.mark.parametrize("dtype", REALS)
def test_uniforms(names, dtype):
    assert drawn(nf.uniform, names, dtype) == [float(uniform(REALS[dtype], *name)) for name in names]


@pytest.mark.parametrize("dtype", REALS)
def test_normals_of_edges(dtype):
    """It covers both words of float64, too, for which no key can be found."""
    real = REALS[dtype]
    found = [[float(real.normal(u, v, second)) for u, v in edges(real.N)] for second in (0, 1)]
    w = np.array(edges(real.N), np.uint64).T
    if real.N == 32:
        expected = SPEC.normal_pair32(*w.astype(np.uint32))
    else:
        expected = SPEC.normal_pair64(*(part.astype(np.uint32) for a in w for part in (a >> 32, a & 0xFFFFFFFF)))
    assert found == [z.tolist() for z in expected]


def test_known_normals():
    for u, v, *z in ([int(number, 16) for number in line] for line in read_known("normal64.txt")):
        found = [float(REALS["float64"].normal(u, v, second)) for second in (0, 1)]
        assert np.array(found).view(np.uint64).tolist() == z


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize(("name", "letter"), {"log1p": "P", "sin": "S", "cos": "C"}.items())
def test_coefficients_are_those_of_the_kernels(csrc_constants, dtype, name, letter):
    """The last digits of the last coefficients hardly ever reach a result."""
    (theirs,) = [numbers for key, *numbers in csrc_constants if key == f"{name}{REALS[dtype].N}"]
    assert getattr(REALS[dtype], letter) == [float.fromhex(c) for c in theirs]


@pytest.mark.parametrize("dtype", REALS)
def test_two_thirds(dtype):
    """Computes a hundred digits more. If e is another one, most results are the same."""
    real = REALS[dtype]
    assert real.two_thirds == real.bits(real.near(Fraction(2 ** (real.N + 101) // 3, 2**100)))


# ---- categories --------------------------------------------------------------------------------------------


def test_exponentials_are_those_of_the_page():
    """Seen to fail: a digit of each changed in the page."""
    blocks = re.findall(r"^```text\n(of float32\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    numbers = {}
    for part in blocks[0].split("\n\n"):
        title, *lines = re.sub(r"\n {3,}", "  ", part).splitlines()
        for line in lines:
            name, *coefficients = re.split(r" {2,}", line)
            numbers[title, name] = [float.fromhex(c) for c in coefficients]
    ours = (spec.LN2_HIGH32, spec.LN2_LOW32, spec.TWICE_EXP32), (spec.LN2_HIGH64, spec.LN2_LOW64, spec.EXP64)
    assert [*numbers.values()] == [[float(c) for c in np.atleast_1d(known)] for of_type in ours for known in of_type]
    assert f"1 / ln 2 = {float(spec.LOG2_E).hex()}" in PAGE
    ln2 = Fraction(Context(60).ln(Decimal(2)))
    for title, short, error in (("of float32", 14, 38), ("of float64", 42, 92)):
        (high,), (low,) = numbers[title, "h"], numbers[title, "l"]
        assert (high * 2**short).is_integer()  # its products with n are exact
        assert abs(Fraction(high) + Fraction(low) - ln2) < Fraction(1, 2**error)


# ---- bytes that change -------------------------------------------------------------------------------------


def light(n, peak, gamma):
    if gamma == 1:
        return peak * n / 510
    context = Context(28)
    return peak * float(context.power(context.divide(n, 510), Decimal(gamma)))


def poisson(a, peak, gamma):
    """Returns F of byte a."""
    m, most = (12 * math.sqrt(light(2 * n, peak, gamma)) + 30 for n in (a, 255))
    mean, counts = light(2 * a, peak, gamma), math.ceil(2 * most) + 1
    low = max(math.floor(mean - m), 0)
    weights = itertools.accumulate(range(1, counts + 1), lambda p, k: p * (mean / (low + k)), initial=1.0)
    sums = [*itertools.accumulate(weights)]
    for b in range(256):
        half = light(2 * b + 1, peak, gamma)
        greatest = math.ceil(half) - 1 if b % 2 else math.floor(half)
        yield sums[min(greatest - low, counts)] / sums[-1] if greatest >= low else 0.0


def becomes(word, reached):
    return bisect.bisect([round(f * 2**32) for f in reached[:255]], word)  # the product is exact, halves go to even


@pytest.mark.parametrize(("peak", "gamma"), [(30.0, 1.0), (255.0, 1.0), (100.0, 2.2), (3.0, 0.45)])
def test_photons(peak, gamma):
    """Seen to fail: halves that go to odd bytes."""
    x = np.arange(256, dtype=np.uint8).repeat(8)[None]
    reached = [[*poisson(a, peak, gamma)] for a in range(256)]
    found = nf.augment.poisson(x, peak, nf.Noise(7, sample=3), gamma=gamma)[0].tolist()
    names = [words(REALS["float32"], 7, 3, 0, 0, i)[i & 3] for i in range(x.size)]
    assert found == [becomes(w, reached[a]) for w, a in zip(names, x[0].tolist(), strict=True)]


def test_transitions():
    matrix = np.random.default_rng(5).dirichlet(np.full(256, 0.1), 256)
    x = np.arange(256, dtype=np.uint8).repeat(8)[None]
    found = nf.augment.transition(x, matrix, nf.Noise(7, sample=3))[0].tolist()
    sums = [[*itertools.accumulate(row)] for row in matrix.tolist()]
    for i, a in enumerate(x[0].tolist()):
        w = words(REALS["float32"], 7, 3, 0, 0, i)[i & 3]
        assert found[i] == becomes(w, [total / sums[a][-1] for total in sums[a]])
