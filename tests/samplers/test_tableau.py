# SPDX-License-Identifier: Apache-2.0
"""Rows and tables of rows: arithmetic of symbols, checks in the constructor, text, tracing, guidance, gradients."""

import json
import math
import pickle

import numpy as np
import pytest

from conftest import NUMBA, using
from exact import apply_exact
from noisefuse import Sampler, Schedule, samplers, update
from noisefuse.tableau import ROW, SYMBOLS, ZERO, Affine, D, Row, Tableau, k, m1, m2, past, x, z

RNG = np.random.default_rng(0)


def random_table(n=3, clamp=True, inputs=("x", "m1", "m2", "past1", "past2", "past3", "past4", "z"), constant=True):
    rows = np.zeros(n, ROW)
    for group in ROW.names:
        for name in ROW[group].names:
            if name in (*inputs, "d") or (name == "k" and constant):
                rows[group][name] = RNG.normal(size=n)
    rows["clean"]["lo"], rows["clean"]["hi"] = (-0.5, 0.7) if clamp else (-np.inf, np.inf)
    return Tableau(rows, np.arange(n)[::-1] * 10.5, "random", push=np.arange(n) % 3, denoised=[1] * n)


def test_layout():
    """A row has 36 float64, in the order that kernels read."""
    assert ROW.itemsize == 36 * 8
    table = Tableau([Row(out=2 * x + 3 * z, clean=k - m1, aux1=D, aux2=past[3], lo=-1, hi=4)])
    numbers = table.numbers
    assert numbers.shape == (1, 36)
    assert numbers[0].tolist() == [
        *(1, 0, -1, 0, -1, 4),
        *(0, 2, 0, 0, 0, 0, 0, 0, 0, 3),
        *(0, 0, 0, 0, 1, 0, 0, 0, 0, 0),
        *(0, 0, 0, 0, 0, 0, 0, 0, 1, 0),
    ]
    assert np.shares_memory(numbers, table.rows)


