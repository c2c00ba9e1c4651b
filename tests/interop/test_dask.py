# SPDX-License-Identifier: Apache-2.0
"""dask arrays: with any chunks the result is NumPy's, bit for bit; dask names follow from the values.

Seen to fail: blocks that all begin at the first sample; windows that leave out the last axis, or the start of a window
that the noise has already; ids and lists of noises that are not cut; a token without the noise.
"""

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import noisefuse as nf
from conftest import DTYPES, bits, first_and_slow
from cuda_kernels import stand_in
from generated import LINEAR, names, normals, real
from noisefuse import Noise

dask = pytest.importorskip("dask")
import dask.array as da  # noqa: E402

from noisefuse.interop.dask import check_workers  # noqa: E402

SHAPE, CHUNKS = (5, 6, 7), ((2, 3), (1, 5), (3, 3, 1))
X = normals(SHAPE, np.float32)
LAZY = da.from_array(X, CHUNKS)

TABLES = [
    nf.samplers.ddpm(LINEAR, steps=5).tableau,
    nf.samplers.dpmpp_2m(LINEAR, steps=5).tableau,
    nf.samplers.unipc(LINEAR, steps=5).tableau,
]


def equal(lazy, expected):
    """Compares bits, dtype and shape with dask's, too."""
    found = lazy.compute(scheduler="sync")
    assert (lazy.dtype, lazy.shape) == (expected.dtype, expected.shape)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    return np.array_equal(bits(found), bits(expected))


# ---- any chunks --------------------------------------------------------------------------------------------


@st.composite
def parts(draw, n):
    """Draws sizes of chunks that add up to n; some are 1, some 0."""
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=2)))
    return tuple(b - a for a, b in itertools.pairwise([0, *cuts, n]))


@st.composite
def chunked(draw, most=4):
    """Draws (a shape, chunks of it)."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=most)))
    return shape, tuple(draw(parts(n)) for n in shape)


@st.composite
def named(draw, shape, batched, chunks, *, streams=False):
    """Draws a Noise, with or without ids or a window, or a list of them."""
    rows, sample = (shape[0], shape[1:]) if batched and shape else (1, shape)
    if rows and draw(st.integers(0, 3)) == 0:
        return [draw(names(1, sample, streams=streams)) for _ in range(rows)]
    return draw(names(rows, sample, streams=streams))


def lazily(draw, array, chunks):
    """Returns dask's array, or NumPy's, which takes x's chunks."""
    return da.from_array(array, chunks) if draw(st.booleans()) else array


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_arrays_are_numpys_at_any_chunks(data):
    (shape, chunks), batched = data.draw(chunked()), data.draw(st.booleans())
    name, dtype = data.draw(st.sampled_from([("randn", "float32"), ("randn", "float16"), ("uniform", "float64")]))
    noise = data.draw(named(shape, batched, chunks, streams=True))
    options = {"dtype": dtype, "batched": batched}
    draw = getattr(nf, name)
    assert equal(draw(shape, noise, chunks=chunks, **options), draw(shape, noise, **options))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_forward_operations_are_numpys_at_any_chunks(data):
    (shape, chunks), batched = data.draw(chunked()), data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([*DTYPES.values(), np.dtype(np.uint8)]))
    x = normals(shape, np.float32).astype(dtype) if dtype != np.uint8 else np.ones(shape, dtype)
    lazy = da.from_array(x, chunks)
    noise = data.draw(named(shape, batched, chunks))
    axes = data.draw(st.integers(0, len(shape)))
    t = np.asarray(np.random.default_rng(1).integers(1000, size=shape[:axes]))
    some_t = lazily(data.draw, t, chunks[:axes])
    if data.draw(st.booleans()):
        noise_of_sample = normals(shape, real(dtype), 1)
        some_noise = lazily(data.draw, noise_of_sample, chunks)
    else:
        noise_of_sample = some_noise = noise
    found = nf.q_sample(lazy, some_t, LINEAR, some_noise, target="v", batched=batched)
    expected = nf.q_sample(x, t, LINEAR, noise_of_sample, target="v", batched=batched)
    assert all(map(equal, found, expected))
    options = {"batched": batched} | data.draw(st.sampled_from([{}, {"dtype": "uint8"}]))
    assert equal(nf.q_step(lazy, some_t, LINEAR, noise, **options), nf.q_step(x, t, LINEAR, noise, **options))
    kept = {"keep": [0, 3], "batched": batched}
    assert equal(nf.q_walk(lazy, LINEAR, noise, **kept), nf.q_walk(x, LINEAR, noise, **kept))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_of_tableaus_are_numpys_at_any_chunks(data):
    shape, chunks = data.draw(chunked())
    dtype = data.draw(st.sampled_from([*DTYPES.values()]))
    table = data.draw(st.sampled_from(TABLES))
    noise = data.draw(named(shape, True, chunks))
    axes = data.draw(st.integers(0, len(shape)))
    i = np.asarray(np.random.default_rng(1).integers(len(table), size=shape[:axes]))
    arrays = [normals(shape, np.float32, n).astype(dtype) for n in range(4)]
    lazy, lazy_i = [lazily(data.draw, array, chunks) for array in arrays], lazily(data.draw, i, chunks[:axes])
    x, m, *past = arrays
    found = nf.update(table, lazy_i, da.from_array(x, chunks), lazy[1], past=lazy[2:], noise=noise, aux_out=2)
    assert all(map(equal, found, nf.update(table, i, x, m, past=past, noise=noise, aux_out=2)))
    found = nf.update(table, i, da.from_array(x, chunks), lazy[1], past=past, noise=noise, dtype="uint8")
    assert equal(found, nf.update(table, i, x, m, past=past, noise=noise, dtype="uint8"))


