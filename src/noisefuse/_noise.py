# SPDX-License-Identifier: Apache-2.0
"""`noisefuse noise`: noises a data set on disk, out of core, on all cores; it can be stopped and run again."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Self

import noisefuse as nf

from ._noise_files import STEPS, SUFFIXES, Images, Job, Npy, Work
from ._noise_journal import Journal, journal_of, partial_of


def run(arguments: argparse.Namespace) -> int:
    source, target = arguments.source.resolve(), arguments.target.resolve()
    try:
        return _run(source, target, arguments)
    except KeyboardInterrupt:
        print(f"noisefuse noise: stopped; run it again for the rest of {target}", file=sys.stderr)
        return 130


def _run(source: Path, target: Path, arguments: argparse.Namespace) -> int:
    _check_paths(source, target)
    job = _job(source, partial_of(target), _work(arguments), arguments.block)
    _check_ending(target, job)
    asked = {f"--{name}": getattr(arguments, name) for name in ("schedule", "t", "std", "seed", "step", "dtype")}
    versions = {"noisefuse": nf.__version__, "NOISE_VERSION": nf.NOISE_VERSION}
    with Journal(target, {**asked, **job.source(), **versions}) as journal:
        if journal.whole:
            print(f"{target} is whole already")
            return 0
        with _client(arguments) as client:
            job.prepare()
            left = sorted(set(range(job.blocks)) - job.made(journal.blocks))
            try:
                with (
                    _Progress(job.blocks, job.blocks - len(left)) as progress,
                    closing(_made(job, left, client)) as made,
                ):
                    for block, size in made:
                        journal.add(block)
                        progress.add(size)
            except OSError as error:
                raise OSError(f"{error}; what is made is kept, and the same command goes on from there") from error
        job.finish()
        journal.end()
    print(f"wrote {target}")
    return 0


def _check_paths(source: Path, target: Path) -> None:
    if not source.exists():
        raise ValueError(f"{source}: no such file or directory")
    for made in (target, partial_of(target), journal_of(target)):
        if made.is_relative_to(source) or source.is_relative_to(made):
            raise ValueError(f"{made} and {source} lie in one another: expected a target outside of the source")
    if not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: no such directory")


def _job(source: Path, partial: Path, work: Work, block: int) -> Job:
    if source.is_file():
        return Npy.of(source, partial, work, block)
    if (source / "zarr.json").exists() or (source / ".zarray").exists():
        from ._noise_zarr import Zarr

        return Zarr.of(source, partial, work)
    return Images.of(source, partial, work)


def _check_ending(target: Path, job: Job) -> None:
    """Nobody could read a file by a name that says another format."""
    formats, ending = {".npy", ".zarr", *SUFFIXES}, target.suffix.lower()
    if ending not in job.endings and ("" not in job.endings or ending in formats):
        expected = " or ".join(f"ends in {one}" if one else "has no format's ending" for one in job.endings)
        raise ValueError(f"{target}: the source is {job.what}, and so is the target: expected a name that {expected}")


def _work(arguments: argparse.Namespace) -> Work:
    if (arguments.schedule is None) == (arguments.std is None) or (arguments.schedule is None) != (arguments.t is None):
        raise ValueError("expected --schedule with --t, or else --std")
    if arguments.t is not None and arguments.t >= STEPS:
        raise ValueError(f"--t {arguments.t} is out of range: schedules have {STEPS} steps, 0 <= t < {STEPS}")
    return Work(arguments.schedule, arguments.t, arguments.std, arguments.seed, arguments.step, arguments.dtype)


def _client(arguments: argparse.Namespace) -> AbstractContextManager[Any]:
    """Of a cluster, or None."""
    if arguments.workers is None and arguments.scheduler is None:
        return nullcontext()
    from ._noise_cluster import cluster

    return cluster(arguments.scheduler, arguments.workers)


def _made(job: Job, blocks: list[int], client: Any) -> Generator[tuple[int, int]]:
    if client is None:
        return _on_threads(job, blocks)
    from ._noise_cluster import on_workers

    return on_workers(client, job, blocks)


def _on_threads(job: Job, blocks: list[int]) -> Generator[tuple[int, int]]:
    """(block, its bytes) as they are finished: each thread makes blocks of its own, of which kernels take one."""
    threads = nf.info()["threads"]
    with nf.set_num_threads(1), ThreadPoolExecutor(threads) as pool:
        try:
            yield from _finished(blocks, lambda block: pool.submit(job.make, block), 2 * threads)
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(blocks: Iterable[int], submit: Callable[[int], Future[int]], at_once: int) -> Generator[tuple[int, int]]:
    """Never more than some are asked for, so that memory does not grow with the data set."""
    rest = iter(blocks)
    asked = {submit(block): block for block in islice(rest, at_once)}
    while asked:
        for future in wait(asked, return_when=FIRST_COMPLETED).done:
            yield asked.pop(future), future.result()
            asked |= {submit(block): block for block in islice(rest, 1)}


class _Progress:
    """A line on a terminal: how much is there, the rate, the time left."""

    def __init__(self, blocks: int, before: int) -> None:
        self.blocks, self.before, self.done, self.bytes = blocks, before, 0, 0
        self.began = self.shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def add(self, size: int) -> None:
        self.done, self.bytes, now = self.done + 1, self.bytes + size, time.monotonic()
        if sys.stderr.isatty() and (now - self.shown > 0.2):
            self.shown = now
            print(f"\r\033[K{self.line(now - self.began)}", end="", file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        there = self.before + self.done
        left = round(seconds / self.done * (self.blocks - there))
        clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        bar = "#" * (30 * there // self.blocks)
        return f"[{bar:30}] {there / self.blocks:4.0%}  {self.bytes / seconds / 1e6:.0f} MB/s  {clock} left"
