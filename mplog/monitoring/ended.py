"""What is counted of processes that have ended, taken together. Runs in the logging process.

::

    a process ends --> everything is read that it had logged --> all of it is told --> fold --> one commit
                       files of losses, numbers missing                                          --> the files go

The rule of this file: **what is folded is folded in the commit that makes it count**, with a mark for each file that it
takes in. A marked file counts no more, and goes behind that commit, or with the start of the next logging process. So a
server that sees millions of workers keeps the files and the numbers of those alone that live, and exact sums.

A pid alone proves nothing: tomorrow it is another's, and in another container it is somebody else's today. So nothing
is folded of a process that has a file of losses left in use; and one whose numbers go on is followed again from there
(`Tallies.count_numbers`).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Container, Iterable

from mplog.monitoring.deaths import has_ended
from mplog.monitoring.statistics import COUNTED_ENDED, Key, Tallies
from mplog.queue.losses import LossReader, ProcessLosses, Reason

if sys.platform != "win32":
    from mplog.queue.kill_points import reach

__all__ = ["EndedProcesses"]

#: How many of those that nobody watches are looked for each time; half of them, where that is more.
_LOOKED_FOR = 1000

_GAPS = ("missing of ended", "unexplained of ended")


class EndedProcesses:
    """Finds processes that have ended, and folds what is counted of them.

    Args:
        tallies: what is counted.
        losses: reads the files.
    """

    def __init__(self, tallies: Tallies, losses: LossReader) -> None:
        self._tallies = tallies
        self._losses = losses
        self._seen: set[int] = set()
        self._pending: dict[int, int] = {}
        self._in_vain: set[int] = set()
        self._looked_for = 0
        self._told_apart = {(pid, name) for _, pid, name, _, _ in tallies.of("lost by ended")}
        self._with_gaps = {kind: {pid for _, pid in tallies.of(kind)} for kind in _GAPS}
        losses.folded.update(name for _, name in tallies.of(Tallies.FOLDED))

    @property
    def is_pending(self) -> bool:
        """Whether something is to be folded that could not be yet."""
        return bool(self._seen or self._pending.keys() - self._in_vain)

    def see(self, pids: Iterable[int]) -> None:
        """Take it that these have ended."""
        self._seen.update(pids)

    def look(self, watched: Container[int], due: Callable[[], int]) -> None:
        """Find those that have ended.

        Args:
            watched: those of which `see` tells; they are not looked for.
            due: returns how far the log will have come with everything that is logged by now.
        """
        others = sorted(pid for pid in self._tallies.followed if pid not in watched)
        start = self._looked_for % len(others) if others else 0
        count = max(_LOOKED_FOR, len(others) // 2)
        self._looked_for = start + count
        others = [*others[start:], *others[:start]][:count]
        found = {pid for pid in others if has_ended(pid)}
        found |= self._seen | {losses.pid for losses in self._losses.ended.values()}
        self._seen.clear()
        new = found - self._pending.keys()
        if new:
            self._pending.update(dict.fromkeys(new, due()))

    def fold(self, done: int) -> None:
        """Fold what is counted of those that have ended, once everything is handled that they had logged.

        Args:
            done: how far the log has come.
        """
        ready = [pid for pid, due in self._pending.items() if due <= done]
        if not ready:
            return
        files: dict[int, list[str]] = {}
        for name, losses in self._losses.ended.items():
            files.setdefault(losses.pid, []).append(name)
        dropped: dict[int, list[Key]] = {}
        for key in self._tallies.of("lost"):
            dropped.setdefault(key[1], []).append(key)
        for pid in ready:
            del self._pending[pid]
            # Another process may have the pid by now, whose numbers are not to be cut in two: then when that has ended.
            is_free = pid not in self._losses.in_use and has_ended(pid)
            if is_free and self._fold(pid, files.get(pid, []), dropped.get(pid, [])):
                self._in_vain.discard(pid)
            elif not self._losses.has_more:
                self._in_vain.add(pid)

    def _fold(self, pid: int, files: list[str], dropped: list[Key]) -> bool:
        """Fold one process; return whether there was room to do that."""
        tallies = self._tallies
        lost = [self._losses.ended[name] for name in files]
        for key in dropped:
            _, _, name, level, reason = key
            lost.append(ProcessLosses(pid, name, {(level, Reason(reason)): tallies.values[key]}))
        last = tallies.values["last", pid]
        missing = max(0, last - tallies.values["through", pid])
        sums = Counter[Key]()
        for losses in lost:
            who = self._who(losses)
            for (level, reason), count in losses.counts.items():
                key = ("lost by ended", *who, tallies.level(level), int(reason))
                sums[key] += count
        unexplained = max(0, missing - sum(losses.gap for losses in lost))
        for kind, count in zip(_GAPS, (missing, unexplained)):
            if count:
                sums[kind, self._whose(pid, kind)] += count
        marks = [(Tallies.FOLDED, name) for name in files]
        # What has no room in the file would be gone with this process.
        if not all(tallies.reserve(key) for key in (*sums, *marks)):
            return False
        for key, count in sums.items():
            tallies.add(key, count)
        for mark in marks:
            tallies.set(mark, 1)
        for key in dropped:
            tallies.forget_lost(key)
            tallies.set(("told of intake", *key[1:]), 0)
        for name in files:
            for place in self._losses.told_of(name):
                tallies.set(("told", *place), 0)
        tallies.forget_numbers(pid)
        for name in files:
            self._losses.forget(name)
        return True

    def _who(self, losses: ProcessLosses) -> tuple[int, str]:
        """Return what those are told by that count with this one."""
        who = losses.pid, losses.name
        if who not in self._told_apart:
            if len(self._told_apart) >= COUNTED_ENDED:
                return 0, "others"
            self._told_apart.add(who)
        return who

    def _whose(self, pid: int, kind: str) -> int:
        """Return the pid with which what is missing of one is counted."""
        known = self._with_gaps[kind]
        if pid not in known:
            if len(known) >= COUNTED_ENDED:
                return 0
            known.add(pid)
        return pid

    def clear_away(self) -> None:
        """Remove the files that are folded, which has been committed."""
        if self._losses.folded:
            reach("after fold")
            for name in self._losses.remove_folded():
                self._tallies.set((Tallies.FOLDED, name), 0)
