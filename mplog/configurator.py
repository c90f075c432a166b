"""The stdlib's own reader of configurations, with mplog's handlers in the place of its own.

The rule of this file: **the stdlib builds**, in the process where what it builds belongs.
"""

from __future__ import annotations

import functools
import logging
import logging.config
import sys
from collections.abc import Iterable
from typing import Any

from mplog.config_handlers import SERVED, Handlers

__all__ = ["Configurator", "Given"]


class Given:
    """A factory that gives what is there already: a formatter, a filter, which pickle as they are."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


class Configurator(logging.config.DictConfigurator):
    """The stdlib's, with the stdlib's own file and stream handlers served by mplog's sinks.

    Attributes:
        built: the handlers, in the order in which they were made.
    """

    def __init__(self, config: dict[str, Any], *, restarted: bool = False) -> None:
        super().__init__(config)
        self.built: list[logging.Handler] = []
        self._handlers = Handlers(restarted=restarted)

    def resolve(self, s: Any) -> Any:
        """Import what a text names; leave what is there already as it is, which Python 3.12 does itself."""
        return super().resolve(s) if isinstance(s, str) else s

    def configure_handler(self, config: Any) -> Any:
        kind = None if "()" in config else self.resolve(config["class"])
        if kind in SERVED:
            del config["class"]  # or else it is an argument for the factory
            config["()"] = functools.partial(self._handlers.make, kind, config.get(".") or {})
        handler = super().configure_handler(config)
        self.built.append(handler)
        return handler

    def configure_formatter(self, config: Any) -> Any:
        """Take ``defaults``, too, on Pythons whose dictConfig() does not know them (before 3.12)."""
        if sys.version_info >= (3, 12) or config.get("defaults") is None or "()" in config:
            return super().configure_formatter(config)
        kind = self.resolve(config.get("class") or logging.Formatter)
        return kind(
            config.get("format"),
            config.get("datefmt"),
            config.get("style", "%"),
            config.get("validate", True),
            defaults=config["defaults"],
        )

    def add_filters(self, filterer: Any, filters: Iterable[Any]) -> None:
        """Take filters themselves beside their names, which Python 3.11 does itself."""
        for filter in filters:
            filterer.addFilter(self.config["filters"][filter] if isinstance(filter, str) else filter)
