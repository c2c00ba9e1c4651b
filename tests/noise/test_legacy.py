# SPDX-License-Identifier: Apache-2.0
"""Other libraries' generators, compared with installed ones and with numbers that they have published."""

import math

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, NATIVE, using
from noisefuse import backends, legacy
from noisefuse.call.description import TorchNormals

SEEDS = [0, 7, 2**32 + 5, 2**63 - 1]
# An odd number of scalars leaves one behind, which the next scalar takes, even after a draw of another kind.
SIZES = [3, 16, (1,), 17, (4, 4, 3), 2, 0, 15, 31, 1000, (2, 3), 40_003]  # the last in parts


@pytest.fixture(params=[*NATIVE, "reference"])
def made_by(request):
    """The kernel of each instruction set, and its statement in NumPy."""
    with using(request.param):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_torch_on_the_cpu(seed, dtype, made_by):
    """Seen to fail: a product of the logarithm, or of cos, that is not fused; no value kept; tails not drawn anew."""
    torch = pytest.importorskip("torch")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("not the kernel that it stands for")
    generator, source = torch.Generator().manual_seed(seed), legacy.TorchCPU(seed)
    for size in SIZES:
        theirs, ours = (
            torch.randn(size, generator=generator, dtype=getattr(torch, dtype)),
            source.randn(size, dtype=dtype),
        )
        assert ours.dtype == DTYPES[dtype]
        assert theirs.double().numpy().tolist() == ours.astype(np.float64).tolist()


def test_all_words_that_torch_makes_floats_of(made_by):
    """2^20 numbers: the polynomials have no other ends."""
    torch = pytest.importorskip("torch")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("not the kernel that it stands for")
    theirs = torch.randn(1 << 20, generator=torch.Generator().manual_seed(11)).numpy()
    assert theirs.tobytes() == legacy.TorchCPU(11).randn(1 << 20).tobytes()


def of_words(words):
    """Returns the kernel's normals, and NumPy's."""
    found = np.empty(len(words), np.float32)
    backends.current().run(TorchNormals(words, found, len(words), found.dtype))
    return found, legacy._sixteens(((words & np.uint64(0xFFFFFF)) * 2.0**-24).astype(np.float32))


def test_the_kernel_gives_the_bits_of_numpy(native):
    """Ends of the uniforms and of the octants, and words with more bits than count. Seen to fail: the sine or the
    cosine negated in other octants; 25 bits of a word; a product of the sine that is not fused."""
    turns = np.arange(9) * 2.0**21
    ends = np.unique(np.concatenate([np.clip(turns + d, 0, 2**24 - 1) for d in (-2, -1, 0, 1, 2)]).astype(np.uint64))
    words = np.random.default_rng(0).integers(0, 2**32, (1 << 12, 2, 8), np.uint64)
    words[: len(ends), 0], words[: len(ends), 1] = ends[:, None], np.resize(ends, len(ends) * 8).reshape(-1, 8)
    found, expected = of_words(words.reshape(-1))
    assert found.tobytes() == expected.tobytes()


@pytest.mark.slow
def test_the_kernel_gives_the_bits_of_numpy_for_all_uniforms(native):
    for begin in range(0, 1 << 24, 1 << 20):
        words = np.arange(begin, begin + (1 << 20), dtype=np.uint64).reshape(-1, 1, 8)
        found, expected = of_words(np.concatenate([words, words], axis=1).reshape(-1))
        assert found.tobytes() == expected.tobytes()


def test_ends_of_the_uniforms():
    """The words are u = 0, the next one and the last: no infinities, no NaN."""
    u = np.zeros(32, np.float32)
    u[:3], u[8:12], u[16:18] = (0, 2**-24, 1 - 2**-24), (0, 0.25, 0.5, 1 - 2**-24), 1 - 2**-24
    drawn = legacy._sixteens(u)
    assert np.isfinite(drawn).all()
    assert abs(drawn).max() < 5.9


