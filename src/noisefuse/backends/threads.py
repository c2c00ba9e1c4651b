# SPDX-License-Identifier: Apache-2.0
"""How many threads kernels use, and the pool of those that Python drives (backends/jit.py)."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

_count: int | None = None
_pool: ThreadPoolExecutor | None = None


def from_environment() -> int | None:
    """NOISEFUSE_NUM_THREADS, checked; None where it is not set."""
    text = os.environ.get("NOISEFUSE_NUM_THREADS")
    if text and not (text.isdecimal() and 1 <= int(text) <= 1024):
        raise ValueError(f"NOISEFUSE_NUM_THREADS={text!r}: expected an integer from 1 to 1024")
    return int(text) if text else None


def count() -> int:
    global _count
    if _count is None:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        _count = from_environment() or allowed
    return _count


def set_count(n: int) -> None:
    global _count
    _count = n


def _after_fork() -> None:
    """The parent's threads do not exist in the child, which starts with one thread (it is one of many, likely)."""
    global _count, _pool
    _count, _pool = from_environment() or 1, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def together(work: Callable[[], object], stop: Callable[[], object], threads: int) -> None:
    """Calls work() here and, where they can be had, on threads - 1 others, until all of them are done.

    Each call takes parts of one job until none is left, so it does not matter how many there are. An interrupt in the
    middle calls stop(), after which no more parts are there to be taken, and waits for those that have been: they write
    to the caller's memory.
    """
    global _pool
    others: list[Future[object]] = []
    try:
        if threads > 1:
            _pool = _pool or ThreadPoolExecutor(1024, "noisefuse")
            with suppress(RuntimeError):  # the system gives no more threads, or the interpreter ends: fewer do it
                others.extend(_pool.submit(work) for _ in range(threads - 1))
        work()
        for other in others:
            if not other.cancel():  # it has begun
                other.result()
    except BaseException:
        stop()
        begun = [other for other in others if not other.cancel()]
        while not all(other.done() for other in begun):
            with suppress(BaseException):  # another interrupt
                wait(begun)
        raise
