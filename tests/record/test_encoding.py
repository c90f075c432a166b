"""Records as plain data: they always travel, and what arrives is data (promise 8; faults 20 and 21)."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime
import decimal
import enum
import fractions
import functools
import io
import logging
import math
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mplog.record import encoding
from mplog.record.decoding import decode
from mplog.record.encoding import encode
from mplog.record.layout import EXTRA, MAX_RECORD_SIZE, MSG, RAW_ORIGIN, REST, SEQUENCE, Record
from mplog.record.plain import ForeignValue

STANDARD = sorted(logging.LogRecord("", 0, "", 0, "", None, None).__dict__)


def make(message: object = "hello", *args: object, extra: dict[str, Any] | None = None, **set_to: Any) -> Any:
    """Return a record as a logger makes it, with some attributes set to something else."""
    record = logging.getLogger("a.b").makeRecord(
        "a.b", logging.INFO, "/dir/file.py", 7, message, args, None, "function", extra, None
    )
    record.__dict__.update(set_to)
    return record


def travel(record: logging.LogRecord) -> Record:
    """Return what arrives of a record, and hold encode() to leaving the record alone."""
    before = dict(record.__dict__)
    arrived = decode(encode(record))
    after = record.__dict__
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before), "encode() has changed the record"
    return arrived


def travelled(value: Any) -> Any:
    """Return what arrives of a value in `extra`."""
    return travel(make(extra={"value": value})).__dict__["value"]


# --- the standard attributes ---


def test_every_standard_attribute_arrives() -> None:
    """Each attribute of a plain record arrives with its value and type; the message is finished, args are gone."""
    record = make("hello %s, %d", "world", 5)
    arrived = travel(record)
    assert sorted(arrived.__dict__) == STANDARD
    for name in STANDARD:
        if name not in ("msg", "args"):
            assert getattr(arrived, name) == getattr(record, name), name
            assert type(getattr(arrived, name)) is type(getattr(record, name)), name
    assert (arrived.msg, arrived.args, arrived.getMessage()) == ("hello world, 5", None, "hello world, 5")
    assert (arrived.exc_type, arrived.exc_message) == (None, None)


def test_switched_off_attributes_stay_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What logging.logThreads and its siblings have switched off arrives as None."""
    for name in ("logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, False)
    arrived = travel(make())
    assert [arrived.thread, arrived.threadName, arrived.process, arrived.processName] == [None] * 4


@pytest.mark.skipif(sys.version_info < (3, 12), reason="records have taskName from Python 3.12 on")
def test_task_name_arrives() -> None:
    """The name of the asyncio task arrives."""

    async def log() -> Record:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("fetch")
        return travel(make())

    assert asyncio.run(log()).taskName == "fetch"


def test_percent_signs_are_no_template_on_arrival() -> None:
    """A message with percent signs and braces is text once it has travelled, whatever they look like."""
    for text in ("100%", "%s %d", "%(name)s", "{0}", "%"):
        assert travel(make(text)).getMessage() == text
        assert travel(make("%s", text)).getMessage() == text


def test_custom_level_names_arrive() -> None:
    """The level's name travels with the record, since the reader may not know it."""
    logging.addLevelName(35, "NOTICE")
    try:
        record = make()
        record.levelno, record.levelname = 35, logging.getLevelName(35)
    finally:
        logging._levelToName.pop(35)
        logging._nameToLevel.pop("NOTICE")
    arrived = travel(record)
    assert (arrived.levelno, arrived.levelname) == (35, "NOTICE")


@pytest.mark.processes
def test_true_process_name_of_multiprocess(library: Any) -> None:
    """A child of either library arrives under its own name, though logging knows only one of them."""
    receiver, sender = library.Pipe(False)

    def child() -> None:
        sender.send_bytes(encode(make()))

    process = library.get_context("fork").Process(target=child, name="Reader-7")
    process.start()
    assert receiver.poll(30), "waited for the child's record"
    arrived = decode(receiver.recv_bytes())
    process.join(30)
    assert (arrived.processName, arrived.process) == ("Reader-7", process.pid)


# --- exceptions and stacks ---


def test_traceback_arrives_as_text() -> None:
    """The traceback arrives as the text that a Formatter makes, with the exception's type and message."""
    try:
        raise KeyError("missing")
    except KeyError:
        record = make("failed", exc_info=sys.exc_info())
    arrived = travel(record)
    assert arrived.exc_info is None
    assert arrived.exc_text == logging.Formatter().formatException(record.exc_info)
    assert (arrived.exc_type, arrived.exc_message) == ("KeyError", "'missing'")
    assert logging.Formatter().format(arrived) == logging.Formatter().format(record)


class ApplicationError(Exception):
    """An exception of a module's own."""


@pytest.mark.parametrize("form", ["exception", "true", "tuple", "empty", "nothing"])
def test_every_form_of_exc_info(form: str) -> None:
    """An exception, True, a triple and an empty triple each arrive as stdlib logging would print them."""
    try:
        raise ApplicationError("oh no")
    except ApplicationError as error:
        forms = {
            "exception": error,
            "true": True,
            "tuple": sys.exc_info(),
            "empty": (None, None, None),
            "nothing": None,
        }
        arrived = travel(make(exc_info=forms[form]))
    if form in ("exception", "true", "tuple"):
        assert (arrived.exc_type, arrived.exc_message) == (f"{__name__}.ApplicationError", "oh no")
        assert str(arrived.exc_text).endswith("ApplicationError: oh no")
    else:
        assert (arrived.exc_type, arrived.exc_message) == (None, None)
        assert arrived.exc_text == {"empty": "NoneType: None", "nothing": None}[form]


@pytest.mark.parametrize("info", [("a", "b", "c"), "text", 5, (1, 2), (ValueError, "text", None), object()])
def test_exc_info_that_is_none(info: Any) -> None:
    """Something else in the place of exc_info does not stop the record."""
    assert travel(make("hello", exc_info=info)).getMessage() == "hello"


def test_stack_info_and_known_traceback_arrive() -> None:
    """stack_info arrives, and a traceback that was formatted before is not formatted again."""
    arrived = travel(make(stack_info="Stack (most recent call last):\n  here", exc_text="by another formatter"))
    assert arrived.stack_info == "Stack (most recent call last):\n  here"
    assert arrived.exc_text == "by another formatter"
    assert travel(make(exc_info=(None, None, None), exc_text="known")).exc_text == "known"


# --- extra ---

UTC_PLUS_2 = datetime.timezone(datetime.timedelta(hours=2))

PLAIN = [
    None, True, False, 0, -1, 2**63, 2**64 - 1, -(2**63), 2**64, -(2**63) - 1, 2**1000, -(10**500),
    0.0, -0.5, 1e300, float("inf"), "", "text", "\0\r\n\x1b[31m\x9b\u2028\u202e", "\U0001f600", b"", b"\xff\0",
    [], [1, "a", [None]], (), (1,), (1, (2, [3, (4,)])), set(), {1, "a"}, frozenset({(1, 2)}), {frozenset({1})},
    {}, {"a": 1}, {"a": {"b": {"c": (1, 2)}}}, {1: "a", None: 2, (1, 2): [3]}, {"a": {2.5: b"b"}}, {2**70: 2**80},
    datetime.date(2026, 2, 28), datetime.time(1, 2, 3, 4), datetime.time(1, tzinfo=datetime.timezone.utc),
    datetime.datetime(2026, 1, 2, 3, 4, 5, 6), datetime.datetime(2026, 1, 2, tzinfo=UTC_PLUS_2),
    datetime.timedelta(days=-3, microseconds=1), datetime.timedelta.max,
    decimal.Decimal("1.10"), decimal.Decimal("-Infinity"), decimal.Decimal(10**40), uuid.UUID(int=5),
]  # fmt: skip


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal and of the same types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    return bool(left == right)


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_value_keeps_its_type(value: Any) -> None:
    """Plain data in `extra` arrives equal and of exactly the same type."""
    assert same(travelled(value), value)


def test_nan_keeps_its_type() -> None:
    """Not-a-numbers arrive as what they are."""
    assert math.isnan(travelled(float("nan")))
    assert travelled(decimal.Decimal("sNaN12")).compare_total(decimal.Decimal("sNaN12")) == 0


hashables = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.text(st.characters()),
        st.binary(), st.dates(), st.times(), st.datetimes(), st.timedeltas(), st.uuids(), st.decimals(allow_nan=False),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
    max_leaves=5,
)  # fmt: skip
values = st.recursive(
    hashables,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=20,
)  # fmt: skip
any_text = st.text(st.characters())  # surrogates, too


