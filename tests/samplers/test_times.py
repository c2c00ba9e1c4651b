# SPDX-License-Identifier: Apache-2.0
"""One notion of time: integers are indices and floats the schedule's own time, in samplers as in `q_sample`.

Seen to fail: floats of ``steps=`` as indices (imagen_cosine at sigma 0.015 for 0.95), or as noise levels where the
schedule has a shift; functions of time that samplers did not know between their columns; an end at t = 0 that could not
be written.
"""

import math
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest

import noisefuse as nf
from noisefuse import Schedule
from noisefuse.arguments import calls
from noisefuse.samplers import ddim, euler, flow_euler, lcm, tcd

ODD = Schedule.from_functions(lambda t: 1 - t**2, lambda t: t, name="odd")
SHORT = Schedule.from_functions(lambda t: 1 - 0.9 * t**2, lambda t: t, name="short")
UNIT = [
    Schedule.cosine(),
    Schedule.imagen_cosine(),
    Schedule.imagen_linear(),
    Schedule.trig(),
    Schedule.vp_linear(),
    Schedule.flow(),
    ODD,
    Schedule.from_functions(lambda t: 1 - t**2 / 16, lambda t: t / 4, name="long", times=(0, 4)),
]
ids = lambda schedule: schedule.name  # noqa: E731


@pytest.fixture(autouse=True)
def no_warnings_yet(monkeypatch):
    monkeypatch.setattr(calls, "WARNED", set())


@pytest.mark.parametrize("schedule", [*UNIT, Schedule.karras(40)], ids=ids)
def test_floats_are_the_schedules_time(schedule):
    t = [0.95, 0.5, 0.05]
    table = ddim(schedule, steps=t, final=0.01, prediction="v").tableau
    alpha, sigma = schedule(t)
    assert table.alpha.tolist() == alpha.tolist()
    assert table.sigma.tolist() == sigma.tolist()
    end = ddim(schedule, steps=[0.05], final=0.01, prediction="sample").tableau.rows["out"][0]
    alpha, sigma = schedule([0.01, 0.05])
    x = sigma[0] / sigma[1]  # x' = alpha' D + sigma' (x - alpha m1) / sigma
    assert (end["x"], end["d"]) == pytest.approx((x, alpha[0]), rel=1e-12)


@pytest.mark.parametrize("schedule", [Schedule.linear(), *UNIT], ids=ids)
def test_integers_are_indices(schedule):
    """Seen to fail: noise levels where alpha + sigma = 1."""
    table = ddim(schedule, steps=[900, 500, 3], final=2, prediction="v").tableau
    assert table.alpha.tolist() == schedule.alpha[[900, 500, 3]].tolist()
    assert table.sigma.tolist() == schedule.sigma[[900, 500, 3]].tolist()
    assert table == ddim(schedule, steps=np.uint16([900, 500, 3]), final=np.int8(2), prediction="v").tableau


def test_the_index_of_a_time():
    """Columns are at t = (i + 1) / T. Seen to fail: 948.9999999999999, which no network embeds."""
    for schedule in (Schedule.cosine(), Schedule.trig(), ODD):
        sampler = ddim(schedule, steps=np.linspace(1, 0, 21)[1:-1], prediction="v")
        assert sampler.timesteps.tolist() == list(range(949, 0, -50))
        assert sampler.timesteps.dtype == np.int64
        with pytest.raises(ValueError, match=r"ddim: expected times from the first index on, got one at index -0\.5"):
            ddim(schedule, steps=[0.5, 0.0005], prediction="v")
        ddim(schedule, steps=[0.5, 0.0005], prediction="edm")  # it is not told an index


def lucidrains(x, times):
    """ddpm of denoising_diffusion_pytorch's continuous-time class, without noise, with its alpha_cosine_log_snr."""
    log_snr = [-math.log(math.cos((t + 0.008) / 1.008 * math.pi / 2) ** -2 - 1) for t in times]
    for here, there in pairwise(log_snr):
        alpha, alpha_next = (math.sqrt(1 / (1 + math.exp(-each))) for each in (here, there))
        c = -math.expm1(here - there)
        x = alpha_next * (x * (1 - c) / alpha + c * 0.3)
    return x


