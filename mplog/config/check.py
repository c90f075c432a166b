"""Checking a configuration before any process is started.

The rule of this file: **nothing is opened, and no handler is made.** Mistakes that only that would show are left to
the logging process.
"""

from __future__ import annotations

import inspect
import io
import logging
import logging.handlers
import re
from collections.abc import Mapping
from typing import Any

from mplog.config.arguments import arguments_of, check_file_handler, make
from mplog.config.configurator import Configurator, is_kind
from mplog.config.handlers import FILE_HANDLERS
from mplog.config.mistakes import cause_of, check_keys, expect, join, pairs, show, suggest, texts, unknown, wrong
from mplog.config.read import References, check_cycles
from mplog.formats.json import JSONFormatter
from mplog.record.portable import dump_by_value
from mplog.sinks.raw import RawSink, WriterSink
from mplog.sinks.sink import Sink

#: The keys at each place. Other keys at the top are for ``cfg://`` alone.
_SECTIONS = ("formatters", "filters", "handlers", "loggers", "root")
TOP_KEYS = {"version", "incremental", "disable_existing_loggers", *_SECTIONS}
FORMATTER_KEYS = {"format", "datefmt", "style", "class", "validate", "defaults"}
FILTER_KEYS = {"name"}
#: gunicorn's own configuration has a ``qualname``. It belongs in fileConfig(), and does nothing here.
LOGGER_KEYS = {"level", "handlers", "filters", "propagate", "qualname"}

_TO_PASS = "To pass it to a class of your own, name that as '()'"

#: Arguments of sinks that have another place in a configuration.
NOT_IN_SINKS = {
    "format": "Name one of the formatters: formatter",
    "logger": "Name the handler at that logger, in loggers",
    "propagate": "It is a key of loggers",
}


def check_config(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Sink]]:
    """Return the configuration, with its references resolved, and its sinks by the names of the handlers."""
    check_cycles(config)
    referred = set(re.findall(r"cfg://\s*(\w+)", repr(texts(config))))
    config = References(config).resolved(config)
    _check_top(config, referred)
    check = _Check({key: value for key, value in config.items() if key in TOP_KEYS})
    check.run()
    return check.config, check.sinks


def _check_top(config: dict[str, Any], referred: set[str]) -> None:
    if config.get("version") != 1:
        raise wrong(
            "version",
            f"it is {config['version']!r}" if "version" in config else "it is missing",
            "The version of the schema is the number 1: write version = 1",
        )
    if config.get("incremental"):
        raise wrong(
            "incremental",
            "an incremental configuration changes handlers that exist, and a server that starts has none",
            "Leave it out and give the whole configuration; LogServer.set_level() changes levels later",
        )
    for key in config:
        if key not in TOP_KEYS and key not in referred:
            raise unknown("", key, TOP_KEYS)
    for key in _SECTIONS:
        expect(key, config.get(key), Mapping, "It must be a dictionary")
    disable = config.get("disable_existing_loggers", True)
    if not isinstance(disable, (bool, int)):
        raise wrong("disable_existing_loggers", f"it is {show(disable)}", "It must be true or false")


