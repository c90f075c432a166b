"""What mplog writes in place of the stdlib's file and stream handlers. Runs in the logging process.

The rule of this file: **the same names and the same bytes as the stdlib's own handler, or that handler itself.** The
stdlib keeps what mplog cannot do exactly: a device, a special ``errors``, a ``namer`` or ``rotator``, a symbolic link
that would be rotated.
"""

from __future__ import annotations

import functools
import inspect
import logging
import logging.handlers
import os
import stat
import sys
from collections.abc import Mapping
from typing import Any

from mplog.files.open_file import FileOptions
from mplog.files.rotation import Rotator
from mplog.files.stdlib_rotation import SizeRotator, TimeRotator
from mplog.handlers.log_file import LogFileHandler
from mplog.handlers.text import TextHandler
from mplog.sinks.console import ConsoleSink
from mplog.sinks.file import FileSink
from mplog.sinks.raw import RawSink
from mplog.sinks.routed import RoutedFileSink
from mplog.sinks.sink import Sink

FILE_HANDLERS = (
    logging.FileHandler,
    logging.handlers.WatchedFileHandler,
    logging.handlers.RotatingFileHandler,
    logging.handlers.TimedRotatingFileHandler,
)

#: The classes that are served; subclasses of them are not.
SERVED = (*FILE_HANDLERS, logging.StreamHandler)
#: Sinks that use only the text of a record.
SINKS = (FileSink, RoutedFileSink, ConsoleSink, RawSink)


class Handlers:
    """Makes the handlers of one configuration.

    If an earlier logging process has written their files, ``mode: "w"`` empties none, and ``"x"`` opens existing ones.
    """

    def __init__(self, *, restarted: bool) -> None:
        self._restarted = restarted
        #: By path: the handler that has the file open, and how it writes.
        self._files: dict[str, tuple[LogFileHandler, tuple[Any, ...]]] = {}

    def make(self, kind: type[logging.Handler], attributes: Mapping[str, Any], **given: Any) -> logging.Handler:
        """Return a handler that writes as one of `SERVED` does; `attributes` are going to be set on it."""
        bound = inspect.signature(kind).bind(**given)
        bound.apply_defaults()
        arguments = bound.arguments
        if kind is logging.StreamHandler:
            return _stream(arguments["stream"])
        # Decided before the mode changes: the note of a commit has the numbers of files, so all logging processes must
        # agree on which files mplog writes.
        is_served = _can_be_served(kind, arguments) and not attributes.keys() - {"terminator"}
        if self._restarted and not (arguments.get("mode") or "a").startswith("a"):
            arguments["mode"] = given["mode"] = "a"
        if not is_served:
            return kind(**given)
        return self._file(kind, arguments, attributes.get("terminator", "\n")) or kind(**given)

    def open_sink(self, kind: type[Sink], format: logging.Formatter | None, **given: Any) -> logging.Handler:
        """Return the handler of a sink; with no format, it writes what a handler without a formatter does."""
        sink = kind(**given) if format is None else kind(**given, format=format)
        sink.restarted = self._restarted
        return sink.open(logging.Formatter())

    def _file(self, kind: type[logging.Handler], arguments: dict[str, Any], terminator: str) -> logging.Handler | None:
        """Return what writes a file; None if a handler already writes that file in another way."""
        path = os.path.abspath(arguments["filename"])
        # What None and "locale" mean depends on the Python and on its UTF-8 mode.
        with open(os.devnull, encoding=arguments["encoding"]) as opened:
            encoding = opened.encoding
        rotator, how = _rotator(kind, arguments)
        is_watched = kind is logging.handlers.WatchedFileHandler
        likeness = (encoding, rotator, how, is_watched)
        real = os.path.realpath(path)
        if real in self._files:
            # In the stdlib, two handlers may have one file. Here, one writes for both.
            owner, its_likeness = self._files[real]
            return _SameFileHandler(owner) if its_likeness == likeness else None
        umask = os.umask(0)
        os.umask(umask)
        # As open() would make the file.
        options = FileOptions(encoding, 0o666 & ~umask, follow_symlinks=True, is_watched=is_watched)
        make_rotator = functools.partial(rotator, **how)
        if rotator is SizeRotator:
            make_rotator = functools.partial(make_rotator, terminator=terminator)
        handler = LogFileHandler(path, options, rotator=make_rotator, delay=arguments["delay"])
        if _empties(arguments) and os.path.getsize(path):
            os.truncate(path, 0)  # while it is locked
            handler.close()
            handler = LogFileHandler(path, options, rotator=make_rotator)
        self._files[real] = handler, likeness
        return handler


def _rotator(kind: type[logging.Handler], arguments: Mapping[str, Any]) -> tuple[type[Rotator], dict[str, Any]]:
    """Return what rotates the file of a handler, and how."""
    if kind is logging.handlers.RotatingFileHandler and arguments["maxBytes"] > 0 and arguments["backupCount"] > 0:
        return SizeRotator, {"max_bytes": arguments["maxBytes"], "backup_count": arguments["backupCount"]}
    if kind is logging.handlers.TimedRotatingFileHandler:
        names = ("when", "interval", "backupCount", "utc", "atTime")
        return TimeRotator, {"schedule": {name: arguments[name] for name in names}}
    return Rotator, {}


def _empties(arguments: Mapping[str, Any]) -> bool:
    # RotatingFileHandler decides like this.
    return arguments.get("mode") == "w" and arguments.get("maxBytes", 0) <= 0


def _can_be_served(kind: type[logging.Handler], arguments: Mapping[str, Any]) -> bool:
    if arguments.get("mode", "a") not in ("a", "w") or arguments["errors"] not in (None, "strict", "backslashreplace"):
        return False
    if _empties(arguments) and arguments["delay"]:
        return False  # the file is to be emptied when the first record comes
    path = os.path.abspath(arguments["filename"])
    if _rotator(kind, arguments)[1] and os.path.islink(path):
        return False  # the stdlib would rename the link
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # and no device, such as /dev/stdout
    except FileNotFoundError:
        return True


def _stream(stream: Any) -> logging.Handler:
    """Return a handler that writes to a stream as ``logging.StreamHandler`` does."""
    if stream is None or stream is sys.stderr:
        return ConsoleSink("stderr", color=False).make_handler()
    if stream is sys.stdout:
        return ConsoleSink("stdout", color=False).make_handler()
    return logging.StreamHandler(stream)


class _SameFileHandler(TextHandler):
    """Writes to the file that another handler has open."""

    can_wait = True

    def __init__(self, owner: LogFileHandler) -> None:
        super().__init__()
        self._owner = owner

    def __repr__(self) -> str:
        return repr(self._owner)

    def fileno(self) -> int:
        return self._owner.fileno()

    def write(self, texts: list[str]) -> None:
        self._owner.written = 0
        try:
            self._owner.write(texts)
        except Exception:
            self.written = self._owner.written
            raise
