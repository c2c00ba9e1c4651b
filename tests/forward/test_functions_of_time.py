# SPDX-License-Identifier: Apache-2.0
"""Schedules as functions of time: ours against the papers' formulas, users' against the rules for them."""

import copy
import math
import pickle

import mpmath
import numpy as np
import pytest

import noisefuse as nf
from conftest import bits
from noisefuse import backends

S, N = nf.Schedule, nf.Noise(7)
X = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
T = np.array([0.0, 0.25, 0.7, 1.0])


def quadratic(t):
    return 1 - t**2


def identity(t, **_):
    return t


def power(t, p):
    return 1 - t**p


MINE = S.from_functions(quadratic, identity, name="quadratic")


# ---- ours against the formulas -----------------------------------------------------------------------------

ONE_TENTH = mpmath.mpf(0.1)  # the float
PAPERS = {
    "trig": (S.trig(), lambda t: (mpmath.cos(mpmath.pi / 2 * t), mpmath.sin(mpmath.pi / 2 * t))),
    "vp_linear": (S.vp_linear(), lambda t: of_log_alpha(-(t**2) * (20 - ONE_TENTH) / 4 - t * ONE_TENTH / 2)),
    "imagen_linear": (S.imagen_linear(), lambda t: of_log_snr(-mpmath.log(mpmath.expm1(mpmath.mpf(1e-4) + 10 * t**2)))),
    "imagen_cosine": (
        S.imagen_cosine(),
        lambda t: of_log_snr(
            -mpmath.log(mpmath.cos((t + mpmath.mpf(0.008)) / (1 + mpmath.mpf(0.008)) * mpmath.pi / 2) ** -2 - 1)
        ),
    ),
}


def of_log_alpha(log_alpha):
    return mpmath.exp(log_alpha), mpmath.sqrt(1 - mpmath.exp(2 * log_alpha))


def of_log_snr(log_snr):
    """imagen-pytorch's log_snr_to_alpha_sigma: sqrt(sigmoid(l)), sqrt(sigmoid(-l))."""
    return mpmath.sqrt(1 / (1 + mpmath.exp(-log_snr))), mpmath.sqrt(1 / (1 + mpmath.exp(log_snr)))


@pytest.mark.parametrize("name", PAPERS)
def test_levels_are_the_papers(name):
    """To 4e-15. Seen to fail: beta_max for beta_max - beta_min, and an alpha as a cosine near its zero."""
    schedule, formula = PAPERS[name]
    with mpmath.workdps(50):
        for t in (0.001, 0.1, 0.5, 0.9, 0.999):
            exact = formula(mpmath.mpf(t))
            for found, expected in zip(schedule(t), exact, strict=True):
                assert abs(float(found) / float(expected) - 1) < 4e-15


@pytest.mark.parametrize("name", [*PAPERS, "quadratic"])
def test_columns_are_those_of_times(name):
    schedule = MINE if name == "quadratic" else PAPERS[name][0]
    alpha, sigma = schedule(np.arange(1, 1001) / 1000)
    assert bits(alpha) == bits(schedule.alpha)
    assert bits(sigma) == bits(schedule.sigma)


def test_the_noisiest_time_of_trig_is_pure_noise():
    """Seen to fail: cos(pi / 2), which is 6e-17."""
    assert [float(column) for column in S.trig()(1.0)] == [0.0, 1.0]
    assert [float(column) for column in S.trig()(0.0)] == [1.0, 0.0]


# ---- users' ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [MINE, S.trig(), S.from_functions(power, identity, name="power", p=3.0)], ids=str)
@pytest.mark.parametrize("t", [0.25, [0.25] * 4, T, T.astype(np.float32), np.float64(0.5)], ids=repr)
def test_float_times_have_the_bits_of_the_checked_path(schedule, t, monkeypatch):
    fast = nf.q_sample(X, t, schedule, N, target="v")
    for name in backends.FAST_PATH:
        monkeypatch.setattr(backends, name, backends.declined)
    expected = nf.q_sample(X, t, schedule, N, target="v")
    assert bits(fast) == bits(expected)
    alpha, sigma = (np.broadcast_to(column, 4).reshape(4, 1, 1) for column in schedule(t))
    np.testing.assert_allclose(fast[0], alpha * X + sigma * nf.randn(X.shape, N), rtol=1e-5, atol=1e-6)


