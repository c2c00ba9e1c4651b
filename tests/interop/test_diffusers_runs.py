# SPDX-License-Identifier: Apache-2.0
"""Runs of drop-in schedulers: many times at once, runs that begin elsewhere, stop, and go on."""

import copy
import inspect
import itertools
import pickle

import numpy as np
import pytest

import noisefuse as nf
from conftest import one_in

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers_cases import (  # noqa: E402
    DEFAULTS,
    LOOP,
    MADE,
    MEMORYLESS,
    NAMES,
    SHAPE,
    SHORT,
    TREES,
    Case,
    all_of_them,
    covering,
    distinct,
    set_timesteps,
    times,
)  # fmt: skip
from diffusers_loops import STOCHASTIC, alike, arguments, difference, loop  # noqa: E402
from noisefuse.interop import diffusers as ours  # noqa: E402
from noisefuse.interop.diffusers import formulas, refusals, rows, runs  # noqa: E402
from noisefuse.interop.diffusers.exact import rebound  # noqa: E402
from private_names import private  # noqa: E402


@pytest.mark.parametrize("name", MEMORYLESS)
def test_every_sample_has_its_time(name):
    """A step with a time for each sample, or each token, equals each one's step at its time: bit for bit, with
    noise."""
    case = next((c for c in STOCHASTIC if c.name == name), DEFAULTS[name])
    scheduler = case.pair()[1]
    places, noise = torch.tensor([3, 0, 9, 3]), nf.Noise(1)
    times, x = scheduler.timesteps[places], torch.randn(4, 6, 5)
    scheduler.is_scale_input_called = True
    together = scheduler.step(0.1 * x, times, x, **arguments(scheduler, noise, case.options))

    def one(at, x, noise):
        scheduler._step_index = at
        return scheduler.step(0.1 * x, scheduler.timesteps[at], x, **arguments(scheduler, noise, case.options))

    for b, at in enumerate(places.tolist()):
        alone = one(at, x[b : b + 1], noise.at(sample=b))
        for key in together:
            assert torch.equal(together[key][b : b + 1], alone[key])
    tokens = torch.randint(0, 10, (4, 6), generator=torch.Generator().manual_seed(0))
    together = scheduler.step(0.1 * x, scheduler.timesteps[tokens], x, **arguments(scheduler, noise, case.options))
    for b, i in itertools.product(range(4), range(6)):
        window = noise.at(sample=b).window((6, 5), (i, 0))
        alone = one(int(tokens[b, i]), x[b : b + 1, i : i + 1], window)
        for key in together:
            assert torch.equal(together[key][b : b + 1, i : i + 1], alone[key])


def test_a_step_at_many_times_belongs_to_no_run():
    """Seen to fail: a scheduler that counts on from it; and noise if the first row of all draws none."""
    _, mine = DEFAULTS["EulerDiscreteScheduler"].pair()
    x, noise, options = torch.randn(2, 3), nf.Noise(1), {"s_churn": 5.0, "s_tmax": float(mine.sigmas[1]) * 0.99}
    mine.is_scale_input_called = True
    together = mine.step(0.1 * x, mine.timesteps[[0, 4]], x, generator=noise, **options)[0]
    assert mine.step_index is None
    mine._step_index = 4
    alone = mine.step(0.1 * x[1:], mine.timesteps[4], x[1:], generator=noise.at(sample=1), **options)[0]
    assert torch.equal(together[1:], alone)


def test_times_that_cannot_be():
    x = torch.randn(2, 3)
    scheduler = ours.DDPMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"expected entries of DDPMScheduler.timesteps, got tensor\(\[7\]\)"):
        scheduler.step(x, torch.tensor([900, 7]), x)
    with pytest.raises(
        ValueError, match=r"timestep: expected one, or a shape that begins sample's, \(2, 3\), got \(3,\)"
    ):
        scheduler.step(x, torch.tensor([900, 800, 0]), x)
    scheduler = ours.SCMScheduler()
    scheduler.set_timesteps(10, intermediate_timesteps=None)
    with pytest.raises(ValueError, match=r"timestep: there is no step from the last of the timesteps, 0.0"):
        scheduler.step(x, scheduler.timesteps[[0, 10]], x)
    scheduler = ours.UniPCMultistepScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"UniPCMultistepScheduler remembers earlier steps and takes one time"):
        scheduler.step(x, scheduler.timesteps[:2], x)


