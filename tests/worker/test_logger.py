"""`mplog.Logger` does what a ``logging.Logger`` does, only faster."""

from __future__ import annotations

import contextlib
import enum
import logging
import multiprocessing
import os
import pickle
import queue as queues
import signal
import subprocess
import sys
import threading
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sent import Rewriting, Sent, Talking

import mplog
import mplog.worker.logger
from mplog.record.layout import DETAILS


class Angry:
    """Its str() and repr() raise."""

    def __str__(self) -> str:
        raise ValueError("angry")

    __repr__ = __str__


class Leaving:
    """Its str() wants to end the program."""

    def __str__(self) -> str:
        sys.exit(3)

    def __repr__(self) -> str:
        return "<Leaving>"


class TalkingAngry:
    """Its str() logs, and then raises."""

    def __str__(self) -> str:
        logging.getLogger("base.tested.logger").info("inner")
        raise ValueError("angry")

    def __repr__(self) -> str:
        return "<TalkingAngry>"


class Text(str):
    """A str of a class of its own."""

    def __str__(self) -> str:
        return "changed " + super().__str__()


class Level(enum.IntEnum):
    """Levels that a program may have."""

    ODD = 33
    INFO = 20


# --- what a call may look like ---

STRAIGHT: dict[str, Callable[[Any], object]] = {
    "debug": lambda log: log.debug("text"),
    "info": lambda log: log.info("a %s b %d", "x", 3),
    "warning": lambda log: log.warning("%(a)s", {"a": 1}),
    "error": lambda log: log.error("100 %"),
    "critical": lambda log: log.critical("%s", ("a", "b")),
    "log": lambda log: log.log(33, "custom level"),
    "log named": lambda log: log.log(logging.INFO, "named level"),
    "direct": lambda log: log._log(20, "direct", ()),
    "empty dict": lambda log: log.info("%s", {}),
    "two dicts": lambda log: log.info("%s %s", {1: 2}, {3: 4}),
    "mapping": lambda log: log.info("%(k)s", UserDict(k="v")),
    "none": lambda log: log.info("%s", None),
    "list": lambda log: log.info("%s", [1, 2]),
    "bytes": lambda log: log.info("%s %r", b"a", b"b"),
    "too few": lambda log: log.info("%s %s", 1),
    "too many": lambda log: log.info("%s", 1, 2),
    "no place": lambda log: log.info("text", 1),
    "wrong type": lambda log: log.info("%d", "x"),
    "missing key": lambda log: log.info("%(b)s", {"a": 1}),
    "msg of None": lambda log: log.info(None),
    "msg of int": lambda log: log.info(7),
    "msg of object with args": lambda log: log.info(Text("%s"), 1),
    "msg of exception": lambda log: log.info(ValueError("x")),
    "angry arg": lambda log: log.info("%s", Angry()),
    "angry msg": lambda log: log.info(Angry()),
    "leaving": lambda log: log.info("%s", Leaving()),
    "talking": lambda log: log.info("outer %s", Talking()),
    "talking and angry": lambda log: log.info("outer %s", TalkingAngry()),
    "text arg": lambda log: log.info("%s", Text("x")),
    "unicode": lambda log: log.info("ñ \U0001f600 \0 \n"),
    "long": lambda log: log.info("x" * 100_000),
    "longer": lambda log: log.info("%s", "é" * 300_000),
    "empty": lambda log: log.info(""),
    "spelt out": lambda log: log.info("x", exc_info=None, extra=None, stack_info=False, stacklevel=1),
    "two on a line": lambda log: (log.info("one"), log.info("two"), log.error("three")),
    "comprehension": lambda log: [log.info("%d", i) for i in range(3)],
    "generator": lambda log: list(log.info("%d", i) for i in range(3)),  # noqa: C400
    "by name": lambda log: getattr(log, "info")("x"),  # noqa: B009
    "map": lambda log: list(map(log.info, ["a", "b"])),
    "executed": lambda log: exec(compile("\n\nlog.info('x')", "/nowhere/made.up.py", "exec"), {"log": log}),
    "executed in a function": lambda log: exec("def f():\n  log.info('x')\nf()", {"log": log}),
    "evaluated": lambda log: eval("log.info('x')", {"log": log}),
    "no level": lambda log: log.log("INFO", "a level that is no number"),
}

