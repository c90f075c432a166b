"""Read records off the wire. Runs in the process that reads. Pure code, no I/O.

The rule of this file: **what arrives is data.** It is read with msgspec, which checks types and cannot run code. What
is not a record, or would take far more memory than it has bytes, is a ValueError.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from mplog.record import layout
from mplog.record.cache import Cache
from mplog.record.frame import LENGTH_SIZE
from mplog.record.layout import (
    MAX_RECORD_SIZE,
    RAW_ORIGIN,
    REST,
    ByOrigin,
    Entry,
    Origin,
    Record,
    Template,
    Values,
    Wire,
)
from mplog.record.plain import from_ext, of_kind, unpack, unpack_list

#: Bytes of a record that cannot take much memory once it is decoded (`mplog.record.decoded_size`), whatever it is made
#: of.
UNCHECKED_SIZE = 2**20

# The types of `Wire`.
_Wire: Any = tuple[
    int, str | None, dict[str, Any] | None, str | None, float | None, float | None, str | None, msgspec.Raw, bytes
]
_WireException = tuple[str, str, list[tuple[str, int, str]]]


class Rest(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The part of a record that is decoded only where something looks at it; see `Wire`.

    `arguments` are the template of the message and what it is formatted with; empty where they do not travel.
    """

    relative: float | None
    exception: _WireException | None
    arguments: tuple[Any, Any] = ("", ())


_NO_REST = Rest(None, None)

# A record with an attribute of another type than usual.
_LooseWire: Any = tuple[Any, Any, Any, Any, Any, Any, Any, msgspec.Raw, Any]

_decode: Callable[[bytes], Values] = msgspec.msgpack.Decoder(_Wire, ext_hook=from_ext).decode
_decode_framed: Callable[[bytes], tuple[int, Values]] = msgspec.msgpack.Decoder(
    tuple[int, _Wire], ext_hook=from_ext
).decode
_decode_origin: Callable[[bytes], Origin] = msgspec.msgpack.Decoder(Origin).decode
_decode_loose: Callable[[bytes], Values] = msgspec.msgpack.Decoder(_LooseWire, ext_hook=from_ext).decode
_decode_rest: Callable[[bytes], Rest | None] = msgspec.msgpack.Decoder(Rest | None, ext_hook=from_ext).decode
_get_raw_origin = operator.itemgetter(RAW_ORIGIN)


class Decoder:
    """Decode records, and keep their origins decoded."""

    def __init__(self) -> None:
        #: By their bytes on the wire.
        self._origins = Cache(_checked_origin, layout.KEPT_ORIGINS, lambda raw, _: len(raw) <= layout.KEPT_ORIGIN_SIZE)

    def decode(self, payload: bytes) -> Entry:
        """Return what `encode` made, ``rest`` still encoded; raise ValueError if the payload is not a record."""
        if len(payload) > UNCHECKED_SIZE:
            _check_long(payload)
        try:
            try:
                values = _decode(payload)
                if len(payload) > UNCHECKED_SIZE:
                    # In the place of a view that would keep the whole payload.
                    values = (*values[:REST], values[REST].copy(), *values[REST + 1 :])
                return values, self._origins[values[RAW_ORIGIN]]
            except msgspec.ValidationError:
                return _decode_loosely(payload)
        except RecursionError:
            raise ValueError("a record nested too deeply") from None

    def decode_framed(self, frames: Sequence[bytes]) -> list[Entry]:
        """Return the records in many frames, ``[length, payload]`` each.

        Where one raises ValueError or RecursionError, `decode` may still decode it.
        """
        framed = list(map(_decode_framed, frames))
        # A hostile writer may send what merely decodes: a frame ends where its own length says.
        if [LENGTH_SIZE + length for length, _ in framed] != list(map(len, frames)):
            raise ValueError("a frame of another length than it says")
        batch = [values for _, values in framed]
        return list(zip(batch, map(self._origins.__getitem__, map(_get_raw_origin, batch))))


def _check_long(payload: bytes) -> None:
    if len(payload) > 2 * MAX_RECORD_SIZE:  # one that is cut may be a little longer
        raise ValueError(f"a record of {len(payload)} bytes, where {MAX_RECORD_SIZE} are as many as may be")
    from mplog.record.decoded_size import check

    check(payload)


def _checked_origin(raw: bytes) -> Origin:
    if len(raw) > UNCHECKED_SIZE:
        _check_long(raw)
    return _decode_origin(raw)


def decode_entry(payload: bytes) -> Entry:
    """Return what `Decoder.decode` does, without keeping anything."""
    return Decoder().decode(payload)


def origin_of(payload: bytes) -> Origin:
    """Return where a record comes from; raise ValueError if the payload is not a record."""
    return _decoder.decode(payload)[1]


