# SPDX-License-Identifier: Apache-2.0
"""What a sampler remembers between steps: `Sampler.state`."""

import pickle

import numpy as np
import pytest

from conftest import using
from noisefuse import samplers
from noisefuse.noise import Noise
from sampler_cases import VP


def test_state_is_needed_and_changes_only_on_success():
    sampler, x, m = samplers.dpmpp_2m(VP, 5), np.ones((2, 3)), np.full((2, 3), 0.5)
    with pytest.raises(TypeError, match=r"dpmpp_2m remembers earlier steps: pass state=sampler.state\(x\)"):
        sampler.step(0, x, m)
    results = []
    for fail in (False, True):
        state = sampler.state(x)
        first = sampler.step(0, x, m, state=state)
        if fail:
            with pytest.raises((ValueError, TypeError)):
                sampler.step(1, first, 9 * m, state=state, out=np.empty(7))
        results.append(sampler.step(1, first, m, state=state))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_denoised_out_is_checked_before_anything_is_written(name):
    """It also holds if the state keeps the written array."""
    sampler, x = getattr(samplers, name)(VP, 5), np.ones((2, 3))
    for wrong in (np.empty(7), np.empty((4, 2, 3)), np.empty((2, 3), int), x):
        with pytest.raises((ValueError, TypeError), match="denoised_out"):
            sampler.step(0, x, np.cos(x), state=sampler.state(x), out=x, denoised_out=wrong)
        np.testing.assert_array_equal(x, 1)


def test_lists_are_no_arrays():
    sampler = samplers.dpmpp_2m(VP, 5)
    for call in (sampler.state, lambda x: sampler.noised(1, x, Noise(1))):
        with pytest.raises(TypeError, match="expected an array, got list"):
            call([1.0, 2.0])


@pytest.mark.parametrize("kind", ["big-endian", "a subclass"])
def test_a_state_serves_whatever_array_update_takes(kind):
    class Own(np.ndarray):
        pass

    x = np.random.default_rng(0).normal(size=(2, 3))
    given = x.astype(">f8") if kind == "big-endian" else x.view(Own)
    for name in ("ddpm", "unipc"):
        sampler = getattr(samplers, name)(VP, 5)
        results = [sampler.sample(lambda x, t: np.cos(x), a, Noise(1), callback=lambda *_: None) for a in (x, given)]
        np.testing.assert_array_equal(*results)


def test_a_new_state_is_zero():
    """A kernel may multiply by a coefficient that is 0 in this row only, so all its inputs must be finite."""
    x = np.full((2, 3), np.nan, np.float32)
    state = samplers.unipc(VP, 5, order=3).state(x)
    assert [(array.dtype, array.shape, array.any()) for array in state.past] == [(x.dtype, x.shape, False)] * 3


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_new_state_serves_no_row_that_reads_what_earlier_rows_kept(backend):
    """Seen to fail: zeros in their place. A row that reads none may come first, and a kept state serves any row."""
    sampler, x = samplers.unipc(VP, 5), np.ones((2, 3), np.float32)
    with using(backend):
        for call in (
            lambda: sampler.step(3, x, x, None, sampler.state(x)),
            lambda: sampler.log_prob(3, x, x, x, sampler.state(x)),
        ):
            with pytest.raises(
                ValueError, match=r"^state: row 3 of unipc reads what earlier rows kept, and the state is"
            ):
                call()
        state = sampler.state(x)
        sampler.step(0, x, x, None, state)
        resumed = pickle.loads(pickle.dumps(state))
        assert np.array_equal(sampler.step(1, x, x, None, resumed), sampler.step(1, x, x, None, state))
        assert sampler.step(0, x, x, None, sampler.state(x)).shape == x.shape


def test_the_state_of_another_sampler_is_refused():
    x = np.ones((2, 3))
    other = samplers.ddim(VP, 5).state(x)
    for state, kind in ((other, "another"), ({}, "dict")):
        for options in ({}, {"denoised_out": np.empty_like(x)}):
            with pytest.raises(TypeError, match=rf"state: expected dpmpp_2m's own, .*, got {kind}"):
                samplers.dpmpp_2m(VP, 5).step(0, x, x, state=state, **options)


def test_a_state_of_another_shape_is_refused():
    """The message has the user's name: seen to speak of "past1"."""
    sampler, x = samplers.dpmpp_2m(VP, 5), np.ones((2, 3))
    for state in (sampler.state(x[:1]), sampler.state(x.astype(np.float32))):
        for options in ({}, {"denoised_out": np.empty_like(x)}):
            with pytest.raises((ValueError, TypeError), match=r"^state: made for an x of shape .*, got an x of shape"):
                sampler.step(0, x, x, state=state, **options)
    with pytest.raises(ValueError, match=r"^model_output \(m1\): expected shape"):
        sampler.step(0, x, x[:1], state=sampler.state(x))


def test_a_state_is_printed_as_the_arrays_it_remembers():
    """Seen to fail: an object at some address, as before."""
    x = np.zeros((2, 3), np.float32)
    assert repr(samplers.ddim(VP, 4).state(x)) == "State(nothing is remembered)"
    assert repr(samplers.dpmpp_2m(VP, 4).state(x)) == "State(float32 (2, 3))"
    assert repr(samplers.lms(VP, 4).state(x)).count("float32 (2, 3)") == 3
