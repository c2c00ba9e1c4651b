# SPDX-License-Identifier: Apache-2.0
"""The contract's bounds over all 2^32 words, measured by exhaustive.cpp (docs/noise.md states them).

All words are tried under `pytest -m release`; one block of 2^20 in 16, with the first and the last, under `-m slow`.

Seen to fail: a digit of a coefficient of each polynomial changed, U or V without its half or with a bit less, a lost
carry between the words of float64, the seam of the logarithm moved, cos and sin swapped or not negated, a uniform that
reaches 1, bfloat16 truncated, ties rounded up, binary16's subnormals begun too early.
"""

import os
import subprocess
from math import inf
from pathlib import Path

import pytest

from noisefuse import _native

ROOT = Path(__file__).parents[2]
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
# One block of words in so many is tried, and 2^k random pairs if no computer can try all.
PARTS = [
    pytest.param((16, 26), marks=pytest.mark.slow, id="part"),
    pytest.param((1, 30), marks=pytest.mark.release, id="all"),
]

# The flags are those of CMakeLists.txt.
FLAGS = "-std=c++20 -O3 -ffp-contract=off -fno-fast-math -fno-math-errno -Wall -Wextra -pthread"
HASWELL = "-mavx2 -mfma -mf16c"
LANES = {
    "avx512": ("Avx512", f"{HASWELL} -mavx512f -mavx512dq -mavx512bw -mavx512vl -mprefer-vector-width=512"),
    "avx2": ("Avx2", HASWELL),
    "neon": ("Neon", ""),
    "portable": ("Scalar", ""),
}

# Each measurement, and its interval.
BOUNDS = {
    "cos_error": (0, 2**-22),
    "sin_error": (0, 2**-22),
    "cos_most": (1, 1),
    "cos_least": (2**-25, 1),  # it is not zero; times the least radius it is still a normal number
    "sin_most": (1, 1),
    "sin_least": (2**-31, 1),
    "radius_ulps": (0, 2.5),
    "radius_most": (6.76, 6.77),  # sqrt(66 ln 2) = 6.7637: the tail
    "radius_least": (2**-17, 2**-16),
    "radius_rises": (0, 2**12),  # a larger word should give a smaller radius, except for one ulp a few times
    "radius_rise_ulps": (-inf, 1),
    "product_wrong": (0, 0),
    "uniform_wrong": (0, 0),
    "half_to_float_wrong": (0, 0),
    "float_to_half_wrong": (0, 0),
    "bfloat16_to_float_wrong": (0, 0),
    "float_to_bfloat16_wrong": (0, 0),
    "exp_ulps": (0, 1),
    "exp_wrong": (0, 0),
    "exp64_ulps": (0, 1),
    "ln64_ulps": (0, 2),
    "radius64_ulps": (0, 2.5),
    "cos64_error": (0, 2**-51),
    "sin64_error": (0, 2**-51),
    "z64_most": (9.49, 9.5),  # sqrt(130 ln 2) = 9.4926
    "z64_least": (2**-126, 1),
    "z64_minus_z32_bound": (0, 1e-5),
    "z64_minus_z32_last": (0, 1.6e-5),
    "z64_minus_z32_seen": (0, 1e-5),
    "z64_minus_z32_seen_last": (0, 1.6e-5),
    "uniform64_wrong": (0, 0),
}


@pytest.fixture(scope="module", params=PARTS)
def measured(request, tmp_path_factory):
    """Returns {name: (value, words)}."""
    every, log2_pairs = request.param
    lane, options = LANES[next(isa for isa, supported in _native.isas().items() if supported and isa in LANES)]
    program = tmp_path_factory.mktemp("exhaustive") / "exhaustive"
    macros = [f"-I{ROOT / 'csrc'}", f"-DNF_LANE={lane}", f'-DNF_LANE_HEADER="cpu/lane_{lane.lower()}.h"']
    source = Path(__file__).with_name("exhaustive.cpp")
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, *FLAGS.split(), *options.split(), *macros, source, "-o", program], check=True)
    run = subprocess.run([program, *map(str, (THREADS, log2_pairs, every))], check=True, capture_output=True, text=True)
    rows = [line.split() for line in run.stdout.splitlines()]
    return {name: (float(value), words) for name, value, words in rows}


def test_every_quantity_with_bounds_is_measured(measured, capsys):
    assert measured.keys() == BOUNDS.keys()
    with capsys.disabled():
        print("\n\n{:26} {:>15}   {:20} {}".format("quantity", "measured", "where", "bounds"))
        for name, (value, words) in measured.items():
            print(f"{name:26} {value:15.9g}   {words:20} {BOUNDS[name][0]:.9g} .. {BOUNDS[name][1]:.9g}")


@pytest.mark.parametrize("name", BOUNDS)
def test_a_measured_quantity_is_within_its_bounds(measured, name):
    value, words = measured[name]
    least, most = BOUNDS[name]
    assert least <= value <= most, f"{name} = {value} at {words}"
