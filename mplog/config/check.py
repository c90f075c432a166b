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
import logging.config
import logging.handlers
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle

from mplog.config.configurator import Configurator, is_kind
from mplog.config.handlers import FILE_HANDLERS
from mplog.config.mistakes import cause_of, join, pairs, show, suggest, texts, unknown, wrong
from mplog.errors import ConfigurationError
from mplog.formats.json import JSONFormatter
from mplog.sinks.raw import RawSink, WriterSink
from mplog.sinks.sink import Sink

__all__ = ["check_config", "check_pickles", "check_writable", "read_config"]

#: What stands at each place. Other keys at the top are for ``cfg://`` alone.
_TOP = {"version", "incremental", "disable_existing_loggers", "formatters", "filters", "handlers", "loggers", "root"}
_FORMATTER = {"format", "datefmt", "style", "class", "validate", "defaults"}
_FILTER = {"name"}
#: gunicorn's own configuration has a ``qualname``, which belongs into fileConfig(), and does nothing here.
_LOGGER = {"level", "handlers", "filters", "propagate", "qualname"}

#: What a sink takes, and where it stands in a configuration.
_NOT_IN_SINKS = {
    "format": "Name one of the formatters: formatter",
    "logger": "Name the handler at that logger, in loggers",
    "propagate": "It is a key of loggers",
}

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


def check_config(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Sink]]:
    """Look for mistakes, and return the configuration, without its ``cfg://``, and its sinks by the handlers' names.

    Raises:
        ConfigurationError: there is one.
    """
    check = _Check(config)
    check.run()
    return check.config, check.sinks


#: What an ``ext://`` is replaced by before anything is started.
_PLAIN = (str, int, float, type(None))


