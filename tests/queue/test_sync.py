"""Records written through: the call returns when the record is on disk, or its time is over."""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import msgspec
import pytest
from oracle import wait_until
from readers import Reader, emergency_messages, fill, in_fork, read_losses
from scripts import elapsed

import mplog
from mplog import Overflow, Reason
from mplog.queue.directory import emergency_path
from mplog.queue.sync import Acknowledger, Sync, Waiter
from mplog.record import frame
from mplog.record.decoding import decode
from mplog.record.encoding import encode
from mplog.worker.initializer import install
from mplog.worker.state import LoggingState

AT_ONCE = 0.5


@pytest.fixture
def queue() -> Iterator[mplog.LogQueue]:
    """A queue whose records of level ERROR and above are written through."""
    queue = mplog.LogQueue(65536)
    queue.sync = Sync(logging.ERROR, timeout=20.0)
    logging.getLogger().setLevel(logging.DEBUG)
    yield queue
    queue.close()
    queue.remove()


@pytest.fixture
def reader(queue: mplog.LogQueue) -> Reader:
    """What stands for the logging process."""
    install(queue)
    return Reader(queue)


LOGGERS: list[Callable[[str], logging.Logger]] = [mplog.getLogger, logging.getLogger]


@pytest.mark.parametrize("size", [10, 4000, 4096, 50_000])
@pytest.mark.parametrize("get_logger", LOGGERS, ids=["fast", "plain"])
def test_a_call_returns_when_its_record_is_acknowledged(
    reader: Reader, get_logger: Callable[[str], logging.Logger], size: int
) -> None:
    """At the level and above, of either logger and any length, a call waits; below it, none does."""
    log = get_logger(f"sync-{get_logger.__module__}")
    log.warning("does not wait")
    thread = threading.Thread(target=log.error, args=("waits %s", "x" * size))
    thread.start()
    wait_until(lambda: reader.read() == 0 and len(reader.records) == 2, "the record arrives")
    assert reader.acknowledger.is_due
    thread.join(0.1)
    assert thread.is_alive()
    reader.acknowledger.acknowledge()
    thread.join(10)
    assert not thread.is_alive()
    assert not reader.acknowledger.is_due
    assert reader.messages() == ["does not wait", "waits " + "x" * size]
    assert [name for name in os.listdir(reader.queue.directory) if name.startswith("sync-")] == []
    assert reader.queue.losses.counts == {}


def log_critical(initializer: Any, done: str) -> None:
    """Runs in a worker."""
    initializer()
    mplog.getLogger("worker").critical("from a worker")
    Path(done).touch()


def test_workers_wait_each_for_its_own(reader: Reader, stdlib_context: Any, tmp_path: Path) -> None:
    """The level travels to workers, and an acknowledgement reaches those whose records it is for, and no other."""
    done = [str(tmp_path / f"done{number}") for number in range(2)]
    initializer = mplog.Initializer(reader.queue)
    workers = []
    for number in range(2):
        workers.append(stdlib_context.Process(target=log_critical, args=(initializer, done[number])))
        workers[-1].start()
        wait_until(lambda: reader.read() or len(reader.records) == len(workers), "the record arrives")
        if number == 0:
            reader.acknowledger.acknowledge()
            wait_until(lambda: os.path.exists(done[0]), "the first call returns")
    assert not os.path.exists(done[1])
    reader.acknowledger.acknowledge()
    wait_until(lambda: os.path.exists(done[1]), "the second call returns")
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0


@pytest.mark.processes
def test_attach_finds_the_level(queue: mplog.LogQueue) -> None:
    """A process that joins by the directory writes through, too."""
    msgspec.structs.replace(LoggingState.capture(), sync=queue.sync).save(queue.directory)
    done = jobs.run_python(["-c", f"import mplog; print(mplog.attach({queue.directory!r}).queue.sync)"])
    assert done.stdout.strip() == repr(queue.sync), done.stderr


# --- no answer ---


