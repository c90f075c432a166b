"""A log record as plain data. Pure code, no I/O.

The rule of this file: **a record always travels, and what arrives is data.** Encoding runs whatever code the program's
objects bring (``__str__``, ``__repr__``) in the program itself, at the moment of the call, and answers a failure with a
placeholder. Decoding reads msgpack with msgspec, which checks types and cannot run code.

On the wire a record is one msgpack array::

    sequence, msg, extra, exc_text, created, msecs, stack_info,     what differs from call to call
    rest:   [relativeCreated, exception] or nil
    origin: bytes, themselves msgpack: [process, name, levelno, levelname, processName, details or nil]
                                                                               details: [thread, ..., taskName]

The text of the message is formatted by the sender, because its arguments may have changed a moment later. The origin
is the same for all calls of one logger at one level (with details: at one place), so the sender keeps it ready as
bytes, and the reader, which has those as a key, decodes it once. ``rest`` and ``details`` are left out where no sink
looks at them, and decoded only where one does.

Values of ``extra`` arrive as `mplog.record.plain` says.
"""

from __future__ import annotations

import logging
import operator
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from mplog.record.cache import Cache
from mplog.record.context import in_use, merged
from mplog.record.frame import LENGTH_SIZE
from mplog.record.plain import (
    as_number,
    from_ext,
    pack,
    plain_fields,
    readable,
    safe_repr,
    safe_str,
    text_or_ext,
    unless_signal,
    unpack,
    unpack_list,
)

__all__ = [
    "DETAILS",
    "MAX_RECORD_SIZE",
    "ORIGIN",
    "ByOrigin",
    "Cut",
    "Decoder",
    "Entry",
    "Origin",
    "Record",
    "Values",
    "constant_fields",
    "decode",
    "decode_entry",
    "decode_rest",
    "encode",
    "encode_origin",
    "origin_of",
    "pack_values",
    "plain_fields",
    "to_record",
    "unformattable",
    "unless_signal",
]

V = TypeVar("V")

#: Bytes of an encoded record above which its long texts are cut, with a marker that gives their true length. One such
#: record costs the logging process a few times its size while it is written.
MAX_RECORD_SIZE = 128 * 2**20

#: Bytes of a record that cannot take much memory once it is decoded (`mplog.record.decoded_size`), whatever it is made
#: of.
_UNCHECKED_SIZE = 2**20

_CUT_TEXT = 2**20
_MAX_EXTRA = 1000  # attributes in `extra` of such a record

_KEPT_FRAMES = 50

# What a record is on the wire. What differs from call to call comes first.

#: The attributes that are always sent and differ from call to call, beside the message.
_TIMES: dict[str, type] = {"created": float, "msecs": float, "stack_info": str}
#: Those that are the same for all calls of one logger at one level.
ORIGIN: dict[str, type] = {"process": int, "name": str, "levelno": int, "levelname": str, "processName": str}
#: Those that tell the thread and the place of the call: sent only where a sink looks at them.
DETAILS: dict[str, type] = {
    "thread": int,
    "threadName": str,
    "pathname": str,
    "filename": str,
    "module": str,
    "lineno": int,
    "funcName": str,
    "taskName": str,
}
NO_DETAILS = (None,) * len(DETAILS)

#: A record off the wire, but for its `Origin`: the number that its process gave it (from 1; 0 for none), the message,
#: the extra attributes, the traceback, the values of _TIMES, a msgspec.Raw of relativeCreated and of the type, message
#: and frames of the exception, and the origin as bytes. Any of them may be None but the number.
Values = tuple[Any, ...]
SEQUENCE, MSG, EXTRA, EXC_TEXT, CREATED, MSECS, STACK_INFO, REST, RAW_ORIGIN = range(9)

_details_types: Any = tuple(kind | None for kind in DETAILS.values())
_WireDetails: Any = tuple[_details_types]


