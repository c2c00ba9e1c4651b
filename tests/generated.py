# SPDX-License-Identifier: Apache-2.0
"""Arguments of calls, for the tests of several operations: those of random calls, with Hypothesis choosing."""

import numpy as np
from hypothesis import strategies as st

import arguments
from arguments import COSINE, FLOW, KARRAS, LINEAR, SHORT, Draw

CONTINUOUS = [COSINE, FLOW, KARRAS]
SCHEDULES = [LINEAR, *CONTINUOUS, SHORT]
TARGETS = ("epsilon", "v", "flow", "sample")
BYTES = np.dtype(np.uint8)

draws = st.randoms(use_true_random=False).map(lambda random: Draw(random=random))


def real(dtype):
    """The bits of the arithmetic, and of the noise."""
    return np.float64 if dtype == np.float64 else np.float32


def normals(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def targets(schedule, t):
    """The velocity needs a function of time, and may be infinite at clean data."""
    at_clean = np.asarray(t).dtype.kind == "f" and np.any(np.asarray(t) == 0)
    return TARGETS if schedule not in CONTINUOUS or at_clean else (*TARGETS, "velocity")


def read(text):
    """Returns what a text of arguments.py means, made anew each time."""
    try:
        return eval(text, vars(arguments))
    finally:
        arguments.made.clear()


shapes = draws.map(arguments._shape)


def arrays(shape, dtype):
    """Draws a function that makes an array: normals, or any bits at all; in one of many layouts."""
    texts = draws.map(lambda draw: arguments._array(draw, shape, dtype.name))
    return texts.map(lambda text: lambda: read(text))


def names(rows, sample_shape, *, streams=True):
    """Draws a Noise for this many rows, with or without ids and a window."""
    return draws.map(lambda draw: read(arguments._name(draw, rows, sample_shape, streams)))


def noises(shape, batched, *, streams=True):
    """Draws a Noise, or a list of them."""
    return draws.map(lambda draw: read(arguments._noise(draw, shape, batched, stream=streams)))


def indices(shape, n):
    """Draws t: a scalar, or any beginning of the shape, in any integer dtype."""

    def times(draw):
        t = read(arguments._times(draw, shape, n, False)[0])
        return np.asarray(t, getattr(t, "dtype", np.int64))  # a list may be empty

    return draws.map(times).filter(lambda t: ((t >= 0) & (t < n)).all()).map(lambda t: t if t.ndim else int(t))
