# SPDX-License-Identifier: Apache-2.0
"""Drop-in schedulers whose steps take other arguments than most, against those of pip's diffusers.

They are CogVideoXDPM, DDPMWuerstchen, ConsistencyDecoder, learned variances, and flow matching with a time for each
token.
"""

import contextlib
import copy
import inspect
import pickle

import numpy as np
import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.utils.torch_utils import randn_tensor  # noqa: E402

from diffusers_cases import LOOP, OTHERS, SHAPE, Case, said  # noqa: E402
from diffusers_loops import check_generators, difference, their_noise  # noqa: E402
from noisefuse.interop import diffusers as ours  # noqa: E402
from noisefuse.interop.diffusers import refusals, rows, runs  # noqa: E402
from noisefuse.interop.diffusers.exact import rebound  # noqa: E402
from test_torch_cuda import nothing_comes_back, on_the_stand_in  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16]


def pair(name, n, **config):
    """Returns their scheduler and ours, with n steps. Our log is empty then."""
    refusals.said.clear()
    made = [getattr(module, name)(**config) for module in (diffusers.schedulers, ours)]
    for scheduler in made:
        scheduler.set_timesteps(n)
    return made


def generators():
    return [torch.Generator().manual_seed(5) for _ in range(2)]


def start(shape=SHAPE, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def within(dtype):
    return LOOP if dtype is torch.float32 else 8 * torch.finfo(dtype).eps


def the_same(theirs, mine, tolerance):
    """Compares results, step by step, and types; ours are no results of diffusers' own step."""
    assert not refusals.said
    for a, b in zip(theirs, mine, strict=True):
        assert type(a) is type(b)
        values = [tuple(each.values()) if isinstance(each, dict) else each for each in (a, b)]
        assert max(difference(*both) for both in zip(*values[::-1], strict=True)) <= tolerance


@pytest.mark.parametrize("name", OTHERS)
def test_methods_have_their_arguments(name):
    """Pipelines look whether step takes a generator. Seen to fail: step's were *args and **kwargs."""
    kinds = [getattr(module, name) for module in (diffusers.schedulers, ours)]
    for method in ("step", "add_noise", "set_timesteps", "__init__", "scale_model_input"):
        if hasattr(kinds[0], method):
            theirs, mine = (inspect.signature(getattr(kind, method)).parameters.values() for kind in kinds)
            assert [(p.name, p.default) for p in mine] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("name", OTHERS)
def test_steps_in_compiled_code(name):
    """The graph breaks there."""
    ends = []
    for scheduler in pair(name, 2):
        generator = torch.Generator().manual_seed(0)

        @torch.compile(backend="eager")
        def run(x, scheduler=scheduler, generator=generator):
            return CALLS[name](scheduler, 0.1 * x, x, generator)

        ends.append(run(start()))
    assert difference(*ends[::-1]) <= LOOP


CALLS = {
    "CogVideoXDPMScheduler": lambda s, m, x, g: s.step(m, None, s.timesteps[0], None, x, generator=g)[0],
    "ConsistencyDecoderScheduler": lambda s, m, x, g: s.step(m, s.timesteps[0], x, g)[0],
    "DDPMWuerstchenScheduler": lambda s, m, x, g: s.step(m, s.timesteps[:1].expand(2), x, g)[0],
}  # fmt: skip


# ---- CogVideoXDPM ------------------------------------------------------------------------------------------


COG = [
    {},
    {"prediction_type": "sample", "set_alpha_to_one": False},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
     "snr_shift_scale": 1.0},
]  # fmt: skip


def cog(scheduler, noise, x, begin=0, **options):
    """Returns the results of a run, as their pipelines make it."""
    results, old, times = [], None, scheduler.timesteps[begin:]
    for i, t in enumerate(times):
        m, back = 0.3 * torch.tanh(x), times[i - 1] if i else None
        results.append(scheduler.step(m, old, t, back, x, generator=noise, **options))
        x, old = results[-1] if isinstance(results[-1], tuple) else results[-1].values()
    return results


