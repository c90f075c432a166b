"""Log files: rotation by size and time, failures half-way, and what a kill leaves (faults 9 to 13, 26, 27)."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import log_lines
from logs import Clock, open_log, rotated, write_all, written
from oracle import verdict

import mplog
from mplog.files.portion import Position
from mplog.handlers.log_file import LogFileHandler

DAY = 86_400


Opener = Callable[..., LogFileHandler]


def numbered(*numbers: int, size: int = 10) -> list[str]:
    """Return texts of that many bytes."""
    return [f"{number:0{size - 1}}\n" for number in numbers]


# --- rotation by size and time ---


def test_rotates_by_size(log: Path, open_handler: Opener) -> None:
    """No file has more bytes than asked for, a batch goes on in the next one, and none is empty."""
    handler = open_handler(rotate="35 bytes")
    handler.write(numbered(*range(8)))
    handler.write(numbered(8, 9))
    assert written(log) == ["".join(numbered(*part)) for part in (range(3), range(3, 6), range(6, 9), [9])]
    assert [path.name for path in rotated(log)] == [f"app.2026-11-20.00{index}.log" for index in (1, 2, 3)]


def test_long_record_has_a_file_of_its_own(log: Path, open_handler: Opener) -> None:
    """A record that is longer than a file may be is not split, and not lost."""
    handler = open_handler(rotate=30)
    long = "x" * 99 + "\n"
    handler.write([*numbered(1), long, *numbered(2), long, long, *numbered(3)])
    assert written(log) == [*numbered(1), long, *numbered(2), long, long, *numbered(3)]


def test_file_that_is_too_long_already_is_rotated(log: Path, open_handler: Opener) -> None:
    """What another program has left is rotated at the first record, and not before."""
    log.write_text("x" * 100 + "\n")
    handler = open_handler(rotate=30)
    assert written(log) == ["x" * 100 + "\n"]
    handler.write(numbered(1))
    assert written(log) == ["x" * 100 + "\n", *numbered(1)]


@settings(max_examples=60)
@given(
    # No ESC, which means something else in ISO 2022, and no ends of lines but ours.
    batches=st.lists(
        st.lists(st.text(st.characters(exclude_characters="\x1b\x0e\x0f\r\n"), max_size=30), min_size=1, max_size=12),
        max_size=6,
    ),
    limit=st.integers(1, 120),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "latin-1", "iso2022_jp"]),
)
def test_each_record_is_in_one_file(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]], limit: int, encoding: str
) -> None:
    """For any records, limit and encoding, the files together hold every record once, in order, none of them split."""
    log = tmp_path_factory.mktemp("logs") / "app.log"
    batches = [[text + "\n" for text in batch] for batch in batches]
    with contextlib.closing(open_log(log, encoding=encoding, rotate=limit)) as handler:
        for batch in batches:
            handler.write(batch)
    found = []
    for path in [*rotated(log), log]:
        data = path.read_bytes()
        lines = data.decode(encoding).split("\n")[:-1]
        assert data.decode(encoding).endswith("\n") or not data
        assert len(data) <= limit or len(lines) == 1
        found += lines
    expected = [text[:-1].encode(encoding, "backslashreplace").decode(encoding) for batch in batches for text in batch]
    assert found == expected


def test_rotates_by_time(log: Path, clock: Clock, open_handler: Opener) -> None:
    """At midnight, the file gets the date of the day that is over; days without records make no files."""
    handler = open_handler(rotate="midnight")
    handler.write(numbered(1))
    clock.forward(DAY / 2 - 1)
    handler.write(numbered(2))
    clock.forward(1)
    handler.write(numbered(3))
    clock.forward(5 * DAY)
    handler.write(numbered(4))
    assert written(log) == ["".join(numbered(1, 2)), *numbered(3), *numbered(4)]
    assert [path.name for path in rotated(log)] == ["app.2026-11-20.001.log", "app.2026-11-21.001.log"]


def test_rotates_by_size_or_time(log: Path, clock: Clock, open_handler: Opener) -> None:
    """Whichever comes first; the index starts again with each date."""
    handler = open_handler(rotate="25 bytes or midnight", archive="%d-{index}")
    for _ in range(2):
        handler.write(numbered(*range(5)))
        clock.forward(DAY)
    assert [path.name for path in rotated(log, "%d-{index}")] == ["20-1", "20-2", "20-3", "21-1", "21-2"]


def test_empty_file_is_not_rotated(log: Path, clock: Clock, open_handler: Opener) -> None:
    """A log that was opened days before its first record begins with that, and is rotated a period later."""
    handler = open_handler(rotate="midnight")
    clock.forward(3 * DAY)
    handler.write(numbered(1))
    handler.write(numbered(2))
    assert written(log) == ["".join(numbered(1, 2))]


def test_restart_knows_when_the_file_was_written(log: Path, clock: Clock, open_handler: Opener) -> None:
    """A file whose last record is of yesterday is rotated at the first record of today, also after a restart."""
    for day in range(3):
        handler = open_handler(rotate="midnight")
        handler.write(numbered(day))
        handler.close()
        os.utime(log, (clock.now, clock.now))
        handler = open_handler(rotate="midnight")
        handler.write(numbered(day))
        handler.close()
        os.utime(log, (clock.now, clock.now))
        clock.forward(DAY)
    assert written(log) == [2 * number for number in numbered(0, 1, 2)]
    assert [path.name for path in rotated(log)] == ["app.2026-11-20.001.log", "app.2026-11-21.001.log"]


@pytest.mark.parametrize("jump", [-10 * DAY, -DAY, -3600, 3600, DAY, 3650 * DAY, 1e15], ids=lambda jump: f"{jump:g}")
def test_clock_that_jumps_makes_no_storm(log: Path, clock: Clock, open_handler: Opener, jump: float) -> None:
    """One jump is at most one rotation, whichever way it goes, and records go on being written."""
    handler = open_handler(rotate="1 hour")
    handler.write(numbered(0))
    clock.now += jump
    for number in range(1, 20):
        clock.forward(1)
        handler.write(numbered(number))
    assert "".join(written(log)) == "".join(numbered(*range(20)))
    assert len(rotated(log)) == (1 if jump > 0 else 0)


# --- names that are taken ---


@pytest.mark.parametrize("make", ["file", "link", "dangling link", "FIFO", "directory", "compressed"])
def test_taken_name_is_left_alone(log: Path, tmp_path: Path, open_handler: Opener, make: str) -> None:
    """What is there by the name of a rotated file is neither overwritten nor followed: the next index is taken."""
    handler = open_handler(rotate=15)
    handler.write(numbered(1, 2))
    target, taken = tmp_path / "target", tmp_path / "app.2026-11-20.002.log"
    target.write_text("precious")
    if make == "file":
        taken.write_text("precious")
    elif make.endswith("link"):
        taken.symlink_to(target if make == "link" else tmp_path / "nowhere")
    elif make == "FIFO":
        os.mkfifo(taken)
    elif make == "directory":
        taken.mkdir()
    else:
        taken = taken.with_name(taken.name + ".gz")
        taken.write_text("precious")
    before = os.lstat(taken)
    handler.write(numbered(3))
    after = os.lstat(taken)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert target.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "app.2026-11-20.003.log").read_text() == numbered(2)[0]
    assert log.read_text() == numbered(3)[0]


def test_index_goes_on_after_a_restart(log: Path, clock: Clock, open_handler: Opener) -> None:
    """The next index is above the highest one that is there, even if lower ones have been removed."""
    for _ in range(2):
        handler = open_handler(rotate=5)
        handler.write(numbered(*range(3)))
        handler.close()
        os.utime(log, (clock.now, clock.now))
        (log.parent / "app.2026-11-20.001.log").unlink(missing_ok=True)
    assert [path.name for path in rotated(log)] == [f"app.2026-11-20.{index:03}.log" for index in (2, 3, 4, 5)]


# --- rotation that fails half-way ---


def test_rotation_that_fails_goes_on_in_the_file(log: Path, clock: Clock, open_handler: Opener) -> None:
    """The file is written on, that is said once, and rotation is tried again until it works, which is said, too."""
    handler = open_handler(rotate=15)
    (log.parent / ".app.log.new").mkdir()
    for number in range(5):
        handler.write(numbered(number))
        clock.forward(4)
    (notice,) = handler.take_notices()
    assert notice.startswith(f"mplog: {log} could not be rotated, so writing goes on in the same file")
    assert written(log) == ["".join(numbered(*range(5)))]
    (log.parent / ".app.log.new").rmdir()
    clock.forward(2)
    handler.write(numbered(5))
    (notice,) = handler.take_notices()
    assert notice == f"mplog: {log} has been rotated to {rotated(log)[0]}"
    assert written(log) == ["".join(numbered(*range(5))), *numbered(5)]


def test_rotation_without_descriptors(log: Path, clock: Clock, open_handler: Opener) -> None:
    """When no descriptor is left, records go on being written, and the file is rotated once there is one."""
    handler = open_handler(rotate=15)
    handler.write(numbered(0))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        handler.write(numbered(1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    (notice,) = handler.take_notices()
    assert "Too many open files" in notice
    clock.forward(5)
    handler.write(numbered(2))
    assert written(log) == ["".join(numbered(0, 1)), *numbered(2)]
    assert "has been rotated" in handler.take_notices()[0]


#: What a log file needs of the system.
CALLS = ["open", "close", "write", "rename", "unlink", "ftruncate", "fstat", "stat", "listdir", "fchmod"] + [
    "fsync",
    "fdatasync",
]


class Failing:
    """Lets the n-th call to the system fail, and, if it is to last, those after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int, *, lasting: bool) -> None:
        self.calls = 0
        self.nth = nth
        self.lasting = lasting
        self.failed = 0
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.nth or (self.lasting and self.calls > self.nth):
                self.failed += 1
                if name == "close":
                    function(*arguments)  # as Linux does: it is closed whatever close() returns
                if name == "write":
                    function(arguments[0], bytes(arguments[1][:7]))  # on its way to the disk
                    if self.calls % 2:
                        return 7
                raise OSError(errno.EIO, f"call {self.calls}, {name}, fails")
            return function(*arguments, **options)

        return call


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_nothing_is_lost_whichever_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool) -> None:
    """The first call to the system fails, then the second, until a run is clean: each record is in one file, in order.

    After a write has failed, the rest is written again, as `written` says.
    """
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: None)  # the disk has better things to do than to have us wait
    numbers = range(24)
    for nth in range(1, 1000):
        directory = tmp_path / str(nth)
        directory.mkdir()
        log, clock = directory / "app.log", Clock()
        handler = open_log(log, clock, rotate=35, fsync="batch")
        with monkeypatch.context() as patch:
            failing = Failing(patch, nth, lasting=lasting)
            left: list[str] = []
            for number in numbers[::3]:
                left = write_all(handler, left + numbered(number, number + 1, number + 2), attempts=3)
                clock.forward(0.7)
        clock.forward(6)
        assert write_all(handler, left) == []
        handler.take_notices()
        handler.close()
        assert "".join(written(log)) == "".join(numbered(*numbers)), f"call {nth}"
        if not failing.failed:
            break
    else:
        pytest.fail("no run was clean")
    assert nth > 100


