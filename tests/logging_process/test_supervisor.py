"""What happens when the supervisor cannot start a logging process, or is itself killed: fault 37."""

from __future__ import annotations

import ctypes
import logging
import os
import random
import re
import resource
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import wait_until
from scripts import kill_for_good, lines, process_has_ended, run_script, stop_all_threads

import mplog
from mplog.logging_process.messages import Patience

pytestmark = pytest.mark.processes

#: One that gives up soon.
IMPATIENT = Patience(at_once=0, first_pause=0.01, longest_pause=0.02, restarts=4, seconds=0.2)


def supervisor_of(server: mplog.LogServer) -> int:
    """Return the pid of the supervisor."""
    return psutil.Process(server.pid).ppid()


def test_death_of_the_supervisor_is_said(tmp_path: Path) -> None:
    """Without its supervisor, the logging process goes on; the log says what that means, and the server runs."""
    log = tmp_path / "app.log"
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        os.kill(supervisor_of(server), signal.SIGKILL)
        wait_until(lambda: "the supervisor of the logging process was killed" in log.read_text(), "the log says so")
        assert server.is_running
        logging.info("after")
        server.flush()
        # There is no one to replace it.
        os.kill(server.pid, signal.SIGTERM)
        logging.info("after SIGTERM")
        assert server.stop().received == 2
    assert lines(log)[1:] == ["after", "after SIGTERM"]


def test_what_a_dead_logging_process_is_told_harms_nothing(tmp_path: Path) -> None:
    """The program tells a logging process that has just died of a child, and goes on with the next one."""
    with mplog.LogServer(tmp_path / "app.log", level="INFO") as server:
        for number in range(3):
            pid = server.pid
            supervisor = psutil.Process(pid).parent()
            assert supervisor is not None
            os.kill(pid, signal.SIGKILL)
            # In turn before the next one is there, and after.
            wait_until(lambda pid=pid: process_has_ended(pid), "it is dead")
            if number % 2:
                wait_until(lambda parent=supervisor: parent.children(), "there is another one")
            server.note_end(os.getpid(), "child", 7)
            server.flush()
            assert server.pid != pid


def _log_on(initializer: Any, number: int) -> None:
    """Runs in a worker."""
    initializer()
    logging.info("worker %d", number)
    logging.debug("below the level")


def test_what_is_logged_after_both_were_killed_waits_for_the_next_server(
    tmp_path: Path, context: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once supervisor and logging process were killed, records of all levels go into the emergency file, each process
    says so once, and the next server of the log writes them."""
    log = tmp_path / "app.log"
    server = mplog.LogServer(log, level="INFO", format="%(message)s").start()
    logging.info("before")
    server.flush()
    initializer = server.initializer
    kill_for_good(server)
    assert not server.is_running
    for number in range(3):
        logging.info("after %d", number)
    worker = context.Process(target=_log_on, args=(initializer, 1))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mplog: ")]
    # The stderr of a forkserver is that of an earlier test.
    for pid in [os.getpid()] if context.get_start_method() == "forkserver" else [os.getpid(), worker.pid]:
        (line,) = (line for line in said if f"Records of pid {pid} go into" in line)
        assert str(tmp_path / ".app.log.emergency") in line
    with pytest.raises(mplog.LoggingProcessDiedError, match="emergency file"):
        server.stop()
    with mplog.LogServer(log, level="INFO", format="%(message)s"):
        logging.info("next")
    assert lines(log) == ["before", "after 0", "after 1", "after 2", "worker 1", "next"]
    assert os.listdir(tmp_path) == ["app.log"]


def test_worker_of_a_server_that_has_ended_in_order_keeps_nothing_for_the_next(tmp_path: Path) -> None:
    """A record that is logged after stop() is refused, whatever the instant, and there is no emergency file."""
    log = tmp_path / "app.log"
    server = mplog.LogServer(log, level="INFO", format="%(message)s").start()
    queue = server.queue
    server.stop()
    with pytest.raises(mplog.NoReaderError):
        queue.put(logging.makeLogRecord({"msg": "too late"}))
    assert os.listdir(tmp_path) == ["app.log"]


def allow_descriptors(pid: int, count: int | None = None) -> int:
    """Set the limit on descriptors of a process, to what it has by default; return the one before."""
    count = count or min(set(range(3, 1000)) - set(map(int, os.listdir(f"/proc/{pid}/fd"))))
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, hard))
    return soft


def test_logging_process_that_cannot_be_replaced_at_once_is_replaced_later(tmp_path: Path) -> None:
    """While the supervisor has no descriptor left, records wait; when it has again, they are written."""
    log = tmp_path / "app.log"
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        logging.info("before")
        server.flush()
        supervisor, pid = psutil.Process(supervisor_of(server)), server.pid
        before = allow_descriptors(supervisor.pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: process_has_ended(pid), "it is dead")
        logging.info("meanwhile")
        wait_until(lambda: supervisor.status() == "sleeping" and not supervisor.children(), "it waits")
        allow_descriptors(supervisor.pid, before)
        server.flush()
        assert server.pid != pid
    assert [line for line in lines(log) if "mplog:" not in line] == ["before", "meanwhile"]


def test_logging_process_that_cannot_be_replaced_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """If no logging process can be started for long, what is left goes into the emergency file, and stderr says why;
    the next server writes it."""
    monkeypatch.setattr("mplog.server.log_server.PATIENCE", IMPATIENT)
    log = tmp_path / "app.log"
    server = mplog.LogServer(log, level="INFO", format="%(message)s").start()
    supervisor, pid = supervisor_of(server), server.pid
    stop_all_threads(pid)
    logging.info("unread")
    allow_descriptors(supervisor)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.flush()
    wait_until(lambda: process_has_ended(supervisor), "it has given up")
    logging.info("into the file")
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop()
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "given up" in line]
    assert re.match(r"mplog: no logging process could be started: .*Too many open files.*is given up", said)
    with mplog.LogServer(log, level="INFO", format="%(message)s"):
        pass
    assert lines(log) == ["unread", "into the file"]


def _as_a_user_with_few_processes() -> None:
    """As `preexec_fn`: have limits on processes, which are counted by real user, hold for root."""
    libc = ctypes.CDLL(None)
    cap_sys_admin, cap_sys_resource, pr_capbset_drop = 21, 24, 24
    for capability in (cap_sys_admin, cap_sys_resource):
        libc.prctl(pr_capbset_drop, capability, 0, 0, 0)
    os.setreuid(random.randrange(100_000, 2**31), 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without processes")
@pytest.mark.parametrize("limit", [1, 2])
def test_start_says_why_no_process_can_be_started(tmp_path: Path, limit: int) -> None:
    """Where the machine lets a user have no more processes, start() raises StartError that says so, or where to look.

    With a limit of 2, there is room for the interpreter that is started, and not for the supervisor.
    """
    result = run_script(
        tmp_path,
        """
        import resource, sys
        import mplog

        resource.setrlimit(resource.RLIMIT_NPROC, (int(sys.argv[1]), int(sys.argv[1])))
        try:
            mplog.LogServer("app.log").start()
        except mplog.StartError as error:
            print(error)
        """,
        limit,
        preexec_fn=_as_a_user_with_few_processes,
    )
    assert result.returncode == 0, result
    assert "Resource temporarily unavailable" in (result.stdout if limit == 1 else result.stderr), result
    assert re.match("the logging process (could not be started|ended before it was ready)", result.stdout)
    assert os.listdir(tmp_path) == ["program.py"]
