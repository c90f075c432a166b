"""The emergency file: whole messages in order, even if a process dies that writes or reads it.

Faults 6, 9, 27 and 41.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import random
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from oracle import Counter
from readers import in_fork
from scripts import elapsed

from mplog.queue import emergency
from mplog.queue.emergency import EmergencyFile
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
    while (data := reader.read(limit)) or reader.take():
        found += texts(data)
        reader.commit()
    return found


def test_messages_come_out_in_order_and_the_file_is_gone(path: str) -> None:
    """What was appended is read in that order, long messages whole, in pieces of about the size that is asked for."""
    sent = [f"{number} {'x' * (number % 7) * 2000}" for number in range(200)]
    for text in sent:
        assert EmergencyFile(path, SIZE).append(message(text))
    assert os.stat(path).st_mode & 0o777 == 0o600
    reader = EmergencyReader(path)
    pieces = []
    assert reader.take()
    while data := reader.read(5000):
        pieces.append(texts(data))
        reader.commit()
    assert [text for piece in pieces for text in piece] == sent
    assert len(pieces) > 50
    assert os.listdir(os.path.dirname(path)) == []
    assert reader.read() == b""
    assert not reader.take()


def test_what_comes_while_it_is_read_is_read_next(path: str) -> None:
    """A process that appends meanwhile makes a new file, which the same reader takes when it is done with the first."""
    file, reader = EmergencyFile(path, SIZE), EmergencyReader(path)
    file.append(message("one"))
    assert reader.take()
    first = reader.read()
    file.append(message("two"))
    assert texts(first) == ["one"]
    reader.commit()
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
            size = dice.choice((100, 3000, 20_000))
            data = reader.read(size) or (reader.take() and reader.read(size))
            if not data:
                break
            if dice.random() < 0.2:
                break  # killed before the commit of the log
            log += texts(data)
            note = reader.note(is_read=True)
            if dice.random() < 0.2:
                break  # killed after it
            reader.commit()
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
    assert killed.take()
    killed.read(1)
    note = killed.note(is_read=True)
    killed.close()
    reader = EmergencyReader(path, EmergencyReader(path, note).note())
    assert rest(reader) == ["two"]
    assert EmergencyReader(path, reader.note()).note() == reader.note()


def test_without_a_note_what_was_not_committed_comes_again(path: str) -> None:
    """The header alone tells how far an earlier reader has got."""
    for text in ("one", "two", "three"):
        EmergencyFile(path, SIZE).append(message(text))
    reader = EmergencyReader(path)
    assert reader.take()
    assert texts(reader.read(1)) == ["one"]
    reader.commit()
    reader.read()
    reader.close()
    assert rest(EmergencyReader(path, b"another file's" + bytes(2))) == ["two", "three"]


def test_a_dead_descriptor_is_opened_anew(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error, the reader opens the file by its path and goes on where it was, even if that is noted nowhere."""
    for text in ("one", "two", "three"):
        EmergencyFile(path, SIZE).append(message(text))
    reader = EmergencyReader(path)
    assert reader.take()
    assert texts(reader.read(limit=1)) == ["one"]
    with monkeypatch.context() as patch:
        for name in ("pread", "write"):
            patch.setattr(os, name, lambda *_: os.read(-1, 1))
        with pytest.raises(OSError, match="Bad file descriptor"):
            reader.commit()
        with pytest.raises(OSError, match="Bad file descriptor"):
            reader.read()
    reader.reopen()
    assert rest(reader) == ["two", "three"]
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.parametrize("has_other", [False, True])
def test_a_file_is_waited_for_whose_file_system_is_not_mounted(path: str, has_other: bool) -> None:
    """A taken file that is not in its place after an error, or another one that is, leaves it to be read later."""
    EmergencyFile(path, SIZE).append(message("one"))
    with open(path, "ab") as torn:
        torn.write(b"torn")
    EmergencyFile(path, SIZE).append(message("two"))
    reader = EmergencyReader(path)
    assert reader.take()
    assert texts(reader.read()) == ["one"]
    reader.commit()
    assert texts(reader.read()) == ["two"]
    reader.reopen()
    taken, elsewhere = path + emergency.TAKEN[0], path + ".elsewhere"
    os.rename(taken, elsewhere)
    if has_other:
        EmergencyFile(taken, SIZE).append(message("other"))
    assert reader.read() == b""
    assert reader.files == 1
    os.rename(elsewhere, taken)
    assert rest(reader) == ["two"]
    assert os.listdir(os.path.dirname(path)) == []


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


