"""Processes that have closed all descriptors, and log again later: the log waits for them (faults 33 and 38)."""

from __future__ import annotations

import contextlib
import glob
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracle import wait_until
from scripts import environment, lines, process_has_ended, run_script, wait_until_main_waits, write_script

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has mapped"),
]

#: A program that starts servers and ends, and a daemon that logs after it is told to go on.
BEGIN = """
import gc, logging, os, signal, subprocess, sys, time
import mplog
from mplog.queue.log_queue import LogQueue

def start(*names):
    return [mplog.LogServer(name, level="INFO", format="%(message)s").start() for name in names]

def close_all():
    os.closerange(3, 4096)

def become_a_daemon():
    if os.fork():
        os._exit(0)
    os.setsid()
    close_all()

def say(*words):
    print(*words, flush=True)

def wait():
    sys.stdin.readline()

def sender_to(queue):
    log = logging.getLogger(f"sender to {queue.directory}")
    log.propagate, log.handlers = False, [mplog.QueueHandler(queue)]
    log.setLevel("INFO")
    return log

def run_beside(*servers):
    # The same program, which is told the directories of the queues.
    subprocess.Popen([sys.executable, __file__, *(server.queue.directory for server in servers)], close_fds=True)
    wait_for("ready")
    say(*(server.pid for server in servers))
    os._exit(0)

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)

def be_ready():
    open("ready", "w").close()
"""

DAEMONS = {
    "two servers": """
first, second = start("a.log", "b.log")
logs = [sender_to(server.queue) for server in (first,)] + [logging.getLogger()]
pids = first.pid, second.pid
become_a_daemon()
say(*pids)
wait()
for log in logs:
    log.info("late")
""",
    "only a queue": """
if len(sys.argv) == 1:
    run_beside(*start("a.log"))
queue = LogQueue.open(sys.argv[1])
close_all()
be_ready()
wait()
queue.put(logging.LogRecord("job", 20, "", 0, "late", None, None))
""",
    "only handlers": """
if len(sys.argv) == 1:
    run_beside(*start("a.log", "b.log"))
logs = [sender_to(LogQueue.open(directory)) for directory in sys.argv[1:]]
become_a_daemon()
be_ready()
wait()
for log in logs:
    log.info("late")
""",
    "bytes": """
if len(sys.argv) == 1:
    run_beside(mplog.LogServer(mplog.RawSink("a.log")).start())
queue = LogQueue.open(sys.argv[1])
close_all()
be_ready()
wait()
queue.write(b"late\\n")
""",
    "a fork of the program's": """
(server,) = start("a.log")
log = sender_to(server.queue)
say(server.pid)
logging.getLogger().handlers = []
if not os.fork():
    close_all()
    wait()
    log.info("late")
os._exit(0)
""",
    "the file was gone": """
if len(sys.argv) == 1:
    run_beside(*start("a.log"))
path = os.path.join(sys.argv[1], "level-changes")
os.unlink(path)
handler = mplog.attach(sys.argv[1])
wait_for(path)  # the supervisor makes it again
become_a_daemon()
be_ready()
wait()
logging.info("late")
""",
}


@contextlib.contextmanager
def program(directory: Path, text: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Run a program that says the pids of its logging processes, until all that have its output have ended."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-B", str(write_script(directory, BEGIN + text))]
    with subprocess.Popen(
        command, cwd=directory, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout is not None
        yield process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.parametrize("kind", DAEMONS)
def test_what_a_daemon_logs_late_is_written(tmp_path: Path, kind: str) -> None:
    """Whatever a process logs with, its records arrive after it has closed all descriptors and the program has ended.

    The logs end with it.
    """
    with program(tmp_path, DAEMONS[kind]) as (process, pids):
        assert process.wait(60) == 0
        # There is no process left that has the FIFO open.
        for pid in pids:
            wait_until_main_waits(pid)
        _, said = process.communicate("\n", timeout=60)
    assert pids and not said
    for pid in pids:
        wait_until(lambda pid=pid: process_has_ended(pid), "the log ends with the daemon")  # type: ignore[misc]
    for name in ("a.log", "b.log")[: len(pids)]:
        assert [line for line in lines(tmp_path / name) if not line.startswith("mplog:")] == ["late"], name
    assert glob.glob(os.path.join(tempfile.gettempdir(), "mplog-*")) == []


#: A process beside the program that has logged in its log.
EARLY = """
if len(sys.argv) == 1:
    run_beside(*start("a.log"))
queue = LogQueue.open(sys.argv[1])
log = sender_to(queue)
log.info("early")
"""

LET_GO = {
    "closed": "queue.close()",
    "collected": "del log.handlers[:], queue; gc.collect()",
    "installed and closed": "mplog.attach(sys.argv[1]); queue.close()",
}


@pytest.mark.parametrize("how", LET_GO)
def test_a_process_that_has_let_go_of_the_queue_does_not_keep_the_log(tmp_path: Path, how: str) -> None:
    """The log ends with the program, though a process lives on that has logged there before."""
    text = f"""{EARLY}
{LET_GO[how]}
be_ready()
wait()
"""
    with program(tmp_path, text) as (process, pids):
        assert process.wait(60) == 0
        for pid in pids:
            wait_until(lambda pid=pid: process_has_ended(pid), "the log ends with the program")  # type: ignore[misc]
        _, said = process.communicate("\n", timeout=60)
    assert pids and not said
    assert lines(tmp_path / "a.log") == ["early"]


@pytest.mark.parametrize("how", ["queue.close()", "os.execvp('sleep', ['sleep', '30'])"])
def test_a_process_that_lets_go_after_it_was_found_does_not_keep_the_log(tmp_path: Path, how: str) -> None:
    """The log ends once a daemon has closed the queue, or runs another program."""
    text = f"""{EARLY}
close_all()
be_ready()
wait()
os.closerange(1, 3)
{how}
time.sleep(30)
"""
    with program(tmp_path, text) as (process, pids):
        assert process.wait(60) == 0
        for pid in pids:
            wait_until_main_waits(pid)
        assert not any(map(process_has_ended, pids))
        _, said = process.communicate("\n", timeout=60)
        for pid in pids:
            wait_until(lambda pid=pid: process_has_ended(pid), "the log ends", timeout=20)  # type: ignore[misc]
    assert pids and not said
    assert lines(tmp_path / "a.log") == ["early"]


def test_no_process_of_the_server_counts_as_a_writer(tmp_path: Path) -> None:
    """The logging process, one that has taken its place, and the supervisor map no file that would keep the log."""
    text = """
from mplog.monitoring.process import pids_that_map
(server,) = start("a.log")
first = server.pid
os.kill(first, signal.SIGKILL)
while server.pid == first:
    time.sleep(0.01)
logging.info("on")
server.flush()
path = os.path.join(os.path.realpath(server.queue.directory), "level-changes")
print(pids_that_map(path))
subprocess.run([sys.executable, "-c", "import sys; from mplog.monitoring.process import pids_that_map as f; "
                "print(f(sys.argv[1]) == [int(sys.argv[2])])", path, str(os.getpid())])
"""
    done = run_script(tmp_path, BEGIN + text)
    assert (done.stdout, done.stderr) == ("[]\nTrue\n", "")
