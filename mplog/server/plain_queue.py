"""A plain queue of ``multiprocessing`` or ``multiprocess`` in place of a `LogQueue`.

The rule of this file: **it works everywhere and promises less.** Such a queue can only be inherited, so a thread in the
process that made it takes the records out and passes them on to the logging process.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

from mplog.record.encoding import encode

__all__ = ["Pump"]

# Seconds between two looks whether it shall end: a sentinel in the queue could not be relied on, since at the end of a
# program multiprocessing closes the queue before the last child has ended.
_INTERVAL = 0.2
_BATCH = 1000
# The logging process counts it in place of what is no record, and must not unpickle.
_GARBAGE = b""


class Pump(threading.Thread):
    """Pass on what comes out of a queue, until told to stop and the queue is empty.

    Args:
        source: the queue.
        deliver: called with a batch of encoded records.
    """

    def __init__(self, source: Any, deliver: Callable[[list[bytes]], object]) -> None:
        super().__init__(name="mplog-pump", daemon=True)
        self._source = _with_own_reader(source)
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
            except (OSError, EOFError):
                return  # the queue is broken
            try:
                self._deliver(batch)
            except Exception:
                return  # the logging process has ended; whoever asks the server learns of it

    def _take(self) -> list[bytes]:
        batch: list[bytes] = []
        try:
            while len(batch) < _BATCH:
                batch.append(_encoded(self._source.get_nowait() if batch else self._source.get(timeout=_INTERVAL)))
        except (queue.Empty, OSError, EOFError):
            if not batch:
                raise
        except Exception:
            batch.append(_GARBAGE)  # it does not unpickle
        return batch

    def stop(self, timeout: float) -> bool:
        """Pass on the rest; return whether that was done within `timeout` seconds."""
        self._stopping.set()
        self.join(timeout)
        return not self.is_alive()


def _encoded(item: object) -> bytes:
    if isinstance(item, logging.LogRecord):  # from a QueueHandler of the stdlib's
        return encode(item)
    return item if isinstance(item, bytes) else _GARBAGE


def _with_own_reader(source: Any) -> Any:
    """Return the queue with a reading end of its own.

    A process that has put something into the queue closes the queue's reading end at the end of the program, before
    the last child has ended, which would then wait for ever (``reader_close`` in ``multiprocessing.queues``).
    """
    reader = getattr(source, "_reader", None)
    if reader is None:
        return source
    if sys.platform == "win32":
        handle = reduction.duplicate(reader.fileno())
    else:
        handle = os.dup(reader.fileno())
    kind: Any = type(source)
    own = kind.__new__(kind)
    own.__dict__.update(source.__dict__)
    own._reader = type(reader)(handle, writable=False)
    own._poll, own._recv_bytes = own._reader.poll, own._reader.recv_bytes
    return own
