"""Records for tests of fields."""

from __future__ import annotations

import logging
from typing import Any

from mplog.record.layout import RESERVED


def make(message: Any = "hello", **attributes: Any) -> logging.LogRecord:
    """Return a record as a logger makes it."""
    record = logging.LogRecord("a.b", logging.INFO, "/dir/file.py", 7, message, None, None, "function")
    record.created, record.msecs = 1700000000.25, 250.0
    record.__dict__.update(attributes)
    return record


def own_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record has beside the usual."""
    return {name: value for name, value in record.__dict__.items() if name not in RESERVED}
