"""stop() while other processes flood, order and ownership of the file: promises 1, 5, 6 and 9; faults 14 and 30."""

from __future__ import annotations

import glob
import logging
import os
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from floods import flood_until_refused
from oracle import acknowledged, verdict, wait_until
from scripts import elapsed, kill_for_good, lines, run_script

import mplog

pytestmark = pytest.mark.processes


def test_stop_under_flood_is_bounded_and_nothing_vanishes(
    context: Any, server: mplog.LogServer, log: Path, tmp_path: Path
) -> None:
    """While workers flood, stop() ends in time; each record is in the file or was refused in its worker."""
    names = ["w1", "w2", "w3", "w4"]
    arguments = [(server.initializer, str(tmp_path), name) for name in names]
    workers = [context.Process(target=flood_until_refused, args=each) for each in arguments]
    for worker in workers:
        worker.start()
    for name in names:
        wait_until(lambda name=name: acknowledged(tmp_path, name) > 100, f"{name} logs")  # type: ignore[misc]
    started = time.monotonic()
    stats = server.stop()
    assert elapsed(started) < 10
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    found = verdict(log, tmp_path)
    refused = [(name, int(number)) for name in names for number in lines(tmp_path / f"refused-{name}")]
    assert max(Counter(refused).values()) == 1
    assert not (found.doubled or found.disordered or found.torn)
    # A record may be refused in one moment, and the next one taken in the last one of the closing queue.
    assert sorted(found.lost) == sorted(refused)
    assert found.written + len(refused) == found.acknowledged
    # dill logs, too, at the level of this server, in this process.
    received = sum(count for (_, pid), count in stats.by_process.items() if pid != os.getpid())
    assert received == found.written
    for name in names:
        (notice,) = lines(tmp_path / f"stderr-{name}")
        assert "nobody reads" in notice or "does not exist any more" in notice


# --- promises 1 and 6 ---


def hold_still(server: Any, ready: Any, done: Any) -> None:
    """Runs in a worker: log, and stay to be looked at."""
    server()
    logging.info("x")
    ready.release()
    done.wait(30)