@pytest.mark.parametrize("name", NAMES)
def test_times_as_numbers(name):
    """Times may be plain numbers, copies, 1-element tensors: as in diffusers, errors too."""
    made = (lambda t: t.item(), lambda t: t.clone(), lambda t: t.clone().reshape(1), lambda t: int(t))
    for make in (*made, lambda t: t.numpy(), lambda t: t.numpy()[()]):
        pair, answers = DEFAULTS[name].pair(), []
        x = torch.linspace(-1, 1, 96).reshape(SHAPE)
        for scheduler in pair:
            scheduler.is_scale_input_called = True
            try:
                answer = []
                for t in scheduler.timesteps[:3]:
                    generator = torch.Generator().manual_seed(0)
                    answer.append(scheduler.step(0.1 * x, make(t), x, **arguments(scheduler, generator, {}))[0])
                answers.append(torch.stack(answer))
            except Exception as error:
                answers.append((type(error), str(error).replace(str(type(scheduler)), "")))
        if isinstance(answers[0], tuple):
            assert answers[0] == answers[1]
        else:
            mine = answers[1]
            if name.startswith("CogVideoX"):  # their alphas_cumprod are float64: theirs follows if a time has an axis
                mine = mine.to(answers[0].dtype)
            assert difference(mine, answers[0]) <= LOOP


@pytest.mark.parametrize("name", NAMES)
def test_a_run_may_begin_in_the_middle(name):
    """Runs begin as in image-to-image, with set_begin_index if the class has it."""
    loop(DEFAULTS[name], start=4)


# Their DPMSolverSDE is NaN there: the second of two equal times has an interval of no length.
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("DPMSolverSDE")])
def test_a_run_may_begin_in_the_middle_by_its_time(name):
    pair, x = DEFAULTS[name].pair(), torch.randn(SHAPE)
    order = getattr(pair[0], "order", 1)
    places = range(4 * order - 1, len(pair[0].timesteps) - 1)  # Heun's and PNDM's times come twice: the second counts
    for k in places:
        results = []
        for scheduler in pair:
            t = scheduler.timesteps[k]
            scheduler.is_scale_input_called = True
            generator = torch.Generator().manual_seed(0)
            results.append(scheduler.step(0.1 * x, t, x, **arguments(scheduler, generator, {}))[0])
        assert difference(results[1], results[0]) <= LOOP
        x = results[0]
    alike(*pair, LOOP)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "PNDMScheduler"])  # PNDM goes on for ever
def test_a_run_ends_as_in_diffusers(name):
    """One step beyond the last gives the same error, or the same numbers."""
    ends, x = [], torch.randn(SHAPE)
    for scheduler in DEFAULTS[name].pair():
        scheduler.is_scale_input_called = True
        torch.manual_seed(0)
        for t in times(scheduler):
            scheduler.step(x, t, x)
        try:
            ends.append(scheduler.step(x, t, x)[0])
        except Exception as error:
            ends.append((type(error), str(error)))
    assert ends[0] == ends[1] if isinstance(ends[0], tuple) else difference(ends[1], ends[0]) <= LOOP


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_and_a_run_that_is_cut_off(name):
    """set_timesteps is called again, with another number; and steps go back, as in restarts."""
    pair = DEFAULTS[name].pair()
    x = torch.linspace(-1, 1, 96).reshape(SHAPE)
    for n, steps in ((10, range(4)), (6, range(6)), (10, (0, 1, 2, 1, 2, 3, 4, 2, 3))):
        for scheduler in pair:
            set_timesteps(scheduler, n)
            scheduler.is_scale_input_called = True
        for k in steps:
            results = []
            for scheduler in pair:
                if "_step_index" in vars(scheduler):
                    scheduler._step_index = k
                generator = torch.Generator().manual_seed(0)
                t = scheduler.timesteps[k]
                results.append(scheduler.step(0.1 * x, t, x, **arguments(scheduler, generator, {}))[0])
            if results[0].isfinite().all():  # a tree of torchsde has no increment over no time
                assert difference(results[1], results[0]) <= LOOP
        alike(*pair, LOOP)


