"""Disks that are full, files that others move or forbid, under a running server (promise 5; faults 9, 11, 13)."""

from __future__ import annotations

import glob
import gzip
import itertools
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from oracle import Producer, verdict, wait_until
from scripts import drop_privileges, elapsed, fill_disk, lines, run_script, stop_all_threads

import mplog
from mplog.queue.kill_points import VARIABLE

pytestmark = pytest.mark.processes


def _produce(initializer: Any, directory: str, lines: int) -> None:
    """Runs in a worker."""
    initializer()
    producer = Producer(directory)
    for _ in range(lines):
        producer.log(200)


def test_full_disk_that_is_freed_loses_nothing(
    tmp_path: Path, small_disk: Path, stdlib_context: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a full disk has no room for waits, and is written when there is room; stderr and the log say so, once."""
    log = small_disk / "app.log"
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        logging.info("begin")
        server.flush()
        ballast = fill_disk(small_disk)
        workers = [
            stdlib_context.Process(target=_produce, args=(server.initializer, str(tmp_path), 500)) for _ in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)  # nobody waits for the disk as long as there is room in the buffers
            assert worker.exitcode == 0
        with pytest.raises(mplog.DrainTimeoutError):
            server.flush(0.5)
        ballast.unlink()
        server.flush()
    found = verdict(log, tmp_path)
    assert found.clean, found
    assert found.written == 1000
    said = [line for line in capfd.readouterr().err.splitlines() if "cannot be written at the moment" in line]
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert [line for line in lines(log) if "the log could not be written for" in line]


def test_killed_while_the_disk_is_full_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    """A logging process that is killed while its disk is full leaves everything to the next one."""
    log = small_disk / "app.log"
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        logging.info("begin")
        server.flush()
        ballast = fill_disk(small_disk)
        _produce(server.initializer, str(tmp_path), 300)
        with pytest.raises(mplog.DrainTimeoutError):
            server.flush(0.5)
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.pid != pid, "it is restarted")
        ballast.unlink()
        server.flush()
    found = verdict(log, tmp_path)
    assert found.clean, found
    assert found.written == 300


def _impatient() -> logging.Handler:
    """Runs in the logging process: have the end wait for a disk for a second only."""
    from mplog.logging_process import loop

    loop.LAST_RETRIES_SECONDS = 1.0
    return logging.NullHandler()


def test_stop_while_the_disk_stays_full_is_bounded(tmp_path: Path, small_disk: Path) -> None:
    """At the end, a disk that stays full is waited for once, not once for each batch; what is lost is counted."""
    log = small_disk / "app.log"
    server = mplog.LogServer(log, mplog.HandlerSink(_impatient), level="INFO", format="%(message)s").start()
    logging.info("begin")
    server.flush()
    fill_disk(small_disk)
    for number in range(6000):
        logging.info("%0100d", number)
    with pytest.raises(mplog.DrainTimeoutError, match="It goes on writing, and nothing is lost"):
        server.flush(0.1)
    started = time.monotonic()
    with pytest.raises(mplog.DrainTimeoutError, match="for which a disk has no room within a minute are lost"):
        server.stop(0.1)
    stats = server.stop()
    assert elapsed(started) < 8, "there are 8 batches and more"
    written = len([line for line in lines(log) if line.isdigit()])
    assert written < 6000
    assert sum(stats.failed.values()) == 6000 - written


def test_flush_while_a_batch_waits_for_the_disk_doubles_nothing(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush() that waits for a function is not answered, and nothing noted, in the middle of a batch."""
    monkeypatch.setenv(VARIABLE, "after write:2")
    log, gate = small_disk / "app.log", str(tmp_path / "gate")

    def wait(batch: list[Any]) -> None:
        while not os.path.exists(gate):
            time.sleep(0.01)

    with mplog.LogServer(log, mplog.CallableSink(wait), level="INFO", format="%(message)s") as server:
        pid, directory = server.pid, server.queue.directory
        logging.info("begin")
        wait_until(lambda: log.read_text() == "begin\n", "it is written")
        with pytest.raises(mplog.DrainTimeoutError):
            server.flush(0.2)
        ballast = fill_disk(small_disk)
        stop_all_threads(pid)  # so that it is one batch
        for number in range(300):
            logging.info("%0100d", number)
        os.kill(pid, signal.SIGCONT)
        undelivered = f"{directory}/undelivered-1-*"
        wait_until(lambda: len(glob.glob(undelivered)) > 1, "it has begun with the batch")
        Path(gate).touch()
        wait_until(lambda: not glob.glob(undelivered), "the function has taken all")
        with pytest.raises(mplog.DrainTimeoutError):
            server.flush(0.5)
        ballast.unlink()
        wait_until(lambda: server.pid != pid, "it is killed after the batch")
        stats = server.stop()
    assert [line for line in lines(log) if line.isdigit()] == [f"{number:0100}" for number in range(300)]
    assert stats.received == 301


def test_plain_queue_waits_for_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    """While its disk is full, a logging process takes so many batches of a plain queue, and loses none of them."""

    def shallow() -> logging.Handler:
        import sys

        sys.setrecursionlimit(200)
        return logging.NullHandler()

    log = small_disk / "app.log"
    queue = multiprocessing.get_context("spawn").Queue(1000)
    sinks = log, mplog.HandlerSink(shallow)
    with mplog.LogServer(*sinks, level="INFO", format="%(message)s", queue=queue) as server:
        logging.info("begin")
        wait_until(lambda: log.read_text() == "begin\n", "it is written")
        ballast = fill_disk(small_disk)
        for number in range(100):
            logging.info("%0100d", number)
            wait_until(lambda number=number: server.stats().received > number, "it is a batch of its own")
        ballast.unlink()
    assert [line for line in lines(log) if line.isdigit()] == [f"{number:0100}" for number in range(100)]


def test_killed_while_one_of_two_files_waits_for_its_disk(tmp_path: Path, small_disk: Path) -> None:
    """Files that were rotated in a batch that is not noted yet are neither compressed nor removed before it is."""
    logs = tmp_path / "logs"
    logs.mkdir()
    rotated = mplog.FileSink(logs / "app.log", rotate="1 kB", compress="gz", archive="app.{index}.log")
    with mplog.LogServer(rotated, small_disk / "app.log", level="INFO", format="%(message)s") as server:
        logging.info("begin")
        server.flush()
        ballast, pid = fill_disk(small_disk), server.pid
        stop_all_threads(pid)  # so that it is one batch
        for number in range(50):
            logging.info("%0100d", number)
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: len(list(logs.glob("app.*.log*"))) == 5, "it has rotated the one, and waits for the other")
        time.sleep(0.3)  # in which nothing is to happen
        assert list(logs.glob("*.gz")) == []
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.pid != pid, "it is restarted")
        ballast.unlink()
        server.flush()
        wait_until(lambda: len(list(logs.glob("app.*.gz"))) >= 5, "then they are compressed")
    expected = [f"{number:0100}" for number in range(50)]
    files = sorted(logs.glob("app.*.gz"), key=lambda path: int(path.name.split(".")[1]))
    text = "".join(gzip.decompress(path.read_bytes()).decode() for path in files) + (logs / "app.log").read_text()
    assert [line for line in text.splitlines() if line.isdigit()] == expected
    assert [line for line in lines(small_disk / "app.log") if line.isdigit()] == expected


