# SPDX-License-Identifier: Apache-2.0
"""What blocks of dask's arrays cost, as ratios: ``python benchmarks/dask_blocks.py``, some two minutes and 1 GiB.

What is compared takes turns; a figure is the median of the rounds. docs/dask.md cites them.
"""

import statistics
import time

import dask
import dask.array as da
import distributed
import numpy as np

import noisefuse as nf

SCHEDULE, NOISE, ROUNDS = nf.Schedule.cosine(1000), nf.Noise(7), 9
LOCAL = {"scheduler": "threads", "num_workers": 1}
ONE_THREAD = {"distributed.nanny.pre-spawn-environ": {"NOISEFUSE_NUM_THREADS": "1"}}


def seconds(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def turns(*calls, rounds=ROUNDS):
    """Seconds of each call, round by round."""
    for call in calls:
        call()
    return [[seconds(call) for call in calls] for _ in range(rounds)]


def summed(block):
    return block.sum(keepdims=True)


def overhead(shape, chunks, n):
    """Of blocks of one element, beside map_blocks(np.copy): what is spent beside the calls themselves."""
    x = da.zeros(shape, chunks=chunks, dtype="float32").persist(**LOCAL)
    block = np.zeros(chunks, np.float32)
    places = [NOISE.at(sample=i) if len(shape) == 1 else NOISE.window(shape[1:], (i,)) for i in range(n)]
    found = turns(
        lambda: x.map_blocks(np.copy).compute(**LOCAL),
        lambda: [np.copy(block) for _ in places],
        lambda: nf.q_sample(x, 500, SCHEDULE, NOISE).compute(**LOCAL),
        lambda: [nf.q_sample(block, 500, SCHEDULE, noise) for noise in places],
    )
    copy, ours = (1e6 / n * statistics.median(row[k] - row[k + 1] for row in found) for k in (0, 2))
    ratio = statistics.median((row[2] - row[3]) / (row[0] - row[1]) for row in found)
    print(f"overhead of a block, {'samples' if len(shape) == 1 else 'windows'}: {ratio:.2f} of a copy's ", end="")
    print(f"({ours:.0f} and {copy:.0f} us)", flush=True)


def threads(blocks=6, size=1 << 24):
    """Large blocks, summed within the task, beside a loop with out=."""
    x, out = np.zeros((1, size), np.float32), np.empty((1, size), np.float32)
    lazy = da.from_array(np.broadcast_to(x, (blocks, size)), chunks=(1, size), name="zeros")

    def loop():
        for i in range(blocks):
            summed(nf.q_sample(x, 500, SCHEDULE, NOISE.at(sample=i), out=out))

    def by_dask():
        nf.q_sample(lazy, 500, SCHEDULE, NOISE).map_blocks(summed, chunks=(1, 1)).compute(**LOCAL)

    ratio = statistics.median(a / b for a, b in turns(loop, by_dask))
    print(f"threaded scheduler, blocks of 2^24: {ratio:.2f} of the rate of a loop", flush=True)


def workers(blocks=6, size=1 << 26):
    """One worker of one thread, and two. Each round has noise of its own, since a cluster knows what it has."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        dask.config.set(ONE_THREAD),
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster) as client,
    ):
        both, seeds = list(client.scheduler_info()["workers"]), iter(range(1000))

        def run(which):
            lazy = nf.randn((blocks, size), next(seeds), chunks=(1, size)).map_blocks(summed, chunks=(1, 1))
            client.compute(lazy, workers=which).result()

        ratio = statistics.median(a / b for a, b in turns(lambda: run(both[:1]), lambda: run(both), rounds=5))
        print(f"two workers, blocks of 2^26: {ratio:.2f} times the rate of one", flush=True)


if __name__ == "__main__":
    print(f"noisefuse {nf.__version__}, {nf.info()['isa']}, {nf.info()['cpu']}, dask {dask.__version__}")
    with nf.set_num_threads(1):
        overhead((500,), (1,), 500)
        overhead((1, 500), (1, 1), 500)
        threads()
    workers()
