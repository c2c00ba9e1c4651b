# SPDX-License-Identifier: Apache-2.0
"""Docstrings of functions that share arguments: each states its own, and the shared entries are added once, from
here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # all of the package imports this: it has to be quick
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["Shared", "completed", "documented"]


class Shared:
    """The entries of sections that several functions share, as they stand in a docstring."""

    args: Mapping[str, str]
    returns: str
    raises: str

    def __init__(self, args: Mapping[str, str], returns: str = "", raises: str = "") -> None:
        self.args, self.returns, self.raises = args, returns, raises  # a NamedTuple takes longer to import


def completed(doc: str, parameters: Iterable[str], shared: Shared, example: str) -> str:
    """Returns a docstring with all sections: prose, Args in the parameters' order, Returns, Raises, an example.

    The docstring's own entries, result and example replace the shared ones; its own errors stand before the shared
    ones. KeyError: neither describes a parameter.
    """
    parts: dict[str, list[str]] = {"": [], "Args:": [], "Returns:": [], "Raises:": [], ">>>": []}
    margin = len(doc) - len(doc.rstrip(" "))  # the closing quotes' indent, which Python 3.13 removes
    for paragraph in doc.replace("\n" + " " * margin, "\n").strip().split("\n\n"):
        first = paragraph.split("\n", 1)[0]
        parts[first if first in parts else ">>>" if first.startswith(">>>") else ""].append(paragraph)
    own = {name: entry for entry in _entries(parts["Args:"]) for name in _names(entry)}
    args = dict.fromkeys(own.get(name) or shared.args[name] for name in parameters)  # an entry may have two names
    sections = {
        "Args:": [*args],
        "Returns:": _entries(parts["Returns:"]) or [shared.returns],
        "Raises:": [*_entries(parts["Raises:"]), shared.raises],
    }
    made = ["\n".join(filter(None, [name, *entries])) for name, entries in sections.items() if any(entries)]
    return "\n\n".join([*parts[""], *made, *(parts[">>>"] or [example])])


def documented(shared: Shared, example: str = "") -> Callable[[F], F]:
    """Returns a decorator that completes a docstring (see `completed`). It goes below ``@classmethod``.

    ``{name}`` in the example is the function's name.
    """

    def complete(function: F) -> F:
        if function.__doc__ is not None:  # python -OO
            parameters = [name for name in function.__annotations__ if name != "return"]  # all but a method's first
            function.__doc__ = completed(function.__doc__, parameters, shared, example.format(name=function.__name__))
        return function

    return complete


def _entries(sections: list[str]) -> list[str]:
    """Returns the entries. An entry's further lines are indented deeper."""
    found: list[str] = []
    for section in sections:
        for line in section.split("\n")[1:]:
            if line.startswith("     "):
                found[-1] += "\n" + line
            else:
                found.append(line)
    return found


def _names(entry: str) -> list[str]:
    return entry.partition(":")[0].strip().split(", ")
