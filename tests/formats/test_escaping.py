"""Escaping: nothing forges or disturbs a line, and everything can be read back (fault 20)."""

from __future__ import annotations

import datetime
import decimal
import doctest
import json
import logging
import logging.handlers
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mplog
from mplog.formats import escaping
from mplog.formats.escaping import EscapedText, escape, escaped_formatter, unescape
from mplog.formats.text import compiled, renderer
from mplog.record.decoding import decode_entry, to_record
from mplog.record.encoding import encode
from mplog.record.layout import ByOrigin, Entry

#: What no line may hold: C0, DEL, C1, separators, bidirectional controls, surrogates.
DANGEROUS = frozenset(
    map(
        chr,
        [
            *range(0x20),
            *range(0x7F, 0xA0),
            0x2028,
            0x2029,
            0x061C,
            0x200E,
            0x200F,
            *range(0x202A, 0x202F),
            *range(0x2066, 0x206A),
            *range(0xD800, 0xE000),
        ],
    )
)
#: By the names that people have for them.
NASTY = {
    "line feed": "two\nlines",
    "carriage return": "over\rwritten",
    "tab": "\tTraceback",
    "NUL": "a\0b",
    "ANSI": "\x1b[2J\x1b]0;title\x07",
    "C1": "\x9b2J\x85",
    "DEL": "a\x7f",
    "separators": "a\u2028b\u2029c",
    "bidi": "a\u202eb\u2066c\u2069\u200f\u061c",
    "surrogate": "a\udcffb",
    "backslash": r"C:\new \x41 \\ \u2028 \\n",
    "forged": "ok\n2026-11-20 18:03:46,567 CRITICAL root | all is lost",
}

characters = st.one_of(
    st.characters(),
    st.sampled_from(sorted(DANGEROUS)),
    st.sampled_from("\\nrtxuU0123456789abcdef \n\t\xa0\u200d"),
)
texts = st.one_of(st.text(characters, max_size=20), st.sampled_from(sorted(NASTY.values())))
lines_of_text = st.lists(texts, min_size=1, max_size=4).map("\n".join)


def is_harmless(text: str) -> bool:
    """Whether a line holds nothing dangerous."""
    return DANGEROUS.isdisjoint(text)


def records_in(text: str) -> list[str]:
    """Take a log apart as the documentation says, without the last line break."""
    assert text.endswith("\n")
    return re.split(r"\n(?!\t)", text[:-1])


# --- texts ---


@given(texts)
@settings(max_examples=500)
@example("")
@example(r"\U00110000")
@example("\ud83d\ude00 \U0001f600")
def test_escaping_is_reversible(text: str) -> None:
    """Whatever the text is, it is one harmless line once escaped, and unescape() gives it back."""
    escaped = escape(text)
    assert is_harmless(escaped)
    assert len(escaped.splitlines()) <= 1
    assert unescape(escaped) == text


@given(texts, st.sampled_from(["ascii", "latin-1", "cp1252"]))
@settings(max_examples=200)
def test_reversible_in_every_encoding(text: str, encoding: str) -> None:
    """What an encoding does not have, and a sink writes as an escape of its own, unescape() gives back as well."""
    assert unescape(escape(text).encode(encoding, "backslashreplace").decode(encoding)) == text


@given(texts)
@settings(max_examples=200)
def test_unescape_takes_any_text(text: str) -> None:
    """unescape() raises nothing, also for what was never escaped."""
    unescape(text)


def test_every_character() -> None:
    """Exactly the dangerous characters and the backslash are escaped, of all that there are."""
    changed = {character for character in map(chr, range(sys.maxunicode + 1)) if escape(character) != character}
    assert changed == DANGEROUS | {"\\"}


def test_documentation() -> None:
    """The examples in the documentation of the functions are right."""
    assert doctest.testmod(escaping).failed == 0


# --- records ---


class Odd:
    """A value that is no plain data, with any looks."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<{self.text}>"


class Custom(logging.Formatter):
    """A formatter of a program's own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Show more than the stdlib does."""
        return f"{record.levelname}: {super().formatMessage(record)} {getattr(record, 'exc_message', None)}"


extra_values = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.datetimes(),
    st.binary(max_size=5),
    texts,
    texts.map(Odd),
    st.lists(st.one_of(texts, texts.map(Odd)), max_size=3),
    st.dictionaries(texts, texts, max_size=2),
)

