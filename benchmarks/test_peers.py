# SPDX-License-Identifier: Apache-2.0
"""No public function takes longer than the shortest code of torch, or than so many plain calls where torch has none.

    pytest benchmarks/test_peers.py      every figure; writes results/<processor>-peers.json and .md

Times are those of one thread, in one run, in turn: other work on the machine slows both. tests/test_counts.py holds the
instructions of small calls.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

import cliffs
import figures
import noisefuse as nf
from figures import Figure, thread_seconds
from noisefuse.commands.bench.contenders import Call
from noisefuse.commands.bench.timing import interleaved
from peers_of_calls import arguments, peer

SHAPE = (4, 64, 64, 64)  # 2^20 elements
LOGITS = (32, 32768)
# Without code of torch: the most, in plain calls of q_sample.
ALONE = {"fields.assigned": 10.0, "fields.freenoise_like": 2.0, "fields.progressive_like": 4.0}


def shape_of(name: str) -> tuple[int, ...]:
    return LOGITS if name.startswith(("categorical", "masked")) else SHAPE


def ours(name: str) -> Call:
    return partial(cliffs.functions()[name], **arguments(name, shape_of(name), lambda x: x))


def is_large(name: str) -> bool:
    """Tells whether the function takes or makes an array of so many elements."""
    given, n = arguments(name, shape_of(name), lambda x: x), math.prod(SHAPE)
    return "shape" in given or any(isinstance(x, np.ndarray) and x.size == n for x in given.values())


def ratio(first: Call, second: Call) -> float:
    """The time of the first call over that of the second."""
    with nf.set_num_threads(1):
        taken = interleaved({"first": first, "second": second}, seconds=2, clock=thread_seconds)
    return taken["first"].median / taken["second"].median


def over_torch(name: str) -> float:
    other = peer(name, shape_of(name))
    assert other, f"{name} has no peer in peers_of_calls.py and no bound in ALONE"
    return ratio(other, ours(name))


def of_q_sample(name: str) -> float:
    return ratio(ours(name), ours("q_sample"))


TITLE, SUFFIX = "Every public function", "-peers"
ABOUT = f"""\
Written by `pytest benchmarks/test_peers.py`, in one run, on one thread of each; {math.prod(SHAPE):,} elements of
float32, or bytes, or ids; logits are {LOGITS[0]} x {LOGITS[1]}. The time of torch's shortest code over ours, with fresh
outputs; functions that torch lacks are compared with `q_sample`."""
FIGURES = [
    Figure(f"{name}, of q_sample", "<=", ALONE[name], partial(of_q_sample, name))
    if name in ALONE
    else Figure(f"{name}, over torch", ">=", 1, partial(over_torch, name))
    for name in cliffs.functions()
    if is_large(name)
]
test_figure = figures.test_figure