# ---- augmentation ------------------------------------------------------------------------------------------


def numbers(draw, shape, chunks, batched, layout):
    """Draws a number, or one for each sample, or for each of its channels: (NumPy's, dask's or the same)."""
    first = 1 if batched else 0
    channel = first if layout == "CHW" else len(shape) - 1
    axes = draw(st.sampled_from([(), *([(0,)] * first), (*range(first), channel)]))
    values = np.random.default_rng(2).uniform(1, 9, [shape[axis] for axis in axes])
    if not axes:
        return float(values), float(values)
    return values, lazily(draw, values, tuple(chunks[axis] for axis in axes))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_augmentation_is_numpys_at_any_chunks(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=3, max_size=4)))
    chunks, batched = tuple(data.draw(parts(n)) for n in shape), data.draw(st.booleans())
    layout, order = data.draw(st.sampled_from(["CHW", "HWC"])), data.draw(st.sampled_from([None, "CHW", "HWC"]))
    options = {"layout": layout, "order": order, "shared": data.draw(st.booleans()), "batched": batched}
    options |= {"clip": data.draw(st.sampled_from([None, (3, 200)]))}
    x = normals(shape, np.float32) if data.draw(st.booleans()) else np.full(shape, 100, np.uint8)
    (a, lazy_a), (b, lazy_b) = (numbers(data.draw, shape, chunks, batched, layout) for _ in "ab")
    sample = shape[1:] if batched else shape
    first = layout == "CHW"
    inner = tuple(sample[1:] if first else sample[:-1])
    counted = sample
    if options["shared"]:
        counted = inner
    elif order is not None and order != layout:
        counted = (*inner, sample[0]) if first else (sample[-1], *inner)
    noise = data.draw(named((shape[0], *counted) if batched else counted, batched, chunks, streams=True))
    name = data.draw(st.sampled_from(["gaussian", "sensor", "multiplicative"]))
    given, lazy = ((a,), (lazy_a,)) if name == "multiplicative" else ((a, b), (lazy_a, lazy_b))
    if name == "gaussian":
        options["mean"], lazy_options, given, lazy = b, {**options, "mean": lazy_b}, (a,), (lazy_a,)
    else:
        lazy_options = options
    function = getattr(nf.augment, name)
    try:
        expected = function(x, *given, noise, **options)
    except (TypeError, ValueError) as error:
        with pytest.raises(type(error)):
            function(da.from_array(x, chunks), *lazy, noise, **lazy_options).compute(scheduler="sync")
        return
    assert equal(function(da.from_array(x, chunks), *lazy, noise, **lazy_options), expected)


def test_samples_are_whole_where_their_power_is_asked_for():
    x, snr = normals((5, 6, 7), np.float32), np.linspace(0, 20, 5)
    whole = da.from_array(x, ((2, 3), 6, 7))
    expected = nf.augment.at_snr(x, snr, Noise(7))
    assert equal(nf.augment.at_snr(whole, snr, Noise(7)), expected)
    assert equal(nf.augment.at_snr(whole, da.from_array(snr, ((2, 3),)), Noise(7)), expected)
    with pytest.raises(ValueError, match="at_snr: samples: expected each of them whole in one block"):
        nf.augment.at_snr(da.from_array(x, CHUNKS), snr, Noise(7))


