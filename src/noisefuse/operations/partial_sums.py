# SPDX-License-Identifier: Apache-2.0
"""`mse_loss` of batches in parts: sums of chunks, which are added elsewhere in the order of docs/loss.md."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..arguments.arrays import Array, contiguous, device_of, on_device, output
from ..arguments.calls import Index, make_call
from ..arguments.types import Reduction
from ..call.description import LOSS_CHUNK, Loss, Step, window_runs
from ..ground.checks import check_choice
from ..ground.stored import SetState, make_again
from ..language.noise import Noise
from ..language.rows import M1


@dataclass(frozen=True)
class LossPart:
    """The contribution of a part of a batch, or of each of its samples, to `mse_loss`: the sums of its chunks, (B,
    pieces, chunks), float64, in host memory. `density.combine` makes one loss of all parts, which may be pickled."""

    sums: NDArray[np.float64]
    weights: NDArray[np.float64] | None  # (B, pieces)
    start: int  # a sample's first element in this part
    elements: int  # the number of a sample's elements in this part
    whole: int  # the number of a sample's elements in all parts
    tokens: bool  # t has an entry for each piece; else a sample is one piece
    reduction: Reduction

    def __post_init__(self) -> None:
        start, n, whole = places = self.start, self.elements, self.whole
        if not all(isinstance(place, int) for place in places) or not 0 <= start <= start + n <= whole:
            raise ValueError(f"start, elements, whole = {places}: expected some of the whole's elements from one on")
        batch, pieces, _ = shape = np.shape(self.sums) if np.ndim(self.sums) == 3 else (0, 1, 0)
        expected = batch, pieces, chunks_of(n // max(1, pieces))
        if shape != expected or self.sums.dtype != np.float64 or not pieces or n % pieces:
            raise ValueError(f"sums: expected float64 (B, pieces, chunks) of {n} elements, got {np.shape(self.sums)}")
        if self.weights is not None and np.shape(self.weights) != (batch, pieces):
            raise ValueError(f"weights: expected shape {(batch, pieces)}, got {np.shape(self.weights)}")
        check_choice("reduction", self.reduction, get_args(Reduction))

    __setstate__: ClassVar[SetState] = make_again


def chunks_of(elements: int) -> int:
    """Returns how many chunks a piece has; there is a sum for none, too."""
    return max(1, -(-elements // LOSS_CHUNK))


def combined(parts: Sequence[LossPart]) -> float | NDArray[np.float64]:
    """Returns the loss of parts in C order: the first samples' parts, from their first elements on, then the next
    samples'."""
    losses: list[float] = []
    at, first = 0, parts[0]
    group: list[LossPart] = []
    for n, part in enumerate(parts):
        if (part.whole, part.tokens, part.reduction) != (first.whole, first.tokens, first.reduction):
            raise ValueError(f"parts[{n}]: expected samples, t and reduction like those of parts[0]")
        if not part.elements and part.whole:
            continue  # a rank may have no elements
        if part.start != at or (group and len(part.sums) != len(group[0].sums)):
            raise ValueError(
                f"parts[{n}]: has {len(part.sums)} samples from element {part.start} on, expected "
                f"{len(group[0].sums) if group else 'some'} from element {at} on: parts are in C order"
            )
        if group and not _weighted_alike(part, group[0]):
            raise ValueError(f"parts[{n}]: expected the weights of the parts of the same samples before it")
        group.append(part)
        at += part.elements
        if at == part.whole:
            losses += _samples(group)
            at, group = 0, []
    if group:
        raise ValueError(f"parts: the last one ends at element {at} of {first.whole}")
    if first.reduction == "none":
        return np.array([loss / first.whole if first.whole else math.nan for loss in losses])
    total = 0.0
    for loss in losses:
        total += loss
    return total / (len(losses) * first.whole) if losses and first.whole else math.nan


def _weighted_alike(part: LossPart, first: LossPart) -> bool:
    if part.weights is None or first.weights is None:
        return part.weights is first.weights
    return part.tokens or np.array_equal(part.weights, first.weights)


