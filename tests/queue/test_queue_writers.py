"""Writing into a `LogQueue`: messages of every size, by many writers, killed, stopped or interrupted in the middle."""

from __future__ import annotations

import os
import pickle
import queue as stdlib_queue
import random
import signal
import threading
import time
import traceback
from typing import Any

import psutil
import pytest
from oracle import wait_until
from queue_use import FORK, PIPE_BUF, Thread, child, drain, ended, fill, put_all, record
from scripts import stop_all_threads

import mplog
from mplog import LogQueue
from mplog.queue.payloads import MAX_OBJECT_SIZE
from mplog.record.encoding import encode
from mplog.record.layout import MAX_RECORD_SIZE, Record

# --- sizes ---


SIZES = [0, 1, *range(PIPE_BUF - 70, PIPE_BUF + 8), 2 * PIPE_BUF, *range(16382, 16387), *range(65534, 65539), 10**6]


def test_every_size_of_object(queue: LogQueue) -> None:
    """Objects of every size around the limits of frames, pages and pipes arrive whole."""
    items = [random.Random(size).randbytes(size) for size in SIZES]
    writer = Thread(put_all, queue, items)
    for item in items:
        assert queue.get(timeout=60) == item
    writer.finish("it has put everything")
    assert (queue.empty(), queue.broken) == (True, 0)


def test_every_size_of_record(queue: LogQueue) -> None:
    """Records of every size around the limits of frames, pages and pipes arrive whole."""
    rest = len(encode(record("")))
    sizes = [*SIZES, *range(PIPE_BUF - rest - 20, PIPE_BUF - rest + 5)]
    writer = Thread(put_all, queue, [record("%s", "x" * size) for size in sizes])
    for size in sizes:
        assert queue.get(timeout=60).getMessage() == "x" * size
    writer.finish("it has put everything")
    assert (queue.empty(), queue.broken) == (True, 0)


def put_big(queue: LogQueue, kind: str, size: int) -> None:
    """Runs in a child: put something big."""
    queue.put("starts")
    queue.put(record("%s", "x" * size) if kind == "record" else b"x" * size)


def put_small(queue: LogQueue, stop: Any) -> None:
    """Runs in a child: put small objects that say how long the one before took, until told to stop."""
    took = 0.0
    while not stop.is_set():
        start = time.monotonic()
        queue.put(("small", took))
        took = time.monotonic() - start


def check_big(queue: LogQueue, kind: str, size: int) -> None:
    """Take something big out of the queue while another process puts small objects."""
    stop = FORK.Event()
    with child(put_small, queue, stop) as other:
        assert queue.get(timeout=60)[0] == "small"
        with child(put_big, queue, kind, size) as process:
            while queue.get(timeout=60) != "starts":
                pass
            waits = []
            while type(item := queue.get(timeout=60)) is tuple:
                waits.append(item[1])
            ended(process, "it has put")
        stop.set()
        while other.is_alive():
            drain(queue)
    length = len(item.getMessage()) if kind == "record" else len(item)
    assert length == size
    assert len(waits) > 20, "the other process was blocked"
    assert max(waits) < 5
    assert queue.broken == 0


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["object", "record"])
def test_twenty_megabytes(queue: LogQueue, kind: str) -> None:
    """An object, or a record, of 20 MB arrives whole, and does not block another process."""
    check_big(queue, kind, 20_000_000)


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "size"), [("object", MAX_OBJECT_SIZE - 100), ("record", MAX_RECORD_SIZE - 1000)])
def test_longest_of_all(queue: LogQueue, kind: str, size: int) -> None:
    """The longest object that is not refused, and the longest record that is not cut, arrive whole."""
    check_big(queue, kind, size)


# --- writers ---


def put_mixed(queue: LogQueue, name: int, count: int) -> None:
    """Runs in a child: put short and long objects and records."""
    dice = random.Random(name)
    for number in range(count):
        size = dice.choice([0, 100, 5000, 60_000])
        queue.put(record("%d %d %s", name, number, "x" * size) if dice.random() < 0.5 else (name, number, b"x" * size))


def test_writers_at_once_keep_their_order(stdlib_context: Any, queue: LogQueue) -> None:
    """Long and short messages of several processes at once all arrive, whole, and in order per process."""
    got: dict[int, list[int]] = {name: [] for name in range(4)}
    processes = [stdlib_context.Process(target=put_mixed, args=(queue, name, 60)) for name in got]
    for process in processes:
        process.start()
    for _ in range(4 * 60):
        item = queue.get(timeout=60)
        name, number, rest = item.getMessage().split(" ") if isinstance(item, Record) else item
        assert set(rest) <= set(b"x") | set("x")
        got[int(name)].append(int(number))
    for process in processes:
        ended(process, "it has put everything")
    assert all(numbers == list(range(60)) for numbers in got.values())
    assert (queue.empty(), queue.broken) == (True, 0)