def test_signals_are_whole_where_their_noise_is_coloured():
    x = normals((5, 6, 7), np.float32)
    expected = nf.augment.coloured(x, 3.0, Noise(7), "pink")
    assert equal(nf.augment.coloured(da.from_array(x, ((2, 3), 6, 7)), 3.0, Noise(7), "pink"), expected)
    with pytest.raises(ValueError, match="coloured: samples: expected each of them whole in one block"):
        nf.augment.coloured(da.from_array(x, CHUNKS), 3.0, Noise(7), "pink")


def test_levels_have_numpys_bits():
    x, levels = np.arange(240, dtype=np.uint8).reshape(5, 6, 8), np.arange(256)
    given = (levels, 0.1 * levels, Noise(7))
    assert equal(nf.augment.by_level(da.from_array(x, 3), *given), nf.augment.by_level(x, *given))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("timed", [True, False])
def test_prepared_images_have_numpys_bits(batched, timed):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)[0 if not batched else slice(None)]
    chunks = ((2, 3), (1, 5), (3, 3, 1), 3)[0 if batched else 1 :]
    options = {"scale_mean": [0.4, 0.5, 0.6], "scale_std": 0.5, "batched": batched}
    t = np.array([1, 5, 20, 30, 900]) if batched else 5
    for some in [t, da.from_array(t, ((2, 3),))] if batched else [t]:
        numbers = {"t": t, "schedule": LINEAR} if timed else {"noise_std": t}
        lazy = {"t": some, "schedule": LINEAR} if timed else {"noise_std": some}
        found = nf.augment.prepare(da.from_array(images, chunks), noise=Noise(7), **options, **lazy)
        expected = nf.augment.prepare(images, noise=Noise(7), **options, **numbers)
        assert all(map(equal, found, expected)) if timed else equal(found, expected)
        why = "t is given" if timed else "noise_std is not 0"
        with pytest.raises(TypeError, match=f"noise: expected a Noise, as {why}"):
            nf.augment.prepare(da.from_array(images, chunks), **options, **lazy)
    assert equal(nf.augment.prepare(da.from_array(images, chunks), **options), nf.augment.prepare(images, **options))


def test_randn_like():
    for x in X, np.zeros(SHAPE, np.uint8), np.zeros(SHAPE):
        assert equal(nf.randn_like(da.from_array(x, CHUNKS), Noise(7)), nf.randn_like(x, Noise(7)))
    assert equal(nf.randn_like(LAZY, Noise(7), dtype="float64"), nf.randn_like(X, Noise(7), dtype="float64"))


# ---- samplers ----------------------------------------------------------------------------------------------


def network(x, t):
    """It depends on each element, so that blocks are enough; the network's use of a time is in the bits."""
    return np.tanh(x) * np.reshape(t, (-1, *[1] * (x.ndim - 1)) if np.ndim(t) else ()).astype(x.dtype) / 1000


@pytest.mark.parametrize("make", ["ddpm", "unipc", "pndm", "heun"])
@pytest.mark.parametrize("guided", [None, 3.0, np.linspace(1, 5, 5)], ids=["plain", "guided", "guided apart"])
def test_samplers_run_on_blocks(make, guided):
    sampler, noise = getattr(nf.samplers, make)(LINEAR, steps=5), Noise(7, sample=[3, 1, 4, 15, 9])
    pair = (lambda m: m) if guided is None else (lambda m: (m, 2 * m))
    options = {"noise": noise, "guidance_scale": guided}
    expected = sampler.sample(lambda x, t: pair(network(x, t)), SHAPE, **options)
    x = sampler.start(SHAPE, noise, chunks=CHUNKS)
    assert equal(sampler.sample(lambda x, t: pair(x.map_blocks(network, t)), x, **options), expected)


def test_samplers_take_times_in_blocks():
    sampler, noise = nf.samplers.ddim(LINEAR, steps=3), Noise(7)
    x, t = sampler.model_input(1, LAZY, time="batch")
    assert (x is LAZY, t.chunks, t.dtype) == (True, CHUNKS[:1], np.int64)
    assert equal(t, sampler.model_input(1, X, time="batch")[1])
    assert equal(sampler.noised(1, LAZY, noise), sampler.noised(1, X, noise))


