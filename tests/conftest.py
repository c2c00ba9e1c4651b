# SPDX-License-Identifier: Apache-2.0
"""Fixtures over every backend, instruction set and number of threads."""

import faulthandler
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import noisefuse as nf
from cuda_kernels import stand_in
from differential import bits as bits
from noisefuse import backends
from noisefuse.backends import reference
from noisefuse.backends.cuda import launches
from noisefuse.call.description import Loss, Step, Walk
from noisefuse.commands import selftest

pytest.register_assert_rewrite("diffusers_loops", "sampler_cases")  # their failures show values, as tests' do
# In the extra "test", but not among the few packages of tests/sanitize.sh.
NUMBA = ["numba"] if find_spec("numba") else []
# It is None if the extension was not built; then tools/test_built.sh tests its bits.
NATIVE = [f"native-{isa}" for isa, state in nf.info()["isas"].items() if state == "available"]
# These are the kernels of csrc/cuda compiled for this CPU, which is not the device; and the device itself, under
# `pytest -m gpu`.
STAND_IN, DEVICE = "cuda-stand_in", "cuda"
BACKENDS = [*NATIVE, *NUMBA, "reference", STAND_IN]
DTYPES = {dtype.name: dtype for dtype in map(np.dtype, ("f4", "f8", "f2", ml_dtypes.bfloat16))}


class Bare:
    """An array of no library, with the least that DLPack asks for."""

    def __init__(self, a):
        self.a = a

    def __dlpack__(self, **options):
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.a.__dlpack_device__()


@contextmanager
def using(name):
    """Returns the backend "numba" or "reference", or "native-" and an instruction set, "cuda-stand_in" or "cuda"."""
    if name == STAND_IN:
        with stand_in.installed() as cupy, on_device(cupy):
            yield
        return
    if name == DEVICE:
        with on_device(real_cupy()):
            yield
        return
    with selftest.using(name):
        yield


def real_cupy():
    """Returns CuPy with a device; else the test is skipped."""
    cupy = pytest.importorskip("cupy")
    if (state := launches.state()) != "available":
        pytest.skip(state)
    return cupy


@contextmanager
def on_device(cupy):
    """Makes calls with NumPy arrays go through copies on the device, after their checks."""

    def moved(call):
        copies = {}

        def to_device(a):
            if a is None:
                return None
            key = a.ctypes.data, a.dtype, a.shape  # an output may be an input
            return copies.setdefault(key, cupy.asarray(a))

        inputs, outputs = (tuple(map(to_device, arrays)) for arrays in (call.inputs, call.outputs))
        return call._replace(inputs=inputs, outputs=outputs)

    def back(call, there):
        for out, copy in zip(call.outputs, there.outputs, strict=True):
            if out is not None:
                out[...] = cupy.asnumpy(copy)

    def step(call):
        there = moved(call)
        launches.step(there)
        back(call, there)

    def walk(call):
        first = moved(call.first)
        launches.walk(call._replace(first=first))
        back(call.first, first)

    def loss(call):
        losses = None if call.losses is None else cupy.asarray(call.losses)
        there = call._replace(residual=moved(call.residual), losses=losses)
        launches.loss(there)
        back(call.residual, there.residual)
        if losses is not None:
            call.losses[...] = cupy.asnumpy(losses)

    on_device = backends.runner({Step: step, Walk: walk, Loss: loss})

    def run(call):
        return on_device(call) if isinstance(call, Step | Walk | Loss) else reference.run(call)

    no_fast_path = dict.fromkeys(backends.FAST_PATH)
    with nf.use_backend(SimpleNamespace(run=run, empty=np.empty, **no_fast_path, tests_itself=False)):
        yield


@pytest.fixture(params=[*BACKENDS, pytest.param(DEVICE, marks=pytest.mark.gpu)])
def backend(request):
    with using(request.param):
        yield request.param


@pytest.fixture(params=NATIVE)
def native(request):
    with using(request.param):
        yield request.param


@pytest.fixture(params=[*NATIVE, *NUMBA, "reference"])
def host(request):
    """Yields backends in host memory, for operations that devices do not have."""
    with using(request.param):
        yield request.param


@pytest.fixture(params=[*NATIVE, *NUMBA])
def compiled(request):
    """Yields backends with threads, and a floating-point mode of their own."""
    with using(request.param):
        yield request.param


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    with nf.set_num_threads(request.param):
        yield request.param


@pytest.fixture
def torch():
    """Yields the library, for single tests of it: the extra test-core has it not."""
    return pytest.importorskip("torch")


@pytest.fixture
def x64():
    """Lets JAX have 64 bits."""
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def until(true, seconds=60):
    """Waits until true() is true, at most so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="session")
def csrc_constants(tmp_path_factory):
    """Returns [name, number, ..] for each line that csrc_constants.cpp prints of known/normal64.txt; numbers are still
    text."""
    program = tmp_path_factory.mktemp("csrc") / "constants"
    source = Path(__file__).with_name("csrc_constants.cpp")
    options = ["-std=c++20", "-O0", "-ffp-contract=off", f"-I{stand_in.CSRC}"]
    subprocess.run([stand_in.compiler(), *options, source, "-o", program], check=True)
    words = "\n".join(map(" ".join, read_known("normal64.txt")))
    lines = subprocess.run([program], check=True, capture_output=True, text=True, input=words).stdout.splitlines()
    return [line.split() for line in lines]


def first_and_slow(values):
    """Marks parameters of a test: the first runs by default, the others with slow tests."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]