def _samples(group: list[LossPart]) -> list[float]:
    """Returns the sums of samples, in the order of the contract (docs/loss.md)."""
    sums = np.concatenate([part.sums for part in group], axis=1 if group[0].tokens else 2)
    pieces = np.zeros(sums.shape[:2])
    for chunk in range(sums.shape[2]):
        pieces += sums[:, :, chunk]
    if group[0].weights is None:
        weights = np.ones_like(pieces)
    else:  # the parts of one piece have the same weights
        given = [part.weights for part in group if part.weights is not None]
        weights = np.concatenate(given, axis=1) if group[0].tokens else given[0]
    found = []
    for row, factors in zip(pieces, weights, strict=True):
        so_far = 0.0
        for piece, weight in zip(row.tolist(), factors.tolist(), strict=True):
            so_far = _fma(weight, piece, so_far)
        found.append(so_far)
    return found


def _fma(a: float, b: float, c: float) -> float:
    """Returns a b + c, rounded once (Python has its own from 3.13 on)."""
    if a == 1 or not math.isfinite(a * b + c):
        return a * b + c
    from fractions import Fraction  # it and its decimals take a millisecond and a half

    return float(Fraction(a) * Fraction(b) + Fraction(c))


def place_of(names: tuple[Noise, ...], shape: tuple[int, ...], tokens: int | None) -> tuple[int, int]:
    """Returns where a part of a sample begins, and how many elements the whole sample has. ValueError: the part cuts a
    chunk or, if t has entries for `tokens` axes of a sample, a piece."""
    places = {(*window_runs(noise, shape)[::2], noise.window_shape) for noise in names} or {(0, (), None)}
    size, ((start, lengths, full), *others) = math.prod(shape), places
    whole = size if full is None else math.prod(full)
    of_token = None if tokens is None or full is None else full[tokens:]
    unit = LOSS_CHUNK if tokens is None else math.prod(shape[tokens:])
    cut = unit and (start % unit or (size % unit and start + size != whole))
    if size and (others or lengths or cut or (of_token is not None and of_token != shape[tokens:])):
        pieces = "" if tokens is None else ", or with pieces of one t,"
        raise ValueError(
            f"noise: its window of {size} elements from element {start} on, expected a run of elements that begins and "
            f"ends with chunks of {LOSS_CHUNK}{pieces} of the whole sample of shape {full}"
        )
    return start, whole


def in_memory(a: Any) -> Any:
    """Returns the array, or a copy in host memory of one on a device."""
    return a.get() if on_device(a) else a


def chunk_sums(call: Step, piece: int, start: int, whole: int) -> Array:
    """Returns the sums of chunks of a residual's squares, (batch, pieces, chunks), on the device of its inputs. Each
    chunk is treated as a sample whose noise is a window."""
    pieces = call.size // piece if piece else 1
    chunks, full = chunks_of(piece), piece // LOSS_CHUNK * LOSS_CHUNK
    index = np.resize(in_memory(call.index), call.batch * pieces)
    sums = output("", None, (call.batch * pieces, chunks), np.dtype(np.float64), device_of(call.inputs[M1]))
    sums[...] = 0
    for begin, length, n in ((0, LOSS_CHUNK, full // LOSS_CHUNK), (full, piece - full, 1)):
        if not n * length * len(sums):
            continue
        given = {slot: a.reshape(-1, piece) for slot, a in enumerate(call.inputs) if a is not None}
        cut = {slot: a[:, begin : begin + n * length] for slot, a in given.items()}
        parts: dict[int, Array | None] = {slot: contiguous(a).reshape(-1, length) for slot, a in cut.items()}
        elements = range(start + begin, start + begin + n * length, length)
        places = itertools.product(range(call.batch if call.noise else 0), range(pieces), elements)
        named = tuple(_of_row(call.noise, b).window((whole,), (p * piece + element,)) for b, p, element in places)
        m: Any = parts[M1]
        chunk = make_call(m.shape, m.dtype, call.rows, Index(np.repeat(index, n), length), named, parts, {}, True)
        found: Any = output("", None, (len(m),), np.dtype(np.float64), device_of(m))
        backends.of(m).run(Loss(chunk, length, None, np.ones(()), 1, found))
        columns = slice(begin // LOSS_CHUNK, begin // LOSS_CHUNK + n)
        sums[:, columns] = found.reshape(-1, n)
    return sums.reshape(call.batch, pieces, chunks)


def _of_row(names: tuple[Noise, ...], row: int) -> Noise:
    if len(names) > 1:
        return names[row]
    sample = names[0].sample
    return names[0].at(sample=sample + row if isinstance(sample, int) else int(sample[row]))