class _References(logging.config.BaseConfigurator):
    """Follows one reference at a time: an ``ext://`` that a ``cfg://`` leads to stays one."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.value_converters = {"cfg": "cfg_convert"}

    def follow(self, reference: str) -> Any:
        """Return what it leads to."""
        kind, _, name = reference.partition("://")
        return self.ext_convert(name) if kind == "ext" else self.convert(reference)


def _circle(place: str, reference: str) -> ConfigurationError:
    return wrong(place, f"{reference!r} leads back to itself", "Break the circle of references")


class _Check:
    """Looks for mistakes. What only the logging process can find is found there."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.sinks: dict[str, Sink] = {}

    def run(self) -> None:
        """Check everything."""
        self._check_cycles(self.config, "", ())
        referred = set(re.findall(r"cfg://\s*(\w+)", repr(texts(self.config))))
        self._references = _References(self.config)
        self.config = self._resolved(self.config, "")
        self._check_top(referred)
        self.config = {key: value for key, value in self.config.items() if key in _TOP}
        self._configurator = Configurator(self.config)
        for name, formatter in self._section("formatters").items():
            self._check_formatter(f"formatters.{name}", formatter)
        for name, filter in self._section("filters").items():
            self._check_custom(f"filters.{name}", filter, _FILTER)
        handlers = self._section("handlers")
        for name, handler in handlers.items():
            self._check_handler(name, handler)
        self._check_targets(handlers)
        for name, logger in self._section("loggers").items():
            self._check_logger(f"loggers.{name}", logger)
        if self.config.get("root"):
            self._check_logger("root", self._configurator.config["root"])
        if not any(self._handler_names(logger) for logger in self._all_loggers()):
            raise wrong(
                "root.handlers", "no logger has a handler, so nothing would be written", "Name at least one handler"
            )

    def _check_cycles(self, value: Any, place: str, above: tuple[int, ...]) -> None:
        inside = pairs(value)
        if inside is None:
            return
        if id(value) in above:
            raise wrong(place, "it contains itself", "Give a copy of the part that is meant")
        for key, inner in inside:
            self._check_cycles(inner, join(place, key), (*above, id(value)))

    def _resolved(self, value: Any, place: str, followed: tuple[str, ...] = ()) -> Any:
        """Return a part with its references replaced by what they lead to.

        An ``ext://`` stays that leads to anything but a text or a number: it is imported in the process that needs it.
        """
        if isinstance(value, str) and value.startswith(("cfg://", "ext://")):
            try:
                found = self._references.follow(value)
            except RecursionError:
                raise _circle(place, value) from None
            except Exception as error:
                raise wrong(place, f"{value!r} leads nowhere: {cause_of(error)}", "Correct the name") from error
            if value.startswith("ext://"):
                return found if isinstance(found, _PLAIN) else value
            if value in followed:
                raise _circle(place, value)
            return self._resolved(found, place, (*followed, value))
        if isinstance(value, Mapping):
            return {key: self._resolved(inner, join(place, key), followed) for key, inner in value.items()}
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            resolved = [self._resolved(inner, join(place, index), followed) for index, inner in enumerate(value)]
            return resolved if isinstance(value, list) else tuple(resolved)
        return value

    def _check_top(self, referred: set[str]) -> None:
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
        if "()" in config or self._is_json(config):
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
        is_json = place.startswith("formatters.") and self._is_json(config)
        if "()" in config or is_json:
            # A formatter's factory may call its format fmt.
            also = {"format": "fmt"} if place.startswith("formatters.") and not is_json else {}
            factory, given = self._check_arguments(place, "()" if "()" in config else "class", config, (".",), also)
            if is_json:
                _try(place, factory, given)
            return
        for key in config:
            if key not in known:
                raise unknown(place, key, known, "To pass it to a class of your own, name that as '()'")

    def _is_json(self, config: Any) -> bool:
        """Whether a formatter is mplog's own, which is taken as ``class``, too."""
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
        factory, given = self._check_arguments(place, kind, config, (".", "level", "formatter", "filters"), {})
        if is_kind(factory, Sink):
            self.sinks[name] = self._make_sink(place, factory, config, given)
        elif isinstance(factory, type) and not issubclass(factory, logging.Handler):
            raise wrong(
                f"{place}.{kind}", f"{factory!r} is not a logging.Handler", "Name a handler's class, or a sink's"
            )
        if isinstance(factory, type) and issubclass(factory, logging.handlers.QueueHandler):
            raise wrong(
                f"{place}.{kind}",
                "a QueueHandler, and the thread behind it, is what the server takes the place of",
                "Leave it out, and name the handlers behind it at the loggers",
            )

    def _make_sink(self, place: str, kind: type[Sink], config: Any, given: dict[str, Any]) -> Sink:
        """Return the sink, with what stands for its formatter and filters, which only the logging process has."""
        if config.get("level") is not None:
            given["level"] = config["level"]
        if config.get("formatter") is not None:
            given["format"] = logging.Formatter()
        if config.get("filters"):
            given["filters"] = [logging.Filter()]
        for key in given.keys() - _arguments(kind)[0].keys():
            raise wrong(
                join(place, "formatter" if key == "format" else key),
                f"{_name(kind)} takes bytes as they are",
                "Leave it out",
            )
        sink: Sink = _try(place, kind, given)
        return sink

    def _check_arguments(
        self, place: str, kind: str, config: Any, others: tuple[str, ...], also: dict[str, str]
    ) -> tuple[Any, dict[str, Any]]:
        """Check the arguments of what makes something, and return both."""
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
            names, takes_others = _arguments(factory)
        except (TypeError, ValueError):
            return factory, given
        if takes_others:
            return factory, given
        for key in given:
            if is_kind(factory, Sink) and key in _NOT_IN_SINKS:
                raise wrong(join(place, key), "a handler of a configuration has no such key", _NOT_IN_SINKS[key])
            if key not in names and also.get(key) not in names:
                raise unknown(place, key, names.keys() | set(others), f"{_name(factory)} takes no such argument")
        found = {also.get(key, key) for key in given} | given.keys()
        missing = [name for name, is_needed in names.items() if is_needed and name not in found]
        if missing:
            raise wrong(f"{place}.{missing[0]}", f"it is missing, and {_name(factory)} needs it", "Add it")
        if factory in FILE_HANDLERS:
            _check_file_handler(place, given, factory)
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
        for name in handlers or ():
            if isinstance(self.sinks.get(name), (RawSink, WriterSink)):
                raise wrong(
                    f"{place}.handlers",
                    f"{name!r} takes the bytes of mplog.write(), and no records",
                    "Take it off the list: bytes find it by its name",
                )
        self._check_filters(place, config)
        propagate = config.get("propagate")
        if propagate is not None and not isinstance(propagate, (bool, int)):
            raise wrong(f"{place}.propagate", f"it is {show(propagate)}", "It must be true or false")

    def _check_targets(self, handlers: dict[str, Any]) -> None:
        """Follow each ``target`` of a MemoryHandler."""
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
        return isinstance(kind, type) and issubclass(kind, logging.handlers.MemoryHandler)


