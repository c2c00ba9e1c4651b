# SPDX-License-Identifier: Apache-2.0
"""`noisefuse noise --workers N` and `--scheduler ADDRESS`: blocks made by the workers of dask.distributed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from distributed import Client, KilledWorker, LocalCluster, as_completed

import noisefuse as nf

from ._noise_files import Job
from .interop.dask import check_workers


def on_workers(job: Job, blocks: list[int], scheduler: str | None, workers: int) -> Generator[tuple[int, int]]:
    """(block, its bytes) as they are finished. Workers see the same files. One that dies costs the blocks it had."""
    with _client(scheduler, workers) as client:
        try:
            check_workers(client)
        except RuntimeError as error:
            raise ValueError("; ".join(str(error).splitlines())) from error
        rest, sent = iter(blocks), client.scatter(job, broadcast=True, hash=False)
        at_once = max(16, 4 * sum(client.nthreads().values()))  # enough for some that join late
        asked = {_submit(client, sent, block): block for block in islice(rest, at_once)}
        finished = as_completed(asked, loop=client.loop)
        for future in finished:
            try:
                yield asked.pop(future), future.result()
            except KilledWorker as error:
                raise OSError(f"workers died of a block, one after the other: {error}") from error
            for block in islice(rest, 1):
                asked[new := _submit(client, sent, block)] = block
                finished.add(new)


@contextmanager
def _client(scheduler: str | None, workers: int) -> Generator[Any]:
    if scheduler is not None:
        with Client(scheduler, set_as_default=False) as client:
            yield client
        return
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _submit(client: Any, job: Any, block: int) -> Any:
    return client.submit(_make, job, block, pure=False)


def _make(job: Job, block: int) -> int:
    nf.set_num_threads(1)  # a worker makes several blocks at once, if it has several threads
    return job.make(block)
