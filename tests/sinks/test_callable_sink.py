"""Functions as sinks (promises 4 and 5; faults 4, 5, 17 and 23)."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracle import wait_until
from scripts import lines

import mplog
from mplog.handlers.callable import CallableHandler
from mplog.logging_process.messages import Patience
from mplog.sinks.callable import CallableSink, Retry

pytestmark = pytest.mark.processes

QUICK = Retry(first=0.001, longest=0.01, limit=60)


def noting(path: Path) -> Callable[[list[Any]], object]:
    """Return a function that notes each batch in a line of a file, in one write."""
    name = str(path)

    def note(batch: list[Any]) -> None:
        import json  # it runs elsewhere

        texts = [each if isinstance(each, str) else each.getMessage() for each in batch]
        with open(name, "a") as file:
            file.write(json.dumps(texts) + "\n")

    return note


def batches(path: Path) -> list[list[str]]:
    """Return what `noting` has noted, without what mplog itself says."""
    found = [[text for text in json.loads(line) if not text.startswith("mplog:")] for line in lines(path)]
    return [batch for batch in found if batch]


def messages(path: Path) -> list[str]:
    """Return all messages that `noting` has noted."""
    return [message for batch in batches(path) for message in batch]


# --- in the logging process ---


def test_function_gets_everything_in_batches(tmp_path: Path, context: Any) -> None:
    """Whatever way a worker is started, the function gets all records, in order, in lists of limited length."""
    with mplog.LogServer(CallableSink(noting(tmp_path / "notes"), batch=7), level="INFO") as server:
        worker = context.Process(target=_count, args=(server.initializer, 50))
        worker.start()
        worker.join(60)
        server.flush()
        assert messages(tmp_path / "notes") == [str(number) for number in range(50)]
    assert max(map(len, batches(tmp_path / "notes"))) <= 7


def _count(initializer: Any, numbers: int) -> None:
    initializer()
    for number in range(numbers):
        logging.info("%d", number)


def test_records_have_their_fields_and_texts_their_format(tmp_path: Path) -> None:
    """Without a format the function gets records, extra attributes and traceback included; with one, texts."""
    fields, texts = str(tmp_path / "fields"), tmp_path / "texts"

    def note_fields(records: list[Any]) -> None:
        with open(fields, "a") as file:
            for each in records:
                print(
                    type(each).__mro__[1].__name__, each.levelname, each.job, each.exc_type, each.lineno > 0, file=file
                )

    with mplog.LogServer(
        CallableSink(note_fields), CallableSink(noting(texts), format="%(levelname)s %(message)s"), level="INFO"
    ):
        try:
            raise KeyError("x")
        except KeyError:
            logging.error("failed", exc_info=True, extra={"job": 42})
    assert lines(fields) == ["LogRecord ERROR 42 KeyError True"]
    (text,) = messages(texts)
    assert text.startswith("ERROR failed\nTraceback")


def test_level_filters_and_logger_hold(tmp_path: Path) -> None:
    """It gets what any other sink of its level, filters and logger would get."""
    with mplog.LogServer(
        CallableSink(
            noting(tmp_path / "notes"),
            level="WARNING",
            logger="a",
            filters=[lambda each: "no" not in each.getMessage()],
        ),
        level="INFO",
    ):
        logging.getLogger("a.b").warning("yes")
        logging.getLogger("a.b").info("too low")
        logging.getLogger("a").error("no")
        logging.getLogger("b").error("elsewhere")
    assert messages(tmp_path / "notes") == ["yes"]


def test_failure_is_tried_again_until_it_works(tmp_path: Path) -> None:
    """A batch that fails comes again, complete, and before all later ones; the log says that it is tried."""
    notes, left = tmp_path / "notes", tmp_path / "left"
    left.write_text("5")
    note, left_path = noting(notes), str(left)

    def fails_five_times(batch: list[Any]) -> None:
        with open(left_path) as file:
            count = int(file.read())
        with open(left_path, "w") as file:
            file.write(str(count - 1))
        if count > 0:
            batch.clear()  # its own
            raise SystemExit("not yet") if count == 3 else OSError("not yet")
        note(batch)

    with mplog.LogServer(
        CallableSink(fails_five_times, batch=10, retry=QUICK, logger="app"), tmp_path / "app.log", level="INFO"
    ) as server:
        for number in range(30):
            logging.getLogger("app").info("%d", number)
        stats = server.stop()
    assert messages(notes) == [str(number) for number in range(30)]
    assert stats.failed == {}
    said = " ".join(line for line in lines(tmp_path / "app.log") if "mplog:" in line)
    assert "will be tried again: " in said
    assert "not yet" in said


@pytest.mark.parametrize("retry", [None, Retry(first=0.01, longest=0.01, limit=0.1)], ids=["none", "limited"])
def test_what_is_given_up_is_counted_and_said(tmp_path: Path, retry: Retry | None) -> None:
    """If it goes on failing, each record is in stats().failed, the log says so, and other sinks have it."""

    def fail(batch: list[Any]) -> None:
        raise ValueError("as planned")

    with mplog.LogServer(
        CallableSink(fail, batch=10, retry=retry, logger="app"), tmp_path / "app.log", level="INFO"
    ) as server:
        for number in range(25):
            logging.getLogger("app").info("%d", number)
        wait_until(lambda: sum(server.stats().failed.values()) == 25, "all of it is counted, also without a flush")
        logging.getLogger("app").info("last")
        stats = server.stop()
    assert list(stats.failed.values()) == [26]
    text = (tmp_path / "app.log").read_text()
    assert "could not be written by <CallableHandler" in text
    assert "ValueError: as planned" in text
    assert len([line for line in lines(tmp_path / "app.log") if "mplog:" not in line]) == 26


def test_the_end_waits_for_a_broken_function_once(tmp_path: Path) -> None:
    """What is given up is given up once: the log's own line about it is not tried for as long again."""

    def fail(batch: list[Any]) -> None:
        raise ValueError("as planned")

    retry = Retry(first=0.01, longest=0.01, limit=2)
    server = mplog.LogServer(CallableSink(fail, retry=retry), tmp_path / "app.log", level="INFO").start()
    logging.info("x")
    stats = server.stop()
    assert list(stats.failed.values()) == [1]  # none of the lines
    # Why it takes so long is said meanwhile.
    _, trying, *said = lines(tmp_path / "app.log")
    assert "will be tried again: ValueError: as planned" in trying
    assert len([line for line in said if "1 record could not be written by <CallableHandler" in line]) == 1


