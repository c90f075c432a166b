"""A logging process is killed, and the next one goes on where it was (promise 4; faults 4, 5 and 8)."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import Producer, acknowledged, verdict, wait_until
from readers import in_fork
from scripts import Gate, lines, process_has_ended, run_script, server_processes, stop_all_threads

import mplog
from mplog.logging_process import supervisor
from mplog.logging_process.messages import Launch, NewProcess, Patience
from mplog.queue import fifo
from mplog.queue.kill_points import POINTS, VARIABLE

pytestmark = pytest.mark.processes

_SIZES = (20, 100, 1000, 3000, 20_000)


def _flood(initializer: Any, directory: str, name: str, ending: Any) -> None:
    """Runs in a worker: log lines of many lengths until told to end."""
    initializer()
    producer = Producer(directory, name)
    sizes = random.Random(name)
    while not ending.is_set():
        for _ in range(20):
            producer.log(sizes.choices(_SIZES, (30, 40, 20, 5, 5))[0])


class Load:
    """Workers that log all the time, and a server that is killed."""

    def __init__(self, server: mplog.LogServer, directory: Path, context: Any, workers: int = 2) -> None:
        self.server = server
        self.directory = directory
        self._ending = context.Event()
        self._workers = [
            context.Process(target=_flood, args=(server.initializer, str(directory), f"w{number}", self._ending))
            for number in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def wait_for_more(self, lines: int = 50) -> None:
        """Wait until every worker has logged some more lines."""
        before = [acknowledged(self.directory, f"w{number}") for number in range(len(self._workers))]
        for number, count in enumerate(before):
            wait_until(
                lambda number=number, count=count: acknowledged(self.directory, f"w{number}") >= count + lines,
                f"worker {number} logs on",
            )

    def kill(self) -> int:
        """Kill the logging process."""
        pid = self.server.pid
        with contextlib.suppress(ProcessLookupError):  # it is dead already, and the next one is still to come
            os.kill(pid, signal.SIGKILL)
        return pid

    def end(self) -> None:
        """End the workers in good order."""
        self._ending.set()
        for worker in self._workers:
            worker.join(60)
            assert worker.exitcode == 0

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
            worker.join(60)


def restarts(log: Path) -> list[str]:
    """Return what the log says about restarts."""
    return [line for line in lines(log) if "restarted as" in line]


@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
def test_killed_at_random_loses_nothing(tmp_path: Path, stdlib_context: Any) -> None:
    """However often the logging process is killed under load, each line is in the file once, whole and in order."""
    chance = random.Random(1)
    server = mplog.LogServer(tmp_path / "app.log", level="INFO")
    with server, Load(server, tmp_path, stdlib_context) as load:
        for _ in range(25):
            load.wait_for_more(1)
            time.sleep(chance.uniform(0, 0.03))  # the moment of the kill, which is to be any
            load.kill()
        load.wait_for_more()
        load.end()
    found = verdict(tmp_path / "app.log", tmp_path)
    assert found.clean, found
    assert len(restarts(tmp_path / "app.log")) >= 1


@pytest.mark.parametrize("moment", [1, 2, 7])
@pytest.mark.parametrize(
    "point", [point for point in POINTS if point not in ("in recovery", "before remove") and "replace" not in point]
)
def test_killed_at_a_named_point_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, moment: int
) -> None:
    """Killed at any named point of its work, the logging process writes each line once, whole and in order."""
    monkeypatch.setenv(VARIABLE, f"{point}:{moment}")
    context = multiprocessing.get_context("fork")
    with mplog.LogServer(tmp_path / "app.log", level="INFO") as server:
        first = server.pid
        with Load(server, tmp_path, context) as load:
            wait_until(lambda: server.pid != first, f"it dies at {point!r}, and is restarted")
            load.wait_for_more()
            load.end()
    found = verdict(tmp_path / "app.log", tmp_path)
    assert found.clean, found
    (said,) = restarts(tmp_path / "app.log")
    assert f"logging process {first} was killed by SIGKILL" in said
    assert "0 records lost" in said


def test_idle_restart_is_said_and_loses_nothing(tmp_path: Path) -> None:
    """Killed while no worker logs, the logging process is restarted before the next record, and the log says so."""
    with mplog.LogServer(tmp_path / "app.log", level="INFO") as server:
        logging.info("before")
        server.flush()
        killed = server.pid
        os.kill(killed, signal.SIGKILL)
        logging.info("after")
        server.flush()
        assert server.pid != killed
        assert server.stats().received
    messages = [line.split(" | ")[1] for line in lines(tmp_path / "app.log")]
    assert [message for message in messages if "mplog:" not in message] == ["before", "after"]
    (said,) = [message for message in messages if "mplog:" in message]
    assert said.startswith(f"mplog: logging process {killed} was killed by SIGKILL")
    assert said.endswith("; 0 records lost")


def test_long_record_survives_a_kill_between_its_parts(tmp_path: Path) -> None:
    """A record of many parts arrives whole, though only some were taken in before the kill."""
    with mplog.LogServer(tmp_path / "app.log", level="INFO", format="%(message)s") as server:
        text = "x" * 30 * 2**20
        logging.info("first")
        server.flush()

        def kill_while_it_is_sent() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGKILL)

        killers = [threading.Timer(delay, kill_while_it_is_sent) for delay in (0.02, 0.06, 0.1)]
        for killer in killers:
            killer.start()
        logging.info("%s", text)
        for killer in killers:
            killer.join()
        logging.info("last")
        server.flush()
    written = [line for line in lines(tmp_path / "app.log") if "mplog:" not in line]
    assert [len(line) for line in written] == [5, len(text), 4]


def test_killed_while_it_stops(tmp_path: Path) -> None:
    """A kill while stop() waits does not stop the next one from writing everything."""
    server = mplog.LogServer(tmp_path / "app.log", level="INFO", format="%(message)s").start()
    for number in range(2000):
        logging.info("%d", number)
    pid = server.pid
    stop_all_threads(pid)
    killer = threading.Timer(0.3, lambda: os.kill(pid, signal.SIGKILL))
    killer.start()
    server.stop()
    killer.join()
    written = [line for line in lines(tmp_path / "app.log") if "mplog:" not in line]
    assert written == [str(number) for number in range(2000)]


def test_parent_killed_leaves_a_supervised_log(tmp_path: Path) -> None:
    """After the program was killed, the logging process is still restarted, and ends after the last worker."""
    done = run_script(
        tmp_path,
        """
        import logging, multiprocessing, os, signal, sys, time, mplog

        def worker(initializer, ready, go):
            initializer()
            logging.info("one")
            ready.set()
            go.wait(60)
            os.kill(int(open("pid").read()), signal.SIGKILL)
            for number in range(100):
                logging.info("line %d", number)

        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            ready, go = context.Event(), context.Event()
            server = mplog.LogServer("app.log", level="INFO", format="%(message)s").start()
            context.Process(target=worker, args=(server.initializer, ready, go)).start()
            ready.wait(60)
            with open("pid", "w") as file:
                file.write(str(server.pid))
            print(os.path.dirname(server.queue.path))
            sys.stdout.flush()
            go.set()
            os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    directory = done.stdout.strip()
    wait_until(lambda: not os.path.exists(directory), "the logging process ends after the last worker")
    written = [line for line in lines(tmp_path / "app.log") if "mplog:" not in line]
    assert written == ["one", *(f"line {number}" for number in range(100))]


