# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels as machine code: a fatbin from the build, or NVRTC's compilation of the sources at first use."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from ...ground.headers import installed

# Contraction and flushing would change bits. CuPy's own RawModule(code=) adds -ftz=true at the end, so it is not used.
OPTIONS = ("--std=c++20", "-fmad=false", "-ftz=false", "-prec-sqrt=true", "-prec-div=true")
SOURCE = '#include "cuda/kernels.cu"\n'


@cache
def function(cupy: Any, device: int, name: str) -> Any:
    """Returns the kernel of this name on the current device, whose number is `device`."""
    return _module(cupy, device).get_function(name)


@cache
def _module(cupy: Any, device: int) -> Any:
    return loaded(cupy, binary(cupy))


def loaded(cupy: Any, code: bytes) -> Any:
    """Loads a module of machine code. It takes bytes, because a file may change after it was checked."""
    module = cupy.cuda.Module()
    module.load(code)
    return module


def binary(cupy: Any) -> bytes:
    """Returns machine code for the current device."""
    fatbin = installed() / "kernels.fatbin"
    if fatbin.exists():
        return fatbin.read_bytes()
    arch = cupy.cuda.Device().compute_capability
    version = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    folder, name = cache_folder(), f"kernels-sm_{arch}-{digest(arch, version)}.cubin"
    code = read(folder / name) if folder else None
    if code is None:
        code = compiled(cupy, arch)
        if folder:
            write(folder / name, code)
    return code


def compiled(cupy: Any, arch: str, source: str = SOURCE) -> bytes:
    """Returns NVRTC's compilation of the sources. It takes 9 to 10 s."""
    root = installed() / "csrc"
    options = (*OPTIONS, f"-I{root}", f"-I{root / 'cuda' / 'rtc'}")
    code, _ = cupy.cuda.compiler.compile_using_nvrtc(source, options, arch)
    return bytes(code) + b"\0"  # CuPy cuts off the last byte, a zero, which a file needs


def digest(arch: str, compiler: str) -> str:
    """Returns a digest of everything that the machine code depends on."""
    root = installed() / "csrc"
    found = hashlib.sha256("\0".join((arch, compiler, *OPTIONS, SOURCE)).encode())
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:20]


# ---- the cache ----------------------------------------------------------------------------------------------
# Machine code runs with the rights of the user who loads it. So the cache is not used for code that another user, root
# aside, could have put or changed there, or that was not written whole. It is then compiled anew without a message.


def cache_folder() -> Path | None:
    """Returns NOISEFUSE_CACHE_DIR, else `noisefuse` in the user's cache, or None if that is not safe."""
    if not hasattr(os, "geteuid"):  # on Windows the status of a file does not give its owner
        return None
    chosen = os.environ.get("NOISEFUSE_CACHE_DIR")
    try:
        if chosen:
            folder, mode = Path(chosen), 0o755
        else:
            folder, mode = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "noisefuse", 0o700
        folder.mkdir(mode, parents=True, exist_ok=True)
        return folder if _is_safe(os.lstat(folder)) else None
    except (OSError, RuntimeError):  # Path.home() raises RuntimeError: no HOME, and no entry in passwd
        return None


def read(path: Path) -> bytes | None:
    """Returns what `write` wrote there, or None."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
            stored = file.read() if _is_safe(os.fstat(file.fileno())) else b""
    except OSError:
        return None
    code, seal = stored[:-32], stored[-32:]
    return code if seal == _seal(path, code) else None


def write(path: Path, code: bytes) -> None:
    """Writes in one step, because other processes may do the same; or not at all. Others may read the file."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with suppress(OSError):
        try:
            with open(part, "xb", opener=partial(os.open, mode=0o644)) as file:
                file.write(code + _seal(path, code))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _is_safe(status: os.stat_result) -> bool:
    """Tells whether only this user and root can have written the file. (A link's mode always lets everybody write.)"""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _seal(path: Path, code: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + b"\0" + code).digest()
