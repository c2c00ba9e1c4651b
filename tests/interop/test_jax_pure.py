# SPDX-License-Identifier: Apache-2.0
"""The contract in jax.numpy, for platforms without our kernels: NumPy's bits, whatever XLA fuses or flushes.

Seen to fail: a sum whose lost digits leave no trace, ties that do not go to even, subnormal results that keep all
digits, a product of 0 that shifts the other term away, exponents of float64 that wrap when rounded to float32.
"""

import os
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import noisefuse as nf
from conftest import bits, first_and_slow
from generated import LINEAR, normals
from noisefuse import Noise
from noisefuse.backends import reference

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from noisefuse.interop.jax import description as jax_described  # noqa: E402
from noisefuse.interop.jax import floats as jax_floats  # noqa: E402
from noisefuse.interop.jax.floats import FLOAT32, FLOAT64, Float  # noqa: E402

N = Noise(2026, sample=3, step=5)
FORMATS = {np.float32: FLOAT32, np.float64: FLOAT64}


def same(found, expected):
    """Compares bits; any NaN equals any NaN."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    return np.array_equal(bits(found), bits(expected)) or (
        np.array_equal(np.isnan(found), np.isnan(expected))
        and np.array_equal(bits(found[~np.isnan(found)]), bits(expected[~np.isnan(expected)]))
    )


# ---- arithmetic --------------------------------------------------------------------------------------------


def nasty(kind):
    """Returns numbers of both signs: zeros, subnormals, next to powers of two, ends, infinities, NaN, and any bits."""
    info = np.finfo(kind)
    word, low = np.dtype(f"u{info.bits // 8}"), 1 << info.nmant
    one = int(np.ones((), kind).view(word))
    sizes = [0, 1, 2, 3, low - 1, low, low + 1, *(one + n for n in (-2, -1, 0, 1, 2, low // 2, low // 2 + 1))]
    sizes += [one + n * low for n in (-info.nmant - 1, -info.nmant - 2, info.nmant, info.nmant + 1, info.nmant + 2)]
    sizes += [int(info.max.view(word)), int(info.max.view(word)) - 1, int(np.array(np.inf, kind).view(word))]
    values = np.concatenate([np.array(sizes, word), np.random.default_rng(0).integers(0, one + 4 * low, 9, word)])
    return np.concatenate([values.view(kind), -values.view(kind), np.array([np.nan], kind)])


def triples(kind):
    """Returns all triples of nasty values; and others whose sums cancel, end half way, or lie just beside."""
    every = np.array([*product(nasty(kind), repeat=3)], kind).T
    rng, n = np.random.default_rng(1), 100_000
    a, b = (rng.standard_normal(n).astype(kind) * np.exp2(rng.integers(-9, 9, n)).astype(kind) for _ in range(2))
    with np.errstate(all="ignore"):
        near = -(a * b) + rng.integers(-2, 3, n).astype(kind) * np.spacing(a * b)
        far = rng.standard_normal(n).astype(kind) * np.exp2(rng.integers(-60, 60, n)).astype(kind)
    return np.concatenate([every, [a, b, near], [a, b, far]], axis=1)


def run(function, kind, *arrays):
    """Computes with Floats that have these values."""
    with jax.enable_x64(True):
        words = [bits_of(a) for a in arrays]
        found = jax.jit(
            lambda *words: [x.bits if isinstance(x, Float) else x for x in function(*map(partly(kind), words))]
        )
        return [np.asarray(x) for x in found(*words)]


def partly(kind):
    return lambda words: Float(words, FORMATS[kind])


def bits_of(a):
    return a.view(f"u{a.dtype.itemsize}")


def arithmetic_is_exact():
    for kind in FORMATS:
        a, b, c = triples(kind)
        other = np.float64 if kind is np.float32 else np.float32

        def operations(a, b, c, other=other):
            return (
                jax_floats.fma(a, b, c), jax_floats.mul(a, b), a + c, a - c, jax_floats.sqrt(a), -a,
                a.to(FORMATS[other]), a < c, a <= c, a > c, a >= c, a == c, jax_floats.select(a < c, a, c),
            )  # fmt: skip

        with np.errstate(all="ignore"):
            expected = (
                reference.fma(a, b, c), a * b, a + c, a - c, np.sqrt(a), -a, a.astype(other),
                a < c, a <= c, a > c, a >= c, a == c, np.where(a < c, a, c),
            )  # fmt: skip
        for n, (found, wanted) in enumerate(zip(run(operations, kind, a, b, c), expected, strict=True)):
            assert same(found.view(wanted.dtype), wanted), (kind, n)


def quotients_are_rounded_once():
    numbers = 1.0, 3.0, 64.0, 3145728.0 + 7
    divided = lambda x: [jax_floats.divide(x, n) for n in numbers]  # noqa: E731
    for kind in FORMATS:
        a = np.concatenate([triples(kind)[0], np.array([5e-324, 3e-310, 1 / 3, 1e300]).astype(kind)])
        for n, found in zip(numbers, run(divided, kind, a), strict=True):
            with np.errstate(all="ignore"):
                assert same(found.view(kind), a / kind(n)), (kind, n)


def integers_become_numbers():
    for kind, of in product(FORMATS, (np.int32, np.uint32, np.int64, np.uint64)):
        if kind is np.float32 and of in (np.int64, np.uint64):  # they have more bits than it takes
            continue
        info = np.iinfo(of)
        values = [*range(-9 if info.min else 0, 9), *(k + n for k in (1 << 24, 1 << 25, 3 << 24) for n in range(-3, 4))]
        values = np.array([info.min, info.max, info.max - 1, *values], of)
        with jax.enable_x64(True):
            found = jax.jit(lambda v, kind=kind: FORMATS[kind](v).bits)(values)
        assert same(np.asarray(found).view(kind), values.astype(kind)), (kind, of)


# ---- noise -------------------------------------------------------------------------------------------------


def words_become_values():
    """Returns words at the ends of each formula: U next to 0, 1 and 2/3, angles next to quarters of a turn."""
    edges = [(k << 29) + n for k in range(9) for n in range(-3, 3)] + [(2 << 32) // 3 + n for n in range(-300, 300, 7)]
    edges = np.array([w % (1 << 32) for w in edges] + [1 << n for n in range(32)], np.uint32)
    w0, w1 = np.meshgrid(edges, edges)
    with jax.enable_x64(True):
        spec = jax_floats.SPEC
        pair = jax.jit(lambda a, b: [x.bits for x in (*spec.normal_pair32(a, b), spec.uniform32(a))])(w0, w1)
    expected = *reference.SPEC.normal_pair32(w0, w1), reference.SPEC.uniform32(w0)
    for found, wanted in zip(pair, expected, strict=True):
        assert same(np.asarray(found).view(np.float32), wanted)


def noise_is_numpys():
    for draw, shape in product((nf.randn, nf.uniform), ((1_000_003,), (3, 5))):
        assert same(draw(shape, N, dtype=jnp.float32), draw(shape, N)), (draw, shape)


CHECKS = (
    "arithmetic_is_exact",
    "quotients_are_rounded_once",
    "integers_become_numbers",
    "words_become_values",
    "noise_is_numpys",
)


# XLA fuses products and sums by default; and one that processors cannot.
FLAGS = {"fused": "", "not fused": "--xla_cpu_max_isa=AVX"}


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["fused", pytest.param("not fused", marks=pytest.mark.release)])
def test_pure_jax_has_numpys_bits_with_xlas_flags(flags):
    in_jax("; ".join(f"here.{check}()" for check in CHECKS), FLAGS[flags])


def in_jax(code, flags):
    """Runs it with these flags for XLA."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), *(str(tests / folder) for folder in ("interop", "campaign"))])
    env = {**os.environ, "XLA_FLAGS": flags, "NOISEFUSE_JAX": "jnp", "PYTHONPATH": path}
    code = f"import test_jax_pure as here; {code}"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stdout + done.stderr


