"""`Records`: the value of the fixture ``mplog_records``.

The rule of this file: **what was logged before a test asks is in the answer.** The logging process writes a file, which
is read after a flush. The test process has no thread for this, because it may fork.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
from collections.abc import Iterator

from mplog.pytest_plugin.children import TestHandler, followed, start_beside
from mplog.record.decoding import decode
from mplog.record.encoding import encode
from mplog.record.level import read_level
from mplog.server.log_server import LogServer
from mplog.sinks.file import FileSink


class LineEncoder(logging.Formatter):
    """Writes records whole, each as a line. Runs in the logging process."""

    def format(self, record: logging.LogRecord) -> str:
        return base64.b64encode(encode(record)).decode()


class Records:
    """The records of a test and of its children, as ``caplog`` has those of one process.

    They are in the order of the logging calls. Each access waits some milliseconds, until everything is there that has
    been logged so far. The initializer and the queue of `server` attach other processes.
    """

    def __init__(self, path: str | os.PathLike[str], formatter: logging.Formatter) -> None:
        self._path = path
        self._formatter = formatter
        self.server = start_beside(LogServer(FileSink(path, format=LineEncoder())))
        self._position = 0
        self._records: list[logging.LogRecord] = []
        self._levels: dict[str, int] = {}
        self._disable = logging.root.manager.disable

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Receive what is logged in the ``with`` block; then restore the levels, and stop the server."""
        try:
            with followed(TestHandler(self.server.queue)):
                yield
        finally:
            for name, level in self._levels.items():
                logging.getLogger(name).setLevel(level)
            logging.disable(self._disable)
            self.server.stop()

    @property
    def records(self) -> list[logging.LogRecord]:
        """The records as logging made them, except that messages are formatted, and ``args`` and ``exc_info`` None."""
        self.server.flush()
        with open(self._path, "rb") as file:
            file.seek(self._position)
            # Up to the last whole line: other processes may be logging at this moment.
            whole, newline, _ = file.read().rpartition(b"\n")
        self._position += len(whole + newline)
        records = [decode(base64.b64decode(line)) for line in whole.splitlines()]
        # Without the lines of the logging process itself, such as those on processes that have died.
        self._records += [record for record in records if (record.name, record.processName) != ("mplog", "mplog")]
        return self._records

    @property
    def record_tuples(self) -> list[tuple[str, int, str]]:
        """``(logger, level, message)`` of each record."""
        return [(record.name, record.levelno, record.getMessage()) for record in self.records]

    @property
    def messages(self) -> list[str]:
        """The messages of the records."""
        return [record.getMessage() for record in self.records]

    @property
    def text(self) -> str:
        """The records as text in pytest's ``log_format``, with tracebacks."""
        return "".join(f"{self._formatter.format(record)}\n" for record in self.records)

    def clear(self) -> None:
        """Forget the records so far."""
        self.records.clear()

    def set_level(self, level: int | str, logger: str | None = None) -> None:
        """Set a logger's level until the end of the test, here and in children, also in those that run already.

        Args:
            level: by number or name.
            logger: its name; None (the default) for the root logger.
        """
        name = logger or ""
        self._levels.setdefault(name, logging.getLogger(name).level)
        self._set(name, level)

    @contextlib.contextmanager
    def at_level(self, level: int | str, logger: str | None = None) -> Iterator[None]:
        """Set a logger's level for a ``with`` block; the arguments are those of `set_level`."""
        name = logger or ""
        before, disable = logging.getLogger(name).level, logging.root.manager.disable
        self._set(name, level)
        try:
            yield
        finally:
            self.server.set_level(name, before)
            logging.disable(disable)

    def _set(self, name: str, level: int | str) -> None:
        """Set a level, and lower what ``logging.disable()`` has set if it hides the level, as caplog does."""
        self.server.set_level(name, level)
        number = read_level(level)
        if logging.root.manager.disable >= number:
            logging.disable(max(number - 10, logging.NOTSET))
