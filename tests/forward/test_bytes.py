# SPDX-License-Identifier: Apache-2.0
"""Results in bytes: q_sample, q_step, update and samplers, on every backend and path."""

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, using

SCHEDULE, COSINE, N = nf.Schedule.linear(1000), nf.Schedule.cosine(50), nf.Noise(7, sample=5, step=2)
SHAPE, T = (3, 6, 35), np.array([0, 10, 300])
BYTES = np.dtype(np.uint8)
MASKED = nf.samplers.ddim(SCHEDULE, 5, clip=1.0).tableau.transpose(1)["x"]
KINDS = {**DTYPES, "uint8": BYTES}


def data(dtype, seed=0):
    if dtype == BYTES:
        return np.random.default_rng(seed).integers(0, 256, SHAPE).astype(np.uint8)
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(dtype)


def rounded(x, scale=127.5, offset=127.5):
    return np.clip(np.rint(x.astype(np.float64) * scale + offset), 0, 255).astype(np.uint8)


def close(found, expected):
    """But where two roundings of what is nearly half differ."""
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.004


def calls(dtype):
    x, m = data(dtype), data(dtype, 1)
    ddpm = nf.samplers.ddpm(SCHEDULE, 10).tableau
    yield "q_sample", lambda **to: nf.q_sample(x, T, SCHEDULE, N, **to)
    yield "q_sample at a time between", lambda **to: nf.q_sample(x, 0.3, COSINE, N, scale=0.5, **to)
    yield "q_step", lambda **to: nf.q_step(x, T, SCHEDULE, N, **to)
    if dtype != BYTES:
        yield "update", lambda **to: nf.update(ddpm, [1, 5, 9], x, m, noise=N, **to)
        yield "update of one row", lambda **to: nf.update(ddpm, 9, x, m, noise=N, **to)


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_in_bytes_is_the_float_rounded(backend, kind):
    """And has the reference's bits. Seen to fail: an offset that is left out, a scale that misses the noise."""
    dtype = KINDS[kind]
    wide = np.float32 if dtype.itemsize < 4 else dtype  # what is rounded is not rounded to 16 bits before
    for (name, call), (_, floats) in zip(calls(dtype), calls(dtype if dtype == BYTES else wide), strict=True):
        if dtype.itemsize == 2:
            continue  # other inputs than those of float32: the hashes have them
        found = call(dtype="uint8")
        close(found, rounded(floats()))
        close(call(dtype="uint8", out_scale=-40, out_offset=100.25), rounded(floats(), -40, 100.25))
        out = np.empty(SHAPE, np.uint8)
        assert call(out=out) is out, name
        assert np.array_equal(out, found), name
        with using("reference"):
            assert np.array_equal(call(dtype="uint8"), found), name


@pytest.mark.parametrize("kind", KINDS)
def test_half_floats_too(backend, kind):
    dtype = KINDS[kind]
    for name, call in calls(dtype):
        found = call(dtype="uint8")
        with using("reference"):
            assert np.array_equal(call(dtype="uint8"), found), name