def test_a_call_that_is_not_answered_returns_in_time(queue: mplog.LogQueue) -> None:
    """It returns after its timeout, raises nothing, is counted, and its record is in the queue like any other."""
    queue.sync = Sync(logging.ERROR, timeout=0.2)
    install(queue)
    start = time.monotonic()
    mplog.getLogger("sync").error("in time")
    assert 0.2 <= elapsed(start) < 0.2 + AT_ONCE
    assert queue.losses.counts == {(logging.ERROR, Reason.UNSYNCED): 1}
    (counted,) = read_losses(queue.directory)
    assert (counted.lost, counted.gap) == (0, 0)
    late = Reader(queue)
    late.read()
    late.acknowledger.acknowledge()
    assert late.messages() == ["in time"]


@pytest.mark.parametrize("policy", ["block", "drop_newest", "fallback"])
def test_in_a_full_queue_it_goes_through_to_the_emergency_file(
    queue: mplog.LogQueue, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no room in time, the record is on disk all the same when the call returns."""
    queue.sync = Sync(logging.ERROR, timeout=0.3)
    queue.overflow = Overflow.of(policy)
    fill(queue)
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), fsync(fd))[1])
    start = time.monotonic()
    mplog.getLogger("sync").error("elsewhere")
    assert elapsed(start) < 0.3 + AT_ONCE
    assert synced
    assert emergency_messages(emergency_path(queue.directory)) == ["elsewhere"]
    assert queue.losses.counts[logging.ERROR, Reason.EMERGENCY] == 1


def test_a_call_in_an_event_loop_waits_unless_the_policy_says_otherwise(queue: mplog.LogQueue) -> None:
    """With never_block_loop the record is sent, and not waited for."""
    import asyncio

    queue.overflow = Overflow.block(never_block_loop=True)
    install(queue)

    async def log() -> float:
        start = time.monotonic()
        mplog.getLogger("sync").error("sent")
        return elapsed(start)

    assert asyncio.run(log()) < AT_ONCE
    assert queue.losses.counts == {(logging.ERROR, Reason.UNSYNCED): 1}


@pytest.mark.processes
def test_a_worker_killed_while_it_waits_leaves_nothing(reader: Reader) -> None:
    """The acknowledgement finds no reader, removes the FIFO, and others get theirs."""
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        mplog.getLogger("sync").error("last words")
    wait_until(lambda: reader.read() or reader.records, "the record arrives")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    thread = threading.Thread(target=mplog.getLogger("sync").error, args=("alive",))
    thread.start()
    wait_until(lambda: reader.read() or len(reader.records) == 2, "the record arrives")
    reader.acknowledger.acknowledge()
    thread.join(10)
    assert not thread.is_alive()
    assert [name for name in os.listdir(reader.queue.directory) if name.startswith("sync-")] == []


def log_without_descriptors(queue: mplog.LogQueue) -> None:
    """Runs in a child: log a record to be written through when no descriptor is left to wait with."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    hogs: list[int] = []
    with pytest.raises(OSError, match="Too many open files"):
        while True:
            hogs.append(os.dup(0))
    start = time.monotonic()
    mplog.getLogger("sync").error("sent all the same")
    assert elapsed(start) < AT_ONCE
    assert queue.losses.counts == {(logging.ERROR, Reason.UNSYNCED): 1}


@pytest.mark.processes
def test_without_descriptors_the_record_is_sent_all_the_same(reader: Reader) -> None:
    """Nothing to wait with means not to wait, which is counted."""
    in_fork(log_without_descriptors, reader.queue)
    reader.read()
    assert reader.messages() == ["sent all the same"]


def test_without_a_reader_the_call_returns_at_once(queue: mplog.LogQueue, capsys: pytest.CaptureFixture[str]) -> None:
    """Once no process reads the queue any more, no call waits, and the message goes to stderr as ever."""
    install(queue)
    os.close(queue.release_reader())
    start = time.monotonic()
    mplog.getLogger("sync").error("to stderr")
    assert elapsed(start) < AT_ONCE
    assert capsys.readouterr().err.splitlines()[-1] == "to stderr"
    assert queue.losses.counts == {(logging.ERROR, Reason.REJECTED): 1}


# --- subclasses, patches, other policies ---


def test_a_reader_of_objects_gets_the_record(queue: mplog.LogQueue) -> None:
    """get() returns it as any other; it does not answer, so the call takes its time."""
    queue.sync = Sync(logging.ERROR, timeout=0.1)
    install(queue)
    mplog.getLogger("sync").error("got")
    assert queue.qsize() == 1
    assert queue.get(timeout=1).getMessage() == "got"
    assert queue.broken == 0


def test_a_subclass_that_enqueues_in_its_own_way_does_so(queue: mplog.LogQueue) -> None:
    """Its enqueue() gets every record, and nothing is written through without it."""
    enqueued: list[bytes] = []

    class Handler(mplog.QueueHandler):
        def enqueue(self, payload: bytes) -> None:
            enqueued.append(payload)

    log = logging.getLogger("subclass")
    log.propagate = False
    log.addHandler(Handler(queue))
    log.critical("mine")
    assert len(enqueued) == 1


def test_ordinary_calls_go_the_fast_way_whatever_the_level(queue: mplog.LogQueue) -> None:
    """Calls below the level make no LogRecord, those above go the other way, and so does nothing else."""
    install(queue)
    made: list[str] = []
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, mplog.QueueHandler)
    queue.sync = None
    emit = mplog.QueueHandler.emit
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            mplog.QueueHandler, "emit", lambda self, each: (made.append(each.levelname), emit(self, each))[1]
        )
        log = mplog.getLogger("fast")
        log.debug("x")
        log.warning("x")
        log.error("x")
        log.critical("x")
    assert made == ["ERROR", "CRITICAL"]


