"""What becomes of a record for which there is no room (faults 6, 9, 16, 17 and 25)."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import queue as queue_module
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import msgspec
import pytest
from oracle import Counter as SharedCounter
from oracle import wait_until
from readers import Reader, emergency_messages, fill, flood, in_fork, in_threads_and_handler, read_losses
from scripts import elapsed, stop_all_threads

import mplog
from mplog import Overflow, Reason
from mplog.queue import emergency
from mplog.queue.directory import emergency_path
from mplog.queue.fill import Fill
from mplog.queue.overflow import KEPT_TIMEOUT
from mplog.queue.process_losses import totals
from mplog.record.encoding import encode
from mplog.worker.initializer import install
from mplog.worker.state import LoggingState

SIZE = 16384
#: What a call that does not wait may take on a machine that is busy with something else, in seconds.
AT_ONCE = 0.5


@pytest.fixture
def queue() -> Iterator[mplog.LogQueue]:
    """A small queue that is only read when a test says so."""
    queue = mplog.LogQueue(SIZE)
    yield queue
    queue.close()
    queue.remove()


@pytest.fixture
def log_(queue: mplog.LogQueue) -> logging.Logger:
    """A logger whose records go into the queue."""
    logging.getLogger().setLevel(logging.DEBUG)
    return mplog.getLogger("overflow")


def use(queue: mplog.LogQueue, policy: Overflow | str) -> None:
    """Give the queue a policy, and this process's logging a handler on it."""
    logging.getLogger().handlers = []
    queue.overflow = Overflow.of(policy)
    install(queue)
    assert isinstance(logging.getLogger().handlers[0], mplog.QueueHandler)


def counts(queue: mplog.LogQueue) -> dict[Reason, int]:
    """Return what all processes have lost, by reason, without what `fill` has lost."""
    reasons: Counter[Reason] = Counter()
    for process in read_losses(queue.directory):
        for (level, reason), count in process.counts.items():
            reasons[reason] += count
            assert level or reason is Reason.UNUSED
    return dict(reasons)


# --- what a policy is ---


def test_a_name_means_the_policy_with_its_defaults() -> None:
    """Each policy can be named, or made with arguments."""
    assert Overflow.of("block") == Overflow.block() == Overflow()
    assert Overflow.of("drop_newest") == Overflow.drop_newest()
    assert Overflow.of("drop_oldest") == Overflow.drop_oldest()
    assert Overflow.of("drop_below") == Overflow.drop_below("WARNING", at=0.8) == Overflow.drop_below(30)
    assert Overflow.of("fallback") == Overflow.fallback()
    made = Overflow.block(timeout=5)
    assert Overflow.of(made) is made


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Overflow.of("lossy"), "'lossy' is not an overflow policy. Give one of block, drop_newest"),
        (lambda: Overflow.block(timeout=-1), "timeout=-1: it must be 0 seconds or more"),
        (lambda: Overflow.block(timeout=float("nan")), "timeout=nan: it must be 0 seconds or more"),
        (lambda: Overflow.drop_below("NOTHING"), "'NOTHING' is not a level"),
        (lambda: Overflow.drop_below("INFO", at=0), r"drop_below\(at=0\): at must be above 0, and at most 1"),
        (lambda: Overflow.drop_below("INFO", at=80), "at must be above 0"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(make: Any, message: str) -> None:
    """Names, times, levels and marks that make no sense are refused, with what would."""
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="overflow is the name of a policy or an Overflow, not 7"):
        Overflow.of(7)  # type: ignore[arg-type]


@pytest.mark.processes
@pytest.mark.parametrize("policy", [Overflow.drop_below("ERROR", at=0.5, timeout=3), Overflow.fallback(1)])
def test_a_policy_travels_with_the_queue(queue: mplog.LogQueue, policy: Overflow) -> None:
    """It pickles, it goes with the queue into another process, and attach() finds it."""
    queue.overflow = policy.with_emergency_file("relative", 1000)
    assert pickle.loads(pickle.dumps(queue.overflow)) == queue.overflow
    assert queue.overflow.emergency == os.path.abspath("relative")
    done = jobs.run_python(["-c", f"import pickle; print(pickle.loads({pickle.dumps(queue)!r}).overflow)"])
    assert done.stdout.strip() == repr(queue.overflow), done.stderr
    state = LoggingState.capture()
    msgspec.structs.replace(state, overflow=queue.overflow).save(queue.directory)
    done = jobs.run_python(["-c", f"import mplog; print(mplog.attach({queue.directory!r}).queue.overflow)"])
    assert done.stdout.strip() == repr(queue.overflow), done.stderr


