"""Sinks: recipes for handlers.

The rule of this file: **a sink is a recipe in the program, and a ``logging.Handler`` in the logging process.** Sinks
pickle; the handler that ``open()`` makes never leaves the logging process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mplog.formats.escaping import escaped_formatter
from mplog.record.level import read_level

#: With the name of the process, which a log of several processes is read for.
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
        propagate: False keeps the records of `logger` from the sinks of the loggers above it, as the attribute of a
            logger does. It holds for all sinks of that logger.
        escape: escape in all that comes with a record whatever could forge or disturb a line, such as line breaks,
            control characters and marks of direction; `unescape` gives it back. Off by default: the same bytes are
            written that logging would write. Only a `ConsoleSink` on a terminal has another default.

    Attributes:
        restarted: whether a logging process that has died had it open. Set in the logging process.
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
        self.level = read_level(level)
        self.logger = "" if logger == "root" else logger
        self.propagate = propagate
        self.format = format
        self.escape = escape
        if not isinstance(escape, bool):
            raise TypeError(f"escape is True or False, not {escape!r}")
        if not isinstance(filters, Iterable) or isinstance(filters, str):
            raise TypeError(f"filters is a list of filters, not {filters!r}")
        self.filters = tuple(filters)
        # Bad formats, as bad levels, are found here, in the program, where the mistake is.
        if format is not None:
            to_formatter(format)
        for filter in self.filters:
            if not callable(filter) and not callable(getattr(filter, "filter", None)):
                raise TypeError(f"a filter is a function, or an object with a filter() method, not {filter!r}")
        if not isinstance(logger, str):
            raise TypeError(f"logger is the name of a logger, 'app.db', not {logger!r}")
        if not propagate and not self.logger:
            raise ValueError(
                "propagate=False keeps records from the loggers above, and the root logger has none: name a logger"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    def describe(self) -> str:
        """Return what tells this sink from others, for messages."""
        return ""

    def make_handler(self) -> logging.Handler:
        """Return a new handler. Runs in the logging process."""
        raise NotImplementedError(f"{type(self).__name__} must override make_handler()")

    def clear_up(self) -> None:
        """Remove what a logging process that has died has left."""

    def install(self, default: logging.Formatter) -> list[logging.Handler]:
        """Open the sink, and give its handlers to their loggers; return them in the order in which to close them.

        Runs in the logging process. `default` is the formatter for handlers that have none.
        """
        handler = self.open(default)
        logger = logging.getLogger(self.logger)
        logger.addHandler(handler)
        if not self.propagate:
            logger.propagate = False
        return [handler]

    def open(self, default: logging.Formatter) -> logging.Handler:
        """Return the handler, with the default formatter if it has none. Runs in the logging process."""
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


class HandlerSink(Sink):
    """Any ``logging.Handler``, made in the logging process.

    >>> HandlerSink(lambda: logging.handlers.SysLogHandler("/dev/log"))               # doctest: +SKIP

    Args:
        factory: called without arguments in the logging process; returns the handler. A lambda will do. ``__main__``
            is not imported there, so it must not rely on what the program has changed in its own modules.
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


def to_formatter(format: str | logging.Formatter) -> logging.Formatter:
    """Return the format as a formatter; raise a ValueError or TypeError if it is neither a format nor a formatter."""
    if isinstance(format, str):
        return logging.Formatter(format)
    if not callable(getattr(format, "format", None)):
        raise TypeError(f"a format is a %-style format or a logging.Formatter, not {format!r}")
    return format
