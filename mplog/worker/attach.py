"""What runs in a worker, once: `Initializer`, `attach`.

The rule of this file: **a worker's root logger has exactly one handler, a QueueHandler.** Handlers that came with a
fork are taken off, so that nothing is written twice; levels are what they are in the process that started the server.
With a configuration the QueueHandler is where the handlers are: at the last logger on a record's way up that has any,
so that it sees each record once, and none that would be written nowhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

import msgspec

from mplog.errors import QueueNotFoundError
from mplog.queue.log_queue import LogQueue
from mplog.queue.overflow import Overflow
from mplog.queue.sync import Sync
from mplog.record.context import start_anew
from mplog.record.factory import install_factory
from mplog.record.layout import encode
from mplog.record.portable import Portable, load
from mplog.worker import levels
from mplog.worker.queue_handler import QueueHandler

__all__ = [
    "MPLOG_QUEUE",
    "Initializer",
    "Layout",
    "LoggingState",
    "all_loggers",
    "attach",
    "brought_filters",
    "forget_filters",
    "install",
    "make_handler",
    "note_filters",
    "queue_directory",
]

#: The environment variable that names the directory of a running server's queue.
MPLOG_QUEUE = "MPLOG_QUEUE"

_STATE_NAME = "logging"


class Layout(msgspec.Struct, frozen=True):
    """What a configuration puts where, as data.

    Attributes:
        senders: the loggers that get the QueueHandler; "" is the root logger.
        emptied: the other loggers that it sets up, which have no handlers outside the logging process.
        filters: pickled lists of filters, by logger.
        with_args: the arguments of messages travel, too, for formatters and handlers that may look at them.
        preparation: see `LogQueue.preparation`.
    """

    senders: tuple[str, ...] = ("",)
    emptied: tuple[str, ...] = ()
    filters: dict[str, bytes] = {}
    with_args: bool = False
    preparation: bytes = b""


class LoggingState(msgspec.Struct, frozen=True):
    """The levels of a process's loggers, as data.

    Attributes:
        layout: what a configuration puts where.
        level: the root logger's.
        levels: those of the loggers that have one of their own, by name.
        isolated: the loggers whose ``propagate`` is off.
        silenced: those of them that have a ``NullHandler`` and no other.
        cut_off: those of them that have handlers, which exist in that process alone.
        disabled: the loggers that are disabled.
        disable: what ``logging.disable()`` has set.
        level_names: the names that ``logging.addLevelName()`` has set.
        fast: whether the loggers are of `mplog.Logger`.
        details, overflow, sync: see `LogQueue`.
    """

    layout: Layout
    level: int
    levels: dict[str, int]
    isolated: list[str]
    silenced: list[str]
    cut_off: list[str]
    disabled: list[str]
    disable: int
    level_names: dict[int, str]
    fast: bool
    details: bool = True
    overflow: Overflow = Overflow()
    sync: Sync | None = None

    @classmethod
    def capture(cls, layout: Layout | None = None) -> LoggingState:
        """Return the state of this process."""
        manager = logging.Logger.manager
        loggers = [logger for name, logger in all_loggers().items() if name]
        layout = layout or Layout()
        # As a copy: another thread may be changing them.
        isolated = {logger.name: logger.handlers[:] for logger in loggers if not logger.propagate}
        is_null = {
            name: all(isinstance(handler, logging.NullHandler) for handler in handlers)
            for name, handlers in isolated.items()
            if handlers and name not in layout.senders
        }
        return cls(
            layout=layout,
            level=logging.getLogger().level,
            levels={logger.name: logger.level for logger in loggers if logger.level != logging.NOTSET},
            isolated=list(isolated),
            silenced=[name for name, null in is_null.items() if null],
            cut_off=[name for name, null in is_null.items() if not null],
            disabled=[logger.name for logger in loggers if logger.disabled],
            disable=int(manager.disable),
            level_names={number: name for number, name in _level_names().items() if isinstance(number, int)},
            fast=logging.getLoggerClass().__module__ == "mplog.worker.logger",
        )

    def apply(self, handler: QueueHandler) -> None:
        """Give this process's loggers the same levels and filters, and `handler` to those that are cut off."""
        for number, name in self.level_names.items():
            if logging.getLevelName(number) != name:
                logging.addLevelName(number, name)
        logging.getLogger().setLevel(self.level)
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)
        for name in self.isolated:
            logging.getLogger(name).propagate = False
        for name in self.silenced:
            if not logging.getLogger(name).handlers:
                logging.getLogger(name).addHandler(logging.NullHandler())
        for name in self.cut_off:
            # Rather in the server's log than nowhere; where its root logger writes nothing, stderr is left.
            if "" in self.layout.senders and not logging.getLogger(name).handlers:
                logging.getLogger(name).addHandler(handler)
        for name in self.disabled:
            logging.getLogger(name).disabled = True
        logging.disable(self.disable)
        _add_filters(self.layout.filters)
        if self.fast:
            from mplog.worker.logger import Logger, set_logger_class

            set_logger_class(Logger)

    def save(self, directory: str) -> None:
        """Write it where `attach` finds it."""
        path = os.path.join(directory, _STATE_NAME)
        with open(f"{path}.new", "wb") as file:
            file.write(msgspec.json.encode(self))
        os.replace(f"{path}.new", path)  # whole, also for who attaches at this moment

    @classmethod
    def load(cls, directory: str) -> LoggingState:
        """Read what `save` wrote."""
        with open(os.path.join(directory, _STATE_NAME), "rb") as file:
            return msgspec.json.decode(file.read(), type=cls)


