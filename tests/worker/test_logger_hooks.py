"""What may see a record of `mplog.Logger`, or hold it back: levels, filters, handlers, factories, patched methods."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
import typing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from scripts import run_script
from sent import Rewriting, Sent

import mplog
import mplog.worker.logger


def test_levels_hold_back_as_in_the_stdlib(sent: Sent, loggers: None) -> None:
    """setLevel(), logging.disable() and isEnabledFor() with its cache act at once, also between two calls."""

    def call(log: logging.Logger) -> None:
        for level, disable in [(10, 0), (30, 0), (10, 40), (0, 0), (50, 0), (1, 20)]:
            log.setLevel(level)
            logging.disable(disable)
            for number in (5, 10, 20, 30, 40, 50):
                log.log(number, "%s", log.isEnabledFor(number))
        logging.disable(0)
        log.setLevel(0)
        log.disabled = True
        log.error("disabled")
        log._log(40, "disabled, and not asked", ())
        log.disabled = False

    assert "disabled, and not asked" not in [record["msg"] for record in sent.as_stdlib(call)]


@pytest.mark.parametrize("where", ["logger", "handler"])
def test_filters_are_asked(sent: Sent, where: str) -> None:
    """A filter on the logger or the handler sees and changes each record, as soon as it is added."""
    place: Any = sent.logger if where == "logger" else sent.handler

    def call(log: logging.Logger) -> None:
        for step in range(4):
            if step == 1:
                place.addFilter(rewriting)
            if step == 3:
                place.removeFilter(rewriting)
            log.info("x")
            log.debug("x")

    rewriting = Rewriting()
    records = sent.as_stdlib(call)
    assert [record.get("seen", False) for record in records] == [False, False, True, True, False, False]


class Listing(logging.Handler):
    """Keeps the records."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record)


@pytest.mark.parametrize("where", ["base", "base.tested", "base.tested.logger"])
def test_handlers_anywhere_on_the_way_get_the_record(sent: Sent, where: str) -> None:
    """Other handlers get the LogRecord with its msg and args, and the QueueHandler gets the record, too."""
    listing = Listing()

    def call(log: logging.Logger) -> None:
        for step in range(3):
            if step == 1:
                logging.getLogger(where).addHandler(listing)
            if step == 2:
                logging.getLogger(where).removeHandler(listing)
            log.info("a %s", "b")

    assert len(sent.as_stdlib(call)) == 3
    assert len(listing.seen) == 6  # once each time
    assert {(record.msg, record.args) for record in listing.seen} == {("a %s", ("b",))}
    assert {record.funcName for record in listing.seen} == {"call"}


def test_propagate_ends_the_way(sent: Sent) -> None:
    """Handlers above a logger that does not propagate get nothing, and its own do."""

    def call(log: logging.Logger) -> None:
        parent = logging.getLogger("base.tested")
        parent.propagate = False
        log.info("no")
        parent.addHandler(sent.handler)
        log.info("yes")
        parent.removeHandler(sent.handler)
        parent.propagate = True
        log.info("yes again")

    stderr, sys.stderr = sys.stderr, io.StringIO()
    try:
        assert [record["msg"] for record in sent.as_stdlib(call)] == ["yes", "yes again"]
    finally:
        sys.stderr = stderr


def test_the_level_of_the_handler_holds_back(sent: Sent) -> None:
    """A handler's own level is looked at for each record."""

    def call(log: logging.Logger) -> None:
        for level in (0, 30, 40, 0):
            sent.handler.setLevel(level)
            log.info("info")
            log.warning("warning")

    assert len(sent.as_stdlib(call)) == 5


def test_a_handler_taken_off_at_the_same_time_does_no_harm(sent: Sent) -> None:
    """While another thread takes handlers off and puts them back, no call raises."""
    done = threading.Event()

    def change() -> None:
        root = logging.getLogger("base")
        while not done.is_set():
            root.handlers.remove(sent.handler)
            root.handlers.append(sent.handler)

    last_resort, logging.lastResort = logging.lastResort, None
    raise_exceptions, logging.raiseExceptions = logging.raiseExceptions, False
    interval = sys.getswitchinterval()
    thread = threading.Thread(target=change)
    thread.start()
    try:
        sys.setswitchinterval(1e-6)
        for _ in range(2_000):
            sent.logger.info("x")
    finally:
        done.set()
        thread.join(30)
        sys.setswitchinterval(interval)
        logging.lastResort, logging.raiseExceptions = last_resort, raise_exceptions


def test_a_record_factory_makes_the_record(sent: Sent) -> None:
    """A record factory is used as soon as it is set."""
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.made = "by hand"
        return record

    def call(log: logging.Logger) -> None:
        for own in (before, factory, before):
            logging.setLogRecordFactory(own)
            log.info("x")

    assert ["made" in record for record in sent.as_stdlib(call)] == [False, True, False]


