"""A log record as plain data. Pure code, no I/O.

The rule of this file: **a record always travels, and what arrives is data.** Encoding runs whatever code the program's
objects bring (``__str__``, ``__repr__``) in the program itself, at the moment of the call, and answers a failure with a
placeholder. Decoding reads msgpack with msgspec, which checks types and cannot run code.

A message on the wire is one msgpack array: the attributes of `_ATTRIBUTES` in their order, then the exception's type
and message, then the extra attributes. The text of the message is formatted by the sender, because its arguments may
have changed a moment later.

Values of ``extra`` keep their type where they are plain data: None, bool, int, float, str, bytes, and lists, tuples,
sets and dicts of these, dates, times, decimals, UUIDs. Anything else arrives as a `ForeignValue`.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import logging
import signal
import sys
import traceback
import types
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["MAX_RECORD_SIZE", "ForeignValue", "Record", "decode", "encode"]

#: Bytes of an encoded record above which its long texts are cut, with a marker that gives their true length. One such
#: record costs the logging process a few times its size while it is written.
MAX_RECORD_SIZE = 128 * 2**20

_CUT_TEXT = 2**20

_ATTRIBUTES: tuple[tuple[str, type], ...] = (
    ("name", str),
    ("levelno", int),
    ("levelname", str),
    ("pathname", str),
    ("filename", str),
    ("module", str),
    ("lineno", int),
    ("funcName", str),
    ("msg", str),
    ("created", float),
    ("msecs", float),
    ("relativeCreated", float),
    ("thread", int),
    ("threadName", str),
    ("process", int),
    ("processName", str),
    ("taskName", str),
    ("exc_text", str),
    ("stack_info", str),
)
_NAMES = tuple(name for name, _ in _ATTRIBUTES)
_MSG = _NAMES.index("msg")
_LEVELNO = _NAMES.index("levelno")
_EXC_TEXT = _NAMES.index("exc_text")
_STACK_INFO = _NAMES.index("stack_info")
# Not from makeLogRecord(), which asks the program's own record factory.
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__)
#: What formatters leave in a record, and what travels under other names.
_NOT_EXTRA = _STANDARD | {"taskName", "message", "asctime"}
_HAS_TASK_NAME = "taskName" in _STANDARD
#: What levels of handlers are compared with.
_REQUIRED = frozenset({"levelno"})

_Wire = tuple[  # type: ignore[misc, valid-type]
    (
        *(kind if name in _REQUIRED else kind | None for name, kind in _ATTRIBUTES),
        tuple[str, str] | None,
        dict[str, Any] | None,
    )
]


class Record(logging.LogRecord):
    """A log record that has travelled.

    It has every attribute of the record that was logged, with three differences that the stdlib's own QueueHandler
    has too: ``msg`` is the finished message, ``args`` and ``exc_info`` are None (the traceback is in ``exc_text``).

    Attributes:
        exc_type: the exception's type, as ``module.qualname``; None without an exception. It and `exc_message` are
            slots, so formatters that write all of ``__dict__`` write what they would have written without mplog.
        exc_message: ``str()`` of the exception.
    """

    __slots__ = ("exc_message", "exc_type")
    exc_type: str | None
    exc_message: str | None

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
    exception = None
    if record.exc_info:
        exc_text, exception = _exception(record)
    extra = None
    if len(attributes) != len(_STANDARD):
        extra = {name: _plain(value) for name, value in attributes.items() if name not in _NOT_EXTRA} or None
    values = (
        record.name,
        record.levelno,
        record.levelname,
        record.pathname,
        record.filename,
        record.module,
        record.lineno,
        record.funcName,
        message,
        record.created,
        record.msecs,
        record.relativeCreated,
        record.thread,
        record.threadName,
        record.process,
        _process_name(record),
        attributes.get("taskName"),
        exc_text,
        record.stack_info,
        exception,
        extra,
    )
    try:
        payload = _encode(values)
    except (TypeError, ValueError, OverflowError, RecursionError):
        # A str subclass, a surrogate, an int beyond 64 bits, an attribute of an unexpected type.
        values = _repaired(values)
        payload = _encode(values)
    return payload if len(payload) <= MAX_RECORD_SIZE else _encode(_cut(values))


_encode: Callable[[object], bytes] = msgspec.msgpack.Encoder().encode


def _process_name(record: logging.LogRecord) -> str | None:
    """Return the name of the process, also where it is a child of multiprocess, which logging does not know."""
    name = record.processName
    if name == "MainProcess":
        other = sys.modules.get("multiprocess.process")
        if other is not None and record.process == other.current_process().ident:
            return str(other.current_process().name)
    return name


def _exception(record: logging.LogRecord) -> tuple[str | None, tuple[str, str] | None]:
    """Return the traceback as text, and the exception's type and message."""
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
    kind, value, _ = info
    if kind is None:
        return text, None
    return text, (f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."), safe_str(value))


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
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    if any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__)):
        raise error
    return error


