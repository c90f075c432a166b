"""Renames of files that belong together, and that a kill in the middle of them leaves neither half done nor final.

The rule of this file: **what is going to be renamed is written down before, with the inodes.** A name alone would not
tell whether a rename has been made, where each file takes the name of the next one. Nothing is overwritten or removed
at once: what is in the way, or is to go, gets a name of its own, until `settle` says that nobody will want it back.
All of it runs in the logging process::

    make()  ->  the journal  ->  one rename after the other  ->  settle()
                    |
                    +--- after a kill: finish() makes the rest of them, undo_to() takes them back
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["Renames"]


class _Step(NamedTuple):
    """A rename, and what is renamed."""

    source: str
    target: str
    inode: int


class _Entry(NamedTuple):
    """Renames that belong together, and where in the journal they are."""

    start: int
    end: int
    steps: list[_Step]
    note: Any


class Renames:
    """The renames in the directory of a log.

    Args:
        log: the path of the log.
    """

    def __init__(self, log: str) -> None:
        self._directory, self._log = os.path.split(log)
        self._path = os.path.join(self._directory, f".{self._log}.renames")
        self._has_journal = os.path.lexists(self._path)

    @property
    def unsettled(self) -> bool:
        """Whether there may be something to take back."""
        return self._has_journal

    def _full(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def make(self, moves: Sequence[tuple[str, str]], removed: Iterable[str] = (), note: Any = None) -> None:
        """Rename files, in this order, and put others aside.

        Args:
            moves: names and new names, without the directory.
            removed: names of files that are to go.
            note: what `undo_to` gives back; anything that JSON can hold.

        Raises:
            OSError: that is not possible; everything is as before.
        """
        sources = {source for source, _ in moves}
        in_the_way = [target for _, target in moves if target not in sources and os.path.lexists(self._full(target))]
        steps = [self._aside(name) for name in (*removed, *in_the_way)]
        steps += [_Step(source, target, self._inode(source)) for source, target in moves]
        fd = self._open(os.O_RDWR | os.O_CREAT | os.O_APPEND)
        done: list[_Step] = []
        try:
            self._has_journal = True
            before = os.fstat(fd).st_size
            line = json.dumps([steps, note]).encode() + b"\n"
            try:
                if os.write(fd, line) < len(line):
                    raise OSError(f"{self._path} could not be written")
                for step in steps:
                    os.rename(self._full(step.source), self._full(step.target))
                    done.append(step)
            except BaseException:
                for step in reversed(done):
                    os.rename(self._full(step.target), self._full(step.source))
                os.ftruncate(fd, before)
                raise
        finally:
            os.close(fd)

    def _open(self, flags: int) -> int:
        """Open the journal.

        Raises:
            OSError: it cannot be opened, or is somebody else's work.
        """
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        fd = os.open(self._path, flags, 0o600)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
            os.close(fd)
            raise PermissionError(errno.EPERM, f"{self._path} is not of this program's making. Remove it")
        return fd

    def _inode(self, name: str) -> int:
        return os.lstat(self._full(name)).st_ino

    def _aside(self, name: str) -> _Step:
        inode = self._inode(name)
        return _Step(name, f"{os.path.basename(self._path)}.{inode}", inode)

    def _is(self, name: str, inode: int) -> bool:
        try:
            return self._inode(name) == inode
        except FileNotFoundError:
            return False

    def finish(self) -> bool:
        """Make those renames that a killed process was about to make.

        Returns:
            Whether there was one.

        Raises:
            OSError: one of them is not possible.
        """
        entries = self._entries()
        if self._has_journal:
            with contextlib.suppress(OSError):
                fd = self._open(os.O_RDWR)
                try:
                    os.ftruncate(fd, entries[-1].end if entries else 0)  # without a line that is not whole
                finally:
                    os.close(fd)
        left = [step for entry in entries[-1:] for step in entry.steps if self._is(step.source, step.inode)]
        for step in left:
            os.rename(self._full(step.source), self._full(step.target))
        return bool(left)

    def undo_to(self, inode: int) -> list[Any]:
        """Take back renames until the log is that file again; what has been the log since is removed.

        Returns:
            The notes of what was taken back, the earliest last; none where that file was never renamed.
        """
        entries = self._entries()
        first = next(
            (
                number
                for number, entry in enumerate(entries)
                for step in entry.steps
                if step.inode == inode and step.source == self._log
            ),
            len(entries),
        )
        notes = []
        for entry in reversed(entries[first:]):
            for step in reversed(entry.steps):
                if self._is(step.target, step.inode):
                    # Where the log is to be again, there is what came after it.
                    os.rename(self._full(step.target), self._full(step.source))
            # Before the one before it: of two that are half taken back, only the last one could be finished.
            os.truncate(self._path, entry.start)
            notes.append(entry.note)
        return notes

    def settle(self) -> None:
        """Remove what was put aside, and forget everything."""
        if not self._has_journal:
            return
        with contextlib.suppress(OSError):  # the next time, unless it is not of this program's making
            os.close(self._open(os.O_RDONLY))
            for entry in self._entries():
                for step in entry.steps:
                    if step.target.startswith(os.path.basename(self._path)):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(self._full(step.target))
            os.unlink(self._path)
        self._has_journal = os.path.lexists(self._path)

    def _entries(self) -> list[_Entry]:
        """Read the journal; what somebody else has put there is none."""
        if not self._has_journal:
            return []
        try:
            fd = self._open(os.O_RDONLY)
        except OSError:
            return []
        with open(fd, "rb") as file:
            entries = []
            start = 0
            for line in file:
                end = start + len(line)
                try:
                    steps, note = json.loads(line)
                    entries.append(_Entry(start, end, [_Step(*step) for step in steps], note))
                except (ValueError, TypeError):
                    break  # written by a process that was killed before it renamed anything
                start = end
        return entries