@given(values)
def test_any_plain_value_round_trips(value: Any) -> None:
    """Whatever is plain data, nested in any way, arrives equal and of the same types."""
    assert same(travelled(value), value)


@given(
    st.text(), st.integers(0, 10**6), st.text(), st.floats(allow_nan=False),
    st.dictionaries(st.text().filter(lambda name: name not in [*STANDARD, "message", "asctime", "taskName"]), values),
)  # fmt: skip
def test_any_record_round_trips(name: str, level: int, message: str, created: float, extra: dict[str, Any]) -> None:
    """Whatever the texts, numbers and extra attributes of a record are, they arrive."""
    record = make(message, extra=extra, name=name, levelno=level, created=created)
    arrived = travel(record)
    assert (arrived.name, arrived.levelno, arrived.getMessage(), arrived.created) == (name, level, message, created)
    assert same({key: arrived.__dict__[key] for key in extra}, extra)


class Colour(enum.Enum):
    """Has its own str() and repr()."""

    RED = "red"


class Level(str, enum.Enum):
    """A text with a name, whose format() is not its str() in some versions of Python."""

    HIGH = "high"


class Code(enum.IntEnum):
    """A number with a name."""

    TEAPOT = 418


class Scalar:
    """A number as numpy's are: no int or float, but as good as one."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        return str(self.value)

    def __repr__(self) -> str:
        return f"float32({self.value})"

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


class Text(str):
    """A string that is more than one."""

    __slots__ = ()


class Point(tuple):  # type: ignore[type-arg]
    """A tuple that is more than one."""

    __slots__ = ()


def generator() -> Iterator[int]:
    """Return something that does not pickle."""
    yield 1


FOREIGN: list[Callable[[], Any]] = [
    lambda: Colour.RED, lambda: Level.HIGH, lambda: Text("text"), lambda: Point((1, 2)), lambda: print, object,
    threading.Lock, generator, lambda: Text, lambda: sys, lambda: io.BytesIO(), lambda: ValueError("x"), lambda: ...,
    lambda: logging.getLogger("x"), lambda: (lambda: None), lambda: bytearray(b"x"), lambda: 1j, lambda: range(3),
]  # fmt: skip


@pytest.mark.parametrize("construct", FOREIGN)
def test_foreign_value_looks_like_the_original(construct: Callable[[], Any]) -> None:
    """What is no plain data arrives as a ForeignValue with the str() and repr() of the original, nested, too."""
    value = construct()
    arrived = travelled(value)
    assert type(arrived) is ForeignValue
    assert (str(arrived), repr(arrived), f"{arrived}") == (str(value), repr(value), f"{value}")
    assert repr(travelled([{"a": (value,)}])) == repr([{"a": (value,)}])
    assert arrived == travelled(value)
    assert hash(arrived) == hash(travelled(value))
    assert arrived != str(value)


@pytest.mark.parametrize("template", ["%d", "%5d", "%x", "%f", "%.1f", "%s", "%r", "{:d}", "{:>8}", "{:.2f}", "{}"])
@pytest.mark.parametrize("value", [Code.TEAPOT, Scalar(1.5), fractions.Fraction(3, 2)], ids=repr)
def test_foreign_number_formats_like_the_original(value: Any, template: str) -> None:
    """A number that is no int or float is written by ``%d``, ``%x``, ``%f`` and format specs as the original is."""

    def write(item: Any) -> str:
        return template % item if "%" in template else template.format(item)

    try:
        expected = write(value)
    except (TypeError, ValueError):
        pytest.skip("the original cannot be written in this way either")
    assert write(travelled(value)) == expected


def test_foreign_value_travels_on_as_it_is() -> None:
    """One that is sent once more, from a program that reads one log into another, keeps its looks and its number."""
    for value in (Scalar(1.5), Code.TEAPOT, Colour.RED):
        once = travelled(value)
        twice = travelled(once)
        assert (type(twice), twice) == (ForeignValue, once)
    assert f"{travelled(travelled(Scalar(1.5))):.2f}" == "1.50"


def test_foreign_value_that_is_no_number() -> None:
    """A ForeignValue that is no number is none for int() and float() either."""
    for convert in (int, float, hex):
        with pytest.raises(TypeError, match="Colour"):
            convert(travelled(Colour.RED))
    with pytest.raises(TypeError):
        hex(travelled(Scalar(1.5)))


def test_nesting_too_deep_arrives_as_its_repr() -> None:
    """Lists in lists beyond the limit of depth, and those that contain themselves, still arrive."""
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    assert repr(travelled(deep)) == repr(deep)
    endless: list[Any] = [1]
    endless.append(endless)
    assert repr(travelled(endless)).startswith("[1, [1,")


def test_extra_changed_while_it_is_encoded() -> None:
    """A container that changes while it is encoded, as one of another thread may, does not stop the record."""
    changing: dict[Any, Any] = {}
    items: list[Any] = []

    class Changes:
        def __repr__(self) -> str:
            changing[len(changing)] = items.append(0)
            record.__dict__[f"late{len(changing)}"] = 1
            return "changes"

    changing["value"] = Changes()
    items.append(Changes())
    record = make(extra={"changing": changing, "items": items})
    arrived = decode(encode(record)).__dict__
    assert arrived["changing"] == {"value": ForeignValue("changes", "changes")}
    assert arrived["items"] == [ForeignValue("changes", "changes"), 0, 0]  # not what came after the look at it
    assert len(items) > 3


def test_what_a_formatter_left_is_not_extra() -> None:
    """The message and asctime that a formatter has left in the record do not travel."""
    record = make("hello %s", "you")
    logging.Formatter("%(asctime)s %(message)s").format(record)
    assert sorted(travel(record).__dict__) == STANDARD


# --- bad text ---

BAD_TEXTS = [
    "\udc80", "\ud800", "a\udcffb", "\0", "a\r\nb", "\x1b]0;title\x07", "\x9b31m", "\u2028\u2029\x85", "\u202e\u2066",
    os.fsdecode(b"caf\xe9.txt"), "\ufffe\uffff", "",
]  # fmt: skip
TEXTS = ["name", "levelname", "pathname", "filename", "module", "funcName", "threadName", "processName", "exc_text",
         "stack_info", "taskName"]  # fmt: skip


@pytest.mark.parametrize("text", BAD_TEXTS, ids=ascii)
def test_bad_text_arrives_in_every_place(text: str) -> None:
    """Surrogates, NUL, line ends and escapes arrive unchanged in messages, arguments, names, and values of extra."""
    assert travel(make(text)).getMessage() == text
    assert travel(make("%s", text)).getMessage() == text
    for name in TEXTS:
        arrived = travel(make(**{name: text}))
        assert getattr(arrived, name) == text, name
        assert arrived.getMessage() == "hello"
    assert travelled(text) == text
    assert same(travelled({text: [text, (text,)]}), {text: [text, (text,)]})
    everything = make(text, **dict.fromkeys(TEXTS, text))
    assert [getattr(travel(everything), name) for name in TEXTS] == [text] * len(TEXTS)


def test_bad_text_in_names_of_extra_and_exceptions_is_readable() -> None:
    """A surrogate in the name of an extra attribute or in an exception arrives escaped."""
    assert travel(make(extra={"k\udc80": 1, "k": 2})).__dict__[r"k\udc80"] == 1
    arrived = travel(make(exc_info=(ValueError, ValueError("a\udc80"), None)))
    assert arrived.exc_message == r"a\udc80"
    assert "a\udc80" in str(arrived.exc_text)


@given(any_text, any_text, any_text)
def test_any_text_arrives(message: str, name: str, value: str) -> None:
    """Any sequence of code points arrives unchanged, in the message, the logger's name and in extra."""
    arrived = travel(make(message, extra={"value": value}, name=name))
    assert (arrived.getMessage(), arrived.name, arrived.__dict__["value"]) == (message, name, value)


