"""`QueueHandler`: a logging call is one write and leaves nothing behind. Faults 15, 16 and 17."""

from __future__ import annotations

import copy
import gc
import logging
import logging.config
import logging.handlers
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
from oracle import Producer, verdict, wait_until
from scripts import stop_all_threads

import mplog

pytestmark = pytest.mark.processes


@pytest.fixture
def handler(server: mplog.LogServer) -> mplog.QueueHandler:
    """A handler on a running server."""
    return mplog.QueueHandler(server.queue)


@pytest.fixture
def logger(handler: mplog.QueueHandler) -> logging.Logger:
    """A logger with nothing but a QueueHandler: pytest's own handlers, on the root logger, raise what goes wrong."""
    logger = logging.Logger("app", logging.DEBUG)
    logger.addHandler(handler)
    return logger


@pytest.fixture
def written(server: mplog.LogServer, log: Path) -> Callable[[], list[str]]:
    """What has been written so far."""

    def written() -> list[str]:
        server.flush()
        return jobs.messages_in(log)

    return written


def run(function: Any, *args: Any, method: str = "fork") -> None:
    """Run a function in a process of its own, whose logging and signals are its own; it must end well, and in time."""
    context = multiprocessing.get_context(method)
    process = context.Process(target=function, args=args)
    process.start()
    process.join(60)
    hangs = process.is_alive()
    process.kill()
    process.join()
    assert not hangs, f"{function.__name__} has not ended within 60 seconds"
    assert process.exitcode == 0


# --- what it is ---


def test_it_is_a_queue_handler_without_lock_and_thread(server: mplog.LogServer) -> None:
    """It is the stdlib's QueueHandler with no lock at all, and making one and logging start no thread."""
    threads = threading.enumerate()
    handler = mplog.QueueHandler(server.queue)
    assert isinstance(handler, logging.handlers.QueueHandler)
    assert handler.queue is server.queue
    handler.handle(logging.makeLogRecord({"msg": "x"}))
    handler.createLock()
    assert handler.lock is None
    handler.acquire()
    handler.release()
    handler.flush()
    assert threading.enumerate() == threads


