# SPDX-License-Identifier: Apache-2.0
"""Copies between layouts have NumPy's result, whatever the strides; and large calls of any layout their own bits."""

import itertools
import time

import numpy as np
import pytest

import noisefuse as nf
from conftest import using
from noisefuse.ground import layouts

S, N = nf.Schedule.linear(), nf.Noise(7)
EXTENSION = layouts._native()


@pytest.fixture(params=["extension", "NumPy"])
def way(request, monkeypatch):
    if request.param == "NumPy":
        monkeypatch.setattr(layouts, "_native", lambda: (np.empty, lambda source, target: False))
    elif EXTENSION[0] is np.empty:
        pytest.skip("the C++ extension was not built")


def random_strides(r, shape, dtype):
    """Returns random numbers in a part of an array, whose axes lie in any order, with gaps and backwards."""
    order, steps = r.permutation(len(shape)), r.choice([1, 1, 1, 2, -1], len(shape))
    whole = r.integers(0, 200, [shape[axis] * abs(s) for axis, s in zip(order, steps, strict=True)]).astype(dtype)
    return np.asarray(whole[tuple(slice(None, None, s) for s in steps)]).transpose(np.argsort(order))


def test_any_strides(way):
    """Seen to fail: tiles at the edges as long as others; merged axes that do not follow one another; an axis left out
    where rows are short."""
    r = np.random.default_rng(5)
    for dtype, most, _ in itertools.product(("u1", "f2", "f4", "f8"), (3, 9, 40, 100), range(40)):
        shape = tuple(r.integers(r.random() > 0.1, most + 1, r.integers(0, 3 if most > 9 else 6)))  # some are empty
        x = random_strides(r, shape, dtype)
        if r.random() < 0.2 and shape:  # an axis of stride 0
            x = np.broadcast_to(x[:1] if x.size else x, shape)
        axes = tuple(map(int, r.permutation(len(shape))))
        made = layouts.copy(x, x.dtype, axes)
        assert np.array_equal(made, x)
        assert made.transpose(axes).flags.c_contiguous
        if dtype != "f8":
            assert np.array_equal(layouts.copy(x, np.float64, axes), x)


@pytest.mark.skipif(EXTENSION[0] is np.empty, reason="the C++ extension was not built")
@pytest.mark.parametrize("channels", [2, 3, 4, 5, 8, 17, 64])
@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "f8"])
def test_channels(dtype, channels):
    """Channels become the last axis and the second one. Seen to fail: a fourth channel, which is the next pixel's
    first one, written for the last pixel: of an array, and of a tile of three pixels."""
    r, copy = np.random.default_rng(5), EXTENSION[1]
    shapes = (1, 1, 1), (2, 1, 3), (2, 3, 3), (1, 1, 4), (3, 8, 8), (2, 5, 67), (1, 5, 137), (1, 64, 64)
    for batch, height, width in shapes:
        whole = r.integers(0, 200, (batch, height, width, channels + 2)).astype(dtype)
        for last in (whole[..., :channels].copy(), whole[..., 1 : channels + 1], whole[::-1, :, ::-1, :channels]):
            first, again = (np.full(last.size + 9, 201, dtype) for _ in range(2))
            channels_first = first[:-9].reshape(batch, channels, height, width).transpose(0, 2, 3, 1)
            assert copy(last, channels_first)
            assert np.array_equal(channels_first, last)
            assert copy(channels_first, again[:-9].reshape(last.shape))
            assert np.array_equal(again[:-9].reshape(last.shape), last)
            assert (first[-9:] == 201).all()
            assert (again[-9:] == 201).all()


@pytest.mark.parametrize("dtype", ["datetime64[s]", "bool", ">f4", "complex64"])
def test_dtypes_that_the_extension_does_not_know(dtype):
    x = np.arange(24).reshape(2, 3, 4).astype(dtype).transpose(2, 0, 1)
    assert np.array_equal(layouts.copy(x, x.dtype, (0, 1, 2)), x)


