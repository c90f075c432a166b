"""A plain queue of ``multiprocessing`` or ``multiprocess`` in place of a `LogQueue`.

The rule of this file: **it works everywhere and promises less.** Such a queue can only be inherited, so a thread in the
process that made it takes the records out and passes them on to the logging process.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from mplog.record import encode

__all__ = ["Pump"]

# Seconds between two looks whether it shall end: a sentinel in the queue could not be relied on, since at the end of a
# program multiprocessing closes the queue before the last child has ended.
_INTERVAL = 0.2
_BATCH = 1000


class Pump(threading.Thread):
    """Pass on what comes out of a queue, until told to stop and the queue is empty.

    Args:
        source: the queue.
        deliver: called with a batch of encoded records.
    """

    def __init__(self, source: Any, deliver: Callable[[list[bytes]], object]) -> None:
        super().__init__(name="mplog-pump", daemon=True)
        self._source = source
        self._deliver = deliver
        self._stopping = threading.Event()

    def run(self) -> None:
        while True:
            try:
                batch = self._take()
            except queue.Empty:
                if self._stopping.is_set():
                    return
                continue
            except (OSError, ValueError, EOFError):
                return  # the queue is closed
            try:
                self._deliver(batch)
            except Exception:
                return  # the logging process has ended; whoever asks the server learns of it

    def _take(self) -> list[bytes]:
        batch = [self._source.get(timeout=_INTERVAL)]
        try:
            while len(batch) < _BATCH:
                batch.append(self._source.get_nowait())
        except queue.Empty:
            pass
        # LogRecords come from a QueueHandler of the stdlib's.
        return [encode(item) if isinstance(item, logging.LogRecord) else item for item in batch]

    def stop(self, timeout: float) -> bool:
        """Pass on the rest; return whether that was done within `timeout` seconds."""
        self._stopping.set()
        self.join(timeout)
        return not self.is_alive()
