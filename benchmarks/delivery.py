"""What each contender delivers under trouble: pools that are left, workers that are killed, a slow disk.

The rule of this file: **a record counts as logged when its logging call has returned**. Each worker counts in shared
memory, which survives the worker (the last record of a killed worker may be written and not counted). A record counts
as delivered if it is whole in the files at the end. A contender that hangs is stopped, and its row says so.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import isolated
from benchmarks.contender import Contender
from benchmarks.throughput import Progress, identity
from benchmarks.workload import Load, make

__all__ = ["SCENARIOS", "compare", "full", "killed", "pool", "spawn"]

_TIMEOUT = 60.0

_PAYLOAD = Load(1, 1).payload
_LONG_PAYLOAD = "x" * 20_000


def compare(names: Sequence[str], scale: float, patience: float, progress: Progress) -> dict[str, Any]:
    """Run all scenarios on all contenders.

    Args:
        names: of the contenders.
        scale: how much is logged: 1 for the usual amounts.
        patience: seconds that a process may take before it counts as hung.
        progress: told what is being done.
    """
    rows: dict[str, Any] = {name: {**identity(name), "scenarios": {}} for name in names}
    for scenario in SCENARIOS:
        for name in names:
            progress(f"delivery, {scenario}: {identity(name)['title']}")
            rows[name]["scenarios"][scenario] = isolated.run(
                f"delivery:{scenario}", timeout=_TIMEOUT, contender=name, scale=scale, patience=patience
            )
    return {"scenarios": SCENARIOS, "rows": rows}


def _result(contender: Contender, logged: int, payload: str, patience: float, **more: Any) -> dict[str, Any]:
    """Wait until everything is written, and count."""
    drained = _call_with_limit(contender.drain, patience)
    if drained:
        _call_with_limit(contender.close, patience)
    outcome: dict[str, Any] = {"logged": logged, "delivered": contender.delivered(payload), **more}
    return outcome if drained else {**outcome, "trouble": f"{more.get('trouble', '')}; its writer hung".lstrip("; ")}


class _TooLongError(Exception):
    """The alarm went off."""


def _on_alarm(*_: object) -> None:
    raise _TooLongError


def _call_with_limit(function: Callable[[], object], patience: float) -> bool:
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, patience)
    try:
        function()
    except _TooLongError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return True


# --- leaving a Pool ---

_info: Callable[..., object]
_contender: Contender


def pool(contender: str, scale: float, patience: float, directory: str) -> dict[str, Any]:
    """Leave ``with Pool(2)`` when all tasks are done. Runs in a process of its own."""
    logging_by = make(contender, directory)
    logging_by.start()
    records, tasks = max(10, int(500 * scale)), 20
    with multiprocessing.Pool(2, initializer=_initialize, initargs=(logging_by,)) as workers:
        workers.map(functools.partial(_task, records), range(tasks), chunksize=1)
    return _result(logging_by, records * tasks, _PAYLOAD, patience)


def _initialize(contender: Contender) -> None:
    """Runs in a worker of the pool."""
    global _info, _contender
    _contender, _info = contender, contender.worker()


def _task(records: int, task: int) -> None:
    """Runs in a worker of the pool."""
    for number in range(records):
        _log(_info, _contender, task * records + number, _PAYLOAD)


def _log(info: Callable[..., object], contender: Contender, number: int, payload: str) -> None:
    if contender.template is None:
        info(f"record {number} {payload}")
    else:
        info(contender.template, number, payload)


# --- killing workers ---


def killed(contender: str, scale: float, patience: float, directory: str) -> dict[str, Any]:
    """Kill one worker after the other while they log long records; one worker goes on. Runs in a process of its own."""
    logging_by = make(contender, directory)
    logging_by.start()
    kills = max(2, int(20 * scale))
    counts = multiprocessing.RawArray("q", kills + 1)
    end = multiprocessing.Event()
    survivor = multiprocessing.Process(target=_log_on, args=(logging_by, counts, kills, end), daemon=True)
    survivor.start()
    dice = random.Random(1)
    for index in range(kills):
        victim = multiprocessing.Process(target=_log_on, args=(logging_by, counts, index, None), daemon=True)
        victim.start()
        logs = _wait(lambda index=index: counts[index] > 20, patience)  # type: ignore[misc]
        time.sleep(dice.uniform(0, 0.02))
        victim.kill()
        victim.join()
        if not logs:
            break
    before = counts[kills]
    goes_on = _wait(lambda: counts[kills] > before + 20, patience)
    end.set()
    survivor.join(patience)
    hung = survivor.is_alive() or not goes_on
    survivor.kill()
    survivor.join()
    trouble = {"trouble": f"after {index + 1} kills, the others hung"} if hung else {}
    return _result(logging_by, sum(counts), _LONG_PAYLOAD, patience, **trouble)


def _log_on(contender: Contender, counts: Any, index: int, end: Any) -> None:
    """Runs in a worker: log as fast as possible until killed; or, at a modest pace, until told to stop."""
    info = contender.worker()
    while end is None or not end.is_set():
        _log(info, contender, counts[index], _LONG_PAYLOAD)
        counts[index] += 1
        if end is not None:
            time.sleep(0.002)
    contender.leave()


def _wait(condition: Callable[[], object], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# --- a writer that stands still ---


def full(contender: str, scale: float, patience: float, directory: str) -> dict[str, Any]:
    """Log while the process that writes stands still, as on a slow disk. Runs in a process of its own."""
    logging_by = make(contender, directory)
    logging_by.start()
    writer = logging_by.writer()
    if writer is None:
        raise NotImplementedError("no queue: each process writes by itself")
    records = max(100, int(15_000 * scale))
    go = multiprocessing.Event()
    counts = multiprocessing.RawArray("q", 2)
    workers = [
        multiprocessing.Process(target=_flood, args=(logging_by, counts, index, records, go), daemon=True)
        for index in range(2)
    ]
    # From another process: this one may be the one that stands still.
    stopper = multiprocessing.Process(target=_hold, args=(writer, go, 1.5 * min(1.0, scale)), daemon=True)
    for process in [*workers, stopper]:
        process.start()
    for process in [*workers, stopper]:
        process.join(patience)
    hung = any(worker.is_alive() for worker in workers)
    for worker in workers:
        worker.kill()
        worker.join()
    return _result(logging_by, sum(counts), _PAYLOAD, patience, **({"trouble": "a worker hung"} if hung else {}))


def _hold(writer: int, go: Any, seconds: float) -> None:
    """Runs in a process of its own."""
    os.kill(writer, signal.SIGSTOP)
    go.set()
    time.sleep(seconds)
    os.kill(writer, signal.SIGCONT)


def _flood(contender: Contender, counts: Any, index: int, records: int, go: Any) -> None:
    """Runs in a worker."""
    info = contender.worker()
    go.wait()
    for number in range(records):
        _log(info, contender, number, _PAYLOAD)
        counts[index] += 1
    contender.leave()


# --- spawn ---


def spawn(contender: str, scale: float, patience: float, directory: str) -> dict[str, Any]:
    """Log from workers that are spawned. Runs in a process of its own."""
    logging_by = make(contender, directory, "spawn")
    logging_by.start()
    records = max(10, int(1_000 * scale))
    workers = [multiprocessing.Process(target=_log_some, args=(logging_by, records), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(patience)
        if worker.exitcode != 0:
            raise RuntimeError("a spawned worker hung" if worker.exitcode is None else "a spawned worker failed")
    return _result(logging_by, 2 * records, _PAYLOAD, patience)


def _log_some(contender: Contender, records: int) -> None:
    """Runs in a worker."""
    info = contender.worker()
    for number in range(records):
        _log(info, contender, number, _PAYLOAD)
    contender.leave()


#: The scenarios, as heads of columns.
SCENARIOS = {
    "pool": "left ``with Pool``",
    "killed": "killed workers",
    "full": "writer held up",
    "spawn": "spawn",
}
