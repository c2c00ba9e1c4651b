# SPDX-License-Identifier: Apache-2.0
"""Small calls take few instructions: counted by single steps, which the load of the machine cannot change.

Seen to fail: `interpolate` that makes one array of NumPy more; a public function that is compared with nothing; a loss
whose `Function` calls the library again (45,000 to 85,000 instructions above an empty one); `randn_like` of a tensor in
C order that is turned afterwards.
"""

import json
import platform
import shutil
import sys

import pytest

import cliffs
import counted
import noisefuse as nf
from peers_of_calls import peers
from test_peers import ALONE, is_large

KNOWN = json.loads(counted.FILE.read_text())
ISA = nf.info()["isa"]
# The most that some calls may take, in plain calls of q_sample.
TIMES = {
    "interpolate, t (B,), velocity": 3,
    "noised, (B,)": 3,
    "q_mask, 2 x 16": 3,
    "q_uniform, 2 x 16": 3,
    "categorical, V = 50": 6,
    "masked_cross_entropy, 2 x 16": 6,
    "a step of mdlm": 20,
    "q_walk of 5 steps": 5,
}
# The most instructions of a loss with autograd above those of an empty `torch.autograd.Function`: 10 microseconds.
ABOVE_EMPTY = 31_500

steps = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="single steps of x86-64 on Linux"
)
native = pytest.mark.skipif(ISA not in KNOWN["arrays"], reason="the other backends have no fast path")


def too_many(kind, found):
    """Calls with 3 % more than the known count. Another Python, NumPy or torch has counts of its own: with those a call
    may take a quarter more plain calls than known."""
    known, unit = KNOWN[kind][ISA], 1.03
    if not counted.where(kind).items() <= KNOWN[kind].items():
        unit = 1.25 * found["q_sample"] / known["q_sample"]
    assert {*found} == {*known}, "python benchmarks/counted.py writes the counts anew"
    return {name: (count, known[name]) for name, count in found.items() if count > unit * known[name]}


def counts(kind):
    """The counts of one process, and where some are too many the least of up to eight: addresses differ, and with them
    which names share a place in Python's cache of attributes, 500 instructions for each that is looked up anew. (Three
    processes of five were seen to have such a pair.)"""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    found = counted.counts(kind, ISA)
    for _ in range(7):
        if too_many(kind, found):
            again = counted.counts(kind, ISA)
            found = {name: min(count, again[name]) for name, count in found.items()}
    return found


@steps
@native
def test_small_calls_on_arrays():
    found = counts("arrays")
    assert too_many("arrays", found) == {}
    times = {name: found[name] / found["q_sample"] for name in TIMES}
    assert {name: one for name, one in times.items() if one > TIMES[name]} == {}


@steps
@native
def test_small_calls_on_tensors():
    pytest.importorskip("torch")
    found, torch = counts("tensors"), KNOWN["peers"]["avx512"]
    assert too_many("tensors", found) == {}
    ratios = {name: found[name] / torch[name] for name in found.keys() & torch.keys()}
    assert {name: one for name, one in ratios.items() if one > 1} == {}
    above = {name: count - torch[counted.EMPTY] for name, count in found.items() if name.endswith(", autograd")}
    assert {name: one for name, one in above.items() if one > ABOVE_EMPTY} == {}


def test_every_public_function_is_compared():
    """Its instructions are counted, or its time is compared with that of torch's code or of plain calls."""
    names = {*cliffs.functions()}
    large = {name for name in names if is_large(name)}
    assert large <= {*peers(pytest.importorskip("torch")), *ALONE}
    assert names <= large | {*KNOWN["arrays"]["avx512"]}
