# SPDX-License-Identifier: Apache-2.0
"""Drop-in schedulers with exact coefficients."""

import warnings

import numpy as np
import pytest

import noisefuse as nf
from conftest import one_in

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers_cases import DEFAULTS, FORWARD, LOOP, NAMES, SHAPE, some, times  # noqa: E402
from diffusers_loops import arguments, difference, forward  # noqa: E402
from noisefuse.interop import diffusers as ours  # noqa: E402


def native_pairs():
    """Pairs diffusers' classes with nf.samplers, as in test_samplers_diffusers.py."""
    import test_samplers_diffusers as native

    def is_covered(pair):
        past = pair.config.get("corrector_order", 0) + 1  # outputs, x and noise
        return pair.theirs in NAMES and "thresholding" not in pair.config and past <= len(nf.tableau.past)

    return filter(is_covered, native.PAIRS)


@pytest.mark.parametrize("pair", one_in(6, native_pairs()), ids=str)
def test_exact_coefficients_are_those_of_the_samplers(pair, monkeypatch):
    """With x in float64, over a loop; compat coefficients are farther off if float32 cancels."""
    import test_samplers_diffusers as native

    n, rng = 8, np.random.default_rng(0)
    theirs = pair.open(True, monkeypatch)
    theirs.set_timesteps(n)
    sampler = pair.sampler(theirs, n)
    monkeypatch.undo()
    scheduler = getattr(ours, pair.theirs)(**pair.config)
    scheduler.coefficients = "exact"
    with warnings.catch_warnings(action="ignore"):
        scheduler.set_timesteps(n)
    scheduler.is_scale_input_called = True
    x = y = rng.normal(size=native.SHAPE)
    state, worst = sampler.state(x), 0.0
    for i, t in enumerate(times(scheduler)):
        m, z = rng.normal(size=(2, *native.SHAPE))
        if pair.ours == "ddpm" and i == n - 1:
            z[:] = 0  # diffusers adds noise whenever t > 0
        monkeypatch.setattr(ours.Fused, "_drawn", lambda *args, z=z: torch.from_numpy(z))
        y = scheduler.step(torch.from_numpy(m), t, torch.from_numpy(y), **pair.step_options)[0].numpy()
        x = sampler.step(i, x, m, z, state)
        worst = max(worst, np.abs(x - y).max() / np.abs(x).max())
    assert worst < 1e-10


def test_exact_needs_to_see_set_timesteps():
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    scheduler = ours.accelerate(scheduler, coefficients="exact")
    scheduler.is_scale_input_called = True
    x = torch.randn(1, 3)
    with pytest.raises(RuntimeError, match="call set_timesteps again"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_timesteps(10)
    scheduler.step(x, scheduler.timesteps[0], x)


# DPMSolverSDE's float64 levels are other times of the tree, whose path moves by 3e-4 in a float32's last digit of time.
@pytest.mark.parametrize("name", some(3, [name for name in NAMES if not name.startswith("DPMSolverSDE")]))
def test_exact_coefficients_are_of_numbers_that_a_user_puts_in(name):
    """Other sigmas or alphas_cumprod are not computed anew, neither for steps nor for a Noise."""
    pair, x = DEFAULTS[name].pair(coefficients="exact"), torch.linspace(-1, 1, 96).reshape(SHAPE)
    z, results = torch.from_numpy(nf.randn(SHAPE, nf.Noise(3))), []
    for scheduler, noise in zip(pair, (z, nf.Noise(3)), strict=True):
        source = pair[1]._source
        setattr(scheduler, source, 0.9 * getattr(scheduler, source))
        scheduler.is_scale_input_called = True
        results.append([forward(scheduler, x, noise, scheduler.timesteps[[3, 7]]) if name in FORWARD else x])
        generator = torch.Generator().manual_seed(0)
        for t in scheduler.timesteps[:5]:
            given = arguments(scheduler, generator, {})
            results[-1].append(scheduler.step(0.1 * results[-1][-1], t, results[-1][-1], **given)[0])
    assert max(difference(a, b) for a, b in zip(*reversed(results), strict=True)) <= LOOP


def test_exact_coefficients_of_float32_numbers_are_computed_in_float64():
    scheduler = DEFAULTS["EulerDiscreteScheduler"].pair(3, coefficients="exact")[1]
    scheduler.sigmas = 0.9 * scheduler.sigmas
    scheduler.is_scale_input_called = True
    x, m = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    first, second = scheduler.sigmas[:2].tolist()
    assert scheduler.step(m, scheduler.timesteps[0], x)[0][0, 0] == pytest.approx(second - first, rel=1e-13)
