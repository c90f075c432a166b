"""From records to handlers: hierarchy, isolation, reports, full disks (parts of faults 10, 17 and 23)."""

from __future__ import annotations

import itertools
import logging
import logging.handlers
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from oracle import wait_until
from scripts import BadHandler, BlockedHandler, Gate, lines

import mplog
from mplog.files.open_file import FileOptions
from mplog.formats.text import DatedFormatter
from mplog.handlers.log_file import LogFileHandler
from mplog.logging_process.dispatch import Dispatcher
from mplog.logging_process.troubles import REPORT_INTERVAL
from mplog.record.decoding import decode_entry
from mplog.record.encoding import encode
from mplog.record.layout import REST, Entry


class Memory(logging.Handler):
    """Keeps the messages."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.messages.append(record.getMessage())


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(message: str = "x", level: int = logging.INFO, name: str = "a.b", process: int = 1) -> Entry:
    """Return a record as it arrives."""
    sent = logging.LogRecord(name, level, "file.py", 1, message, None, None)
    sent.process = process
    return decode_entry(encode(sent))


@pytest.fixture
def root() -> logging.Logger:
    """The root logger, without any handler; conftest.py puts it back."""
    root = logging.getLogger()
    root.handlers = []
    return root


Dispatch = Callable[..., Dispatcher]


@pytest.fixture
def dispatch(root: logging.Logger) -> Iterator[Dispatch]:
    """Make a dispatcher to handlers on the root logger."""

    def make(*handlers: logging.Handler, **options: Any) -> Dispatcher:
        root.handlers = list(handlers)
        return Dispatcher(handlers, **options)

    return make


# --- what the workers send ---


class OwnHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """A handler of the program."""


class OwnFormatter(logging.Formatter):
    """A formatter of the program."""


def handler_of(what: str) -> logging.Handler:
    """Return a handler that looks at more than the text of a record, or may, except for "nothing"."""
    handler: logging.Handler = OwnHandler() if what == "a class of its own" else logging.StreamHandler()
    if what == "a buffer":
        handler = logging.handlers.MemoryHandler(10)
    handler.setFormatter(OwnFormatter() if what == "a formatter of its own" else logging.Formatter("%(message)s"))
    if what == "a filter":
        handler.addFilter(lambda record: True)
    elif what.startswith("its own "):
        setattr(handler, what.removeprefix("its own "), lambda record: None)
    elif what == "a place":
        handler.setFormatter(logging.Formatter("%(lineno)d %(message)s"))
    elif what == "a bad format":
        handler.setFormatter(logging.Formatter("%(message", validate=False))
    return handler


@pytest.mark.parametrize(
    "what",
    ["a class of its own", "a buffer", "a formatter of its own", "a filter", "its own emit", "its own handle_batch",
     "its own handleError", "a place", "a bad format"],
)  # fmt: skip
def test_handlers_that_may_look_at_it_get_the_place_of_a_call(dispatch: Dispatch, what: str) -> None:
    """One such handler is enough to have workers send the place of a call."""
    other = handler_of("nothing")
    assert not dispatch(other).needs_details
    assert dispatch(other, handler_of(what)).needs_details


@pytest.mark.parametrize("kind", ["StreamHandler", "FileHandler", "RotatingFileHandler", "WatchedFileHandler"])
def test_handlers_that_only_write_texts_get_no_place_of_a_call(dispatch: Dispatch, tmp_path: Path, kind: str) -> None:
    """Handlers of the stdlib that look at nothing but the text do not have it sent, unless their format names it."""
    make: Any = getattr(logging, kind, None) or getattr(logging.handlers, kind)
    handlers = [make() if kind == "StreamHandler" else make(tmp_path / "app.log"), logging.StreamHandler()]
    for handler, text in zip(handlers, ["%(asctime)s %(processName)s %(message)s", None]):
        handler.setFormatter(logging.Formatter(text))
    assert not dispatch(*handlers).needs_details
    handlers[0].close()


# --- the hierarchy ---


def test_record_goes_up_the_hierarchy(root: logging.Logger) -> None:
    """A record reaches the handlers of its logger and of all above it, up to one that does not propagate."""
    handlers = {name: Memory() for name in ("", "a", "a.b", "c")}
    for name, handler in handlers.items():
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("c").propagate = False
    dispatcher = Dispatcher(handlers.values())
    for name in ("a.b", "a.b.unknown", "a.other", "c.d", "unknown", "ab", "root"):
        dispatcher.handle([record(name, name=name)])
    assert handlers[""].messages == ["a.b", "a.b.unknown", "a.other", "unknown", "ab", "root"]
    assert handlers["a"].messages == ["a.b", "a.b.unknown", "a.other"]
    assert handlers["a.b"].messages == ["a.b", "a.b.unknown"]
    assert handlers["c"].messages == ["c.d"]


def test_record_without_any_handler_goes_to_stderr(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the stdlib, a warning that reaches no handler goes to stderr; one that a handler leaves out does not."""
    handler = Memory(logging.CRITICAL)
    logging.getLogger("a").addHandler(handler)
    dispatcher = Dispatcher([handler])
    batch = [record(f"{name} {level}", level, name) for name in ("a", "b", "c.d") for level in (20, 30, 50)]
    dispatcher.handle(batch)
    dispatcher.close()
    assert capsys.readouterr().err.splitlines() == ["b 30", "b 50", "c.d 30", "c.d 50"]
    assert handler.messages == ["a 50"]


