"""Records that wait for a function: in batches, each also in a file for the next logging process."""

from __future__ import annotations

import contextlib
import math
import os
import struct
import time
from collections import deque
from collections.abc import Callable

from mplog.queue.directory import open_file, opened, read_file

#: What the names of the files begin with, in the directory of the queue.
UNDELIVERED = "undelivered-"

_LENGTH = struct.Struct("<I")


class Batch:
    """Records that are delivered together: when it is full, or due. `path` is None when its file was not written."""

    def __init__(self, number: int, due: float, path: str | None) -> None:
        self.number = number
        self.due = due
        self.path = path
        self.payloads: list[bytes] = []
        self._fd = -1
        self._saved = 0

    def save(self) -> None:
        """Write new records into the file. After an OSError, this batch is not saved any more."""
        new = self.payloads[self._saved :]
        if self.path is None or not new:
            return
        self._saved = len(self.payloads)
        data = b"".join(_LENGTH.pack(len(payload)) + payload for payload in new)
        try:
            if self._fd < 0:
                self._fd = open_file(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            self.path = None
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


class Backlog:
    """The batches that wait: those that are being delivered, those that are ready, and one that is open.

    A batch is full with `size` records, and due after `timeout` seconds. If a batch cannot be saved, `warn` is told; it
    is delivered all the same, but would not survive a kill.
    """

    def __init__(self, size: int, timeout: float, warn: Callable[[OSError], object]) -> None:
        self.count = 0
        self.next = 1
        self._size = size
        self._timeout = timeout
        self._warn = warn
        self._path: str | None = None
        self._open: Batch | None = None
        self._ready: deque[Batch] = deque()
        #: All batches except the open one, by number.
        self._undelivered: dict[int, Batch] = {}

    @property
    def is_empty(self) -> bool:
        return self._open is None and not self._ready

    def add(self, payload: bytes) -> None:
        batch = self._open
        if batch is None:
            batch = self._open = self._new_batch()
        batch.payloads.append(payload)
        self.count += 1
        if len(batch.payloads) >= self._size:
            self.close_batch()

    def _new_batch(self) -> Batch:
        number, self.next = self.next, self.next + 1
        return Batch(number, time.monotonic() + self._timeout, self._path and f"{self._path}-{number}")

    def save(self) -> None:
        if self._open is not None:
            try:
                self._open.save()
            except OSError as error:
                self._warn(error)

    def close_batch(self) -> None:
        batch = self._open
        if batch is not None:
            self.save()
            batch.close()
            self._open = None
            self._append(batch)

    def _append(self, batch: Batch) -> None:
        self._undelivered[batch.number] = batch
        self._ready.append(batch)

    def keep_in(self, path: str) -> None:
        """Keep batches in files whose names begin with `path`, and take up those that the previous process has left."""
        self._path = path
        directory, prefix = os.path.split(f"{path}-")
        names: list[str] = []
        with contextlib.suppress(OSError), opened(directory, os.O_RDONLY) as fd:  # it may have become another user's
            names = os.listdir(fd)
        for number in sorted(int(name[len(prefix) :]) for name in names if name.startswith(prefix)):
            self.next = number
            batch = self._new_batch()
            batch.payloads = _read(str(batch.path))
            self.count += len(batch.payloads)
            self._append(batch)

    def take(self, *, at_once: bool) -> Batch | float:
        """Return a batch that is ready or due (`at_once`: also the open one), or the seconds until one is."""
        if not self._ready and self._open is not None:
            timeout = self._open.due - time.monotonic()
            if timeout > 0 and not at_once:
                return timeout
            self.close_batch()
        return self._ready.popleft() if self._ready else math.inf

    def remove(self, batch: Batch) -> None:
        del self._undelivered[batch.number]
        self.count -= len(batch.payloads)

    def is_delivered(self, number: int) -> bool:
        """Whether all batches before that number are delivered or given up."""
        return next(iter(self._undelivered), number) >= number


def count_undelivered(directory: str) -> int:
    names = [name for name in os.listdir(directory) if name.startswith(UNDELIVERED)]
    return sum(len(_read(os.path.join(directory, name))) for name in names)


def _read(path: str) -> list[bytes]:
    """Return the whole records in a file; the rest was not committed, and comes again."""
    data = read_file(path)
    payloads, position = [], 0
    while position + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if position + length > len(data):
            break
        payloads.append(data[position : position + length])
        position += length
    return payloads
