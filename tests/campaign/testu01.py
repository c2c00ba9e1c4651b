# SPDX-License-Identifier: Apache-2.0
"""Runs TestU01's batteries on the words of `uniform`, along an axis of the key.

    python tests/campaign/testu01.py [--crush] [--axis sample ...] [--seed N] [--testu01 FOLDER]

It needs TestU01 (L'Ecuyer and Simard 2007), with its headers: Debian's libtestu01-0-dev, or an installation of its
sources under FOLDER. SmallCrush takes half a minute per axis, Crush an hour. A word is the first 32 bits of a uniform
number of float64; 1024 neighbours along the axis follow each other, as in noise_statistics.py.

It exits with 1 if a p-value is rarer than one in a thousand runs would have it.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import noisefuse as nf
from noise_statistics import AXES, COLUMNS, LEVEL, ROWS, drawn

WORDS = ROWS * COLUMNS
REFILL = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint))


def build(folder: Path, testu01: Path | None) -> ctypes.CDLL:
    library = folder / "testu01.so"
    where = ["-I/usr/include/testu01"]  # Debian's
    if testu01:
        where = [f"-I{testu01}/include", f"-L{testu01}/lib", f"-Wl,-rpath,{testu01}/lib"]
    source = Path(__file__).with_suffix(".cpp")
    subprocess.run(["c++", "-O2", "-shared", "-fPIC", *where, str(source), "-o", str(library), "-ltestu01"], check=True)
    return ctypes.CDLL(str(library))


def p_values(library: ctypes.CDLL, crush: bool, axis: str, seed: int) -> dict[str, float]:
    """Returns p-values by the tests' names. Tests of one name are numbered."""
    chunks = itertools.count()

    def refill(to: ctypes._Pointer[ctypes.c_uint]) -> None:
        uniform = drawn("uniform", "float64", axis, seed, next(chunks), COLUMNS)
        np.ctypeslib.as_array(to, (WORDS,))[:] = (uniform.reshape(-1) * 2.0**32).astype(np.uint32)

    library.battery(ctypes.c_bool(crush), ctypes.c_size_t(WORDS), REFILL(refill))
    tests = ctypes.c_int.in_dll(library, "bbattery_NTests").value
    names = (ctypes.c_char_p * tests).in_dll(library, "bbattery_TestNames")
    values = (ctypes.c_double * tests).in_dll(library, "bbattery_pVal")
    return {f"{k} {name.decode()}": p for k, (name, p) in enumerate(zip(names, values, strict=True), 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crush", action="store_true", help="instead of SmallCrush")
    parser.add_argument("--axis", nargs="+", choices=AXES, default=["element", "sample", "step"])
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--testu01", type=Path)
    options = parser.parse_args()
    print(f"# noisefuse {nf.__version__}; {'Crush' if options.crush else 'SmallCrush'} --seed {options.seed}")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder), options.testu01)
        for axis in options.axis:
            start = time.process_time()
            found = p_values(library, options.crush, axis, options.seed)
            worst = min(found, key=lambda test: min(found[test], 1 - found[test]))
            rarest = min(1.0, 2 * len(found) * min(found[worst], 1 - found[worst]))
            good &= rarest >= LEVEL
            seconds = time.process_time() - start
            print(f"{axis}: of {len(found)} p-values {found[worst]:.3g} is the rarest ({worst}):", end=" ")
            print(f"p = {rarest:.2g} for so many; {seconds:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
