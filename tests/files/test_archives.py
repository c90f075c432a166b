"""Rotated files: compressed and removed in the background, and finished after any death (faults 5, 12, 27)."""

from __future__ import annotations

import gzip
import logging
import os
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import Clock, open_log, rotated, written, zstd
from oracle import wait_until
from scripts import run_script

import mplog
from mplog.files import archives
from mplog.files.archives import Archive, expired
from mplog.files.rotation_rules import Keep
from mplog.handlers.log_file import LogFileHandler

DAY = 86_400
NAME = "app.2026-11-20.001.log"


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until it is told."""
    return Clock()


Opener = Callable[..., LogFileHandler]


@pytest.fixture
def open_handler(log: Path, clock: Clock) -> Iterator[Opener]:
    """Open handlers of `log`, rotated at three records of two bytes, under the clock; they are closed at the end."""
    opened = []

    def open_one(**words: Any) -> LogFileHandler:
        opened.append(open_log(log, clock, **{"rotate": "6 bytes", **words}))
        return opened[-1]

    yield open_one
    for handler in opened:
        handler.close()
        assert handler.take_notices() == []


def decompressed(path: Path) -> bytes:
    """Return what is in a compressed file."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    data: bytes = zstd().decompress(path.read_bytes())
    return data


def wait_until_tidy(log: Path, expected: list[str]) -> None:
    """Wait until there are just these rotated files."""
    wait_until(lambda: [path.name for path in rotated(log)] == expected, f"{expected} are left, of {rotated(log)}")


# --- compressing ---


@pytest.mark.parametrize("how", ["gz", "zst"])
def test_rotated_files_are_compressed(log: Path, open_handler: Opener, how: str) -> None:
    """Each becomes a compressed file of the same contents, mode and time, and nothing else is left."""
    if how == "zst":
        zstd()
    handler = open_handler(compress=how, mode=0o604)
    handler.write(["1\n", "2\n", "3\n", "4\n"])
    names = [f"app.2026-11-20.{index:03}.log.{how}" for index in (1, 2)]
    wait_until_tidy(log, names[:1])
    (log.parent / names[0]).touch()
    os.utime(log, (1000, 1000))
    handler.write(["5\n", "6\n", "7\n"])
    wait_until_tidy(log, names)
    handler.close()
    assert [decompressed(path) for path in rotated(log)] == [b"1\n2\n3\n", b"4\n5\n6\n"]
    assert stat.S_IMODE(rotated(log)[1].stat().st_mode) == 0o604
    assert rotated(log)[1].stat().st_mtime == pytest.approx(log.stat().st_mtime, abs=60)
    assert sorted(os.listdir(log.parent)) == [*names, "app.log"]


def test_large_file_is_compressed_whole(log: Path, open_handler: Opener) -> None:
    """Many pieces make one file, which any gzip reads."""
    text = "".join(f"{number:07}\n" for number in range(200_000))
    handler = open_handler(compress="gz")
    handler.write([text, "1\n"])
    wait_until_tidy(log, [NAME + ".gz"])
    assert decompressed(rotated(log)[0]) == text.encode()


def leave_rotated(log: Path, open_handler: Opener) -> Path:
    """Leave a rotated file as a logging process does that has been killed before it was compressed."""
    handler = open_handler()
    handler.write(["1\n", "2\n", "3\n", "4\n"])
    handler.close()
    (path,) = rotated(log)
    return path


def reopen_and_tidy(open_handler: Opener, **words: Any) -> LogFileHandler:
    """Open the log again, and write a record, so that it begins to tidy up; wait until it has."""
    handler = open_handler(compress="gz", **words)
    handler.write(["5\n"])
    handler.close()
    return handler


def test_what_was_left_uncompressed_is_compressed_after_the_next_start(log: Path, open_handler: Opener) -> None:
    """A file that was rotated just before the end, and a half compressed one, are no loss: it is done again."""
    path = leave_rotated(log, open_handler)
    (log.parent / f".{path.name}.gz.part").write_bytes(b"half")
    reopen_and_tidy(open_handler)
    assert decompressed(rotated(log)[0]) == b"1\n2\n3\n"
    assert sorted(os.listdir(log.parent)) == [NAME + ".gz", "app.log"]


