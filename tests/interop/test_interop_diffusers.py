# SPDX-License-Identifier: Apache-2.0
"""Drop-in schedulers against those of pip's diffusers: their results and state after every step.

Both sides run on their own x, with the same model and the same generators.
"""

import contextlib
import copy
import importlib.util
import inspect
import itertools
import json
import logging
import pickle
import random
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import noisefuse as nf
from conftest import first_and_slow, one_in

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from noisefuse.interop import diffusers as ours  # noqa: E402
from noisefuse.interop.diffusers import engine, exact, forward, refusals, rows, runs  # noqa: E402
from noisefuse.interop.diffusers.exact import rebound  # noqa: E402
from noisefuse.interop.torch import arrays as torch_arrays  # noqa: E402
from private_names import private  # noqa: E402
from test_torch_cuda import nothing_comes_back, on_the_stand_in  # noqa: E402

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
SHAPE = (2, 3, 4, 4)
LOOP = 2e-5  # float32: the largest difference over a loop, relative to the largest value of the step
VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
MINIMAX = getattr(diffusers, "MiniMaxH3Scheduler", ())
# Their steps take other arguments, or other numbers of steps: test_diffusers_others.py.
OTHERS = ("CogVideoXDPMScheduler", "ConsistencyDecoderScheduler", "DDPMWuerstchenScheduler")
NAMES = [kind.__name__ for kind in ours.SCHEDULERS.values() if kind.__name__ not in OTHERS]
TREES = [name for name in NAMES if name.startswith(("DPMSolverSDE", "Cosine"))]  # those that use torchsde
# DPMSolverSDE takes no generator, and the inverse DPM-Solver's noise is the root of a negative number.
DRAWING = [
    name
    for name in NAMES
    if getattr(ours, name)._draws and not name.startswith(("DPMSolverSDE", "DPMSolverMultistepInv"))
]
FORWARD = [name for name in NAMES if issubclass(getattr(ours, name), forward.Forward)]
MEMORYLESS = [name for name in NAMES if not getattr(ours, name)._memory]


def some(n, names):
    """Returns one in n, except KDPM2's, which take a second to construct, none by default."""
    long = [name for name in names if name.startswith("KDPM2")]
    others = one_in(n, [name for name in names if name not in long])
    return [*others, *(pytest.param(name, marks=pytest.mark.release) for name in long)]


@dataclass
class Case:
    """A class, its configuration, and options of its steps."""

    name: str
    config: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)

    def __str__(self):
        words = (f"{k}={v}" for k, v in (self.config | self.options).items() if k not in VP)
        return "-".join([self.name.removesuffix("Scheduler"), *words])

    def pair(self, n=10, **attributes):
        """Returns their scheduler and ours, with n steps."""
        known = inspect.signature(getattr(diffusers, self.name)).parameters
        given = {} if self.name == "UnCLIPScheduler" else VP  # it has only one schedule
        config = {option: value for option, value in given.items() if option in known} | self.config
        with warnings.catch_warnings(action="ignore"):  # theirs: from NumPy, and that "dpmsolver" is deprecated
            pair = tuple(made(getattr(module, self.name), config) for module in (diffusers, ours))
            for name, value in attributes.items():
                setattr(pair[1], name, value)
            for scheduler in pair if n else ():
                set_timesteps(scheduler, n)
        return pair


def set_timesteps(scheduler, n):
    """Returns the number for n steps: MiniMaxH3 counts the end of the last one, too; SCM has other times for 2 of
    them."""
    of_two = {"intermediate_timesteps": None} if isinstance(scheduler, diffusers.SCMScheduler) else {}
    scheduler.set_timesteps(n + isinstance(scheduler, MINIMAX), **of_two)


def times(scheduler):
    """Returns the positions with a step: SCM's last time is the end of one."""
    return scheduler.timesteps[:-1] if isinstance(scheduler, diffusers.SCMScheduler) else scheduler.timesteps


MADE = {}


def made(kind, config):
    """Makes a new scheduler: a copy, because KDPM2's and DPMSolverSDE's take a second to construct."""
    key = kind, repr(config)
    if key not in MADE:
        MADE[key] = kind(**config)
    return copy.deepcopy(MADE[key])


def either(option, *values):
    return [{option: value} for value in values]


def exclusive(*options):
    return [{}, *({option: True} for option in options)]


def merged(*configs):
    return {k: v for config in configs for k, v in config.items()}


PREDICTION = either("prediction_type", "epsilon", "sample", "v_prediction")
SPACING = either("timestep_spacing", "leading", "trailing", "linspace")
SIGMAS = exclusive("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
FINAL = either("final_sigmas_type", "zero", "sigma_min")
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
DYNAMIC = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0}
THRESHOLD = [{}, DYNAMIC]
CLIP = [{"clip_sample": False}, {"clip_sample": True}, {"clip_sample": True, "clip_sample_range": 0.5}]
BOUND = [*CLIP, DYNAMIC]
SDE = {"algorithm_type": "sde-dpmsolver++"}
OLD = {"final_sigmas_type": "sigma_min"}
# The first of every factor is the default of the short run, which varies one factor at a time.
MATRIX = {
    "DDPMScheduler": (
        PREDICTION, SPACING, BOUND, either("variance_type", "fixed_small", "fixed_small_log", "fixed_large"),
    ),
    "DDIMScheduler": (
        PREDICTION, SPACING, BOUND, either("set_alpha_to_one", True, False), either("steps_offset", 0, 1),
    ),
    "EulerDiscreteScheduler": (
        PREDICTION, SPACING, SIGMAS, FINAL, either("interpolation_type", "linear", "log_linear"),
        either("timestep_type", "discrete", "continuous"), either("rescale_betas_zero_snr", False, True),
    ),
    "EulerAncestralDiscreteScheduler": (
        PREDICTION[::2], SPACING, either("rescale_betas_zero_snr", False, True), either("steps_offset", 0, 1),
    ),
    "HeunDiscreteScheduler": (PREDICTION, SPACING, SIGMAS, CLIP),
    "DPMSolverMultistepScheduler": (
        [*PREDICTION, FLOW], SPACING, [*SIGMAS, {"use_lu_lambdas": True}], THRESHOLD,
        [{}, SDE, {"algorithm_type": "dpmsolver", **OLD}, {"algorithm_type": "sde-dpmsolver", **OLD}],
        either("solver_type", "midpoint", "heun"), either("solver_order", 2, 1, 3), [{}, OLD],
        [{}, {"euler_at_final": True}, {"lower_order_final": False}],
    ),
    "UniPCMultistepScheduler": (
        [*PREDICTION, FLOW], SPACING, SIGMAS, THRESHOLD, [{}, {"solver_type": "bh1", **OLD}],
        either("solver_order", 2, 1, 3), [{}, {"predict_x0": False, **OLD}], [{}, OLD],
        [{}, {"lower_order_final": False, **OLD}, {"disable_corrector": [0, 2]}],
    ),
    "PNDMScheduler": (
        either("skip_prk_steps", True, False), PREDICTION[::2], SPACING, either("set_alpha_to_one", False, True),
    ),
    "LCMScheduler": (PREDICTION, CLIP + THRESHOLD[1:], either("timestep_scaling", 10.0, 2.0)),
    "FlowMatchEulerDiscreteScheduler": (
        either("shift", 1.0, 3.0), SIGMAS, either("stochastic_sampling", False, True),
        either("invert_sigmas", False, True), [{}, {"shift_terminal": 0.1}],
    ),
    "DDPMParallelScheduler": (
        PREDICTION, SPACING, BOUND, either("variance_type", "fixed_small", "fixed_small_log", "fixed_large"),
    ),
    "DDIMParallelScheduler": (
        PREDICTION, SPACING, BOUND, either("set_alpha_to_one", True, False), either("steps_offset", 0, 1),
    ),
    "CogVideoXDDIMScheduler": (
        PREDICTION, SPACING, either("rescale_betas_zero_snr", False, True), either("set_alpha_to_one", True, False),
    ),
    "DDIMInverseScheduler": (
        PREDICTION, SPACING[:2], CLIP, either("set_alpha_to_one", True, False), either("steps_offset", 0, 1),
    ),
    "TCDScheduler": (
        PREDICTION, either("set_alpha_to_one", True, False), either("rescale_betas_zero_snr", False, True),
    ),
    "EDMEulerScheduler": (
        PREDICTION[::2], FINAL, either("sigma_schedule", "karras", "exponential"), either("sigma_data", 0.5, 1.0),
    ),
    "EDMDPMSolverMultistepScheduler": (
        PREDICTION[::2], FINAL, either("sigma_schedule", "karras", "exponential"), THRESHOLD,
        [{}, SDE], either("solver_type", "midpoint", "heun"), either("solver_order", 2, 1, 3),
        [{}, {"euler_at_final": True}, {"lower_order_final": False, **OLD}],
    ),
    "KDPM2DiscreteScheduler": (PREDICTION[::2], SPACING, SIGMAS),
    "KDPM2AncestralDiscreteScheduler": (PREDICTION[::2], SPACING, SIGMAS),
    "LMSDiscreteScheduler": (PREDICTION, SPACING, SIGMAS),
    "IPNDMScheduler": (either("num_train_timesteps", 1000, 500),),
    "DEISMultistepScheduler": (
        [*PREDICTION, FLOW], SPACING, SIGMAS, THRESHOLD, either("solver_order", 2, 1, 3),
        either("lower_order_final", True, False),
    ),
    "DPMSolverSinglestepScheduler": (
        [*PREDICTION, FLOW], SIGMAS, THRESHOLD,
        [{}, SDE, {"algorithm_type": "dpmsolver", **OLD}], either("solver_type", "midpoint", "heun"),
        either("solver_order", 2, 1, 3), [{"lower_order_final": True}, {"lower_order_final": False, **OLD}],
    ),
    "DPMSolverMultistepInverseScheduler": (
        [*PREDICTION, FLOW], SPACING, SIGMAS, THRESHOLD,
        [{}, SDE, {"algorithm_type": "dpmsolver"}, {"algorithm_type": "sde-dpmsolver"}],
        either("solver_type", "midpoint", "heun"), either("solver_order", 2, 1, 3),
        [{}, {"euler_at_final": True}, {"lower_order_final": False}],
    ),
    "DPMSolverSDEScheduler": ([{**config, "noise_sampler_seed": 7} for config in PREDICTION[::2]], SPACING, SIGMAS),
    "CosineDPMSolverMultistepScheduler": (
        either("prediction_type", "v_prediction", "epsilon"), either("solver_order", 2, 1),
        either("sigma_schedule", "exponential", "karras"), [{}, {"euler_at_final": True}, {"lower_order_final": False}],
    ),
    "FlowMatchHeunDiscreteScheduler": (either("shift", 1.0, 3.0),),
    "FlowMatchLCMScheduler": (either("shift", 1.0, 3.0), SIGMAS, either("invert_sigmas", False, True)),
    "SASolverScheduler": (
        [*PREDICTION, FLOW], SPACING, SIGMAS, THRESHOLD,
        [{"predictor_order": p, "corrector_order": c} for p, c in ((2, 2), (1, 1), (3, 2), (2, 3), (3, 3))],
        either("algorithm_type", "data_prediction", "noise_prediction"), either("lower_order_final", True, False),
    ),
    "UnCLIPScheduler": (
        PREDICTION[:2], [CLIP[1], CLIP[2], CLIP[0]], either("num_train_timesteps", 1000, 20),
    ),
    "CMStochasticIterativeScheduler": (
        either("clip_denoised", True, False), either("s_noise", 1.0, 1.01), either("sigma_data", 0.5, 1.0),
        either("num_train_timesteps", 1000, 40),
    ),
    "LTXEulerAncestralRFScheduler": (either("eta", 1.0, 0.5, 0.0), either("s_noise", 1.0, 0.9)),
    "SCMScheduler": (either("sigma_data", 0.5, 1.0),),
    "MiniMaxH3Scheduler": (either("shift", 12.0, 3.0),),
    "FlowMapEulerDiscreteScheduler": (either("shift", 1.0, 5.0),),
}  # fmt: skip
STEP_OPTIONS = {
    "DDIMScheduler": [{"eta": 0.7}, {"eta": 1.0, "use_clipped_model_output": True}],
    "DDIMParallelScheduler": [{"eta": 0.7}, {"eta": 1.0, "use_clipped_model_output": True}],
    "TCDScheduler": [{"eta": 0.0}, {"eta": 1.0}],
    "EulerDiscreteScheduler": [{"s_churn": 3.0, "s_noise": 1.003}, {"s_churn": 40.0, "s_tmin": 1.0, "s_tmax": 9.0}],
    "EDMEulerScheduler": [{"s_churn": 3.0, "s_noise": 1.003}, {"s_churn": 40.0, "s_tmin": 1.0, "s_tmax": 9.0}],
    "FlowMatchHeunDiscreteScheduler": [
        {"s_churn": 3.0, "s_noise": 1.003}, {"s_churn": 40.0, "s_tmin": 0.2, "s_tmax": 0.9},
    ],
    "LMSDiscreteScheduler": [{"order": 1}, {"order": 3}],
    "DPMSolverSDEScheduler": [{"s_noise": 0.9}],
}  # fmt: skip


