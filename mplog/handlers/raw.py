"""Handlers for bytes. They run in the logging process.

The rule of this file: **a piece of bytes is written whole, once, where it was sent to**, and no log record is. A raw
file is a log file in which each piece stands for a record: rotated between two of them, taken back when it is there in
part, waited for while the disk is full. Its text is Latin-1, in which byte and character are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from mplog.files.open_file import FileOptions
from mplog.handlers.log_file import LogFileHandler
from mplog.handlers.text import TextHandler


class Writer(Protocol):
    """What a `WriterSink` writes to. Its methods run in the logging process, and may raise; that is counted."""

    def write(self, batch: list[bytes]) -> object:
        """Write all of these, in this order. A list, so that many small pieces cost one call."""

    def flush(self) -> object:
        """Have it written: called behind each batch."""

    def close(self) -> object:
        """Let go, at the end."""


#: What stands for bytes where a record is reported that could not be written.
_RECORD = logging.LogRecord("mplog.write", logging.NOTSET, "", 0, "bytes", None, None)


class RawFileHandler(LogFileHandler):
    """Writes bytes to a file. Runs in the logging process.

    Args:
        path, options, more: see `LogFileHandler`.
        name: of the sink.
    """

    terminator = ""

    def __init__(self, path: str, options: FileOptions, *, name: str, **more: Any) -> None:
        self.raw_name = name
        super().__init__(path, options, **more)

    def handle_bytes(self, batch: Sequence[bytes]) -> None:
        """Take pieces for the next `flush`."""
        self.take([_RECORD] * len(batch), [piece.decode("latin-1") for piece in batch])


class WriterHandler(TextHandler):
    """Gives bytes to a writer. Runs in the logging process.

    Args:
        writer: takes them.
        name: of the sink.
    """

    def __init__(self, writer: Writer, name: str) -> None:
        super().__init__()
        self._writer = writer
        self._batch: list[bytes] = []
        self._is_closed = False
        self.raw_name = name

    def __repr__(self) -> str:
        return f"<WriterHandler {type(self._writer).__name__}>"

    def handle_bytes(self, batch: Sequence[bytes]) -> None:
        """Take pieces for the next `flush`."""
        self._batch += batch

    def flush(self) -> None:
        """Give them to the writer."""
        if self._batch:
            batch, self._batch = self._batch, []
            try:
                self._writer.write(batch)
                self._writer.flush()
            except Exception:
                self.fail([_RECORD] * len(batch))

    def close(self) -> None:
        try:
            self.flush()
        finally:
            super().close()
            if not self._is_closed:  # logging.shutdown() comes once more
                self._is_closed = True
                self._writer.close()
