# SPDX-License-Identifier: Apache-2.0
"""The nodes.

The host's interface is that of ComfyUI's comfy/samplers.py, comfy/sample.py, comfy/nested_tensor.py and
comfy_extras/nodes_custom_sampler.py, as of 2026: a NOISE has .seed and .generate_noise(latent), a SAMPLER is a KSAMPLER
around a function like k-diffusion's, SIGMAS are a tensor that falls to 0.
"""

import inspect

import comfy.model_sampling
import comfy.nested_tensor
import comfy.samplers
import torch

import noisefuse as nf
from noisefuse.interop import k_diffusion

START = 2  # the stream of what runs begin with; their steps draw stream 3


# ---- noise -------------------------------------------------------------------------------------------------


class Seed(int):
    """A seed that knows the noise of each entry of the batch.

    The host takes a noise's seed, after it has generated the noise, and hands it to the sampler: so a sampler's steps
    draw from the names of the entries, too. Where it is taken for an int, entries are named by their place.
    """

    def __new__(cls, seed, names):
        made = super().__new__(cls, seed)
        made.names = names
        return made

    def __reduce__(self):  # copies and pickles, too
        return type(self), (int(self), self.names)


class NamedNoise:
    """A NOISE: entry j of a batch is sample j of one seed, or has a seed of its own.

    An entry is j by its ``batch_index``, if the latent has one, so that one which was taken out of its batch has the
    noise that it had there, and none is drawn for others.
    """

    def __init__(self, seed, seeds=()):
        self.seed, self.seeds = seed, tuple(seeds)

    def generate_noise(self, input_latent):
        """Noise like the latent, on the CPU; tensor k of a nested latent draws step k."""
        samples = input_latent["samples"]
        tensors = samples.unbind() if samples.is_nested else [samples]
        names = self.names(input_latent.get("batch_index"), len(tensors[0]))
        self.seed = Seed(self.seed, names)
        made = [_drawn(tensor, names, k) for k, tensor in enumerate(tensors)]
        return comfy.nested_tensor.NestedTensor(made) if samples.is_nested else made[0]

    def names(self, entries, batch):
        """A Noise for all entries, or a list with one for each."""
        entries = range(batch) if entries is None else [int(j) for j in entries]
        if len(entries) != batch:
            raise ValueError(f"batch_index: expected {batch} numbers, one for each entry, got {len(entries)}")
        if not self.seeds:
            return nf.Noise(self.seed, sample=list(entries))
        for j in entries:
            if not 0 <= j < len(self.seeds):
                raise ValueError(f"seeds: entry {j} of the batch has none, there are {len(self.seeds)}")
        return [nf.Noise(self.seeds[j]) for j in entries]


def _drawn(tensor, names, step):
    place = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if isinstance(names, nf.Noise):
        return nf.randn_like(place, names.at(step=step, stream=START))
    return nf.randn_like(place, [name.at(step=step, stream=START) for name in names])


class NoisefuseNoise:
    """Noise by name: of a seed and the place in the batch, or of a seed for each entry."""

    RETURN_TYPES = ("NOISE",)
    FUNCTION = "get_noise"
    CATEGORY = "sampling/noise"
    DESCRIPTION = "Each entry of the batch has its own noise, whatever else is in the batch."

    @classmethod
    def INPUT_TYPES(cls):
        seed = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}
        seeds = {"default": "", "tooltip": "A seed for each entry of the batch, such as 11, 12, 13; empty: noise_seed"}
        return {"required": {"noise_seed": ("INT", seed)}, "optional": {"seeds": ("STRING", seeds)}}

    def get_noise(self, noise_seed, seeds=""):
        try:
            several = [int(seed) for seed in seeds.replace(",", " ").split()]
        except ValueError:
            raise ValueError(f"seeds: expected integers, such as 11, 12, 13, got {seeds!r}") from None
        return (NamedNoise(several[0] if several else noise_seed, several),)


# ---- samplers ----------------------------------------------------------------------------------------------


def _named(seed):
    """What a sampler's steps draw: see Seed. No seed: torch's generator."""
    return seed.names if isinstance(seed, Seed) else None if seed is None else nf.Noise(seed)


