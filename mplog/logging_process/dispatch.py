"""From records to handlers. Runs in the logging process.

The rule of this file: **records are handled as in one process, and handlers cannot hurt each other.** If all
handlers of a batch write texts, it is rendered in one pass and no LogRecord is made. What a handler raises is counted,
and said in the log at intervals.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from mplog.files.notices import say_on_stderr
from mplog.formats.text import DatedFormatter
from mplog.handlers.backlog import UNDELIVERED
from mplog.handlers.output import Output, output_of
from mplog.logging_process.troubles import REPORT_INTERVAL, Troubles
from mplog.record.cache import Cache
from mplog.record.decoding import decode_entry, to_record
from mplog.record.encoding import describe, encode
from mplog.record.layout import Entry, Origin, Record

#: At the end, seconds of waiting for a function before the log says why.
_FINISH_SECONDS = 1.0

# Names come off the wire, so there is a bound to what is kept of them.
_CACHED_NAMES = 10_000
_LONGEST_NAME = 200


class Dispatcher:
    """Gives records to the handlers of this process's loggers, and counts in `failed` what a handler did not write."""

    def __init__(self, handlers: Iterable[logging.Handler], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.outputs = [output_of(handler) for handler in handlers]
        self.failed: Counter[str] = Counter()
        self.troubles = Troubles(self.say, clock)
        self._clock = clock
        self._routes = _routes_to(self.outputs)
        self._line: _Line | None = None
        self._stuck_due = 0.0
        for output in self.outputs:
            self._isolate(output)
            if not output.takes_entries:  # which formats in batches
                output.handler.formatter = DatedFormatter.instead_of(output.handler.formatter)
        targets = {output: target for output in self.outputs if (target := _target(output.handler)) is not None}
        counts = Counter(targets.values())
        self._shared = {output for output, target in targets.items() if counts[target] > 1}

    def _isolate(self, output: Output) -> None:
        """Have the handler tell the dispatcher what it could not write, before its own `handleError`, if any."""
        handler = output.handler
        own = handler.handleError
        if "handleError" in vars(handler) or type(handler).handleError is not logging.Handler.handleError:
            output.hears_errors = True

        def handle_error(record: logging.LogRecord) -> None:
            self._note(output, sys.exc_info()[1])
            if output.hears_errors:
                own(record)

        handler.handleError = handle_error  # type: ignore[method-assign]

    @property
    def needs_details(self) -> bool:
        """Whether a handler may look at fields that workers send on request only."""
        return any(output.hears_errors or output.needs_details for output in self.outputs)

    # --- records ---

    def handle(self, batch: Sequence[Entry]) -> Mapping[Origin, int]:
        """Give records, in order, to the handlers of their loggers and of the loggers above; count them by origin."""
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
        by_name: dict[str, list[bytes]] = {}
        for name, piece in pieces:
            by_name.setdefault(name, []).append(piece)
        takers = {output.raw_name: output for output in self.outputs}
        for name, batch in by_name.items():
            taker = takers.get(name)
            if taker is None:
                self.failed["no sink for bytes"] += len(batch)
                self.troubles.warn("piece", "of bytes sent to an unknown sink", LookupError(name), len(batch))
            else:
                self._guard(taker, len(batch), taker.handle_bytes, batch)
        self.flush()

    def _in_order(self, batch: Sequence[Entry]) -> Iterable[Sequence[Entry]]:
        """Cut a batch into parts in which no handler writes to a file after another one has."""
        for route, entries in itertools.groupby(batch, lambda entry: self._routes[entry[1].name]):
            part = list(entries)
            if len(self._shared.intersection(route)) > 1:
                yield from ([entry] for entry in part)
            else:
                yield part

    def _deliver(self, batch: Sequence[Entry], origins: Iterable[Origin]) -> None:
        routes = {origin: self._routes[origin.name] for origin in origins}
        unhandled = {origin for origin, route in routes.items() if not route}
        if unhandled and self._line is None:
            for entry in _chosen(batch, dict.fromkeys(unhandled, 1)):
                self._hand_to_last_resort(entry)
        outputs = self._by_place(routes.values())
        # A handler may change a record for those after it, unless all of them only write it.
        only_text = all(output.takes_entries and not output.handler.filters for output in outputs)
        records = [] if only_text else self._to_records(batch)
        for output in outputs:
            level = output.handler.level
            # How often: a handler may be on several loggers of one branch.
            reaching = {
                origin: route.count(output)
                for origin, route in routes.items()
                if origin.levelno >= level and output in route
            }
            everything = len(reaching) == len(routes) == sum(reaching.values())
            if only_text:
                chosen = batch if everything else list(_chosen(batch, reaching))
                self._guard(output, len(chosen), output.handle_entries, chosen)
            elif everything:
                self._hand(output, [record for record in records if record is not None])
            else:
                passed = [
                    record
                    for (_, origin), record in zip(batch, records)
                    if record is not None
                    for _ in range(reaching.get(origin, 0))
                ]
                self._hand(output, passed)

    def _by_place(self, routes: Iterable[tuple[Output, ...]]) -> list[Output]:
        """Return the outputs, those of a logger before those of the loggers above it."""
        # An output is followed by the same number of others in every route.
        after = {output: len(route) - place for route in routes for place, output in enumerate(route)}
        if self._line is not None:
            after.pop(self._line.shunned, None)  # type: ignore[arg-type]
        return sorted(after, key=after.__getitem__, reverse=True)

    def _hand(self, output: Output, records: list[Record]) -> None:
        """Give a handler the records that its level lets through."""
        if output.handle_batch is not None:
            passed = self._filtered(output, records)
            if passed:
                self._guard(output, len(passed), output.handle_batch, passed)
            return
        handler = output.handler
        for record in records:
            try:  # as _guard(), which would be a call more for each
                handler.handle(record)
            except BaseException as error:
                self._note(output, error)

    def _hand_to_last_resort(self, entry: Entry) -> None:
        """Do what the stdlib does with a record that reaches no handler: warnings go to stderr."""
        handler = logging.lastResort
        if handler is not None and entry[1].levelno >= handler.level:
            self._guard(output_of(handler), 1, lambda: handler.handle(to_record(*entry)))

    def _guard(self, output: Output, count: int, function: Callable[..., object], *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:  # SystemExit, too: a handler does not end the logging process
            self._note(output, error, count)

    def _filtered(self, output: Output, records: list[Record]) -> list[Any]:
        """Return the records that the handler's filters let through, as they give them back (Python 3.12)."""
        handler = output.handler
        if not handler.filters:
            return records
        passed: list[Any] = []
        for record in records:
            try:
                result: Any = handler.filter(record)
            except BaseException as error:
                self._note(output, error)
                continue
            if result:
                passed.append(result if isinstance(result, logging.LogRecord) else record)
        return passed

    def _to_records(self, batch: Sequence[Entry]) -> list[Record | None]:
        records: list[Record | None] = []
        for values, origin in batch:
            try:
                records.append(to_record(values, origin))
            except ValueError as error:
                records.append(None)
                self.troubles.warn("record", "could not be decoded", error)
        return records

    def flush(self) -> None:
        """Have the handlers that collect a batch write it."""
        for output in self.outputs:
            if output.takes_entries:
                self._guard(output, 1, output.handler.flush)

    # --- files that cannot be written at the moment ---

    def keep_trying(self) -> None:
        """Tell the outputs to keep what they cannot write for the next `flush`."""
        for output in self.outputs:
            output.keeps_trying = output.can_wait

    @property
    def stuck(self) -> list[Output]:
        """The outputs that keep something they could not write."""
        return [output for output in self.outputs if output.stuck_by]

    def sync(self) -> bool:
        are_there = [output.sync() for output in self.outputs]
        return all(are_there)

    def say_stuck(self) -> None:
        """Say on stderr, once an interval, which files cannot be written."""
        for output in self.stuck:
            if self._clock() >= self._stuck_due:
                self._stuck_due = self._clock() + REPORT_INTERVAL
                what = f"{_describe(output)} cannot be written at the moment, and is tried again"
                say_on_stderr(f"mplog: {what}: {describe(output.stuck_by)}")

    def say_unstuck(self, seconds: float) -> None:
        """Say for how many seconds files could not be written; give up what still cannot be written."""
        for output in self.stuck:
            output.keeps_trying = False
        if self.stuck:
            self.flush()
        else:
            self.say(f"mplog: the log could not be written for {seconds:.1f} seconds; nothing was lost by that")

    # --- functions that take their time ---

    def go_on(self, directory: str, notify: Callable[[], object]) -> None:
        """Keep records that wait for a function in a directory, and take up those of the previous process."""
        for number, output in enumerate(self.outputs):
            output.go_on(os.path.join(directory, f"{UNDELIVERED}{number}"), notify)

    def send_now(self) -> list[int]:
        return [output.send_now() for output in self.outputs]

    def is_delivered(self, marks: list[int]) -> bool:
        return all(output.is_delivered(mark) for output, mark in zip(self.outputs, marks))

    def _note_deliveries(self, output: Output) -> None:
        for error, count in output.take_failures():
            self._note(output, error, count, is_shunned=True)
        for error in output.take_retries():
            self.troubles.warn("call", f"of {_describe(output)} failed, and will be tried again", error, shunned=output)

    # --- what is due ---

    def work(self) -> None:
        """Do what is due, and say the notices of the outputs."""
        for output in self.outputs:
            self._guard(output, 0, output.work)
            for notice in output.take_notices():
                self.say(notice)
            self._note_deliveries(output)

    def reopen(self) -> None:
        for output in self.outputs:
            try:
                output.reopen()
            except OSError as error:
                self.troubles.warn(
                    "attempt", f"to reopen {_describe(output)} failed; writing goes on in the old file", error
                )

    def seconds_until_due(self) -> float | None:
        """Return the seconds until `work` has something to do; None for nothing."""
        due = min((due for output in self.outputs if (due := output.due()) is not None), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def close(self) -> None:
        """Say what has not been said yet, and close every handler, even if another one fails."""
        self.flush()
        for output in self.outputs:
            # Before any handler is closed: they still write lines about what is not delivered, or still tried.
            while not output.finish(_FINISH_SECONDS):
                self._note_deliveries(output)
                self.troubles.report()
            self._note_deliveries(output)
        self.troubles.report(everything=True)
        for output in self.outputs:
            self._guard(output, 1, output.handler.flush)
            self._guard(output, 1, output.handler.close)
        self.outputs = []
        self.troubles.report(everything=True)  # what happened meanwhile, to stderr

    # --- troubles ---

    def _note(self, output: Output, error: BaseException | None, count: int = 1, *, is_shunned: bool = False) -> None:
        if self._line is not None:
            # No line about a line of our own that cannot be written: that would never end.
            self._line.unheard += 1
            return
        name = _describe(output)
        self.failed[name] += count
        shunned = output if is_shunned else None
        self.troubles.warn("record", f"could not be written by {name}", error, count, shunned)

    def say(self, message: str, level: int = logging.WARNING, shunned: Output | None = None) -> None:
        """Write a line of our own to the log, or to stderr if no handler could write it.

        The output `shunned`, which the line is about, does not get it: it would accept the line and fail later.
        """
        self._line = line = _Line(shunned)
        try:
            entry = decode_entry(encode(logging.LogRecord("mplog", level, __file__, 0, message, None, None)))
            self._deliver([entry], [entry[1]])
            self.flush()
        finally:
            self._line = None
        if line.unheard >= len(set(self._routes["mplog"]).intersection(self.outputs) - {shunned}):
            say_on_stderr(message)


class _Line(msgspec.Struct):
    """A line of our own: the output that does not get it, and how many outputs could not write it."""

    shunned: Output | None
    unheard: int = 0


def _chosen(batch: Sequence[Entry], reaching: Mapping[Origin, int]) -> Iterator[Entry]:
    """Yield each entry as often as it reaches a handler."""
    for entry in batch:
        yield from itertools.repeat(entry, reaching.get(entry[1], 0))


def _target(handler: logging.Handler) -> tuple[int, int] | None:
    """Return the device and inode that a handler writes to; None if it writes to no file or stream."""
    try:
        fileno = getattr(handler, "fileno", None) or handler.stream.fileno  # type: ignore[attr-defined]
        status = os.fstat(fileno())
    except Exception:
        return None
    return status.st_dev, status.st_ino


def _describe(output: Output) -> str:
    try:
        return repr(output.handler)
    except Exception:
        return type(output.handler).__name__


def _routes_to(outputs: Iterable[Output]) -> Cache[str | None, tuple[Output, ...]]:
    """Return the outputs of each logger's records: up the hierarchy, as in ``Logger.callHandlers``."""
    known = {output.handler: output for output in outputs}

    def route(name: str | None) -> tuple[Output, ...]:
        handlers: list[logging.Handler] = []
        logger: logging.Logger | None = _find_logger(name or "")
        while logger is not None:
            handlers += logger.handlers
            logger = logger.parent if logger.propagate else None
        return tuple([known.get(handler) or known.setdefault(handler, output_of(handler)) for handler in handlers])

    return Cache(route, _CACHED_NAMES, lambda name, _: len(name or "") <= _LONGEST_NAME)


def _find_logger(name: str) -> logging.Logger:
    """Return the logger of that name, or the nearest above it: names off the wire make no new loggers."""
    loggers = logging.Logger.manager.loggerDict
    while name:
        logger = loggers.get(name)
        if isinstance(logger, logging.Logger):
            return logger
        name = name.rpartition(".")[0]
    return logging.getLogger()