def all_loggers() -> dict[str, logging.Logger]:
    """Return the loggers of this process by name; the root logger is ""."""
    known = list(logging.Logger.manager.loggerDict.items())
    return {"": logging.getLogger(), **{name: logger for name, logger in known if isinstance(logger, logging.Logger)}}


#: What `_add_filters` has added to a logger: the pickle, and the filters.
_filters: dict[str, tuple[bytes, list[Any]]] = {}


def _add_filters(pickled: dict[str, bytes]) -> None:
    """Give the loggers their filters, once."""
    for name, data in pickled.items():
        if name in _filters:
            if _filters[name][0] == data:
                continue
            for filter in _filters[name][1]:
                logging.getLogger(name).removeFilter(filter)
        filters = load(data)
        for filter in filters:
            logging.getLogger(name).addFilter(filter)
        _filters[name] = data, filters


def brought_filters(name: str) -> list[Any]:
    """Return the filters of a logger that have come from the server."""
    return _filters[name][1] if name in _filters else []


def note_filters(pickled: dict[str, bytes], filters: dict[str, list[Any]]) -> None:
    """Remember that the loggers of this process have these filters, for the processes that are forked from it."""
    for name, data in pickled.items():
        _filters[name] = data, filters[name]


def forget_filters(pickled: dict[str, bytes]) -> None:
    """Forget what `note_filters` has noted."""
    for name, data in pickled.items():
        if name in _filters and _filters[name][0] == data:
            del _filters[name]


def _level_names() -> dict[Any, Any]:
    # logging has a public way to ask for one name, and from 3.11 on for those by name, but none for all by number.
    return dict(logging._levelToName)