FORMATS: list[tuple[Any, str]] = [
    ("%", "%(asctime)s %(levelname)-8s %(processName)s %(threadName)s %(name)s | %(message)s %(user)s"),
    ("%", "%(message)s"),
    ("%", "%(user)r %(funcName)s:%(lineno)s %(message)-20.9s %(pathname)s"),
    ("%", "%(name)s:\n%(message)s\n"),
    ("{", "{user} {user!r:>9} {message:^30} {processName}"),
    ("$", "$message $user $threadName $module"),
]


@st.composite
def any_entries(draw: st.DrawFn) -> Entry:
    """Return a record as it arrives, with anything in its texts."""
    record = logging.LogRecord(draw(texts), 20, draw(texts), 7, "%s", (draw(texts),), None, draw(texts))
    record.created = draw(st.floats(1, 2e9))
    if draw(st.booleans()):
        try:
            raise ValueError(draw(texts))
        except ValueError:
            record.exc_info = sys.exc_info()
    record.exc_text = draw(st.one_of(st.none(), st.none(), lines_of_text))
    record.stack_info = draw(st.one_of(st.none(), st.none(), lines_of_text))
    for name in draw(st.lists(st.sampled_from(["levelname", "processName", "threadName", "taskName", "module"]))):
        record.__dict__[name] = draw(texts)
    record.__dict__["user"] = draw(extra_values)
    if draw(st.booleans()):
        record.__dict__[draw(texts)] = draw(extra_values)
    return decode_entry(encode(record, details=draw(st.booleans())))


def rendered(formatter: logging.Formatter, batch: Sequence[Entry], terminator: str = "\n") -> list[str]:
    """Return the texts of a batch; none may fail."""

    def fail(entry: Entry, error: Exception) -> None:
        raise error

    return renderer(formatter, terminator).render(batch, fail)


@pytest.mark.parametrize(("style", "format"), FORMATS)
@given(st.lists(any_entries(), min_size=1, max_size=4))
@settings(max_examples=60)
def test_one_record_is_one_record(style: Any, format: str, batch: list[Entry]) -> None:
    """Whatever comes with records, compiled or not, the log falls apart into them, and nothing dangerous is there."""
    formatter = logging.Formatter(format, style=style)
    safe = escaped_formatter(formatter)
    assert compiled(safe, "\n") is not None
    written = rendered(safe, batch)
    assert written == [safe.format(to_record(*entry)) + "\n" for entry in batch]
    log = "".join(written)
    assert [f"{text}\n" for text in records_in(log)] == written
    for line in log[:-1].split("\n"):
        assert is_harmless(line.removeprefix("\t"))
    assert log[:-1].count("\n\t") == log[:-1].count("\n") - len(batch) + 1
    for terminator in ("", "\0"):
        assert rendered(safe, batch, terminator) == [text[:-1] + terminator for text in written]


@given(any_entries())
@settings(max_examples=200)
def test_record_is_read_back(entry: Entry) -> None:
    """unescape() of all the lines of a record is the text that would have been written without the option."""
    for style, format in (
        ("%", "%(asctime)s %(name)s | %(user)s | %(message)s"),
        ("{", "{levelname}:{user}\n{message}"),
    ):
        formatter = logging.Formatter(format, style=style)  # type: ignore[arg-type]
        without, with_option = rendered(formatter, [entry]), rendered(escaped_formatter(formatter), [entry])
        assert unescape(with_option[0][:-1]) == without[0][:-1]


@given(any_entries())
@settings(max_examples=200)
def test_formatter_of_ones_own(entry: Entry) -> None:
    """A formatter that is not compiled sees escaped records, the parts of an exception too, and its breaks get tabs."""
    safe = escaped_formatter(Custom("%(message)s\n%(user)s"))
    assert compiled(safe, "\n") is None
    (text,) = rendered(safe, [entry])
    assert len(records_in(text)) == 1
    assert all(is_harmless(line.removeprefix("\t")) for line in text[:-1].split("\n"))


@given(st.lists(any_entries(), min_size=1, max_size=3))
@settings(max_examples=100)
def test_terminal_is_not_steered(batch: list[Entry]) -> None:
    """For a terminal, line breaks, tabs and what the format itself has stay, and nothing else that is dangerous."""
    red, plain = "\x1b[31m", "\x1b[0m"
    for kind in (logging.Formatter, Custom):
        safe = escaped_formatter(kind(f"{red}%(asctime)s %(name)s %(user)s %(message)s{plain}"), for_terminal=True)
        for text in rendered(safe, batch):
            assert text.count(red) == text.count(plain) == 1
            text = text.replace(red, "").replace(plain, "")
            assert DANGEROUS.intersection(text) <= {"\n", "\t"}


