"""A log file that is open: the regular file that was asked for, which this process alone writes.

The rule of this file: **a text is in the file whole, or not at all.** If an error leaves a part of one, that is cut off
before anything else is written.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time

import msgspec

from mplog.files import regular
from mplog.files.fsync import Fsync, FsyncPolicy
from mplog.files.lock import mark, unmark
from mplog.files.notices import Clock, Notices
from mplog.files.portion import Encoder, Portion, Position
from mplog.record.encoding import describe

#: Seconds between two looks whether the path still leads to the open file.
_LOOK_SECONDS = 1.0

#: Seconds for which a program that has moved the file may take to make the new one. logrotate's ``create`` does so at
#: once; where the new file is there before it, it moves that away, too, with an error.
_CREATION_SECONDS = 0.2
_CREATION_PAUSE = 0.001


class FileOptions(msgspec.Struct, frozen=True):
    """How a file is made and written: see `FileSink`. `is_watched`: check before each write that it was not moved."""

    encoding: str = "utf-8"
    permissions: int = 0o640
    owner: regular.Owner | None = None
    follow_symlinks: bool = False
    fsync: FsyncPolicy = "never"
    is_watched: bool = False


class OpenFile:
    """A file that is written at its end, and reopened when it was moved or deleted.

    If a link leads to it, `path` is that of the file: the file is rotated, not the link. `whole_texts` is how many
    texts of the last portion are wholly in the file, also after an error.
    """

    def __init__(self, path: str, options: FileOptions, notices: Notices, clock: Clock) -> None:
        self.path = os.path.realpath(path) if options.follow_symlinks else path
        self.notices = notices
        self.clock = clock
        self.encoder = Encoder(options.encoding)
        self.fsync = Fsync(self.path, options.fsync, notices, clock)
        self.written_at = 0.0
        self.whole_texts = 0
        self._options = options
        self._fd = -1
        self._length = 0
        #: Where the file must be cut, because that has failed for the last text.
        self._cut_at: int | None = None
        self._looked_at = -math.inf
        #: Whether the program that has moved this file was given time to make the new one.
        self._has_waited = False

    def fileno(self) -> int:
        """Return its descriptor; -1 if it is not open."""
        return self._fd

    def open(self) -> None:
        """Open the path, and close the file that was open. On an OSError, that one stays open."""
        options = self._options
        fd, is_new = regular.open_for_appending(
            self.path, options.permissions, owner=options.owner, follow_symlinks=options.follow_symlinks
        )
        try:
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        self.fsync.sync_before_close(self._fd)
        self.replace(fd, status.st_size, status.st_mtime)
        if is_new:
            self.fsync.sync_name()

    def create(self, path: str) -> int:
        """Make an empty file with the same owner and mode, and return its descriptor."""
        return regular.create(path, self._options.permissions, owner=self._options.owner)

    def replace(self, fd: int, length: int, written_at: float) -> None:
        """Go on in another open file; `length` and `written_at` are its own."""
        before, self._fd = self._fd, fd
        mark(fd)
        if before >= 0:
            unmark(before)
            with contextlib.suppress(OSError):
                os.close(before)
        self._length = length
        self._cut_at = None
        self._has_waited = False
        self._looked_at = self.clock.monotonic()
        self.written_at = written_at if length else self.clock.time()
        self.encoder.continue_at(length)

    def close(self, *, remove_empty: bool = False) -> None:
        if self._fd < 0:
            return
        self.fsync.sync_before_close(self._fd)
        with contextlib.suppress(OSError):
            if remove_empty and not os.fstat(self._fd).st_size and not self.is_moved():
                os.unlink(self.path)
        unmark(self._fd)
        os.close(self._fd)
        self._fd = -1

    def position(self) -> Position:
        """Return how far the file is written, without a part that is to be cut off."""
        status = os.fstat(self._fd)
        length = status.st_size if self._cut_at is None else self._cut_at
        return Position(status.st_dev, status.st_ino, length)

    def is_moved(self) -> bool:
        """Whether the path no longer leads to the open file."""
        try:
            found = os.stat(self.path, follow_symlinks=self._options.follow_symlinks)
        except FileNotFoundError:
            return True
        return not os.path.samestat(found, os.fstat(self._fd))

    def look(self) -> Position:
        """Look whether other programs have changed the file, reopen it if it is gone, and return its position."""
        status = os.fstat(self._fd)
        if not status.st_nlink:
            self.open()
            self.notices.say("deleted", f"{self.path} was deleted; the log goes on in a new file")
            status = os.fstat(self._fd)
        elif status.st_size < self._length:
            self.notices.say(
                "truncated", f"{self.path} was truncated from {self._length} bytes to {status.st_size}; the log goes on"
            )
            self.encoder.continue_at(status.st_size)
        now = self.clock.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS or self._options.is_watched:
            self._looked_at = now
            with contextlib.suppress(OSError):
                if self.is_moved():
                    self.follow_move()
                    status = os.fstat(self._fd)
        self._length = status.st_size
        return Position(status.st_dev, status.st_ino, status.st_size)

    def follow_move(self) -> None:
        """Reopen the path; if that fails, go on in the file that was moved."""
        if not self._has_waited:  # once: a path that cannot be opened must not delay all that is written meanwhile
            self._has_waited = True
            deadline = time.monotonic() + _CREATION_SECONDS
            while not os.path.lexists(self.path) and time.monotonic() < deadline:
                time.sleep(_CREATION_PAUSE)
        try:
            self.open()
        except OSError as error:
            self.notices.say(
                "not moved",
                f"{self.path} was moved, and cannot be reopened; the log goes on in the file that was moved: "
                f"{describe(error)}",
            )
        else:
            self.notices.say("moved", f"{self.path} was moved; the log goes on in a new file")

    def write(self, portion: Portion) -> None:
        """Write a portion. After an OSError, `whole_texts` texts are in the file, and `take_back` cuts off the rest."""
        data = memoryview(portion.data)
        done = self.whole_texts = 0
        try:
            while done < len(data):
                count = os.write(self._fd, data[done:])
                if not count:
                    raise OSError(errno.EIO, "nothing was written")
                done += count
        except OSError:
            whole, self.whole_texts = self.encoder.rewind(portion, done)
            # Even if nothing seems to have been written: what a failed write leaves is not defined.
            self._length = self._cut_at = portion.start.length + whole
            with contextlib.suppress(OSError):
                self.take_back()
            raise
        self._length = portion.start.length + done
        self.written_at = self.clock.time()
        self.whole_texts = len(portion.texts)
        self.fsync.sync_after_write(self._fd)

    def take_back(self) -> None:
        """Cut off the text that was written in part."""
        if self._cut_at is not None:
            if os.fstat(self._fd).st_size > self._cut_at:
                os.ftruncate(self._fd, self._cut_at)
            self._cut_at = None

    def cut_back(self, start: int, end: int) -> int | None:
        """Cut off what another process has written: see `regular.cut_back`."""
        count = regular.cut_back(self._fd, start, end)
        if count:
            self._length = start
            self.encoder.continue_at(start)
        return count
