"""Sinks: where records are written, as recipes.

The rule of this file: **a sink is a recipe in the program, and a ``logging.Handler`` in the logging process.** Sinks
pickle; the handler that ``open()`` makes never leaves the logging process, and neither does its file.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

import filelock

from mplog.errors import LogFileLockedError

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # not subscriptable on Python 3.10

__all__ = ["DEFAULT_FORMAT", "ConsoleSink", "FileSink", "HandlerSink", "LogFileHandler", "Sink"]

#: Who logged what, where and when: the process is what a log of several processes is read for.
DEFAULT_FORMAT = "%(asctime)s %(levelname)-8s %(processName)s %(name)s | %(message)s"


class Sink:
    """The recipe of a handler. Override `make_handler` to write one of your own.

    Args:
        level: the handler's level; records below it are not written. NOTSET (the default) writes all.
        format: a ``%``-style format or a ``logging.Formatter``; None (the default) takes the server's, unless the
            handler brings a formatter of its own.
        filters: the handler's filters: objects with a ``filter`` method, or functions.
    """

    def __init__(
        self,
        *,
        level: int | str = logging.NOTSET,
        format: str | logging.Formatter | None = None,
        filters: Sequence[Any] = (),
    ) -> None:
        self.level = level
        self.format = format
        self.filters = tuple(filters)
        # Bad levels and formats are found here, in the program, where the mistake is.
        logging.Handler(level)
        if format is not None:
            to_formatter(format)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    def describe(self) -> str:
        """Return what tells this sink from others in messages."""
        return ""

    def make_handler(self) -> logging.Handler:
        """Return a new handler. Runs in the logging process."""
        raise NotImplementedError(f"{type(self).__name__} must override make_handler()")

    def open(self, default: logging.Formatter) -> logging.Handler:
        """Return the handler, ready to write. Runs in the logging process.

        Args:
            default: the formatter for a handler that has none.
        """
        handler = self.make_handler()
        if self.level != logging.NOTSET:
            handler.setLevel(self.level)
        if self.format is not None:
            handler.setFormatter(to_formatter(self.format))
        elif handler.formatter is None:
            handler.setFormatter(default)
        for filter in self.filters:
            handler.addFilter(filter)
        return handler


def to_formatter(format: str | logging.Formatter) -> logging.Formatter:
    """Return the format as a formatter.

    Raises:
        ValueError: it is not a valid ``%``-style format.
    """
    return logging.Formatter(format) if isinstance(format, str) else format


class HandlerSink(Sink):
    """Any ``logging.Handler``, made in the logging process.

    >>> HandlerSink(lambda: logging.handlers.SysLogHandler("/dev/log"))               # doctest: +SKIP

    Args:
        factory: called without arguments in the logging process; returns the handler. A lambda will do. Nothing of
            ``__main__`` is imported there, so it must not rely on what the program has changed in its own modules.
        level, format, filters: see `Sink`.
    """

    def __init__(self, factory: Callable[[], logging.Handler], **options: Any) -> None:
        super().__init__(**options)
        if not callable(factory):
            raise TypeError(
                f"HandlerSink needs a function that makes a handler, not {factory!r}. "
                "Write HandlerSink(lambda: SomeHandler(...)): a handler that exists already belongs to this process."
            )
        self.factory = factory

    def describe(self) -> str:
        return getattr(self.factory, "__qualname__", repr(self.factory))

    def make_handler(self) -> logging.Handler:
        handler = self.factory()
        if not isinstance(handler, logging.Handler):
            raise TypeError(f"the factory of {self} returned {handler!r}, which is not a logging.Handler")
        return handler


class ConsoleSink(Sink):
    """The terminal: what the program's own standard error or output is connected to.

    Args:
        stream: ``"stderr"`` (the default) or ``"stdout"``.
        color: colour each record by its level; None (the default) does so on a terminal, unless ``NO_COLOR`` is set,
            and anywhere if ``FORCE_COLOR`` is.
        level, format, filters: see `Sink`.
    """

    def __init__(
        self, stream: Literal["stderr", "stdout"] = "stderr", *, color: bool | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if stream not in ("stderr", "stdout"):
            raise ValueError(f"a ConsoleSink writes to 'stderr' or 'stdout', not to {stream!r}")
        self.stream = stream
        self.color = color

    def describe(self) -> str:
        return self.stream

    def make_handler(self) -> logging.Handler:
        stream: TextIO | None = getattr(sys, self.stream)
        if stream is None:
            raise OSError(errno.EBADF, f"this program has no {self.stream}")
        # What cannot be shown is shown as an escape; a console is no place for an exception.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
        color = _wants_color(stream) if self.color is None else self.color
        return ColorHandler(stream) if color else logging.StreamHandler(stream)


def _wants_color(stream: TextIO) -> bool:
    """Decide as CPython does for its own tracebacks (the environment variables of https://no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


class ColorHandler(_StreamHandler):
    """A StreamHandler that colours each record by its level."""

    _COLORS = ((logging.CRITICAL, "1;31"), (logging.ERROR, "31"), (logging.WARNING, "33"), (logging.INFO, "32"))

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for level, color in self._COLORS:
            if record.levelno >= level:
                return f"\x1b[{color}m{text}\x1b[0m"
        return f"\x1b[2m{text}\x1b[0m"


class FileSink(Sink):
    """A file, which one logging process at a time writes.

    Args:
        path: the file; a relative path is taken from the current directory of this moment.
        encoding: its encoding. What it cannot express is written as an escape.
        mode: the permissions of a file that is created.
        follow_symlinks: open the file also where `path` is a symbolic link. Off by default, since whoever may write
            to the log's directory could so make the program write anywhere.
        level, format, filters: see `Sink`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        encoding: str = "utf-8",
        mode: int = 0o640,
        follow_symlinks: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        "".encode(encoding)
        self.path = os.path.abspath(path)
        self.encoding = encoding
        self.mode = mode
        self.follow_symlinks = follow_symlinks

    def describe(self) -> str:
        return repr(self.path)

    def make_handler(self) -> logging.Handler:
        return LogFileHandler(
            self.path, encoding=self.encoding, permissions=self.mode, follow_symlinks=self.follow_symlinks
        )


class LogFileHandler(logging.FileHandler):
    """A FileHandler that writes a batch at a time, and holds the lock of its file. Runs in the logging process.

    `emit` collects; `flush`, which the logging process calls behind each batch, writes. A record that could not be
    written goes to `handleError`, and what was written of it is taken back.

    Raises:
        LogFileLockedError: another logging process writes the file.
        OSError: the file cannot be opened, or is not a regular file.
    """

    def __init__(self, path: str, *, encoding: str, permissions: int, follow_symlinks: bool) -> None:
        self._batch: list[tuple[logging.LogRecord, str]] = []
        self._fd = -1
        self._owner_lock = _lock(os.path.realpath(path) if follow_symlinks else path)
        try:
            self._fd = _open_regular(path, permissions, follow_symlinks=follow_symlinks)
            super().__init__(path, encoding=encoding, errors="backslashreplace", delay=True)
        except BaseException:
            self._release()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        """Render the record for the next `flush`."""
        try:
            self._batch.append((record, self.format(record) + self.terminator))
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Write what has been rendered."""
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        data = memoryview(self._encode("".join([text for _, text in batch])))
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            self._take_back(batch, written)

    def _take_back(self, batch: list[tuple[logging.LogRecord, str]], written: int) -> None:
        """Cut off the record that was written in part, and report it and those behind it."""
        whole = count = 0
        for _, text in batch:
            size = len(self._encode(text))
            if whole + size > written:
                break
            whole += size
            count += 1
        if whole < written:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - (written - whole))
        for record, _ in batch[count:]:
            self.handleError(record)

    def _encode(self, text: str) -> bytes:
        return text.encode(self.encoding or "utf-8", "backslashreplace")

    def close(self) -> None:
        """Write the rest, and let go of the file."""
        try:
            self.flush()
        finally:
            self._release()
            super().close()

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._owner_lock.is_locked:
            # While it is still held: whoever waits for it sees that the file has gone, and makes a new one.
            with contextlib.suppress(OSError):
                os.unlink(self._owner_lock.lock_file)
            self._owner_lock.release()


