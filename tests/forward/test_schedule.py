# SPDX-License-Identifier: Apache-2.0
"""Schedules against the papers' formulas (written out again in plain Python), exact arithmetic, diffusers."""

import copy
import inspect
import itertools
import json
import math
import pickle
import re
import sys
import warnings
from decimal import Decimal, localcontext
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import noisefuse as nf
from noisefuse.arguments import calls

S = nf.Schedule

PRESERVING = {
    "linear": S.linear(),
    "scaled_linear": S.scaled_linear(),
    "cosine": S.cosine(),
    "sigmoid": S.sigmoid(),
    "laplace": S.laplace(),
    "from_betas": S.from_betas([0.1, 0.2, 0.3]),
    "from_betas_ending_in_1": S.from_betas([0.1, 0.2, 1.0]),
    "from_alphas_cumprod": S.from_alphas_cumprod(S.linear().alphas_cumprod),
    "rescaled": S.scaled_linear().rescale_zero_terminal_snr(),
    "columns": S([0.8, 0.6, 0.0], [0.6, 0.8, 1.0]),
    "trig": S.trig(),
    "vp_linear": S.vp_linear(),
    "imagen_linear": S.imagen_linear(50),
    "imagen_cosine": S.imagen_cosine(),
}
OTHERS = {
    "flow": S.flow(),
    "shifted_flow": S.flow(50, shift=3.0),
    "karras": S.karras(40),
    "exponential": S.exponential(40),
    "edm": S.edm(),
    "free_columns": S([0.9, 0.95, 0.1], [0.2, 0.5, 0.7]),
}
FAMILIES = PRESERVING | OTHERS

every_family = pytest.mark.parametrize("schedule", FAMILIES.values(), ids=FAMILIES)


# ---- the families against the papers -----------------------------------------------------------------------


@every_family
def test_columns_are_float64_and_least_noisy_first(schedule):
    columns = [schedule.alpha, schedule.sigma, schedule.snr, *schedule.step_coefficients()]
    for column in columns:
        assert column.dtype == np.float64
        assert column.shape == (len(schedule),)
    assert np.all(np.diff(schedule.snr) < 0)
    np.testing.assert_array_equal(schedule.snr, (schedule.alpha / schedule.sigma) ** 2)


@pytest.mark.parametrize("schedule", PRESERVING.values(), ids=PRESERVING)
def test_variance_is_preserved(schedule):
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(schedule.alphas_cumprod, schedule.alpha**2)
    np.testing.assert_allclose(np.cumprod(1 - schedule.betas), schedule.alphas_cumprod, rtol=1e-12)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "sigmoid", "laplace"])
def test_alpha_and_sigma_against_exact_arithmetic(name):
    # 2^-53 (the rounding of 1 - abar) would be 5e-13 of the first linear sigma^2
    schedule = FAMILIES[name]
    with localcontext() as context:
        context.prec = 60
        abar = Decimal(1)
        for alpha, sigma, beta in zip(schedule.alpha, schedule.sigma, schedule.betas, strict=True):
            abar *= 1 - Decimal(float(beta))
            assert abs(Decimal(float(alpha)) / abar.sqrt() - 1) < Decimal("1e-13")
            assert abs(Decimal(float(sigma)) / (1 - abar).sqrt() - 1) < Decimal("1e-14")


def test_tiny_betas_do_not_cancel():
    schedule = S.from_betas([1e-20, 2e-20, 3e-20])
    np.testing.assert_allclose(schedule.sigma, np.sqrt([1e-20, 3e-20, 6e-20]), rtol=1e-15)


def test_tiny_alphas_do_not_vanish_with_their_squares():
    assert S.from_betas([0.5] * 1500).alpha[-1] == pytest.approx(2.0**-750, rel=1e-9, abs=0)


def test_linear_and_scaled_linear():
    linear, scaled = S.linear(5, 0.1, 0.5), S.scaled_linear(5, 0.01, 0.25)
    np.testing.assert_allclose(linear.betas, [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-15)
    np.testing.assert_allclose(scaled.betas, [0.01, 0.04, 0.09, 0.16, 0.25], rtol=1e-15)
    np.testing.assert_allclose(linear.alphas_cumprod, [0.9, 0.72, 0.504, 0.3024, 0.1512], rtol=1e-15)


def test_sigmoid():
    betas = [0.01 + 0.1 / (1 + math.exp(-x)) for x in (-6, -2, 2, 6)]
    np.testing.assert_allclose(S.sigmoid(4, 0.01, 0.11).betas, betas, rtol=1e-14)


def capped_betas(abar, steps, max_beta):
    """Computes the rule of Nichol & Dhariwal 2021 for any abar(u)."""
    return [min(1 - abar((t + 1) / steps) / abar(t / steps), max_beta) for t in range(steps)]


@pytest.mark.parametrize(("steps", "s", "max_beta"), [(1000, 0.008, 0.999), (10, 0.1, 0.5)])
def test_cosine(steps, s, max_beta):
    def abar(u):
        return math.cos((u + s) / (1 + s) * math.pi / 2) ** 2

    schedule = S.cosine(steps, s=s, max_beta=max_beta)
    np.testing.assert_allclose(schedule.betas, capped_betas(abar, steps, max_beta), rtol=0, atol=1e-13)
    assert schedule.betas[-1] == max_beta


@pytest.mark.parametrize(("steps", "mu", "b", "max_beta"), [(1000, 0.0, 0.5, 0.999), (10, 0.3, 0.7, 0.4)])
def test_laplace(steps, mu, b, max_beta):
    def abar(u):
        log_snr = mu - b * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)
        return math.sqrt(math.exp(log_snr) / (1 + math.exp(log_snr)))

    schedule = S.laplace(steps, mu=mu, b=b, max_beta=max_beta)
    np.testing.assert_allclose(schedule.betas, capped_betas(abar, steps, max_beta), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.1])
