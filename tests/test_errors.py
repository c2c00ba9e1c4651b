# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments: every row gives a clear error with given and expected values, and nothing is written."""

import subprocess
import sys

import numpy as np
import pytest

import noisefuse as nf
from conftest import NUMBA, bits
from noisefuse import Noise, Schedule, philox4x32, q_sample, q_step, q_walk, randn, uniform
from noisefuse.ground import libraries

S = Schedule.linear(10)
N = Noise(1)
NAN = float("nan")


def x(shape=(4, 6), dtype=np.float32):
    return np.zeros(shape, dtype)


class Stranger:
    """An array of a library that is not supported: it has all protocols, and no known type."""

    __module__ = "torchlike.core"
    shape, dtype, ndim = (4, 6), np.dtype(np.float32), 2

    def __init__(self):
        self.data = x()

    def __array__(self, dtype=None, copy=None):
        return self.data

    def __dlpack__(self, **_):
        return self.data.__dlpack__()


class Lookalike:
    """It has all attributes of a Noise, unchecked. Seen to fail: freed ids were read."""

    seed, step, stream, window_shape, window_start = 1, 0, 0, None, ()

    @property
    def sample(self):
        return np.arange(4, dtype=np.uint64)


class Output:
    """The output class of diffusers' networks."""

    sample = None


TABLE = nf.samplers.dpmpp_2m(S, 5).tableau
SAMPLER = nf.samplers.ddim(Schedule.linear(1000), 5)
POLICY = nf.samplers.flow_sde(Schedule.flow(1000), steps=5).tableau
masked = np.ma.masked_array(x(), mask=x() == 0)
few, many = [N] * 3, [N] * 5

