# SPDX-License-Identifier: Apache-2.0
"""FlowMatchSDEDiscreteScheduler, compared with verl-omni's formulas, rewritten in float64."""

import copy
import dataclasses
import inspect
import json
import math
import pickle

import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from noisefuse.interop.diffusers import FlowMatchSDEDiscreteScheduler, accelerate  # noqa: E402
from noisefuse.interop.diffusers.sde import FlowMatchSDEDiscreteSchedulerOutput  # noqa: E402

SHAPE = (3, 4, 6, 6)
LEVELS = {"sde": 0.7, "cps": 0.6, "dance_sde": 0.3}
NOISES = [nf.Noise(7, sample=n) for n in (11, 4, 8)]


def scheduler(n=6, **config):
    made = FlowMatchSDEDiscreteScheduler(shift=3.0, **config)
    made.set_timesteps(n)
    return made


def tensors(k, dtype=torch.float32):
    return [torch.from_numpy(nf.randn(SHAPE, nf.Noise(100 * k + n))).to(dtype) for n in range(3)]


def naive(kind, sigmas, i, x, m):
    """Returns (mean, standard deviation, their std_dev_t) of row i."""
    here, there = float(sigmas[i]), float(sigmas[i + 1])
    down = here - there
    if kind == "cps":
        std = there * math.sin(math.pi / 2 * LEVELS[kind])
        return (1 - there) * (x - here * m) + math.sqrt(there**2 - std**2) * (x + (1 - here) * m), std, std
    below = float(sigmas[1]) if here == 1 else here
    rate = LEVELS[kind] * (math.sqrt(here / (1 - below)) if kind == "sde" else 1)
    drift, std = rate**2 / (2 * here), rate * math.sqrt(down)
    return x * (1 - drift * down) - m * (1 + drift * (1 - here)) * down, std, rate if kind == "sde" else std


def naive_log_prob(kind, x_next, mean, std, constants=True):
    squares = (x_next - mean) ** 2
    each = -squares if kind == "cps" else -squares / (2 * std**2)
    if constants and kind != "cps":
        each = each - math.log(std) - math.log(2 * math.pi) / 2
    return each.mean(dim=tuple(range(1, each.dim())))


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


# The arguments of verl-omni's methods, and the fields of its output, at its commit a1139bafffb5 of August 2026.
THEIRS = {
    "step": {
        "model_output": ..., "timestep": ..., "sample": ..., "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf,
        "s_noise": 1.0, "generator": None, "per_token_timesteps": None, "return_dict": True, "noise_level": 0.7,
        "prev_sample": None, "sde_type": "sde", "return_logprobs": True, "include_logprob_normalizer": True,
    },
    "sample_previous_step": {
        "sample": ..., "model_output": ..., "timestep": None, "generator": None, "per_token_timesteps": None,
        "noise_level": 0.7, "prev_sample": None, "sde_type": "sde", "return_logprobs": True, "return_sqrt_dt": False,
        "include_logprob_normalizer": True,
    },
}  # fmt: skip
FIELDS = ["prev_sample", "log_prob", "prev_sample_mean", "std_dev_t"]