@pytest.mark.parametrize("left", ["empty", "complete"])
def test_death_between_both_names_is_finished(log: Path, open_handler: Opener, left: str) -> None:
    """If both the compressed file and the original are there, the original is removed once they are the same."""
    path = leave_rotated(log, open_handler)
    compressed = path.with_name(path.name + ".gz")
    compressed.write_bytes(gzip.compress(path.read_bytes()) if left == "complete" else b"")
    before = compressed.stat().st_ino
    reopen_and_tidy(open_handler)
    assert decompressed(compressed) == b"1\n2\n3\n"
    assert left == "empty" or compressed.stat().st_ino == before
    assert sorted(os.listdir(log.parent)) == [NAME + ".gz", "app.log"]


@pytest.mark.parametrize("plant", ["other", "longer", "shorter", "garbage", "cut", "link", "FIFO", "directory"])
def test_file_of_others_is_left_alone(
    log: Path, tmp_path: Path, clock: Clock, open_handler: Opener, plant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """If something else has the compressed file's name, both stay as they are, and the log says so."""
    path = leave_rotated(log, open_handler)
    taken = path.with_name(path.name + ".gz")
    contents = {
        "other": gzip.compress(b"9\n2\n3\n"),
        "longer": gzip.compress(b"1\n2\n3\n4\n"),
        "shorter": gzip.compress(b"1\n2\n"),
        "garbage": b"1\n2\n3\n",
        "cut": gzip.compress(b"1\n2\n3\n")[:-5],
    }
    if plant in contents:
        taken.write_bytes(contents[plant])
    elif plant == "link":
        (tmp_path / "target").write_bytes(gzip.compress(b"1\n2\n3\n"))
        taken.symlink_to(tmp_path / "target")
    elif plant == "FIFO":
        os.mkfifo(taken)
    else:
        taken.mkdir()
    before = os.lstat(taken)
    reopen_and_tidy(open_handler)
    assert f"mplog: {NAME} could not be compressed, and is kept as it is: " in capsys.readouterr().err
    assert path.read_bytes() == b"1\n2\n3\n"
    after = os.lstat(taken)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)