# --- taking back what a killed logging process had not noted ---


def test_resume_takes_back_what_was_not_noted(log: Path, open_handler: Opener) -> None:
    """A portion that was written, wholly or in part, but not noted, is cut off; one that was noted stays."""
    handler = open_handler()
    for part in (0, 7, 20):
        handler.write(numbered(1))
        portion = handler.prepare(numbered(2, 3))
        os.write(handler.fileno(), portion.data[:part])
        handler.close()
        handler = open_handler()
        assert handler.resume(portion.start, portion.end.length) == part
        assert log.stat().st_size == portion.start.length
        assert handler.resume(portion.start, portion.end.length) == 0
        assert handler.resume(portion.end, portion.end.length) == 0
        handler.write(numbered(2, 3))
        assert log.read_text().endswith("".join(numbered(1, 2, 3)))


def _position(path: Path) -> Position:
    status = path.stat()
    return Position(status.st_dev, status.st_ino, status.st_size)


def test_portions_are_what_is_written(log: Path, open_handler: Opener) -> None:
    """Each portion says where it is going to stand, and there it stands; a rotation comes before its portion."""
    handler = open_handler(rotate=25)
    texts = numbered(*range(7))
    while texts:
        portion = handler.prepare(texts)
        assert portion.start == _position(log)
        handler.write_portion(portion)
        assert portion.end == _position(log)
        assert log.read_bytes()[portion.start.length :] == portion.data
        texts = texts[len(portion.texts) :]
    assert written(log) == ["".join(numbered(*part)) for part in ((0, 1), (2, 3), (4, 5), (6,))]


