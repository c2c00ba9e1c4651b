# SPDX-License-Identifier: Apache-2.0
"""Rows of samplers of tokens: the numbers by which a step turns tokens and a network's logits into the next tokens."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypedDict, get_args

from ..ground import stored
from ..ground.checks import check_choice, check_integer, check_number
from ..language.noise import PROVISIONAL_VERSION, refuse_version

Source = Literal["mask", "uniform"]
Order = Literal["confidence", "random", "log_prob", "margin", "entropy"]
Final = Literal["draw", "argmax"]
MaskLogit = Literal["ignore", "keep"]

# What a row's numbers may be: the least, the greatest, and what that is called.
_PROBABILITY = 0.0, 1 + 1e-12, "a probability"  # sums of rounded numbers
_NUMBER = 0.0, sys.float_info.max, "a finite number of at least 0"
_RANGES = {
    "time": _NUMBER, "reveal": _PROBABILITY, "rate": _NUMBER, "change": _PROBABILITY, "remask": _PROBABILITY,
    "left": (1.0, 2.0**34, "a whole number of at least 1"), "bound": (0.0, math.inf, "a number of at least 0"),
    "end": (0.0, 2.0**34, "a whole number of at least 0"), "temperature": (0.0, 2.0**64, "a number from 0 to 2^64"),
    "own": _NUMBER, "threshold": _PROBABILITY, "factor": _NUMBER, "share": _PROBABILITY,
    "count": (0.0, 2.0**34, "a whole number of at least 0"),
}  # fmt: skip
_BY_RANK = ("left", "bound", "threshold", "factor", "share", "count")
_OPTIONAL, _WHOLE = ("rate", *_BY_RANK), ("left", "end", "count")


class CutOptions(TypedDict, total=False):
    """The options of samplers by which a token is left out of a draw: those of `TokenTable`, with its defaults."""

    top_k: int
    top_p: float
    mask_logit: MaskLogit


class DrawOptions(CutOptions, total=False):
    """The options of samplers by which a token is drawn: those of `TokenTable`, with its defaults."""

    temperature: float
    final: Final


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One model call. At each position a token c is drawn from the network's distribution; the row's numbers say what
    becomes of the token x that stands there.

    A row changes tokens by chance or by rank. By chance, each position is decided alone: one word of stream 14 decides
    between these events, in this order:

    Attributes:
        time: what the network is told.
        own: added to the logit of x, before c is drawn; of tables without masks.
        reveal: the probability that a mask becomes c.
        rate: if given, reveal is min(1, rate S) instead, where S is the sum of exp over the position's logits, which
            are log-scores.
        change: the probability that a token other than c becomes c.
        renoise: two probabilities that a token is drawn anew from the whole vocabulary: if it is not c, and if it is c.
        remask: the probability that a token becomes the mask.

    By rank, the positions of a sample are decided together. Rows with one of the first five numbers do so, and do not
    use the probabilities above:

        left: the number of steps that are left to reveal the masks, this one included. A step reveals its share of the
            masks that are left, rounded up: first where the network is most certain of c, or in an order drawn from
            stream 16.
        bound: the positions of least entropy become c, as many as have a sum of entropies, without the largest, of at
            most `bound`. The others are drawn anew, or stay masks.
        threshold: masks become c where its probability in the softmax of the logits, the confidence, is at least this
            number: in each sample with a mask, at least the most certain one.
        factor: of a sample's n masks the k most certain ones become c, as long as their confidences p_1 >= p_2 >= ..
            have (j + 1) (1 - p_j) <= factor for all j from 2 to k. If k = n - 1, the last one does too.
        share: this share of a sample's masks becomes c, rounded down: first those that the table's order puts first.
        count: so many of a sample's masks become c, or all if it has fewer.
        end: how many positions at the sample's end are not revealed yet.
        temperature: the logits are divided by this number times the sampler's own temperature.

    Raises:
        ValueError: a number lies outside of its range, or probabilities add up to more than 1.
        TypeError: what should be a number is none.

    >>> print(nf.TokenRow(time=0.5, reveal=0.25, remask=0.1))
    t = 0.5;  mask -> c with probability 0.25;  x -> mask with probability 0.1
    """

    time: float
    reveal: float = 0.0
    rate: float | None = None
    change: float = 0.0
    renoise: tuple[float, float] = (0.0, 0.0)
    remask: float = 0.0
    left: int | None = None
    bound: float | None = None
    end: int = 0
    temperature: float = 1.0
    own: float = 0.0
    threshold: float | None = None
    factor: float | None = None
    share: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if type(self.renoise) is not tuple or len(self.renoise) != 2:
            raise TypeError(f"renoise = {self.renoise!r}: expected a pair of probabilities")
        numbers = [(name, getattr(self, name), range_) for name, range_ in _RANGES.items()]
        for name, number, (least, most, expected) in [*numbers, *(("renoise", p, _PROBABILITY) for p in self.renoise)]:
            if number is None and name in _OPTIONAL:
                continue
            if not least <= check_number(name, number, finite=False) <= most or (name in _WHOLE and number % 1):
                raise ValueError(f"{name} = {number!r}: expected {expected}")
        if len(ranks := [name for name in _BY_RANK if getattr(self, name) is not None]) > 1:
            raise ValueError(f"{', '.join(ranks)}: expected at most one of them")
        differ, same = self.renoise
        for what, total in (("change, renoise and remask", self.change + differ), ("renoise and remask", same)):
            if not total + self.remask <= _PROBABILITY[1]:
                raise ValueError(f"{what} = {total + self.remask}: expected a probability of at most 1")

    __setstate__: ClassVar[stored.SetState] = stored.make_again

    def __str__(self) -> str:
        said, end = [f"t = {self.time:.6g}"], f", but for the last {self.end}" if self.end else ""
        if self.own:
            said.append(f"logit of x + {self.own:.6g}")
        if self.left is not None:
            said.append(f"1/{self.left} of the masks -> c{end}")
        elif self.threshold is not None:
            said.append(f"mask -> c of confidence {self.threshold:.6g} or more, at least one{end}")
        elif self.factor is not None:
            said.append(f"masks -> c while (k + 1) (1 - confidence) <= {self.factor:.6g}{end}")
        elif self.share is not None:
            said.append(f"{self.share:.6g} of the masks -> c{end}")
        elif self.count is not None:
            said.append(f"{self.count} masks -> c{end}")
        elif self.bound is not None:
            said.append(f"x -> c where entropies add up to {self.bound:.6g}, else anew")
        else:
            said += [f"{what} with probability {p:.6g}" for what, p in self._events() if p]
            if self.rate is not None:
                said.append(f"mask -> c with probability min(1, {self.rate:.6g} S)")
        if self.temperature != 1:
            said.append(f"temperature {self.temperature:.6g}")
        return ";  ".join(said)

    def _events(self) -> list[tuple[str, float]]:
        differ, same = self.renoise
        return [
            ("mask -> c", self.reveal),
            ("x -> c", self.change),
            ("x -> any" if differ == same else "x -> any, if x is not c,", differ),
            ("x -> any, if x is c,", 0.0 if differ == same else same),
            ("x -> mask", self.remask),
        ]

    @property
    def by_rank(self) -> bool:
        """Tells whether positions of a sample depend on each other."""
        return any(getattr(self, name) is not None for name in _BY_RANK)

    @property
    def by_confidence(self) -> bool:
        """Tells whether the row reveals a sample's first masks, by the table's order."""
        return self.by_rank and self.bound is None

    @property
    def touches_tokens(self) -> bool:
        """Tells whether tokens other than masks may change."""
        return bool(self.change or any(self.renoise) or self.remask)


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The rows of a sampler of tokens, and what they share.

    Attributes:
        name: the sampler's name.
        rows: one for each model call.
        mask_id: the token that stands for the mask, or None.
        vocabulary: the number of tokens from which one is drawn anew, or None.
        source: what a run begins with: masks, or tokens drawn from the whole vocabulary.
        order: what ranks positions in rows with `left`, `share` or `count`. "confidence": the probability of c in the
            softmax of the logits; "log_prob": in the distribution that c was drawn from, at temperature 0 the
            confidence; "margin": the difference of this distribution's two largest probabilities; "entropy": the least
            entropy; "random": words of stream 16. Rows with `threshold` or `factor` need "confidence".
        order_temperature: with a number above 0, an order by probability, margin or entropy is drawn: the next position
            is one with a value of v with a probability in proportion to exp(v / order_temperature).
        guidance: cfg_scale: logits are u + (1 + guidance) (c - u) of a pair (u, c).
        temperature, top_k, top_p: as in `categorical`.
        crossing: whether top_p keeps the token with which the sum of probabilities exceeds it, as `categorical` does.
        mask_logit: "ignore": the mask is never drawn, whatever its logit. "keep": it is drawn as any other token.
        final: "argmax": the last row takes the network's most probable token, as its rows have temperature 0.
        left_out: tokens that are never drawn.
        unsure: tokens whose confidence is 0, so that they are revealed last; that of the others is their probability
            without them.
        version: the `PROVISIONAL_VERSION` of the noise that its rows draw; another one is a ValueError.

    >>> table = nf.TokenTable("own", (nf.TokenRow(time=1.0, reveal=0.5), nf.TokenRow(time=0.5, reveal=1.0)), mask_id=9)
    >>> len(nf.DiscreteSampler(table))
    2
    """

    name: str
    rows: tuple[TokenRow, ...]
    mask_id: int | None = None
    vocabulary: int | None = None
    source: Source = "mask"
    order: Order = "confidence"
    guidance: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    mask_logit: MaskLogit = "ignore"
    crossing: bool = True
    order_temperature: float = 0.0
    final: Final = "draw"
    left_out: tuple[int, ...] = ()
    unsure: tuple[int, ...] = ()
    version: int = field(default=PROVISIONAL_VERSION, repr=False)

    __setstate__: ClassVar[stored.SetState] = stored.make_again

    def __post_init__(self) -> None:
        if self.version != PROVISIONAL_VERSION:
            refuse_version(self.version, "PROVISIONAL_VERSION")
        object.__setattr__(self, "rows", tuple(self.rows))
        if not self.rows or not all(isinstance(row, TokenRow) for row in self.rows):
            raise TypeError("rows: expected at least one TokenRow")
        for name, allowed in ("source", Source), ("order", Order), ("mask_logit", MaskLogit), ("final", Final):
            check_choice(name, getattr(self, name), get_args(allowed))
        for name in ("left_out", "unsure"):
            object.__setattr__(self, name, tuple(check_integer(name, token, 0) for token in getattr(self, name)))
        if self.final == "argmax":
            last = replace(self.rows[-1], temperature=0.0, own=0.0)
            object.__setattr__(self, "rows", (*self.rows[:-1], last))
        if self.order != "confidence" and any(r.threshold is not None or r.factor is not None for r in self.rows):
            raise ValueError(f"order = {self.order!r}: expected 'confidence', as rows have a threshold or a factor")
        check_number("order_temperature", self.order_temperature, 0)
        if self.mask_id is None and (self.source == "mask" or any(row.reveal or row.remask for row in self.rows)):
            raise ValueError("mask_id: expected a token, as rows reveal or set masks")
        if self.vocabulary is None and (self.source == "uniform" or any(any(row.renoise) for row in self.rows)):
            raise ValueError("vocabulary: expected a number of tokens, as rows draw from all of them")
        if not isinstance(self.crossing, bool):
            raise TypeError(f"crossing = {self.crossing!r}: expected True or False")
        if self.mask_id is not None and any(row.own for row in self.rows):
            raise ValueError("mask_id: expected None, as rows add to the logits of tokens")

    def equations(self, most: int | None = None) -> str:
        """Returns a line for each row; with `most`, at most that many: the first and the last rows."""
        lines = [f"  {i}: {row}" for i, row in enumerate(self.rows)]
        if most is not None and len(lines) > most:
            half = most // 2
            lines = [*lines[:half], "  ..", *lines[-half:]]
        return "\n".join(lines)
