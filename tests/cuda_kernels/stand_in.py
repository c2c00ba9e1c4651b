# SPDX-License-Identifier: Apache-2.0
"""A stand-in for CuPy and for the device below it. It is not CuPy, and nothing here runs on a GPU.

Arrays lie in host memory; kernels are csrc/cuda/kernels.cu compiled by the C++ compiler (on_cpu.cpp) or, if
STAND_IN_MACHINE_CODE in the environment names an architecture, the machine code for it (sass.py). The tests can
follow the backend's use of CuPy: which kernels it launches, on which device, and what it uploads. Like CuPy's, these
arrays refuse to become NumPy arrays by themselves.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np

from noisefuse.backends.cuda.launches import LAUNCH

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=c++20", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Wextra",
         "-Werror=switch"]  # fmt: skip


def compiler():
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def build(folder, *flags, sources=CSRC):
    """The kernels as a library for this CPU."""
    folder = Path(folder)
    for name in ("core", "cuda"):
        shutil.copytree(sources / name, folder / name, dirs_exist_ok=True)
    shutil.copy(HERE / "instructions.h", folder / "cuda")
    command = [compiler(), *FLAGS, *flags, "-Wno-unknown-pragmas", f"-I{folder / 'cuda'}", HERE / "on_cpu.cpp"]
    subprocess.run([*command, "-o", folder / "kernels.so"], check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


@functools.cache
def library():
    folder = tempfile.mkdtemp(prefix="noisefuse-kernels-")
    try:
        with open("/proc/cpuinfo") as file:
            has_fma = " fma " in file.read()
        return build(folder, *(["-mfma"] if has_fma else []), *os.environ.get("STAND_IN_FLAGS", "").split())
    finally:
        shutil.rmtree(folder)


class Kernel:
    """Runs the CPU's build in place of a kernel, and records the launch."""

    def __init__(self, name, cupy):
        self.name, self.cupy = name, cupy

    def __call__(self, grid, block, args):
        (launch,) = args
        grid = (*grid, 1, 1)[:3]
        assert isinstance(launch, np.ndarray)
        assert (launch.size, launch.nbytes) == (1, LAUNCH.size)
        assert 1 <= grid[0] < 1 << 31
        assert all(1 <= n <= 65535 for n in grid[1:])
        device = self.cupy.cuda.runtime.getDevice()
        check_places(launch.view(LAUNCH.dtype)[0], device)
        self.cupy.launches.append((self.name, grid, block, device))
        self.cupy.streams.append(self.cupy.stream)
        self.cupy.execute(self.name, grid, block[0], launch)


POINTERS = "rows", "index", "in", "out", "fields", "transitions", "keep", "weights", "upstream", "losses", "chunk_sums"


def check_places(launch, device):
    """Asserts that all memory that a launch reads or writes lies on its device."""
    places = [(name, launch["call"][name]) for name in POINTERS]
    places += [(name, launch["field"][name]) for name in ("samples", "counter")]
    for name, at in [(name, at) for name, several in places for at in np.ravel(several).tolist() if at]:
        owners = {a.device.id for a in alive if a.data.ptr <= at < a.data.ptr + a.nbytes}
        assert device in owners, f"{name} of a launch on device {device} lies on {owners or 'no device'}"


def run_on_cpu(name, grid, threads, launch):
    """One kernel. All its threads run one after another."""
    done = library().run(name.encode(), (ctypes.c_uint * 3)(*grid), threads, ctypes.c_void_p(launch.ctypes.data))
    assert done == 0, f"no kernel {name}"


def memory():
    """Returns all host arrays that stand for device memory."""
    return [a.host for a in alive]


@functools.cache
def program(arch):
    """Returns the kernels' machine code, as nvcc makes it."""
    from . import compilers, sass

    cubin = compilers.compiled("nvcc", arch)["cubin"]
    return sass.Program(sass.elf_sections(cubin), compilers.disassembly(cubin))


def execute(name, grid, threads, launch):
    arch = os.environ.get("STAND_IN_MACHINE_CODE")
    (program(arch).execute(memory) if arch else run_on_cpu)(name, grid, threads, launch)


alive = weakref.WeakSet()  # all living arrays of the stand-in