def test_symbols_are_arithmetic():
    expression = 2 * (x - m1 / 4) + np.float64(0.5) * k - (-z) + np.float32(2) * past[1] * 3
    assert expression.coefficients == (0.5, 2, -0.5, 0, 0, 0, 6, 0, 0, 1)
    assert [s.coefficients.index(1) for s in (k, x, m1, m2, D, *past, z)] == list(range(len(SYMBOLS)))
    assert ZERO.coefficients == (0,) * 10
    assert str(expression) == "0.5 + 2 x - 0.5 m1 + 6 past2 + z"
    assert str(Affine([-1] + [0] * 9)) == "-1"
    assert str(-x) == "-x"
    for other, text in ((z, "z"), (D, "D"), (past[0], "past1")):
        with pytest.raises(ValueError, match=rf"clean may only use k, x, m1 and m2, got x \+ {text}"):
            Row(out=x, clean=x + other)
    for part in ("out", "clean", "aux1", "aux2"):
        with pytest.raises(TypeError, match=rf"{part}: expected an expression of x, m1, z, .*, got str"):
            Row(**{"out": x, part: "x"})
    for product in (lambda: x * m1, lambda: x / m1):
        with pytest.raises(TypeError, match=r"rows are affine: x is (multiplied|divided) by numbers, not by m1$"):
            product()
    for other in (lambda: x + 1, lambda: 1 + x, lambda: x - 1, lambda: 1 - x):
        with pytest.raises(TypeError, match=r"rows are affine: .* a constant is a number times k"):
            other()
    assert repr(sum([x, 2 * m1])) == repr(x + 2 * m1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_coefficients_are_refused(bad):
    with pytest.raises(ValueError, match=r"row 1 of 'ddim': out\.past2 is (nan|inf|-inf)"):
        Tableau([Row(out=x), Row(out=Affine([0, 1, 0, 0, 0, 0, bad, 0, 0, 0]))], name="ddim")
    with pytest.raises(ValueError, match=r"clean\.m1 is"):
        Tableau([Row(out=x, clean=Affine([0, 0, bad, *[0] * 7]))])


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match=r"row 0 of 'tableau': clean\.lo is nan"):
        Tableau([Row(out=x, lo=math.nan)])
    with pytest.raises(ValueError, match=r"row 1 of 'tableau': lo <= hi must hold, got 2.0 > 1.0"):
        Tableau([Row(out=x), Row(out=x, lo=2, hi=1)])
    for rows in (np.zeros((3, 36)), np.zeros((3, 1), ROW)):
        with pytest.raises(ValueError, match="rows must have dtype ROW and shape"):
            Tableau(rows)
    with pytest.raises(ValueError, match="rows: expected at least one Row"):
        Tableau([])
    for rows in (["x"], [Row(out=x), x]):
        with pytest.raises(TypeError, match=r"rows: expected Row objects, or an array of dtype ROW, got (str|Affine)"):
            Tableau(rows)
    for threshold in ((2, 1), (0.5, 0.5)):
        with pytest.raises(ValueError, match="threshold: expected 0 <= ratio <= 1 and maximum >= 1, got"):
            Tableau([Row(out=x)], threshold=threshold)
    for threshold in ((0, 1), (1, math.inf)):
        assert Tableau([Row(out=x)], threshold=threshold).threshold == threshold
    for timesteps in ([1, 2], [True], [1j]):
        with pytest.raises(ValueError, match="timesteps must be 1 finite numbers"):
            Tableau([Row(out=x)], timesteps)
    for start in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match=f"start = {start}: expected a finite number of at least 0"):
            Tableau([Row(out=x)], start=start)
    for column in ("push", "denoised"):
        with pytest.raises(ValueError, match=f"{column} must be 1 integers, got"):
            Tableau([Row(out=x)], **{column: [0.5]})
    with pytest.raises(ValueError, match="scale must be 1 finite numbers"):
        Tableau([Row(out=x)], scale=[math.nan])
    for columns in ({"name": ["ddim"]}, {"masked": "no"}):
        with pytest.raises(TypeError, match=r"name: expected a str, got list|masked: expected a bool, got str"):
            Tableau([Row(out=x)], **columns)
    with pytest.raises(ValueError, match=r"threshold: expected \(ratio, maximum\), got \(0.5,\)"):
        Tableau([Row(out=x)], threshold=(0.5,))
    for columns in ({"push": [3]}, {"denoised": [2]}, {"push": [2], "denoised": [3]}, {"denoised": [-1]}):
        with pytest.raises(ValueError, match="row 0 of 'tableau': there are two auxiliary outputs"):
            Tableau([Row(out=x)], **columns)


def test_what_is_remembered_has_to_be_computed():
    """Seen to fail: zeros were remembered in its place."""
    for aux, columns, n in (
        ({}, {"push": [0, 1]}, 1),
        ({"aux2": x}, {"push": [0, 2]}, 1),
        ({"aux1": x}, {"push": [0, 2]}, 2),
        ({}, {"denoised": [0, 1]}, 1),
        ({"aux1": x}, {"push": [0, 1], "denoised": [0, 2]}, 2),
    ):
        with pytest.raises(ValueError, match=f"row 1 of 'tableau': .* take aux{n}, which the row does not compute"):
            Tableau([Row(out=x, aux1=m1, aux2=m1), Row(out=x, **aux)], **columns)
    assert Tableau([Row(out=x, aux1=2 * k)], push=[1]).push.tolist() == [1]


def test_immutable():
    rows = np.zeros(2, ROW)
    table = Tableau(rows)
    rows["out"]["x"] = 5
    assert not table.rows["out"]["x"].any()
    for array in (table.rows, table.numbers, table.timesteps, table.scale, table.push):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError, match="a Tableau is immutable: cannot set 'name'"):
        table.name = "other"


