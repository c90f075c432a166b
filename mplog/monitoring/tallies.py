"""What the logging process counts, exactly, through any kill. Runs in the logging process.

The rule of this file: **a count changes with the commit of what it counts.** `Tallies.write` is called right before a
commit, `Tallies.publish` right after it. mplog/logging_process/README.rst tells the whole protocol.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from mplog.monitoring.count_file import CountFile, Key
from mplog.queue.process_losses import ProcessLosses
from mplog.record.layout import Origin

#: Pids, names and levels come off the wire, so there is a limit to how many are told apart, and to a name's length.
COUNTED_PROCESSES = 10_000
COUNTED_LEVELS = 1000
#: The same for processes that have ended, which are many in a server that runs for months.
COUNTED_ENDED = 1000
_LONGEST_NAME = 200

_T = TypeVar("_T")


def tell_apart(known: set[_T], key: _T, most: int, others: _T) -> _T:
    """Return the key to count under: `key` itself, or `others` if `most` keys are told apart already."""
    if key not in known:
        if len(known) >= most:
            return others
        known.add(key)
    return key


class Tallies:
    """Counts by kind and key. A commit makes those of the last `write` valid.

    They survive this process in the `memory` of the buffers; without it, or without room for a row, they do not. Others
    see them in a file of a directory. At the start, counts of writes after `serial`, the last committed one, are
    discarded.
    """

    #: The kind that tells the next logging process which processes are watched.
    WATCHED = "watched"

    def __init__(self, memory: int | None, directory: str = "", serial: int = 0) -> None:
        self.serial = serial
        self.values: Counter[Key] = Counter()
        self._changed: set[Key] = set()
        self._file: CountFile | None = None
        if memory is not None:
            with contextlib.suppress(OSError):
                self._file = CountFile(memory, directory, serial)
                self.values.update(self._file.counts())
        received, lost = self.of("received"), self.of("lost")
        self._senders: set[tuple[str, int]] = {(key[1], key[2]) for key in received}
        self._losers: set[tuple[int, str]] = {(key[1], key[2]) for key in lost}
        self._levels: set[int] = {key[-1] for key in received}
        self._levels.update(key[-2] for key in [*lost, *self.of("lost by ended")])

    def add(self, key: Key, count: int = 1) -> None:
        if count:
            self.values[key] += count
            self._changed.add(key)

    def set(self, key: Key, value: int) -> None:
        if not value and not self.is_kept(key):
            self.values.pop(key, None)
            self._changed.discard(key)
        elif self.values[key] != value or not self.is_kept(key):
            self.values[key] = value
            self._changed.add(key)

    def of(self, kind: str) -> dict[Key, int]:
        """Return the counts of a kind that are not 0."""
        return {key: count for key, count in self.values.items() if key[0] == kind and count}

    def is_kept(self, key: Key) -> bool:
        return self._file is not None and key in self._file

    def reserve(self, key: Key) -> bool:
        """Make room for a count that must survive this process; return False if there is none."""
        return self._file is not None and self._file.reserve(key)

    @property
    def has_new(self) -> bool:
        return bool(self._changed)

    def write(self) -> None:
        """Write the changes since the last write, which is committed by now; the next commit must name `serial`."""
        if self._changed:
            self.serial += 1
            if self._file is not None:
                for key in self._file.write({key: self.values[key] for key in self._changed}, self.serial):
                    if not self.values[key]:
                        del self.values[key]
            self._changed.clear()

    @property
    def is_behind(self) -> bool:
        """Whether other processes do not see all counts, because a disk is full."""
        return self._file is not None and self._file.is_behind

    def publish(self) -> None:
        """Show other processes what is committed, as far as the disk has room."""
        if self._file is not None and self._file.is_behind:
            self._file.publish()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def count_records(self, counts: Mapping[Origin, int]) -> None:
        """Count records that have been handled, by where they come from."""
        for origin, count in counts.items():
            sender = (origin.processName or "")[:_LONGEST_NAME], origin.process or 0
            if sender not in self._senders:
                sender = tell_apart(self._senders, sender, COUNTED_PROCESSES, ("others", 0))
            self.add(("received", *sender, self.level(origin.levelno)), count)

    def level(self, level: int) -> int:
        """Return the level to count a level as: 0 if too many are told apart already."""
        return level if level in self._levels else tell_apart(self._levels, level, COUNTED_LEVELS, 0)

    def count_lost(self, losses: ProcessLosses, *, is_said: bool = False) -> None:
        """Count records dropped from the buffers. `is_said`: with the next commit, the log says so."""
        loser = losses.pid, losses.name[:_LONGEST_NAME]
        pid, name = tell_apart(self._losers, loser, COUNTED_PROCESSES, (0, "others"))
        for (level, reason), count in losses.counts.items():
            place = pid, name, self.level(level), int(reason)
            self.add(("lost", *place), count)
            if is_said:
                self.add(("said of buffers", *place), count)

    def forget_lost(self, key: Key) -> None:
        *_, pid, name, _, _ = key
        self.set(key, 0)
        self._losers.discard((pid, name))
