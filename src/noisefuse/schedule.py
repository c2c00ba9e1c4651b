# SPDX-License-Identifier: Apache-2.0
"""Noise schedules. The code is in language/schedule.py."""

from .ground.lazy import show_as
from .language.named import _of_registered as _of_registered
from .language.schedule import Schedule

__all__ = ["Schedule"]

show_as(__name__, Schedule, _of_registered)