@pytest.mark.parametrize("case", [*DEFAULTS.values(), Case("PNDMScheduler", {"skip_prk_steps": False})], ids=str)
def test_rows_are_found_once(case, monkeypatch):
    """A user changes something in the first of three runs. Seen to fail: in the second, too, for seven classes, whose
    runs leave something."""
    runs.plans.clear()
    scheduler, found, plan = case.pair()[1], [], formulas.plan
    monkeypatch.setattr(formulas, "plan", lambda *given: found.append(given) or plan(*given))
    scheduler.is_scale_input_called = True
    x = torch.linspace(-1, 1, 96).reshape(SHAPE)
    for _ in range(3):
        set_timesteps(scheduler, 10)
        for t in times(scheduler):
            scheduler.step(0.1 * x, t, x)
    assert len(found) == 1


def plan_of(case):
    """Returns the state that a run's first step meets."""
    runs.plans.clear()
    scheduler = case.pair(20)[1]
    scheduler.is_scale_input_called = True
    x = torch.linspace(-1, 1, 96).reshape(SHAPE)
    scheduler.step(0.1 * x, scheduler.timesteps[0], x, **arguments(scheduler, torch.Generator(), case.options))
    return scheduler._run.plan, scheduler._memory


def dealings(step, memory):
    """Returns a step's results, except its rows."""
    pool = [*range(100)]
    kept = [(name, tuple(pick(pool)) if many else pick(pool)) for name, pick, many in step.remembers if name in memory]
    picked = tuple(step.past(pool)), tuple(step.results(pool))
    return picked, kept, step.written, step.draws, step.keeps_noise, step.parts, repr((step.state, step.after))


@pytest.mark.parametrize("case", one_in(4, [case for case in SHORT if case.name not in TREES]), ids=str)
def test_rows_that_are_found_together_are_those_found_alone(case, monkeypatch):
    """Rows have the same bits. Seen to fail: numbers of the first row for all."""
    monkeypatch.setattr(formulas, "FORMULAS", {})
    plan, memory = plan_of(case)

    def no_lanes(*given):
        raise rows.Alone

    monkeypatch.setattr(rows._Tracing, "_in_lanes", no_lanes)
    same_plans(plan, plan_of(case)[0], memory)


def same_plans(plan, alone, memory):
    assert type(plan) is type(alone)
    if isinstance(plan, rows.Unsupported):
        assert str(plan) == str(alone)
        return
    assert plan.table.numbers.tobytes() == alone.table.numbers.tobytes()
    assert plan.table == alone.table
    assert (plan.clean is None) == (alone.clean is None)
    assert plan.clean is None or np.array_equal(plan.clean.numbers, alone.clean.numbers)
    assert (plan.names, plan.begins) == (alone.names, alone.begins)
    assert (plan.output, plan.fields, plan.keeps) == (alone.output, alone.fields, alone.keeps)
    assert [*plan.steps] == [*alone.steps]
    for i in plan.steps:
        assert dealings(plan.steps[i], memory) == dealings(alone.steps[i], memory)


def options_of(scheduler, given):
    """Returns a step's options, as its class hands them on."""
    defaults = inspect.signature(scheduler._base.step).parameters
    return tuple(given.get(name, defaults[name].default) for name in scheduler._options)