@pytest.mark.parametrize("method", THEIRS)
def test_the_signatures_are_theirs(method):
    """The arguments are theirs, all by position or by name, in their order and with their defaults. Seen to fail: there
    was no include_logprob_normalizer and no return_sqrt_dt."""
    found = [*inspect.signature(getattr(FlowMatchSDEDiscreteScheduler, method)).parameters.values()][1:]
    assert {each.kind for each in found} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    mine = [(each.name, ... if each.default is each.empty else each.default) for each in found]
    assert mine == [*THEIRS[method].items()]
    assert [each.name for each in dataclasses.fields(FlowMatchSDEDiscreteSchedulerOutput)] == FIELDS


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("by", ["generator", "noise"])
def test_a_run_is_theirs(kind, by):
    """Steps agree one by one, with the same draws from generators. Seen to fail: std_dev_t with sqrt(sigma - sigma') in
    it."""
    ours = scheduler()
    x = nf.randn(SHAPE, nf.Noise(1))
    x = torch.from_numpy(x)
    mine, its = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    for i, t in enumerate(ours.timesteps):
        m = torch.tanh(x)
        mean, std, named = naive(kind, ours.sigmas, i, x.double(), m.double())
        given = mine if by == "generator" else NOISES
        made = ours.step(m, t, x, generator=given, noise_level=LEVELS[kind], sde_type=kind)
        z = torch.randn(SHAPE, generator=its)
        if by == "noise":
            z = torch.from_numpy(nf.randn(SHAPE, [n.at(step=i, stream=3) for n in NOISES]))
        close(made.prev_sample, mean + std * z.double(), 3e-6)
        close(made.log_prob, naive_log_prob(kind, made.prev_sample.double(), mean, std), 3e-6)
        close(made.prev_sample_mean, mean, 3e-6)
        close(made.std_dev_t, torch.tensor(named))
        assert ours.step_index == i + 1
        x = made.prev_sample
    assert by == "noise" or torch.equal(mine.get_state(), its.get_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", LEVELS)
def test_a_stored_sample_has_the_density_that_it_was_made_with(kind, dtype):
    """In every dtype the ratio is 1. Seen to fail: the density of x' before it was rounded."""
    ours = scheduler()
    x, m, _ = tensors(2, dtype)
    given = {"noise_level": LEVELS[kind], "sde_type": kind}
    for k, t in enumerate(ours.timesteps):
        made = ours.step(m, t, x, generator=NOISES, **given)
        assert made.prev_sample.dtype is dtype
        ours._step_index = k
        again = ours.step(m, t, x, prev_sample=made.prev_sample, **given)
        assert torch.equal(made.log_prob, again.log_prob)
        assert torch.equal(again.prev_sample, made.prev_sample)


def test_a_wide_sample_and_a_narrow_model():
    """As in pipelines, the sample is float32 and the model bfloat16, which is stored."""
    ours = scheduler()
    (x, _, _), (_, m, _) = tensors(3), tensors(3, torch.bfloat16)
    made = ours.step(m, ours.timesteps[0], x, generator=NOISES)
    assert made.prev_sample.dtype is torch.bfloat16
    mean, std, _ = naive("sde", ours.sigmas, 0, x.double(), m.double())
    close(made.log_prob, naive_log_prob("sde", made.prev_sample.double(), mean, std), 3e-6)
    close(made.prev_sample_mean, mean, 3e-6)


@pytest.mark.parametrize("kind", LEVELS)
def test_gradients_are_those_of_the_formula(kind):
    """Both the log-density and the mean have gradients. Seen to fail: a mean that is detached."""
    ours = scheduler()
    x, m, x_next = tensors(4, torch.float64)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = []
    for naively in (False, True):
        output = m.clone().requires_grad_()
        if naively:
            mean, std, _ = naive(kind, ours.sigmas, 2, x, output)
            log_prob = naive_log_prob(kind, x_next, mean, std)
        else:
            times = ours.timesteps[2].expand(3)
            _, log_prob, mean, _ = ours.sample_previous_step(
                sample=x, model_output=output, timestep=times, prev_sample=x_next, noise_level=LEVELS[kind],
                sde_type=kind,
            )  # fmt: skip
        ((log_prob * weights).sum() + mean.square().sum()).backward()
        found.append(output.grad)
    close(*found, 1e-7)  # log_prob is float32, as theirs


# The sigmas of 10 steps with shift=3, by diffusers 0.42.1: Flow-GRPO's.
GRID = [
    1.0, 0.960129321, 0.913348973, 0.857692301, 0.790368259, 0.70727849, 0.602150559,
    0.464876026, 0.278048784, 0.00892857183, 0.0,
]  # fmt: skip


def test_the_grid_of_flow_grpo():
    """flow_sde along a scheduler's sigmas, as in docs/rl.md, is Flow-GRPO's step; along 10 noise levels of the schedule
    it is not. Seen to fail: with steps=10."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(10)
    flow, (x, m, x_next) = nf.Schedule.flow(1000, shift=3.0), tensors(15, torch.float64)
    sampler = nf.samplers.flow_sde(flow, levels=theirs.sigmas[:-1].numpy(), noise_level=LEVELS["sde"])
    for i in range(10):
        mean, std, _ = naive("sde", GRID, i, x, m)
        expected = naive_log_prob("sde", x_next, mean, std)
        close(sampler.log_prob(i, x, m, x_next, reduction="mean"), expected, 2e-6)
    others = nf.samplers.flow_sde(flow, steps=10).tableau.sigma
    assert 5.8e-3 < max(abs(others - GRID[:-1])) < 6e-3


@pytest.mark.parametrize("kind", LEVELS)
def test_each_sample_has_its_time_and_its_seed(kind):
    """Samples have the same bits alone and in the batch. Seen to fail: all of them at the first one's time."""
    ours = scheduler()
    x, m, _ = tensors(5)
    times = ours.timesteps[[4, 0, 2]]
    given = {"noise_level": LEVELS[kind], "sde_type": kind}
    batch = ours.step(m, times, x, generator=NOISES, **given)
    assert ours.step_index is None
    assert batch.std_dev_t.shape == (3, 1, 1, 1)
    for n in range(3):
        ours._step_index = None
        alone = ours.step(m[n : n + 1], times[n], x[n : n + 1], generator=NOISES[n : n + 1], **given)
        for name in ("prev_sample", "log_prob", "prev_sample_mean"):
            assert torch.equal(alone[name][0], batch[name][n])
        assert torch.equal(alone.std_dev_t, batch.std_dev_t[n].squeeze())


@pytest.mark.parametrize("kind", LEVELS)
def test_the_density_without_constants(kind):
    """It holds for both methods. Seen to fail: with the constants."""
    ours, (x, m, x_next) = scheduler(), tensors(13)
    law = {"noise_level": LEVELS[kind], "sde_type": kind, "include_logprob_normalizer": False, "prev_sample": x_next}
    times = ours.timesteps[[3, 0, 2]]
    each = [ours.step(m, t, x, **law).log_prob for t in ours.timesteps[:4]]
    found = ours.sample_previous_step(x, m, times, **law)[1]
    assert torch.equal(found, torch.stack(each)[[3, 0, 2], [0, 1, 2]])
    mean, std, _ = naive(kind, ours.sigmas, 0, x.double(), m.double())
    close(each[0], naive_log_prob(kind, x_next.double(), mean, std, constants=False), 3e-6)


@pytest.mark.parametrize("kind", LEVELS)
def test_the_root_of_the_time_of_each_sample(kind):
    """A fifth result, (B,), is returned on request: at the samples' own times, or at the run's position. Seen to fail:
    one time for all."""
    ours, (x, m, _) = scheduler(), tensors(14)
    law = {"noise_level": LEVELS[kind], "sde_type": kind, "return_sqrt_dt": True}
    down = -ours.sigmas.double().diff()
    for places in ([4, 0, 2], [1]):
        times = ours.timesteps[places]
        *_, found = ours.sample_previous_step(x[: len(places)], m[: len(places)], times, **law)
        assert found.dtype is torch.float32
        close(found, down[places].sqrt())
    ours.step(m, ours.timesteps[0], x, generator=NOISES)
    made = ours.sample_previous_step(x, m, **law)
    assert len(made) == 5
    close(made[4], down[[1, 1, 1]].sqrt())


def test_what_it_takes_and_returns():
    ours = scheduler()
    x, m, _ = tensors(6)
    t = ours.timesteps[0]
    made = ours.step(m, t.item(), x, generator=NOISES, return_dict=False)
    ours._step_index = 0
    by_name = ours.step(m, t, x, generator=NOISES, return_logprobs=False)
    assert by_name.log_prob is None
    assert [*by_name] == [name for name in FIELDS if name != "log_prob"]
    assert all(torch.equal(a, b) for a, b in zip(made[::2], by_name.to_tuple()[:2], strict=True))
    ours.noise = nf.Noise(3)
    ours._step_index = 0
    own = ours.step(m, t, x).prev_sample
    assert torch.equal(own, scheduler().step(m, t, x, generator=nf.Noise(3)).prev_sample)


def test_a_last_step_that_draws_nothing():
    """For cps, their log-density is -(x' - mean)^2."""
    ours = scheduler()
    x, m, x_next = tensors(7)
    times = ours.timesteps[[-1, -1, -1]]
    made = ours.sample_previous_step(x, m, times, prev_sample=x_next, sde_type="cps", noise_level=0.6)
    close(made[1], naive_log_prob("cps", x_next.double(), naive("cps", ours.sigmas, 5, x.double(), m.double())[0], 0))
    with pytest.raises(ValueError, match=r"row 5 of flow_sde draws no noise"):
        ours.sample_previous_step(x, m, times, prev_sample=x_next, noise_level=0.0)
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    euler.set_timesteps(6)
    t = euler.timesteps[0]
    close(ours.step(m, t, x, noise_level=0, return_logprobs=False).prev_sample, euler.step(m, t, x).prev_sample)


def test_configurations_and_copies():
    ours = scheduler(use_dynamic_shifting=False)
    again = FlowMatchSDEDiscreteScheduler.from_config(json.loads(ours.to_json_string()))
    assert again.config.shift == 3.0
    assert json.loads(ours.to_json_string())["_class_name"] == "FlowMatchSDEDiscreteScheduler"
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    assert type(theirs) is diffusers.FlowMatchEulerDiscreteScheduler
    x, m, _ = tensors(8)
    t = ours.timesteps[0]
    expected = ours.step(m, t, x, generator=NOISES).prev_sample
    for duplicate in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), accelerate(ours)):
        assert type(duplicate) is FlowMatchSDEDiscreteScheduler
        duplicate._step_index = 0
        assert torch.equal(duplicate.step(m, t, x, generator=NOISES).prev_sample, expected)
    assert type(accelerate(theirs)).__name__ == "FlowMatchEulerDiscreteScheduler"


