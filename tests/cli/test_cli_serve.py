"""``mplog serve``: start, use and stop, under xargs, make and parallel, in the foreground, and as a service."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import messages, mplog, shell, start
from oracle import wait_until
from scripts import environment, logging_process_of, process_has_ended

from mplog.cli import stop_socket
from mplog.cli.main import main
from mplog.errors import MplogError
from mplog.queue.log_queue import LogQueue

pytestmark = pytest.mark.processes

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/net/unix"), reason="it looks into /proc")

#: Logs a record, and one for what it was given.
JOB = """#!/bin/sh
mplog log info "job $1 begins"
mplog log --logger job warning done number:="$1"
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A directory with a script called job."""
    (tmp_path / "job").write_text(JOB)
    (tmp_path / "job").chmod(0o755)
    return tmp_path


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[str]:
    """The path of the queue of a server in the background, which logs into app.log."""
    path = str(tmp_path / "queue")
    done = mplog("serve", "start", "--log", "app.log", "--queue", path, directory=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    yield path
    mplog("serve", "stop", "--queue", path, directory=tmp_path)


@pytest.mark.parametrize(
    "runner",
    [
        "seq 4 | xargs -P3 -n1 ./job",
        "make -s -j3 -f jobs.mk",
        pytest.param(
            "parallel -j3 ./job ::: $(seq 4)",
            marks=pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed"),
        ),
    ],
)
def test_jobs_of_any_runner_share_the_log(jobs: Path, runner: str) -> None:
    """Each record of each job is in the log, once, in the order of the job, and the account says how many."""
    (jobs / "jobs.mk").write_text("all: 1 2 3 4\n%:\n\t./job $@\n.PHONY: all\n")
    script = f"set -e; export MPLOG_QUEUE=$(mplog serve start --log app.log); {runner}; mplog serve stop"
    done = shell(script, jobs, HOME=str(jobs), PARALLEL_HOME=str(jobs))
    assert (done.returncode, done.stdout) == (0, "8 records of 8 processes written\n"), done.stderr
    found = messages(jobs / "app.log")
    expected = [line for number in range(1, 5) for line in (f"job {number} begins", f"done number={number}")]
    assert sorted(found) == sorted(expected)
    for number in range(1, 5):
        assert found.index(f"job {number} begins") < found.index(f"done number={number}")


def test_output_of_jobs_is_captured_by_a_running_server(jobs: Path, queue: str) -> None:
    """mplog run joins the server that runs, and the records tell the jobs from each other."""
    script = "seq 4 | xargs -P2 -I@ mplog run --capture --name job-@ -- sh -c 'echo @; echo @ >&2'"
    done = shell(script, jobs, MPLOG_QUEUE=queue)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert mplog("serve", "stop", "--queue", queue, directory=jobs).returncode == 0
    found = re.findall(r" (\w+) +(\S+) (\S+) \| (\d)$", (jobs / "app.log").read_text(), re.M)
    assert sorted(found) == sorted(
        (level, f"job-{n}", f"job-{n}.{stream}", str(n))
        for n in range(1, 5)
        for level, stream in (("INFO", "stdout"), ("WARNING", "stderr"))
    )


def test_name_that_is_known_in_advance(tmp_path: Path, queue: str) -> None:
    """The link leads to the queue while the server runs, is refused to another one, and is gone afterwards."""
    assert mplog("log", "--queue", queue, "info", "by its name", directory=tmp_path).returncode == 0
    again = mplog("serve", "start", "--log", "b.log", "--queue", queue, directory=tmp_path)
    assert again.returncode == 1
    assert again.stderr.startswith(f"mplog serve: --queue {queue}: a server runs there. Stop it")
    stopped = mplog("serve", "stop", directory=tmp_path, changes={"MPLOG_QUEUE": queue})
    assert (stopped.returncode, stopped.stdout) == (0, "1 record of 1 process written\n")
    assert not os.path.lexists(queue)
    assert messages(tmp_path / "app.log") == ["by its name"]


def test_server_is_found_by_its_log(tmp_path: Path, queue: str) -> None:
    """Another terminal, or a cron job, names the log in place of the queue, to log, to run and to stop."""
    cron = {"MPLOG_QUEUE": str(tmp_path / "app.log")}
    assert mplog("log", "info", "from a cron job", directory=Path("/"), changes=cron).returncode == 0
    ran = mplog("run", "--queue", "app.log", "--capture", "echo", "from a terminal", directory=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    (tmp_path / "other.log").touch()
    stopped = mplog("serve", "stop", "--queue", "other.log", directory=tmp_path)
    assert (stopped.returncode, stopped.stdout) == (1, "")
    assert "other.log', which is a file, and no server of this user writes it. Start one: " in stopped.stderr
    stopped = mplog("serve", "stop", "--queue", "app.log", directory=tmp_path)
    assert (stopped.returncode, stopped.stdout) == (0, "2 records of 2 processes written\n")
    assert messages(tmp_path / "app.log") == ["from a cron job", "from a terminal"]


def test_link_of_a_server_that_was_killed(tmp_path: Path, queue: str) -> None:
    """The log goes on without mplog serve until no process logs any more; then another server takes the name."""
    (serving,) = [each for each in psutil.process_iter(["cmdline"]) if queue in (each.info["cmdline"] or ())]
    serving.kill()
    directory = os.path.realpath(queue)
    wait_until(lambda: not os.path.exists(directory), "the logging process has ended, since no process logs")
    assert os.path.islink(queue)
    again = mplog("serve", "start", "--log", "app.log", "--queue", queue, directory=tmp_path)
    assert (again.returncode, again.stdout) == (0, f"{queue}\n")


def test_name_that_is_something_else(tmp_path: Path) -> None:
    """A file is not overwritten, and a directory that is not there is said."""
    (tmp_path / "file").write_text("precious")
    for path, reason in (("file", "something else has that name"), ("none/queue", "there is no directory")):
        done = mplog("serve", "start", "--log", "app.log", "--queue", path, directory=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr
    assert (tmp_path / "file").read_text() == "precious"


def test_start_that_fails(tmp_path: Path) -> None:
    """Whatever is wrong is said by start itself, with its place."""
    (tmp_path / "bad.toml").write_text('version = 1\n[root]\nlevel = "LOUD"\n')
    for options, reason in (
        (["--log", "none/app.log"], "none/app.log"),
        (["--config", "bad.toml"], "root.level"),
    ):
        done = mplog("serve", "start", *options, directory=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("mplog serve: ")
        assert reason in done.stderr
        assert "Traceback" not in done.stderr


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    """The status is 2, and the reason is on stderr, before anything is started or stopped."""
    for arguments, reason in (
        (["start"], "--log FILE"),
        (["start", "--log", "-"], "leave out start"),
        (["start", "--log", "app.log", "--ready-fd", "3"], "leave out --ready-fd"),
        (["start", "--log", "app.log", "--level", "LOUD"], "'LOUD' is not a level"),
        (["--log", "app.log", "--ready-fd", "77"], "there is no descriptor 77"),
        (["stop", "--log", "app.log"], "stop takes --queue and --timeout"),
        (["stop", "--ready-fd", "1"], "stop takes --queue and --timeout"),
    ):
        done = mplog("serve", *arguments, directory=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        said = done.stderr.splitlines()[-1]  # argparse prints the usage before it
        assert said.startswith("mplog serve: ")
        assert reason in said
        assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_file_that_another_server_writes(tmp_path: Path, queue: str) -> None:
    """The second server is refused, by the file and the owner's pid."""
    done = mplog("serve", "start", "--log", "app.log", directory=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"app.log is already written by another logging process \(pid \d+", done.stderr)