@pytest.mark.parametrize("n", [20, 999])
def test_a_run_may_end_at_the_cleanest_time(n):
    """The end of lucidrains' sampler is log SNR(0), not clean data. Seen to fail: final="sigma_min", 2.3e-4 off."""
    times = np.linspace(1 - 1e-4, 0, n + 1)
    sampler = nf.samplers.ddpm(Schedule.imagen_cosine(), steps=times[:-1], final=times[-1], prediction="sample")
    x = np.linspace(-2, 2, 8).reshape(2, 4)
    got = sampler.sample(lambda x, t: np.full_like(x, 0.3), x, [np.zeros_like(x)] * n)
    np.testing.assert_allclose(got, lucidrains(x, times), rtol=1e-9)


def test_a_schedule_without_a_time_of_its_own():
    """A float is a place between two indices there, and q_sample refuses it."""
    table = ddim(Schedule.linear(), steps=[900.5, 500.0], final=20.5).tableau
    assert table.timesteps.tolist() == [900.5, 500.0]
    assert Schedule.linear().sigma[900] < table.sigma[0] < Schedule.linear().sigma[901]
    with pytest.raises(TypeError, match="no continuous time"):
        nf.q_sample(np.zeros((1, 4), np.float32), 500.0, Schedule.linear(), nf.Noise(1))


LEVELS = [
    (Schedule.linear(), [14.0, 3.0, 0.5], "preserving"),
    (Schedule.cosine(), [14.0, 3.0, 0.5], "preserving"),
    (Schedule.flow(shift=3.0), [0.9, 0.5, 0.1], "flow"),
    (Schedule.karras(40), [70, 3, 0.5], "exploding"),
    (ODD, [14.0, 3.0, 0.5], "other"),
]


@pytest.mark.parametrize(("schedule", "levels", "family"), LEVELS, ids=str)
def test_levels(schedule, levels, family):
    table = ddim(schedule, levels=levels, final_level=0, prediction="v").tableau
    at = table.sigma if family in ("flow", "exploding") else table.sigma / table.alpha
    np.testing.assert_allclose(at, levels, rtol=1e-12)
    sums = {
        "flow": table.alpha + table.sigma,
        "exploding": table.alpha,
        "preserving": np.hypot(table.alpha, table.sigma),
    }
    np.testing.assert_allclose(sums.get(family, table.sigma**2 + table.alpha), 1, rtol=1e-12)
    if family in ("flow", "exploding"):
        assert table.timesteps.tolist() == levels
    else:
        np.testing.assert_allclose(schedule(table.timesteps.astype(int))[1], table.sigma, rtol=0.02)
    assert table == ddim(schedule, levels=levels, prediction="v").tableau  # final_level=0 is clean data
    whole = ddim(schedule, levels=[*levels, 0.2], prediction="v").tableau.rows[:3]
    assert (ddim(schedule, levels=levels, final_level=0.2, prediction="v").tableau.rows == whole).all()


def test_functions_of_time_are_known_between_their_columns():
    """Seen to fail: "this schedule is unknown between its indices"."""
    alpha, sigma = SHORT((np.linspace(999, 0, 8) + 1) / 1000)
    table = euler(SHORT, steps=8, prediction="v").tableau  # of x / alpha
    np.testing.assert_allclose(table.scale, alpha, rtol=1e-12)
    np.testing.assert_allclose(table.sigma, sigma / alpha, rtol=1e-12)
    table = ddim(SHORT, steps=8, spacing="exponential", prediction="v").tableau
    np.testing.assert_allclose(table.sigma / table.alpha, np.geomspace(10, 0.001 / (1 - 9e-7), 8), rtol=1e-12)
    np.testing.assert_allclose(table.alpha, 1 - 0.9 * table.sigma**2, rtol=1e-12)


@pytest.mark.parametrize("rule", [lcm, tcd])
def test_distilled_samplers_take_levels(rule):
    assert len(rule(Schedule.linear(), levels=[14.0, 3.0])) == 2


