"""The emergency file: where records go that must be kept and for which the queue has no room. POSIX only.

::

    workers: EmergencyFile.append() --- under a lock ---> file --- EmergencyReader.read() ---> logging process

The rule of this file: **what the header does not count is not there.** Who appends takes the lock, cuts off what
somebody before him had begun to write when he died, writes, and then moves the end in the header. So the file holds
whole messages whenever anybody looks, also on a disk that was full in the middle of one.

It lies next to the log, one for each log: there it survives a reboot, unlike the directory of the queue, the next
server of that log finds it by its name, and it is in a place in which whoever logs has chosen to keep records.

The lock is that of the file (flock(2)), which the kernel frees when its holder dies.

The format: a header (magic, random id, end, how much has been read), and the frames of `mplog.record.frame`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable

from mplog.record import frame

if sys.platform != "win32":
    from mplog.queue.locks import lock_file, unlock_file

__all__ = ["EmergencyFile", "EmergencyReader", "EmergencyRefusedError"]

_MAGIC = b"mplogem1"
_HEADER = struct.Struct("=8s8sQQ")  # magic, id, end, read
_END_AT, _READ_AT = 16, 24
_WORD = struct.Struct("=Q")

#: Seconds that a process waits for the lock, which another holds for as long as a write takes; but one that is stopped
#: holds it until it goes on.
LOCK_TIMEOUT = 1.0

_TAKEN = ".reading"


class EmergencyRefusedError(OSError):
    """What lies at the path of the emergency file is not one that this user has made."""


def _open(path: str, flags: int) -> int:
    """Open a regular file of this user's own, and nothing that somebody has planted in its place."""
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