DDIM, MULTISTEP = nf.samplers.ddim(S, 9), nf.samplers.dpmpp_2m(S, 9)
LARGE = {
    "q_sample": lambda x, last: nf.q_sample(last, [3, 5, 7, 9], S, N, target="flow"),
    "of channels": lambda x, last: nf.q_sample(last, np.arange(4 * x.shape[1]).reshape(4, -1), S, N),
    "ids": lambda x, last: nf.q_step(last, 500, S, N.at(sample=[9, 2, 7, 4])),
    "a list": lambda x, last: nf.q_sample(last, 5, S, [N.at(sample=9 - i) for i in range(4)]),
    "a window": lambda x, last: nf.q_sample(last, 5, S, N.window((80, 80, 80), (3, 5, 9))),
    "float64": lambda x, last: nf.q_sample(last, 5, S, N, dtype="float64"),
    "float16": lambda x, last: nf.q_sample(last, 5, S, N, dtype="float16"),
    "gaussian": lambda x, last: nf.augment.gaussian(last, 10.0, N),
    "clip": lambda x, last: nf.augment.gaussian(last, 10.0, N, clip=(20, 90)),
    "one image": lambda x, last: nf.q_sample(last, 5, S, N, batched=False),
    "out": lambda x, last: nf.augment.gaussian(last, 10.0, N, out=np.empty_like(x)),
    "a step": lambda x, last: DDIM.step(3, last.astype("f4"), last.astype("f4"), N),
    "model output alone": lambda x, last: DDIM.step(3, x.astype("f4"), last.astype("f4"), N),
    "x alone": lambda x, last: DDIM.step(3, last.astype("f4"), x.astype("f4"), N),
    "past": lambda x, last: MULTISTEP.sample(lambda y, t: last.astype("f4"), last.astype("f4"), N),
    "stored noise": lambda x, last: nf.q_sample(last, 5, S, last.astype("f4")),
}
FLOW, LINEAR = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=9).tableau, nf.paths.linear()
TIMES, EACH = [1, 3, 5, 7, 2, 4], np.arange(6.0)
IDS, LIST = N.at(sample=[9, 2, 7, 4, 2**40, 1]), [nf.Noise(7 + i, sample=9 - i) for i in range(6)]
BRIDGE = nf.paths.brownian_bridge(0.1)
# Of floats a, and of others that lie as `last` does.
SUMS = {
    "kl": lambda a, b: nf.density.kl(FLOW, TIMES, b, b / 2),
    "kl of two layouts": lambda a, b: nf.density.kl(FLOW, 3, a, b / 2),
    "kl_grad": lambda a, b: nf.density.kl_grad(FLOW, 3, b, b / 2, upstream=EACH),
    "log_prob": lambda a, b: nf.density.log_prob(FLOW, TIMES, b, b / 2, b / 3),
    "log_prob_grad": lambda a, b: nf.density.log_prob_grad(FLOW, 3, b, b / 2, a / 3),
    "step and log_prob": lambda a, b: nf.density.update_with_log_prob(FLOW, 3, b, b / 2, N),
    "mse_loss": lambda a, b: nf.mse_loss(b, b / 2, TIMES, S, N, target="v", weight=np.arange(1000.0)),
    "of tokens": lambda a, b: nf.mse_loss(b, b / 2, np.arange(6 * a.shape[1]).reshape(6, -1), S, b / 3, target="v"),
    "with its gradient": lambda a, b: nf.mse_loss_and_grad(b, a, TIMES, S, N, target="v"),
    "mse_loss_grad": lambda a, b: nf.mse_loss_grad(b, b / 2, TIMES, S, b / 3, target="v"),
    "interpolate": lambda a, b: nf.interpolate(b, b / 2, EACH / 6, LINEAR, target="velocity"),
    "interpolate_loss": lambda a, b: nf.interpolate_loss(b, b / 2, b / 3, 0.3, LINEAR, target="velocity"),
    "it, with its gradient": lambda a, b: nf.interpolate_loss_and_grad(b, b / 2, b / 3, 0.3, LINEAR, target="velocity"),
    "noise, with its gradient": lambda a, b: nf.mse_loss_and_grad(
        b, b / 2, TIMES, S, IDS, target="v", weight=np.arange(1000.0), reduction="none"
    ),
    "noise, the gradient": lambda a, b: nf.mse_loss_grad(
        b, b / 2, TIMES, S, LIST, target="v", upstream=EACH, reduction="none"
    ),
    "one sample": lambda a, b: nf.mse_loss_and_grad(b, b / 2, 3, S, N, target="v", batched=False),
    "a window": lambda a, b: nf.mse_loss_and_grad(
        b, b / 2, 3, S, N.window(tuple(2 * n for n in a.shape[1:]), (1, 2, 3)), target="v"
    ),
    "interpolate with noise": lambda a, b: nf.interpolate(b, b / 2, EACH / 6, BRIDGE, LIST),
    "a step with noise": lambda a, b: nf.update(FLOW, TIMES, b, b / 2, noise=IDS),
    "into out": lambda a, b: nf.mse_loss_and_grad(b, b / 2, 3, S, N, target="v", out=np.empty(a.shape, a.dtype)),
}
LAID = {
    "channels last": (0, 2, 3, 1), "transposed": (0, 1, 3, 2), "the batch last": (1, 2, 3, 0),
    "rows last": (0, 3, 1, 2), "the batch moved": (1, 0, 2, 3), "three turned": (0, 3, 2, 1),
    "Fortran order": (3, 2, 1, 0),
}  # fmt: skip


