# SPDX-License-Identifier: Apache-2.0
"""diffusers' schedulers of tokens with keys: what they choose, how often, and their seeds for each sample.

Seen to fail: accepted positions of the untempered entropies; a step counted down where diffusers counts up; the ranks
of the most certain in place of the least (Amused).
"""

import importlib
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", minversion="0.42")

import noisefuse as nf  # noqa: E402
from noisefuse.interop import diffusers_tokens as keyed  # noqa: E402

NOISE = nf.Noise(11, sample=4, step=2)
B, L, V = 3, 24, 7


def logits_of(*shape, seed=0, scale=2.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32) * scale)


def tokens_of(*shape, v=V, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, v, shape))


def made(name, *arguments, steps=6, **options):
    own, theirs = (getattr(module, name)(*arguments, **options) for module in (keyed, diffusers))
    for scheduler in (own, theirs):
        scheduler.set_timesteps(steps)
    return own, theirs


def test_an_older_diffusers_has_less(monkeypatch):
    """0.35 has two of the schedulers. Seen to fail: none could be imported."""
    older = types.ModuleType("diffusers")
    older.__version__ = "0.35.2"
    older.AmusedScheduler, older.VQDiffusionScheduler = diffusers.AmusedScheduler, diffusers.VQDiffusionScheduler
    monkeypatch.setitem(sys.modules, "diffusers", older)
    monkeypatch.delitem(sys.modules, keyed.__name__)
    less = importlib.import_module(keyed.__name__)
    monkeypatch.setattr(nf.interop, "diffusers_tokens", keyed)
    own = less.AmusedScheduler(V)
    own.set_timesteps(6)
    assert (own.step(logits_of(B, L, V), 0, torch.full((B, L), V), generator=NOISE).prev_sample < V).all()
    for make in (less.EntropyBoundScheduler, less.EntropyBoundScheduler.from_config):
        with pytest.raises(ImportError, match=r"EntropyBoundScheduler: diffusers 0\.35\.2 does not have it, 0.42 does"):
            make({})


