"""Files that processes share: a full disk raises, and others find a file whole."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import messages_in
from scripts import environment, fill_disk, run, run_script

import mplog
from mplog.queue.shared_file import lengthen, make_file, map_file, replace_file, write_file
from mplog.worker.levels import LevelChanges

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("make", [lambda disk: make_file(str(disk / "file"), 3 * PAGE), LevelChanges])
def test_a_full_disk_raises(small_disk: Path, make: Callable[[Any], object]) -> None:
    """A page for which there is no room is an OSError when the file is made."""
    fill_disk(small_disk)
    with pytest.raises(OSError, match="No space"):
        make(small_disk)


#: How to make a file system in an image, and the size of the image: the smallest that there is.
IMAGES = {
    "ext4": (["mkfs.ext4", "-q", "-m", "0"], 8 * 2**20),
    "btrfs": (["mkfs.btrfs", "-q", "--mixed"], 16 * 2**20),
}


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small disk with the file system that the test asks for."""
    place, image = tmp_path / "disk", tmp_path / "image"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "mplog-test", str(place)]
    if request.param in IMAGES:
        make, size = IMAGES[request.param]
        if shutil.which(make[0]) is None:
            pytest.skip(f"there is no {make[0]}")
        with open(image, "wb") as file:
            file.truncate(size)
        subprocess.run([*make, image], check=True, capture_output=True)
        mount = ["mount", "-o", "loop", str(image), str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip(f"only root can mount a disk, and not each system knows {request.param}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


FILLING = """
    import logging, os, signal, subprocess, sys, mplog
    from pathlib import Path
    from oracle import wait_until

    log, disk, policy = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

    def fill_up(free=0):
        for number in range(free):
            (disk / f"ballast-spare-{number}").write_bytes(bytes(4096))
        # On btrfs, room for a page is not yet room for its place in the tree.
        for number, size in enumerate((2**16, 4096, 512)):
            subprocess.run(["sync", "-f", disk], check=True)
            try:
                with open(disk / f"ballast-{number}", "wb", buffering=0) as file:
                    while file.write(bytes(size)):
                        pass
            except OSError:
                pass
        for path in disk.glob("ballast-spare-*"):
            path.unlink()

    def make_room():
        for path in disk.glob("ballast-*"):
            path.unlink()
        subprocess.run(["sync", "-f", disk], check=True)
    """

START = (
    FILLING
    + """
    fill_up(int(sys.argv[4]))
    try:
        server = mplog.LogServer(log, level="INFO", overflow=policy).start()
    except OSError as error:
        sys.exit(f"refused: {error}")
    logging.info("one")
    server.queue.losses.count(logging.INFO, mplog.Reason.SHED, "w")
    try:
        server.set_level("x", "DEBUG")
    except OSError as error:
        print(error)
    server.stop()
    """
)

LATER = (
    FILLING
    + """
    CALLS = 30

    def use(level):
        # Each of these writes into a file of the full disk.
        for number in range(CALLS):
            logging.info("%s", number)
            server.queue.losses.count(logging.INFO, mplog.Reason.SHED, "w")
            try:
                server.set_level("x", level + number)
            except OSError as error:
                assert logging.getLogger("x").level == 0, error
        server.flush()

    server = mplog.LogServer(log, level="INFO", overflow=policy, format="%(message)s").start()
    server.queue.losses.count(logging.INFO, mplog.Reason.SHED, "w")
    logging.info("first")
    server.flush()
    fill_up()
    use(20)
    pid = server.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.pid != pid, "it is restarted")
    use(20)
    make_room()
    logging.info("last")
    wait_until(lambda: server.stats().received == 2 * CALLS + 2, "all is shown", timeout=30)
    # The pause after a full disk is over, too, for what waits in this process.
    def count():
        server.queue.losses.count(logging.INFO, mplog.Reason.TRUNCATED, "w")
        return server.stats().dropped
    wait_until(lambda: count() == 2 * CALLS + 1, "all losses are shown", timeout=30)
    server.set_level("x", 20)
    stats = server.stop()
    assert (stats.received, stats.dropped, stats.restarts) == (2 * CALLS + 2, 2 * CALLS + 1, 1), stats
    assert not stats.unexplained, stats
    numbers = [str(number) for number in range(CALLS)]
    lines = [line for line in Path(log).read_text().splitlines() if not line.startswith("mplog:")]
    assert lines == ["first", *numbers, *numbers, "last"], lines
    """
)


@pytest.mark.processes
@pytest.mark.parametrize("disk", ["tmpfs", "ext4", "btrfs"], indirect=True)
def test_no_full_temporary_directory_kills_a_start(tmp_path: Path, disk: Path, log: Path) -> None:
    """However few pages are left in TMPDIR, a server starts, or the start raises an OSError: no process is killed."""
    results = []
    for free in (0, 1, 2, 3, 7, 20):
        env = environment(TMPDIR=str(disk))
        done = run_script(tmp_path, START, log, disk, "drop_below", free, env=env, timeout=120)
        results.append(done.returncode)
        if done.returncode == 0:
            assert "one" in messages_in(log)
            log.unlink()
        else:
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done
            assert done.stderr.startswith("refused: [Errno 28] No space left on device. The server needs room"), done
            assert f"set TMPDIR to another one: '{disk}'" in done.stderr, done
        for path in disk.glob("ballast-*"):
            path.unlink()
        assert [name for name in os.listdir(disk) if name.startswith("mplog-")] == []
    assert 0 in results


@pytest.mark.processes
@pytest.mark.parametrize("policy", ["block", "drop_below"])
@pytest.mark.parametrize("disk", ["tmpfs", "ext4", "btrfs"], indirect=True)
def test_a_temporary_directory_that_fills_up_loses_no_count(tmp_path: Path, disk: Path, log: Path, policy: str) -> None:
    """While it is full, records and losses are counted, also over a kill of the logging process, and each record is
    written once. When it has room again, the counts are shown."""
    done = run_script(tmp_path, LATER, log, disk, policy, env=environment(TMPDIR=str(disk)), timeout=240)
    assert done.returncode == 0, done.stderr


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
    """What the writer writes, a reader sees; a reader of a file that is missing or too short gets an OSError."""
    path = str(tmp_path / "file")
    for use in (lambda: map_file(path, 8), lambda: write_file(path, b"x")):
        with pytest.raises(FileNotFoundError):
            use()
    make_file(path, 8)
    read = map_file(path, 8)
    write_file(path, bytes((0, 0, 0, 7)))
    make_file(path, 8)
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
