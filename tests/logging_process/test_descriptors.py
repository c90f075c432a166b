"""A logging process without free descriptors goes on with the files that are open (fault 25)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import wait_until
from scripts import environment, lines, stop_all_threads, write_script

import mplog

pytestmark = pytest.mark.processes

resource: Any = pytest.importorskip("resource")


def allow_descriptors(pid: int, count: int) -> None:
    """Let a process open no descriptor from this number on; those that are open stay."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, hard))


def _impatient() -> logging.Handler:
    """Runs in the logging process: let it soon try again what has failed."""
    from mplog.files import rotation

    rotation.RETRY_SECONDS = 0.05
    return logging.NullHandler()


def _log(initializer: Any, count: int) -> None:
    """Runs in a worker."""
    initializer()
    for number in range(count):
        logging.info("%d %s", number, "x" * 100)


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest", "fallback"])
def test_logging_process_without_descriptors_writes_on(tmp_path: Path, policy: str) -> None:
    """New workers, a full queue and a rotation that is due cost no record; the rotation is done when descriptors are
    free again."""
    count, log = 20_000, tmp_path / "app.log"
    sink = mplog.FileSink(log, rotate="200 kB", archive="app.{index:03}.log")
    options: dict[str, Any] = {"format": "%(message)s", "overflow": policy, "buffer_size": 2 * 2**20}
    with mplog.LogServer(sink, mplog.HandlerSink(_impatient), level="INFO", **options) as server:
        logging.info("first")
        server.flush()
        pid, context = server.pid, multiprocessing.get_context("fork")
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
        stop_all_threads(pid)
        worker = context.Process(target=_log, args=(server.initializer, count))
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
        allow_descriptors(pid, 4)  # as many as the loop waits for
        os.kill(pid, signal.SIGCONT)
        server.flush(60)
        logging.info("without")
        server.flush(60)
        assert server.pid == pid, "it lives"
        assert psutil.pid_exists(pid)
        assert "without" in log.read_text(), "it is the file that was open"
        allow_descriptors(pid, before)
        wait_until(lambda: logging.info("with") or list(tmp_path.glob("app.0*")), "the file is rotated")
        stats = server.stop()
    text = [line for path in [*sorted(tmp_path.glob("app.0*.log")), log] for line in lines(path)]
    written = [line for line in text if "x" * 100 in line]
    assert len(set(written)) == len(written) == count - stats.dropped
    assert bool(stats.dropped) == (policy != "fallback")
    said = [re.match(r"mplog: ([\d,]+) records? dropped by", line) for line in text]
    assert sum(int(match[1].replace(",", "")) for match in said if match) == stats.dropped


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_program_without_standard_streams_logs(tmp_path: Path, closing: str) -> None:
    """If a daemon has closed them, no logging process, first or next, opens anything else under their numbers."""
    program = write_script(
        tmp_path,
        """
        import logging, os, signal, sys
        import mplog

        def streams(pid):
            return [os.readlink(f"/proc/{pid}/fd/{number}") for number in sys.argv[2:]]

        if __name__ == "__main__":
            with mplog.LogServer(sys.argv[1], level="INFO", format="%(message)s") as server:
                logging.info("%s", streams(server.pid))
                server.flush()
                os.kill(server.pid, signal.SIGKILL)
                server.flush()
                logging.info("%s", streams(server.pid))
        """,
    )
    numbers = [number for number, stream in (("0", "<"), ("1", " >&"), ("2", "2>&")) if stream in f" {closing}"]
    command = f'exec "$0" program.py app.log {" ".join(numbers)} {closing}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable],
        cwd=program.parent,
        env=environment(MPLOG_QUEUE=None),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    closed = str(["/dev/null"] * len(numbers))
    assert [line for line in lines(tmp_path / "app.log") if not line.startswith("mplog: ")] == [closed, closed]


WITHOUT_DESCRIPTORS = """
import logging, mplog, os, resource, signal, sys

if __name__ == "__main__":
    server = mplog.LogServer("app.log", level="INFO", format="%(message)s").start()
    logging.info("first")
    server.flush()
    killed = server.pid
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))
    os.kill(killed, signal.SIGKILL)
    logging.info("second")
    for _ in range(2):
        try:
            server.flush(50)
        except mplog.DrainTimeoutError as error:
            print("this program had no file descriptor left" in str(error), server.pid != killed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    logging.info("third")
    sys.stdout.flush()
    os._exit(0)
"""


def test_program_without_descriptors_is_told_so(tmp_path: Path) -> None:
    """A program that has no descriptor for the connection to the next logging process learns that and waits for
    nothing, also once it has descriptors again; its records are written."""
    script = write_script(tmp_path, WITHOUT_DESCRIPTORS)
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8", timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "True True\n" * 2), done.stderr
    log = tmp_path / "app.log"
    wait_until(lambda: "third" in lines(log), "what the program has logged is written")
    assert [line for line in lines(log) if "mplog:" not in line] == ["first", "second", "third"]