def test_handler_levels_and_filters_hold(dispatch: Dispatch) -> None:
    """Levels and filters of handlers work as in one process. Levels of loggers do not count: workers apply them."""
    errors, filtered, everything = Memory(logging.ERROR), Memory(), Memory()
    filtered.addFilter(lambda record: "no" not in record.getMessage())
    dispatcher = dispatch(errors, filtered, everything)
    logging.getLogger("a").setLevel(logging.CRITICAL)
    for message, level in (("debug", logging.DEBUG), ("no error", logging.ERROR)):
        dispatcher.handle([record(message, level)])
    assert (errors.messages, filtered.messages) == (["no error"], ["debug"])
    assert everything.messages == ["debug", "no error"]


@pytest.mark.parametrize("kind", [Memory, LogFileHandler])
def test_handler_on_two_loggers_gets_a_record_twice(root: logging.Logger, tmp_path: Path, kind: type) -> None:
    """A handler that is on a logger and on one above it writes each record of the lower one twice, as in the stdlib."""
    path = tmp_path / "a.log"
    handler: Any = Memory() if kind is Memory else LogFileHandler(str(path), FileOptions())
    logging.getLogger("a").addHandler(handler)
    root.addHandler(handler)
    dispatcher = Dispatcher([handler])
    dispatcher.handle([record("1", name="a"), record("2", name="x"), record("3", name="a.b")])
    dispatcher.close()
    assert (handler.messages if kind is Memory else lines(path)) == ["1", "1", "2", "3", "3"]


@pytest.mark.parametrize("levels", [(0, 0), (logging.ERROR, 0)])
def test_handlers_of_one_file_write_in_the_order_of_records(
    root: logging.Logger, tmp_path: Path, levels: tuple[int, int]
) -> None:
    """Handlers on several loggers that write to the same file do so record by record, however they come in batches."""
    written = {}
    for way in ("stdlib", "dispatcher"):
        path = tmp_path / way
        handlers = [logging.FileHandler(path) for _ in levels]
        for handler, level, text in zip(handlers, levels, ("first", "second")):
            handler.setLevel(level)
            handler.setFormatter(logging.Formatter(f"{text} %(message)s"))
        logging.getLogger("a").handlers, root.handlers = handlers[:1], handlers[1:]
        root.setLevel(0)
        sent = [(name, level, f"{name} {number}") for number in range(3) for name in ("a", "x") for level in (10, 40)]
        dispatcher = Dispatcher(handlers)
        if way == "stdlib":
            for name, level, message in sent:
                logging.getLogger(name).log(level, message)
        else:
            dispatcher.handle([record(message, level, name) for name, level, message in sent])
        dispatcher.close()
        written[way] = lines(path)
    assert written["dispatcher"] == written["stdlib"]
    assert len(written["stdlib"]) == 12 + (6 if levels[0] == 0 else 3)


