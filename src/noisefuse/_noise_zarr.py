# SPDX-License-Identifier: Apache-2.0
"""Stores of zarr v3 for `noisefuse noise`: a block is a chunk, or a shard where there are some."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import zarr
from zarr.storage import LocalStore

from ._noise_files import Work, check_shape, digest
from ._noise_journal import clear, sync_directory, write_whole


class DurableStore(LocalStore):
    """A store in a folder, in which a chunk is whole and on the disk, or not there."""

    async def set(self, key: str, value: Any) -> None:
        def put() -> None:
            path = Path(self.root) / key
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, value.as_buffer_like())

        await asyncio.to_thread(put)


@dataclass(frozen=True)
class Zarr:
    """An array in a store; the target has its chunks, attributes and names of dimensions."""

    what: ClassVar[str] = "a zarr store"
    endings: ClassVar[tuple[str, ...]] = (".zarr", "")

    path: Path
    partial: Path
    work: Work
    shape: tuple[int, ...]
    unit: tuple[int, ...]  # of a block

    @classmethod
    def of(cls, path: Path, partial: Path, work: Work) -> Zarr:
        try:
            array: Any = zarr.open_array(path, mode="r", zarr_format=3)
        except (AttributeError, FileNotFoundError, KeyError, TypeError, ValueError, zarr.errors.BaseZarrError) as error:
            raise ValueError(
                f"{path} is no array of zarr v3: name one, not the group that it is in: {error}"
            ) from error
        check_shape(path, array.shape)
        work.result(array.dtype)
        return cls(path, partial, work, array.shape, array.shards or array.chunks)

    @property
    def _grid(self) -> tuple[int, ...]:
        return tuple(-(-n // unit) for n, unit in zip(self.shape, self.unit, strict=True))

    @property
    def blocks(self) -> int:
        return prod(self._grid)

    def source(self) -> dict[str, Any]:
        files = sorted(path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        return {"zarr.json": (self.path / "zarr.json").read_text(), "the source's files": digest(self.path, files)}

    def prepare(self) -> None:
        self.partial.mkdir(exist_ok=True)
        clear(self.partial)
        if (self.partial / "zarr.json").exists():
            return
        source: Any = zarr.open_array(self.path, mode="r")
        zarr.create_array(
            DurableStore(self.partial),
            shape=source.shape,
            dtype=self.work.result(source.dtype),
            chunks=source.chunks,
            shards=source.shards,
            attributes=dict(source.attrs),
            dimension_names=source.metadata.dimension_names,
        )

    def made(self, journal: set[int]) -> set[int]:
        made: Any = zarr.open_array(self.partial, mode="r")
        key = made.metadata.encode_chunk_key
        return {block for block in range(self.blocks) if (self.partial / key(self._index(block))).exists()}

    def make(self, block: int) -> int:
        start = tuple(i * unit for i, unit in zip(self._index(block), self.unit, strict=True))
        part = tuple(slice(i, min(i + unit, n)) for i, unit, n in zip(start, self.unit, self.shape, strict=True))
        try:
            x = np.ascontiguousarray(self._source[part])
        except RuntimeError as error:  # of what decompresses them
            raise OSError(f"cannot read chunk {self._index(block)} of {self.path}: {error}") from error
        made = np.empty(x.shape, self.work.result(x.dtype))
        self.work(x, made, start[0], self.shape[1:], start[1:])
        self._target[part] = made
        return made.nbytes

    def finish(self) -> None:
        for path in [self.partial, *self.partial.rglob("*/")]:
            if path.is_dir():
                sync_directory(path)

    def _index(self, block: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(block, self._grid))

    @cached_property
    def _source(self) -> Any:
        return zarr.open_array(self.path, mode="r")

    @cached_property
    def _target(self) -> Any:  # chunks that are all zeros are chunks that are there
        return zarr.open_array(DurableStore(self.partial), mode="r+", config={"write_empty_chunks": True})

    def __reduce__(self) -> Any:
        return Zarr, (self.path, self.partial, self.work, self.shape, self.unit)