def _code(handler: object) -> object:
    """Return the code that a signal handler runs: a function, a method, a partial or an object."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)


# --- plain data and what is not ---

#: Behind a time that is the second of that name, when clocks are set back (PEP 495).
_FOLD = "~"


def _write_time(value: Any) -> str:
    return str(value.isoformat()) + (_FOLD if value.fold else "")


def _read_time(kind: Any, text: str) -> Any:
    value = kind.fromisoformat(text.removesuffix(_FOLD))
    return value.replace(fold=1) if text.endswith(_FOLD) else value


_TUPLE, _SET, _FROZENSET, _PAIRS, _TIMEDELTA, _FOREIGN, _SURROGATES = range(1, 8)
_AS_TEXT: dict[int, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    16: (int, hex, lambda text: int(text, 16)),
    17: (datetime.datetime, _write_time, lambda text: _read_time(datetime.datetime, text)),
    18: (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    19: (datetime.time, _write_time, lambda text: _read_time(datetime.time, text)),
    20: (decimal.Decimal, str, decimal.Decimal),
    21: (uuid.UUID, str, uuid.UUID),
}
_AS_TEXT_BY_TYPE = {kind: (code, write) for code, (kind, write, _) in _AS_TEXT.items()}
_CODES: dict[type, int] = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_AS_IS = frozenset({bool, float, bytes, types.NoneType})
_MAX_DEPTH = 32
_Ext = msgspec.msgpack.Ext


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
    *attributes, exception, extra = values
    elsewhere = {_readable(name): value for name, value in (extra or {}).items()}
    for index, (name, kind) in enumerate(_ATTRIBUTES):
        value = attributes[index]
        if kind is str and value is not None:
            text = value if type(value) is str else safe_str(value)
            attributes[index] = text = _text(text)
            if type(text) is not str:
                attributes[index], elsewhere[name] = None, text
        elif value is not None:
            attributes[index] = _number(value)
    if type(attributes[_LEVELNO]) is not int:
        attributes[_LEVELNO] = logging.NOTSET
    if exception is not None:
        exception = tuple(_readable(text) for text in exception)
    return (*attributes, exception, elsewhere or None)


def _cut(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Shorten the texts of a record that is too long, and name what was left out."""
    cut = list(values)
    for index in (_MSG, _EXC_TEXT, _STACK_INFO):
        text = cut[index]
        if text is not None and len(text) > _CUT_TEXT:
            cut[index] = f"{text[:_CUT_TEXT]}... [cut by mplog: {len(text)} characters]"
    extra = cut[-1]
    if extra is not None and len(_encode(extra)) > _CUT_TEXT:
        cut[-1] = {name: f"[cut by mplog: {len(_encode(value))} bytes]" for name, value in extra.items()}
    return tuple(cut)


# --- decoding: runs in the process that reads ---


def decode(payload: bytes) -> Record:
    """Return the record that `encode` made.

    Raises:
        ValueError: the payload is not a record (msgspec's errors are ValueErrors).
    """
    try:
        try:
            values = _decode(payload)
        except msgspec.ValidationError:
            values = _decode_odd(payload)
    except RecursionError:
        raise ValueError("a record nested too deeply") from None
    record = Record.__new__(Record)
    attributes = record.__dict__
    attributes.update(zip(_NAMES, values))
    attributes["args"] = None
    attributes["exc_info"] = None
    if attributes["taskName"] is None and not _HAS_TASK_NAME:
        del attributes["taskName"]
    exception, extra = values[-2:]
    record.exc_type, record.exc_message = exception if exception is not None else (None, None)
    if extra is not None:
        attributes.update(extra)
    return record


def _decode_odd(payload: bytes) -> tuple[Any, ...]:
    """Return a record with attributes of other types than logging gives them: the program has set them itself."""
    values = _decode_list(payload)
    if len(values) != len(_ATTRIBUTES) + 2:
        raise ValueError(f"a record of {len(values)} values")
    for index, (_, kind) in enumerate(_ATTRIBUTES):
        value = values[index]
        if value is not None and type(value) is not kind:
            values[index] = safe_str(value) if kind is str else _number(value)
            if kind is int and type(values[index]) is not int:
                values[index] = None
    values[_LEVELNO] = values[_LEVELNO] or logging.NOTSET
    checked: tuple[Any, ...] = msgspec.convert(values, _Wire)
    return checked


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
_decode = msgspec.msgpack.Decoder(_Wire, ext_hook=_from_ext).decode
