# SPDX-License-Identifier: Apache-2.0
"""Results in bytes and in uint16: q_sample, q_step, update and samplers, on every backend and path."""

from fractions import Fraction

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, using

SCHEDULE, COSINE, N = nf.Schedule.linear(1000), nf.Schedule.cosine(50), nf.Noise(7, sample=5, step=2)
SHAPE, T = (3, 6, 35), np.array([0, 10, 300])
BYTES = np.dtype(np.uint8)
MASKED = nf.samplers.ddim(SCHEDULE, 5, clip=1.0).tableau.transpose(1)["x"]
TOPS = {"uint8": 255, "uint16": 65535}
KINDS = {**DTYPES, "uint8": BYTES, "uint16": np.dtype(np.uint16)}


@pytest.fixture(params=TOPS)
def levels(request):
    return request.param


def data(dtype, seed=0):
    if dtype.kind == "u":
        return np.random.default_rng(seed).integers(0, TOPS[dtype.name] + 1, SHAPE).astype(dtype)
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(dtype)


def rounded(x, levels, scale=None, offset=None):
    half = TOPS[levels] / 2
    scale, offset = half if scale is None else scale, half if offset is None else offset
    return np.clip(np.rint(x.astype(np.float64) * scale + offset), 0, TOPS[levels]).astype(levels)


def close(found, expected):
    """Asserts equality, unless two roundings of a value near a half differ; for uint16 float32's own are up to 2^-8
    levels."""
    assert found.dtype == expected.dtype
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < (0.004 if found.dtype == BYTES else 0.03)


def calls(dtype):
    x, m = data(dtype), data(dtype, 1)
    ddpm = nf.samplers.ddpm(SCHEDULE, 10).tableau
    yield "q_sample", lambda **to: nf.q_sample(x, T, SCHEDULE, N, **to)
    yield "q_sample at a time between", lambda **to: nf.q_sample(x, 0.3, COSINE, N, scale=0.5, **to)
    yield "q_step", lambda **to: nf.q_step(x, T, SCHEDULE, N, **to)
    if dtype.kind != "u":
        yield "update", lambda **to: nf.update(ddpm, [1, 5, 9], x, m, noise=N, **to)
        yield "update of one row", lambda **to: nf.update(ddpm, 9, x, m, noise=N, **to)


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_in_levels_is_the_float_rounded(backend, kind, levels):
    """The result has the reference's bits. Seen to fail: an offset that is left out, a scale that misses the noise."""
    dtype = KINDS[kind]
    for name, call in calls(dtype):
        if dtype.itemsize == 2 and dtype.kind != "u":
            continue  # an unrounded value is not rounded to 16 bits first, so there are no floats to compare with
        found = call(dtype=levels)
        close(found, rounded(call(), levels))
        close(call(dtype=levels, out_scale=-40, out_offset=100.25), rounded(call(), levels, -40, 100.25))
        out = np.empty(SHAPE, levels)
        assert call(out=out) is out, name
        assert np.array_equal(out, found), name
        with using("reference"):
            assert np.array_equal(call(dtype=levels), found), name


@pytest.mark.parametrize("kind", KINDS)
def test_half_floats_too(backend, kind, levels):
    dtype = KINDS[kind]
    for name, call in calls(dtype):
        found = call(dtype=levels)
        with using("reference"):
            assert np.array_equal(call(dtype=levels), found), name