def _function(name):
    """A function of the menu, as KSAMPLER calls it, with the noise that the run's seed names."""
    entry, run = k_diffusion.MENU[name], getattr(k_diffusion, f"sample_{name}")
    parameters = inspect.signature(run).parameters
    run = {"lms": _lms, "dpm_fast": _dpm_fast, "dpm_adaptive": _dpm_adaptive}.get(name, run)

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        sampling = model.inner_model.inner_model.model_sampling
        flow = isinstance(sampling, comfy.model_sampling.CONST)
        if flow and options.get("s_churn", 0) > 0:
            raise ValueError(
                f"{name}: churn is for x = x0 + sigma z, and this model is a flow, x = (1 - sigma) x0 + sigma z: "
                "take s_churn = 0, or a sampler that draws noise by itself, such as euler_ancestral"
            )
        if "flow" in parameters:
            options["flow"] = flow
        if flow and entry.below_one and len(sigmas) > 1 and sigmas[0] >= 1:
            sigmas = sigmas.clone()
            sigmas[0] = sampling.percent_to_sigma(1e-4)  # by the model's own shift
        if "tau_func" in parameters and options.get("tau_func") is None:
            options["tau_func"] = _between(sampling.percent_to_sigma(0.2), sampling.percent_to_sigma(0.8))
        if {"s_noise", "noise_sampler"} <= {*parameters} and not name.startswith("dpm_"):
            options["s_noise"] = options.get("s_noise", 1.0) * getattr(sampling, "noise_scale", 1.0)
        if "noise" in parameters and options.get("noise_sampler") is None:
            options["noise"] = _named((extra_args or {}).get("seed"))
        return run(model, x, sigmas, extra_args, callback, disable, **options)

    sample.__name__ = f"sample_{name}"
    return sample


def _between(most, least):
    """SA-Solver draws noise in steps that end between two levels."""
    return lambda sigma: 1.0 if least <= sigma <= most else 0.0


def _lms(model, x, sigmas, extra_args, callback, disable):
    """Where it goes to 0, the last step is x' = D, as the host has it."""
    last = len(sigmas) - 2
    if last < 0 or sigmas[-1]:
        return k_diffusion.sample_lms(model, x, sigmas, extra_args, callback, disable)
    x = k_diffusion.sample_lms(model, x, sigmas[:-1], extra_args, callback, disable)
    told = None if callback is None else lambda found: callback(found | {"i": last})
    return k_diffusion.sample_euler(model, x, sigmas[-2:], extra_args, told, disable)


def _ends(sigmas):
    """The last level above 0, and the first one."""
    return float(sigmas[-1] or sigmas[-2]), float(sigmas[0])


def _dpm_fast(model, x, sigmas, *called, **options):
    if len(sigmas) < 2:
        return x
    return k_diffusion.sample_dpm_fast(model, x, *_ends(sigmas), len(sigmas) - 1, *called, **options)


def _dpm_adaptive(model, x, sigmas, *called, **options):
    if len(sigmas) < 2:
        return x
    return k_diffusion.sample_dpm_adaptive(model, x, *_ends(sigmas), *called, **options)


def _sampler(name, **options):
    # Under a mask the host's ddim draws other noise for what is known, from torch's generator.
    return (comfy.samplers.KSAMPLER(_function(name), options, {"random": True} if name == "ddim" else {}),)


def _with(*names):
    """The names of the menu whose functions have these parameters."""
    own = {name: getattr(k_diffusion, f"sample_{name}", None) for name in k_diffusion.MENU}
    return [name for name, run in own.items() if run and {*names} <= {*inspect.signature(run).parameters}]


MENU = _with()
DRAWING = _with("eta", "s_noise")
CHURNED = _with("s_churn")


def _number(default, least=0.0, most=100.0, step=0.01):
    return ("FLOAT", {"default": default, "min": least, "max": most, "step": step, "round": False})


class _SamplerNode:
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/samplers"


class NoisefuseSampler(_SamplerNode):
    """Any sampler of the host's menu, with the options that it has there."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler_name": (MENU,)}}

    def get_sampler(self, sampler_name):
        return _sampler(sampler_name)


class NoisefuseSamplerAncestral(_SamplerNode):
    """Samplers that draw noise: eta is how much of it is drawn anew."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler_name": (DRAWING,), "eta": _number(1.0), "s_noise": _number(1.0)}}

    def get_sampler(self, sampler_name, eta, s_noise):
        return _sampler(sampler_name, eta=eta, s_noise=s_noise)


class NoisefuseSamplerChurn(_SamplerNode):
    """Samplers with the churn of Karras et al. 2022: noise is added before a step, where s_tmin <= sigma <= s_tmax."""

    @classmethod
    def INPUT_TYPES(cls):
        numbers = {"s_churn": _number(0.0), "s_tmin": _number(0.0, most=5000.0), "s_tmax": _number(5000.0, most=5000.0)}
        return {"required": {"sampler_name": (CHURNED,), **numbers, "s_noise": _number(1.0)}}

    def get_sampler(self, sampler_name, s_churn, s_tmin, s_tmax, s_noise):
        return _sampler(sampler_name, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)


