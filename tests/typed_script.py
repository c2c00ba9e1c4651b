# SPDX-License-Identifier: Apache-2.0
"""The script that test_types.py checks: a user's script, with the types that a user expects.

Lines that end with `# error` are wrong, and the checker must report them.
"""

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray

import noisefuse as nf

S = nf.Schedule.linear(10)
N = nf.Noise(3)
x = np.zeros((2, 3), np.float32)
y = torch.zeros(2, 3)
j = jnp.zeros((2, 3))
t = torch.tensor([1, 2])
sampler = nf.samplers.ddim(S, 3)
table = sampler.tableau
state = sampler.state(y)

# ---- the forward process
assert_type(nf.q_sample(x, 3, S, N), NDArray[Any])
assert_type(nf.q_sample(x, [1, 2], S, N, target="v", dtype=np.float64), tuple[NDArray[Any], NDArray[Any]])
assert_type(nf.q_sample(y, t, S, N), torch.Tensor)
assert_type(nf.q_sample(y, t, S, N, target="flow", dtype=torch.float16), tuple[torch.Tensor, torch.Tensor])
assert_type(nf.q_sample(j, 3, S, N, target="v"), tuple[jax.Array, jax.Array])
assert_type(nf.q_step(y, 3, S, N), torch.Tensor)
assert_type(nf.q_step(j, 3, S, N), jax.Array)
assert_type(nf.q_walk(x, S, N, keep=[3]), NDArray[Any])
nf.q_sample(x, 3, S, N, target="eps")  # error
nf.q_sample(x, 3, S, N, reduction="mean")  # error
nf.q_sample([1.0, 2.0], 3, S, N)  # error

# ---- losses
assert_type(nf.mse_loss(x, x, 3, S, N, target="v"), float)
assert_type(nf.mse_loss(y, y, t, S, N, target="v", weight=y), torch.Tensor)
assert_type(nf.mse_loss(j, j, 3, S, N, target="v"), jax.Array)
losses_and_gradient = nf.mse_loss_and_grad(x, x, 3, S, N, target="v", reduction="none")
assert_type(losses_and_gradient, tuple[NDArray[Any], NDArray[Any]])
assert_type(nf.weights.min_snr(S, "v"), NDArray[np.float64])
nf.weights.min_snr("v", S)  # error

# ---- tokens
ids = np.zeros((2, 3), np.int64)
assert_type(nf.q_mask(ids, 0.5, N, 9), tuple[NDArray[Any], NDArray[Any]])
assert_type(nf.q_uniform(y, 0.5, N, 9), tuple[torch.Tensor, torch.Tensor])
assert_type(nf.q_transition(j, 0.5, N), jax.Array)
assert_type(nf.categorical(x, N), NDArray[Any])
assert_type(nf.categorical(y, N, top_k=9), torch.Tensor)
assert_type(nf.categorical(x, N, partial=True), nf.discrete.Partial)
tokens, info = nf.categorical(y, N, info=("log_prob", "entropy"))
assert_type(tokens, torch.Tensor)
assert_type(info, nf.discrete.TokenInfo[torch.Tensor])
assert_type(info.rank, torch.Tensor | Any)
print(info.rang)  # error
nf.categorical(x, N, info="truth")  # error
assert_type(nf.masked_cross_entropy(x, ids), float)
assert_type(nf.rate_loss(x, ids, ids, 0.5), float)
assert_type(nf.masked_cross_entropy_and_grad(y, y), tuple[torch.Tensor, torch.Tensor])

