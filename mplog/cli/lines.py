"""What a line of a log says: JSON as `mplog.JSONFormatter` writes it, or text of a known format.

The rule of this file: **a line that begins no record belongs to the record before it.** So a traceback stays with its
record, whatever a filter decides.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mplog.record.level import read_level
from mplog.record.packing import pack_json
from mplog.sinks.sink import DEFAULT_FORMAT

#: The names of a record's values in JSON, the usual one first.
_JSON_NAMES = {
    "levelname": ("level", "levelname", "severity"),
    "levelno": ("levelno",),
    "name": ("logger", "name"),
    "processName": ("process", "processName"),
    "process": ("pid", "process"),
}

#: What the known fields of a text format look like.
_LEVEL = r"(?:Level -?\d+|[^\W\d]\w*)"
_FIELDS = {
    "levelname": _LEVEL,
    "name": r"\S+",
    "message": r".*",
    **dict.fromkeys(("created", "msecs", "relativeCreated"), r"-?\d+(?:\.\d+)?"),
    **dict.fromkeys(("levelno", "lineno", "process", "thread"), r"-?\d+"),
}
_DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:,\d{3})?"
#: What strftime(3) writes for its directives.
_DATE_FIELDS = {
    "Y": r"\d{4}", "f": r"\d{6}", "j": r"\d{3}", "y": r"\d\d", "z": r"(?:[+-]\d{4})?", "%": "%",
    **dict.fromkeys("mdHIMSUW", r"\d\d"),
}  # fmt: skip
_PLACE = re.compile(r"%(?:%|\((?P<name>\w+)\)(?P<left>-?)[#0 +]*(?P<width>\d*)(?:\.\d+)?(?P<kind>[diouxXeEfFgGcrsa]))")


@dataclass(frozen=True)
class Parsed:
    """A line that begins a record: values by the names of a ``LogRecord``, and by those in the line or its format."""

    values: Mapping[str, Any]
    fields: Mapping[str, Any]
    is_json: bool = False

    @property
    def level(self) -> int | None:
        """The number of its level; None if it is unknown."""
        try:
            return read_level(str(self.values.get("levelno", self.values.get("levelname"))).removeprefix("Level "))
        except ValueError:
            return None


class LineParser:
    """Recognizes lines that begin a record: JSON, or text of a format; raises ValueError if the format is not valid."""

    def __init__(self, format: str = DEFAULT_FORMAT, datefmt: str | None = None) -> None:
        self._pattern = re.compile(_to_pattern(format, _DATE if datefmt is None else _date_pattern(datefmt)), re.DOTALL)

    def parse(self, line: bytes) -> Parsed | None:
        """Return what the line says; None if it begins no record."""
        if line.startswith(b"{"):
            try:
                values = msgspec.json.decode(line)
                return Parsed(_with_record_names(values), values, is_json=True)
            except (msgspec.DecodeError, RecursionError):
                pass
        found = self._pattern.fullmatch(line.rstrip(b"\r\n").decode("utf-8", "replace"))
        return None if found is None else Parsed(found.groupdict(), found.groupdict())


def _with_record_names(values: dict[str, Any]) -> dict[str, Any]:
    named = {}
    for name, places in _JSON_NAMES.items():
        # "process" is a name from JSONFormatter, and a number if the fields are named as in a LogRecord.
        wanted = int if name in ("process", "levelno") else (str, int) if name == "levelname" else str
        found = next((values[place] for place in places if isinstance(values.get(place), wanted)), None)
        if found is not None:
            named[name] = found
    return named


def _to_pattern(format: str, date: str) -> str:
    """Return a regular expression for what a ``%``-style format writes, up to the first line of the message."""
    pattern, end, seen = "", 0, set()
    for found in _PLACE.finditer(format):
        pattern += re.escape(format[end : found.start()])
        end = found.end()
        name = found["name"]
        if name is None:
            pattern += "%"
            continue
        field = date if name == "asctime" else _FIELDS.get(name, ".*?")
        # A field that appears twice has the same text twice.
        piece = f"(?P={name})" if name in seen else f"(?P<{name}>{field})"
        seen.add(name)
        if found["width"]:
            piece = f"{piece} *" if found["left"] else f"[ 0]*{piece}"
        pattern += piece
    rest = format[end:]
    if not seen:
        raise ValueError(f"{format!r} has no field such as %(message)s, so it fits any line")
    if re.search(r"%(?!%)", rest.replace("%%", "")):
        raise ValueError(f"{format!r} is not a %-style format: {rest!r}")
    return pattern + re.escape(rest.replace("%%", "%"))


def _date_pattern(datefmt: str) -> str:
    pieces = re.split(r"%(.)", datefmt)
    return "".join(
        _DATE_FIELDS.get(piece, r".+?") if number % 2 else re.escape(piece) for number, piece in enumerate(pieces)
    )


@dataclass(frozen=True)
class Filter:
    """Which records are shown: those of all loggers, or of these and the loggers below; processes by name or pid."""

    level: int = 0
    loggers: Sequence[str] = ()
    processes: Sequence[str] = ()
    fields: Sequence[tuple[str, str]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether it takes everything."""
        return not (self.level or self.loggers or self.processes or self.fields)

    def takes(self, record: Parsed) -> bool:
        """Return whether the record is shown. One with an unknown level is: better too much than too little."""
        values = record.values
        if self.level:
            level = record.level
            if level is not None and level < self.level:
                return False
        if self.loggers:
            name = str(values.get("name", ""))
            if not any(name == wanted or name.startswith(f"{wanted}.") for wanted in self.loggers):
                return False
        if self.processes:
            name, pid = str(values.get("processName", "")), str(values.get("process", ""))
            if not any(pid == wanted or fnmatch.fnmatchcase(name, wanted) for wanted in self.processes):
                return False
        return all(name in record.fields and _text(record.fields[name]) == value for name, value in self.fields)


def _text(value: Any) -> str:
    """Return a value as a person would type it: as in JSON, but a text without quotes."""
    return value if isinstance(value, str) else pack_json(value).decode()
