# SPDX-License-Identifier: Apache-2.0
"""A call enters few files, and rarely changes between them. The counts come from traced real calls."""

import itertools
import os
import sys

import numpy as np
import pytest

import noisefuse as nf
from noisefuse import backends

S, FLOW, N = nf.Schedule.linear(), nf.Schedule.flow(), nf.Noise(1)
DDPM = nf.samplers.ddpm(S, 5)
X = np.ones((2, 3, 8, 8), np.float32)
IDS, P = np.full((2, 16), 3), np.array([0.2, 0.5])
PATH, BRIDGE = nf.paths.linear(), nf.paths.brownian_bridge()
MDLM, MASKS = nf.samplers.mdlm(steps=4, mask_id=50), np.full((2, 16), 50)
DREAM = nf.samplers.dream(steps=4, mask_id=50)
BY_ENTROPY, BY_FACTOR = nf.samplers.dream(4, mask_id=50, alg="entropy"), nf.samplers.llada(4, mask_id=50, factor=1.0)
LOGITS, BLOCK = np.zeros((2, 16, 50), np.float32), N.window((99,), (64,))


def walk(call):
    """Returns (Python calls, files that they enter, changes of file from one call to the next) within the library."""
    root, files = os.path.dirname(nf.__file__), []

    def note(frame, event, _):
        if event == "call" and (name := frame.f_code.co_filename).startswith(root):
            files.append(name)

    call()  # one-time work
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return len(files), len({*files}), sum(a != b for a, b in itertools.pairwise(files))


def of_tensor(call, shape=X.shape, **options):
    torch = pytest.importorskip("torch")
    x = torch.ones(shape, **options)
    return lambda: call(x.to(memory_format=torch.channels_last) if not options else x)


def of_ids(call):
    torch = pytest.importorskip("torch")
    ids, p = torch.from_numpy(IDS), torch.tensor([0.2, 0.5])
    return lambda: call(ids, p)


def of_logits(call):
    logits = pytest.importorskip("torch").from_numpy(LOGITS)
    return lambda: call(logits)


def of_shards():
    windows = [N.window((32,), (first,)) for first in (0, 16)]
    parts = [BY_ENTROPY.step(0, MASKS, LOGITS, window, partial=True) for window in windows]
    return lambda: nf.discrete.combine_steps(parts)