@pytest.mark.parametrize("n", [1, 20, pytest.param(300, marks=pytest.mark.release)])
@pytest.mark.parametrize("name", [kind.__name__ for kind in formulas.FORMULAS])
def test_rows_by_formula_are_those_that_are_found(name, n, monkeypatch):
    """Rows have the same bits in every configuration, from any place on. Seen to fail: a noise's factor in x and not in
    the model's output; past outputs in the other order; a change of 0, whose step reads no past; NumPy's root, which
    is not always torch's; a D that is read where it is clamped; PNDM's factors or outputs in another order; a past
    output that is not read, in the place of one that is; a last step of second order; a later first step's x."""
    trace, found, by_formula = rows.trace, [], 0
    monkeypatch.setattr(rows, "trace", lambda *given: found.append(given) or trace(*given))
    cases = distinct(all_of_them(name))
    for case in cases if n > 20 else covering(cases):
        few = 4 if name == "PNDMScheduler" and not case.config.get("skip_prk_steps") else 1  # of Runge-Kutta's method
        scheduler = case.pair(max(n, few))[1]
        scheduler.is_scale_input_called = True
        options = options_of(scheduler, case.options)
        for start in range(min(4, len(scheduler.timesteps)) if scheduler._memory else 1):
            scheduler._step_index = start
            plans = []
            found.clear()
            for formulas_or_not in (formulas.FORMULAS, {}):
                with monkeypatch.context() as patch:
                    patch.setattr(formulas, "FORMULAS", formulas_or_not)
                    try:
                        plans.append(formulas.plan(scheduler, start, options))
                    except rows.Unsupported as reason:
                        plans.append(reason)
            same_plans(*plans, scheduler._memory)
            by_formula += len(found) == 1
    assert by_formula or n == 1 or diffusers.__version__ not in formulas.COMPARED


@pytest.mark.parametrize("name", [kind.__name__ for kind in formulas.FORMULAS])
@pytest.mark.parametrize("changes", ["nothing", "version", "coefficients", "dtype", "length"])
def test_what_has_a_formula(changes, name, monkeypatch):
    """Seen to fail: a formula for every release."""
    found = []
    monkeypatch.setattr(rows, "trace", lambda *given: found.append(given))
    scheduler = DEFAULTS[name].pair()[1]
    scheduler._step_index, levels = 0, getattr(scheduler, scheduler._source)
    if changes == "version":
        monkeypatch.setattr(diffusers, "__version__", "0.999.0")
    elif changes == "coefficients":
        scheduler.coefficients = "exact"
    elif changes == "dtype":
        setattr(scheduler, scheduler._source, levels.double())
    elif changes == "length":
        setattr(scheduler, scheduler._source, levels[:-1])
    else:
        monkeypatch.setattr(diffusers, "__version__", formulas.COMPARED[-1])
    formulas.plan(scheduler, 0, options_of(scheduler, {}))
    assert len(found) == (changes != "nothing")


def test_a_state_that_changes_late_is_seen(monkeypatch):
    """Rows are found together from a state that comes again; here it changes once more. Seen to fail: later rows equal
    to earlier ones."""
    case, base = DEFAULTS["DEISMultistepScheduler"], diffusers.DEISMultistepScheduler
    original, found = base.step, []
    own = vars(inspect.getmodule(base))

    def step(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        if self.late:
            result.prev_sample = 2 * result.prev_sample
        if self._step_index > 10:
            self.late = True
        return result

    for changed in (rebound(step, own), original):
        monkeypatch.setattr(base, "step", changed)
        monkeypatch.setattr(base, "late", False, raising=False)
        found.append(plan_of(case)[0].table.rows["out"]["x"])
    assert np.array_equal(found[0], found[1] * np.where(np.arange(20) > 10, 2, 1))


# Their state differs at each step, or they remember an interval.
CHANGING = ("IPNDM", "PNDM", "SASolver", "Cosine", "DPMSolverSDE", "LMS")


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not (name.startswith(CHANGING) or getattr(ours, name)._one_by_one)]
)
def test_few_calls_find_all_rows(name, monkeypatch):
    """The run has 20 steps or more. Seen to fail: a call for each."""
    monkeypatch.setattr(formulas, "FORMULAS", {})
    calls, probe = [], rows._Probe.rows
    monkeypatch.setattr(rows._Probe, "rows", lambda *given: calls.append(given) or probe(*given))
    plan, _ = plan_of(DEFAULTS[name])
    assert len(plan.steps) >= 20
    assert len(calls) <= 12


