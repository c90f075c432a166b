"""What processes have lost: counted exactly, where their death cannot take it along (promise 5)."""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import Counter as SharedCounter
from oracle import wait_until
from readers import Reader, emergency_messages, fill, in_fork, in_threads_and_handler, log_anything, read_losses

import mplog
from mplog import Overflow, Reason
from mplog.queue import losses
from mplog.queue.descriptor import what_is
from mplog.queue.directory import emergency_path
from mplog.queue.losses import Losses
from mplog.queue.process_losses import ProcessLosses
from mplog.worker.initializer import install

INFO, ERROR = logging.INFO, logging.ERROR


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """What looks like the directory of a queue."""
    (tmp_path / "queue").touch()
    return str(tmp_path)


@pytest.fixture
def queue() -> Iterator[mplog.LogQueue]:
    """A tiny queue that is only read when a test says so."""
    queue = mplog.LogQueue(4096)
    yield queue
    queue.close()
    queue.remove()


# --- the counts ---


def test_nothing_is_there_before_the_first_loss(directory: str) -> None:
    """The file is made with the first loss, readable by its owner alone, and tells which process, what and why."""
    mine = Losses(directory)
    assert read_losses(directory) == []
    before = time.time()
    mine.count(INFO, Reason.QUEUE_FULL, "wörker")
    mine.count(ERROR, Reason.EMERGENCY, "another name")
    for _ in range(300):
        mine.count(INFO, Reason.QUEUE_FULL, "wörker")
    (counted,) = read_losses(directory)
    assert (counted.pid, counted.name) == (os.getpid(), "wörker")
    assert counted.counts == {(INFO, Reason.QUEUE_FULL): 301, (ERROR, Reason.EMERGENCY): 1} == mine.counts
    assert (counted.lost, counted.gap) == (301, 302)
    assert before <= counted.began <= time.time()
    (name,) = [name for name in os.listdir(directory) if name.startswith("losses-")]
    assert os.stat(os.path.join(directory, name)).st_mode & 0o777 == 0o600


def test_more_levels_than_rows_are_counted_together(directory: str) -> None:
    """However many levels there are, and whatever they are, no loss goes uncounted."""
    mine = Losses(directory)
    for level in [*range(1, 400), -5, 2**63, 2**100, -(2**100)]:
        mine.count(level, Reason.TIMEOUT, "w")
    (counted,) = read_losses(directory)
    assert counted.by_reason() == {Reason.TIMEOUT: 403}
    assert counted.counts[1, Reason.TIMEOUT] == 1
    assert counted.counts[0, Reason.TIMEOUT] > 100


def test_threads_and_signal_handlers_count_exactly(directory: str) -> None:
    """Counting in four threads, and in a signal handler in the middle of it, loses no count; there is one file."""
    mine, interval = Losses(directory), sys.getswitchinterval()

    def count_many() -> None:
        for number in range(10_000):
            mine.count(INFO + number % 3, Reason.QUEUE_FULL, "w")

    sys.setswitchinterval(1e-6)
    try:
        calls = in_threads_and_handler(count_many, lambda: mine.count(INFO, Reason.QUEUE_FULL, "w"), 0.0005)
    finally:
        sys.setswitchinterval(interval)
    (counted,) = read_losses(directory)
    assert counted.lost == 40_000 + calls


@pytest.mark.processes
def test_a_fork_counts_for_itself(queue: mplog.LogQueue) -> None:
    """A child begins at nothing, in a file of its own, and what its parent has counted stays."""
    queue.losses.count(INFO, Reason.SHED, "parent")
    pid = in_fork(lambda: [queue.losses.count(INFO, Reason.SHED, "child") for _ in range(3)])
    queue.losses.count(INFO, Reason.SHED, "parent")
    assert [(each.pid, each.name, each.lost) for each in read_losses(queue.directory)] == [
        (os.getpid(), "parent", 2),
        (pid, "child", 3),
    ]


@pytest.mark.processes
def test_counts_survive_sigkill(queue: mplog.LogQueue) -> None:
    """What was counted before a SIGKILL is there after it."""
    pid = os.fork()
    if not pid:
        for _ in range(5):
            queue.losses.count(INFO, Reason.TIMEOUT, "victim")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (counted,) = read_losses(queue.directory)
    assert (counted.pid, counted.name, counted.lost) == (pid, "victim", 5)


