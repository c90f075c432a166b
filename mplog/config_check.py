"""Reading and checking a configuration, before any process is started.

The rule of this file: **nothing is opened, and no handler is made.** What only the logging process can find is found
there.
"""

from __future__ import annotations

import codecs
import datetime
import importlib
import inspect
import json
import logging
import logging.handlers
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle

from mplog.config_handlers import FILE_HANDLERS
from mplog.config_mistakes import cause_of, join, pairs, show, suggest, texts, unknown, wrong
from mplog.configurator import Configurator
from mplog.sinks import Sink

__all__ = ["check_config", "check_pickles", "check_writable", "read_config"]

#: What stands at each place. Other keys at the top are for ``cfg://`` alone.
_TOP = {"version", "incremental", "disable_existing_loggers", "formatters", "filters", "handlers", "loggers", "root"}
_FORMATTER = {"format", "datefmt", "style", "class", "validate", "defaults"}
_FILTER = {"name"}
#: gunicorn's own configuration has a ``qualname``, which belongs into fileConfig(), and does nothing here.
_LOGGER = {"level", "handlers", "filters", "propagate", "qualname"}

#: How open() opens a text file for writing.
_MODES = {kind + more for kind in "awx" for more in ("", "t", "+", "+t", "t+")}


def read_config(source: Any) -> dict[str, Any]:
    try:
        path = os.fspath(source)
    except TypeError:
        raise TypeError(
            f"config is a dictionary, or the path of a .toml or .json file that holds one, not {source!r}"
        ) from None
    kind = os.path.splitext(os.fsdecode(path))[1].lower()
    if kind not in (".toml", ".json"):
        raise wrong("", f"{path} is neither a .toml nor a .json file", "Rename it, or read it and give the dictionary")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise wrong("", f"{path} cannot be read: {error.strerror}", "Check the path and its permissions") from error
    try:
        config = _toml().loads(data.decode("utf-8")) if kind == ".toml" else json.loads(data)
    except ValueError as error:
        raise wrong("", f"{path} is not valid {kind[1:].upper()}: {error}", "Mend the file at that place") from error
    if not isinstance(config, dict):
        raise wrong("", f"{path} holds {show(config)}", "It must hold a table with the keys of dictConfig()")
    return config


def _toml() -> Any:
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def check_config(config: dict[str, Any]) -> dict[str, Any]:
    """Look for mistakes, and return the configuration.

    Raises:
        ConfigurationError: there is one.
    """
    return _Check(config).run()