def test_flow_against_fractions(shift):
    schedule = S.flow(10, shift=shift)
    for t in range(10):
        s = Fraction(t + 1, 10)
        sigma = Fraction(shift) * s / (1 + (Fraction(shift) - 1) * s)
        assert schedule.sigma[t] == pytest.approx(float(sigma), rel=1e-15, abs=0)
        assert schedule.alpha[t] == pytest.approx(float(1 - sigma), rel=1e-15, abs=0)
    assert (schedule.alpha[-1], schedule.sigma[-1]) == (0.0, 1.0)
    last = float(schedule(1 - 2**-50)[0])  # where 1 - sigma would cancel
    assert last == pytest.approx(2**-50 / shift, rel=1e-13, abs=0)


def test_karras():
    n, low, high, rho = 18, 0.01, 50.0, 5.0
    sigma = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    np.testing.assert_allclose(S.karras(n, low, high, rho).sigma, sigma[::-1], rtol=1e-13)


def test_exponential():
    sigma = S.exponential(5, 0.01, 100.0).sigma
    np.testing.assert_allclose(sigma, [0.01, 0.1, 1.0, 10.0, 100.0], rtol=1e-14)


def test_edm_levels_are_equally_likely():
    steps, mean, std = 101, -1.0, 1.5
    sigma = S.edm(steps, 0.01, 50.0, P_mean=mean, P_std=std).sigma
    quantile = [0.5 * (1 + math.erf((math.log(x) - mean) / (std * math.sqrt(2)))) for x in sigma]
    np.testing.assert_allclose(np.diff(quantile), (quantile[-1] - quantile[0]) / (steps - 1), rtol=1e-11)


@pytest.mark.parametrize("family", [S.karras, S.exponential, S.edm])
def test_exploding_families_reach_their_ends_exactly(family):
    for steps in (2, 3, 1000):
        schedule = family(steps, sigma_min=0.003, sigma_max=70.1)
        assert (schedule.sigma[0], schedule.sigma[-1], len(schedule)) == (0.003, 70.1, steps)
        assert np.all(schedule.alpha == 1)
    assert family(1, sigma_min=0.003, sigma_max=70.1).sigma.tolist() == [70.1]


# ---- the families against diffusers, which computes in float32 ---------------------------------------------


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffusers")


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("linear", S.linear()),
        ("scaled_linear", S.scaled_linear(beta_start=1e-4, beta_end=0.02)),
        ("squaredcos_cap_v2", S.cosine()),
        ("sigmoid", S.sigmoid()),
        ("laplace", S.laplace()),
    ],
)
def test_agrees_with_diffusers(diffusers, name, schedule):
    if name == "laplace" and '"laplace"' not in inspect.getsource(diffusers.DDPMScheduler):
        pytest.skip("this diffusers has no laplace betas")
    theirs = diffusers.DDPMScheduler(beta_schedule=name)
    # 2^-24 = 6e-8 for each of 1000 rounded factors 1 - beta
    np.testing.assert_allclose(schedule.betas, theirs.betas, rtol=1e-6)
    np.testing.assert_allclose(schedule.alphas_cumprod, theirs.alphas_cumprod, rtol=6e-5)


def test_rescaling_agrees_with_diffusers(diffusers):
    theirs = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    )
    ours = S.scaled_linear().rescale_zero_terminal_snr()
    np.testing.assert_allclose(ours.alpha, theirs.alphas_cumprod.numpy() ** 0.5, rtol=0, atol=2e-6)
    np.testing.assert_allclose(ours.betas, theirs.betas, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "family"), [("karras", S.karras), ("exponential", S.exponential)])
def test_noise_levels_agree_with_diffusers(diffusers, name, family):
    theirs = diffusers.EDMEulerScheduler(sigma_schedule=name)
    theirs.set_timesteps(18)
    np.testing.assert_allclose(family(18).sigma[::-1], theirs.sigmas[:-1], rtol=1e-6)


def test_flow_agrees_with_diffusers(diffusers):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    np.testing.assert_allclose(S.flow(shift=3.0).sigma[::-1], theirs.sigmas, rtol=1e-6)


# ---- betas, Markov steps, rescaling ------------------------------------------------------------------------