def test_what_samplers_do_not_do_with_blocks():
    sampler, noise = nf.samplers.ddim(LINEAR, steps=3), Noise(7)
    with pytest.raises(NotImplementedError, match="callback"):
        sampler.sample(lambda x, t: x, LAZY, noise, callback=print)
    with pytest.raises(TypeError, match="not written to"):
        sampler.step(0, LAZY, LAZY, noise, denoised_out=LAZY)
    flow = nf.samplers.flow_sde(nf.Schedule.flow(50), steps=3)
    for call in (
        lambda: flow.step(0, LAZY, LAZY, noise, log_prob=True),
        lambda: flow.log_prob(0, LAZY, LAZY, LAZY),
        lambda: flow.kl(0, LAZY, LAZY),
    ):
        with pytest.raises(NotImplementedError, match="does not offer that for arrays of dask"):
            call()
    clipped = nf.samplers.ddim(LINEAR, steps=3, clip=nf.samplers.Threshold())
    with pytest.raises(NotImplementedError, match="Threshold"):
        clipped.step(0, LAZY, LAZY, noise)


# ---- tokens ------------------------------------------------------------------------------------------------

TOKENS = np.random.default_rng(0).integers(0, 9, (5, 12))
LOGITS = np.random.default_rng(1).normal(size=(5, 12, 9)).astype(np.float32)
SOME, ENDS, P = TOKENS > 2, np.array([12, 3, 0, 7, 9]), np.linspace(0.2, 0.8, 5)
MATRICES = np.random.default_rng(2).random((5, 9, 9))
MATRICES /= MATRICES.sum(-1, keepdims=True)
MASKED = nf.samplers.mdlm(steps=3, mask_id=9)
GUIDED = nf.samplers.llada(steps=3, mask_id=9, cfg_scale=1.0)
N = Noise(7, sample=3)
START = np.full((5, 12), 9)

# Calls of a function that makes an array dask's, with these sizes of its first two axes.
BY_TOKEN = {
    "q_mask": lambda f: nf.q_mask(f(TOKENS), 0.5, N, 99, complement=True),
    "keys": lambda f: nf.q_mask(f(TOKENS), P[:, None], [Noise(k) for k in range(5)], 99, where=SOME, lengths=ENDS),
    "lazy numbers": lambda f: nf.q_mask(f(TOKENS), f(P), N, 99, where=f(SOME), lengths=f(ENDS)),
    "blocks": lambda f: nf.q_mask(f(TOKENS), MATRICES[:, 0, :3], N, 99, block=5),
    "q_uniform": lambda f: nf.q_uniform(f(TOKENS), f(MATRICES[0, 0, 0] * SOME), N.at(sample=ENDS), 9),
    "q_transition": lambda f: nf.q_transition(f(TOKENS), MATRICES[0], N, where=SOME[0], lengths=ENDS),
    "a matrix for each": lambda f: nf.q_transition(f(TOKENS), MATRICES, N),
    "absorbing": lambda f: nf.q_transition(f(TOKENS), nf.discrete.absorbing(0.5, mask_id=9), N),
    "categorical": lambda f: nf.categorical(f(LOGITS), N, info=("log_prob", "rank"), where=SOME),
    "settings": lambda f: nf.categorical(
        f(LOGITS), N, temperature=f(P), top_k=5, positions=np.arange(12), dtype="int32"
    ),
    "cross entropy": lambda f: nf.masked_cross_entropy(f(LOGITS), f(TOKENS), SOME, 1 / (P + 0.1)),
    "of rows": lambda f: nf.masked_cross_entropy(f(LOGITS), TOKENS, f(SOME), 2.0, reduction="none"),
}
BY_SAMPLE = {
    "step": lambda f: MASKED.step(1, f(START), f(LOGITS), N, where=SOME),
    "guided": lambda f: GUIDED.step(1, f(START), (f(LOGITS), -f(LOGITS)), N),
    "sample": lambda f: MASKED.sample(lambda x, t: f(LOGITS), f(START), N),
}  # fmt: skip


