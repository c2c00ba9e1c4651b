# SPDX-License-Identifier: Apache-2.0
"""Classes, configurations and pipelines: `accelerate`, saving and loading."""

import copy
import importlib.util
import inspect
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import noisefuse as nf
from conftest import first_and_slow

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers_cases import DEFAULTS, FORWARD, LOOP, NAMES, SHAPE, said, some, times  # noqa: E402
from diffusers_loops import difference, forward  # noqa: E402
from noisefuse.interop import diffusers as ours  # noqa: E402
from noisefuse.interop.diffusers.keys import of_call, randn_tensor  # noqa: E402


@pytest.mark.parametrize("name", some(2, NAMES))
def test_a_class_is_diffusers_class(name, tmp_path):
    theirs, mine = getattr(diffusers, name), getattr(ours, name)
    for method in ("step", "set_timesteps", "__init__", "add_noise", "scale_noise", "scale_model_input"):
        assert hasattr(theirs, method) == hasattr(mine, method)
        if hasattr(theirs, method):
            a, b = (inspect.signature(getattr(kind, method)).parameters for kind in (theirs, mine))
            assert [(p.name, p.default) for p in a.values()] == [(p.name, p.default) for p in b.values()]
    scheduler = DEFAULTS[name].pair()[1]
    assert isinstance(scheduler, theirs)
    scheduler.save_pretrained(tmp_path)
    assert theirs.from_pretrained(tmp_path).config == mine.from_pretrained(tmp_path).config
    assert {*scheduler.compatibles} == {*theirs().compatibles}
    assert mine.from_config(theirs().config).config == theirs().config
    assert scheduler.config.get("num_train_timesteps", 1000) == 1000
    assert not hasattr(theirs, "__len__") or len(scheduler) == 1000


def test_from_config_of_another_class():
    config = ours.DDPMScheduler(beta_start=1e-3, prediction_type="v_prediction").config
    for kind in (diffusers.DDIMScheduler, ours.DDIMScheduler):
        assert kind.from_config(config).config.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_a_scheduler_in_the_middle_of_its_run(name):
    theirs, _ = DEFAULTS[name].pair()
    theirs.is_scale_input_called = True
    x, results = torch.randn(SHAPE), []
    for t in theirs.timesteps[:3]:
        theirs.step(0.1 * x, t, x)
    copied = copy.copy(theirs)  # no deep copy, of which torchsde's trees have none
    vars(copied).update({key: [*value] for key, value in vars(theirs).items() if isinstance(value, list)})
    mine = ours.accelerate(copied)
    assert type(mine) is getattr(ours, name)
    for scheduler in (theirs, mine):
        torch.manual_seed(0)
        results.append(scheduler.step(0.1 * x, scheduler.timesteps[3], x)[0])
    assert difference(*results) <= LOOP


@pytest.mark.parametrize("name", FORWARD)
def test_accelerate_a_scheduler_that_was_used_and_add_noise(name):
    """The origin of its timesteps is unknown, and is not needed."""
    theirs, _ = DEFAULTS[name].pair()
    mine, x, noise = ours.accelerate(theirs), torch.randn(2, 3, 4), nf.Noise(1)
    z, t = torch.from_numpy(nf.randn((2, 3, 4), noise)), theirs.timesteps[[1, 4]]
    assert difference(forward(mine, x, noise, t), forward(theirs, x, z, t)) <= LOOP


def test_accelerate_refuses():
    class Own(diffusers.DDPMScheduler):
        pass

    for other in (Own(), diffusers.RePaintScheduler(), 3):
        with pytest.raises(TypeError, match=f"one of CMStochasticIterativeScheduler, .* got {type(other).__name__}"):
            ours.accelerate(other)
    with pytest.raises(ValueError, match="expected 'compat' or 'exact'"):
        ours.accelerate(diffusers.DDPMScheduler(), coefficients="best")
    with pytest.raises(TypeError, match="expected a Noise or a list of one for each sample, got 3: a bare seed"):
        ours.accelerate(diffusers.DDPMScheduler(), noise=3)
    for noise in (nf.Noise(1, stream=5), [nf.Noise(1), nf.Noise(1, stream=5)]):
        with pytest.raises(ValueError, match="takes stream 0, got 5"):
            ours.accelerate(diffusers.DDPMScheduler(), noise=noise)
    for attribute, value, error, message in (
        ("coefficients", "Exact", ValueError, "coefficients = 'Exact': expected 'compat' or 'exact'"),
        ("noise", 7, TypeError, "noise: expected a Noise or a list of one for each sample, got 7: a bare seed"),
        ("noise", [nf.Noise(1), 7], TypeError, r"noise\[1\]: expected a Noise, got 7: a bare seed"),
    ):
        scheduler = ours.DDPMScheduler()
        with pytest.raises(error, match=message):
            setattr(scheduler, attribute, value)
        assert (scheduler.noise, scheduler.coefficients) == (None, "compat")
        with pytest.raises(error, match=message):
            ours.accelerate(diffusers.DDPMScheduler(), **{attribute: value})
    with pytest.raises(ValueError, match="no noise of its own"):
        ours.DDPMScheduler().start((1, 2))