def possible(case):
    """Whether diffusers itself can do this, and in finite numbers."""
    c = case.config
    if c.get("predict_x0") is False and (c.get("thresholding") or c["prediction_type"] == "flow_prediction"):
        return False  # they do not threshold then
    flow = c.get("use_flow_sigmas")
    if flow and any(
        c.get(f"use_{level}") for level in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")
    ):
        return False
    if case.name.startswith("DPM"):
        old = str(c.get("algorithm_type")).endswith("dpmsolver")
        third = c.get("solver_order") == 3 and c.get("algorithm_type") == "sde-dpmsolver"
        if (old and flow) or third:
            return False
    if case.name == "DPMSolverSinglestepScheduler" and c.get("algorithm_type") == "dpmsolver" and c.get("thresholding"):
        return False  # their D is then of all 1000 times
    noiseless = case.name in ("EDMDPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler")
    if noiseless and c.get("solver_order") == 3 and "sde" in c.get("algorithm_type", ""):
        return False  # its third order takes no noise
    continuous = c.get("timestep_type") == "continuous"
    return not (continuous and c["prediction_type"] != "v_prediction" and c.get("use_beta_sigmas"))


def one_at_a_time(name):
    factors = MATRIX[name]
    base = merged(*(factor[0] for factor in factors))
    yield Case(name, base)
    for factor in factors:
        for config in factor[1:]:
            yield Case(name, base | config)
    for options in STEP_OPTIONS.get(name, []):
        yield Case(name, base, options)


def all_of_them(name):
    for configs in itertools.product(*MATRIX[name]):
        for options in [{}, *STEP_OPTIONS.get(name, [])]:
            yield Case(name, merged(*configs), options)


def distinct(cases):
    return [*{str(case): case for case in cases if possible(case)}.values()]


def covering(cases, seed=0):
    """Yields cases, in a random order, that have three values which none before had together."""
    seen = set()
    for case in random.Random(seed).sample(cases, len(cases)):
        values = sorted(f"{option}={value}" for option, value in (case.config | case.options).items())
        if new := {*itertools.combinations(values, min(3, len(values)))} - seen:
            seen |= new
            yield case


SHORT = distinct(case for name in NAMES for case in one_at_a_time(name))
DEFAULTS = {name: next(one_at_a_time(name)) for name in NAMES}


def said(caplog):
    """Returns the lines of our log."""
    return [record.getMessage() for record in caplog.records if record.name == "noisefuse.interop.diffusers"]


# ---- loops side by side ------------------------------------------------------------------------------------


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


def need_generators(case):
    """Skips if diffusers' class takes no generator, and ours does."""
    module = inspect.getmodule(getattr(diffusers, case.name))
    if case.config.get("stochastic_sampling") and not hasattr(module, "randn_tensor"):
        pytest.skip("flow matching of this diffusers draws by torch.randn_like, and takes no generator")


@pytest.mark.parametrize("case", one_in(3, SHORT), ids=str)
def test_loops_agree(case):
    need_generators(case)
    loop(case)


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 50])
@pytest.mark.parametrize("name", NAMES)
def test_loops_of_other_lengths_agree(name, n):
    loop(DEFAULTS[name], n)


def loss_of_theirs(case, n):
    """Returns the distance from float64 of diffusers' own loop, which draws nothing, if the last digit of each step is
    changed."""
    ends = []
    for dtype, seed in ((torch.float64, 0), *((torch.float32, seed) for seed in range(4))):
        theirs, rng = case.pair(n)[0], torch.Generator().manual_seed(0)
        roundings = torch.Generator().manual_seed(seed)
        theirs.sigmas = theirs.sigmas.to(dtype)
        x = (torch.randn(SHAPE, generator=rng) * theirs.init_noise_sigma).to(dtype)
        for t in theirs.timesteps:
            push = torch.randn(SHAPE, generator=rng).to(dtype)
            x = theirs.step(0.3 * torch.tanh(theirs.scale_model_input(x, t)) + push, t, x).prev_sample
            if dtype == torch.float32:
                x *= 1 + torch.finfo(dtype).eps * torch.randint(-1, 2, SHAPE, generator=roundings)
        ends.append(x.double())
    return max(difference(end, ends[0]) for end in ends[1:])


def is_refused_by_diffusers(case):
    """Whether diffusers' own step raises an error, as SASolver's does if it bounds D by data and predicts noise."""
    theirs, x = case.pair(5)[0], torch.zeros(SHAPE)
    try:
        for t in times(theirs):
            x = theirs.step(x, t, x, **arguments(theirs, torch.Generator(), case.options)).prev_sample
    except RuntimeError:
        return True
    return False


@pytest.mark.release
@pytest.mark.parametrize("name", NAMES)
def test_loops_agree_in_every_combination_of_three(name):
    """Any three values of options together are tried, in 500 loops. All 14,734 combinations agree, too, and take
    minutes. Code rarely lets an option depend on more than one or two others."""
    for case in covering(distinct(all_of_them(name))):
        try:
            loop(case, 5, tolerance=LOOP)
        except Exception as error:
            if is_refused_by_diffusers(case):
                continue
            # Heun's (x - D) / sigma loses digits if sigma falls from 2.6 to 0.03 in a step: in theirs and in ours.
            lost = 2 * loss_of_theirs(case, 5) if name == "HeunDiscreteScheduler" else 0.0
            if lost <= LOOP:
                raise AssertionError(str(case)) from error
            loop(case, 5, tolerance=lost)


@pytest.mark.release
@pytest.mark.parametrize("name", NAMES)
def test_loops_of_1000_steps_agree(name):
    case = copy.deepcopy(DEFAULTS[name])
    if name in ("LCMScheduler", "TCDScheduler"):
        case.config["original_inference_steps"] = 1000
    if "timestep_spacing" in case.config and {"solver_order", "predictor_order"} & {*case.config}:
        case.config["timestep_spacing"] = "trailing"  # the only one in which all their times are different
    # torchsde is slow where its trees are deep; diffusers' IPNDM keeps all outputs of a run.
    loop(case, 100 if name in TREES else 200 if name == "IPNDMScheduler" else 1000)


# ---- dtypes ------------------------------------------------------------------------------------------------


