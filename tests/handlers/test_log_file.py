"""Log files: rotation by size and time, failures half-way, files that others touch, disks (faults 9 to 13, 26, 27)."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs import log_lines
from logs import Clock, open_log, rotated, write_all, written
from oracle import verdict
from scripts import drop_privileges, run_script

import mplog
from mplog.files import regular as regular_file
from mplog.files.portion import Position
from mplog.handlers.log_file import LogFileHandler

DAY = 86_400


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until it is told."""
    return Clock()


@pytest.fixture
def open_handler(log: Path, clock: Clock) -> Iterator[Callable[..., LogFileHandler]]:
    """Open handlers of `log` under the clock; they are closed at the end, and must have had nothing left to say."""
    opened = []

    def open_one(**words: Any) -> LogFileHandler:
        opened.append(open_log(log, clock, **words))
        return opened[-1]

    yield open_one
    for handler in opened:
        assert handler.take_notices() == []
        handler.close()


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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# --- files that others touch ---


def test_moved_file_is_noticed(log: Path, clock: Clock, open_handler: Opener) -> None:
    """As logrotate does it: after a second, records go into a new file of the log's name, and the log says so."""
    handler = open_handler()
    handler.write(numbered(1))
    log.rename(log.parent / "app.log.1")
    handler.write(numbered(2))
    assert not log.exists()
    clock.forward(1)
    handler.write(numbered(3))
    assert (log.parent / "app.log.1").read_text() == "".join(numbered(1, 2))
    assert log.read_text() == numbered(3)[0]
    assert handler.take_notices() == [f"mplog: {log} was moved; the log goes on in a new file"]


def test_moved_file_is_noticed_before_it_is_rotated(log: Path, clock: Clock, open_handler: Opener) -> None:
    """A file that has taken the log's place within the second is not renamed: it belongs to others."""
    handler = open_handler(rotate=15)
    handler.write(numbered(1))
    log.rename(log.parent / "app.log.1")
    log.write_text("theirs\n")
    handler.write(numbered(2))
    assert (rotated(log), log.read_text()) == ([], "theirs\n" + numbered(2)[0])
    assert (log.parent / "app.log.1").read_text() == numbered(1)[0]
    assert len(handler.take_notices()) == 1


def test_deleted_file_is_noticed_at_once(log: Path, open_handler: Opener) -> None:
    """The next record is in a new file, and the log says so."""
    handler = open_handler()
    handler.write(numbered(1))
    log.unlink()
    handler.write(numbered(2))
    assert log.read_text() == numbered(2)[0]
    assert handler.take_notices() == [f"mplog: {log} was deleted; the log goes on in a new file"]


def test_deleted_directory_is_an_error_until_it_is_back(log: Path, tmp_path: Path, clock: Clock) -> None:
    """Records are refused, and not written to a file without a name; once there is a directory, they are written."""
    log = tmp_path / "sub" / "app.log"
    log.parent.mkdir()
    handler = open_log(log, clock)
    handler.write(numbered(1))
    shutil.rmtree(log.parent)
    with pytest.raises(FileNotFoundError):
        handler.write(numbered(2, 3))
    assert handler.written == 0
    log.parent.mkdir()
    handler.write(numbered(2, 3))
    assert log.read_text() == "".join(numbered(2, 3))
    assert len(handler.take_notices()) == 1
    handler.close()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_truncated_file_is_noticed(log: Path, open_handler: Opener, encoding: str) -> None:
    """As logrotate does it with copytruncate: records go on at the new end, without a hole, and the log says so."""
    handler = open_handler(encoding=encoding)
    handler.write(numbered(1, 2))
    length = log.stat().st_size
    shutil.copy(log, log.parent / "app.log.1")
    os.truncate(log, 0)
    handler.write(numbered(3))
    assert log.read_text(encoding) == numbered(3)[0]
    assert (log.parent / "app.log.1").read_text(encoding) == "".join(numbered(1, 2))
    assert handler.take_notices() == [f"mplog: {log} was truncated from {length} bytes to 0; the log goes on"]


def test_planted_link_is_not_followed_by_a_reopening(
    log: Path, tmp_path: Path, clock: Clock, open_handler: Opener
) -> None:
    """A link or a FIFO in place of the moved log is refused, said, and left alone; the moved file is written on."""
    handler = open_handler()
    target = tmp_path / "target"
    target.write_text("precious")
    log.rename(tmp_path / "moved")
    for plant in (lambda: log.symlink_to(target), lambda: os.mkfifo(log)):
        plant()
        clock.forward(600)
        handler.write(numbered(1))
        clock.forward(1)
        handler.write(numbered(1))
        (notice,) = handler.take_notices()
        assert "cannot be reopened" in notice
        log.unlink()
    assert target.read_text() == "precious"
    assert (tmp_path / "moved").read_text() == 4 * numbered(1)[0]