@pytest.mark.parametrize(
    ("schedule", "options", "error", "message"),
    [
        (Schedule.flow(), {"steps": 5, "levels": [0.5]}, TypeError, "expected levels or steps, got both"),
        (Schedule.flow(), {"final": 0.1, "final_level": 0.1}, TypeError, "expected final_level or final, got both"),
        (Schedule.flow(), {"steps": [1, 0.5]}, ValueError, "steps must be integers, which are indices, or floats"),
        (Schedule.flow(), {"levels": [1.5]}, ValueError, r"levels must be noise levels of the schedule, got \[1.5\]"),
        (Schedule.flow(), {"levels": "many"}, ValueError, "levels must be noise levels, got 'many'"),
        (Schedule.flow(), {"levels": [0.5, 0.0]}, ValueError, "above 0, .*: drop the 0"),
        (Schedule.flow(), {"final_level": -1}, ValueError, "final_level must be noise levels of the schedule"),
        (Schedule.karras(40), {"levels": [math.inf]}, ValueError, "levels must be noise levels"),
        (SHORT, {"levels": [1e9]}, ValueError, "levels: expected sigma / alpha within those of the schedule"),
        (Schedule.cosine(), {"steps": [999.0, 500.0]}, ValueError, r"steps: t must be in \[0, 1\], the time u .*index"),
        (Schedule.cosine(), {"steps": [0.5], "final": 2.0}, ValueError, r"final: t must be in \[0, 1\]"),
        (Schedule.flow(), {"steps": [0.5, 0.0]}, ValueError, "above 0, .*: drop the 0"),
        (
            Schedule.flow(),
            {"steps": [1000]},
            ValueError,
            "indices 0 .. 999, got 1000 .. 1000; noise levels are levels=",
        ),
        (Schedule.linear(), {"steps": [True]}, ValueError, re.escape("a list of times, got [True]")),
    ],
)
def test_places_that_are_none(schedule, options, error, message):
    with pytest.raises(error, match=message):
        ddim(schedule, prediction="v", **options)
    if "steps" in options and "levels" in options:
        with pytest.raises(error, match=message):
            ddim(schedule, options["steps"], levels=options["levels"])


COLUMNS = Schedule(np.ones(40), np.linspace(0.1, 80, 40))


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (Schedule.flow(shift=3.0), {"steps": [0.9, 0.5]}, "steps: floats are times of the schedule, before its shift;"),
        (Schedule.flow(shift=3.0), {"final": 0.001}, "final: floats are times"),
        (Schedule.karras(40), {"steps": [39, 10]}, "steps: integers are indices;"),
        (Schedule.karras(40), {"final": 0}, "final: integers are indices;"),
        (Schedule.flow(), {"final": 0}, "final: integers are indices;"),
        (COLUMNS, {"steps": [14.6, 2.0]}, "steps: floats are places between indices;"),
    ],
    ids=str,
)
def test_what_was_a_level_warns_once(schedule, options, message, recwarn):
    for _ in range(2):
        ddim(schedule, **{"steps": 2, "prediction": "v", **options})
    (warning,) = recwarn
    assert str(warning.message).startswith(message)
    assert "levels= and final_level=" in str(warning.message)
    assert warning.filename == __file__


def test_what_keeps_its_meaning_does_not_warn(recwarn):
    """A flow without a shift, sigmas as floats, indices on a flow."""
    flow_euler(Schedule.flow(), steps=[0.9, 0.5], final=0.1)
    ddim(Schedule.karras(40), steps=[14.6, 2.0], final=0.1)
    flow_euler(Schedule.flow(), steps=[900, 500])
    ddim(Schedule.linear(), steps=[900, 0], final=0)
    assert not recwarn.list


# ---- what the network is given -----------------------------------------------------------------------------


KINDS = ["index", "sigma", "schedule", lambda alpha, sigma, t: 1 - t + alpha / 8 + sigma]


