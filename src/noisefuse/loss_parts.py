# SPDX-License-Identifier: Apache-2.0
"""Parts of a loss. The code is in operations/partial_sums.py."""

from .ground.lazy import show_as
from .operations.partial_sums import LossPart

__all__ = ["LossPart"]

show_as(__name__, LossPart)
