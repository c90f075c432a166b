"""The emergency file: for records that must be kept when the queue has no room. POSIX only.

::

    workers: EmergencyFile.append() --- one write each ---> file --- EmergencyReader.read() ---> logging process

The rule of this file: **no worker ever waits for another.** Each message is one write(2) at the end of the file, which
the kernel makes one after the other (O_APPEND), and one piece, of which a reader knows whether it was cut off by a kill
or a full disk. A worker holds a shared lock meanwhile, which tells the reader alone that the file still grows; so a
worker that is stopped (SIGSTOP) in the middle holds up nobody.

The file lies next to the log, one for each log. There it survives a reboot, unlike the directory of the queue, and the
next server of that log finds it by its name.

The format: pieces, each with a head (magic, random id, length, kind, CRC-32). A piece holds one message, so that a
reader can pass over a message without having it in memory. A reader adds pieces of its own, which say how far it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from mplog.queue.fifo import monotonic
from mplog.queue.locks import PAUSE, try_lock_file, unlock_file
from mplog.queue.native import sleep

# Text never contains it: 0xff does not occur in UTF-8.
MAGIC = b"\xffmplogE1"
_ABOUT = struct.Struct("=8sQI")  # id, length, kind
_CHECKSUM = struct.Struct("=I")
HEAD_SIZE = len(MAGIC) + _ABOUT.size + _CHECKSUM.size

# Kinds of pieces. The reader has others of its own.
#: The frames (`mplog.record.frame`) of a message, to its end.
MESSAGE = 0
#: Frames of a message that goes on in the next piece: the supervisor saves buffers, which may end in the middle of one.
BEGINNING = 1
#: How far this file is read: a position.
READ = 2
#: What is about to be written into a log file, or was and is not committed: see `PORTION`.
ANNOUNCED = 3

#: The number of the handler, device and inode of its file, and the lengths of that before and after.
PORTION = struct.Struct("=5Q")

_CHUNK = 2**20

#: Names of files that the reader has taken, after that of the file into which workers write. Each one that is not read
#: to its end waits for a worker that was stopped while it wrote, so there are seldom two.
TAKEN = (".reading", ".reading.2", ".reading.3")

#: Seconds that a worker tries to get the lock, which only another program can hold for longer than an instant.
LOCK_TIMEOUT = 1.0


class EmergencyRefusedError(OSError):
    """The file at the path of the emergency file is not one that this user has made."""


class EmergencyFile:
    """Where a worker appends, unless all emergency files of this path would then have more than `size` bytes together.

    Attributes:
        has_appended: whether the last `append` has put its messages into the file, also if it has raised an exception.
    """

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self.has_appended = False

    def append(
        self,
        *messages: bytes,
        sync: bool = False,
        goes_on: bool = False,
        announced: Sequence[tuple[int, ...]] = (),
    ) -> bool:
        """Append messages with one write, and return whether there was room for all of them.

        Args:
            messages: the frames of each.
            sync: return when they are on disk (fsync).
            goes_on: the next call has the rest of the last message.
            announced: portions of log files that may hold them already, each as in `PORTION`: the next server takes
                these back. For such messages there is always room.

        Raises:
            OSError: the file cannot be opened, or written, or it is not one of this user's own.
            BlockingIOError: another program has it locked.
        """
        pieces = [piece(ANNOUNCED, PORTION.pack(*portion)) for portion in announced]
        pieces += [piece(MESSAGE, message) for message in messages]
        if goes_on:
            pieces[-1] = piece(BEGINNING, messages[-1])
        data = b"".join(pieces)
        self.has_appended = False
        fd = _open_shared(self.path)
        try:
            if os.fstat(fd).st_size + self._size_of_taken() + len(data) > self.size and not announced:
                return False
            try:
                count = os.write(fd, data)
            finally:
                # A signal handler may raise an exception right after the write.
                self.has_appended = os.lseek(fd, 0, os.SEEK_CUR) > 0
            if count < len(data):
                self.has_appended = False
                _take_back(fd, count)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            if sync:
                os.fsync(fd)
            return True
        finally:
            unlock_file(fd)
            os.close(fd)

    def _size_of_taken(self) -> int:
        size = 0
        for name in TAKEN:
            try:
                size += os.lstat(self.path + name).st_size
            except OSError:
                continue  # there seldom is one
        return size


def _take_back(fd: int, count: int) -> None:
    """Cut off the beginning of a piece, unless other processes are just appending, too, or have appended since."""
    end = os.lseek(fd, 0, os.SEEK_CUR)
    with contextlib.suppress(OSError):
        if try_lock_file(fd) and os.fstat(fd).st_size == end:
            os.ftruncate(fd, end - count)


# --- pieces ---


def piece(kind: int, payload: bytes) -> bytes:
    """Return a payload with its head. The id in the head is random."""
    about = _ABOUT.pack(os.urandom(8), len(payload), kind)
    return b"".join((MAGIC, about, _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(about))), payload))


class Piece(NamedTuple):
    """A piece of a file. `payload` may be its beginning only; `size` is that of the whole."""

    kind: int
    payload: bytes
    size: int
    end: int


def read_piece(fd: int, position: int, most: int | None = None) -> Piece | None:
    """Return the piece at a position of a file; None if there is no whole one.

    `most`: bytes of its payload that are to be in memory; None for all.
    """
    head = os.pread(fd, HEAD_SIZE, position)
    if len(head) < HEAD_SIZE or not head.startswith(MAGIC):
        return None
    about = head[len(MAGIC) : -_CHECKSUM.size]
    _, length, kind = _ABOUT.unpack(about)
    if length > os.fstat(fd).st_size:
        return None
    position += HEAD_SIZE
    end = position + length
    chunks: list[bytes] = []
    room = length if most is None else most
    checksum = zlib.crc32(about)
    while position < end:
        data = os.pread(fd, end - position if most is None else min(end - position, _CHUNK), position)
        if not data:
            return None
        checksum = zlib.crc32(data, checksum)
        if room > 0:
            chunks.append(data[:room])
            room -= len(data)
        position += len(data)
    if _CHECKSUM.unpack(head[-_CHECKSUM.size :]) != (checksum,):
        return None
    return Piece(kind, b"".join(chunks), length, end)


# --- the file ---


def open_own(path: str, flags: int) -> int:
    """Open a regular file of this user's own, and nothing that another user has planted in its place."""
    flags |= os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
            raise _refused(path, "not a regular file of this user alone")
        _check_magic(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_magic(fd: int, path: str) -> None:
    """Raise an error if this is not an emergency file. One that is empty is, as are zeros left by a power loss."""
    magic = os.pread(fd, len(MAGIC), 0)
    if magic not in (MAGIC[: len(magic)], bytes(len(magic))):
        raise _refused(path, "not an emergency file")


def _refused(path: str, what: str) -> EmergencyRefusedError:
    return EmergencyRefusedError(
        errno.EPERM, f"{what}, so it is neither read nor written; somebody may have planted it. Remove it", path
    )


def _open_shared(path: str) -> int:
    """Open and lock the file that the path names, made if there is none."""
    deadline = monotonic() + LOCK_TIMEOUT
    while True:
        fd = open_own(path, os.O_CREAT)
        is_locked = is_ours = False
        try:
            is_locked = try_lock_file(fd, shared=True)
            # A reader may have taken it away meanwhile.
            with contextlib.suppress(FileNotFoundError):
                is_ours = is_locked and os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
            if is_ours:
                return fd
        finally:
            if not is_ours:
                os.close(fd)
        if monotonic() >= deadline:
            raise BlockingIOError(errno.EAGAIN, "another program has it locked", path)
        if not is_locked:
            sleep(PAUSE)
