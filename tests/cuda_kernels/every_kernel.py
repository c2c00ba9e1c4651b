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
KEYS_AT_THE_ENDS = nf.Noise(2**64 - 1, sample=2**56 - 4, step=2**32 - 25), nf.Noise(1, sample=2**32 - 2, step=0)


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


def compare_at_ends(cupy, dtype):
    """Compares 2^16 values and more around the ends of blocks: tiles of all vector kernels end at multiples of 8,192
    elements, those of general kernels at 512 or 1,024. Returns how many."""
    values = 0
    for width, noise in zip((1023, 1024, 1025), (*KEYS_AT_THE_ENDS, NOISE), strict=True):
        values += compare(cupy, (3, 2, 4, width), dtype, noise)
    for width in (2731, 2730 + 3):
        values += compare(cupy, (3, 3, 1, width), dtype, KEYS_AT_THE_ENDS[0])
    return values


def flat(results):
    """Yields the arrays of results, which may be tuples."""
    for result in results if isinstance(results, tuple) else (results,):
        yield from flat(result) if isinstance(result, tuple) else (result,)


def counted(value, array):
    """A counter: on the device one that the kernel reads."""
    return array(np.array(value)) if array is stand_in.ndarray else value


def of_all_inputs(*bounds):
    """Returns a row whose three outputs combine all inputs, and D with these bounds."""
    from noisefuse.tableau import D, k, m1, m2, past, x, z

    clean = 0.5 * x + 0.25 * m1 - 0.125 * m2 + 0.0625 * k
    whole = x - 0.5 * m1 + 0.25 * m2 + z + 0.125 * D - k + 0.5 * past[0] - past[1] + 0.75 * past[2] - past[3]
    return nf.Tableau([nf.Row(whole, clean, 2.0 * whole, -0.5 * whole, *bounds)])