def test_times_may_begin_anywhere():
    schedule = S.from_functions(lambda t: 2 - t, lambda t: t - 1, name="late", times=(1.0, 2.0), steps=10)
    assert schedule.alpha[-1] == 0
    assert float(schedule(1.25)[1]) == 0.25
    assert nf.q_sample(X, 1.25, schedule, N).shape == X.shape
    with pytest.raises(
        ValueError, match=r"in \[1, 2\], the time t of the late schedule \(an index is an integer\); got t\[0\] = 0.5"
    ):
        nf.q_sample(X, 0.5, schedule, N)
    assert "from 1.0, the cleanest, to 2.0, the noisiest" in repr(schedule)


def test_a_function_may_write_to_its_argument():
    """Seen to fail: sigma, which got what alpha had left."""

    def alpha(t):
        t *= -1
        t += 1
        return t

    schedule = S.from_functions(alpha, identity, name="writes")
    for t in (0.25, [0.25, 0.5]):
        assert bits(np.asarray(schedule(t))) == bits(np.asarray(S.flow()(t)))


WRONG = [
    (lambda t: t, identity, r"alpha / sigma: expected a ratio that falls strictly.* at t = 0\.000244140625"),
    (lambda t: 0.5 + 0 * t, lambda t: 0.5 + 0 * t, "falls strictly"),
    (lambda t: np.where(t > 0.5, 0, 1 - t), identity, r"0 or infinite at the ends alone; .* at t = 0\.5"),
    (
        lambda t: 1.0,
        identity,
        r"alpha: expected a function that returns float64 of shape \(4097,\), as t has, got float64 \(\)",
    ),
    (lambda t: t > 0, identity, "alpha: expected a function that returns float64 .*, got bool"),
    (lambda t: 1 - t, lambda t: t[1:], r"sigma: .* got float64 \(4096,\)"),
    (
        lambda t: np.where(t > 0.5, np.nan, 1 - t),
        identity,
        r"alpha: expected values in \[0, 1\], got nan at t = 0\.50024",
    ),
    (lambda t: 2 - t, identity, r"alpha: expected values in \[0, 1\], got 2\.0 at t = 0\.0"),
    (lambda t: 1 - t, lambda t: t - 0.1, r"sigma: expected values of at least 0, and finite, got -0\.1 at t = 0\.0"),
]


@pytest.mark.parametrize(("alpha", "sigma", "message"), WRONG)
def test_functions_that_break_a_rule_are_told_where(alpha, sigma, message):
    with pytest.raises(ValueError, match=message):
        S.from_functions(alpha, sigma, name="wrong")


def test_functions_are_looked_at_in_each_call():
    """Seen to fail: a NaN that was drawn with."""
    broken = []

    def alpha(t):
        return 1 - t if not broken else np.full_like(t, np.nan)

    schedule = S.from_functions(alpha, identity, name="breaks")
    broken.append(True)
    for t in (0.5, [0.25, 0.5, 0.6, 0.7]):
        out = np.zeros_like(X)
        with pytest.raises(ValueError, match="alpha: expected values in"):
            nf.q_sample(X, t, schedule, N, out=out)
        assert not out.any()


