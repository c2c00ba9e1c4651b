# SPDX-License-Identifier: Apache-2.0
"""Rows and tables of samplers of tokens. The code is in tokens/table.py."""

from .ground.lazy import show_as
from .tokens.table import TokenRow, TokenTable

__all__ = ["TokenRow", "TokenTable"]

show_as(__name__, TokenRow, TokenTable)
