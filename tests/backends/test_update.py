# SPDX-License-Identifier: Apache-2.0
"""nf.update on random tables: the same bits from every backend, and the linear combinations of the row."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import noisefuse as nf
from conftest import BACKENDS, DTYPES, bits, one_in, using
from exact import apply_exact
from noisefuse.language.rows import NAMES, ROW


def random_table(rng, rows, density):
    """Makes a row with each column present with this probability, and clamps in some rows, on either side."""
    numbers = rng.normal(size=(rows, 36)) * (rng.random((1, 36)) < density)
    table = numbers.view(ROW)[:, 0].copy()
    table["clean"]["lo"] = np.where(rng.random(rows) < 0.5, -np.inf, -rng.random(rows))
    table["clean"]["hi"] = np.where(rng.random(rows) < 0.5, np.inf, rng.random(rows))
    return nf.Tableau(table)


@st.composite
def updates(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.sampled_from([(3,), (4, 3), (2, 16, 7), (3, 300), (1, 1100), (2, 5, 64)]))
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    table = random_table(rng, 5, draw(st.sampled_from([0.1, 0.5, 1.0])))
    index = rng.integers(0, 5, shape[: draw(st.integers(0, len(shape)))])
    x, m1, m2, *past = (rng.normal(size=shape).astype(dtype) for _ in range(7))
    noise = nf.Noise(rng.integers(0, 2**63).item(), sample=draw(st.sampled_from([0, 2**32 - 2])), step=9)
    aux = draw(st.integers(0, 2))
    return table, index, x, (m1, m2), past, noise, aux


@st.composite
def unusual(draw):
    """Yields rare arrays and noise: numbers that are NaN, tiny or infinite, strides, ids, windows, lists."""
    table, index, x, models, past, noise, aux = draw(updates())
    rng, (batch, *sample) = np.random.default_rng(draw(st.integers(0, 2**32))), x.shape

    def odd(a):
        a.flat[rng.integers(a.size, size=5)] = [np.nan, np.inf, -np.inf, -0.0, 1e-40]
        order = draw(st.sampled_from(["C", "F", "reversed"]))
        return np.ascontiguousarray(a[..., ::-1])[..., ::-1] if order == "reversed" else a.astype(a.dtype, order)

    if draw(st.booleans()):
        noise = noise.at(sample=rng.integers(0, 2**56, batch, np.uint64))
    if sample and draw(st.booleans()):
        noise = noise.window([n + 3 for n in sample], [2] * len(sample))
    if draw(st.booleans()):
        noise = [nf.Noise(seed, sample=5 * seed, step=seed) for seed in rng.integers(0, 3, batch).tolist()]
    return table, index, odd(x), tuple(map(odd, models)), list(map(odd, past)), noise, aux


def run(table, index, x, models, past, noise, aux):
    """Returns all outputs. New outputs equal the given ones."""
    outs = [np.empty_like(x, order="C") for _ in range(aux)]
    out = nf.update(table, index, x, models, past=past, noise=noise, aux_out=outs)
    made = nf.update(table, index, x, models, past=past, noise=noise, aux_out=aux)
    assert list(map(bits, made)) == list(map(bits, (out, *outs)))
    return made


@settings(deadline=None, max_examples=150)
@given(st.one_of(updates(), unusual()), st.sampled_from([1, 2]))
def test_every_backend_gives_the_same_bits(call, threads):
    found = {}
    for name in BACKENDS:
        with using(name), nf.set_num_threads(threads):
            found[name] = list(map(bits, run(*call)))
    assert all(result == found["reference"] for result in found.values()), list(found)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32), st.sampled_from([0.2, 1.0]), st.integers(0, 4), st.booleans(), st.booleans())
def test_plain_calls_have_the_same_bits_everywhere(seed, density, i, drawn, in_place):
    """These are calls that backends check by themselves (`row`): float32, one row for all, small.

    Seen to fail: a stream's entry beyond the memory of a small call, the clamp's columns left out, step without i.
    """
    rng = np.random.default_rng(seed)
    table = random_table(rng, 5, density)
    arrays = rng.standard_normal((8, 3, 40)).astype(np.float32)
    found = {}
    for name in BACKENDS:
        with using(name):
            x, m1, m2, *past, z = arrays.copy()
            nf.randn((1, 1), nf.Noise(0))  # the backend's first call
            noise = nf.Noise(2**63 + 5, sample=2**40, step=7) if drawn else z
            aux = list(np.empty((2, 3, 40), np.float32))
            out = nf.update(table, i, x, (m1, m2), past=past, noise=noise, aux_out=aux, out=x if in_place else None)
            assert out is x or not in_place
            found[name] = [result.tobytes() for result in (out, *aux)]
    assert all(result == found["reference"] for result in found.values()), list(found)


# The active columns of D and of each output in the samplers.
SHAPES = {
    "ddim": ("x m1", "m1 d"),
    "guided": ("x m1 m2", "m1 d"),
    "guided ddpm": ("x m1 m2", "m1 d z"),
    "flow_euler": ("x m1", "x m1 d"),
    "ddpm": ("x m1", "m1 d z"),
    "lcm": ("x m1", "x d z"),
    "heun": ("x m1", "x m1 d past1", "x m1 d"),
    "dpm_2": ("x m1", "x m1 d past1", "x d"),
    "dpmpp_2m": ("x m1", "x d past1", "d"),
    "dpmpp_2m_sde": ("x m1", "x d past1 z", "d"),
    "unipc": ("x m1", "x d past1 past2", "d", "x d past1 past2"),
    "pndm": ("x m1", "x m1 past1 past2 past3", "m1 d"),
    "of no sampler": ("m1", "m1 d past4", "d z", "k x"),
}


@pytest.fixture(scope="session")
def shapes(csrc_constants):
    """Returns these shapes, and all that tile_registers.h lists."""
    found = dict(SHAPES)
    for name, *numbers in csrc_constants:
        if name == "shape":
            active = [column.split(".") for c, column in enumerate(NAMES) if int(numbers[0], 16) >> c & 1]
            clean, *outputs = (" ".join(column for where, column in active if where == part) for part in ROW.names)
            found[" | ".join([clean, *filter(None, outputs)])] = clean, *filter(None, outputs)
    return found


@pytest.mark.parametrize("dtype", one_in(2, DTYPES.values()), ids=DTYPES)
@pytest.mark.parametrize("clamped", [False, True])
def test_rows_of_samplers_have_the_same_bits_at_every_length(shapes, clamped, dtype):
    """Rows of these shapes are added in registers, the last vector before the others; a clamp meets NaN there. Calls
    are in place or not by turns, so that each shape, clamped or not, and each dtype are both.

    Seen to fail: the last vector computed after the others (in place), a factor taken from another output.
    """
    for k, (name, shape) in enumerate(shapes.items()):
        in_place = (k + [*DTYPES].index(dtype.name) + clamped) % 2 == 0
        same_bits_at_every_length(name, shape, in_place, clamped, dtype)


def same_bits_at_every_length(name, shape, in_place, clamped, dtype):
    rng = np.random.default_rng(1)
    clean, *outputs = shape
    table = np.zeros(2, ROW)
    table["clean"]["lo"], table["clean"]["hi"] = (-0.5, 0.7) if clamped else (-np.inf, np.inf)
    for part, columns in zip(("clean", "out", "aux1", "aux2"), (clean, *outputs), strict=False):
        for column in columns.split():
            table[part][column] = rng.standard_normal(2)
    tableau, aux = nf.Tableau(table), len(outputs) - 1
    for n in (1, 5, 15, 16, 17, 112, 300, 2053):  # the last: more than eight tiles, and no whole ones
        arrays = rng.standard_normal((8, 1, n)).astype(dtype)
        arrays[0, 0, n // 2] = np.nan
        arrays[0, 0, -1], arrays[1, 0, -1] = np.inf, -np.inf  # a sum of results that looks like NaN
        found = {}
        for backend in BACKENDS:
            with using(backend):
                x, m1, m2, *past, _ = arrays.copy()
                aux_out = list(np.empty((aux, 1, n), dtype))
                out = x if in_place else np.empty_like(x)
                nf.update(tableau, 1, x, (m1, m2), past=past, noise=nf.Noise(3), aux_out=aux_out, out=out)
                found[backend] = [bits(result) for result in (out, *aux_out)]
        assert all(result == found["reference"] for result in found.values()), (name, n, list(found))


@settings(deadline=None, max_examples=50)
@given(updates())
def test_a_row_per_sample_is_the_loop_over_samples(call):
    table, _, x, models, past, noise, aux = call
    index = np.arange(len(x)) % len(table)
    whole = run(table, index, x, models, past, noise, aux)
    for b in range(len(x)):
        alone = slice(b, b + 1)
        parts = [m[alone] for m in models], [p[alone] for p in past], noise.at(sample=noise.sample + b)
        one = run(table, int(index[b]), x[alone], tuple(parts[0]), parts[1], parts[2], aux)
        assert [r[alone].tobytes() for r in whole] == [r.tobytes() for r in one]


@settings(deadline=None, max_examples=50)
@given(updates())
def test_a_row_per_token_is_the_one_row_for_all(call):
    """An index may have any shape: each element has the same value as if all elements took its row.

    Seen to fail: the row numbers in another order (for calls that native does not take itself).
    """
    table, index, *rest = call
    whole = run(table, index, *rest)
    for i in range(len(table)):
        for result, alone in zip(whole, run(table, i, *rest), strict=True):
            assert bits(result[index == i]) == bits(alone[index == i])


@settings(deadline=None, max_examples=50)
@given(updates())
def test_the_row_says_what_comes_out(call):
    table, _, x, models, past, noise, aux = call
    x, *others = (a.astype(np.float64) for a in (x, *models, *past))
    found = run(table, 3, x, tuple(others[:2]), others[2:], noise, aux)
    z = nf.randn(x.shape, noise.at(step=noise.step + 3, stream=3), dtype="float64")
    exact = apply_exact(table.rows[3], x, *others[:2], others[2:], z)
    for result, expected in zip(found, exact, strict=False):
        np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_backward_rows_pass_gradients_within_the_bounds_only(dtype):
    rng = np.random.default_rng(5)
    table = random_table(rng, 4, 1.0)
    x, m1, m2, *past, gradient = (rng.normal(size=(4, 77)).astype(dtype) for _ in range(8))
    x[0, 0] = np.nan
    index = np.arange(4)
    for name, backward in table.transpose().items():
        found = {}
        for backend in BACKENDS:
            with using(backend):
                found[backend] = nf.update(backward, index, x, (m1, m2), past=[gradient]).tobytes()
        assert set(found.values()) == {found["reference"]}, name
    if dtype == np.float64:
        x[0, 0] = 0.1
        step = 1e-6
        noise = nf.Noise(3)
        ahead, behind = (nf.update(table, index, x + side * step, (m1, m2), past=past, noise=noise) for side in (1, -1))
        slope = (ahead - behind) / (2 * step) * gradient
        exact = nf.update(table.transpose()["x"], index, x, (m1, m2), past=[gradient])
        near = np.isclose(slope, exact, rtol=1e-6, atol=1e-6)
        assert near.mean() > 0.99  # all but points within a step of a bound


@pytest.mark.parametrize("shape", [(1, 3), (2, 300)])
def test_a_form_of_a_constant_alone_keeps_its_sign(backend, shape):
    """The sign of zero is kept, too. Seen to fail: +0 added to it."""
    numbers = np.zeros((2, 36))
    numbers[:, 6] = 1, -0.0
    table = nf.Tableau(numbers.view(ROW)[:, 0].copy())
    for _ in range(2):
        assert np.signbit(nf.update(table, 1, np.ones(shape, np.float32))).all()


def test_bounds_let_gradients_pass_themselves(backend):
    """It clamps as torch does. Seen to fail: values on a bound that count as beyond it."""
    form = nf.tableau
    backward = nf.Tableau([nf.Row(out=form.D, clean=form.x, lo=-1, hi=2)]).transpose()["x"]
    x = np.array([[-3, -1, 0, 2, 3, np.nan, -0.5, 2.5]], np.float32)
    found = nf.update(backward, 0, x, past=[np.ones_like(x)])
    assert found.tolist() == [[0, 1, 1, 1, 0, 0, 1, 0]]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("aux", [-1, 3, 2**70])
def test_a_number_of_auxiliary_outputs_that_rows_do_not_have(name, aux):
    with using(name), pytest.raises(ValueError, match=f"aux_out = {aux}: expected at most 2"):
        nf.update(
            nf.samplers.ddim(nf.Schedule.linear(10), 5).tableau, 1, np.zeros(3, "f4"), np.zeros(3, "f4"), aux_out=aux
        )


def test_every_row_that_is_taken_is_asked_whether_it_draws(backend):
    """Seen to fail: a fast path that looks only at the first one."""
    table, x = nf.samplers.ddpm(nf.Schedule.linear(10), 5).tableau, np.ones((2, 3), np.float32)
    assert (table.rows["out"]["z"] != 0).tolist() == [True] * 4 + [False]
    with pytest.raises(TypeError, match="noise: the row draws noise"):
        nf.update(table, np.array([4, 0]), x, x)


def test_a_models_output_is_converted_and_nothing_else(backend):
    """Seen to fail: a fast path that reads float32 unconverted, and past arrays that are converted too."""
    table = nf.samplers.dpmpp_2m(nf.Schedule.linear(10), 5).tableau
    x, m, past = np.random.default_rng(0).standard_normal((3, 4, 50)).astype(np.float32)
    x, half = x.astype(np.float16), m.astype(np.float16)
    found = nf.update(table, 2, x, m, past=[half])
    assert bits(found) == bits(nf.update(table, 2, x, half, past=[half]))
    with pytest.raises(TypeError, match=r"past\[0\]: dtype float32 is not supported"):
        nf.update(table, 2, x, m, past=[past])


@pytest.mark.parametrize("of_model", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("of_x", DTYPES.values(), ids=DTYPES)
def test_a_models_output_of_another_dtype_counts_as_converted(backend, of_x, of_model):
    """Whoever widens it, and in registers, too: a long step without noise, and its bytes.

    Seen to fail: a half read as the other half, float64 that was not rounded.
    """
    rng = np.random.default_rng(0)
    table, still = random_table(rng, 5, 0.7), nf.samplers.dpmpp_2m(nf.Schedule.linear(10), 5, clip=2.0).tableau
    for shape in ((3, 7), (2, 700), (1, 5000)):
        x, m = rng.normal(size=shape).astype(of_x), (100 * rng.normal(size=shape)).astype(of_model)
        m[0, :3] = np.nan, np.inf, -np.inf
        past = [x + x] * 4
        given = {"past": past, "noise": nf.Noise(1), "aux_out": 2}
        with using(backend):
            found, expected = (nf.update(table, 3, x, (a, a), **given) for a in (m, m.astype(of_x)))
            assert [*map(bits, found)] == [*map(bits, expected)]
            for dtype in ({}, {"dtype": "uint8"}):
                one, other = (nf.update(still, 2, x, a, past=past[:1], **dtype) for a in (m, m.astype(of_x)))
                assert bits(one) == bits(other)


def test_a_model_output_of_nan_gives_no_warning(backend):
    """Seen to fail: NumPy's warning of the cast to bfloat16, where no kernel does it."""
    table, x = nf.samplers.ddim(nf.Schedule.linear(10), 5).tableau, np.ones((2, 3), DTYPES["bfloat16"])
    with using(backend), warnings.catch_warnings():
        warnings.simplefilter("error")
        signals = np.full((2, 3), 0x7D00, np.uint16).view(np.float16)  # a NaN that raises a flag
        assert nf.update(table, 1, x, signals).dtype == x.dtype


def test_noise_of_an_auxiliary_output_is_not_wanted_in_rows_without_it(backend):
    symbols = nf.tableau
    table = nf.Tableau([nf.Row(out=symbols.x, aux1=symbols.x + symbols.z), nf.Row(out=symbols.x, aux1=2 * symbols.x)])
    x = np.ones((2, 3))
    assert [a.tolist() for a in nf.update(table, 1, x, aux_out=1)] == [x.tolist(), (2 * x).tolist()]
    with pytest.raises(TypeError, match="noise: the row draws noise"):
        nf.update(table, 0, x, aux_out=1)


def test_backward_rows_have_one_output():
    table = nf.samplers.ddim(nf.Schedule.linear(10), 5, clip=1.0).tableau.transpose()["x"]
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="aux_out: backward rows have one output"):
        nf.update(table, 0, x, x, past=[x], aux_out=1)
