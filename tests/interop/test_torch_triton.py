# SPDX-License-Identifier: Apache-2.0
"""torch tensors of a CUDA device by Triton's kernels, without CuPy and without a device.

Triton's interpreter runs the kernels on tensors of the CPU (cuda_kernels/triton_door.py).

Seen to fail: the terms of a row in another order, a row beyond the table that gives 0, the window's start of a list of
Noises left out, spans of 7 elements drawn as whole blocks, steps of their own for each element in blocks.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import noisefuse as nf
from conftest import first_and_slow

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
import triton

from cuda_kernels import stand_in
from cuda_kernels.triton_door import CUDA
from cuda_kernels.triton_door import opened as on_triton
from noisefuse import backends
from noisefuse.backends import selftest as backend_test
from noisefuse.backends.triton import kernels
from noisefuse.commands import cli, selftest
from noisefuse.commands.bench.contenders import Case
from noisefuse.commands.bench.cuda import BY_TRITON, contenders
from noisefuse.interop.torch import arrays as torch_arrays
from test_torch import (
    CALLS,
    DIFFERENTIABLE,
    FLOATS,
    FLOW,
    SAMPLERS,
    TIMES,
    N,
    S,
    X,
    equal,
    negative,
    numpy,
    random_table,
    same,
    tensor,
)

pytestmark = pytest.mark.skipif(
    isinstance(kernels.affine, triton.JITFunction),
    reason="needs Triton's interpreter, from 3.9 on (TRITON_INTERPRET=1)",
)
DTYPES = first_and_slow(FLOATS)
REFUSED = "this needs CuPy on a CUDA device: pip install"


@pytest.mark.parametrize("shape", [(3, 5, 4), pytest.param((3, 5, 3), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=str)
@pytest.mark.parametrize("call", [name for name in CALLS if name != "q_walk"])
def test_bits_of_the_cpu(call, dtype, shape):
    if dtype == torch.uint8 and "q_sample" not in call:
        pytest.skip("bytes are images, and no state of a walk")
    x, t, z = tensor(*shape, dtype=dtype), torch.tensor([1, 19, 4]), tensor(*shape, seed=1)
    expected = CALLS[call](numpy(x), t.numpy(), numpy(z))
    first = expected[0] if isinstance(expected, tuple) else expected
    out = torch.zeros(first.shape, dtype=torch_arrays.NAMED[first.dtype.name])
    with on_triton() as launches:
        found, given = CALLS[call](x, t, z), CALLS[call](x, t, z, out=out)
        assert len(launches) >= 2
    assert same(found, expected)
    assert (given[0] if isinstance(given, tuple) else given) is out
    assert same(given, expected)
    assert out._version == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_all_columns(dtype):
    """Each row has all columns of its table, or some; a clamp; noise of a token's own time; several outputs."""
    x, m, z = (tensor(3, 5, 7, dtype=dtype, seed=seed) for seed in range(3))
    t = torch.arange(15).view(3, 5) % 5
    for clamps, index, noise in ((True, t, N), (False, t[:, 0], N), (True, 3, z), (True, t[0, 0], N)):
        table = random_table(clamps=clamps)
        aux = [torch.zeros_like(x), torch.zeros_like(x)]
        host = [numpy(a.clone()) for a in (x, m, z)]
        known = nf.update(table, index if isinstance(index, int) else index.numpy(), host[0], (host[1], host[2]),
                          past=[host[0], host[1], host[2], host[0]], noise=noise if noise is N else host[2],
                          aux_out=(also := [numpy(a.clone()) for a in aux]))  # fmt: skip
        with on_triton() as launches:
            found = nf.update(table, index, x, (m, z), past=[x, m, z, x], noise=noise, aux_out=aux)
            assert len(launches) == 1
        assert same((found, *aux), (known, *also))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name, dtype):
    sampler, x = SAMPLERS[name], tensor(3, 5, 16, dtype=dtype)

    def run(x):
        seen = []
        end = sampler.sample(lambda x, t: x, x, N, callback=lambda *a: seen.append(a[2]))
        return (end, *seen)

    expected = run(numpy(x))
    with on_triton() as launches:
        assert same(run(x), expected)
        assert len(launches) >= len(sampler)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_draws(dtype):
    name = torch_arrays.DTYPES[dtype]
    for shape in ((3, 3, 4), (2, 1, 2100), (2, 2, 7)):  # whole blocks, several programs of a sample, parts of blocks
        for draw in (nf.randn, nf.uniform) if dtype in FLOATS[:2] else (nf.randn,):
            out, rows = torch.zeros(shape, dtype=dtype), range(shape[0])
            noises = [N, N.window((9, 2200), (3, 5)), [N.at(sample=b, step=9 - b) for b in rows]]
            noises += [[N.window((99, shape[2]), (b + first, 0)) for b in rows] for first in (0, 1)]
            for noise in noises if shape[2] != 2100 else noises[:1]:
                expected = draw(shape, noise, dtype=name)
                with on_triton() as launches:
                    assert draw(shape, noise, dtype=dtype, out=out) is out
                    assert len(launches) == 1
                assert same(out, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_interpolants_levels_of_ones_own_and_augmentations(dtype):
    x0, x1, t = tensor(3, 5, 4, dtype=dtype), tensor(3, 5, 4, dtype=dtype, seed=1), torch.tensor([0.2, 0.5, 0.7])
    calls = [
        lambda x0, x1, t: nf.interpolate(x0, x1, t, nf.paths.brownian_bridge(0.5), N, target="velocity"),
        lambda x0, x1, t: nf.interpolate(x0, x1, t, nf.paths.linear()),
        lambda x0, x1, t: nf.noised(x0, t, 1 - t, N, target="v"),
        lambda x0, x1, t: nf.augment.gaussian(x0, 0.1, N),
        lambda x0, x1, t: nf.augment.sensor(x0, 0.1, 0.1, N),
    ]
    for call in calls:
        expected = call(numpy(x0), numpy(x1), t.numpy())
        with on_triton() as launches:
            assert same(call(x0, x1, t), expected)
            assert launches


def test_increments():
    noise, out = N.interval(0, 0.5), torch.zeros(3, 5)
    with on_triton() as launches:
        assert nf.randn((3, 5), noise, dtype=torch.float32, out=out) is out
        assert launches
    assert same(out, nf.randn((3, 5), noise))


def test_strides():
    x = tensor(4, 6)
    for view in (x.t(), x[:, ::2], x[1:, 2:], x[:1].expand(4, 6), x[2], torch.tensor(2.0), x[:0], negative(x)):
        expected = nf.q_sample(view.resolve_neg().numpy(), 3, S, N)
        with on_triton():
            assert same(nf.q_sample(view, 3, S, N), expected)


def test_times_of_the_host_are_checked():
    x, m, t = tensor(3, 16), tensor(3, 16, seed=1), torch.tensor([1, 19, 4])
    expected = nf.q_sample(x, t, S, N)
    with on_triton(t, m) as launches:
        for times in (t, t.numpy(), [1, 19, 4]):
            assert torch.equal(nf.q_sample(x, times, S, N), expected)
        t[1], launches[:] = 20, []
        with pytest.raises(IndexError, match="t = 20 is out of range"):
            nf.q_sample(x, t, S, N)
        with pytest.raises(ValueError, match="lies on cpu, the other tensors on cuda:1"):
            nf.update(SAMPLERS["ddim"].tableau, 0, x, m)
        assert not launches


def test_times_of_the_device_are_not_looked_at():
    x = tensor(3, 16)
    expected = nf.q_sample(x, [1, 3, 4], S, N)
    with on_triton():
        for dtype in (torch.int64, torch.int32, torch.uint8):
            found = nf.q_sample(x, torch.tensor([1, 20, 4], dtype=dtype), S, N)
            assert torch.equal(found[::2], expected[::2])
            assert found[1].isnan().all()
        u = torch.tensor([0.5, 0.25, 0.125])  # a schedule's own time is read
        assert same(nf.q_sample(x, u, FLOW, N), nf.q_sample(x.numpy(), u.numpy(), FLOW, N))


@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if "q_walk" not in name])
def test_gradients(name):
    x = tensor(3, 4, dtype=torch.float64, grad=True)

    def run():
        results = DIFFERENTIABLE[name](x)
        loss = sum(r.square().sum() for r in (results if isinstance(results, tuple) else (results,)))
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return first, *torch.autograd.grad(first.sum(), x)

    expected = run()
    with on_triton() as launches:
        assert equal(run(), expected)
        assert len(launches) >= 2


