# SPDX-License-Identifier: Apache-2.0
"""The nodes of integrations/comfyui, in a stand-in for their host.

The stand-in has what they and a run need of ComfyUI: from comfy/samplers.py a KSAMPLER, a model with a mask around it
and a guider that packs nested latents, and from comfy_extras/nodes_custom_sampler.py SamplerCustomAdvanced's use of a
noise.

Seen to fail: noise by place if there is a batch_index; one key for all tensors of a nested latent; steps that draw from
the seed alone; a flow model that is run as x0 + sigma z, or begins at another level; an eta that is not passed on.
"""

import copy
import importlib.util
import inspect
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
kd = pytest.importorskip("noisefuse.interop.k_diffusion")

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"


# ---- the host ----------------------------------------------------------------------------------------------


class NestedTensor:
    is_nested = True

    def __init__(self, tensors):
        self.tensors = list(tensors)

    def unbind(self):
        return self.tensors

    @property
    def shape(self):
        return self.tensors[0].shape


class EPS:  # x = x0 + sigma z
    sigma_max = torch.tensor(14.6146)

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return latent + noise * ((1 + sigma**2).sqrt() if max_denoise else sigma)

    def inverse_noise_scaling(self, sigma, latent):
        return latent

    def percent_to_sigma(self, percent):
        return 14.6146 * (1 - percent) ** 3


class CONST:  # a flow
    sigma_max = torch.tensor(1.0)

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return sigma * noise + (1 - sigma) * latent

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1 - sigma)

    def percent_to_sigma(self, percent):  # with a shift of 3
        return 3 * (1 - percent) / (1 + 2 * (1 - percent))


class Masked:
    """KSAMPLER's model for a sampler: outside the mask it answers the latent, and is given it with its noise."""

    def __init__(self, guider):
        self.inner_model = guider

    def __call__(self, x, sigma, denoise_mask, model_options, seed):
        if denoise_mask is None:
            return self.inner_model(x, sigma, model_options)
        known = self.inner_model.inner_model.model_sampling.noise_scaling(
            sigma.reshape(-1, *[1] * (x.ndim - 1)), self.noise, self.latent_image
        )
        out = self.inner_model(x * denoise_mask + known * (1 - denoise_mask), sigma, model_options)
        return out * denoise_mask + self.latent_image * (1 - denoise_mask)


class KSAMPLER:
    def __init__(self, sampler_function, extra_options={}, inpaint_options={}):  # noqa: B006
        self.sampler_function, self.extra_options = sampler_function, extra_options
        self.inpaint_options = inpaint_options

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar):
        extra_args["denoise_mask"] = denoise_mask
        model, scaling = Masked(guider), guider.inner_model.model_sampling
        model.latent_image, model.noise = latent_image, noise
        if self.inpaint_options.get("random", False):
            generator = torch.manual_seed(extra_args.get("seed", 41) + 1)
            model.noise = torch.randn(noise.shape, generator=generator).to(noise)
        most = float(scaling.sigma_max) <= float(sigmas[0]) * (1 + 1e-5)
        x = scaling.noise_scaling(sigmas[0], noise, latent_image, most)
        told = lambda found: callback(found["i"], found["denoised"], found["x"], len(sigmas) - 1)  # noqa: E731
        x = self.sampler_function(
            model, x, sigmas, extra_args=extra_args, callback=told, disable=disable_pbar, **self.extra_options
        )
        return scaling.inverse_noise_scaling(sigmas[-1], x)


class Guider:
    def __init__(self, scaling):
        self.inner_model, self.seen, self.levels = SimpleNamespace(model_sampling=scaling), [], []

    def __call__(self, x, sigma, model_options=None):
        """The ideal denoiser of data N(0, 1/4)."""
        self.seen.append(x)
        self.levels.append(float(sigma[0]))
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        alpha = 1 - s if isinstance(self.inner_model.model_sampling, CONST) else 1
        denoised = 0.25 * alpha / (0.25 * alpha**2 + s**2) * x
        for told in (model_options or {}).get("sampler_post_cfg_function", []):
            denoised = told({"denoised": denoised, "uncond_denoised": denoised})
        return denoised

    def sample(self, noise, latent, sampler, sigmas, denoise_mask=None, seed=None):
        shapes = [latent.shape]
        if latent.is_nested:
            shapes = [tensor.shape for tensor in latent.unbind()]
            latent, noise = packed(latent.unbind()), packed(noise.unbind())
        if denoise_mask is not None:
            masks = denoise_mask.unbind() if denoise_mask.is_nested else [denoise_mask]
            masks = [mask.expand(shape) for mask, shape in zip(masks, shapes, strict=True)]
            denoise_mask = packed(masks) if len(masks) > 1 else masks[0]
        calls = []
        extra = {"model_options": {}, "seed": seed}
        x = sampler.sample(self, sigmas, extra, lambda *call: calls.append(call), noise, latent, denoise_mask, True)
        steps = len(calls) if "dpm_" in sampler.sampler_function.__name__[:11] else len(sigmas) - 1
        assert [call[0] for call in calls] == list(range(steps))
        return x if len(shapes) == 1 else NestedTensor(unpacked(x, shapes))


