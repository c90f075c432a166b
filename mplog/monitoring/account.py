"""The account of a log at its end, in words."""

from __future__ import annotations

from mplog.monitoring.statistics import Stats


def written(stats: Stats) -> str:
    """Return how much was written: "3 records of 2 processes written"."""
    return f"{_count(stats.written, 'record')} of {_count(len(stats.by_process), 'process', 'es')} written"


def missing(stats: Stats) -> str:
    """Return what is missing in the log, and why; "" if nothing is."""
    found = [f"{_count(count, 'record')} not written by {handler}" for handler, count in stats.failed.items()]
    for reason, count in sorted(stats.dropped_by_reason.items()):
        found.append(f"{_count(count, 'record')} dropped: {reason.text}")
    if stats.incomplete:
        found.append(f"{_count(stats.incomplete, 'long record')} of which the end never came")
    if stats.objects:
        found.append(f"{_count(stats.objects, 'object')} in the queue that cannot be logged")
    if stats.broken:
        found.append(f"{_count(stats.broken, 'piece')} of garbage in the queue")
    return f"records are missing in the log: {'; '.join(found)}" if found else ""


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"
