"""Records written through: the call returns when the record is on disk. POSIX only.

::

    worker:  FIFO of its own, named by a token; frame of kind SYNC: token | record ---> queue
             waits at the FIFO  <--- one byte --- logging process: written, fsynced, or not; committed

The rule of this file: **neither depends on the life of the other.** A worker that has died or given up leaves a FIFO
without a reader, which costs the logging process one call. The death of the logging process costs the worker its
timeout.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from mplog.queue import fifo
from mplog.queue.descriptor import Descriptor
from mplog.queue.directory import open_file, opened, workers_path
from mplog.queue.native import read

T = TypeVar("T")

#: Bytes of a token.
TOKEN_SIZE = 16

_PREFIX = "sync-"

_ON_DISK, _NOT_ON_DISK = b"\1", b"\0"


class Sync(msgspec.Struct, frozen=True):
    """Which calls return only when their record is on disk.

    Attributes:
        level: those of this level and above.
        timeout: for how many seconds they wait at most. Then they return all the same; the record is counted as not
            known to be on disk (`Reason.UNSYNCED`), and arrives like any other.
    """

    level: int
    #: Longer than a restart of the logging process, and than an fsync of a busy disk.
    timeout: float = 5.0


def _path(directory: str, token: bytes) -> str:
    return os.path.join(directory, _PREFIX + token.hex())


class Waiter:
    """Where a worker waits for one record; an OSError if there is no descriptor left, or no room."""

    def __init__(self, directory: str) -> None:
        self.token = os.urandom(TOKEN_SIZE)
        self._path = _path(workers_path(directory), self.token)
        with opened(os.path.dirname(self._path)) as fd:
            os.mkfifo(os.path.basename(self._path), 0o600, dir_fd=fd)
        try:
            self._end = Descriptor(open_file(self._path, os.O_RDONLY | os.O_NONBLOCK))
        except BaseException:
            self._remove()
            raise

    def wait(self, deadline: float) -> bool:
        """Wait until the record is on disk, or until a time of `monotonic`; return whether it is."""
        while fifo.wait(self._end.fd, select.POLLIN, deadline) and self._end.is_ours():
            with contextlib.suppress(BlockingIOError):
                return read(self._end.fd, 1) == _ON_DISK
        return False

    def close(self) -> None:
        """Remove the FIFO."""
        self._end.close()
        self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class Acknowledger(Generic[T]):
    """The logging process's half: decodes such records, and answers the workers that wait."""

    def __init__(self, directory: str, decode: Callable[[bytes], T]) -> None:
        self._directory = workers_path(directory)
        self._decode = decode
        self._tokens: list[bytes] = []

    def decode(self, payload: bytes) -> T:
        """Decode a frame of kind `frame.SYNC`, and remember its waiting worker; raise ValueError if it is broken."""
        if len(payload) <= TOKEN_SIZE:
            raise ValueError("a record to be written through, without its record")
        decoded = self._decode(payload[TOKEN_SIZE:])
        self._tokens.append(payload[:TOKEN_SIZE])
        return decoded

    @property
    def is_due(self) -> bool:
        """Whether a worker waits for what has been decoded since `acknowledge`, so that it must be fsynced."""
        return bool(self._tokens)

    def acknowledge(self, is_on_disk: bool = True) -> None:
        """Tell all workers that wait that their records are on disk, or not known to be."""
        tokens, self._tokens = self._tokens, []
        for token in tokens:
            path = _path(self._directory, token)
            try:
                fd = open_file(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    # The worker waits no longer: it was killed and has left its FIFO here, or is just removing it.
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                elif error.errno in (errno.EMFILE, errno.ENFILE):
                    self._tokens.append(token)  # next time
                continue
            try:
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    with contextlib.suppress(OSError):
                        os.write(fd, _ON_DISK if is_on_disk else _NOT_ON_DISK)
            finally:
                os.close(fd)