@pytest.mark.parametrize("name", ["app.2026-11-20.001.log", "app.log.1", "old/app.log.1"])
def test_resume_finds_the_file_that_was_moved(log: Path, open_handler: Opener, name: str) -> None:
    """The file is the one with that inode, whether it was rotated or moved meanwhile, also by logrotate's olddir."""
    handler = open_handler(rotate=1000, encoding="utf-16")
    handler.write(numbered(1))
    portion = handler.prepare(numbered(2))
    handler.write_portion(portion)
    handler.close()
    (log.parent / name).parent.mkdir(exist_ok=True)
    log.rename(log.parent / name)
    handler = open_handler(rotate=1000, encoding="utf-16")
    assert handler.resume(portion.start, portion.end.length) == len(portion.data)
    assert (log.parent / name).read_text("utf-16") == numbered(1)[0]
    handler.write(numbered(2))
    assert log.read_text("utf-16") == numbered(2)[0]


def test_resume_cuts_nothing_of_others(log: Path, tmp_path: Path, open_handler: Opener) -> None:
    """A file that is shorter or longer than it can be, or not there any more, is left alone, which is said."""
    handler = open_handler()
    handler.write(numbered(1, 2))
    start = _position(log)
    log.write_text("x" * 100)
    assert handler.resume(start, start.length + 10) == 0
    assert len(handler.take_notices()) == 1
    assert handler.resume(start._replace(length=200), 300) == 0
    assert log.read_text() == "x" * 100
    (tmp_path / "app.log.1").symlink_to(log)
    assert handler.resume(start._replace(inode=os.lstat(tmp_path / "app.log.1").st_ino, length=10), 10**6) == 0
    assert handler.resume(start._replace(inode=2**60), 10**6) == 0
    (notice,) = handler.take_notices()
    assert "moved away or deleted" in notice
    assert log.read_text() == "x" * 100