@pytest.mark.parametrize("length", [8, 20, emergency.HEAD_SIZE, emergency.HEAD_SIZE + 1, -1])
def test_a_message_that_was_cut_off_is_not_there(path: str, length: int) -> None:
    """What a process had written of a message when it was killed is skipped, whatever comes before and after it."""
    file = EmergencyFile(path, SIZE)
    for text in ("one", "two"):
        with open(path, "ab") as torn:
            torn.write(emergency.piece(emergency.MESSAGE, message("torn"))[:length])
        file.append(message(text))
        file.append(message(text))
    assert rest(EmergencyReader(path)) == ["one", "one", "two", "two"]


def test_zeros_that_a_power_loss_has_left_are_skipped(path: str) -> None:
    """Blocks that were never written to the disk are no messages, and no obstacle."""
    Path(path).write_bytes(bytes(5000))
    assert EmergencyFile(path, SIZE).append(message("one"))
    os.truncate(path, os.path.getsize(path) + 5000)
    assert EmergencyFile(path, SIZE).append(message("two"))
    assert rest(EmergencyReader(path)) == ["one", "two"]


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
    with pytest.raises(OSError, match="No space left"):
        file.append(message("y" * 2000))
    assert file.append(message("z" * 100))


@pytest.mark.processes
def test_a_full_disk_tears_nothing(path: str) -> None:
    """A write that fails in the middle is taken back, is an error, and the next finds the file as it was."""
    in_fork(append_on_a_full_disk, path)
    assert rest(EmergencyReader(path)) == ["x" * 500, "z" * 100]


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("written", [None, 0, 1, 20, 40])
def test_any_write_may_fail(path: str, before: int, written: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails, or writes less, is an error; what was there stays, and the next append goes on."""
    file = EmergencyFile(path, SIZE)
    for _ in range(before):
        file.append(message("before"))
    write = os.write

    def fail(fd: int, data: bytes) -> int:
        if written is None:
            raise OSError(errno.EIO, "broken")
        return write(fd, data[:written])

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match=r"broken|No space"):
        file.append(message("failing"))
    monkeypatch.undo()
    assert not file.has_appended
    assert file.append(message("after"))
    assert rest(EmergencyReader(path)) == [*["before"] * before, "after"]


def test_the_size_is_that_of_all_files_together(path: str) -> None:
    """What the reader has taken and not read counts, so that the disk holds no more than was allowed."""
    file = EmergencyFile(path, 1000)
    assert file.append(message("x" * 500))
    reader = EmergencyReader(path)
    assert reader.take()
    assert reader.read()
    assert not file.append(message("y" * 500))
    assert file.append(message("z" * 100))
    reader.commit()
    assert rest(reader) == ["z" * 100]
    assert file.append(message("y" * 500))


# --- workers that are stopped while they write ---


@contextlib.contextmanager
def stopped_while_it_appends(path: str, text: str) -> Iterator[Callable[[], None]]:
    """A child that stands still before its write, with all locks that it takes; yields what lets it go on, and end."""
    (reading, ready), (waiting, go) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        write = os.write

        def write_later(fd: int, data: bytes) -> int:
            write(ready, b"x")
            os.read(waiting, 1)
            return write(fd, data)

        os.write = write_later
        EmergencyFile(path, SIZE).append(message(text))
        os._exit(0)
    assert os.read(reading, 1)
    is_over = False

    def go_on() -> None:
        nonlocal is_over
        os.write(go, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        is_over = True

    try:
        yield go_on
    finally:
        if not is_over:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in (reading, ready, waiting, go):
            os.close(fd)


@pytest.mark.processes
def test_a_worker_that_is_stopped_holds_up_nobody(path: str) -> None:
    """Others append and the reader reads, without a wait; what the stopped one was about to write comes in the end."""
    file = EmergencyFile(path, SIZE)
    file.append(message("one"))
    with stopped_while_it_appends(path, "late") as go_on:
        start = time.monotonic()
        for number in range(100):
            assert file.append(message(f"{number}"))
        reader = EmergencyReader(path)
        assert rest(reader) == ["one", *map(str, range(100))]
        assert file.append(message("two"))
        assert rest(reader) == ["two"]
        assert elapsed(start) < emergency.LOCK_TIMEOUT
        go_on()
        assert rest(reader) == ["late"]
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.processes
def test_as_many_stopped_workers_as_there_may_be(path: str) -> None:
    """Each keeps one file; once there are as many as may be, what others append waits, and the size is bounded."""
    file, reader = EmergencyFile(path, SIZE), EmergencyReader(path)
    count = len(emergency.TAKEN)
    with contextlib.ExitStack() as stack:
        stopped = []
        for number in range(count + 1):
            stopped.append(stack.enter_context(stopped_while_it_appends(path, f"late {number}")))
            assert file.append(message(f"{number}"))
            assert rest(reader) == ([f"{number}"] if number < count else [])
        assert len(os.listdir(os.path.dirname(path))) == count + 1
        bounded = EmergencyFile(path, sum(each.stat().st_size for each in Path(path).parent.iterdir()))
        assert not bounded.append(message("no room"))
        for go_on in stopped:
            go_on()
        assert sorted(rest(reader)) == sorted([f"{count}", *(f"late {number}" for number in range(count + 1))])
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.processes
@pytest.mark.parametrize("is_killed", [False, True])
def test_the_next_reader_waits_for_a_stopped_worker_too(path: str, is_killed: bool) -> None:
    """A reader that is closed or killed while a worker stands still leaves what that worker writes to the next one."""
    with stopped_while_it_appends(path, "late") as go_on:
        for text in ("one", "two"):
            assert EmergencyFile(path, SIZE).append(message(text))
        reader = EmergencyReader(path)
        assert reader.take()
        assert texts(reader.read(1)) == ["one"]
        note = reader.note(is_read=True)
        if not is_killed:
            reader.commit()
        reader.close()
        reader = EmergencyReader(path, note if is_killed else b"")
        assert rest(reader) == ["two"]
        go_on()
        assert rest(EmergencyReader(path)) == ["late"]


def test_a_lock_of_another_program_costs_a_bounded_time(path: str) -> None:
    """While another program holds the file alone, a call tries for as long as it may, and says that nothing was
    written."""
    file = EmergencyFile(path, SIZE)
    file.append(message("one"))
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    start = time.monotonic()
    with pytest.raises(BlockingIOError, match="another program has it locked"):
        file.append(message("refused"))
    assert emergency.LOCK_TIMEOUT <= elapsed(start) < emergency.LOCK_TIMEOUT + 5
    os.close(fd)
    assert file.append(message("two"))
    assert rest(EmergencyReader(path)) == ["one", "two"]


def test_what_is_appended_after_a_file_is_taken_goes_into_the_next(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that takes the file between the open and the lock of a call loses nothing of it."""
    reader, taken = EmergencyReader(path), list[str]()
    try_lock = emergency.try_lock_file

    def take_and_lock(fd: int, **kwargs: bool) -> bool:
        if not taken:
            taken.extend(["", *rest(reader)])
        return try_lock(fd, **kwargs)

    file = EmergencyFile(path, SIZE)
    file.append(message("one"))
    monkeypatch.setattr(emergency, "try_lock_file", take_and_lock)
    assert file.append(message("two"))
    assert taken == ["", "one"]
    assert rest(reader) == ["two"]


@pytest.mark.processes
def test_a_fork_does_not_keep_the_lock(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that another thread has forked in the middle of an append does not hold up the reader while it lives."""
    write, children = os.write, list[int]()

    def fork_and_write(fd: int, data: bytes) -> int:
        if not children:
            children.append(os.fork())
            if not children[0]:
                signal.alarm(60)
                signal.pause()
        return write(fd, data)

    monkeypatch.setattr(os, "write", fork_and_write)
    file = EmergencyFile(path, SIZE)
    assert file.append(message("one"))
    monkeypatch.undo()
    assert rest(EmergencyReader(path)) == ["one"]
    os.kill(children[0], signal.SIGKILL)
    os.waitpid(children[0], 0)
    assert os.listdir(os.path.dirname(path)) == []


# --- signal handlers ---


def test_a_signal_handler_in_the_middle_of_an_append_appends_too(path: str) -> None:
    """Handlers that interrupt an append, again and again, and other threads lose no message and do not wait."""
    numbers = itertools.count()

    def append_in_handler(*_: object) -> None:
        assert EmergencyFile(path, SIZE).append(message(f"handler {next(numbers)}"))

    def append_some() -> None:
        for number in range(500):
            assert EmergencyFile(path, SIZE).append(message(f"{threading.current_thread().name} {number}"))

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
    # A handler may interrupt another.
    handled = sorted((text for text in found if text.startswith("handler")), key=lambda text: int(text[8:]))
    assert handled == [f"handler {number}" for number in range(next(numbers))]
    assert len(handled) > 5


class HandlerError(Exception):
    """What a signal handler raises."""


@pytest.mark.parametrize("is_after", [False, True])
def test_a_handler_that_raises_leaves_known_whether_it_is_there(
    path: str, monkeypatch: pytest.MonkeyPatch, is_after: bool
) -> None:
    """Where an exception comes out of the call, `has_appended` tells on which side of the write the handler ran."""
    file, write = EmergencyFile(path, SIZE), os.write

    def raise_error(*_: object) -> None:
        raise HandlerError

    def write_and_signal(fd: int, data: bytes) -> int:
        count = write(fd, data) if is_after else 0
        signal.raise_signal(signal.SIGUSR1)
        return count

    before = signal.signal(signal.SIGUSR1, raise_error)
    try:
        monkeypatch.setattr(os, "write", write_and_signal)
        with pytest.raises(HandlerError):
            file.append(message("one"))
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGUSR1, before)
    assert file.has_appended == is_after
    assert rest(EmergencyReader(path)) == ["one"] * is_after


# --- a reboot ---


@pytest.mark.parametrize("seed", range(10))
def test_a_reboot_in_the_middle_loses_and_doubles_nothing(tmp_path: Path, path: str, seed: int) -> None:
    """Without a note, the next reader says what of the log was not committed, and reads that again."""
    dice = random.Random(seed)
    sent = [f"{number} {'x' * dice.choice((1, 500, 9000))}" for number in range(100)]
    for text in sent:
        EmergencyFile(path, SIZE).append(message(text))
    log = tmp_path / "log"
    log.touch()
    status, crashes = log.stat(), 0
    while True:
        reader = EmergencyReader(path)
        for index, device, inode, start, end in reversed(reader.announced):
            assert (index, device, inode) == (7, status.st_dev, status.st_ino)
            if start < log.stat().st_size:
                assert log.stat().st_size <= end
                os.truncate(log, start)
        reader.settle()
        with log.open("a") as file:
            is_killed = False
            while not is_killed and ((data := reader.read(dice.choice((100, 3000, 20_000)))) or reader.take()):
                for text in texts(data):
                    start = file.tell()
                    reader.announce(7, status.st_dev, status.st_ino, start, start + len(text) + 1)
                    if is_killed := dice.random() < 0.05:
                        break
                    file.write(text + "\n")
                    file.flush()
                is_killed = is_killed or dice.random() < 0.2
                if not is_killed:
                    reader.commit()
        reader.close()
        if not is_killed:
            break
        crashes += 1
    assert crashes > 3
    assert log.read_text().splitlines() == sent
    assert sorted(os.listdir(tmp_path)) == ["log"]


@pytest.mark.parametrize("is_full", [False, True])
def test_what_was_announced_is_taken_back_once(path: str, monkeypatch: pytest.MonkeyPatch, is_full: bool) -> None:
    """Once it is taken back, the log grows again, and the next reader must cut nothing off. If the disk was full, that
    is noted before the log grows."""
    EmergencyFile(path, SIZE).append(message("one"))
    reader = EmergencyReader(path)
    assert reader.take()
    reader.read()
    reader.announce(0, 1, 2, 3, 4)
    reader.close()
    write = os.write
    for _ in range(2):  # killed before it is settled
        reader = EmergencyReader(path)
        assert reader.announced == [(0, 1, 2, 3, 4)]
        if not is_full:
            reader.close()
    if is_full:
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
        reader.settle()
        monkeypatch.undo()
        assert reader.read()
        reader.announce(0, 5, 6, 7, 8)
    else:
        reader = EmergencyReader(path)
        reader.settle()
    reader.close()
    reader = EmergencyReader(path)
    assert reader.announced == [(0, 5, 6, 7, 8)] * is_full
    assert rest(reader) == ["one"]


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
    """Links, FIFOs, devices, others' files and files of another kind are neither written nor read, which is told."""
    if what == "another's" and os.geteuid():
        pytest.skip("only root makes a file of another user")
    check = plant(path + where, what)
    refused = r"not a regular|not an emergency|symbolic link|directory|device"
    reader = EmergencyReader(path)
    (error,) = reader.refused
    assert re.search(refused, str(error))
    if not where:
        for call in (lambda: EmergencyFile(path, SIZE).append(message("one")), reader.take):
            with pytest.raises(OSError, match=refused):
                call()
    else:
        assert EmergencyFile(path, SIZE).append(message("one"))
        assert rest(reader) == ["one"]
    check()
    if what in ("text", "short text"):
        assert b"text" in Path(path + where).read_bytes()


@pytest.mark.parametrize("most", [0, 100, 2**20])
def test_messages_are_passed_over_one_by_one(path: str, most: int) -> None:
    """The length of the next message is known before all of it is in memory, and `commit` passes over it."""
    file, reader = EmergencyFile(path, SIZE), EmergencyReader(path)
    messages = [message("one"), message("x" * 3 * 2**20), message("three")]
    for each in messages:
        assert file.append(each)
    assert reader.take()
    for each in messages:
        assert reader.peek(most) == (each[:most], len(each))
        assert reader.read(limit=1) == each
        assert reader.peek(most) == (each[:most], len(each))
        reader.commit()
    assert reader.peek(most) == (b"", 0)
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.parametrize("seed", range(5))
def test_buffers_are_saved_message_by_message(path: str, seed: int) -> None:
    """Of a stream that is appended in chunks cut anywhere, the reader returns one message at a time, in order."""
    dice = random.Random(seed)
    sent = [f"{number} {'x' * dice.choice((1, 500, 9000, 50_000))}" for number in range(100)]
    stream = b"".join(message(text) for text in sent)
    file, start = EmergencyFile(path, SIZE), 0
    while start < len(stream):
        end = start + dice.choice((1, 100, 5000, 100_000))
        messages, is_whole = frame.messages(stream[start:end])
        assert b"".join(messages) == stream[start:end]
        assert file.append(*messages, goes_on=not is_whole)
        start = end
    reader = EmergencyReader(path)
    assert reader.take()
    found = []
    while data := reader.read(limit=1):
        found.append(data)
        reader.commit()
    assert b"".join(found) == stream
    assert [text for data in found for text in texts(data)] == sent
    # A chunk that begins in the middle of a frame has no end of a message there.
    assert len(found) > len(sent) / 2