class _Check:
    """Looks for mistakes. What only the logging process can find is found there."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def run(self) -> dict[str, Any]:
        """Check everything, and return the configuration."""
        self._check_cycles(self.config, "", ())
        self._check_top()
        self._configurator = Configurator(self.config)
        self._check_references(self._configurator.config, "")
        for name, formatter in self._section("formatters").items():
            self._check_formatter(f"formatters.{name}", formatter)
        for name, filter in self._section("filters").items():
            self._check_custom(f"filters.{name}", filter, _FILTER)
        handlers = self._section("handlers")
        for name, handler in handlers.items():
            self._check_handler(f"handlers.{name}", handler)
        self._check_targets(handlers)
        for name, logger in self._section("loggers").items():
            self._check_logger(f"loggers.{name}", logger)
        if self.config.get("root"):
            self._check_logger("root", self._configurator.config["root"])
        if not any(self._handler_names(logger) for logger in self._all_loggers()):
            raise wrong(
                "root.handlers", "no logger has a handler, so nothing would be written", "Name at least one handler"
            )
        return self.config

    def _check_cycles(self, value: Any, place: str, above: tuple[int, ...]) -> None:
        inside = pairs(value)
        if inside is None:
            return
        if id(value) in above:
            raise wrong(place, "it contains itself", "Give a copy of the part that is meant")
        for key, inner in inside:
            self._check_cycles(inner, join(place, key), (*above, id(value)))

    def _check_top(self) -> None:
        if self.config.get("version") != 1:
            raise wrong(
                "version",
                f"it is {self.config['version']!r}" if "version" in self.config else "it is missing",
                "The version of the schema is the number 1: write version = 1",
            )
        if self.config.get("incremental"):
            raise wrong(
                "incremental",
                "an incremental configuration changes handlers that are there already, and a server that starts has "
                "none",
                "Leave it out and give the whole configuration; LogServer.set_level() changes levels later",
            )
        referred = set(re.findall(r"cfg://\s*(\w+)", repr(texts(self.config))))
        for key in self.config:
            if key not in _TOP and key not in referred:
                raise unknown("", key, _TOP)
        for key in ("formatters", "filters", "handlers", "loggers", "root"):
            value = self.config.get(key)
            if value is not None and not isinstance(value, Mapping):
                raise wrong(key, f"it is {show(value)}", "It must be a dictionary")
        disable = self.config.get("disable_existing_loggers", True)
        if not isinstance(disable, (bool, int)):
            raise wrong("disable_existing_loggers", f"it is {show(disable)}", "It must be true or false")

    def _check_references(self, value: Any, place: str) -> None:
        """Resolve every ``ext://`` and ``cfg://``."""
        for key, raw in pairs(value) or ():
            inner_place = join(place, key)
            try:
                inner = value[key]
            except RecursionError:
                raise wrong(inner_place, f"{raw!r} leads back to itself", "Break the circle of references") from None
            except Exception as error:
                raise wrong(inner_place, f"{raw!r} leads nowhere: {cause_of(error)}", "Correct the name") from error
            if not isinstance(raw, str):
                self._check_references(inner, inner_place)

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

    def _all_loggers(self) -> list[Any]:
        root = self._configurator.config.get("root")
        return [*self._section("loggers").values(), *([root] if root else [])]

    def _check_formatter(self, place: str, config: Any) -> None:
        self._check_custom(place, config, _FORMATTER)
        if "()" in config:
            return
        for key in ("format", "datefmt"):
            if config.get(key) is not None and not isinstance(config[key], str):
                raise wrong(f"{place}.{key}", f"it is {show(config[key])}", "It must be a text")
        if config.get("style", "%") not in ("%", "{", "$"):
            raise wrong(f"{place}.style", f"it is {config['style']!r}", "It is one of %, { and $")
        if config.get("defaults") is not None and not isinstance(config["defaults"], Mapping):
            raise wrong(f"{place}.defaults", f"it is {show(config['defaults'])}", "It must be a dictionary")
        if config.get("class"):
            self._check_formatter_class(f"{place}.class", config["class"])
        else:
            try:
                self._configurator.configure_formatter(_unconverted(config))
            except Exception as error:
                raise wrong(
                    f"{place}.format", f"{config.get('format')!r}: {cause_of(error)}", "Correct format or style"
                ) from error

    def _check_formatter_class(self, place: str, name: Any) -> None:
        kind = self._resolve(place, name)
        try:
            inspect.signature(kind).bind(None, None, "%")
        except TypeError as error:
            raise wrong(
                place,
                f"{_name(kind)} cannot be made from format, datefmt and style, as a class is: {error}",
                "Name it as '()', which is given what stands beside it",
            ) from None
        except ValueError:
            pass  # it does not say what it takes

    def _check_custom(self, place: str, config: Any, known: set[str]) -> None:
        """Check that the factory, if there is one, takes the other keys, and that these are known otherwise."""
        if "()" in config:
            # A formatter's factory may call its format fmt.
            also = {"format": "fmt"} if place.startswith("formatters.") else {}
            self._check_arguments(place, "()", config, (".",), also)
            return
        for key in config:
            if key not in known:
                raise unknown(place, key, known, "To pass it to a class of your own, name that as '()'")

    def _check_handler(self, place: str, config: Any) -> None:
        if "()" not in config and "class" not in config:
            raise wrong(place, "it names no class", "Add class, such as logging.FileHandler, or a factory, ()")
        kind = "()" if "()" in config else "class"
        self._check_level(place, config)
        if config.get("formatter") is not None:
            self._check_names(f"{place}.formatter", [config["formatter"]], "formatters")
        self._check_filters(place, config)
        factory = self._check_arguments(place, kind, config, (".", "level", "formatter", "filters"), {})
        if isinstance(factory, type) and not issubclass(factory, logging.Handler):
            raise wrong(
                f"{place}.{kind}",
                f"{factory!r} is not a logging.Handler",
                "Sinks are given to LogServer without config=; here, name a handler's class, such as "
                "logging.handlers.RotatingFileHandler"
                if issubclass(factory, Sink)
                else "Name a handler's class",
            )
        if isinstance(factory, type) and issubclass(factory, logging.handlers.QueueHandler):
            raise wrong(
                f"{place}.{kind}",
                "a QueueHandler, and the thread behind it, is what the server takes the place of",
                "Leave it out, and name the handlers behind it at the loggers",
            )
        if "." in config and not isinstance(config["."], Mapping):
            raise wrong(f"{place}..", f"it is {show(config['.'])}", "It must be a dictionary of attributes")

    def _check_arguments(
        self, place: str, kind: str, config: Any, others: tuple[str, ...], also: dict[str, str]
    ) -> Any:
        factory = self._resolve(f"{place}.{kind}", config[kind])
        if not callable(factory):
            raise wrong(f"{place}.{kind}", f"{factory!r} cannot be called", "Name a class or a function")
        given = {key for key in config if key not in (kind, *others)}
        try:
            signature = inspect.signature(factory)
        except (TypeError, ValueError):
            return factory
        for key in given:
            if not isinstance(key, str) or not key.isidentifier():
                raise wrong(join(place, key), "it cannot be the name of an argument", "Correct it")
        parameters = signature.parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return factory
        names = {
            parameter.name
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        for key in given:
            if key not in names and also.get(key) not in names:
                raise unknown(place, key, names | set(others), f"{_name(factory)} takes no such argument")
        missing = [
            parameter.name
            for parameter in parameters
            if parameter.default is parameter.empty
            and parameter.name in names
            and parameter.name not in given
            and parameter.name not in {also.get(key) for key in given}
        ]
        if missing:
            raise wrong(f"{place}.{missing[0]}", f"it is missing, and {_name(factory)} needs it", "Add it")
        if factory in FILE_HANDLERS:
            _check_file_handler(place, {key: config[key] for key in given}, factory)
        if factory is logging.StreamHandler and isinstance(config.get("stream"), str):
            stream = config["stream"]
            raise wrong(f"{place}.stream", f"it is {show(stream)}", f"To name an object, write 'ext://{stream}'")
        return factory

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
            logging.Handler(level).close()
        except (TypeError, ValueError):
            raise wrong(
                f"{place}.level",
                f"{level!r} is not a level",
                f"It is a number or one of {', '.join(_known_levels())}",
            ) from None

    def _check_filters(self, place: str, config: Any) -> None:
        filters = config.get("filters")
        if filters is None:
            return
        if not isinstance(filters, (list, tuple)):
            raise wrong(f"{place}.filters", f"it is {show(filters)}", "It must be a list of names")
        self._check_names(f"{place}.filters", [name for name in filters if isinstance(name, str)], "filters")
        for filter in filters:
            if not isinstance(filter, str) and not callable(filter) and not callable(getattr(filter, "filter", None)):
                raise wrong(f"{place}.filters", f"{filter!r} is no filter", "Give the name of one")

    def _check_names(self, place: str, names: list[Any], section: str) -> None:
        known = self.config.get(section) or {}
        for name in names:
            if not isinstance(name, str) or name not in known:
                raise wrong(place, f"there is no {name!r} in {section}", suggest(name, known, f"{section} has"))

    def _handler_names(self, config: Any) -> Any:
        return config.get("handlers") or []

    def _check_logger(self, place: str, config: Any) -> None:
        for key in config:
            if key not in _LOGGER:
                raise unknown(place, key, _LOGGER)
        self._check_level(place, config)
        handlers = config.get("handlers")
        if handlers is not None and not isinstance(handlers, (list, tuple)):
            raise wrong(f"{place}.handlers", f"it is {show(handlers)}", "It must be a list of names")
        self._check_names(f"{place}.handlers", list(handlers or ()), "handlers")
        self._check_filters(place, config)
        propagate = config.get("propagate")
        if propagate is not None and not isinstance(propagate, (bool, int)):
            raise wrong(f"{place}.propagate", f"it is {show(propagate)}", "It must be true or false")

    def _check_targets(self, handlers: dict[str, Any]) -> None:
        """Follow each ``target`` of a MemoryHandler."""
        for name in handlers:
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
        return isinstance(kind, type) and issubclass(kind, logging.handlers.MemoryHandler)


def _check_file_handler(place: str, given: dict[str, Any], factory: Any) -> None:
    """Check the arguments of one of the stdlib's file handlers."""

    def check(key: str, is_right: Callable[[Any], object], remedy: str) -> None:
        value = given.get(key)
        if value is not None and not is_right(value):
            raise wrong(f"{place}.{key}", f"it is {show(value)}", remedy)

    if not isinstance(given["filename"], (str, os.PathLike)):
        raise wrong(f"{place}.filename", f"it is {show(given['filename'])}", "It must be a path")
    check("mode", lambda mode: mode in _MODES, "It is 'a', or 'w' to empty the file first")
    check("encoding", _is_encoding, "It is the name of one, such as 'utf-8'")
    check("errors", _is_error_handler, "It is 'strict', 'backslashreplace', or another name that open() knows")
    check("maxBytes", _is_number, "It is a number: 10 MB are 10_000_000")
    check("backupCount", lambda count: _is_number(count) and count == int(count), "It is a whole number of files")
    check("interval", lambda number: _is_number(number) and number > 0, "It is a number above 0")
    check("atTime", lambda time: isinstance(time, datetime.time), "It is a datetime.time")
    check("when", lambda when: isinstance(when, str), "It is one of S, M, H, D, midnight, and W0 to W6")
    try:
        factory(**{**given, "delay": True}).close()
    except ValueError as error:
        raise wrong(f"{place}.when", cause_of(error), "It is one of S, M, H, D, midnight, and W0 to W6") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_encoding(value: Any) -> bool:
    try:
        return value == "locale" or bool(codecs.lookup(value))
    except (LookupError, TypeError):
        return False


def _is_error_handler(value: Any) -> bool:
    try:
        return bool(codecs.lookup_error(value))
    except (LookupError, TypeError):
        return False


def check_writable(place: str, path: str) -> None:
    directory = os.path.dirname(path)
    remedy = "Correct the path or its permissions"
    if not os.path.isdir(directory):
        raise wrong(place, f"{path} cannot be written: there is no directory {directory}", "Create it first")
    if os.path.isdir(path):
        raise wrong(place, f"{path} is a directory", "Name a file in it")
    if not os.access(path if os.path.exists(path) else directory, os.W_OK):
        raise wrong(place, f"{path} cannot be written: permission denied", remedy)


def check_pickles(config: dict[str, Any]) -> None:
    try:
        cloudpickle.dumps(config)
    except Exception as error:
        place, value, cause = _find_unpicklable(config, "") or ("", config, error)
        raise wrong(
            place,
            f"{value!r} cannot be sent to the logging process: {cause_of(cause)}",
            "Name it as a text, ext://module.name, or give a factory, (), which makes it there",
        ) from error


def _find_unpicklable(value: Any, place: str) -> tuple[str, Any, Exception] | None:
    """Return the innermost thing that does not pickle."""
    for key, inner in pairs(value) or ():
        found = _find_unpicklable(inner, join(place, key))
        if found is not None:
            return found
    try:
        cloudpickle.dumps(value)
    except Exception as error:
        return place, value, error
    return None


def _name(factory: Any) -> str:
    return f"{getattr(factory, '__module__', '')}.{getattr(factory, '__qualname__', factory)}"


def _known_levels() -> list[str]:
    return [name for _, name in sorted(logging._levelToName.items())]


def _unconverted(config: Any) -> dict[str, Any]:
    return {key: config[key] for key in config}