def test_stop_without_a_server(tmp_path: Path) -> None:
    """There are three messages: no server is named, there is none, and the server is a program's own."""
    for options, reason in (([], "MPLOG_QUEUE is not set"), (["--queue", "/nowhere"], "no log queue in '/nowhere'")):
        done = mplog("serve", "stop", *options, directory=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr
    done = shell("mplog run --log app.log -- mplog serve stop", tmp_path)
    assert done.returncode == 1
    assert "was not started by mplog serve" in done.stderr


@pytest.mark.parametrize("command", ["log info late", "serve stop", "run true"])
def test_server_that_has_ended(tmp_path: Path, queue: str, command: str) -> None:
    """Each command names the queue, and says how to start a server in a shell, and how to name another."""
    assert mplog("serve", "stop", "--queue", queue, directory=tmp_path).returncode == 0
    done = mplog(*command.split(), directory=tmp_path, changes={"MPLOG_QUEUE": queue})
    assert (done.returncode, done.stdout) == (125 if command.startswith("run") else 1, "")
    said = done.stderr.splitlines()[0]
    reason = "its server has ended, its directory was removed, or the path is wrong"
    assert f"there is no log queue in '{queue}': {reason}. " in said
    assert "export MPLOG_QUEUE=$(mplog serve start --log app.log). " in said
    assert "by the directory of its queue or by its log: " in said and "--queue. mplog top shows them." in said


def test_stop_says_what_was_not_written(tmp_path: Path) -> None:
    """The exit status is 1, and the handler that failed is named."""
    (tmp_path / "failing.py").write_text(
        "import logging\nclass Failing(logging.Handler):\n    def emit(self, record):\n        raise OSError('no')\n"
    )
    (tmp_path / "log.toml").write_text(
        'version = 1\nroot = {level = "INFO", handlers = ["file", "failing"]}\n'
        '[handlers.file]\nclass = "logging.FileHandler"\nfilename = "app.log"\n'
        '[handlers.failing]\nclass = "failing.Failing"\n'
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    script = "export MPLOG_QUEUE=$(mplog serve start --config log.toml); mplog log info x; mplog serve stop"
    done = shell(f"export PYTHONPATH={path}:$PYTHONPATH; {script}", tmp_path)
    assert done.returncode == 1
    assert "mplog serve stop: records are missing in the log: 1 record not written by" in done.stderr


def test_stop_says_what_was_dropped(tmp_path: Path) -> None:
    """What a worker has lost is counted, with the reason in words."""
    script = (
        "import logging, mplog; logging.raiseExceptions = False; queue = mplog.attach().queue; queue.close();"
        " logging.error(1); logging.error(2)"
    )
    done = shell(
        f"export MPLOG_QUEUE=$(mplog serve start --log app.log); python -c '{script}'; mplog serve stop", tmp_path
    )
    assert done.returncode == 1
    lost = "records are missing in the log: 2 records dropped: interrupted by an exception"
    assert done.stderr == f"mplog serve stop: {lost}\n"


def test_jobs_outlive_a_killed_logging_process(tmp_path: Path, queue: str) -> None:
    """Another one takes its place, and the log has the records from before and after."""
    logged = [mplog("log", "--queue", queue, "info", "before", directory=tmp_path).returncode]
    (serving,) = [each for each in psutil.process_iter(["cmdline"]) if queue in (each.info["cmdline"] or ())]
    logging_process_of(serving.pid).kill()
    logged.append(mplog("log", "--queue", queue, "info", "after", directory=tmp_path).returncode)
    assert logged == [0, 0]
    assert mplog("serve", "stop", "--queue", queue, directory=tmp_path).returncode == 0
    found = messages(tmp_path / "app.log")
    assert [line for line in found if not line.startswith("mplog: ")] == ["before", "after"]
    assert any("was killed by SIGKILL" in line for line in found)


GATED = """
import logging, os, pathlib, time
class Gated(logging.NullHandler):
    def __init__(self):
        super().__init__()
        pathlib.Path("begun").touch()
        while not os.path.exists("go"):
            time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_start_that_ends_before_the_server_is_ready(tmp_path: Path, number: signal.Signals) -> None:
    """Where start is interrupted or killed while it waits, no server is left; Ctrl-C waits until it is gone."""
    (tmp_path / "gated.py").write_text(GATED)
    (tmp_path / "log.toml").write_text(
        'version = 1\nroot = {level = "INFO", handlers = ["gated"]}\n[handlers.gated]\nclass = "gated.Gated"\n'
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    starting = start(
        *("serve", "start", "--config", "log.toml", "--queue", "queue"),
        directory=tmp_path,
        changes={"PYTHONPATH": f"{environment()['PYTHONPATH']}{os.pathsep}{path}"},
        stdout=-1,
        start_new_session=True,
    )
    wait_until((tmp_path / "begun").exists, "the logging process opens its handlers")
    (serving,) = psutil.Process(starting.pid).children()
    os.killpg(starting.pid, number)
    if number != signal.SIGINT:
        starting.wait(30)  # otherwise it waits for the server
    (tmp_path / "go").touch()
    assert starting.communicate(timeout=60)[0] == ""
    assert starting.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert process_has_ended(serving.pid)
    wait_until(lambda: process_has_ended(serving.pid), "the server has ended")
    assert not os.path.lexists(tmp_path / "queue")


def test_start_that_is_interrupted_before_it_has_said_where(tmp_path: Path) -> None:
    """A server whose directory is not printed yet, since the pipe is full, ends with Ctrl-C."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    starting = start("serve", "start", "--log", "app.log", "--queue", "queue", directory=tmp_path, stdout=writing)
    os.close(writing)
    wait_until((tmp_path / "queue").exists, "the server is ready")
    (serving,) = psutil.Process(starting.pid).children()
    starting.send_signal(signal.SIGINT)
    assert starting.wait(60) == 130
    os.close(reading)
    assert process_has_ended(serving.pid)
    assert not os.path.lexists(tmp_path / "queue")


def _serving(queue: str) -> psutil.Process:
    (serving,) = [each for each in psutil.process_iter(["cmdline"]) if queue in (each.info["cmdline"] or ())]
    return serving


def test_stop_of_a_server_that_is_slow(
    tmp_path: Path, queue: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that does not answer in time is said to run, and ends by what it was asked when it can."""
    monkeypatch.setattr(stop_socket, "GRACE", 0.1)
    serving = _serving(queue)
    serving.suspend()
    try:
        assert main(["serve", "stop", "--queue", queue, "--timeout", "0.1"]) == 1
    finally:
        serving.resume()
    assert "still runs, but has not answered for 0.2 seconds" in capsys.readouterr().err
    wait_until(lambda: process_has_ended(serving.pid), "the server has ended")


@needs_proc
def test_stop_of_a_server_that_is_killed(tmp_path: Path, queue: str) -> None:
    """One that is killed while it is asked is said to have been."""
    serving = _serving(queue)
    directory = os.path.realpath(queue)
    with contextlib.closing(LogQueue.open(directory)):  # as long as that is open, the log goes on
        serving.suspend()
        stopping = start("serve", "stop", "--queue", queue, directory=tmp_path, stderr=-1)
        wait_until(lambda: _asking(directory) == 1, "it is asked")
        serving.kill()
        assert "was killed before it could answer" in stopping.communicate(timeout=60)[1]
    assert stopping.returncode == 1
    wait_until(lambda: not os.path.exists(directory), "the log ends")


@pytest.mark.parametrize("path", [b"", b"/queue\n"])
def test_start_of_a_server_that_is_killed(path: bytes, tmp_path: Path) -> None:
    """One that is killed while it starts, also when it has just said that it is ready, is said to have been."""
    code = f"""\
import io, os, signal, sys
from mplog.cli import background

class Output(io.TextIOWrapper):
    def fileno(self):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        return 1

def serve(starter):
    starter.sendall({path!r})
    os.kill(os.getpid(), signal.SIGKILL)

sys.stdout = Output(sys.stdout.buffer)
sys.exit(background.start_in_background(serve, is_known=True))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.encode() == path
    assert (done.returncode, done.stderr) == (1, "mplog serve: the server was killed while it started\n")


def test_stop_of_a_server_that_is_killed_before_it_is_told_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes no difference to what is said."""
    listener = stop_socket.listen(str(tmp_path))

    class Late(socket.socket):
        def connect(self, address: Any) -> None:
            super().connect(address)
            listener.close()

    monkeypatch.setattr(socket, "socket", Late)
    with pytest.raises(MplogError, match="was killed before it could answer"):
        stop_socket.ask_to_end(str(tmp_path), 1.0)


@needs_proc
def test_stop_twice_at_once(tmp_path: Path, queue: str) -> None:
    """Every client that asks a server to end gets its account."""
    serving, directory = _serving(queue), os.path.realpath(queue)
    serving.suspend()
    stopping = [start("serve", "stop", "--queue", queue, directory=tmp_path, stdout=-1) for _ in range(3)]
    try:
        wait_until(lambda: _asking(directory) == 3, "all have asked")
    finally:
        serving.resume()
    assert [each.communicate(timeout=60)[0] for each in stopping] == ["0 records of 0 processes written\n"] * 3


def _asking(directory: str) -> int:
    """Return how many have connected to a server that never answers."""
    return Path("/proc/net/unix").read_text().count(f" {directory}/serve\n") - 1  # that of the server itself


# --- in the foreground ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    """It prints its queue, tells systemd and the descriptor when it is ready, and ends with 0 and a complete log."""
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service, open(reading, "rb") as ready:
        service.bind(str(tmp_path / "notify"))
        service.settimeout(30)
        serving = start(
            *("serve", "--log", "app.log", "--ready-fd", writing),
            directory=tmp_path,
            changes={"NOTIFY_SOCKET": str(tmp_path / "notify")},
            pass_fds=[writing],
            stdout=-1,
        )
        os.close(writing)
        try:
            assert service.recv(100) == b"READY=1"
            directory = os.fsdecode(ready.read()).rstrip("\n")
            assert serving.stdout is not None
            assert serving.stdout.readline() == f"{directory}\n"
            assert mplog("log", "--queue", directory, "info", "x", directory=tmp_path).returncode == 0
            serving.send_signal(number)
            assert service.recv(100) == b"STOPPING=1"
            assert serving.wait(30) == 0
            serving.stdout.close()
        finally:
            serving.kill()
    assert messages(tmp_path / "app.log") == ["x"]
    assert not os.path.exists(directory)


def test_sighup_reopens_the_files(tmp_path: Path) -> None:
    """Later records are in a new file of the same name."""
    serving = start("serve", "--log", "app.log", directory=tmp_path, stdout=-1)
    assert serving.stdout is not None
    directory = serving.stdout.readline().rstrip("\n")
    try:
        os.rename(tmp_path / "app.log", tmp_path / "old.log")
        serving.send_signal(signal.SIGHUP)
        wait_until((tmp_path / "app.log").exists, "the file was reopened")
        assert mplog("log", "--queue", directory, "info", "new", directory=tmp_path).returncode == 0
        stopped = mplog("serve", "stop", "--queue", directory, directory=tmp_path)
        assert stopped.returncode == 0
        assert serving.wait(30) == 0
    finally:
        serving.kill()
        serving.stdout.close()
    assert messages(tmp_path / "app.log")[-1] == "new"


def test_output_that_is_closed(tmp_path: Path) -> None:
    """It goes on if its output has no reader."""
    reading, writing = os.pipe()
    os.close(reading)
    serving = start("serve", "--log", "app.log", "--queue", "queue", directory=tmp_path, stdout=writing)
    os.close(writing)
    try:
        wait_until((tmp_path / "queue").exists, "the server runs")
        wait_until(
            lambda: mplog("log", "--queue", "queue", "info", "x", directory=tmp_path).returncode == 0,
            "it takes records",
        )
        stopped = mplog("serve", "stop", "--queue", "queue", directory=tmp_path)
        assert (stopped.returncode, serving.wait(30)) == (0, 0)
    finally:
        serving.kill()


def test_server_that_cannot_be_found_is_not_left(tmp_path: Path) -> None:
    """Where the directory cannot be printed, start fails and the server ends; with --queue, its name is known."""
    reading, writing = os.pipe()
    os.close(reading)
    start_it = ("serve", "start", "--log", "app.log")
    with open(writing, "w") as closed:
        starting = start(*start_it, directory=tmp_path, stdout=closed, stderr=subprocess.PIPE)
        assert "cannot be printed (Broken pipe)" in starting.communicate(timeout=60)[1]
        assert starting.returncode == 1
        starting = start(*start_it, "--queue", "queue", directory=tmp_path, stdout=closed, stderr=subprocess.PIPE)
        assert (starting.communicate(timeout=60)[1], starting.returncode) == ("", 0)
    assert mplog("serve", "stop", "--queue", "queue", directory=tmp_path).returncode == 0


@pytest.fixture(autouse=True)
def no_server_left(tmp_path: Path) -> Iterator[None]:
    """Check that no test leaves a server; one that has been told to stop may take a moment to end."""
    yield
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if "serve" in (process.info["cmdline"] or ()) and process.cwd() == str(tmp_path):
                found.append(process)
    _, left = psutil.wait_procs(found, timeout=30)
    for process in left:
        process.kill()
        process.wait(30)
    assert not left
