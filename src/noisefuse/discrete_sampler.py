# SPDX-License-Identifier: Apache-2.0
"""Samplers of tokens. The code is in tokens/sampler.py."""

from .ground.lazy import show_as
from .tokens.sampler import DiscreteSampler, TokenState

__all__ = ["DiscreteSampler", "TokenState"]

show_as(__name__, DiscreteSampler, TokenState)
