# SPDX-License-Identifier: Apache-2.0
"""The noise against theory: every statistic becomes a probability, and all of them together must look uniform.

    python tests/campaign/noise_statistics.py [--bits 22] [--seed N]    2^22 numbers, seconds; 2^28 take minutes

A statistic's u is the probability, if the theory holds, of a smaller one: uniform in (0, 1), and near 0 or 1 if
something is wrong. All together must be uniform (Kolmogorov and Smirnov), and none may be too near to 0 or 1 for their
number (Bonferroni). Either fails by chance in one run of 1 / LEVEL. Then everything is drawn once more, from another
seed, and that result counts.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import noisefuse as nf
from differential import Result, show

Floats = NDArray[np.float64]

LEVEL = 1e-3
ROWS, COLUMNS = 1024, 256  # the shape of a chunk: so many neighbours along an axis, and so many such lines
LAGS = 64
BINS = 1 << 16
SCALE = 4096.0  # bins of normals are 1 / SCALE wide and end at +-8
TAILS = (4.0, 5.0, 5.5, 6.0)
AXES = ("element", "sample", "step", "stream", "seed")
KINDS = tuple((draw, dtype) for draw in ("randn", "uniform") for dtype in ("float32", "float64"))


class Value(NamedTuple):
    label: str
    u: float

    @property
    def p(self) -> float:
        """The two-sided probability; 0 for NaN."""
        return 0.0 if math.isnan(self.u) else 2 * min(float(self.u), 1 - float(self.u))


# ------------------------------------------------------------------------------------------- probabilities


def normal_cdf(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def chi2_cdf(x: float, degrees: int) -> float:
    """Returns the approximation of Wilson and Hilferty (1931), within 1e-4 from a hundred degrees on."""
    spread = 2 / (9 * degrees)
    return normal_cdf(((x / degrees) ** (1 / 3) - 1 + spread) / math.sqrt(spread))


def kolmogorov_cdf(distance: float, n: float) -> float:
    """Returns the probability of a smaller distance between n values' distribution and the true one (Stephens 1970)."""
    x = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    if x < 0.2:
        return 0.0  # below 1e-12
    beyond = 2 * sum((1 if k % 2 else -1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 1 - beyond))


def anderson_cdf(a: float) -> float:
    """Returns the approximation of Marsaglia and Marsaglia (2004), within 2e-6."""
    if a < 2:
        factor = (((-0.00168691 * a + 0.0116720) * a - 0.0347962) * a + 0.0649821) * a - 0.247105
        return math.exp(-1.2337141 / a) / math.sqrt(a) * (2.00012 - factor * a)
    factor = (((-0.0003146 * a + 0.008056) * a - 0.082433) * a + 0.43424) * a - 2.30695
    return math.exp(-math.exp(1.0776 + factor * a))


def poisson_u(count: int, mean: float, fraction: float) -> float:
    """Returns a uniform number for a fraction of P(X = count) that is uniform, because a count is not continuous."""
    if count > mean + 40 * math.sqrt(mean) + 40:
        return 1.0
    log = math.log(mean)
    below = sum(math.exp(k * log - mean - math.lgamma(k + 1)) for k in range(count))
    return min(1.0, below + fraction * math.exp(count * log - mean - math.lgamma(count + 1)))