def test_given_betas_come_back_exactly():
    betas = np.random.default_rng(1).uniform(1e-4, 0.9, 50)
    schedule = S.from_betas(betas)
    a, s = schedule.step_coefficients()
    np.testing.assert_array_equal(schedule.betas, betas)
    np.testing.assert_array_equal(a, np.sqrt(1 - betas))
    np.testing.assert_array_equal(s, np.sqrt(betas))


def test_betas_of_alphas_cumprod():
    schedule = S.from_alphas_cumprod([0.9, 0.72, 0.36, 0.0])
    np.testing.assert_allclose(schedule.betas, [0.1, 0.2, 0.5, 1.0], rtol=1e-14)
    np.testing.assert_allclose(schedule.alphas_cumprod, [0.9, 0.72, 0.36, 0.0], rtol=1e-15)


@pytest.mark.parametrize("schedule", OTHERS.values(), ids=OTHERS)
def test_no_betas_where_variance_is_not_preserved(schedule):
    for name in ("betas", "alphas_cumprod"):
        assert not hasattr(schedule, name)
        message = rf"{name} needs .* \({schedule.kind}\) it is [\d.]+ at index 0"
        with pytest.raises(AttributeError, match=message):
            getattr(schedule, name)


@pytest.mark.parametrize(("error", "preserved"), [(1e-14, True), (1e-11, False)])
def test_variance_is_preserved_to_1e_12(error, preserved):
    assert hasattr(S([0.8 + error], [0.6]), "betas") is preserved


def composed(steps):
    """Returns (alpha, sigma) of the whole walk, one step after the other."""
    alpha, variance = 1.0, 0.0
    for a, s in zip(*steps, strict=True):
        alpha, variance = a * alpha, a * a * variance + s * s
        yield alpha, math.sqrt(variance)


@every_family
def test_steps_compose_to_the_columns(schedule):
    walked = np.array(list(composed(schedule.step_coefficients())))
    np.testing.assert_allclose(walked, np.stack([schedule.alpha, schedule.sigma], axis=1), rtol=1e-12, atol=0)


@given(st.lists(st.floats(1e-6, 0.9), min_size=1, max_size=40))
def test_steps_compose_however_the_schedule_was_given(betas):
    schedule = S.from_betas(betas)
    expected = np.stack([schedule.alpha, schedule.sigma], axis=1)
    for same in (schedule, S(schedule.alpha, schedule.sigma), S.from_alphas_cumprod(schedule.alphas_cumprod)):
        walked = np.array(list(composed(same.step_coefficients())))
        np.testing.assert_allclose(walked, expected, rtol=0, atol=1e-11)


def test_a_step_without_noise_is_not_nan():
    # alpha / sigma decreases by one unit in the last place, and s^2 rounds to -6e-17
    schedule = S([0.11985956224365024, 0.0741261272191119], [0.7367511066354885, 0.4556374580132999])
    assert schedule.step_coefficients()[1].tolist() == [0.7367511066354885, 0.0]


def test_step_coefficients_are_computed_once():
    schedule = S.karras(5)
    assert schedule.step_coefficients() is schedule.step_coefficients()


@pytest.mark.parametrize("name", ["alphas_cumprod", "betas", "snr"])
@pytest.mark.parametrize("schedule", [S.linear(5), S.from_alphas_cumprod([0.9, 0.5, 0.1])], ids=lambda s: s.kind)
def test_columns_that_follow_are_computed_once(schedule, name):
    """That they cannot be written to is tested below. Seen to fail: properties."""
    before = pickle.dumps(schedule)
    assert getattr(schedule, name) is getattr(schedule, name)
    assert pickle.dumps(schedule) == before


