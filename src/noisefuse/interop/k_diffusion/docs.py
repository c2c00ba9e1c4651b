# SPDX-License-Identifier: Apache-2.0
"""The parts of docstrings that the functions share."""

from ...ground.docstrings import Shared

_CHURN = "    s_churn, s_tmin, s_tmax: how much noise is added in all steps together, and between which levels."
_STAGES = "    r_1, r_2: where the second and the third call are, in log sigma: 0 < r_1 < r_2 <= 1."
_ORDERS = "    predictor_order, corrector_order: 1 to 3, and 0 (none) to 4."
_ENDS = "    sigma_min, sigma_max: where the run ends and begins, above 0."
SHARED = Shared(
    args={
        "model": "    model: model(x, sigma, **extra_args) -> the clean sample; sigma (B,), of x's dtype.",
        "x": "    x: at the first level, x0 + sigma z; axis 0 is the batch. Not changed.",
        "sigmas": "    sigmas: (n + 1,), the levels of the n steps and where the last one goes, usually 0.",
        "extra_args": "    extra_args: what the model gets beside x and sigma, by name.",
        "callback": """\
    callback: gets {"x", "i", "sigma", "sigma_hat", "denoised"} once a step, before it is made.""",
        "disable": "    disable: no bar; None: a bar on terminals. It needs tqdm, and is left out without.",
        "order": "    order: at most so many slopes make a step, 1 to 4.",
        "s_churn": _CHURN,
        "s_tmin": _CHURN,
        "s_tmax": _CHURN,
        "max_order": "    max_order: at most so many slopes make a step, 1 to 4.",
        "deis_mode": '    deis_mode: "tab"; ComfyUI\'s "rhoab" is refused.',
        "ge_gamma": "    ge_gamma: finite; 1 is Euler's method.",
        "r": "    r: where the second call is, in log sigma: 0 < r < 1.",
        "r_1": _STAGES,
        "r_2": _STAGES,
        "solver_type": """\
    solver_type: the sampler's solver: "midpoint" or "heun"; in `sample_seeds_2` and its kin "phi_1" or "phi_2".""",
        "max_stage": "    max_stage: of how many answers a step is made, 1 to 3.",
        "noise_scaler": "    noise_scaler: from sigma / alpha, a tensor, to the sampler's phi. None: its own.",
        "tau_func": "    tau_func: sigma' -> tau, at least 0: 0 follows the ODE. None: 1 everywhere.",
        "predictor_order": _ORDERS,
        "corrector_order": _ORDERS,
        "use_pece": "    use_pece: call the model at corrected samples, too.",
        "simple_order_2": "    simple_order_2: as in `samplers.sa_solver`.",
        "n": "    n: how often the model is called, at least 1.",
        "sigma_min": _ENDS,
        "sigma_max": _ENDS,
        "eta": "    eta: of how much of the noise is drawn anew, at least 0.",
        "s_noise": "    s_noise: a factor of what is drawn.",
        "s_noise_end": "    s_noise_end: the factor in the last step; between, it changes evenly. None: s_noise.",
        "noise_clip_std": """\
    noise_clip_std: noise is bounded to so many of its standard deviations over the batch. 0: not at all.""",
        "noise_sampler": """\
    noise_sampler: f(sigma, sigma_next) -> noise like x, called once for each row that draws. None: torch's generator,
        or one of ``extra_args["seed"]``, where there is one.""",
        "noise": """\
    noise: a Noise, or a list with one for each sample of the batch, drawn within the rows (arrays are what a
        noise_sampler gives). None: drawn from torch, as theirs.""",
        "flow": """\
    flow: whether x is that of a flow, (1 - sigma) x0 + sigma z, which ComfyUI's functions see by their model. Where
        its function needs a signal, a first level of 1 becomes 0.9999.""",
    },
    returns="    x at the last level, of x's dtype.",
    raises="""\
    ValueError: levels that no step goes to, such as a 0 before the last, or that rise where noise is drawn; more noise
        than there is; a tensor of another shape; an argument outside of what it takes.
    TypeError: a noise that is none, or beside a noise_sampler; sigmas that are no tensor; a tensor of another dtype
        than x that does not go with it.""",
)
BROWNIAN = Shared(
    args={
        **SHARED.args,
        "noise_sampler": """\
    noise_sampler: f(sigma, sigma_next) -> noise like x, called once for each row that draws. None: a noise that
        ``extra_args["seed"]`` names, or a word of torch's generator.""",
    },
    returns=SHARED.returns,
    raises=SHARED.raises,
)
GUIDED_EXAMPLE = """\
>>> import torch
>>> from noisefuse.interop.k_diffusion import {name}
>>> def model(x, sigma, model_options):
...     clean = x / (1 + sigma[:, None] ** 2)
...     for told in model_options["sampler_post_cfg_function"]:
...         clean = told({{"denoised": clean, "uncond_denoised": 0.9 * clean}})
...     return clean
>>> sigmas, x = torch.tensor([10.0, 3.0, 1.0, 0.0]), 10 * torch.randn(2, 3)
>>> {name}(model, x, sigmas, disable=True).shape
torch.Size([2, 3])"""
EXAMPLE = """\
>>> import torch
>>> from noisefuse.interop.k_diffusion import {name}
>>> sigmas, x = torch.tensor([10.0, 3.0, 1.0, 0.0]), 10 * torch.randn(2, 3)
>>> {name}(lambda x, sigma: x / (1 + sigma[:, None] ** 2), x, sigmas, disable=True).shape
torch.Size([2, 3])"""
