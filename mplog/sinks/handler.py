"""The sink that is any handler of ``logging``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mplog.sinks.sink import Sink


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
