"""The logging process stands still for a while, and goes on (promise 5; fault 6)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from oracle import Counter, wait_until
from readers import flood, running
from scripts import lines, stop_all_threads

import mplog

pytestmark = pytest.mark.processes

_WORKERS = 2
#: By policy: how many calls there are at least while it stands still, more than find room in the last page of a full
#: FIFO. With ``drop_below`` errors wait for room, and each worker comes to one soon, maybe before it is looked at.
_CALLS = {"block": 0, "drop_newest": 1000, "drop_oldest": 1000, "drop_below": 0, "fallback": 1000}
#: Bytes that a process may grow by.
_GROWTH = 20 * 2**20


def _memory(pids: list[int]) -> list[int]:
    return [psutil.Process(pid).memory_info().rss for pid in pids]


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        *((each, 0.2) for each in _CALLS),
        *(pytest.param(each, 10.0, marks=[pytest.mark.long, pytest.mark.timeout(300)]) for each in _CALLS),
    ],
)
def test_stopped_logging_process_keeps_the_policy(tmp_path: Path, policy: str, seconds: float) -> None:
    """Meanwhile, workers wait or go on, by policy, in constant memory; afterwards all records are there or counted."""
    log, stop = tmp_path / "app.log", tmp_path / "stop"
    overflow = mplog.Overflow.of(policy).with_emergency_file(tmp_path / "emergency")
    with mplog.LogServer(log, level="INFO", format="%(message)s", overflow=overflow) as server:
        context, names = multiprocessing.get_context("fork"), [f"w{number}" for number in range(_WORKERS)]
        workers = [
            context.Process(target=flood, args=(server.initializer, str(tmp_path), name, str(stop))) for name in names
        ]
        calls = [Counter(tmp_path, name) for name in names]
        with running(workers):
            wait_until(lambda: all(each.value > 100 for each in calls), "everybody logs")
            pid = server.pid
            stop_all_threads(pid)
            wait_until(server.queue.full, "the queue is full")
            pids = [pid, *(worker.pid for worker in workers)]
            memory, before = _memory(pids), sum(each.value for each in calls)
            wait_until(lambda: sum(each.value for each in calls) >= before + _CALLS[policy], "workers go on")
            time.sleep(seconds)  # for which it stands still
            meanwhile = sum(each.value for each in calls) - before
            assert [more for was, more in zip(memory, _memory(pids)) if more > was + _GROWTH] == []
            os.kill(pid, signal.SIGCONT)
            stop.touch()
            for worker in workers:
                worker.join(60)
                assert worker.exitcode == 0
        server.flush(60)
        assert server.pid == pid
        assert _memory([pid])[0] < memory[0] + 5 * _GROWTH, "the buffers, and a batch of what was kept elsewhere"
        stats = server.stop(60)
    written: dict[str, list[int]] = {name: [] for name in names}
    for line in lines(log):
        if not line.startswith("mplog:"):
            name, number = line.split()
            written[name].append(int(number))
    for numbers in written.values():
        assert len(set(numbers)) == len(numbers)
        # What was kept in the emergency file, as errors are, does not come in the order of what had room.
        in_order = [] if policy == "fallback" else [number for number in numbers if number % 1000]
        assert in_order == sorted(in_order)
    assert sum(map(len, written.values())) + stats.dropped == sum(each.value for each in calls)
    if policy == "block":
        assert stats.dropped == 0
        assert meanwhile < 100, "everybody waits"
    else:
        assert (stats.dropped == 0) == (policy == "fallback") or seconds > 5, "64 MiB may be full after some seconds"