def _open_regular(path: str, permissions: int, *, follow_symlinks: bool) -> int:
    """Open a regular file for appending, or make it."""
    # O_NONBLOCK: opening a FIFO that somebody planted must not wait for its reader. It does nothing to a file.
    flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    if not follow_symlinks:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, permissions)
    except FileExistsError:
        pass
    else:
        if hasattr(os, "fchmod"):
            os.fchmod(fd, permissions)  # the mode that was asked for, whatever the umask has taken off it
        return fd
    try:
        fd = os.open(path, flags | (os.O_CREAT if follow_symlinks else 0), permissions)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(
                errno.ELOOP,
                "it is a symbolic link, which is refused because it may lead anywhere. Give the file that it points "
                "to, or FileSink(..., follow_symlinks=True)",
            ) from None
        if error.errno == errno.ENXIO:
            raise _not_a_file() from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _not_a_file()
    return fd


def _not_a_file() -> OSError:
    return OSError(
        errno.EINVAL,
        "it is not a regular file but a device, a FIFO or a socket. For the console there is ConsoleSink(), for "
        "anything else HandlerSink(lambda: logging.FileHandler(path))",
    )


def _lock(path: str) -> filelock.BaseFileLock:
    """Become the one process that writes the file."""
    directory, name = os.path.split(os.path.realpath(os.path.dirname(path)) + os.sep + os.path.basename(path))
    if not os.path.isdir(directory):
        raise FileNotFoundError(errno.ENOENT, f"its directory {directory} does not exist. Create it first")
    place = os.path.join(directory, f".{name}.lock")
    if not os.access(directory, os.W_OK):
        # As with /var/log, where an administrator has made the file.
        place = os.path.join(tempfile.gettempdir(), f"mplog{place.replace(os.sep, '%')}")
    lock = filelock.FileLock(place, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        pid, since = _read_owner(place)
        owner = "of unknown pid" if pid is None else f"pid {pid}, since {since}"
        raise LogFileLockedError(
            f"{path} is already written by another logging process ({owner}). "
            "Stop it, or give this server another file.",
            path=path,
            pid=pid,
            since=since,
        ) from None
    with open(place, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()} {datetime.datetime.now():%Y-%m-%d %H:%M:%S}\n")
    return lock


def _read_owner(place: str) -> tuple[int | None, str | None]:
    try:
        with open(place, encoding="ascii") as file:
            pid, _, since = file.readline().strip().partition(" ")
        return int(pid), since
    except (OSError, ValueError):
        return None, None