def test_active_and_slots():
    table = Tableau([Row(out=x, aux1=D), Row(out=0 * x + past[1], clean=m1, hi=3)])
    active = table.active
    names = {(g, c) for g in ROW.names for c in ROW[g].names if active[g][c]}
    assert names == {("out", "x"), ("out", "past2"), ("aux1", "d"), ("clean", "m1"), ("clean", "hi")}
    with pytest.raises(ValueError, match="read-only"):
        active["out"]["x"] = False
    assert table.slots == 2
    assert table.clamps
    assert not Tableau([Row(out=x)]).clamps
    assert Tableau([Row(out=x)]).slots == 0
    assert Tableau([Row(out=x + past[0], aux2=past[3])]).slots == 4


RUN = ("timesteps", "push", "denoised", "scale", "alpha", "sigma")
EVERYTHING = Tableau(
    [Row(out=-0.0 * x, clean=m1, aux1=D, aux2=x)] * 2, [8, 1.5], "all", push=[2, 0], denoised=[2, 1],
    scale=[0.1, 3], alpha=[0.2, 0.3], sigma=[0.4, 5], start=7, threshold=(0.5, 3),
)  # fmt: skip


def test_what_is_not_given():
    table = Tableau([Row(out=x)] * 2)
    assert [getattr(table, name).tolist() for name in RUN] == [[0, 1], [0, 0], [0, 0], [1, 1], [0, 0], [0, 0]]
    assert (table.name, table.start, table.threshold, table.masked) == ("tableau", 1.0, None, False)


def test_json_restores_every_bit():
    """Seen to fail: each of the columns left out, and the sign of zero."""
    for table in (random_table(), random_table(clamp=False), EVERYTHING):
        text = table.to_json()
        assert "NaN" not in text
        assert "Infinity" not in text
        for copy in (Tableau.from_json(text), pickle.loads(pickle.dumps(table))):
            assert copy.numbers.tobytes() == table.numbers.tobytes()
            for column in RUN:
                assert getattr(copy, column).tolist() == getattr(table, column).tolist()
                assert getattr(copy, column).dtype == getattr(table, column).dtype
            assert (copy.name, copy.start, copy.threshold) == (table.name, table.start, table.threshold)
    unbounded = Tableau([Row(out=x)], threshold=(np.float32(0.5), math.inf))
    assert "Infinity" not in unbounded.to_json()
    assert pickle.loads(pickle.dumps(unbounded)).threshold == (0.5, math.inf)
    gradient = random_table().transpose()["m1"]
    assert Tableau.from_json(gradient.to_json()).masked


def test_foreign_json_is_refused():
    stored = json.loads(random_table().to_json())
    for text in ("[]", "{}", json.dumps({**stored, "noisefuse tableau": 2})):
        with pytest.raises(ValueError, match="not a noisefuse tableau of version 1"):
            Tableau.from_json(text)
    with pytest.raises(ValueError, match="columns of this tableau are not those of ROW"):
        Tableau.from_json(json.dumps({**stored, "columns": ["x"]}))
    for wrong in ({key: value for key, value in stored.items() if key != "rows"}, {**stored, "steps": 3}):
        with pytest.raises(ValueError, match=r"not a whole noisefuse tableau: .*(rows|steps)"):
            Tableau.from_json(json.dumps(wrong))
    with pytest.raises(ValueError, match="rows: expected 36 numbers in each, got 18"):
        Tableau.from_json(json.dumps({**stored, "rows": [[1.0] * 18] * 6}))
    with pytest.raises(ValueError, match="nested too deeply"):
        Tableau.from_json("[" * 100_000)
    flags = [[False] * 6, *[[False] * 10] * 3]
    for changed, what in (
        ({"name": ["ddim"]}, "name: expected a str, got list"),
        ({"masked": "false"}, "masked: expected a bool, got str"),
        ({"masked": None}, "masked: expected a bool, got NoneType"),
        ({"active": [[*flags[0][:5], "no"], *flags[1:]]}, "active: expected true or false, got .*no"),
        ({"start": "7"}, "start: expected a number, got '7'"),
        ({"scale": ["1", "1", "1"]}, "scale: expected a number, got '1'"),
        ({"rows": [[True] * 36] * 3}, "rows: expected a number, got True"),
        ({"rows": {"1": [1.0] * 36}}, "rows: expected a list, got {'1':"),
        ({"rows": [[10**400] * 36] * 3}, "OverflowError"),
        ({"threshold": [0.5]}, r"threshold: expected \(ratio, maximum\), got \[0.5\]"),
        ({"threshold": 0.5}, "threshold: expected a list, got 0.5"),
    ):
        with pytest.raises(ValueError, match=what):
            Tableau.from_json(json.dumps({**stored, **changed}))


