# SPDX-License-Identifier: Apache-2.0
"""Files and pickles of earlier versions are read, wherever the code has moved since."""

import base64
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import noisefuse as nf
from noisefuse.tableau import D, m1, x, z

# Pickles and albumentations' JSON of 0.1.0.dev0, as text.
STORED = json.loads((Path(__file__).parent / "known/stored.json").read_text())
ROW = nf.Row(out=0.5 * x + 0.25 * D + z, clean=2 * x - m1, lo=-1, hi=1)
MADE = {
    "noise": nf.Noise(7, sample=[3, 2**40], step=5, stream=2).window((8, 9), (1, 2)),
    "schedule": nf.Schedule.cosine(5),
    "schedule of betas": nf.Schedule.linear(4),
    "flow": nf.Schedule.flow(3, shift=3.0),
    "row": ROW,
    "tableau": nf.Tableau([ROW], [9], "mine"),
    "sampler": nf.samplers.dpmpp_2m(nf.Schedule.linear(50), steps=3),
    "increment": nf.Noise(7, step=3).interval(0.25, 0.75, grid=[0.0, 0.25, 0.5, 0.75, 1.0]),
    "threshold": nf.samplers.Threshold(0.9),
}


def stored(name):
    return pickle.loads(base64.b64decode(STORED["pickles"][name]))


@pytest.mark.parametrize("name", MADE)
def test_pickles(name):
    assert stored(name) == MADE[name]


def test_a_call_of_a_task_of_dasks():
    pytest.importorskip("dask")
    found = stored("dask call")((slice(2, 4), slice(3, 6)), np.ones((2, 3), np.float32))
    whole = nf.q_sample(np.ones((4, 6), np.float32), 2, nf.Schedule.cosine(5), nf.Noise(1))
    assert np.array_equal(found, whole[2:, 3:])


def test_a_pipeline_of_albumentations():
    albumentations = pytest.importorskip("albumentations")
    assert nf.interop.albumentations.GaussNoise  # it is known once the module is loaded
    pipeline = albumentations.from_dict(STORED["albumentations"])
    names = [type(transform).__name__ for transform in pipeline.transforms]
    assert names == ["GaussNoise", "ShotNoise", "ISONoise", "MultiplicativeNoise"]
    image = np.full((16, 16, 3), 128, np.uint8)
    assert not np.array_equal(pipeline(image=image)["image"], image)
