# SPDX-License-Identifier: Apache-2.0
"""torch tensors on a real CUDA device, by CuPy's kernels and by Triton's: `pytest -m gpu`.

test_torch_cuda.py and test_torch_triton.py have the tests that need none.
"""

import contextlib
import re
import sys

import numpy as np
import pytest

import noisefuse as nf
from conftest import bits, real_cupy

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck, gradgradcheck  # noqa: E402

from noisefuse.interop.torch import arrays as torch_arrays  # noqa: E402
from private_names import private  # noqa: E402
from test_torch import (  # noqa: E402
    CALLS,
    DIFFERENTIABLE,
    FLOATS,
    SAMPLERS,
    TIMES,
    N,
    S,
    compiled,
    equal,
    negative,
    numpy,
    random_table,
    tensor,
)

pytestmark = pytest.mark.gpu

SLEEP = 1 << 30  # cycles: some half a second


@pytest.fixture
def cupy():
    module = real_cupy()
    if not torch.cuda.is_available():
        pytest.skip("this torch finds no CUDA device")
    return module


@pytest.fixture(params=["cupy", "triton"])
def door(request, monkeypatch):
    """Yields what serves tensors of a device: CuPy's kernels, and Triton's as where CuPy is not installed."""
    if request.param == "cupy":
        request.getfixturevalue("cupy")
    elif (state := nf.info()["backends"]["triton"]) != "available":
        pytest.skip(f"Triton: {state}")
    else:
        monkeypatch.setitem(sys.modules, "cupy", None)
        monkeypatch.setattr(torch_arrays, "_HAS_CUPY", False)
    return request.param


def to_cuda(value):
    return value.cuda() if isinstance(value, torch.Tensor) else value


def alike(results, expected):
    """Returns tensors of a device, and the CPU's bits."""
    results, expected = (r if isinstance(r, tuple | list) else (r,) for r in (results, expected))
    return len(results) == len(expected) and all(
        a.is_cuda and (a.dtype, a.shape) == (b.dtype, b.shape) and bits(numpy(a.cpu())) == bits(numpy(b))
        for a, b in zip(results, expected, strict=True)
    )


@contextlib.contextmanager
def nobody_waits():
    """The stream is busy at the start, and still is at the end; and torch itself raises if it would wait."""
    torch.cuda.synchronize()
    private("torch.cuda", "_sleep")(SLEEP)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
        busy = not torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    assert busy