class Origin(msgspec.Struct, array_like=True, eq=False, forbid_unknown_fields=True):
    """Where records come from. One object for as long as the same comes again, so it is looked up by its identity."""

    process: int | None
    name: str | None
    levelno: int  # it is compared, so it is always there
    levelname: str | None
    processName: str | None  # noqa: N815 (as the record calls it)
    details: _WireDetails | None


#: Origins that are kept; more come from code that is made at run time, and from hostile senders.
KEPT_ORIGINS = 10_000
_KEPT_ORIGIN_SIZE = 4096


class ByOrigin(Cache[Origin, V]):
    """What a function makes of origins. Their names may be of any length, and long ones are not kept."""

    __slots__ = ()

    def __init__(self, make: Callable[[Origin], V]) -> None:
        super().__init__(make, KEPT_ORIGINS, _is_short)


def _is_short(origin: Origin, _: object) -> bool:
    values = (origin.name, origin.levelname, origin.processName, *(origin.details or ()))
    return sum(len(value) for value in values if type(value) is str) <= _KEPT_ORIGIN_SIZE


#: A record off the wire.
Entry = tuple[Values, Origin]

_Wire: Any = tuple[
    int,
    str | None,
    dict[str, Any] | None,
    str | None,
    float | None,
    float | None,
    str | None,
    msgspec.Raw,
    bytes,
]
_WireException = tuple[str, str, list[tuple[str, int, str]]]
_WireRest: Any = tuple[float | None, _WireException | None] | None

# Not from makeLogRecord(), which asks the program's own record factory.
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__)
#: What formatters leave in a record, and what travels under other names.
_NOT_EXTRA = _STANDARD | {"taskName", "message", "asctime"}
HAS_TASK_NAME = "taskName" in _STANDARD
_KINDS = {**_TIMES, **ORIGIN, **DETAILS, "relativeCreated": float}
#: What an extra attribute must not set, but where a text has given its place up (`_repaired`).
_RESERVED = frozenset((*_KINDS, "msg", "exc_text", "args", "exc_info"))


class Record(logging.LogRecord):
    """A log record that has travelled.

    It has every attribute of the record that was logged, with three differences that the stdlib's own QueueHandler
    has too: ``msg`` is the finished message, ``args`` and ``exc_info`` are None (the traceback is in ``exc_text``).

    Where ``args`` were to travel, too, they are there as plain data; the message stays what it is.

    Attributes:
        exc_type: the exception's type, as ``module.qualname``; None without an exception. It and `exc_message` are
            slots, so formatters that write all of ``__dict__`` write what they would have written without mplog.
        exc_message: ``str()`` of the exception.
        exc_frames: where it was raised: file, line and function, the innermost last; of more than 100, the first and
            the last 50.
    """

    __slots__ = ("exc_frames", "exc_message", "exc_type")
    exc_type: str | None
    exc_message: str | None
    exc_frames: list[tuple[str, int, str]]

    def getMessage(self) -> str:
        """Return the message. Never a template: a ``%`` in it is a ``%``."""
        return str(self.msg)


# --- encoding: runs in the process that logs ---


def encode(record: logging.LogRecord, sequence: int = 0, details: bool = True, *, with_args: bool = False) -> bytes:
    """Return the record as plain data, whatever its arguments and attributes are. The record is not changed.

    Args:
        record: any record.
        sequence: its number among those of its process, from 1; 0 for none.
        details: whether to send what only some sinks look at.
        with_args: ``args`` travels, too, beside the finished message.
    """
    if with_args:
        return _encode_carefully(record, sequence, details, with_args=True)
    # The way of nearly every record: what the stdlib has made, without an exception or extra attributes. All else is
    # in _encode_carefully().
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
            origin = encode_origin((*key, _get_details(record.__dict__)))
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
        # Last, since from 3.11 on the dictionary is made when somebody asks for it, and slows the attributes down.
        is_ordinary = len(record.__dict__) == _ATTRIBUTES
    except (Exception, SystemExit, GeneratorExit) as error:
        # An AttributeError may be of an attribute that is missing, so it is formatted again.
        return _encode_carefully(record, sequence, details, message, None if type(error) is AttributeError else error)
    if is_ordinary and len(payload) <= MAX_RECORD_SIZE:
        return payload
    return _encode_carefully(record, sequence, details, message)


