# SPDX-License-Identifier: Apache-2.0
"""Tokens in dask's arrays. Blocks are cut anywhere among samples and positions; of logits each has whole rows, and in a
sampler's step whole samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np

import noisefuse as nf

from ...ground.checks import check_choice, check_integer
from ...language.noise import LOGITS
from .blocks import Call, Shape, check_none, check_whole, known_chunks, mapped


def through(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Runs a function of tokens on each block."""
    made: dict[str, Callable[..., Any]] = {
        "q_mask": _changed,
        "q_uniform": _changed,
        "q_transition": _transition,
        "step": _step,
    }
    name = function.__name__.removeprefix("_")
    if name not in made:
        raise NotImplementedError(f"{name}: noisefuse does not offer that for arrays of dask")
    return made[name](function, *arguments, **options)


# ---- the forward process -----------------------------------------------------------------------------------


def _changed(
    function: Any, ids: Any, p: Any, noise: Any, token: Any, *, where: Any, lengths: Any, block: Any, out: Any,
    **options: Any,
) -> Any:  # fmt: skip
    check_none(out=out)
    known_chunks("ids", ids)
    if block is not None:
        p = _of_blocks(ids, p, check_integer("block", block), options["batched"])
    while np.ndim(p) and np.shape(p)[-1] == 1:
        p = p[..., 0] if isinstance(p, da.Array) else np.asarray(p)[..., 0]
    arrays, axes = _allowed(ids, where, lengths, options["batched"])
    call = Call(function.__name__, _draw, {"function": function, "token": token, **options}, 2)
    return mapped(call, ids, {"of_token": p, **arrays}, noise, axes)