def test_failure_of_the_only_sink_is_said_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """The line about a function that fails is not given to that function, but to stderr if there is no other sink."""

    def fail(batch: list[Any]) -> None:
        raise ValueError("as planned")

    with mplog.LogServer(CallableSink(fail, retry=None), level="INFO") as server:
        logging.info("x")
        stats = server.stop()
    (line,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"mplog: 1 record could not be written by <CallableHandler .*>: ValueError: as planned", line)
    assert list(stats.failed.values()) == [1]


def test_slow_function_holds_up_no_other_sink(tmp_path: Path) -> None:
    """While the function does not return, everything else is written; flush() and stop() wait for it."""
    gate, log = tmp_path / "gate", tmp_path / "app.log"
    note, gate_path = noting(tmp_path / "notes"), str(gate)

    def wait(batch: list[Any]) -> None:
        import os
        import time

        while not os.path.exists(gate_path):
            time.sleep(0.01)
        note(batch)

    with mplog.LogServer(CallableSink(wait), log, level="INFO", format="%(message)s") as server:
        for number in range(1000):
            logging.info("%d", number)
        wait_until(lambda: log.exists() and len(lines(log)) == 1000, "the file is written")
        with pytest.raises(mplog.DrainTimeoutError):
            server.flush(0.3)
        assert not (tmp_path / "notes").exists()
        gate.touch()
        server.flush()
        assert messages(tmp_path / "notes") == [str(number) for number in range(1000)]


def test_plain_queue_is_flushed_too(tmp_path: Path) -> None:
    """With a plain queue, too, stop() delivers everything, and flush() what has arrived."""
    plain = multiprocessing.get_context("spawn").Queue(1000)
    with mplog.LogServer(CallableSink(noting(tmp_path / "notes"), timeout=30), level="INFO", queue=plain) as server:
        logging.info("1")
        wait_until(lambda: server.stats().received == 1, "it has arrived")
        server.flush()
        assert messages(tmp_path / "notes") == ["1"]
        logging.info("2")
    assert messages(tmp_path / "notes") == ["1", "2"]


