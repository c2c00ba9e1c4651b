# SPDX-License-Identifier: Apache-2.0
"""Draws of categories from JAX's arrays have NumPy's bits, in compiled programs too."""

import numpy as np
import pytest

import noisefuse as nf

jax = pytest.importorskip("jax")

NOISE = nf.Noise(7, sample=3)


def logits_of(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32) * 2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_give_numpys_bits(dtype):
    logits = jax.numpy.asarray(logits_of(2, 3, 300), dtype)
    token, info = nf.categorical(logits, NOISE, temperature=jax.numpy.array([0.5, 1.0]), info=("log_prob", "rank"))
    expected, known = nf.categorical(
        np.asarray(logits), NOISE, temperature=[0.5, 1.0], info=("log_prob", "rank"), dtype=np.int32
    )
    assert isinstance(token, jax.Array)
    assert token.dtype == np.int32
    assert np.array_equal(token, expected)
    assert all(np.asarray(info[name]).tobytes() == known[name].tobytes() for name in info)


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
        assert np.array_equal(info["log_prob"], known["log_prob"])
    assert len(traces) == 1


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
