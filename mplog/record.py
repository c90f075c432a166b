"""A log record as plain data. Pure code, no I/O.

The rule of this file: **a record always travels, and what arrives is data.** Encoding runs whatever code the program's
objects bring (``__str__``, ``__repr__``) in the program itself, at the moment of the call, and answers a failure with a
placeholder. Decoding reads msgpack with msgspec, which checks types and cannot run code.

On the wire a record is one msgpack array, `Values`. The text of the message is formatted by the sender, because its
arguments may have changed a moment later.

Values of ``extra`` keep their type where they are plain data: None, bool, int, float, str, bytes, and lists, tuples,
sets and dicts of these, dates, times, decimals, UUIDs. Anything else arrives as a `ForeignValue`.
"""

from __future__ import annotations

import datetime
import decimal
import logging
import operator
import signal
import struct
import sys
import traceback
import types
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

__all__ = [
    "MAX_RECORD_SIZE",
    "ForeignValue",
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
    "unless_signal",
]

#: Bytes of an encoded record above which its long texts are cut, with a marker that gives their true length. One such
#: record costs the logging process a few times its size while it is written.
MAX_RECORD_SIZE = 128 * 2**20

_CUT_TEXT = 2**20
_KEPT_FRAMES = 50

# What a record is on the wire. The parts are as they are because a tuple of many attributes is fastest got from, and
# put into, a record's dictionary at once.

# Within them, what differs from call to call comes first, so that `Logger` can keep the rest ready as bytes.

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
#: exception. Any may be None.
Values = tuple[Any, ...]
MSG, EXTRA, EXC_TEXT, SHOWN_VALUES, PROCESS_NAME, REST = range(6)
PROCESS, NAME, LEVELNO = 4, 5, 6

_shown_types: Any = tuple(kind | None for kind in SHOWN.values())
_WireShown: Any = tuple[_shown_types]
_Wire: Any = tuple[str | None, dict[str, Any] | None, str | None, _WireShown, str | None, msgspec.Raw]
_WireException = tuple[str, str, list[tuple[str, int, str]]]
_rest_types: Any = (*(kind | None for kind in HIDDEN.values()), str | None, _WireException | None)
_WireRest: Any = tuple[_rest_types]

# Not from makeLogRecord(), which asks the program's own record factory.
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__)
#: What formatters leave in a record, and what travels under other names.
_NOT_EXTRA = _STANDARD | {"taskName", "message", "asctime"}
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


class ForeignValue:
    """A value of ``extra`` that is not plain data: what it looked like in the process that logged it.

    ``str()``, ``repr()``, ``format()`` and, for numbers, ``%d`` and ``%f`` give what the value itself would have given.
    """

    __slots__ = ("_number", "_repr", "_str")

    def __init__(self, text: str, representation: str, number: int | float | None = None) -> None:
        self._str = text
        self._repr = representation
        self._number = number

    def __str__(self) -> str:
        return self._str

    def __repr__(self) -> str:
        return self._repr

    def __format__(self, spec: str) -> str:
        return format(self._str if self._number is None or not spec else self._number, spec)

    def __int__(self) -> int:
        return int(self._require_number())

    def __float__(self) -> float:
        return float(self._require_number())

    def _require_number(self) -> int | float:
        if self._number is None:
            raise TypeError(f"not a number: {self._repr}")
        return self._number

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ForeignValue):
            return NotImplemented
        return (self._str, self._repr, self._number) == (other._str, other._repr, other._number)

    def __hash__(self) -> int:
        return hash((self._str, self._repr, self._number))


# --- encoding: runs in the process that logs ---


def encode(record: logging.LogRecord) -> bytes:
    """Return the record as plain data, whatever its arguments and attributes are. The record is not changed."""
    attributes = record.__dict__
    try:
        message = record.getMessage()
    except Exception as error:
        message = _unformattable(record, error)
    except (SystemExit, GeneratorExit) as error:
        message = _unformattable(record, unless_signal(error))
    exc_text = record.exc_text
    exception = extra = None
    if record.exc_info:
        exc_text, exception = _exception(record)
    if len(attributes) != len(_STANDARD):
        extra = plain_fields((name, value) for name, value in attributes.items() if name not in _NOT_EXTRA)
    process_name = record.processName
    if process_name == "MainProcess":
        process_name = _process_name(record)
    task_name = attributes.get("taskName")
    rest = (*_get_hidden(attributes), task_name, exception)
    return _encode_values((message, extra, exc_text, _get_shown(attributes), process_name, rest))


def _encode_values(values: tuple[Any, ...]) -> bytes:
    """Return `Values`, the last of which is not encoded yet, as bytes."""
    try:
        payload = _encode(values)
    except (TypeError, ValueError, OverflowError, RecursionError):
        # A str subclass, a surrogate, an int beyond 64 bits, an attribute of an unexpected type.
        values = _repaired(values)
        payload = _encode(values)
    return payload if len(payload) <= MAX_RECORD_SIZE else _encode(_cut(values))


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
    return _encode(items)[1:]  # the array's own header is one byte


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
    return b"\x96" + _encode((message, extra, None))[1:] + times + ending


