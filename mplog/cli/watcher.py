"""What ``mplog top`` looks at: the running servers, their rates, and the processes that log to them."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mplog.monitoring.find_servers import Found, RunningServer, Snapshot, find_servers
from mplog.monitoring.statistics import Stats

#: How many rates are kept for the line of bars.
_HISTORY = 60

#: What workers can be sorted by, with what it is called.
SORTS = {"rate": "records/s", "records": "records", "dropped": "dropped", "pid": "pid", "name": "name"}


@dataclass(frozen=True)
class Worker:
    """A process that logs. Dropped records are not in the log and never will be."""

    pid: int
    name: str
    records: int
    rate: float
    dropped: int
    is_alive: bool


@dataclass(frozen=True)
class Look:
    """A server at one instant, compared with the look before. Bytes count as they come through the queue."""

    server: RunningServer
    snapshot: Snapshot
    records_per_second: float
    bytes_per_second: float
    workers: list[Worker]

    @property
    def uptime(self) -> float:
        """Seconds since it was started."""
        return max(0.0, time.time() - self.server.notice.started)


class Watcher:
    """Looks at the servers again and again, at all of this user's or those with these queues, and computes rates."""

    def __init__(self, directories: Sequence[str] = ()) -> None:
        self._directories = tuple(directories)
        self._before: dict[str, Snapshot] = {}
        self.history: dict[str, deque[float]] = {}
        self.found = Found([], [], "")

    def look(self, sort: str = "rate") -> list[Look]:
        """Return the servers as they are now, the workers in the order of one of `SORTS`."""
        self.found = find_servers(self._directories)
        looks = []
        for server in self.found.servers:
            snapshot = server.look()
            if snapshot.state != "ended":
                looks.append(_compare(server, self._before.get(server.directory), snapshot, sort))
        self._before = {look.server.directory: look.snapshot for look in looks}
        self.history = {name: self.history.get(name, deque(maxlen=_HISTORY)) for name in self._before}
        for look in looks:
            self.history[look.server.directory].append(look.records_per_second)
        return looks


def _compare(server: RunningServer, before: Snapshot | None, now: Snapshot, sort: str) -> Look:
    seconds = max(1e-3, now.at - before.at) if before is not None else 0.0

    def rate(count: int, count_before: int) -> float:
        # After a kill, counts can be lower: the next logging process discards those that were not committed.
        return max(0, count - count_before) / seconds if seconds else 0.0

    counts = now.stats.by_process
    counts_before = {} if before is None else before.stats.by_process
    lost: Counter[int] = Counter()
    names = {pid: name for name, pid in counts}
    for losses in now.stats.lost:
        lost[losses.pid] += losses.lost
        names.setdefault(losses.pid, losses.name)
    workers = [
        Worker(pid, name, count, rate(count, counts_before.get((name, pid), 0)), lost.pop(pid, 0), pid in now.living)
        for (name, pid), count in counts.items()
    ]
    workers += [Worker(pid, names[pid], 0, 0.0, count, False) for pid, count in lost.items() if count]
    before_stats = Stats() if before is None else before.stats
    return Look(
        server,
        now,
        rate(now.stats.received, before_stats.received),
        rate(*(each.buffers.taken if each and each.buffers else 0 for each in (now, before))),
        _sorted(workers, sort),
    )


def _sorted(workers: Iterable[Worker], sort: str) -> list[Worker]:
    """Return the workers that run, then the others; by name or pid, or by a count from the highest down."""
    if sort in ("pid", "name"):
        return sorted(workers, key=lambda worker: (not worker.is_alive, getattr(worker, sort), worker.pid))
    return sorted(
        workers, key=lambda worker: (not worker.is_alive, -getattr(worker, sort), -worker.records, worker.pid)
    )
