# SPDX-License-Identifier: Apache-2.0
"""Integrals of interpolating polynomials: the weights of multistep and exponential methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["integral_weights", "quadrature"]

Array = npt.NDArray[np.float64]


@cache
def _gauss_legendre() -> tuple[Array, Array]:
    """Returns points and weights on [-1, 1], on first use: numpy.polynomial takes long to import."""
    return np.polynomial.legendre.leggauss(32)


def quadrature(begin: Array, end: Array) -> tuple[Array, Array]:
    """Returns the points and weights, (n, 32), of integrals from begin to end, (n,) each."""
    at, weights = _gauss_legendre()
    half = ((end - begin) / 2)[:, None]
    return begin[:, None] + half * (1 + at), half * weights


def integral_weights(
    nodes: Array, end: Array, density: Callable[[Array], Array] = np.ones_like, *, begin: Array | None = None,
    points: int | None = None,
) -> Array:  # fmt: skip
    """w_j = integral of density(s) L_j(s) over s from begin to end, L_j(s) = prod_(k != j) (s - s_k) / (s_j - s_k).

    nodes (n, k), the ends (n,) and the weights (n, k) are those of n rows; density takes (n, points). begin: the first
    nodes by default. points: a sum over so many equally spaced s, both ends among them, for the integral.

    So sum_j w_j f(s_j) is the integral of density f for every polynomial f of lower degree than the number of nodes,
    which have to differ. It uses the 32 points of Gauss and Legendre: exact, up to rounding, for density 1; for a
    density e^(c s) with |c| (end - begin) <= 60 within 1e-13 of its largest value times the length.
    """
    nodes, end = np.asarray(nodes, np.float64), np.asarray(end, np.float64)
    begin = nodes[:, 0] if begin is None else begin
    if points is None:
        s, lengths = quadrature(begin, end)
        measure = lengths * density(s)
    else:
        s = np.ascontiguousarray(np.linspace(begin, end, points, axis=-1))
        measure = ((end - begin) / points)[:, None] * density(s)
    columns = [nodes[:, [k]] for k in range(nodes.shape[1])]
    behind, found = [s - column for column in columns], np.empty(nodes.shape)
    for j, own in enumerate(columns):
        basis = math.prod(behind[k] / (own - column) for k, column in enumerate(columns) if k != j)
        found[:, j] = (measure * basis).sum(axis=1)
    return found