def one_step_each(case, dtype, n=10):
    """Returns differences of single steps, with our scheduler put into their state before each; and theirs from
    float64."""
    pair, wide = case.pair(n), case.pair(n)[0]
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=rng).to(dtype)
    distances = []
    for t in times(pair[0]):
        m = torch.randn(SHAPE, generator=rng).to(dtype)
        for scheduler in (pair[1], wide):
            for name in vars(pair[0]):
                value = getattr(pair[0], name)
                setattr(scheduler, name, value.copy() if isinstance(value, list) else value)
        for scheduler in (*pair, wide):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
        for name in pair[1]._memory:
            value = getattr(wide, name, None)
            double = (
                [v.double() if isinstance(v, torch.Tensor) else v for v in value] if isinstance(value, list) else value
            )
            setattr(wide, name, double.double() if isinstance(double, torch.Tensor) else double)
        given = {"variance_noise": None} if "variance_noise" in inspect.signature(wide.step).parameters else {}
        results = []
        for scheduler, kind in ((pair[0], dtype), (pair[1], dtype), (wide, torch.float64)):
            generator = torch.Generator().manual_seed(1)
            results.append(scheduler.step(m.to(kind), t, x.to(kind), **arguments(scheduler, generator, given)))
        theirs, mine, exact = results
        for name in theirs:
            assert mine[name].dtype == theirs[name].dtype
            scale = exact[name].abs().max() + 1e-30
            distances.append([((r[name].double() - exact[name]).abs().max() / scale).item() for r in (theirs, mine)])
        x = theirs.prev_sample
    return np.array(distances)


THROUGH_FLOAT32 = [name for name in NAMES if getattr(ours, name)._upcasts or name.startswith(("DPM", "LTX"))]
SOMETIMES = ("DDIM", "DPMSolver", "EDM", "FlowMatchHeun")  # they draw on request
DETERMINISTIC = [
    DEFAULTS[name]
    for name in NAMES
    if name not in TREES and (not getattr(ours, name)._draws or name.startswith(SOMETIMES))
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*DETERMINISTIC, DEFAULTS["EulerDiscreteScheduler"]], ids=str)
def test_half_steps_are_rounded_once(case, dtype):
    """From the same inputs, relative to the largest value: ours is within one rounding of their step in float64; theirs
    is up to 1.6 eps away."""
    theirs, mine = one_step_each(case, dtype).T
    assert np.nanmax(mine) <= torch.finfo(dtype).eps / 2 * 1.01
    assert np.nanmax(mine) <= np.nanmax(theirs) * 1.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", some(2, NAMES))
def test_loops_in_half_precision_agree(name, dtype):
    """They agree as closely as their rounding of every operation allows, measured: 3.8 eps, and 9 eps if they divide a
    rounded difference by alpha and clip it; 8 eps in two classes that continue with such differences. Types, noise and
    state are theirs."""
    more = ("DPMSolverMultistepInverse", "KDPM2Ancestral")
    loop(DEFAULTS[name], dtype=dtype, tolerance=(9 if name.startswith(more) else 4) * torch.finfo(dtype).eps)
    for case in STOCHASTIC:
        if case.name == name:
            need_generators(case)
            loop(case, dtype=dtype, tolerance=12 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", NAMES)
def test_loops_in_double_precision_agree(name):
    """The coefficients are theirs to the last digits; if theirs go through float32, ours does not."""
    loop(DEFAULTS[name], dtype=torch.float64, tolerance=1e-14 if name not in THROUGH_FLOAT32 else 1e-6)


# ---- noise -------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("case", STOCHASTIC, ids=str)
def test_a_noise_draws_by_position(case, monkeypatch):
    """Step i has the field of stream 3 at step noise.step + i: given as a generator, as scheduler.noise, and in
    diffusers."""
    noise, x = nf.Noise(7, sample=5, step=100), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    theirs, mine = case.pair()
    drawn = iter(range(101, 200, 2) if case.name.startswith("KDPM2") else range(100, 200))  # its second stages draw
    their_noise(monkeypatch, case.name, lambda: torch.from_numpy(nf.randn(SHAPE, noise.at(step=next(drawn), stream=3))))
    expected, got = run(theirs, case, x, None), run(mine, case, x, noise)
    assert max(difference(a, b) for a, b in zip(got, expected, strict=True)) <= LOOP
    _, other = case.pair(noise=noise)
    assert torch.equal(run(other, case, x, None)[-1], got[-1])
    given = run(case.pair()[1], case, x, nf.Noise(8))
    assert not torch.allclose(given[-1], got[-1])


@pytest.mark.parametrize("case", STOCHASTIC, ids=str)
def test_every_sample_has_its_seed(case):
    """A batch with a list of Noises equals its samples alone."""
    noises, x = [nf.Noise(seed) for seed in (3, 1, 4)], torch.randn(3, 2, 4, 4)
    together = run(case.pair()[1], case, x, noises)[-1]
    alone = [run(case.pair()[1], case, x[b : b + 1], noises[b])[-1] for b in range(3)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("case", STOCHASTIC, ids=str)
@pytest.mark.parametrize("kind", ["default generator", "list of generators"])
def test_generators_draw_what_diffusers_draws(case, kind):
    x, results = torch.randn(SHAPE), []
    if kind == "list of generators":
        need_generators(case)
    for scheduler in case.pair():
        torch.manual_seed(11)
        listed = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        results.append(run(scheduler, case, x, listed if kind == "list of generators" else None))
        results[-1].append(torch.randn(3))  # the state afterwards
    assert max(difference(a, b) for a, b in zip(*results, strict=True)) <= LOOP


@pytest.mark.parametrize("kinds", [(torch.float16, torch.float16), (torch.float32, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("case", [case for case in STOCHASTIC if case.name not in TREES], ids=str)
def test_noise_is_drawn_in_the_dtype_of_diffusers(case, kinds, monkeypatch):
    """The sample and the model output have these dtypes."""
    drawn, pair = {}, case.pair()
    need_generators(case)
    if case.name == "SCMScheduler" and kinds[0].itemsize < 4:
        pytest.skip("diffusers' own step")
    for key, scheduler, module in zip("ab", pair, (inspect.getmodule(type(pair[0])), engine), strict=True):
        draw = module.randn_tensor
        drawn[key] = []

        def spy(shape, key=key, draw=draw, **kwargs):
            drawn[key].append((tuple(shape), kwargs.get("dtype", torch.float32)))
            return draw(shape, **kwargs)

        monkeypatch.setattr(module, "randn_tensor", spy)
        x, m = (torch.ones(SHAPE, dtype=kind) for kind in kinds)
        scheduler.is_scale_input_called = True
        for t in times(scheduler):
            scheduler.step(m, t, x, generator=[torch.Generator(), torch.Generator()], **case.options)
        monkeypatch.setattr(module, "randn_tensor", draw)
    assert len(drawn["a"]) >= 3
    assert drawn["a"] == drawn["b"]


@pytest.mark.parametrize(
    "case", [c for c in STOCHASTIC if c.name in ("DDIMScheduler", "DPMSolverMultistepScheduler")], ids=str
)
def test_noise_that_is_given(case):
    theirs, mine = case.pair()
    x, z = torch.randn(2, *SHAPE)
    t = theirs.timesteps[0]
    a, b = (s.step(0.1 * x, t, x, variance_noise=z, **case.options)[0] for s in (theirs, mine))
    assert difference(b, a) <= LOOP
    if case.options:
        for scheduler in (theirs, mine):
            with pytest.raises(ValueError, match="variance_noise"):
                scheduler.step(x, t, x, variance_noise=z, generator=torch.Generator(), **case.options)


@pytest.mark.skipif("DPMSolverSDEScheduler" not in NAMES, reason="torchsde is not installed")
@pytest.mark.parametrize("several", [False, True])
def test_the_second_stage_goes_on_with_the_path_of_the_first(several):
    """DPMSolverSDE's second stage draws over the whole interval. Seen to fail: a noise of its own. With x = 0 = m the
    steps are their noise."""
    shape, noise = (2, 4, 50, 50), [nf.Noise(1), nf.Noise(2)] if several else nf.Noise(1)
    scheduler = Case("DPMSolverSDEScheduler").pair(noise=noise)[1]
    x, sigmas = torch.zeros(shape), scheduler.sigmas.double()
    first, second, third = (scheduler.step(x, t, x)[0].double().flatten() for t in scheduler.timesteps[:3])
    share = (sigmas[0] - (sigmas[0] * sigmas[1]).sqrt()) / (sigmas[0] - sigmas[1])
    found = torch.corrcoef(torch.stack([first, second, third]))
    expected = torch.eye(3, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = share.sqrt()
    assert torch.allclose(found, expected, atol=4 / 20000**0.5)
    up = sigmas[1] * (1 - (sigmas[1] / sigmas[0]).square()).sqrt()
    assert second.std().item() == pytest.approx(min(up, sigmas[1]).item(), rel=4 / 40000**0.5)


# ---- many times at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEMORYLESS)
def test_every_sample_has_its_time(name):
    """A step with a time for each sample, or each token, equals each one's step at its time: bit for bit, with
    noise."""
    case = next((c for c in STOCHASTIC if c.name == name), DEFAULTS[name])
    scheduler = case.pair()[1]
    places, noise = torch.tensor([3, 0, 9, 3]), nf.Noise(1)
    times, x = scheduler.timesteps[places], torch.randn(4, 6, 5)
    scheduler.is_scale_input_called = True
    together = scheduler.step(0.1 * x, times, x, **arguments(scheduler, noise, case.options))

    def one(at, x, noise):
        scheduler._step_index = at
        return scheduler.step(0.1 * x, scheduler.timesteps[at], x, **arguments(scheduler, noise, case.options))

    for b, at in enumerate(places.tolist()):
        alone = one(at, x[b : b + 1], noise.at(sample=b))
        for key in together:
            assert torch.equal(together[key][b : b + 1], alone[key])
    tokens = torch.randint(0, 10, (4, 6), generator=torch.Generator().manual_seed(0))
    together = scheduler.step(0.1 * x, scheduler.timesteps[tokens], x, **arguments(scheduler, noise, case.options))
    for b, i in itertools.product(range(4), range(6)):
        window = noise.at(sample=b).window((6, 5), (i, 0))
        alone = one(int(tokens[b, i]), x[b : b + 1, i : i + 1], window)
        for key in together:
            assert torch.equal(together[key][b : b + 1, i : i + 1], alone[key])


def test_a_step_at_many_times_belongs_to_no_run():
    """Seen to fail: a scheduler that counts on from it; and noise if the first row of all draws none."""
    _, mine = DEFAULTS["EulerDiscreteScheduler"].pair()
    x, noise, options = torch.randn(2, 3), nf.Noise(1), {"s_churn": 5.0, "s_tmax": float(mine.sigmas[1]) * 0.99}
    mine.is_scale_input_called = True
    together = mine.step(0.1 * x, mine.timesteps[[0, 4]], x, generator=noise, **options)[0]
    assert mine.step_index is None
    mine._step_index = 4
    alone = mine.step(0.1 * x[1:], mine.timesteps[4], x[1:], generator=noise.at(sample=1), **options)[0]
    assert torch.equal(together[1:], alone)


def test_times_that_cannot_be():
    x = torch.randn(2, 3)
    scheduler = ours.DDPMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"expected entries of DDPMScheduler.timesteps, got tensor\(\[7\]\)"):
        scheduler.step(x, torch.tensor([900, 7]), x)
    with pytest.raises(
        ValueError, match=r"timestep: expected one, or a shape that begins sample's, \(2, 3\), got \(3,\)"
    ):
        scheduler.step(x, torch.tensor([900, 800, 0]), x)
    scheduler = ours.SCMScheduler()
    scheduler.set_timesteps(10, intermediate_timesteps=None)
    with pytest.raises(ValueError, match=r"timestep: there is no step from the last of the timesteps, 0.0"):
        scheduler.step(x, scheduler.timesteps[[0, 10]], x)
    scheduler = ours.UniPCMultistepScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"UniPCMultistepScheduler remembers earlier steps and takes one time"):
        scheduler.step(x, scheduler.timesteps[:2], x)


@pytest.mark.parametrize("name", NAMES)
def test_times_as_numbers(name):
    """Times may be plain numbers, copies, 1-element tensors: as in diffusers, errors too."""
    made = (lambda t: t.item(), lambda t: t.clone(), lambda t: t.clone().reshape(1), lambda t: int(t))
    for make in (*made, lambda t: t.numpy(), lambda t: t.numpy()[()]):
        pair, answers = DEFAULTS[name].pair(), []
        x = torch.linspace(-1, 1, 96).reshape(SHAPE)
        for scheduler in pair:
            scheduler.is_scale_input_called = True
            try:
                answer = []
                for t in scheduler.timesteps[:3]:
                    generator = torch.Generator().manual_seed(0)
                    answer.append(scheduler.step(0.1 * x, make(t), x, **arguments(scheduler, generator, {}))[0])
                answers.append(torch.stack(answer))
            except Exception as error:
                answers.append((type(error), str(error).replace(str(type(scheduler)), "")))
        if isinstance(answers[0], tuple):
            assert answers[0] == answers[1]
        else:
            mine = answers[1]
            if name.startswith("CogVideoX"):  # their alphas_cumprod are float64: theirs follows if a time has an axis
                mine = mine.to(answers[0].dtype)
            assert difference(mine, answers[0]) <= LOOP


# ---- runs that begin elsewhere, stop, and go on ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_run_may_begin_in_the_middle(name):
    """Runs begin as in image-to-image, with set_begin_index if the class has it."""
    loop(DEFAULTS[name], start=4)


# Their DPMSolverSDE is NaN there: the second of two equal times has an interval of no length.
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("DPMSolverSDE")])
def test_a_run_may_begin_in_the_middle_by_its_time(name):
    pair, x = DEFAULTS[name].pair(), torch.randn(SHAPE)
    order = getattr(pair[0], "order", 1)
    places = range(4 * order - 1, len(pair[0].timesteps) - 1)  # Heun's and PNDM's times come twice: the second counts
    for k in places:
        results = []
        for scheduler in pair:
            t = scheduler.timesteps[k]
            scheduler.is_scale_input_called = True
            generator = torch.Generator().manual_seed(0)
            results.append(scheduler.step(0.1 * x, t, x, **arguments(scheduler, generator, {}))[0])
        assert difference(results[1], results[0]) <= LOOP
        x = results[0]
    alike(*pair, LOOP)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "PNDMScheduler"])  # PNDM goes on for ever
