# SPDX-License-Identifier: Apache-2.0
"""The files that `noisefuse noise` keeps beside its target, so that it can be stopped and run again (docs/scale.md).

TARGET.noisefuse, the journal, has lines of a checksum and JSON: the manifest (the request), for each block on the disk
its number and a mark (by which the job knows it again), "anew" if no block before it counts any more, and "whole"
before the target gets its name. A cut-off line does not count: its block is made again, with the same bits.
TARGET.noisefuse-partial is renamed to the target when everything is done.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import textwrap
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
TEMPORARY = ".noisefuse-"  # the beginning of the names of unfinished files


class Journal:
    """The journal of a target, locked; `manifest` is the present request.

    Raises:
        ValueError: the journal was begun for something else, another process uses it, or it is no journal.
    """

    def __init__(self, target: Path, manifest: dict[str, Any]) -> None:
        self.target: Path = target
        self.manifest: dict[str, Any] = manifest
        self.partial: Path = partial_of(target)
        self.path: Path = journal_of(target)
        self.whole: bool = False
        self._file = open_own(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            self._begin()
        except RecursionError:
            os.close(self._file)
            raise self._foreign() from None
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def add(self, block: int, mark: Any) -> None:
        """Records that the block is on the disk."""
        self._append([block, mark])

    def made(self) -> dict[int, Any]:
        """Returns the marks of all recorded blocks. A block that was made again has its last mark."""
        marks = dict[int, Any]()
        for line in self._read()[1:]:
            if line == "anew":
                marks.clear()
            elif line != "whole":
                marks[line[0]] = line[1]
        return marks

    def forget(self) -> None:
        """Records that no earlier block counts."""
        self._append("anew")

    def compare(self, manifest: dict[str, Any]) -> None:
        """Raises ValueError if the target was begun for something else."""
        self._compare(self.manifest, manifest)

    def reopen(self) -> None:
        """Takes the name away from a whole target, because some of it is to be made again."""
        os.rename(self.target, self.partial)
        sync_directory(self.target.parent)

    def end(self) -> None:
        """Gives the target its name, because everything is on the disk."""
        self._append("whole")
        os.rename(self.partial, self.target)
        sync_directory(self.target.parent)

    # ---- the beginning -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.target} is being made by another process, which holds {self.path.name}") from None
        begun, *lines = self._read() or [None]
        if begun is None:
            for path in (self.target, self.partial):
                if os.path.lexists(path):  # another's, or begun with an unknown request
                    os.unlink(self.path)
                    raise ValueError(
                        f"{path} exists already, but {self.path.name}, which says how it was made, is missing or cut: "
                        "move it away"
                    )
            self._restart()
            return
        self._compare(begun, self.manifest)
        if os.path.lexists(self.target):
            if "whole" not in lines or os.path.lexists(self.partial):
                raise ValueError(f"{self.target} exists, but {self.path.name} describes another: move it away")
            self.whole = True
        elif not os.path.lexists(self.partial):
            self._restart()  # another process removed it

    def _read(self) -> list[Any]:
        """Returns the contents of the whole lines, and cuts off the rest."""
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            text = file.read()
        lines: list[Any] = []
        end = 0
        for line in text.splitlines(keepends=True):
            checksum, _, content = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or checksum != _checksum(content):
                break
            lines.append(self._parsed(content, first=not lines))
            end += len(line)
        if not lines and not _BEGINNING.fullmatch(text):
            raise self._foreign()
        os.ftruncate(self._file, end)
        return lines

    def _parsed(self, content: bytes, first: bool) -> Any:
        try:
            line = json.loads(content)
        except ValueError:
            raise self._foreign() from None
        if isinstance(line, dict) if first else line in ("anew", "whole") or _is_block(line):
            return line
        raise self._foreign()

    def _foreign(self) -> ValueError:
        return ValueError(f"{self.path} is no journal of noisefuse's: move it away")

    def _compare(self, begun: dict[str, Any], manifest: dict[str, Any]) -> None:
        begun, now = (json.loads(json.dumps(one)) for one in (begun, manifest))
        differ = [name for name in {**begun, **now} if begun.get(name) != now.get(name)]
        if differ:
            pairs = ((name, _short(begun.get(name)), _short(now.get(name))) for name in differ)
            said = ", ".join(f"{_short(name)} {then} and not {value}" for name, then, value in pairs)
            made = f"{self.target.name} and " if os.path.lexists(self.target) else ""
            raise ValueError(f"{self.target} was begun with {said}; to start anew, remove {made}{self.path.name}*")

    def _restart(self) -> None:
        os.ftruncate(self._file, 0)
        self._append(self.manifest)
        sync_directory(self.path.parent)

    def _append(self, line: Any) -> None:
        content = json.dumps(line).encode()
        write(self._file, b"%s %s\n" % (_checksum(content), content))
        sync(self._file)


_BEGINNING = re.compile(rb"[0-9a-f]{0,8}|[0-9a-f]{8} (\{[^\n]*)?")  # a manifest that was cut off


def _is_block(line: Any) -> bool:
    return isinstance(line, list) and len(line) == 2 and type(line[0]) is int


def _short(value: Any) -> str:
    """Shortens a value to one line. A changed journal, or a zarr.json, may contain anything."""
    return textwrap.shorten(str(value), 200)


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)


def journal_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.noisefuse")


def partial_of(target: Path) -> Path:
    """Returns the path that is renamed to the target when everything is done."""
    return target.with_name(f"{target.name}.noisefuse-partial")


# ---- files -------------------------------------------------------------------------------------------------


def open_own(path: Path, flags: int) -> int:
    """Opens or makes one of the command's own files. It raises the ValueError of `size_of`."""
    size_of(path)
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def size_of(path: Path) -> int | None:
    """Returns the size of one of the command's own files, or None if there is none. ValueError: a link, a FIFO or a
    folder has that name."""
    try:
        state = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(state.st_mode):
        raise _not_own(path, "file")
    return state.st_size


def make_own_folder(path: Path) -> None:
    """Makes one of the command's own folders, and removes half-written files of a killed process from it.

    Raises:
        ValueError: it, or a folder in it, is a link to another folder, in which nothing must be written.
    """
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
        raise _not_own(path, "folder")
    path.mkdir(exist_ok=True)
    for folder, folders, files in os.walk(path):
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                raise _not_own(Path(folder, name), "folder")
        for name in files:
            if name.startswith(TEMPORARY):
                Path(folder, name).unlink(missing_ok=True)


def _not_own(path: Path, kind: str) -> ValueError:
    return ValueError(f"{path} is no plain {kind}: expected one that this command made, and no link; move it away")


def write(file: int, data: Any, offset: int | None = None) -> None:
    """Writes all data: the system may take less at a time."""
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
    """Writes a file with all its bytes, or no file at all, whatever happens, even if two processes write it at once."""
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
