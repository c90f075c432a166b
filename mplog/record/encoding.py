"""Make a log record plain data. Runs in the process that logs. Pure code, no I/O.

The rule of this file: **a record always travels.** Encoding runs whatever code the program's objects bring
(``__str__``, ``__repr__``) in the program itself, at the moment of the call, and puts a placeholder in place of what
fails.
"""

from __future__ import annotations

import logging
import operator
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import astuple, replace

from mplog.record import layout
from mplog.record.cache import Cache
from mplog.record.context import in_use, merged
from mplog.record.layout import DETAILS, MAX_RECORD_SIZE, ORIGIN, RESERVED, TIMES, Origin, Record, Wire
from mplog.record.packing import pack
from mplog.record.plain import (
    CAUGHT,
    caught,
    of_kind,
    plain,
    plain_fields,
    readable,
    safe_repr,
    safe_str,
    text_or_ext,
)

#: Characters that are kept of a text that is too long, and attributes in `extra` of such a record.
CUT_TEXT = 2**20
_MAX_EXTRA = 1000

_KEPT_FRAMES = 50


def encode(record: logging.LogRecord, sequence: int = 0, details: bool = True, *, with_args: bool = False) -> bytes:
    """Return the record as plain data, whatever its arguments and attributes are. The record is not changed.

    `sequence` is its number among those of its process, 0 for none. `details` are what only some sinks look at. With
    `with_args`, the template of the message and its arguments travel, too, beside the finished message.
    """
    if with_args:
        return _encode_carefully(record, sequence, details, with_args=True)
    # The way of nearly every record: made by the stdlib, without an exception or extra attributes. All others go
    # through _encode_carefully().
    message = None
    try:
        if record.exc_info or type(record) is not _LogRecord or _LogRecord.getMessage is not _get_message:
            return _encode_carefully(record, sequence, details)
        msg = record.msg
        args = record.args
        process_name = record.processName
        text = msg if type(msg) is str else str(msg)
        message = text % args if args else text
        if process_name == "MainProcess":
            process_name = _process_name(record)
        rest = None
        key = record.process, record.name, record.levelno, record.levelname, process_name
        if details:
            rest = record.relativeCreated, None
            origin = pack((*key, _get_details(record.__dict__)))
        else:
            origin = _encoded_origins[key]
        payload = pack(
            (
                sequence,
                message,
                merged(None) if in_use.pid else None,
                record.exc_text,
                record.created,
                record.msecs,
                record.stack_info,
                rest,
                origin,
            )
        )
        # Last, since from 3.11 on the dictionary is only made when it is asked for, and slows the attributes down.
        is_ordinary = len(record.__dict__) == _ATTRIBUTES
    except CAUGHT as error:
        # An AttributeError may be of an attribute that is missing, so it is formatted again.
        return _encode_carefully(record, sequence, details, message, None if type(error) is AttributeError else error)
    if is_ordinary and len(payload) <= MAX_RECORD_SIZE:
        return payload
    return _encode_carefully(record, sequence, details, message)


_LEVELNO = list(ORIGIN).index("levelno")
#: Origins without details as they go on the wire, by the values of `ORIGIN`. Equal numbers of other types are other
#: bytes, so only levels that are integers are kept.
_encoded_origins: Cache[tuple[Any, ...], bytes] = Cache(
    lambda key: pack((*key, None)),
    layout.KEPT_ORIGINS,
    lambda key, origin: type(key[_LEVELNO]) is int and len(origin) <= layout.KEPT_ORIGIN_SIZE,
)

_LogRecord = logging.LogRecord
_get_message = logging.LogRecord.getMessage
_ATTRIBUTES = len(layout.STANDARD)
_get_details: Callable[[dict[str, Any]], tuple[Any, ...]]
if layout.HAS_TASK_NAME:
    _get_details = operator.itemgetter(*DETAILS)
else:
    _get_details_but_task = operator.itemgetter(*[name for name in DETAILS if name != "taskName"])

    def _get_details(attributes: dict[str, Any]) -> tuple[Any, ...]:
        return (*_get_details_but_task(attributes), attributes.get("taskName"))


