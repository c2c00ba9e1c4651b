# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's menu of samplers, and a function for each name on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch

import noisefuse as nf

from ...ground.docstrings import Shared, documented
from ...language.noise import Noises
from . import loop
from .docs import BROWNIAN, EXAMPLE, GUIDED_EXAMPLE, SHARED
from .loop import Callback, Model
from .noise import ExtraArgs, NoiseSampler, of_seed


class Function(Protocol):
    """The functions' type for type checkers: it has every parameter of every function."""

    def __call__(
        self, model: Model, x: torch.Tensor, sigmas: torch.Tensor, extra_args: ExtraArgs = None,
        callback: Callback = None, disable: bool | None = None, *own: Any, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), eta: float = 1.0, s_noise: float = 1.0, s_noise_end: float | None = None,
        noise_clip_std: float = 0.0, noise_sampler: NoiseSampler | None = None,
        noise_scaler: Callable[[torch.Tensor], torch.Tensor] | None = None, r: float = 0.5, r_1: float = 1 / 3,
        r_2: float = 2 / 3, solver_type: Literal["midpoint", "heun", "phi_1", "phi_2"] = "midpoint", order: int = 4,
        max_order: int = 4, max_stage: int = 3, deis_mode: Literal["tab"] = "tab", ge_gamma: float = 2.0,
        tau_func: Callable[[float], float] | None = None, predictor_order: int = 3, corrector_order: int = 4,
        use_pece: bool = False, simple_order_2: bool = False, noise: Noises | None = None, flow: bool = False,
    ) -> torch.Tensor: ...  # fmt: skip


_PARAMETERS = inspect.signature(Function.__call__).parameters
_OPTIONS = {"max_order": "order", "ge_gamma": "gamma", "solver_type": "solver"}  # a rule's names, if they differ
_SOLVERS = {"midpoint": "midpoint", "heun": "heun", "phi_1": "midpoint", "phi_2": "heun"}


class Entry(NamedTuple):
    """An entry of ComfyUI's menu of samplers: our function for its name, or the reason why there is none.

    Attributes:
        sampler: the name of the sampler in `nf.samplers` by which it runs; "" where there is none.
        flow: what happens to flow models: "same" (the steps of x0 + sigma z are right for flows), "own" (formulas for
            flows, with ``flow=True``), or "level" (as in ComfyUI, the noise that is drawn, or the guidance, is of
            x0 + sigma z, so that x leaves the flow's levels).
        below_one: whether a flow begins below sigma = 1.
        note: how it differs, or why there is none.

    >>> from noisefuse.interop.k_diffusion import MENU
    >>> MENU["exp_heun_2_x0"]
    Entry(sampler='seeds_2', flow='own', below_one=True, note='`r=1`, `eta=0`')
    """

    sampler: str
    flow: Literal["same", "own", "level", ""] = "same"
    below_one: bool = False
    note: str = ""


class _Rule(NamedTuple):
    """Says how a function is made: see `function`."""

    doc: str
    own: str = ""
    shared: Shared = SHARED
    rule: Callable[..., nf.Sampler] | None = None  # by default the sampler
    fixed: Mapping[str, Any] = MappingProxyType({})  # options of the rule that the function does not offer
    defaults: Mapping[str, Any] = MappingProxyType({})  # of parameters, where they are other than in Function


def _sa_solver(
    schedule: nf.Schedule, *, levels: Sequence[float], final_level: float, tau_func: Callable[[float], float] | None,
    use_pece: bool, **options: Any,
) -> nf.Sampler:  # fmt: skip
    """Returns SA-Solver with ComfyUI's options: a step's tau is that of its end, and only a run to clean data ends with
    lower orders."""
    tau = 1.0 if tau_func is None else [float(tau_func(level)) for level in (*levels[1:], final_level)]
    ends: dict[str, Any] = {"lower_order_final": final_level == 0, "pece": use_pece}
    return nf.samplers.sa_solver(schedule, levels=levels, final_level=final_level, tau=tau, **ends, **options)


def _er_sde(
    schedule: nf.Schedule, *, noise_scaler: Callable[[torch.Tensor], torch.Tensor] | None, max_stage: int,
    **options: Any,
) -> nf.Sampler:  # fmt: skip
    """Returns ER-SDE with ComfyUI's sums, and a scale of the noise that takes tensors."""
    phi = None if noise_scaler is None else lambda level: np.asarray(noise_scaler(torch.from_numpy(level)))
    return nf.samplers.er_sde(schedule, order=max_stage, phi=phi, points=200, **options)


