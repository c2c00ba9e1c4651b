# SPDX-License-Identifier: Apache-2.0
"""Training times, schedules with one column, transitions.

Seen to fail: u_i of sample i instead of first + i; the shared u of the rank's first sample; a slope of the wrong sign.
"""

import math
import pickle

import numpy as np
import pytest

import noisefuse as nf

NOISE = nf.Noise(7, sample=100, step=3)
SCHEDULES = [
    nf.discrete.linear(), nf.discrete.llada(), nf.discrete.cosine(), nf.discrete.log_linear(), nf.discrete.geometric(),
    nf.discrete.mdlm("cosine"), nf.discrete.mdlm("cosinesqr"), nf.discrete.mdlm("linear"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["stratified", "shared", "independent"])
def test_ranks_draw_parts_of_the_whole(kind):
    whole = nf.discrete.times(12, NOISE, kind=kind)
    for world in (1, 2, 3, 4):
        n = 12 // world
        parts = [nf.discrete.times(n, NOISE, first=r * n, of=12, kind=kind) for r in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, nf.discrete.times(12, NOISE.at(step=4), kind=kind))


def test_times_are_those_of_the_page():
    u = nf.uniform((12, 1), NOISE.at(stream=17), dtype="float64")[:, 0]
    assert np.array_equal(nf.discrete.times(12, NOISE, kind="independent"), u)
    assert np.array_equal(nf.discrete.times(12, NOISE), (np.arange(12) + u) / 12)
    shared = nf.discrete.times(12, NOISE, kind="shared")
    assert np.array_equal(shared, (np.arange(12) / 12 + u[0]) % 1)
    assert np.array_equal(np.sort(np.floor(12 * shared)), np.arange(12))
    ids = np.array([5, 101, 7])
    by_id = nf.discrete.times(3, NOISE.at(sample=ids), kind="independent")
    assert by_id[1] == u[1]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_rise_from_clean_to_masked(schedule):
    t = np.linspace(0, 1, 1001)
    p = schedule(t)
    assert (np.diff(p) > 0).all() or schedule.name.startswith("geometric")  # which is 1 to the last digit at its end
    assert (np.diff(p) >= 0).all()
    assert p[0] < 2e-3
    assert p[-1] >= 0.999 * (1 - 2**-50)  # rounding
    middle, h = t[1:-1], 1e-6
    slope = (schedule(middle + h) - schedule(middle - h)) / (2 * h)
    assert np.allclose(schedule.weight(middle, "elbo") * schedule(middle), slope, rtol=1e-5, atol=1e-7)
    assert np.allclose(schedule.weight(middle), 1 / schedule(middle))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_can_be_pickled(schedule):
    """Workers of data loaders get them so. Seen to fail: a lambda; partial functions, which are equal to no others."""
    again, t = pickle.loads(pickle.dumps(schedule)), np.linspace(0, 1, 11)
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert np.array_equal(again(t), schedule(t))
    assert np.array_equal(again.weight(t[1:], "elbo"), schedule.weight(t[1:], "elbo"))


def test_known_values():
    """By hand: MaskGIT's cosine at 1/2 is cos(pi / 4), LLaDA's eps is the least p, SEDD's sigma at 1/2 is a mean."""
    assert nf.discrete.cosine()(0.5) == pytest.approx(math.sqrt(0.5))
    assert nf.discrete.llada(0.01)([0, 1]).tolist() == [0.01, 1.0]
    sigma = math.sqrt(1e-4 * 20)
    assert nf.discrete.geometric()(0.5) == pytest.approx(1 - math.exp(-sigma))
    assert nf.discrete.linear().weight(0.0) == math.inf
    # V = 3, beta = 1: the exponents are 0, -1, -4, so S = 1 + 2/e + 2/e^4
    total = 1 + 2 / math.e + 2 / math.e**4
    assert nf.discrete.gaussian(1.0, 3)[0, 1:].tolist() == pytest.approx([1 / math.e / total, 1 / math.e**4 / total])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nf.discrete.times(4, NOISE, first=2), ValueError, "first = 2: expected of="),
        (lambda: nf.discrete.times(4, NOISE, first=2, of=5), ValueError, "n = 4, first = 2, of = 5"),
        (
            lambda: nf.discrete.times(4, NOISE, kind="antithetic"),
            ValueError,
            "expected 'stratified', 'shared' or 'inde",
        ),
        (lambda: nf.discrete.times(4, [NOISE] * 4), TypeError, "noise: expected a Noise, got list"),
        (lambda: nf.discrete.times(4, NOISE.at(stream=64)), ValueError, "takes stream 0, got 64"),
        (
            lambda: nf.discrete.times(4, NOISE.at(sample=[1, 2])),
            ValueError,
            "has 2 sample ids, expected one for each of 4",
        ),
        (lambda: nf.discrete.times(4.0, NOISE), TypeError, "n = 4.0: expected an integer"),
        (lambda: nf.discrete.linear()(1.5), ValueError, "t = 1.5: expected times from 0, clean, to 1"),
        (lambda: nf.discrete.llada(1.0), ValueError, "eps = 1.0: expected a finite number of at least 0 and below 1"),
        (lambda: nf.discrete.absorbing(2.0, 3), ValueError, "p = 2.0: expected a probability"),
        (lambda: nf.discrete.absorbing(0.5 + 1j, 3), TypeError, "p: expected numbers"),
        (lambda: nf.discrete.uniform(0.5, 0), ValueError, "vocabulary = 0: expected an integer of at least 1"),
        (lambda: nf.discrete.gaussian(0.0, 5), ValueError, "beta = 0.0: expected a finite number above 0"),
        (lambda: nf.discrete.absorbing(0.5, 3) @ nf.discrete.uniform(0.5, 3), ValueError, "expected two of one kind"),
        (lambda: nf.discrete.gaussian(None, 5), TypeError, "beta = None: expected a number, got NoneType"),
        (lambda: nf.discrete.llada("0.1"), TypeError, "eps = '0.1': expected a number, got str"),
        (lambda: nf.discrete.geometric(1e-320, 1e308), ValueError, "sigma_max = 1e.308: expected 1e-100 <= sigma_min"),
        (lambda: nf.discrete.linear()("x"), TypeError, "t: expected times, got <U1"),
        (lambda: nf.discrete.linear()([0.5, None]), TypeError, r"t: expected times, got \[0.5, None\]"),
        (lambda: nf.discrete.absorbing(0.5, 3).matrix(3), ValueError, "vocabulary = 3: expected more than 3, the mask"),
        (lambda: nf.discrete.uniform(0.5, 4).matrix(5), ValueError, "vocabulary = 5: expected 4"),
        (lambda: nf.discrete.Transition("mask", 0.5, 4), ValueError, "kind = 'mask': expected 'absorbing' or 'unif"),
        (lambda: nf.discrete.linear().weight(0.5, "l2"), ValueError, "kind = 'l2': expected .*'elbo'"),
    ],
)
def test_wrong_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_schedules_of_mdlm_by_name():
    """sigma and its slope, by the formulas of MDLM's noise_schedule.py."""
    t, eps = np.linspace(0.01, 0.99, 50), 1e-3
    angle = np.pi / 2 * t
    cos, square = eps + (1 - eps) * np.cos(angle), eps + (1 - eps) * np.cos(angle) ** 2
    expected = {
        "cosine": (-np.log(cos), np.pi / 2 * (1 - eps) * np.sin(angle) / cos),
        "cosinesqr": (-np.log(square), np.pi / 2 * (1 - eps) * np.sin(np.pi * t) / square),
        "linear": (10 * t, np.full(50, 10.0)),
        "loglinear": (-np.log1p(-(1 - eps) * t), (1 - eps) / (1 - (1 - eps) * t)),
        "geometric": (1e-3 ** (1 - t), 1e-3 ** (1 - t) * np.log(1e3)),
    }
    for kind, (sigma, rate) in expected.items():
        schedule = nf.discrete.mdlm(kind)
        assert np.allclose(schedule.sigma(t), sigma, rtol=1e-9)
        assert np.allclose(schedule.slope(t) / (1 - schedule(t)), rate, rtol=1e-9)
    assert nf.discrete.linear().sigma([0, 1]).tolist() == [0, np.inf]
    with pytest.raises(ValueError, match="kind = 'cos': expected 'loglinear', 'cosine'"):
        nf.discrete.mdlm("cos")
    with pytest.raises(ValueError, match="eps = 1: expected"):
        nf.discrete.mdlm("cosine", eps=1)


def test_sigma_of_times_that_jax_traces():
    jax = pytest.importorskip("jax")
    schedule, t = nf.discrete.mdlm("cosine"), np.float32([0.25, 0.5])
    assert np.allclose(jax.jit(schedule.sigma)(t), schedule.sigma(t))