# Each row is (error, its message, call). The call is given an `out`, which must stay unchanged.
ROWS = {
    # ---- Noise
    "seed negative": (OverflowError, r"seed = -1 .*0 <= seed < 2\^64", lambda o: Noise(-1)),
    "seed too large": (OverflowError, r"seed = 18446744073709551616 .*2\^64", lambda o: Noise(2**64)),
    "seed a bool": (TypeError, r"seed = True.*integer", lambda o: Noise(True)),
    "seed a NumPy bool": (TypeError, r"seed = .*True.*integer", lambda o: Noise(np.True_)),
    "seed a float": (TypeError, r"seed = 1\.0.*integer.*float", lambda o: Noise(1.0)),
    "seed text": (TypeError, r"seed = '1'.*integer.*str", lambda o: Noise("1")),
    "sample negative": (OverflowError, r"sample = -1 .*0 <= sample < 2\^56", lambda o: Noise(1, sample=-1)),
    "sample too large": (OverflowError, r"sample = \d+ .*2\^56", lambda o: Noise(1, sample=2**56)),
    "sample a float": (TypeError, r"sample.*float64", lambda o: Noise(1, sample=0.5)),
    "sample id negative": (OverflowError, r"sample = -2 .*2\^56", lambda o: Noise(1, sample=[1, -2])),
    "sample id too large": (OverflowError, r"sample = \d+ .*2\^56", lambda o: Noise(1, sample=[2**56])),
    "sample ids 2-d": (TypeError, r"sample.*\(B,\).*\(1, 2\)", lambda o: Noise(1, sample=[[1, 2]])),
    "sample ids floats": (TypeError, r"sample.*float64", lambda o: N.at(sample=[1.0])),
    "sample ids bools": (TypeError, r"sample.*bool", lambda o: N.at(sample=[True])),
    "step negative": (OverflowError, r"step = -1 .*0 <= step < 2\^32", lambda o: Noise(1, step=-1)),
    "step too large": (OverflowError, r"step = 4294967296 .*2\^32", lambda o: N.at(step=2**32)),
    "step a float": (TypeError, r"step = 2\.0.*integer", lambda o: N.at(step=2.0)),
    "stream too large": (OverflowError, r"stream = 128 .*2\^7", lambda o: Noise(1, stream=128)),
    "stream negative": (OverflowError, r"stream = -1 .*2\^7", lambda o: N.at(stream=-1)),
    "window of unequal lengths": (ValueError, r"window.*\(4,\).*\(0, 0\).*length", lambda o: N.window((4,), (0, 0))),
    "window of too few starts": (ValueError, r"window.*\(4, 4\).*\(0,\).*length", lambda o: N.window((4, 4), (0,))),
    "window outside": (ValueError, r"window.*\(5,\).*\(4,\)", lambda o: N.window((4,), (5,))),
    "window start negative": (ValueError, r"window.*\(-1,\).*\(4,\)", lambda o: N.window((4,), (-1,))),
    "window too large": (OverflowError, r"window.*2\^51", lambda o: N.window((2**25, 2**26 + 1), (0, 0))),
    "window too large for normals": (
        OverflowError, r"\(131072, 131073\) has more than 2\^34",
        lambda o: randn((4, 1, 2), N.window((2**17, 2**17 + 1), (0, 0)), **o),
    ),
    # ---- schedules
    "NaN in alpha": (ValueError, r"alpha.*\[1\] = nan", lambda o: Schedule([0.9, NAN], [0.1, 0.2])),
    "NaN in sigma": (ValueError, r"sigma.*\[0\] = nan", lambda o: Schedule([0.9, 0.5], [NAN, 0.2])),
    "infinite sigma": (ValueError, r"sigma.*finite.*inf", lambda o: Schedule([0.9], [np.inf])),
    "NaN in betas": (ValueError, r"betas.*\[1\] = nan", lambda o: Schedule.from_betas([0.1, NAN])),
    "schedule: betas": (TypeError, r"schedule.*Schedule.*ndarray", lambda o: q_sample(x(), 1, S.betas, N, **o)),
    "q_step schedule": (TypeError, r"schedule.*Schedule.*int", lambda o: q_step(x(), 1, 1000, N, **o)),
    "q_walk schedule": (TypeError, r"schedule.*Schedule.*None", lambda o: q_walk(x(), None, N, **o)),
    # ---- t
    "t negative": (IndexError, r"t = -1 .*0 <= t < 10", lambda o: q_sample(x(), -1, S, N, **o)),
    "t too large": (IndexError, r"t = 10 .*0 <= t < 10", lambda o: q_sample(x(), 10, S, N, **o)),
    "t too large at last": (
        IndexError, r"t = 10 .*0 <= t < 10", lambda o: q_sample(x(), np.array([0, 1, 9, 10]), S, N, **o)
    ),
    "t far too large": (IndexError, r"t = \d+ .*t < 10", lambda o: q_sample(x(), 2**63, S, N, **o)),
    "t beyond every integer": (
        IndexError, r"t = 18446744073709551616 .*0 <= t < 10", lambda o: q_sample(x(), 2**64, S, N, **o)
    ),
    "one t beyond every integer": (
        IndexError, r"t = -1180591620717411303424 .*t < 10", lambda o: q_sample(x(), [0, 1, -(2**70), 2], S, N, **o)
    ),
    "q_step: t beyond every integer": (IndexError, r"t = \d{22} .*t < 10", lambda o: q_step(x(), 2**70, S, N, **o)),
    "one t negative": (IndexError, r"t = -3 .*t < 10", lambda o: q_sample(x(), np.array([0, 1, -3, 2]), S, N, **o)),
    "one t too large": (IndexError, r"t = 12 .*t < 10", lambda o: q_sample(x(), np.array([0, 1, 2, 12]), S, N, **o)),
    "a list of t": (IndexError, r"t = 12 .*t < 10", lambda o: q_sample(x(), [0, 1, 2, 12], S, N, **o)),
    "t of uint8": (IndexError, r"t = 255 .*t < 10", lambda o: q_sample(x(), np.uint8([0, 255, 1, 1]), S, N, **o)),
    "t a float": (TypeError, r"linear.*integers.*float64", lambda o: q_sample(x(), 0.5, S, N, **o)),
    "t a bool": (TypeError, r"t: expected integers.*bool", lambda o: q_sample(x(), True, S, N, **o)),
    "t bools": (TypeError, r"t: expected integers.*bool", lambda o: q_sample(x(), [True] * 4, S, N, **o)),
    "t complex": (TypeError, r"t: expected integers.*complex", lambda o: q_sample(x(), 1j, S, N, **o)),
    "t None": (TypeError, r"t: expected integers.*None", lambda o: q_sample(x(), None, S, N, **o)),
    "t text": (TypeError, r"t: expected integers", lambda o: q_sample(x(), "3", S, N, **o)),
    "t too short": (ValueError, r"t.*\(4, 6\).*\(3,\)", lambda o: q_sample(x(), [1, 2, 3], S, N, **o)),
    "t of the last axis": (ValueError, r"t.*\(4, 6\).*\(6,\)", lambda o: q_sample(x(), [1] * 6, S, N, **o)),
    "t too many axes": (
        ValueError, r"t.*\(4, 6\).*\(4, 6, 2\)", lambda o: q_sample(x(), np.ones((4, 6, 2), int), S, N, **o)
    ),
    "time outside": (ValueError, r"t.*\[0, 1\].*flow.*1\.5", lambda o: q_sample(x(), 1.5, Schedule.flow(10), N, **o)),
    "time an index in floats": (
        ValueError, r"t must be in \[0, 1\], .* \(an index is an integer\); got t\[0\] = 9",
        lambda o: q_sample(x(), 9.0, Schedule.flow(10), N, **o),
    ),
    "time NaN": (ValueError, r"t.*nan", lambda o: q_sample(x(), NAN, Schedule.flow(10), N, **o)),
    "q_step: t too large": (IndexError, r"t = 10 .*t < 10", lambda o: q_step(x(), 10, S, N, **o)),
    "q_step: t a float": (
        TypeError, r"t: expected integers.*float", lambda o: q_step(x(), 0.5, Schedule.flow(10), N, **o)
    ),
    "q_step: t too short": (ValueError, r"t.*\(4, 6\).*\(3,\)", lambda o: q_step(x(), [1, 2, 3], S, N, **o)),
    # ---- keep
    "keep unsorted": (ValueError, r"keep.*increasing.*\[3, 1\]", lambda o: q_walk(x(), S, N, keep=[3, 1], **o)),
    "keep repeated": (ValueError, r"keep.*increasing.*\[1, 1\]", lambda o: q_walk(x(), S, N, keep=[1, 1], **o)),
    "keep too large": (IndexError, r"keep.*t = 10.*t < 10", lambda o: q_walk(x(), S, N, keep=[1, 10], **o)),
    "keep negative": (IndexError, r"keep.*t = -1.*t < 10", lambda o: q_walk(x(), S, N, keep=[-1], **o)),
    "keep floats": (TypeError, r"keep.*integers.*0\.5", lambda o: q_walk(x(), S, N, keep=[0.5], **o)),
    "keep a number": (TypeError, r"keep.*sequence.*3", lambda o: q_walk(x(), S, N, keep=3, **o)),
    # ---- x
    "x0 int64": (TypeError, r"x0.*int64.*float32", lambda o: q_sample(x(dtype=int), 1, S, N, **o)),
    "x0 bool": (TypeError, r"x0.*bool.*float32", lambda o: q_sample(x(dtype=bool), 1, S, N, **o)),
    "x0 complex": (TypeError, r"x0.*complex64.*float32", lambda o: q_sample(x(dtype="c8"), 1, S, N, **o)),
    "x0 objects": (TypeError, r"x0.*object.*float32", lambda o: q_sample(x(dtype=object), 1, S, N, **o)),
    "x0 long double": (TypeError, r"x0.*longdouble|float128", lambda o: q_sample(x(dtype="g"), 1, S, N, **o)),
    "x0 a list": (
        TypeError, r"x0: expected an array of NumPy, CuPy, torch, JAX or dask, or one that speaks DLPack, got list",
        lambda o: q_sample([[0.0]], 1, S, N, **o),
    ),
    "x0 a float": (TypeError, r"x0.*array of NumPy.*float", lambda o: q_sample(0.5, 1, S, N, **o)),
    "x0 masked": (TypeError, r"x0.*masked.*x0\.filled", lambda o: q_sample(masked, 1, S, N, **o)),
    "x0 strange": (TypeError, r"x0.*array of NumPy.*torchlike\.Stranger", lambda o: q_sample(Stranger(), 1, S, N, **o)),
    "q_step: x int64": (TypeError, r"x.*int64.*float32", lambda o: q_step(x(dtype=int), 1, S, N, **o)),
    "q_step: x strange": (TypeError, r"x.*array of NumPy.*torchlike", lambda o: q_step(Stranger(), 1, S, N, **o)),
    "q_walk: x0 int64": (TypeError, r"x0.*int64.*float32", lambda o: q_walk(x(dtype=int), S, N, **o)),
    "q_walk: x0 strange": (TypeError, r"x0.*array of NumPy.*torchlike", lambda o: q_walk(Stranger(), S, N, **o)),
    # ---- noise
    "noise a seed": (TypeError, r"noise: .* got 5: .*same noise.*Noise\(5", lambda o: q_sample(x(), 1, S, 5, **o)),
    "noise a seed of NumPy": (TypeError, r"noise: .*5.*same noise", lambda o: q_sample(x(), 1, S, np.int64(5), **o)),
    "q_step: noise a seed": (TypeError, r"noise: .* got 5: .*same noise", lambda o: q_step(x(), 1, S, 5, **o)),
    "q_walk: noise a seed": (TypeError, r"noise: .* got 5: .*same noise", lambda o: q_walk(x(), S, 5, **o)),
    "noise None": (
        TypeError, r"noise: expected a Noise, a list of them, or else an array of NumPy, .* DLPack, got NoneType",
        lambda o: q_sample(x(), 1, S, None, **o),
    ),
    "no noise where sigma is 0": (
        TypeError, r"noise: expected a Noise.* got NoneType",
        lambda o: q_sample(x(), 0.0, Schedule.cosine(10), None, **o),
    ),
    "noised: no noise where sigma is 0": (
        TypeError, r"noise: expected a Noise.* got NoneType", lambda o: nf.noised(x(), 1.0, 0.0, None, **o)
    ),
    "no noise of a speckle of 0": (
        TypeError, r"noise: expected a Noise.* got NoneType",
        lambda o: nf.augment.multiplicative(x(), 0.0, None, **o),
    ),
    "randn: noise None": (
        TypeError, "noise: expected a Noise or a list of them, got NoneType",
        lambda o: randn((4, 6), None, **o),
    ),
    "noise a generator": (
        TypeError, r"noise: .*, got Generator: a noise is a key and not a state, such as Noise\(seed\)",
        lambda o: q_sample(x(), 1, S, np.random.default_rng(0), **o),
    ),
    "randn: noise a generator": (
        TypeError, r"noise: .*, got RandomState: a noise is a key",
        lambda o: randn((4, 6), np.random.RandomState(0), **o),
    ),
    "noise a list of generators": (
        TypeError, r"noise\[1\]: expected a Noise, got Generator: a noise is a key",
        lambda o: q_sample(x(), 1, S, [N, np.random.default_rng(0)], **o),
    ),
    "noise a bool": (TypeError, "noise: expected .* got bool", lambda o: randn((4, 6), True, **o)),
    "randn: noise an array": (TypeError, r"noise.*Noise.*array", lambda o: randn((4, 6), x(), **o)),
    "randn: noise a seed": (TypeError, r"noise: .* got 5: .*same noise.*Noise\(5", lambda o: randn((4, 6), 5, **o)),
    "uniform: noise a seed": (TypeError, "noise: .* got 5: .*same noise", lambda o: nf.uniform((4, 6), 5, **o)),
    "randn_like: noise a seed": (TypeError, "noise: .* got 5: .*same noise", lambda o: nf.randn_like(x(), 5)),
    "start: noise a seed": (TypeError, "noise: .* got 5: .*same noise", lambda o: SAMPLER.start((4, 6), 5, **o)),
    "q_walk: noise an array": (TypeError, r"noise.*Noise.*array", lambda o: q_walk(x(), S, x(), **o)),
    "noise of another shape": (ValueError, r"noise.*\(4, 6\).*\(4, 5\)", lambda o: q_sample(x(), 1, S, x((4, 5)), **o)),
    "noise of another dtype": (
        TypeError, r"noise.*float64.*float32", lambda o: q_sample(x(), 1, S, x(dtype="f8"), **o)
    ),
    "noise strange": (TypeError, r"noise.*Noise.*Stranger", lambda o: q_sample(x(), 1, S, Stranger(), **o)),
    "noise a lookalike": (TypeError, r"noise.*Noise.*Lookalike", lambda o: q_sample(x(), 1, S, Lookalike(), **o)),
    "noise masked": (TypeError, r"noise.*masked", lambda o: q_sample(x(), 1, S, masked, **o)),
    "too few Noises": (ValueError, r"noise.*4.*3", lambda o: q_sample(x(), 1, S, few, **o)),
    "too many Noises": (ValueError, r"noise.*4.*5", lambda o: randn((4, 6), many, **o)),
    "Noises of one sample": (ValueError, r"noise.*1.*3", lambda o: q_sample(x(), 1, S, few, batched=False, **o)),
    "not only Noises": (
        TypeError, r"noise\[3\]: expected a Noise, got 3: a bare seed", lambda o: q_sample(x(), 1, S, [N, N, N, 3], **o)
    ),
    "randn: not only Noises": (
        TypeError, r"noise\[1\]: expected a Noise, got NoneType", lambda o: randn((2, 6), (N, None))
    ),
    "too few ids": (ValueError, r"noise.*3 sample ids.*4", lambda o: q_sample(x(), 1, S, N.at(sample=[1, 2, 3]), **o)),
    "too many ids": (ValueError, r"noise.*5 sample ids.*4", lambda o: q_sample(x(), 1, S, N.at(sample=range(5)), **o)),
    "ids of text": (
        TypeError, r"sample: expected .* of shape \(2,\); augment\.sample_id makes an id of a str",
        lambda o: q_sample(x(), 1, S, N.at(sample=["a.png", "b.png"]), **o),
    ),
    "stream taken": (ValueError, r"noise.*stream 0.*got 2", lambda o: q_step(x(), 1, S, N.at(stream=2), **o)),
    "q_walk: stream taken": (ValueError, r"noise.*stream 0.*got 1", lambda o: q_walk(x(), S, N.at(stream=1), **o)),
    "window too small": (
        ValueError, r"window.*\(6,\).*\(4,\).*\(9,\)", lambda o: q_sample(x(), 1, S, N.window((9,), (4,)), **o)
    ),
    "window of other axes": (
        ValueError, r"window.*\(6,\).*\(9, 9\)", lambda o: randn((4, 6), N.window((9, 9), (0, 0)), **o)
    ),
    "samples overflow": (
        OverflowError, r"samples 72057594037927934 .*2\^56",
        lambda o: q_sample(x(), 1, S, Noise(1, sample=2**56 - 2), **o),
    ),
    "randn: samples overflow": (
        OverflowError, r"samples .*2\^56", lambda o: randn((4, 6), Noise(1, sample=2**56 - 3), **o)
    ),
    "q_step: step overflows": (
        OverflowError, r"step 4294967294 .*t = 2 .*2\^32",
        lambda o: q_step(x(), [0, 1, 2, 0], S, N.at(step=2**32 - 2), **o),
    ),
    "q_step: step overflows at once": (
        OverflowError, r"step 4294967294 .*t = 2 .*2\^32", lambda o: q_step(x(), 2, S, N.at(step=2**32 - 2), **o)
    ),
    "q_walk: step overflows": (
        OverflowError, r"step 4294967287 .*t = 9 .*2\^32", lambda o: q_walk(x(), S, N.at(step=2**32 - 9), **o)
    ),
    "elements overflow": (OverflowError, r"2\^34", lambda o: randn((1, 2**34 + 1), N)),
    "q_sample: elements overflow": (
        OverflowError, r"2\^34", lambda o: q_sample(np.broadcast_to(np.float32(0), (1, 2**34 + 1)), 1, S, N)
    ),
    # ---- shape, dtype, target, scale
    "shape negative": (ValueError, r"shape.*-1", lambda o: randn((4, -1), N)),
    "shape negative twice": (ValueError, r"shape \(-2, -3\): expected", lambda o: randn((-2, -3), N)),
    "shape of floats": (TypeError, r"shape: expected integers, got \(4\.0, 6\)", lambda o: randn((4.0, 6), N)),
    "shape an array of floats": (
        TypeError, r"shape: expected integers, got array\(\[4\., 6\.\]\)", lambda o: randn(np.array([4.0, 6.0]), N)
    ),
    "shape None": (TypeError, r"shape: expected integers, got None", lambda o: uniform(None, N)),
    "shape with None": (TypeError, r"shape: expected integers, got \(4, None\)", lambda o: randn((4, None), N)),
    "dtype int": (TypeError, r"dtype int64.*float32", lambda o: randn((4, 6), N, dtype=int)),
    "dtype unknown": (TypeError, r"dtype.*float9.*float32", lambda o: randn((4, 6), N, dtype="float9")),
    "dtype of another byte order": (TypeError, r"dtype >f4: expected", lambda o: randn((4, 6), N, dtype=">f4")),
    "dtype of half uniforms": (TypeError, r"float16.*float32, float64", lambda o: uniform((4, 6), N, dtype="float16")),
    "dtype of bfloat16 uniforms": (TypeError, r"bfloat16.*float32, float64", lambda o: uniform(6, N, dtype="bfloat16")),
    "q_sample: bytes into float16": (
        TypeError, "out: expected float32, got float16; for another dtype pass dtype=",
        lambda o: q_sample(x(dtype="u1"), 1, S, N, out=x(dtype="f2")),
    ),
    "q_sample: dtype uint8": (TypeError, r"dtype uint8.*float32", lambda o: q_sample(x(), 1, S, N, dtype="u1")),
    "target unknown": (
        ValueError, r"target = 'eps'.*'epsilon'.*'v'", lambda o: q_sample(x(), 1, S, N, target="eps", **o)
    ),
    "target by the word for predictions": (
        ValueError, r"target = 'flow_prediction': expected .*; z - x0 is called 'flow' here",
        lambda o: q_sample(x(), 1, S, N, target="flow_prediction", **o),
    ),
    "target by a plain word": (
        ValueError, r"target = 'noise': expected .*; z is called 'epsilon' here",
        lambda o: q_sample(x(), 1, S, N, target="noise", **o),
    ),
    "target by diffusers' word": (
        ValueError, r"'v_prediction': expected .*; alpha z - sigma x0 is called 'v' here",
        lambda o: q_sample(x(), 1, S, N, target="v_prediction", **o),
    ),
    "target_out without target": (
        ValueError, r"target_out.*target", lambda o: q_sample(x(), 1, S, N, target_out=x(), **o)
    ),
    "scale NaN": (ValueError, r"scale = nan.*finite", lambda o: q_sample(x(), 1, S, N, scale=NAN, **o)),
    "offset infinite": (ValueError, r"offset = inf.*finite", lambda o: q_sample(x(), 1, S, N, offset=np.inf, **o)),
    "scale an array": (TypeError, r"scale.*number", lambda o: q_sample(x(), 1, S, N, scale=x(), **o)),
    # ---- update
    "table a sampler": (
        TypeError, r"table: expected a noisefuse\.Tableau, such as sampler\.tableau, got Sampler",
        lambda o: nf.update(nf.samplers.ddim(S, 5), 0, x(), x(), **o),
    ),
    "row beyond every integer": (IndexError, r"i = \d{22} .*i < 5", lambda o: nf.update(TABLE, 2**70, x(), x(), **o)),
    "model output of another shape": (
        ValueError, r"model_output \(m1\): expected shape \(4, 6\), got \(6, 4\)",
        lambda o: nf.update(TABLE, 0, x(), x((6, 4)), **o),
    ),
    "past of another shape": (
        ValueError, r"past\[0\]: expected shape \(4, 6\), got \(24,\)",
        lambda o: nf.update(TABLE, 0, x(), x(), past=[x((24,))], **o),
    ),
    "model output a list": (
        TypeError, r"model_output: expected an array or a tuple \(m1, m2\), got list",
        lambda o: nf.update(TABLE, 0, x(), [x(), x()], **o),
    ),
    "past an array": (
        TypeError, r"past: expected a list or tuple of arrays, got ndarray",
        lambda o: nf.update(TABLE, 0, x(), x(), past=x(), **o),
    ),
    "aux_out an array": (
        TypeError, r"aux_out: expected a list or tuple of arrays, or a number of them, got ndarray",
        lambda o: nf.update(TABLE, 0, x(), x(), past=[x()], aux_out=x(), **o),
    ),
    "aux_out too many": (
        ValueError, r"expected at most .* 2 auxiliary outputs, got 1, 1 and 3",
        lambda o: nf.update(TABLE, 0, x(), x(), past=[x()], aux_out=[x(), x(), x()], **o),
    ),
    # ---- runs, tables, weights
    "sample: a number for a shape": (
        TypeError, r"x_or_shape = 16: expected a shape, such as \(8, 3, 32, 32\), or an array",
        lambda o: SAMPLER.sample(lambda x, t: x, 16, N),
    ),
    "sample: a seed for a noise": (
        TypeError, r"a new sample needs a Noise .*got 42: a bare seed .*nf\.Noise\(42",
        lambda o: SAMPLER.sample(lambda x, t: x, (4, 6), 42),
    ),
    "sample: a model that is none": (
        TypeError, r"model: expected a function, or a network, of \(x, t\), got int$",
        lambda o: SAMPLER.sample(5, (4, 6), N, **o),
    ),
    "sample: a model that returns nothing": (
        TypeError, r"model: expected an array like x, float32 of shape \(4, 6\), or a pair .*, got NoneType in row 0$",
        lambda o: SAMPLER.sample(lambda x, t: None, (4, 6), N, **o),
    ),
    "sample: later": (
        TypeError, "model: expected an array .*, got NoneType in row 3$",
        lambda o: SAMPLER.sample(lambda x, t: x if t > 300 else None, (4, 6), N, **o),
    ),
    "sample: a model that returns half a pair": (
        TypeError, "model: expected an array .* of them with guidance_scale, got NoneType in row 0$",
        lambda o: SAMPLER.sample(lambda x, t: (x, None), x(), N, guidance_scale=2.0, **o),
    ),
    "sample: a model that returns an object": (
        TypeError, r"model: expected an array .*, got Output in row 0; return its \.sample",
        lambda o: SAMPLER.sample(lambda x, t: Output(), x(), N, **o),
    ),
    "Tableau of a number": (
        TypeError, "rows: expected Row objects, or an array of dtype ROW, got int", lambda o: nf.Tableau(3)
    ),
    "weights with their arguments the other way round": (
        TypeError, r"schedule: expected a noisefuse\.Schedule, got str", lambda o: nf.weights.min_snr("v", S)
    ),
    "weights of a flow without a schedule": (
        TypeError, r"schedule: expected a noisefuse\.Schedule, got str", lambda o: nf.weights.cosmap("v", S)
    ),
    "strengths of a number": (
        TypeError, "noise: expected a Noise or a list of one for each sample, got 5: a bare seed",
        lambda o: nf.augment.strengths(3, 1.0, 2.0, 5),
    ),
    # ---- words, settings
    "words too few": (TypeError, r"counter.*4.*\(3,\)", lambda o: philox4x32([1, 2, 3], [1, 2])),
    "words too large": (OverflowError, r"key.*2\^32", lambda o: philox4x32([1, 2, 3, 4], [1, 2**32])),
    "words floats": (TypeError, r"counter.*float64", lambda o: philox4x32([1.0, 2, 3, 4], [1, 2])),
    "threads 0": (ValueError, r"num_threads = 0.*1 to", lambda o: nf.set_num_threads(0)),
    "threads 1025": (ValueError, r"num_threads = 1025.*from 1 to 1024", lambda o: nf.set_num_threads(1025)),
    "threads a bool": (TypeError, r"num_threads = True.*integer", lambda o: nf.set_num_threads(True)),
    "threads a float": (TypeError, r"num_threads = 2\.0.*integer", lambda o: nf.set_num_threads(2.0)),
    "threads a truth": (TypeError, r"num_threads = True.*integer", lambda o: nf.set_num_threads(True)),
    "backend none": (
        TypeError, r"backend None: expected one of native, numba, reference, or an object with the attributes of",
        lambda o: nf.use_backend(None),
    ),
    "backend a module": (TypeError, r"backend <module 'numpy'.*: expected one of nat", lambda o: nf.use_backend(np)),
    "backend unknown": (ValueError, r"backend 'gpu'.*native.*reference", lambda o: nf.use_backend("gpu")),
    "backend of a device": (
        ValueError, r"backend 'cuda': expected one of native, .*; cuda is chosen by where the arrays lie",
        lambda o: nf.use_backend("cuda"),
    ),
}  # fmt: skip