@pytest.mark.parametrize(
    "payload", [b"", bytes(16), bytes(15), bytes(16) + b"no record", b"../../../../etc/x" + b"\x90"]
)
def test_a_frame_that_is_none_is_refused(tmp_path: Path, payload: bytes) -> None:
    """What does not decode as a token and a record raises ValueError, and no worker is answered."""
    acknowledger = Acknowledger(str(tmp_path), decode)
    with pytest.raises(ValueError, match=r"without its record|Expected|Input|malformed|truncated|not a record"):
        acknowledger.decode(payload)
    acknowledger.acknowledge()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "symlink", "directory", "missing"])
def test_what_lies_in_the_place_of_a_waiting_worker_is_left_alone(tmp_path: Path, what: str) -> None:
    """Only a FIFO is written to; a token names nothing outside of the directory."""
    token, target = os.urandom(16), tmp_path / "target"
    target.write_bytes(b"precious")
    place = tmp_path / f"sync-{token.hex()}"
    if what == "file":
        place.write_bytes(b"precious")
    elif what == "symlink":
        place.symlink_to(target)
    elif what == "directory":
        place.mkdir()
    acknowledger: Acknowledger[bytes] = Acknowledger(str(tmp_path), bytes)
    assert acknowledger.decode(token + b"record") == b"record"
    acknowledger.acknowledge()
    assert target.read_bytes() == b"precious"
    if what == "file":
        assert place.read_bytes() == b"precious"


def test_a_waiter_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    """Its FIFO is its owner's alone, and gone after the call."""
    waiter = Waiter(str(tmp_path))
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    start = time.monotonic()
    assert not waiter.wait(start + 0.1)
    assert 0.1 <= elapsed(start) < 0.1 + AT_ONCE
    waiter.close()
    assert list(tmp_path.iterdir()) == []


def test_a_frame_of_its_own_kind_does_not_disturb_the_others(reader: Reader) -> None:
    """In the midst of a batch of ordinary records, all come out in order."""
    reader.queue.sync = Sync(logging.ERROR, timeout=0)
    log = mplog.getLogger("mixed")
    for number in range(50):
        log.info("%d", number)
    token = os.urandom(16)
    payload = encode(logging.makeLogRecord({"msg": "synced", "levelno": 40}))
    os.write(reader.queue.sender.write_fd, frame.frame(frame.SYNC, token + payload) or b"")
    for number in range(50):
        log.info("%d", number)
    reader.read()
    assert reader.messages() == [*map(str, range(50)), "synced", *map(str, range(50))]