@pytest.mark.parametrize("config", COG, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cog_agrees(config, dtype):
    """Values, types of results and generators are theirs, in whole runs and in runs that begin later. Seen to fail: one
    draw from the generators."""
    theirs, mine = pair("CogVideoXDPMScheduler", 10, **config)
    for begin, return_dict in ((0, False), (0, True), (3, False)):
        drawn, x = generators(), start(dtype=dtype)
        given = {"begin": begin, "return_dict": return_dict}
        results = [cog(s, g, x, **given) for s, g in zip((theirs, mine), drawn, strict=True)]
        the_same(*results, within(dtype))
        assert torch.equal(*(g.get_state() for g in drawn))
    assert isinstance(mine._run.plan, rows.Plan)
    assert {*vars(mine)} - {*vars(theirs)} <= {"_clock", "_run", "_levels", "_replay", "__module__", "_old"}


def test_cog_draws_a_noise_once(monkeypatch):
    """Step i has the field of stream 3 at step noise.step + i: their second draw, or the only one. Seen to fail: the
    first draw's row."""
    theirs, mine = pair("CogVideoXDPMScheduler", 6)
    noise, x, calls = nf.Noise(7, sample=5, step=100), start(), []

    def draw(shape, **kwargs):
        calls.append(shape)
        return torch.from_numpy(nf.randn(shape, noise.at(step=100 + len(calls) // 2, stream=3)))

    monkeypatch.setattr(inspect.getmodule(type(theirs)), "randn_tensor", draw)
    expected = cog(theirs, None, x)
    assert len(calls) == 1 + 2 * 4 + 1  # the first step and the last one draw once
    calls.append(None)
    the_same(expected[:-1], cog(mine, noise, x)[:-1], LOOP)
    noises, x = [nf.Noise(seed) for seed in (3, 1)], start()
    together = cog(mine, noises, x)[-1][0]
    alone = [cog(mine, noises[b], x[b : b + 1])[-1][0] for b in range(2)]
    assert torch.equal(together, torch.cat(alone))


def test_cog_at_another_time_back():
    """A time that is not the last one of its timesteps has rows of its own."""
    theirs, mine = pair("CogVideoXDPMScheduler", 10)
    x, m, old = start(), start(seed=1), start(seed=2)
    for _ in range(2):
        for back in (3, 1, 4):
            given = [(m, old, s.timesteps[5], s.timesteps[back], x) for s in (theirs, mine)]
            results = [s.step(*g, generator=r) for s, g, r in zip((theirs, mine), given, generators(), strict=True)]
            the_same(results[:1], results[1:], LOOP)


def test_cog_ends_as_theirs():
    """Errors are theirs, gradients go through the prediction of the step before, and copies go on."""
    theirs, mine = pair("CogVideoXDPMScheduler", 10)
    x, m, old = start(), start(seed=1), start(seed=2)
    for scheduler in (theirs, mine):
        with pytest.raises(IndexError):
            scheduler.step(m, old, scheduler.timesteps[0], None, x)
    grads = []
    for scheduler, generator in zip((theirs, mine), generators(), strict=True):
        leaf = old.clone().requires_grad_()
        given = m, leaf, scheduler.timesteps[3], scheduler.timesteps[2], x
        scheduler.step(*given, generator=generator)[0].square().sum().backward()
        grads.append(leaf.grad)
    assert difference(grads[1], grads[0]) <= LOOP
    for duplicate in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)), ours.accelerate(theirs)):
        assert type(duplicate) is ours.CogVideoXDPMScheduler
        ends = [cog(s, g, x)[-1] for s, g in zip((mine, duplicate), generators(), strict=True)]
        assert torch.equal(ends[0][0], ends[1][0])


def test_a_step_in_which_two_draws_count(monkeypatch):
    """No row has two noises. Seen to fail: their sum in place of one."""

    def step(self, model_output, old, timestep, timestep_back, sample, return_dict=False):
        first, second = randn_tensor(sample.shape), randn_tensor(sample.shape)
        return sample + first + second, model_output

    runs.plans.clear()
    diffusers_own = rebound(step, vars(inspect.getmodule(diffusers.CogVideoXDPMScheduler)))
    monkeypatch.setattr(diffusers.CogVideoXDPMScheduler, "step", diffusers_own)
    _, mine = pair("CogVideoXDPMScheduler", 10)
    with pytest.raises(TypeError, match="diffusers does this step because a step is not finite"):
        mine.step(start(), None, mine.timesteps[0], None, start(), generator=nf.Noise(1))


# ---- DDPMWuerstchen ----------------------------------------------------------------------------------------


def wuerstchen(scheduler, noise, x):
    """Returns the results of a run, as diffusers' Stable Cascade makes it."""
    results = []
    for t in scheduler.timesteps[:-1]:
        given = t.expand(len(x)).to(x.dtype)
        results.append(scheduler.step(model_output=torch.tanh(x), timestep=given, sample=x, generator=noise))
        x = results[-1].prev_sample
    return results


@pytest.mark.parametrize("scaler", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wuerstchen_agrees(scaler, dtype):
    """In bfloat16 their pipelines round the times. Seen to fail: at the times that are not rounded."""
    both, drawn = pair("DDPMWuerstchenScheduler", 12, scaler=scaler), generators()
    results = [wuerstchen(s, g, start(dtype=dtype)) for s, g in zip(both, drawn, strict=True)]
    the_same(*results, within(dtype))
    assert results[1][0].prev_sample.dtype is dtype
    assert torch.equal(*(g.get_state() for g in drawn))
    assert isinstance(both[1]._run.plan, rows.Plan)


def test_wuerstchen_draws_by_position():
    _, mine = pair("DDPMWuerstchenScheduler", 12)
    noises, x = [nf.Noise(seed, step=4) for seed in (3, 1)], start()
    together = wuerstchen(mine, noises, x)[-1].prev_sample
    alone = [wuerstchen(mine, noises[b], x[b : b + 1])[-1].prev_sample for b in range(2)]
    assert torch.equal(together, torch.cat(alone))
    zero, t = torch.zeros(SHAPE), mine.timesteps[2].expand(2)
    first, later = (mine.step(zero, t, zero, generator=nf.Noise(3, step=s)).prev_sample for s in (4, 5))
    drawn = [torch.from_numpy(nf.randn(SHAPE, nf.Noise(3, step=s + 2, stream=3))) for s in (4, 5)]
    std = first.std() / drawn[0].std()
    assert difference(first, std * drawn[0]) <= 1e-6
    assert difference(later, std * drawn[1]) <= 1e-6


def test_wuerstchen_at_times_of_its_own(caplog):
    """diffusers takes the first sample's next time for all, and any times."""
    both, x = pair("DDPMWuerstchenScheduler", 12), start()
    for times in (torch.tensor([0.25, 0.5]), torch.tensor([0.31, 0.31])):
        made = [s.step(x, times, x, generator=g).prev_sample for s, g in zip(both, generators(), strict=True)]
        assert torch.equal(*made)
    assert said(caplog) == [
        "DDPMWuerstchenScheduler: diffusers' own step is used at times that are not one of its timesteps"
    ]
    leaf, grads = x.clone().requires_grad_(), []
    for scheduler, generator in zip(both, generators(), strict=True):
        scheduler.step(leaf, scheduler.timesteps[3].expand(2), x, generator=generator)[0].square().sum().backward()
        grads.append(leaf.grad.clone())
        leaf.grad = None
    assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wuerstchen_adds_noise_at_any_times(dtype):
    both, x, noise = pair("DDPMWuerstchenScheduler", 12), start(dtype=dtype), nf.Noise(7)
    z, times = torch.from_numpy(nf.randn(SHAPE, noise)).to(dtype), torch.tensor([0.123, 0.987])
    theirs, mine = (s.add_noise(x, z, times) for s in both)
    assert difference(mine, theirs) <= within(dtype)
    assert difference(both[1].add_noise(x, noise, times), theirs) <= within(dtype)
    assert torch.equal(*(s.add_noise(x[:1], z[:1], times) for s in both))  # one sample at two times: theirs
    assert not refusals.said - {
        "DDPMWuerstchenScheduler: diffusers' own add_noise is used for one sample at many times"
    }


def test_wuerstchen_in_float64():
    """ "exact" coefficients are the formula's in float64, from s = 0.008 on. Seen to fail: a float32 s."""
    _, mine = pair("DDPMWuerstchenScheduler", 12)
    mine.coefficients = "exact"
    x = torch.zeros(1, 3, dtype=torch.float64)
    i, half = 3, np.pi / 2
    here, there = (float(t) for t in mine.timesteps[i : i + 2])
    signal = [np.cos((t + 0.008) / 1.008 * half) ** 2 / np.cos(0.008 / 1.008 * half) ** 2 for t in (here, there)]
    alpha = signal[0] / signal[1]
    expected = -(1 - alpha) / np.sqrt(alpha * (1 - signal[0]))
    noise = np.sqrt((1 - alpha) * (1 - signal[1]) / (1 - signal[0]))
    generator = torch.Generator().manual_seed(0)
    made = mine.step(x + 1, mine.timesteps[i].expand(1), x, generator=generator)[0]
    z = torch.randn(1, 3, dtype=torch.float64, generator=generator.manual_seed(0))
    np.testing.assert_allclose(made, expected + noise * z, rtol=1e-13)


# ---- ConsistencyDecoder ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_consistency_decoder_agrees(dtype):
    both, drawn = pair("ConsistencyDecoderScheduler", 2), generators()
    results = [[], []]
    for scheduler, generator, made in zip(both, drawn, results, strict=True):
        x = start(dtype=dtype)
        for t in scheduler.timesteps:
            made.append(scheduler.step(torch.tanh(x), t, x, generator))
            x = made[-1].prev_sample
    the_same(*results, within(dtype))
    assert torch.equal(*(g.get_state() for g in drawn))


def test_a_decoder_in_a_pipeline_is_accelerated():
    """Its scheduler lies in the model, not in the pipeline. Seen to fail: it stayed diffusers'."""
    tiny = {
        "encoder_block_out_channels": [8, 8], "encoder_down_block_types": ["DownEncoderBlock2D"] * 2,
        "encoder_layers_per_block": 1, "encoder_norm_num_groups": 4, "latent_channels": 4,
        "decoder_block_out_channels": [8, 8], "decoder_down_block_types": ["ResnetDownsampleBlock2D"] * 2,
        "decoder_up_block_types": ["ResnetUpsampleBlock2D"] * 2, "decoder_layers_per_block": 1,
        "decoder_norm_num_groups": 4, "decoder_num_train_timesteps": 1024, "decoder_in_channels": 7,
    }  # fmt: skip
    torch.manual_seed(0)
    vae, pictures = diffusers.ConsistencyDecoderVAE(**tiny).eval(), []

    class Pipeline(diffusers.DiffusionPipeline):
        def __init__(self, vae, scheduler):
            super().__init__()
            self.register_modules(vae=vae, scheduler=scheduler)

    pipeline = Pipeline(vae, diffusers.DDPMScheduler())
    for _ in range(2):
        with torch.no_grad():
            given = start((1, 4, 4, 4)), torch.Generator().manual_seed(0)
            pictures.append(vae.decode(given[0], generator=given[1], return_dict=False)[0])
        ours.accelerate(pipeline)
    assert type(vae.decoder_scheduler) is ours.ConsistencyDecoderScheduler
    assert difference(*pictures[::-1]) <= LOOP


# ---- learned variances -------------------------------------------------------------------------------------


LEARNED = [
    ("DDPMScheduler", {"variance_type": "learned_range"}),
    ("DDPMScheduler", {"variance_type": "learned_range", "thresholding": True, "sample_max_value": 1.5}),
    ("DDPMScheduler", {"variance_type": "learned", "prediction_type": "sample"}),
    ("DDPMParallelScheduler", {"variance_type": "learned_range", "prediction_type": "v_prediction"}),
    ("UnCLIPScheduler", {"variance_type": "learned_range"}),
]


def predicted(scheduler, x):
    """Returns a model's output and variance, which is positive or anything."""
    v = 0.1 * x**2 if scheduler.config.variance_type == "learned" else torch.sin(3 * x)
    return torch.cat([0.5 * torch.tanh(x), v], dim=1)


def learned(scheduler, noise, x):
    results = []
    for t in scheduler.timesteps:
        results.append(scheduler.step(predicted(scheduler, x), t, x, generator=noise))
        x = results[-1].prev_sample
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "config"), LEARNED, ids=str)
def test_learned_variances_agree(name, config, dtype):
    """As in DeepFloyd IF. Seen to fail: the logarithm not halved; the root of a learned variance left out."""
    both, drawn = pair(name, 10, **config), generators()
    results = [learned(s, g, start(dtype=dtype)) for s, g in zip(both, drawn, strict=True)]
    the_same(*results, within(dtype))
    assert torch.equal(*(g.get_state() for g in drawn))
    assert both[1]._run.plan.spread is not None


