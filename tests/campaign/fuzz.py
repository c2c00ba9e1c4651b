# SPDX-License-Identifier: Apache-2.0
"""Fuzzes calls, guided by the code that they reach: bits or errors must be the reference's.

    pip install atheris
    python tests/campaign/fuzz.py -max_total_time=3600

libFuzzer's bytes are the choices of the differential campaign's random calls, so everything it tries is a line of
Python: a call that is right or wrong in some way. Its coverage is that of noisefuse's Python; the extension is
compared. A line that differs ends the run, made smaller and ready to be pasted. Options are libFuzzer's.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["noisefuse"]):
    import calls
    import differential
    from arguments import Draw, random_call

BACKENDS = differential.contenders(numba=False)


def one_call(data: bytes) -> None:
    """Reads two bytes as a choice, after one for the number of threads."""
    threads = 1 + (data[0] % 7 if data else 0)
    draw = Draw([int.from_bytes(data[k : k + 2], "little") for k in range(1, len(data), 2)])
    line = random_call(draw, calls.CALLS)
    problems, _ = differential.compared(BACKENDS, threads, line)
    for backend in problems:
        raise AssertionError(differential.report(backend, threads, draw.taken))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_call)
    atheris.Fuzz()
