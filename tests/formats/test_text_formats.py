"""Compiled formatting: the same bytes as the stdlib's formatters, or the stdlib's formatters themselves."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mplog.formats.text import DatedFormatter, compiled, renderer
from mplog.record.decoding import decode_entry, to_record
from mplog.record.encoding import encode
from mplog.record.layout import DETAILS, ORIGIN, REST, Entry

ATTRIBUTES = [*ORIGIN, *DETAILS, "msg", "exc_text", "processName", "taskName", "args", "exc_info", "message", "asctime"]
NAMES = [*ATTRIBUTES, *["asctime", "message", "levelname"] * 4, "user", "n", "missing"]


def compare(formatter: logging.Formatter, batch: Sequence[Entry], terminator: str = "\n") -> list[str]:
    """Hold the renderer to what the formatter does with each record, and to reporting exactly those that fail."""
    expected, expected_failures = [], []
    dated = DatedFormatter.instead_of(formatter)
    assert dated is not None
    for values in batch:
        try:
            expected.append(formatter.format(to_record(*values)) + terminator)
        except Exception as error:
            expected.append("")
            expected_failures.append((values, type(error)))
            with pytest.raises(type(error)):
                dated.format(to_record(*values))
        else:
            assert dated.format(to_record(*values)) + terminator == expected[-1]
    failures: list[tuple[Entry, type[Exception]]] = []
    render = renderer(formatter, terminator).render
    for _ in range(2):  # nothing stays from batch to batch
        failures.clear()
        texts = render(batch, lambda values, error: failures.append((values, type(error))))
        assert texts == expected
        assert [id(values) for values, _ in failures] == [id(values) for values, _ in expected_failures]
        assert [kind for _, kind in failures] == [kind for _, kind in expected_failures]
    return texts


def is_compiled(formatter: logging.Formatter) -> bool:
    """Whether the formatter does not format the records itself."""
    return compiled(formatter, "\n") is not None


def make(message: str | None = "hello", created: float = 1700000000.25, **attributes: Any) -> Entry:
    """Return a record as it arrives."""
    record = logging.LogRecord("a.b", logging.INFO, "/dir/file.py", 7, message, None, None, "function")
    record.created, record.msecs = created, 250.0
    record.__dict__.update(attributes)
    return decode_entry(encode(record))


# --- any format, any record ---

texts = st.text(st.one_of(st.characters(), st.sampled_from("%{}$\n\r\0\ud800 aä")), max_size=12)
literals = st.one_of(st.sampled_from(["%%", "{{", "}}", "$$", " ", "\0", "\n", "ü|", ":"]), texts)
names = st.sampled_from(NAMES)

percent_fields = st.builds(
    "%({}){}{}{}".format,
    names,
    st.sampled_from(["", "", "", "-", "0", "+", " ", "#", "-0"]),
    st.sampled_from(["", "", "8", "3", ".2", "10.4", ".0"]),
    st.sampled_from("ssssdrafxgeic%"),
)
brace_fields = st.builds(
    "{{{}{}{}{}}}".format,
    st.one_of(names, st.sampled_from(["", "0", "1a"])),
    st.sampled_from(["", "", "", ".__class__", ".real", "[0]", "[a]", ".nothing"]),
    st.sampled_from(["", "", "!r", "!s", "!a"]),
    st.sampled_from(["", "", ":>10", ":^12.3", ":05d", ":.2f", ":x", ":{n}", ":*<4", ":,"]),
)
dollar_fields = st.builds(
    lambda form, name: form.replace("x", name), st.sampled_from(["$x", "${x}", "$x!", "$X", "$$x"]), names
)


def formats(fields: st.SearchStrategy[str], *special: str) -> st.SearchStrategy[str]:
    """Return texts with such fields; literal text is mostly escaped as the style wants it."""

    def escaped(text: str) -> str:
        for sign in special:
            text = text.replace(sign, sign * 2)
        return text

    return st.lists(st.one_of(fields, fields, literals.map(escaped), literals), max_size=7).map("".join)


styled = st.one_of(
    st.tuples(st.just("%"), formats(percent_fields, "%")),
    st.tuples(st.just("{"), formats(brace_fields, "{", "}")),
    st.tuples(st.just("$"), formats(dollar_fields, "$")),
)


@st.composite
def any_formatters(draw: st.DrawFn) -> logging.Formatter:
    """Return a Formatter of any style, with any of its options."""
    style, text = draw(styled)
    formatter = logging.Formatter(
        text,
        draw(st.sampled_from([None, None, "", "%H:%M:%S", "%Y %% %z %Z %j", "ü%d", "%s %x %c"])),
        style,
        validate=False,
        defaults=draw(
            st.sampled_from([None, None, {"user": "nobody", "missing": 5}, {"levelname": "L", "asctime": 1}])
        ),
    )
    formatter.default_msec_format = draw(st.sampled_from(["%s,%03d", "%s,%03d", "%s.%05d", "%s", "", None]))
    formatter.default_time_format = draw(st.sampled_from(["%Y-%m-%d %H:%M:%S", "%H:%M"]))
    formatter.converter = draw(st.sampled_from([time.localtime, time.gmtime, lambda second: time.gmtime(0)]))
    return formatter


times = st.one_of(
    st.sampled_from([0.0, -0.5, -1.0, -1e-20, 0.999999999, 1700000000.0, 1700000000.999, 1700000001.0, 1e20, math.nan]),
    st.floats(1699999999, 1700000003),
    st.floats(-1e10, 1e11),
)
extra_values = st.one_of(st.none(), st.integers(), st.floats(), texts, st.lists(st.integers()), st.just((1, 2)))


@st.composite
def any_values(draw: st.DrawFn) -> Entry:
    """Return a record as it arrives, with any attributes."""
    attributes: dict[str, Any] = {"created": draw(times), "msecs": draw(st.floats(0, 999.999))}
    attributes["exc_text"] = draw(st.sampled_from([None, None, "", "Traceback\n", "ValueError: \ud800"]))
    attributes["stack_info"] = draw(st.sampled_from([None, None, "", "Stack (most recent call last):\n"]))
    attributes["levelno"] = draw(st.integers(0, 60))
    for name in draw(st.lists(st.sampled_from(["levelname", "name", "processName", "funcName", "threadName"]))):
        attributes[name] = draw(st.one_of(st.none(), texts))
    attributes |= draw(st.dictionaries(st.sampled_from(["user", "n", "1a", "0", "", "a b"]), extra_values, max_size=3))
    return make(draw(texts), **attributes)


several = settings(max_examples=100)
anything = given(any_formatters(), st.lists(any_values(), max_size=6), st.sampled_from(["\n", "", "\0"]))


@several
@anything
@example(logging.Formatter("{0}", style="{", validate=False), [make(**{"0": 1})], "\n")
@example(logging.Formatter("$ x", style="$", validate=False), [make(**{"None": 1})], "\n")
@example(logging.Formatter("{", style="{", validate=False), [make()], "\n")
def test_same_bytes_as_the_stdlib(formatter: logging.Formatter, batch: list[Entry], terminator: str) -> None:
    """Whatever the format and the records are, each text is the one of `Formatter.format`, and so is each failure."""
    compare(formatter, batch, terminator)


@pytest.mark.long
@pytest.mark.timeout(600)
@settings(several, max_examples=5_000)
@anything
def test_same_bytes_as_the_stdlib_at_length(formatter: logging.Formatter, batch: list[Entry], terminator: str) -> None:
    """The same with thousands of formats."""
    compare(formatter, batch, terminator)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute(name: str) -> None:
    """Each attribute of a record is written as the stdlib writes it, in each style."""
    batch = [make(), make("", exc_text="Traceback", stack_info="Stack"), make(user=1), make(taskName="Task-1")]
    for style, text in (("%", f"%({name})s|%({name})r"), ("{", f"{{{name}}}|{{{name}!r:>9}}"), ("$", f"${name}")):
        compare(logging.Formatter(text, style=style), batch)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("%", "%(asctime)s %(levelname)-8s %(processName)s %(name)s | %(message)s"),
        ("%", "100%% %(message).3s %(created)f %(funcName)s:%(lineno)05d %(user)s"),
        ("{", "{asctime} {levelname:<8} {{x}} {message!r:>20} {process:,} {user}"),
        ("$", "$asctime ${levelname} $$ 5% $message $user"),
    ],
)
def test_usual_formats_are_compiled(style: Any, text: str) -> None:
    """The formats that people write take the fast way, so the other tests of this file are about it."""
    formatter = logging.Formatter(text, style=style)
    assert is_compiled(formatter)
    compare(formatter, [make(user="x"), make("%s {0} $x", user=None), make()])


# --- what goes its own way ---


class Shouting(logging.Formatter):
    """A formatter of a class of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Shout."""
        return super().format(record).upper()


def _shout(record: logging.LogRecord) -> str:
    return f"{record.msg}!"


@pytest.mark.parametrize("name", ["class", "format", "formatTime", "formatMessage", "usesTime", "formatStack", "style"])
def test_methods_of_its_own_are_called(name: str) -> None:
    """A formatter with a method of its own, in its class, the object or its style, formats each record itself."""
    formatter = (Shouting if name == "class" else logging.Formatter)("%(asctime)s %(message)s")
    own: dict[str, Any] = {
        "format": _shout,
        "formatMessage": _shout,
        "formatTime": lambda record, datefmt=None: "noon" if record.msg == "rare" else "time",
        "usesTime": lambda: True,
        "formatStack": lambda text: f"<{text}>",
    }
    if name == "style":
        formatter._style.format = lambda record: f"rare {record.msg}"  # type: ignore[method-assign]
    elif name != "class":
        setattr(formatter, name, own[name])
    assert not is_compiled(formatter)
    compare(formatter, [make(), make("rare", stack_info="Stack")])


def test_attribute_called_renderer_means_nothing() -> None:
    """A foreign formatter with an attribute `renderer` is treated like any other."""
    formatter = logging.Formatter("%(message)s")
    formatter.renderer = lambda *arguments: 1 / 0  # type: ignore[attr-defined]
    assert compare(formatter, [make()]) == ["hello\n"]


def test_style_of_its_own_is_called() -> None:
    """A style of a class of its own fills the format itself."""

    class Style(logging.PercentStyle):
        def format(self, record: logging.LogRecord) -> str:
            return "mine"

    formatter = logging.Formatter("%(message)s")
    formatter._style = Style("%(message)s")
    assert compare(formatter, [make()]) == ["mine\n"]


# --- records that do not fit ---


@pytest.mark.parametrize("style", ["%", "{", "$"])
def test_record_that_does_not_fit_is_reported_once(style: Any) -> None:
    """A record without a field of the format is reported once, in its place is an empty text, the others are there."""
    text = {"%": "%(message)s %(user)s", "{": "{message} {user}", "$": "$message $user"}[style]
    batch = [make("1", user="a"), make("2"), make("3", user="b"), make("4", other=1), make("5", user=None)]
    assert compare(logging.Formatter(text, style=style), batch) == ["1 a\n", "", "3 b\n", "", "5 None\n"]


def test_text_that_utf_8_does_not_take() -> None:
    """Lone surrogates in any text are there, though they travel in another place."""
    batch = [make("\ud800"), make(levelname="\udcff"), make(exc_text="\udcff"), make(), make(threadName="\udcff")]
    expected = ["\ud800 INFO MainThread", "hello \udcff MainThread"]
    assert compare(logging.Formatter("%(message)s %(levelname)s %(threadName)s"), batch, "")[:2] == expected


def test_record_without_a_message() -> None:
    """A record whose message is nothing at all is written as the text "None", also as `!r` and to a width."""
    values, origin = make()
    entry = (values[0], None, *values[2:]), origin
    assert compare(logging.Formatter("{message!r:>8}", style="{"), [entry]) == ["  'None'\n"]


@pytest.mark.parametrize("text", ["%(message)s", "%(relativeCreated)s %(message)s"])
def test_hidden_part_that_does_not_decode(text: str) -> None:
    """Garbage in the part that is decoded late costs that record at most, and only where it is looked at."""
    values, origin = make("broken")
    broken = ((*values[:REST], msgspec.Raw(b"\xc1"), values[-1]), origin)
    render, failures = renderer(logging.Formatter(text), "\n").render, []
    written = render([make("1"), broken, make("2")], lambda values, error: failures.append(values))
    assert [line.split()[-1] for line in written if line] == (["1", "broken", "2"] if not failures else ["1", "2"])
    assert failures == ([broken] if "relativeCreated" in text else [])


# --- dates ---


@pytest.fixture(params=["UTC", "Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3", "Asia/Kathmandu", "America/St_Johns"])
def time_zone(request: pytest.FixtureRequest) -> Iterator[str]:
    """Live in a time zone."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


