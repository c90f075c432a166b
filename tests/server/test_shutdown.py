"""A program that is told to end by a signal ends in the right order, and nothing is lost (faults 2, 24, 30)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import Verdict, acknowledged, verdict, wait_until
from scripts import elapsed, environment, lines, process_has_ended, wait_until_main_waits, write_script
from start_methods import skip_without_dill

import mplog

pytestmark = pytest.mark.processes

#: What every program below begins with. `produce` logs for ever, and acknowledges what it has logged.
HEAD = """\
import contextlib, hashlib, logging, multiprocessing, os, signal, subprocess, sys, threading, time
import concurrent.futures
import mplog, multiprocess
from jobs import producer

HERE = os.getcwd()

def produce(number=0):
    log = producer(HERE, os.getpid()).log
    while True:
        log()
        time.sleep(0.0005)

def produce_stubbornly(number=0):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    produce()

ATTACHED = "import jobs; jobs.attach_and_work(None, '.'); input()"

def ready():
    print("ready", flush=True)

"""


class Program:
    """A program in a process group of its own."""

    def __init__(self, directory: Path, text: str, **changes: str) -> None:
        script = write_script(directory, HEAD + text)
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-B", str(script)],
            cwd=directory,
            env=environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.begun = 0.0

    def wait_until_ready(self, producers: int = 0, *, main_waits: bool = False) -> None:
        """Wait for the program to say so, for so many producers to have logged, and for the main thread to wait."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.communicate(timeout=30)[1]
        wait_until(lambda: self.producers_that_log() >= producers, f"{producers} producers log")
        if main_waits:
            wait_until_main_waits(self.process.pid)

    def producers_that_log(self) -> int:
        """Return how many producers have logged a few lines."""
        names = [path.name.removeprefix("ack-") for path in self.directory.glob("ack-*")]
        return sum(acknowledged(self.directory, name) > 5 for name in names)

    def send(self, number: int, *, to_group: bool = False) -> None:
        """Send a signal to the program, or to all of its processes."""
        self.begun = self.begun or time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if to_group else os.kill)(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Wait for the end of all its processes; return the exit status and what was said."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    """The programs of a test, which are killed at its end."""
    started: list[Program] = []
    yield started
    for program in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.communicate(timeout=30)


@pytest.fixture
def start(programs: list[Program], tmp_path: Path) -> Any:
    """Start a program in the directory of the test."""

    def start(text: str, **changes: str) -> Program:
        programs.append(Program(tmp_path, text, **changes))
        return programs[-1]

    return start


def assert_nothing_lost(result: Verdict) -> None:
    """Acknowledged lines are there, once, whole and in order, and of each producer at most one more."""
    assert result.clean, result
    assert result.acknowledged <= result.written <= result.acknowledged + 2, result


#: The ways in which a main thread waits for its workers.
BLOCKED_IN = {
    "map": "pool.map(produce, range(2))",
    "C call": """\
results = pool.map_async(produce, range(2))
            while True:
                hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_500_000)""",
    "sleep": "results = pool.map_async(produce, range(2)); time.sleep(60)",
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", BLOCKED_IN)
def test_signal_loses_nothing(start: Any, tmp_path: Path, number: int, where: str) -> None:
    """Wherever the main thread is, the signal ends the program after its workers, and everything is in the log."""
    program = start(f"""\
if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO") as server, mplog.GracefulShutdown(server):
        with multiprocessing.Pool(2, initializer=server.initializer) as pool:
            ready()
            {BLOCKED_IN[where]}
""")
    program.wait_until_ready(producers=2, main_waits=where != "C call")
    program.send(number)
    status, _, err = program.end()
    assert status == -number
    assert err == "" if number == signal.SIGTERM else err.rstrip().endswith("KeyboardInterrupt")
    result = verdict(tmp_path / "app.log", tmp_path)
    assert_nothing_lost(result)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("times", [1, 3])
def test_signal_to_the_group(start: Any, tmp_path: Path, number: int, times: int) -> None:
    """If all processes get the signal, even three times, the log is drained in time and the exit status kept."""
    program = start("""\
if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO") as server, mplog.GracefulShutdown(server):
        workers = [mplog.Process(target=produce, server=server) for _ in range(2)]
        for worker in workers:
            worker.start()
        ready()
        while True:
            time.sleep(60)
