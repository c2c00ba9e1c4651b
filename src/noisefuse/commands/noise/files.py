# SPDX-License-Identifier: Apache-2.0
"""Data sets on disk, block by block, for `noisefuse noise`. Each block is made independently, on any machine."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

import noisefuse as nf

from ...ground.kept import kept_property
from ...language.levels import LEVELS, OF_NUMPY
from .journal import Journal, make_own_folder, open_own, read, size_of, sync, sync_directory, write, write_whole

Array = npt.NDArray[Any]

PIECE = 1 << 18  # elements that are read, noised and written at once: they stay in a core's caches between these steps
STEPS = 1000
SCHEDULES: dict[str, Callable[[int], nf.Schedule]] = {
    "linear": nf.Schedule.linear,
    "cosine": nf.Schedule.cosine,
    "flow": nf.Schedule.flow,
}


@dataclass(frozen=True)
class Work:
    """The operation on every sample: `q_sample` at t of a schedule, or `augment.gaussian` with std.

    With a range, the result's least level stands for the range's first value and the greatest level for its second, in
    the units of x. With a schedule the default is -1 to 1."""

    schedule: str | None
    t: int | None
    std: float | None
    seed: int
    step: int
    dtype: str | None  # the result's dtype
    range: tuple[float, float] | None

    def result(self, source: np.dtype[Any], path: Path | None = None) -> np.dtype[Any]:
        """Returns the result's dtype for this source dtype. ValueError, which names the path: there is none."""
        if (name := source.newbyteorder("=").name) not in OF_NUMPY:
            raise ValueError(f"{path} has dtype {source}: expected one of {', '.join(OF_NUMPY)}")
        becomes_float = name in LEVELS and self.schedule is not None
        result = np.dtype(self.dtype or ("float32" if becomes_float else name))
        if self.range is None:
            if self.schedule is None and result.name in LEVELS and not np.can_cast(source, result):
                raise ValueError(
                    f"--std with --dtype {result} of {name} data needs --range LOW HIGH, the values that 0 and "
                    f"{LEVELS[result.name]} stand for: what is beyond them is clipped"
                )
        elif result.name not in LEVELS:
            raise ValueError(f"--range {self.range[0]:g} {self.range[1]:g}: expected --dtype uint8 or uint16 with it")
        return result

    @kept_property
    def _table(self) -> nf.Schedule:
        if self.schedule is not None:
            return SCHEDULES[self.schedule](STEPS)
        assert self.std is not None
        return nf.Schedule([1.0], [self.std])  # its one row is x + std z

    def __call__(
        self, x: Array, out: Array, sample: int | str, shape: tuple[int, ...] = (), start: tuple[int, ...] = ()
    ) -> None:
        """Noises x: rows that begin with this sample, or parts that begin at `start` of samples of `shape`. `out` may
        be x.

        A str gives the sample by `augment.sample_id`."""
        noise = nf.Noise(self.seed, sample=nf.augment.sample_id(sample), step=self.step)
        if shape:
            noise = noise.window(shape, start)
        if self.schedule is None and self.range is None:
            assert self.std is not None
            nf.augment.gaussian(x, self.std, noise, dtype=out.dtype, out=out, batched=True)
            return
        scale, offset = (1.0, 0.0) if self.schedule is None else (None, None)  # 1 and 0 leave x in its own units
        out_scale, out_offset = (None, None) if self.range is None else _levels(self.range, out.dtype)
        nf.q_sample(
            x, self.t or 0, self._table, noise, scale=scale, offset=offset, out_scale=out_scale,
            out_offset=out_offset, dtype=out.dtype, out=out, batched=True,
        )  # fmt: skip


def _levels(values: tuple[float, float], result: np.dtype[Any]) -> tuple[float, float]:
    """Returns the scale and the offset from these values to the least and the greatest integer level."""
    low, high = values
    scale = LEVELS[result.name] / (high - low)
    return scale, -low * scale


