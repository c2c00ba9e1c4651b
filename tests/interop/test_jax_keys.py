# SPDX-License-Identifier: Apache-2.0
"""A Noise as a pytree of JAX: an argument, a carry and a result of programs, whose seed, sample and step are traced.

Seen to fail: a Noise was no argument (JAX's TypeError), a static one compiled anew for each step, and a traced seed or
key was refused; leaves that are no numbers, taken for some. Planted: words in the other order; a sum without its carry.
"""

import os
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import noisefuse as nf
from generated import LINEAR, normals
from noisefuse import Noise
from noisefuse.operations.draw import UNIT

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

SHAPE = 4, 6, 7
X = normals(SHAPE, np.float32)
N = Noise(2**63 + 12345, sample=2**40 + 3, step=2**31 + 7)
OTHERS = [N, N.at(step=2**32 - 9), Noise(5, sample=2**56 - 4), Noise(2**64 - 1, sample=2**32 - 1)]
OPERATIONS = {
    "randn": lambda x, n: nf.randn(SHAPE, n, dtype=jnp.float32),
    "q_sample": lambda x, n: nf.q_sample(x, [0, 17, 500, 999], LINEAR, n, target="v"),
    "update": lambda x, n: nf.update(DDPM.tableau, 2, x, x, noise=n),
    "walk": lambda x, n: nf.q_walk(x, LINEAR, n.at(step=3), keep=[2]),
    "list": lambda x, n: nf.randn_like(x, [n, Noise(9), n.at(step=5), n.at(sample=0)]),
    "window": lambda x, n: nf.randn_like(x, n.window((9, 8), (2, 1))),
    "ids": lambda x, n: nf.randn_like(x, n.at(sample=[7, 2**55, 0, 7])),
    "row": lambda x, n: nf.augment.gaussian(x, 0.5, n),
    "host": lambda x, n: nf.augment.at_snr(x, 3.0, n),
    "categorical": lambda x, n: nf.categorical(x, n, dtype=np.int32),
}
DDPM = nf.samplers.ddpm(LINEAR, steps=5)


def same(found, expected):
    if isinstance(expected, list):
        expected = np.stack(expected)
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_one_program_serves_all_keys(name, backend):
    call, traces = OPERATIONS[name], []

    @jax.jit
    def run(x, noise):
        traces.append(1)
        return call(x, noise)

    with nf.use_backend(backend):
        for noise in OTHERS:
            assert same(run(X, noise), call(X, noise)), noise
    assert len(traces) == 1


def test_no_trace_keeps_what_it_made():
    """A table first used where JAX traces constants, too. Seen to fail: the program of the next call, which took the
    tracer of the first one for its constant."""
    dtype, x = jnp.float32, jnp.ones((2, 3))
    UNIT.on_devices.clear()
    loss = lambda a, noise: nf.noised(x, a, 0.5, noise).sum()  # noqa: E731
    jax.jit(jax.grad(loss))(jnp.ones(2), N)
    run = jax.jit(lambda noise: nf.randn(SHAPE, noise, dtype=dtype))
    for noise in OTHERS:
        assert same(run(noise), nf.randn(SHAPE, noise, dtype="float32"))


def test_a_key_comes_back():
    advance = jax.jit(lambda noise, k: noise.at(step=noise.step + 1, sample=k + noise.sample, stream=3))
    assert advance(N, 2**31 - 1) == Noise(N.seed, sample=N.sample + 2**31 - 1, step=N.step + 1, stream=3)
    assert advance(N, -2) == Noise(N.seed, sample=N.sample - 2, step=N.step + 1, stream=3)
    many = N.window((3, 4), (1, 2)).at(sample=[5, 2**50])
    assert advance(many, 2).sample.tolist() == [7, 2**50 + 2]
    for noise in (N, many):
        back = jax.tree.map(lambda leaf: leaf, noise)
        assert back == noise
        assert hash(back) == hash(noise)
        assert pickle.loads(pickle.dumps(jax.jit(lambda noise: noise)(noise))) == noise
    assert [path[0].name for path, _ in jax.tree_util.tree_flatten_with_path(N)[0]] == ["seed", "sample", "step"]
    with pytest.raises(TypeError, match="unsupported operand"):
        jax.jit(lambda noise: noise.at(sample=noise.sample + 0.5))(N)


def test_where_programs_take_it():
    draw = partial(nf.randn, (2, 3), dtype=jnp.float32)

    def row(noise, _):
        return noise.at(step=noise.step + 1), draw(noise)

    last, rows = jax.lax.scan(row, N, None, length=3)
    assert last == N.at(step=N.step + 3)
    assert same(rows, [nf.randn((2, 3), N.at(step=N.step + k)) for k in range(3)])
    gradient = jax.jit(jax.grad(lambda a, noise: (a * draw(noise)).sum()))(2.0, N)
    assert np.isclose(gradient, nf.randn((2, 3), N).sum(), rtol=1e-5)
    part = jax.jit(lambda noise: draw(noise.local((4, 3), (1, 2, 0))))
    assert same(part(N), nf.randn((4, 3), N)[2:])
    assert same(part(N.at(sample=[1, 2, 3, 4])), nf.randn((4, 3), N.at(sample=[1, 2, 3, 4]))[2:])
    run = jax.jit(lambda noise: DDPM.sample(lambda x, t: 0.5 * x, (4, 6), noise, dtype=jnp.float32))
    assert np.allclose(run(N.at(step=0)), DDPM.sample(lambda x, t: 0.5 * x, (4, 6), N.at(step=0)), atol=1e-6)
    static = jax.jit(nf.randn_like, static_argnames="noise")
    assert same(static(X, noise=N), nf.randn_like(X, N))


