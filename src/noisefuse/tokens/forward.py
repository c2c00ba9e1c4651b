# SPDX-License-Identifier: Apache-2.0
"""The forward process of discrete diffusion: tokens that become a mask, or others, at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arguments import arrays
from ..arguments.calls import names_or_array
from ..arguments.types import Array, ArrayT, Like
from ..call.description import FLOAT32, Masks
from ..ground import layouts
from ..ground.checks import check_integer, first_of, lie_within
from ..ground.libraries import library_of
from ..language.noise import MASKS, TOKENS, Noise, lower
from ..operations.words import drawing, words
from .transitions import Transition

DTYPES = ("int64", "int32", "uint8", "uint16")  # of tokens
MOST = 1 << 31  # tokens of a vocabulary


def q_mask(
    ids: Like[ArrayT], p: Any, noise: Noise | Sequence[Noise], mask_id: SupportsIndex, *, where: Any = None,
    block: int | None = None, lengths: Any = None, complement: bool = False, batched: bool = True,
    out: Like[ArrayT] | None = None,
) -> tuple[ArrayT, ArrayT]:  # fmt: skip
    """Masks each token with probability p: the forward process of masked diffusion, q(x_t | x_0) with alpha_t = 1 - p
    (Sahoo et al. 2024, "Simple and effective masked diffusion language models", section 3.2.1; Austin et al. 2021,
    D3PM's absorbing state; LLaDA's ``forward_process``).

    Args:
        ids: the tokens (B, L), or (B, ..): int64, int32, uint8 or uint16, of NumPy, torch or JAX. Axis 0 is the batch.
        p: the probability: a number, (B,) or (B, 1) for each sample, or (B, L); with `block` one for each block, (B,
            blocks). It is rounded to a multiple of 2^-32; 0 masks nothing and 1 everything.
        noise: a Noise, or a list of one for each sample. Position l of a sample takes element l of stream 14.
        mask_id: the token that stands for the mask. It must fit ids' dtype.
        where: bool, of a shape that broadcasts to ids': the tokens that may be masked, such as those of the answer.
        block: the number of tokens in a block, which share a p. The last block of a sample may be shorter.
        lengths: (B,), how many positions of each sample are no padding. Padding is never masked.
        complement: mask exactly the other tokens, among those that may be masked.
        batched: False makes all ids one sample: (L,), or of any shape, and p, block's p and lengths have no axis B.
        out: an array of ids' shape and dtype to write x_t to, C-contiguous; it may be ids itself.

    Returns:
        The pair (x_t, masked), the tokens, and a bool for each that says whether it is masked, of ids' kind and shape.

    Raises:
        TypeError, ValueError, OverflowError: the message says what was given and what was expected; nothing is written
            then.

    >>> ids = np.arange(8).reshape(2, 4)
    >>> x_t, masked = nf.q_mask(ids, 0.5, nf.Noise(7), mask_id=99)
    >>> x_t.tolist()
    [[99, 99, 99, 3], [4, 99, 6, 7]]
    >>> others, _ = nf.q_mask(ids, 0.5, nf.Noise(7), mask_id=99, complement=True)
    >>> others.tolist()
    [[0, 1, 2, 99], [99, 5, 99, 99]]
    >>> nf.q_mask(np.arange(4, 8), 0.5, nf.Noise(7, sample=1), mask_id=99, batched=False)[0].tolist()
    [4, 99, 6, 7]
    """
    library = None if type(ids) is np.ndarray else library_of(ids)
    if (library is None or not library.is_traced()) and block is None and lengths is None:
        pair: tuple[Any, Any] = backends.fast_tokens(ids, p, noise, mask_id, False, where, complement, batched, out)
        if pair is not NotImplemented:
            return pair
    if library is not None:
        options: dict[str, Any] = {"where": where, "block": block, "lengths": lengths, "complement": complement}
        return library.q_mask(ids, p, noise, mask_id, batched=batched, out=out, **options)
    tokens = tokens_of("ids", ids, batched, anywhere=True)
    mask = token_of("mask_id", mask_id, tokens.dtype)
    device = arrays.device_of(tokens)
    drawn = segments("p", p, tokens.shape, block, batched, device)
    allowed = allowed_of(where, lengths, tokens.shape, batched, device)
    return _changed(tokens, drawn, noise, allowed, batched, out, mask=mask, complement=bool(complement))


def q_uniform(
    ids: Like[ArrayT], p: Any, noise: Noise | Sequence[Noise], vocabulary: SupportsIndex, *, where: Any = None,
    block: int | None = None, lengths: Any = None, batched: bool = True, out: Like[ArrayT] | None = None,
) -> tuple[ArrayT, ArrayT]:  # fmt: skip
    """Draws each token anew with probability p, uniformly from the whole vocabulary: q(x_t | x_0) = (1 - p) x_0 + p / V
    (Austin et al. 2021, "Structured denoising diffusion models in discrete state-spaces", appendix A.2.1; Hoogeboom et
    al. 2021, multinomial diffusion). A token that is drawn anew may be the one that stood there.

    Args:
        ids: as in `q_mask`; all of them lie in [0, vocabulary), also those that stay.
        p, noise, where, block, lengths, batched, out: as in `q_mask`. Stream 14 decides which tokens are drawn anew, as
            it does there, and stream 15 draws them: element l of a sample for position l.
        vocabulary: the number of tokens V, at most 2^31. With the 64 bits u of position l the token is floor(u V /
            2^64).

    Returns:
        The pair (x_t, changed), the tokens, and a bool for each that says whether it was drawn anew, of ids' kind and
        shape.

    Raises:
        TypeError, ValueError, OverflowError: the message says what was given and what was expected; nothing is written
            then.

    >>> x_t, changed = nf.q_uniform(np.zeros((1, 6), np.int64), 0.5, nf.Noise(7), vocabulary=50)
    >>> x_t.tolist(), changed.astype(int).tolist()
    ([[37, 28, 26, 0, 0, 0]], [[1, 1, 1, 0, 0, 0]])
    """
    library = None if type(ids) is np.ndarray else library_of(ids)
    if (library is None or not library.is_traced()) and block is None and lengths is None:
        pair: tuple[Any, Any] = backends.fast_tokens(ids, p, noise, vocabulary, True, where, False, batched, out)
        if pair is not NotImplemented:
            return pair
    if library is not None:
        options: dict[str, Any] = {"where": where, "block": block, "lengths": lengths, "batched": batched, "out": out}
        return library.through(q_uniform, ids, p, noise, vocabulary, **options)
    tokens = tokens_of("ids", ids, batched, anywhere=True)
    v = vocabulary_of(vocabulary, tokens.dtype)
    if not arrays.on_device(tokens):
        check_within("ids", tokens if batched else tokens[0], v)
    device = arrays.device_of(tokens)
    drawn = segments("p", p, tokens.shape, block, batched, device)
    allowed = allowed_of(where, lengths, tokens.shape, batched, device)
    return _changed(tokens, drawn, noise, allowed, batched, out, vocabulary=v)


def _changed(
    tokens: Array, drawn: tuple[NDArray[np.float64], int], noise: Any, allowed: NDArray[np.bool_] | None, batched: bool,
    out: Any, *, mask: int = 0, complement: bool = False, vocabulary: int = 0,
) -> tuple[Any, Any]:  # fmt: skip
    """Returns x_t, in which some tokens are the mask or, with a vocabulary, drawn anew; and a bool for each that is."""
    (chances, segment), shape, own = drawn, tokens.shape, tokens.shape[not batched :]
    names = names_for(noise, shape, MASKS)
    on_host = isinstance(tokens, np.ndarray)
    empty = arrays.allocator(tokens)
    written = _result(empty(own, tokens.dtype) if out is None else out, tokens, allowed, batched)
    result, changed = written.reshape(shape), empty(shape, np.dtype(np.bool_))
    pair = written, changed.reshape(own)
    if not tokens.size:
        return pair
    flags, bits = changed.view(np.uint8) if on_host else changed, mask % (1 << 64)
    call = Masks(
        drawing(shape, names, flags), tokens, result, flags, allowed, chances, segment, bits, vocabulary,
        tokens.itemsize, complement,
    )  # fmt: skip
    if backends.of(tokens).run(call) is not NotImplemented:
        return pair
    chosen = below(shape, names, chances, segment)
    np.logical_and(chosen != complement, True if allowed is None else allowed, out=changed)
    new = uniform_tokens(shape, noise, vocabulary) if vocabulary else np.full(shape, mask)
    replace(result, tokens, changed, new)
    return pair


def _result(out: Any, tokens: Array, allowed: NDArray[np.bool_] | None, batched: bool) -> Array:
    """Returns where to write the new tokens; it may be where the old ones lie."""
    result = arrays.output("out", out, tokens.shape if batched else tokens.shape[1:], tokens.dtype)
    arrays.one_place([("ids", tokens), ("out", result)])
    arrays.check_overlap([("out", result)], [tokens] if allowed is None else [tokens, allowed])
    return result


def q_transition(
    ids: Like[ArrayT], Q: Any, noise: Noise | Sequence[Noise], *, where: Any = None, lengths: Any = None,
    batched: bool = True, out: Like[ArrayT] | None = None,
) -> ArrayT:  # fmt: skip
    """Draws x_t from Cat(x_0 Q): token i becomes j with probability Q[i, j] (Austin et al. 2021, "Structured denoising
    diffusion models in discrete state-spaces", section 3).

    Args:
        ids: as in `q_mask`; all of them lie in [0, V).
        Q: the probabilities (V, V), or (B, V, V) with one matrix for each sample: at least 0, the rows with sums of 1
            to 1e-6. They are divided by their sums, and cumulated probabilities are rounded to multiples of 2^-32. Or a
            `discrete.Transition`, which needs no matrix: `discrete.absorbing` draws as `q_mask`, `discrete.uniform` as
            `q_uniform`. `discrete.gaussian` gives a matrix.
        noise: as in `q_mask`. A matrix takes element l of stream 15 for position l.
        where, lengths, batched, out: as in `q_mask`.

    Returns:
        The tokens x_t, of ids' kind, shape and dtype.

    Raises:
        TypeError, ValueError, OverflowError: the message says what was given and what was expected; nothing is written
            then.

    >>> ids = np.arange(6).reshape(1, 6)
    >>> nf.q_transition(ids, nf.discrete.gaussian(0.5, 6), nf.Noise(7)).tolist()
    [[1, 1, 2, 3, 4, 3]]
    >>> nf.q_transition(ids, nf.discrete.absorbing(0.5, mask_id=6), nf.Noise(7)).tolist()
    [[6, 6, 6, 3, 4, 5]]
    """
    if isinstance(Q, Transition):
        draw = q_mask if Q.kind == "absorbing" else q_uniform
        return draw(ids, Q.p, noise, Q.token, where=where, lengths=lengths, batched=batched, out=out)[0]
    if type(ids) is not np.ndarray and (other := library_of(ids)) is not None:
        options: dict[str, Any] = {"where": where, "lengths": lengths, "batched": batched, "out": out}
        return other.through(q_transition, ids, Q, noise, **options)
    tokens = tokens_of("ids", ids, batched)
    shape, matrix = tokens.shape, _matrix(Q, tokens.shape[0])
    v = vocabulary_of(matrix.shape[-1], tokens.dtype)
    check_within("ids", tokens if batched else tokens[0], v)
    allowed = allowed_of(where, lengths, shape, batched)
    names = names_for(noise, shape, TOKENS)
    result = _result(out, tokens, allowed, batched)
    counts, size = cumulated(matrix.reshape(-1, v)), math.prod(shape[1:])
    drawn, old, to = words(shape, names).reshape(-1), tokens.reshape(-1), result.reshape(-1)
    for at in range(0, old.size, _NEAR):  # pieces of it are quicker, and Ctrl-C is heard between two
        part = slice(at, at + _NEAR)
        row = old[part].astype(np.int64)
        if matrix.ndim == 3:
            row += np.arange(at, at + len(row)) // size * v
        new = chosen_by(counts, row, drawn[part])
        replace(to[part], old[part], np.True_ if allowed is None else allowed.reshape(-1)[part], new)
    return result


def _matrix(Q: Any, batch: int) -> NDArray[np.float64]:
    matrix = probabilities("Q", Q)
    if matrix.ndim not in (2, 3) or matrix.shape[-1] != matrix.shape[-2] or (matrix.ndim == 3 and len(matrix) != batch):
        expected = f"(V, V), or ({batch}, V, V) with a matrix for each sample"
        raise ValueError(f"Q: expected shape {expected}, got {matrix.shape}")
    sums = matrix.sum(axis=-1)
    if (far := abs(sums - 1) > 1e-6).any():
        at = tuple(np.argwhere(far)[0].tolist())
        raise ValueError(f"Q[{', '.join(map(str, at))}]: expected a sum of 1, got {sums[at]:.9g}")
    return matrix


def cumulated(matrix: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Returns rint(2^32 F(b)) for each row of probabilities, F(b) that of token b or one before it."""
    reached = np.cumsum(matrix, axis=-1)
    reached /= reached[..., -1:].copy()
    counts = np.rint(reached * 2.0**32).astype(np.uint64)
    counts[..., -1] = 1 << 32
    return counts


def chosen_by(counts: NDArray[np.uint64], row: NDArray[np.int64], drawn: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Returns the first b with word < counts[row, b], by halving for all positions at once."""
    v, word = counts.shape[-1], drawn.astype(np.uint64)
    flat, begin = counts.reshape(-1), row * v
    low, high = np.zeros(row.shape, np.int64), np.full(row.shape, v - 1)
    for _ in range(max(1, (v - 1).bit_length())):
        middle = (low + high) >> 1
        inside = word < flat[begin + middle]
        high = np.where(inside, middle, high)
        low = np.where(inside, low, np.minimum(middle + 1, high))
    return low


# ---- words -------------------------------------------------------------------------------------------------


def below(shape: tuple[int, ...], names: Sequence[Noise], p: NDArray[np.float64], segment: int) -> NDArray[np.bool_]:
    """Returns where a word lies below rint(2^32 p), p that of its segment."""
    drawn, chosen = words(shape, names).reshape(-1), backends.empty(shape, np.dtype(np.bool_))
    step = max(1, _NEAR // segment)
    for first in range(0, len(p), step):
        part = slice(first * segment, (first + step) * segment)
        counts = np.rint(p[first : first + step] * 2.0**32)
        np.less(drawn[part].reshape(-1, segment), counts[:, None], out=chosen.reshape(-1)[part].reshape(-1, segment))
    return chosen


def uniform_tokens(shape: tuple[int, ...], noise: Any, v: int) -> NDArray[np.int64]:
    """Returns floor(u V / 2^64) of each position, u the 64 bits of stream 15."""
    return scaled_words(shape, names_for(noise, shape, TOKENS), v)


def scaled_words(shape: tuple[int, ...], names: Sequence[Noise], v: int) -> NDArray[np.int64]:
    """Returns floor(u V / 2^64) of the 64 bits u of checked keys."""
    high, low = words(shape, names).reshape(-1), words(shape, [lower(name) for name in names]).reshape(-1)
    n, shift = np.uint64(v), np.uint64(32)
    scaled = backends.empty(shape, np.dtype(np.int64))
    for at in range(0, high.size, _NEAR):
        part = slice(at, at + _NEAR)
        scaled.reshape(-1)[part] = (high[part] * n + (low[part] * n >> shift)) >> shift
    return scaled


def replace(result: Array, tokens: Array, changed: Any, new: NDArray[np.int64]) -> None:
    """Writes the new tokens where they changed, and the old ones elsewhere, without branches that are often wrong."""
    to, old, new_flat, chosen = result.reshape(-1), tokens.reshape(-1), new.reshape(-1), np.reshape(changed, -1)
    for at in range(0, old.size, _NEAR):
        part = slice(at, at + _NEAR)
        other = new_flat[part].astype(old.dtype)
        other ^= old[part]
        other *= chosen[part] if chosen.size > 1 else chosen
        np.bitwise_xor(old[part], other, out=to[part])


_NEAR = 1 << 14  # tokens whose numbers stay in the near caches


def names_for(noise: Any, shape: tuple[int, ...], stream: int) -> tuple[Noise, ...]:
    """Returns the Noise or Noises on this stream, checked for tokens of this shape."""
    if arrays.is_array(noise):
        raise TypeError("noise: expected a Noise or a list of them, as its words choose the tokens, got an array")
    names, _ = names_or_array(noise, shape, FLOAT32, True, stream)
    return names


# ---- arguments ---------------------------------------------------------------------------------------------


def tokens_of(name: str, ids: Any, batched: bool = True, anywhere: bool = False) -> Array:
    """Returns tokens (B, ..) that a kernel can read; with B = 1 where they are one sample. anywhere: they may be a
    tensor of a device."""
    if not arrays.is_array(ids):
        raise TypeError(f"{name}: expected {arrays.wanted(ids, 'NumPy or torch')}, got {type(ids).__name__}")
    tokens = arrays.as_array(name, ids, DTYPES)
    if not isinstance(tokens, np.ndarray) and not (anywhere and arrays.of_triton(tokens)):
        raise NotImplementedError(f"{name}: expected tokens in host memory, got an array on a device; copy it first")
    if tokens.ndim < 1 + bool(batched):
        expected = "(B, L), axis 0 the batch" if batched else "(L,), one sample"
        hint = f"; for one sequence pass {name}[None], or batched=False to operations that have it" if batched else ""
        raise ValueError(f"{name}: expected tokens {expected}, got shape {tokens.shape}{hint}")
    return arrays.contiguous(tokens if batched else tokens.reshape(1, *tokens.shape))


def token_of(name: str, token_id: Any, dtype: np.dtype[Any]) -> int:
    """Returns a token that fits the dtype."""
    token, range_ = check_integer(name, token_id), np.iinfo(dtype)
    if not range_.min <= token <= range_.max:
        raise OverflowError(f"{name} = {token}: does not fit ids of {dtype}, {range_.min} .. {range_.max}")
    return token


def vocabulary_of(vocabulary: Any, dtype: np.dtype[Any]) -> int:
    v = check_integer("vocabulary", vocabulary)
    if not 1 <= v <= min(MOST, np.iinfo(dtype).max + 1):
        most = "2^31" if np.iinfo(dtype).max >= MOST - 1 else str(np.iinfo(dtype).max + 1)
        raise ValueError(f"vocabulary = {v}: expected from 1 to {most} tokens for ids of {dtype}")
    return v


def check_within(name: str, tokens: Array, v: int) -> None:
    """Raises ValueError, with the place, if a token lies outside of [0, v)."""
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < v:
        first = first_of(name, (tokens < 0) | (tokens >= v), tokens)
        raise ValueError(f"{first}: expected tokens of the vocabulary, 0 .. {v - 1}")


def probabilities(name: str, p: Any) -> NDArray[np.float64]:
    """Returns probabilities as float64."""
    values = arrays.host_floats(name, p)
    if not all(lie_within(values[part], 0.0, 1.0) for part in layouts.pieces(values.shape)):
        first = first_of(name, ~((values >= 0) & (values <= 1)), values)
        raise ValueError(f"{first}: expected a probability from 0 to 1")
    return values


def segments(
    name: str, p: Any, shape: tuple[int, ...], block: int | None, batched: bool, device: int | None = None
) -> tuple[NDArray[np.float64], int]:
    """Returns p of each segment of the tokens (B, ..), and the number of tokens in a segment. On the tokens' device p
    stays there, and is not looked at."""
    stays, length = block is None and arrays.is_there(p, device), math.prod(shape[1:])
    values = p.astype(np.dtype(np.float64)) if stays else probabilities(name, p)
    p_shape, shape_of_ids = values.shape, shape if batched else shape[1:]
    if block is None:
        while values.ndim and values.shape[-1] == 1:  # (B, 1) is a number for each sample
            values = values.reshape(values.shape[:-1])
        if shape_of_ids[: values.ndim] != values.shape:
            raise ValueError(f"{name}: expected a number or a prefix of ids' shape {shape_of_ids}, got {p_shape}")
        return arrays.contiguous(values).reshape(-1), max(1, math.prod(shape_of_ids[values.ndim :]))
    size = check_integer("block", block, 1)
    size = min(size, max(length, 1))
    blocks = -(-length // size)
    if p_shape != (expected := (*shape_of_ids[: int(batched)], blocks)):
        raise ValueError(f"{name}: expected shape {expected}, one for each block of {size} tokens, got {p_shape}")
    if length % size == 0:
        return arrays.contiguous(values).reshape(-1), size
    return np.repeat(values.reshape(-1, blocks), size, axis=1)[:, :length].reshape(-1), 1


def allowed_of(
    where: Any, lengths: Any, shape: tuple[int, ...], batched: bool = True, device: int | None = None
) -> NDArray[np.bool_] | None:
    """Returns the tokens (B, ..) that may change, or None for all. What lies on the tokens' device stays there."""
    allowed: NDArray[np.bool_] | None = None
    if where is not None:
        own_shape = shape if batched else shape[1:]
        given = where if arrays.is_there(where, device) else arrays.host_numbers("where", where)
        allowed = arrays.spread_bools("where", given, own_shape).reshape(shape)
    if lengths is None:
        return allowed
    ends, length, expected = arrays.host_numbers("lengths", lengths), math.prod(shape[1:]), shape[: int(batched)]
    if ends.dtype.kind not in "iu" or ends.shape != expected:
        raise TypeError(f"lengths: expected integers of shape {expected}, got {ends.dtype} of shape {ends.shape}")
    ends = ends.reshape(shape[:1])
    if ends.size and not 0 <= int(ends.min()) <= int(ends.max()) <= length:
        b = int(np.flatnonzero((ends < 0) | (ends > length))[0])
        raise ValueError(f"lengths[{b}] = {ends[b]}: expected from 0 to {length} positions")
    inside = (np.arange(length) < ends[:, None]).reshape(shape)
    return inside if allowed is None else allowed & inside
