# SPDX-License-Identifier: Apache-2.0
"""LLaDA's generate: its options, its kinds of arrays, and its tokens (tests/discrete has its loop).

Seen to fail: the prompt left unmasked in the second call.
"""

import numpy as np
import pytest

import noisefuse as nf
from noisefuse.interop.llada import generate

V, MASK = 11, 11


def model(x):
    """Returns logits that depend on all tokens."""
    x = np.asarray(x)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(V + 1, V)), rng.normal(size=(64, V))
    mixed = a[x].sum(axis=1, keepdims=True) + np.roll(a[x], 1, axis=1) + b[: x.shape[1]]
    return mixed.astype(np.float32)


PROMPT = np.random.default_rng(1).integers(0, V, (2, 5))
OPTIONS = {"steps": 8, "gen_length": 8, "block_length": 4, "mask_id": MASK}


def test_it_is_the_sampler():
    sampler = nf.samplers.llada(8, mask_id=MASK, length=8, block_length=4)
    x = np.concatenate([PROMPT, np.full((2, 8), MASK)], axis=1)
    whole = generate(model, PROMPT, **OPTIONS)
    assert np.array_equal(whole, sampler.sample(lambda x, t: model(x), x, nf.Noise(3)))
    assert np.array_equal(whole[:, :5], PROMPT)
    assert (whole < V).all()


def test_a_mask_that_the_network_draws_stays():
    """It stays, as in LLaDA's code. Seen to fail: another token took its place."""

    def masks_the_third(x):
        logits = np.pad(model(x), [(0, 0), (0, 0), (0, 1)], constant_values=-9)
        logits[:, 7, MASK] = 99
        return logits

    done = generate(masks_the_third, PROMPT, **OPTIONS)
    assert (done == MASK).tolist() == [[at == 7 for at in range(13)]] * 2


def test_tensors_and_objects_with_logits(torch):
    class Answer:
        def __init__(self, logits):
            self.logits = logits

    answered = generate(lambda x: Answer(torch.from_numpy(model(x.numpy()))), torch.from_numpy(PROMPT), **OPTIONS)
    assert np.array_equal(answered.numpy(), generate(model, PROMPT, **OPTIONS))


def test_guidance_masks_the_prompt_for_the_second_call():
    seen = []

    def asked(x):
        seen.append(np.array(x))
        return model(x)

    done = generate(asked, PROMPT, **OPTIONS, cfg_scale=1.5)
    hidden, shown = seen[0], seen[1]
    assert (hidden[:, :5] == MASK).all()
    assert np.array_equal(shown[:, :5], PROMPT)
    assert np.array_equal(done[:, :5], PROMPT)
    assert not np.array_equal(done, generate(model, PROMPT, **OPTIONS))


def test_a_seed_for_each_request():
    seeds = [nf.Noise(1), nf.Noise(2, step=4)]
    for options in ({"temperature": 0.7}, {"remasking": "random"}):
        whole = generate(lambda x: model(x), PROMPT, seeds, **OPTIONS, **options)
        for b in range(2):
            assert np.array_equal(generate(model, PROMPT[b : b + 1], seeds[b], **OPTIONS, **options), whole[b : b + 1])
        with pytest.raises(TypeError, match="noise: expected a Noise for temperature"):
            generate(model, PROMPT, **OPTIONS, **options)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "words"),
    [
        (PROMPT[0], {}, ValueError, r"prompt: expected ids \(B, L\), got shape \(5,\)"),
        (PROMPT[None], {}, ValueError, r"prompt: expected ids \(B, L\), got shape \(1, 2, 5\)"),
        (None, {}, ValueError, r"prompt: expected ids \(B, L\), got shape \(\)"),
        (PROMPT.astype(float), {}, TypeError, "dtype float64: expected one of int64"),
        (PROMPT.astype("uint8"), {"mask_id": 126336}, OverflowError, "mask_id = 126336: does not fit ids of uint8"),
    ],
)
def test_wrong_arguments(prompt, options, error, words):
    """Seen to fail: NumPy's words for axes and numbers that do not fit."""
    with pytest.raises(error, match=words):
        generate(model, prompt, **OPTIONS | options)


def test_a_model_is_called():
    with pytest.raises(TypeError, match="model: expected a function, or a network, of ids, got NoneType"):
        generate(None, PROMPT, **OPTIONS)
