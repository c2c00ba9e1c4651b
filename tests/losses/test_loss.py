# SPDX-License-Identifier: Apache-2.0
"""mse_loss: the same bits from every backend, the loss with stored noise, the formula, its gradient; weights."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import noisefuse as nf
from conftest import BACKENDS, DTYPES, bits, using
from generated import (
    BYTES,
    CONTINUOUS,
    LINEAR,
    SCHEDULES,
    TARGETS,
    arrays,
    indices,
    noises,
    normals,
    real,
    shapes,
    targets,
)


def column(values, x):
    """Returns values, of t's shape, as they broadcast against x."""
    values = np.asarray(values)
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim)) if values.size > 1 else values.reshape(-1)[:1]


# ---- the same bits everywhere ------------------------------------------------------------------------------


@st.composite
def losses(draw):
    """Draws (arguments, keywords, dtype, upstream), with functions for the arrays that are made anew each time."""
    shape = draw(shapes | st.tuples(st.integers(1, 3), st.sampled_from([4095, 4096, 4097, 8200])))
    dtype, x0_type = draw(st.sampled_from(list(DTYPES.values()))), draw(st.sampled_from([*DTYPES.values(), BYTES]))
    schedule = draw(st.sampled_from(SCHEDULES))
    t, batched = draw(indices(shape, len(schedule))), draw(st.booleans())
    if np.size(t) > 3000:  # the reference has a step for each
        t = t[..., 0]
    rows = len(schedule)
    if schedule in CONTINUOUS and draw(st.booleans()):
        t = np.asarray(t) / len(schedule)
        rows = t.shape
    if np.ndim(t) and draw(st.booleans()):
        rows = (*np.shape(t), 1)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    reduction = draw(st.sampled_from(["mean", "none"]))
    keywords = {
        "target": draw(st.sampled_from(targets(schedule, t))),
        "weight": draw(st.sampled_from([None, rng.normal(size=rows)])),
        "reduction": reduction,
        "batched": batched,
        "scale": draw(st.sampled_from([None, None, 0.1, -2.0])),
        "offset": draw(st.sampled_from([None, None, 0.3, 0.0])),
    }
    noise = draw(noises(shape, batched) if draw(st.integers(0, 4)) else arrays(shape, DTYPES["float32"]))
    batch = shape[0] if batched and shape else 1
    upstream = rng.normal(size=batch if reduction == "none" and draw(st.booleans()) else ())
    arguments = draw(arrays(shape, dtype)), draw(arrays(shape, x0_type)), t, schedule, noise
    return arguments, keywords, upstream


def made(arguments):
    return [a() if callable(a) and not isinstance(a, nf.Schedule) else a for a in arguments]


def results(arguments, keywords, upstream):
    """Computes the loss alone; with its gradient, in a given or a new array; the gradient alone; over pred."""
    pred, *others = made(arguments)
    before = bits(pred)
    with np.errstate(all="ignore"):
        loss = nf.mse_loss(pred, *others, **keywords)
        gradient = nf.mse_loss_grad(pred, *others, **keywords, upstream=upstream)
        assert bits(pred) == before
        both = nf.mse_loss_and_grad(pred, *others, **keywords, out=np.empty(pred.shape, gradient.dtype))
        loss_too, made_too = nf.mse_loss_and_grad(pred, *others, **keywords)
        over = pred.astype(gradient.dtype, order="C")
        assert nf.mse_loss_grad(over, *others, **keywords, upstream=upstream, out=over) is over
    assert (gradient.shape, gradient.dtype) == (pred.shape, pred.dtype.newbyteorder("="))
    assert isinstance(loss, float) or loss.dtype == np.float64
    assert bits(np.float64(loss)) == bits(np.float64(both[0])) == bits(np.float64(loss_too))
    assert bits(made_too) == bits(both[1])
    assert made_too.dtype == gradient.dtype
    assert bits(over) == bits(gradient)
    return bits(np.float64(loss)), bits(gradient), bits(both[1])


@settings(deadline=None, max_examples=60)
@given(losses(), st.sampled_from([1, 2, 5]))
def test_the_same_bits_everywhere(call, threads):
    """Seen to fail: chunks of 2,048 in one backend; 32 accumulators; halving j, j + 1; half an ulp in the factor."""
    found = {}
    for name in BACKENDS:
        with using(name), nf.set_num_threads(threads):
            found[name] = results(*call)
    assert all(result == found["reference"] for result in found.values()), [
        name for name, result in found.items() if result != found["reference"]
    ]


