# SPDX-License-Identifier: Apache-2.0
"""Arrays of libraries that noisefuse does not know, by DLPack, and subclasses of those that it knows.

Seen to fail: a foreign noise that `q_walk` passes over, a device's array that is read, a mask that is lost; fields,
`interpolate_loss` and `DiscreteSampler.log_prob_grad`, which refused what has no more than DLPack.
"""

import ml_dtypes
import numpy as np
import pytest

import conformance
import noisefuse as nf
from conformance import WEIGHTS, N, S, T, data
from conftest import Bare, bits


def strict(a):
    return pytest.importorskip("array_api_strict").asarray(a)


def loop(f):
    sampler = nf.samplers.unipc(S, steps=5, clip=nf.samplers.Threshold(0.9, 2))
    return sampler.sample(lambda x, t: f(np.asarray(x) / 2), f(data()), callback=lambda *_: None)


def guided(f):
    sampler = nf.samplers.ddpm(S, steps=5)
    x = f(data())
    pair = (f(data()), f(-data()))
    return sampler.step(2, x, pair, f(data()), sampler.state(x), guidance_scale=[1, 2, 3, 4])


def backward(f):
    return nf.mse_loss_grad(f(data()), f(data()), f(T), S, f(data()), target="v", upstream=f(np.array(2.0)))


CALLS = {call: f for call, f in conformance.CALLS.items() if call not in conformance.HALVES} | {
    "a sampler": loop,
    "guidance": guided,
    "mse_loss_grad, upstream": backward,
    "noise drawn before": lambda f: nf.samplers.ddpm(S, 2).sample(lambda x, t: x, f(data()), f(np.stack([data()] * 2))),
}


@pytest.mark.parametrize("kind", [Bare, strict])
@pytest.mark.parametrize("call", CALLS)
def test_they_are_read_as_numpys(call, kind):
    expected, found = CALLS[call](np.asarray), CALLS[call](kind)
    for a, b in zip(*map(conformance.arrays, (expected, found)), strict=True):
        assert type(b) in (np.ndarray, float, int)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b))


@pytest.mark.parametrize("out", [Bare(data()), np.ma.zeros((4, 3, 5), np.float32)])
def test_results_are_not_written_there(out):
    with pytest.raises(TypeError, match=r"out: expected .*, got "):
        nf.q_sample(data(), 3, S, N, out=out)


def test_they_are_checked_as_numpys():
    with pytest.raises(ValueError, match=r"noise: expected shape \(4, 3, 5\), got \(4, 3\)"):
        nf.q_sample(Bare(data()), 3, S, Bare(data()[..., 0].copy()))
    with pytest.raises(TypeError, match="x0: dtype int64 is not supported"):
        nf.q_sample(Bare(T), 3, S, N)
    with pytest.raises(IndexError, match="t = 1000 is out of range"):
        nf.q_sample(Bare(data()), Bare(T + 1), S, N)
    with pytest.raises(TypeError, match="noise: expected a Noise, as q_walk draws at every time, got an array"):
        nf.q_walk(Bare(data()), S, Bare(data()))


class Far(Bare):
    """An array on a CUDA device. Nothing may ask for its memory."""

    def __dlpack__(self, **options):
        raise AssertionError("read")

    def __dlpack_device__(self):
        return 2, 3


@pytest.mark.parametrize("call", CALLS)
def test_those_of_a_device_are_refused(call):
    with pytest.raises(
        NotImplementedError, match=r"expected test_foreign_arrays\.Far in host memory, got one on dev.* 3"
    ):
        CALLS[call](Far)


def test_what_numpy_cannot_read_says_so():
    class Tracer(Bare):
        @property
        def __dlpack_device__(self):
            raise AttributeError("no memory yet")

    with pytest.raises(TypeError, match=r"x0: NumPy cannot read this .*Tracer by DLPack: no memory yet"):
        nf.q_sample(Tracer(data()), 3, S, N)


class Refusing(Bare):
    """It is like Arrow's lists, for which DLPack has no type."""

    def __dlpack__(self, **options):
        raise TypeError("not compatible with DLPack: list<item: float>")


class OfNoNumPy(Bare):
    """It is like mlx's bfloat16."""

    def __dlpack__(self, **options):
        raise RuntimeError("Unsupported dtype")

    def __array__(self, *_, **options):
        raise ValueError("'bfloat16' is not a valid PEP 3118 buffer format string")


@pytest.mark.parametrize(("kind", "why"), [(Refusing, "list<item: float>"), (OfNoNumPy, "PEP 3118")])
def test_what_another_library_says_comes_after_what_we_do(kind, why):
    """Seen to fail: only their ArrowTypeError and ValueError, which name no argument."""
    for name, call in (
        ("x0", lambda: nf.q_sample(kind(data()), 3, S, N)),
        ("noise", lambda: nf.q_sample(data(), 3, S, kind(data()))),
        ("x", lambda: nf.randn_like(kind(data()), N)),
    ):
        with pytest.raises(TypeError, match=f"^{name}: NumPy cannot read this .*{kind.__name__} by DLPack: .*{why}"):
            call()


def test_a_dtype_that_dlpack_lacks_is_read_as_an_array():
    """It is like JAX's bfloat16."""

    class Half(Bare):
        def __dlpack__(self, **options):
            raise BufferError("dtype")

        def __dlpack_device__(self):
            return 1, 0

        def __array__(self, *_, **options):
            return self.a

    x = data(ml_dtypes.bfloat16)
    assert bits(nf.q_sample(Half(x), T, S, N)) == bits(nf.q_sample(x, T, S, N))


# ---- subclasses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_subclasses_lose_their_class(call):
    class Own(np.ndarray):
        pass

    expected, found = CALLS[call](np.asarray), CALLS[call](lambda a: np.asarray(a).view(Own))
    for a, b in zip(*map(conformance.arrays, (expected, found)), strict=True):
        assert type(b) in (np.ndarray, float, int)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b))


READS_NOTHING = {
    *("randn_like", "randn_like of integers", "Sampler.model_input", "Sampler.state"),
    *(call for call in CALLS if call.startswith("fields.") and call.endswith("_like")),
}


@pytest.mark.parametrize("call", [call for call in CALLS if call not in READS_NOTHING])
def test_masked_arrays_are_refused(call):
    with pytest.raises(TypeError, match=r"masked arrays are not supported; pass \w+\.data or \w+\.filled"):
        CALLS[call](lambda a: np.ma.masked_array(a, mask=np.asarray(a) == 1))


@pytest.mark.parametrize("name", ["t", "weight"])
def test_masks_on_times_and_weights_count(name):
    options = {"t": T, "weight": WEIGHTS}
    options[name] = np.ma.masked_array(options[name], mask=False)
    with pytest.raises(TypeError, match=f"{name}: masked arrays are not supported"):
        nf.mse_loss(data(), data(), options["t"], S, N, target="v", weight=options["weight"])
