"""LogQueue is a multiprocessing.Queue that nothing breaks (promises 2, 3 and 8; faults 19 and 22)."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import logging.handlers
import multiprocessing
import multiprocessing.queues
import os
import pickle
import queue as stdlib_queue
import random
import select
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import wait_until

import mplog
from mplog import LogQueue
from mplog.queue import fifo, payloads
from mplog.queue.directory import fifo_path, lock_path
from mplog.queue.locks import try_lock_process
from mplog.queue.payloads import MAX_OBJECT_SIZE
from mplog.record import frame
from mplog.record.encoding import encode
from mplog.record.layout import MAX_RECORD_SIZE, Record

FORK = multiprocessing.get_context("fork")
PIPE_BUF = select.PIPE_BUF


@pytest.fixture
def queue() -> Iterator[LogQueue]:
    """A queue of the usual size."""
    queue = LogQueue()
    yield queue
    queue.close()
    queue.remove()


@pytest.fixture
def small() -> Iterator[LogQueue]:
    """A queue with room for a frame or a few."""
    queue = LogQueue(4096)
    yield queue
    queue.close()
    queue.remove()


def record(message: str = "hello", *args: object) -> logging.LogRecord:
    """Return a record."""
    return logging.LogRecord("a.b", logging.INFO, "/dir/file.py", 7, message, args, None, "function")


def fill(queue: LogQueue) -> int:
    """Put numbers until the queue is full; return how many."""
    count = 0
    with contextlib.suppress(stdlib_queue.Full):
        while True:
            queue.put_nowait(count)
            count += 1
    return count


def drain(queue: LogQueue) -> list[Any]:
    """Return all that is in the queue."""
    items = []
    with contextlib.suppress(stdlib_queue.Empty):
        while True:
            items.append(queue.get_nowait())
    return items


class Thread(threading.Thread):
    """A thread whose exceptions and result come out of `finish`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._call = function, args
        self._outcome: list[Any] = []
        self.start()

    def run(self) -> None:
        function, args = self._call
        try:
            self._outcome = [None, function(*args)]
        except BaseException as error:
            self._outcome = [error, None]

    def finish(self, what: str, timeout: float = 60) -> Any:
        """Wait for the thread, and return what its function returned."""
        self.join(timeout)
        assert not self.is_alive(), f"waited {timeout} seconds until {what}"
        error, result = self._outcome
        if error is not None:
            raise error
        return result


@contextlib.contextmanager
def child(target: Callable[..., Any], *args: Any, context: Any = FORK) -> Iterator[Any]:
    """Run a function in a process that does not outlive the test."""
    process = context.Process(target=target, args=args)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(30)


def ended(process: Any, what: str) -> None:
    """Wait until a process has ended well."""
    process.join(60)
    assert process.exitcode == 0, f"{what}: {process.exitcode}"


# --- the methods of a queue ---


def test_is_a_multiprocessing_queue(queue: LogQueue) -> None:
    """isinstance holds, and so do the names and the first arguments of the base class's methods."""
    assert isinstance(queue, multiprocessing.queues.Queue)
    other = LogQueue(maxsize=100, ctx=multiprocessing.get_context())
    for item in (1, "text", None, [1, {2: (3,)}], b"", ValueError):
        other.put(item, True, None)
        assert other.get(True, None) == item
    assert "LogQueue" in repr(other)


def test_objects_come_out_in_order(queue: LogQueue) -> None:
    """What is put comes out once and in order, and then there is nothing."""
    for number in range(100):
        queue.put(number) if number % 2 else queue.put_nowait(number)
    assert [queue.get() for _ in range(50)] + [queue.get_nowait() for _ in range(50)] == list(range(100))
    assert queue.empty()
    with pytest.raises(stdlib_queue.Empty):
        queue.get_nowait()


def test_none_travels(queue: LogQueue) -> None:
    """None is an object like any other: consumers take it as their end."""
    queue.put(None)
    assert queue.get() is None


