"""JSON lines: always valid, with typed fields, and the same by the fast way and by `format()`."""

from __future__ import annotations

import base64
import datetime
import io
import json
import logging
import math
import pickle
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplog.formats.json import DEFAULT_FIELDS, JSONFormatter
from mplog.formats.text import renderer
from mplog.record.decoding import decode_entry, to_record
from mplog.record.encoding import encode
from mplog.record.foreign import ForeignValue
from mplog.record.layout import Entry

UTC = datetime.timezone.utc


def make(message: Any = "hello", created: float = 1700000000.25, **attributes: Any) -> logging.LogRecord:
    """Return a record as a logger makes it."""
    record = logging.LogRecord("a.b", logging.INFO, "/dir/file.py", 7, message, None, None, "function")
    record.created = created
    record.__dict__.update(attributes)
    return record


def write(formatter: logging.Formatter, batch: Sequence[Entry]) -> list[str]:
    """Return the lines of a batch; hold them to being those of `format()`, with the same failures."""
    expected, expected_failures = [], []
    for values in batch:
        try:
            expected.append(formatter.format(to_record(*values)) + "\n")
        except Exception:
            expected.append("")
            expected_failures.append(id(values))
    failures: list[int] = []
    texts = renderer(formatter, "\n").render(batch, lambda values, error: failures.append(id(values)))
    assert texts == expected
    assert failures == expected_failures
    return texts


def read(line: str) -> Any:
    """Return what is on a line, by the strictest reading of JSON."""

    def refuse(text: str) -> Any:
        raise ValueError(text)

    assert line[-1] == "\n" and "\n" not in line[:-1]
    line.encode()
    return json.loads(line, parse_constant=refuse)


def written(record: logging.LogRecord, *arguments: Any, **options: Any) -> Any:
    """Return what is written for a record that has travelled."""
    return read(write(JSONFormatter(*arguments, **options), [decode_entry(encode(record))])[0])


def failed(kind: type[Exception] = KeyError) -> logging.LogRecord:
    """Return a record with an exception."""
    try:
        raise kind("as planned")
    except kind:
        return make(exc_info=sys.exc_info())


# --- fields ---


def test_default_fields() -> None:
    """By default a line has the time, level, logger, message and process, in this order."""
    line = written(make(processName="Worker-1", process=5))
    assert list(line.items()) == [
        ("time", "2023-11-14T22:13:20.250000Z"),
        ("level", "INFO"),
        ("logger", "a.b"),
        ("message", "hello"),
        ("process", "Worker-1"),
        ("pid", 5),
    ]


def test_fields_are_chosen_and_renamed() -> None:
    """Fields have the names given, in that order, for any attribute, also one that only some records have."""
    fields = {"@timestamp": "created", "sev'": "levelno", 'w"o': "funcName", "user": "user", "text": "message"}
    assert written(make(user="x", other=1), fields, time="epoch") == {
        "@timestamp": 1700000000.25,
        "sev'": 20,
        'w"o': "function",
        "user": "x",
        "text": "hello",
        "other": 1,
    }
    assert written(make(), fields, time="epoch")["user"] is None
    assert written(make(), {}) == {}
    assert written(make(), {"when": "asctime"})["when"].startswith("2023-11-1")


@pytest.mark.parametrize("attribute", ["exc_type", "getMessage", "__class__", "args", "exc_info", "no such thing"])
def test_field_of_an_unusual_attribute(attribute: str) -> None:
    """A field that shows something else than a plain attribute has the same value by both ways."""
    written(make(exc_type="mine"), {"field": attribute})
    written(make(), {"field": attribute})


@pytest.mark.parametrize("options", [{"time": "iso"}, {"time": None}, {"exceptions": "json"}, {"exceptions": None}])
def test_bad_arguments_are_refused(options: dict[str, Any]) -> None:
    """A way to write times or exceptions that does not exist is refused, with the ones that do."""
    with pytest.raises(ValueError, match=r"'(rfc3339|text)' or '(epoch|frames)', not"):
        JSONFormatter(**options)


# --- times ---


