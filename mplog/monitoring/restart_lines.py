"""The line in the log about a restart, which says how many records it has cost. Runs in the logging process.

The number is measured. Processes number their records. The logging process waits until everything logged before the
restart is written, and counts the numbers that are missing now and were not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: How many restarts are described one by one if they come faster than their lines are written.
_TOLD_APART = 10
#: Characters that describe one restart: they wait in the note of the buffers, which has a limit.
_LONGEST_STORY = 170
#: How many seconds to wait for a missing number: while the queue is full, another thread of the process may have
#: overtaken the call.
_PATIENCE_SECONDS = 5.0


def not_noted(stories: Sequence[str], noted: Sequence[str]) -> list[str]:
    """Return the stories that are not in `noted`: a logging process killed before its first commit has noted none."""
    known = (number for number, each in enumerate(stories) if any(one.startswith(each) for one in noted))
    return list(stories[max(known, default=-1) + 1 :])


class Restarts:
    """The restarts that the log has not told of yet.

    Args:
        untold: descriptions that the previous logging process had not committed. A line that `is_said` stays in it
            until the commit.
        stories: how logging processes have ended since; empty at the first start.
        due: the position of the log at which everything is written that was logged before the restart.
        missing: by pid, how many numbers of records are missing already without a known reason.
    """

    def __init__(
        self, untold: list[str], stories: Sequence[str], due: int, missing: Mapping[int, int], now: float
    ) -> None:
        self.untold = [*untold, *(story[:_LONGEST_STORY] for story in stories)][-_TOLD_APART:]
        self._due = due
        self._missing = missing
        self._until = now + _PATIENCE_SECONDS
        self.is_said = False

    def is_due(self, done: int) -> bool:
        """Return whether there is a line to write, now that the log is at `done`."""
        return bool(self.untold) and not self.is_said and done >= self._due

    def line(self, missing: Mapping[int, int], now: float) -> str | None:
        """Return the line to write now; None while missing numbers may still come."""
        lost = sum(max(0, count - self._missing.get(pid, 0)) for pid, count in missing.items())
        if lost and now < self._until:
            return None
        self.is_said = True
        return f"mplog: {'; '.join(self.untold)}; {lost} record{'' if lost == 1 else 's'} lost"

    def settle(self) -> None:
        """Note that the next commit keeps the line, if one was said."""
        if self.is_said:
            self.untold, self.is_said = [], False
