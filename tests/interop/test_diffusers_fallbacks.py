# SPDX-License-Identifier: Apache-2.0
"""Diffusers does itself what a row cannot express; methods that others replace are handed back."""

import inspect
import logging

import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers_cases import DEFAULTS, LOOP, NAMES, SDE, SHAPE, TORCH, TREES, VP_CLASSES, Case, said, times  # noqa: E402
from diffusers_loops import arguments, difference  # noqa: E402
from noisefuse.interop import diffusers as ours  # noqa: E402
from noisefuse.interop.diffusers import exact, refusals  # noqa: E402
from noisefuse.interop.diffusers.exact import rebound  # noqa: E402

FALLBACKS = {
    "where the variance is learned": (
        "DPMSolverMultistepScheduler",
        {**SDE, "variance_type": "learned_range"},
        (2, 6, 4, 4),
        {},
    ),
    "for tensors of torch.complex64 on cpu": ("DDPMScheduler", {"clip_sample": False}, SHAPE, {"complex": True}),
    "for tensors that require grad": ("DDPMScheduler", {}, SHAPE, {"grad": True}),
    "for a torch.float16 sample": ("DDPMScheduler", {}, SHAPE, {"half": True}),
    "for a torch.float32 sample and a": ("DDPMScheduler", {"prediction_type": "sample"}, SHAPE, {"narrow": True}),
    "with a solver_p": ("UniPCMultistepScheduler", {"solver_p": diffusers.DDIMScheduler()}, SHAPE, {}),
    "not finite": ("DDPMScheduler", {"variance_type": "fixed_large_log"}, SHAPE, {}),
    "reads 5 remembered tensors": ("UniPCMultistepScheduler", {"solver_order": 4}, SHAPE, {}),
    "at times that are not among its timesteps": ("DDIMScheduler", {}, SHAPE, {"later": 7, "options": {"eta": 1.0}}),
}


@pytest.mark.parametrize("reason", FALLBACKS)
def test_what_a_row_cannot_do(reason, caplog):
    """diffusers' own method does it, in full, and a warning in the log says so once."""
    name, config, shape, how = FALLBACKS[reason]
    refusals.said.clear()
    pair, results = Case(name, config).pair(), []
    dtype = torch.complex64 if "complex" in how else torch.float32
    m, x = torch.randn(shape, dtype=dtype), torch.randn(SHAPE, dtype=dtype)
    with caplog.at_level(logging.WARNING):
        for scheduler in pair:
            output = m.bfloat16() if "narrow" in how else m.clone()
            inputs = output.requires_grad_("grad" in how), x.half() if "half" in how else x
            generator = torch.Generator().manual_seed(0)
            results.append([])
            for t in times(scheduler):
                at = t + how.get("later", 0)
                given = arguments(scheduler, generator, how.get("options", {}))
                result = scheduler.step(inputs[0], at, inputs[1], **given)
                results[-1].append(result.prev_sample)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
        assert a.requires_grad == b.requires_grad
    lines = said(caplog)
    assert len(lines) == 1
    assert lines[0].startswith(f"{name}: diffusers' own step is used")
    assert reason in lines[0]
    if "generator" in inspect.signature(pair[0].step).parameters:
        given = {**how.get("options", {}), "generator": nf.Noise(1)}
        with pytest.raises(TypeError, match="diffusers does this step"):
            pair[1].step(inputs[0], pair[1].timesteps[0] + how.get("later", 0), inputs[1], **given)


# LTX' own step has levels beside its timesteps, and cannot have them elsewhere than x.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in TREES and not name.startswith("LTX")])
def test_other_devices_are_left_to_diffusers(name):
    """Such devices are Apple's GPUs; "meta" stands for them. Seen to fail: the step raised "expected a tensor on the
    CPU"."""
    x, kinds = torch.empty(SHAPE, device="meta"), []
    for scheduler in DEFAULTS[name].pair():
        scheduler.is_scale_input_called, results = True, []
        results += [scheduler.step(0.1 * x, t, x)[0] for t in scheduler.timesteps[:3]]
        if name in VP_CLASSES:  # the others' have to compare values
            results.append(scheduler.add_noise(x, x, scheduler.timesteps[:2]))
        kinds.append([(each.device, each.dtype, each.shape) for each in results])
    assert kinds[0] == kinds[1]


