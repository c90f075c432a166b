"""Totals for processes that have ended, so that millions of short workers take bounded room. In the logging process.

Once the losses of a process are said and their file is removed, `EndedProcesses.fold` moves all its counts to the
totals, in one commit. A few processes are still told apart there; the others count as "others".

A pid alone proves nothing (see deaths.py). So a process is not folded while a file of losses has its pid; and if its
numbers go on, `Numbers` takes them up again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Container, Iterable

from mplog.monitoring import tallies as limits
from mplog.monitoring.count_file import Key
from mplog.monitoring.loss_reader import LossReader
from mplog.monitoring.numbers import Numbers
from mplog.monitoring.process import has_ended
from mplog.monitoring.tallies import Tallies, tell_apart
from mplog.queue.losses import Reason
from mplog.queue.process_losses import pid_of

#: How many unwatched processes are looked at each time, or half of them if that is more.
_LOOKED_AT = 1000

_GAPS = ("missing of ended", "unexplained of ended")


class EndedProcesses:
    """Finds processes that have ended, and moves their counts to the totals."""

    def __init__(self, tallies: Tallies, numbers: Numbers, losses: LossReader) -> None:
        self._tallies = tallies
        self._numbers = numbers
        self._losses = losses
        self._seen: set[int] = set()
        self._pending: dict[int, int] = {}
        self._tried: set[int] = set()
        self._told_apart = {(pid, name) for _, pid, name, _, _ in tallies.of("lost by ended")}
        self._with_gaps = {kind: {pid for _, pid in tallies.of(kind)} for kind in _GAPS}

    @property
    def is_pending(self) -> bool:
        """Whether there are processes that `fold` has not tried yet."""
        return bool(self._seen or self._pending.keys() - self._tried)

    def see(self, pids: Iterable[int]) -> None:
        self._seen.update(pids)

    def look(self, watched: Container[int], due: Callable[[], int]) -> None:
        """Find processes that have ended, except `watched` ones: `see` is told of these.

        `due` returns the position of the log at which everything logged before the call is written.
        """
        others = [pid for pid in self.followed if pid not in watched]
        others = random.sample(others, min(len(others), max(_LOOKED_AT, len(others) // 2)))
        found = {pid for pid in others if has_ended(pid)}
        found |= self._seen | set(map(pid_of, self._losses.ended))
        self._seen.clear()
        new = found - self._pending.keys()
        if new:
            self._pending.update(dict.fromkeys(new, due()))

    @property
    def followed(self) -> set[int]:
        """The pids of processes that have counts of their own: they are not folded."""
        return {*self._numbers.pids, *(key[-4] for key in self._losses_of_followed())}

    def _losses_of_followed(self) -> list[Key]:
        return [*self._tallies.of("said"), *self._tallies.of("lost")]

    def fold(self, done: int) -> None:
        """Move the counts of ended processes to the totals once the log, now at `done`, has all their records."""
        ready = [pid for pid, due in self._pending.items() if due <= done]
        if not ready:
            return
        lost: dict[int, list[Key]] = {}
        for key in self._losses_of_followed():
            lost.setdefault(key[-4], []).append(key)
        for pid in ready:
            del self._pending[pid]
            # If a new process has the pid, both are folded once the new one has ended.
            is_free = pid not in self._losses.in_use and has_ended(pid)
            if is_free and self._fold(pid, lost.get(pid, [])):
                self._tried.discard(pid)
            elif not self._losses.has_more:
                self._tried.add(pid)

    def _fold(self, pid: int, lost: list[Key]) -> bool:
        """Fold one process; return False if there is no room for that."""
        tallies = self._tallies
        sums = Counter[Key]()
        gap = 0
        for key in lost:
            *_, name, level, reason = key
            count = tallies.values[key]
            ended, name = tell_apart(self._told_apart, (pid, name), limits.COUNTED_ENDED, (0, "others"))
            sums["lost by ended", ended, name, tallies.level(level), reason] += count
            gap += count if Reason(reason).leaves_gap else 0
        missing = self._numbers.missing(pid)
        for kind, count in zip(_GAPS, (missing, max(0, missing - gap))):
            if count:
                sums[kind, tell_apart(self._with_gaps[kind], pid, limits.COUNTED_ENDED, 0)] += count
        if not all(map(tallies.reserve, sums)):  # a sum without room in the file would not survive this process
            return False
        for key, count in sums.items():
            tallies.add(key, count)
        for key in lost:
            tallies.forget_lost(key)
            tallies.set(("said of buffers", *key[-4:]), 0)
        self._numbers.forget(pid)
        return True
