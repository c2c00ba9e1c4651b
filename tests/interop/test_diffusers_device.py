# SPDX-License-Identifier: Apache-2.0
"""Drop-in schedulers with tensors of a device."""

import contextlib

import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers_cases import DEFAULTS, NAMES, SHAPE, times  # noqa: E402
from test_torch_cuda import nothing_comes_back, on_the_stand_in  # noqa: E402


@pytest.mark.parametrize("name", NAMES)
def test_steps_on_the_stand_in(name):
    """Tensors count as a GPU's (test_torch_cuda.py): the CPU's bits, and after the first step of a run nothing is read
    back."""

    def run(guard):
        scheduler = DEFAULTS[name].pair(5, noise=nf.Noise(7))[1]
        x, xs = scheduler.start(SHAPE), []
        scheduler.is_scale_input_called = True
        for t in times(scheduler):
            with guard() if xs else contextlib.nullcontext():
                x = scheduler.step(0.3 * torch.tanh(x), t, x).prev_sample
            xs.append(x)
        return xs

    expected = run(contextlib.nullcontext)
    with on_the_stand_in() as cupy:
        found = run(nothing_comes_back)
        assert len(cupy.launches) >= 6
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler"])
def test_add_noise_on_the_stand_in(name):
    scheduler = DEFAULTS[name].pair()[1]
    x0, t = torch.randn(2, 3, 4), scheduler.timesteps[[1, 3]]

    def run():
        return [scheduler.add_noise(x0, noise, t) for noise in (nf.Noise(7), x0 + 1)]

    expected = run()
    for host in ((), (t,)):
        with on_the_stand_in(*host):
            assert all(map(torch.equal, run(), expected))
