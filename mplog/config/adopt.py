"""The handlers that a program has set up, as a configuration: `describe_handlers`.

The rule of this file: **what cannot be described exactly is refused.** A handler of the standard library, or of Django,
is described by its class and the arguments that made it. Only its author knows how to make another one elsewhere.
"""

from __future__ import annotations

import functools
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from mplog.config.configurator import Given
from mplog.errors import ConfigurationError
from mplog.worker.queue_handler import QueueHandler
from mplog.worker.state import all_loggers


def describe_handlers() -> dict[str, Any]:
    """Return a configuration with the handlers of all loggers, or raise `ConfigurationError` if that is impossible."""
    description = _Description()
    loggers = {}
    for name, logger in all_loggers().items():
        handlers = [handler for handler in logger.handlers if not isinstance(handler, logging.NullHandler)]
        if handlers:
            names = [description.name_of(handler, name or "root") for handler in handlers]
            loggers[name] = {"handlers": names, "propagate": logger.propagate}
    if not loggers:
        raise ConfigurationError(
            "root.handlers: this program has set up no handler that could be taken over. Call logging.basicConfig() or "
            "the like before, or give LogServer a path.",
            place="root.handlers",
        )
    return {"version": 1, **description.sections, "loggers": loggers}


class _Description:
    """Collects handlers, formatters and filters in the sections of a configuration, and gives them names."""

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, Any]] = {"formatters": {}, "filters": {}, "handlers": {}}
        self._names: dict[tuple[str, int], str] = {}

    def name_of(self, handler: logging.Handler, logger: str) -> str:
        return self._add("handlers", handler, handler.name, lambda: self._describe(handler, logger))

    def _add(self, section: str, thing: Any, name: str | None, describe: Callable[[], Any]) -> str:
        key = section, id(thing)
        if key not in self._names:
            entry = describe()
            entries = self.sections[section]
            if not name or name in entries:
                name = f"{name or type(thing).__name__}-{len(entries) + 1}"
            entries[name] = entry
            self._names[key] = name
        return self._names[key]

    def _describe(self, handler: logging.Handler, logger: str) -> dict[str, Any]:
        kind = type(handler)
        name = f"{kind.__module__}.{kind.__qualname__}"
        describe = _DESCRIBED.get(kind) or _DESCRIBED.get(name) or _remedy
        described = describe(handler)
        if isinstance(described, str):
            place = f"{logger}.handlers"
            what = f"{handler!r} cannot be moved into the logging process: {described}."
            raise ConfigurationError(f"{place}: {what}", place=place)
        arguments, made = described
        if isinstance(handler, logging.handlers.MemoryHandler) and handler.target is not None:
            arguments["target"] = self.name_of(handler.target, logger)
        entry = {"class": "logging.StreamHandler" if kind is _STDERR else name, **arguments}
        entry["level"] = handler.level
        if handler.formatter is not None:
            formatter = handler.formatter
            entry["formatter"] = self._add("formatters", formatter, None, lambda: {"()": Given(formatter)})
        entry["filters"] = [
            self._add("filters", filter, None, lambda filter=filter: {"()": Given(filter)})  # type: ignore[misc]
            for filter in handler.filters
        ]
        # What was set on the handler later, such as a terminator or a namer.
        more = {key: value for key, value in vars(handler).items() if key not in _STATE | arguments.keys() | made}
        if more:
            entry["."] = more
        return entry


#: Attributes that every handler has, or that mean something in one process only.
_STATE = frozenset(
    {"filters", "_name", "level", "formatter", "_closed", "lock", "stream", "_builtin_open", "sock", "retryTime"}
    | {"buffer", "target", "dev", "ino", "rolloverAt"}
)


#: The arguments of a handler, and its other attributes that result from them; or why it cannot be described.
Described = tuple[dict[str, Any], frozenset[str]]

#: A handler that always writes to the current sys.stderr. logging.lastResort is one. So is the handler of dill, and so
#: every program that has imported multiprocess has one.
_STDERR: type[logging.Handler] = type(logging.lastResort)  # type: ignore[assignment]


def _stream(handler: Any) -> Described | str:
    if type(handler) is _STDERR:
        return {"stream": "ext://sys.stderr"}, frozenset()
    name = _standard_stream(handler.stream)
    if name is not None:
        return {"stream": f"ext://sys.{name}"}, frozenset()
    what = f"its stream {handler.stream!r} exists in this process only"
    for name in ("stderr", "stdout"):
        if handler.stream is getattr(sys, name):
            return (
                f"{what}, since sys.{name} is redirected to it. Make the handler before the redirection (by "
                f"contextlib.redirect_{name}, or pytest's capsys; with capfd there is none), or have it write to "
                f"sys.__{name}__ or to a file"
            )
    return f"{what}. Take it off, or have it write to sys.stderr or to a file"