# ---- noise
assert_type(nf.randn((2, 3), N), NDArray[Any])
assert_type(nf.randn((2, 3), N, dtype=np.float64), NDArray[Any])
assert_type(nf.randn((2, 3), N, dtype=torch.float32), torch.Tensor)
assert_type(nf.randn((2, 3), N, dtype=torch.bfloat16, device="cuda"), torch.Tensor)
assert_type(nf.randn((2, 3), N, device=torch.device("cuda:1")), torch.Tensor)
assert_type(nf.randn((2, 3), N, out=y), torch.Tensor)
assert_type(nf.randn((2, 3), N, dtype=jnp.float32), Any)  # jnp.float32 is Any in JAX's own types
assert_type(nf.uniform(8, N), NDArray[Any])
assert_type(nf.uniform(8, N, dtype=torch.float32), torch.Tensor)
assert_type(nf.randn_like(x, N), NDArray[Any])
assert_type(nf.randn_like(y, N, dtype=torch.float16), torch.Tensor)
assert_type(nf.randn_like(j, N), jax.Array)
nf.randn((2, 3), N, dtype=3)  # error
nf.uniform(8, N.interval(0, 1))  # error
nf.randn((2, 3), 7)  # error
nf.uniform(8, 7)  # error
nf.randn_like(x, 7)  # error

# ---- augmentation
assert_type(nf.augment.gaussian(x, 0.1, N), NDArray[Any])
assert_type(nf.augment.gaussian(y, t, N, layout="CHW", dtype=torch.uint8), torch.Tensor)
assert_type(nf.augment.gaussian(j, 0.1, N), jax.Array)
assert_type(nf.augment.gaussian(x, 0.1, N, region=x > 0), NDArray[Any])
pictures: list[NDArray[Any]] = [x, x[:1]]
assert_type(nf.augment.gaussian(pictures, [0.1, 0.2], N), list[NDArray[Any]])
frames = [y, y]
assert_type(nf.augment.sensor(frames, 0.1, 0.2, N, region=[[[0, 0, 2, 2]]] * 2), list[torch.Tensor])
assert_type(nf.augment.poisson(pictures, 100.0, N), list[NDArray[Any]])
assert_type(nf.augment.corrupt(pictures, "shot_noise", 3, N), list[NDArray[Any]])
nf.augment.gaussian("cat.png", 0.1, N)  # error
assert_type(nf.augment.multiplicative(y, 0.1, N), torch.Tensor)
assert_type(nf.augment.sensor(x, 0.1, 0.2, N), NDArray[Any])
assert_type(nf.augment.by_level(y, x, x, N), torch.Tensor)
assert_type(nf.augment.corrupt(x, "shot_noise", 3, N), NDArray[Any])
assert_type(nf.augment.rician(x, 0.1, N), NDArray[Any])
assert_type(nf.augment.impulse(x, 0.1, N), NDArray[Any])
assert_type(nf.augment.poisson(x, 100.0, N), NDArray[Any])
assert_type(nf.augment.poisson(y, 100.0, N), torch.Tensor)
assert_type(nf.augment.transition(x, x, N), NDArray[Any])
assert_type(nf.augment.at_snr(j, 20.0, N), jax.Array)
assert_type(nf.augment.coloured(j, 20.0, N, "pink"), jax.Array)
assert_type(nf.augment.rms(x), NDArray[np.float64])
assert_type(nf.augment.strengths(3, 5.0, 20.0, N), NDArray[np.float64])
assert_type(nf.augment.prepare(x, noise=N, scale_mean=0.5, noise_std=0.1), NDArray[Any])
assert_type(nf.augment.prepare(y, noise=N, t=3, schedule=S), tuple[torch.Tensor, NDArray[Any]])
assert_type(nf.augment.prepare(j), jax.Array)
nf.augment.prepare(x, N)  # error
nf.augment.prepare(x, std=0.5)  # error
nf.augment.prepare(x, t=3, schedule=S)  # error
nf.augment.gaussian(x, 0.1, N, layout="NCHW")  # error
nf.augment.gaussian(x, 0.1, N, sharde=True)  # error
nf.augment.sensor(x, 0.1, N)  # error