@pytest.mark.parametrize(("name", "config"), LEARNED[:3], ids=str)
def test_learned_variances_draw_by_position(name, config, monkeypatch):
    """They are factors of the field of stream 3; samples are the same alone, and at times of their own."""
    theirs, mine = pair(name, 10, **config)
    noise, drawn, x = nf.Noise(7, sample=5, step=100), iter(range(100, 110)), start()
    field = lambda: torch.from_numpy(nf.randn(SHAPE, noise.at(step=next(drawn), stream=3)))  # noqa: E731
    monkeypatch.setattr(inspect.getmodule(type(theirs)), "randn_tensor", lambda *args, **kwargs: field())
    the_same(learned(theirs, None, x), learned(mine, noise, x), LOOP)
    places, noises, x = torch.tensor([3, 0, 9]), [nf.Noise(seed) for seed in (3, 1, 4)], start((3, 2, 4, 4))
    m = predicted(mine, x)
    together = mine.step(m, mine.timesteps[places], x, generator=noises).prev_sample
    for b, i in enumerate(places):
        one = slice(b, b + 1)
        alone = mine.step(m[one], mine.timesteps[i], x[one], generator=noises[b]).prev_sample
        assert torch.equal(together[one], alone)


def test_a_learned_variance_that_is_missing(caplog):
    """A model without this half raises their error; at the last step, which draws nothing, it may be missing."""
    both, x = pair("DDPMScheduler", 4, variance_type="learned_range"), start()
    for scheduler in both:
        with pytest.raises(TypeError, match="unsupported operand"):
            scheduler.step(x, scheduler.timesteps[0], x)
    assert torch.equal(*(s.step(x, s.timesteps[-1], x).prev_sample for s in both))
    assert said(caplog) == ["DDPMScheduler: diffusers' own step is used without a part for the variance"]
    leaf, grads = predicted(both[0], x).requires_grad_(), []
    for scheduler, generator in zip(both, generators(), strict=True):
        scheduler.step(leaf, scheduler.timesteps[1], x, generator=generator).prev_sample.sum().backward()
        grads.append(leaf.grad.clone())
        leaf.grad = None
    assert torch.equal(*grads)