@pytest.mark.parametrize(
    ("arguments", "least"),
    [((False,), 0), ((False, 5), 0), ((True, 0), 0), ((True, 0.0), 0), ((True, -1), 0), ((True, 0.05), 0.05)],
)
def test_timeouts(small: LogQueue, arguments: tuple[Any, ...], least: float) -> None:
    """get() of an empty queue and put() into a full one take as long as their timeout says, and no longer."""
    start = time.monotonic()
    with pytest.raises(stdlib_queue.Empty):
        small.get(*arguments)
    middle = time.monotonic()
    fill(small)
    begin = time.monotonic()
    with pytest.raises(stdlib_queue.Full):
        small.put("x" * 2000, *arguments)
    end = time.monotonic()
    for elapsed in (middle - start, end - begin):
        assert least <= elapsed < 3


@pytest.mark.parametrize("timeout", [1e9, 2.0**40, float("inf")])
def test_timeouts_longer_than_poll_takes(small: LogQueue, timeout: float) -> None:
    """A timeout of years is as good as any other."""
    fill(small)
    put = Thread(small.put, "late", True, timeout)
    items = drain(small)
    put.finish("put() goes on")
    get = Thread(small.get, True, timeout)
    assert items.count("late") or get.finish("get() goes on") == "late"
    if items.count("late"):
        small.put("end")
        assert get.finish("get() goes on") == "end"


def test_full_queue_takes_again_once_read(small: LogQueue) -> None:
    """A full queue says so, makes put() wait, and lets it go on when a process reads."""
    assert not small.full()
    count = fill(small)
    assert count > 0
    assert small.full()
    waiting = Thread(small.put, "late")
    assert [small.get() for _ in range(count)] == list(range(count))
    waiting.finish("put() has found room")
    assert small.get() == "late"
    assert not small.full()
    assert small.empty()


def test_waiting_get_gets_what_comes(queue: LogQueue) -> None:
    """get() waits for what comes later."""
    waiting = [Thread(queue.get), Thread(queue.get, True, 60)]
    for number in range(2):
        queue.put(number)
    assert sorted(thread.finish("get() has got something") for thread in waiting) == [0, 1]


def test_qsize_counts_objects(queue: LogQueue) -> None:
    """qsize() is the number of objects, long or short."""
    for number, item in enumerate([1, record(), "x" * 10_000, record("y" * 10_000)]):
        assert queue.qsize() == number
        queue.put(item)
    for number in (4, 3, 2, 1):
        assert queue.qsize() == number
        assert not queue.empty()
        queue.get()
    assert (queue.qsize(), queue.empty()) == (0, True)


def test_closed_queue_refuses(queue: LogQueue) -> None:
    """A closed queue takes and gives nothing, and may be closed again; nothing keeps its descriptors open."""
    gc.collect()  # what other tests have left
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None
    with pytest.raises(ValueError, match="not closed"):
        queue.join_thread()
    queue.put("left")
    queue.cancel_join_thread()
    queue.close()
    queue.close()
    queue.join_thread()
    queue.cancel_join_thread()
    for call in (lambda: queue.put(1), lambda: queue.put(record()), queue.get, queue.get_nowait):
        with pytest.raises(ValueError, match="is closed"):
            call()
    for look in (queue.empty, queue.full, queue.qsize):
        with pytest.raises(OSError, match="is closed"):
            look()
    if before is not None:
        assert len(before - set(os.listdir("/proc/self/fd"))) == 3


def test_what_does_not_pickle_raises_in_put(queue: LogQueue) -> None:
    """put() raises what pickle raises, and the queue goes on."""
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        queue.put(threading.Lock())
    queue.put(1)
    assert queue.get() == 1
    assert queue.empty()


class Unpicklable:
    """Raises where it is unpickled."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return fail, (self.error,)


def fail(error: type[BaseException]) -> None:
    """Raise the error."""
    raise error("while unpickling")


@pytest.mark.parametrize("error", [ValueError, AttributeError, KeyError, KeyboardInterrupt, OSError, RuntimeError])
@pytest.mark.parametrize("size", [0, 10_000])
def test_what_does_not_unpickle_raises_in_get(queue: LogQueue, error: type[BaseException], size: int) -> None:
    """get() raises what the object raises, once; the next get() goes on with the next object."""
    queue.put((b"x" * size, Unpicklable(error)))
    queue.put("next")
    with pytest.raises(error, match="while unpickling"):
        queue.get()
    assert queue.get() == "next"
    assert queue.empty()
    assert queue.broken == 0


the_queue: list[LogQueue] = []


def get_another() -> Any:
    """Return what is next in the queue."""
    return the_queue[0].get_nowait()


class Gets:
    """Takes the next object of the queue where it is unpickled."""

    def __reduce__(self) -> Any:
        return get_another, ()


def test_unpickling_may_use_the_queue(queue: LogQueue) -> None:
    """No lock is held while an object is unpickled."""
    the_queue[:] = [queue]
    try:
        queue.put(Gets())
        queue.put("inner")
        assert Thread(queue.get).finish("get() has got something") == "inner"
    finally:
        the_queue.clear()


def test_too_long_object_is_refused(queue: LogQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object over the limit raises in put(), says how long it is, and the queue goes on."""
    monkeypatch.setattr(payloads, "MAX_OBJECT_SIZE", 1000)
    with pytest.raises(mplog.MessageTooLongError, match="Put it into a file") as caught:
        queue.put(b"x" * 1001)
    assert caught.value.length > 1001
    queue.put("next")
    assert queue.get() == "next"


