"""How long one logging call takes, at a steady pace, and how long a lone record is on its way into the file.

The rule of this file: **each call starts at its time, however long the one before took**, as far as possible: a program
that logs 5,000 times a second has 200 microseconds for each call, and is late after a longer one.
"""

from __future__ import annotations

import array
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import isolated
from benchmarks.contender import Contender
from benchmarks.contenders import BASE
from benchmarks.throughput import Progress, identity, interleaved, once
from benchmarks.workload import make

__all__ = ["compare", "lone", "measure_lone", "paced"]

CALLS_PER_SECOND = 5_000
STALL_SECONDS = 0.1
_WORKERS = 2
_PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}


def compare(names: Sequence[str], rounds: int, seconds: float, progress: Progress) -> dict[str, Any]:
    """Measure calls of 2 workers at a steady pace, with a file that never blocks, and with one that does."""
    names = list(dict.fromkeys([BASE.__name__, *names]))
    tables = {}
    for title, stall in (("steady", 0.0), ("blocked", STALL_SECONDS)):

        def measure(name: str, title: str = title, stall: float = stall) -> dict[str, Any]:
            progress(f"one call, {title}: {identity(name)['title']}")
            return isolated.run("latency:paced", timeout=60 + 3 * seconds, contender=name, seconds=seconds, stall=stall)

        done = interleaved(names, rounds, measure)
        tables[title] = {name: {**identity(name), **_summary(name, done)} for name in names}
    return {"rounds": rounds, "calls_per_second": CALLS_PER_SECOND, "stall": STALL_SECONDS, "tables": tables}


def _summary(name: str, done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    good = [outcomes for outcomes in done if "error" not in outcomes[name]]
    if not good:
        return {"error": done[0][name]["error"]}
    summary: dict[str, Any] = {"calls": sum(outcomes[name]["calls"] for outcomes in good)}
    for key in _PERCENTILES:
        summary[key] = statistics.median(outcomes[name][key] for outcomes in good)
        ratios = [
            outcomes[name][key] / outcomes[BASE.__name__][key]
            for outcomes in good
            if "error" not in outcomes[BASE.__name__]
        ]
        if ratios:
            summary[f"{key}_ratio"] = statistics.median(ratios)
    return summary


def paced(contender: str, seconds: float, stall: float, directory: str) -> dict[str, Any]:
    """Return percentiles in microseconds. Runs in a process of its own."""
    logging_by = make(contender, directory, stall=stall)
    if stall and not logging_by.can_stall:
        raise NotImplementedError("its file cannot be made to block")
    results = Path(directory).parent / "latencies"
    results.mkdir()
    logging_by.start()
    go = multiprocessing.Event()
    workers = [
        multiprocessing.Process(target=_call, args=(logging_by, seconds, str(results), go), daemon=True)
        for _ in range(_WORKERS)
    ]
    for worker in workers:
        worker.start()
    go.set()
    for worker in workers:
        worker.join()
    logging_by.drain()
    logging_by.close()
    taken = array.array("q")
    for path in results.iterdir():
        taken.frombytes(path.read_bytes())
    ordered = sorted(taken)
    return {"calls": len(ordered), **{name: _percentile(ordered, share) for name, share in _PERCENTILES.items()}}


def _percentile(ordered: Sequence[int], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] / 1000


def _call(contender: Contender, seconds: float, results: str, go: Any) -> None:
    """Runs in a worker."""
    info, template = contender.worker(), contender.template
    taken = array.array("q")
    go.wait()
    info(template, 0, "the first call opens things")
    period = 1_000_000_000 // CALLS_PER_SECOND
    clock = time.perf_counter_ns
    due = clock()
    for number in range(int(seconds * CALLS_PER_SECOND)):
        due += period
        early = due - clock()
        if early > 0:
            time.sleep(early / 1e9)
        start = clock()
        info(template, number, "xxxxxxxxxxxxxxxxxxxxxxxxxxx")
        taken.append(clock() - start)
    contender.leave()
    Path(results, str(os.getpid())).write_bytes(taken.tobytes())


def lone(names: Sequence[str], records: int, progress: Progress) -> dict[str, Any]:
    """Measure how long a single record takes into the file."""
    rows = once(names, "a lone record", progress, "latency:measure_lone", timeout=60 + records, records=records)
    return {"records": records, "rows": rows}


def measure_lone(contender: str, records: int, directory: str) -> dict[str, Any]:
    """Return milliseconds from the call until the record is in the file. Runs in a process of its own."""
    logging_by = make(contender, directory)
    logging_by.start()
    worker = multiprocessing.Process(target=_log_alone, args=(logging_by, records, taken := _shared(records)))
    worker.start()
    worker.join()
    logging_by.drain()
    logging_by.close()
    if worker.exitcode:
        raise RuntimeError(f"the worker ended with status {worker.exitcode}")
    ordered = sorted(taken)
    return {"median_ms": statistics.median(ordered) * 1e3, "max_ms": ordered[-1] * 1e3}


def _shared(count: int) -> Any:
    return multiprocessing.RawArray("d", count)


def _log_alone(contender: Contender, records: int, taken: Any) -> None:
    """Runs in the worker."""
    info, template = contender.worker(), contender.template
    path = contender.path
    for number in range(records):
        time.sleep(0.03)
        before = os.path.getsize(path) if os.path.exists(path) else 0
        start = time.perf_counter()
        info(template, number, "xxxxxxxxxxxxxxxxxxxxxxxxxxx")
        while not os.path.exists(path) or os.path.getsize(path) == before:
            if time.perf_counter() - start > 10:
                raise TimeoutError("a record was not in the file after 10 seconds")
        taken[number] = time.perf_counter() - start
    contender.leave()
