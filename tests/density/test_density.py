# SPDX-License-Identifier: Apache-2.0
"""Log-densities of steps: against the closed form, between backends, alone and in batches, whole and in parts."""

import math
import pickle

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, using
from noisefuse import backends
from noisefuse.density import kl, kl_grad, log_prob, log_prob_grad, update_with_log_prob

FLOW, LINEAR = nf.Schedule.flow(1000), nf.Schedule.linear(1000)
N = nf.Noise(7, sample=3)
TABLES = {
    "flow_sde": nf.samplers.flow_sde(FLOW, 10).tableau,
    "flow_cps": nf.samplers.flow_cps(FLOW, 10).tableau,
    "dance_sde": nf.samplers.dance_sde(FLOW, 10).tableau,
    "ddim": nf.samplers.ddim(LINEAR, 10, eta=1.0).tableau,
    "ddpm": nf.samplers.ddpm(LINEAR, 10).tableau,
}
SECOND_ORDER = nf.samplers.dpmpp_2m_sde(LINEAR, 10).tableau
SHAPES = [(3, 5), (2, 4, 64, 64), (4, 7, 600), (1, 1)]


def arrays(shape, dtype="float32", n=2):
    return tuple(nf.randn(shape, nf.Noise(100 + k), dtype="float64").astype(DTYPES[dtype]) for k in range(n))


def closed_form(table, i, x, m, x_next):
    """Computes the density in float64, from the row."""
    row = table.unfolded().rows["out"][i]
    mean = row["k"] + row["x"] * x.astype(np.float64) + row["m1"] * m.astype(np.float64)
    std = row["z"]
    each = -((x_next.astype(np.float64) - mean) ** 2) / (2 * std * std) - math.log(std) - 0.5 * math.log(2 * math.pi)
    return each.reshape(len(x), -1).sum(axis=1)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("i", [0, 4, 8])
