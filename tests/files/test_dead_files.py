"""Descriptors that are dead for good: of a FUSE daemon that was killed, or that NFS no longer knows (fault 36)."""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from logs import open_log, write_all
from oracle import Producer, verdict, wait_until
from scripts import lines

import mplog
from mplog.files import regular
from mplog.files.open_file import DEAD
from mplog.handlers.log_file import LogFileHandler

#: What is called with the descriptor of a log file.
CALLS = ("write", "fstat", "fstatvfs", "ftruncate", "fdatasync")


@contextlib.contextmanager
def dead(fd: int, number: int, part: int = 0, calls: Sequence[str] = CALLS) -> Iterator[None]:
    """Have calls that concern a descriptor fail; `part` bytes of the first write reach the file nevertheless."""
    left = [part]

    def broken(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(given: Any, *arguments: Any) -> Any:
            if given != fd:
                return function(given, *arguments)
            if name == "write" and left[0]:
                function(fd, bytes(arguments[0])[: left.pop()])
                left.append(0)
            raise OSError(number, os.strerror(number))

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            patch.setattr(os, name, broken(name, getattr(os, name)))
        yield


def numbered(*numbers: int) -> list[str]:
    """Return texts of ten bytes."""
    return [f"{number:09}\n" for number in numbers]


def opened_anew(handler: LogFileHandler) -> bool:
    """Whether it says that it has opened its file anew, and nothing else."""
    (notice,) = handler.take_notices()
    return notice.startswith(f"mplog: {handler.path} has failed, and was opened anew: ")


@pytest.mark.parametrize("calls", [CALLS, ("write",), ("write", "ftruncate")], ids="+".join)
@pytest.mark.parametrize("part", [0, 4, 10, 13, 30])
@pytest.mark.parametrize("number", sorted(DEAD), ids=errno.errorcode.get)
def test_path_is_opened_anew(log: Path, number: int, part: int, calls: Sequence[str]) -> None:
    """What the failed write may have left is cut off, and each text is in the file once, whole."""
    handler = open_log(log)
    handler.write(numbered(1))
    with dead(handler.fileno(), number, part, calls):
        assert write_all(handler, numbered(2, 3, 4), attempts=2) == []
    handler.write(numbered(5))
    assert log.read_text() == "".join(numbered(1, 2, 3, 4, 5))
    assert opened_anew(handler)
    handler.close()


def test_file_that_cannot_be_forced_to_the_disk_is_opened_anew(log: Path) -> None:
    """NFS may take what is written, and tell only when it is forced to the disk that the file is not there any more."""
    handler = open_log(log, fsync="batch")
    before = handler.fileno()
    with dead(before, errno.ESTALE, calls=["fdatasync"]):
        handler.write(numbered(1))
        assert "may not have reached the disk" in handler.take_notices()[0]
        handler.write(numbered(2))
    assert handler.fileno() != before
    assert log.read_text() == "".join(numbered(1, 2))
    handler.close()


def test_file_in_its_place_is_not_cut(log: Path) -> None:
    """Only what the failed write may have left is cut off, wherever the path leads; what is missing is said."""
    for theirs in ("x" * 15, numbered(1)[0] + "00000theirs\n", "x"):
        handler = open_log(log)
        log.write_text(numbered(1)[0])
        with dead(handler.fileno(), errno.EIO, 5, ["write", "ftruncate"]):
            assert write_all(handler, numbered(2)) == numbered(2)
            log.unlink()
            log.write_text(theirs)
            handler.write(numbered(3))
        assert log.read_text() == theirs + numbered(3)[0]
        (notice,) = handler.take_notices()
        assert ("; 9 bytes that had been written are not in it" in notice) is (theirs == "x")
        handler.close()
        log.unlink()


def test_dead_file_system_is_waited_for(tmp_path: Path) -> None:
    """As long as nothing is mounted, no file is made where its path leads, on SIGHUP (`reopen`) neither."""
    log, texts = tmp_path / "mounted" / "app.log", numbered(1, 2)
    log.parent.mkdir()
    handler = open_log(log)
    mounted = log.parent.rename(tmp_path / "elsewhere")
    log.parent.mkdir()
    with dead(handler.fileno(), errno.ENOTCONN):
        for _ in range(2):
            assert write_all(handler, texts) == texts
            with pytest.raises(FileNotFoundError):
                handler.reopen()
        assert list(log.parent.iterdir()) == []
        log.parent.rmdir()
        mounted.rename(log.parent)
        handler.reopen()
        handler.write(texts)
    assert log.read_text() == "".join(texts)
    handler.close()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN])
def test_file_that_is_gone_is_made_anew(log: Path, number: int) -> None:
    """Where the lock is there and the file is not, it was renamed or removed: on another NFS client, say."""
    handler = open_log(log)
    log.rename(log.parent / "elsewhere")
    with dead(handler.fileno(), number):
        assert write_all(handler, numbered(1), attempts=2) == []
    assert log.read_text() == numbered(1)[0]
    handler.close()


