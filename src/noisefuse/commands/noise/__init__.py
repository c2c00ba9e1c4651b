# SPDX-License-Identifier: Apache-2.0
"""`noisefuse noise`: adds noise to a data set on disk, out of core, on all cores. It can be stopped and run again."""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Self

import noisefuse as nf

from ..shared import Progress
from .files import STEPS, SUFFIXES, Images, Job, Made, Npy, Work
from .journal import Journal, journal_of, partial_of

ROUNDS = 3  # attempts for images that change while they are read
KEPT = "what is made is kept, and the same command goes on from there"
OPTIONS = ("schedule", "t", "std", "range", "seed", "step", "dtype")


def run(arguments: argparse.Namespace) -> int:
    try:
        source, target = arguments.source.resolve(), arguments.target.resolve()
    except RuntimeError as error:  # links in a circle
        raise ValueError(str(error)) from error
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say  # type: ignore[assignment]
            return _run(source, target, arguments)
    except KeyboardInterrupt:
        print(f"noisefuse noise: stopped; run it again for the rest of {target}", file=sys.stderr)
        return 130


def _say(message: Warning, *_: object) -> None:
    print(f"noisefuse noise: {message}", file=sys.stderr)


def _run(source: Path, target: Path, arguments: argparse.Namespace) -> int:
    _check_paths(source, target)
    work = _work(arguments)

    def job_of_source() -> Job:
        return _job(source, partial_of(target), work, arguments.block)

    def manifest(job: Job) -> dict[str, Any]:
        asked = {f"--{name}": getattr(arguments, name) for name in OPTIONS}
        return {**asked, **job.source(), "noisefuse": nf.__version__, "NOISE_VERSION": nf.NOISE_VERSION}

    job = job_of_source()
    _check_ending(target, job)
    with Journal(target, manifest(job)) as journal:
        if journal.whole:
            if not job.again(journal, target):
                print(f"{_printable(str(target))} is whole already")
                return 0
            journal.reopen()
        _make(job, journal, arguments)
        try:
            journal.compare(manifest(job_of_source()))
        except (OSError, ValueError) as error:
            raise ValueError(f"the source was changed while it was noised: {error}") from error
        job.finish()
        journal.end()
    print(_printable(f"wrote {job.summary(target)}"))
    return 0


def _make(job: Job, journal: Journal, arguments: argparse.Namespace) -> None:
    """Makes all missing blocks, and then those whose sources have changed meanwhile."""
    with _client(arguments) as client:
        marks = journal.made()
        there = job.made(marks)
        if marks and not there:
            journal.forget()  # blocks that are missing now must not count later
        job.prepare()
        _add(job, (block for block in range(job.blocks) if block not in there), len(there), journal, client)
        for _ in range(ROUNDS):
            if not (again := job.again(journal, journal.partial)):
                return
            _add(job, again, job.blocks - len(again), journal, client)
    if job.again(journal, journal.partial):
        raise OSError(f"images of {arguments.source} change while they are noised; {KEPT}")


def _add(job: Job, blocks: Iterable[int], before: int, journal: Journal, client: Any) -> None:
    try:
        with _Progress(job.blocks, before) as progress, closing(_made(job, blocks, client)) as finished:
            for block, (size, mark) in finished:
                journal.add(block, mark)
                progress.add(size)
    except (OSError, MemoryError) as error:
        raise OSError(f"{str(error) or 'there is no memory left'}; {KEPT}") from error


def _check_paths(source: Path, target: Path) -> None:
    if not source.exists():
        raise ValueError(f"{source}: no such file or directory")
    if not (source.is_file() or source.is_dir()):
        raise ValueError(f"{source} is no plain file: expected a .npy file, a zarr store or a folder of images")
    if source == target:
        raise ValueError(f"{source} is the source and the target, too: expected another target")
    for own in (target, partial_of(target), journal_of(target)):
        if own.is_relative_to(source) or source.is_relative_to(own):
            raise ValueError(f"one of {own} and {source} contains the other: expected a target outside of the source")
    if not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: no such directory")


