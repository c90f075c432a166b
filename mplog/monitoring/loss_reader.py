"""The losses of processes, as the log must say them. Runs in the logging process.

The rule of this file: **a loss is in its file, or in a committed count that survives this process.** So the file of a
process that has ended is removed only after the commit that keeps all of it. From then on, "said" counts for `Stats`.
"""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Callable
from dataclasses import replace

from mplog.monitoring.count_file import Key
from mplog.monitoring.tallies import Tallies
from mplog.queue.directory import workers_path
from mplog.queue.kill_points import reach
from mplog.queue.losses import Reason, pid_namespace
from mplog.queue.process_losses import ProcessLosses, names_of_files, pid_of, read_file

#: Files that are read in one look, so that it takes some hundredths of a second at most; the others follow in the next.
_LOOKED_AT = 1000


class LossReader:
    """Reads the files of losses of a queue.

    Attributes:
        ended: files that are not needed after the next commit, by name, with the counts that replace them.
        in_use: the pids of all files at the last look; not known if it found no free descriptor (`is_blind`).
    """

    def __init__(self, directory: str, tallies: Tallies, has_ended: Callable[[int], bool]) -> None:
        self._directory = workers_path(directory)
        self._tallies = tallies
        self._has_ended = has_ended
        self._namespace = pid_namespace()
        self._last = ""
        self.ended: dict[str, list[Key]] = {}
        self.in_use: set[int] = set()
        self.has_more = False
        self.is_blind = False

    def new(self, *, of_all: bool = False) -> list[ProcessLosses]:
        """Return the losses to say now, and count them as said: the caller writes the lines before the next commit.

        If there are very many files, one look reads some of them and sets `has_more`, unless `of_all`.
        """
        found = self._new_of_buffers()
        try:
            names = names_of_files(self._directory)
        except OSError:  # the next look finds them
            self.is_blind = self.has_more = True
            return found
        self.is_blind = False
        self.in_use = set(map(pid_of, names))
        self.has_more = len(names) > _LOOKED_AT and not of_all
        if self.has_more:
            start = bisect.bisect_right(names, self._last)
            names = (names[start:] + names[:start])[:_LOOKED_AT]
            self._last = names[-1]
        for name in names:
            new = self._new_of_file(name)
            if new is not None and new.counts:
                found.append(new)
        return found

    def _new_of_buffers(self) -> list[ProcessLosses]:
        """Return the records dropped from the buffers: the intake counts them in frames."""
        new = []
        for (_, *place), count in self._tallies.of("lost").items():
            said = "said of buffers", *place
            pid, name, level, reason = place
            if count > self._tallies.values[said]:
                new.append(ProcessLosses(pid, name, {(level, Reason(reason)): count - self._tallies.values[said]}))
                self._tallies.set(said, count)
        return new

    def _new_of_file(self, name: str) -> ProcessLosses | None:
        pid = pid_of(name)
        # Asked before the file is read: a process that has ended adds nothing to it.
        is_over = pid > 0 and self._has_ended(pid)
        try:
            losses, namespace = read_file(os.path.join(self._directory, name))
        except (OSError, ValueError):
            return None
        new, keys = {}, []
        for (level, reason), count in losses.counts.items():
            key = "said", name, losses.pid, losses.name, level, int(reason)
            if count > self._tallies.values[key]:
                new[level, reason] = count - self._tallies.values[key]
            self._tallies.set(key, count)
            keys.append(key)
        if is_over and losses.pid == pid and namespace == self._namespace:
            self.ended[name] = keys
        return replace(losses, counts=new)

    def remove_files(self) -> None:
        """Remove the files of processes that have ended, after a commit that keeps what is in them, for all to see."""
        if self.ended and not self._tallies.is_behind:
            reach("before remove")
            for name, keys in self.ended.items():
                if all(map(self._tallies.is_kept, keys)):
                    with contextlib.suppress(OSError):  # the next look tries again
                        os.unlink(os.path.join(self._directory, name))
            self.ended.clear()