@pytest.mark.parametrize("schedule", [S.linear(), S.cosine(50), S.from_alphas_cumprod([0.9, 0.5, 0.1])])
def test_rescale_zero_terminal_snr(schedule):
    new = schedule.rescale_zero_terminal_snr()
    alpha = [Fraction(float(a)) for a in schedule.alpha]
    expected = [float((a - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) for a in alpha]
    np.testing.assert_allclose(new.alpha, expected, rtol=1e-13)
    np.testing.assert_allclose(new.sigma**2, [float(1 - Fraction(float(a)) ** 2) for a in new.alpha], rtol=1e-15)
    assert (new.alpha[0], new.alpha[-1], new.sigma[-1], new.snr[-1]) == (schedule.alpha[0], 0, 1, 0)
    assert [column[-1] for column in (new.betas, *new.step_coefficients())] == [1, 0, 1]
    first_line = repr(schedule).partition("\n")[0]
    assert repr(new).partition("\n")[0] == first_line.replace(schedule.kind, f"{schedule.kind}_zero_terminal_snr")
    assert not new.continuous
    assert new.rescale_zero_terminal_snr() is new


# ---- schedule(t) -------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_integer_t_is_an_index(schedule, dtype):
    t = np.array([[0, len(schedule) - 1], [1, 0]]) % min(len(schedule), 256)
    for column, values in zip((schedule.alpha, schedule.sigma), schedule(t.astype(dtype)), strict=True):
        np.testing.assert_array_equal(values, column[t])
    alpha, sigma = schedule(1)
    assert isinstance(alpha, np.ndarray)
    assert isinstance(sigma, np.ndarray)
    assert (alpha, sigma) == (schedule.alpha[1], schedule.sigma[1])


def test_float_t_on_the_grid_is_the_discrete_schedule():
    u = np.arange(1, 1001) / 1000
    for flow in (S.flow(), S.flow(shift=3.0)):
        np.testing.assert_array_equal(flow(u), (flow.alpha, flow.sigma))
    cosine = S.cosine()
    alpha, sigma = cosine(u)
    np.testing.assert_allclose(alpha[:-1], cosine.alpha[:-1], rtol=2e-12)  # max_beta holds the last one back
    np.testing.assert_allclose(sigma[:-1], cosine.sigma[:-1], rtol=2e-12)


def test_cosine_time():
    schedule, s = S.cosine(10, s=0.02), 0.02
    for u in (0.0, 0.1, 0.5, 0.9, 1.0):
        alpha, sigma = schedule(u)
        expected = math.cos((u + s) / (1 + s) * math.pi / 2) / math.cos(s / (1 + s) * math.pi / 2)
        assert float(alpha) == pytest.approx(expected, abs=1e-15)
        assert float(alpha**2 + sigma**2) == pytest.approx(1, abs=1e-15)
    assert [float(x) for x in (*schedule(0.0), *schedule(1.0))] == [1, 0, 0, pytest.approx(1, abs=1e-15)]
    # near u = 0, sigma^2 = pi u tan(s pi / 2 / (1 + s)) / (1 + s): nothing cancels
    slope = math.pi * math.tan(s / (1 + s) * math.pi / 2) / (1 + s)
    assert float(schedule(1e-18)[1]) == pytest.approx(math.sqrt(slope * 1e-18), rel=1e-14, abs=0)


@pytest.mark.parametrize("schedule", [S.karras(5), S.exponential(5), S.edm(5)])
def test_exploding_time_is_sigma(schedule):
    t = np.array([[0.0, 1e-9], [3.0, 1e9]], np.float32)
    alpha, sigma = schedule(t)
    np.testing.assert_array_equal(alpha, np.ones((2, 2)))
    np.testing.assert_array_equal(sigma, t.astype(np.float64))
    assert not np.shares_memory(t, sigma)


@every_family
def test_continuous_says_whether_float_t_works(schedule):
    if schedule.continuous:
        for t in (0.5, np.float16(0.5), np.array(0.5), np.full((2, 3), 0.5)):
            for values in schedule(t):
                assert isinstance(values, np.ndarray)
                assert (values.dtype, values.shape) == (np.float64, np.shape(t))
    else:
        with pytest.raises(TypeError, match=f"a {schedule.kind} schedule has no continuous time.*an index.*float64"):
            schedule(0.5)


@pytest.mark.parametrize("schedule", [S.flow(shift=3.0), S.cosine(), S.karras(5)], ids=lambda s: s.kind)
def test_one_float_has_the_bits_that_it_has_among_others(schedule):
    """Seen to fail: shift (s / scale) for one float."""
    t = np.random.default_rng(1).random(2000)
    for column, several in enumerate(schedule(t)):
        assert [float(schedule(float(one))[column]) for one in t] == several.tolist()


def test_no_times_have_no_levels():
    for t in (np.zeros((2, 0), int), np.zeros((2, 0))):
        assert [level.shape for level in S.flow(10)(t)] == [(2, 0), (2, 0)]


def test_what_it_returns_is_the_callers():
    """Seen to fail: a view of the column at an int."""
    schedule = S.flow(10)
    for t in (3, [3], 0.5, [0.5]):
        for level in schedule(t):
            level[...] = 7
    assert schedule == S.flow(10)


def test_which_families_are_continuous():
    names = {name for name, schedule in FAMILIES.items() if schedule.continuous}
    assert names == {
        "cosine",
        "flow",
        "shifted_flow",
        "trig",
        "vp_linear",
        "imagen_linear",
        "imagen_cosine",
        "karras",
        "exponential",
        "edm",
    }


@pytest.mark.parametrize(
    ("schedule", "t", "error", "message"),
    [
        (S.linear(10), 10, IndexError, "t must be an index, 0 <= t < 10; got t = 10"),
        (S.linear(10), [[0, 3], [-1, 99]], IndexError, "t must be an index, 0 <= t < 10; got t[1, 0] = -1"),
        (S.karras(10), 80, IndexError, "t must be an index, 0 <= t < 10; got t = 80"),
        (S.linear(10), np.array([3, -128], np.int8), IndexError, "got t[1] = -128"),
        (S.linear(10), np.array([3, 2**64 - 1], np.uint64), IndexError, "got t[1] = 18446744073709551615"),
        (S.linear(10), True, TypeError, "integers (an index) or floats (a time), got dtype bool"),
        (S.flow(10), 1j, TypeError, "got dtype complex128"),
        (S.flow(10), "1", TypeError, "got dtype <U1"),
        (
            S.flow(10),
            [0.5, 1.5],
            ValueError,
            "in [0, 1], the time s of the flow schedule (an index is an integer); got t[1] = 1.5",
        ),
        (
            S.cosine(10),
            -0.1,
            ValueError,
            "in [0, 1], the time u of the cosine schedule (an index is an integer); got t = -0.1",
        ),
        (S.cosine(10), [0.5, math.nan], ValueError, "got t[1] = nan"),
        (
            S.edm(10),
            -1.0,
            ValueError,
            "in [0, inf), the time sigma of the edm schedule (an index is an integer); got t = -1.0",
        ),
        (S.edm(10), math.inf, ValueError, "got t = inf"),
        (S.edm(10), [0.0, math.nan, math.inf], ValueError, "got t[1] = nan"),
        (S.edm(10), [0.0, math.inf, -1.0], ValueError, "got t[1] = inf"),
        (S.karras(10), math.nan, ValueError, "got t = nan"),
    ],
)
def test_bad_t(schedule, t, error, message):
    with pytest.raises(error, match=re.escape(message)):
        schedule(t)


# ---- checks at birth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: S([], []), ValueError, "one-dimensional with at least one step, got shape (0,)"),
        (lambda: S(0.5, 0.5), ValueError, "got shape ()"),
        (lambda: S([[0.5]], [[0.5]]), ValueError, "got shape (1, 1)"),
        (lambda: S(["a"], [1.0]), TypeError, "alpha must be real numbers, got dtype <U1"),
        (lambda: S([True], [1.0]), TypeError, "alpha must be real numbers, got dtype bool"),
        (lambda: S([0.5], [1j]), TypeError, "sigma must be real numbers, got dtype complex128"),
        (lambda: S([0.9, 0.8], [0.5]), ValueError, "alpha and sigma must have one length, got 2 and 1"),
        (lambda: S([1.5], [1.0]), ValueError, "alpha must be in [0, 1]; got alpha[0] = 1.5"),
        (lambda: S([0.9, -0.1], [0.1, 1.0]), ValueError, "got alpha[1] = -0.1"),
        (lambda: S([0.9, math.nan], [0.1, 1.0]), ValueError, "got alpha[1] = nan"),
        (lambda: S([1.0], [0.0]), ValueError, "sigma must be positive and finite; got sigma[0] = 0.0"),
        (lambda: S([1.0], [math.inf]), ValueError, "got sigma[0] = inf"),
        (
            lambda: S([0.5, 0.5], [0.2, 0.2]),
            ValueError,
            "strictly decrease, but (alpha, sigma) is (0.5, 0.2)",
        ),
        (lambda: S([0.5, 0.8], [0.2, 0.3]), ValueError, "(0.8, 0.3) at 1"),
        (lambda: S.from_betas([0.1, 0.0]), ValueError, "betas must be in (0, 1]; got betas[1] = 0.0"),
        (lambda: S.from_betas([1.1]), ValueError, "got betas[0] = 1.1"),
        (lambda: S.from_betas([0.1, 1.0, 0.5]), ValueError, "(0.0, 1.0) at 1 and (0.0, 1.0) at 2"),
        (lambda: S.from_alphas_cumprod([1.0, 0.5]), ValueError, "must be in [0, 1) (a leading 1"),
        (lambda: S.from_alphas_cumprod([0.5, 0.6]), ValueError, "must strictly decrease"),
        (lambda: S.linear(0), ValueError, "steps = 0: expected an integer of at least 1"),
        (lambda: S.flow(10.0), TypeError, "steps = 10.0: expected an integer, got float"),
        (lambda: S.linear(beta_start=0.0), ValueError, "beta_start = 0.0: expected a finite number above 0"),
        (lambda: S.scaled_linear(10, -1.0), ValueError, "beta_start = -1.0: expected a finite number above 0"),
        (lambda: S.sigmoid(beta_end=math.nan), ValueError, "beta_end = nan: expected a finite number above 0"),
        (lambda: S.linear(2, beta_end=1.5), ValueError, "betas must be in (0, 1]; got betas[1] = 1.5"),
        (lambda: S.cosine(s=-1.0), ValueError, "s = -1.0: expected a finite number above 0"),
        (lambda: S.cosine(max_beta=0.0), ValueError, "max_beta = 0.0: expected a finite number above 0"),
        (lambda: S.laplace(b=-0.5), ValueError, "b = -0.5: expected a finite number above 0"),
        (lambda: S.laplace(mu=math.nan), ValueError, "mu = nan: expected a finite number"),
        (lambda: S.flow(shift=0.0), ValueError, "shift = 0.0: expected a finite number above 0"),
        (lambda: S.karras(5, sigma_min=0.0), ValueError, "sigma_min = 0.0: expected a finite number above 0"),
        (lambda: S.karras(5, sigma_max=math.inf), ValueError, "sigma_max = inf: expected a finite number above 0"),
        (lambda: S.karras(5, rho=0.0), ValueError, "rho = 0.0: expected a finite number above 0"),
        (lambda: S.exponential(5, 2.0, 1.0), ValueError, "must be below sigma_max, got 2.0 and 1.0"),
        (lambda: S.karras(5, 2.0, 2.0), ValueError, "must be below sigma_max, got 2.0 and 2.0"),
        (lambda: S.edm(5, P_std=0.0), ValueError, "P_std = 0.0: expected a finite number above 0"),
        (lambda: S.edm(5, P_mean=99.0), ValueError, "[0.002, 80.0] is too far from P_mean=99.0, P_std=1.2"),
        (lambda: S.flow(5).rescale_zero_terminal_snr(), ValueError, "(flow) it is 0.6"),
        (lambda: S.linear(1).rescale_zero_terminal_snr(), ValueError, "needs at least 2 steps"),
    ],
)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