def _open_locked(path: str, flags: int, deadline: float) -> int | None:
    """Open and lock the file that the path names; None where somebody has held the lock for too long."""
    while True:
        fd = _open(path, flags)
        is_ours = False
        try:
            if not lock_file(fd, deadline):
                return None
            # A reader may have taken it away meanwhile.
            with contextlib.suppress(FileNotFoundError):
                here, there = os.fstat(fd), os.stat(path, follow_symlinks=False)
                is_ours = (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
            if is_ours:
                return fd
        finally:
            if not is_ours:
                os.close(fd)
        if time.monotonic() >= deadline:
            return None


class EmergencyFile:
    """Where a worker appends.

    Args:
        path: of the file.
        size: of how many bytes it is at most.
    """

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size

    def append(
        self, frames: bytes, *, sync: bool = False, later: Callable[[bool], object] | None = None
    ) -> bool | None:
        """Append whole frames, and return whether they are there.

        In a signal handler that has interrupted this very method, the frames are taken over by the call that was
        interrupted, which appends them behind its own.

        Args:
            frames: those of one or more whole messages.
            sync: return when they are on disk (fsync).
            later: called, where frames are taken over, by the call that has done so, with whether they are there.

        Returns:
            Whether they are there; None where they are taken over.

        Raises:
            OSError: the file cannot be opened, or written, or it is not one of this user's own.
        """
        # A process that a handler forks is another one, which must not count on the call that it has interrupted.
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
        """Append what is in the list, also what comes into it meanwhile."""
        while waiting:
            _waiting[key] = waiting
            try:
                self._append_all(waiting)
            finally:
                del _waiting[key]  # then only is the list looked at again: a handler may have come in between

    def _append_all(self, waiting: list[_Piece]) -> None:
        """Append what is in the list, and take it out."""
        fd = _open_locked(self.path, os.O_CREAT, time.monotonic() + LOCK_TIMEOUT)
        if fd is None:
            while waiting:
                waiting.pop(0).settle(False)
            return
        try:
            end = _end_of(fd, self.path)
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


class _Piece:
    """What is to be appended.

    Attributes:
        frames, sync: as for `EmergencyFile.append`.
        is_there: whether it is, once that is known.
    """

    def __init__(self, frames: bytes, sync: bool, later: Callable[[bool], object] | None = None) -> None:
        self.frames = frames
        self.sync = sync
        self.is_there = False
        self._later = later

    def settle(self, is_there: bool) -> None:
        """Say whether it is there."""
        self.is_there = is_there
        if self._later is not None:
            self._later(is_there)


_Key = tuple[int, int, str]

#: By process, thread and path: what is being appended, and what signal handlers have added to that.
_waiting: dict[_Key, list[_Piece]] = {}


def _append(fd: int, piece: _Piece, end: int) -> None:
    try:
        _write_all(fd, piece.frames, end)
        if piece.sync:
            os.fsync(fd)
        os.pwrite(fd, _WORD.pack(end + len(piece.frames)), _END_AT)
        if piece.sync:
            os.fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.pwrite(fd, _WORD.pack(end), _END_AT)
            os.ftruncate(fd, end)
        raise


def _end_of(fd: int, path: str) -> int:
    """Return where to append; a file that is new, or was cut short when it was, gets its header."""
    header = os.pread(fd, _HEADER.size, 0)
    length = os.fstat(fd).st_size
    if len(header) < _HEADER.size:
        if header[: len(_MAGIC)] not in (_MAGIC[: len(header)], bytes(len(_MAGIC))[: len(header)]):
            raise EmergencyRefusedError(errno.EINVAL, "not an emergency file, so nothing is written into it", path)
        # The magic last: without it, the next one begins anew.
        _write_all(fd, _HEADER.pack(bytes(8), os.urandom(8), _HEADER.size, _HEADER.size), 0)
        os.pwrite(fd, _MAGIC, 0)
        return _HEADER.size
    magic, _, end, _ = _HEADER.unpack(header)
    if magic == bytes(8) and length == _HEADER.size:
        os.pwrite(fd, _MAGIC, 0)
    elif magic != _MAGIC or not _HEADER.size <= end <= length:
        raise EmergencyRefusedError(errno.EINVAL, "not an emergency file, so nothing is written into it", path)
    if length > end:
        os.ftruncate(fd, end)
    return int(end)


def _write_all(fd: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, position)
        view, position = view[count:], position + count


class EmergencyReader:
    """What the logging process reads, and takes away.

    Reading begins with taking the file: it gets another name, and whoever appends makes a new one. How far it is read
    is noted in its header by `commit`, and in `note`, for whoever can put that where it changes in the same instant as
    the end of the log does. With the note, nothing is lost or doubled by a kill; with the header alone, what was read
    between two commits comes again.

    Args:
        path: of the emergency file.
        note: what `note` was when the log was last committed.

    Attributes:
        finished: how many files have been read to their end, and removed.
        path: of the emergency file.
    """

    def __init__(self, path: str, note: bytes = b"") -> None:
        self.path = path
        self._given_note = note
        self.finished = 0
        self._fd = -1
        self._id: bytes | None = None
        self._position = 0
        self._end = 0

    def read(self, limit: int = 2**20, patience: float = 0.0) -> bytes:
        """Return the next whole frames, those of a long message together; b"" where there are none.

        Args:
            limit: about how many bytes at most; a message that is longer comes alone.
            patience: for how many seconds to wait for somebody who is just writing; by default the file is then left
                for the next time.

        Raises:
            OSError: the file cannot be opened or read, or it is not one of this user's own.
        """
        while self._fd >= 0 or self._take(patience):
            if self._position >= self._end:
                self._finish()
                continue
            size = limit
            while True:
                data = os.pread(self._fd, min(size, self._end - self._position), self._position)
                is_all = self._position + len(data) >= self._end or len(data) < size
                whole = len(data) if is_all else _whole(data)
                if whole:
                    return data[:whole]
                if not data:
                    self._finish()
                    break
                size *= 2
        return b""

    def note(self, count: int = 0) -> bytes:
        """Return what says that so many more bytes are read: 16 bytes, for the constructor.

        Before anything was read, what the constructor was given still holds.
        """
        if self._id is None:
            return self._given_note
        return self._id + _WORD.pack(self._position + count)

    def commit(self, count: int) -> None:
        """Say that so many bytes of what `read` has returned are in the log. With the last, the file is removed."""
        self._position += count
        os.pwrite(self._fd, _WORD.pack(self._position), _READ_AT)
        if self._position >= self._end:
            self._finish()

    def close(self) -> None:
        """Leave the rest to the next."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def is_open(self) -> bool:
        """Whether a file is being read."""
        return self._fd >= 0

    @property
    def files(self) -> int:
        """How many files there are to read, that which is being read included."""
        return (self.is_open or os.path.exists(self._taken_path)) + os.path.exists(self.path)

    @property
    def _taken_path(self) -> str:
        return self.path + _TAKEN

    def _take(self, patience: float) -> bool:
        """Open what was taken and not read to its end, or take what is there; return whether there is something."""
        try:
            fd = _open(self._taken_path, 0)
        except FileNotFoundError:
            try:
                locked = _open_locked(self.path, 0, time.monotonic() + patience)
            except FileNotFoundError:
                return False
            if locked is None:
                return False  # somebody is just writing, or holds it; next time
            try:
                _end_of(locked, self.path)
                os.rename(self.path, self._taken_path)
            except BaseException:
                unlock_file(locked)
                raise
            fd = os.dup(locked)
            unlock_file(locked)
        try:
            header = os.pread(fd, _HEADER.size, 0)
            magic, file_id, self._end, self._position = (
                _HEADER.unpack(header) if len(header) == _HEADER.size else (b"", b"", 0, 0)
            )
            if magic != _MAGIC or not _HEADER.size <= self._position <= self._end <= os.fstat(fd).st_size:
                raise EmergencyRefusedError(errno.EINVAL, "not an emergency file, so it is not read", self._taken_path)
        except BaseException:
            os.close(fd)
            raise
        if len(self._given_note) == 8 + _WORD.size and self._given_note.startswith(file_id):
            (noted,) = _WORD.unpack_from(self._given_note, 8)
            self._position = min(max(self._position, noted), self._end)
        self._fd, self._id = fd, file_id
        return True

    def _finish(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._taken_path)
        self.finished += 1
        self.close()


def _whole(data: bytes) -> int:
    """Return the length of the whole messages at the beginning of the data, of which the end may be cut off."""
    whole = 0
    for found in frame.walk(data):
        if found.kind is None:
            return whole
        if found.kind == frame.PART:
            try:
                part = frame.decode_part(data[found.payload])
            except ValueError:
                continue
            if part.number < part.total - 1:
                continue
        whole = found.end
    return whole
