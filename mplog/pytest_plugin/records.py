"""`Records`: what the fixture ``mplog_records`` is.

::

    test process, its children -> LogQueue -> logging process -> a file -> read here, when a test asks

The rule of this file: **what was logged before a test asks is in the answer.** The file is read behind a flush. There
is no thread in the test process: it may fork.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from mplog.pytest_plugin.children import LineEncoder, TestHandler, decode_line, followed, start_beside
from mplog.server.log_server import LogServer
from mplog.sinks.file import FileSink

__all__ = ["Records"]


class Records:
    """The records of a test, its children's included: as ``caplog``, with those of other processes.

    In the order of the logging calls, from the set-up of the fixture on. Each look waits until what has been logged is
    there; it takes some milliseconds.

    Args:
        path: a file that is not there yet.
        formatter: for `text`.

    Attributes:
        server: the `LogServer` to which they go, for what has to be told where: ``server.initializer``,
            ``server.queue``.
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
        """Take up what is logged meanwhile; then put the levels back, and stop the server."""
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
        """The records, as logging made them; their messages are formatted, their arguments and ``exc_info`` gone."""
        self.server.flush()
        with open(self._path, "rb") as file:
            file.seek(self._position)
            # Up to the last line that is whole: others may be logging at this moment.
            whole, newline, _ = file.read().rpartition(b"\n")
        self._position += len(whole + newline)
        records = [decode_line(line) for line in whole.splitlines()]
        # Not what the logging process itself has to say: how a process ended, for instance.
        self._records += [record for record in records if (record.name, record.processName) != ("mplog", "mplog")]
        return self._records

    @property
    def record_tuples(self) -> list[tuple[str, int, str]]:
        """``(logger, level, message)`` of each."""
        return [(record.name, record.levelno, record.getMessage()) for record in self.records]

    @property
    def messages(self) -> list[str]:
        """Their messages alone."""
        return [record.getMessage() for record in self.records]

    @property
    def text(self) -> str:
        """All of them as text, as pytest's ``log_format`` has it, with tracebacks."""
        return "".join(f"{self._formatter.format(record)}\n" for record in self.records)

    def clear(self) -> None:
        """Forget what was logged so far."""
        self.records.clear()

    def set_level(self, level: int | str, logger: str | None = None) -> None:
        """Set a logger's level until the end of the test, here and in children, those that run already too.

        Args:
            level: by number or name.
            logger: its name; None (the default) for the root logger.
        """
        name = logger or ""
        self._levels.setdefault(name, logging.getLogger(name).level)
        self.server.set_level(name, level)
        self._enable(name, level)

    @contextlib.contextmanager
    def at_level(self, level: int | str, logger: str | None = None) -> Iterator[None]:
        """Set a logger's level inside of a ``with`` block.

        Args:
            level, logger: as in `set_level`.
        """
        name = logger or ""
        before, disable = logging.getLogger(name).level, logging.root.manager.disable
        self.server.set_level(name, level)
        self._enable(name, level)
        try:
            yield
        finally:
            self.server.set_level(name, before)
            logging.disable(disable)

    @staticmethod
    def _enable(name: str, level: int | str) -> None:
        """As caplog does, lift what ``logging.disable()`` has set where it hides the level."""
        number = logging.Handler(level).level
        if logging.root.manager.disable >= number:
            logging.disable(max(number - 10, logging.NOTSET))
