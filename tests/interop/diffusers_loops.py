# SPDX-License-Identifier: Apache-2.0
"""A scheduler of pip's diffusers and ours side by side: both run on their own x, with the same model and the same
generators; their results and their state are compared after every step.
"""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers_cases import DEFAULTS, LOOP, NAMES, SDE, SHAPE, TREES, Case, times  # noqa: E402
from noisefuse.interop.diffusers import refusals, rows  # noqa: E402


def difference(a, b, least=0.0):
    """Returns the largest difference, relative to the largest finite value of b, or to `least`, if that is more."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    a, b = a.double(), b.double()
    assert torch.equal(a.isfinite(), b.isfinite())
    a, b = (torch.where(v.isfinite(), v, 0) for v in (a, b))
    return (a - b).abs().max().item() / (max(b.abs().max().item(), least) + 1e-30)


def quotients(scheduler, name, value, largest):
    """Returns the scale for DEIS's remembered (x - alpha D) / sigma: the largest x, divided so. Differences of x are,
    too."""
    if not isinstance(scheduler, diffusers.DEISMultistepScheduler) or name != "model_outputs":
        return [0.0] * len(value)
    made_at = range(scheduler.step_index - len(value), scheduler.step_index)
    sigmas = [scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[max(i, 0)])[1].item() for i in made_at]
    return [largest / sigma for sigma in sigmas]


def alike(theirs, mine, tolerance, least=0.0, largest=0.0):
    """Compares attributes of two schedulers: the same names, the same values, tensors within the tolerance."""
    private = {"_clock", "_run", "_levels", "_replay", "noise", "coefficients", "__module__"}
    assert {*vars(mine)} - private == {*vars(theirs)}
    for name, value in vars(theirs).items():
        other = getattr(mine, name)
        if name in ("noise_sampler", "tau_func"):  # a tree, a function of each
            continue
        listed = ([value], [other]) if not isinstance(value, list) else (value, other)
        for a, b, quotient in zip(*listed, quotients(theirs, name, listed[0], largest), strict=True):
            assert (a is None) == (b is None), name
            # their (x - D) / sigma loses digits
            if isinstance(a, torch.Tensor) and name not in ("prev_derivative", "derivatives"):
                if mine._upcasts and b.dtype == torch.float64:
                    b = b.to(a.dtype)  # theirs has converted it to float32, and ours has not
                assert difference(b, a, max(least, quotient)) <= tolerance, name
            elif not isinstance(a, torch.Tensor | np.ndarray):
                assert a == b, name


def arguments(scheduler, generator, options):
    return options | ({"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {})


def loop(case, n=10, dtype=torch.float32, tolerance=LOOP, shape=SHAPE, start=0, **attributes):
    """Runs both schedulers, step by step; returns the largest difference."""
    refusals.said.clear()
    pair = case.pair(n, **attributes)
    rng = torch.Generator().manual_seed(0)
    generators = [torch.Generator().manual_seed(1) for _ in pair]
    x = torch.randn(shape, generator=rng).to(dtype) * getattr(pair[0], "init_noise_sigma", 1.0)
    xs, worst, largest = [x.to(dtype)] * 2, 0.0, 0.0
    order = getattr(pair[0], "order", 1)
    if start and hasattr(pair[0], "set_begin_index"):
        for scheduler in pair:
            scheduler.set_begin_index(start * order)
    for ts in [*zip(*(times(scheduler)[start * order :] for scheduler in pair), strict=True)]:
        push = torch.randn(shape, generator=rng)
        results = []
        for scheduler, generator, x, t in zip(pair, generators, xs, ts, strict=True):
            shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            m = (0.3 * torch.tanh(shown.float()) + push).to(dtype)
            results.append(scheduler.step(m, t, x, **arguments(scheduler, generator, case.options)))
        theirs, mine = results
        assert type(theirs) is type(mine)
        assert [*theirs] == [*mine]
        assert [*vars(theirs)] == [*vars(mine)]
        # The largest x counts, too: a digit lost there stays lost (theirs are, as x falls from 4096 to 1).
        largest = max(largest, xs[0].abs().nan_to_num().max().item())
        least = largest * torch.finfo(torch.float32).eps / tolerance
        worst = max(worst, *(difference(mine[k], theirs[k], least) for k in theirs))
        assert worst <= tolerance
        alike(*pair, tolerance, least, largest)
        xs = [theirs.prev_sample, mine.prev_sample]
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    # not diffusers' own method, unless the value is no number
    by_rows = isinstance(pair[1]._run.plan, rows.Plan) and not refusals.said
    widened = case.name == "SCMScheduler" and dtype.itemsize < 4
    assert by_rows or widened or not xs[0].isfinite().all()
    return worst


def check_generators(case):
    """Skips if diffusers' class takes no generator, and ours does."""
    module = inspect.getmodule(getattr(diffusers, case.name))
    if case.config.get("stochastic_sampling") and not hasattr(module, "randn_tensor"):
        pytest.skip("flow matching of this diffusers draws by torch.randn_like, and takes no generator")


def their_noise(monkeypatch, name, source):
    """Makes diffusers' class draw from `source()`."""
    module = inspect.getmodule(getattr(diffusers, name))
    if name in TREES:
        monkeypatch.setattr(module, "BrownianTreeNoiseSampler", lambda *args, **kwargs: lambda start, stop: source())
    elif hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **kwargs: source().to(kwargs.get("dtype")))
    else:  # flow matching in older versions
        drawing = {**vars(torch), "randn_like": lambda x: source().to(x.dtype)}
        monkeypatch.setattr(module, "torch", SimpleNamespace(**drawing))


STOCHASTIC = [
    DEFAULTS["DDPMScheduler"],
    Case("DDIMScheduler", {}, {"eta": 1.0}),
    DEFAULTS["LCMScheduler"],
    DEFAULTS["EulerAncestralDiscreteScheduler"],
    Case("EulerDiscreteScheduler", {}, {"s_churn": 3.0}),
    Case("DPMSolverMultistepScheduler", SDE),
    Case("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    DEFAULTS["DDPMParallelScheduler"],
    Case("DDIMParallelScheduler", {}, {"eta": 1.0}),
    DEFAULTS["TCDScheduler"],
    DEFAULTS["KDPM2AncestralDiscreteScheduler"],
    Case("EDMEulerScheduler", {}, {"s_churn": 3.0}),
    Case("EDMDPMSolverMultistepScheduler", SDE),
    Case("DPMSolverSinglestepScheduler", SDE),
    Case("FlowMatchHeunDiscreteScheduler", {}, {"s_churn": 3.0}),
    DEFAULTS["FlowMatchLCMScheduler"],
    DEFAULTS["SASolverScheduler"],
    DEFAULTS["UnCLIPScheduler"],
    DEFAULTS["SCMScheduler"],
    DEFAULTS["CMStochasticIterativeScheduler"],
    *(DEFAULTS[name] for name in NAMES if name.startswith("LTX")),
    *(DEFAULTS[name] for name in TREES if name.startswith("Cosine")),
]


def run(scheduler, case, x, noise, places=None):
    """Runs all steps with a model that is a formula, or those at the given places."""
    xs = []
    for k, t in enumerate(times(scheduler)):
        if places is not None and k not in places:
            continue
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        x = scheduler.step(0.1 * x, t, x, generator=noise, **case.options, return_dict=False)[0]
        xs.append(x)
    return xs


def forward(scheduler, x, z, t):
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(x, t, z)
    return scheduler.add_noise(x, z, t)
