# SPDX-License-Identifier: Apache-2.0
"""The losses of tokens that jump are those of the papers' codes in float64 under torch's autograd.

They have the same bits on every backend.
"""

import ml_dtypes
import numpy as np
import pytest

import noisefuse as nf
from conftest import bits, using

loss_of = nf.rate_loss
both_of = nf.rate_loss_and_grad
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def case(vocabulary, scale=3.0, dtype=np.float32, seed=0):
    """Logits, clean tokens, x_t, of which some are clean, p and weights."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(2, 4, vocabulary)) * scale).astype(dtype)
    ids, x_t = rng.integers(0, vocabulary, (2, 2, 4))
    x_t[:, ::2] = ids[:, ::2]
    return logits, ids, x_t, rng.uniform(0.05, 0.95, (2, 1)), rng.random((2, 4)) + 0.5


def udlm(torch, logits, ids, x_t, p, weight):
    """The terms of UDLM's bound as its paper has them: sums over all tokens, of the one-hot clean token, too."""
    n, alpha = logits.shape[-1], 1 - p[..., None]
    clean = n * alpha * torch.nn.functional.one_hot(ids, n) + 1 - alpha
    network = n * alpha * logits.softmax(-1) + 1 - alpha
    at, of_network = (bar.gather(-1, x_t[..., None]) for bar in (clean, network))
    first = n / at - n / of_network
    second = (clean / at * (of_network.log() - network.log() + clean.log() - at.log())).sum(-1, keepdim=True)
    return -weight * ((first - second) / n)[..., 0]  # weight: -alpha' / alpha


def flow(torch, logits, ids, x_t, p, weight):
    """The generalised KL of flow_matching's MixturePathGeneralizedKL; weight: its jump coefficient."""
    log_p = logits.log_softmax(-1)
    same = (ids == x_t).to(logits.dtype)
    of_clean = log_p.gather(-1, ids[..., None])[..., 0]
    return -weight * (log_p.gather(-1, x_t[..., None])[..., 0].exp() - same + (1 - same) * of_clean)


CODES = {"uniform": udlm, "flow": flow}


def exact(torch, kind, logits, ids, x_t, p, weight, where=True):
    """Returns float64's losses of rows, and the gradient of their mean."""
    x = torch.from_numpy(logits.astype(np.float64)).requires_grad_()
    rows = [torch.from_numpy(np.broadcast_to(a, ids.shape).copy()) for a in (ids, x_t, p, weight, where)]
    losses = CODES[kind](torch, x, *rows[:4]) * rows[4]
    losses.mean().backward()
    return losses.detach().numpy(), x.grad.numpy()


def of_kind(kind, arguments):
    logits, ids, x_t, p, weight = arguments
    return logits, ids, x_t, p if kind == "uniform" else None, weight


@pytest.mark.parametrize("kind", CODES)
def test_the_loss_and_its_gradient_have_the_bits_of_the_reference(compiled, kind):
    """Seen to fail: shares in float64 in the reference."""
    where = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], bool)
    for n, vocabulary in enumerate((1, 2, 64, 65, 1000, 4097, 9000)):
        arguments = of_kind(kind, case(vocabulary, (3, 0.1, 300)[n % 3], DTYPES[n % 3], n))

        def found(arguments=arguments):
            loss, gradient = both_of(*arguments, where=where)
            return bits(np.float64(loss)), bits(gradient), bits(loss_of(*arguments, where=where, reduction="none"))

        mine = found()
        with using("reference"):
            assert found() == mine


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
@pytest.mark.parametrize("vocabulary", [27, 5000, 32000])
@pytest.mark.parametrize("kind", CODES)
def test_values_and_gradients_are_those_of_the_codes(torch, kind, vocabulary, scale, dtype):
    """Within 1e-6. Seen to fail: the offset of x_t = x_0 with V in place of V - 1; a gradient without the token x_t's
    own term."""
    arguments = case(vocabulary, scale, dtype, vocabulary)
    losses, gradient = exact(torch, kind, *arguments)
    loss, found = both_of(*of_kind(kind, arguments))
    rows = loss_of(*of_kind(kind, arguments), reduction="none")
    assert np.isclose(loss, losses.mean(), rtol=1e-6)
    assert np.allclose(rows, losses, rtol=1e-6, atol=1e-6 * losses.max())
    ulp = {4: 1e-6}.get(np.dtype(dtype).itemsize, 2.0**-8 if dtype == ml_dtypes.bfloat16 else 2.0**-11)
    assert found.dtype == dtype
    assert np.allclose(found.astype(float), gradient, rtol=ulp, atol=max(1e-6 * abs(gradient).max(), ulp * 2.0**-14))