# ---- a value -----------------------------------------------------------------------------------------------


@every_family
def test_is_immutable(schedule):
    for name in ("alpha", "kind", "anything"):
        with pytest.raises(AttributeError, match=f"immutable: cannot set '{name}'"):
            setattr(schedule, name, 1)
    with pytest.raises(AttributeError, match="immutable: cannot delete 'alpha'"):
        del schedule.alpha
    columns = [schedule.alpha, schedule.sigma, schedule.snr, *schedule.step_coefficients()]
    columns += [schedule.betas, schedule.alphas_cumprod] if hasattr(schedule, "betas") else []
    for column in columns:
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 0.5


def test_copies_its_inputs():
    alpha, sigma, betas = np.array([0.8]), np.array([0.6]), np.array([0.5])
    columns, chain = S(alpha, sigma), S.from_betas(betas)
    alpha[0] = sigma[0] = betas[0] = 0.1
    assert (columns.alpha[0], columns.sigma[0], chain.betas[0]) == (0.8, 0.6, 0.5)


@every_family
@pytest.mark.parametrize("duplicate", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_pickles_and_copies(schedule, duplicate):
    schedule.step_coefficients()  # a filled cache must not spoil the copy
    twin = duplicate(schedule)
    assert twin == schedule
    assert hash(twin) == hash(schedule)
    assert repr(twin) == repr(schedule)
    assert not twin.alpha.flags.writeable
    assert not twin.step_coefficients()[0].flags.writeable
    np.testing.assert_array_equal(twin.step_coefficients(), schedule.step_coefficients())
    assert twin.continuous == schedule.continuous


@every_family
def test_json_restores_every_bit(schedule):
    twin = S.from_json(schedule.to_json())
    assert twin == schedule
    assert repr(twin) == repr(schedule)
    assert not twin.alpha.flags.writeable
    np.testing.assert_array_equal(twin.step_coefficients(), schedule.step_coefficients())
    if schedule.continuous:
        np.testing.assert_array_equal(twin([0.25, 0.5]), schedule([0.25, 0.5]))


def test_foreign_json_is_refused():
    stored = json.loads(S.linear(3).to_json())
    for text in ("[]", "{}", json.dumps({**stored, "noisefuse schedule": 2})):
        with pytest.raises(ValueError, match="not a noisefuse schedule of version 1"):
            S.from_json(text)
    for wrong in ({key: value for key, value in stored.items() if key != "alpha"}, {**stored, "steps": 3}):
        with pytest.raises(ValueError, match=r"not a whole noisefuse schedule: .*(alpha|steps)"):
            S.from_json(json.dumps(wrong))
    with pytest.raises(ValueError, match="sigma must be positive"):
        S.from_json(json.dumps({**stored, "sigma": [0, 1, 2]}))
    for changed, what in (
        ({"name": ["a"]}, "name: expected a str, got list"),
        ({"kind": ["a"]}, r"kind and parameters: expected a str and a dict, got \['a'\]"),
        ({"parameters": [1]}, r"kind and parameters: .* and \[1\]"),
        ({"parameters": {"beta_end": "1"}}, "beta_end: expected a number, got '1'"),
        ({"kind": "cosine"}, "missing 1 required keyword-only argument: 's'"),
        ({"alpha": ["0.5", "0.4", "0.3"]}, "alpha: expected a number, got '0.5'"),
        ({"kind": "cosine", "parameters": {"s": "inf"}}, "expected those of a cosine schedule, got {'s': inf}"),
        ({"betas": [0.1]}, "betas: expected 3, one for each step, got 1"),  # kernels would read beyond their rows
        ({"betas": [0.1, 0.2, 2]}, r"betas must be in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=what):
            S.from_json(json.dumps({**stored, **changed}))
    with pytest.raises(ValueError, match="nested too deeply"):
        S.from_json("[" * 100_000)


def test_name():
    """A schedule under another name is the same one; the name is for readers."""
    given, linear = S([0.8, 0], [0.6, 1], name="mine"), S.linear(3)
    named = linear.with_name("toy")
    assert (given.name, given.kind, linear.name, named.name, named.kind) == (
        "mine",
        "columns",
        "linear",
        "toy",
        "linear",
    )
    assert (named, hash(named)) == (linear, hash(linear))
    for twin in (pickle.loads(pickle.dumps(named)), S.from_json(named.to_json())):
        assert (twin.name, twin) == ("toy", linear)
    assert repr(named).startswith("Schedule(toy: linear, steps=3, beta_start=")
    assert named.markov().name == "q_step, toy"
    np.testing.assert_array_equal(named.betas, linear.betas)
    with pytest.raises(AttributeError, match="immutable"):
        named.name = "other"


def test_from_logsnr():
    """They agree to the rounding of the exponent, one unit of the last place of up to 60, halved: 3.6e-15. If alpha or
    sigma is near 1, the other is not lost in 1 - it."""
    log_snr = np.linspace(60, -60, 241)
    schedule = S.from_logsnr(log_snr)
    with localcontext(prec=60):
        exact = [[1 / (1 + (side * Decimal(value)).exp()).sqrt() for value in log_snr] for side in (-1, 1)]
    np.testing.assert_allclose(schedule.alpha, np.array(exact[0], float), rtol=4e-15)
    np.testing.assert_allclose(schedule.sigma, np.array(exact[1], float), rtol=4e-15)
    np.testing.assert_allclose(np.log(schedule.snr), log_snr, atol=1e-13)
    assert schedule.kind == "from_logsnr"
    assert S.from_logsnr([3, -math.inf]).alpha[-1] == 0
    for bad in ([math.inf, 3], [math.nan], [1, 1], [1, 2], [[1.0]]):
        with pytest.raises(ValueError, match=r"log_snr must be (below inf|one-dim)|must strictly decrease"):
            S.from_logsnr(bad)
    with pytest.raises(TypeError, match="log_snr must be real numbers"):
        S.from_logsnr(["a"])


BETAS = {"num_train_timesteps": 50, "beta_start": 0.001, "beta_end": 0.03}
FLOW = {"num_train_timesteps": 50, "shift": 3.0}
EDM = {"num_train_timesteps": 50, "sigma_min": 0.01, "sigma_max": 50.0}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({**BETAS, "beta_schedule": "linear"}, S.linear(50, 0.001, 0.03)),
        ({**BETAS, "beta_schedule": "sigmoid"}, S.sigmoid(50, 0.001, 0.03)),
        ({**BETAS, "beta_schedule": "squaredcos_cap_v2"}, S.cosine(50)),
        (
            {**BETAS, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
            S.scaled_linear(50, 0.001, 0.03).rescale_zero_terminal_snr(),
        ),
        ({**BETAS, "beta_schedule": "linear", "trained_betas": [0.1, 0.2]}, S.from_betas([0.1, 0.2])),
        (FLOW, S.flow(50, 3.0)),
        ({**BETAS, "beta_schedule": "linear", "use_flow_sigmas": True, "flow_shift": 5.0}, S.flow(50, 5.0)),
        ({**EDM, "sigma_schedule": "karras", "rho": 5.0}, S.karras(50, 0.01, 50.0, 5.0)),
        ({**EDM, "sigma_schedule": "exponential", "rho": 7.0}, S.exponential(50, 0.01, 50.0)),
        ({**BETAS, **EDM, "beta_schedule": "linear", "use_karras_sigmas": True}, S.karras(50, 0.01, 50.0)),
    ],
)
def test_from_diffusers_configuration(config, expected):
    """test_samplers_diffusers.py compares with diffusers itself."""
    for scheduler in (config, SimpleNamespace(config=config)):
        assert S.from_diffusers(scheduler) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**BETAS, "beta_schedule": "exp"}, "beta_schedule='exp' is not supported, expected one of linear, scaled_"),
        ({"num_train_timesteps": 5}, "beta_schedule=None is not supported"),
        ({"num_train_timesteps": 5, "beta_schedule": "linear"}, "'linear' needs beta_start and beta_end"),
        ({"beta_schedule": "linear"}, "expected a configuration with num_train_timesteps"),
        ({**FLOW, "use_dynamic_shifting": True}, "use_dynamic_shifting=True is not supported"),
        ({**FLOW, "shift_terminal": 0.02}, "shift_terminal=0.02 is not supported"),
        ({**FLOW, "invert_sigmas": True}, "invert_sigmas=True is not supported"),
        ({**FLOW, "stages": 3}, "stages=3 is not supported"),
        ({**BETAS, "beta_schedule": "linear", "snr_shift_scale": 3.0}, r"snr_shift_scale=3\.0 is not supported"),
        ({**EDM, "sigma_schedule": "other"}, "sigma_schedule='other' is not supported, expected one of karras, exp"),
        (EDM, "sigma_min and sigma_max are supported with sigma_schedule"),
    ],
)
def test_what_from_diffusers_does_not_support(config, message):
    with pytest.raises(ValueError, match=f"^scheduler: .*{message}"):
        S.from_diffusers(config)
    with pytest.raises(TypeError, match=r"scheduler: expected a scheduler of diffusers, .*, got int"):
        S.from_diffusers(7)


