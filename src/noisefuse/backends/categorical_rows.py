# SPDX-License-Identifier: Apache-2.0
"""A race of categories in one row (docs/noise.md), for backends that have its arithmetic and no loop of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..call.description import ACCUMULATORS, LOSS_CHUNK, Array, CrossEntropy, Race
from ..language.levels import INFO

NONE, ALL = np.float32(-np.inf), np.float32(np.inf)


@dataclass(frozen=True, slots=True)
class Scale:
    """A temperature as the terms of a chunk take it."""

    high: np.float32  # 1 / temperature, in two parts
    low: np.float32
    rate: np.float32  # the same over ln 2
    reach: np.float32  # 104 temperatures

    @classmethod
    def of(cls, temperature: float) -> Scale:
        beta = np.float64(1 / temperature)
        high, single = np.float32(beta), np.float32
        rate = single(beta * float.fromhex("0x1.71547652b82fep+0"))
        return cls(high, single(beta - high), rate, single(104) * single(temperature))


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The functions that a backend computes. reference.py describes each."""

    scores: Callable[[Array, NDArray[np.int64], int, float, tuple[int, int, int], int], Array]
    chunk_sums: Callable[[Array, Scale, Array], tuple[Array, Array]]
    terms: Callable[[Array, Scale, Any], tuple[Array, Any]]
    exp: Callable[[Array], Array]  # of float64 (n,)
    minus_two_ln: Callable[[Array], Array]
    fma: Callable[[Any, Any, Any], Array]


class Softmax:
    """A row's softmax, from its chunks: their largest logits, and their sums in units of the largest term."""

    def __init__(self, of: Arithmetic, temperature: float, largest: Array, sums: Any, spreads: Any = None) -> None:
        self.of: Arithmetic = of
        self.beta: np.float64 = np.float64(1 / temperature)
        self.most: np.float64 = np.float64(largest.max())
        self.certain: bool = bool(self.most == ALL)
        self.total: Array = np.zeros(1)
        self.spread: Array = np.zeros(1)
        for c in np.flatnonzero(largest > NONE) if not self.certain else ():
            behind = np.array([self.most - largest[c]])
            weight = of.exp(-(behind * self.beta))
            self.total = of.fma(weight, sums[c], self.total)
            if spreads is not None:
                self.spread = of.fma(weight, of.fma(behind, sums[c], spreads[c]), self.spread)
        self.ln: Array = self.total if self.certain else of.minus_two_ln(self.total) * -0.5

    def log_prob(self, x: Any) -> Any:
        return 0.0 if self.certain else self.of.fma(x - self.most, self.beta, -self.ln)[0]

    def entropy(self) -> Any:
        return 0.0 if self.certain else self.of.fma(self.beta, self.spread / self.total, self.ln)[0]

    def margin(self, second: Any) -> Any:
        behind = np.array([self.most - second])
        return 1.0 if self.certain else ((1 - self.of.exp(-(behind * self.beta))) / self.total)[0]


def race_in_row(call: Race, row: int, of: Arithmetic) -> None:
    """Draws the row's token, and computes what is asked for."""
    if call.where is not None and not call.where[row]:
        return
    setting = row // call.of_sample if len(call.temperature) > 1 else 0
    temperature, k, p = float(call.temperature[setting]), int(call.top_k[setting]), float(call.top_p[setting])
    heat, info = temperature or 1.0, {name: a for name in INFO if (a := getattr(call, name)) is not None}
    parts: Any = None if call.score is None else call
    if call.x is None:
        for name, sums, t in (("log_prob", parts.tempered, heat), ("log_prob_raw", parts.plain, 1.0)):
            if name in info and (temperature or name != "log_prob"):
                info[name][row] = Softmax(of, t, parts.chunk_largest[row], sums[row]).log_prob(parts.winner[row])
        return
    x = call.x[row].astype(np.float32)
    if call.hidden >= 0:
        x[call.hidden] = NONE
    if np.isnan(x).any() or (parts is None and x.max() == NONE):
        call.bad[row] = 1 if np.isnan(x).any() else 2
        return
    left = x
    if temperature and x.max() < ALL:
        left = largest_of(left, k) if k else left
        left = most_probable(left, p, heat, of) if p < 1 else left
    score, token = winner_of(call, row, left, temperature, of)
    if call.token is not None:
        call.token[row] = token
    winner = left[token - call.first] if token >= 0 else NONE
    if parts is not None:
        parts.score[row], parts.winner[row] = score, winner
        parts.chunk_largest[row], *_ = chunks_of(x, 1.0, of)
        for kept, t in ((parts.plain, 1.0), (parts.tempered, heat)):
            if kept is not None:
                kept[row] = chunks_of(x, t, of)[1]
        return
    if "rank" in info:
        info["rank"][row] = np.count_nonzero((x > winner) | ((x == winner) & (np.arange(len(x)) < token)))
    if "log_prob_raw" in info:
        info["log_prob_raw"][row] = Softmax(of, 1.0, *chunks_of(x, 1.0, of)).log_prob(winner)
    if not info.keys() & {"log_prob", "entropy", "margin"}:
        return
    drawn = Softmax(of, heat, *chunks_of(left, heat, of))
    known = {
        "log_prob": drawn.log_prob(winner) if temperature else 0.0,
        "entropy": drawn.entropy(),
        "margin": drawn.margin(np.sort(np.append(left, NONE))[-2]),
    }
    for name in info.keys() & known.keys():
        info[name][row] = known[name]