class ndarray:
    """The part of cupy.ndarray that the library uses, over a NumPy array that stands for device memory."""

    def __init__(self, host, device=0):
        self.host, self.device = host, SimpleNamespace(id=device)
        self.data = SimpleNamespace(ptr=host.ctypes.data, device_id=device)
        self.flags = SimpleNamespace(c_contiguous=host.flags.c_contiguous)
        alive.add(self)

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    size = property(lambda self: self.host.size)
    ndim = property(lambda self: self.host.ndim)
    strides = property(lambda self: self.host.strides)
    itemsize = property(lambda self: self.host.itemsize)
    nbytes = property(lambda self: self.host.nbytes)

    def _same(self, host):
        return type(self)(host, self.device.id)

    def astype(self, dtype, copy=True, order="K"):
        return self if self.host.dtype == dtype and not copy else self._same(self.host.astype(dtype))

    def copy(self, order="C"):
        return self._same(self.host.copy(order))

    def reshape(self, *shape):
        return self._same(self.host.reshape(*shape))

    def get(self):
        return self.host.copy()

    def __getitem__(self, index):
        return self._same(self.host[index])

    def __setitem__(self, index, value):
        self.host[index] = value.host if isinstance(value, ndarray) else value

    def __add__(self, other):
        return self._same(np.asarray(self.host + (other.host if isinstance(other, ndarray) else other)))

    def __mul__(self, other):
        return self._same(np.asarray(self.host * (other.host if isinstance(other, ndarray) else other)))

    def __len__(self):
        return len(self.host)

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion to a NumPy array is not allowed, as in CuPy")

    def __array_function__(self, function, types, args, kwargs):
        """NumPy's functions call CuPy's of the same name; here, NumPy's on the host arrays."""
        bare = [a.host if isinstance(a, ndarray) else a for a in args]
        return self._same(np.asarray(function(*bare, **kwargs)))


ndarray.__module__ = "cupy.stand_in"  # the library knows CuPy's arrays by the name of their package


class UnownedMemory(NamedTuple):
    """Memory of another owner, which this object keeps alive."""

    start: int
    size: int
    owner: object
    device: int


class MemoryPointer(NamedTuple):
    memory: UnownedMemory
    offset: int


class Cupy(ModuleType):
    """The part of the module `cupy` that the library uses. `launches`, with their `streams`, and `uploads` keep a
    record. A stream is its handle, with the device that was current when it was entered."""

    def __init__(self, devices=2):
        super().__init__("cupy")
        self.launches, self.streams, self.uploads, self.float32 = [], [], [], np.float32
        self.current, self.stream, self.execute, self.capturing = 0, (0, 0), execute, False
        stream = SimpleNamespace(synchronize=lambda: None, is_capturing=lambda: self.capturing)
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(getDevice=lambda: self.current, getDeviceCount=lambda: devices),
            Device=self._device,
            Stream=SimpleNamespace(from_external=self._from_external),
            get_current_stream=lambda: stream,
            UnownedMemory=UnownedMemory,
            MemoryPointer=MemoryPointer,
            Module=lambda: SimpleNamespace(load=lambda code: None, get_function=lambda name: Kernel(name, self)),
        )

    @contextmanager
    def _device(self, number):
        before, self.current = self.current, number
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def _from_external(self, stream):
        before, (version, handle) = self.stream, stream.__cuda_stream__()
        assert version == 0
        self.stream = self.current, handle
        try:
            yield
        finally:
            self.stream = before

    def ndarray(self, shape, dtype, memptr, strides):
        """An array over another owner's memory; it may not reach beyond that."""
        memory, offset = memptr
        buffer = (ctypes.c_char * memory.size).from_address(memory.start)
        buffer.owner = memory.owner
        return ndarray(np.ndarray(shape, dtype, buffer, offset, strides), memory.device)

    def empty(self, shape, dtype="float64"):
        host = np.empty(shape, dtype)
        host.reshape(-1).view(np.uint8)[:] = 0xA5  # arbitrary earlier contents
        return ndarray(host, self.current)

    def zeros(self, shape, dtype="float64"):
        return ndarray(np.zeros(shape, dtype), self.current)

    def asarray(self, a, dtype=None):
        if isinstance(a, ndarray):
            return a if dtype is None else a.astype(dtype, copy=False)
        self.uploads.append(np.shape(a))
        return ndarray(np.array(a, dtype), self.current)

    def ascontiguousarray(self, a):
        return a if a.flags.c_contiguous else a.copy()

    def asnumpy(self, a):
        return a.get() if isinstance(a, ndarray) else np.asarray(a)


@contextmanager
def installed():
    """Runs with this as the module `cupy`, and without a binary for a device."""
    from noisefuse import backends
    from noisefuse.backends.cuda import cubin

    cupy, before = Cupy(), sys.modules.get("cupy")
    binary, tested = cubin.binary, backends._tested_devices
    sys.modules["cupy"] = cupy
    cubin.binary = lambda _: b"stand_in"
    backends._tested_devices = set()
    try:
        yield cupy
    finally:
        cubin.binary, backends._tested_devices = binary, tested
        if before is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = before
