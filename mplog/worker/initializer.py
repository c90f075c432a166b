"""`Initializer`: what a worker calls once, to log to a server.

A worker's root logger has exactly one handler, a QueueHandler. Handlers that came with a fork are taken off, so that
nothing is written twice. With a configuration, the QueueHandler is at the last logger with handlers on a record's way
up, so that it sees each record once, and no record that would be written nowhere.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable
from typing import Any

from mplog.queue.directory import is_writable
from mplog.queue.log_queue import LogQueue
from mplog.record.context import forget_inherited
from mplog.record.encoding import encode
from mplog.record.factory import install_factory
from mplog.worker import levels
from mplog.worker.queue_handler import QueueHandler
from mplog.worker.state import Layout, LoggingState


class Initializer:
    """Send the records of the calling process to a server. Picklable, and safe to call again.

    Give it to pools and executors as their initializer. Arguments are ignored. Pickling it takes along the levels that
    the loggers of the pickling process have at that moment.

    >>> pool = Pool(4, initializer=server.initializer)                                 # doctest: +SKIP
    >>> pool = Pool(4, initializer=server.initializer.then(connect, "db://"))          # doctest: +SKIP

    Args:
        queue: the queue of the server.
        layout: what the server's configuration puts where; None (the default) for a server without one.
        state: the levels to set; None (the default) takes them from the process that pickles the initializer.
        calls: functions and their arguments, to call afterwards in this order.
    """

    def __init__(
        self,
        queue: Any,
        *,
        layout: Layout | None = None,
        state: LoggingState | None = None,
        calls: tuple[tuple[Callable[..., object], tuple[Any, ...]], ...] = (),
    ) -> None:
        self._queue = queue
        self._layout = layout if state is None else state.layout
        self._state = state
        self._calls = calls

    def then(self, function: Callable[..., object], *arguments: Any) -> Initializer:
        """Return an initializer that does the same and then calls ``function(*arguments)``."""
        from mplog.record.portable import Portable  # few workers need it

        call: tuple[Callable[..., object], tuple[Any, ...]] = (Portable(function), arguments)
        return Initializer(self._queue, layout=self._layout, state=self._state, calls=(*self._calls, call))

    def __call__(self, *_: object) -> None:
        """Runs in the worker."""
        forget_inherited()
        install(self._queue, self._state, self._layout)
        for function, arguments in self._calls:
            function(*arguments)

    # loky restarts its workers when their initializer has changed, and gets another object each time.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Initializer) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash((self._queue, len(self._calls)))

    def _parts(self) -> tuple[Any, ...]:
        return self._queue, self._layout, self._state, self._calls

    def __reduce__(self) -> tuple[Any, ...]:
        state = self._state or LoggingState.capture(self._layout)
        return functools.partial(Initializer, self._queue, state=state, calls=self._calls), ()


def install(queue: Any, state: LoggingState | None = None, layout: Layout | None = None) -> QueueHandler:
    """Make a QueueHandler on `queue` the only handler of the loggers that send, and return it.

    After a fork or a second call, a handler on the same queue is there already, and stays.
    """
    layout = layout or Layout()
    if isinstance(queue, LogQueue):
        with contextlib.suppress(OSError):  # the first record reports it
            queue.sender.open()  # the reader then waits for this process, also before its first record
    senders = [logging.getLogger(name) for name in layout.senders]
    there = [handler for logger in senders for handler in logger.handlers]
    present = [handler for handler in there if isinstance(handler, QueueHandler) and _sends_to(handler, queue)]
    if layout.preparation and isinstance(queue, LogQueue):
        queue.preparation = layout.preparation  # for other handlers of this process
    handler = present[0] if present else make_handler(queue, layout)
    if layout.preparation:
        handler.prepare_with(layout.preparation)
    # One assignment each: another thread that logs at this moment sees the old list or the new one.
    for logger in senders:
        logger.handlers = [handler]
    for name in {"", *layout.emptied} - {*layout.senders}:
        logging.getLogger(name).handlers = []
    if state is not None:
        state.apply(handler)
    install_factory()
    if isinstance(queue, LogQueue):
        levels.watch(queue)
        missing = _what_is_missing(queue)
        if missing:
            handler.handle(logging.LogRecord("mplog", logging.WARNING, __file__, 0, missing, None, None))
    return handler


def _what_is_missing(queue: LogQueue) -> str:
    """Return what this process cannot do, as another user than the server's, or in another root directory."""
    who = f"mplog: pid {os.getpid()} (uid {os.geteuid()})"
    if not is_writable(queue.directory):
        if queue.sender.write_fd < 0 and not os.path.lexists(queue.directory):
            return ""  # the server has ended
        return (
            f"{who} cannot make files in {queue.directory}: its user or root directory is not that of the server. Its "
            "records arrive as long as it has the queue open, and what it drops is counted. But calls at sync_level do "
            "not wait for the disk, no record goes into the emergency file, and changes of levels are not noticed. "
            "Start the server with LogServer(group=...), a group of this process."
        )
    overflow = queue.overflow
    uses_file = overflow.policy != "block" or overflow.timeout is not None
    with contextlib.suppress(OSError):
        if uses_file and os.geteuid() != os.fstat(queue.sender.write_fd).st_uid:
            return (
                f"{who} is another user than the server, so it cannot write into the emergency file. What would go "
                "there when the queue is full is dropped, and counted."
            )
    return ""


def make_handler(queue: Any, layout: Layout) -> QueueHandler:
    """Return a QueueHandler on `queue`, on no logger yet."""
    return (_ArgsHandler if layout.with_args else QueueHandler)(queue)


class _ArgsHandler(QueueHandler):
    """Sends the arguments of the message, too."""

    def prepare(self, record: logging.LogRecord) -> bytes:
        sender = self.sender
        if sender is None:
            return encode(record, with_args=True)
        return encode(record, next(sender.sequence), sender.details, with_args=True)


def _sends_to(handler: QueueHandler, queue: Any) -> bool:
    if isinstance(queue, LogQueue) and isinstance(handler.queue, LogQueue):
        return queue.directory == handler.queue.directory
    return handler.queue is queue
