# SPDX-License-Identifier: Apache-2.0
"""No call costs more than three times its plain sibling, but for those named with a reason.

pytest benchmarks/test_cliffs.py      figures for each public function; `python benchmarks/bench.py --cliffs` prints all

Of small calls these are all spellings; of large ones all dtypes, layouts and sizes. A large call that takes less than
three copies of its bytes is no cliff either: a larger array leaves the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import cliffs
import figures
import noisefuse as nf
from figures import Figure


def worst(calls: Callable[..., Iterator[cliffs.Measured]], name: str) -> float:
    """The most that a call takes of its sibling's time, among those that may be cliffs. Seen to fail: arrays with
    swapped bytes, augmented; tensors that are channels_last."""
    with nf.set_num_threads(1):
        found = [*calls(0.05, only=name)]
    return max((one.ratio for one in found if one.ratio <= cliffs.WORST or cliffs.is_cliff(one)), default=0.0)


TITLE, SUFFIX = "Cliffs", "-cliffs"
ABOUT = """\
Written by `pytest benchmarks/test_cliffs.py`, in one run, on one thread. Of each public function the worst spelling of
a small call, over the plain call's time; and the worst dtype, layout and size of a large one. Spellings come from the
parameters of the functions."""
FIGURES = [
    Figure(f"{name}, {size}", "<=", cliffs.WORST, partial(worst, calls, name))
    for size, calls in (("small", cliffs.small_calls), ("large", cliffs.large_calls))
    for name in cliffs.functions()
]
test_figure = figures.test_figure
