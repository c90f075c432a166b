"""The counts, and the lines in the log about losses and restarts. Runs in the logging process."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Container, Mapping, Sequence

from mplog.logging_process.dispatch import Dispatcher
from mplog.logging_process.source import Batch
from mplog.monitoring.ended_processes import EndedProcesses
from mplog.monitoring.loss_reader import LossReader
from mplog.monitoring.numbers import Numbers
from mplog.monitoring.process import has_ended
from mplog.monitoring.restart_lines import Restarts
from mplog.monitoring.statistics import Stats, to_stats
from mplog.monitoring.tallies import Tallies
from mplog.queue.process_losses import read_files as read_losses
from mplog.record.layout import Origin

#: Seconds between two looks for losses while records come.
_CHECK_SECONDS = 1.0

#: Characters of a handler's name that are kept with what it could not write.
_LONGEST_HANDLER = 300


class Accounts:
    """Counts, and says losses and restarts in the log. `untold`, `stories` and `due`: see `Restarts`."""

    def __init__(
        self,
        directory: str,
        tallies: Tallies,
        dispatcher: Dispatcher,
        untold: list[str],
        stories: Sequence[str],
        due: int,
    ) -> None:
        self._directory = directory
        self._dispatcher = dispatcher
        self.tallies = tallies
        self._numbers = Numbers(tallies)
        self._losses = LossReader(directory, tallies, has_ended)
        self._ended = EndedProcesses(tallies, self._numbers, self._losses)
        self._check_due = 0.0
        #: Whether `check` has something to look for: records came, or processes have ended.
        self._has_worked = False
        self.restarts = Restarts(untold, stories, due, self._stats().unexplained, time.monotonic())
        tallies.add(("restarts",), len(stories))

    def count(self, batch: Batch, counts: Mapping[Origin, int]) -> None:
        """Count a batch that has been handled; `counts` has the number of its records by origin."""
        self.tallies.count_records(counts)
        if batch.are_numbered:
            self._numbers.count(batch.entries, counts)
        self._has_worked = True

    def gather(self) -> None:
        for name, count in self._dispatcher.failed.items():
            self.tallies.set(("failed", name[:_LONGEST_HANDLER]), count)

    def stats(self) -> Stats:
        self.gather()
        return self._stats()

    def _stats(self) -> Stats:
        return to_stats(self.tallies.values, read_losses(self._directory))

    def see_ended(self, pids: list[int]) -> None:
        self._ended.see(pids)
        self._has_worked = self._has_worked or self._ended.is_pending

    def check(self, done: int, due: Callable[[], int], watched: Container[int]) -> None:
        """Say what is due now that the log is at `done`. `see_ended` is told of the processes in `watched`."""
        now = time.monotonic()
        if now >= self._check_due:
            self._check_due = now + _CHECK_SECONDS
            self.tallies.publish()
            self._say_losses(of_all=False)
            # Folding would change the numbers that the line about a restart compares.
            if not self.restarts.untold and not self._losses.is_blind:
                self._ended.fold(done)
            self._ended.look(watched, due)
            self._has_worked = self._losses.has_more or self._ended.is_pending or self.tallies.is_behind
        self._say_restarts(done, now)

    def check_all(self, done: int) -> None:
        """Say all that is left: the whole log is written."""
        self._say_losses(of_all=True)
        self._say_restarts(done, math.inf)

    def timeout(self) -> float | None:
        """Return the seconds until `check` has something to do; None for nothing."""
        if self._has_worked:
            return max(0.0, self._check_due - time.monotonic())
        return _CHECK_SECONDS if self.restarts.untold else None

    def _say_losses(self, *, of_all: bool) -> None:
        for losses in self._losses.new(of_all=of_all):
            for message in losses.messages():
                self._dispatcher.say(f"mplog: {message}", logging.ERROR)

    def _say_restarts(self, done: int, now: float) -> None:
        """Say that there was a restart, once its losses are known."""
        if self.restarts.is_due(done):
            line = self.restarts.line(self._stats().unexplained, now)
            if line is not None:
                self._dispatcher.say(line)

    def remove_files(self) -> None:
        self._losses.remove_files()
