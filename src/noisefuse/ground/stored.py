# SPDX-License-Identifier: Apache-2.0
"""Reads the JSON that `to_json` writes, and pickles. It checks every type, because they may come from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, NoReturn, TypeAlias, TypeVar

Made = TypeVar("Made")
SetState: TypeAlias = Callable[[Any, Any], None]


def read(kind: str, text: str, make: Callable[[dict[str, Any]], Made]) -> Made:
    """Returns make(..) of the content of this kind's JSON. ValueError: the JSON, or its content, is something else."""
    import json

    try:
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.pop(f"noisefuse {kind}", None) != 1:
            raise ValueError(f"this JSON is not a noisefuse {kind} of version 1")
        return make(fields)
    except RecursionError:
        raise ValueError(f"this JSON is not a noisefuse {kind} of version 1: it is nested too deeply") from None
    except (KeyError, TypeError, ArithmeticError) as error:
        raise ValueError(f"this JSON is not a whole noisefuse {kind}: {error!r}") from error


def refuse_state(value: object) -> NoReturn:
    """Raises TypeError. Classes whose pickles call their constructor have it as ``__setstate__``, so that no pickle
    skips the checks."""
    raise TypeError(f"this pickle sets the attributes of a {type(value).__name__}, which only its constructor may do")


def make_again(value: Any, state: Any) -> None:
    """Calls the constructor with what a pickle holds. Dataclasses that check their fields have it as
    ``__setstate__``."""
    names = [field.name for field in fields(value) if field.init]  # of slots the others follow
    given = state if isinstance(state, dict) else dict(zip(names, state, strict=False))
    if "version" in names:  # which the first pickles lack
        given = {"version": 1} | given
    type(value).__init__(value, **given)


def entries(name: str, values: object) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError(f"{name}: expected a list, got {values!r:.60}")
    return values


def number(name: str, value: object) -> float:
    """Returns an int or a float. JSON has no infinite numbers, so those are stored by name."""
    if type(value) not in (int, float) and value not in ("inf", "-inf"):
        raise TypeError(f"{name}: expected a number, got {value!r:.60}")
    return float(value) if isinstance(value, str) else value  # type: ignore[return-value]


def numbers(name: str, values: object) -> list[float]:
    return [number(name, value) for value in entries(name, values)]
