# SPDX-License-Identifier: Apache-2.0
"""An int is no noise, anywhere: used as a seed, it would give the same noise at every call."""

import numpy as np
import pytest

import noisefuse as nf

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
da = pytest.importorskip("dask.array")
pytest.importorskip("grain")

import jax.numpy as jnp  # noqa: E402, after the skips

from noisefuse.interop import columns, grain, k_diffusion, torch_data  # noqa: E402

X = np.ones((2, 3), np.float32)
S = nf.Schedule.linear(10)
SAMPLER = nf.samplers.ddpm(S, 3)
SDE = nf.samplers.flow_sde(nf.Schedule.flow(10), steps=3).tableau
ARRAYS = {"numpy": X, "torch": torch.from_numpy(X.copy()), "jax": jnp.asarray(X), "dask": da.from_array(X, (1, 3))}
PLACES = {
    "numpy": {}, "float64": {"dtype": "float64"}, "out": {"out": X.copy()}, "torch": {"dtype": torch.float32},
    "device": {"device": "cpu"}, "jax": {"dtype": jnp.float32}, "dask": {"chunks": 1},
}  # fmt: skip


def same(x, noise):
    return x


CALLS = {
    **{f"randn {k}": lambda n, o=o: nf.randn((2, 3), n, **o) for k, o in PLACES.items()},
    **{f"uniform {k}": lambda n, o=o: nf.uniform((2, 3), n, **o) for k, o in PLACES.items()},
    **{f"randn_like {k}": lambda n, x=x: nf.randn_like(x, n) for k, x in ARRAYS.items()},
    **{f"q_sample {k}": lambda n, x=x: nf.q_sample(x, 3, S, n) for k, x in ARRAYS.items()},
    **{f"gaussian {k}": lambda n, x=x: nf.augment.gaussian(x, 0.1, n) for k, x in ARRAYS.items()},
    "randn jit": lambda n: jax.jit(lambda: nf.randn((2, 3), n, dtype=jnp.float32))(),
    "randn compiled": lambda n: torch.compile(lambda: nf.randn((2, 3), n, dtype=torch.float32), backend="eager")(),
    "q_step": lambda n: nf.q_step(X, 3, S, n),
    "q_walk": lambda n: nf.q_walk(X, S, n),
    "mse_loss": lambda n: nf.mse_loss(X, X, 3, S, n, target="v"),
    "update": lambda n: nf.update(SAMPLER.tableau, 0, X, X, noise=n),
    "density": lambda n: nf.density.update_with_log_prob(SDE, 0, X, X, n),
    "start": lambda n: SAMPLER.start((2, 3), n),
    "start of torch": lambda n: SAMPLER.start((2, 3), n, dtype=torch.float32),
    "noised": lambda n: SAMPLER.noised(0, X, n),
    "step": lambda n: SAMPLER.step(0, X, X, n),
    "sample": lambda n: SAMPLER.sample(lambda x, t: x, (2, 3), n),
    "sample of an array": lambda n: SAMPLER.sample(lambda x, t: x, X, n),
    "path": lambda n: nf.samplers.euler_ancestral(nf.Schedule.karras(10), 3).path(n),
    "strengths": lambda n: nf.augment.strengths(3, 1.0, 2.0, n),
    "offset_like": lambda n: nf.fields.offset_like(X, 0.1, n),
    "nearest_of": lambda n: nf.fields.nearest_of(2, X, n),
    "NoisyBatch": lambda n: torch_data.NoisyBatch(S, n),
    "AugmentedBatch": lambda n: torch_data.AugmentedBatch(same, n),
    "NoisyColumns": lambda n: columns.NoisyColumns(S, n),
    "AugmentedColumns": lambda n: columns.AugmentedColumns(same, n),
    "Noisy": lambda n: grain.Noisy(S, n),
    "Augmented": lambda n: grain.Augmented(same, n),
    "k_diffusion": lambda n: k_diffusion.sample_euler_ancestral(
        lambda x, sigma, **_: x, ARRAYS["torch"], torch.tensor([3.0, 1.0, 0.0]), noise=n, disable=True
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_bare_seed_is_refused(call):
    """Seen to fail: randn, uniform, randn_like and functions that take keys by ids took an int for Noise(int)."""
    for seed in 7, np.int64(7):
        with pytest.raises(TypeError, match=r"^(noise|a new sample).* got .*7.*: a bare seed .* noise at every call"):
            CALLS[call](seed)


@pytest.mark.parametrize("call", ["randn numpy", "uniform torch", "q_sample jax", "start", "step", "density"])
def test_among_noises_too(call):
    with pytest.raises(TypeError, match=r"^noise\[1\]: expected a Noise.*, got 7: a bare seed .*nf\.Noise\(7, step="):
        CALLS[call]([nf.Noise(7), 7])


def test_what_is_passed_in_its_place():
    assert np.array_equal(nf.randn((2, 3), nf.Noise.from_rng(7)), nf.randn((2, 3), nf.Noise(7)))
    with pytest.raises(TypeError, match=r"^noise: expected a Noise or a list of them, got bool$"):
        nf.randn((2, 3), True)