def test_pieces_of_any_length():
    """Samples that begin and end anywhere in a tile. Seen to fail: a piece that goes on in the next tile taken for two;
    elements of the next piece in place of zeros; one piece's row for all; one factor for all."""
    table = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=9).tableau
    for length in (2, 3, 7, 31, 63, 64, 65, 80, 127, 129, 255, 257, 300, 350, 511, 512, 513, 770):
        batch = 2 + 2500 // length
        for dtype in (np.float32, np.float64, np.float16):
            a, b, c = (normals((batch, length), dtype, seed) for seed in range(3))
            times, each, found = np.arange(batch) % 9, np.arange(batch) + 0.5, {}
            for name in BACKENDS:
                with using(name):
                    weighted = {"weight": 0.1 + np.arange(1000), "reduction": "none"}
                    of_times = [
                        (
                            nf.density.kl(table, i, a, b),
                            nf.density.log_prob(table, i, a, b, c),
                            nf.density.kl_grad(table, i, a, b, upstream=each),
                            nf.density.kl_grad(table, i, a, b),
                            nf.density.log_prob_grad(table, i, a, b, c),
                            *nf.density.update_with_log_prob(table, i, a, b, nf.Noise(7)),
                            nf.mse_loss_grad(a, b, i, LINEAR, c, target="v"),
                            *nf.mse_loss_and_grad(a, b, i, LINEAR, c, target="v"),
                            *nf.mse_loss_and_grad(a, b, i, LINEAR, nf.Noise(7), target="v", **weighted),
                        )
                        for i in (3, times)
                    ]
                    found[name] = [bits(np.asarray(x)) for results in of_times for x in results]
            assert all(result == found["reference"] for result in found.values()), (length, dtype)


@pytest.mark.parametrize("elements", [4096, 8192])
def test_some_elements_at_a_time(elements, monkeypatch):
    """It has many pieces of few elements, or one in parts. Seen to fail: noise, rows or factors of the first for later
    ones, sums of a piece's last part in place of its first."""
    pytest.importorskip("numba")
    from noisefuse.backends.numba import jit

    monkeypatch.setattr(jit, "SLAB", elements)
    pred, x0, z = (normals((5, 3, 1500), np.float32, seed) for seed in range(3))
    ids = np.array([9, 2, 7, 2**40, 5], np.uint64)
    times, weight = np.arange(15).reshape(5, 3), 0.1 + np.arange(1000)
    for noise in (nf.Noise(1, sample=3), nf.Noise(1, sample=ids), [nf.Noise(seed) for seed in range(5)], z):
        for t in (7, times[:, 0], times):
            found = []
            for name in ("numba", "reference"):
                with using(name):
                    options = {"target": "v", "weight": weight, "reduction": "none"}
                    found.append(list(map(bits, nf.mse_loss_and_grad(pred, x0, t, LINEAR, noise, **options))))
            assert found[0] == found[1]


@settings(deadline=None, max_examples=100)
@given(losses(), st.data())
def test_drawn_noise_gives_the_loss_of_stored_noise(call, data):
    """Seen to fail: the field of step + t, and the window's start left out."""
    (pred, x0, t, schedule, noise), keywords, upstream = call
    if callable(noise):
        noise = data.draw(noises(pred().shape, keywords["batched"]))
    dtype = real(pred().dtype.newbyteorder("="))
    stored = nf.randn(pred().shape, noise, dtype=dtype, batched=keywords["batched"])
    drawn = results((pred, x0, t, schedule, noise), keywords, upstream)
    assert drawn == results((pred, x0, t, schedule, lambda: stored), keywords, upstream)


@pytest.mark.parametrize("shape", [(5, 1003), (3, 5000), (300, 3), (2, 64, 16)])
def test_a_fast_path_gives_the_bits_of_the_checked_path(native, threads, shape):
    """Plain calls take another path through the native backend: scale=1 is not plain."""
    rng = np.random.default_rng(0)
    pred, x0 = normals(shape, np.float32, 1), normals(shape, np.float32, 2)
    for target in TARGETS:
        for t in (7, rng.integers(0, 1000, shape[0])):
            for weight in (None, rng.random(1000)):
                for upstream in (1.0, 0.3):
                    given = (pred, x0, t, LINEAR, nf.Noise(3, sample=5, step=9))
                    options = {"target": target, "weight": weight}
                    plain, long = options, options | {"scale": 1.0}
                    assert nf.mse_loss(*given, **plain) == nf.mse_loss(*given, **long)
                    gradients = [nf.mse_loss_grad(*given, **o, upstream=upstream) for o in (plain, long)]
                    assert bits(gradients[0]) == bits(gradients[1])


# ---- the contract ------------------------------------------------------------------------------------------


