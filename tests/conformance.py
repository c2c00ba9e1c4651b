# SPDX-License-Identifier: Apache-2.0
"""The calls that every library of arrays has to answer. Each takes f, which makes the library's array of NumPy's.

A name begins with the operation's, as users find it in noisefuse.
"""

import inspect
import re

import ml_dtypes
import numpy as np

import noisefuse as nf

S, FLOW, N = nf.Schedule.cosine(1000), nf.Schedule.flow(), nf.Noise(7)
T = np.array([1, 5, 500, 999])
WEIGHTS = np.linspace(0.5, 2, 1000)
POLICY = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=10)
TABLE = POLICY.tableau
PATH = nf.paths.stochastic()
V = 300  # tokens; the mask comes after them
MDLM, LLADA = nf.samplers.mdlm(steps=4, mask_id=V), nf.samplers.llada(steps=3, mask_id=V)
SURE = nf.samplers.llada(steps=3, mask_id=V, threshold=0.02)
INFO = ("log_prob", "log_prob_raw", "entropy", "margin", "rank")


class Boxed:
    """An array type unknown to noisefuse: no arithmetic, no DLPack, no NumPy."""

    def __init__(self, values):
        self.inside, self.shape, self.dtype = values, values.shape, values.dtype

    __array_ufunc__ = __array__ = None


class Boxes(nf.interop.ThroughNumPy):
    def to_numpy(self, x):
        return x.inside

    def from_numpy(self, array, like):
        return Boxed(array)


nf.interop.register(Boxed, Boxes("Boxed"))


def data(dtype=np.float32, scale=1):
    return (scale * np.random.default_rng(0).normal(size=(4, 3, 5))).astype(dtype)


def images():
    return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)


def ids():
    return np.random.default_rng(0).integers(0, V, (4, 6))


def masked():
    return np.random.default_rng(2).random((4, 6)) < 0.5


def partly():
    """Returns tokens, about half of which are masks."""
    return np.where(masked(), V, ids())


def logits(dtype=np.float32):
    return (2 * np.random.default_rng(1).normal(size=(4, 6, V))).astype(dtype)


# ---- arrays of numbers -------------------------------------------------------------------------------------

