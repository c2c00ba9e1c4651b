# SPDX-License-Identifier: Apache-2.0
"""Runs random calls of the differential campaign, as many as there is time for (docs/quality.md).

    python tests/campaign/random_calls.py --cases 1000000 --against numba   instruction sets against Numba
    python tests/campaign/random_calls.py --minutes 10                      native and Numba against the reference
    python tests/campaign/random_calls.py --libraries torch jax dask        other libraries' arrays against NumPy's
    TRITON_INTERPRET=1 PYTHONPATH=tests python tests/campaign/random_calls.py --libraries triton --minutes 10
                                                                            tensors of a device, by Triton's kernels

A call with another library's arrays gives the bits of NumPy's, or is refused with a reason. (Of JAX some gradients are
XLA's products, which only come near: docs/jax.md.) Tensors lie in memory as NumPy's views do, with any strides; dask's
arrays are cut into chunks along every axis. It ends with status 1 if a call
differs, and prints a line for each such call. If a call ends the process, its line is the last one printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from random import Random

import numpy as np

import arguments
import calls
import differential
import noisefuse as nf
from arguments import Draw, operation, random_call

REFUSED = (NotImplementedError, TypeError, ValueError)


def torch_array(x):
    import torch

    if not x.flags.writeable or not x.flags.aligned or min(x.strides, default=0) < 0 or not x.dtype.isnative:
        x = x.copy() if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def jax_array(x):
    import jax.numpy as jnp

    return jnp.asarray(x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("=")))


def dask_array(x):
    import dask.array

    return dask.array.from_array(x, chunks=tuple(max(1, -(-2 * n // 3)) for n in x.shape))


def on(library):
    """Returns JAX with 64 bits; and for Triton the door of a device's tensors (cuda_kernels/triton_door.py)."""
    if library == "triton":
        from cuda_kernels.triton_door import opened

        return opened()
    if library != "jax":
        return nullcontext()
    import jax

    return jax.enable_x64(True)


LIBRARIES = {"torch": torch_array, "jax": jax_array, "dask": dask_array, "triton": torch_array}


def as_numpy(value):
    if isinstance(value, dict | list | tuple):
        return [part for each in (value.values() if isinstance(value, dict) else value) for part in as_numpy(each)]
    if isinstance(value, nf.Noise):
        return [np.array(repr(value))]
    if type(value).__module__.partition(".")[0] == "dask":
        value = value.compute()
    if type(value).__module__.partition(".")[0] == "torch":
        value = value.detach().contiguous()
        if str(value.dtype) == "torch.bfloat16":
            import ml_dtypes
            import torch

            value = value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return [np.asarray(value)]


def answer(code, library=None):
    """Returns arrays, or the error; and the contents of the memory that the call was given."""
    arguments.made.clear()
    if library:
        arguments.handed_over.append(LIBRARIES[library])
    try:
        with on(library), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return as_numpy(eval(code, differential.WORDS))
    except Exception as error:
        return error
    finally:
        arguments.handed_over.clear()


def problem(library, line):
    """Returns what is wrong with this call of another library's arrays, or ""; and whether it was refused."""
    code = compile(line, "<case>", "eval")
    expected, found = answer(code), answer(code, library)
    if isinstance(expected, Exception):  # it may be for a layout that only NumPy's array has
        return "", True
    if isinstance(found, Exception):
        wrong = not isinstance(found, REFUSED)
        return f"raises {type(found).__name__}: {found}" if wrong else "", True
    if [a.shape for a in found] != [a.shape for a in expected]:
        return f"gives shapes {[a.shape for a in found]}, expected {[a.shape for a in expected]}", False
    of_xla = library == "jax" and (operation(line) in XLAS or ("mse_loss_grad" in line and "upstream=" in line))
    same = near if of_xla else lambda ours, theirs: differential.bits(ours) == differential.bits(theirs)
    with np.errstate(all="ignore"):  # losses of tensors have the tensors' dtype
        good = all(same(ours, theirs.astype(ours.dtype)) for ours, theirs in zip(found, expected, strict=True))
    return "" if good else "other numbers" if of_xla else "other bits", False


XLAS = ("density.log_prob_grad", "density.kl_grad")


def near(ours, theirs):
    """Tells whether these are the same numbers but for some rounding, and XLA's loss of subnormal ones."""
    import ml_dtypes

    kind = ml_dtypes.finfo(ours.dtype)
    least = kind.smallest_subnormal if ours.dtype.itemsize == 2 else kind.tiny
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return np.allclose(ours, theirs, rtol=8 * float(kind.eps), atol=8 * float(least), equal_nan=True)


def compare_libraries(libraries, cases, seed, minutes, progress=lambda line: None):
    """Returns whether all of them have NumPy's bits."""
    random, counts, lines = Random(seed), Counter(), []
    end = time.monotonic() + 60 * minutes
    for _ in range(cases):
        if time.monotonic() > end:
            break
        line = random_call(Draw(random=random), calls.CALLS)
        progress(line)
        if not any(word in line for word in calls.ANY_LIBRARY) or operation(line).startswith(("legacy", "raced")):
            continue
        for library in libraries:
            if library == "jax" and operation(line) == "sampled":
                continue  # its network is XLA's arithmetic, which has no subnormal numbers
            wrong, refused = problem(library, line)
            counts[library, "refused" if refused else "compared"] += 1
            if wrong:
                counts[library, "wrong"] += 1
                lines.append(f"{library}: {line}  # {wrong}")
    for library in libraries:
        compared, refused, wrong = (counts[library, what] for what in ("compared", "refused", "wrong"))
        print(f"{library}: {compared:,} compared, {refused:,} refused, {wrong:,} wrong")
    print(*lines[:20], sep="\n")
    return not lines


def of_backends(given, progress):
    """Returns whether all backends give the same bits; prints how many calls of each operation were compared."""
    results = differential.run(
        given.cases, given.seed, numba=not given.no_numba, against=given.against, minutes=given.minutes,
        progress=progress,
    )  # fmt: skip
    good = differential.show(results)
    print(f"{sum(result.cases for result in results):,} calls")
    return good


def in_a_child():
    """Makes the calls in a child, which writes down each of them first. Returns its status."""
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder, "last")
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--last", last], check=False)
        if last.exists() and (line := last.read_text()):
            print(f"ended with status {done.returncode}, in {line}")
            return 1
        return done.returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=sys.maxsize)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--against", default="reference", choices=("reference", "numba", "native-portable"))
    parser.add_argument("--no-numba", action="store_true", help="of the backends, native alone")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES)
    parser.add_argument("--last", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cases == sys.maxsize and given.minutes == float("inf"):
        parser.error("expected --cases or --minutes")
    if given.last is None:
        return in_a_child()
    print(f"# noisefuse {nf.__version__} on {nf.info()['cpu']}; --seed {given.seed}", flush=True)
    with given.last.open("wb", buffering=0) as last:

        def progress(line):
            last.seek(0)
            last.truncate()
            last.write(line.encode())

        if given.libraries:
            good = compare_libraries(given.libraries, given.cases, given.seed, given.minutes, progress)
        else:
            good = of_backends(given, progress)
        last.truncate(0)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
