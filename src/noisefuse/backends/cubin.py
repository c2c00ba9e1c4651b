# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels as machine code: a fatbin that the build made, or what NVRTC makes of the sources at first use."""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Contraction and flushing would change bits. CuPy's own RawModule(code=) adds -ftz=true behind them, so it is not used.
OPTIONS = ("--std=c++20", "-fmad=false", "-ftz=false", "-prec-sqrt=true", "-prec-div=true")
SOURCE = '#include "cuda/kernels.cu"\n'


def installed() -> Path:
    """Where the build put `csrc` and, with -DNOISEFUSE_CUDA=ON, `kernels.fatbin`. ImportError: nothing was built."""
    extension = find_spec("noisefuse._native")
    if extension is None or extension.origin is None:
        raise ImportError(
            "the CUDA sources come with the C++ extension, which was not built when noisefuse was installed"
        )
    return Path(extension.origin).parent


@cache
def function(cupy: Any, device: int, name: str) -> Any:
    """The kernel of this name on the current device, whose number is `device`."""
    return _module(cupy, device).get_function(name)


@cache
def _module(cupy: Any, device: int) -> Any:
    return cupy.RawModule(path=str(binary(cupy)))


def binary(cupy: Any) -> Path:
    """A file of machine code for the current device."""
    fatbin = installed() / "kernels.fatbin"
    if fatbin.exists():
        return fatbin
    arch = cupy.cuda.Device().compute_capability
    version = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    path = cache_folder() / f"kernels-sm_{arch}-{digest(arch, version)}.cubin"
    if not path.exists():
        write(path, compiled(cupy, arch))
    return path


def compiled(cupy: Any, arch: str, source: str = SOURCE) -> bytes:
    """What NVRTC makes of the sources; a few seconds."""
    root = installed() / "csrc"
    options = (*OPTIONS, f"-I{root}", f"-I{root / 'cuda' / 'rtc'}")
    code, _ = cupy.cuda.compiler.compile_using_nvrtc(source, options, arch)
    return bytes(code) + b"\0"  # CuPy cuts the last byte off, which is a zero, and a file needs it


def digest(arch: str, compiler: str) -> str:
    """Of all that the machine code depends on."""
    root = installed() / "csrc"
    found = hashlib.sha256("\0".join((arch, compiler, *OPTIONS, SOURCE)).encode())
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:20]


def cache_folder() -> Path:
    """NOISEFUSE_CACHE_DIR, else `noisefuse` in the user's cache; one of this process where neither can be written."""
    chosen = os.environ.get("NOISEFUSE_CACHE_DIR")
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "noisefuse"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="noisefuse-"))


def write(path: Path, code: bytes) -> None:
    """In one step, because other processes may be doing the same."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(code)
    os.replace(file.name, path)
