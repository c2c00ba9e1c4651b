# SPDX-License-Identifier: Apache-2.0
"""Numbers for several rows in place of one: operations for all at once, row after row, or refused."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from noisefuse.interop.diffusers.lanes import CLAMP, Alone, Choices, Lanes, Parted, counted, each, lanes, row_of  # noqa: E402

NUMBERS = [0.3, 1.7, 0.9, 12.5]
UNITS = torch.eye(3, dtype=torch.float64)[:1]


def numbers(dtype=torch.float32):
    return lanes(torch.tensor(NUMBERS, dtype=dtype).reshape(-1, 1))


FUNCTIONS = {
    "arithmetic": lambda v: (1 - v) / v * 3 - v / 7 + 1 / v - (-v),
    "roots": lambda v: v**0.5 + (v + 1) ** 2 - torch.sqrt(v),
    "other powers": lambda v: v**1.3 + v**-0.5 + 0.5**v + v**3,
    "logarithms": lambda v: torch.log(v).exp() + torch.expm1(v) - torch.sin(v),
    "NumPy's": lambda v: np.log(v) - 1,
    "clamps": lambda v: torch.clamp(v, min=0.5) + v.clamp(0, 1) + torch.where(v > 1, v, 2 * v),
    "0-d tensors": lambda v: torch.tensor(0.1) - v * torch.tensor(3, dtype=torch.int64),
    "wider 0-d tensors": lambda v: torch.tensor(0.1, dtype=torch.float64) * v,
    "conversions": lambda v: v.to(torch.float64) / 3 + v.double() + v.float(),
    "a max": lambda v: max(float(min(v * 0 + 2, 3)), 1) * v,
}


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of torch's tensors in NumPy's functions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_row_has_the_bits_that_it_has_alone(name, dtype):
    """Seen to fail: a 0-d float64 beside float32 numbers as torch promotes it beside vectors."""
    function = FUNCTIONS[name]
    made = function(numbers(dtype))
    for row, value in enumerate(NUMBERS):
        alone = function(torch.tensor(value, dtype=dtype))
        found = row_of(made, row)
        assert found.dtype == alone.dtype
        assert torch.equal(found, alone)


def test_vectors_are_scaled_and_added():
    v, x = numbers(), lanes(UNITS)
    made = (v * x + x / v - x) * torch.tensor(2.0)
    for row, value in enumerate(NUMBERS):
        a = torch.tensor(value)
        assert torch.equal(made.plain[row : row + 1], (a * UNITS + UNITS / a - UNITS) * torch.tensor(2.0))
    assert (x.shape, v.shape, x.dtype) == ((1, 3), (), torch.float64)
    assert x.to(torch.float64) is x  # like tensors


@pytest.mark.parametrize(
    "function",
    [
        lambda v, x: x.abs(),
        lambda v, x: x.max(),
        lambda v, x: x**2,
        lambda v, x: torch.stack([v, v]),
        lambda v, x: v.add_(1),
        lambda v, x: v.__iadd__(1),
        lambda v, x: v.item(),
        lambda v, x: float(v),
        lambda v, x: v.unsqueeze(-1),
        lambda v, x: v + torch.ones(2),
        lambda v, x: v[0],
        lambda v, x: counted([1, 2]) / 2,
        lambda v, x: counted([1, 2]) * torch.tensor(0.5),
        lambda v, x: np.add.reduce(v),
    ],
)  # fmt: skip
def test_what_several_rows_cannot_do_together(function):
    """Seen to fail: Python's whole numbers that are divided as tensors."""
    with pytest.raises(Alone):
        function(numbers(), lanes(UNITS))


def test_rows_part_at_an_if():
    v = numbers()
    with pytest.raises(Parted) as parted:
        bool(v > 1)
    assert parted.value.flags == [False, True, False, True]
    assert bool(v > 0)
    assert not v < 0
    with pytest.raises(Parted) as parted:
        Choices([1, 1, 2])[counted([0, 1, 2])]
    assert parted.value.flags == [True, True, False]
    assert Choices([1, 1, 2])[counted([0, 1])] == 1
    assert Choices([1, 1, 2])[2] == 2


def test_counts_are_whole_numbers():
    count, table = counted([0, 2]), lanes(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    count += 1
    assert type(row_of(count, 1)) is int
    assert table[count].plain.tolist() == [[6.0], [8.0]]
    assert table[np.int64(1) + 1] == 7
    assert len(table) == 4
    with pytest.raises(Parted):
        bool(count == len(table) - 1)
    found = each(lambda t: math.floor(t), (numbers(),), {})
    assert [row_of(found, row) for row in range(4)] == [0, 1, 0, 12]


def test_a_clamp_of_vectors_is_handed_over():
    token = CLAMP.set(lambda x, lo, hi: (x, lo, hi))
    try:
        x = lanes(UNITS)
        assert x.clamp(-1, 1) == (x, -1, 1)
    finally:
        CLAMP.reset(token)
    assert isinstance(x, Lanes)
