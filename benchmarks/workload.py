"""Workers that log as fast as they can, from a common start until everything is in the files.

The rule of this file: **the clock stops when the last record is delivered, and the CPU time is that of all processes**:
of the workers from the start until their last record is sent, of the parent, and of the processes that write.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.contender import Contender
from benchmarks.contenders import by_name

__all__ = ["Load", "Outcome", "cpu_seconds", "make", "measure", "run_load"]

#: The length of the beginning of a message: "record 12345 ".
_PREFIX_SIZE = 13


@dataclass(frozen=True)
class Load:
    """The load: how many processes log how much.

    Attributes:
        workers: how many processes log.
        records: how many records each of them logs.
        size: bytes of a message, about.
    """

    workers: int
    records: int
    size: int = 40

    @property
    def payload(self) -> str:
        """The message without its number."""
        return "x" * max(1, self.size - _PREFIX_SIZE)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a load.

    Attributes:
        seconds: from the start until everything was delivered.
        cpu: seconds, of all processes.
        writer_cpu: those of the processes that do nothing but write, of the above.
        logged: how many records were logged.
        expected: how many of them should be in files.
        delivered: how many of those are there, whole; counted when everything is closed.
    """

    seconds: float
    cpu: float
    writer_cpu: float
    logged: int
    expected: int
    delivered: int = 0


def make(name: str, directory: str, start_method: str = "fork", stall: float = 0.0) -> Contender:
    """Return the contender of that name, in a process of its own."""
    multiprocessing.set_start_method(start_method, force=True)
    kind = by_name(name)
    kind.version()  # says that a package is missing before it is missed somewhere below
    return kind(directory, start_method, stall)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of another process so far, all of its threads, to the nanosecond."""
    # clock_getcpuclockid(3): the clock of a process is made of its pid. time.clock_gettime() takes it.
    return time.clock_gettime((~pid << 3) | 2)


def measure(contender: str, workers: int, records: int, size: int, directory: str) -> dict[str, Any]:
    """Run a load on a contender of its own."""
    logging_by, load = make(contender, directory), Load(workers, records, size)
    logging_by.start()
    try:
        outcome = run_load(logging_by, load)
    finally:
        logging_by.close()
    delivered = logging_by.delivered(load.payload) if logging_by.has_file else 0
    return asdict(replace(outcome, delivered=delivered))


def run_load(contender: Contender, load: Load, *, drain: bool = True) -> Outcome:
    """Run a load on a contender that has been started.

    Args:
        contender: what logs.
        load: how much.
        drain: wait until everything is delivered. Some contenders cannot log afterwards.
    """
    ready, go = multiprocessing.Semaphore(0), multiprocessing.Event()
    spent = multiprocessing.RawArray("d", load.workers)
    processes = [
        multiprocessing.Process(target=_work, args=(contender, load, index, ready, go, spent), daemon=True)
        for index in range(load.workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        while not ready.acquire(timeout=1):
            if process.exitcode:
                raise RuntimeError(f"a worker ended with status {process.exitcode} before it had logged anything")
    services = contender.services()
    before, own = sum(map(cpu_seconds, services)), time.process_time()
    start = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    if drain:
        contender.drain()
    seconds = time.perf_counter() - start
    writer = sum(map(cpu_seconds, services)) - before
    return Outcome(
        seconds=seconds,
        cpu=sum(spent) + (time.process_time() - own) + writer,
        writer_cpu=writer,
        logged=load.workers * load.records,
        expected=load.workers * load.records if contender.has_file else 0,
    )


def _work(contender: Contender, load: Load, index: int, ready: Any, go: Any, spent: Any) -> None:
    """Runs in a worker."""
    info, template, payload = contender.worker(), contender.template, load.payload
    ready.release()
    go.wait()
    start = time.process_time()
    if template is None:
        for number in range(load.records):
            info(f"record {number} {payload}")
    else:
        for number in range(load.records):
            info(template, number, payload)
    contender.leave()
    spent[index] = time.process_time() - start