def rounded(x, kind):
    """Returns a fraction rounded once to float32 or float64. Python's division of integers rounds once to float64; if
    float32 would round a second time, the fraction itself decides."""
    near = x.numerator / x.denominator
    if kind is np.float64:
        return near
    value = np.float32(near)
    options = [np.nextafter(value, np.float32(-np.inf)), value, np.nextafter(value, np.float32(np.inf))]
    even = sorted(options, key=lambda o: (abs(Fraction(float(o)) - x), int(o.view(np.int32)) & 1))
    return float(even[0])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 257, 4096, 4097, 4200])
@pytest.mark.parametrize("one", [False, True])
def test_the_order_of_the_sum_in_exact_arithmetic(backend, kind, n, one):
    """Computes docs/loss.md literally, on fractions. one: all but one accumulator is 0, so that none of its bits is
    lost.

    Seen to fail: a product and a sum in place of the fma, and the errors of the test above.
    """
    for seed in range(5 if one else 1):
        r = normals((1, n), kind, seed) * (np.arange(n) % 64 == 5 if one else kind(1))
        found = nf.mse_loss(r, None, 0, LINEAR, np.zeros_like(r), target="epsilon")
        assert found == float(sum_in_order(r[0], kind)) / n


def sum_in_order(r, kind):
    total = Fraction(0)
    for begin in range(0, len(r), 4096):
        sums = [Fraction(0)] * 64
        chunk = r[begin : begin + 4096]
        for i in np.flatnonzero(chunk):
            sums[i % 64] = Fraction(rounded(sums[i % 64] + Fraction(float(chunk[i])) ** 2, kind))
        while len(sums) > 1:
            half = len(sums) // 2
            sums = [Fraction(rounded(a + b, kind)) for a, b in zip(sums[:half], sums[half:], strict=True)]
        total = Fraction(rounded(total + sums[0], np.float64))
    return total


def test_two_samples_have_two_losses(backend):
    """Seen to fail: only three or more pieces had it."""
    r, zeros = normals((2, 7), np.float32), np.zeros((2, 7), np.float32)
    alone = [nf.mse_loss(r[[b]], None, 0, LINEAR, zeros[[b]], target="epsilon") for b in range(2)]
    assert nf.mse_loss(r, None, 0, LINEAR, zeros, target="epsilon", reduction="none").tolist() == alone


def test_pieces_samples_and_their_mean_in_exact_arithmetic(backend):
    """Counts are powers of two, so sums can be recovered from means. Seen to fail: weight times sum, then added; pieces
    or samples added in another order."""
    pred, t = normals((8, 4, 64), np.float32), np.arange(32).reshape(8, 4)
    weight = 1 + normals(1000, np.float64, 1) ** 2
    noise, total = 0 * pred, Fraction(0)
    for b in range(8):
        sample = Fraction(0)
        for k in range(4):
            piece = 64 * nf.mse_loss(pred[b, k : k + 1], None, 0, LINEAR, noise[b, k : k + 1], target="epsilon")
            sample = Fraction(rounded(Fraction(weight[t[b, k]]) * Fraction(piece) + sample, np.float64))
        own = pred[b : b + 1], None, t[b : b + 1], LINEAR, noise[b : b + 1]
        assert nf.mse_loss(*own, target="epsilon", weight=weight) == float(sample) / 256
        total = Fraction(rounded(total + sample, np.float64))
    given = pred, None, t, LINEAR, noise
    assert nf.mse_loss(*given, target="epsilon", weight=weight) == float(total) / 2048


def test_a_samples_loss_does_not_depend_on_its_batch(backend, threads):
    pred, x0, t = (
        normals((6, 5, 900), np.float32, 1),
        normals((6, 5, 900), np.float32, 2),
        np.array([1, 900, 0, 5, 7, 9]),
    )
    for noise in (nf.Noise(1, sample=2**32 - 3), nf.Noise(1, step=3).window((8, 1000), (2, 33))):
        each = nf.mse_loss(pred, x0, t, LINEAR, noise, target="v", reduction="none")
        for b in range(6):
            own = pred[b : b + 1], x0[b : b + 1], t[b : b + 1], LINEAR, noise.at(sample=noise.sample + b)
            assert nf.mse_loss(*own, target="v") == each[b]
            assert nf.mse_loss(*own, target="v", batched=True, reduction="none") == each[b]
        listed = [noise.at(sample=noise.sample + b) for b in range(6)]
        assert (nf.mse_loss(pred, x0, t, LINEAR, listed, target="v", reduction="none") == each).all()


def test_a_gradient_is_its_factor_times_the_residual(backend, dtype):
    """With g = n / 2 the factor is 1, and the residual of epsilon is the rounded difference."""
    pred, noise = normals((4, 300), dtype), nf.Noise(5)
    z = nf.randn(pred.shape, noise, dtype=real(dtype))
    found = nf.mse_loss_grad(pred, None, 3, LINEAR, noise, target="epsilon", upstream=600.0)
    assert bits(found) == bits((pred.astype(real(dtype)) - z).astype(dtype))