@pytest.mark.parametrize("is_removed", [False, True])
@pytest.mark.parametrize("what", ["open", "closed", "used for another file"])
def test_a_closed_descriptor_is_not_used(directory: str, tmp_path: Path, what: str, is_removed: bool) -> None:
    """A program may close the descriptor and use its number, and the file may be removed: no count is lost, the file
    has its name, and nothing is written into another one, nor is that closed."""
    before = open_descriptors()
    mine, other = Losses(directory), tmp_path / "other"
    mine.count(INFO, Reason.SHED, "w")
    (name,) = [name for name in os.listdir(directory) if name.startswith("losses-")]
    (fd,) = open_descriptors() - before
    if what == "closed":
        os.close(fd)
    if what == "used for another file":
        with open(other, "wb") as file:
            os.dup2(file.fileno(), fd)
    if is_removed:
        os.unlink(os.path.join(directory, name))
    for _ in range(2):
        mine.count(INFO, Reason.SHED, "w")
    mine.count(ERROR, Reason.TIMEOUT, "w")
    assert [each for each in os.listdir(directory) if each.startswith("losses-")] == [name]
    (counted,) = read_losses(directory)
    assert counted.counts == mine.counts == {(INFO, Reason.SHED): 3, (ERROR, Reason.TIMEOUT): 1}
    del mine
    if what == "used for another file":
        os.close(fd)
        assert other.read_bytes() == b""
    assert open_descriptors() == before


def open_descriptors() -> set[int]:
    """Return the descriptors of this process."""
    return set(filter(what_is, range(4096)))