# --- no room ---


def test_block_waits_for_ever_by_default(queue: mplog.LogQueue, log_: logging.Logger) -> None:
    """A call waits until there is room, and nothing is dropped."""
    use(queue, "block")
    fill(queue)
    reader = Reader(queue)
    thread = threading.Thread(target=log_.info, args=("waits",))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    reader.read()
    thread.join(10)
    assert not thread.is_alive()
    reader.read()
    assert reader.messages()[-1] == "waits"


def test_block_with_a_timeout_drops_what_has_waited_that_long(queue: mplog.LogQueue, log_: logging.Logger) -> None:
    """Each call waits for as long as it says, no longer; then the record is counted, or an error kept elsewhere."""
    use(queue, Overflow.block(timeout=0.2))
    fill(queue)
    for level in (logging.INFO, logging.WARNING, logging.ERROR):
        start = time.monotonic()
        log_.log(level, "level %d", level)
        assert 0.2 <= elapsed(start) < 0.2 + AT_ONCE
    assert counts(queue) == {Reason.QUEUE_FULL: 1, Reason.TIMEOUT: 2, Reason.EMERGENCY: 1}
    assert emergency_messages(emergency_path(queue.directory)) == ["level 40"]


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_errors_are_kept_and_wait_only_once(queue: mplog.LogQueue, log_: logging.Logger, policy: str) -> None:
    """Of many records in a row, those below ERROR are counted and the errors kept, and only one of all calls waits."""
    use(queue, policy)
    fill(queue)
    start = time.monotonic()
    for number in range(300):
        log_.log(logging.ERROR if number % 3 == 0 else logging.INFO, "%d", number)
    assert KEPT_TIMEOUT <= elapsed(start) < KEPT_TIMEOUT + 3 * AT_ONCE
    assert counts(queue)[Reason.EMERGENCY] == 100
    assert read_losses(queue.directory)[0].lost == 201  # one of `fill`
    assert emergency_messages(emergency_path(queue.directory)) == [str(number) for number in range(0, 300, 3)]


def test_drop_newest_never_waits_below_error(queue: mplog.LogQueue, log_: logging.Logger) -> None:
    """A thousand calls with a full queue take no time, and each is counted; with room they go on."""
    use(queue, "drop_newest")
    filled = fill(queue)
    start = time.monotonic()
    for _ in range(1000):
        log_.warning("dropped")
    assert elapsed(start) < 2 * AT_ONCE
    assert counts(queue) == {Reason.QUEUE_FULL: 1001}
    reader = Reader(queue)
    assert reader.read() == filled
    log_.info("there is room")
    reader.read()
    assert reader.messages()[-1] == "there is room"
    numbers = reader.numbers()[os.getpid()]
    assert numbers == [*range(1, filled + 1), filled + 1002]


def test_a_long_record_is_dropped_as_a_whole(queue: mplog.LogQueue, log_: logging.Logger) -> None:
    """One whose first parts found room and whose rest does not is counted once, and the reader forgets the parts."""
    use(queue, "drop_newest")
    log_.info("x" * 3 * SIZE)
    reader = Reader(queue)
    reader.read()
    log_.info("next")
    reader.read()
    assert reader.messages() == ["next"]
    assert counts(queue) == {Reason.QUEUE_FULL: 1}
    assert reader._frames.incomplete() == []


def test_fallback_keeps_everything_in_the_emergency_file(queue: mplog.LogQueue, log_: logging.Logger) -> None:
    """Records of all levels and sizes go into the file, in order, without a wait."""
    use(queue, "fallback")
    fill(queue)
    start = time.monotonic()
    sent = []
    for number in range(100):
        sent.append(f"{number} {'x' * (number % 4) * 3000}")
        log_.log(logging.DEBUG if number % 2 else logging.CRITICAL, sent[-1])
    assert elapsed(start) < 3 * AT_ONCE
    assert emergency_messages(emergency_path(queue.directory)) == sent
    assert counts(queue)[Reason.EMERGENCY] == 100


