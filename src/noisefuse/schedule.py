# SPDX-License-Identifier: Apache-2.0
"""Noise schedules. The code is in language/schedule.py."""

from .ground.lazy import show_as
from .language.schedule import Schedule

__all__ = ["Schedule"]

show_as(__name__, Schedule)