@pytest.mark.parametrize("point", ["", "after write:3", "before commit:6", "after commit:4", "in state:7"])
def test_killed_logging_process_delivers_each_record_at_least_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Wherever it is killed, while batches wait, are open, or are being delivered, no record is missing."""
    if point:
        monkeypatch.setenv("MPLOG_KILL_AT", point)
    note = noting(tmp_path / "notes")

    def slow(batch: list[Any]) -> None:
        import time

        time.sleep(0.002)
        note(batch)

    chance = random.Random(7)
    with mplog.LogServer(CallableSink(slow, batch=20, timeout=0.05), level="INFO") as server:
        first, directory = server.pid, server.queue.directory
        for number in range(3000):
            logging.info("%d", number)
            if point and number % 200 == 0:
                server.flush()  # so that the point is reached: however fast it is, it has that many batches
            elif not point and number % 300 == 0:
                time.sleep(chance.uniform(0, 0.02))  # the moment of the kill, which is to be any
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.pid != first, "it is restarted")
        server.flush()
        # The line about the restart may come after that.
        wait_until(
            lambda: not [name for name in os.listdir(directory) if name.startswith("undelivered")], "all is delivered"
        )
    counts = Counter(messages(tmp_path / "notes"))
    assert counts.keys() == {str(number) for number in range(3000)}
    assert sum(counts.values()) < 6000


def test_what_a_function_logs_is_written(tmp_path: Path) -> None:
    """What the function logs goes to the other sinks at once, though nobody else logs."""
    log = tmp_path / "app.log"

    def talk(batch: list[Any]) -> None:
        logging.getLogger("talk").warning("got %d", len(batch))

    with mplog.LogServer(log, CallableSink(talk), level="INFO", format="%(message)s"):
        logging.info("one")
        wait_until(lambda: lines(log) == ["one", "got 1"], "it is in the file")


def test_stop_does_not_wait_for_a_dead_function_as_long_as_it_runs(tmp_path: Path) -> None:
    """However long batches are tried again otherwise, stop() gives them up after a while, and they are counted."""

    def dead(batch: list[Any]) -> None:
        raise ConnectionError("nobody answers")

    log = tmp_path / "app.log"
    server = mplog.LogServer(CallableSink(dead, batch=1, retry=Retry(at_end=0.5)), log, level="INFO").start()
    for number in range(5):
        logging.info("%d", number)
    stats = server.stop(20)
    assert stats is not None
    assert sum(stats.failed.values()) >= 5
    assert "ConnectionError" in log.read_text()


def test_what_is_lost_to_a_function_that_kills_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """When logging processes are given up because the function kills them, the last words count what it has not got."""
    patience = Patience(at_once=2, first_pause=0.01, longest_pause=0.02, restarts=4, seconds=0.2)
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", patience)

    def kill(batch: list[Any]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    server = mplog.LogServer(CallableSink(kill, logger="app", timeout=30), tmp_path / "app.log", level="INFO").start()
    for number in range(5):
        logging.getLogger("app").info("%d", number)
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    assert re.search("is given up; .*; records lost that waited for a CallableSink: 5", capfd.readouterr().err)


# --- the handler ---


class Collector:
    """A function that can be held up."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[str]] = []

    def __call__(self, batch: list[Any]) -> None:
        self.entered.release()
        assert self.gate.wait(30)
        self.batches.append([each.getMessage() for each in batch])


def handler_of(function: Any, **options: Any) -> CallableHandler:
    """Return a handler in this process."""
    handler = CallableSink(function, **options).open(logging.Formatter())
    assert isinstance(handler, CallableHandler)
    return handler


def record(message: object) -> logging.LogRecord:
    """Return a record."""
    return logging.makeLogRecord({"msg": str(message)})


def test_batch_that_is_not_full_goes_when_its_time_has_come() -> None:
    """A record waits for others as long as the timeout says, and the batch goes at once when it is full."""
    collector = Collector()
    collector.gate.set()
    handler = handler_of(collector, batch=3, timeout=0.2)
    handler.handle_batch([record(number) for number in range(4)])
    wait_until(lambda: collector.batches, "the full batch is delivered")
    assert collector.batches == [["0", "1", "2"]]
    wait_until(lambda: len(collector.batches) == 2, "the other one is")
    handler.close()
    assert collector.batches == [["0", "1", "2"], ["3"]]


def test_threads_deliver_at_the_same_time() -> None:
    """As many batches are being delivered at a time as there are threads."""
    collector = Collector()
    handler = handler_of(collector, batch=1, threads=3)
    handler.handle_batch([record(number) for number in range(5)])
    for _ in range(3):
        assert collector.entered.acquire(timeout=30)
    assert not collector.entered.acquire(timeout=0.05)
    collector.gate.set()
    handler.close()
    assert sorted(collector.batches) == [[str(number)] for number in range(5)]


