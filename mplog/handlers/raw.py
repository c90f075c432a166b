"""Handlers for bytes. They run in the logging process.

The rule of this file: **a piece of bytes is written whole and once, to the sink that it was sent to.** A raw file is a
log file in which each piece is a record: rotated between two pieces, taken back if written in part. Its encoding is
Latin-1, in which each byte is a character.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from mplog.files.open_file import FileOptions
from mplog.handlers.log_file import LogFileHandler
from mplog.handlers.text import TextHandler


class Writer(Protocol):
    """What a `WriterSink` writes to. Its methods run in the logging process. They may raise, which is counted."""

    def write(self, batch: list[bytes]) -> object:
        """Write these pieces in this order."""

    def flush(self) -> object:
        """Force out what was written: called after each batch."""

    def close(self) -> object:
        """End writing."""


#: The record that is reported for bytes that could not be written.
_RECORD = logging.LogRecord("mplog.write", logging.NOTSET, "", 0, "bytes", None, None)


class RawFileHandler(LogFileHandler):
    """Writes bytes to a file. The name is that of the sink."""

    terminator = ""

    def __init__(self, path: str, options: FileOptions, *, name: str, **more: Any) -> None:
        self.raw_name = name
        super().__init__(path, options, **more)

    def handle_bytes(self, batch: Sequence[bytes]) -> None:
        self.take([_RECORD] * len(batch), [piece.decode("latin-1") for piece in batch])


class WriterHandler(TextHandler):
    """Gives bytes to a writer. The name is that of the sink."""

    def __init__(self, writer: Writer, name: str) -> None:
        super().__init__()
        self._writer = writer
        self._batch: list[bytes] = []
        self._is_closed = False
        self.raw_name = name

    def __repr__(self) -> str:
        return f"<WriterHandler {type(self._writer).__name__}>"

    def handle_bytes(self, batch: Sequence[bytes]) -> None:
        self._batch += batch

    def flush(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            try:
                self._writer.write(batch)
                self._writer.flush()
            except Exception:
                self.fail([_RECORD] * len(batch))

    def _release(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._writer.close()