@pytest.mark.parametrize("call", [*BY_TOKEN, *BY_SAMPLE])
def test_tokens_by_blocks(call):
    """Seen to fail: positions of a block counted from its start."""
    positions = (5, 4, 3) if call in BY_TOKEN else (12,)
    make = (BY_TOKEN | BY_SAMPLE)[call]
    found = listed(make(lambda a: da.from_array(a, ((2, 3), positions, a.shape[-1:])[: a.ndim])))
    expected = listed(make(lambda a: a))
    assert len(found) == len(expected)
    assert all(isinstance(a, da.Array) and equal(a, np.asarray(b)) for a, b in zip(found, expected, strict=True))


def listed(result):
    """Returns the arrays of a result, in order."""
    if isinstance(result, tuple):
        return [array for part in result if part is not None for array in listed(part)]
    return [result]


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda x, y: nf.q_mask(x, -0.5, N, 99), ValueError, "p = -0.5: expected a probability"),
        (lambda x, y: nf.q_mask(x, 0.5, N, 99, lengths=ENDS + 1), ValueError, "lengths: expected from 0 to 12"),
        (lambda x, y: nf.q_mask(x, da.ones((5, 3)), N, 99, block=5), ValueError, "block = 5, p of shape"),
        (lambda x, y: nf.q_mask(x, 0.5, N, 99, out=x), TypeError, "out: expected None"),
        (lambda x, y: nf.q_transition(x, MATRICES[:2], N), ValueError, "Q: expected a matrix for each of 5 samples"),
        (lambda x, y: nf.categorical(y, N, top_p=0.0), ValueError, "top_p = 0.0"),
        (lambda x, y: nf.categorical(y.rechunk((5, 12, 4)), N), ValueError, "logits: rows: expected each of them"),
        (lambda x, y: nf.categorical(y[0], N), ValueError, r"expected \(B, .., V\) with axes between"),
        (lambda x, y: nf.categorical(y, N, partial=True), NotImplementedError, "partial"),
        (lambda x, y: nf.masked_cross_entropy(y, x[:, :3]), ValueError, r"ids: expected shape \(5, 12\)"),
        (lambda x, y: nf.masked_cross_entropy_and_grad(y, x), NotImplementedError, "does not offer that for"),
        (lambda x, y: MASKED.step(0, x, y, N), ValueError, "step: samples: expected each of them whole"),
        (lambda x, y: MASKED.step(0, x, y, N, log_prob=True), NotImplementedError, "log_prob"),
        (lambda x, y: MASKED.log_prob(0, x, y, x), NotImplementedError, "does not offer that for"),
    ],
)  # fmt: skip
def test_errors_of_tokens_come_before_the_graph(call, kind, said):
    x, y = da.from_array(TOKENS, ((2, 3), (5, 7))), da.from_array(LOGITS, ((2, 3), (5, 7), 9))
    with pytest.raises(kind, match=said):
        call(x, y)


# ---- graphs ------------------------------------------------------------------------------------------------

S = nf.Schedule.cosine(50)


def test_nothing_is_computed_before_it_is_asked_for():
    def fails(block):
        raise AssertionError("computed")

    x = LAZY.map_blocks(fails, dtype="float32", meta=np.empty((0, 0, 0), np.float32))
    t = da.from_array(np.arange(5), CHUNKS[:1]).map_blocks(fails, dtype="int64", meta=np.empty(0, np.int64))
    made = [
        *nf.q_sample(x, t, S, Noise(7), target="v"),
        *nf.update(TABLES[1], t, x, x, past=[x], aux_out=1),
        nf.augment.gaussian(x, t, Noise(7)),
        nf.augment.prepare(x[..., None], noise=Noise(7), noise_std=t),
        nf.randn_like(x, Noise(7)),
    ]
    assert equal(made[-1], nf.randn(SHAPE, Noise(7)))
    for lazy in made[:-1]:
        with pytest.raises(AssertionError, match="computed"):
            lazy.compute(scheduler="sync")