# ---- calls -------------------------------------------------------------------------------------------------

SHAPE, T = (4, 6, 7), np.array([0, 17, 500, 999])
X, M, GIVEN = (normals(SHAPE, np.float32, n) for n in range(3))
DDPM = nf.samplers.ddpm(LINEAR, steps=5, clip=1.0).tableau
UNIPC = nf.samplers.unipc(LINEAR, steps=5).tableau


@pytest.fixture
def stated(monkeypatch):
    """Calls that a handler would take are run in jax.numpy."""
    monkeypatch.setattr(jax_described, "_wanted", "jnp")


def past(table, x):
    return [normals(x.shape, np.float32, 2 + n).astype(x.dtype) for n in range(table.slots)]


# Without noise, which takes most of the time that XLA needs to compile; and with it.
ROWS = {
    "targets": lambda x: nf.q_sample(x, T, LINEAR, GIVEN, target="v"),
    "a number": lambda x: nf.q_sample(x, 500, LINEAR, GIVEN),
    "tokens": lambda x: nf.q_sample(x, np.arange(24).reshape(4, 6), LINEAR, GIVEN),
    "a row that clamps": lambda x: nf.update(DDPM, [0, 3, 2, 1], 2 * x, x, noise=GIVEN),
    "channels": lambda x: nf.augment.gaussian(x, np.arange(28.0).reshape(4, 7), GIVEN, layout="HWC"),
    "a sensor": lambda x: nf.augment.sensor(x, 0.5, 0.1, GIVEN),
    "rows that remember": lambda x: nf.update(UNIPC, 3, x, 2 * x, past=past(UNIPC, x)),
}
DRAWN = {
    "names": lambda x: nf.q_sample(x, T, LINEAR, [Noise(k, step=k) for k in range(4)]),
    "ids": lambda x: nf.q_sample(x, T, LINEAR, N.at(sample=[9, 2, 1 << 40, 0])),
    "window": lambda x: nf.q_step(x, T, LINEAR, N.window((9, 8), start=(2, 1))),
    "steps of tokens": lambda x: nf.q_step(x, np.arange(24).reshape(4, 6), LINEAR, N),
}


