# SPDX-License-Identifier: Apache-2.0
"""noise_statistics.py: the noise passes, its probabilities are right, defects are found."""

import math
from random import Random

import numpy as np
import pytest

import noise_statistics as statistics
import noisefuse as nf
from conftest import first_and_slow
from noise_statistics import Part, Sums, Value, gram, one_bit_apart, parts, results, uniformity

NORMALS, UNIFORMS = (("randn", "float32"),), (("uniform", "float32"),)
RANDN, UNIFORM = nf.randn, nf.uniform


def failed(numbers, kinds):
    """Returns the names of failures, for a run of a fixed seed and its repetition."""
    return [result.name for result in statistics.run(numbers, 5, kinds=kinds) if not result.passed]


def test_the_noise_passes():
    """All distributions and axes pass, 2^22 numbers of a fixed seed; the names of the lines are those of the axes."""
    results = statistics.run(1 << 22, 1)
    assert [result.name for result in results if not result.passed] == []
    assert len(results) == len(statistics.KINDS) * (len(statistics.AXES) + 1) + 2
    assert 1 << 21 < sum(result.cases for result in results if "," in result.name) <= 1 << 22


def spoil(monkeypatch, name, spoilt):
    """Replaces `nf.<name>` by a function that changes its results."""
    right = getattr(nf, name)
    monkeypatch.setattr(nf, name, lambda shape, noise, **options: spoilt(right(shape, noise, **options)))


def lagged(z):
    """Copies one element in 50 from the one seventeen rows before."""
    rows = z.reshape(-1, 1) if len(z) == 1 else z
    rows[50::50] = rows[33:-17:50]
    return z


DEFECTS = {
    "scaled by 1.001": (lambda z: z * z.dtype.type(1.001), 1 << 25),
    "shifted by 0.002": (lambda z: z + z.dtype.type(0.002), 1 << 23),
    "the tail is cut": (lambda z: np.clip(z, -4.9, 4.9), 1 << 25),
    "fewer digits": (lambda z: np.round(z * 1024) / 1024, 1 << 22),
    "copies of a lag": (lagged, 1 << 22),
}


@pytest.mark.parametrize(
    "defect", [pytest.param(name, marks=pytest.mark.slow if n > 1 << 23 else ()) for name, (_, n) in DEFECTS.items()]
)
def test_defects_of_normals_are_found(defect, monkeypatch):
    """Each defect is seen, in a run and in its repetition."""
    spoilt, numbers = DEFECTS[defect]
    spoil(monkeypatch, "randn", spoilt)
    assert failed(numbers, NORMALS)


@pytest.mark.parametrize(
    "spoilt", first_and_slow([lambda u: u**1.003, lambda u: np.floor(u * 2**22) / 2**22 + u.dtype.type(2**-24)])
)
def test_defects_of_uniforms_are_found(spoilt, monkeypatch):
    """The defects are a slope, and a last bit that is always 0."""
    spoil(monkeypatch, "uniform", spoilt)
    assert failed(1 << 23, UNIFORMS)


def test_names_that_share_their_noise_are_found(monkeypatch):
    """Bit 40 of the sample is ignored."""
    right = nf.randn
    alike = lambda n: n.at(sample=int(n.sample) & ~(1 << 40))  # noqa: E731
    monkeypatch.setattr(nf, "randn", lambda shape, names, **options: right(shape, [*map(alike, names)], **options))
    _, values = gram(1 << 16, Random(1))
    assert min(value.p for value in values) < 1e-9


def test_names_one_bit_apart_are_all_of_them():
    """There are 64 bits of the seed, 56 of the sample, 32 of the step, 7 of the stream, and no key twice."""
    names = one_bit_apart(nf.Noise(2**63 + 5, sample=77, step=2**31))
    assert len(set(names)) == len(names) == 1 + 64 + 56 + 32 + 7


def test_a_suspicion_is_repeated_with_another_seed(monkeypatch):
    """The repetition is reported, whether the second run passes or not."""
    real, seeds = statistics.parts, []

    def first_is_bad(numbers, seed, kinds):
        seeds.append(seed)
        yield from real(numbers, seed, kinds)
        if len(seeds) == 1:
            yield statistics.Part("bad", 1, [Value("planted", 1e-9)])

    monkeypatch.setattr(statistics, "parts", first_is_bad)
    results = statistics.run(1 << 18, 8, kinds=UNIFORMS)
    assert all(result.passed for result in results)
    assert len(set(seeds)) == 2
    assert "suspicious, with seed 8: bad: p 2e-09" in results[-1].lines[0]