def test_a_run_ends_as_in_diffusers(name):
    """One step beyond the last gives the same error, or the same numbers."""
    ends, x = [], torch.randn(SHAPE)
    for scheduler in DEFAULTS[name].pair():
        scheduler.is_scale_input_called = True
        torch.manual_seed(0)
        for t in times(scheduler):
            scheduler.step(x, t, x)
        try:
            ends.append(scheduler.step(x, t, x)[0])
        except Exception as error:
            ends.append((type(error), str(error)))
    assert ends[0] == ends[1] if isinstance(ends[0], tuple) else difference(ends[1], ends[0]) <= LOOP


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_and_a_run_that_is_cut_off(name):
    """set_timesteps is called again, with another number; and steps go back, as in restarts."""
    pair = DEFAULTS[name].pair()
    x = torch.linspace(-1, 1, 96).reshape(SHAPE)
    for n, steps in ((10, range(4)), (6, range(6)), (10, (0, 1, 2, 1, 2, 3, 4, 2, 3))):
        for scheduler in pair:
            set_timesteps(scheduler, n)
            scheduler.is_scale_input_called = True
        for k in steps:
            results = []
            for scheduler in pair:
                if "_step_index" in vars(scheduler):
                    scheduler._step_index = k
                generator = torch.Generator().manual_seed(0)
                t = scheduler.timesteps[k]
                results.append(scheduler.step(0.1 * x, t, x, **arguments(scheduler, generator, {}))[0])
            if results[0].isfinite().all():  # a tree of torchsde has no increment over no time
                assert difference(results[1], results[0]) <= LOOP
        alike(*pair, LOOP)


@pytest.mark.parametrize("case", [*DEFAULTS.values(), Case("PNDMScheduler", {"skip_prk_steps": False})], ids=str)
def test_rows_are_found_once(case, monkeypatch):
    """A user changes something in the first of three runs. Seen to fail: in the second, too, for seven classes, whose
    runs leave something."""
    runs.plans.clear()
    scheduler, found, trace = case.pair()[1], [], rows.trace
    monkeypatch.setattr(rows, "trace", lambda *given: found.append(given) or trace(*given))
    scheduler.is_scale_input_called = True
    x = torch.linspace(-1, 1, 96).reshape(SHAPE)
    for _ in range(3):
        set_timesteps(scheduler, 10)
        for t in times(scheduler):
            scheduler.step(0.1 * x, t, x)
    assert len(found) == 1


def plan_of(case):
    """Returns the state that a run's first step meets."""
    runs.plans.clear()
    scheduler = case.pair(20)[1]
    scheduler.is_scale_input_called = True
    x = torch.linspace(-1, 1, 96).reshape(SHAPE)
    scheduler.step(0.1 * x, scheduler.timesteps[0], x, **arguments(scheduler, torch.Generator(), case.options))
    return scheduler._run.plan, scheduler._memory


def dealings(step, memory):
    """Returns a step's results, except its rows."""
    pool = [*range(100)]
    kept = [(name, tuple(pick(pool)) if many else pick(pool)) for name, pick, many in step.remembers if name in memory]
    picked = tuple(step.past(pool)), tuple(step.results(pool))
    return picked, kept, step.written, step.draws, step.keeps_noise, step.parts, repr((step.state, step.after))


@pytest.mark.parametrize("case", one_in(4, [case for case in SHORT if case.name not in TREES]), ids=str)
def test_rows_that_are_found_together_are_those_found_alone(case, monkeypatch):
    """Rows have the same bits. Seen to fail: numbers of the first row for all."""
    plan, memory = plan_of(case)

    def no_lanes(*given):
        raise rows.Alone

    monkeypatch.setattr(rows._Tracing, "_in_lanes", no_lanes)
    alone, _ = plan_of(case)
    assert type(plan) is type(alone)
    if isinstance(plan, rows.Unsupported):
        assert str(plan) == str(alone)
        return
    assert np.array_equal(plan.table.numbers, alone.table.numbers)
    assert (plan.clean is None) == (alone.clean is None)
    assert plan.clean is None or np.array_equal(plan.clean.numbers, alone.clean.numbers)
    assert (plan.names, plan.begins) == (alone.names, alone.begins)
    assert [*plan.steps] == [*alone.steps]
    for i in plan.steps:
        assert dealings(plan.steps[i], memory) == dealings(alone.steps[i], memory)


def test_a_state_that_changes_late_is_seen(monkeypatch):
    """Rows are found together from a state that comes again; here it changes once more. Seen to fail: later rows equal
    to earlier ones."""
    case, base = DEFAULTS["DEISMultistepScheduler"], diffusers.DEISMultistepScheduler
    original, found = base.step, []
    own = vars(inspect.getmodule(base))

    def step(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        if self.late:
            result.prev_sample = 2 * result.prev_sample
        if self._step_index > 10:
            self.late = True
        return result

    for changed in (rebound(step, own), original):
        monkeypatch.setattr(base, "step", changed)
        monkeypatch.setattr(base, "late", False, raising=False)
        found.append(plan_of(case)[0].table.rows["out"]["x"])
    assert np.array_equal(found[0], found[1] * np.where(np.arange(20) > 10, 2, 1))


# Their state differs at each step, or they remember an interval.
CHANGING = ("IPNDM", "PNDM", "SASolver", "Cosine", "DPMSolverSDE", "LMS")


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not (name.startswith(CHANGING) or getattr(ours, name)._one_by_one)]
)
def test_few_calls_find_all_rows(name, monkeypatch):
    """The run has 20 steps or more. Seen to fail: a call for each."""
    calls, probe = [], rows._Probe.rows
    monkeypatch.setattr(rows._Probe, "rows", lambda *given: calls.append(given) or probe(*given))
    plan, _ = plan_of(DEFAULTS[name])
    assert len(plan.steps) >= 20
    assert len(calls) <= 12


