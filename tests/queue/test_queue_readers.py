"""Reading a `LogQueue`: several readers, killed or interrupted, closed descriptors, and garbage (promise 8)."""

from __future__ import annotations

import logging
import logging.handlers
import os
import pickle
import queue as stdlib_queue
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import wait_until
from queue_use import FORK, Thread, child, drain, ended, put_all, record

import mplog
from mplog import LogQueue
from mplog.queue import fifo
from mplog.queue.directory import lock_path
from mplog.queue.locks import try_lock_process
from mplog.record import frame
from mplog.record.encoding import encode
from mplog.record.layout import Record

# --- readers ---


def consume(queue: LogQueue, answers: LogQueue) -> None:
    """Runs in a child: pass on what comes, one by one."""
    for item in iter(queue.get, None):
        answers.put(item)


def test_consumers_take_turns(stdlib_context: Any, queue: LogQueue) -> None:
    """Several processes may get from one queue: each object goes to one of them, whole."""
    answers = LogQueue()
    consumers = [stdlib_context.Process(target=consume, args=(queue, answers)) for _ in range(3)]
    for process in consumers:
        process.start()
    writer = Thread(put_all, queue, [(number, "x" * (number % 3000)) for number in range(500)] + [None] * 3)
    got = [answers.get(timeout=60) for _ in range(500)]
    writer.finish("it has put everything")
    for process in consumers:
        ended(process, "it has got its end")
    assert sorted(got) == [(number, "x" * (number % 3000)) for number in range(500)]


@pytest.mark.processes
def test_consumer_killed_while_it_waits(queue: LogQueue) -> None:
    """A consumer that is killed in a get() that waits leaves the queue usable, and takes nothing along."""
    answers = LogQueue()
    with child(consume, queue, answers) as process:
        queue.put("first")
        assert answers.get(timeout=60) == "first"
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING, "the consumer waits")
        process.kill()
        process.join(30)
    queue.put("second")
    assert queue.get(timeout=60) == "second"


@pytest.mark.processes
def test_consumers_killed_at_random(queue: LogQueue) -> None:
    """A consumer that is killed while it reads costs at most the object it was taking; the queue goes on."""
    answers = LogQueue()
    stop = threading.Event()

    def put() -> int:
        number = 0
        while not stop.is_set():
            queue.put(number)
            number += 1
        return number

    def collect() -> list[int]:
        return list(iter(lambda: answers.get(timeout=60), None))

    writer, collector = Thread(put), Thread(collect)
    dice = random.Random(1)
    kills = 20
    for _ in range(kills):
        with child(consume, queue, answers):
            time.sleep(dice.uniform(0.005, 0.03))  # the random moment, not a wait for anything
    stop.set()
    with child(consume, queue, answers) as last:
        count = writer.finish("it has put everything")
        queue.put(None)
        ended(last, "it has got its end")
    answers.put(None)
    got = collector.finish("it has got everything")
    assert len(set(got)) == len(got), "doubled"
    assert got == sorted(got)
    # One that was taken, and one that was passed on but not yet written, is the same one.
    assert count - kills <= len(got) <= count


def hold(path: str, sender: Any) -> None:
    """Runs in a child: hold the lock of the readers."""
    fd = fifo.open_lock(path)
    assert try_lock_process(fd)
    sender.send("held")
    signal.pause()


@pytest.mark.processes
def test_stopped_consumer_does_not_stop_a_timeout(queue: LogQueue) -> None:
    """While another process is stopped in the middle of taking an object, a timeout still holds."""
    receiver, sender = FORK.Pipe(False)
    queue.put("there")
    with child(hold, lock_path(queue.directory), sender):
        assert receiver.poll(60), "waited for the child to take the lock"
        start = time.monotonic()
        with pytest.raises(stdlib_queue.Empty):
            queue.get(timeout=0.1)
        with pytest.raises(stdlib_queue.Empty):
            queue.get_nowait()
        assert 0.1 <= time.monotonic() - start < 5
    assert queue.get(timeout=60) == "there"
    receiver.close()
    sender.close()


def test_thread_that_waits_does_not_stop_a_timeout(queue: LogQueue) -> None:
    """While another thread waits in get(), a get() with a timeout ends in time."""
    waiting = Thread(queue.get)
    wait_until(lambda: queue.reader.received.is_reading, "the thread waits")
    with pytest.raises(stdlib_queue.Empty):
        queue.get(timeout=0.05)
    with pytest.raises(stdlib_queue.Empty):
        queue.get_nowait()
    queue.put(1)
    assert waiting.finish("it has got something") == 1


