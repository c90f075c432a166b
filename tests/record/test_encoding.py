"""Records as plain data: they always travel, and what arrives is data (promise 8; faults 20 and 21)."""

from __future__ import annotations

import asyncio
import collections
import datetime
import decimal
import enum
import fractions
import io
import itertools
import json
import logging
import math
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from travel import PLAIN, TEXTS, Code, Colour, Level, Point, Scalar, Text, make, travel, travelled

from mplog.formats.json import JSONFormatter
from mplog.record import encoding
from mplog.record.decoding import decode
from mplog.record.encoding import encode
from mplog.record.foreign import ForeignValue
from mplog.record.layout import MAX_RECORD_SIZE, Record

STANDARD = sorted(logging.LogRecord("", 0, "", 0, "", None, None).__dict__)


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
    assert (arrived.msg, arrived.args, arrived.getMessage()) == ("hello world, 5", (), "hello world, 5")
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


def generator() -> Iterator[int]:
    """Return something that does not pickle."""
    yield 1


FOREIGN: list[Callable[[], Any]] = [
    lambda: Colour.RED, lambda: print, object, lambda: collections.deque([1]),
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


Pair = collections.namedtuple("Pair", "a b")


class Set(set):  # type: ignore[type-arg]
    """A set that is more than one."""


class Day(datetime.datetime):
    """A time that looks like something else, as those of pandas do."""

    def __str__(self) -> str:
        return "a day"

    def __repr__(self) -> str:
        raise ValueError("no looks")


class NoTime(datetime.datetime):
    """As pandas.NaT."""

    def __ne__(self, other: object) -> bool:
        return True


class Endless(list):  # type: ignore[type-arg]
    """A list whose items never end, if it is asked."""

    def __iter__(self) -> Any:
        return itertools.count()

    def __str__(self) -> str:
        return "endless"


#: Values of classes that are made from plain types.
MADE_OF_PLAIN: list[Any] = [
    Code.TEAPOT, Level.HIGH, Text("text"), Point((1, 2)), Pair(1, [Code.TEAPOT]), enum.IntFlag("Bits", "A B")(3),
    collections.OrderedDict(b=1, a=Level.HIGH), collections.Counter("aab"), collections.defaultdict(list, a=[1]),
    collections.OrderedDict({Code.TEAPOT: 1}), type("Real", (float,), {"__str__": lambda _: "r"})(1.5),
    type("Long", (int,), {"__repr__": lambda _: "l"})(2**70),
]  # fmt: skip


@pytest.mark.parametrize("value", MADE_OF_PLAIN, ids=lambda value: type(value).__name__)
def test_value_of_a_class_made_from_a_plain_type_is_one_of_that_type(value: Any) -> None:
    """Such a value arrives as plain data that looks like the original, so that any encoder of JSON writes the same."""
    arrived = travelled(value)
    assert (str(arrived), repr(arrived), f"{arrived}") == (str(value), repr(value), f"{value}")
    assert json.dumps(arrived) == json.dumps(value) and arrived == value
    assert isinstance(arrived, next(kind for kind in type(value).__mro__ if kind.__module__ == "builtins"))
    again = pickle.loads(pickle.dumps(arrived))
    assert (type(again), again, repr(again)) == (type(arrived), value, repr(value))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (Set([1]), [1]),
        (type("Frozen", (frozenset,), {})([1]), [1]),
        (type("Bytes", (bytes,), {"__bytes__": lambda _: b"other"})(b"x"), "eA=="),
        (type("Decimal", (decimal.Decimal,), {"__str__": lambda _: "d"})("1.50"), "1.50"),
        (Day(2026, 1, 2, tzinfo=datetime.timezone.utc), "2026-01-02T00:00:00Z"),
        (NoTime(2026, 1, 2), "2026-01-02 00:00:00"),
        (Endless([1, 2]), [1, 2]),
        ([Code.TEAPOT, {Level.HIGH: Code.TEAPOT}], [418, {"high": 418}]),
        (Colour.RED, "Colour.RED"),
        (Scalar(1.5), "1.5"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_that_looks_like_none_is_plain_data_in_json(value: Any, written: Any) -> None:
    """JSON has what a value of a class that is made from a plain type is, whatever it looks like."""
    record = make(extra={"value": value})
    for travelling in (record, travel(record), travel(travel(record))):
        assert json.loads(JSONFormatter({}).format(travelling)) == {"value": written} or value is Colour.RED
    assert str(travelled(value)) == str(value)


def test_numbers_of_numpy_are_numbers_in_json() -> None:
    """Those of numpy are numbers, and look like themselves in a text."""
    numpy = pytest.importorskip("numpy")
    for value, written in (
        (numpy.int64(3), "3"),
        (numpy.uint64(2**64 - 1), str(2**64 - 1)),
        (numpy.float64(0.5), "0.5"),
        (numpy.float32(0.25), "0.25"),
        (numpy.bool_(True), "true"),
        (numpy.float64("nan"), "null"),
        (numpy.timedelta64(5, "D"), '"5 days"'),
        (numpy.array([1, 2]), '"[1 2]"'),
    ):
        record = make(extra={"value": value})
        for travelling in (record, travel(record)):
            assert JSONFormatter({}).format(travelling) == f'{{"value":{written}}}'
        assert (str(travelled(value)), repr(travelled(value))) == (str(value), repr(value))


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
    for value in (Scalar(1.5), Colour.RED, Set([1]), *MADE_OF_PLAIN):
        once = travelled(value)
        twice = travelled(once)
        assert (type(twice), twice, f"{twice!s} {twice!r} {twice}") == (type(once), once, f"{once!s} {once!r} {once}")
        assert JSONFormatter({}).format(make(extra={"value": twice})) == JSONFormatter({}).format(
            make(extra={"value": once})
        )
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
    endless += [endless] * 50  # 50 ** 32 copies, to the limit of depth
    assert repr(travelled(collections.OrderedDict(a=endless))) == repr(collections.OrderedDict(a=endless))


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


# --- arguments ---


@pytest.mark.parametrize("args", [(1, "two", None, (3,)), {"a": 1}, (object(),)])
def test_arguments_travel_where_they_are_wanted(args: Any) -> None:
    """With `with_args`, args arrive as plain data, with the template, beside the finished message."""
    sent = logging.LogRecord("a", 20, "f.py", 1, "", (), None)
    sent.args = args
    sent.msg = "%(a)s" if isinstance(args, dict) else "%s " * len(args)
    expected = sent.getMessage()
    assert decode(encode(sent)).args == ()
    arrived = decode(encode(sent, with_args=True))
    assert (arrived.msg, arrived.getMessage()) == (sent.msg, expected)
    assert str(arrived.args) == str(args)
    assert arrived.__dict__.keys() == decode(encode(sent)).__dict__.keys()
    assert sent.args == args
