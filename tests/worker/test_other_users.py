"""Workers of another user, root directory or PID namespace than their server: fault 39."""

from __future__ import annotations

import grp
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from oracle import wait_until
from scripts import FORMAT, environment, lines, stop_all_threads

import mplog
from mplog.queue.directory import workers_path

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

NOBODY = 65534

#: A group that nobody else here is in.
GROUP = 54321


def give_root_up() -> None:
    """Become another user, in one other group."""
    os.setgroups([])
    os.setgid(GROUP)
    os.setuid(NOBODY)


def leave_root_directory() -> None:
    """Have another root directory: an empty one."""
    os.chroot("/proc/self/fdinfo")
    os.chdir("/")


class Worker:
    """A forked worker, which goes on step by step."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        theirs, self._go = os.pipe()
        self._done, done = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._go)
                for step in steps:
                    os.read(theirs, 1)
                    step()
                    os.write(done, b"1")
            finally:
                os._exit(0)
        os.close(theirs)
        os.close(done)

    def step(self) -> None:
        """Have it take its next step."""
        os.write(self._go, b"1")
        assert os.read(self._done, 1) == b"1", "the worker has ended"

    def end(self) -> None:
        """Wait for its end."""
        os.close(self._go)
        os.close(self._done)
        os.waitpid(self.pid, 0)


def started(log: Path, policy: str, group: int | None = None) -> mplog.LogServer:
    """Return a running server that another user can get at, if it is let in."""
    server = mplog.LogServer(
        log, level="INFO", format=FORMAT, overflow=policy, sync_level="CRITICAL", group=group
    ).start()
    os.chmod(os.path.dirname(server.queue.directory), 0o755)
    return server


def fill() -> None:
    """Log more than the queue holds, and errors."""
    for number in range(1000):
        logging.info("info %d %s", number, "x" * 2000)
    for number in range(2):
        logging.error("error %d %s", number, "x" * 3000)


def go_on() -> None:
    """Log while there is room, and through to the disk."""
    logging.info("there is room")
    logging.critical("through")


@pytest.fixture(params=["before", "after"])
def order(request: pytest.FixtureRequest) -> Callable[..., list[Callable[[], object]]]:
    """Whether a worker changes before it calls the initializer, or after that."""

    def order(change: Callable[[], object], initializer: Callable[[], object]) -> list[Callable[[], object]]:
        return [change, initializer] if request.param == "before" else [initializer, change]

    order.changes_first = request.param == "before"  # type: ignore[attr-defined]
    return order


@pytest.mark.parametrize("policy", ["drop_newest", "fallback"])
@pytest.mark.parametrize("change", [give_root_up, leave_root_directory])
def test_what_a_worker_of_another_user_loses_is_counted(
    log: Path, order: Callable[..., list[Callable[[], object]]], change: Callable[[], object], policy: str
) -> None:
    """Its records arrive, or are counted; what cannot work is said when it starts."""
    server = started(log, policy)
    worker = Worker(*order(change, server.initializer), fill, go_on)
    with server:
        worker.step()
        worker.step()
        stop_all_threads(server.pid)
        worker.step()
        os.kill(server.pid, signal.SIGCONT)
        server.flush()
        worker.step()
        worker.end()
        stats = server.stop()
    texts = [line.partition("| ")[2] for line in lines(log) if f" {worker.pid} " in line.partition(" | ")[0]]
    said = [text for text in texts if "cannot make files" in text]
    assert len(said) == order.changes_first  # type: ignore[attr-defined]
    (lost,) = stats.lost
    assert lost.pid == worker.pid
    assert lost.lost + len(texts) - len(said) == 1004
    assert lost.lost > 100
    assert {"there is room", "through"} < set(texts)
    # Only a group lets it wait for the disk.
    assert lost.by_reason()[mplog.Reason.UNSYNCED] == 1
    assert stats.unexplained == {}


@pytest.mark.parametrize("policy", ["drop_newest", "fallback"])
def test_a_worker_in_the_group_does_what_others_do(
    log: Path, order: Callable[..., list[Callable[[], object]]], policy: str
) -> None:
    """It waits for the disk, heeds new levels, opens the queue anew, and its losses are counted where others' are."""
    server = started(log, policy, GROUP)

    def open_anew() -> None:
        (handler,) = logging.getLogger().handlers
        os.close(handler.queue.sender.write_fd)  # type: ignore[attr-defined]
        logging.warning("opened anew")

    def notice() -> None:
        logging.warning("noticed")
        logging.info("too low by now")

    steps = [fill, go_on, open_anew, notice]
    worker = Worker(*order(give_root_up, server.initializer), *steps)
    with server:
        worker.step()
        worker.step()
        stop_all_threads(server.pid)
        worker.step()
        files = os.listdir(workers_path(server.queue.directory))
        os.kill(server.pid, signal.SIGCONT)
        server.flush()
        worker.step()
        worker.step()
        server.set_level("", "WARNING")
        worker.step()
        worker.end()
        stats = server.stop()
    texts = [line.partition("| ")[2] for line in lines(log) if f" {worker.pid} " in line.partition(" | ")[0]]
    assert [name for name in files if name.startswith(f"losses-{worker.pid}-")]
    said = [text for text in texts if "cannot write into the emergency file" in text]
    assert len(said) == order.changes_first  # type: ignore[attr-defined]
    (lost,) = stats.lost
    assert mplog.Reason.UNSYNCED not in lost.by_reason()
    assert lost.lost + len(texts) - len(said) == 1006
    assert texts[-4:] == ["there is room", "through", "opened anew", "noticed"]