def test_reopen(log: Path, open_handler: Opener) -> None:
    """reopen() goes on in a file of the log's name at once, and says nothing, as it was asked to."""
    handler = open_handler()
    handler.write(numbered(1))
    log.rename(log.parent / "app.log.1")
    handler.reopen()
    handler.write(numbered(2))
    assert log.read_text() == numbered(2)[0]
    handler.reopen()
    handler.write(numbered(3))
    assert log.read_text() == "".join(numbered(2, 3))


def test_link_that_may_be_followed_is_rotated_at_its_target(tmp_path: Path, clock: Clock) -> None:
    """With follow_symlinks, the file is rotated where it is, and the link stays."""
    (tmp_path / "there").mkdir()
    link, log = tmp_path / "link.log", tmp_path / "there" / "app.log"
    link.symlink_to(log)
    handler = open_log(link, clock, rotate=15, follow_symlinks=True, archive="app.{index}.log")
    handler.write(numbered(1, 2))
    handler.close()
    assert link.is_symlink()
    assert written(log, "app.{index}.log") == numbered(1, 2)


# --- modes, owners ---


@pytest.mark.parametrize("umask", [0, 0o077])
def test_every_new_file_has_the_mode(log: Path, clock: Clock, open_handler: Opener, umask: int) -> None:
    """Files after a rotation, a move and a deletion have the mode asked for, whatever the umask is."""
    before = os.umask(umask)
    try:
        handler = open_handler(rotate=15, mode=0o664)
        modes = []
        for change in (lambda: None, lambda: None, lambda: log.rename(log.parent / "x"), log.unlink):
            change()
            clock.forward(1)
            handler.write(numbered(1))
            modes.append(stat.S_IMODE(log.stat().st_mode))
    finally:
        os.umask(before)
    assert modes == [0o664] * 4
    assert stat.S_IMODE(rotated(log)[0].stat().st_mode) == 0o664
    assert len(handler.take_notices()) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(("owner", "expected"), [("12345", (12345, 0)), (":54321", (0, 54321)), ("1:2", (1, 2))])
def test_every_new_file_has_the_owner(log: Path, open_handler: Opener, owner: str, expected: tuple[int, int]) -> None:
    """A new file belongs to the user, the group, or both that were asked for; also after a rotation."""
    handler = open_handler(rotate=15, owner=owner)
    handler.write(numbered(1, 2))
    for path in (log, *rotated(log)):
        assert (path.stat().st_uid, path.stat().st_gid) == expected


def test_names_of_owners() -> None:
    """Names mean what they mean to chown."""
    assert regular_file.read_owner("root:0") == (0, 0)
    assert regular_file.read_owner("root") == (0, -1)
    assert regular_file.read_owner(None) is None


@pytest.mark.processes
def test_owner_that_is_not_permitted_is_an_error(tmp_path: Path) -> None:
    """If the user may not give files away, start() says so, and no file is left."""
    result = run_script(
        tmp_path,
        """
        import ctypes, os, sys
        import mplog
        if os.geteuid() == 0:
            ctypes.CDLL(None).prctl(24, 0, 0, 0, 0)     # PR_CAPBSET_DROP, CAP_CHOWN: the next program does without it
        if len(sys.argv) == 1:
            os.execv(sys.executable, [sys.executable, __file__, "again"])
        try:
            mplog.LogServer(mplog.FileSink("app.log", owner="12345:54321")).start()
        except mplog.SinkError as error:
            print(error)
        """,
    )
    assert "it cannot be given to user 12345, group 54321 by user" in result.stdout, result
    assert os.listdir(tmp_path) == ["program.py"]


