# SPDX-License-Identifier: Apache-2.0
"""torch tensors: NumPy's bits, gradients, torch.compile, data loaders, and errors.

Seen to fail: bfloat16 taken for float16; `out` whose version stays; the fast path that takes a tensor which requires
grad, a negated view, or a dual one; a backward row with the wrong sign; a clamp's mask left out; the times of a
backward pass read after they were changed; a worker that counts its samples otherwise.
"""

import re
import subprocess
import sys

import numpy as np
import pytest

import noisefuse as nf
from conftest import bits, first_and_slow
from noisefuse import Noise, Schedule

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad, gradcheck, gradgradcheck  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from noisefuse.interop import torch as interop  # noqa: E402
from noisefuse.interop.torch import arrays as torch_arrays  # noqa: E402
from noisefuse.interop.torch import graph as torch_graph  # noqa: E402
from noisefuse.interop.torch import internals as torch_internals  # noqa: E402
from private_names import private  # noqa: E402

S, FLOW, N = Schedule.linear(20), Schedule.flow(20), Noise(2**63 + 5, sample=3, step=7)
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SAMPLERS = {
    "ddim": nf.samplers.ddim(S, steps=4),
    "ddpm": nf.samplers.ddpm(S, steps=4, clip=0.8),
    "dpmpp_2m_sde": nf.samplers.dpmpp_2m_sde(S, steps=4),
    "heun": nf.samplers.heun(S, steps=3),
    "unipc": nf.samplers.unipc(S, steps=4),
    "threshold": nf.samplers.ddim(S, steps=4, clip=nf.samplers.Threshold(0.9, 2.0)),
}
TABLE = SAMPLERS["ddim"].tableau
BRIDGE = nf.paths.brownian_bridge(0.5)


def numpy(x):
    """Returns the memory of a tensor; dtypes by name, for bfloat16 too."""
    x = x.detach()
    return x.view(torch.int16).numpy().view("bfloat16") if x.dtype == torch.bfloat16 else x.numpy()


def tensor(*shape, dtype=torch.float32, seed=0, grad=False):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (40 * drawn.abs() if dtype == torch.uint8 else drawn).to(dtype).requires_grad_(grad)


class Own(torch.Tensor):
    """A class of tensors that is not torch's."""


def same(result, expected):
    results, arrays = (r if isinstance(r, tuple) else (r,) for r in (result, expected))
    return [type(r) for r in results] == [torch.Tensor] * len(arrays) and all(
        numpy(r).dtype == a.dtype and r.shape == a.shape and bits(numpy(r)) == bits(a)
        for r, a in zip(results, arrays, strict=True)
    )


@pytest.fixture
def short(monkeypatch):
    """Closes the checked path."""

    def closed(*_):
        raise AssertionError("the checked path was taken")

    monkeypatch.setattr(interop, "_call", closed)
    monkeypatch.setattr(interop, "_random", closed)


# ---- the same bits -----------------------------------------------------------------------------------------

CALLS = {
    "q_sample": lambda x, t, z, **o: nf.q_sample(x, t, S, N, **o),
    "q_sample 2": lambda x, t, z, **o: nf.q_sample(x, 2, S, N, target="v", scale=1.5, offset=0.5, **o),
    "q_sample 3": lambda x, t, z, **o: nf.q_sample(x, t, S, N.at(sample=[9, 2, 4]), target="flow", **o),
    "q_sample 4": lambda x, t, z, **o: nf.q_sample(x, t, S, [N, N, N], dtype="float16", **o),
    "q_sample 5": lambda x, t, z, **o: nf.q_sample(x, t, S, z, **o),
    "q_sample 6": lambda x, t, z, **o: nf.q_sample(x, 0.25, FLOW, N.window((9, 8), (2, 3)), **o),
    "q_sample 7": lambda x, t, z, **o: nf.q_sample(x, t, S, N, batched=False, **o),
    "q_step": lambda x, t, z, **o: nf.q_step(x, t, S, N, **o),
    "q_step 2": lambda x, t, z, **o: nf.q_step(x, [1, 2, 3], S, z, **o),
    "q_walk": lambda x, t, z, **o: nf.q_walk(x, S, N, keep=[1, 4], **o),
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_numpys_bits(call, dtype, backend):
    if dtype == torch.uint8 and "q_sample" not in call:
        pytest.skip("bytes are images, and no state of a walk")
    x, t = tensor(3, 5, 4, dtype=dtype), torch.tensor([1, 19, 4])
    z = tensor(3, 5, 4, seed=1)
    with nf.use_backend(backend):
        expected = CALLS[call](numpy(x), t.numpy(), numpy(z))
        assert same(CALLS[call](x, t, z), expected)
        first = expected[0] if isinstance(expected, tuple) else expected
        out = torch.zeros(first.shape, dtype=torch_arrays.NAMED[first.dtype.name])
        result = CALLS[call](x, t, z, out=out)
        assert (result[0] if isinstance(result, tuple) else result) is out
        assert same(result, expected)
        assert out._version == 1


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name, dtype, backend):
    sampler, kind = SAMPLERS[name], torch_arrays.DTYPES[dtype]
    with nf.use_backend(backend):
        expected = sampler.sample(lambda x, t: x, (3, 5), N, dtype=kind)
        seen = []
        assert same(
            sampler.sample(lambda x, t: x, (3, 5), N, dtype=dtype, callback=lambda *a: seen.append(a)), expected
        )
        assert all(same(x, numpy(x)) and same(clean, numpy(clean)) for _, x, clean in seen)
        guided = {"guidance_scale": torch.tensor([1.0, 2.0, 0.5])}
        expected = sampler.sample(lambda x, t: (x, x / 2), (3, 5), N, dtype=kind, guidance_scale=[1, 2, 0.5])
        assert same(sampler.sample(lambda x, t: (x, x / 2), (3, 5), N, dtype=dtype, **guided), expected)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=str)
def test_randn_and_uniform(dtype):
    for draw, allowed in ((nf.randn, FLOATS), (nf.uniform, FLOATS[:2])):
        if dtype not in allowed:
            with pytest.raises(TypeError, match=rf"dtype (torch\.)?{torch_arrays.DTYPES[dtype]}"):
                draw((3, 4), N, dtype=dtype)
            continue
        expected = draw((3, 4), N, dtype=torch_arrays.DTYPES[dtype])
        assert same(draw((3, 4), N, dtype=dtype), expected)
        for kind in (dtype, torch_arrays.DTYPES[dtype]):
            out = torch.zeros(3, 4, dtype=dtype)
            assert draw((3, 4), N, dtype=kind, out=out) is out
            assert same(out, expected)
            assert out._version == 1


