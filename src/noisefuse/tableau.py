# SPDX-License-Identifier: Apache-2.0
"""Rows and tables of samplers, and their symbols. The code is in language/affine.py and language/tableau.py."""

from .ground.lazy import show_as
from .language.rows import SYMBOLS
from .language.tableau import ARGUMENTS, ROW, ZERO, Affine, D, Row, Tableau, k, m1, m2, past, x, z

__all__ = ["ARGUMENTS", "ROW", "SYMBOLS", "ZERO", "Affine", "D", "Row", "Tableau", "k", "m1", "m2", "past", "x", "z"]

show_as(__name__, Affine, Row, Tableau)
