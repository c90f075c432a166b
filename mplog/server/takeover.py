"""What `LogServer.start` does to the logging of the program, and what `LogServer.stop` puts back.

Changes that the program makes meanwhile stay. Servers may stop in any order: one that stops before a
later one hands its findings on to the later one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from mplog.queue.locks import give_locks
from mplog.queue.log_queue import LogQueue
from mplog.worker.attach import MPLOG_QUEUE
from mplog.worker.initializer import install
from mplog.worker.levels import LevelChanges
from mplog.worker.logger import Logger, set_logger_class
from mplog.worker.state import Layout, LoggingState, all_loggers, forget_filters, note_filters

if TYPE_CHECKING:
    from mplog.config.logging_config import LoggingConfig


class Takeover:
    """The logging of the program before a server started, and while it runs."""

    #: Those that are not undone, the latest last.
    _active: ClassVar[list[Takeover]] = []
    _lock: ClassVar[threading.RLock]

    def __init__(self, queue: Any, config: LoggingConfig | None, layout: Layout, for_attached: Layout) -> None:
        self._queue = queue
        self._config = config
        self._layout = layout
        self._for_attached = for_attached
        self._changes: LevelChanges | None = None
        self._handler: logging.Handler | None = None

    def apply(self, level: int | None, logger_class: type[logging.Logger]) -> None:
        """Take over: one QueueHandler, and the levels, filters and logger class that the server is to have."""
        with self._lock:
            self._active.append(self)
            self._before = self._ours = _Logging.now()
            if self._config is not None:
                self._config.apply()
                note_filters(self._layout.filters, self._config.filters)
            if isinstance(self._queue, LogQueue):  # only now does the supervisor look after such files
                self._changes = LevelChanges(self._queue.directory)
            self._handler = install(self._queue, layout=self._layout)
            if level is not None:
                logging.getLogger().setLevel(level)
            if logger_class is Logger:
                set_logger_class(Logger)
            if isinstance(self._queue, LogQueue):
                os.environ[MPLOG_QUEUE] = self._queue.directory
            self._ours = _Logging.now()
            self._save_state()
            if self._config is not None:
                self._config.release_files(self._taken_off())

    def set_level(self, name: str, level: int) -> None:
        """Set a logger's level, and tell the workers; if that raises OSError, neither is done."""
        with self._lock:
            logger = logging.getLogger(name)
            before = _LoggerState.of(logger)
            logger.setLevel(level)
            logger.disabled = False
            try:
                self._save_state()
                if self._changes is not None:
                    self._changes.set(name, level)
            except OSError:
                logger.setLevel(before.level)
                logger.disabled = before.disabled
                with contextlib.suppress(OSError):
                    self._save_state()
                raise
            self._before.loggers.setdefault(name, before)
            ours = self._ours.loggers.get(name, before)
            self._ours.loggers[name] = msgspec.structs.replace(ours, level=level, disabled=False)

    def _save_state(self) -> None:
        """Write the state of the loggers where `mplog.attach` finds it."""
        queue = self._queue
        if isinstance(queue, LogQueue):
            state = LoggingState.capture(self._for_attached)
            settings = {"details": queue.details, "overflow": queue.overflow, "sync": queue.sync}
            msgspec.structs.replace(state, **settings).save(queue.directory)

    def _taken_off(self) -> list[logging.Handler]:
        """Return the handlers that no logger has while the server runs."""
        before, ours = (
            [handler for logger in state.loggers.values() for handler in logger.handlers]
            for state in (self._before, self._ours)
        )
        return [handler for handler in before if handler not in ours]

    def undo(self) -> None:
        """Put everything back."""
        with self._lock:
            if self not in self._active:
                return
            if self._config is not None:
                self._config.give_back(self._taken_off())
            index = self._active.index(self)
            self._active.remove(self)
            if index < len(self._active):
                above = self._active[index]
                above._before = self._without_ours(above._before)
            else:
                self._without_ours(_Logging.now()).restore()
            if self._config is not None:
                forget_filters(self._layout.filters)

    def _without_ours(self, state: _Logging) -> _Logging:
        """Return the state without what this server has changed."""
        before, ours = self._before, self._ours
        loggers = {}
        for name, now in state.loggers.items():
            changed = ours.loggers.get(name)
            untouched = before.loggers.get(name, _UNTOUCHED)
            loggers[name] = now if changed is None else now.without(changed, untouched, self._handler)
        return _Logging(
            loggers,
            before.logger_class if state.logger_class is ours.logger_class else state.logger_class,
            before.environment if state.environment == ours.environment else state.environment,
            before.record_factory if state.record_factory is ours.record_factory else state.record_factory,
        )


give_locks(Takeover, "_lock")


class _LoggerState(msgspec.Struct, frozen=True):
    """What a server may change of a logger."""

    handlers: list[logging.Handler]
    filters: list[Any]
    level: int
    propagate: bool
    disabled: bool

    @classmethod
    def of(cls, logger: logging.Logger) -> _LoggerState:
        return cls(logger.handlers[:], logger.filters[:], logger.level, logger.propagate, logger.disabled)

    def without(self, ours: _LoggerState, before: _LoggerState, handler: logging.Handler | None) -> _LoggerState:
        """Return this state without what made `ours` of `before`; what the program has changed since stays."""
        handlers = self.handlers
        if handler in handlers or handler not in ours.handlers:
            added = [each for each in handlers if each not in ours.handlers]
            handlers = [each for each in before.handlers if each not in added] + added
        new_filters = [each for each in ours.filters if each not in before.filters]
        return _LoggerState(
            handlers,
            [each for each in self.filters if each not in new_filters],
            before.level if self.level == ours.level else self.level,
            before.propagate if self.propagate == ours.propagate else self.propagate,
            before.disabled if self.disabled == ours.disabled else self.disabled,
        )

    def restore(self, logger: logging.Logger) -> None:
        logger.handlers, logger.filters = self.handlers, self.filters
        logger.propagate, logger.disabled = self.propagate, self.disabled
        if logger.level != self.level:
            logger.setLevel(self.level)


#: A logger that was made while the server ran.
_UNTOUCHED = _LoggerState([], [], logging.NOTSET, True, False)


class _Logging(msgspec.Struct):
    """What a server changes in its process: loggers, the class of new ones, what makes records, and the environment."""

    loggers: dict[str, _LoggerState]
    logger_class: type[logging.Logger]
    environment: str | None
    record_factory: Any

    @classmethod
    def now(cls) -> _Logging:
        loggers = {name: _LoggerState.of(logger) for name, logger in all_loggers().items()}
        return cls(loggers, logging.getLoggerClass(), os.environ.get(MPLOG_QUEUE), logging.getLogRecordFactory())

    def restore(self) -> None:
        now = {name: _LoggerState.of(logger) for name, logger in all_loggers().items()}
        for name, state in self.loggers.items():
            if state != now.get(name):
                state.restore(logging.getLogger(name))
        if self.logger_class is not logging.getLoggerClass():
            set_logger_class(self.logger_class)
        logging.setLogRecordFactory(self.record_factory)
        if self.environment is None:
            os.environ.pop(MPLOG_QUEUE, None)
        else:
            os.environ[MPLOG_QUEUE] = self.environment
