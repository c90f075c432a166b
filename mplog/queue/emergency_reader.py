"""`EmergencyReader`: reads the emergency file for the logging process, and removes it. POSIX only.

The reader first takes the file: it renames it, and workers that append make a new one. Only then does it wait for the
lock, with which a worker may still be writing. So a reader or a worker that is stopped (SIGSTOP) while it holds the
lock holds up only those who opened that very file before it was taken.

`EmergencyReader.commit` notes in the header how far it is read. `EmergencyReader.note` says the same; the caller stores
that note so that it changes at one instant with the end of the log. With the note, a kill neither loses nor doubles
anything; with the header alone, what was read between two commits comes again.
"""

from __future__ import annotations

import contextlib
import errno
import os

from mplog.queue.emergency import HEADER, WORD, EmergencyRefusedError, check_magic, find_end, open_own
from mplog.queue.fifo import monotonic
from mplog.queue.locks import lock_file, unlock_file
from mplog.record import frame

#: About how many bytes are read at a time.
READ_SIZE = 2**20

_TAKEN = ".reading"
_READ_AT = 24
_ID_SIZE = 8


class EmergencyReader:
    """Reads one emergency file after another.

    Args:
        path: of the emergency file.
        note: the value of `note` at the last commit of the log.

    Attributes:
        path: of the emergency file.
        finished: how many files have been read to their end, and removed.
    """

    def __init__(self, path: str, note: bytes = b"") -> None:
        self.path = path
        self._given_note = note
        self.finished = 0
        self._fd = -1
        self._id: bytes | None = None
        self._position = 0
        self._end = 0

    def read(self, limit: int = READ_SIZE, patience: float = 0.0) -> bytes:
        """Return the next whole frames, those of a long message together; b"" where there are none.

        Args:
            limit: about how many bytes at most; a message that is longer comes alone.
            patience: for how many seconds to wait for a worker that is just writing; by default the file is then left
                for the next time.

        Raises:
            OSError: the file cannot be opened or read, or it is not one of this user's own.
        """
        while self.is_open(patience):
            data = os.pread(self._fd, min(limit, self._end - self._position), self._position)
            whole = len(data) if self._position + len(data) >= self._end else _whole(data)
            if whole:
                return data[:whole]
            if not data:
                self._finish()
            else:
                return self.peek(self.measure())
        return b""

    def is_open(self, patience: float = 0.0) -> bool:
        """Return whether there is a file of which something is left, and is not just being written; see `read`."""
        while self._fd >= 0 or self._take(patience):
            if self._position < self._end:
                return True
            self._finish()
        return False

    def measure(self) -> int:
        """Return the length of the next message, which is not read as a whole. The file must be open."""
        length = 0
        while data := self.peek(frame.FRAME_SIZE, length):
            found = frame.first(data, is_all=len(data) < frame.FRAME_SIZE)
            length += found.end
            if found.kind != frame.PART or _is_last(data[found.payload]):
                break
        return length

    def peek(self, size: int, offset: int = 0) -> bytes:
        """Return at most so many of the next bytes. The file must be open."""
        start = self._position + offset
        return os.pread(self._fd, max(0, min(size, self._end - start)), start)

    def note(self, count: int = 0) -> bytes:
        """Return 16 bytes for the next constructor, which say that `count` more bytes are read.

        Before anything was read, they are those that this constructor was given.
        """
        if self._id is None:
            return self._given_note
        return self._id + WORD.pack(self._position + count)

    def commit(self, count: int) -> None:
        """Note that `count` bytes that `read` has returned are in the log. With the last, remove the file."""
        self._position += count
        os.pwrite(self._fd, WORD.pack(self._position), _READ_AT)
        if self._position >= self._end:
            self._finish()

    def close(self) -> None:
        """Leave the rest to the next logging process."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with contextlib.suppress(OSError):  # its file system has died
                os.close(fd)

    def reopen(self) -> None:
        """After an error, have the next `read` open the file anew by its path: the descriptor may be dead for good."""
        self._given_note = self.note()
        self.close()

    @property
    def files(self) -> int:
        """How many files there are to read, including the one that is being read."""
        return (self._fd >= 0 or os.path.exists(self._taken_path)) + os.path.exists(self.path)

    @property
    def _taken_path(self) -> str:
        return self.path + _TAKEN

    def _take(self, patience: float) -> bool:
        """Open a file that was taken and not read to its end, or take the next one; return False if there is none."""
        try:
            fd = open_own(self._taken_path, 0)
        except FileNotFoundError:
            try:
                fd = open_own(self.path, 0)
                try:
                    check_magic(fd, self.path)
                    os.rename(self.path, self._taken_path)
                except BaseException:
                    os.close(fd)
                    raise
            except FileNotFoundError:
                return False
        try:
            if not lock_file(fd, monotonic() + patience):
                os.close(fd)
                return False  # a worker is just writing, or stopped while it holds the lock; next time
            self._end = find_end(fd, self._taken_path)
            unlock_file(fd)  # whoever gets the lock from now on sees that the file is taken, and writes nothing
            _, file_id, _, self._position = HEADER.unpack(os.pread(fd, HEADER.size, 0))
            if not HEADER.size <= self._position <= self._end:
                raise EmergencyRefusedError(errno.EINVAL, "not an emergency file, so it is not read", self._taken_path)
        except BaseException:
            os.close(fd)
            raise
        if len(self._given_note) == _ID_SIZE + WORD.size and self._given_note.startswith(file_id):
            (noted,) = WORD.unpack_from(self._given_note, _ID_SIZE)
            self._position = min(max(self._position, noted), self._end)
        self._fd, self._id = fd, file_id
        return True

    def _finish(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._taken_path)
        self.finished += 1
        self.close()


def _whole(data: bytes) -> int:
    """Return the length of the whole messages at the beginning of the data; its end may be cut off."""
    whole = 0
    for found in frame.walk(data):
        if found.kind is None:
            return whole
        if found.kind != frame.PART or _is_last(data[found.payload]):
            whole = found.end
    return whole


def _is_last(payload: bytes) -> bool:
    """Whether a frame of kind `frame.PART` is the last one of its message."""
    try:
        part = frame.decode_part(payload)
    except ValueError:
        return False
    return part.number >= part.total - 1