@pytest.mark.parametrize("target", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_a_target_beside_bytes_stays_float(backend, kind, target):
    for x in (data(KINDS[kind]), np.resize(data(KINDS[kind]), (2, 70_001))):
        found, beside = nf.q_sample(x, 500, SCHEDULE, N, target=target, dtype="uint8")
        x_t, expected = nf.q_sample(x, 500, SCHEDULE, N, target=target)
        close(found, rounded(x_t))
        assert beside.dtype == np.float32
        assert np.array_equal(beside, expected)


@pytest.mark.parametrize("shape", [SHAPE, (3, 4096)])
def test_in_place_of_bytes(backend, shape):
    """Seen to fail: on a device, where x is what tells which kernel can take it."""
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    with using("reference"):
        expected = nf.q_sample(x, T, SCHEDULE, N, dtype="uint8")
    for one in (x, x.copy()):
        assert nf.q_sample(one, T, SCHEDULE, N, out=one) is one
        assert np.array_equal(one, expected)


def test_a_sampler_ends_in_bytes(native):
    sampler = nf.samplers.dpmpp_2m(SCHEDULE, 8)
    start = sampler.start(SHAPE, N)
    found = sampler.sample(lambda x, t: 0.9 * x, start, out=np.empty(SHAPE, np.uint8))
    close(found, rounded(sampler.sample(lambda x, t: 0.9 * x, start)))
    guided = sampler.sample(lambda x, t: (x, 0.9 * x), start, guidance_scale=2.0, out=np.empty(SHAPE, np.uint8))
    close(guided, rounded(sampler.sample(lambda x, t: (x, 0.9 * x), start, guidance_scale=2.0)))


def test_of_tensors():
    torch = pytest.importorskip("torch")
    table = nf.samplers.ddpm(SCHEDULE, 10).tableau
    for dtype in ("float32", "uint8"):
        x, array = torch.from_numpy(data(KINDS[dtype])), data(KINDS[dtype])
        for call in (
            lambda x, **to: nf.q_sample(x, 500, SCHEDULE, N, **to),
            lambda x, **to: nf.q_sample(x, 500, SCHEDULE, N, target="v", **to)[0],
            lambda x, **to: nf.q_sample(x, 0.5, COSINE, N, **to),
            lambda x, **to: nf.q_step(x, 500, SCHEDULE, N, **to),
            lambda x, **to: nf.update(table, 3, x, x, noise=N, **to),
        ):
            try:
                expected = call(array, dtype="uint8")
            except TypeError:  # update takes no bytes
                continue
            for asked in (torch.uint8, "uint8"):
                found = call(x, dtype=asked)
                assert found.dtype == torch.uint8
                assert np.array_equal(found.numpy(), expected)
            torch._dynamo.reset()
            compiled = torch.compile(lambda x, call=call: call(x, dtype=torch.uint8), backend="eager", fullgraph=True)
            assert np.array_equal(compiled(x).numpy(), expected)
    out = torch.empty(SHAPE, dtype=torch.uint8)
    x = torch.from_numpy(data(np.dtype(np.float32)))
    assert nf.q_sample(x, 500, SCHEDULE, N, out=out) is out
    assert np.array_equal(out.numpy(), nf.q_sample(x.numpy(), 500, SCHEDULE, N, dtype="uint8"))
    for call in (nf.q_sample, nf.q_step):
        with pytest.raises(NotImplementedError, match="gradients"):
            call(x.requires_grad_(), 500, SCHEDULE, N, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda x: nf.q_sample(x, 5, SCHEDULE, N, out_scale=2.0), ValueError, "out_scale = 2.0: expected a result in"),
        (lambda x: nf.q_sample(x, 5, SCHEDULE, N, dtype="uint8", out_scale=np.inf), ValueError, "out_scale = inf"),
        (lambda x: nf.q_sample(x, 5, SCHEDULE, N, dtype="uint8", out_offset="x"), TypeError, "out_offset: expected"),
        (lambda x: nf.q_step(x, 5, SCHEDULE, N, dtype="float16"), TypeError, "dtype float16: expected 'uint8'"),
        (lambda x: nf.q_walk(x, SCHEDULE, N, out=np.empty((1000, *SHAPE), np.uint8)), TypeError, "out: expected dtype"),
        (lambda x: nf.randn(SHAPE, N, dtype="uint8"), TypeError, "dtype uint8: expected one of float32"),
        (lambda x: nf.q_sample(x, 5, SCHEDULE, N, dtype="uint8", out=x), TypeError, "out: expected dtype uint8"),
        (lambda x: nf.update(MASKED, 0, x, x, past=[x], dtype="uint8"), ValueError, "gradients are not rounded"),
    ],
)
def test_what_is_wrong_is_said(call, error, said):
    x = data(np.dtype(np.float32))
    before = x.copy()
    with pytest.raises(error, match=said):
        call(x)
    assert np.array_equal(x, before)