def all_same(found, expected):
    return all(map(same, *(x if isinstance(x, tuple) else (x,) for x in (found, expected))))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    "dtype", first_and_slow([np.float32, np.float16, ml_dtypes.bfloat16]), ids=lambda kind: np.dtype(kind).name
)
def test_rows(rows, dtype, stated):
    x = X.astype(dtype)
    x[0, 0, :4] = [0, -0.0, np.inf, 1e-40]
    assert all_same(jax.jit(ROWS[rows])(x), ROWS[rows](x))


def test_levels(stated):
    x = np.arange(4 * 6 * 7, dtype=np.uint8).reshape(SHAPE)
    call = lambda x: nf.q_sample(x, T, LINEAR, GIVEN, scale=0.5, dtype="uint8", out_scale=2.0)  # noqa: E731
    assert all_same(jax.jit(call)(x), call(x))
    assert all_same(jax.jit(call)(x.astype(np.uint16) * 257), call(x.astype(np.uint16) * 257))
    call = lambda x: nf.augment.by_level(x, np.arange(256)[::-1], np.linspace(0, 9, 256), GIVEN)  # noqa: E731
    assert all_same(jax.jit(call)(x), call(x))


def test_doubles(stated):
    rows = lambda x: nf.update(UNIPC, 3, x, 2 * x, past=past(UNIPC, x))  # noqa: E731
    x = normals(SHAPE, np.float64)
    with jax.enable_x64(True):
        assert all_same(jax.jit(rows)(x), rows(x))


@pytest.mark.release  # XLA compiles it for half a minute
def test_drawn_doubles(stated):
    with jax.enable_x64(True):
        for draw in (nf.randn, nf.uniform):
            assert same(draw((2, 9), N, dtype=jnp.float64), draw((2, 9), N, dtype="float64"))


@pytest.mark.slow
def test_programs(stated):
    """This has vmap of x, of steps and of rows; a scan over traced rows; a gradient through a clamp."""
    draw = lambda x, k: nf.q_sample(x, 500, LINEAR, N.at(step=k), batched=False)  # noqa: E731
    found = jax.jit(jax.vmap(draw))(X, np.arange(4))
    assert same(found, np.stack([nf.q_sample(x, 500, LINEAR, N.at(step=k), batched=False) for k, x in enumerate(X)]))
    sampler = nf.samplers.ddpm(LINEAR, steps=3)
    half = lambda x, t: np.float32(0.5) * x  # noqa: E731
    assert same(jax.jit(lambda x: sampler.sample(half, x, N))(X), sampler.sample(half, X, N))
    total = lambda x: (nf.update(DDPM, 2, x, 2 * x, noise=GIVEN) * M).sum()  # noqa: E731
    found = jax.jit(jax.grad(total))(3 * X)
    with pytest.MonkeyPatch.context() as native:
        native.setattr(jax_described, "_wanted", "ffi")
        assert same(found, jax.jit(jax.grad(lambda x: total(x)))(3 * X))


def test_programs_hold_no_elements(stated):
    """The text does not grow with the number of elements; XLA would draw from constants while it compiles. Seen to
    fail: numbers of elements that NumPy makes."""
    for noise in (N, N.window((1 << 17,), start=(5,))):
        few, many = (
            jax.jit(lambda n=n, noise=noise: nf.uniform((2, n), noise, dtype=jnp.float32)).lower().as_text()
            for n in (1 << 12, 1 << 16)
        )
        assert len(many) < 1.1 * len(few)


