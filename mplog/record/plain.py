"""Any value as plain data. Pure code, no I/O.

The rule of this file: **a value keeps its type where it is plain data, and its looks where it is not.** Plain are None,
bool, int, float, str, bytes, dates, times, decimals, UUIDs, and lists, tuples, sets and dicts of these. A value of a
class that is made from int, float, str, list, tuple or dict stays one of that type, and keeps its looks, too. Anything
else becomes a `ForeignValue` (`mplog.record.foreign`). Nothing that a program's objects do meanwhile (raise, exit,
recurse) gets out of here.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import numbers
import operator
import signal
import traceback
import types
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from mplog.record.foreign import LIKE, ForeignValue, Looks
from mplog.record.packing import pack


def safe_str(value: object) -> str:
    """Return ``str(value)``, or a placeholder where that fails."""
    return safely(str, value)


def safe_repr(value: object) -> str:
    """Return ``repr(value)``, or a placeholder where that fails."""
    return safely(repr, value)


def safely(function: Callable[[object], str], value: object) -> str:
    try:
        # Exactly a str: a subclass could bring code along.
        return str.__str__(function(value))
    except CAUGHT as error:
        return f"<{type(value).__name__} object; its {function.__name__}() raised {type(caught(error)).__name__}>"


#: What a program's objects may raise without an effect on the program, see `caught`.
CAUGHT = (Exception, SystemExit, GeneratorExit)


def caught(error: BaseException) -> BaseException:
    """Return the error; raise it again where it is an exit that a signal handler wants (`unless_signal`)."""
    return error if isinstance(error, Exception) else unless_signal(error)


def unless_signal(error: BaseException) -> BaseException:
    """Return the error, but raise it again where a signal handler raised it.

    ``sys.exit()`` in a ``__repr__`` is a fault of the argument and must not end the program. ``sys.exit()`` in a signal
    handler that happens to run in the meantime is the program's wish.
    """
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    if any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__)):
        raise error
    return error


def _code(handler: Any) -> types.CodeType | None:
    """Return the code of a signal handler: of a function or method, a partial, or an object with ``__call__``."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if callable(handler) and not hasattr(handler, "__code__"):
        handler = type(handler).__call__
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, types.CodeType) else None


_FOLD = "~"  # after a time that is the second of two, when the clocks go back


def _write_time(kind: Any, when: Any) -> str:
    if when != when:  # noqa: PLR0124 (pandas.NaT, whose fields are those of some time)
        raise ValueError("not a time")
    return f"{kind.isoformat(when)}{_FOLD * when.fold}"


def _read_time(kind: Any, text: str) -> Any:
    when = kind.fromisoformat(text.removesuffix(_FOLD))
    return when.replace(fold=1) if text.endswith(_FOLD) else when


#: The largest exponent of an IEEE 754 decimal128. ``%d`` of a larger one is as long as the number is large.
_LARGEST_EXPONENT = 6144


def _read_decimal(text: str) -> decimal.Decimal | ForeignValue:
    number = decimal.Decimal(text)
    if abs(number.adjusted()) <= _LARGEST_EXPONENT and len(text) <= 2 * _LARGEST_EXPONENT:
        return number
    return ForeignValue(text, repr(number))


_TUPLE, _SET, _FROZENSET, _PAIRS, _TIMEDELTA, _FOREIGN, _SURROGATES = range(1, 8)
_AS_TEXT: dict[int, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    16: (int, hex, lambda text: int(text, 16)),
    17: (
        datetime.datetime,
        functools.partial(_write_time, datetime.datetime),
        functools.partial(_read_time, datetime.datetime),
    ),
    18: (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    19: (datetime.time, functools.partial(_write_time, datetime.time), functools.partial(_read_time, datetime.time)),
    20: (decimal.Decimal, decimal.Decimal.__str__, _read_decimal),
    21: (uuid.UUID, uuid.UUID.__str__, uuid.UUID),
}
_AS_TEXT_BY_TYPE = {kind: (code, write) for code, (kind, write, _) in _AS_TEXT.items()}
_CODES: dict[type, int] = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_AS_IS = frozenset({bool, float, bytes, types.NoneType})
#: The value without what a class of the program's own adds to the type that it is made from. None of its code runs.
_BARE: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
}
_PLAIN = frozenset((*_BARE, *_AS_TEXT_BY_TYPE, *_CODES, list, dict, datetime.timedelta))
MAX_DEPTH = 32
#: Containers that are not looked for among those in them, since that takes time.
_OUTER = 2
_Ext = msgspec.msgpack.Ext


def plain(value: Any, depth: int = 0, above: tuple[int, ...] = ()) -> Any:
    """Return the value as something that msgpack carries and `from_ext` restores.

    `depth` says in how many containers it is, and `above` are the ids of these, except the outer ones.
    """
    kind = type(value)
    if kind is str:
        return text_or_ext(value)
    if kind in _AS_IS or (kind is int and -(2**63) <= value < 2**64):
        return value
    if kind is ForeignValue:  # one that has travelled before
        looks = [*map(text_or_ext, (value._str, value._repr)), value._number, text_or_ext(value._formatted)]
        return _Ext(_FOREIGN, pack([*looks, plain(value.content, depth, above)]))
    content = None
    try:
        if kind in _PLAIN:
            content = _plain_as(kind, value, depth, above)
            if content is not None:
                return content
        else:
            base = next((each for each in kind.__mro__ if each in _PLAIN), None)
            if base is not None:
                content = _plain_as(base, value, depth, above)
                if content is not None and _looks_like(kind, base):
                    return content
            elif _is_number(kind):
                content = as_number(value)
            elif _is_numpy_bool(kind):
                content = bool(value)
    except CAUGHT as error:  # a tzinfo that raises, a nesting too deep for the stack: what it looks like
        caught(error)
    looks = [text_or_ext(safe_str(value)), text_or_ext(safe_repr(value)), as_number(value), None, content]
    if vars(object)["__format__"] is not kind.__format__:  # it may differ from str(), as for an enumeration of texts
        looks[3] = text_or_ext(safely(format, value))
    return _Ext(_FOREIGN, pack(looks))


