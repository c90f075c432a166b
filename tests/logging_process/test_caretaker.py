"""Other programs remove or replace what is in the directory of the queue, and the lock of the log (fault 34)."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import psutil
import pytest
from oracle import wait_until
from readers import in_fork

import mplog
from mplog.logging_process import messages
from mplog.logging_process.caretaker import Caretaker
from mplog.queue.directory import open_file, read_file
from mplog.queue.fifo import open_writer
from mplog.queue.shared_file import write_file

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="descriptors are found by /proc"),
]

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")


@pytest.fixture(autouse=True)
def sigio() -> Iterator[None]:
    """Put the handler of SIGIO back, which a caretaker sets in its process."""
    before = signal.getsignal(signal.SIGIO)
    yield
    signal.signal(signal.SIGIO, before)


# --- what removes it ---


def whole(directory: str) -> None:
    """Remove all of it."""
    shutil.rmtree(directory)


def old_files(directory: str) -> None:
    """Remove what cleaners take for old: files, and not the FIFO."""
    for name in os.listdir(directory):
        if name != "queue":
            os.unlink(os.path.join(directory, name))


def fifo(directory: str) -> None:
    """Remove the FIFO."""
    os.unlink(os.path.join(directory, "queue"))


def replaced_fifo(directory: str) -> None:
    """Put another FIFO in the place of the FIFO."""
    os.mkfifo(os.path.join(directory, "other"), 0o600)
    os.replace(os.path.join(directory, "other"), os.path.join(directory, "queue"))


def replaced_directory(directory: str) -> None:
    """Put another directory in the place of the directory."""
    shutil.rmtree(directory)
    os.mkdir(directory, 0o700)


def moved(directory: str) -> None:
    """Give the directory another name."""
    os.rename(directory, f"{directory}.moved")


REMOVALS = [whole, old_files, fifo, replaced_fifo, replaced_directory]
by_each = pytest.mark.parametrize("remove", REMOVALS, ids=lambda remove: remove.__name__)


def says(log: Path, text: str) -> Callable[[], bool]:
    """Return a function that tells whether the log has a line with this text."""
    return lambda: text in log.read_text()


def wait_until_kept(server: mplog.LogServer) -> None:
    """Wait until the supervisor has seen the files that a start makes last, which is some 20 ms later."""
    descriptors = Path(f"/proc/{psutil.Process(server.pid).ppid()}/fd")

    def are_kept() -> bool:
        links = set()
        for each in descriptors.iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.add(os.readlink(each))
        return all(os.path.join(server.queue.directory, name) in links for name in ("logging", "server"))

    wait_until(are_kept, "the supervisor keeps the files")


def log_often(initializer: Any, rounds: Any) -> None:
    """Runs in a worker: log a round whenever the test says so, and say when it is done."""
    initializer()
    logging.info("old worker")
    rounds.send(None)
    while (number := rounds.recv()) is not None:
        logging.info("round %d", number)
        logging.debug("debug of round %d", number)
        rounds.send(number)


ATTACHED = "import logging, mplog; mplog.attach(); logging.info('attached'); logging.debug('debug of attached')"


@by_each
def test_queue_can_be_used_whatever_is_removed(tmp_path: Path, log: Path, remove: Callable[[str], None]) -> None:
    """Old and new workers log, levels reach them, counts stay, a killed logging process is replaced, and the log says
    once what has happened."""
    import multiprocessing

    forked, spawned = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
    ours, theirs = forked.Pipe()
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        directory = server.queue.directory
        worker = forked.Process(target=log_often, args=(server.initializer, theirs))
        worker.start()
        try:
            assert ours.poll(60)
            ours.recv()
            logging.info("before")
            server.flush()
            wait_until(lambda: server.stats().received == 2, "both are counted")
            wait_until_kept(server)
            remove(directory)
            wait_until(says(log, "another program has removed"), "the log says so")
            server.set_level("", "DEBUG")
            for number in (1, 2):
                ours.send(number)
                assert ours.poll(60)
                ours.recv()
            child = spawned.Process(target=server.initializer.then(logging.info, "spawned"))
            child.start()
            child.join(60)
            assert child.exitcode == 0
            assert jobs.run_python(["-c", ATTACHED]).stderr == ""
            server.flush()
            counted = server.stats().received
            killed = server.pid
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: server.pid != killed, "it is replaced")
            logging.info("after")
            server.flush()
            assert server.stats().received == counted + 1
            assert server.stats().unexplained == {}
            in_fork(logging.info, "forked")
        finally:
            ours.send(None)
            worker.join(60)
    assert not os.path.exists(directory)
    said = log.read_text().splitlines()
    about = [line for line in said if "another program has removed" in line]
    assert len(about) == 1
    assert directory in about[0]
    # The level reaches a worker with the first record that it sends.
    expected = ["old worker", "before", "round 1", "debug of round 1", "round 2", "debug of round 2"]
    expected += ["spawned", "attached", "debug of attached", "after", "forked"]
    assert sorted(line for line in said if not line.startswith("mplog:")) == sorted(expected)


def test_directory_that_is_moved_is_moved_back(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What processes have in it, such as their losses, is found again, and nothing stays under the other name."""
    monkeypatch.setattr(messages, "LOOK_SECONDS", 0.2)
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        directory = server.queue.directory
        logging.info("before")
        server.queue.losses.count(logging.INFO, mplog.Reason.QUEUE_FULL, "w")
        server.flush()
        before = sorted(os.listdir(directory))
        moved(directory)
        wait_until(says(log, "another program has removed"), "the log says so")
        assert sorted(os.listdir(directory)) == before
        assert not [name for name in before if os.path.islink(os.path.join(directory, name))]
        assert not os.path.exists(f"{directory}.moved")
        server.queue.losses.count(logging.INFO, mplog.Reason.QUEUE_FULL, "w")
        assert jobs.run_python(["-c", ATTACHED]).stderr == ""
        assert server.stop().received == 2
    said = log.read_text()
    assert "attached" in said
    assert sum(int(count) for count in re.findall("([0-9]+) records? dropped", said)) == 2