def test_a_sure_network_loses_nothing(compiled):
    """A network that gives the clean token all probability has the right rates."""
    ids, x_t = np.array([[3, 5]]), np.array([[3, 6]])
    logits = np.where(np.arange(50) == ids[..., None], 0, -np.inf).astype(np.float32)
    for p in (None, 0.3):
        loss, gradient = both_of(logits, ids, x_t, p, reduction="none")
        assert np.allclose(loss, 0, atol=1e-12)
        assert np.allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("p", [2.0**-32, 1e-6, 1 - 1e-9, 1.0])
def test_the_ends_of_p(torch, compiled, p):
    """Sixteen tokens of one product, with p down to 2^-32."""
    logits, ids, x_t, _, weight = case(1 << 16, 20.0)
    logits[0, 0] = np.where(np.arange(1 << 16) < 16, 80.0, logits[0, 0])  # sixteen tokens of one product
    losses, gradient = exact(torch, "uniform", logits, ids, x_t, p, weight)
    loss, found = both_of(logits, ids, x_t, p, weight)
    assert np.isclose(loss, losses.mean(), rtol=1e-6, atol=1e-12)
    assert np.allclose(found, gradient, rtol=1e-5, atol=2e-6 * abs(gradient).max() + 1e-12)


def test_a_nan_changes_no_other_row_and_may_lie_where_none_counts(compiled):
    logits, ids, x_t, p, weight = case(100)
    logits[0, 0, 7], logits[0, 1], logits[1, 0] = np.nan, np.nan, -np.inf
    where = np.ones((2, 4), bool)
    where[0, 1], ids[0, 1], x_t[0, 1] = False, -100, 100
    for p_of in (p, None):
        losses, gradient = both_of(logits, ids, x_t, p_of, weight, where=where, reduction="none")
        assert np.isnan(losses).tolist() == [[True, False, False, False], [True, False, False, False]]
        assert np.isnan(gradient).all(-1).tolist() == np.isnan(losses).tolist()
        assert not gradient[0, 1].any()


def test_the_gradient_may_take_the_place_of_the_logits(compiled):
    for dtype in DTYPES:
        for vocabulary in (50, 5000):
            for kind in CODES:
                arguments = of_kind(kind, case(vocabulary, dtype=dtype))
                expected = both_of(*arguments)
                loss, gradient = both_of(*arguments, out=arguments[0])
                assert gradient is arguments[0]
                assert (loss, bits(gradient)) == (expected[0], bits(expected[1]))


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_bits_of_threads(compiled, threads):
    rng = np.random.default_rng(3)
    logits, (ids, x_t) = rng.normal(size=(64, 5000)).astype(np.float32), rng.integers(0, 5000, (2, 64))
    p = rng.uniform(0.1, 0.9, 64)
    _, gradient = both_of(logits, ids, x_t, p)
    each = [both_of(logits[b : b + 1], ids[b : b + 1], x_t[b : b + 1], p[b], upstream=1 / 64)[1] for b in range(64)]
    assert bits(gradient) == bits(np.concatenate(each))


def test_the_uniform_weight_of_a_schedule():
    """p' / (1 - p), -alpha' / alpha. Seen to fail: it was no kind."""
    t = np.array([0.1, 0.5, 0.9])
    for schedule in (nf.discrete.linear(), nf.discrete.cosine()):
        slope = (schedule(t + 1e-6) - schedule(t - 1e-6)) / 2e-6
        assert np.allclose(schedule.weight(t, "uniform"), slope / (1 - schedule(t)), rtol=1e-6)