def put_long(queue: LogQueue, kind: str) -> None:
    """Runs in a child: put something that is far longer than the queue."""
    queue.put(record("%s", "x" * 2_000_000) if kind == "record" else b"x" * 2_000_000)


def in_the_middle(queue: LogQueue, process: Any) -> None:
    """Wait until the process waits for room in the queue."""
    wait_until(
        lambda: queue.full() and psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING, "the queue is full"
    )


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["object", "record"])
def test_writer_killed_in_a_long_message_costs_that_one(small: LogQueue, kind: str) -> None:
    """A writer that is killed in the middle of a long message loses that message, which is counted, and no other."""
    with child(put_long, small, kind) as process:
        in_the_middle(small, process)
        process.kill()
        process.join(30)
    other = Thread(put_all, small, ["before", record("x" * 20_000), "after"])
    assert small.get(timeout=60) == "before"
    assert small.get(timeout=60).getMessage() == "x" * 20_000
    assert small.get(timeout=60) == "after"
    other.finish("it has put everything")
    with pytest.raises(stdlib_queue.Empty):
        small.get_nowait()
    assert small.broken == 1
    assert small.reader.received.frames.incomplete() == []


@pytest.mark.processes
def test_stopped_writer_is_waited_for(small: LogQueue) -> None:
    """A writer that is stopped in the middle of a long message is not dead: the message arrives when it goes on."""
    with child(put_long, small, "object") as process:
        in_the_middle(small, process)
        stop_all_threads(process.pid)
        with pytest.raises(stdlib_queue.Empty):
            small.get(timeout=0.05)
        small.put("meanwhile")
        assert small.get(timeout=60) == "meanwhile"
        os.kill(process.pid, signal.SIGCONT)
        assert small.get(timeout=60) == b"x" * 2_000_000
        ended(process, "it has put")
    assert small.broken == 0


def test_full_in_the_middle_of_a_long_message(small: LogQueue) -> None:
    """A long message that finds no room half-way is given up as a whole; what follows arrives."""
    for block, timeout in ((False, None), (True, 0.02)):
        with pytest.raises(stdlib_queue.Full):
            small.put(b"x" * 1_000_000, block, timeout)
        assert drain(small) == []
        assert len(small.reader.received.frames.incomplete()) == 1
        small.put("next")
        assert small.get() == "next"
        assert small.reader.received.frames.incomplete() == []
    assert small.broken == 0


def put_interrupted(queue: LogQueue, ready: Any) -> None:
    """Runs in a child: be interrupted in a put, and put something else."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ready.set()
    try:
        put_long(queue, "object")
    except KeyboardInterrupt:
        queue.put("interrupted")


@pytest.mark.parametrize("size", [3000, 100_000])
def test_exceptions_keep_no_view_of_a_buffer(small: LogQueue, size: int) -> None:
    """The traceback of a put() that has failed holds no view of a BytesIO, on which CPython's collector may crash."""
    fill(small)
    with pytest.raises(stdlib_queue.Full) as caught:
        small.put(b"x" * size, False)
    views = []
    for error in (caught.value, caught.value.__context__):
        for frame_of, _ in traceback.walk_tb(error.__traceback__ if error else None):
            views += [value for value in frame_of.f_locals.values() if isinstance(value, memoryview)]
    assert [view for view in views if not isinstance(view.obj, bytes)] == []


@pytest.mark.processes
def test_ctrl_c_in_the_middle_of_a_long_message(small: LogQueue) -> None:
    """Ctrl-C in the middle of a long message gives up that message; what follows arrives."""
    ready = FORK.Event()
    with child(put_interrupted, small, ready) as process:
        assert ready.wait(60)
        in_the_middle(small, process)
        os.kill(process.pid, signal.SIGINT)
        assert small.get(timeout=60) == "interrupted"
        ended(process, "it has put")
    assert small.reader.received.frames.incomplete() == []
    assert small.broken == 0


