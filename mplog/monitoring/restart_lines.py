"""The line in the log about a restart, which says what it has cost. Runs in the logging process.

The rule of this file: **a number in the line is measured.** Processes number their records. When everything is written
that was logged before the restart, no number is missing that was not missing before, or the line says how many are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["Restarts", "not_noted"]

#: Restarts that are told one by one, when one follows another so fast that there was no time to tell.
_TOLD_APART = 10

#: Bytes of what is said of one: it waits in the note of the buffers, which has a limit.
_LONGEST_STORY = 170

#: A number that is missing may still come: another thread of its process has overtaken the call. So long is waited for
#: it, in seconds; this happens only while the queue is full.
_PATIENCE_SECONDS = 5.0


def not_noted(stories: Sequence[str], noted: Sequence[str]) -> list[str]:
    """Return those that no logging process has noted: one that was killed could not say that it had.

    Args:
        stories: what became of logging processes, the first one first.
        noted: what is to be said of the latest of them.
    """
    known = (number for number, each in enumerate(stories) if any(one.startswith(each) for one in noted))
    return list(stories[max(known, default=-1) + 1 :])


class Restarts:
    """What is to be said of restarts.

    Args:
        untold: what another logging process has not come to say, of earlier ones.
        stories: what became of others since; empty for a start that is none.
        due: how far the log has come with everything that was logged before.
        missing: by pid, how many numbers of records are missing already that nothing accounts for.
        now: the time of the monotonic clock.

    Attributes:
        untold: what is still to be said, for the next one; also while the line is written, which a kill takes back.
        is_said: whether the line is written, and not committed.
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
        """Whether there is something to say now that the log has come so far."""
        return bool(self.untold) and not self.is_said and done >= self._due

    def line(self, missing: Mapping[int, int], now: float) -> str | None:
        """Return the line, which is to be written now; None where it is not known yet what to say.

        Args:
            missing: by pid, how many numbers are missing now that nothing accounts for.
            now: the time of the monotonic clock.
        """
        lost = sum(max(0, count - self._missing.get(pid, 0)) for pid, count in missing.items())
        if lost and now < self._until:
            return None
        self.is_said = True
        return f"mplog: {'; '.join(self.untold)}; {lost} record{'' if lost == 1 else 's'} lost"

    def settle(self) -> None:
        """Take it that the line, if there was one, is kept: for the note of the commit that does so."""
        if self.is_said:
            self.untold, self.is_said = [], False
