"""Processes that have closed their end of the FIFO and may yet log: programs that have become daemons, say.

Such a program closes all descriptors, and opens the FIFO anew when it next logs, which may be hours later. But whatever
it closes, it still has a file of the queue mapped (`mplog.queue.presence`).
"""

from __future__ import annotations

import os

from mplog.monitoring.process import maps, pids_that_map
from mplog.queue.presence import counter_path


class SilentWriters:
    """Finds them, by the directory of their queue. Only Linux tells what other processes have mapped."""

    def __init__(self, directory: str) -> None:
        self._path = counter_path(os.path.realpath(directory))  # as the kernel shows it
        self._pids: list[int] = []

    def are_left(self) -> bool:
        """Whether one is left. All processes are looked at only when none of those that were found is one any more."""
        self._pids = [pid for pid in self._pids if maps(pid, self._path, otherwise=True)] or pids_that_map(self._path)
        return bool(self._pids)