@cache
def normal_bins() -> Floats:
    """Returns each bin's probability; the tails beyond 8 have no bin."""
    tail = np.array([math.erfc(k / SCALE / math.sqrt(2)) / 2 for k in range(BINS // 2 + 1)])
    upper = tail[:-1] - tail[1:]
    return np.concatenate([upper[::-1], upper])


# ----------------------------------------------------------------------------------------------------- sums


class Sums:
    """The sums that are kept of the numbers from one distribution. Sums of several can be added."""

    draw: str
    digits: int
    n: int
    moments: Floats
    bins: NDArray[np.int64]
    low_bins: NDArray[np.int64]
    spectra: Floats

    def __init__(self, draw: str, dtype: str) -> None:
        self.draw, self.digits, self.n = draw, 23 if dtype == "float32" else 52, 0
        self.moments = np.zeros(4)
        self.bins, self.low_bins = np.zeros((2, BINS), np.int64)
        self.spectra = np.zeros((2, ROWS // 2 + 1))

    def add(self, drawn: NDArray[Any]) -> None:
        """Adds lines of ROWS neighbours."""
        self.n += drawn.size
        flat = drawn.reshape(-1)
        if self.draw == "randn":
            self.bins += self._counts(np.floor(flat * drawn.dtype.type(SCALE)).astype(np.int64) + BINS // 2)
        else:
            cells = (flat * 2.0**self.digits).astype(np.int64)
            self.bins += self._counts(cells >> (self.digits - 16))
            self.low_bins += self._counts(cells & (BINS - 1))
        y, polynomials = self._polynomials(flat.astype(np.float64))
        self.moments += [p.sum() for p in polynomials]
        squares = (y * y - 1) / math.sqrt(2 if self.draw == "randn" else 0.8)
        for spectrum, x in zip(self.spectra, (y, squares), strict=True):
            spectrum += (abs(np.fft.rfft(x.reshape(-1, ROWS))) ** 2).sum(0)

    @staticmethod
    def _counts(bins: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)

    def _polynomials(self, x: Floats) -> tuple[Floats, tuple[Floats, ...]]:
        """Returns x with variance 1; and Hermite's or Legendre's polynomials of it, of variance 1 and uncorrelated."""
        if self.draw == "randn":
            x2 = x * x
            third, fourth = x * (x2 - 3) / math.sqrt(6), ((x2 - 6) * x2 + 3) / math.sqrt(24)
            return x, (x, (x2 - 1) / math.sqrt(2), third, fourth)
        x = 2 * x - 1
        x2, y = x * x, x * math.sqrt(3)
        third, fourth = (5 * x2 - 3) * x * (math.sqrt(7) / 2), ((35 * x2 - 30) * x2 + 3) * (3 / 8)
        return y, (y, (3 * x2 - 1) * (math.sqrt(5) / 2), third, fourth)

    def __iadd__(self, other: Sums) -> Sums:
        for name in ("n", "moments", "bins", "low_bins", "spectra"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def values(self, random: Random) -> Iterator[Value]:
        for k, total in enumerate(self.moments, 1):
            yield Value(f"moment {k}", normal_cdf(total / math.sqrt(self.n)))
        uniform = np.full(BINS, 1 / BINS)
        yield from self._distribution(normal_bins() if self.draw == "randn" else uniform)
        if self.draw == "randn":
            for tail in TAILS:
                inside = int(tail * SCALE)
                count = self.n - int(self.bins[BINS // 2 - inside : BINS // 2 + inside].sum())
                yield Value(
                    f"beyond {tail}", poisson_u(count, self.n * math.erfc(tail / math.sqrt(2)), random.random())
                )
        else:
            yield self._chi2("chi2 of the last bits", self.low_bins, uniform)
        # Sums of x[r] x[r + lag]; the end of a line wraps around to its beginning.
        lags = np.fft.irfft(self.spectra, ROWS)[:, 1 : LAGS + 1] / math.sqrt(self.n)
        for of, totals in zip(("", " of squares"), lags, strict=True):
            for lag, total in enumerate(totals, 1):
                yield Value(f"lag {lag}{of}", normal_cdf(total))

    def _distribution(self, probability: Floats) -> Iterator[Value]:
        yield self._chi2("chi2", self.bins, probability)
        true = np.cumsum(probability)[:-1]
        apart = np.cumsum(self.bins)[:-1] / self.n - true
        yield Value("Kolmogorov-Smirnov", kolmogorov_cdf(float(abs(apart).max()), self.n))
        inner = (true > 0) & (true < 1)
        squares = apart[inner] ** 2 / (true * (1 - true))[inner]
        yield Value("Anderson-Darling", anderson_cdf(self.n * float(squares @ probability[:-1][inner])))

    def _chi2(self, label: str, counts: NDArray[np.int64], probability: Floats) -> Value:
        """Returns chi-square over bins, joined where fewer than 10 numbers are expected."""
        expected = self.n * probability
        _, group = np.unique(np.minimum(np.cumsum(expected) // 10, self.n // 10 - 1), return_inverse=True)
        wanted, found = np.bincount(group, expected), np.bincount(group, counts)
        return Value(label, chi2_cdf(float(((found - wanted) ** 2 / wanted).sum()), len(wanted) - 1))


# ------------------------------------------------------------------------------------------------------ the draws


def drawn(draw: str, dtype: str, axis: str, seed: int, k: int, columns: int) -> NDArray[Any]:
    """Returns the k-th chunk, lines of ROWS: along a line one of the key's four numbers, or the element, counts up."""
    function, first = getattr(nf, draw), k * ROWS
    if axis == "element":
        chunk: NDArray[Any] = function((1, ROWS * columns), nf.Noise(seed, sample=k), dtype=dtype)
        return chunk.reshape(-1, ROWS)
    names: Any = nf.Noise(seed, sample=first)
    if axis == "step":
        names = [nf.Noise(seed, step=first + r) for r in range(ROWS)]
    elif axis == "seed":
        names = [nf.Noise((seed + first + r) % 2**64) for r in range(ROWS)]
    elif axis == "stream":  # users' streams
        names = [nf.Noise(seed, sample=(first + r) // 64, stream=64 + r % 64) for r in range(ROWS)]
    found: NDArray[Any] = function((ROWS, columns), names, dtype=dtype)
    return found.T


def one_bit_apart(noise: nf.Noise) -> list[nf.Noise]:
    """Returns the noise, and those whose seed, sample, step or stream differ from it in one bit."""
    seeds = [nf.Noise(noise.seed ^ 1 << bit, sample=noise.sample, step=noise.step) for bit in range(64)]
    samples = [noise.at(sample=int(noise.sample) ^ 1 << bit) for bit in range(56)]
    steps = [noise.at(step=noise.step ^ 1 << bit) for bit in range(32)]
    return [noise, *seeds, *samples, *steps, *(noise.at(stream=1 << bit) for bit in range(7))]


def gram(numbers: int, random: Random) -> tuple[int, list[Value]]:
    """Correlates all pairs of such keys: returns the worst correlation and the sum of their squares."""
    names = one_bit_apart(nf.Noise(random.getrandbits(64), sample=random.getrandbits(56), step=random.getrandbits(32)))
    total, n, columns = np.zeros((len(names), len(names))), 0, 4096
    while n * len(names) < numbers:
        window = [name.window((1 << 33,), (n,)) for name in names]
        z = nf.randn((len(names), columns), window, dtype="float64")
        total += z @ z.T
        n += columns
    pairs = total[np.triu_indices(len(names), 1)] / math.sqrt(n)
    worst = math.erf(float(abs(pairs).max()) / math.sqrt(2)) ** len(pairs)
    return n * len(names), [Value("largest", worst), Value("chi2", chi2_cdf(float(pairs @ pairs), len(pairs)))]


# ------------------------------------------------------------------------------------------------------ a run


class Part(NamedTuple):
    name: str
    n: int
    values: list[Value]
    again: bool = False  # whether other parts have the same numbers


def parts(numbers: int, seed: int, kinds: tuple[tuple[str, str], ...] = KINDS) -> Iterator[Part]:
    """Yields each distribution along each axis, and along all of them; and the pairs of keys."""
    random = Random(seed)
    share = numbers // (len(kinds) * len(AXES) + 1)
    columns = max(1, min(COLUMNS, share // ROWS))
    for draw, dtype in kinds:
        whole = Sums(draw, dtype)
        for axis in AXES:
            sums, first = Sums(draw, dtype), random.getrandbits(64)
            for k in range(max(1, share // (ROWS * columns))):
                sums.add(drawn(draw, dtype, axis, first, k, columns))
            yield Part(f"{draw} {dtype}, {axis}", sums.n, [*sums.values(random)])
            whole += sums
        yield Part(f"{draw} {dtype}", whole.n, [*whole.values(random)], again=True)
    n, values = gram(share, random)
    yield Part("keys one bit apart", n, values)


def uniformity(values: list[Value]) -> float:
    """Returns the probability that independent values are as far from uniform."""
    u, n = np.sort([value.u for value in values]), len(values)
    steps = np.arange(n + 1) / n
    return 1 - kolmogorov_cdf(float(max((steps[1:] - u).max(), (u - steps[:-1]).max())), n)


def results(found: list[Part]) -> list[Result]:
    """Returns a line for each part, which fails if its worst value is too rare for their number, and one for all."""
    values = [value for part in found for value in part.values]
    lines = []
    for part in found:
        worst = min(part.values, key=lambda value: value.p)
        shown = f"p {worst.p:.2g} of {len(part.values)}: {worst.label}"
        passed = worst.p * len(values) >= LEVEL
        lines.append(Result(part.name, part.n, passed, shown))
    uniform = uniformity([value for part in found if not part.again for value in part.values])
    rarest = min(1.0, len(values) * min(value.p for value in values))
    shown = f"uniform: p = {uniform:.2g}, rarest: p = {rarest:.2g}"
    return [*lines, Result("all p-values", len(values), min(uniform, rarest) >= LEVEL, shown)]


def run(
    numbers: int,
    seed: int,
    kinds: tuple[tuple[str, str], ...] = KINDS,
) -> list[Result]:
    """Draws and tests about so many numbers. A suspicious result is repeated, and the second one counts."""
    suspicions: list[str] = []
    for attempt in (seed, seed ^ 1 << 32):
        *lines, verdict = results([*parts(numbers, attempt, kinds)])
        if all(line.passed for line in (*lines, verdict)):
            break
        wrong = [f"{line.name}: {line.worst}" for line in (*lines, verdict) if not line.passed]
        suspicions.append(f"suspicious, with seed {attempt}: {'; '.join(wrong)}")
    return [*lines, replace(verdict, lines=tuple(suspicions))]


def main() -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=22, help="draws 2 to this power (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    given = parser.parse_args()
    print(f"# noisefuse {nf.__version__} on {nf.info()['cpu']}; --bits {given.bits} --seed {given.seed}", flush=True)
    return show(run(1 << given.bits, given.seed))


if __name__ == "__main__":
    raise SystemExit(not main())