def test_only_the_logging_process_opens_the_log(stdlib_context: Any, server: mplog.LogServer, log: Path) -> None:
    """Only the logging process has the log open, and neither the program nor a worker."""
    ready, done = stdlib_context.Semaphore(0), stdlib_context.Event()
    workers = [
        stdlib_context.Process(target=hold_still, args=(server.initializer, ready, done), daemon=True) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        assert ready.acquire(timeout=30)
    logging.info("x")
    server.flush()
    assert log in open_files(server.pid)
    for pid in (os.getpid(), *(worker.pid for worker in workers)):
        assert log not in open_files(pid)
    done.set()
    for worker in workers:
        worker.join(30)


def open_files(pid: int) -> list[Path]:
    """Return what a process has open."""
    return [Path(os.readlink(entry)) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]


def take_turns(server: Any, mine: Any, theirs: Any, rounds: int) -> None:
    """Runs in a worker: log after the other worker has logged."""
    server()
    for number in range(rounds):
        assert mine.acquire(timeout=30)
        logging.info("%d", number)
        theirs.release()


def test_order_in_the_file_is_the_order_of_the_calls(stdlib_context: Any, log: Path) -> None:
    """If a call has returned before a call in another process began, its record stands first in the file."""
    with mplog.LogServer(log, level="INFO", format="%(processName)s %(message)s") as server:
        turns = [stdlib_context.Semaphore(0) for _ in range(3)]
        workers = [
            stdlib_context.Process(
                target=take_turns, args=(server.initializer, turns[i], turns[(i + 1) % 3], 300), name=f"w{i}"
            )
            for i in range(3)
        ]
        for worker in workers:
            worker.start()
        turns[0].release()
        for worker in workers:
            worker.join(30)
    assert lines(log) == [f"w{i} {number}" for number in range(300) for i in range(3)]


# --- promise 9 ---


def test_import_does_nothing(tmp_path: Path) -> None:
    """Importing all of mplog starts no thread and no process, opens nothing, and changes nothing of the program's."""
    result = run_script(
        tmp_path,
        """
        import atexit, logging.handlers, multiprocessing.util, os, signal, subprocess, sys, tempfile, threading
        import multiprocessing.managers, multiprocessing.pool, concurrent.futures.process, asyncio
        import cloudpickle, filelock, msgspec, multiprocess.util

        def state():
            return (
                threading.enumerate(), sorted(os.listdir("/proc/self/fd")), atexit._ncallbacks(), dict(os.environ),
                [signal.getsignal(number) for number in signal.valid_signals()], sys.excepthook, threading.excepthook,
                logging.getLogger().handlers, logging.getLogger().level, logging.getLoggerClass(),
                logging.getLogRecordFactory(), dict(logging.Logger.manager.loggerDict), logging.raiseExceptions,
                os.listdir(tempfile.gettempdir()), list(multiprocessing.util._finalizer_registry),
                os.path.exists("/proc/self/task/%d/children" % os.getpid())
                and open("/proc/self/task/%d/children" % os.getpid()).read(),
            )

        before = state()
        import mplog
        for name in mplog.__all__:
            getattr(mplog, name)
        assert "mplog.server.log_server" in sys.modules
        assert state() == before, (before, state())
        """,
    )
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")


# --- fault 14 ---


@pytest.mark.parametrize("way", ["the same path", "a relative path", "a directory's symbolic link", "a symbolic link"])
def test_second_server_on_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """One file has one logging process: by whatever path, a second is refused with the pid of the first."""
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "app.log"
    (tmp_path / "link").symlink_to("logs")
    (tmp_path / "link.log").symlink_to("logs/app.log")
    monkeypatch.chdir(tmp_path)
    sink = {
        "the same path": mplog.FileSink(log),
        "a relative path": mplog.FileSink("logs/../logs/app.log"),
        "a directory's symbolic link": mplog.FileSink(tmp_path / "link" / "app.log"),
        "a symbolic link": mplog.FileSink("link.log", follow_symlinks=True),
    }[way]
    with mplog.LogServer(log, level="INFO") as server:
        with pytest.raises(mplog.LogFileLockedError, match=f"already written.*pid {server.pid}, since 20") as caught:
            mplog.LogServer(sink).start()
        assert caught.value.pid == server.pid
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", caught.value.since or "")
        assert os.path.basename(caught.value.path) == "app.log"
        logging.info("unhurt")
    assert "unhurt" in lines(log)[0]
    assert os.listdir(tmp_path / "logs") == ["app.log"]
    mplog.LogServer(sink).start().stop()


def test_lock_of_a_killed_owner_is_free_at_once(log: Path) -> None:
    """After a logging process was killed, the next one takes over its file."""
    first = mplog.LogServer(log, level="INFO").start()
    kill_for_good(first)
    with mplog.LogServer(log, level="INFO", format="%(message)s"):
        logging.info("the second")
        with pytest.raises(mplog.LoggingProcessDiedError):
            first.stop()  # and leaves the lock of the second alone
        with pytest.raises(mplog.LogFileLockedError):
            mplog.LogServer(log).start()
    assert lines(log) == ["the second"]
    assert os.listdir(log.parent) == [log.name]


def test_lock_works_in_a_directory_that_is_not_writable(tmp_path: Path) -> None:
    """In a directory without write permission, a file has one owner, too, and the lock is removed at the end."""
    from scripts import drop_privileges

    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "app.log").touch()
    (tmp_path / "closed").chmod(0o555)
    result = run_script(
        tmp_path,
        """
        import glob, logging, tempfile
        import mplog
        with mplog.LogServer("closed/app.log", level="INFO", format="%(message)s") as server:
            logging.info("written")
            try:
                mplog.LogServer("closed/app.log").start()
            except mplog.LogFileLockedError as error:
                print(error.pid == server.pid)
        print(glob.glob(tempfile.gettempdir() + "/mplog*"))
        """,
        preexec_fn=drop_privileges,
    )
    assert (result.stderr, result.stdout) == ("", "True\n[]\n")
    assert os.listdir(tmp_path / "closed") == ["app.log"]
    assert lines(tmp_path / "closed" / "app.log") == ["written"]


# --- servers in unusual places ---


def serve(path: str) -> None:
    """Runs in a worker: be a program of its own."""
    with mplog.LogServer(path, level="INFO", format="%(processName)s %(message)s"):
        logging.info("served")


def serve_without_stop(path: str) -> None:
    """Runs in a worker: the same, without stop()."""
    mplog.LogServer(path, level="INFO", format="%(processName)s %(message)s").start()
    logging.info("served")


@pytest.mark.parametrize("daemon", [False, True], ids=["worker", "daemonic worker"])
@pytest.mark.parametrize("target", [serve, serve_without_stop])
def test_server_started_in_a_worker(context: Any, log: Path, daemon: bool, target: Any) -> None:
    """A worker, even a daemonic one, can have a server, which ends with the worker at the latest."""
    worker = context.Process(target=target, args=(str(log),), daemon=daemon, name="w")
    worker.start()
    worker.join(30)
    assert worker.exitcode == 0
    # The last thing that a logging process does.
    wait_until(lambda: not glob.glob(os.path.join(tempfile.gettempdir(), "mplog-*")), "the logging process has ended")
    assert lines(log) == ["w served"]
    assert os.listdir(log.parent) == [log.name]
