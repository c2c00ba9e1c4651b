# SPDX-License-Identifier: Apache-2.0
"""Draws of categories from torch tensors: without a copy, in shards, and in compiled graphs."""

import numpy as np
import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")

NOISE = nf.Noise(7, sample=3)


def logits_of(*shape):
    return torch.from_numpy(np.random.default_rng(1).normal(size=shape).astype(np.float32) * 2)


def test_temperatures_in_bfloat16():
    """Seen to fail: NumPy does not have them."""
    logits, heat = logits_of(2, 3, 700), torch.tensor([0.5, 1.5]).bfloat16()
    assert torch.equal(
        nf.categorical(logits, NOISE, temperature=heat), nf.categorical(logits, NOISE, temperature=[0.5, 1.5])
    )


def test_memory_is_shared():
    """Seen to fail: a copy of out is returned."""
    logits, out = logits_of(1, 4, 300), torch.full((1, 4), 9, dtype=torch.int32)
    where = torch.tensor([[True, False, True, True]])
    before = out._version
    assert nf.categorical(logits, NOISE, where=where, out=out) is out
    assert out._version > before
    whole = nf.categorical(logits, NOISE, dtype=torch.int32)
    assert torch.equal(out, torch.where(where, whole, 9))
    assert nf.categorical(logits[..., ::2], NOISE, positions=torch.arange(4)).shape == (1, 4)


def test_shards():
    logits = logits_of(2, 3, 8192)
    parts = [
        nf.categorical(logits[..., n : n + 4096], NOISE.window((3, 8192), (0, n)), info="log_prob", partial=True)
        for n in (0, 4096)
    ]
    token, info = nf.discrete.combine_categories(parts)
    expected, known = nf.categorical(logits, NOISE, info="log_prob")
    assert np.array_equal(token, expected.numpy())
    assert np.array_equal(info.log_prob, known.log_prob.numpy())


@pytest.mark.slow
def test_compiled_graphs():
    """One graph for all seeds and steps, once the compiler has seen that they change."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def step(logits, noise, out):
        token, info = nf.categorical(2 * logits, noise, temperature=0.7, top_k=40, info=("log_prob", "rank"))
        return token + 0, info.log_prob.exp(), nf.categorical(logits, noise, out=out)

    logits = logits_of(2, 3, 500)
    for seed in range(2, 6):
        out = torch.zeros(2, 3, dtype=torch.int32)
        token, p, written = step(logits, nf.Noise(seed, step=seed), out)
        expected, info = nf.categorical(
            2 * logits, nf.Noise(seed, step=seed), temperature=0.7, top_k=40, info=("log_prob", "rank")
        )
        assert torch.equal(token, expected)
        assert torch.equal(p, info.log_prob.exp())
        assert written is out
        assert torch.equal(out, nf.categorical(logits, nf.Noise(seed, step=seed), dtype=torch.int32))
    assert len(graphs) <= 2


def test_what_has_no_gradient_says_so():
    logits = logits_of(1, 2, 50).requires_grad_()
    assert not nf.categorical(logits, NOISE).requires_grad
    with pytest.raises(NotImplementedError, match=r"pass logits\.detach\(\)"):
        nf.categorical(logits, NOISE, info="log_prob")
    with torch.no_grad():
        nf.categorical(logits, NOISE, info="log_prob")


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (TypeError, "out: expected a torch.Tensor", lambda x: nf.categorical(x, NOISE, out=np.zeros((1, 2), int))),
        (TypeError, "out: dtype torch.int16", lambda x: nf.categorical(x, NOISE, out=x[..., 0].short())),
        (NotImplementedError, "temperature: expected a tensor on the CPU", lambda x: nf.categorical(
            x, NOISE, temperature=torch.ones(1, device="meta")
        )),
        (TypeError, "logits: dtype float64", lambda x: nf.categorical(x.double(), NOISE)),
        (TypeError, "logits: dtype torch.int64", lambda x: nf.categorical(x.long(), NOISE)),
        (TypeError, "dtype torch.int16", lambda x: nf.categorical(x, NOISE, dtype=torch.int16)),
        (ValueError, "logits.0, 1.: has a NaN", lambda x: nf.categorical(x * torch.tensor([[1.0], [np.nan]]), NOISE)),
        (NotImplementedError, "expected a tensor on the CPU", lambda x: nf.categorical(x.to("meta"), NOISE)),
    ],
)  # fmt: skip
def test_bad_input(kind, message, call):
    with pytest.raises(kind, match=message):
        call(logits_of(1, 2, 50))