def _encode_carefully(
    record: logging.LogRecord,
    sequence: int,
    details: bool,
    message: str | None = None,
    error: BaseException | None = None,
    with_args: bool = False,
) -> bytes:
    """Return any record as plain data; `message` is None where it is not formatted yet, and `error` why."""
    attributes = record.__dict__
    if message is None:
        message = _message(record, error)
    exc_text, exception = _exception(record)
    arguments = _arguments(record) if with_args else ()
    try:
        origin = [attributes[name] for name in ORIGIN]
        origin[-1] = _process_name(record)
        times = [attributes[name] for name in TIMES]
        rest = (attributes["relativeCreated"], exception, *arguments) if details or arguments else None
        caller = _get_details(attributes) if details else None
        has_extra = len(attributes) != _ATTRIBUTES or not RESERVED.issuperset(attributes)
        extra = _extra(attributes) if has_extra else None
        if in_use.pid:
            extra = merged(extra)
        payload = pack((sequence, message, extra, exc_text, *times, rest, pack((*origin, caller))))
    except Exception:
        # An attribute that is missing or of an unexpected type, a str subclass, a surrogate, an int beyond 64 bits.
        payload = b""
    if payload and len(payload) <= MAX_RECORD_SIZE:
        return payload
    wire = _repaired(record, sequence, message, exc_text, exception, arguments)
    texts = [value for value in (*astuple(wire), *astuple(wire.origin)) if type(value) is str]
    if not payload and max(map(len, texts), default=0) <= MAX_RECORD_SIZE:
        payload = _pack_whole(wire)
        if len(payload) <= MAX_RECORD_SIZE:
            return payload
    return Cut(_pack_whole(_cut(wire)))


def _pack_whole(wire: Wire) -> bytes:
    """Return a record whose origin is not encoded yet."""
    return pack(replace(wire, origin=pack(wire.origin)))


def pack_wire(wire: Wire) -> bytes:
    """Return a record, the values of ``extra`` encoded, as bytes; cut where it is too long."""
    payload = pack(wire)
    if len(payload) <= MAX_RECORD_SIZE:
        return payload
    origin = Origin(*_unpack_origin(wire.origin))
    return Cut(_pack_whole(_cut(replace(wire, rest=wire.rest or (None, None), origin=origin))))


_unpack_origin: Callable[[bytes], list[Any]] = msgspec.msgpack.Decoder(list[Any]).decode


class Cut(bytes):
    """A record of which long texts were cut; the sender counts it."""


def _message(record: logging.LogRecord, error: BaseException | None) -> str:
    """Return the message, or what stands in its place because formatting it raised an error, now or before."""
    if error is None:
        try:
            return record.getMessage()
        except CAUGHT as raised:
            error = raised
    return unformattable(_attribute(record, "msg"), _attribute(record, "args"), caught(error))


def unformattable(msg: object, args: object, error: BaseException) -> str:
    """Return what stands in the place of a message that could not be formatted."""
    return (
        f"<mplog: this message could not be formatted ({describe(error)}): "
        f"msg={safe_repr(msg)}, args={safe_repr(args)}>"
    )


