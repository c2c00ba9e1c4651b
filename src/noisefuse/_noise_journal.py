# SPDX-License-Identifier: Apache-2.0
"""What `noisefuse noise` keeps beside its target, so that it can be stopped anywhere and run again (docs/scale.md).

TARGET.noisefuse, the journal, has lines of a checksum and JSON: the manifest (what was asked), a line for each block
that is on the disk, and "whole" before the target gets its name. A line that was cut off counts as none: its block is
made again, with the same bits. TARGET.noisefuse-partial is what becomes the target, by a rename, when all is there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import uuid
import zlib
from pathlib import Path
from typing import Any, Self

sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
TEMPORARY = ".noisefuse-"  # how the names of files begin that are being written


class Journal:
    """The journal of a target, locked; `manifest` is what is asked now.

    Raises:
        ValueError: it was begun for something else, is at work in another process, or is no journal.
    """

    def __init__(self, target: Path, manifest: dict[str, Any]) -> None:
        self.target, self.manifest = target, manifest
        self.partial = partial_of(target)
        self.path = journal_of(target)
        self.blocks: set[int] = set()
        self.whole = False
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._begin()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def add(self, block: int) -> None:
        """The block is on the disk."""
        self._append(block)
        self.blocks.add(block)

    def end(self) -> None:
        """Everything is: the target gets its name."""
        self._append("whole")
        os.rename(self.partial, self.target)
        sync_directory(self.target.parent)

    # ---- how it begins -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.target} is being made by another process, which holds {self.path.name}") from None
        begun, *lines = self._read() or [None]
        if begun is None:
            for path in (self.target, self.partial):
                if path.exists():  # another's, or begun with who knows what
                    os.unlink(self.path)
                    raise ValueError(
                        f"{path} exists already, and {self.path.name}, which would say how it was made, does not or is "
                        "cut: move it away"
                    )
            self._restart()
            return
        self._compare(begun)
        if self.target.exists():
            if "whole" not in lines or self.partial.exists():
                raise ValueError(f"{self.target} exists, and is not what {self.path.name} speaks of: move it away")
            self.whole = True
        elif not self.partial.exists():
            self._restart()  # somebody took it away
        else:
            self.blocks.update(line for line in lines if line != "whole")

    def _read(self) -> list[Any]:
        """The contents of the lines that are whole; what follows them is cut off."""
        with open(self.path, "rb") as file:
            text = file.read()
        found, end = [], 0
        for line in text.splitlines(keepends=True):
            checksum, _, content = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or checksum != _checksum(content):
                break
            found.append(json.loads(content))
            end += len(line)
        if not found and not _BEGINNING.fullmatch(text):
            raise ValueError(f"{self.path} is no journal of noisefuse's: move it away")
        os.ftruncate(self._file, end)
        return found

    def _compare(self, begun: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.manifest))
        differ = [name for name in {**begun, **now} if begun.get(name) != now.get(name)]
        if differ:
            said = ", ".join(f"{name} {begun.get(name)} and not {now.get(name)}" for name in differ)
            raise ValueError(f"{self.target} was begun with {said}; to start anew, remove {self.path.name}*")

    def _restart(self) -> None:
        os.ftruncate(self._file, 0)
        self._append(self.manifest)
        sync_directory(self.path.parent)

    def _append(self, line: Any) -> None:
        content = json.dumps(line).encode()
        write(self._file, b"%s %s\n" % (_checksum(content), content))
        sync(self._file)


_BEGINNING = re.compile(rb"[0-9a-f]{0,8}|[0-9a-f]{8} (\{[^\n]*)?")  # of a manifest that was cut off


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)


def journal_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.noisefuse")


def partial_of(target: Path) -> Path:
    """What becomes the target, when all is there."""
    return target.with_name(f"{target.name}.noisefuse-partial")


# ---- files -------------------------------------------------------------------------------------------------


def write(file: int, data: Any, offset: int | None = None) -> None:
    """All of it: the system may take less at a time."""
    rest = memoryview(data).cast("B")
    while rest:
        n = os.write(file, rest) if offset is None else os.pwrite(file, rest, offset)
        rest, offset = rest[n:], None if offset is None else offset + n


def read(file: int, data: Any, offset: int) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        if not (n := os.preadv(file, [rest], offset)):
            raise OSError(errno.EIO, "the source ends too early; it was cut while it was read")
        rest, offset = rest[n:], offset + n


def write_whole(path: Path, data: Any) -> None:
    """The file is there with all of its bytes, or not at all, whatever happens; also where two write it at once."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            write(file, data)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def clear(directory: Path) -> None:
    """Takes away what was being written when a process was killed."""
    for path in directory.rglob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)
