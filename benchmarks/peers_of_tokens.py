# SPDX-License-Identifier: Apache-2.0
"""`bench.py --discrete`: masks, categories and the loss of masked diffusion, beside torch if it is installed.

The rivals are LLaDA's forward process and step (Nie et al. 2025), softmax and multinomial, and torch's cross entropy,
each in torch as its users write it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

import noisefuse as nf
from noisefuse.commands.bench.contenders import Array, Call, Case, Rival, contenders
from noisefuse.commands.bench.timing import Device, machine
from noisefuse.ground.kept import kept_property

OF_IDS = ("q_mask", "q_uniform")
OPERATIONS = (*OF_IDS, "categorical", "greedy", "masked_cross_entropy")
VOCABULARY = MASK = 126_336  # LLaDA's tokens; the mask is the first id beyond them
P = 0.5
NOISE = nf.Noise(0)


class Tokens(Case):
    """Ids (B, L) of int64, or logits (B, L, V) of floats."""

    @property
    def exists(self) -> bool:
        if self.operation in OF_IDS:
            return len(self.shape) == 2 and self.dtype == "int64"
        return len(self.shape) == 3 and self.dtype in ("float32", "float16", "bfloat16")

    @property
    def plain(self) -> str:
        return "copyto" if self.operation in OF_IDS else "read"

    @property
    def arrays(self) -> int:
        return 1 if self.operation in ("categorical", "greedy") else 2

    @property
    def out_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int64) if self.dtype == "int64" else super().out_dtype

    @kept_property
    def x(self) -> Array:
        rng = np.random.default_rng(0)
        if self.operation in OF_IDS:
            return rng.integers(0, VOCABULARY, self.shape)
        return (3 * rng.standard_normal(self.shape, dtype=np.float32)).astype(self.out_dtype)

    @kept_property
    def rows(self) -> tuple[Array, Array, Array]:
        """Returns the loss's ids, masks and weights 1 / p, one of each for every row of logits."""
        rng = np.random.default_rng(1)
        rows = self.shape[:-1]
        return rng.integers(0, self.shape[-1], rows), rng.random(rows) < P, np.full(rows, 1 / P, np.float32)


def device() -> Device:
    """Times one thread, torch's too, if nothing else is asked for."""
    bfloat16 = ("bfloat16",) * (find_spec("ml_dtypes") is not None)
    return Device(
        machine(), OPERATIONS, ((64, 4096), (1, 8, 32_000), (1024, 16_384), (1, 128, 126_464)),
        ("int64", "float32", *bfloat16), partial(contenders, of=CONTENDERS), 1, case=Tokens,
        columns=("ns", "±", "plain"), quick=2,
        rivals={
            "LLaDA": Rival("what its code does, in torch", "torch"),
            "eager": Rival("its usual way: rand and where, softmax and multinomial, argmax, cross_entropy", "torch"),
        },
    )  # fmt: skip


def _noisefuse(case: Tokens) -> Call:
    x = case.x
    if case.operation in OF_IDS:
        out = case.out
        return {
            "q_mask": lambda: nf.q_mask(x, P, NOISE, MASK, out=out),
            "q_uniform": lambda: nf.q_uniform(x, P, NOISE, VOCABULARY, out=out),
        }[case.operation]
    if case.operation == "masked_cross_entropy":
        return partial(nf.masked_cross_entropy_and_grad, x, *case.rows, out=case.out)
    if case.operation == "greedy":
        return lambda: nf.categorical(x, NOISE, temperature=0.0)
    return lambda: nf.categorical(x, NOISE, info=("log_prob_raw",))


def _tensor(case: Tokens) -> tuple[Any, Any]:
    """Returns torch, with the case's threads, and the case's array as a tensor."""
    torch = import_module("torch")
    torch.set_num_threads(case.threads)
    if case.dtype == "bfloat16":
        return torch, torch.from_numpy(case.x.view(np.int16)).view(torch.bfloat16)
    return torch, torch.from_numpy(case.x)


def _llada(case: Tokens) -> Call | None:
    """LLaDA's forward process, or its step: a token of each row, and the token's probability."""
    torch, x = _tensor(case)

    def masked() -> Any:
        p = torch.full(x.shape[:1], P)[:, None].repeat(1, x.shape[1])
        chosen = torch.rand(x.shape) < p
        return torch.where(chosen, MASK, x), chosen

    def step() -> Any:
        wide = x.to(torch.float64)
        noise = -torch.log(torch.rand_like(wide))
        token = torch.argmax(wide.exp() / noise, dim=-1)
        p = torch.softmax(x.to(torch.float64), dim=-1)
        return token, torch.gather(p, -1, token.unsqueeze(-1)).squeeze(-1)

    return {"q_mask": masked, "categorical": step}.get(case.operation)


def _eager(case: Tokens) -> Call | None:
    """torch's shortest way to the same."""
    torch, x = _tensor(case)

    def uniform() -> Any:
        changed = torch.rand(x.shape) < P
        return torch.where(changed, torch.randint_like(x, VOCABULARY), x), changed

    def multinomial() -> Any:
        p = torch.softmax(x.flatten(0, 1), dim=-1)
        token = torch.multinomial(p, 1)
        return token, torch.gather(p, -1, token).log()

    if case.operation != "masked_cross_entropy":
        calls: dict[str, Call] = {"q_uniform": uniform, "categorical": multinomial}
        return (calls | {"greedy": partial(torch.argmax, x, dim=-1)}).get(case.operation)
    ids, masked, weight = map(torch.from_numpy, case.rows)
    logits = x.requires_grad_()

    def loss() -> Any:
        logits.grad = None
        rows = torch.nn.functional.cross_entropy(logits[masked], ids[masked], reduction="none")
        ((rows * weight[masked]).sum() / ids.numel()).backward()
        return logits.grad

    return loss


def _copy(case: Tokens) -> Call | None:
    return partial(np.copyto, case.out, case.x) if case.operation in OF_IDS else None


def _read(case: Tokens) -> Call | None:
    """The largest byte, which NumPy finds at the speed of the memory for every dtype."""
    return None if case.operation in OF_IDS else partial(np.max, case.x.view(np.uint8))


CONTENDERS: dict[str, Callable[[Tokens], Call | None]] = {
    "noisefuse": _noisefuse,
    "LLaDA": _llada,
    "eager": _eager,
    "copyto": _copy,
    "read": _read,
}
