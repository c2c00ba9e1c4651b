# SPDX-License-Identifier: Apache-2.0
"""Draws of categories from JAX's arrays in compiled programs, and their gradients."""

import numpy as np
import pytest

import noisefuse as nf

jax = pytest.importorskip("jax")

NOISE = nf.Noise(7, sample=3)


def logits_of(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32) * 2


def test_one_program_serves_all_steps():
    """A step and a temperature that change compile nothing anew."""
    traces = []

    @jax.jit
    def step(logits, n, temperature):
        traces.append(1)
        return nf.categorical(2 * logits, NOISE.at(step=n), temperature=temperature, info="log_prob")

    logits = logits_of(2, 3, 300)
    for n in range(3):
        token, info = step(logits, n, 0.5 + n)
        expected, known = nf.categorical(2 * logits, NOISE.at(step=n), temperature=0.5 + n, info="log_prob")
        assert np.array_equal(token, expected)
        assert np.array_equal(info.log_prob, known.log_prob)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["log_prob", "entropy"])
def test_info_has_no_gradient_and_says_so(name):
    """It is refused, as for tensors. Seen to fail: it was 0, and a policy learned nothing."""

    def told(logits):
        return getattr(nf.categorical(logits, NOISE, info=name)[1], name).sum()

    logits = logits_of(2, 3, 30)
    for of in (told, jax.jit(told), lambda logits: jax.vmap(told)(logits[None]).sum()):
        with pytest.raises(NotImplementedError, match=r"logits: the info of categorical has no gradient; pass jax.lax"):
            jax.grad(of)(logits)
        assert np.isclose(of(logits), told(logits))
    assert jax.jit(jax.grad(lambda a: a * told(logits)))(2.0) == told(logits)
    stopped = jax.grad(lambda logits: logits.sum() * told(jax.lax.stop_gradient(logits)))(logits)
    assert np.allclose(stopped, told(logits))
    assert not jax.grad(lambda logits: 0.0 * logits.sum() + nf.categorical(logits, NOISE).sum())(logits).any()


def test_what_has_a_gradient_in_place_of_the_info():
    logits = logits_of(2, 3, 30)
    token, info = nf.categorical(logits, NOISE, info="log_prob")

    def told(logits):
        return -nf.masked_cross_entropy(logits, token, reduction="none")

    assert np.allclose(told(jax.numpy.asarray(logits)), info.log_prob, atol=1e-6)
    expected = np.eye(30)[token] - jax.nn.softmax(logits)
    assert np.allclose(jax.grad(lambda logits: told(logits).sum())(jax.numpy.asarray(logits)), expected, atol=1e-6)


def test_bad_input():
    logits = jax.numpy.zeros((1, 2, 5))
    with pytest.raises(TypeError, match="out: expected None"):
        nf.categorical(logits, NOISE, out=np.zeros((1, 2), int))
    with pytest.raises(NotImplementedError, match=r"pass np\.asarray\(logits\)"):
        nf.categorical(logits, NOISE, partial=True)
    with pytest.raises(TypeError, match="info: expected names among log_prob"):
        nf.categorical(logits, NOISE, info=3)
    with pytest.raises(ValueError, match="temperature = -1"):
        nf.categorical(logits, NOISE, temperature=-1)
