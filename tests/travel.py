"""Records that travel as they do between processes."""

from __future__ import annotations

import datetime
import decimal
import enum
import logging
import uuid
from typing import Any

from mplog.record.decoding import decode
from mplog.record.encoding import encode
from mplog.record.layout import Record


def make(message: object = "hello", *args: object, extra: dict[str, Any] | None = None, **set_to: Any) -> Any:
    """Return a record as a logger makes it, with some attributes set to something else."""
    record = logging.getLogger("a.b").makeRecord(
        "a.b", logging.INFO, "/dir/file.py", 7, message, args, None, "function", extra, None
    )
    record.__dict__.update(set_to)
    return record


def travel(record: logging.LogRecord) -> Record:
    """Return what arrives of a record, and hold encode() to leaving the record alone."""
    before = dict(record.__dict__)
    arrived = decode(encode(record))
    after = record.__dict__
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before), "encode() has changed the record"
    return arrived


def travelled(value: Any) -> Any:
    """Return what arrives of a value in `extra`."""
    return travel(make(extra={"value": value})).__dict__["value"]


class Colour(enum.Enum):
    """Has its own str() and repr()."""

    RED = "red"


class Level(str, enum.Enum):
    """A text with a name, whose format() is not its str() in some versions of Python."""

    HIGH = "high"


class Code(enum.IntEnum):
    """A number with a name."""

    TEAPOT = 418


class Scalar:
    """A number as numpy's are: no int or float, but as good as one."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        return str(self.value)

    def __repr__(self) -> str:
        return f"float32({self.value})"

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


class Text(str):
    """A string that is more than one."""

    __slots__ = ()


class Point(tuple):  # type: ignore[type-arg]
    """A tuple that is more than one."""

    __slots__ = ()


UTC_PLUS_2 = datetime.timezone(datetime.timedelta(hours=2))
PLAIN = [
    None, True, False, 0, -1, 2**63, 2**64 - 1, -(2**63), 2**64, -(2**63) - 1, 2**1000, -(10**500),
    0.0, -0.5, 1e300, float("inf"), "", "text", "\0\r\n\x1b[31m\x9b\u2028\u202e", "\U0001f600", b"", b"\xff\0",
    [], [1, "a", [None]], (), (1,), (1, (2, [3, (4,)])), set(), {1, "a"}, frozenset({(1, 2)}), {frozenset({1})},
    {}, {"a": 1}, {"a": {"b": {"c": (1, 2)}}}, {1: "a", None: 2, (1, 2): [3]}, {"a": {2.5: b"b"}}, {2**70: 2**80},
    datetime.date(2026, 2, 28), datetime.time(1, 2, 3, 4), datetime.time(1, tzinfo=datetime.timezone.utc),
    datetime.datetime(2026, 1, 2, 3, 4, 5, 6), datetime.datetime(2026, 1, 2, tzinfo=UTC_PLUS_2),
    datetime.timedelta(days=-3, microseconds=1), datetime.timedelta.max,
    decimal.Decimal("1.10"), decimal.Decimal("-Infinity"), decimal.Decimal(10**40), uuid.UUID(int=5),
]  # fmt: skip


TEXTS = ["name", "levelname", "pathname", "filename", "module", "funcName", "threadName", "processName", "exc_text",
         "stack_info", "taskName"]  # fmt: skip
