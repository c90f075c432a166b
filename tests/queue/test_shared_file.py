"""Files that processes share: a full disk raises, and others find a file whole."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import tempfile
from pathlib import Path

import pytest
from jobs import messages_in
from readers import in_fork
from scripts import environment, fill_disk, run, run_script

import mplog
from mplog.queue.shared_file import lengthen, map_file, replace_file
from mplog.worker.levels import LevelChanges

PAGE = mmap.PAGESIZE

PROGRAM = """
    import logging, sys, mplog
    from pathlib import Path
    from scripts import fill_disk

    log, disk, free, later, policy = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]

    def fill_up():
        with open(fill_disk(disk), "ab", buffering=0) as file:
            file.truncate(max(0, file.tell() - 4096 * free))

    if not later:
        fill_up()
    try:
        server = mplog.LogServer(log, level="INFO", overflow=policy).start()
    except OSError as error:
        assert isinstance(error, OSError) and error.errno == 28
        sys.exit(f"refused: {error}")
    if later:
        fill_up()
    logging.info("one")
    try:
        server.set_level("x", "DEBUG")
    except OSError as error:
        print(error)
    server.stop()
    """


@pytest.mark.parametrize("what", ["map_file", "LevelChanges"])
def test_a_full_disk_raises_and_kills_nobody(small_disk: Path, what: str) -> None:
    """A page for which there is no room is an OSError when the file is made, not a SIGBUS when it is touched."""
    fill_disk(small_disk)

    def make() -> None:
        with pytest.raises(OSError, match="No space"):
            if what == "map_file":
                map_file(str(small_disk / "file"), 3 * PAGE, writable=True)[2 * PAGE] = 1
            else:
                LevelChanges(str(small_disk))

    in_fork(make)


@pytest.mark.parametrize("policy", ["block", "drop_below"])
@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_no_full_temporary_directory_kills_the_program(
    tmp_path: Path, small_disk: Path, log: Path, policy: str
) -> None:
    """With few pages left in TMPDIR, a server starts or says why not and what to do; without any, it goes on."""
    for free, later, starts in ((1, "", False), (2, "", None), (3, "", None), (7, "", True), (0, "later", True)):
        env = environment(TMPDIR=str(small_disk))
        done = run_script(tmp_path, PROGRAM, log, small_disk, free, later, policy, env=env)
        assert starts is None or starts == (done.returncode == 0), done
        if done.returncode == 0:
            assert messages_in(log) == ["one"]
            log.unlink()
        else:
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done
            assert done.stderr.startswith("refused: [Errno 28] No space left on device. The server needs room"), done
            assert f"set TMPDIR to another one: '{small_disk}'" in done.stderr, done
        os.unlink(small_disk / "ballast")
        assert os.listdir(small_disk) == []


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_a_level_that_cannot_be_told_is_not_set(small_disk: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room to tell the workers, set_level() raises OSError and sets no level, neither then nor later."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with mplog.LogServer(log, level="INFO", format="%(name)s %(message)s") as server:
        fill_disk(small_disk)
        with pytest.raises(OSError, match="No space left"):
            server.set_level("app", "DEBUG")
        os.unlink(small_disk / "ballast")
        with monkeypatch.context() as later, pytest.raises(OSError, match="No space left"):
            later.setattr("mplog.worker.levels.replace_file", full)
            server.set_level("app", "DEBUG")
        assert logging.getLogger("app").level == logging.NOTSET
        server.set_level("other", "DEBUG")
        code = "logging.info('attach'); logging.getLogger('app').debug(1); logging.getLogger('other').debug(2)"
        assert run(["-c", f"import logging, mplog; mplog.attach(); {code}"], env=environment()).stderr == ""
    assert log.read_text(encoding="utf-8").splitlines() == ["root attach", "other 2"]


def test_a_file_is_as_long_as_asked_for(tmp_path: Path) -> None:
    """A file that is long enough stays as it is, and one that is shorter gets zeros."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    fd = os.open(path, os.O_RDWR)
    lengthen(fd, 2)
    assert path.read_bytes() == b"abc"
    lengthen(fd, 3 * 2**20 + 1)
    os.close(fd)
    assert path.read_bytes() == b"abc".ljust(3 * 2**20 + 1, b"\0")


def test_a_mapped_file_is_shared(tmp_path: Path) -> None:
    """What the writer stores, a reader sees; a reader of a file that is missing or too short gets an OSError."""
    path = str(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        map_file(path, 8)
    written = map_file(path, 8, writable=True)
    read = map_file(path, 8)
    written[3] = 7
    assert read[:] == bytes((0, 0, 0, 7, 0, 0, 0, 0))
    with pytest.raises(TypeError):
        read[3] = 8
    with pytest.raises(OSError, match="shorter than 9 bytes"):
        map_file(path, 9)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """A reader finds the old content or the new, and where the new one cannot be put, nothing is left of it."""
    path = tmp_path / "file"
    replace_file(str(path), b"old")
    with open(path, "rb") as opened:
        replace_file(str(path), b"new")
        assert (opened.read(), path.read_bytes()) == (b"old", b"new")
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="file"):
        replace_file(str(path), b"newer")
    assert os.listdir(tmp_path) == ["file"]