def test_a_pipeline_is_saved_with_it(tmp_path):
    """A saved pipeline names our class, which diffusers does not have. Seen to fail: it named diffusers; no
    SchedulerMixin beside it."""

    class Pipeline(diffusers.DiffusionPipeline):
        def __init__(self, scheduler):
            super().__init__()
            self.register_modules(scheduler=scheduler)

    Pipeline(scheduler()).save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path).scheduler
    assert type(loaded) is FlowMatchSDEDiscreteScheduler
    assert loaded.config.shift == 3.0


def test_steps_in_compiled_code():
    """The graph breaks there."""
    torch.compiler.reset()
    ours = scheduler()

    def run(x):
        for t in ours.timesteps:
            x = ours.step(torch.tanh(x), t, x, generator=NOISES).prev_sample
        return x

    x = tensors(11)[0]
    expected = run(x)
    ours.set_timesteps(6)
    assert torch.equal(torch.compile(run, backend="eager")(x), expected)


def test_a_run_may_begin_in_the_middle():
    ours = scheduler()
    ours.set_begin_index(2)
    x, m, _ = tensors(12)
    made = ours.step(m, ours.timesteps[2], x, generator=NOISES)
    assert ours.step_index == 3
    close(made.prev_sample_mean, naive("sde", ours.sigmas, 2, x.double(), m.double())[0], 3e-6)


