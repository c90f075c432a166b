"""Signals that are meant for all processes of a service: fault 33. The log ends after the program and its workers."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from oracle import wait_until
from scripts import environment, lines, process_has_ended, server_processes, wait_until_main_waits, write_script
from terminal import Terminal

import mplog
from mplog.logging_process.signals import TERMINATION_SECONDS

pytestmark = pytest.mark.processes

PROGRAM = """
import logging, os, signal, sys, time
import mplog

signal.signal(int(sys.argv[1]), lambda *_: None)
mplog.LogServer("app.log", level="INFO", format="%(message)s").start()
worker = os.fork()
logging.info("worker" if not worker else "program")
if worker:
    print("ready", flush=True)
signal.pause()
logging.info("told")
time.sleep(float(sys.argv[2]) / (1 if worker else 2))
logging.info("last words of the worker" if not worker else "last words")
"""


def start(directory: Path, text: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program in a session of its own, and wait until it is ready."""
    command = [sys.executable, str(write_script(directory, text)), *map(str, arguments)]
    pipe = subprocess.PIPE
    program = subprocess.Popen(
        command, cwd=directory, env=environment(), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


@pytest.mark.parametrize("whom", ["group", "cgroup"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signal_to_all_processes_ends_the_log_last(tmp_path: Path, number: int, whom: str) -> None:
    """What program and workers log long after a signal to all processes is written, and then the log ends."""
    # As long as the logging process waits after SIGTERM, and longer.
    seconds = 1.5 * TERMINATION_SECONDS if number == signal.SIGTERM else 0.5
    program = start(tmp_path, PROGRAM, int(number), seconds)
    wait_until(lambda: (tmp_path / "app.log").read_text().count("\n") == 2, "both have logged")
    (worker,) = psutil.Process(program.pid).children()
    for pid in program.pid, worker.pid:
        wait_until_main_waits(pid)
    others = server_processes()
    assert len(others) == 2
    os.killpg(program.pid, number)
    if whom == "cgroup":
        for process in others:
            process.send_signal(number)
    _, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (0, "")
    wait_until(lambda: not server_processes(), "the log ends")
    written = [line for line in lines(tmp_path / "app.log") if "mplog:" not in line]
    # The two log at the same time, in any order.
    assert sorted(written) == ["last words", "last words of the worker", "program", "told", "told", "worker"]
    assert sorted(os.listdir(tmp_path)) == ["app.log", "program.py"]


GRACEFUL = """
import logging, sys, time
import mplog

server = mplog.LogServer("app.log", level="INFO", format="%(message)s")
with server, mplog.GracefulShutdown(server, timeout=60):
    print("ready", flush=True)
    try:
        time.sleep(60)
    finally:
        logging.info("told")
        time.sleep(float(sys.argv[1]))
        logging.info("last words")
"""


def test_graceful_shutdown_of_a_group(tmp_path: Path) -> None:
    """Within GracefulShutdown, SIGTERM to the whole group leaves the program its time to end, and to log meanwhile."""
    program = start(tmp_path, GRACEFUL, 1.5 * TERMINATION_SECONDS)
    wait_until_main_waits(program.pid)
    os.killpg(program.pid, signal.SIGTERM)
    for process in server_processes():
        process.terminate()
    _, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (-signal.SIGTERM, "")
    assert [line for line in lines(tmp_path / "app.log") if "mplog:" not in line] == ["told", "last words"]


def test_logging_process_alone_is_replaced_at_sigterm(tmp_path: Path) -> None:
    """SIGTERM to the logging process alone has another one take its place, and the log says so; nothing is lost."""
    log, enough = tmp_path / "app.log", threading.Event()
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        pid, count = server.pid, 0
        os.kill(pid, signal.SIGTERM)
        while not enough.wait(0.001):
            logging.info("%d", count)
            count += 1
            if process_has_ended(pid):
                enough.set()
        server.flush()
        assert server.pid != pid
        assert server.stats().restarts == 1
        # Also one that nothing is logged to.
        pid = server.pid
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: process_has_ended(pid), "it has ended")
        assert server.is_running
    written = lines(log)
    assert [line for line in written if "mplog:" not in line] == [str(number) for number in range(count)]
    said = [line for line in written if "mplog:" in line]
    assert len(said) == 2
    for line in said:
        assert re.fullmatch(r"mplog: logging process \d+ was ended by SIGTERM, restarted as \d+; 0 records lost", line)


BLOCKED = """
import logging, os, signal, sys
import mplog

signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
server = mplog.LogServer("app.log", level="INFO", format="%(message)s").start()
print("ready", flush=True)
sys.stdin.read()
server.stop()
"""


def test_signals_that_the_program_blocks_are_not_blocked_in_the_logging_process(tmp_path: Path) -> None:
    """A program that blocks all signals starts a logging process that reopens its file at SIGHUP."""
    command = [sys.executable, str(write_script(tmp_path, BLOCKED))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        for process in server_processes():
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert re.findall(r"^SigBlk:\s(\w+)$", status, re.MULTILINE) == [f"{0:016x}"]
        os.rename(tmp_path / "app.log", tmp_path / "moved")
        (logging_process,) = (each for each in server_processes() if each.parent() in server_processes())
        logging_process.send_signal(signal.SIGHUP)
        wait_until((tmp_path / "app.log").exists, "the file is opened anew")
        program.communicate("", timeout=60)
        assert program.returncode == 0


WAITING = """
import logging, os
import mplog

with mplog.LogServer("app.log", level="INFO", format="%(message)s"):
    for number in range(3):
        if os.fork() == 0:
            logging.info("child %d", number)
            os._exit(0)
    count = 0
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
        count += 1
    logging.info("%d children have ended", count)
"""


def test_program_waits_for_all_of_its_children(tmp_path: Path) -> None:
    """A program that waits until it has no child left does not wait for the logging process."""
    done = subprocess.run(
        [sys.executable, str(write_script(tmp_path, WAITING))],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert lines(tmp_path / "app.log")[-1] == "3 children have ended"


KILLED = """
import logging, mmap, os, sys
import mplog

acknowledged = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 32)
mplog.LogServer("app.log", level="INFO", format="%(message)s").start()
which = 0 if os.fork() else 1 if os.fork() else 2
words = memoryview(acknowledged).cast("q")
if which == 0:
    print("ready", flush=True)
for number in range(1_000_000_000):
    logging.info("%d %d %s", which, number, "x" * 100)
    words[which] = number + 1
"""


def kill_a_group(directory: Path) -> None:
    """Kill a program and its two workers under full load; hold the log to all calls that have returned."""
    directory.mkdir()
    (directory / "calls").write_bytes(bytes(32))
    program = start(directory, KILLED, directory / "calls")

    def acknowledged() -> list[int]:
        return memoryview((directory / "calls").read_bytes()).cast("q").tolist()[:3]

    wait_until(lambda: min(acknowledged()) > 1000, "all of them log")
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate(timeout=60)
    wait_until(lambda: not server_processes(), "the log ends", timeout=60)
    numbers: list[list[int]] = [[], [], []]
    for line in lines(directory / "app.log"):
        if "mplog:" not in line:
            which, number, text = line.split(" ")
            assert text == "x" * 100
            numbers[int(which)].append(int(number))
    for found, count in zip(numbers, acknowledged()):
        assert found == list(range(len(found)))
        assert len(found) in (count, count + 1)


def test_group_is_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    """SIGKILL to the whole process group loses no record whose call has returned, and doubles and tears none."""
    kill_a_group(tmp_path / "killed")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_hundred_groups_are_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    """The same, a hundred times."""
    for number in range(100):
        kill_a_group(tmp_path / str(number))


JOB = """
import logging, os, time
import mplog

with mplog.LogServer("app.log", level="INFO", format="%(message)s"):
    number = 0
    while not os.path.exists("end"):
        logging.info("%d", number)
        number += 1
        time.sleep(0.001)
    print("over", number)
"""


@pytest.mark.parametrize("how", ["fg", "kill %1", "the terminal is closed"])
def test_job_of_a_shell_is_stopped_goes_on_and_ends_as_any_other(tmp_path: Path, how: str) -> None:
    """Ctrl-Z stops the program, and `fg` lets it go on; `kill` and a closed terminal end it. The log has it all."""
    log = tmp_path / "app.log"
    python = f"{sys.executable} {write_script(tmp_path, JOB)}"
    with Terminal(["bash", "--norc", "--noprofile", "-i"], columns=200, directory=tmp_path) as terminal:
        terminal.press(f"{python}\n")
        wait_until(lambda: log.exists() and log.read_text(), "it logs")
        (program,) = psutil.Process(terminal.process.pid).children()
        if how != "the terminal is closed":
            terminal.press("\x1a")
            terminal.wait_for("Stopped")
            assert program.status() == psutil.STATUS_STOPPED
            assert not {process.status() for process in server_processes()} & {psutil.STATUS_STOPPED}
            terminal.press(f"{how}\n")
        if how == "fg":
            (tmp_path / "end").touch()
            terminal.wait_for("over")
        elif how == "kill %1":
            wait_until(lambda: process_has_ended(program.pid), "it has ended")
    wait_until(lambda: process_has_ended(program.pid), "it has ended")
    wait_until(lambda: not server_processes(), "the log ends")
    written = [line for line in lines(log) if "mplog:" not in line]
    assert written == [str(number) for number in range(len(written))]
    if how == "fg":
        assert f"over {len(written)}" in terminal.text
