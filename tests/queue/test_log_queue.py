"""LogQueue is a multiprocessing.Queue that nothing breaks (promises 2, 3 and 8; faults 19 and 22)."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import glob
import logging
import logging.handlers
import multiprocessing
import multiprocessing.queues
import os
import pickle
import queue as stdlib_queue
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from queue_use import Thread, child, drain, ended, fill, record

import mplog
from mplog import LogQueue
from mplog.queue import fifo, payloads
from mplog.queue.descriptor import what_is
from mplog.queue.directory import fifo_path, lock_path
from mplog.record.layout import Record

# --- the methods of a queue ---


def test_is_a_multiprocessing_queue(queue: LogQueue) -> None:
    """isinstance holds, and so do the names and the first arguments of the base class's methods."""
    assert isinstance(queue, multiprocessing.queues.Queue)
    other = LogQueue(maxsize=100, ctx=multiprocessing.get_context())
    for item in (1, "text", None, [1, {2: (3,)}], b"", ValueError):
        other.put(item, True, None)
        assert other.get(True, None) == item
    assert "LogQueue" in repr(other)


def test_every_attribute_of_the_class_can_be_looked_up() -> None:
    """Tools that look at a class, such as those for documentation and mocks, find each attribute of it."""
    assert {name for name in dir(LogQueue) if not hasattr(LogQueue, name)} <= {"__abstractmethods__"}
    assert LogQueue.reader is vars(LogQueue)["reader"]


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

    def ends() -> list[str]:
        links = [os.readlink(path) for path in glob.glob("/proc/self/fd/*") if os.path.lexists(path)]
        return [link for link in links if link in (queue.path, lock_path(queue.directory))]

    if sys.platform == "linux":
        assert len(ends()) == 3
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
    assert ends() == []


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
    descriptors = [int(name) for name in set(os.listdir("/dev/fd")) - before if what_is(int(name))]
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
