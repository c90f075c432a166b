"""The handler that calls a function with batches. It runs in the logging process.

::

    records -> open batch ---full, or old enough---> waiting batches -> thread(s) -> function(batch)
                  | each also in a file, until the function has returned: for the process after a kill

The rule of this file: **a record is forgotten when the function has returned, and not before.** What waits has a bound,
and so has the time for which it is tried. A slow or failing function holds up nothing else until as much waits as may.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mplog.handlers.text import LocklessHandler
from mplog.record.decoding import decode
from mplog.record.encoding import encode

#: What the names of the files begin with that have what waits, in the directory of the queue.
UNDELIVERED = "undelivered-"


@dataclass(frozen=True)
class Delivery:
    """How a function gets its batches: what a `CallableSink` says of it.

    Attributes:
        function: called with each batch.
        name: of the function, in messages.
        takes_texts: whether it gets texts, and not records.
        batch, timeout, threads, waiting: see `CallableSink`.
        drops: whether what finds no room is dropped, and not waited for.
        pauses: returns the seconds to wait before each further attempt.
        at_end: see `Retry`.
    """

    function: Callable[[list[Any]], object]
    name: str
    takes_texts: bool
    batch: int
    timeout: float
    threads: int
    waiting: int
    drops: bool
    pauses: Callable[[], Iterator[float]]
    at_end: float


class _Batch:
    """Encoded records that are delivered together.

    Attributes:
        number: batches are numbered as they are made.
        due: when it is delivered though it is not full, by the monotonic clock.
        path: the file that has them, too; None for none.
        fd: of that file while it is written.
    """

    def __init__(self, number: int, due: float, path: str | None) -> None:
        self.number = number
        self.due = due
        self.path = path
        self.fd = -1
        self.payloads: list[bytes] = []
        self.unsaved: list[bytes] = []


_LENGTH = struct.Struct("<I")

#: Seconds of the longest pause between two attempts while the server stops.
_LONGEST_PAUSE_AT_END = 1.0


class CallableHandler(LocklessHandler):
    """Collects batches, and has them delivered. Runs in the logging process.

    Args:
        delivery: says how.
    """

    def __init__(self, delivery: Delivery) -> None:
        super().__init__()
        self._delivery = delivery
        self._condition = threading.Condition()
        self._open: _Batch | None = None
        self._ready: deque[_Batch] = deque()
        #: By number: those that are not delivered yet, but for the open one.
        self._undelivered: dict[int, _Batch] = {}
        self._next = 1
        self._waiting = 0
        self._is_ending = False
        self._finish_by = math.inf
        self._is_finished = False
        self._threads: list[threading.Thread] = []
        self._path: str | None = None
        self._notify: Callable[[], object] = lambda: None
        self._failures: deque[tuple[BaseException, int]] = deque()
        self._retries: deque[BaseException] = deque(maxlen=100)

    def __repr__(self) -> str:
        return f"<CallableHandler {self._delivery.name}>"

    # --- what comes in ---

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record that was logged in this process, but what the function has logged itself."""
        # It would have no end where each call logs, and wait for itself where there is no room.
        if threading.current_thread() not in self._threads:
            self.handle_batch([record])

    def handle_batch(self, records: Sequence[logging.LogRecord]) -> None:
        """Take records that have passed the filters; return when they would survive a kill."""
        payloads = [encode(record) for record in records]
        with self._condition:
            self._start_threads()
            dropped = 0
            for payload in payloads:
                while self._waiting >= self._delivery.waiting and not self._delivery.drops:
                    self._save()
                    self._condition.wait()
                if self._waiting >= self._delivery.waiting:
                    dropped += 1
                else:
                    self._add(payload)
            if dropped:
                self._failures.append((queue.Full(f"{self._delivery.waiting} records wait for it already"), dropped))
            self._save()
            self._condition.notify_all()

    def _add(self, payload: bytes) -> None:
        batch = self._open
        if batch is None:
            batch = self._open = self._new_batch()
        batch.payloads.append(payload)
        batch.unsaved.append(payload)
        self._waiting += 1
        if len(batch.payloads) >= self._delivery.batch:
            self._close_batch()

    def _new_batch(self) -> _Batch:
        number, self._next = self._next, self._next + 1
        path = None if self._path is None else f"{self._path}-{number}"
        return _Batch(number, time.monotonic() + self._delivery.timeout, path)

    def _close_batch(self) -> None:
        """Have the open batch delivered."""
        batch = self._open
        if batch is not None:
            self._save()
            if batch.fd >= 0:
                os.close(batch.fd)
                batch.fd = -1
            self._open = None
            self._undelivered[batch.number] = batch
            self._ready.append(batch)
            self._condition.notify_all()

    def _save(self) -> None:
        """Write what is new in the open batch into its file."""
        batch = self._open
        if batch is None or batch.path is None or not batch.unsaved:
            return
        data = b"".join(_LENGTH.pack(len(payload)) + payload for payload in batch.unsaved)
        batch.unsaved.clear()
        try:
            if batch.fd < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                batch.fd = os.open(batch.path, flags, 0o600)
            while data:
                data = data[os.write(batch.fd, data) :]
        except OSError as error:
            # They are delivered all the same, unless this process is killed before.
            self._retries.append(error)
            batch.path = None

    def _start_threads(self) -> None:
        while len(self._threads) < self._delivery.threads:
            thread = threading.Thread(target=self._run, name=f"mplog {self._delivery.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    # --- after a kill ---

    def go_on(self, path: str, notify: Callable[[], object]) -> None:
        """Keep what waits in files, and take up those that the process before has left.

        Args:
            path: what their names begin with.
            notify: called from any thread when something was delivered.
        """
        self._path, self._notify = path, notify
        directory, prefix = os.path.split(f"{path}-")
        found = [int(name.removeprefix(prefix)) for name in os.listdir(directory) if name.startswith(prefix)]
        with self._condition:
            for number in sorted(found):
                self._next = number
                batch = self._new_batch()
                with open(f"{path}-{number}", "rb") as file:
                    batch.payloads = list(_payloads(file.read()))
                self._waiting += len(batch.payloads)
                self._undelivered[number] = batch
                self._ready.append(batch)
            if found:
                self._start_threads()

    # --- what goes out ---

    def _run(self) -> None:
        """Runs in a thread: deliver one batch after the other."""
        while True:
            batch = self._take()
            if batch is None:
                return
            try:
                self._deliver(batch.payloads)
            finally:
                if batch.path is not None:
                    with contextlib.suppress(OSError):
                        os.unlink(batch.path)
                with self._condition:
                    del self._undelivered[batch.number]
                    self._waiting -= len(batch.payloads)
                    self._condition.notify_all()
                self._notify()

    def _take(self) -> _Batch | None:
        """Wait for a batch that is due; return None at the end."""
        with self._condition:
            while True:
                if self._ready:
                    return self._ready.popleft()
                timeout = None
                if self._open is not None:
                    timeout = self._open.due - time.monotonic()
                    if timeout <= 0 or self._is_ending:
                        self._close_batch()
                        continue
                elif self._is_ending:
                    return None
                self._condition.wait(timeout)

    def _deliver(self, payloads: list[bytes]) -> None:
        # What comes behind everything else says what could not be delivered, perhaps to a function that never works.
        pauses = iter(()) if self._is_finished else self._delivery.pauses()
        is_first = True
        while True:
            # Anew for each attempt: the function may have changed them.
            batch = self._decoded(payloads, is_first)
            is_first = False
            try:
                if batch:
                    self._delivery.function(batch)
                return
            except BaseException as error:  # SystemExit, too: it does not end the thread
                pause = next(pauses, None)
                if pause is None or time.monotonic() >= self._finish_by:
                    self._failures.append((error, len(batch)))
                    return
                self._retries.append(error)
            self._notify()
            self._wait(pause)

    def _wait(self, pause: float) -> None:
        """Wait before the next attempt; once the server stops, there are more of them."""
        with self._condition:
            is_finishing = self._condition.wait_for(lambda: self._finish_by < math.inf, pause)
        if is_finishing:
            time.sleep(min(pause, _LONGEST_PAUSE_AT_END))

    def _decoded(self, payloads: list[bytes], is_first: bool) -> list[Any]:
        batch: list[Any] = []
        for payload in payloads:
            try:
                record = decode(payload)
                batch.append(self.format(record) if self._delivery.takes_texts else record)
            except Exception as error:
                if is_first:
                    self._failures.append((error, 1))
        return batch

    # --- what the logging process asks ---

    def send_now(self) -> int:
        """Have delivered what has come so far; return what `is_delivered` takes."""
        with self._condition:
            self._close_batch()
            return self._next

    def is_delivered(self, mark: int) -> bool:
        """Whether everything that had come before a `send_now` is delivered or given up."""
        with self._condition:
            return next(iter(self._undelivered), mark) >= mark

    def take_failures(self) -> Iterator[tuple[BaseException, int]]:
        """Yield what could not be delivered since the last time, and why."""
        with contextlib.suppress(IndexError):
            while True:
                yield self._failures.popleft()

    def take_retries(self) -> Iterator[BaseException]:
        """Yield why something is tried again, since the last time."""
        with contextlib.suppress(IndexError):
            while True:
                yield self._retries.popleft()

    def finish(self, timeout: float) -> bool:
        """Wait until everything is delivered or given up; what comes later is tried once, before the end of `close`.

        Args:
            timeout: for how many seconds at most.

        Returns:
            Whether it is. Call it again until it is.
        """
        mark = self.send_now()
        with self._condition:
            if self._finish_by == math.inf:
                self._finish_by = time.monotonic() + self._delivery.at_end
                self._condition.notify_all()
            self._is_finished = self._condition.wait_for(lambda: next(iter(self._undelivered), mark) >= mark, timeout)
            return self._is_finished

    def close(self) -> None:
        """Wait until everything is delivered or given up."""
        with self._condition:
            self._is_ending = True
            if self._open is not None or self._ready:
                self._start_threads()
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        super().close()


def count_undelivered(directory: str) -> int:
    """Return how many records wait there for functions."""
    count = 0
    for name in os.listdir(directory):
        if name.startswith(UNDELIVERED):
            with open(os.path.join(directory, name), "rb") as file:
                count += sum(1 for _ in _payloads(file.read()))
    return count


def _payloads(data: bytes) -> Iterator[bytes]:
    """Yield what is whole in a file; the rest was not committed, and comes again."""
    position = 0
    while position + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if position + length > len(data):
            return
        yield data[position : position + length]
        position += length