# ---- the formula -------------------------------------------------------------------------------------------


@pytest.fixture(params=list(DTYPES))
def dtype(request):
    return DTYPES[request.param]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(4, 9000), (4, 6, 50)])
def test_the_formula_within_a_bound(backend, dtype, target, shape):
    """Each residual has at most 5 roundings of numbers that its terms bound, and a sum of 4,096 squares has 72 more.

    Seen to fail: scale left out of the offset's column; the weight of t + 1.
    """
    pred, x0, noise = normals(shape, dtype, 1), normals(shape, dtype, 2), nf.Noise(1)
    t = np.arange(4 * 6).reshape(4, 6)[:, : shape[1] if len(shape) == 3 else 1] * 41
    t = t if len(shape) == 3 else t[:, 0]
    weight = np.linspace(0.5, 2, 1000)
    z = nf.randn(shape, noise, dtype=real(dtype)).astype(np.longdouble)
    of_x, of_z = {
        "epsilon": (0, 1),
        "v": (-column(LINEAR.sigma[t], x0), column(LINEAR.alpha[t], x0)),
        "flow": (-1, 1),
        "sample": (1, 0),
    }[target]
    x = 0.5 * x0.astype(np.longdouble) - 0.25
    r = pred.astype(np.longdouble) - (of_x * x + of_z * z)
    u = np.finfo(real(dtype)).eps / 2
    error = 5 * u * (abs(pred.astype(np.longdouble)) + abs(of_x) * (abs(x) + 0.5) + abs(of_z * z))
    w = column(weight[t], x0)
    given = pred, x0, t, LINEAR, noise
    options = {"target": target, "scale": 0.5, "offset": -0.25, "weight": weight}
    axes = tuple(range(1, len(shape)))
    exact, slack = (w * r**2).mean(axes), (w * (2 * abs(r) * error + error**2)).mean(axes)
    found = nf.mse_loss(*given, **options, reduction="none")
    assert (abs(found - exact) <= slack + 72 * u * exact).all()
    assert abs(nf.mse_loss(*given, **options) - exact.mean()) <= slack.mean() + 72 * u * exact.mean()
    factor = 2 * w * 1000 / r.size
    gradient = nf.mse_loss_grad(*given, **options, upstream=1000.0).astype(np.longdouble)
    store = 0 if dtype == real(dtype) else 2.0 ** (-8 if dtype == DTYPES["bfloat16"] else -11)
    assert (abs(gradient - factor * r) <= factor * (error + (2 * u + store) * abs(r)) + 2.0**-25).all()


