"""`Sender`: puts records and objects into a queue.

::

    payload -> frame(s) ---- write, atomic ----> FIFO
                   `- no room: wait, then the emergency file, or dropped and counted (`mplog.queue.overflow`)

The rule of this file: **when a call returns, what it was given is out of the process**, or counted as lost. There is no
lock to die with, no thread to forget, no buffer to flush.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import multiprocessing.process
import os
import queue
import select
import sys
import time
from typing import Any

from mplog.errors import NoReaderError
from mplog.queue import fifo
from mplog.queue.descriptor import KNOWN_FOR, NONE, Descriptor
from mplog.queue.directory import fifo_path, remove_if_unused
from mplog.queue.elsewhere import Elsewhere, level_of, reason_of
from mplog.queue.fifo import monotonic
from mplog.queue.losses import Losses, Reason
from mplog.queue.native import write as _write
from mplog.queue.overflow import KEPT_LEVEL, Overflow, is_in_event_loop
from mplog.queue.payloads import encode_bytes, encode_object
from mplog.queue.presence import Presence
from mplog.queue.sync import Sync, Waiter
from mplog.record import frame
from mplog.record.cache import Cache
from mplog.record.decoding import origin_of
from mplog.record.encoding import Cut, encode

_PAYLOAD_SIZE = frame.PAYLOAD_SIZE
#: The headers of records, by the length of what follows.
_headers: Cache[int, bytes] = Cache(lambda length: frame.header(frame.RECORD, length), frame.PAYLOAD_SIZE + 1)


class Sender:
    """The writing end of a queue in this process.

    Args:
        directory: of the queue.

    Attributes:
        end: the writing end, `NONE` while it is not open.
        is_closed: whether the queue is closed in this process.
        sequence, details, overflow, sync, preparation, losses: see `LogQueue`.
        presence: keeps the log from ending before this process, though the writing end is closed.
    """

    def __init__(self, directory: str) -> None:
        #: The clock of `look`. Tests may stop it where it is a name of a module (freezegun), and not here.
        self.now = time.monotonic
        self.end = NONE  # here and not in the class, which would make each look at it slower
        self.directory = directory
        self.is_closed = False
        self.sequence = itertools.count(1)
        self.details = True
        self.overflow = Overflow.block()
        self.sync: Sync | None = None
        self.preparation = b""
        self.losses = Losses(directory)
        self.presence = Presence(directory)
        #: Frames that go before the next message; an empty one stands for the losses that wait then.
        self._abandoned: list[bytes] = []
        self._elsewhere = Elsewhere(directory)
        fifo.holders.add(self)

    def __repr__(self) -> str:
        return f"<LogQueue {self.path}{', closed' if self.is_closed else ''}>"

    def __del__(self) -> None:
        if sys is not None and not sys.is_finalizing():  # later, something may still log
            self.close()

    @property
    def path(self) -> str:
        """The path of the FIFO."""
        return fifo_path(self.directory)

    @property
    def write_fd(self) -> int:
        """The number of the writing end, -1 while it is not open."""
        return self.end.fd

    def open(self) -> int:
        """Return the writing end, opened if it is not; raise NoReaderError if no process reads the queue any more."""
        self.look()
        if self.end is NONE:
            fifo.forget_closed()  # before another end gets one of their numbers
            # First: where there are too few descriptors for this, there are too few for the end.
            self.presence.begin()
            try:
                end = Descriptor(fifo.open_writer(self.path))
                end.mark()
                self.end = end
            except FileNotFoundError:
                raise NoReaderError(
                    f"{self.path} does not exist any more: its server has ended, or another program has removed it. "
                    "A server that runs notices that, and makes it again. If it has ended, start a new one."
                ) from None
            except BrokenPipeError:
                raise self.no_reader() from None
        return self.end.fd

    def no_reader(self) -> NoReaderError:
        """Return the error that says that no process reads the queue any more."""
        return NoReaderError(f"nobody reads {self.path} any more: its logging process has ended. Start a new server.")

    def pending(self) -> int:
        """Return how many bytes are in the queue at this moment."""
        if self.is_closed:
            raise OSError(f"Queue {self!r} is closed")  # as the base class of LogQueue does, unlike in put() and get()
        try:
            return fifo.pending(self.open())
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            fifo.forget_closed()
            return fifo.pending(self.open())

    def close(self) -> None:
        """Close the queue in this process."""
        self.is_closed = True
        self.presence.end()  # first: with its last writing end closed, the logging process looks who is present
        self.close_end()

    def close_end(self) -> None:
        end, self.end = self.end, NONE
        with contextlib.suppress(OSError):
            end.close()

    def look(self) -> None:
        """Look whether the writing end is still ours, if the last look was too long ago: before each write."""
        end, now = self.end, self.now()
        if now >= end.known_until:
            if end.is_still_ours():
                end.known_until = now + KNOWN_FOR
            elif end is not NONE:
                fifo.forget_closed()

    def forget_closed(self) -> None:
        """Look whether the program has closed the writing end."""
        if not self.end.is_ours():
            self.end = NONE

    def begin_in_fork(self) -> None:
        """Runs in a process that has just been forked: count from zero."""
        if self.end is not NONE:
            self.presence.begin()  # the file may not have been there when the end was opened
        self.sequence = itertools.count(1)
        self.losses = Losses(self.directory)
        self._abandoned = [notice for notice in self._abandoned if notice]

    def send(self, kind: int, payload: bytes, block: bool, timeout: float | None) -> None:
        """Write a message of a kind of `mplog.record.frame` into the FIFO; for the rest, see `LogQueue.put`."""
        if self.is_closed:
            raise ValueError(f"Queue {self!r} is closed")
        deadline = None if timeout is None else monotonic() + timeout
        for notice in self._abandoned[:]:
            if notice:
                self._write(notice, block, deadline)
            else:
                self._send_losses(block, deadline)
            with contextlib.suppress(ValueError):  # another thread has sent it, too, which does no harm
                self._abandoned.remove(notice)
        whole = frame.frame(kind, payload)
        if whole is not None:
            self._write(whole, block, deadline)
            return
        message_id = os.urandom(16)
        try:
            for part in frame.frames(kind, payload, message_id):
                self._write(part, block, deadline)
        except BaseException:
            # Full, or Ctrl-C, between two parts: the reader must not wait for the rest.
            self._abandoned.append(frame.abandon(message_id))
            raise

    def _write(self, data: bytes, block: bool, deadline: float | None) -> None:
        while True:
            try:
                _write(self.open(), data)
            except BlockingIOError:
                if not block or not fifo.wait(self.end.fd, select.POLLOUT, deadline):
                    raise queue.Full from None
            except NoReaderError:
                raise
            except BrokenPipeError:
                raise self.no_reader() from None
            except OSError as error:
                if fifo.was_written(error):
                    return
                if error.errno != errno.EBADF:
                    raise
                fifo.forget_closed()
            else:
                return

    # --- objects and bytes ---

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object; see `LogQueue.put`."""
        if not isinstance(obj, logging.LogRecord):
            self.send(frame.OBJECT, encode_object(obj), block, timeout)
            return
        payload = encode(obj, next(self.sequence), self.details)
        if self.preparation:
            from mplog.record.preparation import load_preparation

            payload = load_preparation(self.preparation)(payload)
        try:
            self.send(frame.RECORD, payload, block, timeout)
        except BaseException as error:
            # The caller knows that the queue is full, and may try again.
            self.count(payload, Reason.UNUSED if isinstance(error, queue.Full) else reason_of(error))
            raise

    def write(self, data: bytes | bytearray | memoryview, to: str, timeout: float | None) -> None:
        """Send bytes to a sink; see `LogQueue.write`."""
        payload = encode_bytes(data, to)
        if len(payload) <= frame.PAYLOAD_SIZE and not self._abandoned and not self.is_closed:
            try:
                self.look()
                _write(self.end.fd, frame.header(frame.BYTES, len(payload)) + payload)
                return
            except OSError as error:
                if fifo.was_written(error):
                    return
        try:
            self.send(frame.BYTES, payload, timeout != 0, timeout)
        except NoReaderError:
            if not self._elsewhere.has_next_server(self.overflow):
                raise
            file, is_kept = self._elsewhere.file(KEPT_LEVEL, self.overflow), False
            with contextlib.suppress(BlockingIOError):
                is_kept = file.append(frame.whole(frame.BYTES, payload), sync=True)
            if not is_kept:
                raise

    # --- records ---

    def put_record(self, payload: bytes) -> None:
        """Put an encoded record; while the queue is full, do as `overflow` says. Call `look` first.

        Raises:
            ValueError: the queue is closed in this process.
            NoReaderError: no process reads the queue any more.
        """
        # The path of nearly every record: one frame, for which there is room, and nothing left over. All else is below.
        size = len(payload)
        if size <= _PAYLOAD_SIZE and not self._abandoned:
            try:
                _write(self.end.fd, _headers[size] + payload)
                return
            except OSError as error:
                if fifo.was_written(error):
                    return
        self._put_slowly(payload)

    def put_synced(self, payload: bytes) -> bool:
        """Put a record, wait until it is on disk, for as long as `sync` says, and return whether it is.

        If the queue has no room in that time, the record goes into the emergency file, and that to disk.
        """
        seconds = 0.0 if self.sync is None else self.sync.timeout
        if self.overflow.never_block_loop and is_in_event_loop():
            seconds = 0.0
        deadline = monotonic() + seconds
        waiter = None
        is_there = False
        try:
            if seconds:
                with contextlib.suppress(OSError):  # no descriptor is left, or no room
                    waiter = Waiter(self.directory)
            is_sent = self._put_slowly(payload, token=waiter.token if waiter is not None else b"", limit=seconds)
            if waiter is not None and is_sent:
                is_there = waiter.wait(deadline)
        finally:
            if waiter is not None:
                waiter.close()
                remove_if_unused(self.directory)
        if is_sent and not is_there:
            self.count(payload, Reason.UNSYNCED)
        return is_there or is_sent is None

    def _put_slowly(self, payload: bytes, *, token: bytes = b"", limit: float | None = None) -> bool | None:
        """Put a record for which there may be no room.

        Args:
            payload: the record.
            token: of the `Waiter` for it; b"" for none.
            limit: of a record to be written through, the seconds that it waits for room at most, whatever the policy.

        Returns:
            True where it arrives, None where it is in the emergency file, on disk if asked for, False where it is
            dropped.
        """
        policy = self.overflow.policy
        level = logging.NOTSET if policy == "block" else level_of(payload)
        timeout = self.overflow.wait(level, self._elsewhere.has_given_up)
        if limit is not None:
            timeout = limit if timeout is None else min(limit, timeout)
        try:
            self.send(frame.SYNC if token else frame.RECORD, token + payload, timeout != 0, timeout)
        except queue.Full:
            if timeout:
                self._elsewhere.give_up()
            reason = Reason.TIMEOUT if timeout else Reason.QUEUE_FULL
            return self._elsewhere.put(payload, reason, limit is not None, self.overflow, self.count)
        except NoReaderError as error:
            if not self._elsewhere.has_next_server(self.overflow):
                self.count(payload, reason_of(error))
                raise
            is_kept = self._elsewhere.put(payload, Reason.REJECTED, True, self.overflow, self.count)
            if is_kept is False:
                raise  # there is no room for it anywhere, and no logging process left that would say so
            return is_kept
        except BaseException as error:
            self.count(payload, reason_of(error))
            raise
        if type(payload) is Cut:
            self.count(payload, Reason.TRUNCATED)
        return True

    def count_unused(self) -> None:
        """Count a number of `sequence` that no record carries."""
        self._count(logging.NOTSET, Reason.UNUSED, multiprocessing.process.current_process().name)

    def count_lost(self, level: Any) -> None:
        """Count a record that could not be encoded."""
        with contextlib.suppress(MemoryError):
            name = multiprocessing.process.current_process().name
            self.losses.count(level if type(level) is int else logging.NOTSET, Reason.INTERRUPTED, name)

    def count(self, payload: bytes, reason: Reason) -> None:
        try:
            origin = origin_of(payload)
        except (ValueError, RecursionError):
            self._count(logging.NOTSET, reason, None)
        else:
            self._count(origin.levelno, reason, origin.processName)
        if reason is Reason.REJECTED:
            remove_if_unused(self.directory)

    def _count(self, level: int, reason: Reason, name: str | None) -> None:
        self.losses.count(level, reason, name)
        if self.losses.are_waiting and b"" not in self._abandoned:
            self._abandoned.append(b"")
        if not reason.is_loss and self._abandoned:
            # The record is in the queue, which so has room; and there may be no later one.
            with contextlib.suppress(queue.Full, OSError):
                self._send_losses(False, None)

    def _send_losses(self, block: bool, deadline: float | None) -> None:
        from mplog.queue.process_losses import ProcessLosses, encode_losses  # few workers need it

        def send(name: str, counts: dict[tuple[int, Reason], int]) -> None:
            self._write(encode_losses([ProcessLosses(os.getpid(), name, counts)]), block, deadline)

        self.losses.send_waiting(send)