def test_a_record_is_out_when_the_call_returns(context: Any, server: mplog.LogServer, written: Any) -> None:
    """Nothing is buffered: a worker that logs and ends by SIGKILL at once has its record in the log."""
    process = context.Process(target=log_and_die, args=(server.initializer,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    first, *rest = written()
    assert first == "last words"
    assert all("was killed by SIGKILL" in line for line in rest)  # where that is known


def log_and_die(initializer: Any) -> None:
    """Runs in a worker."""
    initializer()
    logging.info("last words")
    os.kill(os.getpid(), signal.SIGKILL)


# --- levels and filters ---


def test_level_and_filters_of_the_handler_hold(logger: logging.Logger, handler: Any, written: Any) -> None:
    """What the handler's level or a filter holds back is not sent."""
    handler.setLevel("INFO")
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    logger.debug("too low")
    logger.info("a secret")
    logger.info("public")
    assert written() == ["public"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="filters return records from Python 3.12 on")
def test_a_filter_may_return_another_record(logger: logging.Logger, handler: Any, written: Any) -> None:
    """The record that a filter returns takes the place of the one that was logged, for this handler alone."""

    def redact(record: logging.LogRecord) -> logging.LogRecord:
        record = copy.copy(record)
        record.msg = record.msg.replace("secret", "***")
        return record

    seen: list[str] = []
    other = logging.Handler()
    other.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(redact)
    logger.addHandler(other)
    logger.info("the secret %d", 1)
    assert written() == ["the *** 1"]
    assert seen == ["the secret 1"]


@pytest.mark.parametrize("error", [ValueError, RecursionError, SystemExit, GeneratorExit])
def test_a_filter_that_raises_costs_nothing(
    logger: logging.Logger, handler: Any, written: Any, error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    """The record is sent, the program sees nothing, and stderr has the traceback."""

    def broken(record: logging.LogRecord) -> bool:
        raise error("broken filter")

    handler.addFilter(broken)
    logger.info("here")
    assert written() == ["here"]
    assert "broken filter" in capsys.readouterr().err


def test_a_filter_may_log(logger: logging.Logger, handler: Any, written: Any) -> None:
    """What a filter of the handler logs through the same handler arrives, before the record that it is about."""

    def chatty(record: logging.LogRecord) -> bool:
        if record.name != "filter":
            logger.getChild("x")
            handler.handle(logging.makeLogRecord({"name": "filter", "msg": f"about {record.msg}"}))
        return True

    handler.addFilter(chatty)
    logger.info("this")
    assert written() == ["about this", "this"]


# --- objects that misbehave ---


class Broken:
    """Its text is whatever the function does."""

    def __init__(self, function: Callable[[], str]) -> None:
        self.function = function

    def __repr__(self) -> str:
        return self.function()


def raising(error: BaseException) -> Broken:
    """Return an object whose repr() raises."""

    def function() -> str:
        raise error

    return Broken(function)


@pytest.mark.parametrize(
    "error", [ValueError("no"), RecursionError(), MemoryError(), SystemExit(3), GeneratorExit(), StopIteration()]
)
def test_a_repr_that_raises_is_a_placeholder(logger: logging.Logger, written: Any, error: BaseException) -> None:
    """The program sees nothing, and the record says what went wrong with which object."""
    logger.info("value %r", raising(error))
    logger.info("next")
    first, second = written()
    assert first.startswith("<mplog: this message could not be formatted (")
    assert type(error).__name__ in first
    assert "value %r" in first
    assert second == "next"


def test_a_repr_may_log(logger: logging.Logger, written: Any) -> None:
    """What a repr() logs arrives before the record that it is in."""

    def chatty() -> str:
        logger.info("from a repr")
        return "text"

    logger.info("value %r", Broken(chatty))
    assert written() == ["from a repr", "value text"]


def test_a_repr_that_logs_itself_ends(logger: logging.Logger, written: Any, capsys: Any) -> None:
    """An object whose repr() logs the object does not recurse for ever, and the program goes on."""

    def endless() -> str:
        logger.info("again %r", broken)
        return "text"

    broken = Broken(endless)
    before = time.monotonic()
    logger.info("value %r", broken)
    logger.info("next")
    messages = written()
    assert messages[-1] == "next"
    assert messages[-2].startswith("value ")
    assert time.monotonic() - before < 5
    assert len(messages) < 300
    assert capsys.readouterr().err == ""


def test_a_deep_recursion_may_be_logged(logger: logging.Logger, written: Any) -> None:
    """A log call with hardly any stack left does not raise, and later ones are complete."""

    def recurse(depth: int) -> int:
        try:
            return recurse(depth + 1)
        except RecursionError:
            logger.info("at the bottom")
            raise

    gc.collect()  # what is collected at the bottom would find no stack for its finalizer either
    for _ in range(3):
        with pytest.raises(RecursionError):
            recurse(0)
    logger.info("next")
    assert written()[-1] == "next"


def test_a_slow_repr_does_not_hold_up_other_threads(logger: logging.Logger, written: Any) -> None:
    """While one thread is in a repr(), the others log."""
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        inside.set()
        assert go_on.wait(30)
        return "at last"

    thread = threading.Thread(target=logger.info, args=("%r", Broken(slow)))
    thread.start()
    assert inside.wait(30)
    logger.info("meanwhile")
    assert written() == ["meanwhile"]
    go_on.set()
    thread.join(30)
    assert written() == ["meanwhile", "at last"]


def test_del_may_log(logger: logging.Logger, written: Any) -> None:
    """A __del__ that logs, also one that runs while a record is being made, is heard."""

    class Logs:
        def __init__(self, word: str) -> None:
            self.word = word

        def __del__(self) -> None:
            logger.info("%s has gone", self.word)

    kept = [Logs("second")]
    Logs("first")
    logger.info("%r", Broken(lambda: str(kept.clear())))
    assert written() == ["first has gone", "second has gone", "None"]


# --- the end of the program's wish ---


def interrupted(initializer: Any, how: str) -> None:
    """Runs in a worker: a signal comes while a repr() runs."""
    initializer()

    def leave(*_: object) -> None:
        sys.exit(0)

    class Leave:
        def __call__(self, *_: object) -> None:
            sys.exit(0)

        def method(self, *_: object) -> None:
            sys.exit(0)

    signal.signal(signal.SIGUSR1, {"function": leave, "object": Leave(), "method": Leave().method}.get(how, leave))

    def being_signalled() -> str:
        signal.raise_signal(signal.SIGINT if how == "interrupt" else signal.SIGUSR1)
        return "never"

    try:
        logging.info("%r", Broken(being_signalled))
    except KeyboardInterrupt:
        if how == "interrupt":
            os._exit(0)
    os._exit(1)


@pytest.mark.parametrize("how", ["interrupt", "function", "object", "method"])
def test_the_end_that_a_signal_handler_wants_comes(server: mplog.LogServer, how: str) -> None:
    """Ctrl-C, and sys.exit() in a signal handler, get through when they come in the middle of a logging call."""
    run(interrupted, server.initializer, how)


# --- errors ---


class BrokenHandler(mplog.QueueHandler):
    """Cannot prepare anything."""

    def prepare(self, record: logging.LogRecord) -> bytes:
        raise ValueError("cannot prepare")


@pytest.mark.parametrize("raise_exceptions", [True, False])
def test_errors_go_to_stderr_as_in_the_stdlib(
    server: mplog.LogServer, capsys: Any, monkeypatch: pytest.MonkeyPatch, raise_exceptions: bool
) -> None:
    """An error in the handler is reported by handleError(), which logging.raiseExceptions silences."""
    monkeypatch.setattr(logging, "raiseExceptions", raise_exceptions)
    BrokenHandler(server.queue).handle(logging.makeLogRecord({"msg": "the message"}))
    stderr = capsys.readouterr().err
    assert ("cannot prepare" in stderr and "the message" in stderr) if raise_exceptions else stderr == ""


def test_a_closed_queue_is_such_an_error(server: mplog.LogServer, capsys: Any) -> None:
    """Logging into a queue that was closed in this process raises nothing, and says so on stderr."""
    queue = mplog.LogQueue.open(server.queue.directory)
    handler = mplog.QueueHandler(queue)
    queue.close()
    handler.handle(logging.makeLogRecord({"msg": "the message"}))
    assert "is closed" in capsys.readouterr().err


# --- the record ---


def test_the_record_is_not_changed(handler: mplog.QueueHandler) -> None:
    """Other handlers of the worker get the record as it was: arguments, exc_info and all."""
    argument = object()
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.LogRecord("n", 20, "p", 1, "%s", (argument,), sys.exc_info())
    record.extra = [1]
    before = dict(record.__dict__)
    handler.handle(record)
    assert record.__dict__ == before
    assert record.args == (argument,)


def test_other_handlers_of_the_worker_get_the_record_too(logger: logging.Logger, written: Any) -> None:
    """A handler that is added next to ours sees arguments and exception."""
    seen: list[logging.LogRecord] = []
    other = logging.Handler()
    other.emit = seen.append  # type: ignore[method-assign]
    logger.addHandler(other)
    try:
        raise ValueError("x")
    except ValueError:
        logger.exception("%s!", "text")
    assert seen[0].args == ("text",)
    assert seen[0].exc_info and isinstance(seen[0].exc_info[1], ValueError)
    assert written()[0] == "text!"


@pytest.mark.parametrize("attribute", ["name", "levelno", "levelname", "lineno", "created", "process", "processName"])
def test_a_record_with_odd_attributes_travels(tmp_path: Path, attribute: str) -> None:
    """A record that a program has made, or changed, itself is written, whatever is in its attributes."""
    values = [None, "text", 5, True, 2.5, ("a", "tuple"), {1: object()}, b"bytes", 2**70, "\udcff"]
    log = tmp_path / "app.log"
    with mplog.LogServer(log, format=f"%({attribute})s | %(message)s") as server:
        handler = mplog.QueueHandler(server.queue)
        for number, value in enumerate(values):
            record = logging.makeLogRecord({"msg": number})
            setattr(record, attribute, value)
            handler.handle(record)
        handler.handle(logging.makeLogRecord({"msg": "last"}))
        stats = server.stop()
    assert jobs.messages_in(log) == [*map(str, range(len(values))), "last"]
    assert (stats.broken, stats.failed) == (0, {})


# --- what else the stdlib's logging does ---


def test_records_after_shutdown_travel(logger: logging.Logger, handler: mplog.QueueHandler, written: Any) -> None:
    """After close(), which logging.shutdown() calls at exit, records are still sent."""
    logger.info("before")
    handler.close()
    logging.shutdown([])
    logger.info("after")
    assert written() == ["before", "after"]


def configure(initializer: Any, directory: str) -> None:
    """Runs in a worker: logging is shut down and configured again in between."""
    initializer()
    logging.info("1")
    logging.shutdown()
    logging.info("2")
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": {"a": {"level": "ERROR"}}})
    logging.info("3")
    logging.getLogger("a").info("not this")
    logging.config.dictConfig({"version": 1, "incremental": True, "root": {"level": "INFO"}})
    logging.info("4")
    logging.config.dictConfig(
        {
            "version": 1,
            "handlers": {"null": {"class": "logging.NullHandler"}},
            "root": {"handlers": ["null"], "level": "INFO"},
        }
    )
    logging.info("not this: the program wants another handler")
    initializer()
    logging.info("5")
    logging.basicConfig(level="DEBUG")
    logging.info("6")
    logging.basicConfig(force=True, handlers=[logging.NullHandler()])
    logging.info("not this")
    mplog.attach(directory)
    logging.info("7")


def test_logging_may_be_configured_in_between(start_method: str, server: mplog.LogServer, written: Any) -> None:
    """shutdown(), dictConfig() and basicConfig() in a worker leave a handler that still works, or take it off."""
    run(configure, server.initializer, server.queue.directory, method=start_method)
    assert written() == list("1234567")


def chatter(initializer: Any, library_name: str) -> None:
    """Runs in a worker: have the library log all that it does."""
    library: Any = __import__(library_name)
    initializer()
    library.log_to_stderr(logging.DEBUG)
    logger = library.get_logger()
    logger.handlers.clear()
    logger.propagate = True
    logging.info("first")
    queue = library.Queue()
    queue.put(1)
    assert queue.get(timeout=30) == 1
    queue.close()
    queue.join_thread()
    with library.Pool(1) as pool:
        pool.map(abs, [-1])
    logging.info("last")


def test_the_library_s_own_logger_at_debug_does_not_recurse(
    library: Any, server: mplog.LogServer, written: Any
) -> None:
    """What multiprocessing logs of its own goes through the queue, and does not cause more such records."""
    context = library.get_context("spawn")
    process = context.Process(target=chatter, args=(server.initializer, library.__name__))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    messages = written()
    assert {"first", "last"} <= set(messages)
    assert any("created semlock" in message for message in messages)
    assert len(messages) < 200


# --- signals ---


def log_under_fire(initializer: Any, directory: str, interval: float, size: int) -> None:
    """Runs in a worker: log in the main program and in a signal handler that interrupts it all the time."""
    initializer()
    main, handler = Producer(directory, "main"), Producer(directory, "handler")
    # A signal inside getLogger() would find a new logger without a parent, and so without a handler.
    logging.getLogger("producer")

    def on_alarm(*_: object) -> None:
        if time.monotonic() < end:
            handler.log(size)
            # Not an interval, which may leave no time for anything but handlers.
            signal.setitimer(signal.ITIMER_REAL, interval)

    signal.signal(signal.SIGALRM, on_alarm)
    end = time.monotonic() + 1
    signal.setitimer(signal.ITIMER_REAL, interval)
    while time.monotonic() < end:
        main.log(size)


@pytest.mark.parametrize("size", [100, 20_000])
@pytest.mark.parametrize("interval", [0.0001, 0.001])
def test_a_signal_handler_may_log_at_any_moment(
    server: mplog.LogServer, log: Path, tmp_path: Path, interval: float, size: int
) -> None:
    """A signal handler that logs while the program logs neither deadlocks nor loses anything."""
    run(log_under_fire, server.initializer, str(tmp_path), interval, size)
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert result.acknowledged > 200


def log_while_full(initializer: Any, directory: str) -> None:
    """Runs in a worker: a signal handler logs while the program waits for room in the queue."""
    initializer()
    main, handler = Producer(directory, "main"), Producer(directory, "handler")
    logging.getLogger("producer")

    def on_alarm(*_: object) -> None:
        handler.log(20_000)
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    for _ in range(100):
        main.log(50_000)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


def test_a_signal_handler_may_log_while_the_queue_is_full(server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """Signal handlers that log while the queue is full wait for room, too, and nothing is lost."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=log_while_full, args=(server.initializer, str(tmp_path)))
    stop_all_threads(server.pid)
    try:
        process.start()
        wait_until(server.queue.full, "the queue is full")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 0
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result


# --- forks ---


def fork_while_threads_log(initializer: Any, directory: str, how: str, forks: int) -> None:
    """Runs in a worker: 8 threads log flat out, while the main one forks, and each child logs."""
    warnings.simplefilter("ignore", DeprecationWarning)
    sys.setswitchinterval(0.0002)  # the main thread is one of nine
    initializer()
    over = threading.Event()

    def flood(name: str) -> None:
        producer = Producer(directory, name)
        while not over.is_set():
            producer.log(100)

    threads = [threading.Thread(target=flood, args=(f"thread{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    context = multiprocessing.get_context("fork")
    try:
        for number in range(forks):
            if how == "multiprocessing":
                process = context.Process(target=log_once, args=(directory, number))
                process.start()
                process.join(20)
                code = process.exitcode
                process.kill()
            else:
                code = raw_fork(directory, number)
            assert code == 0, f"child {number} hangs, or has failed: {code}"
    finally:
        over.set()
        for thread in threads:
            thread.join(20)


def log_once(directory: str, number: int) -> None:
    """Runs in a worker's child."""
    Producer(directory, f"child{number}").log()


def raw_fork(directory: str, number: int) -> int | None:
    """Fork, log in the child, and return its exit status; None where it hangs."""
    pid = os.fork()
    if pid == 0:
        try:
            log_once(directory, number)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


@pytest.mark.parametrize(
    ("how", "forks"),
    [
        ("multiprocessing", 20),
        ("os.fork", 40),
        pytest.param("multiprocessing", 100, marks=pytest.mark.long),
        pytest.param("os.fork", 200, marks=pytest.mark.long),
    ],
)
def test_forks_in_the_middle_of_logging(
    server: mplog.LogServer, log: Path, tmp_path: Path, how: str, forks: int
) -> None:
    """Many forks while 8 threads log flat out: each child's record arrives, and none hangs."""
    run(fork_while_threads_log, server.initializer, str(tmp_path), how, forks)
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert len(list(tmp_path.glob("ack-child*"))) == forks
    assert result.acknowledged >= forks


def fork_a_chain(initializer: Any, depth: int) -> None:
    """Runs in a worker: a child that forks a child that forks a child."""
    initializer()
    logging.info("depth %d", depth)
    if depth < 5:
        pid = os.fork()
        if pid == 0:
            fork_a_chain(initializer, depth + 1)
            os._exit(0)
        os.waitpid(pid, 0)
        logging.info("back at depth %d", depth)


def test_a_chain_of_forks_logs(server: mplog.LogServer, log: Path, written: Any) -> None:
    """Each process of a chain of forks logs under its own pid."""
    run(fork_a_chain, server.initializer, 1)
    assert written() == [f"depth {n}" for n in range(1, 6)] + [f"back at depth {n}" for n in range(4, 0, -1)]
    assert len({line.split()[1] for line in log.read_text().splitlines()}) == 5


def daemonise(initializer: Any, directory: str) -> None:
    """Runs in a worker: close all descriptors, as daemons do, open files of its own, and log."""
    initializer()
    logging.info("before")
    highest = max(map(int, os.listdir("/dev/fd"))) + 10
    os.closerange(3, highest)
    files = [open(os.path.join(directory, f"file{number}"), "wb") for number in range(30)]  # noqa: SIM115
    logging.info("after")
    logging.info("after %s", "x" * 10_000)
    for file in files:
        file.close()
    logging.info("at the end")
    os._exit(0)


def test_a_daemon_that_closes_all_descriptors_logs_on(
    start_method: str, server: mplog.LogServer, tmp_path: Path, written: Any
) -> None:
    """Records go into the queue, and not into files that were opened meanwhile."""
    run(daemonise, server.initializer, str(tmp_path), method=start_method)
    assert written() == ["before", "after", "after " + "x" * 10_000, "at the end"]
    assert [path.stat().st_size for path in tmp_path.glob("file*")] == [0] * 30