def test_what_else_there_is_says_what_it_needs():
    """Nothing is launched then."""
    x = tensor(3, 16)
    calls = [
        lambda: nf.q_walk(x, S, N),
        lambda: nf.mse_loss(x, x, TIMES, S, N, target="v"),
        lambda: nf.interpolate_loss(x, x, x, torch.rand(3), nf.paths.linear(), target="velocity"),
        lambda: nf.augment.poisson(tensor(2, 3, 32, 32, dtype=torch.uint8), 30.0, N),
    ]
    with on_triton() as launches:
        for call in calls:
            with pytest.raises(NotImplementedError, match=REFUSED):
                call()
        assert not launches


def test_the_product_refuses_tensors_of_the_cpu():
    with pytest.raises((ValueError, NotImplementedError)):
        torch_arrays.memory("x", X, CUDA)


@pytest.mark.slow
def test_what_a_device_would_run():
    """Triton compiles what calls launch, with their own arguments. 16 elements of a thread take 60 instructions each,
    those of the launch included, as they are of sm_90. Seen to fail: steps of their own for each element, in blocks."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "cuda_kernels.triton_door"]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    found = dict(line.split(": ") for line in done.stdout.splitlines())
    assert len(found) == 19
    assert all(counts.endswith(" 0 spilled") for counts in found.values())
    for name in ("randn", "uniform", "q_sample", "q_sample, bfloat16", "q_step"):
        assert int(found[name].split()[0]) <= 60 * 16, name


# ---- what says whether it serves ---------------------------------------------------------------------------


def test_the_first_call_on_a_device_draws_known_values(monkeypatch):
    """Seen to fail: Triton's kernels were used untried, as those of CuPy are not."""
    x = tensor(3, 4)
    with on_triton() as launches:
        monkeypatch.setattr(backends, "_tested_devices", set())
        nf.q_sample(x, 3, S, N)
        nf.q_sample(x, 3, S, N)
        assert len(launches) == 2 + 2
        monkeypatch.setattr(backends, "_tested_devices", set())
        monkeypatch.setitem(backend_test._FIRST_BLOCK, "float64", [0.0] * 4)
        with pytest.raises(ImportError, match="the triton backend is built wrongly"):
            nf.q_sample(x, 3, S, N)


