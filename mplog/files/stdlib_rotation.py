"""Files that are rotated and named as the stdlib's handlers do it.

The rule of this file: **the stdlib decides, and `Rotator` does it.** The handlers of this Python's stdlib,
which open no file here, say when to roll a file over, what the rolled file is called, and which files go. `Renames`
makes the renames: the stdlib gives each file the name of the next one, so that a kill between two would lose a file.
"""

from __future__ import annotations

import io
import itertools
import logging
import logging.handlers
import os
import sys
import time
from typing import Any

from mplog.files.open_file import OpenFile
from mplog.files.portion import Portion, Position
from mplog.files.renames import Renames
from mplog.files.rotation import Rotator

#: Whether doRollover(), if a file already has the name of the rolled one, keeps that file and goes on in the old log,
#: and does not remove it: as of https://github.com/python/cpython/issues/88352.
_KEEPS_ROLLED = sys.version_info >= (3, 12, 2) or (3, 11, 8) <= sys.version_info < (3, 12)


class StdlibRotator(Rotator):
    """Rotates by renames that can be taken back after a kill. The path of the file is no symbolic link."""

    def __init__(self, file: OpenFile) -> None:
        super().__init__(file)
        self._renames = Renames(os.path.realpath(file.path))
        #: The inodes of files that rotations have made since `settle`.
        self._made: set[int] = set()

    def recover(self) -> None:
        try:
            if self._renames.finish():
                self.was_rolled()
        except OSError as error:
            self._file.notices.say("rotate", f"the last rotation of {self._file.path} could not be finished: {error}")
        self.remove_new()

    def bring_back(self, archive: str) -> None:
        self.went_back(self._renames.undo_to(os.fstat(self._file.fileno()).st_ino))

    def after_rotation(self) -> None:
        self._made.add(os.fstat(self._file.fileno()).st_ino)

    def undo(self, inode: int) -> None:
        # The same records will be written again, and roll the same files over.
        notes = self._renames.undo_to(inode)
        if notes:
            self._file.open()
            self.went_back(notes)

    def takes_back(self, inode: int) -> bool:
        return inode in self._made

    def settle(self) -> None:
        self._made.clear()
        self._renames.settle()

    def close(self) -> None:
        if self._file.fileno() >= 0:
            self.settle()

    def was_rolled(self) -> None:
        """Note that the file was rolled over just now."""

    def went_back(self, notes: list[Any]) -> None:
        """Note that rollovers were taken back, with the notes of their renames, the earliest last."""


class SizeRotator(StdlibRotator):
    """Rolls over by size, as ``RotatingFileHandler`` does whose `backup_count` is at least 1."""

    def __init__(self, file: OpenFile, *, max_bytes: int, backup_count: int, terminator: str) -> None:
        super().__init__(file)
        self._max_bytes = max_bytes
        self._backup_count = backup_count
        self._terminator_size = len(terminator)
        self._rolls_empty = _rolls_empty_file(file.path)

    def fit(self, texts: list[str], start: Position, *, forced: int = 0) -> Portion:
        if not self.is_ready:
            return super().fit(texts, start)
        # A text up to there surely fits: the stdlib adds one byte for the end of the line, and wants the sum below.
        return self._file.encoder.fit(texts, start, self._max_bytes - 2, self._fits, forced=forced)

    def _fits(self, length: int, text: str, size: int) -> bool:
        # The stdlib counts characters.
        after = length + len(text) - self._terminator_size + 1
        return after < self._max_bytes or not (length or self._rolls_empty)

    def put_away(self) -> str:
        directory, name = os.path.split(self._file.path)
        names = [name, *(f"{name}.{number}" for number in range(1, self._backup_count + 1))]
        self._renames.make(
            [
                (source, target)
                for source, target in reversed(list(itertools.pairwise(names)))
                if os.path.exists(os.path.join(directory, source))
            ]
        )
        return f"{self._file.path}.1"


def _rolls_empty_file(path: str) -> bool:
    """Whether this Python rolls over a file that is empty: https://github.com/python/cpython/issues/116263."""
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=1, backupCount=1, encoding="utf-8", delay=True)
    handler.stream = io.StringIO()  # type: ignore[assignment]
    try:
        return bool(handler.shouldRollover(logging.makeLogRecord({"msg": "text"})))
    finally:
        handler.close()


class TimeRotator(StdlibRotator):
    """Rolls over by time, as ``TimedRotatingFileHandler``, some of whose arguments are the schedule."""

    def __init__(self, file: OpenFile, schedule: dict[str, Any]) -> None:
        super().__init__(file)
        # Before the file is opened: the time counts from its last write.
        self._schedule = _Schedule(os.path.realpath(file.path), **schedule, encoding="utf-8", delay=True)

    def is_due(self, start: Position) -> bool:
        return self.is_ready and self._schedule.is_due()

    def put_away(self) -> str:
        before = self._schedule.rolloverAt
        target = self._schedule.roll_over()
        if not target:
            raise FileExistsError("a file with the name that it would get has been made meanwhile")
        names = os.path.basename(self._file.path), os.path.basename(target)
        try:
            self._renames.make([names], note=before)
        except BaseException:
            self._schedule.rolloverAt = before
            raise
        return target

    def recover(self) -> None:
        super().recover()
        if self._renames.unsettled:
            self._remove_old()  # a kill may have prevented it after the last rotation

    def after_rotation(self) -> None:
        super().after_rotation()
        self._remove_old()

    def _remove_old(self) -> None:
        try:
            old = [os.path.basename(path) for path in self._schedule.old()] if self._schedule.backupCount > 0 else []
            if old:
                self._renames.make([], removed=old)
        except OSError as error:
            self._file.notices.say("remove", f"old files of {self._file.path} could not be removed: {error}")

    def was_rolled(self) -> None:
        self._schedule.rolloverAt = self._schedule.computeRollover(int(time.time()))

    def went_back(self, notes: list[Any]) -> None:
        for note in notes:
            if note is not None:
                self._schedule.rolloverAt = note

    def close(self) -> None:
        super().close()
        self._schedule.close()


class _Schedule(logging.handlers.TimedRotatingFileHandler):
    """The stdlib's handler, kept from opening and renaming anything, so that it only says what to do."""

    _rolled_name = _target = ""

    def is_due(self) -> bool:
        """Whether to roll the file over now. If its new name is taken, set the next time as the stdlib does."""
        before = self.rolloverAt
        if time.time() < before or not self.shouldRollover(None) or not self.roll_over():  # type: ignore[arg-type]
            return False
        self.rolloverAt = before
        return True

    def roll_over(self) -> str:
        """Set the next time, and return the name for the file of the period before; "" if it is not rolled over."""
        self._target = ""
        self.doRollover()
        return self._target

    def old(self) -> list[str]:
        return super().getFilesToDelete()

    # What doRollover() calls.

    def rotation_filename(self, default_name: str) -> str:
        self._rolled_name = default_name
        return default_name if _KEEPS_ROLLED else ""  # no file has this name, so none is removed

    def rotate(self, source: str, dest: str) -> None:
        self._target = self._rolled_name

    def getFilesToDelete(self) -> list[str]:
        return []

    def _open(self) -> Any:
        return None
