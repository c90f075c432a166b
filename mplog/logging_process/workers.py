"""The processes that log, and how they end. Runs in the logging process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from mplog.monitoring.count_file import Key
from mplog.monitoring.death_lines import Death, describe
from mplog.monitoring.deaths import Watch
from mplog.monitoring.tallies import Tallies
from mplog.record.layout import Origin

#: Seconds to wait at the end for the last deaths: a process closes the FIFO an instant before it is dead.
_LAST_DEATHS_SECONDS = 0.5

#: Processes of which the time of the last record is kept. Pids come off the wire.
_KNOWN_SENDERS = 10_000

#: Characters of a process's name that are kept with the fact that it is watched.
_LONGEST_NAME = 100


class Workers:
    """Watches the processes that log, and says which died. The tallies keep what the next logging process needs."""

    def __init__(self, watch: Watch, tallies: Tallies, say: Callable[[str, int], object]) -> None:
        self._watch = watch
        self._tallies = tallies
        self._say = say
        self._heard_from: dict[int, float] = {}
        self._unsaid: list[tuple[int, Death]] = []
        #: The keys in the tallies, by pid.
        self._watched: dict[int, Key] = {}

    def resume(self) -> None:
        for key, heard_at in self._tallies.of(Tallies.WATCHED).items():
            _, pid, name, started = key
            self._watched[pid] = key
            self._heard_from[pid] = heard_at / 1000
            if not self._watch.resume(pid, name, started):
                self._forget(pid)

    def __contains__(self, pid: object) -> bool:
        return pid in self._watch

    def hear(self, origins: Iterable[Origin]) -> None:
        """Watch the processes that have just sent records."""
        now = time.time()
        if len(self._heard_from) > _KNOWN_SENDERS:
            self._heard_from.clear()
        for origin in origins:
            pid = origin.process
            if pid is not None:
                self._heard_from[pid] = now
                started = self._watch.watch(pid, origin.processName or "")
                if started is not None:
                    key = self._watched.get(pid)
                    if key is None or key[-1] != started:
                        self._forget(pid)
                        name = (origin.processName or "")[:_LONGEST_NAME]
                        key = self._watched[pid] = Tallies.WATCHED, pid, name, started
                    self._tallies.set(key, round(now * 1000))

    def _forget(self, pid: int) -> None:
        """Tell the next logging process not to watch a process."""
        key = self._watched.pop(pid, None)
        if key is not None:
            self._tallies.set(key, 0)

    def fileno(self) -> int | None:
        """Return the descriptor that is readable when a process has ended; None where there is no such thing."""
        return self._watch.fileno()

    def look(self, due: Callable[[], int]) -> list[int]:
        """Note the deaths since the last call; return the pids of all processes that have ended, in whatever way.

        A death is said once the log has reached `due()`: after all that the process has logged.
        """
        return self._note(self._watch.deaths(), due)

    def told(self, pid: int, name: str, exitcode: int, due: Callable[[], int]) -> list[int]:
        """Note how a process has ended, as the program reports it; return as `look` does."""
        death = self._watch.told(pid, name, exitcode)
        return self._note([] if death is None else [death], due)

    def _note(self, deaths: list[Death], due: Callable[[], int]) -> list[int]:
        self._unsaid += [(due(), death) for death in deaths]
        ended, self._watch.ended = self._watch.ended, []
        for pid in set(ended) - {death.pid for _, death in self._unsaid}:
            self._forget(pid)
        return ended

    def say_deaths(self, done: int) -> None:
        """Say the deaths that are due now that the log is at `done`."""
        while self._unsaid and self._unsaid[0][0] <= done:
            _, death = self._unsaid.pop(0)
            counts = self._tallies.of("received")
            received = sum(count for (_, _, pid, _), count in counts.items() if pid == death.pid)
            # With very many processes, some are counted as others; but their numbers are still followed by pid.
            received = received or self._tallies.values["through", death.pid]
            level = logging.ERROR if death.exitcode < 0 else logging.WARNING
            self._say(describe(death, received, self._heard_from.pop(death.pid, None)), level)
            self._forget(death.pid)

    def say_last_deaths(self, *, waits: bool) -> None:
        """Say all deaths: the whole log is written. `waits`: give processes that are ending a moment to die."""
        deaths = self._watch.rest(_LAST_DEATHS_SECONDS) if waits else self._watch.deaths()
        self._unsaid = [(0, death) for death in [*(death for _, death in self._unsaid), *deaths]]
        self.say_deaths(0)

    def close(self) -> None:
        self._watch.close()
