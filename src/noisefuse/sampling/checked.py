# SPDX-License-Identifier: Apache-2.0
"""A step in full: all unusual arguments, and errors in a user's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from .. import density
from ..arguments.arrays import host_view, is_written
from ..arguments.types import Array
from ..ground.checks import is_tracer
from ..ground.libraries import library_for, library_of
from ..language.noise import SAMPLER, Noise, Noises
from ..operations.draw import are_increments, randn_like
from ..operations.update import update
from .arrays import drawn_for, in_words_of_a_step
from .rows import guided, thresholded
from .state import NEW, State

if TYPE_CHECKING:
    from .steps import Steps


def checked_step(
    sampler: Steps, i: int, x: Array, model_output: Array | tuple[Array, Array], noise: Noises | Array | None,
    state: State | None, guidance_scale: float | npt.ArrayLike | None, out: Array | None,
    denoised_out: Array | list[Array] | None, law: density.Options | None = None,
) -> Any:  # fmt: skip
    """Does ``step`` without the fast path: all unusual arguments, and errors in a user's words."""
    if law:  # the fast path did not take it, perhaps because of wrong names
        check_log_prob(True, law)
    i, table, x = sampler._row(i), sampler.tableau, host_view("x", x)
    check_state(sampler, state)
    written = is_written(x)
    if denoised_out is not None and not written and (not isinstance(denoised_out, list) or is_tracer(i)):
        why = "None, as the row is traced" if is_tracer(i) else "a list, as arrays of this kind are not written to"
        raise TypeError(f"denoised_out: expected {why}, got {type(denoised_out).__name__}")
    if denoised_out is not None and not sampler._denoised[i]:
        raise ValueError(f"{table.name} does not say which output estimates the clean sample")
    table, rows, model_output = guided_rows(sampler, i, x, model_output, guidance_scale)
    if table.threshold is not None:
        table, rows = thresholded(table, rows, x, model_output)
    if are_increments(noise):
        noise = randn_like(x, noise, dtype="float64" if "float64" in str(x.dtype) else "float32")
    elif rows is not i and isinstance(noise, Noise | list | tuple):
        noise = drawn_for(noise, i, SAMPLER, x)
    past, aux, after = ([], [], 0) if state is None else _moved(sampler, state, i)
    own: list[Array] = []
    at = 0 if denoised_out is None else sampler._denoised[i] - 1
    if denoised_out is not None and written:  # if the state has this array, it is filled afterwards
        own, aux = aux[at : at + 1], [*aux[:at], denoised_out, *aux[at + 1 :]]
    aux_out: Any = aux if written else len(aux) if denoised_out is None else max(len(aux), at + 1)
    try:
        given: dict[str, Any] = {"past": past, "noise": noise, "out": out, "aux_out": aux_out}
        if law is None:
            made, found = update(table, rows, x, model_output, **given), None
        else:
            made, found = density.update_with_log_prob(table, rows, x, model_output, **given, **law)
    except (TypeError, ValueError) as error:
        denoised = None if denoised_out is None else f"aux_out[{at}]"
        raise in_words_of_a_step(error, denoised, [*past, *aux], x) from None
    for array in own:
        array[...] = denoised_out
    if not written:
        made, *kept = made
        if denoised_out is not None:  # there may be more outputs than the row keeps
            denoised_out.append(kept[at])
            del kept[len(aux) :]
        if state is not None:
            state.keep(kept if not is_tracer(i) else _kept(sampler, i, kept, past))
    elif state is not None:
        state.at = after
    return made if law is None else (made, found)


def check_state(sampler: Steps, state: State | None) -> None:
    if state is None and sampler._slots:
        raise TypeError(f"{sampler.tableau.name} remembers earlier steps: pass state=sampler.state(x), one per run")


def guided_rows(sampler: Steps, i: Any, x: Array, model_output: Any, scale: float | npt.ArrayLike | None) -> Any:
    """Returns the table and its rows, with guidance folded in, and the model output or the pair."""
    if isinstance(model_output, list) and len(model_output) == 2:  # a model may return (uncond, cond) as a list
        model_output = tuple(model_output)
    if scale is None and not isinstance(model_output, tuple):
        return sampler.tableau, i, model_output
    return *library_for(x).untraced(guided, sampler.tableau, sampler._mixed, i, x, model_output, scale), model_output


def _moved(sampler: Steps, state: State, i: int) -> tuple[list[Array], list[Array], int]:
    """Returns row i's arrays in the state: see ``State.moves``. TypeError: the state is not this sampler's."""
    if not isinstance(state, State) or state.size != sampler._state_size:
        what = "another's" if isinstance(state, State) else type(state).__name__
        name = sampler.tableau.name
        raise TypeError(f"state: expected {name}'s own, sampler.state(x), one per run, got {what}")
    if is_tracer(i):
        return state.moves[sampler._state_size[1]][state.at]
    check_past(sampler, state, i)
    return state.moves[sampler._move[i]][state.at]


def check_past(sampler: Steps, state: State | None, i: Any) -> None:
    """Raises ValueError if row i reads what earlier rows kept, and the state is new."""
    if state is not None and state.at == NEW and type(i) is int and sampler._reads[i]:
        raise ValueError(
            f"state: row {i} of {sampler.tableau.name} reads what earlier rows kept, and the state is new; to start "
            "later, build a sampler of the times that are left, steps=[..]"
        )


def _kept(sampler: Steps, i: Any, made: list[Array], past: list[Array]) -> list[Array]:
    """Returns the state's arrays after a row whose number is traced, if rows differ in what they keep."""
    if len({*sampler._push}) == 1:
        return made
    slots = sampler._slots
    choices = [[*made[:n], *past][:slots] for n in range(len(made) + 1)]
    return library_of(made[0]).chosen(sampler._push, i, choices)


def check_log_prob(asked: bool, law: density.Options) -> None:
    for name in law:
        if name not in density.Options.__annotations__:
            there = "of a whole run it is log_probs=True" if name == "log_prob" else "with log_prob there are "
            there += "" if name == "log_prob" else ", ".join(density.Options.__annotations__)
            raise TypeError(f"{name}: no such argument; {there}")
    if law and not asked:
        raise TypeError(f"{', '.join(law)}: given without log_prob=True (of a whole run log_probs=True)")