def test_threads_put_and_get_at_once(small: LogQueue) -> None:
    """Several threads of one process put and get at once; nothing is lost, doubled or out of order."""

    def put(writer: int) -> None:
        for number in range(200):
            small.put((writer, number, "x" * (6000 if number % 10 == 0 else number)))

    def get() -> list[Any]:
        return [item[:2] for item in iter(small.get, None)]

    writers = [Thread(put, number) for number in range(4)]
    readers = [Thread(get) for _ in range(3)]
    for writer in writers:
        writer.finish("it has put everything")
    for _ in readers:
        small.put(None)
    got = [reader.finish("it has got its end") for reader in readers]
    assert sorted(item for items in got for item in items) == [
        (writer, number) for writer in range(4) for number in range(200)
    ]
    for items in got:
        for writer in range(4):
            numbers = [number for by, number in items if by == writer]
            assert numbers == sorted(numbers)


# --- records ---


def test_record_travels_as_data(queue: LogQueue) -> None:
    """A record arrives as a record, whatever its arguments are, and its pickle is never asked for."""

    class Unsendable(logging.LogRecord):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise AssertionError("a record is not pickled")

    queue.put(Unsendable("a", 20, "p", 1, "lock %s", (threading.Lock(),), None))
    arrived = queue.get()
    assert type(arrived) is Record
    assert arrived.getMessage().startswith("lock <unlocked")


def test_stdlib_handler_and_listener_work_unchanged(stdlib_context: Any, queue: LogQueue) -> None:
    """stdlib's QueueHandler in several processes and QueueListener here take the queue as it is."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            collected.append((record.process, record.getMessage()))

    collected: list[tuple[int | None, str]] = []
    listener = logging.handlers.QueueListener(queue, Collector())
    listener.start()
    processes = [stdlib_context.Process(target=log_by_stdlib, args=(queue, 50)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        ended(process, "it has logged")
    listener.stop()
    for process in processes:
        assert [text for pid, text in collected if pid == process.pid] == [f"number {n}" for n in range(50)]
    assert len(collected) == 150


def log_by_stdlib(queue: LogQueue, count: int) -> None:
    """Runs in a child: log through the stdlib's QueueHandler."""
    logger = logging.getLogger("by-stdlib")
    logger.handlers = [logging.handlers.QueueHandler(queue)]
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    for number in range(count):
        logger.info("number %d", number)


# --- into other processes ---


def echo(queue: LogQueue, answers: LogQueue) -> None:
    """Runs in a child: send back what comes, with our pid."""
    for item in iter(queue.get, "end"):
        answers.put((os.getpid(), item))
    answers.put(record("by %d", os.getpid()))


def test_travels_as_an_argument(context: Any, queue: LogQueue) -> None:
    """A queue goes to a child of either library and any start method, which puts and gets."""
    answers = LogQueue()
    with child(echo, queue, answers, context=context) as process:
        for item in (1, "x" * 20_000, None):
            queue.put(item)
            assert answers.get(timeout=60) == (process.pid, item)
        queue.put("end")
        assert answers.get(timeout=60).getMessage() == f"by {process.pid}"
        ended(process, "it has answered")


def echo_what_comes(receiver: Any) -> None:
    """Runs in a child: receive two queues and use them."""
    echo(*receiver.recv())


