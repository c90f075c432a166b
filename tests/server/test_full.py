"""A server whose sink stands still until the buffers and the queue are full (promise 5; faults 6 and 9)."""

from __future__ import annotations

import errno
import logging
import mmap
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from oracle import wait_until
from scripts import BlockedHandler, Gate, elapsed, lines, stop_all_threads

import mplog
from mplog.queue.emergency import LOCK_TIMEOUT, MAGIC, EmergencyFile
from mplog.queue.sync import Sync
from mplog.record import frame
from mplog.record.encoding import encode

pytestmark = pytest.mark.processes

_SIZE = 2 * 2**20
#: Records that do not fit into two buffers of that size and the queue.
_COUNT = 40_000
_FILLING = "x" * 150


def _flood(initializer: Any, count: int) -> None:
    """Runs in a worker: log, now and then an error."""
    initializer()
    for number in range(count):
        logging.log(logging.ERROR if number % 1000 == 999 else logging.INFO, "%d %s", number, _FILLING)


def _serve(gate: Gate, path: Path, **options: Any) -> mplog.LogServer:
    sink = mplog.HandlerSink(lambda: BlockedHandler(gate, path), format="%(message)s")
    return mplog.LogServer(sink, level="INFO", buffer_size=_SIZE, **options)


def _written(path: Path) -> list[int]:
    return [int(line.split()[0]) for line in lines(path) if line.endswith(_FILLING)]


def _said(path: Path) -> int:
    """Return how many records the log itself says are lost."""
    found = [re.match(r"mplog: ([\d,]+) records? dropped by", line) for line in lines(path)]
    return sum(int(match[1].replace(",", "")) for match in found if match)


#: A policy is the same for every worker; that each learns of it is seen with two.
_POLICIES = [
    *(("fork", policy) for policy in ("drop_newest", "drop_oldest", "drop_below", "fallback")),
    ("spawn", "drop_below"),
    ("forkserver", "drop_oldest"),
]


@pytest.mark.parametrize(("start_method", "policy"), _POLICIES)
def test_full_server_does_what_its_policy_says(tmp_path: Path, gate: Gate, stdlib_context: Any, policy: str) -> None:
    """No call waits for the sink; what is not in the log is counted there to the last one, and no error is missing."""
    overflow = mplog.Overflow.drop_below("WARNING", at=0.5) if policy == "drop_below" else mplog.Overflow.of(policy)
    path = tmp_path / "slow.log"
    with _serve(gate, path, overflow=overflow.with_emergency_file(tmp_path / "emergency")) as server:
        worker = stdlib_context.Process(target=_flood, args=(server.initializer, _COUNT))
        worker.start()
        worker.join(100)
        assert worker.exitcode == 0
        gate.open()
        server.flush(60)
        stats = server.stats()
    written = _written(path)
    assert len(set(written)) == len(written)
    assert len(written) + stats.dropped == _COUNT
    assert set(range(999, _COUNT, 1000)) <= set(written), "errors are kept"
    assert _said(path) == stats.dropped
    if policy == "fallback":
        assert stats.dropped == 0
    else:
        assert stats.dropped > 0
        assert stats.peak_fill >= 0.5
    if policy == "drop_oldest":
        assert written[-1] == max(written) == _COUNT - 1
    assert not (tmp_path / "emergency").exists()


def test_full_server_blocks_by_default(tmp_path: Path, gate: Gate) -> None:
    """Without a policy, calls wait until there is room, and everything is in the log."""
    path = tmp_path / "slow.log"
    with _serve(gate, path) as server:
        worker = multiprocessing.get_context("fork").Process(target=_flood, args=(server.initializer, _COUNT))
        worker.start()
        wait_until(lambda: server.queue.full(), "the queue is full")
        assert worker.is_alive()
        gate.open()
        worker.join(100)
        assert worker.exitcode == 0
    assert _written(path) == list(range(_COUNT))


def _append_for_ever(path: Path, appended: memoryview) -> None:
    """Runs in a child: append records to the emergency file until killed, and count those that are there."""
    file, number = EmergencyFile(str(path), 2**30), 0
    while True:
        number += 1
        payload = encode(logging.LogRecord("child", logging.INFO, "x", 1, "%d", (number,), None), number)
        if not file.append(frame.frame(frame.RECORD, payload) or b""):
            os._exit(1)
        appended[0] = number


