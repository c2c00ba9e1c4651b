# SPDX-License-Identifier: Apache-2.0
"""The Numba backend's own behaviour, and noisefuse.numba inside kernels as users write them.

Seen to fail: normals of a neighbouring element (element + 1), float32 words in normal64, a row's terms in another
order, the last product of a normal left to the compiler (`mul` as a * b: one more fma in the PTX), a cache that does
not look at spec.py, a float mode that is not set.
"""

import ast
import collections
import doctest
import importlib.util
import inspect
import math
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import noisefuse as nf
from conftest import bits, one_in
from noisefuse.backends import spec
from test_threads import python
from test_update import random_table

pytest.importorskip("numba")

from numba import cuda, float32, float64, guvectorize, int64, njit, prange, uint32, uint64, vectorize, void
from numba.core.errors import TypingError

import noisefuse.numba as nfn
from noisefuse.backends.numba import kernels

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("version", "warned"), [((0, 61), True), ((0, 62), False), ((0, 68), False), ((0, 99), True)])
def test_a_numba_that_is_not_tested_is_warned_of(version, warned, monkeypatch, recwarn):
    """Seen to fail: 0.61 was silent. Its bits were right."""
    numba = sys.modules["numba"]
    monkeypatch.setattr(numba, "version_info", numba.version_info._replace(short=version))
    warnings.simplefilter("always")
    internals = runpy.run_path(str(ROOT / "src" / "noisefuse" / "backends" / "numba" / "internals.py"))
    low, high = ("{}.{}".format(*each) for each in internals["TESTED"])
    found = [str(each.message) for each in recwarn if each.category is RuntimeWarning]
    expected = f"is not tested with noisefuse: expected {low} or newer, and below {high}"
    assert found == [f"Numba {numba.__version__} {expected}"] * warned


# ---- in kernels --------------------------------------------------------------------------------------------


@njit
def fill(normals, doubles, uniforms, fine, seed, sample, step, stream, start):
    for b in range(normals.shape[0]):
        for i in range(normals.shape[1]):
            n, element = sample + b, start + i
            normals[b, i] = nfn.normal(seed, n, step, element, stream)
            doubles[b, i] = nfn.normal64(seed, n, step, element, stream)
            uniforms[b, i] = nfn.uniform(seed, n, step, element, stream)
            fine[b, i] = nfn.uniform64(seed, n, step, element, stream)


def edges(end):
    return st.one_of(st.integers(0, end - 1), st.integers(0, 3), st.integers(end - 4, end - 1))


@pytest.mark.slow
@settings(deadline=None)  # compiles
@given(edges(2**64), edges(2**56 - 3), edges(2**32), st.integers(1, 127), edges(2**34 - 41))
def test_elements_are_those_of_randn_and_uniform(seed, sample, step, stream, start):
    found = [np.empty((3, 41), kind) for kind in ("f4", "f8", "f4", "f8")]
    fill(*found, np.uint64(seed), sample, step, stream, start)
    noise = nf.Noise(seed, sample=sample, step=step, stream=stream).window((2**34,), (start,))
    draws = [(nf.randn, "float32"), (nf.randn, "float64"), (nf.uniform, "float32"), (nf.uniform, "float64")]
    for array, (draw, dtype) in zip(found, draws, strict=True):
        assert bits(array) == bits(draw((3, 41), noise, dtype=dtype))


