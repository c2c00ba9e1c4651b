# SPDX-License-Identifier: Apache-2.0
"""The reference backend: spec.py on NumPy. It defines the bits; it is readable rather than fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..call.description import ACCUMULATORS, LOSS_CHUNK, Array, CrossEntropy, Loss, Philox, Race, Step, Walk
from ..ground.float_mode import float_mode
from ..language.levels import LEVELS, levels_of
from ..language.noise import Noise
from ..language.rows import AFFINE, BOUNDS, CLEAN, HIGH, LOW, ORDER, TIMES_CLEAN, TIMES_ROOT, D, X, Z
from . import categorical_rows as categorical_rows
from . import runner, spec

fast_row = fast_random = fast_mse = fast_density = fast_density_gradient = fast_divergence = fast_tokens = None
fast_categorical = fast_cross_entropy = fast_token_step = fast_walk = fast_impulse = fast_rician = fast_factors = None
fast_iso = fast_photons = None
empty: Callable[..., NDArray[Any]] = np.empty
tests_itself = False

CHUNK = 1 << 15  # elements at a time: some forty temporary arrays of 256 KiB at most

# ---- fma ---------------------------------------------------------------------------------------------------
# NumPy has none. The sum is first rounded to odd, with digits to spare: an inexact sum goes to the neighbour whose last
# bit is 1. It then never looks like a tie, and the following rounding is that of an fma. Boldo and Melquiond,
# "Emulation of a FMA and correctly rounded sums" (IEEE Trans. Comput., 2008).


def fma(a: Any, b: Any, c: Any) -> Array:
    """Returns a b + c, rounded once to nearest even: IEEE-754's fusedMultiplyAdd, for float32 or float64.

    It holds for all values: subnormals, overflow, infinities, signed zeros. Sign and payload of a NaN are not promised.
    """
    with np.errstate(all="ignore"):
        return fma32(a, b, c) if np.result_type(a, b, c) == np.float32 else fma64(a, b, c)


def fma32(a: Any, b: Any, c: Any) -> Array:
    """Computes float32's fma. The product is exact in float64, whose 53 bits exceed the 24 + 2 that the rounding
    needs."""
    return odd_sum(np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)).astype(np.float32)


def fma64(a: Any, b: Any, c: Any) -> Array:
    """Computes float64's fma: exact product, exact sums, round to odd. If exponents leave no room, it goes one by
    one."""
    a, b, c = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (a, b, c)))
    product, tail = two_product(a, b)
    middle, rest1 = two_sum(c, tail)
    upper, rest2 = two_sum(product, middle)
    result = np.asarray(upper + odd_sum(rest1, rest2))

    # If the product is 0, infinite or NaN by itself, the sum is the only rounding.
    plain = (a == 0) | (b == 0) | ~np.isfinite(a) | ~np.isfinite(b)
    np.copyto(result, product + c, where=plain)
    # Splitting needs |a|, |b| < 2^996, and the tail, down to 2^-105 |product|, must not underflow.
    room = np.maximum(abs(a), abs(b)) <= 2.0**990
    room &= (abs(product) >= 2.0**-960) & (np.maximum(abs(product), abs(c)) <= 2.0**1000)
    rare = ~(plain | room)
    if rare.any():
        result[rare] = np.frompyfunc(exact_fma, 3, 1)(a[rare], b[rare], c[rare])
    return result


def exact_fma(a: float, b: float, c: float) -> float:
    """Computes the fma for finite a, b other than 0: rational arithmetic, rounded once by a division of integers."""
    if not math.isfinite(c):
        return c
    total = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        return total.numerator / total.denominator
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns the rounded product and its exact error: Dekker (1971), with halves of 26 bits after Veltkamp."""
    product = a * b
    (a1, a2), (b1, b2) = halves(a), halves(b)
    return product, a2 * b2 - (((product - a1 * b1) - a2 * b1) - a1 * b2)