class _Check:
    """Looks for mistakes in a configuration with resolved references, and makes its sinks, by the names of handlers."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.sinks: dict[str, Sink] = {}
        self._configurator = Configurator(config)

    def run(self) -> None:
        for name, formatter in self._section("formatters").items():
            self._check_formatter(f"formatters.{name}", formatter)
        for name, filter in self._section("filters").items():
            if "()" in filter:
                self._check_arguments(f"filters.{name}", "()", filter, (".",), {})
            else:
                check_keys(f"filters.{name}", filter, FILTER_KEYS, _TO_PASS)
        handlers = self._section("handlers")
        for name, handler in handlers.items():
            self._check_handler(name, handler)
        self._check_targets(handlers)
        loggers = self._section("loggers")
        for name, logger in loggers.items():
            self._check_logger(f"loggers.{name}", logger)
        root = self._configurator.config.get("root") or {}
        if root:
            self._check_logger("root", root)
        if not any(logger.get("handlers") for logger in [*loggers.values(), root]):
            raise wrong(
                "root.handlers", "no logger has a handler, so nothing would be written", "Name at least one handler"
            )

    def _section(self, name: str) -> dict[str, Any]:
        section = self._configurator.config.get(name)
        if not section:
            return {}
        entries = {key: section[key] for key in section}
        for key, entry in entries.items():
            if not isinstance(key, str):
                raise wrong(join(name, key), "its name is not a text", "Put it in quotes")
            if not isinstance(entry, Mapping):
                raise wrong(join(name, key), f"it is {show(entry)}", "It must be a dictionary")
        return entries

    def _check_formatter(self, place: str, config: Any) -> None:
        is_json = self._is_json(config)
        if "()" in config or is_json:
            # A formatter's factory may call its format fmt.
            also = {} if is_json else {"format": "fmt"}
            factory, given = self._check_arguments(place, "()" if "()" in config else "class", config, (".",), also)
            if is_json:
                make(place, factory, given)
            return
        check_keys(place, config, FORMATTER_KEYS, _TO_PASS)
        for key in ("format", "datefmt"):
            expect(f"{place}.{key}", config.get(key), str, "It must be a text")
        if config.get("style", "%") not in ("%", "{", "$"):
            raise wrong(f"{place}.style", f"it is {config['style']!r}", "It is one of %, { and $")
        expect(f"{place}.defaults", config.get("defaults"), Mapping, "It must be a dictionary")
        if config.get("class"):
            self._check_formatter_class(f"{place}.class", config["class"])
        else:
            try:
                self._configurator.configure_formatter({key: config[key] for key in config})
            except Exception as error:
                raise wrong(
                    f"{place}.format", f"{config.get('format')!r}: {cause_of(error)}", "Correct format or style"
                ) from error

    def _check_formatter_class(self, place: str, name: Any) -> None:
        kind = self._resolve(place, name)
        try:
            inspect.signature(kind).bind(None, None, "%")
        except TypeError as error:
            what = f"{_name(kind)} cannot be made from format, datefmt and style, as a class is: {error}"
            raise wrong(place, what, "Name it as '()', which is given the keys beside it") from None
        except ValueError:
            pass  # its signature is unknown

    def _is_json(self, config: Any) -> bool:
        """Whether a formatter is mplog's own, which may be named as ``class``, too."""
        made_by = config.get("()") or config.get("class")
        return isinstance(made_by, (str, type)) and is_kind(self._resolve("", made_by), JSONFormatter)

    def _check_handler(self, name: str, config: Any) -> None:
        place = f"handlers.{name}"
        if "()" not in config and "class" not in config:
            raise wrong(place, "it names no class", "Add class, such as logging.FileHandler, or a factory, ()")
        kind = "()" if "()" in config else "class"
        self._check_level(place, config)
        if config.get("formatter") is not None:
            self._check_names(f"{place}.formatter", [config["formatter"]], "formatters")
        self._check_filters(place, config)
        stream = self.config["handlers"][name].get("stream")
        if isinstance(stream, (io.StringIO, io.BytesIO)):
            what = f"{show(stream)} is in the memory of this process, and the logging process would write a copy"
            raise wrong(f"{place}.stream", what, "Name a stream, such as ext://sys.stdout, or write to a file")
        factory, given = self._check_arguments(place, kind, config, (".", "level", "formatter", "filters"), {})
        if is_kind(factory, Sink):
            self.sinks[name] = self._make_sink(place, factory, config, given)
        elif isinstance(factory, type) and not issubclass(factory, logging.Handler):
            raise wrong(
                f"{place}.{kind}", f"{factory!r} is not a logging.Handler", "Name a handler's class, or a sink's"
            )
        if is_kind(factory, logging.handlers.QueueHandler):
            raise wrong(
                f"{place}.{kind}",
                "the server takes the place of a QueueHandler and the thread that reads its queue",
                "Leave it out, and name the handlers of that thread at the loggers",
            )

    def _make_sink(self, place: str, kind: type[Sink], config: Any, given: dict[str, Any]) -> Sink:
        """Return the sink, with stand-ins for its formatter and filters, which only the logging process makes."""
        if config.get("level") is not None:
            given["level"] = config["level"]
        if config.get("formatter") is not None:
            given["format"] = logging.Formatter()
        if config.get("filters"):
            given["filters"] = [logging.Filter()]
        for key in given.keys() - arguments_of(kind)[0].keys():
            shown = join(place, "formatter" if key == "format" else key)
            raise wrong(shown, f"{_name(kind)} takes bytes as they are", "Leave it out")
        sink: Sink = make(place, kind, given)
        return sink

    def _check_arguments(
        self, place: str, kind: str, config: Any, others: tuple[str, ...], also: dict[str, str]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the factory at the key `kind`, and its arguments: all keys except `others`; `also` has more names."""
        attributes = config.get(".")
        is_dictionary = isinstance(attributes, Mapping) and all(isinstance(name, str) for name in attributes)
        if attributes is not None and not is_dictionary:
            raise wrong(f"{place}..", f"it is {show(attributes)}", "It must be a dictionary of attributes")
        factory = self._resolve(f"{place}.{kind}", config[kind])
        if not callable(factory):
            raise wrong(f"{place}.{kind}", f"{factory!r} cannot be called", "Name a class or a function")
        given = {key: config[key] for key in config if key not in (kind, *others)}
        for key in given:
            if not isinstance(key, str) or not key.isidentifier():
                raise wrong(join(place, key), "it cannot be the name of an argument", "Correct it")
        try:
            names, takes_others = arguments_of(factory)
        except (TypeError, ValueError):
            return factory, given
        if takes_others:
            return factory, given
        for key in given:
            if is_kind(factory, Sink) and key in NOT_IN_SINKS:
                raise wrong(join(place, key), "a handler in a configuration cannot have this key", NOT_IN_SINKS[key])
            if key not in names and also.get(key) not in names:
                raise unknown(place, key, names.keys() | set(others), f"{_name(factory)} does not take it")
        found = {also.get(key, key) for key in given} | given.keys()
        missing = [name for name, is_needed in names.items() if is_needed and name not in found]
        if missing:
            raise wrong(f"{place}.{missing[0]}", f"it is missing, and {_name(factory)} needs it", "Add it")
        if factory in FILE_HANDLERS:
            check_file_handler(place, given, factory)
        if factory is logging.StreamHandler and isinstance(config.get("stream"), str):
            stream = config["stream"]
            raise wrong(f"{place}.stream", f"it is {show(stream)}", f"To name an object, write 'ext://{stream}'")
        return factory, given

    def _resolve(self, place: str, what: Any) -> Any:
        if not isinstance(what, str):
            return what
        try:
            return self._configurator.resolve(what)
        except Exception as error:
            raise wrong(
                place, f"{what!r} cannot be imported: {cause_of(error)}", "Correct the name, or install its package"
            ) from error

    def _check_level(self, place: str, config: Any) -> None:
        level = config.get("level")
        if level is None:
            return
        try:
            if isinstance(level, bool):
                raise TypeError
            logging.Handler(level).close()  # as dictConfig reads it, whose names are upper case
        except (TypeError, ValueError):
            raise wrong(
                f"{place}.level",
                f"{level!r} is not a level",
                f"It is a number or one of {', '.join(name for _, name in sorted(logging._levelToName.items()))}",
            ) from None

    def _check_filters(self, place: str, config: Any) -> None:
        filters = config.get("filters")
        if filters is None:
            return
        expect(f"{place}.filters", filters, (list, tuple), "It must be a list of names")
        self._check_names(f"{place}.filters", [name for name in filters if isinstance(name, str)], "filters")
        for filter in filters:
            if not isinstance(filter, str) and not callable(filter) and not callable(getattr(filter, "filter", None)):
                raise wrong(f"{place}.filters", f"{filter!r} is not a filter", "Give the name of one")

    def _check_names(self, place: str, names: list[Any], section: str) -> None:
        known = self.config.get(section) or {}
        for name in names:
            if not isinstance(name, str) or name not in known:
                remedy = suggest(name, known, f"{section} defines") or f"Define it in {section}"
                raise wrong(place, f"{name!r} is not defined in {section}", remedy)

    def _check_logger(self, place: str, config: Any) -> None:
        check_keys(place, config, LOGGER_KEYS)
        self._check_level(place, config)
        handlers = config.get("handlers")
        expect(f"{place}.handlers", handlers, (list, tuple), "It must be a list of names")
        self._check_names(f"{place}.handlers", list(handlers or ()), "handlers")
        for name in handlers or ():
            if isinstance(self.sinks.get(name), (RawSink, WriterSink)):
                raise wrong(
                    f"{place}.handlers",
                    f"{name!r} writes the bytes of mplog.write(), not records",
                    "Take it off the list: bytes find it by its name",
                )
        self._check_filters(place, config)
        expect(f"{place}.propagate", config.get("propagate"), (bool, int), "It must be true or false")

    def _check_targets(self, handlers: dict[str, Any]) -> None:
        """Check each ``target`` of a MemoryHandler, and that no chain of them is a circle."""
        for name, handler in handlers.items():
            target = handler.get("target")
            if "target" in handler and not isinstance(target, str) and self._is_memory_handler(handler):
                raise wrong(f"handlers.{name}.target", f"it is {show(target)}", "It must be the name of a handler")
            seen: list[str] = [name]
            while isinstance(target := handlers[seen[-1]].get("target"), str):
                place = f"handlers.{seen[-1]}.target"
                if not self._is_memory_handler(handlers[seen[-1]]):
                    break
                self._check_names(place, [target], "handlers")
                if target in seen:
                    raise wrong(
                        place, f"it leads back to itself: {' -> '.join([*seen, target])}", "Name a handler that writes"
                    )
                seen.append(target)

    def _is_memory_handler(self, config: Any) -> bool:
        kind = self._resolve("", config["class"]) if "class" in config and "()" not in config else None
        return is_kind(kind, logging.handlers.MemoryHandler)


def _name(factory: Any) -> str:
    module = getattr(factory, "__module__", "")
    return f"{'mplog' if module.startswith('mplog.') else module}.{getattr(factory, '__qualname__', factory)}"


def check_pickles(config: dict[str, Any]) -> None:
    """Raise `ConfigurationError` if a part of a configuration does not pickle."""
    try:
        dump_by_value(config)
    except Exception as error:
        place, value, cause = _find_unpicklable(config, "") or ("", config, error)
        raise wrong(
            place,
            f"{value!r} cannot be sent to the logging process: {cause_of(cause)}",
            "Name it as a text, ext://module.name, or give a factory, (), which makes it there",
        ) from error


def _find_unpicklable(value: Any, place: str) -> tuple[str, Any, Exception] | None:
    """Return the innermost part that does not pickle: its place, the part and the error."""
    for key, inner in pairs(value) or ():
        found = _find_unpicklable(inner, join(place, key))
        if found is not None:
            return found
    try:
        dump_by_value(value)
    except Exception as error:
        return place, value, error
    return None