def test_a_stack_of_keys():
    """`vmap` makes one, and takes one apart."""
    draw = partial(nf.randn, (2, 3), dtype=jnp.float32)
    seeds = np.arange(5, dtype=np.uint32) * 2**30
    stack = jax.vmap(lambda seed: Noise(seed, sample=seed, step=seed))(seeds)
    expected = [nf.randn((2, 3), Noise(s, sample=s, step=s)) for s in seeds.tolist()]
    assert same(jax.vmap(draw)(stack), expected)
    assert same(jax.lax.scan(lambda _, noise: (None, draw(noise)), None, stack)[1], expected)
    assert same(jax.vmap(lambda seed: draw(Noise(seed)))(seeds), [nf.randn((2, 3), Noise(s)) for s in seeds.tolist()])
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *OTHERS)
    assert same(jax.vmap(draw)(together), [nf.randn((2, 3), noise) for noise in OTHERS])
    with pytest.raises(
        TypeError, match=r"expected one Noise, got a stack whose numbers have shape \(5,\): use jax.vmap"
    ):
        draw(stack)
    with pytest.raises(TypeError, match="JAX traces one of its numbers"):
        nf.randn((2, 3), stack)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(stack)


def test_leaves_that_are_no_numbers_are_kept():
    """JAX puts masks, axes, shapes and shardings in their place. Seen to fail: False was the seed 0, of two words."""
    for kept in (False, 0, "P", jax.ShapeDtypeStruct((2,), np.uint32), np.zeros(2, jax.dtypes.float0)):
        made = jax.tree.map(lambda _, kept=kept: kept, N)
        assert all(leaf is kept for leaf in jax.tree.leaves(made))
    shapes = jax.eval_shape(lambda noise: noise, N)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes)] == [((2,), "uint32")] * 2 + [((), "uint32")]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_traced_keys(impl):
    key = jax.random.fold_in(jax.random.key(11, impl=impl), 3)
    assert jax.jit(Noise.from_key)(key) == Noise.from_key(key)
    keys = jax.random.split(key, 3)
    made = jax.vmap(lambda key: nf.randn((2, 3), Noise.from_key(key), dtype=jnp.float32))(keys)
    assert same(made, [nf.randn((2, 3), Noise.from_key(key)) for key in keys])


def test_what_is_refused():
    for match, call in (
        ("window whose start JAX traces", lambda k, n: n.window((9,), (k,))),
        ("stream: expected a number that is known", lambda k, n: n.at(stream=k)),
        ("seed: expected an integer, got float32", lambda k, n: Noise(k * 0.5)),
        ("expected a noise whose step is an int", lambda k, n: n.interval(0, 1)),
    ):
        with pytest.raises(TypeError, match=match):
            jax.jit(call)(1, N)


LATER = """
import sys, pickle, noisefuse as nf
early, kept = nf.Noise(3, step=2), pickle.dumps(nf.Noise(3, step=2))
assert "jax" not in sys.modules
import jax
draw = jax.jit(lambda n: nf.randn((2,), n, dtype=jax.numpy.float32))
try:
    draw(early)
except TypeError as error:
    assert "Noise" in str(error), error
else:
    raise SystemExit("a Noise of before was known")
{}
assert (draw(early) == nf.randn((2,), early)).all() and nf.Noise(3, step=2) == early
"""


@pytest.mark.parametrize("tell", ["nf.Noise(4)", "pickle.loads(kept)", "import noisefuse.interop.jax"])
def test_jax_that_is_loaded_later_is_told(tell):
    done = subprocess.run([sys.executable, "-c", LATER.format(tell)], capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr


ON_FOUR = """
import jax, numpy as np, noisefuse as nf
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
assert jax.device_count() == 4
mesh, noise = Mesh(np.array(jax.devices()), ("data",)), nf.Noise(2**40 + 7, sample=2**32 - 3, step=4)
x = np.ones((8, 5), np.float32)
def own(x, noise):
    place = jax.lax.axis_index("data") * x.shape[0]
    return nf.q_sample(x, 3, nf.Schedule.linear(), noise.at(sample=noise.sample + place))
run = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")))
whole = jax.jit(lambda x, noise: nf.q_sample(x, 3, nf.Schedule.linear(), noise))
for other in (noise, noise.at(step=9), nf.Noise(5)):
    expected = nf.q_sample(x, 3, nf.Schedule.linear(), other)
    assert np.array_equal(run(x, other), expected), other
    assert np.array_equal(whole(jax.device_put(x, NamedSharding(mesh, P("data"))), other), expected), other
    placed = jax.device_put(other, NamedSharding(mesh, P()))
    assert placed == other and np.array_equal(run(x, placed), expected)
assert run._cache_size() == 1
"""


def test_four_devices():
    """Each adds its place to the traced sample."""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR], capture_output=True, text=True, timeout=300, env=os.environ | env
    )
    assert not done.returncode, done.stderr
