"""Files that are rotated and named as the stdlib's handlers do it. Runs in the logging process.

The rule of this file: **the stdlib decides, and `LogFileHandler` does it.** When a file is rolled over, what the rolled
file is called and which ones go is asked of the stdlib's own handlers, of whatever Python this is, which open no file
here. Writing is that of every other log file; the renames go through `Renames`, since the stdlib's, of which each file
takes the name of the next one, would lose a file when the process is killed between two of them.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import logging.handlers
import math
import os
import sys
import time
from typing import Any

from mplog.files.renames import Renames
from mplog.handlers.log_file import LogFileHandler, Portion, Position

__all__ = ["RotatingFile", "TimedRotatingFile", "WatchedFile"]

#: Whether doRollover() leaves a file that has the rolled one's name already, and goes on in the old file, in place of
#: removing it: as of https://github.com/python/cpython/issues/88352.
_KEEPS_ROLLED = sys.version_info >= (3, 12, 2) or (3, 11, 8) <= sys.version_info < (3, 12)


class WatchedFile(LogFileHandler):
    """Looks before each batch whether the file was moved or removed: as ``WatchedFileHandler``.

    Args:
        path: the file.
        options: see `LogFileHandler`.
    """

    def _look(self) -> Position:
        self._looked_at = -math.inf
        return super()._look()

    def _say(self, what: str, notice: str) -> None:
        """Say nothing about what this is for."""
        if what not in ("moved", "deleted", "truncated"):
            super()._say(what, notice)


class _RolledFile(LogFileHandler):
    """What the two have in common.

    Args:
        path: the file, which is no symbolic link.
        options: see `LogFileHandler`.
    """

    def __init__(self, path: str, **options: Any) -> None:
        #: The inodes of files that were made by rotations since `settle`.
        self._made: set[int] = set()
        self._renames = Renames(os.path.realpath(path))
        super().__init__(path, **options)

    def prepare(self, texts: list[str]) -> Portion:
        self._take_back()
        start = self._look()
        portion = self._fit(texts, start)
        if self._may_rotate() and (not portion.texts or self._is_time()):
            self._encoder.setstate(portion.state)
            self._rotate()
            start = self.position()
            # Whatever its length, the record goes into the new file.
            first = self._encode(texts[:1], start)
            rest = self._fit(texts[1:], first.end)
            portion = Portion(first.texts + rest.texts, first.data + rest.data, start, first.state)
        return portion

    def _may_rotate(self) -> bool:
        return self._monotonic() >= self._retry_at

    def _is_time(self) -> bool:
        """Whether to roll the file over, whatever comes next."""
        return False

    def _finish_rotation(self) -> None:
        try:
            if self._renames.finish():
                self._was_rolled()
        except OSError as error:
            self._say("rotate", f"the last rotation of {self._path} could not be finished: {error}")
        with contextlib.suppress(OSError):  # what cannot be removed is in the way of a rotation, which says so
            os.unlink(self._new_path)

    def _swap_files(self) -> str:
        archive = super()._swap_files()
        self._made.add(os.fstat(self._fd).st_ino)
        return archive

    def _rotate(self) -> None:
        super()._rotate()
        if self.announce is None:
            self.settle()  # nobody keeps notes from which something could be taken back

    def _bring_back(self, archive: str) -> None:
        self._went_back(self._renames.undo_to(os.fstat(self._fd).st_ino))

    def _was_rolled(self) -> None:
        """Note that it was rolled over just now."""

    def _went_back(self, notes: list[Any]) -> None:
        """Note that it was not rolled over."""

    def resume(self, committed: Position, announced: int) -> int:
        # The same records will be written again, and roll the same files over.
        if announced > committed.length and self.position()[:2] != committed[:2]:
            notes = self._renames.undo_to(committed.inode)
            if notes:
                self._open()
                self._went_back(notes)
        return super().resume(committed, announced)

    def takes_back(self, inode: int) -> bool:
        return inode in self._made

    def settle(self) -> None:
        self._made.clear()
        self._renames.settle()

    def _release(self) -> None:
        try:
            if self._fd >= 0:
                self.settle()
        finally:
            super()._release()


class RotatingFile(_RolledFile):
    """Rolls over by size: as ``RotatingFileHandler``.

    Args:
        path: the file, which is no symbolic link.
        max_bytes: what it is to stay below.
        backup_count: how many rolled files are kept, as ``app.log.1``, ``app.log.2`` and so on: at least 1.
        options: see `LogFileHandler`.
    """

    def __init__(self, path: str, *, max_bytes: int, backup_count: int, **options: Any) -> None:
        self._max_bytes = max_bytes
        self._backup_count = backup_count
        self._rolls_empty = _rolls_empty_file(path)
        super().__init__(path, **options)

    def _fit(self, texts: list[str], start: Position) -> Portion:
        if not self._may_rotate():
            return self._encode(texts, start)
        state = self._encoder.getstate()
        # No text has more characters, which are what the stdlib counts, than bytes.
        if start.length + sum(map(len, texts)) + 1 < self._max_bytes:
            portion = self._encode(texts, start)
            if portion.end.length + 1 < self._max_bytes:
                return portion
            self._encoder.setstate(state)
        pieces: list[bytes] = []
        position = start.length
        for text in texts:
            # The stdlib takes the end of the line for one character, whatever it is.
            length = len(text) - len(self.terminator) + 1
            if position + length >= self._max_bytes and (position or self._rolls_empty):
                break
            pieces.append(self._encoder.encode(text))
            position += len(pieces[-1])
        return Portion(texts[: len(pieces)], b"".join(pieces), start, state)

    def _put_away(self) -> str:
        name = os.path.basename(self._path)
        names = [name, *(f"{name}.{number}" for number in range(1, self._backup_count + 1))]
        directory = os.path.dirname(self._path)
        moves = [
            (source, target)
            for source, target in reversed(list(itertools.pairwise(names)))
            if os.path.exists(os.path.join(directory, source))
        ]
        self._renames.make(moves)
        return f"{self._path}.1"


def _rolls_empty_file(path: str) -> bool:
    """Whether this Python rolls over a file that is empty: https://github.com/python/cpython/issues/116263."""
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=1, backupCount=1, encoding="utf-8", delay=True)
    handler.stream = io.StringIO()  # type: ignore[assignment]
    try:
        return bool(handler.shouldRollover(logging.makeLogRecord({"msg": "text"})))
    finally:
        handler.close()