def test_travels_at_any_time(context: Any, queue: LogQueue) -> None:
    """A queue pickles into a process that runs already, of either library."""
    answers = LogQueue()
    receiver, sender = context.Pipe(False)
    with child(echo_what_comes, receiver, context=context) as process:
        sender.send((queue, answers))
        queue.put("hello")
        assert answers.get(timeout=60) == (process.pid, "hello")
        queue.put("end")
        answers.get(timeout=60)
        ended(process, "it has answered")
    receiver.close()
    sender.close()


@pytest.mark.processes
def test_travels_through_another_queue(queue: LogQueue) -> None:
    """A queue may be put into a queue."""
    answers = LogQueue()
    with child(lambda: queue.get().put("here")):
        queue.put(answers)
        assert answers.get(timeout=60) == "here"


SUBPROCESS = """
import pickle, sys
queue, answers = pickle.load(sys.stdin.buffer)
answers.put((queue.get(timeout=60), "x" * 10_000))
"""


@pytest.mark.processes
def test_travels_into_a_plain_subprocess(queue: LogQueue) -> None:
    """A queue pickles into a Python that was started by other means."""
    answers = LogQueue()
    queue.put("question")
    data = pickle.dumps((queue, answers))
    subprocess.run([sys.executable, "-c", SUBPROCESS], input=data, check=True, timeout=60)
    assert answers.get(timeout=60) == ("question", "x" * 10_000)


@pytest.mark.processes
def test_is_one_object_in_a_process(queue: LogQueue) -> None:
    """However often a queue arrives in a process, it is one object there, until that is closed."""
    assert pickle.loads(pickle.dumps(queue)) is queue
    assert LogQueue.open(queue.directory) is queue
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    copies = [pickle.loads(pickle.dumps(queue)) for _ in range(100)]
    copies[-1].put(1)
    assert queue.get() == 1
    assert sys.platform != "linux" or len(os.listdir("/proc/self/fd")) == before
    with child(use_after_close, queue) as process:
        assert queue.get(timeout=60) == "after"
        ended(process, "it has put")
    assert not queue.sender.is_closed


def use_after_close(queue: LogQueue) -> None:
    """Runs in a child: close the queue, and get it again."""
    data = pickle.dumps(queue)
    queue.close()
    again = pickle.loads(data)
    assert again is not queue
    again.put("after")


def test_open_needs_a_reader(tmp_path: Path) -> None:
    """open() of what is no queue, or one without a reader, raises QueueNotFoundError."""
    with pytest.raises(mplog.QueueNotFoundError, match="no log queue"):
        LogQueue.open(str(tmp_path))
    fifo.create(fifo_path(str(tmp_path)))
    with pytest.raises(mplog.QueueNotFoundError, match="no log queue"):
        LogQueue.open(str(tmp_path))


# --- sizes ---


def put_all(queue: LogQueue, items: list[Any]) -> None:
    """Put them."""
    for item in items:
        queue.put(item)


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
    assert small.reader.inbox.frames.incomplete() == []


@pytest.mark.processes
def test_stopped_writer_is_waited_for(small: LogQueue) -> None:
    """A writer that is stopped in the middle of a long message is not dead: the message arrives when it goes on."""
    with child(put_long, small, "object") as process:
        in_the_middle(small, process)
        os.kill(process.pid, signal.SIGSTOP)
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
        assert len(small.reader.inbox.frames.incomplete()) == 1
        small.put("next")
        assert small.get() == "next"
        assert small.reader.inbox.frames.incomplete() == []
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
    assert small.reader.inbox.frames.incomplete() == []
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
    assert small.reader.inbox.frames.incomplete() == []
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
    wait_until(lambda: queue.reader.inbox.is_reading, "the thread waits")
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
            wait_until(lambda: queue.reader.inbox.is_reading, "the main thread waits")
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
    wait_until(lambda: queue.reader.inbox.is_reading, "the thread waits")
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


# --- the directory ---


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_only_the_user_gets_at_the_queue(umask: int) -> None:
    """The directory has mode 0700 and the FIFO 0600, whatever the umask is."""
    before = os.umask(umask)
    try:
        queue = LogQueue()
    finally:
        os.umask(before)
    directory, path = os.stat(queue.directory), os.lstat(queue.path)
    assert stat.S_IMODE(directory.st_mode) == 0o700
    assert stat.S_ISFIFO(path.st_mode)
    assert stat.S_IMODE(path.st_mode) == 0o600
    assert directory.st_uid == path.st_uid == os.getuid()
    for name in os.listdir(queue.directory):
        assert stat.S_IMODE(os.lstat(os.path.join(queue.directory, name)).st_mode) == 0o600