def general_calls(dtype, shape=(3, 5, 7)):
    """Yields functions of `array`, which places an array on the device or leaves it where it is. They lead to the parts
    of general kernels that `calls` does not reach: lists of Noises, cut windows, rows of each element, integer levels,
    every dtype beside every other."""
    random, linear = np.random.default_rng(3), nf.Schedule.linear(20)
    x, m = (random.standard_normal(shape).astype(dtype) for _ in range(2))
    t = np.arange(shape[0])
    levels = [random.integers(0, top + 1, shape).astype(np.min_scalar_type(top)) for top in (255, 65535)]
    yield lambda array: nf.q_step(
        array(x), 3, linear, [nf.Noise(k).window((shape[1] + 4, shape[2] + 1 + k), (k, 1)) for k in t.tolist()]
    )
    yield lambda array: nf.q_walk(array(x), linear, [nf.Noise(k) for k in t.tolist()], keep=[0, 19])
    for axes in (2, 3, 4, 6):  # that cannot be merged
        cut = nf.Noise(1).window([3] * axes, [axis % 2 for axis in range(axes)])
        many = random.standard_normal((2, *(2,) * axes)).astype(dtype)
        yield lambda array, y=many, cut=cut: nf.q_step(array(y), 5, linear, cut)
        yield lambda array, y=many, cut=cut: nf.q_walk(array(y), linear, cut, keep=[3])
        yield lambda array, y=many, cut=cut: nf.mse_loss(array(y), None, 5, linear, cut, target="epsilon")
    yield lambda array: nf.q_step(array(x), array(t), linear, nf.Noise(1, sample=[7, 2**40, 9], step=counted(4, array)))
    yield lambda array: nf.q_walk(array(x), linear, nf.Noise(1, sample=[7, 8, 9], step=counted(4, array)))
    yield lambda array: nf.q_sample(
        array(x), np.arange(shape[0] * shape[1]).reshape(shape[:2]) % 20, linear, nf.Noise(1), target="v"
    )
    given = lambda array: {"x": array(x), "model_output": (array(m), array(x)), "past": [array(m)] * 4}  # noqa: E731
    for bounds in ((), (-0.5, 0.5)):
        table = of_all_inputs(*bounds)
        for z in (lambda array: nf.Noise(1), lambda array: array(m)):
            yield lambda array, table=table, z=z: nf.update(table, 0, **given(array), noise=z(array), aux_out=2)
        gradients = table.transpose(3)["x"]
        yield lambda array, table=gradients: nf.update(table, 0, **given(array) | {"past": [array(m)] * 3})
    table = of_all_inputs()
    law = t, linear, nf.Noise(2)
    for reduction in ("mean", "none"):
        options = {"reduction": reduction, "weight": np.linspace(0.5, 2, 20)}
        upstream = np.linspace(1, 2, shape[0]) if reduction == "none" else 0.5
        yield lambda array, o=options: nf.mse_loss_and_grad(array(x), array(m), *law, target="flow", **o)
        yield lambda array, o=options, u=upstream: nf.mse_loss_grad(
            array(x), array(m), *law, target="flow", upstream=array(u) if np.ndim(u) else u, **o
        )
    if shape[1] < 8:
        tokens = random.standard_normal((1, 1100, 5)).astype(dtype)  # more sums than wait in shared memory
        times, weight = np.arange(1100)[None] % 20, np.linspace(0.5, 2, 20)
        yield lambda array: nf.mse_loss(
            array(tokens), None, times, linear, nf.Noise(1), target="epsilon", weight=weight
        )
        if dtype == np.float32:  # more chunks than an unrolled loop takes at once
            whole = random.standard_normal((1, 31 * 4096)).astype(dtype)
            for weights in (None, weight):
                yield lambda array, w=weights: nf.mse_loss(
                    array(whole), None, 5, linear, array(whole), target="epsilon", weight=w
                )
        for pred, upstream in (
            (m, 1e-310),
            (m, 1e300),
            ((m * 1e-160).astype(dtype), 1.0),
        ):  # quotients at the ends of the range
            yield lambda array, y=pred, g=upstream: nf.mse_loss_grad(
                array(y), array(x), t, linear, array(x), target="v", upstream=g
            )
            yield lambda array, y=pred: nf.mse_loss(array(y), array(0 * x), t, linear, array(0 * x), target="v")
    yield lambda array: nf.density.log_prob(table, 0, **given(array), x_next=array(m))
    yield lambda array: nf.density.log_prob_grad(table, 0, **given(array), x_next=array(m))
    for other in map(np.dtype, ("f4", "f8", "f2", BFLOAT16)):
        if other.itemsize <= max(dtype.itemsize, 4):
            y = m.astype(other)
            yield lambda array, y=y: nf.update(nf.samplers.ddim(linear, 4, clip=0.1).tableau, 1, array(x), array(y))
            yield lambda array, y=y: nf.mse_loss_and_grad(array(x), array(y), t, linear, nf.Noise(2), target="v")
    std, same = np.arange(1.0, 1 + shape[0] * shape[-1]).reshape(shape[0], -1) / 10, {"layout": "HWC"}
    for a in levels:
        for target in (None, "epsilon"):
            yield lambda array, a=a, target=target: nf.q_sample(
                array(a), array(t), linear, nf.Noise(1), dtype=dtype, target=target
            )
        yield lambda array, a=a: nf.mse_loss(array(x), array(a), t, linear, nf.Noise(2), target="sample")
        for kind in (a.dtype, dtype if dtype.itemsize >= 4 else np.dtype("f4")):
            yield lambda array, a=a, kind=kind: nf.augment.gaussian(
                array(a), std, nf.Noise(1), mean=3, dtype=kind, **same
            )
            yield lambda array, a=a, kind=kind: nf.augment.sensor(array(a), std, 2.0, nf.Noise(1), dtype=kind, **same)
            yield lambda array, a=a, kind=kind: nf.augment.multiplicative(array(a), 0.2, nf.Noise(1), dtype=kind)
    yield lambda array: nf.augment.poisson(array(levels[0]), np.arange(5.0, 5 + len(x)), nf.Noise(1, sample=2))


def compare_general(dtype, shape=(3, 5, 7)):
    for call in general_calls(dtype, shape):
        given, expected = ([*flat(call(array))] for array in (stand_in.ndarray, np.asarray))
        for a, b in zip(given, expected, strict=True):
            assert a.get().tobytes() == np.asarray(b).tobytes(), dtype
