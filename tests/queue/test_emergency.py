"""The emergency file: whole messages in order, even if a process dies that writes or reads it (faults 6, 9 and 27)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import Counter, wait_until
from readers import in_fork
from scripts import elapsed

from mplog.queue import emergency
from mplog.queue.emergency import EmergencyFile, EmergencyRefusedError
from mplog.queue.emergency_reader import EmergencyReader
from mplog.record import frame
from mplog.record.frame_reader import FrameReader

SIZE = 2**24


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the file is."""
    return str(tmp_path / "app.log.emergency")


def message(text: str) -> bytes:
    """Return the frames of a message."""
    payload = text.encode()
    whole = frame.frame(frame.RECORD, payload)
    return whole if whole is not None else b"".join(frame.frames(frame.RECORD, payload, os.urandom(16)))


def texts(data: bytes) -> list[str]:
    """Return the messages that are in whole frames."""
    reader: FrameReader[str] = FrameReader({frame.RECORD: bytes.decode})
    found = list(reader.feed(data, drained=True))
    assert (reader.broken, reader.incomplete()) == (0, [])
    return found


def rest(reader: EmergencyReader, limit: int = 2**20) -> list[str]:
    """Read and commit all that is there."""
    found = []
    while data := reader.read(limit):
        found += texts(data)
        reader.commit(len(data))
    return found


def test_messages_come_out_in_order_and_the_file_is_gone(path: str) -> None:
    """What was appended is read in that order, long messages whole, in pieces of about the size that is asked for."""
    sent = [f"{number} {'x' * (number % 7) * 2000}" for number in range(200)]
    for text in sent:
        assert EmergencyFile(path, SIZE).append(message(text))
    assert os.stat(path).st_mode & 0o777 == 0o600
    reader = EmergencyReader(path)
    pieces = []
    while data := reader.read(5000):
        pieces.append(texts(data))
        reader.commit(len(data))
    assert [text for piece in pieces for text in piece] == sent
    assert len(pieces) > 50
    assert os.listdir(os.path.dirname(path)) == []
    assert reader.read() == b""


def test_what_comes_while_it_is_read_is_read_next(path: str) -> None:
    """A process that appends meanwhile makes a new file, which the same reader takes when it is done with the first."""
    file, reader = EmergencyFile(path, SIZE), EmergencyReader(path)
    file.append(message("one"))
    first = reader.read()
    file.append(message("two"))
    assert texts(first) == ["one"]
    reader.commit(len(first))
    assert rest(reader) == ["two"]


@pytest.mark.parametrize("seed", range(5))
def test_a_reader_that_is_killed_anywhere_loses_and_doubles_nothing(path: str, seed: int) -> None:
    """With the note of the last commit, the next reader goes on after what is in the log, whatever the header says."""
    dice = random.Random(seed)
    sent = [f"{number} {'x' * dice.choice((1, 500, 9000))}" for number in range(100)]
    file = EmergencyFile(path, SIZE)
    for text in sent[:50]:
        file.append(message(text))
    log: list[str] = []
    note, waiting = b"", sent[50:]
    while True:
        reader = EmergencyReader(path, note)
        for _ in range(dice.randrange(4)):
            if waiting and dice.random() < 0.7:
                file.append(message(waiting.pop(0)))
            data = reader.read(dice.choice((100, 3000, 20_000)))
            if not data:
                break
            if dice.random() < 0.2:
                break  # killed before the commit of the log
            log += texts(data)
            note = reader.note(len(data))
            if dice.random() < 0.2:
                break  # killed after it
            reader.commit(len(data))
        else:
            data = b"more"
        reader.close()
        if not data and not waiting:
            break
    assert log == sent
    assert os.listdir(os.path.dirname(path)) == []


def test_a_note_holds_until_something_else_is_read(path: str) -> None:
    """A reader that has not opened the file hands on the note it was given, so the one after it doubles nothing."""
    for text in ("one", "two"):
        EmergencyFile(path, SIZE).append(message(text))
    killed = EmergencyReader(path)
    note = killed.note(len(killed.read(len(message("one")))))
    killed.close()
    reader = EmergencyReader(path, EmergencyReader(path, note).note())
    assert rest(reader) == ["two"]
    assert EmergencyReader(path, reader.note()).note() == reader.note()


