"""A hostile neighbour: another user, and planted files (faults 22 and 27)."""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripts import drop_privileges, lines, run_script

import mplog
from mplog.files.open_file import FileOptions
from mplog.handlers.log_file import LogFileHandler
from mplog.queue import fifo
from mplog.queue.sender import Sender
from mplog.worker.state import Layout, LoggingState

pytestmark = pytest.mark.processes

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_nobody(function: Callable[[], object]) -> str:
    """Run a function in a child that is another user; return what it returned or raised, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            said = repr(function())
        except BaseException as error:
            said = type(error).__name__
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def sticky() -> Any:
    """A directory like /tmp: all users may make files there, and remove their own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o1777)
        yield Path(directory)


def serve(log: Path | mplog.Sink) -> None:
    """Write one record."""
    with mplog.LogServer(log, format="%(message)s"):
        logging.warning("x")


# --- another user ---


@needs_root
@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_another_user_cannot_open_the_queue(tmp_path: Path, umask: int) -> None:
    """Whatever the umask, no other user can write, read, list, join or replace the queue."""
    before = os.umask(umask)
    try:
        server = mplog.LogServer(tmp_path / "app.log").start()
    finally:
        os.umask(before)
    with server:
        directory, path = server.queue.directory, server.queue.path
        os.chmod(os.path.dirname(directory), 0o755)  # where it is, others may look
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        attempts: list[Callable[[], object]] = [
            lambda: os.open(path, os.O_WRONLY | os.O_NONBLOCK),
            lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK),
            lambda: os.listdir(directory),
            lambda: os.unlink(path),
            lambda: os.rename(directory, f"{directory}x"),
        ]
        assert [as_nobody(attempt) for attempt in attempts] == ["PermissionError"] * len(attempts)
        assert as_nobody(lambda: mplog.attach(directory)) == "QueueNotFoundError"
        logging.warning("still there")
    assert lines(tmp_path / "app.log")[0].endswith("| still there")


@needs_root
@pytest.mark.parametrize("umask", [0, 0o077])
def test_modes_whatever_the_umask(sticky: Path, umask: int) -> None:
    """The log has its given mode, other users have no access to its lock, and only permitted users can read."""
    before = os.umask(umask)
    try:
        server = mplog.LogServer(mplog.FileSink(sticky / "app.log", mode=0o600)).start()
    finally:
        os.umask(before)
    with server:
        modes = {name: stat.S_IMODE((sticky / name).stat().st_mode) for name in os.listdir(sticky)}
        assert modes == {"app.log": 0o600, ".app.log.lock": 0o600}
        assert as_nobody(lambda: (sticky / "app.log").read_text()) == "PermissionError"
        # A user who can open a lock can hold it, and so keep the next server from starting.
        assert as_nobody(lambda: (sticky / ".app.log.lock").read_text()) == "PermissionError"
        assert as_nobody(lambda: os.unlink(sticky / "app.log").read_text()) == "PermissionError"


# --- what is planted ---


def plant_symlink(path: Path, target: Path) -> None:
    """Plant a symbolic link."""
    path.symlink_to(target)


def plant_hard_link(path: Path, target: Path) -> None:
    """Plant a hard link."""
    path.hardlink_to(target)


def plant_fifo(path: Path, target: Path) -> None:
    """Plant a FIFO."""
    os.mkfifo(path)


def plant_device(path: Path, target: Path) -> None:
    """Plant what looks like the null device."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


PLANTS = [plant_symlink, plant_hard_link, plant_fifo, plant_device]


@pytest.mark.parametrize("name", ["app.log", ".app.log.lock"])
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__[6:])
def test_planted_file_is_refused(sticky: Path, plant: Callable[[Path, Path], None], name: str) -> None:
    """A link, FIFO or device in place of the log or its lock is refused at once, and its target unchanged."""
    target = sticky / "precious"
    target.write_text("precious\n")
    plant(sticky / name, target)
    with pytest.raises(mplog.StartError):
        serve(sticky / "app.log")
    assert target.read_text() == "precious\n"
    (sticky / name).unlink()
    serve(sticky / "app.log")
    assert lines(sticky / "app.log") == ["x"]


def plant_file(path: Path, target: Path) -> None:
    """Plant a file of another user that everybody may write."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of another user")
    path.touch()
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o666)