OTHERS: dict[str, Callable[[Any], object]] = {
    "exception": lambda log: log.exception("outside"),
    "fatal": lambda log: log.fatal("x"),
    "adapter": lambda log: logging.LoggerAdapter(log, {"a": 1}).info("x %s", 1),
    "adapter without": lambda log: logging.LoggerAdapter(log, None).info("outer %s", Talking()),
    "two adapters": lambda log: logging.LoggerAdapter(logging.LoggerAdapter(log, {"a": 1}), {"b": 1}).error("x"),
    "extra": lambda log: log.info("x", extra={"user": "me", "n": 3, "when": None}),
    "empty extra": lambda log: log.info("x", extra={}),
    "reserved extra": lambda log: log.info("x", extra={"name": 1}),
    "message in extra": lambda log: log.info("x", extra={"message": 1}),
    "exc_info outside": lambda log: log.info("x", exc_info=True),
    "exc_info false": lambda log: log.info("x", exc_info=False),
    "exc_info exception": lambda log: log.info("x", exc_info=ValueError("v")),
    "exc_info tuple": lambda log: log.info("x", exc_info=(ValueError, ValueError("v"), None)),
    "stack": lambda log: log.info("x", stack_info=True),
    "surrogate": lambda log: log.info("outer \ud800 %s", Talking()),
    "enum level": lambda log: (log.log(Level.ODD, "x"), log.log(33, "x"), log.log(Level.INFO, "x")),
    "bool level": lambda log: [log.log(level, "x") for level in (True, 1, True)],
}


@pytest.mark.parametrize("name", STRAIGHT)
def test_a_call_sends_what_it_sends_with_the_stdlib(sent: Sent, name: str) -> None:
    """Each attribute is the same as with the stdlib, and no LogRecord was made."""
    records = sent.as_stdlib(STRAIGHT[name])
    if name == "no level":
        assert records == [] and sent.straight == 0
    else:
        assert records
        assert sent.straight == 2 * len(records)


@pytest.mark.parametrize("name", OTHERS)
def test_a_call_that_is_not_ordinary_sends_what_it_sends_with_the_stdlib(sent: Sent, name: str) -> None:
    """Exceptions, stacks, extra, adapters and odd values take the stdlib's way, and nothing is done twice."""
    sent.as_stdlib(OTHERS[name])


def test_warn_is_deprecated_as_in_the_stdlib(sent: Sent) -> None:
    """warn() warns, in Pythons that have it, and logs."""

    def call(log: Any) -> None:
        if hasattr(log, "warn"):
            with pytest.warns(DeprecationWarning):
                log.warn("x %s", 1)

    sent.as_stdlib(call)


def test_an_exception_is_logged_as_with_the_stdlib(sent: Sent) -> None:
    """Text, type and frames of an exception are the same."""

    def call(log: logging.Logger) -> None:
        try:
            {}["missing"]
        except KeyError:
            log.exception("a %s", "b")
            log.error("c", exc_info=True)
            log.error("d", exc_info=1)
            log.exception("e", exc_info=False)
            log.exception("f", exc_info=None)

    records = sent.as_stdlib(call)
    assert [record["exc_type"] for record in records] == ["KeyError"] * 3 + [None] * 2


def wrapped(log: logging.Logger, depth: int, **options: Any) -> None:
    """Call log.info() below `depth` wrappers."""
    if depth:
        wrapped(log, depth - 1, **options)
    else:
        log.info("x", **options)


@pytest.mark.parametrize("stack_info", [False, True])
@pytest.mark.parametrize("stacklevel", [1, 2, 3, 4, 1000])
def test_stacklevel_names_the_same_caller(sent: Sent, stacklevel: int, stack_info: bool) -> None:
    """stacklevel skips wrappers as in the stdlib, and ends at the same frame."""

    def outer(log: logging.Logger) -> None:
        wrapped(log, 2, stacklevel=stacklevel, stack_info=stack_info)

    (record,) = sent.as_stdlib(outer)
    if stacklevel < 1000:
        assert record["funcName"] == ["wrapped", "wrapped", "wrapped", "outer"][stacklevel - 1]


def test_a_method_for_a_level_names_the_same_caller(sent: Sent) -> None:
    """A program that calls _log() itself gets the caller that this Python's stdlib finds, with and without an extra."""

    def trace(log: Any, **options: Any) -> None:
        if log.isEnabledFor(5):
            log._log(5, "x", (), **options)

    def call(log: logging.Logger) -> None:
        trace(log)
        trace(log, extra={"a": 1})
        trace(log, stacklevel=2)

    names = [record["funcName"] for record in sent.as_stdlib(call)]
    assert names[0] == ("trace" if sys.version_info >= (3, 11) else "call")


