# SPDX-License-Identifier: Apache-2.0
"""`noisefuse noise --workers N` and `--scheduler ADDRESS`: workers of dask.distributed make the blocks."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import islice
from typing import Any

import dask
from distributed import Client, KilledWorker, LocalCluster, Security, as_completed
from distributed.core import rpc

import noisefuse as nf

from ...interop.dask import check_workers, version
from .files import Job, Made


@contextmanager
def cluster(scheduler: str | None, workers: int) -> Generator[Any]:
    """Yields a client whose workers can make the blocks: this scheduler's, or those of new processes.

    Raises:
        ValueError: there is no scheduler, it has no workers, or they have another noisefuse.
    """
    if scheduler is not None:
        _check_scheduler(scheduler)
        with Client(scheduler, set_as_default=False) as client:
            _check_workers(client, scheduler)
            yield client
        return
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


def on_workers(client: Any, job: Job, blocks: Iterable[int]) -> Generator[tuple[int, Made]]:
    """Yields (block, result of `make`) as blocks are finished. All workers see the same files. If a worker dies, its
    blocks are made again. A worker that joins late gets some."""
    # The job is a task's result. If it were scattered, it would be lost when all workers that had it died.
    sent = client.submit(pickle.loads, pickle.dumps(job), pure=False)
    rest, asked, finished = iter(blocks), dict[Any, int](), as_completed(loop=client.loop)
    at_once = _AtOnce(client)
    while True:
        for block in islice(rest, at_once() - len(asked)):
            asked[future := client.submit(_make, sent, block, version(), pure=False)] = block
            finished.add(future)
        if not asked:
            return
        future = next(finished)
        yield asked.pop(future), _result(future)


class _AtOnce:
    """The number of blocks to submit at a time: some for each thread. Threads are counted again every second."""

    def __init__(self, client: Any) -> None:
        self.client, self.blocks, self.counted = client, 0, -1.0

    def __call__(self) -> int:
        if (now := time.monotonic()) - self.counted > 1:
            self.blocks, self.counted = max(16, 4 * sum(self.client.nthreads().values())), now
        return self.blocks


def _result(future: Any) -> Made:
    try:
        size, mark = future.result()
        return size, mark
    except (OSError, ValueError):  # the block's own error, which has a message
        raise
    except KilledWorker as error:
        raise OSError(f"workers died of a block, one after the other: {error}") from error
    except Exception as error:  # for instance a worker that joined late, without noisefuse
        raise OSError(f"a worker failed: {type(error).__name__}: {error}") from error


def _make(job: Job, block: int, expected: str) -> Made:
    if (own := version()) != expected:
        from distributed import get_worker

        raise OSError(f"the worker {get_worker().address}, which joined late, has {own}; here is {expected}")
    nf.set_num_threads(1)  # a worker makes several blocks at once, if it has several threads
    return job.make(block)


# ---- checks before the first block ---------------------------------------------------------------------------


def _check_scheduler(address: str) -> None:
    """Checks the address by a request of its own, because a client that was refused delays the end of the process."""
    seconds = dask.utils.parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
    security = Security().get_connection_args("client")

    async def kind() -> Any:
        async with rpc(address, connection_args=security) as peer:
            return (await asyncio.wait_for(peer.identity(), seconds + 1))["type"]

    try:
        if (server := asyncio.run(kind())) != "Scheduler":
            raise ValueError(f"a {server} is there")
    except Exception as error:  # of any kind: the server there may answer anything
        said = str(error) or f"no answer in {seconds:g} s"
        raise ValueError(
            f"--scheduler {address}: {said}; expected the address of a scheduler of dask's that runs and can be "
            "reached from here, such as tcp://host:8786"
        ) from error


def _check_workers(client: Any, scheduler: str) -> None:
    try:
        client.wait_for_workers(1, timeout=dask.config.get("distributed.comm.timeouts.connect"))
        check_workers(client)
    except TimeoutError as error:
        raise ValueError(f"--scheduler {scheduler} has no workers: start some, such as by `dask worker`") from error
    except RuntimeError as error:
        raise ValueError("; ".join(str(error).splitlines())) from error