def halves(a: Array) -> tuple[Array, Array]:
    shifted = a * (2.0**27 + 1)
    upper = shifted - (shifted - a)
    return upper, a - upper


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns the rounded sum and its exact error: Knuth (TAOCP 2, 4.2.2)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def odd_sum(a: Array, b: Array) -> Array:
    """Returns a + b in float64, rounded to odd."""
    total, error = two_sum(a, b)
    bits = total.view(np.int64)
    # An inexact sum that ended in 0 moves one unit towards the exact one; its bits count up away from 0.
    inexact = (error < 0) | (error > 0)  # false for NaN, the error of an infinite sum
    unit = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact & (bits & 1 == 0), bits + unit, bits).view(np.float64)


SPEC = spec.bind(fma, np.where, some=np.any)

# ---- noise -------------------------------------------------------------------------------------------------


def elements(noise: Noise, shape: tuple[int, ...], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the numbers in the field for places in a sample of `shape`: the places, or those of the window."""
    if not noise.window_shape:
        return place
    index = np.unravel_index(place, shape)
    moved = tuple(i + start for i, start in zip(index, noise.window_start, strict=True))
    return np.asarray(np.ravel_multi_index(moved, noise.window_shape), np.int64)


def field(
    call: Step, noise: Noise, entry: NDArray[np.int64], place: NDArray[np.int64], later: Any, real: type
) -> Array:
    """Returns the values of one Noise, by entry of axis 0, place in the sample and steps after noise.step."""
    element = elements(noise, call.sample_shape, place)
    first = noise.sample
    sample = np.uint64(first) + entry.astype(np.uint64) if isinstance(first, int) else first[entry]
    counter = SPEC.counter(element, noise.step + later, sample, noise.stream, 0)
    words = np.stack(np.broadcast_arrays(*counter), axis=-1)
    # Neighbours share a block: each block is made once.
    new = np.ones(len(words), np.bool_)
    new[1:] = np.any(words[1:] != words[:-1], axis=1)
    key = np.array([[noise.seed & 0xFFFFFFFF, noise.seed >> 32]], np.uint32)
    values = block_values(words[new], key, call.draw, real)
    return np.asarray(values[np.cumsum(new) - 1, element & 3])


def block_values(counter: NDArray[np.uint32], key: NDArray[np.uint32], draw: str, real: type) -> Array:
    """Returns the four values of each block, (n, 4)."""
    w = SPEC.philox4x32(*counter.T, *key.T)
    if real is np.float32:
        words: list[tuple[Any, ...]] = [(word,) for word in w]
        normal_pair, uniform = SPEC.normal_pair32, SPEC.uniform32
    else:  # the same counter with low = 1 has the lower halves
        v = SPEC.philox4x32(*(counter | np.array([0, 0, 0, 1 << 31], np.uint32)).T, *key.T)
        words = list(zip(w, v, strict=True))
        normal_pair, uniform = SPEC.normal_pair64, SPEC.uniform64
    if draw == "words":
        values = list(w)
    elif draw == "uniform":
        values = [uniform(*word) for word in words]
    else:
        values = [*normal_pair(*words[0], *words[1]), *normal_pair(*words[2], *words[3])]
    return np.stack(values, axis=-1).reshape(-1, 4)  # before NumPy 2, np.float64 of one element is a scalar


def drawn(call: Step, at: NDArray[np.int64], later: Any, real: type) -> Array:
    """Returns the noise of the flat elements `at` (ascending); `later` is one number or one for each of them."""
    entry, place = np.divmod(at, call.size)
    if len(call.noise) == 1:
        return field(call, call.noise[0], entry, place, later, real)
    later = np.broadcast_to(later, at.shape)
    parts = []
    for mine in np.split(np.arange(len(at)), np.flatnonzero(np.diff(entry)) + 1):
        noise = call.noise[entry[mine[0]]]  # row b equals the call of this row alone with this Noise
        parts.append(field(call, noise, 0 * mine, place[mine], later[mine], real))
    return np.concatenate(parts)


# ---- calls -------------------------------------------------------------------------------------------------


@float_mode()
def step(call: Step) -> None:
    """Computes the outputs of one pass."""
    total = call.batch * call.size
    real = call.arithmetic.type
    rows = call.rows.table.astype(real)
    with np.errstate(all="ignore"):
        for begin in range(0, total, CHUNK):
            at = np.arange(begin, min(begin + CHUNK, total))
            # all are computed before any is stored, because an output may be an input
            results = step_chunk(call, rows, at, real) if call.draw != "words" else transitions(call, at)
            for output, result in zip(call.outputs, results, strict=True):
                if output is not None:
                    name = levels_of(output.dtype)
                    stored = result if name is None else SPEC.to_level(result, float(LEVELS[name]))
                    output.reshape(-1)[at[0] : at[-1] + 1] = stored


def step_chunk(call: Step, rows: Array, at: NDArray[np.int64], real: type) -> list[Array | None]:
    row = row_of(call, at)
    values = values_of(call, row, at, real)
    wanted = [output is not None for output in call.outputs]
    zeros: Array = np.zeros(len(at), real)
    return combined(SPEC, call.rows.active, call.masked, wanted, partial(_column, rows, row), values, zeros)


def _column(rows: Array, row: NDArray[np.int64], column: int) -> Array:
    return np.asarray(rows[row, column])


def combined(
    of: SimpleNamespace, active: int, masked: bool, wanted: Sequence[bool], rows: Callable[[int], Any],
    values: dict[int, Any], zeros: Any,
) -> list[Any]:  # fmt: skip
    """Returns the outputs of elements, from the values by slot, and a function from a column to its numbers in the
    rows.

    of: the functions of spec.py, for the arrays at hand.
    """

    def form(first: int, slots: int) -> Any:
        return affine_form(of, active, rows, values, zeros, first, slots)

    if masked:
        v = form(CLEAN, D)
        return [form(AFFINE[0], Z + 1) + of.within(v, rows(LOW), rows(HIGH), form(AFFINE[1], Z + 1), zeros), None, None]
    scaled = active & (TIMES_CLEAN | TIMES_ROOT)
    read = [want and active >> (first + 1 + D) & 1 for want, first in zip(wanted, AFFINE, strict=True)]
    values = dict(values)
    if any(read) or scaled:
        values[D] = form(CLEAN, D)
        if active & BOUNDS:
            values[D] = of.clamp(values[D], rows(LOW), rows(HIGH))
    if scaled:
        values[Z] = (of.times if scaled == TIMES_CLEAN else of.times_root)(values[Z], values[D])
    return [form(first, Z + 1) if want else None for want, first in zip(wanted, AFFINE, strict=True)]


def transitions(call: Step, at: NDArray[np.int64]) -> list[Array | None]:
    """Returns the bytes that replace x's bytes, or the words themselves."""
    x, tables = call.inputs[X], call.transitions
    word = drawn(call, at, 0, np.float32)
    if tables is None:
        return [word.view(np.float32), None, None]
    assert x is not None
    level = 256 * row_of(call, at) + x.reshape(-1)[at]
    first = tables["first"].reshape(-1)[256 * level + (word >> 24)].astype(np.int64)
    return [SPEC.transition(word, first, tables["last"].reshape(-1), 256 * level), None, None]


def row_of(call: Step, at: NDArray[np.int64]) -> NDArray[np.int64]:
    if call.by_level:
        x = call.inputs[X]
        assert x is not None
        return np.asarray(x.reshape(-1)[at], np.int64)
    in_turn = at // call.size * call.period + at % call.size % call.period if call.period else at // call.segment
    return np.asarray(call.index[in_turn])


def values_of(call: Step, row: NDArray[np.int64], at: NDArray[np.int64], real: type) -> dict[int, Array]:
    """Returns the values at consecutive elements `at`, by slot: inputs, and the drawn noise."""
    values: dict[int, Array] = {
        slot: flat.reshape(-1)[at[0] : at[-1] + 1].astype(real)
        for slot, flat in enumerate(call.inputs)
        if flat is not None
    }
    if call.draw != "none":
        values[Z] = drawn(call, at, row if call.step_by_index else 0, real)
    return values


def affine_form(
    of: SimpleNamespace, active: int, rows: Callable[[int], Any], values: dict[int, Any], zeros: Any, first: int,
    slots: int,
) -> Any:  # fmt: skip
    """Returns the linear combination whose constant is column `first`."""
    terms = [slot for slot in ORDER if slot < slots and active >> (first + 1 + slot) & 1]
    constant = bool(active >> first & 1)
    c = [rows(first + 1 + slot) for slot in terms]
    return of.affine(constant, rows(first) if constant else zeros, len(terms), c, [values[slot] for slot in terms])


@float_mode()
def walk(call: Walk) -> None:
    """Computes the kept times of a random walk. Only stored values are rounded to 16 bits, not the state."""
    first, x0, out = call.first, call.first.inputs[X], call.first.outputs[0]
    assert x0 is not None
    assert out is not None
    total = first.batch * first.size
    real = first.arithmetic.type
    x_column, z_column = AFFINE[0] + 1 + X, AFFINE[0] + 1 + Z
    rows = first.rows.table.astype(real)
    with np.errstate(all="ignore"):
        for begin in range(0, total, CHUNK):
            at = np.arange(begin, min(begin + CHUNK, total))
            x = x0.reshape(-1)[at[0] : at[-1] + 1].astype(real)
            for t, kept in enumerate(call.keep):
                c = (rows[t, z_column], rows[t, x_column])
                x = SPEC.affine(False, real(0), 2, c, (drawn(first, at, t, real), x))
                if kept >= 0:
                    out.reshape(-1)[kept * total + at] = x


@float_mode()
def loss(call: Loss) -> None:
    """Computes sums of squared residuals and their gradient."""
    residual = call.residual
    total = residual.batch * residual.size
    real = residual.arithmetic.type
    rows = residual.rows.table.astype(real)
    first = np.arange(0, total, call.piece)[:, None] + np.arange(0, call.piece, LOSS_CHUNK)
    first = np.append(first.ravel(), total)  # the first element of each chunk
    chunk_sums = np.empty(len(first) - 1)
    together = max(1, CHUNK // min(call.piece, LOSS_CHUNK))
    weight = call.weight()
    factor = call.factor(weight)
    with np.errstate(all="ignore"):
        for c in range(0, len(chunk_sums), together):
            edges = first[c : c + together + 1]
            at = np.arange(edges[0], edges[-1])
            row = residual.index[at // residual.segment]
            values, zeros = values_of(residual, row, at, real), np.zeros(len(at), real)
            column = partial(_column, rows, row)
            r = affine_form(SPEC, residual.rows.active, column, values, zeros, AFFINE[0], Z + 1)
            if (gradient := residual.outputs[0]) is not None:
                assert factor is not None
                gradient.reshape(-1)[at[0] : at[-1] + 1] = factor[at // call.piece].astype(real) * r
            if call.losses is not None:
                chunk_sums[c : c + together] = squares(r, edges - edges[0])
        if call.losses is not None:
            sums = sums_of_samples(chunk_sums.reshape(residual.batch, -1, call.chunks), weight)
            call.losses[...] = (sums if call.losses.ndim else np.cumsum(sums)[-1]) / call.n  # cumsum adds in order


def squares(r: Array, edges: NDArray[np.int64]) -> Array:
    """Returns for each chunk r[edges[i] : edges[i + 1]] the sum of its squares, in r's arithmetic."""
    lengths = np.diff(edges)
    padded = np.zeros((len(lengths), -(-lengths.max() // ACCUMULATORS) * ACCUMULATORS), r.dtype)
    chunk = np.repeat(np.arange(len(lengths)), lengths)
    padded[chunk, np.arange(len(r)) - edges[chunk]] = r
    accumulators = np.zeros((ACCUMULATORS, len(lengths)), r.dtype)
    for begin in range(0, padded.shape[1], ACCUMULATORS):
        accumulators = SPEC.add_square(accumulators, padded[:, begin : begin + ACCUMULATORS].T)
    return np.asarray(SPEC.sum_accumulators(accumulators))


def sums_of_samples(chunk_sums: Array, weight: Array | None) -> Array:
    """Adds (batch, pieces, chunks) sums to (batch,)."""
    batch, pieces, chunks = chunk_sums.shape
    weight = np.ones((batch, pieces)) if weight is None else weight.reshape(batch, pieces)
    sums = np.zeros(batch)
    for p in range(pieces):
        piece = np.zeros(batch)
        for c in range(chunks):
            piece = piece + chunk_sums[:, p, c]
        sums = SPEC.add_piece(sums, weight[:, p], piece)
    return sums


# ---- categories --------------------------------------------------------------------------------------------


@float_mode()
def race(call: Race) -> None:
    """Draws a token of each row, and computes what is asked for."""
    with np.errstate(all="ignore"):
        for row in range(call.rows):
            categorical_rows.race_in_row(call, row, CATEGORIES)


def scores(
    x: Array, token: NDArray[np.int64], position: int, beta: float, counter: tuple[int, int, int], seed: int
) -> Array:
    """Returns the scores of a row's tokens; counter: step, sample, stream."""
    words, element = [], SPEC.race_element(position, token)
    key = SPEC.race_key(position, np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32))
    for low in (0, 1):
        blocks = np.broadcast_arrays(*SPEC.counter(element, *counter, low))
        found = SPEC.philox4x32(*blocks, *key)
        words.append(np.stack(found, axis=-1)[np.arange(len(x)), token & 3])
    return np.asarray(SPEC.race_score(x, np.float64(beta), *words))


@float_mode()
def cross_entropy(call: CrossEntropy) -> None:
    """Computes the losses of rows, and their gradient."""
    with np.errstate(all="ignore"):
        for row in range(call.rows):
            categorical_rows.cross_entropy_in_row(call, row, CATEGORIES)


def terms(x: Array, scale: categorical_rows.Scale, largest: Any) -> tuple[Array, Any]:
    """Returns e^(x / temperature) in units that depend on the largest logit, and that of the largest."""
    return shifted_terms(x, scale, largest)[:2]


def shifted_terms(x: Array, scale: categorical_rows.Scale, largest: Any) -> tuple[Array, Array, Array]:
    """Returns the terms, that of the largest logit, and how far the logits are behind it (float64)."""
    shift = np.where(abs(largest * scale.high) < 512, np.float32(0), largest)
    top = largest - shift
    floor = fma(top, scale.rate, spec.ROUND32) - np.float32(126)
    z = np.maximum(x - shift, top - scale.reach)
    found, unit = (SPEC.chunk_term32(a, scale.high, scale.low, scale.rate, floor) for a in (z, top))
    return found, unit, top.astype(np.float64) - z


def chunk_sums(chunk: Array, scale: categorical_rows.Scale, largest: Array) -> tuple[Array, Array]:
    """Returns of chunks, up to (n, 4096), with these largest logits the sums of their terms, and of the terms'
    products with largest - x, both over the largest term."""
    term, unit, behind = shifted_terms(chunk, scale, largest[:, None])
    sums, spreads = np.zeros((2, ACCUMULATORS, len(chunk)))
    for at in range(0, chunk.shape[1], ACCUMULATORS):
        group = term[:, at : at + ACCUMULATORS].T.astype(np.float64)
        sums += group
        spreads = fma(group, behind[:, at : at + ACCUMULATORS].T, spreads)
    whole = unit[:, 0].astype(np.float64)
    return SPEC.sum_accumulators(sums) / whole, SPEC.sum_accumulators(spreads) / whole


CATEGORIES = categorical_rows.Arithmetic(scores, chunk_sums, terms, SPEC.exp64, SPEC.minus_two_ln64, fma)


def philox(call: Philox) -> None:
    """Computes Philox4x32-10 of counters (n, 4) and keys (n, 2): (n, 4)."""
    call.out[...] = np.stack(SPEC.philox4x32(*call.counter.T, *call.key.T), axis=-1)


run: Callable[[Any], Any] = runner(
    {Step: step, Walk: walk, Loss: loss, Race: race, CrossEntropy: cross_entropy, Philox: philox}
)
