"""Renames that belong together: after a kill in the middle, they can be finished, or taken back.

The rule of this file: **renames are written down before the first is made, with the inodes.** A name alone would not
tell whether a rename was made: each file takes the name of the next one, and the numbers may have gaps. A file that is
in the way, or to be removed, gets a temporary name until `settle`, after which nothing is taken back::

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

from mplog.files import regular


class _Step(NamedTuple):
    """A rename, and the inode of the file."""

    source: str
    target: str
    inode: int


class _Entry(NamedTuple):
    """Renames that belong together, and where in the journal they begin."""

    start: int
    steps: list[_Step]
    note: Any


class Renames:
    """The renames in the directory of the log that has this path."""

    def __init__(self, log: str) -> None:
        self._directory, self._log = os.path.split(log)
        self._journal = f".{self._log}.renames"
        self.unsettled = os.path.lexists(self._path(self._journal))

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def make(self, moves: Sequence[tuple[str, str]], removed: Iterable[str] = (), note: Any = None) -> None:
        """Put the `removed` files aside, and rename others in this order; after an OSError, everything is as before.

        Names are without the directory. `undo_to` returns the `note`, anything that JSON can hold.
        """
        sources = {source for source, _ in moves}
        in_the_way = [target for _, target in moves if target not in sources and os.path.lexists(self._path(target))]
        aside = [(name, f"{self._journal}.{self._inode(name)}") for name in (*removed, *in_the_way)]
        steps = [_Step(source, target, self._inode(source)) for source, target in [*aside, *moves]]
        fd = self._open(os.O_RDWR | os.O_CREAT | os.O_APPEND)
        done: list[_Step] = []
        try:
            self.unsettled = True
            before = os.fstat(fd).st_size
            line = json.dumps([steps, note]).encode() + b"\n"
            try:
                if os.write(fd, line) < len(line):
                    raise OSError(f"{self._path(self._journal)} could not be written")
                for step in steps:
                    self._rename(step.source, step.target)
                    done.append(step)
            except BaseException:
                for step in reversed(done):
                    self._rename(step.target, step.source)
                os.ftruncate(fd, before)
                raise
        finally:
            os.close(fd)

    def finish(self) -> bool:
        """Make the renames that a killed process has left to do; return whether there was one."""
        left = [step for entry in self._entries()[-1:] for step in entry.steps if self._is(step.source, step.inode)]
        for step in left:
            self._rename(step.source, step.target)
        return bool(left)

    def undo_to(self, inode: int) -> list[Any]:
        """Take back renames until the log is the file with this inode again; remove the logs made since.

        Return the notes of the renames taken back, the earliest last; none if that file was never renamed.
        """
        entries = self._entries()
        of_the_file = [any(step[::2] == (self._log, inode) for step in entry.steps) for entry in entries]
        notes = []
        for entry in reversed(entries[of_the_file.index(True) :] if any(of_the_file) else []):
            for step in reversed(entry.steps):
                if self._is(step.target, step.inode):
                    # If `source` is the log, this replaces the log that was made since.
                    self._rename(step.target, step.source)
            # Before the next entry is taken back: of two that are half taken back, only the last could be finished.
            os.truncate(self._path(self._journal), entry.start)
            notes.append(entry.note)
        return notes

    def settle(self) -> None:
        """Remove what was put aside, and forget everything."""
        if not self.unsettled:
            return
        with contextlib.suppress(OSError):  # tried again next time, unless another program has made the journal
            os.close(self._open(os.O_RDONLY))
            for step in (step for entry in self._entries() for step in entry.steps):
                if step.target.startswith(self._journal):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self._path(step.target))
            os.unlink(self._path(self._journal))
        self.unsettled = os.path.lexists(self._path(self._journal))

    def _entries(self) -> list[_Entry]:
        """Read the whole entries of the journal, and cut off the rest."""
        entries: list[_Entry] = []
        if not self.unsettled:
            return entries
        with contextlib.suppress(OSError), open(self._open(os.O_RDWR), "r+b") as file:
            start = 0
            for line in file:
                try:
                    steps, note = json.loads(line[: line.index(b"\n")])
                    entries.append(_Entry(start, [_Step(*step) for step in steps], note))
                except (ValueError, TypeError):
                    # The process was killed while it wrote this entry, so before it renamed anything.
                    os.ftruncate(file.fileno(), start)
                    break
                start += len(line)
        return entries

    def _open(self, flags: int) -> int:
        """Open the journal; raise an OSError if another program has made it."""
        path = self._path(self._journal)
        fd = os.open(path, flags | regular.UNPLANTED, 0o600)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
            os.close(fd)
            raise PermissionError(errno.EPERM, f"{path} is not of this program's making. Remove it")
        return fd

    def _rename(self, source: str, target: str) -> None:
        os.rename(self._path(source), self._path(target))

    def _inode(self, name: str) -> int:
        return os.lstat(self._path(name)).st_ino

    def _is(self, name: str, inode: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self._inode(name) == inode
        return False