@pytest.fixture(params=["native", *NUMBA, "reference"], autouse=True)
def backend(request):
    with nf.use_backend(request.param):
        randn((2, 6), N)  # a first call by the checked path: Numba's fast path, which checks by itself, starts after it
        yield


@pytest.mark.parametrize("row", ROWS)
def test_bad_input(row):
    error, message, call = ROWS[row]
    out = np.full((len(S), 4, 6) if "q_walk" in row or "keep" in row else (4, 6), 7, np.float32)
    with pytest.raises(error, match=message):
        call({"out": out})
    assert (out == 7).all()


NUMBERS = {
    "steps = 2.5: expected an integer, got float": lambda: nf.Schedule.linear(2.5),
    "steps = True: expected an integer, got bool": lambda: nf.Schedule.linear(True),
    "order = 2.5: expected an integer, got float": lambda: nf.samplers.lms(S, 5, order=2.5),
    "order = 5: expected an integer from 1 to 4": lambda: nf.samplers.lms(S, 5, order=5),
    "levels = 0: expected an integer of at least 1": lambda: nf.fields.pyramid_like(x(), 0.8, N, levels=0),
    "mask_id = -1: expected an integer of at least 0": lambda: nf.discrete.absorbing(0.5, -1),
    "eta = [0.5]: expected a number, got list": lambda: nf.samplers.ddim(S, 5, eta=[0.5]),
    "eta = -1: expected a finite number of at least 0": lambda: nf.samplers.ddim(S, 5, eta=-1),
    "s = inf: expected a finite number above 0": lambda: nf.Schedule.cosine(s=np.inf),
    "gamma = nan: expected a number above 0": lambda: nf.weights.min_snr(S, "v", gamma=np.nan),
    "eps = 1: expected a finite number of at least 0 and below 1": lambda: nf.discrete.llada(1),
    f"mu = 1{'0' * 59}: expected a finite number": lambda: nf.Schedule.laplace(mu=10**400),
    "kind = 'x': expected 'inverse', 'elbo' or 'uniform'": lambda: nf.discrete.linear().weight(0.5, "x"),
    "kind = array([0, 1]): expected 'inverse', 'elbo' or 'uniform'": lambda: nf.discrete.linear().weight(
        0.5, np.arange(2)
    ),
}


