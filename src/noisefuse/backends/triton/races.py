# SPDX-License-Identifier: Apache-2.0
"""Kernels of rows of logits: the race of categories, and cross entropies (docs/noise.md, docs/loss.md)."""

import triton
import triton.language as tl

from ..categorical_rows import Scale
from .device import exp64, minus_two_ln64, race_key, race_score, term32, terms_of
from .kernels import drawn, name_of, put
from .loss import ACCUMULATORS, CHUNK, halved

NONE, ALL = tl.constexpr(float("-inf")), tl.constexpr(float("inf"))
SETTINGS = tl.constexpr(6)  # of a temperature: beta, then high, low, rate, reach of its Scale, top_k
_ONE = Scale.of(1.0)
ONE = tl.constexpr(tuple(map(float, (_ONE.high, _ONE.low, _ONE.rate, _ONE.reach))))


@triton.jit
def scale_of(settings):
    """Returns 1 / temperature, and what terms take of it; at temperature 0, where it is -1, those of temperature 1."""
    high, low = tl.load(settings + 1).to(tl.float32), tl.load(settings + 2).to(tl.float32)
    rate, reach = tl.load(settings + 3).to(tl.float32), tl.load(settings + 4).to(tl.float32)
    return tl.abs(tl.load(settings)), high, low, rate, reach


@triton.jit
def scale_of_one():
    """Returns the same of temperature 1."""
    high, low = tl.full((), ONE.value[0], tl.float32), tl.full((), ONE.value[1], tl.float32)
    rate, reach = tl.full((), ONE.value[2], tl.float32), tl.full((), ONE.value[3], tl.float32)
    return tl.full((), 1.0, tl.float64), high, low, rate, reach


@triton.jit
def logits(x, i, n, hidden, least, last):
    """Returns these logits of a row, -inf for those that are cut: below `least`, and its equals after `last`."""
    found = tl.load(x + i, mask=i < n, other=NONE.value).to(tl.float32)
    stays = (found > least) | ((found == least) & (i <= last))
    return tl.where(stays & (i != hidden), found, NONE.value)


@triton.jit
def largest_of(x, n, hidden, BLOCK: tl.constexpr):
    """Returns the largest logit of a row, the first token that has it, and whether there is a NaN."""
    most, at, nan = tl.full((), NONE.value, tl.float32), tl.full((), -1, tl.int64), tl.full((), 0, tl.int32)
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK).to(tl.int64)
        found = tl.load(x + i, mask=(i < n) & (i != hidden), other=NONE.value).to(tl.float32)
        nan = tl.maximum(nan, tl.max((found != found).to(tl.int32), 0))
        found = tl.where(found == found, found, NONE.value)
        top = tl.max(found, 0)
        at = tl.where(top > most, tl.min(tl.where(found == top, i, n), 0), at)
        most = tl.maximum(most, top)
    return most, at, nan != 0


@triton.jit
def count_before(x, n, hidden, logit, token, BLOCK: tl.constexpr):
    """Returns how many logits are greater than this one; with a token also its equals before the token."""
    count = tl.full((), 0, tl.int64)
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK).to(tl.int64)
        found = tl.load(x + i, mask=(i < n) & (i != hidden), other=NONE.value).to(tl.float32)
        before = found > logit
        if token is not None:
            before |= (found == logit) & (i < token)
        count += tl.sum(before.to(tl.int32), 0)
    return count


@triton.jit
def float_at(place):
    """Returns the float at a place, an int64, of their order."""
    bits = tl.where(place >= 2147483648, place - 2147483648, 4294967295 - place)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def place_of(x):
    """Returns the place of a float in their order, 0 for -0."""
    bits = (x + 0.0).to(tl.uint32, bitcast=True).to(tl.int64)
    return tl.where(bits >= 2147483648, 4294967295 - bits, bits + 2147483648)


@triton.jit
def cut(x, n, hidden, most, k, BLOCK: tl.constexpr):
    """Returns the least of the k largest logits, by halving the floats, and the last of its equals that stays."""
    least, last = tl.full((), NONE.value, tl.float32), n
    low, high = tl.full((), 8388608, tl.int64), place_of(most) + 1  # from the least finite number on
    if (k > 0) & (count_before(x, n, hidden, least, None, BLOCK) > k):
        while high - low > 1:
            middle = (low + high) // 2
            enough = count_before(x, n, hidden, float_at(middle - 1), None, BLOCK) >= k
            low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        least = float_at(low)
        ties = k - count_before(x, n, hidden, least, None, BLOCK)
        for first in range(0, n, BLOCK):
            i = first + tl.arange(0, BLOCK).to(tl.int64)
            equal = logits(x, i, n, hidden, least, n) == least
            number = tl.cumsum(equal.to(tl.int64), 0)
            last = tl.minimum(last, tl.min(tl.where(equal & (number == ties), i, n), 0))
            ties -= tl.sum(equal.to(tl.int64), 0)
    return least, last