def test_json_that_was_damaged_is_read_or_refused():
    """It raises only ValueError. Seen to fail: types that were not checked."""
    for value in (EVERYTHING, random_table().transpose()["m1"], Schedule.cosine(3), Schedule.linear(3).with_name("a")):
        kind = type(value)
        stored = json.loads(value.to_json())
        for text in damaged(stored, np.random.default_rng(0)):
            try:
                read = kind.from_json(text)
            except ValueError:
                continue
            assert repr(read)
            assert kind.from_json(read.to_json()).to_json() == read.to_json()


def damaged(stored, rng, n=400):
    """Yields the JSON with one value in another's place, a value left out, or a changed character."""
    bad = [None, True, "", "inf", "no", 10**400, 2**63, -1, 1e300, math.nan, -math.inf, [], [[]], {}, {"a": 1}, [1] * 3]
    for _ in range(n):
        copy = json.loads(json.dumps(stored))
        place, key = copy, rng.choice([*copy])
        while isinstance(place[key], list | dict) and place[key] and rng.random() < 0.7:
            place = place[key]
            key = rng.integers(len(place)) if isinstance(place, list) else rng.choice([*place])
        if rng.random() < 0.2:
            del place[key]
        else:
            place[key] = bad[rng.integers(len(bad))]
        text = json.dumps(copy)
        yield text
        at = rng.integers(len(text))
        yield text[:at] + chr(rng.integers(32, 127)) + text[at + 1 :]


@pytest.mark.parametrize(
    ("row", "options", "what"),
    [
        (Row(out=D, clean=x), {}, "got out.d"),
        (Row(out=past[0], aux1=2 * D, clean=x), {}, "got aux1.d"),
        (Row(out=past[0], aux2=x + z), {}, "got aux2.x, aux2.z"),
        (Row(out=past[0], aux1=x), {"push": [1]}, "one output, got push 1 and denoised 0"),
        (Row(out=past[0], aux1=x), {"denoised": [1]}, "one output, got push 0 and denoised 1"),
        (Row(out=past[0], aux1=x), {"threshold": (0.9, 1.0)}, "expected no threshold"),
        (Row(out=past[0]), {"active": Tableau([Row(out=D, clean=x)]).active}, "got out.d"),
    ],
)
def test_masked_rows_have_one_output_and_no_D(row, options, what):
    """JSON is checked, too. Seen to end the process: kernels compute no D for them, and followed a null pointer."""
    with pytest.raises(ValueError, match=what):
        Tableau([row], masked=True, **options)
    stored = json.loads(Tableau([row], **options).to_json()) | {"masked": True}
    with pytest.raises(ValueError, match=what):
        Tableau.from_json(json.dumps(stored))


@pytest.mark.parametrize("name", ["native", *NUMBA])
def test_masked_rows_without_bounds_differ_by_sample(name):
    """Seen to fail: bounds that were looked up where nothing had been written."""
    rows = [Row(out=past[0], aux1=n * past[1], clean=x) for n in range(300)]
    table, ones = Tableau(rows, masked=True), np.ones((300, 3), np.float32)
    with using(name):
        out = update(table, np.arange(300), ones, past=[ones, ones])
    assert np.array_equal(out, np.arange(1, 301)[:, None] * ones)