def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("kind", first_and_slow(["DDPM", "DDIM"]))
def test_pipelines_give_the_same_pictures(kind, tmp_path):
    pipeline = getattr(diffusers, f"{kind}Pipeline")(unet(), getattr(diffusers, f"{kind}Scheduler")())
    pipeline.set_progress_bar_config(disable=True)

    def picture(**options):
        generator = torch.Generator().manual_seed(3)
        return pipeline(batch_size=2, num_inference_steps=8, generator=generator, output_type="np", **options).images

    options = {"eta": 0.5} if kind == "DDIM" else {}
    expected = picture(**options)
    assert ours.accelerate(pipeline) is pipeline
    assert type(pipeline.scheduler) is getattr(ours, f"{kind}Scheduler")
    np.testing.assert_allclose(picture(**options), expected, rtol=0, atol=LOOP)
    pipeline.save_pretrained(tmp_path)
    loaded = type(pipeline).from_pretrained(tmp_path)
    assert type(loaded.scheduler) is getattr(diffusers, f"{kind}Scheduler")


class Pipeline(diffusers.DiffusionPipeline):
    """Schedulers have any names, and pipelines share them, as in diffusers' combined pipelines."""

    def __init__(self, **schedulers):
        super().__init__()
        self.register_modules(**schedulers)


class Combined(Pipeline):
    def __init__(self, scheduler, prior_scheduler):
        super().__init__(scheduler=scheduler, prior_scheduler=prior_scheduler)
        self.prior_pipe, self.decoder_pipe = Pipeline(scheduler=prior_scheduler), Pipeline(scheduler=scheduler)


def test_every_scheduler_of_a_pipeline_is_replaced(caplog):
    """Schedulers of any name are replaced, and one line says so. Seen to fail: all but `scheduler` stayed."""
    kinds = {
        "scheduler": "DDIM", "prior_scheduler": "UnCLIP", "inverse_scheduler": "DDIMInverse",
        "audio_scheduler": "FlowMatchEulerDiscrete", "low_res_scheduler": "DDPM", "image_noising_scheduler": "DDPM",
    }  # fmt: skip
    names = {name: f"{kind}Scheduler" for name, kind in kinds.items()}
    pipeline = Pipeline(**{name: getattr(diffusers, kind)() for name, kind in names.items()})
    with caplog.at_level(logging.INFO):
        assert ours.accelerate(pipeline, coefficients="exact") is pipeline
    for name, kind in names.items():
        scheduler = getattr(pipeline, name)
        assert (type(scheduler), scheduler.coefficients) == (getattr(ours, kind), "exact")
        assert pipeline.config[name] == ("diffusers", kind)
    listed = ", ".join(f"{name} ({kind})" for name, kind in names.items())
    assert said(caplog) == [f"Pipeline: one-pass steps for {listed}"]
    assert caplog.records[-1].levelno == logging.INFO


def test_the_schedulers_of_a_combined_pipeline_are_replaced_where_they_step(caplog):
    """Its parts have the same objects. Seen to fail: no step of the parts was a row's."""
    pipeline = Combined(diffusers.DDIMScheduler(), diffusers.UnCLIPScheduler())
    noise = nf.Noise(4)
    with caplog.at_level(logging.INFO):
        ours.accelerate(pipeline, noise=noise)
    assert type(pipeline.scheduler) is ours.DDIMScheduler
    assert type(pipeline.prior_scheduler) is ours.UnCLIPScheduler
    assert pipeline.decoder_pipe.scheduler is pipeline.scheduler
    assert pipeline.prior_pipe.scheduler is pipeline.prior_scheduler
    assert (pipeline.scheduler.noise, pipeline.prior_scheduler.noise) == (noise, None)  # two would draw the same
    assert len(said(caplog)) == 1


