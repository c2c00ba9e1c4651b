# SPDX-License-Identifier: Apache-2.0
"""A thousand requests alone, in batches of 64 and in shards; the hard ends of a run, against numbers of 60 digits."""

import numpy as np
import pytest

import noisefuse as nf
from conftest import NUMBA, using
from noisefuse.density import log_prob, update_with_log_prob

mp = pytest.importorskip("mpmath")
FLOW = nf.Schedule.flow(1000)
SAMPLERS = [
    nf.samplers.flow_sde(FLOW, 8),
    nf.samplers.flow_cps(FLOW, 8),
    nf.samplers.ddim(nf.Schedule.linear(1000), 8, eta=1.0),
]
SHAPE, BATCH = (4, 64, 64), 64  # each channel is a chunk of 4,096 elements


def requests(rng, n):
    """Returns keys, samples and model outputs of n requests, as a server gets them."""
    noises = [
        nf.Noise(
            int(rng.integers(2**64, dtype=np.uint64)), sample=int(rng.integers(2**56)), step=int(rng.integers(2**31))
        )
        for _ in range(n)
    ]
    x, m = (rng.standard_normal((n, *SHAPE), dtype=np.float32) for _ in range(2))
    return noises, x, m


@pytest.mark.parametrize("first", range(0, 1000, BATCH))
def test_a_thousand_requests_alone_in_a_batch_and_in_shards(first):
    """Seen to fail: a batch of which one noise has another sample id."""
    rng = np.random.default_rng(first)
    sampler, i = SAMPLERS[first // 64 % 3], int(rng.integers(7))
    noises, x, m = requests(rng, min(BATCH, 1000 - first))
    x_next, found = sampler.step(i, x, m, noises, log_prob=True)
    for b in range(len(x)):
        alone, density = sampler.step(i, x[b : b + 1], m[b : b + 1], noises[b], log_prob=True)
        assert alone.tobytes() == x_next[b : b + 1].tobytes()
        assert density[0] == found[b]
    for shards in (2, 4):  # along the first axis of a sample, as sequence parallelism has it
        parts = []
        for k in range(shards):
            part = slice(k * 4 // shards, (k + 1) * 4 // shards)
            windows = [noise.window(SHAPE, (part.start, 0, 0)) for noise in noises]
            rows = (np.ascontiguousarray(a[:, part]) for a in (x, m))
            cut, density = update_with_log_prob(sampler.tableau, i, *rows, windows, partial=True)
            assert cut.tobytes() == np.ascontiguousarray(x_next[:, part]).tobytes()
            parts.append(density)
        assert nf.density.combine(parts).tobytes() == found.tobytes()


@pytest.mark.parametrize("name", [*NUMBA, "reference"])
def test_other_backends_give_the_same_requests(name):
    noises, x, m = requests(np.random.default_rng(5), 16)
    expected = [SAMPLERS[0].step(i, x, m, noises, log_prob=True) for i in (0, 3, 6)]
    with using(name):
        for i, (x_next, found) in zip((0, 3, 6), expected, strict=True):
            given = SAMPLERS[0].step(i, x, m, noises, log_prob=True)
            assert (given[0].tobytes(), given[1].tobytes()) == (x_next.tobytes(), found.tobytes())


# ---- hard ends ---------------------------------------------------------------------------------------------


def flow_sde(sigma, after, before, level):
    """Returns mean coefficients and std of Flow-GRPO's step (Liu et al. 2025, equation 9), in mpmath's digits."""
    s, n = mp.mpf(sigma), mp.mpf(after)
    std_t = mp.mpf(level) * mp.sqrt(s / (1 - (s if s != 1 else mp.mpf(before))))
    dt = n - s
    of_x = 1 + std_t**2 / (2 * s) * dt
    of_m = (1 + std_t**2 * (1 - s) / (2 * s)) * dt
    return of_x, of_m, std_t * mp.sqrt(-dt)


def flow_cps(sigma, after, level):
    """Wang and Yu 2025: mean = (1 - s') x0 + s' cos(pi a / 2) x1, std = s' sin(pi a / 2)."""
    s, n, angle = mp.mpf(sigma), mp.mpf(after), mp.pi * mp.mpf(level) / 2
    # x0 = x - s m, x1 = x + (1 - s) m
    kept = n * mp.cos(angle)
    return (1 - n) + kept, kept * (1 - s) - (1 - n) * s, n * mp.sin(angle)


ENDS = [
    (1.0, 0.999),
    (1.0, 1e-3),
    (0.999999, 0.5),
    (0.5, 0.499999),
    (1e-3, 1e-4),
    (1e-5, 1e-6),
    (0.7, 1e-7),
]


@pytest.mark.parametrize("rule", ["flow_sde", "flow_cps"])
@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_densities_at_hard_ends(rule, ends, dtype):
    """Compares the step from sigma to sigma'. Seen to fail: a noise level off by 1e-4 of it, at every end in float64;
    in float32 if the rounding of x' is not larger than that."""
    level, (sigma, after) = 0.7, ends
    sampler = getattr(nf.samplers, rule)(FLOW, levels=[sigma, after], noise_level=level)
    rng = np.random.default_rng(3)
    x, m = (rng.standard_normal((2, 300)).astype(dtype) for _ in range(2))
    x_next, found = sampler.step(0, x, m, nf.Noise(7), log_prob=True)
    with mp.workdps(60):
        of_x, of_m, std = flow_sde(sigma, after, after, level) if rule == "flow_sde" else flow_cps(sigma, after, level)
        expected, least = [], []
        for b in range(2):
            rows = list(zip(x_next[b].tolist(), x[b].tolist(), m[b].tolist(), strict=True))
            z = [(mp.mpf(n) - of_x * a - of_m * v) / std for n, a, v in rows]
            expected.append(float(-sum(one**2 for one in z) / 2 - 300 * (mp.log(std) + mp.log(2 * mp.pi) / 2)))
            # the rounding of x' and its mean may move the residuals by this, in units of std, times each of them
            unit = float(np.finfo(dtype).eps) * 4 / float(std)
            moved = (abs(float(one)) * unit * (1 + abs(a) + abs(v)) for one, (_, a, v) in zip(z, rows, strict=True))
            least.append(sum(moved) + 300 * unit**2)
    bound = np.array(least) + (1e-6 if dtype == "float32" else 1e-12) * np.abs(expected)
    assert np.all(abs(found - np.array(expected)) <= bound), (found, expected, bound)
    assert log_prob(sampler.tableau, 0, x, m, x_next).tobytes() == found.tobytes()


def test_a_step_without_noise_has_no_density():
    """The last step of Flow-GRPO draws, that of CPS to clean data does not."""
    x = np.ones((2, 3))
    for rule, draws in (("flow_sde", True), ("flow_cps", False)):
        sampler = getattr(nf.samplers, rule)(FLOW, 4)
        last = len(sampler) - 1
        if draws:
            found = sampler.step(last, x, x, nf.Noise(7), log_prob=True)[1]
            assert np.isfinite(found).all()
        else:
            with pytest.raises(ValueError, match=f"row {last}"):
                sampler.step(last, x, x, nf.Noise(7), log_prob=True)
