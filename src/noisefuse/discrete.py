# SPDX-License-Identifier: Apache-2.0
"""Discrete diffusion: tokens of a vocabulary in place of numbers (docs/discrete.md)."""

from __future__ import annotations

from .operations.categorical import Partial, combine

__all__ = ["Partial", "combine"]