def describe(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {safe_str(error)}"


def _arguments(record: logging.LogRecord) -> tuple[()] | tuple[tuple[Any, Any]]:
    """Return the template of the message and its arguments, as the part of ``rest`` that they are."""
    args = _attribute(record, "args")
    if not args or not isinstance(args, (tuple, dict)):
        return ()
    return ((text_or_ext(safe_str(_attribute(record, "msg"))), plain(args)),)


def _extra(attributes: dict[str, Any]) -> dict[str, Any] | None:
    # A copy, since a __repr__ may set an attribute.
    return plain_fields((name, value) for name, value in list(attributes.items()) if name not in RESERVED)


def _attribute(record: logging.LogRecord, name: str) -> Any:
    """Return an attribute, or None where a class of the program's own fails to give it."""
    try:
        return getattr(record, name, None)
    except Exception:
        return None


def _process_name(record: logging.LogRecord) -> str | None:
    """Return the name of the process. Logging calls each child of multiprocess "MainProcess"."""
    name = record.processName
    other = sys.modules.get("multiprocess.process") if name == "MainProcess" else None
    if other is not None and record.process == other.current_process().ident:
        return str(other.current_process().name)
    return name


_Exception = tuple[str, str, list[Any]]


def _exception(record: logging.LogRecord) -> tuple[str | None, _Exception | None]:
    """Return the traceback as text, and the exception's type, message and frames."""
    info: Any = record.__dict__.get("exc_info")
    text: str | None = record.__dict__.get("exc_text")
    if not info:
        if isinstance(record, Record) and record.exc_type is not None:
            return text, (record.exc_type, record.exc_message or "", record.exc_frames)
        return text, None
    if info is True:
        info = sys.exc_info()
    elif isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if not isinstance(info, tuple) or len(info) != 3:
        return text or safe_repr(info), None
    if not text:
        try:
            text = _formatter.formatException(info)
        except CAUGHT as error:
            text = f"<mplog: this traceback could not be formatted: {describe(caught(error))}>"
    kind, value, trace = info
    if kind is None:
        return text, None
    module, name = getattr(kind, "__module__", None), getattr(kind, "__qualname__", None)
    where = f"{safe_str(module)}.{safe_str(name)}".removeprefix("builtins.")
    return text, (where, safe_str(value), _frames(trace))


def _frames(trace: types.TracebackType | None) -> list[tuple[str, int, str]]:
    if not isinstance(trace, types.TracebackType):
        return []
    frames = [(frame.f_code.co_filename, line or 0, frame.f_code.co_name) for frame, line in traceback.walk_tb(trace)]
    return frames if len(frames) <= 2 * _KEPT_FRAMES else frames[:_KEPT_FRAMES] + frames[-_KEPT_FRAMES:]


_formatter = logging.Formatter()


def _repaired(
    record: logging.LogRecord,
    sequence: int,
    message: object,
    exc_text: object,
    exception: _Exception | None,
    arguments: tuple[Any, ...],
) -> Wire:
    """Return a record with every attribute of the type that it must have, its origin not encoded yet.

    A text that UTF-8 cannot encode travels as an extra attribute; its own place stays empty.
    """
    extra = merged(_extra(record.__dict__)) or {}
    elsewhere = {readable(name): value for name, value in extra.items()}

    def repaired(name: str, value: Any) -> Any:
        kind = layout.KINDS.get(name, str)
        value = of_kind(value, kind)
        if kind is str and value is not None:
            text = text_or_ext(value)
            if type(text) is not str:
                value, elsewhere[name] = None, text
        return value

    message, exc_text = repaired("msg", message), repaired("exc_text", exc_text)
    created, msecs, stack = (repaired(name, _attribute(record, name)) for name in TIMES)
    process, name, level, level_name, _ = (repaired(name, _attribute(record, name)) for name in ORIGIN)
    try:
        process_name = repaired("processName", _process_name(record))
    except Exception:
        process_name = None
    details = tuple(repaired(name, _attribute(record, name)) for name in DETAILS)
    if exception is not None:
        kind, text, frames = exception
        frames = [(readable(file), line, readable(function)) for file, line, function in frames]
        exception = (readable(kind), readable(text), frames)
    rest = (repaired("relativeCreated", _attribute(record, "relativeCreated")), exception, *arguments)
    origin = Origin(process, name, level or logging.NOTSET, level_name, process_name, details)
    return Wire(sequence, message, elsewhere or None, exc_text, created, msecs, stack, rest, origin)


def _cut(wire: Wire) -> Wire:
    """Shorten the texts of a record that is too long, and say how long they are."""
    relative, exception, *_ = wire.rest  # without the arguments: the message has them
    if exception is not None:
        exception = (_cut_text(exception[0]), _cut_text(exception[1]), exception[2])
    *names, details = map(_cut_text, astuple(wire.origin))
    return replace(
        wire,
        msg=_cut_text(wire.msg),
        extra=_cut_extra(wire.extra),
        exc_text=_cut_text(wire.exc_text),
        stack_info=_cut_text(wire.stack_info),
        rest=(relative, exception),
        origin=(*names, tuple(map(_cut_text, details or layout.NO_DETAILS))),
    )


def _cut_extra(extra: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return as many extra attributes as there is room for; in place of a long one, its length."""
    if extra is None:
        return None
    sizes = {name: len(name) + len(pack(value)) for name, value in extra.items()}
    if sum(sizes.values()) <= CUT_TEXT:
        return extra
    room, kept = CUT_TEXT, {}
    for name in sorted(sizes, key=sizes.__getitem__):
        room -= sizes[name]
        kept[_cut_text(name)] = extra[name] if room >= 0 else f"[cut by mplog: {sizes[name]} bytes]"
        if len(kept) > _MAX_EXTRA:
            kept["mplog"] = f"[cut by mplog: {len(sizes)} attributes]"
            break
    return kept


def _cut_text(value: Any) -> Any:
    if type(value) is not str or len(value) <= CUT_TEXT:
        return value
    return f"{value[:CUT_TEXT]}... [cut by mplog: {len(value)} characters]"