def test_descriptor_that_somebody_has_closed(log: Path, tmp_path: Path) -> None:
    """It is not closed once more: by then, its number is that of another file."""
    handler = open_log(log)
    number = handler.fileno()
    os.close(number)
    assert write_all(handler, numbered(1)) == numbered(1)
    with open(tmp_path / "theirs", "w") as theirs:
        assert theirs.fileno() == number
        handler.write(numbered(1))
        theirs.write("whole")
    assert log.read_text() == numbered(1)[0]
    assert opened_anew(handler)
    handler.close()


class Bound:
    """A directory that bindfs, a FUSE daemon, shows in another place."""

    def __init__(self, place: Path) -> None:
        self.below, self.path = place / "below", place / "bound"
        self.below.mkdir()
        self.path.mkdir()
        self._said = place / "bindfs"
        self.mount()

    def mount(self) -> None:
        """Mount it; skip the test where that is impossible."""
        with self._said.open("ab") as output:
            self._daemon = subprocess.Popen(["bindfs", "-f", self.below, self.path], stdout=output, stderr=output)
        wait_until(lambda: self.path.is_mount() or self._daemon.poll() is not None, "it is mounted")
        if self._daemon.poll() is not None:
            assert list(self.path.iterdir()) == [], "a file was made in its place"
            pytest.skip(f"bindfs cannot mount here: {self._said.read_text()}")

    def kill(self) -> None:
        """Kill the daemon: every call that concerns an open file fails from now on."""
        self._daemon.kill()
        self._daemon.wait()

    def unmount(self) -> None:
        """Unmount it, though it is in use."""
        subprocess.run(["umount", "-l", self.path], check=False)


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Bound]:
    """A file system with a daemon that can be killed."""
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is not installed")
    if os.geteuid():
        pytest.skip("only root can unmount a file system that is in use")
    bound = Bound(tmp_path)
    yield bound
    bound.kill()
    bound.unmount()


def _produce(initializer: Any, directory: str, is_over: Any) -> None:
    """Runs in a worker."""
    initializer()
    producer = Producer(directory)
    while not is_over.wait(0.001):
        producer.log(200)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("options", "is_killed"),
    [({}, False), ({}, True), ({"rotate": "100 kB", "archive": "app.{index}.log", "fsync": "batch"}, False)],
    ids=["alone", "with the logging process", "rotated"],
)
def test_file_system_that_dies_and_is_mounted_anew(
    tmp_path: Path, bound: Bound, options: dict[str, Any], is_killed: bool
) -> None:
    """Each time, the log waits for its file, opens it anew, and says so; nothing is lost, doubled or torn."""
    log, context = bound.path / "app.log", multiprocessing.get_context("fork")
    is_over = context.Event()
    with mplog.LogServer(mplog.FileSink(log, **options), level="INFO", format="%(message)s") as server:
        workers = [
            context.Process(target=_produce, args=(server.initializer, str(tmp_path), is_over)) for _ in range(2)
        ]
        for worker in workers:
            worker.start()
        wait_until(lambda: log.stat().st_size > 5_000, "it is written")
        for _ in range(3):
            bound.kill()
            logging.info("for which flush() waits")
            with pytest.raises(mplog.DrainTimeoutError):
                server.flush(0.2)
            bound.unmount()
            os.kill(server.pid, signal.SIGHUP)
            with pytest.raises(mplog.DrainTimeoutError):
                server.flush(0.5)
            bound.mount()
            if is_killed:
                pid = server.pid
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid: server.pid != pid, "it is restarted")
            server.flush()
        is_over.set()
        for worker in workers:
            worker.join(30)
            assert worker.exitcode == 0
        with pytest.raises(mplog.LogFileLockedError):  # its lock was on the file system that has died
            mplog.LogServer(log).start()
        assert server.stop().failed == {}
    files = [*sorted(bound.below.glob("app.*.log"), key=lambda path: int(path.name.split(".")[1])), log]
    whole = tmp_path / "whole"
    whole.write_bytes(b"".join(path.read_bytes() for path in files))
    found = verdict(whole, tmp_path)
    assert found.clean, found
    assert is_killed or any("has failed, and was opened anew: OSError: [Errno 107]" in line for line in lines(whole))


def test_moved_file_is_looked_for_in_one_file_system(tmp_path: Path, small_disk: Path) -> None:
    """A file is found by its inode in the log's directory, and in those below that are in the same file system."""
    here, below, elsewhere = tmp_path / "here", tmp_path / "old" / "below", small_disk / "elsewhere"
    below.parent.mkdir()
    for path, found in ((here, str(here)), (below, str(below)), (elsewhere, None)):
        path.touch()
        assert regular.find(str(tmp_path), path.stat().st_ino, path.name.__eq__) == found