def packed(tensors):
    return torch.cat([tensor.reshape(len(tensor), 1, -1) for tensor in tensors], dim=-1)


def unpacked(x, shapes):
    parts = x.split([shape[1:].numel() for shape in shapes], dim=-1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def run(noise, sampler, sigmas, latent, scaling=None):
    """SamplerCustomAdvanced: it requests the noise, and then the noise's seed."""
    guider = Guider(scaling or EPS())
    with torch.inference_mode():  # as the host runs its nodes
        z = noise.generate_noise(latent)
        return guider.sample(z, latent["samples"], sampler, sigmas, latent.get("noise_mask"), seed=noise.seed)


@pytest.fixture(scope="module")
def nodes():
    """Loads the folder as the host loads folders in custom_nodes."""
    host = {"comfy": {}, "comfy.model_sampling": {"EPS": EPS, "CONST": CONST}, "comfy.samplers": {"KSAMPLER": KSAMPLER}}
    host["comfy.nested_tensor"] = {"NestedTensor": NestedTensor}
    with pytest.MonkeyPatch.context() as patch:
        for name, content in host.items():
            patch.setitem(sys.modules, name, ModuleType(name))
            vars(sys.modules[name]).update(content)
            if "." in name:
                setattr(sys.modules["comfy"], name.partition(".")[2], sys.modules[name])
        name = "custom_nodes_noisefuse"
        spec = importlib.util.spec_from_file_location(
            name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        yield module
        for loaded in [loaded for loaded in sys.modules if loaded.startswith(f"{name}.")]:
            del sys.modules[loaded]


def node(nodes, name, **inputs):
    """Returns a node's result for its inputs, with the defaults of those that are left out."""
    kind = nodes.NODE_CLASS_MAPPINGS[name]
    declared = kind.INPUT_TYPES()
    assert {*inputs} <= {*declared["required"], *declared.get("optional", {})}
    assert {*inputs} >= {key for key, (_, *rest) in declared["required"].items() if not rest} - {"sampler_name"}
    given = {key: rest[0]["default"] for key, (_, *rest) in declared["required"].items() if rest}
    made = getattr(kind(), kind.FUNCTION)(**{**given, **inputs})
    assert len(made) == len(kind.RETURN_TYPES) == 1
    return made[0]


SIGMAS = torch.tensor([14.6146, 7.0, 3.0, 1.0, 0.3, 0.0])


def latent(batch=3, **more):
    return {"samples": torch.zeros(batch, 4, 6, 5), **more}


# ---- noise -------------------------------------------------------------------------------------------------


def test_noise_is_named_by_the_place_in_the_batch(nodes):
    noise = node(nodes, "NoisefuseNoise", noise_seed=7)
    made = noise.generate_noise(latent())
    assert noise.seed == 7
    assert torch.equal(made, nf.randn_like(torch.zeros(3, 4, 6, 5), nf.Noise(7, stream=2)))
    assert torch.equal(noise.generate_noise(latent(2, batch_index=[2, 0])), made[[2, 0]])
    assert torch.equal(noise.generate_noise(latent(2, batch_index=[1, 1])), made[[1, 1]])
    far = noise.generate_noise(latent(1, batch_index=[10**9]))  # none of the others is drawn
    assert torch.equal(far, nf.randn_like(torch.zeros(1, 4, 6, 5), nf.Noise(7, sample=10**9, stream=2)))


def test_noise_with_a_seed_for_each_entry(nodes):
    noise = node(nodes, "NoisefuseNoise", seeds="11, 12 13")
    made = noise.generate_noise(latent())
    alone = node(nodes, "NoisefuseNoise", noise_seed=12).generate_noise(latent(1))
    assert torch.equal(made[1:2], alone)
    assert torch.equal(noise.generate_noise(latent(1, batch_index=[1])), alone)
    with pytest.raises(ValueError, match="entry 3 of the batch has none, there are 3"):
        noise.generate_noise(latent(4))
    with pytest.raises(ValueError, match="entry -1 of the batch has none, there are 3"):
        noise.generate_noise(latent(1, batch_index=[-1]))
    with pytest.raises(ValueError, match="expected integers"):
        node(nodes, "NoisefuseNoise", seeds="11; 12")
    with pytest.raises(ValueError, match="batch_index: expected 2 numbers, one for each entry, got 3"):
        noise.generate_noise(latent(2, batch_index=[0, 1, 2]))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda seed: pickle.loads(pickle.dumps(seed))])
