"""Log files on a disk: files that others touch, modes and owners, fsync, full disks (faults 9 to 13)."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from logs import Clock, open_log, rotated, written
from scripts import drop_privileges, run_script

from mplog.files import regular as regular_file
from mplog.files.lock import look_seconds
from mplog.files.open_file import FileOptions
from mplog.handlers.log_file import LogFileHandler

Opener = Callable[..., LogFileHandler]


def numbered(*numbers: int, size: int = 10) -> list[str]:
    """Return texts of that many bytes."""
    return [f"{number:0{size - 1}}\n" for number in numbers]


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


@pytest.mark.parametrize("is_watched", [False, True])
def test_the_program_that_has_moved_the_file_makes_the_new_one(
    log: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, is_watched: bool
) -> None:
    """logrotate's ``create`` fails if the new file is there before it, so it gets a moment for it."""
    made: list[int] = []

    def make(_: float) -> None:
        """Stands for logrotate, which goes on while we sleep."""
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        made.append(os.fstat(fd).st_ino)
        os.close(fd)

    handler = LogFileHandler(str(log), FileOptions(is_watched=is_watched), clock=clock)
    handler.write(numbered(1))
    log.rename(log.parent / "app.log.1")
    clock.forward(1)
    monkeypatch.setattr("mplog.files.open_file.time.sleep", make)
    handler.write(numbered(2))
    handler.close()
    assert [log.stat().st_ino] == made
    assert log.read_text() == numbered(2)[0]


def test_a_new_file_is_waited_for_once(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the path cannot be opened, the moved file is written on, and no record waits again."""
    pauses: list[float] = []
    sleep = time.sleep

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        sleep(seconds)

    log = tmp_path / "logs" / "app.log"
    log.parent.mkdir()
    handler = LogFileHandler(str(log), FileOptions(is_watched=True), clock=clock)
    log.parent.rename(tmp_path / "moved")
    monkeypatch.setattr("mplog.files.open_file.time.sleep", pause)
    handler.write(numbered(1))
    waited = len(pauses)
    handler.write(numbered(2))
    assert 0 < waited == len(pauses)
    assert (tmp_path / "moved" / "app.log").read_text() == "".join(numbered(1, 2))
    log.parent.mkdir()
    handler.write(numbered(3))
    handler.close()
    assert log.read_text() == numbered(3)[0]


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
    assert handler.due() == clock.ticks + look_seconds  # at the lock
    handler.write(numbered(1))
    assert handler.due() == clock.ticks + 2
    clock.forward(1)
    handler.write(numbered(2))
    handler.work()
    assert (syncs, handler.due()) == ([], clock.ticks + 1)
    clock.forward(1)
    handler.work()
    assert (syncs, handler.due()) == (["file"], clock.ticks + look_seconds - 2)
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
    notice, next_notice = handler.take_notices()
    assert "may not have reached the disk: OSError: [Errno 5] unplugged" in notice
    assert "has failed, and was opened anew: OSError: [Errno 5] unplugged" in next_notice


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