def test_half_predictions_are_summed_in_float32(backend):
    for name in ("float16", "bfloat16"):
        pred = normals((3, 5000), DTYPES[name])
        given = None, 10, LINEAR, nf.Noise(1)
        found = nf.mse_loss(pred, *given, target="epsilon")
        assert found == nf.mse_loss(pred.astype(np.float32), *given, target="epsilon")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_noise_that_is_stored_in_float32_beside_halves(backend, dtype):
    """Seen to fail: kernels read it as halves if x0 has the prediction's type."""
    types = DTYPES[dtype], DTYPES[dtype], np.float32
    pred, x0, z = (normals((2, 5000), kind, seed) for seed, kind in enumerate(types))
    found = nf.mse_loss(pred, x0, 3, LINEAR, z, target="v")
    with using("reference"):
        assert bits(found) == bits(nf.mse_loss(pred, x0, 3, LINEAR, z, target="v"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_gradient_against_finite_differences(backend, target, reduction):
    """Central differences of a quadratic are exact up to rounding. Seen to fail: without the 2; n of one sample."""
    pred, x0, t = normals((3, 4, 2), np.float64, 1), normals((3, 4, 2), np.float64, 2), np.arange(12).reshape(3, 4) * 60
    weight = np.linspace(0.5, 2, 1000)
    given, options = (x0, t, LINEAR, nf.Noise(1)), {"target": target, "weight": weight, "reduction": reduction}
    upstream = 0.7 if reduction == "mean" else np.array([0.5, -1.0, 2.0])
    gradient = nf.mse_loss_grad(pred, *given, **options, upstream=upstream)
    for at in np.ndindex(pred.shape):
        step = np.zeros_like(pred)
        step[at] = 0.5
        difference = nf.mse_loss(pred + step, *given, **options) - np.asarray(
            nf.mse_loss(pred - step, *given, **options)
        )
        assert np.sum(upstream * difference) == pytest.approx(gradient[at], rel=1e-12, abs=1e-13)


def test_float_times_and_their_weights(backend):
    flow, pred, x0 = CONTINUOUS[1], normals((4, 70), np.float64, 1), normals((4, 70), np.float64, 2)
    t, w = np.array([0.1, 0.5, 0.9, 1.0]), np.array([1.0, 2.0, 0.0, 4.0])
    z = nf.randn(pred.shape, nf.Noise(1), dtype="float64")
    for weight in (w, w[:, None], w[:, None, None]):  # seen to fail: (B, 1) was refused
        found = nf.mse_loss(pred, x0, t, flow, nf.Noise(1), target="flow", weight=weight)
        assert found == pytest.approx((w[:, None] * (pred - (z - x0)) ** 2).mean(), rel=1e-13)


@pytest.mark.parametrize("t", [[3, 999, 0, 500], [5], np.arange(12).reshape(4, 3) * 60], ids=["(B,)", "(1,)", "(B, N)"])
def test_a_weight_for_each_integer_time(backend, t):
    """It has the bits of a row that holds these weights at these times. Seen to fail: (B, 1) was refused, the first
    rows of the schedule were taken, and partial losses took the weights by step."""
    t = np.asarray(t)
    pred, x0 = normals((len(t), 3, 5000), np.float32, 1), normals((len(t), 3, 5000), np.float32, 2)
    w, row = np.linspace(0, 2, t.size).reshape(t.shape) + 0.5, np.zeros(1000)
    row[t] = w
    for reduction in ("mean", "none"):
        given, options = (pred, x0, t, LINEAR, nf.Noise(1)), {"target": "v", "reduction": reduction}
        expected = nf.mse_loss_and_grad(*given, **options, weight=row)
        for each in (w[..., None], w[..., None, None].tolist()):
            found = nf.mse_loss_and_grad(*given, **options, weight=each)
            assert [bits(np.asarray(a)) for a in found] == [bits(np.asarray(a)) for a in expected]
            part = nf.mse_loss(*given, **options, weight=each, partial=True)
            assert bits(np.asarray(nf.density.combine([part]))) == bits(np.asarray(expected[0]))


def test_bytes_are_images_in_minus_one_to_one(backend):
    x0 = np.arange(256, dtype=np.uint8).reshape(4, 64)
    pred = (x0 / 127.5 - 1).astype(np.float32)
    assert nf.mse_loss(pred, x0, 3, LINEAR, nf.Noise(1), target="sample") < 1e-13
    found = nf.mse_loss(pred, x0, 3, LINEAR, nf.Noise(1), target="v")
    assert found == pytest.approx(nf.mse_loss(pred, pred, 3, LINEAR, nf.Noise(1), target="v"), rel=1e-5)


def test_nan_and_infinity_stay_in_their_sample(backend):
    pred = normals((4, 5000), np.float32)
    pred[1, 4999], pred[2, 0] = np.nan, np.inf
    weight = np.ones(1000)
    weight[7] = 0
    for t, expected in ((3, [False, True, False, False]), (7, [False, True, True, False])):  # 0 times infinity
        each = nf.mse_loss(pred, None, t, LINEAR, nf.Noise(1), target="epsilon", weight=weight, reduction="none")
        assert np.isnan(each).tolist() == expected
    assert each[0] == 0
    gradient = nf.mse_loss_grad(pred, None, 3, LINEAR, nf.Noise(1), target="epsilon")
    assert np.isfinite(gradient).sum() == pred.size - 2


def test_no_elements(backend):
    for shape in ((0, 5), (3, 0)):
        pred = np.zeros(shape, np.float32)
        given = pred, pred, 3, LINEAR, nf.Noise(1)
        assert math.isnan(nf.mse_loss(*given, target="v"))
        assert nf.mse_loss(*given, target="v", reduction="none").shape == shape[:1]
        assert nf.mse_loss_grad(*given, target="v").shape == shape


# ---- errors ------------------------------------------------------------------------------------------------


def x(dtype=np.float32, shape=(4, 6)):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pred": [1.0]}, TypeError, "pred: expected an array of NumPy, .* DLPack, got list"),
        ({"pred": x(np.int64)}, TypeError, "pred: dtype int64 is not supported"),
        ({"x0": None}, TypeError, "x0: expected an array of NumPy, .* DLPack, got NoneType"),
        ({"x0": x(shape=(4, 5))}, ValueError, r"x0: expected pred's shape \(4, 6\), got \(4, 5\)"),
        ({"t": 1000}, IndexError, "t = 1000 is out of range"),
        ({"t": 0.5}, TypeError, "linear schedule has no continuous time"),
        ({"schedule": 5}, TypeError, "schedule: expected a noisefuse.Schedule, got int"),
        ({"noise": 5}, TypeError, "noise: expected a Noise.* got 5: a bare seed"),
        ({"noise": None}, TypeError, "noise: expected a Noise"),
        ({"noise": None, "target": "sample"}, TypeError, "noise: expected a Noise"),
        ({"pred": (x(), x())}, TypeError, "pred: expected an array of NumPy.* got tuple"),
        ({"noise": x(shape=(4, 5))}, ValueError, r"noise: expected shape \(4, 6\)"),
        ({"noise": nf.Noise(1, sample=2**56 - 3)}, OverflowError, "go beyond"),
        ({"target": "x"}, ValueError, "target = 'x': expected 'epsilon', 'v', 'flow', 'sample' or 'velocity'"),
        ({"target": None}, ValueError, "target = None: expected"),
        ({"reduction": "sum"}, ValueError, "reduction = 'sum': expected 'mean' or 'none'"),
        (
            {"t": [1, 2, 3, 4], "weight": np.ones(4)},
            ValueError,
            r"weight: expected one for each step of the schedule, \(1000,\), got \(4,\); \(4, 1\) is one for each t",
        ),
        (
            {"weight": np.ones(4)},
            ValueError,
            r"weight: expected one for each step of the schedule, \(1000,\), got \(4,\)",
        ),
        (
            {"weight": np.ones((1000, 1))},
            ValueError,
            r"weight: expected one for each step of the schedule, \(1000,\), got \(1000, 1\)",
        ),
        ({"target": "x0"}, ValueError, "target = 'x0': expected .*; x0 is called 'sample' here"),
        (
            {"weight": np.full(1000, np.nan)},
            ValueError,
            r"weight\[3\] = nan: expected finite numbers where t takes them",
        ),
        (
            {"weight": np.r_[np.ones(999), np.inf], "t": np.array([0, 3, 999, 3])},
            ValueError,
            r"weight\[999\] = inf: expected finite numbers where t takes them .*alpha = 0",
        ),
        (
            {"weight": [1, np.inf, 1, 1], "t": [0.1, 0.2, 0.3, 1.0], "schedule": nf.Schedule.flow(10)},
            ValueError,
            r"weight\[1\] = inf: expected",
        ),
        ({"weight": np.full(1000, "a")}, TypeError, "weight: expected numbers"),
        ({"scale": math.inf}, ValueError, "scale = inf: expected a finite number"),
        ({"out": x(np.float64)}, TypeError, "out: expected dtype float32, got float64"),
        ({"out": x(shape=(4, 5))}, ValueError, r"out: expected shape \(4, 6\)"),
        ({"upstream": np.ones(4)}, ValueError, r"upstream: expected a number, got shape \(4,\)"),
        (
            {"upstream": np.ones(3), "reduction": "none"},
            ValueError,
            r"upstream: expected a number or shape \(4,\), got",
        ),
    ],
)
def test_errors(change, error, message):
    given = {"pred": x(), "x0": x(), "t": 3, "schedule": LINEAR, "noise": nf.Noise(1), "target": "v"} | change
    for target in TARGETS:  # a first call each: the fast path, which checks by itself, starts after it
        nf.mse_loss(x(), x(), 3, LINEAR, nf.Noise(1), target=target)
    out = given.setdefault("out", np.zeros((4, 6), np.float32))
    before = out.copy()
    with pytest.raises(error, match=message):
        nf.mse_loss_grad(**given)
    assert (out == before).all()
    if "upstream" not in change:
        with pytest.raises(error, match=message):
            nf.mse_loss_and_grad(**given)
        assert (out == before).all()