# --- broken objects ---


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


# --- long records ---


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut records that are over 100 kB, to pieces of 1 kB."""
    monkeypatch.setattr(encoding, "MAX_RECORD_SIZE", 100_000)
    monkeypatch.setattr(encoding, "CUT_TEXT", 1000)
    return 100_000


LONG_PLACES = ["msg", "exc_text", "stack_info", "name", "pathname", "threadName", "funcName", "processName"]


@pytest.mark.parametrize("place", LONG_PLACES)
@pytest.mark.parametrize("letter", ["x", "\u20ac", "\udc80"], ids=ascii)
def test_long_text_is_cut_with_its_true_length(small_limit: int, place: str, letter: str) -> None:
    """A text over the limit is cut, wherever it is, and says how long it was; the rest of the record is whole."""
    long = letter * 200_000
    record = make("hello", extra={"request": 5}, **{place: long})
    payload = encode(record)
    assert len(payload) < small_limit
    arrived = decode(payload)
    cut = getattr(arrived, place)
    if letter != "\udc80":
        assert cut == letter * 1000 + "... [cut by mplog: 200000 characters]"
        assert arrived.__dict__["request"] == 5
    else:
        assert "cut by mplog" in cut
    assert arrived.levelno == logging.INFO


def test_long_exception_and_extra_are_cut(small_limit: int) -> None:
    """Messages of exceptions and attributes of extra are cut, too; the short ones among them stay."""
    arrived = decode(encode(make(exc_info=(ValueError, ValueError("x" * 200_000), None))))
    assert str(arrived.exc_message).endswith("... [cut by mplog: 200000 characters]")
    assert "cut by mplog" in str(arrived.exc_text)
    payload = encode(make("m", extra={"long": ["x" * 200_000], "short": (1, 2), "k" * 200_000: 1}))
    assert len(payload) < small_limit
    arrived = decode(payload)
    assert arrived.__dict__["short"] == (1, 2)
    assert "cut by mplog: 2000" in arrived.__dict__["long"]
    payload = encode(make("m", extra={f"name{number}": "x" * 100 for number in range(10_000)}))
    assert len(payload) < small_limit
    assert "10000 attributes" in decode(payload).__dict__["mplog"]


def test_limit_of_records_is_exact(small_limit: int) -> None:
    """A record of just the limit stays whole; one byte more, and it is cut."""
    rest = len(encode(make("x" * 70_000))) - 70_000
    assert decode(encode(make("x" * (small_limit - rest)))).getMessage() == "x" * (small_limit - rest)
    assert "cut by mplog" in decode(encode(make("x" * (small_limit - rest + 1)))).getMessage()


def test_record_over_the_true_limit_is_cut() -> None:
    """A message beyond 128 MiB is cut to 1 MiB and says how long it was."""
    arrived = decode(encode(make("x" * (MAX_RECORD_SIZE + 1))))
    assert arrived.getMessage() == "x" * 2**20 + f"... [cut by mplog: {MAX_RECORD_SIZE + 1} characters]"


# --- what arrives is data (promise 8) ---

executed: list[str] = []


def execute(what: str) -> None:
    """Leave a trace."""
    executed.append(what)


class Exploit:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return execute, ("ran",)


def test_hostile_bytes_run_no_code() -> None:
    """A pickle that would run code stays data: as a record, as a value, and as what an extra value claims to be."""
    attack = pickle.dumps(Exploit())
    pickle.loads(attack)
    assert executed == ["ran"], "the attack works where there is a pickle"
    executed.clear()
    with pytest.raises(ValueError):
        decode(attack)
    assert travelled(attack) == attack
    values = list(msgspec.msgpack.decode(encode(make())))
    for code in range(-128, 128):
        for data in (attack, msgspec.msgpack.encode(attack), msgspec.msgpack.encode([attack, attack])):
            values[EXTRA] = {"value": msgspec.msgpack.Ext(code, data)}
            with contextlib.suppress(ValueError):
                decode(msgspec.msgpack.encode(values))
    travelled(Exploit())
    assert executed == []


def hostile_payloads() -> dict[str, bytes]:
    """Return payloads that claim more than there is, nest without end, or put the wrong thing in a place."""
    wire = list(msgspec.msgpack.decode(encode(make())))
    ext = msgspec.msgpack.Ext

    def changed(index: int, value: object) -> bytes:
        return msgspec.msgpack.encode([*wire[:index], value, *wire[index + 1 :]])

    def with_extra(extra: object) -> bytes:
        return changed(EXTRA, extra)

    def raw(index: int, data: bytes) -> bytes:
        parts = [msgspec.msgpack.encode(part) for part in wire]
        parts[index] = data
        return encode(make())[:1] + b"".join(parts)  # after the header of the array

    # What is changed below is a record before it is changed.
    for payload in (with_extra({"k": 1}), raw(EXTRA, b"\x81\xa1k\x01"), changed(REST, wire[REST])):
        decode(payload)

    def nested(code: int, depth: int) -> bytes:
        data = msgspec.msgpack.encode([])
        for _ in range(depth):
            data = msgspec.msgpack.encode([ext(code, data)])
        return with_extra({"value": ext(code, data)})

    rest = wire[REST]
    origin = msgspec.msgpack.decode(wire[RAW_ORIGIN])

    def with_origin(value: object) -> bytes:
        return changed(RAW_ORIGIN, msgspec.msgpack.encode(value))

    claims = {
        f"{name} claim at {place}": whole(claim)
        for place, whole in {
            "start": bytes,
            "message": functools.partial(raw, MSG),
            "extra": lambda claim: raw(EXTRA, b"\x81\xa1k" + claim),
            "items": lambda claim: raw(EXTRA, b"\x81\xa1k\x92\xc0" + claim),
            "rest": functools.partial(raw, REST),
        }.items()
        for name, claim in {
            "array": b"\xdd\xff\xff\xff\xff", "map": b"\xdf\xff\xff\xff\xff", "str": b"\xdb\xff\xff\xff\xff",
            "bin": b"\xc6\xff\xff\xff\xff", "ext": b"\xc9\xff\xff\xff\xff\x01", "array16": b"\xdc\xff\xff\xc0",
        }.items()
    }  # fmt: skip
    reserved = {f"extra sets {name}": with_extra({name: 5}) for name in [*STANDARD, "taskName", "args", "exc_info"]}
    return {
        **claims,
        **reserved,
        "extra replaces a text": with_extra({"name": "b"}),
        "exc_info": with_extra({"exc_info": ["a", "b", "c"]}),
        "nested rest": raw(REST, b"\x91" * 100_000 + b"\xc0"),
        "nested part of the rest": raw(REST, b"\x92" + b"\x91" * 100_000 + b"\xc0"),
        "rest is a number": changed(REST, 1),
        "rest is short": changed(REST, rest[:-1]),
        "rest is long": changed(REST, [*rest, None]),
        "empty": b"",
        "nil": b"\xc0",
        "nested arrays": raw(EXTRA, b"\x81\xa1k" + b"\x91" * 1_000_000 + b"\xc0"),
        "nested maps": raw(EXTRA, b"\x81\xa1k" + b"\x81\xa1a" * 1_000_000 + b"\xc0"),
        "nested tuples": nested(1, 2000),
        "nested pairs": nested(4, 500),
        "unhashable set": with_extra({"value": ext(2, msgspec.msgpack.encode([[1]]))}),
        "unhashable key": with_extra({"value": ext(4, msgspec.msgpack.encode([[[1], 2]]))}),
        "pairs of three": with_extra({"value": ext(4, msgspec.msgpack.encode([[1, 2, 3]]))}),
        "timedelta": with_extra({"value": ext(5, msgspec.msgpack.encode([1e300, 0, 0]))}),
        "timedelta of texts": with_extra({"value": ext(5, msgspec.msgpack.encode(["a"]))}),
        "foreign without text": with_extra({"value": ext(6, msgspec.msgpack.encode([1, 2]))}),
        "foreign number": with_extra({"value": ext(6, msgspec.msgpack.encode(["a", "b", "c"]))}),
        "decimal": with_extra({"value": ext(20, b"1e99999999999999999999")}),
        "unknown ext": with_extra({"value": ext(99, b"")}),
        "bad utf-8": with_extra({"value": ext(17, b"\xff")}),
        "too few": msgspec.msgpack.encode(wire[:-1]),
        "too many": msgspec.msgpack.encode([*wire, 1]),
        "trailing bytes": encode(make()) + b"\0",
        "exception of texts": changed(REST, [*rest[:-1], ["a", "b", "c"]]),
        "exception of numbers": changed(REST, [*rest[:-1], [1, 2, []]]),
        "exception with wrong frames": changed(REST, [*rest[:-1], ["a", "b", [["file", "line", 5]]]]),
        "origin is short": with_origin(origin[:-1]),
        "origin is long": with_origin([*origin, None]),
        "origin is a map": with_origin({}),
        "origin is nil": with_origin(None),
        "origin is no bytes": changed(RAW_ORIGIN, origin),
        "details are short": with_origin([*origin[:-1], [1]]),
        "nested origin": changed(RAW_ORIGIN, b"\x91" * 100_000 + b"\xc0"),
        "sequence is a text": changed(SEQUENCE, "1"),
        "extra with numbers as names": with_extra({1: 2}),
        "extra is a list": with_extra([1]),
    }


@pytest.mark.parametrize("payload", hostile_payloads().values(), ids=hostile_payloads())
def test_hostile_payload_is_a_value_error(payload: bytes) -> None:
    """A payload that is no record raises ValueError, and nothing else."""
    with pytest.raises(ValueError):
        decode(payload)


def decode_in_little_memory(payloads: dict[str, bytes], sender: Any) -> None:
    """Runs in a child: decode with 256 MB left to allocate."""
    for payload in payloads.values():  # what they need anyway, imports and all, is there before the limit
        with pytest.raises(ValueError):
            decode(payload)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    for name, payload in payloads.items():
        try:
            decode(payload)
        except ValueError:
            continue
        except BaseException as error:
            sender.send(f"{name}: {error!r}")
            return
    sender.send("fine")


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to limit the memory")
def test_claimed_lengths_allocate_nothing() -> None:
    """A claimed length of 4 GiB is an error with little memory, too: nothing is allocated on a claim."""
    receiver, sender = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("fork").Process(
        target=decode_in_little_memory, args=(hostile_payloads(), sender)
    )
    process.start()
    sender.close()
    assert receiver.poll(60), "waited for the child to decode"
    assert receiver.recv() == "fine"
    process.join(30)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_record_or_a_value_error(data: bytes) -> None:
    """Any bytes are a record or raise ValueError."""
    with contextlib.suppress(ValueError):
        decode(data)


RICH = encode(
    make(
        "hello %s",
        "you",
        extra={"values": PLAIN, "foreign": [Colour.RED, Code.TEAPOT, Scalar(1.5)], "text": "\udc80"},
        exc_info=(ValueError, ValueError("x"), None),
        stack_info="stack",
        threadName="\udc80",
    )
)


@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_payload_is_a_record_or_a_value_error(data: st.DataObject) -> None:
    """A record with some bytes changed, cut out or put in is a record that a formatter takes, or a ValueError."""
    payload = bytearray(RICH)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(payload)))
        payload[position : position + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    try:
        arrived = decode(bytes(payload))
    except ValueError:
        return
    assert type(arrived.levelno) is int
    logging.Formatter("%(name)s %(levelname)s %(message)s %(threadName)s").format(arrived)
    for value in arrived.__dict__.values():
        str(value), repr(value)


def test_arrived_record_copies_and_travels_on() -> None:
    """A record that has arrived can be copied, pickled and sent on, and arrives the same."""
    record = make("hello %s", "you", extra={"point": Point((1, 2)), "when": datetime.date.max, "code": Code.TEAPOT})
    record.exc_info = (ValueError, ValueError("oh"), None)
    first = travel(record)
    for other in (travel(first), copy.copy(first), pickle.loads(pickle.dumps(first))):
        assert type(other) is Record
        assert other.__dict__ == first.__dict__
        assert (other.exc_type, other.exc_message) == ("ValueError", "oh")


# --- arguments ---


@pytest.mark.parametrize("args", [(1, "two", None, (3,)), {"a": 1}, (object(),)])
def test_arguments_travel_where_they_are_wanted(args: Any) -> None:
    """With `with_args`, args arrive as plain data, beside the finished message, which they no longer change."""
    sent = logging.LogRecord("a", 20, "f.py", 1, "", (), None)
    sent.args = args
    sent.msg = "%(a)s" if isinstance(args, dict) else "%s " * len(args)
    expected = sent.getMessage()
    assert decode(encode(sent)).args is None
    arrived = decode(encode(sent, with_args=True))
    assert arrived.getMessage() == expected
    assert str(arrived.args) == str(args)
    assert arrived.__dict__.keys() == decode(encode(sent)).__dict__.keys()
    assert sent.args == args
