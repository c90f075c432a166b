"""Sinks: where records are written, as recipes.

The rule of this file: **a sink is a recipe in the program, and a ``logging.Handler`` in the logging process.** Sinks
pickle; the handler that ``open()`` makes never leaves the logging process, and neither does its file.
"""

from __future__ import annotations

import codecs
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

from mplog.errors import LogFileLockedError
from mplog.formatters import Renderer, renderer
from mplog.record import LEVELNO, MSG, NAME, SHOWN_VALUES, Values, to_record

if TYPE_CHECKING:
    import filelock

__all__ = ["DEFAULT_FORMAT", "ConsoleSink", "FileSink", "HandlerSink", "LogFileHandler", "Sink", "TextHandler"]

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
        for filter in self.filters:
            if not callable(filter) and not callable(getattr(filter, "filter", None)):
                raise TypeError(f"a filter is a function, or an object with a filter() method, not {filter!r}")

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
        TypeError: it is neither a format nor a formatter.
    """
    if isinstance(format, str):
        return logging.Formatter(format)
    if not callable(getattr(format, "format", None)):
        raise TypeError(f"a format is a %-style format or a logging.Formatter, not {format!r}")
    return format


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
        return ConsoleHandler(stream, color=color)


def _wants_color(stream: TextIO) -> bool:
    """Decide as CPython does for its own tracebacks (the environment variables of https://no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


class TextHandler(logging.Handler):
    """A handler that writes a batch of texts at a time. Runs in the logging process.

    `handle_values` takes a batch as it comes off the wire; `emit` takes a single record. Both collect, and `flush`,
    which the logging process calls behind each batch, writes. A record that could not be written goes to `handleError`.
    Override `write`.
    """

    terminator = "\n"

    def __init__(self) -> None:
        super().__init__()
        self._sources: list[Values | logging.LogRecord] = []
        self._texts: list[str] = []
        self._renderer: tuple[logging.Formatter | None, Renderer] | None = None

    def createLock(self) -> None:
        """Have no lock: one thread handles records."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter and render the record for the next `flush`, without the lock that the base class takes."""
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Render the record for the next `flush`."""
        try:
            self._texts.append(self.format(record) + self.terminator)
        except Exception:
            self.handleError(record)
        else:
            self._sources.append(record)

    def handle_values(self, batch: Sequence[Values]) -> None:
        """Render a batch for the next `flush`."""
        if self._renderer is None or self._renderer[0] is not self.formatter:
            self._renderer = self.formatter, renderer(self.formatter or logging.Formatter(), self.terminator)
        self._texts += self._renderer[1](batch, self._fail)
        self._sources += batch

    def _fail(self, values: Values, error: Exception) -> None:
        # In the except clause of the renderer, as handleError() expects it.
        self.handleError(_to_record(values))

    def flush(self) -> None:
        """Write what has been rendered."""
        if not self._texts:
            return
        sources, texts = self._sources, self._texts
        self._sources, self._texts = [], []
        self.written = 0
        try:
            self.write(texts)
        except Exception:
            for source in sources[self.written :]:
                self.handleError(source if isinstance(source, logging.LogRecord) else _to_record(source))

    def write(self, texts: list[str]) -> None:
        """Write the texts; where that fails, set ``written`` to the number of those that are written, and raise."""
        raise NotImplementedError


def _to_record(values: Values) -> logging.LogRecord:
    """Return the values as a record for handleError(), also where they do not decode."""
    try:
        return to_record(values)
    except Exception:
        shown = values[SHOWN_VALUES]
        return logging.LogRecord(shown[NAME], shown[LEVELNO], "", 0, values[MSG], None, None)


class ConsoleHandler(TextHandler):
    """Writes to a stream.

    Args:
        stream: where to.
        color: colour each record by its level.
    """

    _COLORS = ((logging.CRITICAL, "1;31"), (logging.ERROR, "31"), (logging.WARNING, "33"), (logging.INFO, "32"))

    def __init__(self, stream: TextIO, *, color: bool) -> None:
        super().__init__()
        self._stream = stream
        self._color = color

    def __repr__(self) -> str:
        return f"<ConsoleHandler {getattr(self._stream, 'name', self._stream)}>"

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._color:
            return text
        code = next((code for level, code in self._COLORS if record.levelno >= level), "2")
        return f"\x1b[{code}m{text}\x1b[0m"

    def handle_values(self, batch: Sequence[Values]) -> None:
        if not self._color:
            super().handle_values(batch)
            return
        for values in batch:
            try:
                record = to_record(values)
            except Exception as error:
                self._fail(values, error)
            else:
                self.emit(record)

    def write(self, texts: list[str]) -> None:
        self._stream.write("".join(texts))
        self._stream.flush()


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

    def clear_up(self) -> None:
        """Remove the lock file of a logging process that has died."""
        path = os.path.realpath(self.path) if self.follow_symlinks else self.path
        with contextlib.suppress(OSError):
            if os.path.exists(_lock_path(path)):
                lock = _lock(path)
                os.unlink(lock.lock_file)
                lock.release()

    def make_handler(self) -> logging.Handler:
        return LogFileHandler(
            self.path, encoding=self.encoding, permissions=self.mode, follow_symlinks=self.follow_symlinks
        )


class LogFileHandler(TextHandler):
    """Writes to a file, and holds its lock.

    What was written of a record whose rest could not be written is taken back.

    Raises:
        LogFileLockedError: another logging process writes the file.
        OSError: the file cannot be opened, or is not a regular file.
    """

    def __init__(self, path: str, *, encoding: str, permissions: int, follow_symlinks: bool) -> None:
        super().__init__()
        self._path = path
        self._fd = -1
        self._owner_lock: filelock.BaseFileLock | None = None
        try:
            self._owner_lock = _lock(os.path.realpath(path) if follow_symlinks else path)
            self._fd = _open_regular(path, permissions, follow_symlinks=follow_symlinks)
            self._encoder = codecs.getincrementalencoder(encoding)("backslashreplace")
            if os.fstat(self._fd).st_size:
                self._encoder.setstate(0)  # no byte order mark but at the beginning of the file
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<LogFileHandler {self._path}>"

    def write(self, texts: list[str]) -> None:
        state = self._encoder.getstate()
        data = memoryview(self._encoder.encode("".join(texts)))
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            self._encoder.setstate(state)
            self._take_back(texts, written)
            raise

    def _take_back(self, texts: list[str], written: int) -> None:
        """Cut off the record that was written in part."""
        whole = count = 0
        for text in texts:
            state = self._encoder.getstate()
            size = len(self._encoder.encode(text))
            if whole + size > written:
                self._encoder.setstate(state)
                break
            whole += size
            count += 1
        if whole < written:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - (written - whole))
        self.written = count

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
        if self._owner_lock is not None and self._owner_lock.is_locked:
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


def _lock_path(path: str) -> str:
    """Return the path of the lock file, which is the same by whatever way its directory is reached."""
    directory, name = os.path.realpath(os.path.dirname(path)), os.path.basename(path)
    if not os.path.isdir(directory):
        raise FileNotFoundError(errno.ENOENT, f"its directory {directory} does not exist. Create it first")
    place = os.path.join(directory, f".{name}.lock")
    if not os.access(directory, os.W_OK):
        # As with /var/log, where an administrator has made the file.
        place = os.path.join(tempfile.gettempdir(), f"mplog{place.replace(os.sep, '%')}")
    return place


def _lock(path: str) -> filelock.BaseFileLock:
    """Become the one process that writes the file."""
    # Here, because it costs as much as everything else that a program loads to start a server.
    import filelock

    place = _lock_path(path)
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