def test_collected_queue_removes_its_directory() -> None:
    """When the owner's object is collected, the directory and the descriptors go."""
    gc.collect()
    before = set(os.listdir("/dev/fd"))
    queue = LogQueue()
    directory = queue.directory
    queue.put(1)
    assert queue.get(timeout=60) == 1
    descriptors = [int(name) for name in set(os.listdir("/dev/fd")) - before if fifo.is_open(int(name))]
    assert len(descriptors) == 3, "the two ends, and the file to lock"
    assert {queue.reader.read_fd, queue.sender.write_fd} < set(descriptors)
    del queue
    gc.collect()
    assert not os.path.exists(directory)
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def make_and_end(sender: Any, how: str) -> None:
    """Runs in a child: make a queue, keep it, and end."""
    made = LogQueue()
    the_queue.append(made)
    made.put(1)
    sender.send(made.directory)
    if how == "exit":
        sys.exit(0)


@pytest.mark.parametrize("how", ["return", "exit"])
def test_owner_that_is_a_child_removes_its_directory(context: Any, how: str) -> None:
    """A queue that a child of either library has made is removed when the child ends."""
    receiver, sender = context.Pipe(False)
    with child(make_and_end, sender, how, context=context) as process:
        assert receiver.poll(60), "waited for the queue of the child"
        directory = receiver.recv()
        ended(process, "it has made a queue")
    assert not os.path.exists(directory)
    receiver.close()
    sender.close()


@pytest.mark.processes
def test_fork_of_the_owner_leaves_the_directory(library: Any, queue: LogQueue) -> None:
    """A child of the owner, and a plain fork, end without removing what they have inherited."""
    with child(lambda: queue.put(1), context=library.get_context("fork")) as process:
        ended(process, "it has put")
    pid = os.fork()
    if pid == 0:
        try:
            globals()["queue"] = None
            del queue
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert queue.get(timeout=60) == 1
    assert os.path.exists(queue.path)


MAIN = """
import multiprocessing, sys, time
from mplog import LogQueue

def late(queue, started):
    started.set()
    time.sleep(0.3)  # longer than the parent takes to its end
    queue.put("late")
    print(queue.get(timeout=30))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    queue = LogQueue()
    print(queue.directory, flush=True)
    started = context.Event()
    context.Process(target=late, args=(queue, started)).start()
    started.wait(30)
"""


def test_owner_that_ends_waits_for_its_children(start_method: str, tmp_path: Path) -> None:
    """The directory stays until the children that the program waits for at its end have ended, and then it goes."""
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    done = subprocess.run(
        [sys.executable, script, start_method], capture_output=True, text=True, check=True, timeout=60
    )
    directory, got = done.stdout.split()
    assert (got, done.stderr) == ("late", "")
    assert not os.path.exists(directory)


def test_failed_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that cannot be made raises, and leaves neither a directory nor a complaint of its own."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError("refused")

    for where, name in ((fifo, "create"), (fifo, "open_lock"), (fifo, "open_reader"), (tempfile, "mkdtemp")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, refuse)
            with pytest.raises(OSError, match="refused"):
                LogQueue()
        gc.collect()
    assert [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("mplog-")] == []


def test_platform_without_fifos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no FIFOs, the error says what to use instead."""
    monkeypatch.delattr(os, "mkfifo")
    with pytest.raises(mplog.MplogError, match=r"queue=multiprocessing\.Queue"):
        LogQueue()
    gc.collect()


def test_size_is_what_the_kernel_grants() -> None:
    """The room is what was asked for, rounded up, as far as the kernel grants it."""
    small, large = LogQueue(4096), LogQueue()
    long = b"x" * 3000
    rooms = []
    for queue in (small, large):
        count = 0
        with contextlib.suppress(stdlib_queue.Full):
            while True:
                queue.put_nowait(long)
                count += 1
        rooms.append(count)
    assert rooms[0] < rooms[1]
    if sys.platform == "linux":
        assert fcntl.fcntl(small.sender.write_fd, 1032) == small._maxsize == 4096
        assert fcntl.fcntl(large.sender.write_fd, 1032) == large._maxsize
