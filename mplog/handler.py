"""`QueueHandler`: what a worker has on its root logger.

::

    logger.info(...) -> LogRecord -> handle -> filter -> emit -> prepare (record -> bytes) -> enqueue -> LogQueue

The rule of this file: **a logging call is one write and leaves nothing behind**: no lock, no thread, no buffer. So it
may be made in a signal handler, after any fork, in ``__del__`` and while the interpreter ends.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from typing import Any

from mplog.errors import NoReaderError
from mplog.plain import unless_signal
from mplog.queue import LogQueue
from mplog.record import encode

__all__ = ["QueueHandler"]


class QueueHandler(logging.handlers.QueueHandler):
    """Send log records into a queue, prepared so that they always travel.

    A formatter set here is not used: records are formatted where they are written. Levels and filters are.

    When the logging process has ended, records of level WARNING and above go to ``sys.stderr``, as they do in the
    stdlib for a program without any logging configuration, behind one line that says so.

    Args:
        queue: a `LogQueue`, or a plain ``multiprocessing.Queue``, which then carries the encoded records as bytes.
    """

    def __init__(self, queue: Any) -> None:
        super().__init__(queue)
        self._told_in_pid = 0
        self._put = queue.put_record if isinstance(queue, LogQueue) else queue.put
        # Straight to the point where a subclass does not stand in between: two calls less for each record.
        kind = type(self)
        self._prepare = encode if kind.prepare is QueueHandler.prepare else self.prepare
        #: Sends a record that is encoded already.
        self.send_encoded = self._put if kind.enqueue is QueueHandler.enqueue else self.enqueue

    def createLock(self) -> None:
        """Have no lock: one that another thread holds at a fork, or this one in a signal handler, is a deadlock."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter the record and send it, without the lock that the base class takes."""
        if not self.filters:
            self.emit(record)
            return True
        passed: Any = True
        try:
            passed = self.filter(record)
        except Exception:
            # The stdlib raises it in the application; a record too many is the smaller harm.
            self.handleError(record)
        except (SystemExit, GeneratorExit) as error:
            unless_signal(error)
            self.handleError(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record. What goes wrong never reaches the program that logs."""
        try:
            self.send_encoded(self._prepare(record))
        except NoReaderError as error:
            self._fall_back(record, error)
        except RecursionError:
            # As the stdlib's StreamHandler does: there is no room left even to report it. Where a __repr__ logs itself
            # for ever, the call that began it sends a placeholder.
            raise
        except Exception:
            self.handleError(record)

    def prepare(self, record: logging.LogRecord) -> bytes:
        """Return the record as plain data. Override it to change a record before it leaves the process."""
        return encode(record)

    def enqueue(self, payload: bytes) -> None:  # type: ignore[override]
        """Put an encoded record into the queue, waiting while it is full."""
        self._put(payload)

    def close(self) -> None:
        """Forget the handler as the stdlib does at exit; records that are logged later still travel."""
        logging.Handler.close(self)

    def _fall_back(self, record: logging.LogRecord, error: NoReaderError) -> None:
        """Do what the stdlib does where nothing is configured: warnings to stderr, and the reason, once per process."""
        try:
            pid = os.getpid()
            if self._told_in_pid != pid and sys.stderr is not None:
                self._told_in_pid = pid
                sys.stderr.write(f"mplog: {error} Until then, warnings of pid {pid} go to stderr, the rest nowhere.\n")
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
        except Exception:
            self.handleError(record)
