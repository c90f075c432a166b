"""What a log record is as plain data: which value stands where.

::

    mplog.record.encoding: LogRecord -> bytes ---- queue ----> bytes -> Values, Origin -> Record :mplog.record.decoding

On the wire a record is a msgpack array of nine places, those of `Wire`. What differs from call to call comes first.
The origin is the same for all calls of one logger at one level (with details: at one place), so it goes as bytes that
are msgpack themselves: the sender keeps them ready, and the reader decodes them once and then looks them up.

Everything else is in `Wire`, by name. Only where every record passes, in encoding, decoding and formatting, it is a
bare tuple, with the places as constants.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from mplog.record.cache import Cache

V = TypeVar("V")

#: Bytes of an encoded record above which its long texts are cut, with a marker that gives their true length. One such
#: record costs the logging process a few times its size while it is written.
MAX_RECORD_SIZE = 128 * 2**20


class Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A record on the wire. Any value may be None, except the number.

    Attributes:
        sequence: the number that its process gave it, from 1; 0 for none.
        msg: the message, formatted by the sender, because its arguments may have changed a moment later.
        extra: the extra attributes, as `mplog.record.plain` makes them.
        exc_text: the traceback.
        created, msecs, stack_info: those of the record.
        rest: ``relativeCreated``; the type, message and frames of the exception or None; and, where the arguments of
            the message travel, its template with them. It is left out where no sink looks at it, and decoded only
            where one does.
        origin: an `Origin`, encoded.
    """

    sequence: int
    msg: Any
    extra: dict[str, Any] | None
    exc_text: Any
    created: Any
    msecs: Any
    stack_info: Any
    rest: Any
    origin: Any


SEQUENCE, MSG, EXTRA, EXC_TEXT, CREATED, MSECS, STACK_INFO, REST, RAW_ORIGIN = range(len(Wire.__struct_fields__))

#: The values of a `Wire`, in its order, with ``rest`` still encoded.
Values = tuple[Any, ...]

#: The attributes that are always sent and differ from call to call, beside the message.
TIMES: dict[str, type] = {"created": float, "msecs": float, "stack_info": str}
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
KINDS = {**TIMES, **ORIGIN, **DETAILS, "relativeCreated": float}

# Not from makeLogRecord(), which asks the program's own record factory.
_standard = logging.LogRecord("", 0, "", 0, "", None, None).__dict__
#: The attributes of every LogRecord of this Python, in their order.
STANDARD = tuple(_standard)
HAS_TASK_NAME = "taskName" in _standard
#: What a record has, or gets from a formatter. A field cannot have such a name.
RESERVED = frozenset((*STANDARD, "taskName", "message", "asctime"))

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


#: A record off the wire.
Entry = tuple[Values, Origin]

#: Origins that are kept; more come from code that is made at run time, and from hostile senders.
KEPT_ORIGINS = 10_000
KEPT_ORIGIN_SIZE = 4096


class ByOrigin(Cache[Origin, V]):
    """What a function makes of origins. Their names may be of any length, and long ones are not kept."""

    __slots__ = ()

    def __init__(self, make: Callable[[Origin], V]) -> None:
        super().__init__(make, KEPT_ORIGINS, _is_short)


def _is_short(origin: Origin, _: object) -> bool:
    values = (origin.name, origin.levelname, origin.processName, *(origin.details or ()))
    return sum(len(value) for value in values if type(value) is str) <= KEPT_ORIGIN_SIZE


class Template(str):
    """The ``msg`` of a record whose ``args`` have travelled, or of one with a ``%`` in its finished message.

    ``msg % args`` is the message that the sender has finished. So the record itself, its copies
    (``logging.makeLogRecord(record.__dict__)``), and formatters that put the two together themselves have that one
    message, and the text of a worker is not used as a template. If a filter puts other arguments into the record, they
    are formatted, as in the stdlib.
    """

    __slots__ = ("_args", "_message")
    _args: Any
    _message: str

    def __new__(cls, template: str, args: Any, message: str) -> Template:
        self = super().__new__(cls, template)
        self._args = args.copy() if type(args) is dict else args
        self._message = message
        return self

    def __str__(self) -> str:
        return self  # LogRecord.getMessage() formats str(msg)

    def __mod__(self, args: Any) -> str:
        return self._message if args == self._args else super().__mod__(args)

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str.__str__(self),)  # for other programs, which format it


class Record(logging.LogRecord):
    """A log record that has travelled.

    It has every attribute of the record that was logged, with three differences that the stdlib's own QueueHandler
    has too: ``msg`` is the finished message, ``args`` is empty, and ``exc_info`` is None (the traceback is in
    ``exc_text``).

    Where ``args`` were to travel, too, they are there as plain data, and ``msg`` is a `Template`.

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