# ---- the same bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 4, 1024)], ids=str)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_bits_of_the_cpu(door, call, dtype, shape):
    if dtype == torch.uint8 and "q_sample" not in call:
        pytest.skip("bytes are images, and no state of a walk")
    if call == "q_sample 6" and shape != (3, 5, 4):
        pytest.skip("a window of another shape")
    x, t, z = tensor(*shape, dtype=dtype), torch.tensor([1, 19, 4]), tensor(*shape, seed=1)
    expected = CALLS[call](x, t, z)
    first = expected[0] if isinstance(expected, tuple) else expected
    out = torch.empty_like(first, device="cuda")
    assert alike(CALLS[call](x.cuda(), t.cuda(), z.cuda()), expected)
    assert alike(CALLS[call](x.cuda(), t, z.cuda()), expected)
    result = CALLS[call](x.cuda(), t.cuda(), z.cuda(), out=out)
    assert (result[0] if isinstance(result, tuple) else result) is out
    assert alike(result, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(door, name, dtype):
    sampler, x = SAMPLERS[name], tensor(3, 5, 16, dtype=dtype)
    scale = torch.tensor([1.0, 2.0, 0.5])

    def run(x):
        return (
            sampler.sample(lambda x, t: x, x, N),
            sampler.sample(lambda x, t: (x, x), x, N, guidance_scale=scale),
            sampler.step(0, x, x.double(), N, sampler.state(x)),
        )

    assert alike(run(x.cuda()), run(x))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_draws(door, dtype):
    for draw in (nf.randn, nf.uniform) if dtype in FLOATS[:2] else (nf.randn,):
        out = torch.zeros(3, 4, dtype=dtype, device="cuda")
        assert draw((3, 4), N, dtype=dtype, out=out) is out
        assert alike(out, draw((3, 4), N, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_strides(door, dtype):
    x = tensor(4, 6, dtype=dtype)
    lazy = [negative] if dtype in FLOATS[:2] else []  # torch makes it of complex numbers
    for view in (lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[1:, 2:], lambda x: x[:1].expand(4, 6),
                 lambda x: x[2], lambda x: x[0, 0], lambda x: x[:0], *lazy):  # fmt: skip
        assert alike(nf.q_sample(view(x.cuda()), 3, S, N), nf.q_sample(view(x), 3, S, N))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_losses(door, dtype, reduction):
    pred, x0 = tensor(3, 512, dtype=dtype), tensor(3, 512, seed=1)
    options = {"target": "v", "reduction": reduction}

    def run(pred, x0, t, row):
        pred = pred.detach().requires_grad_()
        loss = nf.mse_loss(pred, x0, t, S, N, **options, weight=row)
        (gradient,) = torch.autograd.grad(loss.sum(), pred)
        with torch.no_grad():
            return loss, gradient, *nf.mse_loss_and_grad(pred, x0, t, S, N, **options, out=torch.empty_like(pred))

    arguments = pred, x0, TIMES, tensor(len(S), seed=2).abs()
    there = [*map(to_cuda, arguments)]
    assert alike(run(*there), run(*arguments))
    if door == "cupy":
        with nobody_waits():
            run(*there)


# ---- Triton's own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["triton"], indirect=True)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_log_densities(door, dtype):
    law = nf.samplers.flow_sde(nf.Schedule.flow(20), 10).tableau
    x, m, after = (tensor(3, 5, 16, dtype=dtype, seed=seed) for seed in range(3))

    def run(x, m, after):
        stepped = nf.density.update_with_log_prob(law, 1, x, m, N)
        return nf.density.log_prob(law, 1, x, m, after), nf.density.log_prob_grad(law, 1, x, m, after), *stepped

    assert alike(run(x.cuda(), m.cuda(), after.cuda()), run(x, m, after))


@pytest.mark.parametrize("door", ["triton"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_masks(door, dtype):
    ids, p = (tensor(3, 5000) * 20).abs().to(dtype), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)

    def run(ids, p):
        draws = nf.q_mask(ids, 0.3, N, 99, where=ids > 9), nf.q_mask(ids, p, N, 99), nf.q_uniform(ids, p, N, 100)
        return [x for pair in draws for x in pair]

    assert alike(run(ids.cuda(), p.cuda()), run(ids, p))


@pytest.mark.parametrize("door", ["triton"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("v", [50, 9000])
def test_rows_of_logits(door, dtype, v):
    logits, ids = 4 * tensor(3, 5, v).to(dtype), torch.arange(15).view(3, 5)

    def run(logits, ids):
        info = "log_prob", "log_prob_raw", "entropy", "margin", "rank"
        token, known = nf.categorical(logits, N, temperature=0.7, top_k=9, info=info)
        losses = nf.masked_cross_entropy_and_grad(logits, ids, ids > 3, reduction="none")
        mean = nf.masked_cross_entropy(logits, ids)
        return nf.categorical(logits, N), token, *known, *losses, mean

    assert alike(run(logits.cuda(), ids.cuda()), run(logits, ids))


# ---- streams, memory, devices ------------------------------------------------------------------------------


def test_in_the_order_of_torchs_stream(cupy):
    """Torch's streams do not wait for the default one: work elsewhere would read and write too early."""
    expected = nf.q_sample(tensor(3, 1024), TIMES, S, N) + 1
    x, t, values = torch.zeros(3, 1024, device="cuda"), torch.zeros_like(TIMES, device="cuda"), tensor(3, 1024).cuda()
    times = TIMES.cuda()
    nf.q_sample(x, t, S, N)  # its table is there
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        private("torch.cuda", "_sleep")(SLEEP)
        x.copy_(values)
        t.copy_(times)
        found = nf.q_sample(x, t, S, N)
        found += 1
        assert not stream.query()
    stream.synchronize()
    assert alike(found, expected)
    assert cupy.cuda.get_current_stream().ptr != stream.cuda_stream


def test_nobody_waits_and_memory_is_torchs(cupy):
    x, m, t = tensor(3, 1024).cuda().requires_grad_(), tensor(3, 1024, seed=1).cuda(), TIMES.cuda()
    sampler, table = SAMPLERS["dpmpp_2m_sde"], random_table(clamps=True)

    def run():
        state, y = sampler.state(x), x
        for i in range(len(sampler)):
            y = sampler.step(i, y, m, N, state)
        y = y + nf.q_sample(x, t, S, N) + nf.q_step(x, t, S, N) + nf.q_walk(x, S, N).sum(0)
        y = y + nf.update(table, t % 5, x, (m, m), past=[m] * 4, noise=N)
        return torch.autograd.grad(y.sum(), x)[0]

    expected = run()  # uploads the tables
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    with nobody_waits():
        found = run()
    assert torch.equal(found, expected)
    assert pool.used_bytes() == before


def test_a_graph_of_torchs_draws_fresh_noise(cupy):
    """The counter is a tensor, which CuPy shows to the kernel."""
    x, t, counter = torch.ones(3, 1024, device="cuda"), TIMES.cuda(), torch.zeros((), dtype=torch.int64, device="cuda")
    noise, graph = N.at(step=cupy.asarray(counter)), torch.cuda.CUDAGraph()
    nf.q_sample(x, t, S, noise)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        found = nf.q_sample(x, t, S, noise)
        counter += 1
    counter.zero_()
    for step in range(3):
        graph.replay()
        assert alike(found, nf.q_sample(x.cpu(), TIMES, S, N.at(step=step)))


def test_the_device_of_the_tensor(cupy):
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    x = tensor(3, 1024)
    expected = nf.q_sample(x, TIMES, S, N)
    there = x.to("cuda:1").requires_grad_()
    found = nf.q_sample(there, TIMES.to("cuda:1"), S, N)
    assert found.device == there.device
    found.sum().backward()
    assert alike([found.detach()], [expected])
    assert (torch.cuda.current_device(), cupy.cuda.runtime.getDevice()) == (0, 0)
    with pytest.raises(ValueError, match="noise lies on cuda:0, the other tensors on cuda:1"):
        nf.q_sample(there.detach(), 3, S, x.to("cuda:0"))


def test_tensors_of_two_places(door):
    x = tensor(3, 4)
    for name, call in (
        ("noise", lambda: nf.q_sample(x.cuda(), 3, S, x)),
        ("out", lambda: nf.q_sample(x.cuda(), 3, S, N, out=x)),
        ("out", lambda: nf.q_sample(x, 3, S, N, out=x.cuda())),
        ("t", lambda: nf.q_sample(x, TIMES.cuda(), S, N)),
        ("model_output (m1)", lambda: SAMPLERS["ddpm"].step(1, x.cuda(), x, N)),
    ):
        with pytest.raises(
            ValueError, match=rf"^{re.escape(name)} lies on (cpu|cuda:\d), the other tensors on (cpu|cuda:\d)"
        ):
            call()
    with pytest.raises(IndexError, match="t = 20 is out of range"):
        nf.q_sample(x.cuda(), torch.tensor([1, 2, 20]), S, N)
    assert nf.q_sample(x.cuda(), torch.tensor([1, 2, 20]).cuda(), S, N).isnan().any(1).tolist() == [False, False, True]


# ---- gradients, torch.compile ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if name != "q_sample of a noise"])
def test_gradients(door, name):
    x, g = (tensor(3, 4, dtype=torch.float64, seed=s) for s in range(2))
    there = x.cuda().requires_grad_()
    assert gradcheck(DIFFERENTIABLE[name], there)
    assert gradgradcheck(DIFFERENTIABLE[name], there)
    if name.startswith("q_walk"):  # its gradient is a sum over times, by torch
        return

    def first(result):
        return result[0] if isinstance(result, tuple) else result

    x.requires_grad_()
    expected = torch.autograd.grad(first(DIFFERENTIABLE[name](x)), x, g)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = torch.autograd.grad(first(DIFFERENTIABLE[name](there)), there, g.cuda())
    stream.synchronize()
    assert alike(found, expected)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m_sde", "unipc"])
def test_gradients_through_a_sampler(door, name):
    sampler = SAMPLERS[name]

    def run(x, w):
        x, w = x.requires_grad_(), w.requires_grad_()
        state, y = sampler.state(x), x
        for i in range(len(sampler)):
            y = sampler.step(i, y, w * y, N, state)
        return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]  # w's is a sum, by torch

    x, w = tensor(3, 16), tensor(16, seed=1)
    assert alike(run(x.cuda(), w.cuda()), run(x, w))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_compiled(cupy, dtype, backend):
    sampler = SAMPLERS["dpmpp_2m_sde"]

    def function(x, t, noise):
        x_t, target = nf.q_sample(x, t, S, noise, target="v")
        state = sampler.state(x)
        stepped = sampler.step(0, x, x_t, noise, state)
        stepped = sampler.step(1, stepped, x_t, noise, state)
        drawn = nf.randn((3, 4), noise, dtype=x.dtype, out=torch.empty_like(x))
        return x_t, target, stepped, nf.q_step(x, t, S, noise), nf.q_walk(x, S, noise, keep=[2, 3]), drawn

    x, call = tensor(3, 4, dtype=dtype), compiled(function, backend)
    for step in range(3):
        arguments = x.cuda(), TIMES.cuda(), N.at(step=step)
        assert equal(call(*arguments), function(*arguments))
        assert alike(call(*arguments), function(x, TIMES, N.at(step=step)))
    there = x.cuda().requires_grad_()
    for result, other in zip(call(there, *arguments[1:]), function(there, *arguments[1:]), strict=True):
        if other.requires_grad:
            (a,), (b,) = (torch.autograd.grad(r, there, torch.ones_like(r), retain_graph=True) for r in (result, other))
            assert torch.equal(a, b)


# ---- diffusers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["Noise", "generator"])
def test_schedulers_of_diffusers(door, noise):
    """On the device with a Noise it gives the CPU's bits. After the first step of a run nothing waits."""
    pytest.importorskip("diffusers")
    from noisefuse.interop import diffusers as ours

    for name in ours.__all__:
        if name == "accelerate":
            continue

        def run(device, name=name):
            scheduler = getattr(ours, name)()
            scheduler.noise = N if noise == "Noise" else None
            scheduler.set_timesteps(5, device=device)
            x, xs = nf.randn((2, 3, 4, 4), N, dtype=torch.float32).to(device), []
            for k, t in enumerate(scheduler.timesteps):
                if hasattr(scheduler, "scale_model_input"):
                    scheduler.scale_model_input(x, t)
                with nobody_waits() if k and device == "cuda" else contextlib.nullcontext():
                    x = scheduler.step(0.5 * x, t, x).prev_sample
                xs.append(x)
            return xs

        there = run("cuda")
        assert all(x.is_cuda and x.isfinite().all() for x in there), name
        assert noise == "generator" or alike(there, run("cpu")), name


def test_the_forward_process_of_diffusers(door):
    pytest.importorskip("diffusers")
    from noisefuse.interop import diffusers as ours

    x, t, z = tensor(3, 4), torch.tensor([1, 500, 999]), tensor(3, 4, seed=1)
    for noise in (N, z):
        expected = ours.DDPMScheduler().add_noise(x, noise, t)
        scheduler = ours.DDPMScheduler()
        for times in (t, t.cuda()):
            assert alike(scheduler.add_noise(x.cuda(), to_cuda(noise), times), expected)
    scheduler.noise = N
    start = scheduler.start((3, 4), device="cuda")
    assert alike(start, torch.from_numpy(nf.randn((3, 4), N.at(stream=2))))
    assert torch_arrays.place_of("start", start) == start.device
    assert np.isfinite(start.cpu().numpy()).all()


def test_device_and_randn_like(door):
    x = torch.zeros(3, 4, dtype=torch.float16, device="cuda")
    assert alike(nf.randn_like(x, N), nf.randn((3, 4), N, dtype=torch.float16))
    for draw in (nf.randn, nf.uniform):
        assert alike(draw((3, 4), N, dtype=torch.float32, device="cuda"), draw((3, 4), N, dtype=torch.float32))
    assert SAMPLERS["ddpm"].model_input(0, x, time="batch")[1].is_cuda