# Each call with its highest counts.
WALKS = {
    "plain": (lambda: lambda: nf.q_sample(X, 5, S, N), (3, 2, 1)),
    "step": (lambda: lambda: DDPM.step(2, X, X, N), (3, 1, 0)),
    "randn_like": (lambda: lambda: nf.randn_like(X, N), (4, 3, 2)),
    "randn_like of tensors": (lambda: of_tensor(lambda x: nf.randn_like(x, N)), (33, 9, 14)),
    "strided": (lambda: lambda: nf.q_sample(X[..., ::2], 5, S, N), (3, 2, 1)),
    "float times": (lambda: lambda: nf.q_sample(X, [0.2, 0.4], FLOW, N), (4, 4, 3)),
    "std (B,)": (lambda: lambda: nf.augment.gaussian(X, np.array([0.1, 0.2]), N), (26, 7, 16)),
    "mse_loss_and_grad": (lambda: lambda: nf.mse_loss_and_grad(X, X, 5, S, N, target="v"), (2, 1, 0)),
    "mse_loss_grad": (lambda: lambda: nf.mse_loss_grad(X, X, 5, S, N, target="v"), (2, 1, 0)),
    "impulse": (lambda: lambda: nf.augment.impulse(X, 0.1, N), (2, 2, 1)),
    "rician": (lambda: lambda: nf.augment.rician(X, 0.1, N), (2, 2, 1)),
    "photons": (lambda: lambda: nf.augment.poisson(X, 30.0, N), (2, 2, 1)),
    "gaussian in a region": (lambda: lambda: nf.augment.gaussian(X, 0.1, N, region=X[0] > 0), (31, 7, 18)),
    "coloured": (lambda: lambda: nf.augment.coloured(X, 20.0, N, "pink"), (74, 12, 47)),
    "two images of a list": (lambda: lambda: nf.augment.gaussian([X[0], X[0]], 0.1, N), (54, 7, 22)),
    "q_mask": (lambda: lambda: nf.q_mask(IDS, P, N, 9), (1, 1, 0)),
    "q_mask of tensors": (lambda: of_ids(lambda ids, p: nf.q_mask(ids, p, N, 9)), (3, 3, 2)),
    "q_uniform": (lambda: lambda: nf.q_uniform(IDS, P, N, 50), (1, 1, 0)),
    "q_uniform of tensors": (lambda: of_ids(lambda ids, p: nf.q_uniform(ids, p, N, 50)), (3, 3, 2)),
    "a step of tokens": (lambda: lambda: MDLM.step(0, MASKS, LOGITS, N, MDLM.state()), (3, 1, 0)),
    "a step of dream, by chance": (lambda: lambda: DREAM.step(0, MASKS, LOGITS, N, DREAM.state()), (3, 1, 0)),
    "a step of dream, by rank": (lambda: lambda: BY_ENTROPY.step(0, MASKS, LOGITS, N, BY_ENTROPY.state()), (3, 1, 0)),
    "a step of a factor": (lambda: lambda: BY_FACTOR.step(0, MASKS, LOGITS, N, BY_FACTOR.state()), (3, 1, 0)),
    "a step of a block": (lambda: lambda: MDLM.step(0, MASKS, LOGITS, BLOCK, MDLM.state()), (3, 1, 0)),
    "a step of a shard": (lambda: lambda: BY_ENTROPY.step(0, MASKS, LOGITS, BLOCK, partial=True), (179, 16, 73)),
    "the step of all shards": (of_shards, (35, 4, 4)),
    "a step of tokens, tensors": (
        lambda: of_logits(lambda x: MDLM.step(0, x[..., 0].long() + 50, x, N, MDLM.state())),
        (5, 3, 2),
    ),
    "q_walk": (lambda: lambda: nf.q_walk(X, S, N, keep=[4]), (2, 2, 1)),
    "q_walk of tensors": (lambda: of_logits(lambda x: nf.q_walk(x, S, N, keep=[4])), (4, 4, 3)),
    "interpolate": (lambda: lambda: nf.interpolate(X, X, P, PATH, target="velocity"), (1, 1, 0)),
    "interpolate of tensors": (lambda: of_tensor(lambda x: nf.interpolate(x, x, P, PATH)), (2, 2, 1)),
    "interpolate, a bridge": (lambda: lambda: nf.interpolate(X, X, P, BRIDGE, N), (4, 3, 3)),
    "noised": (lambda: lambda: nf.noised(X, P, P, N, target="v"), (1, 1, 0)),
    "noised of tensors": (lambda: of_tensor(lambda x: nf.noised(x, P, P, N)), (2, 2, 1)),
    "interpolate_loss": (lambda: lambda: nf.interpolate_loss(X, X, X, P, PATH, target="velocity"), (2, 1, 0)),
    "and its own gradient": (
        lambda: lambda: nf.interpolate_loss_and_grad(X, X, X, P, PATH, target="velocity"),
        (2, 1, 0),
    ),
    "interpolate_loss of tensors": (
        lambda: of_tensor(lambda x: nf.interpolate_loss(x, x, x, P, PATH, target="velocity")),
        (3, 2, 2),
    ),
    "categorical": (lambda: lambda: nf.categorical(LOGITS, N), (1, 1, 0)),
    "categorical of tensors": (lambda: of_logits(lambda x: nf.categorical(x, N)), (3, 3, 2)),
    "masked_cross_entropy": (lambda: lambda: nf.masked_cross_entropy(LOGITS, IDS), (1, 1, 0)),
    "and its gradient": (lambda: lambda: nf.masked_cross_entropy_and_grad(LOGITS, IDS), (1, 1, 0)),
    "masked_cross_entropy of tensors": (lambda: of_logits(lambda x: nf.masked_cross_entropy(x, IDS)), (3, 3, 2)),
    "rate_loss": (lambda: lambda: nf.rate_loss(LOGITS, IDS, IDS, 0.5), (2, 1, 0)),
    "rate_loss and its gradient": (lambda: lambda: nf.rate_loss_and_grad(LOGITS, IDS, IDS, None), (2, 1, 0)),
    "rate_loss of tensors": (lambda: of_logits(lambda x: nf.rate_loss(x, IDS, IDS, 0.5)), (4, 3, 2)),
    "channels_last": (lambda: of_tensor(lambda x: nf.q_sample(x, 5, S, N)), (4, 3, 2)),
    "large channels_last": (lambda: of_tensor(lambda x: nf.q_sample(x, 5, S, N), (2, 8, 96, 96)), (4, 3, 2)),
    "with a gradient": (lambda: of_tensor(lambda x: nf.q_sample(x, 5, S, N), requires_grad=True), (15, 6, 8)),
}


