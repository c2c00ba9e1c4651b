# SPDX-License-Identifier: Apache-2.0
"""A training program traces more than its Noise: times, schedules, levels with gradients, masks. And two programs.

Seen to fail: each was refused with a NotImplementedError or a TypeError. Planted: p = 1 as a count
of 32 bits, which masks nothing; a derivative of v by sigma with the other sign; a path that is checked at its
end, where it has no score.
"""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import noisefuse as nf
from generated import normals
from noisefuse import Noise

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

N = Noise(2**63 + 5, sample=2**33, step=7)
X0, X1, M = (normals((4, 6, 7), np.float32, n) for n in range(3))
T = np.array([0.1, 0.3, 0.5, 0.9], np.float32)
IDS, P = np.arange(24, dtype=np.int32).reshape(4, 6), np.array([0, 0.25, 0.5, 1], np.float32)


def equal(found, expected):
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def single(numbers):
    return jax.tree.map(np.float32, numbers)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"complement": True},
        {"where": IDS % 2 == 0, "lengths": np.array([0, 2, 6, 3])},
        {"block": 4, "p": np.outer(P, np.array([0.5, 1], np.float32))},
    ],
    ids=["plain", "complement", "where", "block"],
)
def test_masks(options):
    given = {"p": P} | options
    changing = {name: given.pop(name) for name in ("p", "where", "lengths") if name in given}
    expected = nf.q_mask(IDS, noise=N, mask_id=99, **changing, **given)
    for run in (lambda f: f, jax.jit):
        call = run(lambda ids, noise, traced: nf.q_mask(ids, noise=noise, mask_id=99, **traced, **given))
        assert equal(call(jnp.asarray(IDS), N, changing), expected)
    fixed = jax.jit(lambda ids: nf.q_mask(ids, noise=N, mask_id=99, **changing, **given))
    assert equal(fixed(IDS), expected)
    with nf.use_backend("reference"):
        assert equal(jax.jit(lambda ids, noise: nf.q_mask(ids, 0.3, noise, 99))(IDS, N), nf.q_mask(IDS, 0.3, N, 99))
    row = jax.jit(lambda ids, p: nf.q_mask(ids, p, N, 99, batched=False))
    assert equal(row(IDS[0], P[1]), nf.q_mask(IDS[0], P[1], N, 99, batched=False))
    with pytest.raises(ValueError, match="p: expected a number or a prefix of ids' shape"):
        jax.jit(lambda ids, p: nf.q_mask(ids, p, N, 99))(IDS, P[:3])
    part = jax.jit(lambda ids, start: nf.q_mask(ids, 0.3, N.window(IDS.shape[1:], (start,)), 99))
    whole = nf.q_mask(IDS, 0.3, N, 99)
    assert equal(part(IDS[:, 2:4], 2), [one[:, 2:4] for one in whole])


@pytest.mark.parametrize("kind", ["stratified", "shared", "independent"])
def test_training_times(kind):
    draw = jax.jit(lambda noise: nf.discrete.times(4, noise, first=2, of=9, kind=kind))
    for noise in (N, N.at(step=8)):
        assert equal(draw(noise), single(nf.discrete.times(4, noise, first=2, of=9, kind=kind)))


def test_schedules_at_traced_times():
    masks, levels = nf.discrete.cosine(), nf.Schedule.cosine(50)
    assert equal(jax.jit(masks)(T), single(masks(T)))
    assert equal(jax.jit(lambda t: masks.weight(t, "elbo"))(T), single(masks.weight(T, "elbo")))
    assert equal(jax.jit(levels)(T), single(levels(T)))
    assert equal(jax.jit(levels)(np.array([-4, 3, 900])), single(levels([0, 3, 49])))


TIMED = {
    "q_sample": lambda w, t: (nf.q_sample(w * jnp.asarray(X0), t, nf.Schedule.cosine(50), N) ** 2).sum(),
    "interpolate": lambda w, t: (nf.interpolate(w * jnp.asarray(X0), X1, t, nf.paths.linear()) ** 2).sum(),
    "loss": lambda w, t: path_loss(X0, X1, nf.paths.linear(), w * jnp.asarray(M), t, N, target="velocity"),
    "mse": lambda w, t: nf.mse_loss(w * jnp.asarray(M), X0, t, nf.Schedule.cosine(50), N, target="v"),
    "schedule": lambda w, t: (w * nf.Schedule.cosine(50)(t)[0]).sum(),
    "masks": lambda w, t: (w * nf.discrete.cosine().weight(t)).sum(),
}


