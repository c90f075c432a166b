"""The handler that writes to the terminal. It runs in the logging process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TextIO

from mplog.files.outlet import Outlet
from mplog.files.portion import Encoder, Position
from mplog.handlers.text import TextHandler
from mplog.record.decoding import to_record
from mplog.record.layout import Entry

_START = Position(0, 0, 0)


class ConsoleHandler(TextHandler):
    """Writes to a stream; with `color`, each record in the colour of its level."""

    _COLORS = ((logging.CRITICAL, "1;31"), (logging.ERROR, "31"), (logging.WARNING, "33"), (logging.INFO, "32"))

    def __init__(self, stream: TextIO, *, color: bool) -> None:
        super().__init__()
        self._stream = stream
        outlet = getattr(stream, "buffer", None)
        self._outlet = outlet if isinstance(outlet, Outlet) else None
        self._encoder = Encoder(stream.encoding if self._outlet else "utf-8")
        self._color = color

    def __repr__(self) -> str:
        return f"<ConsoleHandler {getattr(self._stream, 'name', self._stream)}>"

    def fileno(self) -> int:
        return self._stream.fileno()

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._color:
            return text
        code = next((code for level, code in self._COLORS if record.levelno >= level), "2")
        return f"\x1b[{code}m{text}\x1b[0m"

    def handle_entries(self, batch: Sequence[Entry]) -> None:
        if not self._color:
            super().handle_entries(batch)
            return
        for entry in batch:
            try:
                record = to_record(*entry)
            except Exception as error:
                self._fail(entry, error)
            else:
                self.emit(record)

    def write(self, texts: list[str]) -> None:
        if self._outlet is None:
            self._stream.write("".join(texts))
            self._stream.flush()
            return
        self._stream.flush()  # what others have left in it
        portion = self._encoder.encode(texts, _START)
        done, error = self._outlet.attempt(portion.data)
        if error is not None:
            whole, self.written = self._encoder.rewind(portion, done)
            self._outlet.take_back(done - whole)
            raise error