def test_threads_send_each_notice(small: LogQueue) -> None:
    """Threads that put at once after several messages were given up send the notices, and raise nothing."""
    for _ in range(20):
        with pytest.raises(stdlib_queue.Full):
            small.put(b"x" * 100_000, False)
        drain(small)
    threads = [Thread(put_all, small, list(range(50))) for _ in range(4)]
    assert sorted(small.get(timeout=60) for _ in range(200)) == sorted(list(range(50)) * 4)
    for thread in threads:
        thread.finish("it has put everything")
    assert small.reader.received.frames.incomplete() == []
    fresh = LogQueue(4096)
    for each in (small, fresh):
        each.put(1)
    assert small.pending() == fresh.pending(), "a notice is sent again"


@pytest.mark.parametrize("seconds", [0.0002, 0.001])
def test_put_in_a_signal_handler(small: LogQueue, seconds: float) -> None:
    """Putting in a signal handler while the same thread puts neither deadlocks nor loses, for long messages, too."""
    counts = {"main": 0, "handler": 0}

    def put(source: str) -> None:
        number = counts[source]
        counts[source] += 1
        small.put((source, number, b"x" * (10_000 if number % 3 == 0 else 10)))

    def handle(number: int, interrupted: object) -> None:
        if counts["handler"] < 200:
            put("handler")

    def collect() -> dict[str, list[int]]:
        got: dict[str, list[int]] = {"main": [], "handler": []}
        for source, number, _ in iter(lambda: small.get(timeout=60), None):
            got[source].append(number)
        return got

    reader = Thread(collect)
    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        deadline = time.monotonic() + 60
        while counts["handler"] < 200 or counts["main"] < 200:
            assert time.monotonic() < deadline, f"the signal handler has run only {counts['handler']} times"
            put("main")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    small.put(None)
    got = reader.finish("it has got everything")
    # A message of the handler may overtake the one it has interrupted, but each source keeps its order.
    assert sorted(got["main"]) == got["main"] == list(range(counts["main"]))
    assert sorted(got["handler"]) == list(range(counts["handler"]))


@pytest.mark.processes
def test_fork_while_threads_put(queue: LogQueue) -> None:
    """A fork in the middle of the puts of several threads can put, and harms no other process."""
    stop = threading.Event()

    def put(name: int) -> int:
        number = 0
        while not stop.is_set():
            queue.put((name, number, b"x" * (number % 3 * 5000)))
            number += 1
        return number

    def collect() -> dict[Any, list[int]]:
        got: dict[Any, list[int]] = {}
        for name, number, _ in iter(lambda: queue.get(timeout=60), None):
            got.setdefault(name, []).append(number)
        return got

    reader = Thread(collect)
    writers = [Thread(put, name) for name in range(3)]
    for number in range(30):
        pid = os.fork()
        if pid == 0:
            try:
                queue.put(("fork", number, b"y" * 10_000))
                queue.put(("fork", number, b"y"))
            finally:
                os._exit(0)
        deadline = time.monotonic() + 60
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            assert time.monotonic() < deadline, "a fork has not ended: its put() hangs"
            time.sleep(0.001)
    stop.set()
    counts = [writer.finish("it has put everything") for writer in writers]
    queue.put(None)
    got = reader.finish("it has got everything")
    assert [got[name] for name in range(3)] == [list(range(count)) for count in counts]
    assert got["fork"] == [number for number in range(30) for _ in range(2)]
    assert queue.broken == 0


def own(sender: Any) -> None:
    """Runs in a child: make a queue, and wait for the end."""
    made = LogQueue()
    sender.send(made)
    signal.pause()


def test_no_reader_left(stdlib_context: Any) -> None:
    """Once no process could read any more, put() says so: at once, while it waits, and in a first put."""
    receiver, sender = stdlib_context.Pipe(False)
    with child(own, sender, context=stdlib_context) as owner:
        assert receiver.poll(60), "waited for the queue of the child"
        orphan = receiver.recv()
        orphan.put("taken")
        waiting = Thread(put_long, orphan, "object")
        wait_until(orphan.full, "the put() has to wait")
        owner.kill()
        owner.join(30)
    with pytest.raises(mplog.NoReaderError, match="its logging process has ended"):
        waiting.finish("the waiting put() has noticed")
    for _ in range(2):
        with pytest.raises(mplog.NoReaderError):
            orphan.put(record())
    data = pickle.dumps(orphan)
    orphan.close()
    late = pickle.loads(data)
    with pytest.raises(mplog.NoReaderError):
        late.put(1)
    late.remove()
    with pytest.raises(mplog.NoReaderError, match="does not exist any more"):
        late.put(1)
    with pytest.raises(mplog.QueueNotFoundError):
        late.get_nowait()
    receiver.close()
    sender.close()