def winner_of(call: Race, row: int, x: Array, temperature: float, of: Arithmetic) -> tuple[float, int]:
    """Returns the greatest score of a row, and its token, the lowest among equals; -1 if all are -inf."""
    most = x.max()
    if most in (NONE, ALL) or not temperature:
        return float(most), call.first + int(np.argmax(x)) if most > NONE else -1
    sample = row // call.of_sample
    noise, entry = (call.fields[sample], 0) if len(call.fields) > 1 else (call.fields[0], sample)
    ids = noise.sample
    can = np.flatnonzero(x > NONE)
    counter = noise.step, ids + entry if isinstance(ids, int) else int(ids[entry]), noise.stream
    score = of.scores(x[can], call.first + can, int(call.position[row]), 1 / temperature, counter, noise.seed)
    winner = int(np.argmax(score))
    return float(score[winner]), call.first + int(can[winner])


def largest_of(x: Array, k: int) -> Array:
    """Returns the row with its k largest logits, of equals the lowest tokens, and -inf in place of the others."""
    return only(x, descending(x)[:k])


def most_probable(x: Array, p: float, temperature: float, of: Arithmetic) -> Array:
    """Returns the row with the fewest tokens that have p of the probability, and -inf in place of the others."""
    softmax, order = Softmax(of, temperature, *chunks_of(x, temperature, of)), descending(x)
    reached = np.cumsum(of.exp(-((softmax.most - x[order]) * softmax.beta)))  # cumsum adds in order
    return only(x, order[: 1 + np.count_nonzero(reached[:-1] < p * softmax.total)])


def descending(x: Array) -> NDArray[np.int64]:
    """Returns the tokens with a logit above -inf from the largest on, of equals the lowest first."""
    order = np.lexsort((np.arange(len(x)), -x))
    return np.asarray(order[x[order] > NONE])


def only(x: Array, kept: NDArray[np.int64]) -> Array:
    left = np.full_like(x, NONE)
    left[kept] = x[kept]
    return left


def chunks_of(x: Array, temperature: float, of: Arithmetic) -> tuple[Array, Array, Array]:
    """Returns of each chunk the largest logit, and what `Softmax` takes; zeros where the largest is infinite."""
    width = LOSS_CHUNK if len(x) > LOSS_CHUNK else -(-len(x) // ACCUMULATORS) * ACCUMULATORS
    chunk = np.full((-(-len(x) // width), width), NONE)
    chunk.reshape(-1)[: len(x)] = x
    largest = chunk.max(axis=1)
    finite = np.isfinite(largest)
    sums, spreads = np.zeros((2, len(chunk)))
    if finite.any():
        sums[finite], spreads[finite] = of.chunk_sums(chunk[finite], Scale.of(temperature), largest[finite])
    return largest, sums, spreads


def cross_entropy_in_row(call: CrossEntropy, row: int, of: Arithmetic) -> None:
    """Computes the loss of a row, and its gradient."""
    gradient = None if call.gradient is None else call.gradient[row]
    call.loss[row] = 0
    if not call.masked[row]:
        if gradient is not None:
            gradient[...] = 0
        return
    x, token = call.x[row].astype(np.float32), int(call.id[row])
    if not np.isfinite(x.max()):  # NaN too
        call.loss[row] = np.nan
        if gradient is not None:
            gradient[...] = np.nan
        return
    softmax = Softmax(of, 1.0, *chunks_of(x, 1.0, of))
    loss = softmax.ln - (np.float64(x[token]) - softmax.most)
    call.loss[row] = loss[0]
    if gradient is None:
        return
    weight, upstream = (a[row if len(a) > 1 else 0] for a in (call.weight, call.upstream))
    scale = weight * upstream / call.mean_of
    terms, unit = of.terms(x, Scale.of(1.0), x.max())
    gradient[...] = np.float32((scale / (np.float64(unit) * softmax.total))[0]) * terms
    gradient[token] = np.float32(scale * (of.exp(-loss)[0] - 1))