def _plain_as(kind: type, value: Any, depth: int, above: tuple[int, ...]) -> Any:
    """Return a value of a plain type, or of a class made from it, as `plain` does one of that type.

    Returns None for a container that is too deep, or is in itself.
    """
    if kind is list or kind is dict or kind in _CODES:
        if depth >= _OUTER:
            # Containers that are in themselves, such as nodes that know their parent, would be copied without end.
            if depth >= MAX_DEPTH or id(value) in above:
                return None
            above = (*above, id(value))
        depth += 1
        # Copies, which are taken in one step: another thread, or a __repr__ in here, may change the original.
        if kind is dict:
            pairs = [(plain(key, depth, above), plain(item, depth, above)) for key, item in list(value.items())]
            return dict(pairs) if all(type(key) is str for key, _ in pairs) else _Ext(_PAIRS, pack(pairs))
        items = [plain(item, depth, above) for item in [*kind.__iter__(value)]]  # type: ignore[attr-defined]
        return items if kind is list else _Ext(_CODES[kind], pack(items))
    if kind in _BARE and type(value) is not kind:
        return plain(_BARE[kind](value))
    if kind is datetime.timedelta:
        return _Ext(_TIMEDELTA, pack([value.days, value.seconds, value.microseconds]))
    code, write = _AS_TEXT_BY_TYPE[kind]
    return _Ext(code, write(value).encode())


def _looks_like(kind: type, base: type) -> bool:
    """Whether values of a class look like those of the type that it is made from, so that they may go as these."""
    methods = "__str__", "__repr__", "__format__"
    return base in LIKE and all(getattr(kind, name) is getattr(base, name) for name in methods)


def _is_number(kind: type) -> bool:
    """Whether JSON can have values of a class as numbers: those of numpy, but no fractions."""
    return issubclass(kind, numbers.Integral) or (
        issubclass(kind, numbers.Real) and not issubclass(kind, numbers.Rational)
    )


def _is_numpy_bool(kind: type) -> bool:
    return kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_")


def bare(value: Any) -> Any:
    """Return the plain data that a value of another type is; its text if it is none."""
    arrived = value if isinstance(value, Looks) else unpack(pack(plain(value)))
    content = arrived.content if isinstance(arrived, Looks) else arrived
    return safe_str(value) if content is None or type(content) is type(value) else content


def text_or_ext(text: str) -> Any:
    """Return the text, or a stand-in if UTF-8 cannot encode it: lone surrogates, as in undecodable file names."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _Ext(_SURROGATES, text.encode("utf-8", "surrogatepass"))
    return text


def printable(text: str, *, tab: bool = False) -> str:
    """Return a text that others have chosen, without what would steer a terminal; with its tabs, if `tab`."""
    if text.isprintable():
        return text
    kept = "\t" if tab else ""
    escaped = (char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text)
    return "".join(escaped)


def readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def as_number(value: Any) -> int | float | None:
    """Return what ``%d`` and ``%f`` see in the value, for numpy's scalars, enumerations and the like."""
    try:
        if hasattr(type(value), "__index__"):
            number = operator.index(value)
            return number if -(2**63) <= number < 2**64 else None
        return float(value) if hasattr(type(value), "__float__") else None
    except CAUGHT as error:
        caught(error)
        return None


def of_kind(value: Any, kind: type) -> Any:
    """Return the value as a str, an int of 64 bits or a float; None if it is not a number."""
    if value is None:
        return None
    if kind is str:
        return value if type(value) is str else safe_str(value)
    number = as_number(value)
    try:
        return number if number is None or type(number) is kind else kind(number)
    except (ValueError, OverflowError):  # int() of an infinity
        return None


def plain_fields(fields: Iterable[tuple[str, Any]]) -> dict[str, Any] | None:
    """Return the fields with values that msgpack carries; None where there are none."""
    return {name if type(name) is str else safe_str(name): plain(value) for name, value in fields} or None


def from_ext(code: int, data: memoryview) -> Any:
    try:
        if code in _AS_TEXT:
            return _AS_TEXT[code][2](bytes(data).decode())
        if code == _SURROGATES:
            return bytes(data).decode("utf-8", "surrogatepass")
        items = unpack_list(data)
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
            return foreign_value(*items)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"a value that does not decode: {error}") from error
    raise ValueError(f"an unknown kind of value: {code}")


def foreign_value(
    text: Any, representation: Any, number: Any, formatted: Any = None, content: Any = None
) -> ForeignValue | Looks:
    """Return what stands for a value that looked like this; raise TypeError for looks of the wrong types."""
    if (
        {type(text), type(representation)} != {str}
        or type(formatted) not in (str, types.NoneType)
        or type(number) not in (int, float, types.NoneType)
    ):
        raise TypeError("a ForeignValue of the wrong types")
    kind = LIKE.get(type(content))
    if kind is None:
        return ForeignValue(text, representation, number, formatted, content)
    value: Looks = kind(content)
    value.look(text, representation, number, formatted)
    value.content = content
    return value


unpack_list = msgspec.msgpack.Decoder(list[Any], ext_hook=from_ext).decode
unpack = msgspec.msgpack.Decoder(ext_hook=from_ext).decode