def _job(source: Path, partial: Path, work: Work, block: int) -> Job:
    if source.is_file():
        if source.suffix.lower() in SUFFIXES:
            raise ValueError(f"{source} is one image: pass the folder that it is in, {source.parent}")
        return Npy.of(source, partial, work, block)
    if (source / "zarr.json").is_file() or (source / ".zarray").is_file():
        from .zarr import Zarr

        return Zarr.of(source, partial, work)
    return Images.of(source, partial, work)


def _check_ending(target: Path, job: Job) -> None:
    """Raises ValueError if the target's name belongs to another format: nothing could read such a file."""
    formats, ending = {".npy", ".zarr", *SUFFIXES}, target.suffix.lower()
    if ending not in job.endings and ("" not in job.endings or ending in formats):
        expected = " or ".join(f"ends in {one}" if one else "has no format's ending" for one in job.endings)
        raise ValueError(f"{target}: the source is {job.what}, and so is the target: expected a name that {expected}")


def _work(arguments: argparse.Namespace) -> Work:
    if (arguments.schedule is None) == (arguments.std is None) or (arguments.schedule is None) != (arguments.t is None):
        asked = {f"--{name}": getattr(arguments, name) for name in ("schedule", "t", "std")}
        said = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None) or "none of them"
        raise ValueError(f"expected --schedule with --t, or else --std; got {said}")
    if arguments.t is not None and arguments.t >= STEPS:
        raise ValueError(f"--t {arguments.t} is out of range: schedules have {STEPS} steps, 0 <= t < {STEPS}")
    levels = None if arguments.range is None else tuple(arguments.range)
    if levels is not None and not 1e-300 < levels[1] - levels[0] < math.inf:
        raise ValueError(f"--range {levels[0]:g} {levels[1]:g}: expected LOW below HIGH")
    return Work(**{**{name: getattr(arguments, name) for name in OPTIONS}, "range": levels})


def _client(arguments: argparse.Namespace) -> AbstractContextManager[Any]:
    """Returns a client of a cluster, or None."""
    if arguments.workers is None and arguments.scheduler is None:
        return nullcontext()
    from .cluster import cluster

    return cluster(arguments.scheduler, arguments.workers)


def _made(job: Job, blocks: Iterable[int], client: Any) -> Generator[tuple[int, Made]]:
    if client is None:
        return _on_threads(job, blocks)
    from .cluster import on_workers

    return on_workers(client, job, blocks)


def _on_threads(job: Job, blocks: Iterable[int]) -> Generator[tuple[int, Made]]:
    """Yields (block, result of `make`) as blocks are finished. Each thread makes its own blocks, and a kernel uses one
    thread."""
    threads = nf.info()["threads"]
    with nf.set_num_threads(1), ThreadPoolExecutor(threads) as pool:
        try:
            yield from _finished(blocks, lambda block: pool.submit(job.make, block), 2 * threads)
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(
    blocks: Iterable[int], submit: Callable[[int], Future[Made]], at_once: int
) -> Generator[tuple[int, Made]]:
    """Yields blocks as they are finished. At most `at_once` are submitted at a time, so memory does not grow with the
    data set. If one fails, the other submitted blocks are finished first."""
    rest, failed = iter(blocks), None
    asked = {submit(block): block for block in islice(rest, at_once)}
    while asked:
        for future in wait(asked, return_when=FIRST_COMPLETED).done:
            block = asked.pop(future)
            if (error := future.exception()) is None:
                yield block, future.result()
            failed = failed or error
            asked |= {submit(block): block for block in islice(rest, 0 if failed else 1)}
    if failed:
        raise failed


def _printable(text: str) -> str:
    """Returns text that prints on one line, even if names in it would not."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class _Progress:
    """A line of progress: the finished share, the rate, the time left."""

    def __init__(self, blocks: int, before: int) -> None:
        self.blocks, self.before, self.done, self.bytes = blocks, before, 0, 0
        self.began, self.show = time.monotonic(), Progress(on_terminal=0.2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.show.clear()

    def add(self, size: int) -> None:
        self.done, self.bytes = self.done + 1, self.bytes + size
        self.show(self.line(time.monotonic() - self.began))

    def line(self, seconds: float) -> str:
        there = self.before + self.done
        left = round(seconds / self.done * (self.blocks - there))
        clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        bar = "#" * (30 * there // self.blocks)
        return f"[{bar:30}] {there / self.blocks:4.0%}  {self.bytes / seconds / 1e6:.0f} MB/s  {clock} left"
