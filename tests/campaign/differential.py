# SPDX-License-Identifier: Apache-2.0
"""Random calls on every backend, instruction set and number of threads. Bits or errors must be the reference's.

A case is a line of Python. A failure is made smaller and shown as a line to paste:

    from differential import differ; differ("native-avx2", 2, "nf.randn((3,), nf.Noise(1))")    in tests/campaign
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from types import CodeType
from typing import Any, NamedTuple

import numpy as np

import arguments
import calls
import noisefuse as nf
from arguments import Array, Call, Draw, operation, random_call
from noisefuse.arguments.calls import WARNED
from noisefuse.commands.selftest import backends, using

REFERENCE = "reference"
SHOWN = 3  # failures of an operation that are made smaller; there may be thousands of others
TRIES = 1000  # the most calls to make one smaller
WORDS = vars(arguments) | vars(calls)  # of the lines
Makers = Sequence[Callable[[Draw], Call]]


@dataclass(frozen=True)
class Result:
    """A line of a summary; `lines` give details of errors."""

    name: str
    cases: int
    passed: bool
    worst: str
    lines: tuple[str, ...] = ()


def show(results: Sequence[Result]) -> bool:
    """Prints a table. Returns whether all passed."""
    for result in results:
        print(f"{result.name:32} {result.cases:13,} {'ok' if result.passed else 'FAILED':6} {result.worst}")
        print(*result.lines, sep="\n", end="\n" if result.lines else "")
    return all(result.passed for result in results)


def contenders(*, numba: bool) -> list[str]:
    """Returns the backends to compare with the reference; native once for each instruction set."""
    found = [name for name in backends() if name != REFERENCE]
    wanted = numba and "numba" not in found and nf.info()["backends"]["numba"] == "available"
    return found + ["numba"] * wanted


def bits(array: Any) -> bytes:
    """Returns an array's bytes in C order, with all NaNs alike: their sign and payload are not promised. Noises give
    text."""
    if isinstance(array, list):
        return repr(array).encode()
    copy: Array = np.array(array, order="C")
    if copy.dtype.kind in "fV":
        with np.errstate(invalid="ignore"):  # signalling NaN
            copy[np.isnan(copy)] = np.nan
    return copy.tobytes()


def leaves(found: Any) -> Iterator[Any]:
    """Yields what is in tuples and dicts, in order."""
    if isinstance(found, tuple | dict):
        for each in found.values() if isinstance(found, dict) else found:
            yield from leaves(each)
    else:
        yield found


class Outcome(NamedTuple):
    """A call's result or error, and the contents of all memory that it was given."""

    answer: str  # types, dtypes and shapes, or the error; and warnings
    results: tuple[bytes, ...]
    memory: tuple[bytes, ...]
    wrote: bool  # it wrote, and raised an error


def outcome(code: str | CodeType) -> Outcome:
    arguments.made.clear()
    WARNED.clear()  # so that every backend gives one-time warnings
    failed, results = False, tuple[bytes, ...]()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = eval(code, WORDS)
        except Exception as error:
            answer, failed = f"{type(error).__name__}: {error}", True
        else:
            values = tuple(leaves(found))
            answer = ", ".join(f"{type(v).__name__} {getattr(v, 'dtype', '')} {np.shape(v)}" for v in values)
            results = tuple(map(bits, values))
    answer += "".join(sorted({f", with {type(w.message).__name__}: {w.message}" for w in warned}))
    memory = tuple(bits(now) for now, _ in arguments.made)
    wrote = failed and any(now != bits(before) for now, (_, before) in zip(memory, arguments.made, strict=True))
    return Outcome(answer, results, memory, wrote)


def different(expected: Outcome, found: Outcome) -> str:
    """Returns the difference in words, or ""."""
    if found.wrote:
        return f"wrote before it raised {found.answer}"
    if found.answer != expected.answer:
        return f"gives {found.answer}, expected {expected.answer}"
    if found.results != expected.results:
        return "other bits"
    return "" if found.memory == expected.memory else "other bits in an array that it was given"


def compared(
    backends: Sequence[str], threads: int, line: str, against: str = REFERENCE
) -> tuple[dict[str, str], Outcome]:
    """Returns the differences by backend, and the outcome on the backend that they are compared with."""
    code = compile(line, "<case>", "eval")
    with using(against):
        expected = outcome(code)
    found = {against: different(expected, expected)}
    with nf.set_num_threads(threads):
        for backend in backends:
            with using(backend):
                found[backend] = different(expected, outcome(code))
    return {backend: problem for backend, problem in found.items() if problem}, expected


def differ(backend: str, threads: int, line: str, against: str = REFERENCE) -> str:
    """Returns what is wrong with this call, or "": the lines of a report call this function."""
    return compared([backend], threads, line, against)[0].get(backend, "")


def shrunk(choices: list[int], fails: Callable[[list[int]], list[int] | None]) -> list[int]:
    """Makes choices as small as possible, one by one, while `fails` returns the taken ones instead of None."""
    tries = TRIES
    k = 0
    while k < len(choices):
        for smaller in sorted({0, choices[k] // 2, max(0, choices[k] - 1)} - {choices[k]}):
            tries -= 1
            if (found := fails([*choices[:k], smaller, *choices[k + 1 :]])) is not None:
                choices, k = found, -1  # from the beginning: a smaller one may let another shrink
                break
        if tries < 0:
            break
        k += 1
    return choices


def report(
    backend: str, threads: int, choices: list[int], against: str = REFERENCE, makers: Makers = calls.CALLS
) -> str:
    """Returns the smallest such call as a line to paste, and what is wrong with it."""

    def fails(given: list[int]) -> list[int] | None:
        draw = Draw(given)
        line = random_call(draw, makers)
        return draw.taken if differ(backend, threads, line, against) else None

    line = random_call(Draw(shrunk(choices, fails)), makers)
    problem = differ(backend, threads, line, against)
    other = "" if against == REFERENCE else f", {against!r}"
    return f"from {__name__} import differ; differ({backend!r}, {threads}, {line!r}{other})  # {problem}"


@dataclass
class Tally:
    """The counts of one operation."""

    cases: int = 0
    raised: int = 0
    failed: int = 0
    lines: list[str] = field(default_factory=list)

    def result(self, name: str) -> Result:
        worst = f"{self.failed} differ; {self.raised} raise"
        return Result(name, self.cases, not self.failed, worst, tuple(dict.fromkeys(self.lines)))


def run(
    cases: int,
    seed: int,
    *,
    numba: bool = True,
    against: str = REFERENCE,
    minutes: float = math.inf,
    makers: Makers = calls.CALLS,
    progress: Callable[[str], object] = lambda line: None,
) -> list[Result]:
    """Makes so many random calls, or as many as there is time for, and returns a Result for each operation."""
    random, tallies, end = Random(seed), dict[str, Tally](), time.monotonic() + 60 * minutes
    others = [backend for backend in contenders(numba=numba) if backend != against]
    for case in range(cases):
        if time.monotonic() > end:
            break
        draw, threads = Draw(random=random), 1 + random.randrange(7)
        line = random_call(draw, makers)
        progress(f"{case + 1} of {cases}: {line}")
        problems, expected = compared(others, threads, line, against)
        tally = tallies.setdefault(operation(line), Tally())
        if problems and len(tally.lines) < SHOWN:
            tally.lines.append(report(next(iter(problems)), threads, draw.taken, against, makers))
        tally.cases += 1
        tally.raised += not expected.results
        tally.failed += bool(problems)
    return [tallies[name].result(name) for name in sorted(tallies)]
