"""What a contender is: one way for several processes to log into files.

The rule of this file: **a contender is set up as its own documentation recommends**, in three places: in the parent
before its workers start, in each worker, and in the parent when the workers have ended.

::

    parent:   start() ---- workers are started ------------ workers have ended: drain() --> close()
    worker:                worker() -> info; info(...) * n; leave()
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["FORMAT", "LOGGER", "BlockingFileHandler", "Contender", "file_handler", "is_stalling", "root_handler"]

FORMAT = "%(asctime)s %(levelname)-8s %(processName)s %(name)s | %(message)s"
LOGGER = "app.worker"

#: Seconds between two times when a blocked sink blocks.
_STALL_INTERVAL = 0.5


class Contender:
    """One way to log, with what it does by default. Spawned workers get it pickled, without ``_`` attributes.

    Args:
        directory: for its files, and nothing else.
        start_method: how the workers are started; the global default of ``multiprocessing`` is the same.
        stall: for how many seconds the file's handler blocks, every half second; 0 for never.

    Attributes:
        title: its name in tables.
        package: the distribution whose version is shown; None for the stdlib.
        note: what a reader of its row should know.
        template: the message, in the placeholders of its logger. None: its logger gets finished messages.
        share: the part of the records that a comparison gives it, since some take very long.
        has_file: whether its records end up in a file.
        can_stall: whether it knows about `stall`.
    """

    title = ""
    package: str | None = None
    note = ""
    template: str | None = "record %d %s"
    share = 1.0
    has_file = True
    can_stall = False

    def __init__(self, directory: str, start_method: str = "fork", stall: float = 0.0) -> None:
        self.directory = directory
        self.start_method = start_method
        self.stall = stall

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    @property
    def path(self) -> str:
        """The file that all workers share."""
        return os.path.join(self.directory, "app.log")

    @property
    def own_path(self) -> str:
        """A file of this process alone."""
        return os.path.join(self.directory, f"{os.getpid()}.log")

    @classmethod
    def version(cls) -> str:
        """Return the version of its package; empty for the stdlib.

        Raises:
            PackageNotFoundError: it is not installed.
        """
        return importlib.metadata.version(cls.package) if cls.package else ""

    def start(self) -> None:
        """Runs in the parent, before the workers start."""

    def worker(self) -> Callable[..., object]:
        """Runs in each worker: return what is called with the template and its arguments."""
        raise NotImplementedError

    def leave(self) -> None:
        """Runs in each worker after its last record, as the documentation says."""

    def services(self) -> list[int]:
        """Return the processes that log beside the parent and the workers."""
        return []

    def writer(self) -> int | None:
        """Return the process that writes the file, if the workers do not."""
        services = self.services()
        return services[0] if services else None

    def drain(self) -> None:
        """Runs in the parent after the workers have ended: return when everything is in the files."""

    def close(self) -> None:
        """End what `start` has started."""

    def delivered(self, payload: str) -> int:
        """Return how many records are in the files, whole."""
        # A record that was torn, or that swallowed its neighbour, does not fit.
        whole = re.compile(rb"record \d+ " + re.escape(payload.encode()) + rb'(?=["\n\r])')
        count = 0
        for path in self._files():
            with path.open("rb") as file:
                count += sum(1 for line in file if whole.search(line))
        return count

    def _files(self) -> list[Path]:
        return [path for path in Path(self.directory).rglob("*.log*") if path.is_file() and path.suffix != ".lock"]


def is_stalling(since: float, stall: float) -> float | None:
    """Block for `stall` seconds if the last time was long enough ago, and return the time to remember."""
    now = time.monotonic()
    if not stall or now - since < _STALL_INTERVAL:
        return None
    time.sleep(stall)
    return time.monotonic()


class BlockingFileHandler(logging.FileHandler):
    """A file on a slow disk."""

    def __init__(self, path: str, stall: float) -> None:
        super().__init__(path)
        self._stall = stall
        self._stalled_at = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, now and then late."""
        self._stalled_at = is_stalling(self._stalled_at, self._stall) or self._stalled_at
        super().emit(record)


def file_handler(path: str, stall: float = 0.0, format: str = FORMAT) -> logging.Handler:
    """Return a handler of the stdlib for that file."""
    handler = BlockingFileHandler(path, stall) if stall else logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(format))
    return handler


def root_handler(handler: logging.Handler) -> Callable[..., object]:
    """Make it the root logger's only handler, and return the method of a logger below."""
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    return logging.getLogger(LOGGER).info