class TimedRotatingFile(_RolledFile):
    """Rolls over by time: as ``TimedRotatingFileHandler``.

    Args:
        path: the file, which is no symbolic link.
        schedule: the arguments of that for when, and what is kept.
        options: see `LogFileHandler`.
    """

    def __init__(self, path: str, *, schedule: dict[str, Any], **options: Any) -> None:
        # Before the file is made, if it is not there: the time counts from when it was last written.
        self._schedule = _Schedule(os.path.realpath(path), **schedule, encoding="utf-8", delay=True)
        super().__init__(path, **options)

    def _fit(self, texts: list[str], start: Position) -> Portion:
        return self._encode(texts, start)

    def _is_time(self) -> bool:
        return self._schedule.is_due()

    def _put_away(self) -> str:
        before = self._schedule.rolloverAt
        target = self._schedule.roll_over()
        if not target:
            raise FileExistsError("a file with the name that it would get has been made meanwhile")
        names = os.path.basename(self._path), os.path.basename(target)
        try:
            self._renames.make([names], note=before)
        except BaseException:
            self._schedule.rolloverAt = before
            raise
        return target

    def _finish_rotation(self) -> None:
        super()._finish_rotation()
        if self._renames.unsettled:
            self._remove_old()  # which may not have been done behind the last one

    def _swap_files(self) -> str:
        archive = super()._swap_files()
        self._remove_old()
        return archive

    def _remove_old(self) -> None:
        try:
            old = [os.path.basename(path) for path in self._schedule.old()] if self._schedule.backupCount > 0 else []
            if old:
                self._renames.make([], removed=old)
        except OSError as error:
            self._say("remove", f"old files of {self._path} could not be removed: {error}")

    def _was_rolled(self) -> None:
        self._schedule.rolloverAt = self._schedule.computeRollover(int(time.time()))

    def _went_back(self, notes: list[Any]) -> None:
        for note in notes:
            if note is not None:
                self._schedule.rolloverAt = note

    def _release(self) -> None:
        try:
            super()._release()
        finally:
            self._schedule.close()


class _Schedule(logging.handlers.TimedRotatingFileHandler):
    """The stdlib's own, which opens and renames nothing, and so only says what is to be done."""

    _rolled_name = _target = ""

    def is_due(self) -> bool:
        """Whether to roll the file over now. If its new name is taken, set the next time as the stdlib does."""
        before = self.rolloverAt
        if time.time() < before or not self.shouldRollover(None) or not self.roll_over():  # type: ignore[arg-type]
            return False
        self.rolloverAt = before
        return True

    def roll_over(self) -> str:
        """Set the next time, and return what the file of the time before is called; "" if it is not rolled over."""
        self._target = ""
        self.doRollover()
        return self._target

    def old(self) -> list[str]:
        """Return the files that are not kept."""
        return super().getFilesToDelete()

    # What doRollover() calls.

    def rotation_filename(self, default_name: str) -> str:
        self._rolled_name = default_name
        return default_name if _KEEPS_ROLLED else ""  # which is no file, and so none that could be removed

    def rotate(self, source: str, dest: str) -> None:
        self._target = self._rolled_name

    def getFilesToDelete(self) -> list[str]:
        return []

    def _open(self) -> Any:
        return None
