"""`Sent`: what a logger sends, to be compared with what it sends with the stdlib."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import mplog
import mplog.worker.logger
from mplog.record.factory import make_record

#: What differs from call to call by nature.
TIMES = {"created", "msecs", "relativeCreated"}


class Sent:
    """The queue that a logger sends to, and what comes out of it."""

    def __init__(self) -> None:
        self.queue = mplog.LogQueue()
        self.handler = mplog.QueueHandler(self.queue)
        self.logger: logging.Logger = mplog.getLogger("base.tested.logger")
        self.logger.__class__ = mplog.Logger  # whatever the last test has made of it
        #: Calls that were encoded as they stood.
        self.straight = 0

    def records(self) -> list[dict[str, Any]]:
        """Return the attributes of what was sent since the last time."""
        found = []
        while not self.queue.empty():
            record = self.queue.get(timeout=10)
            slots = {name: getattr(record, name) for name in mplog.record.layout.Record.__slots__}
            found.append({name: value for name, value in (record.__dict__ | slots).items() if name not in TIMES})
        return found

    def as_stdlib(self, call: Callable[[logging.Logger], object]) -> list[dict[str, Any]]:
        """Return what a call sends.

        Hold it to being the same with both classes, the first time and later, and with both makers of records.
        """
        outcomes = []
        for kind, factory in (
            (logging.Logger, logging.LogRecord),
            (mplog.Logger, make_record),
            (mplog.Logger, logging.LogRecord),
            (logging.Logger, make_record),
            (logging.Logger, make_record),
            (logging.Logger, logging.LogRecord),
        ):
            self.logger.__class__ = kind
            logging.setLogRecordFactory(factory)
            straight = self.straight
            try:
                call(self.logger)
                error = None
            except Exception as raised:
                error = repr(raised)
            outcomes.append((error, self.records()))
            if kind is logging.Logger:
                assert self.straight == straight
        self.logger.__class__ = mplog.Logger
        logging.setLogRecordFactory(logging.LogRecord)
        expected = outcomes[0]
        assert outcomes == [expected] * len(outcomes)
        return expected[1]


class Talking:
    """Its str() logs."""

    def __str__(self) -> str:
        logging.getLogger("base.tested.logger").info("inner")
        return "talked"


class Rewriting(logging.Filter):
    """Changes what it sees, and lets no debug records through."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.seen = True
        return record.levelno > logging.DEBUG
