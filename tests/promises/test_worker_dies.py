"""A worker's death loses nothing and harms no other process (promise 2): faults 1, 2, 3 and 29."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
from floods import flood_until_killed
from oracle import Counter, Producer, acknowledged, verdict, wait_until

import mplog


def longest_call(directory: Path) -> float:
    """Return the longest time that a call has taken in any worker, in seconds."""
    names = [path.name.removeprefix("count-") for path in directory.glob("count-slowest-*")]
    assert names
    return max(Counter(directory, name).value for name in names) / 1000


def kill_at_random(context: Any, server: mplog.LogServer, directory: Path, kills: int, how: str) -> None:
    """Keep 4 workers logging flat out, and kill one every 0 to 20 ms."""
    dice = random.Random(kills)
    workers: list[Any] = []
    numbers = itertools.count(1)
    for _ in range(kills):
        while len(workers) < 4:
            name = f"w{next(numbers)}"
            args = (server.initializer, str(directory), name, 20_000)
            workers.append(context.Process(target=flood_until_killed, args=args, daemon=True, name=name))
            workers[-1].start()
        victim = workers.pop(dice.randrange(len(workers)))
        wait_until(functools.partial(acknowledged, directory, victim.name), f"{victim.name} logs")
        time.sleep(dice.uniform(0, 0.02))  # the random moment, not a wait for anything
        getattr(victim, how)()
        victim.join(10)
        assert victim.exitcode == (-signal.SIGKILL if how == "kill" else -signal.SIGTERM)
    # The survivors go on: no killed worker holds anything that they need.
    for worker in workers:
        before = acknowledged(directory, worker.name)
        wait_until(lambda worker=worker, before=before: acknowledged(directory, worker.name) > before, "it logs on")
    for worker in workers:
        worker.kill()
        worker.join(10)


#: By start method: a worker that is not forked takes its time to start, while the others log flat out.
KILLS = {"fork": 15, "spawn": 3, "forkserver": 3}


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_worker_killed_loses_nothing(
    stdlib_context: Any, server: mplog.LogServer, log: Path, tmp_path: Path, how: str
) -> None:
    """Workers killed while they log flat out lose and tear no acknowledged record, and hold up no other worker."""
    kills = KILLS[stdlib_context.get_start_method()]
    kill_at_random(stdlib_context, server, tmp_path, kills, how)
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert result.acknowledged > kills
    # A second, and what a busy machine adds; what a dead process holds would never be released.
    assert longest_call(tmp_path) < 5


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_thousand_killed_workers_lose_nothing(
    stdlib_context: Any, server: mplog.LogServer, log: Path, tmp_path: Path
) -> None:
    """The same with 1,000 kills."""
    kill_at_random(stdlib_context, server, tmp_path, 1000, "kill")
    server.stop()
    result = verdict(log, tmp_path)
    stall = longest_call(tmp_path)
    print(f"{result.written} records written, {result.acknowledged} acknowledged, no call took over {stall} seconds")
    assert result.clean, result
    assert stall < 1


# --- pools that end ---

RECORDS = 2000


def pool_of(kind: str, context: Any, server: mplog.LogServer, **options: Any) -> Any:
    """Return a Pool: the library's with our initializer, or ours."""
    if kind == "plain":
        return context.Pool(2, initializer=server.initializer, **options)
    return mplog.Pool(2, context=context, server=server, **options)


@pytest.mark.parametrize("kind", ["plain", "mplog"])
def test_leaving_a_pool_loses_nothing(
    context: Any, server: mplog.LogServer, log: Path, tmp_path: Path, kind: str
) -> None:
    """The end of `with Pool` terminates its workers: all that they had logged is there, and the next pool logs."""
    for _ in range(2):
        with pool_of(kind, context, server) as pool:
            pool.map(functools.partial(jobs.log_lines, str(tmp_path), 1), range(RECORDS))
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert result.written == result.acknowledged == 2 * RECORDS


@pytest.mark.parametrize(("start_method", "tasks"), [("fork", 40), ("forkserver", 8)])
def test_workers_of_one_task_lose_nothing(
    start_method: str, tasks: int, server: mplog.LogServer, log: Path, tmp_path: Path
) -> None:
    """With maxtasksperchild=1, each worker logs in its one task and ends: all is there, and the next pool logs."""
    context = multiprocessing.get_context(start_method)
    with pool_of("plain", context, server, maxtasksperchild=1) as pool:
        pool.map(functools.partial(jobs.log_lines, str(tmp_path), RECORDS // tasks), range(tasks), chunksize=1)
    with pool_of("mplog", context, server, maxtasksperchild=1) as pool:
        pool.map(functools.partial(jobs.log_lines, str(tmp_path), 1), range(5), chunksize=1)
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert result.written == result.acknowledged == RECORDS + 5


# --- every way to end ---


def test_a_record_just_before_the_end_is_there(
    context: Any, server: mplog.LogServer, log: Path, tmp_path: Path
) -> None:
    """However a worker ends, its last record is in the log, and the others go on logging."""
    processes = {
        way: context.Process(target=jobs.log_and_end, args=(server.initializer, str(tmp_path), way))
        for way in jobs.ENDS
    }
    for process in processes.values():
        process.start()
    for process in processes.values():
        process.join(60)
    assert {way: process.exitcode for way, process in processes.items()} == jobs.ENDS
    Producer(tmp_path, "parent").log()
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert result.written == len(jobs.ENDS) + 1