@pytest.fixture
def no_process_left() -> Iterator[None]:
    """Check that a test has left no process running."""
    before = server_processes()
    yield
    assert [process for process in server_processes() if process not in before] == []


def test_supervisor_killed(tmp_path: Path, no_process_left: None) -> None:
    """Without its supervisor, the logging process goes on, and stop() writes everything."""
    with mplog.LogServer(tmp_path / "app.log", level="INFO", format="%(message)s") as server:
        logging.info("before")
        supervisor = psutil.Process(server.pid).ppid()
        assert supervisor != os.getpid()
        os.kill(supervisor, signal.SIGKILL)
        logging.info("after")
        server.flush()
    assert [line for line in lines(tmp_path / "app.log") if "mplog:" not in line] == ["before", "after"]


class _Leaving(logging.Handler):
    """Ends its process, in the way of one that has done its work, when it is told to for the first time."""

    def __init__(self, done: str) -> None:
        super().__init__()
        self.done = done

    def emit(self, record: logging.LogRecord) -> None:
        """Do it."""
        if record.getMessage() == "leave" and not os.path.exists(self.done):
            with open(self.done, "w"):
                os._exit(0)


def test_handler_that_ends_the_process_loses_nothing(tmp_path: Path) -> None:
    """os._exit(0) in a handler is a death like any other: said, and nothing is lost by it."""
    done = str(tmp_path / "done")
    sinks = mplog.FileSink(tmp_path / "app.log"), mplog.HandlerSink(lambda: _Leaving(done))
    with mplog.LogServer(*sinks, level="INFO", format="%(message)s") as server:
        pid = server.pid
        for message in ("before", "leave", "after"):
            logging.info(message)
        server.flush()
    written = lines(tmp_path / "app.log")
    assert [line for line in written if "mplog:" not in line] == ["before", "leave", "after"]
    assert [line for line in written if f"mplog: logging process {pid} ended with exit code 0" in line]


