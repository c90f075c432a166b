"""What is about to be written into files, noted for the next logging process: see README.rst in this folder.

The rule of this file: **what is announced is in the note of the buffers.** If there is no room, it is in files of the
queue's directory, each written before the note names it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import msgspec

from mplog.files.portion import Portion
from mplog.queue.directory import open_file, read_file
from mplog.record.packing import pack

#: How many announcements the note holds: each takes up to 46 of its 4,096 bytes. The restarts to be said take up to
#: 1,730 (`mplog.monitoring.restart_lines`), all else 60.
_IN_NOTE = 48


class Announced(msgspec.Struct, array_like=True):
    """The handler with the number `file` is about to write: into which file, and its length before and after."""

    file: int
    device: int
    inode: int
    start: int
    end: int


class Noted(msgspec.Struct, array_like=True):
    """The part of the note: the latest announcements, and the numbers of the files that hold the earlier ones."""

    latest: list[Announced] = []
    files: list[int] = []


class Announcements:
    """The announcements since the last commit, in `noted`, and `before`, those of the previous logging process."""

    def __init__(self, directory: str, noted: Noted) -> None:
        self._directory = directory
        self._before = noted
        self.noted = Noted()
        #: The handlers with announcements in the files.
        self._put_away_of: set[int] = set()
        # Higher than the numbers that the note still names.
        self._next = max(noted.files, default=0) + 1

    def before(self, warn: Callable[[OSError], object]) -> Iterator[Announced]:
        """Yield the announcements since the last commit of the previous process; `warn` of a file that is gone."""
        for number in self._before.files:
            try:
                yield from msgspec.msgpack.decode(read_file(self._path(number)), type=list[Announced])
            except OSError as error:
                warn(error)
        yield from self._before.latest

    @property
    def is_open(self) -> bool:
        return bool(self.noted.latest or self.noted.files)

    def add(self, index: int, portion: Portion, takes_back: Callable[[int], bool] = lambda inode: False) -> None:
        """Announce a portion of a handler, unless undoing its earlier announcements also removes it (`takes_back`)."""
        device, inode, length = portion.start
        before = [announced for announced in self.noted.latest if announced.file == index]
        same = [announced for announced in before if (announced.device, announced.inode) == (device, inode)]
        if same:
            same[0].end = portion.end.length
            return
        if (before or index in self._put_away_of) and takes_back(inode):
            return
        if len(self.noted.latest) >= _IN_NOTE:
            self._put_away(self.noted)
        self.noted.latest.append(Announced(index, device, inode, length, portion.end.length))

    def _put_away(self, noted: Noted) -> None:
        with open(open_file(self._path(self._next), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(pack(noted.latest))
        noted.files.append(self._next)
        self._put_away_of.update(announced.file for announced in noted.latest)
        self._next += 1
        noted.latest = []

    def clear(self) -> None:
        """Forget all announcements: they are written. `remove` deletes the files once the note no longer names them."""
        self.noted = Noted()
        self._put_away_of.clear()

    def remove(self) -> None:
        for number in range(1, self._next):
            if number not in self.noted.files:
                with contextlib.suppress(OSError):
                    os.unlink(self._path(number))
        if not self.noted.files:
            self._next = 1

    def _path(self, number: int) -> str:
        return os.path.join(self._directory, f"announced-{number}")
