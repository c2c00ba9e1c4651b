# SPDX-License-Identifier: Apache-2.0
"""Files and pickles of earlier versions are read, wherever the code has moved since."""

import base64
import copy
import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

import noisefuse as nf
from noisefuse.ground.stored import make_again
from noisefuse.tableau import D, m1, x, z

PAGES = ("noise", "schedule", "tableau", "sampler", "token_table", "discrete_sampler")
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
    "token row": nf.TokenRow(time=0.5),
    "token table": nf.samplers.mdlm(3, mask_id=9).table,
    "token sampler": nf.samplers.d3pm(2, vocabulary=5, network="denoiser"),
}


def stored(name):
    return pickle.loads(base64.b64decode(STORED["pickles"][name]))


@pytest.mark.parametrize("name", MADE)
def test_pickles(name):
    assert stored(name) == MADE[name]


def test_a_noise_of_another_version_is_refused(monkeypatch):
    """Seen to fail: pickles without a version, which another version read as its own."""
    build, key = nf.Noise(7, sample=3).__reduce__()
    assert key[-1] == nf.NOISE_VERSION
    assert build(*key) == build(*key[:-1]) == nf.Noise(7, sample=3, version=1)
    for make in (lambda: build(*key[:-1], 2), lambda: nf.Noise(7, version=2)):
        with pytest.raises(ValueError, match="version = 2: expected 1, the NOISE_VERSION of this noisefuse, 0"):
            make()
    monkeypatch.setattr("noisefuse.language.noise.NOISE_VERSION", 2)
    for make in (lambda: build(*key), lambda: stored("noise")):
        with pytest.raises(ValueError, match="version = 1: expected 2, the NOISE_VERSION"):
            make()


def test_records_of_another_provisional_version_are_refused(monkeypatch):
    """Seen to fail: none of them had a version."""
    logits, noise = np.zeros((1, 4, 9), np.float32), nf.Noise(7)
    sampler = nf.samplers.mdlm(3, mask_id=8)
    step = sampler.step(0, sampler.start((1, 4)), logits, noise, partial=True)
    table = stored("token table")  # without a version
    for record in (step, table, nf.categorical(logits, noise, partial=True)):
        assert record.version == pickle.loads(pickle.dumps(record)).version == 1
        with pytest.raises(ValueError, match="version = 2: expected 1, the PROVISIONAL_VERSION of this noisefuse, 0"):
            dataclasses.replace(record, version=2)
    for where in ("language.noise", "tokens.table"):
        monkeypatch.setattr(f"noisefuse.{where}.PROVISIONAL_VERSION", 2)
    with pytest.raises(ValueError, match="version = 1: expected 2, the PROVISIONAL_VERSION"):
        stored("token table")


def test_a_part_of_a_loss():
    assert np.array_equal(stored("loss part").sums, LOSS.sums)


@pytest.mark.parametrize("name", MADE)
def test_a_pickle_names_the_public_module(name):
    """So that the code may move. Seen to fail: without `show_as`."""
    kind = type(MADE[name])
    assert kind.__module__ in ("noisefuse.samplers.plan", *(f"noisefuse.{page}" for page in PAGES))


def test_pages_show_classes_whatever_is_loaded_first():
    """Seen to fail: `samplers` that loads no page, and `dir` of a module that nf.samplers did not load."""
    code = """
import noisefuse as nf, noisefuse.samplers as samplers
tokens = samplers.mdlm(3, mask_id=9)
print(*(type(value).__module__ for value in (samplers.ddim(nf.Schedule.linear(9), 2), tokens, tokens.table)))
print("token_samplers" in dir(samplers))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        *(f"noisefuse.{page}" for page in ("sampler", "discrete_sampler", "token_table")),
        "False",
    ]


@pytest.mark.parametrize("name", MADE)
def test_annotations_are_known_where_a_class_is_shown(name):
    """Seen to fail: a page without the names of the code's module."""
    assert get_type_hints(type(MADE[name])) is not None


@pytest.mark.parametrize(
    ("call", "named"), [(nf.Schedule, "Schedule.__init__"), (MADE["sampler"].step, "Sampler.step")]
)
def test_an_error_of_python_names_the_class_that_is_shown(call, named):
    """Seen to fail: the base that has the method."""
    with pytest.raises(TypeError, match=rf"^{named}\(\) missing"):
        call()


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


FLOW_SDE = nf.samplers.flow_sde(nf.Schedule.flow(9), 3).tableau
PART = nf.density.log_prob(FLOW_SDE, 1, *3 * [np.ones((2, 5000))], partial=True)
LOSS = nf.mse_loss(*2 * [np.ones((2, 5000))], 3, nf.Schedule.linear(9), nf.Noise(1), target="v", partial=True)


@pytest.mark.parametrize(
    ("record", "fields", "error", "words"),
    [
        (ROW, {"clean": "x"}, TypeError, "clean: expected an expression"),
        (nf.discrete.uniform(0.5, 9), {"p": 7.0}, ValueError, "p = 7.0: expected a finite number from 0 to 1"),
        (nf.discrete.uniform(0.5, 9), {"token": 0}, ValueError, "token = 0: expected an integer of at least 1"),
        (nf.discrete.absorbing(0.5, 9), {"token": 2.5}, TypeError, "token = 2.5: expected an integer, got float"),
        (nf.TokenRow(time=0.5), {"end": -1}, ValueError, "end = -1: expected a whole number"),
        (nf.samplers.mdlm(3, mask_id=9).table, {"mask_id": None}, ValueError, "mask_id: expected a token"),
        (MADE["increment"], {"t1": 3.0}, ValueError, "t1"),
        (PART, {"sums": PART.sums[:, :1]}, ValueError, r"expected shapes \(B, 2\) and \(B,\), got \(2, 1\)"),
        (PART, {"law": 3}, TypeError, "law: expected that of a part, got int"),
        (PART.law, {"elements": -1}, ValueError, "elements = -1"),
        (PART.law, {"reduction": "max"}, ValueError, "reduction = 'max'"),
        (LOSS, {"sums": LOSS.sums[0]}, ValueError, r"sums: expected float64 \(B, pieces, chunks\) of 5000 elements"),
        (LOSS, {"sums": LOSS.sums.astype("f4")}, ValueError, "sums: expected float64"),
        (LOSS, {"elements": 9000}, ValueError, "start, elements, whole"),
        (LOSS, {"weights": np.ones(2)}, ValueError, r"weights: expected shape \(2, 1\), got \(2,\)"),
        (LOSS, {"reduction": "sum"}, ValueError, "reduction = 'sum': expected 'mean' or 'none'"),
    ],
)
def test_a_pickle_cannot_skip_the_checks_of_a_record(record, fields, error, words):
    """It may come from anybody. Seen to fail: none of these was checked when it was read, and many never."""
    forged = copy.copy(record)
    for name, value in fields.items():
        object.__setattr__(forged, name, value)
    with pytest.raises(error, match=words):
        pickle.loads(pickle.dumps(forged))
    with pytest.raises(error, match=words):
        dataclasses.replace(record, **fields)


def test_all_records_that_are_checked_are_checked_when_they_are_read():
    """Seen to fail: `Partial`, `TokenTable`, `Row`."""
    modules = [module for name, module in sys.modules.items() if name.startswith("noisefuse.")]
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    kinds = {kind for kind in kinds if kind.__module__.startswith("noisefuse.")}  # and no library's
    checked = [kind for kind in kinds if dataclasses.is_dataclass(kind) and "__post_init__" in vars(kind)]
    assert len(checked) > 8
    assert [kind for kind in checked if kind.__setstate__ is not make_again] == []