def test_terminal_shows_what_is_harmless_as_it_is() -> None:
    """Lines, tabs, backslashes and a traceback look as they do without the option; other controls are escapes."""
    shown = {character for character in DANGEROUS if escaping._disarm(character) == character}
    assert shown == {"\n", "\t"}
    record = logging.LogRecord("a", 20, "/x.py", 1, "two\nlines\tand C:\\temp %s", ("\x1b[2J\r",), None)
    try:
        raise ValueError("a\nb")
    except ValueError:
        record.exc_info = sys.exc_info()
    entry = decode_entry(encode(record))
    formatter = logging.Formatter("%(message)s")
    (without,) = rendered(formatter, [entry])
    (text,) = rendered(escaped_formatter(formatter, for_terminal=True), [entry])
    assert text == without.replace("\x1b[2J\r", r"\x1b[2J\r")


class OfArguments(logging.Formatter):
    """Shows the arguments of a call, as the formatter of uvicorn's access log does."""

    def format(self, record: logging.LogRecord) -> str:
        """Unpack them."""
        client, path = record.args  # type: ignore[misc]
        return f"{client} {path} | {record.getMessage()}"


@pytest.mark.parametrize("for_terminal", [True, False])
def test_formatter_of_arguments(for_terminal: bool) -> None:
    """Where the arguments travel, a formatter gets them escaped, beside the finished message."""
    record = logging.LogRecord("a", 20, "/x.py", 1, "%s - %s", ("me", "/\x1b[2J"), None)
    entry = decode_entry(encode(record, with_args=True))
    (text,) = rendered(escaped_formatter(OfArguments(), for_terminal=for_terminal), [entry])
    assert text == "me /\\x1b[2J | me - /\\x1b[2J\n"


@given(st.lists(any_entries(), min_size=1, max_size=3), st.sampled_from(["text", "frames"]))
@settings(max_examples=200)
def test_json(batch: list[Entry], exceptions: Any) -> None:
    """JSON says the same with the option as without it, by both ways, and has nothing dangerous in it."""
    formatter = mplog.JSONFormatter({"m": "message", "n": "name", "u": "user", "f": "funcName"}, exceptions=exceptions)
    safe = escaped_formatter(formatter)
    written = rendered(safe, batch)
    assert written == [safe.format(to_record(*entry)) + "\n" for entry in batch]
    for line, without in zip(written, rendered(formatter, batch)):
        assert is_harmless(line[:-1])
        assert json.dumps(json.loads(line)) == json.dumps(json.loads(without))


def test_what_is_harmless_stays() -> None:
    """Numbers, dates and texts without anything dangerous come to the formatter as they are, with all their formats."""
    record = logging.LogRecord("a", 20, "/x.py", 1, "größer 😀", None, None)
    when = datetime.datetime(2026, 11, 20, tzinfo=datetime.timezone.utc)
    record.__dict__.update(n=5, when=when, cost=decimal.Decimal("1.50"), tags=["a", "b"], odd=Odd("5"))
    formatter = logging.Formatter("{message} {n:03} {when:%Y} {cost:.1f} {tags} {odd:>3}", style="{", validate=False)
    entry = decode_entry(encode(record))
    expected = "größer 😀 005 2026 1.5 ['a', 'b']   5\n"
    assert rendered(formatter, [entry]) == rendered(escaped_formatter(formatter), [entry]) == [expected]


def test_numbers_with_dangerous_looks_stay_numbers() -> None:
    """A value that is a number, and looks like anything, still goes into %d, and its looks are escaped."""

    class Number(int):
        __hash__ = int.__hash__

        def __repr__(self) -> str:
            return "1\n2"

        __str__ = __repr__

    record = logging.LogRecord("a", 20, "/x.py", 1, "m", None, None)
    record.__dict__["n"] = Number(12)
    formatter = escaped_formatter(logging.Formatter("%(n)d %(n)s"))
    assert rendered(formatter, [decode_entry(encode(record))]) == ["12 1\\n2\n"]