@pytest.mark.parametrize("message", NUMBERS)
def test_checks_have_one_wording(message):
    """Seen to fail: "steps must be an integer, got 2.5" and "eta must be at least 0 and finite, got -1" beside these;
    an int beyond the floats' range that was no number; a list as eta, with Python's own error."""
    with pytest.raises((TypeError, ValueError)) as caught:
        NUMBERS[message]()
    assert str(caught.value) == message


def test_numpys_integers_are_integers():
    """Seen to fail: an order that was no Python int, alone and for each step."""
    assert nf.samplers.lms(S, 5, order=np.int64(2)) == nf.samplers.lms(S, 5, order=2)
    assert nf.samplers.dpm_solver(S, 5, order=np.int64(2)) == nf.samplers.dpm_solver(S, 5, order=2)


def test_the_last_of_each_range_is_none():
    """Seen to fail: the last sample id refused."""
    last = Noise(2**64 - 1, sample=2**56 - 4, step=2**32 - 1, stream=127)
    found = randn((4, 6), last)
    assert bits(found[3]) == bits(randn((1, 6), last.at(sample=2**56 - 1))[0])


# ---- outputs -----------------------------------------------------------------------------------------------

OPERATIONS = {
    "randn": lambda out: randn((4, 6), N, out=out),
    "uniform": lambda out: uniform((4, 6), N, out=out),
    "q_sample": lambda out: q_sample(x(), 1, S, N, out=out),
    "q_sample out with a target": lambda out: q_sample(x(), 1, S, N, target="v", out=out),
    "q_sample target_out": lambda out: q_sample(x(), 1, S, N, target="v", target_out=out),
    "q_step": lambda out: q_step(x(), 1, S, N, out=out),
    "q_walk": lambda out: q_walk(x((6,)), S, N, keep=[1, 3, 4, 7], out=out),
}


