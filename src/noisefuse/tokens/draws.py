# SPDX-License-Identifier: Apache-2.0
"""The tokens that a step of a `DiscreteSampler` draws from a network's logits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arguments.types import Array
from ..ground.checks import first_of
from ..language.noise import each, names_of, whole
from .categorical import TokenInfo, of_rows
from .steps import Drawn
from .table import TokenRow, TokenTable


class Clean(NamedTuple):
    """Logits of the clean token c, and a token whose logits are taken for -inf there, or -1."""

    logits: Any
    hidden: int = -1


def of_clean(table: TokenTable, row: TokenRow, x: Array, logits: Any, read: NDArray[np.bool_]) -> Clean:
    """Returns the logits of the clean token c at the positions that are read: -inf for the mask and for tokens left
    out, and the row's addend for x. They are a copy where more than one token differs."""
    masked, heat = logits, table.temperature * row.temperature
    mask = () if table.mask_id is None or table.mask_logit == "keep" else (table.mask_id,)
    hidden = [token for token in (*mask, *table.left_out) if 0 <= token < logits.shape[-1]]
    changes = row.own or (heat and _cuts(table))
    if len(hidden) == 1 and not changes:
        return Clean(logits, hidden[0])
    if row.own or (logits[..., hidden] != -math.inf).any():
        masked = np.zeros(logits.shape, np.float32 if row.own else logits.dtype)  # what is not written costs nothing
        for at in zip(*np.nonzero(read), strict=True):
            masked[at] = logits[at]
        for token in hidden:
            masked[read, token] = -math.inf
        if row.own:
            masked[read, x[read]] += np.float32(row.own)
    return Clean(_nucleus(masked, heat, table.top_k, table.top_p) if heat and _cuts(table) else masked)


def draw(
    table: TokenTable, row: TokenRow, clean: Clean, noise: Any, may: NDArray[np.bool_], info: tuple[str, ...]
) -> Drawn:
    """Draws a token for each position that may take one, with the sums and confidences that the row needs."""
    logits, heat, p = clean.logits, table.temperature * row.temperature, 1.0 if _cuts(table) else table.top_p
    noise, places = _placed(noise, may.shape[1])
    where = None if may.all() else may
    drawn: Any = of_rows(logits, noise, heat, table.top_k, p, where, places, info, hidden=clean.hidden)
    token, told = drawn if info else (drawn, TokenInfo())
    token = np.where(may, token, 0)
    if table.mask_id is None and table.vocabulary is not None and (beyond := token >= table.vocabulary).any():
        first = first_of("drawn", beyond, token)
        raise ValueError(f"logits: {first}, beyond the {table.vocabulary} tokens of the vocabulary")
    total = None
    if row.rate is not None:
        own_logit = np.take_along_axis(logits, token[..., None], axis=-1)[..., 0].astype(np.float64)
        total = own_logit - told.log_prob_raw.astype(np.float64)
    sure = None
    if table.unsure and table.order == "confidence" and row.by_confidence:
        unsure = tuple(one for one in table.unsure if one != clean.hidden)
        sure = _without(unsure, logits, token, told.log_prob_raw)
    return Drawn(token, told, total, sure)


def _without(unsure: tuple[int, ...], logits: Any, token: NDArray[np.int64], log_prob: Any) -> NDArray[np.float64]:
    """Returns the log-probabilities of drawn tokens in the softmax without those that are unsure, which come last."""
    log_p = log_prob.astype(np.float64)
    some = [one for one in unsure if one < logits.shape[-1]]
    own_logit = np.take_along_axis(logits, token[..., None], axis=-1).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # at positions that are not read
        taken = np.exp(logits[..., some].astype(np.float64) - own_logit + log_p[..., None]).sum(axis=-1)
    without = log_p - np.log1p(-np.minimum(taken, 1 - 2.0**-53))
    return np.where(np.isin(token, some), -np.finfo(np.float64).max, without)


def _placed(noise: Any, length: int) -> tuple[Any, NDArray[np.int64] | None]:
    """Returns the noise without its windows, and the positions that they say, or None if there is no window."""
    starts = np.array([[name.window_start[0] if name.window_start else 0] for name in names_of(noise)])
    places = np.arange(length) + starts if starts.any() else None
    return each(noise, lambda name: whole(name, name.stream)), places


def _cuts(table: TokenTable) -> bool:
    """Tells whether top_p leaves out the token that crosses it, which `categorical` keeps."""
    return table.top_p < 1 and not table.crossing


_AT_ONCE = 1 << 18  # logits


def _nucleus(logits: Any, temperature: float, k: int, p: float) -> Any:
    """Returns a copy of the logits with -inf for all but the most probable tokens that together have at most p of the k
    largest's probability (0: of all); one token is always left."""
    cut = logits.reshape(-1, logits.shape[-1]).copy()
    rows = max(1, _AT_ONCE // cut.shape[1])
    for part in (cut[at : at + rows] for at in range(0, len(cut), rows)):
        values = part.astype(np.float64) / temperature
        order = np.argsort(-values, axis=-1, kind="stable")
        falling = np.take_along_axis(values, order[:, : k or None], axis=-1)
        with np.errstate(invalid="ignore"):
            reached = np.exp(falling - falling[:, :1]).cumsum(axis=-1)
        n = np.maximum(1, (reached <= p * reached[:, -1:]).sum(axis=-1, keepdims=True))
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(order.shape[1])[None], axis=-1)
        part[(ranks >= n) & ~np.isnan(values)] = -math.inf  # a NaN is an error of the draw
    return cut.reshape(logits.shape)