def test_names_off_the_wire_make_no_loggers(dispatch: Dispatch) -> None:
    """However many logger names arrive, the logging process does not grow loggers."""
    memory = Memory()
    dispatcher = dispatch(memory)
    before = len(logging.Logger.manager.loggerDict)
    for number in range(20_000):
        dispatcher.handle([record(name=f"evil.{number}", process=number)])
    assert len(logging.Logger.manager.loggerDict) == before
    assert len(memory.messages) == 20_000


# --- batches ---


class Batches(logging.Handler):
    """Keeps the batches that it gets."""

    def __init__(self, level: int = logging.NOTSET, *, fails: bool = False) -> None:
        super().__init__(level)
        self.batches: list[list[str]] = []
        self.fails = fails

    def handle_batch(self, records: list[logging.LogRecord]) -> None:
        """Keep a batch."""
        self.batches.append([record.getMessage() for record in records])
        if self.fails:
            raise OSError("as planned")

    def emit(self, record: logging.LogRecord) -> None:
        """Refuse a single record."""
        raise AssertionError("a handler with handle_batch() got a single record")


def test_batch_handler_gets_its_part_at_once(dispatch: Dispatch) -> None:
    """A handler with `handle_batch` gets what its level and filters let through, in order, and no empty batch."""
    everything, errors, filtered, memory = Batches(), Batches(logging.ERROR), Batches(), Memory()
    filtered.addFilter(lambda record: int(record.getMessage()) / (int(record.getMessage()) - 3) > 1.5)
    dispatcher = dispatch(everything, errors, filtered, memory)
    dispatcher.handle([record(str(number), logging.ERROR if number % 4 == 1 else logging.INFO) for number in range(6)])
    dispatcher.handle([record("0")])
    assert everything.batches == [["0", "1", "2", "3", "4", "5"], ["0"]]
    assert errors.batches == [["1", "5"]]
    assert filtered.batches == [["4", "5"]]
    assert memory.messages == ["0", "1", "2", "3", "4", "5", "0"]
    assert dispatcher.failed.total() == 1  # the filter divides by zero once


def test_batch_handler_that_fails_is_isolated(dispatch: Dispatch) -> None:
    """What `handle_batch` raises counts for each record of the batch, and costs no other handler anything."""
    bad, good = Batches(fails=True), Batches()
    dispatcher = dispatch(bad, good)
    dispatcher.handle([record(str(number)) for number in range(3)])
    assert good.batches == [["0", "1", "2"]]
    assert dispatcher.failed.total() == 3


def _tag(name: str) -> Callable[[logging.LogRecord], bool]:
    def tag(record: logging.LogRecord) -> bool:
        record.msg = f"{record.msg} {name}"
        return True

    return tag


@pytest.mark.parametrize("way", ["text", "plain handler", "filters", "stdlib handlers"])
def test_same_files_as_in_one_process(root: logging.Logger, tmp_path: Path, way: str) -> None:
    """Handlers on several loggers write, byte for byte, what they write in one process, whatever handlers are there."""
    places = [
        ("", logging.NOTSET, "%(asctime)s %(levelname)-8s %(name)s %(message)s"),
        ("", logging.ERROR, "%(message)s"),
        ("a", logging.INFO, "%(name)s:%(lineno)d %(message)s"),
        ("a.b", logging.WARNING, "%(created)f %(message)s %(process)d"),
        ("c", logging.NOTSET, "%(message)s"),
        ("c.d", logging.NOTSET, "%(levelno)s %(message)s"),
    ]
    logging.getLogger("c").propagate = False
    names = ["a.b", "c", "a", "other", "c.d.e", "a.b.x", "root"]
    levels = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, 35]
    sent = [
        logging.LogRecord(names[number % 7], levels[number % 5], "f.py", number, f"{number} ü\n%s", None, None)
        for number in range(100)
    ]

    def attach(make: Callable[[Path], logging.Handler], directory: str) -> list[logging.Handler]:
        (tmp_path / directory).mkdir()
        handlers = []
        for index, (name, level, format) in enumerate(places):
            handler = make(tmp_path / directory / str(index))
            handler.setLevel(level)
            handler.setFormatter(logging.Formatter(format))
            if way == "filters":
                handler.addFilter(_tag(str(index)))
            logging.getLogger(name).addHandler(handler)
            handlers.append(handler)
        return handlers

    def ours(path: Path) -> logging.Handler:
        if way == "stdlib handlers":
            return logging.FileHandler(path, encoding="utf-8")
        return LogFileHandler(os.fspath(path), FileOptions())

    def detach(handlers: list[logging.Handler]) -> None:
        for (name, _, _), handler in zip(places, handlers):
            logging.getLogger(name).removeHandler(handler)
            handler.close()

    batch = [decode_entry(encode(one)) for one in sent]
    stdlib = attach(lambda path: logging.FileHandler(path, encoding="utf-8"), "stdlib")
    for one in sent:
        logging.getLogger(one.name if one.name != "root" else None).callHandlers(one)
    detach(stdlib)
    handlers = attach(ours, "mplog")
    if way == "plain handler":
        root.addHandler(Memory())
    dispatcher = Dispatcher(handlers)
    assert [type(handler.formatter) for handler in handlers] == [
        DatedFormatter if way == "stdlib handlers" else logging.Formatter
    ] * len(places)
    for start, end in ((0, 1), (1, 40), (40, 100)):
        dispatcher.handle(batch[start:end])
    detach(handlers)
    assert not dispatcher.failed
    for index in range(len(places)):
        written = (tmp_path / "mplog" / str(index)).read_bytes()
        assert written == (tmp_path / "stdlib" / str(index)).read_bytes()
        assert written