@pytest.mark.parametrize("name", [name for name in NAMES if getattr(ours, name)._leftovers])
def test_what_a_finished_run_leaves_means_nothing(name):
    """Leftover attributes do not matter: none is read before it is set. Seen to fail: with Heun's dt among them."""
    x, results = torch.linspace(-1, 1, 96).reshape(SHAPE), []
    for left in (False, True):
        _, scheduler = DEFAULTS[name].pair()
        runs.plans.clear()
        for attribute in scheduler._leftovers if left else ():
            value = vars(scheduler).get(attribute)
            wrong = torch.full(SHAPE, torch.nan)
            setattr(scheduler, attribute, [wrong] * len(value) if isinstance(value, list) else wrong)
        scheduler.is_scale_input_called = True
        generator, y = torch.Generator().manual_seed(0), x
        for t in times(scheduler):
            y = scheduler.step(0.1 * y, t, y, **arguments(scheduler, generator, {}))[0]
        results.append(y)
    assert torch.equal(*results)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_a_user_puts_in(name, in_place):
    """Other sigmas, or alphas_cumprod, in the middle of a run count at once."""
    pair = DEFAULTS[name].pair()
    x = torch.linspace(-1, 1, 96).reshape(SHAPE)
    for k in range(5):
        results = []
        for scheduler in pair:
            scheduler.is_scale_input_called = True
            if k == 3:
                source = pair[1]._source
                numbers = getattr(scheduler, source)
                setattr(scheduler, source, numbers.mul_(0.9) if in_place else numbers * 0.9)
            generator = torch.Generator().manual_seed(0)
            t = scheduler.timesteps[k]
            add_noise = getattr(scheduler, "add_noise", lambda x, *_: x)
            noised = add_noise(x, x.flip(1), t.repeat(len(x)))
            results.append((scheduler.step(0.1 * x, t, x, **arguments(scheduler, generator, {}))[0], noised))
        for expected, found in zip(*results, strict=True):
            assert difference(found, expected) <= LOOP


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("Flow", "SCM"))])  # these have none
def test_a_configuration_that_changes_within_a_run(name):
    pair, x = DEFAULTS[name].pair(), torch.linspace(-1, 1, 96).reshape(SHAPE)
    other = "sample" if name == "UnCLIPScheduler" else "v_prediction"
    for k in range(4):
        results = []
        for scheduler in pair:
            if k == 2:
                scheduler.register_to_config(prediction_type=other)
            scheduler.is_scale_input_called = True
            generator = torch.Generator().manual_seed(0)
            t = scheduler.timesteps[k]
            results.append(scheduler.step(0.1 * x, t, x, **arguments(scheduler, generator, {}))[0])
        assert difference(results[1], results[0]) <= LOOP


def test_unclip_goes_on_to_the_next_of_its_timesteps():
    """diffusers' pipelines give it so; other times are rows of their own."""
    refusals.said.clear()
    pair, generators = DEFAULTS["UnCLIPScheduler"].pair(5), [torch.Generator().manual_seed(1) for _ in range(2)]
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for after in (1, 2):  # of them
        for i in range(4):
            given = [(s, s.timesteps[i], s.timesteps[i + after] if i + after < 5 else None) for s in pair]
            steps = [
                s.step(m, t, x, prev_timestep=next_t, generator=g).prev_sample
                for (s, t, next_t), g in zip(given, generators, strict=True)
            ]
            assert difference(steps[1], steps[0]) <= LOOP
            if after == 1:
                assert pair[1]._run.options == (ours._Beside(None),)  # one run for all of them
    assert not refusals.said


class Tau:
    """Functions are printed like all other options, and so are two functions that lay at one address."""

    def __init__(self, tau):
        self.tau = tau

    def __call__(self, t):
        return self.tau

    def __repr__(self):
        return "tau"


def test_sa_solver_of_another_tau():
    """Seen to fail: the rows of the first."""
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for tau in (0.0, 1.0, 0.5):
        MADE.clear()
        pair = Case("SASolverScheduler", {"tau_func": Tau(tau)}).pair(5)
        for i in range(3):
            generators = [torch.Generator().manual_seed(1) for _ in pair]
            steps = [s.step(m, s.timesteps[i], x, generator=g)[0] for s, g in zip(pair, generators, strict=True)]
            assert difference(steps[1], steps[0]) <= LOOP


def test_a_corrector_that_reads_more_than_a_row_does(caplog):
    """They need three earlier outputs, x and noise."""
    refusals.said.clear()
    pair = Case("SASolverScheduler", {"predictor_order": 3, "corrector_order": 4}).pair()
    x, ends = torch.randn(SHAPE), []
    for scheduler in pair:
        generator = torch.Generator().manual_seed(0)
        ends.append(x)
        for t in times(scheduler):
            ends[-1] = scheduler.step(0.1 * ends[-1], t, ends[-1], generator=generator)[0]
    assert torch.equal(*ends)
    assert "diffusers' own step is used because a step reads 5 remembered tensors" in caplog.text
    with pytest.raises(TypeError, match="cannot draw Noise"):
        scheduler.step(x, t, x, generator=nf.Noise(1))


def test_options_that_change_within_a_run():
    """Seen to fail: the row of the first eta for all of them."""
    pair, x = DEFAULTS["DDIMScheduler"].pair(), torch.linspace(-1, 1, 96).reshape(SHAPE)
    for k, eta in enumerate((0.0, 0.0, 1.0, 1.0, 0.5)):
        theirs, mine = (s.step(0.1 * x, s.timesteps[k], x, eta=eta, variance_noise=x.flip(1))[0] for s in pair)
        assert difference(mine, theirs) <= LOOP


def test_timesteps_with_strides():
    """Seen to fail: the place of an entry as if they were contiguous."""
    (theirs, mine), x = DEFAULTS["DDIMScheduler"].pair(), torch.linspace(-1, 1, 96).reshape(SHAPE)
    mine.timesteps = mine.timesteps.repeat_interleave(2)[::2]
    for ours_t, t in zip(mine.timesteps, theirs.timesteps, strict=True):
        assert difference(mine.step(0.1 * x, ours_t, x)[0], theirs.step(0.1 * x, t, x)[0]) <= LOOP


@pytest.mark.parametrize("name", NAMES)
def test_in_inference_mode(name):
    case = copy.deepcopy(DEFAULTS[name])
    if name == "PNDMScheduler":
        case.config["skip_prk_steps"] = False  # diffusers then adds in place
    with torch.inference_mode():
        loop(case)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("name", NAMES)
def test_copies_in_the_middle_of_a_run(name, duplicate):
    # a tree of torchsde cannot be copied, in diffusers either
    scheduler, x = DEFAULTS[name].pair(noise=nf.Noise(1) if name in TREES else None)[1], torch.randn(SHAPE)
    scheduler.is_scale_input_called = True
    if name == "SASolverScheduler":
        scheduler.tau_func = bool  # diffusers' own is a lambda, which cannot be pickled
    for t in scheduler.timesteps[:3]:
        scheduler.step(0.1 * x, t, x)
    other = duplicate(scheduler)
    assert type(other) is type(scheduler)
    assert not {"_clock", "_run", "_levels"} & {*vars(other)}  # addresses that another tensor may have
    results = []
    for each in (scheduler, other):
        torch.manual_seed(0)
        results.append(each.step(0.1 * x, each.timesteps[3], x)[0])
    assert torch.equal(*results)


def test_no_step_reads_a_value_back(monkeypatch):
    """After the first run of a configuration no tensor's value comes to Python, so on a GPU nothing would wait. Only a
    first step without begin_index looks up its time, in a copy on the CPU. The control is diffusers' DDPM."""

    class Reads(private("torch.utils._python_dispatch", "TorchDispatchMode")):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            if name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"):
                reads.append(name)
            return function(*args, **(kwargs or {}))

    def search(self, t, times=None):
        assert times is self._clock.host
        assert t.data_ptr() - times.data_ptr() == 0
        return 0

    x = torch.randn(SHAPE)
    noises = {name: nf.Noise(1) if name in TREES else None for name in NAMES}  # torchsde itself reads values
    fused = [case.pair(noise=noises[name])[1] for name, case in DEFAULTS.items()]
    for scheduler in [*fused, DEFAULTS["DDPMScheduler"].pair()[0]]:
        mine = isinstance(scheduler, ours.Fused)
        for _ in range(3):  # flow matching's Heun begins its second with what it kept of the first
            set_timesteps(scheduler, 10)
            scheduler.is_scale_input_called = True
            if mine:
                monkeypatch.setattr(type(scheduler), "index_for_timestep", search, raising=False)
            reads = []
            with Reads():
                for t in times(scheduler):
                    scheduler.step(x, t, x)
        assert reads == [] if mine else len(reads) > 10, type(scheduler)


# ---- the forward process -----------------------------------------------------------------------------------


def forward(scheduler, x, z, t):
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(x, t, z)
    return scheduler.add_noise(x, z, t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORWARD)
def test_add_noise_agrees(name, dtype):
    """The coefficients are the same; ours has one rounding, theirs three."""
    x, z = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    for where in ("training", "before the run", "within the run", "without set_timesteps"):
        pair = DEFAULTS[name].pair(None if where == "without set_timesteps" else 10)
        times = torch.arange(1000).flip(0) if pair[0].timesteps is None else pair[0].timesteps
        t = times[[0, 3, 9, 3]]
        t = t.long() if name == "SASolverScheduler" else t  # its own are indices, but begin as floats
        for scheduler in pair:
            if where == "before the run" and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(2)
            if where == "within the run":
                scheduler.is_scale_input_called = True
                if hasattr(scheduler, "set_begin_index"):
                    scheduler.set_begin_index(0)
                scheduler.step(x, scheduler.timesteps[0], x)
        theirs, mine = (forward(scheduler, x, z, t) for scheduler in pair)
        assert difference(mine, theirs) <= 1.5 * torch.finfo(dtype).eps, where


