"""Names of files made from the fields of a record: `logs/{processName}.log`.

The rule of this file: **a name stays in its directory, and different values make different names**, even if an attacker
chooses them. No value makes the name of a lock, a temporary file or a rotated file.

In a value, ASCII letters, digits and ``-_.+@=,`` stay as they are. Any other character is written as ``%`` and two
hexadecimal digits for each byte of UTF-8, as in a URL. A value that is too long for a name is cut, and ends in ``%~``
and a hash of all of it. An empty one is ``%``.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Sequence
from typing import Any

from mplog.record.layout import DETAILS, ORIGIN
from mplog.record.plain import safe_str

#: Bytes of a name. A file name may have 255, but those of rotated files, locks and temporary files are longer.
NAME_SIZE = 200
#: Bytes for a value, at least: for a hash, and enough to recognize the value by.
_VALUE_SIZE = 48
#: Characters of the longest value that is escaped whole.
_LONGEST_VALUE = 1000

#: Fields that differ in every record, or are not text.
_NO_FIELDS = frozenset(
    ("message", "msg", "args", "asctime", "created", "msecs", "relativeCreated")
    + ("exc_info", "exc_text", "stack_info", "sequence")
)
_NUMBERS = frozenset(name for name, kind in {**ORIGIN, **DETAILS}.items() if kind is int)
_EMPTY, _CUT = "%", "%~"

#: What is in the names of rotated files, unless told otherwise (`mplog.files.rotation_rules.ArchiveName`).
_ARCHIVE = re.compile(r"\.[0-9]{4}-[0-9]{2}-[0-9]{2}\.[0-9]{3,}")


class FileNames:
    """The pattern of a `RoutedFileSink`: `fields`, and the `texts` before, between and after them.

    Raises a ValueError for a pattern that has no field, or could give one name to different values.
    """

    def __init__(self, pattern: str, missing: str) -> None:
        self.pattern = pattern
        self.fields: list[str] = []
        self.texts = [""]
        self._read()
        self._missing = missing
        self.needs_details = not set(DETAILS).isdisjoint(self.fields)
        self._room = (NAME_SIZE - len("".join(self.texts).encode())) // len(self.fields)
        separators = self._separators()
        self._unsafe = _unsafe(separators)
        self._unsafe_or_dot = _unsafe(separators + ".")
        self._check()

    def _read(self) -> None:
        try:
            parsed = list(string.Formatter().parse(self.pattern))
        except ValueError as error:
            raise self._error(f"is not a pattern: {error}") from None
        for text, field, spec, conversion in parsed:
            self.texts[-1] += text
            if field is None:
                continue
            if not field.isidentifier() or spec or conversion:
                raise self._error(
                    "has a field that is not the name of an attribute, such as {processName}. Formats, conversions and "
                    "parts of attributes cannot be given. Write {{ for a brace"
                )
            if field in _NO_FIELDS:
                raise self._error(f"has {{{field}}}, which would make a file for every record")
            self.fields.append(field)
            self.texts.append("")
        if not self.fields:
            raise self._error("has no {field}, so it names a single file. Use a FileSink")

    def _separators(self) -> str:
        """Return the characters to escape in a value, so that its end can be told from the beginning of the next."""
        found = ""
        for text in self.texts[1:-1]:
            # % and hexadecimal digits may be in an escaped value.
            marks = [character for character in text if character not in "%~0123456789ABCDEFabcdef"]
            if not marks:
                raise self._error(
                    "has two fields, and nothing between them shows where the first ends. Write {name}-{process}"
                )
            found += marks[0]
        # Numbers have no such characters.
        return found if sum(field not in _NUMBERS for field in self.fields) > 1 else ""

    def _check(self) -> None:
        if self._room < _VALUE_SIZE:
            raise self._error("is too long: there is no room for the values")
        text = "".join(self.texts)
        if self.pattern.startswith(".") or re.search(r"[\x00-\x1f\x7f/]", text):
            raise self._error("begins with a dot, as locks do, or has control characters or a path in it")
        if _ARCHIVE.search(self.name(["x"] * len(self.fields))):
            raise self._error("looks like the name of a rotated file")

    def _error(self, what: str) -> ValueError:
        return ValueError(f"the file name {self.pattern!r} {what}")

    def name(self, values: Sequence[Any]) -> str:
        texts = [
            self._missing if value is None else value if type(value) is str else safe_str(value) for value in values
        ]
        name = self._join([self._escape(text, self._unsafe) for text in texts])
        if _ARCHIVE.search(name):
            name = self._join([self._escape(text, self._unsafe_or_dot) for text in texts])
            if _ARCHIVE.search(name):
                name = self._join([_CUT + _hash(text) for text in texts])
        return name

    def _join(self, escaped: list[str]) -> str:
        name = self.texts[0] + "".join(value + text for value, text in zip(escaped, self.texts[1:]))
        return "%2E" + name[1:] if name.startswith(".") else name

    def _escape(self, text: str, unsafe: re.Pattern[str]) -> str:
        if not text:
            return _EMPTY
        if len(text) <= _LONGEST_VALUE:
            escaped = unsafe.sub(_percent, text)
            if len(escaped) <= self._room:
                return escaped
        digest = _hash(text)
        begin = unsafe.sub(_percent, text[: self._room])[: self._room - len(_CUT) - len(digest)]
        # Do not cut in the middle of an escape.
        return re.sub("%.?$", "", begin) + _CUT + digest


def _unsafe(separators: str) -> re.Pattern[str]:
    safe = "".join(each for each in string.ascii_letters + string.digits + "-_.+@=," if each not in separators)
    return re.compile(f"[^{re.escape(safe)}]")


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