# ---- a time for each token ---------------------------------------------------------------------------------


def tokens(scheduler, noise, x, strength=0.8):
    """Returns the results of a run, as diffusers' LTXConditionPipeline makes it: tokens of a given picture have times
    of their own, or none."""
    results, known = [], torch.zeros(x.shape[:2])
    known[:, :3], known[:, 3:5] = 1, strength
    for t in scheduler.timesteps:
        times = torch.min(t.expand(len(x))[:, None], (1 - known) * 1000)
        results.append(scheduler.step(torch.tanh(x), t, x, per_token_timesteps=times, generator=noise))
        x = results[-1].prev_sample.to(x.dtype)
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", [{}, {"stochastic_sampling": True}, {"shift": 3.0, "invert_sigmas": True}], ids=str)
def test_tokens_agree(config, dtype):
    """Values, counters and generators are theirs, and float32 for all dtypes. Seen to fail: rows of one run in the next
    one, of other sigmas; float64 for a float64 sample."""
    check_generators(Case("FlowMatchEulerDiscreteScheduler", config))
    both = pair("FlowMatchEulerDiscreteScheduler", 10, **config)
    for n in (10, 4):
        drawn, results = generators(), []
        for scheduler, generator in zip(both, drawn, strict=True):
            scheduler.set_timesteps(n)
            results.append(tokens(scheduler, generator, start((2, 9, 5), dtype), strength=n / 20))
            assert scheduler.step_index == n
        the_same(*results, LOOP)
        assert results[1][0].prev_sample.dtype is torch.float32
        assert torch.equal(*(g.get_state() for g in drawn))
    wide, m, times = start((2, 9, 5), torch.float64), start((2, 9, 5), dtype), torch.full((2, 9), 500.0)
    given = [(m, s.timesteps[0], wide) for s in both]
    the_same(
        *([s.step(*g, per_token_timesteps=times, generator=r)] for s, g, r in zip(both, given, drawn, strict=True)),
        LOOP,
    )