def test_a_seed_is_copied_with_its_names(nodes, again):
    noise = node(nodes, "NoisefuseNoise", seeds="11 12")
    noise.generate_noise(latent(2))
    found = again(noise.seed)
    assert type(found) is type(noise.seed)
    assert (found, found.names) == (11, [nf.Noise(11), nf.Noise(12)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_noise_is_of_the_latents_dtype(nodes, dtype):
    made = node(nodes, "NoisefuseNoise").generate_noise({"samples": torch.zeros(2, 4, 8, dtype=dtype)})
    assert made.dtype == dtype
    assert made.device.type == "cpu"


def test_noise_of_a_nested_latent(nodes):
    video, audio = torch.zeros(2, 4, 3, 6, 5), torch.zeros(2, 8, 30)
    noise = node(nodes, "NoisefuseNoise", noise_seed=7)
    made = noise.generate_noise({"samples": NestedTensor([video, audio])})
    assert made.is_nested
    assert [part.shape for part in made.unbind()] == [video.shape, audio.shape]
    assert torch.equal(made.unbind()[0], noise.generate_noise({"samples": video}))
    assert not torch.equal(made.unbind()[0].flatten()[:240], made.unbind()[1].flatten()[:240])
    one = noise.generate_noise({"samples": NestedTensor([video[1:], audio[1:]]), "batch_index": [1]})
    assert torch.equal(one.unbind()[1], made.unbind()[1][1:])


# ---- samplers ----------------------------------------------------------------------------------------------

EVERY = [name for name in kd.MENU if hasattr(kd, f"sample_{name}")]
BATCH = {"dpm_adaptive"}  # whose error is that of the whole batch
RANDOM = [name for name in EVERY if "noise_sampler" in inspect.signature(getattr(kd, f"sample_{name}")).parameters]


def test_all_samplers_are_on_the_menu(nodes):
    (menu,) = nodes.NODE_CLASS_MAPPINGS["NoisefuseSampler"].INPUT_TYPES()["required"]["sampler_name"]
    assert menu == EVERY
    (drawing,) = nodes.NODE_CLASS_MAPPINGS["NoisefuseSamplerAncestral"].INPUT_TYPES()["required"]["sampler_name"]
    assert {*EVERY} > {*drawing} > {"dpm_2_ancestral", "seeds_3", "dpmpp_2m_sde_heun_gpu", "dpm_fast"}
    assert not {*drawing} & {"er_sde", "euler", "res_multistep", "sa_solver"}  # which have no eta
    (churned,) = nodes.NODE_CLASS_MAPPINGS["NoisefuseSamplerChurn"].INPUT_TYPES()["required"]["sampler_name"]
    assert churned == ["euler", "heun", "heunpp2", "dpm_2", "ddim"]


@pytest.mark.parametrize("name", [name for name in EVERY if name not in BATCH])
def test_an_entry_of_a_batch_is_what_it_is_alone(nodes, name):
    sampler = node(nodes, "NoisefuseSampler", sampler_name=name)
    noise = node(nodes, "NoisefuseNoise", noise_seed=7)
    whole = run(noise, sampler, SIGMAS, latent())
    assert whole.isfinite().all()
    assert torch.equal(run(noise, sampler, SIGMAS, latent(1, batch_index=[2])), whole[2:])
    several = node(nodes, "NoisefuseNoise", seeds="3 1 4")
    whole = run(several, sampler, SIGMAS, latent())
    assert torch.equal(run(node(nodes, "NoisefuseNoise", noise_seed=1), sampler, SIGMAS, latent(1)), whole[1:2])


def test_a_sampler_is_the_function(nodes):
    noise = node(nodes, "NoisefuseNoise", noise_seed=7)
    sampler = node(nodes, "NoisefuseSamplerAncestral", sampler_name="dpmpp_2m_sde_heun", eta=0.5, s_noise=0.9)
    found = run(noise, sampler, SIGMAS, latent())
    x = (1 + SIGMAS[0] ** 2).sqrt() * noise.generate_noise(latent())
    options = {"eta": 0.5, "s_noise": 0.9, "solver_type": "heun", "noise": nf.Noise(7)}
    assert torch.equal(found, kd.sample_dpmpp_2m_sde(Guider(EPS()), x, SIGMAS, disable=True, **options))


@pytest.mark.parametrize("name", ["euler", "heun", "heunpp2", "dpm_2"])
def test_churn(nodes, name):
    noise = node(nodes, "NoisefuseNoise", noise_seed=7)
    sampler = node(nodes, "NoisefuseSamplerChurn", sampler_name=name, s_churn=3.0)
    found = run(noise, sampler, SIGMAS, latent())
    x = (1 + SIGMAS[0] ** 2).sqrt() * noise.generate_noise(latent())
    options = {"s_churn": 3.0, "noise": nf.Noise(7)}
    assert torch.equal(found, getattr(kd, f"sample_{name}")(Guider(EPS()), x, SIGMAS, disable=True, **options))


def test_lms_ends_as_the_hosts(nodes):
    """The end at 0 is x' = D; a part of the noise levels is k-diffusion's."""
    noise, guider = node(nodes, "NoisefuseNoise", noise_seed=7), Guider(EPS())
    sampler = node(nodes, "NoisefuseSampler", sampler_name="lms")
    found = guider.sample(noise.generate_noise(latent()), latent()["samples"], sampler, SIGMAS)
    assert torch.allclose(found, guider(guider.seen[-1], SIGMAS[-2:-1]), rtol=1e-6)
    x = (1 + SIGMAS[0] ** 2).sqrt() * noise.generate_noise(latent())
    part = run(noise, sampler, SIGMAS[:-1], latent())
    assert torch.equal(part, kd.sample_lms(Guider(EPS()), x, SIGMAS[:-1], disable=True))
    assert torch.equal(run(noise, sampler, SIGMAS[:1], latent()), x)


def test_other_noise_gives_its_seed(nodes):
    """RandomNoise and wrappers make an int of a seed: entries then have their places as keys."""
    other = SimpleNamespace(seed=7, generate_noise=lambda latent: torch.ones_like(latent["samples"]))
    sampler = node(nodes, "NoisefuseSampler", sampler_name="euler_ancestral")
    assert torch.equal(run(other, sampler, SIGMAS, latent(2)), run(other, sampler, SIGMAS, latent(3))[:2])
    other.seed = None
    torch.manual_seed(7)
    first = run(other, sampler, SIGMAS, latent(2))
    torch.manual_seed(7)
    assert torch.equal(run(other, sampler, SIGMAS, latent(2)), first)


@pytest.mark.parametrize(
    "name", [name for name in EVERY if not name.startswith(("dpm_f", "dpm_a"))]
)  # these end above 0
def test_beyond_a_mask_the_latent_stays(nodes, name):
    known, mask = torch.randn(2, 4, 6, 5), torch.zeros(2, 1, 6, 5)
    mask[..., :3] = 1
    sampler, noise = node(nodes, "NoisefuseSampler", sampler_name=name), node(nodes, "NoisefuseNoise", noise_seed=7)
    found = run(noise, sampler, SIGMAS, {"samples": known, "noise_mask": mask})
    assert torch.allclose(found[..., 3:], known[..., 3:], atol=1e-5)
    assert not torch.allclose(found[..., :3], known[..., :3], atol=0.1)


def test_ddim_is_the_hosts(nodes):
    """comfy/samplers.py: ksampler("euler", inpaint_options={"random": True}), other noise for what is known. Seen to
    fail: euler's noise there."""
    known, mask = torch.randn(2, 4, 6, 5), torch.zeros(2, 1, 6, 5)
    mask[..., :3] = 1
    noise, masked = node(nodes, "NoisefuseNoise", noise_seed=7), {"samples": known, "noise_mask": mask}
    sampler = node(nodes, "NoisefuseSampler", sampler_name="ddim")
    euler = node(nodes, "NoisefuseSampler", sampler_name="euler")
    theirs = KSAMPLER(euler.sampler_function, {}, {"random": True})
    given = []
    for each in (sampler, theirs, euler):
        guider = Guider(EPS())
        guider.sample(noise.generate_noise(masked), known, each, SIGMAS, mask, seed=noise.seed)
        given.append(torch.stack(guider.seen))
    assert torch.equal(given[0], given[1])
    assert torch.equal(given[0][..., :3], given[2][..., :3])
    assert not torch.allclose(given[0][..., 3:], given[2][..., 3:], atol=0.1)
    assert torch.equal(run(noise, sampler, SIGMAS, latent()), run(noise, euler, SIGMAS, latent()))


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_sde"])
def test_nested_latents_and_masks(nodes, name):
    video, audio = torch.randn(2, 4, 3, 6, 5), torch.randn(2, 8, 30)
    masks = NestedTensor([torch.ones(2, 1, 1, 1, 1), torch.zeros(2, 1, 1)])
    sampler, noise = node(nodes, "NoisefuseSampler", sampler_name=name), node(nodes, "NoisefuseNoise", noise_seed=7)
    found = run(noise, sampler, SIGMAS, {"samples": NestedTensor([video, audio]), "noise_mask": masks})
    assert [part.shape for part in found.unbind()] == [video.shape, audio.shape]
    assert torch.allclose(found.unbind()[1], audio, atol=1e-5)
    only = {"samples": NestedTensor([video[1:], audio[1:]]), "batch_index": [1]}
    only["noise_mask"] = NestedTensor([mask[1:] for mask in masks.unbind()])
    assert torch.equal(run(noise, sampler, SIGMAS, only).unbind()[0], found.unbind()[0][1:])


@pytest.mark.parametrize("name", EVERY)
def test_flow_models(nodes, name):
    """A node is the function, with the formulas of flows where it has them, from the host's first level."""
    noise = node(nodes, "NoisefuseNoise", noise_seed=7)
    flow = node(nodes, "NoisefuseSigmas", schedule="flow", spacing="trailing", shift=3.0, steps=8)
    found = run(noise, node(nodes, "NoisefuseSampler", sampler_name=name), flow, latent(), CONST())
    assert found.isfinite().all()
    if name in ("dpm_fast", "dpm_adaptive", "lms"):
        return
    entry, options, sigmas = kd.MENU[name], {}, flow.clone()
    sigmas[0] = CONST().percent_to_sigma(1e-4) if entry.below_one else 1.0
    if "flow" in inspect.signature(getattr(kd, f"sample_{name}")).parameters:
        options["flow"] = True
    if name.startswith("sa_solver"):
        options["tau_func"] = lambda sigma: float(
            CONST().percent_to_sigma(0.8) <= sigma <= CONST().percent_to_sigma(0.2)
        )
    if name in RANDOM:
        options["noise"] = nf.Noise(7)
    x = noise.generate_noise(latent())
    model = Guider(CONST())
    told = lambda x, sigma, model_options=None: model(x, sigma, model_options)  # noqa: E731
    assert torch.equal(found, getattr(kd, f"sample_{name}")(told, x, sigmas, disable=True, **options))
    assert model.levels[0] == pytest.approx(float(sigmas[0]), abs=1e-7)


@pytest.mark.parametrize("name", ["dpm_fast", "dpm_adaptive"])
def test_ends_of_a_list_are_those_of_samplers_with_their_own_levels(nodes, name):
    """They are the first level, and the last one above 0; the steps of dpm_fast make as many calls as the list has."""
    noise, sampler = node(nodes, "NoisefuseNoise", noise_seed=7), node(nodes, "NoisefuseSampler", sampler_name=name)
    guider, part = Guider(EPS()), Guider(EPS())
    z, still = noise.generate_noise(latent()), latent()["samples"]
    x, own = (1 + SIGMAS[0] ** 2).sqrt() * z, getattr(kd, f"sample_{name}")
    for seen, sigmas, least in ((guider, SIGMAS, SIGMAS[-2]), (part, SIGMAS[:-1], SIGMAS[-2])):
        found = seen.sample(z, still, sampler, sigmas)
        calls = [len(sigmas) - 1] if name == "dpm_fast" else []
        assert torch.equal(found, own(Guider(EPS()), x, float(least), float(SIGMAS[0]), *calls, disable=True))
    assert guider.levels[0] == pytest.approx(float(SIGMAS[0]))
    assert min(guider.levels) > float(SIGMAS[-2])
    if name == "dpm_fast":
        assert (len(guider.levels), len(part.levels)) == (len(SIGMAS) - 1, len(SIGMAS) - 2)
    assert torch.equal(run(noise, sampler, SIGMAS[:1], latent()), x)


def test_the_noise_of_an_adaptive_run_is_named(nodes):
    noise = node(nodes, "NoisefuseNoise", seeds="3 1 4")
    sampler = node(nodes, "NoisefuseSamplerAncestral", sampler_name="dpm_adaptive", eta=0.7)
    found = run(noise, sampler, SIGMAS, latent())
    x = (1 + SIGMAS[0] ** 2).sqrt() * noise.generate_noise(latent())
    names = [nf.Noise(seed) for seed in (3, 1, 4)]
    ends = float(SIGMAS[-2]), float(SIGMAS[0])
    assert torch.equal(found, kd.sample_dpm_adaptive(Guider(EPS()), x, *ends, eta=0.7, noise=names))


def test_a_models_own_scale_of_noise(nodes):
    """Seen to fail: taken for the start alone."""
    noise, flow = node(nodes, "NoisefuseNoise", noise_seed=7), torch.tensor([1.0, 0.7, 0.4, 0.2])
    scaled = CONST()
    scaled.noise_scale = 0.5
    for name in ("euler_ancestral", "seeds_2", "res_multistep_ancestral"):
        whole, half = (
            node(nodes, "NoisefuseSamplerAncestral", sampler_name=name, s_noise=factor) for factor in (1.0, 0.5)
        )
        assert torch.equal(run(noise, whole, flow, latent(), scaled), run(noise, half, flow, latent(), CONST()))


def test_churn_of_a_flow_is_refused(nodes):
    noise, flow = node(nodes, "NoisefuseNoise", noise_seed=7), torch.tensor([1.0, 0.7, 0.4, 0.0])
    for name in ("euler", "heun", "dpm_2"):
        with pytest.raises(ValueError, match=f"{name}: churn is for .* and this model is a flow.*take s_churn = 0"):
            run(noise, node(nodes, "NoisefuseSamplerChurn", sampler_name=name, s_churn=3.0), flow, latent(), CONST())
        still, plain = (
            node(nodes, "NoisefuseSamplerChurn", sampler_name=name),
            node(nodes, "NoisefuseSampler", sampler_name=name),
        )
        assert torch.equal(run(noise, still, flow, latent(), CONST()), run(noise, plain, flow, latent(), CONST()))


def test_a_noise_sampler_of_the_users_own_draws(nodes):
    noise, sampler = node(nodes, "NoisefuseNoise", noise_seed=7), node(nodes, "NoisefuseSampler", sampler_name="lcm")
    named = run(noise, sampler, SIGMAS, latent())
    sampler.extra_options["noise_sampler"] = kd.noise_sampler(latent()["samples"], nf.Noise(7))
    assert torch.allclose(run(noise, sampler, SIGMAS, latent()), named, atol=1e-6)
    sampler.extra_options["noise_sampler"] = lambda sigma, to: torch.zeros(3, 4, 6, 5)
    assert not torch.allclose(run(noise, sampler, SIGMAS, latent()), named, atol=0.1)


ROWS = ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "res_multistep"]
ROWS += ["dpmpp_singlestep", "deis", "unipc", "lcm"]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("scaling", [EPS, CONST])
def test_our_own_samplers_run_in_the_models_frame(nodes, name, scaling):
    """For data N(0, 1/4) with its ideal denoiser, the result has this variance; a mask and a batch change nothing."""
    flow = {"schedule": "flow", "spacing": "trailing", "steps": 60 if name == "res_multistep" else 30}
    steps = flow if scaling is CONST else {"schedule": "scaled_linear", "spacing": "karras", "steps": 30}
    sigmas = node(nodes, "NoisefuseSigmas", **steps)
    noise = node(nodes, "NoisefuseNoise", noise_seed=7)
    sampler = node(nodes, "NoisefuseSamplerRows", sampler_name=name)
    whole = run(noise, sampler, sigmas, latent(2), scaling())
    assert torch.equal(run(noise, sampler, sigmas, latent(1, batch_index=[1]), scaling()), whole[1:])
    known, mask = torch.randn(2, 4, 6, 5), torch.zeros(2, 1, 6, 5)
    mask[..., :3] = 1
    masked = run(noise, sampler, sigmas, {"samples": known, "noise_mask": mask}, scaling())
    assert torch.allclose(masked[..., 3:], known[..., 3:], atol=1e-5)
    if name not in ("ddim", "ddpm", "lcm"):  # these are of first order: 30 steps lose a tenth of it
        many = run(noise, sampler, sigmas, {"samples": torch.zeros(1, 20000)}, scaling())
        assert abs(many.std() - 0.5) < 0.03


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "ddim"])
def test_our_own_samplers_take_a_step_in_the_flow(nodes, name):
    """Compares with the sampler itself."""
    sigmas = node(nodes, "NoisefuseSigmas", schedule="flow", spacing="trailing", steps=4)
    noise, guider = node(nodes, "NoisefuseNoise", noise_seed=7), Guider(CONST())
    found = run(noise, node(nodes, "NoisefuseSamplerRows", sampler_name=name, eta=0.5), sigmas, latent(2), CONST())
    sampler = getattr(nf.samplers, name)(nf.Schedule.flow(), steps=sigmas[:-1].tolist(), prediction="sample", eta=0.5)
    x = noise.generate_noise(latent(2))
    assert torch.equal(found, sampler.sample(lambda x, t: guider(x, t), x, nf.Noise(7), time="batch"))


