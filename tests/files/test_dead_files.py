"""Descriptors that are dead for good: of a FUSE daemon that was killed, or that NFS no longer knows (fault 36)."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import Producer, verdict, wait_until
from scripts import lines

import mplog

pytestmark = pytest.mark.processes


class Bound:
    """A directory that bindfs, a FUSE daemon, shows in another place."""

    def __init__(self, place: Path) -> None:
        self.below = place / "below"
        self.path = place / "bound"
        self.below.mkdir()
        self.path.mkdir()
        self._log = place / "bindfs"
        self.mount()

    def mount(self) -> None:
        """Mount it; skip the test where that is impossible."""
        with self._log.open("ab") as output:
            self._daemon = subprocess.Popen(["bindfs", "-f", self.below, self.path], stdout=output, stderr=output)
        wait_until(lambda: self.path.is_mount() or self._daemon.poll() is not None, "it is mounted")
        if self._daemon.poll() is not None:
            pytest.skip(f"bindfs cannot mount here: {self._log.read_text()}")

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


@pytest.mark.parametrize("is_killed", [False, True], ids=["", "with the logging process"])
def test_file_system_that_dies_and_is_mounted_anew(tmp_path: Path, bound: Bound, is_killed: bool) -> None:
    """Each time, the log waits for its file, opens it anew and says so; nothing is lost, doubled, torn or hidden."""
    log, context = bound.path / "app.log", multiprocessing.get_context("fork")
    is_over = context.Event()
    with mplog.LogServer(log, level="INFO", format="%(message)s") as server:
        workers = [
            context.Process(target=_produce, args=(server.initializer, str(tmp_path), is_over)) for _ in range(2)
        ]
        for worker in workers:
            worker.start()
        for _ in range(4):
            wait_until(lambda: log.stat().st_size > 5_000, "it is written")
            bound.kill()
            with pytest.raises(mplog.DrainTimeoutError):
                server.flush(0.2)
            bound.unmount()
            with pytest.raises(mplog.DrainTimeoutError):
                server.flush(0.3)
            bound.mount()
            if is_killed:
                pid = server.pid
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid: server.pid != pid, "it is restarted")
            server.flush()
        is_over.set()
        for worker in workers:
            worker.join(30)
    found = verdict(log, tmp_path)
    assert found.clean, found
    assert is_killed or any("has failed, and was opened anew: OSError: [Errno 107]" in line for line in lines(log))
    bound.unmount()
    assert list(bound.path.iterdir()) == [], "no file was made in place of the one below"