# The same for tensors of a device, by Triton's launches, which do nothing here. Where the memory lies changes a few.
ON_A_DEVICE = {
    "randn": (lambda x, _: nf.randn(x.shape, N, out=x), (134, 16, 54)),
    "q_sample": (lambda x, _: nf.q_sample(x, 5, S, N), (218, 20, 92)),
    "step": (lambda x, _: DDPM.step(2, x, x, N), (304, 21, 123)),
    "q_walk": (lambda x, _: nf.q_walk(x, S, N, keep=[4]), (194, 19, 75)),
    "interpolate": (lambda x, _: nf.interpolate(x, x, 0.5, PATH), (362, 24, 157)),
    "mse_loss": (lambda x, _: nf.mse_loss(x, x, 5, S, N, target="v"), (240, 21, 97)),
    "q_mask": (lambda _, ids: nf.q_mask(ids, 0.5, N, 9), (186, 15, 65)),
    "categorical": (lambda x, _: nf.categorical(x, N), (182, 14, 57)),
    "masked_cross_entropy": (lambda x, ids: nf.masked_cross_entropy(x[0], ids), (146, 13, 56)),
}


@pytest.mark.parametrize("name", ON_A_DEVICE)
def test_calls_on_a_device_walk_little(name):
    """Seen to fail: tensors whose memory was made an array three times."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from cuda_kernels.triton_door import interpreted, opened

    if not interpreted:
        pytest.skip("needs Triton's interpreter, from 3.9 on (TRITON_INTERPRET=1)")
    call, most = ON_A_DEVICE[name]
    x, ids = torch.ones(2, 3, 8, 8), torch.full((3, 8), 3)
    with opened(launch=lambda kernel, grid: lambda *given, **options: None):
        found = walk(lambda: call(x, ids))
    assert all(a <= b for a, b in zip(found, most, strict=True)), f"{found}, at most {most}"


@pytest.mark.skipif(nf.info()["backend"] != "native", reason="the other backends have no fast path")
@pytest.mark.parametrize("name", WALKS)
def test_calls_walk_little(name):
    """Seen to fail: without the fast path each call takes three times as many."""
    make, most = WALKS[name]
    found = walk(make())
    assert all(a <= b for a, b in zip(found, most, strict=True)), f"{found}, at most {most}"


def test_a_long_way_is_seen(monkeypatch):
    for name in backends.FAST_PATH:
        monkeypatch.setattr(backends, name, backends.declined)
    assert walk(lambda: nf.q_sample(X, 5, S, N)) > (50, 10, 30)


def test_an_array_is_looked_at_once(monkeypatch):
    """Where it lies is not asked again on the long way, and one check makes it an array. Seen to fail: with 13
    questions a call; x checked in `update` and in the call that it makes."""
    for name in backends.FAST_PATH:
        monkeypatch.setattr(backends, name, backends.declined)
    asked, out = [], np.empty_like(X)

    def note(frame, event, _):
        if event == "call":
            asked.append(frame.f_code.co_name)

    for call, arrays, places in (
        (lambda: nf.q_sample(X, P, FLOW, N, out=out), 1, 2),
        (lambda: nf.q_step(X, 5, S, N, out=out), 1, 3),
        (lambda: nf.update(DDPM.tableau, 2, X, X, noise=N, out=out), 2, 3),
        (lambda: nf.mse_loss(X, X, P, FLOW, N, target="v"), 2, 7),
        (lambda: nf.categorical(LOGITS, N), 1, 2),
    ):
        call()  # one-time work
        asked.clear()
        sys.setprofile(note)
        try:
            call()
        finally:
            sys.setprofile(None)
        assert asked.count("as_array") <= arrays, asked
        assert sum(name in ("on_device", "host_view") for name in asked) <= places, asked