def unaligned():
    return np.full(4 * 6 * 4 + 1, 7, np.uint8)[1:].view(np.float32).reshape(4, 6)


def read_only():
    out = x()
    out.flags.writeable = False
    return out


OUTS = {
    "float64": (TypeError, r"out: expected dtype float32, got float64", lambda: x(dtype="f8")),
    "int32": (TypeError, r"out: expected dtype float32, got int32", lambda: x(dtype="i4")),
    "objects": (TypeError, r"out: expected dtype float32, got object", lambda: x(dtype=object)),
    "other byte order": (TypeError, r"out: expected dtype float32, got >f4", lambda: x(dtype=">f4")),
    "too small": (ValueError, r"out: expected shape \(4, 6\), got \(4, 5\)", lambda: x((4, 5))),
    "other axes": (ValueError, r"out: expected shape \(4, 6\), got \(24,\)", lambda: x((24,))),
    "to broadcast": (ValueError, r"out: expected shape \(4, 6\), got \(1, 6\)", lambda: x((1, 6))),
    "read-only": (ValueError, r"out: expected a writable array, got a read-only", read_only),
    "transposed": (ValueError, r"out: expected a C-contiguous", lambda: x((6, 4)).T),
    "strided": (ValueError, r"out: expected a C-contiguous", lambda: x((4, 12))[:, ::2]),
    "reversed": (ValueError, r"out: expected a C-contiguous", lambda: x()[::-1]),
    "unaligned": (ValueError, r"out: expected a C-contiguous, aligned", unaligned),
    "a list": (TypeError, r"out: expected an array of NumPy, CuPy or torch, got list", lambda: [[0.0] * 6] * 4),
    "masked": (TypeError, r"out: expected a plain numpy.ndarray, got MaskedArray", lambda: np.ma.zeros((4, 6), "f4")),
    "a matrix": (TypeError, r"out: expected a plain numpy.ndarray, got matrix", lambda: x().view(np.matrix)),
    "strange": (TypeError, r"out: expected an array of NumPy, CuPy or torch, got torchlike\.Stranger", Stranger),
}  # fmt: skip


