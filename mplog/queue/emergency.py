"""The emergency file: for records that must be kept when the queue has no room. POSIX only.

::

    workers: EmergencyFile.append() --- under a lock ---> file --- EmergencyReader.read() ---> logging process

The rule of this file: **what the header does not count is not there.** A worker that appends takes the lock, cuts off
what a dead worker has left half written, writes, and then moves the end in the header. So the file holds whole messages
at any time, even if the disk was full in the middle of one.

The file lies next to the log, one for each log. There it survives a reboot, unlike the directory of the queue, and the
next server of that log finds it by its name.

The format: a header (magic, random id, end, how much has been read), and the frames of `mplog.record.frame`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import threading
from collections.abc import Callable

from mplog.queue.fifo import monotonic
from mplog.queue.locks import lock_file, unlock_file

MAGIC = b"mplogem1"
HEADER = struct.Struct("=8s8sQQ")  # magic, id, end, read
_END_AT = 16
WORD = struct.Struct("=Q")

#: Seconds that a worker waits for the lock. Another worker holds it for one write; but if it is stopped (SIGSTOP), it
#: holds the lock until it goes on.
LOCK_TIMEOUT = 1.0


class EmergencyRefusedError(OSError):
    """The file at the path of the emergency file is not one that this user has made."""


class EmergencyFile:
    """Where a worker appends; the file has `size` bytes at most."""

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size

    def append(
        self, frames: bytes, *, sync: bool = False, later: Callable[[bool], object] | None = None
    ) -> bool | None:
        """Append whole frames.

        If a signal handler has interrupted this very method, the interrupted call takes over the frames, and appends
        them after its own.

        Args:
            frames: those of one or more whole messages.
            sync: return when they are on disk (fsync).
            later: called by the interrupted call, with whether it has appended the frames.

        Returns:
            Whether they are in the file; None if the interrupted call takes them over.

        Raises:
            OSError: the file cannot be opened, or written, or it is not one of this user's own.
        """
        # The pid, since a signal handler may fork: in the child, the interrupted call may never go on.
        key = os.getpid(), threading.get_ident(), self.path
        held = _waiting.get(key)
        if held is not None:
            held.append(_Piece(frames, sync, later))
            return None
        mine = _Piece(frames, sync)
        waiting = [mine]
        try:
            self._work_off(key, waiting)
        except BaseException as error:
            waiting = [piece for piece in waiting if piece is not mine]
            try:
                if not isinstance(error, OSError):  # the handler that logged has raised an exception, too
                    with contextlib.suppress(OSError):
                        self._work_off(key, waiting)
            finally:
                for piece in waiting:
                    piece.settle(False)
            raise
        return mine.is_there

    def _work_off(self, key: _Key, waiting: list[_Piece]) -> None:
        """Append the pieces in the list, including those that are added meanwhile."""
        while waiting:
            _waiting[key] = waiting
            try:
                self._append_all(waiting)
            finally:
                del _waiting[key]  # only then is the list looked at again: a handler may have come in between

    def _append_all(self, waiting: list[_Piece]) -> None:
        """Append the pieces in the list, and take them out."""
        fd = open_locked(self.path, monotonic() + LOCK_TIMEOUT)
        if fd is None:
            while waiting:
                waiting.pop(0).settle(False)
            return
        try:
            end = find_end(fd, self.path)
            while waiting:
                piece = waiting[0]
                is_there = end + len(piece.frames) <= self.size
                if is_there:
                    _append(fd, piece, end)
                    end += len(piece.frames)
                del waiting[0]
                piece.settle(is_there)
        finally:
            unlock_file(fd)
            os.close(fd)


class _Piece:
    """Frames to append, and, later, whether they are in the file; see `EmergencyFile.append`."""

    def __init__(self, frames: bytes, sync: bool, later: Callable[[bool], object] | None = None) -> None:
        self.frames = frames
        self.sync = sync
        self.is_there = False
        self._later = later

    def settle(self, is_there: bool) -> None:
        """Note whether the frames are in the file."""
        self.is_there = is_there
        if self._later is not None:
            self._later(is_there)


_Key = tuple[int, int, str]

#: What is being appended, and what signal handlers have added to it, by process, thread and path.
_waiting: dict[_Key, list[_Piece]] = {}


def _append(fd: int, piece: _Piece, end: int) -> None:
    try:
        write_all(fd, piece.frames, end)
        if piece.sync:
            os.fsync(fd)
        os.pwrite(fd, WORD.pack(end + len(piece.frames)), _END_AT)
        if piece.sync:
            os.fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.pwrite(fd, WORD.pack(end), _END_AT)
            os.ftruncate(fd, end)
        raise


def write_all(fd: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, position)
        view, position = view[count:], position + count


# --- the file, also for the logging process ---


def open_own(path: str, flags: int) -> int:
    """Open a regular file of this user's own, and nothing that another user has planted in its place."""
    fd = os.open(path, flags | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
            raise EmergencyRefusedError(
                errno.EPERM, "not a regular file of this user alone, so nothing is written into it", path
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_locked(path: str, deadline: float) -> int | None:
    """Open and lock the file that the path names, made if there is none; return None if another process holds the lock
    past the deadline."""
    while True:
        fd = open_own(path, os.O_CREAT)
        is_ours = False
        try:
            if not lock_file(fd, deadline):
                return None
            # A reader may have taken it away meanwhile.
            with contextlib.suppress(FileNotFoundError):
                is_ours = os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
            if is_ours:
                return fd
        finally:
            if not is_ours:
                os.close(fd)
        if monotonic() >= deadline:
            return None


def check_magic(fd: int, path: str) -> None:
    """Raise an error if this is not an emergency file; there may be no header yet, or half of one."""
    magic = os.pread(fd, len(MAGIC), 0)
    if magic not in (MAGIC[: len(magic)], bytes(len(magic))):
        raise _refused(path)


def find_end(fd: int, path: str) -> int:
    """Return where to append; write the header first if the file is new, or its header was never finished."""
    header = os.pread(fd, HEADER.size, 0)
    length = os.fstat(fd).st_size
    if len(header) < HEADER.size:
        check_magic(fd, path)
        # The magic last: without it, the next process writes the header again.
        write_all(fd, HEADER.pack(bytes(8), os.urandom(8), HEADER.size, HEADER.size), 0)
        os.pwrite(fd, MAGIC, 0)
        return HEADER.size
    magic, _, end, _ = HEADER.unpack(header)
    if magic == bytes(8) and length == HEADER.size:
        os.pwrite(fd, MAGIC, 0)
    elif magic != MAGIC or not HEADER.size <= end <= length:
        raise _refused(path)
    if length > end:
        os.ftruncate(fd, end)
    return int(end)


def _refused(path: str) -> EmergencyRefusedError:
    return EmergencyRefusedError(errno.EINVAL, "not an emergency file, so nothing is written into it", path)
