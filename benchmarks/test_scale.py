# SPDX-License-Identifier: Apache-2.0
"""The targets of blocks, processes, dask and the command, each within one run.

    pytest benchmarks/test_scale.py      every figure; writes results/<processor>-scale.json and .md

It needs 13 GiB of a disk in memory, or 7, beside as much memory. Figures without an outside rival are compared with
ours: blocks of another size, one process, or a block's work without the rest of the command.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import figures
import noisefuse as nf
from figures import NOISE, Figure, Pair, memory, microseconds
from noisefuse.commands.bench.contenders import Call
from noisefuse.commands.noise.files import Npy, Work
from noisefuse.commands.noise.journal import read, write
from noisefuse.ground.processors import processors

SCHEDULE = nf.Schedule.cosine(1000)
WORK = Work("cosine", 300, None, 7, 0, None, None)
COMMAND = ["noise", "x.npy", "y.npy", "--schedule", "cosine", "--t", "300", "--seed", "7"]
SIZES = [1 << n for n in range(16, 27, 2)]
TOTAL = 1 << 26  # elements
GIB, DISK = 1 << 30, "/dev/shm"
LOCAL = {"scheduler": "threads", "num_workers": 1}


def turns(*calls: Call, rounds: int = 9) -> list[list[float]]:
    """Returns the seconds of each call, round by round."""

    def seconds(call: Call) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    for call in calls:
        call()
    return [[seconds(call) for call in calls] for _ in range(rounds)]


# ---- blocks ------------------------------------------------------------------------------------------------


def in_memory(size: int) -> None:
    """Runs TOTAL elements in blocks of a size, on one thread."""
    x = np.zeros((1, size), np.float32)
    with nf.set_num_threads(1):
        for block in range(TOTAL // size):
            nf.q_sample(x, 300, SCHEDULE, NOISE.at(sample=block), out=x)


def against_blocks_of_2_20(size: int) -> Pair:
    return Pair(partial(in_memory, size), partial(in_memory, 1 << 20))


@cache
def two_processes() -> ProcessPoolExecutor:
    if processors() < 2:
        raise NotImplementedError("needs two processors")
    return ProcessPoolExecutor(2, get_context("spawn"))


def at_once(processes: int, size: int) -> None:
    list(two_processes().map(in_memory, [size] * processes))


def two_against_one(size: int) -> Pair:
    return Pair(partial(at_once, 2, size), partial(at_once, 1, size))


# ---- a disk in memory --------------------------------------------------------------------------------------


def disk(gib: int) -> TemporaryDirectory[str]:
    """Returns a folder with room for so much, beside other needs of memory."""
    if not os.path.isdir(DISK) or shutil.disk_usage(DISK).free < gib * GIB:
        raise NotImplementedError(f"needs {gib} GiB of {DISK}")
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    if found is None or int(found[1]) * 1024 < (gib + 3) * GIB:
        raise NotImplementedError(f"needs {gib + 3} GiB of memory")
    return TemporaryDirectory(dir=DISK)


def job(folder: Path, size: int, elements: int = TOTAL) -> Npy:
    if not (folder / "x.npy").exists():
        np.save(folder / "x.npy", np.ones((1, elements), np.float32))
    made = Npy.of(folder / "x.npy", folder / "y.npy", WORK, size)
    made.prepare()
    return made


def by_parts(folder: Path, size: int) -> None:
    """Does a block's work: it is read, noised and written, by pieces that stay in the caches."""
    x = np.empty((1, min(size, 1 << 18)), np.float32)
    source, target = os.open(folder / "x.npy", os.O_RDONLY), os.open(folder / "y.npy", os.O_WRONLY)
    for piece in range(TOTAL // x.size):
        read(source, x, 128 + piece * x.nbytes)
        nf.q_sample(x, 300, SCHEDULE, NOISE.at(sample=piece), out=x)
        write(target, x, 128 + piece * x.nbytes)
    os.close(source)
    os.close(target)


@cache
def kept_disk() -> TemporaryDirectory[str]:
    return disk(1)


def on_disk_against_parts(size: int) -> Pair:
    folder = Path(kept_disk().name)
    blocks = job(folder, size)
    return Pair(lambda: all(map(blocks.make, range(TOTAL // size))), partial(by_parts, folder, size))


def block_on_disk() -> float:
    """Returns the microseconds of a block with a single element."""
    with disk(1) as folder:
        blocks = job(Path(folder), 1, 4096)
        return 1e6 / 4096 * min(min(row) for row in turns(lambda: all(map(blocks.make, range(4096)))))


# ---- the command -------------------------------------------------------------------------------------------


def command_against_copy() -> float:
    """Compares the command's rate on large files with the slower of cp and the kernel on all processors."""
    for gib in (6, 3):
        try:
            with disk(2 * gib + 1) as folder:
                return _command_against_copy(Path(folder), 1024 * gib)
        except NotImplementedError as error:
            reason = error
    raise reason


def _command_against_copy(folder: Path, rows: int) -> float:
    """Compares files of so many MiB, in turns: a copy is deleted before the next begins."""
    with open(folder / "x.npy", "wb") as file:
        shape = (rows, 1 << 18)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for row in range(rows):
            file.write(nf.randn(shape[1:], NOISE.at(sample=row), batched=False))
    x = np.zeros((processors(), 1 << 18), np.float32)

    def again(*command: Any) -> None:
        for path in folder.glob("y.npy*"):
            path.unlink()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    def kernel() -> None:
        with nf.set_num_threads(processors()):
            for row in range(0, rows, len(x)):
                nf.q_sample(x, 300, SCHEDULE, NOISE.at(sample=row), out=x)

    calls = (
        partial(again, sys.executable, "-m", "noisefuse.commands.cli", *COMMAND),
        partial(again, "cp", "x.npy", "y.npy"),
    )
    found = turns(*calls, kernel, rounds=5)
    return statistics.median(max(copy, alone) / ours for ours, copy, alone in found)


def command_memory() -> float:
    """Returns the peak MiB for a file of 1 GiB: blocks do not grow with it."""
    with disk(3) as folder:
        np.save(f"{folder}/x.npy", np.ones((1024, 1 << 18), np.float32))
        code = (
            f"import os; from noisefuse.commands.cli import main; os.chdir({folder!r}); os.dup2(2, 1); main({COMMAND})"
        )
        return memory(f"out = __import__('os').dup(1)\n{code}\nos.dup2(out, 1); print(peak() / 2**20)")


# ---- dask --------------------------------------------------------------------------------------------------


def dask_array() -> Any:
    return import_module("dask.array")


def overhead(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[float, float]:
    """Returns the microseconds of one of 500 blocks of one element: the time beside the calls, and that of
    map_blocks."""
    x = dask_array().zeros(shape, chunks=chunks, dtype="float32").persist(**LOCAL)
    block, n = np.zeros(chunks, np.float32), max(shape)
    places = [NOISE.at(sample=i) if len(shape) == 1 else NOISE.window(shape[1:], (i,)) for i in range(n)]
    found = turns(
        lambda: nf.q_sample(x, 500, SCHEDULE, NOISE).compute(**LOCAL),
        lambda: [nf.q_sample(block, 500, SCHEDULE, noise) for noise in places],
        lambda: x.map_blocks(np.copy).compute(**LOCAL),
        lambda: [np.copy(block) for _ in places],
        rounds=25,
    )
    ours, copy = (statistics.median(row[k] - row[k + 1] for row in found) for k in (0, 2))
    return 1e6 / n * ours, 1e6 / n * copy


def overhead_against_copy(shape: tuple[int, ...], chunks: tuple[int, ...]) -> float:
    ours, copy = overhead(shape, chunks)
    return ours / copy


def summed(block: Any) -> Any:
    return block.sum(keepdims=True)


def threads_against_loop(blocks: int = 6, size: int = 1 << 24) -> Pair:
    x, out = np.zeros((1, size), np.float32), np.empty((1, size), np.float32)
    lazy = dask_array().from_array(np.broadcast_to(x, (blocks, size)), chunks=(1, size), name="zeros")

    def loop() -> None:
        for i in range(blocks):
            summed(nf.q_sample(x, 500, SCHEDULE, NOISE.at(sample=i), out=out))

    noised = partial(nf.q_sample, lazy, 500, SCHEDULE, NOISE)
    return Pair(lambda: noised().map_blocks(summed, chunks=(1, 1)).compute(**LOCAL), loop)


@contextmanager
def cluster(workers: int) -> Iterator[Any]:
    distributed, dask = import_module("distributed"), import_module("dask")
    options = {"threads_per_worker": 1, "dashboard_address": None, "n_workers": workers}
    one_thread = {"distributed.nanny.pre-spawn-environ": {"NOISEFUSE_NUM_THREADS": "1"}}
    with dask.config.set(one_thread), distributed.LocalCluster(**options) as made, distributed.Client(made) as client:
        yield client


def two_workers_against_one(blocks: int = 6, size: int = 1 << 26) -> float:
    """Runs rounds, each with other noise, because a cluster knows the results that it has."""
    if processors() < 2:
        raise NotImplementedError("needs two processors")
    with cluster(2) as client:
        both, noises = list(client.nthreads()), map(nf.Noise, range(1000))

        def run(which: list[str]) -> None:
            lazy = nf.randn((blocks, size), next(noises), chunks=(1, size)).map_blocks(summed, chunks=(1, 1))
            client.compute(lazy, workers=which).result()

        found = turns(lambda: run(both[:1]), lambda: run(both), rounds=5)
    return statistics.median(one / two for one, two in found)


def task_of_a_cluster() -> float:
    """Returns the microseconds of a block of one element, among 500."""
    with cluster(1) as client:
        noises = map(nf.Noise, range(1000))

        def run() -> None:
            client.compute(nf.randn((500,), next(noises), chunks=(1,)).sum()).result()

        return 1e6 / 500 * min(min(row) for row in turns(run, rounds=5))


# ---- ranks -------------------------------------------------------------------------------------------------


def local_of_a_dtensor() -> float:
    import torch
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        x = distribute_tensor(torch.zeros(64, 16, 64), init_device_mesh("cpu", (1, 1)), [Shard(0), Shard(2)])
        return microseconds(lambda: NOISE.local(x))
    finally:
        distributed.destroy_process_group()


# ---- the figures -------------------------------------------------------------------------------------------


def each_size(name: str, bound: float, measure: Callable[[int], Pair]) -> list[Figure]:
    return [Figure(f"{name}, blocks of 2^{n.bit_length() - 1}", "<=", bound, partial(measure, n)) for n in SIZES]


SAMPLES, WINDOWS = ((500,), (1,)), ((1, 500), (1, 1))

TITLE, SUFFIX = "Scale", "-scale"
ABOUT = """\
Written by `pytest benchmarks/test_scale.py`, in one run. Times of blocks are those of 2^26 elements of float32,
`q_sample`, one thread to a process. The command's file has 6 GiB, or 3 where there is no room."""
FIGURES = [
    *each_size("in memory, of blocks of 2^20", 1.2, against_blocks_of_2_20),
    *each_size("two processes at once, each, of one alone", 1.25, two_against_one),
    *each_size("on a disk in memory, of its parts", 1.2, on_disk_against_parts),
    Figure("the command, of cp or the kernel, which is slower", ">=", 0.8, command_against_copy),
    Figure("the command's memory", "<=", 600, command_memory, unit="MiB"),
    Figure("a block of the command's", "<=", 300, block_on_disk, unit="us"),
    Figure("dask, samples, overhead of map_blocks(np.copy)", "<=", 1.2, partial(overhead_against_copy, *SAMPLES)),
    Figure("dask, windows, overhead of map_blocks(np.copy)", "<=", 1.2, partial(overhead_against_copy, *WINDOWS)),
    Figure("a block of dask's threads", "<=", 1000, lambda: overhead(*SAMPLES)[0], unit="us"),
    Figure("a block of a cluster's", "<=", 3000, task_of_a_cluster, unit="us"),
    Figure("dask's threads, 2^24, over a loop with out=", ">=", 0.9, threads_against_loop),
    Figure("two workers over one, 2^26", ">=", 1.6, two_workers_against_one),
    Figure("local of a DTensor", "<=", 20, local_of_a_dtensor, unit="us"),
]  # fmt: skip
test_figure = figures.test_figure
