"""What is written is what stdlib logging would have written in one process (promise 7), byte for byte.

Random programs of logging calls run in this process. In one way of comparing, each record goes to mplog and to the
stdlib's handlers, so that both see the same record, time and all; in the other, the program runs twice, once with each,
so that nothing of the one can help the other.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import io
import logging
import pathlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mplog

pytestmark = pytest.mark.processes

# --- handlers ---


class EverythingFormatter(logging.Formatter):
    """Writes every attribute of a record but those that no QueueHandler carries."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        left_out = {"args", "msg", "exc_info", "exc_text", "asctime"}
        rest = {name: value for name, value in record.__dict__.items() if name not in left_out}
        return f"{text} {sorted((name, repr(value)) for name, value in rest.items())}"


def no_warnings_from_a(record: logging.LogRecord) -> bool:
    """A filter of a handler."""
    return not (record.name.startswith("a") and record.levelno == logging.WARNING)


@dataclass(frozen=True)
class Sink:
    """What a handler of both sides is made of."""

    formatter: logging.Formatter
    level: int = logging.NOTSET
    filters: tuple[Callable[[logging.LogRecord], bool], ...] = ()


#: Without what differs between two runs of a program.
REPEATABLE = {
    "percent": Sink(
        logging.Formatter("%(levelname)-8s %(name)s %(message)s %(extra)s", defaults={"extra": "none"}),
    ),
    "brace": Sink(
        logging.Formatter(
            "{levelname:>10}|{name!r:<12}|{message}|{extra!s:.20}|{lineno:05d}|{funcName}|{module}|{filename}|{process:d}",
            style="{",
            defaults={"extra": None},
        ),
        level=logging.INFO,
    ),
    "dollar": Sink(
        logging.Formatter("$levelno ${name}: $message ($pathname) $threadName $processName $$", style="$"),
        filters=(no_warnings_from_a,),
    ),
    "bare": Sink(logging.Formatter(), level=25),
}
#: With all of it, for handlers that see the same records.
SINKS = {
    **REPEATABLE,
    "dated": Sink(logging.Formatter("%(asctime)s %(created)f %(msecs)d %(relativeCreated)d %(thread)d %(message)s")),
    "date": Sink(logging.Formatter("{asctime} {message}", "%A %d %B %Y %H:%M:%S %z", "{")),
    "everything": Sink(EverythingFormatter("%(message)s")),
}


class Logs:
    """A server with a file for each sink, and how far each was read."""

    def __init__(self, directory: Path) -> None:
        self.paths = {name: directory / f"{name}.log" for name in SINKS}
        sinks = [
            mplog.FileSink(self.paths[name], level=sink.level, format=sink.formatter, filters=sink.filters)
            for name, sink in SINKS.items()
        ]
        self.server = mplog.LogServer(*sinks)
        self._offsets = dict.fromkeys(SINKS, 0)

    def read(self) -> dict[str, bytes]:
        """Return what was written since the last time, by sink."""
        self.server.flush()
        written = {}
        for name, path in self.paths.items():
            with open(path, "rb") as file:
                file.seek(self._offsets[name])
                written[name] = file.read()
            self._offsets[name] += len(written[name])
        return written


# A server and a directory for the whole module, but a queue's directory may not outlive a test.
@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    """Files that both sides write, of mplog's side."""
    logs = Logs(tmp_path)
    with logs.server:
        yield logs


class StdlibHandlers:
    """The stdlib's handlers, writing into memory what a FileHandler would have written."""

    def __init__(self, sinks: dict[str, Sink]) -> None:
        self._files = {name: io.BytesIO() for name in sinks}
        self.handlers: list[logging.Handler] = []
        for name, sink in sinks.items():
            # As logging.FileHandler opens its file, with the errors= that mplog's have.
            stream = io.TextIOWrapper(self._files[name], "utf-8", "backslashreplace", write_through=True)
            handler = logging.StreamHandler(stream)
            handler.setLevel(sink.level)
            handler.setFormatter(sink.formatter)
            for filter in sink.filters:
                handler.addFilter(filter)
            self.handlers.append(handler)

    def written(self) -> dict[str, bytes]:
        """Return what was written, by sink."""
        return {name: file.getvalue() for name, file in self._files.items()}


# --- programs ---


