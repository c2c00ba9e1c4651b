# SPDX-License-Identifier: Apache-2.0
"""k-diffusion's sampling functions, run by rows, with the same names, arguments, defaults and callbacks.

    from noisefuse.interop.k_diffusion import sample_dpmpp_2m  # k_diffusion.sampling.sample_dpmpp_2m

The functions are those of k_diffusion/sampling.py (Crowson 2022) and of ComfyUI's comfy/k_diffusion/sampling.py, its
whole menu (`MENU`). Neither library is needed. docs/k_diffusion.md says what differs.

The model has their interface, ``model(x, sigma, **extra_args)``, sigma (B,), and returns the clean sample, x = x0 +
sigma z. Each step is one pass, and returns a new tensor x.

By default the noise is theirs: ``torch.randn_like``, from torch's generator, so a seed gives the same picture as there;
or, as in ComfyUI, from a generator of ``extra_args["seed"]``. ``noise=``, a `Noise` or a list of them, one for each
sample of the batch, is drawn within the step: by row i, the i-th model call, from stream 3 at step ``noise.step + i``,
as in `Sampler.step`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import noisefuse as nf

from ...ground.docstrings import documented
from ...ground.lazy import show_as
from ...ground.needs import needs
from ...language.noise import Noises

with needs(__name__, "torch"):
    import torch

from . import adaptive, loop
from .docs import SHARED
from .loop import Callback, Model
from .menu import MENU, Entry, Function, function
from .noise import ExtraArgs, NoiseSampler, brownian_noise_sampler, by_torch, noise_sampler, seed_in

__all__ = [
    "MENU", "Entry", "brownian_noise_sampler", "noise_sampler", "sample_ddim", "sample_ddpm", "sample_deis",
    "sample_dpm_2", "sample_dpm_2_ancestral", "sample_dpm_adaptive", "sample_dpm_fast", "sample_dpmpp_2m",
    "sample_dpmpp_2m_cfg_pp", "sample_dpmpp_2m_sde", "sample_dpmpp_2m_sde_gpu", "sample_dpmpp_2m_sde_heun",
    "sample_dpmpp_2m_sde_heun_gpu", "sample_dpmpp_2s_ancestral", "sample_dpmpp_2s_ancestral_cfg_pp",
    "sample_dpmpp_3m_sde", "sample_dpmpp_3m_sde_gpu", "sample_dpmpp_sde", "sample_dpmpp_sde_gpu", "sample_er_sde",
    "sample_euler", "sample_euler_ancestral", "sample_euler_ancestral_cfg_pp", "sample_euler_cfg_pp",
    "sample_exp_heun_2_x0", "sample_exp_heun_2_x0_sde", "sample_gradient_estimation",
    "sample_gradient_estimation_cfg_pp", "sample_heun", "sample_heunpp2", "sample_ipndm", "sample_ipndm_v",
    "sample_lcm", "sample_lms", "sample_res_multistep", "sample_res_multistep_ancestral",
    "sample_res_multistep_ancestral_cfg_pp", "sample_res_multistep_cfg_pp", "sample_sa_solver", "sample_sa_solver_pece",
    "sample_seeds_2", "sample_seeds_3",
]  # fmt: skip

show_as(__name__, Entry, brownian_noise_sampler, noise_sampler)

sample_euler: Function = function("euler")
sample_euler_cfg_pp: Function = function("euler_cfg_pp")
sample_euler_ancestral: Function = function("euler_ancestral")
sample_euler_ancestral_cfg_pp: Function = function("euler_ancestral_cfg_pp")
sample_heun: Function = function("heun")
sample_heunpp2: Function = function("heunpp2")
sample_exp_heun_2_x0: Function = function("exp_heun_2_x0")
sample_exp_heun_2_x0_sde: Function = function("exp_heun_2_x0_sde")
sample_dpm_2: Function = function("dpm_2")
sample_dpm_2_ancestral: Function = function("dpm_2_ancestral")
sample_lms: Function = function("lms")
sample_dpmpp_2s_ancestral: Function = function("dpmpp_2s_ancestral")
sample_dpmpp_2s_ancestral_cfg_pp: Function = function("dpmpp_2s_ancestral_cfg_pp")
sample_dpmpp_sde: Function = function("dpmpp_sde")
sample_dpmpp_sde_gpu: Function = function("dpmpp_sde_gpu")
sample_dpmpp_2m: Function = function("dpmpp_2m")
sample_dpmpp_2m_cfg_pp: Function = function("dpmpp_2m_cfg_pp")
sample_dpmpp_2m_sde: Function = function("dpmpp_2m_sde")
sample_dpmpp_2m_sde_gpu: Function = function("dpmpp_2m_sde_gpu")
sample_dpmpp_2m_sde_heun: Function = function("dpmpp_2m_sde_heun")
sample_dpmpp_2m_sde_heun_gpu: Function = function("dpmpp_2m_sde_heun_gpu")
sample_dpmpp_3m_sde: Function = function("dpmpp_3m_sde")
sample_dpmpp_3m_sde_gpu: Function = function("dpmpp_3m_sde_gpu")
sample_ddim: Function = function("ddim")
sample_ddpm: Function = function("ddpm")
sample_lcm: Function = function("lcm")
sample_ipndm: Function = function("ipndm")
sample_ipndm_v: Function = function("ipndm_v")
sample_deis: Function = function("deis")
sample_res_multistep: Function = function("res_multistep")
sample_res_multistep_cfg_pp: Function = function("res_multistep_cfg_pp")
sample_res_multistep_ancestral: Function = function("res_multistep_ancestral")
sample_res_multistep_ancestral_cfg_pp: Function = function("res_multistep_ancestral_cfg_pp")
sample_gradient_estimation: Function = function("gradient_estimation")
sample_gradient_estimation_cfg_pp: Function = function("gradient_estimation_cfg_pp")
sample_er_sde: Function = function("er_sde")
sample_seeds_2: Function = function("seeds_2")
sample_seeds_3: Function = function("seeds_3")
sample_sa_solver: Function = function("sa_solver")
sample_sa_solver_pece: Function = function("sa_solver_pece")


@documented(SHARED)
def sample_dpm_fast(
    model: Model, x: torch.Tensor, sigma_min: float, sigma_max: float, n: int, extra_args: ExtraArgs = None,
    callback: Callback = None, disable: bool | None = None, eta: float = 0.0, s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None, *, noise: Noises | None = None,
) -> torch.Tensor:  # fmt: skip
    """`samplers.dpm_solver`, Lu et al. 2022, with n model calls in steps of order 3 and of equal length in log sigma.

    The last steps are of order 2 and 1, or of what 3 leaves of n. It ends at sigma_min.

    >>> import torch
    >>> from noisefuse.interop.k_diffusion import sample_dpm_fast
    >>> x = 10 * torch.randn(2, 3)
    >>> sample_dpm_fast(lambda x, sigma: x / (1 + sigma[:, None] ** 2), x, 0.1, 10.0, 8, disable=True).shape
    torch.Size([2, 3])
    """
    least, most = _above_0(sigma_min, sigma_max)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    whole, rest = divmod(int(n), 3)
    orders = (*[3] * whole, rest) if rest else (*[3] * (whole - 1), 2, 1)
    levels = np.exp(np.linspace(math.log(most), math.log(least), len(orders) + 1))
    call = loop.Call(model, x, torch.tensor(levels, device=x.device), extra_args, callback, disable)
    return loop.sample(call, noise, noise_sampler, nf.samplers.dpm_solver, s_noise, order=orders, eta=eta)


@documented(SHARED)
def sample_dpm_adaptive(
    model: Model, x: torch.Tensor, sigma_min: float, sigma_max: float, extra_args: ExtraArgs = None,
    callback: Callback = None, disable: bool | None = None, order: int = 3, rtol: float = 0.05, atol: float = 0.0078,
    h_init: float = 0.05, pcoeff: float = 0.0, icoeff: float = 1.0, dcoeff: float = 0.0, accept_safety: float = 0.81,
    eta: float = 0.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, return_info: bool = False, *,
    noise: Noises | None = None,
) -> Any:  # fmt: skip
    """`samplers.dpm_solver` with steps that its error sets, Lu et al. 2022, from sigma_max to sigma_min.

    A step is made by the solvers of ``order`` and of one order less. It is repeated, shorter, if their difference is
    too large beside max(atol, rtol |x|). The whole batch has one error, so a sample depends on the others there.

    Args:
        order: 2 or 3.
        rtol, atol: how large the difference may be.
        h_init: the first step's length in log sigma.
        pcoeff, icoeff, dcoeff: the PID controller's.
        accept_safety: a step is accepted if the next one would be at least so many times as long.
        return_info: return (x, info), too: {"steps", "nfe", "n_accept", "n_reject"}.
        noise: a Noise, or a list with one for each sample: increments of one Brownian motion in sigma
            (`brownian_noise_sampler`), whatever the steps are. None: drawn from torch, as theirs.
        callback: gets also "t" and "t_up", -log sigma, "error", "h" and the info, after each attempt.

    >>> import torch
    >>> from noisefuse.interop.k_diffusion import sample_dpm_adaptive
    >>> x = 10 * torch.randn(2, 3)
    >>> sample_dpm_adaptive(lambda x, sigma: x / (1 + sigma[:, None] ** 2), x, 0.1, 10.0, disable=True).shape
    torch.Size([2, 3])
    """
    least, most = _above_0(sigma_min, sigma_max)
    if order not in (2, 3):
        raise ValueError(f"order must be 2 or 3, got {order!r}")
    if eta and most <= least:
        raise ValueError(f"eta must be 0 for a run that rises, from {most:g} to {least:g}, got {eta}")
    if noise is not None and noise_sampler is not None:
        raise TypeError("noise, noise_sampler: give one of them")
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    extra = extra_args or {}
    draw = noise_sampler or by_torch(x, seed_in(extra_args) if eta else None)
    if noise is not None:
        draw = brownian_noise_sampler(x, least, most, noise)
    numbers = (order, rtol, atol, h_init, pcoeff, icoeff, dcoeff, accept_safety, eta, s_noise)
    with torch.no_grad():
        x, info = adaptive.sample(
            lambda x, sigma: model(x, x.new_full(x.shape[:1], sigma), **extra),
            x, least, most, adaptive.Options(*numbers), draw, callback or (lambda told: None),
        )  # fmt: skip
    return (x, info) if return_info else x


def _above_0(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    least, most = float(sigma_min), float(sigma_max)
    if not (least > 0 and most > 0):
        raise ValueError(f"sigma_min and sigma_max must be above 0, got {least} and {most}")
    return least, most
