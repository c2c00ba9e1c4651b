# SPDX-License-Identifier: Apache-2.0
"""The loss of masked diffusion: its bits on every backend, its values and gradients against float64's, bad input."""

import math

import ml_dtypes
import numpy as np
import pytest

import noisefuse as nf
from conftest import bits, using

loss_of = nf.masked_cross_entropy
both_of = nf.masked_cross_entropy_and_grad
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def case(vocabulary, scale=3.0, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(2, 3, vocabulary)) * scale).astype(dtype)
    return logits, rng.integers(0, vocabulary, (2, 3)), np.array([[1, 0, 1], [1, 1, 0]], bool), rng.random((2, 1)) + 0.5


def exact(logits, ids, masked, weight, upstream=1.0):
    """Returns float64's losses of rows, times their weights, and the gradient of their mean."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
    w = np.where(masked, np.broadcast_to(weight, ids.shape), 0.0)
    losses = -w * np.take_along_axis(log_p, ids[..., None], -1)[..., 0]
    one = np.zeros_like(x)
    np.put_along_axis(one, ids[..., None], 1.0, -1)
    return losses, (w * upstream / ids.size)[..., None] * (np.exp(log_p) - one)


def test_the_loss_and_its_gradient_have_the_bits_of_the_reference(compiled):
    """Seen to fail: rows that do not count left as they are, the gradient's factor rounded twice."""
    for n, vocabulary in enumerate((1, 2, 64, 65, 1000, 4097)):
        logits, ids, masked, weight = case(vocabulary, (3, 0.1, 300)[n % 3], DTYPES[n % 3], n)

        def found(logits=logits, ids=ids, masked=masked, weight=weight):
            loss, gradient = both_of(logits, ids, masked, weight)
            return bits(np.float64(loss)), bits(gradient), bits(loss_of(logits, ids, masked, reduction="none"))

        mine = found()
        with using("reference"):
            assert found() == mine


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_values_and_gradients(compiled, scale, dtype):
    """Seen to fail: the mean over the masked rows alone, weights left out of the gradient."""
    arguments = case(3000, scale, dtype)
    losses, gradient = exact(*arguments, upstream=2.0)
    loss, found = both_of(*arguments, upstream=2.0)
    assert np.isclose(loss, losses.mean(), rtol=1e-6)
    assert np.allclose(loss_of(*arguments, reduction="none"), losses, rtol=3e-7, atol=1e-12)
    assert found.dtype == dtype
    ulp = {4: 2.0**-23}.get(np.dtype(dtype).itemsize, 2.0**-7 if dtype == ml_dtypes.bfloat16 else 2.0**-10)
    assert np.allclose(found.astype(float), gradient, rtol=2 * ulp, atol=2.0**-24 if dtype == np.float16 else 1e-12)


def test_the_sum_of_losses_has_an_upstream_for_each_row(compiled):
    logits, ids, masked, weight = case(50)
    upstream = np.arange(6.0).reshape(2, 3)
    loss, gradient = both_of(logits, ids, masked, weight, reduction="none", upstream=upstream)
    assert np.allclose(gradient, exact(logits, ids, masked, weight, upstream * 6)[1], atol=1e-7)
    assert loss.shape == (2, 3)


def test_the_gradient_may_take_the_place_of_the_logits(compiled):
    for dtype in DTYPES:
        for vocabulary in (50, 5000):
            logits, ids, masked, weight = case(vocabulary, dtype=dtype)
            expected = both_of(logits, ids, masked, weight)
            loss, gradient = both_of(logits, ids, masked, weight, out=logits)
            assert gradient is logits
            assert (loss, bits(gradient)) == (expected[0], bits(expected[1]))