def test_a_wrong_guess_is_not_the_last(monkeypatch):
    """PNDM's first 12 steps are of Runge-Kutta's method, which only single calls find; the others are found together.
    Seen to fail: a call for each of the 29 rows."""
    calls, probe, case = [], rows._Probe.rows, Case("PNDMScheduler", {"skip_prk_steps": False})
    monkeypatch.setattr(rows._Probe, "rows", lambda *given: calls.append(given) or probe(*given))
    plan, _ = plan_of(case)
    assert len(plan.steps) == 29
    assert len(calls) <= 18
    test_rows_that_are_found_together_are_those_found_alone(case, monkeypatch)


def test_clamps_are_looked_for_where_a_sample_is_clipped(monkeypatch):
    """To look for them slows each operation of diffusers' step. Seen to fail: the range alone, which is always set,
    made Heun's steps slower."""
    monkeypatch.setattr(rows, "_Clamps", None)
    monkeypatch.setattr(formulas, "FORMULAS", {})
    plan, _ = plan_of(Case("HeunDiscreteScheduler", {}))
    assert isinstance(plan, rows.Plan)
    with pytest.raises(TypeError):
        plan_of(Case("HeunDiscreteScheduler", {"clip_sample": True}))


@pytest.mark.parametrize("name", [name for name in NAMES if getattr(ours, name)._leftovers])
def test_what_a_finished_run_leaves_means_nothing(name):
    """Leftover attributes do not matter: none is read before it is set. Seen to fail: with Heun's dt among them."""
    x, results = torch.linspace(-1, 1, 96).reshape(SHAPE), []
    for left in (False, True):
        _, scheduler = DEFAULTS[name].pair()
        runs.plans.clear()
        for attribute in scheduler._leftovers if left else ():
            value = vars(scheduler).get(attribute)
            wrong = torch.full(SHAPE, torch.nan)
            setattr(scheduler, attribute, [wrong] * len(value) if isinstance(value, list) else wrong)
        scheduler.is_scale_input_called = True
        generator, y = torch.Generator().manual_seed(0), x
        for t in times(scheduler):
            y = scheduler.step(0.1 * y, t, y, **arguments(scheduler, generator, {}))[0]
        results.append(y)
    assert torch.equal(*results)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_a_user_puts_in(name, in_place):
    """Other sigmas, or alphas_cumprod, in the middle of a run count at once."""
    pair = DEFAULTS[name].pair()
    x = torch.linspace(-1, 1, 96).reshape(SHAPE)
    for k in range(5):
        results = []
        for scheduler in pair:
            scheduler.is_scale_input_called = True
            if k == 3:
                source = pair[1]._source
                numbers = getattr(scheduler, source)
                setattr(scheduler, source, numbers.mul_(0.9) if in_place else numbers * 0.9)
            generator = torch.Generator().manual_seed(0)
            t = scheduler.timesteps[k]
            add_noise = getattr(scheduler, "add_noise", lambda x, *_: x)
            noised = add_noise(x, x.flip(1), t.repeat(len(x)))
            results.append((scheduler.step(0.1 * x, t, x, **arguments(scheduler, generator, {}))[0], noised))
        for expected, found in zip(*results, strict=True):
            assert difference(found, expected) <= LOOP


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("Flow", "SCM"))])  # these have none
def test_a_configuration_that_changes_within_a_run(name):
    pair, x = DEFAULTS[name].pair(), torch.linspace(-1, 1, 96).reshape(SHAPE)
    other = "sample" if name == "UnCLIPScheduler" else "v_prediction"
    for k in range(4):
        results = []
        for scheduler in pair:
            if k == 2:
                scheduler.register_to_config(prediction_type=other)
            scheduler.is_scale_input_called = True
            generator = torch.Generator().manual_seed(0)
            t = scheduler.timesteps[k]
            results.append(scheduler.step(0.1 * x, t, x, **arguments(scheduler, generator, {}))[0])
        assert difference(results[1], results[0]) <= LOOP