@pytest.mark.slow
def test_walks(stated):
    """Seen to fail: a state that is rounded to 16 bits in between."""
    walk = lambda x: nf.q_walk(x, LINEAR, N, keep=[0, 3, 5])  # noqa: E731
    for x in (X, X.astype(np.float16)):
        assert same(jax.jit(walk)(x), walk(x))


SQUARES = {
    "mean": lambda x, m: nf.mse_loss(m, x, T, LINEAR, GIVEN, target="v"),
    "weights and gradient": lambda x, m: nf.mse_loss_and_grad(
        m, x, T, LINEAR, GIVEN, target="v", weight=nf.weights.min_snr(LINEAR, "v"), reduction="none"
    ),
    "tokens": lambda x, m: nf.mse_loss(
        m, x, np.arange(24).reshape(4, 6), LINEAR, GIVEN, target="flow", weight=np.linspace(0.1, 3, 1000)
    ),
    "density": lambda x, m: SDE.log_prob(np.array([4, 1, 7, 0]), x, m, x + m),
}
SDE = nf.samplers.flow_sde(nf.Schedule.flow(1000), 10)


@pytest.mark.slow  # XLA compiles each for seconds
@pytest.mark.parametrize("squares", SQUARES)
def test_losses(squares, stated):
    found, expected = jax.jit(SQUARES[squares])(X, M), SQUARES[squares](X, M)
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
        assert same(np.asarray(a), np.asarray(b, a.dtype))


@pytest.mark.slow
def test_sums_in_all_of_their_bits(stated):
    """Seen to fail: accumulators that take contiguous elements; a mean that is multiplied by 1 / n."""
    x, m = (normals((16, 200), np.float64, n) for n in range(2))
    call = lambda x, m: nf.mse_loss(m, x, np.arange(16), LINEAR, x, target="sample", reduction="none")  # noqa: E731
    with jax.enable_x64(True):
        found = jax.jit(call)(x, m)
        assert same(np.asarray(found), call(x, m))


@pytest.mark.slow
def test_losses_of_chunks_and_traced_weights(stated):
    """It has chunks of 4,096 and a short one; traced weights, of 32 bits; a gradient by JAX's rules."""
    x, m = (normals((2, 4161), np.float32, n) for n in range(2))
    call = lambda x, m, w: nf.mse_loss(m, x, [3, 500], LINEAR, x, target="sample", weight=w)  # noqa: E731
    weight = np.linspace(0.5, 2, 1000).astype(np.float32)
    found, gradient = jax.jit(jax.value_and_grad(call, 1))(x, m, weight)
    assert same(np.asarray(found), np.float32(call(x, m, weight)))
    expected = nf.mse_loss_grad(m, x, [3, 500], LINEAR, x, target="sample", weight=weight)
    assert same(np.asarray(gradient), expected)


@pytest.mark.parametrize("drawn", first_and_slow(DRAWN))
def test_names(drawn, stated):
    assert all_same(jax.jit(DRAWN[drawn])(X), DRAWN[drawn](X))


def parts_are_numpys():
    """Each of four devices draws its own part; and XLA cuts arrays itself."""
    axes = ("data", "rows")
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), axes)
    cut = jax.sharding.PartitionSpec(*axes)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=cut, out_specs=cut)
    def own(x):
        sample = N.sample + jax.lax.axis_index("data") * x.shape[0]
        part = N.at(sample=sample).window(SHAPE[1:], start=(jax.lax.axis_index("rows") * x.shape[1], 0))
        return nf.q_sample(x, 500, LINEAR, part)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=cut, out_specs=jax.sharding.PartitionSpec(None, *axes))
    def walked(x):
        return nf.q_walk(x, LINEAR, N.at(sample=N.sample + jax.lax.axis_index("data")), keep=[2])

    assert same(own(X), nf.q_sample(X, 500, LINEAR, N))
    assert walked(X).shape == (1, *SHAPE)
    whole = jax.device_put(X, jax.sharding.NamedSharding(mesh, cut))
    call = lambda x: nf.q_sample(x, T, LINEAR, GIVEN)  # noqa: E731
    assert same(jax.jit(call)(whole), call(X))


@pytest.mark.slow
def test_parts():
    in_jax("here.parts_are_numpys()", "--xla_force_host_platform_device_count=4")