def test_an_emergency_file_that_cannot_be_written_is_counted(
    queue: mplog.LogQueue, log_: logging.Logger, tmp_path: Path
) -> None:
    """Where neither the queue nor the file takes a record, it is dropped, which the counts tell; nothing is raised."""
    use(queue, Overflow.fallback().with_emergency_file(tmp_path / "missing" / "file"))
    fill(queue)
    log_.error("nowhere")
    use(queue, Overflow.fallback().with_emergency_file(tmp_path / "small", 300))
    log_.error("fits")
    log_.error("x" * 300)
    assert counts(queue) == {Reason.QUEUE_FULL: 1, Reason.NO_EMERGENCY: 2, Reason.EMERGENCY: 1}
    assert emergency_messages(tmp_path / "small") == ["fits"]


# --- the fill ---


def test_drop_below_sheds_while_the_buffers_are_filling_up(queue: mplog.LogQueue, log_: logging.Logger) -> None:
    """From the mark on, what is below the level is dropped although the queue has room; below the mark nothing is."""
    told = Fill(queue.directory, writable=True)
    use(queue, Overflow.drop_below("WARNING", at=0.8))
    reader = Reader(queue)
    for fraction in (0.0, 0.79, 0.81, 1.0, 0.5):
        told.set(fraction)
        log_.info("info at %s", fraction)
        log_.warning("warning at %s", fraction)
    reader.read()
    infos = [message for message in reader.messages() if message.startswith("info")]
    assert infos == ["info at 0.0", "info at 0.79", "info at 0.5"]
    assert len(reader.messages()) == 8
    assert counts(queue) == {Reason.SHED: 2}


def test_drop_below_waits_with_what_it_does_not_drop(queue: mplog.LogQueue, log_: logging.Logger) -> None:
    """In a full queue, what is below the level is dropped at once, and the rest waits; without a fill, too."""
    use(queue, Overflow.drop_below("WARNING", timeout=0.2))
    fill(queue)
    start = time.monotonic()
    log_.info("dropped")
    assert elapsed(start) < 0.2
    start = time.monotonic()
    log_.warning("waits")
    assert 0.2 <= elapsed(start) < 0.2 + AT_ONCE
    assert counts(queue) == {Reason.QUEUE_FULL: 2, Reason.TIMEOUT: 1}


def test_no_policy_sheds_errors(queue: mplog.LogQueue, log_: logging.Logger) -> None:
    """Even below a level that is higher, an error is kept."""
    told = Fill(queue.directory, writable=True)
    told.set(1)
    use(queue, Overflow.drop_below("CRITICAL"))
    log_.error("kept")
    reader = Reader(queue)
    reader.read()
    assert reader.messages() == ["kept"]


def test_the_fill_is_seen_at_once_and_looked_up_late(queue: mplog.LogQueue) -> None:
    """A worker that looks before the logging process has made the file sees it later."""
    with pytest.raises(FileNotFoundError):
        Fill(queue.directory)
    queue.overflow = Overflow.drop_below("WARNING")
    put, record = queue.record_putter, encode(logging.makeLogRecord({"levelno": logging.INFO}), 1)
    put(record)
    assert queue.losses.counts == {}
    told = Fill(queue.directory, writable=True)
    told.set(1.0)
    put(record)
    assert queue.losses.counts == {(logging.INFO, Reason.SHED): 1}
    seen = Fill(queue.directory)
    for fraction in (0.0, 0.5, 1.0, 7.0, -1.0):
        told.set(fraction)
        assert abs(seen.fraction - min(1, max(0, fraction))) < 0.005
    again = Fill(queue.directory, writable=True)
    again.set(0.25)
    assert 0.24 < seen.fraction < 0.26


# --- asyncio ---