WRITES = {
    "gaussian": lambda out: nf.augment.gaussian(x(), 1.0, N, out=out),
    "gaussian, at once": lambda out: nf.augment.gaussian(x(), 1, N, out=out),
    "multiplicative": lambda out: nf.augment.multiplicative(x(), 1.0, N, out=out),
    "sensor": lambda out: nf.augment.sensor(x(), 1.0, 1.0, N, out=out),
    "by_level": lambda out: nf.augment.by_level(x(dtype="u1"), np.ones(256), np.ones(256), N, out=out),
    "at_snr": lambda out: nf.augment.at_snr(x(), 1.0, N, out=out),
    "prepare": lambda out: nf.augment.prepare(x((2, 3, 3, 3), "u1"), noise=N, out=out),
    "density.update_with_log_prob": lambda out: nf.density.update_with_log_prob(POLICY, 1, x(), x(), N, out=out),
    "perturbed": lambda out: nf.fields.perturbed(x(), 5, S, 0.1, N, out=out),
}


@pytest.mark.parametrize("operation", WRITES)
@pytest.mark.parametrize("out", [5, [], "x"], ids=repr)
def test_outputs_that_are_no_arrays(operation, out):
    """Seen to fail: "AttributeError: 'int' object has no attribute 'dtype'"."""
    kind = type(out).__name__
    with pytest.raises(TypeError, match=f"out: expected an array of NumPy, CuPy or torch, got {kind}$"):
        WRITES[operation](out)


