# SPDX-License-Identifier: Apache-2.0
"""bfloat16 tensors without ml_dtypes have the same bits, and the same errors, as with it."""

import subprocess
import sys

import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")

from noisefuse.interop.torch import arrays as torch_arrays  # noqa: E402

HALF = torch.bfloat16
S, N, FLOW = nf.Schedule.linear(20), nf.Noise(5), nf.Schedule.flow()
SDE = nf.samplers.flow_sde(nf.Schedule.flow(1000), 5)
MULTI = nf.samplers.dpmpp_2m(nf.Schedule.linear(), 5)
SHAPE = (3, 4, 6)


def tensor(seed, dtype=HALF):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


X, M, P, F = tensor(0), tensor(1), tensor(2), tensor(3, torch.float32)
XT, MT, PT, FT = (a.transpose(1, 2) for a in (X, M, P, F))  # the fast path declines these, and mixed dtypes
T, TIMES = torch.tensor([3, 9, 19]), torch.tensor([0.25, 0.5, 0.75], dtype=HALF)
BYTES = torch.arange(72).to(torch.uint8).reshape(SHAPE)


def gradients(function, *inputs):
    inputs = [a.clone().requires_grad_() for a in inputs]
    function(*inputs).float().square().sum().backward()
    return [a.grad for a in inputs]


def into(function, *shape, dtype=HALF):
    """Returns the results, the written memory, and whether autograd was told."""
    out = torch.full(shape or SHAPE, 7.0, dtype=dtype)
    before = out._version
    made = function(out)
    return [*(made if isinstance(made, tuple) else [made]), out, out._version > before]


def sums(part):
    return [getattr(each, "sums", each) for each in part]


CALLS = {
    "q_sample": lambda: nf.q_sample(XT, T, S, N),
    "q_sample, target": lambda: nf.q_sample(XT, T, S, N, target="v"),
    "q_sample, float times": lambda: nf.q_sample(XT, TIMES, FLOW, N),
    "q_sample to bfloat16": lambda: nf.q_sample(F, T, S, N, dtype=HALF, target="epsilon"),
    "q_sample to float32": lambda: nf.q_sample(X, T, S, N, dtype=torch.float32),
    "q_sample to bytes": lambda: nf.q_sample(XT, T, S, N, dtype=torch.uint8),
    "q_sample of given noise": lambda: nf.q_sample(XT, T, S, PT),
    "q_sample of float32 noise": lambda: nf.q_sample(X, T, S, F),
    "q_sample, out": lambda: into(lambda out: nf.q_sample(X, TIMES, FLOW, N, out=out)),
    "q_sample, in place": lambda: [y := X.clone(), nf.q_sample(y, TIMES, FLOW, N, out=y)],
    "q_sample, gradient": lambda: gradients(lambda x: nf.q_sample(x, T, S, N), X),
    "q_step": lambda: nf.q_step(XT, T, S, N),
    "q_walk": lambda: nf.q_walk(XT, S, N, keep=[0, 5, 19]),
    "q_walk, out": lambda: into(lambda out: nf.q_walk(X, S, N, keep=[1, 2], out=out), 2, *SHAPE),
    "randn": lambda: nf.randn((3, 5), N, dtype=HALF),
    "randn, a list": lambda: nf.randn((3, 5), [N, N.at(step=4), N], dtype=HALF),
    "randn, out": lambda: into(lambda out: nf.randn(SHAPE, N, dtype=HALF, out=out)),
    "randn_like": lambda: nf.randn_like(XT, N),
    "update": lambda: nf.update(SDE.tableau, 1, XT, MT, noise=N),
    "update of float32 by bfloat16": lambda: nf.update(SDE.tableau, 1, F, M, noise=N),
    "update of float64 by bfloat16": lambda: nf.update(SDE.tableau, 1, F.double(), M, noise=N),
    "update of bfloat16 by float32": lambda: nf.update(SDE.tableau, 1, X, F, noise=N),
    "update, past": lambda: nf.update(MULTI.tableau, 2, XT, MT, past=[PT], aux_out=1),
    "update, float32 past": lambda: nf.update(MULTI.tableau, 2, F, M, past=[F], aux_out=1),
    "update, out": lambda: into(lambda out: nf.update(SDE.tableau, torch.tensor([1, 2, 0]), X, M, noise=N, out=out)),
    "update, gradients": lambda: gradients(lambda x, m: nf.update(SDE.tableau, 1, x, m, noise=N), X, M),
    "update, mixed gradients": lambda: gradients(lambda x, m: nf.update(SDE.tableau, 1, x, m, noise=N), F, M),
    "sample": lambda: SDE.sample(lambda x, t: 0.1 * x, X, N),
    "sample, past": lambda: MULTI.sample(lambda x, t: 0.1 * x, XT, N),
    "step, log_prob": lambda: SDE.step(1, XT, MT, N, log_prob=True),
    "step, partial log_prob": lambda: sums(SDE.step(1, X, F, N, log_prob=True, partial=True)),
    "log_prob": lambda: SDE.log_prob(1, XT, MT, PT),
    "log_prob, gradients": lambda: gradients(lambda x, m: SDE.log_prob(1, x.mT, m.mT, PT), X, M),
    "log_prob_grad": lambda: nf.density.log_prob_grad(SDE.tableau, 1, XT, MT, PT),
    "log_prob_grad, out": lambda: into(lambda out: nf.density.log_prob_grad(SDE.tableau, 1, X, F, P, out=out)),
    "density.update_with_log_prob, out": lambda: into(
        lambda out: nf.density.update_with_log_prob(SDE.tableau, 1, X, F, N, out=out)
    ),
    "kl": lambda: SDE.kl(1, XT, MT),
    "kl, gradient": lambda: gradients(lambda m: SDE.kl(1, m, P), M),
    "mse_loss": lambda: nf.mse_loss(XT, MT, T, S, N, target="epsilon"),
    "mse_loss of float32 x0": lambda: nf.mse_loss(X, F, T, S, N, target="v"),
    "mse_loss, gradient": lambda: gradients(lambda pred: nf.mse_loss(pred, F, T, S, N, target="v"), X),
    "mse_loss, scaled gradient": lambda: gradients(lambda pred: 3 * nf.mse_loss(pred, F, T, S, N, target="v"), X),
    "mse_loss_and_grad": lambda: nf.mse_loss_and_grad(XT, MT, T, S, N, target="v"),
    "mse_loss_and_grad, out given": lambda: into(lambda out: nf.mse_loss_and_grad(X, F, T, S, N, target="v", out=out)),
    "mse_loss_grad": lambda: nf.mse_loss_grad(XT, MT, T, S, N, target="v", upstream=0.5),
    "gaussian": lambda: nf.augment.gaussian(XT, 0.1, N),
    "gaussian to bfloat16": lambda: nf.augment.gaussian(BYTES, 2.0, N, dtype=HALF),
    "gaussian, out": lambda: into(lambda out: nf.augment.gaussian(X, 0.1, N, out=out)),
    "sensor": lambda: nf.augment.sensor(XT, 0.1, 0.2, N),
    "at_snr": lambda: nf.augment.at_snr(XT, 10.0, N),
    "pyramid_like": lambda: nf.fields.pyramid_like(X, 0.8, N),
    "mixed_like to bfloat16": lambda: nf.fields.mixed_like(F, 1.0, N, dtype=HALF),
    # errors
    "out, float32": lambda: nf.q_sample(XT, T, S, N, out=torch.empty(3, 6, 4)),
    "out, bfloat16": lambda: nf.q_sample(FT, T, S, N, out=torch.empty(3, 6, 4, dtype=HALF)),
    "out, shape": lambda: nf.q_sample(XT, T, S, N, out=torch.empty(3, 4, 4, dtype=HALF)),
    "past, float32": lambda: nf.update(MULTI.tableau, 2, XT, MT, past=[FT]),
    "randn, out alone": lambda: nf.randn(SHAPE, N, out=torch.empty(SHAPE, dtype=HALF)),
}


