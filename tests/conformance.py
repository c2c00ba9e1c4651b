# SPDX-License-Identifier: Apache-2.0
"""The calls that every library of arrays has to answer. Each takes f, which makes the library's array of NumPy's."""

import numpy as np

import noisefuse as nf

S, FLOW, N = nf.Schedule.cosine(1000), nf.Schedule.flow(), nf.Noise(7)
T = np.array([1, 5, 500, 999])
WEIGHTS = np.linspace(0.5, 2, 1000)
POLICY = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10)
TABLE = POLICY.tableau


def data(dtype=np.float32, scale=1):
    return (scale * np.random.default_rng(0).normal(size=(4, 3, 5))).astype(dtype)


def images():
    return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)


OPERATIONS = {
    "q_sample": lambda f: nf.q_sample(f(data()), f(T), S, f(data())),
    "q_sample of bytes": lambda f: nf.q_sample(f(data(np.uint8)), f(T), S, N),
    "q_sample, targets": lambda f: nf.q_sample(f(data()), f(T / 1000), FLOW, N, target="v"),
    "interpolate": lambda f: nf.interpolate(
        f(data()), f(data()), f(T / 1000), nf.paths.stochastic(), N, target="score"
    ),
    "noised": lambda f: nf.noised(f(data()), f(T / 1000), f(1 - T / 1000), N, target="v"),
    "q_step": lambda f: nf.q_step(f(data()), f(T), S, N),
    "q_walk": lambda f: nf.q_walk(f(data()), S, N, keep=[3, 7]),
    "randn_like": lambda f: nf.randn_like(f(data(np.float64)), N),
    "randn_like of integers": lambda f: nf.randn_like(f(T), N),
    "update": lambda f: nf.update(nf.samplers.ddim(S, steps=5).tableau, f(T % 5), f(data()), f(data()), noise=N),
    "two outputs": lambda f: nf.update(TABLE, 3, f(data()), f(data()), noise=N, aux_out=1),
    "step": lambda f: nf.samplers.ddpm(S, steps=5).step(2, f(data()), f(data()), N),
    "noised by a sampler": lambda f: nf.samplers.ddpm(S, 2).noised(1, f(data()), N),
    "model_input": lambda f: nf.samplers.ddpm(S, 2).model_input(1, f(data()), time="batch")[1],
    "a multistep sampler": lambda f: nf.samplers.unipc(S, steps=5).sample(lambda x, t: x, f(data()), N),
    "a sampler that draws": lambda f: nf.samplers.ddpm(S, steps=5).sample(lambda x, t: x, f(data()), N, time="batch"),
}
SUMS = {
    "mse_loss": lambda f: nf.mse_loss(f(data()), f(data()), f(T), S, N, target="v", weight=f(WEIGHTS)),
    "mse_loss of samples": lambda f: nf.mse_loss(f(data()), f(data()), f(T), S, N, target="v", reduction="none"),
    "mse_loss_grad": lambda f: nf.mse_loss_grad(f(data()), f(data()), f(T), S, N, target="v"),
    "log_prob": lambda f: nf.density.log_prob(TABLE, 3, f(data()), f(data(scale=2)), f(data(scale=3))),
    "log_prob_grad": lambda f: nf.density.log_prob_grad(TABLE, 3, f(data()), f(data(scale=2)), f(data(scale=3))),
    "kl": lambda f: nf.density.kl(TABLE, 3, f(data()), f(data(scale=2))),
    "kl_grad": lambda f: nf.density.kl_grad(TABLE, 3, f(data()), f(data(scale=2))),
    "update_with_log_prob": lambda f: nf.density.update_with_log_prob(TABLE, 3, f(data()), f(data()), N),
    "a policy's step": lambda f: POLICY.step(3, f(data()), f(data()), N, log_prob=True),
}
AUGMENTED = {
    "gaussian": lambda f: nf.augment.gaussian(f(images()), 10.0, N, batched=True),
    "gaussian of each image": lambda f: nf.augment.gaussian(f(images()), f(np.linspace(1, 9, 4)), N, batched=True),
    "multiplicative": lambda f: nf.augment.multiplicative(f(data()), 0.2, N),
    "poisson": lambda f: nf.augment.poisson(f(images()), 50.0, N, batched=True),
    "prepare": lambda f: nf.augment.prepare(f(images()), noise=N, noise_std=0.1),
}
CALLS = OPERATIONS | SUMS | AUGMENTED


def arrays(result):
    """Returns the results of a call, as a list."""
    return [*result] if isinstance(result, (tuple, list)) else [result]