_LEVELNO = list(ORIGIN).index("levelno")
#: Origins without details as they go on the wire, by the values of `ORIGIN`. Equal numbers of other types are other
#: bytes, so only levels that are integers are kept.
_encoded_origins: Cache[tuple[Any, ...], bytes] = Cache(
    lambda key: encode_origin((*key, None)),
    KEPT_ORIGINS,
    lambda key, origin: type(key[_LEVELNO]) is int and len(origin) <= _KEPT_ORIGIN_SIZE,
)

_LogRecord = logging.LogRecord
_get_message = logging.LogRecord.getMessage
_ATTRIBUTES = len(_STANDARD)
_get_details: Callable[[dict[str, Any]], tuple[Any, ...]]
if HAS_TASK_NAME:
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
    """Return any record as plain data.

    Args:
        record, sequence, details: see `encode`.
        message: formatted already; None where it is not.
        error: what was raised when it was.
        with_args: see `encode`.
    """
    attributes = record.__dict__
    has_extra = len(attributes) != _ATTRIBUTES or (with_args and bool(attributes.get("args")))
    if message is None and error is not None:
        has_extra = True  # perhaps in the place of a standard attribute that is missing
        message = _unformattable(record, error)
    elif message is None:
        try:
            message = record.getMessage()
        except (Exception, SystemExit, GeneratorExit) as raised:
            has_extra = True
            message = _unformattable(record, raised)
    exc_text = exception = None
    try:
        exc_text = attributes["exc_text"]
        if attributes["exc_info"]:
            exc_text, exception = _exception(record)
        elif type(record) is Record and record.exc_type is not None:
            exception = record.exc_type, record.exc_message or "", record.exc_frames
    except KeyError:
        has_extra = True
    try:
        origin = [attributes[name] for name in ORIGIN]
        origin[-1] = _process_name(record)
        times = [attributes[name] for name in _TIMES]
        rest = (attributes["relativeCreated"], exception) if details else None
        caller = _get_details(attributes) if details else None
        extra = _extra(attributes, _NOT_EXTRA - {"args"} if with_args else _NOT_EXTRA) if has_extra else None
        if in_use.pid:
            extra = merged(extra)
        payload = pack((sequence, message, extra, exc_text, *times, rest, encode_origin((*origin, caller))))
    except Exception:
        # An attribute that is missing or of an unexpected type, a str subclass, a surrogate, an int beyond 64 bits.
        payload = b""
    if payload and len(payload) <= MAX_RECORD_SIZE:
        return payload
    values = _repaired(record, sequence, message, exc_text, exception)
    if not payload and max(map(_length, (message, exc_text, *values, *values[RAW_ORIGIN]))) <= MAX_RECORD_SIZE:
        payload = _pack_whole(values)
        if len(payload) <= MAX_RECORD_SIZE:
            return payload
    return Cut(_pack_whole(_cut(values)))


def _pack_whole(values: tuple[Any, ...]) -> bytes:
    *others, origin = values
    return pack((*others, encode_origin(origin)))


def encode_origin(origin: tuple[Any, ...]) -> bytes:
    """Return the values of `ORIGIN`, and those of `DETAILS` or None, as they go on the wire."""
    return pack(origin)


def pack_values(values: tuple[Any, ...]) -> bytes:
    """Return the values of a record, those of ``extra`` encoded, as bytes; cut where they are too long."""
    payload = pack(values)
    if len(payload) <= MAX_RECORD_SIZE:
        return payload
    *others, rest, encoded = _unpack_plainly(payload)
    *origin, details = _unpack_plainly(encoded)
    return Cut(_pack_whole(_cut((*others, rest or (None, None), (*origin, details or NO_DETAILS)))))


# Values of extra attributes stay encoded.
_unpack_plainly: Callable[[bytes], list[Any]] = msgspec.msgpack.Decoder(list[Any]).decode


