"""A sink that does not return for long (fault 23)."""

from __future__ import annotations

import logging
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
from oracle import wait_until
from scripts import lines

import mplog

pytestmark = pytest.mark.processes


class _Blocking(logging.FileHandler):
    """Does not return from its first record until there is a file of that name."""

    def __init__(self, path: Path, gate: Path) -> None:
        super().__init__(path)
        self.gate = gate

    def emit(self, record: logging.LogRecord) -> None:
        """Do it."""
        while not self.gate.exists():
            time.sleep(0.01)
        super().emit(record)


def _log(initializer: Any, count: int) -> None:
    """Runs in a worker."""
    initializer()
    for number in range(count):
        logging.info("%d", number)


#: More than the queue has room for; fewer than may wait for a function.
COUNT, WAITING = 20_000, 2000


def _log_in_a_worker(server: mplog.LogServer, count: int) -> None:
    worker = multiprocessing.get_context("fork").Process(target=_log, args=(server.initializer, count))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0, "the worker does not wait"


_SECONDS = pytest.mark.parametrize(
    "seconds", [0.0, pytest.param(60.0, marks=[pytest.mark.long, pytest.mark.timeout(200)], id="a minute")]
)


@_SECONDS
def test_function_that_blocks_holds_up_nobody_else(tmp_path: Path, seconds: float) -> None:
    """While it does not return, workers log, and the file is written; nobody is taken for dead; then it gets all."""
    log, gate, function = tmp_path / "app.log", str(tmp_path / "gate"), tmp_path / "function.log"
    name, expected = str(function), [str(number) for number in range(WAITING)]

    def wait(batch: list[Any]) -> None:
        import os
        import time

        while not os.path.exists(gate):
            time.sleep(0.01)
        with open(name, "a") as file:
            file.writelines(f"{each.getMessage()}\n" for each in batch)

    with mplog.LogServer(mplog.CallableSink(wait), log, level="INFO", format="%(message)s") as server:
        _log_in_a_worker(server, WAITING)
        wait_until(lambda: log.exists() and lines(log) == expected, "the file is written")
        time.sleep(seconds)  # for which it blocks
        assert not function.exists()
        pid = server.pid
        Path(gate).touch()
        server.flush()
        assert server.pid == pid
        stats = server.stop()
    assert lines(function) == expected == lines(log)
    assert (stats.received, stats.restarts, stats.failed) == (WAITING, 0, {})


@_SECONDS
def test_handler_that_blocks_holds_up_no_worker(tmp_path: Path, seconds: float) -> None:
    """While it does not return, workers log, and a flush() ends in time; nobody is taken for dead; then all sinks get
    everything."""
    log, slow, gate = tmp_path / "app.log", tmp_path / "slow.log", tmp_path / "gate"
    sinks = mplog.HandlerSink(lambda: _Blocking(slow, gate)), log
    with mplog.LogServer(*sinks, level="INFO", format="%(message)s") as server:
        pid = server.pid
        _log_in_a_worker(server, COUNT)
        time.sleep(seconds)  # for which it blocks
        with pytest.raises(mplog.DrainTimeoutError):
            server.flush(0.1)
        assert server.stats().received < COUNT
        gate.touch()
        server.flush()
        assert server.pid == pid
        stats = server.stop()
    assert (stats.received, stats.restarts, stats.failed) == (COUNT, 0, {})
    assert lines(log) == lines(slow) == [str(number) for number in range(COUNT)]
