"""An idle server never wakes up (the promise of an idle logging process)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracle import wait_until
from readers import in_fork

import mplog

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc counts context switches"),
]

#: Longer than the longest that it looks ahead while there is unfinished business.
SECONDS = 2.0


def switches(pid: int) -> dict[str, int]:
    """Return the context switches of each thread of a process that were its own wish (proc_pid_status(5))."""
    found = {}
    for status in Path("/proc", str(pid), "task").glob("*/status"):
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        found[f"{fields['Name'].strip()} {status.parent.name}"] = int(fields["voluntary_ctxt_switches"])
    return found


def settle(pids: list[int]) -> None:
    """Wait until what follows the last record (a nap, a last look) is over."""
    seen: list[list[dict[str, int]]] = []

    def is_quiet() -> bool:
        seen.append([switches(pid) for pid in pids])
        time.sleep(1.2)  # more than the second after which it looks once more
        return len(seen) > 1 and seen[-1] == seen[-2]

    wait_until(is_quiet, "it has done what follows a record")


def assert_idle(pids: list[int]) -> None:
    """Assert that none of them wakes up for some seconds."""
    settle(pids)
    before = [switches(pid) for pid in pids]
    time.sleep(SECONDS)  # what is to be seen is that nothing happens
    assert [switches(pid) for pid in pids] == before


def log_and_wait(initializer: Any, ready: Any, go: Any) -> None:
    """Runs in a worker: log, and live on."""
    initializer()
    logging.info("from a worker")
    ready.set()
    go.wait(60)


def test_an_idle_server_never_wakes_up(tmp_path: Path) -> None:
    """Neither a thread of the logging process nor its supervisor, with workers that live, some that have ended, and
    losses told; after a restart as well."""
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    sink = mplog.FileSink(tmp_path / "app.log", rotate="1 MB")
    with mplog.LogServer(sink, level="INFO") as server:
        worker = context.Process(target=log_and_wait, args=(server.initializer, ready, go))
        worker.start()
        try:
            assert ready.wait(60)
            for _ in range(3):
                in_fork(server.queue.losses.count, logging.INFO, mplog.Reason.QUEUE_FULL, "w")
            logging.info("here")
            server.flush()
            assert_idle([server.pid, psutil.Process(server.pid).ppid()])
            killed = server.pid
            os.kill(killed, 9)
            wait_until(lambda: server.pid != killed, "it is restarted")
            logging.info("on")
            server.flush()
            assert_idle([server.pid, psutil.Process(server.pid).ppid()])
        finally:
            go.set()
            worker.join(60)


def test_an_idle_server_of_a_plain_queue_never_wakes_up(tmp_path: Path) -> None:
    """Nor does the logging process that reads a queue of the standard library."""
    queue = multiprocessing.get_context("fork").Queue()
    with mplog.LogServer(tmp_path / "app.log", level="INFO", queue=queue) as server:
        logging.info("here")
        server.flush()
        assert_idle([server.pid])
