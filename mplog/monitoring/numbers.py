"""The numbers of records, by process: how many have come through the queue, and so how many are missing.

Each process numbers its records from 1. The logging process keeps the highest number of each, and how many have come.
The order tells nothing: threads of a process may overtake each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from mplog.monitoring import tallies as limits
from mplog.monitoring.tallies import Tallies
from mplog.record.layout import SEQUENCE, Entry, Origin


class Numbers:
    """Follows the numbers of processes. Runs in the logging process."""

    def __init__(self, tallies: Tallies) -> None:
        self._tallies = tallies
        self._last: dict[int, int] = {pid: last for (_, pid), last in tallies.of("last").items()}
        self._ended: dict[int, int] = {pid: last for (_, pid), last in tallies.of("ended").items()}

    @property
    def pids(self) -> Collection[int]:
        return self._last.keys()

    def count(self, batch: Sequence[Entry], counts: Mapping[Origin, int]) -> None:
        """Count the numbers of records that came through the queue; `counts` has how many of them come from where."""
        # The only loop over all records here.
        highest: dict[Origin, int] = {}
        get = highest.get
        for values, origin in batch:
            number = values[SEQUENCE]
            if number > get(origin, 0):
                highest[origin] = number
        for origin, number in highest.items():
            pid = origin.process or 0
            last = self._last.get(pid)
            if last is None:
                if len(self._last) >= limits.COUNTED_PROCESSES:
                    self._tallies.set(("unfollowed",), 1)
                    continue
                last = 0
                if pid in self._ended or self._tallies.values["unfollowed",]:
                    self._take_up(pid, batch)
            self._tallies.add(("through", pid), counts[origin])
            if number > last:
                self._last[pid] = number
                self._tallies.set(("last", pid), number)

    def _take_up(self, pid: int, batch: Sequence[Entry]) -> None:
        """Begin to follow a process, which may have been followed before, or left out."""
        first = min(values[SEQUENCE] for values, origin in batch if (origin.process or 0) == pid)
        before = self._ended.pop(pid, None)
        if before is None:
            # It was left out while there were too many other processes.
            self._tallies.add(("through", pid), max(0, first - 1))
            return
        self._tallies.set(("ended", pid), 0)
        if first > before:
            # It was taken for dead, since in another container its pid belongs to another process; but it goes on.
            self._tallies.add(("through", pid), before)

    def missing(self, pid: int) -> int:
        return max(0, self._tallies.values["last", pid] - self._tallies.values["through", pid])

    def forget(self, pid: int) -> None:
        """Stop following a process that has ended, but keep its last number."""
        last = self._last.pop(pid, 0)
        self._tallies.set(("last", pid), 0)
        self._tallies.set(("through", pid), 0)
        if last:
            while len(self._ended) >= limits.COUNTED_ENDED:
                oldest = next(iter(self._ended))
                del self._ended[oldest]
                self._tallies.set(("ended", oldest), 0)
            self._ended[pid] = last
            self._tallies.set(("ended", pid), last)
