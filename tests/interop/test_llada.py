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


@pytest.mark.parametrize(("steps", "block_length"), [(8, 4), (6, 4), (8, 8)])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_masks_in_the_prompt(steps, block_length, cfg_scale):
    """LLaDA's loop: a step reveals as many masks as the block has for it, of the block and of the prompt, so the text
    keeps as many masks as the prompt had. Seen to fail: all masks were revealed; prompts that had been revealed were
    hidden from the second call."""
    prompt = np.array([[MASK, 2, MASK, 7, 1], [3, 4, 5, 6, MASK]])
    x = np.concatenate([prompt, np.full((2, 8), MASK)], axis=1)
    given, each = x != MASK, steps * block_length // 8
    for i in range(steps):
        end = 5 + (1 + i // each) * block_length
        logits = model(x)
        if cfg_scale:
            u = model(np.where(given, MASK, x))
            logits = u + (cfg_scale + 1) * (logits - u)
        p = np.exp(logits.astype(float) - logits.max(-1, keepdims=True))
        sure = np.where(x == MASK, p.max(-1) / p.sum(-1), -1)
        sure[:, end:] = -1
        for row, order in enumerate(np.argsort(-sure, axis=1, kind="stable")):
            taken = order[: block_length // each + (i % each < block_length % each)]
            x[row, taken] = logits[row, taken].argmax(-1)
    options = OPTIONS | {"steps": steps, "block_length": block_length, "cfg_scale": cfg_scale}
    found = generate(model, prompt, **options)
    assert np.array_equal(found, x)
    assert (found == MASK).sum(1).tolist() == [2, 1]


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


def by_llada(x, eos, eot, left_out, unsure):
    """LLaDA's loop with its options at temperature 0, by its description; of equal confidences the lower position."""
    x = np.concatenate([x, np.full((len(x), 8), MASK)], axis=1)
    for end in (9, 13):
        for k in range(4):
            logits = model(x).astype(np.float64)
            if left_out:
                logits[..., eos] = -np.inf
            drawn = logits.argmax(-1)
            if unsure:
                logits[..., [eos, eot]] = -np.inf
            p = np.exp(logits - logits.max(-1, keepdims=True))
            sure = np.take_along_axis(p / p.sum(-1, keepdims=True), drawn[..., None], -1)[..., 0]
            for row in range(len(x)):
                may = sorted((at for at in range(end) if x[row, at] == MASK), key=lambda at: -sure[row, at])
                at = may[: -(-len(may) // (4 - k))]
                x[row, at] = drawn[row, at]
    return x


@pytest.mark.parametrize(("left_out", "unsure"), [(True, False), (False, True), (True, True)])
def test_the_end_of_the_text_comes_late(left_out, unsure):
    """Seen to fail: the confidences of other tokens were those of the whole softmax; a position that was no mask came
    before one without confidence."""
    tokens = generate(model, PROMPT, **OPTIONS)[:, 5:]
    eos, eot = np.bincount(tokens.ravel(), minlength=V).argsort()[-2:].tolist()
    options = {"eos_id": eos, "eot_id": eot, "logits_eos_inf": left_out, "confidence_eos_eot_inf": unsure}
    made = generate(model, PROMPT, **OPTIONS, **options)
    assert np.array_equal(made, by_llada(PROMPT, eos, eot, left_out, unsure))
    assert not np.array_equal(made[:, 5:], tokens)
    assert np.array_equal(generate(model, PROMPT, **OPTIONS), by_llada(PROMPT, eos, eot, False, False))


def test_padding_is_shown_to_the_model(torch):
    mask, seen = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]), []

    def padded(x, attention_mask):
        seen.append(np.asarray(attention_mask))
        return model(x)

    expected = generate(model, PROMPT, **OPTIONS)
    assert np.array_equal(generate(padded, PROMPT, **OPTIONS, attention_mask=mask), expected)

    def of_torch(x, attention_mask):
        assert isinstance(attention_mask, torch.Tensor)
        return torch.from_numpy(padded(x, attention_mask))

    given = torch.from_numpy(PROMPT), torch.from_numpy(mask)
    assert np.array_equal(generate(of_torch, given[0], **OPTIONS, attention_mask=given[1]), expected)
    assert all(np.array_equal(one, np.pad(mask, [(0, 0), (0, 8)], constant_values=1)) for one in seen)
    with pytest.raises(ValueError, match=r"attention_mask: expected the prompt's shape \(2, 5\), got \(2, 4\)"):
        generate(padded, PROMPT, **OPTIONS, attention_mask=mask[:, 1:])


def test_calls_are_counted():
    sampler = nf.samplers.llada(8, mask_id=MASK, length=8, block_length=4, threshold=0.2)
    x, state = np.concatenate([PROMPT, np.full((2, 8), MASK)], axis=1), sampler.state()
    done = generate(model, PROMPT, **OPTIONS, threshold=0.2, state=state)
    assert np.array_equal(done, sampler.sample(lambda x, t: model(x), x, nf.Noise(3)))
    assert state.calls < 8


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
