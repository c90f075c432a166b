"""The rotated files of a log: which one comes next, whatever they are called, compressed or not."""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
from collections.abc import Collection
from typing import NamedTuple

from mplog.cli.file_reader import COMPRESSED, FileReader, open_compressed
from mplog.errors import MplogError

#: How often the directory is read, while its files are being renamed.
_ATTEMPTS = 10
#: What sorts rotated files: when they were written last; in the same instant, their numbers.
_Key = tuple[int, tuple[float, ...]]


class Rotated(NamedTuple):
    """A rotated file as it was when the directory was read. Another file may get its name later, not its identity."""

    key: _Key
    name: str
    identity: tuple[int, int]

    @property
    def place(self) -> tuple[str, int]:
        """Its name without the ending of a compressor, and when it was written last, in nanoseconds."""
        return _base(self.name), self.key[0]


class RotatedFiles:
    """The rotated files of a log, whose path has no symbolic links."""

    def __init__(self, log: str) -> None:
        self._directory, self.log = os.path.split(log)

    def name_of(self, file: FileReader) -> str:
        """Return what a file is called now, or was when it was removed; empty if that is unknown."""
        if file.source is not None:
            return file.name
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{file.fd}")
            return os.path.basename(path.removesuffix(" (deleted)"))
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                if file.is_at(entry.stat(follow_symlinks=False)):
                    return entry.name
        return ""

    def open(self, rotated: Rotated) -> FileReader | None:
        """Open a file; return None if it has gone, or if another one has its name by now."""
        path = os.path.join(self._directory, rotated.name)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            reader = FileReader(fd, name=_base(rotated.name))
            stack.callback(reader.close)
            if _identity(reader.status()) == rotated.identity:
                if path.endswith(COMPRESSED):
                    # By the descriptor: the name may be that of another file by now.
                    reader.source = open_compressed(f"/dev/fd/{fd}", path)
                stack.pop_all()
                return reader
        return None

    def copy_of(self, file: FileReader) -> tuple[FileReader, Rotated] | None:
        """Return the copy that was made of a file, opened at the same place; None if there is none."""
        copies = self._all(re.compile(re.escape(os.path.splitext(self.log)[0]) + r".*", re.DOTALL))
        for rotated in sorted(copies, reverse=True):
            with contextlib.suppress(MplogError):
                copy = None if rotated.name == self.log else self.open(rotated)
                if copy is not None and copy.go_to(*file.place):
                    return copy, rotated
                if copy is not None:
                    copy.close()
        return None

    def next_after(
        self, name: str, written_at: int, *, is_old_name: bool, known: Collection[tuple[int, int]] = ()
    ) -> Rotated | None:
        """Return the file that was rotated next after another; None if there is none.

        Args:
            name: of the other file. Names that differ from it only in their numbers are those of rotated files.
            written_at: when the other file was written last, in nanoseconds.
            is_old_name: the other file had the name when it was removed or opened, and may have another one now.
            known: devices and inodes of files that have been read, and may have been written since.
        """
        if name == self.log or not re.search(r"\d", name):
            return None
        base = _base(name)
        pattern = re.compile(r"\d+".join(map(re.escape, re.split(r"\d+", base))) + r"(?:\.gz|\.zst)?")
        place: _Key = written_at, self._order(base)
        skipped = {self.log, base}
        if is_old_name and self._counts_back(base):
            # A compressed file keeps its time, and gets higher numbers; its old name may be that of another file.
            place, skipped = (written_at, (math.inf,)), {self.log}
        found: dict[str, Rotated] = {}
        for rotated in self._all(pattern):
            other = _base(rotated.name)
            if other in skipped or rotated.identity in known:
                continue
            # While a file is being compressed, there are both. The plain one is whole until it is removed.
            if rotated.key > place and (other not in found or not rotated.name.endswith(COMPRESSED)):
                found[other] = rotated
        return min(found.values(), default=None)

    def _all(self, pattern: re.Pattern[str]) -> list[Rotated]:
        """Return all files with such names, except empty ones."""
        found: list[Rotated] = []
        for _ in range(_ATTEMPTS):
            found.clear()
            try:
                with os.scandir(self._directory) as entries:
                    for entry in entries:
                        if pattern.fullmatch(entry.name):
                            status = entry.stat(follow_symlinks=False)
                            if stat.S_ISREG(status.st_mode) and status.st_size:
                                key = status.st_mtime_ns, self._order(_base(entry.name))
                                found.append(Rotated(key, entry.name, _identity(status)))
                break
            except OSError:
                pass  # a file has been renamed or compressed meanwhile, and has another name, which may be missing here
        return found

    def _counts_back(self, name: str) -> bool:
        """Return whether the newest file has the lowest number: app.log.1 is newer than app.log.2."""
        return re.fullmatch(re.escape(self.log) + r"\.\d{1,4}", name) is not None

    def _order(self, name: str) -> tuple[float, ...]:
        """Return what sorts rotated files that were written last in the same instant."""
        sign = -1 if self._counts_back(name) else 1
        return tuple(sign * int(number) for number in re.findall(r"\d+", name))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _base(name: str) -> str:
    return os.path.splitext(name)[0] if name.endswith(COMPRESSED) else name