@given(st.lists(st.one_of(st.floats(-62135596800, 253402300799), st.floats(1.7e9, 1.7e9 + 2), st.floats(-2, 2))))
@settings(max_examples=200)
def test_times_are_those_of_datetime(times: list[float]) -> None:
    """Each RFC 3339 time is the record's, cut to microseconds, from year 1 to 9999, in any order."""
    batch = [decode_entry(encode(make(created=created))) for created in times]
    for created, line in zip(times, write(JSONFormatter(), batch)):
        text = read(line)["time"]
        assert len(text) == 27 and text[-1] == "Z"
        moment = datetime.datetime.fromisoformat(text[:-1]).replace(tzinfo=UTC)
        exact = datetime.datetime.fromtimestamp(math.floor(created), UTC)
        micros = (moment - exact) // datetime.timedelta(microseconds=1)
        assert 0 <= micros < 1_000_000
        assert -1e-5 <= (created - math.floor(created)) * 1e6 - micros <= 1


@pytest.mark.parametrize("created", [1e20, math.nan, math.inf])
def test_time_beyond_the_calendar(created: float) -> None:
    """A time that is no date fails alone and each time, and no other record gets its date or it another's."""
    records = [make("1"), make("2", created), make("3", created), make("4", 1.0)]
    lines = write(JSONFormatter(), [decode_entry(encode(record)) for record in records])
    assert [bool(line) for line in lines] == [True, False, False, True]
    assert read(lines[3])["time"] == "1970-01-01T00:00:01.000000Z"


def test_epoch_times_are_exact() -> None:
    """Epoch times are the numbers that were recorded."""
    for created in (1700000000.1234567, 0.0, -0.5):
        assert written(make(created=created), time="epoch")["time"] == created


# --- extra attributes ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (2**70, 2**70),
        (1.5, 1.5),
        (math.nan, None),
        (-math.inf, None),
        ("ü\n\0\u2028", "ü\n\0\u2028"),
        ("\ud800", "\\ud800"),
        (b"\xff\0", base64.b64encode(b"\xff\0").decode()),
        ({"a": [1, {"b": (2, None)}]}, {"a": [1, {"b": [2, None]}]}),
        ({1: 2, None: 3}, {"1": 2, "None": 3}),
        ({5}, [5]),
        (frozenset({"x"}), ["x"]),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "2026-01-02T03:04:05.000006Z"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (1 + 2j, "(1+2j)"),
        (ForeignValue("text", "repr", 5), "text"),
        ([ForeignValue("text", "repr")], ["text"]),
        (Exception("oops"), "oops"),
    ],
)
def test_extra_attributes_keep_their_types(value: Any, expected: Any) -> None:
    """What JSON has a word for keeps its type, nested too; anything else is its text."""
    line = written(make(value=value))
    assert line["value"] == expected and type(line["value"]) is type(expected)
    assert list(line) == [*DEFAULT_FIELDS, "value"]


def test_names_that_collide_get_underscores() -> None:
    """No extra attribute takes the place of a field or of another one, in whichever order they come."""
    for extra in ({"level_": 2, "level": 1}, {"level": 1, "level_": 2}):
        line = written(make(**extra))
        assert line["level"] == "INFO"
        assert sorted([line["level_"], line["level__"]]) == [1, 2]
    assert written(failed())["exception"].startswith("Traceback")
    record = failed()
    record.__dict__["exception"] = "mine"
    assert written(record)["exception_"] == "mine"


# --- exceptions and stacks ---


def test_exception_as_text() -> None:
    """An exception is the text of its traceback, a stack its own."""
    record = failed()
    record.stack_info = "Stack (most recent call last):"
    line = written(record)
    assert line["exception"] == logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
    assert line["stack"] == "Stack (most recent call last):"
    assert not {"exception", "stack"} & set(written(make()))


@pytest.mark.parametrize("travels", [True, False], ids=["arrived", "plain"])
def test_exception_as_frames(travels: bool) -> None:
    """An exception as an object has type, message, frames and text, also in a record that has not travelled."""
    record = failed()
    formatter = JSONFormatter(exceptions="frames")
    line = written(record, exceptions="frames") if travels else read(formatter.format(record) + "\n")
    exception = line["exception"]
    assert (exception["type"], exception["message"]) == ("KeyError", "'as planned'")
    assert [(frame["file"], frame["function"]) for frame in exception["frames"]] == [(__file__, "failed")]
    assert type(exception["frames"][0]["line"]) is int
    assert exception["text"].endswith("KeyError: 'as planned'")