@triton.jit
def second_of(x, n, hidden, least, last, at, BLOCK: tl.constexpr):
    """Returns the largest logit of all tokens but one."""
    most = tl.full((), NONE.value, tl.float32)
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK).to(tl.int64)
        most = tl.maximum(most, tl.max(tl.where(i != at, logits(x, i, n, hidden, least, last), NONE.value), 0))
    return most


@triton.jit
def of_softmax(total, spread, beta, behind, most, second):
    """Returns the log-probability of a token so far behind the largest logit, the entropy, and the margin."""
    ln = -0.5 * minus_two_ln64(total)
    apart = most.to(tl.float64) - second.to(tl.float64)
    return tl.fma(behind, beta, -ln), tl.fma(beta, spread / total, ln), (1.0 - exp64(-(apart * beta))) / total


@triton.jit
def row_sums(x, n, hidden, least, last, most, scale, SPREAD: tl.constexpr, C: tl.constexpr):
    """Returns S and D of a row with a finite largest logit, from C chunks at a time."""
    beta, high, low, rate, reach = scale
    total, spread = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
    number, lane = tl.arange(0, C), tl.arange(0, ACCUMULATORS.value).to(tl.int64)[None, :]
    for first in range(0, n, C * CHUNK.value):
        begin = (first + number.to(tl.int64) * CHUNK.value)[:, None]
        found = tl.full((C, ACCUMULATORS.value), NONE.value, tl.float32)
        end = tl.minimum(n - first, CHUNK.value)
        for at in range(0, end, ACCUMULATORS.value):
            found = tl.maximum(found, logits(x, begin + at + lane, n, hidden, least, last))
        largest = tl.max(found, 1)
        counts = largest > NONE.value
        largest = tl.where(counts, largest, 0.0)
        shift, fewest, floor = terms_of(largest, high, rate, reach)
        top = largest - shift
        sums = tl.full((C, ACCUMULATORS.value), 0.0, tl.float64)
        spreads = sums
        for at in range(0, end, ACCUMULATORS.value):
            z = logits(x, begin + at + lane, n, hidden, least, last) - shift[:, None]
            z = tl.maximum(z, fewest[:, None])
            term = term32(z, high, low, rate, floor[:, None]).to(tl.float64)
            sums += term
            if SPREAD:
                spreads = tl.fma(term, top.to(tl.float64)[:, None] - z.to(tl.float64), spreads)
        unit = term32(top, high, low, rate, floor).to(tl.float64)
        sum_ = tl.reshape(halved(sums), (C,)) / unit
        spread_ = tl.reshape(halved(spreads), (C,)) / unit
        behind = most.to(tl.float64) - largest.to(tl.float64)
        weight = tl.where(counts, exp64(-(behind * beta)), 0.0)
        more = tl.fma(behind, sum_, spread_)
        for c in tl.static_range(C):  # in order: a sum of one number and zeros is exact
            mine = (number == c) & counts
            by = tl.sum(tl.where(mine, weight, 0.0), 0)
            total = tl.fma(by, tl.sum(tl.where(mine, sum_, 0.0), 0), total)
            if SPREAD:
                spread = tl.fma(by, tl.sum(tl.where(mine, more, 0.0), 0), spread)
    return total, spread


@triton.jit
def winner_of(x, n, hidden, least, last, scale, seed, sample, step, stream, position, BLOCK: tl.constexpr):
    """Returns the winner of a race. Few tokens need a logarithm: of a tile whose bounds, as csrc/cpu/race.cpp has
    them, all lie below the best score, no token can win."""
    key, start = race_key(seed, position), position << 20
    best, token = tl.full((), NONE.value, tl.float64), tl.full((), -1, tl.int64)
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK).to(tl.int64)
        found = logits(x, i, n, hidden, least, last)
        w = drawn(key, sample, step, stream, start, first, 1, None, "words", False, 0, True, BLOCK)
        rest = ((w ^ 0xFFFFFFFF) >> 1).to(tl.float32).to(tl.int32, bitcast=True).to(tl.float32)
        bound = rest * (-0.69314718 * 2.0**-23) + (found * scale[1] + 157 * 0.6931472)
        enough = best.to(tl.float32)
        enough -= tl.abs(enough) * 2.0**-20 + 2.0**-12
        may = (found > NONE.value) & ((bound < enough) == 0)  # a NaN may win
        if tl.max(may.to(tl.int32), 0) != 0:
            v = drawn(key, sample, step, stream, start, first, 1, None, "words", True, 0, True, BLOCK)
            score = tl.where(found > NONE.value, race_score(found, scale[0], w, v), NONE.value)
            top = tl.max(score, 0)
            token = tl.where(top > best, tl.min(tl.where(score == top, i, n), 0), token)
            best = tl.maximum(best, top)
    return token


