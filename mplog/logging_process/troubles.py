"""What goes wrong in the logging process, said in the log at intervals."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from mplog.formats.escaping import escape
from mplog.handlers.output import Output
from mplog.record.plain import safe_str

#: Seconds between two lines about the same trouble.
REPORT_INTERVAL = 10.0

# Errors may quote names and texts off the wire, so both are bounded.
_MOST = 1000
_LONGEST_ERROR = 1000


class Trouble(msgspec.Struct):
    """How often something has happened since it was last said, its latest cause, and when it may be said again."""

    unsaid: int = 0
    error: str = ""
    shunned: Output | None = None
    due: float = 0.0


class Troubles:
    """All kinds of trouble, said by `Dispatcher.say`."""

    def __init__(self, say: Callable[[str, int, Output | None], object], clock: Callable[[], float]) -> None:
        self._say = say
        self._clock = clock
        self._kinds: dict[tuple[str, str], Trouble] = {}

    def __len__(self) -> int:
        return len(self._kinds)

    def warn(
        self, noun: str, what: str, error: BaseException | None = None, count: int = 1, shunned: Output | None = None
    ) -> None:
        """Have "1 {noun} {what}: {error}" said in the log, each kind at most once an interval.

        `shunned`, an output that is the cause, does not get the line.
        """
        if (noun, what) not in self._kinds and len(self._kinds) >= _MOST:
            now = self._clock()
            self._kinds = {kind: one for kind, one in self._kinds.items() if one.unsaid or now < one.due}
            if len(self._kinds) >= _MOST:
                noun, what = "trouble", "of other kinds"
        trouble = self._kinds.setdefault((noun, what), Trouble())
        trouble.unsaid += count
        trouble.shunned = shunned
        if error is not None:
            # One line, whatever is in it: it may quote a record.
            trouble.error = f": {type(error).__name__}: {escape(safe_str(error))[:_LONGEST_ERROR]}"

    @property
    def has_unsaid(self) -> bool:
        return any(trouble.unsaid for trouble in self._kinds.values())

    def report(self, *, everything: bool = False) -> None:
        """Write the lines that are due, or all of them."""
        now = self._clock()
        for (noun, what), trouble in list(self._kinds.items()):
            if trouble.unsaid and (everything or now >= trouble.due):
                trouble.due = now + REPORT_INTERVAL
                line = f"mplog: {trouble.unsaid} {noun}{'' if trouble.unsaid == 1 else 's'} {what}{trouble.error}"
                trouble.unsaid = 0
                self._say(line, logging.ERROR, trouble.shunned)