def test_sighup_reopens_files(tmp_path: Path) -> None:
    """As other daemons do, the logging process reopens its files on SIGHUP."""
    log = tmp_path / "app.log"
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        logging.info("before")
        server.flush()
        log.rename(tmp_path / "moved.log")
        os.kill(server.pid, signal.SIGHUP)
        wait_until(log.exists, "the file is reopened")
        logging.info("after")
    assert lines(tmp_path / "moved.log") == ["before"]
    assert lines(log)[-1] == "after"


def test_files_moved_deleted_and_truncated_under_a_server(tmp_path: Path) -> None:
    """What others do to its files is noticed within about a second, said, and costs no record after that."""
    kept = tmp_path / "kept"
    kept.mkdir()
    logs = [tmp_path / f"{how}.log" for how in ("moved", "deleted", "truncated")]
    moved, deleted, truncated = logs
    with mplog.LogServer(*logs, level="INFO", format="%(message)s") as server:
        for number in range(100):
            logging.info("record %d", number)
        server.flush()
        moved.rename(kept / "moved.log")
        deleted.unlink()
        (kept / "truncated.log").write_bytes(truncated.read_bytes())
        os.truncate(truncated, 0)
        sent = itertools.count(100)
        for log in logs:
            wait_until(
                lambda log=log: (
                    logging.info("record %d", next(sent)) or (log.exists() and "mplog: " in log.read_text())
                ),
                f"it says what has become of {log.name}",
            )
        last = next(sent)
        logging.info("record %d", last)
    found = {
        path: [int(line.split()[1]) for line in lines(path) if line.startswith("record ")]
        for path in [*logs, *kept.iterdir()]
    }
    assert found[kept / "moved.log"] + found[moved] == list(range(last + 1))
    assert found[kept / "truncated.log"] + found[truncated] == list(range(last + 1))
    assert found[deleted] == list(range(100, last + 1))
    assert all("\0" not in log.read_text() for log in logs)


def test_directory_that_may_not_be_written_any_more(tmp_path: Path) -> None:
    """Without permission for new files the log is written on, which it says; with it again, it is rotated."""
    done = run_script(
        tmp_path,
        """
        import logging, os, time
        from pathlib import Path
        import mplog

        def impatient():
            from mplog.files import rotation
            rotation.RETRY_SECONDS = 0.05
            return logging.NullHandler()

        if __name__ == "__main__":
            logs = Path("logs")
            logs.mkdir()
            file = mplog.FileSink("logs/app.log", rotate="1 kB", archive="app.{index}.log")
            sinks = file, mplog.HandlerSink(impatient)
            with mplog.LogServer(*sinks, level="INFO", format="%(message)s") as server:
                logging.info("%0100d", 0)
                server.flush()
                logs.chmod(0o555)
                for number in range(1, 30):
                    logging.info("%0100d", number)
                server.flush()
                assert os.listdir("logs") == ["app.log"] or len(list(logs.glob("*.log"))) == 1, os.listdir("logs")
                assert "could not be rotated, so writing goes on in the same file" in (logs / "app.log").read_text()
                logs.chmod(0o755)
                deadline = time.monotonic() + 30
                while not (logs / "app.1.log").exists():
                    assert time.monotonic() < deadline, "it is not rotated"
                    number += 1
                    logging.info("%0100d", number)
                    server.flush()
            files = sorted(logs.glob("app.*.log"), key=lambda path: int(path.name.split(".")[1]))
            text = "".join(path.read_text() for path in [*files, logs / "app.log"])
            assert [line for line in text.splitlines() if line.isdigit()] == [f"{n:0100}" for n in range(number + 1)]
            assert "has been rotated to" in text
            print("all of it")
        """,
        preexec_fn=drop_privileges,
    )
    assert (done.returncode, done.stdout) == (0, "all of it\n"), done.stderr
