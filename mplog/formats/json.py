"""`JSONFormatter`: one JSON object a line.

The rule of this file: **a line is always valid JSON, whatever was logged.** A value of a type that JSON lacks is
written as its text, and a text that UTF-8 cannot encode is written with escapes. A value of a class that is made from a
type that JSON has is written as one of that type.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from mplog.formats.batch import BatchFormatter, Piece, Renderer, compile_loop, expression
from mplog.record.decoding import constant_fields, decode
from mplog.record.encoding import encode
from mplog.record.layout import Record
from mplog.record.packing import packer
from mplog.record.plain import bare, readable, safe_str

#: What is written by default, in this order: names in the output, and attributes of the record.
DEFAULT_FIELDS = {
    "time": "created",
    "level": "levelname",
    "logger": "name",
    "message": "message",
    "process": "processName",
    "pid": "process",
}

_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"taskName", "message", "asctime"}
_PLAIN_ATTRIBUTES = {"_style", "_fmt", "datefmt", "fields", "time", "exceptions"}


class JSONFormatter(BatchFormatter):
    """Write each record as one JSON object on one line.

    Extra attributes that no field shows follow the fields, with their types; those of all records of the server
    (``LogServer(fields=)``) come first. An attribute with the name of a field gets a trailing underscore. An exception
    is the field ``exception``, a stack the field ``stack``.

    >>> FileSink("app.jsonl", format=JSONFormatter(time="epoch"))                       # doctest: +SKIP

    Args:
        fields: names in the output, and the attributes of the record that they show. None (the default) takes ``time``,
            ``level``, ``logger``, ``message``, ``process`` and ``pid``.
        time: how ``created`` is written: ``"rfc3339"`` (the default; UTC, microseconds), or ``"epoch"``, in seconds.
        exceptions: ``"text"`` (the default) writes the traceback as in a text log, ``"frames"`` an object with
            ``type``, ``message``, ``frames`` (of ``file``, ``line``, ``function``) and ``text``.

    Raises:
        ValueError: `time` or `exceptions` is none of these.
        TypeError: `fields` is not such a dictionary.
    """

    def __init__(
        self,
        fields: Mapping[str, str] | None = None,
        *,
        time: Literal["rfc3339", "epoch"] = "rfc3339",
        exceptions: Literal["text", "frames"] = "text",
    ) -> None:
        super().__init__()
        fields = DEFAULT_FIELDS if fields is None else fields
        if not isinstance(fields, Mapping) or not all(isinstance(text, str) for text in [*fields, *fields.values()]):
            raise TypeError(f"fields is a dictionary of names in the output and attributes of records, not {fields!r}")
        if time not in ("rfc3339", "epoch"):
            raise ValueError(f"time is written as 'rfc3339' or 'epoch', not as {time!r}")
        if exceptions not in ("text", "frames"):
            raise ValueError(f"exceptions are written as 'text' or 'frames', not as {exceptions!r}")
        self.fields = dict(fields)
        self.time = time
        self.exceptions = exceptions

    def format(self, record: logging.LogRecord) -> str:
        line = {name: self._attribute(record, attribute) for name, attribute in self.fields.items()}
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = self._exception(record) if self.exceptions == "frames" else record.exc_text
        if record.stack_info:
            line["stack"] = record.stack_info
        _add(line, record.__dict__.items(), _STANDARD.union(self.fields.values()))
        return _to_json(line)

    def _attribute(self, record: logging.LogRecord, attribute: str) -> Any:
        if attribute == "message":
            return record.getMessage()
        if attribute == "created":
            if self.time == "epoch":
                return record.created
            # The remainder of a tiny negative number is 1.
            return f"{_date(record.created // 1)}.{min(int(record.created % 1 * 1e6), 999_999):06d}Z"
        if attribute == "asctime":
            return self.formatTime(record, self.datefmt)
        return getattr(record, attribute, None)

    def _exception(self, record: logging.LogRecord) -> dict[str, Any]:
        arrived = record if isinstance(record, Record) else decode(encode(record))
        frames = [{"file": file, "line": line, "function": function} for file, line, function in arrived.exc_frames]
        return {"type": arrived.exc_type, "message": arrived.exc_message, "frames": frames, "text": record.exc_text}

    def renderer(self, terminator: str) -> Renderer | None:
        """Return the fast way to format a batch; None for a subclass, or a formatter with methods of its own."""
        if type(self) is not JSONFormatter or not vars(self).keys() <= _PLAIN_ATTRIBUTES:
            return None
        pieces = [Piece("{")]
        for name, attribute in self.fields.items():
            separator = "," if len(pieces) > 1 else ""
            pieces.append(Piece(f"{separator}{_to_text(readable(name))}:"))
            pieces += self._pieces(attribute)
        line = dict.fromkeys(self.fields)
        _add(line, constant_fields.items(), _STANDARD.union(self.fields.values()))
        more = {name: value for name, value in line.items() if name not in self.fields}
        if more:
            pieces.append(Piece(f"{',' if len(pieces) > 1 else ''}{_to_json(more)[1:-1]}"))
        dated = any("stamp" in piece.expression for piece in pieces)
        taken = _STANDARD.union(self.fields.values(), line)

        def extended(text: str, extra: dict[str, Any], buffer: bytearray) -> str:
            """Return a line with the extra attributes."""
            if not taken.isdisjoint(extra):
                raise LookupError
            try:
                _encode_into(extra, buffer)
                more = buffer.decode()
            except Exception:
                more = _to_json(extra)
            return f"{text[:-1]},{more[1:]}" if len(text) > 2 else more

        return compile_loop(
            # Before 1970, the fraction needs more care: `format` does it.
            ["assert created >= 1", "stamp = date(created // 1)"] if dated else [],
            [*pieces, Piece("}")],
            # Exceptions and stacks are rare: `format` writes them.
            ["if exc_text or stack_info: raise LookupError", "text = extended(text, extra, other)"],
            {"date": _date, "to_text": _to_text, "encode_into": _encode_into, "extended": extended},
            self,
            terminator,
            rarely="or extra",
        )

    def _pieces(self, attribute: str) -> list[Piece]:
        if attribute == "created" and self.time == "rfc3339":
            created = frozenset({"created"})
            return [
                Piece('"'),
                Piece(expression="stamp", fields=created),
                Piece("."),
                Piece(expression="'%06d' % ((created - second) * 1e6)", fields=created),
                Piece('Z"'),
            ]
        if attribute == "asctime" or (attribute != "message" and hasattr(Record, attribute)):
            # Neither is in the record as it comes off the wire: `format` finds it.
            return [Piece(expression="no_such_thing", fields=frozenset({"created"}))]
        fields = frozenset({"msg" if attribute == "message" else attribute})
        value = expression(attribute)
        piece = Piece(expression=f"to_text({value})", fields=fields)
        if piece.is_constant:
            return [piece]
        # One for each record, so without a call of `to_text`.
        return [Piece(expression=f"encode_into({value}, buffer) or buffer.decode()", fields=fields)]


def _date(second: float) -> str:
    return datetime.datetime.fromtimestamp(second, datetime.timezone.utc).isoformat()[:19]


def _add(line: dict[str, Any], extra: Iterable[tuple[str, Any]], shown_already: frozenset[str]) -> None:
    for name, value in extra:
        if name in shown_already:
            continue
        place = name
        while place in line:
            place += "_"
        line[place] = value


def _to_json(line: dict[str, Any]) -> str:
    try:
        return _to_text(line)
    except Exception:
        # A text that UTF-8 cannot encode, a key that is not a text, an endless nesting, or an object with its own code.
        return _to_text({readable(name): _plain(value) for name, value in line.items()})


def _plain(value: Any) -> Any:
    try:
        _to_text(value)
    except Exception:
        return readable(safe_str(value))
    return value


def _to_text(value: object) -> str:
    return _encode(value).decode()


_encode_into = msgspec.json.Encoder(enc_hook=bare).encode_into
_encode = packer(_encode_into)
