# SPDX-License-Identifier: Apache-2.0
"""Grain's pipelines: the same noise with any workers, by index and by Grain's generator.

Seen to fail: the epoch left out of the step; an index that is that of the shuffled element.
"""

import doctest
import inspect
import subprocess
import sys

import numpy as np
import pytest

import noisefuse as nf

grain = pytest.importorskip("grain")

from noisefuse.interop import grain as own  # noqa: E402, after the skip

S = nf.Schedule.linear(50)
IMAGES = np.random.default_rng(3).integers(0, 256, (7, 4, 4, 3), np.uint8)
ROWS = [{"image": image, "n": n} for n, image in enumerate(IMAGES)]


def noisy_image(image, noise):
    return nf.augment.gaussian(image, 20.0, noise, batched=False)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_by_index_it_is_what_the_operation_makes():
    noisy = own.Noisy(S, nf.Noise(7, step=2), length=7, target="v")
    data = grain.MapDataset.source(ROWS).repeat(2).map_with_index(noisy.map_with_index).shuffle(seed=1)
    seen = [data[i] for i in range(14)]
    assert sorted(one["n"] for one in seen) == sorted([*range(7)] * 2)
    fields = {}
    for one in seen:
        for epoch in (0, 1):
            noise = nf.Noise(7, sample=one["n"], step=2 + epoch)
            x_t, target = nf.q_sample(IMAGES[one["n"]], one["t"], S, noise, target="v", batched=False)
            if np.array_equal(x_t, one["x_t"]):
                assert np.array_equal(target, one["target"])
                fields[one["n"], epoch] = True
    assert len(fields) == 14


def test_times_are_independent_of_the_noise_whatever_its_stream():
    """Seen to fail: the times drawn from the words of the noise."""
    noisy = own.Noisy(S, nf.Noise(7, stream=64))
    seen = [noisy.map_with_index(n, {"image": np.zeros((4, 4), np.float32)}) for n in range(500)]
    first = [(one["target"].ravel()[:2] ** 2).sum() for one in seen]
    assert abs(np.corrcoef([one["t"] for one in seen], first)[0, 1]) < 0.2
    again = own.Noisy(S, nf.Noise(7, sample=100)).map_with_index(3, ROWS[0])
    assert same(again, own.Noisy(S, nf.Noise(7)).map_with_index(103, ROWS[0]))


def test_every_epoch_draws_times_of_its_own():
    noisy, row = own.Noisy(S, nf.Noise(7), length=100), {"image": np.zeros((1, 1), np.float32)}
    times = np.array([noisy.map_with_index(i, row)["t"] for i in range(200)]).reshape(2, 100)
    assert np.mean(times[0] == times[1]) < 0.1  # of 50


def test_workers_and_resuming_change_nothing():
    noisy = own.Augmented(noisy_image, nf.Noise(7))
    data = grain.MapDataset.source(ROWS).map_with_index(noisy.map_with_index).shuffle(seed=3).repeat(2)
    expected = [data[i] for i in range(14)]
    threads = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=3)))
    found = [next(threads) for _ in range(5)]
    state = threads.get_state()
    resumed = iter(data.to_iter_dataset())
    resumed.set_state(state)
    found += list(resumed)
    assert len(found) == 14
    assert all(map(same, found, expected))


WORKERS = """
import grain, numpy as np
from absl import flags
import noisefuse as nf
from noisefuse.interop.grain import Augmented

flags.FLAGS.mark_as_parsed()  # as a program of absl's has; Grain's processes read them
rows = [{"image": np.full((4, 4), 100 + n, np.uint8), "n": n} for n in range(7)]
alone = grain.sharding.NoSharding()
sampler = grain.samplers.IndexSampler(7, shard_options=alone, seed=5, num_epochs=1, shuffle=True)


def noisy_image(image, noise):
    return nf.augment.gaussian(image, 20.0, noise, batched=False)


def images(workers):
    made = [Augmented(noisy_image)]
    loader = grain.DataLoader(data_source=rows, sampler=sampler, operations=made, worker_count=workers)
    return {one["n"]: one["image"].tobytes() for one in loader}


if __name__ == "__main__":
    here = images(0)
    assert len(set(here.values())) == 7, here
    assert images(0) == here
    assert images(2) == here
"""


@pytest.mark.slow
def test_by_grains_own_generator_in_any_process(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(WORKERS)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_errors_say_what_is_missing():
    with pytest.raises(KeyError, match="no 'picture' in the element, which has 'image', 'n'"):
        own.Augmented(noisy_image, nf.Noise(7), image="picture").map_with_index(0, ROWS[0])
    with pytest.raises(TypeError, match="by index use"):
        own.Noisy(S, nf.Noise(7)).random_map(ROWS[0], np.random.default_rng(0))
    with pytest.raises(TypeError, match="for keys by index, got None"):
        own.Noisy(S).map_with_index(0, ROWS[0])
    for wrong in ("7", 2.5, nf.Noise(7, sample=[1, 2])):
        with pytest.raises(TypeError):
            own.Noisy(S, wrong)
    with pytest.raises(TypeError, match=r"expected a noisefuse\.Schedule"):
        own.Noisy(None, nf.Noise(7))
    with pytest.raises(ValueError, match="length = 0"):
        own.Noisy(S, nf.Noise(7), length=0)


@pytest.mark.parametrize("kind", [own.Noisy, own.Augmented])
def test_examples_of_docstrings_run(kind):
    names = {"nf": nf, "np": np}
    [test] = doctest.DocTestFinder(recurse=False).find(kind, kind.__name__, globs=names)
    assert doctest.DocTestRunner().run(test).failed == 0
    assert inspect.getdoc(kind)


def test_reprs_say_what_an_element_gets():
    """Seen to fail: an object at some address, as before."""
    noisy, augmented = own.Noisy(S, nf.Noise(7, step=2), length=7, target="v"), own.Augmented(noisy_image)
    assert repr(noisy) == "Noisy(linear, 50 steps, Noise(7, step=2), length=7, image='image', target='v')"
    assert repr(augmented) == "Augmented(noisy_image, None, length=None, image='image')"
