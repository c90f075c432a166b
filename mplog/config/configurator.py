"""The stdlib's own reader of configurations, which here builds mplog's handlers in place of its own."""

from __future__ import annotations

import functools
import logging
import logging.config
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from mplog.config.handlers import SERVED, Handlers
from mplog.formats.json import JSONFormatter
from mplog.sinks.sink import Sink


class Given:
    """A factory that returns what is there already: a formatter or a filter, which pickle as they are."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


def kind_of(config: Mapping[str, Any], default: Any = None) -> Any:
    """Return the class or factory that makes a handler, a formatter or a filter."""
    made_by = config.get("()") or config.get("class") or default
    return type(made_by.value) if isinstance(made_by, Given) else Configurator({"version": 1}).resolve(made_by)


def is_kind(kind: Any, parent: type) -> bool:
    """Return whether this is a subclass of that class."""
    return isinstance(kind, type) and issubclass(kind, parent)


class Configurator(logging.config.DictConfigurator):
    """The stdlib's, with mplog's handlers in place of its file and stream handlers, and with sinks; `built` has all."""

    def __init__(self, config: dict[str, Any], *, restarted: bool = False) -> None:
        super().__init__(config)
        self.built: list[logging.Handler] = []
        self._handlers = Handlers(restarted=restarted)

    def resolve(self, s: Any) -> Any:
        """Import what a text names, and return anything else as it is, as Python 3.12 does."""
        return super().resolve(s.removeprefix("ext://")) if isinstance(s, str) else s

    def configure_handler(self, config: Any) -> Any:
        kind = kind_of(config)
        make = None
        if kind in SERVED and "()" not in config:
            make = functools.partial(self._handlers.make, kind, config.get(".") or {})
        elif is_kind(kind, Sink):
            # The formatter is part of the sink: what a sink passes to a function depends on it.
            formatter = config.pop("formatter", None)
            make = functools.partial(
                self._handlers.open_sink, kind, None if formatter is None else self.config["formatters"][formatter]
            )
        if make is not None:
            config.pop("class", None)  # or it would be an argument for the factory
            config["()"] = make
        handler = super().configure_handler(config)
        self.built.append(handler)
        return handler

    def configure_formatter(self, config: Any) -> Any:
        """Take `JSONFormatter` as ``class``, classes as well as their names, and ``defaults`` before Python 3.12."""
        kind = kind_of(config, logging.Formatter)
        if "()" not in config and is_kind(kind, JSONFormatter):
            del config["class"]
            config["()"] = kind
        knows_defaults = sys.version_info >= (3, 12) or config.get("defaults") is None
        if "()" in config or (knows_defaults and isinstance(config.get("class") or "", str)):
            return super().configure_formatter(config)
        arguments = [config.get("format"), config.get("datefmt"), config.get("style", "%")]
        if "validate" in config:
            arguments.append(config["validate"])
        options = {} if config.get("defaults") is None else {"defaults": config["defaults"]}
        return kind(*arguments, **options)

    def add_filters(self, filterer: Any, filters: Iterable[Any]) -> None:
        """Take filters as well as their names, as Python 3.11 does."""
        for filter in filters:
            filterer.addFilter(self.config["filters"][filter] if isinstance(filter, str) else filter)