@pytest.mark.parametrize("name", [".app.log.emergency", ".app.log.emergency.reading"])
@pytest.mark.parametrize("plant", [*PLANTS, plant_file], ids=lambda plant: plant.__name__[6:])
def test_planted_emergency_file_is_refused_and_said(
    sticky: Path, plant: Callable[[Path, Path], None], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server starts all the same; stderr and the log say once why errors may have nowhere to go, and the target is
    unchanged."""
    target = sticky / "precious"
    target.write_text("precious\n")
    plant(sticky / name, target)
    with mplog.LogServer(sticky / "app.log", format="%(message)s", overflow="fallback") as server:
        (said,) = [line for line in capfd.readouterr().err.splitlines() if "mplog" in line]
        for _ in range(3):
            logging.warning("x")
            server.flush()
    assert re.match("mplog: records for which there is no room may be lost: .*Error: .*emergency", said)
    written = lines(sticky / "app.log")
    assert written.count("x") == 3
    (line,) = [line for line in written if "emergency" in line]
    assert line.startswith(f"mplog: 1 attempt to use the emergency file {sticky}/.app.log.emergency failed: ")
    assert target.read_text() == "precious\n"


def test_hard_link_in_a_directory_of_ones_own(tmp_path: Path, log: Path) -> None:
    """A hard link is accepted in a directory where only the user can write, and elsewhere on request."""
    log.write_text("before\n")
    (tmp_path / "backup").hardlink_to(log)
    serve(log)
    tmp_path.chmod(0o777)
    with pytest.raises(mplog.SinkError, match=r"hard link.*follow_symlinks=True"):
        serve(log)
    serve(mplog.FileSink(log, follow_symlinks=True))
    assert lines(tmp_path / "backup") == ["before", "x", "x"]


@needs_root
def test_log_of_another_user_in_a_sticky_directory(sticky: Path) -> None:
    """A log in /tmp that another user has made is refused, unless that user owns the directory."""
    log = sticky / "app.log"
    log.touch()
    os.chown(log, NOBODY, NOBODY)
    with pytest.raises(mplog.SinkError, match=f"uid {NOBODY}"):
        serve(log)
    assert log.read_text() == ""
    os.chown(sticky, NOBODY, NOBODY)
    serve(log)
    assert lines(log) == ["x"]


def test_link_that_comes_between(sticky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link planted between check and opening is not followed, for the log and for its lock."""
    target = sticky / "precious"
    target.write_text("precious\n")
    really = os.open
    log, lock = str(sticky / "app.log"), str(sticky / ".app.log.lock")

    for victim in (log, lock):

        def race(path: Any, flags: int, *rest: Any, victim: str = victim) -> int:
            # Not when it is made: that one finds nothing there, and the next finds the link.
            if path == victim and not flags & os.O_CREAT:
                Path(victim).unlink(missing_ok=True)
                os.symlink(target, victim)
            elif path == victim and victim == log:
                os.symlink(target, victim)
            return really(path, flags, *rest)

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", race)
            with pytest.raises(OSError):
                handler = LogFileHandler(log, FileOptions())
                handler.close()
        assert target.read_text() == "precious\n"
        for path in (log, lock):
            Path(path).unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["symlink", "open", "file"])
def test_planted_directory_for_locks_is_refused(tmp_path: Path, kind: str) -> None:
    """If the log's directory is not writable, its lock is in the user's own directory in /tmp, or nowhere."""
    result = run_script(
        tmp_path,
        f"""
        import logging, os, tempfile
        import mplog
        os.mkdir("logs"); open("logs/app.log", "w").close(); os.chmod("logs", 0o555)
        os.mkdir("temporary"); os.mkdir("elsewhere")
        tempfile.tempdir = os.environ["TMPDIR"] = os.path.abspath("temporary")
        place = f"temporary/mplog.{{os.geteuid()}}.locks"
        if {kind!r} == "symlink":
            os.symlink(os.path.abspath("elsewhere"), place)
        elif {kind!r} == "open":
            os.mkdir(place); os.chmod(place, 0o777)
        else:
            open(place, "w").close()
        try:
            mplog.LogServer("logs/app.log").start()
        except mplog.SinkError as error:
            print("is not of this program's making" in str(error))
        print(os.listdir("elsewhere"), os.listdir("temporary") == [os.path.basename(place)])
        os.rmdir(place) if {kind!r} == "open" else os.unlink(place)
        with mplog.LogServer("logs/app.log", format="%(message)s"):
            logging.warning("x")
        print(open("logs/app.log").read(), os.listdir("temporary"))
        """,
        preexec_fn=drop_privileges,
    )
    assert result.stdout == "True\n[] True\nx\n []\n", result
    assert result.stderr == ""


