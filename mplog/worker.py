"""What runs in a worker, once: `Initializer`, `attach`.

The rule of this file: **a worker's root logger has exactly one handler, a QueueHandler.** Handlers that came with a
fork are taken off, so that nothing is written twice; levels are what they are in the process that started the server.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

import msgspec

from mplog.errors import QueueNotFoundError
from mplog.handler import QueueHandler
from mplog.portable import Portable
from mplog.queue import LogQueue

__all__ = ["MPLOG_QUEUE", "Initializer", "LoggingState", "attach", "install"]

#: The environment variable that names the directory of a running server's queue.
MPLOG_QUEUE = "MPLOG_QUEUE"

_STATE_NAME = "logging"


class LoggingState(msgspec.Struct, frozen=True):
    """The levels of a process's loggers, as data.

    Attributes:
        level: the root logger's.
        levels: those of the loggers that have one of their own, by name.
        isolated: the loggers whose ``propagate`` is off.
        disabled: the loggers that are disabled.
        disable: what ``logging.disable()`` has set.
        level_names: the names that ``logging.addLevelName()`` has set.
        fast: whether the loggers are of `mplog.Logger`.
    """

    level: int
    levels: dict[str, int]
    isolated: list[str]
    disabled: list[str]
    disable: int
    level_names: dict[int, str]
    fast: bool

    @classmethod
    def capture(cls) -> LoggingState:
        """Return the state of this process."""
        manager = logging.Logger.manager
        loggers = [logger for logger in list(manager.loggerDict.values()) if isinstance(logger, logging.Logger)]
        return cls(
            level=logging.getLogger().level,
            levels={logger.name: logger.level for logger in loggers if logger.level != logging.NOTSET},
            isolated=[logger.name for logger in loggers if not logger.propagate],
            disabled=[logger.name for logger in loggers if logger.disabled],
            disable=int(manager.disable),
            level_names={number: name for number, name in _level_names().items() if isinstance(number, int)},
            fast=logging.getLoggerClass().__module__ == "mplog.logger",
        )

    def apply(self) -> None:
        """Give this process's loggers the same levels."""
        for number, name in self.level_names.items():
            if logging.getLevelName(number) != name:
                logging.addLevelName(number, name)
        logging.getLogger().setLevel(self.level)
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)
        for name in self.isolated:
            logging.getLogger(name).propagate = False
        for name in self.disabled:
            logging.getLogger(name).disabled = True
        logging.disable(self.disable)
        if self.fast:
            from mplog.logger import Logger, set_logger_class

            set_logger_class(Logger)

    def save(self, directory: str) -> None:
        """Write it where `attach` finds it."""
        with open(os.path.join(directory, _STATE_NAME), "wb") as file:
            file.write(msgspec.json.encode(self))

    @classmethod
    def load(cls, directory: str) -> LoggingState:
        """Read what `save` wrote."""
        with open(os.path.join(directory, _STATE_NAME), "rb") as file:
            return msgspec.json.decode(file.read(), type=cls)


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
        state: the levels to set; None (the default) takes them from the process that pickles the initializer.
        calls: functions and their arguments, to call behind it in this order.
    """

    def __init__(
        self,
        queue: Any,
        *,
        state: LoggingState | None = None,
        calls: tuple[tuple[Callable[..., object], tuple[Any, ...]], ...] = (),
    ) -> None:
        self._queue = queue
        self._state = state
        self._calls = calls

    def then(self, function: Callable[..., object], *arguments: Any) -> Initializer:
        """Return an initializer that does the same and then calls ``function(*arguments)``."""
        return Initializer(self._queue, state=self._state, calls=(*self._calls, (Portable(function), arguments)))

    def __call__(self, *_: object) -> None:
        """Runs in the worker."""
        install(self._queue, self._state)
        for function, arguments in self._calls:
            function(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _initializer, (self._queue, self._state or LoggingState.capture(), self._calls)


def _initializer(queue: Any, state: LoggingState, calls: Any) -> Initializer:
    return Initializer(queue, state=state, calls=calls)


def install(queue: Any, state: LoggingState | None = None) -> QueueHandler:
    """Make a QueueHandler on `queue` the only handler of the root logger, and return it.

    A handler on the same queue that is there already, after a fork or a second call, stays.
    """
    if isinstance(queue, LogQueue):
        with contextlib.suppress(OSError):  # which the first record tells
            queue.connect()
    root = logging.getLogger()
    present = [handler for handler in root.handlers if isinstance(handler, QueueHandler) and _sends_to(handler, queue)]
    handler = present[0] if present else QueueHandler(queue)
    # One assignment: another thread that logs in the meantime sees the old list or the new one.
    root.handlers = [handler]
    if state is not None:
        state.apply()
    return handler


def _sends_to(handler: QueueHandler, queue: Any) -> bool:
    if isinstance(queue, LogQueue) and isinstance(handler.queue, LogQueue):
        return queue.directory == handler.queue.directory
    return handler.queue is queue


def attach(directory: str | os.PathLike[str] | None = None, *, level: int | str | None = None) -> QueueHandler:
    """Send the records of this process to a running server. For processes that were started by other means.

    Args:
        directory: the directory of the server's queue (``server.queue.directory``). None (the default) takes it from
            the environment variable ``MPLOG_QUEUE``, which a running server sets for the processes that its own
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
            "in processes that a program with a running LogServer starts. Start one, or pass server.queue.directory."
        )
    queue = LogQueue.open(where)
    state = None
    with contextlib.suppress(OSError, ValueError):
        state = LoggingState.load(where)
    handler = install(queue, state)
    if level is not None:
        logging.getLogger().setLevel(level)
    return handler
