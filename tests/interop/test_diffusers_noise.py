# SPDX-License-Identifier: Apache-2.0
"""What drop-in schedulers draw: a Noise, generators, and noise that is given."""

import inspect

import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers_cases import DRAWING, LOOP, NAMES, SHAPE, TREES, Case, times  # noqa: E402
from diffusers_loops import STOCHASTIC, check_generators, difference, run, their_noise  # noqa: E402
from noisefuse.interop.diffusers import engine  # noqa: E402


@pytest.mark.parametrize("case", STOCHASTIC, ids=str)
def test_a_noise_draws_by_position(case, monkeypatch):
    """Step i has the field of stream 3 at step noise.step + i: given as a generator, as scheduler.noise, and in
    diffusers."""
    noise, x = nf.Noise(7, sample=5, step=100), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    theirs, mine = case.pair()
    drawn = iter(range(101, 200, 2) if case.name.startswith("KDPM2") else range(100, 200))  # its second stages draw
    their_noise(monkeypatch, case.name, lambda: torch.from_numpy(nf.randn(SHAPE, noise.at(step=next(drawn), stream=3))))
    expected, got = run(theirs, case, x, None), run(mine, case, x, noise)
    assert max(difference(a, b) for a, b in zip(got, expected, strict=True)) <= LOOP
    _, other = case.pair(noise=noise)
    assert torch.equal(run(other, case, x, None)[-1], got[-1])
    given = run(case.pair()[1], case, x, nf.Noise(8))
    assert not torch.allclose(given[-1], got[-1])