def test_names_are_those_of_the_values():
    """Equal calls have equal names, so that a cluster recognises its results; other calls have other names."""

    def names_of(x=LAZY, t=3, steps=50, noise=7, **options):
        noise = Noise(noise) if isinstance(noise, int) else noise
        return nf.q_sample(x, t, nf.Schedule.cosine(steps), noise, **options).name

    ids = np.array([4, 2, 8, 1, 0])
    for options in {}, {"t": ids}, {"noise": Noise(3, sample=ids)}, {"noise": [Noise(n) for n in range(5)]}:
        assert names_of(**options) == names_of(**options)
    other = [
        {"x": LAZY.rechunk(2)}, {"x": LAZY + 1}, {"t": 4}, {"t": ids}, {"steps": 51},
        {"noise": Noise(8)}, {"noise": Noise(7, step=1)}, {"noise": Noise(7, sample=ids)},
        {"noise": Noise(7).window((9, 9), (1, 0))}, {"noise": [Noise(n) for n in range(5)]}, {"batched": False},
        {"scale": 2.0}, {"dtype": "float64"}, {"noise": LAZY},
    ]  # fmt: skip
    assert len({names_of(), *(names_of(**options) for options in other)}) == len(other) + 1
    assert (
        nf.update(TABLES[0], 0, LAZY, LAZY, noise=Noise(1)).name
        == nf.update(nf.Tableau.from_json(TABLES[0].to_json()), 0, LAZY, LAZY, noise=Noise(1)).name
    )


NAMES = """
import dask.array as da, numpy as np, noisefuse as nf

x, noise, schedule = da.zeros((4, 2, 2, 3), chunks=2), nf.Noise(7, sample=[1, 2, 3, 4]), nf.Schedule.cosine(50)
made = [
    nf.q_sample(x, [1, 2, 3, 4], schedule, noise, target="v")[1],
    nf.q_walk(x, schedule, [nf.Noise(n) for n in range(4)]),
    nf.update(nf.samplers.ddim(schedule, 5).tableau, 0, x, x),
    nf.augment.gaussian(x, np.ones((4, 3)), noise, layout="HWC", shared=True),
    nf.augment.prepare(x.rechunk((2, 2, 2, 3)), noise=noise),
    nf.augment.by_level(x.astype("u1"), np.ones(256), np.ones(256), noise),
]
names = " ".join(lazy.name for lazy in made)
"""


def test_numbers_of_channels_that_are_as_many_as_elements():
    """Seen to fail: numbers along all axes of x taken for its elements."""
    x, std = np.zeros((2, 3), np.float32), np.arange(6.0).reshape(2, 3)
    lazy = nf.augment.gaussian(da.from_array(x, (1, 3)), std, Noise(1), layout="HWC")
    assert np.array_equal(lazy.compute(), nf.augment.gaussian(x, std, Noise(1), layout="HWC"))


