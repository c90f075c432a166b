"""A log record as plain data. Pure code, no I/O.

The rule of this file: **a record always travels, and what arrives is data.** Encoding runs whatever code the program's
objects bring (``__str__``, ``__repr__``) in the program itself, at the moment of the call, and answers a failure with a
placeholder. Decoding reads msgpack with msgspec, which checks types and cannot run code.

On the wire a record is one msgpack array, `Values`. The text of the message is formatted by the sender, because its
arguments may have changed a moment later.

Values of ``extra`` arrive as `mplog.plain` says.
"""

from __future__ import annotations

import logging
import operator
import struct
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

import msgspec

from mplog.plain import (
    as_number,
    from_ext,
    pack,
    plain_fields,
    readable,
    safe_repr,
    safe_str,
    text_or_ext,
    unless_signal,
    unpack_list,
)

__all__ = [
    "MAX_RECORD_SIZE",
    "Record",
    "Values",
    "decode",
    "decode_rest",
    "decode_values",
    "encode",
    "encode_call",
    "encode_ending",
    "plain_fields",
    "to_record",
    "unformattable",
    "unless_signal",
]

#: Bytes of an encoded record above which its long texts are cut, with a marker that gives their true length. One such
#: record costs the logging process a few times its size while it is written.
MAX_RECORD_SIZE = 128 * 2**20

_CUT_TEXT = 2**20
_MAX_EXTRA = 1000  # attributes in `extra` of such a record

_KEPT_FRAMES = 50

# What a record is on the wire. The parts are as they are because a tuple of many attributes is fastest got from, and
# put into, a record's dictionary at once. Within them, what differs from call to call comes first, so that `Logger` can
# keep the rest ready as bytes.

#: The attributes that it takes as they are, and that nearly every format or filter looks at.
SHOWN: dict[str, type] = {
    "created": float,
    "msecs": float,
    "relativeCreated": float,
    "stack_info": str,
    "process": int,
    "name": str,
    "levelno": int,
    "levelname": str,
}
#: Those that it takes as they are, and that are decoded only where they are needed.
HIDDEN: dict[str, type] = {
    "thread": int,
    "threadName": str,
    "pathname": str,
    "filename": str,
    "module": str,
    "lineno": int,
    "funcName": str,
}
#: A record off the wire: the message, the extra attributes, the traceback, a tuple of the values of SHOWN, the name of
#: the process, and a msgspec.Raw of the values of HIDDEN, the name of the task, and the type, message and frames of the
#: exception. Any may be None but the level.
Values = tuple[Any, ...]
MSG, EXTRA, EXC_TEXT, SHOWN_VALUES, PROCESS_NAME, REST = range(6)
PROCESS, NAME, LEVELNO = 4, 5, 6

# The level is compared, so it is always there.
_shown_types: Any = tuple(kind if name == "levelno" else kind | None for name, kind in SHOWN.items())
_WireShown: Any = tuple[_shown_types]
_Wire: Any = tuple[str | None, dict[str, Any] | None, str | None, _WireShown, str | None, msgspec.Raw]
_WireException = tuple[str, str, list[tuple[str, int, str]]]
_rest_types: Any = (*(kind | None for kind in HIDDEN.values()), str | None, _WireException | None)
_WireRest: Any = tuple[_rest_types]

# Not from makeLogRecord(), which asks the program's own record factory.
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__)
#: What formatters leave in a record, and what travels under other names.
_NOT_EXTRA = _STANDARD | {"taskName", "message", "asctime"}
#: What an extra attribute must not set, but where a text has given its place up (`_repaired`).
_RESERVED = frozenset((*SHOWN, *HIDDEN, "msg", "exc_text", "processName", "taskName", "args", "exc_info"))
HAS_TASK_NAME = "taskName" in _STANDARD