@pytest.mark.parametrize("value", [EVERYTHING, Sampler(EVERYTHING), Schedule.cosine(3)], ids=lambda v: type(v).__name__)
def test_a_pickle_cannot_skip_the_constructor(value):
    """It may come from anybody. Seen to read out of bounds, and to end the process."""
    kind = type(value)
    forged = b"\x80\x02c" + f"{kind.__module__}\n{kind.__qualname__}\n".encode() + b")\x81"
    forged += pickle.dumps({"rows": b"of another length"}, 2)[2:-1] + b"b."
    with pytest.raises(TypeError, match=f"attributes of a {kind.__name__}, which only its constructor may do"):
        pickle.loads(forged)


def test_rows_tables_and_samplers_are_values():
    """Tables with equal arguments are equal, and have one hash. Seen to fail: identity, as before."""
    table, same = (Tableau([Row(out=0.5 * x + z, aux1=m1)], [3], "mine", push=[1]) for _ in range(2))
    for one, other in ((Row(out=x - m1), Row(out=x - m1)), (table, same), (Sampler(table), Sampler(same))):
        for copy in (other, pickle.loads(pickle.dumps(one))):
            assert one == copy
            assert hash(one) == hash(copy)
        assert len({one, other}) == 1
        assert one != "another type"
    assert Sampler(table) != table
    assert Row(out=x) != Row(out=2 * x)
    assert 2 * x != x
    few = samplers.dpmpp_2m(Schedule.linear(1000), steps=4)
    assert few == samplers.dpmpp_2m(Schedule.linear(1000), steps=4) == pickle.loads(pickle.dumps(few))
    assert few != samplers.dpmpp_2m(Schedule.linear(1000), steps=5)


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": [Row(out=0.25 * x, aux1=m1)]},
        {"timesteps": [4]},
        {"timesteps": [3.0]},  # another dtype of the model's times
        {"name": "another"},
        {"push": [0]},
        {"denoised": [1]},
        {"scale": [2.0]},
        {"alpha": [0.5]},
        {"sigma": [0.5]},
        {"start": 2.0},
        {"threshold": (0.5, 1.0)},
        {"active": Tableau([Row(out=x + z, aux1=m1)]).active},
    ],
    ids=lambda changed: ", ".join(f"{name}={value!r:.20}" for name, value in changed.items()),
)
def test_a_table_that_differs_in_anything_is_unequal(changed):
    """Seen to fail: each of them left out of the comparison."""
    options = {"rows": [Row(out=0.5 * x, aux1=m1)], "timesteps": [3], "name": "mine", "push": [1]}
    assert Tableau(**options) == Tableau(**options)
    assert Tableau(**options) != Tableau(**(options | changed))


def test_a_masked_table_is_another_one():
    """Seen to fail: `masked` left out of the comparison."""
    assert Tableau([Row(out=past[0], aux1=m1)]) != Tableau([Row(out=past[0], aux1=m1)], masked=True)


def test_repr_is_equations():
    row = Row(out=0.25 * D + 0.5 * m1 + z, clean=2 * x - m1, aux1=D, lo=-1)
    table = Tableau([row] * 9, range(90, 0, -10), "demo", push=[1] * 9)
    lines = repr(table).splitlines()
    assert lines[0] == "Tableau(demo, 9 rows)"
    assert lines[1] == "  0: t = 90;  D = clamp(2 x - m1, -1, inf);  x' = 0.5 m1 + 0.25 D + z;  keep D"
    assert lines[4] == "  .. 3 more .."
    assert lines[-1].startswith("  8: t = 10;")
    assert len(lines) == 8
    assert len(repr(Tableau([row] * 6)).splitlines()) == 7
    assert "D = clamp(x, -inf, 2);" in repr(Tableau([Row(out=D, clean=x, hi=2)]))
    assert repr(Tableau([Row(out=x, aux1=D, aux2=2 * m1)], push=[2])).endswith("x' = x;  keep D;  keep 2 m1")
    assert repr(Tableau([Row(out=x, clean=2 * m1)])).endswith("  0: t = 0;  x' = x")  # nothing reads D


