"""mplog, in the ways in which it is used."""

from __future__ import annotations

import configparser
import functools
import importlib.metadata
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mplog
from benchmarks.contender import FORMAT, LOGGER, Contender, file_handler, is_stalling
from mplog.handlers.log_file import LogFileHandler

__all__ = ["FastLogger", "FastLoggerJSON", "OrdinaryLoggers", "StdlibHandler"]

#: Seconds that the logging process may take to write the rest.
_DRAIN_TIMEOUT = 300.0


class OrdinaryLoggers(Contender):
    """The loggers of the stdlib, as every library uses them."""

    title = "mplog"
    package = "mplog"
    note = "ordinary loggers of the stdlib"
    can_stall = True

    @classmethod
    def version(cls) -> str:
        try:
            return super().version()
        except importlib.metadata.PackageNotFoundError:  # run from its source
            source = configparser.ConfigParser()
            source.read(Path(mplog.__path__[0]).parent / "setup.cfg")
            return source.get("metadata", "version")

    def sink(self) -> mplog.Sink:
        """Return the sink."""
        return BlockingFileSink(self.path, self.stall) if self.stall else mplog.FileSink(self.path)

    def options(self) -> dict[str, Any]:
        """Return further arguments of the server."""
        return {}

    def start(self) -> None:
        self._server = mplog.LogServer(self.sink(), level="INFO", format=FORMAT, **self.options()).start()
        self.initializer = self._server.initializer

    def worker(self) -> Callable[..., object]:
        self.initializer()
        return logging.getLogger(LOGGER).info

    def services(self) -> list[int]:
        return [self._server.pid]

    def drain(self) -> None:
        self._server.flush(_DRAIN_TIMEOUT)

    def close(self) -> None:
        self._server.stop(_DRAIN_TIMEOUT)


class FastLogger(OrdinaryLoggers):
    """All loggers are of ``mplog.Logger``."""

    title = "mplog.Logger"
    note = "LogServer(logger_class=mplog.Logger)"

    def options(self) -> dict[str, Any]:
        return {"logger_class": mplog.Logger}


class FastLoggerJSON(FastLogger):
    """The same, into JSON lines."""

    title = "mplog.Logger, JSON lines"
    note = "with mplog.JSONFormatter()"
    can_stall = False

    def sink(self) -> mplog.Sink:
        return mplog.FileSink(self.path, format=mplog.JSONFormatter())


class StdlibHandler(OrdinaryLoggers):
    """Any handler of the stdlib, in the logging process."""

    title = "mplog, stdlib handler"
    note = "HandlerSink(lambda: logging.FileHandler(...))"

    def sink(self) -> mplog.Sink:
        return mplog.HandlerSink(functools.partial(file_handler, self.path, self.stall))


class BlockingFileSink(mplog.FileSink):
    """A file on a slow disk."""

    def __init__(self, path: str, stall: float) -> None:
        super().__init__(path)
        self.stall = stall

    def make_handler(self) -> logging.Handler:
        """Return its handler. Runs in the logging process."""
        handler = _BlockingLogFileHandler(self.path, self.file_options)
        handler.stall = self.stall
        return handler


class _BlockingLogFileHandler(LogFileHandler):
    stall = 0.0
    _stalled_at = 0.0

    def write(self, texts: list[str]) -> None:
        self._stalled_at = self._stalled_at or time.monotonic()
        self._stalled_at = is_stalling(self._stalled_at, self.stall) or self._stalled_at
        super().write(texts)
