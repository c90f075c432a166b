"""From records to handlers. Runs in the logging process.

The rule of this file: **records are handled as in one process, and handlers cannot hurt each other.** A record goes up
the hierarchy of loggers, to each handler whose level and filters let it through, just as ``Logger.callHandlers`` sends
it, but a batch at a time: where all its handlers write texts, the batch is rendered in one pass and no LogRecord is
made. A handler with a method ``handle_batch(records)`` gets its part of a batch, filtered, at once, any other a record
at a time. What a handler raises stays with that handler: it is counted, and said in the log once in a while.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mplog.plain import safe_str
from mplog.record import (
    LEVELNO,
    NAME,
    PROCESS,
    PROCESS_NAME,
    SHOWN_VALUES,
    Record,
    Values,
    decode_values,
    encode,
    to_record,
)
from mplog.sinks import TextHandler

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
        self._plans: dict[str | None, tuple[logging.Handler, ...]] = {}
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

    def handle(self, batch: Sequence[Values]) -> None:
        """Send a batch to the handlers of its records' loggers and of those above them.

        Each handler gets its records in the order in which they arrived.
        """
        for sender, count in Counter(
            [(values[PROCESS_NAME], values[SHOWN_VALUES][PROCESS]) for values in batch]
        ).items():
            known = sender in self.received or len(self.received) < _COUNTED_PROCESSES
            self.received[sender if known else ("others", 0)] += count
        self._deliver(batch)
        self.flush()

    def _deliver(self, batch: Sequence[Values]) -> None:
        plans = {name: self._plan(name) for name in {values[SHOWN_VALUES][NAME] for values in batch}}
        # Each before those of the loggers above its own: as many are behind it in every plan that it is in.
        behind = {handler: len(plan) - place for plan in plans.values() for place, handler in enumerate(plan)}
        handlers = sorted(behind, key=behind.__getitem__, reverse=True)
        # A handler may change a record for those behind it, unless all of them only write it.
        only_text = all(isinstance(handler, TextHandler) and not handler.filters for handler in handlers)
        records = [] if only_text else self._to_records(batch)

        def reaches(values: Values, handler: logging.Handler) -> bool:
            shown = values[SHOWN_VALUES]
            return (shown[LEVELNO] or 0) >= handler.level and handler in plans[shown[NAME]]

        for handler in handlers:
            if only_text:
                everything = handler.level == logging.NOTSET and all(handler in plan for plan in plans.values())
                chosen = batch if everything else [values for values in batch if reaches(values, handler)]
                self._guard(handler, len(chosen), handler.handle_values, chosen)  # type: ignore[attr-defined]
                continue
            passed = [
                record for values, record in zip(batch, records) if record is not None and reaches(values, handler)
            ]
            if hasattr(handler, "handle_batch"):
                passed = self._filtered(handler, passed)
                if passed:
                    self._guard(handler, len(passed), handler.handle_batch, passed)
            else:
                for record in passed:
                    self._guard(handler, 1, handler.handle, record)

    def _guard(self, handler: logging.Handler, count: int, function: Callable[[Any], object], argument: Any) -> None:
        try:
            function(argument)
        except BaseException as error:  # SystemExit, too: a handler does not end the logging process
            self._note(handler, error, count)

    def _filtered(self, handler: logging.Handler, records: list[Record]) -> list[Any]:
        """Return the records that the handler's filters let through, as they give them back (Python 3.12)."""
        if not handler.filters:
            return records
        passed: list[Any] = []

        def apply(record: Record) -> None:
            result: Any = handler.filter(record)
            if result:
                passed.append(result if isinstance(result, logging.LogRecord) else record)

        for record in records:
            self._guard(handler, 1, apply, record)
        return passed

    def _to_records(self, batch: Sequence[Values]) -> list[Record | None]:
        records: list[Record | None] = []
        for values in batch:
            try:
                records.append(to_record(values))
            except ValueError as error:
                records.append(None)
                self.warn("records could not be decoded", error)
        return records

    def _plan(self, name: str | None) -> tuple[logging.Handler, ...]:
        """Return the handlers that a record of this logger reaches, whatever their levels are."""
        plan = self._plans.get(name)
        if plan is None:
            if len(self._plans) >= _CACHED_NAMES:
                self._plans.clear()
            handlers: list[logging.Handler] = []
            logger: logging.Logger | None = _find_logger(name or "")
            while logger is not None:
                handlers += logger.handlers
                logger = logger.parent if logger.propagate else None
            plan = self._plans[name] = tuple(handlers)
        return plan

    def flush(self) -> None:
        """Have the batch written. Handlers that write each record by themselves have nothing to do."""
        for handler in self._handlers:
            if isinstance(handler, TextHandler):
                self._guard(handler, 1, lambda handler: handler.flush(), handler)

    def close(self) -> None:
        """Say what has not been said yet, and close the handlers, each whatever the others do."""
        self.flush()
        self.report(everything=True)
        for handler in self._handlers:
            self._guard(handler, 1, lambda handler: handler.flush(), handler)
            self._guard(handler, 1, lambda handler: handler.close(), handler)
        self._handlers = []
        self.report(everything=True)  # what happened meanwhile, to stderr

    # --- troubles ---

    def _note(self, handler: logging.Handler, error: BaseException | None, count: int = 1) -> None:
        if self._saying:
            # A line of ours that cannot be written is no trouble to write about.
            self._unheard += 1
            return
        name = _describe(handler)
        self.failed[name] += count
        self.warn(f"records could not be written by {name}", error, count)

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
            self._deliver([decode_values(encode(logging.LogRecord("mplog", level, __file__, 0, message, None, None)))])
            self.flush()
        finally:
            self._saying = False
        if self._unheard >= len(self._handlers) and sys.stderr is not None:
            print(message, file=sys.stderr, flush=True)


def _find_logger(name: str) -> logging.Logger:
    """Return the logger of that name, or the nearest above it: names off the wire make no new loggers."""
    loggers = logging.Logger.manager.loggerDict
    while name:
        logger = loggers.get(name)
        if isinstance(logger, logging.Logger):
            return logger
        name = name.rpartition(".")[0]
    return logging.getLogger()


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