def test_tokens_draw_by_position(monkeypatch):
    """All tokens of step i have the field of stream 3 at step noise.step + i. Seen to fail: the step of a token's own
    row."""
    theirs, mine = pair("FlowMatchEulerDiscreteScheduler", 6, stochastic_sampling=True)
    noise, drawn, x = nf.Noise(7, sample=5, step=100), iter(range(100, 106)), start((2, 9, 5))
    field = lambda: torch.from_numpy(nf.randn((2, 9, 5), noise.at(step=next(drawn), stream=3)))  # noqa: E731
    their_noise(monkeypatch, "FlowMatchEulerDiscreteScheduler", field)
    expected, found = tokens(theirs, None, x), tokens(mine, noise, x)
    the_same(expected, found, LOOP)
    mine.set_timesteps(6)
    mine.noise = noise
    assert torch.equal(tokens(mine, None, x)[-1].prev_sample, found[-1].prev_sample)
    noises = [nf.Noise(3), nf.Noise(1)]
    mine.set_timesteps(6)
    together = tokens(mine, noises, x)[-1].prev_sample
    for b in range(2):
        mine.set_timesteps(6)
        assert torch.equal(tokens(mine, noises[b], x[b : b + 1])[-1].prev_sample, together[b : b + 1])


def test_tokens_in_float64():
    """ "exact" coefficients are the formula's. Seen to fail: sigmas of float32."""
    mine = pair("FlowMatchEulerDiscreteScheduler", 7, shift=3.0)[1]
    mine.coefficients = "exact"
    x, times = torch.zeros(1, 3, 2, dtype=torch.float64), torch.tensor([[1000.0, 900.0, 0.0]])
    made = mine.step(x + 1, mine.timesteps[0], x, per_token_timesteps=times)[0]
    grid = np.linspace(1, 3 * 0.001 / 1.002, 7)
    grid = 3 * grid / (1 + 2 * grid)
    below = [grid[grid < 0.001 * t - 1e-6].max(initial=0) for t in times[0].tolist()]
    np.testing.assert_allclose(made[0, :, 0], 0.001 * times[0].double() - torch.tensor(below), rtol=1e-13)