LOGITS, IDS = np.zeros((2, 3, 50), np.float32), np.zeros((2, 3), int)
BAD = {
    "x_t": (IndexError, "x_t: 50 is out of range", lambda g: both_of(LOGITS, IDS, IDS + 50, 0.5, out=g)),
    "no x_t": (TypeError, "x_t: expected integers, got None", lambda g: both_of(LOGITS, IDS, None, 0.5, out=g)),
    "x_t floats": (TypeError, "x_t: expected integers", lambda g: both_of(LOGITS, IDS, IDS + 0.5, 0.5, out=g)),
    "x_t shape": (ValueError, r"x_t: expected shape \(2, 3\)", lambda g: both_of(LOGITS, IDS, IDS[0], 0.5, out=g)),
    "p": (ValueError, r"p: expected numbers from 2\^-32 to 1, got 0", lambda g: both_of(LOGITS, IDS, IDS, 0, out=g)),
    "p nan": (ValueError, "p: .*got nan", lambda g: both_of(LOGITS, IDS, IDS, [0.5, np.nan], out=g)),
    "p above": (ValueError, "p: .*got 1.5", lambda g: both_of(LOGITS, IDS, IDS, 1.5, out=g)),
    "p shape": (ValueError, "p: .*broadcasts", lambda g: both_of(LOGITS, IDS, IDS, np.full(4, 0.5), out=g)),
    "where": (TypeError, "where: expected bool", lambda g: both_of(LOGITS, IDS, IDS, None, where=IDS, out=g)),
    "weight": (ValueError, "weight: expected numbers >= 0", lambda g: both_of(LOGITS, IDS, IDS, None, -1, out=g)),
    "reduction": (ValueError, "reduction = 'sum'", lambda g: both_of(LOGITS, IDS, IDS, None, reduction="sum", out=g)),
    "out": (ValueError, "out: expected shape", lambda g: both_of(LOGITS, IDS, IDS, None, out=g[0])),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    kind, message, call = BAD[name]
    gradient = np.full((2, 3, 50), 9, np.float32)
    with pytest.raises(kind, match=message):
        call(gradient)
    assert (gradient == 9).all()


# ---- torch and JAX -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CODES)
def test_autograds_gradient_has_numpys_bits(torch, kind):
    logits, ids, x_t, p, weight = of_kind(kind, case(300))
    x = torch.from_numpy(logits).requires_grad_()
    given = [a if a is None else torch.from_numpy(a) for a in (ids, x_t, p, weight)]
    for reduction, factor in (("mean", 1.0), ("mean", 3.0), ("none", 2.0)):
        loss = loss_of(x, *given, reduction=reduction)
        (gradient,) = torch.autograd.grad(factor * loss.sum(), x)
        upstream = factor if reduction == "mean" else np.full(ids.shape, factor)
        expected = both_of(logits, ids, x_t, p, weight, reduction=reduction, upstream=upstream)
        assert np.array_equal(loss.detach().numpy(), np.float32(expected[0]))
        assert np.array_equal(gradient.numpy(), expected[1])
    with pytest.raises(NotImplementedError, match=r"p: .*gradient"):
        loss_of(x, given[0], given[1], torch.full((2, 1), 0.5, requires_grad=True))


@pytest.mark.slow
def test_compiled_graphs(torch):
    logits, ids, x_t, p, weight = case(300)
    given = [torch.from_numpy(a) for a in (ids, x_t, p, weight)]
    for kind in (given, [*given[:2], None, given[3]]):

        @torch.compile(fullgraph=True, backend="aot_eager")
        def step(x, kind=kind):
            return 2 * loss_of(3 * x, *kind)

        x, y = (torch.from_numpy(logits).requires_grad_() for _ in range(2))
        step(x).backward()
        (2 * loss_of(3 * y, *kind)).backward()
        assert torch.equal(x.grad, y.grad)


def test_jaxs_gradient_has_numpys_bits():
    jax = pytest.importorskip("jax")
    logits, ids, x_t, p, weight = case(300)
    p, weight = np.float32(p), np.float32(weight)
    for share in (p, None):
        expected = both_of(logits, ids.astype(np.int32), x_t.astype(np.int32), share, weight)
        given = [None if a is None else jax.numpy.asarray(a) for a in (ids, x_t, share, weight)]
        value, gradient = jax.jit(jax.value_and_grad(lambda x, given=given: loss_of(x, *given)))(logits)
        assert np.float32(expected[0]) == value
        assert np.array_equal(gradient, expected[1])
