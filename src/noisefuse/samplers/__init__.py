# SPDX-License-Identifier: Apache-2.0
"""Samplers: ``nf.samplers.ddim(schedule, steps=50, ..)`` returns a ``Sampler``.

One small file per family holds the rules, functions from a schedule to a table of rows. Here each becomes a
function that returns a ``Sampler``; ``ddim.__wrapped__`` is the rule itself.

All accept ``steps`` (how many, or the times themselves), ``prediction`` (a name of ``views.VIEWS`` or a ``View``),
``clip`` (c, (lo, hi), ``Threshold`` or None), ``spacing`` and the ``SpacingOptions``. A rule's docstring is its
equation and the arguments of its own; what all share is added here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec

from ..docstrings import Shared, completed
from ..sampler import Sampler
from ..tableau import Tableau
from . import adams, cfg_pp, consistency, dpmpp, exponential, one_step, policies, predictor_corrector, two_stage
from .plan import Threshold
from .spacing import SpacingOptions

__all__ = [
    "Threshold",
    "dance_sde",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "deis",
    "dpm_2",
    "dpm_2_ancestral",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "dpmpp_singlestep",
    "edm",
    "er_sde",
    "euler",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "euler_cfg_pp",
    "flow_cps",
    "flow_euler",
    "flow_heun",
    "flow_sde",
    "gradient_estimation",
    "heun",
    "heunpp2",
    "ipndm",
    "ipndm_v",
    "lcm",
    "lms",
    "pndm",
    "repaint",
    "res_multistep",
    "sa_solver",
    "seeds_2",
    "seeds_3",
    "tcd",
    "unipc",
]

P = ParamSpec("P")

_SHARED = Shared(
    args={
        "schedule": "    schedule: the levels of noise, a `Schedule`.",
        "steps": """\
    steps: how many, or the times themselves, such as [900, 500, 100]: indices of the schedule, or levels sigma > 0
        where alpha = 1 or alpha + sigma = 1.""",
        "eta": """\
    eta: how much of the noise is drawn anew: 0, none, follows the ODE; 1: as much as the reverse process draws.""",
        "order": "    order: at most so many answers of the network make a step, 1 to 4.",
        "window": """\
    window: (begin, end): rows begin .. end - 1 draw noise, the others follow the ODE (Li et al. 2025, MixGRPO). None:
        all draw.""",
        "original_steps": "    original_steps: how many times the network was distilled for.",
        "prediction": """\
    prediction: what the network predicts: "epsilon", "sample" (x0), "v", "flow" (z - x0), "edm", "edm_v", or a
        `views.View`.""",
        "clip": "    clip: bounds of D: c for (-c, c), or (lo, hi), or a `Threshold`. None: no bounds.",
        "spacing": """\
    spacing: which times so many steps visit: "leading", "trailing" or "linspace", by index; "karras", "exponential" or
        "beta", by level.""",
        "options": "    **options: steps_offset, final, sigma_min, sigma_max, rho, see `SpacingOptions`.",
    },
    returns="""\
    A `Sampler`, with a row of float64 coefficients for each call of the network. It runs on arrays of any shape, axis 0
    is the batch, and of any kind and dtype that `update` takes.""",
    raises="""\
    ValueError: an argument outside of what it takes; times or levels that the schedule does not have; a step that
        rises, or more noise than there is, where noise is drawn; pure noise where the sampler or the prediction
        divides by alpha.
    TypeError: no schedule, a clip that is none, or an argument that there is not.
    ImportError: spacing "beta" without SciPy.""",
)
_EXAMPLE = """\
>>> sampler = nf.samplers.{name}(nf.Schedule.{family}(1000), steps=5)
>>> sampler.sample(lambda x, t: 0.1 * x, (2, 8), nf.Noise(7)).shape
(2, 8)"""
_FAMILIES = {"epsilon": "linear", "flow": "flow", "edm": "karras"}  # a schedule for each prediction that is a default


def _sampler(rule: Callable[P, Tableau]) -> Callable[P, Sampler]:
    parameters = signature(rule).parameters
    accepted = [name for name in parameters if name != "options"] + list(SpacingOptions.__annotations__)

    @wraps(rule)
    def make(*args: P.args, **kwargs: P.kwargs) -> Sampler:
        for name in kwargs:
            if name not in accepted:
                raise TypeError(f"{rule.__name__} has no argument {name!r}: it takes {', '.join(accepted)}")
        return Sampler(rule(*args, **kwargs))

    make.__annotations__["return"] = "Sampler"
    if rule.__doc__ is not None:  # python -OO
        example = _EXAMPLE.format(name=rule.__name__, family=_FAMILIES[parameters["prediction"].default])
        make.__doc__ = completed(rule.__doc__, parameters, _SHARED, example)
    return make


ddpm = _sampler(one_step.ddpm)
ddim = _sampler(one_step.ddim)
euler = _sampler(one_step.euler)
euler_ancestral = _sampler(one_step.euler_ancestral)
flow_euler = _sampler(one_step.flow_euler)
flow_sde = _sampler(policies.flow_sde)
flow_cps = _sampler(policies.flow_cps)
dance_sde = _sampler(policies.dance_sde)
heun = _sampler(two_stage.heun)
flow_heun = _sampler(two_stage.flow_heun)
edm = _sampler(two_stage.edm)
dpm_2 = _sampler(two_stage.dpm_2)
dpmpp_2m = _sampler(dpmpp.dpmpp_2m)
dpmpp_2m_sde = _sampler(dpmpp.dpmpp_2m_sde)
unipc = _sampler(predictor_corrector.unipc)
pndm = _sampler(adams.pndm)
lcm = _sampler(consistency.lcm)
dpm_2_ancestral = _sampler(two_stage.dpm_2_ancestral)
dpmpp_2s_ancestral = _sampler(two_stage.dpmpp_2s_ancestral)
dpmpp_sde = _sampler(two_stage.dpmpp_sde)
dpmpp_3m_sde = _sampler(dpmpp.dpmpp_3m_sde)
dpmpp_singlestep = _sampler(dpmpp.dpmpp_singlestep)
lms = _sampler(adams.lms)
ipndm = _sampler(adams.ipndm)
deis = _sampler(adams.deis)
gradient_estimation = _sampler(adams.gradient_estimation)
tcd = _sampler(consistency.tcd)
er_sde = _sampler(exponential.er_sde)
res_multistep = _sampler(exponential.res_multistep)
sa_solver = _sampler(exponential.sa_solver)
seeds_2 = _sampler(exponential.seeds_2)
seeds_3 = _sampler(exponential.seeds_3)
ipndm_v = _sampler(adams.ipndm_v)
heunpp2 = _sampler(two_stage.heunpp2)
ddim_inverse = _sampler(one_step.ddim_inverse)
repaint = _sampler(one_step.repaint)
euler_cfg_pp = _sampler(cfg_pp.euler_cfg_pp)
euler_ancestral_cfg_pp = _sampler(cfg_pp.euler_ancestral_cfg_pp)
dpmpp_2m_cfg_pp = _sampler(cfg_pp.dpmpp_2m_cfg_pp)
