# SPDX-License-Identifier: Apache-2.0
"""Stores of zarr v3 for `noisefuse noise`: a block is a chunk, or a shard if there are shards."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import zarr
from zarr.storage import LocalStore, MemoryStore

import noisefuse as nf

from ...ground.kept import kept_property
from .files import Made, Work, check_shape, digest, files_in, samples_to
from .journal import Journal, make_own_folder, size_of, sync_directory, write_whole


class DurableStore(LocalStore):
    """A store in a folder. A chunk in it is whole and on the disk, or missing."""

    async def set(self, key: str, value: Any) -> None:
        def put() -> None:
            path = Path(self.root) / key
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, value.as_buffer_like())

        await asyncio.to_thread(put)


@dataclass(frozen=True)
class Zarr:
    """An array in a store. The target has its chunks, attributes and names of dimensions."""

    what: ClassVar[str] = "a zarr store"
    endings: ClassVar[tuple[str, ...]] = (".zarr", "")

    path: Path
    partial: Path
    work: Work
    shape: tuple[int, ...]
    unit: tuple[int, ...]  # a block's shape

    @classmethod
    def of(cls, path: Path, partial: Path, work: Work) -> Zarr:
        try:
            array = _open(path)
            shape, unit = array.shape, array.shards or array.chunks
        except Exception as error:  # of any kind: zarr.json may hold anything
            raise ValueError(
                f"{path} is no array of zarr v3: name one, not the group that it is in: {error}"
            ) from error
        check_shape(path, shape)
        if not 0 < prod(unit) <= nf.noise.ELEMENTS:
            raise ValueError(f"{path} has chunks of shape {unit}: expected 1 to 2^34 elements")
        work.result(array.dtype, path)
        job = cls(path, partial, work, shape, unit)
        try:
            _ = job._empty
        except Exception as error:
            raise ValueError(f"{path}: no store like it can be made: {error}") from error
        return job

    @property
    def _grid(self) -> tuple[int, ...]:
        return tuple(-(-n // unit) for n, unit in zip(self.shape, self.unit, strict=True))

    @property
    def blocks(self) -> int:
        return prod(self._grid)

    def source(self) -> dict[str, Any]:
        files = sorted(path.relative_to(self.path) for path in files_in(self.path) if path.is_file())
        text = (self.path / "zarr.json").read_text(encoding="utf-8")
        return {"zarr.json": text, "the source's files": digest(self.path, files)}

    @kept_property
    def _empty(self) -> tuple[Any, bytes]:
        """Returns the target without any chunk, in memory, and its zarr.json."""
        source, files = self._source, dict[str, Any]()
        array: Any = zarr.create_array(
            MemoryStore(files),
            shape=source.shape,
            dtype=self.work.result(source.dtype),
            chunks=source.chunks,
            shards=source.shards,
            attributes=dict(source.attrs),
            dimension_names=source.metadata.dimension_names,
        )
        return array, files["zarr.json"].to_bytes()

    def _chunk(self, block: int) -> Path:
        array, _ = self._empty
        return Path(self.partial, array.metadata.encode_chunk_key(self._index(block)))

    def made(self, journal: dict[int, Any]) -> set[int]:
        """Returns the chunks that have their full length, if the store is the one that was begun."""
        if not self._is_begun():
            return set()
        return {block for block, size in journal.items() if size_of(self._chunk(block)) == size}

    def prepare(self) -> None:
        make_own_folder(self.partial)
        if not self._is_begun():
            write_whole(self.partial / "zarr.json", self._empty[1])

    def _is_begun(self) -> bool:
        try:
            return (self.partial / "zarr.json").read_bytes() == self._empty[1]
        except (FileNotFoundError, NotADirectoryError):
            return False

    def make(self, block: int) -> Made:
        start = tuple(i * unit for i, unit in zip(self._index(block), self.unit, strict=True))
        part = tuple(slice(i, min(i + unit, n)) for i, unit, n in zip(start, self.unit, self.shape, strict=True))
        try:
            x = np.ascontiguousarray(self._source[part])
        except (OSError, MemoryError):
            raise
        except Exception as error:  # of any kind, depending on the codec
            raise OSError(f"cannot read chunk {self._index(block)} of {self.path}: {error}") from error
        noised = np.empty(x.shape, self.work.result(x.dtype))
        self.work(x, noised, start[0], self.shape[1:], start[1:])
        self._target[part] = noised
        return noised.nbytes, self._chunk(block).stat().st_size

    def again(self, journal: Journal, there: Path) -> list[int]:
        return []

    def finish(self) -> None:
        for path in [self.partial, *self.partial.rglob("*/")]:
            if path.is_dir():
                sync_directory(path)

    def summary(self, target: Path) -> str:
        return samples_to(target, self.shape)

    def _index(self, block: int) -> tuple[int, ...]:
        """Returns the index of the block's chunk. NumPy has a function for it, which takes 2^63 chunks at most."""
        index = []
        for n in reversed(self._grid):
            block, i = divmod(block, n)
            index.append(i)
        return tuple(reversed(index))

    @kept_property
    def _source(self) -> Any:
        return _open(self.path)

    @kept_property
    def _target(self) -> Any:  # chunks of zeros are written, too
        return zarr.open_array(DurableStore(self.partial), mode="r+", config={"write_empty_chunks": True})

    def __reduce__(self) -> Any:
        return Zarr, (self.path, self.partial, self.work, self.shape, self.unit)


def _open(path: Path) -> Any:
    return zarr.open_array(path, mode="r", zarr_format=3)
