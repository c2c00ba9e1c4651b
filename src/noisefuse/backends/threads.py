# SPDX-License-Identifier: Apache-2.0
"""The number of threads for kernels, and the pool of threads that Python drives (backends/numba/jit.py)."""

from __future__ import annotations

import _thread
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from queue import SimpleQueue

from ..ground.processors import processors

_count: int | None = None


def from_environment() -> int | None:
    """Returns NOISEFUSE_NUM_THREADS, checked, or None if it is not set."""
    text = os.environ.get("NOISEFUSE_NUM_THREADS")
    if text and not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1024):  # atoi reads it alike (pool.cpp)
        raise ValueError(f"NOISEFUSE_NUM_THREADS={text!r}: expected an integer from 1 to 1024")
    return int(text) if text else None


def count() -> int:
    global _count
    if _count is None:
        allowed = processors()
        _count = from_environment() or min(allowed, quota() or allowed)
    return _count


def quota(root: str | os.PathLike[str] = "/") -> int | None:
    """Returns how many processors' time a container may use, rounded up (Linux control groups, versions 2 and 1)."""
    limits: list[float] = []
    with suppress(OSError, ValueError):
        for line in _text(root, "proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            names = path.strip("/").split("/")
            for depth in range(len(names), -1, -1):
                limits.extend(_limit(os.path.join(root, "sys/fs/cgroup", "cpu" if controllers else "", *names[:depth])))
    return math.ceil(min(limits)) if limits else None


def _limit(group: str) -> Iterator[float]:
    with suppress(OSError, ValueError):
        time, period = map(float, _text(group, "cpu.max").split())  # "max 100000": no limit
        yield time / period
    with suppress(OSError, ValueError):
        time, period = (float(_text(group, f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if time > 0:
            yield time / period


def _text(*path: str | os.PathLike[str]) -> str:
    with open(os.path.join(*path)) as file:
        return file.read()


def set_count(n: int) -> None:
    global _count
    _count = n


def _after_fork() -> None:
    """The child does not have the parent's threads. It starts with one thread, as it is likely to be one of many."""
    global _count, _shares, _workers
    _count, _shares, _workers = from_environment() or 1, SimpleQueue(), []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Share:
    """Another thread's share of a call."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.queue = _shares
        self.begun = self.finished = False
        self.error: BaseException | None = None
        self.end = _thread.allocate_lock()
        self.end.acquire()

    def wait(self) -> None:
        """Waits until the share is done. A share that has not begun is dropped, so that it keeps no array alive.

        Raises:
            RuntimeError: a signal handler forked meanwhile, and this is the child, without the share's thread.
        """
        while self.begun and not self.finished:
            if self.queue is not _shares:
                raise RuntimeError(
                    "a signal handler forked in the middle of this call: the child does not have the call's other "
                    "threads, so the outputs are incomplete; make the call again"
                )
            self.end.acquire(timeout=1)
        self.work = _nothing


def _nothing() -> None:
    pass


# Python's own pools hold locks in Python code. An interrupt may leave these locked for ever. The calls of this queue
# run in C, as a whole or not at all.
_shares: SimpleQueue[_Share] = SimpleQueue()
_workers: list[int] = []  # identifiers of the worker threads


def _serve(shares: SimpleQueue[_Share]) -> None:
    while True:
        share = shares.get()
        share.begun = True
        try:
            share.work()
        except BaseException as error:
            share.error = error
        share.finished = True
        share.end.release()
        del share  # a waiting thread keeps no array alive


def together(work: Callable[[], object], stop: Callable[[], object], threads: int) -> None:
    """Calls work() here and, if the system gives them, on threads - 1 other threads, until all calls have ended.

    Each call takes parts of one job until none is left, so their number does not matter, and one that begins late does
    nothing. An interrupt calls stop(), after which no more parts can be taken, and waits for the parts in progress,
    because they write to the caller's memory.
    """
    others, queue = [_Share(work) for _ in range(threads - 1)], _shares
    try:
        with suppress(RuntimeError):  # the system gives no more threads: fewer do the work
            missing = len(others) - len(_workers)
            _workers.extend(map(_thread.start_new_thread, repeat(_serve, missing), repeat((_shares,))))
        for other in others[: len(_workers)]:
            _shares.put(other)
        work()
        for other in others:
            other.wait()
            if other.error is not None:
                raise other.error
    except BaseException:
        while queue is _shares and not _stopped(stop, others):  # a forked child has no threads to wait for
            pass
        raise


def _stopped(stop: Callable[[], object], others: Sequence[_Share]) -> bool:
    """Returns False after another interrupt."""
    try:
        stop()
        for other in others:
            other.wait()
    except BaseException:
        return False
    return True
