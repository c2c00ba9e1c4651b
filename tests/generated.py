# SPDX-License-Identifier: Apache-2.0
"""Generated arguments of calls, for the tests of several operations: arrays in many layouts, times, noises."""

import math

import numpy as np
from hypothesis import strategies as st

import noisefuse as nf

LINEAR = nf.Schedule.linear()
CONTINUOUS = [nf.Schedule.cosine(50), nf.Schedule.flow(50, shift=3.0), nf.Schedule.karras(50)]
SCHEDULES = [LINEAR, *CONTINUOUS, nf.Schedule([0.75, 0.5, 0.0], [0.5, 1.0, 3.0])]
TARGETS = ("epsilon", "v", "flow", "sample")

BYTES = np.dtype(np.uint8)


def real(dtype):
    """The bits of the arithmetic, and of the noise."""
    return np.float64 if dtype == np.float64 else np.float32


def normals(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def targets(schedule, t):
    """The velocity needs a function of time, and may be infinite at clean data."""
    at_clean = np.asarray(t).dtype.kind == "f" and np.any(np.asarray(t) == 0)
    return TARGETS if schedule not in CONTINUOUS or at_clean else (*TARGETS, "velocity")


def plain(x):
    return x


def fortran(x):
    return x.copy(order="F")


def negative(x):
    return np.asarray(np.flip(np.flip(x).copy()))


def strided(x):
    wide = np.zeros((*x.shape, 3), x.dtype)
    wide[..., 1] = x
    return wide[..., 1]


def broadcast(x):
    return np.broadcast_to(x[..., :1], x.shape) if x.ndim and x.size else x


def read_only(x):
    x.flags.writeable = False
    return x


def unaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)
    moved = raw[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    return moved


def swapped(x):
    return x if x.dtype.kind == "V" else x.astype(x.dtype.newbyteorder())


LAYOUTS = [plain, plain, fortran, negative, strided, broadcast, read_only, unaligned, swapped]


shapes = st.one_of(
    st.lists(st.integers(0, 7), max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=3).map(sorted),
    st.tuples(st.integers(1, 300), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.sampled_from([15, 16, 17, 63, 64, 65, 127, 255, 256, 257, 1000, 2049])),
    st.tuples(st.integers(1, 3), st.integers(33000, 40000)),
).map(tuple)
seeds = st.integers(0, 2**64 - 1)


def edges(end):
    """Draws integers in [0, end), most often the ends."""
    return st.one_of(st.integers(0, 9), st.integers(max(0, end - 9), end - 1), st.integers(0, end - 1))


@st.composite
def arrays(draw, shape, dtype):
    """Draws a function that makes an array: normals, or any bits at all; in one of many layouts."""
    layout, seed = draw(st.sampled_from(LAYOUTS)), draw(seeds)
    if draw(st.booleans()) and dtype != np.uint8:
        return lambda: layout(normals(shape, dtype, seed))
    size = math.prod(shape) * dtype.itemsize
    return lambda: layout(np.frombuffer(bytearray(np.random.default_rng(seed).bytes(size)), dtype).reshape(shape))


@st.composite
def names(draw, rows, sample_shape, *, streams=True, last=0):
    """Draws a Noise for this many rows, with or without ids and a window; last: the most steps that the call adds."""
    ids = st.lists(edges(2**56), min_size=rows, max_size=rows).map(lambda ids: np.array(ids, np.uint64))
    sample = draw(edges(2**56 - rows) | ids)
    step, stream = draw(edges(2**32 - last)), draw(edges(128)) if streams else 0
    noise = nf.Noise(draw(seeds), sample=sample, step=step, stream=stream)
    if draw(st.booleans()):
        return noise
    start = [draw(st.sampled_from([0, 0, 1, 2, 5])) for _ in sample_shape]
    after = [draw(st.sampled_from([0, 0, 1, 3])) for _ in sample_shape]
    whole = [s + n + a for s, n, a in zip(start, sample_shape, after, strict=True)]
    return noise.window(whole, start)


@st.composite
def noises(draw, shape, batched, **options):
    """Draws a Noise, or a list of them."""
    rows, sample_shape = (shape[0], shape[1:]) if batched and shape else (1, shape)
    if rows > 40 or draw(st.integers(0, 3)):
        return draw(names(rows, sample_shape, **options))
    return [draw(names(1, sample_shape, **options)) for _ in range(rows)]


@st.composite
def indices(draw, shape, n):
    """Draws t: a scalar, or any beginning of the shape, in any integer dtype and layout."""
    dtype = draw(st.sampled_from([np.int64, np.int64, np.int32, np.uint8, np.uint64, np.int16]))
    n = min(n, np.iinfo(dtype).max)
    rng = np.random.default_rng(draw(seeds))
    axes = draw(st.integers(-1, len(shape)))
    if axes < 0:
        return int(rng.integers(n))
    return draw(st.sampled_from(LAYOUTS))(np.asarray(rng.integers(n, size=shape[:axes]), dtype))