def test_sigmas_that_change():
    """Seen to fail: rows that are kept for another number of steps."""
    ours = scheduler()
    x, m, _ = tensors(9)
    ours.step(m, ours.timesteps[0], x, generator=NOISES)
    ours.set_timesteps(3)
    made = ours.step(m, ours.timesteps[0], x, generator=NOISES)
    close(made.prev_sample_mean, naive("sde", ours.sigmas, 0, x.double(), m.double())[0], 3e-6)


def test_bad_input():
    ours = scheduler()
    x, m, _ = tensors(10)
    t = ours.timesteps[0]
    with pytest.raises(ValueError, match=r"sde_type = 'ode': expected one of 'sde', 'cps', 'dance_sde'"):
        ours.step(m, t, x, sde_type="ode")
    with pytest.raises(ValueError, match="got the integer 3"):
        ours.step(m, 3, x)
    with pytest.raises(ValueError, match="expected entries of"):
        ours.step(m, torch.tensor([1.0, 2.0, 3.0]), x)
    with pytest.raises(NotImplementedError, match="per_token_timesteps"):
        ours.step(m, t, x, per_token_timesteps=torch.ones(3, 4))
    with pytest.raises(ValueError, match="x_next"):
        ours.step(m, t, x, prev_sample=x[:, :2])
    with pytest.raises(ValueError, match="as set_timesteps makes it"):
        FlowMatchSDEDiscreteScheduler().step(m, FlowMatchSDEDiscreteScheduler().timesteps[0], x)
