"""Sinks: where records are written, as recipes.

The rule of this file: **a sink is a recipe in the program, and a ``logging.Handler`` in the logging process.** Sinks
pickle; the handler that ``open()`` makes never leaves the logging process, and neither does its file.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TextIO

from mplog.formats.escaping import escaped_formatter
from mplog.formats.text import Renderer, renderer
from mplog.record.layout import MSG, Entry, to_record

__all__ = ["DEFAULT_FORMAT", "ConsoleSink", "HandlerSink", "LocklessHandler", "Sink", "TextHandler"]

#: Who logged what, where and when: the process is what a log of several processes is read for.
DEFAULT_FORMAT = "%(asctime)s %(levelname)-8s %(processName)s %(name)s | %(message)s"


class Sink:
    """The recipe of a handler. Override `make_handler` to write one of your own.

    Args:
        level: the handler's level; records below it are not written. NOTSET (the default) writes all.
        format: a ``%``-style format or a ``logging.Formatter``; None (the default) takes the server's, unless the
            handler brings a formatter of its own.
        filters: the handler's filters: objects with a ``filter`` method, or functions.
        logger: the name of a logger: what is logged there and below it is written, and nothing else. ``""`` (the
            default) is the root logger: everything.
        propagate: False keeps what reaches `logger` from the sinks of the loggers above it, as the attribute of a
            logger does; it holds for all sinks of that logger.
        escape: escape, in all that comes with a record, what could forge or disturb a line, such as line breaks,
            control characters and marks of direction; `unescape` gives it back. Off by default, also on a terminal:
            what is written is then, byte for byte, what logging would write.

    Attributes:
        restarted: whether it was open in another logging process before, which has died. Set in the logging process.
    """

    restarted = False

    def __init__(
        self,
        *,
        level: int | str = logging.NOTSET,
        format: str | logging.Formatter | None = None,
        filters: Sequence[Any] = (),
        logger: str = "",
        propagate: bool = True,
        escape: bool = False,
    ) -> None:
        self.level = level
        self.logger = "" if logger == "root" else logger
        self.propagate = propagate
        self.format = format
        self.escape = escape
        if not isinstance(escape, bool):
            raise TypeError(f"escape is True or False, not {escape!r}")
        if not isinstance(filters, Iterable) or isinstance(filters, str):
            raise TypeError(f"filters is a list of filters, not {filters!r}")
        self.filters = tuple(filters)
        # Bad levels and formats are found here, in the program, where the mistake is.
        logging.Handler(level)
        if format is not None:
            to_formatter(format)
        for filter in self.filters:
            if not callable(filter) and not callable(getattr(filter, "filter", None)):
                raise TypeError(f"a filter is a function, or an object with a filter() method, not {filter!r}")
        if not isinstance(logger, str):
            raise TypeError(f"logger is the name of a logger, 'app.db', not {logger!r}")
        if not propagate and not self.logger:
            raise ValueError("propagate=False is about the loggers above, and there is none above the root logger")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    def describe(self) -> str:
        """Return what tells this sink from others in messages."""
        return ""

    def make_handler(self) -> logging.Handler:
        """Return a new handler. Runs in the logging process."""
        raise NotImplementedError(f"{type(self).__name__} must override make_handler()")

    def clear_up(self) -> None:
        """Remove what a logging process that has died could not remove itself."""

    def install(self, default: logging.Formatter) -> list[logging.Handler]:
        """Open the sink, and give its handlers to their loggers. Runs in the logging process.

        Args:
            default: the formatter for handlers that have none.

        Returns:
            The handlers, in the order in which to close them.
        """
        handler = self.open(default)
        logger = logging.getLogger(self.logger)
        logger.addHandler(handler)
        if not self.propagate:
            logger.propagate = False
        return [handler]

    def open(self, default: logging.Formatter) -> logging.Handler:
        """Return the handler, ready to write. Runs in the logging process.

        Args:
            default: the formatter for a handler that has none.
        """
        handler = self.make_handler()
        if self.level != logging.NOTSET:
            handler.setLevel(self.level)
        if self.format is not None:
            handler.setFormatter(to_formatter(self.format))
        elif handler.formatter is None:
            handler.setFormatter(default)
        if self.escape:
            handler.setFormatter(escaped_formatter(handler.formatter or default))
        for filter in self.filters:
            handler.addFilter(filter)
        return handler


def to_formatter(format: str | logging.Formatter) -> logging.Formatter:
    """Return the format as a formatter.

    Raises:
        ValueError: it is not a valid ``%``-style format.
        TypeError: it is neither a format nor a formatter.
    """
    if isinstance(format, str):
        return logging.Formatter(format)
    if not callable(getattr(format, "format", None)):
        raise TypeError(f"a format is a %-style format or a logging.Formatter, not {format!r}")
    return format


class HandlerSink(Sink):
    """Any ``logging.Handler``, made in the logging process.

    >>> HandlerSink(lambda: logging.handlers.SysLogHandler("/dev/log"))               # doctest: +SKIP

    Args:
        factory: called without arguments in the logging process; returns the handler. A lambda will do. Nothing of
            ``__main__`` is imported there, so it must not rely on what the program has changed in its own modules.
        level, format, filters, logger, propagate, escape: see `Sink`.
    """

    def __init__(self, factory: Callable[[], logging.Handler], **options: Any) -> None:
        super().__init__(**options)
        if not callable(factory):
            raise TypeError(
                f"HandlerSink needs a function that makes a handler, not {factory!r}. "
                "Write HandlerSink(lambda: SomeHandler(...)): a handler that exists already belongs to this process."
            )
        self.factory = factory

    def describe(self) -> str:
        return getattr(self.factory, "__qualname__", repr(self.factory))

    def make_handler(self) -> logging.Handler:
        handler = self.factory()
        if not isinstance(handler, logging.Handler):
            raise TypeError(f"the factory of {self} returned {handler!r}, which is not a logging.Handler")
        return handler


class ConsoleSink(Sink):
    """The terminal: what the program's own standard error or output is connected to.

    Args:
        stream: ``"stderr"`` (the default) or ``"stdout"``.
        color: colour each record by its level; None (the default) does so on a terminal, unless ``NO_COLOR`` is set,
            and anywhere if ``FORCE_COLOR`` is.
        level, format, filters, logger, propagate, escape: see `Sink`.
    """

    def __init__(
        self, stream: Literal["stderr", "stdout"] = "stderr", *, color: bool | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if stream not in ("stderr", "stdout"):
            raise ValueError(f"a ConsoleSink writes to 'stderr' or 'stdout', not to {stream!r}")
        if color is not None and not isinstance(color, bool):
            raise TypeError(f"color is True, False or None, not {color!r}")
        self.stream = stream
        self.color = color

    def describe(self) -> str:
        return self.stream

    def make_handler(self) -> logging.Handler:
        stream: TextIO | None = getattr(sys, self.stream)
        if stream is None:
            raise OSError(errno.EBADF, f"this program has no {self.stream}")
        # What cannot be shown is shown as an escape; a console is no place for an exception.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
        color = _wants_color(stream) if self.color is None else self.color
        return ConsoleHandler(stream, color=color)


def _wants_color(stream: TextIO) -> bool:
    """Decide as CPython does for its own tracebacks (the environment variables of https://no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


class LocklessHandler(logging.Handler):
    """A handler without the lock that others hold while they write. Runs in the logging process.

    One thread writes there; and a thread that waits must not hold a lock that a function takes which logs itself.
    """

    def createLock(self) -> None:
        """Have no lock."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter the record and emit it, without the lock that the base class takes."""
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed


class TextHandler(LocklessHandler):
    """A handler that writes a batch of texts at a time. Runs in the logging process.

    `handle_entries` takes a batch as it comes off the wire; `emit` takes a single record. Both collect, and `flush`,
    which the logging process calls behind each batch, writes. A record that could not be written goes to `handleError`;
    but where `keeps_trying` is set, an OSError leaves it, and what follows it, to the next `flush`. Override `write`.

    Attributes:
        can_wait: whether what it writes to may take later what it does not take now, as a disk that is full does.
        keeps_trying: whether what could not be written is kept.
        stuck_by: the error that `write` has raised the last time; None where it has not, or nothing is kept.
    """

    terminator = "\n"
    can_wait = False
    keeps_trying = False
    stuck_by: OSError | None = None

    def __init__(self) -> None:
        super().__init__()
        self._sources: list[Entry | logging.LogRecord] = []
        self._texts: list[str] = []
        #: For those two alone: a function that takes batches (`CallableSink`) may log in its own thread.
        self._adding = threading.RLock()
        self._renderer_made: tuple[logging.Formatter | None, Renderer] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Render the record for the next `flush`."""
        try:
            text = self.format(record) + self.terminator
        except Exception:
            self.handleError(record)
        else:
            with self._adding:
                self._texts.append(text)
                self._sources.append(record)

    def handle_entries(self, batch: Sequence[Entry]) -> None:
        """Render a batch for the next `flush`."""
        texts = self._renderer(batch, self._fail)
        with self._adding:
            self._texts += texts
            self._sources += batch

    @property
    def _renderer(self) -> Renderer:
        if self._renderer_made is None or self._renderer_made[0] is not self.formatter:
            self._renderer_made = self.formatter, renderer(self.formatter or logging.Formatter(), self.terminator)
        return self._renderer_made[1]

    @property
    def needs_no_details(self) -> bool:
        """Whether nothing here looks at the thread or the place of a call."""
        return not self.filters and not self._renderer.needs_details

    def _fail(self, entry: Entry, error: Exception) -> None:
        # In the except clause of the renderer, as handleError() expects it.
        self.handleError(_to_record(entry))

    def flush(self) -> None:
        """Write what has been rendered."""
        if not self._texts:
            return
        with self._adding:
            sources, texts = self._sources, self._texts
            self._sources, self._texts = [], []
        self.written = 0
        try:
            self.write(texts)
            self.stuck_by = None
        except Exception as error:
            # A file that has reached its greatest size, or the limit of the process, will not take more later.
            if self.keeps_trying and isinstance(error, OSError) and error.errno != errno.EFBIG:
                with self._adding:
                    self._sources[:0], self._texts[:0] = sources[self.written :], texts[self.written :]
                self.stuck_by = error
                return
            self.stuck_by = None
            self.fail(sources[self.written :])

    def fail(self, sources: Sequence[Entry | logging.LogRecord]) -> None:
        """Report that these could not be written. Runs in an except clause."""
        for source in sources:
            self.handleError(_to_record(source) if isinstance(source, tuple) else source)

    def write(self, texts: list[str]) -> None:
        """Write the texts; where that fails, set ``written`` to the number of those that are written, and raise."""
        raise NotImplementedError


def _to_record(entry: Entry) -> logging.LogRecord:
    """Return the entry as a record for handleError(), also where it does not decode."""
    values, origin = entry
    try:
        return to_record(values, origin)
    except Exception:
        return logging.LogRecord(origin.name or "", origin.levelno, "", 0, values[MSG], None, None)


class ConsoleHandler(TextHandler):
    """Writes to a stream.

    Args:
        stream: where to.
        color: colour each record by its level.
    """

    _COLORS = ((logging.CRITICAL, "1;31"), (logging.ERROR, "31"), (logging.WARNING, "33"), (logging.INFO, "32"))

    def __init__(self, stream: TextIO, *, color: bool) -> None:
        super().__init__()
        self._stream = stream
        self._color = color

    def __repr__(self) -> str:
        return f"<ConsoleHandler {getattr(self._stream, 'name', self._stream)}>"

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._stream.fileno()

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._color:
            return text
        code = next((code for level, code in self._COLORS if record.levelno >= level), "2")
        return f"\x1b[{code}m{text}\x1b[0m"

    def handle_entries(self, batch: Sequence[Entry]) -> None:
        if not self._color:
            super().handle_entries(batch)
            return
        for entry in batch:
            try:
                record = to_record(*entry)
            except Exception as error:
                self._fail(entry, error)
            else:
                self.emit(record)

    def write(self, texts: list[str]) -> None:
        self._stream.write("".join(texts))
        self._stream.flush()