@pytest.mark.parametrize("policy", ["block", "drop_newest", "drop_below", "drop_oldest", "fallback"])
def test_an_event_loop_is_never_blocked_when_the_policy_says_so(
    queue: mplog.LogQueue, log_: logging.Logger, policy: str
) -> None:
    """In a thread with a loop no call waits, errors are kept all the same, and other threads wait as ever."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # which has something to say before there is a loop
    use(queue, msgspec.structs.replace(Overflow.of(policy), never_block_loop=True))
    fill(queue)

    async def log_in_the_loop() -> float:
        start = time.monotonic()
        for number in range(50):
            log_.warning("warning %d", number)
            log_.error("error %d", number)
        return elapsed(start)

    assert asyncio.run(log_in_the_loop()) < 2 * AT_ONCE
    kept = emergency_messages(emergency_path(queue.directory))
    assert [each for each in kept if each.startswith("error")] == [f"error {number}" for number in range(50)]
    assert len(kept) == (100 if policy == "fallback" else 50)
    if policy == "block":
        thread = threading.Thread(target=log_.warning, args=("waits",))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        Reader(queue).read()
        thread.join(10)
        assert not thread.is_alive()


# --- the logging process stands still ---


@pytest.mark.parametrize(
    ("start_method", "policy"),
    [("fork", "drop_newest"), ("spawn", "fallback"), ("forkserver", "drop_oldest")],
)
def test_a_stopped_logging_process_stops_no_worker(log: Path, tmp_path: Path, stdlib_context: Any, policy: str) -> None:
    """While it is stopped by SIGSTOP, workers go on as the policy says; afterwards each record is there or counted."""
    queue, stop, names = mplog.LogQueue(65536), str(tmp_path / "stop"), ["w1", "w2"]
    with mplog.LogServer(log, level="DEBUG", format="%(message)s", queue=queue, overflow=policy) as server:
        workers = [
            stdlib_context.Process(target=flood, args=(server.initializer, str(tmp_path), name, stop)) for name in names
        ]
        try:
            for worker in workers:
                worker.start()
            calls = [SharedCounter(tmp_path, name) for name in names]
            wait_until(lambda: all(each.value > 100 for each in calls), "all workers log")
            stop_all_threads(server.pid)
            before = [each.value for each in calls]
            wait_until(
                lambda: all(now.value > then + 3000 for now, then in zip(calls, before)), "workers go on", timeout=60
            )
        finally:
            os.kill(server.pid, signal.SIGCONT)
            Path(stop).touch()
            for worker in workers:
                worker.join(30)
        assert [worker.exitcode for worker in workers] == [0, 0]
        server.flush()
        lost: Counter[int] = Counter()
        for each in server.stats().lost:
            lost[each.pid] += each.lost
    written = Counter(line.split()[0] for line in log.read_text().splitlines())
    for name, worker, count in zip(names, workers, calls):
        assert lost[worker.pid] > 0 or policy == "fallback"
        assert written[name] + lost[worker.pid] == count.value
        assert SharedCounter(tmp_path, f"slowest-{name}").value < 1000 * (KEPT_TIMEOUT + 2 * AT_ONCE)


# --- where one logs ---


@pytest.mark.parametrize("policy", ["drop_newest", "fallback"])
def test_signal_handlers_and_threads_are_counted_exactly(
    queue: mplog.LogQueue, log_: logging.Logger, policy: str
) -> None:
    """Calls from a signal handler in the middle of others, and from four threads at once, are all counted or kept."""
    use(queue, policy)
    filled = fill(queue)

    def log_many() -> None:
        for number in range(2000):
            log_.info("thread %d", number)

    calls = in_threads_and_handler(log_many, lambda: log_.info("handler"), 0.001)
    (counted,) = read_losses(queue.directory)
    reason = Reason.EMERGENCY if policy == "fallback" else Reason.QUEUE_FULL
    assert counted.gap == 8000 + calls + 1
    assert counted.by_reason()[reason] == 8000 + calls + (reason is Reason.QUEUE_FULL)
    if policy == "fallback":
        kept = Counter(emergency_messages(emergency_path(queue.directory)))
        assert kept == {"handler": calls, **{f"thread {number}": 4 for number in range(2000)}}
    assert next(queue.sequence) == filled + 1 + 8000 + calls + 1


def log_without_descriptors(queue: mplog.LogQueue) -> None:
    """Runs in a child: use up all descriptors, fill the queue, and log some more."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    hogs: list[int] = []
    with pytest.raises(OSError, match="Too many open files"):
        while True:
            hogs.append(os.dup(0))
    log = mplog.getLogger("poor")
    while not queue.losses.counts:
        log.info("full")
    log.error("has nowhere to go")
    assert (list(queue.losses.counts.values()), queue.losses.are_waiting) == ([1, 1], True)
    for hog in hogs:
        os.close(hog)
    log.info("with descriptors again")