@pytest.mark.filterwarnings("ignore:steps. floats are times of the schedule")
@pytest.mark.parametrize("kind", KINDS, ids=["index", "sigma", "schedule", "function"])
@pytest.mark.parametrize("schedule", [*UNIT, Schedule.flow(shift=3.0)], ids=ids)
def test_model_time_is_that_of_training(schedule, kind):
    """The numbers of `Schedule.model_time`, for indices and for own times, in every row that calls the network.

    Seen to fail: a flow with shift 3, trained on its own time and run on sigma (mean radius 1.45 for 2); the time of
    Heun's second call left as sigma.
    """
    first, last = schedule.times
    indices = np.array([899, 499, 99])
    own = first + (last - first) * np.array([0.9, 0.5, 0.1])
    for t in (indices, own):
        expected = schedule.model_time(t, kind)
        sampler = ddim(schedule, steps=t if t is indices else [*own], prediction="v", model_time=kind)
        np.testing.assert_allclose(sampler.timesteps, expected, rtol=1e-12)
        if kind == "schedule" or (kind == "index" and t is indices):
            assert sampler.timesteps.tolist() == expected.tolist()
        two = nf.samplers.heun(schedule, steps=t if t is indices else [*own], prediction="v", model_time=kind)
        np.testing.assert_allclose(two.timesteps, np.asarray(expected)[[0, 1, 1, 2, 2]], rtol=1e-12)
    np.testing.assert_allclose(schedule.model_time(indices, "schedule"), own, rtol=1e-12)
    np.testing.assert_allclose(schedule.model_time(indices, lambda alpha, sigma, t: t), own, rtol=1e-12)
    np.testing.assert_allclose(schedule.model_time(own, "index"), indices, rtol=1e-12)
    between = nf.samplers.dpm_2(schedule, steps=[*own], prediction="v", model_time=kind)
    level = between.tableau.sigma / (between.tableau.alpha + between.tableau.sigma)
    assert np.all(np.diff(level) < 0)
    moves = np.diff(between.timesteps)
    assert np.all(moves < 0) if isinstance(kind, str) else np.all(moves != 0)


def test_model_time_at_levels():
    """Of a level it is the schedule's inverse. Seen to fail: the column's place for a level between two columns."""
    flow = Schedule.flow(shift=3.0)
    s = np.array([0.9, 0.55, 0.1234])
    for kind, expected in (("schedule", s), ("index", 1000 * s - 1), ("sigma", flow(s)[1])):
        sampler = flow_euler(flow, levels=flow(s)[1], model_time=kind)
        np.testing.assert_allclose(sampler.timesteps, expected, rtol=1e-11)
    u = ddim(Schedule.cosine(), steps=5, spacing="karras", sigma_max=50, prediction="v", model_time="schedule")
    np.testing.assert_allclose(Schedule.cosine()(u.timesteps)[1], u.tableau.sigma, rtol=1e-9)
    karras = ddim(Schedule.karras(40), steps=[80.0, 5.0], prediction="v", model_time="index")
    at = int(karras.timesteps[1])
    assert karras.timesteps[0] == 39
    assert Schedule.karras(40).sigma[at] < 5 < Schedule.karras(40).sigma[at + 1]
    assert ddim(Schedule.karras(40), steps=[80.0], prediction="v", model_time="schedule").timesteps.tolist() == [80.0]


def test_model_time_changes_nothing_else():
    """Also where a sampler computes with its index: lcm's weights, tcd's inner time. It is printed and pickled."""
    for name in ("lcm", "tcd", "heun", "dpmpp_2m", "ddim_inverse", "edm"):
        rule, schedule = getattr(nf.samplers, name), Schedule.cosine()
        plain = rule(schedule, 4, prediction="v", final="sigma_min")
        other = rule(schedule, 4, prediction="v", final="sigma_min", model_time="schedule")
        assert (plain.tableau.rows == other.tableau.rows).all()
        if name != "edm":  # its levels lie between columns
            np.testing.assert_allclose(other.timesteps, (plain.timesteps + 1) / 1000, rtol=1e-9, atol=1e-12)
    assert repr(other).startswith("Sampler(edm, 8 rows, model_time=schedule)\n  0: t = ")
    again = pickle.loads(pickle.dumps(other))
    assert (again, repr(again)) == (other, repr(other))
    named = ddim(schedule, 2, prediction="v", model_time=lambda alpha, sigma, t: t)
    assert repr(named).startswith("Sampler(ddim, 2 rows, model_time=<lambda>)\n")