class Cut(bytes):
    """A record of which long texts were cut, so that who sends it can count it."""


def _extra(attributes: dict[str, Any], not_extra: frozenset[str]) -> dict[str, Any] | None:
    # A copy, since a __repr__ may set an attribute.
    return plain_fields((name, value) for name, value in list(attributes.items()) if name not in not_extra)


def _attribute(record: logging.LogRecord, name: str) -> Any:
    """Return an attribute, or None where a class of the program's own fails to give it."""
    try:
        return getattr(record, name, None)
    except Exception:
        return None


def _process_name(record: logging.LogRecord) -> str | None:
    """Return the name of the process, also of a child of multiprocess, which logging takes for the main process."""
    name = record.processName
    other = sys.modules.get("multiprocess.process") if name == "MainProcess" else None
    if other is not None and record.process == other.current_process().ident:
        return str(other.current_process().name)
    return name


def _exception(record: logging.LogRecord) -> tuple[str | None, tuple[str, str, list[Any]] | None]:
    """Return the traceback as text, and the exception's type, message and frames."""
    info: Any = record.__dict__["exc_info"]
    if info is True:
        info = sys.exc_info()
    elif isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    text: str | None = record.__dict__.get("exc_text")
    if not isinstance(info, tuple) or len(info) != 3:
        return text or safe_repr(info), None
    if not text:
        try:
            text = _formatter.formatException(info)
        except Exception as error:
            text = f"<mplog: this traceback could not be formatted: {_describe(error)}>"
        except (SystemExit, GeneratorExit) as error:
            text = f"<mplog: this traceback could not be formatted: {_describe(unless_signal(error))}>"
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


def _unformattable(record: logging.LogRecord, error: BaseException) -> str:
    """Return what stands in the place of the message; but what a signal handler has raised goes on its way."""
    if not isinstance(error, Exception):
        unless_signal(error)
    return unformattable(_attribute(record, "msg"), _attribute(record, "args"), error)