def test_pipelines_some_of_whose_schedulers_are_not_covered(caplog):
    """A warning names those that stay. A pipeline without any covered scheduler is refused, and nothing is replaced if
    an argument is wrong. Seen to fail: "object has no attribute 'scheduler'"."""
    repaint, ddpm = diffusers.RePaintScheduler(), diffusers.DDPMScheduler()
    pipeline = Pipeline(prior_scheduler=ddpm, inpainting=repaint)
    for wrong in ({"coefficients": "best"}, {"noise": nf.Noise(1)}, {"noise": 3}):
        with pytest.raises((TypeError, ValueError), match=r"^(coefficients|noise)"):
            ours.accelerate(pipeline, **wrong)
        assert pipeline.prior_scheduler is ddpm
    ours.accelerate(pipeline)
    assert type(pipeline.prior_scheduler) is ours.DDPMScheduler
    assert pipeline.inpainting is repaint
    line = "Pipeline: one-pass steps for prior_scheduler (DDPMScheduler); not for inpainting (RePaintScheduler)"
    assert said(caplog) == [f"{line}, whose class is not covered"]
    for name, scheduler in (("scheduler", repaint), ("other", diffusers.AmusedScheduler(5))):
        its = rf"got a Pipeline, whose schedulers are {name} \({type(scheduler).__name__}\)$"
        with pytest.raises(TypeError, match=its):
            ours.accelerate(Pipeline(**{name: scheduler}))
    with pytest.raises(TypeError, match=r"one of CMStochasticIterativeScheduler, .* got a Pipeline, which has none$"):
        ours.accelerate(Pipeline())


@pytest.mark.parametrize("how", ["constructor", "attribute", "components"])
def test_pipelines_that_were_given_a_scheduler_of_ours_are_saved_and_loaded(how, tmp_path):
    mine = ours.DDPMScheduler(prediction_type="v_prediction")
    pipeline = diffusers.DDPMPipeline(unet(), mine if how == "constructor" else diffusers.DDPMScheduler())
    if how == "attribute":
        pipeline.scheduler = mine
    if how == "components":
        pipeline.scheduler = diffusers.DDPMScheduler.from_config(mine.config)
        pipeline = diffusers.DDPMPipeline(**ours.accelerate(pipeline).components)
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["diffusers", "DDPMScheduler"]
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert (config["_class_name"], config["prediction_type"]) == ("DDPMScheduler", "v_prediction")
    for given in ({}, {"scheduler": mine}):
        loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path, **given).scheduler
        assert type(loaded) is type(given.get("scheduler", diffusers.DDPMScheduler()))
        again = ours.DDPMScheduler.from_config(loaded.config)
        assert (type(again), again.config.prediction_type) == (ours.DDPMScheduler, "v_prediction")


@pytest.mark.parametrize(
    ("library", "names"),
    [("scipy", ["LMSDiscreteScheduler"]), ("torchsde", ["DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"])],
)
def test_what_a_class_of_diffusers_needs_is_said(library, names):
    """diffusers loads it. Seen to fail: "cannot import name"."""
    here = "noisefuse.interop.diffusers"
    code = f"import sys; sys.modules[{library!r}] = None\nimport {here} as ours\n"
    for name in names:
        code += f"try:\n    from {here} import {name}\nexcept ImportError as error: print(error)\n"
    code += f"from {here} import *\nprint(hasattr(ours, 'Unknown'), DDIMScheduler is ours.DDIMScheduler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for name in names:
        assert f"{name} requires the {library} library but it was not found" in said
    assert said.count(f"pip install {library}") == len(names)
    assert said.endswith("False True")


LOADING = """
import sys
import diffusers

def load():
    scheduler = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1]).scheduler
    given = diffusers.DDIMScheduler()
    assert diffusers.DiffusionPipeline.from_pretrained(sys.argv[1], scheduler=given).scheduler is given
    print(type(scheduler) is diffusers.DDPMScheduler, "noisefuse" in sys.modules)

sys.modules["noisefuse"] = None
load()
del sys.modules["noisefuse"]
load()
import noisefuse.interop.diffusers
load()
"""


@pytest.mark.slow
def test_a_saved_pipeline_is_loaded_in_another_process(tmp_path):
    """It loads without noisefuse, with it installed, and with it imported. Seen to fail: a pipeline that names our
    module."""
    pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    pipeline.scheduler = ours.DDPMScheduler()
    pipeline.save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", LOADING, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True True", "True False", "True True"], done.stderr


def test_a_derived_class_is_named_by_its_own_module():
    class Own(ours.DDPMScheduler):
        pass

    pipeline = diffusers.DDPMPipeline(unet(), ours.accelerate(Own()))
    assert pipeline.config["scheduler"] == (__name__, "Own")
    assert (ours.DDPMScheduler.__module__, Own().config["num_train_timesteps"]) == (ours.__name__, 1000)


def test_what_accelerate_is_not_told_stays():
    scheduler = ours.accelerate(diffusers.DDPMScheduler(), noise=nf.Noise(3), coefficients="exact")
    again = ours.accelerate(scheduler)
    assert (again.noise, again.coefficients) == (nf.Noise(3), "exact")
    other = ours.accelerate(scheduler, noise=nf.Noise(4), coefficients="compat")
    assert (other.noise, other.coefficients) == (nf.Noise(4), "compat")
    assert (scheduler.noise, scheduler.coefficients) == (nf.Noise(3), "exact")