def test_all_values_together():
    """Uniform ones pass. A slope, or one too rare, fails: as a whole, and its part."""

    def passed(*parts):
        return [result.passed for result in results([Part("", 1, [Value("", x) for x in u]) for u in parts])]

    u = np.random.default_rng(1).random(1000)
    assert passed(u, u) == [True, True, True]
    assert passed(u**1.2, u**1.2) == [True, True, False]
    assert passed(u, [*u, 1 - 1e-9]) == [True, False, False]
    assert passed(u, [*u, math.nan]) == [True, False, False]


def test_values_of_perfect_numbers_are_uniform():
    """For NumPy's own normals, each statistic's u is uniform in many small runs: Kolmogorov and Smirnov."""
    rng, found = np.random.default_rng(2), {}
    for _ in range(100):
        sums = Sums("randn", "float64")
        sums.add(rng.standard_normal((1 << 4, 1 << 10)))
        for value in sums.values(Random(int(rng.integers(2**32)))):
            found.setdefault(value.label.partition(" ")[0], []).append(value)
    assert found.keys() == {"moment", "chi2", "Kolmogorov-Smirnov", "Anderson-Darling", "beyond", "lag"}
    for label, values in found.items():
        assert uniformity(values) > 1e-3, label


def test_probabilities_are_those_of_scipy():
    """If SciPy is installed, each distribution is compared, in its middle and in its tails."""
    stats = pytest.importorskip("scipy.stats")
    for z in (-7, -1, 0, 0.5, 6):
        assert math.isclose(statistics.normal_cdf(z), stats.norm.cdf(z), rel_tol=1e-9)
    for degrees in (100, 65535):
        for u in (1e-6, 0.01, 0.5, 0.999):
            assert statistics.chi2_cdf(stats.chi2.ppf(u, degrees), degrees) == pytest.approx(u, abs=1e-4)
    for x in (0.4, 0.8, 1.2, 2.0):
        n = 1e12
        assert statistics.kolmogorov_cdf(x / 1e6, n) == pytest.approx(1 - stats.kstwobign.sf(x), abs=1e-6)
    for mean, count in ((0.3, 0), (4.0, 9), (900.0, 850)):
        expected = stats.poisson.cdf(count - 1, mean) + 0.25 * stats.poisson.pmf(count, mean)
        assert statistics.poisson_u(count, mean, 0.25) == pytest.approx(expected, rel=1e-9)
    goodness = statistics.anderson_cdf
    for a, u in ((0.7754, 0.5), (1.2453, 0.75), (1.9330, 0.9), (2.4924, 0.95), (3.8781, 0.99)):  # Lewis (1961)
        assert goodness(a) == pytest.approx(u, abs=1e-3)


def test_memory_is_that_of_a_chunk():
    """A part draws at most a chunk at a time, whatever its numbers."""
    assert next(parts(1 << 22, 1, NORMALS)).n == (1 << 22) // 6 // (1 << 18) * (1 << 18)
    assert statistics.drawn("randn", "float64", "seed", 2**64 - 3, 7, 256).nbytes == 2 << 20


def test_lines_count_up_along_their_axis():
    """Each entry of a line is the draw of a key, or an element, one further than the entry before it."""
    row, column, k = 300, 2, 1
    at = k * statistics.ROWS + row
    names = {
        "sample": nf.Noise(9, sample=at),
        "step": nf.Noise(9, step=at),
        "seed": nf.Noise(9 + at),
        "stream": nf.Noise(9, sample=at // 64, stream=64 + at % 64),
    }
    for axis, name in names.items():
        lines = statistics.drawn("randn", "float32", axis, 9, k, 4)
        assert lines.shape == (4, statistics.ROWS)
        assert lines[column, row] == nf.randn((1, 4), name)[0, column]
    element = statistics.drawn("randn", "float32", "element", 9, k, 4)
    assert element[column, row] == nf.randn((1, 4096), nf.Noise(9, sample=k))[0, column * statistics.ROWS + row]


def test_lags_are_those_of_a_loop():
    """The spectra give the sum over neighbours in a line, whose end wraps around to its beginning."""
    x, sums = np.random.default_rng(3).standard_normal((5, 1024)), Sums("randn", "float64")
    sums.add(x[:3])
    sums.add(x[3:])
    found = {value.label: value.u for value in sums.values(Random(1))}
    for lag in (1, 17, 64):
        for of, y in (("", x), (" of squares", (x * x - 1) / math.sqrt(2))):
            expected = statistics.normal_cdf((y * np.roll(y, -lag, 1)).sum() / math.sqrt(x.size))
            assert found[f"lag {lag}{of}"] == pytest.approx(expected, abs=1e-9)
