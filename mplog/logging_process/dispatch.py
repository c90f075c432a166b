"""From records to handlers. Runs in the logging process.

The rule of this file: **records are handled as in one process, and handlers cannot hurt each other.** A record goes up
the hierarchy of loggers, to each handler whose level and filters let it through, just as ``Logger.callHandlers`` sends
it, but a batch at a time: where all its handlers write texts, the batch is rendered in one pass and no LogRecord is
made. A handler with a method ``handle_batch(records)`` gets its part of a batch, filtered, at once, any other a record
at a time. What a handler raises stays with that handler: it is counted, and said in the log once in a while.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import logging.handlers
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mplog.formats.escaping import escape
from mplog.formats.text import DatedFormatter
from mplog.handlers.callable import UNDELIVERED, CallableHandler
from mplog.handlers.log_file import FileWriter
from mplog.handlers.text import TextHandler
from mplog.record.cache import Cache
from mplog.record.decoding import decode_entry, to_record
from mplog.record.encoding import encode
from mplog.record.layout import Entry, Origin, Record
from mplog.record.plain import safe_str

__all__ = ["Dispatcher"]

#: Seconds between two lines about the same trouble.
REPORT_INTERVAL = 10.0

#: After how many seconds of waiting for a function at the end it is said why.
_FINISH_SECONDS = 1.0

# Names and pids come off the wire, so what is kept of them has a bound.

_CACHED_NAMES = 10_000
_LONGEST_NAME = 200
_MOST_TROUBLES = 1000
_LONGEST_ERROR = 1000


class Dispatcher:
    """Give records to the handlers of this process's loggers.

    Attributes:
        failed: records that a handler could not write, by handler.
        handlers: all of them, as long as they are open.
    """

    def __init__(self, handlers: Iterable[logging.Handler], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.failed: Counter[str] = Counter()
        self._troubles: dict[str, _Trouble] = {}
        self._clock = clock
        self._hears_errors: set[logging.Handler] = set()
        self._plans = Cache(_handlers_of, _CACHED_NAMES, lambda name, _: len(name or "") <= _LONGEST_NAME)
        self._saying = False
        self._shunned: logging.Handler | None = None
        self._unheard = 0
        self._stuck_due = 0.0
        self.handlers = list(handlers)
        for handler in self.handlers:
            self._isolate(handler)
            if not isinstance(handler, TextHandler):  # which formats in batches
                handler.formatter = DatedFormatter.instead_of(handler.formatter)
        targets = {handler: target for handler in self.handlers if (target := _target(handler)) is not None}
        counts = Counter(targets.values())
        self._shared = {handler for handler, target in targets.items() if counts[target] > 1}

    def _isolate(self, handler: logging.Handler) -> None:
        """Have the handler report to us what it could not write, on top of what it does about it itself."""
        own = handler.handleError
        if "handleError" in vars(handler) or type(handler).handleError is not logging.Handler.handleError:
            self._hears_errors.add(handler)

        def handle_error(record: logging.LogRecord) -> None:
            self._note(handler, sys.exc_info()[1])
            if handler in self._hears_errors:
                own(record)

        handler.handleError = handle_error  # type: ignore[method-assign]

    @property
    def needs_details(self) -> bool:
        """Whether a handler may look at what is not sent to those that do not."""
        return any(handler in self._hears_errors or _needs_details(handler) for handler in self.handlers)

    def handle(self, batch: Sequence[Entry]) -> Mapping[Origin, int]:
        """Send a batch to the handlers of its records' loggers and of those above them.

        Each handler gets its records in the order in which they arrived.

        Returns:
            How many of the records come from where.
        """
        counts = Counter([origin for _, origin in batch])
        if not self._shared:
            self._deliver(batch, counts)
            self.flush()
        else:
            for part in self._in_order(batch):
                self._deliver(part, {origin for _, origin in part})
                self.flush()
        return counts

    def handle_bytes(self, pieces: Sequence[tuple[str, bytes]]) -> None:
        """Send bytes to the sinks of their names."""
        by_name: dict[str, list[bytes]] = {}
        for name, piece in pieces:
            by_name.setdefault(name, []).append(piece)
        takers = {handler.raw_name: handler for handler in self.handlers if hasattr(handler, "raw_name")}
        for name, batch in by_name.items():
            taker: Any = takers.get(name)
            if taker is None:
                self.failed["no sink for bytes"] += len(batch)
                self.warn("pieces of bytes were sent to a sink that is not there", LookupError(name), len(batch))
            else:
                self._guard(taker, len(batch), taker.handle_bytes, batch)
        self.flush()

    def _in_order(self, batch: Sequence[Entry]) -> Iterable[Sequence[Entry]]:
        """Cut a batch into parts in which no handler writes to where another one writes behind it."""
        for plan, entries in itertools.groupby(batch, lambda entry: self._plans[entry[1].name]):
            part = list(entries)
            if len(self._shared.intersection(plan)) > 1:
                yield from ([entry] for entry in part)
            else:
                yield part

    def _deliver(self, batch: Sequence[Entry], origins: Iterable[Origin]) -> None:
        """Send a batch to where its origins belong."""
        plans = {origin: self._plans[origin.name] for origin in origins}
        unhandled = {origin for origin, plan in plans.items() if not plan}
        if unhandled and not self._saying:
            for entry in _chosen(batch, dict.fromkeys(unhandled, 1)):
                self._hand_to_last_resort(entry)
        # Each before those of the loggers above its own: as many are behind it in every plan that it is in.
        behind = {handler: len(plan) - place for plan in plans.values() for place, handler in enumerate(plan)}
        behind.pop(self._shunned, None)  # type: ignore[arg-type]
        handlers = sorted(behind, key=behind.__getitem__, reverse=True)
        # A handler may change a record for those behind it, unless all of them only write it.
        only_text = all(isinstance(handler, TextHandler) and not handler.filters for handler in handlers)
        records = [] if only_text else self._to_records(batch)
        for handler in handlers:
            # How often: a handler may be on several loggers above.
            reaching = {
                origin: plan.count(handler)
                for origin, plan in plans.items()
                if origin.levelno >= handler.level and handler in plan
            }
            everything = len(reaching) == len(plans) == sum(reaching.values())
            if only_text:
                chosen = batch if everything else list(_chosen(batch, reaching))
                self._guard(handler, len(chosen), handler.handle_entries, chosen)  # type: ignore[attr-defined]
                continue
            if everything:
                passed = [record for record in records if record is not None]
            else:
                passed = [
                    record
                    for (_, origin), record in zip(batch, records)
                    if record is not None
                    for _ in range(reaching.get(origin, 0))
                ]
            if hasattr(handler, "handle_batch"):
                passed = self._filtered(handler, passed)
                if passed:
                    self._guard(handler, len(passed), handler.handle_batch, passed)
            else:
                for record in passed:
                    try:  # as _guard(), which would be a call more for each
                        handler.handle(record)
                    except BaseException as error:
                        self._note(handler, error)

    def _hand_to_last_resort(self, entry: Entry) -> None:
        """Do what the stdlib does where there is no handler for a record: warnings go to stderr."""
        handler = logging.lastResort
        if handler is not None and entry[1].levelno >= handler.level:
            self._guard(handler, 1, lambda handler: handler.handle(to_record(*entry)), handler)

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

    def _to_records(self, batch: Sequence[Entry]) -> list[Record | None]:
        records: list[Record | None] = []
        for values, origin in batch:
            try:
                records.append(to_record(values, origin))
            except ValueError as error:
                records.append(None)
                self.warn("records could not be decoded", error)
        return records

    def flush(self) -> None:
        """Have the batch written. Handlers that write each record by themselves have nothing to do."""
        for handler in self.handlers:
            if isinstance(handler, TextHandler):
                self._guard(handler, 1, lambda handler: handler.flush(), handler)

    # --- files that cannot be written at the moment ---

    def keep_trying(self) -> None:
        """Have files keep what cannot be written, for a `flush` to come."""
        for handler in self.handlers:
            if isinstance(handler, TextHandler) and handler.can_wait:
                handler.keeps_trying = True

    @property
    def stuck(self) -> list[TextHandler]:
        """The handlers that keep something."""
        return [handler for handler in self.handlers if isinstance(handler, TextHandler) and handler.stuck_by]

    def say_stuck(self) -> None:
        """Say it where it can be said, once an interval."""
        for handler in self.stuck:
            if self._clock() >= self._stuck_due:
                self._stuck_due = self._clock() + REPORT_INTERVAL
                self._say_on_stderr(
                    f"mplog: {_describe(handler)} cannot be written at the moment, and is tried again: "
                    f"{type(handler.stuck_by).__name__}: {safe_str(handler.stuck_by)}"
                )

    def say_unstuck(self, seconds: float) -> None:
        """Say for how long files could not be written; what they still keep is given up."""
        for handler in self.stuck:
            handler.keeps_trying = False
        if self.stuck:
            self.flush()
        else:
            self.say(f"mplog: the log could not be written for {seconds:.1f} seconds; nothing was lost by that")

    # --- functions that take their time ---

    @property
    def _deliverers(self) -> list[CallableHandler]:
        return [handler for handler in self.handlers if isinstance(handler, CallableHandler)]

    def go_on(self, directory: str, notify: Callable[[], object]) -> None:
        """Have what waits for a function kept in a directory, and take up what the process before has left there."""
        for number, handler in enumerate(self._deliverers):
            handler.go_on(os.path.join(directory, f"{UNDELIVERED}{number}"), notify)

    def send_now(self) -> list[int]:
        """Have what has come so far delivered at once; return what `is_delivered` takes."""
        return [handler.send_now() for handler in self._deliverers]

    def is_delivered(self, marks: list[int]) -> bool:
        """Whether everything that had come before a `send_now` is delivered or given up."""
        return all(handler.is_delivered(mark) for handler, mark in zip(self._deliverers, marks))

    def _note_deliveries(self, handler: CallableHandler) -> None:
        for error, count in handler.take_failures():
            self._note(handler, error, count, is_shunned=True)
        for error in handler.take_retries():
            self.warn(f"calls of {_describe(handler)} failed, and are tried again", error, shunned=handler)

    # --- the end ---

    def close(self) -> None:
        """Say what has not been said yet, and close the handlers, each whatever the others do."""
        self.flush()
        for deliverer in self._deliverers:
            # Before the others, which say what it could not deliver, and meanwhile what it is still trying.
            while not deliverer.finish(_FINISH_SECONDS):
                self._note_deliveries(deliverer)
                self.report()
            self._note_deliveries(deliverer)
        self.report(everything=True)
        for handler in self.handlers:
            self._guard(handler, 1, lambda handler: handler.flush(), handler)
            self._guard(handler, 1, lambda handler: handler.close(), handler)
        self.handlers = []
        self.report(everything=True)  # what happened meanwhile, to stderr

    # --- troubles ---

    def _note(
        self, handler: logging.Handler, error: BaseException | None, count: int = 1, *, is_shunned: bool = False
    ) -> None:
        if self._saying:
            # A line of ours that cannot be written is no trouble to write about.
            self._unheard += 1
            return
        name = _describe(handler)
        self.failed[name] += count
        self.warn(f"records could not be written by {name}", error, count, handler if is_shunned else None)

    def warn(
        self,
        what: str,
        error: BaseException | None = None,
        count: int = 1,
        shunned: logging.Handler | None = None,
    ) -> None:
        """Have something said in the log, but the same thing once an interval only.

        Args:
            what: what has happened, worded to follow a number: "records could not be written by ...".
            error: its latest cause.
            count: how many times it has happened.
            shunned: see `say`.
        """
        if what not in self._troubles and len(self._troubles) >= _MOST_TROUBLES:
            self._forget_said()
            if len(self._troubles) >= _MOST_TROUBLES:
                what = "other troubles"
        trouble = self._troubles.setdefault(what, _Trouble())
        trouble.unsaid += count
        trouble.shunned = shunned
        if error is not None:
            # One line, whatever is in it: it may quote a record.
            trouble.error = f": {type(error).__name__}: {escape(safe_str(error))[:_LONGEST_ERROR]}"

    def _forget_said(self) -> None:
        """Make room: what is said in a line may come off the wire."""
        now = self._clock()
        for what, trouble in list(self._troubles.items()):
            if not trouble.unsaid and now >= trouble.due:
                del self._troubles[what]

    @property
    def has_unsaid(self) -> bool:
        """Whether there is something left to `report`."""
        return any(trouble.unsaid for trouble in self._troubles.values())

    def work(self) -> None:
        """Do what is due, and say what the files have to say."""
        for handler in self.handlers:
            if isinstance(handler, FileWriter):
                self._guard(handler, 0, lambda file: file.work(), handler)
                for notice in handler.take_notices():
                    self.say(notice)
            elif isinstance(handler, CallableHandler):
                self._note_deliveries(handler)

    def reopen(self) -> None:
        """Open the files anew: somebody may have moved them."""
        for handler in self.handlers:
            if isinstance(handler, FileWriter):
                try:
                    handler.reopen()
                except OSError as error:
                    self.warn(f"times {_describe(handler)} could not be opened anew, and was written on", error)

    def seconds_until_due(self) -> float | None:
        """Return after how many seconds there is something for `work` to do; None for nothing."""
        times = [handler.due() for handler in self.handlers if isinstance(handler, FileWriter)]
        due = min((time for time in times if time is not None), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def report(self, *, everything: bool = False) -> None:
        """Write the lines that are due."""
        now = self._clock()
        for what, trouble in list(self._troubles.items()):
            if trouble.unsaid and (everything or now >= trouble.due):
                trouble.due = now + REPORT_INTERVAL
                self.say(trouble.line(what), logging.ERROR, trouble.shunned)

    def say(self, message: str, level: int = logging.WARNING, shunned: logging.Handler | None = None) -> None:
        """Write a line of our own: to the log, and to stderr where no handler could write it.

        Args:
            message: the line.
            level: its level.
            shunned: a handler that is not to have it: it takes what it is given and fails later, as the line says.
        """
        self._unheard = 0
        self._saying, self._shunned = True, shunned
        try:
            entry = decode_entry(encode(logging.LogRecord("mplog", level, __file__, 0, message, None, None)))
            self._deliver([entry], [entry[1]])
            self.flush()
        finally:
            self._saying, self._shunned = False, None
        if self._unheard >= len(set(self._plans["mplog"]).intersection(self.handlers) - {shunned}):
            self._say_on_stderr(message)

    def _say_on_stderr(self, message: str) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                print(message, file=sys.stderr, flush=True)


def _handlers_of(name: str | None) -> tuple[logging.Handler, ...]:
    """Return the handlers that a record of this logger reaches, whatever their levels are."""
    handlers: list[logging.Handler] = []
    logger: logging.Logger | None = _find_logger(name or "")
    while logger is not None:
        handlers += logger.handlers
        logger = logger.parent if logger.propagate else None
    return tuple(handlers)


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
        self.shunned: logging.Handler | None = None
        self.due = 0.0

    def line(self, what: str) -> str:
        """Return the line to say, which so is said."""
        line = f"mplog: {self.unsaid} {what}{self.error}"
        self.unsaid = 0
        return line


def _chosen(batch: Sequence[Entry], reaching: Mapping[Origin, int]) -> Iterator[Entry]:
    """Yield each entry as often as it reaches a handler."""
    for entry in batch:
        yield from itertools.repeat(entry, reaching.get(entry[1], 0))


def _needs_details(handler: logging.Handler) -> bool:
    if isinstance(handler, TextHandler):
        return not handler.needs_no_details
    is_writer = type(handler) in _WRITERS and not handler.filters and _OVERRIDABLE.isdisjoint(vars(handler))
    return not is_writer or not isinstance(handler.formatter, DatedFormatter) or handler.formatter.needs_details


#: Handlers that look at nothing of a record but its text, unless a program has given them a method of its own.
_WRITERS = frozenset(
    {
        logging.StreamHandler,
        logging.FileHandler,
        logging.handlers.RotatingFileHandler,
        logging.handlers.TimedRotatingFileHandler,
        logging.handlers.WatchedFileHandler,
    }
)
_OVERRIDABLE = frozenset({"emit", "filter", "format", "handle", "handle_batch", "shouldRollover"})


def _target(handler: logging.Handler) -> tuple[int, int] | None:
    """Return what tells the file or stream that a handler writes to from others; None where it writes to none."""
    try:
        fileno = getattr(handler, "fileno", None) or handler.stream.fileno  # type: ignore[attr-defined]
        status = os.fstat(fileno())
    except Exception:
        return None
    return status.st_dev, status.st_ino


def _describe(handler: logging.Handler) -> str:
    try:
        return repr(handler)
    except Exception:
        return type(handler).__name__