# --- the disk ---


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is forced to the disk: "file", or "directory"."""
    done: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: done.append("file"))
    monkeypatch.setattr(os, "fsync", lambda fd: done.append("directory"))
    return done


def test_fsync_policies(log: Path, clock: Clock, syncs: list[str], open_handler: Opener) -> None:
    """Never, after every batch, or at most some seconds after the first write since; directories at new names."""
    handler = open_handler(rotate=25)
    handler.write(numbered(*range(9)))
    handler.close()
    assert syncs == []
    handler = open_handler(rotate=25, fsync="batch")
    handler.write(numbered(1))
    handler.write(numbered(2))
    assert syncs == ["file", "file", "directory", "file"]
    handler.close()
    syncs.clear()
    handler = open_handler(fsync=2)
    assert handler.due() is None
    handler.write(numbered(1))
    assert handler.due() == clock.ticks + 2
    clock.forward(1)
    handler.write(numbered(2))
    handler.work()
    assert (syncs, handler.due()) == ([], clock.ticks + 1)
    clock.forward(1)
    handler.work()
    assert (syncs, handler.due()) == (["file"], None)
    handler.work()
    handler.write(numbered(3))
    handler.close()
    assert syncs == ["file", "file"]


def test_fsync_that_fails_is_said(log: Path, open_handler: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the file stays there, once, and the log says that it may not be on the disk."""
    handler = open_handler(fsync="batch")

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "unplugged")

    monkeypatch.setattr(os, "fdatasync", fail)
    handler.write(numbered(1))
    handler.write(numbered(2))
    monkeypatch.undo()
    assert log.read_text() == "".join(numbered(1, 2))
    (notice,) = handler.take_notices()
    assert "may not have reached the disk: OSError: [Errno 5] unplugged" in notice


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, with room for 8 files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("a file system of one's own may not be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_holds_whole_records(small_disk: Path, clock: Clock) -> None:
    """A real disk that fills up: what does not fit is refused whole, `written` is right, and it goes on by itself."""
    log = small_disk / "app.log"
    handler = open_log(log, clock)
    texts = numbered(*range(200), size=1000)
    with pytest.raises(OSError, match="No space left"):
        handler.write(texts)
    assert 50 < handler.written < 66
    assert log.read_text() == "".join(texts[: handler.written])
    left = texts[handler.written :]
    with pytest.raises(OSError, match="No space left"):
        handler.write(left)
    assert handler.written <= 1  # what was taken back has left some room
    left = left[handler.written :]
    before = log.read_text()
    os.truncate(log, 0)
    handler.write(left[:50])
    assert log.read_text() == "".join(left[:50])
    assert before == "".join(texts[: len(texts) - len(left)])
    assert len(handler.take_notices()) == 1
    handler.close()


def test_rotation_on_a_full_disk(small_disk: Path, clock: Clock) -> None:
    """Without room for another file the old one is written on, without room for a byte records are refused whole."""
    log = small_disk / "app.log"
    handler = open_log(log, clock, rotate="5 kB")
    for name in range(8):
        with contextlib.suppress(OSError):
            (small_disk / f"other-{name}").touch()
    texts = numbered(*range(200), size=1000)
    with pytest.raises(OSError, match="No space left"):
        handler.write(texts)
    assert written(log) == ["".join(texts[: handler.written])]
    assert handler.written > 50
    left = texts[handler.written :]
    (notice,) = handler.take_notices()
    assert "could not be rotated" in notice
    for other in small_disk.glob("other-*"):
        other.unlink()
    clock.forward(5)
    with pytest.raises(OSError, match="No space left"):
        handler.write(left)
    left = left[handler.written :]
    first = rotated(log)[0].read_text()
    rotated(log)[0].unlink()
    handler.write(left[:20])
    assert first + "".join(written(log)) == "".join(texts[: len(texts) - len(left) + 20])
    handler.take_notices()
    handler.close()


def test_file_size_limit_of_the_process(log: Path, open_handler: Opener) -> None:
    """At RLIMIT_FSIZE, records are refused whole, `written` is right, and nobody is killed."""
    handler = open_handler()
    texts = numbered(*range(20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (95, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            handler.write(texts)
        count = handler.written
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert count == 9
    handler.write(texts[count:])
    assert log.read_text() == "".join(texts)


@pytest.mark.processes
def test_directory_that_becomes_read_only(tmp_path: Path) -> None:
    """Without permission for new files the log is written on, and said; with it again, it is rotated."""
    (tmp_path / "logs").mkdir()
    result = run_script(
        tmp_path,
        """
        import os
        from pathlib import Path
        from logs import Clock, open_log, rotated
        log, clock = Path("logs/app.log").resolve(), Clock()
        handler = open_log(log, clock, rotate=3)
        handler.write(["1\\n"])
        os.chmod("logs", 0o555)
        handler.write(["2\\n", "3\\n"])
        print(*handler.take_notices())
        os.chmod("logs", 0o755)
        clock.forward(5)
        handler.write(["4\\n"])
        print(log.read_text().split(), [path.read_text().split() for path in rotated(log)])
        handler.take_notices()
        handler.close()
        """,
        preexec_fn=drop_privileges,
    )
    assert "Permission denied" in result.stdout, result
    assert result.stdout.endswith("['4'] [['1', '2', '3']]\n"), result


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


@pytest.mark.parametrize("name", ["app.2026-11-20.001.log", "app.log.1"])
def test_resume_finds_the_file_that_was_moved(log: Path, open_handler: Opener, name: str) -> None:
    """The file is the one with that inode, whether it was rotated or moved meanwhile."""
    handler = open_handler(rotate=1000, encoding="utf-16")
    handler.write(numbered(1))
    portion = handler.prepare(numbered(2))
    handler.write_portion(portion)
    handler.close()
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
