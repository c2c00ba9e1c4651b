# SPDX-License-Identifier: Apache-2.0
"""`noisefuse selftest`: whether the bits here are the promised ones (docs/noise.md, docs/quality.md).

Calls whose inputs are integers and dyadic numbers run on every instruction set, and on the reference. The hashes of
their results are frozen with the noise contract, as those of tests/known are.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

import noisefuse as nf

from .shared import WIDTH, arrays_of_triton, wrapped

THREADS = (1, 3)
X = ((np.arange(131079, dtype=np.uint64) * 2654435761 % (1 << 32) >> 8) / 2.0**23 - 1).reshape(3, -1).astype(np.float32)
T = np.array([2, 7, 4])
IDS = nf.Noise(0x0123456789ABCDEF, sample=[2**40 + 3, 0, 2**56 - 1], step=7)
SCHEDULE = nf.Schedule((15 - np.arange(8)) / 16, (1 + np.arange(8)) / 8)
TABLE = nf.Tableau([nf.Row(out=0.75 * nf.tableau.x - 0.5 * nf.tableau.m1 + 0.25 * nf.tableau.z)])
BYTES = (np.abs(X) * 255).astype(np.uint8)
LOGITS = 8 * X[:, :4099]

# Calls, and the first digits of the SHA-256 of their results.
PROMISED: dict[str, tuple[Callable[[], Any], str]] = {
    "randn, float32": (lambda: nf.randn(X.shape, IDS), "db41be66442d4c71"),
    "randn, float64": (lambda: nf.randn(X.shape, IDS, dtype="float64"), "37ec4c7d1819bb26"),
    "randn, float16": (lambda: nf.randn(X.shape, IDS, dtype="float16"), "728c77ad2b4e302e"),
    "uniform": (lambda: nf.uniform(X.shape, IDS), "962840f859f574bc"),
    "window": (lambda: nf.randn((3, 101), IDS.window((2**34,), (2**34 - 101,))), "d878975b06b1ae91"),
    "q_sample": (lambda: nf.q_sample(X, T, SCHEDULE, IDS, target="v"), "9ff273a989ea73fe"),
    "q_sample, uint8": (lambda: nf.q_sample(BYTES, T, SCHEDULE, IDS, dtype="uint8"), "790160d948f1b085"),
    "q_step": (lambda: nf.q_step(X, T, SCHEDULE, IDS), "ba6d1c6331f2ae61"),
    "q_walk": (lambda: nf.q_walk(X, SCHEDULE, IDS, keep=[0, 7]), "c84702e4191bf6c6"),
    "update": (lambda: nf.update(TABLE, 0, X, X[:, ::-1], noise=IDS), "315f66199fd80bc0"),
    "mse_loss": (lambda: nf.mse_loss(X[:, ::-1], X, T, SCHEDULE, IDS, target="v"), "3dfc925b577c4bdd"),
    "mse_loss_grad": (lambda: nf.mse_loss_grad(X[:, ::-1], X, T, SCHEDULE, IDS, target="v"), "d5f46402f56376b8"),
    "augment.sensor": (lambda: nf.augment.sensor(X, 0.5, 0.25, IDS), "b3790bb85cddef54"),
    "q_mask": (lambda: nf.q_mask(BYTES, T / 8, IDS, 127), "d2dac2e42ac62e3d"),
    "q_uniform": (lambda: nf.q_uniform(BYTES, T / 8, IDS, 256), "5e38abd5a98aac0b"),
    "categorical": (lambda: nf.categorical(LOGITS, IDS, temperature=0.75, top_p=0.875), "f4f590a7caaed8b1"),
    "masked_cross_entropy": (lambda: nf.masked_cross_entropy(LOGITS, T, reduction="none"), "571a89f721232831"),
}


@contextmanager
def using(name: str) -> Iterator[None]:
    """Uses a backend or, for native, "native-" and an instruction set."""
    backend, _, isa = name.partition("-")
    with nf.use_backend(backend):
        if not isa:
            yield
            return
        from .. import _native

        before = _native.isa()
        _native.use_isa(isa)
        try:
            yield
        finally:
            _native.use_isa(before)


def backends() -> list[str]:
    """Returns native once for each instruction set, the backend in use if it is another, and the reference."""
    info = nf.info()
    isas = [f"native-{isa}" for isa, state in info["isas"].items() if state == "available"]
    return [*isas, *({info["backend"]} - {"native", "reference"}), "reference"]


def devices() -> Iterator[tuple[str, Any]]:
    """Yields the backends of devices, each with memory there, or with the reason why there is none."""
    for name in ("cuda", "triton"):
        if (state := nf.info()["backends"][name]) != "available":
            yield name, state
        elif name == "cuda":
            yield name, import_module("cupy").empty(X.shape, X.dtype)
        else:
            yield name, arrays_of_triton().empty(0, X.shape, X.dtype)


def digest(results: Any) -> str:
    """Returns a hash of all bytes of arrays and numbers, in C order."""
    leaves = results if isinstance(results, tuple) else (results,)
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()[:16]


def run(arguments: argparse.Namespace) -> int:
    """Returns 0, or 1 if a hash is not the promised one."""
    nf.randn((1,), nf.Noise(0))  # raises an error if a backend is asked for that is missing
    began, names, failed = time.monotonic(), backends(), []
    about = f"noisefuse {nf.__version__} on {nf.info()['cpu']}: the bits of noise contract {nf.NOISE_VERSION}, on "
    print(*wrapped([f"{about}{', '.join(names)}, with 1 and 3 threads"], "# "), sep="\n", flush=True)
    for check, (call, promised) in PROMISED.items():
        wrong = []
        for name in names:
            for threads in THREADS if name != "reference" else (1,):
                with using(name), nf.set_num_threads(threads):
                    if (found := digest(call())) != promised:
                        wrong.append(f"{name}, {threads} threads: {found}, expected {promised}")
        failed += [check] * bool(wrong)
        verdict = f"{check:22} {'FAILED' if wrong else 'ok'}"
        print(verdict, *(f"  {line}"[:WIDTH] for line in wrong), sep="\n", flush=True)
    for name, out in devices():
        if isinstance(out, str):
            print(*wrapped([f"not on {name}: {out}"], "# "), sep="\n")
        else:
            nf.randn(X.shape, IDS, out=out)
            good = digest(out.get()) == PROMISED["randn, float32"][1]
            failed += [name] * (not good)
            print(f"{f'randn on {name}':22} {'ok' if good else 'FAILED'}")
    verdict = f"{len(failed)} of {len(PROMISED)} checks FAILED: {', '.join(failed)}"
    print(verdict if failed else f"all {len(PROMISED)} checks passed, in {time.monotonic() - began:.1f} s")
    return 1 if failed else 0