@pytest.mark.parametrize("name", STRAIGHT)
def test_a_call_sends_no_details_where_nobody_looks_at_them(sent: Sent, name: str) -> None:
    """If no sink looks at thread and place of a call, these alone are left out."""

    def send(details: bool) -> list[dict[str, Any]]:
        sent.queue.details = details
        with contextlib.suppress(TypeError):  # of a level that is no number
            STRAIGHT[name](sent.logger)
        return sent.records()

    complete, short = send(True), send(False)
    assert len(complete) == len(short)
    for with_details, without in zip(complete, short):
        assert all(without.pop(attribute, None) is None for attribute in DETAILS)
        assert without == {key: value for key, value in with_details.items() if key not in DETAILS}


def test_the_place_of_a_call_is_right(sent: Sent) -> None:
    """File, module, line and function are those of the call."""
    sent.logger.info("x")
    (record,) = sent.records()
    line = sys._getframe().f_lineno - 2
    assert sent.straight == 1
    assert (record["pathname"], record["filename"], record["module"]) == (__file__, "test_logger.py", "test_logger")
    assert (record["lineno"], record["funcName"]) == (line, "test_the_place_of_a_call_is_right")


def test_code_made_at_run_time_is_told_apart(sent: Sent) -> None:
    """Code that is made at the address of freed code is not taken for it."""
    for number in range(300):
        exec(compile("\n" * number + "log.info('x')", f"/made/{number}.py", "exec"), {"log": sent.logger})
        (record,) = sent.records()
        assert (record["lineno"], record["filename"]) == (number + 1, f"{number}.py")
    assert sent.straight == 300