_pack_times = struct.Struct(">BBdBdBd").pack
_encode: Callable[[object], bytes] = msgspec.msgpack.Encoder().encode
_get_shown = operator.itemgetter(*SHOWN)
_get_hidden = operator.itemgetter(*HIDDEN)


def _process_name(record: logging.LogRecord) -> str | None:
    """Return the name of the main process, or of a child of multiprocess, which logging takes for one."""
    other = sys.modules.get("multiprocess.process")
    if other is not None and record.process == other.current_process().ident:
        return str(other.current_process().name)
    return record.processName


def _exception(record: logging.LogRecord) -> tuple[str | None, tuple[str, str, list[Any]] | None]:
    """Return the traceback as text, and the exception's type, message and frames."""
    info: Any = record.exc_info
    if info is True:
        info = sys.exc_info()
    elif isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    text = record.exc_text
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
    frames = [(frame.f_code.co_filename, line or 0, frame.f_code.co_name) for frame, line in traceback.walk_tb(trace)]
    if len(frames) > 2 * _KEPT_FRAMES:
        frames = frames[:_KEPT_FRAMES] + frames[-_KEPT_FRAMES:]
    return text, (f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."), safe_str(value), frames)


_formatter = logging.Formatter()


def _unformattable(record: logging.LogRecord, error: BaseException) -> str:
    return (
        f"<mplog: this message could not be formatted ({_describe(error)}): "
        f"msg={safe_repr(record.msg)}, args={safe_repr(record.args)}>"
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {safe_str(error)}"


def safe_str(value: object) -> str:
    """Return ``str(value)``, or a placeholder where that fails."""
    return _safe(str, value)


def safe_repr(value: object) -> str:
    """Return ``repr(value)``, or a placeholder where that fails."""
    return _safe(repr, value)


def _safe(function: Callable[[object], str], value: object) -> str:
    try:
        # Exactly a str: a subclass could bring code along.
        return str.__str__(function(value))
    except Exception as error:
        return f"<{type(value).__name__} object; its {function.__name__}() raised {type(error).__name__}>"
    except (SystemExit, GeneratorExit) as error:
        return (
            f"<{type(value).__name__} object; its {function.__name__}() raised {type(unless_signal(error)).__name__}>"
        )


def unless_signal(error: BaseException) -> BaseException:
    """Return the error, but raise it again where a signal handler raised it.

    ``sys.exit()`` in a ``__repr__`` is a fault of the argument and must not end the program. ``sys.exit()`` in a signal
    handler that happens to run in the meantime is the program's wish.
    """
    handlers = (signal.getsignal(number) for number in signal.valid_signals())
    codes = {getattr(handler, "__code__", None) for handler in handlers} - {None}
    if any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__)):
        raise error
    return error


# --- plain data and what is not ---

