# SPDX-License-Identifier: Apache-2.0
"""The forward process of drop-in schedulers: add_noise, scale_noise and get_velocity."""

import itertools

import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers_cases import DEFAULTS, FORWARD, VP_CLASSES, said, some  # noqa: E402
from diffusers_loops import difference, forward  # noqa: E402
from noisefuse.interop import diffusers as ours  # noqa: E402
from noisefuse.interop.diffusers import refusals  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORWARD)
def test_add_noise_agrees(name, dtype):
    """The coefficients are the same; ours has one rounding, theirs three."""
    x, z = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    for where in ("training", "before the run", "within the run", "without set_timesteps"):
        pair = DEFAULTS[name].pair(None if where == "without set_timesteps" else 10)
        times = torch.arange(1000).flip(0) if pair[0].timesteps is None else pair[0].timesteps
        t = times[[0, 3, 9, 3]]
        t = t.long() if name == "SASolverScheduler" else t  # its own are indices, but begin as floats
        for scheduler in pair:
            if where == "before the run" and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(2)
            if where == "within the run":
                scheduler.is_scale_input_called = True
                if hasattr(scheduler, "set_begin_index"):
                    scheduler.set_begin_index(0)
                scheduler.step(x, scheduler.timesteps[0], x)
        theirs, mine = (forward(scheduler, x, z, t) for scheduler in pair)
        assert difference(mine, theirs) <= 1.5 * torch.finfo(dtype).eps, where


@pytest.mark.parametrize("name", FORWARD)
def test_add_noise_goes_on_with_diffusers_where_a_row_does_not_do(name, caplog):
    """diffusers does it, and the log says so once, with the reason. Seen to fail: nothing in the log."""
    refusals.said.clear()
    pair = DEFAULTS[name].pair()
    x, z = torch.randn(2, 4, 3, 5)
    t = pair[0].timesteps[[0, 3, 9, 3]]
    one_at_many_times = (x[:1], z, t), (x[:1], z[:1], t)  # seen to be refused
    wider = (x.bfloat16(), z, t), (x.to(torch.complex64), z.to(torch.complex64), t)
    for arguments in (*one_at_many_times, *wider, (x, z[:1], t), (x.clone().requires_grad_(), z, t)):
        theirs, mine = (forward(scheduler, *arguments) for scheduler in pair)
        assert torch.equal(mine, theirs)
    assert mine.requires_grad
    reasons = [
        "for one sample at many times", "for torch.bfloat16 samples and torch.float32 noise",
        "for tensors of torch.complex64 on cpu", "for noise of another shape than the samples'",
        "for tensors that require grad",
    ]  # fmt: skip
    method = "scale_noise" if hasattr(pair[1], "scale_noise") else "add_noise"
    assert said(caplog) == [f"{name}: diffusers' own {method} is used {reason}" for reason in reasons]


@pytest.mark.parametrize("name", some(2, FORWARD))
def test_add_noise_draws(name):
    """A Noise is the field of q_sample: drawn in the pass, with the bits of the given array; one for each sample,
    too."""
    scheduler = DEFAULTS[name].pair(coefficients="exact")[1]
    x, noise = torch.randn(3, 2, 5), nf.Noise(3, sample=9, step=2)
    t = scheduler.timesteps[[0, 7, 9]]
    z = torch.from_numpy(nf.randn(tuple(x.shape), noise))
    drawn = forward(scheduler, x, noise, t)
    assert torch.equal(drawn, forward(scheduler, x, z, t))
    listed = forward(scheduler, x, [noise.at(sample=9 + b) for b in range(3)], t)
    assert torch.equal(listed, drawn)
    scheduler.coefficients = "compat"
    assert torch.equal(forward(scheduler, x, noise, t), drawn)
    half = forward(scheduler, x.bfloat16(), noise, t)
    assert half.dtype == torch.bfloat16
    assert difference(half, drawn.bfloat16()) < 0.02