def test_a_function_is_not_asked_where_no_network_is_called():
    """At clean data log(sigma) is infinite. It gets the index of a schedule without a time of its own."""
    sampler = ddim(Schedule.linear(), [500, 3], model_time=lambda alpha, sigma, t: np.log(sigma) + t)
    np.testing.assert_allclose(
        sampler.timesteps, np.log(Schedule.linear().sigma[[500, 3]]) + np.array([500, 3]), rtol=1e-15
    )


def test_defaults_are_as_before():
    assert Schedule.cosine().model_time([3, 4]).tolist() == [3, 4]
    assert Schedule.flow(shift=3.0).model_time(0.5) == 0.75
    assert Schedule.flow(shift=3.0).model_time([499]).tolist() == [0.75]
    assert Schedule.karras(40).model_time(3.0) == 3.0
    assert Schedule.linear().model_time(7) == 7


def test_a_prediction_with_a_time_of_its_own():
    karras = Schedule.karras(40)
    expected = np.log(karras.sigma[[3, 30]]) / 4
    np.testing.assert_allclose(karras.model_time([3, 30], prediction="edm"), expected, rtol=1e-15)
    assert karras.model_time(2.0, prediction=nf.views.edm(0.3)) == math.log(2.0) / 4
    refusals = (
        lambda: karras.model_time(3, "sigma", "edm"),
        lambda: euler(karras, 3, prediction="edm_v", model_time="sigma"),
    )
    for refused in refusals:
        with pytest.raises(ValueError, match=r'expected none, as a prediction of "edm(_v)?" has a time of its own'):
            refused()


@pytest.mark.parametrize(
    ("schedule", "t", "kind", "error", "message"),
    [
        (Schedule.cosine(), [0.5, 0.0005], None, ValueError, "t = 0.0005: expected a time from the first index on"),
        (Schedule.linear(), [3], "schedule", TypeError, "a linear schedule has no time of its own"),
        (Schedule.linear(), [0.5], None, TypeError, "no continuous time"),
        (Schedule.linear(), [3], "level", ValueError, 'model_time = \'level\': expected "index", "sigma"'),
        (Schedule.linear(), [3, 4], lambda a, s, t: 1.0, ValueError, r"returns shape \(2,\), got \(\)"),
        (Schedule.linear(), [1000], None, IndexError, "an index, 0 <= t < 1000"),
    ],
)
def test_model_times_that_are_none(schedule, t, kind, error, message):
    with pytest.raises(error, match=message):
        schedule.model_time(t, kind)


@pytest.mark.parametrize("kind", [None, *KINDS], ids=["default", "index", "sigma", "schedule", "function"])
def test_model_time_of_tensors_and_jax(kind):
    """The numbers of NumPy, rounded to float32 unless t is float64."""
    torch, flow = pytest.importorskip("torch"), Schedule.flow(shift=3.0)
    for t in (np.array([3, 700]), np.array([[0.25], [0.75]], np.float32), np.float64([0.2, 0.7])):
        expected = np.asarray(flow.model_time(t, kind))
        found = flow.model_time(torch.from_numpy(t), kind)
        assert isinstance(found, torch.Tensor)
        wanted = expected.dtype if expected.dtype.kind == "i" or t.dtype == np.float64 else np.float32
        assert found.numpy().dtype == wanted
        assert np.array_equal(found.numpy(), expected.astype(wanted))
        if t.dtype != np.float64:
            jax = pytest.importorskip("jax")
            found = flow.model_time(jax.numpy.asarray(t), kind)
            assert isinstance(found, jax.Array)
            assert np.array_equal(found, expected.astype(wanted))