@njit
def by_fours(out, seed):
    for block in range(len(out) // 4):
        z0, z1, z2, z3 = nfn.normal4(seed, 0, 0, block)
        out[4 * block], out[4 * block + 1], out[4 * block + 2], out[4 * block + 3] = z0, z1, z2, z3


@njit(parallel=True)
def in_parallel(out, seed):
    for i in prange(len(out)):
        out[i] = nfn.normal(seed, 0, 0, i)


@vectorize([float32(uint64, int64)])
def vectorized(seed, element):
    return nfn.normal(seed, 0, 0, element)


@guvectorize([(float32[:], uint64, float32[:])], "(n),()->(n)")
def generalized(x, seed, out):
    for i in range(len(x)):
        out[i] = x[i] * 0 + nfn.normal(seed, 0, 0, i)


@pytest.mark.slow
def test_all_kinds_of_kernels():
    expected = nf.randn((1, 1000), nf.Noise(9))[0]
    for kernel in (by_fours, in_parallel):
        out = np.empty(1000, np.float32)
        kernel(out, 9)
        assert bits(out) == bits(expected)
    assert bits(vectorized(np.uint64(9), np.arange(1000))) == bits(expected)
    assert bits(generalized(np.zeros(1000, np.float32), np.uint64(9))) == bits(expected)
    assert [nfn.normal(9, 0, 0, i) for i in range(5)] == expected[:5].tolist()  # plain Python


@pytest.mark.slow
def test_words_and_defaults():
    assert nfn.philox4x32(0, 0, 0, 0, 0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    noise = nf.Noise(3, sample=1, step=2)
    for kind, normal, uniform in (("f4", nfn.normal, nfn.uniform), ("f8", nfn.normal64, nfn.uniform64)):
        assert normal(3, 1, 2, 5) == nf.randn((1, 6), noise, dtype=kind)[0, 5]
        assert uniform(3, 1, 2, 5) == nf.uniform((1, 6), noise, dtype=kind)[0, 5]
    assert nfn.normal4(3, 1, 2, 0) == tuple(nf.randn((1, 4), noise)[0])


@njit
def decided(masked, tokens, winners, logits, seed, sample, step, start, p, temperature):
    """The winners are found by scores, and the tokens in rows."""
    for b in range(tokens.shape[0]):
        for i in range(tokens.shape[1]):
            masked[b, i] = nfn.masked(seed, sample + b, step, start + i, p)
            tokens[b, i] = nfn.categorical(seed, sample + b, step, start + i, logits[b, i], temperature)
            best = -np.inf
            for token in range(logits.shape[2]):
                x = logits[b, i, token]
                score = nfn.category_score(seed, sample + b, step, start + i, token, x, temperature)
                if score > best:
                    best, winners[b, i] = score, token


@pytest.mark.slow
@settings(deadline=None)  # compiles
@given(
    edges(2**64), edges(2**56 - 2), edges(2**32), st.one_of(edges(2**31 - 4), st.integers(2**14 - 4, 2**14 + 4)),
    st.one_of(st.floats(0, 1), st.integers(0, 4).map(lambda n: n / 2**33)),
    st.one_of(st.just(0.0), st.floats(2.0**-64, 2.0**64), st.just(1.0)), st.integers(0, 2**32),
)  # fmt: skip
def test_decisions_are_those_of_q_mask_and_categorical(seed, sample, step, start, p, temperature, drawn):
    """Windows, positions on both sides of 2^14, all temperatures, logits that are equal or infinite. Seen to fail:
    stream 15 for masks."""
    rng = np.random.default_rng(drawn)
    logits = rng.choice([rng.normal(), 0.0, 1.0, -np.inf], (2, 4, 33)).astype(np.float32)
    logits[..., rng.integers(33)] = rng.choice([0.5, 2.0, np.inf])
    masked, tokens, winners = np.empty((2, 4), bool), np.empty((2, 4), int), np.empty((2, 4), int)
    decided(masked, tokens, winners, logits, np.uint64(seed), sample, step, start, p, temperature)
    noise = nf.Noise(seed, sample=sample, step=step)
    window, positions = noise.window((2**31,), (start,)), start + np.arange(4)
    assert np.array_equal(masked, nf.q_mask(np.zeros((2, 4), int), p, window, mask_id=1)[1])
    assert np.array_equal(tokens, nf.categorical(logits, noise, temperature=temperature, positions=positions))
    assert np.array_equal(winners, tokens)


def test_a_row_without_a_token():
    assert nfn.categorical(7, 0, 0, 0, np.full(3, -np.inf, np.float32)) == -1
    assert nfn.categorical(7, 0, 0, 0, np.empty(0, np.float32)) == -1


@njit
def update(out, aux, rows, active, i, inputs, seed, sample, step):
    for k in range(len(out)):
        z = nfn.normal(seed, sample, step + i, k, 3)
        x, m1, m2 = inputs[0, k], inputs[1, k], inputs[2, k]
        past = inputs[3, k], inputs[4, k], inputs[5, k], inputs[6, k]
        out[k], aux[k], _ = nfn.apply_row(rows[i], active, (x, m1, m2, *past), z)


SCHEDULE = nf.Schedule.linear(100)
SAMPLERS = {
    "ddpm": nf.samplers.ddpm(SCHEDULE, steps=6, clip=1.0),
    "dpmpp_2m_sde": nf.samplers.dpmpp_2m_sde(SCHEDULE, steps=6),
    "unipc": nf.samplers.unipc(SCHEDULE, steps=6),
    "pndm": nf.samplers.pndm(SCHEDULE, steps=6),
    "bounded above": nf.samplers.ddpm(SCHEDULE, steps=6, clip=(-math.inf, 0.5)),
    "bounded below": nf.samplers.ddpm(SCHEDULE, steps=6, clip=(-0.5, math.inf)),
}
TABLES = {name: sampler.tableau for name, sampler in SAMPLERS.items()} | {
    # columns that no sampler has
    "all columns": random_table(np.random.default_rng(0), 6, 1.0),
    "some columns": random_table(np.random.default_rng(1), 6, 0.4),
}


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_those_of_update(name):
    table = TABLES[name]
    inputs = np.random.default_rng(0).standard_normal((7, 65), np.float32)
    inputs[:, :4] = [[-0.0, np.inf, np.nan, 0.0]] * 7
    rows, active = nfn.rows(table)
    x, m1, m2, *past = inputs[:, None]
    for i in range(len(table)):
        out, aux = np.empty((2, 65), np.float32)
        update(out, aux, rows, active, i, inputs, 5, 7, 11)
        expected_aux = np.empty_like(x)
        noise = nf.Noise(5, sample=7, step=11)
        expected = nf.update(table, i, x, (m1, m2), past=past, noise=noise, aux_out=[expected_aux])
        assert bits(out) == bits(expected[0])
        assert bits(aux) == bits(expected_aux[0])


def test_rows_of_gradients_are_refused():
    with pytest.raises(ValueError, match="gradients of a clamp"):
        nfn.rows(SAMPLERS["ddpm"].tableau.transpose()["x"])
    with pytest.raises(TypeError, match=r"table: expected a noisefuse\.Tableau, such as sampler\.tableau, got Sampler"):
        nfn.rows(SAMPLERS["ddpm"])


def test_types_that_do_not_fit_are_named():
    """Seen to fail: Numba's "No match"; rows of integers were made."""
    with pytest.raises(TypeError, match=r"dtype .*int.*: expected one of float32, float64"):
        nfn.rows(SAMPLERS["ddpm"].tableau, int)
    expected = "fma: expected arguments of one type, float32 or float64, got float32, float64, float32"
    with pytest.raises(TypingError, match=expected):
        njit(lambda x: nfn.fma(x, 0.5, x))(np.float32(1))
    rows, active = nfn.rows(SAMPLERS["ddpm"].tableau)
    with pytest.raises(TypingError, match=r"expected arguments of one type, .*, got float32, float64"):
        nfn.apply_row(rows[0], active, (1.0,) * 7, 0.0)


@njit
def noised(out, x, alpha, sigma, seed):
    for i in range(len(out)):
        out[i] = nfn.fma(alpha, x[i], nfn.mul(sigma, nfn.normal(seed, 0, 0, i)))


LIBRARY = r"(?:\$|call\w*\s+)(?:sqrt|fma|log|sin|cos)f?\b"


@njit
def with_a_library(out, x):
    for i in range(len(out)):
        out[i] = math.sin(x[i])


def test_a_call_of_a_library_is_seen():
    with_a_library(*np.zeros((2, 8), np.float32))
    assert re.search(LIBRARY, "\n".join(with_a_library.inspect_asm().values()))


def test_a_loop_vectorises():
    """The code has packed instructions, for the square root too, and no call of a mathematical library."""
    noised(*np.zeros((2, 8), np.float32), np.float32(1), np.float32(1), 1)
    by_fours(np.zeros(8, np.float32), 1)
    for kernel in (noised, by_fours):
        text = "\n".join(kernel.inspect_asm().values())
        if "vfmadd" not in text:
            pytest.skip("knows x86-64's names, and needs its fma: without it each is a call")
        assert re.search(r"\bvsqrtps\b", text)
        assert len(re.findall(r"\bvfn?m(?:add|sub)\d+ps\b", text)) >= PAIR32
        assert not re.search(LIBRARY, text)


@pytest.mark.parametrize("name", nfn.__all__)
def test_names_are_documented(name):
    assert (getattr(nfn, name).__doc__ or "").strip()
    assert re.search(rf"\b{name}\(", (ROOT / "docs" / "numba.md").read_text())


@pytest.mark.parametrize("name", nfn.__all__)
def test_examples_run(name):
    """Seen to fail: another element in one of the functions."""
    doc = inspect.getdoc(getattr(nfn, name))
    example = doctest.DocTestParser().get_doctest(doc, {"nf": nf, "np": np}, name, None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


# ---- numba.cuda --------------------------------------------------------------------------------------------


def gpu_normal(out, seed):
    i = cuda.grid(1)
    out[i] = float32(2.5) + nfn.normal(seed, 1, 2, i)


def gpu_normal4(out, seed):
    i = cuda.grid(1)
    z0, z1, z2, z3 = nfn.normal4(seed, 1, 2, i)
    out[i] = z0 + z1 + z2 + z3


def gpu_normal64(out, seed):
    i = cuda.grid(1)
    out[i] = 2.5 + nfn.normal64(seed, 1, 2, i)


def gpu_uniform(out, seed):
    i = cuda.grid(1)
    out[i] = float32(2.5) + nfn.uniform(seed, 1, 2, i)


def gpu_uniform64(out, seed):
    i = cuda.grid(1)
    out[i] = 2.5 + nfn.uniform64(seed, 1, 2, i)


def gpu_masked(out, seed):
    i = cuda.grid(1)
    out[i] = float32(nfn.masked(seed, 1, 2, i, 0.3))


def gpu_score64(out, seed):
    i = cuda.grid(1)
    out[i] = 2.5 + nfn.category_score(seed, 1, 2, i, 9, float32(out[i]), 0.7)


def gpu_row(out, seed):
    i = cuda.grid(1)
    x = out[i]
    out[i] = float32(2.5) + nfn.apply_row(out, int64(seed), (x, x, x, x, x, x, x), x)[0]


def gpu_q_sample(out, seed):
    i = cuda.grid(1)
    out[i] = float32(2.5) + nfn.fma(out[i], out[i], nfn.mul(out[i], nfn.normal(seed, 1, 2, i)))


PAIR32 = len(spec.LOG1P32) + len(spec.COS32) + len(spec.SIN32) - 2  # a polynomial has one less; ln 4 takes one
PAIR64 = len(spec.LOG1P64) + len(spec.COS64) + len(spec.SIN64) - 2
FUSED = {gpu_normal: PAIR32, gpu_normal4: 2 * PAIR32, gpu_normal64: PAIR64, gpu_uniform: 0, gpu_uniform64: 0}
FUSED |= {gpu_masked: 0, gpu_score64: 2 * len(spec.LOG1P64) + 1}  # two logarithms, and the sum
FUSED |= {gpu_q_sample: PAIR32 + 1, gpu_row: 3 + 9}  # a row's terms: those of D, and of one output
needs_cuda = pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda")


@needs_cuda
@pytest.mark.parametrize("kernel", one_in(3, FUSED))
def test_nothing_is_contracted_or_approximate_on_a_gpu(kernel):
    """There are as many fma as in the text, and no product that the assembler could fuse with a sum."""
    real = float64 if kernel.__name__.endswith("64") else float32
    text, _ = cuda.compile_ptx(kernel, void(real[:], uint64), cc=(9, 0))
    found = re.findall(r"^\s*(?:@%p\d+ )?([a-z]\w*)\.([\w.]*f(?:32|64))\s+(%\w+), ([^;]*);", text, re.MULTILINE)
    count = collections.Counter(name for name, *_ in found)
    assert count["fma"] == FUSED[kernel]
    loose = {to for name, kind, to, _ in found if name == "mul" and not kind.startswith("rn")}
    for name, kind, _, arguments in found:
        assert "approx" not in kind
        assert "ftz" not in kind
        assert name not in ("div", "rcp", "sin", "cos", "lg2", "ex2")
        assert name != "sqrt" or kind.startswith("rn")
        if name in ("add", "sub"):
            assert not loose & {*arguments.split(", ")}
    assert "call" not in {name for name, *_ in found}


@pytest.mark.slow
@needs_cuda
def test_device_functions_compile_by_themselves():
    number = (uint64, int64, int64, int64, int64)
    for function, signature in (
        (nfn.normal, number),
        (nfn.normal4, number),
        (nfn.normal64, number),
        (nfn.uniform, number),
        (nfn.uniform64, number),
        (nfn.philox4x32, (uint32,) * 6),
        (nfn.masked, (uint64, int64, int64, int64, float64)),
        (nfn.category_score, (uint64, int64, int64, int64, int64, float32, float64)),
    ):
        text, _ = cuda.compile_ptx(function.py_func, signature, device=True, cc=(9, 0), abi="numba")
        assert ".func" in text


@needs_cuda
def test_a_gpu_gives_the_same_bits():
    if not cuda.is_available():
        pytest.skip("needs a GPU")
    for kernel, dtype, draw in (
        (gpu_normal, "float32", nf.randn),
        (gpu_normal64, "float64", nf.randn),
        (gpu_uniform, "float32", nf.uniform),
        (gpu_uniform64, "float64", nf.uniform),
    ):
        out = cuda.to_device(np.zeros(1 << 16, dtype))
        cuda.jit(kernel)[256, 256](out, np.uint64(9))
        z = draw((1, 1 << 16), nf.Noise(9, sample=1, step=2), dtype=dtype)[0]
        assert bits(out.copy_to_host()) == bits(z.dtype.type(2.5) + z)


# ---- other processors --------------------------------------------------------------------------------------


# A name without features gets this machine's: haswell would have AVX-512.
FEATURES = {"generic": "", "haswell": "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt"}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="processors of x86-64")
@pytest.mark.release
@pytest.mark.parametrize("processor", FEATURES)
def test_other_processors_have_the_same_bits(processor, tmp_path):
    """generic has no fma instruction and calls the C library's; haswell has no AVX-512. The hashes cover every
    operation and dtype, tiles cover their ends, and the others cover users' code."""
    names = "hashes_compiled and numba and 5 or elements_are or kinds_of_kernels or words_and or rows_are or tiles_of"
    files = ["test_known.py", "backends/test_numba.py"]
    environment = {
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CPU_FEATURES": FEATURES[processor],
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", names],
        cwd=ROOT / "tests",
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[:3000]


# ---- the backend -------------------------------------------------------------------------------------------

DRAW = "import noisefuse as nf; print(nf.randn((1, 4), nf.Noise(0)).tolist())"


@pytest.mark.parametrize(
    ("missing", "backend"), [(["noisefuse._native"], "numba"), (["noisefuse._native", "numba"], "reference")]
)
def test_a_missing_extension_is_said_once_and_done_without(missing, backend):
    code = f"import sys; sys.modules |= dict.fromkeys({missing})\n"
    code += "import importlib.util as u; find = u.find_spec\n"
    code += f"u.find_spec = lambda name, *rest: None if name in {missing} else find(name, *rest)\n"
    code += f"{DRAW}; {DRAW}; nf.set_num_threads(2); print(nf.info()['backend'], nf.info()['threads'])\n"
    code += "print(nf.info()['backends']['native'])"
    done = python(code, NOISEFUSE_BACKEND=None)
    assert done.returncode == 0, done.stderr
    first, second, chosen, reason = done.stdout.splitlines()
    assert first == second == str(nf.randn((1, 4), nf.Noise(0)).tolist())
    assert chosen == f"{backend} 2"
    assert "NOISEFUSE_PURE was set" in reason
    assert done.stderr.count("RuntimeWarning") == 1
    assert f"runs on its backend '{backend}'" in done.stderr
    assert done.stderr.count("unset it and install noisefuse again") == 1
    if "numba" in missing:
        assert "some 10 times slower than NumPy" in done.stderr
        assert done.stderr.count("pip install 'noisefuse[numba]'") == 1
        assert (
            "ImportError: Numba is not installed: pip install 'noisefuse[numba]'"
            in python(f"{code}\nimport noisefuse.numba", NOISEFUSE_BACKEND=None).stderr
        )


@pytest.mark.parametrize(("pure", "missing", "warnings"), [("true", [], 0), ("false", [], 1), ("true", ["numba"], 1)])
def test_an_extension_that_was_left_out_on_purpose_is_no_reason_to_warn(pure, missing, warnings, tmp_path):
    """Seen to fail: a warning in every process, an error under `-W error`. The reference is never a deliberate
    choice."""
    installed = tmp_path / "noisefuse-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: noisefuse\nVersion: 1\n")
    (installed / "WHEEL").write_text(f"Wheel-Version: 1.0\nRoot-Is-Purelib: {pure}\n")
    missing = ["noisefuse._native", *missing]
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules |= dict.fromkeys({missing})\n"
    code += "import importlib.util as u; find = u.find_spec\n"
    code += f"u.find_spec = lambda name, *rest: None if name in {missing} else find(name, *rest)\n{DRAW}"
    done = python(code, NOISEFUSE_BACKEND=None)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == warnings


# It runs in a new process: the copy of the package counts, and whether it compiles `step` or finds it on disk.
OF_A_COPY = """
import re, sys, warnings
sys.path.insert(0, COPY)
sys.meta_path = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
warnings.simplefilter("ignore")
import noisefuse as nf
from noisefuse.backends.numba import kernels
"""
COMPILED = """
for dtype in ("float32", "float64"):
    nf.randn((1, 4), nf.Noise(0), dtype=dtype)
code, assembly = kernels.step.inspect_llvm(), "".join(kernels.step.inspect_asm().values())
if "vfmadd" in assembly:
    print(*(len(re.findall(rf"\\b{name}\\b", assembly)) > 0 for name in ("vsqrtps", "vsqrtpd", "vpmuludq")))
print(sum(text.count("memcheck") for text in code.values()))
from numba.core.registry import cpu_target
features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
print("+avx512f" in features, "vsqrtps\\t%zmm" in assembly)
"""
FOUND = """
import os
from numba.core import event

class Compiles(event.Listener):
    def on_start(self, event):
        print("compiles", event.data["dispatcher"].py_func.__name__, flush=True)
        os._exit(0)

    def on_end(self, event):
        pass

event.register("numba:compile", Compiles())
for dtype in ("float32", "float64"):
    nf.randn((1, 4), nf.Noise(0), dtype=dtype)
print("finds", sum(kernels.step.stats.cache_hits.values()))
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """Returns (the copy of the package, a function that runs code on it, the output of COMPILED): compiled once, a
    minute."""
    folder = tmp_path_factory.mktemp("copied")
    package = folder / "site" / "noisefuse"
    shutil.copytree(ROOT / "src" / "noisefuse", package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))

    def run(code):
        environment = {"NUMBA_CACHE_DIR": str(folder / "cache"), "NOISEFUSE_BACKEND": "numba"}
        return python(OF_A_COPY.replace("COPY", repr(str(package.parent))) + code, seconds=300, **environment)

    return package, run, run(COMPILED).stdout.splitlines()


@pytest.mark.slow
def test_the_backend_vectorises(copied):
    """float64 is vectorised, too, with the full width; and no loop checks whether arrays overlap, because it would run
    a slower one in place.

    Seen to fail: float64's logarithm in one polynomial, a loop whose accesses are not said to be independent, an Intel
    Cascade Lake without whole_vectors().
    """
    *packed, overlaps, widest = copied[2]
    assert packed in ([], ["True True True"])  # the register names are those of x86-64 with fma
    assert overlaps == "0"
    assert widest in ("True True", "False False")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", [3, 16, 112, 256, 259, 1000, 4096])
def test_tiles_of_one_run_and_of_many(size, dtype):
    """Whole tiles of one run and one row take a separate path, in place too; windows begin within a block.

    Seen to fail: a tile of many samples taken for one of one run, elements skipped in each tile of a run.
    """
    schedule, t = nf.Schedule.linear(1000), np.arange(37) % 3
    x = nf.randn((37, size), nf.Noise(1)).astype(dtype)
    for noise in (nf.Noise(2), nf.Noise(2).window((size + 2,), (2,)), nf.Noise(2, sample=np.arange(37) * 5)):
        for when in (500, t):
            expected = nf.q_sample(x, when, schedule, noise)
            with nf.use_backend("numba"):
                assert bits(nf.q_sample(x, when, schedule, noise)) == bits(expected)
                again = x.copy()
                assert bits(nf.q_sample(again, when, schedule, noise, out=again)) == bits(expected)


def test_a_self_test_that_failed_is_made_again(monkeypatch):
    jit = pytest.importorskip("noisefuse.backends.numba.jit")

    def fails(*_):
        raise ImportError("wrong bits")

    monkeypatch.setattr(jit, "_tested", set())
    monkeypatch.setattr(jit, "self_test", fails)
    with nf.use_backend("numba"):
        for _ in range(2):
            with pytest.raises(ImportError, match="wrong bits"):
                nf.randn((2, 3), nf.Noise(1))
        monkeypatch.undo()
        assert nf.randn((2, 3), nf.Noise(1)).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_calls_of_many_elements_are_shared_out(threads):
    """Seen to fail: a workspace that the threads share."""
    x, schedule = nf.randn((3, 50_001), nf.Noise(1)), nf.Schedule.linear(1000)
    expected = nf.q_sample(x, 500, schedule, nf.Noise(2, step=3))
    with nf.use_backend("numba"), nf.set_num_threads(threads):
        for _ in range(20):
            assert bits(nf.q_sample(x, 500, schedule, nf.Noise(2, step=3))) == bits(expected)


def test_a_thread_that_comes_late_leaves_later_calls_alone(monkeypatch):
    """Seen to crash: memory reused for small calls while a thread still had to check whether its own call was done."""
    threads = pytest.importorskip("noisefuse.backends.threads")

    def give_all(work):
        shares = [threads._Share(work) for _ in threads._workers]
        for share in shares:
            threads._shares.put(share)
        return shares

    schedule, room = nf.Schedule.linear(1000), np.zeros((2, 1 << 16), np.float32)
    with nf.use_backend("numba"), nf.set_num_threads(2):
        nf.q_sample(room, 500, schedule, nf.Noise(1))  # after its first shared call it has a thread
        go = threading.Event()
        held = give_all(go.wait)
        while not all(share.begun for share in held):
            time.sleep(1e-3)
        # A thread that begins just after the check is not cancelled.
        monkeypatch.setattr(threads._Share, "wait", lambda share: None)
        nf.q_sample(room, 500, schedule, nf.Noise(1))  # done here alone
        nf.q_sample(room[:1, :132], 500, schedule, nf.Noise(1), out=room[:1, :132])
        go.set()
        everyone = threading.Barrier(len(threads._workers) + 1)
        give_all(everyone.wait)
        everyone.wait(60)
    assert room[0, :132].all()
    assert not room.reshape(-1)[132:].any()


def rewritten(path, text):
    """The time is two seconds later: Python takes bytecode as valid for a text of the same second and length."""
    later = path.stat().st_mtime + 2
    path.write_text(text)
    os.utime(path, (later, later))


@contextmanager
def changed(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    rewritten(path, text.replace(old, new))
    yield
    rewritten(path, text)


@pytest.mark.slow
def test_compiled_code_is_kept_on_disk_and_is_that_of_the_text(copied):
    """The second process compiles nothing. A changed coefficient in spec.py is not overlooked: that would compile.

    Nor is a change of call/description.py, whose offsets are compiled in, or of a file beside kernels.py. Seen to
    fail: the name of a kernel left out the text of description.py, or of rows.py.
    """
    package, run, _ = copied
    assert run(FOUND).stdout == "finds 2\n"
    for file, old, new in (
        ("call/description.py", "AXES = 21", "AXES = 22"),
        ("backends/spec.py", "-0x1.555394p-1", "-0x1.555594p-1"),
        ("backends/numba/rows.py", "fma(c[i], v[i], k[i])", "fma(v[i], c[i], k[i])"),
    ):
        with changed(package / file, old, new):
            assert run(FOUND).stdout == "compiles step\n"
    assert run(FOUND).stdout == "finds 2\n"


def test_the_name_of_a_kernel_has_every_text_that_is_compiled_in(monkeypatch):
    """The files beside kernels.py, and those of the library that they import. The order of levels.py numbers dtypes.
    Seen to fail: rows.py, spec.py or levels.py left out of the list."""
    seen = set()
    monkeypatch.setattr(inspect, "getsource", lambda module: seen.add(module.__name__) or "")
    kernels._version()
    folder = kernels.__name__.rpartition(".")[0]
    files = {f"{folder}.{path.stem}" for path in Path(kernels.__file__).parent.glob("*.py")}
    compiled = files - {f"{folder}.__init__", f"{folder}.jit"}
    imported = {"noisefuse.language.levels"}
    for name in compiled:
        for node in ast.walk(ast.parse(Path(sys.modules[name].__file__).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                origin = importlib.util.resolve_name("." * node.level + (node.module or ""), folder)
                below = {f"{origin}.{alias.name}" for alias in node.names}
                imported |= below & {*sys.modules} or {origin}
    assert compiled | imported <= seen


@pytest.mark.slow
def test_a_changed_coefficient_is_compiled_in_and_refused(copied):
    package, run, _ = copied
    with changed(package / "backends" / "spec.py", "-0x1.555394p-1", "-0x1.555594p-1"):
        assert "built wrongly" in run("nf.randn((1, 4), nf.Noise(0))").stderr


def test_a_dtype_that_kernels_do_not_know_is_refused():
    """Seen to fail: a dtype that was read as bfloat16, like any that was not listed."""
    code = "from noisefuse.call import packed; packed.DTYPES['float8'] = 6; import noisefuse.backends.numba.kernels"
    assert "too many values to unpack" in python(code).stderr


def test_without_compiled_code_there_is_another_backend():
    done = python(DRAW, NOISEFUSE_BACKEND="numba", NUMBA_DISABLE_JIT="1")
    assert "ImportError: NUMBA_DISABLE_JIT is set: Numba compiles nothing" in done.stderr


def test_without_a_folder_to_keep_it_in_code_is_compiled_each_time():
    """This uses the kernel that compiles in a second; one function makes all kernels. Seen to fail: without the second
    njit of `compiled`."""
    code = """
import numba.core.caching as c
c.CacheImpl._locator_classes = []
import noisefuse as nf
from noisefuse.backends.numba import kernels
print(nf.philox4x32([0, 0, 0, 0], [0, 0]).tolist(), kernels.philox.stats.cache_path)
"""
    done = python(code, NOISEFUSE_BACKEND="numba")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]} None\n"


@pytest.mark.release
def test_an_installation_without_a_compiler(tmp_path):
    """The build fails and says what to do, or pure Python is requested. Seen to fail: a wheel without the extension,
    which pip kept."""
    run = [sys.executable, "-m", "venv", str(tmp_path / "venv")]
    subprocess.run(run, check=True)
    interpreter = tmp_path / "venv" / "bin" / "python"
    install = [interpreter, "-m", "pip", "install", "-q", "-C", f"build-dir={tmp_path / 'build'}", str(ROOT)]
    environment = os.environ | {"CXX": "/nonexistent"}
    failed = subprocess.run(install, env=environment, capture_output=True, text=True)
    assert failed.returncode != 0
    assert "needs a C++20 compiler" in failed.stderr
    assert "set NOISEFUSE_PURE=1" in failed.stderr
    subprocess.run(install, check=True, env=environment | {"NOISEFUSE_PURE": "1"}, capture_output=True)
    done = subprocess.run([interpreter, "-c", DRAW], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("[[0.99113")
    assert done.stderr.count("RuntimeWarning") == 1
    assert "some 10 times slower than NumPy" in done.stderr