def _deis(schedule: nf.Schedule, *, deis_mode: str, **options: Any) -> nf.Sampler:
    """Returns DEIS with ComfyUI's sums."""
    if deis_mode != "tab":
        raise ValueError(f"deis_mode must be tab, got {deis_mode!r}; sample_lms has Adams' method in sigma")
    own: dict[str, Any] = {"variable": "vp_time", "points": 10_000, "lower_order_final": False}
    return nf.samplers.deis(schedule, **own, **options)


def _signature(own: str, defaults: Mapping[str, Any]) -> inspect.Signature:
    """Returns the parameters that all functions have, followed by a function's own. Ours are keyword arguments."""
    named = [_PARAMETERS[name] for name in (*loop.Call._fields, *own.split())]
    kinds = [p.KEYWORD_ONLY if p.name in ("noise", "flow") else p.POSITIONAL_OR_KEYWORD for p in named]
    return inspect.Signature(
        [p.replace(kind=kind, default=defaults.get(p.name, p.default)) for p, kind in zip(named, kinds, strict=True)],
        return_annotation="torch.Tensor",
    )


def function(menu_name: str) -> Function:
    """Returns the function of a name on the menu."""
    entry, how = MENU[menu_name], _RULES[menu_name.removesuffix("_gpu")]
    rule: Callable[..., Any] = how.rule or getattr(nf.samplers, entry.sampler)
    own = f"{how.own} flow" if entry.flow == "own" else how.own
    name, signature = f"sample_{menu_name}", _signature(own, how.defaults)
    solvers = ("phi_1", "phi_2") if str(how.defaults.get("solver_type")).startswith("phi") else ("midpoint", "heun")
    run: dict[str, Any] = {"below_one": entry.below_one, "guided": menu_name.endswith("cfg_pp"), **how.fixed}

    def sample(*args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}() {error}") from None
        bound.apply_defaults()
        arguments = bound.arguments
        call = loop.Call(*(arguments.pop(key) for key in loop.Call._fields))
        noise, drawn = arguments.pop("noise", None), arguments.pop("noise_sampler", None)
        s_noise, s_end = arguments.pop("s_noise", 1.0), arguments.pop("s_noise_end", None)
        clip = float(arguments.pop("noise_clip_std", 0.0))
        if "solver_type" in arguments:
            if arguments["solver_type"] not in solvers:
                raise ValueError(f"solver_type must be {' or '.join(solvers)}, got {arguments['solver_type']!r}")
            arguments["solver_type"] = _SOLVERS[arguments["solver_type"]]
        if how.shared is BROWNIAN and noise is None and drawn is None:
            noise = of_seed(call.extra_args)
        churn = {key: arguments.pop(key) for key in ("s_churn", "s_tmin", "s_tmax") if key in arguments}
        if churn.get("s_churn", 0) > 0:
            return loop.sample(call, noise, None, loop.churned, s_noise, method=rule, **churn)
        options = {_OPTIONS.get(key, key): value for key, value in arguments.items()}
        factor = 1.0 if churn else s_noise if s_end is None else (float(s_noise), float(s_end))
        return loop.sample(call, noise, drawn, rule, factor, clip=clip, **options, **run)

    sample.__module__, sample.__name__, sample.__qualname__ = __package__, name, name
    sample.__doc__ = f"`samplers.{entry.sampler}`, {how.doc}" if __doc__ else None  # python -OO
    sample.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()} | {"return": "torch.Tensor"}
    sample.__dict__["__signature__"] = signature
    return documented(how.shared, GUIDED_EXAMPLE if run["guided"] else EXAMPLE)(sample)


_CHURNED, _ANCESTRAL = "s_churn s_tmin s_tmax s_noise noise", "eta s_noise noise_sampler noise"
_GPU = "it draws where x lies"
_BELOW: dict[str, Any] = {"flow": "own", "below_one": True}

