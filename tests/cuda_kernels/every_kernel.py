# SPDX-License-Identifier: Apache-2.0
"""Calls that launch every CUDA kernel on the stand-in, and the comparison of all their bits with native's."""

import re

import ml_dtypes
import numpy as np

import noisefuse as nf

from . import stand_in

KERNELS = re.findall(r"X\((\w+), \(", (stand_in.CSRC / "cuda" / "kernels.cu").read_text())
BFLOAT16 = ml_dtypes.bfloat16
NOISE = nf.Noise(2**63 + 5, sample=2**32 - 1, step=3)


def calls(sample_shape, noise):
    """Yields (name, function of arrays) that launch most kernels of a dtype."""
    linear, weight = nf.Schedule.linear(20), np.linspace(0.5, 2, 20)
    channels, height, width = sample_shape
    window = noise.window((channels, height + 19, width + 67), (0, 0, 7))
    yield "q_sample", lambda x, t, m: nf.q_sample(x, t, linear, noise)
    yield "q_sample of one t", lambda x, t, m: nf.q_sample(x, 7, linear, window)
    yield "target", lambda x, t, m: nf.q_sample(x, t, linear, noise, target="flow")
    yield "array", lambda x, t, m: nf.q_sample(x, t, linear, m, target="v")
    yield "q_walk", lambda x, t, m: nf.q_walk(x, nf.Schedule.linear(3), noise, keep=[0, 2])
    yield "two", lambda x, t, m: nf.update(nf.samplers.ddim(linear, 4).tableau, 1, x, m)
    yield "step", lambda x, t, m: nf.update(nf.samplers.ddim(linear, 4, clip=0.1).tableau, t, x, m)
    yield "drawing", lambda x, t, m: nf.update(nf.samplers.ddpm(linear, 4).tableau, t, x, m, noise=noise)
    yield (
        "gradient",
        lambda x, t, m: nf.update(nf.samplers.ddim(linear, 4, clip=0.1).tableau.transpose()["x"], t, x, m, past=(m,)),
    )
    yield (
        "loss",
        lambda x, t, m: nf.mse_loss_and_grad(m, x, t, linear, noise, target="v", weight=weight, out=m.copy()),
    )
    yield (
        "loss of each, in a window",
        lambda x, t, m: nf.mse_loss(m, x, t, linear, window, target="flow", reduction="none"),
    )
    yield "loss of chunks", lambda x, t, m: nf.mse_loss(m, None, 7, linear, noise, target="epsilon", batched=False)
    yield "gradient of the loss", lambda x, t, m: nf.mse_loss_grad(m, x, t, linear, x, target="v")


def drawn(function, shape, dtype, noise, cupy, there):
    if not there:
        return function(shape, noise, dtype=dtype)
    out = cupy.empty(shape, dtype)
    function(shape, noise, dtype=dtype, out=out)
    return out


def compare(cupy, shape, dtype, noise=NOISE):
    """Makes all calls with samples of one shape and dtype. Samples of a multiple of 8 elements, 1024 at least, lead to
    vector kernels, an odd number of elements to general ones. Returns how many values had native's bits."""
    random, t, values = np.random.default_rng(0), np.arange(shape[0]) % 4, 0
    there = stand_in.ndarray
    x, m = (random.standard_normal(shape).astype(dtype) for _ in range(2))
    found = [(what, call(there(x), there(t), there(m)), call(x, t, m)) for what, call in calls(shape[1:], noise)]
    for top in (255, 65535):
        x = random.integers(0, top + 1, shape).astype(np.min_scalar_type(top))
        given = nf.Schedule.linear(), noise
        found.append((top, *(nf.q_sample(a, b, *given, dtype=dtype) for a, b in ((there(x), there(t)), (x, t)))))
    draws = (nf.randn, nf.uniform)[: 2 if dtype.itemsize >= 4 else 1]
    found += [(draw, *(drawn(draw, shape, dtype, noise, cupy, there) for there in (True, False))) for draw in draws]
    for what, given, expected in found:
        given, expected = (a if isinstance(a, tuple) else (a,) for a in (given, expected))
        for a, b in zip(given, expected, strict=True):
            assert a.get().tobytes() == np.asarray(b).tobytes(), (what, dtype, shape)
            values += np.size(b)
    return values
