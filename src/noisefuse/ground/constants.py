# SPDX-License-Identifier: Apache-2.0
"""Objects that compilers take for constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Constant:
    """An immutable object, with equality by value. torch's compiler takes such an object as the owner of a method in
    all versions, but as an argument from 2.12 on alone."""

    def _given_to(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls the function with this object before the others."""
        return function(self, *arguments)
