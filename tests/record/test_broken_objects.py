"""Objects that raise, lie or never end: their records travel all the same (faults 20 and 21)."""

from __future__ import annotations

import datetime
import functools
import logging
import os
import signal
import sys
from typing import Any

import pytest
from travel import TEXTS, Code, Text, make, travel, travelled

from mplog.record.decoding import decode
from mplog.record.encoding import encode
from mplog.record.foreign import ForeignValue
from mplog.record.layout import Record

STANDARD = sorted(logging.LogRecord("", 0, "", 0, "", None, None).__dict__)


class Broken:
    """Fails in one of its methods."""

    def __init__(self, method: str, error: BaseException) -> None:
        self.method = method
        self.error = error

    def _do(self, method: str) -> str:
        if method == self.method:
            raise self.error
        return "fine"

    def __str__(self) -> str:
        return self._do("__str__")

    def __repr__(self) -> str:
        return self._do("__repr__")

    def __format__(self, spec: str) -> str:
        return self._do("__format__")


ERRORS = [ValueError("bad"), SystemExit(3), GeneratorExit(), RecursionError("deep"), UnicodeError(), AttributeError()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("method", ["__str__", "__repr__"])
def test_broken_argument_becomes_a_placeholder(method: str, error: BaseException) -> None:
    """What the __str__ or __repr__ of an argument raises becomes a placeholder that names it."""
    broken = Broken(method, error)
    template = {"__str__": "value: %s", "__repr__": "value: %r"}[method]
    message = travel(make(template, broken)).getMessage()
    assert type(error).__name__ in message
    assert "value: " in message
    assert message.startswith("<mplog: this message could not be formatted")
    assert type(travelled(broken)) is ForeignValue
    assert type(error).__name__ in str(travelled(broken)) + repr(travelled(broken))


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_broken_message_object_becomes_a_placeholder(error: BaseException) -> None:
    """What the __str__ of a message object, or a getMessage of a class of one's own, raises becomes a placeholder."""

    class BrokenRecord(logging.LogRecord):
        def getMessage(self) -> str:
            raise error

    assert type(error).__name__ in travel(make(Broken("__str__", error))).getMessage()
    record = BrokenRecord("a", 20, "p", 1, "template %s", ("argument",), None)
    message = travel(record).getMessage()
    assert all(part in message for part in (type(error).__name__, "template %s", "argument"))

    class Formats:
        def __str__(self) -> str:
            return f"{Broken('__format__', error):x}"

    assert type(error).__name__ in travel(make(Formats())).getMessage()


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_broken_exception_becomes_a_placeholder(error: BaseException) -> None:
    """An exception whose __str__ raises does not stop the record."""

    class BrokenError(Exception):
        def __str__(self) -> str:
            raise error

    arrived = travel(make("failed", exc_info=(BrokenError, BrokenError(), None)))
    assert arrived.getMessage() == "failed"
    assert "BrokenError" in str(arrived.exc_type)
    assert type(error).__name__ in str(arrived.exc_message)
    assert arrived.exc_text


@pytest.mark.parametrize(
    ("message", "args"),
    [("%s %s", ("one",)), ("none", ("one",)), ("%d", ("x",)), ("%", ()), ("%(a)s", ({"b": 1},)), ("%z", (1,))],
)
def test_wrong_arguments_become_a_placeholder(message: str, args: tuple[Any, ...]) -> None:
    """A template that does not fit its arguments arrives with both, where args ask for formatting at all."""
    arrived = travel(make(message, *args)).getMessage()
    if args:
        assert repr(message) in arrived
        assert "args=" in arrived
    else:
        assert arrived == message


def test_endless_recursion_in_repr() -> None:
    """A __repr__ that calls itself for ever becomes a placeholder."""

    class Endless:
        def __repr__(self) -> str:
            return repr(self)

    assert "RecursionError" in travel(make("%s", Endless())).getMessage()
    assert "RecursionError" in repr(travelled(Endless()))


class BrokenZone(datetime.tzinfo):
    """A time zone that raises."""

    def utcoffset(self, when: datetime.datetime | None) -> datetime.timedelta:
        raise SystemExit(3) if when is None else ValueError("no zone")


def test_broken_time_zone_becomes_a_placeholder() -> None:
    """A date whose time zone raises still arrives as something."""
    assert "ValueError" in str(travelled(datetime.datetime(2026, 1, 1, tzinfo=BrokenZone())))
    assert "SystemExit" in str(travelled(datetime.time(1, tzinfo=BrokenZone())))


def test_values_that_lie_about_themselves() -> None:
    """Objects that raise in __getattr__, __class__, __index__, __float__ or return no text do not stop the record."""

    class Liar:
        def __getattr__(self, name: str) -> Any:
            raise SystemExit(name)

        def __index__(self) -> int:
            raise ValueError("no index")

        def __str__(self) -> str:
            return 5  # type: ignore[return-value]

    class Floats:
        def __float__(self) -> float:
            raise SystemExit(4)

    assert "TypeError" in str(travelled(Liar()))
    assert "Floats" in str(travelled(Floats()))


WEIRD = [
    5,
    2**70,
    -1.5,
    float("inf"),
    b"b",
    [1],
    {"a": 1},
    True,
    Text("text"),
    ...,
    datetime.datetime.max,
    (),
    Code.TEAPOT,
]


@pytest.mark.parametrize("name", [*STANDARD, "taskName"])
@pytest.mark.parametrize("value", WEIRD, ids=ascii)
def test_unexpected_type_of_a_standard_attribute(name: str, value: Any) -> None:
    """A standard attribute that a filter or a factory has set to something else does not stop the record."""
    record = make("hello")
    record.__dict__[name] = value
    arrived = decode(encode(record))
    assert type(arrived.levelno) is int
    assert isinstance(arrived.name, str)
    assert isinstance(arrived.getMessage(), str)
    if name not in ("msg", "args", "exc_info"):
        assert arrived.getMessage() == "hello"
        if name in TEXTS:
            assert type(getattr(arrived, name)) is str


@pytest.mark.parametrize("name", [*STANDARD, "taskName"])
def test_missing_standard_attribute(name: str) -> None:
    """A record that lacks an attribute, or has None there, still arrives with the others and its extra attributes."""
    record = make("hello", extra={"request": 5})
    record.__dict__.pop(name, None)
    arrived = decode(encode(record))
    assert (arrived.__dict__["request"], type(arrived.levelno)) == (5, int)
    assert type(decode(encode(make("hello", **{name: None}))).levelno) is int


def test_numbers_as_names_of_attributes() -> None:
    """Attributes that were set past the syntax, under names that are no text, arrive under their text."""
    record = make()
    record.__dict__[5] = "five"
    record.__dict__[Text("six")] = 6
    arrived = decode(encode(record))
    assert (arrived.__dict__["5"], arrived.__dict__["six"]) == ("five", 6)


def test_record_classes_and_factories_of_ones_own() -> None:
    """A subclass with properties, its own getMessage and slots travels; the program's record factory is left alone."""

    class Own(logging.LogRecord):
        __slots__ = ("secret",)

        def getMessage(self) -> str:
            return "own " + super().getMessage()

        @property
        def funcName(self) -> str:
            raise ValueError("nothing here")

        @funcName.setter
        def funcName(self, value: str) -> None: ...

    def factory(*args: Any, **options: Any) -> logging.LogRecord:
        made.append(args)
        return Own(*args, **options)

    made: list[Any] = []
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(factory)
    try:
        record = make("hello %s", "you")
        arrived = travel(record)
    finally:
        logging.setLogRecordFactory(before)
    assert len(made) == 1
    assert type(arrived) is Record
    assert (arrived.getMessage(), arrived.funcName) == ("own hello you", None)


@pytest.mark.parametrize("result", [5, b"bytes", None, Text("text"), "\udc80"], ids=ascii)
def test_get_message_that_returns_no_text(result: Any) -> None:
    """A getMessage that returns something else arrives as its str()."""

    class Own(logging.LogRecord):
        def getMessage(self) -> str:
            return result  # type: ignore[no-any-return]

    assert travel(Own("a", 20, "p", 1, "m", (), None)).getMessage() == str(result)


class Handler:
    """Signal handlers in the shapes that programs give them."""

    def method(self, number: int, frame: object) -> None:
        """End the program."""
        sys.exit(7)

    __call__ = method


def function(number: int, frame: object) -> None:
    """End the program."""
    Handler().method(number, frame)


HANDLERS = {
    "function": function,
    "method": Handler().method,
    "object": Handler(),
    "partial": functools.partial(lambda code, number, frame: sys.exit(code), 7),
    "lambda": lambda *_: sys.exit(7),
}


@pytest.mark.parametrize("shape", HANDLERS)
@pytest.mark.parametrize("place", ["message", "extra", "exception"])
def test_exit_in_a_signal_handler_is_not_swallowed(shape: str, place: str) -> None:
    """sys.exit() in a signal handler ends the program, also when it runs in the middle of a __str__."""

    class Signals(Exception):
        def __str__(self) -> str:
            os.kill(os.getpid(), signal.SIGUSR1)
            return "text"

        __repr__ = __str__

    records = {
        "message": lambda: make("%s", Signals()),
        "extra": lambda: make(extra={"value": Signals()}),
        "exception": lambda: make(exc_info=(Signals, Signals(), None)),
    }
    before = signal.signal(signal.SIGUSR1, HANDLERS[shape])
    try:
        with pytest.raises(SystemExit) as caught:
            encode(records[place]())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught.value.code == 7


def test_ctrl_c_is_not_swallowed() -> None:
    """KeyboardInterrupt goes through, wherever it comes from."""
    for record in (make("%s", Broken("__str__", KeyboardInterrupt())), make(Broken("__str__", KeyboardInterrupt()))):
        with pytest.raises(KeyboardInterrupt):
            encode(record)