def test_record_that_does_not_fit_is_reported_as_it_was() -> None:
    """A record that the format does not fit is reported once, as it arrived, and the others are there."""
    records = [logging.LogRecord("a", 20, "/x.py", 1, message, None, None) for message in ("1\n", "2\n", "3")]
    records[1].__dict__["user"] = "x"
    batch = [decode_entry(encode(record)) for record in records]
    failed: list[Entry] = []
    render = renderer(escaped_formatter(logging.Formatter("%(message)s %(user)s")), "\n").render
    assert render(batch, lambda entry, error: failed.append(entry)) == ["", "2\\n x\n", ""]
    assert [id(entry) for entry in failed] == [id(batch[0]), id(batch[2])]


def test_record_that_did_not_travel() -> None:
    """A record that another library logs in the logging process is escaped as well, with its traceback."""
    try:
        raise ValueError("a\r\nb")
    except ValueError:
        record = logging.LogRecord("a", 40, "/x.py", 1, "%s", ("x\x1b",), sys.exc_info())
    text = EscapedText(logging.Formatter("%(message)s")).format(record)
    assert text.startswith("x\\x1b\n\tTraceback (most recent call last):\n\t  File ")
    assert text.endswith("\n\tValueError: a\\r\n\tb")
    assert record.args == ("x\x1b",) and record.exc_info, "the record itself is not changed"


def test_long_names_are_not_kept() -> None:
    """Names of any length that come with records do not stay in memory."""
    origins = ByOrigin(escaping.escape_origin)
    for size in (10, 5000):
        record = logging.LogRecord("n" * size, 20, "/x.py", 1, "m", None, None)
        _, origin = decode_entry(encode(record))
        assert origins[origin] is origin
        assert len(origins) == 1


# --- sinks ---


def rotating(path: str) -> logging.Handler:
    """Return a handler of the stdlib's."""
    return logging.handlers.RotatingFileHandler(path, encoding="utf-8")


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["file", "handler", "filtered"])
def test_no_worker_can_forge_a_line(tmp_path: Path, kind: str) -> None:
    """Through a sink with escape=True, every record is one in the file, and its message can be read back."""
    log = tmp_path / "app.log"
    if kind == "handler":
        path = str(log)
        sink: mplog.Sink = mplog.HandlerSink(lambda: rotating(path), escape=True)
    else:
        sink = mplog.FileSink(log, escape=True, filters=[lambda record: True] if kind == "filtered" else ())
    with mplog.LogServer(sink, level="DEBUG", format="%(levelname)s | %(message)s"):
        for text in NASTY.values():
            logging.info("%s", text)
        try:
            raise ValueError(NASTY["forged"])
        except ValueError:
            logging.exception("caught")
    records = records_in(log.read_bytes().decode("utf-8"))
    assert [unescape(record) for record in records[:-1]] == [f"INFO | {text}" for text in NASTY.values()]
    caught = records[-1].split("\n")
    assert caught[0] == "ERROR | caught"
    assert all(line.startswith("\t") for line in caught[1:])
    assert caught[-2:] == ["\tValueError: ok", "\t2026-11-20 18:03:46,567 CRITICAL root | all is lost"]


@pytest.mark.processes
@pytest.mark.parametrize("name", NASTY)
def test_nasty_texts_are_byte_for_byte_without_the_option(tmp_path: Path, name: str) -> None:
    """Without the option, a nasty text raises nothing, and is written as logging writes it."""
    ours, theirs = tmp_path / "ours.log", tmp_path / "theirs.log"
    handler = logging.FileHandler(theirs, encoding="utf-8", errors="backslashreplace")
    handler.handle(logging.LogRecord("root", 30, "/x.py", 1, NASTY[name], None, None))
    handler.close()
    with mplog.LogServer(ours, format="%(message)s"):
        logging.warning(NASTY[name])
    assert ours.read_bytes() == theirs.read_bytes()


def test_console_keeps_its_colors(tmp_path: Path) -> None:
    """A console with escape=True shows no escape sequences but its own."""
    from mplog.handlers.console import ConsoleHandler

    path = tmp_path / "console"
    with open(path, "w", encoding="utf-8") as stream:
        handler = ConsoleHandler(stream, color=True)
        handler.setFormatter(escaped_formatter(logging.Formatter("%(message)s")))
        handler.handle_entries([decode_entry(encode(logging.LogRecord("a", 40, "/x", 1, "a\x1b[2J", None, None)))])
        handler.flush()
    assert path.read_text(encoding="utf-8") == "\x1b[31ma\\x1b[2J\n\x1b[0m".replace("\n\x1b[0m", "\x1b[0m\n")
