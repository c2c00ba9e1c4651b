# SPDX-License-Identifier: Apache-2.0
"""The target and the prediction "velocity": the derivative of x_t by the schedule's own time.

Seen to fail: "velocity" as another name of "flow"; the derivative by s of a flow without its shift; a derivative of
cosine without its factor 1 / f(0).
"""

import math

import numpy as np
import pytest

import noisefuse as nf
from conftest import bits

N = nf.Noise(5, sample=9)
POWER = {
    "name": "a power",
    "derivatives": (lambda t, power: -power * t ** (power - 1), lambda t, power: np.ones_like(t)),
    "power": 3.0,
    "steps": 50,
}


def power(**options):
    return nf.Schedule.from_functions(lambda t, power: 1 - t**power, lambda t, power: t, **(POWER | options))


OWN = {
    "cosine": nf.Schedule.cosine(50),
    "cosine, s": nf.Schedule.cosine(50, s=0.3),
    "flow": nf.Schedule.flow(50),
    "shifted": nf.Schedule.flow(50, shift=3.0),
    "shifted down": nf.Schedule.flow(50, shift=0.4),
    "karras": nf.Schedule.karras(50),
    "exponential": nf.Schedule.exponential(50),
    "edm": nf.Schedule.edm(50),
    "trig": nf.Schedule.trig(50),
    "vp_linear": nf.Schedule.vp_linear(50),
    "vp_linear, steep": nf.Schedule.vp_linear(50, beta_min=1.0, beta_max=7.0),
    "imagen_linear": nf.Schedule.imagen_linear(50),
    "imagen_cosine": nf.Schedule.imagen_cosine(50, s=0.1),
    "functions": power(),
    "functions of other times": nf.Schedule.from_functions(
        lambda t: 4 / (4 + t), lambda t: t / (4 + t), name="late", steps=50, times=(0.0, 80.0),
        derivatives=(lambda t: -4 / (4 + t) ** 2, lambda t: 4 / (4 + t) ** 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_derivatives_are_those_of_the_functions(name):
    """Compares with Richardson's extrapolation of two central differences, whose error of truncation is far below the
    step between the two; each of the four values has a rounding of a few units, which h divides."""
    schedule = OWN[name]
    t = np.linspace(*np.minimum(schedule.times, 80.0), 61)[3:-3]
    h = 2.0**-13 * (t[1] - t[0])
    levels = {k: np.array(schedule(t + k * h)) for k in (-2, -1, 1, 2)}
    near, far = ((levels[k] - levels[-k]) / (2 * k * h) for k in (1, 2))
    found = schedule.derivatives(t)
    bound = abs(near - far) + 16 * np.finfo(float).eps * abs(levels[2]) / h
    assert (abs(found - (4 * near - far) / 3) <= bound).all()
    assert (bound <= 1e-5 * (abs(near) + abs(near).max())).all()
    for one in (7, 31):
        assert np.array_equal(schedule.derivatives(t[one].item()), np.array(found)[:, one])


@pytest.mark.parametrize("name", OWN)
def test_an_integer_stands_for_its_own_time(name):
    schedule = OWN[name]
    first, last = schedule.times
    t = schedule.sigma if last == math.inf else first + np.arange(1, 51) / 50 * (last - first)
    found, expected = (np.array(schedule.derivatives(i)) for i in (np.arange(50), t))
    # The last level of cosine is clipped, and so a little less noisy than that of its time.
    np.testing.assert_allclose(found[:, :-1], expected[:, :-1], rtol=1e-9, atol=1e-13)
    assert np.array_equal(schedule.derivatives([3, 49]), found[:, [3, 49]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OWN)
def test_the_target_is_its_formula(backend, name, dtype):
    schedule = OWN[name]
    x = np.random.default_rng(0).standard_normal((4, 33)).astype(dtype)
    z, u = nf.randn(x.shape, N, dtype=dtype).astype(float), float(np.finfo(dtype).eps)
    for t in (np.array([0.125, 0.3, 0.7, 0.9]), np.array([3, 1, 40, 49]), 0.6, 17):
        x_t, found = nf.q_sample(x, t, schedule, N, target="velocity", scale=0.5, offset=-0.25)
        assert bits(x_t) == bits(nf.q_sample(x, t, schedule, N, scale=0.5, offset=-0.25))
        of_x, of_z = (rate.reshape(np.shape(t) + (1,) * (2 - np.ndim(t))) for rate in schedule.derivatives(t))
        x0 = 0.5 * x.astype(float) - 0.25
        exact, terms = of_x * x0 + of_z * z, abs(of_x) * (abs(x0) + 0.5) + abs(of_z * z)
        assert (abs(found - exact) <= 4 * u * terms).all()
        loss = nf.mse_loss(x, x, t, schedule, N, target="velocity", scale=0.5, offset=-0.25)
        assert loss == pytest.approx(((x - exact) ** 2).mean(), rel=200 * u)


def test_the_velocity_of_a_flow_without_a_shift_is_the_flow(backend):
    x, t = np.random.default_rng(0).standard_normal((64, 9)), np.random.default_rng(1).random(64)
    for schedule in (nf.Schedule.flow(1000), nf.Schedule.flow(7)):
        for times in (t, t.astype(np.float32), np.arange(64) % 7, 0.3, 5):
            found = [nf.q_sample(x, times, schedule, N, target=target) for target in ("velocity", "flow")]
            assert bits(found[0][1]) == bits(found[1][1])
            assert nf.mse_loss(x, x, times, schedule, N, target="velocity") == nf.mse_loss(
                x, x, times, schedule, N, target="flow"
            )
        tables = [nf.samplers.flow_heun(schedule, 5, prediction=p).tableau for p in ("velocity", "flow")]
        assert tables[0].rows.tobytes() == tables[1].rows.tobytes()


# ---- as a prediction ---------------------------------------------------------------------------------------

STD = 0.5
RULES = {
    "ddim": {}, "ddpm": {"clip": 0.3}, "dpmpp_2m": {}, "dpmpp_2s_ancestral": {}, "dpm_2": {}, "unipc": {}, "heun": {},
}  # fmt: skip


def answer(schedule, t, target):
    """Returns the slope by x of the perfect network, at the own time t, for data N(0, STD^2)."""
    (alpha, sigma), (d_alpha, d_sigma) = schedule(t), schedule.derivatives(t)
    of_x0, of_z = {"sample": (1.0, 0.0), "velocity": (d_alpha, d_sigma)}[target]
    return (of_x0 * alpha * STD**2 + of_z * sigma) / (alpha**2 * STD**2 + sigma**2)


@pytest.mark.parametrize("name", OWN)
def test_a_view_solves_for_x0_and_noise(name):
    """The samplers work in the schedule's own frame and in that of x / alpha, which rounds."""
    schedule, x0, z = OWN[name], 0.7, -1.1
    view = nf.views.velocity(schedule)
    for t in np.linspace(*np.minimum(schedule.times, 80.0), 9)[1:]:
        (alpha, sigma), (d_alpha, d_sigma) = schedule(t), schedule.derivatives(t)
        x, m = alpha * x0 + sigma * z, d_alpha * x0 + d_sigma * z
        for scale in (1.0, alpha.item()):
            level = (scale, scale * (sigma / alpha).item()) if scale < 1 and alpha else (alpha.item(), sigma.item())
            for coefficients, expected in ((view.clean(*level), x0), (view.noise(*level), z)):
                terms = np.array(coefficients) * (x, m)
                assert abs(terms.sum() - expected) <= 1e-11 * (1 + abs(terms).sum())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", OWN)
def test_a_prediction_of_the_velocity_is_one_of_x0(name, rule):
    """A perfect network's velocity gives the samples that its x0 gives. Seen to fail: "velocity" read as z - x0."""
    schedule, found, start = OWN[name], [], np.random.default_rng(1).standard_normal((8, 3))
    for target in ("sample", "velocity"):
        options = {"steps": 5, "spacing": "leading", "model_time": "schedule"} | RULES[rule]
        sampler = getattr(nf.samplers, rule)(schedule, prediction=target, **options)
        model = lambda x, t, target=target: x * answer(schedule, float(t), target)  # noqa: E731
        found.append(sampler.sample(model, start, N))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-7, atol=1e-9)


def test_a_flow_with_a_shift_learns_its_velocity_and_is_sampled():
    """A linear network at each time, fitted to the target by least squares, gives the data's deviation again.

    Over n numbers a slope has a relative error of about 1 / sqrt(n), and so has the deviation that 20 steps make.
    """
    flow, n = nf.Schedule.flow(1000, shift=3.0), 200_000
    x0 = STD * np.random.default_rng(0).standard_normal((1, n))

    def network(x, t):
        x_t, velocity = nf.q_sample(x0, float(t), flow, N, target="velocity")
        return x * ((x_t * velocity).sum() / (x_t * x_t).sum())

    sampler = nf.samplers.flow_heun(flow, 20, prediction="velocity", model_time="schedule")
    samples = sampler.sample(network, (1, 20_000), nf.Noise(99), dtype="float64")
    assert samples.std() == pytest.approx(STD, rel=0.02)
    as_flow = nf.samplers.flow_heun(flow, 20, prediction="flow", model_time="schedule")
    assert abs(as_flow.sample(network, (1, 20_000), nf.Noise(99), dtype="float64").std() / STD - 1) > 0.1


# ---- errors, and what else takes a target ------------------------------------------------------------------


def test_weights_of_a_velocity():
    """The loss of one x0 is the same for every target. Seen to fail: the velocity's weights as those of the flow."""
    x0, wrong = np.random.default_rng(0).standard_normal((2, 3, 400))
    for schedule, t in (
        (OWN["shifted"], [0.2, 0.5, 0.9]),
        (OWN["cosine"], np.array([3, 11, 40])),
        (power(), [0.1, 0.3, 1]),
    ):
        (alpha, sigma), rates = schedule(t), schedule.derivatives(t)
        z = nf.randn(x0.shape, N, dtype="float64")
        implied = z + (alpha / sigma)[:, None] * (x0 - wrong)
        predictions = {"sample": wrong, "flow": implied - wrong}
        predictions["velocity"] = rates[0][:, None] * wrong + rates[1][:, None] * implied
        for make in (nf.weights.min_snr, nf.weights.edm, nf.weights.logit_normal, nf.weights.mode):
            found = [
                nf.mse_loss(pred, x0, np.asarray(t), schedule, N, target=target, weight=weight)
                for target, pred in predictions.items()
                for weight in [make(schedule, target, t=t if np.asarray(t).dtype.kind == "f" else None)]
            ]
            np.testing.assert_allclose(found, found[0], rtol=1e-9)


BETAS, PLAIN = nf.Schedule.linear(50), nf.Schedule.from_functions(lambda t: 1 - t, lambda t: t, name="plain")


@pytest.mark.parametrize("call", [
    lambda s: nf.q_sample(np.ones((2, 3)), 1, s, N, target="velocity"),
    lambda s: nf.mse_loss(np.ones((2, 3)), np.ones((2, 3)), 1, s, N, target="velocity"),
    lambda s: nf.mse_loss_grad(np.ones((2, 3)), np.ones((2, 3)), 1, s, N, target="velocity"),
    lambda s: nf.samplers.ddim(s, 1, prediction="velocity"),
    lambda s: nf.weights.edm(s, "velocity"),
    lambda s: s.model_time(1, prediction="velocity"),
    lambda s: s.forward("velocity"),
    lambda s: nf.views.velocity(s),
    lambda s: nf.interop.columns.NoisyColumns(s, N, target="velocity"),
])  # fmt: skip
@pytest.mark.parametrize("schedule", [BETAS, PLAIN, nf.Schedule([0.8, 0.6], [0.6, 0.8])], ids=lambda s: s.kind)
def test_a_schedule_without_derivatives_says_what_is_missing(call, schedule):
    missing = r"needs from_functions\(.., derivatives=\)" if schedule is PLAIN else "is no function of time"
    with pytest.raises(TypeError, match=f'a {schedule.kind} schedule {missing}. "epsilon", "v", "sample" and "flow"'):
        call(schedule)


def test_float_times_of_functions_without_derivatives(backend):
    with pytest.raises(TypeError, match="derivatives="):
        nf.q_sample(np.ones((2, 3)), [0.1, 0.3], PLAIN, N, target="velocity")


@pytest.mark.parametrize(("name", "t"), [("cosine", 0.0), ("vp_linear", [0.0, 0.5]), ("vp_linear", 1e-90)])
def test_an_infinite_derivative(backend, name, t):
    with pytest.raises(
        ValueError, match=r"the derivative of sigma is .* at t = .*: expected a finite number of float32's"
    ):
        nf.q_sample(np.ones((2, 3)), t, OWN[name], N, target="velocity")


def test_levels_without_a_time():
    with pytest.raises(ValueError, match='target = "velocity": expected a schedule, as these levels have no time'):
        nf.noised(np.ones((2, 3)), 0.5, 0.5, N, target="velocity")


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda t: t, TypeError, "derivatives: expected a pair of functions of t, got <function"),
        ((np.sin,), TypeError, "derivatives: expected a pair of functions of t, got"),
        ((3.0, np.sin), TypeError, "derivatives: expected a pair of functions of t, got"),
        ((lambda t, power: 3 * t**2, POWER["derivatives"][1]), ValueError, "the one of alpha makes it rise by 1 from"),
        (POWER["derivatives"][::-1], ValueError, "the one of alpha makes it rise by 0.999"),
        ((lambda t, power: -3.0, POWER["derivatives"][1]), ValueError, "the derivative of alpha: expected a function"),
        (
            (lambda t, power: -1 / (1 - t), POWER["derivatives"][1]),
            ValueError,
            "the derivative of alpha is -inf at t = 1",
        ),
    ],
)
def test_wrong_derivatives(wrong, error, message):
    with pytest.raises(error, match=message):
        power(derivatives=wrong)


def test_a_level_that_the_schedule_has_not():
    with pytest.raises(ValueError, match=r"velocity: the schedule has no level alpha = 0.00499"):
        nf.samplers.ddim(OWN["vp_linear"], levels=[200.0, 1.0], prediction="velocity")


def test_derivatives_are_a_part_of_registered_functions():
    import pickle

    schedule = power(name="registered power")
    functions = (lambda t, power: 1 - t**power), (lambda t, power: t)
    nf.Schedule.register("registered power", *functions, derivatives=POWER["derivatives"])
    made = nf.Schedule.from_functions(*functions, name="registered power", power=3.0, derivatives=POWER["derivatives"])
    again = pickle.loads(pickle.dumps(made))
    assert np.array_equal(again.derivatives(0.3), schedule.derivatives(0.3))
    with pytest.raises(TypeError, match="with the same times and derivatives"):
        pickle.dumps(nf.Schedule.from_functions(*functions, name="registered power", power=3.0))
