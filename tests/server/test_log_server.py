"""`LogServer`: start, stop, flush, and the logging of the program that starts it (faults 7, 8, 14, 24, 28 and 30)."""

from __future__ import annotations

import gc
import glob
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import wait_until
from readers import in_fork
from scripts import (
    BlockedHandler,
    Gate,
    drop_privileges,
    elapsed,
    kill_for_good,
    lines,
    process_has_ended,
    run_script,
    server_processes,
)

import mplog
from mplog.server import log_server as server_module
from mplog.server.interpreter import start_supervisor

pytestmark = pytest.mark.processes


def blocked(gate: Gate, path: Path, **options: Any) -> mplog.LogServer:
    """A running server whose sink stands at the gate."""
    sink = mplog.HandlerSink(lambda: BlockedHandler(gate, path), format="%(message)s")
    return mplog.LogServer(sink, level="DEBUG", **options).start()


def state_of_logging() -> tuple[Any, ...]:
    """What a server changes in its process. pytest has other handlers in each phase of a test."""
    root = logging.getLogger()
    handlers = [handler for handler in root.handlers if not type(handler).__module__.startswith("_pytest")]
    return handlers, root.level, os.environ.get("MPLOG_QUEUE")


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Check that a test leaves no process, no lock file, and logging as it was; conftest.py checks directories."""
    logging.getLogger().addHandler(logging.NullHandler())
    before, processes = state_of_logging(), server_processes()
    yield
    assert state_of_logging() == before
    assert [process for process in server_processes() if process not in processes] == []
    assert glob.glob(str(tmp_path / "**/.*.lock"), recursive=True) == []


# --- what it is ---


def test_server_writes_what_its_own_program_logs(log: Path, nothing_left: None) -> None:
    """Between start and stop, the program's own records go to the log, too; afterwards they do not."""
    server = mplog.LogServer(log, level="INFO", format="%(name)s %(message)s")
    assert server.start() is server
    logging.getLogger("a").info("in the log")
    logging.getLogger("a").debug("below the level")
    assert server.stop().received == 1
    logging.getLogger("a").info("after it")
    assert lines(log) == ["a in the log"]


def test_server_knows_its_logging_process(log: Path) -> None:
    """`pid` is the logging process, the child of a supervisor; both have ended when stop() returns."""
    with mplog.LogServer(log) as server:
        assert server.pid in [process.pid for process in server_processes()]
        assert str(server.pid) in repr(server)
        pid = server.pid
    assert pid not in [process.pid for process in server_processes()]
    assert "not running" in repr(server)


def test_stats_count_by_process(log: Path) -> None:
    """stats() says how much each process has logged, now and after stop()."""
    with mplog.LogServer(log, level="INFO") as server:
        for _ in range(3):
            logging.info("x")
        server.flush()
        assert server.stats().by_process == {("MainProcess", os.getpid()): 3}
    assert server.stats().received == 3


def test_server_that_does_not_run_says_so(log: Path, nothing_left: None) -> None:
    """Before start() and after stop(), only stop() and stats() work; all else raises ServerStateError."""
    server = mplog.LogServer(log)

    def check() -> None:
        for ask in (lambda: server.pid, lambda: server.queue, lambda: server.initializer, server.flush):
            with pytest.raises(mplog.ServerStateError, match="not running"):
                ask()

    check()
    assert server.stop() == server.stats() == mplog.Stats()
    server.start()
    server.stop()
    check()


def test_start_twice_is_refused(server: mplog.LogServer) -> None:
    """Starting a running server raises, and the server goes on."""
    with pytest.raises(mplog.ServerStateError, match="started before"):
        server.start()
    server.flush()


def test_server_can_be_started_again(log: Path, nothing_left: None) -> None:
    """A stopped server may be started again, and appends."""
    server = mplog.LogServer(log, level="INFO", format="%(message)s")
    for text in ("one", "two"):
        with server:
            logging.info(text)
    assert lines(log) == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "needs somewhere to write"),
        ((42,), {}, "a sink is"),
        ((logging.NullHandler(),), {}, "Give the recipe"),
        (("app.log", "app.log"), {}, "given twice"),
        (("app.log",), {"level": "LOUD"}, "LOUD"),
        (("app.log",), {"level": 1.5}, "1.5"),
        (("app.log",), {"format": "no field"}, "no field"),
        (("app.log",), {"format": 42}, "42"),
    ],
)
def test_wrong_arguments_are_found_at_once(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str, nothing_left: None
) -> None:
    """A wrong argument raises in the constructor, and the message has its value."""
    with pytest.raises((TypeError, ValueError), match=message):
        mplog.LogServer(*arguments, **options)