#: When Central Europe changed its clocks in 2026, in spring and in autumn.
CHANGES = (1774746000, 1792890000)


@pytest.mark.parametrize("datefmt", [None, "%Y-%m-%dT%H:%M:%S%z %Z"])
@pytest.mark.parametrize("converter", [time.localtime, time.gmtime])
def test_changes_of_the_clock(time_zone: str, converter: Any, datefmt: str | None) -> None:
    """Around both changes of the clock of a year, each second has the date that the stdlib gives it."""
    formatter = logging.Formatter("%(asctime)s", datefmt)
    formatter.converter = converter
    assert is_compiled(formatter)
    batch = [
        make(created=change + seconds + fraction, msecs=fraction * 1000)
        for change in CHANGES
        for seconds in (-3601, -3600, -1, 0, 1, 3599, 3600, -7200, 0)
        for fraction in (0.0, 0.5, 0.999)
    ]
    written = compare(formatter, batch)
    if time_zone.startswith("CET") and converter is time.localtime and datefmt is None:
        assert written[6] == "2026-03-29 01:59:59,000\n" and written[9] == "2026-03-29 03:00:00,000\n"


@given(st.lists(times, max_size=8), st.sampled_from(["%(asctime)s", "%(asctime)s %(message)s"]))
@settings(max_examples=100)
def test_seconds_that_come_in_any_order(seconds: list[float], text: str) -> None:
    """In batches across seconds, forwards and backwards, before 1970 too, no date is one of another record."""
    compare(logging.Formatter(text), [make(created=second) for second in seconds])


def test_change_of_the_zone_between_batches() -> None:
    """A date of a batch is never one of the batch before."""
    render = renderer(logging.Formatter("%(asctime)s"), "").render
    before = os.environ.get("TZ")
    written = []
    try:
        for zone in ("UTC0", "XXX-5"):
            os.environ["TZ"] = zone
            time.tzset()
            written += render([make(created=0.0, msecs=0.0)], lambda values, error: None)
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()
    assert written == ["1970-01-01 00:00:00,000", "1970-01-01 05:00:00,000"]