def test_repr_of_a_gradient_shows_the_mask():
    table = Tableau([Row(out=0.5 * x + 0.25 * D, clean=2 * x - m1, lo=-1, hi=3)], [7], name="demo")
    tables = table.transpose()
    assert repr(tables["x"]).splitlines() == [
        "Tableau(demo: gradient of x, 1 rows)",
        "  0: t = 7;  v = 2 x - m1;  x' = 0.5 past1 + [-1 <= v <= 3] (0.5 past1)",
    ]
    assert repr(tables["m1"]).endswith("x' = 0 + [-1 <= v <= 3] (-0.25 past1)")


def test_repr_of_one():
    assert str(1.00005 * x - 0.9999 * m1 + 25.756412345 * z) == "1.00005 x - 0.9999 m1 + 25.7564 z"
    assert str((1 + 1e-9) * x - (1 - 1e-9) * m1 + 1.0000001 * k) == "1 + x - m1"


def test_equations_are_all_rows():
    table = Tableau([Row(out=n * x) for n in range(2, 11)])
    lines = table.equations().splitlines()
    assert lines == [f"  {n}: t = {n};  x' = {n + 2} x" for n in range(9)]
    assert repr(table).splitlines()[1:] == [*lines[:3], "  .. 3 more ..", *lines[-3:]]
    assert table.equations([4, 2]).splitlines() == [lines[4], lines[2]]
    for n in (1, 3, 5, 6):
        few = Tableau([Row(out=n * x) for n in range(2, 2 + n)])
        assert repr(few).splitlines()[1:] == few.equations().splitlines()
    with pytest.raises(IndexError):
        table.equations([9])


def test_mixed_is_two_model_outputs():
    table = random_table(inputs=("x", "m1", "past1", "z"))
    pairs = [(-6.5, 7.5), (0.0, 1.0)]
    mixed = table.mixed(pairs)
    assert len(mixed) == 6
    arrays = RNG.normal(size=(5, 4))
    for j, (p, q) in enumerate(pairs):
        for i in range(3):
            X, a, b, past1, noise = arrays
            expected = apply_exact(table.rows[i], X, p * a + q * b, past=[past1], z=noise)
            got = apply_exact(mixed.rows[j * 3 + i], X, a, b, past=[past1], z=noise)
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
            assert mixed.timesteps[j * 3 + i] == table.timesteps[i]
            assert mixed.push[j * 3 + i] == table.push[i]
    twice = EVERYTHING.mixed(pairs)
    for column in RUN:
        assert getattr(twice, column).tolist() == 2 * getattr(EVERYTHING, column).tolist()
    assert (twice.name, twice.start, twice.threshold) == ("all", 7.0, (0.5, 3.0))


def test_mixed_takes_the_first_output_for_an_m2_that_was_there():
    """CFG++ needs it. Seen to fail: the second one."""
    table = random_table(inputs=("x", "m1", "m2", "z"))
    mixed, (X, a, b, noise) = table.mixed([(-0.5, 1.5)]), RNG.normal(size=(4, 5))
    for row, made in zip(table.rows, mixed.rows, strict=True):
        expected = apply_exact(row, X, -0.5 * a + 1.5 * b, a, z=noise)
        np.testing.assert_allclose(apply_exact(made, X, a, b, z=noise), expected, rtol=1e-12, atol=1e-12)


def test_unfolded_writes_d_out():
    table = random_table(clamp=False)
    arrays = RNG.normal(size=(8, 4))
    for row, unfolded in zip(table.rows, table.unfolded().rows, strict=True):
        X, a, b, *history, noise = arrays
        expected, got = (apply_exact(r, X, a, b, history, noise) for r in (row, unfolded))
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
        assert unfolded["out"]["d"] == unfolded["clean"]["x"] == 0
    for bounded in (random_table(), Tableau([Row(out=D, clean=x)], name="random", threshold=(0.9, 2.0))):
        with pytest.raises(ValueError, match="'random' bounds D, so D cannot be written out"):
            bounded.unfolded()