@triton.jit(do_not_specialize=["seed", "sample", "step", "stream", "start", "hidden"])
def race(
    x, n: tl.int64, settings, of_sample: tl.int64, each: tl.int64, places, where, hidden: tl.int64,
    token, log_prob, log_prob_raw, entropy, margin, rank,
    names, seed: tl.uint64, sample: tl.int64, step: tl.int64, stream: tl.int64, start: tl.int64, samples, counter,
    CUT: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Draws the token of one row, and computes what is asked for. A row with a NaN, or all -inf, has no token: -1."""
    row = tl.program_id(0).to(tl.int64)
    if row >= 0 if where is None else tl.load(where + row) != 0:
        x, entry = x + row * n, row // of_sample
        own = settings + entry * each * SETTINGS.value
        draws, k = tl.load(own) > 0, tl.load(own + 5).to(tl.int64)
        scale = scale_of(own)
        seed, sample, step, stream, start = name_of(names, seed, sample, step, stream, start, samples, counter, entry)
        none, zero = tl.full((), NONE.value, tl.float32), tl.full((), 0.0, tl.float64)
        most, at, nan = largest_of(x, n, hidden, BLOCK)
        races = draws & (most < ALL.value)
        least, last = none, n
        if CUT:
            least, last = cut(x, n, hidden, most, tl.where(races, k, 0), BLOCK)
        winner = at
        if races & (most > NONE.value):
            place = tl.load(places + row)
            winner = winner_of(x, n, hidden, least, last, scale, seed, sample, step, stream, place, BLOCK)
        bad = nan | (most == NONE.value)
        winner = tl.where(bad, -1, winner)
        tl.store(token + row, winner.to(token.dtype.element_ty))
        found = tl.load(x + tl.maximum(winner, 0)).to(tl.float32)
        finite = (most < ALL.value) & (bad == 0)
        behind = found.to(tl.float64) - most.to(tl.float64)
        if log_prob_raw is not None:
            raw = zero
            if finite:
                total, _ = row_sums(x, n, hidden, none, n, most, scale_of_one(), False, C)
                raw = behind + 0.5 * minus_two_ln64(total)
            put(log_prob_raw, row, None, tl.where(bad, float("nan"), raw), 0)
        if ((log_prob is not None) or (entropy is not None)) or (margin is not None):  # Triton 3.3 has no chains
            known, spread, apart = zero, zero, zero + 1.0
            if finite:
                total, far = row_sums(x, n, hidden, least, last, most, scale, entropy is not None, C)
                second = most
                if margin is not None:
                    second = second_of(x, n, hidden, least, last, at, BLOCK)
                known, spread, apart = of_softmax(total, far, scale[0], behind, most, second)
                known = tl.where(draws, known, 0.0)
            put(log_prob, row, None, tl.where(bad, float("nan"), known), 0)
            put(entropy, row, None, tl.where(bad, float("nan"), spread), 0)
            put(margin, row, None, tl.where(bad, float("nan"), apart), 0)
        if rank is not None:
            tl.store(rank + row, count_before(x, n, hidden, found, winner, BLOCK).to(tl.int32))


# ---- cross entropies ---------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["mean_of"])
def cross_entropy(
    x, n: tl.int64, ids, masked, weight, weight_step: tl.int64, upstream, upstream_step: tl.int64, loss, gradient,
    mean_of: tl.int64, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Computes w times the loss of one row, and its gradient. An id outside of the vocabulary gives NaN."""
    row = tl.program_id(0).to(tl.int64)
    x += row * n
    counts = row >= 0 if masked is None else tl.load(masked + row) != 0
    token, most = tl.load(ids + row).to(tl.int64), tl.full((), 0.0, tl.float32)
    finite = counts
    if counts:
        top, _, nan = largest_of(x, n, -1, BLOCK)
        finite = (nan == 0) & (top > NONE.value) & (top < ALL.value) & (token >= 0) & (token < n)
        most = tl.where(finite, top, 0.0)
    _, high, low, rate, reach = scale_of_one()
    shift, fewest, floor = terms_of(most, high, rate, reach)
    found = tl.where(counts, float("nan"), tl.full((), 0.0, tl.float64))
    factor, at_id = found.to(tl.float32), found.to(tl.float32)
    if finite:
        total, _ = row_sums(x, n, -1, NONE.value, n, most, scale_of_one(), False, C)
        behind = tl.load(x + token).to(tl.float32).to(tl.float64) - most.to(tl.float64)
        surprise = -0.5 * minus_two_ln64(total) - behind
        found = tl.load(weight + row * weight_step) * surprise
        scale = tl.load(weight + row * weight_step) * tl.load(upstream + row * upstream_step) / mean_of.to(tl.float64)
        of_most = term32(most - shift, high, low, rate, floor).to(tl.float64)
        factor = (scale / (of_most * total)).to(tl.float32)
        at_id = (scale * (exp64(-surprise) - 1.0)).to(tl.float32)
    tl.store(loss + row, found)
    if gradient is not None:
        for first in range(0, n, BLOCK):
            i = first + tl.arange(0, BLOCK).to(tl.int64)
            made = tl.full((BLOCK,), 0.0, tl.float32) + factor
            if finite:
                z = tl.maximum(tl.load(x + i, mask=i < n, other=NONE.value).to(tl.float32) - shift, fewest)
                made = tl.where(i == token, at_id, term32(z, high, low, rate, floor) * factor)
            tl.store(gradient + row * n + i, made.to(gradient.dtype.element_ty), mask=i < n)