def test_a_gradient_over_a_part_of_an_input_is_refused():
    memory = np.zeros(100, np.float32)
    pred, out = memory[:24].reshape(4, 6), memory[12:36].reshape(4, 6)
    with pytest.raises(ValueError, match="out overlaps an input in part"):
        nf.mse_loss_and_grad(pred, None, 3, LINEAR, nf.Noise(1), target="epsilon", out=out)
    assert not memory.any()


# ---- weights -----------------------------------------------------------------------------------------------

FLOW = nf.Schedule.flow(1000)
VP = [nf.Schedule.linear(), nf.Schedule.cosine(500), nf.Schedule.scaled_linear().rescale_zero_terminal_snr()]


@pytest.mark.parametrize("schedule", VP, ids=lambda s: s.kind)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_that_of_the_paper(schedule, gamma):
    """Compares with Hang et al.: min(SNR, gamma) for x0; over SNR for epsilon (1 if it is 0); over SNR + 1 for v."""
    snr = schedule.snr
    clipped = np.minimum(snr, gamma)
    with np.errstate(invalid="ignore"):
        epsilon = np.where(snr == 0, 1.0, clipped / snr)
    for target, expected in (("sample", clipped), ("epsilon", epsilon), ("v", clipped / (snr + 1))):
        found = nf.weights.min_snr(schedule, target, gamma=gamma)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-300)


