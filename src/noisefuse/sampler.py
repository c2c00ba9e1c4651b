# SPDX-License-Identifier: Apache-2.0
"""Samplers of arrays. The code is in sampling/."""

from .ground.lazy import show_as
from .sampling.sampler import Sampler
from .sampling.state import State

__all__ = ["Sampler", "State"]

show_as(__name__, Sampler, State)