@pytest.mark.parametrize("plain", [False, True], ids=["text", "plain handler"])
def test_record_that_does_not_decode_costs_itself_only(
    dispatch: Dispatch, file_handler: LogFileHandler, tmp_path: Path, plain: bool
) -> None:
    """Garbage in the part of a record that is decoded late costs no other record of its batch."""
    file_handler.setFormatter(logging.Formatter("%(relativeCreated)s %(message)s"))
    dispatcher = dispatch(file_handler, *([Memory()] if plain else []))
    values, origin = record("broken")
    broken = ((*values[:REST], msgspec.Raw(b"\xc1"), values[-1]), origin)
    dispatcher.handle([record("1"), broken, record("2")])
    assert [line.split()[1] for line in lines(tmp_path / "app.log")] == ["1", "2"]
    assert dispatcher.troubles.has_unsaid
    dispatcher.troubles.report()
    assert lines(tmp_path / "app.log")[2].split()[1] == "mplog:"


# --- handlers that misbehave ---


@pytest.mark.parametrize("position", [0, 1], ids=["before", "after"])
@pytest.mark.parametrize("what", ["raise", "handleError", "exit", "interrupt", "recurse"])
def test_bad_handler_is_isolated_and_reported(
    dispatch: Dispatch, what: str, position: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler that fails harms no other one. Its failures are counted, and said once an interval."""
    good, bad, clock = Memory(), BadHandler(what), Clock()
    dispatcher = dispatch(*((bad, good) if position == 0 else (good, bad)), clock=clock)
    for number in range(5):
        dispatcher.handle([record(str(number))])
        dispatcher.troubles.report()
    assert [message for message in good.messages if "mplog" not in message] == ["0", "1", "2", "3", "4"]
    said = [message for message in good.messages if "mplog" in message]
    assert len(said) == 1 and said[0].startswith(f"mplog: 1 record could not be written by <BadHandler {what}>: ")
    assert dispatcher.failed == {f"<BadHandler {what}>": 5}
    assert dispatcher.troubles.has_unsaid
    clock.now += REPORT_INTERVAL
    dispatcher.troubles.report()
    dispatcher.troubles.report()
    assert good.messages[-1].startswith("mplog: 4 records could not be written by")
    assert len(good.messages) == 7 and not dispatcher.troubles.has_unsaid
    assert capsys.readouterr() == ("", "")


@pytest.mark.processes
def test_handler_that_logs_itself_is_isolated(tmp_path: Path) -> None:
    """A handler that logs with each record it gets recurses, as in one process; the other handlers lose nothing."""
    sinks = [mplog.FileSink(tmp_path / "app.log", format="%(message)s"), mplog.HandlerSink(lambda: BadHandler("log"))]
    with mplog.LogServer(*sinks, level="INFO") as server:
        for number in range(5):
            logging.info("%d", number)
    written = lines(tmp_path / "app.log")
    assert [line for line in written if line.isdigit()] == ["0", "1", "2", "3", "4"]
    assert any("could not be written" in line and "RecursionError" in line for line in written)
    assert server.stats().received == 5
    assert max(server.stats().failed.values()) == 5


def test_trouble_that_nobody_can_write_goes_to_stderr(dispatch: Dispatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If all handlers fail, the report goes to stderr, and its failure is not reported."""
    dispatcher = dispatch(BadHandler("raise"), BadHandler("handleError"))
    dispatcher.handle([record()])
    dispatcher.troubles.report()
    dispatcher.close()
    assert capsys.readouterr().err.splitlines() == [
        f"mplog: 1 record could not be written by <BadHandler {what}>: ZeroDivisionError: as planned"
        for what in ("raise", "handleError")
    ]
    assert dispatcher.failed.total() == 2


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_stderr_that_nobody_reads_does_no_harm(
    dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """If the report cannot be written to stderr either, everything goes on."""

    class Closed:
        def write(self, text: str) -> int:
            raise error

        def flush(self) -> None:
            raise error

    dispatcher = dispatch(BadHandler("raise"))
    monkeypatch.setattr("sys.stderr", Closed())
    dispatcher.handle([record()])
    dispatcher.troubles.report()
    dispatcher.close()
    assert dispatcher.failed.total() == 1


@pytest.mark.parametrize("where", ["class", "handler"])
def test_handler_that_overrides_handle_error_is_asked_too(dispatch: Dispatch, where: str) -> None:
    """A handler's own handleError still runs; its failures are counted all the same."""
    seen: list[logging.LogRecord] = []

    class Own(BadHandler):
        def handleError(self, record: logging.LogRecord) -> None:
            seen.append(record)

    handler = Own("handleError") if where == "class" else BadHandler("handleError")
    if where == "handler":
        handler.handleError = seen.append  # type: ignore[method-assign]
    dispatcher = dispatch(handler)
    dispatcher.handle([record()])
    assert len(seen) == 1 and dispatcher.failed.total() == 1


def test_bad_repr_of_a_handler_does_no_harm(dispatch: Dispatch) -> None:
    """A handler whose repr() fails is named by its class."""

    class Nameless(BadHandler):
        def __repr__(self) -> str:
            raise RuntimeError

    dispatcher = dispatch(Nameless("raise"))
    dispatcher.handle([record()])
    assert dispatcher.failed == {"Nameless": 1}


@pytest.mark.parametrize("what", ["flush", "close"])
def test_close_closes_every_handler(dispatch: Dispatch, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A handler that fails at the end is reported, and the others are closed."""
    closed: list[int] = []

    class Closing(Memory):
        def close(self) -> None:
            closed.append(1)
            super().close()

    def fail() -> None:
        raise OSError("as planned")

    bad = Memory()
    setattr(bad, what, fail)
    dispatcher = dispatch(bad, Closing())
    dispatcher.close()
    assert closed == [1]
    assert "as planned" in capsys.readouterr().err
    delattr(bad, what)


@pytest.mark.processes
@pytest.mark.parametrize("what", ["raise", "exit", "interrupt"])
def test_bad_formatter_or_filter_is_isolated(tmp_path: Path, what: str) -> None:
    """A formatter or filter that raises, or wants to end the process, costs its own sink the record, nobody else."""

    def bad(record: logging.LogRecord) -> Any:
        if record.getMessage() == "bad":
            raise {"raise": ValueError, "exit": SystemExit, "interrupt": KeyboardInterrupt}[what]("as planned")
        return True

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            bad(record)
            return super().format(record)

    sinks = [
        mplog.FileSink(tmp_path / "format", format=Formatter("%(message)s")),
        mplog.FileSink(tmp_path / "filter", filters=[bad]),
        mplog.FileSink(tmp_path / "all"),
    ]
    with mplog.LogServer(*sinks, level="INFO", format="%(message)s") as server:
        for message in ("good", "bad", "good"):
            logging.info(message)
    assert list(server.stats().failed.values()) == [1, 1]
    for name in ("format", "filter", "all"):
        written = lines(tmp_path / name)
        expected = ["good", "bad", "good"] if name == "all" else ["good", "good"]
        assert [line for line in written if "mplog" not in line] == expected
        assert sum("could not be written" in line for line in written) == 2


@pytest.mark.processes
def test_blocked_sink_does_not_stop_the_workers(tmp_path: Path) -> None:
    """While one sink blocks, workers log on as long as the queue has room, and all is written afterwards."""
    gate = Gate(tmp_path / "gate")
    log, slow = tmp_path / "app.log", tmp_path / "slow.log"
    sinks = [log, mplog.HandlerSink(lambda: BlockedHandler(gate, slow))]
    with mplog.LogServer(*sinks, level="INFO", format="%(message)s") as server:
        logging.info("0")
        gate.wait_until_reached()
        for number in range(1, 2000):
            logging.info("%d", number)
        gate.open()
        server.stop()
    os.close(gate.fd)
    assert lines(log) == lines(slow) == [str(number) for number in range(2000)]


# --- files that cannot be written ---


@pytest.fixture
def file_handler(tmp_path: Path) -> Iterator[LogFileHandler]:
    """The handler of a FileSink, as it is in the logging process."""
    handler = LogFileHandler(os.fspath(tmp_path / "app.log"), FileOptions())
    handler.setFormatter(logging.Formatter("%(message)s"))
    yield handler
    handler.close()


def test_short_writes_tear_nothing(
    dispatch: Dispatch, file_handler: LogFileHandler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system writes only a few bytes, the rest follows."""
    dispatcher = dispatch(file_handler)
    write, sizes = os.write, itertools.cycle([1, 7, 100])
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[: next(sizes)])))
    dispatcher.handle([record(f"number {number} ü") for number in range(100)])
    assert lines(tmp_path / "app.log") == [f"number {number} ü" for number in range(100)]
    assert not dispatcher.failed


