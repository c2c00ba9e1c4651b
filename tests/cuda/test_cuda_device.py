# SPDX-License-Identifier: Apache-2.0
"""A real CUDA device: `pytest -m gpu`, about three minutes. (It also runs the other tests' fixture `backend` there.)"""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, bits, real_cupy
from noisefuse.backends.cuda import cubin

pytestmark = pytest.mark.gpu

LINEAR = nf.Schedule.linear(1000)


@pytest.fixture
def cupy():
    module = real_cupy()
    yield module
    module.get_default_memory_pool().free_all_blocks()


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_bits_of_two_to_the_28_elements(cupy, dtype):
    """q_sample and a DDPM step give, sample by sample, the CPU's bits."""
    samples, size, noise = 64, 1 << 22, nf.Noise(2026, sample=2**32 - 5)
    x = cupy.empty((samples, size), DTYPES[dtype])
    nf.randn(x.shape, nf.Noise(7), dtype=DTYPES[dtype], out=x)
    t = np.random.default_rng(0).integers(0, 1000, samples)
    x_t = nf.q_sample(x, cupy.asarray(t), LINEAR, noise)
    sampler = nf.samplers.ddpm(LINEAR, 10)
    stepped = sampler.step(3, x, x_t, noise)
    for b in range(samples):
        here = nf.randn((1, size), nf.Noise(7, sample=b), dtype=DTYPES[dtype])
        mine = noise.at(sample=noise.sample + b)
        noised = nf.q_sample(here, t[b : b + 1], LINEAR, mine)
        assert bits(cupy.asnumpy(x[b])) == bits(here[0])
        assert bits(cupy.asnumpy(x_t[b])) == bits(noised[0])
        if b % 8 == 0:
            assert bits(cupy.asnumpy(stepped[b])) == bits(sampler.step(3, here, noised, mine)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_bits_of_a_loss_of_two_to_the_28_elements(cupy, dtype):
    """The loss with its gradient over the prediction gives the CPU's bits sample by sample, and the mean of their sums
    in order."""
    samples, size, noise = 64, 1 << 22, nf.Noise(2026, sample=2**32 - 5)
    pred, x0 = (cupy.empty((samples, size), DTYPES[dtype]) for _ in range(2))
    for a, seed in ((pred, 7), (x0, 8)):
        nf.randn(a.shape, nf.Noise(seed), dtype=DTYPES[dtype], out=a)
    t, options = np.random.default_rng(0).integers(0, 1000, samples), {"target": "v", "weight": np.linspace(0, 2, 1000)}
    given = x0, cupy.asarray(t), LINEAR, noise
    mean = nf.mse_loss(pred, *given, **options)
    each = cupy.asnumpy(nf.mse_loss_and_grad(pred, *given, **options, reduction="none", out=pred)[0])
    total = 0.0
    for b in range(samples):
        here, of_x0 = (nf.randn((1, size), nf.Noise(seed, sample=b), dtype=DTYPES[dtype]) for seed in (7, 8))
        own = here, of_x0, t[b : b + 1], LINEAR, noise.at(sample=noise.sample + b)
        loss, gradient = nf.mse_loss_and_grad(*own, **options, out=here)
        assert each[b] == loss
        assert bits(cupy.asnumpy(pred[b])) == bits(gradient[0])
        total += loss * size  # exact: a power of two
    assert cupy.asnumpy(mean) == total / (samples * size)


def test_the_square_root_is_rounded_correctly(cupy):
    """All floats from 2^-33 to 64 are tried, which include all that the kernels use."""
    source = """
    #include "cuda/lane_cuda.h"
    extern "C" __global__ void root(unsigned first, float* out) {
        const unsigned i = blockIdx.x * 256 + threadIdx.x;
        out[i] = nf::Cuda::sqrt(nf::bits_to_float(first + i));
    }
    """
    code = cubin.compiled(cupy, cupy.cuda.Device().compute_capability, source)
    root = cubin.loaded(cupy, code).get_function("root")
    count = 1 << 23
    out = cupy.empty(count, cupy.float32)
    for exponent in range(127 - 33, 127 + 6):
        root((count // 256,), (256,), (np.uint32(exponent << 23), out))
        a = np.arange(exponent << 23, (exponent + 1) << 23, dtype=np.uint32).view(np.float32)
        assert np.array_equal(cupy.asnumpy(out), np.sqrt(a)), exponent


def test_a_graph_draws_fresh_noise_at_every_replay(cupy):
    counter, x = cupy.asarray(np.array(0, np.int64)), cupy.ones((8, 1024), cupy.float32)
    noise, out = nf.Noise(5).at(step=counter), cupy.empty((8, 1024), cupy.float32)
    nf.q_sample(x, 500, LINEAR, noise, out=out)  # tables are uploaded before the capture
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        counter[...] = 0
        stream.synchronize()
        stream.begin_capture()
        nf.q_sample(x, 500, LINEAR, noise, out=out)
        counter += 1
        graph = stream.end_capture()
        for step in range(4):
            graph.launch(stream)
            stream.synchronize()
            assert bits(cupy.asnumpy(out)) == bits(
                nf.q_sample(np.ones((8, 1024), "f4"), 500, LINEAR, nf.Noise(5, step=step))
            )


def test_a_graph_of_a_loss_draws_fresh_noise_at_every_replay(cupy):
    counter, pred = cupy.asarray(np.array(0, np.int64)), cupy.ones((8, 5000), cupy.float32)
    noise, gradient = nf.Noise(5).at(step=counter), cupy.empty((8, 5000), cupy.float32)
    nf.mse_loss_and_grad(pred, None, 500, LINEAR, noise, target="epsilon", out=gradient)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        counter[...] = 0
        stream.synchronize()
        stream.begin_capture()
        loss, _ = nf.mse_loss_and_grad(pred, None, 500, LINEAR, noise, target="epsilon", out=gradient)
        counter += 1
        graph = stream.end_capture()
        for step in range(4):
            graph.launch(stream)
            stream.synchronize()
            here = np.ones((8, 5000), "f4"), None, 500, LINEAR, nf.Noise(5, step=step)
            expected = nf.mse_loss_and_grad(*here, target="epsilon", out=np.empty((8, 5000), "f4"))
            assert cupy.asnumpy(loss) == expected[0]
            assert bits(cupy.asnumpy(gradient)) == bits(expected[1])


WAIT = """
extern "C" __global__ void wait(long long cycles) {
    const long long begin = clock64();
    while (clock64() - begin < cycles) {}
}"""


def test_the_current_stream_is_used(cupy):
    """It waits, then changes x: a kernel on any other stream would read x too early."""
    x, out = cupy.ones((64, 1 << 16), cupy.float32), cupy.empty((64, 1 << 16), cupy.float32)
    nf.q_sample(x, 6, LINEAR, nf.Noise(1), out=out)  # compiled, and its table there
    wait, stream = cupy.RawKernel(WAIT, "wait"), cupy.cuda.Stream(non_blocking=True)
    wait((1,), (1,), (0,))
    cupy.cuda.Device().synchronize()
    with stream:
        wait((1,), (1,), (200_000_000,))  # a tenth of a second
        x.fill(2)
        nf.q_sample(x, 6, LINEAR, nf.Noise(1), out=out)
        assert not stream.done
    stream.synchronize()
    assert bits(cupy.asnumpy(out)) == bits(nf.q_sample(np.full((64, 1 << 16), 2, "f4"), 6, LINEAR, nf.Noise(1)))


def test_shards_over_devices(cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one device")
    whole = nf.randn((8, 1024), nf.Noise(5))
    for device in (0, 1):
        with cupy.cuda.Device(device):
            out = cupy.empty((4, 1024), cupy.float32)
        nf.randn((4, 1024), nf.Noise(5, sample=4 * device), out=out)
        assert bits(cupy.asnumpy(out)) == bits(whole[4 * device :][:4])
    with pytest.raises(ValueError, match="expected all arrays in one place"):
        nf.q_step(cupy.ones((4, 1024), cupy.float32), 0, LINEAR, nf.Noise(1), out=out)


def test_a_whole_sampler_stays_on_the_device(cupy):
    sampler, noise = nf.samplers.dpmpp_2m(LINEAR, 10), nf.Noise(3)

    def model(x, t):
        return 0.5 * x

    x = sampler.start((4, 3, 32, 32), noise, out=cupy.empty((4, 3, 32, 32), cupy.float32))
    assert bits(cupy.asnumpy(sampler.sample(model, x, noise))) == bits(sampler.sample(model, (4, 3, 32, 32), noise))


def test_the_sanitizer_finds_nothing(cupy, tmp_path):
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        pytest.skip("no compute-sanitizer")
    code = """
import cupy, numpy as np, noisefuse as nf
schedule, noise = nf.Schedule.linear(10), nf.Noise(1)
for shape in ((3, 4096), (5, 7), (3, 1001)):
    for dtype in ("float32", "float64", "float16"):
        x = cupy.ones(shape, dtype)
        nf.q_sample(x, cupy.asarray(np.arange(shape[0])), schedule, noise, target="v")
        nf.q_walk(x, schedule, noise)
        nf.samplers.ddim(schedule, 4).step(1, x, x)
        nf.mse_loss(x, x, cupy.asarray(np.arange(shape[0])), schedule, noise, target="v", weight=np.ones(10))
        nf.mse_loss_and_grad(x, x, 3, schedule, noise, target="flow", reduction="none", out=x)
cupy.cuda.runtime.deviceSynchronize()
"""
    for check in ("memcheck", "initcheck", "racecheck"):
        done = subprocess.run([tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", code],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]


def test_a_call_costs_at_most_40_microseconds_of_the_host(cupy):
    x, out = cupy.ones((1, 16, 7), cupy.float32), cupy.empty((1, 16, 7), cupy.float32)
    noise = nf.Noise(1)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            nf.q_sample(x, 500, LINEAR, noise, out=out)
        times.append((time.perf_counter() - start) / 100)
        cupy.cuda.runtime.deviceSynchronize()
    assert np.median(times) < 40e-6
