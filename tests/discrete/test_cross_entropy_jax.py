# SPDX-License-Identifier: Apache-2.0
"""The loss of masked diffusion on JAX's arrays: gradients, and programs."""

import numpy as np
import pytest

import noisefuse as nf

jax = pytest.importorskip("jax")
jnp = jax.numpy
loss_of = nf.masked_cross_entropy
both_of = nf.masked_cross_entropy_and_grad

RNG = np.random.default_rng(4)
LOGITS = (RNG.normal(size=(2, 3, 300)) * 2).astype(np.float32)
IDS, MASKED = RNG.integers(0, 300, (2, 3)), np.array([[True, False, True], [True, True, False]])
WEIGHT = np.float32([[1.5], [0.25]])
GIVEN = jnp.asarray(IDS), jnp.asarray(MASKED), jnp.asarray(WEIGHT)


def bits(x):
    return np.asarray(x).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("compile", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradients(compile, dtype):
    """Seen to fail: an upstream gradient of 3 that is left out. One of 2^20 is multiplied in before float16 rounds."""
    logits = jnp.asarray(LOGITS, dtype)
    for reduction, factor in (("mean", 1.0), ("mean", 3.0), ("mean", 2.0**20), ("none", 2.0)):

        def of(x, ids, masked, weight, reduction=reduction, factor=factor):
            return factor * loss_of(x, ids, masked, weight, reduction=reduction).sum()

        value, gradient = compile(jax.value_and_grad(of))(logits, *GIVEN)
        upstream = factor if reduction == "mean" else np.full((2, 3), factor)
        options = {"reduction": reduction, "upstream": upstream}
        expected, of_logits = both_of(np.asarray(logits), IDS, MASKED, WEIGHT, **options)
        assert np.isclose(value, factor * np.sum(np.float32(expected)), rtol=1e-6)
        assert bits(gradient) == bits(of_logits)


def test_in_a_program_that_maps():
    """The loss of each sample by vmap, and its gradient. Seen to fail: a callback without a rule for vmap."""

    @jax.jit
    def each(x, ids):
        return jax.vmap(jax.value_and_grad(lambda x, ids: 2 * loss_of(x, ids)))(x, ids)

    values, gradients = each(jnp.asarray(LOGITS), GIVEN[0])
    for b in range(2):
        expected, gradient = both_of(LOGITS[b], IDS[b], upstream=2.0)
        assert bits(values[b]) == bits(np.float32(2) * np.float32(expected))
        assert bits(gradients[b]) == bits(gradient)


def test_draws_in_a_program_that_maps():
    """Each element draws as a loop would. Seen to fail: a callback without a rule for vmap."""
    noise = nf.Noise(7)
    token = jax.jit(jax.vmap(lambda x: nf.categorical(x, noise)))(jnp.asarray(LOGITS)[:, None])
    assert np.array_equal(token, [nf.categorical(x[None], noise) for x in LOGITS])


def test_a_program_keeps_what_it_was_given():
    """Seen to fail: ids, and positions of `categorical`, that were overwritten after the program was compiled."""
    ids, positions = IDS.copy(), np.array([5, 6, 7])
    run = jax.jit(lambda x: (loss_of(x, ids), nf.categorical(x, nf.Noise(7), positions=positions)))
    loss, token = run(LOGITS)
    ids[...], positions[...] = 0, 0
    again, same = run(LOGITS)
    assert bits(again) == bits(loss)
    assert np.array_equal(same, token)


def test_bad_input():
    logits = jnp.asarray(LOGITS)
    with pytest.raises(TypeError, match="out: expected None, as JAX arrays are not written to"):
        both_of(logits, IDS, out=LOGITS.copy())
    with pytest.raises(IndexError, match="ids: 300 is out of range"):
        loss_of(logits, IDS * 0 + 300)
    for compile in (lambda f: f, jax.jit):
        with pytest.raises(ValueError, match=r"ids: expected shape \(2, 3\), as .*, got \(3,\)"):
            compile(loss_of)(logits, GIVEN[0][0])
        with pytest.raises(TypeError, match="masked: expected bool"):
            compile(loss_of)(logits, GIVEN[0], GIVEN[0])
        with pytest.raises(NotImplementedError, match="weight: masked_cross_entropy has no derivative"):
            compile(jax.grad(lambda w: loss_of(logits, *GIVEN[:2], w)))(GIVEN[2])
        with pytest.raises(NotImplementedError, match=r"use jax\.grad of masked_cross_entropy"):
            compile(jax.grad(lambda x: both_of(x, GIVEN[0])[0]))(logits)
    with pytest.raises(ValueError, match="weight: expected numbers >= 0"):
        jax.jit(lambda x: loss_of(x, IDS, None, -1))(logits)