class Interrupt(BaseException):
    """What the signal handler of a test raises."""


@pytest.mark.processes
def test_interrupted_get_leaves_the_queue_usable(queue: LogQueue) -> None:
    """Signals that raise at any moment of get() leave no lock held, and cost at most the object it was taking."""
    interrupted = 0

    def handle(number: int, interrupted: object) -> None:
        raise Interrupt

    def collect() -> None:
        # Not in the try block: what is raised with the jump back of a loop in there is not caught (CPython 3.13).
        while (item := queue.get(timeout=60)) is not None:
            got.append(item[0])

    total = 6000
    writer = Thread(put_all, queue, [(number, "x" * (number % 2 * 100)) for number in range(total)] + [None] * 100)
    got = []
    before = signal.signal(signal.SIGALRM, handle)
    try:
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, 0.002))
                collect()
                signal.setitimer(signal.ITIMER_REAL, 0)
                break
            except Interrupt:
                interrupted += 1
                # Another thread, and another process, get at it now.
                if interrupted % 10 == 0:
                    item = Thread(queue.get, True, 60).finish("another thread has got something")
                    if item is None:
                        break
                    got.append(item[0])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    writer.finish("it has put everything")
    assert set(drain(queue)) <= {None}  # of which one may have been lost, too
    assert interrupted > 10
    assert sorted(set(got)) == got
    assert total - interrupted <= len(got)
    assert fifo.pending(queue.reader.read_fd) == 0
    with child(consume, queue, other := LogQueue()):
        queue.put("by another process")
        assert other.get(timeout=60) == "by another process"


def test_ctrl_c_while_get_waits_takes_nothing(queue: LogQueue) -> None:
    """Ctrl-C in a get() that waits raises KeyboardInterrupt, and the next get() has what comes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main = threading.get_ident()

        def interrupt() -> None:
            wait_until(lambda: queue.reader.received.is_reading, "the main thread waits")
            signal.pthread_kill(main, signal.SIGINT)

        thread = Thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            queue.get(timeout=60)
        thread.finish("it has interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    queue.put(1)
    assert Thread(queue.get).finish("another thread has got something") == 1


def test_signal_handler_that_gets(queue: LogQueue) -> None:
    """get() in a signal handler that has interrupted get() is an error, and no deadlock."""
    caught = []

    def handle(number: int, interrupted: object) -> None:
        with pytest.raises(RuntimeError, match="signal handler"):
            queue.get_nowait()
        caught.append(1)
        queue.put("by the handler")

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert queue.get(timeout=60) == "by the handler"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert caught == [1]


@pytest.mark.processes
def test_fork_of_a_waiting_reader_can_read(queue: LogQueue) -> None:
    """A fork that is made while a thread waits in get() reads by itself, with no lock of the thread's."""
    waiting = Thread(queue.get)
    wait_until(lambda: queue.reader.received.is_reading, "the thread waits")
    answers = LogQueue()
    with child(lambda: answers.put(sorted([queue.get(timeout=60), queue.get(timeout=60)]))):
        os.kill(os.getpid(), 0)
        queue.put(1)
        queue.put(2)
        queue.put(3)
        mine = waiting.finish("it has got something")
        assert sorted([mine, *answers.get(timeout=60)]) == [1, 2, 3]


# --- closed descriptors ---


def close_all_and_go_on(queue: LogQueue, answers: LogQueue, directory: str) -> None:
    """Runs in a child: close all descriptors, as daemons do, open others, and use the queue."""
    queue.put("before")
    queue.get(timeout=60)
    os.closerange(3, 4096)
    files = [os.open(os.path.join(directory, str(number)), os.O_RDWR | os.O_CREAT) for number in range(100)]
    answers.put("put")
    answers.put((queue.empty(), queue.full()))
    answers.put(queue.get(timeout=60))
    os.closerange(3, 4096)
    answers.put(queue.qsize())
    assert len(set(files)) == 100


@pytest.mark.processes
def test_closed_descriptors_are_opened_again(queue: LogQueue, tmp_path: Path) -> None:
    """A process that closes all descriptors goes on putting and getting, and writes into no file of its own."""
    answers = LogQueue()
    with child(close_all_and_go_on, queue, answers, str(tmp_path)) as process:
        assert answers.get(timeout=60) == "put"
        assert answers.get(timeout=60) == (True, False)
        queue.put("for you")
        assert answers.get(timeout=60) == "for you"
        assert answers.get(timeout=60) == 0
        process.join(60)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0] * 100


# --- garbage (promise 8) ---

