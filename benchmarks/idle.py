"""How often a logging process wakes up while no process logs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.throughput import Progress, once
from benchmarks.workload import Load, cpu_seconds, make, run_load

__all__ = ["compare", "measure"]

#: After this many seconds, the work after a load (a nap, a last look) is over.
_SETTLE_SECONDS = 1.0


def compare(names: Sequence[str], seconds: float, progress: Progress) -> dict[str, Any]:
    """Watch the process that writes, after some work."""
    rows = once(names, "idle", progress, "idle:measure", timeout=60 + seconds, seconds=seconds)
    return {"seconds": seconds, "rows": rows}


def measure(contender: str, seconds: float, directory: str) -> dict[str, Any]:
    """Return the context switches and the CPU time of the process that writes. Runs in a process of its own."""
    logging_by = make(contender, directory)
    logging_by.start()
    run_load(logging_by, Load(1, 100), drain=False)
    writer = logging_by.writer()
    if writer is None:
        raise NotImplementedError("the workers write themselves")
    # If a thread of this process writes, this sleep is the only other thing that happens here.
    time.sleep(_SETTLE_SECONDS)
    switches, cpu = _switches(writer), cpu_seconds(writer)
    time.sleep(seconds)
    outcome = {"switches": _switches(writer) - switches, "cpu_ms": 1e3 * (cpu_seconds(writer) - cpu)}
    if writer == os.getpid():
        outcome["switches"] -= 1
    logging_by.drain()
    logging_by.close()
    return outcome


def _switches(pid: int) -> int:
    """Return the context switches of a process so far, of all of its threads (proc_pid_status(5))."""
    return sum(
        int(line.split()[1])
        for status in Path("/proc", str(pid), "task").glob("*/status")
        for line in status.read_text().splitlines()
        if "ctxt_switches" in line
    )
