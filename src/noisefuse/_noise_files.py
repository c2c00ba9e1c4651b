# SPDX-License-Identifier: Apache-2.0
"""Data sets on disk, block by block: what `noisefuse noise` reads and writes. A block is made by itself, anywhere."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

import noisefuse as nf

from ._noise_journal import clear, read, sync, sync_directory, write, write_whole
from .levels import LEVELS

Array = npt.NDArray[Any]

DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
PIECE = 1 << 18  # elements that are read, noised and written at once: they stay in a core's caches in between
STEPS = 1000
SCHEDULES: dict[str, Callable[[int], nf.Schedule]] = {
    "linear": nf.Schedule.linear,
    "cosine": nf.Schedule.cosine,
    "flow": nf.Schedule.flow,
}


@dataclass(frozen=True)
class Work:
    """What is done to every sample: `q_sample` at t of a schedule, or `augment.gaussian` with std."""

    schedule: str | None
    t: int | None
    std: float | None
    seed: int
    step: int
    dtype: str | None  # of the result

    def result(self, source: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype of what is made of this one; ValueError where nothing is."""
        if (name := source.newbyteorder("=").name) not in DTYPES:
            raise ValueError(f"the source has dtype {source}: expected one of {', '.join(DTYPES)}")
        becomes_float = name in LEVELS and self.schedule is not None
        return np.dtype(self.dtype or ("float32" if becomes_float else name))

    @cached_property
    def _table(self) -> nf.Schedule:
        return SCHEDULES[self.schedule or "linear"](STEPS)

    def __call__(
        self, x: Array, out: Array, sample: int | str, shape: tuple[int, ...] = (), start: tuple[int, ...] = ()
    ) -> None:
        """Of x, rows that begin with this sample, or parts that begin at `start` of samples of `shape`. `out` may be x.

        A str names the sample as `augment.sample_id` does."""
        noise = nf.Noise(self.seed, sample=nf.augment.sample_id(sample), step=self.step)
        if shape:
            noise = noise.window(shape, start)
        if self.schedule is None:
            assert self.std is not None
            nf.augment.gaussian(x, self.std, noise, dtype=out.dtype, out=out, batched=True)
        else:
            assert self.t is not None
            nf.q_sample(x, self.t, self._table, noise, dtype=out.dtype, out=out, batched=True)


def check_shape(path: Path, shape: tuple[int, ...]) -> None:
    if not shape or prod(shape[1:]) > nf.noise.ELEMENTS:
        raise ValueError(f"{path} has shape {shape}: expected samples along axis 0, of 2^34 elements at most")


class Job(Protocol):
    """A source, and how its target is made. Jobs are sent to the processes of a cluster.

    Attributes:
        what: the source is, and so the target.
        endings: of the target's name; "" for one that is no format's.
    """

    what: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]

    @property
    def blocks(self) -> int: ...

    def source(self) -> dict[str, Any]:
        """What tells this source from another one, for the manifest."""

    def prepare(self) -> None:
        """The place for the target, in which what was made before is kept."""

    def made(self, journal: set[int]) -> set[int]:
        """The blocks that are there."""

    def make(self, block: int) -> int:
        """Makes it, and returns how many bytes it has when it is on the disk."""

    def finish(self) -> None:
        """What is left when all blocks are made, before the target gets its name."""