def test_lcm_at_a_time_that_is_not_the_next():
    """LCM takes its noise level from the time, and the next one from a count. Seen to fail: the time was ignored."""
    for places in ((0, 0, 1, 1), (1, 3, 0)):
        pair, results = DEFAULTS["LCMScheduler"].pair(4), []
        x = torch.linspace(-1, 1, 96).reshape(SHAPE)
        for scheduler in pair:
            for make in (lambda t: t, lambda t: t.item()):
                scheduler.set_timesteps(4)
                generator = torch.Generator().manual_seed(0)
                for k in places:
                    t = make(scheduler.timesteps[k])
                    results.append(scheduler.step(0.1 * x, t, x, generator=generator)[0])
        theirs, mine = torch.stack(results).chunk(2)
        assert difference(mine, theirs) <= LOOP


def test_flow_matching_before_set_timesteps():
    """It then has as many noise levels as times. Seen to fail: an IndexError, in the first step."""
    x, results = torch.randn(SHAPE), []
    for scheduler in (diffusers.FlowMatchEulerDiscreteScheduler(), ours.FlowMatchEulerDiscreteScheduler()):
        results.append(torch.stack([scheduler.step(0.1 * x, t, x)[0] for t in scheduler.timesteps[:3]]))
        scheduler._step_index = 999
        with pytest.raises(IndexError):
            scheduler.step(x, scheduler.timesteps[0], x)
    assert torch.equal(*results)


def test_gradients_that_begin_in_the_middle_of_a_run(caplog):
    """Seen to fail: a step that checks only dtypes once its row is known."""
    refusals.said.clear()
    _, scheduler = Case("DDPMScheduler", {}).pair()
    x, m = torch.randn(2, *SHAPE)
    for t in scheduler.timesteps[:2]:
        x = scheduler.step(m, t, x).prev_sample
    assert not caplog.records
    assert scheduler.step(m.requires_grad_(), scheduler.timesteps[2], x).prev_sample.requires_grad
    assert "for tensors that require grad" in caplog.text


def test_a_step_that_is_not_affine_is_seen(monkeypatch):
    """This covers a change of diffusers: a product of two tensors has no row, though each unit vector has an answer."""
    module = inspect.getmodule(diffusers.DDPMScheduler)
    kind = module.DDPMSchedulerOutput

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        return kind(prev_sample=sample * model_output)

    scheduler, (m, x) = ours.DDPMScheduler(beta_end=0.0123), torch.randn(2, *SHAPE)
    monkeypatch.setattr(diffusers.DDPMScheduler, "step", rebound(step, vars(module)))
    assert torch.equal(scheduler.step(m, scheduler.timesteps[0], x).prev_sample, x * m)
    assert "not affine" in str(scheduler._run.plan)


@pytest.mark.skipif(TORCH <= (2, 8), reason="torch.func has no memory to read before: docs/diffusers-classes.md")
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_torch_func(name):
    pair, x, results = DEFAULTS[name].pair(), torch.linspace(-1, 1, 96).reshape(SHAPE), []
    for scheduler in pair:
        scheduler.is_scale_input_called = True

        def last(x, scheduler=scheduler):
            generator = torch.Generator().manual_seed(0)
            given = arguments(scheduler, generator, {})
            return scheduler.step(0.1 * x, scheduler.timesteps[0], x, **given)[0].square().sum()

        results.append(torch.func.grad(last)(x))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "name",
    [  # the one that remembers most is always kept
        "UniPCMultistepScheduler",
        pytest.param("DDIMScheduler", marks=pytest.mark.slow),
        pytest.param("EulerDiscreteScheduler", marks=pytest.mark.slow),
    ],
)
def test_steps_in_compiled_code(name):
    """The graph breaks there. Seen to fail: torch.compile traced the search for rows, and failed."""
    torch.compiler.reset()
    answers = []
    for scheduler in DEFAULTS[name].pair(5):
        scheduler.is_scale_input_called = True

        @torch.compile(backend="eager")
        def run(x, scheduler=scheduler):
            for t in times(scheduler):
                x = scheduler.step(0.1 * torch.tanh(x), t, x)[0]
            return scheduler.add_noise(x, x, scheduler.timesteps[:2])

        answers.append(run(torch.linspace(-1, 1, 96).reshape(SHAPE)))
    assert difference(answers[1], answers[0]) <= LOOP
    noise = nf.Noise(1)
    expected = scheduler.add_noise(answers[0], noise, scheduler.timesteps[:2])
    noised = torch.compile(lambda x: scheduler.add_noise(x, noise, scheduler.timesteps[:2]), backend="eager")
    assert torch.equal(noised(answers[0]), expected)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_left_to_diffusers(name):
    """Seen to fail: "expected a tensor with memory of its own"."""
    x, answers = torch.linspace(-1, 1, 5 * 96).reshape(5, *SHAPE), []
    for scheduler in DEFAULTS[name].pair():
        scheduler.is_scale_input_called = True
        given = arguments(scheduler, torch.Generator().manual_seed(0), {})

        def step(x, scheduler=scheduler, given=given):
            return scheduler.step(0.1 * x, scheduler.timesteps[0], x, **given)[0]

        answers.append(torch.func.vmap(step, randomness="same")(x))
    assert torch.equal(*answers)


