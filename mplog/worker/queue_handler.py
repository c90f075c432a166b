"""`QueueHandler`: what a worker has on its root logger.

The rule of this file: **a logging call is one write and leaves nothing behind**: no lock, no thread, no buffer. So a
program may log in a signal handler, after any fork, in ``__del__`` and while the interpreter ends.
"""

from __future__ import annotations

import logging
import logging.handlers
import math
import os
import sys
from collections.abc import Mapping
from queue import Queue, SimpleQueue
from typing import TYPE_CHECKING, Any

from mplog.errors import NoReaderError
from mplog.queue.log_queue import LogQueue
from mplog.record.decoding import decode
from mplog.record.encoding import encode
from mplog.record.plain import unless_signal
from mplog.worker.levels import look, watched

if TYPE_CHECKING:
    from mplog.record.preparation import Preparation


class QueueHandler(logging.handlers.QueueHandler):
    """Send log records into a queue, prepared so that they always travel.

    To change what the handler does, override `handle`, `prepare` or `enqueue` in a subclass.

    A formatter set here is not used: records are formatted where they are written. Levels and filters are used.

    After the end of the logging process, one line says so, and records of level WARNING and above go to
    ``sys.stderr``, as in the stdlib without any logging configuration.

    When the handler is made, it takes over from the queue which records are written through (`LogQueue.sync`) and what
    is done to records before they leave the process (`LogQueue.preparation`).

    Args:
        queue: a `LogQueue`; or a plain ``multiprocessing.Queue``, which then carries the encoded records as bytes; or
            a queue of the module ``queue``, for a listener in the same process, which gets records. In a dictConfig,
            also a factory, as in the stdlib. None (the default) makes a ``queue.Queue``.
        handlers, listener, respect_handler_level: as in the stdlib's dictConfig from Python 3.12 on: what the
            ``QueueListener`` in the attribute ``listener`` is made of. The program starts and stops it.
    """

    def __init__(
        self, queue: Any = None, *, handlers: Any = (), listener: Any = None, respect_handler_level: bool = False
    ) -> None:
        if queue is None:
            queue = Queue()
        elif isinstance(queue, (str, Mapping)):
            from mplog.worker.listener import make_queue

            queue = make_queue(queue)
        super().__init__(queue)
        if handlers or listener is not None:
            from mplog.worker.listener import make_listener

            self.listener = make_listener(queue, handlers, listener, respect_handler_level=respect_handler_level)
        self._told_in_pid = 0
        #: Where a `LogQueue` has what each record needs.
        self.sender = queue.sender if isinstance(queue, LogQueue) else None
        self._put = queue.record_putter if isinstance(queue, LogQueue) else queue.put
        if isinstance(queue, (Queue, SimpleQueue)):
            self._put = lambda payload: queue.put(decode(payload))
        # Fewer calls for each record, if no subclass overrides them.
        kind = type(self)
        is_direct = isinstance(queue, LogQueue) and (kind.emit, kind.prepare) == (
            QueueHandler.emit,
            QueueHandler.prepare,
        )
        #: Records of this level and above are written through, unless a subclass overrides `enqueue`.
        self.sync_level: float = math.inf
        if isinstance(queue, LogQueue) and queue.sync is not None and kind.enqueue is QueueHandler.enqueue:
            self.sync_level = queue.sync.level
        #: Whether each record goes straight into a `LogQueue`.
        self.is_direct = is_direct and self.sync_level == math.inf
        #: Below this level, each record goes straight into a `LogQueue`.
        self.direct_below = self.sync_level if is_direct else -math.inf
        #: Sends a record that is encoded already.
        self.send_encoded = self._put if kind.enqueue is QueueHandler.enqueue else self.enqueue
        self._preparation: Preparation | None = None
        if isinstance(queue, LogQueue) and queue.preparation:
            self.prepare_with(queue.preparation)

    def createLock(self) -> None:
        """Have no lock: one that is held at a fork, or when a signal comes, would deadlock the next logging call."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter the record and send it, without the lock that the base class takes."""
        if watched.word[0] != watched.seen:
            look()
        if not self.filters:
            if self.is_direct:
                payload = b""
                try:
                    sender: Any = self.sender
                    payload = encode(record, next(sender.sequence), sender.details)
                    if sender.now() >= sender.end.known_until:
                        sender.look()
                    self.send_encoded(payload)
                except Exception as error:
                    self._fail(record, error, is_lost=not payload)
            else:
                self.emit(record)
            return True
        passed: Any = True
        try:
            passed = self.filter(record)
        except Exception:
            # The stdlib raises it in the program; a record too many is the smaller harm.
            self.handleError(self._prepared(record))
        except (SystemExit, GeneratorExit) as error:
            unless_signal(error)
            self.handleError(self._prepared(record))
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record. No error reaches the program that logs."""
        payload = b""
        try:
            payload = self.prepare(record)
            if self._preparation is not None:
                payload = self._preparation(payload)
                self._tell_failures()
            level = record.levelno
            sender: Any = self.sender
            if sender is not None:
                sender.look()
            if type(level) is int and level >= self.sync_level:
                sender.put_synced(payload)
            else:
                self.send_encoded(payload)
        except Exception as error:
            self._fail(record, error, is_lost=not payload)

    def prepare_with(self, preparation: bytes) -> None:
        """Pass records through enrichers and redactors, from `mplog.record.preparation.note_preparation`."""
        from mplog.record.preparation import load_preparation

        self._preparation = load_preparation(preparation)
        self.is_direct, self.direct_below = False, -math.inf

    def _tell_failures(self) -> None:
        """Log, once, which enrichers and redactors do not work."""
        assert self._preparation is not None
        for message in self._preparation.take_failures():
            record = logging.LogRecord("mplog", logging.WARNING, __file__, 0, f"mplog: {message}", None, None)
            self.emit(record)

    def _prepared(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record without its secrets."""
        return record if self._preparation is None else self._preparation.prepared(record)

    def _fail(self, record: logging.LogRecord, error: Exception, *, is_lost: bool) -> None:
        """Report the error; runs in the except clause.

        Args:
            record: the record.
            error: the error.
            is_lost: whether there was no memory to encode it. What fails later is counted where it fails.
        """
        if is_lost and isinstance(error, MemoryError) and self.sender is not None:
            self.sender.count_lost(record.levelno)
        if isinstance(error, NoReaderError):
            self.fall_back(self._prepared(record), error)
        elif isinstance(error, RecursionError):
            # As the stdlib's StreamHandler does: the stack has no room to report it. If a __repr__ logs itself for
            # ever, the first call sends a placeholder.
            raise error
        else:
            self.handleError(self._prepared(record))

    def prepare(self, record: logging.LogRecord) -> bytes:
        """Return the record as plain data. Override this to change records before they leave the process."""
        sender = self.sender
        return encode(record) if sender is None else encode(record, next(sender.sequence), sender.details)

    def enqueue(self, payload: bytes) -> None:  # type: ignore[override]
        """Put an encoded record into the queue. While the queue is full, its overflow policy decides."""
        self._put(payload)

    def close(self) -> None:
        """Forget the handler as the stdlib does at exit; records that are logged later still travel."""
        logging.Handler.close(self)

    def fall_back(self, record: logging.LogRecord, error: NoReaderError) -> None:
        """Write a warning to stderr, as the stdlib does without configuration, and once per process the reason."""
        try:
            pid = os.getpid()
            if self._told_in_pid != pid and sys.stderr is not None:
                self._told_in_pid = pid
                sys.stderr.write(f"mplog: {error} Until then, warnings of pid {pid} go to stderr, the rest nowhere.\n")
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
        except Exception:
            self.handleError(record)
