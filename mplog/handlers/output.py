"""What the logging process asks of a handler: `Output`, and `ForeignOutput` for a handler that is not mplog's."""

from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mplog.files.portion import Portion, Position
from mplog.formats.text import DatedFormatter
from mplog.record.layout import Entry


class Output:
    """A handler, as the logging process sees it. The defaults fit a handler that writes each record at once.

    Attributes:
        takes_entries: whether it takes batches of entries, in `handle_entries`, and writes them at ``flush()``. If all
            handlers of a batch do, no LogRecord is made.
        handle_batch: takes the records of a batch that have passed the filters; None to have each handled by itself.
        raw_name: the name to which `mplog.write` sends bytes; None where it takes none.
        can_wait: whether it can try again later, as after a full disk.
        keeps_trying: whether it keeps what could not be written for the next ``flush()``.
        stuck_by: the error for which it keeps something; None where it keeps nothing.
        announce: called with each portion of a file before that is written; None for none.
        hears_errors: whether the handler has a ``handleError()`` of its own, which may look at a record.
    """

    takes_entries = False
    handle_batch: Callable[[Sequence[Any]], object] | None = None
    raw_name: str | None = None
    can_wait = False
    keeps_trying = False
    stuck_by: OSError | None = None
    announce: Callable[[Portion], object] | None = None
    hears_errors = False

    @property
    def handler(self) -> logging.Handler:
        raise NotImplementedError

    @property
    def needs_details(self) -> bool:
        """Whether it may look at the thread or the place of a call."""
        return True

    def handle_entries(self, batch: Sequence[Entry]) -> None:
        """Take a batch for the next ``flush()``."""

    def handle_bytes(self, batch: Sequence[bytes]) -> None:
        """Take pieces of bytes for the next ``flush()``."""

    def due(self) -> float | None:
        """Return the monotonic time at which `work` has something to do; None for no such time."""

    def work(self) -> None:
        """Do what is due."""

    def reopen(self) -> None:
        """Reopen the files: they may have been moved. On an OSError, writing goes on in the file that is open."""

    def sync(self) -> bool:
        """Force what was written to the disk; return whether it is there."""
        return True

    def take_notices(self) -> list[str]:
        """Return the notices for the log since the last call."""
        return []

    def resume(self, committed: Position, announced: int) -> int:
        """Take back what a killed process wrote from `committed` to at most `announced`; return how many bytes."""
        return 0

    def takes_back(self, inode: int) -> bool:
        """Whether undoing the last announcement also removes everything in the file with this inode."""
        return False

    def settle(self) -> None:
        """Note that everything is committed: `resume` will not be called for it."""

    # --- functions that take their time ---

    def go_on(self, path: str, notify: Callable[[], object]) -> None:
        """Keep waiting records in files whose names begin with `path`, and take up those of the previous process.

        `notify` is called from any thread when something was delivered.
        """

    def send_now(self) -> int:
        """Start to deliver all records that have come so far; return a mark for `is_delivered`."""
        return 0

    def is_delivered(self, mark: int) -> bool:
        """Whether everything that had come before that `send_now` is delivered or given up."""
        return True

    def take_failures(self) -> Iterable[tuple[BaseException, int]]:
        """Return the errors of failed deliveries since the last call, each with its number of records."""
        return ()

    def take_retries(self) -> Iterable[BaseException]:
        """Return the errors since the last call after which a delivery is tried again."""
        return ()

    def finish(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until everything is delivered or given up; return whether it is."""
        return True


#: Handlers that look at nothing of a record but its text, unless a program has given them a method of its own.
_WRITERS = {
    logging.StreamHandler,
    logging.FileHandler,
    logging.handlers.RotatingFileHandler,
    logging.handlers.TimedRotatingFileHandler,
    logging.handlers.WatchedFileHandler,
}
_OVERRIDABLE = {"emit", "filter", "format", "handle", "handle_batch", "shouldRollover"}


class ForeignOutput(Output):
    """Any ``logging.Handler``. One with a method ``handle_batch(records)`` gets its part of a batch at once."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler
        self.handle_batch = getattr(handler, "handle_batch", None)

    @property
    def handler(self) -> logging.Handler:
        return self._handler

    @property
    def needs_details(self) -> bool:
        handler = self._handler
        is_writer = type(handler) in _WRITERS and not handler.filters and _OVERRIDABLE.isdisjoint(vars(handler))
        return not is_writer or not isinstance(handler.formatter, DatedFormatter) or handler.formatter.needs_details


def output_of(handler: logging.Handler) -> Output:
    """Return what to ask of a handler."""
    return handler if isinstance(handler, Output) else ForeignOutput(handler)
