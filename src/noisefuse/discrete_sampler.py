# SPDX-License-Identifier: Apache-2.0
"""Samplers of tokens. The code is in tokens/sampler.py."""

from . import discrete as discrete  # these pages show the classes of schedules and tables
from . import token_table as token_table
from .ground.lazy import show_as
from .tokens.sampler import DiscreteSampler, TokenState

__all__ = ["DiscreteSampler", "TokenState"]

show_as(__name__, DiscreteSampler, TokenState)
