# SPDX-License-Identifier: Apache-2.0
"""Log-densities of tensors: the bits of arrays, gradients through autograd, torch.compile."""

import numpy as np
import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")

SAMPLER = nf.samplers.flow_sde(nf.Schedule.flow(1000), 10)
TABLE, N = SAMPLER.tableau, nf.Noise(7, sample=3)


def tensors(shape=(2, 4, 9), dtype=torch.float32, n=2):
    return tuple(nf.randn(shape, nf.Noise(100 + k), dtype=torch.float64).to(dtype) for k in range(n))


def naive(i, x, m, x_next, reduction="sum"):
    """Computes it in float64, as training frameworks do."""
    row = TABLE.unfolded().rows["out"][i]
    x, m, x_next = (a.double() for a in (x, m, x_next))
    std = torch.tensor(row["z"])
    mean = row["x"] * x + row["m1"] * m
    each = -((x_next.detach() - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * np.log(2 * np.pi)
    return getattr(each.flatten(1), reduction)(dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_have_the_bits_of_arrays(dtype):
    x, m = tensors(dtype=dtype)
    x_next, found = SAMPLER.step(4, x, m, N, log_prob=True)
    assert (x_next.dtype, found.dtype) == (dtype, torch.float64)
    assert torch.equal(x_next, SAMPLER.step(4, x, m, N))
    assert torch.equal(SAMPLER.log_prob(4, x, m, x_next), found)
    torch.testing.assert_close(found, naive(4, x, m, x_next), rtol=1e-6, atol=0)
    if dtype != torch.bfloat16:
        array, density = SAMPLER.step(4, x.numpy(), m.numpy(), N, log_prob=True)
        assert np.array_equal(array, x_next.numpy())
        assert np.array_equal(density, found.numpy())


def test_autograd_takes_the_fast_path_both_ways(monkeypatch):
    """Seen to fail: the checked path in the forward pass; in the backward pass."""
    for name in ("make_call", "row_index"):
        monkeypatch.setattr(nf.density, name, None)
    x, m, x_next = tensors(n=3)
    found = SAMPLER.log_prob(4, x, m.requires_grad_(), x_next)
    weights = torch.arange(1.0, len(x) + 1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found * weights).sum(), m)
    expected = nf.density.log_prob_grad(SAMPLER.tableau, 4, x, m.detach(), x_next, upstream=weights)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradients_are_those_of_the_formula(reduction):
    """Seen to fail: the sum's gradient used for the mean."""
    x, m, x_next, cond = tensors(dtype=torch.float64, n=4)
    weights = torch.tensor([2.0, -3.0], dtype=torch.float64)
    for at in (4, torch.tensor([4, 1])):
        inputs = [x.clone().requires_grad_(), m.clone().requires_grad_()]
        (SAMPLER.log_prob(at, *inputs, x_next, reduction=reduction) * weights).sum().backward()
        expected = [x.clone().requires_grad_(), m.clone().requires_grad_()]
        rows = [at, at] if isinstance(at, int) else at.tolist()
        parts = [naive(i, *(a[b : b + 1] for a in (*expected, x_next)), reduction) for b, i in enumerate(rows)]
        (torch.cat(parts) * weights).sum().backward()
        for found, wanted in zip(inputs, expected, strict=True):
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-12, atol=1e-13)
    pair = (m.clone().requires_grad_(), cond.clone().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda m, c: SAMPLER.log_prob(4, x, (m, c), x_next, guidance_scale=2.5, reduction=reduction), pair
    )
    assert torch.autograd.gradcheck(lambda m: SAMPLER.kl(4, m, cond, reduction=reduction), m.requires_grad_())


def test_a_step_that_autograd_watches_gives_a_sample_and_its_density():
    x, m = tensors()
    expected, density = SAMPLER.step(4, x, m, N, log_prob=True)
    x_next, found = SAMPLER.step(4, x, m.requires_grad_(), N, log_prob=True)
    assert torch.equal(x_next, expected)
    assert torch.equal(found.detach(), density)
    assert not x_next.requires_grad
    found.sum().backward()
    assert m.grad is not None


def test_a_watched_step_in_place_gives_the_density_of_what_was_there():
    """Seen to fail: the density read x after the step had replaced it, and so did its gradient, without an error."""
    x, m = tensors()
    expected, density = SAMPLER.step(4, x, m, N, log_prob=True)
    x_next, found = SAMPLER.step(4, x, m.requires_grad_(), N, log_prob=True, out=x)
    assert x_next is x
    assert torch.equal(x, expected)
    assert torch.equal(found.detach(), density)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


@pytest.mark.parametrize(
    "wrong", [{"reduction": "max"}, {"density": "half"}, {"partial": True}], ids=lambda wrong: next(iter(wrong))
)
def test_a_watched_step_that_fails_leaves_all_as_it_was(wrong):
    """Seen to fail: the step was written before its density was computed."""
    sampler = nf.samplers.dpmpp_2m_sde(nf.Schedule.linear(1000), 10)
    x, m, out = tensors(n=3)
    state = sampler.state(x)
    sampler.step(0, x, m, N, state)
    before, at, ring = out.clone(), state.at, [a for places in state.moves[1].values() for a in places[0] + places[1]]
    values = [a.clone() for a in ring]
    with pytest.raises((ValueError, NotImplementedError)):
        sampler.step(1, x, m.requires_grad_(), N, state, out=out, log_prob=True, **wrong)
    assert torch.equal(out, before)
    assert state.at == at
    assert all(torch.equal(a, value) for a, value in zip(ring, values, strict=True))


def test_the_ratio_of_a_first_update_is_one():
    x, m = tensors((8, 4, 16, 16), torch.bfloat16)
    x_next, old = SAMPLER.step(4, x, m, N, log_prob=True)
    new = SAMPLER.log_prob(4, x, m.clone().requires_grad_(), x_next)
    assert torch.exp(new - old).tolist() == [1.0] * 8


@pytest.mark.slow
def test_a_compiled_step():
    x, m = tensors()
    expected, density = SAMPLER.step(4, x, m, N, log_prob=True)

    def both(x, m):
        x_next, found = SAMPLER.step(4, x, m, N, log_prob=True)
        return x_next, found.sum()

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    x_next, total = compiled(x, m.requires_grad_())
    assert torch.equal(x_next, expected)
    torch.testing.assert_close(total.detach(), density.sum(), rtol=1e-15, atol=0)
    total.backward()
    assert m.grad is not None


def test_parts_travel_as_tensors():
    x, m = tensors((2, 8, 2048))
    x_next, whole = SAMPLER.step(4, x, m, N, log_prob=True)
    halves = [
        SAMPLER.log_prob(4, *(a[:, cut].contiguous() for a in (x, m, x_next)), partial=True)
        for cut in (slice(0, 4), slice(4, 8))
    ]
    assert all(isinstance(part.sums, torch.Tensor) for part in halves)
    assert torch.equal(nf.density.combine(halves), whole)


def test_what_has_no_gradient():
    x, m, x_next = tensors(n=3)
    with pytest.raises(NotImplementedError, match="x_next: gradients with respect to it are not computed"):
        SAMPLER.log_prob(4, x, m, x_next.requires_grad_())
    with pytest.raises(NotImplementedError, match="noise: gradients"):
        nf.density.update_with_log_prob(TABLE, 4, x, m, torch.zeros_like(x).requires_grad_())
    with pytest.raises(NotImplementedError, match="reference: gradients"):
        SAMPLER.kl(4, x, m.requires_grad_())
    with pytest.raises(TypeError, match=r"model_output \(m1\): expected a torch.Tensor"):
        SAMPLER.log_prob(4, x, m.detach().numpy(), x_next.detach())