class Initializer:
    """Send the records of the process that calls it to a server. Picklable, and safe to call again.

    Give it to whatever starts processes as their initializer, with any arguments: it takes and ignores them. Pickling
    takes a picture of the logger levels of the process that pickles it.

    >>> pool = Pool(4, initializer=server.initializer)                                 # doctest: +SKIP
    >>> pool = Pool(4, initializer=server.initializer.then(connect, "db://"))          # doctest: +SKIP

    Args:
        queue: the queue of the server.
        layout: what the server's configuration puts where; None (the default) for a server without one.
        state: the levels to set; None (the default) takes them from the process that pickles the initializer.
        calls: functions and their arguments, to call behind it in this order.
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
        call: tuple[Callable[..., object], tuple[Any, ...]] = (Portable(function), arguments)
        return Initializer(self._queue, layout=self._layout, state=self._state, calls=(*self._calls, call))

    def __call__(self, *_: object) -> None:
        """Runs in the worker."""
        start_anew()
        install(self._queue, self._state, self._layout)
        for function, arguments in self._calls:
            function(*arguments)

    # What starts workers anew when their initializer has changed, as loky does, is given another object each time.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Initializer) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash((self._queue, len(self._calls)))

    def _parts(self) -> tuple[Any, ...]:
        return self._queue, self._layout, self._state, self._calls

    def __reduce__(self) -> tuple[Any, ...]:
        return _initializer, (self._queue, self._state or LoggingState.capture(self._layout), self._calls)


def _initializer(queue: Any, state: LoggingState, calls: Any) -> Initializer:
    return Initializer(queue, state=state, calls=calls)


def install(queue: Any, state: LoggingState | None = None, layout: Layout | None = None) -> QueueHandler:
    """Make a QueueHandler on `queue` the only handler of the loggers that send, and return it.

    A handler on the same queue that is there already, after a fork or a second call, stays.
    """
    layout = layout or Layout()
    if isinstance(queue, LogQueue):
        with contextlib.suppress(OSError):  # which the first record tells
            queue.connect()
    senders = [logging.getLogger(name) for name in layout.senders]
    there = [handler for logger in senders for handler in logger.handlers]
    present = [handler for handler in there if isinstance(handler, QueueHandler) and _sends_to(handler, queue)]
    if layout.preparation and isinstance(queue, LogQueue):
        queue.preparation = layout.preparation  # for other handlers of this process
    handler = present[0] if present else make_handler(queue, layout)
    if layout.preparation:
        handler.prepare_with(layout.preparation)
    # One assignment each: another thread that logs in the meantime sees the old list or the new one.
    for logger in senders:
        logger.handlers = [handler]
    for name in {"", *layout.emptied} - {*layout.senders}:
        logging.getLogger(name).handlers = []
    if state is not None:
        state.apply(handler)
    install_factory()
    if isinstance(queue, LogQueue):
        levels.watch(queue.directory)
    return handler


def make_handler(queue: Any, layout: Layout) -> QueueHandler:
    """Return a QueueHandler on `queue`, on no logger yet."""
    return (_ArgsHandler if layout.with_args else QueueHandler)(queue)


class _ArgsHandler(QueueHandler):
    """Sends the arguments of the message, too."""

    def prepare(self, record: logging.LogRecord) -> bytes:
        queue: Any = self.queue
        if isinstance(queue, LogQueue):
            return encode(record, next(queue.sequence), queue.details, with_args=True)
        return encode(record, with_args=True)


def _sends_to(handler: QueueHandler, queue: Any) -> bool:
    if isinstance(queue, LogQueue) and isinstance(handler.queue, LogQueue):
        return queue.directory == handler.queue.directory
    return handler.queue is queue


def queue_directory(where: str) -> str:
    """Return the directory of a queue that is named by it, or by a log that its server writes.

    Raises:
        QueueNotFoundError: it is a file that no server of this user writes.
    """
    if not os.path.isfile(where):
        return where
    from mplog.monitoring.running import find_writer  # here, because few programs need it

    return find_writer(where)


def attach(directory: str | os.PathLike[str] | None = None, *, level: int | str | None = None) -> QueueHandler:
    """Send the records of this process to a running server. For processes that were started by other means.

    Args:
        directory: the directory of the server's queue (``server.queue.directory``), or the log that it writes, which
            tells the servers of this user that have the same ``TMPDIR`` from each other. None (the default) takes it
            from the environment variable ``MPLOG_QUEUE``, which a running server sets for the processes that its own
            process starts.
        level: the root logger's level; None (the default) takes all levels as they were in the process of the server
            when that started.

    Returns:
        The handler, now the only one of the root logger.

    Raises:
        QueueNotFoundError: there is no such server, or neither `directory` nor ``MPLOG_QUEUE`` is given.
    """
    where = os.fspath(directory) if directory is not None else os.environ.get(MPLOG_QUEUE)
    if not where:
        raise QueueNotFoundError(
            f"attach() does not know which server to use: the environment variable {MPLOG_QUEUE} is not set, as it is "
            "in processes that a program with a running LogServer starts. Start one, or pass server.queue.directory or "
            "the path of its log."
        )
    where = queue_directory(where)
    queue = LogQueue.open(where)
    state = None
    with contextlib.suppress(OSError, ValueError):
        state = LoggingState.load(where)
        queue.details, queue.overflow, queue.sync = state.details, state.overflow, state.sync
    handler = install(queue, state, state.layout if state is not None else None)
    if level is not None:
        logging.getLogger().setLevel(level)
    return handler