def check_shape(path: Path, shape: tuple[int, ...]) -> None:
    if not shape or min(shape) < 0 or shape[0] > nf.noise.SAMPLES or prod(shape[1:]) > nf.noise.ELEMENTS:
        raise ValueError(
            f"{path} has shape {shape}: expected samples along axis 0, 2^56 at most, of 2^34 elements at most each, "
            "and no negative length"
        )


Made: TypeAlias = tuple[int, Any]
"""A block's bytes, and its mark in the journal."""


class Job(Protocol):
    """A source, and the way its target is made. Jobs are sent to the processes of a cluster.

    Attributes:
        what: the kind of the source, and so of the target.
        endings: the endings of the target's name; "" for a name without a format.
    """

    what: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]

    @property
    def blocks(self) -> int: ...

    def source(self) -> dict[str, Any]:
        """Returns the values that tell this source from others, for the manifest."""

    def made(self, journal: dict[int, Any]) -> set[int]:
        """Returns the blocks that exist and have the journal's marks."""

    def prepare(self) -> None:
        """Makes the place for the target, and keeps earlier results in it."""

    def make(self, block: int) -> Made:
        """Makes a block, and returns when it is on the disk."""

    def again(self, journal: Journal, there: Path) -> list[int]:
        """Returns the blocks that have changed, or whose sources have changed, in a target with all blocks.

        Raises:
            ValueError: another program has changed the target.
        """

    def finish(self) -> None:
        """Does the last work after all blocks, before the target gets its name."""

    def summary(self, target: Path) -> str:
        """Says what was written, and what was not."""