@pytest.mark.parametrize("name", FORWARD)
def test_add_noise_goes_on_with_diffusers_where_a_row_does_not_do(name, caplog):
    """diffusers does it, and the log says so once, with the reason. Seen to fail: nothing in the log."""
    refusals.said.clear()
    pair = DEFAULTS[name].pair()
    x, z = torch.randn(2, 4, 3, 5)
    t = pair[0].timesteps[[0, 3, 9, 3]]
    one_at_many_times = (x[:1], z, t), (x[:1], z[:1], t)  # seen to be refused
    wider = (x.bfloat16(), z, t), (x.to(torch.complex64), z.to(torch.complex64), t)
    for arguments in (*one_at_many_times, *wider, (x, z[:1], t), (x.clone().requires_grad_(), z, t)):
        theirs, mine = (forward(scheduler, *arguments) for scheduler in pair)
        assert torch.equal(mine, theirs)
    assert mine.requires_grad
    reasons = [
        "for one sample at many times", "for torch.bfloat16 samples and torch.float32 noise",
        "for tensors of torch.complex64 on cpu", "for noise of another shape than the samples'",
        "for tensors that require grad",
    ]  # fmt: skip
    method = "scale_noise" if hasattr(pair[1], "scale_noise") else "add_noise"
    assert said(caplog) == [f"{name}: diffusers' own {method} is used {reason}" for reason in reasons]


@pytest.mark.parametrize("name", some(2, FORWARD))
def test_add_noise_draws(name):
    """A Noise is the field of q_sample: drawn in the pass, with the bits of the given array; one for each sample,
    too."""
    scheduler = DEFAULTS[name].pair(coefficients="exact")[1]
    x, noise = torch.randn(3, 2, 5), nf.Noise(3, sample=9, step=2)
    t = scheduler.timesteps[[0, 7, 9]]
    z = torch.from_numpy(nf.randn(tuple(x.shape), noise))
    drawn = forward(scheduler, x, noise, t)
    assert torch.equal(drawn, forward(scheduler, x, z, t))
    listed = forward(scheduler, x, [noise.at(sample=9 + b) for b in range(3)], t)
    assert torch.equal(listed, drawn)
    scheduler.coefficients = "compat"
    assert torch.equal(forward(scheduler, x, noise, t), drawn)
    half = forward(scheduler, x.bfloat16(), noise, t)
    assert half.dtype == torch.bfloat16
    assert difference(half, drawn.bfloat16()) < 0.02


SCHEDULES = {
    "linear": nf.Schedule.linear(),
    "scaled_linear": nf.Schedule.scaled_linear(1000, 1e-4, 0.02),
    "squaredcos_cap_v2": nf.Schedule.cosine(),
    "sigmoid": nf.Schedule.sigmoid(),
}


