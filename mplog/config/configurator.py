"""The stdlib's own reader of configurations, which here builds mplog's handlers; and `ConfigSink`, all of them."""

from __future__ import annotations

import functools
import importlib
import logging
import logging.config
import logging.handlers
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mplog.config.handlers import SERVED, Handlers
from mplog.config.mistakes import first_cause, stdlib_mistake, texts
from mplog.errors import MplogError
from mplog.formats.json import JSONFormatter
from mplog.record.level import read_level
from mplog.sinks.file import FileSink
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
    return isinstance(kind, type) and issubclass(kind, parent)


class Configurator(logging.config.DictConfigurator):
    """The stdlib's, with mplog's handlers in place of its file and stream handlers, and sinks; `built` has them all."""

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
        if is_kind(kind, logging.handlers.MemoryHandler) and "flushLevel" in config:
            config["flushLevel"] = read_level(config["flushLevel"])  # as Python 3.13 does
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


#: A name of the program's own script, as ``class``, ``()`` and ``ext://`` give it.
_OF_MAIN = re.compile(r"(?:ext://)?__main__\.(\w+)")


class ConfigSink(Sink):
    """The handlers of a configuration, each on its logger; `of_main` is what `find_of_main` has found."""

    def __init__(self, config: dict[str, Any], of_main: dict[str, Any], files: Sequence[FileSink]) -> None:
        super().__init__()
        self.config = config
        self.of_main = of_main
        self.files = files

    def describe(self) -> str:
        return ", ".join(self.config["handlers"])

    def clear_up(self) -> None:
        for file in self.files:
            file.clear_up()

    def install(self, default: logging.Formatter) -> list[logging.Handler]:
        """Build the handlers and give them to their loggers; return them in the order in which to close them."""
        vars(sys.modules["__main__"]).update(self.of_main)
        configurator = Configurator(dict(self.config), restarted=self.restarted)
        try:
            configurator.configure()
        except Exception as error:
            cause = first_cause(error)
            raise cause if isinstance(cause, MplogError) else stdlib_mistake(error) from None
        _make_django_ready(configurator.built)
        # A handler that writes to others is built after them, and closed before.
        return list(reversed(configurator.built))


def _make_django_ready(handlers: list[logging.Handler]) -> None:
    """Do what Django's mail handler needs of ``django.setup()``, which would set up logging. Mails need no apps."""
    module = sys.modules.get("django.utils.log")
    if module is not None and any(isinstance(handler, module.AdminEmailHandler) for handler in handlers):
        importlib.import_module("django.apps").apps.populate(())


def find_of_main(config: dict[str, Any]) -> dict[str, Any]:
    """Return what the configuration names of this program's ``__main__``, which the logging process does not import."""
    main = vars(sys.modules["__main__"])
    names = {found[1] for text in texts(config) if (found := _OF_MAIN.match(text))}
    return {name: main[name] for name in names if name in main}
