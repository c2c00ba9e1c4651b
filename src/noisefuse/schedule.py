# SPDX-License-Identifier: Apache-2.0
"""Noise schedules. The code is in language/schedule.py."""

from .ground.lazy import show_as
from .language.schedule import Schedule
from .language.schedule import _of_registered as _of_registered

__all__ = ["Schedule"]

show_as(__name__, Schedule, _of_registered)
