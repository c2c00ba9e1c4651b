# SPDX-License-Identifier: Apache-2.0
"""differential.py finds nothing here, and finds and shrinks planted errors."""

import re
from random import Random

import numpy as np
import pytest

import calls
import differential
import noisefuse as nf
from arguments import CALLS, Draw, random_call
from conftest import NATIVE
from differential import compared, contenders, differ, outcome
from noisefuse.backends import native, reference
from noisefuse.call.description import Step

SPOILT = NATIVE[0]


def test_backends_give_the_same_bits():
    """No call of some hundreds differs between the reference and native, on any instruction set."""
    results = differential.run(200, 2, numba=False, makers=calls.OPERATIONS)
    assert [line for result in results for line in result.lines] == []
    assert all(result.passed for result in results)
    assert sum(result.cases for result in results) == 200


def test_the_choices_of_a_call_make_it_again():
    """Returns the start of a report that makes a call smaller."""
    for seed in range(50):
        draw = Draw(random=Random(seed))
        line, again = random_call(draw, calls.CALLS), Draw(draw.taken)
        assert random_call(again, calls.CALLS) == line
        assert again.taken == draw.taken


def flipped(array, one_in):
    """Flips the last bit of about one element in so many, chosen by its own bits."""
    if isinstance(array, np.ndarray) and array.dtype == np.float32 and array.flags.c_contiguous:
        words = array.reshape(-1).view(np.uint32)
        words ^= ((words * np.uint32(0x9E3779B1)) >> np.uint32(12)) % np.uint32(one_in) == 0


def spoil(monkeypatch, one_in):
    """One instruction set of native gives wrong bits, rarely."""
    from noisefuse import _native

    def run(call):
        found = right(call)
        if type(call) is Step and f"native-{_native.isa()}" == SPOILT:
            for out in call.outputs:
                flipped(out, one_in)
        return found

    right = native.run
    monkeypatch.setattr(native, "run", run)
    monkeypatch.setattr(native, "fast_row", None)
    monkeypatch.setattr(native, "fast_random", None)


@pytest.mark.release
def test_a_flipped_bit_is_found_and_shrunk(monkeypatch):
    """One bit of 2^20 elements is wrong, on one instruction set: reports are lines that show it, with few arguments
    left."""
    spoil(monkeypatch, 1 << 20)
    results = differential.run(2000, 3, numba=False, makers=CALLS)
    lines = [line for result in results for line in result.lines]
    assert lines
    assert not all(result.passed for result in results)
    for line in lines:
        assert f"differ({SPOILT!r}" in line
        assert line.endswith("# other bits")
        assert len(line) < 400


def test_a_frequent_defect_shrinks_to_a_small_call(monkeypatch):
    """One element in 16 is wrong: the call left has few elements and options, and the line reports it when pasted."""
    spoil(monkeypatch, 16)
    monkeypatch.setattr(differential, "SHOWN", 1)
    line = next(line for result in differential.run(60, 4, numba=False, makers=CALLS) for line in result.lines)
    shape = re.search(r"\(([\d, ]*)\)", line)  # () is one element
    assert np.prod([int(n) for n in re.findall(r"\d+", shape[1])]) <= 32
    scope = {}
    code, _, problem = line.partition("  # ")
    assert code.startswith("from differential import differ; differ(")
    exec(code.replace("; differ(", "; found = differ("), scope)
    assert scope["found"] == problem == "other bits"


def test_another_error_is_found(monkeypatch):
    """One backend has a type, or a text, of its own."""
    line = "nf.randn((2, 3), nf.Noise(1), out=array((2, 3)))"
    assert differ(SPOILT, 1, line) == ""

    def fails(*arguments):
        raise ValueError("of native alone")

    monkeypatch.setattr(native, "fast_random", fails)
    assert "of native alone" in differ(SPOILT, 1, line)


def test_what_is_written_before_an_error_is_found(monkeypatch):
    """The reference warns, too."""

    def run(call):
        call.outputs[0][...] = 0
        raise ValueError("too late")

    monkeypatch.setattr(reference, "run", run)
    problems, _ = compared([], 1, "nf.randn((2, 3), nf.Noise(1), out=array((2, 3)))")
    assert problems == {"reference": "wrote before it raised ValueError: too late"}


def test_memory_around_an_array_is_compared():
    """The bits between the elements of a strided input, and all inputs, belong to the contents after a call."""
    found = outcome("nf.update(table(0, 1.0), 0, (x := array((4,), layout='strided')), noise=nf.Noise(1))")
    assert [len(memory) for memory in found.memory] == [3 * 4 * 4]


@pytest.mark.parametrize(("name", "numba", "expected"), [("native", False, False), ("native", True, True)])
def test_numba_takes_part_where_it_is_wanted(name, numba, expected):
    """Numba's first calls take a minute: it can be left out, unless it is in use."""
    pytest.importorskip("numba")
    with nf.use_backend(name):
        assert ("numba" in contenders(numba=numba)) == expected


@pytest.mark.parametrize(
    "line",
    [
        "nf.randn((1, 1, 1), nf.Noise(0), batched=np.ones((2, 3)))",
        "nf.randn_like(array((2,)), nf.Noise(0), batched=-1)",
        "nf.q_walk(array((2, 1), 'uint8'), SHORT, nf.Noise(0), batched=-1)",
        "step(sampler('ddim'), 0, array((2, 1)), array((2, 1)), -1)",
        "step(sampler('ddim'), 0, array((2, 1)), array((2, 1)), [nf.Noise(0), nf.Noise(0, stream=1)])",
        "nf.density.log_prob(sampler('flow_cps').tableau, 3, *[array((71, 2), 'float64', n) for n in (705, 0, 0)])",
    ],
)
def test_what_differed_does_not_any_more(line):
    """These cases were found by campaigns, one for each defect."""
    assert differ(SPOILT, 1, line) == ""
