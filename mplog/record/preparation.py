"""What is done to a record before it leaves the process: enrichers add fields, and redactors see all of it.

The rule of this file: **what a redactor has not seen does not leave the process.** A redactor sees the record as it
would travel: the finished message, the traceback, and each field, down into lists and dictionaries. Where it fails, a
marker takes the place of what it was to look at; the record travels in any case.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from mplog.record.cache import Cache
from mplog.record.context import named
from mplog.record.decoding import decode
from mplog.record.encoding import Cut, encode, pack_wire
from mplog.record.foreign import Looks
from mplog.record.layout import RESERVED, Record, Wire
from mplog.record.packing import pack
from mplog.record.plain import CAUGHT, caught, plain, plain_fields, readable, safe_str, unpack
from mplog.record.portable import dump, load

#: Returns fields to add to a record.
Enricher = Callable[[], Mapping[str, Any]]
#: Called with the name and the value of a field; returns what takes the place of the value.
RedactorFunction = Callable[[str, Any], Any]

#: How deep enrichers and redactors may log themselves, or be interrupted by a signal handler that logs.
_MOST_NESTED = 2
_CONTAINERS = (dict, list, tuple, set, frozenset)
_MESSAGE_NAMES = {"msg": "message"}


class _Nesting(threading.local):
    depth = 0


_nesting = _Nesting()


class Preparation:
    """What is done to each record before it leaves the process; see `Fields`."""

    def __init__(self, enrichers: tuple[Enricher, ...], redactors: tuple[RedactorFunction, ...]) -> None:
        self._enrichers = enrichers
        self._redactors = redactors
        self._failed: list[str] = []
        self._told: set[tuple[int, int]] = set()

    def __call__(self, payload: bytes) -> bytes:
        """Return an encoded record with fields added, and redacted."""
        _nesting.depth += 1
        try:
            wire = _decode(payload)
            if _nesting.depth <= _MOST_NESTED:
                self._enrich(wire)
            if self._redactors:
                self._redact_all(wire)
            prepared = pack_wire(wire)
        finally:
            _nesting.depth -= 1
        return Cut(prepared) if type(payload) is Cut else prepared

    def prepared(self, record: logging.LogRecord) -> Record:
        """Return a copy of a record as it would leave the process."""
        try:
            return decode(self(encode(record)))
        except Exception as error:
            text = f"<mplog: this record could not be redacted: {type(error).__name__}>"
            return decode(encode(logging.LogRecord("mplog", record.levelno, "", 0, text, None, None)))

    def take_failures(self) -> list[str]:
        """Return the messages about functions that have failed since the last call."""
        failed, self._failed = self._failed, []
        return failed

    def _note(self, what: str, function: Any, error: BaseException, consequence: str) -> None:
        told = os.getpid(), id(function)
        if told not in self._told:
            self._told.add(told)
            name = safe_str(getattr(function, "__qualname__", None) or type(function).__qualname__)
            # Without the message of the error, which may hold the secret.
            text = f"the {what} {name} raised {type(error).__name__}; {consequence} (said once per process)"
            self._failed = [*self._failed, readable(text)]

    def _enrich(self, wire: Wire) -> None:
        extra = wire.extra or {}
        for enrich in self._enrichers:
            try:
                fields = dict(enrich())
                new = plain_fields((readable(safe_str(name)), value) for name, value in named(fields.items()))
            except CAUGHT as error:
                caught(error)
                self._note("enricher", enrich, error, "its fields are missing")
            else:
                extra = {**(new or {}), **extra}
        wire.extra = extra or None

    def _redact_all(self, wire: Wire) -> None:
        for place in ("msg", "exc_text", "stack_info"):
            text = getattr(wire, place)
            if text is not None:
                setattr(wire, place, self._redact_text(_MESSAGE_NAMES.get(place, place), text))
        if wire.extra is not None:
            wire.extra = {name: self._redact_field(name, value) for name, value in wire.extra.items()}
        if wire.rest is not None:
            wire.rest = self._redact_rest(*wire.rest)

    def _redact_rest(self, relative: Any, exception: Any, *arguments: tuple[Any, Any]) -> tuple[Any, ...]:
        if exception is not None:
            kind, message, frames = exception
            exception = kind, self._redact_text("exc_text", message), frames
        return (relative, exception, *(self._redact_arguments(*map(_decoded, pair)) for pair in arguments))

    def _redact_arguments(self, template: str, args: tuple[Any, ...] | dict[Any, Any]) -> tuple[str, Any]:
        if isinstance(args, dict):
            args = {key: self._redact_value(safe_str(key), item) for key, item in args.items()}
        else:
            args = tuple(self._redact_value("args", item) for item in args)
        return self._redact_text("message", template), plain(args)

    def _redact_text(self, name: str, text: Any) -> str:
        redacted = self._redact_value(name, text)
        # Readable, since UTF-8 must be able to encode it.
        return readable(redacted if type(redacted) is str else safe_str(redacted))

    def _redact_field(self, name: str, encoded: Any) -> Any:
        redacted = self._redact_value(_MESSAGE_NAMES.get(name, name), _decoded(encoded))
        if name in RESERVED and type(redacted) is not str:
            redacted = safe_str(redacted)
        return plain(redacted)

    def _redact_value(self, name: str, value: Any) -> Any:
        """Return what is written in place of a value."""
        try:
            return self._redact(name, value)
        except Exception as error:  # what a redactor has returned is nested without end, or too deep
            return _marker(error)

    def _redact(self, name: str, value: Any) -> Any:
        if _nesting.depth > _MOST_NESTED:
            return "<mplog: logged by a redactor>"
        if isinstance(value, Looks) and type(value.content) in _CONTAINERS:
            content = self._redact(name, value.content)
            if content != value.content:
                return content
        for redact in self._redactors:
            try:
                value = redact(name, value)
            except CAUGHT as error:
                caught(error)
                self._note("redactor", redact, error, "a marker is written in place of the value that it failed on")
                return _marker(error)
        kind = type(value)
        if kind is dict:
            return {key: self._redact(safe_str(key), item) for key, item in value.items()}
        if kind in (list, tuple):
            return kind(self._redact(name, item) for item in value)
        if kind in (set, frozenset):
            items = [self._redact(name, item) for item in value]
            try:
                return kind(items)
            except TypeError:
                return items  # a redactor has returned something that cannot be in a set
        return value


def _marker(error: BaseException) -> str:
    return f"<mplog: redactor raised {type(error).__name__}>"


def _decoded(value: Any) -> Any:
    """Return a value as it arrives."""
    return value if type(value) is str else unpack(pack(value))


# Values of fields stay encoded.
_decode: Callable[[bytes], Wire] = msgspec.msgpack.Decoder(Wire).decode


# --- on the way to workers ---

#: By their pickles. In the process that has made them, and in its forks, they are the same objects. There are hardly
#: more than 100 servers with fields at a time in any process.
_known: Cache[bytes, Preparation] = Cache(lambda data: Preparation(*load(data)), 100)


def note_preparation(preparation: Preparation, *, by_value: bool = False) -> bytes:
    """Return a key by which `load_preparation` finds the preparation in any process; see `dump`."""
    parts = preparation._enrichers, preparation._redactors
    data = dump(parts, by_value=by_value)
    _known.keep(data, preparation)
    return data


def load_preparation(data: bytes) -> Preparation:
    """Return the preparation that `note_preparation` has noted, here or in another process."""
    return _known[data]