def backward(tables, row, X, a, b, gradients):
    """Computes gradients by the backward rows, as a kernel applies them."""
    result = {}
    for name, table in tables.items():
        unmasked, masked, _ = apply_exact(table.rows[row], X, a, b, past=gradients)
        clean = table.rows[row]["clean"]
        v = clean["k"] + clean["x"] * X + clean["m1"] * a + clean["m2"] * b
        inside = (clean["lo"] <= v) & (v <= clean["hi"])
        result[name] = unmasked + np.where(inside, masked, 0) if table.masked else unmasked
    return result


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("clamp", [False, True])
def test_transpose_against_torch(clamp, outputs):
    torch = pytest.importorskip("torch")
    table = random_table(clamp=clamp)
    tables = table.transpose(outputs)
    assert list(tables) == ["x", "m1", "m2", "past1", "past2", "past3", "past4"]
    assert all(t.masked is clamp and not t.active["out"]["z"] for t in tables.values())
    if not clamp:
        assert not any(t.active["clean"][c] for t in tables.values() for c in ("k", "x", "m1", "m2"))
    for i, row in enumerate(table.rows):
        inputs = [torch.tensor(a, requires_grad=True) for a in RNG.normal(size=(7, 50))]
        values = dict(zip(("x", "m1", "m2", "past1", "past2", "past3", "past4"), inputs, strict=True))
        v = row["clean"]["k"] + sum(row["clean"][s] * values[s] for s in ("x", "m1", "m2"))
        values["d"] = v.clamp(row["clean"]["lo"], row["clean"]["hi"])
        gradients = RNG.normal(size=(outputs, 50))
        for output, g in zip(("out", "aux1", "aux2"), gradients, strict=False):
            sum(row[output][s] * values[s] for s in values).backward(torch.from_numpy(g), retain_graph=True)
        got = backward(tables, i, *(a.detach().numpy() for a in inputs[:3]), gradients)
        for name, tensor in zip(tables, inputs, strict=True):
            np.testing.assert_allclose(got[name], tensor.grad.numpy(), rtol=0, atol=1e-12)
    assert clamp == any(np.any(t.rows["aux1"]["past1"]) for t in tables.values())


def test_transpose_at_the_bounds_and_nan():
    """Both bounds are inside; NaN is outside, as with torch.clamp."""
    table = Tableau([Row(out=D, clean=x, lo=-1, hi=2)])
    got = backward(table.transpose(), 0, np.array([-1.0, 2.0, 2.5, -1.5, np.nan]), 0.0, 0.0, [np.ones(5)])
    assert got["x"].tolist() == [1, 1, 0, 0, 0]


def test_transpose_leaves_out_what_nothing_depends_on():
    table = Tableau([Row(out=2 * x + z, aux1=m1, aux2=m2), Row(out=x - past[0])])
    assert list(table.transpose()) == ["x", "past1"]
    assert list(table.transpose(2)) == ["x", "m1", "past1"]
    assert list(table.transpose(3)) == ["x", "m1", "m2", "past1"]
    with pytest.raises(ValueError, match="outputs must be 1, 2 or 3"):
        table.transpose(4)
    with pytest.raises(ValueError, match=r"rows of 'all' depend on the data \(dynamic thresholding\)"):
        EVERYTHING.transpose()


def test_the_transpose_of_a_gradient():
    """It is linear in the gradients, each with its own: the mask and its bounds are the forward row's."""
    for symbol, table in random_table().transpose(3).items():
        again = table.transpose()
        assert list(again) == ["past1", "past2", "past3"], symbol
        for slot, found in again.items():
            assert found.masked
            assert found.timesteps.tolist() == table.timesteps.tolist()
            assert found.rows["clean"].tolist() == table.rows["clean"].tolist()
            for part in ("out", "aux1"):
                assert found.rows[part]["past1"].tolist() == table.rows[part][slot].tolist()
                assert not found.rows[part]["past2"].any()
    through_d = Tableau([Row(out=D, clean=x, lo=-1)]).transpose()["x"]
    assert list(through_d.transpose()) == ["past1"]