def _arguments(factory: Any) -> tuple[dict[str, bool], bool]:
    """Return the names of the arguments that something takes, and whether each is needed; and whether it takes others.

    Raises:
        TypeError, ValueError: it does not say what it takes.
    """
    names: dict[str, bool] = {}
    takes_others = False
    # The constructor of a sink hands on what it does not know to the class above, and may itself give what that needs.
    makers = [vars(kind).get("__init__") for kind in factory.__mro__] if is_kind(factory, Sink) else [factory]
    for maker in filter(None, makers):
        parameters = inspect.signature(maker).parameters.values()
        takes_others = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                is_needed = parameter.default is parameter.empty and maker is next(filter(None, makers))
                names.setdefault(parameter.name, is_needed)
        if not takes_others:
            break
    if is_kind(factory, Sink):
        del names[next(iter(names))]  # self
    return names, takes_others


def _try(place: str, kind: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Make a sink, or a formatter, to see whether it can be made.

    Raises:
        ConfigurationError: it cannot; ``place`` is the argument that is wrong.
    """
    try:
        return kind(**given)
    except Exception as error:
        key = _find_wrong(kind, given)
        shown = join(place, "formatter" if key == "format" else key) if key else place
        raise wrong(shown, str(error) or type(error).__name__, "") from error


def _find_wrong(kind: Callable[..., Any], given: dict[str, Any]) -> str:
    """Return the argument with which it cannot be made, while it can with those before; "" where there is no such."""
    names = {name: is_needed for name, is_needed in _arguments(kind)[0].items() if name in given}
    needed = [name for name, is_needed in names.items() if is_needed]
    tried = {name: given[name] for name in needed}
    for name in [*needed[-1:], *(name for name in names if name not in needed)]:
        tried[name] = given[name]
        try:
            kind(**tried)
        except Exception:
            return name
    return ""


def _check_file_handler(place: str, given: dict[str, Any], factory: Any) -> None:
    """Check the arguments of one of the stdlib's file handlers."""

    def check(key: str, is_right: Callable[[Any], object], remedy: str) -> None:
        value = given.get(key)
        is_left_out = key not in given or (value is None and key in ("encoding", "errors", "atTime"))
        if not is_left_out and not is_right(value):
            raise wrong(f"{place}.{key}", f"it is {show(value)}", remedy)

    if not isinstance(given["filename"], (str, os.PathLike)):
        raise wrong(f"{place}.filename", f"it is {show(given['filename'])}", "It must be a path")
    check("filename", lambda path: "\0" not in os.fspath(path), "No path has a NUL")
    check("mode", lambda mode: isinstance(mode, str) and mode in _MODES, "It is 'a', or 'w' to empty the file first")
    check("encoding", _is_encoding, "It is the name of one, such as 'utf-8'")
    check("errors", _is_error_handler, "It is 'strict', 'backslashreplace', or another name that open() knows")
    check("maxBytes", _is_number, "It is a number: 10 MB are 10_000_000")
    check("backupCount", lambda count: _is_number(count) and float(count).is_integer(), "It is a whole number of files")
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
    except (LookupError, TypeError, ValueError):
        return False


def _is_error_handler(value: Any) -> bool:
    try:
        return bool(codecs.lookup_error(value))
    except (LookupError, TypeError, ValueError):
        return False


def check_writable(place: str, path: str) -> None:
    directory = os.path.dirname(path)
    remedy = "Correct the path or its permissions"
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # of which more can be said
    except OSError as error:
        raise wrong(place, f"{path} cannot be written: {error.strerror}", remedy) from None
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