SCHEDULES = {
    "linear": nf.Schedule.linear(),
    "scaled_linear": nf.Schedule.scaled_linear(1000, 1e-4, 0.02),
    "squaredcos_cap_v2": nf.Schedule.cosine(),
    "sigmoid": nf.Schedule.sigmoid(),
}
TRAINED = [(name, schedule) for name in VP_CLASSES for schedule in SCHEDULES]
TRAINED = [pair for pair in TRAINED if pair[1] != "sigmoid" or pair[0] == "DDPMScheduler"]  # only DDPM has it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "schedule"), TRAINED)
def test_exact_add_noise_at_every_time(name, schedule, dtype):
    """Every coefficient is the float64 value rounded once to float32, and the result is that row rounded once.
    diffusers in half precision has sigma = 0 at the first times."""
    theirs, mine = (getattr(m, name)(1000, 1e-4, 0.02, beta_schedule=schedule) for m in (diffusers, ours))
    mine.coefficients = "exact"
    exact, t = SCHEDULES[schedule], torch.arange(1000)
    one, zero = torch.ones(1000, 1, dtype=dtype), torch.zeros(1000, 1, dtype=dtype)
    alpha, sigma = mine.add_noise(one, zero, t), mine.add_noise(zero, one, t)
    for column, expected in ((alpha, exact.alpha), (sigma, exact.sigma)):
        assert torch.equal(column, torch.tensor(expected)[:, None].float().to(dtype))
    x, z = torch.randn(2, 1000, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    a, s = (torch.tensor(v).float()[:, None].double() for v in (exact.alpha, exact.sigma))
    products = (s * z.double()).float().double()  # fma(alpha, x, sigma z): a rounded product, then exact in float64
    row = (a * x.double() + products).float()
    if dtype != torch.float32:
        assert torch.equal(mine.add_noise(x, z, t), row.to(dtype))
        assert (theirs.add_noise(zero, one, t) == 0).any()
        assert (mine.add_noise(zero, one, t) > 0).all()


@pytest.mark.parametrize("noise", [nf.Noise(3), torch.ones(5, 8)], ids=["drawn", "given"])
def test_levels_of_other_coefficients_and_dtypes(noise):
    """Seen to fail: the noise levels of the first call for all later ones."""
    scheduler, t = ours.DDPMScheduler(), torch.arange(5)
    for coefficients, dtype in itertools.product(("compat", "exact"), (torch.float64, torch.float32, torch.float16)):
        scheduler.coefficients, fresh = coefficients, ours.DDPMScheduler()
        fresh.coefficients = coefficients
        x = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(5, 8).to(dtype)
        z = noise.to(dtype) if isinstance(noise, torch.Tensor) else noise
        assert torch.equal(scheduler.add_noise(x, z, t), fresh.add_noise(x, z, t))


def test_add_noise_checks_its_times():
    scheduler, x = ours.DDPMScheduler(), torch.randn(2, 3)
    with pytest.raises(IndexError):
        scheduler.add_noise(x, x, torch.tensor([1, 1000]))
    with pytest.raises(IndexError):
        ours.EulerDiscreteScheduler().add_noise(x, x, torch.tensor([1.0, 1000.5]))
    for scheduler in (ours.DDPMScheduler(), ours.EulerDiscreteScheduler()):
        for noise in (x, nf.Noise(1)):
            with pytest.raises(
                ValueError, match=r"timesteps: expected one, or a shape that begins .* \(2, 3\), got \(3,\)"
            ):
                scheduler.add_noise(x, noise, torch.tensor([1, 2, 3]))


def test_add_noise_checks_its_noise():
    x, t = torch.randn(2, 3), torch.tensor([1, 2])
    for noise, message in (
        (7, "noise: expected a Tensor, a Noise or a list of them, got 7: a bare seed"),
        ([nf.Noise(1), 7], r"noise\[1\]: expected a Noise, got 7: a bare seed"),
    ):
        with pytest.raises(TypeError, match=message):
            ours.DDPMScheduler().add_noise(x, noise, t)


def test_get_velocity():
    theirs, mine = DEFAULTS["DDPMScheduler"].pair()
    x, z = torch.randn(2, 4, 3)
    t = torch.tensor([0, 5, 999, 500])
    assert torch.equal(mine.get_velocity(x, z, t), theirs.get_velocity(x, z, t))