@pytest.mark.parametrize("name", TIMED)
def test_no_derivative_by_times_is_zero_in_silence(name):
    """It is refused, and only where it is asked for. Seen to fail: it was 0, and learned times learned nothing."""
    call = TIMED[name]
    of = jax.grad(call, 1)
    for w, asked in ((2.0, of), (2.0, jax.jit(of)), (jnp.ones(1), jax.vmap(of, (0, None)))):
        with pytest.raises(
            NotImplementedError, match=r"t: nothing here has a derivative .* use jax\.lax\.stop_gradient"
        ):
            asked(w, T)
    assert jax.grad(lambda t: call(2.0, jax.lax.stop_gradient(t)) + t.sum())(T).sum() == T.size
    gradient = jax.grad(call)(2.0, T)

    def carried(w):
        return jax.lax.scan(lambda c, _: ((c[0], c[1], c[2] + call(*c[:2])), None), (w, T, 0.0), None, length=2)[0][2]

    assert np.allclose(jax.jit(jax.grad(jax.checkpoint(call)))(2.0, T), gradient, rtol=1e-5)
    assert np.allclose(jax.jit(jax.grad(carried))(2.0), 2 * gradient, rtol=1e-5)


def path_loss(a, b, path, m, t, noise, add=False, **options):
    made = nf.interpolate_loss(m, a, b, t, path, noise, **options)
    return made.sum() if add else made


@pytest.mark.parametrize("target", [None, "velocity", "score", "denoiser"])
@pytest.mark.parametrize("path", [nf.paths.linear(), nf.paths.brownian_bridge(0.3)], ids=repr)
def test_paths_at_traced_times(path, target):
    if target in ("score", "denoiser") and not path.draws:
        return
    for kind, t in (("float32", T), ("bfloat16", np.float32(0.25)), ("float32", np.repeat(T, 6).reshape(4, 6))):
        arrays = X0.astype(kind), X1.astype(kind)
        call = lambda a, b, t, noise: nf.interpolate(a, b, t, path, noise, target=target)  # noqa: E731
        assert equal(jax.jit(call)(*arrays, t, N), call(*arrays, t, N))
        assert equal(call(*map(jnp.asarray, arrays), t, N), call(*arrays, t, N))
        if target is None:
            continue
        for options in ({}, {"weight": t + 1, "reduction": "none"}):
            loss = partial(path_loss, *arrays, path, target=target, **options)
            expected = nf.interpolate_loss_and_grad(M, *arrays, t, path, N, target=target, **options)
            assert equal(jax.jit(loss)(jnp.asarray(M), t, N), single(expected[0]))
            gradient = jax.jit(jax.grad(partial(path_loss, *arrays, path, target=target, add=True, **options)))(M, t, N)
            assert np.allclose(gradient, expected[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(NotImplementedError, match="x1: the loss has no derivative"):
        jax.grad(lambda b: nf.interpolate_loss(jnp.asarray(M), X0, b, T, nf.paths.linear(), target="velocity"))(X1)


@pytest.mark.parametrize("target", [None, "v", "flow", "epsilon", "sample"])
def test_traced_levels_have_gradients(target):
    """A learned schedule, as of VDM, needs them; autograd of the formula is the comparison. Seen to fail: the gradient
    in a program whose Noise is traced."""
    z, above = nf.randn(X0.shape, N), normals((2, *X0.shape), np.float32, 9)

    def formula(x, alpha, sigma):
        a, s = (jnp.reshape(n, jnp.shape(n) + (1,) * (3 - jnp.ndim(n))) for n in (alpha, sigma))
        targets = {"v": a * z - s * x, "flow": z - x, "epsilon": z, "sample": x}
        return (a * x + s * z, *([targets[target]] if target else []))

    def total(call):
        return lambda *given: sum(
            (jnp.tanh(x) * w).sum() for x, w in zip(jax.tree.leaves(call(*given)), above, strict=False)
        )

    for levels in ((P, T), (P, np.float32(0.5)), (np.float32(0.25), np.float32(0.5))):
        call = lambda x, alpha, sigma: nf.noised(x, alpha, sigma, N, target=target)  # noqa: E731
        assert equal(jax.jit(call)(X0, *levels), call(X0, *levels))
        assert equal(call(jnp.asarray(X0), *levels), call(X0, *levels))
        found, expected = (jax.jit(jax.grad(total(f), (0, 1, 2)))(X0, *levels) for f in (call, formula))
        assert all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, expected, strict=True))
    noisy = lambda x, *levels, noise: nf.noised(x, *levels, noise, target=target)  # noqa: E731
    for noise in (N, [N.at(sample=N.sample + k) for k in range(4)], z):
        under = jax.jit(lambda a, noise: jax.grad(total(partial(noisy, noise=noise)), 1)(jnp.asarray(X0), a, T))
        assert np.allclose(under(P, noise), jax.grad(total(formula), 1)(X0, P, T), rtol=1e-4, atol=1e-5)
    of_z = jax.grad(lambda z, a: total(partial(noisy, noise=z))(jnp.asarray(X0), a, T))
    assert np.abs(jax.jit(of_z)(z, P)).max() > 0
    each = jax.vmap(jax.grad(lambda a, x, s: nf.noised(x, a, 0.5, Noise(s), batched=False).sum()))
    assert np.allclose(each(P, X0, np.arange(4)), X0.sum((1, 2)), rtol=1e-4, atol=1e-5)


