"""A plain queue in place of the LogQueue: works everywhere, promises less."""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from floods import log_as_the_stdlib_does, log_many
from oracle import wait_until
from scripts import BlockedHandler, Gate, elapsed, lines, process_has_ended, run_script

import mplog

pytestmark = pytest.mark.processes


def run_workers(context: Any, target: Any, argument: Any, count: int) -> None:
    """Run three workers, to their end."""
    workers = [context.Process(target=target, args=(argument, name, count)) for name in ("w1", "w2", "w3")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


def check(written: list[str], count: int) -> None:
    """Check that all lines are there, once, in the order of each process."""
    for name in ("w1", "w2", "w3"):
        assert [line for line in written if line.startswith(name)] == [f"{name} {number}" for number in range(count)]


@pytest.mark.parametrize("make", [multiprocessing.SimpleQueue, object])
def test_what_is_no_queue_is_refused(make: Any) -> None:
    """The constructor refuses a SimpleQueue, whose get() takes no timeout, and objects that are no queue."""
    with pytest.raises(
        TypeError, match=r"queue is a LogQueue, or a Queue of multiprocessing .*A SimpleQueue does not do"
    ):
        mplog.LogServer("app.log", queue=make())


def test_every_record_arrives_in_order(context: Any, log: Path) -> None:
    """Every record of every process arrives, once, in the order of its process, when stop() has returned."""
    with mplog.LogServer(log, level="INFO", format="%(message)s", queue=context.Queue(100)) as server:
        logging.info("here")
        run_workers(context, log_many, server.initializer, 1000)
    written = lines(log)
    assert "here" in written
    check(written, 1000)
    # dill logs, too, at this level, in this process.
    assert sum(count for (_, pid), count in server.stats().by_process.items() if pid != os.getpid()) == 3000


def test_records_of_the_stdlib_arrive(context: Any, log: Path) -> None:
    """LogRecords that a QueueHandler of the stdlib puts into the queue are written, too."""
    queue = context.Queue()  # the stdlib's handler does not wait while a queue is full
    with mplog.LogServer(log, format="%(levelname)s %(message)s", queue=queue):
        run_workers(context, log_as_the_stdlib_does, queue, 300)
    check([line.removeprefix("INFO ") for line in lines(log)], 300)


def test_plain_queue_is_kept_as_it_was_given(log: Path) -> None:
    """The server uses the given queue itself, without a directory or an environment variable."""
    queue = multiprocessing.get_context("spawn").Queue(10)
    with mplog.LogServer(log, queue=queue) as server:
        assert server.queue is queue
        assert "MPLOG_QUEUE" not in os.environ


def test_garbage_in_the_queue_is_counted(log: Path) -> None:
    """Objects that are no records are counted and skipped, and the records around them arrive."""
    queue = multiprocessing.get_context("spawn").Queue(10)
    with mplog.LogServer(log, level="INFO", format="%(message)s", queue=queue) as server:
        logging.info("before")
        for garbage in (42, None, b"junk", "text", {"a": 1}, Unloadable()):
            queue.put(garbage)
        logging.info("after")
    assert [line for line in lines(log) if "mplog" not in line] == ["before", "after"]
    assert server.stats().broken == 6
    # In one line or more: it is said when the first has come, and at the end.
    said = re.findall(r"(\d+) pieces? of data in the queue skipped", log.read_text())
    assert sum(map(int, said)) == 6


class Unloadable:
    """Pickles, and cannot be loaded again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


FORGOTTEN = """
import logging, multiprocessing, os, sys
import mplog

def work(initializer, started):
    initializer()
    started.set()
    for number in range(1000):
        logging.info("%d", number)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    server = mplog.LogServer("app.log", level="INFO", format="%(message)s", queue=context.Queue(100)).start()
    logging.info("here")
    started = context.Event()
    context.Process(target=work, args=(server.initializer, started)).start()
    started.wait()
"""


def test_forgotten_stop_ends_without_a_hang(tmp_path: Path, start_method: str) -> None:
    """A program that never stops its server ends with every record of its workers written."""
    result = run_script(tmp_path, FORGOTTEN, start_method)
    assert (result.returncode, result.stderr) == (0, "")
    written = lines(tmp_path / "app.log")
    assert sorted(written) == sorted(["here", *map(str, range(1000))])
    assert sorted(os.listdir(tmp_path)) == ["app.log", "program.py"]


def flood(initializer: Any, progress: Any, count: int) -> None:
    """Runs in a worker: log, and say how far."""
    initializer()
    for number in range(count):
        logging.getLogger("worker").info("%d %s", number, "x" * 1000)
        progress.value = number + 1


def test_full_queue_blocks_and_loses_nothing(tmp_path: Path, gate: Gate, stdlib_context: Any) -> None:
    """While a sink blocks, workers wait for the full queue, the server's calls end in time, and nothing is lost."""
    count = 5000
    progress = stdlib_context.Value("i", 0)
    sink = mplog.HandlerSink(lambda: BlockedHandler(gate, tmp_path / "slow.log"), format="%(message)s")
    server = mplog.LogServer(sink, level="INFO", queue=stdlib_context.Queue(10)).start()
    worker = stdlib_context.Process(target=flood, args=(server.initializer, progress, count))
    worker.start()
    gate.wait_until_reached()
    wait_until(server.queue.full, "the queue is full")
    for ask in (server.flush, server.stats, server.stop):
        started = time.monotonic()
        with pytest.raises(mplog.DrainTimeoutError):
            ask(0.3)
        assert elapsed(started) < 3
    assert progress.value < count
    gate.open()
    worker.join(60)
    assert server.stop().received == count
    assert [line.partition(" ")[0] for line in lines(tmp_path / "slow.log")] == [str(number) for number in range(count)]


class Slow:
    """Takes the thread of a queue longer to pickle than the server waits between two looks at the queue."""

    def __reduce__(self) -> tuple[Any, ...]:
        time.sleep(0.5)
        return str, ("slow",)


def test_stop_waits_for_what_the_thread_of_the_queue_still_holds(context: Any, log: Path) -> None:
    """Records whose calls have returned in the program are written, though the queue has not sent them yet."""
    plain = context.Queue(1000)
    with mplog.LogServer(log, level="INFO", format="%(message)s", queue=plain) as server:
        logging.info("first")
        wait_until(lambda: server.stats().received == 1, "the first record has arrived")
        for number in range(3):
            plain.put(Slow())
            logging.info("%d", number)
    assert [line for line in lines(log) if not line.startswith("mplog:")] == ["first", "0", "1", "2"]
    assert server.stats().broken == 3


STOPPED_BY_A_HANDLER = """
import logging, multiprocessing, signal, sys
import mplog

def stop(*_):
    global is_done
    is_done = True
    try:
        server.stop(2)
    except mplog.DrainTimeoutError:  # the call that was interrupted has the queue locked
        pass
    # No exception: one that interrupts Queue.put() may leave the queue locked, and then the program does not end.

signal.signal(signal.SIGALRM, stop)
for number in range(8):
    server = mplog.LogServer(f"{number}.log", level="INFO", queue=multiprocessing.Queue(10_000)).start()
    logging.info("first")
    is_done = False
    signal.setitimer(signal.ITIMER_REAL, 0.03 + 0.001 * number)
    while not is_done:
        logging.info("a record of usual length")
    server.stop()
    print(number, flush=True)
"""


def test_a_signal_handler_may_stop_the_server(tmp_path: Path) -> None:
    """Whatever it has interrupted, the call returns in its time."""
    done = run_script(tmp_path, STOPPED_BY_A_HANDLER, timeout=100)
    assert done.stdout.split() == [str(number) for number in range(8)], done.stderr


def test_killed_logging_process_is_said(log: Path) -> None:
    """After the logging process was killed, stop() says so and does not hang."""
    server = mplog.LogServer(log, level="INFO", queue=multiprocessing.get_context("spawn").Queue(10)).start()
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: process_has_ended(server.pid), "the logging process has ended")
    logging.info("x")
    started = time.monotonic()
    with pytest.raises(mplog.LoggingProcessDiedError):
        server.stop(5)
    assert elapsed(started) < 4