def laid(x, axes):
    """Returns the numbers of x in memory where its axes have this order."""
    return np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))


def parts(x):
    """Returns the numbers of x in parts of larger arrays, backwards, and those of one sample for all."""
    wide = np.repeat(np.repeat(x, 2, axis=1), 2, axis=-1)
    yield "channels", np.concatenate([x, x], axis=1)[:, : x.shape[1]]
    yield "columns", wide[:, ::2, :, ::2]
    yield "backwards", np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1]
    yield "channels last, in part", laid(wide, (0, 2, 3, 1))[:, 1::2, :, ::2]
    yield "misaligned", np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape)


@pytest.mark.parametrize("layout", LAID)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("name", SUMS)
def test_large_sums(name, dtype, layout):
    """Losses, densities and gradients are added up in C's order. Seen to fail: a block that writes the rows of its
    neighbours; accumulators of a row that take chunks of two rows; one row for planes of several; noise of a block's
    first columns for those that follow; accumulators that are emptied within a chunk; a box that begins within an axis
    and has all of those after it; sums in the order of arrays that have no planes."""
    axes = LAID[layout]
    for shape in ((6, 3, 64, 64), (6, 3, 61, 67), (6, 9, 64, 64), (6, 70, 17, 31), (6, 6, 32, 40)):
        x = np.random.default_rng(7).random(shape).astype(dtype)
        last = laid(x, axes)
        for threads in (1, 3):
            with nf.set_num_threads(threads):
                found, expected = SUMS[name](x, last), SUMS[name](x, x)
            for one, other in zip(found, expected, strict=True) if type(found) is tuple else [(found, expected)]:
                assert np.array_equal(one, other)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("name", LARGE)
def test_large_calls(name, dtype):
    """Calls of more than 2^15 elements: that elements are turned on the way changes no bit. Seen to fail: an output
    that lies where an input does, in the other order."""
    call = LARGE[name]
    for (channels, height, width), axes in itertools.product(((3, 61, 67), (16, 64, 64), (70, 17, 31)), LAID.values()):
        x = (np.arange(4 * channels * height * width) % 251).astype(dtype).reshape(4, channels, height, width)
        last = laid(x, axes)
        for threads in (1, 3):
            with nf.set_num_threads(threads):
                found, expected = call(x, last), call(x, x)
            for one, other in zip(found, expected, strict=True) if type(found) is tuple else [(found, expected)]:
                assert np.array_equal(one, other)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("name", SUMS)
def test_parts_of_arrays(name, dtype):
    """They are read where they lie, or copied block by block. Seen to fail: a block that goes on after its run."""
    for shape in ((6, 8, 64, 64), (6, 4, 61, 67), (6, 70, 17, 31)):
        x = np.random.default_rng(7).random(shape).astype(dtype)
        expected = SUMS[name](x, x)
        for threads, (_, part) in itertools.product((1, 3), parts(x)):
            with nf.set_num_threads(threads):
                found = SUMS[name](x, part)
            for one, other in zip(found, expected, strict=True) if type(found) is tuple else [(found, expected)]:
                assert np.array_equal(one, other)


def test_arrays_in_several_orders():
    """Each input has its own."""
    x, y, z = np.random.default_rng(7).random((3, 6, 8, 64, 64), np.float32)
    calls = (
        lambda a, b, c: nf.density.log_prob(FLOW, TIMES, a, b, c),
        lambda a, b, c: nf.interpolate_loss_and_grad(a, b, c, 0.3, LINEAR, target="velocity")[1],
        lambda a, b, c: nf.update(FLOW, TIMES, a, b, noise=IDS),
    )
    ways = [*LAID.values(), None]
    for call, one, other, third in itertools.product(calls, ways, ways, ways):
        a, b, c = (v if axes is None else laid(v, axes) for v, axes in ((x, one), (y, other), (z, third)))
        assert np.array_equal(call(a, b, c), call(x, y, z))


def test_an_output_where_a_part_lies():
    """Seen to fail: elements that are read after others were written in their place."""
    whole = np.random.default_rng(1).random((8, 64, 64, 64), np.float32)
    kept = whole.copy()
    for part, out in (
        (whole[:4].transpose(1, 0, 2, 3), whole[:4].reshape(64, 4, 64, 64)),
        (whole[:4].transpose(0, 3, 2, 1), whole[:4]),
        (whole[:, :32], whole[4:].reshape(8, 32, 64, 64)),
        (whole[7::-2], whole[:4]),
    ):
        x, m = part.copy(), part.copy() / 2
        expected = nf.update(DDIM.tableau, 3, x, m)
        assert np.array_equal(nf.update(DDIM.tableau, 3, part, m, out=out), expected)
        whole[:] = kept