def _standard_stream(stream: Any) -> str | None:
    """Return which of the descriptors that the logging process inherits a stream writes to, as its name in sys."""
    numbers = {"stderr": 2, "stdout": 1}
    for name in numbers:
        if stream is getattr(sys, f"__{name}__"):
            return name
        # A notebook shows what any process writes to these two, though its streams have other descriptors.
        is_shown = any(kind.__module__ == "ipykernel.iostream" for kind in type(stream).__mro__)
        if is_shown and stream is getattr(sys, name):
            return name
    try:
        fd = stream.fileno()
        # The same number first: on a terminal, both are the same file.
        found = [name for name, number in numbers.items() if fd == number]
        found += [name for name, number in numbers.items() if os.path.sameopenfile(fd, number)]
    except Exception:  # a stream in memory, a closed one, or an object of the program's own
        return None
    return found[0] if found else None


def _attributes(*names: str, made: Iterable[str] = (), **renamed: str) -> Callable[[Any], Described]:
    """Describe a handler whose arguments are attributes with these names, some of them with another name."""
    attributes = {**{name: name for name in names}, **renamed}

    def describe(handler: Any) -> Described:
        found = {name: attribute for name, attribute in attributes.items() if hasattr(handler, attribute)}
        return {name: getattr(handler, attribute) for name, attribute in found.items()}, frozenset(made)

    return describe


# The mode is left out: what is in the file already stays there.
_file = functools.partial(
    _attributes, "encoding", "errors", filename="baseFilename", made=("baseFilename", "mode", "delay")
)


def _timed(handler: Any) -> Described:
    arguments, made = _file("when", "backupCount", "utc", "atTime")(handler)
    unit = {"S": 1, "M": 60, "H": 60 * 60, "D": 60 * 60 * 24, "MIDNIGHT": 60 * 60 * 24}.get(handler.when, 7 * 86400)
    arguments["interval"] = handler.interval // unit
    # As it would be without what was set later, such as a suffix.
    fresh = vars(logging.handlers.TimedRotatingFileHandler(**arguments, delay=True))
    return arguments, made | {name for name, value in vars(handler).items() if fresh.get(name) == value}


def _memory(handler: Any) -> Described:
    if handler.buffer:
        handler.flush()
    return _attributes("capacity", "flushLevel", "flushOnClose")(handler)


_socket = _attributes("host", "port", made=("address", "retryStart", "retryMax", "retryFactor", "retryPeriod"))


def _smtp(handler: Any) -> Described:
    arguments, _ = _attributes("mailhost", "fromaddr", "toaddrs", "subject", "secure", "timeout")(handler)
    if handler.mailport is not None:
        arguments["mailhost"] = handler.mailhost, handler.mailport
    if handler.username is not None:
        arguments["credentials"] = handler.username, handler.password
    return arguments, frozenset({"mailport", "username", "password"})


def _django_mail(handler: Any) -> Described:
    reporter = handler.reporter_class
    arguments = {"include_html": handler.include_html, "email_backend": handler.email_backend}
    return {**arguments, "reporter_class": f"{reporter.__module__}.{reporter.__qualname__}"}, frozenset()


#: How to describe a handler, by its class, or by the name of a class of another package.
_DESCRIBED: dict[type | str, Callable[[Any], Described | str]] = {
    logging.StreamHandler: _stream,
    _STDERR: _stream,
    logging.FileHandler: _file(),
    logging.handlers.WatchedFileHandler: _file(),
    logging.handlers.RotatingFileHandler: _file("maxBytes", "backupCount"),
    logging.handlers.TimedRotatingFileHandler: _timed,
    logging.handlers.MemoryHandler: _memory,
    # The timeout is one as of Python 3.14.
    logging.handlers.SysLogHandler: _attributes(
        "address", "facility", "socktype", "timeout", made=("socket", "unixsocket", "createSocket")
    ),
    logging.handlers.SocketHandler: _socket,
    logging.handlers.DatagramHandler: _socket,
    logging.handlers.HTTPHandler: _attributes("host", "url", "method", "secure", "credentials", "context"),
    logging.handlers.SMTPHandler: _smtp,
    "django.utils.log.AdminEmailHandler": _django_mail,  # Django's default logging has it
}


def _remedy(handler: logging.Handler) -> str:
    if isinstance(handler, QueueHandler):
        return "another LogServer is running. Stop that one first, or add what you need to it"
    if isinstance(handler, logging.handlers.QueueHandler):
        return (
            "the server takes the place of a QueueHandler and the thread that reads its queue. Set up the handlers of "
            "that thread directly"
        )
    return (
        "only handlers of the standard library and Django's, and no classes made from them, can be described. Take it "
        "off its logger (removeHandler), or describe it yourself: LogServer(config={'version': 1, 'handlers': {'name': "
        "{'()': factory}}, ...})"
    )