def test_without_a_note_what_was_not_committed_comes_again(path: str) -> None:
    """The header alone tells how far an earlier reader has got."""
    for text in ("one", "two", "three"):
        EmergencyFile(path, SIZE).append(message(text))
    reader = EmergencyReader(path)
    data = reader.read(len(message("one")))
    assert texts(data) == ["one"]
    reader.commit(len(data))
    reader.read()
    reader.close()
    assert rest(EmergencyReader(path, b"another file's" + bytes(2))) == ["two", "three"]


def test_a_dead_descriptor_is_opened_anew(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error, the reader opens the file by its path and goes on where it was, even if that is noted nowhere."""
    for text in ("one", "two", "three"):
        EmergencyFile(path, SIZE).append(message(text))
    reader = EmergencyReader(path)
    data = reader.read(limit=1)
    with monkeypatch.context() as patch:
        for name in ("pread", "pwrite"):
            patch.setattr(os, name, lambda *_: os.read(-1, 1))
        with pytest.raises(OSError, match="Bad file descriptor"):
            reader.commit(len(data))
        with pytest.raises(OSError, match="Bad file descriptor"):
            reader.read()
    reader.reopen()
    assert rest(reader) == ["two", "three"]


def append_many(path: str, counter: Counter, name: str) -> None:
    """Runs in a child: append numbered messages until killed, and count those that are there."""
    number = 0
    while True:
        number += 1
        if not EmergencyFile(path, 2**30).append(message(f"{name} {number} {'x' * (number % 5) * 30_000}")):
            os._exit(1)
        counter.set(number)


@pytest.mark.processes
def test_writers_that_are_killed_leave_whole_messages(path: str, tmp_path: Path) -> None:
    """Of processes killed while they append at random, each finished message is there, in order, none is torn."""
    dice, counters = random.Random(3), dict[str, Counter]()
    for round_ in range(12):
        pids = []
        for number in range(2):
            name = f"w{round_}.{number}"
            counters[name] = Counter(tmp_path, name)
            pid = os.fork()
            if not pid:
                signal.alarm(60)
                append_many(path, counters[name], name)
            pids.append(pid)
        deadline = time.monotonic() + 20
        while any(counters[f"w{round_}.{number}"].value < 3 for number in range(2)):
            assert time.monotonic() < deadline, "nobody appends"
            time.sleep(dice.uniform(0, 0.005))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    seen: dict[str, list[int]] = {}
    for text in rest(EmergencyReader(path)):
        name, number, payload = text.split(" ")
        seen.setdefault(name, []).append(int(number))
        assert payload == "x" * (int(number) % 5) * 30_000
    for name, counter in counters.items():
        assert counter.value >= 3
        assert seen[name] in (list(range(1, counter.value + 1)), list(range(1, counter.value + 2)))


def test_a_message_that_was_cut_off_is_not_there(path: str) -> None:
    """What a process had begun to write when it died is cut off, by the next that appends or by the reader."""
    file = EmergencyFile(path, SIZE)
    for text in ("one", "two"):
        file.append(message(text))
        with open(path, "ab") as torn:
            torn.write(message("torn")[:-1])
    assert rest(EmergencyReader(path)) == ["one", "two"]


@pytest.mark.parametrize("length", [0, 1, 8, 20, 31])
def test_a_file_that_was_just_being_made_is_made_again(path: str, length: int) -> None:
    """A header that was cut off by the death of its writer is no obstacle."""
    file = EmergencyFile(path, SIZE)
    file.append(message("lost with its header"))
    os.truncate(path, length)
    if length >= 8:
        with open(path, "r+b") as header:
            header.write(bytes(8))  # the magic comes last
    file.append(message("one"))
    assert rest(EmergencyReader(path)) == ["one"]


# --- no room ---


def test_the_size_is_bounded(path: str) -> None:
    """What does not fit is refused, and what fits after it is not."""
    file = EmergencyFile(path, 1000)
    assert file.append(message("x" * 500))
    assert not file.append(message("y" * 500))
    assert file.append(message("z" * 100))
    assert os.stat(path).st_size <= 1000
    assert rest(EmergencyReader(path)) == ["x" * 500, "z" * 100]


def append_on_a_full_disk(path: str) -> None:
    """Runs in a child: append where a file grows no further than 1,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    file = EmergencyFile(path, SIZE)
    assert file.append(message("x" * 500))
    with pytest.raises(OSError, match="File too large"):
        file.append(message("y" * 2000))
    assert file.append(message("z" * 100))


@pytest.mark.processes
def test_a_full_disk_tears_nothing(path: str) -> None:
    """A write that fails in the middle is taken back, is an error, and the next finds the file as it was."""
    in_fork(append_on_a_full_disk, path)
    assert rest(EmergencyReader(path)) == ["x" * 500, "z" * 100]


@pytest.mark.parametrize("call", range(1, 6))
def test_any_write_may_fail(path: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write fails, what was there stays, and the next append goes on."""
    file = EmergencyFile(path, SIZE)
    if call > 2:
        file.append(message("before"))
    pwrite, calls = os.pwrite, iter(range(1, 100))

    def fail(fd: int, data: bytes, position: int) -> int:
        if next(calls) == max(1, call - 2):
            raise OSError(errno.EIO, "broken")
        return pwrite(fd, data[: max(1, len(data) // 2)], position)

    monkeypatch.setattr(os, "pwrite", fail)
    there = False
    with contextlib.suppress(OSError):
        there = file.append(message("failing"))
    monkeypatch.undo()
    assert file.append(message("after"))
    expected = [*["before"] * (call > 2), *["failing"] * there, "after"]
    assert rest(EmergencyReader(path)) == expected


# --- the lock ---


def test_a_holder_that_is_stopped_costs_a_bounded_time(path: str) -> None:
    """While another process holds the lock, a call waits for it as long as it may, and says that nothing was written;
    a reader comes back later, and calls after it do not wait."""
    file = EmergencyFile(path, SIZE)
    file.append(message("one"))
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    start = time.monotonic()
    assert not file.append(message("refused"))
    assert emergency.LOCK_TIMEOUT <= elapsed(start) < emergency.LOCK_TIMEOUT + 1
    reader = EmergencyReader(path)
    assert reader.read() == b""
    start = time.monotonic()
    assert file.append(message("two"))
    assert elapsed(start) < emergency.LOCK_TIMEOUT
    assert reader.read() == b""
    os.close(fd)
    assert rest(reader) == ["one", "two"]


def test_who_waits_for_the_lock_of_a_file_that_is_taken_writes_into_the_next(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that takes the file from under calls that wait for its lock loses nothing of them."""
    monkeypatch.setattr(emergency, "LOCK_TIMEOUT", 30.0)
    file = EmergencyFile(path, SIZE)
    file.append(message("one"))
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    threads = [threading.Thread(target=file.append, args=(message("two"),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: [each.path for each in psutil.Process().open_files()].count(path) == 3, "both wait")
    reader = EmergencyReader(path)
    assert reader.read() == b""
    os.close(fd)
    for thread in threads:
        thread.join(10)
    assert rest(reader) == ["one", "two", "two"]


@pytest.mark.processes
def test_a_fork_does_not_keep_the_lock(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that another thread has forked in the middle of an append does not hold up others while it lives."""
    write_all, children = emergency.write_all, []

    def fork_and_write(fd: int, data: bytes, position: int) -> None:
        if not children:
            children.append(os.fork())
            if not children[0]:
                signal.alarm(60)
                signal.pause()
        write_all(fd, data, position)

    monkeypatch.setattr(emergency, "write_all", fork_and_write)
    file = EmergencyFile(path, SIZE)
    assert file.append(message("one"))
    start = time.monotonic()
    assert file.append(message("two"))
    assert elapsed(start) < emergency.LOCK_TIMEOUT
    os.kill(children[0], signal.SIGKILL)
    os.waitpid(children[0], 0)
    assert rest(EmergencyReader(path)) == ["one", "two"]


def test_a_signal_handler_in_the_middle_of_an_append_appends_too(path: str) -> None:
    """Handlers that interrupt an append, again and again, and other threads lose no message and do not wait."""
    file, calls = EmergencyFile(path, SIZE), 0

    def append_in_handler(*_: object) -> None:
        nonlocal calls
        calls += 1
        assert file.append(message(f"handler {calls}")) is not False

    def append_some() -> None:
        for number in range(500):
            assert file.append(message(f"{threading.current_thread().name} {number}"))

    before = signal.signal(signal.SIGALRM, append_in_handler)
    start = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
        thread = threading.Thread(target=append_some, name="other")
        thread.start()
        append_some()
        thread.join(30)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert elapsed(start) < 20
    found = rest(EmergencyReader(path))
    for name, count in (("other", 500), ("MainThread", 500)):
        assert [text for text in found if text.startswith(name)] == [f"{name} {number}" for number in range(count)]
    assert sorted(found)[500 : 500 + calls] == sorted(f"handler {number}" for number in range(1, calls + 1))
    assert calls > 5


class HandlerError(Exception):
    """What a signal handler raises."""


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Has a signal handler call a function in the middle of the next write into an emergency file."""
    write_all, before = emergency.write_all, signal.getsignal(signal.SIGUSR1)

    def arm(function: Callable[[], object]) -> None:
        def write_and_signal(fd: int, data: bytes, position: int) -> None:
            monkeypatch.setattr(emergency, "write_all", write_all)
            write_all(fd, data[:3], position)
            signal.raise_signal(signal.SIGUSR1)
            write_all(fd, data, position)

        signal.signal(signal.SIGUSR1, lambda *_: function())
        monkeypatch.setattr(emergency, "write_all", write_and_signal)

    yield arm
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("sync", [False, True])
def test_what_a_handler_appends_is_settled_by_the_call_that_it_interrupts(
    path: str, interrupt: Any, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    """The handler learns later whether it is there, and then it is, on disk where that was asked for."""
    file, settled, synced = EmergencyFile(path, SIZE), list[bool](), list[int]()
    monkeypatch.setattr(os, "fsync", synced.append)
    assert file.append(message("zero"))
    interrupt(lambda: [file.append(message(text), sync=sync, later=settled.append) for text in ("two", "three")])
    assert file.append(message("one"))
    assert settled == [True, True]
    assert len(synced) == 4 * sync
    assert rest(EmergencyReader(path)) == ["zero", "one", "two", "three"]


def test_what_a_handler_appends_beyond_the_room_is_no_loss_unsaid(path: str, interrupt: Any) -> None:
    """Where there is room for the call alone, or for the handler's piece alone, each learns what became of its own."""
    short, long = message("short"), message("long" * 100)
    assert EmergencyFile(path, SIZE).append(short)
    file, settled = EmergencyFile(path, os.path.getsize(path) + len(short)), list[bool]()
    interrupt(lambda: [file.append(each, later=settled.append) for each in (long, short)])
    assert file.append(short)
    assert settled == [False, False]
    file = EmergencyFile(path, file.size + len(short))
    interrupt(lambda: [file.append(each, later=settled.append) for each in (long, short)])
    assert file.append(short)
    assert settled == [False] * 4
    assert rest(EmergencyReader(path)) == ["short"] * 3


def test_a_full_disk_is_told_to_both(path: str, interrupt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writing fails, the call raises, and what it has taken over is not there, which is told."""
    file, settled = EmergencyFile(path, SIZE), list[bool]()
    assert file.append(message("zero"))
    pwrite = os.pwrite

    def fill_up() -> None:
        assert file.append(message("two"), later=settled.append) is None

        def fail(fd: int, data: bytes, position: int) -> int:
            if len(data) > 8:
                raise OSError(errno.ENOSPC, "full")
            return pwrite(fd, data, position)

        monkeypatch.setattr(os, "pwrite", fail)

    interrupt(fill_up)
    with pytest.raises(OSError, match="full"):
        file.append(message("one"))
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert settled == [False]
    assert file.append(message("three"))
    assert rest(EmergencyReader(path)) == ["zero", "three"]


def test_a_handler_that_logs_and_raises_loses_nothing(path: str, interrupt: Any) -> None:
    """What it has logged before its exception is there; the call that it has interrupted is undone, and raises."""
    file, settled = EmergencyFile(path, SIZE), list[bool]()

    def log_and_raise() -> None:
        file.append(message("two"), later=settled.append)
        raise HandlerError

    interrupt(log_and_raise)
    with pytest.raises(HandlerError):
        file.append(message("one"))
    assert settled == [True]
    assert file.append(message("three"))
    assert rest(EmergencyReader(path)) == ["two", "three"]


def test_a_handler_that_appends_to_another_file_does(path: str, interrupt: Any) -> None:
    """Of two servers in one program, each has what is logged for it."""
    file, other = EmergencyFile(path, SIZE), EmergencyFile(path + "2", SIZE)
    interrupt(lambda: other.append(message("two")))
    assert file.append(message("one"))
    assert (rest(EmergencyReader(path)), rest(EmergencyReader(path + "2"))) == (["one"], ["two"])


@pytest.mark.processes
def test_a_child_that_a_handler_forks_appends_for_itself(path: str, interrupt: Any) -> None:
    """It does not leave it to the call that was interrupted, which is not its own; it waits until that is done."""
    file, pids = EmergencyFile(path, SIZE), list[int]()

    def fork() -> None:
        pids.append(os.fork())
        if not pids[-1]:
            signal.alarm(30)
            os._exit(0 if file.append(message("two")) else 1)

    interrupt(fork)
    assert file.append(message("one"))
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    assert rest(EmergencyReader(path)) == ["one", "two"]


# --- planted files ---


def plant(path: str, what: str) -> Callable[[], None]:
    """Put something in the place of the file; return what checks that it is unchanged."""
    target = Path(path).with_name("target")
    target.write_bytes(b"precious")
    if what == "symlink":
        os.symlink(target, path)
    elif what == "dangling":
        os.symlink(target.with_name("missing"), path)
    elif what == "hard link":
        os.link(target, path)
    elif what == "FIFO":
        os.mkfifo(path)
    elif what == "directory":
        os.mkdir(path)
    elif what == "device":
        os.symlink("/dev/full", path)
    elif what == "another's":
        Path(path).write_bytes(b"")
        os.chown(path, 65534, 65534)
    else:
        Path(path).write_bytes(b"another text, which is longer than a header" if what == "text" else b"text")

    def check() -> None:
        assert target.read_bytes() == b"precious"
        assert not target.with_name("missing").exists()

    return check


PLANTED = ["symlink", "dangling", "hard link", "FIFO", "directory", "device", "another's", "text", "short text"]


@pytest.mark.parametrize("where", ["", ".reading"])
@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_refused(path: str, what: str, where: str) -> None:
    """Links, FIFOs, devices, others' files and files of another kind are neither written nor read."""
    if what == "another's" and os.geteuid():
        pytest.skip("only root makes a file of another user")
    check = plant(path + where, what)
    if not where:
        with pytest.raises(OSError, match=r"not a regular|not an emergency|symbolic link|directory|device"):
            EmergencyFile(path, SIZE).append(message("one"))
    with pytest.raises(OSError, match=r"not a regular|not an emergency|symbolic link|directory|device"):
        EmergencyReader(path).read()
    check()
    if what in ("text", "short text"):
        assert b"text" in Path(path + where).read_bytes()
        with pytest.raises(EmergencyRefusedError):
            EmergencyReader(path).read()


def test_messages_are_measured_one_by_one(path: str) -> None:
    """The length of the next message is known without reading all of it; a long one is as long as its frames."""
    file, reader = EmergencyFile(path, SIZE), EmergencyReader(path)
    messages = [message("one"), message("x" * 3 * 2**20), message("three")]
    for each in messages:
        assert file.append(each)
    for each in messages:
        assert reader.is_open()
        assert reader.measure() == len(each)
        assert reader.peek(len(each)) == each
        reader.commit(len(each))
    assert not reader.is_open()
    assert not os.path.exists(path)