@pytest.mark.parametrize("layout", ["channels last", "expanded", "sliced"])
@pytest.mark.parametrize("name", NAMES)
def test_layouts(name, layout):
    """Tensors that are not in C order give the same values, in C order."""
    pair, plain = DEFAULTS[name].pair()[1], DEFAULTS[name].pair()[1]
    x = torch.randn(2, 1, 4, 4).expand(2, 3, 4, 4) if layout == "expanded" else torch.randn(2, 3, 4, 4)
    other = {
        "channels last": x.to(memory_format=torch.channels_last),
        "expanded": x,
        "sliced": torch.cat([x, x], dim=3)[..., :4],
    }[layout]
    assert not other.is_contiguous()
    for t in pair.timesteps[:4]:
        results = []
        for scheduler, each in ((pair, other), (plain, x.contiguous())):
            scheduler.is_scale_input_called = True
            generator = torch.Generator().manual_seed(0)
            results.append(scheduler.step(0.1 * each, t, each, **arguments(scheduler, generator, {})))
        for key in results[0]:
            assert torch.equal(results[0][key], results[1][key])


def test_methods_that_a_derived_class_replaces(caplog):
    """Rows are made from diffusers' methods. Derived classes with methods of their own do as in diffusers."""
    refusals.said.clear()
    results = []
    for kind in (diffusers.DDPMScheduler, ours.DDPMScheduler):

        class Own(kind):
            def step(self, *args, **kwargs):
                return super().step(*args, **kwargs)

        class Wider(Own):
            def _get_variance(self, *args, **kwargs):
                return 4 * super()._get_variance(*args, **kwargs)

        for each in (Own(), Wider()):
            each.set_timesteps(10)
            x = torch.linspace(-1, 1, 96).reshape(SHAPE)
            results.append(each.step(0.1 * x, each.timesteps[2], x, generator=torch.Generator().manual_seed(0))[0])
    assert difference(results[2], results[0]) <= LOOP
    assert torch.equal(results[3], results[1])
    assert [record.getMessage() for record in caplog.records] == [
        "Wider: diffusers' own step is used because _get_variance of its own replaces diffusers'"
    ]


CALLED = []  # a global name of the module that replaces methods


@pytest.mark.parametrize("coefficients", ["compat", "exact"])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("FlowMatchEulerDiscreteScheduler", "step"),
        ("EulerDiscreteScheduler", "step"),
        ("DDIMScheduler", "step"),
        ("DPMSolverMultistepScheduler", "convert_model_output"),
        ("DDIMScheduler", "add_noise"),
        ("EulerDiscreteScheduler", "set_timesteps"),
    ],
)
def test_methods_that_another_program_replaces(name, method, coefficients, monkeypatch, caplog):
    """A profiler may wrap them. Seen to fail: NameError, as the trace ran the wrapper with diffusers' names; a
    `convert_model_output` that was called with the trace's numbers, and never again."""
    refusals.said.clear()
    base = getattr(diffusers, name)
    theirs = getattr(base, method)

    def wrapper(*arguments, **options):
        CALLED.append(method)
        return theirs(*arguments, **options)

    monkeypatch.setattr(base, method, wrapper)
    results = []
    for scheduler in (base(), ours.accelerate(base(), coefficients=coefficients)):
        CALLED.clear()
        scheduler.set_timesteps(4)
        x = torch.linspace(-1, 1, 96).reshape(SHAPE)
        for t in scheduler.timesteps[:3]:
            getattr(scheduler, "scale_model_input", print)(x, t)
            x = scheduler.step(0.1 * x, t, x, return_dict=False)[0]
        results.append((scheduler.add_noise(x, x, t[None]) if method == "add_noise" else x, len(CALLED)))
    exact._widened.cache_clear()  # its copy of the class has the wrapper
    (expected, times), (found, ours_times) = results
    assert times == ours_times > 0
    assert difference(found, expected) <= LOOP
    used = "add_noise" if method == "add_noise" else "step"
    said = [f"{name}: diffusers' own {used} is used because another program has replaced its {method}"]
    kept = method == "set_timesteps" and coefficients == "compat"  # its timesteps are taken
    assert [record.getMessage() for record in caplog.records] == ([] if kept else said)
