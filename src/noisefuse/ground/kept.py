# SPDX-License-Identifier: Apache-2.0
"""Properties that are computed once and kept, without a lock."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Self, TypeVar, overload

T = TypeVar("T")


class kept_property(cached_property[T]):
    """Python's cached_property without the lock of Python 3.11, which is one for all objects of a class: a child that
    is forked while another thread holds it would wait for ever. Two threads may both compute the value; one is kept."""

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> T: ...
    def __get__(self, instance: object, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        assert self.attrname is not None
        return vars(instance).setdefault(self.attrname, self.func(instance))