# --- both ways ---

texts = st.text(st.one_of(st.characters(), st.sampled_from('\ud800\udcff"\\\n\0\u2028')), max_size=10)
keys = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.binary(), st.tuples(st.integers()))
values = st.recursive(
    st.one_of(keys, st.datetimes(), st.dates(), st.times(), st.timedeltas(), st.uuids(), st.decimals(),
              st.complex_numbers(), st.frozensets(st.integers())),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip
attributes = st.sampled_from(
    [*logging.LogRecord("", 0, "", 0, "", None, None).__dict__, "message", "asctime", "taskName", "user", "exc_type"]
)


@st.composite
def any_values(draw: st.DrawFn) -> Entry:
    """Return a record as it arrives."""
    record = make(draw(texts), draw(st.sampled_from([1.7e9, 1.7e9 + 0.5, 1.7e9 + 1, -1e-20, 1e20])))
    record.exc_text = draw(st.sampled_from([None, None, "Traceback\ud800"]))
    record.stack_info = draw(st.sampled_from([None, None, "Stack"]))
    record.levelname = draw(st.sampled_from(["INFO", "\ud800", "ü"]))
    names = st.one_of(st.sampled_from(["user", "level", "level_", "exc_type", "exception", "line", "stamp", ""]), texts)
    record.__dict__.update(draw(st.dictionaries(names, values, max_size=4)))
    return decode_entry(encode(record))


@settings(max_examples=100)
@given(
    st.one_of(st.none(), st.dictionaries(texts, attributes, max_size=6)),
    st.sampled_from(["rfc3339", "epoch"]),
    st.sampled_from(["text", "frames"]),
    st.lists(any_values(), max_size=5),
)
def test_fast_way_is_the_long_way(fields: Any, time: Any, exceptions: Any, batch: list[Entry]) -> None:
    """Whatever is logged and chosen, the fast way writes what `format()` does, and each line is valid JSON."""
    for line in write(JSONFormatter(fields, time=time, exceptions=exceptions), batch):
        if line:
            read(line)


@pytest.mark.parametrize("name", ["class", "format", "formatException"])
def test_methods_of_its_own_are_called(name: str) -> None:
    """A subclass, or an object with a method of its own, formats each record itself."""

    class Own(JSONFormatter):
        def format(self, record: logging.LogRecord) -> str:
            return f"mine: {record.msg}"

    formatter = Own() if name == "class" else JSONFormatter()
    if name != "class":
        setattr(formatter, name, lambda record: "mine: hello")
    line = write(formatter, [decode_entry(encode(make()))])[0]
    assert (line == "mine: hello\n") == (name != "formatException")


# --- elsewhere ---


class Unspeakable:
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("as planned")


def test_plain_handler_and_plain_records() -> None:
    """In a program without mplog's processes it is a formatter like any other, whatever objects are logged."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    logger = logging.getLogger("plain")
    logger.addHandler(handler)
    endless: list[Any] = []
    endless.append(endless)
    logger.error("%s, %d", "x", 5, extra={"object": Unspeakable(), "endless": endless, "lambda": print, "n": 1})
    try:
        raise ValueError("oops")
    except ValueError:
        logger.exception("failed")
    first, second = (read(line) for line in stream.getvalue().splitlines(keepends=True))
    assert (first["message"], first["n"]) == ("x, 5", 1)
    assert "RuntimeError" in first["object"] and first["lambda"] == "<built-in function print>"
    assert second["exception"].endswith("ValueError: oops")


def test_it_pickles() -> None:
    """It travels into the logging process with all its options."""
    fields = {"t": "created", "m": "message"}
    formatter = pickle.loads(pickle.dumps(JSONFormatter(fields, time="epoch", exceptions="frames")))
    assert (formatter.fields, formatter.time, formatter.exceptions) == (fields, "epoch", "frames")
    line = read(write(formatter, [decode_entry(encode(failed()))])[0])
    assert line["t"] == 1700000000.25 and line["exception"]["type"] == "KeyError"
