"""Which handlers a record reaches: those of its logger, and of the loggers above. Runs in the logging process."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from mplog.handlers.output import Output, output_of
from mplog.record.cache import Cache

# Names come off the wire, so there is a bound to what is kept of them.
_CACHED_NAMES = 10_000
_LONGEST_NAME = 200

#: By the name of a logger, the outputs that its records reach, whatever their levels are.
Routes = Cache[str | None, tuple[Output, ...]]


def routes_to(outputs: Iterable[Output]) -> Routes:
    """Return the way of each logger's records: up the hierarchy, as ``Logger.callHandlers`` sends them."""
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
