# SPDX-License-Identifier: Apache-2.0
"""torch tensors of a CUDA device, without a device.

On the stand-in for CuPy (cuda_kernels/stand_in.py) CPU tensors count as tensors of cuda:1: one function, which gives a
tensor's device, is replaced, and torch's stream has a made-up handle. Everything else is as for a real tensor: who
allocates memory, which device and stream kernels run on, what is read back. test_torch_device.py tests a device.

Seen to fail: the stream or the device not entered; results in CuPy's own memory; the offset of a view left out; times
read back; a compiled draw on the CPU; a fast path that ignores the device of a tensor.
"""

import re
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

import noisefuse as nf
from conftest import bits, one_in
from cuda_kernels import stand_in
from noisefuse import backends

torch = pytest.importorskip("torch")

from noisefuse.interop import torch as interop  # noqa: E402
from noisefuse.interop.torch import arrays as torch_arrays  # noqa: E402
from noisefuse.interop.torch import graph as torch_graph  # noqa: E402
from noisefuse.interop.torch import loss as torch_loss  # noqa: E402
from private_names import private  # noqa: E402
from test_torch import (  # noqa: E402
    CALLS,
    DIFFERENTIABLE,
    FLOATS,
    FLOW,
    SAMPLERS,
    TIMES,
    N,
    S,
    X,
    compiled,
    equal,
    negative,
    numpy,
    random_table,
    same,
    tensor,
)
from test_torch_loss import CALLS as LOSSES  # noqa: E402
from test_torch_loss import arguments  # noqa: E402

CUDA, STREAM = torch.device("cuda", 1), 0x57EA


@contextmanager
def on_the_stand_in(*host):
    """Yields CuPy's stand-in. All tensors count as those of cuda:1, except those of `host`."""
    there, addresses = torch_arrays.place_of, {x.data_ptr() for x in host}

    def place(name, x):
        return CUDA if x.device.type == "cpu" and x.data_ptr() not in addresses else there(name, x)

    def current_stream(device):
        assert device == CUDA
        return SimpleNamespace(cuda_stream=STREAM)

    with stand_in.installed() as cupy, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_arrays, "place_of", place)
        patch.setattr(torch.cuda, "current_stream", current_stream)
        for name in backends.FAST_PATH:  # it sees where the memory really is: see below
            patch.setattr(backends, name, backends.declined)
        yield cupy
    assert {device for *_, device in cupy.launches} <= {CUDA.index}
    assert set(cupy.streams) <= {(CUDA.index, STREAM)}
    assert (cupy.current, cupy.stream) == (0, (0, 0))