def test_the_gradient_may_lie_where_the_mask_lies(compiled):
    """Seen to fail: the kernel read the mask after it wrote there, and ids that were not checked."""
    logits, ids, masked, weight = case(50)
    ids = np.where(masked, ids, -(10**8))
    expected = both_of(logits, ids, masked, weight)
    gradient = np.empty(logits.shape, np.float32)
    mask = gradient.reshape(-1)[-2:].view(np.bool_)[: masked.size].reshape(masked.shape)
    mask[...] = masked
    loss, _ = both_of(logits, ids, mask, weight, out=gradient)
    assert (loss, bits(gradient)) == (expected[0], bits(expected[1]))


def test_confident_rows_keep_their_digits(compiled):
    """Where p is nearly 1: -log p is within 2 ulp. Seen to fail: sums in float32."""
    logits = np.zeros((1, 1, 1000), np.float32)
    logits[..., 3] = 25.0
    loss, gradient = both_of(logits, [[3]])
    rest = 999 * math.exp(-25.0)
    assert math.isclose(loss, math.log1p(rest), rel_tol=3e-7)
    assert math.isclose(gradient[0, 0, 3], -rest / (1 + rest), rel_tol=3e-7)


def test_a_nan_or_an_id_of_rows_that_do_not_count_changes_no_other_row(compiled):
    """A NaN stays in its row; ids of rows that do not count are not looked at."""
    logits, ids, masked, _ = case(100)
    logits[0, 0, 7], logits[0, 1], logits[1, 0] = np.nan, np.nan, -np.inf
    ids[0, 1] = -100
    losses, gradient = both_of(logits, ids, masked, reduction="none")
    assert np.isnan(losses).tolist() == [[True, False, False], [True, False, False]]
    assert np.isnan(gradient).all(-1).tolist() == np.isnan(losses).tolist()
    assert not gradient[~masked].any()
    assert math.isnan(loss_of(logits, ids, masked))


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_bits_of_threads(compiled, threads):
    rng = np.random.default_rng(3)
    logits, ids = rng.normal(size=(64, 5000)).astype(np.float32), rng.integers(0, 5000, 64)
    loss, gradient = both_of(logits, ids)
    each = [both_of(logits[b : b + 1], ids[b : b + 1], upstream=1 / 64) for b in range(64)]
    assert bits(gradient) == bits(np.concatenate([one[1] for one in each]))
    total = 0.0
    for one, _ in each:
        total += one
    assert loss == total / 64


def test_a_weight_for_each_sample():
    """(B,) and (B, 1), also where there are as many positions as samples. Seen to fail: (B,) weighed positions there,
    and was refused elsewhere."""
    for shape in ((6, 6), (6, 4), (6, 2, 6), (6,)):
        rng = np.random.default_rng(len(shape))
        logits, ids, w = rng.normal(size=(*shape, 9)).astype(np.float32), rng.integers(0, 9, shape), rng.random(6)
        whole = np.broadcast_to(w.reshape(6, *[1] * (len(shape) - 1)), shape)
        expected = loss_of(logits, ids, None, whole, reduction="none")
        for axes in range(len(shape)):
            weight = w.reshape(6, *[1] * axes)
            assert np.array_equal(loss_of(logits, ids, None, weight, reduction="none"), expected)
            made = [both_of(logits, ids, reduction="none", upstream=g)[1] for g in (weight, whole)]
            assert np.array_equal(*made)
    with pytest.raises(ValueError, match=r"weight: expected a number, one for each sample, \(6,\), .*got \(2,\)"):
        loss_of(np.zeros((6, 2, 9), np.float32), np.zeros((6, 2), int), None, np.ones(2))