# --- starting ---


def import_error() -> None:
    """Runs in the logging process: stands for a factory that fails."""
    raise ConnectionError("nobody answers")


def module_that_is_nowhere() -> Callable[[], logging.Handler]:
    module = types.ModuleType("nowhere")
    sys.modules["nowhere"] = module
    exec("import logging\ndef factory():\n    return logging.NullHandler()", module.__dict__)
    factory: Callable[[], logging.Handler] = module.factory
    return factory


@pytest.mark.parametrize(
    ("factory", "kind", "message"),
    [
        (import_error, mplog.SinkError, "ConnectionError: nobody answers"),
        (lambda: "nonsense", mplog.SinkError, "'nonsense', which is not a logging.Handler"),
        (lambda: sys.exit(3), mplog.SinkError, "SystemExit: 3"),
        (lambda: os._exit(3), mplog.StartError, "exit status 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), mplog.StartError, "exit status -9"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), mplog.StartError, "exit status -15"),
    ],
    ids=["raises", "nonsense", "sys.exit", "os._exit", "SIGKILL", "SIGTERM"],
)
def test_start_raises_what_a_sink_did(
    log: Path, nothing_left: None, factory: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    """start() raises what the factory of a sink raised, and releases the file that was already open."""
    with pytest.raises(kind, match=message) as caught:
        mplog.LogServer(log, mplog.HandlerSink(factory)).start()
    assert type(pickle.loads(pickle.dumps(caught.value))) is kind
    if kind is mplog.SinkError:
        assert "Traceback" in caught.value.details
    mplog.LogServer(log).start().stop()  # the file is free


def test_start_waits_for_a_sink_only_so_long(
    log: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """If a factory hangs, start() raises StartError when the time is over."""
    monkeypatch.setattr(server_module, "START_TIMEOUT", 1.0)
    with pytest.raises(mplog.StartError, match="has not opened its sinks within 1 seconds"):
        mplog.LogServer(log, mplog.HandlerSink(gate.wait)).start()


def test_start_raises_for_a_missing_directory(tmp_path: Path, nothing_left: None) -> None:
    """A path in a missing directory raises an error that names it, and nothing is made."""
    with pytest.raises(mplog.SinkError, match=r"FileNotFoundError.*missing does not exist"):
        mplog.LogServer(tmp_path / "missing" / "app.log").start()
    assert os.listdir(tmp_path) == []


def test_start_raises_for_missing_permission(tmp_path: Path, nothing_left: None) -> None:
    """In a directory without permission to write, start() raises with PermissionError's text, and leaves nothing."""
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    result = run_script(
        tmp_path,
        """
        import glob, logging, sys, tempfile
        import mplog
        try:
            mplog.LogServer("closed/app.log").start()
        except mplog.SinkError as error:
            print(error)
        print(glob.glob(tempfile.gettempdir() + "/mplog*"), logging.getLogger().handlers)
        """,
        preexec_fn=drop_privileges,
    )
    assert "PermissionError" in result.stdout, result
    assert result.stdout.splitlines()[-1] == "[] []"
    assert (result.stderr, os.listdir(closed)) == ("", [])


def test_start_raises_for_what_does_not_pickle(log: Path, nothing_left: None) -> None:
    """A sink that does not pickle is refused, with the advice to open its resources in the factory."""
    lock = threading.Lock()
    with pytest.raises(mplog.StartError, match=r"do not pickle.*inside its factory"):
        mplog.LogServer(log, mplog.HandlerSink(lambda: lock)).start()  # type: ignore[arg-type, return-value]
    assert not log.exists()


def test_start_raises_for_a_module_that_is_not_importable(log: Path, nothing_left: None) -> None:
    """A factory from a module that exists in the program alone is refused with the import error."""
    try:
        with pytest.raises(mplog.StartError, match=r"ModuleNotFoundError: No module named 'nowhere'.*importable"):
            mplog.LogServer(log, mplog.HandlerSink(module_that_is_nowhere())).start()
    finally:
        del sys.modules["nowhere"]


@pytest.mark.parametrize(
    ("executable", "message"),
    [("/nonexistent/python", "/nonexistent/python"), ("/bin/false", "exit status 1")],
)
def test_start_raises_without_an_interpreter(log: Path, nothing_left: None, executable: str, message: str) -> None:
    """If the interpreter cannot be started, a StartError names it."""
    before = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable(executable)
    try:
        with pytest.raises(mplog.StartError, match=message):
            mplog.LogServer(log).start()
    finally:
        multiprocessing.set_executable(os.fsdecode(before))


def test_start_does_not_harm_the_server_whose_queue_it_is_given(
    server: mplog.LogServer, log: Path, tmp_path: Path
) -> None:
    """A queue that already has a logging process is refused, and keeps that process."""
    with pytest.raises(mplog.ServerStateError, match="no reading end"):
        mplog.LogServer(tmp_path / "other.log", queue=server.queue).start()
    assert os.path.isdir(server.queue.directory)


def test_start_cleans_up_after_a_full_disk(log: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the state of the loggers cannot be saved, start() raises and undoes everything."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mplog.server.takeover.LoggingState.save", full)
    with pytest.raises(OSError, match=r"No space left.*set TMPDIR"):
        mplog.LogServer(log, level="DEBUG").start()


# --- the logging of the program ---


def test_stop_puts_everything_back(log: Path, nothing_left: None) -> None:
    """After stop(), handlers, level and environment are what they were before start()."""
    logging.getLogger().setLevel("ERROR")
    before = state_of_logging()
    with mplog.LogServer(log, level="DEBUG") as server:
        assert [type(handler) for handler in logging.getLogger().handlers] == [mplog.QueueHandler]
        assert state_of_logging()[1:] == (logging.DEBUG, server.queue.directory)
    assert state_of_logging() == before
    logging.getLogger().setLevel("WARNING")


def test_stop_leaves_alone_what_the_program_has_changed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler added, a level set and a variable changed while the server runs stay."""
    monkeypatch.setenv("MPLOG_QUEUE", "before")
    root = logging.getLogger()
    before, added = list(root.handlers), logging.NullHandler()
    with mplog.LogServer(log, level="DEBUG"):
        root.addHandler(added)
        root.setLevel(logging.CRITICAL)
        os.environ["MPLOG_QUEUE"] = "changed"
    assert root.handlers == [*before, added]
    assert (root.level, os.environ["MPLOG_QUEUE"]) == (logging.CRITICAL, "changed")


def test_stop_leaves_alone_what_another_thread_has_changed_during_start(gate: Gate, nothing_left: None) -> None:
    """A handler and a level that another thread sets while sinks are being opened are there after stop()."""
    root, handler = logging.getLogger(), logging.NullHandler()
    handlers, level = root.handlers[:], root.level

    def open_sink() -> logging.Handler:
        gate.wait()
        return logging.NullHandler()

    def change() -> None:
        gate.wait_until_reached()
        root.addHandler(handler)
        root.setLevel(logging.ERROR)
        gate.open()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        with mplog.LogServer(mplog.HandlerSink(open_sink), level="INFO"):
            assert handler not in root.handlers and root.level == logging.INFO
        assert handler in root.handlers and root.level == logging.ERROR
    finally:
        thread.join(60)
        root.handlers[:] = handlers
        root.setLevel(level)


def test_stop_leaves_a_new_configuration_alone(log: Path) -> None:
    """Handlers that replaced the server's while it ran stay as they are, and the old ones do not come back."""
    root = logging.getLogger()
    root.addHandler(logging.NullHandler())
    with mplog.LogServer(log):
        root.handlers = new = [logging.NullHandler()]
    assert root.handlers == new


@pytest.mark.parametrize("order", ["inner first", "outer first"])
def test_nested_servers_stop_in_any_order(tmp_path: Path, nothing_left: None, order: str) -> None:
    """Of two servers in one program, the later one gets the records; each stop() undoes only its own changes."""
    outer = mplog.LogServer(tmp_path / "outer.log", level="INFO", format="%(message)s").start()
    logging.info("outer")
    inner = mplog.LogServer(tmp_path / "inner.log", level="DEBUG", format="%(message)s").start()
    logging.debug("inner")
    first, second = (inner, outer) if order == "inner first" else (outer, inner)
    first.stop()
    logging.info("second")
    assert os.environ["MPLOG_QUEUE"] == second.queue.directory
    second.stop()
    after_outer = ["second"] if second is outer else []
    after_inner = ["second"] if second is inner else []
    assert lines(tmp_path / "outer.log") == ["outer", *after_outer]
    assert lines(tmp_path / "inner.log") == ["inner", *after_inner]


# --- flushing and stopping ---


def log_and_wait(initializer: Any, count: int, barrier: Any) -> None:
    """Runs in a worker: log, say so, and stay."""
    initializer()
    for number in range(count):
        logging.getLogger("worker").info("%d", number)
    barrier.wait(30)
    barrier.wait(30)


def test_flush_writes_what_all_processes_have_logged(stdlib_context: Any, server: mplog.LogServer, log: Path) -> None:
    """After flush(), every record whose call has returned, in any process, is in the file."""
    barrier = stdlib_context.Barrier(3)
    workers = [stdlib_context.Process(target=log_and_wait, args=(server.initializer, 1000, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    barrier.wait(30)
    logging.info("here")
    server.flush()
    written = lines(log)
    barrier.wait(30)
    for worker in workers:
        worker.join(30)
    assert len(written) == 2001


def test_stop_is_bounded_and_nothing_is_lost(tmp_path: Path, gate: Gate, nothing_left: None) -> None:
    """While a sink blocks, stop() raises when its time is over; the logging process goes on and writes everything."""
    server = blocked(gate, tmp_path / "slow.log")
    for number in range(1000):
        logging.info("%d", number)
    gate.wait_until_reached()
    pid, directory = server.pid, server.queue.directory
    assert server.stats().received == 0, "it is told what is written without being asked"
    for ask in (server.flush, server.stop):
        started = time.monotonic()
        with pytest.raises(mplog.DrainTimeoutError, match=rf"pid {pid}.*0\.3 seconds") as caught:
            ask(0.3)
        assert elapsed(started) < 2
        assert caught.value.pending > 1000 * len("frame, number, time, message")
        assert pickle.loads(pickle.dumps(caught.value)).pending == caught.value.pending
    gate.open()
    assert server.stop(30).received == 1000, "a second stop() waits for the rest"
    assert process_has_ended(pid)
    assert lines(tmp_path / "slow.log") == [str(number) for number in range(1000)]
    assert not os.path.exists(directory)


def test_stop_from_many_threads_at_once(log: Path, nothing_left: None) -> None:
    """Threads that stop a server together all return after its end, with the same counts."""
    server = mplog.LogServer(log, level="INFO").start()
    logging.info("x")
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(server.stop())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [result.received for result in results] == [1] * 8
    assert server.stop().received == 1


def stop_elsewhere(server: mplog.LogServer) -> None:
    """Runs in a fork: calls that must not disturb the server of the parent."""
    server.stop()
    with pytest.raises(mplog.ServerStateError, match="belongs to pid"):
        server.flush()
    logging.info("from the fork")


@pytest.mark.parametrize("kind", ["os.fork", "multiprocessing"])
def test_stop_in_a_fork_does_nothing(server: mplog.LogServer, log: Path, kind: str) -> None:
    """stop() in a forked process leaves the server running."""
    if kind == "os.fork":
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                stop_elsewhere(server)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
    else:
        worker = multiprocessing.get_context("fork").Process(target=stop_elsewhere, args=(server,))
        worker.start()
        worker.join(30)
        assert worker.exitcode == 0
    logging.info("from the owner")
    server.stop()
    assert [line.rpartition(" ")[2] for line in lines(log)] == ["fork", "owner"]


def test_stop_within_stop_in_a_signal_handler(log: Path, nothing_left: None, gate: Gate, tmp_path: Path) -> None:
    """stop() in a signal handler that interrupts stop() returns at once, and the outer one goes on."""
    server = blocked(gate, tmp_path / "slow.log")
    logging.info("x")
    gate.wait_until_reached()
    inner: list[float] = []

    def handler(*_: object) -> None:
        started = time.monotonic()
        server.stop()
        inner.append(elapsed(started))
        gate.open()

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert server.stop().received == 1
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert len(inner) == 1 and inner[0] < 1


def test_stop_in_a_signal_handler_ends_a_flush(nothing_left: None, gate: Gate, tmp_path: Path) -> None:
    """flush() returns, since everything is written, if a signal handler stops the server meanwhile."""
    server = blocked(gate, tmp_path / "slow.log")
    logging.info("x")
    gate.wait_until_reached()
    received: list[int] = []

    def handler(_: int, frame: types.FrameType | None) -> None:
        if {"flush", "poll"} <= {each.name for each in traceback.extract_stack(frame)}:
            gate.open()
            received.append(server.stop().received)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # flush() does not wait yet

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        server.flush(60)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert received == [1]


def test_stop_after_the_logging_process_was_killed(log: Path, nothing_left: None) -> None:
    """After the death of logging process and supervisor, every call says so, and the directory is removed."""
    server = mplog.LogServer(log, level="INFO").start()
    directory, pid = server.queue.directory, kill_for_good(server)
    for ask in (server.flush, server.stats, server.stop):
        with pytest.raises(mplog.LoggingProcessDiedError, match="died") as caught:
            ask()
        assert caught.value.pid == pid
    assert not os.path.exists(directory)
    server.stop()
    mplog.LogServer(log).start().stop()  # takes over the lock of the dead one, and clears it away


def test_start_outlives_its_working_directory(tmp_path: Path) -> None:
    """A server starts from a working directory that has been removed, even one on sys.path."""
    script = (
        "import logging, os, sys, mplog; mplog.LogServer\n"
        "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); sys.path.insert(0, '')\n"
        "with mplog.LogServer(sys.argv[1], level='INFO'):\n"
        "    logging.info('here')\n"
    )
    log = tmp_path / "app.log"
    done = subprocess.run([sys.executable, "-c", script, log], cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert log.read_text().endswith("| here\n")


def test_start_imports_nothing_from_the_working_directory(tmp_path: Path) -> None:
    """The logging process does not import a file in the working directory that is named like a stdlib module."""
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "app.py").write_text("import mplog\nwith mplog.LogServer('app.log'):\n    pass\n")
    for name in ("multiprocessing", "socket", "selectors", "tempfile", "msgspec"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')\n")
    done = subprocess.run(
        [sys.executable, "program/app.py"], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_fork_during_start_keeps_no_reading_end(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is forked during start() does not make the queue look alive after stop()."""
    children: list[int] = []

    def fork_meanwhile(*args: Any) -> subprocess.Popen[Any]:
        started = start_supervisor(*args)
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
        return started

    monkeypatch.setattr("mplog.server.link.start_supervisor", fork_meanwhile)
    try:
        server = mplog.LogServer(log).start()
        queue = server.queue
        server.stop()
        with pytest.raises(mplog.NoReaderError):
            queue.put("nobody reads it")
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_settings_of_all_formatters_hold_in_the_logging_process(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program sets on the class logging.Formatter holds for its sinks, too."""
    monkeypatch.setattr(logging.Formatter, "converter", time.gmtime)
    monkeypatch.setattr(logging.Formatter, "default_msec_format", "%s.%03dZ")
    monkeypatch.setenv("TZ", "America/New_York")
    with mplog.LogServer(log, level="INFO", format="%(asctime)s %(created)f"):
        logging.info("now")
    written, _, created = log.read_text().strip().rpartition(" ")
    assert written.startswith(time.strftime("%Y-%m-%d %H:%M:%S.", time.gmtime(float(created))))
    assert written.endswith("Z")


def _note_collector(path: Path) -> logging.Handler:
    path.write_text(f"{gc.isenabled()} {gc.get_freeze_count() > 1000}")
    return logging.NullHandler()


@pytest.mark.parametrize("kind", ["LogQueue", "plain"])
def test_logging_process_collects_garbage(tmp_path: Path, kind: str) -> None:
    """Cycles that its handlers make are collected; what it has imported is not scanned."""
    path = tmp_path / "collector"
    options: dict[str, Any] = {"queue": multiprocessing.Queue(10)} if kind == "plain" else {}
    with mplog.LogServer(mplog.HandlerSink(lambda: _note_collector(path)), level="INFO", **options):
        assert path.read_text() == "True True"


def test_a_fork_reads_no_message_of_its_parent(log: Path) -> None:
    """`pid` and `is_running` work in a fork, and take nothing that was sent to the parent."""
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        pid, supervisor = server.pid, psutil.Process(server.pid).parent()
        assert supervisor is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: [each for each in supervisor.children() if each.pid != pid], "there is another one")
        in_fork(lambda: (server.pid, server.is_running, server.queue_fill))
        server.flush()
        assert server.pid == supervisor.children()[0].pid