@pytest.mark.parametrize("kind", DTYPES)
def test_rounding_is_exact_to_the_top(backend, kind, levels):
    """v = x if the noise is multiplied by 0. Seen to fail: a top of 65536, halves rounded away from zero."""
    top, dtype = TOPS[levels], KINDS[kind]
    with np.errstate(over="ignore"):  # of float16
        near = np.add.outer([0, top // 4, top // 2, top], np.arange(-3, 4) / 2).reshape(-1).astype(dtype)
        beside = [np.nextafter(near, dtype.type(towards)) for towards in (-np.inf, np.inf)]
        x = np.concatenate([near, *beside, np.array([np.nan, np.inf, -np.inf, -0.0, 1e30]).astype(dtype)])
    expected = [
        0 if np.isnan(v) else min(max(round(Fraction(v)), 0), top) if np.isfinite(v) else top * (v > 0)
        for v in x.astype(np.float64)
    ]
    found = nf.augment.gaussian(x[None], 0.0, N, dtype=levels)
    assert np.array_equal(found[0], expected)
    # and each level comes through float32 as it is
    every = np.arange(top + 1, dtype=levels)[None]
    assert np.array_equal(nf.augment.gaussian(every, 0.0, N), every)
    assert np.array_equal(nf.q_sample(every, 0, nf.Schedule([1.0], [1e-30]), N, dtype=levels), every)


@pytest.mark.parametrize("size", [1, 15, 63, 64, 65, 4096 + 7, 1 << 23])
def test_of_all_lengths(native, size, levels):
    """It holds past the caches, too; and memory behind the result stays."""
    x = np.resize(data(KINDS[levels]), (1, size))
    out = np.full(size + 1, 77, levels)
    nf.q_sample(x, 300, SCHEDULE, N, out=out[None, :-1])
    assert out[-1] == 77
    close(out[:-1], rounded(nf.q_sample(x, 300, SCHEDULE, N), levels)[0])
    head = nf.q_sample(x[:, : min(size, 64)], 300, SCHEDULE, N, dtype=levels)
    assert np.array_equal(out[None, :-1][:, :64], head)


def test_the_other_byte_order(native):
    """The bytes are swapped, as in TIFF files."""
    x = data(KINDS["uint16"])
    assert np.array_equal(nf.q_sample(x.astype(">u2"), T, SCHEDULE, N), nf.q_sample(x, T, SCHEDULE, N))


@pytest.mark.parametrize("target", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("kind", ["float32", "uint8", "uint16"])
def test_a_target_beside_levels_stays_float(backend, kind, target, levels):
    for x in (data(KINDS[kind]), np.resize(data(KINDS[kind]), (2, 70_001))):
        found, beside = nf.q_sample(x, 500, SCHEDULE, N, target=target, dtype=levels)
        x_t, expected = nf.q_sample(x, 500, SCHEDULE, N, target=target)
        close(found, rounded(x_t, levels))
        assert beside.dtype == np.float32
        assert np.array_equal(beside, expected)


@pytest.mark.parametrize("shape", [SHAPE, (3, 4096)])
def test_in_place_of_levels(backend, shape, levels):
    """Seen to fail: on a device, where x decides which kernel can take it."""
    x = np.random.default_rng(0).integers(0, TOPS[levels] + 1, shape).astype(levels)
    with using("reference"):
        expected = nf.q_sample(x, T, SCHEDULE, N, dtype=levels)
    for one in (x, x.copy()):
        assert nf.q_sample(one, T, SCHEDULE, N, out=one) is one
        assert np.array_equal(one, expected)


def test_a_sampler_ends_in_levels(native, levels):
    sampler = nf.samplers.dpmpp_2m(SCHEDULE, 8)
    start = sampler.start(SHAPE, N)
    found = sampler.sample(lambda x, t: 0.9 * x, start, out=np.empty(SHAPE, levels))
    close(found, rounded(sampler.sample(lambda x, t: 0.9 * x, start), levels))
    guided = sampler.sample(lambda x, t: (x, 0.9 * x), start, guidance_scale=2.0, out=np.empty(SHAPE, levels))
    close(guided, rounded(sampler.sample(lambda x, t: (x, 0.9 * x), start, guidance_scale=2.0), levels))


def test_of_tensors(levels):
    torch = pytest.importorskip("torch")
    table = nf.samplers.ddpm(SCHEDULE, 10).tableau
    kind = getattr(torch, levels)
    for dtype in ("float32", levels):
        x, array = torch.from_numpy(data(KINDS[dtype])), data(KINDS[dtype])
        for call in (
            lambda x, **to: nf.q_sample(x, 500, SCHEDULE, N, **to),
            lambda x, **to: nf.q_sample(x, 500, SCHEDULE, N, target="v", **to)[0],
            lambda x, **to: nf.q_sample(x, 0.5, COSINE, N, **to),
            lambda x, **to: nf.q_step(x, 500, SCHEDULE, N, **to),
            lambda x, **to: nf.update(table, 3, x, x, noise=N, **to),
        ):
            try:
                expected = call(array, dtype=levels)
            except TypeError:  # update takes no bytes
                continue
            for asked in (kind, levels):
                found = call(x, dtype=asked)
                assert found.dtype == kind
                assert np.array_equal(found.numpy(), expected)
            torch.compiler.reset()
            compiled = torch.compile(lambda x, call=call: call(x, dtype=kind), backend="eager", fullgraph=True)
            assert np.array_equal(compiled(x).numpy(), expected)
    out = torch.empty(SHAPE, dtype=kind)
    x = torch.from_numpy(data(np.dtype(np.float32)))
    assert nf.q_sample(x, 500, SCHEDULE, N, out=out) is out
    assert np.array_equal(out.numpy(), nf.q_sample(x.numpy(), 500, SCHEDULE, N, dtype=levels))
    for call in (nf.q_sample, nf.q_step):
        with pytest.raises(NotImplementedError, match="gradients"):
            call(x.requires_grad_(), 500, SCHEDULE, N, dtype=kind)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda x: nf.q_sample(x, 5, SCHEDULE, N, out_scale=2.0), ValueError, "out_scale = 2.0: expected dtype="),
        (lambda x: nf.q_sample(x, 5, SCHEDULE, N, dtype="uint8", out_scale=np.inf), ValueError, "out_scale = inf"),
        (
            lambda x: nf.q_sample(x, 5, SCHEDULE, N, dtype="uint8", out_offset="x"),
            TypeError,
            "out_offset = 'x': expected",
        ),
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
