# SPDX-License-Identifier: Apache-2.0
"""JAX's arrays on an NVIDIA device, without one.

jax-triton's call is replaced, and Triton's interpreter runs kernels on arrays of the CPU. What jax-triton makes of
them, as code for sm_90, is looked at in a process of its own.

Seen to fail: a sample's number that is cut to 32 bits, a traced window's start left out, one row for all samples, whole
blocks of the generator in a window.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import noisefuse as nf
from conftest import bits, first_and_slow
from generated import LINEAR, normals
from noisefuse import Noise

jax = pytest.importorskip("jax")
torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import jax.numpy as jnp  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from cuda_kernels.triton_door import interpreted, rounded  # noqa: E402
from noisefuse.interop.jax import calls, description  # noqa: E402

needs_interpreter = pytest.mark.skipif(
    not interpreted, reason="needs Triton's interpreter, from 3.9 on (TRITON_INTERPRET=1)"
)
N = Noise(2026, sample=2**40 + 3, step=5)
SHAPE, T = (4, 6, 8), np.array([0, 17, 500, 999])
X, M, GIVEN = (normals(SHAPE, np.float32, n) for n in range(3))
DDPM = nf.samplers.ddpm(LINEAR, steps=5, clip=1.0).tableau
UNIPC = nf.samplers.unipc(LINEAR, steps=5).tableau


def triton_call(*arrays, kernel, out_shape, grid, num_warps, enable_fp_fusion, **constants):
    """Stands for jax_triton's. Numbers of 64 bits pass JAX's border as words, since 64 bits are off outside."""
    assert num_warps == 4
    assert not enable_fp_fusion

    def run(*given):
        outs = [np.zeros(out.shape, out.dtype) for out in out_shape]
        memory = [a.view(of.dtype)[..., 0] if is_wide(of) else a for a, of in zip(given, arrays, strict=True)]
        kernel[grid](*map(tensor, memory), *map(tensor, outs), **constants)
        return tuple(o.view(np.uint32).reshape(*o.shape, 2) if is_wide(o) else o for o in outs)

    shapes = [jax.ShapeDtypeStruct((*x.shape, 2), np.uint32) if is_wide(x) else x for x in out_shape]
    words = [jax.lax.bitcast_convert_type(x, jnp.uint32) if is_wide(x) else x for x in arrays]
    found = jax.pure_callback(lambda *given: run(*map(np.array, given)), tuple(shapes), *words)
    outs = zip(found, out_shape, strict=True)
    return [jax.lax.bitcast_convert_type(x, of.dtype) if is_wide(of) else x for x, of in outs]


def is_wide(x):
    return np.dtype(x.dtype).itemsize == 8


def tensor(a):
    """Returns a tensor of this memory."""
    half = a.dtype == ml_dtypes.bfloat16
    return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if half else torch.from_numpy(a)


@pytest.fixture
def on_device(monkeypatch):
    """Lowers calls on the CPU as those of a device."""
    monkeypatch.setattr(description, "_wanted", "as on a device")
    monkeypatch.setattr(calls, "_call_back", calls._by_triton)
    monkeypatch.setitem(sys.modules, "jax_triton", SimpleNamespace(triton_call=triton_call))
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fp_trunc", rounded)


def same(found, expected):
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(found, expected, strict=True)]
    return all((a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b)) for a, b in pairs)


def past(table, x):
    return [normals(x.shape, np.float32, 2 + n).astype(x.dtype) for n in range(table.slots)]


CALLS = {
    "names": lambda x: nf.q_sample(x, T, LINEAR, [Noise(k, step=k) for k in range(4)]),
    "targets": lambda x: nf.q_sample(x, T, LINEAR, N, target="v"),
    "ids": lambda x: nf.q_sample(x, T, LINEAR, N.at(sample=[9, 2, 1 << 40, 0])),
    "window": lambda x: nf.q_step(x, T, LINEAR, N.window((9, 9), start=(2, 1))),
    "steps of tokens": lambda x: nf.q_step(x, np.arange(24).reshape(4, 6), LINEAR, N),
    "a number": lambda x: nf.q_sample(x, 500, LINEAR, GIVEN),
    "tokens": lambda x: nf.q_sample(x, np.arange(24).reshape(4, 6), LINEAR, GIVEN),
    "a row that clamps": lambda x: nf.update(DDPM, [0, 3, 2, 1], 2 * x, x, noise=GIVEN),
    "channels": lambda x: nf.augment.gaussian(x, np.arange(32.0).reshape(4, 8), GIVEN, layout="HWC"),
    "a sensor": lambda x: nf.augment.sensor(x, 0.5, 0.1, N),
    "rows that remember": lambda x: nf.update(UNIPC, 3, x, 2 * x, past=past(UNIPC, x)),
}


@needs_interpreter
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "dtype", first_and_slow([np.float32, np.float16, ml_dtypes.bfloat16]), ids=lambda kind: np.dtype(kind).name
)
def test_rows(call, dtype, on_device):
    x = X.astype(dtype)
    assert same(jax.jit(CALLS[call])(x), CALLS[call](x))


@needs_interpreter
def test_draws_levels_and_doubles(on_device):
    for draw in (nf.randn, nf.uniform):
        for shape in ((3, 5, 4), (2, 4100)):
            assert same(draw(shape, N, dtype=jnp.float32), draw(shape, N))
    x = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(SHAPE)
    call = lambda x: nf.q_sample(x, T, LINEAR, N, scale=0.5, dtype="uint8", out_scale=2.0)  # noqa: E731
    assert same(jax.jit(call)(x), call(x))
    x = normals(SHAPE, np.float64)
    with jax.enable_x64(True):
        assert same(jax.jit(CALLS["targets"])(x), CALLS["targets"](x))


@needs_interpreter
def test_programs(on_device):
    """This has vmap of x and of steps; a scan over traced rows; a traced window; a gradient through a clamp."""
    draw = lambda x, k: nf.q_sample(x, 500, LINEAR, N.at(step=k), batched=False)  # noqa: E731
    found = jax.jit(jax.vmap(draw))(X, np.arange(4))
    assert same(found, np.stack([draw(x, k) for k, x in enumerate(X)]))
    sampler = nf.samplers.ddpm(LINEAR, steps=3)
    half = lambda x, t: np.float32(0.5) * x  # noqa: E731
    assert same(jax.jit(lambda x: sampler.sample(half, x, N))(X), sampler.sample(half, X, N))
    part = lambda x, first: nf.q_step(x, T, LINEAR, N.window((9, 9), start=(first, 1)))  # noqa: E731
    assert same(jax.jit(part)(X, 2), part(X, 2))
    total = lambda x: (nf.update(DDPM, 2, x, 2 * x, noise=GIVEN) * M).sum()  # noqa: E731
    found = jax.jit(jax.grad(total))(3 * X)
    with pytest.MonkeyPatch.context() as native:
        native.setattr(description, "_wanted", "ffi")
        assert same(found, jax.jit(jax.grad(lambda x: total(x)))(3 * X))


# ---- errors ------------------------------------------------------------------------------------------------


def test_what_a_device_does_not_have_says_so(on_device):
    with pytest.raises(NotImplementedError, match=r"on a device JAX has no walks.*NOISEFUSE_JAX=callback"):
        nf.mse_loss(jnp.asarray(M), jnp.asarray(X), T, LINEAR, GIVEN, target="v")
    with pytest.raises(NotImplementedError, match=r"on a device JAX has no walks.*NOISEFUSE_JAX=callback"):
        jax.jit(lambda x: nf.q_walk(x, LINEAR, N, keep=[1, 3]))(X)


def test_without_jax_triton(on_device, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_triton", None)
    with pytest.raises(ImportError, match="JAX's arrays on a GPU need jax-triton: pip install jax-triton"):
        nf.q_sample(jnp.asarray(X), T, LINEAR, N)


def test_other_platforms_say_what_to_do():
    """Seen to fail: a call in jax.numpy, which had never run on a device."""
    traced = jax.jit(lambda x: nf.q_sample(x, T, LINEAR, N)).trace(X)
    with pytest.raises(NotImplementedError, match=r"no kernels for JAX's arrays on tpu: NOISEFUSE_JAX=callback"):
        traced.lower(lowering_platforms=("tpu",))


# ---- jax-triton --------------------------------------------------------------------------------------------

MADE = """
import jax, jax.numpy as jnp, numpy as np, re
from jax_triton import triton_lib
library, texts = triton_lib.triton_kernel_call_lib, []
made, library.get_compute_capability = library.TritonKernel, lambda device: 90
library.TritonKernel = lambda *given: texts.append(given[4]) or made(*given)
import noisefuse as nf
s, noise, x = nf.Schedule.linear(1000), nf.Noise(7, sample=2**40), jnp.zeros((4, 8, 64))
calls = [
    lambda x, t: nf.q_sample(x, t, s, noise, target="v"),
    lambda x, t: nf.q_step(x.astype(jnp.bfloat16), t, s, noise.at(step=t[0])),
    lambda x, t: nf.samplers.ddpm(s, 20).step(t[1], x, x, noise),
]
for call in calls:
    program = jax.jit(call).trace(x, jnp.arange(4)).lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("@triton_kernel_call") == 1
for text in texts:
    print(re.search(r"[.]target (\\w+)", text)[1], len(re.findall("fma.rn.f32", text)), text.count(".ftz"))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_triton") is None, reason="needs jax-triton and JAX's CUDA plugin")
def test_jax_triton_makes_code_for_a_device():
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(Path(nf.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", MADE], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 3
    assert all(target == "sm_90a" and int(fused) > 40 and ftz == "0" for target, fused, ftz in lines)