def test_what_a_function_raises_is_raised():
    asked = []

    def alpha(t):
        if asked:
            raise ZeroDivisionError("mine")
        return 1 - t

    schedule = S.from_functions(alpha, identity, name="raises")
    asked.append(True)
    with pytest.raises(ZeroDivisionError, match="mine"):
        nf.q_sample(X, 0.5, schedule, N)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((1, identity), {"name": "x"}, TypeError, "alpha: expected a function of t, got int"),
        ((quadratic, identity), {"name": 3}, TypeError, "name: expected a str, got 3"),
        (
            (quadratic, identity),
            {"name": "flow"},
            ValueError,
            "name = 'flow': expected one that noisefuse does not have",
        ),
        ((quadratic, identity), {"name": "linear"}, ValueError, "name = 'linear': expected one"),
        (
            (quadratic, identity),
            {"name": "x", "times": (1, 0)},
            ValueError,
            r"times = \(1, 0\): expected \(first, last\)",
        ),
        ((quadratic, identity), {"name": "x", "times": (0, math.inf)}, ValueError, "finite and rising"),
        ((quadratic, identity), {"name": "x", "steps": 0}, ValueError, "steps = 0: expected an integer of at least 1"),
        ((power, identity), {"name": "x", "p": "3"}, TypeError, "p"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        S.from_functions(*arguments, **options)


# ---- stored ------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch):
    from noisefuse.language import families

    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES)
    before = dict(families.FAMILIES)
    S.register("power", power, identity)
    yield S.from_functions(power, identity, name="power", p=3.0)
    families.FAMILIES.clear()
    families.FAMILIES.update(before)


def test_registered_functions_are_stored_by_name(registered):
    """Seen to fail: a pickle that named the file of the code, which has moved since."""
    assert registered.__reduce__()[0].__module__ == "noisefuse.schedule"
    again = S.from_json(registered.to_json())
    for other in (again, pickle.loads(pickle.dumps(registered)), pickle.loads(pickle.dumps(registered.with_name("b")))):
        assert other == registered
        assert bits(np.asarray(other(0.3))) == bits(np.asarray(registered(0.3)))
    assert pickle.loads(pickle.dumps(registered.with_name("b"))).name == "b"


def test_functions_that_nobody_registered_are_not_stored():
    for store in (pickle.dumps, S.to_json):
        with pytest.raises(
            TypeError, match=r"'quadratic' does not name these: call nf\.Schedule\.register\('quadratic', "
        ):
            store(MINE)
    assert copy.deepcopy(MINE) is copy.copy(MINE) is MINE


def test_what_is_not_registered_here_is_not_read(registered):
    """Seen to fail: read without its functions, so that float times were refused later."""
    from noisefuse.language import families

    text, pickled = registered.to_json(), pickle.dumps(registered)
    del families.FAMILIES["power"]
    for read in (lambda: S.from_json(text), lambda: pickle.loads(pickled)):
        with pytest.raises(ValueError, match=r"'power' names functions that are not known here"):
            read()


def test_a_stored_schedule_takes_no_other_functions_of_its_name(registered):
    """Seen to fail: integer times were those of the stored columns, and float times those of the other functions."""
    text, pickled = registered.to_json(), pickle.dumps(registered)
    S.register("power", lambda t, p: power(t, p + 0.01), identity)
    for read in (lambda: S.from_json(text), lambda: pickle.loads(pickled)):
        with pytest.raises(ValueError, match=r"'power' is registered for other functions .*: alpha is 0\.\d+ at index"):
            read()
    S.register("power", quadratic, identity)  # without the parameter
    with pytest.raises(ValueError, match="not a whole noisefuse schedule"):
        S.from_json(text)


def test_other_functions_of_that_name_are_not_taken_for_these(registered):
    S.register("power", quadratic, identity)
    with pytest.raises(TypeError, match="'power' does not name these"):
        pickle.dumps(registered)
    assert S.from_functions(quadratic, identity, name="power") != registered


# ---- times of levels, and schedules that are one -----------------------------------------------------------