CASES = {
    "DiscreteDDIMScheduler": ((), {}, (logits_of(B, L, V), 2, tokens_of(B, L)), {"temperature": 0.8}),
    "EntropyBoundScheduler": ((), {"entropy_bound": 2.0}, (logits_of(B, L, V), 2, tokens_of(B, L)), {}),
    "BlockRefinementScheduler": (
        (),
        {"block_length": L},
        (logits_of(B, L, V), 2, tokens_of(B, L)),
        {"temperature": 0.8},
    ),
    "AmusedScheduler": ((V,), {}, (logits_of(B, L, V), 2, torch.where(tokens_of(B, L) < 5, V, 0)), {}),
    "VQDiffusionScheduler": ((V + 1,), {}, (logits_of(B, V, L).log_softmax(1), 2, tokens_of(B, L, v=V + 1)), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_with_generators_they_are_diffusers_own(name):
    arguments, config, given, options = CASES[name]
    own, theirs = made(name, *arguments, **config)
    a, b = (s.step(*given, generator=torch.Generator().manual_seed(3), **options) for s in (own, theirs))
    for one, other in zip(a.to_tuple(), b.to_tuple(), strict=True):
        assert torch.equal(one, other)
    assert isinstance(own, type(theirs))


@pytest.mark.parametrize("name", CASES)
def test_seeds_for_each_sample(name):
    arguments, config, (m, t, x), options = CASES[name]
    own, _ = made(name, *arguments, **config)
    seeds = [nf.Noise(5), nf.Noise(6, sample=3), nf.Noise(5, step=40)]
    whole = own.step(m, t, x, generator=seeds, **options).prev_sample
    for b in range(B):
        own, _ = made(name, *arguments, **config)
        alone = own.step(m[b : b + 1], t, x[b : b + 1], generator=seeds[b], **options).prev_sample
        assert torch.equal(alone, whole[b : b + 1])
    own, theirs = made(name, *arguments, **config)
    result = own.step(m, t, x, generator=NOISE, return_dict=False, **options)
    kinds = [one.dtype for one in theirs.step(m, t, x, return_dict=False, **options)]
    assert [one.dtype for one in result] == kinds


def test_ddim_at_temperature_0():
    own, theirs = made("DiscreteDDIMScheduler")
    m, x = logits_of(B, L, V), tokens_of(B, L)
    for t in range(6):
        a, b = own.step(m, t, x, generator=NOISE), theirs.step(m, t, x)
        assert torch.equal(a.sampled_tokens, b.sampled_tokens)
        assert torch.allclose(a.sampled_probs, b.sampled_probs, atol=1e-6)
    assert torch.equal(a.prev_sample, b.prev_sample)  # the last step takes the clean tokens


def test_ddim_takes_its_routes_as_often():
    n, t = 40000, 2
    own, theirs = made("DiscreteDDIMScheduler")
    p = torch.tensor([0.5, 0.3, 0.2])
    m, x = p.log().expand(n, 1, 3).contiguous(), torch.zeros(n, 1, dtype=torch.int64)
    found = [
        np.bincount(s.step(m, t, x, temperature=1.0, generator=g).prev_sample[:, 0], minlength=3) / n
        for s, g in ((own, NOISE), (theirs, torch.Generator().manual_seed(0)))
    ]
    b, a = (t + 1) / 6, t / (t + 1)
    q = p.numpy()
    same = a * b + (1 - a * b) / 3
    expected = np.zeros(3)
    for c in range(3):
        total = same if c == 0 else (1 - a * b) / 3
        expected += q[c] * (b * (1 - a) / 3 + a * b * (c == 0)) / total * np.eye(3)[c]
        expected += q[c] * a * (1 - b) / 3 / total * np.eye(3)[0] + q[c] * (1 - a) * (1 - b) / 3 / total / 3
    for one in found:
        assert abs(one - expected).max() < 5 * 0.5 / n**0.5


@pytest.mark.parametrize("bound", [0.1, 1.0, 5.0])
def test_entropy_bound_accepts_the_same_positions(bound):
    own, theirs = made("EntropyBoundScheduler", entropy_bound=bound)
    m, x = logits_of(B, L, V, scale=4.0), tokens_of(B, L)
    for t in range(6):
        a, b = own.step(m, t, x, generator=NOISE), theirs.step(m, t, x)
        assert torch.equal(a.accepted_index, b.accepted_index)
        assert torch.equal(a.pred_logits, b.pred_logits)
        assert torch.equal(a.prev_sample[a.accepted_index], a.sampled_tokens[a.accepted_index])
        p = a.pred_logits.softmax(-1).gather(-1, a.sampled_tokens[..., None])[..., 0]
        assert torch.allclose(a.sampled_probs, p, atol=1e-6)


@pytest.mark.parametrize("mask", [V, None])
def test_block_refinement_at_temperature_0(mask):
    own, theirs = made("BlockRefinementScheduler", block_length=L, threshold=0.9)
    x = {s: torch.full((B, L), V) if mask else tokens_of(B, L) for s in (own, theirs)}
    for t in range(6):
        m = logits_of(B, L, V, seed=t)
        a, b = (
            s.step(m, t, x[s], mask_token_id=mask, generator=g)
            for s, g in ((own, NOISE), (theirs, torch.Generator().manual_seed(0)))
        )
        assert torch.equal(a.transfer_index, b.transfer_index)
        assert torch.equal(a.sampled_tokens, b.sampled_tokens)
        if mask:
            assert torch.equal(a.prev_sample, b.prev_sample)
        x = {own: a.prev_sample, theirs: b.prev_sample}


def test_tokens_of_logits_are_drawn_without_a_scheduler_as_diffusers_draws_them():
    """BlockRefinement has a function for it, also after a step with keys. Seen to fail: a method of an instance."""
    own, _ = made("BlockRefinementScheduler", block_length=L)
    own.step(logits_of(B, L, V), 2, tokens_of(B, L), temperature=0.8, generator=NOISE)
    for of in (keyed.BlockRefinementScheduler, own):
        options = {"temperature": 0.0, "top_k": None, "top_p": None, "generator": None, "use_multinomial": False}
        token, p = of._sample_from_logits(logits_of(B, L, V, seed=5), **options)
        assert torch.equal(token, logits_of(B, L, V, seed=5).argmax(-1))
        assert torch.equal(p, logits_of(B, L, V, seed=5).softmax(-1).amax(-1))


def test_amused_masks_the_least_certain_ones():
    own, theirs = made("AmusedScheduler", V)
    for scheduler in (own, theirs):
        scheduler.set_timesteps(6, temperature=(0, 0))
    m, x = logits_of(B, L, V), torch.full((B, L), V)
    for t in (5, 3, 1):
        a, b = own.step(m, t, x, generator=NOISE), theirs.step(m, t, x, generator=torch.Generator().manual_seed(1))
        hidden = a.prev_sample == V
        assert torch.equal(hidden.sum(1), (b.prev_sample == V).sum(1))
        p = m.softmax(-1).gather(-1, a.pred_original_sample[..., None])[..., 0]
        assert (torch.where(hidden, p, 0).amax(1) <= torch.where(hidden, 1, p).amin(1)).all()
    pictures = own.step(m.permute(0, 2, 1).reshape(B, V, 4, 6), 3, x.reshape(B, 4, 6), generator=NOISE).prev_sample
    assert torch.equal(pictures, own.step(m, 3, x, generator=NOISE).prev_sample.reshape(B, 4, 6))


def test_vq_diffusion_draws_from_its_posterior():
    n = 40000
    own, theirs = made("VQDiffusionScheduler", 4)
    m = torch.tensor([0.5, 0.3, 0.2]).log()[None, :, None].expand(n, 3, 1)
    for old in (0, 3):
        x = torch.full((n, 1), old)
        p = theirs.q_posterior(m[:1], x[:1], 3)[0, :, 0].exp().numpy()
        found = np.bincount(own.step(m, 3, x, generator=NOISE).prev_sample[:, 0], minlength=4) / n
        assert abs(found - p / p.sum()).max() < 5 * 0.5 / n**0.5
