# SPDX-License-Identifier: Apache-2.0
"""Random calls with other libraries' arrays, and against other backends than the reference: a few of each."""

import pytest

import random_calls
from noisefuse.commands.campaign import differential


@pytest.mark.parametrize(("library", "cases"), [("torch", 300), ("jax", 40), ("dask", 100)])
def test_other_libraries_give_numpys_bits(library, cases, capsys):
    """Seen to fail: JAX took sample 0 if one of a list of noises had a list of one id; `prepare` took uint16 of the
    other byte order for bytes."""
    pytest.importorskip(library)
    assert random_calls.compare_libraries([library], cases, 5, 10), capsys.readouterr().out
    assert "compared" in capsys.readouterr().out


def test_another_bit_is_found(monkeypatch, capsys):
    pytest.importorskip("torch")
    spoilt = {"torch": lambda x: random_calls.torch_array(x) * (1 + 2**-7) if x.size else random_calls.torch_array(x)}
    monkeypatch.setattr(random_calls, "LIBRARIES", spoilt)
    assert not random_calls.compare_libraries(["torch"], 100, 5, 10)
    assert "# other bits" in capsys.readouterr().out


def test_another_backend_than_the_reference_is_compared_with():
    results = differential.run(60, 3, numba=False, against="native-portable")
    assert all(result.passed for result in results)
    assert sum(result.cases for result in results) == 60


def test_a_campaign_ends_when_its_time_is_over():
    assert differential.run(1000, 3, numba=False, minutes=0) == []
