"""What is about to be written into files, for the process that comes after a kill: see README.rst in this folder.

The rule of this file: **what is announced is in the note of the buffers.** What has no room there is in files of the
queue's directory, each written before the note names it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import msgspec

from mplog.files.portion import Portion

#: How many are in the note. Each is 46 bytes at most, and the note 4,096, of which what is to be said of restarts takes
#: up to 1,730 (`mplog.monitoring.restart_lines`), and the rest 60.
_IN_NOTE = 48


class Announced(msgspec.Struct, array_like=True):
    """What the handler of the number `file` is about to write: into which file, and its length before and after."""

    file: int
    device: int
    inode: int
    start: int
    end: int


class Noted(msgspec.Struct, array_like=True):
    """What is in the note: the latest, and the numbers of the files that hold those before."""

    latest: list[Announced] = []
    files: list[int] = []


class Announcements:
    """What has been announced since the last commit, as `noted`, and what the process before had announced."""

    def __init__(self, directory: str, noted: Noted) -> None:
        self._directory = directory
        self._before = noted
        self.noted = Noted()
        #: The handlers of which something is in the files.
        self._put_away_of: set[int] = set()
        # Not the numbers that the note names until it changes.
        self._next = max(noted.files, default=0) + 1

    def before(self) -> Iterator[Announced]:
        for number in self._before.files:
            with open(self._path(number), "rb") as file:
                yield from msgspec.msgpack.decode(file.read(), type=list[Announced])
        yield from self._before.latest

    @property
    def is_open(self) -> bool:
        return bool(self.noted.latest or self.noted.files)

    def add(self, index: int, portion: Portion, takes_back: Callable[[int], bool] = lambda inode: False) -> None:
        """Announce a portion of the handler of this number, unless undoing what is announced `takes_back` that, too."""
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
        with open(self._path(self._next), "wb") as file:
            file.write(msgspec.msgpack.encode(noted.latest))
        noted.files.append(self._next)
        self._put_away_of.update(announced.file for announced in noted.latest)
        self._next += 1
        noted.latest = []

    def clear(self) -> None:
        """Forget everything: it is written. The files go with `remove`, once the note does not name them any more."""
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