@pytest.mark.parametrize("switch", ["logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"])
def test_switches_of_logging_are_obeyed(sent: Sent, monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    """What logging is told not to look up is None."""

    def call(log: logging.Logger) -> None:
        async def main() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.set_name("main")
            for on in (True, False, True):
                monkeypatch.setattr(logging, switch, on, raising=False)
                log.info("x")

        asyncio.run(main())

    assert len(sent.as_stdlib(call)) == 3


METHODS = ["info", "isEnabledFor", "callHandlers", "handle", "makeRecord", "findCaller", "_log", "filter"]


def spying(function: Any, seen: list[str], name: str) -> Any:
    """Return a function that does the same, and notes that it was called."""

    def patched(*args: Any, **kwargs: Any) -> Any:
        seen.append(name)
        return function(*args, **kwargs)

    return patched


@pytest.mark.parametrize("where", ["logging.Logger", "mplog.Logger", "the logger"])
@pytest.mark.parametrize("name", METHODS)
def test_a_patched_method_is_called(sent: Sent, monkeypatch: pytest.MonkeyPatch, where: str, name: str) -> None:
    """A patch of a class or a logger acts at once and until it is undone, also where the program has logged before."""
    seen: list[str] = []
    target: Any = {"logging.Logger": logging.Logger, "mplog.Logger": mplog.Logger, "the logger": sent.logger}[where]
    for step in range(4):
        if step == 1:
            monkeypatch.setattr(target, name, spying(getattr(target, name), seen, name))
        if step == 3:
            monkeypatch.undo()
        sent.logger.info("x")
        assert len(seen) == [0, 1, 2, 2][step]
    assert len(sent.records()) == 4


def test_a_mocked_method_is_called_as_in_the_stdlib(sent: Sent) -> None:
    """A mock in the place of ``Logger.info`` gets what the call has, and no logger."""
    with mock.patch("logging.Logger.info") as mocked:
        sent.logger.info("x %d", 1, stacklevel=2)
    mocked.assert_called_once_with("x %d", 1, stacklevel=2)
    assert sent.records() == []


def test_a_class_in_between_is_called(sent: Sent) -> None:
    """A class after mplog.Logger in the method resolution order is called, too."""
    seen: list[str] = []

    class Mixin(logging.Logger):
        def info(self, msg: object, *args: object, **kwargs: Any) -> None:
            seen.append(str(msg))
            super().info(msg, *args, **kwargs)

    class Both(mplog.Logger, Mixin):
        pass

    sent.logger.__class__ = Both
    sent.logger.info("x")
    assert (seen, [record["msg"] for record in sent.records()]) == (["x"], ["x"])


@pytest.mark.parametrize("name", ["level", "args"])
def test_a_field_called_as_an_argument_of_log_is_refused(sent: Sent, name: str) -> None:
    """Whether the call is sent directly or not."""
    for more in ({}, {"stacklevel": 1}, {"extra": {"a": 1}}):
        with pytest.raises(TypeError, match="multiple values for argument"):
            sent.logger.info("x", **{name: 1}, **more)


def test_no_place_where_logging_looks_for_none(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """``logging._srcfile = None``, by which the stdlib does not look for the place of a call, works here, too."""
    monkeypatch.setattr(logging, "_srcfile", None)
    (record,) = sent.as_stdlib(lambda logger: logger.info("x"))
    assert record["funcName"] == "(unknown function)"


def test_type_hints_of_the_methods(sent: Sent) -> None:
    """Arguments that the message does not use raise no error, as in the stdlib."""
    assert typing.get_type_hints(sent.logger.info) == typing.get_type_hints(logging.Logger.info)


def test_a_patched_method_of_a_logger_without_a_manager_is_called(sent: Sent) -> None:
    """A logger that was made by its class, and not by getLogger(), is watched as closely."""
    logger = mplog.Logger("alone", 1)
    logger.parent = sent.logger
    seen: list[str] = []
    for step in range(2):
        logger.info("x")
        assert len(seen) == step
        logger.handle = spying(logger.handle, seen, "handle")  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["__init__", "getMessage"])
def test_a_patched_log_record_is_used(sent: Sent, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """If a program replaces LogRecord.getMessage, its messages are logged."""
    seen: list[str] = []
    sent.logger.info("x")
    monkeypatch.setattr(logging.LogRecord, name, spying(getattr(logging.LogRecord, name), seen, name))
    sent.logger.info("x")
    assert seen == [name]


@pytest.mark.parametrize("on_class", [True, False])
def test_a_patched_handler_is_called(sent: Sent, monkeypatch: pytest.MonkeyPatch, on_class: bool) -> None:
    """A patch of QueueHandler, or of the handler in use, acts at once."""
    target: Any = mplog.QueueHandler if on_class else sent.handler
    seen: list[str] = []
    for step in range(2):
        if step == 1:
            monkeypatch.setattr(target, "handle", spying(target.handle, seen, "handle"))
        sent.logger.info("x")
        assert len(seen) == step


@pytest.mark.processes
def test_a_patch_that_was_there_before_is_seen(tmp_path: Path) -> None:
    """What a program has patched before it imports mplog.Logger is called, too."""
    done = run_script(
        tmp_path,
        """
        import functools, logging, mplog

        original, seen = logging.Logger.callHandlers, []

        @functools.wraps(original)
        def patched(self, record):
            seen.append(record.getMessage())
            return original(self, record)

        logging.Logger.callHandlers = patched
        queue = mplog.LogQueue()
        logging.getLogger().addHandler(mplog.QueueHandler(queue))
        mplog.getLogger("a").warning("seen %d", 1)
        assert queue.get(timeout=10).msg == "seen 1"
        print(seen)
        """,
    )
    assert (done.stdout, done.stderr) == ("['seen 1']\n", "")


def test_a_subclass_is_what_it_says(sent: Sent) -> None:
    """A subclass's methods are called, and its records are the stdlib's."""

    class Loud(mplog.Logger):
        def makeRecord(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
            record = super().makeRecord(*args, **kwargs)
            record.msg = str(record.msg).upper()
            return record

    sent.logger.__class__ = Loud
    sent.logger.info("loud", size=3)
    (record,) = sent.records()
    assert (record["msg"], record["size"], record["funcName"]) == ("LOUD", 3, "test_a_subclass_is_what_it_says")