def test_edm_is_that_of_the_paper():
    """Karras et al., table 1: lambda(sigma) on the loss of D; the loss of F has lambda c_out^2 = 1."""
    karras = nf.Schedule.karras(50)
    sigma, data = karras.sigma, 0.5
    weight = nf.weights.edm(karras, "sample", sigma_data=data)
    np.testing.assert_allclose(weight, (sigma**2 + data**2) / (sigma * data) ** 2)
    c_out = sigma * data / np.hypot(sigma, data)
    np.testing.assert_allclose(weight * c_out**2, 1)


def test_stable_diffusions_weights_are_those_of_the_paper():
    """Compares their formulas, and the densities of the times that they stand for."""
    s, weights = FLOW.sigma[:-1], nf.weights
    logit = np.log(s / (1 - s))
    for mean, std in ((0, 1), (0.5, 0.6)):
        bell = np.exp(-((logit - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi) * s * (1 - s))
        found = weights.logit_normal(FLOW, "flow", mean=mean, std=std)
        np.testing.assert_allclose(found, [*bell, 0.0], rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(
        weights.cosmap(FLOW, "flow"), 2 / (math.pi - 2 * math.pi * FLOW.sigma + 2 * math.pi * FLOW.sigma**2)
    )
    many = (np.arange(1_000_000) + 0.5) / 1_000_000
    for scale in (-0.8, 0.0, 1.29):
        times = 1 - many - scale * (np.cos(math.pi * many / 2) ** 2 - 1 + many)
        density, _ = np.histogram(times, 100, (0, 1), density=True)
        middles = weights.mode(FLOW, "flow", scale=scale, t=(np.arange(100) + 0.5) / 100)
        np.testing.assert_allclose(middles[1:-1], density[1:-1], rtol=0.01)
        u = np.array([0.03, 0.2, 0.5, 0.9])
        slope = 1 + scale - scale * math.pi * np.cos(math.pi * u / 2) * np.sin(math.pi * u / 2)  # of -f
        there = 1 - u - scale * (np.cos(math.pi * u / 2) ** 2 - 1 + u)
        np.testing.assert_allclose(weights.mode(FLOW, "flow", scale=scale, t=there), 1 / slope, rtol=1e-11)


def test_weights_are_those_of_diffusers():
    torch = pytest.importorskip("torch")
    training = pytest.importorskip("diffusers.training_utils")
    sigmas = torch.tensor(FLOW.sigma.copy())
    for name, found in (
        ("cosmap", nf.weights.cosmap(FLOW, "flow")),
        ("sigma_sqrt", nf.weights.like(FLOW, "sample", "flow")),
    ):
        np.testing.assert_allclose(found, training.compute_loss_weighting_for_sd3(name, sigmas).numpy(), rtol=1e-6)
    scheduler = pytest.importorskip("diffusers").DDPMScheduler()
    snr = training.compute_snr(scheduler, torch.arange(1000)).numpy()
    np.testing.assert_allclose(nf.weights.min_snr(LINEAR, "epsilon"), np.minimum(snr, 5) / snr, rtol=1e-3)


@pytest.mark.parametrize("schedule", [LINEAR, FLOW, nf.Schedule.karras(30)], ids=lambda s: s.kind)
def test_a_weight_means_the_same_for_every_target(schedule):
    """Predictions that imply one x0 have one weighted loss, whatever they predict. Seen to fail: v's factor / alpha."""
    t, x0, wrong = np.array([3, 11, 29]), normals((3, 400), np.float64, 1), normals((3, 400), np.float64, 2)
    alpha, sigma = column(schedule.alpha[t], x0), column(schedule.sigma[t], x0)
    z = nf.randn(x0.shape, nf.Noise(1), dtype="float64")
    implied = z + alpha / sigma * (x0 - wrong)  # the z with which x_t has this x0
    predictions = {
        "epsilon": implied,
        "sample": wrong,
        "v": alpha * implied - sigma * wrong,
        "flow": implied - wrong,
    }
    for make in (nf.weights.min_snr, nf.weights.edm, nf.weights.logit_normal, nf.weights.mode, nf.weights.cosmap):
        found = [
            nf.mse_loss(pred, x0, t, schedule, nf.Noise(1), target=target, weight=make(schedule, target))
            for target, pred in predictions.items()
        ]
        np.testing.assert_allclose(found, found[0], rtol=1e-9)


def test_weights_at_times():
    t = np.array([[0.25, 0.5], [0.75, 1.0]])
    for make in (nf.weights.min_snr, nf.weights.edm, nf.weights.logit_normal, nf.weights.mode, nf.weights.cosmap):
        row = make(FLOW, "flow")
        np.testing.assert_allclose(make(FLOW, "flow", t=t), row[(1000 * t - 1).astype(int)], rtol=1e-12)
        assert make(FLOW, "flow", t=[3, 999]).tolist() == row[[3, 999]].tolist()


def test_rows_of_weights_are_made_once_and_kept_for_few(monkeypatch):
    """Equal schedules share a row; a caller's change of a result changes no other. Seen to fail: the kept row returned
    without a copy, and a row made at each call."""
    weights, made = nf.weights, []
    monkeypatch.setattr(weights, "_mode", lambda s, scale, mode=weights._mode: made.append(scale) or mode(s, scale))
    first, again = (weights.mode(nf.Schedule.flow(77), "flow", scale=0.3) for _ in range(2))
    assert made == [0.3]
    expected = first.tolist()
    first[:] = 7
    at = weights.mode(nf.Schedule.flow(77), "flow", scale=0.3, t=[3, 5])
    at[:] = 7
    assert again.tolist() == weights.mode(nf.Schedule.flow(77), "flow", scale=0.3).tolist() == expected
    assert weights.mode(nf.Schedule.flow(77), "flow", scale=0.3, t=5).tolist() == expected[5]
    for n in range(40):
        weights.mode(nf.Schedule.flow(77), "flow", scale=n / 100)
    assert weights._row.cache_info().currsize <= 16


def test_times_are_drawn_in_proportion():
    row = np.array([0.0, 1.0, 3.0, 0.0, 4.0, 0.0])
    u = nf.uniform((1000, 100), nf.Noise(1))
    t = nf.weights.draw(row, u)
    assert (t.shape, t.dtype) == (u.shape, np.int64)
    found = np.bincount(t.ravel(), minlength=6)
    assert found[[0, 3, 5]].tolist() == [0, 0, 0]
    assert (abs(found - 1e5 * row / 8) <= 5 * np.sqrt(1e5 * row / 8)).all()
    assert nf.weights.draw(row, [0.0, 0.125, np.nextafter(1, 0)]).tolist() == [1, 2, 4]
    with pytest.raises(ValueError, match="row: expected"):
        nf.weights.draw(-row, u)
    for row_of_nothing in ([], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf], [[1.0]]):
        with pytest.raises(ValueError, match="row: expected"):
            nf.weights.draw(row_of_nothing, u)
    for bad in (1.0, -0.25, math.nan):
        with pytest.raises(ValueError, match=rf"u = {bad}: expected numbers in \[0, 1\)"):
            nf.weights.draw(row, [0.5, bad])


def test_weights_at_the_ends_are_as_near_to_them():
    for target, other in itertools.permutations(("epsilon", "v", "flow", "sample"), 2):
        ends, near = (nf.weights.like(FLOW, target, other, t=t) for t in ([0.0, 1.0], [1e-12, 1 - 1e-12]))
        np.testing.assert_allclose(np.minimum(ends, 1e20), np.minimum(near, 1e20), atol=1e-9)


def test_weights_that_are_infinite_by_nature():
    """Epsilon's weights at alpha = 0: a density that is 0 there is no loss, and min(SNR, gamma) caps the others."""
    schedule, found = nf.Schedule.linear().rescale_zero_terminal_snr(), nf.weights
    for row in (found.edm(schedule, "epsilon"), found.mode(schedule, "epsilon"), found.cosmap(schedule, "epsilon")):
        assert np.flatnonzero(np.isinf(row)).tolist() == [999]
    assert np.isinf(found.like(schedule, "epsilon", "v")).sum() == 1
    assert np.isfinite(found.min_snr(schedule, "epsilon")).all()
    assert np.isfinite(found.logit_normal(schedule, "epsilon")).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: nf.weights.min_snr(LINEAR, "x"),
        lambda: nf.weights.min_snr(LINEAR, "flow_prediction"),
        lambda: nf.weights.min_snr(LINEAR, "v", gamma=0),
        lambda: nf.weights.edm(LINEAR, "v", sigma_data=-1),
        lambda: nf.weights.logit_normal(LINEAR, "v", std=0),
        lambda: nf.weights.mode(LINEAR, "v", scale=2),
        lambda: nf.weights.cosmap(LINEAR, "x"),
    ],
)
def test_errors_of_weights(call):
    with pytest.raises(ValueError, match=r"(target|gamma|sigma_data|std|scale)( =| must)"):
        call()