MENU: dict[str, Entry] = {
    "euler": Entry("euler"),
    "euler_cfg_pp": Entry("euler_cfg_pp", "own"),
    "euler_ancestral": Entry("euler_ancestral", "own"),
    "euler_ancestral_cfg_pp": Entry("euler_ancestral_cfg_pp", "own"),
    "heun": Entry("heun"),
    "heunpp2": Entry("heunpp2"),
    "exp_heun_2_x0": Entry("seeds_2", **_BELOW, note="`r=1`, `eta=0`"),
    "exp_heun_2_x0_sde": Entry("seeds_2", **_BELOW, note="`r=1`"),
    "dpm_2": Entry("dpm_2"),
    "dpm_2_ancestral": Entry("dpm_2_ancestral", "own"),
    "lms": Entry("lms", note="orders 1 to 4; k-diffusion's last step"),
    "dpm_fast": Entry("dpm_solver", note="with `eta` above 0 a flow leaves its levels"),
    "dpm_adaptive": Entry("dpm_solver", note="a loop: the error sets the steps; `eta` as in dpm_fast"),
    "dpmpp_2s_ancestral": Entry("dpmpp_2s_ancestral", "own"),
    "dpmpp_2s_ancestral_cfg_pp": Entry("dpmpp_2s_ancestral_cfg_pp", "own"),
    "dpmpp_sde": Entry("dpmpp_sde", **_BELOW),
    "dpmpp_sde_gpu": Entry("dpmpp_sde", **_BELOW, note=_GPU),
    "dpmpp_2m": Entry("dpmpp_2m"),
    "dpmpp_2m_cfg_pp": Entry("dpmpp_2m_cfg_pp", "level"),
    "dpmpp_2m_sde": Entry("dpmpp_2m_sde", **_BELOW),
    "dpmpp_2m_sde_gpu": Entry("dpmpp_2m_sde", **_BELOW, note=_GPU),
    "dpmpp_2m_sde_heun": Entry("dpmpp_2m_sde", **_BELOW),
    "dpmpp_2m_sde_heun_gpu": Entry("dpmpp_2m_sde", **_BELOW, note=_GPU),
    "dpmpp_3m_sde": Entry("dpmpp_3m_sde", **_BELOW),
    "dpmpp_3m_sde_gpu": Entry("dpmpp_3m_sde", **_BELOW, note=_GPU),
    "ddpm": Entry("ddpm", "level"),
    "lcm": Entry("lcm", "own"),
    "ipndm": Entry("ipndm"),
    "ipndm_v": Entry("ipndm_v"),
    "deis": Entry("deis", note="orders 1 to 3; no `rhoab`"),
    "res_multistep": Entry("res_multistep"),
    "res_multistep_cfg_pp": Entry("res_multistep_cfg_pp", "level"),
    "res_multistep_ancestral": Entry("res_multistep", "level"),
    "res_multistep_ancestral_cfg_pp": Entry("res_multistep_cfg_pp", "level"),
    "gradient_estimation": Entry("gradient_estimation", note="`cfg_pp` is the next function"),
    "gradient_estimation_cfg_pp": Entry("gradient_estimation_cfg_pp", "level"),
    "er_sde": Entry("er_sde", **_BELOW),
    "seeds_2": Entry("seeds_2", **_BELOW),
    "seeds_3": Entry("seeds_3", **_BELOW),
    "sa_solver": Entry("sa_solver", **_BELOW, note="`tau_func=None` is 1; the nodes take ComfyUI's interval"),
    "sa_solver_pece": Entry("sa_solver", **_BELOW, note="likewise"),
    "ddim": Entry("euler", note="`euler`; under a mask ComfyUI draws other noise for what is known, as the nodes do"),
    "uni_pc": Entry("", "", note="other steps near the end; `samplers.unipc`"),
    "uni_pc_bh2": Entry("", "", note="likewise"),
}
"""ComfyUI's menu of samplers, an `Entry` for each of its names. ``sample_NAME`` is the function, where there is one."""