def test_flush_waits_for_the_emergency_file_and_not_for_ever(tmp_path: Path) -> None:
    """After a flush(), the log has what the emergency file had before it, even while others append more."""
    emergency, log = tmp_path / "emergency", tmp_path / "app.log"
    overflow = mplog.Overflow.fallback().with_emergency_file(emergency)
    appended = memoryview(mmap.mmap(-1, 8)).cast("Q")
    with mplog.LogServer(log, level="INFO", format="%(message)s", overflow=overflow) as server:
        child = os.fork()
        if not child:
            signal.alarm(60)
            _append_for_ever(emergency, appended)
        try:
            for _ in range(5):
                before = server.stats().received
                wait_until(lambda before=before: appended[0] > before, "it appends")
                so_far = appended[0]
                server.flush(20)
                assert server.stats().received >= so_far
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        server.flush(20)
        numbers = [int(line) for line in lines(log) if line.isdigit()]  # and the child's death is said
    assert numbers == list(range(1, len(numbers) + 1))


def _stop_while_it_appends(initializer: Any) -> None:
    """Runs in a child: log a record, and be stopped when it is about to go into the emergency file."""
    initializer()
    write = os.write

    def stop_and_write(fd: int, data: bytes) -> int:
        if data.startswith(MAGIC):
            os.kill(os.getpid(), signal.SIGSTOP)
        return write(fd, data)

    os.write = stop_and_write
    logging.info("late " + "x" * 3000)  # a short one may find room in the queue