""")
    program.wait_until_ready(producers=2, main_waits=True)
    for _ in range(times):
        program.send(number, to_group=True)
        time.sleep(0.03)  # as fast as keys are pressed; whenever they come, it must hold
    status, _, err = program.end()
    assert status == -number, err
    assert elapsed(program.begun) < 20
    result = verdict(tmp_path / "app.log", tmp_path)
    assert_nothing_lost(result)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_counts_once_for_a_while(start: Any, tmp_path: Path, number: int) -> None:
    """A second signal within the time limit does not disturb the program's clean-up; a later one acts again."""
    program = start(f"""\
if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO") as server:
        with mplog.GracefulShutdown(server, timeout=1):
            try:
                signal.raise_signal({int(number)})
            finally:
                signal.raise_signal({int(number)})
                signal.raise_signal({int(number)})
                logging.info("cleaned up")
                time.sleep(1.1)
                try:
                    signal.raise_signal({int(number)})
                except (SystemExit, KeyboardInterrupt) as error:
                    logging.info("%s", type(error).__name__)
""")
    status, _, _ = program.end()
    assert status == -number
    name = "SystemExit" if number == signal.SIGTERM else "KeyboardInterrupt"
    assert [line.rpartition("| ")[2] for line in lines(tmp_path / "app.log")] == ["cleaned up", name]


#: What logs, and is not in a with block of its own.
PRODUCERS = {
    "pool": ("multiprocessing.Pool(2, initializer=server.initializer)", "p.map_async(produce, range(2))"),
    "multiprocess pool": ("multiprocess.Pool(2, initializer=server.initializer)", "p.map_async(produce, range(2))"),
    "executor": (
        "concurrent.futures.ProcessPoolExecutor(2, initializer=server.initializer)",
        "[p.submit(produce) for _ in range(2)]",
    ),
    "processes": ("subprocess.Popen(['true'])", "[mplog.Process(target=produce, server=server).start() for _ in '12']"),
    "stubborn": (
        "subprocess.Popen(['true'])",
        "[mplog.Process(target=produce_stubbornly, server=server).start() for _ in '12']",
    ),
    "subprocess": (
        "subprocess.Popen([sys.executable, '-c', ATTACHED], stdin=subprocess.PIPE)",
        "mplog.Process(target=produce, server=server).start()",
    ),
}


@pytest.mark.parametrize("kind", PRODUCERS)
def test_producers_are_stopped_first(start: Any, tmp_path: Path, kind: str) -> None:
    """Pools, executors and processes that are given, and all other children, end in time, before the server."""
    if kind == "multiprocess pool":
        skip_without_dill()
    make, go = PRODUCERS[kind]
    program = start(f"""\
if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO") as server:
        p = {make}
        with mplog.GracefulShutdown(server, p, timeout=2):
            keep = {go}
            ready()
            while True:
                time.sleep(60)
""")
    program.wait_until_ready(producers=2, main_waits=True)
    program.send(signal.SIGTERM)
    status, _, err = program.end()
    assert (status, err) == (-signal.SIGTERM, "")
    assert elapsed(program.begun) < 15
    result = verdict(tmp_path / "app.log", tmp_path)
    assert_nothing_lost(result)
    assert all(process_has_ended(int(path.name.removeprefix("ack-"))) for path in tmp_path.glob("ack-*"))


# --- what the signal would have done ---


def test_own_handler_that_returns_decides(start: Any, tmp_path: Path) -> None:
    """A handler of the program's own is called each time; if it returns, the program goes on to its end."""
    program = start("""\
told = []
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *arguments: told.append(arguments[0]))
    with mplog.LogServer("app.log", level="INFO") as server, mplog.GracefulShutdown(server):
        ready()
        while len(told) < 2:
            time.sleep(0.01)
            if told:
                signal.raise_signal(signal.SIGTERM)
        logging.info("%d, and went on", len(told))
    signal.raise_signal(signal.SIGTERM)
    print(told == [signal.SIGTERM] * 3)
""")
    program.wait_until_ready()
    program.send(signal.SIGTERM)
    assert program.end() == (0, "True\n", "")
    assert lines(tmp_path / "app.log")[0].endswith("| 2, and went on")


def test_own_handler_that_raises_ends_the_block(start: Any, tmp_path: Path) -> None:
    """If a handler of the program's own exits, the program exits after its children and the server."""
    program = start("""\
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *arguments: sys.exit(7))
    with mplog.LogServer("app.log", level="INFO") as server, mplog.GracefulShutdown(server):
        mplog.Process(target=produce, server=server).start()
        ready()
        while True:
            time.sleep(60)
""")
    program.wait_until_ready(producers=1, main_waits=True)
    program.send(signal.SIGTERM)
    status, _, err = program.end()
    assert (status, err) == (7, "")
    result = verdict(tmp_path / "app.log", tmp_path)
    assert_nothing_lost(result)