# ---- .npy --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Npy:
    """An array in a file. Blocks are runs of its elements in C order, whatever the shape."""

    what: ClassVar[str] = "a .npy file"
    endings: ClassVar[tuple[str, ...]] = (".npy",)

    path: Path
    partial: Path
    work: Work
    block: int  # elements
    shape: tuple[int, ...]
    kind: np.dtype[Any]
    begin: int  # of the elements in the file

    @classmethod
    def of(cls, path: Path, partial: Path, work: Work, block: int) -> Npy:
        with open(path, "rb") as file:
            try:
                version = np.lib.format.read_magic(file)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0
                }[version]  # fmt: skip
                shape, fortran, kind = read_header(file)
            except KeyError:
                raise ValueError(f"{path} is a .npy file of version {version}: expected 1.0 or 2.0") from None
            except (SyntaxError, ValueError, tokenize.TokenError) as error:
                raise ValueError(f"{path} is no .npy file of numbers: {error}") from error
            begin, size = file.tell(), os.fstat(file.fileno()).st_size
        if fortran and len(shape) > 1:
            raise ValueError(f"{path} is in Fortran order: expected C order, in which noise counts the elements")
        check_shape(path, shape)
        work.result(kind)
        if size != (expected := begin + prod(shape) * kind.itemsize):
            raise ValueError(f"{path} has {size} bytes, and its header speaks of {expected}")
        return cls(path, partial, work, block, shape, kind, begin)

    @property
    def blocks(self) -> int:
        return -(-prod(self.shape) // self.block)

    def source(self) -> dict[str, Any]:
        state = self.path.stat()
        return {
            "--block": self.block,
            "the source's shape": self.shape,
            "the source's dtype": self.kind.str,
            "the source's time": state.st_mtime_ns,
        }

    @cached_property
    def _header(self) -> bytes:
        header, descr = io.BytesIO(), np.lib.format.dtype_to_descr(self.work.result(self.kind))
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": self.shape})
        return header.getvalue()

    def prepare(self) -> None:
        file = os.open(self.partial, os.O_WRONLY | os.O_CREAT, 0o666)
        size = len(self._header) + prod(self.shape) * self.work.result(self.kind).itemsize
        try:
            _reserve(file, size)
            write(file, self._header, 0)
            os.fsync(file)
        except OSError as error:
            raise OSError(f"cannot reserve the {size} bytes of {self.partial}: {error.strerror}") from error
        finally:
            os.close(file)

    def made(self, journal: set[int]) -> set[int]:
        return journal

    def make(self, block: int) -> int:
        size, result = prod(self.shape[1:]), self.work.result(self.kind)
        first, last = block * self.block, min((block + 1) * self.block, prod(self.shape))
        memory = np.empty(min(PIECE, last - first), self.kind)  # for all pieces, as new memory costs as much as a copy
        made = memory if self.kind == result else np.empty(memory.shape, result)
        source, target = os.open(self.path, os.O_RDONLY), os.open(self.partial, os.O_WRONLY)
        try:
            for sample, start, rows, n in pieces(first, last, size):
                x, y = (buffer[: rows * n].reshape(rows, n) for buffer in (memory, made))
                element = sample * size + start
                read(source, x, self.begin + element * x.itemsize)
                self.work(x, y, sample, *(() if n == size else ((size,), (start,))))
                write(target, y, len(self._header) + element * y.itemsize)
            sync(target)
        finally:
            os.close(source)
            os.close(target)
        return (last - first) * result.itemsize

    def finish(self) -> None:
        pass


def pieces(first: int, last: int, n: int) -> Iterator[tuple[int, int, int, int]]:
    """(sample, start in it, rows, elements of each) of what elements first .. last - 1 are, of samples of n: whole rows
    where a piece holds some, else parts of one."""
    while first < last:
        sample, start = divmod(first, n)
        rows = min(PIECE, last - first) // n if start == 0 else 0
        length = n if rows else min(PIECE, n - start, last - first)
        rows = rows or 1
        yield sample, start, rows, length
        first += rows * length


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:  # macOS, where a full disk is noticed later
        os.ftruncate(file, size)
    if os.fstat(file).st_size != size:
        raise OSError(errno.EEXIST, "it is longer, and so another's file")


def digest(folder: Path, names: Iterable[Path]) -> str:
    """Of their names, sizes and times."""
    states = ((name, (folder / name).stat()) for name in names)
    listed = "".join(f"{name.as_posix()!r} {state.st_size} {state.st_mtime_ns}\n" for name, state in states)
    return hashlib.sha256(listed.encode()).hexdigest()


# ---- folders of images -------------------------------------------------------------------------------------

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Images:
    """All images of a folder and of those in it, as .png. A block is one, and its path names its noise."""

    what: ClassVar[str] = "a folder of images"
    endings: ClassVar[tuple[str, ...]] = ("",)

    path: Path
    partial: Path
    work: Work
    names: tuple[str, ...]  # relative, of the source

    @classmethod
    def of(cls, path: Path, partial: Path, work: Work) -> Images:
        import PIL  # noqa: F401  # where it is missing, to know before the work

        if work.dtype not in (None, "uint8"):
            raise ValueError(f"--dtype {work.dtype}: images are made of uint8")
        images = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        found = (file.relative_to(path) for file in images)
        names = sorted(name.as_posix() for name in found)
        if not names:
            raise ValueError(f"{path} has neither images ({', '.join(sorted(SUFFIXES))}) nor a zarr store's zarr.json")
        first: dict[Path, str] = {}
        for name in names:
            if (other := first.setdefault(Path(name).with_suffix(".png"), name)) != name:
                raise ValueError(f"{name} and {other} would both become {Path(name).with_suffix('.png')}")
        return cls(path, partial, work, tuple(names))

    @property
    def blocks(self) -> int:
        return len(self.names)

    def source(self) -> dict[str, Any]:
        listed = "".join(f"{name!r}\n" for name in self.names)
        return {"images": self.blocks, "the images' names": hashlib.sha256(listed.encode()).hexdigest()}

    def prepare(self) -> None:
        for name in self.names:
            self._target(name).parent.mkdir(parents=True, exist_ok=True)
        clear(self.partial)

    def made(self, journal: set[int]) -> set[int]:
        """Of images that are as they were: one that was mended, or another in its place, is made again."""
        return {block for block, name in enumerate(self.names) if is_newer(self._target(name), self.path / name)}

    def make(self, block: int) -> int:
        from PIL import Image

        name, encoded = self.names[block], io.BytesIO()
        pixels, alpha = _pixels(self.path / name)
        made = np.empty(pixels.shape, np.uint8)
        self.work(pixels[None], made[None], name)
        image = Image.fromarray(made)
        if alpha is not None:
            image.putalpha(alpha)
        image.save(encoded, "PNG", compress_level=1)  # noise does not become smaller by more work
        write_whole(self._target(name), encoded.getbuffer())
        return len(encoded.getbuffer())

    def finish(self) -> None:
        for directory in {parent for name in self.names for parent in self._target(name).parents}:
            if directory.is_relative_to(self.partial):
                sync_directory(directory)

    def _target(self, name: str) -> Path:
        return (self.partial / name).with_suffix(".png")


def is_newer(path: Path, source: Path) -> bool:
    if not path.exists():
        return False
    state = source.stat()
    return path.stat().st_mtime_ns > max(state.st_mtime_ns, state.st_ctime_ns)


def _pixels(path: Path) -> tuple[Array, Any]:
    """Grey (H, W) or colour (H, W, 3), as it is looked at, in bytes; and how opaque it is, where that is said."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            if getattr(file, "n_frames", 1) > 1 or file.mode[:1] in "IF":
                raise ValueError(
                    f"{path} has {getattr(file, 'n_frames', 1)} frames of mode {file.mode}: expected one of bytes"
                )
            if _is_deep(file):
                raise ValueError(f"{path} has 16 bits a channel: expected bytes")
            image: Any = ImageOps.exif_transpose(file)
            image.load()
    except (OSError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")), alpha


def _is_deep(file: Any) -> bool:
    """Whether what Pillow decodes to bytes has more of them: colours of 16 bits, whose mode it calls RGB."""
    for tile in file.tile:
        given = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(";16" in part if isinstance(part, str) else tile[0] == "ppm" and part > 255 for part in given):
            return True
    return False
