"""The handler that calls a function with batches. It runs in the logging process.

::

    records -> open batch ---full, or old enough---> waiting batches -> thread(s) -> function(batch)
                  | each also in a file, until the function has returned: for the process after a kill

The rule of this file: **a record is forgotten when the function has returned, and not before.** The number of waiting
records and the time for attempts are bounded. A slow or failing function holds up nothing else until that many wait.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from mplog.handlers.backlog import Backlog, Batch
from mplog.handlers.text import LocklessHandler
from mplog.record.decoding import decode
from mplog.record.encoding import encode

#: Seconds of the longest pause between two attempts while the server stops.
_LONGEST_PAUSE_AT_END = 1.0


class Delivery(msgspec.Struct, frozen=True):
    """How a function gets its batches: see `CallableSink` and `Retry`. `drops`: a record without room is dropped."""

    function: Callable[[list[Any]], object]
    name: str
    takes_texts: bool
    batch: int
    timeout: float
    threads: int
    waiting: int
    drops: bool
    pauses: Callable[[], Iterable[float]]
    at_end: float


class CallableHandler(LocklessHandler):
    def __init__(self, delivery: Delivery) -> None:
        super().__init__()
        self._delivery = delivery
        self._failures: deque[tuple[BaseException, int]] = deque()
        self._retries: deque[BaseException] = deque(maxlen=100)
        #: Held to use the backlog, and notified when it has changed.
        self._condition = threading.Condition()
        self._backlog = Backlog(delivery.batch, delivery.timeout, self._retries.append)
        self._threads: list[threading.Thread] = []
        self._notify: Callable[[], object] = lambda: None
        self._is_ending = False
        self._finish_by = math.inf
        self._is_finished = False

    def __repr__(self) -> str:
        return f"<CallableHandler {self._delivery.name}>"

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record that was logged in the logging process, except by the function itself."""
        # A function that logs at each call would never end, or without room would wait for itself.
        if threading.current_thread() not in self._threads:
            self.handle_batch([record])

    def handle_batch(self, records: Sequence[logging.LogRecord]) -> None:
        """Take records that have passed the filters; return once they would survive a kill."""
        payloads = [encode(record, with_args=True) for record in records]
        backlog, most = self._backlog, self._delivery.waiting
        with self._condition:
            self._start_threads()
            dropped = 0
            for payload in payloads:
                while backlog.count >= most and not self._delivery.drops:
                    backlog.save()
                    self._condition.notify_all()
                    self._condition.wait()
                if backlog.count >= most:
                    dropped += 1
                else:
                    backlog.add(payload)
            if dropped:
                self._failures.append((queue.Full(f"{most} records wait for it already"), dropped))
            backlog.save()
            self._condition.notify_all()

    def _start_threads(self) -> None:
        while len(self._threads) < self._delivery.threads:
            thread = threading.Thread(target=self._run, name=f"mplog {self._delivery.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def go_on(self, path: str, notify: Callable[[], object]) -> None:
        self._notify = notify
        with self._condition:
            self._backlog.keep_in(path)
            if not self._backlog.is_empty:
                self._start_threads()

    def _run(self) -> None:
        """Runs in a thread: deliver one batch after the other."""
        while (batch := self._take()) is not None:
            try:
                self._deliver(batch.payloads)
            finally:
                batch.remove()
                with self._condition:
                    self._backlog.remove(batch)
                    self._condition.notify_all()
                self._notify()

    def _take(self) -> Batch | None:
        """Wait for a batch that is due; return None at the end."""
        with self._condition:
            while True:
                found = self._backlog.take(at_once=self._is_ending)
                if isinstance(found, Batch):
                    return found
                if self._is_ending:
                    return None
                self._condition.wait(None if found == math.inf else found)

    def _deliver(self, payloads: list[bytes]) -> None:
        # At the very end, lines about failed deliveries come here, too, perhaps for a function that never works.
        pauses = iter(() if self._is_finished else self._delivery.pauses())
        is_first = True
        while True:
            # Decoded for each attempt: the function may have changed the records.
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
        """Wait before the next attempt; the pauses are shorter once the server stops."""
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

    def send_now(self) -> int:
        with self._condition:
            self._backlog.close_batch()
            self._condition.notify_all()
            return self._backlog.next

    def is_delivered(self, mark: int) -> bool:
        with self._condition:
            return self._backlog.is_delivered(mark)

    def take_failures(self) -> list[tuple[BaseException, int]]:
        return [self._failures.popleft() for _ in range(len(self._failures))]

    def take_retries(self) -> list[BaseException]:
        return [self._retries.popleft() for _ in range(len(self._retries))]

    def finish(self, timeout: float) -> bool:
        """Wait until everything is delivered or given up. Later records are tried once, before `close` ends."""
        mark = self.send_now()
        with self._condition:
            if self._finish_by == math.inf:
                self._finish_by = time.monotonic() + self._delivery.at_end
                self._condition.notify_all()
            self._is_finished = self._condition.wait_for(lambda: self._backlog.is_delivered(mark), timeout)
            return self._is_finished

    def close(self) -> None:
        with self._condition:
            self._is_ending = True
            if not self._backlog.is_empty:
                self._start_threads()
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        super().close()
