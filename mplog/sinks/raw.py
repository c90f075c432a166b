"""Sinks for bytes: `RawSink`, a file, and `WriterSink`, anything with a `Writer`."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from typing import Any

from mplog.handlers.raw import RawFileHandler, Writer, WriterHandler
from mplog.sinks.file import FileSink
from mplog.sinks.sink import Sink

_NOT_FOR_BYTES = ("format", "filters", "escape", "level", "encoding", "logger", "propagate")


class RawSink(FileSink):
    """A file of bytes that `mplog.write` has sent.

    >>> RawSink("trades.bin", name="trades")         # mplog.write(b"...", to="trades")        # doctest: +SKIP

    Nothing is written between the pieces. If the logging process is killed, none is lost, doubled or torn.

    Args:
        path: the file.
        name: the ``to=`` of `mplog.write`. ``""`` (the default) gets the bytes that are sent without it.
        mode, owner, follow_symlinks, rotate, archive, keep, compress, timezone, fsync: see `FileSink`. A file is
            rotated between two pieces.
    """

    def __init__(self, path: Any, *, name: str = "", **options: Any) -> None:
        _check(name, options, self)
        super().__init__(path, encoding="latin-1", **options)
        self.name = name

    def install(self, default: logging.Formatter) -> list[logging.Handler]:
        return [self.make_handler()]

    def make_handler(self) -> logging.Handler:
        return self.open_file(RawFileHandler, name=self.name)


class WriterSink(Sink):
    """Any writer of bytes that `mplog.write` has sent.

    >>> class Upload:                                                                          # doctest: +SKIP
    ...     def write(self, batch): send(b"".join(batch))
    ...     def flush(self): ...
    ...     def close(self): ...
    >>> WriterSink(Upload, name="trades")            # mplog.write(b"...", to="trades")        # doctest: +SKIP

    Bytes are written in order, each piece at least once: again if the logging process is killed after writing it.

    Args:
        factory: called without arguments in the logging process; returns a `Writer`. A lambda will do.
        name: the ``to=`` of `mplog.write`, see `RawSink`.
    """

    def __init__(self, factory: Callable[[], Writer], *, name: str = "") -> None:
        super().__init__()
        _check(name, {}, self)
        if not callable(factory):
            raise TypeError(f"WriterSink needs a function that makes a writer, not {factory!r}")
        self.factory = factory
        self.name = name

    def describe(self) -> str:
        return getattr(self.factory, "__qualname__", repr(self.factory))

    def install(self, default: logging.Formatter) -> list[logging.Handler]:
        return [self.make_handler()]

    def make_handler(self) -> logging.Handler:
        writer = self.factory()
        missing = [name for name in ("write", "flush", "close") if not callable(getattr(writer, name, None))]
        if missing:
            raise TypeError(f"the factory of {self} returned {writer!r}, which has no {', '.join(missing)}()")
        if isinstance(writer, io.IOBase):
            raise TypeError(
                f"the factory of {self} returned the file {writer!r}, whose write() takes bytes, and that of a Writer "
                "takes a list of them. For a file there is RawSink(path); for another one, a class of your own with "
                "def write(self, batch): self.file.writelines(batch)"
            )
        return WriterHandler(writer, self.name)


def _check(name: str, options: dict[str, Any], sink: Sink) -> None:
    if not isinstance(name, str) or len(name.encode()) > 255:
        raise ValueError(f"the name of a sink is a text of up to 255 bytes, not {name!r}")
    for option in _NOT_FOR_BYTES:
        if option in options:
            raise TypeError(f"{type(sink).__name__} does not take {option}=: it writes bytes as they are. Leave it out")


def check_raw_names(sinks: Sequence[Sink]) -> list[str]:
    """Return the names of the sinks for bytes; raise a ValueError if two have the same."""
    names = [sink.name for sink in sinks if isinstance(sink, (RawSink, WriterSink))]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two sinks for bytes are called {name!r}. Give one another name=")
    return names