GARBAGE = [
    b"x", b"\xff", b"\xffmp", b"\xffmp\x01", b"\xffmp" * 5, b"\0" * 3000, b"GET / HTTP/1.1\r\n\r\n",
    *(b"\xffmp" + bytes([kind]) + struct.pack("<I", 4000) for kind in (1, 2, 3)),
    *(b"\xffmp" + bytes([kind]) + struct.pack("<I", size) + bytes(size) for kind in (1, 2, 3) for size in (0, 4, 36)),
    b"\xffmp\x01" + struct.pack("<I", 2**32 - 1) + b"junk", b"\xffmp\x02" + struct.pack("<I", 4) + b"junk",
    b"\xffmp\x63" + struct.pack("<I", 0), pickle.dumps(["no frame"]),
]  # fmt: skip

STRANGER = """
import sys
with open(sys.argv[1], "wb", buffering=0) as fifo:
    fifo.write(bytes.fromhex(sys.argv[2]))
"""


def write_garbage(queue: LogQueue, data: bytes) -> None:
    """Write into the FIFO from another process."""
    subprocess.run([sys.executable, "-S", "-c", STRANGER, queue.path, data.hex()], check=True, timeout=60)


@pytest.mark.processes
def test_garbage_by_another_process_is_skipped_and_counted(queue: LogQueue) -> None:
    """Bytes that another process of the user writes into the FIFO are skipped and counted; what we put arrives."""
    write_garbage(queue, GARBAGE[4])
    queue.put("first")
    write_garbage(queue, os.urandom(4000))
    queue.put("second")
    write_garbage(queue, GARBAGE[7])
    assert queue.get(timeout=60) == "first"
    assert queue.get(timeout=60) == "second"
    with pytest.raises(stdlib_queue.Empty):
        queue.get(timeout=0.01)
    assert queue.broken == 3
    queue.put("third")
    assert queue.get(timeout=60) == "third"


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: garbage[:8].hex())
def test_garbage_before_between_and_after(queue: LogQueue, garbage: bytes) -> None:
    """Garbage of every kind, before, between and after objects and records, long and short, is skipped and counted."""
    fd = fifo.open_writer(queue.path)
    items = [1, "x" * 10_000, record("y" * 10_000), record("z"), (2,)]
    for item in items:
        os.write(fd, garbage)
        queue.put(item)
    os.write(fd, garbage)
    os.close(fd)
    got = [queue.get(timeout=60) for _ in items]
    assert [item.getMessage() if isinstance(item, Record) else item for item in got] == [
        1, "x" * 10_000, "y" * 10_000, "z", (2,),
    ]  # fmt: skip
    with pytest.raises(stdlib_queue.Empty):
        queue.get_nowait()
    assert queue.broken == 6


def leave_a_trace(path: str) -> None:
    """Make a file."""
    Path(path).touch()


class Exploit:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return leave_a_trace, (str(self.path),)


def test_hostile_frames_run_no_code(server: mplog.LogServer, log: Path, tmp_path: Path) -> None:
    """Whatever comes through the queue of a server is counted and skipped, never unpickled; the records arrive."""
    trace = tmp_path / "trace"
    attack = pickle.dumps(Exploit(trace))
    queue = server.queue
    fd = fifo.open_writer(queue.path)

    def payload_frame(kind: int, payload: bytes) -> bytes:
        data = frame.frame(kind, payload)
        assert data is not None
        return data

    logging.info("first")
    queue.put(Exploit(trace))
    queue.put([Exploit(trace), "x" * 10_000])
    os.write(fd, payload_frame(frame.RECORD, attack))
    logging.info("second")
    os.write(fd, payload_frame(frame.OBJECT, attack))
    # A false length: nothing after it is swallowed.
    good = [payload_frame(frame.RECORD, encode(record("good %d", number))) for number in range(3)]
    for kind in (frame.RECORD, frame.OBJECT, frame.PART, 99):
        os.write(fd, b"\xffmp" + bytes([kind]) + struct.pack("<I", 500) + b"".join(good))
    os.write(fd, os.urandom(1000))
    logging.info("third")
    os.close(fd)
    stats = server.flush()
    server.stop()
    assert not trace.exists()
    lines = [line.split(" | ")[1] for line in log.read_text().splitlines() if "mplog: " not in line]
    assert lines == ["first", "second", *["good 0", "good 1", "good 2"] * 4, "third"]
    pickle.loads(attack)
    assert trace.exists(), "the attack works where there is a pickle"
    stats = server.stats() if stats is None else stats
    assert (stats.received, stats.objects) == (15, 2)
    assert stats.broken >= 5
    assert stats.skipped >= 1000 + 4 * 8