def test_info_and_selftest_say_whether_it_serves(monkeypatch, capsys):
    """Seen to fail: both said nothing of it."""
    known = selftest.PROMISED["randn, float32"]
    monkeypatch.setattr(selftest, "PROMISED", {"randn, float32": known})
    states, info, randn = {"cuda": "needs CuPy", "triton": "torch finds no CUDA device"}, nf.info(), nf.randn
    if not torch.cuda.is_available():
        assert info["backends"]["triton"] == states["triton"]
    monkeypatch.setattr(nf, "info", lambda: info | {"backends": states})
    monkeypatch.setattr(selftest, "backends", lambda: ["reference"])
    assert cli.main(["selftest"]) == 0
    assert "# not on cuda: needs CuPy\n# not on triton: torch finds no CUDA device\n" in capsys.readouterr().out
    states["triton"] = "available"
    with on_triton():
        assert cli.main(["selftest"]) == 0
        assert "\nrandn on triton        ok\n" in capsys.readouterr().out
        monkeypatch.setattr(nf, "randn", lambda *given, out=None: out.tensor.zero_() if out else randn(*given))
        assert cli.main(["selftest"]) == 1
        assert capsys.readouterr().out.endswith("\nrandn on triton        FAILED\n1 of 1 checks FAILED: triton\n")


@pytest.mark.parametrize("operation", BY_TRITON)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_benchmark_runs(operation, dtype):
    """Alone, and beside CuPy's kernels. Rivals need a device."""
    case = Case(operation, 0, (2, 3, 4, 4), dtype)
    with on_triton() as launches:
        calls = contenders({"triton": torch}, case)
        assert [*calls] == ["noisefuse", "copyto"]
        calls["noisefuse"]()
        calls["copyto"]()
        assert len(launches) == 1
    with stand_in.installed() as cupy, on_triton() as launches:
        cupy.copyto, cupy.random = print, SimpleNamespace(default_rng=lambda seed: np.random.default_rng(seed))
        both = contenders({"cuda": cupy, "triton": torch}, case)
        both["Triton"]()
        assert len(launches) == 1
    papers = ["CuPy"] * (operation == "q_sample" and dtype == "float32")
    assert [*both] == ["noisefuse", *papers, "copyto", "Triton"]