def test_full_holds_up_or_drops() -> None:
    """When as many records wait as may, one more waits for room, or is dropped and counted."""
    collector = Collector()
    handler = handler_of(collector, batch=2, waiting=4, timeout=0.01)
    done = threading.Event()
    intake = threading.Thread(
        target=lambda: (handler.handle_batch([record(number) for number in range(9)]), done.set()), daemon=True
    )
    intake.start()
    assert collector.entered.acquire(timeout=30)
    assert not done.wait(0.1)
    collector.gate.set()
    assert done.wait(30)
    handler.close()
    assert [each for batch in collector.batches for each in batch] == [str(number) for number in range(9)]
    assert list(handler.take_failures()) == []

    collector = Collector()
    handler = handler_of(collector, batch=2, waiting=4, full="drop")
    handler.handle_batch([record(number) for number in range(9)])
    collector.gate.set()
    handler.close()
    assert [each for batch in collector.batches for each in batch] == ["0", "1", "2", "3"]
    ((error, count),) = handler.take_failures()
    assert (str(error), count) == ("4 records wait for it already", 5)


def test_function_that_logs_does_not_call_itself() -> None:
    """What the function logs is not delivered to it, so it neither goes on for ever nor waits for itself."""
    logger = logging.getLogger("delivery")
    logger.propagate = False
    delivered: list[str] = []

    def log(batch: list[Any]) -> None:
        delivered.extend(each.getMessage() for each in batch)
        logger.warning("delivered %d", len(batch))

    handler = handler_of(log, batch=1, waiting=1)
    logger.addHandler(handler)
    for number in range(3):
        logger.warning("%d", number)
    handler.close()
    assert delivered == ["0", "1", "2"]


def test_record_that_cannot_be_formatted_costs_itself_only() -> None:
    """A formatter that fails for a record costs that record, which is counted once."""
    batches: list[list[str]] = []
    handler = handler_of(batches.append, format="%(job)s")
    handler.handle_batch([logging.makeLogRecord({"job": 1}), record("without"), logging.makeLogRecord({"job": 2})])
    handler.close()
    assert batches == [["1", "2"]]
    ((error, count),) = handler.take_failures()
    assert isinstance(error, ValueError)
    assert count == 1


def test_what_waits_is_taken_up_by_the_next(tmp_path: Path) -> None:
    """Batches that wait, and the one that is open, are in files; the next process delivers what is whole."""
    collector = Collector()
    handler = handler_of(collector, batch=2, timeout=30)
    handler.go_on(str(tmp_path / "x"), lambda: None)
    handler.handle_batch([record(number) for number in range(5)])
    assert len(os.listdir(tmp_path)) == 3
    (last,) = [path for path in tmp_path.iterdir() if path.name == "x-3"]
    last.write_bytes(last.read_bytes() + b"\x40\0\0\0torn")
    delivered: list[list[str]] = []
    after = handler_of(lambda batch: delivered.append([each.getMessage() for each in batch]), batch=2, timeout=30)
    after.go_on(str(tmp_path / "x"), lambda: None)
    after.handle_batch([record("new")])
    after.close()
    assert delivered == [["0", "1"], ["2", "3"], ["4"], ["new"]]
    assert os.listdir(tmp_path) == []
    collector.gate.set()
    handler.close()


def test_file_that_cannot_be_written_costs_no_record(tmp_path: Path) -> None:
    """If records that wait cannot be kept in a file, they are delivered all the same, and the log says so."""
    batches: list[int] = []
    handler = handler_of(lambda batch: batches.append(len(batch)))
    handler.go_on(str(tmp_path / "x"), lambda: None)
    tmp_path.joinpath("x-1").mkdir()
    handler.handle_batch([record(1), record(2)])
    handler.close()
    assert batches == [2]
    assert [type(error) for error in handler.take_retries()] == [IsADirectoryError]


def test_pauses_grow_and_end() -> None:
    """Pauses double up to the longest, vary, and end when the limit would be passed."""
    pauses = []
    for pause in Retry(first=1, longest=8, limit=20).pauses():
        pauses.append(pause)
        if len(pauses) == 6:
            break
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, (1, 2, 4, 8, 8, 8)))
    assert list(Retry(first=1, limit=0.5).pauses()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": 0}, ValueError, "batch and threads must be at least 1"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"waiting": 10}, ValueError, "waiting at least as large as batch"),
        ({"timeout": -1}, ValueError, "timeout 0 or more"),
        ({"full": "explode"}, ValueError, "'block' or 'drop'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """What cannot work raises in the program."""
    with pytest.raises(error, match=message):
        CallableSink(print, **options)
    with pytest.raises(TypeError, match="function that takes a list"):
        CallableSink("print")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 < first"):
        Retry(first=2, longest=1)
