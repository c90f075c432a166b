"""The arguments of what makes handlers, formatters and filters: which there are, and which are wrong."""

from __future__ import annotations

import codecs
import datetime
import inspect
import os
from collections.abc import Callable
from typing import Any

from mplog.config.configurator import is_kind
from mplog.config.mistakes import cause_of, join, show, wrong
from mplog.sinks.sink import Sink

#: The modes in which open() opens a text file for writing.
_MODES = {kind + more for kind in "awx" for more in ("", "t", "+", "+t", "t+")}
_WHENS = "It is one of S, M, H, D, midnight, and W0 to W6"


def arguments_of(factory: Any) -> tuple[dict[str, bool], bool]:
    """Return the names of a callable's arguments, with whether each is required; and whether it takes any others.

    Raises TypeError or ValueError if its signature is unknown.
    """
    names: dict[str, bool] = {}
    takes_others = False
    # The constructor of a sink passes unknown arguments on to the class above, and may itself give required ones.
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


def make(place: str, kind: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Make a sink or a formatter, to see whether that works; the error names the argument that is wrong."""
    try:
        return kind(**given)
    except Exception as error:
        key = _find_wrong(kind, given)
        shown = join(place, "formatter" if key == "format" else key) if key else place
        raise wrong(shown, str(error) or type(error).__name__, "") from error


def _find_wrong(kind: Callable[..., Any], given: dict[str, Any]) -> str:
    """Return the first argument with which it cannot be made, though it can with those before; "" for none."""
    names = {name: is_needed for name, is_needed in arguments_of(kind)[0].items() if name in given}
    needed = [name for name, is_needed in names.items() if is_needed]
    tried = {name: given[name] for name in needed}
    for name in [*needed[-1:], *(name for name in names if name not in needed)]:
        tried[name] = given[name]
        try:
            kind(**tried)
        except Exception:
            return name
    return ""


def check_file_handler(place: str, given: dict[str, Any], factory: Any) -> None:
    """Check the arguments of one of the stdlib's file handlers."""

    def check(key: str, is_right: Callable[[Any], object], remedy: str) -> None:
        value = given.get(key)
        is_left_out = key not in given or (value is None and key in ("encoding", "errors", "atTime"))
        if not is_left_out and not is_right(value):
            raise wrong(f"{place}.{key}", f"it is {show(value)}", remedy)

    check("filename", lambda path: isinstance(path, (str, os.PathLike)), "It must be a path")
    check("filename", lambda path: "\0" not in os.fspath(path), "No path has a NUL")
    check("mode", lambda mode: isinstance(mode, str) and mode in _MODES, "It is 'a', or 'w' to empty the file first")
    check("encoding", _is_encoding, "It is the name of one, such as 'utf-8'")
    check("errors", _is_error_handler, "It is 'strict', 'backslashreplace', or another name that open() knows")
    check("maxBytes", _is_number, "It is a number: 10 MB are 10_000_000")
    check("backupCount", lambda count: _is_number(count) and float(count).is_integer(), "It is a whole number of files")
    check("interval", lambda number: _is_number(number) and number > 0, "It is a number above 0")
    check("atTime", lambda time: isinstance(time, datetime.time), "It is a datetime.time")
    check("when", lambda when: isinstance(when, str), _WHENS)
    try:
        factory(**{**given, "delay": True}).close()
    except ValueError as error:
        raise wrong(f"{place}.when", cause_of(error), _WHENS) from error


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