_TUPLE, _SET, _FROZENSET, _PAIRS, _TIMEDELTA, _FOREIGN, _SURROGATES = range(1, 8)
_AS_TEXT: dict[int, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    16: (int, hex, lambda text: int(text, 16)),
    17: (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    18: (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    19: (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    20: (decimal.Decimal, str, decimal.Decimal),
    21: (uuid.UUID, str, uuid.UUID),
}
_AS_TEXT_BY_TYPE = {kind: (code, write) for code, (kind, write, _) in _AS_TEXT.items()}
_CODES: dict[type, int] = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_AS_IS = frozenset({bool, float, bytes, types.NoneType})
_MAX_DEPTH = 32
_Ext = msgspec.msgpack.Ext


def plain_fields(fields: Iterable[tuple[str, Any]]) -> dict[str, Any] | None:
    """Return the fields with values that msgpack carries; None where there are none."""
    return {name: _plain(value) for name, value in fields} or None


def _plain(value: Any, depth: int = 0) -> Any:
    """Return the value as something that msgpack carries and `_from_ext` restores."""
    kind = type(value)
    if kind is str:
        return _text(value)
    if kind in _AS_IS or (kind is int and -(2**63) <= value < 2**64):
        return value
    if kind in _AS_TEXT_BY_TYPE:
        code, write = _AS_TEXT_BY_TYPE[kind]
        return _Ext(code, write(value).encode())
    if kind is datetime.timedelta:
        return _Ext(_TIMEDELTA, _encode([value.days, value.seconds, value.microseconds]))
    if depth < _MAX_DEPTH:
        if kind is list:
            return [_plain(item, depth + 1) for item in value]
        if kind in _CODES:
            return _Ext(_CODES[kind], _encode([_plain(item, depth + 1) for item in value]))
        if kind is dict:
            pairs = [(_plain(key, depth + 1), _plain(item, depth + 1)) for key, item in value.items()]
            if all(type(key) is str for key, _ in pairs):
                return dict(pairs)
            return _Ext(_PAIRS, _encode(pairs))
    return _Ext(_FOREIGN, _encode((_text(safe_str(value)), _text(safe_repr(value)), _number(value))))


def _text(text: str) -> Any:
    """Return the text, or its stand-in where UTF-8 does not take it: a lone surrogate, as in undecodable file names."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _Ext(_SURROGATES, text.encode("utf-8", "surrogatepass"))
    return text


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _number(value: Any) -> int | float | None:
    """Return what ``%d`` and ``%f`` see in the value, for numpy's scalars, enumerations and the like."""
    try:
        if hasattr(value, "__index__"):
            number = int(value)
            return number if -(2**63) <= number < 2**64 else None
        return float(value) if hasattr(value, "__float__") else None
    except Exception:
        return None
    except (SystemExit, GeneratorExit) as error:
        unless_signal(error)
        return None


def _repaired(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values of a record with every attribute of the type that it must have.

    A text that UTF-8 does not take leaves its place empty and goes among the extra attributes.
    """
    message, extra, exc_text, shown, process_name, (*hidden, task_name, exception) = values
    elsewhere = {_readable(name): value for name, value in (extra or {}).items()}

    def repaired(kinds: dict[str, type], parts: Sequence[Any]) -> list[Any]:
        return [_repaired_value(name, kind, part, elsewhere) for (name, kind), part in zip(kinds.items(), parts)]

    found = repaired({"msg": str, "exc_text": str, "processName": str}, (message, exc_text, process_name))
    message, exc_text, process_name = found
    shown = tuple(repaired(SHOWN, shown))
    hidden = repaired({**HIDDEN, "taskName": str}, (*hidden, task_name))
    if exception is not None:
        kind, text, frames = exception
        frames = [(_readable(file), line, _readable(function)) for file, line, function in frames]
        exception = (_readable(kind), _readable(text), frames)
    return (message, elsewhere or None, exc_text, shown, process_name, (*hidden, exception))


def _repaired_value(name: str, kind: type, value: Any, elsewhere: dict[str, Any]) -> Any:
    if value is None or type(value) is kind is not str:
        return value
    if kind is not str:
        return _number(value)
    text = _text(value if type(value) is str else safe_str(value))
    if type(text) is str:
        return text
    elsewhere[name] = text
    return None


def _cut(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Shorten the texts of a record that is too long, and name what was left out."""
    message, extra, exc_text, shown, process_name, rest = values
    if extra is not None and len(_encode(extra)) > _CUT_TEXT:
        extra = {name: f"[cut by mplog: {len(_encode(value))} bytes]" for name, value in extra.items()}
    shown = tuple(_cut_text(value) for value in shown)
    return (_cut_text(message), extra, _cut_text(exc_text), shown, process_name, rest)


def _cut_text(value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= _CUT_TEXT:
        return value
    return f"{value[:_CUT_TEXT]}... [cut by mplog: {len(value)} characters]"


# --- decoding: runs in the process that reads ---


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
        attributes.update(extra)
    return record


def decode_rest(values: Values) -> tuple[Any, ...]:
    """Return the values of `HIDDEN`, the task's name, and the exception's type, message and frames or None.

    Raises:
        ValueError: they do not decode.
    """
    rest: tuple[Any, ...] = _decode_rest(values[REST])
    return rest


def decode(payload: bytes) -> Record:
    """Return the record that `encode` made.

    Raises:
        ValueError: the payload is not a record.
    """
    try:
        return to_record(decode_values(payload))
    except RecursionError:
        raise ValueError("a record nested too deeply") from None


def _from_ext(code: int, data: memoryview) -> Any:
    try:
        if code in _AS_TEXT:
            return _AS_TEXT[code][2](bytes(data).decode())
        if code == _SURROGATES:
            return bytes(data).decode("utf-8", "surrogatepass")
        items = _decode_list(data)
        if code == _TUPLE:
            return tuple(items)
        if code == _SET:
            return set(items)
        if code == _FROZENSET:
            return frozenset(items)
        if code == _PAIRS:
            return dict(items)
        if code == _TIMEDELTA:
            return datetime.timedelta(*items)
        if code == _FOREIGN:
            return ForeignValue(*items)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"a value that does not decode: {error}") from error
    raise ValueError(f"an unknown kind of value: {code}")


_decode_list = msgspec.msgpack.Decoder(list[Any], ext_hook=_from_ext).decode
#: Returns what `encode` made, or raises ValueError (msgspec's errors are), or RecursionError for one nested too deeply.
decode_values: Callable[[bytes], Values] = msgspec.msgpack.Decoder(_Wire, ext_hook=_from_ext).decode
_decode_rest = msgspec.msgpack.Decoder(_WireRest).decode
