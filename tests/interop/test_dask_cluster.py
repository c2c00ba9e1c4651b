# SPDX-License-Identifier: Apache-2.0
"""dask arrays on a cluster whose workers die and join: the same bits.

Seen to fail: blocks that begin at the first sample, with or without workers that die.
"""

import os
import signal
import time

import numpy as np
import pytest

import noisefuse as nf
from conftest import until

distributed = pytest.importorskip("distributed")
import dask.array as da  # noqa: E402

from noisefuse.interop.dask import check_workers  # noqa: E402

pytestmark = pytest.mark.slow
S = nf.Schedule.cosine(50)
SHAPE, CHUNKS = (64, 3, 8, 8), (4, 3, 4, 8)


@pytest.fixture
def cluster():
    with distributed.LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


def slowly(block):
    time.sleep(0.2)
    return block


def finished(client, lazy):
    """Returns how many of its blocks are in some worker's memory."""
    held = {key for keys in client.has_what().values() for key in keys}
    return sum(1 for key in held if isinstance(key, tuple) and key[0] == lazy.name)


def test_a_worker_is_killed_and_another_joins(cluster):
    images = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    t, noise = np.arange(64) % 50, nf.Noise(7, sample=np.arange(64) * 1000, step=3)
    with distributed.Client(cluster) as client:
        x = da.from_array(images, CHUNKS).map_blocks(slowly)
        x_t = nf.q_sample(x, t, S, noise)
        blocks, kept = x_t.npartitions, client.persist(x_t)
        until(lambda: finished(client, x_t) >= 4)
        before = finished(client, x_t)
        victim = max(client.has_what(), key=lambda address: len(client.has_what()[address]))
        assert client.has_what()[victim]  # so blocks are lost
        os.kill(client.run(os.getpid, workers=[victim])[victim], signal.SIGKILL)
        assert 4 <= before < blocks
        cluster.scale(5)
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) >= 5)
        assert victim not in client.scheduler_info(n_workers=-1)["workers"]
        assert np.array_equal(kept.compute(), nf.q_sample(images, t, S, noise))


def test_what_many_operations_make_on_a_cluster(cluster):
    x, noise = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32), nf.Noise(7)
    sampler = nf.samplers.dpmpp_2m(S, steps=4)
    with distributed.Client(cluster) as client:
        lazy = da.from_array(x, CHUNKS)
        results = [
            *nf.q_sample(lazy, 5, S, [nf.Noise(n) for n in range(64)], target="v"),
            nf.q_walk(lazy, S, noise, keep=[3, 40]),
            nf.augment.gaussian(lazy, np.ones((64, 3)), noise, layout="CHW", shared=True),
            sampler.sample(lambda x, t: x.map_blocks(np.tanh), sampler.start(SHAPE, noise, chunks=CHUNKS), noise),
        ]
        expected = [
            *nf.q_sample(x, 5, S, [nf.Noise(n) for n in range(64)], target="v"),
            nf.q_walk(x, S, noise, keep=[3, 40]),
            nf.augment.gaussian(x, np.ones((64, 3)), noise, layout="CHW", shared=True),
            sampler.sample(lambda x, t: np.tanh(x), SHAPE, noise),
        ]
        assert all(map(np.array_equal, client.gather(client.compute(results)), expected))


def test_workers_of_another_contract_are_named(cluster):
    def another():
        import noisefuse

        noisefuse.NOISE_VERSION = 0

    with distributed.Client(cluster) as client:
        check_workers(client)
        address = min(client.has_what())
        client.run(another, workers=[address])
        with pytest.raises(RuntimeError, match=f"1 of 4 workers differ.*\n{address}: noisefuse .* NOISE_VERSION 0"):
            check_workers(client)