def to_record(values: Values, origin: Origin) -> Record:
    """Return an entry as a log record; raise ValueError if the part that is decoded only now is broken."""
    _, message, extra, exc_text, created, msecs, stack_info, _, _ = values
    rest = decode_rest(values)
    record: Record = _new_record(Record)
    record.__dict__ = attributes = _templates[origin].copy()
    attributes["msg"] = message
    attributes["exc_text"] = exc_text
    attributes["stack_info"] = stack_info
    attributes["created"] = created
    attributes["msecs"] = msecs
    attributes["relativeCreated"] = rest.relative
    if constant_fields:
        attributes.update(constant_fields)
    record.exc_type, record.exc_message, record.exc_frames = rest.exception or (None, None, [])
    if extra is not None:
        if not _RESERVED.isdisjoint(extra):
            _check_reserved(attributes, extra)
        attributes.update(extra)
    message = attributes["msg"]
    template, args = rest.arguments
    if args:
        if type(template) is not str or not isinstance(args, (tuple, dict)):
            raise ValueError("arguments of another type")
        attributes["msg"], attributes["args"] = Template(template, args, message), args
    elif message is not None and "%" in message:
        attributes["msg"] = Template(message, args, message)
    return record


_new_record: Any = object.__new__


def _template(origin: Origin) -> dict[str, Any]:
    """Return the attributes that all records of an origin share, in the order of a LogRecord; others are None."""
    details = dict(zip(layout.DETAILS, origin.details or layout.NO_DETAILS))
    template = {name: details.get(name, getattr(origin, name, None)) for name in layout.STANDARD}
    template["args"] = ()  # as of a call without arguments: msg % args, and *args, are valid
    if not layout.HAS_TASK_NAME and details["taskName"] is not None:
        template["taskName"] = details["taskName"]
    return template


_templates = ByOrigin(_template)


def decode_rest(values: Values) -> Rest:
    """Return the rest of a record; raise ValueError if it is broken."""
    try:
        try:
            rest = _decode_rest(values[REST])
        except msgspec.ValidationError:
            rest = _loose_rest(unpack(values[REST]))
    except RecursionError:
        raise ValueError("a record nested too deeply") from None
    return _NO_REST if rest is None else rest


def decode(payload: bytes) -> Record:
    """Return the record that `encode` made; raise ValueError if the payload is not a record."""
    return to_record(*decode_entry(payload))


def _decode_loosely(payload: bytes) -> Entry:
    """Return a record with an attribute of another type than usual: a line number that is a text, say."""
    try:
        wire = Wire(*_decode_loose(payload))
        *origin, details = unpack_list(wire.origin)
        process, name, level, level_name, process_name = _of_kinds(origin, layout.ORIGIN)
        place = None if details is None else tuple(_of_kinds(details, layout.DETAILS))
        values = (
            msgspec.convert(wire.sequence, int),
            of_kind(wire.msg, str),
            msgspec.convert(wire.extra, dict[str, Any] | None),
            of_kind(wire.exc_text, str),
            *_of_kinds((wire.created, wire.msecs, wire.stack_info), layout.TIMES),
            wire.rest,
            b"",
        )
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not a record: {error}") from error
    return values, Origin(process, name, level or logging.NOTSET, level_name, process_name, place)


def _of_kinds(values: Iterable[Any], kinds: dict[str, type]) -> list[Any]:
    return [of_kind(value, kind) for value, kind in zip(values, kinds.values(), strict=True)]


def _loose_rest(rest: Any) -> Rest | None:
    if rest is None:
        return None
    try:
        relative, exception, *arguments = rest
        return Rest(
            of_kind(relative, float),
            msgspec.convert(exception, _WireException | None),
            *msgspec.convert(arguments, list[tuple[Any, Any]]),
        )
    except TypeError as error:
        raise ValueError(f"not a record: {error}") from error


#: Fields of all records that this process reads, unless a record brings one of the same name. The logging process fills
#: it before it opens its sinks.
constant_fields: dict[str, Any] = {}

#: What an extra attribute must not set, except for a text that UTF-8 cannot encode (`mplog.record.encoding`).
_RESERVED = frozenset((*layout.KINDS, "msg", "exc_text", "args", "exc_info"))
_TEXTS = frozenset(name for name, kind in layout.KINDS.items() if kind is str) | {"msg", "exc_text"}


def _check_reserved(attributes: dict[str, Any], extra: dict[str, Any]) -> None:
    for name in _RESERVED.intersection(extra):
        if name not in _TEXTS or attributes.get(name) is not None or type(extra[name]) is not str:
            raise ValueError(f"an extra attribute in the place of {name!r}")


_decoder = Decoder()
