# SPDX-License-Identifier: Apache-2.0
"""Loops of drop-in schedulers give what those of pip's diffusers give, in every configuration."""

import copy

import pytest

from conftest import one_in

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers_cases import DEFAULTS, LOOP, NAMES, SHAPE, SHORT, TREES, all_of_them, covering, distinct, times  # noqa: E402
from diffusers_loops import arguments, check_generators, difference, loop  # noqa: E402


@pytest.mark.parametrize("case", one_in(3, SHORT), ids=str)
def test_loops_agree(case):
    check_generators(case)
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
    """Tells whether diffusers' step raises an error, as SASolver's does if it predicts noise and bounds D by data, or
    has a network of flow."""
    theirs, x = case.pair(5)[0], torch.zeros(SHAPE)
    try:
        for t in times(theirs):
            x = theirs.step(x, t, x, **arguments(theirs, torch.Generator(), case.options)).prev_sample
    except (RuntimeError, ValueError):
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