class _Poisoned(logging.Handler):
    """Kills its process when it is told to."""

    def emit(self, record: logging.LogRecord) -> None:
        """Do it."""
        if "poison" in record.getMessage():
            os.kill(os.getpid(), signal.SIGKILL)


def _log_lines(initializer: Any, first: int, count: int) -> None:
    """Runs in a worker."""
    initializer()
    for number in range(first, first + count):
        logging.info("%d", number)


def test_given_up_after_failed_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdlib_context: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """A record that kills each logging process that handles it: the supervisor gives up and says so; the next server
    writes everything, in order."""
    log = tmp_path / "app.log"
    patience = Patience(at_once=2, first_pause=0.01, longest_pause=0.02, restarts=4, seconds=0.2)
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", patience)
    sinks = mplog.FileSink(log, format="%(message)s"), mplog.HandlerSink(_Poisoned)
    server = mplog.LogServer(*sinks, level="INFO").start()
    supervisor = psutil.Process(server.pid).ppid()
    _log_lines(server.initializer, 0, 10)
    server.flush()
    logging.info("poison")
    _log_lines(server.initializer, 10, 10)
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.flush()
    wait_until(lambda: process_has_ended(supervisor), "the supervisor has given up")
    # Nobody reads the queue any more, and still nothing is lost.
    worker = stdlib_context.Process(target=_log_lines, args=(server.initializer, 20, 10))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    assert (tmp_path / ".app.log.emergency").exists()
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "given up" in line]
    assert re.search(
        r"mplog: logging process \d+ was killed by SIGKILL .*; it was restarted \d+ times without success", said
    )
    assert f"what is left is in {tmp_path / '.app.log.emergency'}" in said
    with mplog.LogServer(log, level="INFO", format="%(message)s") as following:
        following.flush()
        assert not (tmp_path / ".app.log.emergency").exists()
        logging.info("on")
    written = [line for line in lines(log) if "mplog:" not in line]
    expected = [*map(str, range(10)), "poison", *map(str, range(10, 30)), "on"]
    assert written == expected


