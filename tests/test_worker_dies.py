"""A worker's death loses nothing and harms nobody (promise 2): faults 1, 2, 3 and 29."""

from __future__ import annotations

import functools
import itertools
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from oracle import Producer, acknowledged, verdict, wait_until

import mplog


def flood(server: Any, directory: str, name: str, largest: int) -> None:
    """Runs in a worker: log until killed."""
    server()
    producer = Producer(directory, name)
    sizes = random.Random(name)
    while True:
        producer.log(round(100 * (largest / 100) ** sizes.random()))


def kill_at_random(context: Any, server: mplog.LogServer, directory: Path, kills: int, how: str) -> None:
    """Keep 4 workers logging flat out, and kill one every 0 to 20 ms."""
    dice = random.Random(kills)
    workers: list[Any] = []
    numbers = itertools.count(1)
    for _ in range(kills):
        while len(workers) < 4:
            name = f"w{next(numbers)}"
            args = (server.initializer, str(directory), name, 20_000)
            workers.append(context.Process(target=flood, args=args, daemon=True, name=name))
            workers[-1].start()
        victim = workers.pop(dice.randrange(len(workers)))
        wait_until(functools.partial(acknowledged, directory, victim.name), f"{victim.name} logs")
        time.sleep(dice.uniform(0, 0.02))  # the random moment, not a wait for anything
        getattr(victim, how)()
        victim.join(10)
        assert victim.exitcode == (-signal.SIGKILL if how == "kill" else -signal.SIGTERM)
    for worker in workers:
        worker.kill()
        worker.join(10)


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_worker_killed_loses_nothing(
    stdlib_context: Any, server: mplog.LogServer, log: Path, tmp_path: Path, how: str
) -> None:
    """50 workers killed while they log flat out lose no acknowledged record, tear none, and stop nobody else."""
    kill_at_random(stdlib_context, server, tmp_path, 50, how)
    server.stop()
    result = verdict(log, tmp_path)
    assert result.clean, result
    assert result.acknowledged > 50


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_thousand_killed_workers_lose_nothing(
    stdlib_context: Any, server: mplog.LogServer, log: Path, tmp_path: Path
) -> None:
    """The same with 1,000 kills."""
    kill_at_random(stdlib_context, server, tmp_path, 1000, "kill")
    server.stop()
    result = verdict(log, tmp_path)
    print(f"{result.written} records written, {result.acknowledged} acknowledged")
    assert result.clean, result