def test_few_pixels_of_many_channels():
    """They are copied, since kernels that take a few elements at once are slow. Seen to fail: 70 times C's order."""
    x = np.ones((256, 512, 2, 2), np.float32)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    def seconds(x):
        begin = time.process_time()
        nf.q_sample(x, 5, S, N)
        return time.process_time() - begin

    with nf.set_num_threads(1):
        assert min(seconds(last) for _ in range(5)) < 10 * min(seconds(x) for _ in range(5))


def test_an_output_where_an_input_lies_in_another_order():
    x = np.random.default_rng(1).random((4, 64, 64, 16), np.float32)
    last, expected = x.transpose(0, 3, 1, 2), nf.q_sample(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), 5, S, N)
    assert np.array_equal(nf.q_sample(last, 5, S, N, out=x.reshape(last.shape)), expected)


@pytest.mark.parametrize("isa", [name for name, state in nf.info()["isas"].items() if state == "available"])
def test_noise_is_turned_on_every_instruction_set(isa):
    with using(f"native-{isa}"):
        for name in (
            "noise, with its gradient",
            "it, with its gradient",
            "interpolate with noise",
            "step and log_prob",
        ):
            for dtype in ("float32", "float16"):
                test_large_sums(name, dtype, "channels last")
                test_large_sums(name, dtype, "transposed")
        test_large_sums("log_prob", "float32", "three turned")
        test_parts_of_arrays("step and log_prob", "float16")


@pytest.mark.parametrize("channels", [3, 16])
def test_tensors_in_one_format_keep_it(channels):
    """Noise is then turned, and neither x nor the results are. Seen to fail: results in C's order; zeros in
    a target, which the drawing of the noise had for its own."""
    torch = pytest.importorskip("torch")
    x = torch.rand((4, channels, 61, 67), generator=torch.Generator().manual_seed(1))
    last = x.to(memory_format=torch.channels_last)
    for call in (
        lambda x: nf.q_sample(x, [3, 5, 7, 9], S, N, target="v"),
        lambda x: (nf.q_step(x, 5, S, N.at(sample=[9, 2, 7, 4])),),
        lambda x: (nf.interpolate(x, x / 2, 0.3, BRIDGE, N),),
        lambda x: nf.mse_loss_and_grad(x, x / 2, 5, S, N, target="v")[1:],
        lambda x: nf.density.update_with_log_prob(FLOW, 3, x, x / 2, N)[:1],
        lambda x: (nf.augment.gaussian((255 * x).to(torch.uint8), 10.0, N, clip=(20, 90)),),
        lambda x: (nf.interpolate(x.half(), x.half() / 2, 0.3, BRIDGE, N),),
    ):
        for one, other in zip(call(last), call(x), strict=True):
            assert torch.equal(one, other)
            assert one.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint16", "uint8"])
def test_tokens(dtype):
    """Seen to fail: tokens read as they lie; the mask's place over tokens that lie in another order."""
    for shape, axes in itertools.product(((6, 3, 64, 64), (6, 70, 17, 31), (6, 32, 4, 5)), LAID.values()):
        ids = (np.arange(np.prod(shape)) % 50).astype(dtype).reshape(shape)
        last = laid(ids, axes)
        where = ids % 3 > 0
        for call in (
            lambda x: nf.q_mask(x, EACH / 6, IDS, 50),
            lambda x, where=where: nf.q_mask(x, 0.5, LIST, 50, where=where),
            lambda x: nf.q_uniform(x, EACH / 6, IDS, 60),
        ):
            for one, other in zip(call(last), call(ids), strict=True):
                assert np.array_equal(one, other)
        memory = last.transpose(axes).reshape(shape)  # in C's order
        expected = nf.q_mask(ids, 0.5, N, 50)[0]
        assert np.array_equal(nf.q_mask(last, 0.5, N, 50, out=memory)[0], expected)


def test_walks():
    """Seen to fail: swapped bytes taken as they are."""
    x = np.random.default_rng(1).random((4, 5, 6), np.float32)
    expected = nf.q_walk(x, S, N, keep=[3, 9])
    for other in (np.asfortranarray(x), np.repeat(x, 2, axis=-1)[..., ::2], x.astype(">f4"), x[:, ::-1][:, ::-1]):
        found = nf.q_walk(other, S, N, keep=[3, 9])
        assert np.array_equal(found, expected)
        assert found.dtype == np.float32