def test_places_kept_ready_are_limited(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logger keeps a limited number of places."""
    monkeypatch.setattr(mplog.worker.logger, "KEPT", 50)
    mplog.worker.logger.forget()
    for number in range(200):
        exec(compile("log.info('x')", f"/made/{number}.py", "exec"), {"log": sent.logger})
        assert len(mplog.worker.logger.here.places) <= 50
    assert [record["filename"] for record in sent.records()] == [f"{number}.py" for number in range(200)]


# --- fields ---


def test_fields_are_extra_attributes(sent: Sent) -> None:
    """Keywords arrive as attributes that keep their type; a name that a record has already gets an underscore."""
    log: Any = sent.logger
    for _ in range(2):
        log.info("trade", symbol="X", qty=3, price=1.5, tags=["a", {"b": (1, 2)}], name="n", process=1, taskName="t")
        log.info("both %s", 1, extra={"symbol": "no", "other": 1}, symbol="X")
        log.error("error", exc_info=ValueError("v"), symbol="X", asctime="now", message="m")
    records = sent.records()
    assert sent.straight == 2
    for trade, both, error in (records[:3], records[3:]):
        fields = {"symbol": "X", "qty": 3, "price": 1.5, "tags": ["a", {"b": (1, 2)}]}
        assert fields.items() <= trade.items()
        assert (trade["name_"], trade["process_"], trade["taskName_"]) == ("n", 1, "t")
        assert (trade["name"], trade["process"]) == ("base.tested.logger", os.getpid())
        assert (both["msg"], both["symbol"], both["other"]) == ("both 1", "X", 1)
        assert (error["symbol"], error["asctime_"], error["message_"]) == ("X", "now", "m")
        assert error["exc_type"] == "ValueError"


def test_fields_arrive_alike_on_both_ways(sent: Sent) -> None:
    """A record with fields is the same whether it was encoded straight from the call or made as a LogRecord."""
    log: Any = sent.logger
    for filters in ([], [Rewriting()]):
        log.filters = filters
        log.info("x", a=Angry(), b=Text("t"), c=2**70, d={1, 2}, e="\udc80", f=None, msecs=4, lineno="x")
    plain, made = sent.records()
    assert made.pop("seen")
    assert sent.straight == 0 or sent.straight == 1
    assert plain | {"lineno": 0} == made | {"lineno": 0}


def test_an_adapter_passes_fields_on(sent: Sent) -> None:
    """A LoggerAdapter whose process() keeps keywords gives them to the logger."""

    class Keeping(logging.LoggerAdapter):  # type: ignore[type-arg]
        def process(self, msg: Any, kwargs: Any) -> Any:
            return msg, kwargs

    Keeping(sent.logger, {}).info("x", qty=3)
    assert [record["qty"] for record in sent.records()] == [3]


# --- sending ---


def test_a_full_queue_holds_the_call_up(sent: Sent) -> None:
    """A call waits while the queue is full, and nothing is lost."""
    count = 0
    while not sent.queue.full():
        sent.logger.info("x" * 2_000)
        count += 1
    returned = threading.Event()

    def call() -> None:
        for _ in range(20):
            sent.logger.info("y" * 2_000)
        returned.set()

    thread = threading.Thread(target=call)
    thread.start()
    assert not returned.wait(0.1)
    found = [sent.queue.get(timeout=10).msg[0] for _ in range(count + 20)]
    assert returned.wait(30)
    thread.join(30)
    assert found == ["x"] * count + ["y"] * 20
    with pytest.raises(queues.Empty):
        sent.queue.get_nowait()


def test_without_a_reader_warnings_go_to_stderr(sent: Sent, capsys: pytest.CaptureFixture[str]) -> None:
    """After the end of the logging process, a call does the same as with the stdlib's logger."""
    sent.logger.info("before")
    sent.records()
    os.close(sent.queue.release_reader())
    sent.queue.remove()
    sent.logger.info("quiet")
    sent.logger.warning("%s loud", 100)
    assert sent.straight == 3
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("mplog: ")
    assert rest == ["100 loud"]


def test_a_failure_to_send_is_reported_and_not_repeated(sent: Sent, capsys: pytest.CaptureFixture[str]) -> None:
    """An error after the sending, as of a signal handler, does not send the record again."""
    send = sent.handler.send_encoded

    def failing(payload: bytes) -> None:
        send(payload)
        raise ValueError("from a signal handler")

    sent.handler.send_encoded = failing
    sent.logger.info("once %d", 1)
    assert [record["msg"] for record in sent.records()] == ["once 1"]
    err = capsys.readouterr().err
    assert "--- Logging error ---" in err and "from a signal handler" in err


def test_exit_in_a_signal_handler_ends_the_program(sent: Sent) -> None:
    """sys.exit() in a signal handler during formatting is not taken for an error of the arguments."""

    class Signalled:
        def __str__(self) -> str:
            os.kill(os.getpid(), signal.SIGUSR1)
            return "x"

    def leave(*_: object) -> None:
        sys.exit(5)

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        with pytest.raises(SystemExit):
            sent.logger.info("%s", Signalled())
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_plain_queue_gets_the_bytes() -> None:
    """A QueueHandler on a queue of multiprocessing puts the same encoded records."""
    plain: Any = multiprocessing.Queue()
    logger = mplog.getLogger("tested.plain")
    logger.addHandler(mplog.QueueHandler(plain))
    logger.propagate = False
    logger.error("x %d", 1)
    assert mplog.record.decoding.decode(plain.get(timeout=10)).msg == "x 1"
    plain.close()
    plain.join_thread()


# --- how loggers become Loggers ---


def test_get_logger_upgrades_a_logger() -> None:
    """A stdlib logger becomes a Logger and stays the same object; the root and other classes stay what they are."""
    logger = logging.getLogger("tested.upgraded")
    assert mplog.getLogger("tested.upgraded") is logger
    assert type(logger) is mplog.Logger
    assert mplog.getLogger() is logging.getLogger()
    assert type(mplog.getLogger()) is logging.RootLogger

    class Own(logging.Logger):
        pass

    own = logging.getLogger("tested.own")
    own.__class__ = Own
    assert mplog.getLogger("tested.own") is own
    assert type(own) is Own


def test_a_logger_pickles_as_itself() -> None:
    """A pickled Logger is the same logger, and where it arrives in another process, it takes fields."""
    logger = mplog.getLogger("tested.pickled")
    assert pickle.loads(pickle.dumps(logger)) is logger
    logger.__class__ = mplog.Logger
    data = pickle.dumps(logger)
    logger.__class__ = logging.Logger
    assert type(pickle.loads(data)) is mplog.Logger
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(mplog.Logger("tested.pickled"))


def kinds() -> list[str]:
    """Return the classes of two loggers, one that was there before and one that was not."""
    names = ("tested.before", "tested.new")
    return [f"{type(logging.getLogger(name)).__module__}" for name in names] + [type(logging.getLogger()).__name__]


def test_a_server_upgrades_the_loggers_of_all_processes(stdlib_context: Any, log: Path) -> None:
    """With logger_class=mplog.Logger, this process's loggers and the workers' are Loggers, until the server stops."""
    before, asked_for = logging.getLogger("tested.before"), mplog.getLogger("tested.asked.for")
    with mplog.LogServer(log, logger_class=mplog.Logger) as server:
        assert kinds() == ["mplog.worker.logger", "mplog.worker.logger", "RootLogger"]
        logging.Logger.manager.loggerDict.pop("tested.new")
        with stdlib_context.Pool(1, initializer=server.initializer) as pool:
            assert pool.apply(kinds) == ["mplog.worker.logger", "mplog.worker.logger", "RootLogger"]
            pool.close()
            pool.join()
    assert type(before) is logging.Logger
    assert type(asked_for) is mplog.Logger
    assert logging.getLoggerClass() is logging.Logger


# --- random calls ---

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from([Angry(), Text("t"), Talking(), TalkingAngry(), UserDict(a=1), Level.INFO]),
)
messages = st.one_of(
    st.sampled_from(["%s", "%s %s", "%d", "%(a)s", "%r", "x", "%", "%%", "\ud800", ""]), st.text(max_size=10), values
)
options = st.fixed_dictionaries(
    {},
    optional={
        "exc_info": st.sampled_from([None, True, False, ValueError("v")]),
        "stack_info": st.booleans(),
        "stacklevel": st.integers(1, 4),
        "extra": st.none() | st.dictionaries(st.sampled_from(["a", "b", "name"]), values, max_size=2),
    },
)
levels = st.one_of(st.sampled_from([10, 20, 30, 40, 50, Level.ODD, True]), st.integers(0, 60))