_CROWSON, _KARRAS = "k-diffusion's own method (Crowson 2022).", "with the churn of Karras et al. 2022, algorithm 2."
_TO_THE_END = "Lu et al. 2022, section 5, with steps of second order to the end."
_2S = """on one Brownian path.

A noise_sampler is called for (sigma, s) and (s, sigma'), the two pieces of a step, with s where the model is called
for the second time. k-diffusion asks for (sigma, s) and (sigma, sigma'), the same of one Brownian motion."""
_CFG_PP = "with CFG++, Chung et al. 2024; ComfyUI."
_HEUN = {"solver_type": "phi_2"}
_MULTISTEP_SDE = _Rule(
    _TO_THE_END, "eta s_noise noise_sampler solver_type noise", BROWNIAN, fixed={"lower_order_final": False}
)
_MULTISTEP_HEUN = _MULTISTEP_SDE._replace(defaults={"solver_type": "heun"})
_RULES: dict[str, _Rule] = {
    "ddim": _Rule(f"{_KARRAS[:-1]}: ComfyUI's other name of `sample_euler`.", _CHURNED),
    "euler": _Rule(_KARRAS, _CHURNED),
    "euler_cfg_pp": _Rule(_CFG_PP),
    "euler_ancestral": _Rule(
        f"""{_CROWSON}

>>> import torch
>>> from noisefuse.interop.k_diffusion import sample_euler_ancestral
>>> sigmas, x = torch.tensor([10.0, 3.0, 1.0, 0.0]), 10 * torch.randn(2, 3)
>>> sample_euler_ancestral(lambda x, sigma: 0.1 * x, x, sigmas, noise=[nf.Noise(11), nf.Noise(12)]).shape
torch.Size([2, 3])""",
        _ANCESTRAL,
    ),
    "euler_ancestral_cfg_pp": _Rule(_CFG_PP, _ANCESTRAL),
    "heun": _Rule(_KARRAS, _CHURNED),
    "heunpp2": _Rule("ComfyUI.", _CHURNED),
    "exp_heun_2_x0": _Rule(
        "exponential Heun: Gonzalez et al. 2023; ComfyUI.", "solver_type", fixed={"r": 1.0, "eta": 0.0}, defaults=_HEUN
    ),
    "exp_heun_2_x0_sde": _Rule(
        "exponential Heun of the SDE: Gonzalez et al. 2023; ComfyUI.",
        "eta s_noise noise_sampler solver_type noise",
        fixed={"r": 1.0},
        defaults=_HEUN,
    ),
    "dpm_2": _Rule(_KARRAS, _CHURNED),
    "dpm_2_ancestral": _Rule(_CROWSON, _ANCESTRAL),
    "lms": _Rule(_CROWSON, "order"),
    "dpmpp_2s_ancestral": _Rule("Lu et al. 2022, algorithm 1, with fresh noise.", _ANCESTRAL),
    "dpmpp_2s_ancestral_cfg_pp": _Rule(_CFG_PP, _ANCESTRAL),
    "dpmpp_sde": _Rule(_2S, "eta s_noise noise_sampler r noise", BROWNIAN),
    "dpmpp_2m": _Rule("Lu et al. 2022, with steps of second order to the end.", fixed={"lower_order_final": False}),
    "dpmpp_2m_cfg_pp": _Rule(_CFG_PP),
    "dpmpp_2m_sde": _MULTISTEP_SDE,
    "dpmpp_2m_sde_heun": _MULTISTEP_HEUN,
    "dpmpp_3m_sde": _Rule(_CROWSON, _ANCESTRAL, BROWNIAN),
    "ddpm": _Rule("Ho et al. 2020; ComfyUI.", "noise_sampler noise"),
    "lcm": _Rule(
        "Luo et al. 2023, without its c_skip: x' = D + sigma' z; ComfyUI.",
        "noise_sampler s_noise s_noise_end noise_clip_std noise",
        fixed={"sigma_data": 0.0},
    ),
    "ipndm": _Rule("Zhang & Chen 2022; ComfyUI.", "max_order"),
    "ipndm_v": _Rule("Zhou et al. 2023; ComfyUI.", "max_order"),
    "deis": _Rule(
        "Zhang & Chen 2022, in the time of diff-sampler (Zhou et al. 2023); ComfyUI.",
        "max_order deis_mode",
        rule=_deis,
        defaults={"max_order": 3},
    ),
    "res_multistep": _Rule("Zhang et al. 2023; ComfyUI.", "s_noise noise_sampler noise"),
    "res_multistep_cfg_pp": _Rule(_CFG_PP, "s_noise noise_sampler noise"),
    "res_multistep_ancestral": _Rule("Zhang et al. 2023, with fresh noise; ComfyUI.", _ANCESTRAL),
    "res_multistep_ancestral_cfg_pp": _Rule(_CFG_PP, _ANCESTRAL),
    "gradient_estimation": _Rule("Permenter & Yuan 2023; ComfyUI.", "ge_gamma"),
    "gradient_estimation_cfg_pp": _Rule(_CFG_PP, "ge_gamma"),
    "er_sde": _Rule("Cui et al. 2023; ComfyUI.", "s_noise noise_sampler noise_scaler max_stage noise", rule=_er_sde),
    "seeds_2": _Rule(
        "Gonzalez et al. 2023; ComfyUI.",
        "eta s_noise noise_sampler r solver_type noise",
        defaults={"solver_type": "phi_1"},
    ),
    "seeds_3": _Rule("Gonzalez et al. 2023; ComfyUI.", "eta s_noise noise_sampler r_1 r_2 noise"),
    "sa_solver": _Rule(
        "Xue et al. 2023; ComfyUI.",
        "tau_func s_noise noise_sampler predictor_order corrector_order use_pece simple_order_2 noise",
        rule=_sa_solver,
    ),
    "sa_solver_pece": _Rule(
        "Xue et al. 2023, with a second call at corrected samples; ComfyUI.",
        "tau_func s_noise noise_sampler predictor_order corrector_order simple_order_2 noise",
        rule=_sa_solver,
        fixed={"use_pece": True},
    ),
}