def stop_in_compression(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Have gzip wait in the middle; return what says that it does, and what lets it go on."""
    reached, gate, crc32 = threading.Event(), threading.Event(), zlib.crc32

    def wait(*arguments: Any) -> int:
        reached.set()
        assert gate.wait(30)
        return crc32(*arguments)

    monkeypatch.setattr(zlib, "crc32", wait)
    return reached, gate


def test_compressing_is_abandoned_at_the_end(log: Path, open_handler: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """close() does not wait for a long compression: the original stays, and the next start does it again."""
    monkeypatch.setattr(archives, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(archives, "CHUNK", 2)
    reached, gate = stop_in_compression(monkeypatch)
    handler = open_handler(compress="gz")
    handler.write(["1\n", "2\n", "3\n", "4\n"])
    assert reached.wait(30)
    handler.close()
    gate.set()
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "mplog archives")
    thread.join(30)
    assert sorted(os.listdir(log.parent)) == [NAME, "app.log"]
    reopen_and_tidy(open_handler)
    assert decompressed(rotated(log)[0]) == b"1\n2\n3\n"


def test_file_is_not_touched_before_the_next_portion_is_written(
    log: Path, open_handler: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then a restart may look for it by its inode, which must not have become another file's."""
    reached, gate = stop_in_compression(monkeypatch)
    handler = open_handler(compress="gz")
    # The thread compresses the first file, and is asked to look again after the second was rotated.
    handler.write(["1\n", "2\n", "3\n", "4\n"])
    assert reached.wait(30)
    handler.write(["5\n", "6\n", "7\n", "8\n", "9\n"])
    names = [f"app.2026-11-20.{index:03}.log" for index in (1, 2, 3)]
    portion = handler.prepare(["10\n"])
    assert [path.name for path in rotated(log)] == names
    gate.set()
    wait_until(lambda: not handler.is_tidying, "the thread has done what it was asked for")
    assert [path.name for path in rotated(log)] == [names[0] + ".gz", names[1] + ".gz", names[2]]
    handler.write_portion(portion)
    wait_until_tidy(log, [name + ".gz" for name in names])


# --- removing ---


def test_number_of_files_is_kept(log: Path, open_handler: Opener) -> None:
    """The newest stay; those that were compressed count like those that were not."""
    handler = open_handler(keep=2)
    handler.write([f"{number}\n" for number in range(10)] * 2)
    wait_until_tidy(log, [f"app.2026-11-20.{index:03}.log" for index in (5, 6)])
    handler.close()
    handler = reopen_and_tidy(open_handler, keep=1)
    wait_until_tidy(log, ["app.2026-11-20.006.log.gz"])


def test_old_files_are_removed(log: Path, clock: Clock, open_handler: Opener) -> None:
    """A file whose last record is older than asked for goes when the next one is rotated."""
    leave_rotated(log, open_handler)
    os.utime(rotated(log)[0], (clock.now, clock.now))
    clock.forward(14 * DAY - 1)
    handler = open_handler(keep="14 days")
    handler.write(["5\n"])
    handler.close()
    assert [path.name for path in rotated(log)] == [NAME]
    clock.forward(2)
    handler = open_handler(keep="14 days")
    handler.write(["6\n"])
    wait_until_tidy(log, [])


#: What the names of old files begin with; no clock of a test says so.
OLD = "app.2001-01-01"


def leave_old(log: Path, clock: Clock, ages: list[float]) -> None:
    """Leave rotated files of these ages, in days."""
    for index, age in enumerate(ages):
        path = log.with_name(f"{OLD}.{index + 1:03}.log")
        path.write_text("old\n")
        os.utime(path, (clock.now - age * DAY,) * 2)


def old_files(log: Path) -> list[str]:
    """Return the names of those that are left."""
    return [path.name for path in rotated(log) if path.name.startswith(OLD)]


@pytest.mark.parametrize("jump", [3 * DAY, 4 * DAY, 3650 * DAY])
def test_clock_that_is_set_forward_removes_nothing(log: Path, clock: Clock, open_handler: Opener, jump: float) -> None:
    """What is too old goes, at first and as time goes by, but nothing only because the clock was set."""
    leave_old(log, clock, [3.5, 2.5, 1.5, 0.5])
    handler = open_handler(keep="3 days")
    handler.write(["1\n"])
    wait_until_tidy(log, [f"{OLD}.{index:03}.log" for index in (2, 3, 4)])
    clock.now += jump
    for passed, left in ((0, (2, 3, 4)), (1, (3, 4)), (1, (4,)), (1, ())):
        clock.forward(passed * DAY)
        handler.write(["1\n", "2\n", "3\n"])
        wait_until(lambda: not handler.is_tidying, "the thread has done what it was asked for")
        assert old_files(log) == [f"{OLD}.{index:03}.log" for index in left]
    said = handler.take_notices()
    assert len(said) == (jump > 3 * DAY)
    assert all(f"the clock is {jump // DAY:.0f} days, 0:00:00 ahead" in line for line in said)


def test_file_of_the_future_grows_old(log: Path, clock: Clock, open_handler: Opener) -> None:
    """A file that was written while the clock was ahead is kept as long as one that was written now."""
    leave_old(log, clock, [-3650])
    handler = open_handler(keep="3 days")
    for passed, left in ((0, 1), (2, 1), (2, 0)):
        clock.forward(passed * DAY)
        handler.write(["1\n", "2\n", "3\n"])
        wait_until(lambda: not handler.is_tidying, "the thread has done what it was asked for")
        assert len(old_files(log)) == left


class ClockAhead:
    """The clock of a logging process, which is set forward by what is in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def time(self) -> float:
        """As time.time()."""
        return time.time() + float(self._path.read_text())

    def monotonic(self) -> float:
        """As time.monotonic()."""
        return time.monotonic()

    def steady(self) -> float:
        """The time of day, had nobody set it."""
        return time.time()


class SinkAhead(mplog.FileSink):
    """A sink under that clock."""

    def open_file(self, **_: Any) -> LogFileHandler:
        """Open the file."""
        return super().open_file(clock=ClockAhead(Path(self.path).with_name("ahead")))


@pytest.mark.processes
def test_server_keeps_its_files_while_the_clock_is_wrong(log: Path) -> None:
    """While the clock is ten years ahead, a server removes only what is old, and the log says so once."""
    ahead = log.with_name("ahead")
    ahead.write_text("0")
    clock = Clock()
    clock.now = time.time()
    leave_old(log, clock, [3.5, 2.5, 1.5])
    sink = SinkAhead(log, rotate="100 bytes or midnight", keep="3 days")
    told = "ahead of the time that has passed"
    with mplog.LogServer(sink, level="INFO", format="%(message)s") as server:

        def is_told() -> bool:
            logging.info("%030d", 0)
            server.flush()
            return told in "".join(written(log))

        for days in (0, 3650, 0, 3650):
            ahead.write_text(str(days * DAY))
            for number in range(20):
                logging.info("%030d", number)
            wait_until(lambda: is_told() or not days, "the log says so")  # noqa: B023
    assert old_files(log) == [f"{OLD}.{index:03}.log" for index in (2, 3)]
    assert "".join(written(log)).count(told) == 1


def test_only_rotated_files_are_removed(log: Path, tmp_path: Path, open_handler: Opener) -> None:
    """What has another name, or is no regular file, is neither counted nor removed."""
    target = tmp_path / "target"
    target.write_text("precious")
    others = [
        "app.log.1",
        "app.2026-11-20.log",
        "app.2026-11-20.1.log",
        "xapp.2026-11-20.001.log",
        "app.2026-11-20.001",
    ]
    for name in others:
        (tmp_path / name).write_text("precious")
    (tmp_path / "app.2026-11-20.901.log").symlink_to(target)
    os.mkfifo(tmp_path / "app.2026-11-20.902.log")
    (tmp_path / "app.2026-11-20.903.log").mkdir()
    handler = open_handler(keep=1)
    handler.write([f"{number}\n" for number in range(8)])
    wait_until(lambda: not (tmp_path / "app.2026-11-20.904.log").exists(), "the first rotated file is removed")
    handler.close()
    assert sorted(os.listdir(tmp_path)) == sorted(
        [*others, "target", "app.log", *(f"app.2026-11-20.90{index}.log" for index in (1, 2, 3, 5))]
    )
    assert target.read_text() == "precious"


FILES = st.lists(st.builds(Archive, st.text(), st.integers(1, 99), st.integers(1, 99), st.integers(0, 99)), max_size=20)
LIMITS = st.none() | st.integers(1, 99)


@given(FILES, LIMITS, LIMITS, LIMITS)
def test_what_is_kept(files: list[Archive], count: int | None, seconds: int | None, size: int | None) -> None:
    """What is kept is within every limit, and the newest; what goes, goes because of one."""
    now = 100 / 1e9
    keep = Keep(files=count, seconds=None if seconds is None else seconds / 1e9, size=size)
    gone = expired(files, keep, {file.written_at_ns: now - file.written_at_ns / 1e9 for file in files})
    left = sorted((file for file in files if not any(file is other for other in gone)), key=_age)
    assert len(left) + len(gone) == len(files)
    assert all(_age(file) <= _age(other) for file in left for other in gone)
    if count is not None:
        assert len(left) <= count
    if size is not None:
        assert sum(file.size for file in left) <= size or len(left) == 1
    if seconds is not None:
        assert all(100 - file.written_at_ns <= seconds + 1e-6 for file in left)
    if gone:
        next_one = min(gone, key=_age)
        assert (
            (count is not None and len(left) == count)
            or (size is not None and sum(file.size for file in left) + next_one.size > size)
            or (seconds is not None and 100 - next_one.written_at_ns > seconds - 1e-6)
        )


def _age(file: Archive) -> tuple[int, int]:
    return -file.written_at_ns, -file.index


# --- killed at every step ---


KILLS = """
import filelock, gzip, os, signal, sys
from pathlib import Path
import logs
from readers import status_of
from mplog.files.notices import SYSTEM_CLOCK
from mplog.files.portion import Position

CALLS = ["open", "close", "write", "rename", "unlink", "ftruncate", "fstat", "stat", "listdir", "fchmod", "fsync",
         "fdatasync", "utime", "lstat", "fchown"]
TEXTS = [f"{number:09}\\n" for number in range(int(sys.argv[3]))]
# A kill takes nothing from the system's memory, so that nothing need reach a disk here.
os.fsync = os.fdatasync = lambda fd: None

def journal(directory):
    return os.open(directory / "journal", os.O_RDWR | os.O_CREAT)

def work(directory, kill_at, after, compress):
    '''Write what is not noted in the journal, and note it; be killed at a call to the system, before or after it.'''
    fd = journal(directory)
    pread, pwrite = os.pread, os.pwrite
    noted = [int(word) for word in pread(fd, 1000, 0).split()]
    calls = 0
    def wrap(name):
        function = getattr(os, name)
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == kill_at:
                if after:
                    function(*arguments, **options)
                elif name == "write":
                    function(arguments[0], bytes(arguments[1][:15]))
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        setattr(os, name, call)
    for name in CALLS:
        wrap(name)
    # Under the real clock: a log that is taken up goes by the time of its file.
    handler = logs.open_log(directory / "app.log", SYSTEM_CLOCK, rotate=35, compress=compress, fsync="batch")
    done = 0
    if noted:
        done, device, inode, length, announced = noted
        handler.resume(Position(device, inode, length), announced)
    while done < len(TEXTS):
        portion = handler.prepare(TEXTS[done:done + 5])
        pwrite(fd, b"%20d %20d %20d %20d %20d" % (done, *portion.start, portion.end.length), 0)
        handler.write_portion(portion)
        done += len(portion.texts)
        pwrite(fd, b"%20d %20d %20d %20d %20d" % (done, *portion.end, portion.end.length), 0)
    if not kill_at:
        handler.write(["the end\\n"])
    handler.close()
    if handler.take_notices():
        os._exit(3)

def contents(directory):
    log = directory / "app.log"
    read = lambda path: gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return b"".join(read(path) for path in [*logs.rotated(log), log])

root, compress = Path(sys.argv[1]), sys.argv[2] or None
kills = 0
step = int(sys.argv[4])
# If not every step is tried, with a compression other steps are.
for kill_at in range(2 if compress and step > 1 else 1, 1000, step):
    statuses = []
    for after in (False, True):
        directory = root / f"{kill_at}{after}"
        directory.mkdir()
        statuses.append(status_of(work, directory, kill_at, after, compress))
        # Once more, and killed at an early step of the recovery itself.
        if statuses[-1]:
            assert statuses[-1] == -signal.SIGKILL, (kill_at, after, statuses)
            kills += 1
            again = status_of(work, directory, kill_at % 17 + 1, after, compress)
            assert again in (0, -signal.SIGKILL), (kill_at, after, again)
        status = status_of(work, directory, 0, False, compress)
        assert status == 0, (kill_at, after, status)
        found = contents(directory).decode()
        assert found == "".join(TEXTS) + "the end\\n", (kill_at, after, found)
        hidden = [name for name in os.listdir(directory) if name.startswith(".")]
        assert not hidden, (kill_at, after, hidden)
        if compress:
            raw = [path.name for path in logs.rotated(directory / "app.log") if path.suffix != ".gz"]
            assert not raw, (kill_at, after, raw)
    if not any(statuses):
        break
else:
    raise AssertionError("no run was clean")
print(kills)
"""


@pytest.mark.processes
@pytest.mark.parametrize("compress", ["", "gz"])
@pytest.mark.parametrize(
    ("records", "step"), [(9, 3), pytest.param(40, 1, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_logging_process_killed_at_any_step_of_a_rotation(
    tmp_path: Path, compress: str, records: int, step: int
) -> None:
    """SIGKILL before and after each call to the system, also in the recovery: nothing lost, doubled, torn or left."""
    (tmp_path / "logs").mkdir()
    result = run_script(tmp_path, KILLS, tmp_path / "logs", compress, records, step, timeout=500)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert int(result.stdout) > 10 * records // step


@pytest.mark.processes
def test_server_compresses_and_keeps(log: Path) -> None:
    """All of it through a LogServer: the words are those of FileSink."""
    sink = mplog.FileSink(log, rotate="1 kB", keep="3 files", compress="gz", archive="app-{index}.log")
    with mplog.LogServer(sink, level="INFO", format="%(message)s") as server:
        import logging

        for number in range(100):
            logging.info("%099d", number)
            if number % 10 == 5:
                server.flush()
    found = rotated(log, "app-{index}.log")
    assert [path.name for path in found] == [f"app-{index}.log.gz" for index in (7, 8, 9)]
    data = b"".join(map(decompressed, found)) + log.read_bytes()
    assert data.decode().splitlines() == [f"{number:099}" for number in range(60, 100)]
    assert written(log, "nothing {index}") == ["".join(f"{number:099}\n" for number in range(90, 100))]