def test_published_numbers_of_torch_on_the_cpu():
    """torch.manual_seed(0); torch.randn(3), as printed on many pages."""
    found = legacy.TorchCPU(0).randn(3)
    assert np.allclose(found, [1.5410, -0.2934, -2.1788], rtol=0, atol=5e-5)


# torch.randn((3, 4), device="cuda") with seed 0, as printed by AUTOMATIC1111's rng_philox.py.
CUDA = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]


def test_published_numbers_of_cuda_and_of_the_web_ui():
    """Seen to fail: cos before sin, and the element in the counter's first word."""
    for device in legacy.DEVICES:
        assert np.allclose(legacy.TorchCUDA(0, device).randn((3, 4)), CUDA, rtol=0, atol=2e-7)
    assert np.allclose(legacy.WebUI(0).randn((3, 4)), CUDA, rtol=0, atol=1e-6)


def test_the_web_ui_imitates_cuda_in_sequences_of_small_draws():
    ours, theirs = legacy.WebUI(2**40 + 3), legacy.TorchCUDA(2**40 + 3, "T4")
    for shape in ((4, 64, 64), 3, (3, 5), (3, 7001)):  # the last in parts
        assert np.allclose(ours.randn(shape), theirs.randn(shape), rtol=0, atol=2e-6)


def test_the_web_ui_is_its_formula():
    """They agree to half a unit in the last place of float32. Seen to fail: an angle without half a cell, 2^-33 of a
    turn."""
    n = 10_000
    words = nf.philox4x32([[0, 0, k, 0] for k in range(n)], [9, 0])[:, :2].astype(float)
    cell = np.float32(2.3283064e-10).astype(float), np.float32(2.3283064e-10 * 6.2831855).astype(float)
    exact = [math.sqrt(-2 * math.log((u + 0.5) * cell[0])) * math.sin((v + 0.5) * cell[1]) for u, v in words.tolist()]
    found = legacy.WebUI(9).randn(n)
    assert (np.abs(found - exact) <= np.spacing(np.abs(found)) * (0.5 + 1e-6)).all()


# CUDA cores from NVIDIA's data sheets, and cores of a multiprocessor.
CORES = {
    "P100": (3584, 64), "V100": (5120, 64), "T4": (2560, 64), "RTX 2080 Ti": (4352, 64),
    "A100": (6912, 64), "A10": (9216, 128), "RTX 3060": (3584, 128), "RTX 3080": (8704, 128), "RTX 3090": (10496, 128),
    "L4": (7424, 128), "L40S": (18176, 128), "RTX 4080": (9728, 128), "RTX 4090": (16384, 128),
    "H100": (16896, 128), "H200": (16896, 128),
}  # fmt: skip


def test_devices_have_as_many_multiprocessors_as_their_cores_ask_for():
    """The threads are those of the architectures: Turing 1024, consumers' Ampere and Ada 1536, others 2048."""
    assert {name: cores // each for name, (cores, each) in CORES.items()} == {
        name: processors for name, (processors, _) in legacy.DEVICES.items()
    }
    for name, (_, threads) in legacy.DEVICES.items():
        turing, whole = name in ("T4", "RTX 2080 Ti"), name in ("P100", "V100", "A100", "H100", "H200")
        assert threads == (1024 if turing else 2048 if whole else 1536)


def test_a_fused_product_is_rounded_once():
    """The value is 1 + 2^-23 + 2^-24 (1 - 2^-36), which float64 rounds to the middle between two float32 numbers."""
    a, b, c = np.float32([2**-24 * (1 + 2**-18), 1 - 2**-18, 1 + 2**-23])
    assert legacy._fma(a.reshape(1), b, c) == [c]


