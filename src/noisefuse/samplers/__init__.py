# SPDX-License-Identifier: Apache-2.0
"""Samplers: ``nf.samplers.ddim(schedule, steps=50, ..)`` returns a ``Sampler``.

One small file per family holds the rules, functions from a schedule to a table of rows. Here each becomes a
function that returns a ``Sampler``; ``ddim.__wrapped__`` is the rule itself.

All accept ``steps`` (how many, or the times themselves), ``prediction`` (a name of ``views.VIEWS`` or a ``View``),
``clip`` (c, (lo, hi), ``Threshold`` or None), ``spacing`` and the ``SpacingOptions``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec

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


def _sampler(rule: Callable[P, Tableau]) -> Callable[P, Sampler]:
    accepted = [name for name in signature(rule).parameters if name != "options"] + list(SpacingOptions.__annotations__)

    @wraps(rule)
    def make(*args: P.args, **kwargs: P.kwargs) -> Sampler:
        for name in kwargs:
            if name not in accepted:
                raise TypeError(f"{rule.__name__} has no argument {name!r}: it takes {', '.join(accepted)}")
        return Sampler(rule(*args, **kwargs))

    make.__annotations__["return"] = "Sampler"
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
