"""A plain queue of ``multiprocessing`` or ``multiprocess`` in place of a `LogQueue`: it promises less.

Such a queue can only be inherited, so a thread in the process that made it passes the records on.

::

    logging call -> put() -> a buffer -> the queue's own thread -> pipe -> Pump, here -> connection -> logging process
    a worker: the same, in the worker -------------------------------'
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
from mplog.server.link import Connection

#: Seconds between two looks whether to end. A sentinel in the queue would not do: at the end of a program,
#: multiprocessing closes the queue before the last child has ended.
_INTERVAL = 0.2
_BATCH = 1000
#: Stands for an object that is not a record. The logging process counts it; it must not unpickle the object.
_GARBAGE = b""
#: What a mark begins with, see `Pump._is_all`. No record does.
_MARK = b"mplog: all that this process has logged so far is before this, "


class Pump(threading.Thread):
    """Passes batches of encoded records from a queue to `deliver`, until told to stop and the queue is empty."""

    def __init__(self, source: Any, deliver: Callable[[list[bytes]], object]) -> None:
        super().__init__(name="mplog-pump", daemon=True)
        self._queue = source
        self._source = _with_own_reader(source)
        self._deliver = deliver
        self._stopping = threading.Event()
        #: What has to come before the end; None while it is not in the queue.
        self._mark: bytes | None = None
        #: The last mark that has come.
        self._last_mark: bytes | None = None

    def run(self) -> None:
        while True:
            try:
                batch = self._take()
            except queue.Empty:
                if self._stopping.is_set() and self._is_all():
                    return
                continue
            except (OSError, EOFError):
                return  # the queue is broken
            try:
                if batch:
                    self._deliver(batch)
            except Exception:
                return  # the logging process has ended, as the next call of the server tells

    def _take(self) -> list[bytes]:
        batch: list[bytes] = []
        reader = getattr(self._source, "_reader", None)
        if isinstance(reader, Connection) and not reader.is_ours:
            raise EOFError
        try:
            while len(batch) < _BATCH:
                item = self._source.get_nowait() if batch else self._source.get(timeout=_INTERVAL)
                if not isinstance(item, bytes) or not item.startswith(_MARK):
                    batch.append(_encoded(item))
                else:
                    self._last_mark = item
                    break
        except (queue.Empty, OSError, EOFError):
            if not batch:
                raise
        except Exception:
            batch.append(_GARBAGE)  # an object that does not unpickle
        return batch

    def _is_all(self) -> bool:
        """Whether all that this process has logged has come.

        The queue's own thread may not have sent it yet, and an empty pipe does not tell. So a mark goes the same way.
        This thread puts it: one that a signal handler has interrupted, and that holds the queue's lock, would wait for
        ever.
        """
        if getattr(self._queue, "_thread", None) is None:
            return True
        if self._mark is not None:
            return self._mark == self._last_mark
        self._mark = mark = _MARK + os.urandom(16)  # before `stop` can ask for another one
        try:
            self._queue.put(mark, block=False)
        except queue.Full:
            self._mark = None  # until what fills it has come
        except Exception:
            return True  # the queue is closed, or broken
        return False

    def stop(self, timeout: float) -> bool:
        """Pass on the rest; return whether all of it was passed on within `timeout` seconds. If not, go on."""
        self._mark = None
        self._stopping.set()
        self.join(timeout)
        if not self.is_alive():
            return True
        # Otherwise the pump would end at the first pause of the workers, which may still log.
        self._stopping.clear()
        return False


def _encoded(item: object) -> bytes:
    if isinstance(item, logging.LogRecord):  # from a QueueHandler of the stdlib's
        return encode(item)
    return item if isinstance(item, bytes) else _GARBAGE


def _with_own_reader(source: Any) -> Any:
    """Return the queue with another reading end.

    At its end, a program that has put something into the queue closes the queue's reading end before its last child has
    ended; that child would then wait for ever (``reader_close`` in ``multiprocessing.queues``).
    """
    reader = getattr(source, "_reader", None)
    if reader is None:
        return source
    kind: Any = type(source)
    own = kind.__new__(kind)
    own.__dict__.update(source.__dict__)
    if sys.platform == "win32":
        own._reader = type(reader)(reduction.duplicate(reader.fileno()), writable=False)
    else:
        own._reader = Connection(os.dup(reader.fileno()))
    own._poll, own._recv_bytes = own._reader.poll, own._reader.recv_bytes
    return own
