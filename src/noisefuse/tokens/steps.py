# SPDX-License-Identifier: Apache-2.0
"""What becomes of tokens in a step of a `DiscreteSampler`, and how likely that was (docs/discrete.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arguments.types import Array
from ..language.noise import MASKS, PLACES, Noise
from ..operations.words import words
from .categorical import TokenInfo
from .forward import names_for, uniform_tokens
from .table import TokenRow, TokenTable


class Drawn(NamedTuple):
    """The draws of a step from a network's logits: a token for each position, and its info."""

    token: NDArray[np.int64]
    info: TokenInfo[NDArray[Any]]
    total: NDArray[np.float64] | None = None  # the logarithm of the sum of the logits' exponentials, for a rate
    confidence: NDArray[np.float64] | None = None  # its logarithm, if it is not log_prob_raw


def wanted_info(table: TokenTable, row: TokenRow, log_prob: bool, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Returns what `categorical` has to tell for this row."""
    names = [*asked]
    if log_prob and not row.touches_tokens and table.mask_logit == "ignore":
        names.append("log_prob")
    if row.rate is not None:
        names.append("log_prob_raw")
    if row.by_confidence and table.order != "random":
        names.append(ranking_info(table, row))
    if row.bound is not None:
        names.append("entropy")
    return tuple(dict.fromkeys(names))


def positions(
    table: TokenTable, row: TokenRow, x: Array, where: NDArray[np.bool_] | None, names: Sequence[Noise] = ()
) -> NDArray[np.bool_]:
    """Returns the positions (B, L) that may take a drawn token. The names' windows say where x stands in the whole."""
    may = np.ones(x.shape, np.bool_) if row.touches_tokens or table.mask_id is None else x == table.mask_id
    if row.bound is not None and table.mask_id is not None:
        may = x == table.mask_id
    if row.end:
        whole = x.shape[1:], (0,)
        windows = [(name.window_shape or whole[0], name.window_start or whole[1]) for name in names] or [whole]
        may = may & np.stack([np.arange(x.shape[1]) + start < full - row.end for (full,), (start,) in windows])
    return may if where is None else may & where


def next_tokens(
    table: TokenTable, row: TokenRow, x: Array, drawn: Drawn, noise: Any, may: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """Returns the tokens (B, L) of the next step, and which of them are the drawn ones."""
    if row.by_rank:
        keys, others = ranked(table, row, x, drawn, noise, may)
        taken = first_ones(row, keys, may)
        return np.where(taken, drawn.token, others), taken
    w = words(x.shape, names_for(noise, x.shape, MASKS))
    masked = np.zeros(x.shape, np.bool_) if table.mask_id is None else x == table.mask_id
    taken = may & masked & _below(w, _reveal(row, drawn))
    result = np.where(taken, drawn.token, x)
    if not row.touches_tokens:
        return result, taken
    may_change, done = may & ~masked, np.zeros(x.shape, np.bool_)
    same = drawn.token == x
    for n, ((differ, equal), new) in enumerate(zip(_events(row), _news(table, row, drawn, x, noise), strict=True)):
        event = may_change & ~done & np.where(same, _below(w, equal), _below(w, differ))
        result, done = np.where(event, new, result), done | event
        taken = taken | event if n == 0 else taken
    return result, taken


def _events(row: TokenRow) -> list[tuple[float, float]]:
    """Returns the cumulated probabilities of the events, a pair for each: if c is another token than x, and if it is
    x."""
    differ, same = row.renoise
    reached = row.change + differ
    return [(row.change, 0.0), (reached, same), (reached + row.remask, same + row.remask)]


def _news(table: TokenTable, row: TokenRow, drawn: Drawn, x: Array, noise: Any) -> list[Any]:
    """Returns the token that each event sets."""
    new = uniform_tokens(x.shape, noise, _size(table)) if any(row.renoise) else x
    return [drawn.token, new, x if table.mask_id is None else np.int64(table.mask_id)]


def _below(w: NDArray[np.uint32], p: Any) -> NDArray[np.bool_]:
    return np.asarray(w < np.rint(np.multiply(p, 2.0**32)))


def _reveal(row: TokenRow, drawn: Drawn) -> Any:
    """Returns the probability that a mask becomes c."""
    if row.rate is None:
        return min(row.reveal, 1.0)
    assert drawn.total is not None
    with np.errstate(over="ignore"):
        return np.minimum(1.0, row.rate * np.exp(drawn.total))


def _size(table: TokenTable) -> int:
    assert table.vocabulary is not None
    return table.vocabulary


# ---- ranks -------------------------------------------------------------------------------------------------


def ranked(
    table: TokenTable, row: TokenRow, x: Array, drawn: Drawn, noise: Any, may: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], Array]:
    """Returns the keys of the positions (B, L), the least of which take their drawn tokens, and what the others
    become."""
    order = drawn.info.entropy if row.bound is not None else _order(table, row, drawn, noise, may)
    keys = np.where(may, order.astype(np.float64), np.inf)
    if row.bound is None or table.mask_id is not None:
        return keys, x
    return keys, np.where(may, uniform_tokens(x.shape, noise, _size(table)), x)


def first_ones(row: TokenRow, keys: NDArray[np.float64], may: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the positions that take their drawn tokens, from the keys of whole samples."""
    if row.bound is not None:
        return certain(row.bound, keys, may)
    return _first(_counts(row, keys, may), keys, may)


def _counts(row: TokenRow, keys: Array, may: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns how many masks of each sample a step reveals; keys are the negative logarithms of their confidences."""
    masks = may.sum(axis=1)
    if row.left is not None:
        return np.asarray(-(-masks // row.left))
    if row.share is not None:  # in float32, as Dream's code has it
        return np.asarray(np.floor(masks.astype(np.float32) * np.float32(row.share)).astype(np.int64))
    if row.threshold is not None:
        return np.asarray(np.minimum(masks, np.maximum(1, (keys <= surprise(row.threshold)).sum(axis=1))))
    assert row.factor is not None
    n_sure = (np.sort(keys, axis=1) <= surprises(row.factor, keys.shape[1])).cumprod(axis=1).sum(axis=1)
    return np.asarray(np.where(n_sure >= masks - 1, masks, n_sure))  # Fast-dLLM's code leaves no last one alone


def surprise(p: Any) -> Any:
    """Returns -ln p as the confidences are rounded, to float32. One of 1 - 2^-54, which float64 rounds to 1, is 1."""
    with np.errstate(divide="ignore"):
        return np.float32(2.0**-54 - np.log(np.maximum(p, 0.0)))


def surprises(factor: float, n: int) -> NDArray[np.float32]:
    """Returns the greatest surprises of the first n positions of a sample that a factor reveals."""
    greatest: NDArray[np.float32] = surprise(1 - factor / np.arange(2, n + 2))
    greatest[:1] = np.inf  # one is always revealed
    return greatest


def ranking_info(table: TokenTable, row: TokenRow) -> str:
    """Returns the info of `categorical` that ranks the positions, or "random"."""
    at_zero = table.temperature * row.temperature == 0 and table.order == "log_prob"
    return "log_prob_raw" if at_zero or table.order == "confidence" else table.order


def _order(table: TokenTable, row: TokenRow, drawn: Drawn, noise: Any, may: NDArray[np.bool_]) -> Array:
    """Returns the keys of the positions: the least comes first."""
    random = table.order == "random"
    if random or table.order_temperature:
        w = words(may.shape, names_for(noise, may.shape, PLACES)).astype(np.float64)
    if random:
        return w
    value = (
        getattr(drawn.info, ranking_info(table, row)).astype(np.float64)
        if drawn.confidence is None
        else drawn.confidence
    )
    value = -value if table.order == "entropy" else value
    if not table.order_temperature:
        return -value
    if table.order in ("confidence", "log_prob"):
        value = np.exp(value)
    return np.log(-np.log((w + 0.5) / 2.0**32)) - value / table.order_temperature  # Gumbel's trick


def _first(counts: NDArray[np.int64], keys: Array, may: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the positions of the least keys, so many of each sample; of equal keys the lower position."""
    order = np.argsort(keys, axis=1, kind="stable")
    first = np.zeros(may.shape, np.bool_)
    np.put_along_axis(first, order, np.arange(may.shape[1]) < counts[:, None], axis=1)
    return first & may


def certain(bound: float, entropy: NDArray[Any], may: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the positions of least entropy whose entropies, without the largest, add up to at most the bound."""
    keys = np.where(may, entropy.astype(np.float64), np.inf)
    order = np.argsort(keys, axis=1, kind="stable")
    rising = np.take_along_axis(np.where(may, keys, 0.0), order, axis=1)
    taken = np.zeros(may.shape, np.bool_)
    before = np.cumsum(rising, axis=1) - rising
    np.put_along_axis(taken, order, before <= bound, axis=1)
    return taken & may


# ---- probabilities -----------------------------------------------------------------------------------------


class Law(NamedTuple):
    """log p(x' | x) of each position (B, L), and its derivatives by the log-probabilities of x' and of x."""

    log_prob: NDArray[np.float64]
    by_next: NDArray[np.float64]
    by_own: NDArray[np.float64]


def law(
    table: TokenTable, row: TokenRow, x: Array, to: Array, may: NDArray[np.bool_], of_next: Array, of_own: Array,
    total: Array | None = None, taken: NDArray[np.bool_] | None = None,
) -> Law:  # fmt: skip
    """Returns log p(x' | x) from the network's log-probabilities of x' and x; the drawn token is summed out.

    Rows by rank: the probability of the tokens, given which positions take them; without `taken` those that change.
    """
    p, own = np.exp(of_next.astype(np.float64)), np.exp(of_own.astype(np.float64))
    masked = np.zeros(x.shape, np.bool_) if table.mask_id is None else x == table.mask_id
    hidden = np.zeros(x.shape, np.bool_) if table.mask_id is None else to == table.mask_id
    possible = np.True_ if table.mask_id is not None else (to >= 0) & (to < _size(table))
    zero: NDArray[np.float64] = np.zeros(x.shape)
    if row.by_rank:
        taken = may & (to != x) if taken is None or table.mask_id is not None else taken
        left = 0.0 if table.mask_id is not None else np.where(may, -math.log(_size(table)), 0.0)
        log_prob = np.where(taken, of_next.astype(np.float64), np.where(~may & (to != x), -np.inf, left))
        log_prob = np.where(possible, log_prob, -np.inf)
        return Law(log_prob, taken.astype(np.float64), zero)
    reveal = _reveal(row, Drawn(to, TokenInfo(), total))
    (change, _), (reached, same), _ = _events(row)
    v = table.vocabulary or 1
    noise = (reached - change) / v
    noise_same = same / v
    differ_stays, same_stays = 1 - reached - row.remask, 1 - same - row.remask
    # of a token: a constant, and what multiplies p(x') and p(x)
    moved = np.where(to == x, differ_stays + noise, noise)
    by_p = np.where(to == x, 0.0, change)
    by_own = np.where(to == x, (same_stays + noise_same) - (differ_stays + noise), noise_same - noise)
    moved, by_own = np.where(hidden, row.remask, moved), np.where(hidden, 0.0, by_own)
    moved, by_p = np.where(masked, np.where(hidden, 1 - reveal, 0.0), moved), np.where(masked, reveal, by_p)
    by_own = np.where(masked, 0.0, by_own)
    still = np.where(to == x, 1.0, 0.0)
    may = may & possible
    moved, by_p, by_own = np.where(may, moved, still), np.where(may, by_p, 0.0), np.where(may, by_own, 0.0)
    whole = moved + by_p * p + by_own * own
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(whole > 0, 1 / whole, 0.0)
        return Law(np.log(whole), by_p * p * inverse, by_own * own * inverse)


# ---- the fast path -----------------------------------------------------------------------------------------


def fast_row(table: TokenTable, row: TokenRow) -> tuple[Any, ...] | None:
    """Returns the numbers of FastTokenRow (csrc/python/fast_step.h), or None if the row needs more than it does."""
    mask = -1 if table.mask_id is None else int(table.mask_id)
    more = row.rate is not None or row.bound is not None or row.own or table.guidance or table.order_temperature
    if more or table.left_out or table.unsure or (table.top_p < 1 and not table.crossing):
        return None
    if not -(1 << 63) <= mask < 1 << 63:
        return None
    hides, told = mask >= 0 and table.mask_logit == "ignore", _TOLD.index(ranking_info(table, row))
    whole = mask, int(table.vocabulary or 0), int(row.end), int(row.left or 0)
    settings = float(table.temperature * row.temperature), int(table.top_k), float(table.top_p)
    ranks = (-1 if row.threshold is None else surprise(row.threshold)), -1 if row.share is None else row.share
    chances = row.reveal, row.change, *row.renoise, row.remask, *ranks
    least = b"" if row.factor is None else surprises(row.factor, _MASKS).tobytes()
    flags = table.mask_id is not None, hides, row.touches_tokens
    return *flags, told, *whole, *settings, *map(float, chances), least


_TOLD = ("random", "log_prob", "log_prob_raw", "entropy", "margin")  # as FastTokenRow numbers them
_MASKS = 256  # of a sample: steps of a factor with more have no fast path
