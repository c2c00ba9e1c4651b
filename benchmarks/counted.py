# SPDX-License-Identifier: Apache-2.0
"""Counts the instructions of small calls, exactly, whatever else the machine does: single steps (count.c).

    python benchmarks/counted.py    writes results/counts.json, some minutes

It has every public function and other calls on NumPy's arrays, the same on tensors, losses with autograd, and beside
them the shortest code of torch (peers_of_calls.py). tests/test_counts.py compares each build with the file. It needs
x86-64, Linux and a C compiler.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cliffs
import noisefuse as nf
from noisefuse.commands.bench.contenders import Call
from peers_of_calls import arguments, peer, peers

HERE = Path(__file__).parent
FILE = HERE / "results" / "counts.json"
ACTION = (1, 16, 7)
EMPTY = "an empty Function, autograd"
WARM = 20  # calls, after which Python has specialised its code and caches are filled


class Count(NamedTuple):
    instructions: int
    arithmetic: int  # of them, that of vectors


def loaded(source: str, kind: Callable[[str], Any], *options: str) -> Any:
    """Returns a compiled file of this folder, as a library of ctypes."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.so"
        command = ["cc", "-O2", "-shared", "-fPIC", *options, str(HERE / source), "-o", str(made)]
        subprocess.run(command, check=True)
        return kind(str(made))


def counter() -> Callable[[Call], Count]:
    """Returns a function that counts a call's instructions, after some calls that are not counted."""
    library = loaded("count.c", ctypes.PyDLL)
    library.count.argtypes = [ctypes.py_object, ctypes.POINTER(ctypes.c_long)]
    library.count.restype = ctypes.c_long

    def count(call: Call) -> Count:
        for _ in range(WARM):
            call()
        vectors = ctypes.c_long()
        gc.disable()
        try:
            return Count(library.count(call, ctypes.byref(vectors)), vectors.value)
        finally:
            gc.enable()

    return count


# ---- calls -------------------------------------------------------------------------------------------------

SCHEDULE, NOISE, FLOW = nf.Schedule.linear(1000), nf.Noise(0), nf.Schedule.flow(1000)
DDIM, DDPM = (getattr(nf.samplers, name)(SCHEDULE, 50) for name in ("ddim", "ddpm"))
MDLM, PATH, LINEAR = nf.samplers.mdlm(steps=4, mask_id=50), nf.paths.linear(), nf.Schedule.linear(5)


def others(of: Callable[[Any], Any]) -> dict[str, Call]:
    """Methods, and spellings that users write most. `of` makes their arrays from NumPy's."""
    x, m, out = (of(np.ones(ACTION, np.float32)) for _ in range(3))
    pair, u = of(np.ones((2, 16, 7), np.float32)), of(np.array([0.3, 0.4], np.float32))
    tokens, masks = of(np.full((2, 16), 3)), of(np.full((2, 16), 50))
    logits, row = of(np.zeros((2, 16, 50), np.float32)), of(np.zeros((2, 1, 50), np.float32))
    return {
        "q_sample, out=": lambda: nf.q_sample(x, 300, SCHEDULE, NOISE, out=out),
        "q_sample, target=": lambda: nf.q_sample(x, 300, SCHEDULE, NOISE, target="epsilon"),
        "q_sample, float t": lambda: nf.q_sample(pair, u, FLOW, NOISE),
        "mse_loss, float t": lambda: nf.mse_loss(pair, pair, u, FLOW, NOISE, target="flow"),
        "mse_loss, for each sample": lambda: nf.mse_loss(m, x, 300, SCHEDULE, NOISE, target="v", reduction="none"),
        "update, out=": lambda: nf.update(DDIM.tableau, 20, x, m, out=out),
        "a step of ddim": lambda: DDIM.step(20, x, m),
        "a step of ddpm": lambda: DDPM.step(20, x, m, NOISE),
        "log_prob of a sampler": lambda: DDPM.log_prob(20, x, m, out),
        "kl of a sampler": lambda: DDPM.kl(20, x, m),
        "interpolate, t (B,), velocity": lambda: nf.interpolate(pair, pair, u, PATH, target="velocity"),
        "interpolate_loss, t (B,)": lambda: nf.interpolate_loss(pair, pair, pair, u, PATH, target="velocity"),
        "noised, (B,)": lambda: nf.noised(pair, u, u, NOISE),
        "q_mask, 2 x 16": lambda: nf.q_mask(tokens, 0.5, NOISE, 9),
        "q_uniform, 2 x 16": lambda: nf.q_uniform(tokens, 0.5, NOISE, 50),
        "categorical, V = 50": lambda: nf.categorical(row, NOISE),
        "masked_cross_entropy, 2 x 16": lambda: nf.masked_cross_entropy(logits, tokens),
        "a step of mdlm": lambda: MDLM.step(0, masks, logits, NOISE, MDLM.state()),
        "q_walk of 5 steps": lambda: nf.q_walk(x, LINEAR, NOISE, keep=[4]),
    }