# ---- noise levels ------------------------------------------------------------------------------------------


def test_levels_of_karras(nodes):
    ends = {"sigma_min": 0.0291675, "sigma_max": 14.614642}  # ComfyUI's KarrasScheduler
    found = node(nodes, "NoisefuseSigmas", schedule="scaled_linear", spacing="karras", steps=8, **ends)
    own = node(nodes, "NoisefuseSigmas", schedule="scaled_linear", spacing="karras", steps=8)
    assert torch.allclose(found, own, rtol=1e-4)
    roots = torch.linspace(14.614642 ** (1 / 7), 0.0291675 ** (1 / 7), 8, dtype=torch.float64)
    assert torch.allclose(found.double(), torch.cat([roots**7, torch.zeros(1, dtype=torch.float64)]), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "cosine", "sigmoid", "laplace", "edm", "flow"])
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading", "karras", "exponential", "beta"])
def test_levels_fall_to_0(nodes, schedule, spacing):
    if spacing == "beta":
        pytest.importorskip("scipy")
    found = node(nodes, "NoisefuseSigmas", schedule=schedule, spacing=spacing, steps=10)
    assert found.dtype == torch.float32
    assert found.shape == (11,)
    assert (found.diff() < 0).all()
    assert found[-1] == 0
    part = node(nodes, "NoisefuseSigmas", schedule=schedule, spacing=spacing, steps=5, denoise=0.5)
    assert torch.equal(part, found[-6:])