def test_counts_wait_while_the_disk_is_full(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full disk refuses is in the file with a loss after the pause, whether or not there was a file before."""
    for has_file in (False, True):
        mine = Losses(directory)
        expected = Counter({(level, Reason.SHED): 2 for level in (10, 20, 30)})
        if has_file:
            mine.count(10, Reason.TIMEOUT, "w")
            expected[10, Reason.TIMEOUT] += 1
        with monkeypatch.context() as full:
            full.setattr(losses, "write_at", refuse_for_want_of_room)
            for level in (10, 20, 30):
                mine.count(level, Reason.SHED, "w")
        mine.count(10, Reason.SHED, "w")
        assert [each.by_reason() for each in read_losses(directory)] == [{Reason.TIMEOUT: 1}] * has_file
        monkeypatch.setattr(mine, "_paused_until", 0.0)
        for level in (20, 30):
            mine.count(level, Reason.SHED, "w")
        assert read_one(directory).counts == expected == mine.counts
        for name in os.listdir(directory):
            if name.startswith("losses-"):
                os.unlink(os.path.join(directory, name))


def refuse_for_want_of_room(fd: int, data: bytes, position: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def read_one(directory: str) -> ProcessLosses:
    """Return what is in the only file of losses."""
    (counted,) = read_losses(directory)
    return counted


def test_without_a_file_the_counts_go_into_the_queue(queue: mplog.LogQueue, tmp_path: Path) -> None:
    """A process that can make no file sends what it has lost with later records: exactly, and each loss once."""
    queue.overflow, queue.sender.losses = Overflow.drop_newest(), Losses(str(tmp_path / "missing"))
    handler, reader, over = install(queue), Reader(queue), threading.Event()

    def log() -> None:
        handler.handle(logging.LogRecord("x", INFO, "f", 1, "x" * 500, None, None))

    def read() -> None:
        while not over.is_set():
            reader.read()
            time.sleep(0.001)

    reading = threading.Thread(target=read)
    reading.start()
    try:
        calls = 2000 + in_threads_and_handler(lambda: [log() for _ in range(500)], log, 0.0005)
    finally:
        over.set()
        reading.join(60)
    reader.read()
    log()  # for what was lost last
    log()
    reader.read()
    assert sum(each.lost for each in reader.losses) == calls + 2 - len(reader.records) > 0
    assert not queue.losses.are_waiting
    assert sum((Counter(each.counts) for each in reader.losses), Counter()) == queue.losses.counts


def test_what_was_sent_is_not_in_a_file_that_is_made_later(queue: mplog.LogQueue, tmp_path: Path) -> None:
    """Each loss is counted in one place, where a process can make its file after all."""
    losses = queue.sender.losses = Losses(str(tmp_path))  # no FIFO there yet
    for _ in range(3):
        losses.count(INFO, Reason.QUEUE_FULL, "w")
    sent: list[tuple[str, dict[tuple[int, Reason], int]]] = []
    losses.send_waiting(lambda *what: sent.append(what))
    assert sent == [("w", {(INFO, Reason.QUEUE_FULL): 3})]
    losses.send_waiting(lambda *what: sent.append(what))
    assert len(sent) == 1
    (tmp_path / "queue").touch()
    losses.count(INFO, Reason.QUEUE_FULL, "w")
    (counted,) = read_losses(str(tmp_path))
    assert counted.counts == {(INFO, Reason.QUEUE_FULL): 1}


def test_a_removed_directory_is_not_in_the_way(tmp_path: Path) -> None:
    """Without the directory, or once its FIFO has gone, counting makes nothing and raises nothing."""
    for where in (tmp_path / "missing", tmp_path):
        mine = Losses(str(where))
        mine.count(INFO, Reason.REJECTED, "w")
        assert mine.counts == {(INFO, Reason.REJECTED): 1}
    assert list(tmp_path.iterdir()) == []
    assert read_losses(str(tmp_path / "missing")) == []


def test_a_file_that_is_removed_comes_back_with_its_counts(directory: str) -> None:
    """If a cleaner removes the file, the next loss makes it again, under its name and with all counts."""
    mine = Losses(directory)
    mine.count(INFO, Reason.QUEUE_FULL, "w")
    mine.count(ERROR, Reason.TIMEOUT, "w")
    (name,) = (name for name in os.listdir(directory) if name.startswith("losses-"))
    for _ in range(2):
        os.unlink(os.path.join(directory, name))
        assert read_losses(directory) == []
        mine.count(INFO, Reason.QUEUE_FULL, "w")
        assert sorted(os.listdir(directory)) == [name, "queue"]
    (counted,) = read_losses(directory)
    assert counted.counts == {(INFO, Reason.QUEUE_FULL): 3, (ERROR, Reason.TIMEOUT): 1}


@pytest.mark.parametrize("content", [b"", b"mplogls1", bytes(4096), os.urandom(5000)])
def test_what_is_no_file_of_losses_is_skipped(directory: str, content: bytes) -> None:
    """A file that is just being made, or is another's, is not read."""
    Path(directory, "losses-7-0").write_bytes(content)
    assert read_losses(directory) == []


# --- telling ---


def test_the_lines_say_which_process_how_many_and_why() -> None:
    """Each reason gives a line; one record is one record; what is not for the log gives none."""
    counts = {
        (INFO, Reason.QUEUE_FULL): 30,
        (ERROR, Reason.QUEUE_FULL): 7,
        (INFO, Reason.SHED): 1,
        (INFO, Reason.EMERGENCY): 2,
        (0, Reason.UNUSED): 5,
    }
    assert ProcessLosses(711, "ForkPoolWorker-3", counts).messages() == [
        "37 records dropped by ForkPoolWorker-3 (pid 711): queue full",
        "1 record dropped by ForkPoolWorker-3 (pid 711): buffers filling up",
        "2 records written into the emergency file by ForkPoolWorker-3 (pid 711)",
    ]
    assert ProcessLosses(711, "", {(INFO, Reason.REJECTED): 2}).messages() == [
        "2 records dropped by pid 711: nobody read the queue"
    ]
    for reason in Reason:
        assert len(ProcessLosses(1, "w", {(INFO, reason): 1}).messages()) == (reason is not Reason.UNUSED)


# --- the sum ---


def kill(workers: list[Any]) -> None:
    """Kill those that are still alive."""
    for worker in workers:
        worker.kill()
        worker.join(10)


@pytest.mark.parametrize("policy", ["drop_newest", "fallback", "block", "drop_below"])
def test_what_is_missing_adds_up_to_what_is_counted(
    stdlib_context: Any, tmp_path: Path, queue: mplog.LogQueue, policy: str
) -> None:
    """Of killed workers, with a tiny queue and a slow reader, every call has arrived, been kept, or been counted."""
    queue.overflow = Overflow.block(timeout=0.002) if policy == "block" else Overflow.of(policy)
    if policy == "drop_below":
        queue.overflow = Overflow.drop_below(timeout=0.002)
    logging.getLogger().setLevel(logging.DEBUG)
    initializer = mplog.Initializer(queue)
    reader, dice = Reader(queue), random.Random(1)
    workers: list[Any] = []
    try:
        for number in range(6):
            name = f"w{number}"
            args = (initializer, str(tmp_path), name)
            workers.append(stdlib_context.Process(target=log_anything, args=args, name=name))
            workers[-1].start()
            if number % 3 == 2:
                counters = [SharedCounter(tmp_path, each.name) for each in workers[-3:]]
                began = time.monotonic()
                while time.monotonic() < began + 0.2 or any(each.value < 200 for each in counters):
                    reader.read()
                    time.sleep(dice.uniform(0, 0.01))
                    assert time.monotonic() < began + 60, "the workers do not log"
                kill(workers)
    finally:
        kill(workers)
    reader.read()
    arrived = reader.numbers()
    counted = {each.pid: each for each in read_losses(queue.directory)}
    kept = emergency_messages(emergency_path(queue.directory))
    assert len(kept) - sum(each.by_reason().get(Reason.EMERGENCY, 0) for each in counted.values()) in range(7)
    for worker in workers:
        numbers, losses_ = arrived[worker.pid], counted[worker.pid]
        calls = SharedCounter(tmp_path, worker.name).value
        assert losses_.name == worker.name
        assert numbers == sorted(set(numbers))
        unused = losses_.by_reason().get(Reason.UNUSED, 0)
        # A call that the kill has interrupted may have arrived, or been counted, or neither.
        assert len(numbers) + losses_.gap - unused - calls in (0, 1)
        missing = max(numbers, default=0) - len(numbers)
        assert 0 <= missing <= losses_.gap + 1
        assert not any(level >= ERROR and reason.is_loss for level, reason in losses_.counts)


def test_a_record_that_is_encoded_twice_leaves_no_uncounted_gap(queue: mplog.LogQueue) -> None:
    """What the fast way cannot encode goes the other, with another number; the first is counted as not used."""
    install(queue)
    logging.getLogger().setLevel(logging.DEBUG)
    log = mplog.getLogger("fast")
    log.info("one")
    log.info("\ud800")
    log.info("three")
    reader = Reader(queue)
    reader.read()
    assert reader.numbers()[os.getpid()] == [1, 3, 4]
    assert queue.losses.counts == {(0, Reason.UNUSED): 1}


def test_a_record_that_nobody_reads_is_counted_once(queue: mplog.LogQueue, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a reader each call is counted as rejected, of either logger, and warnings go to stderr."""
    install(queue)
    logging.getLogger().setLevel(logging.DEBUG)
    os.close(queue.release_reader())
    mplog.getLogger("fast").warning("one")
    logging.getLogger("plain").warning("two")
    mplog.getLogger("fast").info("three")
    (counted,) = read_losses(queue.directory)
    assert counted.counts == {(30, Reason.REJECTED): 2, (20, Reason.REJECTED): 1}
    assert capsys.readouterr().err.splitlines()[1:] == ["one", "two"]


def test_a_record_that_is_cut_is_counted_as_truncated(queue: mplog.LogQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives with its texts cut, and is no loss."""
    monkeypatch.setattr("mplog.record.encoding.MAX_RECORD_SIZE", 2 * 2**20)
    monkeypatch.setattr("mplog.worker.logger.MAX_RECORD_SIZE", 2 * 2**20)
    install(queue)
    logging.getLogger().setLevel(logging.DEBUG)
    reader = Reader(queue)
    thread = threading.Thread(target=mplog.getLogger("fast").info, args=("x" * 3 * 2**20,))
    thread.start()
    wait_until(lambda: reader.read(), "the record arrives")
    thread.join(10)
    assert "cut by mplog: 3145728 characters" in reader.messages()[0]
    assert queue.losses.counts == {(20, Reason.TRUNCATED): 1, (0, Reason.UNUSED): 1}
    assert read_losses(queue.directory)[0].lost == 0


def test_a_call_that_is_interrupted_is_counted(queue: mplog.LogQueue) -> None:
    """Ctrl-C in a call that waits for room raises there, and the record is counted."""
    queue.overflow = Overflow.block()
    fill(queue)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            mplog.getLogger("fast").critical("waits")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert queue.losses.counts[50, Reason.INTERRUPTED] == 1
