# SPDX-License-Identifier: Apache-2.0
"""Steps, log-densities and losses, compared with the frameworks that train with them.

They are compared with the frameworks' formulas in float64, and with numbers that their own code gave:
sd3_sde_with_logprob of Flow-GRPO (sde, and cps without its constants), as verl-omni, NeMo-RL and sglang have it;
flux_step of DanceGRPO; ddim_step_with_logprob of DDPO; MixGRPO, GRPO-Guard, Diffusion-DPO."""

import math

import numpy as np
import pytest

import noisefuse as nf

SHAPE, SIGMAS = (3, 4, 8, 8), [1.0, 0.87, 0.6, 0.31, 0.08, 0.0]
FLOW, LINEAR = nf.Schedule.flow(1000), nf.Schedule.linear(1000)
N = nf.Noise(5)


def gaussian(x_next, mean, std):
    return -((x_next - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(math.sqrt(2 * math.pi))


def flow_grpo(x, u, z, i, level):
    """Returns (x', log-density)."""
    here, there = SIGMAS[i], SIGMAS[i + 1]
    dt, below = there - here, SIGMAS[1] if here == 1 else here
    rate = math.sqrt(here / (1 - below)) * level
    mean = x * (1 + rate**2 / (2 * here) * dt) + u * (1 + rate**2 * (1 - here) / (2 * here)) * dt
    std = rate * math.sqrt(-dt)
    return mean + std * z, lambda x_next: gaussian(x_next, mean, std)


def cps(x, u, z, i, level):
    here, there = SIGMAS[i], SIGMAS[i + 1]
    std = there * math.sin(level * math.pi / 2)
    clean, noise = x - here * u, x + u * (1 - here)
    mean = clean * (1 - there) + noise * math.sqrt(there**2 - std**2)
    return mean + std * z, lambda x_next: -((x_next - mean) ** 2)


def dance(x, u, z, i, eta):
    here, there = SIGMAS[i], SIGMAS[i + 1]
    clean = x - here * u
    score = -(x - clean * (1 - here)) / here**2
    mean = x + (there - here) * u - 0.5 * eta**2 * score * (there - here)
    std = eta * math.sqrt(here - there)
    return mean + std * z, lambda x_next: gaussian(x_next, mean, std)


def ddpo(x, e, z, i, eta):
    """Returns the frameworks' numbers for the first row of sampler.tableau."""
    times = [*LADDER.timesteps, -1]
    here, there = (LINEAR.alpha[t] ** 2 if t >= 0 else LINEAR.alpha[0] ** 2 for t in times[i : i + 2])
    variance = (1 - there) / (1 - here) * (1 - here / there)
    std = eta * math.sqrt(variance)
    clean = (x - math.sqrt(1 - here) * e) / math.sqrt(here)
    mean = math.sqrt(there) * clean + math.sqrt(1 - there - std**2) * e
    return mean + std * z, lambda x_next: gaussian(x_next, mean, std)


LADDER = nf.samplers.ddim(LINEAR, 10, eta=0.8)
CASES = {
    "flow_sde": (nf.samplers.flow_sde(FLOW, levels=SIGMAS[:-1], noise_level=0.7), flow_grpo, 0.7, "full"),
    "flow_cps": (nf.samplers.flow_cps(FLOW, levels=SIGMAS[:-1], noise_level=0.7), cps, 0.7, "squared"),
    "dance_sde": (nf.samplers.dance_sde(FLOW, levels=SIGMAS[:-1], eta=0.3), dance, 0.3, "full"),
    "ddim": (LADDER, ddpo, 0.8, "full"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("i", [0, 1, 3])
@pytest.mark.parametrize("name", CASES)
def test_it_is_their_step(name, i, dtype):
    """Seen to fail: the sigma in the place of 1 is the row's own next one from row 1 on; e without 1 - sigma."""
    sampler, formula, level, density = CASES[name]
    x, m, z = (nf.randn(SHAPE, nf.Noise(k), dtype=dtype) for k in (1, 2, 3))
    x_next, found = sampler.step(i, x, m, z, log_prob=True, reduction="mean", density=density)
    expected, log = formula(*(a.astype(np.float64) for a in (x, m, z)), i, level)
    tolerance = 1e-6 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(x_next, expected, rtol=tolerance, atol=tolerance)
    mean = log(x_next.astype(np.float64)).reshape(len(x), -1).mean(axis=1)
    np.testing.assert_allclose(found, mean, rtol=tolerance)


def test_of_a_flow_the_last_step_draws_too():
    table = CASES["flow_sde"][0].tableau
    assert table.rows["out"]["z"][-1] == pytest.approx(0.7 * math.sqrt(0.08 / 0.92) * math.sqrt(0.08))
    assert CASES["flow_cps"][0].tableau.rows["out"]["z"][-1] == 0


def test_outside_of_a_window_it_is_the_flow():
    euler = nf.samplers.flow_euler(FLOW, 6).tableau.unfolded().rows["out"]
    for rule in (nf.samplers.flow_sde, nf.samplers.flow_cps, nf.samplers.dance_sde):
        rows, whole = (rule(FLOW, 6, window=window).tableau.unfolded().rows["out"] for window in ((2, 4), None))
        for symbol in ("x", "m1", "z"):
            np.testing.assert_allclose(rows[symbol][[0, 1, 4, 5]], euler[symbol][[0, 1, 4, 5]], atol=1e-15)
            assert rows[symbol][2:4].tolist() == whole[symbol][2:4].tolist()


# ---- recorded numbers (docs/rl-frameworks.md) --------------------------------------------------------------


# The code of yifan123/flow_grpo ac4c86e, XueZeyue/DanceGRPO 15cc71d, Tencent-Hunyuan/MixGRPO e5cdd6a and
# verl-project/verl-omni a1139ba, run in float32 on `inputs()`, noise level 0.7 or eta 0.3. By the row: numbers of both
# samples.
EULER = [  # the sigmas of diffusers' FlowMatchEulerDiscreteScheduler(shift=3.0) for 10 steps
    1.0, 0.960129321, 0.913348973, 0.857692301, 0.790368259, 0.70727849, 0.602150559, 0.464876026, 0.278048784,
    0.00892857183, 0.0,
]  # fmt: skip
SHIFTED = [3 * s / (1 + 2 * s) for s in np.linspace(1, 0, 11)]  # sd3_time_shift(3, linspace(1, 0, 11))
FLOW_GRPO = {
    0: ([-0.5925207138, -0.5944444537], [7.949140127e-06, 8.131456525e-06]),
    4: ([-0.06187641621, -0.06060020998], [0.0003559760225, 0.0003641404619]),
    9: ([-294.5142823, -301.0813904], [0.001720224158, 0.001759674633]),
}  # log-densities, and their kl_loss
DANCE = {0: [-1.839959741, -1.846407294], 4: [-0.5049992204, -0.4541630447], 9: [-0.4211636483, -0.3036492169]}
MIX_FLOW = {3: [-0.1564760655, -0.1571515352], 4: [-0.04711328447, -0.04663025215]}
MIX_DANCE = {3: [-0.4371089935, -0.4311857522], 4: [-0.3730601370, -0.3647016585]}  # eta = 0.7
MIX_ODE = {3: [-0.9112498164, -0.3113701940], 4: [-0.9017148614, -0.3211693168]}  # x', elements 5 and 50
GUARD = {
    0: ([1.000247478, 1.000157595], -6.270537853),
    4: ([1.003911734, 1.002995491], -3.000383377),
    9: ([1.005613088, 1.002824664], -27.92651177),
}  # ratios and loss; advantages 1 and -0.5, clip ratio 1e-4
VERL = {"cps": [-0.07146307081, -0.07529404014], "dance": [-0.3017347157, -0.2387164235]}  # row 4
DPO = 0.1810823034  # SalesforceAIResearch/DiffusionDPO 5233e75, the two samples as one pair, beta = 50


def inputs():
    """Returns x, the model's output, that of a reference, and x'."""
    k = np.arange(96.0).reshape(2, 3, 4, 4)
    x, m = np.sin(k), np.cos(2 * k)
    return [a.astype(np.float32) for a in (x, m, m + 0.5 * np.sin(5 * k), 0.9 * x + 0.2 * np.sin(3 * k))]


def recorded(found, numbers):
    np.testing.assert_allclose(found, numbers, rtol=4e-6, atol=2e-7)


def flow(rule, sigmas, **options):
    return getattr(nf.samplers, rule)(FLOW, levels=sigmas[:-1], **options)


@pytest.mark.parametrize("i", [0, 4, 9])
def test_flow_grpo_recorded(i):
    """Its KL loss divides by the rate of the noise, not by the standard deviation: it is sigma - sigma' times the
    divergence. Seen to fail: without that factor; along ten levels of the schedule."""
    (x, m, ref, x_next), sampler = inputs(), flow("flow_sde", EULER)
    log_probs, losses = FLOW_GRPO[i]
    recorded(sampler.log_prob(i, x, m, x_next, reduction="mean"), log_probs)
    down = EULER[i] - EULER[i + 1]
    recorded(down * sampler.kl(i, m, ref, reduction="mean"), losses)


@pytest.mark.parametrize("i", [0, 4, 9])
def test_dance_grpo_recorded(i):
    """Seen to fail: without the shift."""
    x, m, _, x_next = inputs()
    recorded(flow("dance_sde", SHIFTED).log_prob(i, x, m, x_next, reduction="mean"), DANCE[i])


def test_mix_grpo_recorded():
    """A window of rows that draw; its copy of DanceGRPO's step leaves out the constants. Seen to fail: with them;
    another window."""
    x, m, _, x_next = inputs()
    for i in (3, 4):
        rows = {"window": (i, i + 1)}
        found = flow("flow_sde", SHIFTED, **rows).log_prob(i, x, m, x_next, reduction="mean")
        recorded(found, MIX_FLOW[i])
        law = {"reduction": "mean", "density": "no_constants"}
        recorded(flow("dance_sde", SHIFTED, eta=0.7, **rows).log_prob(i, x, m, x_next, **law), MIX_DANCE[i])
        before = flow("flow_sde", SHIFTED, window=(i + 1, i + 3)).step(i, x, m)
        recorded(before.flatten()[[5, 50]], MIX_ODE[i])


def guard(x, u, old_u, x_next, i, advantage, clip):
    """GRPO-Guard as in verl-omni, from means and densities of Flow-GRPO's step in float64."""
    here, there = EULER[i], EULER[i + 1]
    rate = 0.7 * math.sqrt(here / (1 - (EULER[1] if here == 1 else here)))
    drift, std = rate**2 / (2 * here), rate * math.sqrt(here - there)
    mean, old_mean = (x + (there - here) * (v + drift * (x + (1 - here) * v)) for v in (u, old_u))
    change = ((x_next - old_mean) ** 2 - (x_next - mean) ** 2 + (mean - old_mean) ** 2) / (2 * std**2)
    ratio = np.exp(change.reshape(len(x), -1).mean(axis=1) * std)
    loss = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - clip, 1 + clip)).mean()
    return ratio, loss / (here - there)


@pytest.mark.parametrize("i", [0, 4, 9])
def test_grpo_guard_recorded(i):
    """The mean's drift is the divergence of both policies' Gaussians. Seen to fail: without it; a ratio that is not
    multiplied by std."""
    (x, m, old_m, x_next), sampler, advantage = inputs(), flow("flow_sde", EULER), np.array([1.0, -0.5])
    new, old = (sampler.log_prob(i, x, v, x_next, reduction="mean") for v in (m, old_m))
    std = sampler.tableau.rows["out"]["z"][i]
    ratio = np.exp(std * (new - old + sampler.kl(i, m, old_m, reduction="mean")))
    loss = np.maximum(-advantage * ratio, -advantage * ratio.clip(1 - 1e-4, 1 + 1e-4)).mean()
    loss /= EULER[i] - EULER[i + 1]
    recorded(ratio, GUARD[i][0])
    recorded(loss, GUARD[i][1])
    wide = (a.astype(np.float64) for a in (x, m, old_m, x_next))
    for found, expected in zip((ratio, loss), guard(*wide, i, advantage, 1e-4), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5 if i == 9 else 2e-7)  # x' - mean in float32


def test_verl_omni_recorded():
    """Seen to fail: the density of cps with its constants."""
    x, m, _, x_next = inputs()
    squared = {"reduction": "mean", "density": "squared"}
    recorded(flow("flow_cps", EULER).log_prob(4, x, m, x_next, **squared), VERL["cps"])
    recorded(flow("dance_sde", EULER).log_prob(4, x, m, x_next, reduction="mean"), VERL["dance"])


def dpo(losses, reference, beta):
    """The loss of pairs: the first half is preferred."""
    won, lost = np.split(losses - reference, 2)
    return np.logaddexp(0, beta / 2 * (won - lost)).mean()


def test_diffusion_dpo():
    """Both of a pair have one noise, which no array holds; targets are epsilon, v, and a flow's. Seen to fail: each
    sample its own noise."""
    k = np.arange(96.0).reshape(2, 3, 4, 4)
    _, pred, ref, _ = inputs()
    target = np.repeat(np.cos(3 * k[:1]), 2, axis=0)
    assert dpo(*(((a - target) ** 2).mean(axis=(1, 2, 3)) for a in (pred, ref)), 50) == pytest.approx(DPO, rel=1e-5)
    rng = np.random.default_rng(0)
    x0, pred, ref = rng.normal(size=(3, 6, 3, 4, 4))
    noise, t = nf.Noise(7, sample=np.tile([17, 4, 99], 2), step=3), np.tile([10, 500, 900], 2)
    z = nf.randn(x0.shape, noise, dtype="float64")
    assert np.array_equal(z[:3], z[3:])
    for schedule, name in ((LINEAR, "epsilon"), (LINEAR, "v"), (FLOW, "flow")):
        alpha, sigma = (level[t].reshape(-1, 1, 1, 1) for level in (schedule.alpha, schedule.sigma))
        target = {"epsilon": z, "v": alpha * z - sigma * x0, "flow": z - x0}[name]
        found = [nf.mse_loss(a, x0, t, schedule, noise, target=name, reduction="none") for a in (pred, ref)]
        expected = [((a - target) ** 2).mean(axis=(1, 2, 3)) for a in (pred, ref)]
        assert dpo(*found, 5000) == pytest.approx(dpo(*expected, 5000), rel=1e-12)
        alone = nf.mse_loss(pred[4:5], x0[4:5], t[4:5], schedule, noise.at(sample=4), target=name, reduction="none")
        assert alone[0] == found[0][4]


@pytest.mark.parametrize("name", CASES)
def test_the_first_ratio_is_one_alone_in_a_batch_and_in_shards(name):
    """The rollout is one batch; the trainer has each request alone, other batches, and shards. Seen to fail: with
    one number of x' changed."""
    (sampler, _, _, density), shape = CASES[name], (3, 4, 64, 64)
    noises, i = [nf.Noise(2026, sample=request) for request in (17, 4, 99)], 1
    x, m = (nf.randn(shape, nf.Noise(k)) for k in (1, 2))
    x_next, old = sampler.step(i, x, m, noises, log_prob=True, density=density)

    def new(part, **law):
        return sampler.log_prob(i, x[part], m[part], x_next[part], density=density, **law)

    for part in (slice(0, 1), slice(1, 2), slice(1, 3), slice(None)):
        assert (np.exp(new(part) - old[part]) == 1).all()
    shards = [(slice(None), slice(k, k + 1)) for k in range(4)]
    assert np.array_equal(nf.density.combine([new(shard, partial=True) for shard in shards]), old)