def test_a_mode_may_change_the_tensor_that_it_is_asked_about():
    """Seen to fail: an earlier call's shape, in memory that was given back, and a division by zero."""

    class Grows(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if isinstance(args[0], torch.Tensor) and args[0].shape == (4, 6):
                args[0].resize_(100, 10, 10).zero_()
            return function(*args, **(kwargs or {}))

    for _ in range(5):
        x = tensor(4, 6)
        with Grows():
            result = nf.q_sample(x, 3, S, N)
        assert x.shape == (100, 10, 10)
        assert same(result, nf.q_sample(np.zeros((100, 10, 10), np.float32), 3, S, N))


def test_a_mode_may_change_a_tensor_that_was_read():
    """Seen to fail: calls were refused, as they saw two shapes. And where a signal handler did this while kernels ran,
    results had the new shape with memory for the old one, and a step of tokens wrote beyond its arrays."""

    class Turns(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if args[0] is asked and read.dim() == first:
                read.unsqueeze_(0)
            return function(*args, **(kwargs or {}))

    ids, masks, mask = torch.arange(24).view(4, 6), torch.full((4, 6), 30), torch.ones(4, 6) > 0
    logits = tensor(4, 6, 30)
    sampler = nf.samplers.mdlm(steps=4, mask_id=30)
    for call, read, asked in (  # noqa: B007 (the mode reads it)
        (lambda: nf.masked_cross_entropy(logits, ids, reduction="none"), logits, ids),
        (lambda: nf.masked_cross_entropy_and_grad(logits, ids, mask, reduction="none")[1], logits, mask),
        (lambda: nf.categorical(logits, N, where=mask), logits, mask),
        (lambda: sampler.step(1, masks, logits, N, where=mask), masks, mask),
        (lambda: nf.q_mask(ids, 0.5, N, 30, where=mask)[0], ids, mask),
    ):
        expected, first = call(), read.dim()
        with Turns():
            result = call()
        read.squeeze_(0)
        assert torch.equal(result, expected)


def negative(x):
    """Returns -x as a view, whose memory holds x."""
    return torch.complex(x, x).conj().imag


def test_strides_and_views():
    x = tensor(4, 6)
    for view in (x.t(), x[:, ::2], x[:1].expand(4, 6), x[2], torch.tensor(2.0), x[:0], x.view(2, 2, 2, 3)[:, :, 1]):
        assert same(nf.q_sample(view, 3, S, N), nf.q_sample(numpy(view), 3, S, N))
    images = tensor(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert same(nf.q_sample(images, 3, S, N), nf.q_sample(numpy(images), 3, S, N))
    for negated in (negative(x), negative(x[:, ::2])):
        assert negated.is_neg()
        assert same(nf.q_sample(negated, 3, S, N), nf.q_sample(negated.resolve_neg().numpy(), 3, S, N))
    inside = x.clone()
    assert nf.q_sample(inside, 3, S, N, out=inside) is inside
    assert same(inside, nf.q_sample(numpy(x), 3, S, N))


@pytest.mark.parametrize("index", [3, torch.tensor(3), torch.tensor([[3]]), torch.tensor([1, 3, 5, 7]), (4, 6), "ints"])
def test_times(index):
    x = tensor(4, 6, 2)
    t = torch.arange(24).view(index) % 20 if isinstance(index, tuple) else index
    t = torch.tensor([1, 2, 3, 4], dtype=torch.int32) if isinstance(t, str) else t
    expected = nf.q_sample(numpy(x), t.numpy() if isinstance(t, torch.Tensor) else t, S, N)
    assert same(nf.q_sample(x, t, S, N), expected)
    u = torch.tensor([0.5, 0.25, 0.125, 0.75])
    for kind in (*FLOATS,):
        assert same(nf.q_sample(x, u.to(kind), FLOW, N), nf.q_sample(numpy(x), u.numpy(), FLOW, N))


# ---- the fast path -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange API")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_plain_calls_take_it(short, dtype):
    x, m, z, t = (*(tensor(3, 5, 4, dtype=dtype, seed=s) for s in range(3)), torch.tensor([1, 19, 4]))
    for call in ("q_sample", "q_sample 3", "q_sample 5", "q_step"):
        if call == "q_sample 3":
            x_t = torch.empty_like(x)
            assert CALLS[call](x, t, z, out=x_t)[0] is x_t
        assert same(CALLS[call](x, t, z), CALLS[call](numpy(x), t.numpy(), numpy(z)))
    out = torch.zeros(3, 5, 4, dtype=dtype)
    assert same(nf.randn((3, 5, 4), N, dtype=dtype, out=out), nf.randn((3, 5, 4), N, dtype=numpy(x).dtype))
    for name in ("ddim", "ddpm", "dpmpp_2m_sde", "unipc"):
        sampler = SAMPLERS[name]
        state, arrays = sampler.state(x), sampler.state(numpy(x))
        for i in range(len(sampler)):
            expected = sampler.step(i, numpy(x), numpy(m), N, arrays)
            assert same(sampler.step(i, x, m, N, state), expected)
    for rows in ([1, 2, 0], 2):  # a row that draws nothing for each sample
        table = SAMPLERS["ddim"].tableau
        index = rows if isinstance(rows, int) else torch.tensor(rows)
        assert same(nf.update(table, index, x, m), nf.update(table, rows, numpy(x), numpy(m)))
    with torch.no_grad():
        out = torch.nn.Parameter(torch.zeros(3, 5, 4, dtype=dtype)).requires_grad_()
        assert nf.q_sample(x.clone().requires_grad_(), 3, S, N, out=x.new_zeros(x.shape).requires_grad_()) is not None
        assert nf.q_sample(x, 3, S, N, out=out) is out


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_large_new_tensors(dtype):
    """Their memory is NumPy's, and outlives the array that allocated it."""
    x = tensor(2, 1 << 20, dtype=dtype)
    made = [nf.q_sample(x, 3, S, N.at(step=k)) for k in range(3)]
    del made[1]
    assert same(nf.q_sample(x, 5, S, N), nf.q_sample(numpy(x), 5, S, N))
    for k, x_t in zip((0, 2), made, strict=True):
        assert same(x_t, nf.q_sample(numpy(x), 3, S, N.at(step=k)))
    made[0].mul_(2).clone()


@pytest.mark.slow  # torch is imported twice
def test_without_the_exchange_api():
    """It works as with older torch."""
    code = """
import torch, noisefuse as nf
if {old}:
    del torch.Tensor.__dlpack_c_exchange_api__
x, t = torch.linspace(-1, 1, 12).view(3, 4), torch.tensor([1, 2, 3])
out = nf.q_sample(x, t, nf.Schedule.linear(20), nf.Noise(5))
print(out.tolist(), nf.q_sample(x, t, nf.Schedule.linear(20), nf.Noise(5), out=x) is x, x._version)
"""

    def run(old):
        command = [sys.executable, "-W", "error", "-c", code.format(old=old)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch is an older one")
    assert run(False) == run(True)


# ---- what is refused ---------------------------------------------------------------------------------------

OTHERS = {
    "complex": (TypeError, r"x0: dtype torch.complex64 is not supported", lambda x: x.to(torch.complex64)),
    "integers": (TypeError, r"x0: dtype torch.int32 is not supported", lambda x: x.int()),
    "sparse": (TypeError, r"x0: expected a dense tensor, got torch.sparse_coo", lambda x: x.to_sparse()),
    "meta": (NotImplementedError, r"x0: expected a tensor on the CPU or a CUDA .* on meta", lambda x: x.to("meta")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tensors(name):
    error, message, make = OTHERS[name]
    with pytest.raises(error, match=message):
        nf.q_sample(make(tensor(3, 4)), 3, S, N)


X = tensor(3, 4)
OUTS = {
    "requires grad": (ValueError, r"out: requires grad", lambda: torch.zeros(3, 4, requires_grad=True)),
    "a parameter": (ValueError, r"out: requires grad", lambda: torch.nn.Parameter(torch.zeros(3, 4))),
    "negated": (ValueError, r"out: expected a plain tensor", lambda: negative(torch.zeros(3, 4))),
    "float64": (TypeError, r"out: expected dtype float32, got float64", lambda: torch.zeros(3, 4).double()),
    "other shape": (ValueError, r"out: expected shape \(3, 4\), got \(4, 3\)", lambda: torch.zeros(4, 3)),
    "transposed": (ValueError, r"out: expected a C-contiguous", lambda: torch.zeros(4, 3).t()),
    "NumPy's": (TypeError, r"out: expected a torch.Tensor, as .* got ndarray", lambda: np.zeros((3, 4), "f4")),
    "meta": (NotImplementedError, r"out: expected a tensor on the CPU or", lambda: torch.zeros(3, 4, device="meta")),
}


@pytest.mark.parametrize("name", OUTS)
def test_bad_out(name):
    error, message, make = OUTS[name]
    for call in (
        lambda out: nf.q_sample(X, 3, S, N, out=out),
        lambda out: nf.q_step(X, 3, S, N, out=out),
        lambda out: SAMPLERS["ddpm"].step(2, X, X, N, out=out),
    ):
        out = make()
        with pytest.raises(error, match=message):
            call(out)
        if name != "meta":
            assert not out.any()


def test_remembered_leaves_are_not_written_to():
    """Seen to fail: torch refused it when the leaf was written already."""
    leaf = torch.zeros(3, 4, requires_grad=True)
    table = nf.samplers.dpmpp_2m(S, steps=3).tableau
    with pytest.raises(ValueError, match=r"aux_out\[0\]: is a leaf that requires grad"):
        nf.update(table, 0, X, X, aux_out=[leaf])
    assert not leaf.any()


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_complex_numbers_are_refused(make):
    """Seen to fail: their imaginary parts were lost, with a warning."""
    x, w = (X, X) if make is torch.tensor else (numpy(X), numpy(X))
    table = nf.samplers.ddpm(S, steps=3).tableau
    for name, call in (
        ("weight", lambda of: nf.mse_loss(x, w, 3, S, N, target="v", weight=of([1j] * 20))),
        ("upstream", lambda of: nf.mse_loss_grad(x, w, 3, S, N, target="v", upstream=of(1j))),
        ("upstream", lambda of: nf.mse_loss_grad(x, w, 3, S, N, target="v", reduction="none", upstream=of([1j] * 3))),
        ("upstream", lambda of: nf.density.log_prob_grad(table, 1, x, w, w, upstream=of([1j] * 3))),
        ("guidance_scale", lambda of: SAMPLERS["ddim"].step(1, x, (x, w), N, guidance_scale=of([1j] * 3))),
    ):
        with pytest.raises(TypeError, match=f"^{name}: expected numbers"):
            call(make)


def test_other_arguments():
    memory = torch.zeros(20)
    for error, message, call in (
        (TypeError, r"noise: expected .* torch.Tensor.* NumPy array", lambda: nf.q_sample(X, 3, S, numpy(X))),
        (TypeError, r"model_output \(m1\): expected a torch.Tensor", lambda: SAMPLERS["ddim"].step(1, X, numpy(X))),
        (
            TypeError, r"out: expected a NumPy array, as the other arguments are, got torch.Tensor",
            lambda: nf.q_sample(numpy(X), 3, S, N, out=X.clone()),
        ),
        (
            TypeError, r"dtype torch.float16 is torch's, and the arrays are not: expected one of float32, ",
            lambda: nf.q_sample(numpy(X), 3, S, N, dtype=torch.float16),
        ),
        (TypeError, r"model_output: expected .* a tuple .*, got list", lambda: SAMPLERS["ddim"].step(1, X, [X])),
        (TypeError, r"aux_out: .* or a number of them, got Tensor", lambda: nf.update(TABLE, 1, X, X, aux_out=X)),
        (TypeError, r"noise\[2\]: expected a Noise, got Tensor", lambda: nf.q_sample(X, 3, S, [N, N, X])),
        (
            TypeError, r"or else an array of NumPy, .* DLPack, got Generator: a noise is a key",
            lambda: nf.q_sample(X, 3, S, torch.Generator()),
        ),
        (TypeError, r"dtype torch.int64: .*torch.bfloat16$", lambda: nf.randn((3, 4), N, dtype=torch.int64)),
        (TypeError, r"dtype torch.uint8: .*torch.bfloat16$", lambda: nf.randn((3, 4), N, dtype=torch.uint8)),
        (TypeError, r"dtype torch.int64: expected one of torch", lambda: nf.q_sample(X, 3, S, N, dtype=torch.int64)),
        (IndexError, r"t = 20 is out of range", lambda: nf.q_sample(X, torch.tensor([1, 20, 3]), S, N)),
        (IndexError, r"t = -1 is out of range", lambda: nf.q_sample(X, torch.tensor(-1), S, N)),
        (TypeError, r"t: expected integers or floats, got bool", lambda: nf.q_sample(X, torch.ones(3) > 0, S, N)),
        (
            NotImplementedError, r"t: expected a tensor on the CPU or a CUDA device, got one on meta",
            lambda: nf.q_sample(X, torch.ones(3, device="meta").long(), S, N),
        ),
        (
            ValueError, r"out overlaps an input in part",
            lambda: nf.q_sample(memory[:12].view(3, 4), 3, S, N, out=memory[1:13].view(3, 4)),
        ),
        (
            TypeError, r"x: expected a tensor with memory of its own",
            lambda: torch.vmap(CALLS["q_step"], (0, None, None))(X, 3, 0),
        ),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    assert not memory.any()


ODD = {
    "nested": (lambda: torch.nested.nested_tensor([X[:2], X]), r"a nested one: pass its parts .*, {}\.unbind\(\)"),
    "jagged": (lambda: torch.nested.nested_tensor([X[:2], X], layout=torch.jagged), r"a nested one: .*{}\.unbind\(\)"),
    "masked": (lambda: torch.masked.masked_tensor(X, X > 0), r"a masked one: pass {0}\.get_data\(\) or {0}\.to_ten"),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_stand_for_others_are_refused_by_name(kind):
    """Seen to fail: all three were "not one of torch.func or a fake one", and if only x's shape is read, the first two
    were torch's internal errors. A DTensor is in test_torch_ranks.py."""
    make, message = ODD[kind]
    x = make()
    for name, call in {
        "x0": lambda: nf.q_sample(x, 3, S, N),
        "noise": lambda: nf.q_sample(X, 3, S, x),
        "out": lambda: nf.q_sample(X, 3, S, N, out=x),
        "pred": lambda: nf.mse_loss(x, x, 3, S, N, target="v"),
        "x": lambda: nf.augment.gaussian(x, 1.0, N),
        "t": lambda: nf.q_sample(X, x, S, N),
        "weight": lambda: nf.mse_loss(X, X, 3, S, N, target="v", weight=x),
    }.items():
        with pytest.raises(TypeError, match=f"^{name}: expected a plain tensor, got {message.format(name)}"):
            call()
    for call in (lambda: nf.randn_like(x, N), lambda: SAMPLERS["ddim"].sample(lambda x, t: x, x, N)):
        with pytest.raises(TypeError, match=f"^x: expected a plain tensor, got {message.format('x')}"):
            call()


BESIDE = {  # arguments that are numbers, or one for each sample, beside torch's x and NumPy's
    "std": lambda x, odd: nf.augment.gaussian(x, odd, N),
    "snr": lambda x, odd: nf.augment.at_snr(x, odd, N),
    "guidance_scale": lambda x, odd: SAMPLERS["ddim"].step(1, x, (x, x), N, guidance_scale=odd),
    "sample": lambda x, odd: nf.q_sample(x, 3, S, N.at(sample=odd)),
    "t": lambda x, odd: nf.q_sample(x, odd, S, N),
    "i": lambda x, odd: nf.update(TABLE, odd, x, x),
    "keep": lambda x, odd: nf.q_walk(x, S, N, keep=odd),
    "mask": lambda x, odd: SAMPLERS["ddim"].sample(lambda x, t: x, x, N, mask=odd, known=x),
    "known": lambda x, odd: SAMPLERS["ddim"].sample(lambda x, t: x, x, N, mask=1.0, known=odd),
    "betas": lambda x, odd: Schedule.from_betas(odd),
    "alphas_cumprod": lambda x, odd: Schedule.from_alphas_cumprod(odd),
    "sigma": lambda x, odd: Schedule([0.9, 0.8, 0.7], odd),
    "steps": lambda x, odd: nf.samplers.ddim(S, steps=odd),
    "row": lambda x, odd: nf.weights.draw(odd, 0.5),
    "u": lambda x, odd: nf.weights.draw([1, 2], odd),
}


@pytest.mark.parametrize("name", BESIDE)
def test_such_tensors_are_refused_as_numbers_too(name):
    """Seen to fail: ".numpy() is not supported for tensor subclasses" and "Internal error: NestedTensorImpl doesn't
    support sizes", and a masked mask was taken without its mask. A DTensor is in test_torch_ranks.py."""
    for make, message in ODD.values():
        for x in (X, numpy(X)):
            with pytest.raises(TypeError, match=f"^{name}: expected a plain tensor, got {message.format(name)}"):
                BESIDE[name](x, make())


def test_torch_func_is_refused_by_name():
    """Seen to fail: "out", which nobody gave; torch's words on an autograd.Function, or on tensors without storage."""
    for label, call in (
        ("x0", lambda x: nf.q_sample(x, 3, S, N)),
        ("model_output (m1)", lambda m: nf.update(TABLE, 1, X, m)),
        ("x", lambda x: nf.noised(x, 0.5, 0.25, N)),
        ("x", lambda x: nf.interpolate(x, X, 0.5, BRIDGE, N)),
        ("pred", lambda x: nf.interpolate_loss(x, X, X, 0.5, BRIDGE, N, target="velocity")),
        ("a number, such as a time, level or weight", lambda x: nf.noised(X, x.mean(), 0.25, N)),
        ("a number, such as a time, level or weight", lambda x: nf.interpolate(X, X, x.mean().abs(), BRIDGE, N)),
    ):
        with pytest.raises(
            TypeError, match=rf"{re.escape(label)}: expected a tensor with memory of its own, not one of torch\.func"
        ):
            torch.func.grad(lambda x, call=call: call(x).sum())(X)


@pytest.mark.parametrize("watched", ["x", "m"])
def test_dynamic_thresholding_is_not_differentiated(watched):
    tensors = {name: X.clone().requires_grad_(name == watched) for name in ("x", "m")}
    with pytest.raises(NotImplementedError, match=r"Threshold: .* detach x and model_output, or use torch\.no_grad"):
        SAMPLERS["threshold"].step(1, tensors["x"], tensors["m"])
    with torch.no_grad():
        expected = SAMPLERS["threshold"].step(1, X, X)
        assert torch.equal(SAMPLERS["threshold"].step(1, tensors["x"], tensors["m"]), expected)


def test_tangents_are_not_lost():
    with forward_ad.dual_level():
        assert same(nf.q_sample(X, 3, S, N), nf.q_sample(numpy(X), 3, S, N))
        dual = forward_ad.make_dual(X, X)
        with pytest.raises(NotImplementedError, match="x0: forward-mode"):
            nf.q_sample(dual, 3, S, N)
        with pytest.raises(ValueError, match="out: expected a plain tensor"):
            nf.q_sample(X, 3, S, N, out=forward_ad.make_dual(X.clone(), X))


# ---- gradients ---------------------------------------------------------------------------------------------

TIMES = torch.tensor([1, 5, 19])
DIFFERENTIABLE = {
    "q_sample": lambda x: nf.q_sample(x, TIMES, S, N),
    "q_sample of a token": lambda x: nf.q_sample(x, torch.arange(12).view(3, 4), S, N),
    "q_sample at once": lambda x: nf.q_sample(x, 4, S, N, scale=1.5, offset=0.3),
    "q_sample in its own time": lambda x: nf.q_sample(x, [0.1, 0.5, 0.9], Schedule.cosine(20), N, target="velocity"),
    "q_sample of a noise": lambda x: nf.q_sample(x, TIMES, S, tensor(3, 4, dtype=torch.float64, seed=9)),
    "q_sample of one sample": lambda x: nf.q_sample(x, 3, S, N, batched=False),
    "q_step": lambda x: nf.q_step(x, TIMES, S, N),
    "q_walk": lambda x: nf.q_walk(x, S, N),
    "q_walk kept": lambda x: nf.q_walk(x, S, N, keep=[2, 11]),
} | {
    f"q_sample for {target}": lambda x, target=target: nf.q_sample(x, TIMES, S, N, target=target, scale=2)
    for target in ("epsilon", "v", "flow", "sample")
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_of_the_forward_process(name):
    x = tensor(3, 4, dtype=torch.float64, grad=True)
    assert gradcheck(DIFFERENTIABLE[name], x)
    assert gradgradcheck(DIFFERENTIABLE[name], x)


@pytest.mark.parametrize("name", first_and_slow(n for n in SAMPLERS if n != "threshold"))
def test_gradients_through_a_whole_run(name):
    """The run has a state that is overwritten, a clamp, and a model that depends on x and on weights."""
    sampler = SAMPLERS[name]
    x, *weights = (tensor(3, 2, dtype=torch.float64, seed=s, grad=True) for s in range(len(sampler) + 1))

    def run(x, *weights):
        state = sampler.state(x)
        for i, w in enumerate(weights):
            x = sampler.step(i, x, (0.3 * x + w, w * x), N, state, guidance_scale=[1.0, 2.0, 3.0])
        return x

    assert gradcheck(run, (x, *weights))
    if name in ("ddpm", "ddim"):
        assert gradgradcheck(run, (x, *weights))


def random_table(clamps):
    rng = np.random.default_rng(3)
    numbers = rng.normal(size=(5, 36))
    numbers[:, 4], numbers[:, 5] = (-1.5, 1.6) if clamps else (-np.inf, np.inf)  # about half of the elements
    return nf.Tableau(numbers.view(nf.tableau.ROW)[:, 0])


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("clamps", [False, True])
def test_gradients_of_update(clamps, made):
    table = random_table(clamps)
    inputs = [tensor(3, 4, dtype=torch.float64, seed=s, grad=True) for s in range(7)]

    def run(x, m1, m2, *past):
        aux = 2 if made else [torch.zeros(3, 4, dtype=torch.float64) for _ in range(2)]
        out = nf.update(table, torch.tensor([0, 4, 2]), x, (m1, m2), past=past, noise=N, aux_out=aux)
        return out if made else (out, *aux)

    assert gradcheck(run, inputs)
    if not clamps:  # the backward row of a clamp has one output, the transposed one three
        assert gradgradcheck(run, inputs)
    assert gradgradcheck(lambda *a: nf.update(table, 1, a[0], a[1:3], past=a[3:], noise=N), inputs)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_auxiliary_outputs_that_are_made(dtype):
    """Eager, from tensors that are not contiguous, and compiled: the bits of NumPy's arrays, with memory of their
    own."""
    table = random_table(clamps=True)
    x, *past = (tensor(3, 4, dtype=dtype, seed=s) for s in range(5))
    expected = nf.update(table, 2, numpy(x), (numpy(x),) * 2, past=[numpy(p) for p in past], noise=N, aux_out=2)

    def run(x, past):
        return nf.update(table, 2, x, (x, x), past=past, noise=N, aux_out=2)

    for found in (
        run(x, past),
        run(x.t().contiguous().t(), past),
        torch.compile(run, fullgraph=torch_internals.FOLLOWED, backend="aot_eager")(x, past),
    ):
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
        assert len({a.untyped_storage().data_ptr() for a in (x, *past, *found)}) == 8
        assert all(a.is_contiguous() and a.untyped_storage().nbytes() == a.nbytes for a in found)


ANY, EULER = random_table(clamps=True), nf.samplers.euler(S, steps=3)


def two_steps(sampler, x):
    state = sampler.state(x)
    return sampler.step(1, sampler.step(0, x, 0.1 * x, N, state), 0.2 * x, N, state)


# Operations on images x that keep their memory format.
LIKE = {
    "q_sample": lambda x: nf.q_sample(x, 3, S, N, target="v"),
    "bytes": lambda x: (nf.q_sample((40 * x.abs()).to(torch.uint8), 3, S, N),),
    "q_step": lambda x: (nf.q_step(x, 3, S, N),),
    "update": lambda x: nf.update(ANY, 2, x, (x, x), past=[x] * 4, noise=N, aux_out=2),
    "two steps": lambda x: (two_steps(SAMPLERS["unipc"], x),),
    "rows of channels": lambda x: (
        nf.update(
            SAMPLERS["ddim"].tableau, np.arange(x[:, :, 0, 0].numel()).reshape(*x.shape[:2], -1)[..., 0] % 3, x, x
        ),
    ),
    "a run": lambda x: (SAMPLERS["heun"].sample(lambda x, t: torch.cos(x), x, N),),
    "noised": lambda x: (SAMPLERS["ddim"].noised(1, x, N),),
    "model_input": lambda x: EULER.model_input(0, x)[:1],
    "randn_like": lambda x: (nf.randn_like(x, N), nf.randn_like(x, N, dtype=torch.float64)),
    "a gradient": lambda x: (nf.mse_loss_grad(x, x, 3, S, N, target="v"),),
}


FORMATS = [((2, 3, 4, 5), torch.channels_last), ((2, 3, 2, 4, 5), torch.channels_last_3d)]


@pytest.mark.parametrize("graph", first_and_slow([False, True]), ids=["eager", "compiled"])
@pytest.mark.parametrize("name", LIKE)
def test_results_keep_the_memory_format(name, graph):
    """The format is that of torch's pointwise operations; by their indices the values are those of tensors in C order.
    (Each format is compiled separately, because compiled code knows both as strides.)"""
    call = compiled(LIKE[name]) if graph else LIKE[name]
    for shape, form in FORMATS[[*LIKE].index(name) % 2 :][:1] if graph else FORMATS:
        plain = tensor(*shape)
        x = plain.to(memory_format=form)
        assert not x.is_contiguous()
        results = call(x)
        assert equal(results, LIKE[name](plain))
        for grad in (False, True):
            results = call(x.clone().requires_grad_(grad and name not in ("bytes", "randn_like", "a gradient")))
            assert equal([r.detach() for r in results], LIKE[name](plain))
            assert all(r.is_contiguous(memory_format=form) and not r.is_contiguous() for r in results)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", LIKE)
def test_large_results_keep_the_memory_format(name, threads):
    """Elements of large calls are turned block by block. Seen to fail: a block that is written where the one before
    lies, and the last block of a sample as long as the others."""
    for shape, form in [((2, 5, 90, 90), torch.channels_last), ((2, 70, 2, 17, 31), torch.channels_last_3d)]:
        plain = tensor(*shape)
        with nf.set_num_threads(threads):
            results = LIKE[name](plain.to(memory_format=form))
        assert equal(results, LIKE[name](plain))
        assert all(r.is_contiguous(memory_format=form) and not r.is_contiguous() for r in results)


ODE = nf.samplers.ddim(S, 5).tableau
STEPS = {
    "all": lambda x, m: nf.update(ODE, 2, x, m),
    "a row for each sample": lambda x, m: nf.update(ODE, [1, 3], x, m),
    "a row for each channel": lambda x, m: nf.update(ODE, torch.arange(10).reshape(2, 5) % 5, x, m),
    "a model output in C's order": lambda x, m: nf.update(ODE, 2, x, m.contiguous()),
    "x in C's order": lambda x, m: nf.update(ODE, 2, x.contiguous(), m),
    "misaligned": lambda x, m: nf.update(ODE, 2, misaligned(x), m),
}


def misaligned(x):
    memory = np.zeros(4 * x.numel() + 1, np.uint8)[1:].view(np.float32)
    made = torch.from_numpy(memory).as_strided(x.shape, x.stride())
    return made.copy_(x)


@pytest.mark.parametrize("name", STEPS)
def test_large_steps_that_draw_nothing(name):
    """They go through the memory of channels_last in its own order where that is the order of all arrays. Seen to fail:
    a row of the next channel, and an array in C's order. Under sanitizers: a misaligned tensor."""
    x, m = tensor(2, 5, 90, 90), tensor(2, 5, 90, 90, seed=1)
    found = STEPS[name](*(a.to(memory_format=torch.channels_last) for a in (x, m)))
    assert torch.equal(found, STEPS[name](x, m))
    if name != "x in C's order":
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 5, 90, 90)], ids=["small", "large"])
def test_an_output_in_c_order_of_inputs_in_another_one(shape):
    """Seen to fail: an output that is given, written in the inputs' order."""
    plain, m = tensor(*shape), tensor(*shape, seed=1)
    x, last = (a.to(memory_format=torch.channels_last) for a in (plain, m))
    expected = nf.update(TABLE, 1, plain, m)
    assert torch.equal(nf.update(TABLE, 1, x, last), expected)
    assert torch.equal(nf.update(TABLE, 1, x, last, out=torch.empty(shape)), expected)
    assert torch.equal(nf.update(TABLE, 1, x, m), expected)
    assert torch.equal(nf.update(TABLE, 1, plain, last), expected)
    two = nf.update(ANY, 2, plain, (m, m), past=[m] * 4, noise=plain, aux_out=2)
    aux = [torch.empty(shape), torch.empty(shape)]
    found = nf.update(ANY, 2, x, (last, last), past=[last] * 4, noise=x, aux_out=aux)
    assert all(torch.equal(a, b) for a, b in zip((found, *aux), two, strict=True))


def test_a_loss_keeps_the_memory_format():
    """The gradient keeps the format, whether backward() computes it, returns it, or scales it."""
    plain, g = tensor(2, 3, 4, 5), tensor(2, 3, 4, 5, seed=1)
    x = plain.to(memory_format=torch.channels_last)
    for factor in (1, 3):
        grads = []
        for pred in (plain.clone().requires_grad_(), x.clone().requires_grad_()):
            (gradient,) = torch.autograd.grad(factor * nf.mse_loss(pred, g, 3, S, N, target="v"), pred)
            grads.append(gradient)
        assert torch.equal(*grads)
        assert grads[1].stride() == x.stride()
    _, gradient = nf.mse_loss_and_grad(x, g, 3, S, N, target="v")
    assert gradient.stride() == x.stride()
    assert torch.equal(gradient, nf.mse_loss_grad(plain, g, 3, S, N, target="v"))


def test_more_axes_than_numpy_has():
    """Seen to fail: a walk wrote its shape beyond the place for it, and ended the process."""
    x = tensor(4, 6)
    for axes in (63, 64, 65, 70):
        wide = x.view(4, 6, *[1] * (axes - 2))
        for most, call in (
            (64, lambda x: nf.q_sample(x, 3, S, N)),
            (63, lambda x: nf.q_walk(x, S, N, keep=[3, 7])),
        ):
            if axes <= most:
                assert same(call(wide).flatten(), call(numpy(x)).ravel())
            else:
                with pytest.raises(
                    ValueError, match=r"number of dimensions must be within|maximum supported dimension"
                ):
                    call(wide)


def test_what_has_no_format_is_in_c_order():
    """Walks have one more axis; kernels make plain tensors of transposed ones."""
    x = tensor(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for made in (nf.q_walk(x, S, N, keep=[1, 2]), nf.q_sample(x.mT, 3, S, N), nf.q_sample(tensor(6, 4).t(), 3, S, N)):
        assert made.is_contiguous()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_gradient_is_the_transposed_row(dtype):
    table = random_table(clamps=True)
    x, m1, m2, *past, g = (tensor(3, 40, dtype=dtype, seed=s) for s in range(8))
    m1 = m1.double()  # of another dtype: converted, and its gradient too
    inputs = [a.requires_grad_() for a in (x, m1, m2, *past)]
    nf.update(table, 2, x, (m1, m2), past=past, noise=N).backward(g)
    arrays = numpy(x), (numpy(m1), numpy(m2))
    for a, backward in zip(inputs, table.transpose().values(), strict=True):
        expected = nf.update(backward, 2, *arrays, past=[numpy(g)])
        assert same(a.grad, expected.astype("f8") if a is m1 else expected)


GRAPHS = {
    "q_sample": lambda x: nf.q_sample(x, [3, 5], S, N),
    "its target": lambda x: sum(nf.q_sample(x, 3, S, N, target="v", scale=2.0)),
    "float times": lambda x: nf.q_sample(x, [0.2, 0.4], nf.Schedule.flow(), N, dtype="float64"),
    "q_step": lambda x: nf.q_step(x, torch.tensor([3, 5]), S, [N, N.at(sample=9)]),
    "update": lambda x: sum(nf.update(ANY, 2, x, (x.sin(), x.cos()), past=[x, x, x, x], noise=N, aux_out=2)),
    "a step": lambda x: SAMPLERS["ddpm"].step(2, x, x.sin(), N),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_plain_call_in_a_graph_is_the_checked_one(name, dtype, monkeypatch):
    """With its gradients, first and second. Seen to fail: the gradient of a target without its scale."""

    def derivatives():
        x = tensor(2, 3, 4, dtype=dtype, grad=True)
        result = GRAPHS[name](x)
        (first,) = torch.autograd.grad(result.double().square().sum(), x, create_graph=True)
        return result, first, *torch.autograd.grad(first.sum(), x)

    taken, in_graph = [], interop.library.in_graph
    monkeypatch.setattr(interop.library, "in_graph", lambda *given: taken.append(in_graph(*given)) or taken[-1])
    found = derivatives()
    assert nf.info()["backend"] != "native" or any(one is not NotImplemented for one in taken)
    monkeypatch.setattr(interop.library, "in_graph", lambda *given: NotImplemented)
    assert all(map(torch.equal, found, derivatives()))


def test_slopes_are_not_rounded_to_the_results_dtype():
    """Seen to fail: slopes of the forward process as float16."""
    x, g = tensor(16, 16, grad=True), tensor(16, 16, dtype=torch.float16, seed=1)
    nf.q_sample(x, 10, S, N, dtype="float16").backward(g)
    assert torch.equal(x.grad, (float(np.float32(S.alpha[10])) * g.float()).half().float())


def test_a_graph_keeps_no_more_than_a_clamp_needs():
    """Seen to fail: inputs kept for rows without a gradient, which may be overwritten."""
    for clip in (None, 1.0):
        x, m = tensor(3, 4), tensor(3, 4, grad=True)
        y = nf.update(nf.samplers.ddim(S, steps=4, clip=clip).tableau, 1, x, m).sum()
        x.zero_()
        if clip is None:
            y.backward()
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.backward()


def test_what_autograd_has_to_know():
    x = tensor(3, 4, grad=True)
    for out in (torch.zeros(3, 4), torch.zeros(3, 4)[:]):  # the fast path, and the checked path
        scaled = (x * out).sum()
        nf.q_sample(X, 3, S, N, out=out) if out._base is None else nf.q_walk(
            X[:1], S, N, keep=[1, 2, 3], out=out[:, None]
        )
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            scaled.backward()
    times = torch.tensor([1, 5, 19])
    noised = nf.q_sample(x, times, S, N).sum()
    times += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        noised.backward()
    for name, call in (
        ("out", lambda: nf.q_sample(x, 3, S, N, out=torch.zeros(3, 4))),
        ("target_out", lambda: nf.q_sample(x, 3, S, N, target="v", target_out=torch.zeros(3, 4))),
        ("out", lambda: SAMPLERS["ddim"].step(1, X, x, out=X.clone())),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected None, as an input requires grad"):
            call()
    with pytest.raises(NotImplementedError, match="noise: gradients with respect to it"):
        nf.q_sample(X, 3, S, x)
    with pytest.raises(NotImplementedError, match="t: gradients with respect to it"):
        nf.q_sample(X, torch.tensor(0.5, requires_grad=True), FLOW, N)
    sampler = SAMPLERS["dpmpp_2m_sde"]  # free arrays of the state may have been in another graph
    state = sampler.state(X)
    for i, y in enumerate((x, X, X, X)):
        sampler.step(i, y, X, N, state)
    with torch.no_grad():
        assert nf.q_sample(X, 3, S, N, out=x) is x
        assert not nf.q_sample(x, 3, S, N).requires_grad
    with torch.inference_mode():
        inference = nf.q_sample(x, 3, S, N)
        assert nf.q_sample(inference, 3, S, N, out=inference) is inference
    assert nf.q_sample(torch.nn.Parameter(X), 3, S, N).requires_grad


# ---- torch.compile -----------------------------------------------------------------------------------------


def compiled(function, backend="aot_eager"):
    if not torch_internals.FOLLOWED:
        pytest.skip("from torch 2.10 on")
    torch.compiler.reset()
    private("torch._dynamo.utils", "counters").clear()
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.skipif(torch_internals.FOLLOWED, reason="this torch follows the library")
def test_graphs_break_in_older_versions():
    """It runs in a new process, without earlier calls. Seen to fail: without the rule for Dynamo, which raised."""
    code = """
import torch, noisefuse as nf
schedule, x = nf.Schedule.linear(20), torch.ones(2, 3)
sampler = nf.samplers.ddim(schedule, steps=4)
def f(x):
    return nf.q_sample(x * 2, 3, schedule, nf.Noise(1)).sin()
def g(x):
    return nf.update(sampler.tableau, 0, x * 2, x, noise=nf.Noise(1)).sin()
for function in f, g:
    assert torch.equal(torch.compile(function, backend="aot_eager")(x), function(x))
    torch.compiler.reset()
    try:
        torch.compile(function, backend="aot_eager", fullgraph=True)(x)
    except torch._dynamo.exc.Unsupported as error:
        assert "noisefuse" in str(error), error
    else:
        raise AssertionError("not refused")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def graphs():
    return private("torch._dynamo.utils", "counters")["stats"]["unique_graphs"]


def equal(results, expected):
    assert len(results) == len(expected)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(results, expected, strict=True))


MANY = {"list": [N, N.at(sample=5)], "ids": N.at(sample=[3, 1]), "window": N.window((5,), (2,))}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("noise", MANY.values(), ids=MANY)
def test_graphs_break_at_noise_that_they_cannot_have(noise):
    """The plain call after it compiles whole, too. Seen to fail: Dynamo raised an AssertionError about ids that could
    not be made writable, and did so in all later calls."""

    def run(x, noise):
        drawn = nf.randn((2, 3), noise, dtype=torch.float32) + nf.q_sample(2 * x, 5, S, noise)
        return drawn, nf.mse_loss(drawn, x, 5, S, noise, target="v"), nf.mse_loss_grad(x, x, 5, S, noise, target="v")

    x = torch.ones(2, 3)
    whole = compiled(run)
    with pytest.raises(private("torch._dynamo.exc", "Unsupported"), match="no graph can have this call of noisefuse"):
        whole(x, noise)
    torch.compiler.reset()
    assert equal(torch.compile(run, backend="aot_eager")(x, noise), run(x, noise))
    assert equal(compiled(run)(x, N), run(x, N))


LEARNED = torch.tensor(0.5, requires_grad=True)
BREAK = {
    "noised": lambda x: nf.noised(x, 0.5, torch.tensor([0.25, 0.5]), N),
    "noised with a target": lambda x: nf.noised(x, LEARNED, 0.25, N, target="v"),
    "interpolate": lambda x: nf.interpolate(x, x, 0.5, BRIDGE, N),
    "interpolate with a target": lambda x: nf.interpolate(x, x, [0.25, 0.5], BRIDGE, N, target="velocity"),
    "gaussian": lambda x: nf.augment.gaussian(x.detach(), 0.5, N),
    "offset_like": lambda x: nf.fields.offset_like(x.detach(), 0.5, N),
    "pyramid_like": lambda x: nf.fields.pyramid_like(x.detach(), 0.5, N),
    "mixed_like": lambda x: nf.fields.mixed_like(x.detach(), 0.5, N),
    "progressive_like": lambda x: nf.fields.progressive_like(x.detach(), 0.5, N),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo's, where it resumes
@pytest.mark.parametrize("name", BREAK)
def test_graphs_break_at_functions_that_they_cannot_have(name):
    """Seen to fail: Dynamo traced how rows of `noised` and `interpolate` are made, and what fields are made of, and
    raised errors of its own."""
    function, x = BREAK[name], tensor(2, 3, 4, grad=True)
    torch.compiler.reset()
    made = [f(x) for f in (torch.compile(function, backend="eager"), function)]
    found, expected = (each if isinstance(each, tuple) else (each,) for each in made)
    assert equal(found, expected)
    if expected[0].requires_grad:
        found, expected = (torch.autograd.grad(each[0].sum(), x) for each in (found, expected))
        assert equal(found, expected)
    with pytest.raises(private("torch._dynamo.exc", "Unsupported"), match="no graph can have this call of noisefuse"):
        compiled(function, "eager")(x)


def test_compiled_code_reads_the_numbers_of_schedules():
    """Seen to fail: the same AssertionError."""
    function = compiled(lambda x: x * float(S.alpha[3]), "eager")
    assert torch.equal(function(torch.ones(2)), torch.ones(2) * float(S.alpha[3]))


@pytest.mark.parametrize("dtype", first_and_slow([*FLOATS, torch.uint8]), ids=str)
def test_compiled_forward_process(dtype):
    def function(x, t, z, noise):
        results = [
            *nf.q_sample(x, t, S, noise, target="v"),
            *nf.q_sample(x, 3, S, z, target="epsilon", dtype=torch.float32, scale=1.5),
            nf.q_sample(x, t, S, noise.at(step=4), out=torch.zeros(3, 4, dtype=torch_arrays.NAMED["float32"]))
            if x.dtype == torch.uint8
            else nf.q_sample(x, t, S, noise, out=torch.zeros_like(x)),
            nf.uniform(3, noise, dtype=torch.float64),
            nf.randn((2, 3), noise, dtype=torch.bfloat16),
        ]
        if x.dtype != torch.uint8:
            results += [nf.q_step(x, t, S, noise), nf.q_walk(x, S, noise, keep=[2, 3])]
        return results

    call = compiled(function)
    x, z = tensor(3, 4, dtype=dtype), tensor(3, 4, seed=1)
    for k in range(4):
        arguments = x, torch.tensor([k, 5, 7]), z, N.at(step=k)
        assert equal(call(*arguments), function(*arguments))
    assert graphs() <= 2  # the second knows that steps change


@pytest.mark.parametrize("name", first_and_slow(n for n in SAMPLERS if n != "threshold"))
def test_compiled_samplers_and_their_gradients(name):
    sampler = SAMPLERS[name]

    def function(x, w, noise):
        state = sampler.state(x)
        for i in range(len(sampler)):
            x = sampler.step(i, x, w * x, noise, state)
        return x

    call, w = compiled(function), tensor(4, seed=2, grad=True)
    for x in (tensor(3, 4), tensor(3, 4, grad=True)):
        made, expected = call(x, w, N), function(x, w, N)
        assert torch.equal(made, expected)
        wanted = [w, x] if x.requires_grad else [w]
        assert equal(torch.autograd.grad(made.sum(), wanted), torch.autograd.grad(expected.sum(), wanted))


@pytest.mark.parametrize("name", first_and_slow(n for n in SAMPLERS if n != "threshold"))
def test_compiled_runs(name):
    """Compares whole runs, and their steps with the model's inputs."""
    sampler = SAMPLERS[name]

    def model(x, t):
        return torch.tanh(x) * t[:, None] / 1000

    def function(x, noise):
        y, state = x, sampler.state(x)
        for i in range(len(sampler)):
            y = sampler.step(i, y, model(*sampler.model_input(i, y)), noise, state)
        return y, sampler.sample(model, x, noise)

    x = tensor(3, 4)
    assert equal(compiled(function)(x, N), function(x, N))


@pytest.mark.parametrize("dtype", first_and_slow(FLOATS), ids=str)
def test_compiled_ways_into_a_run(dtype):
    """New samplers, which no plain call has used. Their x is scaled or not, and begins at 1 or above. Seen to fail:
    rows of noise levels that are made when they are first asked for, which Dynamo cannot trace."""
    karras = nf.samplers.euler(nf.Schedule.karras(9), 3)
    samplers = [nf.Sampler(sampler.tableau) for sampler in (SAMPLERS["ddim"], EULER, karras)]

    def function(x, noise):
        found, given = [], {"dtype": x.dtype}
        for sampler in samplers:
            found += sampler.model_input(1, x)
            found += sampler.model_input(1, x, out=torch.zeros_like(x))
            found += sampler.start((3, 4), noise, **given), sampler.start((3, 4), noise, device=x.device)
            found.append(sampler.start((3, 4), noise, **given, out=torch.zeros_like(x)))
            found += sampler.noised(1, 2 * x, noise), sampler.noised(1, x, noise, out=torch.zeros_like(x))
        return found

    call, x = compiled(function), tensor(3, 4, dtype=dtype)
    for noise in (N, N.at(step=3)):
        assert equal(call(x, noise), function(x, noise))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_time_of_a_batch(dtype):
    """It holds in compiled code, too. Integers give int64; floats give float32, or float64 if x is."""
    levels = torch.float64 if dtype == torch.float64 else torch.float32
    exploding = nf.samplers.euler(nf.Schedule.karras(9), 3)
    for sampler, kind in ((nf.samplers.ddpm(S, 3), torch.int64), (exploding, levels)):

        def function(x, sampler=sampler):
            seen = []
            y = sampler.sample(lambda x, time: seen.append(time) or x, x, N, time="batch")
            return y, *seen

        y, *seen = function(x := tensor(2, 5, dtype=dtype))
        assert torch.equal(y, sampler.sample(lambda x, t: x, x, N))
        assert equal(seen, [torch.full((2,), t.item(), dtype=kind) for t in sampler.timesteps])
        assert equal(compiled(function)(x), (y, *seen))


@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_what_makes_a_run_one_of_tensors(name):
    """With a device or a dtype, the network gets the time as a tensor; or the model's first answer decides. Seen to
    fail: device= was no argument, and the time a number of NumPy's."""
    sampler, asked = SAMPLERS[name], []
    expected = sampler.sample(lambda x, t: 0.5 * x, (3, 4), N)

    def network(x, t):
        assert t.shape == (3,)
        return 0.5 * torch.nn.functional.dropout(x, training=False)

    def converts(x, t):
        asked.append((type(x), type(t)))
        return 0.5 * torch.from_numpy(x)

    for given in ({"dtype": torch.float32}, {"device": "cpu"}, {"dtype": "float32", "device": torch.device("cpu")}):
        found = sampler.sample(network, (3, 4), N, **given)
        assert torch.equal(found, torch.from_numpy(expected))
        assert torch.equal(sampler.start((3, 4), N, **given), torch.from_numpy(sampler.start((3, 4), N)))
    assert torch.equal(sampler.sample(converts, (3, 4), N), torch.from_numpy(expected))
    assert asked == [(np.ndarray, type(sampler.timesteps[0]))] * len(
        sampler
    )  # seen to fail: tensors from the second on
    assert torch.equal(sampler.sample(converts, (3, 4), N, time="batch"), torch.from_numpy(expected))
    assert asked[len(sampler) :] == [(np.ndarray, np.ndarray)] * len(sampler)
    guided = {"guidance_scale": 1.5}
    assert torch.equal(
        sampler.sample(lambda x, t: (converts(x, t), converts(x, t)), (3, 4), N, **guided),
        torch.from_numpy(sampler.sample(lambda x, t: (0.5 * x, 0.5 * x), (3, 4), N, **guided)),
    )


def test_a_model_that_converts_arrays_gives_no_gradient():
    """A part of a gradient would come back, bypassing the arrays. Seen to fail: x of the first row with a gradient."""
    weight = torch.full((1,), 0.5, requires_grad=True)
    seen = []
    given = {"callback": lambda i, x, denoised: seen.append(x)}
    found = SAMPLERS["ddim"].sample(lambda x, t: weight * torch.from_numpy(x), (3, 4), N, **given)
    assert not any(x.requires_grad for x in [found, *seen])
    assert len(seen) == 4
    assert torch.equal(found, SAMPLERS["ddim"].sample(lambda x, t: weight * x, (3, 4), N, device="cpu"))


def test_runs_in_which_arrays_and_tensors_meet():
    """Seen to fail: "IndexError: invalid index to scalar variable", also with dtype="float32", and an error of a later
    step."""
    sampler = SAMPLERS["ddim"]
    network = lambda x, t: x * t[:, None]  # noqa: E731
    options = r"give dtype=torch\.float32 or device=\"cpu\", .* dtype=jnp\.float32"
    wrong = {IndexError: network, TypeError: lambda x, t: torch.sin(x), AttributeError: lambda x, t: x.to(t)}
    for kind, model in wrong.items():
        with pytest.raises(TypeError, match=f"^model: {kind.__name__} .* where x is NumPy's .*{options}") as caught:
            sampler.sample(model, (3, 4), N)
        assert isinstance(caught.value.__cause__, kind)
    own = {  # a model of NumPy's arrays has errors of its own
        TypeError: lambda x, t: (lambda a: a)(), IndexError: lambda x, t: x[5], AttributeError: lambda x, t: None.gain,
    }  # fmt: skip
    for kind, model in own.items():
        with pytest.raises(kind) as caught:
            sampler.sample(model, (3, 4), N)
        assert "torch" not in str(caught.value)
    for given, words in (((np.zeros((3, 4), "f4"),), {}), (((3, 4),), {"dtype": "float32"})):
        with pytest.raises(TypeError, match=r"model: expected NumPy's arrays, as x is one, got torch\.Tensor in row 0"):
            sampler.sample(lambda x, t: torch.as_tensor(x), *given, N, **words)
    with pytest.raises(TypeError, match=options):
        sampler.sample(network, (3, 4), N, dtype="float32")
    with pytest.raises(IndexError, match="invalid index"):  # the caller knows that x is NumPy's
        sampler.sample(network, np.zeros((3, 4), "f4"), N)
    with pytest.raises(TypeError, match=r"device: expected None where x is given"):
        sampler.sample(network, torch.zeros(3, 4), N, device="cpu")
    with pytest.raises(
        TypeError, match=r"model: expected an array like x, torch\.float32 of shape \(3, 4\), or a pair .*dict in r"
    ):
        sampler.sample(lambda x, t: {"sample": x}, torch.zeros(3, 4), N)


def test_noise_drawn_before():
    sampler, x = nf.samplers.ddpm(S, 4), tensor(2, 3)
    drawn = torch.stack([nf.randn_like(x, N.at(step=N.step + i, stream=3)) for i in range(4)])
    expected = sampler.sample(lambda x, t: torch.cos(x), x, N)
    for given in (drawn, [*drawn[:-1], None]):
        assert torch.equal(sampler.sample(lambda x, t: torch.cos(x), x, given), expected)


def test_randn_like():
    for dtype in (*FLOATS, torch.uint8, torch.bool):
        x = torch.ones(2, 3).to(dtype)
        kind = dtype if dtype in FLOATS else torch.float32
        assert torch.equal(nf.randn_like(x, N), nf.randn((2, 3), N, dtype=kind))
    for dtype in (torch.float64, "float64", np.float64):
        assert torch.equal(nf.randn_like(x.mT, nf.Noise(7), dtype=dtype, batched=False),
                           nf.randn((3, 2), nf.Noise(7), dtype=torch.float64, batched=False))  # fmt: skip
    assert torch.equal(compiled(lambda x: nf.randn_like(x, N))(x), nf.randn_like(x, N))
    for like, dtype in ((x, torch.int32), (x, "int32"), (x, "uint8"), (x, "seven"), (x.to(torch.complex64), None)):
        with pytest.raises(TypeError, match=r"dtype .*: expected one of torch\.float32, "):
            nf.randn_like(like, N, dtype=dtype)
    with pytest.raises(TypeError, match=r"x: expected an array of NumPy, .* DLPack, got dtype"):
        nf.randn_like(torch.float32, N)  # seen to fail: an AttributeError


@pytest.mark.parametrize("draw", [nf.randn, nf.uniform])
def test_device(draw):
    """For a CUDA device, see test_torch_device.py."""
    expected = draw((2, 3), N, dtype=torch.float64)
    for device in ("cpu", torch.device("cpu")):
        for dtype in (torch.float64, np.float64, "float64"):  # the device asks for a tensor
            assert torch.equal(draw((2, 3), N, dtype=dtype, device=device), expected)
        assert draw((2, 3), N, device=device).dtype == torch.float32
        assert torch.equal(compiled(lambda d=device: draw((2, 3), N, dtype=torch.float64, device=d))(), expected)
    with pytest.raises(TypeError, match=r"dtype 'uint8': expected one of torch\.float32"):
        draw((2, 3), N, dtype="uint8", device="cpu")
    with pytest.raises(ValueError, match="device: given with out="):
        draw((2, 3), N, dtype=torch.float64, device="cpu", out=expected)
    with pytest.raises(NotImplementedError, match="got one on meta"):
        draw((2, 3), N, dtype=torch.float64, device="meta")
    with pytest.raises(ValueError, match=r"shape \(-2,\)"):
        draw(-2, N, dtype=torch.float64, device="cpu")


def test_compiled_image_to_image():
    sampler, x0 = nf.samplers.ddim(S, 5), tensor(3, 4)

    def function(x):
        return sampler.noised(2, x, N), sampler.model_input(2, x, out=torch.empty_like(x))[0]

    assert equal(compiled(function)(x0), function(x0))


@pytest.mark.slow
def test_guidance_breaks_the_graph():
    """Its tables are made in NumPy, which no compiler traces."""
    sampler, x = nf.samplers.ddim(S, 5), tensor(3, 4)

    def function(x, w):
        return 2 * sampler.step(2, 3 * x, (0.1 * x, 0.2 * x), guidance_scale=w)

    for w in (2.0, [1.0, 2.0, 3.0]):
        assert torch.equal(torch.compile(function, backend="aot_eager")(x, w), function(x, w))
    with pytest.raises(private("torch._dynamo.exc", "Unsupported"), match="untraced"):
        compiled(function)(x, 2.0)


def test_compiled_gradients_of_the_forward_process():
    def function(x, t):
        x_t, target = nf.q_sample(x, t, S, N, target="flow")
        return (x_t * target).sum() + nf.q_step(x, t, S, N).sum() + nf.q_walk(x, S, N).sum()

    call, x = compiled(function), tensor(3, 4, dtype=torch.float64, grad=True)
    (made,), (expected,) = (torch.autograd.grad(f(x, TIMES), x) for f in (call, function))
    assert torch.equal(made, expected)


@pytest.mark.parametrize("noise", [None, tensor(3, 4, seed=1)], ids=["none", "an array"])
def test_compiled_gradients_where_nothing_is_drawn(noise):
    sampler = nf.samplers.ddim(S, 5, eta=0.0 if noise is None else 1.0)

    def function(x):
        return sampler.step(2, x, x * x, noise).sum()

    call, x = compiled(function), tensor(3, 4, grad=True)
    (made,), (expected,) = (torch.autograd.grad(f(x), x) for f in (call, function))
    assert torch.equal(made, expected)


@pytest.mark.slow
def test_one_graph_for_all_rows_and_seeds():
    sampler = SAMPLERS["ddpm"]

    def function(i, x, m, noise):
        return sampler.step(i, x, m, noise)

    call = compiled(function)
    for i in range(4):
        for seed in (0, 1, 2**63, 2**64 - 1):
            arguments = i, X, X, Noise(seed, step=i)
            assert torch.equal(call(*arguments), function(*arguments))
    assert graphs() <= 5


def test_other_tables_and_options_are_seen():
    def function(x, table, target):
        return nf.q_sample(x, 5, table, N, target=target)

    call, other = compiled(function), Schedule.cosine(20)
    for table in (S, other, S, Schedule.linear(20)):
        for target in ("v", "epsilon"):
            assert equal(call(X, table, target), function(X, table, target))


def test_errors_in_a_graph():
    call = compiled(lambda x, t: nf.q_sample(x, t, S, N))
    with pytest.raises(IndexError, match="t = 20 is out of range"):
        call(X, torch.tensor([1, 2, 20]))
    with pytest.raises(private("torch._dynamo.exc", "Unsupported"), match=r"out: expected torch\.float32 of shape"):
        compiled(lambda x, out: nf.q_sample(x, 1, S, N, out=out))(X, torch.zeros(2, 3, 4))


@pytest.mark.slow
def test_inductor():
    def function(x, t):
        return nf.q_sample(x, t, S, N, target="v")

    assert equal(compiled(function, "inductor")(X, TIMES), function(X, TIMES))


@pytest.mark.parametrize("t", [0.3, [0.3, 0.7, 0.1]])
def test_float_times_of_python_in_compiled_code(t):
    """Seen to fail: rounded to float32 before the graph."""

    def function(x):
        return nf.q_sample(x, t, FLOW, N, target="v")

    x = tensor(3, 4, dtype=torch.float64)
    assert equal(compiled(function)(x), function(x))


def test_what_compiled_code_calls_has_one_number_for_each_value():
    """Seen to fail: a number for each new schedule."""
    fields = "q_sample", (("target", None),), ("x",), 1
    number = torch_graph.number_of(S, interop.RowCall, *fields)
    assert torch_graph.number_of(Schedule.linear(20), interop.RowCall, *fields) == number
    others = Schedule.linear(20, beta_end=0.5), FLOW
    assert len({number, *(torch_graph.number_of(other, interop.RowCall, *fields) for other in others)}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad):
    """torch's own checks: schema, fake tensors, autograd registration, dynamic shapes."""
    x, words = tensor(3, 4, dtype=torch.float64, grad=grad), torch_graph.words_of(N)
    names = {
        "v": (S, "q_sample", (("target", "v"),), ("x",), 2),
        "step": (S, "q_step", (), ("x",), 1),
        "walk": (S, "q_walk", (("keep", (1, 2)),), ("x",), 1),
        "update": (random_table(clamps=True), "update", (), ("x", "m1", "m2", "past1", "past2", "past3", "past4"), 3),
    }
    for name, fields in names.items():
        number, tensors = torch_graph.number_of(fields[0], interop.RowCall, *fields[1:]), [x] * len(fields[3])
        for row, times in ((3, None), (None, torch.tensor([1, 2, 3]))):
            torch.library.opcheck(torch.ops.noisefuse.apply, (number, row, times, tensors, words))
            if not grad:
                grads = [torch.ones(2, 3, 4) if name == "walk" else torch.ones(3, 4)] * fields[4]
                kept = [x, x, x] if name == "update" else []
                grads = [g.double() for g in grads]
                torch.library.opcheck(
                    torch.ops.noisefuse.gradient, (number, "x", [3, 4], torch.float64, row, times, kept, words, grads)
                )
    torch.library.opcheck(torch.ops.noisefuse.random, ("randn", [3, 4], "float32", words, True, X.device))


# ---- data loaders ------------------------------------------------------------------------------------------


class Noised(Dataset):
    """Images are noised in the loader: item i is sample i of the seed, at an epoch's step."""

    def __init__(self, epoch):
        self.images = tensor(20, 3, 40, 50, dtype=torch.uint8)
        self.noise = Noise(11, step=epoch)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        noise = self.noise.at(sample=i)
        t = int(1000 * nf.uniform(1, noise)[0]) % len(S)
        x_t, target = nf.q_sample(self.images[i : i + 1], t, S, noise, target="epsilon")
        return i, t, x_t[0], target[0]


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_noise_as_one_process_does(start):
    data = Noised(epoch=3)
    nf.q_sample(tensor(64, 3, 64, 64), 3, S, N)  # threads exist before the fork
    alone = [data[i] for i in range(len(data))]
    loader = DataLoader(data, batch_size=3, shuffle=True, num_workers=2, multiprocessing_context=start, timeout=120)
    seen = 0
    for ids, times, x_t, target in loader:
        for b, i in enumerate(ids.tolist()):
            assert times[b] == alone[i][1]
            assert torch.equal(x_t[b], alone[i][2])
            assert torch.equal(target[b], alone[i][3])
        batch = nf.q_sample(data.images[ids], times, S, data.noise.at(sample=ids), target="epsilon")
        assert equal(batch, (x_t, target))
        seen += len(ids)
    assert seen == len(data)


def test_a_class_of_tensors_of_ones_own():
    x = tensor(2, 3)
    assert same(nf.q_sample(x.as_subclass(Own), 3, S, N), nf.q_sample(numpy(x), 3, S, N))


# ---- memory that was freed ---------------------------------------------------------------------------------


def freed(view=lambda x: x, place=0, dtype=torch.float32):
    """Returns a view of a parameter as FSDP leaves it: its memory was given back."""
    x = torch.ones(8, 3, 4, 5, dtype=dtype)
    made = view(x[place : place + 4])
    x.untyped_storage().resize_(0)
    return made


ONES = torch.ones(4, 3, 4, 5)
FREED = {
    "x0": lambda x: nf.q_sample(x(), 3, S, N),
    "x0 of another layout": lambda x: nf.q_sample(x(lambda x: x.permute(0, 2, 3, 1)), 3, S, N),
    "x0 of bfloat16": lambda x: nf.q_sample(x(dtype=torch.bfloat16), 3, S, N),
    "x0 that requires grad": lambda x: nf.q_sample(x(lambda x: x.detach().requires_grad_()), 3, S, N),
    "out": lambda x: nf.q_sample(ONES, 3, S, N, out=x()),
    "noise": lambda x: nf.q_sample(ONES, 3, S, x()),
    "t": lambda x: nf.q_sample(ONES, x(lambda x: x[:, 0, 0, 0]), FLOW, N),
    "model_output": lambda x: nf.update(TABLE, 1, ONES, x()),
    "pred": lambda x: nf.mse_loss(x(), ONES, 3, S, N, target="v"),
    "weight": lambda x: nf.mse_loss(
        ONES, ONES, torch.zeros(4, dtype=int), S, N, target="v", weight=x(lambda x: x.flatten()[:20])
    ),
    "logits": lambda x: nf.categorical(x(), N),
    "alpha": lambda x: nf.noised(ONES, x(lambda x: x[:, 0, 0, 0]), 0.5, N),
    "tensor": lambda x: nf.interpolate(ONES, ONES, x(lambda x: x[:, 0, 0, 0]), nf.paths.linear()),
}


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("name", FREED)
def test_memory_that_was_freed(name, place):
    """Seen to read whatever lay there: NumPy's own new memory at place 0; elsewhere it ended the process."""
    message = rf"^{name.split()[0]}.*: expected a tensor with its memory, .* resized to 0 bytes"
    with pytest.raises(ValueError, match=message):
        FREED[name](lambda *view, **options: freed(*view, place=place, **options))


def test_tokens_into_memory_that_is_too_short():
    """Seen to fail: 48 tokens were written to memory of 47."""
    out = torch.zeros(4, 3, 4, dtype=torch.int64)
    out.untyped_storage().resize_(8 * 47)
    with pytest.raises(ValueError, match=r"^out: expected a tensor with its memory, .* resized to 376 bytes"):
        nf.categorical(ONES, N, out=out)


@pytest.mark.parametrize("name", sorted(FREED.keys() - {"t", "alpha", "tensor", "weight"}))  # these need what is left
@pytest.mark.parametrize("place", [0, 2])
def test_memory_that_is_too_short(name, place):
    """Seen to fail: the fast path read, and wrote, beyond memory that was cut, and ended the process."""

    def cut(view=lambda x: x, dtype=torch.float32):
        x = torch.ones(8, 3, 4, 5, dtype=dtype)
        made = view(x[place : place + 4])
        x.untyped_storage().resize_(x.itemsize * (60 * place + 179))
        return made

    with pytest.raises(ValueError, match=rf"^{name.split()[0]}.*: expected a tensor with its memory, .* resized to"):
        FREED[name](cut)


@pytest.mark.parametrize("name", [name for name in FREED if "requires grad" not in name])  # torch refuses it there
@pytest.mark.parametrize("place", [0, 2])
def test_functional_tensors_have_no_memory(name, place):
    """Seen to fail: NumPy's new memory was read, and written, at place 0; elsewhere it ended the process."""

    def call(one):
        def make(view=lambda x: x, dtype=torch.float32):
            return view((torch.ones(8, 3, 4, 5, dtype=dtype) * one.to(dtype))[place : place + 4])

        return FREED[name](make)

    with pytest.raises(TypeError, match=r"expected a tensor with memory of its own, not one of torch\.func"):
        torch.func.functionalize(call)(torch.ones(()))


def test_the_last_element_may_be_the_memory_s_last():
    x = torch.ones(8, 3, 4, 5)[2:6]
    expected = nf.q_sample(x, 3, S, N)
    x.untyped_storage().resize_(4 * 60 * 6)
    assert torch.equal(nf.q_sample(x, 3, S, N), expected)
