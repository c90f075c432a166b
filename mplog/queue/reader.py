"""`Reader`: takes objects out of a queue.

The logging process does not use it: it reads in bulk (`mplog.queue.buffers`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from mplog.errors import QueueNotFoundError, ServerStateError
from mplog.queue import fifo
from mplog.queue.descriptor import NONE, Descriptor
from mplog.queue.directory import lock_path
from mplog.queue.fifo import monotonic
from mplog.queue.locks import try_lock_process, unlock_process
from mplog.queue.native import read, sleep
from mplog.queue.payloads import PickledObject, decode_bytes
from mplog.queue.sender import Sender
from mplog.queue.sync import TOKEN_SIZE
from mplog.record import frame
from mplog.record.decoding import decode
from mplog.record.frame_reader import FrameReader

_DECODE: dict[int, Callable[[bytes], Any]] = {
    frame.RECORD: decode,
    frame.OBJECT: PickledObject,
    # Only the logging process writes records through: with any other reader, the worker waits for its whole timeout.
    frame.SYNC: lambda payload: decode(payload[TOKEN_SIZE:]),
    frame.BYTES: lambda payload: decode_bytes(payload)[1],
}


class Received:
    """What one process has read of a queue.

    Attributes:
        lock: held by the thread that reads.
        is_reading: whether a thread reads.
        frames: puts the objects together.
        ready: those that no `get` has returned yet.
        forgotten: long objects whose writers have died.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_reading = False
        self.frames: FrameReader[Any] = FrameReader(_DECODE)
        self.ready: deque[Any] = deque()
        self.forgotten = 0

    def forget_dead(self) -> None:
        """Forget the unfinished objects of writers that have died. The queue is empty, so no part is still to come."""
        if self.frames.has_incomplete:
            self.forgotten += len(self.frames.drop_incomplete(lambda message: not fifo.is_alive(message.pid)))

    @property
    def broken(self) -> int:
        """Runs of garbage that were skipped, and long objects that were not completed."""
        return self.frames.broken + self.frames.given_up + self.forgotten


class Reader:
    """The reading end of a queue in this process.

    Args:
        sender: of the same queue. Its writing end is open while this reads, because the reading end of a FIFO without
            writers is always ready.
    """

    _end = _lock = NONE

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._received: dict[int, Received] = {}
        fifo.holders.add(self)

    def __del__(self) -> None:
        if sys is not None and not sys.is_finalizing():
            self.close_ends()

    @property
    def read_fd(self) -> int:
        """The number of the reading end, -1 while it is not open."""
        return self._end.fd

    def open(self) -> None:
        """Open what is not open: the reading end, the writing end, and the file to lock."""
        if not (self._end.is_ours() and self._lock.is_ours()):
            fifo.forget_closed()
        try:
            if self._end is NONE:
                self._end = Descriptor(fifo.open_reader(self._sender.path))
            self._sender.open()
            if self._lock is NONE:
                self._lock = Descriptor(fifo.open_lock(lock_path(self._sender.directory)))
        except FileNotFoundError:
            raise QueueNotFoundError(
                f"{self._sender.path} does not exist any more: the process that made the queue has ended, or another "
                "program has removed it."
            ) from None

    def release(self) -> int:
        """Return the reading end, which this object then neither has nor closes."""
        if not self._end.is_ours():
            raise ServerStateError(
                f"{self._sender!r} has no reading end here: another process made it, or it has a reader."
            )
        end, self._end = self._end, NONE
        return end.fd

    def close_ends(self) -> None:
        ends = self._end, self._lock
        self._end = self._lock = NONE
        for end in ends:
            with contextlib.suppress(OSError):
                end.close()

    def forget_closed(self) -> None:
        """Look whether the program has closed what was open."""
        self._end = self._end if self._end.is_ours() else NONE
        self._lock = self._lock if self._lock.is_ours() else NONE

    @property
    def received(self) -> Received:
        """What this process has read; a fork starts empty, and leaves the rest to its parent."""
        pid = os.getpid()
        received = self._received.get(pid)
        if received is None:
            for other in self._received.keys() - {pid}:
                self._received.pop(other, None)
            received = self._received.setdefault(pid, Received())  # in one step: one for all threads
        return received

    def get(self, block: bool, timeout: float | None) -> Any:
        """Take the next object out of the queue; see `LogQueue.get`."""
        if self._sender.is_closed:
            raise ValueError(f"Queue {self._sender!r} is closed")
        deadline = None if block and timeout is None else monotonic() + (timeout or 0 if block else 0)
        item = self._take(self.received, deadline)
        # After the lock is released: it may run any code.
        return item.load() if isinstance(item, PickledObject) else item

    def _take(self, received: Received, deadline: float | None) -> Any:
        try:
            if not received.lock.acquire(timeout=_seconds_until(deadline)):
                raise queue.Empty
            if received.is_reading:
                raise RuntimeError("get() was called in a signal handler that had interrupted a get()")
            try:
                received.is_reading = True
                self._read(received, deadline)
                return received.ready.popleft()
            finally:
                received.is_reading = False
        finally:
            # A Ctrl-C may come between taking a lock and the next step; a reentrant one knows whether it was taken. Nor
            # must any other call come before the release, since another Ctrl-C may come with it. Nor may there be a
            # loop in the try block: one that comes with its jump back skips the finally block (CPython 3.13).
            try:  # noqa: SIM105
                received.lock.release()
            except RuntimeError:
                pass

    def _read(self, received: Received, deadline: float | None) -> None:
        """Read until an object is complete, or raise ``queue.Empty``. Past the deadline, read only what is there."""
        there = -1
        while not received.ready:
            try:
                self.open()
                pending = fifo.pending(self.read_fd)
                there = pending if there < 0 else there
                if pending and (there > 0 or not _is_past(deadline)):
                    count = self._read_frame(received)
                    if count:
                        there = max(0, there - count)
                    elif _is_past(deadline):
                        raise queue.Empty
                    else:
                        sleep(0.001)  # another process is taking a frame this moment
                elif pending:
                    raise queue.Empty
                else:
                    received.forget_dead()
                    if not fifo.wait(self.read_fd, select.POLLIN, deadline):
                        raise queue.Empty
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
                fifo.forget_closed()

    def _read_frame(self, received: Received) -> int:
        """Read one frame, never a byte more; return how many bytes, 0 where another process is reading."""
        try:
            return self._read_frame_alone(received) if try_lock_process(self._lock.fd) else 0
        finally:
            unlock_process(self._lock.fd)

    def _read_frame_alone(self, received: Received) -> int:
        count = 0
        while count == 0 or not received.frames.is_between_frames:
            try:
                data = read(self.read_fd, received.frames.wanted)
            except BlockingIOError:
                break
            count += len(data)
            received.ready.extend(received.frames.feed(data, drained=not fifo.pending(self.read_fd)))
        return count

    def size(self) -> int:
        """Return the number of objects in the queue at this moment; see `LogQueue.qsize`."""
        self._sender.pending()
        self.open()
        waiting: FrameReader[None] = FrameReader(dict.fromkeys(_DECODE, lambda payload: None))
        return len(self.received.ready) + len(waiting.feed(fifo.peek(self.read_fd), drained=True))


def _seconds_until(deadline: float | None) -> float:
    """Return what ``Lock.acquire`` takes for it."""
    return -1 if deadline is None else min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX)


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and monotonic() >= deadline
