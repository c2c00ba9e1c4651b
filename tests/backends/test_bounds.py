# SPDX-License-Identifier: Apache-2.0
"""No kernel reaches past the ends of an array.

(tests/sanitize.sh sees only C++ accesses, and none within NumPy's memory.)
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, NATIVE, NUMBA, bits, using

CODE = """
import ctypes, faulthandler, mmap, os, sys
import numpy as np
from numpy._core._multiarray_umath import _ARRAY_API
import noisefuse as nf
from noisefuse.tableau import D, m1, past, x, z
from conftest import DTYPES, NATIVE, NUMBA, using

# NumPy's arrays in memory that begins or ends at a page which nobody may touch: a PyDataMem_Handler.
faulthandler.enable()
at_end, held, page, word = sys.argv[1] == "end", {}, mmap.PAGESIZE, ctypes.c_size_t
libc = ctypes.CDLL(None)
libc.mmap.restype, libc.mmap.argtypes = word, (word, word, *(ctypes.c_int,) * 3, ctypes.c_long)
libc.munmap.argtypes, libc.mprotect.argtypes = (word, word), (word, word, ctypes.c_int)

def allocate(_, size):
    inside = -(-size // page) * page
    begin = libc.mmap(0, inside + 2 * page, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    libc.mprotect(begin + page, inside, mmap.PROT_READ | mmap.PROT_WRITE)
    data = begin + page + at_end * (inside - max(size, 16))
    held[data] = begin, inside + 2 * page, size
    return data

def reallocate(_, data, size):
    new = allocate(_, size)
    ctypes.memmove(new, data, min(size, held[data][2]))
    release(_, data, 0)
    return new

def release(_, data, size):
    if data:
        libc.munmap(*held.pop(data)[:2])

kinds = (word, word), (word, word, word), (word, word, word), (None, word, word)
functions = allocate, lambda _, count, size: allocate(_, count * size), reallocate, release  # new pages are zeros
class Handler(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("context", word)]
    _fields_ += [(f"f{n}", ctypes.CFUNCTYPE(kind[0], word, *kind[1:])) for n, kind in enumerate(kinds)]
handler = Handler(b"guarded", 1, 0)
for n, function in enumerate(functions):
    setattr(handler, f"f{n}", Handler._fields_[3 + n][1](function))
python, new = ctypes.pythonapi, ctypes.pythonapi.PyCapsule_New
python.PyCapsule_GetPointer.restype, python.PyCapsule_GetPointer.argtypes = word, (ctypes.py_object, ctypes.c_char_p)
new.restype, new.argtypes = ctypes.py_object, (word, ctypes.c_char_p, word)
api = python.PyCapsule_GetPointer(_ARRAY_API, None)
set_handler = ctypes.cast(api, ctypes.POINTER(word))[304]
ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(set_handler)(new(ctypes.addressof(handler), b"mem_handler", 0))

noise, schedule = nf.Noise(1, step=2), nf.Schedule.linear(1000)
table = nf.Tableau([nf.Row(clean=2 * x - m1, lo=-1.0, hi=1.0, out=D + past[0] + z, aux1=m1 + x)] * 7)
shapes = (1, 1), (3, 5), (70, 3), (2, 63), (4, 65), (3, 256), (2, 257), (3, 300), (1, 1021), (5, 4100), (1, 66001)
for name in (*NATIVE, *NUMBA):
    with using(name), nf.set_num_threads(1):
        for dtype in DTYPES.values():
            for shape in shapes:
                a, b = np.ones(shape).astype(dtype), np.ones(shape).astype(dtype)
                t, ids = np.arange(shape[0]) % 7, noise.at(sample=np.arange(shape[0]))
                part = noise.window((shape[1] + 9,), (5,))
                for rows, names in ((3, noise), (t, ids), (t, part), (t, b), (3, [noise] * shape[0])):
                    nf.q_sample(a, rows, schedule, names, target="v", out=b.copy())
                    nf.mse_loss_and_grad(a, b, rows, schedule, names, target="v", out=b.copy())
                    nf.update(table, rows, a, b, past=[b], noise=names, aux_out=1)
                nf.q_sample(a.astype(np.uint8), t, schedule, noise, dtype=dtype)
                nf.q_walk(a, schedule, part, keep=[1, 3])
                nf.randn(shape, part, dtype=dtype)
                nf.uniform(shape, ids, dtype="float64")
            for length in (4099, 4096):  # read where they lie, but for parts of the longer ones
                a, b = (np.ones((5, 3, length)).astype(dtype).transpose(1, 0, 2) for _ in range(2))
                nf.mse_loss_and_grad(a, b, 3, schedule, noise, target="v")
                nf.update(table, 3, a, b, past=[b], noise=noise, aux_out=1)
assert held
os._exit(0)  # what is left would be given back to functions that are gone
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its memory protection")
@pytest.mark.parametrize("side", ["begin", "end"])
def test_no_kernel_reaches_past_the_ends_of_an_array(side):
    """Seen to fail: a loop of the Numba backend that converts one float16 too many."""
    tests = Path(__file__).parents[1]  # for conftest, which takes some from the campaign
    here = {**os.environ, "PYTHONPATH": str(tests / "campaign")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, side], cwd=tests, env=here, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[:3000]


@pytest.mark.parametrize("length", [49, 65, 97, 129, 252, 300])
def test_what_is_written_before_its_turn_is_written_again(length):
    """A tile's last group may reach into the elements that follow, as they come next.

    Seen to fail, with a fault of memory: in place, without regard to the end of a thread's elements.
    """
    shape = (1 + 40_000 // length, length)  # for two threads
    schedule, noise, t = nf.Schedule.linear(1000), nf.Noise(3), np.arange(shape[0]) % 1000
    x = np.random.default_rng(0).integers(0, 255, shape).astype("uint8")
    table = nf.samplers.ddpm(schedule, steps=3).tableau

    def results():
        for dtype in DTYPES.values():
            a, m = x.astype(dtype), (x / 100).astype(dtype)
            for times in (t, 500):
                yield nf.q_sample(a, times, schedule, noise)
                yield nf.q_sample(a.copy(), times, schedule, noise, out=a.copy())
                yield nf.mse_loss(m, a, times, schedule, noise, target="v", reduction="none")
            yield nf.update(table, 0, a, m, noise=noise)
            for times in (t, 500):
                here = a.copy()
                yield nf.q_sample(here, times, schedule, noise, out=here)
        yield nf.q_sample(x, t, schedule, noise, dtype="float32")

    with using("reference"):
        expected = [bits(one) for one in results()]
    for name in (*NATIVE, *NUMBA):
        with using(name), nf.set_num_threads(2):
            assert [bits(one) for one in results()] == expected, name