VP_CLASSES = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LCMScheduler")
TRAINED = [(name, schedule) for name in VP_CLASSES for schedule in SCHEDULES]
TRAINED = [pair for pair in TRAINED if pair[1] != "sigmoid" or pair[0] == "DDPMScheduler"]  # only DDPM has it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "schedule"), TRAINED)
def test_exact_add_noise_at_every_time(name, schedule, dtype):
    """Every coefficient is the float64 value rounded once to float32, and the result is that row rounded once.
    diffusers in half precision has sigma = 0 at the first times."""
    theirs, mine = (getattr(m, name)(1000, 1e-4, 0.02, beta_schedule=schedule) for m in (diffusers, ours))
    mine.coefficients = "exact"
    exact, t = SCHEDULES[schedule], torch.arange(1000)
    one, zero = torch.ones(1000, 1, dtype=dtype), torch.zeros(1000, 1, dtype=dtype)
    alpha, sigma = mine.add_noise(one, zero, t), mine.add_noise(zero, one, t)
    for column, expected in ((alpha, exact.alpha), (sigma, exact.sigma)):
        assert torch.equal(column, torch.tensor(expected)[:, None].float().to(dtype))
    x, z = torch.randn(2, 1000, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    a, s = (torch.tensor(v).float()[:, None].double() for v in (exact.alpha, exact.sigma))
    products = (s * z.double()).float().double()  # fma(alpha, x, sigma z): a rounded product, then exact in float64
    row = (a * x.double() + products).float()
    if dtype != torch.float32:
        assert torch.equal(mine.add_noise(x, z, t), row.to(dtype))
        assert (theirs.add_noise(zero, one, t) == 0).any()
        assert (mine.add_noise(zero, one, t) > 0).all()


@pytest.mark.parametrize("noise", [nf.Noise(3), torch.ones(5, 8)], ids=["drawn", "given"])
def test_levels_of_other_coefficients_and_dtypes(noise):
    """Seen to fail: the noise levels of the first call for all later ones."""
    scheduler, t = ours.DDPMScheduler(), torch.arange(5)
    for coefficients, dtype in itertools.product(("compat", "exact"), (torch.float64, torch.float32, torch.float16)):
        scheduler.coefficients, fresh = coefficients, ours.DDPMScheduler()
        fresh.coefficients = coefficients
        x = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(5, 8).to(dtype)
        z = noise.to(dtype) if isinstance(noise, torch.Tensor) else noise
        assert torch.equal(scheduler.add_noise(x, z, t), fresh.add_noise(x, z, t))


def test_add_noise_checks_its_times():
    scheduler, x = ours.DDPMScheduler(), torch.randn(2, 3)
    with pytest.raises(IndexError):
        scheduler.add_noise(x, x, torch.tensor([1, 1000]))
    with pytest.raises(IndexError):
        ours.EulerDiscreteScheduler().add_noise(x, x, torch.tensor([1.0, 1000.5]))
    for scheduler in (ours.DDPMScheduler(), ours.EulerDiscreteScheduler()):
        for noise in (x, nf.Noise(1)):
            with pytest.raises(
                ValueError, match=r"timesteps: expected one, or a shape that begins .* \(2, 3\), got \(3,\)"
            ):
                scheduler.add_noise(x, noise, torch.tensor([1, 2, 3]))


def test_add_noise_checks_its_noise():
    x, t = torch.randn(2, 3), torch.tensor([1, 2])
    for noise, message in (
        (7, "noise: expected a Tensor, a Noise or a list of them, got 7: a bare seed"),
        ([nf.Noise(1), 7], r"noise\[1\]: expected a Noise, got 7: a bare seed"),
    ):
        with pytest.raises(TypeError, match=message):
            ours.DDPMScheduler().add_noise(x, noise, t)


# ---- exact coefficients ------------------------------------------------------------------------------------


def native_pairs():
    """Pairs diffusers' classes with nf.samplers, as in test_samplers_diffusers.py."""
    import test_samplers_diffusers as native

    def is_covered(pair):
        past = pair.config.get("corrector_order", 0) + 1  # outputs, x and noise
        return pair.theirs in NAMES and "thresholding" not in pair.config and past <= len(nf.tableau.past)

    return filter(is_covered, native.PAIRS)


@pytest.mark.parametrize("pair", one_in(6, native_pairs()), ids=str)
def test_exact_coefficients_are_those_of_the_samplers(pair, monkeypatch):
    """With x in float64, over a loop; compat coefficients are farther off if float32 cancels."""
    import test_samplers_diffusers as native

    n, rng = 8, np.random.default_rng(0)
    theirs = pair.open(True, monkeypatch)
    theirs.set_timesteps(n)
    sampler = pair.sampler(theirs, n)
    monkeypatch.undo()
    scheduler = getattr(ours, pair.theirs)(**pair.config)
    scheduler.coefficients = "exact"
    with warnings.catch_warnings(action="ignore"):
        scheduler.set_timesteps(n)
    scheduler.is_scale_input_called = True
    x = y = rng.normal(size=native.SHAPE)
    state, worst = sampler.state(x), 0.0
    for i, t in enumerate(times(scheduler)):
        m, z = rng.normal(size=(2, *native.SHAPE))
        if pair.ours == "ddpm" and i == n - 1:
            z[:] = 0  # diffusers adds noise whenever t > 0
        monkeypatch.setattr(ours.Fused, "_drawn", lambda *args, z=z: torch.from_numpy(z))
        y = scheduler.step(torch.from_numpy(m), t, torch.from_numpy(y), **pair.step_options)[0].numpy()
        x = sampler.step(i, x, m, z, state)
        worst = max(worst, np.abs(x - y).max() / np.abs(x).max())
    assert worst < 1e-10


def test_exact_needs_to_see_set_timesteps():
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    scheduler = ours.accelerate(scheduler, coefficients="exact")
    scheduler.is_scale_input_called = True
    x = torch.randn(1, 3)
    with pytest.raises(RuntimeError, match="call set_timesteps again"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_timesteps(10)
    scheduler.step(x, scheduler.timesteps[0], x)


# DPMSolverSDE's float64 levels are other times of the tree, whose path moves by 3e-4 in a float32's last digit of time.
@pytest.mark.parametrize("name", some(3, [name for name in NAMES if not name.startswith("DPMSolverSDE")]))
def test_exact_coefficients_are_of_numbers_that_a_user_puts_in(name):
    """Other sigmas or alphas_cumprod are not computed anew, neither for steps nor for a Noise."""
    pair, x = DEFAULTS[name].pair(coefficients="exact"), torch.linspace(-1, 1, 96).reshape(SHAPE)
    z, results = torch.from_numpy(nf.randn(SHAPE, nf.Noise(3))), []
    for scheduler, noise in zip(pair, (z, nf.Noise(3)), strict=True):
        source = pair[1]._source
        setattr(scheduler, source, 0.9 * getattr(scheduler, source))
        scheduler.is_scale_input_called = True
        results.append([forward(scheduler, x, noise, scheduler.timesteps[[3, 7]]) if name in FORWARD else x])
        generator = torch.Generator().manual_seed(0)
        for t in scheduler.timesteps[:5]:
            given = arguments(scheduler, generator, {})
            results[-1].append(scheduler.step(0.1 * results[-1][-1], t, results[-1][-1], **given)[0])
    assert max(difference(a, b) for a, b in zip(*reversed(results), strict=True)) <= LOOP


def test_exact_coefficients_of_float32_numbers_are_computed_in_float64():
    scheduler = DEFAULTS["EulerDiscreteScheduler"].pair(3, coefficients="exact")[1]
    scheduler.sigmas = 0.9 * scheduler.sigmas
    scheduler.is_scale_input_called = True
    x, m = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    first, second = scheduler.sigmas[:2].tolist()
    assert scheduler.step(m, scheduler.timesteps[0], x)[0][0, 0] == pytest.approx(second - first, rel=1e-13)


# ---- what diffusers has to do itself -----------------------------------------------------------------------


FALLBACKS = {
    "where the variance is learned": (
        "DPMSolverMultistepScheduler",
        {**SDE, "variance_type": "learned_range"},
        (2, 6, 4, 4),
        {},
    ),
    "for tensors of torch.complex64 on cpu": ("DDPMScheduler", {"clip_sample": False}, SHAPE, {"complex": True}),
    "for tensors that require grad": ("DDPMScheduler", {}, SHAPE, {"grad": True}),
    "for a torch.float16 sample": ("DDPMScheduler", {}, SHAPE, {"half": True}),
    "for a torch.float32 sample and a": ("DDPMScheduler", {"prediction_type": "sample"}, SHAPE, {"narrow": True}),
    "with a solver_p": ("UniPCMultistepScheduler", {"solver_p": diffusers.DDIMScheduler()}, SHAPE, {}),
    "not finite": ("DDPMScheduler", {"variance_type": "fixed_large_log"}, SHAPE, {}),
    "reads 5 remembered tensors": ("UniPCMultistepScheduler", {"solver_order": 4}, SHAPE, {}),
    "at times that are not among its timesteps": ("DDIMScheduler", {}, SHAPE, {"later": 7, "options": {"eta": 1.0}}),
}


@pytest.mark.parametrize("reason", FALLBACKS)
def test_what_a_row_cannot_do(reason, caplog):
    """diffusers' own method does it, in full, and a warning in the log says so once."""
    name, config, shape, how = FALLBACKS[reason]
    refusals.said.clear()
    pair, results = Case(name, config).pair(), []
    dtype = torch.complex64 if "complex" in how else torch.float32
    m, x = torch.randn(shape, dtype=dtype), torch.randn(SHAPE, dtype=dtype)
    with caplog.at_level(logging.WARNING):
        for scheduler in pair:
            output = m.bfloat16() if "narrow" in how else m.clone()
            inputs = output.requires_grad_("grad" in how), x.half() if "half" in how else x
            generator = torch.Generator().manual_seed(0)
            results.append([])
            for t in times(scheduler):
                at = t + how.get("later", 0)
                given = arguments(scheduler, generator, how.get("options", {}))
                result = scheduler.step(inputs[0], at, inputs[1], **given)
                results[-1].append(result.prev_sample)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
        assert a.requires_grad == b.requires_grad
    lines = said(caplog)
    assert len(lines) == 1
    assert lines[0].startswith(f"{name}: diffusers' own step is used")
    assert reason in lines[0]
    if "generator" in inspect.signature(pair[0].step).parameters:
        given = {**how.get("options", {}), "generator": nf.Noise(1)}
        with pytest.raises(TypeError, match="diffusers does this step"):
            pair[1].step(inputs[0], pair[1].timesteps[0] + how.get("later", 0), inputs[1], **given)


# LTX' own step has levels beside its timesteps, and cannot have them elsewhere than x.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in TREES and not name.startswith("LTX")])
def test_other_devices_are_left_to_diffusers(name):
    """Such devices are Apple's GPUs; "meta" stands for them. Seen to fail: the step raised "expected a tensor on the
    CPU"."""
    x, kinds = torch.empty(SHAPE, device="meta"), []
    for scheduler in DEFAULTS[name].pair():
        scheduler.is_scale_input_called, results = True, []
        results += [scheduler.step(0.1 * x, t, x)[0] for t in scheduler.timesteps[:3]]
        if name in VP_CLASSES:  # the others' have to compare values
            results.append(scheduler.add_noise(x, x, scheduler.timesteps[:2]))
        kinds.append([(each.device, each.dtype, each.shape) for each in results])
    assert kinds[0] == kinds[1]


def test_lcm_at_a_time_that_is_not_the_next():
    """LCM takes its noise level from the time, and the next one from a count. Seen to fail: the time was ignored."""
    for places in ((0, 0, 1, 1), (1, 3, 0)):
        pair, results = DEFAULTS["LCMScheduler"].pair(4), []
        x = torch.linspace(-1, 1, 96).reshape(SHAPE)
        for scheduler in pair:
            for make in (lambda t: t, lambda t: t.item()):
                scheduler.set_timesteps(4)
                generator = torch.Generator().manual_seed(0)
                for k in places:
                    t = make(scheduler.timesteps[k])
                    results.append(scheduler.step(0.1 * x, t, x, generator=generator)[0])
        theirs, mine = torch.stack(results).chunk(2)
        assert difference(mine, theirs) <= LOOP


def test_flow_matching_before_set_timesteps():
    """It then has as many noise levels as times. Seen to fail: an IndexError, in the first step."""
    x, results = torch.randn(SHAPE), []
    for scheduler in (diffusers.FlowMatchEulerDiscreteScheduler(), ours.FlowMatchEulerDiscreteScheduler()):
        results.append(torch.stack([scheduler.step(0.1 * x, t, x)[0] for t in scheduler.timesteps[:3]]))
        scheduler._step_index = 999
        with pytest.raises(IndexError):
            scheduler.step(x, scheduler.timesteps[0], x)
    assert torch.equal(*results)


def test_gradients_that_begin_in_the_middle_of_a_run(caplog):
    """Seen to fail: a step that checks only dtypes once its row is known."""
    refusals.said.clear()
    _, scheduler = Case("DDPMScheduler", {}).pair()
    x, m = torch.randn(2, *SHAPE)
    for t in scheduler.timesteps[:2]:
        x = scheduler.step(m, t, x).prev_sample
    assert not caplog.records
    assert scheduler.step(m.requires_grad_(), scheduler.timesteps[2], x).prev_sample.requires_grad
    assert "for tensors that require grad" in caplog.text


def test_a_step_that_is_not_affine_is_seen(monkeypatch):
    """This covers a change of diffusers: a product of two tensors has no row, though each unit vector has an answer."""
    module = inspect.getmodule(diffusers.DDPMScheduler)
    kind = module.DDPMSchedulerOutput

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        return kind(prev_sample=sample * model_output)

    scheduler, (m, x) = ours.DDPMScheduler(beta_end=0.0123), torch.randn(2, *SHAPE)
    monkeypatch.setattr(diffusers.DDPMScheduler, "step", rebound(step, vars(module)))
    assert torch.equal(scheduler.step(m, scheduler.timesteps[0], x).prev_sample, x * m)
    assert "not affine" in str(scheduler._run.plan)


MUST_DRAW = {case.name: case for case in STOCHASTIC}


@pytest.mark.parametrize("name", DRAWING)
def test_noise_is_not_ignored_where_diffusers_does_the_step(name):
    case = MUST_DRAW[name]
    scheduler = case.pair(noise=nf.Noise(7))[1]
    scheduler.is_scale_input_called = True
    x = torch.randn(SHAPE)
    with pytest.raises(
        TypeError, match=r"diffusers does this step for tensors that require grad, and cannot draw Noise"
    ):
        scheduler.step(x.clone().requires_grad_(), scheduler.timesteps[0], x, **case.options)


@pytest.mark.parametrize(
    "name", ["DDIM", "EulerDiscrete", "DPMSolverMultistep", "FlowMatchEulerDiscrete", "UniPCMultistep"]
)
def test_noise_that_no_step_draws_is_in_nobodys_way(name):
    """A deterministic pipeline with noise of its own, and gradients with respect to the sample."""
    results = []
    for scheduler in Case(f"{name}Scheduler").pair(noise=nf.Noise(7)):
        scheduler.is_scale_input_called = True
        x = torch.linspace(-1, 1, 96).reshape(SHAPE).requires_grad_()
        scheduler.step(x * x, scheduler.timesteps[0], x)[0].sum().backward()
        results.append(x.grad)
    assert torch.equal(*results)


@pytest.mark.skipif(TORCH <= (2, 8), reason="torch.func has no memory to read before: docs/diffusers-classes.md")
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_torch_func(name):
    pair, x, results = DEFAULTS[name].pair(), torch.linspace(-1, 1, 96).reshape(SHAPE), []
    for scheduler in pair:
        scheduler.is_scale_input_called = True

        def last(x, scheduler=scheduler):
            generator = torch.Generator().manual_seed(0)
            given = arguments(scheduler, generator, {})
            return scheduler.step(0.1 * x, scheduler.timesteps[0], x, **given)[0].square().sum()

        results.append(torch.func.grad(last)(x))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "name",
    [  # the one that remembers most is always kept
        "UniPCMultistepScheduler",
        pytest.param("DDIMScheduler", marks=pytest.mark.slow),
        pytest.param("EulerDiscreteScheduler", marks=pytest.mark.slow),
    ],
)
def test_steps_in_compiled_code(name):
    """The graph breaks there. Seen to fail: torch.compile traced the search for rows, and failed."""
    torch.compiler.reset()
    answers = []
    for scheduler in DEFAULTS[name].pair(5):
        scheduler.is_scale_input_called = True

        @torch.compile(backend="eager")
        def run(x, scheduler=scheduler):
            for t in times(scheduler):
                x = scheduler.step(0.1 * torch.tanh(x), t, x)[0]
            return scheduler.add_noise(x, x, scheduler.timesteps[:2])

        answers.append(run(torch.linspace(-1, 1, 96).reshape(SHAPE)))
    assert difference(answers[1], answers[0]) <= LOOP
    noise = nf.Noise(1)
    expected = scheduler.add_noise(answers[0], noise, scheduler.timesteps[:2])
    noised = torch.compile(lambda x: scheduler.add_noise(x, noise, scheduler.timesteps[:2]), backend="eager")
    assert torch.equal(noised(answers[0]), expected)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_left_to_diffusers(name):
    """Seen to fail: "expected a tensor with memory of its own"."""
    x, answers = torch.linspace(-1, 1, 5 * 96).reshape(5, *SHAPE), []
    for scheduler in DEFAULTS[name].pair():
        scheduler.is_scale_input_called = True
        given = arguments(scheduler, torch.Generator().manual_seed(0), {})

        def step(x, scheduler=scheduler, given=given):
            return scheduler.step(0.1 * x, scheduler.timesteps[0], x, **given)[0]

        answers.append(torch.func.vmap(step, randomness="same")(x))
    assert torch.equal(*answers)


BAD_DRAWS = {
    "a number": (7, r"generator: expected a torch\.Generator, a Noise or a list of either, got int"),
    "numbers": ([1, 2], r"generator\[0\]: expected a torch\.Generator or a Noise, got int"),
    "of both kinds": (
        [nf.Noise(1), torch.Generator()],
        "generator: expected a list of one kind, got .*Noise.*Generator",
    ),
}


@pytest.mark.parametrize("bad", BAD_DRAWS)
@pytest.mark.parametrize("name", DRAWING)
def test_generators_that_are_none(name, bad):
    """It happens in the first step of a run, in a later one, and in one that diffusers does."""
    draws, message = BAD_DRAWS[bad]
    scheduler, given = MUST_DRAW[name].pair()[1], MUST_DRAW[name].options
    scheduler.is_scale_input_called, x = True, torch.randn(SHAPE)
    if name.startswith("KDPM2"):  # every other step draws nothing
        scheduler.step(0.1 * x, scheduler.timesteps[0], x, generator=draws)
    for t in scheduler.timesteps[: 1 if name.startswith("KDPM2") else 2]:
        with pytest.raises(TypeError, match=message):
            scheduler.step(0.1 * x, t, x, generator=draws, **given)
        scheduler.step(0.1 * x, t, x, **given)
    with pytest.raises(TypeError, match=message):
        scheduler.step(0.1 * x, scheduler.timesteps[2], x.clone().requires_grad_(), generator=draws, **given)


@pytest.mark.parametrize("layout", ["channels last", "expanded", "sliced"])
@pytest.mark.parametrize("name", NAMES)
def test_layouts(name, layout):
    """Tensors that are not in C order give the same values, in C order."""
    pair, plain = DEFAULTS[name].pair()[1], DEFAULTS[name].pair()[1]
    x = torch.randn(2, 1, 4, 4).expand(2, 3, 4, 4) if layout == "expanded" else torch.randn(2, 3, 4, 4)
    other = {
        "channels last": x.to(memory_format=torch.channels_last),
        "expanded": x,
        "sliced": torch.cat([x, x], dim=3)[..., :4],
    }[layout]
    assert not other.is_contiguous()
    for t in pair.timesteps[:4]:
        results = []
        for scheduler, each in ((pair, other), (plain, x.contiguous())):
            scheduler.is_scale_input_called = True
            generator = torch.Generator().manual_seed(0)
            results.append(scheduler.step(0.1 * each, t, each, **arguments(scheduler, generator, {})))
        for key in results[0]:
            assert torch.equal(results[0][key], results[1][key])


def test_methods_that_a_derived_class_replaces(caplog):
    """Rows are made from diffusers' methods. Derived classes with methods of their own do as in diffusers."""
    refusals.said.clear()
    results = []
    for kind in (diffusers.DDPMScheduler, ours.DDPMScheduler):

        class Own(kind):
            def step(self, *args, **kwargs):
                return super().step(*args, **kwargs)

        class Wider(Own):
            def _get_variance(self, *args, **kwargs):
                return 4 * super()._get_variance(*args, **kwargs)

        for each in (Own(), Wider()):
            each.set_timesteps(10)
            x = torch.linspace(-1, 1, 96).reshape(SHAPE)
            results.append(each.step(0.1 * x, each.timesteps[2], x, generator=torch.Generator().manual_seed(0))[0])
    assert difference(results[2], results[0]) <= LOOP
    assert torch.equal(results[3], results[1])
    assert [record.getMessage() for record in caplog.records] == [
        "Wider: diffusers' own step is used because _get_variance of its own replaces diffusers'"
    ]


CALLED = []  # a global name of the module that replaces methods


@pytest.mark.parametrize("coefficients", ["compat", "exact"])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("FlowMatchEulerDiscreteScheduler", "step"),
        ("EulerDiscreteScheduler", "step"),
        ("DDIMScheduler", "step"),
        ("DPMSolverMultistepScheduler", "convert_model_output"),
        ("DDIMScheduler", "add_noise"),
        ("EulerDiscreteScheduler", "set_timesteps"),
    ],
)
def test_methods_that_another_program_replaces(name, method, coefficients, monkeypatch, caplog):
    """A profiler may wrap them. Seen to fail: NameError, as the trace ran the wrapper with diffusers' names; a
    `convert_model_output` that was called with the trace's numbers, and never again."""
    refusals.said.clear()
    base = getattr(diffusers, name)
    theirs = getattr(base, method)

    def wrapper(*arguments, **options):
        CALLED.append(method)
        return theirs(*arguments, **options)

    monkeypatch.setattr(base, method, wrapper)
    results = []
    for scheduler in (base(), ours.accelerate(base(), coefficients=coefficients)):
        CALLED.clear()
        scheduler.set_timesteps(4)
        x = torch.linspace(-1, 1, 96).reshape(SHAPE)
        for t in scheduler.timesteps[:3]:
            getattr(scheduler, "scale_model_input", print)(x, t)
            x = scheduler.step(0.1 * x, t, x, return_dict=False)[0]
        results.append((scheduler.add_noise(x, x, t[None]) if method == "add_noise" else x, len(CALLED)))
    exact._widened.cache_clear()  # its copy of the class has the wrapper
    (expected, times), (found, ours_times) = results
    assert times == ours_times > 0
    assert difference(found, expected) <= LOOP
    used = "add_noise" if method == "add_noise" else "step"
    said = [f"{name}: diffusers' own {used} is used because another program has replaced its {method}"]
    kept = method == "set_timesteps" and coefficients == "compat"  # its timesteps are taken
    assert [record.getMessage() for record in caplog.records] == ([] if kept else said)