def test_a_pipeline_with_noise_of_its_own():
    """No generator is needed: the scheduler's noise does not depend on the batch; its start is stream 2."""
    noises = [nf.Noise(5), nf.Noise(6)]
    scheduler = diffusers.DDPMScheduler()
    pipeline = ours.accelerate(diffusers.DDPMPipeline(unet(), scheduler), noise=noises)
    scheduler = pipeline.scheduler
    shape = (2, 3, 16, 16)
    start = scheduler.start(shape)
    assert torch.equal(start[1:], torch.from_numpy(nf.randn((1, *shape[1:]), noises[1].at(stream=2))))
    assert scheduler.start(shape, dtype=torch.bfloat16).dtype == torch.bfloat16

    def sample(noise, x):
        scheduler.noise = noise
        scheduler.set_timesteps(5)
        with torch.no_grad():
            for t in times(scheduler):
                predicted = [pipeline.unet(one[None], t).sample for one in x]  # these sums depend on the batch
                x = scheduler.step(torch.cat(predicted), t, x).prev_sample
        return x

    assert torch.equal(sample(noises[1], start[1:]), sample(noises, start)[1:])


@pytest.mark.slow
def test_the_example(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    path = Path(__file__).parents[2] / "examples" / "diffusers_pipeline.py"
    spec = importlib.util.spec_from_file_location("diffusers_pipeline", path)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr(program, "STEPS", 4)
    monkeypatch.setattr(program, "SHAPES", {"actions": (1, 16, 7)})
    threads = torch.get_num_threads()
    program.main(["--out", str(tmp_path / "few.png")])
    torch.set_num_threads(threads)
    assert (tmp_path / "few.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(name.__name__[:12] in printed for name in program.SCHEDULERS)
    assert [float(words) < 2e-5 for words in re.findall(r"differ by ([\d.e-]+),", printed)] == [True, True]


# ---- a Noise as the generator ------------------------------------------------------------------------------


def dit():
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=1,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)
    return diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())


def consistency():
    return diffusers.ConsistencyModelPipeline(unet(), diffusers.CMStochasticIterativeScheduler())


WITH_KEYS = {
    "DDPM": (lambda: diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()), lambda n: {"batch_size": n}),
    "DDIM": (lambda: diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler()), lambda n: {"batch_size": n, "eta": 1}),
    "DiT": (dit, lambda n: {"class_labels": [3] * n}),
    "consistency model": (consistency, lambda n: {"batch_size": n}),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_KEYS)
def test_a_pipeline_takes_keys(name):
    """A picture is that of its key, in a batch or alone, and at each call. Seen to fail: a step that counts on from the
    call before, and draws that have one step."""
    make, options = WITH_KEYS[name]
    pipeline = ours.accelerate(make().to("cpu"))
    pipeline.set_progress_bar_config(disable=True)

    def pictures(n, generator):
        return pipeline(**options(n), num_inference_steps=3, generator=generator, output_type="np").images

    seeds = [nf.Noise(seed) for seed in (3, 6, 1)]
    batch, alone = pictures(3, seeds), pictures(1, seeds[1])
    np.testing.assert_allclose(batch[1:2], alone, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(pictures(1, [seeds[1]]), alone)
    by_sample = pictures(3, nf.Noise(6))
    np.testing.assert_allclose(by_sample[:1], alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_sample[2:], pictures(1, nf.Noise(6, sample=2)), rtol=0, atol=1e-5)
    assert len({picture.tobytes() for picture in (*batch, *by_sample[1:])}) == 5
    theirs = pictures(1, torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(theirs, pictures(1, torch.Generator().manual_seed(3)))
    assert not np.array_equal(theirs, pictures(1, torch.Generator().manual_seed(4)))


def test_the_latents_of_a_key_are_the_starts():
    """Each further draw of a call is another field."""
    pipeline = ours.accelerate(WITH_KEYS["DDPM"][0](), noise=nf.Noise(6))
    assert type(pipeline).__name__ == "DDPMPipeline"
    assert isinstance(pipeline, diffusers.DDPMPipeline)
    generator = of_call(nf.Noise(6))
    first, second = (randn_tensor((2, 3, 16, 16), generator=generator) for _ in range(2))
    assert torch.equal(first, pipeline.scheduler.start((2, 3, 16, 16)))
    assert np.array_equal(second, nf.randn((2, 3, 16, 16), nf.Noise(6, step=1, stream=2)))


def test_a_key_of_another_stream_is_refused():
    pipeline = ours.accelerate(WITH_KEYS["DDPM"][0]())
    with pytest.raises(ValueError, match="generator: expected a Noise of stream 0, got 5"):
        pipeline(generator=nf.Noise(1, stream=5))