# ---- samplers: what is one of a few words
nf.samplers.ddim(nf.Schedule.cosine(), 3, prediction="velocity", spacing="trailing", final="sigma_min")
nf.samplers.ddim(S, 3, prediction=nf.views.edm(0.5), final=0.02)
nf.samplers.ddim(S, levels=[3.0, 0.5], final_level=0.02, model_time="schedule")
nf.samplers.heun(S, [0.9, 0.5], model_time=lambda alpha, sigma, t: 1 - t)
nf.samplers.ddim(S, 3, prediction="epsilonn")  # error
nf.samplers.ddim(S, 3, spacing="tailing")  # error
nf.samplers.ddim(S, 3, eta="1")  # error
nf.samplers.ddim(S, 3, clip="1")  # error
nf.samplers.lcm(S, 3, spacing="karras")  # error
nf.samplers.pndm(S, 3, clip=1.0)  # error
nf.samplers.ddim(S, 3, final="zeroo")  # error
nf.samplers.ddpm(S, 3, variance="fixed")  # error
nf.samplers.dpmpp_2m_sde(S, 3, solver="euler")  # error

# ---- one step
assert_type(sampler.start((2, 3), N), NDArray[Any])
assert_type(sampler.start((2, 3), N, dtype=torch.float32), torch.Tensor)
assert_type(sampler.start((2, 3), N, device="cuda"), torch.Tensor)
assert_type(sampler.start((2, 3), N, out=y), torch.Tensor)
assert_type(sampler.noised(0, x, N), NDArray[Any])
assert_type(sampler.noised(0, j, N), jax.Array)
assert_type(sampler.model_input(0, x), tuple[NDArray[Any], Any])
assert_type(sampler.model_input(0, y)[0], torch.Tensor)
assert_type(sampler.model_input(0, y, time="batch"), tuple[torch.Tensor, torch.Tensor])
assert_type(sampler.step(0, x, x), NDArray[Any])
assert_type(sampler.step(0, y, (y, y), N, state, guidance_scale=2.0), torch.Tensor)
assert_type(sampler.step(0, j, j), jax.Array)
assert_type(sampler.step(0, x, x, N, log_prob=True), tuple[NDArray[Any], NDArray[Any]])
assert_type(sampler.step(0, y, y, N, log_prob=True, reduction="mean"), tuple[torch.Tensor, torch.Tensor])
assert_type(sampler.log_prob(0, x, x, x), NDArray[Any])
assert_type(sampler.log_prob(0, y, y, y, density="squared"), torch.Tensor)
assert_type(sampler.kl(0, y, y), torch.Tensor)
assert_type(nf.update(table, 0, y, y), torch.Tensor)
assert_type(nf.update(table, 0, y, y, aux_out=1), tuple[torch.Tensor, ...])
assert_type(nf.update(table, 0, j, j), jax.Array)
sampler.step(0, y, y, N, log_prob=True, density="no_constant")  # error
sampler.model_input(0, x, time="tensor")  # error
nf.Tableau(3)  # error


# ---- a whole run
def of_numpy(x: NDArray[Any], t: Any) -> NDArray[Any]:
    return x


def of_jax(x: jax.Array, t: Any) -> jax.Array:
    return x


network = torch.nn.Linear(3, 3)
assert_type(sampler.sample(of_numpy, (2, 3), N), NDArray[Any])
assert_type(sampler.sample(of_jax, (2, 3), N), jax.Array)
assert_type(sampler.sample(network, (2, 3), N, dtype=torch.float32), torch.Tensor)
assert_type(sampler.sample(network, (2, 3), N, device="cuda", progress=True), torch.Tensor)
assert_type(sampler.sample(lambda x, t: x, x, N, time="batch"), NDArray[Any])
assert_type(sampler.sample(lambda x, t: (x, x), y, N, guidance_scale=2.0), torch.Tensor)
assert_type(sampler.sample(of_jax, j, N), jax.Array)
log_probs = list[torch.Tensor | None]
assert_type(sampler.sample(network, y, N, log_probs=True), tuple[torch.Tensor, log_probs])
sampler.sample(lambda x, t: x, y, [y, y, None], time="tensor")  # error
sampler.sample(network, y, N, device="cuda")  # error
sampler.sample(network, 16, N)  # error