def outcome(call):
    try:
        made = call()
    except (TypeError, ValueError) as error:
        return [type(error), str(error)]
    return [*made] if isinstance(made, list | tuple) else [made]


@pytest.mark.parametrize("name", CALLS)
def test_without_ml_dtypes(name, monkeypatch):
    """Equal bit for bit. Seen to fail: ImportError for all calls; densities of x' before it was rounded."""
    expected = outcome(CALLS[name])
    assert isinstance(expected[0], torch.Tensor) == (not name.startswith(("out, ", "past, ", "randn, out alone")))
    monkeypatch.setattr(torch_arrays, "HALF", None)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    found = outcome(CALLS[name])
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if isinstance(b, torch.Tensor):
            assert a.dtype is b.dtype
            assert a.stride() == b.stride()
            assert torch.equal(a, b)
        else:
            assert a == b


def test_uniform_and_strides_without_ml_dtypes(monkeypatch):
    """Errors are the same as with it."""
    monkeypatch.setattr(torch_arrays, "HALF", None)
    with pytest.raises(TypeError, match="expected one of float32, float64"):
        nf.uniform((3, 5), N, dtype=HALF)
    with pytest.raises(ValueError, match="out: expected a C-contiguous, aligned array"):
        nf.randn((3, 4), N, dtype=HALF, out=torch.empty(4, 3, dtype=HALF).T)


PROCESS = """
import sys
sys.modules["ml_dtypes"] = None
import torch
import noisefuse as nf
if {old}:
    del torch.Tensor.__dlpack_c_exchange_api__
x = torch.linspace(-1, 1, 12).view(3, 4).bfloat16()
t, schedule = torch.tensor([1, 2, 3]), nf.Schedule.linear(20)
print(nf.q_sample(x, t, schedule, nf.Noise(5)).tolist())
print(nf.q_sample(x, t, schedule, nf.Noise(5), out=x) is x, x._version)
print(nf.update(nf.samplers.ddim(schedule, 5).tableau, 1, torch.ones(3, 4), x).dtype)
"""


@pytest.mark.slow  # torch is imported twice
def test_in_a_process_without_ml_dtypes():
    """It also works without the exchange API, as with older torch. Seen to fail: "bfloat16 needs ml_dtypes"."""

    def run(old):
        command = [sys.executable, "-W", "error", "-c", PROCESS.format(old=old)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch is an older one")
    expected = run(False)
    assert expected[1:] == ["True 1", "torch.float32"]
    assert run(True) == expected
