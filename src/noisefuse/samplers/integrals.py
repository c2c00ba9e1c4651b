# SPDX-License-Identifier: Apache-2.0
"""Integrals of interpolating polynomials: the weights of multistep and exponential methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["integral_weights"]

Array = npt.NDArray[np.float64]


@cache
def _gauss_legendre() -> tuple[Array, Array]:
    """Returns points and weights on [-1, 1], on first use: numpy.polynomial takes long to import."""
    return np.polynomial.legendre.leggauss(32)


def integral_weights(
    nodes: Sequence[float],
    end: float,
    density: Callable[[Array], Array] = np.ones_like,
    *,
    begin: float | None = None,
    points: int | None = None,
) -> list[float]:
    """w_j = integral of density(s) L_j(s) over s from begin to end, L_j(s) = prod_(k != j) (s - s_k) / (s_j - s_k).

    begin: nodes[0] by default. points: a sum over so many equally spaced s, both ends among them, for the integral.

    So sum_j w_j f(s_j) is the integral of density f for every polynomial f of lower degree than the number of nodes,
    which have to differ. It uses the 32 points of Gauss and Legendre: exact, up to rounding, for density 1; for a
    density e^(c s) with |c| (end - begin) <= 60 within 1e-13 of its largest value times the length.
    """
    begin = nodes[0] if begin is None else begin
    if points is None:
        at, weights = _gauss_legendre()
        half = (end - begin) / 2
        s = begin + half * (1 + at)
        measure = half * weights * density(s)
    else:
        s = np.linspace(begin, end, points)
        measure = (end - begin) / points * density(s)
    found = []
    for j, node in enumerate(nodes):
        others = [other for k, other in enumerate(nodes) if k != j]
        basis = np.prod([(s - other) / (node - other) for other in others], axis=0) if others else 1.0
        found.append(float(np.sum(measure * basis)))
    return found
