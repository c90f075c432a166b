"""The handler that writes a log file. It runs in the logging process.

The rule of this file: **a record is in one file, whole, or in none.** A batch is written in portions, none of which
crosses the end of a file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mplog.files import regular
from mplog.files.lock import LogLock
from mplog.files.notices import SYSTEM_CLOCK, Clock, Notices, changed_meanwhile, gone_meanwhile, say_on_stderr
from mplog.files.open_file import FileOptions, OpenFile
from mplog.files.portion import Portion, Position
from mplog.files.rotation import Rotator
from mplog.handlers.text import TextHandler
from mplog.record.layout import Entry

if TYPE_CHECKING:
    pass


class LogFileHandler(TextHandler):
    """Writes to a file, holds its lock, and rotates it.

    `write` writes a batch in portions: it prepares the first portion of the texts, announces its start and end, writes
    it, and goes on with the texts that are left. After a kill in the middle, what was announced can be taken back. Only
    `prepare` rotates the file, so everything before is noted by then.

    With `delay`, a file that was not there is removed at the end if it is still empty. After an error, `written` is how
    many texts of the batch are wholly in the file.
    """

    can_wait = True

    def __init__(
        self,
        path: str,
        options: FileOptions,
        *,
        rotator: Callable[[OpenFile], Rotator] = Rotator,
        delay: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__()
        silent_about = ("moved", "deleted", "truncated") if options.is_watched else ()
        self._file = OpenFile(path, options, Notices(clock, silent_about), clock)
        self._rotator = rotator(self._file)
        self._removes_empty = delay and not os.path.lexists(self.path)
        self._lock: LogLock | None = None
        self.written = 0
        try:
            self._lock = LogLock(self.path, clock)
            self._rotator.recover()
            self._file.open()
            self._locked_on = self._file.position().device
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<LogFileHandler {self.path}>"

    @property
    def path(self) -> str:
        return self._file.path

    def fileno(self) -> int:
        return self._file.fileno()

    def take(self, sources: Sequence[Entry | logging.LogRecord], texts: Sequence[str]) -> None:
        """Take rendered texts for the next `flush`."""
        with self._adding:
            self._sources += sources
            self._texts += texts

    def write(self, texts: list[str]) -> None:
        self.written = 0
        rest = texts
        try:
            while rest:
                portion = self.prepare(rest)
                if self.announce is not None:
                    self.announce(portion)
                self.write_portion(portion)
                rest = rest[len(portion.texts) :]
        except OSError as error:
            self._file.doubt(error)
            raise

    def prepare(self, texts: list[str]) -> Portion:
        """Rotate the file if it is due, and return the texts that come next into it.

        Nothing is written. A portion must be written before the next one is prepared, or never.
        """
        file, rotator = self._file, self._rotator
        start = file.look()
        if start.device != self._locked_on and self._lock is not None:
            self._lock.renew()
            self._locked_on = start.device
        if not rotator.is_due(start):
            portion = rotator.fit(texts, start)
            if portion.texts:
                return portion
        rotator.rotate()
        return rotator.fit(texts, file.position(), forced=1)

    def write_portion(self, portion: Portion) -> None:
        """Write a portion that `prepare` has returned; add the number of texts wholly in the file to `written`."""
        try:
            self._file.write(portion)
        finally:
            self.written += self._file.whole_texts
        if self.announce is None:
            self._rotator.settle()

    def resume(self, committed: Position, announced: int) -> int:
        file = self._file
        if announced <= committed.length:
            return 0
        # By its inode alone: a file system that was mounted anew has another device.
        if file.position().inode != committed.inode:
            self._rotator.undo(committed.inode)
        if file.position().inode == committed.inode:
            count = file.cut_back(committed.length, announced)
        else:
            directory = os.path.dirname(self.path)
            path = regular.find(directory, committed.inode, self._rotator.is_name_of)
            if path is None:
                file.notices.say("gone", gone_meanwhile(self.path))
                return 0
            with regular.existing(path) as fd:
                count = regular.cut_back(fd, committed.length, announced)
        if count is None:
            file.notices.say("resume", changed_meanwhile(self.path))
        return count or 0

    def takes_back(self, inode: int) -> bool:
        return self._rotator.takes_back(inode)

    def settle(self) -> None:
        self._rotator.settle()

    def reopen(self) -> None:
        self.flush()
        self._file.reopen()

    def due(self) -> float | None:
        times = self._file.fsync.due, self._lock.due if self._lock is not None else None
        return min((each for each in times if each is not None), default=None)

    def work(self) -> None:
        due = self._file.fsync.due
        if due is not None and self._file.clock.monotonic() >= due:
            self.sync()
        if self._lock is not None and self._file.clock.monotonic() >= self._lock.due:
            notice = self._lock.look()
            if notice:
                self._file.notices.say("lock", notice)

    def sync(self) -> bool:
        return self._file.fsync.sync(self._file.fileno())

    @property
    def is_tidying(self) -> bool:
        return self._rotator.is_tidying

    def take_notices(self) -> list[str]:
        return self._file.notices.take()

    def _release(self) -> None:
        try:
            self._rotator.close()
        finally:
            self._file.close(remove_empty=self._removes_empty)
            if self._lock is not None:
                self._lock.release()
            for notice in self.take_notices():
                say_on_stderr(notice)