def test_a_models_own_error_where_there_is_neither_torch_nor_jax():
    """The network's library is named only if one is loaded."""
    code = """
import sys, noisefuse as nf
try:
    nf.samplers.ddim(nf.Schedule.linear(10), 3).sample(lambda x, t: t[:, None], (2, 3), nf.Noise(1))
except IndexError as error:
    print(not {"torch", "jax"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("bad", OUTS)
def test_bad_out(operation, bad):
    error, message, make = OUTS[bad]
    out = make()
    before = np.array(out)
    with pytest.raises(error, match=message):
        OPERATIONS[operation](out)
    assert (np.asarray(out) == before).all()


@pytest.mark.parametrize(("dtype", "start", "aligned"), [("f8", 4, False), ("f8", 8, True), ("f2", 2, True)])
def test_an_output_is_aligned_for_its_own_dtype(dtype, start, aligned):
    memory = np.zeros(500, np.uint8)
    first = -memory.ctypes.data % 8 + start
    out = memory[first : first + 24 * np.dtype(dtype).itemsize].view(dtype).reshape(4, 6)
    if aligned:
        assert randn((4, 6), N, dtype=dtype, out=out) is out
        return
    with pytest.raises(ValueError, match="out: expected a C-contiguous, aligned array"):
        randn((4, 6), N, dtype=dtype, out=out)


def test_types_of_strangers_are_not_kept():
    with pytest.raises(TypeError):
        q_sample(Stranger(), 1, S, N)
    assert Stranger not in libraries._libraries


def test_overlaps():
    """An output may not share memory with an input, unless it is that input, or with another output."""
    memory = np.arange(200, dtype=np.float32)
    before = memory.copy()

    def at(start, *shape):
        return memory[start : start + int(np.prod(shape))].reshape(shape)

    here, next_ = at(0, 4, 6), at(1, 4, 6)
    calls = [
        lambda: q_sample(here, 1, S, N, out=next_),
        lambda: q_sample(next_, 1, S, N, out=here),
        lambda: q_sample(here, 1, S, N, target="v", target_out=next_),
        lambda: q_sample(x(), 1, S, here, out=next_),
        lambda: q_sample(x(), 1, S, N, target="v", out=here, target_out=here),
        lambda: q_sample(x(), 1, S, N, target="v", out=here, target_out=next_),
        lambda: q_sample(here.view(np.uint8), 1, S, N, out=at(0, 4, 24)),
        lambda: q_step(here, 1, S, N, out=next_),
        lambda: q_step(here, 1, S, N, out=at(23, 4, 6)),
        lambda: q_step(at(23, 4, 6), 1, S, N, out=here),
        lambda: q_step(x(), 1, S, here, out=next_),
        lambda: q_walk(here, S, N, keep=[3, 5], out=at(0, 2, 4, 6)),
        lambda: q_walk(here, S, N, keep=[3, 5], out=at(23, 2, 4, 6)),
        lambda: q_walk(at(30, 4, 6), S, N, keep=[3, 5], out=at(0, 2, 4, 6)),
    ]
    for i, call in enumerate(calls):
        with pytest.raises(ValueError, match=r"out overlaps"):
            call()
        assert bits(memory) == bits(before), i
    for start in (0, 48):  # they touch
        for target in (None, "v"):
            q_sample(at(24, 4, 6), [1] * 4, S, N, target=target, out=at(start, 4, 6))
    q_walk(at(24, 4, 6), S, N, keep=[3], out=at(0, 1, 4, 6))
    q_walk(at(24, 4, 6), S, N, keep=[3], out=at(48, 1, 4, 6))


def test_jaxs_arrays_are_not_written_to():
    """Their memory may be another's. Seen to fail: `out` of JAX's, which was written to."""
    other = pytest.importorskip("jax.numpy").zeros((4, 6), "float32")
    for name, call in (
        ("out", lambda: randn((4, 6), N, out=other)),
        ("out", lambda: q_sample(x(), 1, S, N, out=other)),
        ("out", lambda: q_step(x(), 1, S, N, out=other)),
        ("noise", lambda: q_sample(x(), 1, S, other)),
    ):
        with pytest.raises(TypeError, match=rf"^{name}: expected "):
            call()
    assert (np.asarray(other) == 0).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: nf.q_sample([[1.0]], 5, Schedule.linear(), nf.Noise(0)),
            r"got list; np.asarray\(..\) makes one, and",
        ),
        (
            lambda: nf.q_sample(np.ones((2, 3), "f4"), 5, Schedule.linear(), np.ones((2, 3))),
            r'noise: dtype float64 .*float32; noise.astype\("float32"\) is one',
        ),
        (
            lambda: nf.samplers.ddim(Schedule.linear(), 3).step(0, np.ones((2, 3)), (np.ones((2, 3)),) * 2),
            "got a tuple of 2 and no guidance_scale; without guidance the model returns one array",
        ),
    ],
)
def test_an_error_says_what_to_write(call, words):
    """Seen to fail: what is wrong, alone."""
    with pytest.raises(TypeError, match=words):
        call()


def test_a_generator_of_torch_has_a_seed_to_take():
    """Seen to fail: `Noise.from_rng`, which refuses it."""
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"Noise\(seed\) or Noise\(generator.initial_seed\(\)\)"):
        nf.q_sample(np.ones((2, 3), "f4"), 5, Schedule.linear(), torch.Generator())


def test_a_name_that_does_not_exist_has_a_neighbour():
    """Python suggests dpmpp_2m where it knows the module. Seen to fail: an error without its module."""
    with pytest.raises(AttributeError) as raised:
        nf.samplers.dpmpp2m  # noqa: B018
    assert (raised.value.name, raised.value.obj) == ("dpmpp2m", nf.samplers)
    with pytest.raises(AttributeError) as raised:
        nf.randnn  # noqa: B018
    assert (raised.value.name, raised.value.obj) == ("randnn", nf)
