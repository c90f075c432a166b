"""Handlers that render a batch of records and write it at once. They run in the logging process."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Sequence
from typing import Any

from mplog.formats.batch import Renderer
from mplog.formats.text import renderer
from mplog.handlers.output import Output
from mplog.record.decoding import to_record
from mplog.record.layout import MSG, Entry


class LocklessHandler(Output, logging.Handler):
    """A handler that holds no lock while it writes.

    Only one thread writes. A lock would be held while the handler waits, and a function that logs would wait for it.
    """

    @property
    def handler(self) -> logging.Handler:
        return self

    def createLock(self) -> None:
        self.lock = None

    def handle(self, record: logging.LogRecord) -> Any:
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed


class TextHandler(LocklessHandler):
    """A handler that writes a batch of texts at a time. Subclasses override `write`.

    `handle_entries` takes a batch as it comes off the wire; `emit` takes a single record. Both collect, and `flush`,
    which the logging process calls after each batch, writes. A record that cannot be written goes to `handleError`. If
    `keeps_trying` is set, a record that meets an OSError waits for the next `flush` instead, with all that follow it.
    """

    terminator = "\n"
    takes_entries = True

    def __init__(self) -> None:
        super().__init__()
        self._sources: list[Entry | logging.LogRecord] = []
        self._texts: list[str] = []
        #: Guards those two: the function of a `CallableSink` may log in a thread of its own.
        self._adding = threading.RLock()
        self._renderer_made: tuple[logging.Formatter | None, Renderer] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record) + self.terminator
        except Exception:
            self.handleError(record)
        else:
            with self._adding:
                self._texts.append(text)
                self._sources.append(record)

    def handle_entries(self, batch: Sequence[Entry]) -> None:
        texts = self._renderer.render(batch, self._fail)
        with self._adding:
            self._texts += texts
            self._sources += batch

    @property
    def _renderer(self) -> Renderer:
        if self._renderer_made is None or self._renderer_made[0] is not self.formatter:
            self._renderer_made = self.formatter, renderer(self.formatter or logging.Formatter(), self.terminator)
        return self._renderer_made[1]

    @property
    def needs_details(self) -> bool:
        return bool(self.filters) or self._renderer.needs_details

    def _fail(self, entry: Entry, error: Exception) -> None:
        # In the except clause of the renderer, as handleError() expects it.
        self.handleError(_to_record(entry))

    def flush(self) -> None:
        if not self._texts:
            return
        with self._adding:
            sources, texts = self._sources, self._texts
            self._sources, self._texts = [], []
        self.written = 0
        must_divide = False
        try:
            self.write(texts)
            self.stuck_by = None
        except Exception as error:
            # EFBIG: a file that has reached its greatest size, or the limit of the process, never takes more.
            if self.keeps_trying and isinstance(error, OSError) and error.errno != errno.EFBIG:
                with self._adding:
                    self._sources[:0], self._texts[:0] = sources[self.written :], texts[self.written :]
                self.stuck_by = error
                return
            self.stuck_by = None
            must_divide = isinstance(error, MemoryError) and len(texts) - self.written > 1
            if not must_divide:
                self.fail(sources[self.written :])
        if must_divide:  # not in the except clause, where the traceback keeps what was too much
            for source, text in zip(sources[self.written :], texts[self.written :]):
                with self._adding:
                    self._sources.append(source)
                    self._texts.append(text)
                self.flush()

    def fail(self, sources: Sequence[Entry | logging.LogRecord]) -> None:
        """Report records that could not be written. Runs in an except clause."""
        for source in sources:
            self.handleError(_to_record(source) if isinstance(source, tuple) else source)

    def close(self) -> None:
        try:
            self.flush()
        finally:
            try:
                self._release()
            finally:
                super().close()

    def _release(self) -> None:
        """Release what the handler holds, once everything is written; `logging.shutdown` may come once more."""

    def write(self, texts: list[str]) -> None:
        """Write the texts; on an error, set ``written`` to the number of texts that are written, and raise."""
        raise NotImplementedError


def _to_record(entry: Entry) -> logging.LogRecord:
    """Return the entry as a record for handleError(), even if it cannot be decoded."""
    values, origin = entry
    try:
        return to_record(values, origin)
    except Exception:
        return logging.LogRecord(origin.name or "", origin.levelno, "", 0, values[MSG], None, None)