@given(st.lists(st.tuples(levels, messages, st.lists(values, max_size=3), options | st.just({})), max_size=5))
@settings(max_examples=150)
def test_any_calls_send_what_they_send_with_the_stdlib(sent: Sent, calls: list[Any]) -> None:
    """Whatever is logged, at whatever level and with whatever options, arrives as from a logging.Logger."""

    def call(log: logging.Logger) -> None:
        for level, msg, args, keywords in calls:
            try:
                log.log(level, msg, *args, **keywords)
            except KeyError:
                log.info("refused")

    sent.as_stdlib(call)


# --- CPython's own tests ---

#: What of CPython's tests is not run with it, and why.
NOT_RUN = {
    "MiscTestCase.test__all__": "it expects all of logging's names to be of that module, and Logger is not",
}


@pytest.mark.processes
@pytest.mark.parametrize("part", range(3))
def test_the_tests_of_cpython_pass(tmp_path: Path, part: int) -> None:
    """CPython's test_logging passes with Logger in the place of logging.Logger, and records made by make_record."""
    script = tmp_path / "cpython.py"
    script.write_text(CPYTHON_TESTS.format(not_run=sorted(NOT_RUN), part=part), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(mplog.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this Python comes without its tests")
    assert done.returncode == 0, done.stderr[-5000:]
    assert "OK" in done.stderr


CPYTHON_TESTS = """
import logging, sys, unittest

import mplog.worker.logger, mplog.record.factory

try:
    from test import test_logging
except ImportError:
    sys.exit(77)

# In the place of the stdlib's for what the tests make themselves, and the class of all that getLogger() makes.
stdlib = logging.Logger
logging.setLoggerClass(mplog.worker.logger.Logger)
logging.Logger.manager.loggerClass = None
logging._loggerClass = logging.Logger = mplog.worker.logger.Logger
logging.setLogRecordFactory(mplog.record.factory.make_record)
made = mplog.worker.logger.Logger._log
used = []

def counting(self, *args, **kwargs):
    used.append(self.name)
    return made(self, *args, **kwargs)

NOT_RUN = {not_run}

def tests(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests(test)
        elif test.id().split(".", 2)[-1] not in NOT_RUN:
            yield test

if __name__ == "__main__":
    setup = getattr(test_logging, "setUpModule", None)
    found = unittest.defaultTestLoader.loadTestsFromModule(test_logging)
    suite = list(tests(found))
    assert len(suite) > 150
    # Most of them wait, and so a third of them takes a third of the time.
    result = unittest.TextTestRunner(verbosity=1).run(unittest.TestSuite(suite[{part}::3]))
    assert type(logging.getLogger("made.after.them")) is mplog.worker.logger.Logger
    sys.exit(not result.wasSuccessful())
"""