def test_equality():
    assert S.linear(10) == S.linear(steps=10)
    assert len({S.linear(10), S.linear(10), S.karras(10)}) == 2
    assert S([0.8, 0.0], [0.6, 1.0]) == S([0.8, -0.0], [0.6, 1.0])
    assert S(np.uint8([1, 0]), np.uint8([1, 2])) == S([1.0, 0.0], [1.0, 2.0])
    different = [
        S.linear(10),
        S.linear(11),
        S.linear(10, beta_end=0.03),
        S.linear(10).rescale_zero_terminal_snr(),
        S.from_betas(S.linear(10).betas),
        S(S.linear(10).alpha, S.linear(10).sigma),
        S.from_alphas_cumprod([0.25, 0.16]),
        S(*S.from_alphas_cumprod([0.25, 0.16])([0, 1])),
        S([0.5], [0.6]),  # equal alphas
        S([0.5], [0.7]),
        S.flow(1, shift=1.0),  # equal columns, different times
        S.flow(1, shift=3.0),
        S.from_betas([0.1]),  # equal columns, different betas
        S.from_betas([np.nextafter(0.1, 1)]),
    ]
    assert np.array_equal(different[-1](0), different[-2](0))
    assert len(set(different)) == len(different)
    assert S.linear(10) != "linear"


