# SPDX-License-Identifier: Apache-2.0
"""Docstrings of functions that share arguments: each states its own, and the shared entries are added once, from
here."""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # all of the package imports this: it has to be quick
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, ParamSpec, TypeVar

    F = TypeVar("F", bound=Callable[..., Any])
    P = ParamSpec("P")
    S = TypeVar("S")

__all__ = ["Shared", "built", "completed", "documented"]


class Shared:
    """The entries of sections that several functions share, as they stand in a docstring."""

    args: Mapping[str, str]
    returns: str
    raises: str

    def __init__(self, args: Mapping[str, str] | None = None, returns: str = "", raises: str = "") -> None:
        self.args, self.returns, self.raises = args or {}, returns, raises  # a NamedTuple takes longer to import


# What the functions for kernels of one's own say of the numbers that name an element.
ARGS_OF_ELEMENT = {
    "seed": "    seed: in [0, 2^64).",
    "sample": "    sample: in [0, 2^56).",
    "step": "    step: in [0, 2^32).",
    "element": "    element: in [0, 2^34), counted in the sample.",
    "stream": "    stream: in [0, 128).",
}


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


def built(
    kind: type[S], rule: Callable[P, Any], shared: Shared, options: Sequence[str] = (), example: str = ""
) -> Callable[P, S]:
    """Returns a function with the rule's arguments that returns a sampler of this class, of the rule's table."""
    parameters = signature(rule).parameters
    accepted = [name for name in parameters if name != "options"] + [*options]

    @wraps(rule)
    def make(*args: P.args, **kwargs: P.kwargs) -> S:
        for name in kwargs:
            if name not in accepted:
                raise TypeError(f"{rule.__name__} has no argument {name!r}: it takes {', '.join(accepted)}")
        for name, other in (("levels", "steps"), ("final_level", "final")):
            if name in kwargs and (other in kwargs or (other == "steps" and len(args) > 1)):
                raise TypeError(f"expected {name} or {other}, got both")
        made, chosen = rule(*args, **kwargs), kwargs.get("model_time")
        return kind(made) if chosen is None else kind(made, chosen)  # type: ignore[call-arg]

    make.__annotations__["return"] = kind.__name__
    if rule.__doc__ is not None:  # python -OO
        make.__doc__ = completed(rule.__doc__, parameters, shared, example)
    return make


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
    return [name.lstrip("*") for name in entry.partition(":")[0].strip().split(", ")]