def test_unclip_goes_on_to_the_next_of_its_timesteps():
    """diffusers' pipelines give it so; other times are rows of their own."""
    refusals.said.clear()
    pair, generators = DEFAULTS["UnCLIPScheduler"].pair(5), [torch.Generator().manual_seed(1) for _ in range(2)]
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for after in (1, 2):  # of them
        for i in range(4):
            given = [(s, s.timesteps[i], s.timesteps[i + after] if i + after < 5 else None) for s in pair]
            steps = [
                s.step(m, t, x, prev_timestep=next_t, generator=g).prev_sample
                for (s, t, next_t), g in zip(given, generators, strict=True)
            ]
            assert difference(steps[1], steps[0]) <= LOOP
            if after == 1:
                assert pair[1]._run.options == (ours._Beside(None),)  # one run for all of them
    assert not refusals.said


class Tau:
    """Functions are printed like all other options, and so are two functions that lay at one address."""

    def __init__(self, tau):
        self.tau = tau

    def __call__(self, t):
        return self.tau

    def __repr__(self):
        return "tau"


def test_sa_solver_of_another_tau():
    """Seen to fail: the rows of the first."""
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for tau in (0.0, 1.0, 0.5):
        MADE.clear()
        pair = Case("SASolverScheduler", {"tau_func": Tau(tau)}).pair(5)
        for i in range(3):
            generators = [torch.Generator().manual_seed(1) for _ in pair]
            steps = [s.step(m, s.timesteps[i], x, generator=g)[0] for s, g in zip(pair, generators, strict=True)]
            assert difference(steps[1], steps[0]) <= LOOP


def test_a_corrector_that_reads_more_than_a_row_does(caplog):
    """They need three earlier outputs, x and noise."""
    refusals.said.clear()
    pair = Case("SASolverScheduler", {"predictor_order": 3, "corrector_order": 4}).pair()
    x, ends = torch.randn(SHAPE), []
    for scheduler in pair:
        generator = torch.Generator().manual_seed(0)
        ends.append(x)
        for t in times(scheduler):
            ends[-1] = scheduler.step(0.1 * ends[-1], t, ends[-1], generator=generator)[0]
    assert torch.equal(*ends)
    assert "diffusers' own step is used because a step reads 5 remembered tensors" in caplog.text
    with pytest.raises(TypeError, match="cannot draw Noise"):
        scheduler.step(x, t, x, generator=nf.Noise(1))


def test_options_that_change_within_a_run():
    """Seen to fail: the row of the first eta for all of them."""
    pair, x = DEFAULTS["DDIMScheduler"].pair(), torch.linspace(-1, 1, 96).reshape(SHAPE)
    for k, eta in enumerate((0.0, 0.0, 1.0, 1.0, 0.5)):
        theirs, mine = (s.step(0.1 * x, s.timesteps[k], x, eta=eta, variance_noise=x.flip(1))[0] for s in pair)
        assert difference(mine, theirs) <= LOOP


def test_timesteps_with_strides():
    """Seen to fail: the place of an entry as if they were contiguous."""
    (theirs, mine), x = DEFAULTS["DDIMScheduler"].pair(), torch.linspace(-1, 1, 96).reshape(SHAPE)
    mine.timesteps = mine.timesteps.repeat_interleave(2)[::2]
    for ours_t, t in zip(mine.timesteps, theirs.timesteps, strict=True):
        assert difference(mine.step(0.1 * x, ours_t, x)[0], theirs.step(0.1 * x, t, x)[0]) <= LOOP


@pytest.mark.parametrize("name", [name for name in NAMES if name != "DPMSolverSDEScheduler"])  # theirs gives NaN
def test_timesteps_that_are_one_number_in_memory(name):
    """Seen to fail: the last place for each of them."""
    pair, x = DEFAULTS[name].pair(), torch.linspace(-1, 1, 96).reshape(SHAPE)
    results = []
    for scheduler in pair:
        scheduler.is_scale_input_called = True
        scheduler.timesteps = scheduler.timesteps[:1].expand(len(scheduler.timesteps))
        t = scheduler.timesteps[0]
        results.append(scheduler.step(0.1 * x, t, x, **arguments(scheduler, torch.Generator().manual_seed(0), {}))[0])
    assert difference(results[1], results[0]) <= LOOP


