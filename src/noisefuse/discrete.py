# SPDX-License-Identifier: Apache-2.0
"""Discrete diffusion: training times, schedules of the probability of a mask, and transitions of tokens."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .ground.checks import check_choice, check_integer, check_number, got, is_tracer
from .ground.lazy import show_as, show_public
from .ground.libraries import library
from .language.noise import TIMES, Noise, check_stream_0
from .operations.draw import uniform as uniform_numbers
from .tokens.categorical import Partial, TokenInfo, combine_categories
from .tokens.forward import probabilities
from .tokens.partial_steps import PartialStep, combine_steps
from .tokens.schedule import MaskSchedule, cosine, geometric, linear, llada, log_linear, mdlm
from .tokens.transitions import Transition

__all__ = [
    "MaskSchedule", "Partial", "PartialStep", "TokenInfo", "Transition", "absorbing", "combine_categories",
    "combine_steps", "cosine", "gaussian", "geometric", "linear", "llada", "log_linear", "mdlm", "times", "uniform",
]  # fmt: skip

show_public(__name__)
show_as(__name__, MaskSchedule, Partial, PartialStep, TokenInfo, Transition)
_KINDS = ("stratified", "shared", "independent")


def times(
    n: int, noise: Noise, *, first: int = 0, of: int | None = None,
    kind: Literal["stratified", "shared", "independent"] = "stratified",
) -> NDArray[np.float64]:  # fmt: skip
    """Training times in [0, 1] for n samples of a batch that ranks may share: a pure function of the noise's key.

    With `first` and `of`, the ranks' times are parts of those of the whole batch, so they do not depend on how many
    ranks there are.

    Args:
        n: the number of samples here.
        noise: a Noise of the run; its step is the iteration. Sample ``noise.sample + first + i`` draws u_i, or, with an
            array of n ids, sample ``noise.sample[i]``; they draw element 0 of stream 17, as `uniform` does in float64.
        first: the number of this rank's first sample in the whole batch, such as ``rank * n``.
        of: the number of samples in the whole batch. None: n, and first is 0.
        kind: "stratified": (first + i + u_i) / of, one time in each of `of` equal cells, as MDLM's ``_sample_t`` has it
            (Sahoo et al. 2024). "shared": ((first + i) / of + u) mod 1 with one u for all, of sample ``noise.sample``
            (Kingma et al. 2021, "Variational diffusion models", appendix I.1). "independent": u_i.

    Returns:
        float64 (n,). Of a noise that JAX traces, JAX's array.

    Raises:
        TypeError, ValueError, OverflowError: the message says what was given and what was expected.

    >>> noise = nf.Noise(7, step=3)
    >>> t = nf.discrete.times(4, noise)
    >>> bool(np.array_equal(np.floor(4 * t), [0, 1, 2, 3]))
    True
    >>> rank_1_of_2 = nf.discrete.times(2, noise, first=2, of=4)
    >>> bool(np.array_equal(rank_1_of_2, t[2:]))
    True
    """
    n, first = check_integer("n", n), check_integer("first", first)
    if of is None and first:
        raise ValueError(f"first = {first}: expected of= too, the number of samples in the whole batch")
    of = n if of is None else check_integer("of", of)
    if n < 0 or first < 0 or first + n > of:
        raise ValueError(f"n = {n}, first = {first}, of = {of}: expected samples first .. first + n - 1 of 0 .. of - 1")
    check_choice("kind", kind, _KINDS)
    if not isinstance(noise, Noise):
        raise TypeError(f"noise: expected a Noise, got {got(noise)}")
    check_stream_0(noise)
    ids: Any = noise.sample
    many = bool(getattr(ids, "ndim", 0))
    if many and ids.shape[0] != n:
        raise ValueError(f"noise: has {ids.shape[0]} sample ids, expected one for each of {n} samples")
    if many and kind == "shared":
        raise ValueError("noise: expected one sample, as all share its draw, got sample ids")
    if not n:
        return np.zeros(0)
    if any(map(is_tracer, (noise.seed, ids, noise.step))):
        again = partial(times, n, first=first, of=of, kind=kind)
        return library("jax").on_host(again, noise, (n,))
    if kind == "shared":
        u = _drawn(1, noise)
        moved = np.arange(first, first + n) / of + u
        return np.asarray(moved - np.floor(moved))
    u = _drawn(n, noise if many else noise.at(sample=ids + first))
    return u if kind == "independent" else (np.arange(first, first + n) + u) / of


def _drawn(n: int, noise: Noise) -> NDArray[np.float64]:
    drawn: NDArray[np.float64] = uniform_numbers((n, 1), noise.at(stream=TIMES), dtype="float64").reshape(n)
    return drawn


# ---- transitions -------------------------------------------------------------------------------------------


def absorbing(p: float, mask_id: int) -> Transition:
    """A token becomes the mask with probability p, and the mask stays: Q = (1 - p) I + p 1 e_m^T (Austin et al. 2021,
    appendix A.2.2).

    Args:
        p: the probability that a token does not stay.
        mask_id: the token that stands for the mask.

    Returns:
        A `Transition`, for `q_transition`.

    >>> twice = nf.discrete.absorbing(0.5, 3) @ nf.discrete.absorbing(0.5, 3)
    >>> twice.p, twice.matrix(4)[0].tolist()
    (0.75, [0.25, 0.0, 0.0, 0.75])
    """
    return Transition("absorbing", _probability(p), check_integer("mask_id", mask_id, 0))


def uniform(p: float, vocabulary: int) -> Transition:
    """A token is drawn anew with probability p: Q = (1 - p) I + p 1 1^T / V (Austin et al. 2021, appendix A.2.1).

    Args:
        p: the probability that a token is drawn anew. It may then be the one that stood there.
        vocabulary: the number of tokens V.

    Returns:
        A `Transition`, for `q_transition`.

    >>> nf.discrete.uniform(0.5, 4).matrix(4)[0].tolist()
    [0.625, 0.125, 0.125, 0.125]
    """
    return Transition("uniform", _probability(p), check_integer("vocabulary", vocabulary, 1))


def gaussian(beta: float, vocabulary: int) -> NDArray[np.float64]:
    """Returns D3PM's discretised Gaussian as a matrix (V, V): tokens are ordinal, and near ones are likely (Austin et
    al. 2021, appendix A.2.3, equation 8).

    Q[i, j] = exp(-4 (i - j)^2 / ((V - 1)^2 beta)) / S for i != j, where S is the sum of exp(-4 n^2 / ((V - 1)^2 beta))
    over n = -(V - 1) .. V - 1, and Q[i, i] is what is left of 1.

    Args:
        beta: the width, above 0.
        vocabulary: the number of tokens V.

    Returns:
        float64 (V, V), for `q_transition`; the rows add to 1.

    >>> q = nf.discrete.gaussian(0.1, 16)
    >>> bool(np.allclose(q.sum(1), 1)) and bool(np.allclose(q, q.T))
    True
    """
    v, width = check_integer("vocabulary", vocabulary, 2), check_number("beta", beta, above=0)
    n = np.arange(-(v - 1), v)
    weights = np.exp(-4.0 * n**2 / ((v - 1) ** 2 * width))
    q = (weights / weights.sum())[abs(np.subtract.outer(np.arange(v), np.arange(v))) + v - 1]
    np.fill_diagonal(q, 0.0)
    np.fill_diagonal(q, 1.0 - q.sum(axis=1))
    return np.asarray(q)


def _probability(p: Any) -> float:
    values = probabilities("p", p)
    if values.ndim:
        raise ValueError(f"p: expected a number, got shape {values.shape}")
    return float(values)
