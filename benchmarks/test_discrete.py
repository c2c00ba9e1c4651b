# SPDX-License-Identifier: Apache-2.0
"""The targets of discrete diffusion, each a ratio within one run.

    pytest benchmarks/test_discrete.py      every figure; writes results/<processor>-discrete.json and .md

Rivals are those of `bench.py --discrete`, torch on one thread. A plain read finds the largest byte of the
logits; a copy of ids is np.copyto's.
"""

from __future__ import annotations

from functools import partial

import numpy as np

import figures
import noisefuse as nf
from figures import NOISE, Figure, Pair
from noisefuse.commands.bench.contenders import Call
from peers_of_tokens import CONTENDERS, Tokens

IDS = (1024, 16_384)  # 128 MiB, beyond the caches
LOGITS = (1, 128, 126_464)


def pair(operation: str, rival: str, dtype: str = "float32", shape: tuple[int, ...] = LOGITS) -> Pair:
    """Compares ours with a contender of the bench, on one array. ImportError: it is not installed."""
    case = Tokens(operation, 1, shape, dtype)
    ours, other = (CONTENDERS[name](case) for name in ("noisefuse", rival))
    assert ours
    assert other
    return Pair(ours, other)


def one_thread(dtype: str) -> Pair:
    """Compares two threads with one."""
    ours = pair("categorical", "read", dtype).ours

    def alone() -> None:
        with nf.set_num_threads(1):
            ours()

    return Pair(ours, alone)


def a_noise_for_each() -> Pair:
    """Compares a list of Noises, a seed for each request, with one Noise."""
    x = np.random.default_rng(0).standard_normal((64, 32_000), np.float32)
    draw: Call = partial(nf.categorical, x, NOISE)
    return Pair(partial(nf.categorical, x, [nf.Noise(seed) for seed in range(len(x))]), draw)


TITLE, SUFFIX = "Discrete diffusion", "-discrete"
ABOUT = """\
Written by `pytest benchmarks/test_discrete.py`, in one run. One thread where nothing else is said, torch's too.
`categorical` draws tokens of 1x128x126464 logits with their log-probabilities; `ids` are int64, 1024x16384."""
FIGURES = [
    *(
        Figure(f"categorical, {dtype}, over {title}", ">=", target, partial(pair, "categorical", rival, dtype))
        for dtype in ("float32", "bfloat16")
        for title, rival, target in (("LLaDA's step", "LLaDA", 30), ("softmax and multinomial", "eager", 25))
    ),
    Figure("categorical, float32, of a plain read", "<=", 5, partial(pair, "categorical", "read"), needs="avx512"),
    Figure(
        "categorical, bfloat16, of a plain read", "<=", 6.5, partial(pair, "categorical", "read", "bfloat16"),
        needs="avx512",
    ),
    *(
        Figure(f"greedy, {dtype}, of a plain read", "<=", 1.3, partial(pair, "greedy", "read", dtype), needs="avx512")
        for dtype in ("float32", "bfloat16")
    ),
    *(
        Figure(f"categorical, {dtype}, 2 threads over one", ">=", 1.8, partial(one_thread, dtype), threads=2)
        for dtype in ("float32", "bfloat16")
    ),
    Figure("categorical, 64 x 32000, a list of Noises, of one Noise", "<=", 1.2, a_noise_for_each),
    Figure("q_mask, ids, out=, of np.copyto", "<=", 1.6, partial(pair, "q_mask", "copyto", "int64", IDS)),
    Figure("q_mask, ids, over LLaDA's forward process", ">=", 1, partial(pair, "q_mask", "LLaDA", "int64", IDS)),
    Figure("masked_cross_entropy, gradient, over torch", ">=", 1, partial(pair, "masked_cross_entropy", "eager")),
]  # fmt: skip
test_figure = figures.test_figure