@pytest.mark.parametrize("name", NAMES)
def test_in_inference_mode(name):
    case = copy.deepcopy(DEFAULTS[name])
    if name == "PNDMScheduler":
        case.config["skip_prk_steps"] = False  # diffusers then adds in place
    with torch.inference_mode():
        loop(case)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("name", NAMES)
def test_copies_in_the_middle_of_a_run(name, duplicate):
    # a tree of torchsde cannot be copied, in diffusers either
    scheduler, x = DEFAULTS[name].pair(noise=nf.Noise(1) if name in TREES else None)[1], torch.randn(SHAPE)
    scheduler.is_scale_input_called = True
    if name == "SASolverScheduler":
        scheduler.tau_func = bool  # diffusers' own is a lambda, which cannot be pickled
    for t in scheduler.timesteps[:3]:
        scheduler.step(0.1 * x, t, x)
    other = duplicate(scheduler)
    assert type(other) is type(scheduler)
    assert not {"_clock", "_run", "_levels"} & {*vars(other)}  # addresses that another tensor may have
    results = []
    for each in (scheduler, other):
        torch.manual_seed(0)
        results.append(each.step(0.1 * x, each.timesteps[3], x)[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete"])
def test_a_scaled_input_has_diffusers_bits(name):
    """Seen to fail: divisors of sigmas that were written to since, or of the run before."""
    if f"{name}Scheduler" not in NAMES:
        pytest.skip("SciPy is missing")
    theirs, mine = DEFAULTS[f"{name}Scheduler"].pair()
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for steps, factor in ((5, 1), (7, 1), (7, 2)):
        for scheduler in (theirs, mine):
            scheduler.set_timesteps(steps)
            scheduler.sigmas *= factor
        for i, t in enumerate(mine.timesteps):
            for scheduler in (theirs, mine):
                scheduler.sigmas[i] += i == 2
            for dtype in (torch.float32, torch.float16):
                assert torch.equal(mine.scale_model_input(x.to(dtype), t), theirs.scale_model_input(x.to(dtype), t))
            for scheduler in (theirs, mine):
                scheduler._step_index = i + 1
    assert getattr(mine, "is_scale_input_called", None) == getattr(theirs, "is_scale_input_called", None)


def test_no_step_reads_a_value_back(monkeypatch):
    """After the first run of a configuration no tensor's value comes to Python, so on a GPU nothing would wait. Only a
    first step without begin_index looks up its time, in a copy on the CPU. The control is diffusers' DDPM."""

    class Reads(private("torch.utils._python_dispatch", "TorchDispatchMode")):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            if name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"):
                reads.append(name)
            return function(*args, **(kwargs or {}))

    def search(self, t, times=None):
        assert times is self._clock.host
        assert t.data_ptr() - times.data_ptr() == 0
        return 0

    x = torch.randn(SHAPE)
    noises = {name: nf.Noise(1) if name in TREES else None for name in NAMES}  # torchsde itself reads values
    fused = [case.pair(noise=noises[name])[1] for name, case in DEFAULTS.items()]
    for scheduler in [*fused, DEFAULTS["DDPMScheduler"].pair()[0]]:
        mine = isinstance(scheduler, ours.Fused)
        for _ in range(3):  # flow matching's Heun begins its second with what it kept of the first
            set_timesteps(scheduler, 10)
            scheduler.is_scale_input_called = True
            if mine:
                monkeypatch.setattr(type(scheduler), "index_for_timestep", search, raising=False)
            reads = []
            with Reads():
                for t in times(scheduler):
                    scheduler.step(x, t, x)
        assert reads == [] if mine else len(reads) > 10, type(scheduler)
