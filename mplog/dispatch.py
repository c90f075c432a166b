"""From records to handlers. Runs in the logging process.

The rule of this file: **records are handled as in one process, and handlers cannot hurt each other.** A record goes up
the hierarchy of loggers, to each handler whose level and filters let it through, just as ``Logger.callHandlers`` sends
it. What a handler raises stays with that handler: it is counted, and said in the log once in a while.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable

from mplog.record import Record, decode, encode, safe_str
from mplog.sinks import LogFileHandler

__all__ = ["Dispatcher"]

#: Seconds between two lines about the same trouble.
REPORT_INTERVAL = 10.0

# Names and pids come off the wire, so what is kept of them has a bound.
_CACHED_NAMES = 10_000
_COUNTED_PROCESSES = 10_000


class Dispatcher:
    """Give records to the handlers of this process's loggers.

    Attributes:
        received: records per sending process, as (process name, pid); from the 10,001st
            process on, those of ("others", 0).
        failed: records that a handler could not write, by handler.
    """

    def __init__(self, handlers: Iterable[logging.Handler], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.received: Counter[tuple[str, int]] = Counter()
        self.failed: Counter[str] = Counter()
        self._troubles: dict[str, _Trouble] = {}
        self._clock = clock
        self._loggers: dict[str, logging.Logger] = {}
        self._saying = False
        self._unheard = 0
        self._handlers = list(handlers)
        for handler in self._handlers:
            self._isolate(handler)

    def _isolate(self, handler: logging.Handler) -> None:
        """Have the handler report to us what it could not write, on top of what it does about it itself."""
        own = type(handler).handleError

        def handle_error(record: logging.LogRecord) -> None:
            self._note(handler, sys.exc_info()[1])
            if own is not logging.Handler.handleError:
                own(handler, record)

        handler.handleError = handle_error  # type: ignore[method-assign]

    def handle(self, record: Record) -> None:
        """Send the record to the handlers of its logger and of those above it."""
        sender = record.processName or "", record.process or 0
        if len(self.received) >= _COUNTED_PROCESSES and sender not in self.received:
            sender = "others", 0
        self.received[sender] += 1
        self._call_handlers(record)

    def _call_handlers(self, record: logging.LogRecord) -> None:
        logger: logging.Logger | None = self._loggers.get(record.name) or self._find_logger(record.name)
        while logger is not None:
            for handler in logger.handlers:
                if record.levelno >= handler.level:
                    try:
                        handler.handle(record)
                    except BaseException as error:  # SystemExit, too: a handler does not end the logging process
                        self._note(handler, error)
            if not logger.propagate:
                break
            logger = logger.parent

    def _find_logger(self, name: str) -> logging.Logger:
        """Return the logger of that name, or the nearest above it: names off the wire make no new loggers."""
        if len(self._loggers) >= _CACHED_NAMES:
            self._loggers.clear()
        loggers = logging.Logger.manager.loggerDict
        nearest = name
        while nearest:
            logger = loggers.get(nearest)
            if isinstance(logger, logging.Logger):
                break
            nearest = nearest.rpartition(".")[0]
        else:
            logger = logging.getLogger()
        assert isinstance(logger, logging.Logger)
        self._loggers[name] = logger
        return logger

    def flush(self) -> None:
        """Have the batch written. Handlers that write each record by themselves have nothing to do."""
        for handler in self._handlers:
            if isinstance(handler, LogFileHandler):
                try:
                    handler.flush()
                except BaseException as error:
                    self._note(handler, error)

    def close(self) -> None:
        """Say what has not been said yet, and close the handlers, each whatever the others do."""
        self.flush()
        self.report(everything=True)
        for handler in self._handlers:
            for step in (handler.flush, handler.close):
                try:
                    step()
                except BaseException as error:
                    self._note(handler, error)
        self._handlers = []
        self.report(everything=True)  # what happened meanwhile, to stderr

    # --- troubles ---

    def _note(self, handler: logging.Handler, error: BaseException | None) -> None:
        if self._saying:
            # A line of ours that cannot be written is no trouble to write about.
            self._unheard += 1
            return
        name = _describe(handler)
        self.failed[name] += 1
        self.warn(f"records could not be written by {name}", error)

    def warn(self, what: str, error: BaseException | None = None, count: int = 1) -> None:
        """Have something said in the log, but the same thing once an interval only.

        Args:
            what: what has happened, worded to follow a number: "records could not be written by ...".
            error: its latest cause.
            count: how many times it has happened.
        """
        trouble = self._troubles.setdefault(what, _Trouble())
        trouble.unsaid += count
        if error is not None:
            trouble.error = f": {type(error).__name__}: {safe_str(error)}"

    @property
    def has_unsaid(self) -> bool:
        """Whether there is something left to `report`."""
        return any(trouble.unsaid for trouble in self._troubles.values())

    def report(self, *, everything: bool = False) -> None:
        """Write the lines that are due."""
        now = self._clock()
        for what, trouble in list(self._troubles.items()):
            if trouble.unsaid and (everything or now >= trouble.due):
                trouble.due = now + REPORT_INTERVAL
                self.say(trouble.line(what), logging.ERROR)

    def say(self, message: str, level: int = logging.WARNING) -> None:
        """Write a line of our own: to the log, and to stderr where no handler could write it."""
        self._unheard = 0
        self._saying = True
        try:
            self._call_handlers(decode(encode(logging.LogRecord("mplog", level, __file__, 0, message, None, None))))
            self.flush()
        finally:
            self._saying = False
        if self._unheard >= len(self._handlers) and sys.stderr is not None:
            print(message, file=sys.stderr, flush=True)


class _Trouble:
    """One kind of trouble: how often it has happened since it was last said, and when it may be said again."""

    def __init__(self) -> None:
        self.unsaid = 0
        self.error = ""
        self.due = 0.0

    def line(self, what: str) -> str:
        """Return the line to say, which so is said."""
        line = f"mplog: {self.unsaid} {what}{self.error}"
        self.unsaid = 0
        return line


def _describe(handler: logging.Handler) -> str:
    try:
        return repr(handler)
    except Exception:
        return type(handler).__name__
