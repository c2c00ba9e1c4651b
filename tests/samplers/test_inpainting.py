# SPDX-License-Identifier: Apache-2.0
"""Sampler.sample with a mask: the known part stays, at the noise level of each row, and the rest is sampled."""

import numpy as np
import pytest

import noisefuse as nf


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "dpmpp_2m", "euler_ancestral", "flow_euler"])
def test_inpainting_keeps_what_is_known_at_the_level_of_each_row(name):
    schedule, noise = nf.Schedule.flow() if name.startswith("flow") else nf.Schedule.linear(), nf.Noise(7)
    sampler = getattr(nf.samplers, name)(schedule, steps=5)
    known = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    mask = np.zeros((8, 8), bool)
    mask[2:5, 2:5] = True
    seen = []

    def model(x, t):
        seen.append(x)
        return 0.1 * x + 0.2 * x.mean()  # every place depends on all others

    x = sampler.sample(model, known.shape, noise, dtype="float64", mask=mask, known=known)
    assert np.array_equal(x[..., ~mask], known[..., ~mask])
    for i, given in enumerate(seen):
        expected, _ = sampler.model_input(i, sampler.noised(i, known, noise))
        assert np.array_equal(given[..., ~mask], expected[..., ~mask])
    free = sampler.sample(model, known.shape, noise, dtype="float64")
    assert not np.allclose(x[..., mask], free[..., mask])
    out = np.empty_like(known)
    whole = sampler.sample(model, known.shape, noise, dtype="float64", mask=np.ones(1), known=known, out=out)
    assert whole is out
    assert np.array_equal(whole, free)
    half = sampler.sample(model, known.shape, noise, dtype="float64", mask=0.5, known=known)
    assert not np.array_equal(half, free)


def test_inpainting_of_tensors_and_what_it_refuses():
    torch = pytest.importorskip("torch")
    sampler, noise = nf.samplers.ddpm(nf.Schedule.linear(), steps=4), nf.Noise(7)
    known, mask = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32), np.array([0, 0, 1, 0.25, 1, 0])
    x = sampler.sample(lambda x, t: 0.1 * x, known.shape, noise, mask=mask, known=known)
    start = torch.from_numpy(sampler.start(known.shape, noise))
    given = {"mask": torch.from_numpy(mask), "known": torch.from_numpy(known)}
    assert np.array_equal(sampler.sample(lambda x, t: 0.1 * x, start, noise, **given).numpy(), x)
    for wrong, kind, words in (
        ({"mask": mask}, TypeError, "expected both of them"),
        ({"known": known}, TypeError, "expected both of them"),
        ({"mask": mask, "known": known, "log_probs": True}, TypeError, "no log_probs"),
        ({"mask": mask * 255, "known": known}, ValueError, "mask: expected numbers from 0 to 1"),
        ({"mask": mask + np.nan, "known": known}, ValueError, "mask: expected numbers from 0 to 1"),
        (
            {"mask": np.ones(5), "known": known},
            ValueError,
            r"mask: .*\(2, 6\), got float64 of shape \(5,",
        ),
        ({"mask": mask, "known": known, "out": np.empty((2, 6), np.uint8)}, ValueError, "out: .* got uint8"),
        ({"mask": "all", "known": known}, ValueError, "mask: .* got str"),
        (
            {"mask": mask, "known": known[:1]},
            ValueError,
            r"known: .*\(2, 6\), got float32 of shape \(1,",
        ),
        ({"mask": mask, "known": given["known"]}, ValueError, "known: expected an array like x"),
    ):
        with pytest.raises(kind, match=words):
            sampler.sample(lambda x, t: 0.1 * x, known.shape, noise, **wrong)
    with pytest.raises(TypeError, match="mask: expected a Noise"):
        sampler.sample(lambda x, t: x, known, [known] * 4, mask=mask, known=known)


def test_what_lies_under_the_other_part_plays_no_part():
    """Seen to fail: NaN, for missing values, times 0; a result that overwrites the known array."""
    sampler, noise = nf.samplers.ddim(nf.Schedule.linear(), steps=4), nf.Noise(7)
    known, mask = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32), np.array([0, 0, 1, 1, 1, 0.0])
    expected = sampler.sample(lambda x, t: 0.1 * x, known.shape, noise, mask=mask, known=known)
    missing = np.where(mask == 1, np.nan, known).astype(np.float32)
    assert np.array_equal(sampler.sample(lambda x, t: 0.1 * x, known.shape, noise, mask=mask, known=missing), expected)
    explodes = sampler.sample(lambda x, t: np.where(mask == 0, np.inf, x), known.shape, noise, mask=mask, known=known)
    assert np.array_equal(explodes[:, mask == 0], known[:, mask == 0])
    out = known.copy()
    assert sampler.sample(lambda x, t: 0.1 * x, known.shape, noise, mask=mask, known=out, out=out) is out
    assert np.array_equal(out, expected)


def test_a_mask_does_not_enlarge_an_array_of_jax():
    jnp = pytest.importorskip("jax.numpy")
    sampler, noise = nf.samplers.ddim(nf.Schedule.linear(), steps=4), nf.Noise(7)
    x = jnp.zeros((1, 2, 4))
    with pytest.raises(ValueError, match=r"broadcasts to \(1, 2, 4\)"):
        sampler.sample(lambda x, t: x, x, noise, mask=jnp.ones((5, 2, 4)), known=x)
    found = sampler.sample(lambda x, t: 0.1 * x, x, noise, mask=jnp.array([0, 1.0, 0.5, 0]), known=x + 1)
    assert np.array_equal(np.asarray(found)[..., [0, 3]], np.ones((1, 2, 2)))


@pytest.mark.parametrize("given", [{}, {"mask": 0.5}], ids=["all", "masked"])
def test_where_the_result_goes_is_looked_at_before_the_run(given):
    """Seen to fail: an output that cannot be written to, strided or misaligned with a mask, and any wrong one without,
    was refused after the last call of the model, or taken."""
    sampler, known, asked = nf.samplers.ddim(nf.Schedule.linear(), steps=4), np.ones((2, 6), np.float32), []
    given = given and {**given, "known": known}
    read_only = np.broadcast_to(np.float32(0), (2, 6))
    for out, words in (
        (read_only, "expected a writable array"),
        (np.empty((6, 2), np.float32).T, "expected a C-contiguous, aligned array"),
        (np.empty(49, np.uint8)[1:].view(np.float32).reshape(2, 6), "expected a C-contiguous, aligned array"),
        (np.empty((2, 6), np.float64), "expected .*float32.* got float64"),
        (np.empty((6, 2), np.float32), r"expected .*shape \(2, 6\).* got .*\(6, 2\)"),
        ([0.0] * 12, "expected .* got list"),
    ):
        for x in ((2, 6), known):
            with pytest.raises((TypeError, ValueError), match="out: (with a mask )?" + words):
                sampler.sample(lambda x, t: asked.append(t), x, nf.Noise(7), out=out, **given)
    assert asked == []
