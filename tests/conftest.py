# SPDX-License-Identifier: Apache-2.0
"""Fixtures over every backend, instruction set and number of threads; what bits are."""

import platform
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest

import noisefuse as nf
from noisefuse import _native

NATIVE = [f"native-{isa}" for isa, supported in _native.isas().items() if supported]
BACKENDS = [*NATIVE, "numba", "reference"]
DTYPES = {dtype.name: dtype for dtype in map(np.dtype, ("f4", "f8", "f2", ml_dtypes.bfloat16))}


@contextmanager
def using(name):
    """The backend "numba" or "reference", or "native-" and an instruction set."""
    backend, _, isa = name.partition("-")
    before = _native.isa()
    with nf.use_backend(backend):
        try:
            _native.use_isa(isa or before)
            yield
        finally:
            _native.use_isa(before)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with using(request.param):
        yield request.param


@pytest.fixture(params=NATIVE)
def native(request):
    with using(request.param):
        yield request.param


@pytest.fixture(params=[*NATIVE, "numba"])
def compiled(request):
    """Backends with threads, and a floating-point mode of their own."""
    with using(request.param):
        yield request.param


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    with nf.set_num_threads(request.param):
        yield request.param


def bits(array):
    """The bytes of an array in C order, every NaN made the same: payload and sign are not promised."""
    array = np.array(array, order="C")
    if array.dtype.kind not in "iu":
        with np.errstate(invalid="ignore"):  # signalling NaN
            array[np.isnan(array)] = np.nan
    return array.tobytes()


def pytest_report_header():
    info = nf.info()
    return (
        f"noisefuse {info['version']}: {', '.join(BACKENDS)}; default {info['isa']}; "
        f"{info['threads']} threads; {info['cpu']}; numpy {np.__version__}, {platform.platform()}"
    )
