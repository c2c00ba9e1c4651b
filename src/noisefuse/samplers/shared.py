# SPDX-License-Identifier: Apache-2.0
"""The code that samplers share: `sampler` turns a rule into a sampler, and completes its docstring."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, Literal, ParamSpec

import numpy as np

from ..ground.docstrings import Shared, built
from ..language.schedule import Schedule
from ..language.tableau import Tableau
from ..sampler import Sampler
from .plan import plan
from .spacing import Spacing, SpacingOptions

P = ParamSpec("P")

_SHARED = Shared(
    args={
        "schedule": "    schedule: the levels of noise, a `Schedule`.",
        "steps": """\
    steps: the number of steps, or the times themselves: integers, such as [900, 500, 100], are indices of the
        schedule, and floats its own time, as in `q_sample`. (If it has none, floats are places between indices.)""",
        "eta": """\
    eta: how much of the noise is drawn anew: 0 draws none and follows the ODE; 1 draws as much as the reverse
        process.""",
        "order": "    order: the largest number of the network's answers in a step, 1 to 4.",
        "window": """\
    window: (begin, end): rows begin .. end - 1 draw noise, the others follow the ODE (Li et al. 2025, MixGRPO). None:
        all draw.""",
        "original_steps": "    original_steps: how many times the network was distilled for.",
        "prediction": """\
    prediction: what the network predicts: "epsilon", "sample" (x0), "v", "flow" (z - x0), "edm", "edm_v",
        "velocity" (as the target of `q_sample`, for schedules that are functions of time), or a `views.View`. Of a
        flow it has to be said, but for samplers of flows alone.""",
        "clip": "    clip: bounds of D: c for (-c, c), or (lo, hi), or a `Threshold`. None: no bounds.",
        "spacing": """\
    spacing: how a number of steps becomes times: by index, "leading", "trailing" or "linspace"; by noise level,
        "karras", "exponential" or "beta".""",
        "options": "    **options: levels, final, final_level, model_time and others of `SpacingOptions`.",
    },
    returns="""\
    A `Sampler`, with a row of float64 coefficients for each call of the network. It runs on arrays of any shape, whose
    axis 0 is the batch, and of any kind and dtype that `update` takes.""",
    raises="""\
    ValueError: an argument lies outside of its range; the schedule does not have the times or levels; a step that draws
        noise rises, or needs more noise than there is; the sampler or the prediction divides by alpha, and x is pure
        noise there.
    TypeError: schedule is no `Schedule`, clip is no bound, there is no such argument, or steps and levels (final and
        final_level) are both given.
    ImportError: spacing "beta" without SciPy.""",
)
_EXAMPLE = """\
>>> sampler = nf.samplers.{name}(nf.Schedule.{family}(1000), steps=5)
>>> sampler.sample(lambda x, t: 0.1 * x, (2, 8), nf.Noise(7)).shape
(2, 8)"""
_FAMILIES = {"epsilon": "linear", "flow": "flow", "edm": "karras"}  # a schedule for each default prediction
_OFFERED = signature(plan).parameters

_samplers: OrderedDict[Any, Any] = OrderedDict()  # the latest ones by their arguments: a sampler never changes
_KEPT = 16


def _key(given: Any) -> Any:
    """Returns a key that tells arguments apart, also those that are equal, 1, 1.0 and True. TypeError: one is no plain
    value."""
    if isinstance(given, list | tuple):
        return type(given), *map(_key, given)
    if isinstance(given, np.ndarray) and given.dtype.kind in "iuf":
        return given.dtype.str, given.shape, given.tobytes()
    if given is None or isinstance(given, bool | int | float | str | np.integer | np.floating):
        return type(given), repr(given)
    if type(given) is not Schedule:
        raise TypeError
    return given


def _check_no_flow(schedule: Any) -> None:
    """Raises ValueError for a flow: few of its networks predict epsilon, so the default would seldom be meant."""
    if isinstance(schedule, Schedule) and schedule.axis.family == "flow":
        raise ValueError(
            'prediction: say what a flow\'s network predicts, as a rule prediction="flow" (z - x0), the default of '
            'flow_euler; got none, and "epsilon" is the default of other schedules'
        )


def sampler(
    *, prediction: Literal["epsilon", "flow", "edm"] = "epsilon", spacing: Spacing = "linspace"
) -> Callable[[Callable[P, Tableau]], Callable[P, Sampler]]:
    """Returns a decorator. It turns a rule into a function that returns the `Sampler` of the rule's table.

    The function has the rule's arguments and then prediction, clip and spacing of `PlanOptions`, with these defaults.
    A rule that does not take all three names those that it takes itself, as arguments.
    """

    def decorate(rule: Callable[P, Tableau]) -> Callable[P, Sampler]:
        own = signature(rule)
        named = "prediction" in own.parameters
        defaults = {} if named else {"prediction": prediction, "clip": None, "spacing": spacing}

        @wraps(rule)
        def whole(*args: P.args, **kwargs: P.kwargs) -> Tableau:
            if prediction == "epsilon" and "prediction" not in kwargs:
                _check_no_flow(args[0] if args else kwargs.get("schedule"))
            with np.errstate(all="ignore"):  # of rows that a rule leaves out; a table refuses what is not finite
                return rule(*args, **{**defaults, **kwargs})  # type: ignore[arg-type]

        arguments = [argument for name, argument in own.parameters.items() if name != "options"]
        arguments += [_OFFERED[name].replace(default=default) for name, default in defaults.items()]
        arguments.append(_OFFERED["options"])
        vars(whole)["__signature__"] = own.replace(parameters=arguments, return_annotation="Sampler")
        example = _EXAMPLE.format(name=rule.__name__, family=_FAMILIES[prediction])
        make = built(Sampler, whole, _SHARED, [*SpacingOptions.__annotations__], example)

        @wraps(make)
        def kept(*args: P.args, **kwargs: P.kwargs) -> Sampler:
            try:
                key = make, _key(args), _key([*kwargs.items()])
            except TypeError:  # a function may answer differently the next time
                return make(*args, **kwargs)
            found: Sampler = _samplers.pop(key, None) or make(*args, **kwargs)
            _samplers[key] = found
            if len(_samplers) > _KEPT:
                _samplers.popitem(last=False)
            return found

        vars(kept)["__wrapped__"] = whole
        return kept

    return decorate