def _of_blocks(ids: Any, p: Any, block: int, batched: bool) -> Any:
    """Returns p of each token."""
    length = ids.shape[-1]
    expected = *ids.shape[: int(batched)], -(-length // max(block, 1))
    if isinstance(p, da.Array) or block < 1 or ids.ndim != 1 + batched or np.shape(p) != expected:
        what = f"block = {block}, p of shape {np.shape(p)}: expected a block from 1 on and"
        raise ValueError(f"{what} numbers of shape {expected}, one for each block of ids (B, L), no dask array")
    return np.repeat(np.asarray(p), block, axis=-1)[..., :length]


def _transition(
    function: Any, ids: Any, Q: Any, noise: Any, *, where: Any, lengths: Any, out: Any, **options: Any
) -> Any:  # fmt: skip
    check_none(out=out)
    known_chunks("ids", ids)
    arrays, axes = _allowed(ids, where, lengths, options["batched"])
    if np.ndim(Q) == 3:
        if len(Q) != len(ids):
            raise ValueError(f"Q: expected a matrix for each of {len(ids)} samples, got shape {np.shape(Q)}")
        arrays["row"] = np.arange(len(ids))
    return mapped(
        Call("q_transition", _draw, {"function": function, "of_token": Q, **options}), ids, arrays, noise, axes
    )


def _allowed(ids: Any, where: Any, lengths: Any, batched: bool) -> tuple[dict[str, Any], dict[str, Shape]]:
    """Returns the arrays that say which tokens may change, and their axes."""
    arrays: dict[str, Any] = {}
    if where is not None:
        arrays["where"] = where if isinstance(where, da.Array) else np.broadcast_to(np.asarray(where), ids.shape)
    if lengths is not None:
        if ids.ndim != 1 + batched:
            raise ValueError(f"lengths: expected ids of one axis in a sample, got shape {ids.shape}")
        ends = lengths if isinstance(lengths, da.Array) else np.asarray(lengths)
        if ends.dtype.kind not in "iu" or ends.shape != ids.shape[: int(batched)]:
            raise TypeError(
                f"lengths: expected integers of shape {ids.shape[: int(batched)]}, got {ends.dtype} {ends.shape}"
            )
        if isinstance(ends, np.ndarray) and not ((ends >= 0) & (ends <= ids.shape[-1])).all():
            raise ValueError(f"lengths: expected from 0 to {ids.shape[-1]} positions, got {ends}")
        arrays |= {"lengths": ends, "place": np.arange(ids.shape[-1])}
    return arrays, {"where": tuple(range(ids.ndim)), "place": (ids.ndim - 1,)}


def _draw(
    ids: Any, noise: Any, *, function: Any, of_token: Any, token: Any = None, where: Any = None, lengths: Any = None,
    place: Any = None, row: Any = None, **options: Any,
) -> Any:  # fmt: skip
    if lengths is not None and ids.size:
        inside = place < np.asarray(lengths)[..., None]
        where = inside if where is None else where & inside
    more = () if token is None else (token,)
    given = of_token if row is None else np.asarray(of_token)[row]
    return function(ids, given, noise, *more, where=where, **options)


# ---- logits ------------------------------------------------------------------------------------------------


def categorical(
    logits: Any, noise: Any, *, temperature: Any, top_k: Any, top_p: Any, where: Any, positions: Any, info: Any,
    partial: bool, out: Any, dtype: Any,
) -> Any:  # fmt: skip
    check_none(out=out)
    if partial:
        raise NotImplementedError("partial: parts do not take dask arrays: call categorical in each block")
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    known = {name: x for name, x in settings.items() if not isinstance(x, da.Array)}
    nf.categorical(np.empty((len(logits), 0, 1), np.float32), nf.Noise(0), **known)  # their checks
    options = {"info": info, "dtype": dtype} | {name: x for name, x in settings.items() if not np.ndim(x)}
    arrays = {name: x for name, x in settings.items() if np.ndim(x)}
    arrays |= {name: _of_rows(x, logits) for name, x in (("where", where), ("positions", positions)) if x is not None}
    found = _in_rows(Call("categorical", _categories, options, 1 + len(info)), logits, arrays, noise)
    return (found[0], nf.discrete.TokenInfo(**dict(zip(info, found[1:], strict=True)))) if info else found[0]


def _categories(logits: Any, noise: Any, *, info: Any, **options: Any) -> Any:
    found: Any = nf.categorical(logits, noise, info=info, **options)
    token, known = found if info else (found, None)
    return tuple(a[..., None] for a in (token, *(getattr(known, name) for name in info)))


def masked_cross_entropy(logits: Any, ids: Any, masked: Any, weight: Any, *, reduction: Any) -> Any:
    check_choice("reduction", reduction, ("mean", "none"))
    arrays = {"ids": ids}
    arrays |= {} if masked is None else {"masked": _of_rows(masked, logits)}
    arrays |= {} if weight is None else {"weight": _of_rows(weight, logits, last=True)}
    each = _in_rows(Call("masked_cross_entropy", _losses, {}), logits, arrays, None)
    if reduction == "none":
        return each
    return each.rechunk(-1).map_blocks(_mean, drop_axis=[*range(each.ndim)], dtype=np.float64)


def _losses(logits: Any, noise: Any, *, ids: Any, masked: Any = None, weight: Any = None) -> Any:
    return nf.masked_cross_entropy(logits, ids, masked, weight, reduction="none")[..., None]


def _mean(losses: Any) -> Any:
    """Returns the mean with the sum in order."""
    return np.asarray(np.cumsum(losses)[-1] / losses.size if losses.size else np.nan)


def _step(
    function: Any, i: int, x: Any, logits: Any, noise: Any, state: Any, *, where: Any, log_prob: bool, partial: bool,
    out: Any,
) -> Any:  # fmt: skip
    check_none(out=out)
    if partial:
        raise NotImplementedError("partial: noisefuse does not offer parts of a step for arrays of dask")
    if log_prob or (state is not None and state.asked):
        raise NotImplementedError("log_prob, state: noisefuse does not offer info of a step for arrays of dask")
    first, *others = logits if isinstance(logits, tuple) else (logits,)
    check_whole("step: samples", x, 1)
    arrays = {"tokens": x} | {f"logits{n}": one for n, one in enumerate(others)}
    arrays |= {} if where is None else {"where": _of_rows(where, first)}
    return _in_rows(Call("step", _stepped, {"function": function, "i": i}), first, arrays, noise)


def _stepped(logits: Any, noise: Any, *, function: Any, i: int, tokens: Any, where: Any = None, **others: Any) -> Any:
    given = (logits, *others.values()) if others else logits
    return function(i, tokens, given, noise, where=where)[..., None]


def _of_rows(value: Any, logits: Any, last: bool = False) -> Any:
    """Returns numbers for the rows of logits, in their shape. last: axes that are missing are the last ones."""
    if isinstance(value, da.Array) or not np.ndim(value):
        return value
    rows, array = logits.shape[:-1], np.asarray(value)
    if last:
        array = array.reshape(*array.shape, *(1,) * (len(rows) - array.ndim))
    try:
        return np.broadcast_to(array, rows)
    except ValueError:
        raise ValueError(
            f"expected a shape that broadcasts to the rows of logits, {rows}, got {np.shape(value)}"
        ) from None


def _in_rows(call: Call, logits: Any, arrays: dict[str, Any], noise: Any) -> Any:
    """Returns a result for each row."""
    if len(known_chunks("logits", logits)) < 3:
        raise ValueError(f"logits: expected (B, .., V) with axes between, got shape {logits.shape}")
    check_whole("logits: rows", logits, -1)
    axes = {name: tuple(range(min(np.ndim(x), logits.ndim))) for name, x in arrays.items() if np.ndim(x)}
    found = mapped(replace(call, last=1, empty=_without_rows, most=LOGITS), logits, arrays, noise, axes)
    return found[..., 0] if call.outputs is None else tuple(one[..., 0] for one in found)


def _without_rows(shape: Shape) -> Shape:
    return shape[0], 0, *shape[2:]