# ---- two programs ------------------------------------------------------------------------------------------


def test_a_masked_diffusion_loss():
    """One program for all steps: MDLM's loss and its gradient are NumPy's at each step."""
    schedule, traces = nf.discrete.linear(), []
    weights = normals((100, 99), np.float32, 4)

    def draws(ids, noise):
        t = nf.discrete.times(len(ids), noise)
        x_t, masked = nf.q_mask(ids, schedule(t), noise, mask_id=99)
        return t, x_t, masked

    @jax.jit
    def loss(weights, ids, noise):
        traces.append(1)
        t, x_t, masked = draws(ids, noise)
        value = lambda w: nf.masked_cross_entropy(w[x_t], ids, masked, weight=schedule.weight(t))  # noqa: E731
        return jax.value_and_grad(value)(weights)

    for step in range(3):
        noise = Noise(7, step=step)
        t, x_t, masked = draws(IDS, noise)
        value, gradient = loss(weights, IDS, noise)
        given = IDS, masked, schedule.weight(t)
        expected, of_logits = nf.masked_cross_entropy_and_grad(weights[x_t], *given[:2], weight=given[2])
        assert np.isclose(value, expected, rtol=1e-5)
        of_weights = np.zeros_like(weights)
        np.add.at(of_weights, x_t, of_logits)
        assert np.allclose(gradient, of_weights, rtol=1e-4, atol=1e-6)
    assert len(traces) == 1


def test_a_flow_matching_loop():
    """A scan with its key as the carry: after it the weights are those of NumPy's loop."""
    path = nf.paths.linear()
    x0, x1 = normals((8, 5), np.float32, 1), normals((8, 5), np.float32, 2)

    def times(noise):
        return nf.uniform((8,), noise.at(stream=64), dtype=jnp.float32)

    def step(carry, _):
        w, noise = carry
        t = times(noise)

        def loss(w):
            x_t = nf.interpolate(x0_, x1_, t, path)
            return nf.interpolate_loss(x_t @ w, x0_, x1_, t, path, target="velocity")

        value, gradient = jax.value_and_grad(loss)(w)
        return (w - 0.5 * gradient, noise.at(step=noise.step + 1)), value

    x0_, x1_ = jnp.asarray(x0), jnp.asarray(x1)
    run = jax.jit(lambda w, noise: jax.lax.scan(step, (w, noise), None, length=20))
    (w, noise), values = run(np.zeros((5, 5), np.float32), N)
    assert noise == N.at(step=N.step + 20)
    other = np.zeros((5, 5), np.float32)
    for k in range(20):
        t = np.asarray(times(N.at(step=N.step + k)))
        x_t = nf.interpolate(x0, x1, t, path)
        value, of_pred = nf.interpolate_loss_and_grad(x_t @ other, x0, x1, t, path, target="velocity")
        assert np.isclose(values[k], value, rtol=1e-4)
        other -= 0.5 * x_t.T @ of_pred
    assert np.allclose(w, other, rtol=1e-3, atol=1e-5)
    assert values[-1] < 0.8 * values[0]


ON_FOUR = """
import jax, numpy as np, noisefuse as nf
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
assert jax.device_count() == 4
rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
ids, noise = np.arange(64).reshape(8, 8).astype(np.int32), nf.Noise(7, sample=2**32 - 3)
schedule = nf.discrete.linear()
def masked(ids, noise):
    return nf.q_mask(ids, schedule(nf.discrete.times(8, noise)), noise, mask_id=99)
run = jax.jit(masked)
for k in range(2):
    found, expected = run(jax.device_put(ids, rows), noise.at(step=k)), masked(ids, noise.at(step=k))
    assert all(map(np.array_equal, found, expected)) and found[0].sharding.spec[0] == "data", found[0].sharding
run = jax.jit(lambda ids, noise: nf.q_mask(ids, 0.5, noise, mask_id=99)[0])
assert "all-gather" not in run.lower(jax.device_put(ids, rows), noise).compile().as_text()
"""


def test_four_devices():
    """`jit` cuts the batch, and the tokens stay where they are."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", ON_FOUR], capture_output=True, text=True, timeout=300, env=env)
    assert not done.returncode, done.stderr
