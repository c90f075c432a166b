r"""Escaping what could forge or disturb a line of a log, so that it can be read back. Runs in the logging process.

The rule of this file: **a record is one line, and its further lines begin with a tab; only a format makes either.** The
texts of a record are escaped before they are formatted. A line break that is in the result (of a traceback, a stack, or
the format itself) is followed by a tab. Tabs in the record are escaped, so none of them can pretend to be that tab::

    2026-11-20 18:03:46,567 ERROR    worker-2 jobs | no such file:\nC:\\temp\x1b[2J
    <tab>Traceback (most recent call last):
    <tab>  File "job.py", line 3, in <module>

A line that begins with white space belongs to the record above it. Log shippers know this form, because PostgreSQL
writes it, too. ``re.split(r"\n(?!\t)", text)`` gives the records, and `unescape` returns what was logged.

For a terminal there is a milder form: only what would steer the terminal is escaped, and line breaks, tabs and
backslashes stay. Such a text reads as it was logged, but cannot be read back by a program.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import logging
import re
import types
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from mplog.formats.batch import BatchFormatter, OnError, Renderer
from mplog.formats.json import JSONFormatter
from mplog.formats.text import compiled, renderer
from mplog.record.decoding import constant_fields
from mplog.record.foreign import ForeignValue
from mplog.record.layout import EXC_TEXT, EXTRA, MSG, STACK_INFO, ByOrigin, Entry, Origin, Record, Template
from mplog.record.plain import as_number, safe_repr, safe_str, safely

# C1 with NEL, the separators of lines and paragraphs, and bidirectional controls, which change the order in which
# characters are shown (https://trojansource.codes).
_BEYOND_ASCII = r"\x80-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_to_escape = re.compile(rf"[\\\x00-\x1f\x7f{_BEYOND_ASCII}\ud800-\udfff]")
# A traceback has lines, which stay lines.
_to_escape_in_lines = re.compile(rf"[\\\x00-\x09\x0b-\x1f\x7f{_BEYOND_ASCII}\ud800-\udfff]")
# What is not to reach a terminal.
_to_disarm = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f{_BEYOND_ASCII}\ud800-\udfff]")
# In JSON, characters below U+0020 are escaped already, and none of these occurs outside a string.
_to_escape_in_json = re.compile(rf"[\x7f{_BEYOND_ASCII}]")
_escaped = re.compile(r"\n\t|\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U(000[0-9a-f]{5}|0010[0-9a-f]{4}))")

_SHORT = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
_LONG = {short[1]: character for character, short in _SHORT.items()}

#: Types whose values always look harmless.
_HARMLESS: frozenset[type] = frozenset(
    (bool, int, float, types.NoneType, decimal.Decimal, uuid.UUID)
    + (datetime.datetime, datetime.date, datetime.time, datetime.timedelta)
)


def escape(text: str) -> str:
    r"""Return the text with everything escaped that could forge or disturb a line.

    That is the backslash, control characters (C0, DEL, C1: line breaks, tabs and what terminals obey), U+2028 and
    U+2029, bidirectional controls, and lone surrogates. The escapes are Python's: ``\\``, ``\n``, ``\x1b``, ``\u202e``.

    >>> print(escape("C:\\temp\x1b[2J"))
    C:\\temp\x1b[2J
    """
    if text.isprintable() and "\\" not in text:  # far faster than a search
        return text
    return _to_escape.sub(_escape_character, text)


def _escape_character(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def _escape_lines(text: str) -> str:
    """Return a text of several lines with everything escaped except its line breaks."""
    return _to_escape_in_lines.sub(_escape_character, text)


def _disarm(text: str) -> str:
    """Return a text that does not steer a terminal."""
    return text if text.isprintable() else _to_disarm.sub(_escape_character, text)


class _Form(NamedTuple):
    """Escapes a text of one line, and one of several lines; and what a line break becomes that is in the result."""

    text: Callable[[str], str]
    lines: Callable[[str], str]
    line_break: str


_REVERSIBLE = _Form(escape, _escape_lines, "\n\t")
_FOR_TERMINALS = _Form(_disarm, _disarm, "\n")


def unescape(text: str) -> str:
    r"""Return the text as it was logged: a message, any other field, or all the lines of a record.

    It also reads what a sink has escaped because its encoding does not have it. Any other escape stays as it is.

    >>> unescape(r"a tab: \t")
    'a tab: \t'
    """
    return _escaped.sub(_unescape_one, text)


def _unescape_one(match: re.Match[str]) -> str:
    short, *numbers = match.groups()
    if short:
        return _LONG[short]
    return chr(int("".join(filter(None, numbers)), 16)) if any(numbers) else "\n"


def _escape_value(name: str, value: Any, form: _Form) -> Any:
    """Return the value of an attribute: a text escaped, and another value replaced if it does not look harmless."""
    if type(value) is str:
        return form.lines(value) if name in ("exc_text", "stack_info") else form.text(value)
    if type(value) in _HARMLESS:
        return value
    looks = safe_str(value), safe_repr(value), safely(format, value)
    escaped = tuple(map(form.text, looks))
    if escaped == looks:
        return value
    return ForeignValue(escaped[0], escaped[1], as_number(value), escaped[2])


def _escape_fields(fields: dict[str, Any], form: _Form) -> dict[str, Any]:
    return {form.text(name): _escape_value(name, value, form) for name, value in fields.items()}


def escape_origin(origin: Origin, form: _Form = _REVERSIBLE) -> Origin:
    """Return the origin escaped; the same object where there is nothing to escape."""
    values = msgspec.structs.asdict(origin)
    details = values.pop("details")
    escaped = {name: _escape_value(name, value, form) for name, value in values.items()}
    escaped["details"] = details and tuple(_escape_value("", value, form) for value in details)
    return origin if escaped == {**values, "details": details} else Origin(**escaped)


def _escape_entry(entry: Entry, origin: Origin, form: _Form) -> Entry:
    """Return the record with its texts escaped; `origin` is its own, escaped."""
    values = list(entry[0])
    if values[MSG] is not None:
        values[MSG] = form.text(values[MSG])
    if values[EXTRA] is not None:
        values[EXTRA] = _escape_fields(values[EXTRA], form)
    for place in (EXC_TEXT, STACK_INFO):
        if values[place]:
            values[place] = form.lines(values[place])
    return tuple(values), origin


def _escape_record(record: logging.LogRecord, formatter: logging.Formatter, form: _Form) -> logging.LogRecord:
    """Return a copy of the record with its texts escaped; the formatter makes the text of its exception."""
    escaped = copy.copy(record)
    attributes = dict(record.__dict__)
    attributes["msg"], attributes["args"] = record.getMessage(), ()
    if record.exc_info and not record.exc_text:
        attributes["exc_text"] = formatter.formatException(record.exc_info)
    attributes["exc_info"] = None
    escaped.__dict__.clear()
    escaped.__dict__.update(_escape_fields(attributes, form))
    if isinstance(record, Record) and isinstance(escaped, Record):
        escaped.args = _escape_args(record.args, form)
        escaped.msg = Template(form.text(str(record.msg)), escaped.args, form.text(record.getMessage()))
        escaped.exc_type = _escape_value("", record.exc_type, form)
        escaped.exc_message = _escape_value("", record.exc_message, form)
        escaped.exc_frames = [(form.text(file), line, form.text(name)) for file, line, name in record.exc_frames]
    return escaped


def _escape_args(args: Any, form: _Form) -> Any:
    if isinstance(args, dict):
        return _escape_fields(args, form)
    return tuple(_escape_value("", value, form) for value in args) if isinstance(args, tuple) else args


class EscapedText(BatchFormatter):
    """Gives another formatter records whose texts are escaped: ``a\\\\nb``.

    A value of ``extra`` that is not a text is escaped, too, if it has a line break when it is shown.
    """

    def __init__(self, formatter: logging.Formatter, form: _Form = _REVERSIBLE) -> None:
        super().__init__()
        self._formatter = formatter
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        text = self._formatter.format(_escape_record(record, self._formatter, self._form))
        return text.replace("\n", self._form.line_break)

    def renderer(self, terminator: str) -> Renderer | None:
        """Return the fast way to format a batch; None if the other formatter has none."""
        form, inner = self._form, compiled(self._formatter, terminator)
        # The pieces of the other formatter have the constant fields as they are.
        if inner is None or _escape_fields(dict(constant_fields), form) != constant_fields:
            return None
        origins = ByOrigin(lambda origin: escape_origin(origin, form))

        def render(batch: Sequence[Entry], on_error: OnError) -> list[str]:
            escaped = []
            changed: dict[int, Entry] = {}
            for entry in batch:
                values, origin = entry
                safe_origin = origins[origin]
                message = values[MSG]
                if (
                    safe_origin is origin
                    and message is not None
                    and message.isprintable()
                    and "\\" not in message
                    and values[EXTRA] is None
                    and values[EXC_TEXT] is None
                    and values[STACK_INFO] is None
                ):
                    escaped.append(entry)
                else:
                    escaped.append(_escape_entry(entry, safe_origin, form))
                    changed[id(escaped[-1])] = entry
            texts = inner.render(escaped, lambda entry, error: on_error(changed.get(id(entry), entry), error))
            if terminator == "\n" and "".join(texts).count("\n") == len(texts) and "" not in texts:
                return texts
            return [
                text.removesuffix(terminator).replace("\n", form.line_break) + terminator if text else ""
                for text in texts
            ]

        return Renderer(render, inner.needs_details)


class EscapedJSON(BatchFormatter):
    r"""Writes what a `JSONFormatter` does, with everything dangerous as ``\uXXXX``, which every JSON parser reads."""

    def __init__(self, formatter: JSONFormatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return _escape_json(self._formatter.format(record))

    def renderer(self, terminator: str) -> Renderer | None:
        inner = renderer(self._formatter, terminator)
        return Renderer(lambda *given: list(map(_escape_json, inner.render(*given))), inner.needs_details)


def _escape_json(text: str) -> str:
    if text.isascii() and "\x7f" not in text:
        return text
    return _to_escape_in_json.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def escaped_formatter(formatter: logging.Formatter, *, for_terminal: bool = False) -> logging.Formatter:
    """Return a formatter that writes what this one does, and nothing that could forge or disturb a line.

    With `for_terminal`, it writes nothing that could steer a terminal except what comes from the format itself.
    """
    if isinstance(formatter, JSONFormatter):
        return EscapedJSON(formatter)
    return EscapedText(formatter, _FOR_TERMINALS if for_terminal else _REVERSIBLE)