# ---- .npy --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Npy:
    """An array in a file. Blocks are runs of its elements in C order, whatever the shape."""

    what: ClassVar[str] = "a .npy file"
    endings: ClassVar[tuple[str, ...]] = (".npy",)

    path: Path
    partial: Path
    work: Work
    block: int  # elements in it
    shape: tuple[int, ...]
    kind: np.dtype[Any]
    begin: int  # the first element's place in the file
    state: list[int]  # as it was

    @classmethod
    def of(cls, path: Path, partial: Path, work: Work, block: int) -> Npy:
        with open(path, "rb") as file:
            shape, fortran, kind = _header_of(path, file)
            begin, state = file.tell(), state_of(file.fileno())
        if fortran and len(shape) > 1:
            raise ValueError(f"{path} is in Fortran order: expected C order, in which noise counts the elements")
        check_shape(path, shape)
        work.result(kind, path)
        if state[-1] != (expected := begin + prod(shape) * kind.itemsize):
            raise ValueError(f"{path} has {state[-1]} bytes, and its header speaks of {expected}")
        return cls(path, partial, work, block, shape, kind, begin, state)

    @property
    def blocks(self) -> int:
        return -(-prod(self.shape) // self.block)

    def source(self) -> dict[str, Any]:
        return {
            "--block": self.block,
            "the source's shape": self.shape,
            "the source's dtype": self.kind.str,
            "the source's times and size": self.state,
        }

    @kept_property
    def _header(self) -> bytes:
        header, descr = io.BytesIO(), np.lib.format.dtype_to_descr(self.work.result(self.kind))
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": self.shape})
        return header.getvalue()

    @property
    def _size(self) -> int:
        return len(self._header) + prod(self.shape) * self.work.result(self.kind).itemsize

    def made(self, journal: dict[int, Any]) -> set[int]:
        """Returns all blocks or none. A file has its whole length from the beginning, so one of another length was
        emptied, cut or replaced."""
        return {*journal} if size_of(self.partial) == self._size else set()

    def prepare(self) -> None:
        file = open_own(self.partial, os.O_WRONLY | os.O_CREAT)
        try:
            _reserve(file, self._size)
            write(file, self._header, 0)
            os.fsync(file)
        except OSError as error:
            raise OSError(f"cannot reserve the {self._size} bytes of {self.partial}: {error.strerror}") from error
        finally:
            os.close(file)

    def make(self, block: int) -> Made:
        size, result = prod(self.shape[1:]), self.work.result(self.kind)
        first, last = block * self.block, min((block + 1) * self.block, prod(self.shape))
        memory = np.empty(min(PIECE, last - first), self.kind)  # shared: new memory costs as much as a copy
        noised = memory if self.kind == result else np.empty(memory.shape, result)
        source, target = os.open(self.path, os.O_RDONLY), os.open(self.partial, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            for sample, start, rows, n in pieces(first, last, size):
                x, y = (buffer[: rows * n].reshape(rows, n) for buffer in (memory, noised))
                element = sample * size + start
                read(source, x, self.begin + element * x.itemsize)
                self.work(x, y, sample, *(() if n == size else ((size,), (start,))))
                write(target, y, len(self._header) + element * y.itemsize)
            if state_of(source) != self.state:
                raise ValueError(
                    f"{self.path} was changed while it was noised; to start anew, remove {self.partial.name} and the "
                    "journal beside it"
                )
            sync(target)
        finally:
            os.close(source)
            os.close(target)
        return (last - first) * result.itemsize, None

    def again(self, journal: Journal, there: Path) -> list[int]:
        if (size := size_of(there)) != self._size:
            raise ValueError(
                f"{there} has {size} bytes and not {self._size}, so another program has changed it; to start anew, "
                f"remove {there.name} and {journal.path.name}"
            )
        return []

    def finish(self) -> None:
        pass

    def summary(self, target: Path) -> str:
        return samples_to(target, self.shape)


def samples_to(target: Path, shape: tuple[int, ...]) -> str:
    return f"{_number(shape[0], 'sample')} to {target}"


def _header_of(path: Path, file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    versions = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        if version in versions:
            return versions[version](file)
    except Exception as error:  # of any kind: a header is a Python literal, which may hold anything
        raise ValueError(f"{path} is no .npy file of numbers: {str(error) or type(error).__name__:.200}") from error
    raise ValueError(f"{path} is a .npy file of version {version}: expected 1.0 or 2.0")


def pieces(first: int, last: int, n: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields (sample, start in it, rows, elements of each) for elements first .. last - 1 of samples of n: whole rows
    if a piece holds some, else parts of one row."""
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
    else:  # on macOS a full disk is noticed later
        os.ftruncate(file, size)
    if os.fstat(file).st_size != size:
        raise OSError(errno.EEXIST, "it is longer, and so another's file")


def files_in(folder: Path) -> Iterator[Path]:
    """Yields files, also in subfolders, and links to folders, which are not followed. OSError: a folder cannot be
    read."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        paths = (Path(place, name) for name in folders)
        yield from (path for path in paths if path.is_symlink())
        yield from (Path(place, name) for name in files)


def digest(folder: Path, names: Iterable[Path]) -> str:
    """Returns a digest of the names, times and sizes."""
    listed = "".join(f"{name.as_posix()!r} {state_of(folder / name)}\n" for name in names)
    return hashlib.sha256(listed.encode()).hexdigest()


# ---- folders of images -------------------------------------------------------------------------------------

LISTED = 5  # the most names in a summary
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Images:
    """All images of a folder and its subfolders, as .png. A block is one image, and its path gives the noise's key."""

    what: ClassVar[str] = "a folder of images"
    endings: ClassVar[tuple[str, ...]] = ("",)

    path: Path
    partial: Path
    work: Work
    names: tuple[str, ...]  # relative paths in the source
    skipped: tuple[str, ...]  # the other files there, which are no images, and links to folders

    @classmethod
    def of(cls, path: Path, partial: Path, work: Work) -> Images:
        import PIL  # noqa: F401  # if it is missing, the error comes before the work

        if work.dtype not in (None, "uint8"):
            raise ValueError(f"--dtype {work.dtype}: images are made of uint8")
        files = sorted(files_in(path))
        images = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
        names, skipped = (
            tuple(file.relative_to(path).as_posix() for file in some)
            for some in (images, sorted({*files}.difference(images)))
        )
        if not names:
            raise ValueError(f"{path} has neither images ({', '.join(sorted(SUFFIXES))}) nor a zarr store's zarr.json")
        first: dict[Path, str] = {}
        for name in names:
            if not _is_utf8(name):
                raise ValueError(f"{name!r} in {path}: expected a name in UTF-8, which its noise depends on; rename it")
            if (other := first.setdefault(_png(name), name)) != name:
                raise ValueError(f"{name} and {other} would both become {_png(name)}")
        return cls(path, partial, work, names, skipped)

    @property
    def blocks(self) -> int:
        return len(self.names)

    def source(self) -> dict[str, Any]:
        listed = "".join(f"{name!r}\n" for name in self.names)
        return {"images": self.blocks, "the images' names": hashlib.sha256(listed.encode()).hexdigest()}

    def made(self, journal: dict[int, Any]) -> set[int]:
        """Returns the blocks of images that did not change. An image that was repaired or replaced is made again."""
        marks = ([*state_of(self.path / name), size_of(self._target(name))] for name in self.names)
        return {block for block, mark in enumerate(marks) if journal.get(block) == mark}

    def prepare(self) -> None:
        make_own_folder(self.partial)
        for name in self.names:
            self._target(name).parent.mkdir(parents=True, exist_ok=True)

    def make(self, block: int) -> Made:
        from PIL import Image

        name, encoded = self.names[block], io.BytesIO()
        state = state_of(self.path / name)  # before it is read, so that a later change is seen
        pixels, alpha = _pixels(self.path / name)
        noised = np.empty(pixels.shape, np.uint8)
        self.work(pixels[None], noised[None], name)
        image = Image.fromarray(noised)
        if alpha is not None:
            image.putalpha(alpha)
        image.save(encoded, "PNG", compress_level=1)  # more work does not make noise smaller
        write_whole(self._target(name), encoded.getbuffer())
        size = len(encoded.getbuffer())
        return size, [*state, size]

    def again(self, journal: Journal, there: Path) -> list[int]:
        marks = journal.made()
        finished = there != self.partial  # if not, workers have just written there, and a network disk may show it late
        return [
            block
            for block, name in enumerate(self.names)
            if not isinstance(mark := marks.get(block), list)
            or mark[:-1] != state_of(self.path / name)
            or (finished and mark[-1] != size_of(there / _png(name)))
        ]

    def finish(self) -> None:
        for directory in {parent for name in self.names for parent in self._target(name).parents}:
            if directory.is_relative_to(self.partial):
                sync_directory(directory)

    def summary(self, target: Path) -> str:
        renamed = [f"{name} became {_png(name)}" for name in self.names if str(_png(name)) != name]
        skipped = [f"skipped {_listed(self.skipped)}"] if self.skipped else []
        listed = [_listed(renamed)] if renamed else []
        return "; ".join([f"{_number(self.blocks, 'image')} to {target}", *skipped, *listed])

    def _target(self, name: str) -> Path:
        return self.partial / _png(name)


def _png(name: str) -> Path:
    return Path(name).with_suffix(".png")


def _is_utf8(name: str) -> bool:
    """Tells whether a name's bytes are UTF-8. If they are not, Python has written them as surrogates."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _number(n: int, of: str) -> str:
    return f"{n} {of}{'s' * (n != 1)}"


def _listed(names: Sequence[str]) -> str:
    rest = [f"{len(names) - LISTED} more"] if len(names) > LISTED else []
    return ", ".join([*names[:LISTED], *rest])


def state_of(file: Path | int) -> list[int]:
    """Returns values that change when a file is changed, or replaced by another one: the times of its contents and of
    its entry, which nobody can set, and its size."""
    state = os.stat(file)
    return [state.st_mtime_ns, state.st_ctime_ns, state.st_size]


def _pixels(path: Path) -> tuple[Array, Any]:
    """Returns grey (H, W) or colour (H, W, 3), in display orientation and bytes; and the opacity, if the file has
    one."""
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
    """Tells whether an image has more bits than Pillow decodes to: 16-bit colours, whose mode it calls RGB."""
    for tile in file.tile:
        parts = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(";16" in part if isinstance(part, str) else tile[0] == "ppm" and part > 255 for part in parts):
            return True
    return False