def test_worker_stopped_at_the_emergency_file_holds_up_nobody(tmp_path: Path) -> None:
    """While a worker is stopped with the file open, others write into it without a wait, and flush() merges that."""
    log = tmp_path / "app.log"
    with mplog.LogServer(log, level="INFO", format="%(message)s", overflow="fallback") as server:
        stop_all_threads(server.pid)
        for number in range(5000):
            logging.info("%0500d", number)
        stopped = multiprocessing.get_context("fork").Process(target=_stop_while_it_appends, args=(server.initializer,))
        stopped.start()
        try:
            assert stopped.pid
            _, status = os.waitpid(stopped.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            longest = 0.0
            for number in range(5000, 5100):
                start = time.monotonic()
                logging.info("%0500d", number)
                longest = max(longest, elapsed(start))
            assert longest < LOCK_TIMEOUT
            os.kill(server.pid, signal.SIGCONT)
            server.flush()
            assert [int(line) for line in lines(log) if line.isdigit()] == list(range(5100))
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
            stopped.join(30)
        server.flush()
        assert lines(log)[-1].startswith("late")
    assert stopped.exitcode == 0
    assert not list(tmp_path.glob(".app.log.emergency*"))


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_killed_while_it_merges(tmp_path: Path, level: int) -> None:
    """After a kill in the middle of merging, flush() waits for the rest, and the log has each record once."""
    log, emergency = tmp_path / "app.log", tmp_path / ".app.log.emergency"
    overflow = "fallback" if level == logging.INFO else "drop_newest"
    sent = [f"{number} {'x' * 3000}" for number in range(5000)]
    with mplog.LogServer(log, level="INFO", format="%(message)s", overflow=overflow) as server:
        first = server.pid
        stop_all_threads(first)
        for line in sent:
            logging.log(level, line)
        waiting = emergency.stat().st_size
        assert waiting > 10 * 2**20
        before = log.stat().st_size
        os.kill(first, signal.SIGCONT)
        wait_until(lambda: log.stat().st_size > before + 3 * 2**20, "it merges")
        os.kill(first, signal.SIGKILL)
        server.flush(60)
        assert [line for line in lines(log) if "mplog:" not in line] == sent
        stats = server.stop()
    assert (stats.dropped, stats.unexplained, stats.restarts) == (0, {}, 1)
    assert not list(tmp_path.glob(".app.log.emergency*"))


def test_what_was_left_in_the_emergency_file_comes_first(tmp_path: Path) -> None:
    """What an earlier server has left in the emergency file comes before newer records in the log."""
    file, log = EmergencyFile(str(tmp_path / ".app.log.emergency"), 2**20), tmp_path / "app.log"
    for number in range(3):
        payload = encode(logging.LogRecord("old", logging.INFO, "x", 1, "old %d", (number,), None), number + 1)
        assert file.append(frame.frame(frame.RECORD, payload) or b"")
    queue = mplog.LogQueue()
    for number in range(3):
        queue.put(logging.LogRecord("new", logging.INFO, "x", 1, "new %d", (number,), None))
    with mplog.LogServer(log, level="INFO", format="%(message)s", queue=queue):
        pass
    assert lines(log) == [f"{when} {number}" for when in ("old", "new") for number in range(3)]


def test_record_written_through_is_in_the_file(tmp_path: Path, stdlib_context: Any) -> None:
    """A call at the level of sync_level returns when its record is in the file."""
    path = tmp_path / "app.log"
    with mplog.LogServer(path, level="INFO", format="%(message)s", sync_level="ERROR") as server:
        worker = stdlib_context.Process(target=_log_and_look, args=(server.initializer, str(path)))
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0


class _FailingDisk(logging.Handler):
    """Makes every fsync of its process fail."""

    def __init__(self) -> None:
        super().__init__()

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        os.fdatasync = os.fsync = fail

    def emit(self, record: logging.LogRecord) -> None:
        """Do nothing."""


def test_record_that_does_not_reach_the_disk_is_counted(tmp_path: Path) -> None:
    """A call at the level of sync_level whose fsync fails returns, and its record is counted as not on disk."""
    path, sync = tmp_path / "app.log", Sync(logging.ERROR, timeout=30)
    with mplog.LogServer(path, mplog.HandlerSink(_FailingDisk), level="INFO", sync_level=sync) as server:
        started = time.monotonic()
        logging.error("through")
        assert elapsed(started) < 10
        assert server.queue.losses.counts == {(logging.ERROR, mplog.Reason.UNSYNCED): 1}
    assert "not known to be on disk" in path.read_text()


def test_losses_are_said_while_nobody_logs(tmp_path: Path) -> None:
    """The log tells of losses within a second or two, even if no further record and no question arrives."""
    path = tmp_path / "app.log"
    with mplog.LogServer(path, level="INFO", format="%(message)s", overflow="drop_newest") as server:
        logging.info("first")
        wait_until(lambda: path.read_text() == "first\n", "the log has looked for losses just now")
        stop_all_threads(server.pid)
        while not server.queue.losses.counts:
            logging.info(_FILLING)
        os.kill(server.pid, signal.SIGCONT)
        wait_until(lambda: _said(path) == 1, "it is said", 10)


class _Held(logging.Handler):
    """A handler that does nothing, for as long as a file is there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Wait."""
        while self.path.exists():
            time.sleep(0.005)


def test_buffers_that_fill_again_and_again_are_said_once_an_interval(tmp_path: Path) -> None:
    """However often the buffers fill up and are emptied within ten seconds, the log says so once."""
    path, hold = tmp_path / "app.log", tmp_path / "hold"
    sinks = mplog.FileSink(path, format="%(message)s"), mplog.HandlerSink(lambda: _Held(hold))
    with mplog.LogServer(*sinks, level="INFO", overflow="drop_newest", buffer_size=2 * 2**20) as server:
        for _ in range(2):
            hold.touch()
            dropped = server.queue.losses.counts.copy()
            while server.queue.losses.counts == dropped:
                logging.info(_FILLING)
            hold.unlink()
            server.flush()
            for _ in range(2):  # after that, it is seen that they are empty
                server.queue.losses.count(logging.INFO, mplog.Reason.QUEUE_FULL, "MainProcess")
                logging.info("on")
                lost = sum(server.queue.losses.counts.values())
                wait_until(lambda lost=lost: _said(path) == lost, "what was lost is said, with how full it was")
        assert server.stats().peak_fill > 0.8
        assert path.read_text().count("the log is written more slowly than it comes") == 1


def _log_and_look(initializer: Any, path: str) -> None:
    """Runs in a worker."""
    initializer()
    for number in range(50):
        logging.info("quick %d", number)
        logging.error("through %d", number)
        assert f"through {number}\n" in Path(path).read_text()


def _stop_for_a_moment(pid: int) -> None:
    stop_all_threads(pid)


def test_stopped_logging_process_goes_on_where_it_was(tmp_path: Path) -> None:
    """A logging process that SIGSTOP holds under load loses nothing after SIGCONT."""
    path = tmp_path / "app.log"
    with mplog.LogServer(path, level="INFO", format="%(message)s") as server:
        worker = multiprocessing.get_context("fork").Process(target=_flood, args=(server.initializer, _COUNT))
        _stop_for_a_moment(server.pid)
        worker.start()
        wait_until(lambda: server.queue.full(), "the queue is full")
        os.kill(server.pid, signal.SIGCONT)
        worker.join(100)
        assert worker.exitcode == 0
    assert _written(path) == list(range(_COUNT))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"overflow": "drop_some"}, "Give one of block, drop_newest, drop_oldest, drop_below, fallback"),
        ({"buffer_size": 100}, "at least 2097152 bytes"),
        ({"queue": multiprocessing.get_context("spawn").Queue(10), "overflow": "drop_newest"}, "need a LogQueue"),
        ({"queue": multiprocessing.get_context("spawn").Queue(10), "sync_level": "ERROR"}, "need a LogQueue"),
        ({"sync_level": "LOUD"}, "LOUD"),
    ],
    ids=["policy", "size", "plain queue, policy", "plain queue, sync_level", "level"],
)
def test_bad_arguments_are_refused(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    """Arguments that make no sense raise before anything is started, and the message says what to give instead."""
    with pytest.raises(ValueError, match=reason):
        mplog.LogServer(tmp_path / "app.log", **options)