def of_numpy() -> dict[str, Call]:
    return (
        plain(lambda x: x)
        | others(lambda x: x)
        | {
            "np.add": partial(np.add, *[np.ones(ACTION, np.float32)] * 2, out=np.ones(ACTION, np.float32)),
            "Noise.at": lambda: NOISE.at(sample=3),
            "a schedule at an int": lambda: SCHEDULE(300),
            "a schedule at a float": lambda: FLOW(0.3),
        }
    )


def plain(of: Callable[[Any], Any], **options: Any) -> dict[str, Call]:
    """The plain calls of all public functions."""
    functions = cliffs.functions().items()
    return {name: partial(function, **arguments(name, ACTION, of, **options)) for name, function in functions}


def of_torch() -> dict[str, Call]:
    """Raises ImportError if it is not installed."""
    import torch

    torch.set_num_threads(1)
    image = torch.zeros(2, 3, 8, 8).to(memory_format=torch.channels_last)
    more = {"randn_like, channels_last": lambda: nf.randn_like(image, NOISE)}
    return (
        plain(torch.from_numpy, dtype=torch.float32)
        | others(torch.from_numpy)
        | more
        | with_autograd(cliffs.functions())
    )


def of_peers() -> dict[str, Call]:
    import torch

    class Empty(torch.autograd.Function):
        """Does nothing: what any loss of one's own takes."""

        @staticmethod
        def forward(ctx: Any, x: Any, loss: Any, gradient: Any) -> Any:
            ctx.gradient = gradient
            return loss.detach()

        @staticmethod
        def backward(ctx: Any, upstream: Any) -> Any:
            return ctx.gradient, None, None

    x, loss, gradient = torch.ones(ACTION, requires_grad=True), torch.ones(()), torch.ones(ACTION)
    made = {name: call for name in cliffs.functions() if (call := peer(name, ACTION))}
    made[EMPTY] = lambda: torch.autograd.grad(Empty.apply(x, loss, gradient), x)
    return made | with_autograd(peers(torch))


def with_autograd(functions: Mapping[str, Callable[..., Any]]) -> dict[str, Call]:
    """Losses of these functions, each with its gradient by autograd."""
    import torch

    def call(name: str, of: str) -> Call:
        given = arguments(name, ACTION, torch.from_numpy)
        given[of].requires_grad_()
        return lambda: torch.autograd.grad(functions[name](**given), given[of])

    losses = {"mse_loss": "pred", "interpolate_loss": "pred", "masked_cross_entropy": "logits"}
    return {f"{name}, autograd": call(name, of) for name, of in losses.items()}


OF: dict[str, Callable[[], dict[str, Call]]] = {"arrays": of_numpy, "tensors": of_torch, "peers": of_peers}

# These draw several times, or look for tables: test_peers.py has their times. And other values of logits.
LEFT_OUT = {
    "augment.at_snr", "augment.by_level", "augment.coloured", "augment.corrupt", "augment.impulse", "augment.poisson",
    "augment.prepare", "augment.rician", "augment.transition",
    *(name for name in cliffs.functions() if name.startswith("fields.") or name.endswith((", confident", ", flat"))),
}  # fmt: skip
NO_TENSORS = {"philox4x32", "augment.rms", "augment.strengths"} | {
    name for name in cliffs.functions() if name.startswith("weights.")
}


def names(kind: str) -> list[str]:
    """The calls of a kind that are counted."""
    out = LEFT_OUT if kind == "arrays" else LEFT_OUT | NO_TENSORS
    return [name for name in OF[kind]() if name not in out]


def counts(kind: str, isa: str) -> dict[str, int]:
    """Counts the calls of a kind in a new process, on one thread, with an instruction set."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it traces
    environment |= {"NOISEFUSE_ISA": isa, "NOISEFUSE_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [sys.executable, __file__, kind]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def where(kind: str) -> dict[str, str]:
    """Returns what counts depend on, beside the code."""
    libraries = ("numpy",) if kind == "arrays" else ("numpy", "torch")
    return {"python": sys.version} | {name: metadata.version(name) for name in libraries}


def write() -> None:
    """Writes results/counts.json."""
    isas = {"arrays": ("avx512", "avx2"), "tensors": ("avx512", "avx2"), "peers": ("avx512",)}
    record = {kind: where(kind) | {isa: counts(kind, isa) for isa in isas[kind]} for kind in OF}
    FILE.write_text(json.dumps(record, indent=1) + "\n")


def main(kind: str) -> None:
    count, calls = counter(), OF[kind]()
    print(json.dumps({name: count(calls[name]).instructions for name in names(kind)}))


if __name__ == "__main__":
    main(*sys.argv[1:]) if sys.argv[1:] else write()
