"""The keys ``queue``, ``listener`` and ``handlers`` of a ``QueueHandler`` in a ``dictConfig``, on every Python.

Before Python 3.12, and for a handler that a dictionary names as ``()``, their values arrive unresolved.
"""

from __future__ import annotations

import logging
import logging.config
import logging.handlers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def make_queue(queue: str | Mapping[str, Any]) -> Any:
    """Return the queue that a function returns, given by its name or as ``{"()": factory, ...}``."""
    configurator: Any = logging.config.BaseConfigurator({})
    if isinstance(queue, str):
        factory = configurator.resolve(queue)
        if not callable(factory):
            raise TypeError(f"{queue!r} is not a function that makes a queue")
        return factory()
    if "()" not in queue:
        raise TypeError(f"{queue!r} has no '()', the function that makes a queue")
    return configurator.configure_custom(dict(queue))


def make_listener(queue: Any, handlers: Iterable[Any], listener: Any, *, respect_handler_level: bool) -> Any:
    """Return a ``QueueListener`` for handlers, or in a dictConfig their names; `listener` is a class or its name."""
    kind = logging.config.BaseConfigurator({}).resolve(listener) if isinstance(listener, str) else listener
    kind = kind or logging.handlers.QueueListener
    if not callable(kind):
        raise TypeError(f"a listener is a QueueListener, not {listener!r}")
    made: Any = kind(queue, respect_handler_level=respect_handler_level)
    made.handlers = _Handlers(handlers)
    return made


class _Handlers:
    """Handlers; dictConfig() may set up those that are given by name later."""

    def __init__(self, handlers: Iterable[Any]) -> None:
        configurator: Any = getattr(handlers, "configurator", None)
        self._configured = configurator.config["handlers"] if configurator is not None else {}
        self._handlers = list(handlers)
        for handler in self._handlers:
            if not isinstance(handler, logging.Handler) and handler not in self._configured:
                raise ValueError(f"there is no handler {handler!r}")

    def __iter__(self) -> Iterator[logging.Handler]:
        for handler in self._handlers:
            yield handler if isinstance(handler, logging.Handler) else self._configured[handler]