def test_only_the_group_gets_at_the_queue(log: Path) -> None:
    """Its members can write into the queue, and read and replace nothing of the server; other users can do nothing."""
    server = started(log, "block", GROUP)
    directory, fifo = server.queue.directory, server.queue.path
    found: list[str] = []

    def attempts() -> None:
        """Try all, and say what could be done."""
        possible: dict[str, Callable[[], object]] = {
            "write": lambda: os.open(fifo, os.O_WRONLY | os.O_NONBLOCK),
            "read": lambda: os.open(fifo, os.O_RDONLY | os.O_NONBLOCK),
            "list": lambda: os.listdir(directory),
            "list the workers": lambda: os.listdir(workers_path(directory)),
            "make": lambda: os.close(os.open(os.path.join(directory, "levels.new"), os.O_CREAT | os.O_WRONLY)),
            "unlink": lambda: os.unlink(fifo),
            "replace": lambda: os.rename(os.path.join(directory, "workers"), os.path.join(directory, "x")),
            "attach": lambda: mplog.attach(directory),
            "statistics": lambda: os.open(os.path.join(directory, "statistics"), os.O_RDONLY),
        }
        for name, attempt in possible.items():
            try:
                attempt()
                print(name, file=output, flush=True)
            except OSError:
                pass

    with server:
        for group in (GROUP, GROUP + 1):
            with open(log.with_suffix(".attempts"), "w") as output:

                def become(group: int = group) -> None:
                    os.setgroups([])
                    os.setgid(group)
                    os.setuid(NOBODY)

                worker = Worker(become, attempts)
                worker.step()
                worker.step()
                worker.end()
            found.append(log.with_suffix(".attempts").read_text())
        assert found == ["write\nattach\n", ""]
        assert stat.S_IMODE(os.stat(fifo).st_mode) == 0o620


def test_what_the_group_can_do_once_files_are_removed(log: Path) -> None:
    """Without the files, its members join all the same. Without the FIFO, those that have joined log on and heed new
    levels, others cannot join any more, and the log says so."""
    server = started(log, "block", GROUP)
    directory = server.queue.directory

    def join() -> None:
        mplog.attach(directory)
        logging.info("joined")

    def heed() -> None:
        logging.warning("noticed")
        logging.info("too low by now")

    def fail() -> None:
        with pytest.raises(mplog.QueueNotFoundError, match="start its server anew"):
            mplog.attach(directory)

    early = Worker(give_root_up, join, lambda: logging.info("on"), heed)
    late, too_late = Worker(give_root_up, join), Worker(give_root_up, fail)
    with server:
        early.step()
        early.step()
        server.set_level("", "INFO")
        for name in ("logging", "levels", "level-changes", "server"):
            os.unlink(os.path.join(directory, name))
        wait_until(lambda: "another program has removed" in log.read_text(), "the log says so")
        assert "cannot join" not in log.read_text()
        late.step()
        late.step()
        os.unlink(server.queue.path)
        wait_until(lambda: "removed queue" in log.read_text(), "the log says so")
        assert "Other workers of the group cannot join until the server is restarted" in log.read_text()
        too_late.step()
        too_late.step()
        early.step()
        shutil.rmtree(directory)
        wait_until(lambda: "removed the directory" in log.read_text(), "the log says so")
        assert log.read_text().count("cannot join") == 2
        server.set_level("", "WARNING")
        early.step()
        for worker in (early, late, too_late):
            worker.end()
    texts = [line.partition("| ")[2] for line in lines(log)]
    assert sorted(text for text in texts if not text.startswith("mplog:")) == ["joined", "joined", "noticed", "on"]


def test_a_group_is_named_or_numbered(log: Path) -> None:
    """A name that is no group is refused at once, and so is a group for a queue that the program has made."""
    group = grp.getgrgid(0)
    with mplog.LogServer(log, group=group.gr_name) as server:
        assert os.stat(server.queue.path).st_gid == 0
    with pytest.raises(ValueError, match="no group 'nowhere'"):
        mplog.LogServer(log, group="nowhere")
    with pytest.raises(ValueError, match="group is for the queue"):
        mplog.LogServer(log, group=0, queue=mplog.LogQueue())


IN_NAMESPACE = """
import logging, os, sys, mplog
mplog.attach()
for number in range(1000):
    logging.info("info %d %s", number, "x" * 2000)
print(os.getpid())
"""


def test_a_worker_in_another_pid_namespace(log: Path, tmp_path: Path) -> None:
    """Its records arrive, and what it loses is counted, though its pid means nothing to the server."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-pf", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs unshare, and the right to make a PID namespace")
    server = started(log, "drop_newest")
    with server:
        stop_all_threads(server.pid)
        done = subprocess.run(
            [unshare, "-pf", sys.executable, "-c", IN_NAMESPACE],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        os.kill(server.pid, signal.SIGCONT)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "1\n")
        server.flush()
        stats = server.stop()
    arrived = [line for line in lines(log) if "| info " in line]
    (lost,) = stats.lost
    assert (lost.pid, lost.lost + len(arrived)) == (1, 1000)
    assert any("records dropped by" in line for line in lines(log))