STEPS = {
    "q_sample": lambda f: nf.q_sample(f(data()), f(T), S, f(data())),
    "q_sample of bytes": lambda f: nf.q_sample(f(data(np.uint8)), f(T), S, N),
    "q_sample, targets": lambda f: nf.q_sample(f(data()), f(T / 1000), FLOW, N, target="v"),
    "interpolate": lambda f: nf.interpolate(f(data()), f(data()), f(T / 1000), PATH, N, target="score"),
    "noised": lambda f: nf.noised(f(data()), f(T / 1000), f(1 - T / 1000), N, target="v"),
    "q_step": lambda f: nf.q_step(f(data()), f(T), S, N),
    "q_walk": lambda f: nf.q_walk(f(data()), S, N, keep=[3, 7]),
    "randn_like": lambda f: nf.randn_like(f(data(np.float64)), N),
    "randn_like of integers": lambda f: nf.randn_like(f(T), N),
    "update": lambda f: nf.update(nf.samplers.ddim(S, steps=5).tableau, f(T % 5), f(data()), f(data()), noise=N),
    "update, two outputs": lambda f: nf.update(TABLE, 3, f(data()), f(data()), noise=N, aux_out=1),
    "Sampler.step": lambda f: nf.samplers.ddpm(S, steps=5).step(2, f(data()), f(data()), N),
    "Sampler.state": lambda f: nf.samplers.unipc(S, steps=5).state(f(data())).past,
    "Sampler.noised": lambda f: nf.samplers.ddpm(S, 2).noised(1, f(data()), N),
    "Sampler.model_input": lambda f: nf.samplers.ddpm(S, 2).model_input(1, f(data()), time="batch")[1],
    "Sampler.sample, unipc": lambda f: nf.samplers.unipc(S, steps=5).sample(lambda x, t: x, f(data()), N),
    "Sampler.sample, ddpm": lambda f: nf.samplers.ddpm(S, steps=5).sample(lambda x, t: x, f(data()), N, time="batch"),
}
SUMS = {
    "mse_loss": lambda f: nf.mse_loss(f(data()), f(data()), f(T), S, N, target="v", weight=f(WEIGHTS)),
    "mse_loss of samples": lambda f: nf.mse_loss(f(data()), f(data()), f(T), S, N, target="v", reduction="none"),
    "mse_loss_and_grad": lambda f: nf.mse_loss_and_grad(f(data()), f(data()), f(T), S, N, target="v"),
    "mse_loss_grad": lambda f: nf.mse_loss_grad(f(data()), f(data()), f(T), S, N, target="v"),
    "interpolate_loss": lambda f: nf.interpolate_loss(
        f(data(scale=2)), f(data()), f(-data()), f(T / 1000), PATH, N, target="velocity"
    ),
    "interpolate_loss_and_grad": lambda f: nf.interpolate_loss_and_grad(
        f(data(scale=2)), f(data()), f(-data()), f(T / 1000), PATH, N, target="velocity"
    ),
    "density.log_prob": lambda f: nf.density.log_prob(TABLE, 3, f(data()), f(data(scale=2)), f(data(scale=3))),
    "density.log_prob_grad": lambda f: nf.density.log_prob_grad(
        TABLE, 3, f(data()), f(data(scale=2)), f(data(scale=3))
    ),
    "density.kl": lambda f: nf.density.kl(TABLE, 3, f(data()), f(data(scale=2))),
    "density.kl_grad": lambda f: nf.density.kl_grad(TABLE, 3, f(data()), f(data(scale=2))),
    "density.update_with_log_prob": lambda f: nf.density.update_with_log_prob(TABLE, 3, f(data()), f(data()), N),
    "Sampler.step, log_prob": lambda f: POLICY.step(3, f(data()), f(data()), N, log_prob=True),
    "Sampler.log_prob": lambda f: POLICY.log_prob(3, f(data()), f(data(scale=2)), f(data(scale=3))),
    "Sampler.kl": lambda f: POLICY.kl(3, f(data()), f(data(scale=2))),
}
AUGMENTED = {
    "augment.gaussian": lambda f: nf.augment.gaussian(f(images()), 10.0, N, batched=True),
    "augment.gaussian of each image": lambda f: nf.augment.gaussian(
        f(images()), f(np.linspace(1, 9, 4)), N, batched=True
    ),
    "augment.gaussian in a region": lambda f: nf.augment.gaussian(f(data()), 0.3, N, region=f(data() > 0)),
    "augment.multiplicative": lambda f: nf.augment.multiplicative(f(data()), 0.2, N),
    "augment.sensor": lambda f: nf.augment.sensor(f(images()), 0.1, 2.0, N, batched=True),
    "augment.at_snr": lambda f: nf.augment.at_snr(f(data()), 20.0, N),
    "augment.coloured": lambda f: nf.augment.coloured(f(data()), 20.0, N, "pink"),
    "augment.by_level": lambda f: nf.augment.by_level(
        f(images()), np.linspace(0, 9, 256), np.linspace(1, 9, 256), N, batched=True
    ),
    "augment.transition": lambda f: nf.augment.transition(f(images()), np.full((256, 256), 1 / 256), N, batched=True),
    "augment.poisson": lambda f: nf.augment.poisson(f(images()), 50.0, N, batched=True),
    "augment.poisson of floats": lambda f: nf.augment.poisson(f(data()), 50.0, N, gamma=2.2),
    "augment.impulse": lambda f: nf.augment.impulse(
        f(images()), f(np.linspace(0, 1, 4)), N, layout="HWC", shared=True, batched=True
    ),
    "augment.poisson in boxes": lambda f: nf.augment.poisson(
        f(images()), 50.0, N, batched=True, region=[[1, 2, 9, 5], [8, 0, 99, 3]]
    ),
    "augment.impulse of floats": lambda f: nf.augment.impulse(f(data()), 0.5, N, random=True),
    "augment.corrupt": lambda f: nf.augment.corrupt(f(images()), "impulse_noise", 3, N, batched=True),
    "augment.rician": lambda f: nf.augment.rician(f(images()), f(np.linspace(0, 9, 4)), N, batched=True),
    "augment.rician of floats": lambda f: nf.augment.rician(f(data()), 0.5, N, coils=2),
    "augment.prepare": lambda f: nf.augment.prepare(f(images()), noise=N, noise_std=0.1),
    "augment.rms": lambda f: nf.augment.rms(f(data())),
}
FIELDS = {
    "fields.offset_like": lambda f: nf.fields.offset_like(f(data()), 0.1, N),
    "fields.pyramid_like": lambda f: nf.fields.pyramid_like(f(data()[None]), 0.8, N, levels=2),
    "fields.mixed_like": lambda f: nf.fields.mixed_like(f(data()), 1.0, N),
    "fields.progressive_like": lambda f: nf.fields.progressive_like(f(data()), 1.0, N),
    "fields.freenoise_like": lambda f: nf.fields.freenoise_like(f(data()[None]), N, context=3, stride=1),
    "fields.perturbed": lambda f: nf.fields.perturbed(f(data()), f(T), S, 0.1, N),
    "fields.nearest_of": lambda f: [noise.seed for noise in nf.fields.nearest_of(3, f(data()), N)],
    "fields.assigned": lambda f: [noise.seed for noise in nf.fields.assigned(f(data()), N)],
}

# ---- arrays of tokens --------------------------------------------------------------------------------------

