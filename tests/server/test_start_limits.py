"""Starts under limits of the system: on the size of files, on system calls, on permissions, and on names."""

from __future__ import annotations

import os
import platform
import resource
import tempfile
from pathlib import Path

import pytest
from jobs import messages_in
from scripts import drop_privileges, environment, lines, run_script

import mplog
from mplog.files import lock as file_lock

START = """
    import logging, multiprocessing, os, signal, sys, mplog
    from mplog.monitoring.find_servers import find_servers
    from oracle import wait_until

    def work():
        logging.getLogger("worker").warning("two")

    if __name__ == "__main__":
        multiprocessing.set_start_method("fork")  # a forkserver of the stdlib's has other limits
        log, overflow, size = sys.argv[1:]
        with mplog.LogServer(log, level="INFO", overflow=overflow, buffer_size=int(size)) as server:
            logging.info("one")
            worker = mplog.Process(target=work, server=server)
            worker.start()
            worker.join()
            server.set_level("worker", "ERROR")
            pid = server.pid
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: server.pid != pid, "it is restarted")
            logging.info("three")
            (found,) = find_servers().servers
            assert found.look().buffers is not None
    """

MESSAGES = ["one", "two", "three"]


@pytest.mark.processes
def test_a_limit_on_files_that_the_memory_does_not_fit_is_said(tmp_path: Path, log: Path) -> None:
    """The hard limit on the size of files holds for memory, too: the error says so, and smaller buffers start."""
    limit = 20 * 2**20

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = run_script(tmp_path, START, log, "block", 8 * 2**20, preexec_fn=limit_files)
    assert done.returncode == 1
    assert (
        "mplog.errors.StartError: there is no memory for the buffers: they take 33,570,816 bytes, and no file of "
        in (done.stderr)
    )
    assert "(RLIMIT_FSIZE, ulimit -f)" in done.stderr
    assert "Raise that limit, or give LogServer a smaller buffer_size" in done.stderr
    done = run_script(tmp_path, START, log, "block", 2 * 2**20, preexec_fn=limit_files)
    assert done.returncode == 0, done.stderr
    assert [line for line in messages_in(log) if not line.startswith("mplog:")] == MESSAGES


# memfd_create(2) returns EPERM, as in a container with a seccomp profile that does not know it.
REFUSE = """
    import ctypes, os, platform, struct
    load, equal, answer, allow, refuse = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050001
    number = {"x86_64": 319, "aarch64": 279}[platform.machine()]
    steps = (load, 0, 0, 0), (equal, 0, 1, number), (answer, 0, 0, refuse), (answer, 0, 0, allow)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    rules = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == libc.prctl(22, 2, rules, 0, 0) == 0
    try:
        os.memfd_create("x")
    except PermissionError:
        pass
    else:
        raise AssertionError("it is not refused")
    """


@pytest.mark.processes
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the number of the call is not known")
def test_without_memfd_create_a_file_does(tmp_path: Path, log: Path) -> None:
    """Where a seccomp filter refuses memfd_create(2), a server starts, survives a kill, and is found from outside."""
    done = run_script(tmp_path, REFUSE + START, log, "block", 2 * 2**20)
    assert done.returncode == 0, done.stderr
    assert [line for line in messages_in(log) if not line.startswith("mplog:")] == MESSAGES
    assert not list(Path("/dev/shm").glob("mplog-buffers-*"))


@pytest.mark.processes
@pytest.mark.parametrize("overflow", ["block", "drop_below", "fallback"])
def test_a_umask_that_takes_the_owner_s_own_directories(tmp_path: Path, overflow: str) -> None:
    """The directories that mplog makes can be used whatever the umask is: that of the queue, and that of locks."""
    place = tmp_path / "logs"
    place.mkdir()
    log = place / "app.log"
    log.touch()
    place.chmod(0o500)  # so that the lock is elsewhere
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = run_script(
        tmp_path,
        START,
        log,
        overflow,
        2 * 2**20,
        env=environment(TMPDIR=str(temporary)),
        umask=0o177,
        preexec_fn=drop_privileges,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in messages_in(log) if not line.startswith("mplog:")] == MESSAGES
    assert os.listdir(temporary) == []


@pytest.mark.processes
def test_a_name_that_has_no_room_for_others_is_refused(tmp_path: Path) -> None:
    """A log whose lock, emergency file or rotated files would have too long names is refused before anything starts."""
    most = os.pathconf(tmp_path, "PC_NAME_MAX") - 21
    for name in ("x" * (most + 1), "x" * 250, "\u00e4" * 125 + ".log", "x" * 300):
        for sinks in ({"config": _handler_of(tmp_path / name)}, {}):
            server = mplog.LogServer(*([] if sinks else [tmp_path / name]), **sinks)
            with pytest.raises(
                mplog.StartError, match=rf"its name has {len(name.encode())} bytes, and may have {most}: "
            ):
                server.start()
    assert list(tmp_path.iterdir()) == []
    log = tmp_path / ("x" * most)
    with mplog.LogServer(log, format="%(message)s"):
        mplog.getLogger().warning("x")
    assert lines(log) == ["x"]


def _handler_of(path: Path) -> dict[str, object]:
    handler = {"class": "logging.handlers.TimedRotatingFileHandler", "filename": str(path)}
    return {"version": 1, "handlers": {"file": handler}, "root": {"handlers": ["file"]}}


def _lock_directory() -> str:
    return os.path.join(tempfile.gettempdir(), f"mplog.{os.geteuid()}.locks")


def test_a_lock_elsewhere_has_a_name_for_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of a log in a directory that may not be written is found by the path, however long that is."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    paths = [tmp_path.joinpath(*["directory"] * depth) for depth in (1, 40)]
    places = []
    for directory in paths:
        directory.mkdir(parents=True)
        before = set(os.listdir(_lock_directory())) if os.path.isdir(_lock_directory()) else set()
        lock = file_lock.LogLock(str(directory / "app.log"))
        places += set(os.listdir(_lock_directory())) - before
        assert file_lock.taken_at(str(directory / "app.log")) is not None
        lock.release()
    assert places[0].endswith("%directory%.app.log.lock")
    assert len(places[1]) == 64