@pytest.mark.parametrize("room", [0, 1, 7, 8, 9, 15, 16, 17, 79])
def test_full_disk_tears_nothing(
    dispatch: Dispatch, file_handler: LogFileHandler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """A disk with room for some bytes gets whole records; the others are counted. With room again, writing goes on."""
    dispatcher = dispatch(file_handler)
    write, left = os.write, [room]

    def bounded(fd: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        size = min(left[0], len(data))
        left[0] -= size
        return write(fd, bytes(data[:size]))

    monkeypatch.setattr(os, "write", bounded)
    dispatcher.handle([record(f"numbr {number}") for number in range(10)])  # 8 bytes with the end of the line
    monkeypatch.undo()
    assert lines(tmp_path / "app.log") == [f"numbr {number}" for number in range(room // 8)]
    assert dispatcher.failed.total() == 10 - room // 8
    dispatcher.handle([record("afterwards")])
    dispatcher.troubles.report()
    assert lines(tmp_path / "app.log")[room // 8] == "afterwards"
    assert "No space left on device" in lines(tmp_path / "app.log")[-1]


@pytest.mark.processes
def test_file_size_limit_tears_nothing(tmp_path: Path) -> None:
    """At the limit of the file size of a real process, the file ends with a whole line, and the rest is counted."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The logging process inherits the limit. This one gets its own back before it writes anything.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        server = mplog.LogServer(tmp_path / "app.log", level="INFO", format="%(message)s").start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for number in range(3000):
        logging.info("%019d", number)
    stats = server.stop()
    data = (tmp_path / "app.log").read_bytes()
    assert data == b"".join(b"%019d\n" % number for number in range(2500))
    assert sum(stats.failed.values()) == 500


@pytest.mark.processes
def test_reports_come_while_nobody_logs(tmp_path: Path) -> None:
    """The log soon says what could not be written, though no further record arrives."""
    sinks = [mplog.FileSink(tmp_path / "app.log"), mplog.HandlerSink(lambda: BadHandler("raise"))]
    with mplog.LogServer(*sinks, level="INFO", format="%(message)s"):
        logging.info("x")
        wait_until(lambda: "could not be written" in (tmp_path / "app.log").read_text(), "the trouble is said", 5)
