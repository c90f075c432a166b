"""A reader of a queue that the tests hold in their hands, and workers that log into it."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from oracle import Counter

import mplog
from mplog.queue import fifo
from mplog.queue.emergency_reader import EmergencyReader
from mplog.queue.process_losses import ProcessLosses, decode_losses, read_files
from mplog.queue.sync import Acknowledger
from mplog.record import frame
from mplog.record.decoding import Decoder, decode
from mplog.record.frame_reader import FrameReader
from mplog.record.layout import MSG, SEQUENCE, Entry
from mplog.worker.initializer import install


def read_losses(directory: str) -> list[ProcessLosses]:
    """Return what is in the files of losses of a queue, the oldest first."""
    return sorted(read_files(directory).values(), key=lambda losses: losses.began)


class Reader:
    """Reads a queue like the logging process does, when it is told to.

    Attributes:
        records: what has come, with its numbers.
        losses: what frames of losses have told.
    """

    def __init__(self, queue: mplog.LogQueue) -> None:
        self.queue = queue
        self.records: list[Entry] = []
        self.losses: list[ProcessLosses] = []
        decode_entry = Decoder().decode
        self.acknowledger: Acknowledger[Entry] = Acknowledger(queue.directory, decode_entry)
        self._frames: FrameReader[Any] = FrameReader(
            {frame.RECORD: decode_entry, frame.SYNC: self.acknowledger.decode, frame.LOSSES: decode_losses}
        )

    def read(self) -> int:
        """Read what is in the queue; return how many records."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while fifo.pending(self.queue.reader.read_fd):
                count += self.feed(os.read(self.queue.reader.read_fd, 2**20))
        return count

    def feed(self, data: bytes) -> int:
        """Take frames from elsewhere; return how many records."""
        found = self._frames.feed(data, drained=True)
        assert (self._frames.broken, self._frames.skipped) == (0, 0)
        entries = [each for each in found if isinstance(each, tuple)]
        self.records += entries
        self.losses += [each for loss in found if isinstance(loss, list) for each in loss]
        return len(entries)

    def messages(self) -> list[str]:
        """Return the messages that have come."""
        return [values[MSG] for values, _ in self.records]

    def numbers(self) -> dict[int, list[int]]:
        """Return the numbers of the records, by pid."""
        numbers: dict[int, list[int]] = defaultdict(list)
        for values, origin in self.records:
            numbers[origin.process or 0].append(values[SEQUENCE])
        return numbers


def emergency_messages(path: str | os.PathLike[str]) -> list[str]:
    """Return the messages that are in an emergency file, which is gone afterwards."""
    reader, messages = EmergencyReader(os.fspath(path)), []
    frames: FrameReader[Any] = FrameReader({frame.RECORD: decode})
    while (data := reader.read()) or reader.take():
        messages += [each.getMessage() for each in frames.feed(data, drained=True)]
        reader.commit()
    assert frames.broken == 0
    return messages


def fill(queue: mplog.LogQueue, directory: str | None = None) -> int:
    """Put records of this process into the queue until there is no room for another; return how many."""
    overflow, queue.overflow = queue.overflow, mplog.Overflow.drop_newest()
    logger, count = logging.getLogger("filler"), 0
    handler = install(queue)
    before = dict(queue.losses.counts)
    # Some longer ones first: then the shortest that are tried find no room either.
    while queue.losses.counts == before:
        handler.handle(logger.makeRecord("filler", logging.INFO, "f", 1, "", (), None))
        count += 1
    queue.overflow = overflow
    return count - 1


@contextlib.contextmanager
def running(workers: list[Any]) -> Iterator[None]:
    """Start workers, and end them all."""
    try:
        for worker in workers:
            worker.start()
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.join(60)


def fork(function: Callable[..., object], *arguments: Any) -> int:
    """Call a function in a fork of this process, which may take a minute; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.alarm(60)
        function(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(function: Callable[..., object], *arguments: Any) -> int:
    """Call a function in a fork of this process, and return its exit code, below 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(function, *arguments), 0)[1])


def in_fork(function: Callable[..., object], *arguments: Any) -> int:
    """Call a function in a fork of this process, wait for its end, and return its pid."""
    pid = fork(function, *arguments)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return pid


def in_threads_and_handler(work: Callable[[], object], in_handler: Callable[[], object], interval: float) -> int:
    """Call `work` in four threads at once, one of them this, in the midst of which a signal handler calls `in_handler`.

    Args:
        work: what each thread calls once.
        in_handler: what the handler calls.
        interval: the seconds between two signals.

    Returns:
        How often the handler was called.
    """
    calls = 0

    def handle(*_: object) -> None:
        nonlocal calls
        calls += 1
        in_handler()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        threads = [threading.Thread(target=work) for _ in range(3)]
        signal.setitimer(signal.ITIMER_REAL, interval, interval)
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls > 10
    return calls


def flood(initializer: Any, directory: str, name: str, stop: str) -> None:
    """Runs in a worker: log until told to stop; count the calls, and keep the longest."""
    initializer()
    calls, slowest = Counter(directory, name), Counter(directory, f"slowest-{name}")
    log = mplog.getLogger("flood")
    number = worst = 0
    while not os.path.exists(stop):
        number += 1
        start = time.monotonic()
        log.log(logging.ERROR if number % 1000 == 0 else logging.INFO, "%s %d", name, number)
        worst = max(worst, round((time.monotonic() - start) * 1000))
        slowest.set(worst)
        calls.set(number)


def log_anything(initializer: Any, directory: str, name: str) -> None:
    """Runs in a worker: log at every level, also what is encoded twice, until killed; count the calls."""
    initializer()
    calls = Counter(directory, name)
    fast, plain, dice = mplog.getLogger("fast"), logging.getLogger("plain"), random.Random(name)
    number = 0
    while True:
        number += 1
        logger = fast if number % 2 else plain
        level = dice.choice((10, 20, 30, 40)) if number % 50 == 0 else dice.choice((10, 20, 30))
        size = dice.choice((10, 100, 500)) if number % 20 else 9000
        logger.log(level, "%s %s", "\ud800" if number % 30 == 0 else number, "x" * size)
        calls.set(number)
