# SPDX-License-Identifier: Apache-2.0
"""Arrays beyond the caches: outputs are stored past them, in whole lines. The bits are those of the array's parts."""

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, NATIVE, one_in, using
from noisefuse.tableau import ROW

FAR = 1 << 24  # bytes of an output: kPastCaches of csrc/cpu/tile_rows.h
VECTORS = [name for name in NATIVE if name != "native-portable"]
LINEAR = nf.Schedule.linear()
NOISE = nf.Noise(7, sample=2**32 - 1, step=3)


def forward(x, out, b):
    nf.q_sample(x, 100 * np.arange(len(x)) + 100 * b, LINEAR, NOISE.at(sample=NOISE.sample + b), out=out[0])


def draw(x, out, b):
    nf.randn(x.shape, NOISE.at(sample=NOISE.sample + b), dtype=x.dtype, out=out[0])


def step(drawing):
    rows = np.zeros(4, ROW)
    rows["clean"]["lo"], rows["clean"]["hi"] = -np.inf, np.inf
    rows["out"]["x"], rows["out"]["m1"] = [0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]
    if drawing:
        rows["out"]["z"] = 0.5
    else:
        rows["aux1"]["x"], rows["aux1"]["k"] = 0.25, 1.5
    table = nf.Tableau(rows)

    def run(x, out, b):
        noise = NOISE.at(sample=NOISE.sample + b) if drawing else None
        nf.update(table, np.arange(len(x)) + b, x, x[:, ::-1], noise=noise, out=out[0], aux_out=out[1:])

    return run


def gradient(x, out, b):
    t, noise = 100 * np.arange(len(x)) + 100 * b, NOISE.at(sample=NOISE.sample + b)
    nf.mse_loss_and_grad(x, x[:, ::-1], t, LINEAR, noise, target="v", reduction="none", out=out[0])


OPERATIONS = {
    "q_sample": forward,
    "randn": draw,
    "gradient": gradient,
    "stochastic step": step(True),
    "step": step(False),
}


PLACES = [(0, 0), (0, 4), (1, 5)]  # elements beyond a quarter of FAR in a sample, and the first one's place


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", one_in(2, ["float32", "float64", "bfloat16"]))
def test_the_bits_are_those_of_the_parts(name, operation, dtype):
    """Each operation and each dtype in every place, but not all combinations: the stores past the caches are one piece
    of code for all operations.

    Seen to fail: stores past the caches that are not aligned to a line (a fault).
    """
    turn = VECTORS.index(name) + [*OPERATIONS].index(operation) + [*DTYPES].index(dtype)
    run, outputs, dtype = OPERATIONS[operation], 2 if operation == "step" else 1, DTYPES[dtype]
    more, offset = PLACES[turn % len(PLACES)]
    size = FAR // 4 // np.dtype(dtype).itemsize + more
    x = np.random.default_rng(0).random((4, size), np.float32).astype(dtype)
    room = np.full((outputs, 4 * size + 64), np.nan, dtype)
    wholes = [a[16 + offset : 16 + offset + 4 * size].reshape(4, size) for a in room]
    parts = [np.empty_like(x) for _ in range(outputs)]
    with using(name):
        run(x, wholes, 0)
        for b in range(4):
            run(x[b : b + 1], [part[b : b + 1] for part in parts], b)
    for whole, part, around in zip(wholes, parts, room, strict=True):
        np.testing.assert_array_equal(whole, part)
        assert np.isnan(around).sum() == 64