@pytest.mark.parametrize("case", STOCHASTIC, ids=str)
def test_every_sample_has_its_seed(case):
    """A batch with a list of Noises equals its samples alone."""
    noises, x = [nf.Noise(seed) for seed in (3, 1, 4)], torch.randn(3, 2, 4, 4)
    together = run(case.pair()[1], case, x, noises)[-1]
    alone = [run(case.pair()[1], case, x[b : b + 1], noises[b])[-1] for b in range(3)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("case", STOCHASTIC, ids=str)
@pytest.mark.parametrize("kind", ["default generator", "list of generators"])
def test_generators_draw_what_diffusers_draws(case, kind):
    x, results = torch.randn(SHAPE), []
    if kind == "list of generators":
        check_generators(case)
    for scheduler in case.pair():
        torch.manual_seed(11)
        listed = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        results.append(run(scheduler, case, x, listed if kind == "list of generators" else None))
        results[-1].append(torch.randn(3))  # the state afterwards
    assert max(difference(a, b) for a, b in zip(*results, strict=True)) <= LOOP


@pytest.mark.parametrize("kinds", [(torch.float16, torch.float16), (torch.float32, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("case", [case for case in STOCHASTIC if case.name not in TREES], ids=str)
def test_noise_is_drawn_in_the_dtype_of_diffusers(case, kinds, monkeypatch):
    """The sample and the model output have these dtypes."""
    drawn, pair = {}, case.pair()
    check_generators(case)
    if case.name == "SCMScheduler" and kinds[0].itemsize < 4:
        pytest.skip("diffusers' own step")
    for key, scheduler, module in zip("ab", pair, (inspect.getmodule(type(pair[0])), engine), strict=True):
        draw = module.randn_tensor
        drawn[key] = []

        def spy(shape, key=key, draw=draw, **kwargs):
            drawn[key].append((tuple(shape), kwargs.get("dtype", torch.float32)))
            return draw(shape, **kwargs)

        monkeypatch.setattr(module, "randn_tensor", spy)
        x, m = (torch.ones(SHAPE, dtype=kind) for kind in kinds)
        scheduler.is_scale_input_called = True
        for t in times(scheduler):
            scheduler.step(m, t, x, generator=[torch.Generator(), torch.Generator()], **case.options)
        monkeypatch.setattr(module, "randn_tensor", draw)
    assert len(drawn["a"]) >= 3
    assert drawn["a"] == drawn["b"]


@pytest.mark.parametrize(
    "case", [c for c in STOCHASTIC if c.name in ("DDIMScheduler", "DPMSolverMultistepScheduler")], ids=str
)
def test_noise_that_is_given(case):
    theirs, mine = case.pair()
    x, z = torch.randn(2, *SHAPE)
    t = theirs.timesteps[0]
    a, b = (s.step(0.1 * x, t, x, variance_noise=z, **case.options)[0] for s in (theirs, mine))
    assert difference(b, a) <= LOOP
    if case.options:
        for scheduler in (theirs, mine):
            with pytest.raises(ValueError, match="variance_noise"):
                scheduler.step(x, t, x, variance_noise=z, generator=torch.Generator(), **case.options)


@pytest.mark.skipif("DPMSolverSDEScheduler" not in NAMES, reason="torchsde is not installed")
@pytest.mark.parametrize("several", [False, True])
def test_the_second_stage_goes_on_with_the_path_of_the_first(several):
    """DPMSolverSDE's second stage draws over the whole interval. Seen to fail: a noise of its own. With x = 0 = m the
    steps are their noise."""
    shape, noise = (2, 4, 50, 50), [nf.Noise(1), nf.Noise(2)] if several else nf.Noise(1)
    scheduler = Case("DPMSolverSDEScheduler").pair(noise=noise)[1]
    x, sigmas = torch.zeros(shape), scheduler.sigmas.double()
    first, second, third = (scheduler.step(x, t, x)[0].double().flatten() for t in scheduler.timesteps[:3])
    share = (sigmas[0] - (sigmas[0] * sigmas[1]).sqrt()) / (sigmas[0] - sigmas[1])
    found = torch.corrcoef(torch.stack([first, second, third]))
    expected = torch.eye(3, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = share.sqrt()
    assert torch.allclose(found, expected, atol=4 / 20000**0.5)
    up = sigmas[1] * (1 - (sigmas[1] / sigmas[0]).square()).sqrt()
    assert second.std().item() == pytest.approx(min(up, sigmas[1]).item(), rel=4 / 40000**0.5)


MUST_DRAW = {case.name: case for case in STOCHASTIC}


@pytest.mark.parametrize("name", DRAWING)
def test_noise_is_not_ignored_where_diffusers_does_the_step(name):
    case = MUST_DRAW[name]
    scheduler = case.pair(noise=nf.Noise(7))[1]
    scheduler.is_scale_input_called = True
    x = torch.randn(SHAPE)
    with pytest.raises(
        TypeError, match=r"diffusers does this step for tensors that require grad, and cannot draw Noise"
    ):
        scheduler.step(x.clone().requires_grad_(), scheduler.timesteps[0], x, **case.options)


@pytest.mark.parametrize(
    "name", ["DDIM", "EulerDiscrete", "DPMSolverMultistep", "FlowMatchEulerDiscrete", "UniPCMultistep"]
)
def test_noise_that_no_step_draws_is_in_nobodys_way(name):
    """A deterministic pipeline with noise of its own, and gradients with respect to the sample."""
    results = []
    for scheduler in Case(f"{name}Scheduler").pair(noise=nf.Noise(7)):
        scheduler.is_scale_input_called = True
        x = torch.linspace(-1, 1, 96).reshape(SHAPE).requires_grad_()
        scheduler.step(x * x, scheduler.timesteps[0], x)[0].sum().backward()
        results.append(x.grad)
    assert torch.equal(*results)


BAD_DRAWS = {
    "a number": (7, r"generator: expected a torch\.Generator, a Noise or a list of either, got int"),
    "numbers": ([1, 2], r"generator\[0\]: expected a torch\.Generator or a Noise, got int"),
    "of both kinds": (
        [nf.Noise(1), torch.Generator()],
        "generator: expected a list of one kind, got .*Noise.*Generator",
    ),
}


@pytest.mark.parametrize("bad", BAD_DRAWS)
@pytest.mark.parametrize("name", DRAWING)
def test_generators_that_are_none(name, bad):
    """It happens in the first step of a run, in a later one, and in one that diffusers does."""
    draws, message = BAD_DRAWS[bad]
    scheduler, given = MUST_DRAW[name].pair()[1], MUST_DRAW[name].options
    scheduler.is_scale_input_called, x = True, torch.randn(SHAPE)
    if name.startswith("KDPM2"):  # every other step draws nothing
        scheduler.step(0.1 * x, scheduler.timesteps[0], x, generator=draws)
    for t in scheduler.timesteps[: 1 if name.startswith("KDPM2") else 2]:
        with pytest.raises(TypeError, match=message):
            scheduler.step(0.1 * x, t, x, generator=draws, **given)
        scheduler.step(0.1 * x, t, x, **given)
    with pytest.raises(TypeError, match=message):
        scheduler.step(0.1 * x, scheduler.timesteps[2], x.clone().requires_grad_(), generator=draws, **given)