LOGITS, IDS = np.zeros((2, 3, 50), np.float32), np.zeros((2, 3), int)
BAD = {
    "dtype": (TypeError, "logits: dtype float64", lambda g: loss_of(LOGITS.astype(float), IDS)),
    "ids": (IndexError, "ids: 50 is out of range", lambda g: both_of(LOGITS, IDS + 50, out=g)),
    "ids below": (IndexError, "ids: -1", lambda g: both_of(LOGITS, IDS - 1, out=g)),
    "ids floats": (TypeError, "ids: expected integers", lambda g: both_of(LOGITS, IDS + 0.5, out=g)),
    "ids shape": (ValueError, r"ids: expected shape \(2, 3\)", lambda g: both_of(LOGITS, IDS[0], out=g)),
    "torch's order": (ValueError, "ids: .*tokens last", lambda g: loss_of(LOGITS.swapaxes(1, 2), IDS, IDS == 0)),
    "masked": (TypeError, "masked: expected bool", lambda g: both_of(LOGITS, IDS, IDS, out=g)),
    "masked shape": (ValueError, "masked: .*broadcasts", lambda g: both_of(LOGITS, IDS, [True] * 2, out=g)),
    "weight": (ValueError, "weight: expected numbers >= 0", lambda g: both_of(LOGITS, IDS, None, -1, out=g)),
    "weight nan": (ValueError, "weight: .*got nan", lambda g: both_of(LOGITS, IDS, None, np.nan, out=g)),
    "upstream": (ValueError, "upstream: .*broadcasts", lambda g: both_of(LOGITS, IDS, upstream=[1, 2], out=g)),
    "reduction": (ValueError, "reduction = 'sum'", lambda g: both_of(LOGITS, IDS, reduction="sum", out=g)),
    "out": (ValueError, "out: expected shape", lambda g: both_of(LOGITS, IDS, out=g[0])),
    "overlap": (ValueError, "out overlaps", lambda g: both_of(g.ravel()[:-9], 0, out=g.ravel()[9:])),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    kind, message, call = BAD[name]
    gradient = np.full((2, 3, 50), 9, np.float32)
    with pytest.raises(kind, match=message):
        call(gradient)
    assert (gradient == 9).all()


# ---- torch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autograds_gradient_has_numpys_bits(torch, dtype):
    """Seen to fail: an upstream gradient of 3 that is left out."""
    logits, ids, masked, weight = case(300)
    x = torch.from_numpy(logits).to(getattr(torch, dtype)).requires_grad_()
    given = torch.from_numpy(ids), torch.from_numpy(masked), torch.from_numpy(weight)
    for reduction, factor in (("mean", 1.0), ("mean", 3.0), ("none", 2.0)):
        loss = loss_of(x, *given, reduction=reduction)
        assert loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(factor * loss.sum(), x)
        upstream = factor if reduction == "mean" else np.full((2, 3), factor)
        array = x.detach().float().numpy().astype({"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[dtype])
        expected = both_of(array, ids, masked, weight, reduction=reduction, upstream=upstream)
        assert np.array_equal(loss.detach().numpy(), np.float32(expected[0]))
        assert np.array_equal(gradient.float().numpy(), expected[1].astype(np.float32))


def test_arrays_beside_tensors(torch):
    """Seen to fail: weights of NumPy's that were overwritten before the backward pass; weights in bfloat16, which NumPy
    does not have; Python's floats, rounded to float32; a tensor of torch.func, without a word."""
    logits, ids, masked, _ = case(300)
    x, weight = torch.from_numpy(logits).requires_grad_(), np.array([[0.5], [2.0]])
    loss = 3 * loss_of(x, ids, masked, weight)
    expected = both_of(logits, ids, masked, weight, upstream=3.0)[1]
    half = torch.from_numpy(weight).bfloat16()
    assert loss_of(x, ids, masked, half) == loss_of(x, ids, masked, weight)
    for numbers in (0.1, [[0.1], [0.3]]):
        own = both_of(x.detach(), ids, masked, numbers)[1]
        assert bits(own.numpy()) == bits(both_of(logits, ids, masked, numbers)[1])
    weight[...], ids[...] = 100, 0
    loss.backward()
    assert bits(x.grad.numpy()) == bits(expected)
    with pytest.raises(TypeError, match="logits: expected a tensor with memory of its own"):
        torch.vmap(loss_of)(x.detach(), torch.from_numpy(ids))


def test_gradients_of_torchs_own(torch):
    logits, ids, masked, weight = case(300)
    x, y = (torch.from_numpy(logits).requires_grad_() for _ in range(2))
    given = torch.from_numpy(ids), torch.from_numpy(masked), torch.from_numpy(weight)
    loss_of(x, *given).backward()
    each = torch.nn.functional.cross_entropy(y.flatten(0, 1), given[0].flatten(), reduction="none").view(2, 3)
    (each * given[1] * given[2]).mean().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-8)


def test_the_gradient_of_plain_tensors_and_what_autograd_refuses(torch):
    logits, ids, *_ = case(300)
    x = torch.from_numpy(logits.copy())
    _, gradient = both_of(x, torch.from_numpy(ids), out=x)
    assert gradient is x
    assert np.array_equal(x.numpy(), both_of(logits, ids)[1])
    with pytest.raises(ValueError, match="logits requires grad, so autograd makes its gradient"):
        both_of(x.clone().requires_grad_(), torch.from_numpy(ids))
    x.requires_grad_()
    with pytest.raises(NotImplementedError, match="once: create_graph"):
        torch.autograd.grad(loss_of(x, torch.from_numpy(ids)), x, create_graph=True)


@pytest.mark.slow
def test_compiled_graphs(torch):
    logits, ids, masked, weight = case(300)
    given = torch.from_numpy(ids), torch.from_numpy(masked), torch.from_numpy(weight)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x):
        return 2 * loss_of(3 * x, *given)

    x, y = (torch.from_numpy(logits).requires_grad_() for _ in range(2))
    step(x).backward()
    (2 * loss_of(3 * y, *given)).backward()
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("kind", ["numpy", "torch", "jax"])
def test_labels_of_trainers(kind, request):
    """Rows whose label is -100 do not count. Seen to fail: it was no argument."""
    rng = np.random.default_rng(0)
    logits, ids, masked = (
        rng.normal(size=(3, 6, 9)).astype(np.float32),
        rng.integers(0, 9, (3, 6)),
        rng.random((3, 6)) < 0.5,
    )
    of = np.asarray
    if kind == "torch":
        of = request.getfixturevalue("torch").from_numpy
    elif kind == "jax":
        of = pytest.importorskip("jax").numpy.asarray
    labels, also = np.where(masked, ids, -100), np.arange(6) < 4
    for extra in ({}, {"masked": of(also)}):
        counts = masked & also if extra else masked
        for reduction in ("mean", "none"):
            options = {
                "reduction": reduction,
                "weight": of(np.float64([1, 2, 3]) if kind == "numpy" else np.float32([1, 2, 3])),
            }
            made = nf.masked_cross_entropy_and_grad(of(logits), of(labels), **extra, **options, ignore_index=-100)
            expected = nf.masked_cross_entropy_and_grad(of(logits), of(ids), of(counts), **options)
            for a, b in zip(made, expected, strict=True):
                assert np.array_equal(a, b)
            made = nf.masked_cross_entropy(of(logits), of(labels), **extra, **options, ignore_index=-100)
            assert np.array_equal(made, expected[0])
    if kind == "torch":
        torch = request.getfixturevalue("torch")
        theirs = torch.nn.functional.cross_entropy(of(logits).reshape(-1, 9), of(labels).reshape(-1), reduction="sum")
        found = nf.masked_cross_entropy(of(logits), of(labels), ignore_index=-100)
        assert float(found) == pytest.approx(float(theirs) / 18)
    with pytest.raises(IndexError, match="ids: -100 is out of range"):
        nf.masked_cross_entropy(logits, labels)
    with pytest.raises(TypeError, match="ignore_index = 'a': expected an integer"):
        nf.masked_cross_entropy(logits, labels, ignore_index="a")