def unformattable(msg: object, args: object, error: BaseException) -> str:
    """Return what stands in the place of a message that could not be formatted."""
    return (
        f"<mplog: this message could not be formatted ({_describe(error)}): "
        f"msg={safe_repr(msg)}, args={safe_repr(args)}>"
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {safe_str(error)}"


def _repaired(
    record: logging.LogRecord,
    sequence: int,
    message: object,
    exc_text: object,
    exception: tuple[str, str, list[Any]] | None,
) -> tuple[Any, ...]:
    """Return the values of a record with every attribute of the type that it must have.

    A text that UTF-8 does not take leaves its place empty and goes among the extra attributes.
    """
    extra = merged(_extra(record.__dict__, _NOT_EXTRA)) or {}
    elsewhere = {readable(name): value for name, value in extra.items()}

    def repaired(name: str, value: Any) -> Any:
        kind = _KINDS.get(name, str)
        value = _of_kind(value, kind)
        if kind is str and value is not None:
            text = text_or_ext(value)
            if type(text) is not str:
                value, elsewhere[name] = None, text
        return value

    message, exc_text = repaired("msg", message), repaired("exc_text", exc_text)
    times = [repaired(name, _attribute(record, name)) for name in _TIMES]
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
    rest = (repaired("relativeCreated", _attribute(record, "relativeCreated")), exception)
    origin = (process, name, level or logging.NOTSET, level_name, process_name, details)
    return (sequence, message, elsewhere or None, exc_text, *times, rest, origin)


def _of_kind(value: Any, kind: type) -> Any:
    """Return the value as a str, an int of 64 bits or a float; None where it is no number."""
    if value is None:
        return None
    if kind is str:
        return value if type(value) is str else safe_str(value)
    number = as_number(value)
    try:
        return number if number is None or type(number) is kind else kind(number)
    except (ValueError, OverflowError):  # int() of an infinity
        return None


def _cut(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Shorten the texts of a record that is too long, and say how long they are."""
    sequence, message, extra, exc_text, created, msecs, stack_info, (relative, exception), (*origin, details) = values
    if exception is not None:
        exception = (_cut_text(exception[0]), _cut_text(exception[1]), exception[2])
    if extra is not None:
        sizes = {name: len(name) + len(pack(value)) for name, value in extra.items()}
        if sum(sizes.values()) > _CUT_TEXT:
            # As many as there is room for; the long ones last.
            room, kept = _CUT_TEXT, {}
            for name in sorted(sizes, key=sizes.__getitem__):
                room -= sizes[name]
                kept[_cut_text(name)] = extra[name] if room >= 0 else f"[cut by mplog: {sizes[name]} bytes]"
                if len(kept) > _MAX_EXTRA:
                    kept["mplog"] = f"[cut by mplog: {len(sizes)} attributes]"
                    break
            extra = kept
    return (
        sequence,
        _cut_text(message),
        extra,
        _cut_text(exc_text),
        created,
        msecs,
        _cut_text(stack_info),
        (relative, exception),
        (*map(_cut_text, origin), tuple(map(_cut_text, details))),
    )


def _cut_text(value: Any) -> Any:
    if type(value) is not str or len(value) <= _CUT_TEXT:
        return value
    return f"{value[:_CUT_TEXT]}... [cut by mplog: {len(value)} characters]"


def _length(value: Any) -> int:
    return len(value) if type(value) is str else 0


# --- decoding: runs in the process that reads ---


class Decoder:
    """Decode records, and keep their origins decoded."""

    def __init__(self) -> None:
        #: By what they are on the wire.
        self._origins = Cache(_checked_origin, KEPT_ORIGINS, lambda raw, _: len(raw) <= _KEPT_ORIGIN_SIZE)

    def decode(self, payload: bytes) -> Entry:
        """Return what `encode` made, ``rest`` still encoded.

        Raises:
            ValueError: the payload is not a record (msgspec's errors are ValueErrors).
        """
        if len(payload) > _UNCHECKED_SIZE:
            _check_long(payload)
        try:
            try:
                values = _decode(payload)
                return values, self._origins[values[RAW_ORIGIN]]
            except msgspec.ValidationError:
                return _decode_loosely(payload)
        except RecursionError:
            raise ValueError("a record nested too deeply") from None

    def decode_framed(self, frames: Sequence[bytes]) -> list[Entry]:
        """Return what is in many frames, ``[length, payload]`` each.

        Raises:
            ValueError, RecursionError: one of them does not decode at the first go; nothing is known of the others.
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


_get_raw_origin = operator.itemgetter(RAW_ORIGIN)


def _checked_origin(raw: bytes) -> Origin:
    if len(raw) > _UNCHECKED_SIZE:
        _check_long(raw)
    return _decode_origin(raw)


def decode_entry(payload: bytes) -> Entry:
    """Return what `encode` made, ``rest`` still encoded.

    Raises:
        ValueError: the payload is not a record.
    """
    return Decoder().decode(payload)


def origin_of(payload: bytes) -> Origin:
    """Return where a record comes from that this process has encoded, or reads; keeps what it has decoded.

    Raises:
        ValueError: the payload is not a record.
    """
    return _decoder.decode(payload)[1]


def to_record(values: Values, origin: Origin) -> Record:
    """Return an entry as a log record.

    Raises:
        ValueError: the part that is decoded only now does not decode.
    """
    _, message, extra, exc_text, created, msecs, stack_info, _, _ = values
    relative, exception = decode_rest(values)
    record: Record = _new_record(Record)
    record.__dict__ = attributes = _templates[origin].copy()
    attributes["msg"] = message
    attributes["exc_text"] = exc_text
    attributes["stack_info"] = stack_info
    attributes["created"] = created
    attributes["msecs"] = msecs
    attributes["relativeCreated"] = relative
    if constant_fields:
        attributes.update(constant_fields)
    record.exc_type, record.exc_message, record.exc_frames = exception or (None, None, [])
    if extra is not None:
        if not _RESERVED.isdisjoint(extra):
            _check_reserved(attributes, extra)
        attributes.update(extra)
    return record


_new_record: Any = object.__new__


def _template(origin: Origin) -> dict[str, Any]:
    """Return the attributes of records of an origin, in the order of a LogRecord; those that differ are None."""
    details = dict(zip(DETAILS, origin.details or NO_DETAILS))
    template = {name: details.get(name, getattr(origin, name, None)) for name in _ORDER}
    if not HAS_TASK_NAME and details["taskName"] is not None:
        template["taskName"] = details["taskName"]
    return template


_ORDER = tuple(logging.LogRecord("", 0, "", 0, "", None, None).__dict__)
_templates = ByOrigin(_template)


def decode_rest(values: Values) -> tuple[float | None, tuple[str, str, list[tuple[str, int, str]]] | None]:
    """Return ``relativeCreated``, and the exception's type, message and frames or None.

    Raises:
        ValueError: they do not decode.
    """
    try:
        rest = _decode_rest(values[REST])
    except msgspec.ValidationError:
        try:
            rest = _loose_rest(unpack(values[REST]))
        except RecursionError:
            raise ValueError("a record nested too deeply") from None
    return rest or (None, None)


def decode(payload: bytes) -> Record:
    """Return the record that `encode` made.

    Raises:
        ValueError: the payload is not a record.
    """
    return to_record(*decode_entry(payload))


def _decode_loosely(payload: bytes) -> Entry:
    """Return a record of which an attribute was set to something else: a line number as a text, say."""
    try:
        sequence, message, extra, exc_text, *times, rest, origin = unpack_list(payload)
        message, exc_text = _of_kind(message, str), _of_kind(exc_text, str)
        times = [_of_kind(value, kind) for value, kind in zip(times, _TIMES.values(), strict=True)]
        extra = msgspec.convert(extra, dict[str, Any] | None)
        *origin, details = unpack_list(origin)
        origin = [_of_kind(value, kind) for value, kind in zip(origin, ORIGIN.values(), strict=True)]
        origin[_LEVELNO] = origin[_LEVELNO] or logging.NOTSET
        if details is not None:
            details = tuple([_of_kind(value, kind) for value, kind in zip(details, DETAILS.values(), strict=True)])
        values = (
            msgspec.convert(sequence, int),
            message,
            extra,
            exc_text,
            *times,
            msgspec.Raw(pack(_loose_rest(rest))),
            b"",
        )
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not a record: {error}") from error
    process, name, level, level_name, process_name = origin
    return values, Origin(process, name, level, level_name, process_name, details)


def _loose_rest(rest: Any) -> tuple[Any, ...] | None:
    if rest is None:
        return None
    try:
        relative, exception = rest
        return _of_kind(relative, float), msgspec.convert(exception, _WireException | None)
    except TypeError as error:
        raise ValueError(f"not a record: {error}") from error


#: Fields that all records have which this process reads. What a record brings itself takes precedence. The logging
#: process fills it before it opens its sinks.
constant_fields: dict[str, Any] = {}

_TEXTS = frozenset(name for name, kind in _KINDS.items() if kind is str) | {"msg", "exc_text"}


def _check_reserved(attributes: dict[str, Any], extra: dict[str, Any]) -> None:
    for name in _RESERVED.intersection(extra):
        if name == "args" and type(extra[name]) in (tuple, dict):
            continue
        if name not in _TEXTS or attributes.get(name) is not None or type(extra[name]) is not str:
            raise ValueError(f"an extra attribute in the place of {name!r}")


_decode: Callable[[bytes], Values] = msgspec.msgpack.Decoder(_Wire, ext_hook=from_ext).decode
_decode_framed: Callable[[bytes], tuple[int, Values]] = msgspec.msgpack.Decoder(
    tuple[int, _Wire], ext_hook=from_ext
).decode
_decode_origin: Callable[[bytes], Origin] = msgspec.msgpack.Decoder(Origin).decode
_decode_rest = msgspec.msgpack.Decoder(_WireRest).decode

_decoder = Decoder()