@pytest.mark.processes
def test_without_descriptors_records_are_dropped_and_counted_all_the_same(queue: mplog.LogQueue) -> None:
    """A process that has run out of descriptors drops as the policy says, and what it has counted is there later."""
    use(queue, "drop_newest")
    logging.getLogger().setLevel(logging.INFO)
    pid = in_fork(log_without_descriptors, queue)
    reader = Reader(queue)
    reader.read()  # a short frame of losses may have found room
    counted = [*read_losses(queue.directory), *reader.losses]
    assert {each.pid for each in counted} == {pid}
    assert totals(counted) == {Reason.QUEUE_FULL: 2, Reason.NO_EMERGENCY: 1}


def test_put_tells_its_caller_and_counts_no_loss(queue: mplog.LogQueue) -> None:
    """queue.Full is the caller's to handle: the number is unused, and no loss is said."""
    fill(queue)
    for block in (False, True):
        with pytest.raises(queue_module.Full):
            queue.put(logging.makeLogRecord({"msg": "x", "levelno": 20}), block, 0.01)
    (counted,) = read_losses(queue.directory)
    assert counted.by_reason() == {Reason.QUEUE_FULL: 1, Reason.UNUSED: 2}


class HandlerError(BaseException):
    """What a signal handler raises."""


@pytest.mark.parametrize("is_after", [False, True])
def test_what_a_signal_handler_keeps_in_the_midst_of_another_is_counted(
    queue: mplog.LogQueue, monkeypatch: pytest.MonkeyPatch, is_after: bool
) -> None:
    """A handler that logs before or after a call writes into the emergency file, and raises: both are counted as what
    they are, there or lost."""
    use(queue, "fallback")
    logging.getLogger().setLevel(logging.INFO)
    fill(queue)
    log, write = logging.getLogger("job"), os.write

    def log_and_raise(*_: object) -> None:
        log.error("handler")
        raise HandlerError

    def write_and_signal(fd: int, data: bytes) -> int:
        if not data.startswith(emergency.MAGIC):
            return write(fd, data)
        monkeypatch.setattr(os, "write", write)
        if is_after:
            write(fd, data)
        signal.raise_signal(signal.SIGUSR1)
        raise AssertionError("the handler has raised nothing")

    before = signal.signal(signal.SIGUSR1, log_and_raise)
    monkeypatch.setattr(os, "write", write_and_signal)
    try:
        with pytest.raises(HandlerError):
            log.error("one")
    finally:
        signal.signal(signal.SIGUSR1, before)
    found = {reason: count for (level, reason), count in queue.losses.counts.items() if level == logging.ERROR}
    assert found == ({Reason.EMERGENCY: 2} if is_after else {Reason.EMERGENCY: 1, Reason.INTERRUPTED: 1})
    assert emergency_messages(emergency_path(queue.directory)) == [*["one"] * is_after, "handler"]


@pytest.mark.parametrize("policy", [Overflow.fallback(), Overflow.drop_newest()])
def test_the_emergency_file_has_room_for_errors(
    queue: mplog.LogQueue, log_: logging.Logger, tmp_path: Path, policy: Overflow
) -> None:
    """However many other records have come before, a quarter of the file is for errors, and the file stays bounded."""
    use(queue, policy.with_emergency_file(tmp_path / "file", 40_000))
    fill(queue)
    for number in range(1000):
        log_.warning("%d", number)
    for number in range(30):
        log_.error("error %d", number)
    kept = [*counts(queue)]
    assert os.path.exists(tmp_path / "file")
    assert os.path.getsize(tmp_path / "file") <= 40_000
    messages = emergency_messages(tmp_path / "file")
    assert messages[-30:] == [f"error {number}" for number in range(30)]
    if policy.policy == "fallback":
        assert messages[:-30] == [f"{number}" for number in range(len(messages) - 30)]
        assert 80 < len(messages) < 400
        assert {Reason.EMERGENCY, Reason.NO_EMERGENCY} <= set(kept)
