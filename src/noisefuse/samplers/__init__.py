# SPDX-License-Identifier: Apache-2.0
"""Samplers: ``nf.samplers.ddim(schedule, steps=50, ..)`` returns a ``Sampler``.

One small file per family holds the rules, functions from a schedule to a table of rows. ``@sampler`` (shared.py) turns
each into a function that returns a ``Sampler``; ``ddim.__wrapped__`` is the rule itself, with the same defaults.

All accept ``steps`` (a number, or the times themselves), ``prediction`` (a name in ``views.VIEWS`` or a ``View``),
``clip`` (c, (lo, hi), ``Threshold`` or None), ``spacing`` and the ``SpacingOptions``. A rule hands them on as
``PlanOptions``, and ``@sampler`` states their defaults. A rule's docstring has its equation and its own arguments; the
shared ones are added.

Samplers of tokens (``tokens/samplers.py``) are functions here, too: ``nf.samplers.mdlm(steps=50, mask_id=..)`` returns
a ``DiscreteSampler``.
"""

from .. import discrete_sampler as discrete_sampler  # the page shows the class of samplers of tokens
from ..ground.lazy import show_public
from ..tokens.samplers import d3pm, discrete_flow, dream, entropy_bound, llada, mdlm, remdm, sedd, uniform_ddim
from . import interpolants as interpolants
from .adams import deis, gradient_estimation, ipndm, ipndm_v, lms, pndm
from .cfg_pp import (
    dpmpp_2m_cfg_pp,
    dpmpp_2s_ancestral_cfg_pp,
    euler_ancestral_cfg_pp,
    euler_cfg_pp,
    gradient_estimation_cfg_pp,
    res_multistep_cfg_pp,
)
from .consistency import lcm, tcd
from .dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_singlestep
from .exponential import er_sde, res_multistep, sa_solver, seeds_2, seeds_3
from .one_step import ddim, ddim_inverse, ddpm, euler, euler_ancestral, flow_euler, repaint
from .plan import PlanOptions as PlanOptions
from .plan import Threshold
from .policies import dance_sde, flow_cps, flow_sde
from .predictor_corrector import unipc
from .spacing import SpacingOptions as SpacingOptions
from .two_stage import dpm_2, dpm_2_ancestral, dpm_solver, dpmpp_2s_ancestral, dpmpp_sde, edm, flow_heun, heun, heunpp2
from .two_stage import rk4 as rk4

__all__ = [
    "Threshold", "d3pm", "dance_sde", "ddim", "ddim_inverse", "ddpm", "deis", "discrete_flow", "dpm_2",
    "dpm_2_ancestral", "dpm_solver", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp", "dpmpp_3m_sde", "dpmpp_sde", "dpmpp_singlestep", "dream", "edm", "entropy_bound",
    "er_sde", "euler", "euler_ancestral", "euler_ancestral_cfg_pp", "euler_cfg_pp", "flow_cps", "flow_euler",
    "flow_heun", "flow_sde", "gradient_estimation", "gradient_estimation_cfg_pp", "heun", "heunpp2", "ipndm", "ipndm_v",
    "lcm", "llada", "lms", "mdlm", "pndm", "remdm", "repaint", "res_multistep", "res_multistep_cfg_pp", "rk4",
    "sa_solver", "sedd", "seeds_2", "seeds_3", "tcd", "uniform_ddim", "unipc",
]  # fmt: skip

show_public(__name__, "interpolants")
