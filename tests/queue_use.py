"""What tests of `LogQueue` do with a queue: fill it, empty it, use it in threads and children."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import multiprocessing
import multiprocessing.queues
import queue as stdlib_queue
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mplog import LogQueue

FORK = multiprocessing.get_context("fork")
PIPE_BUF = select.PIPE_BUF


def record(message: str = "hello", *args: object) -> logging.LogRecord:
    """Return a record."""
    return logging.LogRecord("a.b", logging.INFO, "/dir/file.py", 7, message, args, None, "function")


def fill(queue: LogQueue) -> int:
    """Put numbers until the queue is full; return how many."""
    count = 0
    with contextlib.suppress(stdlib_queue.Full):
        while True:
            queue.put_nowait(count)
            count += 1
    return count


def drain(queue: LogQueue) -> list[Any]:
    """Return all that is in the queue."""
    items = []
    with contextlib.suppress(stdlib_queue.Empty):
        while True:
            items.append(queue.get_nowait())
    return items


class Thread(threading.Thread):
    """A thread whose exceptions and result come out of `finish`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._call = function, args
        self._outcome: list[Any] = []
        self.start()

    def run(self) -> None:
        function, args = self._call
        try:
            self._outcome = [None, function(*args)]
        except BaseException as error:
            self._outcome = [error, None]

    def finish(self, what: str, timeout: float = 60) -> Any:
        """Wait for the thread, and return what its function returned."""
        self.join(timeout)
        assert not self.is_alive(), f"waited {timeout} seconds until {what}"
        error, result = self._outcome
        if error is not None:
            raise error
        return result


@contextlib.contextmanager
def child(target: Callable[..., Any], *args: Any, context: Any = FORK) -> Iterator[Any]:
    """Run a function in a process that does not outlive the test."""
    process = context.Process(target=target, args=args)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(30)


def ended(process: Any, what: str) -> None:
    """Wait until a process has ended well."""
    process.join(60)
    assert process.exitcode == 0, f"{what}: {process.exitcode}"


def put_all(queue: LogQueue, items: list[Any]) -> None:
    """Put them."""
    for item in items:
        queue.put(item)