def test_it_is_the_density_of_the_gaussian(name, i):
    """Seen to fail: the constant halved, std in place of its square, the coefficient of D left out."""
    table = TABLES[name]
    x, m = arrays((2, 4, 64, 64))
    x_next, found = update_with_log_prob(table, i, x, m, N)
    assert x_next.tobytes() == nf.update(table, i, x, m, noise=N).tobytes()
    np.testing.assert_allclose(found, closed_form(table, i, x, m, x_next), rtol=1e-6)
    mean = log_prob(table, i, x, m, x_next, reduction="mean")
    np.testing.assert_allclose(mean, found / x[0].size, rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_and_what_it_stored_have_the_same_bits_on_all_backends(backend, dtype, shape):
    """Seen to fail: the residual of x' before it is rounded to 16 bits."""
    table, (x, m) = TABLES["flow_sde"], arrays(shape, dtype)
    with using("reference"):
        expected, density = update_with_log_prob(table, 4, x, m, N)
    x_next, found = update_with_log_prob(table, 4, x, m, N)
    assert (x_next.tobytes(), found.tobytes()) == (expected.tobytes(), density.tobytes())
    assert log_prob(table, 4, x, m, x_next).tobytes() == found.tobytes()


@pytest.mark.parametrize(
    "dtypes", [("float64", "float32"), ("float32", "float16"), ("float32", "float64")], ids="-".join
)
def test_a_model_output_of_another_dtype_is_as_if_converted(backend, dtypes):
    """Seen to fail: a float32 one beside float64, which chose float32 arithmetic for memory of float64."""
    table, (x,), (m,) = TABLES["dance_sde"], arrays((3, 5000), dtypes[0], 1), arrays((3, 5000), dtypes[1], 1)
    x_next, found = update_with_log_prob(table, 4, x, m, N)
    expected, density = update_with_log_prob(table, 4, x, m.astype(x.dtype), N)
    assert (x_next.tobytes(), found.tobytes()) == (expected.tobytes(), density.tobytes())
    np.testing.assert_allclose(found, closed_form(table, 4, x, m.astype(x.dtype), x_next), rtol=1e-5)
    assert log_prob(table, 4, x, m, x_next).tobytes() == found.tobytes()
    gradients = [log_prob_grad(table, 4, x, one, x_next) for one in (m, m.astype(x.dtype))]
    assert gradients[0].tobytes() == gradients[1].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_alone_and_in_a_batch(dtype):
    """Seen to fail: samples of a chunk that begins before them."""
    table, (x, m) = TABLES["flow_cps"], arrays((64, 3, 40, 40), dtype)
    noises = [nf.Noise(n, sample=n * n) for n in range(64)]
    x_next, found = update_with_log_prob(table, 5, x, m, noises)
    for b in range(0, 64, 7):
        alone, density = update_with_log_prob(table, 5, x[b : b + 1], m[b : b + 1], noises[b])
        assert alone.tobytes() == x_next[b].tobytes()
        assert density[0] == found[b]


def test_threads_change_nothing(threads):
    table, (x, m) = TABLES["flow_sde"], arrays((5, 7, 80, 80))
    with nf.set_num_threads(1):
        expected = update_with_log_prob(table, 3, x, m, N)
    with nf.set_num_threads(threads):
        found = update_with_log_prob(table, 3, x, m, N)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


@pytest.mark.parametrize("out", ["x", "m", "new"])
def test_in_place(out):
    table, (x, m) = TABLES["flow_sde"], arrays((2, 9, 1000))
    expected, density = update_with_log_prob(table, 3, x, m, N)
    to = {"x": x, "m": m, "new": np.empty_like(x)}[out]
    found, same = update_with_log_prob(table, 3, x, m, N, out=to)
    assert found is to
    assert (found.tobytes(), same.tobytes()) == (expected.tobytes(), density.tobytes())


@pytest.mark.parametrize("at", [4, np.array([4, 4])], ids=["fast", "checked"])
@pytest.mark.parametrize("aux", ["x", "m", "past", "x[:]"])
def test_an_auxiliary_output_in_place_of_an_input(backend, at, aux):
    """Seen to fail: the residual read memory that the auxiliary output, or a view of an input, had replaced."""
    table = nf.samplers.dpmpp_2m_sde(LINEAR, 10).tableau
    x, m, past = arrays((2, 9, 500), n=3)
    kept = np.empty_like(x)
    expected, density = update_with_log_prob(table, at, x, m, N, past=[past], aux_out=[kept])
    to = {"x": x, "m": m, "past": past, "x[:]": x[:]}[aux]
    found, same = update_with_log_prob(table, at, x, m, N, past=[past], aux_out=[to])
    assert (found.tobytes(), same.tobytes()) == (expected.tobytes(), density.tobytes())
    assert to.tobytes() == kept.tobytes()


def test_rows_of_their_own():
    table, (x, m) = TABLES["flow_sde"], arrays((4, 5, 30))
    x_next, i = nf.randn(x.shape, N), np.array([3, 0, 8, 3])
    found = log_prob(table, i, x, m, x_next)
    each = [log_prob(table, int(i[b]), *(a[b : b + 1] for a in (x, m, x_next)))[0] for b in range(4)]
    assert found.tolist() == each


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_conventions(reduction):
    table, (x, m) = TABLES["flow_cps"], arrays((2, 3, 500))
    x_next = nf.randn(x.shape, N)
    n, std = (1500 if reduction == "mean" else 1), table.rows["out"]["z"][2]
    full, bare, squared = (
        log_prob(table, 2, x, m, x_next, reduction=reduction, density=density)
        for density in ("full", "no_constants", "squared")
    )
    np.testing.assert_allclose(bare, squared / (2 * std * std), rtol=1e-14)
    constant = 1500 * (math.log(std) + 0.5 * math.log(2 * math.pi))
    np.testing.assert_allclose(full, bare - constant / n, rtol=1e-14)
    last = len(table) - 1  # std 0: the squared residual alone is defined there
    assert np.isfinite(log_prob(table, last, x, m, x_next, density="squared")).all()


@pytest.mark.parametrize("wrt", ["m1", "x"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradients_are_those_of_differences(backend, wrt, reduction):
    """Seen to fail: the sign, the coefficient of the other input, the mean's n left out."""
    table, (x, m) = TABLES["flow_sde"], arrays((2, 3, 7), "float64")
    x_next, upstream = nf.randn(x.shape, N, dtype="float64"), np.array([1.5, -2.0])
    found = log_prob_grad(table, 4, x, m, x_next, wrt=wrt, upstream=upstream, reduction=reduction)
    step = 1e-6
    for at in ((0, 0, 0), (1, 2, 5)):
        there = []
        for sign in (1, -1):
            moved = {"x": x.copy(), "m1": m.copy()}
            moved[wrt][at] += sign * step
            there.append(log_prob(table, 4, moved["x"], moved["m1"], x_next, reduction=reduction) @ upstream)
        assert found[at] == pytest.approx((there[0] - there[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_densities_of_all_means_and_their_gradients_have_the_same_bits_on_all_backends(backend, dtype):
    """Seen to fail: m2 left out (by CUDA's kernel), the last elements, the first sample's factor for all."""
    for shape in ((3, 5), (2, 4200), (2, 3, 64)):  # short ones, some past a line, whole groups
        x, m, x_next, other = arrays(shape, dtype, 4)
        upstream = np.arange(1.0, len(x) + 1)
        for table, models, wrt, past in (
            (TABLES["flow_sde"], m, "x", ()),
            (TABLES["flow_sde"].mixed([(-1.5, 2.5)]), (m, other), "m2", ()),
            (SECOND_ORDER, m, "m1", (other,)),
        ):
            given = (table, 4, x, models, x_next)
            with using("reference"):
                density = log_prob(*given, past=past)
                expected = log_prob_grad(*given, wrt=wrt, upstream=upstream, past=past)
            assert log_prob(*given, past=past).tobytes() == density.tobytes()
            assert log_prob_grad(*given, wrt=wrt, upstream=upstream, past=past).tobytes() == expected.tobytes()
            assert log_prob_grad(*given, wrt=wrt, upstream=upstream, past=past, out=x) is x
            assert x.tobytes() == expected.tobytes()


def test_guidance_is_part_of_the_mean():
    sampler, (x, m, cond) = nf.samplers.flow_sde(FLOW, 10), arrays((2, 3, 7), "float64", 3)
    for scale in (3.0, np.array([1.0, 4.5])):
        x_next, made = sampler.step(4, x, (m, cond), N, guidance_scale=scale, log_prob=True)
        assert sampler.log_prob(4, x, (m, cond), x_next, guidance_scale=scale).tolist() == made.tolist()
        mixed = m + np.reshape(scale, (-1, 1, 1)) * (cond - m)
        np.testing.assert_allclose(made, sampler.log_prob(4, x, mixed, x_next), rtol=1e-12)


def test_divergence_of_two_model_outputs(backend):
    table, (_, m, other) = TABLES["flow_sde"], arrays((2, 3, 700), "float64", 3)
    row = table.unfolded().rows["out"][3]
    expected = (row["m1"] * (m - other)) ** 2 / (2 * row["z"] ** 2)
    np.testing.assert_allclose(kl(table, 3, m, other), expected.sum(axis=(1, 2)), rtol=1e-13)
    np.testing.assert_allclose(kl(table, 3, m, other, reduction="mean"), expected.mean(axis=(1, 2)), rtol=1e-13)
    gradient = row["m1"] ** 2 * (m - other) / row["z"] ** 2
    np.testing.assert_allclose(kl_grad(table, 3, m, other, upstream=0.5), 0.5 * gradient, rtol=1e-12)


def test_the_mean_of_many_is_minus_the_entropy():
    """Seen to fail: std of the next row."""
    table, x = TABLES["flow_sde"], np.zeros((1000, 1000), np.float32)
    _, found = update_with_log_prob(table, 4, x, x, N)
    entropy = math.log(table.rows["out"]["z"][4]) + 0.5 * math.log(2 * math.pi * math.e)
    assert found.mean() / 1000 == pytest.approx(-entropy, abs=4 * math.sqrt(0.5 / 1e6))
    assert found.std() / math.sqrt(500) == pytest.approx(1, abs=0.1)  # half a chi-square of 1,000 degrees


# ---- whole runs --------------------------------------------------------------------------------------------


def test_a_run_gives_the_density_of_each_step_that_draws():
    sampler = nf.samplers.flow_sde(FLOW, 6, window=(1, 4))
    x, found = sampler.sample(lambda x, t: 0.5 * x, (2, 3, 7), N, log_probs=True, reduction="mean")
    assert [log is not None for log in found] == [False, True, True, True, False, False]
    assert x.tobytes() == sampler.sample(lambda x, t: 0.5 * x, (2, 3, 7), N).tobytes()


def test_a_sampler_that_remembers():
    sampler = nf.samplers.dpmpp_2m_sde(LINEAR, 6)
    x, m = arrays((2, 3, 7))
    state = sampler.state(x)
    for i in range(3):
        before = pickle.loads(pickle.dumps(state.past))
        x_next, made = sampler.step(i, x, m, N, state, log_prob=True)
        again = nf.density.log_prob(sampler.tableau, i, x, m, x_next, past=before)
        assert again.tolist() == made.tolist()
        x = x_next
    with pytest.raises(TypeError, match="dpmpp_2m_sde remembers earlier steps: pass state"):
        sampler.log_prob(1, x, m, x)


# ---- parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_parts_make_the_whole(backend, parts, dtype):
    """Seen to fail: the parts' sums added before the chunks'."""
    table, (x, m) = TABLES["flow_sde"], arrays((2, 4, 64, 64), dtype)
    x_next, whole = update_with_log_prob(table, 4, x, m, N)
    cut = [np.ascontiguousarray(a) for a in np.split(x_next, parts, axis=1)]
    made = []
    for n, there in enumerate(cut):
        window = N.window((4, 64, 64), (n * 4 // parts, 0, 0))
        inputs = [np.ascontiguousarray(np.split(a, parts, axis=1)[n]) for a in (x, m)]
        found, part = update_with_log_prob(table, 4, *inputs, window, partial=True)
        assert found.tobytes() == there.tobytes()
        made.append(pickle.loads(pickle.dumps(part)))
    assert nf.density.combine(made).tobytes() == whole.tobytes()


def test_a_last_part_of_any_size():
    table, (x, m, x_next) = TABLES["flow_sde"], arrays((3, 4096 * 3 + 5000), n=3)
    whole = log_prob(table, 4, x, m, x_next)
    for at in (4096, 8192, 12288):
        parts = [log_prob(table, 4, *(a[:, cut] for a in (x, m, x_next)), partial=True)
                 for cut in (slice(0, at), slice(at, None))]  # fmt: skip
        assert nf.density.combine(parts).tobytes() == whole.tobytes()


def test_windows_that_cut_a_chunk():
    table, x = TABLES["flow_sde"], np.zeros((2, 2, 2048), np.float32)
    for whole, start in (((4, 4096), (0, 0)), ((4, 2048), (1, 0)), ((2, 4, 2048), (0, 0, 0))):
        part = x.reshape(2, 1, 2, 2048) if len(whole) == 3 else x
        cut = nf.Noise(1).window(whole, start)
        if whole[-1] == 2048 and len(whole) == 3:
            assert update_with_log_prob(table, 4, part, part, cut, partial=True)[1].sums.shape == (2, 1)
            continue
        with pytest.raises(ValueError, match=r"noise: its window of 4096 elements from element \d+ on, expected a run"):
            update_with_log_prob(table, 4, part, part, cut, partial=True)


@pytest.mark.parametrize("every", [1, 2])  # the fast path takes no views
def test_the_mean_over_one_element_is_the_element(every):
    table, (x, m) = TABLES["flow_sde"], (a[:, ::every] for a in arrays((2, every)))
    assert (log_prob(table, 4, x, m, x, reduction="mean") == log_prob(table, 4, x, m, x)).all()


@pytest.mark.parametrize("size", [5000, 4096 + 64])
def test_parts_that_do_not_fit(size):
    table, (x, m) = TABLES["flow_sde"], arrays((2, size))
    part = log_prob(table, 4, x, m, x, partial=True)
    with pytest.raises(ValueError, match=rf"parts\[0\]: has {size} elements of each sample, expected a mult"):
        nf.density.combine([part, part])
    other = log_prob(table, 3, x, m, x, partial=True)
    with pytest.raises(ValueError, match=r"parts\[1\]: expected a part of the same samples"):
        nf.density.combine([part, other])
    with pytest.raises(ValueError, match="parts: expected at least one"):
        nf.density.combine([])
    with pytest.raises(TypeError, match=r"parts\[0\]: expected what partial=True gives, got ndarray"):
        nf.density.combine([x])


# ---- bad input ---------------------------------------------------------------------------------------------

X = np.zeros((2, 3, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda t: log_prob(t["flow_cps"], 9, X, X, X), ValueError, "row 9 of flow_cps draws no noise"),
        (lambda t: log_prob(t["flow_sde"], 4, X, X, X[:1]), ValueError, r"x_next: expected shape \(2, 3, 8\)"),
        (lambda t: log_prob(t["flow_sde"], 4, X, X, X.astype("f8")), TypeError, "x_next: dtype float64 is not supp"),
        (lambda t: log_prob(t["flow_sde"], 4, *[X.astype("f2")] * 2, X), TypeError, "x_next: dtype float32"),
        (lambda t: log_prob(t["clipped"], 4, X, X, X), ValueError, "ddim bounds its estimate of the clean sample"),
        (
            lambda t: update_with_log_prob(t["clipped"], 4, X, X, N),
            ValueError,
            "ddim bounds its estimate of the clean sample",
        ),
        (lambda t: update_with_log_prob(t["flow_sde"], 4, X, X, None), TypeError, "noise: the row draws noise"),
        (
            lambda t: update_with_log_prob(t["flow_sde"], 4, X, X, N, out=X.astype("u1")),
            TypeError,
            "out: expected x's dtype",
        ),
        (lambda t: log_prob(t["flow_sde"], 99, X, X, X), IndexError, "i = 99 is out of range"),
        (lambda t: log_prob(t["flow_sde"], [[1]], X, X, X), ValueError, r"i: expected a row number or \(B,\)"),
        (lambda t: log_prob(t["flow_sde"], 4, X, None, X), TypeError, r"model_output \(m1\): the table reads it"),
        (lambda t: log_prob(t["flow_sde"], 4, X, X, X, reduction="none"), ValueError, "reduction = 'none': expected"),
        (
            lambda t: log_prob(t["flow_sde"], 4, X, X, X, density="half"),
            ValueError,
            "density = 'half': expected 'full'",
        ),
        (lambda t: log_prob_grad(t["flow_sde"], 4, X, X, X, upstream=[1.0]), ValueError, r"upstream: expected a num"),
        (lambda t: log_prob_grad(t["flow_sde"], 4, X, X, X, wrt="z"), ValueError, "wrt = 'z': expected 'm1', 'm2'"),
        (lambda t: kl(t["flow_sde"], 4, X, X[:1]), ValueError, "reference: expected shape"),
        (lambda t: nf.Sampler(t["flow_sde"]).step(4, X, X, N, reduction="mean"), TypeError, "reduction: given without"),
        (
            lambda t: nf.Sampler(t["flow_sde"]).step(4, X, X, N, log_prob=True, nope=1),
            TypeError,
            "nope: no such argument",
        ),
        (lambda t: log_prob(t["flow_sde"], 4, X, X, X, reduction=["sum"]), ValueError, "reduction = ..sum..: expected"),
        (lambda t: nf.samplers.flow_sde(LINEAR), ValueError, "flow_sde needs a schedule with alpha"),
        (lambda t: nf.samplers.flow_sde(FLOW, 4, window=(2, 9)), ValueError, r"window = \(2, 9\): expected 0 <= beg"),
        (
            lambda t: nf.samplers.flow_cps(FLOW, 4, noise_level=2),
            ValueError,
            "noise_level = 2: expected a finite number from 0 to 1",
        ),
        (
            lambda t: nf.samplers.flow_sde(FLOW, 4, noise_level=[0.7] * 4),
            TypeError,
            "the level of noise = .*: expected a number, got list",
        ),
        (
            lambda t: nf.Sampler(t["flow_sde"]).sample(lambda x, t: x, X, N, log_prob=True),
            TypeError,
            "log_prob: no such argument; of a whole run it is log_probs=True",
        ),
        (
            lambda t: nf.samplers.dance_sde(FLOW, 4, eta=-1),
            ValueError,
            "the level of noise = -1: expected a finite number of at least 0",
        ),
    ],
)
def test_what_cannot_be_done_is_said(call, error, said):
    tables = TABLES | {"clipped": nf.samplers.ddim(LINEAR, 10, eta=1.0, clip=1.0).tableau}
    with pytest.raises(error, match=said):
        call(tables)


def test_an_empty_batch():
    empty = np.zeros((0, 3, 8), np.float32)
    x_next, found = update_with_log_prob(TABLES["flow_sde"], 4, empty, empty, N)
    assert (x_next.shape, found.shape) == (empty.shape, (0,))


@pytest.mark.parametrize("density", ["full", "no_constants", "squared"])
def test_samples_without_elements(density):
    """Seen to fail: a division by 0."""
    empty = np.zeros((2, 0), np.float32)
    assert np.isfinite(log_prob(TABLES["flow_sde"], 4, empty, empty, empty, reduction="mean", density=density)).all()


def test_auxiliary_outputs_are_arrays():
    x, m = arrays((2, 8))
    with pytest.raises(TypeError, match="aux_out: expected a sequence of arrays, got int"):
        update_with_log_prob(TABLES["flow_sde"], 4, x, m, N, aux_out=1)


# ---- the fast path -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16, 7), (3, 4, 40, 40), (70, 5)], ids=str)
def test_plain_calls_take_the_fast_path_and_give_the_same(monkeypatch, dtype, shape):
    """Seen to fail: the sums of the mean over all samples, the residual of the step's own noise, the first sample's row
    for all of them."""
    sampler, (x, m) = nf.samplers.flow_sde(FLOW, 10), arrays(shape, dtype)
    table, rows, each = sampler.tableau, np.arange(len(x)) % 7, np.linspace(-1, 1, len(x))
    calls = [
        lambda: sampler.step(4, x, m, N, log_prob=True),
        lambda: sampler.step(4, x, m, N, log_prob=True, reduction="mean", density="squared"),
        lambda: sampler.step(4, x, m, nf.randn_like(x, N), log_prob=True),
        lambda: (x, sampler.log_prob(4, x, m, x)),
        lambda: (x, log_prob_grad(sampler.tableau, 4, x, m, x, upstream=0.1, reduction="mean", density="squared")),
        lambda: (x, log_prob_grad(sampler.tableau, 4, x, m, x, wrt="x", upstream=np.linspace(-1, 1, len(x)))),
        *(
            call
            for i in (4, rows, rows.tolist())
            for call in (
                lambda i=i: update_with_log_prob(table, i, x, m, N, reduction="mean"),
                lambda i=i: (x, log_prob(table, i, x, m, x)),
                lambda i=i: (x, log_prob(table, i, x, m, x, reduction="mean", density="no_constants")),
                lambda i=i: (x, log_prob_grad(table, i, x, m, x, wrt="x")),
                lambda i=i: (x, log_prob_grad(table, i, x, m, x, upstream=each, reduction="mean")),
                lambda i=i: (x, kl(table, i, m, x)),
                lambda i=i: (x, kl(table, i, m, x, reduction="mean")),
                lambda i=i: (x, kl_grad(table, i, m, x, upstream=0.3, reduction="mean")),
                lambda i=i: (kl_grad(table, i, m, x, upstream=each), kl_grad(table, i, m, x, out=x.copy())),
            )
        ),
    ]
    fast = [call() for call in calls]
    taken = []
    for name in ("fast_density", "fast_density_gradient", "fast_divergence"):
        monkeypatch.setattr(backends, name, lambda *a: taken.append(a) or NotImplemented)
    for (x_next, found), call in zip(fast, calls, strict=True):
        expected, density = call()
        assert (x_next.tobytes(), found.tobytes()) == (expected.tobytes(), density.tobytes())
    assert len(taken) >= len(calls)


def test_the_fast_path_was_taken(monkeypatch):
    monkeypatch.setattr(nf.density, "update_call", None)
    monkeypatch.setattr(nf.density, "make_call", None)
    sampler, (x, m) = nf.samplers.flow_sde(FLOW, 10), arrays((2, 3, 5))
    for i in (4, [4, 2], np.array([4, 2])):
        x_next, found = update_with_log_prob(sampler.tableau, i, x, m, N)
        assert sampler.log_prob(i, x, m, x_next).tolist() == found.tolist()
        assert log_prob_grad(sampler.tableau, i, x, m, x_next, upstream=found).shape == x.shape
        assert sampler.kl(i, m, x).shape == (2,)
        assert kl_grad(sampler.tableau, i, m, x, upstream=found).shape == x.shape
    x_next, found = sampler.step(4, x, m, N, log_prob=True)
    assert sampler.log_prob(4, x, m, x_next).tolist() == found.tolist()
    assert log_prob_grad(sampler.tableau, 4, x, m, x_next, upstream=2.0).shape == x.shape
    with pytest.raises(TypeError, match="not callable"):
        sampler.log_prob(4, x, m.astype(np.float64), x_next)


@pytest.mark.parametrize(
    "i", [10, -1, [4, 10], [[4, 2]], 4.0, [4, 5, 6], [], True, None, np.array([[4], [2]])], ids=repr
)
@pytest.mark.parametrize("name", ["kl", "kl_grad", "log_prob", "log_prob_grad"])
def test_wrong_rows_are_what_they_are_to_the_checked_path(monkeypatch, name, i):
    """Seen to fail: a row for each token taken, of which the first one's numbers were those of the sample."""
    table, (x, m) = nf.samplers.flow_sde(FLOW, 10).tableau, arrays((2, 1, 5))

    def error():
        try:
            return getattr(nf.density, name)(table, i, x, *([m, x] if "log" in name else [m])).tobytes()
        except Exception as raised:
            return type(raised), str(raised)

    found = error()
    for fast in backends.FAST_PATH:
        monkeypatch.setattr(backends, fast, backends.declined)
    assert found == error()


def test_rows_that_draw_nothing_have_no_density(monkeypatch):
    """Seen to fail where the fast path looked at the first sample's row alone."""
    table, (x, m) = (
        nf.Tableau([nf.Row(out=nf.tableau.x + nf.tableau.z), nf.Row(out=1.0 * nf.tableau.x)]),
        arrays((2, 5)),
    )
    for call in (log_prob, lambda table, i, x, m, y: kl(table, i, x, m)):
        with pytest.raises(ValueError, match=r"row 1 of .* draws no noise"):
            call(table, [0, 1], x, m, x)