def test_note_in_a_planted_lock_is_not_shown(sticky: Path) -> None:
    """An error names the owner of a lock, but does not quote text that another user has planted."""
    log = sticky / "app.log"
    with mplog.LogServer(log):
        (sticky / ".app.log.lock").write_text("711 \x1b[2Jnow\n")
        with pytest.raises(mplog.LogFileLockedError, match=r"\(of unknown pid\)"):
            serve(log)


@pytest.mark.parametrize("plant", [plant_symlink, plant_hard_link], ids=["symlink", "hard link"])
def test_queue_that_another_user_has_made_again(tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    """A worker does not write into a file in the place of its queue."""
    directory = tmp_path / "mplog-abc"
    directory.mkdir()
    target = tmp_path / "precious"
    target.write_text("precious\n")
    plant(directory / "queue", target)
    with pytest.raises(mplog.QueueNotFoundError):
        mplog.LogQueue.open(str(directory))
    with pytest.raises(OSError):
        fifo.open_reader(str(directory / "queue"))
    sender = Sender(str(directory))
    with pytest.raises(OSError):
        sender.put("x")
    sender.close_end()
    assert target.read_text() == "precious\n"


@needs_root
def test_queue_of_another_user_is_not_used(tmp_path: Path) -> None:
    """A FIFO of another user, who could read the records, is refused as a queue, even by root."""
    path = str(tmp_path / "queue")
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.close(fifo.open_writer(path))
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="not a queue of this user"):
        fifo.open_writer(path)
    with pytest.raises(mplog.QueueNotFoundError):
        mplog.attach(tmp_path)
    os.close(reading)


class Evil:
    """What another user would have us unpickle."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def exchange_for_ever(one: Path, other: Path) -> None:
    """Runs in a process of another user: exchange two names, without an instant in which one is missing."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, rename_exchange = -100, 2
    while libc.renameat2(at_cwd, bytes(one), at_cwd, bytes(other), rename_exchange) == 0:
        pass


@needs_root
@pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged by renameat2")
def test_directory_that_is_exchanged_while_a_program_joins(log: Path) -> None:
    """Another user exchanges a directory of their own and a link to a running queue, all the time, in the place of a
    queue that has gone. A program that joins there runs no code of theirs, and takes over no level."""
    with tempfile.TemporaryDirectory(dir="/tmp") as theirs, mplog.LogServer(log) as server:
        place, made, link, stale = Path(theirs), Path(theirs, "made"), Path(theirs, "link"), Path(theirs, "mplog-stale")
        os.chmod(place, 0o755)
        stale.mkdir()
        os.chmod(stale, 0o777)
        os.mkfifo(stale / "queue", 0o666)
        layout = Layout(filters={"": pickle.dumps([Evil(made)])})
        LoggingState.capture(layout).save(server.queue.directory)
        shutil.move(os.path.join(server.queue.directory, "logging"), stale / "logging")
        link.symlink_to(server.queue.directory)
        for path in (place, stale, stale / "queue", stale / "logging", link):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        user = os.fork()
        if user == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            exchange_for_ever(link, stale)
            os._exit(0)
        try:
            before = logging.getLogger().level
            seen = Counter[bool]()
            deadline = time.monotonic() + 60
            while min(seen[False], seen[True]) < 100 and time.monotonic() < deadline:
                with pytest.raises(mplog.QueueNotFoundError):
                    mplog.attach(stale)
                seen[stale.is_symlink()] += 1
            assert not made.exists()
            assert logging.getLogger().level == before
        finally:
            os.kill(user, signal.SIGKILL)
            os.waitpid(user, 0)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_directory_in_which_others_can_write_is_refused(server: mplog.LogServer, mode: int) -> None:
    """Nobody joins by a directory in which other users could put anything."""
    directory = server.queue.directory
    os.chmod(directory, mode)
    with pytest.raises(mplog.QueueNotFoundError, match="not a directory of this user alone"):
        mplog.LogQueue.open(f"{directory}/.")
    os.chmod(directory, 0o700)
    mplog.LogQueue.open(f"{directory}/.").close()