def _attend_with_a_full_link() -> None:
    """Runs in a child: be the supervisor of two logging processes, the program of which takes nothing for long."""
    program, link = multiprocessing.Pipe()
    made = supervisor.Supervisor(link, Launch(b"", "", os.pipe()[0]), -1)
    os.set_blocking(link.fileno(), False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(link.fileno(), b"x" * 100)
    os.set_blocking(link.fileno(), True)
    filled = fifo.pending(program.fileno())
    for status in (7, 8):
        requests, asking = multiprocessing.Pipe()
        pid = os.fork()
        if not pid:
            if status == 8:
                assert program.poll(30), "there is nothing in the link"
                os.read(program.fileno(), filled)
                assert program.poll(30), "the end of the connection is not handed over"
                assert program.recv() == NewProcess(os.getpid())
            os._exit(status)
        asking.close()
        ours, other = multiprocessing.Pipe()
        assert made.attend(pid, requests, ours) == status
        assert ours.closed
        other.close()
        requests.close()


def test_program_that_asks_nothing_holds_up_no_restart() -> None:
    """However many ends of connections wait for the program, the supervisor attends to the next logging process. The
    program gets the end to it when it takes the others."""
    in_fork(_attend_with_a_full_link)


class _Forking(logging.Handler):
    """Leaves a child that outlives it, when it is told to."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def emit(self, record: logging.LogRecord) -> None:
        """Do it."""
        if record.getMessage() == "fork" and not os.fork():
            self.gate.wait()
            os._exit(0)


def test_a_child_of_a_handler_holds_nothing_up(tmp_path: Path, stdlib_context: Any) -> None:
    """What a handler has forked may live on: the logging process is restarted beside it, and stopped. A later call
    learns that nobody reads."""
    log, gate = tmp_path / "app.log", Gate(tmp_path / "gate")
    sinks = mplog.FileSink(log, format="%(message)s"), mplog.HandlerSink(lambda: _Forking(gate))
    try:
        with mplog.LogServer(*sinks, level="INFO") as server:
            logging.info("fork")
            server.flush()
            gate.wait_until_reached()
            pid, parent = server.pid, psutil.Process(server.pid).ppid()
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: server.pid != pid, "it is restarted")
            logging.info("after")
            server.flush()
            queue = server.queue
        wait_until(lambda: process_has_ended(parent), "the supervisor ends")
        assert not os.path.exists(queue.path)
    finally:
        gate.open()
    written = lines(log)
    assert [line for line in written if "mplog:" not in line] == ["fork", "after"]
    assert len(restarts(log)) == 1


def test_a_child_of_a_function_holds_nothing_up(tmp_path: Path) -> None:
    """What a function has forked, as early as a logging process calls it at all, does not pass for a reader."""
    first, child, killed = Gate(tmp_path / "first"), Gate(tmp_path / "child"), tmp_path / "killed"

    def deliver(_: list[Any]) -> None:
        if not killed.exists():
            first.wait()
        elif not os.fork():
            child.wait()
            os._exit(0)

    try:
        with mplog.LogServer(mplog.CallableSink(deliver, batch=1), level="INFO") as server:
            logging.info("x")
            first.wait_until_reached()
            parent = psutil.Process(server.pid).ppid()
            killed.touch()
            os.kill(server.pid, signal.SIGKILL)
            child.wait_until_reached()
            queue = server.queue
        wait_until(lambda: process_has_ended(parent), "the supervisor ends")
        with pytest.raises(mplog.NoReaderError):
            queue.put("nobody reads it")
    finally:
        child.open()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_three_hundred_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """300 kills under load lose, double and tear nothing; it prints how long each restart took."""
    chance = random.Random(2)
    context = multiprocessing.get_context("fork")
    pauses = []
    with mplog.LogServer(tmp_path / "app.log", level="INFO") as server, Load(server, tmp_path, context) as load:
        for _ in range(300):
            load.wait_for_more(1)
            time.sleep(chance.uniform(0, 0.1))
            killed, started = load.kill(), time.monotonic()
            wait_until(lambda killed=killed: server.pid != killed, "it is restarted")
            pauses.append(time.monotonic() - started)
            load.wait_for_more(1)
        load.end()
    found = verdict(tmp_path / "app.log", tmp_path)
    pauses.sort()
    with capsys.disabled():
        print(
            f"\n300 kills: {found.written} written, {found.acknowledged} acknowledged, {len(found.lost)} lost, "
            f"{len(found.doubled)} doubled, {len(found.torn)} torn; restart in {pauses[150] * 1000:.0f} ms (median), "
            f"{pauses[-1] * 1000:.0f} ms at most"
        )
    assert found.clean, found