class Color(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    LARGE = 3


class Opaque:
    """An object that no plain data can stand for."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return f"str {self.text}"

    def __repr__(self) -> str:
        return f"<Opaque {self.text!r}>"


class Text(str):
    """A str of a class of its own."""

    def __str__(self) -> str:
        return "changed " + super().__str__()


WEIRD = [
    *("", "%", "%s", "%(message)s", "{}", "{0}", "$message", "a\nb", "\r\n", "\0", "\x1b[31m", "\u2028"),
    *("\ud800", "ñ", "\U0001f600", "x" * 5000),
]
texts = st.one_of(st.sampled_from(WEIRD), st.text(st.characters(), max_size=20))
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    st.binary(max_size=8),
    st.decimals(allow_nan=False),
    st.datetimes(timezones=st.sampled_from([None, datetime.timezone.utc])),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
)
objects = st.one_of(
    st.sampled_from([Color.RED, Size.LARGE, pathlib.PurePosixPath("/a"), decimal.Decimal("NaN"), uuid.UUID(int=5)]),
    st.complex_numbers(),
    texts.map(Opaque),
    texts.map(Text),
    st.builds(Exception, texts),
)
values = st.recursive(
    plain | objects,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(texts | st.integers(), inner, max_size=3),
        # Of one element: sets of several may come in another order in another process.
        st.frozensets(st.integers() | texts, max_size=1),
        st.sets(st.integers() | texts, max_size=1),
    ),
    max_leaves=6,
)

NAMES = ["", "a", "a.b", "a.b.c", "b", "b.c", "ü.\x07", "a..b"]
LEVELS = [1, 5, 10, 15, 20, 25, 30, 35, 40, 50, 60]


def messages() -> st.SearchStrategy[tuple[Any, tuple[Any, ...]]]:
    """Return messages with arguments that fit them."""
    with_arguments = [
        (st.just("%s and %r"), st.tuples(values, values)),
        (st.just("%-10s|%10.3s|%%"), st.tuples(texts, texts)),
        (st.just("%d %x %+05d"), st.tuples(st.integers(), st.integers(), st.integers())),
        (st.just("%f %e %.2f %g"), st.tuples(st.floats(), st.floats(), st.floats(), st.floats())),
        (st.just("%(one)s %(two)r"), st.tuples(st.fixed_dictionaries({"one": values, "two": values}))),
        (st.just("%a %c"), st.tuples(values, st.characters(codec="utf-8"))),
    ]
    return st.one_of(
        st.tuples(texts | values, st.just(())),
        *(st.tuples(message, arguments) for message, arguments in with_arguments),
    )


def raise_chain(kind: int, text: Any) -> None:
    """Raise an exception with or without a cause and a context, from some frames down."""
    if kind == 0:
        raise ValueError(text)
    if kind == 1:
        try:
            raise_chain(0, text)
        except ValueError as error:
            raise KeyError(text) from error
    if kind == 2:
        try:
            raise_chain(1, text)
        finally:
            raise OSError(5, "in the meantime")
    if kind == 3:
        try:
            raise_chain(2, text)
        except OSError:
            raise RuntimeError(text, text) from None
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")
    if hasattr(error, "add_note"):
        error.add_note(f"a note: {str(text)[:50]}")
    raise error


calls = st.fixed_dictionaries(
    {
        "do": st.just("log"),
        "logger": st.sampled_from(NAMES),
        "level": st.sampled_from(LEVELS),
        "message": messages(),
        "extra": st.none() | st.fixed_dictionaries({}, optional={"extra": values, "more": values, "with space": plain}),
        "exception": st.none() | st.tuples(st.integers(0, 4), texts),
        "stack_info": st.booleans(),
        "by_method": st.booleans(),
    }
)
changes = st.one_of(
    st.fixed_dictionaries({
        "do": st.just("level"), "logger": st.sampled_from(NAMES), "level": st.sampled_from([0, *LEVELS])
    }),
    st.fixed_dictionaries({"do": st.just("propagate"), "logger": st.sampled_from(NAMES[1:]), "on": st.booleans()}),
    st.fixed_dictionaries({"do": st.just("disabled"), "logger": st.sampled_from(NAMES), "on": st.booleans()}),
    st.fixed_dictionaries({"do": st.just("disable"), "level": st.sampled_from([0, 0, 10, 25])}),
    st.fixed_dictionaries({
        "do": st.just("filter"),
        "logger": st.sampled_from(NAMES),
        "kind": st.sampled_from(["odd lines", "name", "adds", "changes"]),
    }),
    st.fixed_dictionaries({
        "do": st.just("level name"), "level": st.sampled_from(LEVELS), "name": st.sampled_from(["NOTICE", "ü", ""])
    }),
)  # fmt: skip
programs = st.lists(calls | calls | calls | changes, min_size=1, max_size=8)


def make_filter(kind: str) -> Any:
    """Return a filter of a logger: by function or object; some change the record for everything that follows."""

    def adds(record: logging.LogRecord) -> bool:
        record.extra = "added"
        return True

    def changes(record: logging.LogRecord) -> bool:
        record.msg, record.args = f"{record.getMessage()} (changed)", ()
        return True

    return {
        "odd lines": lambda record: record.levelno % 2,
        "name": logging.Filter("a.b"),
        "adds": adds,
        "changes": changes,
    }[kind]


def run(program: list[dict[str, Any]], handlers: list[logging.Handler]) -> None:
    """Run a program with these handlers on the root logger, and leave the loggers as they were."""
    loggers = {name: logging.getLogger(name) for name in NAMES}
    root = loggers[""]
    before = root.handlers, root.level, dict(logging._levelToName), dict(logging._nameToLevel)
    root.handlers = handlers
    root.setLevel(1)
    try:
        for step in program:
            take(step, loggers.get(step.get("logger", ""), root))
    finally:
        for logger in loggers.values():
            logger.filters.clear()
            logger.propagate, logger.disabled = True, False
            logger.setLevel(logging.NOTSET)
        root.handlers = before[0]
        root.setLevel(before[1])
        for names, old in ((logging._levelToName, before[2]), (logging._nameToLevel, before[3])):
            names.clear()
            names.update(old)  # type: ignore[arg-type]
        logging.disable(logging.NOTSET)


def take(step: dict[str, Any], logger: logging.Logger) -> None:
    """Take one step of a program."""
    if step["do"] == "log":
        log(step, logger)
    elif step["do"] == "level":
        logger.setLevel(step["level"])
    elif step["do"] == "propagate":
        logger.propagate = step["on"]
    elif step["do"] == "disabled":
        logger.disabled = step["on"]
    elif step["do"] == "disable":
        logging.disable(step["level"])
    elif step["do"] == "filter":
        logger.addFilter(make_filter(step["kind"]))
    elif step["do"] == "level name":
        logging.addLevelName(step["level"], step["name"])


def log(step: dict[str, Any], logger: logging.Logger) -> None:
    """Make a logging call."""
    message, arguments = step["message"]
    options: dict[str, Any] = {"extra": step["extra"], "stack_info": step["stack_info"]}
    if step["exception"] is not None:
        try:
            raise_chain(*step["exception"])
        except Exception as error:
            options["exc_info"] = error if step["by_method"] else True
            logger.log(step["level"], message, *arguments, **options)
    elif step["by_method"]:
        method = {10: logger.debug, 20: logger.info, 30: logger.warning, 40: logger.error, 50: logger.critical}
        method.get(step["level"], logger.info)(message, *arguments, **options)
    else:
        logger.log(step["level"], message, *arguments, **options)


several = settings(max_examples=150)


@pytest.fixture(autouse=True)
def errors_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold both sides to formatting everything: a program whose records cannot be formatted shows nothing."""

    def handle_error(self: logging.Handler, record: logging.LogRecord) -> None:
        raise

    monkeypatch.setattr(logging.StreamHandler, "handleError", handle_error)
    monkeypatch.setattr(logging, "lastResort", None)


@several
@given(program=programs)
def test_the_same_records_are_written_to_the_same_bytes(logs: Logs, program: list[dict[str, Any]]) -> None:
    """With the same records, formatters, levels and filters, mplog's files hold what the stdlib's handlers write."""
    compare_records(logs, program)


def compare_records(logs: Logs, program: list[dict[str, Any]]) -> None:
    """Run a program with both, and compare."""
    stdlib = StdlibHandlers(SINKS)
    run(program, [mplog.QueueHandler(logs.server.queue), *stdlib.handlers])
    assert logs.read() == stdlib.written()


@several
@given(program=programs)
def test_the_same_program_writes_the_same_bytes(logs: Logs, program: list[dict[str, Any]]) -> None:
    """A program that runs once with mplog and once with the stdlib writes the same, except for times."""
    compare_runs(logs, program)


def compare_runs(logs: Logs, program: list[dict[str, Any]]) -> None:
    """Run a program twice, and compare."""
    stdlib = StdlibHandlers(REPEATABLE)
    for handlers in ([mplog.QueueHandler(logs.server.queue)], stdlib.handlers):
        run(program, handlers)
    written = logs.read()
    assert {name: written[name] for name in REPEATABLE} == stdlib.written()


@pytest.mark.long
@pytest.mark.timeout(1200)
@settings(several, max_examples=10_000)
@given(program=programs)
def test_thousands_of_programs_write_the_same_bytes(logs: Logs, program: list[dict[str, Any]]) -> None:
    """Both comparisons, at length."""
    compare_records(logs, program)
    compare_runs(logs, program)