def _rows(name, **options):
    """A function that runs a sampler of noisefuse, one call of the model a step, in the frame of the model."""
    make = getattr(nf.samplers, name)
    options = {key: value for key, value in options.items() if key in inspect.signature(make).parameters}

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        levels, extra = sigmas.tolist(), extra_args or {}
        if len(levels) < 2:
            return x
        flow = isinstance(model.inner_model.inner_model.model_sampling, comfy.model_sampling.CONST)
        schedule = nf.Schedule.flow() if flow else nf.Schedule.edm()
        if flow and name in DIVIDES:
            levels[0] = min(levels[0], 1 - 1e-4)  # where there is a signal, as the host's own do
        ends = {"steps": levels[:-1], "final": levels[-1] or "zero"}
        sampler = make(schedule, **ends, prediction="sample", **options)
        names = _named(extra.get("seed"))

        def told(i, x, denoised):
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})

        return sampler.sample(
            lambda x, sigma: model(x, sigma.to(x.dtype), **extra),
            x,
            nf.Noise() if names is None else names,
            time="batch",
            callback=None if callback is None else told,
            progress=disable is False,
        )

    sample.__name__ = f"sample_{name}"
    return sample


DIVIDES = ["dpmpp_singlestep", "deis", "unipc"]  # by alpha, which is 0 where a flow begins
ROWS = ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "res_multistep", *DIVIDES, "lcm"]


class NoisefuseSamplerRows(_SamplerNode):
    """noisefuse's own samplers, written for x = alpha x0 + sigma z, and so for flow models too."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler_name": (ROWS,), "eta": _number(1.0, most=1.0)}}

    def get_sampler(self, sampler_name, eta):
        return (comfy.samplers.KSAMPLER(_rows(sampler_name, eta=eta, sigma_data=0.0)),)


# ---- levels ------------------------------------------------------------------------------------------------

SCHEDULES = ["scaled_linear", "linear", "cosine", "sigmoid", "laplace", "edm", "flow"]
SPACINGS = ["linspace", "trailing", "leading", "karras", "exponential", "beta"]


class NoisefuseSigmas:
    """The levels that a sampler visits on a schedule: scaled_linear is Stable Diffusion's, flow that of flow models."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = "sampling/schedulers"

    @classmethod
    def INPUT_TYPES(cls):
        own = {"tooltip": "0: the schedule's. Of the spacings karras, exponential and beta"}
        ends = {name: ("FLOAT", _number(0.0, most=5000.0)[1] | own) for name in ("sigma_min", "sigma_max")}
        required = {
            "schedule": (SCHEDULES,),
            "spacing": (SPACINGS,),
            "steps": ("INT", {"default": 20, "min": 1, "max": 1000}),
            "denoise": _number(1.0, most=1.0),
        }
        return {"required": required, "optional": {**ends, "rho": _number(7.0, 0.01), "shift": _number(1.0, 0.01)}}

    def get_sigmas(self, schedule, spacing, steps, denoise, sigma_min=0.0, sigma_max=0.0, rho=7.0, shift=1.0):
        if denoise <= 0:
            return (torch.FloatTensor([]),)
        flow = schedule == "flow"
        made = nf.Schedule.flow(1000, shift) if flow else getattr(nf.Schedule, schedule)(1000)
        ends = {key: value for key, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)) if value}
        run = nf.samplers.flow_euler if flow else nf.samplers.euler  # which begins rows at levels of x / alpha
        sampler = run(made, steps=int(steps / denoise), spacing=spacing, prediction="sample", rho=rho, **ends)
        sigmas = torch.tensor([*sampler.tableau.sigma, 0.0], dtype=torch.float32)
        return (sigmas[-(steps + 1) :],)


NODE_CLASS_MAPPINGS = {
    "NoisefuseNoise": NoisefuseNoise,
    "NoisefuseSampler": NoisefuseSampler,
    "NoisefuseSamplerAncestral": NoisefuseSamplerAncestral,
    "NoisefuseSamplerChurn": NoisefuseSamplerChurn,
    "NoisefuseSamplerRows": NoisefuseSamplerRows,
    "NoisefuseSigmas": NoisefuseSigmas,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "NoisefuseNoise": "Named Noise (noisefuse)",
    "NoisefuseSampler": "Sampler (noisefuse)",
    "NoisefuseSamplerAncestral": "Sampler, ancestral and SDE (noisefuse)",
    "NoisefuseSamplerChurn": "Sampler with churn (noisefuse)",
    "NoisefuseSamplerRows": "Sampler for flows and others (noisefuse)",
    "NoisefuseSigmas": "Sigmas (noisefuse)",
}