def one_in(n, values):
    """Marks parameters of a test that repeats itself: the first of every n runs by default, the others before a
    release."""
    return [value if k % n == 0 else pytest.param(value, marks=pytest.mark.release) for k, value in enumerate(values)]


# The reference takes seconds where others take milliseconds; other tests compare it with them.
reference_is_slow = pytest.mark.parametrize(
    "backend",
    [
        *(pytest.param(name, marks=[pytest.mark.slow] * (name == "reference")) for name in BACKENDS),
        pytest.param(DEVICE, marks=pytest.mark.gpu),
    ],
    indirect=True,
)


def read_known(name):
    """Returns [number, ..] for each line of a file in known/, still text."""
    lines = (Path(__file__).parent / "known" / name).read_text().splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


# ---- skips -------------------------------------------------------------------------------------------------


def pytest_addoption(parser):
    help = "fail where a test is skipped that this file does not name (tests/allowed_skips.toml), as CI does"
    parser.addoption("--allowed-skips", type=Path, metavar="FILE", help=help)
    help = "list the lines of noisefuse's whose calls failed, as is asked of new versions of libraries"
    parser.addoption("--broken-calls", action="store_true", help=help)


def skips_of(reports):
    """{(file, reason)} of skips: tests, and files with all their tests."""
    return {(report.nodeid.partition("::")[0], report.longrepr[2].removeprefix("Skipped: ")) for report in reports}


def unexpected_skips(skips, allowed):
    """Returns the skips that no entry allows, by file and beginning of the reason, on this system."""

    def names(entry, file, reason):
        here = not {sys.platform, platform.machine()}.isdisjoint(entry.get("on", [sys.platform]))
        return here and fnmatch(file, entry["file"]) and reason.startswith(entry["reason"])

    return sorted(skip for skip in skips if not any(names(entry, *skip) for entry in allowed))


def pytest_sessionfinish(session):
    """Compares in the process that prints; workers of xdist send it their reports."""
    file, reporter = (
        session.config.getoption("allowed_skips"),
        session.config.pluginmanager.get_plugin("terminalreporter"),
    )
    if file is None or hasattr(session.config, "workerinput"):
        return
    allowed = tomllib.loads(file.read_text()).get("skip", [])
    unexpected = unexpected_skips(skips_of(reporter.stats.get("skipped", [])), allowed)
    for skip in unexpected:
        reporter.write_line(f"skipped, which {file} does not allow: {': '.join(skip)}", red=True)
    if unexpected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# ---- crashes -----------------------------------------------------------------------------------------------

TRACES = pytest.StashKey[tempfile.TemporaryDirectory]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    traces = node.config.stash.setdefault(TRACES, tempfile.TemporaryDirectory())
    node.workerinput["trace"] = str(Path(traces.name) / node.gateway.id)


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """The last words of a worker that crashes go to a file. Triton's kernels are interpreted, which has to be said
    before they are defined; `-m gpu` compiles them."""
    if trace := getattr(config, "workerinput", {}).get("trace"):
        faulthandler.enable(open(trace, "w"))  # noqa: SIM115
    # The bits of the oldest version that is tested are wrong in its interpreter.
    if config.getoption("markexpr") != "gpu" and find_spec("triton") and version("triton") != "3.2.0":
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(report, sched):
    """The failure of a test whose worker crashed shows them."""
    traces = sorted(Path(sched.config.stash[TRACES].name).iterdir())
    report.longrepr = "\n".join([report.longrepr, *(trace.read_text() for trace in traces)])


# ---- calls that broke --------------------------------------------------------------------------------------


def broken_calls(reports):
    """{(file, line): first error} of failed tests: the last line of noisefuse's, or of a test, before the error."""
    found = {}
    for report in reports:
        entries = getattr(getattr(report.longrepr, "reprtraceback", None), "reprentries", [])
        places = [entry.reprfileloc for entry in entries if getattr(entry, "reprfileloc", None)]
        ours = [place for place in places if re.search(r"(^|/)(noisefuse|tests)/", place.path)]
        if ours:
            error = report.longrepr.reprcrash.message.partition("\n")[0]
            found.setdefault((ours[-1].path, ours[-1].lineno), error)
    return found


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("broken_calls"):
        return
    failed = terminalreporter.getreports("failed") + terminalreporter.getreports("error")
    for (file, line), error in sorted(broken_calls(failed).items()):
        terminalreporter.write_line(f"broke: {file}:{line}: {error}")


def pytest_report_header(config):
    info = nf.info()
    lines = [
        f"noisefuse {info['version']}: {', '.join(BACKENDS)}; default {info['isa']}; "
        f"{info['threads']} threads; {info['cpu']}; numpy {np.__version__}, {platform.platform()}"
    ]
    if config.getoption("markexpr") == "not slow and not release and not gpu":
        slow = "slow tests (-m 'slow and not release', some 10 minutes)"
        lines.append(f"left out: {slow}, of a release (-m release, some 20 minutes), of a GPU (-m gpu)")
    return lines
