"""A program that ends slowly says on a terminal what is left, and elsewhere nothing."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from scripts import lines, run, write_script
from terminal import Terminal

import mplog
from mplog.monitoring.find_servers import Snapshot
from mplog.server.progress import describe

pytestmark = pytest.mark.processes

#: A sink that takes its time: a millisecond for each record, some seconds in all.
SLOW = """
    import logging, os, signal, sys, time
    if "without-rich" in sys.argv:
        sys.modules["rich"] = sys.modules["rich.console"] = sys.modules["rich.progress"] = None
    import mplog

    class Slow(logging.FileHandler):
        def emit(self, record):
            time.sleep(0.001)
            super().emit(record)

    COUNT = 2000

    def log():
        for number in range(COUNT):
            logging.info("%d %s", number, "x" * 500)
"""
STOP = """
    with mplog.LogServer(mplog.HandlerSink(lambda: Slow("app.log")), level="INFO"):
        log()
    print("the program is over", len(open("app.log").readlines()), flush=True)
"""
SHUTDOWN = """
    server = mplog.LogServer(mplog.HandlerSink(lambda: Slow("app.log")), level="INFO")
    with server, mplog.GracefulShutdown(server, timeout=30):
        log()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
"""
AT_EXIT = """
    mplog.LogServer(mplog.HandlerSink(lambda: Slow("app.log")), level="INFO").start()
    log()
"""


def command(directory: Path, program: str, *arguments: str) -> list[str]:
    """Return what runs a program with the slow sink, in a directory."""
    start = f"import os; os.chdir({str(directory)!r})\n"
    script = write_script(directory, SLOW + program)
    script.write_text(start + script.read_text())
    return [sys.executable, str(script), *arguments]


@pytest.mark.parametrize("how", ["with-rich", "without-rich"])
def test_stop_shows_what_is_left(tmp_path: Path, how: str) -> None:
    """With rich a bar is shown, and without it a line; after the end, it is wiped."""
    with Terminal(command(tmp_path, STOP, how)) as terminal:
        first = terminal.wait_for("mplog: writing the log:", "MiB left", "%")
        assert ("━" in first) == (how == "with-rich")
        terminal.wait_for("the program is over")
        assert terminal.wait() == 0
        assert terminal.text.split() == ["the", "program", "is", "over", "2000"]


@pytest.mark.parametrize("program", [SHUTDOWN, AT_EXIT], ids=["shutdown", "exit"])
def test_draining_shows_what_is_left(tmp_path: Path, program: str) -> None:
    """So does Ctrl-C with GracefulShutdown, and the end of a program that does not call stop()."""
    with Terminal(command(tmp_path, program)) as terminal:
        terminal.wait_for("mplog: writing the log:", "MiB left")
        terminal.wait()
        assert "mplog: writing" not in terminal.text
    assert len(lines(tmp_path / "app.log")) == 2000


@pytest.mark.parametrize("changes", [{"MPLOG_PROGRESS": "0"}, {"TERM": "dumb"}])
def test_progress_can_be_switched_off(tmp_path: Path, changes: dict[str, str]) -> None:
    """Nothing is shown if MPLOG_PROGRESS says so, or if the terminal cannot overwrite a line."""
    with Terminal(command(tmp_path, STOP), **changes) as terminal:
        terminal.wait_for("the program is over 2000")
        assert b"mplog:" not in terminal.output


def test_a_pipe_sees_nothing_of_it(tmp_path: Path) -> None:
    """stderr stays empty if it is no terminal."""
    done = run(command(tmp_path, STOP)[1:])
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_over_soon_is_not_shown(tmp_path: Path) -> None:
    """Nothing is written to the terminal if stopping takes less than a second."""
    program = STOP.replace("log()", "logging.info('x')")
    with Terminal(command(tmp_path, program)) as terminal:
        terminal.wait_for("the program is over 1")
        assert b"mplog:" not in terminal.output


def test_a_logging_process_that_stands_still_is_named(tmp_path: Path) -> None:
    """If the logging process is suspended, the line says so and how to wake it up."""
    program = """
    with mplog.LogServer("app.log", level="INFO") as server:
        logging.info("x")
        print(server.pid, "stops", flush=True)
        os.kill(server.pid, signal.SIGSTOP)
    """
    with Terminal(command(tmp_path, program), columns=120) as terminal:
        shown = terminal.wait_for("is suspended: kill -CONT")
        pid = int(shown.split()[0])
        os.kill(pid, signal.SIGCONT)
        assert terminal.wait() == 0
    assert len(lines(tmp_path / "app.log")) == 1


def test_progress_starts_no_thread(tmp_path: Path) -> None:
    """A fork meanwhile finds no thread and no lock that could hang the child."""
    program = """
    import contextlib, threading
    from mplog.server import progress as module
    module.SHOWN_AFTER = -1
    with contextlib.closing(module.Progress(module.Remainder(None))) as progress:
        progress.ticker()
        progress.ticker()
        assert threading.active_count() == 1, threading.enumerate()
        if not os.fork():
            os._exit(0)
        assert os.wait()[1] == 0
        progress.ticker()
    print("the program is over", flush=True)
    """
    with Terminal(command(tmp_path, program)) as terminal:
        terminal.wait_for("the program is over")
        assert terminal.wait() == 0
        assert b"closing the log" in terminal.output


def test_a_terminal_that_has_gone_stops_nothing(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the terminal has gone, the server stops as ever."""

    class Gone:
        def isatty(self) -> bool:
            return True

        def __getattr__(self, name: str) -> Any:
            raise OSError("the terminal has gone")

    server = mplog.LogServer(log, level="INFO").start()
    monkeypatch.setattr("mplog.server.progress.SHOWN_AFTER", -1.0)
    monkeypatch.setattr("mplog.server.control.TICK_SECONDS", 1e-4)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Gone())
        server.stop()
    assert not server.is_running


def test_what_is_going_on_is_named(tmp_path: Path) -> None:
    """The line says what is left, which file is compressed, that the process is restarted, or that the log closes."""
    files = [(str(tmp_path / "app.log"), 7)]
    running = Snapshot(0.0, "running", 17, mplog.Stats(), files=files)
    assert describe(running, 2**20, 2**21) == "writing the log: 1.0 of 2.0 MiB left"
    assert describe(running, 0, 2**21) == "closing the log"
    (tmp_path / ".app.2026-11-20.001.log.gz.part").touch()
    assert describe(running, 0, 2**21) == "compressing app.2026-11-20.001.log"
    assert describe(replace(running, state="restarting"), 1, 1) == "the logging process is being restarted"
    assert describe(None, 0, 0) == "closing the log"
