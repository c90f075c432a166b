"""How much memory the logging process takes while records go through it."""

from __future__ import annotations

from typing import Any

import psutil

from benchmarks.throughput import Progress, once
from benchmarks.workload import Load, make, run_load

__all__ = ["compare", "measure"]

_STEPS = 10


def compare(name: str, records: int, progress: Progress) -> dict[str, Any]:
    """Send this many records through the logging process, and measure its memory meanwhile."""
    what, timeout = f"memory over {records:,} records", 120 + records / 20_000
    rows = once([name], what, progress, "memory:measure", timeout=timeout, records=records)
    return dict(rows[name])


def measure(contender: str, records: int, directory: str) -> dict[str, Any]:
    """Return the resident size in MiB, at the beginning and after each tenth. Runs in a process of its own."""
    logging_by = make(contender, directory)
    logging_by.start()
    process = psutil.Process(logging_by.writer())
    sizes = [process.memory_info().rss]
    logged = 0
    for _ in range(_STEPS):
        logged += run_load(logging_by, Load(2, records // _STEPS // 2)).logged
        sizes.append(process.memory_info().rss)
    logging_by.close()
    return {
        "expected": logged,
        "delivered": logging_by.delivered(Load(2, 0).payload),
        "rss_mib": [size / 2**20 for size in sizes],
    }