def test_ignored_signal_stays_ignored(start: Any, tmp_path: Path) -> None:
    """A signal that the program ignores stays ignored, in the block and after it."""
    program = start("""\
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with mplog.LogServer("app.log", level="INFO") as server, mplog.GracefulShutdown(server):
        signal.raise_signal(signal.SIGINT)
        logging.info("went on")
    print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
""")
    assert program.end() == (0, "True True\n", "")
    assert lines(tmp_path / "app.log")[0].endswith("| went on")


def test_caught_exceptions(start: Any, tmp_path: Path) -> None:
    """A program can catch KeyboardInterrupt, but not the termination by SIGTERM; its own exception is shown."""
    program = start("""\
if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO") as server:
        with mplog.GracefulShutdown(server):
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        logging.info("still running")
        with mplog.GracefulShutdown(server):
            try:
                signal.raise_signal(signal.SIGTERM)
            except SystemExit as error:
                print(error.code, flush=True)
                raise ValueError("in between")
""")
    status, out, err = program.end()
    assert (status, out) == (-signal.SIGTERM, "143\n")
    assert err.rstrip().endswith("ValueError: in between")
    assert lines(tmp_path / "app.log")[0].endswith("| still running")


def test_output_that_is_buffered_is_written(start: Any) -> None:
    """Printed output is flushed, although the signal ends the program without finalizing the interpreter."""
    program = start("""\
if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO") as server, mplog.GracefulShutdown(server):
        print("printed")
        signal.raise_signal(signal.SIGTERM)
""")
    assert program.end() == (-signal.SIGTERM, "printed\n", "")


# --- nested, forked, in threads ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nested(start: Any, tmp_path: Path, number: int) -> None:
    """Two servers, one inside the other, are both stopped, the inner one first, and the signal acts once."""
    program = start("""\
if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO") as server, mplog.GracefulShutdown(server):
        with mplog.LogServer("inner.log", level="INFO") as inner, mplog.GracefulShutdown(inner):
            with multiprocessing.Pool(2, initializer=inner.initializer) as pool:
                ready()
                pool.map(produce, range(2))
""")
    program.wait_until_ready(producers=2, main_waits=True)
    program.send(number)
    program.send(number)
    status, _, err = program.end()
    assert status == -number
    assert err.count("Traceback") <= err.count("KeyboardInterrupt")
    result = verdict(tmp_path / "inner.log", tmp_path)
    assert_nothing_lost(result)
    assert lines(tmp_path / "app.log") == []


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_end_by_the_signal(start: Any, method: str) -> None:
    """In a child, the signal acts at once as without GracefulShutdown, and the parent goes on."""
    program = start(f"""\
def wait(connection):
    connection.send(os.getpid())
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 200_000_000)   # for minutes: no handler of Python's runs meanwhile

if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO") as server, mplog.GracefulShutdown(server):
        context = multiprocessing.get_context({method!r})
        for number in signal.SIGTERM, signal.SIGINT:
            ours, theirs = context.Pipe()
            child = context.Process(target=wait, args=(theirs,))
            child.start()
            ours.recv()
            if number == signal.SIGTERM:
                child.terminate()
                child.join(30)
                print(child.exitcode)
            else:
                child.kill()
                child.join(30)
        logging.info("went on")
    print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
""")
    assert program.end() == (0, f"{-signal.SIGTERM}\nTrue\n", "")


def test_child_that_is_terminated_before_it_runs(start: Any) -> None:
    """SIGTERM in the instant of its fork ends a child, so that no Pool waits for it for ever."""
    program = start("""\
if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO") as server, mplog.GracefulShutdown(server):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        statuses = set()
        for _ in range(300):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(child, signal.SIGTERM)
            statuses.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(statuses)
""")
    assert program.end() == (0, f"{ {-int(signal.SIGTERM)} }\n", "")


def test_fork_that_leaves_the_block_stops_nothing(start: Any, tmp_path: Path) -> None:
    """A raw fork has the signal handlers from before, and its end does not stop the server."""
    program = start("""\
if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO") as server:
        with mplog.GracefulShutdown(server) as hook:
            child = os.fork()
            if child == 0:
                assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
                logging.info("in the child")
        if child == 0:
            os._exit(5)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        logging.info("in the parent")
""")
    assert program.end() == (0, "5\n", "")
    written = [line.rpartition("| ")[2] for line in lines(tmp_path / "app.log")]
    assert [line for line in written if not line.startswith("mplog:")] == ["in the child", "in the parent"]