def test_the_order_of_large_draws_is_that_of_the_launch():
    """With (2, 512): 2 blocks on each of two processors, 1024 threads, each of which makes four numbers per round."""
    n, threads = 10_000, 1024
    found = legacy.TorchCUDA(5, (2, 512)).randn(n)
    for i in (0, 1023, 1024, 4095, 4096, 7777, n - 1):
        rounds, inside = divmod(i, 4 * threads)
        which, thread = divmod(inside, threads)
        w = nf.philox4x32([rounds, 0, thread, 0], [5, 0]).astype(float)[which // 2 * 2 :]
        radius, angle = np.sqrt(-2 * np.log((w[0] + 0.5) / 2**32)), 2 * np.pi * (w[1] + 0.5) / 2**32
        assert abs(found[i] - radius * (np.cos(angle) if which % 2 else np.sin(angle))) < 1e-6
    source = legacy.TorchCUDA(5, (2, 512))
    source.randn(n)
    once = nf.philox4x32([3, 0, 0, 0], [5, 0]).astype(float)  # three rounds later
    assert (
        abs(source.randn(1)[0] - np.sqrt(-2 * np.log((once[0] + 0.5) / 2**32)) * np.sin(2 * np.pi * once[1] / 2**32))
        < 1e-6
    )


def test_numpy():
    ours, theirs = legacy.NumPy(9), np.random.RandomState(9)
    for shape in ((3, 5), (7,), (), (3, 7001)):  # the last in parts
        assert ours.randn(shape).tolist() == theirs.standard_normal(shape).tolist()
    assert legacy.NumPy(9).randn(4, dtype="float32").tolist() == np.random.RandomState(9).randn(4).astype("f4").tolist()


def test_parts_of_a_round_are_in_its_order():
    """With the A100: 221,184 threads, which are more than a part."""
    whole = legacy.TorchCUDA(5, "A100").randn(4 * 221_184 + 5)
    of_one = nf.philox4x32([[number, 0, thread, 0] for number, thread in ((0, 221_183), (0, 20_000), (1, 4))], [5, 0])
    radius = np.sqrt(-2 * np.log((of_one[:, 0].astype(float) + 0.5) / 2**32))
    expected = radius * np.sin(2 * np.pi * (of_one[:, 1].astype(float) + 0.5) / 2**32)
    assert np.allclose(whole[[221_183, 20_000, 4 * 221_184 + 4]], expected, rtol=0, atol=1e-6)


def test_no_dtype_is_the_default():
    """Seen to fail: float64 for all of them, and then float32."""
    for source, expected in ((legacy.NumPy(7), "float64"), (legacy.TorchCPU(7), "float32")):
        assert source.randn((2, 3), dtype=None).dtype == expected


def test_sources_feed_a_sampler():
    sampler = nf.samplers.euler_ancestral(nf.Schedule.karras(100), 4)
    source, shape = legacy.TorchCPU(3), (2, 16)
    x = sampler.tableau.start * source.randn(shape)
    z = [source.randn(shape) for _ in range(4)]
    found = sampler.sample(lambda x, t: 0 * x, x, z)
    again = x
    for i in range(4):
        again = sampler.step(i, again, 0 * again, z[i])
    assert found.tolist() == again.tolist()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (OverflowError, r"seed = -1 .*2\^64", lambda: legacy.TorchCPU(-1)),
        (OverflowError, r"seed = 4294967296 .*2\^32", lambda: legacy.NumPy(2**32)),
        (TypeError, "float", lambda: legacy.WebUI(1.5)),
        (ValueError, "device = 'GTX': expected .*A100", lambda: legacy.TorchCUDA(1, "GTX")),
        (ValueError, r"\(1, 255\): expected at least 1 .* and 256 threads", lambda: legacy.TorchCUDA(1, (1, 255))),
        (ValueError, r"device = \(0, 512\): expected at least", lambda: legacy.TorchCUDA(1, (0, 512))),
        (TypeError, r"device = \(8,\): expected a name, or", lambda: legacy.TorchCUDA(1, (8,))),
        (TypeError, r"device = 108: expected a name, or", lambda: legacy.TorchCUDA(1, 108)),
        (TypeError, "dtype float64: expected one of float32", lambda: legacy.TorchCUDA(1, "T4").randn(3, dtype="f8")),
        (TypeError, "dtype int64: expected", lambda: legacy.TorchCPU(1).randn(3, dtype=int)),
        (ValueError, "expected lengths of at least 0", lambda: legacy.TorchCPU(1).randn((3, -1))),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()