@contextmanager
def nothing_comes_back():
    """Neither torch nor CuPy returns a value to the host, and CuPy allocates no array of its own."""

    def refused(*args, **kwargs):
        raise AssertionError("a device was asked for a value, or CuPy for memory")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("cpu", "item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, refused)
        patch.setattr(stand_in.ndarray, "get", refused)
        patch.setattr(stand_in.ndarray, "copy", refused)
        patch.setattr(stand_in.Cupy, "empty", refused)
        yield


# ---- the same bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_bits_of_the_cpu_on_the_stand_in(call, dtype):
    if dtype == torch.uint8 and "q_sample" not in call:
        pytest.skip("bytes are images, and no state of a walk")
    x, t, z = tensor(3, 5, 4, dtype=dtype), torch.tensor([1, 19, 4]), tensor(3, 5, 4, seed=1)
    expected = CALLS[call](numpy(x), t.numpy(), numpy(z))
    first = expected[0] if isinstance(expected, tuple) else expected
    out = torch.zeros(first.shape, dtype=torch_arrays.NAMED[first.dtype.name])
    with on_the_stand_in() as cupy:
        found, given = CALLS[call](x, t, z), CALLS[call](x, t, z, out=out)
        assert len(cupy.launches) >= 2
    assert same(found, expected)
    assert (given[0] if isinstance(given, tuple) else given) is out
    assert same(given, expected)
    assert out._version == 1


@pytest.mark.parametrize("watched", [False, True], ids=["alone", "watched by autograd"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_loss_of_interpolants_on_the_stand_in(dtype, watched):
    """Seen to fail: weights that are left out."""
    pred, x0, x1 = (tensor(3, 5, 4, dtype=dtype, seed=seed) for seed in range(3))
    t, path = torch.tensor([0.2, 0.5, 0.7]), nf.paths.brownian_bridge(0.5)
    options = {"target": "velocity", "weight": torch.tensor([1.0, 2.0, 3.0])}
    host = numpy(pred), numpy(x0), numpy(x1), t.numpy(), path, N
    loss, gradient = nf.interpolate_loss_and_grad(*host, **{**options, "weight": np.array([1.0, 2.0, 3.0])})
    with on_the_stand_in() as cupy:
        if watched:
            pred.requires_grad_()
            found = nf.interpolate_loss(pred, x0, x1, t, path, N, **options)
            found.backward()
            found = found.detach(), pred.grad
        else:
            found = nf.interpolate_loss_and_grad(pred, x0, x1, t, path, N, **options)
        assert len(cupy.launches) >= 1
    assert float(found[0]) == pytest.approx(loss, rel=1e-6)
    assert same(found[1], gradient)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_on_the_stand_in(name, dtype):
    sampler, x = SAMPLERS[name], tensor(3, 5, 16, dtype=dtype)
    scale = torch.tensor([1.0, 2.0, 0.5])

    def run(x):
        seen = []
        end = sampler.sample(lambda x, t: x, x, N, callback=lambda *a: seen.append(a[2]))
        guided = sampler.sample(lambda x, t: (x, x), x, N, guidance_scale=scale)
        return (end, guided, *seen)

    expected = run(numpy(x))
    with on_the_stand_in():
        assert same(run(x), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_draws_on_the_stand_in(dtype):
    for draw in (nf.randn, nf.uniform) if dtype in FLOATS[:2] else (nf.randn,):
        out = torch.zeros(3, 4, dtype=dtype)
        expected = draw((3, 4), N, dtype=torch_arrays.DTYPES[dtype])
        with on_the_stand_in() as cupy:
            assert draw((3, 4), N, dtype=dtype, out=out) is out
            assert len(cupy.launches) >= 1
        assert same(out, expected)
    start = SAMPLERS["ddim"].start((3, 4), N, dtype=torch_arrays.DTYPES[dtype])
    with on_the_stand_in():
        assert same(SAMPLERS["ddim"].start((3, 4), N, dtype=dtype, out=torch.zeros(3, 4, dtype=dtype)), start)


def test_strides_on_the_stand_in():
    x = tensor(4, 6)
    for view in (x.t(), x[:, ::2], x[1:, 2:], x[:1].expand(4, 6), x[2], torch.tensor(2.0), x[:0], negative(x)):
        expected = nf.q_sample(view.resolve_neg().numpy(), 3, S, N)
        with on_the_stand_in():
            assert same(nf.q_sample(view, 3, S, N), expected)


def test_a_counter_on_the_device_on_the_stand_in():
    expected = nf.q_sample(X, 3, S, N.at(step=41))
    with on_the_stand_in():
        counter = stand_in.ndarray(np.array(41), CUDA.index)
        assert torch.equal(nf.q_sample(X, 3, S, N.at(step=counter)), expected)


# ---- memory, devices, streams, waiting ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nothing_is_read_back_and_memory_is_torchs_on_the_stand_in(dtype):
    """The first call uploads its tables, and tests the device."""
    x, m, z = (tensor(3, 5, 16, dtype=dtype, seed=s) for s in range(3))
    sampler = SAMPLERS["dpmpp_2m_sde"]

    def calls():
        yield nf.q_sample(x, TIMES, S, N)
        yield from nf.q_sample(x, TIMES, S, N, target="v")
        yield nf.q_sample(x, 5, S, z)
        yield nf.q_step(x, TIMES, S, N)
        yield nf.q_walk(x, S, N, keep=[1, 4])
        yield nf.update(random_table(clamps=True), TIMES % 5, x, (m, z), past=[x, m, z, x], noise=N)
        state = sampler.state(x)
        for i in range(len(sampler)):
            yield sampler.step(i, x, m, N, state)
        y = x.clone().requires_grad_()
        noised = nf.q_sample(y, TIMES, S, N) + nf.q_step(y, TIMES, S, N)
        yield from torch.autograd.grad(noised.sum(), y)  # the gradient is one number, expanded

    with on_the_stand_in() as cupy:
        first = [*calls()]
        cupy.uploads.clear()
        with nothing_comes_back():
            again = [*calls()]
        assert set(cupy.uploads) <= {(5,), (5, 36)}  # which times are kept; the table that is made here anew
    assert equal(again, first)
    assert all(type(result) is torch.Tensor for result in first)


def test_the_device_and_the_stream_are_left_after_an_error_on_the_stand_in():
    with on_the_stand_in() as cupy:
        for call in (lambda: nf.q_sample(X, 20, S, N), lambda: nf.randn((3, 4), "seed", out=X.clone())):
            with pytest.raises((IndexError, TypeError)):
                call()
            assert (cupy.current, cupy.stream) == (0, (0, 0))


def test_times_of_the_host_are_checked_and_copied_on_the_stand_in():
    x, t = tensor(3, 16), torch.tensor([1, 19, 4])
    expected = nf.q_sample(x, t, S, N)
    with on_the_stand_in(t) as cupy:
        nf.q_sample(x, 3, S, N)
        cupy.uploads.clear()
        for times in (t, t.numpy(), [1, 19, 4]):
            assert torch.equal(nf.q_sample(x, times, S, N), expected)
        assert cupy.uploads == [(3,)] * 3
        t[1] = 20
        with pytest.raises(IndexError, match="t = 20 is out of range"):
            nf.q_sample(x, t, S, N)


def test_times_of_the_device_are_not_looked_at_on_the_stand_in():
    x = tensor(3, 16)
    expected = nf.q_sample(x, [1, 3, 4], S, N)
    with on_the_stand_in():
        for dtype in (torch.int64, torch.int32, torch.uint8):
            found = nf.q_sample(x, torch.tensor([1, 20, 4], dtype=dtype), S, N)
            assert torch.equal(found[::2], expected[::2])
            assert found[1].isnan().all()
        for dtype in (torch.float32, torch.bfloat16):  # a schedule's own time is read: docs/cuda.md
            u = torch.tensor([0.5, 0.25, 0.125], dtype=dtype)
            assert same(nf.q_sample(x, u, FLOW, N), nf.q_sample(x.numpy(), u.float().numpy(), FLOW, N))


# ---- views -------------------------------------------------------------------------------------------------

VIEWS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.t(),
    "a slice": lambda x: x[1:, 1::2],
    "expanded": lambda x: x[:1].expand(4, 6),
    "a number": lambda x: x[2, 3],
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8, torch.int64, torch.int32, torch.bool], ids=str)
@pytest.mark.parametrize("name", VIEWS)
def test_the_view_that_cupy_gets(name, dtype):
    """The views are those of CuPy itself, which needs no device for that, and of the stand-in."""
    view = VIEWS[name](tensor(4, 6, dtype=dtype))
    with stand_in.installed():
        array = torch_arrays._cupy_array(view, 1)
        assert bits(array.get()) == bits(numpy(view))
    cupy = pytest.importorskip("cupy")
    array = torch_arrays._cupy_array(view, 1)
    assert type(array) is cupy.ndarray
    assert (array.shape, array.dtype, array.data.device_id) == (view.shape, numpy(view).dtype, 1)
    assert array.data.ptr == view.data_ptr() or not view.numel()
    assert array.strides == numpy(view).strides or not view.numel()
    assert array.data.mem._owner is view


# ---- gradients, torch.compile ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_on_the_stand_in(name):
    x = tensor(3, 4, dtype=torch.float64, grad=True)

    def run():
        results = DIFFERENTIABLE[name](x)
        loss = sum(r.square().sum() for r in (results if isinstance(results, tuple) else (results,)))
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return first, *torch.autograd.grad(first.sum(), x)

    expected = run()
    with on_the_stand_in() as cupy:
        assert equal(run(), expected)
        assert len(cupy.launches) >= 2


@pytest.mark.parametrize("name", one_in(2, ["ddpm", "dpmpp_2m_sde", "unipc"]))
def test_gradients_through_a_sampler_on_the_stand_in(name):
    sampler, x, w = SAMPLERS[name], tensor(3, 16, grad=True), tensor(16, seed=1, grad=True)

    def run(x, w):
        state, y = sampler.state(x), x
        for i in range(len(sampler)):
            y = sampler.step(i, y, w * y, N, state)
        return y

    def gradients(run):
        y = run(x, w)
        return y, *torch.autograd.grad(y.square().sum(), (x, w))

    expected = gradients(run)
    with on_the_stand_in():
        assert equal(gradients(run), expected)
        assert equal(gradients(compiled(run)), expected)


def test_compiled_on_the_stand_in():
    """The draw is made on `out`'s device, and times in host memory are copied there."""

    def function(x, t, out, noise):
        x_t, target = nf.q_sample(x, t, S, noise, target="v")
        walked = nf.q_walk(x, S, noise, keep=[2, 3])
        return x_t, target, walked, nf.q_step(x, [1, 2, 3], S, noise), nf.randn((3, 4), noise, out=out)

    expected = function(X, TIMES, torch.zeros(3, 4), N)
    with on_the_stand_in() as cupy:
        assert equal(compiled(function)(X, TIMES, torch.zeros(3, 4), N), expected)
        assert len(cupy.launches) >= 5


def test_fake_tensors_of_cuda_need_no_device():
    """The compiler asks an operator for shapes, dtypes and devices of results."""
    ops, words = torch.ops.noisefuse, torch_graph.words_of(N)
    number = torch_graph.number_of(S, interop.RowCall, "q_walk", (("keep", (1, 2)),), ("x",), 1)
    options = ("target", "v"), ("reduction", "none"), ("batched", True)
    loss = torch_graph.number_of(S, torch_loss.Loss, "mse_loss", options, ("pred", "x0"), 1)
    like = (3, 4), torch.bfloat16
    with private("torch._subclasses.fake_tensor", "FakeTensorMode")():
        x = torch.empty(3, 4, dtype=torch.bfloat16, device="cuda:1")
        t, g = torch.empty(3, dtype=torch.int64, device="cuda:1"), torch.empty(3, device="cuda:1")
        results = {
            "apply": (*ops.apply(number, None, t, [x], words), (2, 3, 4), torch.bfloat16),
            "gradient": (
                ops.gradient(number, "x", *like, 3, None, [], words, [x.expand(2, 3, 4)]),
                (3, 4),
                torch.bfloat16,
            ),
            "random": (ops.random("randn", [3, 4], "float16", words, True, CUDA), (3, 4), torch.float16),
            "loss": (*ops.apply(loss, None, t, [x, x], words), (3,), torch.float32),
            "its": (ops.gradient(loss, "pred", *like, None, t, [x, x], words, [g]), (3, 4), torch.bfloat16),
        }
    for name, (found, shape, dtype) in results.items():
        assert (found.device, found.shape, found.dtype) == (CUDA, shape, dtype), name


def test_a_compiled_draw_is_made_where_out_lies(monkeypatch):
    """The graph has fake tensors of a device. (A torch without CUDA cannot copy those, so the copy into `out` is left
    out.)"""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def function(x, out, noise):
        return nf.q_sample(x, 3, S, noise), nf.uniform((3, 4), noise, out=out)

    monkeypatch.setattr(torch_graph, "copied", lambda result, out: result)
    with private("torch._subclasses.fake_tensor", "FakeTensorMode")():
        x = torch.empty(3, 4, device="cuda:1")
        found = compiled(function, backend)(x, torch.empty(3, 4, device="cuda:1"), N)
    assert {result.device for result in found} == {CUDA}
    draws = [node for node in graphs[0].graph.nodes if "noisefuse.random" in str(node.target)]
    assert [node.args[-1] for node in draws] == [CUDA]


# ---- losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_on_the_stand_in(name, dtype):
    (pred, *given), options = arguments(name, dtype, grad=True)
    if "weight" in options:
        options = options | {"weight": torch.tensor(options["weight"])}

    def run():
        loss = nf.mse_loss(pred, *given, **options)
        (gradient,) = torch.autograd.grad(loss, pred, torch.full_like(loss, 0.5))
        with torch.no_grad():
            return loss, gradient, *nf.mse_loss_and_grad(pred, *given, **options, out=torch.zeros_like(pred))

    expected = run()
    with on_the_stand_in() as cupy:
        found = run()
        assert len(cupy.launches) >= 3
    assert equal(found, expected)


# ---- what is refused ---------------------------------------------------------------------------------------


def test_tensors_of_two_devices_on_the_stand_in():
    host, sampler = tensor(3, 4), SAMPLERS["ddpm"]
    on_cpu, on_cuda = "cpu, the other tensors on cuda:1", "cuda:1, the other tensors on cpu"
    with on_the_stand_in(host):
        for name, where, call in (
            ("noise", on_cpu, lambda: nf.q_sample(X, 3, S, host)),
            ("noise", on_cuda, lambda: nf.q_sample(host, 3, S, X)),
            ("out", on_cpu, lambda: nf.q_sample(X, 3, S, N, out=host)),
            ("out", on_cuda, lambda: nf.q_step(host, 3, S, N, out=X)),
            ("target_out", on_cpu, lambda: nf.q_sample(X, 3, S, N, target="v", target_out=host)),
            ("t", on_cuda, lambda: nf.q_sample(host, TIMES, S, N)),
            ("i", on_cuda, lambda: nf.update(sampler.tableau, TIMES % 4, host, host, noise=N)),
            ("model_output (m1)", on_cpu, lambda: sampler.step(1, X, host, N)),
            ("past[0]", on_cpu, lambda: nf.update(random_table(True), 1, X, (X, X), past=[host] * 4, noise=N)),
            ("aux_out[0]", on_cpu, lambda: nf.update(random_table(True), 1, X, (X, X), past=[X] * 4, noise=N,
                                                      aux_out=[host])),
            ("x0", on_cpu, lambda: nf.mse_loss(X, host, 3, S, N, target="v")),
            ("upstream", on_cuda, lambda: nf.mse_loss_grad(host, host, 3, S, N, target="v", upstream=torch.ones(()))),
            ("out", on_cpu, lambda: nf.mse_loss_grad(X, X, 3, S, N, target="v", out=host)),
        ):  # fmt: skip
            with pytest.raises(ValueError) as error:
                call()
            assert str(error.value) == f"{name} lies on {where}: expected all on one device"
    assert torch.equal(host, tensor(3, 4))
    assert torch.equal(X, tensor(3, 4))


def test_without_cupy_and_triton():
    with on_the_stand_in(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", None)
        patch.setattr(torch_arrays, "_HAS_CUPY", False)
        patch.setattr(torch_arrays, "_HAS_TRITON", False)
        for call in (lambda: nf.q_sample(X, 3, S, N), lambda: nf.randn((3, 4), N, out=X.clone())):
            with pytest.raises(ImportError, match=r"need Triton or CuPy: pip install '.*\[triton\]'.*\[cuda12\]'"):
                call()


@pytest.mark.parametrize("device", ["meta", "xpu", "mps"])
def test_other_devices(device):
    with private("torch._subclasses.fake_tensor", "FakeTensorMode")():
        x = torch.empty(3, 4, device=device)
    for name, call in (
        ("x0", lambda: nf.q_sample(x, 3, S, N)),
        ("out", lambda: nf.randn((3, 4), N, out=x)),
        ("model_output (m1)", lambda: SAMPLERS["ddim"].step(1, X, x)),
        ("pred", lambda: nf.mse_loss(x, X, 3, S, N, target="v")),
    ):
        with pytest.raises(
            NotImplementedError, match=rf"^{re.escape(name)}: expected a tensor on the CPU or a CUDA .* {device}"
        ):
            call()


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_tensors_without_memory_on_the_stand_in():
    with private("torch._subclasses.fake_tensor", "FakeTensorMode")():
        x = torch.empty(3, 4, device="cuda:1")
    with on_the_stand_in() as cupy:
        with pytest.raises(TypeError, match="x0: expected a tensor with memory of its own"):
            nf.q_sample(x, 3, S, N, out=X.clone())
        assert not cupy.launches


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange API")
def test_the_fast_path_takes_no_tensor_of_another_device():
    """A changed exchange API tells the C function, which sees tensors first, that some lie on a CUDA device."""
    code = """
import ctypes, torch, noisefuse as nf
from noisefuse import backends

class DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32)]  # and more

BORROW = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))

class Api(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32 * 2), ("functions", ctypes.c_void_p * 4), ("borrow", BORROW),
                ("stream", ctypes.c_void_p)]

pointer, new = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_New
pointer.argtypes, pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
new.argtypes, new.restype = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p), ctypes.py_object
NAME = b"dlpack_exchange_api"
real, mine = Api.from_address(pointer(torch.Tensor.__dlpack_c_exchange_api__, NAME)), Api()
ctypes.memmove(ctypes.byref(mine), ctypes.byref(real), ctypes.sizeof(Api))
there = set()

def borrow(tensor, out):
    failed = real.borrow(tensor, out)
    if tensor.data_ptr() in there:
        out[0].device_type = 2  # kDLCUDA
    return failed

mine.borrow = BORROW(borrow)
torch.Tensor.__dlpack_c_exchange_api__ = new(ctypes.addressof(mine), NAME, None)

S = nf.Schedule.linear(20)
names = x, t, z, out = torch.ones(3, 4), torch.tensor([1, 2, 3]), torch.ones(3, 4), torch.zeros(3, 4)
nf.q_sample(x, t, S, z, out=out)
rows = S.kept.plain[None]
for subset in [(), *((a,) for a in names), names]:
    there.clear()
    there.update(a.data_ptr() for a in subset)
    out.zero_()
    done = backends.fast_row(rows, t, x, None, None, z, -1, out, None, None, True)
    print((done is NotImplemented, bool(out.any())) == ((True, False) if subset else (False, True)), end=" ")
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "True " * 6, done.stdout + done.stderr