def test_ends_and_shift_of_levels(nodes):
    ends = {"schedule": "edm", "spacing": "exponential", "sigma_min": 0.01, "sigma_max": 100.0}
    assert torch.allclose(node(nodes, "NoisefuseSigmas", **ends, steps=3), torch.tensor([100.0, 1.0, 0.01, 0.0]))
    shifted = node(nodes, "NoisefuseSigmas", schedule="flow", spacing="trailing", steps=2, shift=3.0)
    assert torch.allclose(shifted, torch.tensor([1.0, 0.75, 0.0]))
    assert len(node(nodes, "NoisefuseSigmas", schedule="flow", spacing="trailing", denoise=0.0)) == 0


def test_nodes_say_what_they_are(nodes):
    assert {*nodes.NODE_DISPLAY_NAME_MAPPINGS} == {*nodes.NODE_CLASS_MAPPINGS}
    for kind in nodes.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(kind, kind.FUNCTION))
        assert kind.CATEGORY.startswith("sampling/")
        for declared in kind.INPUT_TYPES().values():
            for typed, *options in declared.values():
                assert isinstance(typed, list) or typed in {"INT", "FLOAT", "STRING"}
                assert all("default" in option for option in options)
    assert "noisefuse" in (PACK / "requirements.txt").read_text().split()
