# SPDX-License-Identifier: Apache-2.0
"""No spelling of a small call costs more than three times its plain sibling, but for those named with a reason.

pytest benchmarks/test_cliffs.py      a figure for each public function; `noisefuse bench --cliffs` prints all
"""

from __future__ import annotations

from functools import partial

import figures
import noisefuse as nf
from figures import Figure
from noisefuse.commands.bench import cliffs


def worst(name: str) -> float:
    """The most that a spelling takes of the plain call's time. Seen to fail: arrays with swapped bytes, augmented."""
    with nf.set_num_threads(1):
        found = cliffs.small_calls(0.05, only=name)
        return max(one.ratio for one in found if one.name not in cliffs.EXCEPTIONS)


TITLE, SUFFIX = "Cliffs", "-cliffs"
ABOUT = """\
Written by `pytest benchmarks/test_cliffs.py`, in one run, on one thread. Of each public function the worst spelling of
a small call, over the plain call's time. Spellings come from the parameters of the functions."""
FIGURES = [Figure(name, "<=", cliffs.WORST, partial(worst, name)) for name in cliffs.functions()]
test_figure = figures.test_figure