def test_trace_finds_the_rows():
    """Tracing the exact evaluation of a table gives the table, with D written out."""
    table = random_table(clamp=False)
    inputs = ("x", "m1", "m2", "past1", "past2", "past3", "past4", "z")

    def step(i, x, m1, m2, z, **history):
        return apply_exact(table.rows[i], x, m1, m2, [history[f"past{s}"] for s in (1, 2, 3, 4)], z)

    traced = Tableau.trace(step, table.timesteps, inputs=inputs, tolerance=1e-12, name="ours")
    np.testing.assert_allclose(traced.numbers[:, 6:], table.unfolded().numbers[:, 6:], rtol=0, atol=1e-12)
    assert traced.timesteps.tolist() == table.timesteps.tolist()
    assert traced.name == "ours"
    assert not traced.clamps
    only_out = Tableau.trace(lambda i, x: 3 * x + i, [7, 8], inputs=("x",))
    assert only_out.rows["out"]["x"].tolist() == [3, 3]
    assert only_out.rows["out"]["k"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "step",
    [
        lambda i, x, m1, z: x * m1,
        lambda i, x, m1, z: np.clip(x, -1, 1),
        lambda i, x, m1, z: np.abs(x) + m1,
        lambda i, x, m1, z: x + m1.mean(),
        lambda i, x, m1, z: x + 1e-3 * z**2,
        lambda i, x, m1, z: 1e-8 * np.abs(x),
        lambda i, x, m1, z: (x, np.maximum(m1, 0)),
    ],
    ids=["product", "clip", "abs", "mean", "square", "tiny", "aux"],
)
def test_trace_refuses_what_is_not_affine(step):
    with pytest.raises(ValueError, match=r"row 0 of 'trace': (out|aux1) is not affine in x, m1, z"):
        Tableau.trace(step, [0])


def test_trace_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="row 0 of 'trace': aux1 is not finite, though x, m1, z are"):
        Tableau.trace(lambda i, x, m1, z: (x, x + np.nan), [0])


@pytest.mark.parametrize("bound", [1, 10, 50])
def test_trace_sees_a_clamp_of_one_input(bound):
    with pytest.raises(ValueError, match="out is not affine in x"):
        Tableau.trace(lambda i, x: np.clip(x, -bound, bound), [0], inputs=("x",))


def test_trace_of_a_step_that_writes_into_its_inputs():
    def step(i, x, m1):
        x *= 2
        x += m1
        return x

    assert Tableau.trace(step, range(3), inputs=("x", "m1")).rows["out"]["x"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("step", [lambda i, x: 0.0, lambda i, x: [x, x], lambda i, x: (x, x, x, x), lambda i, x: x[:1]])
def test_trace_says_what_a_step_should_return(step):
    with pytest.raises(ValueError, match=r"row 0 of 'trace': expected out, or a tuple of up to three .*, got \["):
        Tableau.trace(step, [0], inputs=("x",))


def test_trace_knows_its_inputs():
    with pytest.raises(ValueError, match=r"inputs must be among x, m1, .*, got noise"):
        Tableau.trace(lambda i, noise: noise, [0], inputs=("noise",))


def test_a_bound_of_zero_counts_and_the_other_bound_stays_off():
    table = Tableau([Row(clean=1.0 * x, out=1.0 * D, lo=0.0), Row(clean=1.0 * x, out=1.0 * D, hi=0.0)])
    data = np.array([[-1, 2], [3, -4]], np.float32)
    assert update(table, 0, data).tolist() == [[0, 2], [3, 0]]
    assert update(table, [0, 1], data).tolist() == [[0, 2], [0, -4]]


def test_a_sum_is_not_changed_by_writing_to_its_array():
    factors = np.ones(2)
    row = Row(factors * x)
    factors[:] = 5
    assert row.numbers().view(ROW)["out"]["x"].ravel().tolist() == [1, 1]


def test_a_row_has_no_negative_zeros():
    assert not np.signbit(Row(-(x - x)).numbers()[0, 6:]).any()