def test_directory_is_removed_before_the_supervisor_is_there(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server starts, programs join it, and levels reach them."""
    from mplog.server import started

    start = started.Control

    def remove_and_start(launch: messages.Launch, timeout: float) -> Any:
        shutil.rmtree(str(launch.directory))
        return start(launch, timeout)

    monkeypatch.setattr(started, "Control", remove_and_start)
    overflow = mplog.Overflow.drop_below("WARNING", at=0.8)
    with mplog.LogServer(log, level="INFO", format="%(message)s", overflow=overflow) as server:
        logging.info("here")
        server.set_level("", "DEBUG")
        assert jobs.run_python(["-c", ATTACHED]).stderr == ""
        found = {"queue", "fill", "level-changes", "levels", "logging", "server"}
        assert found <= set(os.listdir(server.queue.directory))
    said = [line for line in log.read_text().splitlines() if not line.startswith("mplog:")]
    assert said == ["here", "attached", "debug of attached"]


@needs_root
def test_logging_goes_on_where_another_user_has_the_name(log: Path) -> None:
    """Where another user has made a directory of that name, nothing of it is used, a killed logging process is replaced
    all the same, the log says so once, and the directory is made again when the name is free."""
    overflow = mplog.Overflow.drop_below("WARNING", at=0.8)
    with mplog.LogServer(log, level="INFO", format="%(message)s", overflow=overflow) as server:
        directory = server.queue.directory
        logging.info("before")
        server.flush()
        wait_until_kept(server)
        theirs = f"{directory}.theirs"
        os.mkdir(theirs, 0o777)
        Path(theirs, "undelivered-0-1").touch()
        os.chown(theirs, NOBODY, NOBODY)
        shutil.rmtree(directory)
        os.rename(theirs, directory)
        wait_until(says(log, "it cannot be made again"), "the log says so")
        assert "not a directory of this user alone" in log.read_text()
        killed = server.pid
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: server.pid != killed, "it is replaced")
        logging.info("after")
        server.flush()
        assert os.listdir(directory) == ["undelivered-0-1"]
        with pytest.raises(mplog.QueueNotFoundError, match="not a directory of this user alone"):
            mplog.LogQueue.open(directory + "/.")
        shutil.rmtree(directory)
        os.kill(server.pid, signal.SIGKILL)  # at a restart, it is tried at once
        wait_until(says(log, "is there again"), "the log says so")
        assert jobs.run_python(["-c", ATTACHED]).stderr == ""
    said = log.read_text().splitlines()
    assert [line for line in said if not line.startswith("mplog:")] == ["before", "after", "attached"]
    assert sum("it cannot be made again" in line for line in said) == 1
    assert not os.path.exists(directory)


# --- cleaners ---


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="there is no systemd-tmpfiles")
def test_systemd_tmpfiles_leaves_a_queue_alone(tmp_path: Path) -> None:
    """systemd-tmpfiles removes what is old in a directory for temporary files, but nothing of a server that runs."""
    place = tmp_path / "temporary"
    place.mkdir()
    os.chmod(place, 0o1777)
    program = f"""
import logging, os, subprocess, sys, time
import mplog
with mplog.LogServer("app.log", level="INFO") as server:
    os.mkdir("temporary/mplog-other"); open("temporary/mplog-other/file", "w").close()
    before = sorted(os.listdir(server.queue.directory))
    assert os.path.dirname(server.queue.directory) == {str(place)!r}
    wait = time.monotonic() + 2.5
    while time.monotonic() < wait:
        time.sleep(0.1)
    subprocess.run(["systemd-tmpfiles", "--clean", os.path.abspath("clean.conf")], check=True)
    print(sorted(os.listdir(server.queue.directory)) == before, os.path.exists("temporary/mplog-other/file"))
"""
    (tmp_path / "clean.conf").write_text(f"q {place} 1777 root root 1s\n")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**jobs.environment(), "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "True False\n", done.stderr


def is_young(path: str) -> bool:
    """Whether a file would be spared by a cleaner of files that are older than a day."""
    try:
        return time.time() - os.lstat(path).st_mtime < 86400
    except FileNotFoundError:  # replaced at this moment
        return False


def make_old(path: str) -> None:
    """Make a file 15 days old."""
    os.utime(path, (time.time() - 15 * 86400,) * 2, follow_symlinks=False)


def test_files_stay_young(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody logs for weeks, and no file of an idle server, its lock included, looks old to a cleaner."""
    monkeypatch.setattr(messages, "LOOK_SECONDS", 0.2)
    with mplog.LogServer(log) as server:
        directory = server.queue.directory
        lock = str(log.parent / f".{log.name}.lock")
        everything = [directory, lock, *(os.path.join(directory, name) for name in os.listdir(directory))]
        for path in everything:
            make_old(path)
        wait_until(lambda: all(map(is_young, everything)), "all are young again")
        assert log.read_text() == ""


# --- notices of the kernel, and none ---


def test_what_is_removed_just_after_it_was_made_is_made_again() -> None:
    """A start makes many files one directly after the other, and each is kept as soon as the kernel tells of it."""
    queue = mplog.LogQueue()
    caretaker = Caretaker(queue.directory, queue.reader.read_fd, 3600.0)
    for name in ("level-changes", "server", "logging", "levels"):
        path = Path(queue.directory, name)
        path.with_suffix(".new").write_text(name)
        caretaker.work()
        path.with_suffix(".new").rename(path)
        caretaker.work()
        path.unlink()
        wait_until(lambda: [caretaker.work(), caretaker.unsaid][1], f"{name} is made again")
        assert path.read_text() == name
        assert name in caretaker.unsaid.pop()
    caretaker.rest()
    queue.close()
    queue.remove()


def test_moved_directory_is_noticed_within_a_minute() -> None:
    """The kernel does not tell of it, so there is a look once a minute, whatever changes, and however seldom."""
    queue = mplog.LogQueue()
    caretaker = Caretaker(queue.directory, queue.reader.read_fd, 3600.0)
    timeout = caretaker.timeout()
    assert timeout is not None
    assert 59_000 < timeout <= 60_000
    caretaker.rest()
    queue.close()
    queue.remove()


def test_moved_directory_whose_name_is_taken() -> None:
    """The files that have a name in the moved directory get one in the other directory, too."""
    queue = mplog.LogQueue()
    directory = queue.directory
    Path(directory, "logging").write_text("levels")
    caretaker = Caretaker(directory, queue.reader.read_fd, 0.05)
    moved(directory)
    os.mkdir(directory, 0o700)
    Path(directory, "taken").touch()
    wait_until(lambda: [caretaker.work(), caretaker.unsaid][1], "it is noticed")
    assert sorted(os.listdir(directory)) == ["logging", "queue", "taken"]
    mplog.LogQueue.open(directory).put("here")
    assert queue.get(timeout=10) == "here"
    shutil.rmtree(f"{directory}.moved")
    caretaker.rest()
    queue.close()
    queue.remove()


@pytest.mark.parametrize("remove", [*REMOVALS, moved], ids=lambda remove: remove.__name__)
def test_what_is_gone_is_noticed_without_notices(
    remove: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the kernel does not tell of changes, a look now and then finds what is gone."""
    monkeypatch.setattr("mplog.logging_process.caretaker.fcntl.F_NOTIFY", -1)
    queue = mplog.LogQueue()
    directory = queue.directory
    Path(directory, "logging").write_text("levels")
    caretaker = Caretaker(directory, queue.reader.read_fd, 0.05)
    remove(directory)
    wait_until(lambda: [caretaker.work(), caretaker.unsaid][1], "it is noticed")
    assert Path(directory, "logging").read_text() == "levels"
    mplog.LogQueue.open(directory).put("through the link")
    assert queue.get(timeout=10) == "through the link"
    assert caretaker.timeout() is not None
    caretaker.rest()
    assert caretaker.timeout() is None
    queue.close()
    queue.remove()


def test_supervisor_is_idle_while_nothing_changes(log: Path) -> None:
    """A caretaker that has made something again does not go on looking at what it has made."""
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        supervisor = psutil.Process(server.pid).ppid()
        logging.info("before")
        server.flush()
        shutil.rmtree(server.queue.directory)
        wait_until(says(log, "is there again"), "the log says so")

        def switches() -> str:
            status = Path(f"/proc/{supervisor}/status").read_text()
            return next(line for line in status.splitlines() if line.startswith("voluntary"))

        seen: list[str] = []

        def is_quiet() -> bool:
            seen.append(switches())
            time.sleep(1.0)
            return switches() == seen[-1]

        wait_until(is_quiet, "it is idle")


# --- links that outlive their supervisor ---


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that puts a link to a descriptor of this process, as another one with its pid has left it, in the
    place of what workers open."""
    directory = tmp_path / "queue"
    directory.mkdir(mode=0o700)

    def link(fd: int) -> Path:
        path = directory / "queue"
        path.symlink_to(f"/proc/{os.getpid()}/fd/{fd}")
        return path

    return link


def test_link_to_a_file_of_this_user_is_refused(tmp_path: Path, linked: Callable[[int], Path]) -> None:
    """It is neither read nor written nor emptied, and what is removed is."""
    other = tmp_path / "other"
    other.write_text("theirs")
    with other.open("r+") as file:
        path = str(linked(file.fileno()))
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC):
            with pytest.raises(PermissionError, match="not removed from here"):
                open_file(path, flags)
        with pytest.raises(PermissionError):
            write_file(path, b"ours")
        assert other.read_text() == "theirs"
        other.unlink()
        write_file(path, b"ours")
        assert read_file(path) == b"oursrs"


@needs_root
def test_link_to_a_file_of_another_user_is_refused(tmp_path: Path, linked: Callable[[int], Path]) -> None:
    """Even if nothing else has its name any more."""
    with tempfile.TemporaryFile() as file:
        os.fchown(file.fileno(), NOBODY, NOBODY)
        with pytest.raises(PermissionError, match="not removed from here"):
            read_file(str(linked(file.fileno())))


def test_link_to_a_pipe_is_refused(linked: Callable[[int], Path]) -> None:
    """No frame goes into a pipe of another program of this user."""
    reading, writing = os.pipe()
    path = str(linked(writing))
    for attempt in (lambda: open_writer(path), lambda: open_file(path, os.O_WRONLY), lambda: read_file(path)):
        with pytest.raises(PermissionError, match="not removed from here"):
            attempt()
    with pytest.raises(mplog.QueueNotFoundError, match="not removed from here"):
        mplog.LogQueue.open(os.path.dirname(path))
    os.close(reading)
    os.close(writing)
    with pytest.raises(FileNotFoundError):
        read_file(path)


def test_link_to_a_fifo_without_a_reader_is_not_waited_for(tmp_path: Path, linked: Callable[[int], Path]) -> None:
    """The process that has it open may never read it."""
    os.mkfifo(tmp_path / "other", 0o600)
    fd = os.open(tmp_path / "other", os.O_PATH)
    with pytest.raises(OSError, match="No such device"):
        write_file(str(linked(fd)), b"ours")
    os.close(fd)


# --- the lock of the log ---


def test_lock_that_is_removed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second server is refused at once, the log says that its lock is gone, and the lock is made again."""
    monkeypatch.setattr(messages, "LOOK_SECONDS", 3600.0)
    lock = log.parent / f".{log.name}.lock"
    with mplog.LogServer(log, level="INFO", format="%(message)s"):
        lock.unlink()
        with pytest.raises(mplog.LogFileLockedError, match="already written by another logging process"):
            mplog.LogServer(log).start()
        assert not lock.exists()
    monkeypatch.setattr(messages, "LOOK_SECONDS", 0.2)
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        lock.unlink()
        wait_until(says(log, "another program has removed the lock file"), "the log says so")
        with pytest.raises(mplog.LogFileLockedError, match=f"pid {server.pid}, since"):
            mplog.LogServer(log).start()
        logging.info("here")
    assert not lock.exists()
    assert log.read_text().splitlines()[1:] == ["here"]


def test_lock_that_is_removed_after_a_rotation(log: Path) -> None:
    """The new file of a log is marked, too; and a server that has ended leaves no mark."""
    sink = mplog.FileSink(log, rotate="1 kB", format="%(message)s")
    with mplog.LogServer(sink, level="INFO") as server:
        for number in range(100):
            logging.info("%0100d", number)
        server.flush()
        (log.parent / f".{log.name}.lock").unlink()
        with pytest.raises(mplog.LogFileLockedError):
            mplog.LogServer(log).start()
    with mplog.LogServer(log):
        pass


def test_program_that_locks_the_log_itself_does_not_disturb(log: Path) -> None:
    """A log that flock(1) holds, as some scripts do, is written all the same; and they get it while it is written."""
    import fcntl

    log.touch()
    with open(log) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with mplog.LogServer(log, level="INFO", format="%(message)s"):
            logging.info("here")
        fcntl.flock(file, fcntl.LOCK_UN)
        with mplog.LogServer(log, level="INFO", format="%(message)s"):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1000)
    assert log.read_text() == "here\n"