TOKENS = {
    "q_mask": lambda f: nf.q_mask(f(ids()), f(T / 1000), N, V),
    "q_mask, where": lambda f: nf.q_mask(f(ids()), 0.7, N, V, where=f(masked())),
    "q_uniform": lambda f: nf.q_uniform(f(ids()), f(T / 1000), N, V),
    "q_transition": lambda f: nf.q_transition(f(ids()), nf.discrete.gaussian(0.3, V), N),
    "categorical": lambda f: nf.categorical(f(logits()), N, temperature=f(np.linspace(0.5, 2, 4)), top_k=[9, 0, 2, 1]),
    "categorical, where": lambda f: nf.categorical(f(logits()), N, where=f(masked()), top_p=0.9),
    "categorical, info": lambda f: nf.categorical(f(logits()), N, info=INFO, temperature=0.7),
    "DiscreteSampler.step": lambda f: MDLM.step(1, f(partly()), f(logits()), N),
    "DiscreteSampler.step, by rank": lambda f: LLADA.step(1, f(partly()), f(logits()), N),
    "DiscreteSampler.step, by confidence": lambda f: SURE.step(1, f(partly()), f(logits()), N),
    "DiscreteSampler.sample": lambda f: MDLM.sample(lambda x, t: f(logits()), f(np.full((4, 6), V)), N),
}
TOKEN_SUMS = {
    "masked_cross_entropy": lambda f: nf.masked_cross_entropy(
        f(logits()), f(ids()), f(masked()), f(np.linspace(0.5, 2, 4))
    ),
    "masked_cross_entropy of rows": lambda f: nf.masked_cross_entropy(f(logits()), f(ids()), reduction="none"),
    "masked_cross_entropy_and_grad": lambda f: nf.masked_cross_entropy_and_grad(
        f(logits()), f(ids()), f(masked()), f(np.linspace(0.5, 2, 4)), upstream=3.0
    ),
    "masked_cross_entropy_and_grad of rows": lambda f: nf.masked_cross_entropy_and_grad(
        f(logits()), f(ids()), f(masked()), reduction="none", upstream=f(np.arange(24.0).reshape(4, 6))
    ),
    "rate_loss": lambda f: nf.rate_loss(
        f(logits()), f(ids()), f(ids()[:, ::-1].copy()), f(np.linspace(0.1, 0.9, 4)), f(np.linspace(0.5, 2, 4))
    ),
    "rate_loss of a flow": lambda f: nf.rate_loss(
        f(logits()), f(ids()), f(ids()[:, ::-1].copy()), None, where=f(masked()), reduction="none"
    ),
    "rate_loss_and_grad": lambda f: nf.rate_loss_and_grad(
        f(logits()), f(ids()), f(ids()[:, ::-1].copy()), f(np.linspace(0.1, 0.9, 4)), where=f(masked()), upstream=3.0
    ),
    "rate_loss_and_grad of a flow": lambda f: nf.rate_loss_and_grad(
        f(logits()), f(ids()), f(ids()[:, ::-1].copy()), None, f(np.linspace(0.5, 2, 4)), reduction="none"
    ),
    "DiscreteSampler.step, log_prob": lambda f: MDLM.step(1, f(partly()), f(logits()), N, log_prob=True),
    "DiscreteSampler.log_prob": lambda f: MDLM.log_prob(1, f(partly()), f(logits()), f(ids())),
    "DiscreteSampler.log_prob_grad": lambda f: MDLM.log_prob_grad(1, f(partly()), f(logits()), f(ids())),
}
HALVES = {}  # not every library has these dtypes
for dtype in (np.float16, ml_dtypes.bfloat16):
    HALVES |= {
        f"q_sample of {dtype.__name__}": lambda f, dtype=dtype: nf.q_sample(f(data(dtype)), f(T), S, N),
        f"categorical of {dtype.__name__}": lambda f, dtype=dtype: nf.categorical(f(logits(dtype)), N, info=INFO),
        f"masked_cross_entropy_and_grad of {dtype.__name__}": lambda f, dtype=dtype: nf.masked_cross_entropy_and_grad(
            f(logits(dtype)), f(ids()), f(masked()), f(np.linspace(0.5, 2, 4)), upstream=3.0
        ),
    }
CALLS = STEPS | SUMS | AUGMENTED | FIELDS | TOKENS | TOKEN_SUMS | HALVES


def operation(call):
    """Returns the name of the operation of a call of the table."""
    return re.split("[ ,]", call)[0]


def public_operations():
    """Returns the names of all operations: what is public, and has to be given an array."""
    places = {"": nf, "augment.": nf.augment, "density.": nf.density, "fields.": nf.fields}
    listed = {prefix + name: getattr(place, name) for prefix, place in places.items() for name in place.__all__}
    for kind in (nf.Sampler, nf.DiscreteSampler):
        listed |= {f"{kind.__name__}.{name}": getattr(kind, name) for name in dir(kind) if name[0] != "_"}
    parts = {"DiscreteSampler.log_prob_parts", "DiscreteSampler.pulled"}  # of log_prob's gradient, for autograd
    return {name for name, f in listed.items() if inspect.isfunction(f) and takes_arrays(f)} - parts


def takes_arrays(function):
    given = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return any(re.search(r"\b(Array|Like|Images)\b", str(p.annotation)) or p.name == "x_or_shape" for p in given)


def arrays(result):
    """Returns the results of a call, as a list, without fields that have none."""
    return (
        [a for one in result if one is not None for a in arrays(one)] if isinstance(result, (tuple, list)) else [result]
    )