def test_other_threads_are_refused(server: mplog.LogServer) -> None:
    """In another thread than the main one, an error says that Python cannot handle signals there."""
    raised: list[BaseException] = []

    def enter() -> None:
        try:
            mplog.GracefulShutdown(server).__enter__()
        except mplog.ServerStateError as error:
            raised.append(error)

    thread = threading.Thread(target=enter, name="worker-thread")
    thread.start()
    thread.join(30)
    assert "entered in worker-thread" in str(raised[0])


def test_wrong_uses_are_refused(server: mplog.LogServer) -> None:
    """Objects that cannot be stopped are refused, and so is a second use at the same time, but not afterwards."""
    with pytest.raises(TypeError, match="a producer is a pool"):
        mplog.GracefulShutdown(server, "pool")
    hook = mplog.GracefulShutdown(server)
    with hook, pytest.raises(mplog.ServerStateError, match="in use already"):
        hook.__enter__()
    with hook:
        pass


def test_no_signal_does_nothing(server: mplog.LogServer) -> None:
    """Without a signal, leaving the block changes neither server nor handlers, with or without an exception."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ZeroDivisionError), mplog.GracefulShutdown(server):
        raise ZeroDivisionError
    with mplog.GracefulShutdown(server):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    server.flush()


def test_handler_that_was_changed_meanwhile_stays(server: mplog.LogServer) -> None:
    """A signal handler that the program sets inside the block stays."""

    def handler(*arguments: object) -> None:
        pass

    before = signal.getsignal(signal.SIGTERM)
    try:
        with mplog.GracefulShutdown(server):
            signal.signal(signal.SIGTERM, handler)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


# --- what is not written ---


def test_what_was_not_written_is_said(start: Any) -> None:
    """Records that a sink could not write are counted on stderr."""
    program = start("""\
from scripts import BadHandler

if __name__ == "__main__":
    sink = mplog.HandlerSink(lambda: BadHandler("raise"))
    with mplog.LogServer("app.log", sink, level="INFO") as server, mplog.GracefulShutdown(server):
        logging.info("one")
        logging.info("two")
        signal.raise_signal(signal.SIGTERM)
""")
    status, _, err = program.end()
    assert status == -signal.SIGTERM
    assert err == "mplog: at SIGTERM, records are missing in the log: 2 records not written by <BadHandler raise>\n"


def test_what_was_dropped_is_said(start: Any) -> None:
    """Records that a worker has lost are counted on stderr, with the reason in words."""
    program = start("""\
def lose():
    (handler,) = logging.getLogger().handlers
    logging.raiseExceptions = False
    handler.queue.close()
    logging.info("nowhere to go")

if __name__ == "__main__":
    with mplog.LogServer("app.log", level="INFO") as server, mplog.GracefulShutdown(server):
        with mplog.Pool(1, server=server) as pool:
            pool.apply(lose)
        signal.raise_signal(signal.SIGTERM)
""")
    status, _, err = program.end()
    assert status == -signal.SIGTERM
    lost = "1 record dropped: interrupted by an exception"
    assert err == f"mplog: at SIGTERM, records are missing in the log: {lost}\n"


def test_blocked_sink_does_not_hold_up_the_end(start: Any, tmp_path: Path) -> None:
    """If a sink blocks, the program ends at the time limit and says that the rest is still to be written."""
    from scripts import Gate

    gate = Gate(tmp_path / "gate")
    program = start("""\
from scripts import BlockedHandler, Gate

def make():
    gate = Gate.__new__(Gate)
    gate.path = os.path.join(HERE, "gate")
    return BlockedHandler(gate, "blocked.log")

if __name__ == "__main__":
    with mplog.LogServer(mplog.HandlerSink(make), level="INFO") as server:
        with mplog.GracefulShutdown(server, timeout=1):
            logging.info("slow")
            ready()
            time.sleep(60)
""")
    program.wait_until_ready(main_waits=True)
    gate.wait_until_reached()
    program.send(signal.SIGTERM)
    program.process.wait(30)
    assert elapsed(program.begun) < 10
    gate.open()
    status, _, err = program.end()
    assert status == -signal.SIGTERM
    assert err.startswith("mplog: at SIGTERM, the logging process (pid ") and "has not answered stop()" in err
    assert "slow" in (tmp_path / "blocked.log").read_text(), "the logging process goes on after the program"
