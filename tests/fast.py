# SPDX-License-Identifier: Apache-2.0
"""Compares the fast path with the checked way: what a call returns, raises and warns of."""

import warnings

import numpy as np
import pytest

from conftest import NATIVE, using
from noisefuse import backends


@pytest.fixture(autouse=True)
def native():
    if not NATIVE:
        pytest.skip("the other backends have no fast path")
    with using(NATIVE[0]):
        yield


def outcome(call):
    """Returns what a call gave, to the bit, or its error; and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = bits_of(call())
        except Exception as error:
            found = type(error), str(error)
    return found, [str(one.message) for one in caught]


def bits_of(found):
    if isinstance(found, tuple | list):
        return [bits_of(one) for one in found]
    if isinstance(found, dict):
        return {name: bits_of(one) for name, one in found.items()}
    if isinstance(found, float):
        return found.hex()
    if isinstance(found, np.ndarray):
        return "array", found.dtype.str, found.shape, found.flags.writeable, found.tobytes()
    if hasattr(found, "untyped_storage"):
        numbers = found.detach().view(getattr(__import__("torch"), f"uint{8 * found.itemsize}"))
        return "tensor", found.dtype, found.stride(), found.requires_grad, *bits_of(numbers.numpy())[2:]
    return found


def checked(monkeypatch, call):
    """Returns what the checked way gives."""
    with monkeypatch.context() as patch:
        for name in backends.FAST_PATH:
            patch.setattr(backends, name, backends.declined)
        return outcome(call)


def counted(monkeypatch, call):
    """Returns what a call gives, and the functions of the fast path that took it."""
    taken = []

    def noting(name, function):
        def note(*arguments):
            found = function(*arguments)
            if found is not NotImplemented:
                taken.append(name)
            return found

        return note

    with monkeypatch.context() as patch:
        for name in backends.FAST_PATH:
            patch.setattr(backends, name, noting(name, getattr(backends, name)))
        return outcome(call), taken


def same_as_checked(monkeypatch, call, taken):
    """Both ways give the same. The fast path takes the call, or declines it."""
    found, names = counted(monkeypatch, call)
    assert found == checked(monkeypatch, call)
    assert names == ([taken] if taken else [])


def library(name):
    """Returns what makes arrays of a library: NumPy, or torch."""
    return np.asarray if name == "NumPy" else pytest.importorskip("torch").from_numpy