def test_names_are_those_of_other_processes():
    """Seen to fail: a token from a function's address."""
    scope = {}
    exec(NAMES, scope)
    done = subprocess.run([sys.executable, "-c", f"{NAMES}\nprint(names)"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == scope["names"].split()


@pytest.mark.parametrize("times", ["one", "NumPy's", "dask's"])
def test_graphs_are_linear_and_tasks_of_one_size(times):
    """Seen to fail: ids that every task gets whole."""
    sizes = {}
    for blocks in 64, 256:
        n = 16 * blocks
        x = da.zeros((n, 4), chunks=(16, 4), dtype="float32")
        t = {"one": 3, "NumPy's": np.arange(n) % 50, "dask's": da.zeros(n, chunks=16, dtype="int64")}[times]
        x_t = nf.q_sample(x, t, S, Noise(7, sample=np.arange(n)))
        graph = dict(x_t.__dask_graph__())
        tasks = [task for key, task in graph.items() if key[0] == x_t.name]
        assert len(tasks) == blocks
        assert len(graph) <= 4 * blocks
        sizes[blocks] = max(len(pickle.dumps(task)) for task in tasks)
    assert sizes[256] <= sizes[64] + 64  # digits of places


def test_meta_tells_the_kind_of_the_blocks():
    x_t, target = nf.q_sample(LAZY.astype(np.uint8), 3, S, Noise(7), target="v", dtype="uint8")
    assert (x_t.dtype, target.dtype) == (np.uint8, np.float32)
    assert type(x_t._meta) is np.ndarray
    assert x_t._meta.shape == (0, 0, 0)
    assert nf.q_walk(LAZY, S, Noise(7), keep=[0, 3]).chunks == ((2,), *CHUNKS)
    assert nf.randn(8, Noise(7), chunks="auto", dtype="bfloat16").dtype.name == "bfloat16"


def test_blocks_that_are_cupys_stay_on_their_device():
    """It runs on a stand-in for CuPy, which cannot concatenate: one block is computed."""
    with stand_in.installed() as cupy:
        x = da.from_array(cupy.asarray(X), CHUNKS, asarray=False)
        for lazy, expected in (
            (nf.q_sample(x, np.arange(5), S, Noise(7)), nf.q_sample(X, np.arange(5), S, Noise(7))),
            (nf.augment.gaussian(x, 2.0, Noise(7)), nf.augment.gaussian(X, 2.0, Noise(7))),
        ):
            assert type(lazy._meta) is type(x._meta) is not np.ndarray
            block = dask.get(dict(lazy.__dask_graph__()), [(lazy.name, 1, 1, 2)])[0]
            assert type(block) is type(x._meta)
            assert np.array_equal(cupy.asnumpy(block), expected[2:, 1:, 6:])


def test_a_block_of_another_process_is_a_call_of_its_own():
    """A task goes through pickle, and is read once."""
    x_t = nf.q_sample(LAZY, np.arange(5), S, Noise(7))
    graph = pickle.loads(pickle.dumps(dict(x_t.__dask_graph__())))
    found = dask.get(graph, [(x_t.name, 1, 1, 2)])[0]
    assert np.array_equal(found, nf.q_sample(X, np.arange(5), S, Noise(7))[2:, 1:, 6:])


@pytest.mark.parametrize("scheduler", first_and_slow(["threads", "processes"]))
def test_schedulers_of_dask(scheduler):
    x_t, target = nf.q_sample(LAZY, np.arange(5), S, Noise(7, sample=[4, 2, 8, 1, 0]), target="v")
    context = {"multiprocessing.context": "spawn", "num_workers": 2}
    with dask.config.set(context):
        found = dask.compute(x_t, target, scheduler=scheduler)
    expected = nf.q_sample(X, np.arange(5), S, Noise(7, sample=[4, 2, 8, 1, 0]), target="v")
    assert all(map(np.array_equal, found, expected))


# ---- errors ------------------------------------------------------------------------------------------------

MANY = da.from_array(np.zeros((5, 6, 7), np.float32), ((4, 1), 6, 7))
UNKNOWN = LAZY[da.from_array(np.ones(5, bool), 5)]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nf.q_sample(UNKNOWN, 3, S, Noise(7)), ValueError, r"unknown sizes: use x.compute_chunk_sizes\(\)"),
        (
            lambda: nf.q_sample(LAZY, 3, S, MANY),
            ValueError,
            r"noise: has chunks \(\(4, 1\), \(6,\), \(7,\)\), and x \(\(2, 3\), \(1, 5\), \(3, 3, 1\)\) along the same",
        ),
        (
            lambda: nf.q_sample(LAZY, da.zeros(5, chunks=5, dtype=int), S, Noise(7)),
            ValueError,
            r"t: has chunks \(\(5,\),\), and x \(\(2, 3\),\) along the same axes: rechunk one of them",
        ),
        (
            lambda: nf.q_sample(LAZY, da.zeros(6, dtype=int), S, Noise(7)),
            ValueError,
            r"t: expected a scalar or a prefix",
        ),
        (lambda: nf.q_sample(LAZY, da.zeros(5, chunks=CHUNKS[:1], dtype=bool), S, Noise(7)), TypeError, "t: expected"),
        (lambda: nf.q_sample(LAZY, 3, S, np.ma.masked_less(X, 0)), TypeError, "noise: masked arrays are not supported"),
        (lambda: nf.q_sample(LAZY, 50, S, Noise(7)), IndexError, "t = 50 is out of range"),
        (lambda: nf.q_sample(LAZY, [0, 1, 2, 3, 99], S, Noise(7)), IndexError, "t = 99 is out of range"),
        (lambda: nf.q_sample(LAZY, 3, S, Noise(7, sample=2**56 - 4)), OverflowError, "go beyond 2"),
        (lambda: nf.q_sample(LAZY, 3, S, Noise(7, sample=[1, 2])), ValueError, "has 2 sample ids, expected one for"),
        (lambda: nf.q_sample(LAZY, 3, S, [Noise(7)]), ValueError, "expected one Noise for each of 5 samples, got 1"),
        (
            lambda: nf.q_sample(LAZY, 3, S, Noise(7).window((6, 8), (1, 0))),
            ValueError,
            "noise window: a slice of shape",
        ),
        (lambda: nf.q_sample(LAZY, 3, S, 7), TypeError, "a bare seed"),
        (lambda: nf.q_sample(LAZY, 3, S, Noise(7), target="eps"), ValueError, "target = 'eps'"),
        (lambda: nf.q_sample(LAZY.astype(int), 3, S, Noise(7)), TypeError, "dtype int64 is not supported"),
        (lambda: nf.q_sample(LAZY, 3, S, Noise(7), out=X.copy()), TypeError, "out: expected None"),
        (lambda: nf.q_step(LAZY, 3, S, Noise(7, stream=64)), ValueError, "stream of its own"),
        (lambda: nf.q_step(LAZY, 3, S, Noise(7, step=2**32 - 2)), OverflowError, "step"),
        (lambda: nf.q_walk(LAZY, S, Noise(7), keep=[3, 3]), ValueError, "strictly increasing"),
        (lambda: nf.q_walk(LAZY, S, LAZY), TypeError, "q_walk draws at every time"),
        (lambda: nf.randn(2**34 + 4, Noise(7), chunks=1 << 30, batched=False), OverflowError, "2.34 elements"),
        (lambda: nf.randn(SHAPE, Noise(7), chunks=2, out=X), TypeError, "out: expected None"),
        (lambda: nf.randn(SHAPE, Noise(7), chunks=2, device="cpu"), TypeError, "device: expected None"),
        (lambda: nf.randn((2, -1), Noise(7), chunks=2), ValueError, "lengths of at least 0"),
        (lambda: nf.randn(SHAPE, Noise(7), chunks=2, dtype="int8"), TypeError, "dtype int8"),
        (lambda: nf.uniform(SHAPE, Noise(7), chunks=2, dtype="float16"), TypeError, "dtype float16"),
        (
            lambda: nf.update(TABLES[0], 0, LAZY, MANY, noise=Noise(7)),
            ValueError,
            r"m1: has chunks .*, and x .* rechunk",
        ),
        (lambda: nf.update(TABLES[0], 0, LAZY, LAZY), TypeError, "the row draws noise"),
        (lambda: nf.update(TABLES[0], 0, LAZY, noise=Noise(7)), TypeError, "the table reads it"),
        (lambda: nf.update(TABLES[0], 0, LAZY, LAZY, noise=Noise(7), aux_out=[X]), TypeError, "not written to"),
        (
            lambda: nf.mse_loss(LAZY, LAZY, 3, S, Noise(7), target="v"),
            NotImplementedError,
            "mse_loss: noisefuse does not offer",
        ),
        (lambda: nf.augment.gaussian(LAZY, -1.0, Noise(7)), ValueError, "std = -1.0: expected finite"),
        (lambda: nf.augment.gaussian(LAZY, [1.0, 2], Noise(7)), ValueError, r"std: expected shape \(5,\), got \(2,\)"),
        (lambda: nf.augment.gaussian(LAZY, np.ones((5, 4)), Noise(7)), ValueError, "expected as many channels"),
        (lambda: nf.augment.gaussian(LAZY, 1.0, Noise(7), shared=True), ValueError, "layout = None"),
        (lambda: nf.augment.gaussian(LAZY, 1.0, LAZY, shared=True, layout="CHW"), TypeError, "an array"),
        (lambda: nf.augment.prepare(LAZY[None], noise=Noise(7)), ValueError, "channels: expected each of them whole"),
    ],
)
def test_errors_come_at_once(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_what_only_blocks_know_is_said_when_they_are_computed():
    t = da.from_array(np.array([0, 1, 2, 3, 99]), CHUNKS[:1])
    with pytest.raises(IndexError, match="t = 99 is out of range"):
        nf.q_sample(LAZY, t, S, Noise(7)).compute(scheduler="sync")


def test_other_collections_of_dasks_are_no_arrays():
    with pytest.raises(TypeError, match="x: expected a dask array, got Delayed"):
        nf.q_sample(dask.delayed(X), 3, S, Noise(7))


# ---- clusters ----------------------------------------------------------------------------------------------


class Workers:
    """A client of so many workers, of which the last differ."""

    def __init__(self, *answers):
        self.answers = answers

    def run(self, function, on_error):
        return {f"tcp://{n}": answer or function() for n, answer in enumerate(self.answers)}


def test_workers_that_differ_are_named():
    check_workers(Workers(None, None))
    with pytest.raises(RuntimeError, match=r"1 of 2 workers differ; here is .*\ntcp://1: cannot import noisefuse"):
        check_workers(Workers(None, "cannot import noisefuse: No module"))
