# SPDX-License-Identifier: Apache-2.0
"""Samplers on one Brownian path, whatever their number of steps."""

import math

import numpy as np
import pytest

import noisefuse as nf
from conftest import bits
from noisefuse.tableau import Row, Tableau, m1, x, z

SCHEDULE, NOISE = nf.Schedule.karras(1000), nf.Noise(7, sample=3, step=2)
SDES = ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"]


def denoised(x, sigma):
    """The ideal denoiser of data N(0, 1/4)."""
    return 0.25 / (0.25 + sigma**2) * x


def made(name, steps, **options):
    return getattr(nf.samplers, name)(SCHEDULE, steps, prediction="sample", spacing="karras", **options)


def rms(a):
    return math.sqrt((a.astype(np.float64) ** 2).mean())


@pytest.mark.parametrize("options", ["span", "grid"])
@pytest.mark.parametrize("name", SDES)
def test_runs_of_20_and_40_steps_come_together(name, options):
    """Seen to fail: increments that all begin at the first noise level."""
    few, many = made(name, 20), made(name, 40)
    start = few.start((1, 20000), NOISE)
    times = sorted({0.0, *few.tableau.sigma.tolist(), *many.tableau.sigma.tolist()})
    shared = {"grid": times} if options == "grid" else {}
    a, b = (s.sample(denoised, start, s.path(NOISE, **shared)) for s in (few, many))
    other = many.sample(denoised, start, many.path(NOISE.at(step=3), **shared))
    assert rms(a - b) < 0.25 * rms(a - other)
    for x0, s in ((a, few), (b, many)):  # they are samples as good as those of other noise
        assert abs(x0.std() - s.sample(denoised, start, NOISE).std()) < 0.02


def test_rows_take_their_levels():
    """The two rows of a step of dpmpp_sde are pieces of it; with other methods only the second row draws."""
    for name, apart in (("dpmpp_sde", True), ("dpmpp_2s_ancestral", False)):
        sampler = made(name, 4)
        sigma = [*sampler.tableau.sigma.tolist(), 0.0]
        path = sampler.path(NOISE)
        assert len(path) == len(sampler) == 7
        assert path[-1] is None  # clean data
        for i in range(0, 6, 2):
            first, second = path[i : i + 2]
            assert (first is not None) == apart
            assert second == NOISE.interval(sigma[i + apart], sigma[i + 2], span=(0, 80))
            if apart:
                assert first == NOISE.interval(sigma[i], sigma[i + 1], span=(0, 80))


def test_pieces_of_dpmpp_sde_are_those_of_its_step():
    """The total noise is k-diffusion's sigma_up w(sigma, sigma'), if D is 0."""
    sampler = made("dpmpp_sde", 5)
    table, path, shape = sampler.tableau, sampler.path(NOISE), (2, 50)
    sigma, sigma_next = table.sigma[[0, 2]].tolist()
    start = nf.randn(shape, NOISE, dtype="float64")
    state = sampler.state(start)
    found = start
    for i in range(2):
        found = sampler.step(i, found, 0 * found, path[i], state)
    up = sigma_next * math.sqrt(1 - sigma_next**2 / sigma**2)
    w = nf.randn(shape, NOISE.interval(sigma, sigma_next, span=(0, 80)), dtype="float64")
    assert np.allclose(found, (sigma_next**2 / sigma**2) * start + up * w, rtol=0, atol=1e-5)


def test_arrays_of_the_same_increments_give_the_same_run():
    sampler = made("dpmpp_2m_sde", 6)
    start, path = sampler.start((3, 8), NOISE), sampler.path(NOISE)
    arrays = [None if p is None else nf.randn((3, 8), p) for p in path]
    whole = sampler.sample(denoised, start, path)
    assert bits(whole) == bits(sampler.sample(denoised, start, arrays))
    euler = made("euler_ancestral", 6)
    path = euler.path(NOISE)
    assert bits(euler.sample(denoised, start, path[2:], start=2)) == bits(
        euler.sample(denoised, start, [p and nf.randn((3, 8), p) for p in path[2:]], start=2)
    )


def test_a_noise_for_each_sample():
    sampler = made("dpmpp_sde", 6)
    start = sampler.start((3, 8), NOISE)
    whole = sampler.sample(denoised, start, sampler.path(NOISE))
    each = sampler.sample(denoised, start, sampler.path([NOISE.at(sample=3 + b) for b in range(3)]))
    assert bits(each) == bits(whole)


def test_guidance_log_probs_and_callbacks():
    sampler, seen = made("euler_ancestral", 5), []
    start, path = sampler.start((3, 8), NOISE), sampler.path(NOISE)
    whole = sampler.sample(denoised, start, path)
    both = sampler.sample(lambda x, s: (0 * x, denoised(x, s)), start, path, guidance_scale=[1.0, 1.0, 1.0])
    assert np.allclose(both, whole, rtol=0, atol=1e-5)
    found, log_probs = sampler.sample(denoised, start, path, log_probs=True, callback=lambda *given: seen.append(given))
    assert bits(found) == bits(whole)
    assert [p is None for p in log_probs] == [p is None for p in path]
    assert len(seen) == 5


def test_tensors():
    torch = pytest.importorskip("torch")
    sampler = made("dpmpp_2m_sde", 6)
    start, path = sampler.start((3, 8), NOISE), sampler.path(NOISE)
    for dtype in (torch.float32, torch.bfloat16):
        found = sampler.sample(denoised, torch.from_numpy(start).to(dtype), path, time="scalar")
        assert found.dtype == dtype
        assert np.allclose(found.float().numpy(), sampler.sample(denoised, start, path), rtol=0, atol=0.1)


def test_clocks():
    flow = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=8)
    assert flow.path(NOISE)[0].t0 == flow.tableau.sigma[0]
    variance_preserving = nf.samplers.ddim(nf.Schedule.linear(1000), steps=8, eta=1.0)
    ratio = variance_preserving.tableau.sigma / variance_preserving.tableau.alpha
    assert [p.t0 for p in variance_preserving.path(NOISE)[:-1]] == ratio[:-1].tolist()
    other = variance_preserving.path(NOISE, clock=lambda alpha, sigma: sigma**2, span=(0, 2), end=0.0)
    assert other[1].t0 == variance_preserving.tableau.sigma[1] ** 2
    assert other[1].span == (0, 2)


def test_errors():
    sampler = made("euler_ancestral", 5)
    with pytest.raises(ValueError, match=r"t0 = 80\.0.* lies outside of the span from 0\.0 to 1\.0"):
        sampler.path(NOISE, span=(0, 1))
    with pytest.raises(ValueError, match="path: expected times that fall, or rise, from draw to draw"):
        sampler.path(NOISE, clock=lambda alpha, sigma: np.cos(sigma))
    with pytest.raises(TypeError, match="noise: expected a Noise or a list"):
        sampler.path(7)
    with pytest.raises(ValueError, match="does not say at what level each row begins"):
        nf.Sampler(Tableau([Row(out=x + m1 + z)])).path(NOISE)
    zero = nf.samplers.ddim(
        nf.Schedule.linear(1000).rescale_zero_terminal_snr(), 5, eta=1.0, spacing="trailing", prediction="v"
    )
    with pytest.raises(ValueError, match=r"expected a finite time for each of 5 rows.*give a clock"):
        zero.path(NOISE)
    with pytest.raises(ValueError, match=r"noise: expected 5 arrays, one for each row from 0 on, got 4"):
        sampler.sample(denoised, np.zeros((2, 3), np.float32), sampler.path(NOISE)[1:])
