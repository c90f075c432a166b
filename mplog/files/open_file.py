"""A log file that is open: the regular file that was asked for, which this process alone writes.

The rule of this file: **a text is in the file whole, or not at all.** If an error leaves a part of one, that is cut off
before anything else is written, also if the path must be opened anew for that.
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
from mplog.files.lock import mark, taken_at, unmark
from mplog.files.notices import Clock, Notices
from mplog.files.portion import Encoder, Portion, Position
from mplog.record.encoding import describe

#: Seconds between two looks whether the path still leads to the open file.
_LOOK_SECONDS = 1.0

#: Seconds for which a program that has moved the file may take to make the new one. logrotate's ``create`` does so at
#: once; where the new file is there before it, it moves that away, too, with an error.
_CREATION_SECONDS = 0.2
_CREATION_PAUSE = 0.001

#: Errors after which a descriptor may never work again: its file system has died (a FUSE daemon that was killed, a disk
#: that was pulled out), NFS no longer knows the file, or somebody has closed the descriptor.
DEAD = frozenset({errno.EBADF, errno.ECONNABORTED, errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ESTALE})


class FileOptions(msgspec.Struct, frozen=True):
    """How a file is made and written: see `FileSink`. `is_watched`: check before each write that it was not moved."""

    encoding: str = "utf-8"
    permissions: int = 0o640
    owner: regular.Owner | None = None
    follow_symlinks: bool = False
    fsync: FsyncPolicy = "never"
    is_watched: bool = False


class _Torn(msgspec.Struct, frozen=True):
    """What a failed write may have left in the file: a beginning of `data`, to be cut off at `start`."""

    start: int
    data: bytes


class OpenFile:
    """A file that is written at its end, and reopened when it was moved or deleted, or when its descriptor is dead.

    If a link leads to it, `path` is that of the file: the file is rotated, not the link. `whole_texts` is how many
    texts of the last portion are wholly in the file, also after an error.
    """

    def __init__(self, path: str, options: FileOptions, notices: Notices, clock: Clock) -> None:
        self.path = os.path.realpath(path) if options.follow_symlinks else path
        self.notices = notices
        self.clock = clock
        self.encoder = Encoder(options.encoding)
        self.fsync = Fsync(self.path, options.fsync, notices, clock, self.doubt)
        self.written_at = 0.0
        self.whole_texts = 0
        self._options = options
        self._fd = -1
        self._length = 0
        #: What must be cut off, because that has failed for the last text.
        self._torn: _Torn | None = None
        #: The error after which the path is to be opened anew.
        self._doubted_for: OSError | None = None
        self._looked_at = -math.inf
        #: Whether the program that has moved this file was given time to make the new one.
        self._has_waited = False

    def fileno(self) -> int:
        """Return its descriptor; -1 if it is not open."""
        return self._fd

    def open(self, *, make: bool = True) -> None:
        """Open the path, and close the file that was open. On an OSError, that one stays open."""
        options = self._options
        fd, is_new = regular.open_for_appending(
            self.path, options.permissions, owner=options.owner, follow_symlinks=options.follow_symlinks, make=make
        )
        try:
            if self._torn is not None:
                regular.cut_torn(fd, self.path, self._torn.start, self._torn.data)
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        self.fsync.sync_before_close(self._fd)
        self.replace(fd, status.st_size, status.st_mtime)
        if is_new:
            self.fsync.sync_name()

    def reopen(self) -> None:
        """Open the path, whatever has become of the file that was open."""
        try:
            _ask_file_system(self._fd)
            self.take_back()
        except OSError as error:
            self.doubt(error)
        self.open(make=self._may_make)

    def doubt(self, error: OSError) -> None:
        """Note an error. If it is one of a dead descriptor, `look` opens the path anew before more is written."""
        if error.errno in DEAD:
            self._doubted_for = error
            if error.errno == errno.EBADF:
                self._fd = -1  # the number may be somebody else's by the time that it would be closed

    @property
    def _may_make(self) -> bool:
        """Whether a file that is not there may be made.

        Not in the place of a file system that has died: once that is mounted anew, the file would be hidden. The lock
        file, which is in the same directory, tells that it is mounted.
        """
        return self._doubted_for is None or taken_at(self.path) is not None

    def _revive(self, error: OSError) -> None:
        """Open the path anew after an error; if that fails, go on with the descriptor that there is."""
        known = self._length if self._torn is None else self._torn.start
        written_at = self.written_at
        try:
            self.open(make=self._may_make)
        except OSError:
            return
        missing = known - self._length
        if not missing:
            self.written_at = written_at  # which says when to rotate it
        lost = f"; {missing} bytes that had been written are not in it" if missing > 0 else ""
        self.notices.say("dead", f"{self.path} has failed, and was opened anew{lost}: {describe(error)}")

    def create(self, path: str) -> int:
        """Make an empty file with the same owner and mode, and return its descriptor."""
        return regular.create(path, self._options.permissions, owner=self._options.owner)

    def replace(self, fd: int, length: int, written_at: float) -> None:
        """Go on in another open file; `length` and `written_at` are its own."""
        before, self._fd = self._fd, fd
        self._close(before)
        mark(fd)  # which fails while another descriptor has the mark of the same file
        self._length = length
        self._torn = self._doubted_for = None
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
        before, self._fd = self._fd, -1
        self._close(before)

    def _close(self, fd: int) -> None:
        if fd < 0:
            return
        unmark(fd)
        try:
            os.close(fd)
        except OSError as error:  # NFS may say only now that something could not be written
            if self._doubted_for is None:
                self.fsync.say(error)

    def position(self) -> Position:
        """Return how far the file is written, without a part that is to be cut off."""
        status = os.fstat(self._fd)
        length = status.st_size if self._torn is None else self._torn.start
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
        if self._doubted_for is not None:
            self._revive(self._doubted_for)
        self.take_back()
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
            is_moved = False
            with contextlib.suppress(OSError):
                is_moved = self.is_moved()
            if is_moved:
                self.follow_move()
                status = os.fstat(self._fd)
        self._length = status.st_size
        return Position(status.st_dev, status.st_ino, status.st_size)

    def follow_move(self) -> None:
        """Reopen the path; if that fails, go on in the file that was moved.

        Raises:
            OSError: the file system has died; once it is unmounted, the path leads to what it was mounted on.
        """
        _ask_file_system(self._fd)
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
            self._length = portion.start.length + whole
            self._torn = _Torn(self._length, portion.data[whole:])
            with contextlib.suppress(OSError):
                self.take_back()
            raise
        self._length = portion.start.length + done
        self.written_at = self.clock.time()
        self.whole_texts = len(portion.texts)
        self.fsync.sync_after_write(self._fd)

    def take_back(self) -> None:
        """Cut off the text that was written in part."""
        if self._torn is not None:
            _ask_file_system(self._fd)
            if os.fstat(self._fd).st_size > self._torn.start:
                os.ftruncate(self._fd, self._torn.start)
            self._torn = None

    def cut_back(self, start: int, end: int) -> int | None:
        """Cut off what another process has written: see `regular.cut_back`."""
        count = regular.cut_back(self._fd, start, end)
        if count:
            self._length = start
            self.encoder.continue_at(start)
        return count


def _ask_file_system(fd: int) -> None:
    """Raise the OSError of a file system that has died: fstat() may still answer, from what the kernel remembers."""
    try:
        getattr(os, "fstatvfs", os.fstat)(fd)
    except OSError as error:
        if error.errno in DEAD:
            raise