@pytest.mark.parametrize("name", NAMES)
def test_a_float32_sample_with_half_model_outputs(name):
    """As in video pipelines, the sample stays float32, or gets diffusers' dtype."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    pair = DEFAULTS[name].pair()
    refusals.said.clear()
    for t in times(pair[0]):
        m, results = torch.tanh(x).bfloat16(), []
        for scheduler in pair:
            scheduler.is_scale_input_called = True
            generator = torch.Generator().manual_seed(0)
            results.append(scheduler.step(m, t, x, **arguments(scheduler, generator, {})))
        sigma = getattr(pair[0], "sigmas", torch.ones(1)).max()
        for key in results[0]:  # their product sigma m is rounded to bfloat16
            assert results[1][key].dtype == results[0][key].dtype
            distance = (results[1][key].double() - results[0][key].double()).abs().max()
            assert distance <= 2 * torch.finfo(torch.bfloat16).eps * max(
                x.abs().max(), sigma, results[0][key].abs().max()
            )
        x = results[0].prev_sample.float()
    assert not refusals.said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_half_sample_with_float32_model_outputs(name, dtype):
    """diffusers does such steps, and converts most samples to float32. Seen to fail: Heun's and PNDM's next step met a
    sample that they remembered in half precision."""
    pair, ends = DEFAULTS[name].pair(), []
    for scheduler in pair:
        scheduler.is_scale_input_called, generator = True, torch.Generator().manual_seed(0)
        x = torch.linspace(-1, 1, 96).reshape(SHAPE).to(dtype)
        for t in times(scheduler):
            m = torch.tanh(x.float())
            x = scheduler.step(m, t, x, **arguments(scheduler, generator, {}))[0]
        ends.append(x)
    assert difference(ends[1], ends[0]) <= 4 * torch.finfo(dtype).eps  # theirs rounds a product of the first sample


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TREES])
def test_bfloat16_without_ml_dtypes(name, monkeypatch):
    """Models in bfloat16, samples in float32 or bfloat16: the same bits. Seen to fail: an ImportError in a run whose
    dtypes mix."""
    wide, ends = torch.linspace(-1, 1, 96).reshape(SHAPE), []
    for half in (torch_arrays.HALF, None):
        monkeypatch.setattr(torch_arrays, "HALF", half)
        monkeypatch.setitem(sys.modules, "ml_dtypes", half and sys.modules["ml_dtypes"])
        for x in (wide, wide.bfloat16()):
            scheduler = DEFAULTS[name].pair(5)[1]
            scheduler.is_scale_input_called = True
            generator = torch.Generator().manual_seed(0)
            for t in times(scheduler):
                x = scheduler.step((0.1 * x).bfloat16(), t, x, **arguments(scheduler, generator, {}))[0]
            ends.append(x)
    for a, b in zip(ends[:2], ends[2:], strict=True):
        assert a.dtype is b.dtype
        assert torch.equal(a, b)


# ---- classes, configurations, pipelines --------------------------------------------------------------------


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


def test_get_velocity():
    theirs, mine = DEFAULTS["DDPMScheduler"].pair()
    x, z = torch.randn(2, 4, 3)
    t = torch.tensor([0, 5, 999, 500])
    assert torch.equal(mine.get_velocity(x, z, t), theirs.get_velocity(x, z, t))


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


# ---- tensors of a device -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_steps_on_the_stand_in(name):
    """Tensors count as a GPU's (test_torch_cuda.py): the CPU's bits, and after the first step of a run nothing is read
    back."""

    def run(guard):
        scheduler = DEFAULTS[name].pair(5, noise=nf.Noise(7))[1]
        x, xs = scheduler.start(SHAPE), []
        scheduler.is_scale_input_called = True
        for t in times(scheduler):
            with guard() if xs else contextlib.nullcontext():
                x = scheduler.step(0.3 * torch.tanh(x), t, x).prev_sample
            xs.append(x)
        return xs

    expected = run(contextlib.nullcontext)
    with on_the_stand_in() as cupy:
        found = run(nothing_comes_back)
        assert len(cupy.launches) >= 6
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler"])
def test_add_noise_on_the_stand_in(name):
    scheduler = DEFAULTS[name].pair()[1]
    x0, t = torch.randn(2, 3, 4), scheduler.timesteps[[1, 3]]

    def run():
        return [scheduler.add_noise(x0, noise, t) for noise in (nf.Noise(7), x0 + 1)]

    expected = run()
    for host in ((), (t,)):
        with on_the_stand_in(*host):
            assert all(map(torch.equal, run(), expected))