@pytest.mark.parametrize(
    "schedule", [S.flow(shift=3.0), S.cosine(), S.trig(), S.vp_linear(), MINE, S.karras(5)], ids=str
)
def test_the_time_of_a_level(schedule):
    t = np.array([0.1, 0.5, 0.9])
    alpha, sigma = schedule(t)
    np.testing.assert_allclose(schedule.time_at(2 * (np.log(alpha) - np.log(sigma))), t, rtol=1e-12)


def test_times_of_levels_beyond_the_ends_are_the_ends():
    assert S.trig().time_at([math.inf, -math.inf]).round(12).tolist() == [0, 1]
    with pytest.raises(TypeError, match="a linear schedule has no continuous time"):
        S.linear().time_at(0.0)


def test_schedules_of_the_same_arguments_are_one():
    """Seen to fail: a schedule of its own for each call, which takes 40 times the time of a small q_sample."""
    assert S.flow() is S.flow()
    assert S.flow(1000, shift=3.0) is S.flow(1000, shift=3.0) is not S.flow(1000, shift=2.0)
    assert S.flow(10, shift=3) is not S.flow(10, shift=3.0)  # which print otherwise


@pytest.mark.parametrize("t", [0.5, np.array([0.2, 0.4, 0.6, 0.8])], ids=["one", "each"])
def test_losses_and_tensors_take_them_too(t):
    torch = pytest.importorskip("torch")
    x, pred = torch.from_numpy(X), torch.zeros(4, 3, 5)
    found = nf.mse_loss(pred, x, t, MINE, N, target="v")
    assert float(found) == np.float32(nf.mse_loss(pred.numpy(), X, t, MINE, N, target="v"))
    assert bits(nf.q_sample(x, t, MINE, N).numpy()) == bits(nf.q_sample(X, t, MINE, N))


@pytest.mark.parametrize("rule", ["ddim", "ddpm", "dpmpp_2m"])
def test_samplers_take_them(rule):
    sampler = getattr(nf.samplers, rule)(S.trig(50), steps=5, prediction="v")
    x = sampler.sample(lambda x, t: 0 * x, (2, 8), N)
    assert np.isfinite(x).all()


@pytest.mark.parametrize("rule", ["euler", "heun", "unipc"])
def test_samplers_that_divide_by_alpha_refuse_pure_noise(rule):
    """Seen to fail: NumPy's warning of an invalid value before the error."""
    with pytest.raises(ValueError, match="divides by alpha, which is 0 at time 49"):
        getattr(nf.samplers, rule)(S.trig(50), steps=5, prediction="v")


# ---- a shift for the resolution ----------------------------------------------------------------------------


MU = {64: 0.4675, 256: 0.5, 1024: 0.63, 4096: 1.15, 10_000: 2.149375}  # calculate_shift of diffusers' Flux


@pytest.mark.parametrize("tokens", MU)
def test_flow_shift_is_the_rule_of_diffusers(tokens):
    """Seen to fail: mu as the shift itself."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=np.linspace(1, 0.1, 10), mu=MU[tokens])
    ours = S.flow(10, shift=S.flow_shift(tokens)).sigma[::-1]
    assert np.allclose(theirs.sigmas[:-1].numpy(), ours, rtol=1e-6, atol=0)


def test_flow_shift_is_a_line_through_its_two_points():
    options = {"base_tokens": 100, "max_tokens": 900, "base_shift": 0.25, "max_shift": 1.5}
    assert S.flow_shift(100, **options) == math.exp(0.25)
    assert S.flow_shift(900, **options) == math.exp(1.5)
    assert math.isclose(S.flow_shift(500, **options), math.exp(0.875), rel_tol=1e-15)


WRONG = [{"tokens": 0}, {"tokens": math.inf}, {"tokens": 1, "base_tokens": 4096}]


@pytest.mark.parametrize("options", [*WRONG, {"tokens": 1, "base_shift": math.nan}, {"tokens": 1e9}])
def test_flow_shift_refuses(options):
    with pytest.raises(ValueError, match=r"must|expected a finite number"):
        S.flow_shift(**options)