def test_tokens_that_are_left_to_diffusers(caplog):
    both, x = pair("FlowMatchEulerDiscreteScheduler", 6), start((2, 9, 5))
    one = both[0].timesteps[:1][None]
    assert torch.equal(*(s.step(x, s.timesteps[0], x, per_token_timesteps=one).prev_sample for s in both))
    assert "per_token_timesteps of another shape" in said(caplog)[0]
    grads, times = [], torch.full((2, 9), 400.0)
    for scheduler in both:
        leaf = x.clone().requires_grad_()
        scheduler.step(leaf, scheduler.timesteps[1], x, per_token_timesteps=times).prev_sample.sum().backward()
        grads.append(leaf.grad)
        with pytest.raises(ValueError, match="integer indices"):
            scheduler.step(x, 3, x, per_token_timesteps=times)
    assert torch.equal(*grads)
    both[1].register_to_config(stochastic_sampling=True)
    with pytest.raises(TypeError, match="cannot draw Noise"):
        both[1].step(leaf, both[1].timesteps[2], x, per_token_timesteps=times, generator=nf.Noise(1))


# ---- tensors of a device -----------------------------------------------------------------------------------


def steps_of(name):
    """Returns (a scheduler with 5 steps, a function that makes step i from x)."""
    config = {"variance_type": "learned_range"} if name == "DDPMScheduler" else {}
    mine = pair(name, 2 if name == "ConsistencyDecoderScheduler" else 5, **config)[1]
    mine.noise, old = nf.Noise(7), [None]

    def step(i, x):
        t, m = mine.timesteps[i], 0.3 * torch.tanh(x)
        if name == "CogVideoXDPMScheduler":
            x, old[0] = mine.step(m, old[0], t, mine.timesteps[i - 1] if i else None, x)
            return x
        given = (torch.cat([m, m], dim=1), t, x) if config else (m, t, x)
        if name == "DDPMWuerstchenScheduler":
            given = m, t.expand(len(x)), x
        if name == "FlowMatchEulerDiscreteScheduler":
            x, m = x.flatten(2), m.flatten(2)
            made = mine.step(m, t, x, per_token_timesteps=t.expand(*x.shape[:2]))
            return made.prev_sample.reshape(SHAPE)
        return mine.step(*given).prev_sample

    return mine, step


@pytest.mark.parametrize("name", [*OTHERS, "DDPMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_on_the_stand_in(name):
    """Tensors count as a GPU's (test_torch_cuda.py): the CPU's bits. After the first step of a run nothing is read
    back, except tokens' times. Seen to fail: Wuerstchen's times found by their values."""

    def run(guard):
        mine, step = steps_of(name)
        x, xs = mine.start(SHAPE), []
        for i in range(2 if name == "ConsistencyDecoderScheduler" else 5):
            with guard() if xs else contextlib.nullcontext():
                x = step(i, x)
            xs.append(x)
        return xs

    guard = contextlib.nullcontext if name.startswith("FlowMatch") else nothing_comes_back
    expected = run(contextlib.nullcontext)
    with on_the_stand_in() as cupy:
        found = run(guard)
        assert len(cupy.launches) >= len(found)
    assert all(map(torch.equal, found, expected))
