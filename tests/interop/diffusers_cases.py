# SPDX-License-Identifier: Apache-2.0
"""Classes of diffusers, and their configurations, for the tests of the drop-in schedulers."""

import copy
import inspect
import itertools
import random
import warnings
from dataclasses import dataclass, field

import pytest

from conftest import one_in

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from noisefuse.interop import diffusers as ours  # noqa: E402
from noisefuse.interop.diffusers import forward  # noqa: E402

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
    """Tells whether diffusers itself can do this, and in finite numbers."""
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


VP_CLASSES = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LCMScheduler")