# --- with workers ---


def test_eight_workers_and_rotation(tmp_path: Path, stdlib_context: Any) -> None:
    """While eight processes log, files are rotated by size: each record is in one file, in order across files."""
    log = tmp_path / "logs" / "app.log"
    log.parent.mkdir()
    acknowledgements = tmp_path / "acknowledgements"
    acknowledgements.mkdir()
    sink = mplog.FileSink(log, rotate="20 kB", compress="gz" if stdlib_context.get_start_method() == "fork" else None)
    tasks = [(os.fspath(acknowledgements), 100, number) for number in range(24)]
    with (
        mplog.LogServer(sink, level="INFO", format="%(message)s") as server,
        stdlib_context.Pool(8, initializer=server.initializer) as pool,
    ):
        pool.starmap(log_lines, tasks, chunksize=1)
    found = rotated(log)
    assert len(found) > 5
    assert all(path.stat().st_size <= 20_000 for path in found)
    whole = tmp_path / "whole"
    with whole.open("wb") as file:
        for path in [*found, log]:
            command = ["gzip", "-dc", path] if path.suffix == ".gz" else ["cat", path]
            subprocess.run(command, stdout=file, check=True)
            file.flush()
    result = verdict(whole, acknowledgements)
    assert result.clean, result
    assert result.acknowledged == result.written == 2400
