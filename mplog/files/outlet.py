"""Standard output and standard error, which the logging process shares with others: pipes, terminals, files.

The rule of this file: **a write is complete, or raises and is taken back; if it cannot be, its last line is ended
before anything else is written.** The kernel may take only a part: when a signal comes while a pipe is full, when a
pipe is non-blocking (a flag of the pipe, which its other users may set), when a disk is nearly full. With
``PYTHONUNBUFFERED=1``, Python's text layer drops the rest.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import stat
import sys
import threading
from typing import Any

from mplog.queue.locks import give_locks


class Outlet(io.RawIOBase):
    """Writes to a descriptor, which it never closes."""

    _writing: threading.RLock

    def __init__(self, fd: int, name: Any = None) -> None:
        super().__init__()
        self.name = name
        self._fd = fd
        #: Whether the last line is not whole, and where it ends if this is a file.
        self._is_torn = False
        self._end: int | None = None
        give_locks(self, "_writing")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any) -> int:
        done, error = self.attempt(data)
        if error is not None:
            self.take_back(done)
            raise error
        return done

    def attempt(self, data: bytes) -> tuple[int, OSError | None]:
        """Write all of it; return how many bytes are written, and the error because of which it is not all.

        This waits for room in a full pipe, however long that takes.
        """
        done = 0
        with self._writing, memoryview(data) as rest:
            try:
                if self._is_torn:
                    self._write_some(b"\n")
                    self._is_torn = False
                before = os.fstat(self._fd)
                while done < len(data):
                    done += self._write_some(rest[done:])
            except OSError as error:
                if done:
                    self._is_torn = data[done - 1 : done] != b"\n"
                    self._end = before.st_size + done if stat.S_ISREG(before.st_mode) else None
                return done, error
        return done, None

    def take_back(self, count: int) -> None:
        """Cut off the last bytes of an attempt that has failed, if this is a file and nobody has written since."""
        with self._writing, contextlib.suppress(OSError):
            if count and self._end is not None and os.fstat(self._fd).st_size == self._end:
                os.ftruncate(self._fd, self._end - count)
                # Without O_APPEND, the next write of any process that shares the file would leave a hole.
                os.lseek(self._fd, self._end - count, os.SEEK_SET)
                self._is_torn = False

    def _write_some(self, data: bytes | memoryview) -> int:
        while True:
            try:
                count = os.write(self._fd, data)
            except BlockingIOError:
                room = select.poll()
                room.register(self._fd, select.POLLOUT)
                room.poll()
            else:
                if not count:
                    raise OSError(errno.EIO, "nothing was written")
                return count


def complete(stream: Any) -> Any:
    """Return a text stream through an `Outlet` in place of a standard stream of Python, or any other stream as it is.

    It writes each line at once, and keeps nothing after an error that would be written later.
    """
    if type(stream) is not io.TextIOWrapper or sys.platform == "win32":
        return stream
    try:
        outlet: Any = Outlet(stream.fileno(), stream.name)
    except OSError:  # it writes to memory
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(outlet, stream.encoding, stream.errors, line_buffering=True)