def test_repr():
    assert repr(S.scaled_linear()) == (
        "Schedule(scaled_linear, steps=1000, beta_start=0.00085, beta_end=0.012)\n"
        "  alpha 0.9996 .. 0.06826, sigma 0.02915 .. 0.9977, terminal SNR 0.004682"
    )
    assert repr(S([0.8, 0], [0.6, 1])) == (
        "Schedule(columns, steps=2)\n  alpha 0.8 .. 0, sigma 0.6 .. 1, terminal SNR 0"
    )


# ---- plot --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [S.flow(20), S.linear(20), S.karras(20)])
def test_plot(schedule):
    """If alpha is 1, it plots sigma alone, on a logarithmic axis: from 0.002 to 80 a linear one shows nothing."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, given_ax = plt.subplots()
    try:
        assert schedule.plot(given_ax) is given_ax
        lines = [line.get_ydata() for line in given_ax.get_lines()]
        exploding = schedule.kind == "karras"
        np.testing.assert_array_equal(lines, [schedule.sigma] if exploding else [schedule.alpha, schedule.sigma])
        assert given_ax.get_yscale() == ("log" if exploding else "linear")
        assert len(figure.axes) == (1 if exploding else 2)
        if not exploding:
            (log_snr,) = figure.axes[1].get_lines()
            np.testing.assert_allclose(log_snr.get_ydata()[:-1], np.log(schedule.snr[:-1]))
        figure.canvas.draw()
        new = schedule.plot()
        assert new.figure is not figure
        new.figure.canvas.draw()
    finally:
        plt.close("all")


def test_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=re.escape("noisefuse[demo]")):
        S.linear().plot()


# ---- float times -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        (S.cosine(1000), "u from 0.0, the cleanest, to 1.0, the noisiest; an integer t is a step from 0 to 999"),
        (S.flow(50), "s from 0.0, the cleanest, to 1.0, the noisiest; an integer t is a step from 0 to 49"),
        (S.karras(10), "sigma; an integer t is a step from 0 to 9"),
    ],
    ids=lambda value: value.kind if isinstance(value, S) else "",
)
def test_repr_says_what_a_float_time_is(schedule, line):
    """Seen to fail: ignored, before this rule."""
    assert repr(schedule).splitlines()[2:] == [f"  a float t is {line}"]


TIMES_AS_MEANT = [1, 0.0, [0, 1], [0.0, 0.0], [0.0, 0.5], [0.2, 1.0], [[0, 1, 0.5], [0, 1, 1]]]
NOISIEST = [1.0, [1.0], [1.0, 1.0]]  # as meant where networks are given noise levels
TIMES_LIKE_STEPS = [[0.0, 1.0], np.array([1, 0], np.float32), np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])]


@pytest.mark.parametrize("schedule", [S.cosine(50), S.flow(50, shift=3.0)], ids=lambda s: s.kind)
def test_float_times_that_look_like_steps_are_warned_of_once(schedule, monkeypatch):
    """Seen to fail: no warning, before this rule; a warning for each array of floats, for 0.0 alone, for integers."""
    x, noise, said = np.ones((2, 3), np.float32), nf.Noise(7), set()
    monkeypatch.setattr(calls, "WARNED", said)
    users = [
        lambda t: nf.q_sample(x, t, schedule, noise),
        lambda t: nf.mse_loss(x, x, t, schedule, noise, target="v"),
        lambda t: nf.augment.prepare(images, noise=noise, t=np.ravel(t)[:2], schedule=schedule),
    ]
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule(TIMES_LIKE_STEPS[0])  # of no samples
        nf.q_sample(x, TIMES_LIKE_STEPS[0], S.karras(50), noise)
        of_steps = schedule.kind == "cosine"
        for t in TIMES_AS_MEANT if of_steps else TIMES_AS_MEANT + NOISIEST:
            nf.q_sample(x, t, schedule, noise)
        for t, user in itertools.product(TIMES_LIKE_STEPS + NOISIEST[2:] * of_steps, users):
            said.clear()
            with pytest.warns(UserWarning, match=f"a {schedule.kind} schedule; for the steps 0 and 1 pass int") as seen:
                user(t)
            assert [each.filename for each in seen] == [__file__]
            user(t)