class Record(logging.LogRecord):
    """A log record that has travelled.

    It has every attribute of the record that was logged, with three differences that the stdlib's own QueueHandler
    has too: ``msg`` is the finished message, ``args`` and ``exc_info`` are None (the traceback is in ``exc_text``).

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


def encode(record: logging.LogRecord) -> bytes:
    """Return the record as plain data, whatever its arguments and attributes are. The record is not changed."""
    attributes = record.__dict__
    has_extra = len(attributes) != len(_STANDARD)
    try:
        message = record.getMessage()
    except Exception as error:
        has_extra = True  # perhaps in the place of a standard attribute that is missing
        message = unformattable(_attribute(record, "msg"), _attribute(record, "args"), error)
    except (SystemExit, GeneratorExit) as error:
        message = unformattable(_attribute(record, "msg"), _attribute(record, "args"), unless_signal(error))
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
        process_name = record.processName
        if process_name == "MainProcess":
            process_name = _process_name(record)
        extra = _extra(attributes) if has_extra else None
        task_name = attributes["taskName"] if HAS_TASK_NAME else attributes.get("taskName")
        rest = (*_get_hidden(attributes), task_name, exception)
        payload = pack((message, extra, exc_text, _get_shown(attributes), process_name, rest))
    except Exception:
        # An attribute that is missing or of an unexpected type, a str subclass, a surrogate, an int beyond 64 bits.
        payload = b""
    if payload and len(payload) <= MAX_RECORD_SIZE:
        return payload
    values = _repaired(record, message, exc_text, exception)
    if not payload and max(map(_length, (message, exc_text, *values[SHOWN_VALUES]))) <= MAX_RECORD_SIZE:
        payload = pack(values)
        if len(payload) <= MAX_RECORD_SIZE:
            return payload
    return pack(_cut(values))


def encode_ending(
    process: int,
    name: str,
    level: int,
    level_name: str,
    process_name: str,
    hidden: tuple[Any, ...],
    task_name: str | None,
) -> bytes:
    """Return the end of a record without an exception or a stack: what does not differ from call to call.

    Args:
        process, name, level, level_name, process_name, task_name: attributes of the record.
        hidden: the values of HIDDEN.
    """
    items = (None, process, name, level, level_name, process_name, (*hidden, task_name, None))
    return pack(items)[1:]  # the array's own header is one byte


def encode_call(
    message: str,
    extra: dict[str, Any] | None,
    created: float,
    milliseconds: float,
    relative: float,
    ending: bytes,
) -> bytes:
    """Return a record, from what differs from call to call and the ending of `encode_ending`."""
    # The headers of arrays of 6 and of 8, and of doubles (the MessagePack specification).
    times = _pack_times(0x98, 0xCB, created, 0xCB, milliseconds, 0xCB, relative)
    return b"\x96" + pack((message, extra, None))[1:] + times + ending


_pack_times = struct.Struct(">BBdBdBd").pack
_get_shown = operator.itemgetter(*SHOWN)
_get_hidden = operator.itemgetter(*HIDDEN)


def _extra(attributes: dict[str, Any]) -> dict[str, Any] | None:
    # A copy, since a __repr__ may set an attribute.
    return plain_fields((name, value) for name, value in list(attributes.items()) if name not in _NOT_EXTRA)


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


def unformattable(msg: object, args: object, error: BaseException) -> str:
    """Return what stands in the place of a message that could not be formatted."""
    return (
        f"<mplog: this message could not be formatted ({_describe(error)}): "
        f"msg={safe_repr(msg)}, args={safe_repr(args)}>"
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {safe_str(error)}"


def _repaired(
    record: logging.LogRecord, message: object, exc_text: object, exception: tuple[str, str, list[Any]] | None
) -> tuple[Any, ...]:
    """Return the values of a record with every attribute of the type that it must have.

    A text that UTF-8 does not take leaves its place empty and goes among the extra attributes.
    """
    try:
        process_name = _process_name(record)
    except Exception:
        process_name = None
    elsewhere = {readable(name): value for name, value in (_extra(record.__dict__) or {}).items()}

    def repaired(name: str, kind: type, value: Any) -> Any:
        value = _of_kind(value, kind)
        if kind is str and value is not None:
            text = text_or_ext(value)
            if type(text) is not str:
                value, elsewhere[name] = None, text
        return value

    message, exc_text = repaired("msg", str, message), repaired("exc_text", str, exc_text)
    process_name = repaired("processName", str, process_name)
    shown = [repaired(name, kind, _attribute(record, name)) for name, kind in SHOWN.items()]
    shown[LEVELNO] = shown[LEVELNO] or logging.NOTSET
    rest = [repaired(name, kind, _attribute(record, name)) for name, kind in (*HIDDEN.items(), ("taskName", str))]
    if exception is not None:
        kind, text, frames = exception
        frames = [(readable(file), line, readable(function)) for file, line, function in frames]
        exception = (readable(kind), readable(text), frames)
    return (message, elsewhere or None, exc_text, tuple(shown), process_name, (*rest, exception))


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
    message, extra, exc_text, shown, process_name, (*rest, exception) = values
    shown = tuple(map(_cut_text, shown))
    rest = list(map(_cut_text, rest))
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
    return (_cut_text(message), extra, _cut_text(exc_text), shown, _cut_text(process_name), (*rest, exception))


def _cut_text(value: Any) -> Any:
    if type(value) is not str or len(value) <= _CUT_TEXT:
        return value
    return f"{value[:_CUT_TEXT]}... [cut by mplog: {len(value)} characters]"


def _length(value: Any) -> int:
    return len(value) if type(value) is str else 0


# --- decoding: runs in the process that reads ---


def decode_values(payload: bytes) -> Values:
    """Return what `encode` made, the last part still encoded.

    Raises:
        ValueError: the payload is not a record (msgspec's errors are ValueErrors).
    """
    try:
        return _decode(payload)
    except msgspec.ValidationError:
        return _decode_loosely(payload)
    except RecursionError:
        raise ValueError("a record nested too deeply") from None


def to_record(values: Values) -> Record:
    """Return the values as a log record.

    Raises:
        ValueError: the part that is decoded only now does not decode.
    """
    message, extra, exc_text, shown, process_name, _ = values
    *hidden, task_name, exception = decode_rest(values)
    record = Record.__new__(Record)
    attributes = record.__dict__
    attributes.update(zip(SHOWN, shown))
    attributes.update(zip(HIDDEN, hidden))
    attributes["msg"] = message
    attributes["args"] = attributes["exc_info"] = None
    attributes["exc_text"] = exc_text
    attributes["processName"] = process_name
    if HAS_TASK_NAME or task_name is not None:
        attributes["taskName"] = task_name
    record.exc_type, record.exc_message, record.exc_frames = exception or (None, None, [])
    if extra is not None:
        if not _RESERVED.isdisjoint(extra):
            _check_reserved(attributes, extra)
        attributes.update(extra)
    return record


def decode_rest(values: Values) -> tuple[Any, ...]:
    """Return the values of `HIDDEN`, the task's name, and the exception's type, message and frames or None.

    Raises:
        ValueError: they do not decode.
    """
    rest: tuple[Any, ...]
    try:
        rest = _decode_rest(values[REST])
    except msgspec.ValidationError:
        try:
            rest = _loose_rest(unpack_list(values[REST]))
        except RecursionError:
            raise ValueError("a record nested too deeply") from None
    return rest


def decode(payload: bytes) -> Record:
    """Return the record that `encode` made.

    Raises:
        ValueError: the payload is not a record.
    """
    return to_record(decode_values(payload))


def _decode_loosely(payload: bytes) -> Values:
    """Return the values of a record of which an attribute was set to something else: a line number as a text, say."""
    try:
        message, extra, exc_text, shown, process_name, rest = unpack_list(payload)
        shown = [_of_kind(value, kind) for value, kind in zip(shown, SHOWN.values(), strict=True)]
        shown[LEVELNO] = shown[LEVELNO] or logging.NOTSET
        message, exc_text, process_name = (_of_kind(value, str) for value in (message, exc_text, process_name))
        extra = msgspec.convert(extra, dict[str, Any] | None)
        rest = msgspec.Raw(pack(_loose_rest(rest)))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not a record: {error}") from error
    return message, extra, exc_text, tuple(shown), process_name, rest


def _loose_rest(rest: Any) -> tuple[Any, ...]:
    try:
        *hidden, task_name, exception = rest
        hidden = [_of_kind(value, kind) for value, kind in zip(hidden, HIDDEN.values(), strict=True)]
        return (*hidden, _of_kind(task_name, str), msgspec.convert(exception, _WireException | None))
    except TypeError as error:
        raise ValueError(f"not a record: {error}") from error


_TEXTS = frozenset(name for name, kind in (*SHOWN.items(), *HIDDEN.items()) if kind is str) | {
    "msg",
    "exc_text",
    "processName",
    "taskName",
}


def _check_reserved(attributes: dict[str, Any], extra: dict[str, Any]) -> None:
    for name in _RESERVED.intersection(extra):
        if name not in _TEXTS or attributes.get(name) is not None or type(extra[name]) is not str:
            raise ValueError(f"an extra attribute in the place of {name!r}")


_decode: Callable[[bytes], Values] = msgspec.msgpack.Decoder(_Wire, ext_hook=from_ext).decode
_decode_rest = msgspec.msgpack.Decoder(_WireRest).decode
